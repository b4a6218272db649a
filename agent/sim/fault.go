package sim

import "time"

var epochZero = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// faults is what goes wrong, and when.
type faults struct {
	w *World
	// plan strikes at one of the coming effects.
	plan struct {
		m     *machine
		class effectClass // classes: any
		after bool
		left  int
		do    func()
	}
	stalled *machine
	asks    *machine // stopped when it next asks for a lease
	// shield: until then only what cannot combine into two failures happens.
	shield func() bool
}

// strike is asked before and after each effect; true: the fault has happened.
func (f *faults) strike(m *machine, c effectClass, after bool) bool {
	p := &f.plan
	if p.m != m || p.after != after || p.class != classes && p.class != c {
		return false
	}
	if p.left--; p.left > 0 {
		return false
	}
	p.m = nil
	w := m.w
	if w.calm {
		return false
	}
	w.trace(m.id, "fault strikes %s a %v", map[bool]string{true: "after", false: "before"}[after], c)
	w.hit(HitAtEffect)
	inc := m.inc
	p.do()
	return m.inc != inc || m.paused
}

// unleash makes faults happen from now on until the life is calm.
func (w *World) unleash() {
	w.faults.w = w
	pace := w.between(1, 4)
	var next func()
	next = func() {
		if w.calm || w.done {
			return
		}
		if w.faults.shield != nil {
			if w.faults.shield() {
				w.faults.shield = nil
			}
		}
		if w.faults.shield == nil {
			w.fault()
		}
		w.at(w.now+w.between(20*ms, pace*w.opt.lease), next)
	}
	w.at(w.now+w.between(0, w.opt.lease), next)
	var snap func()
	snap = func() {
		if w.calm || w.done {
			return
		}
		m := w.anyone()
		m.snap = &snapshot{at: w.now, data: m.data.snapshot(), meta: m.meta.snapshot()}
		w.at(w.now+w.between(1, 10)*w.opt.lease, snap)
	}
	w.at(w.now+w.between(0, 5)*w.opt.lease, snap)
}

type snapshot struct {
	at   int64
	data []uint64
	meta []byte
}

func (w *World) anyone() *machine { return w.m[int(w.rng.Uint32())%len(w.m)] }

// victim prefers the primary: it has more to lose.
func (w *World) victim() *machine {
	if p := w.primary(); p != nil && w.chance(0.4) {
		return p
	}
	return w.anyone()
}

// down returns how long something stays away: mostly shorter than a lease,
// at times long.
func (w *World) down() int64 {
	if w.chance(0.3) {
		return w.between(w.opt.lease, 4*w.opt.lease)
	}
	return w.between(2*ms, w.opt.lease)
}

func (m *machine) crashFor(host bool, d int64) {
	if !m.hostUp {
		return
	}
	m.crash(host)
	w := m.w
	if host {
		d += w.between(50*ms, 300*ms)
	}
	m.restartAt = w.now + d
	at := m.restartAt
	w.at(at, func() {
		if m.restartAt == at {
			m.powerUp()
			m.start()
		}
	})
}

// fault does one thing to the cluster.
func (w *World) fault() {
	l := w.opt.lease
	if len(w.m) > 2 && w.chance(0.25) {
		switch w.rng.Uint32() % 5 {
		case 0, 1:
			w.bereave()
		case 2, 3:
			w.outlast()
		default:
			w.putBack()
		}
		return
	}
	switch w.rng.Uint32() % 25 {
	case 0:
		w.victim().crashFor(false, w.down())
	case 1:
		if m := w.victim(); m.hostUp {
			w.hit(HitHostOne)
			m.crashFor(true, w.down())
		}
	case 2:
		host := w.chance(0.5)
		if host {
			w.hit(HitHostBoth)
		} else {
			w.hit(HitAgentBoth)
		}
		for _, m := range w.m {
			if host || m.agent != nil {
				m.crashFor(host, w.down())
			}
		}
	case 3:
		d := w.between(5*ms, l)
		if w.chance(0.5) {
			d = w.between(l, 3*l)
		}
		w.victim().pause(d)
	case 4:
		w.hit(HitCut)
		k := w.links[int(w.rng.Uint32())%len(w.links)]
		d := w.down()
		w.trace(-1, "link %s-%s is cut for %.0f ms", k.ends[0].m.name, k.ends[1].m.name, float64(d)/1e6)
		k.ends[0].cutFor(d)
		k.ends[1].cutFor(d)
	case 5:
		w.hit(HitOneWayCut)
		k := w.links[int(w.rng.Uint32())%len(w.links)]
		d := w.down()
		e := k.ends[w.rng.Uint32()%2]
		w.trace(-1, "frames from %s to %s are cut for %.0f ms", e.m.name, e.other.m.name, float64(d)/1e6)
		e.cutFor(d)
	case 6:
		k := w.links[int(w.rng.Uint32())%len(w.links)]
		w.trace(-1, "link %s-%s breaks", k.ends[0].m.name, k.ends[1].m.name)
		k.ends[0].down(w.delay(delayNet))
		k.ends[1].down(w.delay(delayNet))
	case 7:
		w.hit(HitWitnessOut)
		w.witness.out++
		d := w.down()
		w.trace(-1, "the witness is out for %.0f ms", float64(d)/1e6)
		w.at(w.now+d, func() { w.witness.out-- })
	case 8:
		m := w.victim()
		w.hit(HitWitnessOut)
		m.witnessCut++
		d := w.down()
		w.trace(m.id, "is cut from the witness for %.0f ms", float64(d)/1e6)
		w.at(w.now+d, func() { m.witnessCut-- })
	case 9:
		d := w.between(l/2, 4*l)
		w.trace(-1, "the witness is slow and odd for %.0f ms", float64(d)/1e6)
		w.witness.slow, w.witness.odd = w.chance(0.5), true
		w.at(w.now+d, func() { w.witness.slow, w.witness.odd = false, false })
	case 10:
		if w.faults.stalled != nil {
			return
		}
		w.hit(HitDiskStall)
		w.faults.stalled = w.victim()
		w.at(w.now+w.between(l/4, 2*l), func() { w.faults.stalled = nil })
	case 11, 17:
		w.putBack()
	case 12:
		w.isolate(w.victim())
	case 13:
		w.usurp()
	case 18:
		w.oversleep()
	case 19:
		w.lateNews()
	case 20:
		w.secede()
	case 14:
		w.victim().suspend(w.down())
	case 15:
		w.victim().goodbye(w.between(2*ms, w.opt.lease))
	case 16:
		w.victim().breakDisk(w.down())
	default:
		w.aim()
	}
}

// isolate cuts m from everybody and from the witness, each for a time of its
// own. An operator who sees it go promotes another.
func (w *World) isolate(m *machine) {
	l := w.opt.lease
	d := w.between(l/2, 4*l)
	w.hit(HitIsolated)
	w.trace(m.id, "is cut from everybody for about %.0f ms", float64(d)/1e6)
	for _, e := range m.ends {
		e.cutFor(d)
		e.other.cutFor(d + w.between(-l/4, l/4))
	}
	m.witnessCut++
	w.at(w.now+d+w.between(-l/2, 3*l), func() { m.witnessCut-- })
	if w.chance(0.7) {
		o := w.other(m)
		for k := range int64(3) {
			w.at(w.now+w.between(0, d)+k*l/2, o.promote)
		}
	}
}

// usurp cuts the primary from a standby, perhaps kills the standby's agent, and
// lets the operator promote it at once: what it promised must hold all the same.
func (w *World) usurp() {
	p := w.primary()
	if p == nil {
		return
	}
	o := w.other(p)
	d := w.between(w.opt.lease/4, 3*w.opt.lease)
	w.trace(o.id, "is cut from %s for %.0f ms and shall take over", p.name, float64(d)/1e6)
	e := o.ends[o.indexOf(p)]
	after := int64(0)
	if w.chance(0.4) {
		// It sleeps over what it was granted, and wakes up in the promise.
		p.pause(w.between(w.opt.lease/4, 3*w.opt.lease/2))
		after = w.between(0, 10*ms)
		d = 3 * w.opt.lease
	}
	w.at(w.now+after, func() {
		e.other.cutFor(d)
		if w.rng.Uint32()%4 != 0 {
			e.cutFor(d)
		}
	})
	if w.chance(0.5) {
		o.crashFor(false, w.between(1*ms, 50*ms))
	}
	for k := range int64(4) {
		w.at(w.now+w.between(0, 20*ms)+k*d/4, o.promote)
	}
}

// two are the primary and two others, in any order.
func (w *World) two() (p, a, b *machine) {
	if p = w.primary(); p == nil {
		return nil, nil, nil
	}
	a = w.other(p)
	for b = w.other(p); b == a; {
		b = w.other(p)
	}
	return p, a, b
}

// takeOver is an operator who wants o to be primary, and asks until about d from
// now.
func (w *World) takeOver(o *machine, d int64) {
	for k := range int64(6) {
		w.at(w.now+w.between(0, 20*ms)+k*d/5, func() {
			if !w.calm && w.primary() == nil {
				o.promote()
			}
		})
	}
}

// bereave takes the primary away while one of two others did not hear its last
// words. Either of them takes over.
func (w *World) bereave() {
	p, a, b := w.two()
	if p == nil {
		return
	}
	w.hit(HitBereaved)
	l := w.opt.lease
	e := p.ends[p.indexOf(a)]
	d := w.between(20*ms, 2*l)
	w.trace(p.id, "is not heard by %s any more, and will go", a.name)
	e.cutFor(d)
	if w.chance(0.3) {
		e.other.cutFor(d)
	}
	host := w.chance(0.3)
	if w.chance(0.5) {
		a, b = b, a
	}
	w.at(w.now+w.between(1*ms, min(d, l/2)), func() {
		if w.calm {
			return
		}
		p.crashFor(host, w.between(l, 6*l))
		if w.chance(0.3) {
			b.crashFor(false, w.between(1*ms, l))
		}
		w.takeOver(a, 3*l)
	})
}

// outlast keeps one node away while the others go on without it, then takes the
// primary away. The third, which may have been away for a moment too, takes over.
func (w *World) outlast() {
	p, a, b := w.two()
	if p == nil {
		return
	}
	w.hit(HitOutlasted)
	l := w.opt.lease
	d := w.between(3*l, 8*l)
	w.trace(b.id, "will be away for %.0f ms; then %s will go", float64(d)/1e6, p.name)
	b.crashFor(w.chance(0.3), d)
	if w.chance(0.5) {
		w.at(w.now+w.between(l/2, 3*l), func() {
			if !w.calm && w.chance(0.5) {
				a.crashFor(false, w.between(1*ms, l))
			} else if !w.calm {
				a.ends[a.indexOf(p)].down(w.delay(delayNet))
			}
		})
	}
	w.at(w.now+w.between(2*l, d+l), func() {
		if q := w.primary(); !w.calm && q == p {
			p.crashFor(w.chance(0.3), w.between(l, 6*l))
			w.takeOver(a, 3*l)
		}
	})
}

// oversleep suspends the primary's host with a lease in hand, and nobody reaches it
// until some time after it has woken up.
func (w *World) oversleep() {
	p := w.primary()
	if p == nil || p.paused {
		return
	}
	l := w.opt.lease
	d := w.between(3*l/2, 4*l)
	w.trace(p.id, "is cut from its peers and sleeps for %.0f ms", float64(d)/1e6)
	for _, e := range p.ends {
		e.cutFor(d + l)
		e.other.cutFor(d + l)
	}
	p.suspend(d)
}

// lateNews stops the primary's agent when it next asks for a lease, and cuts it from
// everybody before it goes on: the grant is old when it is taken.
func (w *World) lateNews() {
	p := w.primary()
	if p == nil || p.paused || w.faults.asks != nil {
		return
	}
	w.faults.asks = p
}

// asked is called when m has sent a request for a lease.
func (w *World) asked(m *machine) {
	if w.faults.asks != m {
		return
	}
	w.faults.asks = nil
	if w.calm || w.faults.shield != nil || m.paused || m.agent == nil {
		return
	}
	p, l := m, w.opt.lease
	d := w.between(l/2, 3*l)
	p.pause(d)
	at := w.between(w.opt.heartbeat/2, min(d, l))
	w.trace(p.id, "is cut from everybody in %.0f ms", float64(at)/1e6)
	w.at(w.now+at, func() {
		for _, e := range p.ends {
			e.cutFor(d + l)
			e.other.cutFor(d + l)
		}
		p.witnessCut++
		w.at(w.now+d+l, func() { p.witnessCut-- })
	})
}

// secede cuts a standby from all nodes and the primary from the witness: what others
// grant does not replace what the standby does not.
func (w *World) secede() {
	p := w.primary()
	if p == nil {
		return
	}
	l := w.opt.lease
	o := w.other(p)
	d := w.between(2*l, 4*l)
	w.trace(o.id, "is cut from all nodes, and %s from the witness, for %.0f ms", p.name, float64(d)/1e6)
	for _, e := range o.ends {
		e.cutFor(d)
		e.other.cutFor(d)
	}
	p.witnessCut++
	w.at(w.now+d, func() { p.witnessCut-- })
}

// react is called when a link comes up, a term begins or the record changes:
// at times something fails right then.
func (w *World) react(m *machine) {
	if w.calm || w.opt.Quiet || w.opt.scripted || w.faults.w == nil || w.faults.shield != nil || !w.chance(0.08) {
		return
	}
	if w.chance(0.5) {
		m = w.anyone()
	}
	d := w.between(0, 3*ms)
	if w.chance(0.5) {
		d = w.between(0, 60*ms)
	}
	kind := w.rng.Uint32() % 8
	w.at(w.now+d, func() {
		if w.calm || w.faults.shield != nil {
			return
		}
		switch kind {
		case 0, 1:
			w.hit(HitHostOne)
			m.crashFor(true, w.down())
		case 2, 3:
			m.crashFor(false, w.down())
		case 4:
			m.pause(w.down())
		case 5:
			w.isolate(m)
		case 6:
			for _, e := range m.ends {
				e.down(w.delay(delayNet))
			}
		default:
			w.hit(HitHostBoth)
			for _, x := range w.m {
				x.crashFor(true, w.down())
			}
		}
	})
}

// aim chooses one of the effects to come and lets the fault happen right
// before or right after it.
func (w *World) aim() {
	p := &w.faults.plan
	m := w.victim()
	*p = struct {
		m     *machine
		class effectClass
		after bool
		left  int
		do    func()
	}{m: m, class: effectClass(w.rng.Uint32() % uint32(classes+1)), after: w.chance(0.5)}
	p.left = 1 + int(w.rng.Uint32()%40)
	if w.chance(0.2) {
		p.class = classCAS
	}
	if p.class == classCAS || p.class == classResync || p.class == classMeta {
		p.left = 1 + int(w.rng.Uint32()%3)
	}
	d := w.down()
	if p.class == classCAS && w.chance(0.5) {
		// Its outcome stays unknown, and its sender alone.
		f := fate(1 + w.rng.Uint32()%3)
		p.after = false
		alone := w.chance(0.6)
		p.do = func() {
			m.casFate = f
			if alone {
				w.isolate(m)
			}
		}
		return
	}
	switch w.rng.Uint32() % 5 {
	case 0:
		p.do = func() { m.pause(d + 1) }
	case 1, 2:
		p.do = func() {
			w.hit(HitHostOne)
			m.crashFor(true, d)
		}
	case 3:
		p.do = func() {
			w.hit(HitHostBoth)
			for _, x := range w.m {
				x.crashFor(true, w.down())
			}
		}
	default:
		p.do = func() { m.crashFor(false, d) }
	}
}

// putBack replaces a Secondary's disk by an earlier state of it. While the
// node is on its way back nothing else fails: it cannot know by itself how old
// it is, its peer has to tell it. And the state is older than the time in which
// the durable mark moves on: one that is not cannot be told from the disk as it
// was (design.md, section 4: "at most once a second").
func (w *World) putBack() {
	p := w.primary()
	if p == nil || !w.check.holders[p.id] {
		return
	}
	var m *machine
	for _, x := range w.m {
		if x != p && x.snap != nil && x.hostUp {
			m = x
		}
	}
	if m == nil || w.faults.plan.m != nil || w.witness.out > 0 {
		return
	}
	if m.snap.at > w.now-3*w.opt.lease || !w.check.holders[m.id] || m.paused || p.paused || m.agent == nil {
		return
	}
	for _, e := range m.ends {
		if e.cut > 0 || e.other.cut > 0 || !e.up || e.upAt > w.now-w.opt.lease {
			return
		}
	}
	w.hit(HitPutBack)
	m.crash(true)
	w.check.lose(m)
	s := m.snap
	m.foreign = true
	m.data.restore(s.data)
	m.meta.restore(s.meta)
	w.trace(m.id, "the state of its disk of %.0f is put back", float64(s.at)/1e6)
	m.restartAt = w.now + w.between(50*ms, w.opt.lease)
	at := m.restartAt
	w.at(at, func() {
		if m.restartAt == at {
			m.powerUp()
			m.start()
		}
	})
	end := w.now + 60*sec
	w.faults.shield = func() bool { return w.check.holders[m.id] || w.now > end }
}

// rest waits until every fault has run its course and everything is up.
func (w *World) rest() {
	w.faults.plan.m = nil
	w.runUntil(w.now+30*sec, func() bool {
		for _, m := range w.m {
			if m.agent == nil || m.paused || m.broken || m.witnessCut > 0 {
				return false
			}
			for _, e := range m.ends {
				if e.cut > 0 {
					return false
				}
			}
		}
		return w.witness.out == 0 && !w.witness.odd && w.faults.stalled == nil
	})
}
