package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// job is one pattern of requests.
type job struct {
	name  string
	rw    string // fio's name
	block string
	depth int
}

// jobs are the patterns of the issue, and one of reads, which the mirror serves
// from the local disk: what it loses there is the NBD server's.
var jobs = []job{
	{"4k write QD1", "randwrite", "4k", 1},
	{"4k write QD32", "randwrite", "4k", 32},
	{"64k write QD32", "randwrite", "64k", 32},
	{"4k read QD32", "randread", "4k", 32},
}

// result is one run of one job on one server.
type result struct {
	iops     float64
	p50, p99 time.Duration // of the completion latency
	cpuPerOp time.Duration // of the server's processes, user and system
	foreign  float64       // cores that neither the server nor fio used
}

// fill writes every byte of the volume once, through the server.
func (s *server) fill(ctx context.Context, size int64) error {
	if _, _, err := s.fio(ctx, "--rw=write", "--bs=1M", "--iodepth=4", fmt.Sprintf("--size=%d", size), "--end_fsync=1"); err != nil {
		return err
	}
	return s.inSync(ctx)
}

func measure(ctx context.Context, s *server, j job, o options, round int) (result, error) {
	busy, err := machineTime()
	if err != nil {
		return result{}, err
	}
	before, err := s.cpuTime()
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	out, fioTime, err := s.fio(ctx,
		"--rw="+j.rw, "--bs="+j.block, fmt.Sprintf("--iodepth=%d", j.depth), fmt.Sprintf("--size=%d", o.size),
		"--time_based", fmt.Sprintf("--runtime=%d", o.runtime/time.Second), fmt.Sprintf("--ramp_time=%d", o.ramp/time.Second),
		// The same offsets for every server of a round, others in the next; without
		// a map fio does less work of its own.
		fmt.Sprintf("--randseed=%d", round+1), "--norandommap")
	if err != nil {
		return result{}, err
	}
	wall := time.Since(began)
	after, err := s.cpuTime()
	if err != nil {
		return result{}, err
	}
	busyAfter, err := machineTime()
	if err != nil {
		return result{}, err
	}
	if err := s.inSync(ctx); err != nil {
		return result{}, err
	}
	side := out.Write
	if strings.Contains(j.rw, "read") {
		side = out.Read
	}
	if side.IOPS == 0 {
		return result{}, errors.New("fio did nothing")
	}
	// fio's counts leave out the ramp, the processor time has it: take the rate.
	return result{
		iops:     side.IOPS,
		p50:      time.Duration(side.Latency.Percentile["50.000000"]),
		p99:      time.Duration(side.Latency.Percentile["99.000000"]),
		cpuPerOp: time.Duration(float64(after-before) / (side.IOPS * (o.runtime + o.ramp).Seconds())),
		foreign:  max(0, (busyAfter-busy-(after-before)-fioTime).Seconds()/wall.Seconds()),
	}, nil
}

// output is what is read of fio's JSON.
type output struct {
	Read, Write struct {
		IOPS    float64 `json:"iops"`
		Latency struct {
			Percentile map[string]float64 `json:"percentile"` // ns
		} `json:"clat_ns"`
	}
}

// fio runs one job to its end and says how much processor time fio took.
func (s *server) fio(ctx context.Context, args ...string) (output, time.Duration, error) {
	args = append([]string{"--name=bench", "--thread", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + s.socket, "--output-format=json"}, args...)
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Dir = s.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return output{}, 0, ctx.Err()
		}
		return output{}, 0, fmt.Errorf("fio %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	out, err := parseFio(stdout.Bytes())
	return out, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), err
}

// parseFio skips the notes that fio prints before its JSON.
func parseFio(b []byte) (output, error) {
	start := bytes.IndexByte(b, '{')
	if start < 0 {
		return output{}, fmt.Errorf("fio printed no JSON: %q", b)
	}
	var doc struct {
		Jobs []struct {
			Error int `json:"error"`
			output
		} `json:"jobs"`
	}
	if err := json.Unmarshal(b[start:], &doc); err != nil {
		return output{}, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(doc.Jobs) != 1 || doc.Jobs[0].Error != 0 {
		return output{}, fmt.Errorf("fio's job failed: %s", b[start:min(len(b), start+2000)])
	}
	return doc.Jobs[0].output, nil
}

// tick is the unit of /proc: USER_HZ is 100 on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// cpuTime is the processor time that the server's processes have used so far.
func (s *server) cpuTime() (time.Duration, error) {
	var sum time.Duration
	for _, p := range s.procs {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			return 0, fmt.Errorf("%s is gone: %w\n%s", filepath.Base(p.cmd.Path), err, p.tail())
		}
		t, err := parseStat(string(b))
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// parseStat adds utime and stime of /proc/PID/stat (proc(5)). The second field,
// the name, may contain anything; the third begins after its last parenthesis.
func parseStat(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("not a /proc/PID/stat: %q", stat)
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick, err
}

// machineTime is the time that all processors were not idle, so far; time that
// the hypervisor took away (steal) among it.
func machineTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("not a /proc/stat: %q", line)
	}
	var sum int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} { // user nice system irq softirq steal
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// profile runs every job once more under perf, which sees the kernel's part too.
// cpu-clock works also where a virtual machine has no counters. main has looked
// for perf.
func profile(ctx context.Context, s *server, o options, stderr io.Writer) error {
	if err := os.MkdirAll(o.perf, 0o755); err != nil {
		return err
	}
	var pids []string
	for _, p := range s.procs {
		pids = append(pids, strconv.Itoa(p.cmd.Process.Pid))
	}
	for i, j := range jobs {
		data := filepath.Join(o.perf, fmt.Sprintf("%d-%s", i, strings.ReplaceAll(j.name, " ", "-")))
		cmd := exec.CommandContext(ctx, "perf", "record", "-q", "-e", "cpu-clock", "-F", "499", "-g", "-p", strings.Join(pids, ","), "-o", data+".data")
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		cmd.WaitDelay = 10 * time.Second
		cmd.Stderr = stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		_, runErr := measure(ctx, s, j, o, 0)
		_ = cmd.Process.Signal(os.Interrupt) // perf writes its file and ends by the signal
		_ = cmd.Wait()
		if runErr != nil {
			return runErr
		}
		text, err := exec.CommandContext(ctx, "perf", "report", "--stdio", "--no-children", "-g", "none", "--sort", "comm,symbol", "-i", data+".data").Output()
		if err != nil {
			return fmt.Errorf("perf report: %w", err)
		}
		if err := os.WriteFile(data+".txt", text, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(stderr, "bench: profile in %s.txt\n", data)
	}
	return nil
}
