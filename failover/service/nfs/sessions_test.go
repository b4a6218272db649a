package nfs

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/failover/internal/nstest"
	"tandem/failover/internal/sockdiag"
)

func conn(local, remote string) sockdiag.Connection {
	return sockdiag.Connection{Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}

// The life of a session: written down by one server, reset by the next.
func TestSessions(t *testing.T) {
	const file = "/srv/nfs/" + sessionsFile
	k := newKernel(t)
	ctx := t.Context()
	one, two := conn("10.77.0.100:2049", "10.77.0.3:800"), conn("[2001:db8::9]:2049", "[2001:db8::3]:801")
	k.live = []sockdiag.Connection{two, one}
	s := newServer(k)
	ok(t, s.Start(ctx, term))
	ok(t, s.Check(ctx, term))
	if text, there := k.files[file]; there {
		t.Errorf("written before it is read: %q", text)
	}
	ok(t, s.Opened(ctx, term)) // the first server of all
	ok(t, s.Check(ctx, term))
	const want = "10.77.0.100:2049 10.77.0.3:800\n[2001:db8::9]:2049 [2001:db8::3]:801\n"
	if k.files[file] != want || len(k.tickled) > 0 {
		t.Errorf("%q, %v", k.files[file], k.tickled)
	}
	k.changes()
	ok(t, s.Check(ctx, term))
	if did := k.changes(); did != "" {
		t.Errorf("written again:\n%s", did)
	}

	// The agent restarts: what lives is left alone.
	s = newServer(k)
	ok(t, s.Check(ctx, term))
	ok(t, s.Opened(ctx, term))
	if len(k.tickled) > 0 {
		t.Errorf("%v", k.tickled)
	}

	// Another node, with the same volume; one client has come by itself, one came to an address
	// that is not here, and somebody has written nonsense.
	next := newKernel(t)
	next.files[file] = k.files[file] + "10.77.0.1:2049 10.77.0.4:800\n10.77.0.100:22 10.77.0.3:800\nx\n10.77.0.100:2049\n10.77.0.100:2049 [::1]:1\n"
	next.live = []sockdiag.Connection{two}
	next.deaf = netip.MustParseAddr("10.77.0.1")
	s = newServer(next)
	ok(t, s.Start(ctx, term))
	ok(t, s.Check(ctx, term))
	ok(t, s.Opened(ctx, term))
	if !slices.Equal(next.tickled, []sockdiag.Connection{one}) {
		t.Errorf("%v", next.tickled)
	}
	ok(t, s.Check(ctx, term))
	if got := next.files[file]; got != two.Local.String()+" "+two.Remote.String()+"\n" {
		t.Errorf("%q", got)
	}
	// The next term in this life reads before it writes, too.
	ok(t, s.Stop(ctx, term))
	next.files[file] = want
	ok(t, s.Start(ctx, term))
	ok(t, s.Check(ctx, term))
	if next.files[file] != want {
		t.Errorf("%q", next.files[file])
	}
	// What cannot be written is no reason to restart the server.
	ok(t, s.Opened(ctx, term))
	next.say["sh"] = errors.New("no space left on device")
	ok(t, s.Check(ctx, term))
}

func TestSessionsAreBounded(t *testing.T) {
	var all []sockdiag.Connection
	for i := range maxSessions + 10 {
		all = append(all, sockdiag.Connection{Local: netip.MustParseAddrPort("10.0.0.1:2049"), Remote: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(i+1))})
	}
	text := sessionsText(all)
	if n := strings.Count(text, "\n"); n != maxSessions || len(parseSessions(text+text)) != maxSessions {
		t.Error(n)
	}
}

// silence closes a connection without a word, as a power cut does.
func silence(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	ok(t, err)
	ok(t, raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1); err != nil {
			t.Error(err)
		}
	}))
	ok(t, c.Close())
}

// A real client, by IPv4 and IPv6, whose server went without a word.
func TestTickle(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	peer := nstest.NewPeer(t)
	nstest.IP(t, "addr add 10.9.0.1/24 dev eth0")
	nstest.IP(t, "addr add 2001:db8::1/64 dev eth0 nodad")
	peer.Run("ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")
	peer.Run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	m := machine{}
	for _, tc := range []struct{ address, noted string }{
		{"10.9.0.1:2049", ""},
		{"[2001:db8::1]:2049", ""},
		// The other node's own, which is not here: what the client knows leads here now.
		{"10.9.0.1:2049", "10.9.0.77:2049"},
	} {
		address := tc.address
		l, err := net.Listen("tcp", address)
		ok(t, err)
		var client net.Conn
		peer.Do(func() { client, err = net.Dial("tcp", address) })
		ok(t, err)
		server, err := l.Accept()
		ok(t, err)
		_, err = server.Write([]byte("x")) // so that its numbers are not the first
		ok(t, err)
		_, err = client.Read(make([]byte, 1))
		ok(t, err)
		all, err := m.sessions(t.Context(), 2049)
		want := conn(server.LocalAddr().String(), server.RemoteAddr().String())
		if err != nil || !slices.Equal(all, []sockdiag.Connection{want}) {
			t.Fatalf("%v %v, and not %v", all, err, want)
		}
		// A live one does not mind.
		ok(t, m.tickle(want))
		ends := func(d time.Duration) error {
			ok(t, client.SetReadDeadline(time.Now().Add(d)))
			_, err := client.Read(make([]byte, 1))
			return err
		}
		if err := ends(700 * time.Millisecond); !errors.Is(err, syscall.EAGAIN) && !strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: a live connection has ended: %v", address, err)
		}
		silence(t, server)
		if tc.noted != "" {
			want.Local = netip.MustParseAddrPort(tc.noted)
		}
		if err := ends(300 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the client was told: %v", address, err)
		}
		ok(t, m.tickle(want))
		if err := ends(5 * time.Second); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the client still waits: %v", address, err)
		}
		if all, err := m.sessions(t.Context(), 2049); err != nil || len(all) > 0 {
			t.Errorf("%v %v", all, err)
		}
		client.Close()
		l.Close()
	}
	if err := m.tickle(conn("10.9.0.77:2049", "198.51.100.1:800")); err == nil {
		t.Error("sent to where no route leads")
	}
}
