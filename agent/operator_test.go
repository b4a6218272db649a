package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/failover"
)

func TestCommandOf(t *testing.T) {
	for _, tc := range []struct {
		req  control.Request
		want string
	}{
		{control.Request{Verb: "demote"}, "demote"},
		{control.Request{Verb: "promote", Args: map[string]string{"yes": "true", "force": "true"}}, "promote --force --yes"},
		{control.Request{Verb: "forget", Args: map[string]string{"node": "b", "yes": "true"}}, "forget b --yes"},
		{control.Request{Verb: "wait-sync", Args: map[string]string{"timeout": "30s"}}, "wait-sync --timeout=30s"},
	} {
		if got := commandOf(tc.req); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

// The record names the operator of a change that one has asked for, and never one
// of a change that the node makes by itself.
func TestAsker(t *testing.T) {
	a := &Agent{}
	if got := a.asker(failover.Pause); got != "" {
		t.Errorf("nobody asks: %q", got)
	}
	a.asks.by = map[uint64]string{1: "local, uid 0/root"}
	for change, want := range map[failover.Change]string{
		failover.Pause: "asked by local, uid 0/root", failover.Promote: "asked by local, uid 0/root", failover.Forget: "asked by local, uid 0/root",
		failover.Grow: "", failover.Shrink: "",
	} {
		if got := a.asker(change); got != want {
			t.Errorf("%v: %q, want %q", change, got, want)
		}
	}
	a.asks.by[2] = "node b"
	if got := a.asker(failover.Pause); got != "" {
		t.Errorf("one of two asks, and which is not known: %q", got)
	}
}

// The recorded primary that answers is not overruled, unless it has nothing left.
func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name string
		s    *control.Status
		want string
	}{
		{"gone", nil, ""},
		{"serves", &control.Status{Role: "Primary", Disk: "UpToDate"}, "node a is primary and answers: --force is for a primary that is gone"},
		{"stepped down", &control.Status{Role: "Secondary", Disk: "UpToDate"}, "promote it instead (`replctl --node a promote`), or stop its agent first"},
		{"restarted host", &control.Status{Role: "Secondary", Disk: "Consistent"}, "promote it instead"},
		{"disk failed", &control.Status{Role: "Secondary", Disk: "Failed"}, ""},
	} {
		err := answers(&control.NodeStatus{Node: "a", Status: tc.s})
		if tc.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if r, ok := errors.AsType[*control.Refused](err); !ok || !strings.Contains(r.Text, tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// What an operator reads before --force goes on.
func TestForceText(t *testing.T) {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.Local)
	record := func(set ...string) *failover.Record {
		return &failover.Record{Primary: "a", Epoch: 3, InSync: set, ChangedAt: noon}
	}
	down := control.NodeStatus{Node: "a", Error: "node a cannot be asked: it does not answer"}
	stoppedNode := control.NodeStatus{Node: "a", Error: "connection refused", NoAgent: true}
	failed := control.NodeStatus{Node: "a", Status: &control.Status{Disk: "Failed", Role: "Secondary"}}
	third := control.NodeStatus{Node: "c", Status: &control.Status{Disk: "UpToDate"}}
	for _, tc := range []struct {
		name   string
		left   time.Time
		rec    *failover.Record
		marked bool
		dirty  int64
		others []control.NodeStatus
		words  map[string]word
		off    bool
		want   string
	}{
		{name: "last in sync known, nothing else", left: noon, rec: record("a"), others: []control.NodeStatus{down}, want: `
Node b was last in sync at 2026-11-22 12:00:00; since then the in-sync set is a.
What was written on a since then is not here and will be lost. How much that is, nobody who answers knows.
Whether node a is stopped is not known (node a cannot be asked: it does not answer). If it runs and can reach neither us nor the witness, both copies take writes.
`},
		{name: "the primary's last word, and dirty bits", left: noon, rec: record("a"), dirty: 4 << 20, others: []control.NodeStatus{stoppedNode},
			words: map[string]word{"a": {at: noon.Add(time.Minute), lacks: 38 << 20, said: true}}, want: `
Node b was last in sync at 2026-11-22 12:00:00; since then the in-sync set is a.
Node a said last, at 2026-11-22 12:01:00, that b lacks 38 MiB.
What was written on a after that is not here either. All of this will be lost.
Up to 4 MiB on this node may differ from a's copy; a's version of it will be lost.
Node a: its host answers that no agent listens there, so it is stopped, if its address in the config is right.
`},
		{name: "a third node knows", rec: record("a", "c"), others: []control.NodeStatus{failed, third},
			words: map[string]word{"c": {at: noon, lacks: 1 << 20}}, want: `
Node b is not in sync, and since when is not known; the in-sync set is a, c since 2026-11-22 12:00:00 at the latest.
Node c says that b lacks 1 MiB.
What was written on a and c after that is not here either. All of this will be lost.
Node a answers and does not serve: its disk is Failed.
`},
		{name: "in sync", rec: record("a", "b"), others: []control.NodeStatus{down}, off: true, want: `
Node b is in the in-sync set: a plain ` + "`replctl promote`" + ` loses nothing.
You say that the machine of node a is off: nothing is waited for. If it is not, both copies take writes.
`},
		{name: "host restarted", rec: record("a", "b"), marked: true, others: []control.NodeStatus{stoppedNode}, want: `
Node b is in the in-sync set, but its host restarted: what was not flushed then may be missing here.
Node a: its host answers that no agent listens there, so it is stopped, if its address in the config is right.
`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &Agent{cfg: &config.Config{Node: "b"}, words: tc.words}
			a.chronicle.left = tc.left
			s := control.Status{Node: "b", Marked: tc.marked, Peers: []control.PeerStatus{{Node: "a", OutOfSyncBytes: tc.dirty}}}
			if got := a.forceText(s, tc.rec, tc.others, &tc.others[0], tc.off); got != strings.TrimPrefix(tc.want, "\n") {
				t.Errorf("got\n%s\nwant%s", got, tc.want)
			}
		})
	}
}

// systemd says where a unit may write; without it the config's folder has to do.
func TestHistoryPath(t *testing.T) {
	a := &Agent{cfg: &config.Config{Node: "b", Dir: "/etc/tandem"}}
	for env, want := range map[string]string{"": "/etc/tandem/b.history", "/var/lib/tandem": "/var/lib/tandem/b.history", "/var/lib/x:/var/lib/y": "/var/lib/x/b.history"} {
		t.Setenv("STATE_DIRECTORY", env)
		if got := a.historyPath(); got != want {
			t.Errorf("STATE_DIRECTORY=%q: %s, want %s", env, got, want)
		}
	}
}

// The chronicle knows from the file when this node left the set and whether it was
// deposed: a restart must not forget either.
func TestChronicleMember(t *testing.T) {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	c := &chronicle{led: 3}
	c.member("a", true, noon, "a")
	if !c.left.IsZero() || c.led != 3 {
		t.Errorf("a member and primary: %+v", c)
	}
	c.member("b", false, noon.Add(time.Minute), "a")
	c.member("b", false, noon.Add(2*time.Minute), "a")
	if !c.left.Equal(noon.Add(time.Minute)) || c.led != 3 {
		t.Errorf("deposed: %+v", c)
	}
	c.member("b", true, noon.Add(3*time.Minute), "a")
	if !c.left.IsZero() || c.led != 0 {
		t.Errorf("a member under another: %+v", c)
	}
}
