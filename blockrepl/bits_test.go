package blockrepl

import (
	"math/rand/v2"
	"testing"
)

// TestBitmapAgainstModel compares every operation with a slice of bool.
func TestBitmapAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, blocks := range []int{1, 63, 64, 65, 1000, 40000} {
		b := newBitmap(make([]uint64, (blocks+63)/64), blocks)
		m := make([]bool, blocks)
		for range 2000 {
			lo := r.IntN(blocks)
			hi := min(blocks, lo+1+r.IntN(200))
			on := r.IntN(2) == 0
			if on {
				b.set(lo, hi)
			} else {
				b.clear(lo, hi)
			}
			for i := lo; i < hi; i++ {
				m[i] = on
			}
			n := 0
			for _, v := range m {
				if v {
					n++
				}
			}
			if b.count != n {
				t.Fatalf("%d blocks: count %d, want %d", blocks, b.count, n)
			}
			at := r.IntN(blocks)
			next := at
			for next < blocks && !m[next] {
				next++
			}
			if got := b.next(at); got != next {
				t.Fatalf("%d blocks: next(%d) = %d, want %d", blocks, at, got, next)
			}
			end := next
			for end < blocks && end-next < 50 && m[end] {
				end++
			}
			if next < blocks {
				if got := b.run(next, 50); got != end {
					t.Fatalf("%d blocks: run(%d) = %d, want %d", blocks, next, got, end)
				}
			}
		}
	}
}

// TestBitmapIgnoresBitsPastTheEnd: a damaged last sector reads as all ones,
// and no resync could ever clear a bit that stands for nothing.
func TestBitmapIgnoresBitsPastTheEnd(t *testing.T) {
	b := newBitmap([]uint64{^uint64(0), ^uint64(0)}, 70)
	if b.count != 70 {
		t.Fatalf("count %d, want 70", b.count)
	}
	b.or(0, []uint64{^uint64(0), ^uint64(0), ^uint64(0)})
	if b.count != 70 {
		t.Fatalf("count %d after or, want 70", b.count)
	}
	b.clear(0, 70)
	if b.count != 0 || b.next(0) != 70 {
		t.Fatalf("count %d, next %d after clear", b.count, b.next(0))
	}
}
