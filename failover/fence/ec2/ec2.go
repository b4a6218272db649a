// Package ec2fence stops the machine of another node of the cluster, by EC2.
//
// It is a helper: it brings the end of an old primary forward, and says when that is
// certain. Safety never waits for it, since a host or a zone that has failed may never
// report anything.
//
// The machine is looked for by its tags at the moment of the fence: the ids of instances
// change when they are replaced, and one that was remembered may be nobody's by then.
package ec2fence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/instance"
	"tandem/failover/service"
	"tandem/failover/service/claim"
)

var (
	// ErrNoMachine means that no instance has the tags. It proves nothing about the node.
	ErrNoMachine = errors.New("no instance has these tags: whether the node runs is not known")

	// ErrAmbiguous means that more than one instance runs with them. None was stopped.
	ErrAmbiguous = errors.New("more than one instance with these tags runs: which is the node's is not known, and none was stopped")

	// ErrSelf means that the instance is the one that this process runs on.
	ErrSelf = errors.New("that is this machine itself: a node does not fence itself")

	// ErrNotConfirmed means that an instance has not come to the state stopped, the only
	// one in which it is off.
	ErrNotConfirmed = errors.New("it is not certain that the node is off")
)

// DefaultTags are those that a node's instance has to have, unless Config says otherwise.
func DefaultTags() map[string]string {
	return map[string]string{"tandem:cluster": "{cluster}", "tandem:node": "{node}"}
}

const (
	// groupTag is given to an instance by its Auto Scaling group, which replaces a
	// member that is stopped.
	groupTag = "aws:autoscaling:groupName"

	// detachAfter is how long a stop may take before volumes are detached from the
	// instance. With SkipOsShutdown a healthy host needs less.
	detachAfter = 20 * time.Second
)

// API is what is asked of EC2. *instance.Client has it.
type API interface {
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	StopInstances(context.Context, *ec2.StopInstancesInput, ...func(*ec2.Options)) (*ec2.StopInstancesOutput, error)
	DetachVolume(context.Context, *ec2.DetachVolumeInput, ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error)
}

// Config is what New needs.
type Config struct {
	Cluster string

	// Tags that an instance has to have to be the node's, all of them; {cluster} and
	// {node} stand for the names. nil: DefaultTags.
	Tags map[string]string

	// DetachVolume also takes the volumes other than the root device from an instance that
	// has not stopped within detachAfter, by force. It can lose what is on its way
	// to them, and says nothing about whether the machine still runs.
	DetachVolume bool

	Loader *awsclient.Loader
	API    API // nil: EC2, by the Loader
	Log    *slog.Logger
}

// Fencer fences. It is safe for concurrent use.
type Fencer struct {
	cfg         Config
	ec2         *instance.EC2
	self        *instance.Metadata
	detachAfter time.Duration
}

// Result is what a Fence has come to, also beside an error.
type Result struct {
	Instances []Instance
	Warnings  []string // sentences for the operator
}

// Instance is one that had the node's tags.
type Instance struct {
	ID       string
	State    string   // EC2's name of the state that was seen last
	Detached []string // volumes that were taken from it
}

// New returns the Fencer. It asks nobody yet.
func New(cfg Config) *Fencer {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Tags == nil {
		cfg.Tags = DefaultTags()
	}
	return &Fencer{cfg: cfg, ec2: instance.NewEC2(cfg.Loader), self: instance.New(cfg.Loader), detachAfter: detachAfter}
}

// Fence stops the machine of node, without a shutdown that could write anything, and
// returns nil when EC2 says that every instance with the node's tags is stopped. Any other
// state, and no answer at all, mean that it is not known, until ctx has ended.
func (f *Fencer) Fence(ctx context.Context, node string) (Result, error) {
	var r Result
	api, err := f.client(ctx)
	if err != nil {
		return r, f.fail(node, err)
	}
	// First: who does not know himself might be the one.
	self, err := f.self.ID(ctx)
	if err != nil {
		return r, f.fail(node, fmt.Errorf("this machine's own id is needed, so as not to stop it: %w", err))
	}
	found, err := f.resolve(ctx, api, node)
	if err != nil {
		return r, f.fail(node, err)
	}
	running := 0
	for i := range found {
		at := &found[i]
		r.Instances = append(r.Instances, Instance{ID: at.id, State: string(at.state)})
		if at.id == self {
			return r, f.fail(node, fmt.Errorf("%s: %w", at.id, ErrSelf))
		}
		if at.state == types.InstanceStateNameRunning || at.state == types.InstanceStateNamePending {
			running++
		}
		if at.group != "" {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s is a member of the Auto Scaling group %s, which terminates and replaces a member that is stopped: "+
				"suspend ReplaceUnhealthy there, or keep the data volume out of the launch template", at.id, at.group))
		}
	}
	if running > 1 {
		return r, f.fail(node, fmt.Errorf("%s: %w", states(r.Instances), ErrAmbiguous))
	}
	if len(found) == 0 {
		return r, f.fail(node, fmt.Errorf("%s: %w", f.wanted(node), ErrNoMachine))
	}
	var failed error
	for i := range found {
		if err := f.stop(ctx, api, &found[i], &r, &r.Instances[i]); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return r, f.fail(node, failed)
	}
	f.cfg.Log.Info("the node's machine is stopped", "peer", node, "instances", states(r.Instances))
	return r, nil
}

func (f *Fencer) fail(node string, err error) error {
	return fmt.Errorf("fence node %s: %w", node, err)
}

// machine is an instance as a describe has it.
type machine struct {
	id      string
	state   types.InstanceStateName
	group   string   // its Auto Scaling group; empty: none
	volumes []string // without the root device
}

// resolve finds the instances that have the node's tags, in whatever state.
func (f *Fencer) resolve(ctx context.Context, api API, node string) ([]machine, error) {
	var filters []types.Filter
	for _, name := range slices.Sorted(maps.Keys(f.cfg.Tags)) {
		filters = append(filters, types.Filter{Name: aws.String("tag:" + name), Values: []string{f.value(name, node)}})
	}
	if filters == nil {
		return nil, errors.New("there are no tags to find the node's instance by")
	}
	var all []machine
	in := &ec2.DescribeInstancesInput{Filters: filters}
	for {
		out, err := api.DescribeInstances(ctx, in)
		if err != nil {
			return nil, claim.Told("DescribeInstances", "look for the instance with "+f.wanted(node), err)
		}
		for _, reservation := range out.Reservations {
			for i := range reservation.Instances {
				all = append(all, machineOf(&reservation.Instances[i]))
			}
		}
		if aws.ToString(out.NextToken) == "" {
			return all, nil
		}
		in.NextToken = out.NextToken
	}
}

// value is what a tag has to be. A filter takes * and ? for any text and any character,
// so those of a name are taken for themselves.
func (f *Fencer) value(tag, node string) string {
	text := strings.NewReplacer("{cluster}", f.cfg.Cluster, "{node}", node).Replace(f.cfg.Tags[tag])
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`).Replace(text)
}

func (f *Fencer) wanted(node string) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(f.cfg.Tags)) {
		all = append(all, name+"="+f.value(name, node))
	}
	return strings.Join(all, " ")
}

func machineOf(in *types.Instance) machine {
	at := machine{id: aws.ToString(in.InstanceId)}
	if in.State != nil {
		at.state = in.State.Name
	}
	for _, t := range in.Tags {
		if aws.ToString(t.Key) == groupTag {
			at.group = aws.ToString(t.Value)
		}
	}
	for _, b := range in.BlockDeviceMappings {
		if b.Ebs != nil && aws.ToString(b.DeviceName) != aws.ToString(in.RootDeviceName) {
			at.volumes = append(at.volumes, aws.ToString(b.Ebs.VolumeId))
		}
	}
	return at
}

// stop has one instance stop, and returns nil when EC2 says that it is stopped.
//
// The request is made whatever state it seems to be in: a describe may be older than its
// start, and to stop what is stopped is allowed.
func (f *Fencer) stop(ctx context.Context, api API, at *machine, r *Result, seen *Instance) error {
	began := time.Now()
	asked, detached := false, false // AWS has said yes to it
	var last error
	var pauses claim.Pauses
	for {
		look := true
		if !asked && ctx.Err() == nil {
			out, err := api.StopInstances(ctx, &ec2.StopInstancesInput{
				InstanceIds: []string{at.id},
				// Force alone begins with a shutdown, which writes back what it should not.
				Force: aws.Bool(true), SkipOsShutdown: aws.Bool(true),
			})
			switch {
			case err == nil:
				asked = true
				if state := changed(out, at.id); state != "" {
					seen.State, look = string(state), false
				}
			case awsclient.Code(err) == "OperationNotPermitted":
				return fmt.Errorf("%w: stop %s: %w: it is protected: aws ec2 modify-instance-attribute --instance-id %s --no-disable-api-stop",
					service.ErrHopeless, at.id, err, at.id)
			case claim.Final(err), awsclient.Code(err) == "UnsupportedOperation":
				return claim.Told("StopInstances", "stop "+at.id, err)
			default:
				last = claim.Told("StopInstances", "stop "+at.id, err)
			}
		}
		if look {
			state, err := f.state(ctx, api, at.id)
			if err != nil {
				last = err
			} else {
				seen.State = string(state)
				// Somebody has started it again, or this answer is from before: to ask twice does no harm.
				asked = asked && state != types.InstanceStateNameRunning
			}
		}
		if asked && seen.State == string(types.InstanceStateNameStopped) {
			return nil
		}
		if seen.State == string(types.InstanceStateNameTerminated) {
			return fmt.Errorf("%w: %s is terminated, which is no proof that it is off; it goes from EC2's list within an hour or so", ErrNotConfirmed, at.id)
		}
		if f.cfg.DetachVolume && !detached && time.Since(began) >= f.detachAfter {
			detached = true
			f.detach(ctx, api, at, r, seen)
		}
		if !pauses.Wait(ctx) {
			err := fmt.Errorf("%w: %s is %s: %w", ErrNotConfirmed, at.id, seen.State, context.Cause(ctx))
			if last != nil {
				err = fmt.Errorf("%w: %w", err, last)
			}
			return err
		}
	}
}

// changed is the state that the answer of a StopInstances has for the instance.
func changed(out *ec2.StopInstancesOutput, id string) types.InstanceStateName {
	for _, c := range out.StoppingInstances {
		if aws.ToString(c.InstanceId) == id && c.CurrentState != nil {
			return c.CurrentState.Name
		}
	}
	return ""
}

// state asks for one instance by its id: its tags may change, it does not.
func (f *Fencer) state(ctx context.Context, api API, id string) (types.InstanceStateName, error) {
	out, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	if err != nil {
		return "", claim.Told("DescribeInstances", "look at "+id, err)
	}
	for _, reservation := range out.Reservations {
		for i := range reservation.Instances {
			if at := machineOf(&reservation.Instances[i]); at.id == id && at.state != "" {
				return at.state, nil
			}
		}
	}
	return "", fmt.Errorf("look at %s: AWS's answer does not have it", id)
}

// detach takes the data volumes from an instance that does not stop.
func (f *Fencer) detach(ctx context.Context, api API, at *machine, r *Result, seen *Instance) {
	for _, volume := range at.volumes {
		_, err := api.DetachVolume(ctx, &ec2.DetachVolumeInput{VolumeId: &volume, InstanceId: &at.id, Force: aws.Bool(true)})
		if err != nil {
			r.Warnings = append(r.Warnings, claim.Told("DetachVolume", "detach "+volume+" from "+at.id, err).Error())
			continue
		}
		seen.Detached = append(seen.Detached, volume)
		f.cfg.Log.Warn("a volume was detached by force", "volume", volume, "instance", at.id)
	}
}

func states(all []Instance) string {
	var texts []string
	for _, i := range all {
		texts = append(texts, i.ID+" is "+i.State)
	}
	return strings.Join(texts, ", ")
}

func (f *Fencer) client(ctx context.Context) (API, error) {
	if f.cfg.API != nil {
		return f.cfg.API, nil
	}
	return f.ec2.Client(ctx)
}
