package blockrepl

import (
	"encoding/binary"
	"testing"

	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

// remake starts another life of r's disk with other peers; bits are those of
// slot 0.
func (r *rig) remake(words []uint64, peers ...string) *Core {
	s := r.c.sb
	st := &meta.State{Super: &s}
	for i := range st.Bits {
		st.Bits[i] = make([]uint64, s.Words())
	}
	copy(st.Bits[0], words)
	n := uint64(1000)
	c := New(Config{Peers: peers, Rand: func() uint64 { n++; return n }, PeerTimeout: 6e9, MarkEvery: 1e9}, st, "boot", "id")
	r.c = c
	c.Start(r.now)
	r.pump()
	return c
}

// forgot carries out what is pending and says which node is durably forgotten.
func (r *rig) forgot(held bool) (node string) {
	for r.c.Pending() {
		for _, e := range r.c.Effects() {
			if e.Kind == Forgot {
				node = e.Text
			}
			if e.Kind == Meta && e.Last && !held {
				r.c.MetaDone(r.now, e.MetaID)
			}
		}
	}
	return node
}

func TestForget(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	w := r.write(0, 4096, FUA)
	if !r.isDone(w) || r.c.OutOfSync(0) == 0 {
		t.Fatalf("a write alone leaves %d bytes for b", r.c.OutOfSync(0))
	}
	if r.c.Forget(r.now, "b") || r.c.Forget(r.now, "") || r.c.Forget(r.now, "x") {
		t.Error("a peer of this life, a free slot or nobody was forgotten")
	}
	words := append([]uint64(nil), r.c.peers[0].bits.words...)

	c := r.remake(words) // the config does not name b any more
	if k := c.Kept(); len(k) != 1 || k[0] != "b" {
		t.Fatalf("kept of former peers: %q", k)
	}
	if !c.Forget(r.now, "b") {
		t.Fatal("b was not forgotten")
	}
	if n := r.forgot(true); n != "" {
		t.Fatalf("%q is said to be forgotten before the superblock is durable", n)
	}
	r.c.MetaDone(r.now, r.c.job.id)
	if n := r.forgot(false); n != "b" || c.sb.Peers[0] != (meta.Peer{}) || len(c.Kept()) != 0 {
		t.Fatalf("forgot %q, slot %+v", n, c.sb.Peers[0])
	}

	// b is back in the config. Its copy may be anything, and what the bits said
	// of it is gone: equal generations must not pass for equal data.
	c = r.remake(words, "b")
	if got := c.OutOfSync(0); got != rigVolume {
		t.Errorf("%d bytes are out of sync on a node that was forgotten, want all %d", got, rigVolume)
	}
	// A restart after that is no reason to begin again.
	c.peers[0].bits.clear(0, c.peers[0].bits.blocks)
	if got := r.remake(nil, "b").OutOfSync(0); got != 0 {
		t.Errorf("%d bytes are out of sync after a restart", got)
	}
}

// A volume that never held data has nothing that a new peer could lack.
func TestNewPeerOfAFreshDisk(t *testing.T) {
	r := newRig(t, NoBug)
	if got := r.remake(nil, "b", "c").OutOfSync(1); got != 0 {
		t.Errorf("%d bytes out of sync", got)
	}
}

// After a split brain each side counts what was written on it alone: the
// operator chooses by these numbers.
func TestSplitBrainKeepsTheSidesApart(t *testing.T) {
	r := newRig(t, NoBug)
	r.promote(1)
	r.mirror(1, true)
	r.c.LinkDown(r.now, 0)
	r.pump()
	base := r.c.sb.Current
	r.c.Prepare(r.now, PrepShrink, 0)
	r.pump()
	r.c.Shrunk(r.now, 0)
	r.pump()
	r.write(0, 8192, FUA)
	ours := r.c.OutOfSync(0)
	if ours == 0 {
		t.Fatal("nothing is dirty for b")
	}
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Current: 7777, Base: base}))
	if s := r.c.Peer(0); !s.SplitBrain {
		t.Fatalf("no split brain: %+v", s)
	}
	theirs := make([]byte, 8*8)
	for i := range 8 {
		binary.LittleEndian.PutUint64(theirs[8*i:], ^uint64(0))
	}
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyPage, Epoch: 1, Tag: 64, Body: theirs})
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyEnd, Epoch: 1})
	s := r.c.Peer(0)
	if !s.SplitBrain || s.Link != "StandAlone" || s.OutOfSync != ours {
		t.Errorf("after the peer's bits: %+v, want %d bytes of ours alone", s, ours)
	}
	// The peer gives its side up: from here on it is one that is filled.
	r.c.LinkDown(r.now, 0)
	r.pump()
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Current: 0, Inconsistent: true}))
	r.recv(wire.Ctl, wire.Msg{Type: wire.DirtyPage, Epoch: 1, Tag: 64, Body: theirs})
	if s := r.c.Peer(0); s.SplitBrain || s.OutOfSync <= ours {
		t.Errorf("a peer that has discarded its data: %+v", s)
	}
}

// The disk that a new one replaces is in the Hello, and reaches the layer that
// decides about members.
func TestReplacesTravels(t *testing.T) {
	r := newRig(t, NoBug)
	r.c.sb.Replaces = 55
	h, err := decodeHello(r.c.ourHello(&r.c.peers[0]))
	if err != nil || h.Replaces != 55 {
		t.Fatalf("our hello says %d, %v", h.Replaces, err)
	}
	r.c.LinkUp(r.now, 0)
	r.pump()
	r.recv(wire.Ctl, r.helloOf(hello{Epoch: 1, Replaces: 44}))
	for _, e := range r.up {
		if e.Kind == PeerHello && e.Hello.Replaces == 44 {
			return
		}
	}
	t.Errorf("the layer above was told %+v", r.up)
}
