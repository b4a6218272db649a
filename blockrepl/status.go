package blockrepl

import "fmt"

// PeerState is what `status` says of one peer.
type PeerState struct {
	Name        string
	Link        string // StandAlone, Connecting, Connected
	Replication string // Established, SyncSource, SyncTarget; "" without a session
	Disk        string // "" if it never said
	OutOfSync   int64  // bytes
	Problem     string
	SplitBrain  bool // both copies went on from a common state; OutOfSync is then what was written here alone
	Syncing     bool
	Done, Total int64 // bytes compared, bytes to compare, of the resync under way
	Sent        int64 // bytes that differed and travelled
	Began       int64 // ns
}

// Peer is the state of peer i.
func (c *Core) Peer(i int) PeerState {
	p := &c.peers[i]
	s := PeerState{Name: p.name, Link: "Connecting", OutOfSync: c.OutOfSync(i), Problem: p.problem}
	switch {
	case p.session == apart || (p.problem != "" && !p.heard):
		s.Link = "StandAlone"
	case p.session >= met:
		s.Link = "Connected"
	}
	switch {
	case p.session != mirroring:
	case !c.serving && c.sb.Inconsistent:
		s.Replication = "SyncTarget"
	case !c.serving || c.caughtUp(p):
		s.Replication = "Established"
	default:
		s.Replication = "SyncSource"
	}
	if p.heard {
		s.Disk = c.peerDisk(p).String()
		v, _ := c.compare(p)
		s.SplitBrain = v == SplitBrain
	}
	if r := &p.rs; r.running && r.Total > 0 {
		s.Syncing, s.Done, s.Total, s.Sent, s.Began = true, r.Done, r.Total, r.Sent, r.Began
	}
	return s
}

func (c *Core) peerDisk(p *peer) DiskState {
	h := &p.hello
	switch {
	case h.Failed:
		return DiskFailed
	case c.serving && p.session == mirroring && c.counted&(1<<p.id) != 0 && p.grow == notGrowing:
		return DiskUpToDate
	case h.Serving:
		return DiskUpToDate
	case c.serving && p.session >= starting && p.session != apart:
		return DiskInconsistent
	case h.Inconsistent || h.Current == 0:
		return DiskInconsistent
	case h.Outdated:
		return DiskOutdated
	case h.Marked:
		return DiskConsistent
	}
	return DiskConsistent
}

// Disk is the state of our own copy; inSet tells whether the record names us
// in the in-sync set.
func (c *Core) Disk(inSet bool) DiskState {
	switch {
	case c.failed:
		return DiskFailed
	case c.serving:
		return DiskUpToDate
	case c.sb.Inconsistent || c.sb.Current == 0:
		return DiskInconsistent
	case c.sb.Outdated || !inSet:
		return DiskOutdated
	case c.sb.Vote.Marked:
		return DiskConsistent
	}
	return DiskUpToDate
}

// Generation is the identity of our data's history.
func (c *Core) Generation() uint64 { return c.sb.Current }

// Stats counts since the start.
func (c *Core) Stats() Stats { return c.stats }

// Describe says what every operation in flight waits for, for traces.
func (c *Core) Describe() string {
	s := fmt.Sprintf("serving=%v until=%d hold=%b counted=%b settled=%v job=%v want=%b empty=%d waiting=%d retiring=%v", c.serving, c.until, c.hold, c.counted, c.settled, c.job.busy, c.job.want, len(c.al.empty), len(c.al.waiting), c.al.retiring)
	for i := range c.peers {
		p := &c.peers[i]
		s += fmt.Sprintf("; %s: %v dirty=%d level=%v grow=%d rs=%d/%d/%d", p.name, p.session, p.bits.count, p.level, p.grow, p.rs.active, len(p.rs.synced), len(p.rs.flushing))
	}
	for _, list := range [][]uint32{c.active, c.queue} {
		for _, i := range list {
			o := c.ops[i]
			s += fmt.Sprintf("; %x kind=%d origin=%d phase=%d %d+%d local=%v ack=%b need=%b via=%b sent=%v", o.tag(), o.kind, o.origin, o.phase, o.off, o.len, o.local, o.ackOf, o.need, o.via, o.sent)
		}
		s += "; queue:"
	}
	return s
}
