package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"tandem/agent/faultproxy"
	"tandem/blockrepl/wire"
)

// proxied starts a and b with a proxy in between.
func proxied(t *testing.T, timeout time.Duration) (a, b *node, p *faultproxy.Proxy, cfgA Config, direct string) {
	t.Helper()
	la, lb := listen(t), listen(t)
	p, err := faultproxy.New(lb.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	cfgA = nodeConfig("a", la, Peer{"b", p.Addr()})
	cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
	cfgA.UserTimeout, cfgB.UserTimeout = timeout, timeout
	ca := newAuthority(t)
	ca.use(t, &cfgA, "a")
	ca.use(t, &cfgB, "b")
	return start(t, cfgA), start(t, cfgB), p, cfgA, lb.Addr().String()
}

// 1. The network loses everything between a and b; neither hears of it.
// 2. a restarts and dials again, by another way.
// 3. b still has the old link: it must be down before the new one is up.
// recorder.LinkUp checks 3.
func TestHalfOpen(t *testing.T) {
	a, b, p, cfgA, direct := proxied(t, 0)
	old := b.next("up").conn
	a.next("up")
	p.Cut(faultproxy.Both)
	a.stop()
	b.quiet(50 * time.Millisecond)
	cfgA.Listener, cfgA.Listen = nil, "127.0.0.1:0"
	cfgA.Peers = []Peer{{"b", direct}}
	a = start(t, cfgA)
	if e := b.next("down"); e.conn != old || !errors.Is(e.err, ErrReplaced) {
		t.Errorf("down for %v", e.err)
	}
	b.next("up")
	a.next("up")
	a.stop()
	b.stop()
}

// A peer whose LinkDown takes its time is not dialled into a second link.
func TestReplaceWaitsForLinkDown(t *testing.T) {
	la, lb := listen(t), listen(t)
	slow := &slowDown{recorder: newRecorder(t), gate: make(chan struct{})}
	cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
	cfgB.Handler = slow
	b := start(t, cfgB)
	b.recorder = slow.recorder
	cfgA := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
	a := start(t, cfgA)
	a.next("up")
	b.next("up")
	a.stop()
	cfgA.Listener, cfgA.Listen = nil, la.Addr().String()
	a = start(t, cfgA)
	a.quiet(300 * time.Millisecond) // a waits for b's go
	b.quiet(0)
	close(slow.gate)
	b.next("down")
	b.next("up")
	a.next("up")
	a.stop()
	b.stop()
}

type slowDown struct {
	*recorder
	gate chan struct{}
}

func (s *slowDown) LinkDown(c *Conn, err error) {
	<-s.gate
	s.recorder.LinkDown(c, err)
}

func TestReset(t *testing.T) {
	a, b, p, _, _ := proxied(t, 0)
	a.next("up")
	b.next("up")
	p.Reset()
	for _, n := range []*node{a, b} {
		if e := n.next("down"); !errors.Is(e.err, syscall.ECONNRESET) {
			t.Errorf("down for %v", e.err)
		}
	}
	a.next("up")
	b.next("up")
	a.stop()
	b.stop()
}

// A glitch shorter than the timeouts costs nothing.
func TestGlitch(t *testing.T) {
	a, b, p, _, _ := proxied(t, 5*time.Second)
	c := a.next("up").conn
	b.next("up")
	p.Hold(faultproxy.Both)
	for i := range uint64(10) {
		c.Send(wire.Data, &wire.Msg{Type: wire.Ack, Tag: i}, false)
	}
	b.quiet(200 * time.Millisecond)
	p.Heal()
	for i := range uint64(10) {
		if e := b.next("recv"); e.msg.Tag != i {
			t.Errorf("got %v", &e.msg)
		}
	}
	a.quiet(0)
	a.stop()
	b.stop()
}

// A peer whose socket is never read again is noticed by UserTimeout, and the
// sender's Queue and Kick do not block meanwhile.
func TestUserTimeout(t *testing.T) {
	a, b, p, _, _ := proxied(t, time.Second)
	c := a.next("up").conn
	b.next("up")
	p.Hold(faultproxy.To)
	payload := body(1<<20, 1)
	began := time.Now()
	for range 64 {
		c.Send(wire.Data, &wire.Msg{Type: wire.Write, Len: 1 << 20}, false, payload)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("64 calls of Send took %v", took)
	}
	// The kernel tells its reason to one call only; the other may be faster in
	// ending the link.
	if e := a.next("down"); !errors.Is(e.err, syscall.ETIMEDOUT) && !errors.Is(e.err, syscall.EPIPE) && !errors.Is(e.err, errConnectionClosed) {
		t.Errorf("down for %v", e.err)
	}
	p.Heal()
	a.next("up")
	a.stop()
	b.stop()
}

// A body that changes after it was queued is a bad checksum at the peer, which
// says so and takes the link down; the next link works.
func TestBadChecksum(t *testing.T) {
	a, b := twoNodes(t, newAuthority(t))
	c := a.next("up").conn
	b.next("up")
	payload := body(4096, 1)
	c.Queue(wire.Data, &wire.Msg{Type: wire.Write, Off: 8192, Len: 4096}, payload)
	payload[100] ^= 1
	c.Kick(wire.Data, true)
	e := b.next("down")
	if !errors.Is(e.err, wire.ErrSum) || !strings.Contains(e.err.Error(), "Write") || !strings.Contains(e.err.Error(), "off=8192") {
		t.Errorf("down for %v", e.err)
	}
	a.next("down")
	b.log.waitFor(t, "link down", "peer=a", "checksum does not match")
	b.next("up")
	c = a.next("up").conn
	c.Send(wire.Data, &wire.Msg{Type: wire.Write, Len: 4096}, true, payload)
	e = b.next("recv")
	e.msg.Release()
	a.stop()
	b.stop()
}

// A frame that yamux carries and that is no frame.
func TestGarbageInChannel(t *testing.T) {
	a, b := twoNodes(t, nil)
	c := a.next("up").conn
	b.next("up")
	// The peer may hang up over it before this Write has returned; what counts
	// is why it did.
	_, _ = c.streams[wire.Bulk].Write(bytes.Repeat([]byte("x"), 100))
	if e := b.next("down"); !errors.Is(e.err, wire.ErrMagic) || !strings.Contains(e.err.Error(), "read bulk") {
		t.Errorf("down for %v", e.err)
	}
	if e := a.next("down"); e.err == nil {
		t.Error("down for nothing")
	}
	a.next("up")
	b.next("up")
	a.stop()
	b.stop()
}

// A peer that ends one channel and keeps the others does not keep the link.
func TestHalfClosed(t *testing.T) {
	a, b := twoNodes(t, nil)
	c := a.next("up").conn
	b.next("up")
	c.streams[wire.Data].Close()
	if e := b.next("down"); !errors.Is(e.err, ErrClosedByPeer) {
		t.Errorf("down for %v", e.err)
	}
	a.next("down")
	a.stop()
	b.stop()
}

// A handler that does not come back from Recv holds its own channel and
// nothing else; nothing is lost when it does come back.
func TestSlowReader(t *testing.T) {
	la, lb := listen(t), listen(t)
	gate := make(chan struct{})
	h := newRecorder(t)
	got := make(chan uint64, 1000)
	h.recv = func(c *Conn, ch wire.Channel, m *wire.Msg, more bool) {
		if ch == wire.Data {
			<-gate
			got <- m.Tag
		} else {
			c.Send(ch, &wire.Msg{Type: wire.Control, Tag: m.Tag}, true)
		}
		m.Release()
	}
	cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
	cfgB.Handler = h
	a, b := start(t, nodeConfig("a", la, Peer{"b", lb.Addr().String()})), start(t, cfgB)
	c := a.next("up").conn
	b.next("up")
	payload := body(1<<20, 1)
	const frames = 100
	for i := range uint64(frames) {
		c.Send(wire.Data, &wire.Msg{Type: wire.Write, Tag: i, Len: 1 << 20}, false, payload)
	}
	for i := range uint64(20) {
		c.Send(wire.Ctl, &wire.Msg{Type: wire.Control, Tag: i}, true)
		if e := a.next("recv"); e.msg.Tag != i {
			t.Errorf("got %v", &e.msg)
		}
	}
	close(gate)
	for i := range uint64(frames) {
		if tag := <-got; tag != i {
			t.Fatalf("frame %d arrived as number %d", tag, i)
		}
	}
	a.stop()
	b.stop()
}

// LinkDown's promise: whoever was writing what to a peer that does not read,
// afterwards the bodies are the caller's again. The race detector sees a
// reader that is left; recorder.LinkDown looks into the queues.
func TestNoReferenceAfterLinkDown(t *testing.T) {
	both(t, func(t *testing.T, ca *authority) {
		la, lb := listen(t), listen(t)
		gate := make(chan struct{})
		h := newRecorder(t)
		h.recv = func(_ *Conn, _ wire.Channel, m *wire.Msg, _ bool) { <-gate; m.Release() }
		cfgA := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
		cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
		cfgB.Handler = h
		if ca != nil {
			ca.use(t, &cfgA, "a")
			ca.use(t, &cfgB, "b")
		}
		a, b := start(t, cfgA), start(t, cfgB)
		c := a.next("up").conn
		b.next("up")
		var wg sync.WaitGroup
		var bodies [8][]byte
		stop := make(chan struct{})
		for w := range bodies {
			bodies[w] = body((w+1)*30000, byte(w))
			wg.Go(func() {
				ch, typ := wire.Data, wire.Write
				if w%4 == 3 {
					ch, typ = wire.Bulk, wire.RsData
				}
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					if i < 500 {
						c.Send(ch, &wire.Msg{Type: typ, Len: uint32(len(bodies[w]))}, w < 4, bodies[w])
					} else {
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		time.Sleep(150 * time.Millisecond) // the window is full, writers block
		began := time.Now()
		c.Close(errors.New("enough"))
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("Close took %v", took)
		}
		a.next("down")
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("LinkDown came after %v", took)
		}
		close(stop)
		wg.Wait()
		for _, b := range bodies {
			clear(b)
		}
		close(gate)
		a.stop()
		b.stop()
	})
}

// Queue never blocks, and does not grow for ever either.
func TestQueueFull(t *testing.T) {
	la, lb := listen(t), listen(t)
	gate := make(chan struct{})
	h := newRecorder(t)
	h.recv = func(_ *Conn, _ wire.Channel, m *wire.Msg, _ bool) { <-gate; m.Release() }
	cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
	cfgB.Handler = h
	a, b := start(t, nodeConfig("a", la, Peer{"b", lb.Addr().String()})), start(t, cfgB)
	c := a.next("up").conn
	b.next("up")
	payload := body(4096, 1)
	for range 3*maxQueuedFrames + 1 {
		c.Send(wire.Data, &wire.Msg{Type: wire.Write, Len: 4096}, false, payload)
	}
	close(gate)
	if e := a.next("down"); !errors.Is(e.err, ErrQueueFull) {
		t.Errorf("down for %v", e.err)
	}
	a.stop()
	b.stop()
}

func TestWrongChannelPanics(t *testing.T) {
	a, b := twoNodes(t, nil)
	c := a.next("up").conn
	b.next("up")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("an Ack was queued on ctl")
			}
		}()
		c.Queue(wire.Ctl, &wire.Msg{Type: wire.Ack})
	}()
	a.stop()
	b.stop()
}

// A thousand idle connections and garbage of all kinds: the link that is up
// does not notice, and a peer that comes meanwhile gets in.
func TestStrangers(t *testing.T) {
	both(t, func(t *testing.T, ca *authority) {
		la, lb := listen(t), listen(t)
		cfgA := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
		cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
		if ca != nil {
			ca.use(t, &cfgA, "a")
			ca.use(t, &cfgB, "b")
		}
		a, b := start(t, cfgA), start(t, cfgB)
		c := a.next("up").conn
		b.next("up")
		var conns []net.Conn
		for i := range 1000 {
			nc, err := net.Dial("tcp", lb.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, nc)
			switch i % 4 {
			case 1:
				nc.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
			case 2:
				nc.Write(bytes.Repeat([]byte{0xff}, 1000))
			case 3:
				nc.Write((&preface{cluster: "nfs1", node: "a"}).encode()[:20])
			}
		}
		for i := range uint64(100) {
			c.Send(wire.Ctl, &wire.Msg{Type: wire.Control, Tag: i}, true)
			if e := b.next("recv"); e.msg.Tag != i {
				t.Errorf("got %v", &e.msg)
			}
		}
		b.m.mu.Lock()
		n := len(b.m.strangers)
		b.m.mu.Unlock()
		if n > maxStrangers {
			t.Errorf("%d strangers are kept", n)
		}
		// a restarts while they are there.
		a.stop()
		a.next("down")
		b.next("down")
		cfgA.Listener, cfgA.Listen = nil, la.Addr().String()
		a = start(t, cfgA)
		a.next("up")
		b.next("up")
		if lines := strings.Count(b.log.String(), "connection refused"); lines == 0 || lines > 3 {
			t.Errorf("%d lines about strangers in the log", lines)
		}
		for _, nc := range conns {
			nc.Close()
		}
		a.stop()
		b.stop()
	})
}

// Half a preface has five seconds; a link whose channels are never opened too.
func TestDeadlines(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for deadlines")
	}
	lb := listen(t)
	b := start(t, nodeConfig("b", lb, Peer{"a", "127.0.0.1:1"}))
	began := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		nc := dialRaw(t, lb)
		defer nc.Close()
		nc.Write((&preface{cluster: "nfs1", node: "a"}).encode()[:20])
		nc.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := nc.Read(make([]byte, 1))
		if took := time.Since(began); err == nil || took < 4*time.Second || took > 8*time.Second {
			t.Errorf("half a preface: %v after %v", err, took)
		}
	})
	wg.Go(func() { // the first half of a link, without the second
		nc := dialRaw(t, lb)
		defer nc.Close()
		introduce(t, nc, &preface{version: 1, oldest: 1, cluster: "nfs1", node: "a", link: linkID{9}})
		nc.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := nc.Read(make([]byte, 1))
		if err != io.EOF {
			t.Errorf("half a link: %v", err)
		}
	})
	wg.Wait()
	main, bulk := dialRaw(t, lb), dialRaw(t, lb)
	defer main.Close()
	defer bulk.Close()
	introduce(t, bulk, &preface{version: 1, oldest: 1, cluster: "nfs1", node: "a", role: roleBulk, link: linkID{8}})
	introduce(t, main, &preface{version: 1, oldest: 1, cluster: "nfs1", node: "a", link: linkID{8}})
	if p, err := readPreface(main); err != nil || p.verdict != verdictGo {
		t.Errorf("no go: %v", err)
	}
	b.log.waitFor(t, "no link", "peer=a", "open channel ctl: no answer within 5s")
	b.quiet(0)
	b.stop()
}

func dialRaw(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return nc
}

// introduce takes nc through the preface as a dialler that says p and returns
// the answer.
func introduce(t *testing.T, nc net.Conn, p *preface) *preface {
	t.Helper()
	nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := nc.Write(p.encode()); err != nil {
		t.Error(err)
	}
	answer, err := readPreface(nc)
	if err != nil {
		t.Errorf("answer: %v", err)
		return &preface{}
	}
	if answer.verdict == verdictOK {
		if _, err := nc.Write(p.encode()); err != nil {
			t.Error(err)
		}
	}
	nc.SetReadDeadline(time.Time{})
	return answer
}

// What a listener says to diallers that no Manager of ours would be.
func TestRawDialler(t *testing.T) {
	lb := listen(t)
	b := start(t, nodeConfig("b", lb, Peer{"a", "127.0.0.1:1"}, Peer{"c", "127.0.0.1:1"}))
	for _, tc := range []struct {
		p    preface
		want string
	}{
		{preface{version: 1, oldest: 1, cluster: "nfs1", node: "c"}, `node "c" must not dial: links are dialled by the node whose name sorts first`},
		{preface{version: 1, oldest: 1, cluster: "nfs1", node: "b"}, `node calls itself "b", as we do`},
		{preface{version: 0, oldest: 0, cluster: "nfs1", node: "a"}, `protocol versions 0 to 0 and 1 to 1 have none in common`},
		{preface{version: 1, oldest: 1, cluster: "", node: ""}, `cluster "" is not ours ("nfs1")`},
	} {
		nc := dialRaw(t, lb)
		if got := introduce(t, nc, &tc.p); got.verdict != verdictRefused || got.text != tc.want {
			t.Errorf("%+v: answer %d %q", tc.p, got.verdict, got.text)
		}
		nc.Close()
	}
	// The same role twice with one id is not a pair; a newer first half drives
	// out the older.
	one, two := dialRaw(t, lb), dialRaw(t, lb)
	p := &preface{version: 1, oldest: 1, cluster: "nfs1", node: "a", link: linkID{1}}
	introduce(t, one, p)
	time.Sleep(50 * time.Millisecond)
	introduce(t, two, p)
	one.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := one.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the older half: %v", err)
	}
	b.quiet(0)
	b.stop() // with a half that waits
	one.Close()
	two.Close()
}

func TestPreface(t *testing.T) {
	p := preface{
		version: 3, oldest: 2, role: roleBulk, verdict: verdictRefused, features: 1 << 63,
		link: linkID{1, 2, 3, 15: 4}, cluster: "nfs1", node: "a", text: "no",
	}
	got, err := readPreface(bytes.NewReader(p.encode()))
	if err != nil || *got != p {
		t.Fatalf("got %+v, %v", got, err)
	}
	long := p
	long.text = strings.Repeat("x", 2000)
	if got, err := readPreface(bytes.NewReader(long.encode())); err != nil || len(got.text) != maxText {
		t.Errorf("a long text: %v", err)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"role":      func(b []byte) []byte { b[12] = 2; return b },
		"verdict":   func(b []byte) []byte { b[13] = 3; return b },
		"versions":  func(b []byte) []byte { b[10] = 9; return b },
		"reserved":  func(b []byte) []byte { b[18] = 1; return b },
		"long text": func(b []byte) []byte { b[17] = 0xff; return b },
	} {
		b := spoil(p.encode())
		binary.LittleEndian.PutUint32(b[44:], prefaceSum(b))
		if _, err := readPreface(bytes.NewReader(b)); !errors.Is(err, ErrPreface) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := p.encode()
	for i := range b {
		b[i] ^= 4
		if _, err := readPreface(bytes.NewReader(b)); err == nil {
			t.Errorf("damage to byte %d is not noticed", i)
		}
		b[i] ^= 4
		if _, err := readPreface(bytes.NewReader(b[:i])); err == nil {
			t.Errorf("%d bytes are a preface", i)
		}
	}
	if printable("a\x1b[31m\nb\xff") != "a?[31m?b?" {
		t.Errorf("printable: %q", printable("a\x1b[31m\nb\xff"))
	}
}

func FuzzPreface(f *testing.F) {
	f.Add((&preface{version: 1, oldest: 1, cluster: "nfs1", node: "a"}).encode())
	f.Add((&preface{version: 2, oldest: 1, verdict: verdictRefused, text: "because\n", node: "b"}).encode())
	f.Add((&preface{version: 1, oldest: 2}).encode())
	f.Add((&preface{version: 1, oldest: 1, cluster: "nfs1", node: "b"}).encode())
	f.Add((&preface{version: 1, oldest: 1, role: roleCount}).encode())
	f.Add((&preface{version: 1, oldest: 1, verdict: verdicts}).encode())
	f.Add((&preface{version: 1, oldest: 1, text: strings.Repeat("x", maxText+1)}).encode())
	whole := (&preface{version: 1, oldest: 1, cluster: "nfs1", node: "a"}).encode()
	for _, n := range []int{0, 7, 8, prefaceSize - 1, prefaceSize, len(whole) - 1} {
		f.Add(whole[:n])
	}
	for _, at := range []int{0, 17, 18, 44} { // magic, length of the text, reserved, checksum
		b := bytes.Clone(whole)
		b[at] ^= 0xff
		f.Add(b)
	}
	f.Add([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252}) // TLS
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= prefaceSize {
			n := prefaceSize + int(b[14]) + int(b[15]) + int(binary.LittleEndian.Uint16(b[16:]))
			if n <= len(b) {
				b = b[:n]
				binary.LittleEndian.PutUint32(b[44:], prefaceSum(b))
			}
		}
		p, err := readPreface(bytes.NewReader(b))
		if err != nil {
			return
		}
		m := &Manager{version: 1, oldest: 1, cfg: Config{Cluster: "nfs1", Self: "b"}} // without peers
		if m.check(p, "", "") == nil || m.check(p, "a", "a") == nil {
			t.Fatalf("%+v is taken for a peer", p)
		}
		again, err := readPreface(bytes.NewReader(p.encode()))
		if err != nil || *again != *p {
			t.Fatalf("%+v became %+v (%v)", p, again, err)
		}
		if raw := string(b[len(b)-int(binary.LittleEndian.Uint16(b[16:])):]); raw == p.text && !bytes.Equal(p.encode(), b) {
			t.Fatalf("%x encodes to %x", b, p.encode())
		}
	})
}

// wireTap is a net.Conn that records each write.
type wireTap struct {
	net.Conn
	writes [][]byte
	err    error
}

func (w *wireTap) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.writes = append(w.writes, bytes.Clone(b))
	return len(b), nil
}

func yamuxHdr(typ byte, length uint32) []byte {
	h := make([]byte, yamuxHeader)
	h[1] = typ
	binary.BigEndian.PutUint32(h[8:], length)
	return h
}

// Header and body leave in one write; a header without a body leaves at once.
func TestJoiner(t *testing.T) {
	tap := &wireTap{}
	s := newSock(tap)
	j := newJoiner(s, s)
	write := func(b []byte, wantErr error) {
		t.Helper()
		n, err := j.Write(b)
		if !errors.Is(err, wantErr) || (err == nil && n != len(b)) {
			t.Fatalf("wrote %d of %d, %v", n, len(b), err)
		}
	}
	var want []byte
	for typ := byte(1); typ <= 3; typ++ { // window update, ping, go away
		write(yamuxHdr(typ, 12), nil)
		want = append(want, yamuxHdr(typ, 12)...)
		if len(tap.writes) != int(typ) {
			t.Fatalf("a header of type %d was delayed", typ)
		}
	}
	write(yamuxHdr(0, 0), nil)
	want = append(want, yamuxHdr(0, 0)...)
	if len(tap.writes) != 4 {
		t.Fatal("an empty data header was delayed")
	}
	for i, size := range []int{1, 12, 4096, joinSize - yamuxHeader, joinSize, 50000, 200000} {
		tap.writes = tap.writes[:4+i]
		payload := body(size, 3)
		if size == 12 {
			payload = yamuxHdr(0, 5) // a body that looks like a header is none
		}
		write(yamuxHdr(0, uint32(size)), nil)
		if len(tap.writes) != 4+i {
			t.Fatal("a data header did not wait for its body")
		}
		write(payload, nil)
		var got []byte
		for _, w := range tap.writes[4+i:] {
			got = append(got, w...)
		}
		if frame := append(yamuxHdr(0, uint32(size)), payload...); !bytes.Equal(got, frame) {
			t.Fatalf("body of %d: other bytes", size)
		} else {
			want = append(want, frame...)
		}
		// (A net.Buffers on something that is no TCP socket is two writes.)
		if n := len(tap.writes) - 4 - i; n != 1 && size < readChunk {
			t.Errorf("body of %d: %d writes", size, n)
		}
		tap.writes = append(tap.writes[:4+i], got)
	}
	if got := bytes.Join(tap.writes, nil); !bytes.Equal(got, want) {
		t.Error("other bytes in all")
	}
	if s.sent.Load() != uint64(len(want)) {
		t.Errorf("sent counts %d of %d", s.sent.Load(), len(want))
	}
	tap.err = io.ErrClosedPipe
	write(yamuxHdr(0, 100), nil)
	write(make([]byte, 100), io.ErrClosedPipe)
	if !errors.Is(j.cause(), io.ErrClosedPipe) {
		t.Errorf("cause: %v", j.cause())
	}
}

func TestBackoff(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // no pause is waited for, but all are computed
	b := newBackoff()
	for _, want := range []time.Duration{50, 100, 200, 400, 800, 1000, 1000} {
		if b.next != want*time.Millisecond {
			t.Errorf("pause is %v, want %v ms", b.next, want)
		}
		b.wait(ctx)
	}
	b.after(10*time.Millisecond, false)
	if b.next != backoffMax || b.now {
		t.Error("a link that did not last resets the backoff")
	}
	b.after(2*time.Second, false)
	if b.next != backoffMin || b.now {
		t.Error("a link that lasted does not reset the backoff")
	}
	b.after(10*time.Millisecond, true)
	if !b.now {
		t.Error("no immediate redial after an orderly end")
	}
	b.wait(ctx)
	b.after(10*time.Millisecond, true)
	if b.now {
		t.Error("two immediate redials in a row of links that did not last")
	}
	b.wait(ctx)
	b.after(2*time.Second, true)
	b.wait(ctx)
	b.after(2*time.Second, true)
	if !b.now {
		t.Error("no immediate redial after a link that lasted")
	}
}

// A peer that is not there yet is found when it comes, and status says
// meanwhile why not.
func TestPeerComesLate(t *testing.T) {
	la, lb := listen(t), listen(t)
	addr := lb.Addr().String()
	lb.Close()
	a := start(t, nodeConfig("a", la, Peer{"b", addr}))
	a.log.waitFor(t, "no link", "peer=b", addr, "connection refused")
	time.Sleep(300 * time.Millisecond)
	if n := strings.Count(a.log.String(), "no link"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if e := a.m.PeerError("b"); !strings.Contains(e, "connection refused") {
		t.Errorf("PeerError = %q", e)
	}
	cfgB := nodeConfig("b", nil, Peer{"a", la.Addr().String()})
	cfgB.Listen = addr
	b := start(t, cfgB)
	a.next("up")
	b.next("up")
	b.stop()
	a.stop()
}

// Garbage below the channels, where only yamux sees it: its reason is kept.
func TestGarbageInSession(t *testing.T) {
	a, b := twoNodes(t, nil)
	c := a.next("up").conn
	b.next("up")
	if _, err := c.ends[roleMain].sock.Write(bytes.Repeat([]byte{0xee}, 100)); err != nil {
		t.Fatal(err)
	}
	if e := b.next("down"); !errors.Is(e.err, yamux.ErrInvalidVersion) {
		t.Errorf("down for %v", e.err)
	}
	a.next("down")
	a.next("up")
	b.next("up")
	a.stop()
	b.stop()
}

// What a dialler says about listeners that no Manager of ours would be.
func TestRawListener(t *testing.T) {
	ok := func(in *preface) *preface {
		return &preface{version: 1, oldest: 1, cluster: "nfs1", node: "b", role: in.role, link: in.link}
	}
	for _, tc := range []struct {
		name   string
		answer func(in *preface) []byte
		goes   func(in *preface) []byte
		want   string
	}{
		{"silence", func(*preface) []byte { return nil }, nil, "EOF"},
		{"another protocol", func(*preface) []byte { return []byte("220 mail ESMTP\r\n") }, nil, ErrNotPreface.Error()},
		{"half an answer", func(p *preface) []byte { return ok(p).encode()[:50] }, nil, "EOF"},
		{"another link", func(p *preface) []byte { q := ok(p); q.link[3]++; return q.encode() }, nil, "refused: answer to another connection"},
		{"another cluster", func(p *preface) []byte { q := ok(p); q.cluster = "x"; return q.encode() }, nil, `refused: cluster "x" is not ours ("nfs1")`},
		{"no go", func(p *preface) []byte { return ok(p).encode() }, func(*preface) []byte { return nil }, "while the peer ends the previous link: EOF"},
		{"ok for go", func(p *preface) []byte { return ok(p).encode() }, func(p *preface) []byte { return ok(p).encode() }, "not the go of this link"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := listen(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				var first net.Conn
				for {
					nc, err := l.Accept()
					if err != nil {
						return
					}
					p, err := readPreface(nc)
					if err == nil {
						nc.Write(tc.answer(p))
						if tc.goes != nil {
							_, err = readPreface(nc)
						}
					}
					if err == nil && tc.goes != nil && p.role == roleMain {
						first = nc
						continue
					}
					if first != nil {
						first.Write(tc.goes(p))
						first.Close()
						first = nil
					}
					nc.Close()
				}
			})
			a := start(t, nodeConfig("a", listen(t), Peer{"b", l.Addr().String()}))
			a.log.waitFor(t, "no link", "peer=b", strings.ReplaceAll(tc.want, `"`, `\"`))
			a.quiet(0)
			a.stop()
			l.Close()
			wg.Wait()
		})
	}
}

// What stands in a certificate, or does not.
func TestCertificates(t *testing.T) {
	ca := newAuthority(t)
	for _, tc := range []struct {
		name  string
		spoil func(*Config)
		want  string
	}{
		{"no name", func(c *Config) {
			c.PeerNode = func(tls.ConnectionState) (string, error) { return "", nil }
		}, "certificate names no node"},
		{"none asked for", func(c *Config) {
			lax := c.ServerTLS.Clone()
			lax.ClientAuth = tls.NoClientCert
			c.ServerTLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return lax, nil }
		}, "refused: no certificate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			la, lb := listen(t), listen(t)
			cfgA := nodeConfig("a", la, Peer{"b", lb.Addr().String()})
			cfgB := nodeConfig("b", lb, Peer{"a", la.Addr().String()})
			ca.use(t, &cfgA, "a")
			ca.use(t, &cfgB, "b")
			tc.spoil(&cfgB)
			a, b := start(t, cfgA), start(t, cfgB)
			b.log.waitFor(t, "connection refused", tc.want)
			a.stop()
			b.stop()
		})
	}
}

// Run ends with an error when its listener does, and takes its links along.
func TestListenerGone(t *testing.T) {
	a, b := twoNodes(t, nil)
	a.next("up")
	b.next("up")
	b.m.listener.Close()
	if err := <-b.done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
	b.next("down")
	a.next("down")
	a.stop()
	b.cancel()
}

// Queue and Kick cost no allocation of ours; yamux's own are not counted here.
func TestQueueAllocations(t *testing.T) {
	q := newQueue(func([]byte) error { return nil })
	payload := body(4096, 1)
	m := wire.Msg{Type: wire.Write, Len: 4096}
	parts := [][]byte{payload}
	if n := testing.AllocsPerRun(1000, func() {
		q.put(&m, parts)
		if err := q.kick(true); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a frame costs %v allocations", n)
	}
}

// The double buffer under its two writers: inline callers that leave after
// inlineRounds, and runWriter. A failing write kills the queue.
func TestQueueWriters(t *testing.T) {
	var got []byte
	boom := errors.New("boom")
	fail := false
	var q *queue
	rounds := 0
	q = newQueue(func(b []byte) error {
		got = append(got, b...)
		rounds++
		if rounds < 5 { // more comes while this is being written
			q.put(&wire.Msg{Type: wire.Ack, Tag: uint64(rounds)}, nil)
		}
		if fail {
			return boom
		}
		return nil
	})
	q.put(&wire.Msg{Type: wire.Ack}, nil)
	if err := q.kick(true); err != nil {
		t.Fatal(err)
	}
	if rounds != inlineRounds {
		t.Errorf("an inline caller wrote %d rounds", rounds)
	}
	done := make(chan error)
	go func() { done <- q.run() }()
	q.waitIdle()
	r := wire.NewReader(bytes.NewReader(got), wire.Data, &wire.Pool{})
	for i := range uint64(5) {
		var m wire.Msg
		if err := r.Next(&m); err != nil || m.Tag != i {
			t.Errorf("frame %d: %v, %v", i, &m, err)
		}
	}
	q.mu.Lock()
	fail = true
	q.mu.Unlock()
	q.put(&wire.Msg{Type: wire.Ack}, nil)
	if err := q.kick(false); err != nil {
		t.Errorf("a kick that does not write returns %v", err)
	}
	if err := <-done; err != boom {
		t.Errorf("run: %v", err)
	}
	before := len(got)
	q.put(&wire.Msg{Type: wire.Ack}, nil)
	if err := q.kick(true); err != nil || len(got) != before {
		t.Errorf("a dead queue wrote, or said %v", err)
	}
}
