package nbd

import (
	"fmt"
	"math/bits"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Payload memory is one bounded, page-aligned reservation per server, handed out by two buddy allocators: `small` for
// payloads up to 256 KiB and `large` for those up to 32 MiB. What a client sends can make its own reader wait for
// memory, never make the server take more.
//
// Two halves, because contiguous memory fragments: a few stalled clients that hold 4 KiB each could otherwise keep every
// 32 MiB block from forming, and the queue behind that one waiter would stop everybody. Go's heap was rejected: 256 MiB
// of live heap lets as much garbage pile up before a collection, and freed size classes return to the system late.
//
// It cannot deadlock: a request holds its memory before it is submitted and never asks for more, so those that hold
// memory end without it; a waiter holds none; and each half serves its waiters first come, first served, so that a
// large one is not overtaken for ever.
type buffers struct {
	small, large *arena
	mem          []byte
}

const (
	smallUnit    = 4096
	largeUnit    = smallUnit << arenaOrders
	largestBlock = largeUnit << (arenaOrders - 1)
	arenaOrders  = 7
	// minBufferBytes leaves room for one request of the maximum length in the large half.
	minBufferBytes = 2 * largestBlock
)

// A read or write of the maximum length must fit the largest block, or its reader would wait for ever.
const _ = uint(largestBlock - MaximumBlock)

// newBuffers reserves total bytes; the pages are touched by use, unless the process has called mlockall.
func newBuffers(total int64) (*buffers, error) {
	if total < minBufferBytes {
		return nil, fmt.Errorf("nbd: %d buffer bytes: need at least %d", total, minBufferBytes)
	}
	largeLen := total / 2 / largestBlock * largestBlock
	smallLen := (total - largeLen) / largeUnit * largeUnit
	mem, err := unix.Mmap(-1, 0, int(largeLen+smallLen), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("nbd: reserve %d buffer bytes: %w", largeLen+smallLen, err)
	}
	return &buffers{
		large: newArena(mem[:largeLen], largeUnit),
		small: newArena(mem[largeLen:], smallUnit),
		mem:   mem,
	}, nil
}

// buffer is one block of an arena. The zero value holds nothing.
type buffer struct {
	arena *arena
	index int32
	order int8
}

// size is what the block counts for, its length rounded up to the allocator's.
func (b buffer) size() int64 {
	if b.arena == nil {
		return 0
	}
	return int64(b.arena.unit) << b.order
}

func (b buffer) bytes(n int) []byte {
	start := int(b.index) * b.arena.unit
	return b.arena.mem[start : start+n : start+n]
}

func (b buffer) free() {
	if b.arena != nil {
		b.arena.release(b)
	}
}

// blockSize is the size of the block that n bytes would take, n in 1…MaximumBlock.
func blockSize(n int) int64 {
	if n <= smallUnit {
		return smallUnit
	}
	return 1 << bits.Len(uint(n-1))
}

func (bs *buffers) fit(n int) (*arena, int8) {
	size := blockSize(n)
	if size < largeUnit {
		return bs.small, int8(bits.TrailingZeros64(uint64(size / smallUnit)))
	}
	return bs.large, int8(bits.TrailingZeros64(uint64(size / largeUnit)))
}

// try takes a block for n bytes if one is free and nobody waits for one.
func (bs *buffers) try(n int) (buffer, bool) {
	a, order := bs.fit(n)
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiters) > 0 {
		return buffer{}, false
	}
	return a.take(order)
}

// wait takes a block for n bytes, and gives up when gone is closed.
func (bs *buffers) wait(n int, gone <-chan struct{}) (buffer, bool) {
	a, order := bs.fit(n)
	a.mu.Lock()
	if len(a.waiters) == 0 {
		if b, ok := a.take(order); ok {
			a.mu.Unlock()
			return b, true
		}
	}
	w := &waiter{order: order, ready: make(chan buffer, 1)}
	a.waiters = append(a.waiters, w)
	a.mu.Unlock()
	select {
	case b := <-w.ready:
		return b, true
	case <-gone:
	}
	a.mu.Lock()
	for i := range a.waiters {
		if a.waiters[i] == w {
			a.waiters = append(a.waiters[:i], a.waiters[i+1:]...)
			break
		}
	}
	a.serve() // the next one may have needed less than this one did
	a.mu.Unlock()
	select {
	case b := <-w.ready: // it was served while it turned away
		b.free()
	default:
	}
	return buffer{}, false
}

// waiter is a reader that waits for memory. There is at most one per connection, which bounds the queue.
type waiter struct {
	order int8
	ready chan buffer // capacity 1: serve never blocks
}

// arena is a binary buddy allocator over mem in blocks of unit << order bytes.
type arena struct {
	mem  []byte
	unit int

	mu sync.Mutex
	// free heads one list of free blocks per order, by index of their first unit; -1 is empty.
	free       [arenaOrders]int32
	next, prev []int32
	// order is that of the free block beginning at a unit, -1 where none does.
	order   []int8
	waiters []*waiter
}

func newArena(mem []byte, unit int) *arena {
	n := len(mem) / unit
	a := &arena{mem: mem, unit: unit, next: make([]int32, n), prev: make([]int32, n), order: make([]int8, n)}
	for i := range a.free {
		a.free[i] = -1
	}
	for i := range a.order {
		a.order[i] = -1
	}
	const top = arenaOrders - 1
	for i := n - 1<<top; i >= 0; i -= 1 << top { // backwards: low addresses are used first
		a.push(int32(i), top)
	}
	return a
}

func (a *arena) push(i int32, order int8) {
	head := a.free[order]
	a.next[i], a.prev[i], a.order[i] = head, -1, order
	if head >= 0 {
		a.prev[head] = i
	}
	a.free[order] = i
}

func (a *arena) unlink(i int32) {
	order := a.order[i]
	next, prev := a.next[i], a.prev[i]
	if prev >= 0 {
		a.next[prev] = next
	} else {
		a.free[order] = next
	}
	if next >= 0 {
		a.prev[next] = prev
	}
	a.order[i] = -1
}

// take splits the smallest free block that is large enough. Called with mu held.
func (a *arena) take(order int8) (buffer, bool) {
	for from := order; from < arenaOrders; from++ {
		i := a.free[from]
		if i < 0 {
			continue
		}
		a.unlink(i)
		for from > order {
			from--
			a.push(i+1<<from, from)
		}
		return buffer{arena: a, index: i, order: order}, true
	}
	return buffer{}, false
}

// release merges b with its free buddies and serves whoever waits.
func (a *arena) release(b buffer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, order := b.index, b.order
	for order < arenaOrders-1 {
		buddy := i ^ 1<<order
		if a.order[buddy] != order {
			break
		}
		a.unlink(buddy)
		i &^= 1 << order
		order++
	}
	a.push(i, order)
	if len(a.waiters) > 0 {
		a.serve()
	}
}

// serve hands blocks to the waiters in their order, until the first that does not fit. Called with mu held.
func (a *arena) serve() {
	for len(a.waiters) > 0 {
		b, ok := a.take(a.waiters[0].order)
		if !ok {
			return
		}
		a.waiters[0].ready <- b
		a.waiters[0] = nil
		a.waiters = a.waiters[1:]
	}
}

// extentsOf views a block as extents, so that a block status reply is built and encoded in the one memory that the
// budget counts.
func extentsOf(b []byte) []Extent {
	return unsafe.Slice((*Extent)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/extentLen)[:0]
}

const extentLen = 8

const _ = uint(extentLen-unsafe.Sizeof(Extent{})) + uint(unsafe.Sizeof(Extent{})-extentLen)
