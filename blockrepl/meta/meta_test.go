package meta

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// testSuper has every field set, each to something else.
func testSuper() *Super {
	s := &Super{
		Seq: 2, Cluster: "nfs1", Node: "a", DiskID: 0x1122334455667788, Replaces: 0x99,
		VolumeSize: 300 << 20, Current: 0x90, Proposed: 0x91, Mark: 0x92, Heard: 0x93, HeardEpoch: 0x94,
		Inconsistent: true, Outdated: true,
		History: [HistoryLen]uint64{1, 2, 3, 4, 5, 6, 7, 8},
		Peers: [MaxPeers]Peer{
			{Name: "b", DiskID: 21, Base: 22, Mark: 23},
			{},
			{Name: "c.d_e-f", DiskID: 31, Base: 32, Mark: 33},
		},
		Vote:   Vote{ClusterID: 41, Epoch: 42, Served: 43, LongestG: 3_400_000_000, Serial: 45, Marked: true},
		BootID: "2f1d0a3c-0000-4000-8000-0123456789ab", Identity: "serial:vol0123456789abcdef0,part=1",
	}
	var err error
	if s.BlockShift, s.ExtentShift, s.ALSlots, s.ALRing, err = Geometry(s.VolumeSize); err != nil {
		panic(err)
	}
	return s
}

// device is a metadata region in memory.
type device struct {
	b   []byte
	bad map[int64]bool // blocks that cannot be read
}

var errBadSector = errors.New("medium error")

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	for o := off &^ (BlockSize - 1); o < off+int64(len(p)); o += BlockSize {
		if d.bad[o/BlockSize] {
			return 0, errBadSector
		}
	}
	return bytes.NewReader(d.b).ReadAt(p, off)
}

func (d *device) WriteAt(p []byte, off int64) (int, error) {
	if need := off + int64(len(p)); need > int64(len(d.b)) {
		d.b = append(d.b, make([]byte, need-int64(len(d.b)))...)
	}
	return copy(d.b[off:], p), nil
}

func (d *device) block(off int64) []byte { return d.b[off : off+BlockSize] }

func formatted(t testing.TB) (*device, *Super) {
	t.Helper()
	d, s := &device{}, testSuper()
	if err := Format(d, s); err != nil {
		t.Fatal(err)
	}
	return d, s
}

func (d *device) putSuper(s *Super) { s.Encode(d.block(s.SuperOffset(s.Seq))) }

func (d *device) putAL(s *Super, seq uint64, hot ...uint32) {
	EncodeAL(d.block(s.ALOffset(seq)), s.DiskID, seq, hot)
}

func load(t testing.TB, d *device) *State {
	t.Helper()
	st, err := Load(d)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// torn is a block of which only the sectors in mask were written.
func torn(before, after []byte, mask int) []byte {
	b := bytes.Clone(before)
	for i := range sectors {
		if mask>>i&1 != 0 {
			copy(b[i*SectorSize:(i+1)*SectorSize], after[i*SectorSize:])
		}
	}
	return b
}

const allSectors = 1<<sectors - 1

func TestGeometry(t *testing.T) {
	const mib, gib, tib = 1 << 20, 1 << 30, 1 << 40
	for _, c := range []struct {
		size          int64
		block, extent uint8
		slots         uint16
		pages         int
	}{
		{4096, 12, 20, 48, 1},
		{64 * mib, 12, 20, 48, 1},
		{256 * mib, 12, 20, 64, 3},
		{512 * mib, 12, 20, 128, 5},
		{gib - 4096, 12, 20, 128, 9},
		{gib, 12, 20, 256, 9},
		{16*gib - 4096, 12, 20, 256, 131},
		{16 * gib, 12, 22, 256, 131},
		{tib, 12, 22, 256, 8323},
		{tib + 4096, 13, 22, 256, 4162},
		{16 * tib, 16, 22, 256, 8323},
	} {
		block, extent, slots, ring, err := Geometry(c.size)
		s := Super{VolumeSize: c.size, BlockShift: block, ExtentShift: extent, ALSlots: slots, ALRing: ring}
		if err != nil || block != c.block || extent != c.extent || slots != c.slots || ring != 16 || s.Pages() != c.pages {
			t.Errorf("%d: %d %d %d %d, %d pages, %v", c.size, block, extent, slots, ring, s.Pages(), err)
		}
		if s.Bits() > MaxBits || int64(s.Bits())<<block < c.size || int64(s.Extents())<<extent < c.size {
			t.Errorf("%d: %d bits, %d extents", c.size, s.Bits(), s.Extents())
		}
		if covered := int64(slots) << extent; c.size >= 256*mib && covered > c.size/4+4096 {
			t.Errorf("%d: the log covers %d", c.size, covered)
		}
		// The parts of the region follow each other.
		if s.SuperOffset(4) != 0 || s.SuperOffset(5) != 4096 || s.ALOffset(32) != 8192 || s.ALOffset(15) != 8192+15*4096 ||
			s.BitmapOffset(0, 0) != 8192+16*4096 || s.BitmapOffset(1, 0) != s.BitmapOffset(0, s.Pages()) || s.RegionSize() != s.BitmapOffset(2, s.Pages()) {
			t.Errorf("%d: layout", c.size)
		}
	}
	for _, size := range []int64{-1, 0, 512, 4097, 16*tib + 4096} {
		if _, _, _, _, err := Geometry(size); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

func TestSuperRoundTrip(t *testing.T) {
	s := testSuper()
	b := bytes.Repeat([]byte{0xaa}, BlockSize)
	s.Encode(b)
	got, err := DecodeSuper(b)
	if err != nil || *got != *s {
		t.Fatalf("%+v, %v", got, err)
	}
	// The box, at a few places.
	for _, c := range []struct {
		at   int
		want string
	}{
		{0, "TANDEMMD\x01\x00\x00\x00\x07\x00\x00\x00\x88\x77\x66\x55"},
		{46, "\x03\x08\x90"},
		{176, "\x04nfs1\x00"},
		{240, "\x01a\x00"},
		{368, "\x22serial:vol"},
		{SectorSize + 624 - 504, "\x01b\x00"},
		{504, "\x02\x00\x00\x00"},
	} {
		if !bytes.HasPrefix(b[c.at:], []byte(c.want)) {
			t.Errorf("at %d: % x", c.at, b[c.at:c.at+len(c.want)])
		}
	}
}

// contradictions are what makes a superblock impossible.
func contradictions() map[string]func(*Super) {
	return map[string]func(*Super){
		"size 0":           func(s *Super) { s.VolumeSize = 0 },
		"size odd":         func(s *Super) { s.VolumeSize++ },
		"size huge":        func(s *Super) { s.VolumeSize = 1 << 62 },
		"block small":      func(s *Super) { s.BlockShift = 11 },
		"block large":      func(s *Super) { s.BlockShift = 63 },
		"too many bits":    func(s *Super) { s.VolumeSize = 2 << 40 },
		"extent small":     func(s *Super) { s.ExtentShift = 12 },
		"extent large":     func(s *Super) { s.ExtentShift = 64 },
		"no slots":         func(s *Super) { s.ALSlots = 0 },
		"too many slots":   func(s *Super) { s.ALSlots = MaxALSlots + 1 },
		"ring of one":      func(s *Super) { s.ALRing = 1 },
		"ring long":        func(s *Super) { s.ALRing = 65535 },
		"disk id":          func(s *Super) { s.DiskID = 0 },
		"promise":          func(s *Super) { s.Vote.LongestG = -1 },
		"no cluster":       func(s *Super) { s.Cluster = "" },
		"cluster":          func(s *Super) { s.Cluster = "a b" },
		"node":             func(s *Super) { s.Node = "-a" },
		"long node":        func(s *Super) { s.Node = strings.Repeat("a", 64) },
		"boot id":          func(s *Super) { s.BootID = "\n" },
		"long boot id":     func(s *Super) { s.BootID = strings.Repeat("a", 64) },
		"identity":         func(s *Super) { s.Identity = "\x1b[2J" },
		"long identity":    func(s *Super) { s.Identity = strings.Repeat("a", 256) },
		"peer":             func(s *Super) { s.Peers[0].Name = "b/c" },
		"replaces itself":  func(s *Super) { s.Replaces = s.DiskID },
		"peer is the node": func(s *Super) { s.Peers[0].Name = s.Node },
		"peer twice":       func(s *Super) { s.Peers[1].Name = s.Peers[2].Name },
	}
}

func TestSuperValidate(t *testing.T) {
	for name, spoil := range contradictions() {
		s := testSuper()
		if spoil(s); !errors.Is(s.Validate(), ErrInvalid) {
			t.Errorf("%s: %v", name, s.Validate())
		}
		if err := Format(&device{}, s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Format: %v", name, err)
		}
		mustPanic(t, name, func() { s.Encode(make([]byte, BlockSize)) })
	}
	s := testSuper()
	s.Node, s.Cluster = strings.Repeat("n", 63), strings.Repeat("c", 63)
	s.BootID, s.Identity = strings.Repeat("b", 63), strings.Repeat("i", 255)
	b := make([]byte, BlockSize)
	s.Encode(b)
	if got, err := DecodeSuper(b); err != nil || *got != *s {
		t.Errorf("longest names: %+v, %v", got, err)
	}
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	f()
}

func TestMisuse(t *testing.T) {
	b := make([]byte, BlockSize)
	mustPanic(t, "short block", func() { testSuper().Encode(b[:100]) })
	mustPanic(t, "extents", func() { EncodeAL(b, 1, 1, make([]uint32, MaxALSlots+1)) })
	mustPanic(t, "words", func() { EncodePage(b, 1, 0, 0, make([]uint64, WordsPerPage+1)) })
	mustPanic(t, "decode words", func() { DecodePage(make([]uint64, WordsPerPage+1), b, 1, 0, 0) })
}

type spoiltField struct {
	name string
	at   int
	set  string
	want error
}

// Sealed blocks whose content no Encode writes.
// nonsense is what no Encode writes, at an offset in the payload.
func nonsense() []spoiltField {
	return []spoiltField{
		{"newer", 8, "\x02", ErrNewer},
		{"version 0", 8, "\x00", ErrInvalid},
		{"unknown flag", 12, "\x08", ErrInvalid},
		{"volume size", 32, "\x01", ErrInvalid},
		{"peers", 46, "\x04", ErrInvalid},
		{"history", 47, "\x09", ErrInvalid},
		{"length of a name", 176, "\x40", ErrInvalid},
		{"byte after a name", 190, "x", ErrInvalid},
		{"reserved", 4000, "x", ErrInvalid},
		{"peer's name", 624 + 1, "/", ErrInvalid},
		{"magic", 0, "X", ErrNoMetadata},
	}
}

func TestSuperSealedNonsense(t *testing.T) {
	for _, c := range nonsense() {
		b := make([]byte, BlockSize)
		s := testSuper()
		s.Encode(b)
		copy(b[at(c.at):], c.set)
		superName(s.DiskID).seal(b, uint32(s.Seq))
		if _, err := DecodeSuper(b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 100), make([]byte, BlockSize), make([]byte, BlockSize+1)} {
		if _, err := DecodeSuper(b); !errors.Is(err, ErrNoMetadata) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

// Any one bit of any block is covered.
func TestEveryBitCounts(t *testing.T) {
	s := testSuper()
	super, al, page := make([]byte, BlockSize), make([]byte, BlockSize), make([]byte, BlockSize)
	s.Encode(super)
	EncodeAL(al, s.DiskID, 77, []uint32{1, 2, 3})
	EncodePage(page, s.DiskID, 1, 2, make([]uint64, WordsPerPage))
	dst := make([]uint64, WordsPerPage)
	for i := range BlockSize * 8 {
		flip := func(b []byte) { b[i/8] ^= 1 << (i % 8) }
		flip(super)
		if _, err := DecodeSuper(super); err == nil {
			t.Fatalf("superblock, bit %d", i)
		}
		flip(super)
		flip(al)
		if _, _, err := DecodeAL(al, s.DiskID); err == nil {
			t.Fatalf("activity log, bit %d", i)
		}
		flip(al)
		flip(page)
		if n := DecodePage(dst, page, s.DiskID, 1, 2); n != 1 {
			t.Fatalf("page, bit %d: %d bad sectors", i, n)
		}
		flip(page)
	}
}

func TestAL(t *testing.T) {
	b := make([]byte, BlockSize)
	all := make([]uint32, MaxALSlots)
	for i := range all {
		all[i] = uint32(i) * 3000001
	}
	for _, hot := range [][]uint32{{}, {5}, {9, 1, 9}, all[:117], all[:118], all} {
		EncodeAL(b, 7, 1<<40+9, hot)
		seq, got, err := DecodeAL(b, 7)
		if err != nil || seq != 1<<40+9 || !slices.Equal(got, hot) {
			t.Errorf("%d extents: %d %v %v", len(hot), seq, got, err)
		}
		if _, _, err := DecodeAL(b, 8); !errors.Is(err, ErrNoMetadata) {
			t.Errorf("another disk's: %v", err)
		}
	}
	for _, c := range []struct {
		name string
		at   int
		set  string
	}{{"count", 8, "\xe9\x03"}, {"zero", 12, "\x01"}, {"rest", 32 + 4, "\x01"}} {
		EncodeAL(b, 7, 9, []uint32{1})
		copy(b[at(c.at):], c.set)
		alName(7).seal(b, 9)
		if _, _, err := DecodeAL(b, 7); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, BlockSize), make([]byte, BlockSize-1)} {
		if _, _, err := DecodeAL(b, 0); !errors.Is(err, ErrNoMetadata) {
			t.Errorf("%d zeroes: %v", len(b), err)
		}
	}
}

func TestPage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, BlockSize)
	for _, n := range []int{0, 1, 62, 63, 64, 126, 503, 504} {
		words, got := make([]uint64, n), make([]uint64, n)
		for i := range words {
			words[i] = rnd.Uint64()
		}
		EncodePage(b, 7, 2, 3, words)
		if bad := DecodePage(got, b, 7, 2, 3); bad != 0 || !slices.Equal(got, words) {
			t.Errorf("%d words: %d bad", n, bad)
		}
		// In the wrong place, or of another disk, everything is dirty.
		for _, at := range [][3]int{{8, 2, 3}, {7, 1, 3}, {7, 2, 4}} {
			if bad := DecodePage(got, b, uint64(at[0]), at[1], at[2]); bad != sectors || slices.ContainsFunc(got, func(w uint64) bool { return w != ^uint64(0) }) {
				t.Errorf("%d words, %v: %d bad", n, at, bad)
			}
		}
	}
	// Never written, short, swapped sectors.
	got := make([]uint64, WordsPerPage)
	if bad := DecodePage(got, make([]byte, BlockSize), 7, 2, 3); bad != sectors || got[0] != ^uint64(0) {
		t.Errorf("zeroes: %d", bad)
	}
	if bad := DecodePage(got, b[:BlockSize-1], 7, 2, 3); bad != sectors {
		t.Errorf("short: %d", bad)
	}
	copy(b[SectorSize:2*SectorSize], b[:SectorSize])
	if bad := DecodePage(got, b, 7, 2, 3); bad != 1 {
		t.Errorf("sector of another place: %d", bad)
	}
	// Words that the volume does not have.
	EncodePage(b, 7, 0, 0, []uint64{0, 1})
	if bad := DecodePage(got[:1], b, 7, 0, 0); bad != 1 || got[0] != ^uint64(0) {
		t.Errorf("words past the end: %d", bad)
	}
	pageName(7, 0, 0).seal(b, 1)
	if bad := DecodePage(got, b, 7, 0, 0); bad != sectors {
		t.Errorf("tag: %d", bad)
	}
}

func TestFormatLoad(t *testing.T) {
	for _, size := range []int64{4096, 300 << 20, 300<<20 + 4096, 40 << 30} {
		s := testSuper()
		s.VolumeSize = size
		s.BlockShift, s.ExtentShift, s.ALSlots, s.ALRing, _ = Geometry(size)
		d := &device{}
		if err := Format(d, s); err != nil {
			t.Fatal(err)
		}
		st := load(t, d)
		if *st.Super != *s || s.Seq != 2 || st.SuperLost || st.ALLost || st.ALSeq != 16 || len(st.Hot) != 0 || st.BadSectors != 0 || int64(len(d.b)) != s.RegionSize() {
			t.Errorf("%d: %+v", size, st)
		}
		for slot, words := range st.Bits {
			if len(words) != s.Words() || slices.ContainsFunc(words, func(w uint64) bool { return w != 0 }) {
				t.Errorf("%d: slot %d", size, slot)
			}
		}
		// Every page comes back from its own place, and nothing past the end.
		for slot := range MaxPeers {
			for page := range s.Pages() {
				words := make([]uint64, len(pageWords(make([]uint64, s.Words()), page)))
				for i := range words {
					words[i] = uint64(slot)<<32 | uint64(page*WordsPerPage+i)
				}
				EncodePage(d.block(s.BitmapOffset(slot, page)), s.DiskID, slot, page, words)
			}
		}
		st = load(t, d)
		for slot, words := range st.Bits {
			for i, w := range words {
				want := uint64(slot)<<32 | uint64(i)
				if i == len(words)-1 && s.Bits()%64 != 0 {
					want &= 1<<(s.Bits()%64) - 1
				}
				if w != want {
					t.Fatalf("%d: slot %d word %d: %x", size, slot, i, w)
				}
			}
		}
	}
	if err := Format(fullDevice{}, testSuper()); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("full device: %v", err)
	}
}

type fullDevice struct{}

func (fullDevice) WriteAt([]byte, int64) (int, error) { return 0, io.ErrShortWrite }

func TestLoadSuper(t *testing.T) {
	zero := func(b []byte) { clear(b) }
	rot := func(b []byte) { b[700] ^= 1 }
	foreign := func(b []byte) { copy(b, bytes.Repeat([]byte("EXT4"), BlockSize/4)) }
	newer := func(b []byte) { b[8] = 9; superName(testSuper().DiskID).seal(b, b32(b)) }
	misplaced := func(b []byte) {
		s := testSuper()
		s.Seq = 9
		if b[24] == 1 {
			s.Seq = 8
		}
		s.Encode(b)
	}
	other := func(b []byte) {
		s := testSuper()
		s.DiskID, s.Seq = 99, uint64(b[24])
		s.Encode(b)
	}
	keep := func([]byte) {}
	// Copy 0 has seq 2, copy 1 has seq 1.
	for _, c := range []struct {
		name  string
		spoil [2]func([]byte)
		seq   uint64
		lost  bool
		err   error
	}{
		{"sound", [2]func([]byte){keep, keep}, 2, false, nil},
		{"newest rotten", [2]func([]byte){rot, keep}, 1, true, nil},
		{"newest zero", [2]func([]byte){zero, keep}, 1, true, nil},
		{"newest foreign", [2]func([]byte){foreign, keep}, 1, true, nil},
		{"newest misplaced", [2]func([]byte){misplaced, keep}, 1, true, nil},
		// One sound sector of seq 1 is left: that copy cannot be newer than 2.
		{"older rotten", [2]func([]byte){keep, rot}, 2, false, nil},
		// Nothing is left: it could have been 3.
		{"older zero", [2]func([]byte){keep, zero}, 2, true, nil},
		{"newer", [2]func([]byte){newer, keep}, 0, false, ErrNewer},
		{"newer and rotten", [2]func([]byte){newer, rot}, 0, false, ErrNewer},
		{"two lives", [2]func([]byte){keep, other}, 0, false, ErrTorn},
		{"both zero", [2]func([]byte){zero, zero}, 0, false, ErrNoMetadata},
		{"both foreign", [2]func([]byte){foreign, foreign}, 0, false, ErrNoMetadata},
		{"both rotten", [2]func([]byte){rot, rot}, 0, false, ErrDamaged},
		{"rotten and zero", [2]func([]byte){zero, rot}, 0, false, ErrDamaged},
		{"both misplaced", [2]func([]byte){misplaced, misplaced}, 0, false, ErrInvalid},
	} {
		d, _ := formatted(t)
		c.spoil[0](d.block(0))
		c.spoil[1](d.block(BlockSize))
		s, lost, err := LoadSuper(d)
		if !errors.Is(err, c.err) || err == nil && (s.Seq != c.seq || lost != c.lost) {
			t.Errorf("%s: %+v lost %v, %v", c.name, s, lost, err)
		}
		if _, lerr := Load(d); (lerr == nil) != (err == nil) {
			t.Errorf("%s: Load: %v", c.name, lerr)
		}
	}
	d, _ := formatted(t)
	d.bad = map[int64]bool{0: true}
	if s, lost, err := LoadSuper(d); err != nil || s.Seq != 1 || !lost {
		t.Errorf("newest unreadable: %v", err)
	}
	d.bad[1] = true
	if _, _, err := LoadSuper(d); !errors.Is(err, errBadSector) {
		t.Errorf("both unreadable: %v", err)
	}
	if _, _, err := LoadSuper(&device{b: make([]byte, 100)}); !errors.Is(err, ErrNoMetadata) {
		t.Errorf("cut off: %v", err)
	}
}

func b32(b []byte) uint32 { return uint32(b[24]) | uint32(b[25])<<8 }

func TestSuperTorn(t *testing.T) {
	for mask := range allSectors + 1 {
		d, s := formatted(t)
		s.Seq, s.Vote.Epoch, s.Peers[2].Mark = 3, 100, 101 // first and second sector
		before := bytes.Clone(d.block(s.SuperOffset(3)))
		d.putSuper(s)
		copy(d.block(s.SuperOffset(3)), torn(before, d.block(s.SuperOffset(3)), mask))
		want := uint64(2)
		if mask == allSectors {
			want = 3
		}
		got, lost, err := LoadSuper(d)
		if err != nil || got.Seq != want || lost || (got.Vote.Epoch == 100) != (want == 3) || (got.Peers[2].Mark == 101) != (want == 3) {
			t.Fatalf("sectors %08b: %+v lost %v, %v", mask, got, lost, err)
		}
		_, err = DecodeSuper(d.block(s.SuperOffset(3)))
		if whole := mask == 0 || mask == allSectors; (err == nil) != whole || !whole && (!errors.Is(err, ErrTorn) || errors.Is(err, ErrDamaged)) {
			t.Fatalf("sectors %08b: %v", mask, err)
		}
	}
}

// A torn first write of another life, over a sound superblock.
func TestSuperTornFormat(t *testing.T) {
	for mask := range allSectors + 1 {
		d, s := formatted(t)
		n := *s
		n.DiskID++
		after := make([]byte, BlockSize)
		n.Encode(after)
		copy(d.block(0), torn(d.block(0), after, mask))
		got, lost, err := LoadSuper(d)
		switch {
		case mask == 0 && (err != nil || got.Seq != 2 || lost),
			mask == allSectors && !errors.Is(err, ErrTorn),
			mask != 0 && mask != allSectors && (err != nil || got.Seq != 1 || !lost):
			t.Fatalf("sectors %08b: %+v lost %v, %v", mask, got, lost, err)
		}
	}
}

func TestALTorn(t *testing.T) {
	// Once around the ring, each time torn at every set of sectors.
	d, s := formatted(t)
	many := make([]uint32, 300)
	for seq := uint64(17); seq < 17+20; seq++ {
		prev := load(t, d)
		before := bytes.Clone(d.block(s.ALOffset(seq)))
		for i := range many {
			many[i] = uint32(seq+uint64(i)) % 300
		}
		d.putAL(s, seq, many[:s.ALSlots]...)
		after := bytes.Clone(d.block(s.ALOffset(seq)))
		for mask := range allSectors + 1 {
			copy(d.block(s.ALOffset(seq)), torn(before, after, mask))
			st := &State{Super: s}
			if err := st.loadAL(&reader{r: d}); err != nil {
				t.Fatal(err)
			}
			wantSeq, want := prev.ALSeq, prev.Hot
			if mask == allSectors {
				wantSeq, want = seq, many[:s.ALSlots]
			}
			if st.ALLost || st.ALSeq != wantSeq || !slices.Equal(st.Hot, want) {
				t.Fatalf("block %d, sectors %08b: seq %d lost %v", seq, mask, st.ALSeq, st.ALLost)
			}
		}
	}
}

func TestPageTorn(t *testing.T) {
	old, now, got := make([]uint64, WordsPerPage), make([]uint64, WordsPerPage), make([]uint64, WordsPerPage)
	for i := range old {
		old[i], now[i] = uint64(i), ^uint64(i)
	}
	before, after := make([]byte, BlockSize), make([]byte, BlockSize)
	EncodePage(before, 7, 0, 1, old)
	EncodePage(after, 7, 0, 1, now)
	for mask := range allSectors + 1 {
		if bad := DecodePage(got, torn(before, after, mask), 7, 0, 1); bad != 0 {
			t.Fatalf("sectors %08b: %d bad", mask, bad)
		}
		for i, w := range got {
			want := old[i]
			if mask>>(i/63)&1 != 0 {
				want = now[i]
			}
			if w != want {
				t.Fatalf("sectors %08b: word %d is %x", mask, i, w)
			}
		}
	}
}

// What is rotten, and what it does to the hot set.
func TestALRot(t *testing.T) {
	one := func(b []byte) { b[5*SectorSize] ^= 1 }
	all := func(b []byte) { clear(b) }
	for _, c := range []struct {
		name  string
		seq   uint64
		spoil func([]byte)
		lost  bool
	}{
		{"newest, one sector", 20, one, true},
		{"newest, all of it", 20, all, true},
		{"the one before", 19, all, false},
		{"oldest, one sector", 5, one, false},
		// It could have been 21.
		{"oldest, all of it", 5, all, true},
		{"in the middle", 10, all, false},
		{"of a former life", 20, func(b []byte) { EncodeAL(b, 1, 20, nil) }, true},
		{"an extent past the end", 20, func(b []byte) { EncodeAL(b, testSuper().DiskID, 20, []uint32{1 << 31}) }, true},
		{"in the wrong place", 20, func(b []byte) { EncodeAL(b, testSuper().DiskID, 21, []uint32{1}) }, true},
	} {
		d, s := formatted(t)
		for seq := uint64(17); seq <= 20; seq++ {
			d.putAL(s, seq, uint32(seq))
		}
		c.spoil(d.block(s.ALOffset(c.seq)))
		st := load(t, d)
		if st.ALLost != c.lost || !c.lost && (st.ALSeq != 20 || !slices.Equal(st.Hot, []uint32{20})) {
			t.Errorf("%s: seq %d hot %v lost %v", c.name, st.ALSeq, st.Hot, st.ALLost)
		}
		// Going on puts it in order.
		for range s.ALRing {
			st.ALSeq++
			d.putAL(s, st.ALSeq, 3)
		}
		if again := load(t, d); again.ALLost || again.ALSeq != st.ALSeq || !slices.Equal(again.Hot, []uint32{3}) {
			t.Errorf("%s, written on: seq %d hot %v lost %v", c.name, again.ALSeq, again.Hot, again.ALLost)
		}
	}
	d, s := formatted(t)
	clear(d.b[s.ALOffset(0):s.BitmapOffset(0, 0)])
	if st := load(t, d); !st.ALLost || st.ALSeq < uint64(s.ALRing) {
		t.Errorf("all gone: %+v", st)
	}
}

func TestLoadUnreadable(t *testing.T) {
	d, s := formatted(t)
	page := s.BitmapOffset(1, 0) / BlockSize
	d.bad = map[int64]bool{page: true}
	st := load(t, d)
	if st.BadSectors != sectors || st.Bits[1][0] != ^uint64(0) || st.Bits[0][0] != 0 || st.Bits[1][WordsPerPage] != 0 {
		t.Errorf("%d bad sectors", st.BadSectors)
	}
	// Dirty, but never past the end of the volume.
	d, s = formatted(t)
	last := d.block(s.BitmapOffset(2, s.Pages()-1))
	clear(last)
	st = load(t, d)
	n := s.Bits() % 64
	if want := uint64(1)<<n - 1; n == 0 && st.Bits[2][s.Words()-1] != ^uint64(0) || n != 0 && st.Bits[2][s.Words()-1] != want {
		t.Errorf("last word %x", st.Bits[2][s.Words()-1])
	}
	if _, err := Load(&device{b: d.b[:s.BitmapOffset(1, 1)]}); !errors.Is(err, io.EOF) {
		t.Errorf("cut off in the bitmaps: %v", err)
	}
	if _, err := Load(&device{b: d.b[:s.ALOffset(3)]}); !errors.Is(err, io.EOF) {
		t.Errorf("cut off in the log: %v", err)
	}
	big := testSuper()
	big.VolumeSize = 40 << 30
	big.BlockShift, big.ExtentShift, big.ALSlots, big.ALRing, _ = Geometry(big.VolumeSize)
	d = &device{bad: map[int64]bool{}}
	if err := Format(d, big); err != nil {
		t.Fatal(err)
	}
	for b := range int64(maxUnreadable + 1) {
		d.bad[big.BitmapOffset(0, 0)/BlockSize+b] = true
	}
	if _, err := Load(d); !errors.Is(err, errBadSector) {
		t.Errorf("a dead disk: %v", err)
	}
}

func TestDump(t *testing.T) {
	d, s := formatted(t)
	d.putAL(s, 17, 9, 3, 4, 5)
	EncodePage(d.block(s.BitmapOffset(0, 0)), s.DiskID, 0, 0, []uint64{7})
	clear(d.block(s.BitmapOffset(1, 0)))
	st := load(t, d)
	var b strings.Builder
	if err := Dump(&b, st); err != nil {
		t.Fatal(err)
	}
	const want = `cluster       nfs1
node          a
disk          1122334455667788 (replaces 0000000000000099)
identity      serial:vol0123456789abcdef0,part=1
boot          2f1d0a3c-0000-4000-8000-0123456789ab
volume        314572800 bytes, 76800 blocks of 4096, 300 extents of 1048576
region        110592 bytes: superblock at 0, activity log at 8192, bitmaps at 73728, each 3 pages
superblock    seq 2
flags         inconsistent outdated marked
generation    current 0000000000000090 proposed 0000000000000091 mark 146
              heard 0000000000000093 in epoch 148
              history[0] 0000000000000001
              history[1] 0000000000000002
              history[2] 0000000000000003
              history[3] 0000000000000004
              history[4] 0000000000000005
              history[5] 0000000000000006
              history[6] 0000000000000007
              history[7] 0000000000000008
vote          cluster 0000000000000029 epoch 42 served 43 serial 45 longest promise 3.4s
activity log  seq 17, 4 of 75 slots hot: 3-5 9
slot 0        peer b disk 0000000000000015 base 0000000000000016 mark 23
              3 of 76800 blocks dirty, 12288 bytes
slot 1        free
slot 2        peer c.d_e-f disk 000000000000001f base 0000000000000020 mark 33
              0 of 76800 blocks dirty, 0 bytes
bad sectors   8 (read as dirty)
`
	if b.String() != want {
		t.Errorf("got\n%s", b.String())
	}
	st.Super.Inconsistent, st.Super.Outdated, st.Super.Vote.Marked = false, false, false
	st.Hot, st.ALLost, st.SuperLost = nil, true, true
	b.Reset()
	if err := Dump(&b, st); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"flags         none\n", "hot: none (the newest block is lost", "seq 2 (the other copy is damaged"} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("no %q in\n%s", part, b.String())
		}
	}
	// The last block of a volume that ends inside it.
	s.VolumeSize, s.BlockShift = 1<<20+4096, 13
	if n := dirtyBytes(s, []uint64{0, 0, 1}, 1); n != 4096 {
		t.Errorf("last block: %d", n)
	}
	if err := Dump(fullWriter{}, st); err == nil {
		t.Error("no error of the writer")
	}
}

type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestEncodeDoesNotAllocate(t *testing.T) {
	b, hot, words := make([]byte, BlockSize), make([]uint32, 256), make([]uint64, WordsPerPage)
	if n := testing.AllocsPerRun(100, func() {
		EncodeAL(b, 1, 2, hot)
		EncodePage(b, 1, 2, 3, words)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The sum is CRC32C over the 24 bytes of the name and 508 of the sector, so
// that another program can check it.
func TestSum(t *testing.T) {
	n := name{diskID: 0x0102030405060708, kind: kindPage, slot: 2, page: 0x01020304}
	sector := bytes.Repeat([]byte{0x5a}, SectorSize)
	in := "\x08\x07\x06\x05\x04\x03\x02\x01BMAP\x02\x00\x00\x00\x04\x03\x02\x01\x05\x00\x00\x00" + string(sector[:508])
	if want := crc32.Checksum([]byte(in), crc32.MakeTable(crc32.Castagnoli)); n.sum(sector, 5) != want {
		t.Errorf("%08x, want %08x", n.sum(sector, 5), want)
	}
}

func BenchmarkEncodeAL(b *testing.B) {
	dst, hot := make([]byte, BlockSize), make([]uint32, 256)
	for b.Loop() {
		EncodeAL(dst, 1, 2, hot)
	}
}

func ExampleErrDamaged() {
	fmt.Println(errors.Is(ErrDamaged, ErrTorn), errors.Is(ErrTorn, ErrDamaged))
	// Output: true false
}
