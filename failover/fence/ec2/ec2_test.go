package ec2fence

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
)

func code(c string) error { return &smithy.GenericAPIError{Code: c, Message: "AWS says " + c} }

// cloud is EC2 as far as its documentation says what comes. Every describe of one
// instance takes it to the next of its states, the last of which stays.
type cloud struct {
	mu      sync.Mutex
	all     []types.Instance
	states  map[string][]string // after a stop that was carried out
	stopped map[string]bool

	filters  []string
	requests []string

	stop     func(n int) (done bool, e error) // nil, or instead, with the count of them
	describe func(n int) error                // nil, or before each by id
	stops, n int
}

func (c *cloud) add(id, state string, tags ...string) {
	in := types.Instance{
		InstanceId: &id, State: &types.InstanceState{Name: types.InstanceStateName(state)}, RootDeviceName: aws.String("/dev/xvda"),
		BlockDeviceMappings: []types.InstanceBlockDeviceMapping{
			{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsInstanceBlockDevice{VolumeId: aws.String("vol-root")}},
			{DeviceName: aws.String("/dev/sdf"), Ebs: &types.EbsInstanceBlockDevice{VolumeId: aws.String("vol-data")}},
		},
	}
	for _, t := range tags {
		k, v, _ := strings.Cut(t, "=")
		in.Tags = append(in.Tags, types.Tag{Key: &k, Value: &v})
	}
	c.all = append(c.all, in)
}

func (c *cloud) DescribeInstances(_ context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(in.InstanceIds) > 0 {
		c.n++
		if c.describe != nil {
			if err := c.describe(c.n); err != nil {
				return nil, err
			}
		}
	}
	for _, f := range in.Filters {
		c.filters = append(c.filters, *f.Name+"="+strings.Join(f.Values, ","))
	}
	out := &ec2.DescribeInstancesOutput{}
	for i, inst := range c.all {
		id := *inst.InstanceId
		switch {
		case len(in.InstanceIds) > 0:
			if !slices.Contains(in.InstanceIds, id) {
				continue
			}
			if next := c.states[id]; c.stopped[id] && len(next) > 0 {
				c.all[i].State = &types.InstanceState{Name: types.InstanceStateName(next[0])}
				inst = c.all[i]
				c.states[id] = next[1:]
			}
		case in.NextToken == nil && i == 0 && len(c.all) > 1:
			// One each page, so that all pages have to be asked for.
			out.NextToken = aws.String("more")
			out.Reservations = []types.Reservation{{Instances: []types.Instance{inst}}}
			return out, nil
		case in.NextToken != nil && i == 0:
			continue
		}
		out.Reservations = append(out.Reservations, types.Reservation{Instances: []types.Instance{inst}})
	}
	return out, nil
}

func (c *cloud) StopInstances(_ context.Context, in *ec2.StopInstancesInput, _ ...func(*ec2.Options)) (*ec2.StopInstancesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stops++
	c.requests = append(c.requests, "stop "+strings.Join(in.InstanceIds, ","))
	if !aws.ToBool(in.Force) || !aws.ToBool(in.SkipOsShutdown) {
		return nil, code("InvalidParameterCombination")
	}
	done, err := true, error(nil)
	if c.stop != nil {
		done, err = c.stop(c.stops)
	}
	if done {
		c.stopped[in.InstanceIds[0]] = true
	}
	if err != nil {
		return nil, err
	}
	out := &ec2.StopInstancesOutput{}
	for i, inst := range c.all {
		if *inst.InstanceId == in.InstanceIds[0] {
			if inst.State.Name == types.InstanceStateNameRunning || inst.State.Name == types.InstanceStateNamePending {
				c.all[i].State = &types.InstanceState{Name: types.InstanceStateNameStopping}
			}
			out.StoppingInstances = []types.InstanceStateChange{{InstanceId: inst.InstanceId, PreviousState: inst.State, CurrentState: c.all[i].State}}
		}
	}
	return out, nil
}

func (c *cloud) DetachVolume(_ context.Context, in *ec2.DetachVolumeInput, _ ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, fmt.Sprintf("detach %s from %s, force %t", *in.VolumeId, *in.InstanceId, aws.ToBool(in.Force)))
	return &ec2.DetachVolumeOutput{}, nil
}

func fencer(t *testing.T, c *cloud, cfg Config) *Fencer {
	t.Helper()
	c.states, c.stopped = map[string][]string{}, map[string]bool{}
	n := instancetest.Alone(t, awstest.Identity{InstanceID: "i-self", ENI: "eni-self", PrivateIPs: []string{"10.0.0.1"}})
	cfg.Cluster, cfg.Loader, cfg.API = "nfs1", n.Loader, c
	return New(cfg)
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestFence(t *testing.T) {
	lost := errors.New("connection reset by peer")
	for _, tc := range []struct {
		name     string
		machines string // id:state id:state
		after    string // the first one's states after the stop, in order
		stop     func(n int) (bool, error)
		describe func(n int) error
		limit    time.Duration
		want     error // nil: certainly off
		text     string
		stops    int
	}{
		{name: "it stops", machines: "i-b:running", after: "stopping stopped", stops: 1},
		{name: "it is stopped already", machines: "i-b:stopped", stops: 1},
		{name: "two, one of them off", machines: "i-old:stopped i-b:running", after: "", stops: 2, limit: time.Second, want: ErrNotConfirmed, text: "i-b is stopping"},
		{name: "stopping for ever", machines: "i-b:running", after: "stopping", limit: time.Second, stops: 1, want: ErrNotConfirmed, text: "i-b is stopping"},
		{name: "terminated", machines: "i-b:running", after: "shutting-down terminated", stops: 1, want: ErrNotConfirmed, text: "i-b is terminated, which is no proof"},
		{name: "replaced a while ago, and the new one is stopped all the same", machines: "i-old:terminated i-b:stopped", stops: 2, want: ErrNotConfirmed, text: "i-old is terminated"},
		{name: "it is shutting down", machines: "i-b:shutting-down", limit: time.Second, want: ErrNotConfirmed, text: "i-b is shutting-down",
			stop: func(int) (bool, error) { return false, code("IncorrectInstanceState") }, stops: 4},
		{name: "a stale answer", machines: "i-b:running", after: "running stopping stopped", stops: 2},
		{name: "it is not found, for a while", machines: "i-b:running", after: "stopped", stops: 1,
			describe: func(n int) error {
				if n < 3 {
					return code("InvalidInstanceID.NotFound")
				}
				return nil
			}},
		{name: "it is not found, ever", machines: "i-b:running", limit: time.Second, stops: 1, want: ErrNotConfirmed, text: "InvalidInstanceID.NotFound",
			describe: func(int) error { return code("InvalidInstanceID.NotFound") }},
		{name: "a lost reply", machines: "i-b:running", after: "stopping stopped", stops: 2,
			stop: func(n int) (bool, error) {
				if n == 1 {
					return true, lost
				}
				return true, nil
			}},
		{name: "too many requests", machines: "i-b:running", after: "stopping stopped", stops: 3,
			stop: func(n int) (bool, error) {
				if n < 3 {
					return false, code("RequestLimitExceeded")
				}
				return true, nil
			}},
		{name: "it looks stopped, and the stop has never arrived", machines: "i-b:stopped", limit: time.Second, want: ErrNotConfirmed, text: "connection reset by peer",
			stop: func(int) (bool, error) { return false, lost }, stops: 4},
		{name: "no permission", machines: "i-b:running", stops: 1, want: service.ErrHopeless, text: "allow ec2:StopInstances in the role",
			stop: func(int) (bool, error) { return false, code("UnauthorizedOperation") }},
		{name: "stop protection", machines: "i-b:running", stops: 1, want: service.ErrHopeless, text: "aws ec2 modify-instance-attribute --instance-id i-b --no-disable-api-stop",
			stop: func(int) (bool, error) { return false, code("OperationNotPermitted") }},
		{name: "not a machine that can be stopped", machines: "i-b:running", stops: 1, text: "UnsupportedOperation", want: errAny,
			stop: func(int) (bool, error) { return false, code("UnsupportedOperation") }},
		{name: "none", machines: "", want: ErrNoMachine, text: "fence node b: tandem:cluster=nfs1 tandem:node=b: ", limit: time.Second},
		{name: "two that run", machines: "i-b:running i-c:pending", want: ErrAmbiguous, text: "i-b is running, i-c is pending"},
		{name: "ourselves", machines: "i-b:stopped i-self:running", want: ErrSelf, text: "i-self"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &cloud{stop: tc.stop, describe: tc.describe}
			f := fencer(t, c, Config{})
			for _, m := range strings.Fields(tc.machines) {
				id, state, _ := strings.Cut(m, ":")
				c.add(id, state)
			}
			if len(c.all) > 0 {
				c.states[*c.all[0].InstanceId] = strings.Fields(tc.after)
			}
			limit := tc.limit
			if limit == 0 {
				limit = 20 * time.Second
			}
			r, err := f.Fence(within(t, limit), "b")
			switch {
			case tc.want == nil && err != nil:
				t.Errorf("%v", err)
			case tc.want == errAny && err == nil:
				t.Error("no error")
			case tc.want != nil && tc.want != errAny && !errors.Is(err, tc.want):
				t.Errorf("%v", err)
			case err != nil && !strings.Contains(err.Error(), tc.text):
				t.Errorf("%v", err)
			}
			if len(r.Instances) != len(c.all) {
				t.Errorf("%+v", r)
			}
			if c.stops != tc.stops && (tc.limit == 0 || c.stops < 1 || tc.stops == 0) {
				t.Errorf("%d stops", c.stops)
			}
			if want := []string{"tag:tandem:cluster=nfs1", "tag:tandem:node=b"}; !slices.Equal(c.filters[:2], want) {
				t.Errorf("%q", c.filters)
			}
		})
	}
}

var errAny = errors.New("any")

func TestTagsOfOnesOwn(t *testing.T) {
	c := &cloud{}
	f := fencer(t, c, Config{Tags: map[string]string{"Name": "{cluster}-{node}*", "env": "prod"}})
	_, err := f.Fence(t.Context(), "b")
	if !errors.Is(err, ErrNoMachine) || !slices.Equal(c.filters, []string{`tag:Name=nfs1-b\*`, "tag:env=prod"}) {
		t.Errorf("%v, %q", err, c.filters)
	}
	f = fencer(t, c, Config{Tags: map[string]string{}})
	if _, err := f.Fence(t.Context(), "b"); err == nil {
		t.Error("every instance of the account would be the node's")
	}
}

func TestWarnsOfAutoScaling(t *testing.T) {
	c := &cloud{}
	f := fencer(t, c, Config{})
	c.add("i-b", "running", "aws:autoscaling:groupName=nodes")
	c.states["i-b"] = []string{"stopped"}
	r, err := f.Fence(t.Context(), "b")
	if err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "i-b is a member of the Auto Scaling group nodes") {
		t.Errorf("%+v, %v", r, err)
	}
}

// Detached volumes are no proof, and the root device stays.
func TestDetach(t *testing.T) {
	for _, detach := range []bool{true, false} {
		c := &cloud{}
		f := fencer(t, c, Config{DetachVolume: detach})
		f.detachAfter = 300 * time.Millisecond
		c.add("i-b", "running")
		c.states["i-b"] = []string{"stopping"}
		r, err := f.Fence(within(t, 1500*time.Millisecond), "b")
		want := []string{"stop i-b"}
		if detach {
			want = append(want, "detach vol-data from i-b, force true")
		}
		if !errors.Is(err, ErrNotConfirmed) || !slices.Equal(c.requests, want) || detach != slices.Equal(r.Instances[0].Detached, []string{"vol-data"}) {
			t.Errorf("%+v, %v, %q", r, err, c.requests)
		}
	}
}

// Who does not know which instance he is stops none.
func TestWithoutMetadata(t *testing.T) {
	c := &cloud{}
	f := fencer(t, c, Config{})
	c.add("i-b", "running")
	n := instancetest.Alone(t, awstest.Identity{InstanceID: "i-self", PrivateIPs: []string{"10.0.0.1"}})
	n.Metadata.Down(true)
	cfg := f.cfg
	cfg.Loader = n.Loader
	if _, err := New(cfg).Fence(within(t, 5*time.Second), "b"); err == nil || !strings.Contains(err.Error(), "this machine's own id is needed") || c.stops != 0 {
		t.Errorf("%v, %d stops", err, c.stops)
	}
}

func TestMoto(t *testing.T) {
	c := instancetest.Start(t, "nfs1", "a", "b", "c")
	a, b := c.Nodes[0], c.Nodes[1]
	state := func(id string) types.InstanceStateName {
		t.Helper()
		out, err := c.EC2.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
		if err != nil {
			t.Fatal(err)
		}
		return out.Reservations[0].Instances[0].State.Name
	}
	f := New(Config{Cluster: "nfs1", Loader: a.Loader})
	if _, err := f.Fence(t.Context(), "a"); !errors.Is(err, ErrSelf) || state(a.ID) != types.InstanceStateNameRunning {
		t.Errorf("itself: %v", err)
	}
	if _, err := f.Fence(t.Context(), "d"); !errors.Is(err, ErrNoMachine) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := New(Config{Cluster: "nfs2", Loader: a.Loader}).Fence(t.Context(), "b"); !errors.Is(err, ErrNoMachine) {
		t.Errorf("another cluster's: %v", err)
	}
	// It takes its time to stop, and a reply is lost.
	slow := awstest.Stopping(2 * time.Second)
	lose := awstest.Times(1, awstest.Only(awstest.LoseReply, "StopInstances"))
	a.Proxy.Set(func(x *awstest.Exchange) {
		if slow(x); x.Action == "StopInstances" {
			lose(x)
		}
	})
	began := time.Now()
	r, err := f.Fence(within(t, 30*time.Second), "b")
	if err != nil || len(r.Instances) != 1 || r.Instances[0].ID != b.ID || r.Instances[0].State != "stopped" || time.Since(began) < 2*time.Second {
		t.Errorf("%+v, %v", r, err)
	}
	if state(b.ID) != types.InstanceStateNameStopped || state(c.Nodes[2].ID) != types.InstanceStateNameRunning {
		t.Error("the wrong one was stopped")
	}
	a.Proxy.Set(nil)
	if _, err := f.Fence(t.Context(), "b"); err != nil {
		t.Errorf("again: %v", err)
	}
	for name, fault := range map[string]awstest.Fault{
		"late": awstest.Delay(300 * time.Millisecond), "throttled": awstest.Times(2, awstest.Throttle), "stale describes": awstest.Stale(2 * time.Second),
		"a black hole for a while": awstest.For(time.Second, awstest.BlackHole),
	} {
		_, err := c.EC2.StartInstances(t.Context(), &ec2.StartInstancesInput{InstanceIds: []string{b.ID}})
		if err != nil {
			t.Fatal(err)
		}
		a.Proxy.Set(fault)
		if _, err := f.Fence(within(t, 30*time.Second), "b"); err != nil || state(b.ID) != types.InstanceStateNameStopped {
			t.Errorf("%s: %v", name, err)
		}
		a.Proxy.Set(nil)
	}
	// A second machine that says that it is c.
	c.Run(t, map[string]string{"tandem:cluster": "nfs1", "tandem:node": "c"})
	if _, err := f.Fence(t.Context(), "c"); !errors.Is(err, ErrAmbiguous) || state(c.Nodes[2].ID) != types.InstanceStateNameRunning {
		t.Errorf("two: %v", err)
	}
	// An endpoint that nobody reaches.
	a.Proxy.Set(awstest.BlackHole)
	began = time.Now()
	if _, err := f.Fence(within(t, time.Second), "c"); err == nil || time.Since(began) > 3*time.Second {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}
