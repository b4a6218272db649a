package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cached is a file whose unflushed writes are lost with its server:
//
//	agent ──▶ X.img (FUSE) ──▶ nbdfuse ──▶ nbdkit's write-back cache ──▶ X.img.raw
//
// SIGKILL of nbdkit is the power cut: what fsync has not pushed out is gone.
//
// nbdfuse makes a TRIM of a punched hole, and nbdkit's cache goes on answering
// from what it has: a hole that reads as before. The plugin partitioning knows no
// TRIM, so that the hole is refused and zeroes are written; the filter partition
// takes its partition table away again.
type cached struct {
	c      *cluster
	path   string
	kit    *process
	fuse   *process
	mounts int
}

func (d *cached) raw() string { return d.path + ".raw" }

// plug gives it power.
func (d *cached) plug() {
	t := d.c.t
	t.Helper()
	d.mounts++
	socket := fmt.Sprintf("%s.%d", d.path, d.mounts)
	log := d.path + ".log"
	var err error
	if d.kit, err = startProcess("nbdkit", log, nil, "nbdkit", "-f", "-U", socket,
		"--filter=cache", "--filter=partition", "partitioning", d.raw(), "partition=1", "cache=writeback"); err != nil {
		t.Fatal(err)
	}
	d.c.until("nbdkit listens", func() bool { return isSocket(socket) || d.kit.ended() })
	if err := os.WriteFile(d.path, nil, 0o600); err != nil { // what is mounted over
		t.Fatal(err)
	}
	if d.fuse, err = startProcess("nbdfuse", log, nil, "nbdfuse", d.path, "--unix", socket); err != nil {
		t.Fatal(err)
	}
	d.c.until(d.path+" is mounted", func() bool {
		if d.fuse.ended() || d.kit.ended() {
			b, _ := os.ReadFile(log)
			t.Fatalf("nbdfuse: %v, nbdkit: %v\n%s", d.fuse.err, d.kit.err, b)
		}
		fi, err := os.Stat(d.path)
		return err == nil && fi.Size() > 0
	})
	_ = os.Remove(socket) // both ends are connected
}

func isSocket(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.Mode()&os.ModeSocket != 0
}

// pull takes the power away. The agent has been stopped before.
func (d *cached) pull() {
	if d.kit == nil {
		return
	}
	d.kit.kill()
	d.fuse.kill()
	_ = unix.Unmount(d.path, unix.MNT_DETACH)
	d.kit = nil
}

// powered is a node whose volume and metadata are cached files.
type powered struct {
	*node
	disks []*cached
	boots int
}

// powerLoss cuts the power of hosts at one instant.
func powerLoss(hosts ...*powered) {
	// A stopped agent asks its disks for nothing, so the order of what follows
	// does not show.
	for _, h := range hosts {
		h.node.freeze()
	}
	for _, h := range hosts {
		for _, d := range h.disks {
			d.pull()
		}
		h.node.kill()
	}
}

// boot gives a host its power back, under another boot id. The agent is not
// started.
func (h *powered) boot() {
	h.boots++
	h.env = []string{fmt.Sprintf("TANDEM_BOOT_ID=%s-%d", h.name, h.boots)}
	for _, d := range h.disks {
		d.plug()
	}
}

// newPowered makes a cluster of two such hosts.
func newPowered(t *testing.T, auto bool) (c *cluster, a, b *powered) {
	requireTools(t, "nbdkit:nbdkit", "nbdfuse:libnbd-bin")
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		missing(t, "root and /dev/fuse are needed")
	}
	hosts := map[string]*powered{}
	c = newCluster(t, options{auto: auto, faults: true, disks: func(c *cluster, n *node) {
		h := &powered{node: n}
		hosts[n.name] = h
		for path, size := range map[string]int64{n.image: c.size, n.metadata: 1 << 20} {
			d := &cached{c: c, path: path}
			h.disks = append(h.disks, d)
			if err := os.WriteFile(d.raw(), nil, 0o600); err != nil {
				c.t.Fatal(err)
			}
			if err := os.Truncate(d.raw(), size); err != nil {
				c.t.Fatal(err)
			}
		}
		t.Cleanup(func() { // before the folder goes
			if n.process != nil {
				n.kill()
			}
			for _, d := range h.disks {
				d.pull()
			}
		})
		h.boot()
	}})
	c.flushes = 1
	return c, hosts["a"], hosts["b"]
}

// requireTools skips the test if a program is not there, or fails it where all
// have to be. Each is PROGRAM:PACKAGE.
func requireTools(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		program, pkg, _ := strings.Cut(tool, ":")
		if _, err := exec.LookPath(program); err != nil {
			missing(t, fmt.Sprintf("%s is not installed: apt-get install %s", program, pkg))
		}
	}
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("TANDEM_REQUIRE_TOOLS") == "1" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// lostOn counts the blocks of a host's disk, without power, that are older than
// what was acknowledged.
func (h *powered) lostOn() int {
	h.c.t.Helper()
	f, err := os.Open(h.image + ".raw")
	if err != nil {
		h.c.t.Fatal(err)
	}
	defer f.Close()
	lost := 0
	l := h.c.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	p := make([]byte, blockSize)
	for n := range l.blocks {
		if _, err := f.ReadAt(p, n*blockSize); err != nil {
			h.c.t.Fatal(err)
		}
		if seq, _, ok := readBlock(p, l.run, n); !ok || seq < l.floorLocked(n, false) {
			lost++
		}
	}
	return lost
}

// One host loses its power: no acknowledged write is lost, flushed or not, and
// the copy that forgot is mended.
func TestPowerLossOfOne(t *testing.T) {
	c, a, b := newPowered(t, false)
	c.startPair()
	forgotten := 0

	// The standby, under load.
	l := c.startLoad()
	l.more(600)
	powerLoss(b)
	forgotten += b.lostOn()
	l.more(200)
	b.boot()
	b.start()
	l.more(200)
	l.halt() // or the resync yields to it, and takes a while
	c.settled(c.a)
	c.verify(c.a)
	c.identical()

	// The standby again, and back before anybody missed it: the set never
	// shrank for want of an answer, and yet it lacks what it had acknowledged.
	l = c.startLoad()
	l.more(600)
	l.halt()
	powerLoss(b)
	forgotten += b.lostOn()
	b.boot()
	b.start()
	c.settled(c.a)
	c.verify(c.a)
	c.identical()

	// The primary, under load. The standby has everything.
	l = c.startLoad()
	l.more(600)
	powerLoss(a)
	forgotten += a.lostOn()
	b.promote()
	l.more(200)
	a.boot()
	a.start()
	l.more(200)
	l.halt()
	c.settled(c.b)
	c.verify(c.b)
	c.identical()

	t.Logf("%d acknowledged blocks were forgotten by the disks", forgotten)
	if forgotten == 0 {
		t.Error("no disk forgot anything: this test has no teeth")
	}
	c.finishPowered(c.b, a, b)
}

// Both hosts lose their power at once: acknowledged flushes and FUA writes are
// there. What was only acknowledged may be gone, but from both.
func TestPowerLossOfBoth(t *testing.T) {
	c, a, b := newPowered(t, true)
	c.startPair()
	older, rounds := 0, 4
	if testing.Short() {
		rounds = 2
	}
	primary, standby := a, b
	for round := range rounds {
		l := c.startLoad()
		l.more(600)
		flushes := l.flushes.Load()
		powerLoss(a, b)
		l.abandon()
		for _, h := range []*powered{a, b} {
			h.boot()
		}
		// The standby alone cannot know that it has everything.
		standby.start()
		_, _, err := standby.call("promote", nil)
		if text := refusal(err); !strings.Contains(text, "host restarted with a volatile disk cache") {
			t.Errorf("promote %s, whose host restarted: %v", standby.name, err)
		}
		time.Sleep(2 * promise)
		if n := c.serving(); n != nil {
			t.Errorf("%s serves by itself although its host restarted", n.name)
		}
		// With both there the recorded primary begins, nobody has to ask it to.
		primary.start()
		c.until("somebody serves", func() bool { return c.serving() != nil })
		if n := c.serving(); n != primary.node {
			t.Fatalf("%s serves, not %s, which was primary", n.name, primary.name)
		}
		v := c.verifyAfter(primary.node, true)
		older += v.older
		t.Logf("round %d: %d of %d blocks are as of the last flush (%d flushes)", round, v.older, v.blocks, flushes)
		c.settled(primary.node)
		c.verify(primary.node)
		c.identical()
		// And now the other one leads.
		standby.promote()
		c.settled(standby.node)
		primary, standby = standby, primary
	}
	if older == 0 {
		t.Error("the disks forgot nothing: this test has no teeth")
	}
	c.finishPowered(primary.node, a, b)
}

// finishPowered ends the test like finish, and then compares what is on the raw
// disks when their power goes: an agent that stops in order has flushed.
func (c *cluster) finishPowered(primary *node, hosts ...*powered) {
	c.t.Helper()
	c.settled(primary)
	c.verify(primary)
	c.stopAll()
	for _, h := range hosts {
		for _, d := range h.disks {
			d.pull()
		}
		h.image += ".raw"
	}
	c.identical()
	c.nothingLeft()
}
