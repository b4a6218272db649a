// Package nstest runs tests in network namespaces of their own, with a real kernel
// and nobody else in it. It is for tests only.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside is the environment variable by which a test knows that it is in its
// namespace: it is its name then.
const inside = "TANDEM_TEST_NETNS"

// Inside returns true in a process whose network namespace is the test's own, with
// only lo in it, up. Anywhere else it runs the test in such a process, reports what came
// of it, and returns false:
//
//	if !nstest.Inside(t, "ip:iproute2") {
//		return
//	}
//
// A process, because a namespace belongs to a thread and goroutines wander. It needs
// root and the tools, each PROGRAM:PACKAGE, and is skipped without them, or fails
// where TANDEM_REQUIRE_TOOLS is 1.
func Inside(t *testing.T, tools ...string) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		IP(t, "link set lo up")
		return true
	}
	if os.Geteuid() != 0 {
		missing(t, "a network namespace needs root")
	}
	for _, tool := range append(tools, "ip:iproute2", "nsenter:util-linux") {
		program, pkg, _ := strings.Cut(tool, ":")
		if _, err := exec.LookPath(program); err != nil {
			missing(t, fmt.Sprintf("%s is not installed: apt-get install %s", program, pkg))
		}
	}
	pattern := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+pattern, "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in its namespace: %v\n%s", err, out)
	}
	t.Logf("in its namespace:\n%s", out)
	return false
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("TANDEM_REQUIRE_TOOLS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// IP runs ip(8) with the arguments in one string.
func IP(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// Peer is another host: a namespace that is joined to ours by a cable, whose both
// ends are called eth0.
type Peer struct {
	t   *testing.T
	pid int
}

// NewPeer makes it. Both interfaces are up and have no address, except for those that
// IPv6 gives to itself.
func NewPeer(t *testing.T) *Peer {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	// The signal is that of the thread's end, so this one has to stay.
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		runtime.UnlockOSThread()
	})
	p := &Peer{t: t, pid: cmd.Process.Pid}
	IP(t, "link add eth0 type veth peer name eth0 netns "+strconv.Itoa(p.pid))
	// Duplicate detection of the interfaces' own addresses would cost a second.
	for _, run := range []func(...string) string{p.Run, p.local} {
		run("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad")
		run("ip", "link", "set", "lo", "up")
		run("ip", "link", "set", "eth0", "up")
	}
	return p
}

// Run runs a program there.
func (p *Peer) Run(argv ...string) string {
	p.t.Helper()
	return p.local(append([]string{"nsenter", "--net=" + p.namespace()}, argv...)...)
}

func (p *Peer) local(argv ...string) string {
	p.t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

func (p *Peer) namespace() string { return fmt.Sprintf("/proc/%d/ns/net", p.pid) }

// Do calls f on a thread of the peer's namespace. A socket that f opens stays there.
func (p *Peer) Do(f func()) {
	p.t.Helper()
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		ns, err := os.Open(p.namespace())
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			err = errors.Join(err, ns.Close())
		}
		if err == nil {
			f()
		}
		failed <- err
	}()
	if err := <-failed; err != nil {
		p.t.Fatal(err)
	}
}
