package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is one client. Its goroutines: run, the reader; runWatch, which ends it when the export goes away; and for as
// long as the client is slow to take its replies, runWriter. Replies are otherwise written by whoever completes.
type conn struct {
	server *Server
	log    *slog.Logger
	net    net.Conn
	raw    syscall.RawConn // nil: no direct writes
	in     *input

	// What the handshake agreed on; constant in the transmission phase.
	export     *Export
	size       int64
	structured bool
	context    bool // base:allocation is selected

	// gone is closed by kill, with the connection.
	gone     chan struct{}
	killOnce sync.Once
	dead     atomic.Bool
	cause    error // set before gone is closed

	corking int // requests since the reader corked, 0 when not; the reader's

	mu   sync.Mutex
	cond sync.Cond // inFlight, held or writing went down while waiting
	// queue holds completed requests in the order of their replies. MaxInFlight bounds it.
	queue []*Request
	// writing: somebody owns the writer's state below, and will look at the queue again before it lets go.
	writing bool
	// corked: the reader has more requests buffered and will write what they complete, in one go.
	corked   bool
	inFlight int   // admitted, and not yet Sent
	held     int64 // bytes of their buffers
	waiting  bool
	// idle gets a token when draining is set and inFlight falls to zero.
	draining bool
	idle     chan struct{}
	// parting: replies only queue. parted gets a token when all requests in flight have theirs in the queue.
	parting bool
	parted  chan struct{}

	writer  writer
	writers sync.WaitGroup // runWriter; only started while writing is set
}

func newConn(s *Server, n net.Conn) *conn {
	c := &conn{
		server: s,
		log:    s.config.Log,
		net:    n,
		raw:    rawConn(n),
		in:     newInput(n, &s.inputs),
		gone:   make(chan struct{}),
		idle:   make(chan struct{}, 1),
		parted: make(chan struct{}, 1),
	}
	c.cond.L = &c.mu
	c.writer.ready = c.writeReady
	return c
}

// run serves the client until it leaves, breaks the protocol, or ctx or the export ends. It returns when all its
// requests are back from the device.
func (c *conn) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { c.kill(ctx.Err()) })
	err := c.handshake(ctx)
	stop()
	if err == nil {
		var watch sync.WaitGroup
		watch.Go(func() { c.runWatch(ctx) })
		err = c.requests()
		if !errors.Is(err, errDisconnect) && !errors.Is(err, io.EOF) {
			c.kill(err)
		}
		c.uncork()
		c.mu.Lock()
		for c.inFlight > 0 || c.writing {
			c.waiting = true
			c.cond.Wait()
		}
		c.mu.Unlock()
		c.kill(err)
		watch.Wait()
		c.writers.Wait()
	}
	c.kill(err)
	c.in.close()
	c.log.Debug("nbd client gone", "peer", c.net.RemoteAddr(), "err", c.cause)
}

// kill closes the connection for good; only the first cause counts. Requests in flight are still waited for.
func (c *conn) kill(cause error) {
	c.killOnce.Do(func() {
		c.cause = cause
		c.dead.Store(true)
		close(c.gone)
		c.net.Close()
		c.mu.Lock()
		c.cond.Broadcast()
		c.mu.Unlock()
	})
}

// runWatch ends the connection after the export's Done or the end of ctx.
func (c *conn) runWatch(ctx context.Context) {
	select {
	case <-c.export.Done:
		c.retire()
	case <-ctx.Done():
		c.part()
	case <-c.gone:
	}
}

// drainGrace is how long an idle connection of an export that is gone still answers, so that a client that is about to
// send learns ESHUTDOWN and not just a close.
const drainGrace = 250 * time.Millisecond

// retire closes the connection of an export that is gone: as soon as nothing is in flight, and after DrainTimeout in
// any case.
func (c *conn) retire() {
	limit := time.NewTimer(c.server.config.DrainTimeout)
	defer limit.Stop()
	grace := time.NewTimer(min(drainGrace, c.server.config.DrainTimeout))
	defer grace.Stop()
	select {
	case <-grace.C:
	case <-c.gone:
		return
	}
	c.mu.Lock()
	c.draining = true
	idle := c.inFlight == 0
	c.mu.Unlock()
	if !idle {
		select {
		case <-c.idle:
		case <-limit.C:
		case <-c.gone:
		}
	}
	c.kill(errDrained)
}

// ending is whether the export is gone, so that new requests get ESHUTDOWN.
func (c *conn) ending() bool {
	select {
	case <-c.export.Done:
		return true
	default:
		return false
	}
}

// admit takes a request from the pool and n bytes for it, when the connection's bounds and the server's memory allow.
func (c *conn) admit(h requestHeader, n int) (*Request, error) {
	size := int64(0)
	if n > 0 {
		size = blockSize(n)
	}
	payload := 0
	if h.Type == CMD_WRITE {
		payload = n
	}
	c.mu.Lock()
	for !c.room(size) {
		c.mu.Unlock()
		c.uncork() // what we wait for may be corked by ourselves
		c.mu.Lock()
		for !c.room(size) && !c.dead.Load() {
			c.waiting = true
			c.cond.Wait()
		}
		if c.dead.Load() {
			c.mu.Unlock()
			return nil, c.cause
		}
	}
	c.inFlight++
	c.held += size
	if c.corking > 0 || c.in.buffered() >= payload+requestHeaderLen {
		c.corked = true
		c.corking++
	}
	c.mu.Unlock()

	r := c.server.requests.Get().(*Request)
	*r = Request{conn: c, handle: h.Handle}
	if n > 0 {
		var ok bool
		if r.buf, ok = c.server.buffers.try(n); !ok {
			c.uncork()
			if r.buf, ok = c.server.buffers.wait(n, c.gone); !ok {
				c.settle(1, size)
				return nil, c.cause
			}
		}
	}
	if int(h.Type) < len(commands) {
		r.Op = commands[h.Type].op
	}
	r.Off, r.Len = int64(h.Offset), int64(h.Length)
	r.FUA = h.CommandFlags&CMD_FLAG_FUA != 0
	r.NoHole = h.CommandFlags&CMD_FLAG_NO_HOLE != 0
	r.FastZero = h.CommandFlags&CMD_FLAG_FAST_ZERO != 0
	r.ReqOne = h.CommandFlags&CMD_FLAG_REQ_ONE != 0
	return r, nil
}

// room is whether one more request with a buffer of size bytes stays within the connection's bounds. One of any size
// always does. Called with mu held.
func (c *conn) room(size int64) bool {
	return c.inFlight < c.server.config.MaxInFlight &&
		(c.held == 0 || c.held+size <= c.server.config.BufferBytes/8)
}

// forget gives back a request that was admitted and not submitted.
func (c *conn) forget(r *Request) {
	size := r.buf.size()
	r.buf.free()
	c.server.requests.Put(r)
	c.settle(1, size)
}

// settle returns requests and bytes to the connection's bounds.
func (c *conn) settle(n int, size int64) {
	c.mu.Lock()
	c.settleLocked(n, size)
	c.mu.Unlock()
}

func (c *conn) settleLocked(n int, size int64) {
	c.inFlight -= n
	c.held -= size
	if c.waiting {
		c.waiting = false
		c.cond.Broadcast()
	}
	if c.draining && c.inFlight == 0 {
		select {
		case c.idle <- struct{}{}:
		default:
		}
	}
	c.noteParted()
}

// uncork writes what was completed while the reader had more requests buffered. Only the reader calls it.
func (c *conn) uncork() {
	if c.corking == 0 {
		return
	}
	c.corking = 0
	c.mu.Lock()
	c.corked = false
	if len(c.queue) == 0 || c.writing || c.parting {
		c.mu.Unlock()
		return
	}
	c.writing = true
	c.mu.Unlock()
	c.write(false)
}
