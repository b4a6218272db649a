package proctest

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandem/nbd"
)

// SIGTERM of the primary under load: what is in flight is answered, the agent
// ends with status 0, and started again it is primary again at once, without a
// failover. Its clients notice a pause.
func TestSigtermPrimary(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	l := c.startLoad()
	best := time.Minute
	for round := range 3 {
		l.more(500)
		epoch := c.record().Epoch
		told := time.Now()
		c.a.signal(t, syscall.SIGTERM)
		c.a.stopped()
		t.Logf("round %d: stopped after %v", round, time.Since(told).Round(time.Millisecond))
		if d := time.Since(told); d > 5*time.Second {
			t.Errorf("the agent needed %v to stop", d)
		}
		if s := c.b.status(); s.Role != "Secondary" {
			t.Fatalf("b became %s although a comes back", s.Role)
		}
		// b holds everything that was acknowledged: the whole set has it. The images
		// are compared with the ledger at the end.
		started := monotonic()
		c.a.launch()
		var first int64
		c.until("a acknowledges again", func() (ok bool) {
			l.check()
			first, ok = c.ledger.firstFrom("a", started)
			return ok
		})
		best = min(best, time.Duration(first-started))
		t.Logf("round %d: acknowledged again %v after its start", round, time.Duration(first-started).Round(time.Millisecond))
		c.settled(c.a)
		if e := c.record().Epoch; e != epoch+1 {
			t.Errorf("epoch %d after a restart in epoch %d", e, epoch)
		}
	}
	if best > time.Second {
		t.Errorf("a restart took %v at best", best)
	}
	l.halt()
	c.finish(c.a)
}

// SIGTERM of the standby under load costs its clients nothing but a pause.
func TestSigtermStandby(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	l := c.startLoad()
	l.more(500)
	told := monotonic()
	c.b.signal(t, syscall.SIGTERM)
	c.b.stopped()
	l.more(300)
	gap := time.Duration(c.ledger.longestGap(told, monotonic()))
	t.Logf("writes paused for %v", gap.Round(time.Millisecond))
	if gap > lease+2*time.Second {
		t.Errorf("writes paused for %v when the standby was stopped in order", gap)
	}
	c.b.start()
	c.settled(c.a)
	l.more(100)
	l.halt()
	if n := l.reconnects.Load(); n > 0 {
		t.Errorf("%d client connections ended because a standby was stopped", n)
	}
	c.finish(c.a)
}

// Planned moves under load, there and back: clients follow, nothing is lost,
// and the old primary tells where it went.
func TestPlannedMoves(t *testing.T) {
	c := newCluster(t, options{})
	c.startPair()
	l := c.startLoad()
	primary := c.a
	for range 4 {
		l.more(300)
		heir := c.other(primary)
		began := monotonic()
		heir.promote()
		var first int64
		c.until(heir.name+" acknowledges", func() (ok bool) {
			l.check()
			first, ok = c.ledger.firstFrom(heir.name, began)
			return ok
		})
		t.Logf("%s to %s: writable again after %v", primary.name, heir.name, time.Duration(first-began).Round(time.Millisecond))
		if d := time.Duration(first - began); d > promise+2*time.Second {
			t.Errorf("the move took %v", d)
		}
		var err error
		c.until(primary.name+" knows who serves", func() bool {
			_, err = nbd.Dial(t.Context(), "unix", primary.socket, clusterName, nbd.ClientOptions{})
			return err == nil || strings.Contains(err.Error(), "the primary is node "+heir.name)
		})
		if refused, ok := errors.AsType[*nbd.Refusal](err); !ok || refused.Code != nbd.ERR_POLICY {
			t.Errorf("a client at the old primary: %v", err)
		}
		for _, n := range c.nodes {
			want := http.StatusServiceUnavailable
			if n == heir {
				want = http.StatusOK
			}
			if got := getStatus(t, n, "/primary"); got != want {
				t.Errorf("/primary of %s is %d while %s serves", n.name, got, heir.name)
			}
		}
		c.settled(heir)
		if n := c.ledger.fromAfter(primary.name, first); n > 0 {
			t.Errorf("%s acknowledged %d writes that were sent after %s had begun", primary.name, n, heir.name)
		}
		primary = heir
	}
	l.halt()
	c.finish(primary)
}

func getStatus(t *testing.T, n *node, path string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
