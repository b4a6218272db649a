package sim

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"tandem/blockrepl"
	"tandem/blockrepl/wire"
	"tandem/failover"
)

// script is a life whose faults are written down instead of drawn: every delay
// is short and fixed, a power cut takes everything that was not flushed, and
// nothing happens by itself.
type script struct {
	*World
	a, b *machine
	c    *machine // with Options.Nodes 3
	told int      // bytes of the trace before the script
}

// newScript starts the nodes, makes a primary of a and waits until the others are
// in sync.
func newScript(opt Options) *script {
	opt.Quiet, opt.scripted, opt.Trace, opt.manual = true, true, true, !opt.auto
	opt.lease, opt.heartbeat, opt.freeze = 1*sec, 150*ms, 20*sec
	s := &script{World: newWorld(1, opt)}
	s.stop = true
	s.extents, s.slots, s.volatile = max(16, opt.extents), 8, true
	s.check = newCheck(s.World)
	s.a, s.b = s.m[0], s.m[1]
	for i, m := range s.m {
		m.base, m.ppm = int64(100+100*i)*sec, 0
	}
	if len(s.m) > 2 {
		s.c = s.m[2]
	}
	for _, m := range s.m {
		m.format()
		m.start()
	}
	s.run(100)
	s.a.promote()
	s.both("the first promotion")
	if s.c != nil {
		s.run(20) // everybody knows it
	}
	s.told = s.buf.Len()
	return s
}

// run lets so many milliseconds pass.
func (s *script) run(millis int64) { s.idle(millis * ms) }

// until waits for something that has to happen within 100 s.
func (s *script) until(what string, cond func() bool) {
	if !s.runUntil(s.now+100*sec, cond) && !s.done {
		s.fail("it does not come to: %s; %s", what, s.situation())
	}
}

func (s *script) both(what string) {
	names := []string{"a", "b", "c", "d"}[:len(s.m)]
	s.until(what+": all in sync", func() bool { return s.inSync(names...) && s.World.primary() != nil })
}

func (s *script) serves(m *machine) {
	s.until(m.name+" serves", func() bool { return m.serving() })
}

func (s *script) inSync(names ...string) bool {
	return s.witness.rec != nil && slices.Equal(s.witness.rec.InSync, names)
}

func (s *script) ask(m *machine, kind blockrepl.OpKind, lo, hi int, flags uint8) *op {
	o := &op{kind: kind, lo: lo, hi: hi, flags: flags, m: m}
	s.check.invoke(o)
	if m.agent == nil {
		s.fail("the script asks %s, which is off", m.name)
		return o
	}
	m.submit(o)
	return o
}

func (s *script) write(m *machine, lo, hi int) *op { return s.ask(m, blockrepl.OpWrite, lo, hi, 0) }
func (s *script) read(m *machine, lo, hi int) *op  { return s.ask(m, blockrepl.OpRead, lo, hi, 0) }
func (s *script) flush(m *machine) *op             { return s.ask(m, blockrepl.OpFlush, 0, 0, 0) }

// ok waits for a good answer.
func (s *script) ok(ops ...*op) {
	for _, o := range ops {
		s.until("an answer to "+o.text(), func() bool { return o.over })
		if o.err != blockrepl.OK && !s.done {
			s.fail("%s is answered with error %d", o.text(), o.err)
		}
	}
}

func (s *script) link() *link { return s.links[0] }

// cut stops all frames between the two until heal; the connection is not reset
// by itself.
func (s *script) cut() {
	s.trace(-1, "the link is cut")
	s.link().ends[0].cut++
	s.link().ends[1].cut++
}

func (s *script) heal() {
	s.trace(-1, "the link heals")
	for _, e := range s.link().ends {
		e.cut = 0
		if e.up {
			e.down(1)
		}
	}
	s.link().consider()
}

// drop breaks the connection; both agents learn of it at once.
func (s *script) drop() {
	for _, e := range s.link().ends {
		e.down(1)
	}
	s.run(1)
}

// part cuts x from y until mend; both learn of it at once.
func (s *script) part(x, y *machine) {
	s.trace(-1, "%s and %s are cut from each other", x.name, y.name)
	for _, e := range x.ends[x.indexOf(y)].l.ends {
		e.cut++
		e.down(1)
	}
	s.run(1)
}

func (s *script) mend(x, y *machine) {
	s.trace(-1, "%s and %s see each other again", x.name, y.name)
	l := x.ends[x.indexOf(y)].l
	l.ends[0].cut, l.ends[1].cut = 0, 0
	l.consider()
}

// holdTo is hold for a peer that is not the first one.
func (s *script) holdTo(from, to *machine, ch wire.Channel) {
	s.trace(from.id, "its %v frames to %s are held", ch, to.name)
	from.ends[from.indexOf(to)].held[ch] = true
}

// hold keeps the frames of one stream back until release.
func (s *script) hold(from *machine, ch wire.Channel) {
	s.trace(from.id, "its %v frames are held", ch)
	from.ends[0].held[ch] = true
}

func (s *script) release(from *machine, ch wire.Channel) {
	s.trace(from.id, "its %v frames go on", ch)
	e := from.ends[0]
	e.held[ch] = false
	e.deliver(ch)
}

func (s *script) kill(m *machine)  { m.crash(false) }
func (s *script) power(m *machine) { m.crash(true) }
func (s *script) up(m *machine)    { m.powerUp(); m.start() }

// fates decides the next CASes of m, one each; then they are good again.
func (s *script) fates(m *machine, later int64, f ...fate) {
	s.hook.zombieAfter = later
	s.hook.witness = func(x *machine, rec *failover.Record) fate {
		if x == m && rec != nil && len(f) > 0 {
			g := f[0]
			f = f[1:]
			return g
		}
		if x.witnessCut > 0 {
			return witnessLost
		}
		return witnessOK
	}
}

// finish mends everything, waits until both copies are in sync again and looks at
// every promise.
func (s *script) finish() {
	s.hook = hooks{}
	for _, m := range s.m {
		m.witnessCut = 0
	}
	s.heal()
	for _, l := range s.links {
		for _, e := range l.ends {
			e.cut, e.held = 0, [wire.Channels]bool{}
			for ch := range e.held {
				e.deliver(wire.Channel(ch))
			}
		}
		l.consider()
	}
	for _, m := range s.m {
		if m.paused {
			m.resume()
		}
		s.up(m)
	}
	if !s.done {
		s.settleDown()
	}
}

// play runs a scenario and returns what it broke.
func play(f func(*script), opt Options) *Result {
	s := newScript(opt)
	if !s.done {
		f(s)
	}
	if !s.done {
		s.finish()
	}
	return s.result()
}

// nodesOf: a scenario of rule 10 has three nodes.
func nodesOf(name string) int {
	if strings.Contains(name, "14") || strings.Contains(name, "three") {
		return 3
	}
	return 2
}

// scenario is the test of one.
func scenario(t *testing.T, f func(*script)) {
	t.Helper()
	r := play(f, Options{Nodes: nodesOf(t.Name())})
	if r.Failed != "" {
		t.Error(r.Failed)
	}
	if (r.Failed != "" || testing.Verbose()) && os.Getenv("TRACE") != "" {
		fmt.Println(string(r.Trace))
	}
}
