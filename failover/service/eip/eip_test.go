package eip

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance/instancetest"
	"tandem/failover/service"
	"tandem/failover/service/claim"
)

const allocation = "eipalloc-1"

// cloud is EC2 as far as its documentation says what comes.
type cloud struct {
	mu    sync.Mutex
	at    association
	old   association // what describes answer while stale is more than 0
	stale int
	made  int

	describes, associates, disassociates int

	describe  func() error                // nil, or before each
	associate func() (done bool, e error) // nil, or instead
}

func code(c string) error { return &smithy.GenericAPIError{Code: c, Message: "AWS says " + c} }

func (c *cloud) DescribeAddresses(_ context.Context, in *ec2.DescribeAddressesInput, _ ...func(*ec2.Options)) (*ec2.DescribeAddressesOutput, error) {
	if c.describe != nil {
		if err := c.describe(); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.describes++
	at := c.at
	if c.stale > 0 {
		c.stale--
		at = c.old
	}
	a := types.Address{AllocationId: &in.AllocationIds[0]}
	if at.id != "" {
		a.AssociationId, a.NetworkInterfaceId, a.PrivateIpAddress, a.InstanceId = &at.id, &at.nic, &at.address, &at.instance
	}
	return &ec2.DescribeAddressesOutput{Addresses: []types.Address{a}}, nil
}

func (c *cloud) AssociateAddress(_ context.Context, in *ec2.AssociateAddressInput, _ ...func(*ec2.Options)) (*ec2.AssociateAddressOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.associates++
	if in.InstanceId != nil || aws.ToString(in.AllocationId) != allocation || !aws.ToBool(in.AllowReassociation) {
		return nil, code("InvalidParameterCombination")
	}
	done, err := true, error(nil)
	if c.associate != nil {
		done, err = c.associate()
	}
	if done {
		c.put(*in.NetworkInterfaceId, *in.PrivateIpAddress)
	}
	if err != nil {
		return nil, err
	}
	return &ec2.AssociateAddressOutput{AssociationId: aws.String(c.at.id)}, nil
}

func (c *cloud) put(nic, address string) {
	c.old = c.at
	c.made++
	c.at = association{id: fmt.Sprintf("eipassoc-%d", c.made), nic: nic, address: address, instance: "i-of-" + nic}
}

func (c *cloud) DisassociateAddress(_ context.Context, in *ec2.DisassociateAddressInput, _ ...func(*ec2.Options)) (*ec2.DisassociateAddressOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disassociates++
	if in.PublicIp != nil || aws.ToString(in.AssociationId) != c.at.id {
		return nil, code("InvalidAssociationID.NotFound")
	}
	c.at = association{}
	return &ec2.DisassociateAddressOutput{}, nil
}

func node(t *testing.T, c API, name string) *EIP {
	t.Helper()
	n := instancetest.Alone(t, awstest.Identity{InstanceID: "i-" + name, ENI: "eni-" + name, PrivateIPs: []string{"10.0.0." + fmt.Sprint(name[0]-'a'+1), "10.0.0.77"}})
	return New(Config{Allocation: allocation, Loader: n.Loader, API: c})
}

func term(epoch uint64) service.Term { return service.Term{Epoch: epoch} }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestComesAndGoes(t *testing.T) {
	c := &cloud{}
	a := node(t, c, "a")
	ctx := t.Context()
	ok(t, a.Stop(ctx, term(0)))
	if err := a.Check(ctx, term(1)); !errors.Is(err, claim.ErrLost) {
		t.Errorf("Check before: %v", err)
	}
	for range 2 {
		ok(t, a.Start(ctx, term(1)))
	}
	if c.associates != 1 || c.at.nic != "eni-a" || c.at.address != "10.0.0.1" {
		t.Errorf("%d associations, %+v", c.associates, c.at)
	}
	ok(t, a.Check(ctx, term(1)))
	for range 2 {
		ok(t, a.Stop(ctx, term(1)))
	}
	if c.at.id != "" || c.disassociates != 1 {
		t.Errorf("%d, %+v", c.disassociates, c.at)
	}
	if err := a.Check(ctx, term(1)); !errors.Is(err, claim.ErrLost) {
		t.Errorf("Check after: %v", err)
	}
}

// It is here, but with another of this instance's addresses.
func TestAtAnotherAddressOfOurs(t *testing.T) {
	c := &cloud{}
	c.put("eni-a", "10.0.0.77")
	a := node(t, c, "a")
	ok(t, a.Start(t.Context(), term(1)))
	if c.at.address != "10.0.0.1" {
		t.Errorf("%+v", c.at)
	}
}

// The old primary stops after the new one has started: nothing is taken from it.
func TestOldPrimaryStopsLate(t *testing.T) {
	c := &cloud{}
	a, b := node(t, c, "a"), node(t, c, "b")
	ctx := t.Context()
	ok(t, a.Start(ctx, term(1)))
	ok(t, b.Start(ctx, term(2)))
	ok(t, a.Stop(ctx, term(1)))
	if c.at.nic != "eni-b" {
		t.Errorf("%+v", c.at)
	}
	// And a life of its agent that remembers nothing.
	ok(t, node(t, c, "a").Stop(ctx, term(1)))
	if c.at.nic != "eni-b" {
		t.Errorf("%+v", c.at)
	}
	ok(t, b.Check(ctx, term(2)))
	// b's agent is killed, and its next life ends what the last has made.
	ok(t, node(t, c, "b").Stop(ctx, term(2)))
	if c.at.id != "" {
		t.Errorf("%+v", c.at)
	}
}

func TestStaleDescribes(t *testing.T) {
	c := &cloud{}
	c.put("eni-b", "10.0.0.2")
	a := node(t, c, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c.associate = func() (bool, error) { c.stale = 4; return true, nil }
	ok(t, a.Start(ctx, term(1)))
	if c.associates != 1 || c.describes != 6 {
		t.Errorf("%d associations, %d describes", c.associates, c.describes)
	}
	// One stale answer later does not interrupt the service.
	c.old, c.stale = association{id: "eipassoc-0", nic: "eni-b", address: "10.0.0.2"}, 1
	now := time.Now().Add(time.Minute)
	a.watch.Now = func() time.Time { return now }
	ok(t, a.Check(ctx, term(1)))
	now = now.Add(3 * time.Second)
	ok(t, a.Check(ctx, term(1)))
	if c.describes != 8 {
		t.Errorf("%d describes", c.describes)
	}
}

func TestBadAnswers(t *testing.T) {
	lost := errors.New("connection reset by peer")
	for _, tc := range []struct {
		name       string
		answers    []error // of AssociateAddress, in order; nil: well
		done       bool    // it is carried out also where the answer is an error
		associates int
		hopeless   string
	}{
		{"a lost reply", []error{lost}, true, 1, ""},
		{"a lost request", []error{lost, lost}, false, 3, ""},
		{"too many requests", []error{code("RequestLimitExceeded")}, false, 2, ""},
		{"a failure of the service", []error{code("InternalError")}, false, 2, ""},
		{"no permission", []error{code("UnauthorizedOperation")}, false, 1, "allow ec2:AssociateAddress in the role of this instance"},
		{"no such interface", []error{code("InvalidNetworkInterfaceID.NotFound")}, false, 1, "correct what the config names, and aws.region"},
		{"another's allocation", []error{code("AuthFailure")}, false, 1, "this account's"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &cloud{}
			c.put("eni-b", "10.0.0.2")
			i := 0
			c.associate = func() (bool, error) {
				if i++; i > len(tc.answers) {
					return true, nil
				}
				return tc.done, tc.answers[i-1]
			}
			a := node(t, c, "a")
			err := a.Start(t.Context(), term(1))
			if tc.hopeless != "" {
				if !errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), tc.hopeless) || c.at.nic != "eni-b" {
					t.Errorf("%v, %+v", err, c.at)
				}
			} else if err != nil || c.at.nic != "eni-a" {
				t.Errorf("%v, %+v", err, c.at)
			}
			if c.associates != tc.associates {
				t.Errorf("%d associations", c.associates)
			}
			// Whatever it knows of it, it can be given back.
			ok(t, a.Stop(t.Context(), term(1)))
			if tc.hopeless == "" && c.at.id != "" {
				t.Errorf("after Stop: %+v", c.at)
			}
		})
	}
}

func TestNoSuchAllocation(t *testing.T) {
	c := &cloud{describe: func() error { return code("InvalidAllocationID.NotFound") }}
	err := node(t, c, "a").Start(t.Context(), term(1))
	if !errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), allocation) || c.associates != 0 {
		t.Error(err)
	}
}

// The reply to the change is the fact: a failover does not wait for describes.
func TestNobodyDescribes(t *testing.T) {
	c := &cloud{describe: func() error { return code("Unavailable") }}
	a := node(t, c, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	ok(t, a.Start(ctx, term(1)))
	ok(t, ctx.Err())
	if c.at.nic != "eni-a" || c.associates != 1 {
		t.Errorf("%d, %+v", c.associates, c.at)
	}
	a.watch.Reset()
	if err := a.Check(ctx, term(1)); !errors.Is(err, service.ErrCannotTell) {
		t.Error(err)
	}
}

// A node that was held up while it looked, and wakes up when its term is over, must not
// take the address back.
func TestWakesUpLate(t *testing.T) {
	c := &cloud{}
	a := node(t, c, "a")
	over := errors.New("the term is over")
	ctx, cancel := context.WithCancelCause(t.Context())
	c.describe = func() error {
		cancel(over) // and b takes it
		c.mu.Lock()
		defer c.mu.Unlock()
		c.put("eni-b", "10.0.0.2")
		return nil
	}
	if err := a.Start(ctx, term(1)); !errors.Is(err, over) || c.associates != 0 {
		t.Errorf("%v, %d associations", err, c.associates)
	}
	// So in the pause after a failure.
	ctx, cancel = context.WithCancelCause(t.Context())
	c.describe = nil
	c.associate = func() (bool, error) { cancel(over); return false, code("RequestLimitExceeded") }
	if err := a.Start(ctx, term(1)); !errors.Is(err, over) || c.associates != 1 {
		t.Errorf("%v, %d associations", err, c.associates)
	}
	ok(t, a.Stop(t.Context(), term(1)))
	if c.at.nic != "eni-b" {
		t.Errorf("%+v", c.at)
	}
}

// Another takes it right after: it is not taken back in the same start, so that two nodes
// that both want it do not fight over it many times a second.
func TestTakenAtOnce(t *testing.T) {
	c := &cloud{}
	a := node(t, c, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	c.describe = func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.at.nic == "eni-a" {
			c.put("eni-b", "10.0.0.2")
		}
		return nil
	}
	err := a.Start(ctx, term(1))
	if !errors.Is(err, claim.ErrLost) || !strings.Contains(err.Error(), "is with i-of-eni-b, eni-b, 10.0.0.2") || c.associates != 1 {
		t.Errorf("%v, %d associations", err, c.associates)
	}
}

// A node without a network lets go in time all the same.
func TestStopWithoutAWS(t *testing.T) {
	c := &cloud{}
	a := node(t, c, "a")
	ok(t, a.Start(t.Context(), term(1)))
	a.cfg.API = deaf{}
	began := time.Now()
	ok(t, a.Stop(t.Context(), term(1)))
	if took := time.Since(began); took < claim.GiveBack || took > claim.GiveBack+time.Second {
		t.Errorf("took %v", took)
	}
	a.cfg.API = c
	ok(t, a.Stop(t.Context(), term(1)))
	if c.at.id != "" {
		t.Errorf("%+v", c.at)
	}
}

// deaf is EC2 behind a hole in the network.
type deaf struct{ API }

func (deaf) DisassociateAddress(ctx context.Context, _ *ec2.DisassociateAddressInput, _ ...func(*ec2.Options)) (*ec2.DisassociateAddressOutput, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// The Runner brings back what another node has taken late.
func TestRunnerTakesItBack(t *testing.T) {
	c := &cloud{}
	a := node(t, c, "a")
	var mu sync.Mutex
	skip := time.Duration(0)
	a.watch.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(skip) }
	r, err := service.New(service.Config{CheckEvery: 20 * time.Millisecond, Items: []service.Item{{Name: "eip", Step: a}}})
	ok(t, err)
	ok(t, r.Start(t.Context(), 1))
	t.Cleanup(r.Leave)
	c.mu.Lock()
	c.put("eni-b", "10.0.0.2")
	c.mu.Unlock()
	ours := func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.at.nic == "eni-a" }
	for end := time.Now().Add(10 * time.Second); !ours(); time.Sleep(20 * time.Millisecond) {
		mu.Lock()
		skip += 5 * time.Second
		mu.Unlock()
		if time.Now().After(end) {
			t.Fatal("it does not come back")
		}
	}
	ok(t, r.Stop(t.Context()))
}

// A real server, and between it and the nodes what AWS does on a bad day.
func TestMoto(t *testing.T) {
	c := instancetest.Start(t, "nfs1", "a", "b")
	ctx := t.Context()
	out, err := c.EC2.AllocateAddress(ctx, &ec2.AllocateAddressInput{Domain: types.DomainTypeVpc})
	ok(t, err)
	steps := map[string]*EIP{}
	for _, n := range c.Nodes {
		steps[n.ID] = New(Config{Allocation: *out.AllocationId, Loader: n.Loader})
	}
	held := func(n *instancetest.Node) {
		t.Helper()
		got, err := c.EC2.DescribeAddresses(ctx, &ec2.DescribeAddressesInput{AllocationIds: []string{*out.AllocationId}})
		ok(t, err)
		want := ""
		if n != nil {
			want = n.ENI
		}
		if at := aws.ToString(got.Addresses[0].NetworkInterfaceId); at != want {
			t.Errorf("it is with %q, not %q", at, want)
		}
	}
	a, b := c.Nodes[0], c.Nodes[1]
	for i, f := range []struct {
		name  string
		fault awstest.Fault
	}{
		{"well", nil},
		{"stale", awstest.Stale(2 * time.Second)},
		{"lost reply", awstest.Times(1, awstest.Only(awstest.LoseReply, "AssociateAddress"))},
		{"throttled", awstest.Times(2, awstest.Throttle)},
		{"late", awstest.Delay(300 * time.Millisecond)},
		{"a black hole for a while", awstest.For(time.Second, awstest.BlackHole)},
	} {
		t.Run(f.name, func(t *testing.T) {
			from, to := a, b
			ok(t, steps[from.ID].Start(ctx, term(uint64(2*i+1))))
			held(from)
			to.Proxy.Set(f.fault)
			ok(t, steps[to.ID].Start(ctx, term(uint64(2*i+2))))
			held(to)
			to.Proxy.Set(nil)
			// A late stop of the old one, which still has its association's id.
			ok(t, steps[from.ID].Stop(ctx, term(uint64(2*i+1))))
			held(to)
			ok(t, steps[to.ID].Check(ctx, term(uint64(2*i+2))))
			ok(t, steps[to.ID].Stop(ctx, term(uint64(2*i+2))))
			held(nil)
		})
	}
	err = New(Config{Allocation: "eipalloc-0123456789abcdef0", Loader: a.Loader}).Start(ctx, term(9))
	if !errors.Is(err, service.ErrHopeless) {
		t.Errorf("an allocation that is not there: %v", err)
	}
}
