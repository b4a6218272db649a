package blockrepl

import "fmt"

// DiskState is what a copy is worth. The words are DRBD's.
type DiskState uint8

// The disk states.
const (
	DiskInconsistent DiskState = iota // a mixture: fresh, or a resync under way
	DiskOutdated                      // a state the primary once had, or a put-back disk
	DiskConsistent                    // one state, but a host restart may have cost unflushed writes
	DiskUpToDate
	DiskFailed
)

func (s DiskState) String() string {
	return [...]string{"Inconsistent", "Outdated", "Consistent", "UpToDate", "Failed"}[s]
}

// session is how far the conversation with one peer has come.
//
//	          LinkUp             own Hello out,           peer serves,
//	          (drained)          peer's Hello in          Follow
//	down ───────────▶ greeting ───────────▶ met ─────────────────▶ following ──┐
//	  ▲                                      │ DirtyEnd             SyncStart, │
//	  │                                      ▼ (we serve)           durable    │
//	  │                    apart ◀──── judging ───▶ leaving                    │
//	  │                                      │  ◀──────┘ Shrunk                │
//	  │                                      ▼ bits durable                    │
//	  │                                   starting ────────────▶ mirroring ◀───┘
//	  └─────────── LinkDown, from everywhere ── SyncReady ──────────┘
type session uint8

const (
	down      session = iota // no link, or its accepted frames are not yet on disk
	greeting                 // link up; at least one Hello is missing
	met                      // both Hellos are there; nobody serves, or DirtyEnd is awaited
	following                // we are Secondary and have told our dirty bits
	judging                  // we serve; the verdict is made, nothing is promised yet
	leaving                  // the peer must leave the in-sync set before the session goes on
	starting                 // our bits are being made durable, or SyncStart is out
	mirroring                // every write goes to the peer (or comes from it)
	apart                    // split brain or unrelated data: an operator has to decide
	sessions
)

func (s session) String() string {
	return [...]string{"down", "greeting", "met", "following", "judging", "leaving", "starting", "mirroring", "apart"}[s]
}

// edges[from] is the set of states that from may go to. down is reached from
// everywhere by a lost link.
var edges = [sessions]uint16{
	down:      1 << greeting,
	greeting:  1 << met,
	met:       1<<following | 1<<judging,
	following: 1 << mirroring,
	judging:   1<<leaving | 1<<starting | 1<<apart,
	leaving:   1<<starting | 1<<apart,
	starting:  1 << mirroring,
}

// to moves the session along an edge; a missing edge is our own mistake.
func (p *peer) to(s session) {
	if s != down && edges[p.session]&(1<<s) == 0 {
		panic(fmt.Sprintf("blockrepl: session %v cannot become %v", p.session, s))
	}
	p.session = s
}

// phase is how far an operation has come.
//
//	queued ──▶ cold ──▶ parked ──▶ running ──▶ ready ──▶ told ──▶ (released)
//	range      extents   resync     disk and    serve     reply
//	lock       durable   chunk      peers       gate      in socket, all acks in
type phase uint8

const (
	free phase = iota
	queued
	cold
	parked
	running
	ready
	told
)

// Bug is a deliberate mistake, for tests that show that the tests can fail.
// Zero, the value everywhere else, is none.
type Bug uint8

// The mistakes.
const (
	NoBug                Bug = iota
	BugSkipAL                // write into cold extents at once
	BugAckBeforePeer         // complete on the local disk alone
	BugForgetUnflushed       // a lost link marks only what was not acknowledged
	BugEvictUnflushed        // retire extents without a flush
	BugDropBitsOnSame        // equal generations: no resync needed
	BugAcceptOldEpoch        // take frames of any epoch
	BugResyncUnlocked        // resync without the range lock
	BugClearUnflushed        // clear a bit when the block is written, not flushed
	BugTrustPutBack          // no look at the durable marks
	BugNoOverlapLock         // overlapping writes run side by side
	BugReadInFlight          // reads do not wait for overlapping writes
	BugNoBitsOnStepDown      // a deposed primary forgets its activity log
	BugCountUnacked          // count a peer that has not acknowledged all it was sent
	BugReleaseEarly          // shrink: complete before generation and bits are durable
	BugFlushLocalOnly        // FLUSH waits for the local disk only
	BugHelloUndrained        // a new session starts beside the old one's frames
	BugHeatUntilSent         // a write keeps its log slots until its reply is sent
	BugUnreserved            // a long request takes its range part by part
	BugNoBitsOnPromotion     // three nodes: a new primary forgets its activity log
	BugLogNotTold            // a survivor does not tell a new primary what the last one sent it
	BugBitsOnPrimaryOnly     // the bits of who is away are with the primary alone
	BugBitsNotTakenOver      // a member that comes back does not take them over
	BugHoldOneFlag           // the end of one shrink ends the hold of the next
	BugFollowUndrained       // a primary is followed beside the frames of another
	BugNotHeard              // members learn of a generation only when it is decided
	Bugs
)

func (b Bug) String() string {
	return [...]string{"none", "skip-al", "ack-before-peer", "forget-unflushed", "evict-unflushed",
		"drop-bits-on-same", "accept-old-epoch", "resync-unlocked", "clear-unflushed", "trust-put-back",
		"no-overlap-lock", "read-in-flight", "no-bits-on-step-down", "count-unacked", "release-early",
		"flush-local-only", "hello-undrained", "heat-until-sent", "unreserved", "no-bits-on-promotion", "log-not-told", "bits-on-primary-only",
		"bits-not-taken-over", "hold-one-flag", "follow-undrained", "not-heard"}[b]
}
