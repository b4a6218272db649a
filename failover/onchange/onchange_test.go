package onchange

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type fixture struct {
	*Hook
	t    *testing.T
	dir  string
	log  *lockedBuffer
	stop context.CancelFunc
	done chan error
}

// start runs a Hook over a shell script whose working directory is f.dir.
func start(t *testing.T, script string, timeout time.Duration) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: t.TempDir(), log: new(lockedBuffer), done: make(chan error, 1)}
	f.Hook = New(Config{Cluster: "nfs1", Node: "a", Argv: []string{"/bin/sh", "-c", script}, Dir: f.dir, Timeout: timeout,
		Log: slog.New(slog.NewTextHandler(f.log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	f.stop = cancel
	go func() { f.done <- f.Run(ctx) }()
	t.Cleanup(f.end)
	return f
}

func (f *fixture) end() {
	f.t.Helper()
	f.stop()
	if err := <-f.done; err != nil {
		f.t.Error(err)
	}
	f.done <- nil
}

func (f *fixture) told() string {
	data, _ := os.ReadFile(filepath.Join(f.dir, "told"))
	return string(data)
}

func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

func TestTold(t *testing.T) {
	f := start(t, `echo "$TANDEM_CLUSTER/$TANDEM_NODE $ROLE $EPOCH [$REASON] <$PEER>" >>told`, time.Minute)
	f.Tell(Change{Role: "Primary", Epoch: 7, Reason: "b is\ngone\x00 \xff", Peer: "b"})
	f.Tell(Change{Role: "Secondary", Epoch: 8, Reason: strings.Repeat("x", 5000)})
	want := "nfs1/a Primary 7 [b is gone  ?] <b>\nnfs1/a Secondary 8 [" + strings.Repeat("x", maxReason) + "…] <>\n"
	wait(t, "both", func() bool { return strings.Count(f.told(), "\n") == 2 })
	if got := f.told(); got != want {
		t.Errorf("got %s", got)
	}
	if f.log.String() != "" {
		t.Error(f.log)
	}
}

// One at a time and in order, and Tell does not wait for any.
func TestOrder(t *testing.T) {
	f := start(t, `[ ! -e busy ] && touch busy && sleep 0.02 && echo $EPOCH >>told && rm busy`, time.Minute)
	var want strings.Builder
	began := time.Now()
	for i := range uint64(10) {
		f.Tell(Change{Epoch: i})
		fmt.Fprintln(&want, i)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("Tell took %v", took)
	}
	wait(t, "all", func() bool { return strings.Count(f.told(), "\n") == 10 })
	if got := f.told(); got != want.String() {
		t.Errorf("got %s", got)
	}
}

func TestTheOldestIsDropped(t *testing.T) {
	f := start(t, `touch began; while [ ! -e go ]; do sleep 0.01; done; echo $EPOCH >>told`, time.Minute)
	f.Tell(Change{Epoch: 100})
	wait(t, "the first", func() bool { _, err := os.Stat(filepath.Join(f.dir, "began")); return err == nil })
	const more = 5
	for i := range uint64(maxQueued + more) {
		f.Tell(Change{Epoch: i, Reason: "why"})
	}
	if err := os.WriteFile(filepath.Join(f.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wait(t, "the rest", func() bool { return strings.Count(f.told(), "\n") == 1+maxQueued })
	lines := strings.Fields(f.told())
	if lines[0] != "100" || lines[1] != strconv.Itoa(more) || lines[maxQueued] != strconv.Itoa(maxQueued+more-1) {
		t.Errorf("got %v", lines)
	}
	if n := strings.Count(f.log.String(), "its oldest change was dropped"); n != more {
		t.Errorf("%d said to be dropped:\n%s", n, f.log)
	}
}

// A failure and a command that hangs are logged, and the next change is told.
func TestTroubles(t *testing.T) {
	f := start(t, `case $EPOCH in 1) echo no route >&2; exit 3;; 2) trap "" TERM; while :; do sleep 1; done;; esac; echo $EPOCH >>told`, 3*time.Second)
	for i := range uint64(4) {
		f.Tell(Change{Epoch: i})
	}
	wait(t, "the last", func() bool { return strings.HasSuffix(f.told(), "3\n") })
	if f.told() != "0\n3\n" {
		t.Errorf("got %q", f.told())
	}
	for _, want := range []string{"exit status 3; it said: no route", "did not end in its time"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("no %q in %s", want, f.log)
		}
	}
}

// The agent ends: what is queued is still told, for a while.
func TestEnd(t *testing.T) {
	f := start(t, `sleep 0.05; echo $EPOCH >>told`, time.Minute)
	for i := range uint64(4) {
		f.Tell(Change{Epoch: i})
	}
	f.end()
	if f.told() != "0\n1\n2\n3\n" {
		t.Errorf("got %q", f.told())
	}
}

func TestEndDoesNotWaitForEver(t *testing.T) {
	f := start(t, `touch began; sleep 1000`, time.Hour)
	f.Tell(Change{Epoch: 1})
	f.Tell(Change{Epoch: 2, Reason: "last words"})
	wait(t, "the first", func() bool { _, err := os.Stat(filepath.Join(f.dir, "began")); return err == nil })
	began := time.Now()
	f.end()
	if took := time.Since(began); took < drainTime || took > drainTime+5*time.Second {
		t.Errorf("took %v", took)
	}
	if !strings.Contains(f.log.String(), `reason="last words"`) {
		t.Error(f.log)
	}
}

func TestNoCommand(t *testing.T) {
	h := New(Config{})
	for range 100 {
		h.Tell(Change{})
	}
	if len(h.queue) != 0 {
		t.Error("it queues for nobody")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Run(ctx); err != nil {
		t.Error(err)
	}
}
