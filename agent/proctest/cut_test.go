package proctest

import (
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandem/agent/control"
	"tandem/agent/faultproxy"
)

// The line is cut, both ways and each way, and heals. Under writes the primary
// takes the standby out of the set after the lease and goes on; a promotion of
// the standby is then refused; after the heal it is resynced by what it lacks.
func TestCutUnderLoad(t *testing.T) {
	c := newCluster(t, options{proxied: true, peerTimeout: 3 * time.Second})
	c.startPair()
	l := c.startLoad()
	for _, cut := range []struct {
		name string
		way  faultproxy.Direction
	}{
		{"both ways", faultproxy.Both},
		{"a to b", faultproxy.To},
		{"b to a", faultproxy.From},
	} {
		l.more(300)
		mark, began := c.ledger.mark(), monotonic()
		c.proxy.Cut(cut.way)
		c.until("the set is a alone", func() bool {
			l.check()
			return len(c.record().InSync) == 1
		})
		l.more(300)
		gap := time.Duration(c.ledger.longestGap(began, monotonic()))
		t.Logf("%s: writes paused for %v", cut.name, gap.Round(time.Millisecond))
		if gap > lease+3*time.Second {
			t.Errorf("%s: writes paused for %v, the lease is %v", cut.name, gap, lease)
		}
		// The answer may have to wait for the standby's promise, never for more.
		asked := monotonic()
		_, _, err := c.b.call("promote", nil)
		took := time.Duration(monotonic() - asked)
		if text := refusal(err); !strings.Contains(text, "b is not in the in-sync set, which names a") {
			t.Errorf("%s: promote b during the cut: %v (after %v)", cut.name, err, took)
		}
		if took > promise+3*time.Second {
			t.Errorf("%s: promote b was refused only after %v", cut.name, took)
		}
		l.more(100)
		before := c.a.metric("tandem_resync_bytes_total")
		c.proxy.Heal()
		c.settled(c.a)
		c.boundedResync(int64(c.a.metric("tandem_resync_bytes_total")-before), mark)
	}
	l.more(100)
	l.halt()
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended because of a cut", n)
	}
	if n := c.ledger.fromAfter("b", 0); n > 0 {
		t.Errorf("b acknowledged %d writes", n)
	}
	c.finish(c.a)
}

// Links that end in the middle of writes and are back at once: the set and the
// generations stay as they are, and still what was on the way is missing on the
// other side.
func TestLinkResets(t *testing.T) {
	// A link may be down for a heartbeat before its peer leaves the set.
	c := newCluster(t, options{proxied: true, heartbeat: 2 * time.Second, lease: 5 * time.Second})
	c.startPair()
	rounds, quick := 6, 0
	if testing.Short() {
		rounds = 4
	}
	for range rounds {
		l := c.startLoad()
		l.more(150)
		before := c.record().Serial
		c.proxy.Cut(faultproxy.To) // what is on the way is lost
		time.Sleep(10 * time.Millisecond)
		c.proxy.Heal()
		l.halt()
		if n := l.reconnects.Load(); n > 0 {
			t.Errorf("%d client connections ended because of the link", n)
		}
		c.settled(c.a)
		if c.record().Serial == before {
			quick++
		}
		c.verify(c.a)
		c.identical()
	}
	if quick < rounds/2 {
		t.Errorf("only %d of %d resets were over within a heartbeat", quick, rounds)
	}
	// And resets one upon the other.
	l := c.startLoad()
	for range rounds {
		l.more(100)
		c.proxy.Reset()
	}
	l.halt()
	c.settled(c.a)
	c.b.promote()
	c.settled(c.b)
	c.finish(c.b)
}

// The line is cut while nobody writes, so that the set stays as it is, and the
// standby is promoted. The old primary has no lease any more: it may complete
// nothing, neither a read from its own copy nor a write, although clients are
// connected to it and it hears of the other's term by the record alone.
//
// Nobody promotes by himself here: an idle primary would take the standby out of the
// set before that one's promise has run out.
func TestCutPromote(t *testing.T) {
	c := newCluster(t, options{proxied: true, peerTimeout: 3 * time.Second})
	c.startPair()
	l := c.startLoad()
	l.more(500)
	l.halt()
	var stay []*pinned
	for i := range 2 {
		stay = append(stay, c.pin(c.a, i))
	}
	c.proxy.Cut(faultproxy.Both)
	cutAt := monotonic()
	c.b.promote()
	took := time.Duration(monotonic() - cutAt)
	t.Logf("promoted %v after the cut", took.Round(time.Millisecond))
	// The last grant is at most a heartbeat old.
	if took < promise-heartbeat-100*time.Millisecond {
		t.Errorf("b was promoted %v after the cut, but it had promised a %v", took, promise)
	}
	l = c.startLoad()
	began, ok := c.ledger.firstFrom("b", cutAt)
	if !ok {
		t.Fatal("the first acknowledgement after the promotion is not b's")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, p := range stay {
		for i := range 5 {
			p.read(ctx, i).mustBeRefused(t, "a", began)
			p.write(ctx).mustBeRefused(t, "a", began)
		}
	}
	if ctx.Err() != nil {
		t.Error("clients of the old primary were neither answered nor disconnected for 5 s")
	}
	l.more(300)
	c.proxy.Heal()
	c.settled(c.b)
	l.more(100)
	l.halt()
	if n := c.ledger.fromAfter("a", began); n > 0 {
		t.Errorf("a acknowledged %d writes that were sent after b had begun", n)
	}
	c.finish(c.b)
}

// The same with one direction cut. Whether the standby or the primary goes on is
// theirs to decide; that exactly one does, and with everything, is not.
func TestCutPromoteOneWay(t *testing.T) {
	for _, cut := range []struct {
		name string
		way  faultproxy.Direction
	}{
		{"a to b", faultproxy.To},
		{"b to a", faultproxy.From},
	} {
		t.Run(cut.name, func(t *testing.T) {
			c := newCluster(t, options{proxied: true, peerTimeout: 3 * time.Second})
			c.startPair()
			l := c.startLoad()
			l.more(500)
			l.halt()
			c.proxy.Cut(cut.way)
			c.raced(c.a, func() error {
				// A standby that still hears the primary waits for its answer.
				ctx, cancel := context.WithTimeout(t.Context(), 3*promise)
				defer cancel()
				_, err := control.Call(ctx, c.b.control, control.Request{Verb: "promote"}, nil)
				return err
			})
		})
	}
}

// The line is cut, and clients come back to the old primary at about the moment
// in which the standby's promise runs out: one of the two changes of the record
// is first, and only that node completes anything.
func TestCutRace(t *testing.T) {
	c := newCluster(t, options{proxied: true, peerTimeout: 3 * time.Second})
	c.startPair()
	primary, rounds := c.a, 3
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		c.proxy.Cut(faultproxy.Both)
		stay := c.pin(primary, 0)
		go func() {
			time.Sleep(promise - lease/8 + rand.N(lease/4))
			stay.write(t.Context())
		}()
		heir := c.other(primary)
		primary = c.raced(primary, func() error {
			_, _, err := heir.call("promote", nil)
			return err
		})
	}
	c.finish(primary)
}

// raced has the standby promoted while the line is cut, heals it, and shows that
// at no time two nodes completed I/O. It returns who serves.
func (c *cluster) raced(primary *node, promote func() error) *node {
	c.t.Helper()
	heir := c.other(primary)
	began := monotonic()
	err := promote()
	c.t.Logf("promote %s under a cut: %v", heir.name, err)
	serves, silent := primary, heir
	if err == nil {
		serves, silent = heir, primary
	}
	l := c.startLoad()
	var first int64
	c.until(serves.name+" acknowledges", func() (ok bool) {
		l.check()
		first, ok = c.ledger.firstFrom(serves.name, began)
		return ok
	})
	l.more(200)
	if n := c.ledger.fromAfter(silent.name, first); n > 0 {
		c.t.Errorf("%s acknowledged %d writes that were sent after %s had begun", silent.name, n, serves.name)
	}
	c.proxy.Heal()
	c.settled(serves)
	l.more(100)
	l.halt()
	c.verify(serves)
	c.identical()
	return serves
}

// A glitch shorter than the lease: nobody leaves the set and no client sees an
// error. A delay of the line shows in the latency alone.
func TestGlitchAndDelay(t *testing.T) {
	// Longer than elsewhere: a busy machine must not make it a long glitch.
	const glitch = lease
	c := newCluster(t, options{proxied: true, lease: 3 * lease})
	c.startPair()
	before := c.record()
	l := c.startLoad()
	for _, way := range []faultproxy.Direction{faultproxy.Both, faultproxy.To, faultproxy.From} {
		l.more(300)
		began := monotonic()
		c.proxy.Hold(way)
		time.Sleep(glitch)
		c.proxy.Heal()
		l.more(300)
		gap := time.Duration(c.ledger.longestGap(began, monotonic()))
		t.Logf("writes paused for %v", gap.Round(time.Millisecond))
		if gap < glitch-50*time.Millisecond {
			t.Errorf("writes paused for %v while the line was held for %v: they were acknowledged without the standby", gap, glitch)
		}
	}
	c.proxy.Delay(2 * time.Millisecond)
	l.more(10)
	began := monotonic()
	l.more(400)
	ended := monotonic()
	c.proxy.Delay(0)
	l.halt()
	if least := c.ledger.least(began, ended); least < 4*time.Millisecond {
		t.Errorf("a write was acknowledged after %v although the peer is 4 ms away", least)
	}
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended because of a glitch", n)
	}
	if after := c.record(); after.Serial != before.Serial {
		t.Errorf("the record changed from serial %d to %d: %s", before.Serial, after.Serial, after.Reason)
	}
	c.finish(c.a)
}

// The witness is out while the line is cut: I/O freezes, and goes on when either
// is back. A glitch of the line alone, shorter than the lease, costs nothing
// even then. A freeze that lasts too long ends with an error and a demotion. The
// standby is not to take over meanwhile.
func TestWitnessOut(t *testing.T) {
	const freeze = 4 * time.Second
	c := newCluster(t, options{proxied: true, freeze: freeze, peerTimeout: 3 * time.Second})
	c.startPair()
	l := c.startLoad()
	l.more(200)

	// The witness alone: it is needed for changes only.
	back := c.witnessOut()
	time.Sleep(2 * lease)
	l.more(300)
	// And a glitch besides.
	c.proxy.Hold(faultproxy.Both)
	time.Sleep(lease / 2)
	c.proxy.Heal()
	l.more(200)

	// A cut besides: nothing may complete, neither here nor there.
	frozen := func() (since int64) {
		since = monotonic()
		c.proxy.Cut(faultproxy.Both)
		time.Sleep(2 * lease)
		acks := c.ledger.acknowledged()
		if s := c.a.status(); s.FrozenSeconds == 0 {
			t.Errorf("%v after the cut a does not say that it is frozen: lease %d ms, %+v", 2*lease, s.LeaseRemainingMS, s.Peers)
		}
		time.Sleep(lease / 4)
		if n := c.ledger.acknowledged() - acks; n > 0 {
			t.Errorf("%d writes were acknowledged without the standby and without the witness", n)
		}
		return since
	}
	frozen()
	_, _, err := c.b.call("promote", nil)
	if text := refusal(err); !strings.Contains(text, "cluster record cannot be read") {
		t.Errorf("promote b without the witness: %v", err)
	}
	c.proxy.Heal()
	back()
	l.more(200)
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended although the freeze did not last", n)
	}
	c.settled(c.a)

	// The line comes back, the witness does not: the primary does not know
	// whether its shrink has landed or will. However it goes on, I/O does not wait
	// for longer than failover.freeze.
	back = c.witnessOut()
	since := frozen()
	c.proxy.Heal()
	acks := c.ledger.acknowledged()
	c.untilLimit("I/O goes on, or fails, after failover.freeze", freeze+lease+4*time.Second-time.Duration(monotonic()-since), func() bool {
		l.check()
		return c.ledger.acknowledged() > acks+maxInFlight || l.reconnects.Load() > 0
	})
	t.Logf("with the line back and the witness out: %d connections ended after %v", l.reconnects.Load(), time.Duration(monotonic()-since).Round(time.Millisecond))
	back()
	l.more(200)
	c.settled(c.a)

	// Nothing comes back: a demotes itself, its clients get an error, and when all
	// is well again somebody serves by itself.
	back = c.witnessOut()
	since = frozen()
	before := l.reconnects.Load()
	c.until("a has demoted itself", func() bool {
		l.check()
		return c.a.status().Role == "Secondary"
	})
	d := time.Duration(monotonic() - since)
	t.Logf("a demoted itself after %v", d.Round(time.Millisecond))
	if d < freeze || d > freeze+lease+2*time.Second {
		t.Errorf("a demoted itself after %v, failover.freeze is %v", d, freeze)
	}
	c.until("its clients are told", func() bool { return l.reconnects.Load() >= before+lanes })
	c.a.logged("no longer Primary", "frozen")
	c.proxy.Heal()
	back()
	l.more(200)
	l.halt()
	c.finish(c.a)
}

// witnessOut makes the witness hang: somebody else has its lock. The function
// gives it back.
func (c *cluster) witnessOut() (back func()) {
	c.t.Helper()
	f, err := os.OpenFile(c.path("witness.lock"), os.O_RDWR, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { f.Close() })
	c.until("the witness is locked", func() bool {
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
	})
	return func() { f.Close() }
}
