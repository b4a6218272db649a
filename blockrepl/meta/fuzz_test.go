package meta

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// Each target takes a sound block and changes to it, as it is and again with its
// checksums made right, so that the fuzzer gets past them. What decodes must
// re-encode to the same bytes, and decoding must never fail in another way than
// by an error. Changes and not blocks, because the fuzzer makes each input that
// shows something new as short as it can, and tries for minutes on 4 KiB.

// editSize is an offset in a block (2) and what to write there.
const editSize = 2 + 8

// maxEdits are as many as count; what follows does nothing.
const maxEdits = 40

// edited returns block with the changes in edits made to it, and cut to a wrong
// length if a piece of an edit is left over.
func edited(block, edits []byte) []byte {
	b := bytes.Clone(block)
	edits = edits[:min(len(edits), maxEdits*editSize)]
	for ; len(edits) >= editSize; edits = edits[editSize:] {
		copy(b[int(binary.LittleEndian.Uint16(edits))%len(b):], edits[2:editSize])
	}
	if len(edits) > 0 {
		return b[:len(b)-len(edits)]
	}
	return b
}

// edits are the changes that make to out of from.
func edits(from, to []byte) (e []byte) {
	for i := 0; i < len(from); i++ {
		if from[i] == to[i] {
			continue
		}
		i = min(i, len(from)-8)
		e = binary.LittleEndian.AppendUint16(e, uint16(i))
		e = append(e, to[i:i+8]...)
		i += 7
	}
	return e
}

func TestEdits(t *testing.T) {
	from, to := make([]byte, BlockSize), make([]byte, BlockSize)
	EncodeAL(to, 7, 9, []uint32{1, 2, 3})
	if got := edited(from, edits(from, to)); !bytes.Equal(got, to) {
		t.Error("the edits do not make the block")
	}
	if got := edited(from, []byte{1, 2, 3}); len(got) != BlockSize-3 {
		t.Errorf("cut to %d bytes", len(got))
	}
}

func FuzzSuper(f *testing.F) {
	base := make([]byte, BlockSize)
	testSuper().Encode(base)
	f.Add([]byte{})
	f.Add([]byte{0})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) // no magic
	for _, spoil := range contradictions() {
		s := testSuper()
		spoil(s)
		if len(s.Node) >= nameWidth || len(s.Cluster) >= nameWidth || len(s.BootID) >= nameWidth || len(s.Identity) >= identityWidth {
			continue // it does not fit into its field
		}
		b := make([]byte, BlockSize)
		c := codec{b: b}
		c.super(s)
		f.Add(edits(base, b))
	}
	for _, c := range nonsense() {
		b := bytes.Clone(base)
		copy(b[at(c.at):], c.set)
		f.Add(edits(base, b))
	}
	next := testSuper()
	next.Seq++
	b := make([]byte, BlockSize)
	next.Encode(b)
	f.Add(edits(base, torn(base, b, 0xf0)))
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := edited(base, edits)
		again := make([]byte, BlockSize)
		check := func(b []byte) {
			s, err := DecodeSuper(b)
			if err != nil {
				return
			}
			if s.Encode(again); !bytes.Equal(again, b) {
				t.Fatalf("%+v", s)
			}
			// The layout of whatever is valid is usable.
			if s.Words() > MaxBits/64 || s.Pages() < 1 || s.RegionSize() <= 0 || s.RegionSize() > 128<<20 || int64(s.Extents()) > 1<<32 {
				t.Fatalf("%d words, %d pages, region %d", s.Words(), s.Pages(), s.RegionSize())
			}
		}
		check(b)
		if len(b) == BlockSize {
			superName(binary.LittleEndian.Uint64(b[16:])).seal(b, binary.LittleEndian.Uint32(b[24:]))
			check(b)
		}
	})
}

func FuzzAL(f *testing.F) {
	base := make([]byte, BlockSize)
	EncodeAL(base, 7, 9, []uint32{1, 2, 3})
	f.Add([]byte{})
	f.Add([]byte{0})
	b := make([]byte, BlockSize)
	for _, hot := range [][]uint32{{}, {5}, {9, 1, 9}, make([]uint32, 117), make([]uint32, 118), make([]uint32, MaxALSlots)} {
		EncodeAL(b, 7, 10, hot)
		f.Add(edits(base, b))
	}
	f.Add(edits(base, torn(base, b, 0x0f)))
	EncodeAL(b, 8, 9, []uint32{1, 2, 3})
	f.Add(edits(base, b))
	for _, at := range []int{8, 9, 12, 40, 44, 4000} {
		b := bytes.Clone(base)
		b[at] ^= 0xff
		f.Add(edits(base, b))
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := edited(base, edits)
		again := make([]byte, BlockSize)
		check := func(b []byte) {
			seq, hot, err := DecodeAL(b, 7)
			if err != nil {
				return
			}
			if EncodeAL(again, 7, seq, hot); !bytes.Equal(again, b) {
				t.Fatalf("%d %v", seq, hot)
			}
		}
		check(b)
		if len(b) == BlockSize {
			alName(7).seal(b, binary.LittleEndian.Uint32(b[24:]))
			check(b)
		}
	})
}

func FuzzPage(f *testing.F) {
	base := make([]byte, BlockSize)
	EncodePage(base, 7, 1, 2, []uint64{1, 2, 3})
	f.Add([]byte{}, uint16(3), uint8(0xff))
	f.Add([]byte{}, uint16(2), uint8(0))
	f.Add([]byte{1}, uint16(3), uint8(0xff))
	b := make([]byte, BlockSize)
	for _, n := range []int{0, 62, 63, 64, 503, 504} {
		words := slices.Repeat([]uint64{1 << n % 64}, n)
		EncodePage(b, 7, 1, 2, words)
		f.Add(edits(base, b), uint16(n), uint8(0x5a))
	}
	EncodePage(b, 8, 1, 2, []uint64{1})
	f.Add(edits(base, b), uint16(3), uint8(0xf0))
	f.Fuzz(func(t *testing.T, edits []byte, words uint16, fix uint8) {
		b := edited(base, edits)
		if len(b) == BlockSize {
			// Seal some of the sectors.
			sealed := bytes.Clone(b)
			pageName(7, 1, 2).seal(sealed, pageTag)
			b = torn(b, sealed, int(fix))
		}
		got := make([]uint64, words%(WordsPerPage+1))
		bad := DecodePage(got, b, 7, 1, 2)
		again := make([]byte, BlockSize)
		EncodePage(again, 7, 1, 2, got)
		if bad == 0 && !bytes.Equal(again, b) {
			t.Fatal("does not re-encode")
		}
		// Sector by sector: as it was, or all dirty.
		n := 0
		for i := range sectors {
			if len(b) == BlockSize && bytes.Equal(again[i*SectorSize:(i+1)*SectorSize], b[i*SectorSize:(i+1)*SectorSize]) {
				continue
			}
			n++
			lo, hi := min(i*63, len(got)), min((i+1)*63, len(got))
			if slices.ContainsFunc(got[lo:hi], func(w uint64) bool { return w != ^uint64(0) }) {
				t.Fatalf("sector %d is half used", i)
			}
		}
		if n != bad {
			t.Fatalf("%d bad sectors, %d differ", bad, n)
		}
	})
}
