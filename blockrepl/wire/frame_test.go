package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"testing"
	"testing/iotest"
)

// frame encodes m with its body.
func frame(m Msg) []byte { return append(AppendHeader(nil, &m), m.Body...) }

// reseal makes the checksums of the frame at b fit its content, as far as
// there is enough of it.
func reseal(b []byte) {
	if len(b) < HeaderSize {
		return
	}
	t := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(b[40:], crc32.Checksum(b[:40], t))
	end := HeaderSize + int64(binary.LittleEndian.Uint32(b[36:]))
	if end > int64(len(b)) {
		end = HeaderSize
	}
	sum := crc32.Checksum(b[:44], t)
	binary.LittleEndian.PutUint32(b[44:], crc32.Update(sum, t, b[HeaderSize:end]))
}

// good is one plausible message of every type.
func good() []Msg {
	var all []Msg
	for t := Type(1); t < numTypes; t++ {
		b, ok := boundOf(t)
		if !ok {
			continue
		}
		m := Msg{Type: t, Epoch: 7, Tag: 1<<63 | uint64(t), Off: 1 << 40, Len: 4096}
		switch {
		case b.sized:
			m.Body, m.Flags = bytes.Repeat([]byte{byte(t)}, 4096), FUA
		case b.max > 0:
			m.Body = bytes.Repeat([]byte{byte(t)}, 64)
		}
		all = append(all, m)
	}
	return all
}

func same(a, b Msg) bool {
	return a.Type == b.Type && a.Flags == b.Flags && a.Epoch == b.Epoch && a.Tag == b.Tag &&
		a.Off == b.Off && a.Len == b.Len && bytes.Equal(a.Body, b.Body)
}

func TestRoundTrip(t *testing.T) {
	seen := 0
	for _, want := range good() {
		r := NewReader(iotest.OneByteReader(bytes.NewReader(frame(want))), want.Type.Channel(), &Pool{})
		var got Msg
		if err := r.Next(&got); err != nil {
			t.Errorf("%v: %v", &want, err)
			continue
		}
		if !same(got, want) {
			t.Errorf("got %v, want %v", &got, &want)
		}
		if len(got.Body) > 0 && misalign(got.Body) != 0 {
			t.Errorf("%v: body is not aligned", &got)
		}
		got.Release()
		if err := r.Next(&got); err != io.EOF {
			t.Errorf("after the last frame: %v", err)
		}
		seen++
	}
	if seen != 30 {
		t.Errorf("%d types; a new one needs its bounds and this number", seen)
	}
}

// The parts of a body may be cut anywhere.
func TestAppendHeaderParts(t *testing.T) {
	body := bytes.Repeat([]byte("abcdefgh"), 512)
	whole := AppendHeader(nil, &Msg{Type: Write, Len: 4096, Body: body})
	for _, parts := range [][][]byte{
		{body}, {body[:1], body[1:]}, {nil, body[:4000], body[4000:], nil},
	} {
		if got := AppendHeader(nil, &Msg{Type: Write, Len: 4096}, parts...); !bytes.Equal(got, whole) {
			t.Errorf("%d parts: another header", len(parts))
		}
	}
	if got := AppendHeader([]byte("x"), &Msg{Type: Write, Len: 4096, Body: body[:96]}, body[96:]); !bytes.Equal(got[1:], whole) || got[0] != 'x' {
		t.Error("Body and a part: another header")
	}
}

func TestMustNotSend(t *testing.T) {
	for _, m := range []Msg{
		{Type: 0}, {Type: numTypes}, {Type: Flush, Body: []byte{1}}, {Type: Write, Len: 1},
		{Type: Zero, Off: math.MaxInt64, Len: 1}, {Type: Retire, Body: make([]byte, 5)},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v: encoded", &m)
				}
			}()
			AppendHeader(nil, &m)
		}()
	}
}

func goodWrite() []byte {
	return frame(Msg{Type: Write, Epoch: 1, Off: 4096, Len: 8, Body: []byte("12345678")})
}

type badFrame struct {
	name    string
	channel Channel
	spoil   func([]byte) []byte
	want    error
}

// Every fault that a Reader refuses, each on a frame that is otherwise whole
// (the checksums fit unless they are what is wrong).
// badFrames are a write, each spoilt in one way.
func badFrames() []badFrame {
	put32 := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[off:], v)
			reseal(b)
			return b
		}
	}
	put8 := func(off int, v byte) func([]byte) []byte {
		return func(b []byte) []byte {
			b[off] = v
			reseal(b)
			return b
		}
	}
	return []badFrame{
		{"garbage", Data, func([]byte) []byte { return bytes.Repeat([]byte("GET / "), 20) }, ErrMagic},
		{"version", Data, put8(4, 2), ErrVersion},
		{"reserved", Data, put8(7, 1), ErrReserved},
		{"type 0", Data, put8(5, 0), ErrType},
		{"kept type", Data, put8(5, uint8(HotSet)+1), ErrType},
		{"unknown type", Data, put8(5, uint8(numTypes)), ErrType},
		{"wrong channel", Ctl, put8(5, uint8(Write)), ErrChannel},
		{"flag", Data, put8(6, 0x80), ErrFlags},
		{"body shorter than Len", Data, put32(32, 9), ErrLength},
		{"body longer than Len", Data, put32(32, 7), ErrLength},
		{"body too long", Data, put32(36, MaxData+1), ErrLength},
		{"body of 4 GiB", Data, put32(36, math.MaxUint32), ErrLength},
		{"body where none may be", Data, put8(5, uint8(Ack)), ErrLength},
		{"half an extent", Data, func([]byte) []byte {
			b := frame(Msg{Type: Retire, Body: make([]byte, 8)})
			return put32(36, 6)(b)
		}, ErrLength},
		{"empty dirty page", Ctl, func([]byte) []byte {
			b := frame(Msg{Type: DirtyPage, Body: make([]byte, 1)})
			return put32(36, 0)(b)
		}, ErrLength},
		{"range of a resync frame", Bulk, func([]byte) []byte {
			b := frame(Msg{Type: RsNeed})
			return put32(32, MaxData+1)(b)
		}, ErrLength},
		{"offset above 2^63", Data, put32(28, 1<<31), ErrRange},
		{"range wraps", Data, func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[24:], math.MaxUint64-3)
			reseal(b)
			return b
		}, ErrRange},
		{"end above 2^63", Data, func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[24:], math.MaxInt64-3)
			reseal(b)
			return b
		}, ErrRange},
		{"header checksum", Data, func(b []byte) []byte { b[9] ^= 1; return b }, ErrHeaderSum},
		{"damaged body length", Data, func(b []byte) []byte { b[38] ^= 1; return b }, ErrHeaderSum},
		{"body checksum", Data, func(b []byte) []byte { b[HeaderSize] ^= 1; return b }, ErrSum},
		{"sum itself", Data, func(b []byte) []byte { b[44] ^= 1; return b }, ErrSum},
		{"half a header", Data, func(b []byte) []byte { return b[:HeaderSize-1] }, io.ErrUnexpectedEOF},
		{"no body", Data, func(b []byte) []byte { return b[:HeaderSize] }, io.ErrUnexpectedEOF},
		{"half a body", Data, func(b []byte) []byte { return b[:HeaderSize+4] }, io.ErrUnexpectedEOF},
		{"nothing", Data, func([]byte) []byte { return nil }, io.EOF},
	}
}

func TestRefuse(t *testing.T) {
	for _, tc := range badFrames() {
		t.Run(tc.name, func(t *testing.T) {
			r := NewReader(bytes.NewReader(tc.spoil(goodWrite())), tc.channel, &Pool{})
			m := Msg{Tag: 5}
			err := r.Next(&m)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if !same(m, Msg{}) {
				t.Errorf("a refused frame left %v", &m)
			}
			if again := r.Next(&m); again != err {
				t.Errorf("second call: %v", again)
			}
			if r.Buffered() != 0 {
				t.Error("frames are buffered behind a refused one")
			}
		})
	}
}

func TestStreamError(t *testing.T) {
	boom := errors.New("boom")
	f := frame(Msg{Type: Write, Len: 8, Body: []byte("12345678")})
	for n := range f {
		r := NewReader(io.MultiReader(bytes.NewReader(f[:n]), iotest.ErrReader(boom)), Data, &Pool{})
		if err := r.Next(&Msg{}); !errors.Is(err, boom) {
			t.Errorf("error after %d bytes: got %v", n, err)
		}
	}
}

// A header may promise much; memory is taken only within the bound, and a
// refused frame costs none.
func TestNoAllocationBeforeBound(t *testing.T) {
	f := frame(Msg{Type: Write, Len: 8, Body: []byte("12345678")})
	binary.LittleEndian.PutUint32(f[36:], math.MaxUint32)
	binary.LittleEndian.PutUint32(f[32:], math.MaxUint32)
	reseal(f)
	pool := &Pool{}
	got := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			r := NewReader(bytes.NewReader(f), Data, pool)
			if err := r.Next(&Msg{}); !errors.Is(err, ErrLength) {
				b.Fatal(err)
			}
		}
	})
	if n := got.AllocedBytesPerOp(); n > readBuffer+8<<10 {
		t.Errorf("a refused frame allocates %d bytes", n)
	}
}

func TestBuffered(t *testing.T) {
	ack := frame(Msg{Type: Ack, Tag: 1})
	write := frame(Msg{Type: Write, Len: 4096, Body: make([]byte, 4096)})
	var b []byte
	b = append(b, ack...)
	b = append(b, write...)
	b = append(b, ack...)
	b = append(b, write[:100]...)
	r := NewReader(bytes.NewReader(b), Data, &Pool{})
	if r.Buffered() != 0 {
		t.Error("something is buffered before the first read")
	}
	for i, want := range []int{len(write), len(ack), 0} {
		var m Msg
		if err := r.Next(&m); err != nil {
			t.Fatal(err)
		}
		m.Release()
		if got := r.Buffered(); got != want {
			t.Errorf("behind frame %d: %d buffered, want %d", i, got, want)
		}
	}
}

func TestPool(t *testing.T) {
	p := &Pool{}
	for _, tc := range []struct{ n, size int }{
		{1, 4096}, {4096, 4096}, {4097, 8192}, {8192, 8192}, {100 << 10, 128 << 10},
		{MaxData, MaxData}, {MaxData + 1, MaxData + 1},
	} {
		b := p.get(tc.n)
		if len(b.mem) != tc.size || misalign(b.mem) != 0 {
			t.Errorf("get(%d): %d bytes, %d off", tc.n, len(b.mem), misalign(b.mem))
		}
		p.put(b)
		if again := p.get(tc.n); again != b && tc.n <= MaxData {
			t.Errorf("get(%d): memory is not used again", tc.n)
		}
	}
	// What is kept is bounded.
	var out []*buffer
	for range 20 {
		out = append(out, p.get(1<<20))
	}
	for _, b := range out {
		p.put(b)
	}
	if n := len(p.free[20-minClass]); n != keepBytes>>20 {
		t.Errorf("%d buffers of 1 MiB are kept", n)
	}
}

func TestReleaseTwice(t *testing.T) {
	r := NewReader(bytes.NewReader(frame(Msg{Type: Hello, Body: []byte("x")})), Ctl, &Pool{})
	var m Msg
	if err := r.Next(&m); err != nil {
		t.Fatal(err)
	}
	twin := m
	m.Release()
	m.Release() // has nothing left to release
	if m.Body != nil {
		t.Error("a body after Release")
	}
	defer func() {
		if recover() == nil {
			t.Error("two owners released one body")
		}
	}()
	twin.Release()
}

func TestNames(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{Write.String(), "Write"}, {Type(200).String(), "Type(200)"},
		{Ctl.String(), "ctl"}, {Data.String(), "data"}, {Bulk.String(), "bulk"}, {Channels.String(), "Channel(3)"},
		{(&Msg{Type: Ack, Tag: 3}).String(), "Ack epoch=0 tag=3 off=0 len=0 flags=0x0 body=0"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
	if Type(0).Channel() != Channels || RsAck.Channel() != Bulk {
		t.Error("Channel of a type is wrong")
	}
}

// Steady state: no allocation for a frame in either direction.
func TestAllocations(t *testing.T) {
	body := make([]byte, 4096)
	m := Msg{Type: Write, Len: 4096}
	dst := make([]byte, 0, HeaderSize)
	if n := testing.AllocsPerRun(100, func() { dst = AppendHeader(dst[:0], &m, body) }); n != 0 {
		t.Errorf("AppendHeader allocates %v times", n)
	}
	f := frame(Msg{Type: Write, Len: 4096, Body: body})
	r := NewReader(&endless{f: f}, Data, &Pool{})
	var got Msg
	if n := testing.AllocsPerRun(100, func() {
		if err := r.Next(&got); err != nil {
			t.Fatal(err)
		}
		got.Release()
	}); n != 0 {
		t.Errorf("Next allocates %v times", n)
	}
}

// endless repeats f.
type endless struct {
	f   []byte
	pos int
}

func (e *endless) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		k := copy(b[n:], e.f[e.pos:])
		n += k
		e.pos = (e.pos + k) % len(e.f)
	}
	return n, nil
}

// FuzzReader feeds a Reader whatever the fuzzer thinks of, with the checksums
// made to fit so that it gets behind them: it must not panic or read outside,
// and what it accepts must encode to the bytes that it came from.
func FuzzReader(f *testing.F) {
	for _, m := range good() {
		f.Add(uint8(m.Type.Channel()), true, frame(m))
	}
	for _, tc := range badFrames() {
		f.Add(uint8(tc.channel), false, tc.spoil(goodWrite()))
	}
	f.Add(uint8(Data), false, append(frame(Msg{Type: Ack}), frame(Msg{Type: Flush})...))
	f.Add(uint8(Ctl), true, []byte("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n\r\n........"))
	pool := &Pool{}
	f.Fuzz(func(t *testing.T, ch uint8, seal bool, b []byte) {
		if seal {
			for rest := b; len(rest) >= HeaderSize; {
				reseal(rest)
				n := HeaderSize + int64(binary.LittleEndian.Uint32(rest[36:]))
				if n > int64(len(rest)) {
					break
				}
				rest = rest[n:]
			}
		}
		r := NewReader(bytes.NewReader(b), Channel(ch%uint8(Channels)), pool)
		at := 0
		for {
			var m Msg
			promised := r.Buffered()
			err := r.Next(&m)
			if text := m.String(); text == "" || ch%uint8(Channels) != uint8(r.channel) {
				t.Fatalf("%q on %v", text, r.channel)
			}
			if err != nil {
				if err == io.EOF && at != len(b) {
					t.Fatalf("EOF at %d of %d", at, len(b))
				}
				return
			}
			if got := frame(m); !bytes.Equal(got, b[at:at+len(got)]) {
				t.Fatalf("decoded %v from\n%x, which encodes to\n%x", &m, b[at:], got)
			} else {
				if promised != 0 && promised != len(got) {
					t.Fatalf("Buffered said %d, the frame has %d", promised, len(got))
				}
				at += len(got)
			}
			m.Release()
		}
	})
}

func BenchmarkEncode4k(b *testing.B) {
	body := make([]byte, 4096)
	m := Msg{Type: Write, Len: 4096}
	dst := make([]byte, 0, HeaderSize)
	b.SetBytes(4096)
	for b.Loop() {
		dst = AppendHeader(dst[:0], &m, body)
	}
}

func BenchmarkNext4k(b *testing.B) {
	r := NewReader(&endless{f: frame(Msg{Type: Write, Len: 4096, Body: make([]byte, 4096)})}, Data, &Pool{})
	var m Msg
	b.SetBytes(4096)
	for b.Loop() {
		if err := r.Next(&m); err != nil {
			b.Fatal(err)
		}
		m.Release()
	}
}
