package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// path is a proxied connection with both of its ends.
type path struct {
	proxy          *Proxy
	listener       net.Listener
	client, server net.Conn
}

func newPath(t *testing.T) *path {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	x := &path{proxy: p, listener: l}
	x.connect(t)
	t.Cleanup(func() {
		x.client.Close()
		x.server.Close()
		l.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func (x *path) connect(t *testing.T) {
	t.Helper()
	var err error
	if x.client, err = net.Dial("tcp", x.proxy.Addr()); err != nil {
		t.Fatal(err)
	}
	if x.server, err = x.listener.Accept(); err != nil {
		t.Fatal(err)
	}
}

func say(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("got %q (%v), want %q", b, err, want)
	}
}

func silence(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v; want nothing", n, err)
	}
}

func isReset(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v; want a reset", err)
	}
}

func TestForward(t *testing.T) {
	x := newPath(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	go x.client.Write(big)
	hear(t, x.server, string(big))
	say(t, x.server, "pong")
	hear(t, x.client, "pong")
	// A half close travels, and the other direction lives on.
	x.client.(*net.TCPConn).CloseWrite()
	x.server.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := x.server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read after CloseWrite: %v", err)
	}
	say(t, x.server, "bye")
	hear(t, x.client, "bye")
	x.server.Close()
	if _, err := x.client.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read after Close: %v", err)
	}
	for end := time.Now().Add(5 * time.Second); x.proxy.Conns() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("connection is still counted")
		}
	}
}

func TestDelay(t *testing.T) {
	x := newPath(t)
	const d = 60 * time.Millisecond
	x.proxy.Delay(d)
	began := time.Now()
	for range 20 { // one after the other, all late by one delay
		say(t, x.client, "ping")
		time.Sleep(time.Millisecond)
	}
	for range 20 {
		hear(t, x.server, "ping")
	}
	if took := time.Since(began); took < d || took > 5*d {
		t.Errorf("20 delayed chunks took %v", took)
	}
	began = time.Now()
	say(t, x.server, "pong")
	hear(t, x.client, "pong")
	if took := time.Since(began); took < d {
		t.Errorf("the way back took %v", took)
	}
	say(t, x.client, "on the line when everything is closed")
}

func TestCutOneWay(t *testing.T) {
	x := newPath(t)
	x.proxy.Cut(To)
	say(t, x.client, "lost")
	silence(t, x.server)
	say(t, x.server, "heard")
	hear(t, x.client, "heard")
	silence(t, x.client)
	x.proxy.Heal()
	isReset(t, x.client)
	isReset(t, x.server)
	x.client.Close()
	x.server.Close()
	x.connect(t)
	say(t, x.client, "again")
	hear(t, x.server, "again")
}

func TestCutBoth(t *testing.T) {
	x := newPath(t)
	x.proxy.Cut(Both)
	say(t, x.client, "lost")
	say(t, x.server, "lost")
	silence(t, x.client)
	silence(t, x.server)
	// Not even a close gets through.
	x.client.Close()
	silence(t, x.server)
	x.proxy.Heal()
	isReset(t, x.server)
}

// A connection that lost nothing survives a cut.
func TestCutUnnoticed(t *testing.T) {
	x := newPath(t)
	x.proxy.Cut(From)
	x.proxy.Heal()
	say(t, x.server, "still here")
	hear(t, x.client, "still here")
}

// What was on the line when it was cut is lost.
func TestCutOnTheWay(t *testing.T) {
	x := newPath(t)
	x.proxy.Delay(50 * time.Millisecond)
	say(t, x.client, "under way")
	time.Sleep(10 * time.Millisecond)
	x.proxy.Cut(To)
	silence(t, x.server)
	x.proxy.Heal()
	isReset(t, x.server)
}

func TestHold(t *testing.T) {
	x := newPath(t)
	x.proxy.Hold(To)
	say(t, x.client, "one ")
	silence(t, x.server)
	say(t, x.client, "two")
	x.proxy.Heal()
	hear(t, x.server, "one two")
}

func TestReset(t *testing.T) {
	x := newPath(t)
	x.proxy.Reset()
	isReset(t, x.client)
	isReset(t, x.server)
}

func TestNoTarget(t *testing.T) {
	x := newPath(t)
	x.listener.Close()
	c, err := net.Dial("tcp", x.proxy.Addr())
	if errors.Is(err, syscall.ECONNRESET) {
		return // the reset came before connect looked
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	isReset(t, c)
}
