package proctest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tandem/agent/control"
	"tandem/agent/faultproxy"
	"tandem/failover"
	"tandem/failover/record"
	"tandem/failover/witness"
	"tandem/nbd"
)

const (
	clusterName = "proc"
	lease       = time.Second
	heartbeat   = 200 * time.Millisecond

	// patience is for what takes milliseconds on a quiet machine.
	patience = 30 * time.Second
)

// promise is G, how long a standby stays away from promotion after a grant.
var promise = time.Duration(failover.Promise(int64(lease)))

// options of a cluster; the zero value is what most tests want.
type options struct {
	size        int64 // of the volume; 64 MiB
	nodes       int   // 2
	auto        bool  // the nodes promote by themselves; else the test does it for them
	proxied     bool  // a's connections to b lead through a faultproxy
	insecure    bool
	faults      bool          // the agents are built with the tag faults
	bug         string        // the agents make this mistake, see TANDEM_BUG
	lease       time.Duration // 1 s
	heartbeat   time.Duration // 200 ms
	freeze      time.Duration
	restart     time.Duration // 10 s
	peerTimeout time.Duration
	disks       func(c *cluster, n *node)  // chooses other files than the default
	relay       func(target string) string // is between a and b instead of the faultproxy
	witness     string                     // file:./witness
	extra       func(n *node) string       // more of the config
	witnessOf   func(node string) string   // what a node's config has instead of witness
}

// cluster is two nodes or more in a folder.
type cluster struct {
	t       testing.TB
	options options
	dir     string
	size    int64
	nodes   []*node
	a, b    *node
	aToB    string // the address of b in a's config
	proxy   *faultproxy.Proxy
	ledger  *ledger
	loads   []*load
	program string // replagent
	flushes int    // how many of a hundred requests of the load are flushes
}

// node is one of them.
type node struct {
	c               *cluster
	name            string
	config, log     string
	image, metadata string
	socket, control string
	listen, http    string
	env             []string
	*process
}

// newCluster makes the folder, certificates, configs, and initialised disks.
// Nothing runs yet.
func newCluster(t testing.TB, o options) *cluster {
	t.Helper()
	if o.size == 0 {
		o.size = 64 << 20
	}
	if o.lease == 0 {
		o.lease = lease
	}
	if o.heartbeat == 0 {
		o.heartbeat = heartbeat
	}
	if o.nodes == 0 {
		o.nodes = 2
	}
	if o.restart == 0 {
		o.restart = 10 * time.Second
	}
	if o.freeze == 0 {
		o.freeze = 30 * time.Second
	}
	if o.peerTimeout == 0 {
		o.peerTimeout = 6 * time.Second
	}
	if o.witness == "" {
		o.witness = "file:./witness"
	}
	c := &cluster{t: t, options: o, size: o.size, ledger: newLedger(rand.Uint64()), program: programs.agent, flushes: 4}
	if o.faults {
		var err error
		if c.program, err = faultAgent(); err != nil {
			t.Fatal(err)
		}
	}
	if o.bug != "" {
		var err error
		if c.program, err = mutantAgent(); err != nil {
			t.Fatal(err)
		}
	}
	c.dir = makeDir(t)
	t.Cleanup(func() { c.close(t) })
	address := freeAddresses(t, 2*o.nodes)
	args := []string{"certs", "--cluster", clusterName, "--dir", c.dir}
	for i := range o.nodes {
		n := &node{c: c, name: string(rune('a' + i)), listen: address[2*i], http: address[2*i+1]}
		c.nodes, args = append(c.nodes, n), append(args, n.name)
	}
	c.replctl(args...)
	c.a, c.b = c.nodes[0], c.nodes[1]
	c.aToB = c.b.listen
	if o.proxied {
		// The node whose name sorts first dials.
		var err error
		if c.proxy, err = faultproxy.New(c.b.listen); err != nil {
			t.Fatal(err)
		}
		c.aToB = c.proxy.Addr()
	}
	if o.relay != nil {
		c.aToB = o.relay(c.b.listen)
	}
	for _, n := range c.nodes {
		n.config, n.log = c.path(n.name+".yaml"), c.path(n.name+".log")
		n.image, n.metadata = c.path(n.name+".img"), c.path(n.name+".md")
		n.socket, n.control = c.path(n.name+".nbd"), c.path(n.name+".sock")
		if o.bug != "" {
			n.env = append(n.env, "TANDEM_BUG="+o.bug)
		}
		if o.disks != nil {
			o.disks(c, n)
		}
		n.writeConfig(n.yaml())
		c.replctl("--config", n.config, "init")
	}
	return c
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

// makeDir makes a folder with a short name, in memory where there is some: a
// unix socket's path has at most 107 bytes.
func makeDir(t testing.TB) string {
	t.Helper()
	parent := "/dev/shm"
	if fi, err := os.Stat(parent); err != nil || !fi.IsDir() {
		parent = ""
	}
	dir, err := os.MkdirTemp(parent, "tandem-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// freeAddresses are taken again by the agents. They lie below the kernel's range
// of ports for outgoing connections: between the two, some client of another test
// would have one of those sooner or later.
func freeAddresses(t testing.TB, n int) (address []string) {
	t.Helper()
	for tries := 0; len(address) < n; tries++ {
		if tries > 1000 {
			t.Fatal("no free port")
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000)))
		if err != nil {
			continue
		}
		defer l.Close()
		address = append(address, l.Addr().String())
	}
	return address
}

func (n *node) yaml() string {
	var peers strings.Builder
	for _, p := range n.c.nodes {
		address := p.listen
		if n.name == "a" && p.name == "b" {
			address = n.c.aToB
		}
		if p.name != n.name {
			fmt.Fprintf(&peers, "  - {node: %s, address: %s}\n", p.name, address)
		}
	}
	o := n.c.options
	witness := o.witness
	if o.witnessOf != nil {
		witness = o.witnessOf(n.name)
	}
	tls := fmt.Sprintf("{ca: ca.pem, cert: %s.pem, key: %[1]s.key}", n.name)
	if o.insecure {
		tls = "{insecure: true}"
	}
	more := ""
	if n.c.options.extra != nil {
		more = n.c.options.extra(n)
	}
	return fmt.Sprintf(`cluster: %s
node: %s
listen: %s
peers:
%svolume: {device: %q, size: %dB, metadata: %q}
nbd: {socket: %q}
control: %q
http: %s
tls: %s
witness: %s
link: {peer_timeout: %v}
failover: {auto: %v, heartbeat: %v, lease: %v, freeze: %v, restart: %v}
%s`, clusterName, n.name, n.listen, peers.String(), n.image, n.c.size, n.metadata, n.socket, n.control, n.http, tls,
		witness, o.peerTimeout, o.auto, o.heartbeat, o.lease, o.freeze, o.restart, more)
}

func (n *node) writeConfig(text string) {
	n.c.t.Helper()
	if err := os.WriteFile(n.config, []byte(text), 0o600); err != nil {
		n.c.t.Fatal(err)
	}
}

// replctl runs a verb that must be done.
func (c *cluster) replctl(args ...string) string {
	c.t.Helper()
	status, out, errs := runProgram(c.t, patience, nil, programs.ctl, args...)
	if status != 0 {
		c.t.Fatalf("replctl %v: exit status %d: %s", args, status, errs)
	}
	return out
}

// close ends what still runs, and shows the logs of a test that failed.
func (c *cluster) close(t testing.TB) {
	for _, l := range c.loads {
		l.end()
	}
	for _, n := range c.nodes {
		if n.process != nil {
			n.kill()
		}
	}
	if c.proxy != nil {
		c.proxy.Close()
	}
	if t.Failed() {
		for _, n := range c.nodes {
			t.Logf("the end of %s's log:\n%s", n.name, n.tail(60))
		}
	}
}

// tail is the end of a node's log.
func (n *node) tail(lines int) string {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// logged waits until the log has a line with all the texts.
func (n *node) logged(texts ...string) {
	n.c.t.Helper()
	n.c.until(fmt.Sprintf("%s logs %q", n.name, texts), func() bool { return n.hasLogged(texts...) })
}

func (n *node) hasLogged(texts ...string) bool {
	b, err := os.ReadFile(n.log)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(line, s) }) {
			return true
		}
	}
	return false
}

// launch starts the agent and does not wait for it.
func (n *node) launch(env ...string) {
	n.c.t.Helper()
	var err error
	n.process, err = startProcess("agent "+n.name, n.log, append(slices.Clone(n.env), env...), n.c.program, "--config", n.config)
	if err != nil {
		n.c.t.Fatal(err)
	}
}

// start starts the agent and waits until it answers.
func (n *node) start(env ...string) {
	n.c.t.Helper()
	n.launch(env...)
	n.c.until("agent "+n.name+" answers", func() bool {
		if n.ended() {
			n.c.t.Fatalf("agent %s ended at its start: %v\n%s", n.name, n.err, n.tail(20))
		}
		_, err := n.tryStatus()
		return err == nil
	})
}

// call asks the agent for a verb.
func (n *node) call(verb string, args map[string]string) (string, json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text := ""
	data, err := control.Call(ctx, n.control, control.Request{Verb: verb, Args: args}, func(m control.Message) {
		if m.Kind == control.KindResult {
			text = m.Text
		}
	})
	return text, data, err
}

func (n *node) tryStatus() (s control.Status, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	data, err := control.Call(ctx, n.control, control.Request{Verb: "status"}, nil)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

func (n *node) status() control.Status {
	n.c.t.Helper()
	s, err := n.tryStatus()
	if err != nil {
		n.c.t.Fatalf("status of %s: %v", n.name, err)
	}
	return s
}

// promote must succeed.
func (n *node) promote() {
	n.c.t.Helper()
	if _, _, err := n.call("promote", nil); err != nil {
		n.c.t.Fatalf("promote %s: %v", n.name, err)
	}
}

// metric is a counter of a node's /metrics.
func (n *node) metric(name string) float64 {
	n.c.t.Helper()
	resp, err := http.Get("http://" + n.http + "/metrics")
	if err != nil {
		n.c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				n.c.t.Fatal(err)
			}
			return v
		}
	}
	n.c.t.Fatalf("%s has no metric %s", n.name, name)
	return 0
}

// record is the cluster record, read past the agents.
func (c *cluster) record() record.Record {
	c.t.Helper()
	w, err := witness.Open(c.options.witness, c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b, _, err := w.Read(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := record.Decode(b)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// until waits for a condition that must come true.
func (c *cluster) until(what string, done func() bool) {
	c.t.Helper()
	c.untilLimit(what, patience, done)
}

func (c *cluster) untilLimit(what string, limit time.Duration, done func() bool) {
	c.t.Helper()
	end := time.Now().Add(limit)
	for !done() {
		if time.Now().After(end) {
			c.t.Fatalf("after %v still not: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// startPair starts all agents, has a begin, and waits until they are in sync.
func (c *cluster) startPair() {
	c.t.Helper()
	for _, n := range slices.Backward(c.nodes) {
		n.start()
	}
	c.a.promote()
	c.settled(c.a)
}

// settled waits until all nodes are in the set and nothing is missing on
// any. primary serves.
func (c *cluster) settled(primary *node) {
	c.t.Helper()
	c.settledWith(primary, len(c.nodes))
}

// settledWith is settled with so many nodes; the others are down.
func (c *cluster) settledWith(primary *node, nodes int) {
	c.t.Helper()
	c.settledAt(nodes, primary)
}

// settledAt waits until one of the candidates serves with so many nodes, and
// returns it. A primary that was cut off may say for a moment that it is one, but
// it has no lease.
func (c *cluster) settledAt(nodes int, candidates ...*node) *node {
	c.t.Helper()
	var last string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		last = ""
		for _, n := range candidates {
			s, err := n.tryStatus()
			level := 1
			for _, p := range s.Peers {
				if p.Link == "Connected" && p.Replication == "Established" && p.OutOfSyncBytes == 0 {
					level++
				}
			}
			leased := nodes == 1 || s.LeaseRemainingMS > 0
			if err == nil && s.Role == "Primary" && leased && len(s.InSync) == nodes && level == nodes {
				return n
			}
			b, _ := json.Marshal(s) // it was decoded from JSON
			last += fmt.Sprintf("\n%s (%v): %s", n.name, err, b)
		}
	}
	c.t.Fatalf("not all of %d nodes are in sync after %v:%s", nodes, patience, last)
	return nil
}

// other is the other node of a pair.
func (c *cluster) other(n *node) *node {
	if n == c.a {
		return c.b
	}
	return c.a
}

// verify reads everything back through a node's NBD socket. Nobody writes.
func (c *cluster) verify(n *node) verdict { return c.verifyAfter(n, false) }

func (c *cluster) verifyAfter(n *node, blackout bool) verdict {
	c.t.Helper()
	var client *nbd.Client
	c.until(n.name+" serves", func() (ok bool) {
		var err error
		client, err = dialNBD(c.t.Context(), n)
		return err == nil
	})
	defer client.Close()
	v, err := c.ledger.check(func(p []byte, block int64) error { return client.ReadAt(c.t.Context(), p, block*blockSize) }, blackout)
	c.judge("on "+n.name, v, err)
	return v
}

func (c *cluster) judge(where string, v verdict, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("%s: %v", where, err)
	}
	if len(v.bad) > 0 {
		c.t.Fatalf("%s %d of %d blocks are wrong (seq, z: zeroes, +: acknowledged, !: with FUA): %s",
			where, len(v.bad), v.blocks, strings.Join(v.bad[:min(len(v.bad), 8)], "; "))
	}
}

// identical compares the copies, which are in sync while nobody writes.
func (c *cluster) identical() {
	c.t.Helper()
	for _, n := range c.nodes[1:] {
		if at, err := compareFiles(c.a.image, n.image, c.size); err != nil {
			c.t.Fatal(err)
		} else if at >= 0 {
			c.t.Fatalf("the copies of a and %s differ at byte %d (block %d): %s", n.name, at, at/blockSize, c.dissent(at/blockSize))
		}
	}
}

// dissent says what the copies of a block hold.
func (c *cluster) dissent(block int64) string {
	s := ""
	for _, n := range c.nodes {
		p := make([]byte, blockSize)
		if err := readFileAt(n.image, p, block*blockSize); err != nil {
			return err.Error()
		}
		seq, zero, ok := readBlock(p, c.ledger.run, block)
		s += fmt.Sprintf("%s has write %d (zero %v, sound %v), ", n.name, seq, zero, ok)
	}
	c.ledger.mu.Lock()
	defer c.ledger.mu.Unlock()
	return s + "the ledger " + describe(c.ledger.blocks[block])
}

func readFileAt(path string, p []byte, off int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(p, off)
	return err
}

// compareFiles returns the offset of a block in which the first size bytes of
// two files differ, or -1.
func compareFiles(pathA, pathB string, size int64) (int64, error) {
	a, err := os.Open(pathA)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	b, err := os.Open(pathB)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	const chunk = 1 << 20
	p, q := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < size; off += chunk {
		n := min(chunk, size-off)
		for _, x := range []struct {
			f *os.File
			p []byte
		}{{a, p[:n]}, {b, q[:n]}} {
			if _, err := io.ReadFull(io.NewSectionReader(x.f, off, n), x.p); err != nil {
				return 0, fmt.Errorf("%s at %d: %w", x.f.Name(), off, err)
			}
		}
		if bytes.Equal(p[:n], q[:n]) {
			continue
		}
		for i := int64(0); i < n; i += blockSize {
			if !bytes.Equal(p[i:min(i+blockSize, n)], q[i:min(i+blockSize, n)]) {
				return off + i, nil
			}
		}
	}
	return -1, nil
}

// finish is the end of a test whose load has been halted: everything is there,
// all agents stop in order, the images agree, and nothing is left behind.
func (c *cluster) finish(primary *node) {
	c.t.Helper()
	c.settled(primary)
	c.verify(primary)
	c.stopAll()
	c.identical()
	for _, n := range c.nodes {
		f, err := os.Open(n.image)
		if err != nil {
			c.t.Fatal(err)
		}
		v, err := c.ledger.check(func(p []byte, block int64) error {
			_, err := f.ReadAt(p, block*blockSize)
			return err
		}, false)
		f.Close()
		c.judge("in "+n.image, v, err)
	}
	c.nothingLeft()
}

// stopAll ends all agents by SIGTERM.
func (c *cluster) stopAll() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.signal(c.t, syscall.SIGTERM)
	}
	for _, n := range c.nodes {
		n.stopped()
	}
}

// stopped waits for an agent that was told to end.
func (n *node) stopped() {
	n.c.t.Helper()
	if !n.wait(patience) {
		n.c.t.Fatalf("agent %s has not ended %v after SIGTERM\n%s", n.name, patience, n.tail(20))
	}
	if n.err != nil {
		n.c.t.Fatalf("agent %s was told to end and said %v\n%s", n.name, n.err, n.tail(20))
	}
}

// nothingLeft: no process, no socket, no temporary file.
func (c *cluster) nothingLeft() {
	c.t.Helper()
	if left := leftProcesses(c.dir); len(left) > 0 {
		c.t.Errorf("processes are left: %q", left)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, "witness.probe-") {
			continue // of an agent killed at its start; a later one removes it after some minutes
		}
		switch filepath.Ext(name) {
		case ".img", ".md", ".raw", ".pem", ".key", ".yaml", ".log", ".history":
		case ".lock": // of the control sockets and the witness: never removed, see there
		default:
			if name != "witness" && e.Type().IsRegular() || e.Type()&os.ModeSocket != 0 {
				c.t.Errorf("%s is left (%v)", name, e.Type())
			}
		}
	}
}

// refusal is the text of a Refused.
func refusal(err error) string {
	if r, ok := errors.AsType[*control.Refused](err); ok {
		return r.Text
	}
	return ""
}
