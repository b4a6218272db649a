// Package faultproxy is a TCP proxy that breaks the network between two
// agents in the ways that networks break: late, one-way, silent, reset. It is
// for tests; it runs in the test's own process and needs no privileges.
package faultproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Direction is a set of the two ways through a Proxy.
type Direction uint8

const (
	// To is from whoever dialled the proxy to the target.
	To Direction = 1 << iota
	// From is from the target back.
	From
	// Both is everything.
	Both = To | From
)

const (
	// maxDelayed bounds what one direction of one connection holds back: the
	// bandwidth-delay product of 10 Gbit/s at 26 ms. Beyond it the sender
	// meets a full socket, as on a real line.
	maxDelayed = 32 << 20
	chunkSize  = 64 << 10
)

// Proxy forwards TCP connections to a target and spoils them on demand. Its
// methods are safe for concurrent use and act on the connections that are
// there as well as on those to come.
type Proxy struct {
	target   string
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond // signalled when anything below changes
	delay   time.Duration
	cut     Direction // bytes are read and thrown away
	held    Direction // bytes wait
	conns   map[*conn]struct{}
	closed  bool
}

// conn is one proxied connection.
type conn struct {
	ends [2]*net.TCPConn // dialler, target
	lost bool            // a cut swallowed something: the stream has a hole
	done bool
	ways int // directions that still run
}

// New starts a proxy on a port of its own that leads to target. Nothing needs
// to listen on target yet: each connection dials it anew.
func New(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("faultproxy: %w", err)
	}
	p := &Proxy{target: target, listener: l, conns: map[*conn]struct{}{}}
	p.changed.L = &p.mu
	p.wg.Go(p.runAccept)
	return p, nil
}

// Addr returns the address to dial instead of the target's.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Delay makes every byte arrive d later in each direction: a round trip
// becomes 2d longer. Throughput stays.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
	p.changed.Broadcast()
}

// Cut swallows what travels in the given direction, as if it were sent and
// never arrived; nothing is closed, and a close does not get through either.
// The sender's kernel sees its bytes acknowledged, so no TCP timeout helps it:
// it is the worst half-open connection there is. Connections made during a cut
// are accepted, and are silent. Cuts add up until Heal.
func (p *Proxy) Cut(d Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut |= d
	p.changed.Broadcast()
}

// Hold keeps what travels in the given direction until Heal, in order and
// complete: a glitch that TCP survives by retransmitting. Nothing is read, so
// the sender's socket fills up.
func (p *Proxy) Hold(d Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held |= d
	p.changed.Broadcast()
}

// Heal ends every Cut and Hold. A connection that lost bytes is reset: a TCP
// stream with a hole in it does not exist. The others go on.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.held = 0, 0
	for c := range p.conns {
		if c.lost {
			p.resetLocked(c)
		}
	}
	p.changed.Broadcast()
}

// Reset ends all present connections with a TCP reset at both ends.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		p.resetLocked(c)
	}
	p.changed.Broadcast()
}

// Conns returns how many connections are open.
func (p *Proxy) Conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Close resets all connections, stops listening and returns when nothing of
// the proxy runs any more.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	for c := range p.conns {
		p.resetLocked(c)
	}
	p.changed.Broadcast()
	p.mu.Unlock()
	err := p.listener.Close()
	p.wg.Wait()
	return err
}

func (p *Proxy) resetLocked(c *conn) {
	c.done = true
	delete(p.conns, c)
	for _, e := range c.ends {
		if e != nil {
			_ = e.SetLinger(0) // a close then sends RST
			_ = e.Close()
		}
	}
}

// runAccept takes connections until Close.
func (p *Proxy) runAccept() {
	for {
		nc, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		c := &conn{ends: [2]*net.TCPConn{nc.(*net.TCPConn), nil}, ways: 2}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			nc.Close()
			return
		}
		p.conns[c] = struct{}{}
		p.wg.Go(func() { p.runDial(c) })
		p.mu.Unlock()
	}
}

// runDial connects c to the target and forwards. A target that does not listen
// shows as a reset.
func (p *Proxy) runDial(c *conn) {
	nc, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.resetLocked(c)
		return
	}
	c.ends[1] = nc.(*net.TCPConn)
	if c.done {
		p.resetLocked(c)
		return
	}
	p.wg.Go(func() { p.forward(c, To) })
	p.wg.Go(func() { p.forward(c, From) })
}

// chunk is some bytes and when they are due; no bytes are the end.
type chunk struct {
	b   []byte
	due time.Time
}

// line is what is under way in one direction of one connection.
type line struct {
	chunks []chunk // guarded by Proxy.mu
	bytes  int
}

// forward carries one direction of c: this goroutine reads, another writes
// what is due, so that a delay does not cost throughput.
func (p *Proxy) forward(c *conn, d Direction) {
	src, dst := c.ends[0], c.ends[1]
	if d == From {
		src, dst = dst, src
	}
	l := &line{}
	p.wg.Go(func() { p.runWrite(c, d, l, dst) })
	for {
		p.mu.Lock()
		for !c.done && (p.held&d != 0 || l.bytes >= maxDelayed) {
			p.changed.Wait()
		}
		done := c.done
		p.mu.Unlock()
		if done {
			return
		}
		b := make([]byte, chunkSize)
		n, err := src.Read(b)
		p.mu.Lock()
		if n > 0 {
			if p.cut&d != 0 {
				c.lost = true
			} else {
				l.chunks = append(l.chunks, chunk{b[:n], time.Now().Add(p.delay)})
				l.bytes += n
			}
		}
		switch {
		case err == nil:
		case p.cut&d != 0:
			c.lost = true // the end got lost as well; Heal shows it
		case errors.Is(err, io.EOF):
			l.chunks = append(l.chunks, chunk{nil, time.Now().Add(p.delay)})
		case !c.done:
			p.resetLocked(c)
		}
		p.changed.Broadcast()
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// runWrite writes the chunks of l when they are due.
func (p *Proxy) runWrite(c *conn, d Direction, l *line, dst *net.TCPConn) {
	for {
		p.mu.Lock()
		for !c.done && (p.held&d != 0 || len(l.chunks) == 0) {
			p.changed.Wait()
		}
		if c.done {
			p.mu.Unlock()
			return
		}
		next := l.chunks[0]
		if wait := time.Until(next.due); wait > 0 {
			// A timer, not a sleep: Reset and Close must not wait for it.
			t := time.AfterFunc(wait, func() {
				p.mu.Lock()
				p.changed.Broadcast()
				p.mu.Unlock()
			})
			p.changed.Wait()
			p.mu.Unlock()
			t.Stop()
			continue
		}
		l.chunks = l.chunks[1:]
		l.bytes -= len(next.b)
		lost := p.cut&d != 0 // it was on the line when the line was cut
		if lost {
			c.lost = true
		}
		p.changed.Broadcast()
		p.mu.Unlock()
		if lost {
			continue
		}
		if next.b == nil {
			_ = dst.CloseWrite()
			p.ended(c)
			return
		}
		if _, err := dst.Write(next.b); err != nil {
			p.mu.Lock()
			if !c.done {
				p.resetLocked(c)
			}
			p.changed.Broadcast()
			p.mu.Unlock()
			return
		}
	}
}

// ended counts a direction that came to its orderly end; after the second the
// connection is over.
func (p *Proxy) ended(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c.ways--
	if c.ways > 0 || c.done {
		return
	}
	c.done = true
	delete(p.conns, c)
	for _, e := range c.ends {
		_ = e.Close()
	}
	p.changed.Broadcast()
}
