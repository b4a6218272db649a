package wire

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	// Align is the alignment of every pooled body: what O_DIRECT asks of memory
	// on any device that we know of (4 KiB logical blocks).
	Align = 4096

	minClass = 12 // 4 KiB
	maxClass = 25 // 32 MiB = MaxData
	classes  = maxClass - minClass + 1

	// keepBytes bounds what one size class keeps for reuse; a class whose
	// buffers are longer keeps one. Enough for 2048 writes of 4 KiB, far more
	// than a peer's in-flight bound lets through, and at most 128 MiB over all
	// classes, if somebody really sends bodies of every length.
	keepBytes = 8 << 20
)

// Pool keeps the memory of bodies between frames. The agent serves the device
// that the kernel writes its memory back to, so the data path must not depend
// on the garbage collector finding a page at the wrong moment: a plain free
// list keeps what it has, where sync.Pool gives it up at every collection.
//
// A Pool is safe for concurrent use; the zero value is ready.
type Pool struct {
	mu   sync.Mutex
	free [classes][]*buffer
}

// buffer is one body's memory.
type buffer struct {
	pool  *Pool
	mem   []byte // aligned; its length is the class's, or exact above maxClass
	class int    // index into Pool.free; classes for a length that is not kept
	out   atomic.Bool
}

// get returns a buffer of at least n bytes. Its content is whatever was in it:
// a Reader overwrites all that it hands out.
func (p *Pool) get(n int) *buffer {
	class := 0
	if n > 1<<minClass {
		class = bits.Len(uint(n-1)) - minClass
	}
	if class >= classes {
		b := &buffer{pool: p, mem: aligned(n), class: classes}
		b.out.Store(true)
		return b
	}
	var b *buffer
	p.mu.Lock()
	if l := p.free[class]; len(l) > 0 {
		b = l[len(l)-1]
		l[len(l)-1] = nil
		p.free[class] = l[:len(l)-1]
	}
	p.mu.Unlock()
	if b == nil {
		b = &buffer{pool: p, mem: aligned(1 << (class + minClass)), class: class}
	}
	b.out.Store(true)
	return b
}

// put takes a buffer back. Two owners of one body would be silent corruption
// of somebody's data, so the second release panics where it can be seen.
func (p *Pool) put(b *buffer) {
	if !b.out.Swap(false) {
		panic("wire: body released twice")
	}
	if b.class >= classes {
		return
	}
	keep := max(1, keepBytes>>(b.class+minClass))
	p.mu.Lock()
	if l := p.free[b.class]; len(l) < keep {
		p.free[b.class] = append(l, b)
	}
	p.mu.Unlock()
}

// aligned allocates n bytes that start at a multiple of Align. Go's allocator
// places objects of these sizes on page boundaries anyway, but nothing
// promises it; the second allocation is for the day when it does not.
func aligned(n int) []byte {
	b := make([]byte, n)
	if off := misalign(b); off == 0 {
		return b
	}
	b = make([]byte, n+Align)
	skip := (Align - misalign(b)) % Align
	return b[skip : skip+n : skip+n]
}

// misalign returns how far b starts behind a multiple of Align. Go does not
// move heap objects, so the answer holds for the life of b.
func misalign(b []byte) int {
	return int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % Align)
}

// Release hands the body back to its pool; m.Body is gone afterwards. It may
// be called by any goroutine, once for all copies of m. A message without a
// pooled body only forgets its Body.
func (m *Msg) Release() {
	b := m.buf
	m.Body, m.buf = nil, nil
	if b != nil {
		b.pool.put(b)
	}
}
