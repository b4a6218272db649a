package proctest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/nbd"
)

const (
	lanes       = 4 // connections
	laneWorkers = 4 // requests in flight on each
	maxInFlight = lanes * laneWorkers

	// The volume is cut into runs of blocks, evenly spread, and every writer has
	// some of its own: a block has one writer. There are more runs than the
	// activity log has slots for, so extents come and go.
	writers   = maxInFlight + maxPinned
	areas     = 4
	runBlocks = 32
	maxPinned = 4

	maxCount = 16 // blocks of a request

	redial      = 20 * time.Millisecond
	dialTimeout = 2 * time.Second // a stopped process accepts and says nothing
	haltLimit   = 40 * time.Second
)

// load writes to whichever node serves, until halt.
type load struct {
	c      *cluster
	ledger *ledger
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	lanes  []*lane

	stopping   atomic.Bool
	reconnects atomic.Int64 // connections that ended
	reads      atomic.Int64
	flushes    atomic.Int64

	mu     sync.Mutex
	failed error
	avoid  string // a node that is not dialled
}

// startLoad begins to write. It returns when the first write is acknowledged.
func (c *cluster) startLoad() *load {
	c.t.Helper()
	l := &load{c: c, ledger: c.ledger}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	seed := rand.Uint64()
	for i := range lanes {
		n := &lane{load: l, lock: make(chan struct{}, 1)}
		l.lanes = append(l.lanes, n)
		for k := range laneWorkers {
			w := &worker{load: l, lane: n, area: area{size: c.size, writer: i*laneWorkers + k}, buf: make([]byte, maxCount*blockSize)}
			w.random = rand.New(rand.NewPCG(seed, uint64(w.area.writer)))
			l.wg.Go(w.run)
		}
	}
	c.loads = append(c.loads, l)
	l.more(1)
	return l
}

// more waits for n further acknowledgements.
func (l *load) more(n int) {
	l.c.t.Helper()
	want := l.ledger.acknowledged() + n
	l.c.until(fmt.Sprintf("%d more writes are acknowledged", n), func() bool {
		l.check()
		return l.ledger.acknowledged() >= want
	})
}

// check fails the test if a worker met what is no outage.
func (l *load) check() {
	l.c.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		l.c.t.Fatalf("load: %v", l.failed)
	}
}

// halt ends the load in order: every request that was begun is acknowledged.
func (l *load) halt() {
	l.c.t.Helper()
	l.stopping.Store(true)
	ended := make(chan struct{})
	go func() { l.wg.Wait(); close(ended) }()
	select {
	case <-ended:
		l.end()
	case <-time.After(haltLimit):
		l.end()
		l.c.t.Fatalf("load: requests were still in flight %v after the end", haltLimit)
	}
	l.check()
}

// abandon ends it with requests that nobody will answer.
func (l *load) abandon() {
	l.c.t.Helper()
	l.end()
	l.check()
}

func (l *load) end() {
	l.stopping.Store(true)
	l.cancel()
	l.wg.Wait()
	for _, n := range l.lanes {
		if n.client != nil {
			n.client.Close()
			n.client = nil
		}
	}
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = err
	}
	l.cancel()
}

// leave gives up all connections to a node that does not answer, as a client
// with a timeout does, and does not dial it again. "" ends that.
func (l *load) leave(node string) {
	l.mu.Lock()
	l.avoid = node
	l.mu.Unlock()
	for _, n := range l.lanes {
		n.lock <- struct{}{}
		if n.client != nil && n.node == node {
			go n.client.Close() // the worker that finds it closed dials anew
		}
		<-n.lock
	}
}

// lane is a connection that is made again when it ends.
type lane struct {
	load *load
	lock chan struct{} // of capacity 1, because a context can give up on it

	// guarded by lock
	client *nbd.Client
	node   string
}

// get returns a client other than old, which has failed; nil takes any.
func (n *lane) get(old *nbd.Client) (*nbd.Client, string, error) {
	ctx := n.load.ctx
	select {
	case n.lock <- struct{}{}:
		defer func() { <-n.lock }()
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
	if n.client != old && n.client != nil {
		return n.client, n.node, nil
	}
	if n.client != nil {
		n.load.reconnects.Add(1)
		n.client.Close()
		n.client = nil
	}
	for {
		for _, x := range n.load.c.nodes {
			n.load.mu.Lock()
			skip := n.load.avoid == x.name
			n.load.mu.Unlock()
			if skip {
				continue
			}
			client, err := dialNBD(ctx, x)
			if err == nil {
				n.client, n.node = client, x.name
				return n.client, n.node, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case <-time.After(redial):
		}
	}
}

func dialNBD(ctx context.Context, n *node) (*nbd.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return nbd.Dial(ctx, "unix", n.socket, clusterName, nbd.ClientOptions{})
}

// gone tells an outage from an answer: what was asked has to be asked again.
func gone(err error) bool { return errors.Is(err, nbd.ErrClosed) || errors.Is(err, nbd.ESHUTDOWN) }

// area is the blocks of one writer.
type area struct {
	size   int64 // of the volume
	writer int
}

// draw chooses a run of count blocks.
func (a area) draw(r *rand.Rand, count int64) int64 {
	run := int64(r.IntN(areas)*writers + a.writer)
	return run*(a.size/(areas*writers)/blockSize) + r.Int64N(runBlocks-count+1)
}

// worker has one request in flight.
type worker struct {
	load   *load
	lane   *lane
	area   area
	random *rand.Rand
	buf    []byte

	client *nbd.Client
	node   string
}

func (w *worker) run() {
	l := w.load
	err := w.again(nil)
	for err == nil && !l.stopping.Load() {
		switch p := w.random.IntN(100); {
		case p < l.c.flushes:
			err = w.flush()
		case p < 12:
			err = w.read()
		default:
			err = w.write()
		}
	}
	if err != nil && l.ctx.Err() == nil {
		l.fail(err)
	}
}

// again takes the next connection if err, which may be nil, is an outage.
func (w *worker) again(err error) error {
	if err != nil && !gone(err) {
		return err
	}
	w.client, w.node, err = w.lane.get(w.client)
	return err
}

// write sends one write until it is acknowledged.
func (w *worker) write() error {
	l, count, zero, fua := w.load, int64(1), false, false
	switch p := w.random.IntN(100); {
	case p < 5:
		count = maxCount
	case p < 20:
		count = 2 + w.random.Int64N(4)
	}
	switch p := w.random.IntN(100); {
	case p < 4:
		zero = true
	case p < 9:
		fua = true
	}
	how := w.random.IntN(3)
	block := w.area.draw(w.random, count)
	seq := l.ledger.issue(block, count, zero)
	data := w.buf[:count*blockSize]
	for i := range count {
		fillBlock(data[i*blockSize:], l.ledger.run, block+i, seq)
	}
	for {
		sent := monotonic()
		var err error
		switch {
		case zero && how == 0:
			err = w.client.Trim(l.ctx, block*blockSize, count*blockSize, fua)
		case zero:
			err = w.client.WriteZeroes(l.ctx, block*blockSize, count*blockSize, uint16(how-1)*nbd.CMD_FLAG_NO_HOLE)
		default:
			err = w.client.WriteAt(l.ctx, data, block*blockSize, fua)
		}
		if err == nil {
			l.ledger.ack(seq, block, count, fua, ackedOp{w.node, sent, monotonic()})
			return nil
		}
		if err := w.look(block, count, err); err != nil {
			return fmt.Errorf("write %d on %s: %w", seq, w.node, err)
		}
	}
}

// look reads, after an outage, what is in the way of a write that is sent again:
// it would hide that an acknowledged write before it was lost.
func (w *worker) look(block, count int64, err error) error {
	p := make([]byte, count*blockSize)
	for {
		if err := w.again(err); err != nil {
			return err
		}
		if err = w.readAt(p, block, count); err == nil || !gone(err) {
			return err
		}
	}
}

// readAt reads and judges.
func (w *worker) readAt(p []byte, block, count int64) error {
	l := w.load
	floors := make([]uint64, count)
	for i := range floors {
		floors[i] = l.ledger.floor(block + int64(i))
	}
	if err := w.client.ReadAt(l.ctx, p, block*blockSize); err != nil {
		return err
	}
	l.reads.Add(1)
	for i := range count {
		if err := l.ledger.judge(block+i, floors[i], p[i*blockSize:]); err != nil {
			return fmt.Errorf("read from %s: %w", w.node, err)
		}
	}
	return nil
}

// read reads what anybody may be writing at the same time.
func (w *worker) read() error {
	a := area{w.load.c.size, w.random.IntN(maxInFlight)}
	count := 1 + w.random.Int64N(4)
	block := a.draw(w.random, count)
	for {
		err := w.readAt(w.buf[:count*blockSize], block, count)
		if err == nil {
			return nil
		}
		if err := w.again(err); err != nil {
			return fmt.Errorf("read on %s: %w", w.node, err)
		}
	}
}

func (w *worker) flush() error {
	l := w.load
	for {
		since := l.ledger.now()
		err := w.client.Flush(l.ctx)
		if err == nil {
			l.ledger.flush(since)
			l.flushes.Add(1)
			return nil
		}
		if err := w.again(err); err != nil {
			return fmt.Errorf("flush on %s: %w", w.node, err)
		}
	}
}

// monotonic is CLOCK_MONOTONIC, ns.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// pinned is a client with blocks of its own that stays with one connection: it
// shows what an old primary still says to those who never left it.
type pinned struct {
	c      *cluster
	client *nbd.Client
	area   area
	node   string
	random *rand.Rand
}

// pin connects to a node.
func (c *cluster) pin(n *node, number int) *pinned {
	c.t.Helper()
	client, err := dialNBD(c.t.Context(), n)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { client.Close() })
	return &pinned{c, client, area{c.size, maxInFlight + number}, n.name, rand.New(rand.NewPCG(1, uint64(number)))}
}

// outcome is how a pinned request ended.
type outcome struct {
	what       string
	err        error
	sent, done int64
}

// write writes one block and enters it in the ledger like any other.
func (p *pinned) write(ctx context.Context) outcome {
	block := p.area.draw(p.random, 1)
	seq := p.c.ledger.issue(block, 1, false)
	data := make([]byte, blockSize)
	fillBlock(data, p.c.ledger.run, block, seq)
	o := outcome{what: fmt.Sprintf("write %d of block %d", seq, block), sent: monotonic()}
	o.err = p.client.WriteAt(ctx, data, block*blockSize, false)
	if o.done = monotonic(); o.err == nil {
		p.c.ledger.ack(seq, block, 1, false, ackedOp{p.node, o.sent, o.done})
	}
	return o
}

// read reads a block of somebody who may be writing elsewhere, and does not
// judge it: that there is an answer at all is the question.
func (p *pinned) read(ctx context.Context, of int) outcome {
	block := area{p.c.size, of}.draw(p.random, 1)
	o := outcome{what: fmt.Sprintf("read of block %d", block), sent: monotonic()}
	o.err = p.client.ReadAt(ctx, make([]byte, blockSize), block*blockSize)
	o.done = monotonic()
	return o
}

// mustBeRefused fails the test if a request was answered although it was sent
// after the instant in which another node had begun to serve.
func (o outcome) mustBeRefused(t testing.TB, node string, instant int64) {
	t.Helper()
	if o.err == nil && o.sent > instant {
		t.Errorf("%s answered the %s that was sent %v after another node had begun to serve", node, o.what, time.Duration(o.sent-instant))
	}
}
