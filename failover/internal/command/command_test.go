package command

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sh is a shell command whose scratch folder is $D.
func sh(t *testing.T, script string) (Command, string) {
	t.Helper()
	dir := t.TempDir()
	return Command{Argv: []string{"/bin/sh", "-c", script}, Env: []string{"D=" + dir}}, dir
}

// pids reads the process ids that a script noted, one a file, waiting for them.
func pids(t *testing.T, dir string, names ...string) []int {
	t.Helper()
	var all []int
	for _, name := range names {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			data, _ := os.ReadFile(filepath.Join(dir, name))
			if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				all = append(all, pid)
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s was never written", name)
			}
		}
	}
	return all
}

func running(t *testing.T, pid int) bool {
	t.Helper()
	state, _, ok := readStat("/proc/" + strconv.Itoa(pid) + "/stat")
	return ok && state != 'Z' && state != 'X'
}

func TestRun(t *testing.T) {
	c, dir := sh(t, `echo "$A $PWD" >$D/out; echo noise`)
	c.Env, c.Dir = append(c.Env, "A=b c"), dir
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "out")); string(got) != "b c "+dir+"\n" {
		t.Errorf("%q", got)
	}
}

// What systemd gave to the agent is not the command's.
func TestOutput(t *testing.T) {
	c, _ := sh(t, `echo one; echo two >&2; printf '%s' "$A"`)
	c.Env = append(c.Env, "A=three")
	if out, err := c.Output(t.Context()); err != nil || out != "one\ntwo\nthree" {
		t.Errorf("%q %v", out, err)
	}
	c, _ = sh(t, "head -c 10000 /dev/zero | tr '\\0' x; echo end")
	if out, err := c.Output(t.Context()); err != nil || len(out) != maxOutput || !strings.HasSuffix(out, "xend\n") {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	c, _ = sh(t, "echo half; exit 3")
	if out, err := c.Output(t.Context()); err == nil || out != "" {
		t.Errorf("%q %v", out, err)
	}
}

func TestEnvironment(t *testing.T) {
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "TANDEM_KEPT"} {
		t.Setenv(name, "x")
	}
	c, _ := sh(t, `[ -z "$NOTIFY_SOCKET$WATCHDOG_USEC$LISTEN_FDS" ] && [ $TANDEM_KEPT = x ] && ! read x`)
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestFailures(t *testing.T) {
	script := func(s string) []string { return []string{"/bin/sh", "-c", s} }
	notExecutable := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(notExecutable, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		argv     []string
		want     string // in the error
		is       error
		hopeless bool
	}{
		{"status and output", script(`echo a; echo; echo "  b" >&2; exit 3`), "exit status 3; it said: a | b", nil, false},
		{"last lines", script(`for i in 1 2 3 4 5 6 7; do echo l$i; done; false`), "it said: l3 | l4 | l5 | l6 | l7", nil, false},
		{"long output", script(`head -c 1000000 /dev/zero | tr '\0' x; echo; echo end; exit 1`), "xxx | end", nil, false},
		{"not text", script(`printf '\377x\n'; exit 1`), "it said: ?x", nil, false},
		{"silent", script(`exit 1`), "exit 1: exit status 1", nil, false},
		{"signal", script(`kill -9 $$`), "signal: killed", nil, false},
		{"no such name", []string{"tandem-no-such-program"}, "executable file not found", exec.ErrNotFound, true},
		{"no such path", []string{"/no/such/program"}, "no such file", fs.ErrNotExist, true},
		{"not executable", []string{notExecutable}, "permission denied", fs.ErrPermission, true},
		{"leftover", script(`sleep 100 & exit 0`), "left a process behind", ErrLeftover, false},
		{"failed with leftover", script(`sleep 100 & exit 5`), "exit status 5", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := Command{Argv: tc.argv}.Run(t.Context())
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 5000 {
				t.Fatalf("got %.200v, want %s", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if Hopeless(err) != tc.hopeless {
				t.Errorf("Hopeless is %v", !tc.hopeless)
			}
		})
	}
}

// stubborn ignores SIGTERM, with a child and a grandchild that do too.
const stubborn = `trap "" TERM
sh -c 'trap "" TERM; sh -c "trap \"\" TERM; echo \$\$ >$D/grandchild.tmp; mv $D/grandchild.tmp $D/grandchild; while :; do sleep 1; done" & echo $$ >$D/child; wait' &
echo $$ >$D/self
while :; do sleep 1; done`

func TestTimeoutEndsTheWholeGroup(t *testing.T) {
	c, dir := sh(t, stubborn)
	const limit = 5 * time.Second // three shells start in it
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	err := c.Run(ctx)
	if !errors.Is(err, ErrTimeout) {
		t.Fatalf("got %v", err)
	}
	if took := time.Since(began); took > limit+killWait {
		t.Errorf("took %v", took)
	}
	for _, pid := range pids(t, dir, "self", "child", "grandchild") {
		if running(t, pid) {
			t.Errorf("%d still runs", pid)
		}
	}
}

func TestCancelEndsTheWholeGroup(t *testing.T) {
	c, dir := sh(t, stubborn)
	cause := errors.New("the node steps down")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	all := pids(t, dir, "self", "child", "grandchild")
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Fatalf("got %v", err)
	}
	for _, pid := range all {
		if running(t, pid) {
			t.Errorf("%d still runs", pid)
		}
	}
}

// A command that heeds SIGTERM can clean up.
func TestTermComesFirst(t *testing.T) {
	c, dir := sh(t, `trap 'echo cleaned >$D/cleaned; exit 0' TERM; echo $$ >$D/self; while :; do sleep 0.05; done`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	pids(t, dir, "self")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cleaned")); err != nil {
		t.Error(err)
	}
}

// A start command may leave a daemon that has an output, or a session, of its own.
func TestDaemonStays(t *testing.T) {
	for _, script := range []string{
		`sh -c 'echo $$ >$D/daemon; exec sleep 100' >/dev/null 2>&1 & exit 0`,
		`setsid sh -c 'echo $$ >$D/daemon; exec sleep 100' >/dev/null 2>&1 & exit 0`,
	} {
		c, dir := sh(t, script)
		if err := c.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		pid := pids(t, dir, "daemon")[0]
		if !running(t, pid) {
			t.Errorf("%d is gone", pid)
		}
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
}

func TestOverBeforeItBegan(t *testing.T) {
	c, dir := sh(t, `echo >$D/ran`)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("no longer")
	cancel(cause)
	if err := c.Run(ctx); !errors.Is(err, cause) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("it ran")
	}
}

func TestParseStat(t *testing.T) {
	for _, tc := range []struct {
		in    string
		state byte
		pgrp  int
		ok    bool
	}{
		{"7 (sh) S 1 42 42 0", 'S', 42, true},
		{"7 (a) b (c) Z 1 43 42 0", 'Z', 43, true},
		{"7 (sh) S 1", 0, 0, false},
		{"7 (sh)", 0, 0, false},
		{"", 0, 0, false},
		{"7 (sh) S 1 x 42", 'S', 0, false},
	} {
		if state, pgrp, ok := parseStat([]byte(tc.in)); state != tc.state || pgrp != tc.pgrp || ok != tc.ok {
			t.Errorf("%q: %c %d %v", tc.in, state, pgrp, ok)
		}
	}
}
