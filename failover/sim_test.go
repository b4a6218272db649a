package failover

import (
	"container/heap"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// The cluster in one deterministic event loop: the cores of all nodes, and model
// volumes, links and a model witness whose answers are lost and whose CASes land
// late. One block, whose value only grows, so that a read can be checked
// by a plain comparison, as in the Promela model (model/pair.pml).

type simEvent struct {
	at  int64
	seq uint64
	run func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	o := *q
	e := o[len(o)-1]
	*q = o[:len(o)-1]
	return e
}

// simCAS is one change on its way to the register, over all of its sends.
type simCAS struct {
	node   int
	life   int
	change Change
	epoch  uint64
	expect string
	nonces []uint64
	flying int // sends that have not arrived
}

type simNode struct {
	id    int
	name  string
	life  int
	alive bool
	core  *Core
	// durable
	hard          HardState
	dv, dd        int // the value, and what of it the volatile cache has not
	gen, proposed uint64
	hostRestart   bool
	// the volume
	primary    bool
	epoch      uint64
	began      bool
	refusing   bool
	until      int64
	counted    [MaxPeers]bool
	session    [MaxPeers]bool
	acked      [MaxPeers]bool
	behind     [MaxPeers]bool // resync not done
	hold       bool
	quiescing  bool
	w          int // the write in flight, 0 none
	wl         bool
	wants      bool // a client request waits at the gate
	prepared   map[Change]bool
	witnessCut bool
	cas        *simCAS
	ticking    int64
	opID       uint64
	replies    map[uint64]string
	clock      int64 // offset of its BOOTTIME
}

type sim struct {
	rng   *rand.Rand
	now   int64
	seq   uint64
	q     simQueue
	nodes []*simNode
	links map[[2]int]int // generation of the link if up, 0 down
	cut   map[[2]int]bool
	linkN int

	rec     *Record
	ver     int
	witness bool
	flights []*simCAS
	done    bool // faults have stopped

	next, floor int
	opt         simOpt
	trace       []string
	keep        bool
	fail        string
	served      int
	slow        int   // one CAS in that many is slow
	stall       int64 // until then the links' streams stand still
}

type simOpt struct {
	nodes  int
	bug    Bug
	auto   bool
	host   bool // host restarts with a volatile cache
	force  bool // operators use --force
	eager  bool // standbys are promoted the moment the link breaks
	length int64
}

func newSim(seed uint64, opt simOpt) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 7)), links: map[[2]int]int{}, cut: map[[2]int]bool{}, witness: true, opt: opt, slow: 4}
	for i := range opt.nodes {
		n := &simNode{id: i, name: string(rune('a' + i)), gen: 1, replies: map[uint64]string{}, clock: int64(s.rng.IntN(1000)) * second}
		s.nodes = append(s.nodes, n)
	}
	return s
}

func (s *sim) at(d int64, f func()) {
	s.seq++
	heap.Push(&s.q, simEvent{s.now + max(d, 0), s.seq, f})
}

func (s *sim) logf(format string, args ...any) {
	if s.keep {
		s.trace = append(s.trace, fmt.Sprintf("%9.3f ", float64(s.now)/1e9)+fmt.Sprintf(format, args...))
	}
}

func (s *sim) bad(format string, args ...any) {
	if s.fail == "" {
		s.fail = fmt.Sprintf(format, args...)
		s.logf("VIOLATION %s", s.fail)
	}
}

func (s *sim) peersOf(n *simNode) []string {
	var ps []string
	for _, o := range s.nodes {
		if o != n {
			ps = append(ps, o.name)
		}
	}
	return ps
}

// pi is the index of node o in n's peer list; np the inverse.
func pi(n, o *simNode) int {
	if o.id > n.id {
		return o.id - 1
	}
	return o.id
}

func (s *sim) np(n *simNode, p int) *simNode {
	if p >= n.id {
		p++
	}
	return s.nodes[p]
}

func key(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

func (s *sim) boot(n *simNode) {
	n.life++
	n.alive = true
	rng := rand.New(rand.NewPCG(s.rng.Uint64(), 3))
	n.core = New(Config{Self: n.name, Cluster: "sim", DiskID: uint64(100 + n.id), Peers: s.peersOf(n),
		Heartbeat: second / 2, Lease: 3 * second, Freeze: 12 * second, Auto: s.opt.auto, Rand: rng.Uint64, Bug: s.opt.bug}, n.hard)
	n.primary, n.began, n.refusing, n.until, n.hold, n.quiescing, n.w, n.wl, n.wants = false, false, false, 0, false, false, 0, false, false
	n.counted, n.session, n.acked, n.behind = [3]bool{}, [3]bool{}, [3]bool{}, [3]bool{}
	n.prepared = map[Change]bool{}
	n.cas, n.ticking = nil, 0
	s.logf("%s boots, host restart %v, hard %+v gen %d/%d", n.name, n.hostRestart, n.hard, n.gen, n.proposed)
	s.in(n, func(now int64) {
		n.core.Copy(now, true, n.gen, n.proposed, false)
		n.core.Start(now, !n.hostRestart, n.hostRestart)
	})
	if n.hard.Epoch == 0 || s.opt.bug == NoHostMark {
		n.hostRestart = false
	}
	for _, o := range s.nodes {
		if o != n {
			s.at(s.ms(5, 50), func() { s.connect(n.id, o.id) })
		}
	}
}

func (s *sim) ms(lo, hi int) int64 { return int64(lo+s.rng.IntN(hi-lo+1)) * millisecond }

// in feeds an input to a core and carries out what it asks for.
func (s *sim) in(n *simNode, f func(now int64)) {
	if !n.alive || s.fail != "" {
		return
	}
	f(s.now + n.clock)
	s.effects(n)
}

// later is in after d, if the agent still lives then.
func (s *sim) later(n *simNode, d int64, f func(now int64)) {
	life := n.life
	s.at(d, func() {
		if n.life == life && n.alive {
			s.in(n, f)
		}
	})
}

func (s *sim) effects(n *simNode) {
	es := slices.Clone(n.core.Effects())
	for _, e := range es {
		s.logf("%s %s", n.name, formatEffect(n.core.cfg.Peers, e))
		s.carryOut(n, e)
	}
	s.complete(n)
	s.check()
	if d := n.core.Deadline(); d != NoLimit {
		if d <= s.now+n.clock && n.core.now == s.now+n.clock {
			s.bad("%s: deadline %d is not after now %d", n.name, d, s.now+n.clock)
			return
		}
		s.tick(n, d-n.clock)
	}
}

func (s *sim) tick(n *simNode, at int64) {
	if n.ticking > s.now && n.ticking <= at {
		return
	}
	n.ticking = at
	life := n.life
	s.at(at-s.now, func() {
		if n.life == life && n.alive && n.ticking == at {
			n.ticking = 0
			s.doTick(n)
		}
	})
}

func (s *sim) doTick(n *simNode) {
	s.in(n, func(now int64) {
		var waiting [MaxPeers]bool
		for p := range s.peersOf(n) {
			waiting[p] = n.w != 0 && n.counted[p] && !n.acked[p]
		}
		n.core.Tick(now, waiting, n.wants || n.w != 0)
	})
}

func (s *sim) open(n *simNode) bool { return n.alive && n.began && n.until > s.now+n.clock }

func (s *sim) carryOut(n *simNode, e Effect) {
	c := n.core
	switch e.Kind {
	case Read:
		s.read(n, e.Tag)
	case CAS:
		s.sendCAS(n, e)
	case Persist:
		s.later(n, s.ms(1, 10), func(now int64) {
			n.hard = e.Hard
			n.hostRestart = n.hostRestart && !e.Hard.Marked // from here on it says so itself
			old := c.Hard()
			c.Persisted(now, e.Tag)
			if h := c.Hard(); h.Epoch != old.Epoch || h.Marked != old.Marked {
				s.news(n)
			}
		})
	case Send:
		if e.Msg.Kind == LeaseGrant {
			if c.Role() != Secondary {
				s.bad("%s grants as %v", n.name, c.Role())
			}
			if n.hard.LongestG < e.Msg.G {
				s.bad("%s promises more than is durable", n.name)
			}
			for _, f := range s.flights {
				if f.node == n.id && f.life == n.life && f.epoch > e.Msg.Epoch && (f.change == Promote || f.change == Create) && s.mayLand(f) {
					s.bad("%s grants in epoch %d while its own claim of %d may land", n.name, e.Msg.Epoch, f.epoch)
				}
			}
		}
		s.message(n, e.Peer, e.Msg)
	case Prepare:
		s.prepare(n, e)
	case Apply:
		switch e.Change {
		case Create, Promote:
			s.later(n, s.ms(1, 10), func(now int64) {
				n.hard = e.Hard
				if n.proposed != 0 {
					n.gen, n.proposed = n.proposed, 0
				}
				n.primary, n.began, n.refusing, n.epoch = true, true, false, e.Epoch
				c.Copy(now, true, n.gen, n.proposed, false)
				c.Began(now)
				s.news(n)
			})
		case Shrink:
			n.counted[e.Peer] = false
			n.hold = false
			if n.proposed != 0 {
				n.gen, n.proposed = n.proposed, 0
			}
			n.behind[e.Peer] = true
			s.later(n, 0, func(now int64) { c.Copy(now, true, n.gen, n.proposed, false) })
		case Grow:
		}
		n.prepared = map[Change]bool{}
	case Abort:
		if f := n.cas; f != nil && f.change == e.Change && (f.change == Promote || f.change == Create || f.change == Shrink) && s.mayLand(f) {
			s.bad("%s aborts a %v that may still land or has landed", n.name, e.Change)
		}
		switch e.Change {
		case Shrink:
			n.hold = false
		case Promote, Create:
			n.refusing = false
			s.reset(n)
		}
		n.prepared = map[Change]bool{}
	case Serve:
		n.until = e.Until
		if e.Until == NoLimit && s.opt.bug == NoBug {
			for p := range s.peersOf(n) {
				if n.counted[p] {
					s.bad("%s serves without a limit while %s counts", n.name, s.np(n, p).name)
				}
			}
		}
	case Quiesce:
		n.quiescing = true
		s.quiesce(n, n.life, 0)
	case StepDown:
		if n.until != 0 {
			s.bad("%s steps down with its gate open", n.name)
		}
		n.primary, n.began, n.hold, n.quiescing, n.w, n.wants = false, false, false, false, 0, false
		n.counted = [3]bool{}
		n.prepared = map[Change]bool{}
		life := n.life
		s.at(18*millisecond, func() { // the Go, mostly, goes out first
			if n.life == life {
				s.reset(n)
			}
		})
	case Follow:
		if n.hard.Epoch > e.Epoch {
			s.bad("%s follows epoch %d, it has seen %d", n.name, e.Epoch, n.hard.Epoch)
		}
		o := s.np(n, e.Peer)
		g := s.links[key(n.id, o.id)]
		if n.hard.Epoch < e.Epoch {
			s.bad("%s follows epoch %d, durable is %d", n.name, e.Epoch, n.hard.Epoch)
		}
		s.at(s.ms(1, 20), func() { s.establish(o, n, g, e.Epoch) })
	case Drop:
		s.cutLink(n.id, s.np(n, e.Peer).id)
	case Reply:
		n.replies[e.Tag] = fmt.Sprint(e.OK, " ", e.Text)
	}
}

// prepare models the volume's part before a CAS.
func (s *sim) prepare(n *simNode, e Effect) {
	c, life := n.core, n.life
	n.cas = nil
	switch e.Change {
	case Create, Promote:
		n.refusing = true
		s.reset(n)
	case Shrink:
		n.hold = true
	case Grow:
		n.counted[e.Peer] = true
	}
	n.prepared[e.Change] = true
	sent := n.dv
	s.at(s.ms(1, 40), func() {
		if n.life != life || !n.alive || !n.prepared[e.Change] {
			return
		}
		var err error
		n.dd = n.dv
		gen := n.gen
		if e.Change == Grow {
			o := s.np(n, e.Peer)
			if !n.session[e.Peer] {
				err = errors.New("the session is gone")
			} else {
				// The stream keeps its order, so the peer's flush is behind every
				// write that was mirrored before it counted.
				o.dv = max(o.dv, sent)
				o.dd, o.gen, o.proposed = o.dv, n.gen, 0
				s.later(o, 0, func(now int64) { o.core.Copy(now, true, o.gen, o.proposed, false) })
			}
		} else {
			if n.proposed == 0 {
				n.proposed = s.rng.Uint64() | 1
			}
			gen = n.proposed
			for p := range s.peersOf(n) {
				if o := s.np(n, p); e.Change == Shrink && p != e.Peer && n.counted[p] && n.session[p] {
					o.proposed = gen
					s.later(o, 0, func(now int64) { o.core.Copy(now, true, o.gen, o.proposed, false) })
				}
			}
		}
		s.in(n, func(now int64) {
			c.Copy(now, true, n.gen, n.proposed, false)
			c.Prepared(now, e.Change, e.Peer, gen, err)
		})
	})
}

func (s *sim) quiesce(n *simNode, life, tries int) {
	s.at(s.ms(5, 60), func() {
		switch {
		case n.life != life || !n.alive || !n.quiescing:
		case n.w == 0 && s.rng.IntN(12) != 0:
			n.quiescing = false
			n.dd = n.dv
			s.in(n, func(now int64) { n.core.Quiesced(now, nil) })
		case tries > 40 || n.w == 0:
			n.quiescing = false
			s.in(n, func(now int64) { n.core.Quiesced(now, errors.New("umount: target is busy")) })
		default:
			s.quiesce(n, life, tries+1)
		}
	})
}

// --- links

func (s *sim) info(n *simNode) PeerInfo {
	h := n.core.Hard()
	return PeerInfo{Epoch: h.Epoch, Serving: n.core.leading(), Marked: h.Marked, Usable: true, DiskID: uint64(100 + n.id)}
}

func (s *sim) connect(a, b int) {
	k := key(a, b)
	if s.links[k] != 0 || s.cut[k] || !s.nodes[a].alive || !s.nodes[b].alive {
		return
	}
	s.linkN++
	s.links[k] = s.linkN
	s.hello(s.nodes[a], s.nodes[b])
	s.hello(s.nodes[b], s.nodes[a])
}

func (s *sim) onLink(a, b *simNode, d int64, f func()) {
	g := s.links[key(a.id, b.id)]
	if g == 0 {
		return
	}
	s.at(d, func() {
		if s.links[key(a.id, b.id)] == g && a.alive && b.alive {
			f()
		}
	})
}

func (s *sim) hello(from, to *simNode) {
	info := s.info(from)
	s.onLink(from, to, s.ms(1, 15), func() {
		s.logf("%s hello from %s %+v", to.name, from.name, info)
		s.in(to, func(now int64) { to.core.Hello(now, pi(to, from), info) })
	})
}

func (s *sim) news(n *simNode) {
	for _, o := range s.nodes {
		if o != n {
			s.hello(n, o)
		}
	}
}

func (s *sim) cutLink(a, b int) {
	k := key(a, b)
	if s.links[k] == 0 {
		return
	}
	s.links[k] = 0
	for _, x := range [][2]int{{a, b}, {b, a}} {
		n, o := s.nodes[x[0]], s.nodes[x[1]]
		p := pi(n, o)
		n.session[p] = false
		if n.primary {
			n.acked[p] = false
			n.behind[p] = true
		}
		s.in(n, func(now int64) { n.core.LinkDown(now, p) })
		s.doTick(n)
	}
	s.at(s.ms(100, 400), func() { s.connect(a, b) })
}

func (s *sim) reset(n *simNode) {
	for _, o := range s.nodes {
		if o != n {
			s.cutLink(n.id, o.id)
		}
	}
}

func (s *sim) message(n *simNode, p int, m Msg) {
	o := s.np(n, p)
	b := AppendMsg(nil, m)
	d := s.ms(1, 20)
	if s.rng.IntN(30) == 0 && !s.done {
		d = s.ms(100, 4000) // a stalled stream
	}
	if s.now < s.stall {
		// The streams stand still; what is under way arrives at the very end.
		d = s.stall - s.now
		if m.Kind == LeaseRequest {
			d += 10 * second
		}
	}
	s.onLink(n, o, d, func() {
		m, err := DecodeMsg(b)
		if err != nil {
			s.bad("%v", err)
		}
		s.logf("%s receives %v N=%d", o.name, m.Kind, m.N)
		s.in(o, func(now int64) { o.core.Recv(now, pi(o, n), m) })
	})
}

// establish: the secondary o took a session with the primary n.
func (s *sim) establish(n, o *simNode, gen int, epoch uint64) {
	p, po := pi(n, o), pi(o, n)
	if s.links[key(n.id, o.id)] != gen || gen == 0 || !n.alive || !o.alive || !n.began || n.epoch != epoch || o.primary || o.refusing || n.session[p] {
		return
	}
	if o.hard.Marked && n.counted[p] {
		s.at(50*millisecond, func() { s.establish(n, o, gen, epoch) })
		return
	}
	for _, x := range s.nodes {
		if x != n && x != o && o.session[pi(o, x)] {
			s.cutLink(o.id, x.id) // of a lower epoch
		}
	}
	n.session[p], o.session[po] = true, true
	n.behind[p], n.acked[p] = true, false
	s.in(n, func(now int64) { n.core.Established(now, p) })
	s.in(o, func(now int64) { o.core.Established(now, po) })
	s.resync(n, o)
}

func (s *sim) resync(n, o *simNode) {
	p := pi(n, o)
	s.onLink(n, o, s.ms(10, 200), func() {
		if !n.began || !n.session[p] {
			return
		}
		if n.w != 0 && !n.wl {
			s.resync(n, o) // the block is locked by the write in flight
			return
		}
		o.dv, o.dd = n.dv, n.dv
		n.behind[p] = false
		if n.w != 0 && n.wl {
			n.acked[p] = true
		}
		s.complete(n)
		s.caughtUp(n, o)
	})
}

func (s *sim) caughtUp(n, o *simNode) {
	p := pi(n, o)
	if !n.began || !n.session[p] || n.behind[p] {
		return
	}
	if n.w != 0 && !n.acked[p] {
		s.onLink(n, o, 10*millisecond, func() { s.caughtUp(n, o) })
		return
	}
	// "No unacknowledged write" must be true at the moment of counting.
	s.in(n, func(now int64) { n.core.CaughtUp(now, p) })
	if n.counted[p] {
		s.at(s.ms(5, 50), func() { s.syncDone(n, o) })
		return
	}
	s.onLink(n, o, 300*millisecond, func() { s.caughtUp(n, o) })
}

func (s *sim) syncDone(n, o *simNode) {
	if n.alive && o.alive && n.session[pi(n, o)] && n.counted[pi(n, o)] && s.rec != nil && s.rec.Has(o.name) && o.hard.Marked {
		s.in(o, func(now int64) { o.core.Unmark(now) })
	} else if o.alive && o.hard.Marked && n.session[pi(n, o)] {
		s.at(s.ms(50, 90), func() { s.syncDone(n, o) })
	}
}

// --- data

func (s *sim) client(n *simNode) {
	if n.alive && n.began && !n.quiescing {
		switch {
		case n.w == 0 && s.rng.IntN(3) == 0 && !s.idle():
			if !s.open(n) {
				n.wants = true
				s.doTick(n)
				break
			}
			n.wants = false
			s.next++
			n.w, n.wl = s.next, false
			w, life := n.w, n.life
			n.acked = [3]bool{}
			s.at(s.ms(1, 3), func() {
				if n.life == life && n.began && n.w == w {
					n.dv, n.wl = w, true
					s.complete(n)
				}
			})
			for p := range s.peersOf(n) {
				if n.session[p] {
					o := s.np(n, p)
					s.onLink(n, o, s.ms(1, 30), func() {
						if !o.session[pi(o, n)] || o.refusing || o.primary {
							return
						}
						o.dv = max(o.dv, w)
						s.onLink(o, n, s.ms(1, 30), func() {
							if n.began && n.w == w && n.session[p] {
								n.acked[p] = true
								s.complete(n)
							}
						})
					})
				}
			}
			s.doTick(n)
		case n.w == 0 && s.open(n):
			n.wants = false
			s.served++
			if n.dv < s.floor && !s.opt.force {
				s.bad("S1: %s reads %d, %d was acknowledged or read before", n.name, n.dv, s.floor)
			}
			s.floor = max(s.floor, n.dv)
		}
	}
	life := n.life
	s.at(s.ms(5, 60), func() {
		if n.life == life {
			s.client(n)
		}
	})
}

// idle: for a while nothing is written, so that leases run out in peace.
func (s *sim) idle() bool { return s.now/(7*second)%3 == 0 }

func (s *sim) complete(n *simNode) {
	if n.w == 0 || !n.wl || n.hold || !s.open(n) {
		return
	}
	for p := range s.peersOf(n) {
		if n.counted[p] && !n.acked[p] {
			return
		}
	}
	s.floor = max(s.floor, n.w)
	n.w, n.wants = 0, false
}

// --- the witness

func (s *sim) read(n *simNode, tag uint64) {
	if !s.witness || n.witnessCut {
		s.later(n, 1500*millisecond, func(now int64) { n.core.ReadDone(now, tag, nil, "", errors.New("timeout")) })
		return
	}
	s.at(s.ms(1, 60), func() {
		rec, ver := s.rec, s.ver
		if rec != nil {
			r := rec.Clone()
			rec = &r
		}
		s.later(n, s.ms(1, 60), func(now int64) { n.core.ReadDone(now, tag, rec, fmt.Sprint(ver), nil) })
	})
}

func (s *sim) version() string {
	if s.rec == nil {
		return ""
	}
	return fmt.Sprint(s.ver)
}

// mayLand: the change is in the register, or a send of it may still get there.
func (s *sim) mayLand(f *simCAS) bool {
	if s.rec != nil && slices.Contains(f.nonces, s.rec.Nonce) {
		return true
	}
	return f.flying > 0 && s.version() == f.expect
}

func (s *sim) sendCAS(n *simNode, e Effect) {
	if n.cas == nil || n.cas.expect != e.Version || n.cas.change != e.Change {
		n.cas = &simCAS{node: n.id, life: n.life, change: e.Change, epoch: e.Epoch, expect: e.Version}
		s.flights = append(s.flights, n.cas)
		if e.Change <= Grow && !n.prepared[e.Change] {
			s.bad("%s sends the CAS of a %v that was not prepared", n.name, e.Change)
		}
	}
	f := n.cas
	f.nonces = append(f.nonces, e.Record.Nonce)
	r := e.Record.Clone()
	c, answered := n.core, false
	life := n.life
	answer := func(o Outcome, v string) {
		if n.life == life && n.alive && !answered {
			answered = true
			s.logf("%s CAS %s is %v", n.name, e.Change, o)
			s.in(n, func(now int64) { c.CASDone(now, e.Tag, o, v) })
		}
	}
	s.at(1500*millisecond, func() { answer(Unknown, "") })
	d, lost := s.ms(1, 60), !s.witness || n.witnessCut
	if !s.done && s.rng.IntN(s.slow) == 0 {
		d = s.ms(1000, 6000)
	}
	if lost && s.rng.IntN(2) == 0 {
		return // it never gets there
	}
	f.flying++
	s.at(d, func() {
		f.flying--
		o := Conflict
		if s.version() == f.expect {
			for _, name := range r.InSync {
				m := s.nodes[name[0]-'a']
				if e.Change == Grow && m != n && s.opt.bug == NoBug && !n.alive {
					s.logf("a grow of a dead node lands")
				}
			}
			s.rec, o = &r, Won
			s.ver++
			s.logf("register: epoch %d primary %s set %v by %s (%s)", r.Epoch, r.Primary, r.InSync, n.name, e.Change)
			s.check()
		}
		if lost || s.rng.IntN(6) == 0 && !s.done {
			return // the answer is lost
		}
		v := s.version()
		s.at(s.ms(1, 60), func() { answer(o, v) })
	})
}

// --- the invariants

func (s *sim) check() {
	on := ""
	for _, n := range s.nodes {
		if s.open(n) {
			on += n.name
		}
	}
	if len(on) > 1 {
		s.bad("S2: %s serve at once", on)
	}
	if s.rec != nil && !s.opt.force {
		for _, name := range s.rec.InSync {
			m := s.nodes[name[0]-'a']
			if m.dv < s.floor && !m.hard.Marked && !m.hostRestart {
				s.bad("S4: %s is in the set with %d, %d was acknowledged", name, m.dv, s.floor)
			}
		}
	}
	// Whoever leads in the recorded epoch counts all that the record names.
	for _, n := range s.nodes {
		if n.alive && n.core.leading() && n.began && s.rec != nil && s.rec.Epoch == n.core.Epoch() && s.rec.Primary == n.name {
			for p, name := range n.core.cfg.Peers {
				if s.rec.Has(name) && n.core.Counted()&(1<<p) == 0 {
					s.bad("%s does not count %s, which the record names", n.name, name)
				}
			}
		}
	}
}

// --- faults

func (s *sim) crash(n *simNode, host bool) {
	if !n.alive {
		return
	}
	s.logf("%s dies, host %v", n.name, host)
	n.alive, n.began, n.primary = false, false, false
	n.life++
	for _, o := range s.nodes {
		if o != n {
			s.cutLink(n.id, o.id)
		}
	}
	if host {
		n.dv, n.hostRestart = n.dd, true
		held := 0
		for _, o := range s.nodes {
			if s.rec != nil && s.rec.Has(o.name) && !o.hard.Marked && !o.hostRestart {
				held = max(held, o.dv)
			}
		}
		// When every member has lost power only what was flushed is owed; nothing
		// here is a FLUSH.
		s.floor = min(s.floor, held)
		if s.floor == 0 {
			for _, o := range s.nodes {
				if s.rec != nil && s.rec.Has(o.name) {
					s.floor = max(s.floor, 0)
				}
			}
		}
	}
	down := s.ms(50, 5000)
	if s.rng.IntN(3) == 0 {
		down = s.ms(20, 60)
	}
	s.at(down, func() { s.boot(n); s.client(n) })
}

func (s *sim) fault() {
	if s.done {
		return
	}
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if s.opt.eager && s.rng.IntN(2) == 0 {
		s.takeOver(n)
		s.at(s.ms(50, 4000), s.fault)
		return
	}
	switch s.rng.IntN(12) {
	case 0, 1:
		s.crash(n, s.opt.host && s.rng.IntN(2) == 0)
	case 2, 3, 4:
		a, b := n.id, s.rng.IntN(len(s.nodes))
		if a != b {
			k := key(a, b)
			if s.rng.IntN(2) == 0 {
				s.cut[k] = true
				s.at(s.ms(100, 9000), func() { s.cut[k] = false; s.connect(a, b) })
			}
			s.logf("link %v cut", k)
			s.cutLink(a, b)
		}
	case 5:
		s.witness = false
		s.logf("witness out")
		s.at(s.ms(500, 8000), func() { s.witness = true; s.logf("witness back") })
	case 6:
		n.witnessCut = true
		s.logf("%s cut from the witness", n.name)
		s.at(s.ms(500, 9000), func() { n.witnessCut = false; s.logf("%s sees the witness", n.name) })
	case 7, 8, 9:
		s.operator(n)
	case 10:
		n.opID++
		id := n.opID
		s.logf("%s demote", n.name)
		s.in(n, func(now int64) { n.core.Demote(now, id) })
	case 11:
		n.opID++
		id := n.opID
		if s.rng.IntN(2) == 0 {
			s.in(n, func(now int64) { n.core.Resume(now, id) })
		} else {
			s.in(n, func(now int64) { n.core.Cancel(id - 1) })
		}
	}
	s.at(s.ms(50, 4000), s.fault)
}

// takeOver: the link breaks for long, perhaps with an agent, perhaps after its
// streams have stood still, and at once an operator promotes the standby.
func (s *sim) takeOver(n *simNode) {
	if s.now >= s.stall && s.rng.IntN(3) == 0 {
		s.stall = s.now + s.ms(500, 2500)
		s.at(s.stall-s.now+10*millisecond, func() { s.takeOver(n) })
		return
	}
	for _, o := range s.nodes {
		if o != n {
			k := key(n.id, o.id)
			s.cut[k] = true
			s.cutLink(n.id, o.id)
			if s.rng.IntN(3) == 0 {
				o.witnessCut = true
				s.at(s.ms(500, 9000), func() { o.witnessCut = false })
			}
			s.at(s.ms(2000, 9000), func() { s.cut[k] = false; s.connect(n.id, o.id) })
		}
	}
	if s.rng.IntN(2) == 0 {
		s.crash(n, false)
	}
	s.at(s.ms(60, 200), func() { s.operator(n) })
}

func (s *sim) operator(n *simNode) {
	n.opID++
	id := n.opID
	force := s.opt.force && s.rng.IntN(2) == 0
	s.logf("%s promote force=%v", n.name, force)
	s.in(n, func(now int64) { n.core.Promote(now, id, force, false) })
}

// run lives through a seed; the violation found, or "".
func (s *sim) run() string {
	for _, n := range s.nodes {
		s.boot(n)
		s.client(n)
	}
	s.at(300*millisecond, func() { s.operator(s.nodes[0]) })
	s.at(4*second, s.fault)
	for s.q.Len() > 0 && s.fail == "" && s.now < s.opt.length {
		s.step()
	}
	// Liveness: without faults and with an operator who asks again, somebody
	// serves in the end.
	s.done, s.witness = true, true
	s.cut = map[[2]int]bool{}
	for _, n := range s.nodes {
		n.witnessCut = false
	}
	s.at(8*second, func() {
		for i := range s.nodes {
			for j := range i {
				s.connect(i, j)
			}
		}
	})
	for i := range 40 {
		s.at(int64(10+4*i)*second, func() {
			for _, n := range s.nodes {
				if s.open(n) {
					return
				}
			}
			for _, n := range s.nodes {
				s.operator(n)
			}
		})
	}
	before := s.served
	end := s.now + 90*second
	for s.q.Len() > 0 && s.fail == "" && s.now < end {
		if s.now == end-20*second {
			before = s.served
		}
		s.step()
	}
	// Three nodes and lost power: a member whose session was down while another
	// was shrunk out does not carry the generation that the record names, and is
	// no help when the rest is marked. Safe; the operator's --force is the way out.
	if s.fail == "" && s.served < before+100 && !(s.opt.host && s.opt.nodes > 2) {
		s.bad("nobody serves in the end")
	}
	return s.fail
}

func (s *sim) step() {
	e := heap.Pop(&s.q).(simEvent)
	s.now = e.at
	e.run()
}

func formatEffect(peers []string, e Effect) string {
	var b strings.Builder
	fmt.Fprint(&b, e.Kind)
	if e.Peer >= 0 {
		fmt.Fprintf(&b, " %s", peers[e.Peer])
	}
	if e.Change != NoChange {
		fmt.Fprintf(&b, " %v", e.Change)
	}
	if e.Tag != 0 {
		fmt.Fprintf(&b, " #%d", e.Tag)
	}
	switch e.Kind {
	case Serve:
		if e.Until == NoLimit {
			b.WriteString(" without limit")
		} else {
			fmt.Fprintf(&b, " until %.3f", float64(e.Until)/1e9)
		}
	case Send:
		fmt.Fprintf(&b, " %v", e.Msg.Kind)
		if e.Msg.N != 0 {
			fmt.Fprintf(&b, " N=%d", e.Msg.N)
		}
		fmt.Fprintf(&b, " epoch=%d", e.Msg.Epoch)
		if e.Msg.L != 0 {
			fmt.Fprintf(&b, " L=%s", span(e.Msg.L))
		}
		if e.Msg.G != 0 {
			fmt.Fprintf(&b, " G=%s", span(e.Msg.G))
		}
		if e.Msg.Text != "" {
			fmt.Fprintf(&b, " %q", e.Msg.Text)
		}
	case CAS:
		r := e.Record
		fmt.Fprintf(&b, " over %q: epoch=%d primary=%s set=%s gen=%d serial=%d nonce=%d", e.Version, r.Epoch, r.Primary, strings.Join(r.InSync, ","), r.Generation, r.Serial, r.Nonce)
		if r.Paused != nil {
			fmt.Fprintf(&b, " paused")
		}
	case Reply:
		fmt.Fprintf(&b, " %v", e.OK)
	case StepDown:
		if e.OK {
			b.WriteString(" clean")
		}
	}
	if e.Epoch != 0 && e.Kind != CAS && e.Kind != Serve {
		fmt.Fprintf(&b, " epoch=%d", e.Epoch)
	}
	if e.Kind == Persist || e.Kind == Apply && (e.Change == Promote || e.Change == Create) {
		h := e.Hard
		fmt.Fprintf(&b, " {epoch=%d served=%d longest=%s serial=%d", h.Epoch, h.Served, span(h.LongestG), h.Serial)
		if h.Marked {
			b.WriteString(" marked")
		}
		b.WriteString("}")
	}
	if e.Text != "" {
		fmt.Fprintf(&b, " %q", e.Text)
	}
	return b.String()
}

func simSeeds(t *testing.T, n int, opt simOpt) {
	t.Helper()
	for seed := range uint64(n * *sims) {
		s := newSim(seed, opt)
		if s.run() != "" {
			s = newSim(seed, opt)
			s.keep = true
			s.run()
			t.Fatalf("seed %d: %s\n%s", seed, s.fail, strings.Join(s.trace[max(0, len(s.trace)-70):], "\n"))
		}
	}
}

// The seeds are few enough for every run of the tests; -sim plays more.
var sims = flag.Int("sim", 1, "how many times the usual number of seeds")

func TestSimTwoNodes(t *testing.T) {
	simSeeds(t, 80, simOpt{nodes: 2, auto: true, length: 100 * second})
}

func TestSimEager(t *testing.T) {
	simSeeds(t, 80, simOpt{nodes: 2, auto: true, eager: true, length: 100 * second})
	simSeeds(t, 50, simOpt{nodes: 3, eager: true, host: true, length: 100 * second})
}

func TestSimManual(t *testing.T) { simSeeds(t, 50, simOpt{nodes: 2, length: 100 * second}) }

func TestSimHostRestart(t *testing.T) {
	simSeeds(t, 80, simOpt{nodes: 2, auto: true, host: true, length: 100 * second})
	simSeeds(t, 50, simOpt{nodes: 2, eager: true, host: true, length: 100 * second})
}

func TestSimThreeNodes(t *testing.T) {
	simSeeds(t, 50, simOpt{nodes: 3, auto: true, length: 100 * second})
}

// Forced promotions lose data by design, so only promise 2 is looked at: never
// two that serve. By the design's exception that may happen when the old primary
// reaches neither the witness nor the other node for as long as the claim waits;
// none of these seeds is that unlucky.
func TestSimForce(t *testing.T) {
	simSeeds(t, 80, simOpt{nodes: 2, auto: true, force: true, length: 100 * second})
}

// TestSimIsDeterministic: one seed, one life.
func TestSimIsDeterministic(t *testing.T) {
	var traces [2]string
	for i := range traces {
		s := newSim(11, simOpt{nodes: 3, auto: true, host: true, force: true, length: 60 * second})
		s.keep = true
		s.run()
		traces[i] = strings.Join(s.trace, "\n")
	}
	if traces[0] != traces[1] || len(traces[0]) < 10000 {
		t.Fatal("the same seed gave two lives")
	}
}

// TestMutants: every deliberate mistake is found by some seed, or the test could
// not fail either.
func TestMutants(t *testing.T) {
	for b := LeaseFromReceipt; b <= NoClaimHold; b++ {
		t.Run(b.String(), func(t *testing.T) {
			if b == GrantWhileCandidate {
				// The model volume drops its sessions in time, so only a
				// script can tell: TestGrantWhileCandidate.
				t.Skip("told by a script")
			}
			opt := simOpt{nodes: 2, auto: true, bug: b, eager: true, length: 100 * second}
			switch b {
			case NoHostMark, OldRecordProvesFailure:
				opt.host = true
			case NoClaimHold:
				opt.force = true
			}
			for seed := range uint64(3000) {
				s := newSim(seed, opt)
				if f := s.run(); f != "" && f != "nobody serves in the end" {
					t.Logf("seed %d: %s", seed, f)
					return
				}
			}
			t.Fatal("not found")
		})
	}
}
