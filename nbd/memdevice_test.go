package nbd

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memDevice is a volume in memory. Blocks of 512 bytes remember whether they were written, for block status.
type memDevice struct {
	mu        sync.RWMutex
	data      []byte
	allocated []bool
	fua       atomic.Int64 // writes that asked for durability
	flushes   atomic.Int64
	cached    atomic.Int64
	noHole    atomic.Int64

	submitted, sent atomic.Int64
	slowZero        bool // FAST_ZERO is refused
	async           bool // complete from another goroutine
	// hold, if set, is asked first: true keeps the request, for the test to complete.
	hold func(*Request) bool
}

func newMemDevice(size int64) *memDevice {
	return &memDevice{data: make([]byte, size), allocated: make([]bool, size/512)}
}

func (d *memDevice) Submit(r *Request) {
	d.submitted.Add(1)
	if d.hold != nil && d.hold(r) {
		return
	}
	if d.async {
		go d.serve(r)
		return
	}
	d.serve(r)
}

func (d *memDevice) serve(r *Request) { r.Complete(d.do(r)) }

func (d *memDevice) Sent(*Request) { d.sent.Add(1) }

func (d *memDevice) do(r *Request) error {
	if r.FUA {
		d.fua.Add(1)
	}
	switch r.Op {
	case OpRead:
		d.mu.RLock()
		copy(r.Data, d.data[r.Off:r.Off+r.Len])
		d.mu.RUnlock()
		return nil
	case OpFlush:
		d.flushes.Add(1)
		return nil
	case OpCache:
		d.cached.Add(r.Len)
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	part := d.data[r.Off : r.Off+r.Len]
	marks := d.allocated[r.Off/512 : (r.Off+r.Len)/512]
	set := func(v bool) {
		for i := range marks {
			marks[i] = v
		}
	}
	switch r.Op {
	case OpWrite:
		copy(part, r.Data)
		set(true)
	case OpTrim:
		clear(part)
		set(false)
	case OpWriteZeroes:
		if r.FastZero && d.slowZero {
			return ENOTSUP
		}
		clear(part)
		set(r.NoHole)
		if r.NoHole {
			d.noHole.Add(1)
		}
	case OpBlockStatus:
		for i := 0; i < len(marks); {
			j := i
			for j < len(marks) && marks[j] == marks[i] {
				j++
			}
			flags := uint32(0)
			if !marks[i] {
				flags = STATE_HOLE | STATE_ZERO
			}
			r.Extents = append(r.Extents, Extent{Len: uint32(j-i) * 512, Flags: flags})
			if i = j; r.ReqOne || len(r.Extents) == MaxExtents {
				break
			}
		}
	}
	return nil
}

// memBackend serves its exports by name; "" is the first.
type memBackend struct {
	exports []*Export
	refusal error
}

func (b *memBackend) Exports() []string {
	var names []string
	for _, e := range b.exports {
		names = append(names, e.Name)
	}
	return names
}

func (b *memBackend) Open(_ context.Context, name string) (*Export, error) {
	if b.refusal != nil {
		return nil, b.refusal
	}
	for _, e := range b.exports {
		if name == "" || name == e.Name {
			return e, nil
		}
	}
	return nil, &Refusal{Code: ERR_UNKNOWN, Text: "no such export"}
}

// served is a running server with one export "vol" on a unix socket.
type served struct {
	server *Server
	socket string
	device *memDevice
	export *Export
	stop   func() // ends Serve and waits for it
}

const testSize = 64 << 20

func serve(t testing.TB, change func(*Config, *Export)) *served {
	t.Helper()
	d := newMemDevice(testSize)
	e := &Export{Name: "vol", Description: "a test volume", Size: testSize, MultiConn: true, Device: d}
	config := Config{Backend: &memBackend{exports: []*Export{e}}, BufferBytes: minBufferBytes}
	if change != nil {
		change(&config, e)
	}
	s, err := NewServer(config)
	if err != nil {
		t.Fatal(err)
	}
	v := &served{server: s, socket: filepath.Join(t.TempDir(), "nbd"), device: d, export: e}
	l, err := net.Listen("unix", v.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	v.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("Serve does not return")
		}
		if sub, sent := d.submitted.Load(), d.sent.Load(); sub != sent {
			t.Errorf("%d requests submitted, %d Sent", sub, sent)
		}
		if n := s.Connections(); n != 0 {
			t.Errorf("%d connections left", n)
		}
		checkBuffers(t, s)
	})
	t.Cleanup(v.stop)
	return v
}

// checkBuffers wants every byte of payload memory back and merged.
func checkBuffers(t testing.TB, s *Server) {
	t.Helper()
	for _, a := range []*arena{s.buffers.small, s.buffers.large} {
		a.mu.Lock()
		n := 0
		for i := a.free[arenaOrders-1]; i >= 0; i = a.next[i] {
			n++
		}
		if want := len(a.mem) / (a.unit << (arenaOrders - 1)); n != want {
			t.Errorf("arena of unit %d: %d of %d largest blocks are free", a.unit, n, want)
		}
		if len(a.waiters) != 0 {
			t.Errorf("arena of unit %d: %d waiters left", a.unit, len(a.waiters))
		}
		a.mu.Unlock()
	}
}

func (v *served) dial(t testing.TB, options ClientOptions) *Client {
	t.Helper()
	c, err := Dial(context.Background(), "unix", v.socket, "vol", options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
