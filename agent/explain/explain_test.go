package explain

import (
	"strings"
	"testing"
	"time"

	"tandem/agent/control"
	"tandem/failover"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// The eight states that the issue names are scripts of replctl (testdata/explain.txtar).
// Here are the others.

// status is that of a node of a pair in order, a primary in epoch 3.
func status(node string) *control.Status {
	s := &control.Status{Time: noon, Cluster: "nfs1", Node: node, Role: "Secondary", Primary: "a", Epoch: 3, Disk: "UpToDate", InSync: []string{"a", "b"},
		Record: &control.RecordStatus{Serial: 9, Epoch: 3, ChangedAt: noon.Add(-time.Hour)}, Auto: true, Witness: control.WitnessStatus{OK: true},
		LeaseMS: 3000, FreezeSeconds: 30}
	other := "b"
	if node == "a" {
		s.Role = "Primary"
	} else {
		other = "a"
	}
	s.Peers = []control.PeerStatus{{Node: other, Link: "Connected", LinkSince: noon.Add(-time.Hour), Replication: "Established", Disk: "UpToDate"}}
	return s
}

func cluster(nodes ...any) (c control.ClusterStatus) {
	for _, n := range nodes {
		switch n := n.(type) {
		case *control.Status:
			c.Nodes = append(c.Nodes, control.NodeStatus{Node: n.Node, Status: n})
		case string: // does not answer
			c.Nodes = append(c.Nodes, control.NodeStatus{Node: n, Error: "node " + n + " cannot be asked: it does not answer"})
		}
	}
	return c
}

func change(s *control.Status, f func(*control.Status)) *control.Status { f(s); return s }

func TestText(t *testing.T) {
	cmd := Command{Base: "replctl", Home: "a"}
	for _, tc := range []struct {
		name string
		c    control.ClusterStatus
		want string
	}{
		{"automatic failover off", cluster(status("a"), change(status("b"), func(s *control.Status) { s.Auto = false })), `
Node a is the primary of cluster nfs1, in epoch 3.
Node b is in sync with it: it has every acknowledged write.
Node b does not take over by itself: failover.auto is off there.
If node b died now, nothing would be lost: the service goes on on node a.
If node a died now, nothing would be lost, but the service would stop until somebody promotes node b.
Nothing needs to be done. To move the service to node b, type:
    replctl --node b promote
`},
		{"gone, nothing written", cluster(change(status("a"), func(s *control.Status) {
			s.Peers[0] = control.PeerStatus{Node: "b", Link: "Connecting", LinkSince: noon.Add(-90 * time.Minute)}
		}), status("b")), `
Node a is the primary of cluster nfs1, in epoch 3.
Node b has been gone for 1 hour.
Nothing was written since that needed it: it is still in the in-sync set.
If node b's disk were lost now, nothing would be lost with it: node a has everything.
If node a died now, the service would stop: node b does not answer. Everything that was acknowledged comes back with node a.
Mend the link to node b, whose agent runs; it is resynced by itself then. To wait until it is in sync, type:
    replctl wait-sync
`},
		{"kept out", cluster(change(status("a"), func(s *control.Status) {
			s.InSync = []string{"a"}
			s.Peers[0] = control.PeerStatus{Node: "b", Link: "StandAlone", LinkError: "peer b has a volume of 1 bytes, ours has 2", OutOfSyncBytes: 4096}
		}), "b"), `
Node a is the primary of cluster nfs1, in epoch 3.
Node b is connected and kept out: peer b has a volume of 1 bytes, ours has 2.
If node b's disk were lost now, nothing would be lost with it: node a has everything.
If node a died now, the service would stop: node b is not in sync and does not take over by itself. Up to 4 KiB are on node a only: they come back with it, or are lost with its disk.
Mend what keeps node b out. To see the whole of it, type:
    replctl status
`},
		{"about to be a member", cluster(change(status("a"), func(s *control.Status) { s.InSync = []string{"a"} }), status("b")), `
Node a is the primary of cluster nfs1, in epoch 3.
Node b has everything, and is about to be taken into the in-sync set.
If node b died now, nothing would be lost: node a has everything, and the resync goes on when it is back.
If node a died now, the service would stop: node b is not in sync and does not take over by itself. Everything that was acknowledged comes back with node a.
Nothing needs to be done. To wait until node b is in sync, type:
    replctl wait-sync
`},
		{"primary gone, standby in sync", cluster("a", status("b")), `
Node a is the primary of cluster nfs1 in the cluster record, in epoch 3, and cannot be asked: it does not answer.
Whether it serves is not known from here.
In sync are a and b.
Node b has every acknowledged write.
If node b died now, nothing would be lost as long as another node that is in sync comes back.
It takes over by itself when the lease of the last primary has run out, 4 s at the most. To have it do so now, type:
    replctl --node b promote
`},
		{"primary gone, standby not in sync", cluster("a", change(status("b"), func(s *control.Status) { s.InSync = []string{"a"}; s.Disk = "Outdated" })), `
Node a is the primary of cluster nfs1 in the cluster record, in epoch 3, and cannot be asked: it does not answer.
Whether it serves is not known from here.
In sync is a.
No node that answers is known to have every acknowledged write.
If one of them died now, nothing would be lost that node a still has.
Bring back node a: nothing is lost then. To see whether it is there, type:
    replctl --node b status
If it is gone for good: promote --force on node b says what would be lost, and asks.
`},
		{"demoted and paused", cluster(change(status("a"), func(s *control.Status) {
			s.Role = "Secondary"
			s.Paused = &control.PausedStatus{Since: noon, By: "a"}
		}), status("b")), `
No node serves cluster nfs1. The cluster record names node a as the primary, in epoch 3.
In sync are a and b.
Automatic promotion is paused since 2026-11-22 12:00:00; that was asked for on node a.
Node a has every acknowledged write.
If node a died now, nothing would be lost as long as another node that is in sync comes back.
To have it serve, type:
    replctl promote
`},
		{"nobody serves, and no witness", cluster(change(status("a"), func(s *control.Status) {
			s.Role, s.Witness = "Secondary", control.WitnessStatus{Error: "no such file"}
		})), `
No node serves cluster nfs1. The cluster record names node a as the primary, in epoch 3.
In sync are a and b.
The witness does not answer (no such file), and nobody can become primary without it.
If a node died now, nothing would be lost as long as one that is in sync is left.
Mend the witness. To see what happens then, type:
    replctl explain
`},
		{"both hosts restarted", cluster(change(status("a"), func(s *control.Status) { s.Role, s.Marked, s.Disk = "Secondary", true, "Consistent" }),
			change(status("b"), func(s *control.Status) { s.Disk = "Failed" })), `
No node serves cluster nfs1. The cluster record names node a as the primary, in epoch 3.
In sync are a and b.
The host of node a has restarted: what was not flushed then may be missing there.
The disk of node b has failed.
No node that answers is known to have every acknowledged write.
If one of them died now, nothing would be lost that nodes a and b still have.
Mend what is wrong on nodes a and b. To see what it is, type:
    replctl status
If it is gone for good: promote --force on node a says what would be lost, and asks.
`},
		{"witness never read", cluster(change(status("a"), func(s *control.Status) {
			s.Role, s.Record, s.Witness = "Secondary", nil, control.WitnessStatus{Error: "no such file"}
		})), `
Node a has not read the cluster record: the witness does not answer (no such file).
Nothing is served, and nothing can be decided without it. If a node died now, nothing would be lost that is not lost already.
Mend the witness. To see what the record says then, type:
    replctl explain
`},
		{"just started", cluster(change(status("a"), func(s *control.Status) {
			s.Role, s.Record, s.Witness = "Secondary", nil, control.WitnessStatus{Error: failover.ErrNotRead.Error()}
		})), `
Node a has just started, and has not read the cluster record yet.
If a node died now, nothing would be lost that is not lost already. To see what the record says, type:
    replctl explain
`},
		{"three nodes, one gone", cluster(change(status("a"), func(s *control.Status) {
			s.Peers = append(s.Peers, control.PeerStatus{Node: "c", Link: "Connecting", LinkSince: noon.Add(-72 * time.Hour), LinkError: "no route to host", OutOfSyncBytes: 3 << 30})
		}), status("b"), "c"), `
Node a is the primary of cluster nfs1, in epoch 3.
Node b is in sync with it: it has every acknowledged write.
Node c has been gone for 3 days (no route to host).
3 GiB on node a are not on node c.
If node b died now, nothing would be lost: the service goes on on node a.
If node c's disk were lost now, nothing would be lost with it: node a has everything.
If node a died now, nothing would be lost: node b takes over by itself after about 4 s.
Start the agent of node c (replagent --config FILE on its machine); it is resynced by itself then. To wait until it is in sync, type:
    replctl wait-sync
`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Text(tc.c, cmd, time.UTC); got != strings.TrimPrefix(tc.want, "\n") {
				t.Errorf("got\n%s\nwant%s", got, tc.want)
			}
		})
	}
}

// Whatever a status says, of whatever version, the text names a command and does
// not fall over.
func TestTextOfAnything(t *testing.T) {
	fields := []func(*control.Status){
		func(s *control.Status) { s.Role = "Secondary" },
		func(s *control.Status) { s.Record = nil },
		func(s *control.Status) { s.Peers = nil },
		func(s *control.Status) { s.InSync = nil },
		func(s *control.Status) { s.Primary = "z" },
		func(s *control.Status) { s.Witness.OK = false },
		func(s *control.Status) { s.FrozenSeconds = 99 },
		func(s *control.Status) { s.Deposed = &control.DeposedStatus{Epoch: 1} },
		func(s *control.Status) {
			if len(s.Peers) > 0 {
				s.Peers[0].SplitBrain = true
			}
		},
		func(s *control.Status) {
			if len(s.Peers) > 0 {
				s.Peers[0].Link = "Connecting"
			}
		},
	}
	for mask := range 1 << (2 * len(fields)) {
		if mask%7 != 0 { // 150,000 of them say no less than a million
			continue
		}
		a, b := status("a"), status("b")
		for i, f := range fields {
			if mask>>i&1 != 0 {
				f(a)
			}
			if mask>>(i+len(fields))&1 != 0 {
				f(b)
			}
		}
		text := Text(cluster(a, b), Command{Base: "replctl", Home: "a"}, time.UTC)
		if !strings.Contains(text, "\n    replctl ") || !strings.Contains(text, "If ") {
			t.Fatalf("mask %x: no command or no loss in\n%s", mask, text)
		}
	}
	if text := Text(cluster("a", "b"), Command{Base: "replctl"}, time.UTC); !strings.Contains(text, "\n    replctl --node a explain\n") {
		t.Error(text)
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 999: "999 bytes", 1000: "0.98 KiB", 4096: "4 KiB", 38 << 20: "38 MiB", 100<<20 + 1: "100 MiB",
		38<<20 + 512<<10: "38.5 MiB", 3 << 40: "3 TiB", 5000 << 40: "5000 TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for s, want := range map[float64]string{-1: "0 s", 0: "0 s", 0.2: "1 s", 59: "59 s", 60: "1 minute", 200: "3 minutes", 3600: "1 hour", 90000: "25 hours", 200000: "2 days"} {
		if got := span(s); got != want {
			t.Errorf("span(%v) = %q, want %q", s, got, want)
		}
	}
}
