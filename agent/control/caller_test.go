package control

import (
	"context"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"testing"
)

// whoami answers with the caller.
func whoami(_ context.Context, req Request, send func(Message) error) error {
	return send(Message{Kind: KindResult, Text: req.By.String() + "|" + req.Node})
}

func said(t *testing.T, call func(func(Message)) error) string {
	t.Helper()
	text := ""
	if err := call(func(m Message) { text = m.Text }); err != nil {
		t.Fatal(err)
	}
	return text
}

// The kernel says who is behind the socket; what a local client says of itself
// does not count.
func TestCallerLocal(t *testing.T) {
	socket, _ := start(t, &server{handler: whoami})
	name := "uid " + strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name += "/" + u.Username
	}
	got := said(t, func(f func(Message)) error {
		_, err := Call(t.Context(), socket, Request{Verb: "x", Node: "b", Origin: "uid 7/mallory", By: Caller{Node: "z"}}, f)
		return err
	})
	if want := "local, " + name + "|b"; got != want {
		t.Errorf("the agent was asked by %q, want %q", got, want)
	}
}

// peerConn is a connection that knows its peer, as a control connection of
// package link does.
type peerConn struct{ net.Conn }

func (peerConn) Peer() string { return "b" }

type peerListener struct{ net.Listener }

func (l peerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return peerConn{c}, nil
}

func TestCallerPeer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, peerListener{ln}, whoami) }()
	for _, tc := range []struct{ origin, want string }{{"", "node b|"}, {"uid 0/root", "node b, uid 0/root|"}} {
		got := said(t, func(f func(Message)) error {
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				return err
			}
			_, err = CallConn(t.Context(), conn, Request{Verb: "x", Origin: tc.origin}, f)
			return err
		})
		if got != tc.want {
			t.Errorf("asked by %q, want %q", got, tc.want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What goes to the log and to terminals is printable and short.
func TestRequestNames(t *testing.T) {
	for _, tc := range []struct {
		line string
		ok   bool
	}{
		{`{"verb":"x","node":"b","origin":"uid 0/root"}`, true},
		{`{"verb":"x","node":"` + strings.Repeat("b", maxNode+1) + `"}`, false},
		{`{"verb":"x","origin":"` + strings.Repeat("b", maxOrigin+1) + `"}`, false},
		{`{"verb":"x","origin":"a\u001b[2J"}`, false},
		{`{"verb":"x","node":"a\nb"}`, false},
		{`{"verb":"x","By":{"Node":"b"}}`, false},
	} {
		if _, err := parseRequest([]byte(tc.line)); (err == nil) != tc.ok {
			t.Errorf("%s: %v, want ok=%v", tc.line, err, tc.ok)
		}
	}
}
