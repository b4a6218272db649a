package permit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"tandem/failover/internal/nstest"
)

// renewAndDie makes this program renew a permission for so many milliseconds and
// then kill itself with SIGKILL.
const renewAndDie = "TANDEM_TEST_RENEW_AND_DIE"

func TestMain(m *testing.M) {
	if ms, err := strconv.Atoi(os.Getenv(renewAndDie)); err == nil {
		until := boottime() + int64(ms)*1e6
		p, err := New(guarded(port))
		if err == nil {
			err = p.Renew(context.Background(), until, true)
		}
		if err == nil {
			fmt.Println(until)
			err = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func boottime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

const (
	port  = 2049
	other = 2050
	ours  = "10.9.0.1"
	its   = "10.9.0.2"
)

var (
	held4 = netip.MustParseAddr("10.9.0.9")
	held6 = netip.MustParseAddr("2001:db8::9")
)

func guarded(ports ...uint16) Config {
	return Config{Cluster: "nfs-1", Node: "a.b", Ports: ports, Addresses: []netip.Addr{held4, held6}, Boottime: boottime}
}

// host is this namespace with a peer, and the permission in it.
type host struct {
	*testing.T
	Permit
	peer *nstest.Peer

	// sending is held from the stamp of a datagram until it is sent, and while the
	// permission is changed: none is stamped before a change and sent after it.
	sending sync.Mutex
}

// change calls f while nothing is sent, and returns when that was.
func (h *host) change(f func() error) (done int64) {
	h.Helper()
	h.sending.Lock()
	defer h.sending.Unlock()
	h.ok(f())
	return boottime()
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{T: t, peer: nstest.NewPeer(t)}
	nstest.IP(t, "addr add "+ours+"/24 dev eth0")
	nstest.IP(t, "addr add 2001:db8::1/64 dev eth0 nodad")
	h.peer.Run("ip", "addr", "add", its+"/24", "dev", "eth0")
	h.peer.Run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	var err error
	if h.Permit, err = New(guarded(port)); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) ok(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) renew(d time.Duration) (until int64) {
	h.Helper()
	h.change(func() error {
		until = boottime() + int64(d)
		return h.Renew(h.Context(), until, true)
	})
	return until
}

// stream sends a datagram a millisecond from the service's port to the peer, each with
// the time just before it was sent, and collects those that arrive.
type stream struct {
	h    *host
	stop chan struct{}
	wg   sync.WaitGroup

	mu  sync.Mutex
	got []int64
}

func (h *host) stream() *stream {
	h.Helper()
	s := &stream{h: h, stop: make(chan struct{})}
	var in *net.UDPConn
	h.peer.Do(func() {
		var err error
		in, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(its), Port: 700})
		if err != nil {
			h.Error(err)
		}
	})
	out, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(ours), Port: port}, &net.UDPAddr{IP: net.ParseIP(its), Port: 700})
	h.ok(err)
	s.wg.Go(func() {
		defer out.Close()
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			// A dropped packet is EPERM here.
			h.sending.Lock()
			_, _ = out.Write(binary.NativeEndian.AppendUint64(nil, uint64(boottime())))
			h.sending.Unlock()
		}
	})
	s.wg.Go(func() {
		defer in.Close()
		buf := make([]byte, 64)
		for {
			h.ok(in.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
			n, err := in.Read(buf)
			if err == nil && n == 8 {
				s.mu.Lock()
				s.got = append(s.got, int64(binary.NativeEndian.Uint64(buf)))
				s.mu.Unlock()
			}
			select {
			case <-s.stop:
				if err != nil {
					return
				}
			default:
			}
		}
	})
	h.Cleanup(s.end)
	return s
}

func (s *stream) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.wg.Wait()
}

// between counts what arrived of that which was sent in [from, to).
func (s *stream) between(from, to int64) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, at := range s.got {
		if at >= from && at < to {
			n++
		}
	}
	return n
}

const (
	ms = int64(time.Millisecond)

	// slack is for the kernel's ticks, 4 or 10 ms. G is longer than L by L/10 + 100 ms.
	slack = 20 * ms
)

// The four promises of the rule, on this kernel.
func TestReplies(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := newHost(t)
	s := h.stream()
	ctx := t.Context()

	free := boottime()
	time.Sleep(100 * time.Millisecond)
	installed := h.change(func() error { return h.Install(ctx) })
	time.Sleep(100 * time.Millisecond)
	until := h.renew(600 * time.Millisecond)
	granted := boottime()
	time.Sleep(800 * time.Millisecond)

	// Renewed in time, and the end moves.
	first := h.renew(600 * time.Millisecond)
	again := boottime()
	time.Sleep(300 * time.Millisecond)
	second := h.renew(800 * time.Millisecond)
	time.Sleep(time.Second)

	// To a nearer end too.
	h.renew(10 * time.Second)
	nearer := h.renew(500 * time.Millisecond)
	time.Sleep(600 * time.Millisecond)

	h.renew(10 * time.Second)
	long := boottime()
	time.Sleep(100 * time.Millisecond)
	before := boottime()
	blocked := h.change(func() error { return h.Block(ctx) })
	time.Sleep(100 * time.Millisecond)
	var end int64
	removed := h.change(func() error { end = boottime(); return h.Remove(ctx) })
	time.Sleep(100 * time.Millisecond)
	s.end()

	for _, tc := range []struct {
		what     string
		from, to int64
		passes   bool
	}{
		{"without rules", free, free + 90*ms, true},
		{"installed", installed, until - 600*ms, false},
		{"(a) while renewed", granted, until - slack, true},
		{"(b) after the timeout", until + slack, first - 600*ms, false},
		{"renewed again", again, first - slack, true},
		{"(c) after the first end, before the second", first + slack, second - slack, true},
		{"after the second end", second + slack, second + 150*ms, false},
		{"after a nearer end", nearer + slack, nearer + 80*ms, false},
		{"before Block", long, before, true},
		{"(d) after Block", blocked, end, false},
		{"after Remove", removed, removed + 90*ms, true},
	} {
		n := s.between(tc.from, tc.to)
		t.Logf("%s: %d datagrams in %d ms", tc.what, n, (tc.to-tc.from)/ms)
		// The sender's ticks may come late on a busy machine, so "passes" asks for a few.
		if tc.passes && n < 5 || !tc.passes && n > 0 {
			t.Errorf("%s: %d datagrams passed", tc.what, n)
		}
	}
	var last int64
	for _, at := range s.got {
		if at < until+100*ms {
			last = max(last, at)
		}
	}
	t.Logf("the last one passed %v before the end of the first permission", time.Duration(until-last))
}

// The kernel alone ends the permission: the process that renewed it is dead.
func TestExpiryWithoutAProcess(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := newHost(t)
	h.ok(h.Install(t.Context()))
	s := h.stream()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), renewAndDie+"=1500")
	out, err := cmd.Output()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("%v %s", err, out)
	}
	dead := boottime()
	until, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	h.ok(err)
	time.Sleep(time.Duration(until-dead) + 300*time.Millisecond)
	s.end()
	if n := s.between(dead, until-slack); n < 5 {
		t.Errorf("%d datagrams passed before the end", n)
	}
	if n := s.between(until+slack, boottime()); n > 0 {
		t.Errorf("%d datagrams passed after it", n)
	}
}

// tcp is a connection to a server on port of this host, from another namespace or from
// here.
type tcp struct {
	h              *host
	client, server net.Conn
}

func (h *host) tcp(network, address string, from func(func())) *tcp {
	h.Helper()
	l, err := net.Listen(network, address)
	h.ok(err)
	defer l.Close()
	c := &tcp{h: h}
	from(func() {
		d := net.Dialer{Timeout: 5 * time.Second}
		if c.client, err = d.Dial(network, address); err != nil {
			h.Error(err)
		}
	})
	h.ok(err)
	c.server, err = l.Accept()
	h.ok(err)
	h.Cleanup(func() { c.client.Close(); c.server.Close() })
	return c
}

// reply sends one to the client and returns whether it came within d.
func (c *tcp) reply(text string, d time.Duration) bool {
	c.h.Helper()
	if _, err := c.server.Write([]byte(text)); err != nil {
		c.h.Fatal(err)
	}
	return c.comes(text, d)
}

func (c *tcp) comes(text string, d time.Duration) bool {
	c.h.Helper()
	c.h.ok(c.client.SetReadDeadline(time.Now().Add(d)))
	got := make([]byte, len(text))
	_, err := io.ReadFull(c.client, got)
	if err == nil && string(got) != text {
		c.h.Fatalf("got %q", got)
	}
	return err == nil
}

func here(f func()) { f() }

// TCP, and clients on this very machine.
func TestTCPAndLoopback(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := newHost(t)
	h.ok(h.Install(t.Context()))
	h.renew(time.Minute)
	// Replies to a peer, over loopback, and over an own address.
	guardedBy := map[string]*tcp{
		"peer":     h.tcp("tcp", ours+":2049", h.peer.Do),
		"peer, 6":  h.tcp("tcp", "[2001:db8::1]:2049", h.peer.Do),
		"lo":       h.tcp("tcp", "127.0.0.1:2049", here),
		"lo, 6":    h.tcp("tcp", "[::1]:2049", here),
		"own":      h.tcp("tcp", ours+":2049", here),
		"not ours": h.tcp("tcp", ours+":2050", h.peer.Do),
	}
	for name, c := range guardedBy {
		if !c.reply("a", 5*time.Second) {
			t.Errorf("%s: nothing came while permitted", name)
		}
	}
	h.ok(h.Block(t.Context()))
	for name, c := range guardedBy {
		if name == "not ours" {
			if !c.reply("b", 5*time.Second) {
				t.Error("another port is blocked")
			}
		} else if c.reply("b", 300*time.Millisecond) {
			t.Errorf("%s: it came while blocked", name)
		}
	}
	// A pause is no loss: TCP sends it again.
	h.renew(time.Minute)
	for name, c := range guardedBy {
		if name != "not ours" && !c.comes("b", 10*time.Second) {
			t.Errorf("%s: nothing came when permitted again", name)
		}
	}
}

// What TCP has kept of an earlier term is not sent in a later one, also when its process
// has closed it.
func TestCut(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := newHost(t)
	h.ok(h.Install(t.Context()))
	h.renew(time.Minute)
	open := []*tcp{h.tcp("tcp4", ours+":2049", h.peer.Do), h.tcp("tcp6", "[2001:db8::1]:2049", h.peer.Do),
		h.tcp("tcp", ":2049", here)} // a socket for both
	closed := h.tcp("tcp4", ours+":2049", h.peer.Do)
	bystander := h.tcp("tcp4", ours+":2050", h.peer.Do)
	listener, err := net.Listen("tcp", ":2049")
	h.ok(err)
	defer listener.Close()

	h.ok(h.Block(t.Context()))
	for _, c := range append(open, closed) {
		if c.reply("stale", 50*time.Millisecond) {
			t.Error("it came while blocked")
		}
	}
	h.ok(closed.server.Close())
	h.ok(h.Cut(t.Context()))
	h.renew(time.Minute)
	for i, c := range append(open, closed) {
		if c.comes("s", 700*time.Millisecond) {
			t.Errorf("%d: a reply of the earlier term came", i)
		}
	}
	for i, c := range open {
		if _, err := c.server.Write([]byte("x")); err == nil {
			t.Errorf("%d: the server's socket is still there", i)
		}
	}
	if !bystander.reply("a", 5*time.Second) {
		t.Error("another port's connection is gone")
	}
	conn, err := net.Dial("tcp", "127.0.0.1:2049")
	if err != nil {
		t.Fatalf("the listener is gone: %v", err)
	}
	conn.Close()
	h.ok(h.Cut(t.Context())) // with nothing left
}

// answersFor says whether the peer finds out who has the address, in so long.
func (h *host) answersFor(a netip.Addr, wait time.Duration) bool {
	h.Helper()
	h.peer.Run("ip", "neigh", "flush", "dev", "eth0")
	h.peer.Do(func() {
		c, err := net.Dial("udp", netip.AddrPortFrom(a, other).String())
		if err == nil {
			_, err = c.Write([]byte("x"))
			c.Close()
		}
		if err != nil {
			h.Error(err)
		}
	})
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(h.peer.Run("ip", "neigh", "show", a.String(), "dev", "eth0"), "lladdr") {
			return true
		}
	}
	return false
}

// The address is silent by the same clock.
func TestAddresses(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := newHost(t)
	nstest.IP(t, "addr add "+held4.String()+"/24 dev eth0")
	nstest.IP(t, "addr add "+held6.String()+"/64 dev eth0 nodad")
	h.ok(h.Install(t.Context()))
	for _, a := range []netip.Addr{held4, held6} {
		h.ok(h.Block(t.Context()))
		if h.answersFor(a, 500*time.Millisecond) {
			t.Errorf("%v answers while blocked", a)
		}
		h.renew(time.Minute)
		if !h.answersFor(a, 5*time.Second) {
			t.Errorf("%v does not answer while permitted", a)
		}
	}
	h.ok(h.Block(t.Context()))
	for _, a := range []string{ours, "2001:db8::1"} {
		if !h.answersFor(netip.MustParseAddr(a), 5*time.Second) {
			t.Errorf("%s is not the service's, and does not answer", a)
		}
	}
}

// While the steps of the service start, its addresses are announced and its clients
// get no answer yet.
func TestAddressesBeforePorts(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	h := newHost(t)
	nstest.IP(t, "addr add "+held4.String()+"/24 dev eth0")
	h.ok(h.Install(t.Context()))
	s := h.stream()
	renew := func(answer bool) (done int64) {
		return h.change(func() error { return h.Renew(t.Context(), boottime()+int64(time.Minute), answer) })
	}
	for range 2 { // a term that answers, and the next one
		starting := renew(false)
		if !h.answersFor(held4, 5*time.Second) {
			t.Error("the address is not answered for")
		}
		time.Sleep(100 * time.Millisecond)
		var up int64
		h.change(func() error { up = boottime(); return h.Renew(t.Context(), up+int64(time.Minute), true) })
		if n := s.between(starting, up); n > 0 {
			t.Errorf("%d replies passed before the steps were up", n)
		}
		time.Sleep(200 * time.Millisecond)
		if n := s.between(up, boottime()); n < 5 {
			t.Errorf("%d replies passed after that", n)
		}
	}
}

// Somebody reloads the host's firewall; and what others have is left alone.
func TestOthersAndTheTable(t *testing.T) {
	if !nstest.Inside(t, "nft:nftables") {
		return
	}
	h := newHost(t)
	nft := func(args ...string) string {
		out, err := exec.Command("nft", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	const tables = "table inet other\ntable inet tandem/nfs-1/a.b\ntable arp tandem/nfs-1/a.b\n"
	nft("add table inet other")
	h.ok(h.Install(t.Context()))
	h.renew(time.Minute)
	if got := nft("list tables"); got != tables {
		t.Errorf("got %s", got)
	}
	rules := nft("list", "ruleset")
	for _, want := range []string{
		"tcp sport 2049 tcp sport != @ports counter packets 0 bytes 0 drop",
		"udp sport 2049 udp sport != @ports counter packets 0 bytes 0 drop",
		"arp saddr ip 10.9.0.9 arp saddr ip != @held4 counter packets 0 bytes 0 drop",
		"2049 timeout 59s", "10.9.0.9 timeout 59s", "2001:db8::9 timeout 59s",
		"type filter hook output priority filter; policy accept;",
	} {
		if !strings.Contains(rules, want) {
			t.Errorf("no %q in\n%s", want, rules)
		}
	}
	c := h.tcp("tcp", ours+":2049", h.peer.Do)

	nft("flush ruleset")
	h.ok(h.Block(t.Context()))
	if c.reply("a", 300*time.Millisecond) {
		t.Error("Block did not bring the rules back")
	}
	nft("flush ruleset")
	h.renew(time.Minute)
	if rules := nft("list ruleset"); !strings.Contains(rules, "tcp sport 2049 tcp sport != @ports") || !strings.Contains(rules, "2049 timeout") {
		t.Errorf("Renew did not bring the rules back:\n%s", rules)
	}
	if !c.comes("a", 10*time.Second) {
		t.Error("Renew did not bring the permission back")
	}

	// An earlier life had permission and other ports; the new one begins without.
	p, err := New(guarded(other))
	h.ok(err)
	h.renew(time.Minute)
	h.ok(p.Install(t.Context()))
	if rules := nft("list", "ruleset"); strings.Contains(rules, "2049") || strings.Contains(rules, "elements") {
		t.Errorf("got %s", rules)
	}
	nft("add table inet other")
	for range 2 {
		h.ok(h.Remove(t.Context()))
		if got := nft("list tables"); got != "table inet other\n" {
			t.Errorf("got %s", got)
		}
	}
}

// Drain keeps requests out and lets replies go; Admit lets them in again, and so does a new life.
func TestDrain(t *testing.T) {
	if !nstest.Inside(t, "nft:nftables") {
		return
	}
	h := newHost(t)
	h.ok(h.Admit(t.Context())) // before anything
	h.ok(h.Install(t.Context()))
	h.renew(time.Minute)
	request := func(c *tcp, text string, d time.Duration) bool {
		if _, err := c.client.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		h.ok(c.server.SetReadDeadline(time.Now().Add(d)))
		got := make([]byte, len(text))
		_, err := io.ReadFull(c.server, got)
		return err == nil && string(got) == text
	}
	ends := map[string]func() error{
		"Admit": func() error { return h.Admit(t.Context()) },
		"Install": func() error {
			return errors.Join(h.Install(t.Context()), h.Renew(t.Context(), boottime()+int64(time.Minute), true))
		},
	}
	for name, end := range ends {
		guarded, free := h.tcp("tcp", ours+":2049", h.peer.Do), h.tcp("tcp", ours+":2050", h.peer.Do)
		if !request(guarded, "a", 5*time.Second) {
			t.Fatal("no request comes in")
		}
		for range 2 {
			h.ok(h.Drain(t.Context()))
		}
		h.renew(time.Minute) // the lease goes on meanwhile
		if !guarded.reply("b", 5*time.Second) {
			t.Error("what was asked before is not answered")
		}
		if request(guarded, "c", 500*time.Millisecond) {
			t.Error("a request came in")
		}
		if !request(free, "d", 5*time.Second) {
			t.Error("another port is closed")
		}
		h.ok(end())
		h.ok(guarded.server.SetReadDeadline(time.Now().Add(10 * time.Second)))
		got := make([]byte, 1)
		if _, err := io.ReadFull(guarded.server, got); err != nil || got[0] != 'c' {
			t.Errorf("after %s the client's request does not come: %q %v", name, got, err)
		}
	}
	h.ok(h.Admit(t.Context()))
	if out, err := exec.Command("nft", "list", "ruleset").CombinedOutput(); err != nil || strings.Contains(string(out), "hook input") {
		t.Errorf("%s %v", out, err)
	}
}

// With Sources nothing leaves from the service's addresses without permission, whatever port it
// comes from; from the node's own it does.
func TestSources(t *testing.T) {
	if !nstest.Inside(t, "nft:nftables") {
		return
	}
	h := newHost(t)
	nstest.IP(t, "addr add "+held4.String()+"/24 dev eth0")
	nstest.IP(t, "addr add "+held6.String()+"/64 dev eth0 nodad")
	cfg := guarded(port)
	cfg.Sources = true
	p, err := New(cfg)
	h.ok(err)
	h.ok(p.Install(t.Context()))
	own6 := netip.MustParseAddr("2001:db8::1")
	// A connection to a port that nobody listens at is refused, if the first packet has left.
	leaves := func(from netip.Addr) bool {
		to := netip.MustParseAddr(its)
		if from.Is6() {
			to = netip.MustParseAddr("2001:db8::2")
		}
		d := net.Dialer{Timeout: 700 * time.Millisecond, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		conn, err := d.Dial("tcp", netip.AddrPortFrom(to, 9).String())
		if err == nil {
			conn.Close()
			return true
		}
		return errors.Is(err, unix.ECONNREFUSED)
	}
	for _, tc := range []struct {
		from      netip.Addr
		permitted bool
		want      bool
	}{
		{held4, false, false}, {held6, false, false}, {netip.MustParseAddr(ours), false, true}, {own6, false, true},
		{held4, true, true}, {held6, true, true},
	} {
		h.ok(p.Block(t.Context()))
		if tc.permitted {
			h.ok(p.Renew(t.Context(), boottime()+int64(time.Minute), false))
		}
		if got := leaves(tc.from); got != tc.want {
			t.Errorf("from %s, permitted %v: leaves %v", tc.from, tc.permitted, got)
		}
	}
	h.ok(p.Remove(t.Context()))
}

func TestRenewThatComesTooLate(t *testing.T) {
	if !nstest.Inside(t, "nft:nftables") {
		return
	}
	now, step := int64(time.Hour), int64(0)
	cfg := guarded(port)
	cfg.Boottime = func() int64 { now += step; return now }
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	elements := func() bool {
		out, err := exec.Command("nft", "list", "ruleset").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(out), "elements")
	}
	ctx := t.Context()
	for _, f := range []func() error{func() error { return p.Install(ctx) }, func() error { return p.Renew(ctx, now+int64(time.Minute), true) }} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	if !elements() {
		t.Fatal("not permitted")
	}
	// It is over already: the earlier permission goes too.
	for _, until := range []int64{now, now - 1, now + int64(time.Millisecond)/2} {
		step = int64(time.Millisecond)
		if err := p.Renew(ctx, until, true); !errors.Is(err, ErrLate) || elements() {
			t.Errorf("%v, permitted: %v", err, elements())
		}
	}
	// The agent was stopped for a minute between its look at the clock and the kernel's.
	step = int64(time.Minute)
	if err := p.Renew(ctx, now+step+int64(3*time.Second), true); !errors.Is(err, ErrLate) || elements() {
		t.Errorf("%v, permitted: %v", err, elements())
	}
}

func TestNew(t *testing.T) {
	ctx := t.Context()
	p, err := New(Config{})
	if err != nil || p != (None{}) {
		t.Fatalf("%T %v", p, err)
	}
	if err := errors.Join(p.Install(ctx), p.Renew(ctx, 1, true), p.Drain(ctx), p.Admit(ctx), p.Block(ctx), p.Cut(ctx), p.Remove(ctx)); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.Cluster = "" },
		func(c *Config) { c.Node = "" },
		func(c *Config) { c.Boottime = nil },
		func(c *Config) { c.Ports = []uint16{1, 0} },
		func(c *Config) { c.Addresses = []netip.Addr{{}} },
		func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		func(c *Config) { c.Addresses = []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")} },
	} {
		cfg := guarded(port)
		change(&cfg)
		if p, err := New(cfg); err == nil {
			t.Errorf("accepted %+v as %T", cfg, p)
		}
	}
}

// A context that is over reaches no kernel.
func TestContextIsOver(t *testing.T) {
	p, err := New(guarded(port))
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	for _, err := range []error{p.Install(ctx), p.Renew(ctx, boottime()+1e9, true), p.Block(ctx), p.Cut(ctx), p.Remove(ctx)} {
		if !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	}
}
