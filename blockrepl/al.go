package blockrepl

import (
	"encoding/binary"
	"slices"
)

// actlog is the activity log: the extents that may differ between the copies
// because something in them is in flight, or complete but not yet flushed
// everywhere. After a crash, and when a term ends in disorder, its extents
// become dirty bits for every peer; that is what bounds the resync. On a
// Secondary of more than two nodes it is a copy of its primary's (others.go).
//
// A slot's life:
//
//	empty ──▶ entering ──▶ hot ──▶ leaving ──▶ empty
//	   claim       AL block   retire    flushed on every mirrored copy,
//	               durable              bits of the others durable
//
// The whole set fits one 4 KiB block, so a transaction is one write and a
// torn one falls back to the block before: the extents that were entering
// have carried nothing yet, and those that left are merely still there.
type actlog struct {
	slots    []slot
	index    map[uint32]int // extent → slot
	empty    []int
	seq      uint64
	waiting  []uint32 // operations, oldest first
	retiring bool
	flush    uint64 // the flush that the present retirement waits for
	rounds   uint64 // counts retirements and clearings
	wrote    bool   // a job with the log is wanted or on its way
	epoch    uint64 // Secondary: of the session that filled it
	adopting *adoption
}

type slotState uint8

const (
	slotEmpty slotState = iota
	slotEntering
	slotHot
	slotLeaving
)

type slot struct {
	extent uint32
	state  slotState
	inJob  bool   // entering: it is in the block on its way
	quit   bool   // Secondary: the primary has retired it; it goes unless it is used again
	refs   int    // operations that have not been released
	used   uint64 // Core.seq at the last use
	gen    uint64 // Core.flushGen at the last release: a later full flush covers it
}

func (a *actlog) init(slots int, seq uint64) {
	a.slots = make([]slot, slots)
	a.index = make(map[uint32]int, slots)
	a.seq = seq
	a.clear()
}

func (a *actlog) clear() {
	a.empty = a.empty[:0]
	for i := len(a.slots) - 1; i >= 0; i-- {
		a.slots[i] = slot{}
		a.empty = append(a.empty, i)
	}
	clear(a.index)
	a.retiring, a.adopting, a.epoch = false, nil, 0
	a.rounds++
}

// snapshot is the hot set as the next block will say it.
func (a *actlog) snapshot() []uint32 {
	var ext []uint32
	for i := range a.slots {
		s := &a.slots[i]
		if s.state == slotEmpty {
			continue
		}
		if s.state == slotEntering {
			s.inJob = true
		}
		ext = append(ext, s.extent)
	}
	return ext
}

// durable: the block on its way has arrived.
func (a *actlog) durable() {
	for i := range a.slots {
		if s := &a.slots[i]; s.state == slotEntering && s.inJob {
			s.state, s.inJob = slotHot, false
		}
	}
	a.wrote = false
}

func (a *actlog) release(e uint32, seq, gen uint64) {
	i, ok := a.index[e]
	if !ok {
		return // cleared by a step-down
	}
	s := &a.slots[i]
	if s.refs > 0 {
		s.refs--
	}
	s.used, s.gen = seq, gen
}

// claim gives e a slot; there is an empty one.
func (a *actlog) claim(e uint32, seq uint64) {
	i := a.empty[len(a.empty)-1]
	a.empty = a.empty[:len(a.empty)-1]
	a.slots[i] = slot{extent: e, state: slotEntering, used: seq}
	a.index[e] = i
}

// remove empties slot i.
func (a *actlog) remove(i int) {
	delete(a.index, a.slots[i].extent)
	a.slots[i] = slot{}
	a.empty = append(a.empty, i)
}

// heat takes a reference on every extent of o and starts it, or o waits in
// line until all of them are hot.
func (c *Core) heat(o *op) {
	if c.cfg.Bug == BugSkipAL {
		c.start(o)
		return
	}
	lo, hi := o.extents(c.sb.ExtentShift)
	for e := lo; e < hi; e++ {
		i, ok := c.al.index[e]
		if !ok || c.al.slots[i].state == slotEntering || c.al.adopting != nil {
			o.phase = cold
			c.al.waiting = append(c.al.waiting, o.slot)
			c.alPump()
			return
		}
	}
	c.refer(o, lo, hi)
	c.start(o)
}

// refer references extents that are all hot; one that was leaving stays.
func (c *Core) refer(o *op, lo, hi uint32) {
	for e := lo; e < hi; e++ {
		s := &c.al.slots[c.al.index[e]]
		s.refs++
		s.used = c.seq
		s.state, s.quit = slotHot, false
	}
	o.heated = true
}

// alPump gives slots to the operations in line, oldest first: only the oldest
// may wait with slots of its own, so two cannot wait for each other.
func (c *Core) alPump() {
	a := &c.al
	if a.adopting != nil {
		return // the slots are those of the log that is taken over
	}
	enter := false
	for len(a.waiting) > 0 {
		o := c.ops[a.waiting[0]]
		lo, hi := o.extents(c.sb.ExtentShift)
		hot, short := true, 0
		for e := lo; e < hi; e++ {
			i, ok := a.index[e]
			if ok {
				s := &a.slots[i]
				s.used, s.quit = c.seq, false
				if s.state == slotLeaving {
					s.state = slotHot
				}
				hot = hot && s.state == slotHot
				continue
			}
			hot = false
			if len(a.empty) == 0 {
				short++
				continue
			}
			a.claim(e, c.seq)
			enter = true
		}
		if short > 0 {
			c.retire(short)
			break
		}
		if !hot {
			// Later operations may share the block that is about to go out.
			c.alAhead(&enter)
			break
		}
		a.waiting = a.waiting[1:]
		c.refer(o, lo, hi)
		c.start(o)
	}
	if enter {
		a.wrote = true
		c.after(wantAL, nil)
	}
	if len(a.empty) < len(a.slots)/8 {
		c.retire(0)
	}
}

// alAhead claims empty slots for the operations behind the oldest: the group
// in group commit. They take no reference, so nobody can block anybody.
func (c *Core) alAhead(enter *bool) {
	a := &c.al
	for _, w := range a.waiting[1:] {
		o := c.ops[w]
		lo, hi := o.extents(c.sb.ExtentShift)
		for e := lo; e < hi; e++ {
			if _, ok := a.index[e]; ok {
				continue
			}
			if len(a.empty) == 0 {
				return
			}
			a.claim(e, c.seq)
			*enter = true
		}
	}
}

// retire starts to free at least n slots, the longest unused first. Only a
// serving node retires: a Secondary drops what the primary tells it to.
func (c *Core) retire(n int) {
	a := &c.al
	if a.retiring || !c.serving {
		return
	}
	n = max(n, len(a.slots)/8, 1)
	var idle []int
	for i := range a.slots {
		if s := &a.slots[i]; s.state == slotHot && s.refs == 0 && !c.wanted(s.extent) {
			idle = append(idle, i)
		}
	}
	if len(idle) == 0 {
		return // operations in flight will come back here when they are released
	}
	slices.SortFunc(idle, func(x, y int) int {
		switch ux, uy := a.slots[x].used, a.slots[y].used; {
		case ux != uy && ux < uy:
			return -1
		case ux != uy:
			return 1
		}
		return x - y
	})
	idle = idle[:min(n, len(idle))]
	for _, i := range idle {
		a.slots[i].state = slotLeaving
	}
	a.retiring = true
	a.rounds++
	if c.cfg.Bug == BugEvictUnflushed {
		c.retireFlushed()
		return
	}
	a.flush = c.flushGen + 1
	c.flushAll(flushRetire)
}

// wanted: the oldest operation in line has this extent and must not lose it.
func (c *Core) wanted(e uint32) bool {
	if len(c.al.waiting) == 0 {
		return false
	}
	lo, hi := c.ops[c.al.waiting[0]].extents(c.sb.ExtentShift)
	return e >= lo && e < hi
}

// retireFlushed: every mirrored copy has flushed what lay in the leaving
// extents. What the other peers lack must be in their bitmaps on disk.
func (c *Core) retireFlushed() {
	round := c.al.rounds
	c.after(wantPages, func() {
		a := &c.al
		if a.rounds != round || !c.serving {
			return // another term
		}
		a.retiring = false
		var gone []byte
		for i := range a.slots {
			s := &a.slots[i]
			if s.state != slotLeaving {
				continue // used again meanwhile
			}
			gone = binary.LittleEndian.AppendUint32(gone, s.extent)
			a.remove(i)
			c.stats.Retired++
		}
		if len(gone) > 0 {
			c.each(0xff, func(p *peer) {
				if p.session == mirroring {
					c.sendRetire(p, gone)
				}
			})
		}
		// The removal need not be durable before the slot is used again: the
		// next block says both at once.
		if c.quiescing {
			c.quiesceStep()
		}
	})
}

// retired: the primary says that everything in these extents is on every copy
// (or in its bits), flushed.
func (c *Core) retired(body []byte, keep bool) {
	named := make(map[uint32]bool, len(body)/4)
	for ; len(body) >= 4; body = body[4:] {
		named[binary.LittleEndian.Uint32(body)] = true
	}
	if !c.pair() {
		c.dropLater(named, keep)
		return
	}
	for i := range c.al.slots {
		s := &c.al.slots[i]
		if s.state == slotHot && s.refs == 0 && named[s.extent] != keep {
			c.al.remove(i)
		}
	}
	c.alPump()
}

// hotSet is the extents of our log as a frame body.
func (c *Core) hotSet() []byte {
	b := []byte{}
	for i := range c.al.slots {
		if s := &c.al.slots[i]; s.state != slotEmpty {
			b = binary.LittleEndian.AppendUint32(b, s.extent)
		}
	}
	return b
}
