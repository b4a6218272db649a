package proctest

import (
	"context"
	"fmt"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/agent/faultproxy"
	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance/instancetest"
)

// onAWS is a cluster whose nodes are instances of an EC2 that is moto, with an Elastic IP as
// their service and a register of AWS's as their witness. Between each node and each of the
// two is a proxy.
type onAWS struct {
	*cluster
	ec2        *instancetest.Cluster
	allocation string
	witness    map[string]*awstest.Proxy // by node
}

// witnesses are AWS's: each starts one and returns its URL and that of the register at an endpoint.
var witnesses = []struct {
	name  string
	start func(t *testing.T, ec2 *instancetest.Cluster) (target string, url func(endpoint string) string)
}{
	{"s3", func(t *testing.T, _ *instancetest.Cluster) (string, func(string) string) {
		v := awstest.StartVersity(t)
		return v.URL, func(endpoint string) string {
			return "s3://" + v.Bucket + "/nfs1/record?path-style=yes&endpoint=" + url.QueryEscape(endpoint)
		}
	}},
	{"dynamodb", func(t *testing.T, ec2 *instancetest.Cluster) (string, func(string) string) {
		ec2.Moto.CreateTable(t, "tandem", "id")
		return ec2.Moto.URL, func(endpoint string) string {
			return "dynamodb://tandem/nfs1/record?endpoint=" + url.QueryEscape(endpoint)
		}
	}},
}

func newOnAWS(t *testing.T, kind int, more ...func(o *options)) *onAWS {
	t.Helper()
	if _, err := exec.LookPath("aws"); err != nil {
		missing(t, "aws, the command line of AWS, is not installed")
	}
	a := &onAWS{ec2: instancetest.Start(t, clusterName, "a", "b"), witness: make(map[string]*awstest.Proxy)}
	a.allocation = a.ec2.Allocate(t)
	target, at := witnesses[kind].start(t, a.ec2)
	for _, name := range []string{"a", "b"} {
		a.witness[name] = awstest.NewProxy(t, target)
	}
	o := options{
		auto: true, proxied: true, witness: at(target),
		// It holds off longer than these tests look at a node that is away.
		freeze:    5 * time.Second,
		witnessOf: func(node string) string { return at(a.witness[node].URL) },
		extra: func(n *node) string {
			in := a.instance(n)
			return fmt.Sprintf("aws: {region: %s, endpoint: %q, metadata: %q}\nservice: [{eip: {allocation: %s}}]\n", awstest.Region, in.Proxy.URL, in.Metadata.URL, a.allocation)
		},
	}
	for _, f := range more {
		f(&o)
	}
	a.cluster = newCluster(t, o)
	return a
}

func (a *onAWS) instance(n *node) *instancetest.Node {
	if n.name == "a" {
		return a.ec2.Nodes[0]
	}
	return a.ec2.Nodes[1]
}

// holder asks EC2 who has the address, by a client that is not ours. "": nobody.
func (a *onAWS) holder() string {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "aws", "--endpoint-url", a.ec2.Moto.URL, "--region", awstest.Region, "ec2", "describe-addresses",
		"--allocation-ids", a.allocation, "--query", "Addresses[0].NetworkInterfaceId", "--output", "text").CombinedOutput()
	if err != nil {
		a.t.Fatalf("aws ec2 describe-addresses: %v\n%s", err, out)
	}
	switch id := strings.TrimSpace(string(out)); id {
	case a.ec2.Nodes[0].ENI:
		return "a"
	case a.ec2.Nodes[1].ENI:
		return "b"
	case "None", "":
		return ""
	default:
		a.t.Fatalf("the address is with %q", id)
		return ""
	}
}

// up says whether n is primary and its service is up.
func (n *node) up() bool {
	s, err := n.tryStatus()
	return err == nil && s.Role == "Primary" && len(s.Service) == 1 && s.Service[0].State == "running"
}

// serves waits until n serves with the address, and checks that nobody else does or has it.
func (a *onAWS) serves(n *node) {
	a.t.Helper()
	a.until(n.name+" serves with the address", n.up)
	if h := a.holder(); h != n.name {
		a.t.Fatalf("%s serves, and the address is with %q", n.name, h)
	}
	if r := a.record(); r.Primary != n.name {
		a.t.Fatalf("%s serves, and the record names %s", n.name, r.Primary)
	}
}

// leavesAlone watches that the address stays where it is for d.
func (a *onAWS) leavesAlone(old, n *node, d time.Duration) {
	a.t.Helper()
	before := a.instance(old).Proxy.Count("AssociateAddress")
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(d / 4) {
		if h := a.holder(); h != n.name {
			a.t.Fatalf("%s serves, and the address has gone to %q", n.name, h)
		}
	}
	if after := a.instance(old).Proxy.Count("AssociateAddress"); after != before {
		a.t.Errorf("%s, which is not primary, has asked for the address %d times", old.name, after-before)
	}
}

// isolate cuts n from everything: its peer, its witness, and EC2.
func (a *onAWS) isolateFromAll(n *node) (heal func()) {
	a.proxy.Cut(faultproxy.Both)
	a.witness[n.name].Set(awstest.BlackHole)
	a.instance(n).Proxy.Set(awstest.BlackHole)
	return func() {
		a.proxy.Heal()
		a.witness[n.name].Set(nil)
		a.instance(n).Proxy.Set(nil)
	}
}

// The whole of a takeover on AWS: the primary is killed, stopped, cut off. The other serves
// with the address, and an old primary that wakes up never takes it back.
func TestAWSTakeover(t *testing.T) {
	for kind, w := range witnesses {
		t.Run(w.name, func(t *testing.T) {
			c := newOnAWS(t, kind)
			c.startPair()
			c.serves(c.a)
			l := c.startLoad()
			l.more(300)

			killed := monotonic()
			c.a.kill()
			c.serves(c.b)
			l.more(300)
			at, ok := c.ledger.firstFrom("b", killed)
			if !ok {
				t.Fatal("the first answer after the kill is not b's")
			}
			t.Logf("killed: writable again after %v", time.Duration(at-killed).Round(time.Millisecond))
			c.a.start()
			c.settled(c.b)
			c.leavesAlone(c.a, c.b, time.Second)

			// Its clients would wait for it, so there are none.
			l.halt()
			c.b.freeze() // SIGSTOP
			c.serves(c.a)
			c.b.thaw()
			c.settled(c.a)
			c.leavesAlone(c.b, c.a, 3*time.Second)
			l = c.startLoad()
			l.more(300)

			heal := c.isolateFromAll(c.a)
			c.serves(c.b)
			l.more(300)
			c.leavesAlone(c.a, c.b, 3*time.Second)
			heal()
			c.settled(c.b)
			c.leavesAlone(c.a, c.b, 3*time.Second)

			// And a planned move, back.
			c.a.promote()
			c.settled(c.a)
			c.serves(c.a)
			l.more(100)
			l.halt()
			c.finish(c.a)
			for _, n := range c.nodes {
				n.logIsOurs()
			}
		})
	}
}

// A takeover while AWS has a bad day: it may take longer, and ends with one owner of the
// record and the address.
func TestAWSTakeoverUnderFaults(t *testing.T) {
	faults := []struct {
		name         string
		witness, ec2 func() awstest.Fault
	}{
		{"late", func() awstest.Fault { return awstest.Delay(150 * time.Millisecond) }, func() awstest.Fault { return awstest.Delay(700 * time.Millisecond) }},
		{"throttled", func() awstest.Fault { return awstest.Times(3, awstest.Throttle) }, func() awstest.Fault { return awstest.Times(4, awstest.Throttle) }},
		{"409", func() awstest.Fault { return awstest.Only(awstest.Times(3, awstest.Conflict409), "PUT") }, nil},
		{"done, and the answers lost", func() awstest.Fault { return awstest.Only(awstest.Times(2, awstest.LoseReply), "PUT", "PutItem") },
			func() awstest.Fault { return awstest.Only(awstest.Times(2, awstest.LoseReply), "AssociateAddress") }},
		{"stale describes", nil, func() awstest.Fault { return awstest.Stale(4 * time.Second) }},
		{"a black hole for a while", blackHoleFor(3 * time.Second), blackHoleFor(6 * time.Second)},
	}
	if testing.Short() {
		faults = faults[3:4]
	}
	for kind, w := range witnesses {
		t.Run(w.name, func(t *testing.T) {
			c := newOnAWS(t, kind)
			c.startPair()
			c.serves(c.a)
			primary := c.a
			for _, f := range faults {
				if f.name == "409" && w.name != "s3" {
					continue
				}
				l := c.startLoad()
				l.more(100)
				heir := c.other(primary)
				var restore []func()
				set := func(p *awstest.Proxy, make func() awstest.Fault) {
					if make != nil {
						p.Set(make())
						restore = append(restore, func() { p.Set(nil) })
					}
				}
				set(c.witness[heir.name], f.witness)
				set(c.instance(heir).Proxy, f.ec2)
				killed := time.Now()
				primary.kill()
				c.untilLimit(heir.name+" serves with the address", 2*patience, heir.up)
				took := time.Since(killed)
				for _, r := range restore {
					r()
				}
				c.serves(heir)
				l.more(100)
				primary.start()
				c.settled(heir)
				c.leavesAlone(primary, heir, time.Second)
				l.halt()
				t.Logf("%s: %s serves with the address after %v", f.name, heir.name, took.Round(10*time.Millisecond))
				primary = heir
			}
			c.finish(primary)
		})
	}
}

// blackHoleFor swallows what comes for d after the first.
func blackHoleFor(d time.Duration) func() awstest.Fault {
	return func() awstest.Fault {
		end := make(chan struct{})
		time.AfterFunc(d, func() { close(end) })
		return func(x *awstest.Exchange) {
			select {
			case <-end:
			default:
				x.Hang()
			}
		}
	}
}

// Both nodes want the address at once: the primary has it in the end, and holds it.
func TestAWSAddressIsReconciled(t *testing.T) {
	c := newOnAWS(t, 1)
	c.startPair()
	c.serves(c.a)
	// Somebody moves it by hand.
	out, err := exec.Command("aws", "--endpoint-url", c.ec2.Moto.URL, "--region", awstest.Region, "ec2", "associate-address", "--allow-reassociation",
		"--allocation-id", c.allocation, "--network-interface-id", c.ec2.Nodes[1].ENI).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if h := c.holder(); h != "b" {
		t.Fatalf("the address is with %q", h)
	}
	c.until("a has the address back", func() bool { return c.holder() == "a" })
	c.until("a's service is up", c.a.up)
	before := slices.Max([]int{c.instance(c.a).Proxy.Count("DescribeAddresses"), 1})
	time.Sleep(5 * time.Second)
	if n := c.instance(c.a).Proxy.Count("DescribeAddresses") - before; n > 3 {
		t.Errorf("EC2 was asked %d times in 5 s", n)
	}
	c.finish(c.a)
}

// state asks EC2 what has become of a node's instance, by a client that is not ours.
func (a *onAWS) state(n *node) string {
	a.t.Helper()
	out, err := exec.Command("aws", "--endpoint-url", a.ec2.Moto.URL, "--region", awstest.Region, "ec2", "describe-instances",
		"--instance-ids", a.instance(n).ID, "--query", "Reservations[0].Instances[0].State.Name", "--output", "text").CombinedOutput()
	if err != nil {
		a.t.Fatalf("aws ec2 describe-instances: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// The machine of a primary that was lost is stopped, after the takeover and also if EC2 has a bad
// day; that of one that handed over, or is back by then, is left alone.
func TestAWSFence(t *testing.T) {
	c := newOnAWS(t, 1, func(o *options) {
		o.lease = 2 * time.Second
		extra := o.extra
		o.extra = func(n *node) string { return "fence: {ec2: {}}\n" + extra(n) }
	})
	c.startPair()
	c.serves(c.a)
	c.b.promote()
	c.settled(c.b)
	c.serves(c.b)

	c.b.kill()
	c.until("a serves", c.a.up)
	c.b.start() // before a lease is over
	c.a.logged("the machine of b is not stopped: it has come back, as Secondary")
	c.settled(c.a)
	for _, n := range c.nodes {
		if s := c.state(n); s != "running" {
			t.Fatalf("the machine of %s is %s", n.name, s)
		}
	}

	stopping, throttle := awstest.Stopping(3*time.Second), awstest.Only(awstest.Times(2, awstest.Throttle), "StopInstances")
	lose := awstest.Only(awstest.Times(1, awstest.LoseReply), "StopInstances")
	c.instance(c.b).Proxy.Set(func(x *awstest.Exchange) {
		throttle(x)
		if x.Untouched() {
			lose(x)
		}
		if x.Untouched() {
			stopping(x)
		}
	})
	killed := time.Now()
	c.a.kill()
	c.until("b serves", c.b.up)
	took := time.Since(killed)
	c.b.logged("the machine of a is being stopped")
	c.b.logged("the machine of a is off")
	t.Logf("b serves after %v, and a's machine is off for certain after %v", took.Round(10*time.Millisecond), time.Since(killed).Round(10*time.Millisecond))
	if s := c.state(c.a); s != "stopped" {
		t.Errorf("the machine of a is %s", s)
	}
	if s := c.state(c.b); s != "running" {
		t.Errorf("the machine of b is %s", s)
	}
	c.serves(c.b)
	c.a.start()
	c.settled(c.b)

	// EC2 cannot be had until the lost node is back: then nobody stops it any more.
	c.instance(c.a).Proxy.Set(awstest.Only(awstest.Throttle, "StopInstances"))
	c.b.kill()
	c.until("a serves", c.a.up)
	c.a.logged("the machine of b is being stopped")
	c.b.start()
	c.a.logged("it is not certain that the machine of b is off: ")
	c.instance(c.a).Proxy.Set(nil)
	c.settled(c.a)
	time.Sleep(2 * time.Second) // longer than its pauses between two tries
	if s := c.state(c.b); s != "running" {
		t.Errorf("the machine of b is %s", s)
	}
	c.finish(c.a)
}

// A forced promotion has the old primary's machine stopped first, and spares the wait when that is certain.
func TestAWSForceFences(t *testing.T) {
	c := newOnAWS(t, 1, func(o *options) {
		o.lease, o.auto = 6*time.Second, false
		extra := o.extra
		o.extra = func(n *node) string { return "fence: {ec2: {}}\n" + extra(n) }
	})
	c.startPair()
	c.serves(c.a)
	c.a.kill()
	began := time.Now()
	if _, _, err := c.b.call("promote", map[string]string{"force": "true", "yes": "true"}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*c.options.lease {
		t.Errorf("it took %v, as without a fence", took)
	}
	c.serves(c.b)
	if s := c.state(c.a); s != "stopped" {
		t.Errorf("the machine of a is %s", s)
	}
	c.a.start()
	c.settled(c.b)
	c.finish(c.b)
}
