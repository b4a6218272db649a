package nbd

import (
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"
)

// TestBuffersModel takes and frees at random and wants blocks aligned, disjoint and merged again in the end.
func TestBuffersModel(t *testing.T) {
	bs, err := newBuffers(minBufferBytes + 5*4096)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	type held struct {
		b    buffer
		n    int
		mark byte
	}
	var all []held
	for step := range 20000 {
		if rng.IntN(2) == 0 || len(all) == 0 {
			n := 1 + rng.IntN(1<<(9+rng.IntN(17)))
			b, ok := bs.try(n)
			if !ok {
				continue
			}
			if b.size() != blockSize(n) || b.size() < int64(n) {
				t.Fatalf("%d bytes in a block of %d", n, b.size())
			}
			p := b.bytes(n)
			if uintptr(unsafe.Pointer(&p[0]))%4096 != 0 || len(p) != n || cap(p) != n {
				t.Fatal("not aligned or not bounded")
			}
			h := held{b, n, byte(step)}
			p[0], p[n-1] = h.mark, h.mark
			all = append(all, h)
			continue
		}
		i := rng.IntN(len(all))
		h := all[i]
		if p := h.b.bytes(h.n); p[0] != h.mark || p[h.n-1] != h.mark {
			t.Fatal("blocks overlap")
		}
		h.b.free()
		all[i] = all[len(all)-1]
		all = all[:len(all)-1]
	}
	for _, h := range all {
		h.b.free()
	}
	checkBuffers(t, &Server{buffers: bs})
	buffer{}.free()
}

// TestBuffersWait: waiters are served in their order, a later small one does not overtake, and one that gives up does
// not hold up those behind it.
func TestBuffersWait(t *testing.T) {
	bs, err := newBuffers(minBufferBytes)
	if err != nil {
		t.Fatal(err)
	}
	first, ok := bs.try(1 << 20) // of the large half, 32 MiB
	if !ok {
		t.Fatal("no memory")
	}
	gone, never := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wait := func(n int, gone chan struct{}, want bool) {
		bs.large.mu.Lock()
		before := len(bs.large.waiters)
		bs.large.mu.Unlock()
		wg.Go(func() {
			b, ok := bs.wait(n, gone)
			if ok != want {
				t.Errorf("%d bytes: %v", n, ok)
			}
			b.free()
		})
		for {
			bs.large.mu.Lock()
			n := len(bs.large.waiters)
			bs.large.mu.Unlock()
			if n > before {
				return
			}
		}
	}
	wait(MaximumBlock, gone, false)
	wait(1<<20, never, true)
	if _, ok := bs.try(1 << 20); ok {
		t.Error("a newcomer overtook the waiters")
	}
	if b, ok := bs.try(4096); !ok {
		t.Error("small payloads wait for large ones")
	} else {
		b.free()
	}
	close(gone) // the 1 MiB behind fits at once
	wg.Wait()
	wait(MaximumBlock, never, true)
	first.free()
	wg.Wait()
	checkBuffers(t, &Server{buffers: bs})
}

// TestBuffersRace gives up and is served at the same time; nothing leaks.
func TestBuffersRace(t *testing.T) {
	bs, err := newBuffers(minBufferBytes)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 3))
			for range 500 {
				gone := make(chan struct{})
				if rng.IntN(2) == 0 {
					go close(gone)
				}
				if b, ok := bs.wait(16<<20+rng.IntN(16<<20), gone); ok {
					b.free()
				}
			}
		})
	}
	wg.Wait()
	checkBuffers(t, &Server{buffers: bs})
}
