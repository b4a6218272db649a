package wire

import (
	"fmt"
	"math"
)

// The longest bodies. A Reader refuses a longer one before it allocates
// anything, so these numbers are also what one hostile or damaged header can
// make an agent allocate.
const (
	// MaxData is the longest Write: the longest request that the NBD server
	// advertises (its "maximum block size"), which is also the longest range
	// that one resync frame may speak of.
	MaxData = 32 << 20
	// maxRsData is MaxData and a bitmap of up to one bit for each 512 bytes.
	maxRsData = MaxData + maxSmall
	// maxSmall bounds documents (Hello, Control) and bitmaps.
	maxSmall = 64 << 10
	// maxList bounds lists of extents (256 Ki extents of an activity log) and
	// of digests (32 bytes for each 4 KiB of MaxData are 256 KiB).
	maxList = 1 << 20
)

// bound says what a frame of one type may look like.
type bound struct {
	name    string
	channel Channel
	flags   uint8 // the flags it may carry
	min     uint32
	max     uint32 // bytes of body
	unit    uint32 // the body is a multiple of it
	ranged  bool   // Off and Len are a range of the volume
	sized   bool   // the body is exactly Len bytes
	maxLen  uint32 // the largest Len
}

// boundOf returns the bounds of t; ok is false for a type that does not
// exist. It is a switch and no table in a variable, so that nothing can change
// it; the compiler turns it into a jump table.
func boundOf(t Type) (b bound, ok bool) {
	const anyFlags = 0xff
	const anyLen = math.MaxUint32
	switch t {
	case Hello:
		return bound{"Hello", Ctl, anyFlags, 0, maxSmall, 1, false, false, anyLen}, true
	case Control:
		return bound{"Control", Ctl, anyFlags, 0, maxSmall, 1, false, false, anyLen}, true
	case DirtyPage:
		return bound{"DirtyPage", Ctl, anyFlags, 1, maxSmall, 1, false, false, anyLen}, true
	case DirtyEnd:
		return bound{"DirtyEnd", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case SyncStart:
		return bound{"SyncStart", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case SyncReady:
		return bound{"SyncReady", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case SyncDone:
		return bound{"SyncDone", Ctl, anyFlags, 0, 512, 8, false, false, anyLen}, true
	case SyncAck:
		return bound{"SyncAck", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Mark:
		return bound{"Mark", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Clean:
		return bound{"Clean", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true

	case Write:
		return bound{"Write", Data, FUA | NoHole, 0, MaxData, 1, true, true, MaxData}, true
	case Zero:
		return bound{"Zero", Data, FUA | NoHole, 0, 0, 1, true, false, anyLen}, true
	case Flush:
		return bound{"Flush", Data, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Ack:
		return bound{"Ack", Data, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Nack:
		return bound{"Nack", Data, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Retire:
		return bound{"Retire", Data, anyFlags, 0, maxList, 4, false, false, anyLen}, true
	case HotSet:
		return bound{"HotSet", Data, anyFlags, 0, maxList, 4, false, false, anyLen}, true

	case RsCheck:
		return bound{"RsCheck", Bulk, anyFlags, 0, maxList, 1, true, false, MaxData}, true
	case RsNeed:
		return bound{"RsNeed", Bulk, anyFlags, 0, maxSmall, 1, true, false, MaxData}, true
	case RsData:
		return bound{"RsData", Bulk, anyFlags, 0, maxRsData, 1, true, false, MaxData}, true
	case RsAck:
		return bound{"RsAck", Bulk, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case RsFlush:
		return bound{"RsFlush", Bulk, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case RsFlushed:
		return bound{"RsFlushed", Bulk, anyFlags, 0, 0, 1, false, false, anyLen}, true

	case Lacks:
		return bound{"Lacks", Data, anyFlags, 8, maxSmall, 8, false, false, anyLen}, true
	case Level:
		return bound{"Level", Data, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Kept:
		return bound{"Kept", Data, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Propose:
		return bound{"Propose", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Proposed:
		return bound{"Proposed", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Adopt:
		return bound{"Adopt", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	case Adopted:
		return bound{"Adopted", Ctl, anyFlags, 0, 0, 1, false, false, anyLen}, true
	}
	return bound{}, false
}

// check says whether a header with a body of n bytes may travel on ch. Both
// ends ask it: a Reader to refuse, AppendHeader to panic on what its own
// program must never say.
func check(ch Channel, m *Msg, n uint64) error {
	b, ok := boundOf(m.Type)
	switch {
	case !ok:
		return fmt.Errorf("%w %d", ErrType, uint8(m.Type))
	case b.channel != ch:
		return fmt.Errorf("%w: %s on %s", ErrChannel, b.name, ch)
	case m.Flags&^b.flags != 0:
		return fmt.Errorf("%w: %#x on %s", ErrFlags, m.Flags, b.name)
	case n < uint64(b.min) || n > uint64(b.max) || n%uint64(b.unit) != 0:
		return fmt.Errorf("%w: %d bytes on %s", ErrLength, n, b.name)
	case b.sized && n != uint64(m.Len):
		return fmt.Errorf("%w: %s of %d bytes has a body of %d", ErrLength, b.name, m.Len, n)
	case m.Len > b.maxLen:
		return fmt.Errorf("%w: %s speaks of %d bytes", ErrLength, b.name, m.Len)
	case b.ranged && (m.Off > math.MaxInt64 || m.Off+uint64(m.Len) > math.MaxInt64):
		// A file offset is signed; the sum of two values below 2^63 cannot wrap.
		return fmt.Errorf("%w: %s at %d of %d bytes", ErrRange, b.name, m.Off, m.Len)
	}
	return nil
}

// Channel returns the only channel that frames of type t may travel on, or
// Channels for a type that does not exist.
func (t Type) Channel() Channel {
	if b, ok := boundOf(t); ok {
		return b.channel
	}
	return Channels
}

// String returns the name of the type as this package spells it.
func (t Type) String() string {
	if b, ok := boundOf(t); ok {
		return b.name
	}
	return fmt.Sprintf("Type(%d)", uint8(t))
}

// String returns the name of the channel.
func (c Channel) String() string {
	switch c {
	case Ctl:
		return "ctl"
	case Data:
		return "data"
	case Bulk:
		return "bulk"
	}
	return fmt.Sprintf("Channel(%d)", uint8(c))
}

// String describes the message without its body, for errors and traces.
func (m *Msg) String() string {
	return fmt.Sprintf("%s epoch=%d tag=%d off=%d len=%d flags=%#x body=%d",
		m.Type, m.Epoch, m.Tag, m.Off, m.Len, m.Flags, len(m.Body))
}
