// Package records is what a scenario writes through a filesystem to find out
// later what is left of it: a series of records whose place and content follow
// from a seed and a number, so that the checker needs nothing but how many of
// them were acknowledged.
//
// The series goes through the ways in which programs make data durable: append
// and fsync, overwrite in place and fsync, write a new file, fsync it, rename it
// and fsync the folder, append and fdatasync. Record n+1 is not begun before
// record n is durable.
package records

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	// header of a record, then its payload:
	//
	//	0   4  magic "TREC"
	//	4   4  length of the whole record
	//	8   8  seed
	//	16  8  number
	//	24  4  CRC32 of the payload, for whoever looks at a hex dump
	//	28  4  zero
	headerSize = 32
	magic      = "TREC"

	logSize  = 1000 // no divisor of a block: each append touches the one before
	bigSize  = 24 << 10
	slotSize = 4096
	slots    = 16

	perRound = 5 // records until the kinds repeat
)

// place is where a record goes.
type place struct {
	file    string
	offset  int64
	size    int
	renamed bool // written under another name first, then renamed, then the folder is synced
	data    bool // fdatasync is enough
}

// placeOf never gives two records the same bytes, except in the file "slots",
// where record n overwrites record n - slots*perRound.
func placeOf(n uint64) place {
	round := int64(n / perRound)
	switch n % perRound {
	case 0:
		return place{file: "log", offset: 2 * round * logSize, size: logSize}
	case 1:
		return place{file: "slots", offset: round % slots * slotSize, size: slotSize}
	case 2:
		return place{file: fmt.Sprintf("file-%06d", n), size: headerSize + int(mix(n)%12000), renamed: true}
	case 3:
		return place{file: "log", offset: (2*round + 1) * logSize, size: logSize}
	default:
		return place{file: "big", offset: round * bigSize, size: bigSize, data: true}
	}
}

// overwrittenBy is the number of the record that takes n's place, if any does.
func overwrittenBy(n uint64) (uint64, bool) {
	return n + slots*perRound, n%perRound == 1
}

// content of record n of a series.
func content(seed, n uint64, size int) []byte {
	b := make([]byte, size)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[4:], uint32(size))
	binary.LittleEndian.PutUint64(b[8:], seed)
	binary.LittleEndian.PutUint64(b[16:], n)
	p := b[headerSize:]
	x := mix(mix(seed) + n)
	for i := 0; i+8 <= len(p); i += 8 {
		x = mix(x)
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	binary.LittleEndian.PutUint32(b[24:], crc32.ChecksumIEEE(p))
	return b
}

// mix is splitmix64's step: one number from another, evenly.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// seedOf gives each writer of a run a series of its own.
func seedOf(seed uint64, writer int) uint64 { return mix(seed + uint64(writer)) }

func folderOf(writer int) string { return fmt.Sprintf("writer-%d", writer) }
