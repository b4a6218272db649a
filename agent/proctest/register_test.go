package proctest

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"tandem/nbd"
)

// Every block of a volume is a register: a read returns what the last write put
// there. Whether a history of overlapping reads and writes is one that such
// registers can have is for porcupine to say, block by block.

const (
	registerClients = 12
	registerBlocks  = 256 // evenly spread, so that activity-log extents come and go

	// hotBlocks are what half of the requests go to at a time, so that clients
	// meet; they change every hotOps requests, so that no block has too many.
	hotBlocks = 8
	hotOps    = 400

	// registerTimeout is when a client gives up on an answer, and on the
	// connection with it. The request may still be carried out, at any time.
	registerTimeout = 2 * time.Second
	// scoutTimeout is that of the first client, which so finds out soon that
	// another node serves while the old one is frozen.
	scoutTimeout = 200 * time.Millisecond

	// checkLimit is for a history that is too hard to judge: no verdict is a failure.
	checkLimit = 2 * time.Minute
)

// forever is the return of a request that was never answered.
const forever = math.MaxInt64

// access is the input of an operation, and the value that a write wrote.
type access struct {
	block int64
	write bool
	value uint64
}

// registerModel is one block: 0 at first.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byBlock := make(map[int64][]porcupine.Operation)
		for _, op := range history {
			b := op.Input.(access).block
			byBlock[b] = append(byBlock[b], op)
		}
		for _, b := range slices.Sorted(maps.Keys(byBlock)) {
			parts = append(parts, byBlock[b])
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if a := input.(access); a.write {
			return true, a.value
		}
		return output.(uint64) == state.(uint64), state
	},
	DescribeOperation: func(input, output any) string {
		if a := input.(access); a.write {
			return fmt.Sprintf("write %d", a.value)
		}
		return fmt.Sprintf("read %d", output)
	},
}

// history is what clients have asked and been told. Times are CLOCK_MONOTONIC of
// this process.
type history struct {
	run   uint64 // of the blocks' content
	value atomic.Uint64

	mu       sync.Mutex
	ops      []porcupine.Operation
	answered int
	open     int         // writes that were never answered
	writes   []writeDone // answered, in the order of their returns, to within a scheduler's whim
}

// writeDone is an answered write, for questions about time.
type writeDone struct {
	node       string
	sent, done int64
}

// do sends one request and enters it. Of what was not answered a write stays open
// for ever, and a read was none: it can have no effect, and has no value.
func (h *history) do(ctx context.Context, client *nbd.Client, node string, number int, block int64, write bool) error {
	a := access{block: block, write: write}
	p := make([]byte, blockSize)
	if write {
		a.value = h.value.Add(1)
		fillBlock(p, h.run, block, a.value)
	}
	off := block * registerStride(client.Size())
	op := porcupine.Operation{ClientId: number, Input: a, Output: uint64(0), Call: monotonic()}
	var err error
	if write {
		err = client.WriteAt(ctx, p, off, false)
	} else {
		err = client.ReadAt(ctx, p, off)
	}
	op.Return = monotonic()
	if err == nil && !write {
		value, _, ok := readBlock(p, h.run, block)
		if !ok {
			return fmt.Errorf("block %d, read from %s, holds what was never written there (%q…)", block, node, p[:16])
		}
		op.Output = value
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil:
		h.ops = append(h.ops, op)
		h.answered++
		if write {
			h.writes = append(h.writes, writeDone{node, op.Call, op.Return})
		}
	case write:
		op.Return = forever
		h.ops = append(h.ops, op)
		h.open++
	}
	return err
}

// registerStride is the distance of two registers, in bytes.
func registerStride(size int64) int64 { return size / registerBlocks / blockSize * blockSize }

// count is how many requests were answered, and how many writes are open.
func (h *history) count() (answered, open int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.answered, h.open
}

// firstWrite is when the first write was answered that was sent after the
// instant, by a certain node or ("") by any.
func (h *history) firstWrite(node string, instant int64) (at int64, by string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range slices.Backward(h.writes) {
		if w.done < instant {
			break
		}
		if w.sent > instant && (node == "" || w.node == node) && (!ok || w.done < at) {
			at, by, ok = w.done, w.node, true
		}
	}
	return at, by, ok
}

// answeredAfter counts the writes that node answered although they were sent
// after the instant.
func (h *history) answeredAfter(node string, instant int64) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.writes {
		if w.node == node && w.sent > instant {
			n++
		}
	}
	return n
}

// judge fails the test unless the history is one of registers, and unless the
// same history with one stale read in it is refused.
func (h *history) judge(t testing.TB) {
	t.Helper()
	h.mu.Lock()
	ops := slices.Clone(h.ops)
	h.mu.Unlock()
	began := time.Now()
	if result := porcupine.CheckOperationsTimeout(registerModel, ops, checkLimit); result != porcupine.Ok {
		t.Fatalf("the history of %d operations is not one of registers (%s): %s", len(ops), result, culprit(ops))
	}
	t.Logf("porcupine: %d operations are linearizable (%v)", len(ops), time.Since(began).Round(time.Millisecond))
	read, ok := plantStaleRead(ops)
	if !ok {
		t.Fatal("no read in the history can be made a stale one")
	}
	if result := porcupine.CheckOperationsTimeout(registerModel, ops, checkLimit); result != porcupine.Illegal {
		t.Fatalf("with a stale read planted in block %d the history is still %s: this test has no teeth", read.Input.(access).block, result)
	}
}

// plantStaleRead changes the last read that can be changed: it returns what was
// overwritten, for certain, before it was sent.
func plantStaleRead(ops []porcupine.Operation) (read porcupine.Operation, ok bool) {
	for i := range slices.Backward(ops) {
		r := &ops[i]
		a := r.Input.(access)
		if a.write {
			continue
		}
		// The last write that was over before the read began, and one that was
		// over before that one began.
		var newer, older *porcupine.Operation
		for k := range ops {
			w := &ops[k]
			if b := w.Input.(access); !b.write || b.block != a.block || w.Return >= r.Call {
				continue
			}
			if newer == nil || w.Call > newer.Call {
				newer = w
			}
		}
		for k := range ops {
			w := &ops[k]
			if b := w.Input.(access); newer != nil && b.write && b.block == a.block && w.Return < newer.Call {
				older = w
			}
		}
		if older != nil {
			r.Output = older.Input.(access).value
			return *r, true
		}
	}
	return read, false
}

// culprit names a block whose history alone is refused.
func culprit(ops []porcupine.Operation) string {
	for _, part := range registerModel.Partition(ops) {
		if porcupine.CheckOperationsTimeout(registerModel, part, checkLimit) == porcupine.Ok {
			continue
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		text := fmt.Sprintf("block %d:", part[0].Input.(access).block)
		for _, op := range part {
			end := fmt.Sprint(op.Return / 1000)
			if op.Return == forever {
				end = "…"
			}
			text += fmt.Sprintf("\n  [%d, %s] µs client %d %s", op.Call/1000, end, op.ClientId, registerModel.DescribeOperation(op.Input, op.Output))
		}
		return text
	}
	return "each block alone is"
}

// registers are clients of a cluster, each with one request in flight.
type registers struct {
	c      *cluster
	h      *history
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	full   atomic.Bool // as fast as it goes, else some hundred requests a second
	sent   atomic.Int64

	mu     sync.Mutex
	failed error
	avoid  string             // a node that is left alone
	on     context.Context    // of requests to any other node than avoid
	off    context.CancelFunc // ends on
}

func (c *cluster) startRegisters(h *history) *registers {
	r := &registers{c: c, h: h}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.on, r.off = context.WithCancel(r.ctx)
	seed := rand.Uint64()
	for i := range registerClients {
		x := &registerClient{r: r, number: i, random: rand.New(rand.NewPCG(seed, uint64(i)))}
		r.wg.Go(x.run)
	}
	c.t.Cleanup(r.stop)
	return r
}

// stop ends the clients where they are; what is in flight stays open.
func (r *registers) stop() {
	r.cancel()
	r.wg.Wait()
}

// more waits for n answers.
func (r *registers) more(n int) {
	r.c.t.Helper()
	r.full.Store(true)
	defer r.full.Store(false)
	before, _ := r.h.count()
	r.c.until(fmt.Sprintf("%d more requests are answered", n), func() bool {
		r.check()
		answered, _ := r.h.count()
		return answered >= before+n
	})
}

func (r *registers) check() {
	r.c.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		r.c.t.Fatalf("a client: %v", r.failed)
	}
}

// leave has all clients give up what they have asked, and leave a node that is
// stopped, as if they knew. "" ends that.
func (r *registers) leave(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.avoid = node
	r.off()
	r.on, r.off = context.WithCancel(r.ctx)
}

// use is the context of a request to node; ok is whether it may be used.
func (r *registers) use(node string) (ctx context.Context, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.on, r.avoid != node
}

// registerClient never sends a request twice: a write that was not answered
// stays open, and the next one has another value.
type registerClient struct {
	r      *registers
	number int
	random *rand.Rand
	next   int // the node that is dialled first
}

func (x *registerClient) run() {
	r, timeout := x.r, registerTimeout
	if x.number == 0 {
		timeout = scoutTimeout
	}
	for r.ctx.Err() == nil {
		n, client, err := x.dial()
		if err != nil {
			return
		}
		for err == nil {
			if !r.full.Load() {
				select {
				case <-r.ctx.Done():
				case <-time.After(time.Duration(x.random.Int64N(int64(60 * time.Millisecond)))):
				}
			}
			ctx, ok := r.use(n.name)
			if !ok {
				break
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			err = r.h.do(ctx, client, n.name, x.number, x.draw(), x.random.IntN(2) == 0)
			if ctx.Err() != nil {
				err = nbd.ErrClosed // by us: the answer may be on its way
			}
			cancel()
		}
		client.Close()
		if err != nil && !gone(err) {
			r.mu.Lock()
			r.failed = fmt.Errorf("%s: %w", n.name, err)
			r.mu.Unlock()
			return
		}
	}
}

func (x *registerClient) draw() int64 {
	turn := x.r.sent.Add(1) / hotOps
	if x.random.IntN(2) == 0 {
		return x.random.Int64N(registerBlocks)
	}
	return (turn*hotBlocks + x.random.Int64N(hotBlocks)) % registerBlocks
}

// dial goes on from the node of the last connection: a frozen primary takes new
// ones, and answers nothing.
func (x *registerClient) dial() (*node, *nbd.Client, error) {
	nodes := x.r.c.nodes
	for ; ; x.next++ {
		n := nodes[x.next%len(nodes)]
		if ctx, ok := x.r.use(n.name); ok {
			if client, err := dialNBD(ctx, n); err == nil {
				x.next++
				return n, client, nil
			}
		}
		select {
		case <-x.r.ctx.Done():
			return nil, nil, x.r.ctx.Err()
		case <-time.After(redial / 2):
		}
	}
}

// What the checker makes of small histories, those among them that a takeover
// could leave.
func TestRegisterModel(t *testing.T) {
	write := func(value uint64, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: access{7, true, value}, Output: uint64(0), Call: call, Return: end}
	}
	read := func(value uint64, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: access{block: 7}, Output: value, Call: call, Return: end}
	}
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
		want porcupine.CheckResult
	}{
		{"nothing was written", []porcupine.Operation{read(0, 1, 2)}, porcupine.Ok},
		{"what was never written", []porcupine.Operation{read(5, 1, 2)}, porcupine.Illegal},
		{"an acknowledged write is gone", []porcupine.Operation{write(1, 1, 2), read(0, 3, 4)}, porcupine.Illegal},
		{"an old value while the write runs", []porcupine.Operation{write(1, 1, 9), read(0, 3, 4), read(1, 5, 6)}, porcupine.Ok},
		{"a value once read is gone", []porcupine.Operation{write(1, 1, 9), read(1, 3, 4), read(0, 5, 6)}, porcupine.Illegal},
		{"a cut-off write was never done", []porcupine.Operation{write(1, 1, forever), read(0, 3, 4), read(0, 8, 9)}, porcupine.Ok},
		{"a cut-off write is done later", []porcupine.Operation{write(1, 1, forever), read(0, 3, 4), read(1, 8, 9)}, porcupine.Ok},
		{"a cut-off write was seen and is gone", []porcupine.Operation{write(1, 1, forever), read(1, 3, 4), read(0, 8, 9)}, porcupine.Illegal},
		{"two cut-off writes in turn", []porcupine.Operation{write(1, 1, forever), write(2, 1, forever), read(1, 3, 4), read(2, 5, 6), read(1, 8, 9)}, porcupine.Illegal},
		{"another block", []porcupine.Operation{write(1, 1, 2), {Input: access{block: 8}, Output: uint64(0), Call: 3, Return: 4}}, porcupine.Ok},
	} {
		if got := porcupine.CheckOperationsTimeout(registerModel, c.ops, checkLimit); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	// A stale read is planted only where it is one for certain.
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
		want bool
	}{
		{"overwritten", []porcupine.Operation{write(1, 1, 2), write(2, 3, 4), read(2, 5, 6)}, true},
		{"the writes overlap", []porcupine.Operation{write(1, 1, 3), write(2, 2, 4), read(2, 5, 6)}, false},
		{"the read overlaps", []porcupine.Operation{write(1, 1, 2), write(2, 3, 6), read(2, 5, 7)}, false},
		{"one is open", []porcupine.Operation{write(1, 1, 2), write(2, 3, forever), read(2, 5, 6)}, false},
	} {
		_, ok := plantStaleRead(c.ops)
		if result := porcupine.CheckOperationsTimeout(registerModel, c.ops, checkLimit); ok != c.want || ok != (result == porcupine.Illegal) {
			t.Errorf("%s: planted %v, %s", c.name, ok, result)
		}
	}
}
