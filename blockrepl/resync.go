package blockrepl

import "tandem/blockrepl/wire"

// resync is the source's side of bringing one peer up to date. The bitmap is
// walked once from front to back in chunks; a chunk's range is locked from
// before it is read until the target has written it, because bulk and
// application writes travel in different streams. Written is not flushed:
// bits are cleared when the target has confirmed a flush.
type resync struct {
	running  bool
	active   int      // chunks under way, those waiting for their range included
	cursor   int      // next block to look at
	urgent   bool     // clients wait for writes that this resync has to bring
	first    []rng    // their ranges, not yet begun
	blocked  []uint32 // chunks that wait for their range
	synced   []rng    // written by the target since the last flush was sent
	flushing []rng    // covered by the flush on its way
	flushTag uint64
	flushes  uint64

	begun       int64 // bytes of chunks begun
	Done, Total int64 // bytes compared, bytes there were to compare
	Sent        int64 // bytes that differed and travelled
	Began       int64 // ns
}

// Bounds of a resync.
const (
	chunkBlocks = 64  // blocks a chunk: one digest each in one frame
	windowIdle  = 8   // chunks under way when nobody else wants the disks
	windowBusy  = 1   // and when applications do
	flushEvery  = 64  // chunks between two flushes of the target
	rateSlack   = 0.1 // seconds of its rate that a limited resync may run ahead
)

func (r *resync) idle() bool {
	return r.active == 0 && len(r.synced) == 0 && len(r.flushing) == 0
}

func (c *Core) rsBegin(p *peer) {
	p.rs = resync{running: true, Began: c.now, Total: int64(p.bits.count) << c.sb.BlockShift, flushes: p.rs.flushes}
	// Writes that were issued while a counted peer was away hold their clients
	// up. They go first, and nothing slows them down.
	for _, i := range c.active {
		if o := c.ops[i]; o.via&(1<<p.id) != 0 && o.writes() {
			p.rs.first = append(p.rs.first, rng{o.off, o.len})
			p.rs.urgent = true
		}
	}
	if p.bits.count > 0 {
		c.event("resync to %s begins: %d bytes to compare", p.name, p.rs.Total)
	}
}

func (c *Core) rsEnd(p *peer) {
	if !p.rs.running {
		return
	}
	p.rs.running = false
	if p.rs.Total > 0 {
		c.event("resync to %s ends: %d bytes compared, %d differed", p.name, p.rs.Done, p.rs.Sent)
	}
}

// rsAbort forgets the session's chunks. The bits are all still there.
func (c *Core) rsAbort(p *peer) {
	for _, i := range p.rs.blocked {
		c.ops[i].phase = free
		c.freeOps = append(c.freeOps, i)
	}
	p.rs.blocked = nil
	for _, i := range append([]uint32(nil), c.active...) {
		o := c.ops[i]
		if o.origin == resyncSource && int(o.peer) == p.id && o.phase == running {
			c.rsDrop(o)
		}
	}
	p.rs = resync{flushes: p.rs.flushes, Done: p.rs.Done, Total: p.rs.Total, Sent: p.rs.Sent, Began: p.rs.Began}
}

// rsDrop lets go of a chunk that was begun. If the disk has still to answer,
// the answer finds the operation and ends it.
func (c *Core) rsDrop(o *op) {
	c.emit(Effect{Kind: RsDrop, Tag: o.tag()})
	o.phase, o.sent = told, true
	c.release(o)
}

func (c *Core) rsWindow(p *peer) int {
	if p.rs.urgent {
		return windowIdle // the applications are waiting for this very resync
	}
	if len(c.queue) > 0 || len(c.active) > windowIdle {
		return windowBusy
	}
	for _, i := range c.active {
		if c.ops[i].origin == client {
			return windowBusy
		}
	}
	return windowIdle
}

// rsPump begins chunks, and flushes when there is nothing left to begin.
func (c *Core) rsPump(p *peer) {
	r := &p.rs
	if !r.running || !c.serving || p.session != mirroring {
		return
	}
	bs := int64(1) << c.sb.BlockShift
	for w := c.rsWindow(p); r.active < w && c.rsAllowed(r); {
		if r.urgent {
			c.rsUrgent(p)
			break
		}
		lo := p.bits.next(r.cursor)
		if lo >= p.bits.blocks {
			break
		}
		hi := p.bits.run(lo, chunkBlocks)
		r.cursor = hi
		off := int64(lo) * bs
		n := min(int64(hi)*bs, c.sb.VolumeSize) - off
		o := c.newOp(OpRead, resyncSource, off, n, 0)
		o.peer, o.link = int8(p.id), p.links
		r.active++
		r.begun += n
		c.rsTry(p, o)
	}
	switch {
	case len(r.flushing) > 0 || len(r.synced) == 0:
	case len(r.synced) >= flushEvery || r.active == 0:
		r.flushing, r.synced = r.synced, nil
		r.flushes++
		r.flushTag = r.flushes
		c.send(p, wire.Bulk, wire.Msg{Type: wire.RsFlush, Tag: r.flushTag})
	}
	if r.idle() && p.bits.count > 0 && p.bits.next(r.cursor) >= p.bits.blocks {
		r.cursor = 0 // something was marked behind the cursor
		if p.bits.count > 0 {
			c.rsPump(p)
		}
	}
}

// rsUrgent begins the chunks that clients wait for.
func (c *Core) rsUrgent(p *peer) {
	r := &p.rs
	for len(r.first) > 0 && r.active < windowIdle {
		x := &r.first[0]
		lo, hi := c.blockRange(x.off, x.len)
		end := min(hi, lo+chunkBlocks)
		off := int64(lo) << c.sb.BlockShift
		n := min(int64(end)<<c.sb.BlockShift, c.sb.VolumeSize) - off
		if end == hi {
			r.first = r.first[1:]
		} else {
			next := int64(end) << c.sb.BlockShift
			x.len -= next - x.off
			x.off = next
		}
		o := c.newOp(OpRead, resyncSource, off, n, 0)
		o.peer, o.link = int8(p.id), p.links
		r.active++
		r.begun += n
		c.rsTry(p, o)
	}
}

// rsAllowed keeps to Config.ResyncRate, give or take what one tick lets through.
func (c *Core) rsAllowed(r *resync) bool {
	rate := c.cfg.ResyncRate
	return rate <= 0 || r.urgent || float64(r.begun) <= float64(rate)*(float64(c.now-r.Began)/1e9+rateSlack)
}

// rsTry locks a chunk's range and reads it, or leaves it to rsRetry. A chunk
// looks only at what is active, never at the queue: what is queued may wait
// for a write that waits for this very chunk to reach its peer.
func (c *Core) rsTry(p *peer, o *op) {
	if c.cfg.Bug != BugResyncUnlocked {
		for _, i := range c.active {
			x := c.ops[i]
			if x.writes() && o.overlaps(x) && (x.phase == parked || x.local || x.ackOf&(1<<p.id) != 0) {
				p.rs.blocked = append(p.rs.blocked, o.slot)
				return
			}
		}
	}
	c.active = append(c.active, o.slot)
	o.phase, o.local = running, true
	c.emit(Effect{Kind: RsRead, Peer: p.id, Tag: o.tag(), Off: o.off, Len: o.len, Msg: wire.Msg{Epoch: p.epoch}})
}

func (c *Core) rsRetry(p *peer) {
	if len(p.rs.blocked) == 0 {
		return
	}
	b := p.rs.blocked
	p.rs.blocked = nil
	for _, i := range b {
		c.rsTry(p, c.ops[i])
	}
}

// rsRead: the digests are on their way to the target.
func (c *Core) rsRead(o *op) {
	if o.phase == told {
		c.release(o)
		return
	}
	o.asked = true
}

// chunk is the chunk that a target's answer speaks of.
func (c *Core) chunk(p *peer, m *wire.Msg) *op {
	o := c.find(Tag(m.Tag))
	if o == nil || o.origin != resyncSource || int(o.peer) != p.id || o.link != p.links || o.phase != running {
		c.reset(p, "%v of nothing", m.Type)
		return nil
	}
	return o
}

// rsNeed: the target says which blocks differ.
func (c *Core) rsNeed(p *peer, m *wire.Msg) {
	o := c.chunk(p, m)
	if o == nil {
		return
	}
	n := popcount(m.Body)
	blocks := int((o.len + 1<<c.sb.BlockShift - 1) >> c.sb.BlockShift)
	if len(m.Body) != (blocks+7)/8 || n > blocks {
		c.reset(p, "%v of %d blocks with %d bits set", m.Type, blocks, n)
		return
	}
	c.stats.Compared += uint64(o.len)
	if n == 0 {
		c.rsChunkDone(p, o)
		return
	}
	sent := min(int64(n)<<c.sb.BlockShift, o.len)
	c.stats.Resynced += uint64(sent)
	p.rs.Sent += sent
	c.emit(Effect{Kind: RsSend, Peer: p.id, Tag: o.tag(), Off: o.off, Len: o.len, Data: append([]byte(nil), m.Body...), Msg: wire.Msg{Epoch: p.epoch}})
}

// rsAcked: the target has written what differed.
func (c *Core) rsAcked(p *peer, m *wire.Msg) {
	if o := c.chunk(p, m); o != nil {
		c.rsChunkDone(p, o)
	}
}

func (c *Core) rsChunkDone(p *peer, o *op) {
	p.rs.active--
	p.rs.Done += o.len
	p.rs.synced = append(p.rs.synced, rng{o.off, o.len})
	if c.cfg.Bug == BugClearUnflushed {
		lo, hi := c.blockRange(o.off, o.len)
		p.bits.clear(lo, hi)
	}
	c.rsDrop(o)
	c.rsPump(p)
	c.checkCaughtUp(p)
}

// rsFlushed: the target has flushed; the bits may go.
func (c *Core) rsFlushed(p *peer, m *wire.Msg) {
	r := &p.rs
	if len(r.flushing) == 0 || m.Tag != r.flushTag {
		c.reset(p, "%v of nothing", m.Type)
		return
	}
	for _, x := range r.flushing {
		lo, hi := c.blockRange(x.off, x.len)
		p.bits.clear(lo, hi)
	}
	r.flushing = nil
	if r.urgent && len(r.first) == 0 && r.active == 0 && len(r.synced) == 0 {
		r.urgent = false
	}
	bit := uint8(1) << p.id
	for _, i := range append([]uint32(nil), c.active...) {
		o := c.ops[i]
		if o.via&bit == 0 || !o.writes() || o.phase != running {
			continue
		}
		if lo, hi := c.blockRange(o.off, o.len); p.bits.next(lo) >= hi {
			o.via &^= bit
			c.step(o)
		}
	}
	c.rsPump(p)
	c.checkCaughtUp(p)
}

// rsApplied: our disk has what a source sent, or has flushed it.
func (c *Core) rsApplied(o *op) {
	p := &c.peers[o.peer]
	if p.link && p.links == o.link && p.session == mirroring && o.err == OK {
		t := wire.RsAck
		if o.origin == resyncFlush {
			t = wire.RsFlushed
		}
		c.send(p, wire.Bulk, wire.Msg{Type: t, Tag: o.ptag})
	}
	c.endTheirs(o, p)
}
