package demo

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a volume; writes go to its mirror too, while there is one.
type memory struct {
	mu     sync.Mutex
	data   []byte
	mirror *memory
	stuck  bool // nothing is answered any more
	held   []*nbd.Request
}

const memorySize = 64 << 20

func (d *memory) Submit(r *nbd.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck {
		d.held = append(d.held, r)
		return
	}
	for v := d; v != nil; v = v.mirror {
		part := v.data[r.Off : r.Off+r.Len]
		switch r.Op {
		case nbd.OpRead:
			if v == d {
				copy(r.Data, part)
			}
		case nbd.OpWrite:
			copy(part, r.Data)
		case nbd.OpWriteZeroes:
			clear(part)
		}
	}
	r.Complete(nil)
}

func (d *memory) Sent(*nbd.Request) {}

func (d *memory) Exports() []string { return []string{"demo"} }

func (d *memory) Open(context.Context, string) (*nbd.Export, error) {
	return &nbd.Export{Name: "demo", Size: memorySize, Device: d}, nil
}

// serveMemory serves d at socket until stop is called, which ends it as a kill
// does.
func serveMemory(t *testing.T, d *memory, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	kept := &keeper{Listener: l}
	server, err := nbd.NewServer(nbd.Config{Backend: d, DrainTimeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, kept) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			kept.cut()
			d.mu.Lock()
			for _, r := range d.held { // a server waits for its device; nobody is there to hear it
				r.Complete(nbd.EIO)
			}
			d.held, d.stuck = nil, false // what its readers still have in hand must end too
			d.mu.Unlock()
			cancel()
			<-done
		})
	}
	t.Cleanup(stop)
	return stop
}

// keeper closes what it accepted.
type keeper struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (k *keeper) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	if err == nil {
		k.mu.Lock()
		k.conns = append(k.conns, c)
		k.mu.Unlock()
	}
	return c, err
}

func (k *keeper) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.conns {
		c.Close()
	}
}

func TestCheckerFindsWhatAnOutageLost(t *testing.T) {
	for name, split := range map[string]time.Duration{"nothing": 0, "much": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			config := CheckerConfig{
				Ledger: filepath.Join(dir, "ledger"), Export: "demo", Depth: maxInFlight, OneOutage: true,
				Nodes: []Node{{"a", filepath.Join(dir, "a")}, {"b", filepath.Join(dir, "b")}},
			}
			if err := createLedger(config.Ledger, 0xabc); err != nil {
				t.Fatal(err)
			}
			b := &memory{data: make([]byte, memorySize)}
			a := &memory{data: make([]byte, memorySize), mirror: b}
			kill := serveMemory(t, a, config.Nodes[0].Socket)
			in, stdin := io.Pipe() // never closed by the test's end of it: the outage ends the writer
			defer stdin.Close()
			done := make(chan error, 1)
			go func() { done <- Write(t.Context(), config, in) }()
			waitWrites(t, config.Ledger, 500)

			a.mu.Lock()
			a.mirror = nil
			if split == 0 {
				a.stuck = true // what b has not got, a does not acknowledge
			}
			a.mu.Unlock()
			time.Sleep(split)
			kill()
			serveMemory(t, b, config.Nodes[1].Socket)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			stdin.Close()
			if err := Read(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			h, err := readLedger(config.Ledger)
			if err != nil {
				t.Fatal(err)
			}
			if h.checked != len(h.blocks) || h.retries == 0 {
				t.Fatalf("%d of %d blocks read, %d writes sent again", h.checked, len(h.blocks), h.retries)
			}
			if _, ok := h.firstAck("b"); !ok {
				t.Fatal("b acknowledged nothing")
			}
			if lost := len(h.lost()); (lost > 0) != (split > 0) {
				t.Fatalf("%d of %d writes lost", lost, h.acknowledged())
			}
		})
	}
}

func waitWrites(t *testing.T, path string, n int) {
	t.Helper()
	for {
		h, err := readLedger(path)
		if err != nil {
			t.Fatal(err)
		}
		if h.acknowledged() >= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A second writer goes on where the first stopped, and ends when its stdin does.
func TestWriterStopsAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	config := CheckerConfig{Ledger: filepath.Join(dir, "ledger"), Export: "demo", Depth: 3, Nodes: []Node{{"a", filepath.Join(dir, "a")}}}
	if err := createLedger(config.Ledger, 1); err != nil {
		t.Fatal(err)
	}
	d := &memory{data: make([]byte, memorySize)}
	serveMemory(t, d, config.Nodes[0].Socket)
	for round := range 2 {
		in, stdin := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- Write(t.Context(), config, in) }()
		waitWrites(t, config.Ledger, 200*(round+1))
		stdin.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if err := Read(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	h, err := readLedger(config.Ledger)
	if err != nil || len(h.bad) > 0 || h.checked != len(h.blocks) || h.acknowledged() != len(h.writes) {
		t.Fatalf("%v: %d of %d writes acknowledged, %d bad blocks", err, h.acknowledged(), len(h.writes), len(h.bad))
	}
	// A block that rots is found, and belongs to a write.
	d.mu.Lock()
	for number := range h.blocks {
		d.data[number*blockSize+100] ^= 1
		break
	}
	d.mu.Unlock()
	if err := Read(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if h, err = readLedger(config.Ledger); err != nil || len(h.lost()) == 0 {
		t.Fatalf("%v: a rotten block was read, and nothing is lost", err)
	}
}

// Pieces neither overlap nor leave the volume: two workers must not meet.
func TestDrawKeepsWorkersApart(t *testing.T) {
	owner := make(map[int64]int)
	for number := range maxInFlight {
		w := newWorker(nil, nil, number, 1)
		for range 2000 {
			_, block, count := w.draw(memorySize)
			if block < 0 || (block+count)*blockSize > memorySize {
				t.Fatalf("%d blocks at %d", count, block)
			}
			for i := range count {
				if other, ok := owner[block+i]; ok && other != number {
					t.Fatalf("block %d belongs to %d and %d", block+i, other, number)
				}
				owner[block+i] = number
			}
		}
	}
	if len(owner) < maxInFlight*pieces*pieceSize/blockSize/2 {
		t.Fatalf("only %d blocks are ever written", len(owner))
	}
}
