package meta

import "encoding/binary"

// One page of the bitmap of one peer. A set bit: that peer may lack the block.
//
//	offset  width   (in the payload; see sector.go)
//	0       8*504   words, bit i of word w is block (page*504+w)*64+i;
//	                words past the end of the volume are zero
//
// The name under the checksum has the slot and the page. Bits are set on disk
// (flushed) before what they protect is forgotten elsewhere, and cleared on
// disk whenever it suits: a torn page is right sector by sector. A damaged
// sector reads as "all dirty", which costs 63*64 blocks of resync, 16 MiB at 4
// KiB. That is why pages have eight checksums, and why init writes all of
// them: a page that was never written must not read as "all clean".

// EncodePage makes one bitmap block of up to WordsPerPage words; the rest is
// zero. It does not allocate.
func EncodePage(dst []byte, diskID uint64, slot, page int, words []uint64) {
	mustBlock(dst)
	if len(words) > WordsPerPage {
		panic("meta: more words than a page holds")
	}
	clear(dst)
	for i, w := range words {
		binary.LittleEndian.PutUint64(dst[at(8*i):], w)
	}
	pageName(diskID, slot, page).seal(dst, pageTag)
}

// DecodePage fills dst, up to WordsPerPage words. A bad sector's words become
// all ones; the bits past the end of the volume are the caller's to clear.
func DecodePage(dst []uint64, b []byte, diskID uint64, slot, page int) (badSectors int) {
	if len(dst) > WordsPerPage {
		panic("meta: more words than a page holds")
	}
	const perSector = sectorPayload / 8
	n := pageName(diskID, slot, page)
	for i := range sectors {
		lo, hi := min(i*perSector, len(dst)), min((i+1)*perSector, len(dst))
		if len(b) == BlockSize && n.sound(b, i, hi-lo) {
			for w := range dst[lo:hi] {
				dst[lo+w] = binary.LittleEndian.Uint64(b[i*SectorSize+8*w:])
			}
			continue
		}
		badSectors++
		for w := range dst[lo:hi] {
			dst[lo+w] = ^uint64(0)
		}
	}
	return badSectors
}

// sound is check for a page's sector, of which so many words are in use.
func (n name) sound(b []byte, sector, words int) bool {
	if tag, ok := n.check(b, sector); !ok || tag != pageTag {
		return false
	}
	for _, c := range b[sector*SectorSize+8*words : sector*SectorSize+sectorPayload] {
		if c != 0 {
			return false
		}
	}
	return true
}

func pageName(diskID uint64, slot, page int) name {
	return name{diskID: diskID, kind: kindPage, slot: uint32(slot), page: uint32(page)}
}
