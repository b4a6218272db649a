// Package fence ends a node that cannot end its service (design.md, rule 5.6).
//
// A node that is no longer primary stops its service; when that does not come about in
// time (nfsd hangs, a file system cannot be unmounted), the only thing left is to
// end the machine. With `self_fence: reboot` the kernel is asked to reset it at once,
// without a sync, which would write what the node may no longer write. And because an
// agent that is stuck can ask nobody, the hardware watchdog, where there is one, is
// armed before promotion and fed for as long as all is well: the machine ends when the
// agent does not come round.
//
// With `self_fence: stop`, the default, nothing outside of the agent is touched: no file
// is opened, and Fire only says that the agent has to exit.
package fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Fence is what the agent holds against itself. Its methods are called by one
// goroutine at a time.
//
//	before a promotion    Arm
//	while it is primary   Feed, each time that everything was found well: in the loop
//	                      that renews the permission to answer, never by a timer of its own
//	after a clean stop    Disarm
//	when a stop fails     Fire
type Fence interface {
	// Arm starts the watchdog, if there is one. That there is none is no error,
	// and logged once: Fire still works. An error (somebody else has it) says that
	// the node would serve without it.
	Arm(ctx context.Context) error

	// Feed gives it another term. It does nothing when nothing is armed.
	Feed() error

	// Disarm stops it, and also the one that a killed agent has left running, which
	// nobody feeds: what it was armed for is over with the service's stop. After an
	// error it may still be running, and the machine ends unless Arm and Feed come in
	// time.
	Disarm() error

	// Fire ends the machine, and does not return if that works. ErrStopOnly and
	// every other error mean that it lives: the agent must exit, without Disarm.
	Fire(reason string) error
}

// Mode is the config's failover.self_fence.
type Mode string

// The modes.
const (
	Stop   Mode = "stop"
	Reboot Mode = "reboot"
)

// ErrStopOnly is Fire's answer under self_fence: stop.
var ErrStopOnly = errors.New("self_fence is stop: the agent exits and the machine goes on")

// Machine is how the machine is ended. Only Reboot mode ever touches it.
type Machine struct {
	SysrqTrigger  string       // a file: "b" in it resets the machine
	Watchdog      string       // a device; empty: none
	WatchdogState string       // a file of the kernel's that says "active" while it runs
	Reboot        func() error // where SysrqTrigger does not work
}

// ThisMachine is the real one. It is only for the agent: whoever fires on it is
// gone. Tests have files of their own, or a virtual machine.
func ThisMachine() Machine {
	return Machine{
		SysrqTrigger: "/proc/sysrq-trigger",
		Watchdog:     "/dev/watchdog",
		// /dev/watchdog is the first one's (Documentation/watchdog/watchdog-api.rst).
		WatchdogState: "/sys/class/watchdog/watchdog0/state",
		// It does not sync, and does not stop services, unlike reboot(8).
		Reboot: func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) },
	}
}

// Config is what New needs.
type Config struct {
	Mode    Mode
	Machine Machine

	// Timeout is how long the watchdog waits to be fed, in whole seconds, at least
	// one. It must be longer than the longest way round of the loop that feeds it.
	Timeout time.Duration

	Log *slog.Logger
}

// New returns the Fence of cfg.Mode. It opens nothing.
func New(cfg Config) (Fence, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	switch cfg.Mode {
	case Stop:
		return stop{}, nil
	case Reboot:
		if cfg.Machine.SysrqTrigger == "" || cfg.Machine.Reboot == nil {
			return nil, errors.New("fence: self_fence: reboot needs a way to do it")
		}
		if cfg.Timeout < time.Second {
			return nil, fmt.Errorf("fence: a watchdog of %v is less than a second", cfg.Timeout)
		}
		return &reboot{cfg: cfg, control: ioctl}, nil
	}
	return nil, fmt.Errorf("fence: %q is not a mode", cfg.Mode)
}

// stop is self_fence: stop.
type stop struct{}

func (stop) Arm(context.Context) error { return nil }
func (stop) Feed() error               { return nil }
func (stop) Disarm() error             { return nil }
func (stop) Fire(string) error         { return ErrStopOnly }

// reboot is self_fence: reboot.
type reboot struct {
	cfg  Config
	dog  *watchdog // nil: not armed
	none bool      // it was logged that there is none
	ours bool      // it was armed, or found disarmed, in this life: none is left of an earlier one

	control control
}

// Arm is Fence's.
func (r *reboot) Arm(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if r.dog != nil {
		return r.dog.feed()
	}
	if r.cfg.Machine.Watchdog == "" {
		return nil
	}
	dog, err := openWatchdog(r.cfg.Machine.Watchdog, r.cfg.Timeout, r.control)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		if !r.none {
			r.none = true
			r.cfg.Log.Warn("there is no watchdog: an agent that is stuck is not ended (modprobe softdog gives one)", "device", r.cfg.Machine.Watchdog)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("arm the watchdog: %w", err)
	}
	r.dog, r.ours = dog, true
	r.cfg.Log.Info("the watchdog is armed", "device", r.cfg.Machine.Watchdog, "timeout", dog.timeout)
	return nil
}

// Feed is Fence's.
func (r *reboot) Feed() error {
	if r.dog == nil {
		return nil
	}
	return r.dog.feed()
}

// Disarm is Fence's.
func (r *reboot) Disarm() error {
	if r.dog == nil {
		if err := r.takeUp(); err != nil || r.dog == nil {
			return err
		}
	}
	dog := r.dog
	r.dog = nil
	if err := dog.disarm(); err != nil {
		return fmt.Errorf("disarm the watchdog: %w", err)
	}
	if !dog.magic {
		return errors.New("disarm the watchdog: its driver has no magic close, so it may run on and end this machine")
	}
	r.cfg.Log.Info("the watchdog is disarmed", "device", r.cfg.Machine.Watchdog)
	return nil
}

// takeUp makes the watchdog ours if an earlier life of this agent has left it running.
//
// The kernel's word for that comes before the open, which starts one that does not run;
// with nowayout for good.
func (r *reboot) takeUp() error {
	if r.ours || r.cfg.Machine.Watchdog == "" {
		return nil
	}
	state, err := os.ReadFile(r.cfg.Machine.WatchdogState)
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(state)) != "active" {
		r.ours = true
		return nil // none, or none that runs; or a kernel that does not say
	}
	if err != nil {
		return fmt.Errorf("look for a watchdog that was left running: %w", err)
	}
	dog, err := openWatchdog(r.cfg.Machine.Watchdog, r.cfg.Timeout, r.control)
	if errors.Is(err, unix.EBUSY) {
		return nil // another program's
	}
	if err != nil {
		return fmt.Errorf("disarm the watchdog that was left running: %w", err)
	}
	r.dog, r.ours = dog, true
	return nil
}

// Fire is Fence's. The watchdog stays armed: it is what is left if neither way works.
func (r *reboot) Fire(reason string) error {
	// It may be the last line that reaches the journal, or not reach it.
	r.cfg.Log.Error("this node fences itself: it reboots now, without a sync", "reason", reason)
	errs := errors.Join(trigger(r.cfg.Machine.SysrqTrigger), r.cfg.Machine.Reboot())
	// Here a real machine is gone.
	if errs == nil {
		return errors.New("fence: the machine was told to reboot and goes on")
	}
	return fmt.Errorf("fence: %w", errs)
}

// trigger writes the one letter of sysrq that resets the machine at once. The file is
// not created: where it is missing there is no /proc.
func trigger(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("b")
	return errors.Join(err, f.Close())
}
