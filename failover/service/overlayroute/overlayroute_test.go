package overlayroute

import (
	"context"
	"errors"
	"net/netip"
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
	"tandem/failover/internal/nstest"
	"tandem/failover/service"
	"tandem/failover/service/claim"
)

var overlay = netip.MustParsePrefix("10.99.0.1/32")

// vpc is EC2 as far as its documentation says what comes.
type vpc struct {
	mu      sync.Mutex
	routes  map[string]string // by table; "" in it: to something that is no interface
	old     map[string]string // what describes answer while stale is more than 0
	stale   int
	checked bool // the source/destination check is on

	replaces, creates int

	describe func() error                            // nil, or before each of the routes
	look     func() error                            // nil, or before each of an interface
	change   func(table string) (done bool, e error) // nil, or instead
}

func code(c string) error { return &smithy.GenericAPIError{Code: c, Message: "AWS says " + c} }

func (v *vpc) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	if v.look != nil {
		if err := v.look(); err != nil {
			return nil, err
		}
	}
	return &ec2.DescribeNetworkInterfacesOutput{NetworkInterfaces: []types.NetworkInterface{{NetworkInterfaceId: &in.NetworkInterfaceIds[0], SourceDestCheck: &v.checked}}}, nil
}

func (v *vpc) DescribeRouteTables(_ context.Context, in *ec2.DescribeRouteTablesInput, _ ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error) {
	if v.describe != nil {
		if err := v.describe(); err != nil {
			return nil, err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	at := v.routes
	if v.stale > 0 {
		v.stale--
		at = v.old
	}
	out := &ec2.DescribeRouteTablesOutput{}
	for _, id := range in.RouteTableIds {
		table := types.RouteTable{RouteTableId: &id, Routes: []types.Route{{DestinationCidrBlock: aws.String("10.0.0.0/16"), GatewayId: aws.String("local")}}}
		if nic, exists := at[id]; exists {
			r := types.Route{DestinationCidrBlock: aws.String(overlay.String())}
			if nic != "" {
				r.NetworkInterfaceId = &nic
			}
			table.Routes = append(table.Routes, r)
		}
		out.RouteTables = append(out.RouteTables, table)
	}
	return out, nil
}

func (v *vpc) set(table, nic string) error {
	done, err := true, error(nil)
	if v.change != nil {
		done, err = v.change(table)
	}
	if done {
		v.routes[table] = nic
	}
	return err
}

func (v *vpc) ReplaceRoute(_ context.Context, in *ec2.ReplaceRouteInput, _ ...func(*ec2.Options)) (*ec2.ReplaceRouteOutput, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.replaces++
	if _, exists := v.routes[*in.RouteTableId]; !exists {
		return nil, code("InvalidParameterValue")
	}
	return &ec2.ReplaceRouteOutput{}, v.set(*in.RouteTableId, *in.NetworkInterfaceId)
}

func (v *vpc) CreateRoute(_ context.Context, in *ec2.CreateRouteInput, _ ...func(*ec2.Options)) (*ec2.CreateRouteOutput, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.creates++
	if _, exists := v.routes[*in.RouteTableId]; exists {
		return nil, code("RouteAlreadyExists")
	}
	return &ec2.CreateRouteOutput{}, v.set(*in.RouteTableId, *in.NetworkInterfaceId)
}

func (v *vpc) all(nic string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.routes["rtb-1"] == nic && v.routes["rtb-2"] == nic
}

func world(t *testing.T) (*vpc, *Route) {
	t.Helper()
	n := instancetest.Alone(t, awstest.Identity{InstanceID: "i-a", ENI: "eni-a", PrivateIPs: []string{"10.0.0.1"}})
	v := &vpc{routes: map[string]string{"rtb-1": "eni-b", "rtb-2": "eni-b"}}
	return v, New(Config{CIDR: overlay, Tables: []string{"rtb-1", "rtb-2"}, Loader: n.Loader, API: v})
}

func has(t *testing.T) bool {
	t.Helper()
	return strings.Contains(nstest.IP(t, "addr show dev lo"), "inet 10.99.0.1/32")
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
	v, r := world(t)
	delete(v.routes, "rtb-2")
	ctx, term := t.Context(), service.Term{Epoch: 1}
	if err := r.Check(ctx, term); err == nil {
		t.Error("Check before Start finds it")
	}
	for range 2 {
		ok(t, r.Start(ctx, term))
		if !v.all("eni-a") || !has(t) || v.replaces != 1 || v.creates != 1 {
			t.Errorf("%v, %d, %d", v.routes, v.replaces, v.creates)
		}
	}
	ok(t, r.Check(ctx, term))
	for range 2 {
		ok(t, r.Stop(ctx, term))
		if !v.all("eni-a") || has(t) {
			t.Errorf("after Stop: %v", v.routes)
		}
	}
	// The next primary has them; and Stop is only about the host.
	v.routes["rtb-1"], v.routes["rtb-2"] = "eni-b", "eni-b"
	ok(t, r.Stop(ctx, term))
	if !v.all("eni-b") {
		t.Errorf("%v", v.routes)
	}
}

func TestLostLater(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	v, r := world(t)
	ctx, term := t.Context(), service.Term{Epoch: 1}
	ok(t, r.Start(ctx, term))
	now := time.Now()
	r.watch.Now = func() time.Time { return now }
	for table, want := range map[string]string{"rtb-1": "10.99.0.1/32: rtb-1 leads to eni-b", "rtb-2": "10.99.0.1/32: rtb-2 leads to no network interface"} {
		v.routes[table] = map[string]string{"rtb-1": "eni-b", "rtb-2": ""}[table]
		now = now.Add(time.Minute)
		ok(t, r.Check(ctx, term))
		now = now.Add(time.Minute)
		if err := r.Check(ctx, term); !errors.Is(err, claim.ErrLost) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
		ok(t, r.Start(ctx, term))
		if !v.all("eni-a") {
			t.Errorf("%v", v.routes)
		}
	}
	nstest.IP(t, "addr del 10.99.0.1/32 dev lo")
	if err := r.Check(ctx, term); err == nil {
		t.Error("the host does not have it")
	}
}

func TestStale(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	v, r := world(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// What is not there according to the answer is there, and the other way round.
	v.old, v.stale = map[string]string{"rtb-1": "eni-b"}, 3
	delete(v.routes, "rtb-1")
	ok(t, r.Start(ctx, service.Term{Epoch: 1}))
	if !v.all("eni-a") || v.replaces != 2 || v.creates != 2 {
		t.Errorf("%v, %d, %d", v.routes, v.replaces, v.creates)
	}
}

func TestBadAnswers(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	lost := errors.New("connection reset by peer")
	for _, tc := range []struct {
		name     string
		err      error // of the first change in rtb-1
		done     bool
		replaces int
		hopeless string
	}{
		{"a lost reply", lost, true, 2, ""},
		{"a lost request", lost, false, 3, ""},
		{"too many requests", code("RequestLimitExceeded"), false, 3, ""},
		{"no permission", code("UnauthorizedOperation"), false, 2, "allow ec2:ReplaceRoute in the role"},
		{"no such interface", code("InvalidNetworkInterfaceID.NotFound"), false, 2, "correct what the config names"},
	} {
		v, r := world(t)
		failed := false
		v.change = func(table string) (bool, error) {
			if table != "rtb-1" || failed {
				return true, nil
			}
			failed = true
			return tc.done, tc.err
		}
		err := r.Start(t.Context(), service.Term{})
		if tc.hopeless != "" {
			// The other table was led here all the same.
			if !errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), tc.hopeless) || v.routes["rtb-2"] != "eni-a" {
				t.Errorf("%s: %v, %v", tc.name, err, v.routes)
			}
		} else if err != nil || !v.all("eni-a") {
			t.Errorf("%s: %v, %v", tc.name, err, v.routes)
		}
		if v.replaces != tc.replaces {
			t.Errorf("%s: %d requests", tc.name, v.replaces)
		}
		ok(t, r.Stop(t.Context(), service.Term{}))
	}
}

func TestSourceCheck(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	v, r := world(t)
	v.checked = true
	err := r.Start(t.Context(), service.Term{})
	if !errors.Is(err, service.ErrHopeless) || !errors.Is(err, ErrSourceCheck) || !v.all("eni-b") || has(t) ||
		!strings.Contains(err.Error(), "aws ec2 modify-network-interface-attribute --network-interface-id eni-a --no-source-dest-check") {
		t.Error(err)
	}
	v.look = func() error { return code("UnauthorizedOperation") }
	if err := r.Start(t.Context(), service.Term{}); !errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), "allow ec2:DescribeNetworkInterfaces") {
		t.Error(err)
	}
	// An answer that does not come keeps nobody from a failover.
	v.look = func() error { return code("Unavailable") }
	ok(t, r.Start(t.Context(), service.Term{}))
}

// The reply to the change is the fact.
func TestNobodyDescribes(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	v, r := world(t)
	delete(v.routes, "rtb-1")
	v.describe = func() error { return code("Unavailable") }
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	ok(t, r.Start(ctx, service.Term{}))
	ok(t, ctx.Err())
	if !v.all("eni-a") {
		t.Errorf("%v", v.routes)
	}
	v.describe = func() error { return code("InvalidRouteTableID.NotFound") }
	if err := r.Start(t.Context(), service.Term{}); !errors.Is(err, service.ErrHopeless) {
		t.Error(err)
	}
}

// A node that wakes up after its term must not lead a route back.
func TestWakesUpLate(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	v, r := world(t)
	over := errors.New("the term is over")
	ctx, cancel := context.WithCancelCause(t.Context())
	v.describe = func() error { cancel(over); return nil }
	if err := r.Start(ctx, service.Term{}); !errors.Is(err, over) || !v.all("eni-b") || v.replaces != 0 {
		t.Errorf("%v, %v", err, v.routes)
	}
	// Between two tables.
	v.describe = nil
	ctx, cancel = context.WithCancelCause(t.Context())
	v.change = func(string) (bool, error) { cancel(over); return true, nil }
	if err := r.Start(ctx, service.Term{}); !errors.Is(err, over) || v.replaces != 1 || v.routes["rtb-2"] != "eni-b" {
		t.Errorf("%v, %v", err, v.routes)
	}
	ok(t, r.Stop(t.Context(), service.Term{}))
	if has(t) {
		t.Error("the host has it")
	}
}

// A real server, and between it and the nodes what AWS does on a bad day.
func TestMoto(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	c := instancetest.Start(t, "nfs1", "a", "b")
	ctx := t.Context()
	vpcs, err := c.EC2.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{})
	ok(t, err)
	var tables []string
	for range 2 {
		out, err := c.EC2.CreateRouteTable(ctx, &ec2.CreateRouteTableInput{VpcId: vpcs.Vpcs[0].VpcId})
		ok(t, err)
		tables = append(tables, *out.RouteTable.RouteTableId)
	}
	var steps []*Route
	for _, n := range c.Nodes {
		steps = append(steps, New(Config{CIDR: overlay, Tables: tables, Loader: n.Loader}))
	}
	err = steps[0].Start(ctx, service.Term{})
	if !errors.Is(err, ErrSourceCheck) {
		t.Fatalf("with the check on: %v", err)
	}
	for _, n := range c.Nodes {
		_, err := c.EC2.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
			NetworkInterfaceId: &n.ENI, SourceDestCheck: &types.AttributeBooleanValue{Value: aws.Bool(false)},
		})
		ok(t, err)
	}
	for i, fault := range []awstest.Fault{
		nil,
		awstest.Stale(2 * time.Second),
		awstest.Times(1, awstest.Only(awstest.LoseReply, "ReplaceRoute", "CreateRoute")),
		awstest.Times(2, awstest.Throttle),
		awstest.Delay(300 * time.Millisecond),
		awstest.For(time.Second, awstest.BlackHole),
	} {
		term := service.Term{Epoch: uint64(i + 1)}
		n, step := c.Nodes[i%2], steps[i%2]
		n.Proxy.Set(fault)
		ok(t, step.Start(ctx, term))
		n.Proxy.Set(nil)
		ok(t, step.Check(ctx, term))
		out, err := c.EC2.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{RouteTableIds: tables})
		ok(t, err)
		led := 0
		for _, table := range out.RouteTables {
			for _, route := range table.Routes {
				if aws.ToString(route.DestinationCidrBlock) == overlay.String() && aws.ToString(route.NetworkInterfaceId) == n.ENI {
					led++
				}
			}
		}
		if led != len(tables) || !has(t) {
			t.Errorf("round %d: %d routes lead to it", i, led)
		}
		ok(t, step.Stop(ctx, term))
	}
	err = New(Config{CIDR: overlay, Tables: append(tables, "rtb-0123456789abcdef0"), Loader: c.Nodes[0].Loader}).Start(ctx, service.Term{})
	if !errors.Is(err, service.ErrHopeless) {
		t.Errorf("a table that is not there: %v", err)
	}
}
