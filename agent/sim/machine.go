package sim

import (
	"fmt"
	"slices"
	"strings"

	"tandem/agent/node"
	"tandem/blockrepl"
	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
	"tandem/failover"
)

// machine is a host with its disks, its clock and at times an agent. It is the
// shell of the agent's pure core: it carries out effects and feeds back what
// happened, and adds nothing of its own.
type machine struct {
	w     *World
	id    int
	name  string
	peers []*machine
	ends  []*end

	data *dataDisk
	meta *metaDisk
	// diskID, identity: of the backing device.
	diskID   uint64
	identity string

	// The clock: local = base + now·(1 + ppm/1e6). It starts anew with the host.
	base  int64
	ppm   int64
	slept int64 // with Options.Monotonic: what the clock has missed

	hostUp bool
	boot   int
	inc    int // one more at every start and end of an agent
	agent  *node.Node
	rand   uint64

	paused  bool
	backlog []func()

	volQ  []blockrepl.Effect
	voteQ []failover.Effect
	timer uint64 // token of the armed timer
	armed int64  // global time of it

	// What the shell holds for the core.
	ops   map[blockrepl.Tag]*part
	open  []*op
	inbox map[blockrepl.Tag]uint64   // payload of a mirrored write
	rsIn  map[blockrepl.Tag]*frame   // payload of RsData
	rsOut map[blockrepl.Tag][]uint64 // values read for a chunk
	// replay is what the kernel's NBD client has not been answered.
	replay []*op

	// lostAt is when this host last lost its cache; usable to the checker.
	lostAt uint64
	// began is the number of the epoch in which this life serves; served says
	// whether the world has noticed.
	was        bool
	epoch      uint64
	witnessCut int
	casOnWay   bool
	casFate    fate // of the next CAS, if chosen by a fault
	opReq      uint64
	resyncing  bool // when it last ended, a resync was under way
	foreign    bool // an old disk was put back, and the node is no member again yet
	snap       *snapshot
	restartAt  int64
	broken     bool // the data disk fails everything
	leaving    bool // the agent was told to end
}

func newMachine(w *World, id int) *machine {
	m := &machine{w: w, id: id, name: string(rune('a' + id)), rand: w.rng.Uint64(), hostUp: true, boot: 1}
	m.diskID = uint64(id+1)<<8 | 0xd1
	m.identity = "disk-" + m.name
	m.newClock()
	return m
}

func (m *machine) introduce() {
	for _, o := range m.w.m {
		if o != m {
			m.peers = append(m.peers, o)
		}
	}
	m.ends = make([]*end, len(m.peers))
}

func (m *machine) indexOf(o *machine) int { return slices.Index(m.peers, o) }

func (m *machine) newClock() {
	m.base = m.w.between(1*sec, 1000*sec)
	m.ppm = m.w.between(-10_000, 10_000)
}

func (m *machine) local() int64 {
	t := m.w.now - m.slept
	return m.base + t + t/1000*m.ppm/1000
}

// global is the first virtual instant at which the local clock shows l.
func (m *machine) global(l int64) int64 {
	d := l - m.base
	return m.slept + d - int64(float64(d)*float64(m.ppm)/(1e6+float64(m.ppm))) + 2000
}

// draw is the node's own randomness: nonces and generations.
func (m *machine) draw() uint64 {
	m.rand += 0x9e3779b97f4a7c15
	z := m.rand
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (m *machine) bootID() string { return fmt.Sprintf("boot-%s-%d", m.name, m.boot) }

func (m *machine) super() *meta.Super {
	s := &meta.Super{
		Cluster: "nfs1", Node: m.name, DiskID: m.diskID,
		VolumeSize: int64(m.w.extents) << extentShift, BlockShift: blockShift, ExtentShift: extentShift,
		ALSlots: uint16(m.w.slots), ALRing: alRing,
		BootID: m.bootID(), Identity: m.identity, Inconsistent: false,
	}
	for i, p := range m.peers {
		s.Peers[i].Name = p.name
	}
	return s
}

// format is `init` on a new disk.
func (m *machine) format() {
	s := m.super()
	if m.data == nil {
		m.data = newDataDisk(m.w, m.w.extents*unitsPerExtent, m.w.volatile)
		m.meta = newMetaDisk(m.w, s.RegionSize(), m.w.volatile)
	}
	if err := meta.Format(m.meta, s); err != nil {
		panic(simBug(err.Error()))
	}
}

// start begins a life of the agent.
func (m *machine) start() {
	if m.agent != nil || !m.hostUp {
		return
	}
	w := m.w
	defer w.guard(m)
	st, err := meta.Load(m.meta)
	if err != nil {
		w.fail("%s: the metadata is lost: %v", m.name, err)
		return
	}
	m.inc++
	m.paused, m.backlog = false, nil
	m.volQ, m.voteQ = nil, nil
	m.ops = map[blockrepl.Tag]*part{}
	m.open = nil
	m.inbox = map[blockrepl.Tag]uint64{}
	m.rsIn = map[blockrepl.Tag]*frame{}
	m.rsOut = map[blockrepl.Tag][]uint64{}
	m.was, m.casOnWay, m.armed = false, false, 0
	m.broken, m.leaving = false, false
	m.timer++
	w.trace(m.id, "agent starts (%s): epoch %d gen %04x prop %04x base %04x seq %d mark %d hot %v%s%s%s%s%s", m.bootID(), st.Super.Vote.Epoch,
		st.Super.Current&0xffff, st.Super.Proposed&0xffff, st.Super.Peers[0].Base&0xffff, st.Super.Seq, st.Super.Mark, st.Hot,
		when(st.Super.Inconsistent, " Inconsistent"), when(st.Super.Outdated, " Outdated"), when(st.Super.Vote.Marked, " marked"),
		when(st.SuperLost, " SUPERLOST"), when(st.ALLost, " ALLOST"))
	if st.SuperLost || st.ALLost || st.BadSectors > 0 {
		// The disk model never damages what was flushed.
		w.fail("%s: the metadata says that flushed blocks are damaged: super %v, log %v, %d bitmap sectors", m.name, st.SuperLost, st.ALLost, st.BadSectors)
		return
	}
	if st.Super.Heard != 0 {
		w.hit(HitHeard)
	}
	if st.Super.BootID != m.bootID() && w.volatile && st.Super.Vote.Epoch > 0 {
		w.hit(HitMarked)
	}
	m.agent = newNode(m, st)
	m.agent.Start(m.local())
	m.settle()
	for _, e := range m.ends {
		e.l.consider()
	}
}

func when(on bool, s string) string {
	if on {
		return s
	}
	return ""
}

func (m *machine) serving() bool { return m.agent != nil && m.agent.Serving() }

// input gives the core one input, then carries out what follows.
func (m *machine) input(fn func(now int64)) {
	if m.agent == nil || m.w.done {
		return
	}
	if m.paused {
		m.backlog = append(m.backlog, func() { m.input(fn) })
		return
	}
	defer m.w.guard(m)
	fn(m.local())
	m.settle()
}

// later is an input after a time, unless this life of the agent ends before.
func (m *machine) later(d int64, fn func(now int64)) {
	inc := m.inc
	m.w.at(m.w.now+d, func() {
		if m.inc == inc {
			m.input(fn)
		}
	})
}

// settle pumps the core and carries out its effects in order, until it is
// quiet, or the agent is killed or stopped in between.
func (m *machine) settle() {
	n := m.agent
	n.Pump(m.local())
	for i := range n.VolOut {
		if n.VolOut[i].Kind == blockrepl.Complete {
			m.decide(&n.VolOut[i])
		}
	}
	m.volQ = append(m.volQ, n.VolOut...)
	m.voteQ = append(m.voteQ, n.VoteOut...)
	n.Taken()
	m.carryOut()
	if m.agent == nil || m.w.done {
		return
	}
	m.notice()
	// Clients that waited for it have been at work, and faults with them.
	if m.agent != nil && !m.w.done {
		m.rearm()
	}
}

func (m *machine) carryOut() {
	w := m.w
	for len(m.volQ)+len(m.voteQ) > 0 && m.agent != nil && !m.paused && !w.done {
		inc := m.inc
		// The two cores' effects are in order each; between them there is none.
		if len(m.voteQ) == 0 || len(m.volQ) > 0 && w.rng.Uint32()&1 == 0 {
			e := m.volQ[0]
			if w.faults.strike(m, volClass(&e), false) {
				continue
			}
			m.volQ = m.volQ[1:]
			m.doVol(&e)
			if m.inc == inc {
				w.faults.strike(m, volClass(&e), true)
			}
		} else {
			e := m.voteQ[0]
			if w.faults.strike(m, voteClass(&e), false) {
				continue
			}
			m.voteQ = m.voteQ[1:]
			m.doVote(&e)
			if m.inc == inc {
				w.faults.strike(m, voteClass(&e), true)
			}
		}
	}
	if len(m.volQ) == 0 {
		m.volQ = nil
	}
	if len(m.voteQ) == 0 {
		m.voteQ = nil
	}
}

// notice sees the role change: clients wait for it.
func (m *machine) notice() {
	s := m.agent.Serving()
	if s == m.was {
		return
	}
	m.was = s
	if s {
		m.epoch = m.agent.Vote.Epoch()
		m.w.trace(m.id, "SERVES in epoch %d", m.epoch)
		m.w.check.serves(m)
		m.w.react(m)
		m.w.wakeClients(m)
	} else {
		m.w.trace(m.id, "serves no more")
	}
}

// rearm sets the timer to the core's deadline. A timer that is already set
// earlier stays: it fires, finds nothing to do and is set again.
func (m *machine) rearm() {
	d := m.agent.Deadline()
	if d == failover.NoLimit {
		return
	}
	at := max(m.global(d), m.w.now) + m.w.delay(delayTimer)
	if m.armed > m.w.now && m.armed <= at {
		return
	}
	m.timer++
	m.armed = at
	token, inc := m.timer, m.inc
	m.w.at(at, func() {
		if m.timer != token || m.inc != inc {
			return
		}
		m.armed = 0
		if m.paused {
			return
		}
		m.input(func(now int64) {
			if m.agent.Deadline() <= now {
				m.agent.Tick(now)
			}
		})
	})
}

// pause stops the agent, as SIGSTOP does: the world goes on without it.
func (m *machine) pause(d int64) {
	if m.agent == nil || m.paused {
		return
	}
	m.paused = true
	m.w.trace(m.id, "agent is stopped for %.0f ms", float64(d)/1e6)
	if d > m.w.opt.lease {
		m.w.hit(HitPauseLong)
	}
	inc := m.inc
	m.w.at(m.w.now+d, func() {
		if m.inc == inc && m.paused {
			m.resume()
		}
	})
}

func (m *machine) resume() {
	m.paused = false
	m.w.trace(m.id, "agent goes on, %d inputs wait", len(m.backlog))
	inc := m.inc
	m.carryOut()
	if m.inc != inc {
		return
	}
	tick := func() {
		if m.inc == inc {
			m.input(func(now int64) { m.agent.Tick(now) })
		}
	}
	first := m.w.chance(0.5)
	if first {
		tick()
	}
	for len(m.backlog) > 0 && m.inc == inc && !m.paused {
		f := m.backlog[0]
		m.backlog = m.backlog[1:]
		f()
	}
	if !first {
		tick()
	}
}

// suspend stops the whole host for d, its time goes on.
func (m *machine) suspend(d int64) {
	if m.agent == nil || m.paused {
		return
	}
	m.w.trace(m.id, "host is suspended")
	if d > m.w.opt.lease {
		m.w.hit(HitSuspend)
	}
	if m.w.opt.Monotonic {
		m.w.at(m.w.now+d, func() { m.slept += d })
	}
	m.pause(d)
}

// goodbye restarts the agent as an administrator does.
func (m *machine) goodbye(d int64) {
	if m.agent == nil || m.paused {
		return
	}
	m.w.hit(HitGoodbye)
	m.w.trace(m.id, "agent is told to end")
	m.leaving = true
	m.input(func(now int64) { m.agent.Vote.Shutdown(now, 2*m.w.opt.lease) })
	m.w.at(m.w.now+m.w.between(0, 20*ms), func() { m.crashFor(false, d) })
}

// breakDisk has the data disk lose its cache and fail everything from now on,
// until somebody has mended it and starts the agent anew. The agent sees it, and
// has the time to write it down: a disk that forgets while nobody looks, or an
// agent that dies with it, is a second failure.
func (m *machine) breakDisk(d int64) {
	w := m.w
	if m.agent == nil || m.broken || m.paused || m.leaving || w.faults.plan.m != nil {
		return
	}
	seen := w.now + 150*ms
	w.faults.shield = func() bool { return w.now > seen }
	w.hit(HitDiskError)
	w.trace(m.id, "DISK FAILS")
	m.broken = true
	if m.data.volatile {
		w.check.lose(m)
		m.data.powerCut()
	} else {
		m.data.agentGone()
	}
	m.input(func(now int64) { m.agent.Vol.DiskFailed(now, "model") })
	w.at(w.now+200*ms+d, func() {
		if m.broken {
			m.crashFor(false, w.down())
		}
	})
}

// crash ends the agent; with host, the power.
func (m *machine) crash(host bool) {
	w := m.w
	if !m.hostUp || m.agent == nil && !host {
		return
	}
	if host {
		w.trace(m.id, "POWER FAILS")
	} else {
		w.trace(m.id, "agent is killed")
		w.hit(HitAgentCrash)
	}
	w.check.crashes(m, host)
	for _, r := range m.data.inflight {
		if r.isFlush {
			w.hit(HitFlushAtCrash)
			break
		}
	}
	had := m.agent != nil
	m.agent = nil
	m.inc++
	m.was, m.paused, m.backlog = false, false, nil
	m.volQ, m.voteQ = nil, nil
	var torn, inJob []int64
	if host {
		m.hostUp = false
		m.boot++
		torn, inJob = m.meta.powerCut()
		if lost := m.data.powerCut(); lost > 0 {
			w.trace(m.id, "%d units fall back", lost)
		}
		m.newClock()
	} else {
		torn, inJob = m.meta.agentGone()
		if m.data.agentGone() {
			w.hit(HitTornData)
		}
	}
	for _, off := range torn {
		if off < 2*meta.BlockSize {
			w.hit(HitTornSuper)
		}
	}
	for _, off := range inJob {
		if off >= 2*meta.BlockSize && off < (2+alRing)*meta.BlockSize {
			w.hit(HitCrashInAL)
		}
	}
	m.resyncing = had && len(m.rsOut) > 0
	if had && m.casOnWay {
		w.hit(HitCrashInRecord)
	}
	m.casOnWay = false
	m.unanswered(host)
	for _, e := range m.ends {
		e.agentGone(host)
	}
	w.check.covered(m.name + " ends")
}

func (m *machine) powerUp() {
	if !m.hostUp {
		m.hostUp = true
		m.w.trace(m.id, "power is back")
	}
}

func (m *machine) linkUp(p int) {
	m.w.trace(m.id, "link to %s is up", m.peers[p].name)
	e := m.ends[p]
	since := e.since
	m.input(func(now int64) {
		// A node that was stopped meanwhile believes in the session before until now.
		e.knownSince = since
		m.agent.LinkUp(now, p)
	})
	m.w.react(m)
}

func (m *machine) linkDown(p int) {
	m.w.trace(m.id, "link to %s is down", m.peers[p].name)
	m.input(func(now int64) {
		if len(m.rsOut) > 0 {
			m.w.hit(HitResyncInterrupted)
		}
		m.agent.LinkDown(now, p)
	})
}

func (m *machine) recv(e *end, ch wire.Channel, f *frame) {
	m.input(func(now int64) {
		if m.w.opt.Trace && f.msg.Type != wire.Control {
			m.w.trace(m.id, "  <- %s %s", m.peers[e.peer].name, msgText(f))
		}
		msg := f.msg
		t := m.agent.Recv(now, e.peer, ch, &msg)
		if t == 0 {
			return
		}
		switch f.msg.Type {
		case wire.Write, wire.Zero:
			m.inbox[t] = f.val
		case wire.RsData:
			m.rsIn[t] = f
		}
	})
}

func (m *machine) answerRead(inc int, tag uint64, rec *failover.Record, version string, err error) {
	if m.inc != inc {
		return
	}
	m.input(func(now int64) {
		m.agent.Vote.ReadDone(now, tag, rec, version, err)
	})
}

func (m *machine) answerCAS(inc int, tag uint64, out failover.Outcome, version string) {
	if m.inc != inc {
		return
	}
	m.input(func(now int64) {
		m.w.trace(m.id, "witness answers the CAS: %v %s", out, version)
		if out != failover.Won {
			m.casOnWay = false
		}
		m.agent.Vote.CASDone(now, tag, out, version)
	})
}

func (m *machine) promote() {
	m.opReq++
	id := m.opReq
	m.input(func(now int64) {
		m.w.trace(m.id, "operator: promote")
		m.agent.Vote.Promote(now, id, false, false)
	})
}

func (m *machine) resumeAuto() {
	m.opReq++
	id := m.opReq
	m.input(func(now int64) {
		m.w.trace(m.id, "operator: resume")
		m.agent.Vote.Resume(now, id)
	})
}

func (m *machine) demote() {
	m.opReq++
	id := m.opReq
	m.input(func(now int64) {
		m.w.trace(m.id, "operator: demote")
		m.agent.Vote.Demote(now, id)
	})
}

func (m *machine) situation() string {
	if m.agent == nil {
		return fmt.Sprintf("%s off (host up %v)", m.name, m.hostUp)
	}
	v := m.agent.Vote
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s %v epoch %d counted %b serving %v", m.name, v.Role(), v.Epoch(), v.Counted(), m.serving())
	if m.paused {
		b.WriteString(" stopped")
	}
	for i, e := range m.ends {
		fmt.Fprintf(b, " link %s %v", m.peers[i].name, e.up)
	}
	b.WriteString(" " + nodeText(m))
	return b.String()
}
