package sim

import (
	"fmt"
	"math"

	"tandem/blockrepl"
	"tandem/blockrepl/wire"
)

// op is one client request, over all its replays.
type op struct {
	name   uint64 // of the write; unique
	kind   blockrepl.OpKind
	flags  uint8
	lo, hi int // units
	c      *client
	m      *machine // where it is open
	inv    uint64   // step of its first submission
	got    []uint64
	over   bool // answered, or cut off for good

	// Of its present submission:
	err     blockrepl.Errno
	rest    blockrepl.Tag   // the reservation of a long one
	tags    []blockrepl.Tag // of the parts so far
	next    int             // unit at which the next part begins
	pending int             // parts that are not complete, the one that is about to be submitted included
	decided int             // units whose Complete the core has emitted
}

// partUnits is the longest single operation, as blockrepl.MaxOpLen is in an
// agent: a few such operations find room in the log, the whole volume does not.
const partUnits = 2 * unitsPerExtent

// partsAtATime is how many parts of one request are in flight.
const partsAtATime = 2

// part is what one tag stands for: a request, or some units of a long one.
type part struct {
	o       *op
	lo, hi  int
	decided bool // the core has emitted its Complete
}

// client is one user of the device: it keeps some requests in flight, in
// bursts, over a part of the volume that moves. Clients do not wait for each
// other, so their requests overlap at random.
type client struct {
	w     *World
	id    int
	depth int
	out   int // requests without an answer
	burst int // requests left in this burst
	hot   int // first unit of the part it likes
	idle  bool
}

func (w *World) startClients() {
	n := 3 + int(w.rng.Uint32()%4)
	for i := range n {
		c := &client{w: w, id: i, depth: 1 + int(w.rng.Uint32()%6), idle: true}
		w.clients = append(w.clients, c)
	}
}

func (w *World) wakeClients(m *machine) {
	// What the kernel was not answered comes first, in its order.
	inc := m.inc
	for len(m.replay) > 0 {
		o := m.replay[0]
		m.replay = m.replay[1:]
		w.hit(HitReplay)
		w.trace(m.id, "request %s is replayed", o.text())
		o.got = nil
		m.submit(o)
		if m.inc != inc {
			return // killed over it
		}
	}
	for _, c := range w.clients {
		if c.idle {
			c.idle = false
			w.at(w.now+w.between(0, 2*ms), c.kick)
		}
	}
}

// kick begins or continues a burst.
func (c *client) kick() {
	w := c.w
	if w.stop {
		return
	}
	m := w.pick()
	if m == nil {
		c.idle = true
		return
	}
	if c.burst == 0 {
		c.burst = 1 + int(w.rng.Uint32()%16)
		if w.rng.Uint32()%8 == 0 && !w.narrow {
			c.hot = int(w.rng.Uint32()) % len(w.m[0].data.units)
		}
	}
	for c.burst > 0 && c.out < c.depth {
		c.burst--
		c.issue(m, c.draw())
		if w.done || !m.serving() {
			break
		}
	}
	if c.burst == 0 {
		w.at(w.now+w.between(1*ms, 250*ms), c.kick)
	} else if c.out == 0 {
		w.at(w.now+w.between(1*ms, 5*ms), c.kick)
	}
}

// pick is a machine that serves.
func (w *World) pick() *machine {
	n, k := len(w.m), 0
	for i := range n {
		if w.m[i].serving() && len(w.m[i].replay) == 0 {
			k++
		}
	}
	if k == 0 {
		return nil
	}
	k = int(w.rng.Uint32()) % k
	for i := range n {
		if w.m[i].serving() && len(w.m[i].replay) == 0 {
			if k == 0 {
				return w.m[i]
			}
			k--
		}
	}
	return nil
}

func (c *client) draw() *op {
	w := c.w
	u := w.rng.Uint64()
	o := &op{c: c}
	switch k := u % 100; {
	case k < w.flushes:
		o.kind = blockrepl.OpFlush
	case k < 40:
		o.kind = blockrepl.OpRead
	case k < 90:
		o.kind = blockrepl.OpWrite
	default:
		o.kind = blockrepl.OpZero
		w.hit(HitZero)
	}
	u >>= 8
	if o.kind == blockrepl.OpFlush {
		return o
	}
	if o.kind != blockrepl.OpRead && u%10 == 0 {
		o.flags = wire.FUA
		w.hit(HitFUA)
	}
	u >>= 8
	n := 1 + int(u%(3*unitsPerBlock))
	u >>= 8
	if u%32 == 0 {
		n = 16 * unitsPerBlock
	}
	u >>= 8
	all := len(w.m[0].data.units)
	if o.kind == blockrepl.OpZero && u%64 == 0 {
		// mkfs and fstrim: one request over a good part of the volume, or all of it.
		w.hit(HitLongZero)
		o.lo = int(u >> 8 % uint64(all/4))
		o.hi = all - int(u>>24%uint64(all/4))
		if u>>40&1 == 0 {
			o.lo, o.hi = 0, all
		}
		return o
	}
	at := int(u % uint64(all))
	if u>>20%3 != 0 {
		at = (c.hot + int(u%(3*unitsPerExtent/2))) % all
	} else if w.narrow {
		at = (c.hot + int(u%(4*unitsPerExtent))) % all
	}
	o.lo = min(at, all-1)
	o.hi = min(o.lo+n, all)
	return o
}

func (c *client) issue(m *machine, o *op) {
	w := c.w
	c.out++
	o.c = c
	w.check.invoke(o)
	m.submit(o)
}

// submit hands the request to the agent; an agent that does not serve answers
// with an error, as the real server does.
func (m *machine) submit(o *op) {
	o.m = m
	m.open = append(m.open, o)
	o.err, o.tags, o.next, o.pending, o.decided = blockrepl.OK, nil, o.lo, 1, 0
	m.input(func(now int64) {
		if !m.agent.Serving() {
			o.err = blockrepl.ESHUTDOWN
			m.reply(o, 0)
			return
		}
		o.pending--
		if o.writes() && o.hi-o.lo > partUnits {
			o.rest = m.agent.Vol.Reserve(now, o.kind, int64(o.lo)*unitSize, int64(o.hi-o.lo)*unitSize, o.flags)
		}
		for range partsAtATime {
			m.submitPart(now, o)
		}
	})
}

// submitPart begins the next part of o, if there is one.
func (m *machine) submitPart(now int64, o *op) {
	if o.next == o.hi && len(o.tags) > 0 {
		return
	}
	p := &part{o: o, lo: o.next, hi: o.hi}
	var tag blockrepl.Tag
	if o.writes() && o.hi-o.lo > partUnits {
		p.hi = min(o.next+partUnits, o.hi)
		tag = m.agent.Vol.Part(now, o.rest, int64(p.hi-p.lo)*unitSize)
	} else {
		tag = m.agent.Vol.Submit(now, o.kind, int64(p.lo)*unitSize, int64(p.hi-p.lo)*unitSize, o.flags)
	}
	o.next = p.hi
	o.pending++
	o.tags = append(o.tags, tag)
	m.ops[tag] = p
	if m.w.opt.Trace {
		m.w.trace(m.id, "request %s%s tag %x", o.text(), when(p.hi-p.lo < o.hi-o.lo, fmt.Sprintf(" part [%d,%d)", p.lo, p.hi)), uint64(tag))
	}
}

// decide looks at a Complete when the core emits it: from then on it counts as
// completed at this instant, however late the reply is sent.
func (m *machine) decide(e *blockrepl.Effect) {
	p := m.ops[e.Tag]
	if p == nil || p.decided {
		panic("completes a request that it was not given, or twice")
	}
	p.decided = true
	if e.Err != blockrepl.OK {
		return
	}
	o := p.o
	o.decided += p.hi - p.lo
	m.w.check.decided(m, o, p.lo, p.hi)
	if o.decided == o.hi-o.lo && len(o.tags) > 1 && !m.w.done {
		// Nobody may have touched the first parts while the last were on their way.
		m.w.check.decided(m, o, o.lo, o.hi)
	}
}

// complete ends a part: the next one begins, or the reply is sent. The core
// learns when it is in the socket, for all parts at once.
func (m *machine) complete(e *blockrepl.Effect) {
	o := m.ops[e.Tag].o
	o.pending--
	if o.err == blockrepl.OK {
		o.err = e.Err
	}
	if o.next < o.hi && o.err == blockrepl.OK {
		o.pending++
		m.later(m.w.between(0, 100_000), func(now int64) {
			o.pending--
			m.submitPart(now, o)
		})
		return
	}
	if o.pending == 0 {
		m.reply(o, m.w.delay(delayReply))
	}
}

func (m *machine) reply(o *op, d int64) {
	w := m.w
	inc := m.inc
	w.at(w.now+d, func() {
		if m.inc != inc || o.over {
			return // the agent died with the reply in its memory
		}
		o.over = true
		m.forget(o)
		w.check.respond(o)
		if len(o.tags) > 0 {
			// The socket has it; the agent learns that a little later.
			m.later(w.between(0, 100_000), func(now int64) {
				for _, tag := range o.tags {
					delete(m.ops, tag)
					m.agent.Vol.Sent(now, tag)
				}
			})
		}
		if o.c != nil {
			o.c.answered()
		}
	})
}

func (c *client) answered() {
	c.out--
	if c.burst > 0 && !c.idle {
		c.kick()
	}
}

func (m *machine) forget(o *op) {
	for i, x := range m.open {
		if x == o {
			m.open = append(m.open[:i], m.open[i+1:]...)
			return
		}
	}
}

// unanswered is called when the agent has died: its requests wait for a replay,
// unless the clients died with the host, or somebody else has begun a term
// meanwhile: the replay would get an error, as design rule 8 has it.
func (m *machine) unanswered(host bool) {
	open := append(m.replay, m.open...)
	m.open, m.replay = nil, nil
	if last := m.w.check.lastBy; !host && (last == m || last == nil) {
		m.replay = open
		return
	}
	m.cutOff(open)
}

// cutOff ends requests that nobody will ever answer.
func (m *machine) cutOff(ops []*op) {
	for _, o := range ops {
		o.over = true
		m.w.check.limbo(o)
		if o.c != nil {
			o.c.out--
			if !o.c.idle && o.c.out == 0 {
				c := o.c
				m.w.at(m.w.now+m.w.between(1*ms, 20*ms), c.kick)
			}
		}
	}
}

// readAll reads the whole volume through p; the function tells whether all
// reads are answered.
func (w *World) readAll(p *machine) func() bool {
	var ops []*op
	all := len(p.data.units)
	for lo := 0; lo < all; lo += unitsPerExtent {
		o := &op{kind: blockrepl.OpRead, lo: lo, hi: min(lo+unitsPerExtent, all)}
		ops = append(ops, o)
		w.check.invoke(o)
		p.submit(o)
	}
	return func() bool {
		for _, o := range ops {
			if !o.over {
				return false
			}
		}
		return true
	}
}

const never = uint64(math.MaxUint64)
