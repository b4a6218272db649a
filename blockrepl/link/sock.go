package link

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// Two wrappers turn the many small reads and writes of yamux and TLS into few
// system calls, which cost more than everything else on this path:
//
//	yamux ─▶ joiner ─▶ [tls.Conn ─▶] sock ─▶ TCP
//
// yamux writes a header of 12 bytes and its body with two calls; as two
// segments on a TCP_NODELAY socket they also wake the peer twice. crypto/tls
// writes each record of 16 KiB with a call of its own. Measured for 4 KiB
// frames at queue depth 1 over plain TCP: 0.19 of the unmirrored speed as
// yamux does it, 0.24 joined.

// readChunk is how much sock reads at once: several frames, or several TLS
// records, for one system call. yamux's own buffer of 4 KiB needs two for one
// write of 4 KiB.
const readChunk = 64 << 10

// sock is the lowest layer: it counts, reads ahead, and can hold small writes
// back until they are complete.
type sock struct {
	net.Conn
	r        *bufio.Reader
	sent     atomic.Uint64
	received atomic.Uint64

	// mu guards what follows. Under TLS the reading side writes too (alerts,
	// key updates), in between the records of the writing side.
	mu      sync.Mutex
	holding bool
	held    []byte
	vec     net.Buffers // reused backing of writev
}

func newSock(nc net.Conn) *sock {
	s := &sock{Conn: nc}
	s.r = bufio.NewReaderSize((*counter)(s), readChunk)
	return s
}

// counter is sock's own view of the connection below its read buffer.
type counter sock

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(uint64(n))
	return n, err
}

func (s *sock) Read(b []byte) (int, error) { return s.r.Read(b) }

func (s *sock) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holding && len(s.held)+len(b) <= cap(s.held) {
		s.held = append(s.held, b...)
		return len(b), nil
	}
	return s.writeLocked(b)
}

// hold starts to collect writes until release. Only the joiner calls the two,
// around one complete frame of yamux: nothing is ever left behind.
func (s *sock) hold() {
	s.mu.Lock()
	if s.held == nil {
		s.held = make([]byte, 0, readChunk)
	}
	s.holding = true
	s.mu.Unlock()
}

func (s *sock) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = false
	if len(s.held) == 0 {
		return nil
	}
	_, err := s.writeLocked(nil)
	return err
}

// writeLocked writes what is held and then b. The bytes of b that were written
// are what it returns; the held ones were reported when they were taken.
func (s *sock) writeLocked(b []byte) (int, error) {
	var n int64
	var err error
	held := len(s.held)
	switch {
	case held == 0:
		var k int
		k, err = s.Conn.Write(b)
		n = int64(k)
	case len(b) == 0:
		var k int
		k, err = s.Conn.Write(s.held)
		n = int64(k)
	default:
		backing := append(s.vec[:0], s.held, b)
		s.vec = backing
		n, err = s.vec.WriteTo(s.Conn) // one writev on a TCP socket
		clear(backing)
		s.vec = backing[:0]
	}
	s.held = s.held[:0]
	s.sent.Add(uint64(n))
	return max(0, int(n)-held), err
}

// joiner is what yamux writes to. It keeps the header of a data frame back
// until the body comes, which yamux's send loop writes next without fail: that
// loop is the only writer, and a queued message with a length has its body
// (a sender that gives up leaves a copy). Every other header (window updates,
// pings, closes) has no body and goes out at once.
type joiner struct {
	net.Conn // TLS, or the sock itself
	s        *sock

	hdr     [yamuxHeader]byte
	waiting bool // hdr is a header whose body is due
	join    []byte

	// The first error of each direction. The kernel gives its reason (timed
	// out, reset) to whichever call asks first; the other one gets an end of
	// file or a broken pipe, which says nothing.
	rerr, werr atomic.Pointer[error]
}

const (
	yamuxHeader = 12 // of yamux: version, type, flags (2), stream (4), length (4)
	// joinSize is one TLS record: header and the start of the body are copied
	// together up to here, the rest of the body is written from where it is.
	joinSize = 16 << 10
)

func newJoiner(c net.Conn, s *sock) *joiner {
	return &joiner{Conn: c, s: s, join: make([]byte, 0, joinSize)}
}

func (j *joiner) Read(b []byte) (int, error) {
	n, err := j.Conn.Read(b)
	note(&j.rerr, err)
	return n, err
}

func (j *joiner) Write(b []byte) (int, error) {
	if !j.waiting && hasBody(b) {
		j.waiting = true
		copy(j.hdr[:], b)
		return len(b), nil
	}
	n, err := j.write(b)
	note(&j.werr, err)
	return n, err
}

func (j *joiner) write(b []byte) (int, error) {
	if !j.waiting {
		return j.Conn.Write(b)
	}
	j.waiting = false
	first := min(len(b), joinSize-yamuxHeader)
	j.join = append(append(j.join[:0], j.hdr[:]...), b[:first]...)
	if first == len(b) && j.Conn == net.Conn(j.s) {
		// One plain write; nothing to hold.
		n, err := j.s.Write(j.join)
		return max(0, n-yamuxHeader), err
	}
	j.s.hold()
	n, err := j.Conn.Write(j.join)
	n = max(0, n-yamuxHeader)
	if err == nil && first < len(b) {
		var k int
		k, err = j.Conn.Write(b[first:])
		n += k
	}
	if e := j.s.release(); err == nil {
		err = e
	}
	return n, err
}

// hasBody tells whether b is a yamux header that a body follows.
func hasBody(b []byte) bool {
	const typeData = 0
	return len(b) == yamuxHeader && b[1] == typeData && binary.BigEndian.Uint32(b[8:]) > 0
}

// Close closes the socket without TLS's close_notify, which waits up to five
// seconds for a peer that does not read. Nothing is lost: the streams' own
// ends are what tells a whole stream from a cut one.
func (j *joiner) Close() error { return j.s.Conn.Close() }

// note keeps the first error: yamux turns most of them into "session
// shutdown" or EOF on the streams.
func note(p *atomic.Pointer[error], err error) {
	if err != nil {
		first := err // err itself would be on the heap at every call
		p.CompareAndSwap(nil, &first)
	}
}

// cause returns what went wrong on the connection, or nil.
func (j *joiner) cause() error {
	var r, w error
	if p := j.rerr.Load(); p != nil {
		r = *p
	}
	if p := j.werr.Load(); p != nil {
		w = *p
	}
	switch {
	case w != nil && !errors.Is(w, syscall.EPIPE) && !errors.Is(w, net.ErrClosed):
		return plain(w)
	case errors.Is(r, io.EOF):
		return errConnectionClosed
	case r != nil:
		return plain(r)
	}
	return plain(w)
}
