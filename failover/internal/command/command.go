// Package command runs what an operator wrote into the config: a program with
// arguments, within a time, and nothing of it left behind when the time is over.
//
// Every command is the leader of a process group of its own. A command that
// overruns its time, or that nobody needs any more, is asked to end (SIGTERM to
// the whole group), then killed (SIGKILL), and Run returns when the last process
// of the group is gone: a service that moves to another node must not be started
// there while a forgotten grandchild still runs here. A process that leaves the
// group (setsid) is on its own; that is how a start command leaves a daemon behind.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxGrace is how long a group may take to end by itself after SIGTERM, and
	// graceShare the part of the command's own time that may be spent on it.
	// Both are inside that time, not on top of it.
	maxGrace   = 2 * time.Second
	graceShare = 4

	// killWait is how long SIGKILL may take. It is at once, except for a process
	// that is inside a system call that cannot be interrupted.
	killWait = time.Second

	// outputWait is for the bytes still in the pipe after the command has ended. They
	// are there at once, but a busy host may not come to read them.
	outputWait = time.Second
)

// Command is one program to run.
type Command struct {
	Argv []string // the program, by path or by a name in PATH, and its arguments
	Dir  string   // working directory; empty: ours
	Env  []string // NAME=value, on top of our own environment
}

// Run runs the command to its end. It fails with an *Error when the command
// could not be started, did not exit with 0, or had to be ended because ctx was
// over. A deadline of ctx includes the time that ending the command takes.
func (c Command) Run(ctx context.Context) error {
	_, err := c.Output(ctx)
	return err
}

// Output is Run that returns what the command has printed, or the last 4 KiB of it.
func (c Command) Output(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", c.failed(context.Cause(ctx), "")
	}
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append(inherited(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := capture(cmd)
	if err != nil {
		return "", c.failed(err, "")
	}
	defer out.close()
	// The clock starts with the command, so that grace is a part of its time.
	grace, end := split(ctx)
	if err := cmd.Start(); err != nil {
		return "", c.failed(err, "")
	}
	out.started()

	g := &group{cmd: cmd, exited: make(chan struct{})}
	go g.runWait()
	timer := time.NewTimer(end)
	defer timer.Stop()
	var why error
	select {
	case <-g.exited:
	case <-ctx.Done():
		why = context.Cause(ctx)
	case <-timer.C:
		why = context.DeadlineExceeded
	}
	if why != nil {
		if errors.Is(why, context.DeadlineExceeded) {
			why = ErrTimeout
		}
		if err := g.end(grace); err != nil {
			// Not waited for: what SIGKILL does not end may never end, and the caller
			// has a node to fence.
			go g.runReap()
			return "", c.failed(fmt.Errorf("%w, and %w", why, err), out.tail())
		}
		err := g.reap()
		out.finished()
		if err == nil && g.endedBeforeTerm {
			return out.text(), nil // it was done at the same moment
		}
		return "", c.failed(why, out.tail())
	}
	// Closing the pipe under the one that holds it would kill that with SIGPIPE, at
	// some later write: a fault that shows itself here, at once, is the better one.
	held := !out.finished()
	err = g.reap()
	if err == nil && held {
		err = ErrLeftover
	}
	if err == nil {
		return out.text(), nil
	}
	// What failed is run again, and must not meet what it left behind.
	if alive(cmd.Process.Pid) {
		if stuck := g.end(grace); stuck != nil {
			err = fmt.Errorf("%w, and %w", err, stuck)
		}
	}
	return "", c.failed(err, out.tail())
}

// split returns how long the group may take to end by itself, and when it must
// be asked to so that both fit before ctx's deadline.
func split(ctx context.Context) (grace, end time.Duration) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return maxGrace, 1<<63 - 1
	}
	left := max(time.Until(deadline), 0)
	grace = min(maxGrace, left/graceShare)
	return grace, left - grace
}

// inherited is our environment without what systemd gave to us alone: a child
// that says READY=1 or pets the watchdog would speak for the agent.
func inherited() []string {
	var env []string
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES":
		default:
			env = append(env, v)
		}
	}
	return env
}

// group is the command's process group. Its leader is not reaped before the group
// has been dealt with: as long as the leader is at least a zombie, its number cannot be
// given to anybody else, so that no signal goes astray. (Only what a failed command
// left behind is ended after that; it holds the number itself.)
type group struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when the leader has ended

	endedBeforeTerm bool
}

// runWait ends with the leader. Its waiter is Run, except for a leader that
// survives SIGKILL: then it stays until the kernel lets that process go.
func (g *group) runWait() {
	defer close(g.exited)
	for {
		err := unix.Waitid(unix.P_PID, g.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func (g *group) reap() error { return g.cmd.Wait() }

// runReap is runWait's successor for a leader that survives SIGKILL.
func (g *group) runReap() {
	<-g.exited
	_ = g.reap()
}

// end returns nil when no process of the group is left but the leader's zombie.
func (g *group) end(grace time.Duration) error {
	pgid := g.cmd.Process.Pid
	select {
	case <-g.exited:
		g.endedBeforeTerm = true
	default:
	}
	_ = unix.Kill(-pgid, unix.SIGTERM)
	if g.goneWithin(grace) {
		return nil
	}
	_ = unix.Kill(-pgid, unix.SIGKILL)
	if g.goneWithin(killWait) {
		return nil
	}
	return ErrStuck
}

// goneWithin polls, because nothing tells of the end of a process that is not
// our child.
func (g *group) goneWithin(d time.Duration) bool {
	const every = 5 * time.Millisecond
	for deadline := time.Now().Add(d); ; time.Sleep(every) {
		select {
		case <-g.exited:
			if !alive(g.cmd.Process.Pid) {
				return true
			}
		default:
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}
