package proctest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// role is what a node does when it is killed.
type role string

const (
	asPrimary   role = "primary"
	asSecondary role = "secondary"
	asCandidate role = "candidate" // on its way from the one to the other
)

// faults are the places around the agent's durable effects at which it can be
// killed, with the roles that come there, and up to which visit.
var faults = []struct {
	place string
	role  role
	most  int
}{
	{"data-write", asPrimary, 200}, {"data-written", asPrimary, 200},
	{"apply", asSecondary, 200}, {"applied", asSecondary, 200},
	{"resync-apply", asSecondary, 2}, {"resync-applied", asSecondary, 2},
	{"cas", asCandidate, 1}, {"cas-done", asCandidate, 1},
	{"meta-write", asPrimary, 40}, {"meta-written", asPrimary, 40}, {"meta-flushed", asPrimary, 40},
	{"data-zero", asPrimary, 10},
	{"data-flush", asPrimary, 10}, {"data-flushed", asPrimary, 10},

	// Again in another role: not with -short.
	{"cas", asPrimary, 3}, {"cas-done", asPrimary, 3},
	{"meta-write", asSecondary, 20}, {"meta-written", asSecondary, 20}, {"meta-flushed", asSecondary, 20},
	{"data-flush", asSecondary, 2}, {"data-flushed", asSecondary, 2},
	{"meta-write", asCandidate, 8}, {"meta-written", asCandidate, 8}, {"meta-flushed", asCandidate, 8},
	{"data-flush", asCandidate, 1}, {"data-flushed", asCandidate, 1},
}

// places is how many of them are places of their own; they come first.
const places = 14

// The process kills itself before and after each durable effect, in each role.
// After each death the survivor is promoted or the dead one comes back, and all
// that was acknowledged is there, twice.
func TestFaults(t *testing.T) {
	first := map[string]bool{}
	for _, f := range faults {
		first[f.place] = true
	}
	if known := knownPlaces(t); len(first) != places || !slices.Equal(sorted(first), known) {
		t.Fatalf("this test visits %v, the agent has %v", sorted(first), known)
	}
	list := faults
	if testing.Short() {
		list = faults[:places]
	}
	var c *cluster
	for i, f := range list {
		ok := t.Run(fmt.Sprintf("%s %s", f.place, f.role), func(sub *testing.T) {
			if c == nil {
				c = newCluster(t, options{faults: true})
				c.t = sub
				c.startPair()
			}
			c.t = sub
			// Both nodes take turns.
			c.dieAt([]*node{c.a, c.b}[i%2], f.place, f.role, 1+rand.IntN(f.most), i%4 < 2)
		})
		if !ok {
			c = nil // its state is anybody's guess
		}
	}
	if c != nil {
		c.t = t
		c.finish(c.serving())
	}
}

// knownPlaces are the names in the agent's sources.
func knownPlaces(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		b, err := os.ReadFile("../" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range strings.Split(string(b), `faultPoint("`)[1:] {
			name, _, _ := strings.Cut(part, `"`)
			found[name] = true
		}
	}
	return sorted(found)
}

func sorted(set map[string]bool) (names []string) {
	for n := range set {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// serving is the node that is Primary now, nil if none is.
func (c *cluster) serving() *node {
	for _, n := range c.nodes {
		if n.process != nil && !n.ended() {
			if s, err := n.tryStatus(); err == nil && s.Role == "Primary" {
				return n
			}
		}
	}
	return nil
}

// dieAt has a node killed at the nth visit of a place. takeover says whether its
// peer is promoted then, if it may be, or the dead one comes back first.
func (c *cluster) dieAt(target *node, place string, as role, nth int, takeover bool) {
	t := c.t
	t.Helper()
	t.Logf("%s dies at visit %d of %s as %s", target.name, nth, place, as)
	peer := c.other(target)
	if c.serving() == target {
		peer.promote()
		c.settled(peer)
	}
	log := c.path("visited")
	_ = os.Remove(log)
	env := []string{fmt.Sprintf("TANDEM_FAULT=%s:%d", place, nth), "TANDEM_FAULT_LOG=" + log}
	target.kill()
	l := c.startLoad()
	if as == asSecondary {
		l.more(300) // which are resynced then
	}
	target.launch(env...)
	limit := time.Now().Add(30 * time.Second)
	alive := func(what string, done func() bool) bool {
		c.until(what, func() bool {
			l.check()
			return target.ended() || time.Now().After(limit) || done()
		})
		return !target.ended() && time.Now().Before(limit)
	}
	inSync := func() bool {
		r := c.record()
		return slices.Contains(r.InSync, target.name) && len(r.InSync) == 2
	}
	if alive("it is in sync", inSync) && as == asCandidate {
		peer.kill()
	}
	if as != asSecondary && alive("", func() bool { return true }) {
		_, _, _ = target.call("promote", nil) // it may die in it
	}
	for stir := time.Now().Add(2 * time.Second); alive("it dies", func() bool { return time.Now().After(stir) }); stir = time.Now().Add(2 * time.Second) {
		// Whatever has not happened yet may need a shrink, a grow and a resync.
		if as == asSecondary {
			// A planned move and back makes sessions anew.
			_, _, _ = target.call("promote", nil)
			_, _, _ = peer.call("promote", nil)
			continue
		}
		peer.kill()
		time.Sleep(2 * heartbeat)
		peer.start()
	}
	if !target.ended() {
		t.Fatalf("%s was not visited %d times as %s", place, nth, as)
	}
	b, _ := os.ReadFile(log)
	if !target.killed() || !slices.Contains(strings.Fields(string(b)), place) {
		t.Fatalf("%s ended with %v, and had visited %q\n%s", target.name, target.err, b, target.tail(30))
	}
	_ = os.Remove(log)

	if takeover && !peer.ended() && slices.Contains(c.record().InSync, peer.name) && c.serving() == nil {
		peer.promote()
	}
	target.start()
	if peer.ended() {
		peer.start()
	}
	c.anyServes()
	l.more(100)
	l.halt()
	now := c.serving()
	c.settled(now)
	c.verify(now)
	c.identical()
}

// anyServes returns when a node serves. The recorded primary comes back by
// itself if it had begun to serve; else an operator says who is next.
func (c *cluster) anyServes() {
	c.t.Helper()
	byItself := time.Now().Add(promise + time.Second)
	last := ""
	c.until("a node serves", func() bool {
		if c.serving() != nil {
			return true
		}
		if time.Now().After(byItself) {
			for _, n := range c.nodes {
				if slices.Contains(c.record().InSync, n.name) {
					if _, _, err := n.call("promote", nil); err == nil {
						return true
					} else if err.Error() != last {
						last = err.Error()
						c.t.Logf("promote %s: %v", n.name, err)
					}
				}
			}
		}
		return false
	})
}
