package proctest

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// steps is a service of two steps that write down what is done with them, in one
// file for both nodes. A file NODE.broken makes the second fail.
func steps(n *node) string {
	step := func(name string) string {
		cmd := func(verb, more string) string {
			return fmt.Sprintf("[sh, -c, '%s echo $TANDEM_NODE %s %s $TANDEM_EPOCH >>%s']", more, verb, name, n.c.path("done"))
		}
		up := n.c.path(n.name + "." + name)
		broken := ""
		if name == "two" {
			broken = fmt.Sprintf("[ ! -e %s ] || { echo it is broken >&2; exit 7; };", n.c.path(n.name+".broken"))
		}
		return fmt.Sprintf("  - {exec: {start: %s, stop: %s, check: [test, -e, %q]}, timeout: 5s}\n",
			cmd("start", broken+" touch "+up+";"), cmd("stop", "rm -f "+up+";"), up)
	}
	return "service:\n" + step("one") + step("two")
}

// done is what the steps have written down, without the epochs.
func (c *cluster) done() (lines []string) {
	b, err := os.ReadFile(c.path("done"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		lines = append(lines, strings.Join(f[:3], " "))
	}
	return lines
}

// running says whether both steps of n's service are up, and shown so.
func (n *node) running() bool {
	s, err := n.tryStatus()
	if err != nil || s.Role != "Primary" || len(s.Service) != 2 {
		return false
	}
	return s.Service[0].State == "running" && s.Service[1].State == "running"
}

func (n *node) primaryCode() int {
	resp, err := http.Get("http://" + n.http + "/primary")
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// ordered checks that want happened in this order, with anything in between.
func (c *cluster) ordered(want ...string) {
	c.t.Helper()
	all := c.done()
	for _, w := range want {
		i := slices.Index(all, w)
		if i < 0 {
			c.t.Fatalf("no %q (in this order: %v) in %v", w, want, c.done())
		}
		all = all[i+1:]
	}
}

// TestService: the list starts on the primary in order, goes with a planned move
// before the other node's starts, is taken up by a standby that takes over by
// itself, and taken away from a node that was killed with it.
func TestService(t *testing.T) {
	c := newCluster(t, options{auto: true, extra: steps})
	c.a.start()
	c.b.start()
	c.a.promote()
	c.until("the service runs on a", c.a.running)
	c.ordered("a start one", "a start two")
	if code := c.a.primaryCode(); code != http.StatusOK {
		t.Errorf("/primary of a answers %d", code)
	}
	c.settled(c.a)

	c.b.promote()
	c.until("the service runs on b", c.b.running)
	c.ordered("a stop two", "a stop one", "b start one", "b start two")
	if code := c.a.primaryCode(); code != http.StatusServiceUnavailable {
		t.Errorf("/primary of a answers %d", code)
	}
	c.settled(c.b)

	c.b.kill()
	c.until("the service runs on a again", c.a.running)
	if !exists(c.path("b.one")) {
		t.Fatal("whoever killed b stopped its service, too: the test proves nothing")
	}
	c.b.start()
	c.until("b, which was killed, has let go of its service", func() bool { return !exists(c.path("b.one")) && !exists(c.path("b.two")) })
	if !c.a.running() {
		t.Error("the service on a has gone")
	}

	// A restart of the agent leaves the service alone.
	before := len(c.done())
	c.settled(c.a)
	c.a.signal(t, syscall.SIGTERM)
	c.a.stopped()
	c.a.start()
	c.until("a is primary again, its service up", c.a.running)
	if after := c.done(); len(after) != before {
		t.Errorf("a restart of the agent did %v", after[before:])
	}
}

// TestVolumeOutlivesService: a step's stop may write to the volume, as an unmount does, for
// longer than a connection to an export that is gone is kept; and what it has written is on
// the other node. Afterwards there is no volume.
func TestVolumeOutlivesService(t *testing.T) {
	stopping := func(n *node) string { return n.c.path(n.name + ".stopping") }
	stopped := func(n *node) string { return n.c.path(n.name + ".stopped") }
	c := newCluster(t, options{auto: true, extra: func(n *node) string {
		// The first look finds no file: a node that comes up stops what an earlier life may have left.
		return fmt.Sprintf("service:\n  - {exec: {start: [touch, %[1]s], stop: [sh, -c, 'test -e %[1]s || exit 0; touch %[2]s; sleep 4; touch %[3]s; rm %[1]s'], check: [test, -e, %[1]s]}, timeout: 15s}\n",
			n.c.path(n.name+".up"), stopping(n), stopped(n))
	}})
	c.a.start()
	c.b.start()
	c.a.promote()
	c.until("the service runs on a", func() bool {
		s, err := c.a.tryStatus()
		return err == nil && len(s.Service) == 1 && s.Service[0].State == "running"
	})
	c.settled(c.a)
	client, err := dialNBD(t.Context(), c.a)
	must(t, err)
	defer client.Close()

	moved := make(chan error, 1)
	go func() {
		_, _, err := c.b.call("promote", nil)
		moved <- err
	}()
	c.until("a's service is being stopped", func() bool { return exists(stopping(c.a)) })
	block := make([]byte, blockSize)
	writes := byte(0)
	for !exists(stopped(c.a)) {
		block[0] = writes + 1
		if err := client.WriteAt(t.Context(), block, 0, writes%2 == 0); err != nil {
			if exists(stopped(c.a)) {
				break // it ended while this one was on its way
			}
			t.Fatalf("write %d while the service is being stopped: %v", writes, err)
		}
		writes++
		time.Sleep(50 * time.Millisecond)
	}
	if writes < 30 {
		t.Fatalf("%d writes in four seconds prove nothing", writes)
	}
	must(t, <-moved)
	c.until("a's volume is gone", func() bool { return gone(client.ReadAt(t.Context(), block, 0)) })
	c.settled(c.b)
	there, err := dialNBD(t.Context(), c.b)
	must(t, err)
	defer there.Close()
	must(t, there.ReadAt(t.Context(), block, 0))
	if block[0] != writes && block[0] != writes+1 {
		t.Errorf("b has write %d, the last one acknowledged on a is %d", block[0], writes)
	}
}

// TestServiceGivesWay: where a step does not start the peer is asked to do better,
// and where it does not either, somebody goes on trying.
func TestServiceGivesWay(t *testing.T) {
	c := newCluster(t, options{auto: true, extra: steps})
	c.a.start()
	c.b.start()
	c.a.promote()
	c.until("the service runs on a", c.a.running)
	c.settled(c.a)
	breakIt := func(n *node) { must(t, os.WriteFile(c.path(n.name+".broken"), nil, 0o600)) }
	breakIt(c.b)
	c.b.promote()
	c.until("b, where a step fails, has given the service back", c.a.running)
	c.settled(c.a)

	breakIt(c.a)
	c.a.kill() // b takes over, fails, and finds nobody
	c.until("b is primary", func() bool { s, err := c.b.tryStatus(); return err == nil && s.Role == "Primary" })
	must(t, os.Remove(c.path("b.broken")))
	c.until("the service runs on b, which went on trying", c.b.running)
}

// TestServiceNobodyDoesBetter: a step of a running service fails, and the peer refuses
// to take over: the node must go on trying. 1 b gave the service back, because
// it does not run there. 2 A step fails on a, and does not start again. 3 a asks b, and
// ends its checks. 4 b refuses. 5 What was wrong on a is mended.
func TestServiceNobodyDoesBetter(t *testing.T) {
	c := newCluster(t, options{auto: true, extra: steps})
	c.a.start()
	c.b.start()
	c.a.promote()
	c.until("the service runs on a", c.a.running)
	c.settled(c.a)
	must(t, os.WriteFile(c.path("b.broken"), nil, 0o600))
	c.b.promote()
	c.until("b, where a step fails, has given the service back", c.a.running)
	c.settled(c.a)

	must(t, os.WriteFile(c.path("a.broken"), nil, 0o600))
	must(t, os.Remove(c.path("a.two")))
	c.until("b is asked", func() bool { return c.a.hasLogged("b is asked to take over") })
	must(t, os.Remove(c.path("a.broken")))
	c.until("the service runs on a, which went on trying", c.a.running)
}

// TestServiceLeftWithoutWitness: an agent that was killed as primary takes its service away
// when it hears of another's term, also if it cannot read the record.
func TestServiceLeftWithoutWitness(t *testing.T) {
	c := newCluster(t, options{auto: true, extra: steps})
	c.a.start()
	c.b.start()
	c.a.promote()
	c.until("the service runs on a", c.a.running)
	c.settled(c.a)
	c.a.kill()
	c.until("the service runs on b", c.b.running)
	must(t, os.Rename(c.path("witness"), c.path("witness.away")))
	if !exists(c.path("a.one")) {
		t.Fatal("whoever killed a stopped its service, too: the test proves nothing")
	}
	c.a.start()
	c.until("a has let go of its service", func() bool { return !exists(c.path("a.one")) && !exists(c.path("a.two")) })
	must(t, os.Rename(c.path("witness.away"), c.path("witness")))
	if !c.b.running() {
		t.Error("the service on b has gone")
	}
}

// TestPermit: what answers clients falls silent with the lease, also when the agent
// is stopped, by the kernel's clock alone.
func TestPermit(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("TANDEM_REQUIRE_TOOLS") != "" {
			t.Fatal("needs root, for nftables")
		}
		t.Skip("needs root, for nftables")
	}
	// A server that nobody but the permission keeps from answering.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf := make([]byte, 1)
				for {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					if _, err := conn.Write(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	port := l.Addr().(*net.TCPAddr).Port
	answers := func() bool {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), 300*time.Millisecond)
		if err != nil {
			return false
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := conn.Write([]byte{1}); err != nil {
			return false
		}
		_, err = conn.Read(make([]byte, 1))
		return err == nil
	}
	if !answers() {
		t.Fatal("the server does not answer, permission or not")
	}
	c := newCluster(t, options{auto: true, extra: func(n *node) string {
		if n.name != "a" {
			return ""
		}
		return fmt.Sprintf("service:\n  - {exec: {start: [\"true\"], stop: [\"true\"], check: [\"true\"], ports: [%d]}}\n"+
			"  - {exec: {start: [sh, -c, 'touch %s; while ! [ -e %s ]; do sleep 0.05; done']}}\n", port, n.c.path("second"), n.c.path("go"))
	}})
	t.Cleanup(func() {
		for _, family := range []string{"inet", "arp"} {
			_ = exec.Command("nft", "delete", "table", family, "tandem/"+clusterName+"/a").Run()
		}
	})
	c.a.start()
	c.b.start()
	if answers() {
		t.Error("it answers on a Secondary")
	}
	c.a.promote()
	c.until("the second step is being started", func() bool { return exists(c.path("second")) })
	time.Sleep(2 * heartbeat) // the permission is renewed meanwhile
	if answers() {
		t.Error("it answers before the last step is up")
	}
	must(t, os.WriteFile(c.path("go"), nil, 0o600))
	c.until("it answers on the primary", answers)
	c.settled(c.a)
	for range 10 { // several leases long
		time.Sleep(lease / 3)
		if !answers() {
			t.Fatal("it does not answer although the lease is renewed")
		}
	}
	// An agent that restarts and is primary again at once leaves its clients' connections alone.
	conn, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer conn.Close()
	echo := func() bool {
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Write([]byte{1}); err != nil {
			return false
		}
		_, err := conn.Read(make([]byte, 1))
		return err == nil
	}
	if !echo() {
		t.Fatal("a connection that answers nothing")
	}
	epoch := c.a.status().Epoch
	c.a.kill()
	c.a.start()
	c.until("a is primary again, and answers", func() bool {
		s, err := c.a.tryStatus()
		return err == nil && s.Role == "Primary" && answers()
	})
	if now := c.a.status().Epoch; now != epoch+1 {
		t.Fatalf("epoch %d after %d: somebody else was primary in between", now, epoch)
	}
	if !echo() {
		t.Error("a restart of the agent has cost a client its connection")
	}
	c.settled(c.a)

	c.a.freeze()
	stopped := time.Now()
	time.Sleep(lease + 200*time.Millisecond)
	if answers() {
		t.Errorf("it answers %v after the agent was stopped, with a lease of %v", time.Since(stopped), lease)
	}
	c.until("b has taken over", func() bool { s, err := c.b.tryStatus(); return err == nil && s.Role == "Primary" })
	if answers() {
		t.Error("it answers on a, and b is primary")
	}
	c.a.thaw()
	c.until("a follows b", func() bool { s, err := c.a.tryStatus(); return err == nil && s.Epoch > 1 && s.Role == "Secondary" })
	time.Sleep(2 * heartbeat)
	if answers() {
		t.Error("it answers on a that is Secondary now")
	}
	c.settled(c.b)
	c.a.promote()
	c.until("it answers on a again", answers)
	if echo() {
		t.Error("a connection of the term before another's still answers")
	}
}

// TestOnChange: the command is told of each change, and nobody waits for it.
// TestMoveAnswersWhatWasAsked: what a client has asked when the service is moved is answered, or it
// would ask the next primary for something that has been done.
func TestMoveAnswersWhatWasAsked(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("TANDEM_REQUIRE_TOOLS") != "" {
			t.Fatal("needs root, for nftables")
		}
		t.Skip("needs root, for nftables")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	asked := make(chan struct{}, 1)
	var served sync.WaitGroup
	defer served.Wait()
	served.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return
		}
		asked <- struct{}{}
		time.Sleep(120 * time.Millisecond) // it works on it
		_, _ = conn.Write([]byte{1})
		_, _ = conn.Read(make([]byte, 1))
	})
	c := newCluster(t, options{auto: true, extra: func(n *node) string {
		if n.name != "a" {
			return ""
		}
		return fmt.Sprintf("service:\n  - {exec: {start: [\"true\"], stop: [\"true\"], check: [\"true\"], ports: [%d]}}\n", l.Addr().(*net.TCPAddr).Port)
	}})
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "tandem/"+clusterName+"/a").Run() })
	c.a.start()
	c.b.start()
	c.a.promote()
	c.until("the service runs on a", func() bool {
		s, err := c.a.tryStatus()
		return err == nil && len(s.Service) == 1 && s.Service[0].State == "running"
	})
	c.settled(c.a)
	conn, err := net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte{1})
	must(t, err)
	<-asked
	moved := make(chan error, 1)
	go func() {
		_, _, err := c.b.call("promote", nil)
		moved <- err
	}()
	must(t, conn.SetReadDeadline(time.Now().Add(3*time.Second)))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("what was asked before the move has no answer: %v", err)
	}
	must(t, <-moved)
	c.settled(c.b)
}

func TestOnChange(t *testing.T) {
	c := newCluster(t, options{auto: true, extra: func(n *node) string {
		return fmt.Sprintf("on_change: [sh, -c, 'echo $TANDEM_NODE $ROLE $EPOCH \"$PEER\" >>%s; sleep 0.2']\n", n.c.path("changes"))
	}})
	changes := func() string {
		b, _ := os.ReadFile(c.path("changes"))
		return string(b)
	}
	c.a.start()
	c.b.start()
	c.a.promote()
	c.settled(c.a)
	c.b.promote()
	c.settled(c.b)
	for _, want := range []string{"a Primary 1 \n", "a Primary 1 b\n", "a Secondary 1 \n", "b Primary 2 \n", "b Primary 2 a\n"} {
		c.until(fmt.Sprintf("on_change is told %q", want), func() bool { return strings.Contains(changes(), want) })
	}
	if t.Failed() {
		t.Log(changes())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
