// Package sim runs whole lives of a cluster in one goroutine: the pure cores of
// all nodes on model disks, links, clocks and a model witness, driven by an
// event queue ordered by (virtual time, sequence) and by one seeded generator.
// A life is a function of its seed; the same seed gives the same trace, byte
// for byte.
//
// While it runs, a model of what the clients have seen decides whether what
// they see next is allowed (check.go). The faults are in fault.go, the table of
// what has to happen often enough in stats.go.
package sim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"

	"tandem/blockrepl"
	"tandem/failover"
)

const (
	ms  = int64(1e6)
	sec = 1000 * ms
)

// Options of a life. The zero value is the usual one.
type Options struct {
	Nodes  int  // 2
	Ops    int  // client operations that must complete: 2000
	Trace  bool // keep Result.Trace
	VolBug blockrepl.Bug
	// VoteBug is the other core's.
	VoteBug failover.Bug
	// Monotonic has the nodes read a clock that stops while their host is
	// suspended: the mistake that CLOCK_BOOTTIME is there for.
	Monotonic bool
	// Quiet leaves out the faults: nothing fails, only the operator acts.
	Quiet bool

	lease, heartbeat, freeze int64
	oddCAS                   float64
	scripted                 bool
	manual, auto             bool // a script's nodes promote by themselves only with auto
	extents                  int  // 0: drawn
}

// Result of a life.
type Result struct {
	Seed   uint64
	Nodes  int
	Failed string // "" if every promise held
	Ops    int    // client operations completed
	Events int
	Now    int64 // virtual ns that the life took
	Idle   int64 // of them, from the last fault until somebody served
	Hits   [Hits]int
	Trace  []byte
}

// geometry of every model volume. The sizes are those of the real format, so a
// unit stands for 8 KiB; only the ratios matter: 8 units to a block (one dirty
// bit), 16 blocks to an extent of the activity log, more extents than slots.
const (
	unitShift   = 13
	blockShift  = 16
	extentShift = 20
	alRing      = 4

	unitSize       = int64(1) << unitShift
	unitsPerBlock  = 1 << (blockShift - unitShift)
	unitsPerExtent = 1 << (extentShift - unitShift)
)

// World is one life.
type World struct {
	opt   Options
	seed  uint64
	rng   *rand.Rand
	now   int64
	q     queue
	steps uint64 // orders what the checker sees; also within an instant

	extents, slots int
	volatile       bool
	flushes        uint64 // per cent of the requests
	narrow         bool   // all clients keep to a few extents: the log hardly changes

	m       []*machine
	links   []*link
	witness *witness
	clients []*client
	check   *check
	hook    hooks

	res    *Result
	buf    bytes.Buffer
	done   bool
	stop   bool // no new client requests
	calm   bool // no new faults
	faults faults
}

// hooks are what a scripted test takes out of chance's hands.
type hooks struct {
	witness     func(m *machine, rec *failover.Record) fate // rec nil: a read
	zombieAfter int64
	vol         func(m *machine, e *blockrepl.Effect)
	vote        func(m *machine, e *failover.Effect)
	frame       func(from, to *machine, f *frame) bool // false: lost with its link
	delay       func(k delayKind) int64
}

// delayKind names what takes time.
type delayKind uint8

const (
	delayDisk delayKind = iota
	delayMeta
	delayFlush
	delayNet
	delayDial
	delayWitness
	delayReply
	delayTimer
)

func (w *World) delay(k delayKind) int64 {
	if w.hook.delay != nil {
		if d := w.hook.delay(k); d > 0 {
			return d
		}
	}
	if w.opt.scripted {
		return map[delayKind]int64{delayDial: 2 * ms, delayTimer: 1}[k] + 100_000
	}
	u := w.rng.Uint64()
	long := u%64 == 0
	u >>= 8
	pick := func(lo, hi, tail int64) int64 {
		if long {
			hi = tail
		}
		return lo + int64(u%uint64(hi-lo))
	}
	switch k {
	case delayDisk:
		return pick(50_000, 2*ms, 60*ms)
	case delayMeta:
		return pick(100_000, 2*ms, 60*ms)
	case delayFlush:
		return pick(200_000, 5*ms, 100*ms)
	case delayNet:
		return pick(20_000, 2*ms, 80*ms)
	case delayDial:
		return pick(1*ms, 30*ms, 500*ms)
	case delayWitness:
		return pick(1*ms, 30*ms, 400*ms)
	case delayReply:
		return pick(5_000, 300_000, 40*ms)
	case delayTimer:
		return pick(0, 1*ms, 30*ms)
	}
	panic("sim: a delay of no kind")
}

func (w *World) chance(p float64) bool { return w.rng.Float64() < p }

// between draws from [lo, hi].
func (w *World) between(lo, hi int64) int64 {
	if hi <= lo {
		return lo
	}
	return lo + int64(w.rng.Uint64()%uint64(hi-lo+1))
}

func (w *World) at(t int64, fn func()) { w.q.push(max(t, w.now), fn) }

// tick numbers a moment that the checker compares with others.
func (w *World) tick() uint64 { w.steps++; return w.steps }

func (w *World) hit(h Hit) { w.res.Hits[h]++ }

func (w *World) trace(id int, format string, args ...any) {
	if !w.opt.Trace {
		return
	}
	who := "-"
	if id >= 0 {
		who = w.m[id].name
	}
	fmt.Fprintf(&w.buf, "%11.3f %s ", float64(w.now)/1e6, who)
	fmt.Fprintf(&w.buf, format, args...)
	w.buf.WriteByte('\n')
}

// fail records the first broken promise; the life ends there.
func (w *World) fail(format string, args ...any) {
	if w.res.Failed != "" {
		return
	}
	w.res.Failed = fmt.Sprintf(format, args...)
	w.trace(-1, "FAILED %s", w.res.Failed)
	w.done = true
}

// guard turns a panic of a core into a broken promise.
func (w *World) guard(m *machine) {
	if r := recover(); r != nil {
		if _, ours := r.(simBug); ours {
			panic(r)
		}
		w.fail("%s panics: %v%s", m.name, r, where(debug.Stack()))
	}
}

// where keeps of a stack what lies in the cores.
func where(stack []byte) (s string) {
	for line := range strings.Lines(string(stack)) {
		if i := strings.Index(line, "/tandem/"); i < 0 && strings.Contains(line, ".go:") &&
			(strings.Contains(line, "/blockrepl/") || strings.Contains(line, "/failover/") || strings.Contains(line, "/agent/node/")) {
			s += " at " + line[strings.LastIndex(line, "/")+1:strings.LastIndex(line, " ")]
		}
	}
	return s
}

// simBug is a panic of the simulation itself.
type simBug string

// Run lives one life.
func Run(seed uint64, opt Options) *Result {
	w := newWorld(seed, opt)
	w.life()
	return w.result()
}

func (w *World) result() *Result {
	w.res.Now = w.now
	w.res.Ops = w.check.completed
	w.res.Trace = w.buf.Bytes()
	return w.res
}

func newWorld(seed uint64, opt Options) *World {
	if opt.Nodes == 0 {
		opt.Nodes = 2
	}
	if opt.Ops == 0 {
		opt.Ops = 2000
	}
	w := &World{opt: opt, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x7461_6e64_656d)), res: &Result{Seed: seed, Nodes: opt.Nodes}}
	w.extents = 12 + int(w.rng.Uint32()%8)
	w.slots = 8 + int(w.rng.Uint32()%5)
	if opt.Nodes > 2 {
		// What only one survivor has is in an extent that was cold a moment ago.
		w.extents += int(w.rng.Uint32() % 24)
	}
	w.volatile = opt.scripted || w.chance(0.8)
	w.flushes = [...]uint64{0, 1, 4, 8}[w.rng.Uint32()%4]
	w.narrow = w.chance(0.25)
	if w.opt.lease == 0 {
		w.opt.lease = 600*ms + w.between(0, 900)*ms
		w.opt.heartbeat = w.opt.lease / 6
		w.opt.freeze = w.between(3, 10) * w.opt.lease / 2
		w.opt.oddCAS = 0.03
	}
	w.witness = &witness{w: w}
	w.check = newCheck(w)
	for i := range opt.Nodes {
		w.m = append(w.m, newMachine(w, i))
	}
	for _, m := range w.m {
		m.introduce()
	}
	for i, a := range w.m {
		for _, b := range w.m[i+1:] {
			l := &link{w: w}
			l.ends[0] = &end{l: l, m: a, peer: a.indexOf(b)}
			l.ends[1] = &end{l: l, m: b, peer: b.indexOf(a)}
			l.ends[0].other, l.ends[1].other = l.ends[1], l.ends[0]
			a.ends[l.ends[0].peer], b.ends[l.ends[1].peer] = l.ends[0], l.ends[1]
			w.links = append(w.links, l)
		}
	}
	return w
}

// runUntil carries out events until the condition holds (asked after each), the
// time is over, or the life has failed.
func (w *World) runUntil(limit int64, cond func() bool) bool {
	for !w.done {
		if cond() {
			return true
		}
		if len(w.q.h) == 0 || w.q.h[0].at > limit {
			w.now = limit
			return false
		}
		w.stepOnce()
	}
	return false
}

func (w *World) stepOnce() {
	e := w.q.pop()
	w.now = e.at
	w.res.Events++
	e.fn()
}

func (w *World) idle(d int64) { w.runUntil(w.now+d, func() bool { return false }) }

// maxLife bounds a life that does not come to its operations.
const maxLife = 900 * sec

// life is a whole life: a first start, operation under faults, rest, and the
// final inspection.
func (w *World) life() {
	for _, m := range w.m {
		m.format()
		m.start()
	}
	w.startClients()
	w.operate()
	first := w.m[0]
	var create func()
	create = func() {
		if !first.serving() {
			first.promote()
			w.at(w.now+2*sec, create)
		}
	}
	w.at(w.now+50*ms, create)
	if !w.runUntil(30*sec, func() bool { return first.serving() }) {
		w.fail("the first promotion does not come to an end: %s", w.situation())
		return
	}
	if !w.opt.Quiet {
		w.unleash()
	}
	w.runUntil(maxLife, func() bool { return w.check.completed >= w.opt.Ops })
	w.calm = true
	w.rest()
	if w.done {
		return
	}
	w.settleDown()
	w.lastLoss()
}

// lastLoss is promise 6 once more, where nothing else can keep it: a life ends in the
// middle of its operations, when somebody serves. The primary of a healthy cluster is gone for
// good, and no operator looks. Then it comes back.
func (w *World) lastLoss() {
	healthy := func() bool { return w.primary() != nil && len(w.witness.rec.InSync) == len(w.m) }
	if w.done || !w.runUntil(w.now+60*sec, healthy) {
		return // the operator's last demote has come through
	}
	p := w.primary()
	w.trace(-1, "the primary is lost")
	p.crash(w.chance(0.5))
	if !w.somebodyServes() {
		return
	}
	p.powerUp()
	p.start()
	w.settleDown()
}

// settleDown waits until all copies are one, then looks at them.
func (w *World) settleDown() {
	if !w.somebodyServes() {
		return
	}
	limit, next := w.now+240*sec, int64(0)
	if !w.runUntil(limit, func() bool {
		if rec := w.witness.rec; rec.Paused != nil && w.now >= next {
			// The operator's last demote came through only now.
			next = w.now + 3*sec
			w.anyone().resumeAuto()
		}
		return w.primary() != nil && len(w.witness.rec.InSync) == len(w.m) && w.check.quietSince(w.now-200*ms)
	}) {
		if !w.done {
			w.fail("the cluster does not settle within 240 s after the last fault: %s", w.situation())
		}
		return
	}
	// The last word of the clients: everything is read once more.
	w.stop = true
	if !w.runUntil(w.now+60*sec, func() bool { return w.check.open == 0 }) {
		if !w.done {
			w.fail("client requests hang after the last fault: %s", w.situation())
		}
		return
	}
	if !w.runUntil(w.now+60*sec, func() bool { return w.primary() != nil || w.demotedLate() }) {
		if !w.done {
			w.fail("the primary has gone without a fault: %s", w.situation())
		}
		return
	}
	p := w.primary()
	if p == nil {
		return // the operator's last demote has come through: nobody is to serve
	}
	reads := w.readAll(p)
	if !w.runUntil(w.now+60*sec, func() bool { return reads() }) {
		if !w.done {
			w.fail("the final reads hang: %s", w.situation())
		}
		return
	}
	w.runUntil(w.now+2*w.opt.lease, func() bool { return false })
	if !w.done {
		w.check.final()
	}
}

// somebodyServes: promise 6. When the faults have stopped nobody has to do
// anything, but where an operator has stopped the service: then he resumes it.
func (w *World) somebodyServes() bool {
	if w.done {
		return false
	}
	// What an interrupted claim or a lost lease costs at most: see failover's
	// forceHold, which is the longest of the waits, and a restart's promise before
	// it. The rest is for slow disks, dials and answers.
	bound := 8*w.opt.lease + 5*sec
	calm := w.now
	next := int64(0)
	if w.opt.manual {
		bound = 240 * sec
	}
	ok := w.runUntil(calm+bound, func() bool {
		if w.primary() != nil {
			return true
		}
		if w.opt.manual && w.now >= next {
			next = w.now + 3*sec
			w.helpOut()
		}
		if rec := w.witness.rec; rec != nil && rec.Paused != nil && w.now >= next {
			next = w.now + sec
			calm = w.now
			w.anyone().resumeAuto()
		}
		return false
	})
	if !ok && !w.done {
		w.fail("nobody serves %.1f s after the last fault: %s", float64(w.now-calm)/1e9, w.situation())
	}
	w.res.Idle = max(w.res.Idle, w.now-calm)
	return ok
}

// primary is the machine that serves, if there is exactly one.
func (w *World) primary() *machine {
	var p *machine
	for _, m := range w.m {
		if m.serving() {
			if p != nil {
				return nil
			}
			p = m
		}
	}
	return p
}

func (w *World) situation() string {
	s := "record " + recText(w.witness.rec)
	for _, m := range w.m {
		s += "; " + m.situation()
	}
	return s
}

// demotedLate: a demote that the operator asked for before the faults ended has
// been carried out after it, and paused the cluster.
func (w *World) demotedLate() bool { return w.witness.rec != nil && w.witness.rec.Paused != nil }
