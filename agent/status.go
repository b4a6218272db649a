package agent

import (
	"fmt"
	"sync/atomic"
	"time"

	"tandem/agent/control"
	"tandem/blockrepl"
	"tandem/failover"
)

// metrics is what is counted besides the requests.
type metrics struct {
	diskTime     atomic.Int64               // ns, smoothed, of a small disk request
	firstWrite   atomic.Int64               // BOOTTIME ns of the term's first completed write; 0: none yet
	wireSent     [blockrepl.MaxPeers]uint64 // of links that have ended; guarded by Agent.mu
	wireReceived [blockrepl.MaxPeers]uint64
	promotions   uint64  // guarded by Agent.mu
	claim, stop  float64 // seconds, of the last promotion and planned stop; guarded by Agent.mu
}

// Status is the document of `replctl status --json`.
func (a *Agent) status() control.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.statusLocked(now())
}

func (a *Agent) statusLocked(t int64) control.Status {
	n := a.node
	s := control.Status{Time: time.Now().UTC().Truncate(time.Millisecond), Cluster: a.cfg.Cluster, Node: a.cfg.Node, Role: "Secondary", Epoch: n.Vote.Epoch(),
		Auto: a.cfg.Failover.Auto, LeaseMS: a.cfg.Failover.Lease.Milliseconds(), FreezeSeconds: a.cfg.Failover.Freeze.Seconds()}
	rec, trouble := n.Vote.Record()
	s.Witness.OK = trouble == nil
	if trouble != nil {
		s.Witness.Error = trouble.Error()
	}
	inSet := false
	if rec != nil {
		s.Primary, s.InSync = rec.Primary, rec.InSync
		inSet = rec.Has(a.cfg.Node)
		s.Epoch = max(s.Epoch, rec.Epoch)
		s.Record = recordStatus(rec)
		if rec.Paused != nil {
			s.Paused = &control.PausedStatus{Since: rec.Paused.Since, By: rec.Paused.By}
			if s.Paused.Since.IsZero() { // it was this moment, here: the record has not been read back yet
				s.Paused.Since = time.Now().UTC()
			}
		}
		if c := &a.chronicle; !inSet {
			if left := c.left; !left.IsZero() {
				s.LastInSync = &left
			}
			if c.led != 0 && c.led < rec.Epoch && rec.Primary != a.cfg.Node {
				s.Deposed = &control.DeposedStatus{Epoch: c.led, Since: rec.ChangedAt}
			}
		}
	}
	s.Marked = n.Vote.Hard().Marked
	serving := n.Serving()
	switch {
	case serving:
		s.Role = "Primary"
	case n.Vote.Role() == failover.Candidate:
		s.StateDetail = "promoting"
	case n.Vote.Role() == failover.Moving:
		s.StateDetail = "handing over"
	case n.Vote.Hard().Marked:
		s.StateDetail = "this host restarted: unflushed writes may be missing here"
	}
	if since := n.Vote.FrozenSince(); since != 0 {
		s.FrozenSeconds = float64(t-since) / 1e9
		s.StateDetail = "frozen: I/O waits for a lease or a change of the cluster record"
	}
	if until := n.Vote.LeaseUntil(); serving && n.Vote.Counted() != 0 && until > t {
		s.LeaseRemainingMS = (until - t) / 1e6
	}
	if g := n.Vol.Generation(); g != 0 {
		s.Generation = fmt.Sprintf("%016x", g)
	}
	s.Disk = n.Vol.Disk(inSet).String()
	s.Volume.SizeBytes = a.disk.Size()
	others := 0
	for i := range a.peers {
		p := n.Vol.Peer(i)
		ps := control.PeerStatus{Node: p.Name, Link: p.Link, LinkSince: a.linkSince[i].UTC().Truncate(time.Millisecond), LinkError: p.Problem,
			SplitBrain: p.SplitBrain, Replication: p.Replication, Disk: p.Disk, OutOfSyncBytes: p.OutOfSync}
		if ps.Link == "Connecting" {
			why := a.links.PeerError(p.Name)
			if why != "" && s.StateDetail == "" {
				s.StateDetail = why
			}
			if ps.LinkError == "" {
				ps.LinkError = why
			}
		}
		if p.Problem != "" && s.StateDetail == "" {
			s.StateDetail = p.Problem
		}
		if p.Syncing {
			ps.Resync = progressOf(&p, t)
		}
		sent := a.metrics.wireSent[i]
		if c := a.conns[i]; c != nil {
			now, _ := c.Stats()
			sent += now
		}
		ps.SentBytes, ps.WireBytes = int64(sent), int64(sent)
		if rec != nil && rec.Has(p.Name) {
			others++
		} else if serving {
			s.AtRiskBytes = max(s.AtRiskBytes, p.OutOfSync)
		}
		s.Peers = append(s.Peers, ps)
	}
	if serving && others > 0 {
		s.AtRiskBytes = 0 // an in-sync peer holds everything
	}
	s.Service = a.stand.status()
	s.IO = a.ops.status()
	if term := n.Vote.Term(); term.Began != 0 {
		s.Takeover = &control.Takeover{Epoch: term.Epoch, LastGrant: wall(t, term.LastGrant), Claimed: wall(t, term.Claimed),
			RecordWon: wall(t, term.Won), Promoted: wall(t, term.Began), FirstWrite: wall(t, a.metrics.firstWrite.Load())}
	}
	return s
}

// wall is the wall-clock time of at, when it is t now; both BOOTTIME ns.
func wall(t, at int64) time.Time {
	if at == 0 {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(at - t)).UTC()
}

func recordStatus(r *failover.Record) *control.RecordStatus {
	s := &control.RecordStatus{Serial: r.Serial, Epoch: r.Epoch, ChangedBy: r.ChangedBy, ChangedAt: r.ChangedAt, Reason: r.Reason}
	for _, m := range r.Members {
		s.Members = append(s.Members, control.MemberStatus{Node: m.Node, DiskID: fmt.Sprintf("%016x", m.DiskID)})
	}
	return s
}

func progressOf(p *blockrepl.PeerState, t int64) *control.Progress {
	g := &control.Progress{DoneBytes: p.Done, TotalBytes: p.Total}
	if d := t - p.Began; d > 0 {
		g.RateBytesPerSecond = int64(float64(p.Done) / (float64(d) / 1e9))
	}
	if g.RateBytesPerSecond > 0 {
		g.ETASeconds = float64(p.Total-p.Done) / float64(g.RateBytesPerSecond)
	}
	return g
}
