package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// refusedRequest is a request that is wrong by itself, and the answer to it.
type refusedRequest struct {
	name    string
	request []byte
	code    Error
	text    string
}

// refusedRequests is also where FuzzRequests starts from.
func refusedRequests() []refusedRequest {
	const aligned4G = 1<<32 - 512
	zeroes := func(n int) []byte { return make([]byte, n) }
	return []refusedRequest{
		{"read, offset not a multiple", request(0, CMD_READ, 7, 1, 512), EINVAL, "range is not a multiple of 512"},
		{"read, length not a multiple", request(0, CMD_READ, 7, 512, 513), EINVAL, "range is not a multiple of 512"},
		{"read, past the end", request(0, CMD_READ, 7, testSize, 512), EINVAL, "range is beyond the end"},
		{"read, across the end", request(0, CMD_READ, 7, testSize-512, 1024), EINVAL, "range is beyond the end"},
		{"read, overflow", request(0, CMD_READ, 7, 1<<64-512, 1024), EINVAL, "range is beyond the end"},
		{"read, negative offset", request(0, CMD_READ, 7, 1<<63, 512), EINVAL, "range is beyond the end"},
		{"read, too long", request(0, CMD_READ, 7, 0, MaximumBlock+512), EINVAL, "length is beyond 32 MiB"},
		{"read, 4 GiB", request(0, CMD_READ, 7, 0, aligned4G), EINVAL, "range is beyond the end"},
		{"read, no hole", request(CMD_FLAG_NO_HOLE, CMD_READ, 7, 0, 512), EINVAL, "flag does not go with this command"},
		{"write, not a multiple", append(request(0, CMD_WRITE, 7, 0, 513), zeroes(513)...), EINVAL, "range is not a multiple of 512"},
		{"write, past the end", append(request(0, CMD_WRITE, 7, testSize, 512), zeroes(512)...), ENOSPC, "range is beyond the end"},
		{"write, overflow", append(request(0, CMD_WRITE, 7, 1<<64-512, 1024), zeroes(1024)...), ENOSPC, "range is beyond the end"},
		{"write, too long", append(request(0, CMD_WRITE, 7, 0, MaximumBlock+512), zeroes(MaximumBlock+512)...), EINVAL, "length is beyond 32 MiB"},
		{"write, unknown flag", append(request(1<<9, CMD_WRITE, 7, 0, 512), zeroes(512)...), EINVAL, "flag does not go with this command"},
		{"write, payload length", append(request(CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, 7, 0, 512), zeroes(512)...), EINVAL, "flag does not go with this command"},
		{"zeroes, past the end", request(0, CMD_WRITE_ZEROES, 7, 0, aligned4G), ENOSPC, "range is beyond the end"},
		{"zeroes, 4 GiB - 1", request(0, CMD_WRITE_ZEROES, 7, 0, 1<<32-1), EINVAL, "range is not a multiple of 512"},
		{"trim, past the end", request(0, CMD_TRIM, 7, 512, testSize), EINVAL, "range is beyond the end"},
		{"trim, 4 GiB - 1", request(0, CMD_TRIM, 7, 0, 1<<32-1), EINVAL, "range is not a multiple of 512"},
		{"trim, fast zero", request(CMD_FLAG_FAST_ZERO, CMD_TRIM, 7, 0, 512), EINVAL, "flag does not go with this command"},
		{"cache, past the end", request(0, CMD_CACHE, 7, 0, aligned4G), EINVAL, "range is beyond the end"},
		{"flush with offset", request(0, CMD_FLUSH, 7, 512, 0), EINVAL, "FLUSH takes no range"},
		{"flush with length", request(0, CMD_FLUSH, 7, 0, 512), EINVAL, "FLUSH takes no range"},
		{"resize", request(0, 8, 7, 0, 512), EINVAL, "unknown command"},
		{"unknown command", request(0, 0xffff, 7, 0, 0xffffffff), EINVAL, "unknown command"},
		{"status, no length", request(0, CMD_BLOCK_STATUS, 7, 0, 0), EINVAL, "empty range"},
		{"status, past the end", request(0, CMD_BLOCK_STATUS, 7, 0, aligned4G), EINVAL, "range is beyond the end"},
		{"status, no fragments", request(CMD_FLAG_DF, CMD_BLOCK_STATUS, 7, 0, 512), EINVAL, "flag does not go with this command"},
	}
}

// TestRefusedRequests sends one each, in both reply styles, and a FLUSH behind it: the stream stays in step.
func TestRefusedRequests(t *testing.T) {
	for _, structured := range []bool{true, false} {
		v := serve(t, nil)
		for _, tt := range refusedRequests() {
			t.Run(fmt.Sprintf("%s, structured=%v", tt.name, structured), func(t *testing.T) {
				w := v.wire(t).start(structured)
				go w.Write(append(slices.Clone(tt.request), request(0, CMD_FLUSH, 8, 0, 0)...))
				if structured {
					w.want("error", errorChunk(tt.code, 7, tt.text))
					w.want("flush", appendChunk(nil, REPLY_TYPE_NONE, 8, 0))
				} else {
					w.want("error", simple(tt.code, 7))
					w.want("flush", simple(0, 8))
				}
				if len(tt.text) > maxErrorText {
					t.Errorf("text of %d bytes", len(tt.text))
				}
			})
		}
		if n, f := v.device.submitted.Load(), v.device.flushes.Load(); n != f {
			t.Errorf("%d wrong requests reached the device", n-f)
		}
	}
}

// TestHugeRanges: 4 GiB - 512 bytes are a legal range for what carries no data.
func TestHugeRanges(t *testing.T) {
	const n = 1<<32 - 512
	got := make(chan Request, 4)
	v := serve(t, func(_ *Config, e *Export) {
		e.Size = 8 << 30
		e.Device.(*memDevice).hold = func(r *Request) bool {
			got <- Request{Op: r.Op, Off: r.Off, Len: r.Len}
			if r.Op == OpBlockStatus {
				r.Extents = append(r.Extents, Extent{Len: 1<<32 - 1, Flags: STATE_ZERO})
			}
			r.Complete(nil)
			return true
		}
	})
	ctx, c := context.Background(), v.dial(t, ClientOptions{})
	if err := errors.Join(c.Trim(ctx, 1<<32, n, false), c.WriteZeroes(ctx, 1<<32, n, 0), c.Cache(ctx, 1<<32, n)); err != nil {
		t.Fatal(err)
	}
	extents, err := c.BlockStatus(ctx, 1<<32, n, false)
	if err != nil || len(extents) != 1 || extents[0] != (Extent{n, STATE_ZERO}) {
		t.Fatal(extents, err)
	}
	for range 4 {
		if r := <-got; r.Off != 1<<32 || r.Len != n {
			t.Errorf("%+v", r)
		}
	}
}

// TestEmptyRequests succeed without the device.
func TestEmptyRequests(t *testing.T) {
	v := serve(t, nil)
	for _, structured := range []bool{true, false} {
		w := v.wire(t).start(structured)
		for _, typ := range []uint16{CMD_READ, CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE} {
			w.send(request(0, typ, 3, testSize, 0))
			if structured {
				w.want("empty", appendChunk(nil, REPLY_TYPE_NONE, 3, 0))
			} else {
				w.want("empty", simple(0, 3))
			}
		}
	}
	if n := v.device.submitted.Load(); n != 0 {
		t.Errorf("%d reached the device", n)
	}
}

// TestTransmissionClosed has what ends the connection, and only that one.
func TestTransmissionClosed(t *testing.T) {
	wrongMagic := request(0, CMD_READ, 1, 0, 512)
	wrongMagic[0] ^= 1
	tests := map[string][]byte{
		"wrong magic":      wrongMagic,
		"zeroes":           make([]byte, 4096),
		"absurd write":     request(0, CMD_WRITE, 1, 0, 1<<32-512),
		"disconnect":       request(0, CMD_DISC, 1, 0, 0),
		"absurd and wrong": request(0xffff, CMD_WRITE, 1, 1, 1<<32-1),
	}
	v := serve(t, nil)
	other := v.dial(t, ClientOptions{})
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			w := v.wire(t).start(true)
			w.send(b)
			w.closed(name)
			if err := other.Flush(context.Background()); err != nil {
				t.Errorf("another client: %v", err)
			}
		})
	}
}

// TestHalfRequest: a client that goes away inside a request leaves nothing behind (checked when the server stops).
func TestHalfRequest(t *testing.T) {
	v := serve(t, nil)
	for _, n := range []int{1, 27, 28, 29, 4000, 4096 + 27} {
		for _, length := range []uint32{4096, 4097} { // taken and discarded
			w := v.wire(t).start(false)
			w.send(append(request(0, CMD_WRITE, 1, 0, length), make([]byte, 4096)...)[:n])
			w.Close()
		}
	}
}

// TestReadOnly refuses what changes data and nothing else.
func TestReadOnly(t *testing.T) {
	v := serve(t, func(_ *Config, e *Export) { e.ReadOnly = true })
	ctx, c := context.Background(), v.dial(t, ClientOptions{})
	p := make([]byte, 4096)
	for name, err := range map[string]error{
		"write":  c.WriteAt(ctx, p, 0, false),
		"trim":   c.Trim(ctx, 0, 4096, false),
		"zeroes": c.WriteZeroes(ctx, 0, 4096, 0),
	} {
		if !errors.Is(err, EPERM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(c.ReadAt(ctx, p, 0), c.Flush(ctx), c.Cache(ctx, 0, 4096)); err != nil {
		t.Error(err)
	}
}

// TestOutOfOrder completes a window of reads backwards, with a failing one among them.
func TestOutOfOrder(t *testing.T) {
	held := make(chan *Request, 100)
	v := serve(t, func(_ *Config, e *Export) {
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	v.device.mu.Lock()
	for i := range v.device.data {
		v.device.data[i] = byte(i >> 12)
	}
	v.device.mu.Unlock()
	for _, structured := range []bool{true, false} {
		w := v.wire(t).start(structured)
		const n = 50
		var all []byte
		for i := range n {
			all = append(all, request(0, CMD_READ, uint64(i), uint64(i)<<12, 4096)...)
		}
		w.send(all)
		var rs []*Request
		for range n {
			rs = append(rs, <-held)
		}
		for i, r := range rs {
			if r.Op != OpRead || r.Off != int64(i)<<12 || r.Len != 4096 || len(r.Data) != 4096 {
				t.Fatalf("request %d: %+v", i, r)
			}
			if structured && r.More != (i < n-1) {
				t.Errorf("request %d: More is %v", i, r.More)
			}
		}
		go func() {
			for i, r := range slices.Backward(rs) {
				if i == 20 {
					r.Complete(fmt.Errorf("medium: %w", EIO))
				} else {
					v.device.serve(r)
				}
			}
		}()
		for i := n - 1; i >= 0; i-- {
			data := bytes.Repeat([]byte{byte(i)}, 4096)
			switch {
			case i == 20 && structured:
				w.want("error", errorChunk(EIO, 20, ""))
			case i == 20:
				w.want("error", simple(EIO, 20))
			case structured:
				w.want("data", slices.Concat(appendChunk(nil, REPLY_TYPE_OFFSET_DATA, uint64(i), 4096+8), be64(uint64(i)<<12), data))
			default:
				w.want("data", append(simple(0, uint64(i)), data...))
			}
		}
	}
}

// TestStalledReader: a client that stops reading is cut off, its requests are told Sent, and others go on meanwhile.
func TestStalledReader(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async=%v", async), func(t *testing.T) {
			v := serve(t, func(c *Config, e *Export) {
				c.StallTimeout = time.Second
				e.Device.(*memDevice).async = async
			})
			other := v.dial(t, ClientOptions{})
			w := v.wire(t).start(false)
			go func() {
				for i := range 4096 {
					if _, err := w.Write(request(0, CMD_READ, uint64(i), 0, 256<<10)); err != nil {
						return
					}
				}
			}()
			p := make([]byte, 4096)
			deadline := time.Now().Add(10 * time.Second)
			for v.server.Connections() > 1 {
				start := time.Now()
				if err := other.ReadAt(context.Background(), p, 0); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(start); d > 900*time.Millisecond {
					t.Errorf("another client waited %v", d)
				}
				if time.Now().After(deadline) {
					t.Fatal("the stalled client is still connected")
				}
			}
		})
	}
}

// TestStalledPayload: a client that announces a payload and does not send it is cut off, and gives its memory back.
func TestStalledPayload(t *testing.T) {
	v := serve(t, func(c *Config, _ *Export) { c.StallTimeout = 300 * time.Millisecond })
	for _, length := range []uint32{MaximumBlock, MaximumBlock + 512} {
		var wires []*wire
		for range 4 { // the large half has room for one
			w := v.wire(t).start(false)
			w.send(request(0, CMD_WRITE, 1, 0, length), make([]byte, 1000))
			wires = append(wires, w)
		}
		other := v.dial(t, ClientOptions{})
		if err := other.WriteAt(context.Background(), make([]byte, 64<<10), 0, false); err != nil {
			t.Fatal(err) // small payloads have their own half
		}
		if err := other.WriteAt(context.Background(), make([]byte, MaximumBlock), 0, false); err != nil {
			t.Fatal(err) // and large ones wait until the stalled are gone
		}
		for _, w := range wires {
			w.closed("stalled payload")
		}
	}
}

// TestInFlightBound: at MaxInFlight the server stops reading, and goes on when a reply is out.
func TestInFlightBound(t *testing.T) {
	held := make(chan *Request, 100)
	v := serve(t, func(c *Config, e *Export) {
		c.MaxInFlight = 8
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	w := v.wire(t).start(false)
	for i := range 20 {
		w.send(request(0, CMD_FLUSH, uint64(i), 0, 0))
	}
	var rs []*Request
	for range 8 {
		rs = append(rs, <-held)
	}
	select {
	case <-held:
		t.Fatal("a ninth request in flight")
	case <-time.After(50 * time.Millisecond):
	}
	for i := range 20 {
		rs[0].Complete(nil)
		w.want("flush", simple(0, uint64(i)))
		rs = rs[1:]
		if i < 12 {
			rs = append(rs, <-held)
		}
	}
}

// TestBytesBound: a connection holds at most an eighth of the memory, but always gets one request through.
func TestBytesBound(t *testing.T) {
	held := make(chan *Request, 100)
	v := serve(t, func(_ *Config, e *Export) {
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	w := v.wire(t).start(false)
	for i := range 12 { // of 8 MiB, an eighth of 64
		w.send(request(0, CMD_READ, uint64(i), 0, 1<<20))
	}
	w.send(request(0, CMD_READ, 12, 0, MaximumBlock))
	var rs []*Request
	for range 8 {
		rs = append(rs, <-held)
	}
	select {
	case <-held:
		t.Fatal("more than an eighth of the memory")
	case <-time.After(50 * time.Millisecond):
	}
	go io.Copy(io.Discard, w)
	for range 13 {
		if len(rs) == 0 {
			rs = append(rs, <-held)
		}
		rs[0].Complete(nil)
		rs = rs[1:]
	}
}

// TestIdleConnections: a thousand of them are harmless, and hold no read buffer.
func TestIdleConnections(t *testing.T) {
	v := serve(t, nil)
	for i := range 1000 {
		w := v.wire(t)
		if i%2 == 0 {
			w.start(i%4 == 0)
		}
	}
	start := time.Now()
	c := v.dial(t, ClientOptions{})
	p := make([]byte, 4096)
	for range 100 {
		if err := c.WriteAt(context.Background(), p, 0, false); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d connections, dial and 100 writes beside them took %v", v.server.Connections(), time.Since(start))
	v.stop() // in about DrainTimeout, not a thousand times that
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("stop took %v", d)
	}
}

// TestMaxConnections turns the surplus away and takes new ones when others have left.
func TestMaxConnections(t *testing.T) {
	v := serve(t, func(c *Config, _ *Export) { c.MaxConnections = 3 })
	var cs []*Client
	for range 3 {
		cs = append(cs, v.dial(t, ClientOptions{}))
	}
	v.wire(t).closed("one too many")
	cs[0].Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if c, err := Dial(context.Background(), "unix", v.socket, "", ClientOptions{}); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no room after a client has left")
		}
	}
}

// TestDone: what is in flight is answered, what is new gets ESHUTDOWN, then comes the close.
func TestDone(t *testing.T) {
	done, held := make(chan struct{}), make(chan *Request, 10)
	v := serve(t, func(_ *Config, e *Export) {
		e.Done = done
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	w, idle := v.wire(t).start(false), v.wire(t).start(true)
	w.send(request(0, CMD_FLUSH, 1, 0, 0))
	r := <-held
	start := time.Now()
	close(done)
	w.send(request(0, CMD_READ, 2, 0, 512), request(0, CMD_WRITE, 3, 0, 512), make([]byte, 512), request(0, CMD_FLUSH, 4, 0, 0))
	for i := range 3 {
		w.want("new request", simple(ESHUTDOWN, uint64(2+i)))
	}
	idle.send(request(0, CMD_FLUSH, 9, 0, 0))
	idle.want("new request of an idle client", errorChunk(ESHUTDOWN, 9, ""))
	idle.closed("idle connection")
	r.Complete(nil)
	w.want("in flight", simple(0, 1))
	w.closed("connection")
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("closed after %v", d)
	}
}

// TestDoneWithHungDevice: the client is let go after DrainTimeout, the request is waited for.
func TestDoneWithHungDevice(t *testing.T) {
	done, held := make(chan struct{}), make(chan *Request, 10)
	v := serve(t, func(c *Config, e *Export) {
		e.Done, c.DrainTimeout = done, 300*time.Millisecond
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	w := v.wire(t).start(false)
	w.send(request(0, CMD_READ, 1, 0, 512))
	r := <-held
	close(done)
	w.closed("hung device")
	if n := v.server.Connections(); n != 1 {
		t.Errorf("%d connections while the device has a request", n)
	}
	r.Data[0] = 1 // still the device's
	r.Complete(ESHUTDOWN)
}

// TestStop: Serve ends in time with clients idle, busy, half through the handshake and not reading.
func TestStop(t *testing.T) {
	v := serve(t, func(c *Config, e *Export) {
		c.DrainTimeout = 500 * time.Millisecond
		e.Device.(*memDevice).async = true
	})
	v.wire(t)
	v.wire(t).greet()
	v.wire(t).start(true)
	stuck := v.wire(t).start(false)
	go func() {
		for {
			if _, err := stuck.Write(request(0, CMD_READ, 1, 0, 1<<20)); err != nil {
				return
			}
		}
	}()
	busy := v.dial(t, ClientOptions{})
	ended := make(chan error)
	go func() {
		for {
			if err := busy.WriteAt(context.Background(), make([]byte, 4096), 0, false); err != nil {
				ended <- err
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	v.stop()
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("stop took %v", d)
	}
	if err := <-ended; !errors.Is(err, ESHUTDOWN) && !errors.Is(err, ErrClosed) {
		t.Errorf("busy client: %v", err)
	}
}

// TestSentOnlyAfterReply: Sent waits for the client to make room, and comes although the client has gone.
func TestSentOnlyAfterReply(t *testing.T) {
	v := serve(t, nil)
	w := v.wire(t).start(false)
	const n = 16
	for i := range n {
		w.send(request(0, CMD_READ, uint64(i), 0, 512<<10)) // a socket takes less than one of these
	}
	time.Sleep(100 * time.Millisecond)
	if sent := v.device.sent.Load(); sent > 2 {
		t.Errorf("%d Sent while the client has read nothing", sent)
	}
	for i := range n / 2 {
		w.want("read", append(simple(0, uint64(i)), make([]byte, 512<<10)...))
	}
	w.Close()
	for deadline := time.Now().Add(5 * time.Second); v.device.sent.Load() != v.device.submitted.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d submitted, %d Sent", v.device.submitted.Load(), v.device.sent.Load())
		}
	}
}

// TestDisconnectWaits: replies in flight come out before the close that DISC asks for.
func TestDisconnectWaits(t *testing.T) {
	held := make(chan *Request, 10)
	v := serve(t, func(_ *Config, e *Export) {
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	w := v.wire(t).start(false)
	w.send(request(0, CMD_FLUSH, 1, 0, 0), request(0, CMD_DISC, 2, 0, 0))
	(<-held).Complete(nil)
	w.want("flush", simple(0, 1))
	w.closed("disconnect")
}

// TestExtents: whatever a device appends, the reply keeps the document's rules.
func TestExtents(t *testing.T) {
	many := make([]Extent, MaxExtents+10)
	for i := range many {
		many[i] = Extent{512, uint32(i & 3)}
	}
	tests := []struct {
		name    string
		device  []Extent
		n       int64
		one     bool
		want    []Extent
		wantLen int
	}{
		{"nothing", nil, 8192, false, []Extent{{8192, 0}}, 1},
		{"empty ones", []Extent{{0, 3}, {4096, 1}, {0, 2}, {4096, 2}}, 8192, false, []Extent{{4096, 1}, {4096, 2}}, 2},
		{"only empty ones", []Extent{{0, 3}}, 8192, false, []Extent{{8192, 0}}, 1},
		{"too long", []Extent{{4096, 1}, {1 << 31, 2}, {512, 1}}, 8192, false, []Extent{{4096, 1}, {4096, 2}}, 2},
		{"short", []Extent{{512, 1}}, 8192, false, []Extent{{512, 1}}, 1},
		{"one", []Extent{{512, 1}, {512, 2}}, 8192, true, []Extent{{512, 1}}, 1},
		{"too many", many, testSize, false, nil, MaxExtents},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := serve(t, func(_ *Config, e *Export) {
				e.Device.(*memDevice).hold = func(r *Request) bool {
					r.Extents = append(r.Extents, tt.device...)
					r.Complete(nil)
					return true
				}
			})
			got, err := v.dial(t, ClientOptions{}).BlockStatus(context.Background(), 0, tt.n, tt.one)
			if err != nil || len(got) != tt.wantLen || tt.want != nil && !slices.Equal(got, tt.want) {
				t.Fatalf("%v, %v", got, err)
			}
		})
	}
}

// TestErrorCodes is what a device's error becomes on the wire.
func TestErrorCodes(t *testing.T) {
	tests := []struct {
		err  error
		want Error
	}{
		{nil, 0},
		{EPERM, EPERM}, {EIO, EIO}, {ENOMEM, ENOMEM}, {EINVAL, EINVAL}, {ENOSPC, ENOSPC},
		{EOVERFLOW, EOVERFLOW}, {ENOTSUP, ENOTSUP}, {ESHUTDOWN, ESHUTDOWN},
		{fmt.Errorf("write: %w", ENOSPC), ENOSPC},
		{Error(0), EIO}, // an error is never success
		{Error(9999), EIO},
		{errors.New("any"), EIO},
		{context.Canceled, EIO},
		{fmt.Errorf("write: %w", syscall.ENOSPC), ENOSPC}, {syscall.EDQUOT, ENOSPC}, {syscall.EFBIG, ENOSPC},
		{syscall.EINVAL, EIO},
	}
	for _, tt := range tests {
		if got := errorCode(tt.err); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.want)
		}
	}
	seen := map[string]bool{}
	for _, e := range []error{EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN, Error(9),
		&Refusal{Code: ERR_UNSUP}, &Refusal{Code: ERR_POLICY}, &Refusal{Code: ERR_INVALID}, &Refusal{Code: ERR_PLATFORM},
		&Refusal{Code: ERR_TLS_REQD}, &Refusal{Code: ERR_UNKNOWN}, &Refusal{Code: ERR_SHUTDOWN, Text: "x"},
		&Refusal{Code: ERR_BLOCK_SIZE_REQD}, &Refusal{Code: ERR_TOO_BIG}, &Refusal{Code: 3}} {
		if s := e.Error(); s == "" || seen[s] {
			t.Errorf("%#v says %q", e, s)
		} else {
			seen[s] = true
		}
	}
	for o := OpRead; o <= OpBlockStatus+1; o++ {
		if s := o.String(); seen[s] {
			t.Errorf("op %d says %q", o, s)
		} else {
			seen[s] = true
		}
	}
}

// TestCompletedTwice is a broken invariant of the device, not a client's doing.
func TestCompletedTwice(t *testing.T) {
	c := newConn(&Server{config: Config{MaxInFlight: 1}}, nil)
	c.writing = true // so that nothing is written
	r := &Request{conn: c}
	r.Complete(nil)
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	r.Complete(nil)
}

// TestTCP serves a second listener of the same server.
func TestTCP(t *testing.T) {
	v := serve(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := v.server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(ctx, "tcp", l.Addr().String(), "", ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	testExchange(t, v, c, ClientOptions{})
	c.Close()
	cancel()
	wg.Wait()
	if err := v.dial(t, ClientOptions{}).Flush(context.Background()); err != nil {
		t.Errorf("the other listener: %v", err)
	}
}

// brokenListener fails as it is told to.
type brokenListener struct {
	net.Listener
	errs chan error
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if err, ok := <-l.errs; ok {
		return nil, err
	}
	return l.Listener.Accept()
}

// TestAcceptErrors: out of descriptors is waited out, a broken listener is returned.
func TestAcceptErrors(t *testing.T) {
	v := serve(t, nil)
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "l"))
	if err != nil {
		t.Fatal(err)
	}
	l := &brokenListener{inner, make(chan error, 3)}
	l.errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
	l.errs <- syscall.ECONNABORTED
	l.errs <- syscall.EBADF
	if err := v.server.Serve(context.Background(), l); !errors.Is(err, syscall.EBADF) {
		t.Errorf("%v", err)
	}
	if _, err := inner.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is still open: %v", err)
	}
}

func TestConfig(t *testing.T) {
	b := &memBackend{}
	for name, c := range map[string]Config{
		"no backend":           {},
		"negative limit":       {Backend: b, MaxInFlight: -1},
		"negative timeout":     {Backend: b, StallTimeout: -1},
		"too little memory":    {Backend: b, BufferBytes: minBufferBytes - 1},
		"more than the system": {Backend: b, BufferBytes: 1 << 62},
	} {
		if _, err := NewServer(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewServer(Config{Backend: b}); err != nil {
		t.Error(err)
	}
}
