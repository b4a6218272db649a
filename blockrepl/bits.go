package blockrepl

import (
	"math/bits"

	"tandem/blockrepl/meta"
)

// bitmap is the dirty bits kept for one peer: what that peer's copy lacks.
// Bit i stands for block i of the volume.
//
// On disk it may lag behind: a bit that is set here only lies in an extent of
// the activity log, which is not retired before unsaved is empty (al.go).
type bitmap struct {
	words   []uint64
	n       int      // how many words cover the volume
	blocks  int      // bits in use
	count   int      // bits set
	unsaved []uint64 // a bit for each metadata page that differs from the disk's
	stale   bool     // unsaved is not empty
}

func newBitmap(words []uint64, blocks int) *bitmap {
	b := &bitmap{words: words, n: len(words), blocks: blocks}
	pages := (len(words) + meta.WordsPerPage - 1) / meta.WordsPerPage
	b.unsaved = make([]uint64, (pages+63)/64)
	// Bits past the end of the volume (a damaged last sector reads as all
	// ones) must not count: no resync could ever clear them.
	if r := blocks % 64; r != 0 && len(words) > 0 {
		words[len(words)-1] &= 1<<r - 1
	}
	for _, w := range words {
		b.count += bits.OnesCount64(w)
	}
	return b
}

func (b *bitmap) touch(word int) {
	pg := word / meta.WordsPerPage
	b.unsaved[pg/64] |= 1 << (pg % 64)
	b.stale = true
}

// set marks blocks lo..hi-1.
func (b *bitmap) set(lo, hi int) {
	for lo < hi {
		w, m, end := span(lo, hi)
		if add := m &^ b.words[w]; add != 0 {
			b.words[w] |= m
			b.count += bits.OnesCount64(add)
			b.touch(w)
		}
		lo = end
	}
}

// clear unmarks blocks lo..hi-1.
func (b *bitmap) clear(lo, hi int) {
	for lo < hi {
		w, m, end := span(lo, hi)
		if del := m & b.words[w]; del != 0 {
			b.words[w] &^= m
			b.count -= bits.OnesCount64(del)
			b.touch(w)
		}
		lo = end
	}
}

// or marks what words, starting at word at, has marked.
func (b *bitmap) or(at int, words []uint64) {
	for i, w := range words {
		k := at + i
		if k >= b.n {
			return
		}
		if k == b.n-1 && b.blocks%64 != 0 {
			w &= 1<<(b.blocks%64) - 1
		}
		if add := w &^ b.words[k]; add != 0 {
			b.words[k] |= w
			b.count += bits.OnesCount64(add)
			b.touch(k)
		}
	}
}

// next is the first marked block at or after i; blocks if there is none.
func (b *bitmap) next(i int) int {
	for w := i / 64; w < b.n; w++ {
		v := b.words[w]
		if w == i/64 {
			v &= ^uint64(0) << (i % 64)
		}
		if v != 0 {
			return w*64 + bits.TrailingZeros64(v)
		}
	}
	return b.blocks
}

// run is the end of the marked run that starts at lo, at most max blocks on.
func (b *bitmap) run(lo, max int) int {
	hi := lo
	for hi < b.blocks && hi-lo < max && b.words[hi/64]&(1<<(hi%64)) != 0 {
		hi++
	}
	return hi
}

// span is the part of lo..hi-1 that lies in lo's word.
func span(lo, hi int) (word int, mask uint64, end int) {
	word = lo / 64
	end = min(hi, (word+1)*64)
	mask = ^uint64(0) << (lo % 64)
	if r := end - word*64; r < 64 {
		mask &= 1<<r - 1
	}
	return word, mask, end
}
