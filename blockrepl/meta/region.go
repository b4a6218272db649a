package meta

import (
	"errors"
	"fmt"
	"io"
)

// chunkBlocks is how many blocks are read or written at once. A region is up
// to 100 MiB, most of it bitmaps.
const chunkBlocks = 256

// maxUnreadable is how many blocks may be unreadable before Load gives up: a
// disk that answers nothing takes seconds for each.
const maxUnreadable = 64

// State is the whole metadata, decoded.
type State struct {
	Super *Super
	// SuperLost: one copy is damaged and may have been the newer one. Epochs,
	// marks and generations in Super may be one write behind what this node has
	// promised, so the caller has to treat the disk as one that was put back.
	SuperLost bool

	ALSeq uint64   // the next block to write is ALSeq+1
	Hot   []uint32 // extents that may differ between the copies
	// ALLost: the newest activity-log block cannot be known. Hot is then only a
	// part of the truth, and everything has to be treated as dirty.
	ALLost bool

	Bits       [MaxPeers][]uint64 // len Words() each, also of free slots
	BadSectors int                // of the bitmaps; read as dirty
}

// Format writes a fresh region: nothing hot, nothing dirty, both superblocks,
// all of it by one life of the disk. It sets s.Seq. The caller flushes. A crash
// before that leaves a mixture of two lives, which Load refuses (superblocks)
// or reads as dirty (the rest): the checksums are salted with the disk id.
func Format(w io.WriterAt, s *Super) error {
	s.Seq = 0
	if err := s.Validate(); err != nil {
		return err
	}
	buf := make([]byte, 0, chunkBlocks*BlockSize)
	off := s.RegionSize()
	// From the end to the start, so that the superblocks come last. blocks are
	// numbered as in the picture of geometry.go.
	for last := int(off/BlockSize) - 1; last >= 0; {
		first := max(0, last-chunkBlocks+1)
		buf = buf[:(last-first+1)*BlockSize]
		for b := first; b <= last; b++ {
			s.formatBlock(buf[(b-first)*BlockSize:(b-first+1)*BlockSize], b)
		}
		if _, err := w.WriteAt(buf, int64(first)*BlockSize); err != nil {
			return fmt.Errorf("format metadata: %w", err)
		}
		last = first - 1
	}
	s.Seq = superBlocks
	return nil
}

// formatBlock makes block b of a fresh region. Every block of the ring is
// written, so that none is ever "not used yet": see loadAL.
func (s *Super) formatBlock(dst []byte, b int) {
	switch ring := int(s.ALRing); {
	case b < superBlocks:
		t := *s
		t.Seq = uint64(superBlocks - b) // 2 goes to block 0, 1 to block 1
		t.Encode(dst)
	case b < superBlocks+ring:
		seq := uint64(b - superBlocks)
		if seq == 0 {
			seq = uint64(ring)
		}
		EncodeAL(dst, s.DiskID, seq, nil)
	default:
		b -= superBlocks + ring
		EncodePage(dst, s.DiskID, b/s.Pages(), b%s.Pages(), nil)
	}
}

// Load reads the region. The error wraps ErrNoMetadata, ErrNewer, ErrTorn,
// ErrDamaged, ErrInvalid, or is the disk's.
func Load(r io.ReaderAt) (*State, error) {
	s, lost, err := LoadSuper(r)
	if err != nil {
		return nil, err
	}
	st := &State{Super: s, SuperLost: lost}
	in := reader{r: r}
	if err := st.loadAL(&in); err != nil {
		return nil, err
	}
	for slot := range st.Bits {
		if err := st.loadBitmap(&in, slot); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// LoadSuper reads the superblock alone; lost is State.SuperLost.
func LoadSuper(r io.ReaderAt) (s *Super, lost bool, err error) {
	var raw [superBlocks][]byte
	var super [superBlocks]*Super
	var errs [superBlocks]error
	for i := range raw {
		raw[i] = make([]byte, BlockSize)
		if _, err := r.ReadAt(raw[i], int64(i)*BlockSize); err != nil && !errors.Is(err, io.EOF) {
			// The other copy may do. What is in the buffer is not the block.
			clear(raw[i])
			errs[i] = fmt.Errorf("read superblock: %w", err)
			continue
		} else if err != nil {
			errs[i] = fmt.Errorf("%w: the region is cut off", ErrNoMetadata)
			continue
		}
		super[i], errs[i] = DecodeSuper(raw[i])
		if errs[i] == nil && super[i].SuperOffset(super[i].Seq) != int64(i)*BlockSize {
			super[i], errs[i] = nil, fmt.Errorf("%w: superblock %d in the place of the other copy", ErrInvalid, super[i].Seq)
		}
	}
	switch a, b := super[0], super[1]; {
	case errors.Is(errs[0], ErrNewer) || errors.Is(errs[1], ErrNewer):
		// Also when the other copy is ours: the newer program wrote it before.
		return nil, false, worst(errs[:])
	case a == nil && b == nil:
		return nil, false, worst(errs[:])
	case a != nil && b != nil && a.DiskID != b.DiskID:
		return nil, false, fmt.Errorf("%w: the copies are of two disks, so an init did not end", ErrTorn)
	case a != nil && b != nil && a.Seq > b.Seq:
		return a, false, nil
	case a != nil && b != nil:
		return b, false, nil
	case a != nil:
		return a, !superName(a.DiskID).older(raw[1], uint32(a.Seq)), nil
	default:
		return b, !superName(b.DiskID).older(raw[0], uint32(b.Seq)), nil
	}
}

// worst picks the answer that tells the operator most.
func worst(errs []error) error {
	for _, class := range []error{ErrNewer, ErrInvalid, ErrDamaged, ErrTorn} {
		for _, err := range errs {
			if errors.Is(err, class) {
				return err
			}
		}
	}
	for _, err := range errs {
		if !errors.Is(err, ErrNoMetadata) {
			return err // the disk's
		}
	}
	return errs[0]
}

func (st *State) loadAL(in *reader) error {
	s := st.Super
	ring := uint64(s.ALRing)
	raw := make([]byte, ring*BlockSize)
	if err := in.read(raw, s.ALOffset(0)); err != nil {
		return err
	}
	found := false
	for i := range ring {
		seq, hot, err := DecodeAL(raw[i*BlockSize:(i+1)*BlockSize], s.DiskID)
		if err != nil || seq%ring != i || !inRange(hot, s.Extents()) {
			continue
		}
		if !found || seq > st.ALSeq {
			found, st.ALSeq, st.Hot = true, seq, hot
		}
	}
	// Is there a newer one? Blocks are written in order, each flushed before
	// anything relies on it. So if some later block was flushed, the next one
	// was, and its place holds it, whole or rotten. It was not flushed if that
	// place still has a sound sector of the block from one ring ago.
	next := (st.ALSeq + 1) % ring
	if found && alName(s.DiskID).older(raw[next*BlockSize:(next+1)*BlockSize], uint32(st.ALSeq+1)) {
		return nil
	}
	// A block that cannot be read today may be readable tomorrow. Go on with
	// numbers above any that it can have.
	st.ALLost = true
	st.ALSeq += ring
	return nil
}

func inRange(extents []uint32, n int) bool {
	for _, e := range extents {
		if int(e) >= n {
			return false
		}
	}
	return true
}

func (st *State) loadBitmap(in *reader, slot int) error {
	s := st.Super
	words := make([]uint64, s.Words())
	raw := make([]byte, min(chunkBlocks, s.Pages())*BlockSize)
	for first := 0; first < s.Pages(); first += chunkBlocks {
		raw := raw[:min(chunkBlocks, s.Pages()-first)*BlockSize]
		if err := in.read(raw, s.BitmapOffset(slot, first)); err != nil {
			return err
		}
		for i := range len(raw) / BlockSize {
			st.BadSectors += DecodePage(pageWords(words, first+i), raw[i*BlockSize:(i+1)*BlockSize], s.DiskID, slot, first+i)
		}
	}
	if tail := s.Bits() % 64; tail != 0 {
		words[len(words)-1] &= 1<<tail - 1
	}
	st.Bits[slot] = words
	return nil
}

// reader reads past blocks that the disk cannot read: they become zeroes, which
// are wrong everywhere.
type reader struct {
	r   io.ReaderAt
	bad int
}

func (in *reader) read(b []byte, off int64) error {
	if _, err := in.r.ReadAt(b, off); err == nil {
		return nil
	}
	for i := 0; i < len(b); i += BlockSize {
		block := b[i : i+BlockSize]
		_, err := in.r.ReadAt(block, off+int64(i))
		if err == nil {
			continue
		}
		clear(block)
		if in.bad++; in.bad > maxUnreadable || errors.Is(err, io.EOF) {
			return fmt.Errorf("read metadata at %d: %w", off+int64(i), err)
		}
	}
	return nil
}
