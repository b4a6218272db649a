package nbd

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A server that stops while its export stays (an agent that restarts) parts with its clients. The kernel's client comes
// back, and to it an error in a reply is an I/O error of the filesystem: ESHUTDOWN is for an export that is gone. What
// it does with requests that have no reply when the connection ends decides how long the restart is felt
// (Linux drivers/block/nbd.c):
//
//   - one that it cannot send (EPIPE) is put back at once and waits for the new connection;
//   - one that was sent waits for its request timer, many seconds, before it is sent again.
//
// The second kind must not be left, although a busy client sends a new request for each reply. So, while the client may
// go on sending:
//
//  1. replies are held back, for some time because the client may be about to send what the last ones let it, and until
//     every request has one: the client runs out of what it may send;
//  2. our receiving side is shut. The client does not notice before it sends something, and what it sends is refused;
//  3. all replies go out in one system call. On a unix socket they are in the client's queue before it can read the
//     first, send the next request, be refused, and shut its own side.
//
// The kernel has several connections, and sends what one refuses on another. So the connections go one by one, each with
// some time for the kernel to move to the next, which answers what has moved before it goes itself.
//
// Between 2 and 3 nothing may come, or the client finds out too early and shuts its side with the replies still here. So
// the replies are encoded before 2; it is looked once more whether there is a request that has none; and 2 and 3 are two
// system calls of a thread that nothing ordinary displaces (see undisturbed), with room in the socket for all of it.
//
// Tried: replies before the shut. In a machine with one processor the client was always faster, and what it had sent in
// between was lost with the connection. Not tried: closing at an idle moment, which a client at depth never has. What is
// left is a request that another processor sends between 2 and 3, some microseconds, for a reason of its own; it waits for
// the timer. (Without the thread's priority one restart in ten cost an NFS client ten seconds, on one processor.)

const (
	// maxPartings bounds the rounds of step 1 for a client that has sent more than the connection's bounds admit.
	maxPartings = 16
	// moveTime is how long the kernel takes to notice and to send on another connection: microseconds, and milliseconds
	// on a busy host.
	moveTime = 25 * time.Millisecond
	// lookTime is for how long a moment is waited for at which nothing is on its way. It comes as soon as the reader has
	// its turn: a client that gets no reply has no more to send.
	lookTime = 500 * time.Millisecond
)

// part ends the connection as above, within DrainTimeout. A client over TLS or a pipe is only answered and closed.
func (c *conn) part() {
	limit := make(chan struct{})
	timer := time.AfterFunc(c.server.config.DrainTimeout, func() { close(limit) })
	defer timer.Stop()
	for range maxPartings {
		c.hold()
		select {
		case <-time.After(moveTime):
		case <-c.gone:
		}
		if !c.answered(limit) {
			c.release()
			c.kill(errStopped)
			return
		}
		c.mu.Lock()
		more := c.waiting // the reader has a request that there was no room for
		c.mu.Unlock()
		if !more {
			break
		}
		c.release()
	}
	if !c.leave(limit) {
		c.kill(errStopped)
		return
	}
	// The reader finds the end by itself. What it has read before is served, and run waits for that.
	select {
	case <-c.gone:
	case <-limit:
		c.kill(errStopped)
	}
}

// partBuffer is room for the replies of what the kernel has under way on one connection: 128 requests, of which reads
// are mostly of 128 KiB and less.
const partBuffer = 32 << 20

// leave does steps 2 and 3 when it is this connection's turn. It returns false when the connection has yet to be closed.
func (c *conn) leave(limit <-chan struct{}) bool {
	select {
	case c.server.turn <- struct{}{}:
		defer func() { <-c.server.turn }()
	case <-limit:
	case <-c.gone:
	}
	half, ok := c.net.(interface{ CloseRead() error })
	if !ok {
		c.answered(limit)
		c.release()
		return false
	}
	if c.raw != nil {
		_ = c.raw.Control(func(fd uintptr) { // root may; without it long reads may be left over
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, partBuffer)
		})
	}
	for end := time.Now().Add(lookTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if !c.answered(limit) { // also what has moved here
			c.release()
			return false
		}
		shut, tried, replies := false, false, false
		undisturbed(func() {
			if replies, tried = c.takeReplies(); tried {
				shut = half.CloseRead() == nil
				if replies {
					c.write(false)
				}
			}
		})
		if !tried { // one more came
			c.letOn()
			continue
		}
		if c.dead.Load() {
			c.log.Warn("a client has left with replies still to be sent to it; the kernel's repeats those requests when their timer has run out", "err", c.cause)
		}
		if replies && shut {
			select {
			case <-time.After(moveTime):
			case <-limit:
			}
		}
		return shut
	}
	shut := half.CloseRead() == nil // it sends without end
	c.release()
	return shut
}

// letOn sends the replies held back if the reader waits for them: for room, or at its end.
func (c *conn) letOn() {
	c.mu.Lock()
	waiting := c.waiting
	c.mu.Unlock()
	if waiting {
		c.release()
		c.hold()
	}
}

// takeReplies makes the caller the writer of the replies held back, and lays them out, if every request that the client
// has sent has one. replies is whether there are any.
func (c *conn) takeReplies() (replies, ok bool) {
	c.mu.Lock()
	if c.writing || len(c.queue) != c.inFlight || c.underway() {
		c.mu.Unlock()
		return false, false
	}
	c.parting = false
	if len(c.queue) == 0 {
		c.mu.Unlock()
		return false, true
	}
	c.writing = true
	c.mu.Unlock()
	return c.nextBatch(false), true
}

// underway says whether a request is in the socket, or with the reader, who has not come to admit it. false where it
// cannot be told.
func (c *conn) underway() bool {
	if c.raw == nil {
		return false
	}
	unread := 0
	_ = c.raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	return unread > 0 || !c.in.idle.Load() // in this order
}

// undisturbed calls f on a thread that is not displaced by an ordinary one on its processor, where the agent may have
// that (root, CAP_SYS_NICE). f is two system calls long.
func undisturbed(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SchedGetAttr(0, 0)
	if err == nil {
		fifo := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
		if unix.SchedSetAttr(0, fifo, 0) == nil {
			defer func() { _ = unix.SchedSetAttr(0, before, 0) }()
		}
	}
	f()
}

// hold keeps replies in the queue from now on.
func (c *conn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parting = true
}

// answered returns true when every request in flight has its reply in the queue.
func (c *conn) answered(limit <-chan struct{}) bool {
	c.mu.Lock()
	select { // a token of an earlier moment
	case <-c.parted:
	default:
	}
	c.noteParted()
	c.mu.Unlock()
	select {
	case <-c.parted:
		return true
	case <-limit:
	case <-c.gone:
	}
	return false
}

// noteParted says when every request in flight has its reply in the queue. Called with mu held.
func (c *conn) noteParted() {
	if c.parting && !c.writing && len(c.queue) == c.inFlight {
		select {
		case c.parted <- struct{}{}:
		default:
		}
	}
}

// release writes the replies held back, and returns whether there were any.
func (c *conn) release() bool {
	c.mu.Lock()
	c.parting = false
	if len(c.queue) == 0 || c.writing {
		busy := c.writing
		c.mu.Unlock()
		return busy
	}
	c.writing = true
	c.mu.Unlock()
	c.write(false)
	return true
}
