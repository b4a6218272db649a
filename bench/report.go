package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what is written as JSON.
type report struct {
	Time    time.Time `json:"time"`
	Host    host      `json:"host"`
	Rounds  int       `json:"rounds"`
	Runtime float64   `json:"runtime_seconds"`
	Ramp    float64   `json:"ramp_seconds"`
	Size    int64     `json:"volume_bytes"`
	Seconds float64   `json:"seconds"`
	Foreign spread    `json:"foreign_cores"` // other load during the runs
	Rows    []*row    `json:"rows"`
}

// host is where and with what it was measured.
type host struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Kernel string `json:"kernel"`
	TCP    string `json:"tcp_congestion"` // BBR paces also on loopback
	Go     string `json:"go"`
	Fio    string `json:"fio"`
	Nbdkit string `json:"nbdkit"`
	Commit string `json:"commit,omitempty"` // with + when files were changed since
}

// row is one job on one server; a value of the lists is one round's.
type row struct {
	Job      string    `json:"job"`
	Server   string    `json:"server"`
	IOPS     spread    `json:"iops"`
	Ratio    spread    `json:"ratio"`
	P50      float64   `json:"p50_us"`        // median of the rounds
	P99      float64   `json:"p99_us"`        // median of the rounds
	CPU      float64   `json:"cpu_us_per_op"` // median of the rounds
	Rounds   []float64 `json:"iops_rounds"`
	p50, p99 []float64
	cpu      []float64
	foreign  []float64
}

// spread is what three to five rounds can say: a standard deviation of so few
// would pretend to know more.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(v []float64) spread {
	return spread{median(v), slices.Min(v), slices.Max(v)}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

func newReport(h host, o options, servers []*server, now time.Time) *report {
	rep := &report{Time: now.UTC().Truncate(time.Second), Host: h, Rounds: o.rounds, Runtime: o.runtime.Seconds(), Ramp: o.ramp.Seconds(), Size: o.size}
	for _, j := range jobs {
		for _, s := range servers {
			rep.Rows = append(rep.Rows, &row{Job: j.name, Server: s.name})
		}
	}
	return rep
}

// add takes the runs of a server and job in the order of the rounds.
func (rep *report) add(server, job string, r result) {
	i := slices.IndexFunc(rep.Rows, func(w *row) bool { return w.Server == server && w.Job == job })
	w := rep.Rows[i]
	w.Rounds = append(w.Rounds, r.iops)
	w.p50 = append(w.p50, float64(r.p50)/1e3)
	w.p99 = append(w.p99, float64(r.p99)/1e3)
	w.cpu = append(w.cpu, float64(r.cpuPerOp)/1e3)
	w.foreign = append(w.foreign, r.foreign)
}

// finish computes the medians; the first server of a job is the base of the ratios.
func (rep *report) finish() {
	var base *row
	var foreign []float64
	for _, w := range rep.Rows {
		if base == nil || base.Job != w.Job {
			base = w
		}
		ratios := make([]float64, len(w.Rounds))
		for i := range w.Rounds {
			ratios[i] = w.Rounds[i] / base.Rounds[i]
		}
		w.IOPS, w.Ratio = spreadOf(w.Rounds), spreadOf(ratios)
		w.P50, w.P99, w.CPU = median(w.p50), median(w.p99), median(w.cpu)
		foreign = append(foreign, w.foreign...)
	}
	rep.Foreign = spreadOf(foreign)
}

func (rep *report) print(out io.Writer) {
	fmt.Fprintf(out, "%s, %d cores, %s, TCP %s, fio %s, nbdkit %s, tandem %s\n", rep.Host.CPU, rep.Host.Cores, rep.Host.Kernel, rep.Host.TCP, rep.Host.Fio, rep.Host.Nbdkit, rep.Host.Commit)
	fmt.Fprintf(out, "%d rounds of %.0f s, %d MiB on tmpfs, in turns; median [min..max], ratio round by round to nbdkit unmirrored\n\n", rep.Rounds, rep.Runtime, rep.Size>>20)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "random\tserver\tIOPS\tratio\tp50 µs\tp99 µs\tserver CPU µs/op")
	last := ""
	for _, r := range rep.Rows {
		job, ratio := r.Job, "1"
		if job == last {
			job = ""
			ratio = fmt.Sprintf("%.2f [%.2f..%.2f]", r.Ratio.Median, r.Ratio.Min, r.Ratio.Max)
		}
		last = r.Job
		fmt.Fprintf(w, "%s\t%s\t%.0f [%.0f..%.0f]\t%s\t%.0f\t%.0f\t%.1f\n", job, r.Server, r.IOPS.Median, r.IOPS.Min, r.IOPS.Max, ratio, r.P50, r.P99, r.CPU)
	}
	w.Flush()
	fmt.Fprintf(out, "\nother load on the machine during the runs: %.2f [%.2f..%.2f] of %d cores\n", rep.Foreign.Median, rep.Foreign.Min, rep.Foreign.Max, rep.Host.Cores)
	if rep.Foreign.Median > 0.2 {
		fmt.Fprintln(out, "that is much: the mirror needs more processor than nbdkit, and so loses more by it")
	}
}

func (rep *report) write(dir string) (string, error) {
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, rep.Time.Format("20060102-150405")+".json")
	return path, os.WriteFile(path, append(b, '\n'), 0o644)
}

// inspect finds the tools, and says which it found.
func inspect(ctx context.Context) (host, error) {
	h := host{Cores: runtime.NumCPU(), Go: runtime.Version()}
	for _, tool := range []string{"fio", "nbdkit"} {
		if _, err := exec.LookPath(tool); err != nil {
			return h, fmt.Errorf("%s is missing: apt-get install fio nbdkit", tool)
		}
	}
	first := func(name string, args ...string) string {
		out, _ := exec.CommandContext(ctx, name, args...).Output() // what is not known stays empty
		line, _, _ := strings.Cut(string(out), "\n")
		return line
	}
	h.Fio = strings.TrimPrefix(first("fio", "--version"), "fio-")
	h.Nbdkit = strings.TrimPrefix(first("nbdkit", "--version"), "nbdkit ")
	h.Kernel = first("uname", "-r")
	h.Commit = first("git", "rev-parse", "--short", "HEAD")
	if h.Commit != "" && first("git", "status", "--porcelain", "--untracked-files=no") != "" {
		h.Commit += "+"
	}
	tcp, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	h.TCP = strings.TrimSpace(string(tcp))
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			h.CPU = strings.TrimSpace(value)
			break
		}
	}
	return h, nil
}
