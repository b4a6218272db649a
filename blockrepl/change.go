package blockrepl

import (
	"encoding/binary"
	"slices"

	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

// This file is what the layer that decides who is primary asks of the volume.

// Prepare does what must be true before a CAS is sent; Ready is the answer.
func (c *Core) Prepare(now int64, what Prep, peer int) {
	c.now = now
	c.preps++
	c.prepPeer, c.preparing = peer, what
	switch what {
	case PrepAlone:
		c.refusing, c.alone = true, true
		for i := range c.peers {
			c.reset(&c.peers[i], "this node is about to promote")
		}
		c.aloneStep()
	case PrepShrink:
		c.hold |= 1 << peer
		c.asking, c.asked = false, 0
		c.flushLocal(flushShrink, nil)
	case PrepGrow:
		p := &c.peers[peer]
		if !c.serving || !c.caughtUp(p) || c.hold&(1<<peer) != 0 {
			c.emit(Effect{Kind: Ready, Prep: PrepGrow, Peer: peer, Err: EIO, Text: "the peer is not caught up"})
			return
		}
		bit := uint8(1) << peer
		c.counted |= bit
		p.grow, p.growFlushed, p.growAcked = growBarrier, false, false
		p.barrierLeft = 0
		// What was sent before the peer was counted, and not acknowledged,
		// may complete without it: not one such write may be left when the
		// CAS goes out.
		for _, i := range c.active {
			o := c.ops[i]
			if o.ackOf&bit == 0 || c.cfg.Bug == BugCountUnacked {
				continue
			}
			p.barrierLeft++
			o.barred = true
			if o.phase != told {
				o.need |= bit
			}
			if o.phase == ready {
				// It has waited for the gate only; now it waits for the peer too.
				o.phase = running
				c.ready = removeSlot(c.ready, o.slot)
			}
		}
		c.growStep(p)
	}
}

// Abort takes a preparation back: the CAS is decided no, or was never sent.
func (c *Core) Abort(now int64, what Prep, peer int) {
	c.now = now
	c.preps++
	c.preparing = 0
	switch what {
	case PrepAlone:
		c.refusing, c.alone = false, false
		for i := range c.peers {
			c.greet(&c.peers[i])
		}
	case PrepShrink:
		c.hold &^= 1 << peer
		c.asking, c.asked = false, 0
		c.openGate()
	case PrepGrow:
		c.peers[peer].grow = notGrowing
	}
}

// aloneStep: a candidate lets what it had accepted reach its disk.
func (c *Core) aloneStep() {
	for i := range c.peers {
		if p := &c.peers[i]; p.accepted > 0 || p.session > greeting {
			return
		}
	}
	if !c.settled || !c.alone {
		return
	}
	c.alone = false
	c.flushLocal(flushAlone, nil)
}

// propose makes the generation that a CAS will name durable before it is
// sent. A proposal stays until it is adopted, over restarts and refused
// changes: the CAS of a former life may still land, and then the record names
// a generation that this node must be found to carry.
func (c *Core) propose(what Prep) {
	if c.sb.Proposed == 0 {
		c.sb.Proposed = c.draw()
	}
	g := c.sb.Proposed
	c.emit(Effect{Kind: CopyChanged})
	n, peer := c.preps, c.prepPeer
	c.after(wantSuper, func() {
		if n == c.preps && what == PrepShrink {
			c.askOthers(g)
		} else if n == c.preps {
			c.preparing = 0
			c.emit(Effect{Kind: Ready, Prep: what, Peer: peer, Gen: g})
		}
	})
}

func (c *Core) growSync(p *peer) {
	b := []byte{}
	for _, g := range c.sb.History {
		b = binary.LittleEndian.AppendUint64(b, g)
	}
	b = c.bases(p, b)
	c.send(p, wire.Ctl, wire.Msg{Type: wire.SyncDone, Off: c.sb.Current, Body: b})
	c.flushLocal(flushGrow, p)
}

func (c *Core) growStep(p *peer) {
	if p.grow == growBarrier && p.barrierLeft == 0 {
		p.grow = growFlush
		c.growSync(p)
	}
	if p.grow != growFlush || !p.growFlushed || !p.growAcked {
		return
	}
	// The peer carries our generation: from here on its bitmap counts from
	// the generation after this one.
	p.grow = growSave
	mine := &c.sb.Peers[p.slot]
	mine.Base, mine.DiskID = 0, p.hello.DiskID
	mine.Mark = max(mine.Mark, p.hello.Mark)
	g, links := c.sb.Current, p.links
	c.after(wantSuper|wantPages, func() {
		if p.grow != growSave || p.links != links {
			return // the link broke, and LinkDown has said so
		}
		p.grow = notGrowing
		if p.cleanDue {
			p.cleanDue = false
			c.send(p, wire.Ctl, wire.Msg{Type: wire.Clean})
		}
		c.emit(Effect{Kind: Ready, Prep: PrepGrow, Peer: p.id, Gen: g})
		if !c.pair() {
			// The others should know at once that it is level. It may have been
			// before: an earlier grow was cut short when it had our generation.
			c.checkCaughtUp(p)
			c.tellLevel()
		}
	})
}

// bump adopts the proposed generation. Who carried the old one is behind from
// here on, by what its bitmap says; one that stays counted until it has said
// that it carries the new one, too.
//
// What we heard of as a Secondary goes into the history: the last primary may
// carry it, if its CAS landed. Our bits count from before it either way.
func (c *Core) bump() {
	old := c.sb.Current
	c.pushHistory(old)
	if c.cfg.Bug != BugNotHeard {
		c.pushHistory(c.sb.Heard)
	}
	c.sb.Current, c.sb.Proposed, c.sb.Heard = c.sb.Proposed, 0, 0
	for i := range c.peers {
		if b := &c.sb.Peers[c.peers[i].slot].Base; *b == 0 {
			*b = old
		}
		c.peers[i].knows = 0
	}
	c.emit(Effect{Kind: CopyChanged})
}

// Shrunk: the record without peer is decided. The generation and the dirty
// ranges become durable, then the completions go on.
func (c *Core) Shrunk(now int64, peer int) {
	c.now = now
	bit := uint8(1) << peer
	p := &c.peers[peer]
	c.counted &^= bit
	if p.session == starting || p.session == mirroring && !p.level && p.bits.count > 0 {
		c.reset(p, "it left the in-sync set while it was catching up")
	}
	p.grow = notGrowing
	c.unlevel(p)
	c.bump()
	c.each(c.counted, c.sendAdopt)
	links := p.links
	done := func() {
		if c.hold &^= bit; c.cfg.Bug == BugHoldOneFlag {
			c.hold = 0
		}
		for _, i := range append([]uint32(nil), c.active...) {
			o := c.ops[i]
			if o.origin != client || (o.need|o.via)&bit == 0 {
				continue
			}
			o.need &^= bit
			o.via &^= bit
			c.step(o)
		}
		c.openGate()
		if p.link && p.links == links && p.session == leaving && c.serving {
			if p.problem != "" {
				p.to(apart)
			} else {
				c.begin(p)
			}
		}
		c.checkCaughtUp(p)
	}
	if c.cfg.Bug == BugReleaseEarly {
		done()
		c.after(wantSuper|wantPages, nil)
		return
	}
	c.after(wantSuper|wantPages, done)
}

// BecomePrimary: the record that names us alone, in epoch, is decided. Began
// is the answer, when the vote, the generation and the dirty bits are durable.
func (c *Core) BecomePrimary(now int64, epoch uint64, v meta.Vote) {
	c.now = now
	c.sb.Vote = v
	c.counted = 0
	c.bump()
	c.sb.Inconsistent, c.sb.Outdated = false, false
	if c.cfg.Bug != BugNoBitsOnPromotion {
		c.logToBits()
	}
	c.becoming = true
	c.after(wantSuper|wantPages, func() {
		c.becoming, c.refusing, c.alone = false, false, false
		c.al.clear()
		c.serving, c.quiescing, c.quiet, c.hold = true, false, false, 0
		c.epoch = epoch
		c.until = 0
		c.emit(Effect{Kind: Began})
		for i := range c.peers {
			c.greet(&c.peers[i])
		}
	})
}

// handOverPatience is how long a link outlives a planned stop, ns.
const handOverPatience = 500e6

// logToBits marks the activity log's extents for every peer.
func (c *Core) logToBits() {
	if c.cfg.Bug == BugNoBitsOnStepDown {
		return
	}
	for i := range c.al.slots {
		if s := &c.al.slots[i]; s.state != slotEmpty {
			c.dirtyExtent(s.extent)
		}
	}
}

// Serve moves the end of the time in which completions are allowed.
func (c *Core) Serve(now, until int64) {
	c.now = now
	c.until = until
	c.openGate()
}

// Counted is the peers that acks and flushes wait for, as a mask.
func (c *Core) Counted() uint8 { return c.counted }

// Quiesce stops in order: requests already taken complete, new ones are
// refused, everything is flushed everywhere, the activity log becomes empty
// on every copy, so that the next primary has nothing to compare. Stopped is
// the answer.
func (c *Core) Quiesce(now int64) {
	c.now = now
	if !c.serving {
		c.emit(Effect{Kind: Stopped, Err: ESHUTDOWN})
		return
	}
	c.quiescing, c.quiet = true, false
	c.quiesceStep()
}

// Unquiesce takes requests again.
func (c *Core) Unquiesce(now int64) {
	c.now = now
	c.quiescing, c.quiet = false, false
}

func (c *Core) quiesceStep() {
	if c.quiet || !c.serving || len(c.queue) > 0 || len(c.al.waiting) > 0 || c.al.retiring {
		return
	}
	for _, i := range c.active {
		if o := c.ops[i]; o.origin == client || o.ackOf != 0 {
			return
		}
	}
	c.quiet = true
	c.quietGen = c.flushGen + 1
	c.flushAll(flushQuiesce)
}

func (c *Core) quiesceFlushed() {
	if !c.quiescing {
		return
	}
	c.after(wantPages, func() {
		if !c.quiescing || !c.serving {
			return
		}
		// A peer that is counted and has no session, or has not caught up, lacks
		// something: the log stays.
		clean := true
		c.each(c.counted, func(p *peer) { clean = clean && c.caughtUp(p) })
		if clean {
			c.each(0xff, func(p *peer) {
				if p.session == mirroring {
					c.others(p, func(q *peer) { c.sendLacks(p, q, 0, q.bits.n) })
					c.send(p, wire.Data, wire.Msg{Type: wire.HotSet, Body: []byte{}})
				}
			})
			c.al.clear()
			c.after(wantAL, func() { c.emit(Effect{Kind: Stopped}) })
			return
		}
		c.emit(Effect{Kind: Stopped})
	})
}

// StepDown ends our term. Every request fails; what was in flight and what
// the activity log names becomes dirty bits, durably, before the next session.
// After a planned stop (handedOver) the links are left to the new primary to
// take down, so that what was said last still arrives.
func (c *Core) StepDown(now int64, handedOver bool) {
	c.now = now
	if !c.serving {
		return
	}
	c.preps++
	c.preparing, c.quietGen = 0, 0
	c.serving, c.hold, c.asking, c.asked, c.quiescing, c.quiet = false, 0, false, 0, false, false
	c.settled = false
	c.counted = 0
	for i := range c.peers {
		if handedOver {
			c.peers[i].resetAt = now + handOverPatience
		} else {
			c.reset(&c.peers[i], "no longer primary")
		}
		c.peers[i].grow, c.peers[i].level, c.peers[i].knows = notGrowing, false, 0
	}
	c.al.waiting, c.parked = nil, nil
	c.active = append(c.active, c.queue...)
	c.queue = nil
	c.ready = nil
	for _, i := range append([]uint32(nil), c.active...) {
		o := c.ops[i]
		if o.rest {
			c.drop(o)
			continue
		}
		o.need, o.via = 0, 0
		if o.origin == client && o.phase != told {
			o.phase, o.err = told, ESHUTDOWN
			c.emit(Effect{Kind: Complete, Tag: o.tag(), Err: ESHUTDOWN})
		}
	}
	c.settle()
}

// settle: after a step-down, when the disk has answered everything and the
// links are down, the log becomes bits and the node may take part again.
func (c *Core) settle() {
	if c.settled || c.settling || c.serving || c.becoming {
		return
	}
	for _, i := range c.active {
		if o := c.ops[i]; o.local && o.origin == client {
			return
		}
	}
	for i := range c.peers {
		if c.peers[i].session > greeting {
			return
		}
	}
	c.settling = true
	c.logToBits()
	c.after(wantPages, func() {
		c.al.clear()
		c.settling, c.settled = false, true
		for i := range c.peers {
			c.greet(&c.peers[i])
		}
		c.aloneStep()
	})
}

// Forget drops what the metadata keep of a node that is no peer of this life:
// its slot is free for another from then on. Forgot is the answer; false: there
// is nothing of that name to drop. The bits go with the slot. They are a claim
// about a copy that will never be brought up to date by them: a node of that name
// that comes after all gets its slot anew, with every bit set.
func (c *Core) Forget(now int64, node string) bool {
	c.now = now
	i := slices.IndexFunc(c.sb.Peers[:], func(p meta.Peer) bool { return p.Name == node })
	if node == "" || i < 0 || slices.ContainsFunc(c.peers, func(p peer) bool { return p.slot == i }) {
		return false
	}
	c.sb.Peers[i] = meta.Peer{}
	c.after(wantSuper, func() { c.emit(Effect{Kind: Forgot, Peer: -1, Text: node}) })
	return true
}

// Kept names the nodes of which the metadata keep something although they are no
// peers of this life.
func (c *Core) Kept() (names []string) {
	for i, p := range c.sb.Peers {
		if p.Name != "" && !slices.ContainsFunc(c.peers, func(q peer) bool { return q.slot == i }) {
			names = append(names, p.Name)
		}
	}
	return names
}

// Discard gives up this copy's claim to be data: the next resync compares it
// in full and overwrites what differs.
func (c *Core) Discard(now int64) bool {
	c.now = now
	if c.serving {
		return false
	}
	c.sb.Current, c.sb.Proposed, c.sb.Heard = 0, 0, 0
	clear(c.sb.History[:])
	c.sb.Inconsistent = true
	c.emit(Effect{Kind: CopyChanged})
	c.after(wantSuper, func() {
		for i := range c.peers {
			c.reset(&c.peers[i], "the local data was discarded")
		}
	})
	return true
}
