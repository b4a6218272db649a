package sim

import (
	"io"
	"math/bits"
)

// A model disk gives what a real one gives and no more.
//
//   - A unit (a sector of the model) is written whole or not at all; a write of
//     several units may be applied in any part when its completion was not
//     delivered.
//   - With a volatile cache, a unit that no flush has confirmed is, after a
//     power cut, what it was or what it became, each unit by itself.
//   - A flush confirms what was answered before the flush was asked for.
//
// Data units hold one number: the name of the write that they came from. Every
// write has a name of its own, zeroes too, so that a read tells whose bytes it
// saw.

// unit is one value in the three states that matter. ver counts the writes of
// this unit, so that "older" can be decided without a history.
type unit struct {
	cur, ans, dur    uint64 // applied; answered; durable
	curV, ansV, durV uint32
}

// dataDisk is a node's copy of the volume.
type dataDisk struct {
	w        *World
	volatile bool
	units    []unit
	unsafe   []uint64 // bit set: cur is not durable
	inflight []*ioReq
}

// ioReq is one request between its issue and the delivery of its answer.
type ioReq struct {
	lo, hi  int
	val     uint64
	vals    []uint64 // instead of val, one a unit
	mask    []byte   // with vals: a bit a block that is to be written
	fua     bool
	applied int // units applied so far, from lo
	flush   []flushed
	isFlush bool
	gone    bool
}

type flushed struct {
	i   int
	val uint64
	ver uint32
}

func newDataDisk(w *World, units int, volatile bool) *dataDisk {
	return &dataDisk{w: w, volatile: volatile, units: make([]unit, units), unsafe: make([]uint64, (units+63)/64)}
}

func (d *dataDisk) put(i int, val uint64, fua bool) {
	u := &d.units[i]
	if u.curV != u.durV && !d.w.opt.scripted && d.w.rng.Uint32()%4 == 0 {
		// Caches write back when they like: an intermediate value can be what
		// survives.
		u.dur, u.durV = u.cur, u.curV
	}
	u.curV++
	u.cur = val
	if fua || !d.volatile {
		u.dur, u.durV = u.cur, u.curV
		d.unsafe[i/64] &^= 1 << (i % 64)
	} else {
		d.unsafe[i/64] |= 1 << (i % 64)
	}
}

func (d *dataDisk) putOf(r *ioReq, i int) {
	if r.vals == nil {
		d.put(i, r.val, r.fua)
	} else if b := (i - r.lo) / unitsPerBlock; r.mask[b/8]&(1<<(b%8)) != 0 {
		d.put(i, r.vals[i-r.lo], r.fua)
	}
}

func (d *dataDisk) apply(r *ioReq, upTo int) {
	for i := r.lo + r.applied; i < upTo; i++ {
		d.putOf(r, i)
	}
	r.applied = max(r.applied, upTo-r.lo)
}

func (d *dataDisk) drop(r *ioReq) {
	r.gone = true
	for k, x := range d.inflight {
		if x == r {
			d.inflight[k] = d.inflight[len(d.inflight)-1]
			d.inflight = d.inflight[:len(d.inflight)-1]
			return
		}
	}
}

// write applies and answers at times of the disk's own; done is called when
// the answer is there.
func (d *dataDisk) write(r *ioReq, delay int64, done func()) {
	lo, hi := r.lo, r.hi
	d.inflight = append(d.inflight, r)
	w := d.w
	at := w.now + delay
	if hi-lo > 1 && w.rng.Uint32()%4 == 0 {
		mid := lo + 1 + int(w.rng.Uint32())%(hi-lo)
		w.at(w.now+1+int64(w.rng.Uint64()%uint64(delay)), func() {
			if !r.gone {
				d.apply(r, min(mid, hi))
			}
		})
	}
	w.at(at, func() {
		if r.gone {
			return
		}
		d.apply(r, hi)
		d.drop(r)
		for i := lo; i < hi; i++ {
			u := &d.units[i]
			u.ans, u.ansV = u.cur, u.curV
		}
		done()
	})
}

// flush makes durable what was answered by now.
func (d *dataDisk) flush(delay int64, done func()) {
	r := &ioReq{isFlush: true}
	for k, word := range d.unsafe {
		for ; word != 0; word &= word - 1 {
			i := k*64 + bits.TrailingZeros64(word)
			if u := &d.units[i]; u.ansV > u.durV {
				r.flush = append(r.flush, flushed{i, u.ans, u.ansV})
			}
		}
	}
	d.inflight = append(d.inflight, r)
	d.w.at(d.w.now+delay, func() {
		if r.gone {
			return
		}
		d.drop(r)
		d.settle(r.flush)
		done()
	})
}

func (d *dataDisk) settle(fs []flushed) {
	for _, f := range fs {
		u := &d.units[f.i]
		if f.ver > u.durV {
			u.dur, u.durV = f.val, f.ver
		}
		if u.durV == u.curV {
			d.unsafe[f.i/64] &^= 1 << (f.i % 64)
		}
	}
}

// agentGone: nobody waits for the answers any more. The kernel finishes or
// cancels what was handed to it, in any part.
func (d *dataDisk) agentGone() (torn bool) {
	rs := d.inflight
	d.inflight = nil
	for _, r := range rs {
		r.gone = true
		if r.isFlush {
			continue
		}
		mode := d.w.rng.Uint32() % 3
		if d.w.opt.scripted {
			mode = 2 // what was not answered was not begun
		}
		for i := r.lo + r.applied; i < r.hi; i++ {
			if mode == 0 || mode == 1 && d.w.rng.Uint32()&1 == 0 {
				d.putOf(r, i)
			}
		}
		torn = torn || mode == 1 && r.hi-r.lo > 1
	}
	for i := range d.units {
		u := &d.units[i]
		u.ans, u.ansV = u.cur, u.curV
	}
	return torn
}

// powerCut: each unit that no flush confirmed is old or new.
func (d *dataDisk) powerCut() (lost int) {
	d.agentGone()
	mode := d.w.rng.Uint32() % 4
	if d.w.opt.scripted {
		mode = 0 // the worst
	}
	for k, word := range d.unsafe {
		for ; word != 0; word &= word - 1 {
			i := k*64 + bits.TrailingZeros64(word)
			u := &d.units[i]
			lose := mode <= 1 || mode == 2 && d.w.rng.Uint32()&1 == 0
			if lose && u.cur != u.dur {
				lost++
				u.cur = u.dur
			}
			u.curV++
			u.dur, u.durV = u.cur, u.curV
			u.ans, u.ansV = u.cur, u.curV
		}
		d.unsafe[k] = 0
	}
	return lost
}

func (d *dataDisk) snapshot() []uint64 {
	s := make([]uint64, len(d.units))
	for i := range d.units {
		s[i] = d.units[i].dur
	}
	return s
}

func (d *dataDisk) restore(s []uint64) {
	for i := range d.units {
		u := &d.units[i]
		u.curV++
		*u = unit{cur: s[i], ans: s[i], dur: s[i], curV: u.curV, ansV: u.curV, durV: u.curV}
	}
	clear(d.unsafe)
}

// metaSector is the unit of a metadata disk, in bytes.
const metaSector = 512

// metaDisk is a node's metadata region: bytes, in sectors of 512.
type metaDisk struct {
	w        *World
	volatile bool
	cur, dur []byte
	unsafe   []bool // per sector
	jobs     []*metaJob
	// stuck is set while a job's answer is under way.
	busy bool
}

// metaJob is one metadata transaction: writes in any order, then a flush.
type metaJob struct {
	id      uint64
	writes  []metaWrite
	closed  bool // the effect with Last has come
	started bool
}

type metaWrite struct {
	off     int64
	data    []byte
	applied bool
}

func newMetaDisk(w *World, size int64, volatile bool) *metaDisk {
	return &metaDisk{w: w, volatile: volatile, cur: make([]byte, size), dur: make([]byte, size), unsafe: make([]bool, size/metaSector)}
}

// ReadAt reads what the machine would read now.
func (d *metaDisk) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(len(d.cur)) {
		return 0, io.EOF
	}
	n := copy(b, d.cur[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt is what init does: written and flushed at once.
func (d *metaDisk) WriteAt(b []byte, off int64) (int, error) {
	copy(d.cur[off:], b)
	copy(d.dur[off:], b)
	return len(b), nil
}

func (d *metaDisk) putSector(off int64, b []byte) {
	copy(d.cur[off:off+metaSector], b[:metaSector])
	if d.volatile {
		d.unsafe[off/metaSector] = true
	} else {
		copy(d.dur[off:off+metaSector], b[:metaSector])
	}
}

// put takes one Meta effect; done is called when its job is durable.
func (d *metaDisk) put(id uint64, off int64, data []byte, last bool, done func(id uint64)) {
	n := len(d.jobs)
	if n == 0 || d.jobs[n-1].id != id {
		d.jobs = append(d.jobs, &metaJob{id: id})
		n++
	}
	j := d.jobs[n-1]
	if j.closed {
		d.w.fail("metadata job %d goes on after its last write", id)
	}
	j.writes = append(j.writes, metaWrite{off: off, data: data})
	if last {
		j.closed = true
		d.next(done)
	}
}

func (d *metaDisk) next(done func(id uint64)) {
	if d.busy || len(d.jobs) == 0 || !d.jobs[0].closed {
		return
	}
	d.busy = true
	j := d.jobs[0]
	j.started = true
	w := d.w
	delay := w.delay(delayMeta)
	for i := range j.writes {
		x := &j.writes[i]
		w.at(w.now+1+int64(w.rng.Uint64()%uint64(delay)), func() {
			if j.started && !x.applied {
				x.applied = true
				for o := int64(0); o < int64(len(x.data)); o += metaSector {
					d.putSector(x.off+o, x.data[o:])
				}
			}
		})
	}
	w.at(w.now+delay+1, func() {
		if !j.started {
			return
		}
		j.started = false
		for s, u := range d.unsafe {
			if u {
				copy(d.dur[s*metaSector:(s+1)*metaSector], d.cur[s*metaSector:])
				d.unsafe[s] = false
			}
		}
		d.jobs = d.jobs[1:]
		d.busy = false
		done(j.id)
		d.next(done)
	})
}

// agentGone ends the jobs: of the one under way any sectors may be written; of
// those behind it, whose first write nobody issued, none. It returns the
// offsets of blocks that are now torn.
func (d *metaDisk) agentGone() (torn []int64, inJob []int64) {
	for k, j := range d.jobs {
		if k > 0 || !j.started {
			break
		}
		j.started = false
		for i := range j.writes {
			x := &j.writes[i]
			inJob = append(inJob, x.off)
			if x.applied {
				continue
			}
			x.applied = true
			mode := d.w.rng.Uint32() % 3
			if mode == 0 {
				continue
			}
			some := false
			for o := int64(0); o < int64(len(x.data)); o += metaSector {
				if mode == 1 && d.w.rng.Uint32()&1 == 0 {
					some = true
					continue
				}
				d.putSector(x.off+o, x.data[o:])
			}
			if some {
				torn = append(torn, x.off)
			}
		}
	}
	d.jobs, d.busy = nil, false
	return torn, inJob
}

func (d *metaDisk) powerCut() (torn []int64, inJob []int64) {
	torn, inJob = d.agentGone()
	if !d.volatile {
		return torn, inJob
	}
	mode := d.w.rng.Uint32() % 4
	for s := range d.unsafe {
		if !d.unsafe[s] {
			continue
		}
		d.unsafe[s] = false
		lo, hi := s*metaSector, (s+1)*metaSector
		if mode <= 1 && d.w.rng.Uint32()&1 == 0 || mode == 2 {
			copy(d.cur[lo:hi], d.dur[lo:hi])
			if mode <= 1 {
				torn = append(torn, int64(lo)&^4095)
			}
		}
		copy(d.dur[lo:hi], d.cur[lo:hi])
	}
	return torn, inJob
}

func (d *metaDisk) snapshot() []byte { return append([]byte(nil), d.dur...) }

func (d *metaDisk) restore(b []byte) {
	copy(d.cur, b)
	copy(d.dur, b)
	clear(d.unsafe)
	d.jobs, d.busy = nil, false
}
