package failover

// MaxPeers is how many peers a node can have: formats hold four nodes, and
// the set of counted peers is a bit mask.
const MaxPeers = 3

// Role is what a node is in its epoch.
type Role uint8

// The roles. A Candidate is Secondary to everybody outside: it only stopped
// granting and accepting for the old epoch (design rule 5.4).
const (
	Secondary Role = iota
	Candidate
	Primary
	// Moving is a primary that hands over: it completes, flushes everywhere
	// and will never serve in this epoch again (rule 5.9).
	Moving
)

// Change names what a CAS is for.
type Change uint8

// The changes of the cluster record.
const (
	NoChange Change = iota
	Create          // the first record: this node's data becomes the truth
	Promote         // epoch+1, primary: me, in-sync: {me}
	Shrink          // a peer leaves the in-sync set
	Grow            // a peer joins it
	Pause           // nobody promotes by itself from now on; the volume is not asked
	Resume          // they may again; the volume is not asked
	Forget          // a node leaves the members; the volume is not asked
)

// HardState is what must survive a crash. The volume keeps it in its
// superblock; Effect Persist carries a new one, Core.Persisted answers.
type HardState struct {
	ClusterID uint64 // drawn by the node that created the record; 0: never seen one
	Epoch     uint64 // highest epoch seen in the record or in a session; lower ones are refused for ever
	Served    uint64 // "I began to serve in this epoch", written after the CAS won and before the first I/O
	LongestG  int64  // longest promise ever given, ns
	Serial    uint64 // highest serial of the record seen
	Marked    bool   // rule 5.11: this host restarted with a volatile cache while a member
}

// PeerInfo is what a peer's handshake says that matters here.
type PeerInfo struct {
	Epoch   uint64 // highest epoch the peer has seen
	Serving bool   // it is Primary (or Moving) in Epoch
	Marked  bool   // rule 5.11
	Usable  bool   // its copy could be promoted: not Inconsistent, not Outdated, not Failed

	// DiskID is the peer's disk. A grow writes it into the record; a disk that
	// the record does not know for this node is not a member (rule 5.12).
	DiskID uint64
	// Replaces is the disk that this one took over from (`init --replace`), or
	// 0. Without it the old disk, put back, would look like a replacement.
	Replaces uint64
}

// EffectKind names an effect.
type EffectKind uint8

// The effects, with the fields of Effect they use and the input that answers.
const (
	_ EffectKind = iota
	// Read asks the witness for the record. Tag. Answer: ReadDone.
	Read
	// CAS asks the witness to replace it. Tag, Version, Record. Answer: CASDone.
	CAS
	// Persist asks for the hard state to be durable. Tag, Hard. Answer: Persisted.
	// Nothing that depends on it is emitted before the answer.
	Persist
	// Send sends Msg to Peer, in order with the handshake.
	Send
	// Prepare asks the volume for what must be true before the CAS of Change
	// is sent. Answer: Prepared with the generation that the CAS will name.
	//   Create, Promote: sessions with everybody are dropped and refused, what
	//     was accepted is on disk and flushed, the new generation is durable
	//     as proposed.
	//   Shrink: completions are held, the local disk is flushed, the new
	//     generation is durable as proposed, here and on every other counted
	//     peer whose session stands: with three nodes the record would otherwise
	//     name members by a generation that they do not carry (rule 5.8).
	//   Grow (Peer): the peer counts from this moment; then no bit and no
	//     unacknowledged write is left for it, and after that both have flushed
	//     and the peer's metadata carries our generation.
	Prepare
	// Apply tells the volume that Change (Peer, Epoch) is decided yes.
	//   Create, Promote: Hard is to be durable together with the adopted
	//     generation, before the first I/O; then Core.Began is the answer.
	//   Shrink: the generation and the dirty ranges become durable, then the
	//     held completions go on.
	//   Grow: nothing more to do, but it is known.
	Apply
	// Abort tells it that Change (Peer) is decided no, or was given up before
	// its CAS was sent.  After Shrink: completions are no longer held. After
	// Grow: the peer stays counted. After Promote: sessions may resume.
	Abort
	// Serve moves the end of the time in which completions and reads are
	// allowed to Until (BOOTTIME ns; 0: stop now).
	Serve
	// Quiesce asks for a planned stop: no new requests, everything in flight
	// completed, flushed here and on every counted peer. Answer: Quiesced.
	Quiesce
	// StepDown: no longer Primary. Requests fail, in-flight ranges and the
	// activity log become durable dirty bits before the next session. Text, Epoch.
	// OK: a Quiesce went well just before, so nothing is in flight and
	// everything is flushed on every counted peer. A Send that follows (Go)
	// still goes out in the session that ends here.
	StepDown
	// Follow lets the volume take a session with Peer, serving in Epoch
	// (already durable).
	Follow
	// Drop asks for the link to Peer to be reset, with Text as the reason.
	Drop
	// Reply ends the operator's request Tag: OK, Text.
	Reply
	// Progress tells the operator of request Tag how it goes: Text.
	Progress
	// Event is one line for the log and for `replctl events`: Text.
	Event
)

// NoLimit is a time that never comes.
const NoLimit = int64(1<<63 - 1)

// Effect is one thing for the shell (or the volume) to do. A flat struct, so
// that a step allocates nothing.
type Effect struct {
	Kind    EffectKind
	Tag     uint64
	Peer    int // index into Config.Peers; -1: none
	Change  Change
	Epoch   uint64
	Until   int64
	OK      bool
	Text    string
	Version string
	Hard    HardState
	Msg     Msg
	Record  *Record
}

// MsgKind names a message between two cores.
type MsgKind uint8

// The messages. Frames carry the epoch, so a message of an old session never
// arrives here.
const (
	_            MsgKind = iota
	LeaseRequest         // P→S N, L (ns)
	LeaseGrant           // S→P N, G (ns): no promotion within G
	MoveRequest          // S→P "move the service to me": N is the operator's request
	MoveRefused          // P→S Text
	Go                   // P→S Epoch: I have stopped for good in Epoch; your promise is released. N 0: nobody asked
	HandOver             // P→S "promote": sent by a demote; answered by MoveRequest or MoveRefused
	Goodbye              // ↔ G (ns): I restart and am back within G
	News                 // P→S N: the record has this serial now; a hint to read it
)

// Msg is a message between two cores. Epoch is the sender's session epoch.
type Msg struct {
	Kind  MsgKind
	N     uint64
	Epoch uint64
	L, G  int64
	Text  string
}
