package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"tandem/blockrepl/wire"
)

const (
	// streamWindow is how much a peer may send on a channel ahead of its
	// reader: 16 MiB cover 10 Gbit/s at 13 ms. yamux's 256 KiB would hold a
	// channel to 200 Mbit/s at 10 ms.
	streamWindow = 16 << 20

	// writeValve is yamux's ConnectionWriteTimeout. Pieces are at most
	// maxWrite long and TCP_USER_TIMEOUT ends a connection on which nothing
	// moves, so this is met only by a connection slower than 4 KiB/s.
	writeValve = time.Minute

	// lingerTime bounds how long Close keeps a link for what is queued and for
	// the peer's own close: a refusal that nobody can read helps nobody. It
	// delays LinkDown when the peer is gone, so it is short.
	lingerTime = 250 * time.Millisecond

	// openTime bounds how long the streams of a new link may take.
	openTime = 5 * time.Second
)

// Conn is one link to one peer, from LinkUp to LinkDown.
type Conn struct {
	peer     string
	features uint64
	version  uint16
	handler  Handler

	ends    [roleCount]*end
	queues  [wire.Channels]*queue
	streams [wire.Channels]*yamux.Stream

	failOnce sync.Once
	failed   chan struct{} // closed by the first fail
	orderly  bool          // written before failed is closed
	err      error         // written before failed is closed
	deaf     atomic.Bool   // Close was called: nothing more goes to Recv
	eofs     atomic.Int32  // channels that the peer has closed
}

// end is one of the two connections.
type end struct {
	sock    *sock
	joiner  *joiner
	session *yamux.Session
}

// Peer returns the peer's node name.
func (c *Conn) Peer() string { return c.peer }

// Features returns the features that both ends have.
func (c *Conn) Features() uint64 { return c.features }

// Version returns the protocol version that the two ends have agreed on.
func (c *Conn) Version() uint16 { return c.version }

// Stats returns how many bytes were written to and read from the network,
// everything included: frames, yamux, TLS, preface.
func (c *Conn) Stats() (sent, received uint64) {
	for _, e := range c.ends {
		sent += e.sock.sent.Load()
		received += e.sock.received.Load()
	}
	return sent, received
}

// Queue appends a frame to channel ch; Kick has it written. The order of the
// calls is the order on the wire, so a caller that needs an order calls Queue
// under its own lock and Kick after it: Queue never blocks on the network and
// takes no lock but its own. The header is encoded before Queue returns. The
// body is m.Body followed by the parts of body; its memory stays referenced,
// and must not change, until the answer to the frame arrives or LinkDown.
//
// After the link has failed Queue does nothing; LinkDown is on its way.
func (c *Conn) Queue(ch wire.Channel, m *wire.Msg, body ...[]byte) {
	if m.Type.Channel() != ch {
		panic(fmt.Sprintf("link: %v queued on %v", m, ch))
	}
	if !c.queues[ch].put(m, body) {
		c.fail(fmt.Errorf("%w: %v", ErrQueueFull, ch), false)
	}
}

// Kick has what is queued on ch written. With inline the calling goroutine
// writes it itself if no one else is at it, and may block on the network until
// the link is closed; without, Kick never blocks.
//
// A Recv may answer inline as long as all its unread answers fit in a window
// (streamWindow: 300000 acknowledgements). Two agents that send each other
// more than that from within Recv would each stop reading to write.
func (c *Conn) Kick(ch wire.Channel, inline bool) {
	if err := c.queues[ch].kick(inline); err != nil {
		c.failWrite(ch, err)
	}
}

// Send is Queue and Kick.
func (c *Conn) Send(ch wire.Channel, m *wire.Msg, inline bool, body ...[]byte) {
	c.Queue(ch, m, body...)
	c.Kick(ch, inline)
}

// Close ends the link; err is what LinkDown gets. It returns at once. What was
// queued before is sent if the peer takes it within lingerTime; what arrives
// from now on is dropped.
func (c *Conn) Close(err error) {
	c.deaf.Store(true)
	c.fail(err, true)
}

// fail keeps the first reason for the end of the link.
func (c *Conn) fail(err error, orderly bool) {
	c.failOnce.Do(func() {
		c.err, c.orderly = err, orderly
		close(c.failed)
	})
}

func (c *Conn) failWrite(ch wire.Channel, err error) {
	c.fail(fmt.Errorf("write %v: %w", ch, c.endOf(ch).cause(err)), false)
}

// endOf returns the connection that carries ch.
func (c *Conn) endOf(ch wire.Channel) *end {
	if ch == wire.Bulk {
		return c.ends[roleBulk]
	}
	return c.ends[roleMain]
}

// cause finds the reason behind err, which a stream returned: the connection's
// own error, else the session's, else err itself.
func (e *end) cause(err error) error {
	if cause := e.joiner.cause(); cause != nil {
		return cause
	}
	if e.session.IsClosed() {
		// The session keeps its error to itself; a call on a closed session
		// that waits for nothing returns it.
		if _, serr := e.session.AcceptStream(); serr != nil && !errors.Is(serr, yamux.ErrSessionShutdown) {
			return serr
		}
	}
	return err
}

// yamuxConfig returns the settings that cost least.
//
//   - Keepalive off: a ping is a goroutine and two wakeups; the kernel's
//     keepalive and the leases above already find a dead peer.
//   - StreamOpenTimeout 0: it is a goroutine for each stream; newConn has a
//     deadline of its own.
//   - StreamCloseTimeout 0: its timer would outlive the session by 5 minutes.
//   - ConnectionWriteTimeout: yamux arms a pooled timer for every write; that
//     cannot be turned off (100 ns). It is set so long that the kernel's
//     verdict comes first.
//   - AcceptBacklog: what a link needs, so that a peer cannot open streams
//     that nobody reads.
//
// What remains for each write: two hand-offs (to yamux's send goroutine and
// back) and a copy of the body there; for each frame received a hand-off from
// its receive goroutine and a copy through the stream's buffer.
func yamuxConfig(log *slog.Logger) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          int(wire.Channels),
		EnableKeepAlive:        false,
		KeepAliveInterval:      time.Hour, // must be positive, is not used
		ConnectionWriteTimeout: writeValve,
		MaxStreamWindowSize:    streamWindow,
		Logger:                 yamuxLog{log},
	}
}

// yamuxLog lets yamux's messages through at debug level only: what matters of
// them reaches LinkDown as an error.
type yamuxLog struct{ log *slog.Logger }

func (l yamuxLog) Print(v ...any) { l.log.Debug("yamux", "msg", fmt.Sprint(v...)) }

func (l yamuxLog) Printf(format string, v ...any) {
	l.log.Debug("yamux", "msg", fmt.Sprintf(format, v...))
}

func (l yamuxLog) Println(v ...any) { l.log.Debug("yamux", "msg", fmt.Sprint(v...)) }

// newConn starts the sessions of a pair and opens the channels. The dialler
// opens them in the order of their numbers, which yamux keeps on each session,
// so a stream needs no name. On an error the pair is closed.
func newConn(p *pair, dialled bool, h Handler, log *slog.Logger) (*Conn, error) {
	c := &Conn{
		peer:     p.node,
		features: p.features,
		version:  p.version,
		handler:  h,
		failed:   make(chan struct{}),
	}
	for i, l := range p.legs {
		e := &end{sock: l.sock, joiner: newJoiner(l.conn, l.sock)}
		start := yamux.Server
		if dialled {
			start = yamux.Client
		}
		session, err := start(e.joiner, yamuxConfig(log))
		if err != nil {
			panic(fmt.Sprintf("link: yamux does not like its configuration: %v", err))
		}
		e.session = session
		c.ends[i] = e
	}
	// Closing the sessions is the only way out of a stream that never comes.
	timer := time.AfterFunc(openTime, c.closeSessions)
	defer timer.Stop()
	for ch := range wire.Channels {
		e := c.endOf(ch)
		var s *yamux.Stream
		var err error
		if dialled {
			s, err = e.session.OpenStream()
		} else {
			s, err = e.session.AcceptStream()
		}
		if err != nil {
			if timer.Stop() {
				err = fmt.Errorf("open channel %v: %w", ch, e.cause(err))
			} else {
				err = fmt.Errorf("open channel %v: no answer within %v", ch, openTime)
			}
			c.closeSessions()
			return nil, err
		}
		c.streams[ch] = s
		c.queues[ch] = newQueue(func(b []byte) error {
			_, err := s.Write(b)
			return err
		})
	}
	return c, nil
}

// closeSessions cuts both connections; every blocked read and write returns.
func (c *Conn) closeSessions() {
	for _, e := range c.ends {
		if e != nil {
			e.session.Close()
		}
	}
}

// run is the life of a link: LinkUp, until something fails or ctx is
// cancelled, LinkDown. It returns when all that it started has ended.
func (c *Conn) run(ctx context.Context, pool *wire.Pool) error {
	stop := context.AfterFunc(ctx, func() { c.Close(ErrShutdown) })
	defer stop()

	c.handler.LinkUp(c)

	var readers, writers sync.WaitGroup
	for ch := range wire.Channels {
		readers.Go(func() { c.runReader(ch, pool) })
		writers.Go(func() { c.runWriter(ch) })
	}

	<-c.failed
	if c.orderly {
		c.linger(&readers)
	}
	// The order matters for LinkDown's promise: nothing new is taken, what is
	// being written fails, and only then is waited for it.
	for _, q := range c.queues {
		q.kill()
	}
	c.closeSessions()
	for _, q := range c.queues {
		q.waitIdle() // also for callers that write inline
	}
	readers.Wait()
	writers.Wait()
	c.handler.LinkDown(c, c.err)
	return c.err
}

// linger lets an orderly Close finish: what is queued is written, the streams
// are ended, and the peer ends its own. All of it takes lingerTime at most.
func (c *Conn) linger(readers *sync.WaitGroup) {
	timer := time.AfterFunc(lingerTime, func() {
		for _, q := range c.queues {
			q.kill()
		}
		c.closeSessions()
	})
	defer timer.Stop()
	for ch, q := range c.queues {
		// Inline, because runWriter may be gone already.
		if err := q.kick(true); err != nil {
			return
		}
		q.waitIdle()
		if c.streams[ch].Close() != nil {
			return
		}
	}
	readers.Wait()
}

// runWriter writes what callers did not write themselves. It goes on through
// linger and ends when the queue dies.
func (c *Conn) runWriter(ch wire.Channel) {
	if err := c.queues[ch].run(); err != nil {
		c.failWrite(ch, err)
	}
}

// runReader hands the frames of one channel to the handler until the stream
// ends.
func (c *Conn) runReader(ch wire.Channel, pool *wire.Pool) {
	r := wire.NewReader(c.streams[ch], ch, pool)
	var m wire.Msg
	for {
		err := r.Next(&m)
		if err != nil {
			c.readError(ch, err)
			return
		}
		if c.deaf.Load() {
			m.Release()
			continue
		}
		c.handler.Recv(c, ch, &m, r.Buffered() > 0)
	}
}

// readError decides what the end of one channel means. A stream that the peer
// has ended while its session lives is an orderly close: the other channels
// are read to their ends too, so that the peer's last words count, whichever
// channel they came on.
func (c *Conn) readError(ch wire.Channel, err error) {
	e := c.endOf(ch)
	if errors.Is(err, io.EOF) && !e.session.IsClosed() {
		switch c.eofs.Add(1) {
		case int32(wire.Channels):
			c.fail(ErrClosedByPeer, false)
		case 1:
			// A peer that ends one channel and keeps the others is broken.
			time.AfterFunc(2*lingerTime, func() { c.fail(ErrClosedByPeer, false) })
		}
		return
	}
	c.fail(fmt.Errorf("read %v: %w", ch, e.cause(err)), false)
}

// leg is a connection whose preface is done.
type leg struct {
	role role
	conn net.Conn // TLS, or sock
	sock *sock
}

// pair is what a Conn is made of.
type pair struct {
	node     string
	link     linkID
	version  uint16
	features uint64
	legs     [roleCount]*leg
}

func (p *pair) close() {
	for _, l := range p.legs {
		if l != nil {
			l.close()
		}
	}
}

func (l *leg) close() { l.sock.Conn.Close() }
