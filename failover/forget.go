package failover

import (
	"slices"

	"tandem/failover/record"
)

// Forget is the operator's word that a node will not come back: it leaves the
// in-sync set, if it is still in it, and the members. Nothing is dropped of what
// the volume knows of its copy; that is the shell's to do when the answer is yes.
//
//	read ─▶ (primary: shrink, read) ─▶ record ─▶ none
//
// A node that answers is not forgotten: it would be back in the set with the next
// grow, and an operator who means another node should hear of it.
func (c *Core) Forget(now int64, op uint64, node string) {
	switch {
	case node == c.cfg.Self:
		c.reply(op, false, node+" is this node itself; a node is forgotten by the ones that stay")
	case c.op.kind != noOp:
		c.reply(op, false, "another request is being worked on; wait for the end of it and try again")
	default:
		c.op = operation{kind: opForget, id: op, asker: -1, node: node}
		c.reread(now)
	}
	c.advance(now)
}

// amendForget is the read stage's end.
func (c *Core) amendForget(now int64) {
	node := c.op.node
	p := c.index(node)
	_, member := c.rec.Member(node)
	switch {
	case p >= 0 && c.peers[p].up:
		// Also while its shrink goes on: it is back.
		if c.leading() && c.peers[p].leave == leaveForgotten {
			c.peers[p].leave = ""
		}
		c.finish(now, false, node+" answers: only a node that is gone for good is forgotten. Stop its agent first")
	case c.rec.Primary == node:
		c.finish(now, false, node+" is the primary in the cluster record; promote another node first")
	case c.rec.Has(node) && (p < 0 || c.role != Primary || !c.peers[p].counted):
		// Nobody but the primary takes a node out of the set: it holds completions
		// meanwhile, and the set has a generation of its own after it.
		c.finish(now, false, node+" is in the in-sync set, and only the primary takes it out: run this on "+c.rec.Primary)
	case c.rec.Has(node):
		c.peers[p].leave = leaveForgotten
		c.op.read = c.reads + 1
		c.needRead(now)
	case !member:
		c.finish(now, true, "the cluster record does not name "+node)
	default:
		c.op.stage = c.op.stage.to(stageRecord)
		c.cas = cas{state: c.cas.state, change: Forget, peer: -1, term: c.epoch}
		c.send(now, 0)
	}
}

// leaveForgotten is why a node that is forgotten has to leave the set.
const leaveForgotten = "an operator says that it is gone for good"

// withoutMember is the record's change.
func (c *Core) withoutMember(r *Record) {
	node := c.op.node
	r.Members = slices.DeleteFunc(r.Members, func(m record.Member) bool { return m.Node == node })
	r.Reason = node + " was forgotten on " + c.cfg.Self
}
