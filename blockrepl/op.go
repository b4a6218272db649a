package blockrepl

import (
	"fmt"
	"slices"

	"tandem/blockrepl/wire"
)

// origin says for whom an operation runs.
type origin uint8

const (
	client        origin = iota
	remote               // a primary's write, zero or flush, on its Secondary
	resyncSource         // a chunk that we read for a peer; holds its range shared
	resyncApply          // blocks that differ, on the target
	resyncFlush          // the target's flush before bits are cleared
	flushRetire          // before extents leave the activity log
	flushCap             // bounds the memory of what peers have not flushed
	flushQuiesce         // the last flush of a planned stop
	flushShrink          // local, before the CAS of a shrink
	flushAlone           // local, before the CAS of a promotion
	flushGrow            // local, before the CAS of a grow
	flushSyncDone        // local, before the target takes the source's generation
)

// op is one operation from Submit (or its frame's arrival) to its release.
type op struct {
	phase  phase
	kind   OpKind
	origin origin
	flags  uint8
	rest   bool  // what Part has not yet taken of a long request; see Reserve
	heated bool  // holds references on its extents
	barred bool  // a peer that is being counted waits for its acknowledgement
	local  bool  // the disk has not answered
	sent   bool  // the reply is in the client's socket
	late   bool  // and still somebody reads the payload: Released will follow
	err    Errno // of the local disk
	ackOf  uint8 // peers that were sent it in their present session and have not answered
	need   uint8 // of those, the counted ones
	via    uint8 // counted peers that get it by resync: no session ran when it was issued, or its session broke
	peer   int8  // remote and resync: whose
	asked  bool  // resyncSource: the digests are out
	life   uint32
	slot   uint32
	link   uint32 // remote and resync: which session of the peer
	num    uint64 // Core.seq at its start
	ptag   uint64 // remote: the peer's tag
	off    int64
	len    int64
	flush  uint64 // flushes: Core.flushGen
}

func (o *op) tag() Tag { return Tag(uint64(o.life)<<32 | uint64(o.slot)) }

func (o *op) extents(shift uint8) (lo, hi uint32) {
	return uint32(o.off >> shift), uint32((o.off + o.len + 1<<shift - 1) >> shift)
}

func (o *op) writes() bool { return o.kind == OpWrite || o.kind == OpZero }

func (o *op) overlaps(x *op) bool { return o.off < x.off+x.len && x.off < o.off+o.len }

func (c *Core) newOp(kind OpKind, from origin, off, n int64, flags uint8) *op {
	if len(c.freeOps) == 0 {
		c.ops = append(c.ops, &op{slot: uint32(len(c.ops))})
		c.freeOps = append(c.freeOps, uint32(len(c.ops)-1))
	}
	i := c.freeOps[len(c.freeOps)-1]
	c.freeOps = c.freeOps[:len(c.freeOps)-1]
	o := c.ops[i]
	c.seq++
	*o = op{slot: i, life: o.life + 1, phase: queued, kind: kind, origin: from, off: off, len: n, flags: flags, num: c.seq, peer: -1}
	return o
}

// find is the operation that tag names, or nil if it has ended.
func (c *Core) find(t Tag) *op {
	i := uint32(t)
	if int(i) >= len(c.ops) {
		return nil
	}
	o := c.ops[i]
	if o.life != uint32(t>>32) || o.phase == free {
		return nil
	}
	return o
}

// Serving tells whether Submit takes requests.
func (c *Core) Serving() bool { return c.serving }

// Submit begins a client's request. off and n are in bytes, checked against
// the volume by the caller; n is at most MaxOpLen, 0 for a flush. Exactly one
// Complete follows; after it the caller reports Sent.
func (c *Core) Submit(now int64, kind OpKind, off, n int64, flags uint8) Tag {
	c.now = now
	o := c.newOp(kind, client, off, n, flags)
	t := o.tag()
	if off < 0 || n < 0 || (n > MaxOpLen && (kind != OpRead || n > MaxReadLen)) || off > c.sb.VolumeSize-n {
		o.err = EINVAL
		c.refuse(o)
		return t
	}
	if !c.serving || c.quiescing || c.failed {
		o.err = ESHUTDOWN
		c.refuse(o)
		return t
	}
	if kind == OpFlush {
		c.issueFlush(o)
		return t
	}
	if c.mustWait(o, len(c.queue)) {
		c.queue = append(c.queue, o.slot)
		return t
	}
	c.admit(o)
	return t
}

// refuse completes o with its error before it has touched anything.
func (c *Core) refuse(o *op) {
	o.phase = told
	c.active = append(c.active, o.slot)
	c.emit(Effect{Kind: Complete, Tag: o.tag(), Err: o.err})
}

// mustWait: o's range is in use, or wanted by one of the first n in the queue.
// Two reads share a range. A write in flight excludes reads: what a read
// returned must never go away, and a write that is not on every counted copy
// may.
func (c *Core) mustWait(o *op, n int) bool {
	if c.cfg.Bug == BugNoOverlapLock {
		return false
	}
	for _, i := range c.active {
		x := c.ops[i]
		if x.kind == OpFlush || !o.overlaps(x) {
			continue
		}
		if o.kind == OpRead && x.kind == OpRead {
			continue
		}
		if o.kind == OpRead && c.cfg.Bug == BugReadInFlight {
			continue
		}
		if x.origin == resyncSource && c.cfg.Bug == BugResyncUnlocked {
			continue
		}
		return true
	}
	if o.kind != OpRead {
		for k := range c.peers {
			for _, i := range c.peers[k].rs.blocked {
				if o.overlaps(c.ops[i]) {
					return true
				}
			}
		}
	}
	for _, i := range c.queue[:n] {
		x := c.ops[i]
		if o.overlaps(x) && (o.kind != OpRead || x.kind != OpRead) {
			return true
		}
	}
	return false
}

// admit gives o its range. The order in which requests came is the order in
// which they get it, also before the activity log: a client that replays a
// request after an agent restart sends it before any new one, and it must not
// be overtaken by one that overlaps it.
func (c *Core) admit(o *op) {
	c.active = append(c.active, o.slot)
	switch {
	case o.rest:
		o.phase = cold // resync chunks may go ahead of it, as of any write that is cold
	case o.kind == OpRead:
		c.run(o)
	default:
		c.heat(o)
	}
}

// start runs o, whose extents are hot, unless a resync chunk went ahead of it
// while it was cold. Chunks may do that: the writes that hold the log's slots
// may be waiting for just such a chunk.
func (c *Core) start(o *op) {
	if o.origin == client && c.chunked(o) {
		o.phase = parked
		c.parked = append(c.parked, o.slot)
		return
	}
	c.run(o)
}

// chunked: a resync chunk that overlaps o is under way.
func (c *Core) chunked(o *op) bool {
	if c.cfg.Bug == BugResyncUnlocked {
		return false
	}
	for _, i := range c.active {
		if x := c.ops[i]; x.origin == resyncSource && x.phase == running && o.overlaps(x) {
			return true
		}
	}
	return false
}

// run does what o asks for, now that its range is its own and its extents are
// in the log on disk.
func (c *Core) run(o *op) {
	o.phase = running
	switch {
	case o.origin == remote:
		o.local = true
		c.emit(Effect{Kind: Apply, Op: o.kind, Flags: o.flags, Peer: int(o.peer), PeerTag: o.ptag, Tag: o.tag(), Off: o.off, Len: o.len})
		return
	case o.kind == OpRead:
		o.local = true
		c.emit(Effect{Kind: DiskRead, Tag: o.tag(), Off: o.off, Len: o.len})
		return
	}
	m := wire.Msg{Type: wire.Write, Flags: o.flags, Tag: uint64(o.tag()), Off: uint64(o.off), Len: uint32(o.len)}
	if o.kind == OpZero {
		m.Type = wire.Zero
	}
	for i := range c.peers {
		p := &c.peers[i]
		bit := uint8(1) << i
		if p.session != mirroring {
			c.dirty(p, o.off, o.len)
			o.via |= c.counted & bit
			continue
		}
		c.send(p, wire.Data, m)
		o.ackOf |= bit
		o.need |= c.counted & bit
		if p.outstanding == 0 {
			p.progress = c.now
		}
		p.outstanding++
	}
	if c.cfg.Bug == BugAckBeforePeer {
		o.need, o.via = 0, 0
	}
	o.local = true
	k := DiskWrite
	if o.kind == OpZero {
		k = DiskZero
	}
	c.emit(Effect{Kind: k, Tag: o.tag(), Off: o.off, Len: o.len, Flags: o.flags})
}

// issueFlush runs a client's flush, or one of our own that goes everywhere.
func (c *Core) issueFlush(o *op) {
	o.phase = running
	o.local = true
	c.flushGen++
	o.flush = c.flushGen
	c.active = append(c.active, o.slot)
	for i := range c.peers {
		p := &c.peers[i]
		bit := uint8(1) << i
		if p.session != mirroring {
			if o.origin == client {
				o.via |= c.counted & bit
			}
			continue
		}
		c.send(p, wire.Data, wire.Msg{Type: wire.Flush, Tag: uint64(o.tag())})
		p.unflushed.asked(o.flush)
		o.ackOf |= bit
		if c.counted&bit != 0 || o.origin != client {
			o.need |= bit
		}
		if p.outstanding == 0 {
			p.progress = c.now
		}
		p.outstanding++
	}
	if c.cfg.Bug == BugFlushLocalOnly && o.origin == client {
		o.need, o.via = 0, 0
	}
	c.emit(Effect{Kind: DiskFlush, Tag: o.tag()})
}

// flushAll flushes here and on every mirrored copy, for ourselves.
func (c *Core) flushAll(why origin) { c.issueFlush(c.newOp(OpFlush, why, 0, 0, 0)) }

// flushLocal flushes the local disk, for ourselves.
func (c *Core) flushLocal(why origin, p *peer) {
	o := c.newOp(OpFlush, why, 0, 0, 0)
	if p != nil {
		o.peer, o.link = int8(p.id), p.links
	}
	o.phase, o.local, o.ptag = running, true, c.preps
	c.active = append(c.active, o.slot)
	c.emit(Effect{Kind: DiskFlush, Tag: o.tag()})
}

// DiskDone is the local disk's answer.
func (c *Core) DiskDone(now int64, t Tag, err Errno) {
	c.now = now
	o := c.find(t)
	if o == nil || !o.local {
		return
	}
	o.local = false
	if err != OK {
		o.err = err
	}
	switch {
	case err == OK:
		// Whatever the flush was for, somebody forgets ranges because of it: an
		// older state of this disk must be noticed from here on.
		c.wroteSince = c.wroteSince || o.kind == OpFlush
	case err == EINVAL && o.origin == resyncApply:
		c.reset(&c.peers[o.peer], "resync data that make no sense")
	default:
		c.diskFailed(fmt.Sprintf("error %d at %d+%d", err, o.off, o.len))
	}
	switch o.origin {
	case remote:
		c.remoteDone(o)
	case resyncSource:
		c.rsRead(o)
	case resyncApply, resyncFlush:
		c.rsApplied(o)
	default:
		c.step(o)
		// A write that waits for resync is stable on our disk now: the chunk
		// that will bring it to the peer may have waited for this.
		for i := range c.peers {
			c.rsRetry(&c.peers[i])
		}
	}
	c.settle()
}

// step moves o on: complete when everybody has it and the gate is open.
func (c *Core) step(o *op) {
	if o.phase == told {
		c.release(o)
		return
	}
	if o.phase != running || o.local || o.need != 0 || o.via != 0 {
		return
	}
	if o.origin != client {
		c.ownFlushDone(o)
		return
	}
	if !c.gate() {
		o.phase = ready
		c.ready = append(c.ready, o.slot)
		return
	}
	c.complete(o)
}

// gate: completions and reads are allowed now. It is asked after the data was
// read: a lease that ended meanwhile makes the data worthless.
func (c *Core) gate() bool { return c.serving && c.hold == 0 && c.now < c.until && !c.failed }

func (c *Core) complete(o *op) {
	o.phase = told
	c.emit(Effect{Kind: Complete, Tag: o.tag(), Err: o.err})
	if o.kind == OpFlush {
		c.advanceMark()
	}
	if o.kind == OpRead {
		// Replayed, a read does no harm; and a client that takes no replies must
		// not keep writers out of what it has read.
		o.sent = true
		c.release(o)
		return
	}
	// A write's range stays locked until the reply is in the client's socket. Its
	// log slots do not: that reply may wait for a later part of the same request,
	// and the part for a slot.
	if c.cfg.Bug != BugHeatUntilSent {
		c.release(o)
	}
}

// openGate completes what waited for it.
func (c *Core) openGate() {
	if len(c.ready) == 0 || !c.gate() {
		return
	}
	r := c.ready
	c.ready = nil
	for _, i := range r {
		c.complete(c.ops[i])
	}
	if len(c.ready) == 0 {
		c.ready = r[:0]
	}
}

// Sent: the reply of t is in the client's socket, or will never be.
func (c *Core) Sent(now int64, t Tag) {
	c.now = now
	if o := c.find(t); o != nil && o.phase == told {
		o.sent = true
		c.release(o)
		if c.find(t) != nil { // o may be another operation by now
			o.late = true
		}
		c.settle()
	}
}

// Holds tells, right after Sent, whether the payload of t is still needed: a
// peer that is not counted, or the disk after a step-down, has not answered.
// Released follows when it is not any more.
func (c *Core) Holds(t Tag) bool {
	o := c.find(t)
	return o != nil && o.late
}

// release ends o when nobody can speak of it any more.
func (c *Core) release(o *op) {
	if o.phase != told || o.local || o.ackOf != 0 {
		return
	}
	if o.heated {
		// Every copy has answered: the log need not hold the extents for a
		// reply that a slow client has not yet read.
		o.heated = false
		lo, hi := o.extents(c.sb.ExtentShift)
		for e := lo; e < hi; e++ {
			c.al.release(e, c.seq, c.flushGen)
		}
		if len(c.al.waiting) > 0 {
			c.alPump()
		}
	}
	if o.origin == client && !o.sent {
		return
	}
	if o.late {
		c.emit(Effect{Kind: Released, Tag: o.tag()})
	}
	c.active = removeSlot(c.active, o.slot)
	ranged := o.kind != OpFlush
	o.phase = free
	c.freeOps = append(c.freeOps, o.slot)
	if ranged {
		c.wake()
	}
	if c.quiescing {
		c.quiesceStep()
	}
}

// wake admits what the released range was keeping: resync before the queue,
// because the operations in the queue may wait for it.
func (c *Core) wake() {
	for k := 0; k < len(c.parked); {
		o := c.ops[c.parked[k]]
		if c.chunked(o) {
			k++
			continue
		}
		c.parked = slices.Delete(c.parked, k, k+1)
		c.run(o)
	}
	for i := range c.peers {
		c.rsRetry(&c.peers[i])
	}
	for k := 0; k < len(c.queue); {
		o := c.ops[c.queue[k]]
		if c.mustWait(o, k) {
			k++
			continue
		}
		c.queue = slices.Delete(c.queue, k, k+1)
		c.admit(o)
	}
}

// ownFlushDone: one of our own flushes has everything it waited for.
func (c *Core) ownFlushDone(o *op) {
	o.phase = told
	from, peer, link, gen, num := o.origin, int(o.peer), o.link, o.flush, o.ptag
	c.release(o)
	if o.err != OK {
		return // the disk has failed; whoever waits learns it from there
	}
	switch from {
	case flushRetire:
		if c.al.retiring && c.al.flush == gen {
			c.retireFlushed()
		}
	case flushQuiesce:
		if gen == c.quietGen {
			c.quiesceFlushed()
		}
	case flushShrink:
		if num == c.preps {
			c.propose(PrepShrink)
		}
	case flushAlone:
		if num == c.preps {
			c.propose(PrepAlone)
		}
	case flushGrow:
		if p := &c.peers[peer]; p.link && p.links == link {
			p.growFlushed = true
			c.growStep(p)
		}
	case flushSyncDone:
		if p := &c.peers[peer]; p.link && p.links == link {
			c.takeGeneration(p)
		}
	}
}

// Waiting tells which peers clients wait for, and whether any request waits
// for the gate.
func (c *Core) Waiting() (mask uint8, gated bool) {
	for _, i := range c.active {
		o := c.ops[i]
		if o.origin == client && o.phase == running {
			mask |= o.need | o.via
		}
	}
	// An operation in line for the activity log may wait for a retirement,
	// and that for a peer's flush.
	if len(c.al.waiting) > 0 && c.serving {
		for _, i := range c.active {
			if o := c.ops[i]; o.origin == flushRetire {
				mask |= o.need
			}
		}
	}
	return mask, len(c.ready) > 0
}
