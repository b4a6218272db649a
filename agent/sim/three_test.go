package sim

import (
	"bytes"
	"testing"

	"tandem/blockrepl/wire"
)

// The traces of rule 10: three nodes, a is primary, all in sync.

// 14a. a's w reaches b only, a dies, b promotes and takes c in: c lacks w, and
// only b's log says so.
func survivorsDiffer(s *script) {
	s.onlyB()
	s.kill(s.a)
	s.b.promote()
	s.serves(s.b)
	s.until("c joins", func() bool { return s.inSync("b", "c") })
}

func TestScenario14a_survivorsDiffer(t *testing.T) { scenario(t, survivorsDiffer) }

// onlyB lets a's write of a cold extent reach b and not c.
func (s *script) onlyB() {
	s.holdTo(s.a, s.c, wire.Data)
	s.write(s.a, 5*unitsPerExtent, 5*unitsPerExtent+8)
	s.run(50)
	if s.b.data.units[5*unitsPerExtent].cur == s.c.data.units[5*unitsPerExtent].cur {
		s.fail("b has not got what c has not got")
	}
}

// 14a, the other way round: c promotes. It never heard of w, so b has to tell it.
func survivorHasMore(s *script) {
	s.onlyB()
	s.kill(s.a)
	s.c.promote()
	s.serves(s.c)
	s.until("b joins", func() bool { return s.inSync("b", "c") })
}

func TestScenario14a_survivorHasMore(t *testing.T) { scenario(t, survivorHasMore) }

// 14b. As 14a, but b's agent restarts between: what it remembers is on its disk.
func memoryOnly(s *script) {
	s.onlyB()
	s.kill(s.a)
	s.kill(s.b)
	s.up(s.b)
	s.run(20)
	s.b.promote()
	s.serves(s.b)
	s.until("c joins", func() bool { return s.inSync("b", "c") })
}

func TestScenario14b_memoryOnly(t *testing.T) { scenario(t, memoryOnly) }

// turnOver writes so many extents that those before are retired.
func (s *script) turnOver(m *machine) {
	for e := 1; e < 15; e++ {
		s.ok(s.write(m, e*unitsPerExtent, e*unitsPerExtent+8))
	}
	s.run(50)
}

// 14c. c is away while a and b write w, whose extent then goes cold. a dies, b
// promotes, c comes back: its bit was a's.
func bitsOfTheDead(s *script) {
	s.kill(s.c)
	s.ok(s.write(s.a, 0, 8))
	s.until("c leaves the set", func() bool { return s.inSync("a", "b") })
	s.turnOver(s.a)
	s.kill(s.a)
	s.b.promote()
	s.serves(s.b)
	s.up(s.c)
	s.until("c joins", func() bool { return s.inSync("b", "c") })
	s.ok(s.read(s.b, 0, 8))
}

func TestScenario14c_bitsOfTheDead(t *testing.T) { scenario(t, bitsOfTheDead) }

// 14d. b was away, too, when c's bit was set. It comes back, is resynced, and has
// nothing of w in its log; then a dies.
func bitsNotTakenOver(s *script) {
	s.kill(s.b)
	s.kill(s.c)
	s.ok(s.write(s.a, 0, 8))
	s.turnOver(s.a)
	s.up(s.b)
	s.until("b joins", func() bool { return s.inSync("a", "b") })
	s.kill(s.a)
	s.b.promote()
	s.serves(s.b)
	s.up(s.c)
	s.until("c joins", func() bool { return s.inSync("b", "c") })
	s.ok(s.read(s.b, 0, 8))
}

func TestScenario14d_bitsNotTakenOver(t *testing.T) { scenario(t, bitsNotTakenOver) }

// b's disk is slow with a write of a, which dies. c promotes and writes the same
// block; a's write must not land on top of c's on b.
func threeDrain(s *script) {
	n := 0
	s.hook.delay = func(k delayKind) int64 {
		if k == delayDisk {
			if n++; n == 2 { // the first is a's own
				return 4000 * ms
			}
		}
		return 0
	}
	s.write(s.a, 0, 8)
	s.run(20)
	s.kill(s.a)
	s.c.promote()
	s.serves(s.c)
	s.ok(s.write(s.c, 0, 8))
	s.run(5000)
	s.until("b joins", func() bool { return s.inSync("b", "c") })
}

func TestScenario_threeDrain(t *testing.T) { scenario(t, threeDrain) }

// a takes c out of the set and dies at that moment. b holds everything and is
// the only one who can go on: the generation that the record names now must be
// one that it carries.
func threeHeard(s *script) {
	s.kill(s.c)
	s.fates(s.a, 0, witnessMute)
	w := s.write(s.a, 0, 8)
	s.until("c leaves the set", func() bool { return s.inSync("a", "b") })
	if w.over {
		s.fail("%s was answered before a knew that the shrink is decided", w.text())
	}
	s.kill(s.a)
	s.run(100)
	s.b.promote()
	s.serves(s.b)
	s.up(s.c)
	s.until("c joins", func() bool { return s.inSync("b", "c") })
	s.up(s.a)
	s.both("a comes back, with a generation that only it has adopted")
	s.noFullResync()
}

func TestScenario_threeHeard(t *testing.T) { scenario(t, threeHeard) }

// noFullResync: nobody was compared in full since all were in sync at first.
func (s *script) noFullResync() {
	if bytes.Contains(s.buf.Bytes()[s.told:], []byte("source in full")) {
		s.fail("a copy is compared in full, although its bits are known")
	}
}

// Both others go at once. They leave the set one after the other, and nothing is
// answered in between.
func threeLeave(s *script) {
	s.part(s.a, s.b)
	s.part(s.a, s.c)
	w := s.write(s.a, 0, 8)
	s.until("one has left", func() bool { return len(s.witness.rec.InSync) == 2 })
	if w.over {
		s.fail("%s was answered with one of two gone", w.text())
	}
	s.ok(w)
	if !s.inSync("a") {
		s.fail("%s was answered although the record is %s", w.text(), recText(s.witness.rec))
	}
	s.mend(s.a, s.b)
	s.mend(s.a, s.c)
	s.both("both come back")
}

func TestScenario_threeLeave(t *testing.T) { scenario(t, threeLeave) }

// An old disk of c is put back, and the primary that knew it better is gone.
func threePutBack(s *script) {
	s.ok(s.write(s.a, 0, 8), s.flush(s.a))
	s.run(1500)
	old := &snapshot{data: s.c.data.snapshot(), meta: s.c.meta.snapshot()}
	s.ok(s.write(s.a, 0, 8))
	s.turnOver(s.a)
	s.ok(s.flush(s.a))
	s.run(1500)
	s.power(s.c)
	s.check.lose(s.c)
	s.c.foreign = true
	s.c.data.restore(old.data)
	s.c.meta.restore(old.meta)
	s.kill(s.a)
	s.run(50)
	s.b.promote()
	s.serves(s.b)
	s.up(s.c)
	s.until("c joins", func() bool { return s.inSync("b", "c") })
	s.up(s.a)
	s.both("full resync")
}

func TestScenario_threePutBack(t *testing.T) { scenario(t, threePutBack) }

// c is taken in while b is away; then a, the only one who was never away, goes.
func threeGrow(s *script) {
	s.kill(s.b)
	s.kill(s.c)
	s.ok(s.write(s.a, 0, 8))
	s.up(s.c)
	s.until("c joins", func() bool { return s.inSync("a", "c") })
	s.ok(s.write(s.a, unitsPerExtent, unitsPerExtent+8))
	s.turnOver(s.a)
	s.kill(s.a)
	s.c.promote()
	s.serves(s.c)
	s.ok(s.write(s.c, 2*unitsPerExtent, 2*unitsPerExtent+8))
	s.up(s.b)
	s.until("b joins", func() bool { return s.inSync("b", "c") })
	s.ok(s.read(s.c, 0, 8))
	s.noFullResync()
}

func TestScenario_threeGrow(t *testing.T) { scenario(t, threeGrow) }

// The link of a member breaks for a moment, while extents go cold and one node is
// away: it forgets none of its log before it has the bits.
func threeReturn(s *script) {
	s.kill(s.c)
	s.ok(s.write(s.a, 0, 8))
	s.until("c leaves the set", func() bool { return s.inSync("a", "b") })
	s.part(s.a, s.b)
	var w []*op
	for e := 1; e < 15; e++ {
		w = append(w, s.write(s.a, e*unitsPerExtent, e*unitsPerExtent+8))
		s.run(5)
	}
	s.mend(s.a, s.b)
	s.ok(w...)
	s.turnOver(s.a)
	s.kill(s.a)
	s.b.promote()
	s.serves(s.b)
	s.up(s.c)
	s.until("c joins", func() bool { return s.inSync("b", "c") })
	s.ok(s.read(s.b, 0, 8))
}

func TestScenario_threeReturn(t *testing.T) { scenario(t, threeReturn) }

// 1. a goes on with c; b is out of the set, apart from both, and forced. 2. a sleeps
// for longer than the claim waits. 3. a wakes up to c's grant, which does not know of
// b; what a hears of the record is later. It must not serve before.
func forcedWhileAsleep(s *script) {
	apart := []*link{s.links[0], s.links[2]}
	for _, l := range apart {
		for _, e := range l.ends {
			e.cut++
		}
	}
	s.deaf(s.b)
	s.c.witnessCut++ // or it would know by then
	w := s.write(s.a, 0, 8)
	s.until("a goes on with c", func() bool { return s.inSync("a", "c") && w.over })
	s.a.pause(6 * sec)
	s.b.input(func(now int64) { s.b.agent.Vote.Promote(now, 77, true, false) })
	s.serves(s.b)
	s.ok(s.write(s.b, 0, 8))
	s.hook.delay = func(k delayKind) int64 {
		if k == delayWitness {
			return 200 * ms
		}
		return 0
	}
	s.until("a wakes up", func() bool { return !s.a.paused })
	for end := s.now + 200*ms; s.now < end && !s.done; {
		if s.a.serving() {
			s.read(s.a, 0, 8)
		}
		s.run(5)
	}
	s.hook.delay = nil
	s.run(2000)
	s.stopHere()
}

func TestScenario_threeForcedWhileAsleep(t *testing.T) { scenario(t, forcedWhileAsleep) }
