package failover

import "fmt"

// A planned move (rule 5.9), told as its messages:
//
//	standby                                  primary
//	  MoveRequest ─────────────────────────▶  in the set, grown, nothing else going on?
//	  ◀───────────────────────── MoveRefused  no
//	                                          Moving: Quiesce (the service stops, everything is
//	                                          completed and flushed on both), then Secondary for good
//	  promise released  ◀──────────────── Go  in this epoch
//	  reads the record, CASes epoch+1
//
// A lost Go costs the rest of the promise, no more: the old primary serves again
// only by its own CAS, and the two CASes meet in the record.

// move is the move that this primary is in the middle of.
type move struct {
	on   bool
	peer int
	n    uint64
}

// askMove asks the primary p to hand over.
func (c *Core) askMove(now int64, p int) {
	c.op.stage = c.op.stage.to(stageMove)
	c.op.peer, c.op.n, c.op.limit = p, c.op.id, now+moveLimit
	switch {
	case c.op.asker >= 0:
		c.op.n = c.op.askN
	case c.op.n == 0:
		c.op.n = c.tag() // nobody waits for it; 0 would mean that nobody asked
	}
	c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: MoveRequest, N: c.op.n, Epoch: c.hard.Epoch}})
	c.progress(c.cfg.Peers[p] + " is asked to stop its service and hand over")
}

// moveRequest is the primary's side.
func (c *Core) moveRequest(now int64, p int, m Msg) {
	name, why := c.cfg.Peers[p], ""
	switch {
	case c.role == Moving && c.move.on && c.move.peer == p:
		return // said twice
	case c.role != Primary || m.Epoch != c.epoch:
		why = c.cfg.Self + " is not primary of that epoch; read the record again"
	case !c.mayTake(now, p):
		why = name + " is not in the in-sync set yet; wait for the resync to end"
	case c.cas.state != casIdle:
		why = fmt.Sprintf("%s is changing the cluster record (%v); try again in a moment", c.cfg.Self, c.cas.change)
	case c.op.kind != noOp && !(c.op.stage == stageHandOver && c.op.peer == p):
		why = c.cfg.Self + " is busy with another request; try again in a moment"
	}
	if why != "" {
		c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: MoveRefused, N: m.N, Epoch: c.hard.Epoch, Text: clip(why)}})
		return
	}
	c.role = c.role.to(Moving)
	c.move = move{on: true, peer: p, n: m.N}
	c.op.limit = 0 // the peer has answered; from here the freeze bounds it
	if c.cfg.Bug == GoBeforeStop {
		c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: Go, N: m.N, Epoch: c.epoch}})
	}
	c.emit(Effect{Kind: Quiesce, Peer: p, Epoch: c.epoch})
}

// mayTake: p could be promoted the moment we stop.
func (c *Core) mayTake(now int64, p int) bool {
	q := &c.peers[p]
	return q.established && q.counted && q.leave == "" && q.lease > now && c.rec != nil && c.rec.Has(c.cfg.Peers[p])
}

// Quiesced answers Quiesce.
func (c *Core) Quiesced(now int64, err error) {
	if c.role != Moving {
		c.advance(now)
		return
	}
	m := c.move
	if err != nil {
		// Nothing was given up yet: it serves on.
		c.role, c.move = c.role.to(Primary), move{}
		text := "the service on " + c.cfg.Self + " could not be stopped, and it is still primary: " + err.Error()
		c.event("%s", text)
		if m.on {
			c.emit(Effect{Kind: Send, Peer: m.peer, Msg: Msg{Kind: MoveRefused, N: m.n, Epoch: c.epoch, Text: clip(text)}})
		}
		if c.op.kind == opDemote {
			if c.op.stage == stageQuiesce {
				text += "; automatic promotion stays paused, `replctl resume` ends that"
			}
			c.finish(now, false, text)
		}
		c.advance(now)
		return
	}
	epoch := c.epoch
	why := "demoted by the operator"
	if q := &c.peers[m.peer]; m.on && !(q.established && q.counted && c.rec.Has(c.cfg.Peers[m.peer])) {
		// The heir went away, or was shrunk out, while we stopped. We have demoted
		// ourselves, so the way back is our own CAS.
		c.stepDown(now, c.cfg.Peers[m.peer]+" went away during the handover", true)
		c.resumeOK = true
		if c.op.kind == opDemote {
			c.finish(now, false, c.cfg.Peers[m.peer]+" went away during the handover; this node becomes primary again")
		}
		c.advance(now)
		return
	}
	if m.on {
		why = "handed over to " + c.cfg.Peers[m.peer]
	}
	c.stepDown(now, why, true)
	if m.on {
		// Only now, when nothing here can serve in this epoch any more.
		c.emit(Effect{Kind: Send, Peer: m.peer, Msg: Msg{Kind: Go, N: m.n, Epoch: epoch}})
		// The field is the peer's. If nothing comes of it, promise 6 wants somebody
		// back; without auto that is the operator's to say.
		c.resumeAt = now + Promise(c.cfg.Lease) + second
	}
	if c.op.kind == opDemote {
		text := "stopped; automatic promotion is paused until `replctl resume` or `replctl promote`"
		if m.on {
			text = c.cfg.Peers[m.peer] + " is taking over"
		}
		c.finish(now, true, text)
	}
	c.advance(now)
}

// released is the standby's side of Go: the old primary has stopped for good in
// the epoch, so what we promised it in this epoch has no more use.
func (c *Core) released(now int64, p int, m Msg) {
	q := &c.peers[p]
	if c.role != Secondary || m.Epoch != c.hard.Epoch || q.followed != m.Epoch || m.Epoch == 0 {
		return
	}
	// Promises of an earlier life are released, too: they were for this epoch, or
	// for one whose lease had to run out before this epoch could begin.
	c.promise, c.startWait = 0, 0
	q.info.Serving, q.followed = false, 0
	switch {
	case m.N == 0:
		// It could not go on, and nobody asked: what becomes of it is decided as
		// if its lease had run out, only sooner.
	case c.op.kind == opPromote && c.op.stage == stageMove && c.op.peer == p:
		if c.op.own == ownMove {
			// Nobody serves now: a pause that was written meanwhile is too late for it.
			c.op.own, c.op.keep = notOwn, true
		}
		c.reread(now)
	case c.op.kind == noOp:
		// Whoever asked is gone, but nobody serves now: somebody must.
		c.promote(now, operation{asker: -1, keep: true})
	}
}

// moveRefused ends the wait of whichever side asked.
func (c *Core) moveRefused(p int, m Msg) {
	op := &c.op
	if op.peer != p || op.n != m.N {
		return
	}
	if op.stage == stageHandOver && op.id == 0 {
		c.peers[p].refusedTill = c.now + refusedFor
	}
	if op.stage == stageMove || op.stage == stageHandOver && c.role == Primary {
		c.finish(c.now, false, c.cfg.Peers[p]+" refuses: "+clip(m.Text))
	}
}

// handOver: the primary's operator wants us to take over.
func (c *Core) handOver(now int64, p int, m Msg) {
	if c.role != Secondary || c.peers[p].followed != c.hard.Epoch || m.Epoch != c.hard.Epoch {
		return
	}
	why := ""
	switch {
	case c.op.kind != noOp:
		why = c.cfg.Self + " is busy with another request; try again in a moment"
	case c.unfitTill > now:
		// Two nodes where it does not start would hand it to and fro for ever.
		why = c.cfg.Self + " could not run the service a moment ago: " + c.unfitWhy
	}
	if why != "" {
		c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: MoveRefused, N: m.N, Epoch: c.hard.Epoch, Text: clip(why)}})
		return
	}
	c.promote(now, operation{asker: p, askN: m.N, keep: true})
}

// Demote is the operator's demote: hand over if somebody can take it, else stop
// and have nobody promote by itself.
func (c *Core) Demote(now int64, op uint64) {
	switch {
	case c.role == Secondary && c.op.kind == noOp:
		c.reply(op, true, c.cfg.Self+" is Secondary already")
	case c.role != Primary || c.op.kind != noOp:
		c.reply(op, false, "another request is being worked on; wait for the end of it and try again")
	default:
		c.op = operation{kind: opDemote, id: op, asker: -1}
		if p := c.heir(now); p >= 0 && c.cfg.Auto {
			c.askToAsk(now, p)
		} else {
			// The pause is written first: once we have stopped, a peer may promote
			// by itself before we get round to it.
			c.reread(now)
		}
	}
	c.advance(now)
}

// unfitFor is for how long a node that has given way does not take the service
// over from one that gives way in turn. It takes over from one that is gone.
const unfitFor = 10 * 60 * second

// refusedFor is for how long a peer that would not take the service over is not asked
// again: each time the steps that do run are stopped for it.
const refusedFor = 60 * second

// GiveWay says that the service does not run here, and why. It answers whether
// an in-sync peer is asked to do better; if not, the node goes on trying.
func (c *Core) GiveWay(now int64, why string) bool {
	c.unfitTill, c.unfitWhy = now+unfitFor, why
	p := -1
	for q := range c.cfg.Peers {
		if p < 0 && c.mayTake(now, q) && c.peers[q].refusedTill <= now {
			p = q
		}
	}
	ok := c.role == Primary && c.op.kind == noOp && c.cfg.Auto && p >= 0 && c.rec.Paused == nil
	if ok {
		c.event("%s is asked to take over, because the service does not run here: %s", c.cfg.Peers[p], why)
		c.op = operation{kind: opDemote, asker: -1}
		c.askToAsk(now, p)
	}
	c.advance(now)
	return ok
}

// Fit says that the service runs here.
func (c *Core) Fit() { c.unfitTill, c.unfitWhy = 0, "" }

// askToAsk has p ask for a move: the one way to hand over, whoever wants it.
func (c *Core) askToAsk(now int64, p int) {
	c.op.stage = c.op.stage.to(stageHandOver)
	c.op.peer, c.op.n, c.op.limit = p, c.op.id, now+moveLimit
	if c.op.n == 0 {
		c.op.n = c.tag()
	}
	c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: HandOver, N: c.op.n, Epoch: c.epoch}})
	c.progress(c.cfg.Peers[p] + " is asked to take over")
}

// heir is a peer that can take over, or -1.
func (c *Core) heir(now int64) int {
	for p := range c.cfg.Peers {
		if c.mayTake(now, p) {
			return p
		}
	}
	return -1
}

// Pause stops automatic promotion in the whole cluster.
func (c *Core) Pause(now int64, op uint64) { c.record(now, op, opPause) }

// Resume allows it again.
func (c *Core) Resume(now int64, op uint64) { c.record(now, op, opResume) }

func (c *Core) record(now int64, op uint64, kind opKind) {
	switch {
	case c.op.kind != noOp:
		c.reply(op, false, "another request is being worked on; wait for the end of it and try again")
	case c.role == Moving && kind == opPause:
		// If the peer went away now, nobody would come back by himself.
		c.reply(op, false, fmt.Sprintf("%s is handing over to %s at this moment; wait for the end of it and try again", c.cfg.Self, c.cfg.Peers[c.move.peer]))
	default:
		c.op = operation{kind: kind, id: op, asker: -1}
		c.reread(now)
	}
	c.advance(now)
}

// amend is the read stage's end for everything but promote.
func (c *Core) amend(now int64) {
	switch {
	case c.rec == nil:
		c.finish(now, false, "there is no cluster record yet; the first `replctl promote` creates it")
	case c.op.kind == opForget:
		c.amendForget(now)
	case c.op.kind == opDemote && c.role != Primary:
		c.finish(now, false, "this node is not primary any more")
	case c.op.kind == opDemote && c.rec.Paused != nil:
		c.quiesce()
	case c.op.kind == opPause && c.rec.Paused != nil:
		c.finish(now, true, "automatic promotion was paused already, on "+c.rec.Paused.By)
	case c.op.kind == opResume && c.rec.Paused == nil:
		c.finish(now, true, "automatic promotion was not paused")
	default:
		change := Pause
		if c.op.kind == opResume {
			change = Resume
		}
		c.op.stage = c.op.stage.to(stageRecord)
		c.cas = cas{state: c.cas.state, change: change, peer: -1, term: c.epoch}
		c.send(now, 0)
	}
}

// recorded: the Pause or Resume is decided.
func (c *Core) recorded(now int64, yes bool) {
	switch {
	case c.op.stage != stageRecord:
	case !yes:
		c.reread(now) // somebody else changed the record; it may even say so now
	case c.op.kind == opDemote && c.role == Primary:
		c.quiesce()
	case c.op.kind == opDemote:
		c.finish(now, false, "this node is not primary any more; automatic promotion is paused, `replctl resume` ends that")
	case c.op.kind == opForget:
		c.finish(now, true, c.op.node+" has left the cluster record")
	case c.op.kind == opPause:
		c.needRead(now) // for its time, which the shell has filled in
		c.finish(now, true, "automatic promotion is paused until `replctl resume` or `replctl promote`")
	default:
		c.finish(now, true, "automatic promotion is on again")
	}
}

// quiesce stops the service without an heir.
func (c *Core) quiesce() {
	c.op.stage = c.op.stage.to(stageQuiesce)
	c.role = c.role.to(Moving)
	c.move = move{}
	c.emit(Effect{Kind: Quiesce, Peer: -1, Epoch: c.epoch})
}
