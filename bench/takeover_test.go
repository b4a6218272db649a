package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tandem/agent"
	"tandem/agent/control"
	"tandem/nbd"
)

// Naming agent.Run makes the go command run TestTakeover again when the agent
// has changed.
var _ = agent.Run

// The times that the default failover block, one with a lease of 1 s, and a
// planned move are allowed to take, in a few rounds with real agents.
func TestTakeover(t *testing.T) {
	if testing.Short() {
		t.Skip("most of a minute")
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin+"/", "tandem/cmd/replagent", "tandem/cmd/replctl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := shortDir(t)
	for _, c := range []struct {
		args  string
		limit time.Duration
	}{
		{"-lease 3s", 6 * time.Second},
		{"-lease 1s", 3 * time.Second},
	} {
		t.Run(c.args, func(t *testing.T) {
			o, code := parseTakeover(append(strings.Fields(c.args), "-rounds", "3", "-moves", "3", "-bin", bin, "-dir", dir), io.Discard)
			if code >= 0 || o.limit != c.limit {
				t.Fatalf("%+v, %d", o, code)
			}
			var out bytes.Buffer
			got, err := takeover(t.Context(), o, &out)
			t.Logf("\n%s", out.String())
			if err != nil {
				t.Fatal(err)
			}
			if len(got.kills) != 3 || len(got.moves) != 3 {
				t.Fatalf("%d kills and %d moves", len(got.kills), len(got.moves))
			}
			for i, k := range got.kills {
				// A node that served before its promise had run out would be fast, too.
				p := k.phases
				if promised := p.LastGrant.Add(o.lease + o.lease/10); p.Claimed.Before(promised) {
					t.Errorf("kill %d: claimed %v before the promise had run out", i+1, promised.Sub(p.Claimed))
				}
				if p.RecordWon.Before(p.Claimed) || p.Promoted.Before(p.RecordWon) || p.FirstWrite.Before(p.Promoted) {
					t.Errorf("kill %d: the phases are not in order: %+v", i+1, p)
				}
				if lead := k.at.Add(k.writable).Sub(p.FirstWrite); lead < -100*time.Millisecond {
					t.Errorf("kill %d: a client has its write %v before the agent completed one", i+1, -lead)
				}
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("files are left: %v %v", left, err)
			}
		})
	}
}

// shortDir is a folder in memory where there is some, and with a short name: a unix
// socket's path has at most 107 bytes.
func shortDir(t testing.TB) string {
	t.Helper()
	parent := "/dev/shm"
	if fi, err := os.Stat(parent); err != nil || !fi.IsDir() {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "tandem-bench-") //nolint:usetesting // t.TempDir has the long name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestParseTakeover(t *testing.T) {
	for _, c := range []struct {
		args          string
		rounds, moves int
		lease, limit  time.Duration
		code          int
	}{
		{"", 20, 10, 3 * time.Second, 6 * time.Second, -1},
		{"-lease 1s", 20, 10, time.Second, 3 * time.Second, -1},
		{"-rounds 0 -moves 1 -limit 4s", 0, 1, 3 * time.Second, 4 * time.Second, -1},
		{"-rounds 0 -moves 0", 0, 0, 0, 0, 2},
		{"-rounds -1", 0, 0, 0, 0, 2},
		{"-lease 10ms", 0, 0, 0, 0, 2},
		{"-limit 1s", 0, 0, 0, 0, 2},
		{"stray", 0, 0, 0, 0, 2},
		{"-h", 0, 0, 0, 0, 0},
	} {
		o, code := parseTakeover(strings.Fields(c.args), io.Discard)
		if code != c.code || code < 0 && (o.rounds != c.rounds || o.moves != c.moves || o.lease != c.lease || o.limit != c.limit) {
			t.Errorf("%q: %+v, %d", c.args, o, code)
		}
	}
}

// A time above its limit is an error, and the table shows it.
func TestTakeoverLimits(t *testing.T) {
	at := time.Now()
	phases := control.Takeover{LastGrant: at.Add(-time.Second), Claimed: at.Add(2 * time.Second), RecordWon: at.Add(2100 * time.Millisecond)}
	got := timings{
		kills: []kill{{"a", "b", phases, at, 3 * time.Second}, {"b", "a", phases, at, 6 * time.Second}},
		moves: []time.Duration{20 * time.Millisecond, time.Second},
	}
	o, _ := parseTakeover(nil, io.Discard)
	err := got.tooLong(o)
	if want := "kill 2: writable again only after 6s, allowed are 6s\nmove 2: writes paused for 1s, allowed are 1s"; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	var out bytes.Buffer
	got.print(&out, o)
	for _, want := range []string{"-1.000 s", "+2.100 s", "2 kills: writable again after 4.50 s (median), 6.00 s at worst; allowed are 6.0 s",
		"2 moves: a pause of 0.510 s (median), 1.000 s at worst"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if err := (&timings{kills: got.kills[:1], moves: got.moves[:1]}).tooLong(o); err != nil {
		t.Error(err)
	}
}

// The pause is from the old primary's last write to the new one's first, in
// whatever order the clients come to tell.
func TestWritersPause(t *testing.T) {
	w := &writers{last: map[string]time.Time{}, news: make(chan struct{})}
	at := time.Now()
	after := func(ms int) time.Time { return at.Add(time.Duration(ms) * time.Millisecond) }
	w.completed("a", after(1))
	w.expect("b")
	w.completed("a", after(3))
	w.completed("a", after(2))
	w.completed("b", after(9))
	w.completed("b", after(10))
	last, first, err := w.wait(t.Context())
	if err != nil || !last.Equal(after(3)) || !first.Equal(after(9)) {
		t.Errorf("%v %v %v", last.Sub(at), first.Sub(at), err)
	}
	w.expect("a")
	w.fail(nbd.EIO)
	if _, _, err := w.wait(t.Context()); !errors.Is(err, nbd.EIO) {
		t.Errorf("%v", err)
	}
}
