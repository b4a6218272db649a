package blockrepl

import (
	"slices"
	"testing"

	"tandem/blockrepl/wire"
)

// Each test here is a hole that a review found, told as its events.

// A: link drops while the retirement's flush waits for the peer only.
func TestLinkDownDuringRetirement(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	// W acked by the peer, not flushed.
	w := r.write(0, 4096, 0)
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	if !r.isDone(w) {
		t.Fatal("w")
	}
	if r.c.peers[0].unflushed.empty() {
		t.Fatal("nothing unflushed")
	}
	// retirement begins: the local flush is done, the peer's flush is not answered
	r.c.retire(1)
	r.pump()
	if !r.c.al.retiring {
		t.Fatal("not retiring")
	}
	r.c.LinkDown(r.now, 0)
	// inspect before the effects are carried out
	_, hot := r.c.al.index[0]
	p := &r.c.peers[0]
	t.Logf("after LinkDown: extent 0 in the log: %v; bits %d; bitmap not on disk (stale): %v; pages job wanted/busy: %v/%v", hot, p.bits.count, p.bits.stale, r.c.job.want&wantPages != 0, r.c.job.busy)
	r.pump()
	_, hot = r.c.al.index[0]
	t.Logf("after all effects: extent 0 in the log: %v; bits %d; stale %v; want %b busy %v", hot, p.bits.count, p.bits.stale, r.c.job.want, r.c.job.busy)
	if !hot && p.bits.stale && r.c.job.want&wantPages == 0 {
		t.Error("extent 0 left the log, its dirty bit for the peer is not on disk and nobody writes it")
	}
}

// E: Shrunk while a chunk of the peer is asked.
func TestShrunkWithAChunkUnderWay(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	w := r.write(0, 4096, 0)
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	r.c.LinkDown(r.now, 0)
	r.pump()
	r.c.LinkUp(r.now, 0)
	r.pump()
	h := r.peerHello(false, 1, r.c.sb.Current)
	r.recv(wire.Ctl, h)
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: 1})
	p := &r.c.peers[0]
	t.Logf("%v active=%d", p.session, p.rs.active)
	var chunk *op
	for _, i := range r.c.active {
		if o := r.c.ops[i]; o.origin == resyncSource {
			chunk = o
		}
	}
	if chunk == nil {
		t.Fatal("no chunk")
	}
	tag := chunk.tag()
	// lease ran out while the link stands: shrink
	r.c.Prepare(r.now, PrepShrink, 0)
	r.pump()
	r.c.Shrunk(r.now, 0)
	r.pump()
	if r.c.find(tag) == nil && p.link {
		t.Error("the chunk in flight, and its range lock, is gone, and its answer may still come")
	}
}

// E2: Shrunk completes a retirement's flush that the still mirrored peer has not answered
func TestShrunkDuringRetirement(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	w := r.write(0, 4096, 0)
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	r.c.retire(1)
	r.pump()
	r.c.Prepare(r.now, PrepShrink, 0)
	r.pump()
	r.sent = nil
	r.c.Shrunk(r.now, 0)
	r.pump()
	_, hot := r.c.al.index[0]
	if !hot && !r.c.peers[0].unflushed.empty() {
		t.Errorf("extent 0 left the log (Retire sent to the peer: %v) although the mirrored peer has not flushed it", r.lastSent(wire.Retire) != nil)
	}
}

// D: hot spot starves a chunk
func TestHotSpotDoesNotStarveResync(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	for i := int64(0); i < 64; i++ {
		w := r.write(i*4096, 4096, 0)
		r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	}
	r.c.LinkDown(r.now, 0)
	r.pump()
	v := r.write(8<<20, 4096, 0) // waits via resync
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(false, 1, r.c.sb.Current))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	// two writers in the 256 KiB, one always in flight, begun before SyncReady
	r.hold = true
	a := r.write(0, 4096, 0)
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: 1})
	n := 0
	finish := func(x Tag) {
		for i, e := range r.disk {
			if e.Tag == x {
				r.disk = append(r.disk[:i:i], r.disk[i+1:]...)
				r.c.DiskDone(r.now, x, OK)
				r.pump()
				break
			}
		}
		if o := r.c.find(x); o != nil && o.ackOf != 0 {
			r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(x)})
		}
	}
	for ; n < 10000; n++ {
		b := r.write(4096*int64(1+n%60), 4096, 0)
		finish(a)
		a = b
		r.now += 1e6
		r.c.Tick(r.now)
		r.pump()
	}
	p := &r.c.peers[0]
	t.Logf("after %d writes: chunks active %d blocked %d, bits %d, v done: %v", n, p.rs.active, len(p.rs.blocked), p.bits.count, r.isDone(v))
	if len(p.rs.blocked) > 0 {
		t.Error("the chunk never got its range; v, and the first write, hang as long as the load lasts")
	}
}

func TestLinkLostBeforeSyncAck(t *testing.T) {
	// P: Base G0, Current G1; S took G1; link lost before SyncAck; P shrinks: G2
	v, name := Judge(&Ancestry{12, 10, []uint64{11, 10}, false}, &Ancestry{11, 0, []uint64{10}, false})
	if v == SourceFull {
		t.Errorf("%v (%s)", v, name)
	}
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	g0 := r.c.sb.Current
	r.c.LinkDown(r.now, 0)
	r.pump()
	r.c.Prepare(r.now, PrepShrink, 0)
	r.pump()
	r.c.Shrunk(r.now, 0)
	r.pump()
	g1 := r.c.sb.Current
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(false, 1, g0))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: 1})
	r.resync(1)
	t.Log("verdict", r.c.peers[0].judged, r.c.peers[0].session)
	r.c.Prepare(r.now, PrepGrow, 0)
	r.pump()
	t.Log("SyncDone:", r.lastSent(wire.SyncDone).Off == g1)
	// the peer takes g1, its SyncAck is lost with the link
	r.c.LinkDown(r.now, 0)
	r.pump()
	r.c.Prepare(r.now, PrepShrink, 0)
	r.pump()
	r.c.Shrunk(r.now, 0)
	r.pump()
	r.c.LinkUp(r.now, 0)
	r.pump()
	h := hello{Version: HelloVersion, ClusterID: 9, DiskID: 2, VolumeSize: rigVolume, BlockShift: r.c.sb.BlockShift, ExtentShift: r.c.sb.ExtentShift, ALSlots: r.c.sb.ALSlots, Epoch: 1, Current: g1, History: []uint64{g0}}
	r.recv(wire.Ctl, wire.Msg{Type: wire.Hello, Epoch: 1, Body: h.encode()})
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	p := &r.c.peers[0]
	if p.full {
		t.Errorf("verdict %s: whole device is compared, %d blocks dirty", p.judged, p.bits.count)
	}
}

func (r *rig) helloOf(h hello) wire.Msg {
	h.Version, h.ClusterID, h.DiskID, h.VolumeSize = HelloVersion, 9, 2, rigVolume
	h.BlockShift, h.ExtentShift, h.ALSlots = r.c.sb.BlockShift, r.c.sb.ExtentShift, r.c.sb.ALSlots
	return wire.Msg{Type: wire.Hello, Epoch: h.Epoch, Body: h.encode()}
}

// An Outdated target's full compare begins anew with every link.
func TestFullCompareGoesOnAfterAnInterruption(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Current: r.c.sb.Current, Outdated: true}))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: 1})
	p := &r.c.peers[0]
	gen := r.lastSent(wire.SyncStart).Off
	// half of it is compared and flushed
	p.bits.clear(0, p.bits.blocks/2)
	before := p.bits.count
	r.c.LinkDown(r.now, 0)
	r.pump()
	r.c.LinkUp(r.now, 0)
	r.pump()
	// the target as syncStart(modeFull) leaves it
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Current: gen, Inconsistent: true}))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	if p.bits.count > before {
		t.Errorf("%s full=%v: %d blocks were left, now %d", p.judged, p.full, before, p.bits.count)
	}
}

func TestOutdatedEndsWhereTheFullCompareBegins(t *testing.T) {
	r := newRig(t, NoBug)
	r.c.sb.Outdated, r.c.sb.Current = true, 5
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Serving: true, Current: 5}))
	r.c.Follow(r.now, 0, 1)
	r.pump()
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncStart, Epoch: 1, Flags: modeFull, Off: 77})
	t.Logf("target: current %d inconsistent %v outdated %v", r.c.sb.Current, r.c.sb.Inconsistent, r.c.sb.Outdated)
	if r.c.sb.Outdated {
		t.Error("still Outdated while the full compare runs under a generation of its own")
	}
}

// A peer that sends writes without waiting for answers.
func TestAcceptedFramesAreBounded(t *testing.T) {
	r := newRig(t, NoBug)
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Serving: true, Current: 5}))
	r.c.Follow(r.now, 0, 1)
	r.pump()
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncStart, Epoch: 1, Flags: modeBitmap})
	r.hold = true
	body := make([]byte, 4096)
	for i := 0; i < 200000; i++ {
		r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 1, Tag: uint64(i + 1), Off: 0, Len: 4096, Body: body})
		if !r.c.peers[0].link {
			return // it was reset
		}
	}
	t.Errorf("%d frames accepted and not on disk, no reset", r.c.peers[0].accepted)
}

// A failing disk while a promotion prepares: no Ready at all.
func TestDiskFailsDuringPrepare(t *testing.T) {
	r := newRig(t, NoBug)
	r.hold = true
	r.c.Prepare(r.now, PrepAlone, -1)
	r.pump()
	e := r.disk[0]
	r.disk = nil
	r.c.DiskDone(r.now, e.Tag, EIO)
	r.pump()
	if !r.saw(Ready) {
		t.Error("the disk failed the flush of Prepare(PrepAlone), and Ready never comes")
	}
}

// A page of BecomePrimary's job fails, its last block does not: the shell says both.
func TestMetadataFailsDuringPromotion(t *testing.T) {
	r := newRig(t, NoBug)
	r.c.Prepare(r.now, PrepAlone, -1)
	r.pump()
	r.c.BecomePrimary(r.now, 1, r.c.sb.Vote)
	id := uint64(0)
	for _, e := range r.c.Effects() {
		if e.Kind == Meta && e.Last {
			id = e.MetaID
		}
	}
	r.c.DiskFailed(r.now, "metadata: EIO")
	r.c.MetaDone(r.now, id)
	r.pump()
	if r.saw(Began) && r.c.Serving() {
		t.Error("Began, and serving, with a failed disk: every request gets ESHUTDOWN")
	}
}

// A quiesce's flush of a former term ends the quiesce of a later one.
func TestQuiesceOfAnEarlierTerm(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.hold = true
	r.c.Quiesce(r.now)
	r.pump()
	old := r.disk[0]
	r.disk = nil
	r.c.StepDown(r.now, false)
	r.pump()
	r.hold = false
	r.up = nil
	r.promote(2)
	r.hold = true
	r.write(0, 4096, 0)
	r.up = nil
	r.c.Quiesce(r.now)
	r.pump()
	if r.saw(Stopped) {
		t.Fatal("early")
	}
	r.c.DiskDone(r.now, old.Tag, OK)
	r.pump()
	if r.saw(Stopped) {
		t.Error("Stopped while a write is in flight")
	}
}

// The shrink's CAS was sent while the link was down; the link is back, the peer catches up as a
// counted one (modeKeep), and only then is the shrink decided.
func TestShrunkDuringCatchUp(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	w := r.write(0, 4096, 0)
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	r.c.LinkDown(r.now, 0)
	r.pump()
	v := r.write(8<<20, 4096, 0) // issued while the link is down: waits via resync
	r.c.Prepare(r.now, PrepShrink, 0)
	r.pump()
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.sent = nil
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Current: r.c.sb.Current}))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	m := r.lastSent(wire.SyncStart)
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: 1})
	r.c.Shrunk(r.now, 0)
	r.pump()
	p := &r.c.peers[0]
	x := r.write(16<<20, 4096, 0)
	if p.session == mirroring && m.Flags == modeKeep && r.isDone(v) && p.bits.count > 0 {
		t.Errorf("v is acknowledged without the peer, x (%v) goes to it before v: the peer, not Inconsistent, becomes a mixture (%d blocks missing)", r.isDone(x), p.bits.count)
	}
}

// A long request is carried out in parts, a few at a time, and answered when the
// last is complete. 1. The parts so far are complete and hold every slot of the
// log. 2. The next part waits for a slot. 3. Their replies wait for that part:
// nothing moved any more. The ranges, on the other hand, must stay locked until
// the one reply is sent.
func TestLongRequestOverMoreExtentsThanSlots(t *testing.T) {
	for _, kind := range []OpKind{OpZero, OpWrite} {
		if done := longRequest(t, kind, NoBug); done < rigVolume/MaxOpLen {
			t.Errorf("kind %d: %d of %d parts complete, then nothing moves", kind, done, rigVolume/MaxOpLen)
		}
		if done := longRequest(t, kind, BugHeatUntilSent); done == rigVolume/MaxOpLen {
			t.Errorf("kind %d: %v does not show", kind, BugHeatUntilSent)
		}
	}
}

// longRequest carries out one request over the whole volume, three parts at a
// time, and returns how many parts came to their end.
func longRequest(t *testing.T, kind OpKind, bug Bug) (done int) {
	t.Helper()
	const window, parts = 3, rigVolume / MaxOpLen
	r := newRig(t, bug)
	r.promote(1)
	r.mirror(1, true)
	if slots := len(r.c.al.slots); slots >= r.c.sb.Extents() {
		t.Fatalf("%d slots for %d extents", slots, r.c.sb.Extents())
	}
	r.mute = true
	var tags []Tag
	acked := 0
	rest := r.c.Reserve(r.now, kind, 0, rigVolume, 0)
	for range 10 * parts {
		for len(tags) < min(done+window, parts) {
			tags = append(tags, r.c.Part(r.now, rest, MaxOpLen))
			r.pump()
		}
		for ; acked < len(r.sent); acked++ {
			switch m := r.sent[acked].Msg; m.Type {
			case wire.Write, wire.Zero, wire.Flush:
				r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: m.Tag})
			}
		}
		for done < len(tags) && r.isDone(tags[done]) {
			done++
		}
	}
	if done < parts {
		return done
	}

	// The reply is not out yet: who wants a range waits, and gets it afterwards.
	var later []Tag
	for i := range int64(parts) {
		later = append(later, r.c.Submit(r.now, OpRead, i*MaxOpLen, 4096, 0))
		r.pump()
	}
	for i, x := range later {
		if r.isDone(x) {
			t.Errorf("a read got the range of part %d before the reply was sent", i)
		}
	}
	for i, x := range tags {
		r.c.Sent(r.now, x)
		r.pump()
		if !r.isDone(later[i]) {
			t.Errorf("the range of part %d stays locked after the reply", i)
		}
	}
	if len(r.c.active) != 0 || len(r.c.queue) != 0 {
		t.Errorf("%d operations active and %d in the queue at the end", len(r.c.active), len(r.c.queue))
	}
	return done
}

// longRig is a primary alone with the whole volume reserved and two parts begun;
// the disk answers when it is told to.
func longRig(t *testing.T) (r *rig, rest Tag, parts []Tag) {
	t.Helper()
	r = newRig(t, NoBug)
	r.promote(1)
	r.hold, r.mute = true, true
	rest = r.c.Reserve(r.now, OpZero, 0, rigVolume, 0)
	for range 2 {
		parts = append(parts, r.c.Part(r.now, rest, MaxOpLen))
	}
	r.pump()
	return r, rest, parts
}

// The later parts of a long request are overtaken by nobody, and neither do they
// overtake what was there before.
func TestLongRequestKeepsItsPlace(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.hold = true
	before := r.write(rigVolume-4096, 4096, 0)
	rest := r.c.Reserve(r.now, OpZero, 0, rigVolume, 0)
	after := r.c.Submit(r.now, OpRead, rigVolume-4096, 4096, 0)
	r.pump()
	var parts []Tag
	for range rigVolume / MaxOpLen {
		parts = append(parts, r.c.Part(r.now, rest, MaxOpLen))
		r.pump()
	}
	if r.c.find(rest) != nil {
		t.Error("the reservation outlives its last part")
	}
	var order []Tag
	for len(r.disk) > 0 {
		e := r.disk[0]
		r.disk = r.disk[1:]
		order = append(order, e.Tag)
		r.c.DiskDone(r.now, e.Tag, OK)
		r.pump()
	}
	last := parts[len(parts)-1]
	if w, z, x := slices.Index(order, before), slices.Index(order, last), slices.Index(order, after); w < 0 || z < w || x < z {
		t.Errorf("on the disk the write is number %d, the last part %d, the read %d", w, z, x)
	}
	if len(r.c.active) != 0 || len(r.c.queue) != 0 {
		t.Errorf("%d operations active and %d in the queue at the end", len(r.c.active), len(r.c.queue))
	}
}

// A planned stop lets a long request come to its end: its parts are of a request
// that was taken before.
func TestQuiesceWaitsForTheRestOfALongRequest(t *testing.T) {
	r, rest, parts := longRig(t)
	r.c.Quiesce(r.now)
	r.pump()
	for len(parts) < rigVolume/MaxOpLen {
		r.answer()
		parts = append(parts, r.c.Part(r.now, rest, MaxOpLen))
		r.pump()
	}
	r.answer()
	for i, x := range parts {
		if err, ok := r.done[x]; !ok || err != OK {
			t.Errorf("part %d: done %v, errno %d", i, ok, err)
		}
	}
	if r.saw(Stopped) {
		t.Error("stopped before the reply was sent")
	}
	if x := r.c.Reserve(r.now, OpZero, 0, rigVolume, 0); x != 0 {
		t.Error("a new long request is taken during a planned stop")
	}
	for _, x := range parts {
		r.c.Sent(r.now, x)
		r.pump()
	}
	r.answer()
	if !r.saw(Stopped) {
		t.Error("the stop does not come to its end")
	}
}

// When the term ends, what is left of a long request goes with it, also from the
// queue, and the parts that come too late are refused.
func TestStepDownEndsALongRequest(t *testing.T) {
	r, rest, parts := longRig(t)
	queued := r.c.Reserve(r.now, OpWrite, 4096, rigVolume-4096, 0)
	parts = append(parts, r.c.Part(r.now, queued, MaxOpLen))
	r.pump()
	r.c.StepDown(r.now, false)
	r.pump()
	parts = append(parts, r.c.Part(r.now, rest, MaxOpLen), r.c.Part(r.now, queued, MaxOpLen))
	r.pump()
	r.answer()
	for i, x := range parts {
		if err, ok := r.done[x]; !ok || err != ESHUTDOWN {
			t.Errorf("part %d: done %v, errno %d", i, ok, err)
		}
		r.c.Sent(r.now, x)
		r.pump()
	}
	if len(r.c.active) != 0 || len(r.c.queue) != 0 {
		t.Errorf("%d operations active and %d in the queue at the end", len(r.c.active), len(r.c.queue))
	}
	if len(r.c.freeOps) != len(r.c.ops) {
		t.Errorf("%d of %d operations are free", len(r.c.freeOps), len(r.c.ops))
	}
}

// A reservation outside the volume, of nothing, or on a Secondary is refused,
// and a part longer than what is left too.
func TestReserveRefuses(t *testing.T) {
	r := newRig(t, NoBug)
	if x := r.c.Reserve(r.now, OpZero, 0, rigVolume, 0); x != 0 {
		t.Error("a Secondary takes a long request")
	}
	r.promote(1)
	for _, x := range [][2]int64{{rigVolume, 512}, {512, rigVolume}, {-512, rigVolume}, {0, 0}, {0, -1}, {1<<63 - 1, 512}} {
		if r.c.Reserve(r.now, OpZero, x[0], x[1], 0) != 0 {
			t.Errorf("%d+%d is taken", x[0], x[1])
		}
	}
	rest := r.c.Reserve(r.now, OpZero, 0, MaxOpLen+4096, 0)
	for _, n := range []int64{0, -1, MaxOpLen + 1, 1 << 62} {
		x := r.c.Part(r.now, rest, n)
		r.pump()
		if r.done[x] != ESHUTDOWN {
			t.Errorf("a part of %d bytes: errno %d", n, r.done[x])
		}
	}
	for _, n := range []int64{MaxOpLen, 4096} {
		x := r.c.Part(r.now, rest, n)
		r.pump()
		if err, ok := r.done[x]; !ok || err != OK {
			t.Errorf("a part of %d bytes: done %v, errno %d", n, ok, err)
		}
	}
}

// A small write across the border of two parts. 1. The first part is complete, its
// range is locked until the one reply is sent. 2. The write waits for it. 3. A
// second part that took its place only now would wait behind the write, and the
// reply for that part: for ever.
func TestWriteAcrossThePartsOfALongRequest(t *testing.T) {
	for _, bug := range []Bug{NoBug, BugUnreserved} {
		r := newRig(t, bug)
		r.promote(1)
		r.mute = true
		rest := r.c.Reserve(r.now, OpZero, 0, 2*MaxOpLen, 0)
		first := r.c.Part(r.now, rest, MaxOpLen)
		r.pump()
		w := r.write(MaxOpLen-4096, 8192, 0)
		second := r.c.Part(r.now, rest, MaxOpLen)
		r.pump()
		if !r.isDone(first) || r.isDone(w) {
			t.Fatalf("%v: the first part is complete: %v, the write: %v", bug, r.isDone(first), r.isDone(w))
		}
		if bug != NoBug {
			if r.isDone(second) {
				t.Errorf("%v does not show", bug)
			}
			continue
		}
		if !r.isDone(second) {
			t.Fatal("the second part waits for a write that waits for the first")
		}
		for _, x := range []Tag{first, second} {
			r.c.Sent(r.now, x)
			r.pump()
		}
		if !r.isDone(w) {
			t.Error("the write waits for nobody")
		}
	}
}
