package failover

import (
	"errors"
	"fmt"
	"math"

	"tandem/failover/record"
)

// Record is the cluster record, as the witness holds it.
type Record = record.Record

const (
	millisecond = int64(1e6)
	second      = 1000 * millisecond

	// readEvery is how often a Secondary looks at the record, for `status`.
	readEvery = 5 * second
	// retryFirst and retryLast bound the backoff of reads and repeated CASes.
	retryFirst = 200 * millisecond
	retryLast  = 1 * second
	// moveLimit is the patience with a planned move.
	moveLimit = 30 * second
	// maxLease bounds what a peer can make us promise.
	maxLease = 5 * 60 * second
)

var (
	// ErrNotRead is why there is no record in the first moments of a life.
	ErrNotRead = errors.New("the cluster record has not been read yet")

	errAbsent = errors.New("the witness holds no cluster record, although this node has seen one: look at `witness` in the config; if the record was deleted, `replctl init --witness` is the way out")
)

// Config is what a core is told once.
type Config struct {
	Self    string
	Cluster string // the operator's name for it; "" skips the check of the record's
	DiskID  uint64
	Peers   []string // sorted, at most MaxPeers

	// BOOTTIME nanoseconds.
	Heartbeat int64 // between two lease requests
	Lease     int64 // L
	Freeze    int64 // how long I/O waits before it fails
	Restart   int64 // how long a peer that said Goodbye may stay away before it is taken over from
	Grace     int64 // how long a session may be down before its peer is shrunk out; 0: Heartbeat

	// Auto: nodes promote by themselves, demote hands over, and a move that came
	// to nothing is taken back.
	Auto   bool
	Prefer string // the node that should be primary when it can; "" is none
	Rand   func() uint64
	Bug    Bug
}

// ourCopy is what the volume says about the local data.
type ourCopy struct {
	known                bool
	usable               bool // not Inconsistent, not Failed
	stale                bool // another disk, or an older mark than the peers remember
	generation, proposed uint64
}

// peer is what the core knows of one other node.
type peer struct {
	up   bool // a handshake came and the link has not gone down since
	info PeerInfo

	// followed is the epoch in which we let the volume follow this peer, 0 if
	// none. A grant is given only there: a lease request is a frame like any
	// other, and frames count only in their session.
	followed uint64

	// established: a replicating session in our epoch stands. sessionAt is when
	// that last changed.
	established bool
	sessionAt   int64

	// counted: the peer's acknowledgement and its lease are needed. It is set
	// before Prepare(Grow) is emitted and goes only with Apply(Shrink), so that
	// at every instant counted is a superset of what the record can name.
	counted  bool
	caughtUp bool // in this session the volume said that nothing is missing there
	growAt   int64
	leave    string // why it has to leave at once; "" if it has not

	heard    int64 // when the session was established or its primary last asked for a lease
	lease    int64 // until when this peer allows us to serve
	asked    [8]asked
	askAt    int64 // when the next request is due
	lastN    uint64
	awayTill int64 // from its Goodbye: how long automatic promotion holds off

	refusedTill int64 // it would not take the service over from here, and is not asked before
}

// asked remembers one lease request. Eight of them are four seconds of
// heartbeats at the defaults, more than a lease.
type asked struct {
	n  uint64
	at int64
}

// Core decides for one node. It is not safe for concurrent use.
type Core struct {
	cfg        Config
	out, spare []Effect
	lastTag    uint64
	now        int64 // of the last input
	started    bool

	// hard is what should be durable, durable what is, writing what a Persist
	// (or an Apply) under way will make so.
	hard, durable, writing HardState
	persistTag             uint64
	applying               bool

	role   Role
	epoch  uint64 // our term while Primary or Moving
	served int64  // Until of the last Serve
	copy   ourCopy
	peers  [MaxPeers]peer

	waiting     [MaxPeers]bool
	pending     bool
	tickAt      int64
	frozenSince int64 // 0: not frozen

	// promise is the end of the longest promise given in this life, startWait
	// that of the ones an earlier life may have given.
	promise, startWait int64
	promisedAt         int64 // when the last one was given
	term               Term  // how the last claim went, for people

	// The record as last read or written, and the version that replaces it.
	// trouble says why the last read was no good; rec is then still the last
	// good one.
	rec     *Record
	version string
	trouble error
	// reads numbers the reads, good and bad are the numbers of the last answers,
	// so that an operation can insist on a read that started after it did.
	reads, good, bad uint64
	goodStart        int64 // when the last good one was sent
	readTag          uint64
	readStart        int64
	looked           int64 // start of the last read or CAS that was answered, see until
	readAt           int64
	readAgain        bool
	readBackoff      int64
	// claimEpoch is an epoch that the record says is ours and in which we never
	// began, claimSeen when this life learned of it. See promote.go.
	claimEpoch uint64
	claimSeen  int64

	cas cas
	op  operation

	move     move
	resumeOK bool   // rule 5.8's resume is open to this life
	resumeAt int64  // not before
	resumeBy uint64 // nor by a read older than this
	homeAt   int64  // when this node, the preferred one, asks for the service; 0: it must settle first
	homeWait int64  // how long it waited, or waits, for that
	// ownTrouble is why the last attempt of our own came to nothing.
	ownTrouble string
	// unfitTill: the service did not run here, and unfitWhy is why.
	unfitTill int64
	unfitWhy  string
}

// New returns the core of a node whose metadata holds hard. It does nothing
// before Start.
func New(cfg Config, hard HardState) *Core {
	if len(cfg.Peers) > MaxPeers {
		panic(fmt.Sprintf("failover: %d peers, at most %d are possible", len(cfg.Peers), MaxPeers))
	}
	if cfg.Grace == 0 {
		cfg.Grace = cfg.Heartbeat
	}
	c := &Core{cfg: cfg, hard: hard, durable: hard, trouble: ErrNotRead, readAt: NoLimit}
	c.cas.peer, c.op.asker = -1, -1
	return c
}

// Effects returns what the inputs since the last call asked for, in order. The
// slice is valid until the call after the next input.
func (c *Core) Effects() []Effect {
	out := c.out
	c.out, c.spare = c.spare[:0], out
	return out
}

func (c *Core) emit(e Effect) { c.out = append(c.out, e) }

func (c *Core) event(format string, args ...any) {
	c.emit(Effect{Kind: Event, Peer: -1, Text: fmt.Sprintf(format, args...)})
}

func (c *Core) tag() uint64 { c.lastTag++; return c.lastTag }

// Start begins a life. It comes before every other input but Copy.
func (c *Core) Start(now int64, sameBoot, volatile bool) {
	c.started, c.now = true, now
	c.startWait = now + c.hard.LongestG
	if c.cfg.Bug == NoWaitAfterRestart {
		c.startWait = now
	}
	c.readAt = now
	c.resumeOK = sameBoot
	// Whether it was in the set is not known before the record is read, and the
	// mark comes before anything else. On a node that was not it does no harm:
	// it goes when the node is counted.
	if !sameBoot && volatile && c.hard.Epoch > 0 && c.cfg.Bug != NoHostMark {
		c.hard.Marked = true
		c.event("this host restarted with a volatile disk cache: unflushed writes may be missing here, so this node does not promote by itself")
	}
	c.advance(now)
}

// Tick says that time has passed. waiting tells for which peers' acknowledgement
// client completions wait, pending whether the serve gate holds any request.
func (c *Core) Tick(now int64, waiting [MaxPeers]bool, pending bool) {
	c.waiting, c.pending, c.tickAt = waiting, pending, now
	c.advance(now)
}

// Copy says what the local data is. It is called at the start and on change.
func (c *Core) Copy(now int64, usable bool, generation, proposed uint64, stale bool) {
	c.copy = ourCopy{known: true, usable: usable, stale: stale, generation: generation, proposed: proposed}
	c.advance(now)
}

// Unmark says that the primary counts us again (rule 5.11).
func (c *Core) Unmark(now int64) {
	c.hard.Marked = false
	c.advance(now)
}

// Hello says that a handshake with p is done, or brings news in a standing link.
func (c *Core) Hello(now int64, p int, info PeerInfo) {
	if !c.valid(p) {
		return
	}
	q := &c.peers[p]
	q.up, q.info = true, info
	if !info.Serving {
		q.followed = 0
	}
	if info.Serving || info.Marked || !info.Usable {
		q.awayTill = 0 // it is back, or will not be back by itself
	}
	if info.Epoch > c.hard.Epoch {
		c.sawEpoch(now, info.Epoch, c.cfg.Peers[p])
	}
	if c.leading() {
		switch {
		case info.Serving && info.Epoch == c.epoch:
			// Two nodes cannot both have won one epoch: one of them is wrong.
			c.emit(Effect{Kind: Drop, Peer: p, Text: c.cfg.Peers[p] + " claims to be primary in the epoch that is ours"})
		case q.counted && info.Marked:
			q.leave = "its host restarted"
		case q.counted && !info.Usable:
			q.leave = "its copy is not usable"
		case q.counted && c.otherDisk(p):
			q.leave = "it has another disk"
		}
	}
	c.advance(now)
}

// otherDisk says whether the record knows p with another disk than it has now.
func (c *Core) otherDisk(p int) bool {
	id := c.peers[p].info.DiskID
	if c.rec == nil || id == 0 {
		return false
	}
	m, ok := c.rec.Member(c.cfg.Peers[p])
	return ok && m.DiskID != id
}

// sawEpoch takes note of a higher epoch that somebody else's word or the record
// shows. Whoever is Primary in a lower one is deposed from here on.
func (c *Core) sawEpoch(now int64, epoch uint64, who string) {
	c.hard.Epoch = epoch
	// An answer that is under way may be from before that epoch, and would look
	// like a register that was put back.
	c.abandonRead(now)
	c.needRead(now)
	if c.leading() {
		c.stepDown(now, fmt.Sprintf("deposed: %s knows epoch %d, ours is %d", who, epoch, c.epoch), false)
	}
}

// Established says that the volume runs a replicating session with p in our
// epoch.
func (c *Core) Established(now int64, p int) {
	if !c.valid(p) {
		return
	}
	if q := &c.peers[p]; !q.established {
		q.established, q.sessionAt, q.askAt, q.heard = true, now, now, now
	}
	c.advance(now)
}

// LinkDown says that the link to p, and with it the session, is gone. The
// lease stays: what the peer promised does not depend on the link.
func (c *Core) LinkDown(now int64, p int) {
	if !c.valid(p) {
		return
	}
	q := &c.peers[p]
	if q.established {
		q.sessionAt = now
	}
	q.up, q.established, q.caughtUp, q.followed = false, false, false, 0
	q.info = PeerInfo{}
	q.asked = [len(q.asked)]asked{} // grants are only counted for requests of this session
	if c.cas.state == casPreparing && c.cas.change == Grow && c.cas.peer == p {
		c.giveUp(now, "the link to it went down", false)
	}
	c.advance(now)
}

// CaughtUp says that nothing is missing on the uncounted p.
func (c *Core) CaughtUp(now int64, p int) {
	if !c.valid(p) {
		return
	}
	if q := &c.peers[p]; c.leading() && q.established {
		q.caughtUp = true
	}
	c.advance(now)
}

// MustLeave says that the counted p is no copy that may be in the set.
func (c *Core) MustLeave(now int64, p int, why string) {
	if !c.valid(p) {
		return
	}
	if q := &c.peers[p]; c.leading() && q.counted {
		q.leave = why
		if why == "" {
			q.leave = "the volume asked for it"
		}
	}
	c.advance(now)
}

// DiskFailed says that the local disk is gone.
func (c *Core) DiskFailed(now int64, why string) {
	c.copy.usable = false
	if c.leading() {
		var heirs []int
		for p := range c.cfg.Peers {
			if c.mayTake(now, p) {
				heirs = append(heirs, p)
			}
		}
		epoch := c.epoch
		c.stepDown(now, "the local disk failed: "+why, false)
		for _, p := range heirs {
			// Nothing here serves in this epoch any more: whoever takes over need not
			// wait for the lease. N is 0, because nobody asked for it.
			c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: Go, Epoch: epoch}})
		}
	}
	c.advance(now)
}

// Shutdown says goodbye to the peers; the node means to be back within back.
func (c *Core) Shutdown(now int64, back int64) {
	for p := range c.cfg.Peers {
		if c.peers[p].up {
			c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: Goodbye, Epoch: c.Epoch(), G: max(0, min(back, maxSpan))}})
		}
	}
	c.advance(now)
}

// Persisted answers Persist.
func (c *Core) Persisted(now int64, tag uint64) {
	if tag == 0 || tag != c.persistTag {
		c.advance(now)
		return
	}
	c.persistTag, c.durable = 0, c.writing
	c.advance(now)
}

// Recv takes a message from the session with p.
func (c *Core) Recv(now int64, p int, m Msg) {
	if !c.valid(p) {
		return
	}
	switch m.Kind {
	case LeaseRequest:
		c.grant(now, p, m)
	case LeaseGrant:
		c.granted(now, p, m)
	case MoveRequest:
		c.moveRequest(now, p, m)
	case MoveRefused:
		c.moveRefused(p, m)
	case Go:
		c.released(now, p, m)
	case HandOver:
		c.handOver(now, p, m)
	case News:
		// What a Secondary says of itself, and when it reads next, goes by the record.
		if c.role == Secondary && c.peers[p].followed == c.hard.Epoch && m.Epoch == c.hard.Epoch && (c.rec == nil || m.N > c.rec.Serial) {
			c.needRead(now)
		}
	case Goodbye:
		// On top of the lease: until that has run out nobody could promote anyway.
		if m.G >= 0 && m.G <= maxSpan {
			c.peers[p].awayTill = max(now, c.promiseEnd()) + min(m.G, c.cfg.Restart)
		}
	}
	c.advance(now)
}

// advance does everything that has become possible. The inputs only change
// facts; what follows from them is decided here, by level and not by edge, so
// that no order of inputs can lose a step.
func (c *Core) advance(now int64) {
	c.now = now
	// Rule 5.11: the mark is durable before anything else happens.
	if c.started && (!c.hard.Marked || c.durable.Marked) {
		c.lead(now)
		c.takeOver(now)
		c.stepOp(now)
		c.stepCAS(now)
		c.stepRead(now)
		c.follow()
		c.serve()
	}
	c.persist()
}

// Deadline is when Tick must be called at the latest.
func (c *Core) Deadline() int64 {
	d := NoLimit
	if !c.started || c.hard.Marked && !c.durable.Marked {
		return d
	}
	// What is due and still not done waits for an answer, which is an input and
	// will do it: such times must not make the shell spin.
	due := func(t int64) {
		if t > c.now {
			d = min(d, t)
		}
	}
	if c.readTag == 0 && c.cas.state != casSent {
		due(c.readAt)
	}
	if c.cas.state == casResend {
		due(c.cas.retryAt)
	}
	due(c.op.limit)
	due(c.op.progressAt)
	due(c.resumeAt)
	if !c.leading() {
		due(c.takeOverFrom())
		due(c.homeAt)
		for p := range c.cfg.Peers {
			if q := &c.peers[p]; q.established && q.followed != 0 {
				due(q.heard + Promise(c.cfg.Lease))
			}
		}
		return d
	}
	if c.frozenSince != 0 {
		due(c.frozenSince + c.cfg.Freeze)
	}
	due(c.cas.notBefore)
	due(c.served)
	for p := range c.cfg.Peers {
		q := &c.peers[p]
		if q.established {
			due(q.askAt)
			due(q.growAt)
		}
		if q.counted {
			due(c.shrinkAt(p))
			// A request that begins to wait is noticed by then.
			due(c.now + c.cfg.Heartbeat)
		}
	}
	return d
}

// lead is what a primary does on its own.
func (c *Core) lead(now int64) {
	if !c.leading() {
		return
	}
	if c.freeze(now) {
		return
	}
	c.request(now)
	c.shrink(now)
	c.grow(now)
}

// freeze ends a primary's term when client I/O could not go on for Freeze
// (rule 5.6).
func (c *Core) freeze(now int64) bool {
	// An undecided shrink holds completions like a lost lease, although the link
	// may be back and the lease with it.
	stuck := c.pending && (c.until() <= now || c.cas.change == Shrink && c.cas.state != casIdle)
	for p := range c.cfg.Peers {
		q := &c.peers[p]
		stuck = stuck || q.counted && c.waiting[p] && (!q.established || q.lease <= now)
	}
	switch {
	case !stuck:
		c.frozenSince = 0
	case c.frozenSince == 0:
		c.frozenSince = now
	case now-c.frozenSince >= c.cfg.Freeze:
		c.stepDown(now, fmt.Sprintf("frozen for %s: neither the peer nor the witness answered", span(now-c.frozenSince)), false)
		return true
	}
	return false
}

// shrinkAt is when p may be taken out of the set if client I/O needs it. A new
// session gets Grace for its first grant: after a quiet glitch longer than the
// lease, the first request would otherwise throw out a peer that is back.
func (c *Core) shrinkAt(p int) int64 {
	q := &c.peers[p]
	switch {
	case q.leave != "":
		return c.now
	case !q.established && c.rec != nil && !c.rec.Has(c.cfg.Peers[p]):
		// Counted, but its grow was decided no, or never sent: nothing is won by
		// counting it on, so it goes the regular way back as soon as it is gone.
		return q.sessionAt + c.cfg.Grace
	case !c.waiting[p] && !(c.pending && q.lease <= c.now):
		// Nobody needs it. But p promotes when its promise, which is longer than our
		// lease, has run out: a primary that is well takes it out before that. With
		// the witness out it could not, and a change under way would only hold
		// what comes back meanwhile.
		if c.trouble != nil || !c.cfg.Auto {
			return NoLimit
		}
		return max(q.lease, q.sessionAt+c.cfg.Grace, q.awayTill)
	case q.established:
		return max(q.lease, q.sessionAt+c.cfg.Grace)
	}
	return min(q.sessionAt+c.cfg.Grace, max(q.lease, q.sessionAt))
}

func (c *Core) shrink(now int64) {
	for p := range c.cfg.Peers {
		if c.cas.state == casIdle && c.peers[p].counted && c.cas.notBefore <= now && c.shrinkAt(p) <= now {
			c.begin(now, Shrink, p)
		}
	}
}

func (c *Core) grow(now int64) {
	// A grow is not urgent: whatever else is going on comes first, and a witness
	// that does not answer would leave us with a peer that counts for nothing.
	if c.role != Primary || c.op.stage != stageNone || c.trouble != nil {
		return
	}
	for p := range c.cfg.Peers {
		q := &c.peers[p]
		if c.cas.state != casIdle || !q.established || q.leave != "" || q.lease <= now || q.growAt > now {
			continue
		}
		if !q.caughtUp || q.counted && c.rec.Has(c.cfg.Peers[p]) {
			continue
		}
		if why := c.unfit(p); why != "" {
			q.growAt = now + readEvery
			c.event("%s is not taken into the in-sync set: %s", c.cfg.Peers[p], why)
			continue
		}
		// From here on the record may come to name it: count first. Its lease is
		// there already, so the gate does not close.
		if c.cfg.Bug != GrowEarly {
			q.counted = true
		}
		c.begin(now, Grow, p)
	}
}

// unfit says why p may not become a member although it has all the data.
func (c *Core) unfit(p int) string {
	info := c.peers[p].info
	m, ok := c.rec.Member(c.cfg.Peers[p])
	switch {
	case !info.Usable:
		return "its copy is not usable"
	case ok && info.DiskID != 0 && info.DiskID != m.DiskID && info.Replaces != m.DiskID:
		return "it has another disk than the one the record knows; if that is meant, run `replctl init --replace` there"
	case !ok && info.DiskID == 0:
		return "the identity of its disk is not known"
	}
	return ""
}

// stepDown ends our term. clean: after a Quiesce that went well.
func (c *Core) stepDown(now int64, why string, clean bool) {
	if c.served != 0 {
		c.served = 0
		c.emit(Effect{Kind: Serve, Peer: -1, Epoch: c.epoch})
	}
	c.role = c.role.to(Secondary)
	c.emit(Effect{Kind: StepDown, Peer: -1, Epoch: c.epoch, OK: clean, Text: why})
	c.event("no longer primary of epoch %d: %s", c.epoch, why)
	for p := range c.cfg.Peers {
		q := &c.peers[p]
		if q.established {
			q.sessionAt = now
		}
		q.established, q.counted, q.caughtUp, q.leave, q.lease = false, false, false, "", 0
		q.asked = [len(q.asked)]asked{}
	}
	// A CAS that was sent stays undecided and is settled before we take part
	// again (trace 16); one that was only prepared is forgotten.
	if c.cas.state == casPreparing {
		c.cas.state = c.cas.state.to(casIdle)
	}
	c.frozenSince, c.move = 0, move{}
	// Who was told to stop comes back by itself only where nodes do that.
	c.resumeOK, c.resumeAt, c.resumeBy = !clean || c.cfg.Auto, now, c.reads+1
	c.needRead(now)
	if c.op.kind == opDemote && !clean {
		c.finish(now, false, "this node stepped down by itself meanwhile: "+why)
	}
}

func (c *Core) leading() bool    { return c.role == Primary || c.role == Moving }
func (c *Core) valid(p int) bool { return p >= 0 && p < len(c.cfg.Peers) }

// index returns the peer called name, or -1.
func (c *Core) index(name string) int {
	for p, n := range c.cfg.Peers {
		if n == name {
			return p
		}
	}
	return -1
}

// follow lets the volume take sessions with a serving peer in the highest epoch
// that we have seen and that is durable.
// silent: the primary of a standing session has not asked for a lease for as
// long as we would promise one.
func (c *Core) silent(p int) bool {
	q := &c.peers[p]
	return q.up && q.established && q.followed != 0 && c.now >= q.heard+Promise(c.cfg.Lease)
}

func (c *Core) follow() {
	if c.role != Secondary {
		return
	}
	for p := range c.cfg.Peers {
		q := &c.peers[p]
		if c.silent(p) {
			// A primary that is stopped, or whose words are lost on the way, has a
			// link that looks well from here: the kernel at its end acknowledges
			// what we send. It asks for no lease, so it serves nothing.
			q.heard = c.now
			c.emit(Effect{Kind: Drop, Peer: p, Text: fmt.Sprintf("%s has asked for no lease for %s", c.cfg.Peers[p], span(Promise(c.cfg.Lease)))})
			continue
		}
		if !q.up || !q.info.Serving || q.followed == q.info.Epoch {
			continue
		}
		fits := q.info.Epoch == c.hard.Epoch && c.durable.Epoch == c.hard.Epoch
		if fits || c.cfg.Bug == AcceptOldEpoch && q.info.Epoch < c.hard.Epoch {
			q.followed = q.info.Epoch
			c.emit(Effect{Kind: Follow, Peer: p, Epoch: q.info.Epoch})
		}
	}
}

// persist asks for the hard state to become durable. One at a time: a second
// write could be overtaken by the first.
func (c *Core) persist() {
	if c.persistTag != 0 || c.applying || c.hard == c.durable || !c.started {
		return
	}
	c.persistTag, c.writing = c.tag(), c.hard
	c.emit(Effect{Kind: Persist, Peer: -1, Tag: c.persistTag, Hard: c.hard})
}

// Role, Epoch, ... are views for status; they change nothing.

// Role is what this node is.
func (c *Core) Role() Role { return c.role }

// Epoch is our term as Primary, else the highest epoch seen.
func (c *Core) Epoch() uint64 {
	if c.leading() {
		return c.epoch
	}
	return c.hard.Epoch
}

// Counted is the mask of the peers that count.
func (c *Core) Counted() (mask uint8) {
	for p := range c.cfg.Peers {
		if c.peers[p].counted {
			mask |= 1 << p
		}
	}
	return mask
}

// Record is the last good record, nil if there is none, and why the last
// attempt to read it was no good. The caller does not change it.
func (c *Core) Record() (*Record, error) { return c.rec, c.trouble }

// LeaseUntil is until when this node may serve; 0 if it may not.
func (c *Core) LeaseUntil() int64 { return c.until() }

// PromiseUntil is until when this node has promised not to promote.
func (c *Core) PromiseUntil() int64 { return c.promiseEnd() }

// FrozenSince is since when client I/O cannot go on, 0 if it can.
func (c *Core) FrozenSince() int64 { return c.frozenSince }

// AwayUntil is until when p said it would be back, 0 if it said nothing.
func (c *Core) AwayUntil(p int) int64 { return c.peers[p].awayTill }

// Term is how this node's last way to a term went, in BOOTTIME ns; 0 is a step
// that has not been taken, or a grant that was never given in this life.
type Term struct {
	Epoch     uint64
	LastGrant int64 // to the primary before
	Claimed   int64 // the record allowed it, and the preparation began
	Won       int64 // the record names this node
	Began     int64 // role Primary

	// Lost is the primary before, if this node took over by itself because that one was
	// silent: nobody asked for it, and it has not said that it stopped.
	Lost string
}

// Term is how this node's last way to a term went.
func (c *Core) Term() Term { return c.term }

// Hard is the hard state that is known to be durable: what a handshake may say.
func (c *Core) Hard() HardState { return c.durable }

// span prints nanoseconds for people.
func span(ns int64) string {
	return fmt.Sprintf("%.1f s", math.Ceil(float64(ns)/1e8)/10)
}
