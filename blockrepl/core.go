package blockrepl

import (
	"fmt"
	"slices"

	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

// MaxOpLen is the longest single operation, in bytes: it must fit into the
// activity log. A longer write is a Reserve and several Parts.
const MaxOpLen = 8 << 20

// MaxReadLen is the longest read: it takes no place in the log, but it keeps
// writers out of its range.
const MaxReadLen = 64 << 20

// Config is what the core is told once.
type Config struct {
	Peers       []string      // the other nodes; an index is the peer's number everywhere
	Rand        func() uint64 // draws generations; never 0 is needed, 0 is drawn again
	PeerTimeout int64         // ns without progress on a sent write until the link is reset
	MarkEvery   int64         // ns between two durable marks, at least
	ResyncRate  int64         // bytes a second that a resync may read; 0: only applications slow it down
	Volatile    bool          // the disk path has a cache that a power cut empties
	Bug         Bug           // tests only
}

// Core decides for one volume on one node. It does no I/O and knows no clock:
// inputs are method calls, what is to be done comes out of Effects. One input
// at a time.
type Core struct {
	cfg Config
	now int64
	out []Effect
	alt []Effect   // the buffer that Effects gave away last
	sb  meta.Super // as it should be on disk; the disk may be one job behind

	job job
	al  actlog

	ops     []*op
	freeOps []uint32
	seq     uint64   // counts operations begun
	active  []uint32 // hold their range (client, resync); flushes are here too
	queue   []uint32 // wait for a range, oldest first
	parked  []uint32 // hold their range, and wait for a resync chunk that went ahead
	ready   []uint32 // wait for the serve gate

	peers []peer

	serving   bool   // requests are taken
	epoch     uint64 // in which we serve or served
	until     int64  // completions are allowed before this instant
	hold      uint8  // no completions: the shrinks of these peers are being decided, or made durable
	counted   uint8
	refusing  bool // a candidate: no session with anybody
	settled   bool // the activity log of a former life or role has become bits
	settling  bool
	quiescing bool
	quiet     bool   // quiesced: the final flush is under way or done
	failed    bool   // the local disk is gone
	preps     uint64 // counts preparations begun and ended: an answer of an older one is none
	alone     bool   // Prepare(PrepAlone) waits for what was accepted
	prepPeer  int    // whom the preparation is about
	preparing Prep   // what it is; 0: none
	quietGen  uint64 // the flush that a planned stop waits for
	becoming  bool   // BecomePrimary is not yet durable
	asking    bool   // the others have to hear the proposed generation before its CAS
	asked     uint8  // who has not yet
	askedAt   int64

	flushGen   uint64 // counts full flushes begun
	lastMark   int64
	wroteSince bool // something was flushed since the last mark

	stats Stats
}

// Stats counts since the start.
type Stats struct {
	Resynced uint64 // bytes of resync that differed and travelled
	Compared uint64 // bytes of resync whose digests were compared
	Retired  uint64 // extents that left the activity log
	ALWrites uint64 // activity-log transactions
}

// New starts a core on the metadata of its disk. bootID and identity are those
// of this host and of the backing device.
func New(cfg Config, st *meta.State, bootID, identity string) *Core {
	c := &Core{cfg: cfg, sb: *st.Super}
	c.al.init(int(c.sb.ALSlots), st.ALSeq)
	c.job.mark, c.job.durMark, c.job.durVote = c.sb.Mark, c.sb.Mark, c.sb.Vote
	blocks := c.sb.Bits()
	c.peers = make([]peer, len(cfg.Peers))
	fresh := make([]bool, len(cfg.Peers))
	for i, name := range cfg.Peers {
		fresh[i] = !slices.ContainsFunc(c.sb.Peers[:], func(p meta.Peer) bool { return p.Name == name })
	}
	for i := range c.peers {
		c.peers[i] = peer{id: i, name: cfg.Peers[i], node: nodeID(cfg.Peers[i]), slot: c.slotOf(cfg.Peers[i])}
		p := &c.peers[i]
		p.bits = newBitmap(st.Bits[p.slot], blocks)
		if fresh[i] && c.sb.Current != 0 {
			// Nothing is known of that node's copy, perhaps no longer (see Forget).
			// Without a bit, equal generations would pass for equal data.
			p.bits.set(0, blocks)
		}
	}
	// A copy of a disk, or a disk whose file was replaced, carries metadata of
	// a volume that it is not.
	if c.sb.Identity != identity {
		if c.sb.Identity != "" && c.sb.Current != 0 {
			c.sb.Outdated = true
			c.event("the backing device is %q, the metadata was written on %q: this copy is Outdated and will be compared in full", identity, c.sb.Identity)
		}
		c.sb.Identity = identity
	}
	c.sb.BootID = bootID
	if st.SuperLost && c.sb.Current != 0 {
		// The copy of the superblock that could be read may be one write old:
		// generation, epoch and mark are as untrustworthy as those of an old disk.
		c.sb.Outdated = true
		c.event("one copy of the superblock is damaged: this copy is Outdated and will be compared in full")
	}
	if st.ALLost {
		// Without the log nobody knows what was in flight.
		for i := range c.peers {
			c.peers[i].bits.set(0, blocks)
		}
		c.event("the activity log is unreadable: every block counts as dirty")
	}
	for _, e := range st.Hot {
		c.dirtyExtent(e)
	}
	return c
}

// slotOf finds the bitmap slot of a node, or gives it a free one.
func (c *Core) slotOf(name string) int {
	for i := range c.sb.Peers {
		if c.sb.Peers[i].Name == name {
			return i
		}
	}
	for i := range c.sb.Peers {
		if c.sb.Peers[i].Name == "" {
			c.sb.Peers[i] = meta.Peer{Name: name}
			return i
		}
	}
	panic("blockrepl: more peers than bitmap slots; the configuration is checked against the metadata before")
}

// Start makes durable what the former life left, then takes part.
func (c *Core) Start(now int64) {
	c.now = now
	c.settling = true
	c.after(wantSuper|wantPages, func() {
		c.settling, c.settled = false, true
		for i := range c.peers {
			c.greet(&c.peers[i])
		}
		c.aloneStep()
	})
	c.emit(Effect{Kind: CopyChanged})
}

// Effects drains what the inputs since the last call asked for, in order. The
// slice is good until the call after the next.
func (c *Core) Effects() []Effect {
	e := c.out
	c.out, c.alt = c.alt[:0], e
	return e
}

// Pending tells whether Effects would return anything.
func (c *Core) Pending() bool { return len(c.out) > 0 }

func (c *Core) emit(e Effect) { c.out = append(c.out, e) }

func (c *Core) event(format string, a ...any) {
	c.emit(Effect{Kind: Event, Peer: -1, Text: fmt.Sprintf(format, a...)})
}

func (c *Core) send(p *peer, ch wire.Channel, m wire.Msg) {
	m.Epoch = p.epoch
	c.emit(Effect{Kind: Send, Peer: p.id, Chan: ch, Msg: m})
}

func (c *Core) reset(p *peer, format string, a ...any) {
	if !p.link || p.resetting {
		return
	}
	p.resetting = true
	c.emit(Effect{Kind: Reset, Peer: p.id, Text: fmt.Sprintf(format, a...)})
}

func (c *Core) draw() uint64 {
	for {
		if g := c.cfg.Rand(); g != 0 {
			return g
		}
	}
}

// blockRange is the blocks that off..off+n touches.
func (c *Core) blockRange(off, n int64) (lo, hi int) {
	sh := c.sb.BlockShift
	return int(off >> sh), int((off + n + 1<<sh - 1) >> sh)
}

func (c *Core) dirty(p *peer, off, n int64) {
	lo, hi := c.blockRange(off, n)
	p.bits.set(lo, hi)
}

// dirtyExtent marks an extent for every peer: what a crash or a deposed term
// leaves in the activity log may be on one copy only.
func (c *Core) dirtyExtent(e uint32) {
	sh := c.sb.ExtentShift
	off := int64(e) << sh
	n := min(int64(1)<<sh, c.sb.VolumeSize-off)
	if n <= 0 {
		return
	}
	for i := range c.peers {
		c.dirty(&c.peers[i], off, n)
	}
}

func (c *Core) each(mask uint8, f func(*peer)) {
	for i := range c.peers {
		if mask&(1<<i) != 0 {
			f(&c.peers[i])
		}
	}
}

// Copy is what our own copy is worth to the layer above.
func (c *Core) Copy() (usable bool, current, proposed uint64, outdated bool) {
	proposed = c.sb.Proposed
	if c.sb.Heard != 0 && c.sb.HeardEpoch == c.sb.Vote.Epoch {
		// Our own proposal is then older than the term that we follow, or else
		// the record shows a higher epoch.
		proposed = c.sb.Heard
	}
	return !c.sb.Inconsistent && !c.sb.Outdated && !c.failed, c.sb.Current, proposed, c.sb.Outdated
}

// job is the metadata writer. One job is on its way at a time; what is wanted
// meanwhile shares the next one, so that a burst of cold extents costs two
// writes, not one each.
type job struct {
	id      uint64
	busy    bool
	want    want
	waiters []func()  // of the next job
	running []func()  // of the job on its way
	mark    uint64    // the durable mark in the job's superblock
	durMark uint64    // the durable mark on disk
	vote    meta.Vote // in the job's superblock
	durVote meta.Vote // on disk: what a handshake may say
	hasSB   bool      // the job carries a superblock
	alBusy  bool      // the job carries the activity log
}

type want uint8

const (
	wantSuper want = 1 << iota
	wantAL
	wantPages
)

// after has w written and calls f when it is durable as it is now (or newer).
// All of one job becomes durable in no particular order: what must come
// second belongs into f.
func (c *Core) after(w want, f func()) {
	c.job.want |= w
	if f != nil {
		c.job.waiters = append(c.job.waiters, f)
	}
	c.startJob()
}

func (c *Core) startJob() {
	j := &c.job
	if j.busy || (j.want == 0 && len(j.waiters) == 0) {
		return
	}
	w := j.want
	j.want, j.busy = 0, true
	j.running, j.waiters = j.waiters, j.running[:0]
	j.id++
	n := 0
	write := func(off int64, fill func(b []byte)) {
		b := make([]byte, meta.BlockSize)
		fill(b)
		c.emit(Effect{Kind: Meta, MetaID: j.id, Off: off, Data: b})
		n++
	}
	if w&wantPages != 0 {
		for i := range c.peers {
			p := &c.peers[i]
			if !p.bits.stale {
				continue
			}
			p.bits.stale = false
			for pg := range c.sb.Pages() {
				if p.bits.unsaved[pg/64]&(1<<(pg%64)) == 0 {
					continue
				}
				p.bits.unsaved[pg/64] &^= 1 << (pg % 64)
				lo := pg * meta.WordsPerPage
				words := p.bits.words[lo:min(lo+meta.WordsPerPage, p.bits.n)]
				write(c.sb.BitmapOffset(p.slot, pg), func(b []byte) { meta.EncodePage(b, c.sb.DiskID, p.slot, pg, words) })
			}
		}
	}
	if w&wantAL != 0 {
		c.al.seq++
		c.stats.ALWrites++
		j.alBusy = true
		ext := c.al.snapshot()
		write(c.sb.ALOffset(c.al.seq), func(b []byte) { meta.EncodeAL(b, c.sb.DiskID, c.al.seq, ext) })
	}
	if w&wantSuper != 0 {
		c.sb.Seq++
		j.mark, j.vote, j.hasSB = c.sb.Mark, c.sb.Vote, true
		write(c.sb.SuperOffset(c.sb.Seq), c.sb.Encode)
	}
	if n == 0 {
		// Nothing had changed: what is on disk is what is wanted.
		c.finishJob()
		return
	}
	c.out[len(c.out)-1].Last = true
}

// MetaDone says that metadata job id is durable.
func (c *Core) MetaDone(now int64, id uint64) {
	c.now = now
	if !c.job.busy || id != c.job.id || c.failed {
		return // on a failed disk nothing is durable, whatever its last block says
	}
	c.finishJob()
}

func (c *Core) finishJob() {
	j := &c.job
	j.busy = false
	j.durMark = max(j.durMark, j.mark)
	if j.hasSB {
		j.hasSB = false
		j.durVote = j.vote
	}
	if j.alBusy {
		j.alBusy = false
		c.al.durable()
	}
	run := j.running
	j.running = nil
	for _, f := range run {
		f()
	}
	if j.running == nil {
		clear(run)
		j.running = run[:0]
	}
	c.alPump()
	c.startJob()
}

// DiskFailed says that the local disk, or its metadata, cannot be used any
// more. There is no way back in this life of the agent.
func (c *Core) DiskFailed(now int64, why string) {
	c.now = now
	c.diskFailed(why)
}

func (c *Core) diskFailed(why string) {
	if c.failed {
		return
	}
	c.failed = true
	c.event("local disk failed: %s", why)
	c.distrust()
	c.emit(Effect{Kind: Failed, Text: why})
	c.emit(Effect{Kind: CopyChanged})
	if c.becoming {
		// The layer above sees that the copy is of no use, and steps down.
		c.becoming = false
		c.emit(Effect{Kind: Began})
	}
	if w := c.preparing; w == PrepAlone || w == PrepShrink {
		c.preps++
		c.preparing, c.asking = 0, false
		c.emit(Effect{Kind: Ready, Prep: w, Peer: c.prepPeer, Err: EIO, Text: "local disk failed: " + why})
	}
	if c.serving {
		return // the end of the term takes the links down, after its last word to the heirs
	}
	for i := range c.peers {
		c.reset(&c.peers[i], "local disk failed: %s", why)
	}
}

// distrust writes down, as well as a failed disk can, that acknowledged writes
// may be missing here: a write that was in its cache may be what it has lost. An
// agent that is started on it again must not begin by itself while a peer may
// have more. No answer is waited for; if this block cannot be written, the next
// start will hardly read the others.
func (c *Core) distrust() {
	if c.sb.Vote.Epoch == 0 {
		return
	}
	c.sb.Vote.Marked = true
	c.sb.Seq++
	c.job.id++ // of a job that is on its way nothing more is heard either
	b := make([]byte, meta.BlockSize)
	c.sb.Encode(b)
	c.emit(Effect{Kind: Meta, MetaID: c.job.id, Off: c.sb.SuperOffset(c.sb.Seq), Data: b, Last: true})
}

// SetVote makes the state of the layer above durable; VoteDurable with id is
// the answer.
func (c *Core) SetVote(now int64, v meta.Vote, id uint64) {
	c.now = now
	if c.sb.Heard != 0 && v.Epoch != c.sb.Vote.Epoch {
		defer c.emit(Effect{Kind: CopyChanged})
	}
	c.sb.Vote = v
	if c.failed {
		c.sb.Vote.Marked = v.Epoch > 0 // see distrust
	}
	// An epoch learnt from the record ends the sessions of older ones.
	for i := range c.peers {
		if p := &c.peers[i]; !c.serving && p.session >= following && p.epoch < v.Epoch {
			c.reset(p, "epoch %d has ended: the record shows %d", p.epoch, v.Epoch)
		}
	}
	c.after(wantSuper, func() {
		c.emit(Effect{Kind: VoteDurable, Gen: id})
		c.copyNews()
	})
}

// Tick is called now and then (every heartbeat will do).
func (c *Core) Tick(now int64) {
	c.now = now
	for i := range c.peers {
		p := &c.peers[i]
		if p.resetAt != 0 && now >= p.resetAt {
			p.resetAt = 0
			c.reset(p, "no longer primary")
		}
		if c.serving && p.session == mirroring && p.outstanding > 0 && c.cfg.PeerTimeout > 0 && now-p.progress > c.cfg.PeerTimeout {
			c.reset(p, "no progress on a sent write for %d ms", (now-p.progress)/1e6)
		}
		if c.asked&(1<<i) != 0 && c.cfg.PeerTimeout > 0 && now-c.askedAt > c.cfg.PeerTimeout {
			c.reset(p, "it does not answer a proposal")
		}
		if c.lagging(p) {
			p.slow = true
			c.emit(Effect{Kind: MustLeave, Peer: p.id, Text: "it is catching up, and applications cannot wait any longer"})
		}
		if p.session == mirroring && c.serving {
			c.rsPump(p)
			c.checkCaughtUp(p)
		}
	}
	c.advanceMark()
	c.openGate()
}

// lagging: clients have waited for a counted peer's resync for as long as they
// would wait for an acknowledgement.
func (c *Core) lagging(p *peer) bool {
	bit := uint8(1) << p.id
	if !c.serving || p.session != mirroring || p.level || p.slow || c.counted&bit == 0 || c.cfg.PeerTimeout <= 0 || c.now-p.rs.Began < c.cfg.PeerTimeout {
		return false
	}
	for _, i := range c.active {
		if o := c.ops[i]; o.origin == client && o.via&bit != 0 {
			return true
		}
	}
	return false
}

// advanceMark moves our durable mark on, at most once in MarkEvery, after
// everybody counted has confirmed a flush. Peers are told when it is on disk:
// a mark that a peer remembers is never newer than the disk it came from,
// unless an older disk was put back.
func (c *Core) advanceMark() {
	if !c.wroteSince || c.now-c.lastMark < c.cfg.MarkEvery || c.failed {
		return
	}
	c.lastMark, c.wroteSince = c.now, false
	c.sb.Mark++
	m := c.sb.Mark
	c.after(wantSuper, func() {
		for i := range c.peers {
			if p := &c.peers[i]; p.link && p.session >= met {
				c.send(p, wire.Ctl, wire.Msg{Type: wire.Mark, Off: m})
			}
		}
	})
}

func removeSlot(s []uint32, v uint32) []uint32 {
	if i := slices.Index(s, v); i >= 0 {
		return slices.Delete(s, i, i+1)
	}
	return s
}
