package proctest

import (
	"context"
	"sync"
	"testing"
	"time"

	"tandem/agent/faultproxy"
)

// The primary is killed under load, the standby promoted, the dead one comes
// back; then the other way round.
func TestKill9Rounds(t *testing.T) {
	c := newCluster(t, options{size: 256 << 20, proxied: true})
	c.startPair()
	primary := c.a
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		t.Logf("round %d: %s is primary", round, primary.name)
		l := c.startLoad()
		l.more(1500)
		// In mid-write: every worker has a request in flight. What a killed
		// process has given to its sockets still arrives; of a machine that
		// dies it does not, so in every other round the line is as long as
		// the network and is cut first.
		mark := c.ledger.mark()
		if round%2 == 0 {
			c.proxy.Delay(time.Millisecond)
			l.more(200)
			mark = c.ledger.mark()
			c.proxy.Cut(faultproxy.Both)
			c.readInFlight(primary, lease/5)
		}
		killed := monotonic()
		primary.kill()
		c.proxy.Delay(0)
		c.proxy.Heal()
		heir := c.other(primary)
		heir.promote()
		first, ok := int64(0), false
		c.until(heir.name+" acknowledges", func() bool {
			l.check()
			first, ok = c.ledger.firstFrom(heir.name, killed)
			return ok
		})
		t.Logf("writable again after %v", time.Duration(first-killed).Round(time.Millisecond))
		l.more(500)
		l.halt()
		c.verify(heir)

		// The dead one comes back under load.
		l = c.startLoad()
		before := heir.metric("tandem_resync_bytes_total")
		primary.start()
		c.settled(heir)
		resynced := int64(heir.metric("tandem_resync_bytes_total") - before)
		l.more(200)
		l.halt()
		c.boundedResync(resynced, mark)
		c.settled(heir)
		c.identical()
		primary = heir
	}
	c.finish(primary)
}

// readInFlight reads, for a while, the blocks whose writes have reached the
// primary's disk and will never reach the other's. Whatever such a read returns
// has to be there for ever, so it must not return before the write is complete.
func (c *cluster) readInFlight(n *node, d time.Duration) {
	c.t.Helper()
	client, err := dialNBD(c.t.Context(), n)
	if err != nil {
		c.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	time.Sleep(d / 4) // until all have come that far
	for _, block := range c.ledger.inFlight() {
		floor := c.ledger.floor(block)
		wg.Go(func() {
			p := make([]byte, blockSize)
			if err := client.ReadAt(ctx, p, block*blockSize); err != nil {
				return
			}
			if err := c.ledger.judge(block, floor, p); err != nil {
				c.t.Error(err)
			}
		})
	}
}

// boundedResync: only what may differ has travelled.
func (c *cluster) boundedResync(resynced int64, mark uint64) {
	c.t.Helper()
	if bound := c.ledger.touched(mark) * blockSize; resynced > bound {
		c.t.Errorf("%d bytes were resynced, at most %d can differ", resynced, bound)
	}
	c.t.Logf("%d KiB were resynced", resynced>>10)
}

// The standby is killed in mid-write: writes go on after a pause, without it.
func TestKill9Standby(t *testing.T) {
	c := newCluster(t, options{size: 256 << 20})
	c.startPair()
	l := c.startLoad()
	for round := range 3 {
		l.more(1000)
		mark := c.ledger.mark()
		killed := monotonic()
		c.b.kill()
		c.until("writes go on alone", func() bool {
			l.check()
			r := c.record()
			return len(r.InSync) == 1 && r.Primary == "a"
		})
		l.more(300)
		gap := time.Duration(c.ledger.longestGap(killed, monotonic()))
		t.Logf("round %d: writes paused for %v", round, gap.Round(time.Millisecond))
		// A heartbeat without a session, then a CAS; the rest is this machine's.
		if gap > lease+heartbeat+2*time.Second {
			t.Errorf("writes paused for %v after the standby was killed", gap)
		}
		before := c.a.metric("tandem_resync_bytes_total")
		c.b.start()
		c.settled(c.a)
		c.boundedResync(int64(c.a.metric("tandem_resync_bytes_total")-before), mark)
	}
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended because a standby died", n)
	}
	l.halt()
	c.finish(c.a)
}

// Both are killed at once, several times: nothing needs an operator.
func TestKill9Both(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	for round := range 2 {
		l := c.startLoad()
		l.more(800)
		order := []*node{c.a, c.b}
		if round%2 == 1 {
			order = []*node{c.b, c.a}
		}
		for _, n := range order {
			n.kill()
		}
		// The standby first: it must not begin by itself. The recorded primary
		// comes back without anybody's help.
		c.b.start()
		time.Sleep(300 * time.Millisecond)
		if s := c.b.status(); s.Role != "Secondary" {
			t.Fatalf("b is %s by itself", s.Role)
		}
		c.a.start()
		l.more(200)
		l.halt()
		c.settled(c.a)
		c.verify(c.a)
		c.identical()
	}
	c.finish(c.a)
}
