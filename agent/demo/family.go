package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// family is the processes of a demo. None of them outlives it, however it ends.
type family struct {
	exe   string
	start chan func()
	died  func(error) // called when one ends that must not

	wg  sync.WaitGroup
	mu  sync.Mutex
	all []*child
}

// child is one process.
type child struct {
	name    string
	log     string // path of its stderr
	cmd     *exec.Cmd
	lasting atomic.Bool   // it must not end by itself
	done    chan struct{} // closed when it has ended
	err     error         // how; valid then
}

func newFamily(exe string, died func(error)) *family {
	f := &family{exe: exe, start: make(chan func()), died: died}
	f.wg.Go(f.runStart)
	return f
}

// runStart starts all processes from one thread that lives as long as the
// family: the kernel sends a parent-death signal when the *thread* ends that
// forked, not the process.
func (f *family) runStart() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for start := range f.start {
		start()
	}
}

// run starts the program with args; its stderr is appended to the file log.
// setup, which may be nil, is for more of the command. The child may end at any
// time; one that may not is then passed to mustLive.
func (f *family) run(name, log string, setup func(*exec.Cmd) error, args ...string) (*child, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c := &child{name: name, log: log, cmd: exec.Command(f.exe, args...), done: make(chan struct{})}
	c.cmd.Stderr = out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		// A group of its own: Ctrl-C is for the demo, which ends the others in order.
		Setpgid: true,
		// And if the demo is killed, they are too.
		Pdeathsig: syscall.SIGKILL,
	}
	if setup != nil {
		if err := setup(c.cmd); err != nil {
			return nil, err
		}
	}
	started := make(chan error)
	f.start <- func() { started <- c.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	f.mu.Lock()
	f.all = append(f.all, c)
	f.mu.Unlock()
	f.wg.Go(func() { f.runWait(c) })
	return c, nil
}

func (f *family) runWait(c *child) {
	err := c.cmd.Wait()
	if c.lasting.Load() {
		f.died(c.epitaph(err))
	}
	c.err = err
	close(c.done)
}

// mustLive makes it a failure of the demo if c ends, until mayEnd.
func (f *family) mustLive(c *child) {
	c.lasting.Store(true)
	select {
	case <-c.done:
		f.died(c.epitaph(c.err))
	default:
	}
}

func (c *child) mayEnd() { c.lasting.Store(false) }

// epitaph is the error of a child that ended: how, and the line of its log that
// says most.
func (c *child) epitaph(err error) error {
	how := "exit status 0"
	if err != nil {
		how = err.Error()
	}
	if line := c.lastWords(); line != "" {
		how += ": " + line
	}
	return fmt.Errorf("%s ended unexpectedly (%s)", c.name, how)
}

// lastWords is the first line of the last panic in the child's log, or its last line.
func (c *child) lastWords() string {
	const tail = 256 << 10
	data, err := os.ReadFile(c.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data[max(0, len(data)-tail):])), "\n")
	for _, line := range slices.Backward(lines) {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return line
		}
	}
	return lines[len(lines)-1]
}

// kill ends c at once and waits for it.
func (f *family) kill(c *child) {
	c.mayEnd()
	_ = c.cmd.Process.Kill() // it may have ended by itself
	<-c.done
}

// ended waits until c has ended, and well.
func (f *family) ended(ctx context.Context, c *child, limit time.Duration) error {
	c.mayEnd()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("%s did not end within %v", c.name, limit)
	}
	if c.err != nil {
		return c.epitaph(c.err)
	}
	return nil
}

// end kills what still runs and returns when all is over.
func (f *family) end() {
	f.mu.Lock()
	all := slices.Clone(f.all)
	f.mu.Unlock()
	for _, c := range all {
		f.kill(c)
	}
	close(f.start)
	f.wg.Wait()
}
