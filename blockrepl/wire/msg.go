// Package wire is the format of everything that two agents say to each other:
// the frame (frame.go) and the names of the frame types (this file). It is a
// pure leaf: no I/O beyond an io.Reader, no clock, no goroutine.
package wire

// Channel is one of a link's three ordered streams. Nothing is ordered
// between two channels; whoever needs order across them holds a range lock.
type Channel uint8

const (
	// Ctl carries the handshake, leases and everything small and urgent. It
	// shares a TCP connection with Data but has its own flow-control window,
	// so a peer whose disk hangs still answers lease requests.
	Ctl Channel = iota
	// Data carries application writes and flushes and their acknowledgements.
	Data
	// Bulk carries resync and lives on a TCP connection of its own, because
	// one TCP stream cannot keep bulk from delaying heartbeats.
	Bulk
	// Channels is the number of channels.
	Channels
)

// Type names a frame.
type Type uint8

// The frame types. "P→S" is said by the primary of the session to its
// secondary, "S→P" the other way, "↔" by both.
const (
	_ Type = iota

	// Ctl.
	Hello     // ↔ Body: the volume's handshake document
	Control   // ↔ Body: a message of the layer that decides who is primary
	DirtyPage // S→P Off: first byte that the bits stand for; Body: bits, one a block
	DirtyEnd  // S→P no more DirtyPage
	SyncStart // P→S Flags: mode; Off: generation to carry meanwhile
	SyncReady // S→P the target's metadata is durable; frames may follow
	SyncDone  // P→S Off: generation, Body: the ones before it (8 bytes each); the target holds everything
	SyncAck   // S→P the target has flushed and carries the generation
	Mark      // ↔ Off: the sender's durable mark
	Clean     // P→S the target may drop the bits it keeps for the sender

	// Data.
	Write     // P→S Off, Len, Flags, Body of Len bytes
	Zero      // P→S Off, Len, Flags: zeroes (trim or write-zeroes), no Body
	Flush     // P→S
	Ack       // S→P Tag: of a Write, Zero or Flush
	Nack      // S→P Tag; Off: error number: the target's disk failed
	Retire    // P→S Body: extents (4 bytes each) that left the sender's activity log
	HotSet    // P→S Body: extents of the sender's activity log; all others are retired. Flags 1: take them all over, then say Kept
	_         // (kept free for write-epoch barriers of protocols A and B)
	_         //
	RsCheck   // Bulk P→S Tag, Off, Len, Body: one digest a block
	RsNeed    // Bulk S→P Tag, Body: bitmap of the blocks that differ
	RsData    // Bulk P→S Tag, Off, Len, Body: bitmap, then the blocks that differ
	RsAck     // Bulk S→P Tag: written (not flushed)
	RsFlush   // Bulk P→S Tag
	RsFlushed // Bulk S→P Tag

	// With more than two nodes (blockrepl/others.go). Node is a node's number: a
	// hash of its name, because everybody has indices of his own.
	Lacks    // Data P→S Tag: first word, Off: node, Body: bits, one a block: what that node lacks
	Level    // Data P→S Off: node, Tag: generation: it lacks nothing any more and carries that
	Kept     // Data S→P the bits and the log that began the session are durable
	Propose  // Ctl P→S Off: generation that the next record names
	Proposed // Ctl S→P Off: it is durable
	Adopt    // Ctl P→S Off: generation of the data from here on, Tag: the one before
	Adopted  // Ctl S→P Off: it is durable
	numTypes
)

// Flags of Write and Zero.
const (
	// FUA asks for the data to be durable before the Ack.
	FUA uint8 = 1 << iota
	// NoHole asks for zeroes that keep their space.
	NoHole
)

// Msg is one frame, decoded.
//
// Body is a view into a pooled buffer when the message came from a Reader; it
// is valid until Release. A Msg may be copied; the copies share the body, and
// only one of them may release it.
type Msg struct {
	Type  Type
	Flags uint8
	Epoch uint64 // the sender's epoch; a receiver refuses what is not the session's
	Tag   uint64 // chosen by the asker, repeated in the answer
	Off   uint64 // bytes from the start of the volume, or what Type says
	Len   uint32 // bytes of the volume that the message speaks of
	Body  []byte

	buf *buffer // where Body lives; nil when the caller brought the memory
}
