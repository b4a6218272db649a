package blockrepl

import (
	"encoding/binary"
	"testing"

	"tandem/blockrepl/wire"
)

// FuzzHello: whatever a peer says in its handshake is refused or understood.
func FuzzHello(f *testing.F) {
	r := newRig(f, NoBug)
	f.Add(r.c.ourHello(&r.c.peers[0]))
	f.Add([]byte(`{"version":1,"cluster_id":8,"volume_size":67108864}`))
	f.Add([]byte(`{"version":1,"volume_size":67108864,"history":[1,2,3],"serving":true,"epoch":18446744073709551615}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`[`))
	// What an agent says, and that with one thing amiss.
	sound, err := decodeHello(r.peerHello(true, 3, 7).Body)
	if err != nil {
		f.Fatal(err)
	}
	for _, spoil := range []func(h *hello){
		func(*hello) {},
		func(h *hello) { h.Version = HelloVersion + 2 },
		func(h *hello) { h.VolumeSize++ },
		func(h *hello) { h.ExtentShift++ },
		func(h *hello) { h.DiskID = r.c.sb.DiskID },
		func(h *hello) { h.History = make([]uint64, 65) },
		func(h *hello) { h.History, h.Inconsistent, h.Marked = []uint64{1, 2}, true, true },
		func(h *hello) { h.Mark, h.YourMark, h.Failed = 9, 9, true },
	} {
		h := *sound
		spoil(&h)
		f.Add(h.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHello(b)
		if err == nil {
			again, err := decodeHello(h.encode())
			if err != nil || string(again.encode()) != string(h.encode()) {
				t.Fatalf("%+v does not survive: %v", h, err)
			}
		}
		r := newRig(t, NoBug)
		r.c.sb.Vote.ClusterID = 9
		r.c.sb.History[0] = 6
		r.c.LinkUp(0, 0)
		r.pump()
		r.recv(wire.Ctl, wire.Msg{Type: wire.Hello, Body: b})
		r.c.Follow(0, 0, 1)
		r.pump()
	})
}

// FuzzFrames: no sequence of frames, sensible or not, makes the core panic,
// write outside the volume, or forget that an operation is in flight.
func FuzzFrames(f *testing.F) {
	frame := func(t wire.Type, flags uint8, tag, off uint64, n uint32) []byte {
		b := []byte{byte(t), flags}
		b = binary.LittleEndian.AppendUint64(b, tag)
		b = binary.LittleEndian.AppendUint64(b, off)
		return binary.LittleEndian.AppendUint32(b, n)
	}
	var sec, pri []byte
	sec = append(sec, frame(wire.Write, 0, 1, 0, 4096)...)
	sec = append(sec, frame(wire.Zero, FUA, 2, 8192, 65536)...)
	sec = append(sec, frame(wire.RsCheck, 0, 3, 0, 65536)...)
	sec = append(sec, frame(wire.RsData, 0, 3, 0, 65536)...)
	sec = append(sec, frame(wire.RsFlush, 0, 4, 0, 0)...)
	sec = append(sec, frame(wire.Flush, 0, 5, 0, 0)...)
	sec = append(sec, frame(wire.Retire, 0, 0, 0, 0)...)
	sec = append(sec, frame(wire.SyncDone, 0, 0, 500, 0)...)
	sec = append(sec, frame(wire.Clean, 0, 0, 0, 0)...)
	pri = append(pri, frame(wire.Ack, 0, 1<<32, 0, 0)...)
	pri = append(pri, frame(wire.RsNeed, 0, 1<<32, 0, 0)...)
	pri = append(pri, frame(wire.SyncAck, 0, 0, 0, 0)...)
	pri = append(pri, frame(wire.DirtyPage, 0, 0, 0, 0)...)
	f.Add(byte(0), sec)
	f.Add(byte(1), pri)
	f.Add(byte(2), pri)
	var third []byte
	third = append(third, frame(wire.Lacks, 1, 0, nodeID("c"), 0)...)
	third = append(third, 1, 2, 3, 4, 5, 6, 7, 8)
	third = append(third, frame(wire.HotSet, 1, 0, 0, 0)...)
	third = append(third, 3, 0, 0, 0, 4, 0, 0, 0)
	third = append(third, frame(wire.Write, 0, 1, 0, 4096)...)
	third = append(third, frame(wire.Retire, 1, 0, 0, 0)...)
	third = append(third, 3, 0, 0, 0, 9, 0, 0, 0)
	third = append(third, frame(wire.Propose, 0, 0, 600, 0)...)
	third = append(third, frame(wire.Adopt, 0, 499, 600, 0)...)
	third = append(third, frame(wire.Level, 0, 600, nodeID("c"), 0)...)
	f.Add(byte(3), third)
	var asked []byte
	asked = append(asked, frame(wire.Proposed, 0, 0, 101, 0)...)
	asked = append(asked, frame(wire.Adopted, 0, 0, 101, 0)...)
	asked = append(asked, frame(wire.Kept, 0, 0, 0, 0)...)
	f.Add(byte(4), asked)
	f.Fuzz(func(t *testing.T, mode byte, b []byte) {
		r := newRig(t, NoBug)
		epoch := uint64(5)
		if mode%5 > 2 {
			r = newTrio(t, NoBug)
		}
		switch mode % 5 {
		case 0:
			r.follow(epoch)
		case 1:
			r.promote(epoch)
			r.mirror(epoch, true)
			r.write(0, 4096, 0)
		case 2:
			r.promote(epoch)
		case 3:
			r.as(peerB).follow(epoch)
		case 4:
			r.promote(epoch)
			r.as(peerC).mirror(epoch, true)
			r.as(peerB).mirror(epoch, true)
			r.c.Prepare(r.now, PrepShrink, peerC)
			r.pump()
		}
		const size = 22
		for n := 0; len(b) >= size && n < 64; n++ {
			m := wire.Msg{
				Type: wire.Type(b[0]), Flags: b[1], Epoch: epoch,
				Tag: binary.LittleEndian.Uint64(b[2:]), Off: binary.LittleEndian.Uint64(b[10:]), Len: binary.LittleEndian.Uint32(b[18:]),
			}
			b = b[size:]
			body := min(int(m.Flags)*8, len(b))
			m.Body = b[:body]
			r.recv(wire.Data, m)
		}
		for _, e := range r.apps {
			if e.Op == OpFlush {
				continue
			}
			if e.Off < 0 || e.Len < 0 || e.Off+e.Len > rigVolume {
				t.Fatalf("%d+%d lies outside the volume", e.Off, e.Len)
			}
		}
	})
}
