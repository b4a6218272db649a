package link

import (
	"sync"

	"tandem/blockrepl/wire"
)

const (
	// maxQueuedFrames and maxQueuedBytes are the hard cap of one channel's
	// queue. What may be in flight is bounded by the callers (the number of
	// NBD requests, of resync blocks); a queue that reaches the cap has lost
	// those bounds, and the link is closed rather than the machine filled.
	// A queued body costs the queue nothing, it is the caller's memory: the
	// cap is far above what any caller should have.
	maxQueuedFrames = 1 << 16
	maxQueuedBytes  = 1 << 30

	// scratchSize is how much is copied together for one write to yamux.
	// Every such write costs two goroutine hand-offs, a timer and a yamux
	// header, about what copying 30 KiB costs; bodies above copyMax are
	// written from where they lie.
	scratchSize = 128 << 10
	copyMax     = 64 << 10

	// maxWrite is the longest single write to yamux, which sends each as one
	// unit: a lease request waits for at most one such piece of a 32 MiB write
	// (0.4 ms at 5 Gbit/s). It also bounds the copy that yamux makes of it.
	maxWrite = 256 << 10

	// inlineRounds is how often a caller that writes inline looks for frames
	// that came meanwhile before it leaves them to the channel's goroutine:
	// it must not become everybody's writer.
	inlineRounds = 2
)

// queue is the send side of one channel. Frames are appended under a small
// mutex and written by whoever has set writing: the channel's runWriter, or a
// caller of Kick that found it idle. At queue depth 1 the second saves the
// hand-off to a goroutine that would have to be woken.
type queue struct {
	// encode guards header. It is taken before mu and held until the frame is
	// appended, so that checksums are computed in the order of the wire but
	// not while the writer waits for mu.
	encode sync.Mutex
	header [wire.HeaderSize]byte

	mu      sync.Mutex
	idle    sync.Cond // signalled when writing goes false or dead goes true
	batch   batch     // appended to
	spare   batch     // the other half of the double buffer; the writer's while writing
	writing bool
	kicked  bool // wake holds a token
	dead    bool // nothing is taken or written any more
	wake    chan struct{}

	write   func([]byte) error // the yamux stream; only with writing set
	scratch []byte             // only with writing set
}

// batch is a run of queued frames. Its slices are reused: no allocation for a
// frame once they have grown.
type batch struct {
	headers []byte   // wire.HeaderSize each
	counts  []int32  // parts of each frame
	parts   [][]byte // bodies: the callers' memory
	bytes   int
}

// reset forgets the bodies; clearing is what keeps LinkDown's promise.
func (b *batch) reset() {
	clear(b.parts)
	b.headers, b.counts, b.parts, b.bytes = b.headers[:0], b.counts[:0], b.parts[:0], 0
}

func newQueue(write func([]byte) error) *queue {
	q := &queue{wake: make(chan struct{}, 1), write: write}
	q.idle.L = &q.mu
	return q
}

// put appends one frame. It returns false when that would exceed the cap; the
// queue is then dead, so that no later frame can follow over the gap.
func (q *queue) put(m *wire.Msg, body [][]byte) bool {
	// The checksum is computed here and not when the frame is written: a body
	// that its owner overwrites too early then shows as a bad frame instead of
	// being replicated.
	q.encode.Lock()
	defer q.encode.Unlock()
	h := wire.AppendHeader(q.header[:0], m, body...)
	n := len(m.Body)
	for _, p := range body {
		n += len(p)
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dead {
		return true
	}
	b := &q.batch
	if len(b.counts) >= maxQueuedFrames || (b.bytes > 0 && b.bytes+n > maxQueuedBytes) {
		q.killLocked()
		return false
	}
	var parts int32
	if len(m.Body) > 0 {
		b.parts = append(b.parts, m.Body)
		parts++
	}
	for _, p := range body {
		if len(p) > 0 {
			b.parts = append(b.parts, p)
			parts++
		}
	}
	b.headers = append(b.headers, h...)
	b.counts = append(b.counts, parts)
	b.bytes += n
	return true
}

// kick has what is queued written: here and now if inline and nobody else is
// at it, else by runWriter. The error is that of an inline write.
func (q *queue) kick(inline bool) error {
	q.mu.Lock()
	if q.writing || q.dead || len(q.batch.counts) == 0 {
		q.mu.Unlock() // a writer looks again before it leaves
		return nil
	}
	if !inline {
		q.wakeLocked()
		q.mu.Unlock()
		return nil
	}
	return q.drain(inlineRounds)
}

func (q *queue) wakeLocked() {
	if !q.kicked {
		q.kicked = true
		q.wake <- struct{}{} // has room: the token is taken before kicked is cleared
	}
}

// run is the loop of a channel's runWriter goroutine. It ends when the queue
// is dead.
func (q *queue) run() error {
	for range q.wake {
		q.mu.Lock()
		q.kicked = false
		if q.dead {
			q.mu.Unlock()
			return nil
		}
		if q.writing || len(q.batch.counts) == 0 {
			q.mu.Unlock()
			continue
		}
		if err := q.drain(0); err != nil {
			return err
		}
	}
	return nil
}

// drain writes batch after batch until none is left or, with rounds > 0, until
// that many are written; runWriter gets the rest. It is called with mu locked,
// nobody writing and something to write, and returns with mu unlocked.
func (q *queue) drain(rounds int) error {
	q.writing = true
	for round := 1; ; round++ {
		b := q.batch
		q.batch, q.spare = q.spare, batch{}
		q.mu.Unlock()
		err := q.writeBatch(&b)
		b.reset()
		q.mu.Lock()
		q.spare = b
		if err != nil {
			q.killLocked()
		}
		more := len(q.batch.counts) > 0
		if more && round != rounds {
			continue
		}
		q.writing = false
		if more {
			q.wakeLocked()
		}
		q.idle.Broadcast()
		q.mu.Unlock()
		return err
	}
}

// writeBatch writes the frames of b in order, small ones joined.
func (q *queue) writeBatch(b *batch) error {
	if q.scratch == nil {
		q.scratch = make([]byte, 0, scratchSize)
	}
	s := q.scratch[:0]
	part := 0
	for i, count := range b.counts {
		h := b.headers[i*wire.HeaderSize:][:wire.HeaderSize]
		if len(s)+len(h) > cap(s) {
			if err := q.write(s); err != nil {
				return err
			}
			s = s[:0]
		}
		s = append(s, h...)
		for _, p := range b.parts[part : part+int(count)] {
			if len(p) <= copyMax {
				if len(s)+len(p) > cap(s) {
					if err := q.write(s); err != nil {
						return err
					}
					s = s[:0]
				}
				s = append(s, p...)
				continue
			}
			if err := q.write(s); err != nil {
				return err
			}
			s = s[:0]
			for len(p) > 0 {
				n := min(len(p), maxWrite)
				if err := q.write(p[:n]); err != nil {
					return err
				}
				p = p[n:]
			}
		}
		part += int(count)
	}
	if len(s) == 0 {
		return nil
	}
	return q.write(s)
}

// kill drops what is queued and refuses the rest. A write that is going on
// ends on its own, when the session under it is closed.
func (q *queue) kill() {
	q.mu.Lock()
	q.killLocked()
	q.mu.Unlock()
}

func (q *queue) killLocked() {
	q.dead = true
	q.batch.reset()
	q.wakeLocked() // run ends
	q.idle.Broadcast()
}

// waitIdle returns when nobody is writing and, unless the queue is dead,
// nothing is queued.
func (q *queue) waitIdle() {
	q.mu.Lock()
	for q.writing || (!q.dead && len(q.batch.counts) > 0) {
		q.idle.Wait()
	}
	q.mu.Unlock()
}
