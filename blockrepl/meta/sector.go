package meta

import (
	"encoding/binary"
	"hash/crc32"
)

// Every block is eight sectors, and each can be judged alone:
//
//	offset  width
//	0       504    payload
//	504       4    tag: the low half of the sequence number of the write
//	               (bitmap pages have none: a constant)
//	508       4    CRC32C of the sector's name, then of bytes 0..507
//
// The name is not stored. It is where the sector has to be, 24 bytes: disk id
// (8), kind (4), bitmap slot (4), page (4), sector (4); so that a sector that
// was written to the wrong place, or by a former life of the disk, is as wrong
// as a damaged one. A sector of zeroes is wrong everywhere.
//
// One checksum over 4 KiB would do to reject a torn block, but it could not
// tell "power went while this was written" (sound sectors with two tags: the
// block was never flushed, nobody relied on it) from "this was flushed and has
// rotted" (a sector that no write made). The first makes the block before it
// the truth, the second makes that block a lie. See loadAL.
const (
	sectors       = BlockSize / SectorSize
	sectorPayload = SectorSize - 8
	// payloadSize is what a block carries. Offsets in the boxes of this package
	// are offsets in the payload; at() turns them into those in the block.
	payloadSize = sectors * sectorPayload
)

// Sizes that the boxes rely on; a wrong one does not compile.
const (
	_ = uint(BlockSize - sectors*SectorSize)
	_ = uint(sectors*SectorSize - BlockSize)
	_ = uint(WordsPerPage*8 - payloadSize)
	_ = uint(payloadSize - WordsPerPage*8)
	_ = uint(payloadSize - alExtents - 4*MaxALSlots)
	_ = uint(alExtents + 4*MaxALSlots - payloadSize)
	_ = uint(payloadSize - superSize)
)

type kind uint32

const (
	kindSuper kind = 0x52505553 // "SUPR"
	kindAL    kind = 0x474f4c41 // "ALOG"
	kindPage  kind = 0x50414d42 // "BMAP"
)

// pageTag stands where other blocks have a sequence number. A bitmap needs
// none: each sector's bits are either the old or the new ones, and the rule
// for setting and clearing bits makes both right.
const pageTag = 0x50414d42

// name says which block a sector must belong to.
type name struct {
	diskID     uint64
	kind       kind
	slot, page uint32
}

// castagnoli is a constant in all but syntax.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (n name) sum(sector []byte, i int) uint32 {
	// By hand: crc32.Update calls through a variable, so a slice of a local
	// array would be an allocation a sector, on the way of a cold write.
	crc := ^uint32(0)
	for _, v := range [...]uint64{n.diskID, uint64(n.slot)<<32 | uint64(n.kind), uint64(i)<<32 | uint64(n.page)} {
		for range 8 {
			crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
			v >>= 8
		}
	}
	return crc32.Update(^crc, castagnoli, sector[:SectorSize-4])
}

// seal fills in the eight tags and checksums.
func (n name) seal(b []byte, tag uint32) {
	for i := range sectors {
		s := b[i*SectorSize : (i+1)*SectorSize]
		binary.LittleEndian.PutUint32(s[sectorPayload:], tag)
		binary.LittleEndian.PutUint32(s[SectorSize-4:], n.sum(s, i))
	}
}

// check returns the tag of sector i, and whether the sector is sound.
func (n name) check(b []byte, i int) (tag uint32, ok bool) {
	s := b[i*SectorSize : (i+1)*SectorSize]
	return binary.LittleEndian.Uint32(s[sectorPayload:]), binary.LittleEndian.Uint32(s[SectorSize-4:]) == n.sum(s, i)
}

// whole says whether the block is one write: nil, ErrTorn or ErrDamaged.
func (n name) whole(b []byte, tag uint32) error {
	var err error
	for i := range sectors {
		switch t, ok := n.check(b, i); {
		case !ok:
			return ErrDamaged
		case t != tag:
			err = ErrTorn
		}
	}
	return err
}

// older says whether a block that should carry tag still has a sound sector of
// an earlier write. Then the write with this tag was never flushed, and a
// block that is unreadable for other reasons cannot have been it. Tags are
// halves of sequence numbers, compared around the wrap.
func (n name) older(b []byte, tag uint32) bool {
	for i := range sectors {
		if t, ok := n.check(b, i); ok && int32(t-tag) < 0 {
			return true
		}
	}
	return false
}

// at is the offset in the block of an offset in the payload. Fields of up to 8
// bytes that are aligned to their width never cross a sector's end: 504 is a
// multiple of 8.
func at(payload int) int { return payload + payload/sectorPayload*(SectorSize-sectorPayload) }

// zeroFrom says whether the payload is zero from an offset on.
func zeroFrom(b []byte, payload int) bool {
	for ; payload < payloadSize; payload++ {
		if b[at(payload)] != 0 {
			return false
		}
	}
	return true
}

func mustBlock(b []byte) {
	if len(b) != BlockSize {
		panic("meta: not one block")
	}
}
