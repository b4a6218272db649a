package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// TestPartHoldsReplies: a server that stops answers everything in one go, and nothing with an error.
func TestPartHoldsReplies(t *testing.T) {
	held := make(chan *Request, 10)
	v := serve(t, func(_ *Config, e *Export) {
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	w := v.wire(t).start(false)
	w.send(request(0, CMD_FLUSH, 1, 0, 0), request(0, CMD_FLUSH, 2, 0, 0))
	first, second := <-held, <-held
	stopped := make(chan struct{})
	go func() { v.stop(); close(stopped) }()
	waitParting(t, v)
	first.Complete(nil)
	// What comes now belongs to this connection as well: an ESHUTDOWN would be an I/O error of a filesystem.
	w.send(request(0, CMD_FLUSH, 3, 0, 0))
	third := <-held
	if err := w.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := w.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes of a reply while two requests have none: %v", n, err)
	}
	if err := w.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	second.Complete(nil)
	third.Complete(nil)
	for i := range 3 {
		w.want("in flight", simple(0, uint64(1+i)))
	}
	w.closed("connection")
	<-stopped
}

// waitParting returns when the server's only client is being parted with.
func waitParting(t *testing.T, v *served) {
	t.Helper()
	// Serve closes the listener first, then the connections hear of it.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", v.socket)
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			return
		}
		c.Close()
	}
	t.Fatal("the listener is still open")
}

// kernelClient sends as drivers/block/nbd.c does: depth requests at a time, a new one for each reply, on the first
// connection that it does not know to be dead. One that refuses a request is shut, and the request moves on; one that
// was sent stays with its connection.
type kernelClient struct {
	t     *testing.T
	mu    sync.Mutex
	conns []*net.UnixConn
	dead  []bool
	sent  int
	ended int // requests that have a reply, or wait for a new connection
}

// begin sends one that no reply has let it send, while there are few of those.
func (k *kernelClient) begin() {
	k.mu.Lock()
	few := k.sent-k.ended < 120
	k.mu.Unlock()
	if few {
		k.send()
	}
}

func (k *kernelClient) send() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, c := range k.conns {
		if k.dead[i] {
			continue
		}
		_, err := c.Write(request(0, CMD_WRITE, uint64(k.sent), 0, 512))
		if err == nil {
			_, err = c.Write(make([]byte, 512))
		}
		if err == nil {
			k.sent++
			return
		}
		if !errors.Is(err, syscall.EPIPE) {
			k.t.Error(err)
		}
		k.kill(i)
	}
}

// kill shuts a connection. What is in its queue can still be read.
func (k *kernelClient) kill(i int) {
	if !k.dead[i] {
		k.dead[i] = true
		_ = k.conns[i].CloseRead()
		_ = k.conns[i].CloseWrite()
	}
}

// receive takes the replies of one connection.
func (k *kernelClient) receive(i int) {
	for {
		var b [16]byte
		if _, err := io.ReadFull(k.conns[i], b[:]); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				k.t.Error(err)
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			k.kill(i)
			return
		}
		if code := binary.BigEndian.Uint32(b[4:]); code != 0 {
			k.t.Errorf("reply with error %d", code)
		}
		k.mu.Lock()
		k.ended++
		k.mu.Unlock()
		k.send()
	}
}

// busyClient parts with a client of three connections in so many rounds and returns how many requests were sent and have
// no reply. The client has depth requests on the way, a new one for each reply; with every, also one at random moments,
// so long apart on average, that no reply has let it send.
func busyClient(t *testing.T, rounds, depth int, every time.Duration) (lost int) {
	t.Helper()
	for range rounds {
		v := serve(t, func(_ *Config, e *Export) { e.Device.(*memDevice).async = true })
		k := &kernelClient{t: t, dead: make([]bool, 3)}
		for range k.dead {
			k.conns = append(k.conns, v.wire(t).start(false).Conn.(*net.UnixConn))
		}
		var receivers, own sync.WaitGroup
		for i := range k.conns {
			receivers.Go(func() { k.receive(i) })
		}
		for range depth {
			k.send()
		}
		stop := make(chan struct{})
		if every != 0 {
			own.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(rand.ExpFloat64() * float64(every))):
						k.begin()
					}
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		v.stop()
		receivers.Wait()
		close(stop)
		own.Wait()
		if k.ended < 2*depth {
			t.Fatalf("%d replies: it was not busy", k.ended)
		}
		lost += k.sent - k.ended
	}
	t.Logf("%d requests without a reply", lost)
	return lost
}

// TestPartWithBusyClient: a client that has a new request for each reply, on another connection if need be, is left with
// none that was sent and has no reply: each of those would wait for its timer.
func TestPartWithBusyClient(t *testing.T) {
	const depth, rounds = 8, 20
	// Closing at once loses depth each time. A header that was sent whose payload was refused counts for one, too.
	if lost := busyClient(t, rounds, depth, 0); lost > rounds*depth/10 {
		t.Errorf("%d requests without a reply in %d rounds at depth %d", lost, rounds, depth)
	}
}

// TestPartWithClientOfItsOwnMind: nor is one that also sends when no reply has come. What it sends in the microsecond
// between the shutdown and the replies costs it all of those.
func TestPartWithClientOfItsOwnMind(t *testing.T) {
	const depth, rounds = 8, 20
	if lost := busyClient(t, rounds, depth, time.Millisecond); lost > rounds*depth/10 {
		t.Errorf("%d requests without a reply in %d rounds at depth %d", lost, rounds, depth)
	}
}

// TestPartLooksAtTheSocket: what the reader has not come to read is answered before the connection is shut.
func TestPartLooksAtTheSocket(t *testing.T) {
	busy := make(chan struct{})
	v := serve(t, func(_ *Config, e *Export) {
		e.Device.(*memDevice).hold = func(r *Request) bool {
			last := r.handle == 2
			r.Complete(nil)
			if last {
				<-busy // with its reply held, and the reader kept from the next
			}
			return true
		}
	})
	w := v.wire(t).start(false)
	stopped := make(chan struct{})
	w.send(request(0, CMD_FLUSH, 1, 0, 0))
	w.want("before", simple(0, 1))
	w.send(request(0, CMD_FLUSH, 2, 0, 0))
	go func() { v.stop(); close(stopped) }()
	waitParting(t, v)
	w.send(request(0, CMD_FLUSH, 3, 0, 0))
	// Request 2 may have been answered before the server began to part.
	if err := w.SetReadDeadline(time.Now().Add(4 * moveTime)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 17)
	n, err := io.ReadFull(w, b)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > 16 {
		t.Errorf("%d bytes, %v: the connection is at its end, with a request in the socket", n, err)
	}
	close(busy)
	if err := w.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		w.want("held", simple(0, 2))
	}
	w.want("in the socket", simple(0, 3))
	w.closed("connection")
	<-stopped
}

// TestPartBeyondBounds: requests that a full connection has not admitted yet are answered, too.
func TestPartBeyondBounds(t *testing.T) {
	held := make(chan *Request, 10)
	v := serve(t, func(c *Config, e *Export) {
		c.MaxInFlight = 2
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	w := v.wire(t).start(false)
	for i := range 5 {
		w.send(request(0, CMD_FLUSH, uint64(i), 0, 0))
	}
	a, b := <-held, <-held
	go v.stop()
	waitParting(t, v)
	a.Complete(nil)
	b.Complete(nil)
	for range 3 {
		(<-held).Complete(nil)
	}
	for i := range 5 {
		w.want("request", simple(0, uint64(i)))
	}
	w.closed("connection")
}

// TestAttach: what is handed out is at the first byte of the transmission phase, in simple replies.
func TestAttach(t *testing.T) {
	v := serve(t, nil)
	a, err := Attach(context.Background(), "unix", v.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Conn.Close()
	if a.Size != testSize || a.Flags&FLAG_SEND_FLUSH == 0 || a.Flags&FLAG_SEND_DF != 0 {
		t.Errorf("size %d, flags %#x", a.Size, a.Flags)
	}
	if _, err := a.Conn.Write(request(0, CMD_FLUSH, 77, 0, 0)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 16)
	if _, err := io.ReadFull(a.Conn, b); err != nil || !bytes.Equal(b, simple(0, 77)) {
		t.Errorf("% x, %v", b, err)
	}
}

func TestAttachFails(t *testing.T) {
	v := serve(t, nil)
	_, err := Attach(context.Background(), "unix", v.socket, "no such export")
	if r, ok := errors.AsType[*Refusal](err); !ok || r.Code != ERR_UNKNOWN {
		t.Errorf("refusal: %v", err)
	}
	if _, err := Attach(context.Background(), "unix", v.socket+"x", ""); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no server: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	l, err := net.Listen("unix", v.socket+"silent")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Attach(ctx, "unix", v.socket+"silent", ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that says nothing: %v", err)
	}
	// A server that goes on behind its ACK: the kernel would never see those bytes.
	l2, err := net.Listen("unix", v.socket+"early")
	if err != nil {
		t.Fatal(err)
	}
	defer l2.Close()
	go func() {
		c, err := l2.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		hello, _ := binary.Append(nil, binary.BigEndian, protocol.NegotiationNewstyleHeader{
			OldstyleMagic: protocol.NEGOTIATION_MAGIC_OLDSTYLE, OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION, HandshakeFlags: FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES,
		})
		_, _ = c.Write(hello)
		_, _ = io.ReadFull(c, make([]byte, 4+16+6)) // flags, GO of the default export
		info, _ := binary.Append(nil, binary.BigEndian, protocol.NegotiationReplyInfo{Type: protocol.NEGOTIATION_TYPE_INFO_EXPORT, Size: 4096})
		_, _ = c.Write(append(appendOptionReply(appendOptionReply(nil, OPT_GO, REP_INFO, info), OPT_GO, REP_ACK, nil), 0))
		_, _ = io.Copy(io.Discard, c)
	}()
	if _, err := Attach(context.Background(), "unix", v.socket+"early", ""); !errors.Is(err, ErrProtocol) {
		t.Errorf("bytes behind the ACK: %v", err)
	}
}
