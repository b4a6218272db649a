package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"tandem/blockrepl/wire"
)

const (
	// prefaceTimeout is how long a connection may take for TLS and preface.
	prefaceTimeout = 5 * time.Second

	// joinTimeout is how long the first connection of a link waits for the
	// second, and goTimeout how long a dialler waits until the listener has
	// ended the link that the new one replaces.
	joinTimeout = 5 * time.Second
	goTimeout   = 10 * time.Second

	// maxStrangers bounds the connections that have not said yet who they are.
	// When they are too many the oldest is closed, not the newest refused: a
	// peer needs milliseconds to introduce itself, so it is never among the
	// oldest for long, while idle connections are. A cap that refused would
	// let 128 idle connections lock the peer out.
	maxStrangers = 128

	// logEvery is how often the same failure is logged again.
	logEvery = time.Minute
)

// Manager keeps one link to every peer.
type Manager struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	server   *tls.Config // nil: plain TCP
	peers    map[string]*peer
	pool     *wire.Pool
	control  *controlListener
	version  uint16 // of the preface; variable for tests of N and N-1
	oldest   uint16

	mu        sync.Mutex
	strangers []net.Conn // oldest first
	closed    bool
	lastLog   time.Time // of a stranger
	unlogged  int       // strangers since then
}

// peer is the state of one peer. One goroutine, runPeer, makes its links one
// after the other.
type peer struct {
	node    string
	address string
	dial    bool // we dial, or wait for it to

	mu      sync.Mutex
	lastErr string
	logged  string // the failure last logged, and when
	when    time.Time
	current *Conn
	half    *half         // listening: a first connection that waits
	next    *pair         // listening: the newest complete pair
	arrived chan struct{} // next was set; capacity 1
}

// half is the first connection of a link, waiting for the second.
type half struct {
	pair *pair
	done chan struct{} // closed when paired or given up
}

// New checks the configuration and listens, so that an address in use is
// reported before anything is started.
func New(cfg Config) (*Manager, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m := &Manager{
		cfg:     cfg,
		log:     cfg.Log,
		peers:   map[string]*peer{},
		pool:    &wire.Pool{},
		control: newControlListener(),
		version: protocolVersion,
		oldest:  oldestVersion,
	}
	if m.cfg.Dial == nil {
		// The kernel's keepalive is set with the other options.
		d := &net.Dialer{Timeout: prefaceTimeout, KeepAlive: -1}
		m.cfg.Dial = d.DialContext
	}
	if cfg.ServerTLS != nil {
		m.server = strict(cfg.ServerTLS)
	}
	for _, p := range cfg.Peers {
		m.peers[p.Node] = &peer{
			node:    p.Node,
			address: p.Address,
			dial:    cfg.Self < p.Node,
			lastErr: "not connected yet",
			arrived: make(chan struct{}, 1),
		}
	}
	m.listener = cfg.Listener
	if m.listener == nil {
		l, err := net.Listen("tcp", cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("link: %w", err)
		}
		m.listener = l
	}
	m.control.addr = m.listener.Addr()
	return m, nil
}

// strict returns a copy of cfg that speaks TLS 1.3 only. Session tickets are
// off because a resumed session would outlive a change of the CA; records are
// full-sized from the start, because nobody renders a page while they arrive.
func strict(cfg *tls.Config) *tls.Config {
	c := cfg.Clone()
	c.MinVersion = tls.VersionTLS13
	c.SessionTicketsDisabled = true
	c.DynamicRecordSizingDisabled = true
	return c
}

// Addr returns the address that the manager listens on.
func (m *Manager) Addr() net.Addr { return m.listener.Addr() }

// PeerError returns why there is no link to node, "" when there is one.
func (m *Manager) PeerError(node string) string {
	p := m.peers[node]
	if p == nil {
		return "not a peer"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastErr
}

// Run keeps the links until ctx is cancelled. It returns when everything that
// it started has ended, LinkDown of every link included. A Manager runs once.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, m.closeStrangers)
	defer stop()

	var peers, inbound sync.WaitGroup
	for _, p := range m.peers {
		peers.Go(func() { m.runPeer(ctx, p) })
	}
	err := m.runAccept(ctx, &inbound)
	cancel()
	m.closeStrangers()
	inbound.Wait()
	peers.Wait()
	for _, p := range m.peers {
		if p.next != nil { // nobody is left to take it
			p.next.close()
			p.next = nil
		}
	}
	return err
}

// runPeer makes links to one peer until ctx is cancelled.
func (m *Manager) runPeer(ctx context.Context, p *peer) {
	b := newBackoff()
	for ctx.Err() == nil {
		var next *pair
		var err error
		if p.dial {
			next, err = m.dialPair(ctx, p)
		} else {
			next, err = m.awaitPair(ctx, p)
		}
		var c *Conn
		if err == nil {
			c, err = newConn(next, p.dial, m.cfg.Handler, m.log)
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			m.failed(p, err)
			if p.dial {
				b.wait(ctx)
			}
			continue
		}
		began := time.Now()
		m.up(p, c)
		err = c.run(ctx, m.pool)
		m.down(p, err)
		if p.dial {
			b.after(time.Since(began), c.orderly || errors.Is(err, ErrClosedByPeer))
			b.wait(ctx)
		}
	}
}

func (m *Manager) up(p *peer, c *Conn) {
	p.mu.Lock()
	p.current = c
	p.lastErr, p.logged = "", ""
	replaced := p.next != nil
	p.mu.Unlock()
	m.log.Info("link up", "peer", p.node, "addr", c.ends[roleMain].sock.RemoteAddr().String(), "version", c.version, "features", c.features)
	if replaced { // offer came before current was there to be closed
		c.fail(ErrReplaced, false)
	}
}

func (m *Manager) down(p *peer, err error) {
	if err == nil {
		err = errors.New("closed")
	}
	p.mu.Lock()
	p.current = nil
	p.lastErr = err.Error()
	p.mu.Unlock()
	level := slog.LevelWarn
	if errors.Is(err, ErrShutdown) {
		level = slog.LevelInfo
	}
	m.log.Log(context.Background(), level, "link down", "peer", p.node, "err", err)
}

// failed notes why there is no link and logs it, the same reason at most once
// in logEvery: a peer that is switched off is tried every second for days.
func (m *Manager) failed(p *peer, err error) {
	text := err.Error()
	now := time.Now()
	p.mu.Lock()
	if p.current == nil {
		p.lastErr = text
	}
	quiet := p.logged == text && now.Sub(p.when) < logEvery
	if !quiet {
		p.logged, p.when = text, now
	}
	p.mu.Unlock()
	if !quiet {
		m.log.Warn("no link", "peer", p.node, "err", err)
	}
}

// stranger logs a connection that did not get as far as naming a peer. One
// line in ten seconds: it costs nothing to make a million of them.
func (m *Manager) stranger(from net.Addr, err error) {
	now := time.Now()
	m.mu.Lock()
	if now.Sub(m.lastLog) < 10*time.Second {
		m.unlogged++
		m.mu.Unlock()
		return
	}
	m.lastLog = now
	unlogged := m.unlogged
	m.unlogged = 0
	m.mu.Unlock()
	m.log.Warn("connection refused", "from", from.String(), "err", err, "unlogged", unlogged)
}

// runAccept accepts connections until ctx is cancelled.
func (m *Manager) runAccept(ctx context.Context, inbound *sync.WaitGroup) error {
	stop := context.AfterFunc(ctx, func() { m.listener.Close() })
	defer stop()
	for {
		nc, err := m.listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("link: accept: %w", err)
		case err != nil:
			// Out of descriptors, most likely: strangers go, the peers' links
			// stay, and it is tried again.
			m.log.Warn("accept failed", "err", err)
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		if !m.admit(nc) {
			nc.Close()
			continue
		}
		inbound.Go(func() { m.runInbound(ctx, nc) })
	}
}

// admit counts nc among the strangers.
func (m *Manager) admit(nc net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	if len(m.strangers) >= maxStrangers {
		m.strangers[0].Close() // its goroutine fails and ends
		m.strangers = slices.Delete(m.strangers, 0, 1)
	}
	m.strangers = append(m.strangers, nc)
	return true
}

// known takes nc from the strangers; false if it has been closed as one.
func (m *Manager) known(nc net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.strangers, nc)
	if i < 0 {
		return false
	}
	m.strangers = slices.Delete(m.strangers, i, i+1)
	return true
}

func (m *Manager) closeStrangers() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for _, nc := range m.strangers {
		nc.Close()
	}
	m.strangers = nil
}

// runInbound takes one accepted connection through TLS and preface and to its
// peer.
func (m *Manager) runInbound(ctx context.Context, nc net.Conn) {
	l, p, hello, err := m.greet(nc)
	if err != nil {
		farewell(nc)
	}
	if !m.known(nc) {
		err = errStrangers
	}
	if err != nil {
		nc.Close()
		if ctx.Err() == nil {
			if p != nil {
				m.failed(p, err)
			} else {
				m.stranger(nc.RemoteAddr(), plain(err))
			}
		}
		return
	}
	if l.role == roleControl {
		m.control.hand(ctx, &ControlConn{Conn: l.conn, peer: p.node})
		return
	}
	m.join(ctx, p, l, hello)
}

// farewell ends our side of a connection and gives the other side a moment to
// read why. Closing at once, with bytes of it unread (its preface behind a TLS
// handshake that we have refused), would make the kernel send a reset, which
// overtakes the alert: "connection reset" is all that the peer would log.
func farewell(nc net.Conn) {
	if cw, ok := nc.(interface{ CloseWrite() error }); !ok || cw.CloseWrite() != nil {
		return
	}
	if nc.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, nc, 64<<10) // whatever it is, it is over
	}
}

// greet is the listening side of the preface. The peer it returns, also with
// an error, is one that proved its name (without TLS: that claimed it).
func (m *Manager) greet(nc net.Conn) (*leg, *peer, *preface, error) {
	if err := nc.SetDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return nil, nil, nil, err
	}
	if err := setOptions(nc, m.cfg.UserTimeout); err != nil {
		return nil, nil, nil, err
	}
	s := newSock(nc)
	l := &leg{conn: s, sock: s}
	var cert string
	var certErr error
	if m.server != nil {
		tc := tls.Server(s, m.server)
		if err := tc.Handshake(); err != nil {
			return nil, nil, nil, fmt.Errorf("tls: %w", plain(err))
		}
		l.conn = tc
		cert, certErr = m.certNode(tc)
	}
	hello, err := readPreface(l.conn)
	if err != nil {
		return nil, m.peers[cert], nil, err
	}
	l.role = hello.role
	answer := &preface{
		version: m.version, oldest: m.oldest, features: m.cfg.Features,
		role: hello.role, link: hello.link, cluster: m.cfg.Cluster, node: m.cfg.Self,
	}
	err = certErr
	if err == nil {
		err = m.check(hello, "", cert)
	}
	p := m.peers[hello.node]
	if m.server != nil {
		p = m.peers[cert]
	}
	named := p
	if hello.role == roleControl {
		// What becomes of it says nothing about the link to that peer: it is
		// logged like a stranger's.
		p = nil
	}
	if err != nil {
		answer.verdict = verdictRefused
		answer.text = reason(err)
		if _, werr := l.conn.Write(answer.encode()); werr != nil {
			err = fmt.Errorf("%w (which it could not be told: %w)", err, plain(werr))
		}
		return nil, p, nil, err
	}
	if _, err := l.conn.Write(answer.encode()); err != nil {
		return nil, p, nil, plain(err)
	}
	confirm, err := readPreface(l.conn)
	if err != nil {
		return nil, p, nil, fmt.Errorf("while waiting for its confirmation: %w", err)
	}
	if confirm.verdict != verdictOK {
		return nil, p, nil, &RefusedError{Reason: confirm.text, ByPeer: true}
	}
	return l, named, hello, nc.SetDeadline(time.Time{})
}

// certNode returns the node of the peer's certificate.
func (m *Manager) certNode(tc *tls.Conn) (string, error) {
	state := tc.ConnectionState()
	if len(state.PeerCertificates) == 0 { // GetConfigForClient may have its own idea
		return "", refuse("no certificate")
	}
	if state.Version < tls.VersionTLS13 {
		return "", refuse("%s is too old", tls.VersionName(state.Version))
	}
	node, err := m.cfg.PeerNode(state)
	if err != nil {
		return "", refuse("certificate: %v", err)
	}
	if node == "" {
		return "", refuse("certificate names no node")
	}
	return node, nil
}

// reason is what the other side is told.
func reason(err error) string {
	var r *RefusedError
	if errors.As(err, &r) {
		return r.Reason
	}
	return err.Error()
}

// join brings the two connections of a link together. The first one waits here
// for the second; a peer has one such place, so a second attempt of the same
// peer drives out the first.
func (m *Manager) join(ctx context.Context, p *peer, l *leg, hello *preface) {
	p.mu.Lock()
	if h := p.half; h != nil && h.pair.link == hello.link && h.pair.legs[l.role] == nil {
		p.half = nil
		h.pair.legs[l.role] = l
		close(h.done)
		p.mu.Unlock()
		p.offer(h.pair)
		return
	}
	h := &half{
		pair: &pair{
			node: p.node, link: hello.link,
			version:  min(m.version, hello.version),
			features: m.cfg.Features & hello.features,
		},
		done: make(chan struct{}),
	}
	h.pair.legs[l.role] = l
	if old := p.half; old != nil {
		old.pair.close()
		close(old.done)
	}
	p.half = h
	p.mu.Unlock()

	timer := time.NewTimer(joinTimeout)
	defer timer.Stop()
	select {
	case <-h.done:
		return
	case <-timer.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.half == h {
		p.half = nil
		h.pair.close()
	}
}

// offer makes n the peer's next link. The one that is up is ended first: the
// peer dials only when its side of it has ended. An earlier offer that nobody
// took yet is of a link that the peer has given up meanwhile.
func (p *peer) offer(n *pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next != nil {
		p.next.close()
	}
	p.next = n
	if p.current != nil {
		p.current.fail(ErrReplaced, false)
	}
	select {
	case p.arrived <- struct{}{}:
	default:
	}
}

// awaitPair waits for the peer to dial, and tells it that its link begins.
func (m *Manager) awaitPair(ctx context.Context, p *peer) (*pair, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.arrived:
		}
		p.mu.Lock()
		n := p.next
		p.next = nil
		p.mu.Unlock()
		if n == nil {
			continue
		}
		if err := m.begin(n); err != nil {
			n.close()
			return nil, err
		}
		return n, nil
	}
}

// begin sends the go.
func (m *Manager) begin(n *pair) error {
	l := n.legs[roleMain]
	if err := l.sock.SetDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return plain(err)
	}
	msg := &preface{
		version: m.version, oldest: m.oldest, features: m.cfg.Features, verdict: verdictGo,
		role: roleMain, link: n.link, cluster: m.cfg.Cluster, node: m.cfg.Self,
	}
	if _, err := l.conn.Write(msg.encode()); err != nil {
		return plain(err)
	}
	return l.sock.SetDeadline(time.Time{})
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
