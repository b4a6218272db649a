package agent

import (
	"context"
	"fmt"
	"time"

	"tandem/failover"
	"tandem/nbd"
)

// exportState is the export as clients find it: there while this node takes requests,
// refused with the primary's name while it does not.
type exportState struct {
	a     *Agent
	open  bool          // guarded by Agent.mu
	done  chan struct{} // closed when this term ends; guarded by Agent.mu
	role  failover.Role
	since time.Time // when role began
}

func newExportState(a *Agent) *exportState { return &exportState{a: a} }

// update follows the role. The mutex is held.
func (x *exportState) update() {
	open := x.a.node.Open()
	if role := x.a.node.Vote.Role(); role != x.role {
		x.phase(role)
	}
	x.a.stand.follow()
	if open == x.open {
		return
	}
	if x.open = open; open {
		x.done = make(chan struct{})
		x.a.metrics.promotions++
		x.a.metrics.firstWrite.Store(0)
	} else {
		close(x.done)
	}
}

// phase notes how long the step to the present role took.
func (x *exportState) phase(next failover.Role) {
	t := time.Now()
	d := t.Sub(x.since).Seconds()
	phase := ""
	switch {
	case x.role == failover.Candidate && next == failover.Primary:
		phase = "claim"
		x.a.metrics.claim = d // from the end of the wait to serving: drain, flush, CAS, metadata
	case x.role == failover.Moving && next == failover.Secondary:
		phase = "stop"
		x.a.metrics.stop = d // a planned stop: complete, flush everywhere
	}
	x.a.roleChanged(x.role, next, phase, d)
	x.role, x.since = next, t
}

// Exports answers LIST, on a Secondary too: the export exists, elsewhere.
func (x *exportState) Exports() []string { return []string{x.a.cfg.Cluster} }

// Open hands out the volume.
func (x *exportState) Open(_ context.Context, name string) (*nbd.Export, error) {
	if name != "" && name != x.a.cfg.Cluster {
		return nil, &nbd.Refusal{Code: nbd.ERR_UNKNOWN, Text: fmt.Sprintf("there is no export %q here, only %q", name, x.a.cfg.Cluster)}
	}
	x.a.mu.Lock()
	defer x.a.mu.Unlock()
	if !x.a.node.Open() {
		return nil, &nbd.Refusal{Code: nbd.ERR_POLICY, Text: x.a.elsewhere()}
	}
	return &nbd.Export{
		Name: x.a.cfg.Cluster, Description: "Tandem volume of node " + x.a.cfg.Node,
		Size: x.a.disk.Size(), MultiConn: true, Device: device{x.a}, Done: x.done,
	}, nil
}

// elsewhere tells a client where the volume is served. The mutex is held.
func (a *Agent) elsewhere() string {
	rec, _ := a.node.Vote.Record()
	switch {
	case rec == nil:
		return fmt.Sprintf("node %s is Secondary and knows no primary: run `replctl promote` on the node whose data counts", a.cfg.Node)
	case a.node.Vote.Role() == failover.Moving:
		return fmt.Sprintf("node %s is handing over", a.cfg.Node)
	case rec.Primary == a.cfg.Node:
		return fmt.Sprintf("node %s is not serving now; the cluster record names it as the primary", a.cfg.Node)
	}
	return fmt.Sprintf("node %s is Secondary; the primary is node %s", a.cfg.Node, rec.Primary)
}
