package nodeaddr

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance/instancetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cloud is an EC2 that answers with what it was given, one instance each page.
type cloud struct {
	mu      sync.Mutex
	all     []types.Instance
	err     error
	hold    chan struct{} // answers come when it is closed; nil: at once
	asked   int
	filters []string
}

func (c *cloud) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	c.mu.Lock()
	if in.NextToken == nil {
		c.asked++
	}
	c.filters = nil
	for _, f := range in.Filters {
		c.filters = append(c.filters, *f.Name+"="+strings.Join(f.Values, ","))
	}
	all, err, hold := slices.Clone(c.all), c.err, c.hold
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	out := &ec2.DescribeInstancesOutput{}
	i := len(aws.ToString(in.NextToken))
	if i < len(all) {
		out.Reservations = []types.Reservation{{Instances: all[i : i+1]}}
	}
	if i+1 < len(all) {
		out.NextToken = aws.String(strings.Repeat("n", i+1))
	}
	return out, nil
}

func (c *cloud) set(err error, all ...types.Instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all, c.err = all, err
}

func (c *cloud) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func at(address string, launched int64) types.Instance {
	in := types.Instance{InstanceId: aws.String("i-" + address), LaunchTime: aws.Time(time.Unix(launched, 0))}
	if address != "" {
		in.PrivateIpAddress = &address
	}
	return in
}

func finder(t *testing.T, c *cloud) *Finder {
	t.Helper()
	f := New(Config{Cluster: "nfs1", Tag: "tandem:node", Port: 7788, Loader: awsclient.New(awsclient.Options{}), API: c})
	f.again = 0
	t.Cleanup(f.Close)
	return f
}

func is(t *testing.T, f *Finder, want string) {
	t.Helper()
	if got, err := f.Address(t.Context(), "b"); got != want || err != nil {
		t.Errorf("%q %v, want %q", got, err, want)
	}
}

// Of several instances it is the one that was launched last.
func TestNewest(t *testing.T) {
	c := &cloud{all: []types.Instance{at("10.0.0.1", 5), at("10.0.0.2", 9), at("", 11), at("10.0.0.3", 7)}}
	is(t, finder(t, c), "10.0.0.2:7788")
	if want := []string{"tag:tandem:cluster=nfs1", "tag:tandem:node=b", "instance-state-name=pending,running"}; !slices.Equal(c.filters, want) {
		t.Errorf("%q", c.filters)
	}
}

// EC2 is asked again when an answer is old or a dial has failed, and not before.
func TestAskedAgain(t *testing.T) {
	c := &cloud{all: []types.Instance{at("10.0.0.1", 1)}}
	f := finder(t, c)
	is(t, f, "10.0.0.1:7788")
	c.set(nil, at("10.0.0.2", 2))
	f.Failed("b", "10.0.0.9:7788") // an address from before
	f.Failed("c", "10.0.0.1:7788")
	is(t, f, "10.0.0.1:7788")
	if c.count() != 1 {
		t.Error(c.count())
	}
	f.Failed("b", "10.0.0.1:7788")
	is(t, f, "10.0.0.2:7788")
	is(t, f, "10.0.0.2:7788")
	if c.count() != 2 {
		t.Error(c.count())
	}
	c.set(nil, at("10.0.0.3", 3))
	f.keep = 0
	is(t, f, "10.0.0.3:7788")

	// A node that is off is dialled often, and looked for less often.
	f.again = time.Hour
	before := c.count()
	for range 5 {
		f.Failed("b", "10.0.0.3:7788")
		is(t, f, "10.0.0.3:7788")
	}
	if c.count() != before {
		t.Error(c.count())
	}
}

// A look-up that fails, for whatever reason, leaves what was known.
func TestFailureKeepsTheAddress(t *testing.T) {
	c := &cloud{all: []types.Instance{at("10.0.0.1", 1)}}
	var log bytes.Buffer
	f := finder(t, c)
	f.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	f.keep = 0
	is(t, f, "10.0.0.1:7788")
	for _, err := range []error{nil, errors.New("no answer"), &smithy.GenericAPIError{Code: "RequestLimitExceeded"}} {
		c.set(err)
		f.Failed("b", "10.0.0.1:7788")
		is(t, f, "10.0.0.1:7788")
	}
	c.set(nil, at("10.0.0.2", 2))
	is(t, f, "10.0.0.2:7788")
	f.Close()
	if got := strings.Count(log.String(), "a peer is not found"); got != 1 {
		t.Errorf("told %d times:\n%s", got, log.String())
	}
}

func TestNotFound(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{nil, "look for the instance with tandem:cluster=nfs1 tandem:node=b: no running instance has these tags"},
		{&smithy.GenericAPIError{Code: "UnauthorizedOperation"}, "allow ec2:DescribeInstances in the role of this instance"},
		{errors.New("no answer"), "look for the instance with tandem:cluster=nfs1 tandem:node=b: ask EC2: no answer"},
	} {
		c := &cloud{err: tc.err}
		f := finder(t, c)
		if got, err := f.Address(t.Context(), "b"); got != "" || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q %v, want %s", got, err, tc.want)
		}
		// It appears.
		c.set(nil, at("10.0.0.1", 1))
		is(t, f, "10.0.0.1:7788")
	}
}

// Nobody waits for an EC2 that does not answer if there is an address, and nobody holds
// up another node's. A late answer counts all the same.
func TestSlow(t *testing.T) {
	c := &cloud{all: []types.Instance{at("10.0.0.1", 1)}}
	f := finder(t, c)
	f.hurry = 10 * time.Millisecond
	is(t, f, "10.0.0.1:7788")
	hold := make(chan struct{})
	c.mu.Lock()
	c.hold = hold
	c.mu.Unlock()
	c.set(nil, at("10.0.0.2", 2))
	f.Failed("b", "10.0.0.1:7788")
	for range 3 {
		began := time.Now()
		is(t, f, "10.0.0.1:7788")
		if d := time.Since(began); d > limit/2 {
			t.Error(d)
		}
	}
	if c.count() != 2 {
		t.Errorf("%d at once", c.count()-1)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := f.Address(ctx, "c"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	close(hold)
	f.hurry = time.Minute
	is(t, f, "10.0.0.2:7788")
}

// Whoever waits at the end is told.
func TestClose(t *testing.T) {
	c := &cloud{hold: make(chan struct{})}
	f := finder(t, c)
	time.AfterFunc(20*time.Millisecond, f.Close)
	if _, err := f.Address(t.Context(), "b"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := f.Address(t.Context(), "c"); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

// An instance that is terminated and replaced is found, with EC2 as moto has it.
func TestReplaced(t *testing.T) {
	c := instancetest.Start(t, "nfs1", "a", "b")
	defer func() {
		for _, n := range c.Nodes {
			n.Loader.Close()
		}
	}()
	c.Run(t, map[string]string{"tandem:cluster": "nfs2", "tandem:node": "b"}) // somebody else's
	f := New(Config{Cluster: "nfs1", Tag: "tandem:node", Port: 7788, Loader: c.Nodes[0].Loader})
	f.again, f.hurry = 0, time.Minute
	defer f.Close()
	old := c.Nodes[1].Address + ":7788"
	is(t, f, old)

	if _, err := c.EC2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{c.Nodes[1].ID}}); err != nil {
		t.Fatal(err)
	}
	f.Failed("b", old)
	is(t, f, old) // nobody else is there yet
	tags := map[string]string{"tandem:cluster": "nfs1", "tandem:node": "b"}
	next := *c.Run(t, tags).PrivateIpAddress + ":7788"
	if next == old {
		t.Fatal("moto gives out the same address")
	}
	f.Failed("b", old)
	is(t, f, next)

	// A bad day: the address stays.
	c.Nodes[0].Proxy.Set(awstest.Throttle)
	f.Failed("b", next)
	is(t, f, next)
}

// With each fault between this node and EC2 a peer that was replaced is found, soon after the
// fault is over; until then its address is the old one, which nobody waits for.
func TestFaults(t *testing.T) {
	c := instancetest.Start(t, "nfs1", "a", "b")
	defer func() {
		for _, n := range c.Nodes {
			n.Loader.Close()
		}
	}()
	self, id, at := c.Nodes[0], c.Nodes[1].ID, c.Nodes[1].Address+":7788"
	cfg, err := self.Loader.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes := instancetest.Cluster{EC2: ec2.NewFromConfig(cfg)} // through the proxy, which so knows of them
	f := New(Config{Cluster: "nfs1", Tag: "tandem:node", Port: 7788, Loader: self.Loader})
	defer f.Close()
	f.again, f.hurry = 50*time.Millisecond, 200*time.Millisecond
	is(t, f, at)
	for _, tc := range []struct {
		name    string
		fault   awstest.Fault
		atLeast time.Duration
	}{
		{"late", awstest.Delay(300 * time.Millisecond), 300 * time.Millisecond},
		{"throttled", awstest.Times(2, awstest.Throttle), 0},
		{"throttled for longer than a look-up", awstest.For(limit+time.Second, awstest.Throttle), limit},
		{"an answer lost", awstest.Times(1, awstest.LoseReply), 0},
		{"stale", awstest.Stale(2 * time.Second), time.Second},
		{"a black hole for a while", awstest.For(time.Second, awstest.BlackHole), time.Second},
		{"a black hole for longer than a look-up", awstest.For(limit+time.Second, awstest.BlackHole), limit},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "stale" {
				self.Proxy.Set(tc.fault)
				time.Sleep(2 * f.again)
				f.Failed("b", at)
				is(t, f, at) // what is shown later, too
			}
			if _, err := changes.EC2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}}); err != nil {
				t.Fatal(err)
			}
			in := changes.Run(t, map[string]string{"tandem:cluster": "nfs1", "tandem:node": "b"})
			next := *in.PrivateIpAddress + ":7788"
			if tc.name != "stale" {
				self.Proxy.Set(awstest.Only(tc.fault, "DescribeInstances"))
			}
			began := time.Now()
			for {
				f.Failed("b", at)
				asked := time.Now()
				got, err := f.Address(t.Context(), "b")
				if took := time.Since(asked); took > f.hurry+time.Second {
					t.Errorf("it is waited for %v", took)
				}
				if err != nil || got != at && got != next {
					t.Fatalf("%q %v", got, err)
				}
				if got == next {
					break
				}
				if time.Since(began) > 30*time.Second {
					t.Fatal("the new instance is not found")
				}
				time.Sleep(20 * time.Millisecond)
			}
			took := time.Since(began)
			if took < tc.atLeast {
				t.Errorf("found after %v: the fault was none", took)
			}
			t.Logf("found after %v", took.Round(time.Millisecond))
			id, at = *in.InstanceId, next
			self.Proxy.Set(nil)
		})
	}
}
