package fence

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is one whose every part is a file of the test. None of these tests may open
// the real ones: it would end the machine that it runs on.
type machine struct {
	Machine
	rebooted int
}

func fake(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{}
	m.Machine = Machine{
		SysrqTrigger:  filepath.Join(dir, "sysrq-trigger"),
		Watchdog:      filepath.Join(dir, "watchdog"),
		WatchdogState: filepath.Join(dir, "state"), // not there, as in a kernel that does not say
		Reboot:        func() error { m.rebooted++; return nil },
	}
	for _, name := range []string{m.SysrqTrigger, m.Watchdog} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// pattern is what was written to the watchdog: '.' for a feeding.
func (m *machine) pattern(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(m.Watchdog)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), "\x00", ".")
}

// driver answers the watchdog's ioctls.
type driver struct {
	options int
	most    int // longest timeout; 0: any
	support error
	set     error

	timeout int
}

func (d *driver) control(_ uintptr, request uint, value int) (int, error) {
	switch request {
	case unix.WDIOC_GETSUPPORT:
		return d.options, d.support
	case unix.WDIOC_SETTIMEOUT:
		d.timeout = value
		if d.most > 0 {
			d.timeout = min(value, d.most)
		}
		return d.timeout, d.set
	}
	return 0, unix.EINVAL
}

func rebooting(t *testing.T, m *machine, d *driver) (*reboot, *bytes.Buffer) {
	t.Helper()
	log := new(bytes.Buffer)
	f, err := New(Config{Mode: Reboot, Machine: m.Machine, Timeout: 2500 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	r := f.(*reboot)
	r.control = d.control
	return r, log
}

// The guard: self_fence: stop has no way to the machine at all.
func TestStopTouchesNothing(t *testing.T) {
	m := fake(t)
	f, err := New(Config{Mode: Stop, Machine: m.Machine, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if f != (stop{}) {
		t.Fatalf("%T can hold a path", f)
	}
	if err := errors.Join(f.Arm(t.Context()), f.Feed(), f.Disarm()); err != nil {
		t.Error(err)
	}
	if err := f.Fire("test"); !errors.Is(err, ErrStopOnly) {
		t.Errorf("got %v", err)
	}
	if got, _ := os.ReadFile(m.SysrqTrigger); len(got) > 0 || m.pattern(t) != "" || m.rebooted > 0 {
		t.Error("the machine was touched")
	}
}

// The real machine is what the documentation says, and is not touched by being named.
func TestThisMachine(t *testing.T) {
	m := ThisMachine()
	if m.SysrqTrigger != "/proc/sysrq-trigger" || m.Watchdog != "/dev/watchdog" || m.WatchdogState != "/sys/class/watchdog/watchdog0/state" || m.Reboot == nil {
		t.Errorf("%+v", m)
	}
}

func TestFire(t *testing.T) {
	m := fake(t)
	r, log := rebooting(t, m, &driver{options: unix.WDIOF_MAGICCLOSE})
	if err := r.Arm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Fire("nfsd does not stop"); err == nil {
		t.Error("it says that the machine is gone")
	}
	if got, _ := os.ReadFile(m.SysrqTrigger); string(got) != "b" {
		t.Errorf("sysrq-trigger got %q", got)
	}
	if m.rebooted != 1 {
		t.Errorf("reboot(2) was called %d times", m.rebooted)
	}
	// The last resort stays armed.
	if got := m.pattern(t); strings.Contains(got, "V") {
		t.Errorf("the watchdog was disarmed: %q", got)
	}
	if !strings.Contains(log.String(), "nfsd does not stop") {
		t.Error(log)
	}
}

func TestFireWithoutSysrq(t *testing.T) {
	m := fake(t)
	if err := os.Remove(m.SysrqTrigger); err != nil {
		t.Fatal(err)
	}
	m.Reboot = func() error { m.rebooted++; return unix.EPERM }
	r, _ := rebooting(t, m, &driver{})
	err := r.Fire("test")
	if !errors.Is(err, os.ErrNotExist) || !errors.Is(err, unix.EPERM) || m.rebooted != 1 {
		t.Errorf("%v, %d", err, m.rebooted)
	}
	if _, err := os.Stat(m.SysrqTrigger); err == nil {
		t.Error("the file was created")
	}
}

func TestWatchdog(t *testing.T) {
	m, d := fake(t), &driver{options: unix.WDIOF_MAGICCLOSE | unix.WDIOF_SETTIMEOUT}
	r, _ := rebooting(t, m, d)
	step := func(what string, err error, want string) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := m.pattern(t); got != want {
			t.Errorf("after %s: %q, want %q", what, got, want)
		}
	}
	step("Feed before Arm", r.Feed(), "")
	step("Disarm before Arm", r.Disarm(), "")
	step("Arm", r.Arm(t.Context()), "")
	if d.timeout != 3 {
		t.Errorf("timeout %d, want 2.5 s rounded up", d.timeout)
	}
	step("Feed", r.Feed(), ".")
	step("Arm again", r.Arm(t.Context()), "..")
	step("Disarm", r.Disarm(), "..V")
	step("Feed after Disarm", r.Feed(), "..V")
	// The file of the test is written over from its start by a second Arm.
	step("Arm anew", r.Arm(t.Context()), "..V")
	step("Feed", r.Feed(), "..V")
	if r.dog == nil {
		t.Error("not armed")
	}
	step("Disarm", r.Disarm(), ".VV")
}

// 1 An agent with an armed watchdog is killed. 2 The next one finds somebody else primary,
// and stops the service. 3 Nobody feeds the watchdog: a node that follows in good
// order would be reset.
func TestDisarmsWhatAKilledAgentLeft(t *testing.T) {
	for _, tc := range []struct {
		name, state string // "": the kernel does not say
		arm         bool   // this life is primary first
		driver      driver
		pattern     string
		err         string
	}{
		{"left running", "active\n", false, driver{options: unix.WDIOF_MAGICCLOSE}, "V", ""},
		{"not running", "inactive\n", false, driver{options: unix.WDIOF_MAGICCLOSE}, "", ""},
		{"nothing known", "", false, driver{options: unix.WDIOF_MAGICCLOSE}, "", ""},
		{"no magic close", "active\n", false, driver{}, "V", "no magic close"},
		{"armed in this life", "active\n", true, driver{options: unix.WDIOF_MAGICCLOSE}, ".V", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := fake(t)
			if tc.state != "" {
				if err := os.WriteFile(m.WatchdogState, []byte(tc.state), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r, _ := rebooting(t, m, &tc.driver)
			if tc.arm {
				if err := errors.Join(r.Arm(t.Context()), r.Feed()); err != nil {
					t.Fatal(err)
				}
			}
			err := r.Disarm()
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %v, want %q", err, tc.err)
			}
			if got := m.pattern(t); got != tc.pattern {
				t.Errorf("written: %q, want %q", got, tc.pattern)
			}
			// Once: what runs from now on is another program's.
			if err := os.WriteFile(m.Watchdog, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := r.Disarm(); err != nil || m.pattern(t) != "" {
				t.Errorf("again: %v, %q", err, m.pattern(t))
			}
		})
	}
}

func TestWatchdogTroubles(t *testing.T) {
	for _, tc := range []struct {
		name     string
		driver   driver
		arm      string // in Arm's error; "" none
		disarm   string // in Disarm's
		released bool   // what was written after Arm disarms it
	}{
		{"no watchdog", driver{support: unix.ENOTTY}, "is no watchdog", "", true},
		{"too short", driver{most: 1, options: unix.WDIOF_MAGICCLOSE}, "waits 1 s at most, and the agent needs 3 s", "", true},
		{"refuses", driver{set: unix.EINVAL, options: unix.WDIOF_MAGICCLOSE}, "takes no timeout of 3 s", "", true},
		{"a fixed timeout", driver{set: unix.EOPNOTSUPP, options: unix.WDIOF_MAGICCLOSE}, "", "", false},
		{"no magic close", driver{}, "", "no magic close", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := fake(t)
			r, _ := rebooting(t, m, &tc.driver)
			check := func(err error, want string) {
				t.Helper()
				if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
			check(r.Arm(t.Context()), tc.arm)
			if got := m.pattern(t) == "V"; got != tc.released {
				t.Errorf("released is %v", got)
			}
			check(r.Disarm(), tc.disarm)
		})
	}
}

func TestNoWatchdog(t *testing.T) {
	m := fake(t)
	if err := os.Remove(m.Watchdog); err != nil {
		t.Fatal(err)
	}
	r, log := rebooting(t, m, &driver{})
	for range 2 {
		if err := errors.Join(r.Arm(t.Context()), r.Feed(), r.Disarm()); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(log.String(), "there is no watchdog"); n != 1 {
		t.Errorf("said %d times", n)
	}
	m.Watchdog = ""
	r, _ = rebooting(t, m, &driver{})
	if err := r.Arm(t.Context()); err != nil {
		t.Error(err)
	}
}

// A FIFO is what a watchdog looks like to open, write and close; its ioctls say what it is not.
func TestRealIoctlsOnAFifo(t *testing.T) {
	m := fake(t)
	m.Watchdog = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(m.Watchdog, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(m.Watchdog, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	r, _ := rebooting(t, m, nil)
	r.control = ioctl
	if err := r.Arm(t.Context()); !errors.Is(err, unix.ENOTTY) || !strings.Contains(err.Error(), "is no watchdog") {
		t.Fatalf("got %v", err)
	}
	var got [8]byte
	if n, err := reader.Read(got[:]); err != nil || string(got[:n]) != "V" {
		t.Errorf("%q %v", got[:n], err)
	}
}

func TestNewRefuses(t *testing.T) {
	m := fake(t).Machine
	for _, cfg := range []Config{
		{Mode: "", Machine: m, Timeout: time.Minute},
		{Mode: "halt", Machine: m, Timeout: time.Minute},
		{Mode: Reboot, Timeout: time.Minute},
		{Mode: Reboot, Machine: Machine{SysrqTrigger: "x"}, Timeout: time.Minute},
		{Mode: Reboot, Machine: m, Timeout: 999 * time.Millisecond},
	} {
		if f, err := New(cfg); err == nil {
			t.Errorf("%+v gives a %T", cfg, f)
		}
	}
}

func TestArmAfterTheEnd(t *testing.T) {
	m := fake(t)
	r, _ := rebooting(t, m, &driver{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Arm(ctx); !errors.Is(err, context.Canceled) || r.dog != nil {
		t.Errorf("%v", err)
	}
}
