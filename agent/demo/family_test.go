package demo

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestChildThatMayNotEnd(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":             "x ended unexpectedly (exit status 0)",
		"echo one; exit 1":   "x ended unexpectedly (exit status 1)",
		"echo a >&2; exit 1": "x ended unexpectedly (exit status 1: a)",
		"echo 'panic: p' >&2; echo 'goroutine 1' >&2; exit 2": "x ended unexpectedly (exit status 2: panic: p)",
		"kill -9 $$": "x ended unexpectedly (signal: killed)",
	} {
		died := make(chan error, 2)
		f := newFamily("/bin/sh", func(err error) { died <- err })
		c, err := f.run("x", filepath.Join(t.TempDir(), "log"), nil, "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		f.mustLive(c) // before or after its end: both must be noticed
		if err := <-died; err.Error() != want {
			t.Errorf("%q: %v", script, err)
		}
		f.end()
	}
}

func TestChildThatMayEnd(t *testing.T) {
	f := newFamily("/bin/sh", func(err error) { t.Error(err) })
	defer f.end()
	start := func(script string) *child {
		t.Helper()
		c, err := f.run("x", filepath.Join(t.TempDir(), "log"), nil, "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		f.mustLive(c)
		return c
	}
	c := start("exec sleep 100")
	f.kill(c)
	f.kill(c) // twice is no harm

	ready := filepath.Join(t.TempDir(), "ready")
	c = start("trap 'exit 0' TERM; : >" + ready + "; while :; do sleep 0.01; done")
	for _, err := os.Stat(ready); err != nil; _, err = os.Stat(ready) {
		time.Sleep(5 * time.Millisecond)
	}
	c.mayEnd()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := f.ended(t.Context(), c, time.Minute); err != nil {
		t.Error(err)
	}
	c = start("exec sleep 100")
	if err := f.ended(t.Context(), c, time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not end within 1ms") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.ended(ctx, c, time.Minute); err != context.Canceled {
		t.Error(err)
	}
}

func TestNoSuchProgram(t *testing.T) {
	f := newFamily("/nothing", func(err error) { t.Error(err) })
	defer f.end()
	if _, err := f.run("x", filepath.Join(t.TempDir(), "log"), nil); err == nil {
		t.Fatal("no error")
	}
}
