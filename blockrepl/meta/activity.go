package meta

import (
	"encoding/binary"
	"fmt"
)

// One activity-log block is the whole hot set, not a change to it:
//
//	offset  width   (in the payload; see sector.go)
//	0        8      magic "TANDEMAL"
//	8        4      n, the number of hot extents, at most 1000
//	12       4      zero
//	16       8      disk id: a block of a former life
//	24       8      seq; the low half is the tag of all eight sectors
//	32       4n     extent numbers, in the order of the caller
//	32+4n    ..     zero
//
// Written by the volume before the first write to a cold extent, flushed
// before that write goes to the local disk or to a peer. Nothing has to be
// replayed: the newest whole block says everything, and if the newest is torn
// the one before it does, because the write that waited for the torn one was
// never started, and an extent that it would have retired was not needed.
// Sequence numbers are consecutive, blocks are written in their order, and
// fewer than ALRing of them lie between two flushes.
const (
	alMagic   = "TANDEMAL"
	alExtents = 32
)

// EncodeAL makes the block for ALOffset(seq). It does not allocate. More than
// MaxALSlots extents are a bug of the caller.
func EncodeAL(dst []byte, diskID, seq uint64, extents []uint32) {
	mustBlock(dst)
	if len(extents) > MaxALSlots {
		panic("meta: more hot extents than a block can name")
	}
	clear(dst)
	copy(dst, alMagic)
	binary.LittleEndian.PutUint32(dst[8:], uint32(len(extents)))
	binary.LittleEndian.PutUint64(dst[16:], diskID)
	binary.LittleEndian.PutUint64(dst[24:], seq)
	for i, e := range extents {
		binary.LittleEndian.PutUint32(dst[at(alExtents+4*i):], e)
	}
	alName(diskID).seal(dst, uint32(seq))
}

// DecodeAL returns the hot set of a block. The error is ErrNoMetadata for what
// is not an activity-log block of this disk, ErrTorn, or ErrDamaged.
func DecodeAL(b []byte, diskID uint64) (seq uint64, extents []uint32, err error) {
	if len(b) != BlockSize {
		return 0, nil, fmt.Errorf("%w: %d bytes", ErrNoMetadata, len(b))
	}
	if string(b[:8]) != alMagic || binary.LittleEndian.Uint64(b[16:]) != diskID {
		return 0, nil, ErrNoMetadata
	}
	seq = binary.LittleEndian.Uint64(b[24:])
	if err := alName(diskID).whole(b, uint32(seq)); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if n > MaxALSlots || binary.LittleEndian.Uint32(b[12:]) != 0 || !zeroFrom(b, alExtents+4*int(n)) {
		return 0, nil, ErrDamaged
	}
	extents = make([]uint32, n)
	for i := range extents {
		extents[i] = binary.LittleEndian.Uint32(b[at(alExtents+4*i):])
	}
	return seq, extents, nil
}

func alName(diskID uint64) name { return name{diskID: diskID, kind: kindAL} }
