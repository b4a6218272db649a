package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tandem/nbd"
)

// The checker's load.
const (
	lanes        = 4 // connections
	laneWorkers  = 8 // writes in flight on each
	maxInFlight  = lanes * laneWorkers
	maxRequest   = 64 << 10
	pieces       = 2         // of the volume, to each worker
	pieceSize    = 768 << 10 // one activity-log extent on a volume of 1 GiB
	redial       = 20 * time.Millisecond
	drainTimeout = 30 * time.Second // for the writes in flight when the checker is told to stop
	readSize     = 1 << 20
	readers      = 4
)

// Node is an agent as the checker sees it.
type Node struct {
	Name   string
	Socket string // NBD
}

// CheckerConfig is for Write and Read, which are the checker: another process
// than the demo, as an application would be.
type CheckerConfig struct {
	Ledger string // path
	Export string
	Nodes  []Node // the export is at any of them
	Depth  int    // Write: requests in flight, 1 to 32
	// OneOutage ends Write when what was in flight in the first outage has
	// been acknowledged by the new primary: a reader can then look at
	// everything before later writes hide a loss.
	OneOutage bool
}

// Write writes until stop can no longer be read, and enters each acknowledgement
// in the ledger. A connection that ends is no error: the write is sent again to
// whichever node serves then.
func Write(ctx context.Context, config CheckerConfig, stop io.Reader) error {
	if config.Depth < 1 || config.Depth > maxInFlight {
		return fmt.Errorf("%d writes in flight: 1 to %d are possible", config.Depth, maxInFlight)
	}
	h, err := readLedger(config.Ledger)
	if err != nil {
		return err
	}
	l, err := openLedger(config.Ledger, h.run)
	if err != nil {
		return err
	}
	defer l.f.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &checker{config: config, ledger: l}
	c.seq.Store(uint64(len(h.writes)))
	// The goroutine that reads stop ends with the process: a read of a pipe
	// does not end with a context.
	go func() {
		_, _ = io.Copy(io.Discard, stop)
		c.stopping.Store(true)
		time.AfterFunc(drainTimeout, func() {
			cancel(fmt.Errorf("writes were still in flight %v after the end", drainTimeout))
		})
	}()

	g, ctx := errgroup.WithContext(ctx)
	for i := range lanes {
		n := &lane{config: config, lock: make(chan struct{}, 1)}
		defer n.close()
		for number := i; number < config.Depth; number += lanes {
			w := newWorker(c, n, number, h.run+uint64(len(h.writes)))
			g.Go(func() error { return w.run(ctx) })
		}
	}
	err = g.Wait()
	if cause := context.Cause(ctx); errors.Is(err, context.Canceled) && cause != nil {
		err = cause
	}
	return err
}

// checker is what the workers of a Write share.
type checker struct {
	config   CheckerConfig
	ledger   *ledger
	seq      atomic.Uint64
	stopping atomic.Bool // no new write is begun
}

// lane is a connection that is made again when it ends.
type lane struct {
	config CheckerConfig
	lock   chan struct{} // of capacity 1, because a context can give up on it

	// guarded by lock
	client *nbd.Client
	node   string
}

// get returns a client other than old, which has failed; nil takes any.
func (n *lane) get(ctx context.Context, old *nbd.Client) (*nbd.Client, string, error) {
	select {
	case n.lock <- struct{}{}:
		defer func() { <-n.lock }()
	case <-ctx.Done():
		return nil, "", context.Cause(ctx)
	}
	if n.client != old && n.client != nil {
		return n.client, n.node, nil
	}
	if n.client != nil {
		n.client.Close()
		n.client = nil
	}
	var err error
	n.client, n.node, err = dial(ctx, n.config)
	return n.client, n.node, err
}

func (n *lane) close() {
	if n.client != nil {
		n.client.Close()
	}
}

// dial asks the nodes in turn until one serves.
func dial(ctx context.Context, config CheckerConfig) (*nbd.Client, string, error) {
	for {
		for _, node := range config.Nodes {
			client, err := nbd.Dial(ctx, "unix", node.Socket, config.Export, nbd.ClientOptions{})
			if err == nil {
				return client, node.Name, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, "", context.Cause(ctx)
		case <-time.After(redial):
		}
	}
}

// gone tells an outage from an answer: what was asked has to be asked again.
func gone(err error) bool { return errors.Is(err, nbd.ErrClosed) || errors.Is(err, nbd.ESHUTDOWN) }

// worker has one write in flight, in pieces of the volume of its own, so that
// nobody else touches its blocks.
type worker struct {
	checker *checker
	lane    *lane
	number  int
	random  *rand.Rand
	buf     []byte
}

func newWorker(c *checker, l *lane, number int, seed uint64) *worker {
	return &worker{checker: c, lane: l, number: number, random: rand.New(rand.NewPCG(seed, uint64(number))), buf: make([]byte, maxRequest)}
}

func (w *worker) run(ctx context.Context) error {
	client, node, err := w.lane.get(ctx, nil)
	if err != nil {
		return err
	}
	for !w.checker.stopping.Load() {
		kind, block, count := w.draw(client.Size())
		if client, node, err = w.write(ctx, client, node, kind, block, count); err != nil {
			return err
		}
		if w.random.IntN(100) > 0 {
			continue
		}
		for {
			if err = client.Flush(ctx); err == nil {
				break
			}
			if client, node, err = w.again(ctx, client, err); err != nil {
				return fmt.Errorf("flush: %w", err)
			}
		}
	}
	return nil
}

// draw chooses the next write: mostly small ones.
func (w *worker) draw(size int64) (kind string, block, count int64) {
	kind, count = plainWrite, 1
	switch p := w.random.IntN(100); {
	case p < 2:
		kind = zeroWrite
	case p < 5:
		kind = fuaWrite
	}
	switch p := w.random.IntN(100); {
	case p < 5:
		count = 16
	case p < 20:
		count = 4
	case p < 35:
		count = 2
	}
	// The pieces lie evenly over the volume.
	piece := int64(w.random.IntN(pieces)*maxInFlight + w.number)
	block = piece*(size/(pieces*maxInFlight)/blockSize) + w.random.Int64N(pieceSize/blockSize-count+1)
	return kind, block, count
}

// write sends one write until it is acknowledged, and returns the connection
// that did it.
func (w *worker) write(ctx context.Context, client *nbd.Client, node, kind string, block, count int64) (*nbd.Client, string, error) {
	seq, l := w.checker.seq.Add(1), w.checker.ledger
	data := w.buf[:count*blockSize]
	for i := range count {
		fillBlock(data[i*blockSize:], l.run, block+i, seq)
	}
	if err := l.issue(seq, block, count, kind); err != nil {
		return nil, "", err
	}
	for {
		var err error
		if kind == zeroWrite {
			err = client.WriteZeroes(ctx, block*blockSize, count*blockSize, 0)
		} else {
			err = client.WriteAt(ctx, data, block*blockSize, kind == fuaWrite)
		}
		if err == nil {
			return client, node, l.ack(seq, node, monotonic())
		}
		for {
			if client, node, err = w.again(ctx, client, err); err != nil {
				return nil, "", fmt.Errorf("write %d: %w", seq, err)
			}
			if err = w.look(ctx, client, block, count); err == nil {
				break
			}
		}
		if err := l.retry(seq, node); err != nil {
			return nil, "", err
		}
	}
}

// again returns the next connection if err is an outage, else err.
func (w *worker) again(ctx context.Context, client *nbd.Client, err error) (*nbd.Client, string, error) {
	if !gone(err) {
		return nil, "", err
	}
	if w.checker.config.OneOutage {
		w.checker.stopping.Store(true)
	}
	return w.lane.get(ctx, client)
}

// look enters in the ledger what is in the way of a write that is sent again:
// it would hide that an acknowledged write before it was lost.
func (w *worker) look(ctx context.Context, client *nbd.Client, block, count int64) error {
	p := make([]byte, count*blockSize)
	if err := client.ReadAt(ctx, p, block*blockSize); err != nil {
		return err
	}
	for i := range count {
		if err := w.checker.ledger.found(block+i, readBlock(p[i*blockSize:], w.checker.ledger.run, block+i)); err != nil {
			return err
		}
	}
	return nil
}

// Read reads every block that the ledger knows and enters those that hold what
// they may not. Nobody may write meanwhile.
func Read(ctx context.Context, config CheckerConfig) error {
	h, err := readLedger(config.Ledger)
	if err != nil {
		return err
	}
	l, err := openLedger(config.Ledger, h.run)
	if err != nil {
		return err
	}
	defer l.f.Close()
	client, node, err := dial(ctx, config)
	if err != nil {
		return err
	}
	defer client.Close()

	numbers := make([]int64, 0, len(h.blocks))
	for n := range h.blocks {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for len(numbers) > 0 {
		run := 1
		for run < len(numbers) && run < readSize/blockSize && numbers[run] == numbers[0]+int64(run) {
			run++
		}
		first, count := numbers[0], int64(run)
		numbers = numbers[run:]
		g.Go(func() error {
			p := make([]byte, count*blockSize)
			if err := client.ReadAt(ctx, p, first*blockSize); err != nil {
				return fmt.Errorf("read of %d blocks at block %d from %s: %w", count, first, node, err)
			}
			for i := range count {
				if c := readBlock(p[i*blockSize:], h.run, first+i); !h.allowed(first+i, c) {
					if err := l.found(first+i, c); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.checked(node, len(h.blocks))
}
