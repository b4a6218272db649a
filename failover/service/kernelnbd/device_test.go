package kernelnbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"tandem/failover/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errTest = errors.New("the test says so")

const (
	ours     = "tandem/c/a"
	testSize = 1 << 30
)

// fakeKernel does with sockets and sysfs what drivers/block/nbd.c does. It survives the agents of a test.
type fakeKernel struct {
	t     *testing.T
	sysfs string

	attached bool
	backend  string
	slots    []int // its references of the sockets; -1: dead
	held     bool  // something has the device open
	ending   bool  // it was disconnected while it was held
	got      settings

	old     bool // before 5.14
	refuses error
	busy    int // reconfigurations during which no connection is known to be dead yet
	log     []string
}

func newFakeKernel(t *testing.T) *fakeKernel {
	k := &fakeKernel{t: t, sysfs: t.TempDir()}
	k.write("size", "0")
	t.Cleanup(func() {
		for i := range k.slots {
			k.kill(i)
		}
	})
	return k
}

func (k *fakeKernel) path(name string) string { return filepath.Join(k.sysfs, "block", "nbd3", name) }

func (k *fakeKernel) write(name, text string) {
	k.t.Helper()
	if err := errors.Join(os.MkdirAll(k.path(""), 0o755), os.WriteFile(k.path(name), []byte(text+"\n"), 0o644)); err != nil {
		k.t.Fatal(err)
	}
}

// adopt is nbd_add_socket and nbd_reconnect_socket: an own reference, and the request timeout as the send timeout.
func (k *fakeKernel) adopt(fd int, s settings) int {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	timeout := unix.NsecToTimeval(int64(s.timeout))
	if err := unix.SetsockoptTimeval(dup, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		k.t.Fatal(err)
	}
	return dup
}

// kill is nbd_mark_nsock_dead.
func (k *fakeKernel) kill(i int) {
	if k.slots[i] >= 0 {
		_ = unix.Shutdown(k.slots[i], unix.SHUT_RDWR)
		_ = unix.Close(k.slots[i])
		k.slots[i] = -1
	}
}

func (k *fakeKernel) connect(_ context.Context, s settings) error {
	k.log = append(k.log, fmt.Sprintf("connect %d", len(s.sockets)))
	if k.refuses != nil {
		return k.refuses
	}
	if k.attached {
		return unix.EBUSY
	}
	k.attached, k.backend, k.got, k.slots = true, s.backend, s, nil
	for _, fd := range s.sockets {
		k.slots = append(k.slots, k.adopt(fd, s))
	}
	k.write("pid", "4711")
	if !k.old {
		k.write("backend", s.backend)
	}
	return nil
}

func (k *fakeKernel) reconfigure(_ context.Context, s settings) error {
	k.log = append(k.log, fmt.Sprintf("reconfigure %d", len(s.sockets)))
	if !k.attached || k.ending || s.backend != k.backend {
		return unix.EINVAL
	}
	k.got = s
	if k.busy > 0 {
		k.busy--
		return nil
	}
	for _, fd := range s.sockets {
		i := slices.Index(k.slots, -1)
		if i < 0 {
			return nil // ENOSPC, which the kernel swallows
		}
		k.slots[i] = k.adopt(fd, s)
	}
	return nil
}

func (k *fakeKernel) disconnect(context.Context, uint32) error {
	k.log = append(k.log, "disconnect")
	for i := range k.slots {
		k.kill(i)
	}
	if k.ending = k.held; !k.held {
		k.closed()
	}
	return nil
}

func (k *fakeKernel) claimed(string) (bool, error) { return k.held, nil }

// closed is nbd_config_put of the last one that had the device.
func (k *fakeKernel) closed() {
	k.held, k.ending, k.attached = false, false, false
	k.unlink()
}

func (k *fakeKernel) unlink() {
	_ = os.Remove(k.path("pid"))
	_ = os.Remove(k.path("backend"))
}

func (k *fakeKernel) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(k.log, want) {
		t.Errorf("the kernel was asked for %q, want %q", k.log, want)
	}
	k.log = nil
}

func (k *fakeKernel) live() (n int) {
	for _, fd := range k.slots {
		if fd >= 0 {
			n++
		}
	}
	return n
}

// agent is one life of an agent: a device, and the server's ends of its connections.
type agent struct {
	*Device
	ends     []int
	refusing error
	single   bool
}

func (k *fakeKernel) agent(t *testing.T, connections int) *agent {
	t.Helper()
	a := new(agent)
	d, err := New(Config{Device: "/dev/nbd3", Connections: connections, Backend: ours, Dial: a.dial})
	if err != nil {
		t.Fatal(err)
	}
	d.kernel, d.sysfs, d.patience = k, k.sysfs, 50*time.Millisecond
	d.modprobe = func(context.Context) error { k.log = append(k.log, "modprobe"); return nil }
	a.Device = d
	t.Cleanup(a.end)
	return a
}

func (a *agent) dial(context.Context) (Socket, error) {
	if a.refusing != nil {
		return Socket{}, a.refusing
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Socket{}, err
	}
	a.ends = append(a.ends, pair[1])
	s := Socket{FD: pair[0], Size: testSize, Flags: flagMultiConn | 0x65}
	if a.single {
		s.Flags &^= flagMultiConn
	}
	return s, nil
}

// end is the end of the process: all its descriptors are closed.
func (a *agent) end() {
	for _, fd := range a.ends {
		_ = unix.Close(fd)
	}
	a.ends = nil
	a.forget()
}

// die is the agent's end as the kernel sees it.
func (k *fakeKernel) die(a *agent) {
	a.end()
	for i := range k.slots {
		k.kill(i)
	}
}

var (
	primary   = service.Term{Cluster: "c", Node: "a", Epoch: 1, Role: service.Primary}
	secondary = service.Term{Cluster: "c", Node: "a", Epoch: 1, Role: service.Secondary}
)

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || (want != nil) != (err != nil) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// start is what a Runner does: Check, and Start if it does not hold.
func start(t *testing.T, a *agent) {
	t.Helper()
	if a.Check(t.Context(), primary) == nil {
		t.Fatal("it holds already")
	}
	if err := a.Start(t.Context(), primary); err != nil {
		t.Fatal(err)
	}
	if err := a.Check(t.Context(), primary); err != nil {
		t.Fatalf("after the start: %v", err)
	}
}

func TestAttachAndDetach(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 4)
	wantErr(t, "before", a.Check(t.Context(), primary), ErrDetached)
	start(t, a)
	k.want(t, "connect 4")
	if g := k.got; g.index != 3 || g.size != testSize || g.block != 512 || g.timeout != 10*time.Second || g.dead != 2*time.Minute || g.flags != flagMultiConn|0x65 || g.backend != ours {
		t.Errorf("%+v", g)
	}
	wantErr(t, "stop", a.Stop(t.Context(), secondary), nil)
	k.want(t, "disconnect")
	wantErr(t, "after", a.Check(t.Context(), primary), ErrDetached)
	wantErr(t, "stop again", a.Stop(t.Context(), secondary), nil)
	k.want(t)
	start(t, a)
}

// TestRestartTakesTheDeviceBack: a new agent gives the device new connections, and detaches nothing.
func TestRestartTakesTheDeviceBack(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 2)
	start(t, a)
	k.die(a)
	b := k.agent(t, 2)
	wantErr(t, "a new agent's first check", b.Check(t.Context(), primary), ErrConnections)
	start(t, b)
	k.want(t, "connect 2", "reconfigure 2")
	if k.live() != 2 {
		t.Errorf("%d connections", k.live())
	}
	if g := k.got; g.size != testSize || g.timeout != 10*time.Second || g.dead != 2*time.Minute || g.backend != ours {
		t.Errorf("%+v", g)
	}
}

// TestRestartBeforeTheKernelKnows: the kernel says "done" although no connection was dead yet.
func TestRestartBeforeTheKernelKnows(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 2)
	start(t, a)
	k.die(a)
	k.busy = 2
	start(t, k.agent(t, 2))
	k.want(t, "connect 2", "reconfigure 2", "reconfigure 2", "reconfigure 2")
	if k.live() != 2 {
		t.Errorf("%d connections", k.live())
	}
}

// TestRestartWithAnotherNumber: the device keeps the number it was attached with.
func TestRestartWithAnotherNumber(t *testing.T) {
	for _, connections := range []int{1, 4} {
		k := newFakeKernel(t)
		a := k.agent(t, 2)
		start(t, a)
		k.die(a)
		b := k.agent(t, connections)
		start(t, b)
		if want := min(connections, 2); k.live() != want || len(b.sockets) != want {
			t.Errorf("%d connections configured: the kernel has %d, the agent %d", connections, k.live(), len(b.sockets))
		}
	}
}

// TestADeadConnectionIsReplaced: requests that timed out cost some of them, or all. That is no failure of the step, which
// would move the service after the second time, and what is mounted must not notice.
func TestADeadConnectionIsReplaced(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 3)
	start(t, a)
	k.log = nil
	for _, dead := range [][]int{{1}, {0, 2}, {0, 1, 2}} {
		for _, i := range dead {
			k.kill(i)
		}
		wantErr(t, "check", a.Check(t.Context(), primary), nil)
		k.want(t, fmt.Sprintf("reconfigure %d", len(dead)))
		if k.live() != 3 {
			t.Errorf("%d connections", k.live())
		}
	}
	wantErr(t, "another check", a.Check(t.Context(), primary), nil)
	k.want(t)
}

// TestADeadConnectionStaysDead: one that cannot be replaced is a failure of the step; it is for Start to try again, and the
// Runner stops a step, still Primary, before that.
func TestADeadConnectionStaysDead(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 2)
	start(t, a)
	dial := a.cfg.Dial
	a.cfg.Dial = func(context.Context) (Socket, error) { return Socket{}, errTest }
	k.kill(1)
	wantErr(t, "check without an export", a.Check(t.Context(), primary), ErrConnections)
	wantErr(t, "the same", a.Check(t.Context(), primary), errTest)
	wantErr(t, "stop as Primary", a.Stop(t.Context(), primary), nil)
	a.cfg.Dial = dial
	k.log = nil
	wantErr(t, "start", a.Start(t.Context(), primary), nil)
	k.want(t, "reconfigure 1")
	wantErr(t, "check", a.Check(t.Context(), primary), nil)
}

// TestForeignDevicesAreLeftAlone, whoever they belong to.
func TestForeignDevicesAreLeftAlone(t *testing.T) {
	for _, backend := range []string{"", "tandem/c/b", "tandem/other/a", ours + "2"} {
		k := newFakeKernel(t)
		k.attached, k.backend = true, backend
		k.write("pid", "99")
		if backend != "" {
			k.write("backend", backend)
		}
		a := k.agent(t, 1)
		wantErr(t, "check", a.Check(t.Context(), primary), ErrForeign)
		err := a.Start(t.Context(), primary)
		wantErr(t, "start", err, ErrForeign)
		wantErr(t, "start", err, service.ErrHopeless)
		if !strings.Contains(err.Error(), "nbd-client -d /dev/nbd3") || !strings.Contains(err.Error(), backend) {
			t.Errorf("it does not say what to do: %v", err)
		}
		wantErr(t, "abandon", a.Abandon(t.Context(), secondary), nil)
		wantErr(t, "stop", a.Stop(t.Context(), secondary), nil)
		if k.want(t); !k.attached {
			t.Errorf("%q was detached", backend)
		}
	}
}

// TestAnotherTookOver: the node is back as Secondary with the device that an agent before left. What waits there fails
// first; the step is stopped when the filesystem is gone.
func TestAnotherTookOver(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 2)
	start(t, a)
	k.die(a)
	k.held = true // mounted
	b := k.agent(t, 2)
	wantErr(t, "abandon", b.Abandon(t.Context(), secondary), nil)
	k.want(t, "connect 2", "disconnect")
	wantErr(t, "abandoned", b.Check(t.Context(), primary), ErrConnections)

	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, service.ErrTimeout)
	defer cancel()
	err := b.Stop(ctx, secondary)
	wantErr(t, "stop while it is mounted", err, ErrHeld)
	wantErr(t, "stop while it is mounted", err, service.ErrTimeout)
	wantErr(t, "start while it is mounted", b.Start(t.Context(), primary), ErrHeld)
	k.want(t, "disconnect", "reconfigure 2")
	unmounted := make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() { k.unlink(); close(unmounted) })
	wantErr(t, "stop", b.Stop(t.Context(), secondary), nil)
	<-unmounted
	k.closed()
	k.want(t, "disconnect")
}

// TestPlannedStop: the step before could not unmount. The device stays, and so do its connections, because the node goes
// on as primary; once it is unmounted it is detached.
func TestPlannedStop(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 2)
	start(t, a)
	k.held = true // mounted
	k.want(t, "connect 2")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, service.ErrTimeout)
	defer cancel()
	err := a.Stop(ctx, secondary)
	wantErr(t, "stop while it is mounted", err, ErrHeld)
	wantErr(t, "stop while it is mounted", err, service.ErrTimeout)
	k.want(t)
	wantErr(t, "check", a.Check(t.Context(), primary), nil)
	wantErr(t, "start", a.Start(t.Context(), primary), nil)
	k.held = false
	wantErr(t, "stop", a.Stop(t.Context(), secondary), nil)
	if k.attached {
		t.Error("it is attached")
	}
}

func TestStartFails(t *testing.T) {
	refused := errors.New("refused")
	for _, tt := range []struct {
		name     string
		kernel   func(*fakeKernel, *agent)
		want     error
		hopeless bool
	}{
		{"no export", func(_ *fakeKernel, a *agent) { a.refusing = refused }, refused, false},
		{"no module", func(k *fakeKernel, _ *agent) { k.refuses = errNoFamily }, errNoFamily, true},
		{"no right", func(k *fakeKernel, _ *agent) { k.refuses = unix.EPERM }, unix.EPERM, true},
		{"somebody was faster", func(k *fakeKernel, _ *agent) { k.refuses = unix.EBUSY }, ErrForeign, false},
		{"a kernel without identifiers", func(k *fakeKernel, _ *agent) { k.old = true }, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newFakeKernel(t)
			a := k.agent(t, 2)
			tt.kernel(k, a)
			err := a.Start(t.Context(), primary)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) || errors.Is(err, service.ErrHopeless) != tt.hopeless {
				t.Errorf("%v", err)
			}
			if k.attached || len(a.sockets) > 0 {
				t.Errorf("the device is left attached, with sockets %v", a.sockets)
			}
		})
	}
}

func TestModuleIsLoadedOnDemand(t *testing.T) {
	k := newFakeKernel(t)
	if err := os.RemoveAll(filepath.Join(k.sysfs, "block")); err != nil {
		t.Fatal(err)
	}
	a := k.agent(t, 1)
	wantErr(t, "stop", a.Stop(t.Context(), secondary), nil)
	wantErr(t, "check", a.Check(t.Context(), primary), ErrDetached)
	k.want(t)
	start(t, a)
	k.want(t, "modprobe", "connect 1")
}

func TestOneConnectionWithoutMultiConn(t *testing.T) {
	k := newFakeKernel(t)
	a := k.agent(t, 4)
	a.single = true
	start(t, a)
	k.want(t, "connect 1")
}

func TestNewRefuses(t *testing.T) {
	dial := func(context.Context) (Socket, error) { return Socket{}, nil }
	for _, cfg := range []Config{
		{Device: "/dev/sda", Connections: 1, Backend: ours, Dial: dial},
		{Device: "/dev/nbd", Connections: 1, Backend: ours, Dial: dial},
		{Device: "/dev/nbd01", Connections: 1, Backend: ours, Dial: dial},
		{Device: "/dev/nbd0p1", Connections: 1, Backend: ours, Dial: dial},
		{Device: "/dev/nbd0", Backend: ours, Dial: dial},
		{Device: "/dev/nbd0", Connections: 1, Dial: dial},
		{Device: "/dev/nbd0", Connections: 1, Backend: ours},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v", cfg)
		}
	}
	if n, err := Index("/dev/nbd65535"); err != nil || n != 65535 {
		t.Errorf("%d, %v", n, err)
	}
}
