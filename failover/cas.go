package failover

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"tandem/failover/record"
)

var errNoGeneration = errors.New("no generation was prepared")

// cas is the one change of the record that this node has under way.
type cas struct {
	state     casState
	change    Change
	peer      int    // of Shrink and Grow, else -1
	term      uint64 // our epoch as primary when it began: it means something only there
	next      *Record
	expect    string // the version it replaces; "" for Create
	tag       uint64
	retryAt   int64
	backoff   int64
	sentAt    int64 // the last send
	notBefore int64 // a failed preparation is not repeated at once
}

// begin starts a change that the volume has to prepare.
func (c *Core) begin(now int64, change Change, p int) {
	if change == Promote || change == Create {
		// From here on we refuse the old epoch, grants included, until it is
		// decided: a promise given now would run into our own term.
		c.role = c.role.to(Candidate)
		for i := range c.cfg.Peers {
			c.peers[i].followed, c.peers[i].established = 0, false
		}
	}
	c.cas = cas{state: c.cas.state.to(casPreparing), change: change, peer: p, term: c.epoch}
	c.emit(Effect{Kind: Prepare, Peer: p, Change: change, Epoch: c.Epoch()})
}

// Prepared answers Prepare. generation is durable as proposed.
func (c *Core) Prepared(now int64, ch Change, p int, generation uint64, err error) {
	k := &c.cas
	if k.state != casPreparing || k.change != ch || (ch == Shrink || ch == Grow) && k.peer != p {
		c.advance(now)
		return
	}
	if err == nil && generation == 0 {
		err = errNoGeneration
	}
	switch {
	case err != nil:
		c.giveUp(now, err.Error(), false)
	case ch == Shrink && !c.mustShrink(now, k.peer):
		c.giveUp(now, "it is back", true)
	case (ch == Promote || ch == Create) && !c.stillClaimable():
		c.giveUp(now, "the record or this node's copy has changed meanwhile", true)
	default:
		c.send(now, generation)
	}
	c.advance(now)
}

// mustShrink: p is still in the way, after the preparation as before it.
func (c *Core) mustShrink(now int64, p int) bool {
	q := &c.peers[p]
	return q.leave != "" || !q.established || q.lease <= now
}

// giveUp ends a change whose CAS was never sent. again: an operator's claim
// looks at the record once more; a disk that cannot flush would only fail again.
func (c *Core) giveUp(now int64, why string, again bool) {
	k := c.cas
	c.cas.state = k.state.to(casIdle)
	c.cas.notBefore = now + retryFirst
	c.emit(Effect{Kind: Abort, Peer: k.peer, Change: k.change, Epoch: k.term, Text: why})
	switch k.change {
	case Grow:
		// The volume counts it on, and so do we: only Apply(Shrink) ends that.
		c.peers[k.peer].growAt = now + retryLast
		c.event("taking %s into the in-sync set was given up: %s", c.cfg.Peers[k.peer], why)
	case Shrink:
		c.event("taking %s out of the in-sync set was given up: %s", c.cfg.Peers[k.peer], why)
	case Promote, Create:
		c.role = c.role.to(Secondary)
		if again {
			c.lost(now, k.change, why)
		} else {
			c.finish(now, false, "the volume could not prepare the promotion: "+why)
		}
	}
}

// send composes the record and sends it for the first time.
func (c *Core) send(now int64, generation uint64) {
	k := &c.cas
	k.next = c.compose(k.change, k.peer, generation)
	k.expect = c.version
	if k.change == Create {
		k.expect = ""
	}
	if k.change == Promote && c.rec.Primary == c.cfg.Self && c.rec.Epoch != c.hard.Served {
		c.op.unbegun = max(1, c.claimSeen)
	}
	c.resend(now)
	if c.cfg.Bug == ShrinkAfterAck && k.change == Shrink {
		c.peers[k.peer].counted = false
		c.emit(Effect{Kind: Apply, Peer: k.peer, Change: Shrink, Epoch: k.term})
	}
}

// resend sends the CAS, the same each time: same expected version, same nonce.
// So the sends cannot both land, and whichever lands is recognised.
func (c *Core) resend(now int64) {
	k := &c.cas
	// Reads and CASes do not overlap: an answer from before a CAS would look
	// like a register that was put back.
	c.abandonRead(now)
	k.state = k.state.to(casSent)
	k.tag, k.sentAt = c.tag(), now
	if k.backoff > 0 && c.cfg.Bug == RetryForgetsNonce {
		r := k.next.Clone()
		r.Nonce = c.fresh(r.Nonce)
		k.next = &r
	}
	c.emit(Effect{Kind: CAS, Peer: -1, Tag: k.tag, Change: k.change, Epoch: k.next.Epoch, Version: k.expect, Record: k.next})
}

// compose derives the next record from the last one. It never adds a name but
// the one that the change is about: a peer that is counted only because a grow
// was decided no must not slip in by another change.
func (c *Core) compose(change Change, p int, generation uint64) *Record {
	r := Record{Version: record.Version, Cluster: c.cfg.Cluster}
	if change != Create {
		r = c.rec.Clone()
	}
	self := c.cfg.Self
	switch change {
	case Create:
		r.ClusterID, r.Epoch, r.Primary, r.InSync, r.Generation = c.fresh(0), 1, self, []string{self}, generation
		r.Members = setMember(nil, self, c.cfg.DiskID)
		r.Reason = "the first promotion made " + self + "'s data the truth"
	case Promote:
		r.Reason = fmt.Sprintf("%s took over from %s", self, r.Primary)
		switch {
		case r.Primary == self && c.op.own != notOwn:
			r.Reason = self + " came back"
		case c.op.own == ownTakeOver:
			r.Reason = fmt.Sprintf("%s took over by itself from %s, which had asked for no lease for %s", self, r.Primary, span(c.now-c.promisedAt))
			if c.promisedAt == 0 {
				r.Reason = fmt.Sprintf("%s took over by itself from %s, which does not serve", self, r.Primary)
			}
		case c.op.overrule:
			r.Reason = fmt.Sprintf("%s was forced to take over from %s", self, r.Primary)
		}
		r.Epoch++
		r.Primary, r.InSync, r.Generation = self, []string{self}, generation
		if !c.op.keep {
			r.Paused = nil
		}
		r.Members = setMember(r.Members, self, c.cfg.DiskID)
	case Shrink:
		name := c.cfg.Peers[p]
		r.InSync = slices.DeleteFunc(r.InSync, func(n string) bool { return n == name })
		r.Generation = generation
		r.Reason = name + " does not answer"
		if w := c.peers[p].leave; w != "" {
			r.Reason = name + " has to leave: " + w
		}
	case Grow:
		name := c.cfg.Peers[p]
		if !slices.Contains(r.InSync, name) {
			r.InSync = append(r.InSync, name)
			slices.Sort(r.InSync)
		}
		if id := c.peers[p].info.DiskID; id != 0 {
			r.Members = setMember(r.Members, name, id)
		}
		r.Generation = generation
		r.Reason = name + " has caught up"
	case Pause:
		r.Paused = &record.Paused{By: self}
		r.Reason = "automatic promotion was paused on " + self
	case Resume:
		r.Paused = nil
		r.Reason = "automatic promotion was resumed on " + self
	case Forget:
		c.withoutMember(&r)
	}
	r.Serial++
	r.Nonce = c.fresh(r.Nonce)
	r.ChangedBy = self
	return &r
}

func setMember(ms []record.Member, node string, disk uint64) []record.Member {
	i, ok := slices.BinarySearchFunc(ms, node, func(m record.Member, n string) int { return strings.Compare(m.Node, n) })
	if ok {
		ms[i].DiskID = disk
		return ms
	}
	return slices.Insert(ms, i, record.Member{Node: node, DiskID: disk})
}

// fresh draws a random number that is neither zero nor not.
func (c *Core) fresh(not uint64) uint64 {
	n := c.cfg.Rand()
	if n == 0 || n == not {
		n = not + 1
	}
	return max(n, 1)
}

// CASDone answers CAS.
func (c *Core) CASDone(now int64, tag uint64, outcome Outcome, version string) {
	k := &c.cas
	if k.state != casSent || tag != k.tag {
		c.advance(now)
		return
	}
	c.looked = max(c.looked, k.sentAt)
	if outcome == Won {
		c.trouble = nil
		c.adopt(now, k.next, version)
		c.decided(now, true)
	} else {
		// Neither answer decides. Unknown: it may have landed or land yet.
		// Conflict: an earlier send may have landed.
		k.state = k.state.to(casUnknown)
		if outcome == Unknown && c.cfg.Bug == UnknownIsLost {
			c.decided(now, false)
		}
		c.needRead(now)
		if outcome == Unknown && c.op.stage == stageCandidate {
			c.progress("the witness did not answer the claim; until it does this node neither serves nor follows the old primary")
		}
	}
	c.advance(now)
}

// decided ends a change: yes, the record was ours; or no, it never will be.
func (c *Core) decided(now int64, yes bool) {
	k := c.cas
	c.cas = cas{state: k.state.to(casIdle), peer: -1}
	ours := c.leading() && k.term == c.epoch
	switch k.change {
	case Shrink:
		if !ours {
			break // it was about a term that has ended
		}
		if !yes {
			c.emit(Effect{Kind: Abort, Peer: k.peer, Change: Shrink, Epoch: k.term})
			break
		}
		q := &c.peers[k.peer]
		q.counted, q.caughtUp, q.leave = false, false, ""
		if c.cfg.Bug != ShrinkAfterAck {
			c.emit(Effect{Kind: Apply, Peer: k.peer, Change: Shrink, Epoch: k.term})
		}
		c.event("%s left the in-sync set", c.cfg.Peers[k.peer])
	case Grow:
		if !ours {
			break
		}
		// Ours may have landed and been replaced by somebody's Pause since. Then
		// the nonce is not ours, but the peer is in.
		if yes || c.rec.Has(c.cfg.Peers[k.peer]) {
			c.peers[k.peer].counted = true
			c.emit(Effect{Kind: Apply, Peer: k.peer, Change: Grow, Epoch: k.term})
			c.event("%s joined the in-sync set", c.cfg.Peers[k.peer])
			break
		}
		// It stays counted until a later shrink of ours is decided.
		c.peers[k.peer].growAt = now + retryLast
		c.emit(Effect{Kind: Abort, Peer: k.peer, Change: Grow, Epoch: k.term})
	case Promote, Create:
		if yes {
			c.won(now, k)
			break
		}
		// Also when ours landed and was replaced: then that term is over, and
		// nobody serves in an epoch that another's record has followed.
		c.role = c.role.to(Secondary)
		c.emit(Effect{Kind: Abort, Peer: -1, Change: k.change, Epoch: k.next.Epoch})
		c.lost(now, k.change, "another node changed the record first")
	case Pause, Resume, Forget:
		c.recorded(now, yes)
	}
	if yes && ours {
		c.news()
	}
}

// news tells the peers that follow that the record has changed. They would see it
// within seconds by themselves.
func (c *Core) news() {
	for p := range c.cfg.Peers {
		if c.peers[p].established {
			c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: News, N: c.rec.Serial, Epoch: c.epoch}})
		}
	}
}

// stepCAS repeats an undecided CAS when its time has come.
func (c *Core) stepCAS(now int64) {
	if c.cas.state == casResend && c.cas.retryAt <= now {
		c.resend(now)
	}
}

// grown is the backoff after b: 200 ms doubling to a second, and never more
// than a quarter of the lease. A primary whose CAS hangs reads the record between
// two tries, and `--force` elsewhere counts on that read.
func (c *Core) grown(b int64) int64 {
	return min(max(retryFirst, 2*b), retryLast, max(c.cfg.Lease/4, millisecond))
}

// needRead asks for a read that starts from now on.
func (c *Core) needRead(now int64) {
	c.readAt = min(c.readAt, now)
	c.readAgain = c.readAgain || c.readTag != 0
}

// abandonRead forgets a read under way: its answer will be from before
// something that we know already.
func (c *Core) abandonRead(now int64) {
	if c.readTag != 0 {
		c.readTag, c.readAgain, c.readAt = 0, false, now
	}
}

func (c *Core) stepRead(now int64) {
	if c.readTag != 0 || c.readAt > now || c.cas.state == casSent {
		return
	}
	c.reads++
	c.readTag, c.readStart, c.readAt = c.tag(), now, NoLimit
	c.emit(Effect{Kind: Read, Peer: -1, Tag: c.readTag})
}

// readInterval: every primary looks at the record at least once in a lease, not
// only the one that is alone. With three nodes a primary that has a lease from
// its peer would otherwise never notice that the third was forced.
func (c *Core) readInterval() int64 {
	switch {
	case c.leading():
		return min(readEvery, c.cfg.Lease-c.cfg.Lease/4)
	case c.cfg.Auto && c.servingPeer() < 0:
		return watchEvery
	}
	return readEvery
}

// ReadDone answers Read; rec is nil if the witness holds none.
func (c *Core) ReadDone(now int64, tag uint64, rec *Record, version string, err error) {
	if tag == 0 || tag != c.readTag {
		c.advance(now)
		return
	}
	c.readTag = 0
	c.looked = max(c.looked, c.readStart)
	if err == nil {
		err = c.judge(rec)
	}
	if err != nil {
		if c.trouble == nil || errors.Is(c.trouble, ErrNotRead) {
			c.event("the witness is out: %v", err)
		}
		c.trouble, c.bad = err, c.reads
		c.readBackoff = c.grown(c.readBackoff)
		c.readAt = now + c.readBackoff
	} else {
		if c.trouble != nil && !errors.Is(c.trouble, ErrNotRead) {
			c.event("the witness is back")
		}
		c.trouble, c.good, c.goodStart, c.readBackoff = nil, c.reads, c.readStart, 0
		c.readAt = max(now, c.readStart+c.readInterval())
		c.settle(now, rec, version)
		c.checkTerm(now)
		c.named(now)
	}
	if c.readAgain {
		c.readAgain, c.readAt = false, now
	}
	c.advance(now)
}

// settle takes over a good record and decides what was undecided.
func (c *Core) settle(now int64, rec *Record, version string) {
	if rec == nil {
		c.rec, c.version = nil, ""
	} else {
		c.adopt(now, rec, version)
	}
	k := &c.cas
	if k.state != casUnknown && k.state != casResend {
		return
	}
	same := rec == nil && k.change == Create || rec != nil && k.change != Create && version == k.expect
	switch {
	case rec != nil && rec.Nonce == k.next.Nonce:
		c.decided(now, true)
	case !same, c.cfg.Bug == OldRecordProvesFailure:
		c.decided(now, false)
	case k.state == casUnknown:
		// The old record proves nothing: the CAS may be under way.
		k.state = k.state.to(casResend)
		k.backoff = c.grown(k.backoff)
		k.retryAt = now + k.backoff
	}
}

// checkTerm ends our term when a good record says that it is over.
func (c *Core) checkTerm(now int64) {
	if !c.leading() {
		return
	}
	if why := c.termOver(); why != "" {
		c.stepDown(now, why, false)
	}
}

// termOver compares the last good record with the term in which we serve, or
// are about to.
func (c *Core) termOver() string {
	switch r := c.rec; {
	case r == nil:
	case r.Epoch > c.epoch:
		return fmt.Sprintf("deposed: %s is primary in epoch %d, ours was %d", r.Primary, r.Epoch, c.epoch)
	case r.Primary != c.cfg.Self || !r.Has(c.cfg.Self):
		return "the record was changed by somebody else and does not name this node any more"
	default:
		// Nobody but us grows our set. If somebody did, that node may promote
		// without our data, and neither counting it now nor going on is right.
		for _, n := range r.InSync {
			if p := c.index(n); n != c.cfg.Self && (p < 0 || !c.peers[p].counted) && c.cfg.Bug != GrowEarly {
				return "the record was changed by somebody else and names " + n + ", which this node does not count"
			}
		}
	}
	return ""
}

// judge says whether a record is one that may follow what this node has seen.
// If not it is as good as no answer (rule 5.12).
func (c *Core) judge(rec *Record) error {
	h := &c.hard
	switch {
	case rec == nil:
		if h.Epoch > 0 || h.ClusterID != 0 {
			return errAbsent
		}
		return nil
	case c.cfg.Cluster != "" && rec.Cluster != c.cfg.Cluster:
		return fmt.Errorf("the witness holds the record of the cluster %q, this node belongs to %q; look at `witness` in the config", rec.Cluster, c.cfg.Cluster)
	case h.ClusterID != 0 && rec.ClusterID != h.ClusterID:
		return fmt.Errorf("the witness holds the record of another cluster (id %x, this node's is %x); look at `witness` in the config", rec.ClusterID, h.ClusterID)
	case rec.Epoch == 0 || rec.Epoch == 1<<64-1 || rec.Serial == 0 || rec.Serial == 1<<64-1 || rec.ClusterID == 0:
		return errors.New("the cluster record makes no sense; `replctl init --witness` is the way out")
	case rec.Epoch < h.Epoch:
		return fmt.Errorf("the cluster record is older than what this node has seen: epoch %d, seen %d; the witness was put back, and `replctl init --witness` is the way out", rec.Epoch, h.Epoch)
	case rec.Serial < h.Serial:
		return fmt.Errorf("the cluster record is older than what this node has seen: serial %d, seen %d; the witness was put back, and `replctl init --witness` is the way out", rec.Serial, h.Serial)
	case c.rec != nil && rec.Serial == c.rec.Serial && rec.Nonce != c.rec.Nonce:
		return fmt.Errorf("the cluster record was put back and changed: serial %d was another record before; `replctl init --witness` is the way out", rec.Serial)
	}
	return nil
}

// adopt takes over a record that was read, or written by us.
func (c *Core) adopt(now int64, rec *Record, version string) {
	c.rec, c.version = rec, version
	h := &c.hard
	if h.ClusterID == 0 {
		h.ClusterID = rec.ClusterID
	}
	h.Epoch, h.Serial = max(h.Epoch, rec.Epoch), max(h.Serial, rec.Serial)
	if rec.Primary == c.cfg.Self && rec.Epoch != h.Served && c.claimEpoch != rec.Epoch {
		c.claimEpoch, c.claimSeen = rec.Epoch, now
	}
}
