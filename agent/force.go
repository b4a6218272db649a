package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/agent/explain"
	"tandem/failover"
	"tandem/failover/record"
)

func (a *Agent) handlePromote(ctx context.Context, req control.Request, send func(control.Message) error) error {
	force, off := req.Args["force"] == "true", req.Args["peer-is-off"] == "true"
	if off && !force {
		return &control.Refused{Text: "that the other machine is off counts only together with --force"}
	}
	if force {
		text, err := a.checkForce(ctx, off)
		if err != nil {
			return err
		}
		if text != "" && req.Args["yes"] != "true" {
			return &control.Confirm{Text: text, Node: a.cfg.Node}
		}
		if text != "" && !off {
			if off, err = a.fenceForForce(ctx, send); err != nil {
				return err
			}
		}
	}
	return a.ask(ctx, req.By.String(), send, func(now int64, op uint64) { a.node.Vote.Promote(now, op, force, off) })
}

// fenceForForce has the recorded primary's machine stopped, where there is a fence. That it
// is off for certain spares the wait that is there for one that may still run.
func (a *Agent) fenceForForce(ctx context.Context, send func(control.Message) error) (off bool, err error) {
	a.mu.Lock()
	rec, _ := a.node.Vote.Record()
	a.mu.Unlock()
	if a.others.fencer == nil || rec == nil || rec.Primary == a.cfg.Node {
		return false, nil
	}
	if err := send(control.Message{Kind: control.KindProgress, Text: fmt.Sprintf("the machine of %s is being stopped (fence), for up to %v", rec.Primary, forceFenceLimit)}); err != nil {
		return false, err
	}
	if a.fenceNode(ctx, rec.Primary, forceFenceLimit) {
		return true, send(control.Message{Kind: control.KindProgress, Text: fmt.Sprintf("the machine of %s is off", rec.Primary)})
	}
	return false, send(control.Message{Kind: control.KindProgress, Text: fmt.Sprintf("it is not certain that the machine of %s is off: going on as without the fence", rec.Primary)})
}

// checkForce says what a forced promotion would lose, "" if it would lose
// nothing; or why there will be none, whatever the operator agrees to. The core
// has the last word: it looks at the record again, and refuses while the primary
// answers on the link. This looks wider, over a connection that is no link.
func (a *Agent) checkForce(ctx context.Context, off bool) (string, error) {
	a.mu.Lock()
	s := a.statusLocked(now())
	usable, _, _, _ := a.node.Vol.Copy()
	a.mu.Unlock()
	switch {
	case s.Role == "Primary":
		return "", nil
	case !usable:
		return "", &control.Refused{Text: fmt.Sprintf("this node's copy is %s: it is no state that the data ever had, and --force does not help. Let the resync end (`replctl wait-sync`), or promote the other node", s.Disk)}
	}
	c, cancel := context.WithTimeout(ctx, a.cfg.Failover.Lease/2)
	rec, _, err := a.readRecord(c)
	cancel()
	switch {
	case err != nil:
		return "", &control.Refused{Text: fmt.Sprintf("the witness does not answer (%v), and a promotion has to be written down there; --force does not help. Mend the witness first", err)}
	case rec == nil:
		return "", nil // the first promotion takes nothing from anybody
	}
	old := control.NodeStatus{Node: rec.Primary, Error: "the config does not name it"}
	others := askPeers(ctx, a.cfg, a.where, "")
	for i := range others {
		a.keepWord(&others[i])
		if others[i].Node == rec.Primary {
			old = others[i]
		}
	}
	if rec.Primary != a.cfg.Node {
		if err := answers(&old); err != nil {
			return "", err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.forceText(s, rec, others, &old, off), nil
}

// answers refuses while the recorded primary can be asked.
func answers(old *control.NodeStatus) error {
	s := old.Status
	switch {
	case s == nil:
		return nil
	case s.Role == "Primary":
		return &control.Refused{Text: fmt.Sprintf("node %s is primary and answers: --force is for a primary that is gone. Wait until this node is in sync (`replctl wait-sync`), then `replctl promote` moves the service and loses nothing", old.Node)}
	case s.Disk == "Failed" || s.Disk == "Diskless":
		return nil // it has nothing to serve from
	}
	return &control.Refused{Text: fmt.Sprintf("node %s, the primary in the cluster record, answers, and its copy has what this one lacks: promote it instead (`replctl --node %s promote`), or stop its agent first", old.Node, old.Node)}
}

// forceText is what the operator agrees to. The mutex is held.
func (a *Agent) forceText(s control.Status, rec *failover.Record, others []control.NodeStatus, old *control.NodeStatus, off bool) string {
	var b strings.Builder
	self := a.cfg.Node
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	switch {
	case rec.Has(self) && !s.Marked:
		say("Node %s is in the in-sync set: a plain `replctl promote` loses nothing.", self)
	case rec.Has(self):
		say("Node %s is in the in-sync set, but its host restarted: what was not flushed then may be missing here.", self)
	case !a.chronicle.left.IsZero():
		say("Node %s was last in sync at %s; since then the in-sync set is %s.", self, local(a.chronicle.left), strings.Join(rec.InSync, ", "))
	default:
		say("Node %s is not in sync, and since when is not known; the in-sync set is %s since %s at the latest.", self, strings.Join(rec.InSync, ", "), local(rec.ChangedAt))
	}
	if !rec.Has(self) {
		a.sayMissing(say, s, rec, others)
	}
	if rec.Primary != self {
		say("%s", stopped(old, off))
	}
	return b.String()
}

// sayMissing says how much is known to be missing: what the others say now, what
// they said last, and what this node itself was not sure of.
func (a *Agent) sayMissing(say func(string, ...any), s control.Status, rec *failover.Record, others []control.NodeStatus) {
	known := false
	for _, n := range others {
		w, ok := a.words[n.Node]
		if !ok || !w.said && n.Status == nil {
			continue
		}
		known = true
		when := "said last, at " + local(w.at) + ","
		if n.Status != nil {
			when = "says"
		}
		say("Node %s %s that %s lacks %s.", n.Node, when, a.cfg.Node, explain.Bytes(w.lacks))
	}
	if !known {
		say("What was written on %s since then is not here and will be lost. How much that is, nobody who answers knows.", strings.Join(rec.InSync, " and "))
	} else {
		say("What was written on %s after that is not here either. All of this will be lost.", strings.Join(rec.InSync, " and "))
	}
	for _, p := range s.Peers {
		if p.OutOfSyncBytes > 0 {
			say("Up to %s on this node may differ from %s's copy; %s's version of it will be lost.", explain.Bytes(p.OutOfSyncBytes), p.Node, p.Node)
		}
	}
}

// stopped says what is known of the old primary.
func stopped(old *control.NodeStatus, off bool) string {
	switch {
	case off:
		return fmt.Sprintf("You say that the machine of node %s is off: nothing is waited for. If it is not, both copies take writes.", old.Node)
	case old.Status != nil:
		return fmt.Sprintf("Node %s answers and does not serve: its disk is %s.", old.Node, old.Status.Disk)
	case old.NoAgent:
		return fmt.Sprintf("Node %s: its host answers that no agent listens there, so it is stopped, if its address in the config is right.", old.Node)
	}
	return fmt.Sprintf("Whether node %s is stopped is not known (%s). If it runs and can reach neither us nor the witness, both copies take writes.", old.Node, old.Error)
}

func local(t time.Time) string { return t.Local().Format(time.DateTime) }

// handleForget takes a node that is gone for good out of the cluster.
func (a *Agent) handleForget(ctx context.Context, req control.Request, send func(control.Message) error) error {
	node := req.Args["node"]
	if !record.ValidName(node) {
		return &control.Refused{Text: fmt.Sprintf("%q is not a node name", node)}
	}
	if node == a.cfg.Node {
		return &control.Refused{Text: fmt.Sprintf("%s is this node itself; a node is forgotten by the ones that stay", node)}
	}
	_, named := a.cfg.Peer(node)
	if named {
		if n := askPeer(ctx, a.cfg, a.where, node, ""); n.Status != nil {
			return &control.Refused{Text: fmt.Sprintf("node %s answers: only a node that is gone for good is forgotten. Stop its agent first", node)}
		}
	}
	if req.Args["yes"] != "true" {
		text := fmt.Sprintf("Node %s leaves the in-sync set and the cluster record, and what this node knows of its copy is dropped.\n"+
			"It is no member any more; should it come back after all, its copy is compared and filled in full.\n", node)
		return &control.Confirm{Text: text, Node: node}
	}
	text := ""
	err := a.ask(ctx, req.By.String(), func(m control.Message) error {
		if m.Kind == control.KindResult {
			text = m.Text
			return nil
		}
		return send(m)
	}, func(now int64, op uint64) { a.node.Vote.Forget(now, op, node) })
	if err != nil {
		return err
	}
	if named {
		text += fmt.Sprintf("; now take it out of `peers` in %s (and in the other nodes' configs) and restart the agent: what is kept of its copy is dropped then, and before that it could come back", a.cfg.File)
	} else if err := a.dropped(ctx, node); err != nil {
		return err
	} else {
		text += "; nothing is kept of its copy"
	}
	return send(control.Message{Kind: control.KindResult, Text: text})
}

// dropped waits until the metadata keep nothing of node; watch sees to it.
func (a *Agent) dropped(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("the cluster record has changed, but the metadata still name the node: run it again"))
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		a.mu.Lock()
		kept := slices.Contains(a.node.Vol.Kept(), node)
		a.mu.Unlock()
		if !kept {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
		}
	}
}
