package service

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// script is a step over three shell scripts whose scratch folder is the working directory.
func script(t *testing.T, start, stop, check string) (*Exec, string) {
	t.Helper()
	argv := func(s string) []string {
		if s == "" {
			return nil
		}
		return []string{"/bin/sh", "-c", s}
	}
	dir := t.TempDir()
	return &Exec{StartArgv: argv(start), StopArgv: argv(stop), CheckArgv: argv(check), Dir: dir}, dir
}

func runnerOf(t *testing.T, timeout time.Duration, decide func(Failure) Decision, steps ...Step) *Runner {
	t.Helper()
	cfg := Config{Cluster: "nfs1", Node: "a", Decide: decide, CheckEvery: 50 * time.Millisecond}
	for i, s := range steps {
		cfg.Items = append(cfg.Items, Item{Name: "exec#" + strconv.Itoa(i+1), Step: s, Timeout: timeout})
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Leave)
	return r
}

// wait polls for what another process does.
func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestExecEnvironment(t *testing.T) {
	const print = `echo $TANDEM_CLUSTER $TANDEM_NODE $TANDEM_EPOCH $TANDEM_ROLE $TANDEM_STEP >`
	e, dir := script(t, print+"start", print+"stop", "[ -e start ]")
	r := runnerOf(t, 10*time.Second, nil, e)
	if err := r.Start(t.Context(), 42); err != nil {
		t.Fatal(err)
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"start": "nfs1 a 42 Primary exec#1\n", "stop": "nfs1 a 42 Secondary exec#1\n"} {
		if got, _ := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s got %q", name, got)
		}
	}
}

// Without stop and check there is nothing to do, and nothing to find out.
func TestExecStartOnly(t *testing.T) {
	e, _ := script(t, "exit 0", "", "")
	if err := e.Check(t.Context(), Term{}); !errors.Is(err, ErrCannotTell) {
		t.Error(err)
	}
	if err := e.Stop(t.Context(), Term{}); err != nil {
		t.Error(err)
	}
}

func TestExecErrors(t *testing.T) {
	for _, tc := range []struct {
		argv     []string
		want     string
		hopeless bool
	}{
		{[]string{"/no/such/program", "-x"}, "service step exec#1: gave up: trying again is of no use: /no/such/program -x: ", true},
		{[]string{"/bin/sh", "-c", "echo the disk is full >&2; exit 4"}, "exit status 4; it said: the disk is full", false},
	} {
		var hopeless bool
		r := runnerOf(t, 10*time.Second, func(f Failure) Decision { hopeless = f.Hopeless(); return GiveUp }, &Exec{StartArgv: tc.argv})
		err := r.Start(t.Context(), 1)
		if err == nil || !strings.Contains(err.Error(), tc.want) || hopeless != tc.hopeless {
			t.Errorf("hopeless %v: %v", hopeless, err)
		}
		if s := r.Status()[0]; s.State != Failed || s.Error == "" {
			t.Errorf("%+v", s)
		}
	}
}

// A service that dies is noticed by its check and brought back; a real daemon.
func TestExecIsRestarted(t *testing.T) {
	const up = `[ -e pid ] && kill -0 $(cat pid) 2>/dev/null`
	e, dir := script(t,
		`echo . >>starts; sleep 1000 >/dev/null 2>&1 & echo $! >pid`,
		`kill $(cat pid) 2>/dev/null; rm -f pid`, up)
	r := runnerOf(t, 10*time.Second, nil, e)
	if err := r.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	starts := func() int {
		data, _ := os.ReadFile(filepath.Join(dir, "starts"))
		return strings.Count(string(data), ".")
	}
	data, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	victim, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	wait(t, "a second start", func() bool { return starts() == 2 && r.Up() })
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(dir, "pid")) {
		t.Error("it was not stopped")
	}
}

// stubborn ignores SIGTERM, with a child and a grandchild that do too.
const stubborn = `trap "" TERM
sh -c 'trap "" TERM; sh -c "trap \"\" TERM; echo \$\$ >grandchild.pid; while :; do sleep 1; done" & echo $$ >child.pid; wait' &
echo $$ >self.pid
while :; do sleep 1; done`

// Stop in the middle of a start that will not end: the stop command runs only when
// nothing of the start is left, and all in the limit of the one step.
func TestExecStopDuringAStubbornStart(t *testing.T) {
	e, dir := script(t, stubborn, `for p in *.pid; do grep -q ') [^ZX] ' /proc/$(cat $p)/stat 2>/dev/null && echo $p >>alive; done; echo >stopped`, "")
	const limit = 8 * time.Second
	r := runnerOf(t, limit, nil, e)
	started := make(chan error, 1)
	go func() { started <- r.Start(t.Context(), 1) }()
	for _, name := range []string{"self.pid", "child.pid", "grandchild.pid"} {
		wait(t, name, func() bool {
			data, _ := os.ReadFile(filepath.Join(dir, name))
			return strings.HasSuffix(string(data), "\n")
		})
	}
	began := time.Now()
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > limit {
		t.Errorf("Stop took %v", took)
	}
	if err := <-started; !errors.Is(err, ErrStopped) {
		t.Errorf("Start: %v", err)
	}
	if alive, _ := os.ReadFile(filepath.Join(dir, "alive")); len(alive) > 0 {
		t.Errorf("still there: %s", alive)
	}
	if !exists(filepath.Join(dir, "stopped")) {
		t.Error("the stop command did not run")
	}
}

// The same by the limit, and by the end of the node's term.
func TestExecStubbornStartEnds(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit time.Duration
		term  time.Duration
		want  error
	}{
		{"limit", 3 * time.Second, time.Minute, ErrTimeout},
		{"term", time.Minute, 3 * time.Second, context.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, dir := script(t, stubborn, "", "")
			r := runnerOf(t, tc.limit, func(Failure) Decision { return GiveUp }, e)
			ctx, cancel := context.WithTimeout(t.Context(), tc.term)
			defer cancel()
			if err := r.Start(ctx, 1); !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
			if err != nil || len(files) == 0 {
				t.Fatal("it never ran")
			}
			for _, name := range files {
				data, _ := os.ReadFile(name)
				pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
				if err != nil {
					continue // it was killed before it could say who it is
				}
				if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") {
					t.Errorf("%s is still there: %s", name, stat)
				}
			}
		})
	}
}
