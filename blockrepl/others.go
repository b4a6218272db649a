package blockrepl

import (
	"encoding/binary"
	"hash/fnv"
	"maps"
	"slices"

	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

// This file is what more than two nodes need (rule 5.10). With two, whoever
// survives holds everything there is to know about the other. With three, the
// survivors of a lost primary may differ in what it had sent to only some, and
// what a node that is away lacks would be known to a dead primary alone.
//
// What must hold: wherever two copies that may become members can differ, one
// of the two nodes says so durably, in its bits for the other or in its
// activity log; and whoever takes over the session tells what it says. So:
//
//  1. A Secondary's log is a copy of its primary's. It takes it over (HotSet)
//     at the start of a session, and lets go of an extent only when told to
//     (Retire). A primary retires an extent when every mirrored copy has flushed
//     it and its bits for all others are durable.
//  2. Before a Secondary lets go of an extent, by HotSet or Retire, it has taken
//     over its primary's bits for every other node (Lacks), durably. So the bits
//     of a node that is away are with every holder, not with the primary alone;
//     and one that was away itself takes them over before it forgets its own
//     log. Kept tells the primary that this is done. Nothing of a resync is
//     sent before it: what a chunk carries may be on the primary alone.
//  3. On promotion the log becomes bits for every other node. So it does on a
//     Secondary that follows a primary of another epoch, before it tells its
//     bits: what it got from the last primary the new one may never have got.
//  4. When two nodes are level with the primary they are level with each other:
//     Level lets each drop its bits for the other.
//
// One trace for each, as ../../shared/protocol-review.md has them: a is primary.
//
//   - 14a, rule 3. 1 a's w reaches b only, a dies. 2 c promotes and b follows it:
//     b's log names w's extent, c's does not.
//   - 14b, rule 1. The same, but b's agent restarts in between: the log is on
//     its disk.
//   - 14c, rule 2. 1 c is away, a and b write w, its extent goes cold. 2 a dies,
//     b promotes, c comes back: only a had c's bit.
//   - 14d, rule 2. The same, but b was away when the bit was set, came back, and
//     has nothing of w in its log.
//
// Generations. A shrink names a new one in the record. A counted peer that did
// not carry it could not promote, although it holds everything; so it has heard
// of it, durably, before the CAS goes out (Propose), and takes it when the CAS
// is decided (Adopt). If the primary dies in between, the peer goes by the
// record: Heard is as good as carried (rule 5.8). Whoever promotes puts what it
// heard into its history, because the dead primary may carry it.

// adoptLog in a HotSet's flags: rule 1.
const adoptLog uint8 = 1

// markLeap is how far a node's durable mark moves when a resync has ended. With
// three nodes another than the source may remember a later mark of the disk
// that was before.
const markLeap = 1 << 20

// nodeID is a node's number on the wire.
func nodeID(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name)) // a hash never fails
	return h.Sum64()
}

// node is the peer of that number, nil if we know none.
func (c *Core) node(id uint64) *peer {
	for i := range c.peers {
		if p := &c.peers[i]; p.node == id {
			return p
		}
	}
	return nil
}

// pair tells whether there is nobody but us and one peer.
func (c *Core) pair() bool { return len(c.peers) == 1 }

// others calls f for every peer but p.
func (c *Core) others(p *peer, f func(*peer)) {
	for i := range c.peers {
		if q := &c.peers[i]; q != p {
			f(q)
		}
	}
}

// handOver begins p's part as a copy that may take over from us: our bits for
// the others, then our log. Primary.
func (c *Core) handOver(p *peer) {
	p.rs.Began = c.now
	if c.pair() {
		c.send(p, wire.Data, wire.Msg{Type: wire.HotSet, Body: c.hotSet()})
		c.keptBy(p)
		return
	}
	if c.cfg.Bug != BugBitsNotTakenOver {
		c.others(p, func(q *peer) { c.sendLacks(p, q, 0, q.bits.n) })
	}
	c.send(p, wire.Data, wire.Msg{Type: wire.HotSet, Flags: adoptLog, Body: c.hotSet()})
	if c.counted&(1<<p.id) != 0 {
		// It has our generation, or the news of our last shrink was lost with its
		// link. Either way it will say so.
		c.sendAdopt(p)
	}
}

// keptBy: p could take over from us as far as it has our data.
func (c *Core) keptBy(p *peer) {
	p.kept = true
	c.rsBegin(p)
	c.rsPump(p)
	c.checkCaughtUp(p)
}

// sendLacks tells p what q lacks, in words lo to hi-1 of our bits for it.
func (c *Core) sendLacks(p, q *peer, lo, hi int) {
	if q.bits.count == 0 {
		return
	}
	for hi = min(hi, q.bits.n); lo < hi; lo += meta.WordsPerPage {
		words := q.bits.words[lo:min(lo+meta.WordsPerPage, hi)]
		if b := packWords(words); b != nil {
			c.send(p, wire.Data, wire.Msg{Type: wire.Lacks, Tag: uint64(lo), Off: q.node, Body: b})
		}
	}
}

// packWords is words as a body, nil if all are zero.
func packWords(words []uint64) []byte {
	var any uint64
	for _, w := range words {
		any |= w
	}
	if any == 0 {
		return nil
	}
	b := make([]byte, 0, 8*len(words))
	for _, w := range words {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// sendRetire tells p that these extents have left our log, after what the
// others lack in them.
func (c *Core) sendRetire(p *peer, gone []byte) {
	if !c.pair() && c.cfg.Bug != BugBitsOnPrimaryOnly {
		for b := gone; len(b) >= 4; b = b[4:] {
			e := int64(binary.LittleEndian.Uint32(b))
			lo, hi := c.blockRange(e<<c.sb.ExtentShift, 1<<c.sb.ExtentShift)
			c.others(p, func(q *peer) { c.sendLacks(p, q, lo/64, (hi+63)/64) })
		}
	}
	c.send(p, wire.Data, wire.Msg{Type: wire.Retire, Body: gone})
}

// abreast: p holds all that we hold, under our generation, except what both
// logs name. Primary.
func (c *Core) abreast(p *peer) bool {
	return c.serving && p.session == mirroring && p.level && p.bits.count == 0 && c.counted&(1<<p.id) != 0 && c.sb.Peers[p.slot].Base == 0
}

// tellLevel tells every peer that is abreast which others are.
func (c *Core) tellLevel() {
	if c.pair() {
		return
	}
	for i := range c.peers {
		p := &c.peers[i]
		if !c.abreast(p) {
			continue
		}
		c.others(p, func(q *peer) {
			if bit := uint8(1) << q.id; p.knows&bit == 0 && c.abreast(q) {
				p.knows |= bit
				c.send(p, wire.Data, wire.Msg{Type: wire.Level, Off: q.node, Tag: c.sb.Current})
			}
		})
	}
}

// unlevel: p is not abreast any more; the others are told anew when it is again.
func (c *Core) unlevel(p *peer) {
	p.level, p.knows = false, 0
	c.others(p, func(q *peer) { q.knows &^= 1 << p.id })
}

// lacks takes over what our primary says that another node lacks.
func (c *Core) lacks(p *peer, m *wire.Msg) bool {
	q := c.node(m.Off)
	if q == nil {
		return true // a node that is not in our config cannot meet us
	}
	if q == p || len(m.Body)%8 != 0 || m.Tag > uint64(q.bits.n) {
		return false
	}
	words := make([]uint64, len(m.Body)/8)
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(m.Body[8*i:])
	}
	q.bits.or(int(m.Tag), words)
	return true
}

// isLevel: our primary says that a node has all that we have.
func (c *Core) isLevel(p *peer, m *wire.Msg) {
	q := c.node(m.Off)
	if q == nil || q == p || m.Tag != c.sb.Current {
		return
	}
	q.bits.clear(0, q.bits.blocks)
	c.sb.Peers[q.slot].Base = 0
	c.after(wantPages|wantSuper, nil)
}

// adoption is a log that is being taken over: nothing enters or leaves ours
// meanwhile but through it.
type adoption struct {
	peer  int
	links uint32
	named map[uint32]bool
	again bool // the primary has retired extents meanwhile
}

// adopt makes the log of p ours, when the bits that came with it are durable.
func (c *Core) adopt(p *peer, body []byte) bool {
	a := &adoption{peer: p.id, links: p.links, named: make(map[uint32]bool, len(body)/4)}
	for ; len(body) >= 4; body = body[4:] {
		e := binary.LittleEndian.Uint32(body)
		if int64(e) >= c.sb.VolumeSize>>c.sb.ExtentShift+1 {
			return false
		}
		a.named[e] = true
	}
	if len(a.named) > len(c.al.slots) {
		return false
	}
	c.al.adopting = a
	c.after(wantPages, func() { c.adoptStep(a, c.al.rounds) })
	return true
}

func (c *Core) adoptStep(a *adoption, round uint64) {
	if c.al.adopting != a || c.al.rounds != round {
		return // a later session's, or we have become primary
	}
	if a.again {
		a.again = false
		c.after(wantPages, func() { c.adoptStep(a, round) })
		return
	}
	c.al.adopting = nil
	for i := range c.al.slots {
		s := &c.al.slots[i]
		if s.quit = false; s.state != slotEmpty && s.refs == 0 && !a.named[s.extent] {
			c.al.remove(i)
		}
	}
	p := &c.peers[a.peer]
	for _, e := range slices.Sorted(maps.Keys(a.named)) {
		if _, ok := c.al.index[e]; ok {
			continue
		}
		if len(c.al.empty) == 0 {
			c.reset(p, "its activity log does not fit into ours")
			break
		}
		c.al.claim(e, c.seq)
	}
	c.al.wrote = true
	c.after(wantAL, func() {
		if p.link && p.links == a.links && p.session == mirroring {
			c.send(p, wire.Data, wire.Msg{Type: wire.Kept})
		}
	})
	c.alPump()
}

// dropLater lets go of what the primary has retired, when the bits that came
// before are durable. An extent that is used again meanwhile stays.
func (c *Core) dropLater(named map[uint32]bool, keep bool) {
	a := &c.al
	if a.adopting != nil {
		a.adopting.again = true
		for e := range a.adopting.named {
			if named[e] != keep {
				delete(a.adopting.named, e)
			}
		}
		return
	}
	var leaving []uint32
	for i := range a.slots {
		if s := &a.slots[i]; s.state != slotEmpty && s.refs == 0 && named[s.extent] != keep {
			s.quit = true
			leaving = append(leaving, s.extent)
		}
	}
	round := a.rounds
	c.after(wantPages, func() {
		if a.rounds != round {
			return
		}
		for _, e := range leaving {
			if i, ok := a.index[e]; ok && a.slots[i].quit {
				a.remove(i)
			}
		}
		c.alPump()
	})
}

// tellTheNew is rule 3 on a Secondary: the log it has from another epoch's
// primary becomes bits for everybody, and what the new primary lacks the others
// may lack as well once they have been resynced from it.
func (c *Core) tellTheNew(p *peer, epoch uint64) {
	if c.pair() || c.al.epoch == epoch {
		return
	}
	c.al.epoch = epoch
	if c.cfg.Bug == BugLogNotTold {
		return
	}
	c.logToBits()
	c.others(p, func(q *peer) { q.bits.or(0, p.bits.words[:p.bits.n]) })
}

// settleFollow begins a session that was asked for, when nothing of another is
// under way: its frames for the same blocks would not be ordered.
func (c *Core) settleFollow(p *peer) {
	epoch := p.follow
	if epoch == 0 {
		return
	}
	ready := true
	c.others(p, func(q *peer) {
		if q.session >= following && q.epoch < epoch {
			c.reset(q, "%s serves in epoch %d", p.name, epoch)
		}
		ready = ready && (c.cfg.Bug == BugFollowUndrained || q.session < following && q.accepted == 0)
	})
	if !ready {
		return
	}
	p.follow = 0
	if p.session == met && !c.serving && !c.refusing && !c.becoming {
		c.beginFollow(p, epoch)
	}
}

// askOthers has the generation of a shrink of prepPeer heard by everybody else
// who counts and has a session, then says Ready.
func (c *Core) askOthers(g uint64) {
	c.asking, c.asked, c.askedAt = true, 0, c.now
	if c.cfg.Bug != BugNotHeard {
		c.each(c.counted&^(1<<c.prepPeer), func(q *peer) {
			if q.session == mirroring {
				c.asked |= 1 << q.id
				c.send(q, wire.Ctl, wire.Msg{Type: wire.Propose, Off: g})
			}
		})
	}
	c.askedStep(0)
}

// askedStep: those in mask have heard it, or will not any more.
func (c *Core) askedStep(mask uint8) {
	if !c.asking {
		return
	}
	if c.asked &^= mask; c.asked == 0 {
		c.asking, c.preparing = false, 0
		c.emit(Effect{Kind: Ready, Prep: PrepShrink, Peer: c.prepPeer, Gen: c.sb.Proposed})
	}
}

// hear makes the generation that our primary means to name durable.
func (c *Core) hear(p *peer, g uint64) {
	c.sb.Heard, c.sb.HeardEpoch = g, p.epoch
	links := p.links
	c.after(wantSuper, func() {
		c.emit(Effect{Kind: CopyChanged})
		if p.link && p.links == links && p.session == mirroring {
			c.send(p, wire.Ctl, wire.Msg{Type: wire.Proposed, Off: g})
		}
	})
}

func (c *Core) sendAdopt(p *peer) {
	if p.session == mirroring {
		c.send(p, wire.Ctl, wire.Msg{Type: wire.Adopt, Off: c.sb.Current, Tag: c.sb.History[0]})
	}
}

// adoptGeneration: the record names generation g, and our primary carries it.
func (c *Core) adoptGeneration(p *peer, g, before uint64) bool {
	old := c.sb.Current
	if g != old {
		if g == 0 || g != c.sb.Heard && before != old {
			return false
		}
		c.pushHistory(old)
		c.sb.Current = g
		c.others(p, func(q *peer) {
			// Who carries g as well the primary will say (Level).
			if b := &c.sb.Peers[q.slot].Base; *b == 0 {
				*b = old
			}
		})
	}
	if c.sb.Heard == g || g != old {
		c.sb.Heard = 0 // any other is still being decided
	}
	links := p.links
	c.after(wantSuper, func() {
		c.emit(Effect{Kind: CopyChanged})
		if p.link && p.links == links && p.session == mirroring {
			c.send(p, wire.Ctl, wire.Msg{Type: wire.Adopted, Off: g})
		}
	})
	return true
}

func (c *Core) pushHistory(g uint64) {
	if g == 0 {
		return
	}
	copy(c.sb.History[1:], c.sb.History[:meta.HistoryLen-1])
	c.sb.History[0] = g
}

// bases is, for SyncDone to p, from which generation our bits for the others
// count: pairs of node and generation.
func (c *Core) bases(p *peer, b []byte) []byte {
	c.others(p, func(q *peer) {
		b = binary.LittleEndian.AppendUint64(b, q.node)
		b = binary.LittleEndian.AppendUint64(b, c.sb.Peers[q.slot].Base)
	})
	return b
}

// takeBases takes them over, as the target of a resync that has ended.
func (c *Core) takeBases(p *peer) {
	if c.pair() {
		return
	}
	for k := 0; k+1 < len(p.bases); k += 2 {
		if q := c.node(p.bases[k]); q != nil && q != p {
			c.sb.Peers[q.slot].Base = p.bases[k+1]
		}
	}
	for i := range c.peers {
		c.sb.Mark = max(c.sb.Mark, c.peers[i].hello.YourMark)
	}
	c.sb.Mark += markLeap
}
