package link

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"tandem/blockrepl/wire"
)

// asks is how node self of n's test cluster dials n.
func asks(t *testing.T, ca *authority, self, n string, address net.Addr) ControlDial {
	d := ControlDial{Self: self, Cluster: "nfs1", Node: n, Address: address.String()}
	if ca != nil {
		var cfg Config
		ca.use(t, &cfg, self)
		d.TLS, d.PeerNode = cfg.ClientTLS(n), cfg.PeerNode
	}
	return d
}

// TestControl: either node asks the other, whichever of them dials the link, and
// the link does not notice.
func TestControl(t *testing.T) {
	both(t, func(t *testing.T, ca *authority) {
		a, b := twoNodes(t, ca)
		ua, ub := a.next("up"), b.next("up")
		for _, tc := range []struct {
			self string
			to   *node
			name string
		}{{"a", b, "b"}, {"b", a, "a"}} {
			c, err := DialControl(t.Context(), asks(t, ca, tc.self, tc.name, tc.to.m.Addr()))
			if err != nil {
				t.Fatal(err)
			}
			got, err := tc.to.m.Control().Accept()
			if err != nil {
				t.Fatal(err)
			}
			if p := got.(*ControlConn).Peer(); p != tc.self {
				t.Errorf("%s was asked by %q, want %q", tc.name, p, tc.self)
			}
			go func() { _, _ = c.Write([]byte("question\n")) }()
			buf := make([]byte, 9)
			if _, err := io.ReadFull(got, buf); err != nil || string(buf) != "question\n" {
				t.Errorf("read %q, %v", buf, err)
			}
			got.Close()
			if _, err := c.Read(buf); err == nil {
				t.Error("a read after the other end has closed went well")
			}
			c.Close()
		}
		// Fifty of them, none accepted, and frames still flow both ways.
		var idle []net.Conn
		for range 50 {
			c, err := DialControl(t.Context(), asks(t, ca, "a", "b", b.m.Addr()))
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, c)
		}
		ua.conn.Send(wire.Ctl, &wire.Msg{Type: wire.Hello, Body: []byte("one")}, true)
		ub.conn.Send(wire.Ctl, &wire.Msg{Type: wire.Hello, Body: []byte("two")}, true)
		for n, want := range map[*node]string{b: "one", a: "two"} {
			if e := n.next("recv"); string(e.msg.Body) != want {
				t.Errorf("got %q, want %q", e.msg.Body, want)
			}
		}
		for _, c := range idle {
			_ = c.SetReadDeadline(time.Now().Add(handTimeout + 3*time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a connection that nobody accepts ended with %v, want its close", err)
			}
			c.Close()
		}
		if e := a.m.PeerError("b") + b.m.PeerError("a"); e != "" {
			t.Errorf("PeerError = %q", e)
		}
		a.quiet(0)
		b.quiet(0)
		a.stop()
		b.stop()
	})
}

// Closed, the listener takes no more, and nothing is left waiting.
func TestControlClosed(t *testing.T) {
	a, b := twoNodes(t, nil)
	a.next("up")
	b.next("up")
	_ = b.m.Control().Close()
	_ = b.m.Control().Close()
	if _, err := b.m.Control().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	c, err := DialControl(t.Context(), asks(t, nil, "a", "b", b.m.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") {
		t.Errorf("read: %v, want the end", err)
	}
	a.stop()
	b.stop()
}

func TestControlRefused(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	a, b := twoNodes(t, ca)
	a.next("up")
	b.next("up")
	silent := listen(t)
	defer silent.Close()
	for _, tc := range []struct {
		name string
		dial func(*ControlDial)
		want string
	}{
		{"stranger", func(d *ControlDial) { *d = asks(t, ca, "c", "b", b.m.Addr()) }, `refused by the peer: node "c" is not a peer of "b"`},
		{"false name", func(d *ControlDial) { d.TLS = asks(t, ca, "c", "b", b.m.Addr()).TLS }, `its certificate says "c"`},
		{"cluster", func(d *ControlDial) { d.Cluster = "nfs2" }, `refused by the peer: cluster "nfs2" is not ours`},
		{"other node there", func(d *ControlDial) { d.Node = "c"; d.Address = b.m.Addr().String() }, `is not a peer of`},
		{"itself", func(d *ControlDial) { *d = asks(t, ca, "b", "b", b.m.Addr()) }, `node calls itself "b", as we do`},
		{"foreign authority", func(d *ControlDial) { d.TLS = insecure(foreign(t, other))("b") }, "tls"},
		{"no TLS", func(d *ControlDial) { d.TLS, d.PeerNode = nil, nil }, "EOF"},
		{"nobody", func(d *ControlDial) { d.Address = "127.0.0.1:1" }, "connection refused"},
		{"no answer", func(d *ControlDial) { d.Address = silent.Addr().String() }, "it does not answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := asks(t, ca, "a", "b", b.m.Addr())
			tc.dial(&d)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if tc.name != "no answer" {
				ctx = t.Context()
			}
			c, err := DialControl(ctx, d)
			if err == nil {
				// A listener that dislikes a certificate says so after the handshake.
				_ = c.SetReadDeadline(time.Now().Add(time.Second))
				_, err = c.Read(make([]byte, 1))
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if e := a.m.PeerError("b") + b.m.PeerError("a"); e != "" {
		t.Errorf("PeerError = %q: a refused request is none of the link's business", e)
	}
	a.quiet(0)
	b.quiet(0)
	a.stop()
	b.stop()
}

func foreign(t *testing.T, ca *authority) func(string) *tls.Config {
	var cfg Config
	ca.use(t, &cfg, "a")
	return cfg.ClientTLS
}
