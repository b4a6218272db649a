package meta

import "fmt"

// The region, in blocks of 4 KiB:
//
//	block                        what
//	0                            superblock, even Seq
//	1                            superblock, odd Seq
//	2            .. 2+R-1        activity-log ring: R = ALRing, block Seq mod R
//	2+R          .. 2+R+P-1      bitmap of slot 0: P = Pages()
//	2+R+P        .. 2+R+2P-1     bitmap of slot 1
//	2+R+2P       .. 2+R+3P-1     bitmap of slot 2
//
// All MaxPeers bitmaps are there from the start, so that a third node can be
// added without moving anything.
const superBlocks = 2

const (
	// MinBlockShift is 4 KiB: a page of the page cache, the usual small write.
	MinBlockShift = 12
	// MaxBits keeps one bitmap at 32 MiB of bits. On the disk it is 1/63 more,
	// for the check words.
	MaxBits = 32 << 20 * 8
	// maxBlockShift is what MaxVolumeSize needs.
	maxBlockShift = 16
	// MaxVolumeSize is 16 TiB: one bit for 64 KiB.
	MaxVolumeSize = MaxBits << maxBlockShift
	// SizeAlign is what the volume's size is a multiple of.
	SizeAlign = 1 << MinBlockShift

	minExtentShift, maxExtentShift = 20, 26
	// minALSlots: one operation of 8 MiB touches up to 9 extents, and a handful
	// of such operations must be able to be in flight.
	minALSlots = 48
	// minALRing: with one block, a torn write would leave no older one.
	minALRing, maxALRing = 2, 64
)

// Geometry chooses the granularities for a volume of so many bytes. The error
// wraps ErrInvalid.
//
// A small extent makes the resync after a crash small, a large one makes cold
// writes (each waits for a flushed log block) rare. 256 extents of 4 MiB are
// 1 GiB, a minute of resync on a slow link. On a small volume that would be
// everything, so the log covers at most a quarter of it.
func Geometry(volumeSize int64) (blockShift, extentShift uint8, alSlots, alRing uint16, err error) {
	if err := checkSize(volumeSize); err != nil {
		return 0, 0, 0, 0, err
	}
	blockShift = MinBlockShift
	for ceil(volumeSize, blockShift) > MaxBits {
		blockShift++
	}
	extentShift, slots := uint8(20), int64(256)
	if volumeSize >= 16<<30 {
		extentShift = 22
	}
	if volumeSize < 1<<30 {
		slots = 128
	}
	slots = max(minALSlots, min(slots, volumeSize>>extentShift/4))
	return blockShift, extentShift, uint16(slots), 16, nil
}

func checkSize(volumeSize int64) error {
	switch {
	case volumeSize <= 0 || volumeSize%SizeAlign != 0:
		return fmt.Errorf("%w: a volume of %d bytes is not a multiple of %d", ErrInvalid, volumeSize, SizeAlign)
	case volumeSize > MaxVolumeSize:
		return fmt.Errorf("%w: a volume of %d bytes is larger than 16 TiB", ErrInvalid, volumeSize)
	}
	return nil
}

// ceil is n / 2^shift, rounded up.
func ceil(n int64, shift uint8) int64 { return (n + 1<<shift - 1) >> shift }

// Bits is how many dirty bits the volume has. The last may stand for less than
// a whole block.
func (s *Super) Bits() int { return int(ceil(s.VolumeSize, s.BlockShift)) }

// Words is how many 64-bit words hold them. The bits of the last word past
// Bits() are zero.
func (s *Super) Words() int { return (s.Bits() + 63) / 64 }

// Pages is how many blocks hold the words.
func (s *Super) Pages() int { return (s.Words() + WordsPerPage - 1) / WordsPerPage }

// Extents is how many extents the volume has.
func (s *Super) Extents() int { return int(ceil(s.VolumeSize, s.ExtentShift)) }

// RegionSize is the metadata's size in bytes.
func (s *Super) RegionSize() int64 { return s.BitmapOffset(MaxPeers, 0) }

// SuperOffset is where the superblock with this sequence number goes.
func (s *Super) SuperOffset(seq uint64) int64 { return int64(seq%superBlocks) * BlockSize }

// ALOffset is where the activity-log block with this sequence number goes.
func (s *Super) ALOffset(seq uint64) int64 {
	return (superBlocks + int64(seq%uint64(s.ALRing))) * BlockSize
}

// BitmapOffset is where a page of the bitmap of a slot goes.
func (s *Super) BitmapOffset(slot, page int) int64 {
	return (superBlocks + int64(s.ALRing) + int64(slot)*int64(s.Pages()) + int64(page)) * BlockSize
}

// pageWords is the part of a bitmap that a page holds; the last may be short.
func pageWords(words []uint64, page int) []uint64 {
	return words[page*WordsPerPage : min((page+1)*WordsPerPage, len(words))]
}
