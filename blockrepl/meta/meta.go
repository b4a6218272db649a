// Package meta is the on-disk format of Tandem's metadata: the superblock in
// two copies, the activity-log ring and one dirty bitmap a peer.
package meta

// Sizes of the format.
const (
	// BlockSize is the unit of every metadata write: one aligned record.
	BlockSize = 4096
	// SectorSize is what a disk is trusted to write whole. A torn block is a
	// mixture of old and new sectors.
	SectorSize = 512
	// MaxPeers is how many peers have a bitmap: formats hold four nodes.
	MaxPeers = 3
	// WordsPerPage is how many 64-bit words of dirty bits one bitmap block
	// carries: 8 sectors of 63 words, each sector with its own check word, so
	// that a torn bitmap block costs nothing and a damaged sector costs the
	// 63*64 blocks it stood for.
	WordsPerPage = 8 * 63
	// HistoryLen is how many former generations are kept.
	HistoryLen = 8
	// MaxALSlots is how many hot extents one activity-log block can name.
	MaxALSlots = 1000
)

// Peer is what the metadata keeps about one other node. Its index in
// Super.Peers is the bitmap slot.
type Peer struct {
	Name   string // "" is a free slot
	DiskID uint64 // of the disk last synchronised with; 0: none yet
	Base   uint64 // generation that the peer's copy plus its bitmap amounts to; 0: it carries Current
	Mark   uint64 // highest durable mark the peer has told us (put-back disks)
}

// Vote is kept for the layer that decides who is primary; the volume only
// stores it.
type Vote struct {
	ClusterID uint64
	Epoch     uint64
	Served    uint64
	LongestG  int64
	Serial    uint64
	Marked    bool
}

// Super is the superblock, decoded.
type Super struct {
	Seq          uint64 // one more with each write; even and odd go to different copies
	Cluster      string // at most 63 bytes
	Node         string
	DiskID       uint64 // drawn at init; also salts every checksum, so that blocks of a former life are foreign
	VolumeSize   int64  // bytes
	BlockShift   uint8  // one dirty bit stands for 1<<BlockShift bytes
	ExtentShift  uint8  // one activity-log extent is 1<<ExtentShift bytes
	ALSlots      uint16 // extents that can be hot
	ALRing       uint16 // blocks of the activity-log ring
	Peers        [MaxPeers]Peer
	Current      uint64 // generation of the data here; 0: no data yet
	Proposed     uint64 // generation named by a CAS that may have landed; 0: none
	Heard        uint64 // the same, of the primary that we follow; 0: none
	HeardEpoch   uint64 // in which it was heard
	History      [HistoryLen]uint64
	Mark         uint64 // this disk's durable mark
	Inconsistent bool   // a resync is under way: a mixture of two states
	Outdated     bool   // a put-back or foreign disk: to be compared in full
	Vote         Vote
	BootID       string // of the host that last wrote here; at most 63 bytes
	Identity     string // of the backing device; at most 255 bytes
	Replaces     uint64 // the disk whose place under Node's name this one was given; 0: none
}
