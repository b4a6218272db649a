package sim

import (
	"strings"
	"testing"

	"tandem/blockrepl/wire"
	"tandem/failover"
)

// Scenarios of the takeover: nobody promotes anybody here.

// automatic has both nodes promote by themselves from now on.
func (s *script) automatic() {
	s.opt.manual = false
	for _, m := range []*machine{s.b, s.a} {
		s.kill(m)
		s.run(10)
		s.up(m)
	}
	s.both("both promote by themselves")
	if s.primary() != s.a {
		s.fail("b took over while a's agent was restarted")
	}
	s.run(6000) // both have read the record since
}

// 1. a dies for good. 2. b takes over, not before its promise has run out, and
// not much later. 3. a comes back and follows.
func primaryDies(s *script) {
	s.automatic()
	s.ok(s.write(s.a, 0, 8), s.flush(s.a))
	died := s.now
	s.power(s.a)
	s.serves(s.b)
	if d := s.now - died; d < s.opt.lease-2*s.opt.heartbeat || d > s.opt.lease*3/2 {
		s.fail("b serves %d ms after a's death, with a lease of %d ms", d/ms, s.opt.lease/ms)
	}
	s.ok(s.write(s.b, 4, 12))
	s.up(s.a)
	s.both("a follows b")
}

// The lease runs out here and there: a reads all the time on the lease that it
// has, b takes over when its promise ends, neither before nor at that moment
// do both complete.
func leaseRunsOut(s *script) {
	s.automatic()
	s.a.witnessCut++ // or it would take b out of the set
	s.cut()
	s.deaf(s.b)
	for end := s.now + 4*sec; s.now < end && !s.done; {
		s.readAnywhere()
		for _, m := range s.m {
			if m.serving() && m == s.b {
				s.write(m, 0, 8)
			}
		}
		s.run(10)
	}
	s.a.witnessCut--
	s.heal()
	s.both("a follows b")
}

// 1. a is cut from b and goes on alone: the record is {a}. 2. b's promise runs
// out. What b read while it was in the set must not count.
func outOfTheSet(s *script) {
	s.automatic()
	s.b.witnessCut++
	s.cut()
	w := s.write(s.a, 0, 8)
	s.ok(w)
	s.b.witnessCut--
	s.run(5000)
	if s.b.serving() {
		s.fail("b serves without %s", w.text())
	}
	s.heal()
	s.both("b is back")
}

// 1. Automatic promotion is paused. 2. a dies. 3. Nobody takes over, however long.
// 4. Resumed, b does at once.
func pausedMeansPaused(s *script) {
	s.automatic()
	s.a.opReq++
	id := s.a.opReq
	s.a.input(func(now int64) { s.a.agent.Vote.Pause(now, id) })
	s.until("the record is paused", func() bool { return s.witness.rec.Paused != nil })
	s.power(s.a)
	s.run(20_000)
	if s.b.serving() {
		s.fail("b serves although that was paused")
	}
	s.b.resumeAuto()
	s.serves(s.b)
	s.up(s.a)
	s.both("a follows b")
}

// 1. A read of a's is on its slow disk. 2. The service is moved to b, which
// writes there and has its answer. 3. a's read must not be answered after that,
// or not with what was there before.
func goBeforeStop(s *script) {
	s.automatic()
	s.ok(s.write(s.a, 0, 8))
	slow := 400 * ms
	s.hook.delay = func(k delayKind) int64 {
		if k == delayDisk {
			return slow
		}
		return 0
	}
	s.read(s.a, 0, 8)
	s.run(1)
	slow = 0
	s.hook.frame = func(_, _ *machine, f *frame) bool {
		if m, err := failover.DecodeMsg(f.msg.Body); f.msg.Type == wire.Control && err == nil && m.Kind == failover.Go {
			s.at(s.now+1*ms, s.cut) // nobody tells a that b has begun
		}
		return true
	}
	s.b.promote()
	for end := s.now + 2*sec; s.now < end && !s.done; {
		if s.b.serving() {
			s.write(s.b, 0, 8)
		}
		s.run(10)
	}
	s.hook.delay, s.hook.frame = nil, nil
	s.heal()
	s.both("a follows b")
}

// 1. a's host is suspended with a lease in hand. 2. b takes over and writes.
// 3. a wakes up: to a clock that stood still the lease has not run out.
func suspended(s *script) {
	s.automatic()
	s.ok(s.write(s.a, 0, 8))
	s.cut() // nobody wakes it with the news
	s.a.suspend(6 * sec)
	s.read(s.a, 0, 8) // waits in its socket
	s.serves(s.b)
	s.ok(s.write(s.b, 0, 8))
	s.until("a wakes up", func() bool { return !s.a.paused })
	s.run(5)
	s.heal()
	s.both("a follows b")
}

// 1. a's disk fails. 2. It says that it has stopped, so b serves at once.
func diskFails(s *script) {
	s.automatic()
	s.ok(s.write(s.a, 0, 8))
	failed := s.now
	s.a.breakDisk(10 * sec)
	s.serves(s.b)
	if d := s.now - failed; d > 100*ms {
		s.fail("b serves %d ms after a's disk failed", d/ms)
	}
	s.ok(s.write(s.b, 4, 12))
	s.both("a is mended and follows b")
}

// 1. a alone, b resynced and in the set again. 2. a's agent is told to end: b has
// the patience that it asked for, and a is primary again.
func goodbye(s *script) {
	s.automatic()
	s.a.goodbye(1500 * ms)
	s.run(200)
	s.until("a is back", func() bool { return s.a.serving() || s.b.serving() })
	if s.b.serving() {
		s.fail("b took over from an agent that had said that it would be back")
	}
	s.both("as before")
	// It does not come back: b waits as long as it was told, and no longer.
	s.a.goodbye(60 * sec)
	gone := s.now
	s.serves(s.b)
	if d := s.now - gone; d < 2*sec || d > 5*sec {
		s.fail("b serves %d ms after a goodbye for 2 s", d/ms)
	}
	s.up(s.a)
	s.both("a follows b")
}

// 1. Nobody has anything to do. 2. The link is cut. 3. The primary takes b out
// of the set before b's promise ends, and stays primary.
func idleAndCut(s *script) {
	s.automatic()
	s.cut()
	s.run(5000)
	if !s.a.serving() || s.b.serving() || !s.inSync("a") {
		s.fail("not a alone: %s", s.situation())
	}
	s.heal()
	s.both("b is back")
}

// 1. Both hosts lose power. 2. Both come back: nobody has to do anything.
func blackout(s *script) {
	s.automatic()
	s.ok(s.write(s.a, 0, 8), s.flush(s.a))
	s.power(s.a)
	s.power(s.b)
	s.up(s.b)
	s.run(5000)
	if s.b.serving() {
		s.fail("b serves, and a may hold more")
	}
	s.up(s.a)
	s.both("both serve again")
}

// 1. b hears neither a nor c, and a does not reach the witness. 2. b's promise has
// run out: it is promoted. 3. c goes on granting a its lease; b's is what counts.
func oneGrantOfTwo(s *script) {
	s.a.witnessCut++
	for _, l := range []*link{s.links[0], s.links[2]} {
		for _, e := range l.ends {
			e.cut++
		}
	}
	s.deaf(s.b)
	s.b.promote()
	for end := s.now + 4*sec; s.now < end && !s.done; {
		s.readAnywhere()
		if s.b.serving() {
			s.write(s.b, 0, 8)
		}
		s.run(10)
	}
}

func TestTakeover_threeGrants(t *testing.T) { scenario(t, oneGrantOfTwo) }

func TestTakeoverPrimaryDies(t *testing.T)       { scenario(t, primaryDies) }
func TestTakeoverLeaseRunsOut(t *testing.T)      { scenario(t, leaseRunsOut) }
func TestTakeoverOutOfTheSet(t *testing.T)       { scenario(t, outOfTheSet) }
func TestTakeoverPausedMeansPaused(t *testing.T) { scenario(t, pausedMeansPaused) }
func TestTakeoverGoBeforeStop(t *testing.T)      { scenario(t, goBeforeStop) }
func TestTakeoverSuspended(t *testing.T)         { scenario(t, suspended) }
func TestTakeoverDiskFails(t *testing.T)         { scenario(t, diskFails) }
func TestTakeoverGoodbye(t *testing.T)           { scenario(t, goodbye) }
func TestTakeoverIdleAndCut(t *testing.T)        { scenario(t, idleAndCut) }
func TestTakeoverBlackout(t *testing.T)          { scenario(t, blackout) }

// A life by itself looks at promise 6: without a takeover it fails.
func TestLifeWithoutTakeover(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		opt := Options{Ops: 200, Nodes: nodes}
		if r := Run(3, opt); r.Failed != "" || r.Idle < sec/2 {
			t.Errorf("%d nodes: %s, served again after %d ms", nodes, r.Failed, r.Idle/ms)
		}
		opt.VoteBug = failover.NeverTakeOver
		if r := Run(3, opt); !strings.HasPrefix(r.Failed, "nobody serves") {
			t.Errorf("%d nodes that never take over: %q", nodes, r.Failed)
		}
	}
}
