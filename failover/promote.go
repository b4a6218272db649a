package failover

import (
	"fmt"
	"time"
)

// opKind is what an operation is for.
type opKind uint8

const (
	noOp opKind = iota
	opPromote
	opDemote
	opPause
	opResume
	opForget
)

// operation is what the node is busy with for an operator, for a peer that
// hands over, or for itself. There is one at a time.
type operation struct {
	kind  opKind
	stage stage
	id    uint64 // the operator's request; 0: nobody waits for a reply

	own   owned // why this node does it by itself, if it does
	force bool
	off   bool // the operator says that the old primary's machine is off
	// overrule: the claim goes against the record. Only then does force mean
	// anything, and only then must the old primary be given time to notice.
	overrule bool

	node  string // opForget: who is gone
	asker int    // the peer whose HandOver this is, or -1
	askN  uint64 // and its number
	peer  int    // stageMove, stageHandOver: who was asked
	n     uint64 // and under which number

	// keep: no operator has asked for this promotion, so it is not what ends a pause.
	keep bool

	read       uint64 // stageRead: the read that must have answered
	limit      int64  // when the stage ends by itself; 0: it does not
	progressAt int64  // when the operator hears from us again; 0: not
	// unbegun is when this life first saw that the record names us in a term
	// which we never began; 0 if our claim replaces no such record.
	unbegun int64
	// markOK is the version of the record for which rule 5.11 let a marked node
	// go on. The preparation drops the very links over which its peers were seen
	// to be marked, too; it stands as long as the record does, because a mark goes
	// only with a change of the record.
	markOK string
	change Change // stageHold, stageBegin: what was won
	epoch  uint64 // and the term
}

// forceHold is how long a claim that overruled the record waits before it
// begins: the old primary may be alone, without a lease to run out. It reads
// the record at least once in a lease, with a limit of half a lease on the
// answer; so it has noticed 1.5·L after the claim landed, and the rest is margin.
func (c *Core) forceHold() int64 { return c.cfg.Lease + Promise(c.cfg.Lease) }

// Promote is the operator's promote.
func (c *Core) Promote(now int64, op uint64, force, off bool) {
	next := operation{id: op, force: force, off: off, asker: -1}
	switch {
	case c.role == Primary:
		c.reply(op, true, c.cfg.Self+" is primary already")
	case c.role == Moving:
		c.reply(op, false, fmt.Sprintf("%s is handing over to %s at this moment; wait for the end of it and try again", c.cfg.Self, c.cfg.Peers[c.move.peer]))
	case c.op.kind == opPromote && c.op.id == 0 && c.op.stage >= stageCandidate && !force:
		c.op.id, c.op.keep = op, false // what goes on by itself is what the operator asks for
	case c.op.kind == opPromote && c.op.id == 0 && c.op.stage < stageCandidate:
		c.op = operation{asker: -1}
		c.promote(now, next)
	case c.op.kind != noOp:
		c.reply(op, false, "another request is being worked on; wait for the end of it and try again")
	default:
		c.promote(now, next)
	}
	c.advance(now)
}

// promote starts an operation that is to make this node primary.
func (c *Core) promote(now int64, next operation) {
	next.kind = opPromote
	c.op = next
	if why := c.copyTrouble(); why != "" {
		c.finish(now, false, why)
		return
	}
	c.reread(now)
}

// copyTrouble says why our data cannot be served, whatever the record says.
func (c *Core) copyTrouble() string {
	switch {
	case !c.started || !c.copy.known:
		return "this node is still starting; try again in a moment"
	case !c.copy.usable:
		return "this node's copy is Inconsistent or its disk failed: it is no state that the data ever had. Let the resync end, or promote the other node; --force does not help here"
	}
	return ""
}

// reread takes the operation to stageRead, with a read that starts from now on.
func (c *Core) reread(now int64) {
	c.op.stage = c.op.stage.to(stageRead)
	c.op.read, c.op.limit, c.op.progressAt = c.reads+1, 0, 0
	if c.op.own != ownResume && c.op.own != ownTakeOver || c.cfg.Bug == PromoteOnOldRecord {
		c.needRead(now) // those two have read it already
	}
}

// stepOp carries the operation on as far as it goes now.
func (c *Core) stepOp(now int64) {
	switch c.op.stage {
	case stageRead:
		switch {
		case c.bad >= c.op.read:
			text := fmt.Sprintf("the cluster record cannot be read, and nothing is changed without it: %v", c.trouble)
			if c.op.force {
				text += ". --force does not help here: the claim has to be written down"
			}
			c.finish(now, false, text)
		case c.good < c.op.read || c.cas.state != casIdle:
			// An earlier change of ours has to be decided first.
		case c.op.kind == opPromote:
			c.decide(now)
		default:
			c.amend(now)
		}
	case stageWait:
		c.wait(now)
	case stageMove:
		q := &c.peers[c.op.peer]
		switch {
		case !q.up || !q.info.Serving:
			c.reread(now) // it is gone: wait out the promise instead
			c.stepOp(now)
		case now >= c.op.limit:
			c.finish(now, false, fmt.Sprintf("%s did not hand over within %s and is still primary; look at `replctl status` there and try again", c.cfg.Peers[c.op.peer], span(moveLimit)))
		}
	case stageHold:
		c.hold(now)
	case stageHandOver:
		if c.op.limit != 0 && now >= c.op.limit {
			c.finish(now, false, fmt.Sprintf("%s did not take over within %s; this node is still primary. Look at `replctl status` there and try again", c.cfg.Peers[c.op.peer], span(moveLimit)))
		}
	}
}

// decide looks at a record that was read for this operation and takes the way
// that the design has for the case. It is the whole of rules 5.4, 5.8 and 5.9
// for the one who wants to become primary.
func (c *Core) decide(now int64) {
	if why := c.copyTrouble(); why != "" {
		c.finish(now, false, why)
		return
	}
	if c.rec == nil {
		c.create(now)
		return
	}
	if why := c.stillDue(now); why != "" {
		c.finish(now, false, why)
		return
	}
	why, never := c.obstacle()
	if never {
		c.finish(now, false, why)
		return
	}
	if p := c.servingPeer(); p >= 0 {
		name := c.cfg.Peers[p]
		switch {
		case why != "":
			c.finish(now, false, fmt.Sprintf("%s is primary and answers, and this node cannot take over from it: %s. Wait for the resync to end (`replctl wait-sync`)", name, why))
		case c.op.own == ownResume || c.op.own == ownTakeOver:
			c.finish(now, false, name+" serves")
		case c.peers[p].followed != c.hard.Epoch:
			c.finish(now, false, name+" is primary and answers, but the session with it does not stand yet; try again in a moment")
		default:
			c.askMove(now, p)
		}
		return
	}
	c.op.overrule, c.op.markOK = false, c.version
	if why != "" {
		c.op.markOK = ""
		if !c.op.force && c.op.own != notOwn {
			c.finish(now, false, why)
			return
		}
		if !c.op.force {
			c.finish(now, false, fmt.Sprintf("%s. Bring back what is missing, or accept the loss with `replctl promote --force`", why))
			return
		}
		c.op.overrule = true
	}
	if c.promiseEnd() > now && c.op.own != notOwn && c.cfg.Bug != TakeOverEarly {
		c.finish(now, false, "a primary has asked for a lease meanwhile")
		return
	}
	if c.promiseEnd() > now && !(c.op.force && c.op.off) && c.op.own == notOwn {
		c.op.stage = c.op.stage.to(stageWait)
		c.op.limit, c.op.progressAt = c.promiseEnd(), now
		c.wait(now)
		return
	}
	c.candidate(now, Promote)
}

func (c *Core) candidate(now int64, change Change) {
	c.op.stage = c.op.stage.to(stageCandidate)
	c.op.limit, c.op.progressAt = 0, 0
	c.term = Term{LastGrant: c.promisedAt, Claimed: now}
	if c.op.own == ownTakeOver && c.rec != nil && c.rec.Primary != c.cfg.Self {
		c.term.Lost = c.rec.Primary
	}
	c.begin(now, change, -1)
}

// create is the first promotion in a cluster that has no record. judge has
// seen to it that this node's metadata has never seen one (rule 5.12).
func (c *Core) create(now int64) {
	for p, name := range c.cfg.Peers {
		if q := &c.peers[p]; q.up && q.info.Epoch > 0 {
			c.finish(now, false, fmt.Sprintf("the witness holds no cluster record, but %s knows one of epoch %d; the two nodes use different witnesses, look at `witness` in both configs", name, q.info.Epoch))
			return
		}
	}
	c.candidate(now, Create)
}

// wait lets our own promise run out: until then the old primary may hold a
// lease from us.
func (c *Core) wait(now int64) {
	end := c.promiseEnd()
	if p := c.servingPeer(); p >= 0 || end <= now {
		// The primary is back, or the time is over. Either way the record is
		// read again before anything is done.
		c.reread(now)
		return
	}
	c.op.limit = end
	c.tell(now, "waiting "+span(end-now)+" for the lease to run out")
}

// tell repeats a text once a second.
func (c *Core) tell(now int64, text string) {
	if c.op.progressAt <= now {
		c.op.progressAt = now + second
		c.progress(text)
	}
}

// servingPeer is a peer that says it serves in the highest epoch we know, or -1.
func (c *Core) servingPeer() int {
	for p := range c.cfg.Peers {
		if q := &c.peers[p]; q.up && q.info.Serving && q.info.Epoch >= c.hard.Epoch {
			return p
		}
	}
	return -1
}

// obstacle says why the record does not let this node be primary; "" if it
// does. never: an operator's force does not help.
func (c *Core) obstacle() (why string, never bool) {
	r, self := c.rec, c.cfg.Self
	m, ok := r.Member(self)
	switch {
	case ok && m.DiskID != c.cfg.DiskID:
		return "the record knows another disk for " + self + " than the one it has, so its data are from some other time; let it be resynced from the primary", true
	case c.cfg.Bug == PromoteWithoutSet, c.cfg.Bug == PromoteOnOldRecord && c.op.own == ownTakeOver:
		return "", false
	case !ok || !r.Has(self):
		since := ""
		if !r.ChangedAt.IsZero() {
			since = " (as of " + r.ChangedAt.UTC().Format(time.RFC3339) + ")"
		}
		return fmt.Sprintf("%s is not in the in-sync set, which names %s%s: acknowledged writes may be missing here", self, list(r.InSync), since), false
	case c.copy.stale:
		return self + "'s copy is older than what its peers remember of it: acknowledged writes may be missing here", false
	case r.Generation != c.copy.generation && r.Generation != c.copy.proposed:
		// Proposed counts: the generation is durable as proposed before the CAS
		// that names it is sent, and a crash may come before it is adopted.
		return fmt.Sprintf("%s's copy is of generation %016x, the record names %016x: acknowledged writes may be missing here", self, c.copy.generation, r.Generation), false
	case c.hard.Marked && !c.markAllows() && (c.version == "" || c.op.markOK != c.version):
		return self + "'s host restarted with a volatile disk cache, so acknowledged writes may be missing here until a peer has resynced it; start " + c.others(r.InSync) + " first", false
	}
	return "", false
}

// markAllows: rule 5.11's two ways for a marked node. Alone, nobody has more
// than it; all marked, nobody has, and the recorded primary's log is the one
// that is complete.
func (c *Core) markAllows() bool {
	r := c.rec
	if len(r.InSync) == 1 && r.InSync[0] == c.cfg.Self {
		return true
	}
	if r.Primary != c.cfg.Self {
		return false
	}
	for _, n := range r.InSync {
		if n == c.cfg.Self {
			continue
		}
		p := c.index(n)
		if p < 0 || !c.peers[p].up || c.peers[p].info.Serving || !c.peers[p].info.Marked {
			return false
		}
	}
	return true
}

// stillClaimable repeats, after the preparation, what may have changed in it.
func (c *Core) stillClaimable() bool {
	switch {
	case c.copyTrouble() != "" || c.trouble != nil:
		return false
	case c.cas.change == Create:
		return c.rec == nil && c.hard.Epoch == 0
	case c.rec == nil || c.rec.Epoch < c.hard.Epoch:
		return false // somebody knows a higher epoch than we have read
	case c.stillDue(c.now) != "":
		return false
	}
	why, never := c.obstacle()
	return why == "" || c.op.overrule && !never && c.servingPeer() < 0
}

// answering is a peer on a standing link that says it serves, in whatever epoch,
// or -1.
func (c *Core) answering() int {
	for p := range c.cfg.Peers {
		if c.peers[p].up && c.peers[p].info.Serving {
			return p
		}
	}
	return -1
}

// won: the claim is decided yes. The record names us, and still nothing is
// served: the note has to be durable first (rule 5.8).
func (c *Core) won(now int64, k cas) {
	c.op.epoch, c.op.change = k.next.Epoch, k.change
	c.term.Epoch, c.term.Won = k.next.Epoch, now
	c.op.stage = c.op.stage.to(stageHold)
	c.op.limit, c.op.progressAt = 0, now
	switch {
	case c.op.force && c.op.off:
		// The operator answers for it.
	case c.op.overrule:
		c.op.limit = now + c.forceHold()
	case c.op.unbegun != 0 && c.cfg.Bug != NoClaimHold:
		// The wait of a forced claim must not end with the agent that made it:
		// 1 B is forced, its claim lands. 2 B's agent restarts, sees itself as the
		// set of one, and promotes plainly. 3 The old primary, alone and
		// needing no lease, has not read the record yet: both serve.
		c.op.limit = c.op.unbegun + c.forceHold()
	}
	c.event("the record names this node as primary of epoch %d", c.op.epoch)
}

// hold waits until the primary that was overruled has noticed, then has the
// volume begin.
func (c *Core) hold(now int64) {
	switch {
	case c.hard.Epoch > c.op.epoch || !c.copy.usable:
		c.role = c.role.to(Secondary)
		c.emit(Effect{Kind: Abort, Peer: -1, Change: c.op.change, Epoch: c.op.epoch})
		why := "another node became primary at once"
		if !c.copy.usable {
			why = "the local disk failed at that moment; the record names this node, so mend it, or promote another with --force"
		}
		c.finish(now, false, why)
	case (c.op.overrule || c.op.unbegun != 0) && c.answering() >= 0:
		// It was not there when the operator asked, and is back now. The news of our
		// claim ends its term; until it says so the time alone is no proof.
		c.tell(now, "the claim is written; waiting for "+c.cfg.Peers[c.answering()]+", which is back, to stop")
	case now < c.op.limit:
		c.tell(now, "the claim is written; waiting "+span(c.op.limit-now)+" for the old primary to notice it")
	case c.persistTag == 0:
		// Apply carries the hard state itself: an older Persist still under way
		// could land after it.
		c.op.stage = c.op.stage.to(stageBegin)
		c.op.limit, c.op.progressAt = 0, 0
		c.apply(c.op.epoch)
	}
}

func (c *Core) apply(epoch uint64) {
	c.hard.Epoch, c.hard.Served, c.hard.Marked = epoch, epoch, false
	c.writing, c.applying = c.hard, true
	c.emit(Effect{Kind: Apply, Peer: -1, Change: c.op.change, Epoch: epoch, Hard: c.hard})
}

// Began answers Apply(Promote|Create): hard state and generation are durable.
func (c *Core) Began(now int64) {
	if c.op.stage != stageBegin || !c.applying {
		c.advance(now)
		return
	}
	c.applying, c.durable = false, c.writing
	c.role = c.role.to(Primary)
	c.epoch = c.op.epoch
	c.term.Began = now
	for p := range c.cfg.Peers {
		q := &c.peers[p]
		q.established, q.counted, q.caughtUp, q.leave, q.lease, q.sessionAt, q.growAt = false, false, false, "", 0, now, 0
	}
	c.frozenSince, c.move = 0, move{}
	c.needRead(now)
	why := c.termOver()
	switch {
	case c.hard.Epoch > c.epoch:
		why = "another node became primary at once"
	case !c.copy.usable:
		why = "the local disk failed at that moment"
	}
	if why != "" {
		// It happened while the volume was at it. Nothing was served.
		c.stepDown(now, why, false)
		c.finish(now, false, why+"; look at `replctl status`")
	} else {
		c.serve()
		c.event("primary of epoch %d", c.epoch)
		c.finish(now, true, fmt.Sprintf("%s is primary of epoch %d", c.cfg.Self, c.epoch))
	}
	c.advance(now)
}

// lost: our claim is decided no, or was given up for another look.
func (c *Core) lost(now int64, change Change, why string) {
	switch {
	case c.op.stage != stageCandidate:
	case change == Create && c.rec != nil:
		c.finish(now, false, fmt.Sprintf("%s is already the truth: it created the cluster record first, and this node is filled from it", c.rec.Primary))
	case c.op.own != notOwn:
		c.finish(now, false, why)
	default:
		// What the record says now tells the operator why, or that it is worth
		// another try.
		c.progress(why + "; looking at the record again")
		c.reread(now)
	}
}

// mayResume says whether this node, the recorded primary, may come back by
// itself: it began the recorded term, and since then nobody has told it to stop.
func (c *Core) mayResume() bool {
	return c.resumeOK && c.servedLast() && c.rec.Paused == nil && !c.hard.Marked && c.copy.known && c.copy.usable && !c.copy.stale &&
		c.rec.Has(c.cfg.Self) && (c.rec.Generation == c.copy.generation || c.rec.Generation == c.copy.proposed)
}

// named is what must never be: see NamedIsEnough.
func (c *Core) named(now int64) {
	if c.cfg.Bug != NamedIsEnough || c.role != Secondary || c.cas.state != casIdle || c.op.kind != noOp || c.applying ||
		c.persistTag != 0 || c.rec == nil || c.rec.Primary != c.cfg.Self {
		return
	}
	c.role = Candidate
	c.op = operation{kind: opPromote, stage: stageBegin, own: ownResume, asker: -1, change: Promote, epoch: c.rec.Epoch}
	c.apply(c.rec.Epoch)
}

// Cancel says that the operator of request op went away. What has not touched
// the record ends; what has goes on without a reply, because it must be decided.
func (c *Core) Cancel(op uint64) {
	if op == 0 || c.op.kind == noOp || c.op.id != op {
		return
	}
	c.op.id = 0
	switch c.op.stage {
	case stageRead, stageWait, stageMove, stageHandOver:
		// A Go that is under way is still followed by a candidate.
		c.finish(c.now, false, "cancelled")
	case stageRecord:
		if c.op.kind == opDemote {
			// The pause has to be decided, perhaps much later; nobody wants the
			// service to stop then.
			c.op.kind = opPause
		}
	case stageCandidate:
		if k := c.cas; k.state == casPreparing {
			c.cas.state = k.state.to(casIdle)
			c.role = c.role.to(Secondary)
			c.emit(Effect{Kind: Abort, Peer: -1, Change: k.change, Epoch: c.Epoch(), Text: "cancelled"})
			c.finish(c.now, false, "cancelled")
		}
	}
	c.advance(c.now)
}

// finish ends the operation.
func (c *Core) finish(now int64, ok bool, text string) {
	op := c.op
	c.op = operation{stage: op.stage.to(stageNone), asker: -1}
	c.reply(op.id, ok, text)
	if ok {
		c.ownTrouble = ""
		return
	}
	if op.own != notOwn {
		c.resumeAt = max(c.resumeAt, now+retryTakeOver)
		if text != c.ownTrouble { // once, not at every attempt
			c.event("not primary by itself: %s", text)
		}
		c.ownTrouble = text
	}
	if op.asker >= 0 && c.peers[op.asker].up {
		c.emit(Effect{Kind: Send, Peer: op.asker, Msg: Msg{Kind: MoveRefused, N: op.askN, Epoch: c.hard.Epoch, Text: clip(text)}})
	}
}

func (c *Core) reply(op uint64, ok bool, text string) {
	if op != 0 {
		c.emit(Effect{Kind: Reply, Peer: -1, Tag: op, OK: ok, Text: text})
	}
}

func (c *Core) progress(text string) {
	if c.op.id != 0 {
		c.emit(Effect{Kind: Progress, Peer: -1, Tag: c.op.id, Text: text})
	}
}

// others lists the names but ours.
func (c *Core) others(names []string) string {
	var o []string
	for _, n := range names {
		if n != c.cfg.Self {
			o = append(o, n)
		}
	}
	if len(o) == 0 {
		return "its peer"
	}
	return list(o)
}

func list(names []string) string {
	s := ""
	for i, n := range names {
		switch {
		case i > 0 && i == len(names)-1:
			s += " and "
		case i > 0:
			s += ", "
		}
		s += n
	}
	return s
}
