package failover

import "fmt"

// The role of a node in its epoch.
//
//	            Prepare(Promote|Create)            Began
//	Secondary ──────────────────────────▶ Candidate ─────▶ Primary ◀─┐
//	    ▲  ▲                                  │             │ │      │ Quiesced(err)
//	    │  └────── Abort ─────────────────────┘    StepDown │ │ Quiesce
//	    ├───────────────────────────────────────────────────┘ ▼      │
//	    └───────────────── StepDown ───────────────────────  Moving ─┘
//
// There is no edge from Secondary to Primary: the record's naming a node is
// never enough, only its own decided CAS of this life is (rule 5.8).
func (r Role) to(next Role) Role {
	switch {
	case r == Secondary && next == Candidate,
		r == Candidate && next == Secondary,
		r == Candidate && next == Primary,
		r == Primary && next == Moving,
		r == Primary && next == Secondary,
		r == Moving && next == Primary,
		r == Moving && next == Secondary:
		return next
	}
	panic(fmt.Sprintf("failover: role %v cannot become %v", r, next))
}

func (r Role) String() string {
	switch r {
	case Secondary:
		return "Secondary"
	case Candidate:
		return "Candidate"
	case Primary:
		return "Primary"
	case Moving:
		return "Moving"
	}
	return fmt.Sprintf("Role(%d)", uint8(r))
}

// casState is where the node's one change of the record is.
//
//	               Prepared            Unknown, Conflict
//	idle ─▶ preparing ─────▶ sent ─────────────────────────▶ unknown
//	 ▲  │        │           │  ▲                            │    │
//	 │  └────────┼───────────┼──┘ (Pause, Resume)            │    │ read: version is still
//	 │   given up│        Won│                               │    │ the expected one
//	 ├───────────┘           │       read: my nonce: won     │    ▼
//	 ├───────────────────────┘       else: decided no        │  resend ──▶ sent
//	 └───────────────────────────────────────────────────────┘ (from resend, too:
//	                                                             the routine reads)
//
// From sent on only the record can end it (rule 5.7).
type casState uint8

const (
	casIdle casState = iota
	casPreparing
	casSent
	casUnknown
	casResend
)

func (s casState) to(next casState) casState {
	switch {
	case s == casIdle && next == casPreparing,
		s == casIdle && next == casSent,
		s == casPreparing && next == casSent,
		s == casPreparing && next == casIdle,
		s == casSent && next == casUnknown,
		s == casSent && next == casIdle,
		s == casUnknown && next == casResend,
		s == casUnknown && next == casIdle,
		s == casResend && next == casIdle,
		s == casResend && next == casSent:
		return next
	}
	panic(fmt.Sprintf("failover: a change of the record that is %v cannot become %v", s, next))
}

func (s casState) String() string {
	switch s {
	case casIdle:
		return "idle"
	case casPreparing:
		return "preparing"
	case casSent:
		return "sent"
	case casUnknown:
		return "unknown"
	case casResend:
		return "resend"
	}
	return fmt.Sprintf("casState(%d)", uint8(s))
}

// stage is how far the operation in hand has come.
//
//	promote:  read ─▶ wait ─▶ read ─▶ candidate ─▶ hold ─▶ begin ─▶ none
//	          read ─▶ move ─▶ read (the primary said go)
//	          wait ─▶ move (the primary came back), move ─▶ read (it went away)
//	          candidate ─▶ read (decided no: look again)
//	demote:   handOver ─▶ none
//	          read ─▶ record ─▶ quiesce ─▶ none
//	pause, resume, forget:  read ─▶ record ─▶ none, record ─▶ read (decided no)
//
// Every stage may end in none, except candidate once its CAS was sent.
type stage uint8

const (
	stageNone      stage = iota
	stageRead            // a read of the record that starts after the request must answer
	stageWait            // our own promise has to run out
	stageMove            // the primary was asked to hand over
	stageCandidate       // Promote or Create is under way
	stageHold            // it is decided yes, but the old primary may not know yet
	stageBegin           // Apply is given
	stageHandOver        // the peer was asked to ask
	stageRecord          // Pause, Resume or Forget is under way
	stageQuiesce         // the volume drains
)

func (s stage) to(next stage) stage {
	switch {
	case next == stageNone,
		s == stageNone && (next == stageRead || next == stageHandOver),
		s == stageRead && (next == stageWait || next == stageMove || next == stageCandidate || next == stageRecord || next == stageQuiesce),
		s == stageWait && (next == stageRead || next == stageMove),
		s == stageMove && next == stageRead,
		s == stageCandidate && (next == stageRead || next == stageHold),
		s == stageHold && next == stageBegin,
		s == stageRecord && (next == stageRead || next == stageQuiesce):
		return next
	}
	panic(fmt.Sprintf("failover: an operation at %v cannot go on to %v", s, next))
}

func (s stage) String() string {
	names := [...]string{"none", "read", "wait", "move", "candidate", "hold", "begin", "handOver", "record", "quiesce"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("stage(%d)", uint8(s))
}

func (c Change) String() string {
	names := [...]string{"none", "create", "promote", "shrink", "grow", "pause", "resume", "forget"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("Change(%d)", uint8(c))
}

func (k EffectKind) String() string {
	names := [...]string{"none", "Read", "CAS", "Persist", "Send", "Prepare", "Apply", "Abort", "Serve", "Quiesce",
		"StepDown", "Follow", "Drop", "Reply", "Progress", "Event"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("EffectKind(%d)", uint8(k))
}

func (k MsgKind) String() string {
	names := [...]string{"none", "LeaseRequest", "LeaseGrant", "MoveRequest", "MoveRefused", "Go", "HandOver", "Goodbye", "News"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("MsgKind(%d)", uint8(k))
}

// Outcome is the witness's answer to a CAS.
type Outcome uint8

const (
	// Won: the record is ours. CASDone carries its version.
	Won Outcome = iota
	// Conflict: this send found another version. An earlier send of the same
	// CAS may be the reason, so it proves nothing but that a read is due.
	Conflict
	// Unknown: no answer. It may have landed, or land later (rule 5.7).
	Unknown
)

func (o Outcome) String() string {
	switch o {
	case Won:
		return "won"
	case Conflict:
		return "conflict"
	case Unknown:
		return "unknown"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Bug is a deliberate mistake, for tests that must be able to fail. The zero
// value is none, and nothing outside a test sets another.
type Bug uint8

const (
	NoBug                  Bug = iota
	LeaseFromReceipt           // the lease counts from the grant's arrival
	GrowEarly                  // a peer is counted only after its CAS is decided
	ShrinkAfterAck             // completions go on before the shrink is decided
	OldRecordProvesFailure     // reading the old record means that the CAS failed
	NamedIsEnough              // serves because the record names it
	NoWaitAfterRestart         // a restart forgets the promises
	GrantWhileCandidate        // lease requests are granted during one's own promotion
	AcceptOldEpoch             // a primary of a lower epoch is followed
	NoHostMark                 // a host restart changes nothing
	RetryForgetsNonce          // a repeated CAS has another nonce
	PromoteWithoutSet          // anybody may be a candidate
	NoClaimHold                // a forced claim is forgotten by a restart
	PromoteOnOldRecord         // a takeover goes by what the record said before the promise ran out
	TakeOverEarly              // a takeover does not wait out the whole promise
	TakeOverPaused             // a takeover does not look whether it is paused
	OneGrantOfTwo              // one counted peer's lease is enough
	ServeAfterThaw             // the lease's end is not looked at while the links stand
	UnknownIsLost              // a CAS without an answer counts as decided no
	GoBeforeStop               // a move's Go is sent before the service has stopped
	PromiseNotDurable          // a promise is given before its length is on disk
	LeaseIsLook                // three nodes: a primary with leases need not have looked at the record
	NeverTakeOver              // a standby waits for its operator
	Bugs                       // how many there are
)

func (b Bug) String() string {
	names := [...]string{"none", "LeaseFromReceipt", "GrowEarly", "ShrinkAfterAck", "OldRecordProvesFailure", "NamedIsEnough",
		"NoWaitAfterRestart", "GrantWhileCandidate", "AcceptOldEpoch", "NoHostMark", "RetryForgetsNonce", "PromoteWithoutSet", "NoClaimHold",
		"PromoteOnOldRecord", "TakeOverEarly", "TakeOverPaused", "OneGrantOfTwo", "ServeAfterThaw", "UnknownIsLost", "GoBeforeStop", "PromiseNotDurable",
		"LeaseIsLook", "NeverTakeOver"}
	if int(b) < len(names) {
		return names[b]
	}
	return fmt.Sprintf("Bug(%d)", uint8(b))
}
