package blockrepl

import (
	"bytes"
	"testing"

	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

// rig is one core whose disk answers at once, unless held, and whose peer
// is the test.
type rig struct {
	t    testing.TB
	c    *Core
	now  int64
	disk []Effect // disk requests not yet answered, if held
	hold bool
	mute bool // replies stay on the way: the test calls Sent
	sent []Effect
	done map[Tag]Errno
	up   []Effect // what went to the layer above
	apps []Effect // Apply and RsApply, for their bounds

	at       int      // which peer the test speaks for
	holdMeta bool     // metadata jobs are not answered,
	metas    []uint64 // but remembered
}

const rigVolume = 64 << 20

func newRig(t testing.TB, bug Bug) *rig { return newRigOf(t, bug, "b") }

// newRigOf is a rig of more peers than one.
func newRigOf(t testing.TB, bug Bug, peers ...string) *rig {
	s := &meta.Super{Cluster: "c", Node: "a", DiskID: 1}
	s.VolumeSize = rigVolume
	var err error
	if s.BlockShift, s.ExtentShift, s.ALSlots, s.ALRing, err = meta.Geometry(s.VolumeSize); err != nil {
		t.Fatal(err)
	}
	s.Peers[0].Name = "b"
	st := &meta.State{Super: s}
	for i := range st.Bits {
		st.Bits[i] = make([]uint64, s.Words())
	}
	n := uint64(100)
	r := &rig{t: t, done: make(map[Tag]Errno)}
	r.c = New(Config{Peers: peers, Rand: func() uint64 { n++; return n }, PeerTimeout: 6e9, MarkEvery: 1e9, Bug: bug}, st, "boot", "id")
	r.c.Start(0)
	r.pump()
	return r
}

// pump carries out effects until there are none.
func (r *rig) pump() {
	for r.c.Pending() {
		for _, e := range r.c.Effects() {
			switch e.Kind {
			case Meta:
				if e.Last && r.holdMeta {
					r.metas = append(r.metas, e.MetaID)
				} else if e.Last {
					r.c.MetaDone(r.now, e.MetaID)
				}
			case DiskRead, DiskWrite, DiskZero, DiskFlush, Apply, RsRead, RsApply:
				if e.Kind == Apply || e.Kind == RsApply {
					r.apps = append(r.apps, e)
				}
				if r.hold {
					r.disk = append(r.disk, e)
				} else {
					r.c.DiskDone(r.now, e.Tag, OK)
				}
			case Send:
				r.sent = append(r.sent, e)
			case Complete:
				r.done[e.Tag] = e.Err
				if !r.mute {
					r.c.Sent(r.now, e.Tag)
				}
			case Reset:
				r.c.LinkDown(r.now, e.Peer)
			case PeerHello, SessionUp, CaughtUp, MustLeave, Ready, Began, Stopped, Failed, CopyChanged:
				r.up = append(r.up, e)
			}
		}
	}
}

// written answers the held metadata jobs, and those that follow.
func (r *rig) written() {
	r.holdMeta = false
	for len(r.metas) > 0 {
		id := r.metas[0]
		r.metas = r.metas[1:]
		r.c.MetaDone(r.now, id)
		r.pump()
	}
}

// answer answers the held disk requests.
func (r *rig) answer() {
	for len(r.disk) > 0 {
		e := r.disk[0]
		r.disk = r.disk[1:]
		r.c.DiskDone(r.now, e.Tag, OK)
		r.pump()
	}
}

// lastSent is the newest frame of a type.
func (r *rig) lastSent(t wire.Type) *wire.Msg {
	for i := len(r.sent) - 1; i >= 0; i-- {
		if r.sent[i].Msg.Type == t {
			return &r.sent[i].Msg
		}
	}
	return nil
}

func (r *rig) saw(k EffectKind) bool {
	for _, e := range r.up {
		if e.Kind == k {
			return true
		}
	}
	return false
}

// promote makes the core primary alone in epoch.
func (r *rig) promote(epoch uint64) {
	r.c.Prepare(r.now, PrepAlone, -1)
	r.pump()
	if !r.saw(Ready) {
		r.t.Fatal("not ready to be alone")
	}
	r.c.BecomePrimary(r.now, epoch, meta.Vote{ClusterID: 9, Epoch: epoch, Served: epoch})
	r.pump()
	if !r.saw(Began) {
		r.t.Fatal("did not begin")
	}
	r.c.Serve(r.now, 1<<62)
	r.pump()
}

func (r *rig) recv(ch wire.Channel, m wire.Msg) Tag {
	t := r.c.Recv(r.now, r.at, ch, &m)
	r.pump()
	return t
}

// peerHello is what a fresh peer says.
func (r *rig) peerHello(serving bool, epoch, current uint64) wire.Msg {
	h := hello{Version: HelloVersion, Features: []string{featureOthers}, ClusterID: 9, DiskID: uint64(2 + r.at), VolumeSize: rigVolume,
		BlockShift: r.c.sb.BlockShift, ExtentShift: r.c.sb.ExtentShift, ALSlots: r.c.sb.ALSlots, Epoch: epoch, Serving: serving, Current: current}
	return wire.Msg{Type: wire.Hello, Epoch: epoch, Body: h.encode()}
}

// mirror brings a fresh peer into a mirroring session and, if counted, into
// the counted ones.
func (r *rig) mirror(epoch uint64, counted bool) {
	r.up = nil
	r.c.LinkUp(r.now, r.at)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(false, epoch, 0))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: epoch})
	if r.lastSent(wire.SyncStart) == nil {
		r.t.Fatal("no SyncStart")
	}
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: epoch})
	if len(r.c.peers) > 1 {
		r.recv(wire.Data, wire.Msg{Type: wire.Kept, Epoch: epoch})
	}
	r.resync(epoch)
	if !r.saw(CaughtUp) {
		r.t.Fatalf("not caught up: %s", r.c.Describe())
	}
	if !counted {
		return
	}
	r.up = nil
	r.c.Prepare(r.now, PrepGrow, r.at)
	r.pump()
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncAck, Epoch: epoch})
	if !r.saw(Ready) {
		r.t.Fatal("the grow was not prepared")
	}
}

// resync answers every chunk with "nothing differs".
func (r *rig) resync(epoch uint64) {
	for {
		// The shell sends RsCheck itself; the chunks are the active operations.
		n := 0
		for _, i := range append([]uint32(nil), r.c.active...) {
			o := r.c.ops[i]
			if o.origin == resyncSource && o.phase == running && int(o.peer) == r.at {
				blocks := (o.len + 4095) / 4096
				r.recv(wire.Bulk, wire.Msg{Type: wire.RsNeed, Epoch: epoch, Tag: uint64(o.tag()), Body: make([]byte, (blocks+7)/8)})
				n++
			}
		}
		if m := r.lastSent(wire.RsFlush); m != nil && len(r.c.peers[r.at].rs.flushing) > 0 {
			r.recv(wire.Bulk, wire.Msg{Type: wire.RsFlushed, Epoch: epoch, Tag: m.Tag})
			n++
		}
		if n == 0 {
			return
		}
	}
}

func (r *rig) write(off, n int64, flags uint8) Tag {
	t := r.c.Submit(r.now, OpWrite, off, n, flags)
	r.pump()
	return t
}

// heat brings the first extent into the activity log.
func (r *rig) heat() {
	w := r.write(4096, 4096, FUA)
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	if !r.isDone(w) {
		r.t.Fatalf("the first write hangs: %s", r.c.Describe())
	}
}

func (r *rig) isDone(t Tag) bool { _, ok := r.done[t]; return ok }

func TestWriteWaitsForTheCountedPeer(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	w := r.write(4096, 4096, 0)
	if r.isDone(w) {
		t.Fatal("complete on the local disk alone")
	}
	m := r.lastSent(wire.Write)
	if m == nil || Tag(m.Tag) != w || m.Off != 4096 || m.Len != 4096 {
		t.Fatalf("the write was not mirrored: %v", m)
	}
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	if e, ok := r.done[w]; !ok || e != OK {
		t.Fatalf("not complete after the acknowledgement: %s", r.c.Describe())
	}
}

func TestLeaseGatesCompletionsAndReads(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.now = 1000
	r.c.Serve(r.now, 1000) // it ends now
	w := r.write(0, 512, 0)
	rd := r.c.Submit(r.now, OpRead, 8192, 512, 0)
	r.pump()
	if r.isDone(w) || r.isDone(rd) {
		t.Fatal("completed without a lease")
	}
	r.c.Serve(r.now, 2000)
	r.pump()
	if !r.isDone(w) || !r.isDone(rd) {
		t.Fatal("held although the lease was renewed")
	}
}

func TestReadWaitsForAnOverlappingWrite(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	w := r.write(0, 8192, 0)
	rd := r.c.Submit(r.now, OpRead, 4096, 4096, 0)
	r.pump()
	if r.isDone(rd) {
		t.Fatal("read what is not on every counted copy")
	}
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	if !r.isDone(rd) {
		t.Fatalf("the read never came: %s", r.c.Describe())
	}
}

func TestLostLinkLeavesBitsAndHoldsTheWrite(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	acked := r.write(1<<20, 4096, 0)
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(acked)})
	w := r.write(4096, 4096, 0)
	r.c.LinkDown(r.now, 0)
	r.pump()
	if r.isDone(w) {
		t.Fatal("complete without the counted peer")
	}
	if got := r.c.OutOfSync(0); got != 8192 {
		t.Fatalf("%d bytes dirty, want the one in flight and the one not flushed: 8192", got)
	}
	// The shrink is decided: the write goes on, with a new generation on disk.
	r.up = nil
	r.c.Prepare(r.now, PrepShrink, 0)
	r.pump()
	if !r.saw(Ready) || r.isDone(w) {
		t.Fatal("the shrink is not prepared, or completions are not held")
	}
	gen := r.c.Generation()
	r.c.Shrunk(r.now, 0)
	r.pump()
	if !r.isDone(w) || r.c.Generation() == gen || r.c.sb.Peers[0].Base != gen {
		t.Fatalf("after the shrink: done %v, generation %x, base %x", r.isDone(w), r.c.Generation(), r.c.sb.Peers[0].Base)
	}
}

func TestFlushedWriteLeavesNoBit(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	w := r.write(4096, 4096, 0)
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(w)})
	f := r.c.Submit(r.now, OpFlush, 0, 0, 0)
	r.pump()
	if r.isDone(f) {
		t.Fatal("FLUSH complete before the peer has flushed")
	}
	r.recv(wire.Data, wire.Msg{Type: wire.Ack, Epoch: 1, Tag: uint64(f)})
	if !r.isDone(f) {
		t.Fatal("FLUSH not complete")
	}
	r.c.LinkDown(r.now, 0)
	r.pump()
	if n := r.c.OutOfSync(0); n != 0 {
		t.Fatalf("%d bytes dirty after everything was flushed", n)
	}
}

// TestOldSessionDrainsBeforeHello: what an old session brought is on its way to
// the disk when the new link comes up.
func TestOldSessionDrainsBeforeHello(t *testing.T) {
	r := newRig(t, NoBug)
	r.follow(5)
	r.hold = true
	r.recv(wire.Data, wire.Msg{Type: wire.Write, Epoch: 5, Tag: 77, Off: 0, Len: 4096, Body: make([]byte, 4096)})
	if len(r.disk) != 1 {
		t.Fatalf("%d disk requests, want the write", len(r.disk))
	}
	r.c.LinkDown(r.now, 0)
	r.sent = nil
	r.c.LinkUp(r.now, 0)
	r.pump()
	if r.lastSent(wire.Hello) != nil {
		t.Fatal("hello before the old write was on disk")
	}
	r.answer()
	if r.lastSent(wire.Hello) == nil {
		t.Fatal("no hello after it")
	}
	if r.lastSent(wire.Ack) != nil {
		t.Fatal("a write of the old session was acknowledged in the new one")
	}
}

// follow makes the core the secondary of a primary in epoch.
func (r *rig) follow(epoch uint64) {
	r.c.LinkUp(r.now, r.at)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(true, epoch, 500))
	r.c.SetVote(r.now, meta.Vote{ClusterID: 9, Epoch: epoch}, 1)
	r.pump()
	r.c.Follow(r.now, r.at, epoch)
	r.pump()
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncStart, Epoch: epoch, Flags: modeFull, Off: 499})
	if r.lastSent(wire.SyncReady) == nil {
		r.t.Fatal("no SyncReady")
	}
}

// TestFreshDiskTakesTheGenerationAtTheEnd: during a resync the target carries a
// generation of its own, and is Inconsistent on disk before the first block.
func TestFreshDiskTakesTheGenerationAtTheEnd(t *testing.T) {
	r := newRig(t, NoBug)
	r.follow(5)
	if usable, cur, _, _ := r.c.Copy(); usable || cur != 499 {
		t.Fatalf("during the resync: usable %v, generation %d", usable, cur)
	}
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncDone, Epoch: 5, Off: 500})
	if usable, cur, _, _ := r.c.Copy(); !usable || cur != 500 {
		t.Fatalf("after it: usable %v, generation %d", usable, cur)
	}
	if r.lastSent(wire.SyncAck) == nil {
		t.Fatal("no SyncAck")
	}
}

// TestRequestsOutsideTheVolume are refused and leave nothing behind.
func TestRequestsOutsideTheVolume(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	for _, x := range [][2]int64{{rigVolume, 512}, {rigVolume - 512, 1024}, {-512, 512}, {0, MaxOpLen + 1}, {1<<63 - 1, 512}} {
		w := r.write(x[0], x[1], 0)
		if e, ok := r.done[w]; !ok || e != EINVAL {
			t.Errorf("write of %d+%d: done %v, error %d", x[0], x[1], ok, e)
		}
	}
	if len(r.c.active) != 0 {
		t.Fatalf("operations left: %s", r.c.Describe())
	}
}

// TestActivityLogTurnsOver writes to more extents than the log has slots.
func TestActivityLogTurnsOver(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	sh := r.c.sb.ExtentShift
	for i := range int64(rigVolume >> sh) {
		if w := r.write(i<<sh, 4096, 0); !r.isDone(w) {
			t.Fatalf("write %d hangs: %s", i, r.c.Describe())
		}
	}
	if r.c.stats.ALWrites == 0 {
		t.Fatal("nothing was logged")
	}
}

// TestHotPathAllocatesNothing: a mirrored write into a hot extent.
func TestHotPathAllocatesNothing(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	r.heat()
	c := r.c
	drain := func() {
		for c.Pending() {
			c.Effects()
		}
	}
	m := wire.Msg{Type: wire.Ack, Epoch: 1}
	one := func() {
		w := c.Submit(r.now, OpWrite, 4096, 4096, FUA)
		drain()
		c.DiskDone(r.now, w, OK)
		m.Tag = uint64(w)
		c.Recv(r.now, 0, wire.Data, &m)
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

func BenchmarkMirroredWrite(b *testing.B) {
	r := newRig(b, NoBug)
	r.promote(1)
	r.mirror(1, true)
	r.heat()
	c := r.c
	m := wire.Msg{Type: wire.Ack, Epoch: 1}
	b.ReportAllocs()
	for b.Loop() {
		w := c.Submit(0, OpWrite, 4096, 4096, FUA)
		c.Effects()
		c.DiskDone(0, w, OK)
		m.Tag = uint64(w)
		c.Recv(0, 0, wire.Data, &m)
		c.Effects()
		c.Sent(0, w)
		c.Effects()
	}
}

func TestHelloRoundTrip(t *testing.T) {
	r := newRig(t, NoBug)
	b := r.c.ourHello(&r.c.peers[0])
	h, err := decodeHello(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(h.encode(), b) {
		t.Fatalf("%s\nbecame\n%s", b, h.encode())
	}
}

// TestResyncKeepsToItsRate: what is begun never runs ahead of the rate by more
// than the slack.
func TestResyncKeepsToItsRate(t *testing.T) {
	r := newRig(t, NoBug)
	r.c.cfg.ResyncRate = 10 << 20
	r.promote(1)
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.peerHello(false, 1, 0))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	r.recv(wire.Ctl, wire.Msg{Type: wire.SyncReady, Epoch: 1})
	for range 100 {
		r.resync(1)
		limit := 10<<20*(float64(r.now)/1e9+rateSlack) + chunkBlocks*4096
		if got := float64(r.c.peers[0].rs.begun); got > limit {
			t.Fatalf("after %d ms: %v bytes begun, at most %v are allowed", r.now/1e6, got, limit)
		}
		r.now += 50e6
		r.c.Tick(r.now)
		r.pump()
	}
	if got := r.c.peers[0].rs.Done; got < 40<<20 {
		t.Fatalf("only %d bytes in 5 s at 10 MiB/s", got)
	}
}
