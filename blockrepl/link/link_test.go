package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/blockrepl/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority is a throw-away CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pool}
}

// use gives cfg a certificate of node and the functions that go with it.
func (a *authority) use(t testing.TB, cfg *Config, node string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: node}, DNSNames: []string{node},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	cfg.ServerTLS = &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
	cfg.ClientTLS = func(string) *tls.Config {
		// The name is checked by PeerNode, against the node that was dialled;
		// the chain is checked here.
		return &tls.Config{
			Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true,
			VerifyConnection: func(s tls.ConnectionState) error {
				_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: a.pool})
				return err
			},
		}
	}
	cfg.PeerNode = func(s tls.ConnectionState) (string, error) {
		return s.PeerCertificates[0].Subject.CommonName, nil
	}
}

// event is what a recorder saw.
type event struct {
	what string // "up", "down", "recv"
	conn *Conn
	ch   wire.Channel
	msg  wire.Msg
	err  error
}

// recorder is a Handler that checks the order of the calls and passes them on.
type recorder struct {
	t      testing.TB
	events chan event
	recv   func(c *Conn, ch wire.Channel, m *wire.Msg, more bool) // instead of an event

	mu sync.Mutex
	up map[*Conn]bool
	of map[string]*Conn
}

func newRecorder(t testing.TB) *recorder {
	return &recorder{t: t, events: make(chan event, 1<<14), up: map[*Conn]bool{}, of: map[string]*Conn{}}
}

func (r *recorder) LinkUp(c *Conn) {
	r.mu.Lock()
	if old := r.of[c.Peer()]; old != nil {
		r.t.Errorf("second link to %s before the first was down", c.Peer())
	}
	r.of[c.Peer()] = c
	r.up[c] = true
	r.mu.Unlock()
	r.events <- event{what: "up", conn: c}
}

func (r *recorder) LinkDown(c *Conn, err error) {
	r.mu.Lock()
	if !r.up[c] {
		r.t.Error("LinkDown without LinkUp, or twice")
	}
	delete(r.up, c)
	delete(r.of, c.Peer())
	r.mu.Unlock()
	for ch, q := range c.queues {
		q.mu.Lock()
		for _, p := range append(q.batch.parts[:cap(q.batch.parts)], q.spare.parts[:cap(q.spare.parts)]...) {
			if p != nil {
				r.t.Errorf("channel %d still references a body after LinkDown", ch)
			}
		}
		q.mu.Unlock()
	}
	r.events <- event{what: "down", conn: c, err: err}
}

func (r *recorder) Recv(c *Conn, ch wire.Channel, m *wire.Msg, more bool) {
	r.mu.Lock()
	if !r.up[c] {
		r.t.Error("Recv outside of LinkUp and LinkDown")
	}
	r.mu.Unlock()
	if r.recv != nil {
		r.recv(c, ch, m, more)
		return
	}
	r.events <- event{what: "recv", conn: c, ch: ch, msg: *m}
}

func (r *recorder) next(what string) event {
	r.t.Helper()
	select {
	case e := <-r.events:
		if e.what != what {
			r.t.Fatalf("got %s (err %v), want %s", e.what, e.err, what)
		}
		return e
	case <-time.After(15 * time.Second):
		r.t.Fatalf("no %s", what)
	}
	panic("unreachable")
}

// quiet says that nothing happens for d.
func (r *recorder) quiet(d time.Duration) {
	r.t.Helper()
	select {
	case e := <-r.events:
		r.t.Fatalf("unexpected %s (err %v)", e.what, e.err)
	case <-time.After(d):
	}
}

// logBuffer collects a node's log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// waitFor waits until the log has a line with all of the words.
func (l *logBuffer) waitFor(t *testing.T, words ...string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	line:
		for line := range strings.Lines(l.String()) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue line
				}
			}
			return
		}
	}
	t.Errorf("no line with %q in the log:\n%s", words, l)
}

// node is a Manager that runs.
type node struct {
	*recorder
	m      *Manager
	log    *logBuffer
	cancel context.CancelFunc
	done   chan error
}

func (n *node) stop() {
	n.cancel()
	if err := <-n.done; err != nil {
		n.t.Errorf("Run: %v", err)
	}
}

// listen reserves an address.
func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// nodeConfig is the configuration of one node of cluster nfs1.
func nodeConfig(self string, l net.Listener, peers ...Peer) Config {
	return Config{Self: self, Cluster: "nfs1", Listener: l, Peers: peers}
}

func start(t testing.TB, cfg Config, set ...func(*Manager)) *node {
	t.Helper()
	n := &node{recorder: newRecorder(t), log: &logBuffer{}, done: make(chan error, 1)}
	if h, ok := cfg.Handler.(*recorder); ok {
		n.recorder = h
	} else if cfg.Handler == nil {
		cfg.Handler = n.recorder
	}
	cfg.Log = slog.New(slog.NewTextHandler(n.log, nil)).With("node", cfg.Self)
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range set {
		f(m)
	}
	n.m = m
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() { n.done <- m.Run(ctx) }()
	return n
}

// twoNodes starts a and b, linked.
func twoNodes(t testing.TB, ca *authority) (a, b *node) {
	t.Helper()
	la, lb := listen(t), listen(t)
	ca1 := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
	cb := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
	if ca != nil {
		ca.use(t, &ca1, "a")
		ca.use(t, &cb, "b")
	}
	return start(t, ca1), start(t, cb)
}

// moving is a Finder whose node is at the next address after each failure.
type moving struct {
	mu     sync.Mutex
	all    []string // "": not found
	failed []string
	asked  int
}

func (f *moving) Address(_ context.Context, node string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	at := f.all[0]
	if at == "" {
		f.all = f.all[1:]
		return "", errors.New("nobody knows where " + node + " is")
	}
	return at, nil
}

func (f *moving) Failed(node, address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed = append(f.failed, node+" "+address)
	if len(f.all) > 1 {
		f.all = f.all[1:]
	}
}

// A peer without an address is looked for before each dial, and whoever knows where it is
// hears of a dial that has failed: for want of a listener, or because it is another node.
func TestFinder(t *testing.T) {
	la, lb, other := listen(t), listen(t), listen(t)
	nobody := listen(t)
	nobody.Close()
	c := start(t, nodeConfig("c", other))
	defer c.stop()
	f := &moving{all: []string{"", nobody.Addr().String(), other.Addr().String(), lb.Addr().String()}}
	cfg := nodeConfig("a", la, Peer{Node: "b"})
	cfg.Finder = f
	a := start(t, cfg)
	b := start(t, nodeConfig("b", lb, Peer{"a", la.Addr().String()}))
	defer b.stop()
	a.next("up")
	b.next("up")
	a.log.waitFor(t, "peer=b", "nobody knows where b is")
	a.log.waitFor(t, "peer=b", nobody.Addr().String()+": ")
	f.mu.Lock()
	if want := []string{"b " + nobody.Addr().String(), "b " + other.Addr().String()}; !slices.Equal(f.failed, want) || f.asked != 5 {
		t.Errorf("%d times asked, failed: %q", f.asked, f.failed)
	}
	f.mu.Unlock()
	a.stop()
}

func body(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)*7 + seed + byte(i>>8)
	}
	return b
}

// both runs f with and without TLS.
func both(t *testing.T, f func(t *testing.T, ca *authority)) {
	t.Run("tls", func(t *testing.T) { f(t, newAuthority(t)) })
	t.Run("plain", func(t *testing.T) { f(t, nil) })
}

func TestLink(t *testing.T) {
	both(t, func(t *testing.T, ca *authority) {
		a, b := twoNodes(t, ca)
		ua, ub := a.next("up"), b.next("up")
		if ua.conn.Peer() != "b" || ub.conn.Peer() != "a" {
			t.Errorf("peers are %q and %q", ua.conn.Peer(), ub.conn.Peer())
		}
		for _, dir := range []struct {
			from *Conn
			to   *node
		}{{ua.conn, b}, {ub.conn, a}} {
			for _, inline := range []bool{true, false} {
				for i, size := range []int{0, 1, 512, 4096, 16372, 65536, 65537, 1 << 20, 32 << 20} {
					want := body(size, byte(i))
					cut := size / 3
					dir.from.Send(wire.Data, &wire.Msg{Type: wire.Write, Epoch: 3, Tag: uint64(i), Off: 4096, Len: uint32(size)}, inline, want[:cut], want[cut:])
					e := dir.to.next("recv")
					if e.ch != wire.Data || e.msg.Type != wire.Write || e.msg.Tag != uint64(i) || !bytes.Equal(e.msg.Body, want) {
						t.Fatalf("size %d: got %v on %v, body equal: %v", size, &e.msg, e.ch, bytes.Equal(e.msg.Body, want))
					}
					e.msg.Release()
				}
				dir.from.Send(wire.Ctl, &wire.Msg{Type: wire.Hello, Body: []byte("hello")}, inline)
				if e := dir.to.next("recv"); e.ch != wire.Ctl || string(e.msg.Body) != "hello" {
					t.Errorf("got %v on %v", &e.msg, e.ch)
				}
				dir.from.Send(wire.Bulk, &wire.Msg{Type: wire.RsFlush}, inline)
				if e := dir.to.next("recv"); e.ch != wire.Bulk || e.msg.Type != wire.RsFlush {
					t.Errorf("got %v on %v", &e.msg, e.ch)
				}
			}
		}
		sent, _ := ua.conn.Stats()
		_, received := ub.conn.Stats()
		if sent < 64<<20 || received < 64<<20 {
			t.Errorf("a sent %d bytes, b received %d", sent, received)
		}
		if e := a.m.PeerError("b"); e != "" {
			t.Errorf("PeerError = %q with the link up", e)
		}
		a.stop()
		if e := a.next("down"); !errors.Is(e.err, ErrShutdown) {
			t.Errorf("a's link is down for %v", e.err)
		}
		if e := b.next("down"); !errors.Is(e.err, ErrClosedByPeer) {
			t.Errorf("b's link is down for %v", e.err)
		}
		b.stop()
	})
}

// Many callers append in an agreed order and write in whatever order they
// come; the wire keeps the order of the appends.
func TestOrder(t *testing.T) {
	both(t, func(t *testing.T, ca *authority) {
		a, b := twoNodes(t, ca)
		c := a.next("up").conn
		b.next("up")
		const frames = 20000
		var mu sync.Mutex
		var tag uint64
		payload := body(8192, 1)
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for {
					mu.Lock()
					if tag == frames {
						mu.Unlock()
						return
					}
					size := uint32(tag*37) % 8192
					c.Queue(wire.Data, &wire.Msg{Type: wire.Write, Tag: tag, Len: size}, payload[:size])
					tag++
					mu.Unlock()
					c.Kick(wire.Data, w%2 == 0)
				}
			})
		}
		for i := range uint64(frames) {
			e := b.next("recv")
			if e.msg.Tag != i {
				t.Fatalf("frame %d arrived as number %d", e.msg.Tag, i)
			}
			e.msg.Release()
		}
		wg.Wait()
		a.stop()
		b.stop()
	})
}

func TestRestart(t *testing.T) {
	both(t, func(t *testing.T, ca *authority) {
		la, lb := listen(t), listen(t)
		addrB := lb.Addr().String()
		cfgA := nodeConfig("a", la, Peer{"b", addrB})
		cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
		if ca != nil {
			ca.use(t, &cfgA, "a")
			ca.use(t, &cfgB, "b")
		}
		a, b := start(t, cfgA), start(t, cfgB)
		for i := range 3 {
			a.next("up")
			b.next("up")
			b.stop()
			b.next("down")
			if e := a.next("down"); !errors.Is(e.err, ErrClosedByPeer) {
				t.Errorf("down for %v", e.err)
			}
			if a.m.PeerError("b") == "" {
				t.Error("no PeerError without a link")
			}
			cfgB.Listener, cfgB.Listen = nil, addrB
			b = start(t, cfgB)
			_ = i
		}
		a.next("up")
		b.next("up")
		// And the dialler.
		a.stop()
		b.next("down")
		cfgA.Listener, cfgA.Listen = nil, la.Addr().String()
		a = start(t, cfgA)
		a.next("up")
		b.next("up")
		a.stop()
		b.stop()
	})
}

func TestCloseByHandler(t *testing.T) {
	a, b := twoNodes(t, nil)
	boom := errors.New("boom")
	for i := range 4 {
		ca, cb := a.next("up").conn, b.next("up").conn
		closer, n, other := ca, a, b
		if i%2 == 1 {
			closer, n, other = cb, b, a
		}
		// The last words arrive, also those that nobody has kicked.
		closer.Queue(wire.Ctl, &wire.Msg{Type: wire.Control, Tag: 9, Body: []byte("go away")})
		closer.Close(boom)
		closer.Close(nil)
		if e := other.next("recv"); e.msg.Tag != 9 {
			t.Errorf("got %v", &e.msg)
		}
		if e := n.next("down"); e.err != boom {
			t.Errorf("down for %v", e.err)
		}
		if e := other.next("down"); !errors.Is(e.err, ErrClosedByPeer) {
			t.Errorf("down for %v", e.err)
		}
		closer.Send(wire.Ctl, &wire.Msg{Type: wire.Clean}, true) // has no effect
	}
	a.next("up")
	b.next("up")
	a.stop()
	b.stop()
}

// The three ways for a peer to be the wrong one; both sides say why.
func TestRefused(t *testing.T) {
	ca := newAuthority(t)
	other := newAuthority(t)
	for _, tc := range []struct {
		name   string
		a, b   func(*Config)
		setA   func(*Manager)
		inA    []string // words of one line of a's log
		inB    []string
		statsB string
	}{
		{
			name: "cluster", a: func(c *Config) { c.Cluster = "x" },
			inA:    []string{`peer=b`, `refused by the peer: cluster \"x\" is not ours (\"nfs1\")`},
			inB:    []string{`peer=a`, `refused: cluster \"x\" is not ours (\"nfs1\")`},
			statsB: `refused: cluster "x" is not ours ("nfs1")`,
		},
		{
			name: "version", setA: func(m *Manager) { m.version, m.oldest = 8, 7 },
			inA: []string{`peer=b`, `refused by the peer: protocol versions 7 to 8 and 1 to 1 have none in common`},
			inB: []string{`peer=a`, `refused: protocol versions 7 to 8`},
		},
		{
			name: "unknown node", b: func(c *Config) { c.Peers = []Peer{{"aa", "127.0.0.1:1"}} },
			inA: []string{`peer=b`, `node \"a\" is not a peer of \"b\"`},
			inB: []string{`connection refused`, `node \"a\" is not a peer of \"b\"`},
		},
		{
			name: "address of another", a: func(c *Config) { c.Peers[0].Node = "bb" },
			inA: []string{`peer=bb`, `node \"b\" is not a peer of \"a\"`},
			inB: []string{`peer=a`, `refused by the peer`, `node \"b\" is not a peer of \"a\"`},
		},
		{
			name: "address of another peer", a: func(c *Config) { c.Peers = []Peer{{"bb", c.Peers[0].Address}, {"b", "127.0.0.1:1"}} },
			inA: []string{`peer=bb`, `the address of node \"bb\" leads to node \"b\"`},
			inB: []string{`peer=a`, `the address of node \"bb\" leads to node \"b\"`},
		},
		{
			name: "certificate of another node", a: func(c *Config) { ca.use(t, c, "mallory") },
			inA: []string{`peer=b`, `node calls itself \"a\", its certificate says \"mallory\"`},
			inB: []string{`node calls itself \"a\", its certificate says \"mallory\"`},
		},
		{
			name: "certificate of another authority", a: func(c *Config) { other.use(t, c, "a"); c.ClientTLS = insecure(c.ClientTLS) },
			inA: []string{`peer=b`, `remote error: tls`},
			inB: []string{`connection refused`, `tls: failed to verify certificate`},
		},
		{
			name: "listener of another authority", b: func(c *Config) { other.use(t, c, "b") },
			inA: []string{`peer=b`, `certificate signed by unknown authority`},
			inB: []string{`connection refused`, `remote error: tls: bad certificate`},
		},
		{
			name: "PeerNode does not like it", b: func(c *Config) {
				c.PeerNode = func(tls.ConnectionState) (string, error) { return "", errors.New("no SAN") }
			},
			inA: []string{`peer=b`, `certificate: no SAN`},
			inB: []string{`connection refused`, `certificate: no SAN`},
		},
		{
			name: "TLS on one side", a: func(c *Config) { c.ServerTLS, c.ClientTLS = nil, nil },
			inA: []string{`peer=b`},
			inB: []string{`connection refused`, `first record does not look like a TLS handshake`},
		},
		{
			name: "TLS on the other side", b: func(c *Config) { c.ServerTLS, c.ClientTLS = nil, nil },
			inA: []string{`peer=b`},
			inB: []string{`connection refused`, `it speaks TLS and we do not`},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			la, lb := listen(t), listen(t)
			cfgA := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
			cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
			ca.use(t, &cfgA, "a")
			ca.use(t, &cfgB, "b")
			if tc.a != nil {
				tc.a(&cfgA)
			}
			if tc.b != nil {
				tc.b(&cfgB)
			}
			b := start(t, cfgB)
			var set []func(*Manager)
			if tc.setA != nil {
				set = append(set, tc.setA)
			}
			a := start(t, cfgA, set...)
			a.log.waitFor(t, tc.inA...)
			b.log.waitFor(t, tc.inB...)
			time.Sleep(300 * time.Millisecond) // a few more attempts
			if n := strings.Count(a.log.String(), tc.inA[len(tc.inA)-1]); n != 1 && len(tc.inA) > 1 {
				t.Errorf("a logged it %d times:\n%s", n, a.log)
			}
			if n := strings.Count(b.log.String(), tc.inB[len(tc.inB)-1]); n != 1 {
				t.Errorf("b logged it %d times:\n%s", n, b.log)
			}
			if a.m.PeerError(cfgA.Peers[0].Node) == "" {
				t.Error("no PeerError at a")
			}
			if tc.statsB != "" && b.m.PeerError("a") != tc.statsB {
				t.Errorf("PeerError at b = %q", b.m.PeerError("a"))
			}
			a.quiet(0)
			b.quiet(0)
			a.stop()
			b.stop()
		})
	}
}

// insecure drops the check of the listener's certificate, to get as far as
// showing one's own.
func insecure(f func(string) *tls.Config) func(string) *tls.Config {
	return func(n string) *tls.Config {
		c := f(n)
		c.VerifyConnection = nil
		return c
	}
}

// N and N-1 work together and agree on the older one.
func TestVersions(t *testing.T) {
	la, lb := listen(t), listen(t)
	cfgA := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
	cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
	cfgA.Features, cfgB.Features = 0b1101, 0b0111
	a := start(t, cfgA, func(m *Manager) { m.version, m.oldest = 3, 2 })
	b := start(t, cfgB, func(m *Manager) { m.version, m.oldest = 2, 1 })
	for _, c := range []*Conn{a.next("up").conn, b.next("up").conn} {
		if c.Version() != 2 || c.Features() != 0b0101 {
			t.Errorf("version %d, features %b", c.Version(), c.Features())
		}
	}
	a.stop()
	b.stop()
}

func TestConfig(t *testing.T) {
	l := listen(t)
	defer l.Close()
	good := func() Config {
		c := nodeConfig("a", l, Peer{"b", "127.0.0.1:1"})
		c.Handler, c.Log = newRecorder(t), slog.New(slog.DiscardHandler)
		return c
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for i, spoil := range []func(*Config){
		func(c *Config) { c.Self = "" },
		func(c *Config) { c.Cluster = strings.Repeat("x", 256) },
		func(c *Config) { c.Handler = nil },
		func(c *Config) { c.Log = nil },
		func(c *Config) { c.Listener = nil },
		func(c *Config) { c.Listener, c.Listen = nil, l.Addr().String() },
		func(c *Config) { c.ServerTLS = &tls.Config{} },
		func(c *Config) { newAuthority(t).use(t, c, "a"); c.PeerNode = nil },
		func(c *Config) { newAuthority(t).use(t, c, "a"); c.ServerTLS.ClientAuth = tls.NoClientCert },
		func(c *Config) { c.UserTimeout = -1 },
		func(c *Config) { c.Peers[0].Node = "" },
		func(c *Config) { c.Peers[0].Node = "a" },
		func(c *Config) { c.Peers[0].Address = "" },
	} {
		c := good()
		spoil(&c)
		if _, err := New(c); err == nil {
			t.Errorf("spoiler %d: no error", i)
		}
	}
	m, _ := New(good())
	if e := m.PeerError("z"); e != "not a peer" {
		t.Errorf("PeerError of a stranger = %q", e)
	}
	_ = fmt.Sprint(m.Addr())
}
