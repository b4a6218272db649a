package demo

import (
	"encoding/binary"
	"hash/crc32"
)

// blockSize is the unit that the checker writes and compares.
const blockSize = 4096

// A block as the checker writes it, little endian. Every write fills whole
// blocks, each with a header of its own, because a write of 64 KiB may arrive
// in part and its parts are counted.
//
//	0         8         16        24        32    36              4096
//	├─ magic ─┼── run ──┼─ block ─┼── seq ──┼ crc ┼─── content ───┤
//
//	magic    "TANDEMCK"; anything else is not ours
//	run      drawn for each ledger: a block that an earlier demo left is not taken for one of this
//	block    where it belongs, in blocks from the start of the volume: one that landed elsewhere is found
//	seq      the number of the write
//	crc      CRC32C of the block with these four bytes zero: torn and rotten blocks
//	content  a stream that depends on run, block and seq, so that two writes share nothing
const (
	blockMagic = "TANDEMCK"
	runAt      = 8
	numberAt   = 16
	seqAt      = 24
	crcAt      = 32
	contentAt  = 36
)

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// fillBlock writes block number of write seq into b.
func fillBlock(b []byte, run uint64, number int64, seq uint64) {
	b = b[:blockSize]
	copy(b, blockMagic)
	binary.LittleEndian.PutUint64(b[runAt:], run)
	binary.LittleEndian.PutUint64(b[numberAt:], uint64(number))
	binary.LittleEndian.PutUint64(b[seqAt:], seq)
	binary.LittleEndian.PutUint32(b[crcAt:], 0)
	// splitmix64: fast, and every start value is a good one.
	x := run ^ seq*0x9e3779b97f4a7c15 ^ uint64(number)<<40
	binary.LittleEndian.PutUint32(b[contentAt:], uint32(x))
	for i := contentAt + 4; i < blockSize; i += 8 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(b[i:], z^z>>31)
	}
	binary.LittleEndian.PutUint32(b[crcAt:], crc32.Checksum(b, castagnoli()))
}

// content is what a block turned out to hold.
type content struct {
	kind contentKind
	seq  uint64 // of a dataBlock
}

type contentKind uint8

const (
	zeroBlock    contentKind = iota // never written, or written with zeroes
	dataBlock                       // whole and in its place
	foreignBlock                    // anything else
)

// readBlock says what block number, read into b, holds. The header's checksum
// field is zeroed in b on the way.
func readBlock(b []byte, run uint64, number int64) content {
	b = b[:blockSize]
	if string(b[:8]) != blockMagic {
		for _, x := range b {
			if x != 0 {
				return content{kind: foreignBlock}
			}
		}
		return content{kind: zeroBlock}
	}
	crc := binary.LittleEndian.Uint32(b[crcAt:])
	binary.LittleEndian.PutUint32(b[crcAt:], 0)
	if binary.LittleEndian.Uint64(b[runAt:]) != run || binary.LittleEndian.Uint64(b[numberAt:]) != uint64(number) ||
		crc32.Checksum(b, castagnoli()) != crc {
		return content{kind: foreignBlock}
	}
	return content{dataBlock, binary.LittleEndian.Uint64(b[seqAt:])}
}
