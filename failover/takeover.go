package failover

import "fmt"

// Everything by which a node becomes primary without being asked. There is one
// detector (rule 5.5): no promise of ours is left, because no primary has asked
// for one for as long as we promised. Told as its events:
//
//	standby                                    witness
//	  last grant to the primary
//	  ... G: nobody asks for another
//	  the hold of its Goodbye, if it said one
//	  Read ─────────────────────────────────▶
//	  ◀──────────────────────────────────────  names us, not paused, not marked
//	  Prepare(Promote), CAS epoch+1 ────────▶
//
// The same way brings back a node after its own freeze, after a blackout, and
// the recorded primary after a restart; only who has to wait for what differs.

const (
	// retryTakeOver spaces attempts that came to nothing: the volume could not
	// prepare, or somebody else changed the record at that moment.
	retryTakeOver = 1 * second
	// watchEvery is how often the record is read while nobody is known to serve.
	watchEvery = 1 * second
	// preferAfter is for how long the preferred node follows a primary, in the
	// set, before it asks for the service: a node that comes and goes must not
	// move it each time.
	preferAfter = 30 * second
)

// takeOver starts an operation of our own if its time has come.
func (c *Core) takeOver(now int64) {
	if c.role != Secondary || c.op.kind != noOp || c.cas.state != casIdle || c.resumeAt > now {
		return
	}
	if c.trouble != nil || c.rec == nil || c.good < c.resumeBy {
		return
	}
	if p := c.servingPeer(); p >= 0 {
		c.moveHome(now, p)
		return
	}
	switch {
	case c.mayResume():
		// The last read was after whatever ended our term: a second one would only
		// make an agent restart longer.
		c.byItself(now, operation{kind: opPromote, own: ownResume, asker: -1})
	case !c.cfg.Auto || c.takeOverFrom() > now || c.cfg.Bug == NeverTakeOver:
	case c.goodStart < c.takeOverFrom() && c.cfg.Bug != PromoteOnOldRecord:
		// What the record said before our promise ran out may have changed in it.
		if c.readTag == 0 || c.readStart < c.takeOverFrom() {
			c.needRead(now)
		}
	case c.rec.Paused != nil && c.cfg.Bug != TakeOverPaused || c.claimTrouble() != "":
	default:
		c.byItself(now, operation{kind: opPromote, own: ownTakeOver, asker: -1})
	}
}

// byItself begins op with the read that has just been answered.
func (c *Core) byItself(now int64, op operation) {
	c.resumeAt = now + retryTakeOver
	c.promote(now, op)
	if c.cfg.Bug != PromoteOnOldRecord {
		c.op.read = c.good
	}
}

// claimTrouble is why this node cannot claim the record as last read; "" if it
// can.
func (c *Core) claimTrouble() string {
	if why := c.copyTrouble(); why != "" {
		return why
	}
	why, _ := c.obstacle()
	return why
}

// takeOverFrom is when this node may start to take over, if nobody serves.
func (c *Core) takeOverFrom() int64 {
	t := c.promiseEnd()
	if c.cfg.Bug == TakeOverEarly {
		t -= t / 4
	}
	if c.rec != nil {
		// Its agent restarts and comes back by itself, which is a shorter pause than
		// a takeover and no resync.
		if p := c.index(c.rec.Primary); p >= 0 && c.cfg.Restart > 0 {
			t = max(t, c.peers[p].awayTill)
		}
	}
	return t + c.turn()*c.cfg.Heartbeat
}

// turn is how many of the survivors go before this node: all of them have every
// acknowledged write, but two that claim at once only cost each other time. The
// preferred node goes first, then the recorded primary, then by name. It is
// courtesy only: the record decides.
func (c *Core) turn() (n int64) {
	r := c.rec
	if r == nil {
		return 0
	}
	rank := func(name string) int {
		switch name {
		case c.cfg.Prefer:
			return 0
		case r.Primary:
			return 1
		}
		return 2
	}
	for p, name := range c.cfg.Peers {
		q := &c.peers[p]
		if !q.up || !r.Has(name) || !q.info.Usable || q.info.Marked {
			continue
		}
		if a, b := rank(name), rank(c.cfg.Self); a < b || a == b && name < c.cfg.Self {
			n++
		}
	}
	return n
}

// moveHome asks p, which serves, for the service if this node is the preferred one.
func (c *Core) moveHome(now int64, p int) {
	q := &c.peers[p]
	if !c.cfg.Auto || c.cfg.Prefer != c.cfg.Self || c.rec.Paused != nil || q.followed != c.hard.Epoch || c.claimTrouble() != "" || c.unfitTill > now {
		c.homeAt, c.homeWait = 0, 0
		return
	}
	switch {
	case c.homeAt == 0:
		c.homeAt, c.homeWait = now+preferAfter, preferAfter
	case c.homeAt <= now:
		// A primary whose service does not stop has stopped some of it each time that it
		// is asked, and starts it again.
		c.homeWait = min(2*c.homeWait, unfitFor)
		c.homeAt = now + c.homeWait
		c.promote(now, operation{own: ownMove, asker: -1})
	}
}

// owned says what an operation is that nobody asked for.
type owned uint8

const (
	notOwn      owned = iota // an operator asked, or a peer that hands over
	ownResume                // rule 5.8: the recorded primary comes back
	ownTakeOver              // rule 5.5: the lease that we granted has run out
	ownMove                  // this node is the preferred one
)

// stillDue repeats, for an operation of our own, what made it start.
func (c *Core) stillDue(now int64) string {
	switch c.op.own {
	case ownResume:
		if !c.mayResume() {
			return "the record has changed"
		}
	case ownTakeOver, ownMove:
		if c.rec.Paused != nil && c.cfg.Bug != TakeOverPaused {
			return fmt.Sprintf("automatic promotion was paused on %s", c.rec.Paused.By)
		}
	}
	return ""
}

// TakeOverAt is when this node means to take over, 0 if it does not.
func (c *Core) TakeOverAt() int64 {
	if c.role != Secondary || c.op.kind != noOp || !c.cfg.Auto || c.rec == nil || c.rec.Paused != nil || c.servingPeer() >= 0 || c.claimTrouble() != "" {
		return 0
	}
	return max(c.takeOverFrom(), c.resumeAt)
}
