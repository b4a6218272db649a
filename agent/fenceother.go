package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tandem/failover"
	"tandem/failover/fence/ec2"
)

const (
	// fenceLimit is how long the machine of a lost primary is tried to be stopped; EC2 may
	// take minutes. An operator's `promote --force` waits for forceFenceLimit.
	fenceLimit      = 10 * time.Minute
	forceFenceLimit = 90 * time.Second
)

// others stops machines of other nodes, where the config has a fence. It makes the end of
// an old primary certain and clears up after it; it decides nothing: who may be primary is in
// the record, and a takeover does not wait for it.
type others struct {
	fencer interface {
		Fence(ctx context.Context, node string) (ec2fence.Result, error)
	} // nil: there is no fence

	lost chan string // has the primary that this node took over from by itself
}

func (a *Agent) initOthers() {
	a.others.lost = make(chan string, 1)
	if f := a.cfg.Fence.EC2; f != nil {
		a.others.fencer = ec2fence.New(ec2fence.Config{Cluster: a.cfg.Cluster, DetachVolume: f.DetachVolume, Loader: a.stand.aws, Log: a.log})
	}
}

// tookOver is told of each promotion. The mutex is held.
func (a *Agent) tookOver() {
	term := a.node.Vote.Term()
	if a.others.fencer == nil || term.Lost == "" {
		return
	}
	select {
	case a.others.lost <- term.Lost:
	default: // one is being fenced, and then this node was not primary for long
	}
}

// runOthers fences the primaries that were lost.
func (a *Agent) runOthers(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case node := <-a.others.lost:
			// One that is well again follows by then, and its machine is of use. Nothing hurries.
			select {
			case <-ctx.Done():
				return
			case <-time.After(a.cfg.Failover.Lease):
			}
			if why := a.spared(node); why != "" {
				a.eventf("the machine of %s is not stopped: %s", node, why)
				continue
			}
			lost, done := whileLost(ctx, a.cfg.Failover.Heartbeat, func() string { return a.spared(node) })
			a.fenceNode(lost, node, fenceLimit)
			done()
		}
	}
}

// whileLost ends ctx when spared says why. EC2 may be out of reach for minutes, in which the
// node comes back, and may even be primary: a request that has not been made by then is not made.
func whileLost(ctx context.Context, every time.Duration, spared func() string) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if why := spared(); why != "" {
				cancel(errors.New(why))
				return
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// spared says why a lost primary needs no fence any more, or "".
func (a *Agent) spared(node string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.node.Vote.Role() != failover.Primary {
		return "this node is no longer primary"
	}
	s := a.statusLocked(now())
	for _, p := range s.Peers {
		if p.Node == node && p.Link == "Connected" {
			return "it has come back, as Secondary"
		}
	}
	return ""
}

// fenceNode stops a node's machine, and says whether it is off for certain.
func (a *Agent) fenceNode(ctx context.Context, node string, limit time.Duration) bool {
	a.eventf("the machine of %s is being stopped (fence)", node)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it is not off after %v", limit))
	defer cancel()
	r, err := a.others.fencer.Fence(ctx, node)
	for _, w := range r.Warnings {
		a.log.Warn("fence", "peer", node, "warning", w)
	}
	if err != nil {
		a.log.Warn("fence: whether the machine is off is not known; nothing depends on it", "peer", node, "err", err)
		a.eventf("it is not certain that the machine of %s is off: %v", node, err)
		return false
	}
	var ids []string
	for _, i := range r.Instances {
		ids = append(ids, i.ID)
	}
	a.eventf("the machine of %s is off (%s)", node, strings.Join(ids, ", "))
	return true
}
