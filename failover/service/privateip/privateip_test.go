package privateip

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"

	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance/instancetest"
	"tandem/failover/internal/nstest"
	"tandem/failover/service"
	"tandem/failover/service/claim"
)

var address = netip.MustParsePrefix("10.9.0.9/32")

// subnet is EC2 as its documentation has it: an assignment moves the address if that is
// allowed, and the instances are told of it later.
type subnet struct {
	mu       sync.Mutex
	at       string // the network interface that has it; empty: none
	delay    time.Duration
	nodes    map[string]*instancetest.Node
	assigns  int
	assign   func() (done bool, err error) // nil, or instead
	unassign error
}

func code(c string) error { return &smithy.GenericAPIError{Code: c, Message: "AWS says " + c} }

//nolint:revive,staticcheck // the SDK's name
func (s *subnet) AssignPrivateIpAddresses(_ context.Context, in *ec2.AssignPrivateIpAddressesInput, _ ...func(*ec2.Options)) (*ec2.AssignPrivateIpAddressesOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.assigns++
	if s.at != "" && s.at != *in.NetworkInterfaceId && !aws.ToBool(in.AllowReassignment) || !slices.Equal(in.PrivateIpAddresses, []string{"10.9.0.9"}) {
		return nil, code("InvalidParameterValue")
	}
	done, err := true, error(nil)
	if s.assign != nil {
		done, err = s.assign()
	}
	if done {
		s.move(*in.NetworkInterfaceId)
	}
	if err != nil {
		return nil, err
	}
	return &ec2.AssignPrivateIpAddressesOutput{}, nil
}

//nolint:revive,staticcheck // the SDK's name
func (s *subnet) UnassignPrivateIpAddresses(_ context.Context, in *ec2.UnassignPrivateIpAddressesInput, _ ...func(*ec2.Options)) (*ec2.UnassignPrivateIpAddressesOutput, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unassign != nil {
		return nil, s.unassign
	}
	if s.at != *in.NetworkInterfaceId {
		return nil, code("InvalidParameterValue")
	}
	s.move("")
	return &ec2.UnassignPrivateIpAddressesOutput{}, nil
}

// move has the mutex.
func (s *subnet) move(eni string) {
	s.at = eni
	tell := func() {
		for _, n := range s.nodes {
			all := []string{n.Address}
			if n.ENI == eni {
				all = append(all, "10.9.0.9")
			}
			n.Metadata.SetPrivateIPs(all...)
		}
	}
	if s.delay == 0 {
		tell()
		return
	}
	time.AfterFunc(s.delay, tell)
}

// world is a subnet and this host's step in it; another node is only EC2's.
func world(t *testing.T) (*subnet, *PrivateIP) {
	t.Helper()
	nstest.NewPeer(t)
	nstest.IP(t, "addr add 10.9.0.1/24 dev eth0")
	link, err := net.InterfaceByName("eth0")
	ok(t, err)
	a := instancetest.Alone(t, awstest.Identity{InstanceID: "i-a", ENI: "eni-a", MAC: link.HardwareAddr.String(), PrivateIPs: []string{"10.9.0.1"}})
	b := &instancetest.Node{ENI: "eni-b", Address: "10.9.0.2"}
	b.Metadata = awstest.StartMetadata(t, awstest.Identity{InstanceID: "i-b", ENI: "eni-b", PrivateIPs: []string{"10.9.0.2"}})
	s := &subnet{nodes: map[string]*instancetest.Node{"a": a, "b": b}}
	return s, New(Config{Address: address, Interface: "eth0", Loader: a.Loader, API: s})
}

func (s *subnet) take(eni string) { s.mu.Lock(); defer s.mu.Unlock(); s.move(eni) }

func has(t *testing.T) bool {
	t.Helper()
	return strings.Contains(nstest.IP(t, "addr show dev eth0"), "inet 10.9.0.9/")
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestComesAndGoes(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	s, p := world(t)
	s.delay = 500 * time.Millisecond
	s.at = "eni-b"
	ctx, term := t.Context(), service.Term{Epoch: 1}
	if err := p.Check(ctx, term); err == nil {
		t.Error("Check before Start finds it")
	}
	began := time.Now()
	ok(t, p.Start(ctx, term))
	if took := time.Since(began); took < s.delay {
		t.Errorf("it did not wait for the confirmation: %v", took)
	}
	if s.assigns != 1 || s.at != "eni-a" || !has(t) {
		t.Errorf("%d, %s", s.assigns, s.at)
	}
	s.delay = 0
	ok(t, p.Check(ctx, term))
	ok(t, p.Start(ctx, term))
	for range 2 {
		ok(t, p.Stop(ctx, term))
		if s.at != "" || has(t) {
			t.Errorf("after Stop: %s", s.at)
		}
	}
	if !strings.Contains(nstest.IP(t, "addr show dev eth0"), "10.9.0.1/24") {
		t.Error("the node's own address is gone")
	}
}

// Another node has it by now: the host lets go, and EC2 is left alone.
func TestOldPrimaryStopsLate(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	s, p := world(t)
	ctx, term := t.Context(), service.Term{Epoch: 1}
	ok(t, p.Start(ctx, term))
	s.take("eni-b")
	now := time.Now()
	p.watch.Now = func() time.Time { return now }
	for i := range 3 { // held, then doubt, then certain
		now = now.Add(time.Duration(i*10) * time.Second)
		err := p.Check(ctx, term)
		if errors.Is(err, claim.ErrLost) != (i == 2) {
			t.Errorf("look %d: %v", i, err)
		}
	}
	ok(t, p.Stop(ctx, term))
	if s.at != "eni-b" || has(t) {
		t.Errorf("%s", s.at)
	}
	// The metadata is behind, and it is another's: AWS refuses, and that is that.
	s.nodes["a"].Metadata.SetPrivateIPs("10.9.0.1", "10.9.0.9")
	ok(t, p.Stop(ctx, term))
	if s.at != "eni-b" {
		t.Errorf("%s", s.at)
	}
}

// The host's own network tools have added it, with the subnet's length.
func TestAddedByTheHost(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	s, p := world(t)
	ctx, term := t.Context(), service.Term{Epoch: 1}
	nstest.IP(t, "addr add 10.9.0.9/24 dev eth0")
	ok(t, p.Start(ctx, term))
	ok(t, p.Check(ctx, term))
	ok(t, p.Stop(ctx, term))
	if s.at != "" {
		t.Errorf("%s", s.at)
	}
}

func TestBadAnswers(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	lost := errors.New("connection reset by peer")
	s, p := world(t)
	ctx := t.Context()
	for i, tc := range []struct {
		name     string
		err      error
		done     bool
		assigns  int
		hopeless string
	}{
		{"a lost reply", lost, true, 2, ""},
		{"a lost request", lost, false, 2, ""},
		{"too many requests", code("RequestLimitExceeded"), false, 2, ""},
		{"no permission", code("UnauthorizedOperation"), false, 1, "allow ec2:AssignPrivateIpAddresses in the role"},
		{"not of the subnet", code("InvalidParameterValue"), false, 1, "correct what the config names"},
		{"too many addresses", code("PrivateIpAddressLimitExceeded"), false, 1, "take a larger type of instance"},
	} {
		term := service.Term{Epoch: uint64(i + 1)}
		s.take("eni-b")
		s.assigns = 0
		s.assign = func() (bool, error) { s.assign = nil; return tc.done, tc.err }
		err := p.Start(ctx, term)
		if tc.hopeless != "" {
			if !errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), tc.hopeless) || s.at != "eni-b" || has(t) {
				t.Errorf("%s: %v, %s", tc.name, err, s.at)
			}
		} else if err != nil || s.at != "eni-a" || !has(t) {
			t.Errorf("%s: %v, %s", tc.name, err, s.at)
		}
		if s.assigns != tc.assigns {
			t.Errorf("%s: %d assignments", tc.name, s.assigns)
		}
		ok(t, p.Stop(ctx, term))
	}
}

// What must not be done by a node whose term is over while it waits.
func TestWakesUpLate(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	s, p := world(t)
	over := errors.New("the term is over")
	ctx, cancel := context.WithCancelCause(t.Context())
	s.assign = func() (bool, error) { cancel(over); return false, code("RequestLimitExceeded") }
	if err := p.Start(ctx, service.Term{}); !errors.Is(err, over) || s.assigns != 1 || has(t) {
		t.Errorf("%v, %d assignments", err, s.assigns)
	}
	// Over before the confirmation has come: the host does not get it.
	ctx, cancel = context.WithCancelCause(t.Context())
	s.delay = 300 * time.Millisecond
	s.assign = func() (bool, error) { time.AfterFunc(100*time.Millisecond, func() { cancel(over) }); return true, nil }
	if err := p.Start(ctx, service.Term{}); !errors.Is(err, over) || has(t) {
		t.Errorf("%v", err)
	}
	time.Sleep(s.delay)
}

// The confirmation that does not come is no address on the host.
func TestNotConfirmed(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	s, p := world(t)
	s.delay = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	err := p.Start(ctx, service.Term{})
	if !errors.Is(err, claim.ErrLost) || !strings.Contains(err.Error(), "the instance metadata has not 10.9.0.9 on eni-a, but [10.9.0.1]") || has(t) {
		t.Error(err)
	}
}

// AWS and the metadata are out: the host lets go all the same, in time.
func TestStopWithoutAWS(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	s, p := world(t)
	ok(t, p.Start(t.Context(), service.Term{}))
	s.unassign = code("Unavailable")
	ok(t, p.Stop(t.Context(), service.Term{}))
	if has(t) || s.at != "eni-a" {
		t.Errorf("%s", s.at)
	}
	s.nodes["a"].Metadata.Down(true)
	nstest.IP(t, "addr add 10.9.0.9/32 dev eth0")
	began := time.Now()
	ok(t, New(p.cfg).Stop(t.Context(), service.Term{}))
	if has(t) || time.Since(began) > claim.GiveBack+time.Second {
		t.Errorf("after %v", time.Since(began))
	}
}

func TestMistakes(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	_, p := world(t)
	for _, tc := range []struct {
		address, iface string
		want           string
	}{
		{"10.9.0.1/24", "eth0", "it is the primary address of this instance"},
		{"10.9.0.9/32", "eth1", "find the interface eth1"},
		{"10.9.0.9/32", "lo", "knows no network interface with this MAC"},
	} {
		cfg := p.cfg
		cfg.Address, cfg.Interface = netip.MustParsePrefix(tc.address), tc.iface
		step := New(cfg)
		err := step.Start(t.Context(), service.Term{})
		if !errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s on %s: %v", tc.address, tc.iface, err)
		}
		ok(t, step.Stop(t.Context(), service.Term{}))
		if !strings.Contains(nstest.IP(t, "addr show dev eth0"), "10.9.0.1/24") {
			t.Fatal("the node's own address is gone")
		}
	}
}

// A real server takes the requests. It does not move an address, so there is one node.
func TestMoto(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	nstest.NewPeer(t)
	c := instancetest.Start(t, "nfs1", "a")
	a := c.Nodes[0]
	nstest.IP(t, "link set eth0 down")
	nstest.IP(t, "link set eth0 address "+a.MAC+" up")
	nstest.IP(t, "addr add "+a.Address+"/20 dev eth0")
	own := netip.MustParseAddr(a.Address)
	other := own.Next()
	if !netip.MustParsePrefix(a.Address + "/20").Contains(other) {
		other = own.Prev()
	}
	assigned := func() bool {
		out, err := c.EC2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{a.ENI}})
		ok(t, err)
		for _, p := range out.NetworkInterfaces[0].PrivateIpAddresses {
			if aws.ToString(p.PrivateIpAddress) == other.String() {
				return true
			}
		}
		return false
	}
	const assign = "AssignPrivateIpAddresses"
	done := func() { a.Metadata.SetPrivateIPs(a.Address, other.String()) }
	p := New(Config{Address: netip.PrefixFrom(other, 32), Interface: "eth0", Loader: a.Loader})
	for i, fault := range []awstest.Fault{
		func(*awstest.Exchange) {},
		awstest.Delay(300 * time.Millisecond),
		awstest.Times(2, awstest.Throttle),
		awstest.Times(1, awstest.Only(func(x *awstest.Exchange) { x.Lose(); done() }, assign)),
		awstest.For(time.Second, awstest.BlackHole),
	} {
		a.Proxy.Set(func(x *awstest.Exchange) {
			if fault(x); x.Untouched() && x.Action == assign {
				if _, err := x.Forward(); err == nil {
					done()
				}
			}
		})
		term := service.Term{Epoch: uint64(i + 1)}
		ok(t, p.Start(t.Context(), term))
		ok(t, p.Check(t.Context(), term))
		if !assigned() || !strings.Contains(nstest.IP(t, "addr show dev eth0"), other.String()+"/32") {
			t.Errorf("round %d: it is not assigned", i)
		}
		a.Proxy.Set(nil)
		ok(t, p.Stop(t.Context(), term))
		if assigned() || strings.Contains(nstest.IP(t, "addr show dev eth0"), other.String()+"/32") {
			t.Errorf("round %d: it is assigned after Stop", i)
		}
		a.Metadata.SetPrivateIPs(a.Address)
	}
}
