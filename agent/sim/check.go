package sim

import (
	"fmt"
	"slices"
	"strings"

	"tandem/blockrepl"
	"tandem/blockrepl/wire"
	"tandem/failover"
)

// check is what the outside world knows, and what it may therefore expect.
//
// Each unit is a register whose writes all have different values. All that a
// value went through (its write and the reads that returned it) is a cluster,
// with f, the first moment by which it was certainly there (the first answer),
// and s, the last moment at which it was certainly still or not yet gone (the
// last question). If f < s the value was the register's from f to s. The
// history has an order that explains it exactly if no two such spans overlap
// and no cluster lies wholly inside another's span (Gibbons and Korach, 1997);
// so a wrong answer is found at the read that shows it.
//
// A write without an answer, or answered with an error, may have happened. If
// nobody has seen it by the time that the next term begins it is as if it had
// ended then: a request of an old term must not be carried out in a new one.
//
// The one thing that may go back is what no FLUSH covered when every node that
// held it lost its power: see blackout.
type check struct {
	w     *World
	units []register

	names     uint64
	completed int
	open      int
	last      int64 // time of the last completion
	inLimbo   []*op
	flushed   uint64 // the latest submission of a FLUSH that was answered

	// holders are the nodes whose copy has everything acknowledged, as far as
	// the rules promise it: members since they joined, unless their power failed.
	holders []bool
	// blackout: at some moment nobody was left who held everything. The next
	// term begins with what the disks kept.
	blackout bool

	epoch  uint64 // highest in which anything was completed
	server *machine
	began  []*machine // by epoch
	lastBy *machine
	casBy  map[uint64][]uint64 // nonce → start of the sender's sessions

	quietFrom int64
	// heirs is the set that the record named before the present epoch.
	heirs []string
}

// register is one unit's history.
type register struct {
	cs []cluster
}

type cluster struct {
	name uint64
	inv  uint64 // the write's question
	end  uint64 // the write's answer, or when it was given up; never: it is open
	f, s uint64
	real bool // it has certainly happened
	base bool // from before the last cut; one of the bases is the truth
	fua  bool // answered with FUA
	solo bool // nothing else was open when it began
}

func newCheck(w *World) *check {
	c := &check{w: w, units: make([]register, w.extents*unitsPerExtent), holders: make([]bool, w.opt.Nodes), casBy: map[uint64][]uint64{}}
	arena := make([]cluster, len(c.units)*8)
	for i := range c.units {
		c.units[i].cs = append(arena[i*8:i*8:i*8+8], cluster{real: true})
	}
	return c
}

func (o *op) text() string {
	k := [...]string{"?", "read", "write", "zero", "flush"}[o.kind]
	if o.kind == blockrepl.OpFlush {
		return fmt.Sprintf("%s %d", k, o.inv)
	}
	return fmt.Sprintf("%s w%d [%d,%d)%s", k, o.name, o.lo, o.hi, when(o.flags != 0, " FUA"))
}

func (o *op) writes() bool { return o.kind == blockrepl.OpWrite || o.kind == blockrepl.OpZero }

func (c *check) invoke(o *op) {
	c.open++
	o.inv = c.w.tick()
	c.names++
	o.name = c.names
	if o.kind == blockrepl.OpFlush {
		return
	}
	for i := o.lo; i < o.hi; i++ {
		r := &c.units[i]
		solo := true
		for k := range r.cs {
			if r.cs[k].end == never {
				solo = false
			}
		}
		if !solo {
			if o.writes() {
				c.w.hit(HitOverlap)
			} else {
				c.w.hit(HitReadOver)
			}
		}
		if o.writes() {
			r.cs = append(r.cs, cluster{name: o.name, inv: o.inv, s: o.inv, f: never, end: never, solo: solo})
		}
	}
}

func (r *register) find(name uint64) *cluster {
	for k := len(r.cs) - 1; k >= 0; k-- {
		if r.cs[k].name == name {
			return &r.cs[k]
		}
	}
	return nil
}

// respond takes the answer that has reached the client.
func (c *check) respond(o *op) {
	c.open--
	t := c.w.tick()
	if o.err != blockrepl.OK {
		c.w.trace(o.m.id, "answer %s: error %d", o.text(), o.err)
		c.end(o, t, false)
		return
	}
	c.completed++
	c.last = c.w.now
	if c.w.opt.Trace {
		c.w.trace(o.m.id, "answer %s%s", o.text(), valsText(o))
	}
	switch o.kind {
	case blockrepl.OpFlush:
		c.flushed = max(c.flushed, o.inv)
	case blockrepl.OpRead:
		if len(o.got) != o.hi-o.lo {
			c.w.fail("%s: the read was answered with data that was never read", o.text())
			return
		}
		for i := o.lo; i < o.hi && !c.w.done; i++ {
			c.saw(i, o.got[i-o.lo], o.inv, t, o)
		}
	default:
		c.end(o, t, true)
	}
}

func valsText(o *op) string {
	if o.kind != blockrepl.OpRead {
		return ""
	}
	s := ""
	for i := 0; i < len(o.got); {
		k := i
		for k < len(o.got) && o.got[k] == o.got[i] {
			k++
		}
		s += fmt.Sprintf(" %d:w%d", o.lo+i, o.got[i])
		i = k
	}
	return s
}

// end gives the writes of o their end; acked: they have happened.
func (c *check) end(o *op, t uint64, acked bool) {
	if !o.writes() {
		return
	}
	for i := o.lo; i < o.hi && !c.w.done; i++ {
		x := c.units[i].find(o.name)
		if x == nil {
			continue // cut away by a blackout: it did not happen
		}
		x.end = t
		if acked {
			x.real = true
			x.fua = o.flags&wire.FUA != 0
		}
		if x.real {
			x.f = min(x.f, t)
			c.judge(i, x, o)
		}
	}
}

// saw: a read of unit i between inv and t returned name.
func (c *check) saw(i int, name uint64, inv, t uint64, o *op) {
	r := &c.units[i]
	x := r.find(name)
	if x == nil {
		c.w.fail("%s by %s: unit %d reads w%d, which must be gone (%s)", o.text(), o.m.name, i, name, r.text())
		return
	}
	if x.base && !x.real {
		// Of the states that the blackout may have left, this one it is.
		keep := *x
		cs := r.cs[:0]
		for _, y := range r.cs {
			if !y.base || y.name == name {
				cs = append(cs, y)
			}
		}
		r.cs = cs
		x = r.find(keep.name)
	}
	if !x.real {
		x.real = true
		x.f = min(x.f, x.end)
	}
	x.f, x.s = min(x.f, t), max(x.s, inv)
	c.judge(i, x, o)
}

// judge compares one cluster with all others of its unit.
func (c *check) judge(i int, x *cluster, o *op) {
	r := &c.units[i]
	for k := range r.cs {
		y := &r.cs[k]
		if y == x || !y.real {
			continue
		}
		bad := false
		switch xf, yf := x.f < x.s, y.f < y.s; {
		case xf && yf:
			bad = x.f < y.s && y.f < x.s
		case xf:
			bad = y.s > x.f && y.f < x.s
		case yf:
			bad = x.s > y.f && x.f < y.s
		}
		if bad {
			c.w.fail("%s by %s: unit %d was w%d from step %d to %d, and w%d from %d to %d (%s)", o.text(), o.m.name, i, x.name, x.f, x.s, y.name, y.f, y.s, r.text())
			return
		}
	}
}

func (r *register) text() string {
	s := "known:"
	from := max(0, len(r.cs)-6)
	for _, x := range r.cs[from:] {
		s += fmt.Sprintf(" w%d", x.name)
		if x.end == never {
			s += "…"
		}
		if !x.real {
			s += "?"
		}
	}
	return s
}

// limbo: nobody will ever answer o. If its term is over already, so is o.
func (c *check) limbo(o *op) {
	c.open--
	if c.lastBy != nil && c.lastBy != o.m {
		c.end(o, c.w.tick(), false)
		return
	}
	c.inLimbo = append(c.inLimbo, o)
}

// serves: machine m begins a term. What older terms left open ends here.
func (c *check) serves(m *machine) {
	w := c.w
	e := m.epoch
	for len(c.began) <= int(e) {
		c.began = append(c.began, nil)
	}
	if c.began[e] != nil {
		w.fail("%s and %s both began epoch %d", c.began[e].name, m.name, e)
		return
	}
	c.began[e] = m
	for _, o := range w.m {
		if o != m && len(o.replay) > 0 {
			r := o.replay
			o.replay = nil
			o.cutOff(r)
		}
	}
	if c.lastBy == m {
		w.hit(HitResume)
	} else if c.lastBy != nil && (c.lastBy.agent == nil || !c.lastBy.ends[c.lastBy.indexOf(m)].up) {
		w.hit(HitTakeover)
	}
	c.family(m)
	c.lastBy = m
	t := w.tick()
	for _, o := range c.inLimbo {
		c.end(o, t, false)
	}
	c.inLimbo = c.inLimbo[:0]
	if c.blackout {
		both := true
		for _, x := range w.m {
			both = both && x.lostAt > 0
		}
		if both {
			w.hit(HitBothMarked)
		}
		c.blackout = false
		c.cut(m, t)
	}
}

// family looks at the other copies when m takes over.
func (c *check) family(m *machine) {
	if len(c.w.m) == 2 || c.lastBy == nil {
		return
	}
	for _, x := range c.w.m {
		if x == m || x == c.lastBy {
			continue
		}
		same := true
		for i := range x.data.units {
			same = same && x.data.units[i].cur == m.data.units[i].cur
		}
		switch {
		case same:
		case slices.Contains(c.heirs, x.name):
			c.w.hit(HitSurvivorLacks)
		default:
			c.w.hit(HitAbsentDiffers)
		}
	}
	if c.lastBy != m && c.lastBy.resyncing {
		c.w.hit(HitResyncSourceGone)
	}
}

// cut begins a new history after a blackout. Each unit is what it was at the
// last FLUSH that was answered, or anything that came after.
func (c *check) cut(m *machine, t uint64) {
	w := c.w
	w.trace(m.id, "what was not flushed before step %d may be lost", c.flushed)
	rolled := false
	for i := range c.units {
		r := &c.units[i]
		var keep, open []cluster
		for _, x := range r.cs {
			if x.end == never && !x.real {
				// Its client is still there, and has it carried out yet: the disk failed,
				// or the agent was killed, but no host.
				open = append(open, x)
				continue
			}
			gone := false
			end := x.end
			if x.real {
				end = min(x.f, x.end)
			}
			for _, y := range r.cs {
				durable := y.real && (y.f <= c.flushed || y.fua)
				if durable && y.name != x.name && end < y.s {
					gone = true
					break
				}
			}
			if !gone {
				keep = append(keep, cluster{name: x.name, inv: x.inv, end: t, f: t, s: t, base: true})
			}
		}
		if len(keep) == 1 {
			keep[0].real = true
		}
		if n := len(r.cs); n > 0 && r.cs[n-1].real && m.data.units[i].cur != r.cs[n-1].name {
			rolled = true
		}
		r.cs = append(keep, open...)
	}
	if rolled {
		w.hit(HitRollback)
	}
}

// decided: the core of m has just let units lo to hi of o complete.
func (c *check) decided(m *machine, o *op, lo, hi int) {
	w := c.w
	e := m.agent.Vote.Epoch()
	switch {
	case e < c.epoch:
		w.fail("%s completes %s in epoch %d after something was completed in epoch %d by %s", m.name, o.text(), e, c.epoch, c.server.name)
		return
	case e == c.epoch && c.server != nil && c.server != m:
		w.fail("%s and %s both complete in epoch %d (%s)", c.server.name, m.name, e, o.text())
		return
	}
	c.epoch, c.server = e, m
	if w.witness.rec == nil {
		return
	}
	for _, x := range w.m {
		if !c.holders[x.id] || !w.witness.rec.Has(x.name) {
			continue
		}
		switch {
		case o.writes():
			for i := lo; i < hi; i++ {
				if got := x.data.units[i].cur; got != o.name {
					w.fail("%s completes %s in epoch %d, but %s, which %s names, has w%d at unit %d", m.name, o.text(), e, x.name, recText(w.witness.rec), got, i)
					return
				}
				if o.flags&wire.FUA != 0 && x.data.units[i].dur != o.name {
					w.fail("%s completes %s in epoch %d, but it is not durable at unit %d of %s", m.name, o.text(), e, i, x.name)
					return
				}
			}
		case o.kind == blockrepl.OpFlush:
			c.durableAt(m, x, o)
		}
	}
}

// durableAt: what was answered before the FLUSH o began, and not touched since,
// is durable on x.
func (c *check) durableAt(m, x *machine, o *op) {
	for i := range c.units {
		r := &c.units[i]
		y := &r.cs[len(r.cs)-1]
		if y.base || !y.real || !y.solo || y.end > o.inv || y.name == 0 {
			continue
		}
		if u := &x.data.units[i]; u.dur != y.name {
			c.w.fail("%s completes %s, but %s has w%d durable at unit %d, not w%d", m.name, o.text(), x.name, u.dur, i, y.name)
			return
		}
	}
}

// crashes is called before the machine's disks lose what they lose.
func (c *check) crashes(m *machine, host bool) {
	if !host || !c.w.volatile {
		return
	}
	c.lose(m)
}

func (c *check) lose(m *machine) {
	m.lostAt = c.w.tick()
	if !c.holders[m.id] {
		return
	}
	c.holders[m.id] = false
	for _, h := range c.holders {
		if h {
			return
		}
	}
	c.blackout = true
	c.w.trace(m.id, "nobody is left who holds everything")
}

// casSent remembers since when the sender's sessions stand.
func (c *check) casSent(m *machine, nonce uint64) {
	if _, ok := c.casBy[nonce]; ok {
		return
	}
	since := make([]uint64, len(c.w.m))
	for i, e := range m.ends {
		since[m.peers[i].id] = e.knownSince
	}
	c.casBy[nonce] = since
}

// recordChanged: a CAS landed.
func (c *check) recordChanged(from *machine, old, rec *failover.Record) {
	c.quietFrom = c.w.now
	c.w.react(from)
	if old != nil {
		away := len(rec.InSync) < len(c.w.m)-1
		if n := len(rec.InSync) - len(old.InSync); rec.Epoch == old.Epoch && n > 0 && len(rec.InSync) < len(c.w.m) {
			c.w.hit(HitGrowOneAway)
		} else if rec.Epoch == old.Epoch && n < 0 && away {
			c.w.hit(HitShrinkTwice)
		}
		if rec.Epoch > old.Epoch {
			c.heirs = old.InSync
		}
	}
	if old != nil && rec.Epoch > old.Epoch && old.Paused != nil && byItself(rec) {
		c.w.fail("%s promoted by itself although that was paused: %s", from.name, rec.Reason)
		return
	}
	if old == nil || rec.Epoch > old.Epoch {
		if old != nil && old.Primary != rec.Primary && byItself(rec) {
			c.w.hit(HitItself)
		}
		clear(c.holders)
		c.holders[from.id] = true
		return
	}
	since := c.casBy[rec.Nonce]
	any := false
	for _, m := range c.w.m {
		m.foreign = m.foreign && !(rec.Has(m.name) && !old.Has(m.name))
		switch {
		case !rec.Has(m.name):
			c.holders[m.id] = false
		case !old.Has(m.name):
			// Its power may have failed while the CAS was under way.
			c.holders[m.id] = m.lostAt < since[m.id]
			if c.holders[m.id] {
				c.sameAs(from, m)
			}
		}
		any = any || c.holders[m.id]
	}
	if !any {
		// The one who made the change flushed before it.
		c.holders[from.id] = true
	}
	c.covered("the record has changed")
}

// byItself: nobody asked for the promotion that the record tells of.
func byItself(rec *failover.Record) bool {
	return strings.Contains(rec.Reason, "by itself") || strings.HasSuffix(rec.Reason, " came back")
}

// sameAs: who joins the set has everything that was acknowledged.
func (c *check) sameAs(p, m *machine) {
	for i := range c.units {
		r := &c.units[i]
		y := &r.cs[len(r.cs)-1]
		if y.base || !y.real || !y.solo {
			continue
		}
		if got := m.data.units[i].cur; got != y.name {
			c.w.fail("%s joins the in-sync set with w%d at unit %d, but w%d was acknowledged", m.name, got, i, y.name)
			return
		}
	}
}

// quietSince: the record has not changed since then.
func (c *check) quietSince(t int64) bool { return c.quietFrom < t }

// final: all copies are one.
func (c *check) final() {
	w := c.w
	a := w.m[0]
	for _, b := range w.m[1:] {
		for i := range a.data.units {
			if x, y := a.data.units[i].cur, b.data.units[i].cur; x != y {
				w.fail("the copies differ at the end: unit %d is w%d on %s and w%d on %s", i, x, a.name, y, b.name)
				return
			}
		}
	}
	for _, m := range w.m {
		if m.agent == nil {
			w.fail("%s is not running at the end", m.name)
			return
		}
		for i, p := range m.peers {
			if n := m.agent.Vol.OutOfSync(i); n != 0 {
				w.fail("%s keeps %d dirty bytes for %s at the end", m.name, n, p.name)
				return
			}
		}
	}
}
