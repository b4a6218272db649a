package proctest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tandem/agent/faultproxy"
	"tandem/nbd"
)

// served waits until a node other than not serves by itself, and returns it.
func (c *cluster) served(not ...*node) *node {
	c.t.Helper()
	var primary *node
	c.until("another node serves", func() bool {
		for _, n := range c.nodes {
			if slices.Contains(not, n) {
				continue
			}
			if s, err := n.tryStatus(); err == nil && s.Role == "Primary" {
				primary = n
				return true
			}
		}
		return false
	})
	return primary
}

// Three nodes: the primary is killed, then the one that took over. The third has
// everything that was ever acknowledged, and when the dead ones are back all
// three copies are one.
//
// Of the last writes the first kill leaves some on c and not on b, acknowledged to
// nobody and never sent again: whichever of the two takes over, the other has to
// become like it, although no primary is left that knows where they differ.
func TestThreeNodes(t *testing.T) {
	c := newCluster(t, options{nodes: 3, auto: true, proxied: true})
	c.startPair()
	first := c.a
	l := c.startLoad()
	l.more(800)
	c.proxy.Cut(faultproxy.To) // to b
	time.Sleep(lease / 5)
	l.abandon()
	first.kill()
	if at, err := compareFiles(c.b.image, c.nodes[2].image, c.size); err != nil || at < 0 {
		t.Fatalf("no write was on its way to b alone (%v): this test has no teeth", err)
	}
	c.proxy.Heal()
	second := c.served(first)
	c.settledWith(second, 2)
	if at, err := compareFiles(c.b.image, c.nodes[2].image, c.size); err != nil || at >= 0 {
		t.Fatalf("%s has taken over and both survivors are in sync, but they differ at byte %d (%v): %s", second.name, at, err, c.dissent(at/blockSize))
	}
	l = c.startLoad()
	l.more(800)
	c.settledWith(second, 2)
	second.kill()
	third := c.served(first, second)
	l.more(800)
	l.halt()
	c.verify(third)

	l = c.startLoad()
	first.start()
	second.start()
	c.settled(third)
	l.more(200)
	l.halt()
	if e := c.record().Epoch; e != 3 {
		t.Errorf("epoch %d after two takeovers", e)
	}
	c.finish(third)
}

// The same with the dead one back before the next is killed, round and round, and
// with the planned moves that a rolling update needs.
func TestThreeNodesRounds(t *testing.T) {
	c := newCluster(t, options{nodes: 3, auto: true})
	c.startPair()
	primary, rounds := c.a, 4
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		l := c.startLoad()
		l.more(600)
		killed := monotonic()
		primary.kill()
		heir := c.served(primary)
		l.more(300)
		at, ok := c.ledger.firstFrom(heir.name, killed)
		if !ok {
			t.Fatalf("round %d: the first answer after the kill is not %s's", round, heir.name)
		}
		t.Logf("round %d: %s to %s, writable again after %v", round, primary.name, heir.name, time.Duration(at-killed).Round(time.Millisecond))
		primary.start()
		c.settled(heir)
		l.more(200)
		next := c.nodes[(slices.Index(c.nodes, heir)+1)%len(c.nodes)]
		next.promote()
		c.settled(next)
		l.more(200)
		l.halt()
		c.verify(next)
		c.identical()
		primary = next
	}
	c.finish(primary)
}

// Two kills in a row under fio: what its first job has written is verified by fio
// on the third node.
func TestThreeNodesFio(t *testing.T) {
	requireTools(t, "fio:fio")
	c := newCluster(t, options{nodes: 3, auto: true})
	c.startPair()
	if status, text := c.fio(c.a, "kept", "--do_verify=0"); status != 0 {
		t.Fatalf("fio on a: exit status %d\n%s", status, text)
	}
	// Another job, in the other half of the volume, goes to whoever serves, and
	// begins again when that dies.
	var running sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	broken := make(chan string, 100)
	running.Go(func() {
		for ctx.Err() == nil {
			for _, n := range c.nodes {
				if s, err := n.tryStatus(); err != nil || s.Role != "Primary" {
					continue
				}
				if status, text := c.fio(n, "victim", "--do_verify=0", "--offset=32m", "--time_based", "--runtime=3s"); status != 0 {
					broken <- text
				}
			}
			time.Sleep(redial)
		}
	})
	var dead []*node
	primary := c.a
	for range 2 {
		c.settledWith(primary, len(c.nodes)-len(dead))
		before := primary.status().IO.Write.Count
		c.until("fio writes", func() bool { return primary.status().IO.Write.Count > before+500 })
		primary.kill()
		dead = append(dead, primary)
		primary = c.served(dead...)
	}
	stop()
	running.Wait()
	close(broken)
	noticed := 0
	for text := range broken {
		if strings.Contains(text, "error") {
			noticed++
		}
	}
	if noticed < 2 {
		t.Errorf("fio noticed %d of 2 kills", noticed)
	}
	if status, text := c.fio(primary, "kept", "--verify_only=1"); status != 0 {
		t.Errorf("fio verify on %s after both kills: exit status %d\n%s", primary.name, status, text)
	}
	for _, n := range dead {
		n.start()
	}
	c.finish(primary)
}

// SIGTERM says goodbye: the standby waits for the agent's return, for longer than
// a takeover would have taken, and clients notice a pause.
func TestGoodbye(t *testing.T) {
	c := newCluster(t, options{auto: true})
	c.startPair()
	l := c.startLoad()
	var pauses []time.Duration
	for round, away := range []time.Duration{0, 0, 0, promise + lease} {
		l.more(300)
		epoch, told := c.record().Epoch, monotonic()
		c.a.signal(t, syscall.SIGTERM)
		c.a.stopped()
		time.Sleep(away)
		if s := c.b.status(); s.Role != "Secondary" {
			t.Fatalf("b became %s although a had said that it comes back", s.Role)
		}
		back := monotonic()
		c.a.launch()
		c.until("a acknowledges again", func() (ok bool) {
			l.check()
			_, ok = c.ledger.firstFrom("a", back)
			return ok
		})
		gap := time.Duration(c.ledger.longestGap(told, monotonic()))
		t.Logf("round %d: away for %v, writes paused for %v", round, away, gap.Round(time.Millisecond))
		if away == 0 {
			pauses = append(pauses, gap)
		}
		c.settled(c.a)
		if r := c.record(); r.Primary != "a" || r.Epoch != epoch+1 {
			t.Errorf("round %d: the record names %s in epoch %d, it was epoch %d of a", round, r.Primary, r.Epoch, epoch)
		}
	}
	slices.Sort(pauses)
	if m := medianTime(pauses); m > 2*time.Second {
		t.Errorf("a restart paused writes for %v", m)
	}
	l.more(100)
	l.halt()
	if n := c.ledger.fromAfter("b", 0); n > 0 {
		t.Errorf("b acknowledged %d writes", n)
	}
	c.finish(c.a)
}

// One that said goodbye and does not come back is waited for, then replaced; when
// it is back after all it follows.
func TestGoodbyeForGood(t *testing.T) {
	const restart = 3 * time.Second
	c := newCluster(t, options{auto: true, restart: restart})
	c.startPair()
	l := c.startLoad()
	l.more(300)
	told := monotonic()
	c.a.signal(t, syscall.SIGTERM)
	c.a.stopped()
	c.served(c.a)
	l.more(100)
	at, ok := c.ledger.firstFrom("b", told)
	if !ok {
		t.Fatal("b serves and has acknowledged nothing")
	}
	took := time.Duration(at - told)
	t.Logf("b took over %v after the SIGTERM", took.Round(time.Millisecond))
	if took < restart || took > restart+promise+3*time.Second {
		t.Errorf("b took over %v after the SIGTERM: failover.restart is %v, the lease %v", took, restart, lease)
	}
	c.a.start()
	c.settled(c.b)
	l.more(100)
	l.halt()
	if n := c.ledger.fromAfter("a", at); n > 0 {
		t.Errorf("a acknowledged %d writes after b had begun", n)
	}
	c.finish(c.b)
}

// The primary reaches neither its peer nor the witness, nor does the peer reach
// it: I/O waits for failover.freeze and ends with errors, the primary demotes
// itself, and when all is well again somebody serves without being told.
func TestFreeze(t *testing.T) {
	const freeze = 3 * time.Second
	c := newCluster(t, options{auto: true, proxied: true, freeze: freeze})
	c.startPair()
	primary := c.a
	for round := range 2 {
		l := c.startLoad()
		l.more(300)
		stay := c.pin(primary, round)
		heal := c.isolate(t)
		cut := monotonic()
		o := stay.write(t.Context())
		took := time.Duration(o.done - cut)
		t.Logf("round %d: %s on %s ended with %v %v after the cut", round, o.what, primary.name, o.err, took.Round(time.Millisecond))
		if !errors.Is(o.err, nbd.ESHUTDOWN) && !errors.Is(o.err, nbd.ErrClosed) {
			t.Errorf("round %d: the write ended with %v", round, o.err)
		}
		// The lease ran out at most one lease after the cut, and then it froze.
		if took < freeze || took > freeze+lease+3*time.Second {
			t.Errorf("round %d: a write failed %v after the cut: failover.freeze is %v, the lease %v", round, took, freeze, lease)
		}
		c.until(primary.name+" has demoted itself", func() bool { return primary.status().Role == "Secondary" })
		acks := c.ledger.acknowledged()
		time.Sleep(lease)
		for _, n := range c.nodes {
			if s := n.status(); s.Role != "Secondary" {
				t.Errorf("round %d: %s is %s although it reaches nobody", round, n.name, s.Role)
			}
		}
		if n := c.ledger.acknowledged() - acks; n > 0 {
			t.Errorf("round %d: %d writes were acknowledged while nobody served", round, n)
		}
		heal()
		healed := monotonic()
		primary = c.settledAt(len(c.nodes), c.nodes...)
		l.more(200)
		at, ok := c.ledger.firstFrom(primary.name, healed)
		if !ok {
			t.Fatalf("round %d: %s serves, and has acknowledged nothing", round, primary.name)
		}
		t.Logf("round %d: %s acknowledges %v after the heal", round, primary.name, time.Duration(at-healed).Round(time.Millisecond))
		l.halt()
	}
	c.finish(primary)
}

// isolate cuts the nodes off from each other and from the witness.
func (c *cluster) isolate(t *testing.T) (heal func()) {
	t.Helper()
	back := c.witnessOut()
	c.proxy.Cut(faultproxy.Both)
	return func() {
		c.proxy.Heal()
		back()
	}
}
