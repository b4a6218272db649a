package blockrepl

// unflushed remembers what one peer has acknowledged but not yet confirmed to
// have flushed. If the link drops, the peer's host may have lost it: it
// becomes dirty bits. Only the peer's own confirmation clears it; our own
// flush says nothing about the peer.
type unflushed struct {
	cur   []rng   // acknowledged since the last flush was sent
	sent  []batch // covered by a flush on its way, oldest first
	spare []rng
}

type rng struct{ off, len int64 }

type batch struct {
	flush  uint64 // Core.flushGen of the flush on its way
	ranges []rng
}

// maxUnflushed bounds the memory of a workload that never flushes: at so many
// ranges (1 MiB of them) we ask the peer for a flush ourselves.
const maxUnflushed = 1 << 16

func (u *unflushed) add(off, n int64) {
	// A sequential writer extends its last range: one entry, not thousands.
	if k := len(u.cur); k > 0 && u.cur[k-1].off+u.cur[k-1].len == off {
		u.cur[k-1].len += n
		return
	}
	u.cur = append(u.cur, rng{off, n})
}

// asked: a flush went out after everything in cur was acknowledged.
func (u *unflushed) asked(gen uint64) {
	if len(u.cur) == 0 {
		return
	}
	u.sent = append(u.sent, batch{gen, u.cur})
	u.cur, u.spare = u.spare[:0], nil
}

// confirmed: the peer has done flush gen, and with it everything that an
// earlier flush was to cover.
func (u *unflushed) confirmed(gen uint64) {
	n := 0
	for n < len(u.sent) && u.sent[n].flush <= gen {
		u.spare = u.sent[n].ranges[:0]
		n++
	}
	u.sent = append(u.sent[:0], u.sent[n:]...)
}

func (u *unflushed) empty() bool { return len(u.cur) == 0 && len(u.sent) == 0 }

// lost calls f for everything remembered and forgets it.
func (u *unflushed) lost(f func(off, n int64)) {
	for _, r := range u.cur {
		f(r.off, r.len)
	}
	for _, b := range u.sent {
		for _, r := range b.ranges {
			f(r.off, r.len)
		}
	}
	*u = unflushed{}
}
