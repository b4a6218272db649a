package nsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client is an rpcbind and an rpc.statd on loopback, as far as Notify needs them.
type client struct {
	rpcbind, statd *net.UDPConn
	mu             sync.Mutex
	uaddr          string                    // guarded by mu
	spoil          func(reply []byte) []byte // of statd's; guarded by mu
	lose           atomic.Int32              // so many calls get no answer

	name  atomic.Value
	state atomic.Uint32
	from  atomic.Value
}

func newClient(t *testing.T) *client {
	t.Helper()
	c := &client{}
	for _, s := range []struct {
		conn   **net.UDPConn
		answer func(args []byte, program, procedure uint32) []byte
	}{
		{&c.rpcbind, func(args []byte, program, procedure uint32) []byte {
			if program != 100000 || procedure != 3 || binary.BigEndian.Uint32(args) != 100024 || binary.BigEndian.Uint32(args[4:]) != 1 {
				t.Errorf("rpcbind is asked %d of program %d: % x", procedure, program, args)
			}
			if netid, err := readString(args[8:]); err != nil || netid != "udp" {
				t.Errorf("netid %q %v", netid, err)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			return appendString(nil, c.uaddr)
		}},
		{&c.statd, func(args []byte, program, procedure uint32) []byte {
			name, err := readString(args)
			if err != nil || program != 100024 || procedure != 6 {
				t.Errorf("statd is asked %d of program %d: %v", procedure, program, err)
			}
			c.name.Store(name)
			c.state.Store(binary.BigEndian.Uint32(args[len(args)-4:]))
			return nil
		}},
	} {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		*s.conn = conn
		isStatd := s.conn == &c.statd
		done := make(chan struct{})
		t.Cleanup(func() { conn.Close(); <-done })
		go func() {
			defer close(done)
			buf := make([]byte, 1024)
			for {
				n, from, err := conn.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if c.lose.Add(-1) >= 0 {
					continue
				}
				b := buf[:n]
				if len(b) < 40 || binary.BigEndian.Uint32(b[8:]) != 2 {
					t.Errorf("no call: % x", b)
					continue
				}
				if isStatd {
					c.from.Store(from)
				}
				var reply []byte
				for _, v := range []uint32{binary.BigEndian.Uint32(b), 1, 0, 0, 0, 0} {
					reply = appendUint(reply, v)
				}
				reply = append(reply, s.answer(b[40:], binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint32(b[20:]))...)
				c.mu.Lock()
				if isStatd && c.spoil != nil {
					reply = c.spoil(reply)
				}
				c.mu.Unlock()
				if _, err := conn.WriteToUDPAddrPort(reply, from); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	port := c.statd.LocalAddr().(*net.UDPAddr).Port
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uaddr = fmt.Sprintf("127.0.0.1.%d.%d", port>>8, port&0xff)
	return c
}

func (c *client) tell(t *testing.T) error {
	at := c.rpcbind.LocalAddr().(*net.UDPAddr).AddrPort()
	return notify(t.Context(), netip.MustParseAddr("127.0.0.2"), at, "10.0.0.9", 7)
}

func TestNotify(t *testing.T) {
	c := newClient(t)
	if err := c.tell(t); err != nil {
		t.Fatal(err)
	}
	from := c.from.Load().(netip.AddrPort)
	if c.name.Load() != "10.0.0.9" || c.state.Load() != 7 || from.Addr().String() != "127.0.0.2" {
		t.Errorf("%v in state %d is told by %v", c.name.Load(), c.state.Load(), from)
	}
}

func TestNotifyAsksAgain(t *testing.T) {
	c := newClient(t)
	c.lose.Store(2)
	if err := c.tell(t); err != nil {
		t.Fatal(err)
	}
	c.lose.Store(1000)
	if err := c.tell(t); !errors.Is(err, ErrNoAnswer) {
		t.Error(err)
	}
}

func TestBadReplies(t *testing.T) {
	for name, tc := range map[string]struct {
		uaddr string
		spoil func([]byte) []byte
		want  error
	}{
		"nobody":            {"", nil, ErrNoStatd},
		"half an address":   {"7.1", nil, ErrReply},
		"no port":           {"127.0.0.1.0.0", nil, ErrReply},
		"a large number":    {"127.0.0.1.1.256", nil, ErrReply},
		"too short":         {"", func(b []byte) []byte { return b[:20] }, ErrReply},
		"another's":         {"", func(b []byte) []byte { b[0]++; return b }, ErrReply},
		"denied":            {"", func(b []byte) []byte { b[11] = 1; return b }, ErrReply},
		"not executed":      {"", func(b []byte) []byte { b[23] = 1; return b }, ErrReply},
		"a long verifier":   {"", func(b []byte) []byte { b[19] = 200; return b }, ErrReply},
		"an endless string": {"", func(b []byte) []byte { b[16] = 255; return b }, ErrReply},
	} {
		c := newClient(t)
		c.mu.Lock()
		if tc.spoil == nil {
			c.uaddr = tc.uaddr
		}
		c.spoil = tc.spoil
		c.mu.Unlock()
		if err := c.tell(t); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, b := range [][]byte{nil, {0, 0, 0}, {0, 0, 0, 9, 'a'}, {255, 255, 255, 255}} {
		if _, err := readString(b); !errors.Is(err, ErrReply) {
			t.Errorf("% x: %v", b, err)
		}
	}
}
