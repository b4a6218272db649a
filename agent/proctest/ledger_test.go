package proctest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"
	"time"
)

// blockSize is the unit that is written and judged. A write of several blocks
// may arrive in part, so each block carries its own header, little endian:
//
//	0         8         16        24        32    36              4096
//	├─ magic ─┼── run ──┼─ block ─┼── seq ──┼ crc ┼─── content ───┤
//
//	run      of the ledger: a block of an earlier test is not taken for one of this
//	block    where it belongs: one that landed elsewhere is found
//	seq      the number of the write
//	crc      CRC32C of the block with these four bytes zero
//	content  a stream that depends on the three, so that two writes share nothing
const (
	blockSize  = 4096
	blockMagic = "PROCTEST"
	crcAt      = 32
	contentAt  = 36
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func fillBlock(b []byte, run uint64, block int64, seq uint64) {
	b = b[:blockSize]
	copy(b, blockMagic)
	binary.LittleEndian.PutUint64(b[8:], run)
	binary.LittleEndian.PutUint64(b[16:], uint64(block))
	binary.LittleEndian.PutUint64(b[24:], seq)
	binary.LittleEndian.PutUint32(b[crcAt:], 0)
	x := run ^ seq*0x9e3779b97f4a7c15 ^ uint64(block)<<40 // splitmix64
	binary.LittleEndian.PutUint32(b[contentAt:], uint32(x))
	for i := contentAt + 4; i < blockSize; i += 8 {
		x += 0x9e3779b97f4a7c15
		z := (x ^ x>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(b[i:], z^z>>31)
	}
	binary.LittleEndian.PutUint32(b[crcAt:], crc32.Checksum(b, castagnoli))
}

// readBlock says what a block holds: zeroes, the write seq, or neither.
func readBlock(b []byte, run uint64, block int64) (seq uint64, zero, ok bool) {
	b = b[:blockSize]
	if string(b[:8]) != blockMagic {
		for _, x := range b {
			if x != 0 {
				return 0, false, false
			}
		}
		return 0, true, true
	}
	whole := slices.Clone(b)
	binary.LittleEndian.PutUint32(whole[crcAt:], 0)
	if binary.LittleEndian.Uint64(b[8:]) != run || binary.LittleEndian.Uint64(b[16:]) != uint64(block) ||
		crc32.Checksum(whole, castagnoli) != binary.LittleEndian.Uint32(b[crcAt:]) {
		return 0, false, false
	}
	return binary.LittleEndian.Uint64(b[24:]), false, true
}

// entry is one write of a block.
type entry struct {
	seq    uint64
	zero   bool
	acked  uint64 // the ledger's clock at its acknowledgement (or when it was read), 0: not
	stable bool   // acknowledged with FUA
}

// ledger knows what each block may hold. Each block has at most one write in
// flight, so its writes have an order, and after any crash it holds the last
// one acknowledged or one issued after that; after a power loss of every copy,
// the last one that was flushed or one after that.
type ledger struct {
	run uint64

	mu      sync.Mutex
	seq     uint64
	clock   uint64            // one more at each acknowledgement
	flushed uint64            // what was acknowledged up to here is durable
	blocks  map[int64][]entry // in order of issue; no entry: zero from the start
	acks    int
	acked   []ackedOp
}

// ackedOp is an acknowledgement, for questions about time.
type ackedOp struct {
	node       string
	sent, done int64 // ns, monotonic
}

func newLedger(run uint64) *ledger { return &ledger{run: run, blocks: make(map[int64][]entry)} }

// issue enters a write that is about to be sent.
func (l *ledger) issue(block, count int64, zero bool) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	for i := range count {
		l.blocks[block+i] = append(l.blocks[block+i], entry{seq: l.seq, zero: zero})
	}
	return l.seq
}

// ack enters its acknowledgement.
func (l *ledger) ack(seq uint64, block, count int64, fua bool, op ackedOp) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	l.acks++
	l.acked = append(l.acked, op)
	for i := range count {
		b := l.blocks[block+i]
		for k := range b {
			if b[k].seq == seq {
				b[k].acked, b[k].stable = l.clock, fua
			}
		}
	}
}

// now is the clock, for a flush that is about to be sent.
func (l *ledger) now() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock
}

// flush enters that a flush sent at since was acknowledged.
func (l *ledger) flush(since uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushed = max(l.flushed, since)
}

// mark is a point in the order of writes, for touched.
func (l *ledger) mark() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// touched counts the blocks that a write after mark was issued for, and those
// of the writes that were in flight then.
func (l *ledger) touched(mark uint64) (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	mark -= min(mark, 2*maxInFlight)
	for _, b := range l.blocks {
		if len(b) > 0 && b[len(b)-1].seq > mark {
			n++
		}
	}
	return n
}

// inFlight are the blocks whose last write is not acknowledged.
func (l *ledger) inFlight() (blocks []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, b := range l.blocks {
		if len(b) > 0 && b[len(b)-1].acked == 0 {
			blocks = append(blocks, n)
		}
	}
	return blocks
}

func (l *ledger) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks
}

// floor is the last write of a block that is acknowledged, 0 if none is. A read
// that begins now must not return anything older.
func (l *ledger) floor(block int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.floorLocked(block, false)
}

func (l *ledger) floorLocked(block int64, blackout bool) uint64 {
	for _, e := range slices.Backward(l.blocks[block]) {
		if e.acked != 0 && (!blackout || e.stable || e.acked <= l.flushed) {
			return e.seq
		}
	}
	return 0
}

// judge takes what a read of a block returned, whose floor was floor when it
// began, and enters it as acknowledged: a value once read never goes away.
func (l *ledger) judge(block int64, floor uint64, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.judgeLocked(block, floor, data)
	return err
}

// judgeLocked returns the index of the matching entry, -1 for the zeroes of the
// start.
func (l *ledger) judgeLocked(block int64, floor uint64, data []byte) (int, error) {
	b := l.blocks[block]
	seq, zero, ok := readBlock(data, l.run, block)
	if !ok {
		return 0, fmt.Errorf("block %d holds what was never written there (%q…)", block, data[:16])
	}
	if zero && floor == 0 {
		return -1, nil // of the start; a later write of zeroes cannot be told from it
	}
	for i := range b {
		e := &b[i]
		if e.seq >= floor && (zero && e.zero || !zero && !e.zero && e.seq == seq) {
			if e.acked == 0 {
				l.clock++
				e.acked = l.clock
			}
			return i, nil
		}
	}
	what := fmt.Sprintf("write %d", seq)
	if zero {
		what = "zeroes"
	}
	return 0, fmt.Errorf("block %d holds %s, it must hold write %d or a later one of %s", block, what, floor, describe(b))
}

// describe shows the last writes of a block.
func describe(b []entry) string {
	s := ""
	for _, e := range b[max(0, len(b)-6):] {
		s += fmt.Sprintf(" %d", e.seq)
		if e.zero {
			s += "z"
		}
		switch {
		case e.stable:
			s += "!"
		case e.acked != 0:
			s += "+"
		}
	}
	return "[" + s + " ]"
}

// verdict is what a reading of every block has found.
type verdict struct {
	blocks int
	older  int // acknowledged and not flushed, and gone: only a blackout may do that
	bad    []string
}

// check judges every block that was ever written, read by the function. Nobody
// may write meanwhile. With blackout every copy has lost power since, so only
// what was flushed must be there; what was found is from then on all there is.
func (l *ledger) check(read func(p []byte, block int64) error, blackout bool) (verdict, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var v verdict
	numbers := make([]int64, 0, len(l.blocks))
	for n := range l.blocks {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	const chunk = 256
	buf := make([]byte, chunk*blockSize)
	for len(numbers) > 0 {
		run := 1
		for run < len(numbers) && run < chunk && numbers[run] == numbers[0]+int64(run) {
			run++
		}
		first := numbers[0]
		numbers = numbers[run:]
		p := buf[:run*blockSize]
		if err := read(p, first); err != nil {
			return v, fmt.Errorf("read of %d blocks at block %d: %w", run, first, err)
		}
		for i := range int64(run) {
			n := first + i
			v.blocks++
			latest := l.floorLocked(n, false)
			k, err := l.judgeLocked(n, l.floorLocked(n, blackout), p[i*blockSize:])
			if err != nil {
				v.bad = append(v.bad, err.Error())
				continue
			}
			b := l.blocks[n]
			if k < 0 && latest > 0 || k >= 0 && b[k].seq < latest {
				v.older++
			}
			if blackout {
				// Whoever serves now has read it from a disk that has just lost
				// its power: it cannot be lost a second time.
				l.blocks[n] = b[max(k, 0) : k+1 : k+1]
				if k >= 0 {
					l.blocks[n][0].stable = true
				}
			}
		}
	}
	return v, nil
}

// fromAfter counts the writes that node acknowledged although they were sent
// after the instant: a node that was replaced by then must have none.
func (l *ledger) fromAfter(node string, instant int64) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range l.acked {
		if op.node == node && op.sent > instant {
			n++
		}
	}
	return n
}

// firstFrom is when node acknowledged its first write that was sent after the
// instant; ok is whether it has.
func (l *ledger) firstFrom(node string, instant int64) (at int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range l.acked {
		if op.node == node && op.sent > instant && (!ok || op.done < at) {
			at, ok = op.done, true
		}
	}
	return at, ok
}

// longestGap is the longest time without any acknowledgement between two
// instants.
func (l *ledger) longestGap(from, to int64) (gap int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := from
	for _, op := range l.acked { // appended in the order of done, to within a scheduler's whim
		if op.done < from || op.done > to {
			continue
		}
		gap, last = max(gap, op.done-last), max(last, op.done)
	}
	return max(gap, to-last)
}

// least is the shortest time that a write took which was sent and acknowledged
// between two instants.
func (l *ledger) least(from, to int64) (d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d = time.Duration(to - from)
	for _, op := range l.acked {
		if op.sent >= from && op.done <= to {
			d = min(d, time.Duration(op.done-op.sent))
		}
	}
	return d
}
