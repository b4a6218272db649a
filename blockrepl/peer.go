package blockrepl

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

// peer is one other node, and the session with it if there is one.
type peer struct {
	id        int
	name      string
	node      uint64 // its number on the wire
	slot      int    // of its bitmap
	link      bool   // a link is up
	links     uint32 // counts links: an operation of an older one is nobody's
	resetting bool   // we asked for the link to be taken down
	session   session
	epoch     uint64 // of the session: what its frames must carry
	said      bool   // our Hello is out
	heard     bool   // the peer's is in
	hello     hello
	told      meta.Vote // what our last Hello said of the vote,
	toldCopy  bool      // and whether our copy could be promoted

	bits      *bitmap
	unflushed unflushed
	capping   bool // a flush is on its way because unflushed grew long

	outstanding int   // operations that the peer was sent and has not answered
	resetAt     int64 // after a planned stop: when we take the link down if the peer has not
	progress    int64 // when it last answered, or was sent something while idle
	accepted    int   // its frames that are not yet on our disk
	acceptedLen int64 // and their bytes

	full    bool   // the verdict: compare everything
	judged  string // the table's row, for status
	problem string // why the session is apart

	rs resync

	grow        growth // how far Prepare(PrepGrow) has come
	barrierLeft int    // operations sent before the peer was counted, not yet acknowledged
	growFlushed bool
	growAcked   bool
	slow        bool // it was told to leave because clients waited too long
	level       bool // counted and caught up: nothing waits for resync any more
	cleanDue    bool // the peer keeps bits for us that it may drop when it has caught up
	history     []uint64
	bases       []uint64 // with history: from which generation its bits for the others count

	follow uint64 // Follow waits for another session's frames
	kept   bool   // it has our bits for the others, and our log: others.go
	knows  uint8  // the peers that it was told are level
}

// growth is how far a peer is on its way into the counted ones.
type growth uint8

const (
	notGrowing  growth = iota
	growBarrier        // counted; what it was sent before is not all acknowledged
	growFlush          // both flush, and the peer takes our generation
	growSave           // our metadata says that it carries it
)

// LinkUp says that a link to peer p is up.
func (c *Core) LinkUp(now int64, p int) {
	c.now = now
	q := &c.peers[p]
	q.link, q.resetting, q.resetAt, q.slow = true, false, 0, false
	q.links++
	c.greet(q)
}

// greet says Hello, if the time has come: nothing of an older session may
// still be on its way to our disk, because the new session's frames for the
// same blocks would not be ordered behind it.
func (c *Core) greet(p *peer) {
	if !p.link || p.said || c.refusing || !c.settled || c.becoming || c.failed {
		return
	}
	if p.accepted > 0 && c.cfg.Bug != BugHelloUndrained {
		return
	}
	if p.session == down {
		p.to(greeting)
	}
	p.said = true
	p.epoch = c.sb.Vote.Epoch
	if c.serving {
		p.epoch = c.epoch
	}
	c.sayHello(p)
	c.meet(p)
}

func (c *Core) sayHello(p *peer) {
	p.told, p.toldCopy = c.job.durVote, c.promotable()
	c.send(p, wire.Ctl, wire.Msg{Type: wire.Hello, Body: c.ourHello(p)})
}

// news says Hello again on a standing link, because what was said of the
// epoch or of the host-restart mark is no longer so. Two nodes that restarted
// together would otherwise each take the other for unmarked, for ever. Two
// Secondaries of a third tell each other what their copies are worth, too; the
// primary knows that better than we do.
func (c *Core) news(p *peer) {
	d := &c.job.durVote
	copies := p.session == met && !c.serving && !p.hello.Serving && p.toldCopy != c.promotable()
	if p.session >= met && (p.told.Epoch != d.Epoch || p.told.Marked != d.Marked) || copies {
		c.sayHello(p)
	}
}

// promotable: our copy could be promoted, as far as it goes.
func (c *Core) promotable() bool {
	usable, current, _, _ := c.Copy()
	return usable && current != 0
}

// copyNews tells the other Secondaries of a change that is durable.
func (c *Core) copyNews() {
	for i := range c.peers {
		c.news(&c.peers[i])
	}
}

// recvNews takes a second Hello. A change of role takes the link down, so here
// it can only be about the vote.
func (c *Core) recvNews(p *peer, h *hello) {
	if p.session < met || h.Serving != p.hello.Serving {
		c.reset(p, "a second hello that begins another session")
		return
	}
	p.hello = *h
	c.emitHello(p)
}

// meet: both Hellos are there.
func (c *Core) meet(p *peer) {
	if !p.said || !p.heard || p.session != greeting {
		return
	}
	p.to(met)
	h := &p.hello
	if h.Mark > c.sb.Peers[p.slot].Mark {
		c.remember(p, h.Mark)
	}
	if h.YourMark > c.sb.Mark && !c.serving && (h.Serving || !c.sb.Inconsistent) && c.sb.Current != 0 && !c.sb.Outdated && c.cfg.Bug != BugTrustPutBack {
		// The peer remembers a later state of this disk than the disk does.
		c.sb.Outdated = true
		c.event("peer %s has seen mark %d of this disk, which says %d: an older disk was put back; this copy is Outdated and will be compared in full", p.name, h.YourMark, c.sb.Mark)
		c.after(wantSuper, nil)
		c.emit(Effect{Kind: CopyChanged})
	}
	c.emitHello(p)
}

func (c *Core) emitHello(p *peer) {
	h := &p.hello
	c.emit(Effect{Kind: PeerHello, Peer: p.id, Hello: PeerHelloInfo{
		Epoch: h.Epoch, Serving: h.Serving, Marked: h.Marked, DiskID: h.DiskID, Replaces: h.Replaces, Usable: h.usable() && h.Mark >= c.sb.Peers[p.slot].Mark,
	}})
}

func (c *Core) remember(p *peer, mark uint64) {
	if mark > c.sb.Peers[p.slot].Mark {
		c.sb.Peers[p.slot].Mark = mark
		c.after(wantSuper, nil)
	}
}

// Follow lets us take a session with p, which serves in epoch. The epoch is
// durable here as the highest seen.
func (c *Core) Follow(now int64, peer int, epoch uint64) {
	c.now = now
	p := &c.peers[peer]
	if p.session != met || c.serving || c.refusing || c.becoming || !p.hello.Serving || p.hello.Epoch != epoch {
		return
	}
	p.follow = epoch
	c.settleFollow(p)
}

// beginFollow tells p what it may lack of what we have.
func (c *Core) beginFollow(p *peer, epoch uint64) {
	p.epoch = epoch
	p.to(following)
	c.tellTheNew(p, epoch)
	for pg := range c.sb.Pages() {
		lo := pg * meta.WordsPerPage
		if b := packWords(p.bits.words[lo:min(lo+meta.WordsPerPage, p.bits.n)]); b != nil {
			c.send(p, wire.Ctl, wire.Msg{Type: wire.DirtyPage, Tag: uint64(lo), Body: b})
		}
	}
	c.send(p, wire.Ctl, wire.Msg{Type: wire.DirtyEnd})
}

// LinkDown says that the link to peer p is down; nothing of it will arrive any
// more.
func (c *Core) LinkDown(now int64, peer int) {
	c.now = now
	p := &c.peers[peer]
	if !p.link {
		return
	}
	bit := uint8(1) << peer
	p.link, p.resetting, p.said, p.heard = false, false, false, false
	p.to(down)
	// What was not acknowledged may or may not be on the peer's disk; what was
	// acknowledged and not flushed may be lost if its host restarted.
	if c.cfg.Bug != BugForgetUnflushed {
		p.unflushed.lost(func(off, n int64) { c.dirty(p, off, n) })
	}
	p.unflushed = unflushed{}
	for _, i := range c.active {
		if o := c.ops[i]; o.ackOf&bit != 0 && o.writes() {
			c.dirty(p, o.off, o.len)
		}
	}
	for _, i := range append([]uint32(nil), c.active...) {
		o := c.ops[i]
		if o.ackOf&bit == 0 {
			continue
		}
		o.ackOf &^= bit
		if o.need&bit != 0 {
			o.need &^= bit
			if o.origin == client && c.counted&bit != 0 {
				o.via |= bit
			}
		}
		c.step(o)
	}
	p.outstanding, p.capping, p.cleanDue, p.kept, p.follow = 0, false, false, false, 0
	c.unlevel(p)
	c.rsAbort(p)
	if p.grow != notGrowing {
		p.grow = notGrowing
		c.emit(Effect{Kind: Ready, Prep: PrepGrow, Peer: peer, Err: EIO, Text: "the link broke"})
	}
	c.askedStep(bit)
	if c.alone {
		c.aloneStep()
	}
	c.others(p, c.settleFollow)
	c.settle()
	c.wake()
}

// Recv takes a frame. The tag it returns names the operation that the frame's
// payload belongs to: the caller keeps the payload until the operation's
// Apply or RsApply has been carried out. 0: the payload is not needed.
func (c *Core) Recv(now int64, peer int, ch wire.Channel, m *wire.Msg) Tag {
	c.now = now
	p := &c.peers[peer]
	if !p.link || p.resetting {
		return 0
	}
	if m.Type == wire.Hello {
		c.recvHello(p, m)
		return 0
	}
	if m.Type == wire.Mark {
		c.remember(p, m.Off)
		return 0
	}
	if p.session < met {
		c.reset(p, "%v before the handshake", m.Type)
		return 0
	}
	if m.Epoch != p.epoch && c.cfg.Bug != BugAcceptOldEpoch {
		// The primary's Hello said the epoch; a Secondary answers in it.
		c.reset(p, "%v of epoch %d in a session of epoch %d", m.Type, m.Epoch, p.epoch)
		return 0
	}
	if c.serving {
		c.recvAsPrimary(p, m)
		return 0
	}
	return c.recvAsSecondary(p, m)
}

func (c *Core) recvHello(p *peer, m *wire.Msg) {
	h, err := decodeHello(m.Body)
	if err == nil {
		err = c.acceptable(p, h)
	}
	if err != nil {
		p.problem = err.Error()
		c.reset(p, "hello refused: %v", err)
		return
	}
	if p.heard {
		c.recvNews(p, h)
		return
	}
	p.hello, p.heard, p.problem = *h, true, ""
	if h.Serving {
		p.epoch = h.Epoch
	}
	if p.said {
		if c.serving {
			p.epoch = c.epoch
		}
		c.meet(p)
	}
}

// recvAsPrimary takes what a Secondary says to us.
func (c *Core) recvAsPrimary(p *peer, m *wire.Msg) {
	switch m.Type {
	case wire.DirtyPage:
		if p.session != met || len(m.Body)%8 != 0 || m.Tag > uint64(p.bits.n) {
			c.reset(p, "unexpected %v", m.Type)
			return
		}
		if v, _ := c.compare(p); v == SplitBrain {
			// Nothing will be sent on account of these bits, and ours still say
			// how much was written here and not there: an operator has to choose.
			return
		}
		words := make([]uint64, len(m.Body)/8)
		for i := range words {
			words[i] = binary.LittleEndian.Uint64(m.Body[8*i:])
		}
		p.bits.or(int(m.Tag), words)
		p.cleanDue = true
	case wire.DirtyEnd:
		if p.session != met {
			c.reset(p, "unexpected %v", m.Type)
			return
		}
		p.to(judging)
		c.judge(p)
	case wire.SyncReady:
		if p.session != starting {
			c.reset(p, "unexpected %v", m.Type)
			return
		}
		p.to(mirroring)
		p.outstanding = 0
		c.emit(Effect{Kind: SessionUp, Peer: p.id})
		c.handOver(p)
	case wire.Kept:
		if p.session != mirroring || p.kept {
			c.reset(p, "unexpected %v", m.Type)
			return
		}
		c.keptBy(p)
	case wire.Proposed:
		if m.Off == c.sb.Proposed {
			c.askedStep(1 << p.id)
		}
	case wire.Adopted:
		if m.Off == c.sb.Current && p.session == mirroring {
			c.sb.Peers[p.slot].Base = 0
			c.after(wantSuper, nil)
			c.tellLevel()
		}
	case wire.SyncAck:
		if p.session == mirroring && p.grow == growFlush {
			p.growAcked = true
			c.growStep(p)
		}
	case wire.Ack:
		c.recvAck(p, m)
	case wire.Nack:
		c.reset(p, "peer %s: its disk failed with error %d", p.name, m.Off)
	case wire.RsNeed:
		c.rsNeed(p, m)
	case wire.RsAck:
		c.rsAcked(p, m)
	case wire.RsFlushed:
		c.rsFlushed(p, m)
	default:
		c.reset(p, "unexpected %v", m.Type)
	}
}

func (c *Core) recvAck(p *peer, m *wire.Msg) {
	bit := uint8(1) << p.id
	o := c.find(Tag(m.Tag))
	if o == nil || o.ackOf&bit == 0 {
		c.reset(p, "acknowledgement of nothing")
		return
	}
	o.ackOf &^= bit
	o.need &^= bit
	p.outstanding--
	p.progress = c.now
	switch {
	case o.kind == OpFlush:
		p.unflushed.confirmed(o.flush)
		if o.origin == flushCap {
			p.capping = false
		}
	case o.flags&FUA == 0:
		p.unflushed.add(o.off, o.len)
		if len(p.unflushed.cur) > maxUnflushed && !p.capping {
			p.capping = true
			c.flushAll(flushCap)
		}
	}
	if o.barred && p.grow == growBarrier {
		o.barred = false
		p.barrierLeft--
		c.growStep(p)
	}
	c.step(o)
	// A chunk of resync may have waited for this acknowledgement.
	c.rsRetry(p)
	c.settle()
}

// What a primary may have on its way to our disk. Its own bounds are lower:
// 256 MiB of payloads, and a request in flight for each.
const (
	maxAccepted    = 1 << 15
	maxAcceptedLen = 512 << 20
)

// recvAsSecondary takes what a primary says to us.
func (c *Core) recvAsSecondary(p *peer, m *wire.Msg) Tag {
	if p.accepted >= maxAccepted || p.acceptedLen >= maxAcceptedLen {
		c.reset(p, "%d frames of %d bytes wait for the disk: the peer keeps no bounds", p.accepted, p.acceptedLen)
		return 0
	}
	switch m.Type {
	case wire.SyncStart:
		if p.session != following {
			break
		}
		c.syncStart(p, m)
		return 0
	case wire.SyncDone:
		if p.session != mirroring {
			break
		}
		p.history, p.bases = p.history[:0], p.bases[:0]
		for b := m.Body; len(b) >= 8; b = b[8:] {
			if w := binary.LittleEndian.Uint64(b); len(p.history) < meta.HistoryLen {
				p.history = append(p.history, w)
			} else {
				p.bases = append(p.bases, w)
			}
		}
		p.hello.Current = m.Off
		c.flushLocal(flushSyncDone, p)
		return 0
	case wire.Clean:
		if p.session != mirroring {
			break
		}
		// The primary has compared what we marked for it.
		p.bits.clear(0, p.bits.blocks)
		c.after(wantPages, nil)
		return 0
	case wire.Write, wire.Zero, wire.Flush:
		if p.session != mirroring {
			break
		}
		return c.accept(p, m)
	case wire.Retire, wire.HotSet:
		if p.session != mirroring {
			break
		}
		if m.Type == wire.HotSet && m.Flags&adoptLog != 0 {
			if !c.adopt(p, m.Body) {
				break
			}
			return 0
		}
		c.retired(m.Body, m.Type == wire.HotSet)
		return 0
	case wire.Lacks:
		if p.session != mirroring || !c.lacks(p, m) {
			break
		}
		return 0
	case wire.Level:
		if p.session != mirroring {
			break
		}
		c.isLevel(p, m)
		return 0
	case wire.Propose:
		if p.session != mirroring {
			break
		}
		c.hear(p, m.Off)
		return 0
	case wire.Adopt:
		if p.session != mirroring || !c.adoptGeneration(p, m.Off, m.Tag) {
			break
		}
		return 0
	case wire.RsCheck:
		if p.session != mirroring || !c.inBounds(m, true) {
			break
		}
		c.emit(Effect{Kind: RsCompare, Peer: p.id, PeerTag: m.Tag, Off: int64(m.Off), Len: int64(m.Len), Data: m.Body, Msg: wire.Msg{Epoch: p.epoch}})
		return 0
	case wire.RsData:
		if p.session != mirroring || !c.inBounds(m, true) {
			break
		}
		o := c.theirs(p, m, OpWrite, resyncApply)
		o.phase, o.local = running, true
		c.emit(Effect{Kind: RsApply, Peer: p.id, PeerTag: m.Tag, Tag: o.tag(), Off: o.off, Len: o.len})
		return o.tag()
	case wire.RsFlush:
		if p.session != mirroring {
			break
		}
		o := c.theirs(p, m, OpFlush, resyncFlush)
		o.phase, o.local = running, true
		c.emit(Effect{Kind: DiskFlush, Tag: o.tag()})
		return 0
	}
	c.reset(p, "unexpected %v", m.Type)
	return 0
}

// inBounds: nothing a peer says may reach outside the volume.
func (c *Core) inBounds(m *wire.Msg, blocks bool) bool {
	off, n := int64(m.Off), int64(m.Len)
	if off < 0 || n <= 0 || n > MaxOpLen || off > c.sb.VolumeSize-n {
		return false
	}
	mask := int64(1)<<c.sb.BlockShift - 1
	return !blocks || off&mask == 0
}

// theirs is an operation that a primary asked of us.
func (c *Core) theirs(p *peer, m *wire.Msg, kind OpKind, from origin) *op {
	o := c.newOp(kind, from, int64(m.Off), int64(m.Len), m.Flags)
	o.peer, o.link, o.ptag = int8(p.id), p.links, m.Tag
	p.accepted++
	p.acceptedLen += o.len
	return o
}

// accept begins a mirrored write, zero or flush. There is no range lock here:
// the primary keeps overlapping requests apart until we have answered.
func (c *Core) accept(p *peer, m *wire.Msg) Tag {
	kind := OpFlush
	switch m.Type {
	case wire.Write:
		kind = OpWrite
	case wire.Zero:
		kind = OpZero
	}
	if kind != OpFlush && !c.inBounds(m, false) {
		c.reset(p, "%v of %d+%d lies outside the volume", m.Type, m.Off, m.Len)
		return 0
	}
	o := c.theirs(p, m, kind, remote)
	t := o.tag()
	if kind == OpFlush {
		c.run(o)
	} else {
		c.heat(o)
	}
	return t
}

// remoteDone: our disk has what the primary sent.
func (c *Core) remoteDone(o *op) {
	p := &c.peers[o.peer]
	if p.link && p.links == o.link && p.session == mirroring {
		if o.err != OK {
			c.send(p, wire.Data, wire.Msg{Type: wire.Nack, Tag: o.ptag, Off: uint64(o.err)})
		} else {
			c.send(p, wire.Data, wire.Msg{Type: wire.Ack, Tag: o.ptag})
		}
	}
	if o.kind == OpFlush && o.err == OK {
		c.advanceMark()
	}
	c.endTheirs(o, p)
}

func (c *Core) endTheirs(o *op, p *peer) {
	p.accepted--
	p.acceptedLen -= o.len
	o.phase = told
	o.sent = true
	c.active = append(c.active, o.slot) // release takes it out again
	c.release(o)
	if p.accepted == 0 {
		if c.alone {
			c.aloneStep()
		}
		c.greet(p)
		c.others(p, c.settleFollow)
	}
}

// compare judges our copy and that of p, whose Hello is there.
func (c *Core) compare(p *peer) (Verdict, string) {
	h := &p.hello
	current := h.Current
	if h.Heard != 0 && (h.Heard == c.sb.Current || slices.Contains(c.sb.History[:], h.Heard)) {
		// It was a member when this generation was decided, and has not had the news.
		current = h.Heard
	}
	return Judge(&Ancestry{c.sb.Current, c.sb.Peers[p.slot].Base, c.sb.History[:], c.sb.Inconsistent}, &Ancestry{current, h.Base, h.History, h.Inconsistent})
}

// judge decides what the session with p will be.
func (c *Core) judge(p *peer) {
	h := &p.hello
	mine := &c.sb.Peers[p.slot]
	v, name := c.compare(p)
	p.judged = name
	bit := uint8(1) << p.id
	counted := c.counted&bit != 0
	stale := h.Outdated || h.Mark < mine.Mark
	if c.cfg.Bug == BugTrustPutBack {
		stale = false
	}
	// An older state of a disk that we know may descend from a generation that
	// no history reaches back to.
	known := v == Unrelated && mine.DiskID == h.DiskID
	p.full = v == SourceFull || (stale && (v == Same || v == SourceBitmap || known))
	switch {
	case !p.full && v != Same && v != SourceBitmap:
		p.problem = fmt.Sprintf("%v (%s): this node serves, but the peer's copy is not older than ours", v, name)
	case h.YourMark > c.sb.Mark && c.cfg.Bug != BugTrustPutBack:
		p.problem = fmt.Sprintf("split brain (put-back disk): the peer has seen mark %d of our disk, which says %d", h.YourMark, c.sb.Mark)
	default:
		p.problem = ""
	}
	if p.problem != "" {
		c.event("peer %s: %s; on the node whose data is to be thrown away, run: replctl resync --discard-my-data", p.name, p.problem)
		if counted {
			p.to(leaving)
			c.emit(Effect{Kind: MustLeave, Peer: p.id, Text: p.problem})
			return
		}
		p.to(apart)
		return
	}
	if v == Same && c.cfg.Bug == BugDropBitsOnSame {
		p.bits.clear(0, p.bits.blocks)
	}
	c.event("peer %s: verdict %v (%s), %d blocks dirty", p.name, v, name, p.bits.count)
	why := ""
	switch {
	case !counted:
	case p.full:
		why = "its copy has to be compared in full"
	case h.Marked:
		why = "its host restarted with a volatile cache"
	case h.Inconsistent:
		why = "its copy is Inconsistent"
	case v != Same:
		why = "its generation is not ours"
	}
	if why != "" {
		p.to(leaving)
		c.emit(Effect{Kind: MustLeave, Peer: p.id, Text: why})
		return
	}
	c.begin(p)
}

// The modes of SyncStart.
const (
	modeKeep   uint8 = iota // a counted peer catches up: its copy stays what it is
	modeBitmap              // Inconsistent until SyncDone
	modeFull                // the same, under a generation made for this resync
)

// begin starts the session, after our bits are durable: the target may forget
// its own as soon as it has caught up with ours.
func (c *Core) begin(p *peer) {
	p.to(starting)
	mode := modeBitmap
	w := wantPages
	gen := uint64(0)
	mine := &c.sb.Peers[p.slot]
	switch {
	case p.full:
		mode = modeFull
		p.bits.set(0, p.bits.blocks)
		// Interrupted, the resync goes on where it was: the target carries
		// this generation meanwhile, and our bitmap counts from it.
		gen = c.draw()
		mine.Base, mine.DiskID = gen, p.hello.DiskID
		mine.Mark = p.hello.Mark // a put-back disk starts over from what it says
		w |= wantSuper
	case c.counted&(1<<p.id) != 0:
		mode = modeKeep
	}
	links := p.links
	c.after(w, func() {
		if p.link && p.links == links && p.session == starting && c.serving {
			c.send(p, wire.Ctl, wire.Msg{Type: wire.SyncStart, Flags: mode, Off: gen})
		}
	})
}

// syncStart: the primary is about to mirror to us.
func (c *Core) syncStart(p *peer, m *wire.Msg) {
	ready := func() {
		p.to(mirroring)
		c.send(p, wire.Ctl, wire.Msg{Type: wire.SyncReady})
		c.emit(Effect{Kind: SessionUp, Peer: p.id})
	}
	if m.Flags == modeKeep {
		ready()
		return
	}
	c.sb.Inconsistent = true
	if m.Flags == modeFull {
		// What Outdated asked for has begun. Inconsistent, under a generation of
		// this resync's own, says the rest, and an interrupted resync goes on.
		c.sb.Outdated = false
		c.sb.Current, c.sb.Heard = m.Off, 0
		clear(c.sb.History[:])
	}
	links := p.links
	c.emit(Effect{Kind: CopyChanged})
	c.after(wantSuper, func() {
		c.copyNews()
		if p.link && p.links == links && p.session == following && !c.refusing {
			ready()
		}
	})
}

// takeGeneration: the resync has ended and is flushed; our copy is the
// source's from here on.
func (c *Core) takeGeneration(p *peer) {
	c.sb.Current = p.hello.Current
	clear(c.sb.History[:])
	copy(c.sb.History[:], p.history)
	c.sb.Inconsistent, c.sb.Outdated, c.sb.Vote.Marked = false, false, false
	c.sb.Mark = max(c.sb.Mark, p.hello.YourMark)
	c.takeBases(p)
	c.sb.Heard = 0
	if slices.Contains(p.history, c.sb.Proposed) {
		// Who heard it of us has promoted since: no CAS of ours can land.
		c.sb.Proposed = 0
	}
	mine := &c.sb.Peers[p.slot]
	mine.Base, mine.DiskID = 0, p.hello.DiskID
	links := p.links
	c.after(wantSuper, func() {
		c.emit(Effect{Kind: CopyChanged})
		c.emit(Effect{Kind: Unmarked})
		c.copyNews()
		if p.link && p.links == links && p.session == mirroring {
			c.send(p, wire.Ctl, wire.Msg{Type: wire.SyncAck})
		}
	})
}

// caughtUp: no bit is left for p and nothing of a resync is under way.
func (c *Core) caughtUp(p *peer) bool {
	return p.session == mirroring && p.kept && p.bits.count == 0 && p.rs.idle()
}

func (c *Core) checkCaughtUp(p *peer) {
	if !c.serving || p.level || !c.caughtUp(p) {
		return
	}
	c.rsEnd(p)
	bit := uint8(1) << p.id
	if c.counted&bit == 0 {
		if p.grow == notGrowing {
			c.emit(Effect{Kind: CaughtUp, Peer: p.id})
		}
		return
	}
	if p.grow != notGrowing {
		return
	}
	p.level = true
	// It may be counted and not in the record: its grow was cut short. The
	// layer above knows, and takes it up again.
	c.emit(Effect{Kind: CaughtUp, Peer: p.id})
	if p.cleanDue {
		p.cleanDue = false
		c.send(p, wire.Ctl, wire.Msg{Type: wire.Clean})
	}
	for _, i := range append([]uint32(nil), c.active...) {
		if o := c.ops[i]; o.via&bit != 0 && o.phase == running {
			o.via &^= bit
			c.step(o)
		}
	}
	c.tellLevel()
}

// OutOfSync is how many bytes peer p is known to lack.
func (c *Core) OutOfSync(p int) int64 {
	b := c.peers[p].bits
	return min(int64(b.count)<<c.sb.BlockShift, c.sb.VolumeSize)
}

func popcount(b []byte) (n int) {
	for _, x := range b {
		n += bits.OnesCount8(x)
	}
	return n
}

// InSession tells whether both handshakes of the present link are there.
func (c *Core) InSession(p int) bool {
	q := &c.peers[p]
	return q.link && !q.resetting && q.session >= met
}

// Misspoke takes the link down over a message of the layer above that could
// not be understood.
func (c *Core) Misspoke(now int64, p int, err error) {
	c.now = now
	c.reset(&c.peers[p], "%v", err)
}

// Drop takes the link down because the layer above asks for it.
func (c *Core) Drop(now int64, p int, why string) {
	c.now = now
	c.reset(&c.peers[p], "%s", why)
}
