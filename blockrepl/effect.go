package blockrepl

import (
	"tandem/blockrepl/meta"
	"tandem/blockrepl/wire"
)

// MaxPeers is how many peers a volume can have.
const MaxPeers = meta.MaxPeers

// OpKind is what a client, or the volume itself, asks of the volume.
type OpKind uint8

// The kinds of operation.
const (
	_ OpKind = iota
	OpRead
	OpWrite
	OpZero // trim and write-zeroes: the range reads as zeroes on every copy
	OpFlush
)

// Flags of an operation.
const (
	FUA    = wire.FUA    // durable on every counted copy before it completes
	NoHole = wire.NoHole // OpZero: keep the space allocated
)

// Tag names an operation from its Submit to its Sent. The low half is a slot
// number, the high half counts the slot's lives, so that a late answer can
// never be taken for that of a younger operation.
type Tag uint64

// Errno is a completion's outcome; 0 is success. The numbers are those of NBD.
type Errno uint32

// The outcomes.
const (
	OK        Errno = 0
	EIO       Errno = 5
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	ESHUTDOWN Errno = 108
)

// EffectKind names an effect.
type EffectKind uint8

// The effects, the fields they use, and the input that answers each.
const (
	_ EffectKind = iota

	// Local disk. Tag names one of our own operations.

	// DiskRead reads Off, Len into the buffer of Tag. Answer: DiskDone.
	DiskRead
	// DiskWrite writes the payload of Tag at Off, Len; with FUA in Flags it is
	// durable when answered. Answer: DiskDone.
	DiskWrite
	// DiskZero makes the range read as zeroes. Answer: DiskDone.
	DiskZero
	// DiskFlush makes durable everything whose answer was given before this
	// effect was emitted. Answer: DiskDone.
	DiskFlush
	// Apply is a write, zero or flush (Op) that Peer sent us under PeerTag,
	// with the payload that Recv's tag names (Tag). Answer: DiskDone.
	Apply
	// Meta writes Data (whole metadata blocks) at Off within the metadata
	// region, as the MetaID-th metadata job, after the job before it; Data is
	// the shell's to keep. With Last the shell then flushes and answers
	// MetaDone(MetaID).
	Meta

	// Resync, source: read Off, Len, compute a digest a block, send
	// wire.RsCheck with Tag. On the answer wire.RsNeed the shell sends the
	// blocks asked for as wire.RsData (RsSend). The shell keeps the bytes of Tag
	// from RsRead until RsDrop. Msg.Epoch is for its frames. Answer: DiskDone.
	RsRead
	// RsSend sends the blocks of Tag that the target asked for: Data is their
	// bitmap. Answer: nothing.
	RsSend
	// RsDrop lets go of Tag's bytes.
	RsDrop
	// Resync, target: compare the digests that came with Peer's RsCheck with
	// our own blocks (Data, good until Recv's caller lets the frame go) and
	// answer wire.RsNeed with PeerTag. Answer: nothing; a read error is DiskFailed.
	RsCompare
	// RsApply writes the blocks that came with Peer's RsData. Answer: DiskDone.
	RsApply

	// Links. Send sends Msg to Peer on Msg's channel; for wire.Write the
	// payload is that of operation Tag.
	Send
	// Reset asks for the link to Peer to be taken down: Text. Answer: LinkDown.
	Reset

	// Complete answers the client of Tag with Err. Answer: Sent, when the
	// reply is in the client's socket or can never be.
	Complete

	// Released: nobody reads the payload of Tag any more. It comes only if
	// Holds said so after Sent.
	Released

	// To the layer that decides who is primary.

	// PeerHello: the handshake with Peer says Hello. Answer: Follow, or nothing.
	PeerHello
	// SessionUp: a replicating session runs with Peer.
	SessionUp
	// CaughtUp: no bit is left for Peer. An uncounted one may be counted; one
	// that is counted but not in the record may be taken into it.
	CaughtUp
	// MustLeave: counted Peer cannot stay in the in-sync set: Text.
	MustLeave
	// Ready answers Prepare: Change is in Prep, the generation in Gen. For a shrink
	// every other counted peer with a session has heard of it, durably.
	Ready
	// Began: BecomePrimary is done, requests are taken.
	Began
	// Stopped answers Quiesce.
	Stopped
	// Failed: the local disk failed: Text.
	Failed
	// CopyChanged: the state of our copy changed; see Core.Copy.
	CopyChanged
	// VoteDurable: the vote given under Gen is durable.
	VoteDurable
	// Unmarked: we are counted again: the host-restart mark may go.
	Unmarked

	// Event is one line for the log: Text.
	Event
	// Forgot: what was kept of the node Text is durably gone.
	Forgot
)

// Prep says what is being prepared.
type Prep uint8

// The preparations: see Core.Prepare.
const (
	_         Prep = iota
	PrepAlone      // candidate: drop and refuse sessions, drain, flush, propose
	PrepShrink
	PrepGrow
)

// PeerHelloInfo is what a peer's handshake says to the layer above.
type PeerHelloInfo struct {
	Epoch   uint64 // highest epoch seen by the peer
	Serving bool   // it is Primary in Epoch
	Marked  bool   // its host restarted with a volatile cache while a member
	Usable  bool   // its copy could be promoted
	DiskID  uint64
	// Replaces is the disk whose place DiskID was given, 0 if none.
	Replaces uint64
}

// Effect is one thing for the shell to do.
type Effect struct {
	Kind    EffectKind
	Op      OpKind
	Flags   uint8
	Prep    Prep
	Last    bool
	Peer    int
	Tag     Tag
	PeerTag uint64
	Off     int64
	Len     int64
	MetaID  uint64
	Gen     uint64
	Err     Errno
	Chan    wire.Channel
	Msg     wire.Msg
	Data    []byte
	Hello   PeerHelloInfo
	Text    string
}
