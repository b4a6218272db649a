package demo

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The ledger is the checker's log, the only witness of what was acknowledged.
// It is text, one line an event, appended with one write(2) each, so that
// whatever is killed, what was written is there:
//
//	run 1f0c…                          the first line: what the blocks carry
//	issue SEQ BLOCK COUNT write        before the request is sent; write, fua or zero
//	retry SEQ NODE                     the connection ended before the answer; NODE serves now
//	found BLOCK data SEQ               a block that was looked at: data, zero or foreign
//	ack SEQ NODE NS                    NODE acknowledged it, CLOCK_MONOTONIC
//	checked NODE BLOCKS                every block was read from NODE; those that hold what they may not have lines
//
// A block belongs to one worker, which has one write in flight. So the lines of
// a block are in the order of its events, and after any crash it may hold two
// things: the last acknowledged write, or the one issued after it.
type ledger struct {
	f   *os.File
	run uint64
}

// Kinds of write.
const (
	plainWrite = "write"
	fuaWrite   = "fua"
	zeroWrite  = "zero"
)

// createLedger starts a ledger.
func createLedger(path string, run uint64) error {
	return os.WriteFile(path, fmt.Appendf(nil, "run %016x\n", run), 0o600)
}

// openLedger opens a ledger to append to it.
func openLedger(path string, run uint64) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	return &ledger{f, run}, nil
}

func (l *ledger) issue(seq uint64, block, count int64, kind string) error {
	return l.line("issue ", int64(seq), block, count, kind)
}

func (l *ledger) retry(seq uint64, node string) error {
	return l.line("retry ", int64(seq), -1, -1, node)
}

func (l *ledger) checked(node string, blocks int) error {
	return l.line("checked ", -1, -1, -1, node+" "+strconv.Itoa(blocks))
}

func (l *ledger) found(block int64, c content) error {
	switch c.kind {
	case zeroBlock:
		return l.line("found ", block, -1, -1, "zero")
	case dataBlock:
		return l.line("found ", block, -1, -1, "data "+strconv.FormatUint(c.seq, 10))
	}
	return l.line("found ", block, -1, -1, "foreign")
}

func (l *ledger) ack(seq uint64, node string, ns int64) error {
	return l.line("ack ", int64(seq), -1, -1, node+" "+strconv.FormatInt(ns, 10))
}

// line appends the numbers that are not negative, then the rest.
func (l *ledger) line(word string, a, b, c int64, rest string) error {
	buf := make([]byte, 0, 80)
	buf = append(buf, word...)
	for _, n := range [...]int64{a, b, c} {
		if n >= 0 {
			buf = append(strconv.AppendInt(buf, n, 10), ' ')
		}
	}
	buf = append(append(buf, rest...), '\n')
	_, err := l.f.Write(buf)
	return err
}

// monotonic is CLOCK_MONOTONIC, ns: the same clock in every process of the host.
func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("demo: no CLOCK_MONOTONIC: " + err.Error())
	}
	return t.Nano()
}

// history is what a ledger says.
type history struct {
	run     uint64
	writes  []write          // by seq−1
	blocks  map[int64]*block // that a write was ever issued for
	bad     []gap            // blocks that held what they may not
	retries int
	checked int // the blocks of the last complete reading, 0 after any other line
}

// write is one write of the checker.
type write struct {
	block, count int64
	zero         bool
	node         string // that acknowledged it; empty: nobody
	at           int64  // ns, CLOCK_MONOTONIC
}

// block is what a block may hold.
type block struct {
	acked    uint64 // the last write acknowledged, 0: none
	issued   uint64 // the last write issued
	lastZero uint64 // the last acknowledged write of zeroes, 0: none
}

// gap is a block that held something else than the last acknowledged write or
// the one issued after it: the writes after low up to high are not there.
type gap struct {
	block     int64
	low, high uint64
}

// readLedger reads the ledger at path, which may still grow: half a line at the
// end is left out.
func readLedger(path string) (*history, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	h := &history{blocks: make(map[int64]*block)}
	number := 0
	for {
		end := bytes.IndexByte(data, '\n')
		if end < 0 {
			return h, nil
		}
		number++
		if line := string(data[:end]); !h.apply(line, number == 1) {
			return nil, fmt.Errorf("%s:%d: %q is no line of a ledger", path, number, line)
		}
		data = data[end+1:]
	}
}

// apply takes the next line. It returns false for one that no checker writes.
func (h *history) apply(line string, first bool) bool {
	f := strings.Fields(line)
	n := func(i int) int64 {
		v, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return -1 // refused below: no number is negative
		}
		return v
	}
	h.checked = 0
	switch {
	case len(f) == 2 && f[0] == "run" && first:
		run, err := strconv.ParseUint(f[1], 16, 64)
		if err != nil {
			return false
		}
		h.run = run
	case first:
		return false
	case len(f) == 5 && f[0] == "issue":
		seq, w := n(1), write{block: n(2), count: n(3), zero: f[4] == zeroWrite}
		if seq < 1 || w.block < 0 || w.count < 1 || w.count > maxRequest/blockSize || seq > int64(len(h.writes))+maxInFlight {
			return false
		}
		// Two workers may draw their numbers in one order and write their lines
		// in the other.
		if missing := int(seq) - len(h.writes); missing > 0 {
			h.writes = append(h.writes, make([]write, missing)...)
		}
		h.writes[seq-1] = w
		for i := range w.count {
			b := h.blocks[w.block+i]
			if b == nil {
				b = &block{}
				h.blocks[w.block+i] = b
			}
			b.issued = uint64(seq)
		}
	case len(f) == 4 && f[0] == "ack":
		seq, at := n(1), n(3)
		if seq < 1 || seq > int64(len(h.writes)) || h.writes[seq-1].count == 0 || at < 0 {
			return false
		}
		w := &h.writes[seq-1]
		w.node, w.at = f[2], at
		for i := range w.count {
			b := h.blocks[w.block+i]
			b.acked = uint64(seq)
			if w.zero {
				b.lastZero = uint64(seq)
			}
		}
	case len(f) == 3 && f[0] == "retry":
		h.retries++
	case len(f) == 3 && f[0] == "checked":
		h.checked = int(n(2))
	case len(f) >= 3 && f[0] == "found":
		number, c := n(1), content{kind: foreignBlock}
		switch {
		case h.blocks[number] == nil:
			return false
		case f[2] == "zero":
			c.kind = zeroBlock
		case f[2] == "data" && len(f) == 4 && n(3) >= 0:
			c = content{dataBlock, uint64(n(3))}
		case f[2] != "foreign":
			return false
		}
		h.judge(number, c)
	default:
		return false
	}
	return true
}

// allowed is whether a block may hold c: the last acknowledged write, or the
// one issued after it.
func (h *history) allowed(number int64, c content) bool {
	b := h.blocks[number]
	zero := func(seq uint64) bool { return seq == 0 || h.writes[seq-1].zero }
	switch c.kind {
	case dataBlock:
		return (c.seq == b.acked || c.seq == b.issued) && !zero(c.seq)
	case zeroBlock:
		return zero(b.acked) || zero(b.issued)
	}
	return false
}

// judge remembers what is missing from a block that holds c.
func (h *history) judge(number int64, c content) {
	if h.allowed(number, c) {
		return
	}
	b := h.blocks[number]
	g := gap{block: number, high: b.acked}
	switch c.kind {
	case dataBlock:
		g.low = c.seq
	case zeroBlock:
		g.low = b.lastZero
	}
	h.bad = append(h.bad, g)
}

// acknowledged is how many writes were.
func (h *history) acknowledged() int {
	count := 0
	for i := range h.writes {
		if h.writes[i].node != "" {
			count++
		}
	}
	return count
}

// lost returns the acknowledged writes of which something is missing.
func (h *history) lost() []uint64 {
	gaps := make(map[int64][]gap)
	for _, g := range h.bad {
		gaps[g.block] = append(gaps[g.block], g)
	}
	var lost []uint64
	for i := range h.writes {
		w, seq := &h.writes[i], uint64(i+1)
		if w.node == "" {
			continue
		}
		missing := func(number int64) bool {
			return slices.ContainsFunc(gaps[number], func(g gap) bool { return g.low < seq && seq <= g.high })
		}
		for k := range w.count {
			if missing(w.block + k) {
				lost = append(lost, seq)
				break
			}
		}
	}
	return lost
}

// firstAck is when the node acknowledged its first write, ns; ok is whether it
// has.
func (h *history) firstAck(node string) (at int64, ok bool) {
	for i := range h.writes {
		if w := &h.writes[i]; w.node == node && (!ok || w.at < at) {
			at, ok = w.at, true
		}
	}
	return at, ok
}
