// Command e2e runs the scenarios of package e2e in virtual machines. It needs
// root and QEMU, and on Debian installs what is missing.
//
//	go run ./e2e/cmd/e2e list
//	go run ./e2e/cmd/e2e run [flags] [ID...]      smoke stands for smoke-ext4 and smoke-xfs
//
// It exits 0 if all scenarios passed, 1 if one failed or could not be run, 2 if
// the command line makes no sense.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"tandem/e2e"
	"tandem/e2e/vm"
)

var (
	errUsage  = errors.New("usage: e2e list | e2e run [-keep DIR] [-results FILE] [-accel kvm|tcg] [-cpus N] [-kernel PACKAGE] [-bin DIR] [-full] [-jobs N] [ID...]")
	errFailed = errors.New("not all scenarios passed")
)

// guestPrograms are run in the guests by the scenarios, or by the agent there.
var guestPrograms = []vm.Need{
	{Program: "nbd-client", Package: "nbd-client"},
	{Program: "mkfs.ext4", Package: "e2fsprogs"},
	{Program: "mkfs.xfs", Package: "xfsprogs"},
	{Program: "fio", Package: "fio"},
	{Program: "ss", Package: "iproute2"},
	{Program: "rpc.nfsd", Package: "nfs-kernel-server"},
	{Program: "mount.nfs4", Package: "nfs-common"},
	{Program: "rpcbind", Package: "rpcbind"},
	{Program: "nft", Package: "nftables"},
	{Program: "tc", Package: "iproute2"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// Debian's su keeps a PATH without these.
	_ = os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	err := run(ctx, os.Args[1:])
	stop() // not deferred: os.Exit would skip it
	switch {
	case err == nil:
		return
	case errors.Is(err, errUsage), errors.Is(err, e2e.ErrNoScenario):
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(2)
	case !errors.Is(err, errFailed): // the table has said it
		fmt.Fprintln(os.Stderr, "e2e:", err)
	}
	os.Exit(failedCode)
}

const failedCode = 1

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	switch {
	case verb == "list" && len(args) == 0:
		for _, s := range e2e.Scenarios() {
			fmt.Printf("%-12s %s\n", s.ID, s.Name)
		}
		return nil
	case verb == "run":
		return runOutside(ctx, args)
	case verb == "inside" && len(args) == 1:
		return runInside(ctx, args[0])
	}
	return errUsage
}

// plan is what the outer process has prepared for the inner one, which can do
// no more than use it: it has no network.
type plan struct {
	Lab     vm.Config
	IDs     []string
	Keep    string // where the scenarios' logs go
	Results string // of this process
	Commit  string
	Full    bool
}

// runOutside prepares everything and starts the inner process in namespaces of
// its own.
func runOutside(ctx context.Context, args []string) (err error) {
	var p plan
	var bin, kernel, accel, results string
	var jobs int
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&p.Keep, "keep", "", "")
	f.StringVar(&results, "results", "", "")
	f.StringVar(&accel, "accel", "", "")
	f.StringVar(&kernel, "kernel", "", "")
	f.IntVar(&p.Lab.CPUs, "cpus", 0, "")
	f.StringVar(&bin, "bin", "", "")
	f.BoolVar(&p.Full, "full", false, "")
	f.IntVar(&jobs, "jobs", 0, "")
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", err, errUsage)
	}
	p.Lab.Accel = vm.Accel(accel)
	if accel != "" && p.Lab.Accel != vm.KVM && p.Lab.Accel != vm.TCG {
		return fmt.Errorf("accelerator %q: %w", accel, errUsage)
	}
	scenarios, err := e2e.Select(e2e.Scenarios(), f.Args())
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("root is needed, for network namespaces and taps")
	}
	module, err := moduleRoot()
	if err != nil {
		return err
	}
	if results == "" {
		results = filepath.Join(module, "e2e", "results", "results.json")
	}
	if p.Keep == "" {
		p.Keep = filepath.Join(module, "e2e", "results", "logs")
	}
	for _, path := range []*string{&p.Keep, &results} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	p.Commit = commit(ctx, module)
	if bin != "" {
		p.Commit = "programs of " + bin // whatever they were built from
	}

	if err := vm.Provide(ctx, os.Stdout, guestPrograms...); err != nil {
		return err
	}
	if p.Lab.Cache, err = cacheDir(); err != nil {
		return err
	}
	if p.Lab.Kernel, err = vm.PrepareKernel(ctx, p.Lab.Cache, kernel); err != nil {
		return err
	}
	if e2e.WantNewerKernel(scenarios) {
		if p.Lab.Newer, err = vm.NewerKernel(ctx, p.Lab.Cache, p.Lab.Kernel); err != nil {
			return err
		}
	}
	if p.Lab.Busybox, err = vm.Busybox(ctx, p.Lab.Cache); err != nil {
		return err
	}
	dir, remove, err := runDir()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	built := filepath.Join(dir, "bin")
	if err := provideBinaries(ctx, module, bin, built); err != nil {
		return err
	}
	p.Lab.Guest = filepath.Join(built, "e2e-guest")
	if jobs <= 0 {
		jobs = suitableJobs()
	}
	quiet, others := e2e.Quiet(scenarios)
	if jobs == 1 {
		quiet, others = nil, scenarios
	}
	lists := e2e.Divide(others, jobs, lastSeconds(filepath.Join(module, "e2e", "results", "results.json")))
	var (
		all      sync.WaitGroup
		mu       sync.Mutex
		failures []error
		came     []e2e.Result
	)
	play := func(i int, list []e2e.Scenario, alone bool) {
		job := p
		job.Lab.Dir = filepath.Join(dir, strconv.Itoa(i))
		job.Results = filepath.Join(job.Lab.Dir, "results.json")
		for _, s := range list {
			job.IDs = append(job.IDs, s.ID)
		}
		out := io.Writer(os.Stdout)
		if !alone {
			out = &prefixed{to: os.Stdout, mu: &mu, prefix: strconv.Itoa(i+1) + "│ "}
		}
		err := runJob(ctx, job, built, out)
		got, _ := e2e.ReadResults(job.Results) // what is missing has failed
		mu.Lock()
		defer mu.Unlock()
		failures, came = append(failures, err), append(came, got...)
	}
	for i, list := range lists {
		all.Go(func() { play(i, list, len(lists) == 1) })
	}
	all.Wait()
	if len(quiet) > 0 && ctx.Err() == nil {
		play(len(lists), quiet, true)
	}
	came = e2e.InOrder(scenarios, came, p.Commit)
	fmt.Println()
	err = errors.Join(append(failures, e2e.PrintTable(os.Stdout, came), e2e.WriteResults(results, came))...)
	if err == nil && !e2e.AllOK(came) {
		return errFailed
	}
	return err
}

// runJob plays a part of the scenarios in a process of its own.
func runJob(ctx context.Context, p plan, built string, out io.Writer) error {
	p.Lab.Share = filepath.Join(p.Lab.Dir, "share")
	if err := os.MkdirAll(filepath.Join(p.Lab.Share, "bin"), 0o755); err != nil {
		return err
	}
	programs, err := os.ReadDir(built)
	if err != nil {
		return err
	}
	for _, b := range programs {
		if err := os.Link(filepath.Join(built, b.Name()), filepath.Join(p.Lab.Share, "bin", b.Name())); err != nil {
			return err
		}
	}
	path := filepath.Join(p.Lab.Dir, "plan.json")
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "inside", path)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it writes its results
	cmd.Stdout, cmd.Stderr = out, out
	err = vm.Enclose(cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() && exit.ExitCode() == failedCode {
		return nil // the results say what
	}
	return err
}

// prefixed writes whole lines, each with a prefix.
type prefixed struct {
	to     io.Writer
	mu     *sync.Mutex // of all that write there
	prefix string
	part   []byte
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.part = append(p.part, b...)
	for {
		i := bytes.IndexByte(p.part, '\n')
		if i < 0 {
			return len(b), nil
		}
		if _, err := fmt.Fprintf(p.to, "%s%s\n", p.prefix, p.part[:i]); err != nil {
			return 0, err
		}
		p.part = p.part[i+1:]
	}
}

// suitableJobs is two on a host that can carry two labs: most of the time the machines of one
// wait for something.
func suitableJobs() int {
	const memoryOfTwo = 8 << 30
	if runtime.NumCPU() < 2 || freeMemory() < memoryOfTwo {
		return 1
	}
	return 2
}

// lastSeconds is how long each scenario took, as the file has it; without one nothing is known.
func lastSeconds(path string) map[string]float64 {
	results, err := e2e.ReadResults(path)
	if err != nil {
		return nil
	}
	all := make(map[string]float64)
	for _, r := range results {
		all[r.ID] = r.Seconds
	}
	return all
}

// runInside plays the scenarios.
func runInside(ctx context.Context, path string) error {
	if err := vm.Enclosed(); err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	scenarios, err := e2e.Select(e2e.Scenarios(), p.IDs)
	if err != nil {
		return err
	}
	lab, err := vm.NewLab(ctx, p.Lab)
	if err != nil {
		return err
	}
	kernels := lab.KernelRelease()
	if p.Lab.Newer != nil && p.Lab.Newer.Release != kernels {
		kernels += " and " + p.Lab.Newer.Release
	}
	fmt.Printf("kernel %s, %s, commit %s\n", kernels, lab.Accel, p.Commit)
	session := e2e.Session{Lab: lab, Commit: p.Commit, Full: p.Full, Log: os.Stdout, Keep: func(id string) {
		kept := filepath.Join(p.Keep, id)
		if err := keepFiles(kept, p.Lab.Dir); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
		}
		fmt.Println("logs are in", kept)
	}}
	var results []e2e.Result
	for _, s := range scenarios {
		if ctx.Err() != nil {
			break
		}
		results = append(results, session.Play(ctx, s))
	}
	err = errors.Join(session.Close(), e2e.WriteResults(p.Results, results))
	if err == nil && (!e2e.AllOK(results) || len(results) < len(scenarios)) {
		return errFailed
	}
	return err
}

// keepFiles copies logs, configurations and the witness; not the disks.
func keepFiles(to, dir string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() && (rel == "etcd" || rel == filepath.Join("share", "bin") || rel == filepath.Join("share", "pki")) {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() || filepath.Ext(path) == ".img" || strings.HasPrefix(rel, "initrd-") || rel == "plan.json" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o644)
	})
}

// provideBinaries builds what runs in the guests; from dir, if given, it takes
// replagent and replctl as they are.
func provideBinaries(ctx context.Context, module, dir, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	packages := []string{"./e2e/cmd/e2e-guest", "./cmd/replagent", "./cmd/replctl"}
	if dir != "" {
		for _, pkg := range packages[1:] {
			b, err := os.ReadFile(filepath.Join(dir, filepath.Base(pkg)))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(to, filepath.Base(pkg)), b, 0o755); err != nil {
				return err
			}
		}
		packages = packages[:1]
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", to + "/"}, packages...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64") // static: the guest's is in the initramfs
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// moduleRoot is the folder of Tandem's go.mod, from here upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(b), "module tandem\n") {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("run it in Tandem's source tree: it builds what it tests")
		}
	}
}

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		base = "/var/cache" // no HOME, as under cron
	}
	dir := filepath.Join(base, "tandem-e2e")
	return dir, os.MkdirAll(dir, 0o755)
}

// memoryForDisks is what a run's folder may take: disks that are filled to a
// part, and binaries.
const memoryForDisks = 1 << 30

// runDir makes the run's folder, in memory if there is room. The machines' disks
// are no safer on a disk of the host, and an fsync of a busy host takes seconds:
// a witness that slow would be the test's subject. remove takes it away.
func runDir() (dir string, remove func() error, err error) {
	base := os.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err == nil && st.Type == unix.TMPFS_MAGIC && int64(st.Bavail)*st.Bsize >= 2*memoryForDisks && freeMemory() >= 2*memoryForDisks {
		base = "/dev/shm"
	}
	if err := removeStale(base); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(base, runPrefix); err != nil {
		return "", nil, err
	}
	lock, err := lockRun(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), lock.Close()) }, nil
}

// runPrefix begins the name of every run's folder. Each is locked while its run
// goes on.
const runPrefix = "tandem-e2e-"

func lockRun(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeStale takes away the folders of runs that were killed.
func removeStale(base string) error {
	dirs, err := filepath.Glob(filepath.Join(base, runPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "lock")); err != nil {
			continue // it is just being made, or is not one of ours
		}
		lock, err := lockRun(dir)
		if err != nil {
			continue // it goes on
		}
		if err := errors.Join(os.RemoveAll(dir), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}

// freeMemory is MemAvailable, 0 if it is not to be had.
func freeMemory() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

func commit(ctx context.Context, module string) string {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", module}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	head, err := git("rev-parse", "--short=12", "HEAD")
	if err != nil {
		return "unknown"
	}
	// The results themselves are no change.
	if changes, err := git("status", "--porcelain", "--", ".", ":!e2e/results"); err != nil || changes != "" {
		return head + "-dirty"
	}
	return head
}
