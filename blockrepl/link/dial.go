package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	mrand "math/rand/v2"
	"time"
)

// dialPair makes both connections of a new link and waits for the go.
func (m *Manager) dialPair(ctx context.Context, p *peer) (*pair, error) {
	n := &pair{node: p.node}
	if _, err := rand.Read(n.link[:]); err != nil {
		panic(err) // documented never to fail
	}
	for r := range roleCount {
		l, err := m.dialLeg(ctx, p, n, r)
		if err != nil {
			n.close()
			return nil, err
		}
		n.legs[r] = l
	}
	if err := m.awaitGo(ctx, n); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// dialLeg dials one connection and takes it through TLS and preface.
func (m *Manager) dialLeg(ctx context.Context, p *peer, n *pair, r role) (*leg, error) {
	dctx, cancel := context.WithTimeout(ctx, prefaceTimeout)
	defer cancel()
	address, ok := p.address, false
	if address == "" {
		var err error
		if address, err = m.cfg.Finder.Address(dctx, p.node); err != nil {
			return nil, err
		}
		defer func() {
			if !ok {
				m.cfg.Finder.Failed(p.node, address)
			}
		}()
	}
	nc, err := m.cfg.Dial(dctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, plain(err))
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	s := newSock(nc)
	l := &leg{role: r, conn: s, sock: s}
	defer func() {
		if !ok {
			l.close()
		}
	}()
	if err := nc.SetDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return nil, plain(err)
	}
	if err := setOptions(nc, m.cfg.UserTimeout); err != nil {
		return nil, err
	}
	var cert string
	if m.server != nil {
		tc := tls.Client(s, strict(m.cfg.ClientTLS(p.node)))
		if err := tc.Handshake(); err != nil {
			return nil, fmt.Errorf("tls: %w", plain(err))
		}
		l.conn = tc
		var err error
		if cert, err = m.certNode(tc); err != nil {
			return nil, err
		}
	}
	mine := &preface{
		version: m.version, oldest: m.oldest, features: m.cfg.Features,
		role: r, link: n.link, cluster: m.cfg.Cluster, node: m.cfg.Self,
	}
	if _, err := l.conn.Write(mine.encode()); err != nil {
		return nil, plain(err)
	}
	// A listener that dislikes our certificate says so here: in TLS 1.3 our
	// side of the handshake was over before it had looked.
	answer, err := readPreface(l.conn)
	if err != nil {
		return nil, err
	}
	if answer.verdict == verdictRefused {
		return nil, &RefusedError{Reason: answer.text, ByPeer: true}
	}
	err = m.check(answer, p.node, cert)
	if err == nil && (answer.link != n.link || answer.role != r || answer.verdict != verdictOK) {
		err = refuse("answer to another connection")
	}
	if err != nil {
		mine.verdict, mine.text = verdictRefused, reason(err)
		if _, werr := l.conn.Write(mine.encode()); werr != nil {
			err = fmt.Errorf("%w (which it could not be told: %w)", err, plain(werr))
		}
		return nil, err
	}
	if _, err := l.conn.Write(mine.encode()); err != nil {
		return nil, plain(err)
	}
	n.version = min(m.version, answer.version)
	n.features = m.cfg.Features & answer.features
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return nil, plain(err)
	}
	if !stop() {
		return nil, ctx.Err()
	}
	ok = true
	return l, nil
}

// awaitGo waits until the listener begins the link.
func (m *Manager) awaitGo(ctx context.Context, n *pair) error {
	l := n.legs[roleMain]
	stop := context.AfterFunc(ctx, func() { l.close() })
	defer stop()
	if err := l.sock.SetDeadline(time.Now().Add(goTimeout)); err != nil {
		return plain(err)
	}
	p, err := readPreface(l.conn)
	if err != nil {
		return fmt.Errorf("while the peer ends the previous link: %w", err)
	}
	if p.verdict != verdictGo || p.link != n.link {
		return fmt.Errorf("%w: not the go of this link", ErrPreface)
	}
	return plain(l.sock.SetDeadline(time.Time{}))
}

const (
	backoffMin = 50 * time.Millisecond
	backoffMax = time.Second
	// settled is how long a link must have been up to count as one that
	// works: the next failure begins at backoffMin again.
	settled = time.Second
)

// backoff spaces the attempts to dial one peer.
type backoff struct {
	next    time.Duration
	now     bool // the next wait is none
	hurried bool // the last one was none
}

func newBackoff() *backoff { return &backoff{next: backoffMin} }

// after takes note of a link that has ended. An orderly end (a restart, a
// planned move) is redialled at once, but not twice in a row for links that
// did not last: two agents that agree on everything except whether they want
// to talk would otherwise do nothing else.
func (b *backoff) after(lasted time.Duration, orderly bool) {
	if lasted > settled {
		b.next, b.hurried = backoffMin, false
	}
	b.now = orderly && !b.hurried
}

// wait waits: up to half of each pause is random, so that agents that failed
// together do not come back together.
func (b *backoff) wait(ctx context.Context) {
	if b.now {
		b.now, b.hurried = false, true
		return
	}
	b.hurried = false
	sleep(ctx, b.next/2+mrand.N(b.next/2))
	b.next = min(2*b.next, backoffMax)
}
