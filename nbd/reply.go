package nbd

import (
	"encoding/binary"
	"errors"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Replies go out through a combining writer. Whoever completes a request appends it to the queue; whoever finds nobody
// writing becomes the writer and writes all there is, its own reply and what others append meanwhile, in one writev.
// At queue depth 1 that is the device's own goroutine and no hand-off; at depth it is few system calls.
//
// The writer never waits in a goroutine that is not ours. A write that would block, or a queue that keeps filling, is
// handed to runWriter, with the whole state, by starting it.

// writer is the state of the replies being written. It belongs to whoever has set conn.writing.
type writer struct {
	batch []*Request
	sent  int                // batch[:sent] are in the socket
	bytes int                // of this batch, in the socket
	heads []byte             // headers of the batch, one after the other
	iov   []unix.Iovec       // what is left of the batch, heads and payloads
	space []unix.Iovec       // iov's memory
	done  int                // requests sent and not yet settled
	freed int64              // their buffers' bytes
	ready func(uintptr) bool // writeReady, bound once
	wait  bool               // arguments and results of ready
	n     int
	err   error
}

const (
	// maxErrorText bounds the texts of check, see maxHead.
	maxErrorText = 56
	// maxHead is the longest header of a reply: an error chunk with its text.
	maxHead = 20 + 6 + maxErrorText
	// maxIovecs is the kernel's UIO_MAXIOV.
	maxIovecs = 1024
	// maxRounds is how many batches a device's goroutine writes, its own and others', before runWriter takes over.
	maxRounds = 16
)

// reply queues r's reply and writes it, unless somebody else will.
func (c *conn) reply(r *Request) {
	c.mu.Lock()
	if r.replied {
		c.mu.Unlock()
		panic("nbd: request completed twice")
	}
	r.replied = true
	c.queue = append(c.queue, r)
	if c.writing || c.corked || c.parting {
		c.noteParted()
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.mu.Unlock()
	c.write(false)
}

// write writes batches until the queue is empty. Without wait it hands over to runWriter where it would have to wait.
func (c *conn) write(wait bool) {
	w := &c.writer
	for round := 0; ; round++ {
		for w.sent < len(w.batch) {
			err := errWouldBlock
			if wait || round < maxRounds {
				err = c.writeSome(wait)
			}
			if err == errWouldBlock {
				c.settle(w.done, w.freed)
				w.done, w.freed = 0, 0
				c.writers.Go(c.runWriter)
				return
			}
			if err != nil {
				c.kill(err)
			}
		}
		if !c.nextBatch(wait) {
			return
		}
	}
}

// runWriter writes for a client that is slow to read, until the queue is empty.
func (c *conn) runWriter() { c.write(true) }

// nextBatch settles what is done and takes the queue; false is that there was none and the writer has let go.
func (c *conn) nextBatch(wait bool) bool {
	w := &c.writer
	clear(w.batch)
	c.mu.Lock()
	c.settleLocked(w.done, w.freed)
	w.done, w.freed = 0, 0
	if len(c.queue) == 0 || c.parting {
		w.batch, w.sent = w.batch[:0], 0
		if wait {
			c.net.SetWriteDeadline(time.Time{}) // or a later direct write would find it expired
		}
		c.writing = false
		if c.inFlight == 0 { // run waits for both
			c.cond.Broadcast()
		}
		c.noteParted()
		c.mu.Unlock()
		return false
	}
	w.batch, c.queue = c.queue, w.batch[:0]
	c.mu.Unlock()
	w.sent, w.bytes = 0, 0
	w.encode(c.structured)
	return true
}

// encode lays the batch out as vectors: runs of headers in w.heads, payloads where they are.
func (w *writer) encode(structured bool) {
	if need := len(w.batch) * maxHead; cap(w.heads) < need {
		w.heads = make([]byte, 0, 2*need) // never grown while vectors point into it
	}
	heads, iov, run, end := w.heads[:0], w.space[:0], 0, 0
	for _, r := range w.batch {
		before := len(heads)
		var payload []byte
		if structured {
			heads, payload = r.appendStructured(heads)
		} else {
			heads, payload = r.appendSimple(heads)
		}
		end += len(heads) - before + len(payload)
		r.end = end
		if len(payload) > 0 {
			iov = append(iov, vector(heads[run:]), vector(payload))
			run = len(heads)
		}
	}
	if run < len(heads) {
		iov = append(iov, vector(heads[run:]))
	}
	w.heads, w.iov, w.space = heads, iov, iov
}

func vector(b []byte) unix.Iovec { return unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))} }

// appendSimple appends a simple reply and returns the payload to follow.
func (r *Request) appendSimple(b []byte) (head, payload []byte) {
	if r.Op == OpRead && r.code == 0 {
		payload = r.Data
	}
	return appendSimpleReply(b, r.code, r.handle), payload
}

// appendStructured appends a structured reply, always of one chunk, and returns the payload to follow. A read in one
// chunk is what DF asks for and costs the least; holes are told by block status.
func (r *Request) appendStructured(b []byte) (head, payload []byte) {
	switch {
	case r.code != 0:
		b = appendChunk(b, REPLY_TYPE_ERROR, r.handle, 6+uint32(len(r.text)))
		b = binary.BigEndian.AppendUint32(b, uint32(r.code))
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.text)))
		return append(b, r.text...), nil
	case r.Op == OpRead && r.Len > 0:
		b = appendChunk(b, REPLY_TYPE_OFFSET_DATA, r.handle, 8+uint32(r.Len))
		return binary.BigEndian.AppendUint64(b, uint64(r.Off)), r.Data
	case r.Op == OpBlockStatus:
		payload = r.encodeExtents()
		b = appendChunk(b, REPLY_TYPE_BLOCK_STATUS, r.handle, 4+uint32(len(payload)))
		return binary.BigEndian.AppendUint32(b, metaContextID), payload
	}
	return appendChunk(b, REPLY_TYPE_NONE, r.handle, 0), nil
}

// encodeExtents makes the device's extents what the document demands: at least one, none empty, together no longer than
// the request. They are encoded in place, into the buffer that they were appended to.
func (r *Request) encodeExtents() []byte {
	limit := MaxExtents
	if r.ReqOne {
		limit = 1
	}
	b := r.buf.bytes(MaxExtents * extentLen)
	n, left := 0, r.Len
	for _, e := range r.Extents {
		if n == limit || left == 0 {
			break
		}
		if e.Len == 0 {
			continue
		}
		length := min(left, int64(e.Len))
		left -= length
		binary.BigEndian.PutUint32(b[n*extentLen:], uint32(length))
		binary.BigEndian.PutUint32(b[n*extentLen+4:], e.Flags)
		n++
	}
	if n == 0 { // "a server MAY always safely report a status of 0 for any block"
		binary.BigEndian.PutUint32(b, uint32(r.Len))
		binary.BigEndian.PutUint32(b[4:], 0)
		n = 1
	}
	return b[:n*extentLen]
}

// writeSome makes one system call's progress and tells the device what is wholly in the socket. On a dead connection
// that is everything: those replies can never be.
func (c *conn) writeSome(wait bool) error {
	w := &c.writer
	if c.dead.Load() {
		for ; w.sent < len(w.batch); w.sent++ {
			c.finish(w.batch[w.sent])
		}
		return nil
	}
	n, err := c.writeVectors(wait)
	w.bytes += n
	for w.sent < len(w.batch) && w.batch[w.sent].end <= w.bytes {
		c.finish(w.batch[w.sent])
		w.sent++
	}
	for n > 0 {
		first := &w.iov[0]
		if uint64(n) < first.Len {
			first.Base = (*byte)(unsafe.Add(unsafe.Pointer(first.Base), n))
			first.Len -= uint64(n)
			break
		}
		n -= int(first.Len)
		*first = unix.Iovec{}
		w.iov = w.iov[1:]
	}
	return err
}

// finish is the end of a request: its reply is in the socket, or never will be.
func (c *conn) finish(r *Request) {
	size := r.buf.size()
	if r.submitted {
		c.export.Device.Sent(r)
	}
	c.writer.done++
	c.writer.freed += size
	r.buf.free()
	*r = Request{} // a device that still touches it must not find another client's data
	c.server.requests.Put(r)
}

// writeVectors hands w.iov to the socket. With wait, it waits up to StallTimeout for the client to take a byte.
func (c *conn) writeVectors(wait bool) (int, error) {
	w := &c.writer
	if wait {
		if err := c.net.SetWriteDeadline(time.Now().Add(c.server.config.StallTimeout)); err != nil {
			return 0, err
		}
	} else if c.raw == nil {
		return 0, errWouldBlock // no telling whether it would
	}
	if c.raw == nil {
		n, err := c.net.Write(unsafe.Slice(w.iov[0].Base, w.iov[0].Len))
		return n, stalled(err)
	}
	w.wait, w.n, w.err = wait, 0, nil
	if err := c.raw.Write(w.ready); err != nil {
		return 0, stalled(err)
	}
	return w.n, w.err
}

// stalled names the cause of an expired write deadline.
func stalled(err error) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return errStalled
	}
	return err
}

// writeReady writes what the socket takes; false makes the poller wait and call again.
func (c *conn) writeReady(fd uintptr) bool {
	w := &c.writer
	for {
		n, _, errno := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iov[0])), uintptr(min(len(w.iov), maxIovecs)))
		switch errno {
		case 0:
			w.n = int(n)
			return true
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			if w.wait {
				return false
			}
			w.err = errWouldBlock
		default:
			w.err = errno
		}
		return true
	}
}
