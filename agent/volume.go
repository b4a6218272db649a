package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tandem/blockrepl"
	"tandem/blockrepl/link"
	"tandem/blockrepl/wire"
	"tandem/nbd"
)

// payload is what an operation of the core carries: the core itself moves
// tags only.
type payload struct {
	tag  blockrepl.Tag
	req  *request // a client's, or nil
	data []byte   // bytes to write, or to read into
	msg  wire.Msg // the frame that owns data, on a Secondary
	rs   []byte   // a resync chunk, kept between its digests and its blocks
	free *lateData
}

// lateData is the payload of a request whose client has its answer while a
// peer's frame, or the disk, still reads it.
type lateData struct {
	parts int
	free  func()
}

// batch is the effects of one input, sorted by who carries them out.
type batch struct {
	kicks    [blockrepl.MaxPeers]kick
	jobs     []job
	complete []completion
	resets   []reset
}

type kick struct {
	conn *link.Conn
	mask uint8 // of channels
}

type completion struct {
	req *request
	err blockrepl.Errno
}

type reset struct {
	conn *link.Conn
	why  string
}

// job is one thing for the local disk to do.
type job struct {
	kind   blockrepl.EffectKind
	op     blockrepl.OpKind
	fua    bool
	hole   bool // zeroes may be holes
	tag    blockrepl.Tag
	off    int64
	len    int64
	data   []byte
	rs     []byte       // RsSend: the chunk
	status *nbd.Request // DiskRead: it asks for the allocation
	conn   *link.Conn   // resync: whom to answer
	ptag   uint64
	peer   int
	epoch  uint64
	msg    wire.Msg // resync: the frame that owns data
}

type metaJob struct {
	id    uint64
	off   int64
	data  []byte
	flush bool
}

const (
	// jobQueue bounds what waits for the disk workers. The number in flight is
	// bounded before: by the NBD server's limits, the peer's, and resync's
	// window; a full queue makes the producer do the work itself.
	jobQueue = 4096
	// diskWorkers is how many requests the local disk sees at once beyond
	// those done in line. Each may block in a system call.
	diskWorkers = 16
	// inlineLimit is the smoothed time of a disk write up to which the
	// goroutine that has the request does it itself. A hand-off costs about
	// this much, and a slower disk should see requests side by side.
	inlineLimit = 60 * time.Microsecond
	// maxCompares bounds the chunks that a resync's source may have us compare
	// at once; ours has eight.
	maxCompares = 64
)

// input gives the cores an input and carries out what comes of it.
func (a *Agent) input(f func(now int64)) {
	a.mu.Lock()
	t := now()
	f(t)
	b := a.collect(t)
	a.mu.Unlock()
	a.carry(b, false)
}

// collect turns the effects into a batch. t is the time of the input that made
// them. The mutex is held.
func (a *Agent) collect(t int64) *batch {
	n := a.node
	n.Pump(t)
	a.watch(t)
	if len(n.VolOut) == 0 && len(n.VoteOut) == 0 {
		return nil
	}
	var b *batch
	if k := len(a.spare); k > 0 {
		b, a.spare = a.spare[k-1], a.spare[:k-1]
	} else {
		b = &batch{}
	}
	for i := range n.VolOut {
		a.volEffect(b, &n.VolOut[i])
	}
	for i := range n.VoteOut {
		a.voteEffect(&n.VoteOut[i])
	}
	n.Taken()
	if a.export != nil {
		a.export.update()
	}
	return b
}

// slot is where the payload of tag is kept. The mutex is held.
func (a *Agent) slot(t blockrepl.Tag) *payload {
	i := int(uint32(t))
	for i >= len(a.slots) {
		a.slots = append(a.slots, payload{})
	}
	return &a.slots[i]
}

func (a *Agent) volEffect(b *batch, e *blockrepl.Effect) {
	switch e.Kind {
	case blockrepl.Send:
		c := a.conns[e.Peer]
		if c == nil {
			return
		}
		if e.Msg.Type == wire.Write {
			c.Queue(e.Chan, &e.Msg, a.slot(blockrepl.Tag(e.Msg.Tag)).data)
		} else {
			c.Queue(e.Chan, &e.Msg)
		}
		b.kick(e.Peer, c, e.Chan)
	case blockrepl.DiskRead, blockrepl.DiskWrite:
		p := a.slot(e.Tag)
		if p.req != nil && p.req.status {
			b.jobs = append(b.jobs, job{kind: e.Kind, status: p.req.r, tag: e.Tag, off: e.Off, len: e.Len})
			return
		}
		b.jobs = append(b.jobs, job{kind: e.Kind, fua: e.Flags&blockrepl.FUA != 0, tag: e.Tag, off: e.Off, len: e.Len, data: p.data})
	case blockrepl.DiskZero:
		b.jobs = append(b.jobs, job{kind: e.Kind, fua: e.Flags&blockrepl.FUA != 0, hole: e.Flags&blockrepl.NoHole == 0, tag: e.Tag, off: e.Off, len: e.Len})
	case blockrepl.DiskFlush:
		b.jobs = append(b.jobs, job{kind: e.Kind, tag: e.Tag})
	case blockrepl.Apply:
		p := a.slot(e.Tag)
		j := job{kind: e.Kind, op: e.Op, fua: e.Flags&blockrepl.FUA != 0, hole: e.Flags&blockrepl.NoHole == 0, tag: e.Tag, off: e.Off, len: e.Len, data: p.data, msg: p.msg}
		*p = payload{}
		b.jobs = append(b.jobs, j)
	case blockrepl.RsRead, blockrepl.RsSend:
		j := job{kind: e.Kind, tag: e.Tag, off: e.Off, len: e.Len, conn: a.conns[e.Peer], data: e.Data, epoch: e.Msg.Epoch, rs: a.slot(e.Tag).rs}
		b.jobs = append(b.jobs, j)
	case blockrepl.RsDrop:
		a.slot(e.Tag).rs = nil
	case blockrepl.RsCompare:
		c := a.conns[e.Peer]
		if a.comparing[e.Peer] >= maxCompares {
			b.resets = append(b.resets, reset{c, "more resync chunks than any source has under way"})
			return
		}
		a.comparing[e.Peer]++
		// The digests lie in the frame's memory, which goes back to its pool.
		b.jobs = append(b.jobs, job{kind: e.Kind, off: e.Off, len: e.Len, data: append([]byte(nil), e.Data...), conn: c, peer: e.Peer, ptag: e.PeerTag, epoch: e.Msg.Epoch})
	case blockrepl.RsApply:
		p := a.slot(e.Tag)
		j := job{kind: e.Kind, tag: e.Tag, off: e.Off, len: e.Len, data: p.data, msg: p.msg}
		*p = payload{}
		b.jobs = append(b.jobs, j)
	case blockrepl.Meta:
		a.meta = append(a.meta, metaJob{e.MetaID, e.Off, e.Data, e.Last})
		select {
		case a.metaNow <- struct{}{}:
		default:
		}
	case blockrepl.Reset:
		if c := a.conns[e.Peer]; c != nil {
			b.resets = append(b.resets, reset{c, e.Text})
		}
	case blockrepl.Complete:
		p := a.slot(e.Tag)
		if p.req != nil {
			b.complete = append(b.complete, completion{p.req, e.Err})
		}
	case blockrepl.Released:
		p := a.slot(e.Tag)
		if l := p.free; l != nil {
			if l.parts--; l.parts == 0 {
				l.free()
			}
		}
		*p = payload{}
	case blockrepl.Event:
		a.event(e.Text)
	case blockrepl.Forgot:
		a.event("the metadata keep nothing of node " + e.Text + " any more")
	}
}

func (b *batch) kick(p int, c *link.Conn, ch wire.Channel) {
	b.kicks[p].conn = c
	b.kicks[p].mask |= 1 << ch
}

// carry carries out a batch. With inline the caller may do disk work and
// network writes itself; a goroutine that receives frames must not write to
// the network, because its peer may be waiting for it to read.
func (a *Agent) carry(b *batch, inline bool) {
	for b != nil {
		for i := range b.kicks {
			k := &b.kicks[i]
			for ch := wire.Channel(0); k.mask != 0 && ch < wire.Channels; ch++ {
				if k.mask&(1<<ch) != 0 {
					k.conn.Kick(ch, inline)
				}
			}
			*k = kick{}
		}
		for i := range b.complete {
			c := &b.complete[i]
			c.req.done(a, c.err)
			*c = completion{}
		}
		for i := range b.resets {
			b.resets[i].conn.Close(errors.New(b.resets[i].why))
			b.resets[i] = reset{}
		}
		// At most one job is done in line, the last: the workers have the rest
		// meanwhile.
		n := len(b.jobs)
		own := inline && n > 0 && a.quick(&b.jobs[n-1])
		if own {
			n--
		}
		for i := range b.jobs[:n] {
			select {
			case a.jobs <- b.jobs[i]:
			default:
				// The queue is as long as everything that can be in flight;
				// still, a full one must not stop a receiver.
				j := b.jobs[i]
				go a.runOne(j)
			}
		}
		var next *batch
		if own {
			next = a.work(&b.jobs[n])
		}
		clear(b.jobs)
		b.jobs, b.complete, b.resets = b.jobs[:0], b.complete[:0], b.resets[:0]
		a.mu.Lock()
		a.spare = append(a.spare, b)
		a.mu.Unlock()
		b = next
	}
}

func (a *Agent) runOne(j job) { a.carry(a.work(&j), false) }

// quick: the job takes no longer than handing it to somebody else.
func (a *Agent) quick(j *job) bool {
	switch j.kind {
	case blockrepl.DiskWrite, blockrepl.DiskRead, blockrepl.Apply:
		if j.op == blockrepl.OpFlush || j.op == blockrepl.OpZero || j.fua {
			return false
		}
		return j.len <= 128<<10 && time.Duration(a.metrics.diskTime.Load()) < inlineLimit
	}
	return false
}

func (a *Agent) runDisk(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-a.jobs:
			a.carry(a.work(&j), false)
		}
	}
}

// work does one job and tells the core.
func (a *Agent) work(j *job) *batch {
	w := a.hang.begin()
	defer a.hang.end(w)
	var err error
	switch j.kind {
	case blockrepl.DiskRead:
		if j.status != nil {
			err = a.blockStatus(j)
			break
		}
		err = a.timed(j.len, func() error { return a.disk.ReadAt(j.data, j.off) })
	case blockrepl.DiskWrite:
		faultPoint("data-write")
		err = a.timed(j.len, func() error { return a.disk.WriteAt(j.data, j.off, j.fua) })
		faultPoint("data-written")
	case blockrepl.DiskZero:
		faultPoint("data-zero")
		err = a.zero(j)
	case blockrepl.DiskFlush:
		faultPoint("data-flush")
		err = a.disk.Flush()
		faultPoint("data-flushed")
	case blockrepl.Apply:
		faultPoint("apply")
		switch j.op {
		case blockrepl.OpWrite:
			err = a.timed(j.len, func() error { return a.disk.WriteAt(j.data, j.off, j.fua) })
		case blockrepl.OpZero:
			err = a.zero(j)
		case blockrepl.OpFlush:
			err = a.disk.Flush()
		}
		faultPoint("applied")
		j.msg.Release()
	case blockrepl.RsRead:
		return a.resyncRead(j)
	case blockrepl.RsSend:
		return a.resyncSend(j)
	case blockrepl.RsCompare:
		next := a.resyncCompare(j)
		a.mu.Lock()
		a.comparing[j.peer]--
		a.mu.Unlock()
		return next
	case blockrepl.RsApply:
		faultPoint("resync-apply")
		err = a.resyncApply(j)
		faultPoint("resync-applied")
		j.msg.Release()
	}
	return a.diskDone(j.tag, err)
}

func (a *Agent) diskDone(t blockrepl.Tag, err error) *batch {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.log.Error("local disk", "err", err)
	}
	at := now()
	a.node.Vol.DiskDone(at, t, errno(err))
	return a.collect(at)
}

func (a *Agent) zero(j *job) error {
	if err := a.disk.Zero(j.off, j.len, !j.hole); err != nil || !j.fua {
		return err
	}
	return a.disk.Flush()
}

// timed keeps a smoothed time of small reads and writes.
func (a *Agent) timed(n int64, f func() error) error {
	if n > 128<<10 {
		return f()
	}
	t := time.Now()
	err := f()
	d := int64(time.Since(t))
	old := a.metrics.diskTime.Load()
	a.metrics.diskTime.Store(old + (d-old)/16)
	return err
}

func errno(err error) blockrepl.Errno {
	switch {
	case err == nil:
		return blockrepl.OK
	case errors.Is(err, errPeer):
		return blockrepl.EINVAL
	case errors.Is(err, unix.ENOSPC):
		return blockrepl.ENOSPC
	}
	return blockrepl.EIO
}

func (a *Agent) runMeta(ctx context.Context) {
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.metaNow:
		}
		a.mu.Lock()
		jobs := a.meta
		a.meta = nil
		a.mu.Unlock()
		for _, j := range jobs {
			if failed {
				continue // of one job all blocks are durable, or it is not done
			}
			w := a.hang.begin()
			faultPoint("meta-write")
			err := a.disk.MetaWriteAt(j.data, j.off)
			faultPoint("meta-written")
			if err == nil && j.flush {
				err = a.disk.MetaFlush()
				faultPoint("meta-flushed")
			}
			a.hang.end(w)
			if err != nil {
				failed = true
				a.log.Error("metadata", "err", err)
				a.input(func(now int64) { a.node.Vol.DiskFailed(now, "metadata: "+err.Error()) })
				continue
			}
			if j.flush {
				a.input(func(now int64) { a.node.Vol.MetaDone(now, j.id) })
			}
		}
	}
}

// request is a client's request on its way through the volume. One that is
// longer than an operation may be becomes several.
type request struct {
	r       *nbd.Request
	kind    blockrepl.OpKind
	flags   uint8
	len     int64 // bytes to ask of the volume
	status  bool  // a read that asks for the allocation, not the data
	began   time.Time
	next    int64 // bytes not yet submitted begin here, relative to r.Off
	pending atomic.Int32
	failed  atomic.Uint32
	rest    blockrepl.Tag // of a long write: its reservation
	tags    []blockrepl.Tag
	one     [1]blockrepl.Tag
}

// window is how many parts of one long request are in flight.
const window = 4

// device is the volume as the NBD server sees it.
type device struct{ a *Agent }

// Submit takes a client's request.
func (d device) Submit(r *nbd.Request) {
	a := d.a
	r.Tag = 0
	q := a.ops.get(r)
	switch r.Op {
	case nbd.OpRead:
		q.kind = blockrepl.OpRead
	case nbd.OpWrite:
		q.kind = blockrepl.OpWrite
	case nbd.OpTrim:
		q.kind = blockrepl.OpZero
	case nbd.OpWriteZeroes:
		q.kind = blockrepl.OpZero
		if r.NoHole {
			q.flags |= blockrepl.NoHole
		}
	case nbd.OpFlush:
		q.kind = blockrepl.OpFlush
	case nbd.OpBlockStatus:
		// What is a hole reads as zeroes: an answer like a read's, under the same
		// lock and the same lease. It may say less than it was asked.
		q.kind, q.len, q.status = blockrepl.OpRead, min(r.Len, blockrepl.MaxReadLen), true
	default: // CACHE: a hint, and the page cache does as it likes
		a.ops.put(q)
		r.Complete(nil)
		return
	}
	a.ops.keep(q)
	if r.FUA && q.kind != blockrepl.OpRead && q.kind != blockrepl.OpFlush {
		q.flags |= blockrepl.FUA
	}
	q.pending.Store(1) // Submit's own: done cannot run to the end before it
	a.mu.Lock()
	b := a.collect(a.submit(q, window))
	a.mu.Unlock()
	a.carry(b, !r.More)
	q.part(a)
}

// submit begins up to n parts of q and returns the time of that. The mutex is
// held.
func (a *Agent) submit(q *request, n int) (t int64) {
	t = now()
	long := q.len > blockrepl.MaxOpLen && q.kind != blockrepl.OpRead
	if long && q.next == 0 {
		q.rest = a.node.Vol.Reserve(t, q.kind, q.r.Off, q.len, q.flags)
	}
	for ; n > 0 && (q.next < q.len || (q.kind == blockrepl.OpFlush && q.next == 0)); n-- {
		off := q.next
		size := min(q.len-off, blockrepl.MaxOpLen)
		if q.kind == blockrepl.OpRead {
			size = min(q.len-off, blockrepl.MaxReadLen)
		}
		q.next += max(size, 1)
		q.pending.Add(1)
		var tag blockrepl.Tag
		if long {
			tag = a.node.Vol.Part(t, q.rest, size)
		} else {
			tag = a.node.Vol.Submit(t, q.kind, q.r.Off+off, size, q.flags)
		}
		p := a.slot(tag)
		*p = payload{tag: tag, req: q}
		if q.r.Data != nil {
			p.data = q.r.Data[off : off+size]
		}
		q.tags = append(q.tags, tag)
	}
	return t
}

// done: one part of q is complete.
func (q *request) done(a *Agent, err blockrepl.Errno) {
	if err != blockrepl.OK {
		q.failed.CompareAndSwap(0, uint32(err))
	}
	if q.len > blockrepl.MaxOpLen && q.failed.Load() == 0 {
		a.mu.Lock()
		b := a.collect(a.submit(q, 1))
		a.mu.Unlock()
		a.carry(b, false)
	}
	q.part(a)
}

func (q *request) part(a *Agent) {
	if q.pending.Add(-1) > 0 {
		return
	}
	var err error
	if e := q.failed.Load(); e != 0 {
		err = nbd.Error(e)
	}
	a.ops.record(q, err)
	if err == nil && q.kind == blockrepl.OpWrite && a.metrics.firstWrite.Load() == 0 {
		a.metrics.firstWrite.CompareAndSwap(0, now())
	}
	q.r.Complete(err)
}

// Sent releases the ranges of a request: its reply is in the client's socket.
func (d device) Sent(r *nbd.Request) {
	a := d.a
	a.mu.Lock()
	q := a.ops.take(r)
	if q == nil {
		a.mu.Unlock()
		return
	}
	t := now()
	var late *lateData
	for _, tag := range q.tags {
		a.node.Vol.Sent(t, tag)
		p := a.slot(tag)
		if p.tag != tag {
			continue // a read's, released when it was complete: another operation has the slot
		}
		if !a.node.Vol.Holds(tag) {
			*p = payload{}
			continue
		}
		if late == nil {
			late = &lateData{free: r.Detach()}
		}
		late.parts++
		*p = payload{tag: tag, data: p.data, free: late}
	}
	b := a.collect(t)
	a.ops.put(q)
	a.mu.Unlock()
	a.carry(b, false)
}

// blockStatus answers with the allocation of the job's range.
func (a *Agent) blockStatus(j *job) error {
	ext, err := a.disk.Allocated(j.off, j.len)
	if err != nil {
		return err
	}
	for _, e := range ext {
		f := uint32(0)
		if !e.Data {
			f = nbd.STATE_HOLE | nbd.STATE_ZERO
		}
		j.status.Extents = append(j.status.Extents, nbd.Extent{Len: uint32(e.Len), Flags: f})
		if j.status.ReqOne || len(j.status.Extents) == nbd.MaxExtents {
			break
		}
	}
	return nil
}
