package proctest

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tandem/failover/witness/etcd/etcdtest"
)

// The witness is etcd: the primary is killed, the standby promoted, the service
// moved back while etcd itself is without its leader.
func TestEtcdWitness(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{Members: 3})
	c := newCluster(t, options{witness: etcd.URL("tandem/proc")})
	c.startPair()
	l := c.startLoad()
	l.more(500)
	killed := monotonic()
	c.a.kill()
	c.b.promote()
	first, ok := int64(0), false
	c.until("b acknowledges", func() bool {
		l.check()
		first, ok = c.ledger.firstFrom("b", killed)
		return ok
	})
	t.Logf("writable again after %v", time.Duration(first-killed).Round(time.Millisecond))
	l.more(200)
	c.a.start()
	c.settled(c.b)

	// While etcd elects, its outage costs the pair nothing.
	leader := etcd.Leader(t)
	etcd.Members[leader].Kill()
	lost := monotonic()
	l.more(300)
	c.until("a takes over in spite of the lost member", func() bool {
		l.check()
		_, _, err := c.a.call("promote", nil)
		if err != nil && !strings.Contains(refusal(err), "cluster record cannot be read") {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Logf("moved %v after etcd had lost its leader", time.Duration(monotonic()-lost).Round(time.Millisecond))
	l.more(200)
	c.settled(c.a)
	etcd.Members[leader].Restart(t)
	r := c.record()
	if r.Primary != "a" || r.Epoch != 3 {
		t.Errorf("the record names %s in epoch %d", r.Primary, r.Epoch)
	}
	l.halt()
	c.finish(c.a)
	for _, n := range c.nodes {
		n.logIsOurs()
	}
}

// logIsOurs: no library writes into the agent's log.
func (n *node) logIsOurs() {
	n.c.t.Helper()
	b, err := os.ReadFile(n.log)
	if err != nil {
		n.c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "time=") {
			n.c.t.Errorf("%s's log has a line of somebody else: %s", n.name, line)
		}
	}
}

// An agent whose witness is out starts, says so, and claims nothing; when the
// witness is there it is probed and used.
func TestEtcdOutAtTheStart(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Options{})
	c := newCluster(t, options{witness: etcd.URL("tandem/proc")})
	etcd.Members[0].Kill()
	c.b.start()
	c.a.start()
	c.until("a says that the witness is out", func() bool {
		s := c.a.status()
		return !s.Witness.OK && strings.Contains(s.Witness.Error, "connection refused")
	})
	if _, _, err := c.a.call("promote", nil); !strings.Contains(refusal(err), "cluster record cannot be read") {
		t.Errorf("promote without the witness: %v", err)
	}
	etcd.Members[0].Restart(t)
	c.until("the witness is used", func() bool { return c.a.status().Witness.OK })
	c.a.promote()
	c.settled(c.a)
	c.finish(c.a)
}

// A store that ignores conditions ends the agent, and holds no record.
func TestCarelessWitness(t *testing.T) {
	store := etcdtest.StartCareless(t)
	url := "etcd://" + store.Addr + "/tandem/proc"
	c := newCluster(t, options{witness: url})
	c.a.launch()
	if !c.a.wait(patience) {
		t.Fatal("the agent goes on")
	}
	exit, ok := errors.AsType[*exec.ExitError](c.a.err)
	if !ok || exit.ExitCode() != 1 {
		t.Errorf("the agent ended with %v", c.a.err)
	}
	want := "replagent: witness " + url + ": probe the witness: a second create was accepted: it ignores conditions, so two nodes could be primary on it: use another witness"
	if last := c.a.tail(1); last != want {
		t.Errorf("the agent's last line is\n%s\nnot\n%s", last, want)
	}
	if n := store.Keys(); n != 0 {
		t.Errorf("%d keys are left in the store", n)
	}
	c.nothingLeft()
}
