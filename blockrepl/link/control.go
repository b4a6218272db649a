package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// A control connection carries one request of an operator from node to node.
// It comes in at the link's listener, because that is the one address of a peer
// that everybody knows and every firewall lets through, and its certificate says
// who asks; but it is no part of a link. It passes through TLS and preface like
// any other, is handed to whoever accepts it, and from then on touches nothing
// that the link has: no frame, no lock, no place in a queue.

// ControlConn is a control connection of a peer.
type ControlConn struct {
	net.Conn
	peer string
}

// Peer is the node that asks, as its certificate says (without TLS: as it says).
func (c *ControlConn) Peer() string { return c.peer }

// controlListener hands on what the peers dial.
type controlListener struct {
	addr    net.Addr
	arrived chan net.Conn
	closing sync.Once
	closed  chan struct{}
}

// handTimeout is how long a control connection waits to be accepted. Nobody
// accepts while the agent starts and stops.
const handTimeout = 2 * time.Second

func newControlListener() *controlListener {
	return &controlListener{arrived: make(chan net.Conn), closed: make(chan struct{})}
}

// Control is where the control connections of the peers arrive: each that is
// accepted is a *ControlConn. There is one such listener; one that is closed
// stays closed, and refuses.
func (m *Manager) Control() net.Listener { return m.control }

func (l *controlListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed: // also when a connection waits
		return nil, net.ErrClosed
	default:
	}
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case c := <-l.arrived:
		return c, nil
	}
}

func (l *controlListener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return nil
}

func (l *controlListener) Addr() net.Addr { return l.addr }

// hand gives c to Accept, or closes it.
func (l *controlListener) hand(ctx context.Context, c net.Conn) {
	t := time.NewTimer(handTimeout)
	defer t.Stop()
	select {
	case l.arrived <- c:
		return
	case <-l.closed:
	case <-t.C:
	case <-ctx.Done():
	}
	c.Close()
}

// ControlDial says who asks whom.
type ControlDial struct {
	Self, Cluster string
	Node, Address string // of the peer
	// TLS is the configuration for dialling Node, nil for plain TCP; PeerNode
	// tells whose certificate it shows.
	TLS      *tls.Config
	PeerNode func(tls.ConnectionState) (string, error)
}

// DialControl makes a control connection. It needs no Manager: an operator's
// program with the certificate of a node may ask a peer while that node's agent is
// down. ctx bounds the dial and the preface; the connection outlives it.
func DialControl(ctx context.Context, d ControlDial) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, prefaceTimeout)
	defer cancel()
	nd := &net.Dialer{KeepAlive: -1}
	nc, err := nd.DialContext(ctx, "tcp", d.Address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Address, plain(err))
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	c, err := d.greet(nc)
	switch {
	case err == nil && stop():
		return c, nil
	case ctx.Err() != nil:
		err = ctx.Err()
		if errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("it does not answer")
		}
	}
	nc.Close()
	return nil, fmt.Errorf("%s: %w", d.Address, err)
}

// greet takes nc through TLS and preface.
func (d *ControlDial) greet(nc net.Conn) (net.Conn, error) {
	if err := setOptions(nc, 0); err != nil {
		return nil, err
	}
	// A manager's checks and no more of it: what it says of itself and of the
	// peer is the same as on a link.
	m := &Manager{cfg: Config{Self: d.Self, Cluster: d.Cluster, PeerNode: d.PeerNode}, peers: map[string]*peer{d.Node: {node: d.Node}},
		version: protocolVersion, oldest: oldestVersion}
	conn, cert := nc, ""
	if d.TLS != nil {
		tc := tls.Client(nc, strict(d.TLS))
		if err := tc.Handshake(); err != nil {
			return nil, fmt.Errorf("tls: %w", plain(err))
		}
		var err error
		if cert, err = m.certNode(tc); err != nil {
			return nil, err
		}
		conn = tc
	}
	mine := &preface{version: m.version, oldest: m.oldest, role: roleControl, cluster: d.Cluster, node: d.Self}
	if _, err := conn.Write(mine.encode()); err != nil {
		return nil, plain(err)
	}
	answer, err := readPreface(conn)
	if err != nil {
		return nil, plain(err)
	}
	if answer.verdict == verdictRefused {
		return nil, &RefusedError{Reason: answer.text, ByPeer: true}
	}
	if err := m.check(answer, d.Node, cert); err != nil {
		return nil, err
	}
	if answer.role != roleControl || answer.verdict != verdictOK {
		return nil, refuse("answer to another connection")
	}
	if _, err := conn.Write(mine.encode()); err != nil {
		return nil, plain(err)
	}
	return conn, nil
}
