package meta

import (
	"encoding/binary"
	"fmt"
)

// The superblock. Offsets are in the payload (sector.go); the first 504 bytes
// are the first sector, so everything before 504 is where a hex dump shows it.
//
//	offset  width   field          which fault it is against
//	0        8      magic          "TANDEMMD": not ours
//	8        4      version        1; a newer program's block is refused whole
//	12       4      flags          1 Inconsistent, 2 Outdated, 4 Vote.Marked
//	16       8      DiskID         blocks of a former life
//	24       8      Seq            which copy is newer; low half: the tag
//	32       8      VolumeSize     a device that shrank
//	40       1      BlockShift     \
//	41       1      ExtentShift     | where everything else is
//	42       2      ALSlots         |
//	44       2      ALRing         /
//	46       1      MaxPeers       3 } a build with other constants
//	47       1      HistoryLen     8 }
//	48       8      Current        data of another history
//	56       8      Proposed       a CAS that may have landed
//	64       8      Mark           a disk put back from a snapshot
//	72      64      History
//	136      8      Vote.ClusterID another cluster's record
//	144      8      Vote.Epoch     a deposed primary
//	152      8      Vote.Served
//	160      8      Vote.LongestG
//	168      8      Vote.Serial    a record that was put back
//	176     64      Cluster        a string: 1 byte length, bytes, zeroes
//	240     64      Node
//	304     64      BootID         a host restart with a volatile cache
//	368    256      Identity       another device under the same path
//	624    3*88     Peers          Name (64), DiskID (8), Base (8), Mark (8)
//	888      8      Replaces       a new disk that nobody asked for
//	896      8      Heard          a primary that died between a CAS and its news
//	904      8      HeardEpoch     a proposal of a term that is over
//	912     ..      zero
//
// Written by the volume alone, flushed before anything that relies on it and
// before the next superblock is written: each goes over the copy that is
// older, and two writes between flushes could tear both.
//
// Magic, version, disk id, seq and the form of the sectors stay as they are in
// every later version: a reader has to be able to say "newer" and be sure.
const (
	superMagic   = "TANDEMMD"
	superVersion = 1

	flagInconsistent = 1
	flagOutdated     = 2
	flagMarked       = 4

	nameWidth     = 64
	identityWidth = 256
	peersAt       = 624
	peerWidth     = nameWidth + 3*8
	replacesAt    = peersAt + MaxPeers*peerWidth
	superSize     = replacesAt + 3*8
)

// codec walks over the payload in one direction: a Super's fields are named
// once, in order, and the same walk encodes and decodes.
type codec struct {
	b        []byte // a block
	at       int    // in the payload
	decoding bool
	bad      string // first field that no Encode writes
}

func (c *codec) bytes(n int) func(i int) *byte {
	from := c.at
	c.at += n
	return func(i int) *byte { return &c.b[at(from+i)] }
}

func (c *codec) uint(v uint64, n int) uint64 {
	p := c.bytes(n)
	var got uint64
	for i := range n {
		if c.decoding {
			got |= uint64(*p(i)) << (8 * i)
		} else {
			*p(i) = byte(v >> (8 * i))
		}
	}
	return got
}

func (c *codec) u8(v *uint8)   { *v = uint8(c.keep(uint64(*v), 1)) }
func (c *codec) u16(v *uint16) { *v = uint16(c.keep(uint64(*v), 2)) }
func (c *codec) u32(v *uint32) { *v = uint32(c.keep(uint64(*v), 4)) }
func (c *codec) u64(v *uint64) { *v = c.keep(*v, 8) }
func (c *codec) i64(v *int64)  { *v = int64(c.keep(uint64(*v), 8)) }

func (c *codec) keep(v uint64, n int) uint64 {
	if got := c.uint(v, n); c.decoding {
		return got
	}
	return v
}

// constant is a field that has one value only.
func (c *codec) constant(v uint64, n int, field string) {
	if got := c.uint(v, n); c.decoding && got != v {
		c.fail(field)
	}
}

// text is a length byte, so many bytes, and zeroes up to width.
func (c *codec) text(v *string, width int, field string) {
	p := c.bytes(width)
	if !c.decoding {
		*p(0) = byte(len(*v))
		for i := range len(*v) {
			*p(1 + i) = (*v)[i]
		}
		return
	}
	n := int(*p(0))
	if n >= width {
		c.fail(field)
		return
	}
	s := make([]byte, width-1)
	for i := range s {
		s[i] = *p(1 + i)
		if i >= n && s[i] != 0 {
			c.fail(field)
		}
	}
	*v = string(s[:n])
}

func (c *codec) fail(field string) {
	if c.bad == "" {
		c.bad = field
	}
}

func (c *codec) super(s *Super) {
	flags := bit(s.Inconsistent, flagInconsistent) | bit(s.Outdated, flagOutdated) | bit(s.Vote.Marked, flagMarked)
	c.constant(binary.LittleEndian.Uint64([]byte(superMagic)), 8, "magic")
	c.constant(superVersion, 4, "version")
	c.u32(&flags)
	c.u64(&s.DiskID)
	c.u64(&s.Seq)
	c.i64(&s.VolumeSize)
	c.u8(&s.BlockShift)
	c.u8(&s.ExtentShift)
	c.u16(&s.ALSlots)
	c.u16(&s.ALRing)
	c.constant(MaxPeers, 1, "number of peers")
	c.constant(HistoryLen, 1, "length of the history")
	c.u64(&s.Current)
	c.u64(&s.Proposed)
	c.u64(&s.Mark)
	for i := range s.History {
		c.u64(&s.History[i])
	}
	c.u64(&s.Vote.ClusterID)
	c.u64(&s.Vote.Epoch)
	c.u64(&s.Vote.Served)
	c.i64(&s.Vote.LongestG)
	c.u64(&s.Vote.Serial)
	c.text(&s.Cluster, nameWidth, "cluster name")
	c.text(&s.Node, nameWidth, "node name")
	c.text(&s.BootID, nameWidth, "boot id")
	c.text(&s.Identity, identityWidth, "identity")
	for i := range s.Peers {
		p := &s.Peers[i]
		c.text(&p.Name, nameWidth, "peer name")
		c.u64(&p.DiskID)
		c.u64(&p.Base)
		c.u64(&p.Mark)
	}
	c.u64(&s.Replaces)
	c.u64(&s.Heard)
	c.u64(&s.HeardEpoch)
	if !c.decoding {
		return
	}
	if flags&^(flagInconsistent|flagOutdated|flagMarked) != 0 {
		c.fail("flags")
	}
	s.Inconsistent, s.Outdated, s.Vote.Marked = flags&flagInconsistent != 0, flags&flagOutdated != 0, flags&flagMarked != 0
	if !zeroFrom(c.b, c.at) {
		c.fail("reserved space")
	}
}

func bit(set bool, flag uint32) uint32 {
	if set {
		return flag
	}
	return 0
}

// Encode makes the block for SuperOffset(s.Seq). A Super that does not
// Validate is a bug of the caller, and panics: better no superblock than one
// that will not be read back.
func (s *Super) Encode(dst []byte) {
	mustBlock(dst)
	if err := s.Validate(); err != nil {
		panic(err)
	}
	clear(dst)
	c := codec{b: dst}
	c.super(s)
	if c.at != superSize {
		panic("meta: the superblock is not as drawn")
	}
	superName(s.DiskID).seal(dst, uint32(s.Seq))
}

// DecodeSuper reads one copy. The error wraps ErrNoMetadata, ErrNewer, ErrTorn,
// ErrDamaged, or ErrInvalid (a sound block with impossible fields: a bug, or
// somebody's hand).
func DecodeSuper(b []byte) (*Super, error) {
	if len(b) != BlockSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrNoMetadata, len(b))
	}
	if string(b[:8]) != superMagic {
		return nil, ErrNoMetadata
	}
	seq := binary.LittleEndian.Uint64(b[24:])
	if err := superName(binary.LittleEndian.Uint64(b[16:])).whole(b, uint32(seq)); err != nil {
		return nil, err
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > superVersion {
		return nil, fmt.Errorf("%w: format %d, this program knows %d", ErrNewer, v, superVersion)
	}
	s := new(Super)
	c := codec{b: b, decoding: true}
	if c.super(s); c.bad != "" {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, c.bad)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

func superName(diskID uint64) name { return name{diskID: diskID, kind: kindSuper} }

// Validate reports the first contradiction; the error wraps ErrInvalid.
func (s *Super) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
	}
	if err := checkSize(s.VolumeSize); err != nil {
		return err
	}
	switch {
	case s.BlockShift < MinBlockShift || s.BlockShift > maxBlockShift || ceil(s.VolumeSize, s.BlockShift) > MaxBits:
		return bad("blocks of 2^%d bytes in a volume of %d", s.BlockShift, s.VolumeSize)
	case s.ExtentShift < minExtentShift || s.ExtentShift > maxExtentShift:
		return bad("extents of 2^%d bytes", s.ExtentShift)
	case s.ALSlots == 0 || s.ALSlots > MaxALSlots:
		return bad("%d activity-log slots", s.ALSlots)
	case s.ALRing < minALRing || s.ALRing > maxALRing:
		return bad("an activity log of %d blocks", s.ALRing)
	case s.DiskID == 0:
		return bad("disk id 0")
	case s.DiskID == s.Replaces:
		return bad("disk %016x replaces itself", s.DiskID)
	case s.Vote.LongestG < 0:
		return bad("a negative promise")
	case !validName(s.Cluster):
		return bad("cluster name %q", s.Cluster)
	case !validName(s.Node):
		return bad("node name %q", s.Node)
	case len(s.BootID) >= nameWidth || !printable(s.BootID):
		return bad("boot id %q", s.BootID)
	case len(s.Identity) >= identityWidth || !printable(s.Identity):
		return bad("identity %q", s.Identity)
	}
	for i, p := range s.Peers {
		if p.Name == "" {
			continue
		}
		if !validName(p.Name) || p.Name == s.Node {
			return bad("peer name %q", p.Name)
		}
		for _, q := range s.Peers[:i] {
			if p.Name == q.Name {
				return bad("two peers named %q", p.Name)
			}
		}
	}
	return nil
}

// validName is the project's rule for cluster and node names
// (failover/record.ValidName, which this package must not import).
func validName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return s != "" && len(s) < nameWidth
}

// printable: what comes out of a damaged disk ends up on a terminal.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
