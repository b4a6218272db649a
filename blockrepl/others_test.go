package blockrepl

import (
	"encoding/binary"
	"strings"
	"testing"

	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

const (
	peerB = 0
	peerC = 1
)

// newTrio is the core of node a, whose peers are b and c.
func newTrio(t testing.TB, bug Bug) *rig { return newRigOf(t, bug, "b", "c") }

// as lets the test speak for peer p.
func (r *rig) as(p int) *rig { r.at = p; return r }

// sentTo is the frames of a type that went to peer p.
func (r *rig) sentTo(p int, t wire.Type) (m []wire.Msg) {
	for _, e := range r.sent {
		if e.Peer == p && e.Msg.Type == t {
			m = append(m, e.Msg)
		}
	}
	return m
}

// trio is a primary with both others counted.
func trio(t testing.TB, bug Bug) *rig {
	r := newTrio(t, bug)
	r.promote(1)
	r.as(peerB).mirror(1, true)
	r.as(peerC).mirror(1, true)
	r.sent = nil
	return r
}

func (r *rig) ack(p int, t Tag) {
	r.as(p).recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(t)})
}

func extents(e ...uint32) (b []byte) {
	for _, x := range e {
		b = binary.LittleEndian.AppendUint32(b, x)
	}
	return b
}

// hot is what the log names.
func (r *rig) hot() (n int, has func(uint32) bool) {
	return len(r.c.al.index), func(e uint32) bool { _, ok := r.c.al.index[e]; return ok }
}

// A write is complete when both have it.
func TestWriteWaitsForEveryCountedPeer(t *testing.T) {
	r := trio(t, NoBug)
	w := r.write(0, 4096, 0)
	r.ack(peerC, w)
	if r.isDone(w) {
		t.Fatal("complete without b")
	}
	r.ack(peerB, w)
	if !r.isDone(w) {
		t.Fatalf("not complete with both: %s", r.c.Describe())
	}
	f := r.c.Submit(r.now, OpFlush, 0, 0, 0)
	r.pump()
	r.ack(peerB, f)
	if r.isDone(f) {
		t.Fatal("a flush is complete without c")
	}
	r.ack(peerC, f)
	if !r.isDone(f) {
		t.Fatal("a flush is not complete with both")
	}
}

// TestHoldsOfTwoShrinks: the second shrink begins while the first is being made
// durable. The end of the first must not let completions through.
//
//  1. c leaves; decided. 2. b must leave too (it is slow to catch up, its link
//     and its lease stand). 3. c's metadata are durable. 4. A write reaches us and
//     b, completes; it is in our cache only. 5. Our power fails, b's shrink lands:
//     it is gone.
func TestHoldsOfTwoShrinks(t *testing.T) {
	for _, bug := range []Bug{NoBug, BugHoldOneFlag} {
		r := trio(t, bug)
		r.c.LinkDown(r.now, peerC)
		r.pump()
		r.c.Prepare(r.now, PrepShrink, peerC)
		r.pump()
		r.as(peerB).recv(wire.Ctl, wire.Msg{Type: wire.Proposed, Epoch: 1, Off: r.c.sb.Proposed})
		r.holdMeta = true
		r.c.Shrunk(r.now, peerC)
		r.pump()
		r.c.Prepare(r.now, PrepShrink, peerB)
		r.pump()
		r.written()
		w := r.write(0, 4096, 0)
		r.ack(peerB, w)
		if got := r.isDone(w); got != (bug == BugHoldOneFlag) {
			t.Errorf("%v: complete while b's shrink is undecided: %v", bug, got)
		}
		r.c.Shrunk(r.now, peerB)
		r.pump()
		if !r.isDone(w) {
			t.Errorf("%v: held for ever", bug)
		}
	}
}

// A peer that has left and is about to be taken in again has its own hold to
// wait for.
func TestNoGrowBeforeTheShrinkIsDurable(t *testing.T) {
	r := trio(t, NoBug)
	r.c.Prepare(r.now, PrepShrink, peerC)
	r.pump()
	r.as(peerB).recv(wire.Ctl, wire.Msg{Type: wire.Proposed, Epoch: 1, Off: r.c.sb.Proposed})
	r.holdMeta = true
	r.c.Shrunk(r.now, peerC)
	r.up = nil
	r.c.Prepare(r.now, PrepGrow, peerC)
	r.pump()
	if len(r.up) == 0 || r.up[len(r.up)-1].Kind != Ready || r.up[len(r.up)-1].Err == OK {
		t.Errorf("prepared: %+v", r.up)
	}
}

// TestGrowOfOneWhileAnotherIsLost: c is being taken in when b's link breaks. The
// grow goes on, and what b has not acknowledged waits for b all the same.
func TestGrowOfOneWhileAnotherIsLost(t *testing.T) {
	r := newTrio(t, NoBug)
	r.promote(1)
	r.as(peerB).mirror(1, true)
	r.as(peerC).mirror(1, false)
	w := r.write(0, 4096, 0)
	r.up = nil
	r.c.Prepare(r.now, PrepGrow, peerC)
	r.pump()
	r.c.LinkDown(r.now, peerB)
	r.pump()
	r.ack(peerC, w)
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncAck, Epoch: 1})
	if !r.saw(Ready) {
		t.Fatalf("the grow hangs on b: %s", r.c.Describe())
	}
	if r.isDone(w) {
		t.Fatal("complete without b, which counts")
	}
	r.c.Prepare(r.now, PrepShrink, peerB)
	r.pump()
	r.recv(wire.Ctl, wire.Msg{Type: wire.Proposed, Epoch: 1, Off: r.c.sb.Proposed})
	r.c.Shrunk(r.now, peerB)
	r.pump()
	if !r.isDone(w) {
		t.Errorf("held although b has left and c has it: %s", r.c.Describe())
	}
}

// TestTheOthersHearOfAGeneration: the CAS of a shrink names a generation, and
// every member with a session carries it, or has heard of it, before the CAS.
func TestTheOthersHearOfAGeneration(t *testing.T) {
	for _, end := range []string{"answer", "link down", "no answer"} {
		r := trio(t, NoBug)
		r.up = nil
		r.c.Prepare(r.now, PrepShrink, peerC)
		r.pump()
		m := r.sentTo(peerB, wire.Propose)
		if len(m) != 1 || m[0].Off != r.c.sb.Proposed || r.saw(Ready) {
			t.Fatalf("proposals to b: %v; ready: %v", m, r.saw(Ready))
		}
		if len(r.sentTo(peerC, wire.Propose)) != 0 {
			t.Error("who leaves was told")
		}
		switch end {
		case "answer":
			r.as(peerB).recv(wire.Ctl, wire.Msg{Type: wire.Proposed, Epoch: 1, Off: m[0].Off + 1})
			if r.saw(Ready) {
				t.Error("an answer to something else counts")
			}
			r.as(peerB).recv(wire.Ctl, wire.Msg{Type: wire.Proposed, Epoch: 1, Off: m[0].Off})
		case "link down":
			r.c.LinkDown(r.now, peerB)
		case "no answer":
			r.now += 7e9
			r.c.Tick(r.now)
		}
		r.pump()
		if !r.saw(Ready) {
			t.Errorf("%s: never ready", end)
		}
	}
}

// The proposal of an aborted shrink is not answered by a link that breaks later.
func TestAbortedProposal(t *testing.T) {
	r := trio(t, NoBug)
	r.c.Prepare(r.now, PrepShrink, peerC)
	r.pump()
	r.c.Abort(r.now, PrepShrink, peerC)
	r.up = nil
	r.c.LinkDown(r.now, peerB)
	r.pump()
	if r.saw(Ready) {
		t.Error("ready for a shrink that was given up")
	}
}

// TestAdoptTellsWhoLeft: after the shrink of c, b learns the generation, and its
// base for b goes when b says that it carries it.
func TestAdoptTellsWhoLeft(t *testing.T) {
	r := trio(t, NoBug)
	old := r.c.sb.Current
	r.c.Prepare(r.now, PrepShrink, peerC)
	r.pump()
	r.as(peerB).recv(wire.Ctl, wire.Msg{Type: wire.Proposed, Epoch: 1, Off: r.c.sb.Proposed})
	r.c.Shrunk(r.now, peerC)
	r.pump()
	m := r.sentTo(peerB, wire.Adopt)
	if len(m) != 1 || m[0].Off != r.c.sb.Current || m[0].Tag != old {
		t.Fatalf("b is told %v, the generation is %d after %d", m, r.c.sb.Current, old)
	}
	base := func(p int) uint64 { return r.c.sb.Peers[r.c.peers[p].slot].Base }
	if base(peerB) != old || base(peerC) != old {
		t.Errorf("bases %d and %d before b has said anything", base(peerB), base(peerC))
	}
	r.as(peerB).recv(wire.Ctl, wire.Msg{Type: wire.Adopted, Epoch: 1, Off: r.c.sb.Current})
	if base(peerB) != 0 || base(peerC) != old {
		t.Errorf("bases %d and %d after b carries it", base(peerB), base(peerC))
	}
}

// member makes the core a Secondary of b in epoch 5 that carries generation 500.
func member(t testing.TB, bug Bug) *rig {
	r := newTrio(t, bug)
	r.as(peerB).follow(5)
	body := make([]byte, 8*meta.HistoryLen)
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncDone, Epoch: 5, Off: 500, Body: body})
	r.sent = nil
	return r
}

// TestHeardIsAsGoodAsCarried: a member that has heard of a generation says so to
// the layer above, also after a restart, and whoever takes over from a primary
// that has adopted it knows it as its past.
func TestHeardIsAsGoodAsCarried(t *testing.T) {
	r := member(t, NoBug)
	r.recv(wire.Ctl, wire.Msg{Type: wire.Propose, Epoch: 5, Off: 600})
	if len(r.sentTo(peerB, wire.Proposed)) != 1 {
		t.Fatal("not answered")
	}
	if _, cur, prop, _ := r.c.Copy(); cur != 500 || prop != 600 {
		t.Fatalf("current %d, proposed %d", cur, prop)
	}
	r.c.LinkDown(r.now, peerB)
	r.pump()
	r.promote(6)
	if r.c.sb.Current == 600 || r.c.sb.History[0] != 600 || r.c.sb.History[1] != 500 {
		t.Fatalf("generation %d after %v", r.c.sb.Current, r.c.sb.History)
	}
	for _, current := range []uint64{500, 600} {
		mine := &r.c.sb.Peers[r.c.peers[peerB].slot]
		v, name := Judge(&Ancestry{r.c.sb.Current, mine.Base, r.c.sb.History[:], false}, &Ancestry{current, 0, []uint64{500}, false})
		if v != SourceBitmap {
			t.Errorf("the old primary with generation %d: %v (%s)", current, v, name)
		}
	}
}

// A proposal of our own is what counts when the record shows another epoch than
// the one in which we heard of one.
func TestHeardEndsWithItsEpoch(t *testing.T) {
	r := member(t, NoBug)
	r.c.sb.Proposed = 700
	r.recv(wire.Ctl, wire.Msg{Type: wire.Propose, Epoch: 5, Off: 600})
	r.up = nil
	r.c.SetVote(r.now, meta.Vote{ClusterID: 9, Epoch: 6}, 2)
	r.pump()
	if _, _, prop, _ := r.c.Copy(); prop != 700 || !r.saw(CopyChanged) {
		t.Errorf("proposed %d, news %v", prop, r.saw(CopyChanged))
	}
}

// TestNewsOfAGenerationThatNobodyProposed ends the session.
func TestNewsOfAGenerationThatNobodyProposed(t *testing.T) {
	r := member(t, NoBug)
	r.recv(wire.Ctl, wire.Msg{Type: wire.Adopt, Epoch: 5, Off: 601, Tag: 999})
	if r.c.peers[peerB].link || r.c.sb.Current != 500 {
		t.Errorf("generation %d, link %v", r.c.sb.Current, r.c.peers[peerB].link)
	}
	r = member(t, NoBug)
	r.recv(wire.Ctl, wire.Msg{Type: wire.Adopt, Epoch: 5, Off: 601, Tag: 500})
	if !r.c.peers[peerB].link || r.c.sb.Current != 601 || r.c.sb.History[0] != 500 || r.c.sb.Peers[r.c.peers[peerC].slot].Base != 500 {
		t.Errorf("news of the next generation: %+v", r.c.sb)
	}
}

// TestPendingProposalOutlivesASession: the CAS may still be decided when the link
// is back, and what the primary says first is the generation before it.
func TestPendingProposalOutlivesASession(t *testing.T) {
	r := member(t, NoBug)
	r.recv(wire.Ctl, wire.Msg{Type: wire.Propose, Epoch: 5, Off: 600})
	r.recv(wire.Ctl, wire.Msg{Type: wire.Adopt, Epoch: 5, Off: 500, Tag: 499})
	if _, _, prop, _ := r.c.Copy(); prop != 600 {
		t.Errorf("proposed %d", prop)
	}
	r.recv(wire.Ctl, wire.Msg{Type: wire.Adopt, Epoch: 5, Off: 600, Tag: 500})
	if _, cur, prop, _ := r.c.Copy(); cur != 600 || prop != 0 || r.c.sb.Heard != 0 {
		t.Errorf("current %d, proposed %d", cur, prop)
	}
}

// TestMemberTakesOverBeforeItForgets: at the start of a session a Secondary has
// its primary's bits for the other node on disk before anything leaves its log,
// and says Kept when the log is on disk too.
func TestMemberTakesOverBeforeItForgets(t *testing.T) {
	r := member(t, NoBug)
	r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: 1, Off: 0, Len: 4096, Body: make([]byte, 4096)})
	if n, has := r.hot(); n != 1 || !has(0) {
		t.Fatal("the write is not in the log")
	}
	r.holdMeta = true
	words := make([]byte, 16)
	words[8] = 0x0f
	r.recv(wire.Data, wire.Msg{Type: wire.Lacks, Epoch: 5, Off: nodeID("c"), Tag: 2, Body: words})
	r.recv(wire.Data, wire.Msg{Type: wire.HotSet, Epoch: 5, Flags: adoptLog, Body: extents(3, 4)})
	r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: 2, Off: 4096, Len: 4096, Body: make([]byte, 4096)})
	if n, has := r.hot(); n != 1 || !has(0) {
		t.Fatal("the log has changed before the bits are durable")
	}
	if r.c.OutOfSync(peerC) != 4*4096 {
		t.Errorf("%d bytes are known to be missing on c", r.c.OutOfSync(peerC))
	}
	if len(r.sentTo(peerB, wire.Kept)) != 0 || len(r.apps) != 1 {
		t.Fatal("something went on before it")
	}
	r.written()
	if n, has := r.hot(); n != 3 || !has(3) || !has(4) || !has(0) {
		t.Errorf("the log names %d extents", n) // 3 and 4 were taken over, 0 is written to again
	}
	if len(r.sentTo(peerB, wire.Kept)) != 1 || len(r.sentTo(peerB, wire.Ack)) != 2 {
		t.Errorf("%v", r.sent)
	}
}

// An extent that the primary retires while its log is being taken over is not
// taken over; the log would fill up with what nobody will ever retire again.
func TestRetiredWhileTakenOver(t *testing.T) {
	r := member(t, NoBug)
	r.holdMeta = true
	r.recv(wire.Data, wire.Msg{Type: wire.HotSet, Epoch: 5, Flags: adoptLog, Body: extents(3, 4)})
	r.recv(wire.Data, wire.Msg{Type: wire.Retire, Epoch: 5, Body: extents(3)})
	r.written()
	if n, has := r.hot(); n != 1 || !has(4) {
		t.Errorf("the log names %d extents", n)
	}
	// The same a moment later: taken over, and not yet durable.
	r = member(t, NoBug)
	r.recv(wire.Data, wire.Msg{Type: wire.HotSet, Epoch: 5, Flags: adoptLog, Body: extents(3, 4)})
	for i := range r.c.al.slots {
		if s := &r.c.al.slots[i]; s.state == slotHot {
			s.state = slotEntering
		}
	}
	r.recv(wire.Data, wire.Msg{Type: wire.Retire, Epoch: 5, Body: extents(3)})
	if n, has := r.hot(); n != 1 || !has(4) {
		t.Errorf("entering: the log names %d extents", n)
	}
}

// TestRetireWaitsForTheBits: what the primary retires leaves a Secondary's log
// behind the bits that came with it; used again meanwhile, it stays.
func TestRetireWaitsForTheBits(t *testing.T) {
	r := member(t, NoBug)
	for e := range int64(2) {
		r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: uint64(e), Off: uint64(e) << r.c.sb.ExtentShift, Len: 4096, Body: make([]byte, 4096)})
	}
	r.holdMeta = true
	r.recv(wire.Data, wire.Msg{Type: wire.Lacks, Epoch: 5, Off: nodeID("c"), Body: []byte{1, 0, 0, 0, 0, 0, 0, 0}})
	r.recv(wire.Data, wire.Msg{Type: wire.Retire, Epoch: 5, Body: extents(0, 1)})
	if n, _ := r.hot(); n != 2 {
		t.Fatalf("%d extents are left before the bits are durable", n)
	}
	r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: 9, Off: 8192, Len: 4096, Body: make([]byte, 4096)})
	r.written()
	if n, has := r.hot(); n != 1 || !has(0) {
		t.Errorf("the log names %d extents", n)
	}
}

// TestPrimaryTellsWhatTheOthersLack: at the start of a session all of it, with a
// retirement what lies in the extents, and nothing of a resync before Kept.
func TestPrimaryTellsWhatTheOthersLack(t *testing.T) {
	r := newTrio(t, NoBug)
	r.promote(1)
	r.write(40<<20, 4096, 0) // both lack it
	r.as(peerB)
	r.c.LinkUp(r.now, peerB)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(false, 1, 0))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: 1})
	m := r.sentTo(peerB, wire.Lacks)
	if len(m) == 0 || m[0].Off != nodeID("c") {
		t.Fatalf("b is told %v", m)
	}
	for _, e := range r.sent {
		if e.Msg.Type == wire.Lacks && e.Msg.Off == nodeID("b") {
			t.Error("b is told what b lacks")
		}
	}
	if r.c.peers[peerB].rs.active != 0 || !r.saw(SessionUp) {
		t.Fatal("a resync has begun before b could take over")
	}
	r.recv(wire.Data, wire.Msg{Type: wire.Kept, Epoch: 1})
	if r.c.peers[peerB].rs.active == 0 {
		t.Fatal("no resync after it")
	}
	r.resync(1)
	r.sent = nil
	// Fill the log until something is retired.
	for e := int64(0); e < 63; e++ {
		w := r.write(e<<20, 4096, FUA)
		r.ack(peerB, w)
		for _, f := range r.sentTo(peerB, wire.Flush) {
			if r.c.find(Tag(f.Tag)) != nil {
				r.ack(peerB, Tag(f.Tag))
			}
		}
	}
	gone := -1
	for i, e := range r.sent {
		if e.Msg.Type == wire.Retire {
			gone = i
			break
		}
	}
	if gone < 1 || r.sent[gone-1].Msg.Type != wire.Lacks || r.sent[gone-1].Msg.Off != nodeID("c") {
		t.Errorf("what c lacks does not come before the retirement: frame %d", gone)
	}
}

// TestLevelClearsBothWays: when b and c are level with us, each is told of the
// other, once, and again after a link has broken.
func TestLevelClearsBothWays(t *testing.T) {
	r := trio(t, NoBug)
	r.c.Tick(r.now)
	r.pump()
	levels := func() (int, int) { return len(r.sentTo(peerB, wire.Level)), len(r.sentTo(peerC, wire.Level)) }
	r.c.Tick(r.now)
	r.pump()
	if b, c := levels(); b+c > 2 {
		t.Fatalf("%d and %d times", b, c)
	}
	if p := &r.c.peers[peerB]; p.knows != 1<<peerC || r.c.peers[peerC].knows != 1<<peerB {
		t.Fatalf("b knows %b, c %b", p.knows, r.c.peers[peerC].knows)
	}
	r.c.LinkDown(r.now, peerC)
	r.pump()
	if p := &r.c.peers[peerB]; p.knows != 0 {
		t.Error("b would not be told again")
	}

	s := member(t, NoBug)
	s.c.peers[peerC].bits.set(0, 10)
	s.recv(wire.Data, wire.Msg{Type: wire.Level, Epoch: 5, Off: nodeID("c"), Tag: 499})
	if s.c.OutOfSync(peerC) == 0 {
		t.Error("level under another generation than ours")
	}
	s.recv(wire.Data, wire.Msg{Type: wire.Level, Epoch: 5, Off: nodeID("c"), Tag: 500})
	if s.c.OutOfSync(peerC) != 0 {
		t.Error("the bits are still there")
	}
}

// TestSurvivorTellsItsLog: a Secondary that follows another primary tells what
// the last one sent it, and what it says to one it keeps for all.
func TestSurvivorTellsItsLog(t *testing.T) {
	r := member(t, NoBug)
	r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: 1, Off: 9 << 20, Len: 4096, Body: make([]byte, 4096)})
	r.c.LinkDown(r.now, peerB)
	r.pump()
	r.as(peerC)
	r.c.LinkUp(r.now, peerC)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(true, 6, 800))
	r.c.SetVote(r.now, meta.Vote{ClusterID: 9, Epoch: 6}, 3)
	r.pump()
	r.c.Follow(r.now, peerC, 6)
	r.pump()
	if len(r.sentTo(peerC, wire.DirtyPage)) == 0 {
		t.Fatal("c is not told of the extent")
	}
	for _, p := range []int{peerB, peerC} {
		if got := r.c.OutOfSync(p); got != 1<<20 {
			t.Errorf("%d bytes for %s", got, r.c.peers[p].name)
		}
	}
	// The same primary's next session is about what that primary knows.
	r = member(t, NoBug)
	r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: 1, Off: 9 << 20, Len: 4096, Body: make([]byte, 4096)})
	r.c.LinkDown(r.now, peerB)
	r.pump()
	r.c.LinkUp(r.now, peerB)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(true, 5, 500))
	r.c.Follow(r.now, peerB, 5)
	r.pump()
	if r.c.OutOfSync(peerB) != 0 {
		t.Error("a glitch costs a resync of the whole log")
	}
}

// TestFollowWaitsForAnothersFrames: what the last primary sent is on its way to
// our disk; the new one's frames for the same blocks would not be ordered.
func TestFollowWaitsForAnothersFrames(t *testing.T) {
	r := member(t, NoBug)
	r.hold = true
	r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: 1, Off: 0, Len: 4096, Body: make([]byte, 4096)})
	r.as(peerC)
	r.c.LinkUp(r.now, peerC)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(true, 6, 800))
	r.c.SetVote(r.now, meta.Vote{ClusterID: 9, Epoch: 6}, 3)
	r.pump()
	r.c.Follow(r.now, peerC, 6)
	r.pump()
	if len(r.sentTo(peerC, wire.DirtyEnd)) != 0 || r.c.peers[peerB].link {
		t.Fatal("followed beside a write of b")
	}
	r.hold = false
	r.answer()
	if len(r.sentTo(peerC, wire.DirtyEnd)) != 1 {
		t.Error("not followed after it")
	}
}

// TestOldAgentInALargerCluster: between two nodes an agent that does not know
// others.go is spoken to; among three it would forget what only it knows.
func TestOldAgentInALargerCluster(t *testing.T) {
	for _, peers := range [][]string{{"b"}, {"b", "c"}} {
		r := newRigOf(t, NoBug, peers...)
		h, err := decodeHello(r.peerHello(false, 1, 0).Body)
		if err != nil {
			t.Fatal(err)
		}
		h.Features = nil
		err = r.c.acceptable(&r.c.peers[0], h)
		if (err != nil) != (len(peers) > 1) || err != nil && !strings.Contains(err.Error(), "bring its agent") {
			t.Errorf("%d peers: %v", len(peers), err)
		}
	}
}

// TestNonsenseAboutOthers: frames that make no sense end the session and change
// nothing.
func TestNonsenseAboutOthers(t *testing.T) {
	many := make([]byte, 4*(meta.MaxALSlots+1))
	for i := range meta.MaxALSlots + 1 {
		binary.LittleEndian.PutUint32(many[4*i:], uint32(i))
	}
	for _, m := range []wire.Msg{
		{Type: wire.Lacks, Off: nodeID("c"), Tag: 1 << 40, Body: make([]byte, 8)},
		{Type: wire.Lacks, Off: nodeID("c"), Body: make([]byte, 7)},
		{Type: wire.Lacks, Off: nodeID("b"), Body: make([]byte, 8)},
		{Type: wire.HotSet, Flags: adoptLog, Body: many},
		{Type: wire.HotSet, Flags: adoptLog, Body: extents(1 << 31)},
		{Type: wire.Adopt},
		{Type: wire.Kept},
		{Type: wire.Proposed},
	} {
		r := member(t, NoBug)
		m.Epoch = 5
		r.recv(wire.Data, m)
		if n, _ := r.hot(); r.c.peers[peerB].link || n != 0 || r.c.OutOfSync(peerC) != 0 {
			t.Errorf("%v: link %v, %d extents, %d bytes", &m, r.c.peers[peerB].link, n, r.c.OutOfSync(peerC))
		}
	}
	// A node that is not in our config is nobody's peer here.
	r := member(t, NoBug)
	r.recv(wire.Data, wire.Msg{Type: wire.Lacks, Epoch: 5, Off: 12345, Body: make([]byte, 8)})
	if !r.c.peers[peerB].link {
		t.Error("the session ends over a node that we do not know")
	}
}

// TestHotPathOfThreeAllocatesNothing is TestHotPathAllocatesNothing with one peer
// more.
func TestHotPathOfThreeAllocatesNothing(t *testing.T) {
	r := trio(t, NoBug)
	c := r.c
	drain := func() {
		for c.Pending() {
			c.Effects()
		}
	}
	w := r.write(4096, 4096, FUA)
	r.ack(peerB, w)
	r.ack(peerC, w)
	m := wire.Msg{Type: wire.Ack, Epoch: 1}
	one := func() {
		w := c.Submit(r.now, OpWrite, 4096, 4096, FUA)
		drain()
		c.DiskDone(r.now, w, OK)
		m.Tag = uint64(w)
		c.Recv(r.now, peerB, wire.Data, &m)
		c.Recv(r.now, peerC, wire.Data, &m)
		drain()
		c.Sent(r.now, w)
		drain()
	}
	for range 100 {
		one()
	}
	if n := testing.AllocsPerRun(1000, one); n > 0 {
		t.Errorf("%v allocations a write", n)
	}
}
