// Command bench measures what the mirror costs: nbdkit on one file against a
// pair of Tandem agents on two files, all on tmpfs, all through the same fio.
//
//	make bench QUICK=1
//	go build -o bin/ ./cmd/... && go run ./bench -rounds 5 -runtime 10s
//
// Its other half, `bench takeover`, measures for how long clients wait when the
// primary is killed or the service is moved (takeover.go).
//
// The servers stand side by side and take turns, run by run, and the one that
// goes first changes from round to round, because the machine is rarely quiet:
// what disturbs one round then disturbs every server in it. So the ratio of a
// round is worth more than its IOPS, and the report gives the median of the
// rounds' ratios. Both files are filled before the first run: a hole is cheaper
// to write on tmpfs the second time than the first.
//
// Results are a table on stdout and a JSON file. The exit status is 1 when
// anything fails, a run in which the peer was not in sync and copies that differ
// at the end among it: an unmirrored pair would be a fast one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// options is the command line.
type options struct {
	bin     string // folder with replagent and replctl
	dir     string // where the work folder is made; tmpfs
	out     string // folder for the JSON
	rounds  int
	runtime time.Duration // of one fio run, without its ramp
	ramp    time.Duration
	size    int64  // of the volume, bytes
	perf    string // folder for profiles, or ""
}

func main() {
	// The servers die with the thread that started them (Pdeathsig), so all of
	// them are started from this one, which lives as long as the process.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if len(os.Args) > 1 && os.Args[1] == "takeover" {
		o, code := parseTakeover(os.Args[2:], os.Stderr)
		if code >= 0 {
			os.Exit(code)
		}
		_, err = takeover(ctx, o, os.Stdout)
	} else {
		o, code := parse(os.Args[1:], os.Stderr)
		if code >= 0 {
			os.Exit(code)
		}
		err = run(ctx, o, os.Stdout, os.Stderr)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// parse returns the options, or the status to exit with.
func parse(args []string, stderr io.Writer) (options, int) {
	var o options
	var quick bool
	var mib int64
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.BoolVar(&quick, "quick", false, "3 rounds of 3 s on 512 MiB, unless -rounds, -runtime or -size say otherwise")
	f.IntVar(&o.rounds, "rounds", 5, "how often every job runs on every server")
	f.DurationVar(&o.runtime, "runtime", 10*time.Second, "the time of one run, in whole seconds")
	f.Int64Var(&mib, "size", 1024, "the volume, in MiB; five files of it are on tmpfs at once")
	f.StringVar(&o.bin, "bin", "bin", "the folder of replagent and replctl")
	f.StringVar(&o.dir, "dir", "/dev/shm", "a folder on tmpfs, to work in")
	f.StringVar(&o.out, "out", "bench/results", "the folder for the JSON")
	f.StringVar(&o.perf, "perf", "", "one more run of each job, with `perf record` on both agents, into this folder; left out where there is no perf")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return o, 0
	} else if err != nil {
		return o, 2
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if quick && !given["rounds"] {
		o.rounds = 3
	}
	if quick && !given["runtime"] {
		o.runtime = 3 * time.Second
	}
	if quick && !given["size"] {
		mib = 512
	}
	o.ramp = time.Second
	o.size = mib << 20
	switch {
	case f.NArg() > 0:
		fmt.Fprintf(stderr, "bench: there are no arguments, and %q is one\n", f.Arg(0))
	case o.rounds < 1, o.runtime < time.Second, o.runtime%time.Second != 0, mib < 16:
		fmt.Fprintln(stderr, "bench: at least 1 round, 1 s (whole seconds) and 16 MiB are needed")
	default:
		return o, -1
	}
	return o, 2
}

func run(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	host, err := inspect(ctx)
	if err != nil {
		return err
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "tandem-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	servers := []*server{
		{name: "nbdkit"}, // the first is what the others are compared to
		{name: "tandem tls", mirrored: true, tls: true},
		{name: "tandem plain", mirrored: true},
	}
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.stop())
		}
	}()
	for _, s := range servers {
		fmt.Fprintf(stderr, "bench: starting and filling %s\n", s.name)
		if err := s.start(ctx, o, filepath.Join(dir, filepath.Base(s.name))); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := s.fill(ctx, o.size); err != nil {
			return fmt.Errorf("fill %s: %w", s.name, err)
		}
	}

	began := time.Now()
	rep := newReport(host, o, servers, began)
	for round := range o.rounds {
		for _, j := range jobs {
			for i := range servers {
				s := servers[(round+i)%len(servers)]
				r, err := measure(ctx, s, j, o, round)
				if err != nil {
					return fmt.Errorf("%s on %s: %w", j.name, s.name, err)
				}
				rep.add(s.name, j.name, r)
				fmt.Fprintf(stderr, "bench: round %d/%d  %-16s %-13s %8.0f IOPS\n", round+1, o.rounds, j.name, s.name, r.iops)
			}
		}
	}
	rep.Seconds = time.Since(began).Seconds()
	if _, err := exec.LookPath("perf"); o.perf != "" && err != nil {
		fmt.Fprintln(stderr, "bench: no profiles: perf is not installed (Debian: linux-perf)")
	} else if o.perf != "" {
		if err := profile(ctx, servers[1], o, stderr); err != nil {
			return err
		}
	}
	for _, s := range servers {
		if err := s.stop(); err != nil {
			return err
		}
		if err := s.compare(); err != nil {
			return err
		}
	}
	rep.finish()
	rep.print(stdout)
	path, err := rep.write(o.out)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "\ncopies identical · %.0f s · %s\n", time.Since(began).Seconds(), path)
	return nil
}
