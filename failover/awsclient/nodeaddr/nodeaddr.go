// Package nodeaddr finds where the nodes of a cluster are by the tags of their EC2
// instances, so that an instance that was replaced is found at its new address.
//
// It is asked before a dial, and never for a write. What it has found is used for as long
// as nothing better is known: an EC2 that does not answer costs a moment, not the link.
package nodeaddr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/instance"
	"tandem/failover/service/claim"
)

const (
	// clusterTag has the cluster's name on every instance of it.
	clusterTag = "tandem:cluster"

	// keep is how long an address counts as known, unless a dial of it fails.
	keep = 10 * time.Second

	// again is the least time between two look-ups of one node. A node that is off is
	// dialled every second for days, and EC2's requests are counted by account.
	again = 2 * time.Second

	// limit bounds a look-up, and hurry for how long one is waited for where an address
	// is known from before.
	limit = 5 * time.Second
	hurry = 500 * time.Millisecond
)

var (
	// ErrNoInstance means that no instance that runs has the tags.
	ErrNoInstance = errors.New("no running instance has these tags")

	errClosed = errors.New("look-ups have ended")
)

// API is what is asked of EC2. *instance.Client has it.
type API interface {
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
}

// Config is what New needs. The names and the tag are taken as they are: a * or ? in them
// would be a pattern for EC2.
type Config struct {
	Cluster string
	Tag     string // of an instance, with the node's name
	Port    uint16 // of every node

	Loader *awsclient.Loader
	API    API // nil: EC2, by the Loader
	Log    *slog.Logger
}

// Finder finds addresses. It is safe for concurrent use.
type Finder struct {
	cfg Config
	ec2 *instance.EC2

	ctx     context.Context // of the look-ups
	cancel  context.CancelFunc
	running sync.WaitGroup

	// Never held while anybody is asked.
	mu     sync.Mutex
	closed bool
	nodes  map[string]*entry

	// Variable for tests.
	keep, again, hurry time.Duration
}

// entry is what is known of a node.
type entry struct {
	address string        // "": never found
	found   time.Time     // when EC2 said so last
	failed  bool          // a dial of it has failed since
	asked   time.Time     // when the last look-up began
	err     error         // what it came to
	done    chan struct{} // closed at the end of the one that runs; nil: none does
}

// New returns the Finder. It asks nobody yet.
func New(cfg Config) *Finder {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Finder{cfg: cfg, ec2: instance.NewEC2(cfg.Loader), nodes: make(map[string]*entry), keep: keep, again: again, hurry: hurry}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends the look-ups that run.
func (f *Finder) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.running.Wait()
}

// Address returns the host:port of a node. It asks EC2 if it does not know, if what it
// knows is old, or if a dial of it has failed; and it waits for the answer only a moment
// where there is an address from before.
func (f *Finder) Address(ctx context.Context, node string) (string, error) {
	f.mu.Lock()
	e := f.nodes[node]
	if e == nil {
		e = &entry{}
		f.nodes[node] = e
	}
	if e.address != "" && !e.failed && time.Since(e.found) < f.keep {
		defer f.mu.Unlock()
		return e.address, nil
	}
	if e.done == nil && !f.closed && (e.asked.IsZero() || time.Since(e.asked) >= f.again) {
		e.asked, e.done = time.Now(), make(chan struct{})
		f.running.Go(func() { f.ask(node, e) })
	}
	done := e.done
	var moment <-chan time.Time
	if e.address != "" {
		t := time.NewTimer(f.hurry)
		defer t.Stop()
		moment = t.C
	}
	f.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-moment:
		case <-ctx.Done():
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case e.address != "":
		return e.address, nil
	case ctx.Err() != nil:
		return "", f.unknown(node, context.Cause(ctx))
	case e.err == nil:
		return "", f.unknown(node, errClosed)
	}
	return "", e.err
}

// Failed says that a dial of an address has failed: it is looked up again before the next.
func (f *Finder) Failed(node, address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.nodes[node]; e != nil && e.address == address {
		e.failed = true
	}
}

// ask is one look-up. One that fails leaves the address as it was.
func (f *Finder) ask(node string, e *entry) {
	ctx, cancel := context.WithTimeout(f.ctx, limit)
	defer cancel()
	address, id, err := f.lookUp(ctx, node)
	if err != nil {
		err = f.unknown(node, err)
	}

	f.mu.Lock()
	before, told := e.address, e.err
	if e.err = err; err == nil {
		e.address, e.found, e.failed = address, time.Now(), false
	}
	close(e.done)
	e.done = nil
	f.mu.Unlock()

	switch {
	case f.ctx.Err() != nil:
	case err == nil && address != before:
		f.cfg.Log.Info("a peer's address", "peer", node, "addr", address, "instance", id, "before", before)
	case err != nil && told == nil:
		f.cfg.Log.Warn("a peer is not found", "err", err, "addr", before)
	}
}

func (f *Finder) unknown(node string, err error) error {
	return fmt.Errorf("look for the instance with %s=%s %s=%s: %w", clusterTag, f.cfg.Cluster, f.cfg.Tag, node, err)
}

// lookUp asks EC2 for the node's address and instance: of several that were launched last.
func (f *Finder) lookUp(ctx context.Context, node string) (address, id string, err error) {
	api := f.cfg.API
	if api == nil {
		if api, err = f.ec2.Client(ctx); err != nil {
			return "", "", err
		}
	}
	in := &ec2.DescribeInstancesInput{Filters: []types.Filter{
		{Name: aws.String("tag:" + clusterTag), Values: []string{f.cfg.Cluster}},
		{Name: aws.String("tag:" + f.cfg.Tag), Values: []string{node}},
		{Name: aws.String("instance-state-name"), Values: []string{string(types.InstanceStateNamePending), string(types.InstanceStateNameRunning)}},
	}}
	var newest *types.Instance
	for {
		out, err := api.DescribeInstances(ctx, in)
		if err != nil {
			return "", "", claim.Told("DescribeInstances", "ask EC2", err)
		}
		for _, r := range out.Reservations {
			for i := range r.Instances {
				// One that is just being made may have no address yet.
				at := &r.Instances[i]
				if aws.ToString(at.PrivateIpAddress) != "" && (newest == nil || aws.ToTime(at.LaunchTime).After(aws.ToTime(newest.LaunchTime))) {
					newest = at
				}
			}
		}
		if aws.ToString(out.NextToken) == "" {
			break
		}
		in.NextToken = out.NextToken
	}
	if newest == nil {
		return "", "", ErrNoInstance
	}
	return net.JoinHostPort(*newest.PrivateIpAddress, strconv.Itoa(int(f.cfg.Port))), aws.ToString(newest.InstanceId), nil
}
