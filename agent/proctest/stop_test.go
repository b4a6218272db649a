package proctest

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// freeze stops every thread of a node and returns when they have stopped.
func (n *node) freeze() {
	n.c.t.Helper()
	n.signal(n.c.t, syscall.SIGSTOP)
	if err := unix.Waitid(unix.P_PID, n.cmd.Process.Pid, nil, unix.WSTOPPED, nil); err != nil {
		n.c.t.Fatalf("wait until %s has stopped: %v", n.name, err)
	}
}

func (n *node) thaw() {
	n.c.t.Helper()
	n.signal(n.c.t, syscall.SIGCONT)
}

// The primary is stopped for longer than its lease and the standby promoted.
// When it goes on it does not know that anything has happened: whatever its old
// clients asked meanwhile must not be answered from its copy.
func TestStopContPrimary(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	primary := c.a
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		heir := c.other(primary)
		l := c.startLoad()
		l.more(500)
		var stay []*pinned
		for i := range maxPinned {
			p := c.pin(primary, i)
			if o := p.write(t.Context()); o.err != nil {
				t.Fatalf("pinned %s: %v", o.what, o.err)
			}
			stay = append(stay, p)
		}

		primary.freeze()
		stopped := monotonic()
		// Everything below is asked while it cannot answer. It can do so only
		// after it goes on, when the other serves.
		ctx, cancel := context.WithCancel(t.Context())
		var asked sync.WaitGroup
		outcomes := make(chan outcome, 4*maxPinned)
		for i, p := range stay {
			asked.Go(func() { outcomes <- p.write(ctx) })
			asked.Go(func() { outcomes <- p.read(ctx, i) })
		}
		l.leave(primary.name)
		heir.promote()
		var began int64
		c.until(heir.name+" acknowledges", func() (ok bool) {
			l.check()
			began, ok = c.ledger.firstFrom(heir.name, stopped)
			return ok
		})
		for i, p := range stay {
			asked.Go(func() { outcomes <- p.write(ctx) })
			asked.Go(func() { outcomes <- p.read(ctx, i) })
		}
		l.more(300)

		primary.thaw()
		// A deposed primary ends its clients' connections.
		go func() { time.Sleep(10 * time.Second); cancel() }()
		asked.Wait()
		close(outcomes)
		hung := ctx.Err() != nil
		cancel()
		for o := range outcomes {
			if o.err == nil {
				t.Errorf("round %d: %s was stopped, %s took over, and %s answered the %s", round, primary.name, heir.name, primary.name, o.what)
			}
		}
		if hung {
			t.Errorf("round %d: clients of the old primary were neither answered nor disconnected for 10 s after it went on", round)
		}
		l.leave("")
		l.more(300)
		l.halt()
		if n := c.ledger.fromAfter(primary.name, began); n > 0 {
			t.Errorf("round %d: %s acknowledged %d writes that were sent after %s had begun", round, primary.name, n, heir.name)
		}
		c.settled(heir)
		c.verify(heir)
		c.identical()
		t.Logf("round %d: %s served %v after the stop", round, heir.name, time.Duration(began-stopped).Round(time.Millisecond))
		primary = heir
	}
	c.finish(primary)
}

// A stop of the primary without a promotion is a pause, longer or shorter than
// the lease.
func TestStopContPause(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	l := c.startLoad()
	for _, d := range []time.Duration{lease / 2, 2 * lease} {
		l.more(300)
		c.a.freeze()
		time.Sleep(d)
		c.a.thaw()
		l.more(300)
		c.settled(c.a)
	}
	l.halt()
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended because of a pause", n)
	}
	if e := c.record().Epoch; e != 1 {
		t.Errorf("epoch %d: somebody was promoted because of a pause", e)
	}
	c.finish(c.a)
}

// The standby is stopped for longer than link.peer_timeout: the primary shrinks
// the set and goes on, and takes it back when it is there again.
func TestStopContStandby(t *testing.T) {
	c := newCluster(t, options{peerTimeout: 2 * time.Second})
	c.startPair()
	l := c.startLoad()
	l.more(500)
	mark := c.ledger.mark()
	c.b.freeze()
	stopped := monotonic()
	c.until("the set is a alone", func() bool {
		l.check()
		return len(c.record().InSync) == 1
	})
	l.more(500)
	gap := time.Duration(c.ledger.longestGap(stopped, monotonic()))
	t.Logf("writes paused for %v", gap.Round(time.Millisecond))
	if gap > lease+2*time.Second+time.Second {
		t.Errorf("writes paused for %v, link.peer_timeout is 2s and the lease %v", gap, lease)
	}
	time.Sleep(time.Until(time.Now().Add(3*time.Second - time.Duration(monotonic()-stopped))))
	before := c.a.metric("tandem_resync_bytes_total")
	c.b.thaw()
	c.settled(c.a)
	c.boundedResync(int64(c.a.metric("tandem_resync_bytes_total")-before), mark)
	l.more(100)
	l.halt()
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended because a standby was stopped", n)
	}
	c.finish(c.a)
}
