package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A frame is a header of 48 bytes and a body of up to a bound that depends on
// the type (bounds.go). All numbers are little-endian.
//
//	 0        4    5    6    7    8               16
//	┌────────┬────┬────┬────┬────┬────────────────┐
//	│ magic  │ver │type│flag│ 0  │ epoch          │
//	├────────┴────┴────┴────┴────┼────────────────┤
//	│ tag                     16 │ off         24 │
//	├─────────────┬──────────────┼────────┬───────┤
//	│ len      32 │ body len  36 │ hsum 40│sum 44 │
//	├─────────────┴──────────────┴────────┴───────┤
//	│ body, "body len" bytes                      │
//	└─────────────────────────────────────────────┘
//
//	magic     "TdmF". A stream that lost its place, or that is no stream of
//	          ours, is noticed at the first header instead of being read as
//	          lengths.
//	ver       layout of this header. The link's preface agrees on what is
//	          spoken; the byte here catches a frame relayed from elsewhere.
//	type,flag say what the rest means; bounds.go refuses what it does not know.
//	0         must be zero, so that it can mean something later.
//	epoch     the sender's term: a frame of a deposed primary that lay in a
//	          buffer is refused by the receiver, not by luck.
//	tag       pairs an answer with its question.
//	off, len  a range of the volume; checked against overflow here and
//	          against the volume by whoever knows its size.
//	body len  bounded by type before anything is allocated.
//	hsum      CRC32C of bytes 0-39. Without it a damaged body length would be
//	          found only after up to 32 MiB that may never arrive: the reader
//	          would wait, not fail.
//	sum       CRC32C of bytes 0-43 and the body. It binds the two together: TLS
//	          protects bytes between two sockets, this also covers the time
//	          that a body spends in our own queues, where a buffer released too
//	          early would otherwise be replicated without a sound.
const (
	// HeaderSize is the length of every frame's header.
	HeaderSize = 48

	magic   = 0x466d6454 // "TdmF"
	version = 1

	// readBuffer is how much a Reader takes from its stream at once: a batch
	// of 15 writes of 4 KiB, or 1365 acknowledgements. Bodies that do not fit
	// in it are read straight into their own memory.
	readBuffer = 64 << 10
)

// The offsets above are used as literals in one place each way; this is the
// compile-time check that they still add up.
var _ [HeaderSize]byte = [4 + 4*1 + 3*8 + 2*4 + 2*4]byte{}

// AppendHeader appends the header of m to dst. The body, of which it computes
// the checksum but which it does not copy, is m.Body followed by bodyParts;
// the caller writes header and parts in this order. It panics on a message
// that every Reader would refuse: that is a bug of this program, and it should
// show here and not as a link that goes down on another machine.
func AppendHeader(dst []byte, m *Msg, bodyParts ...[]byte) []byte {
	n := uint64(len(m.Body))
	for _, p := range bodyParts {
		n += uint64(len(p))
	}
	if err := check(m.Type.Channel(), m, n); err != nil {
		panic(fmt.Sprintf("wire: must not send %v: %v", m, err))
	}
	// Encoded in place: an array of our own would go to the heap, because the
	// checksum's assembly is behind a function pointer.
	dst = append(dst, make([]byte, HeaderSize)...)
	h := dst[len(dst)-HeaderSize:]
	binary.LittleEndian.PutUint32(h[0:], magic)
	h[4] = version
	h[5] = uint8(m.Type)
	h[6] = m.Flags
	binary.LittleEndian.PutUint64(h[8:], m.Epoch)
	binary.LittleEndian.PutUint64(h[16:], m.Tag)
	binary.LittleEndian.PutUint64(h[24:], m.Off)
	binary.LittleEndian.PutUint32(h[32:], m.Len)
	binary.LittleEndian.PutUint32(h[36:], uint32(n))
	t := crc32.MakeTable(crc32.Castagnoli) // a cached table of the standard library
	binary.LittleEndian.PutUint32(h[40:], crc32.Update(0, t, h[:40]))
	sum := crc32.Update(0, t, h[:44])
	sum = crc32.Update(sum, t, m.Body)
	for _, p := range bodyParts {
		sum = crc32.Update(sum, t, p)
	}
	binary.LittleEndian.PutUint32(h[44:], sum)
	return dst
}

// Reader decodes the frames of one channel. It is not safe for concurrent use.
type Reader struct {
	r       *bufio.Reader
	channel Channel
	pool    *Pool
	err     error // sticky: behind a refused frame there is no next one
}

// NewReader returns a Reader of the frames that arrive on channel ch of r.
// Bodies live in memory of pool.
func NewReader(r io.Reader, ch Channel, pool *Pool) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, readBuffer), channel: ch, pool: pool}
}

// Next decodes the next frame into m, whose previous content it overwrites
// without releasing it. The receiver owns m.Body until m.Release.
//
// It returns io.EOF at the end of a stream between two frames,
// io.ErrUnexpectedEOF inside one, an error that wraps one of this package's
// sentinels for a frame that it refuses, and the stream's own error otherwise;
// and the same error ever after.
func (r *Reader) Next(m *Msg) error {
	if r.err == nil {
		r.err = r.next(m)
	}
	if r.err != nil {
		*m = Msg{}
	}
	return r.err
}

func (r *Reader) next(m *Msg) error {
	h, err := r.r.Peek(HeaderSize)
	if err != nil {
		if errors.Is(err, io.EOF) && len(h) > 0 {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	n, err := r.header(m, h)
	if err != nil {
		return err
	}
	t := crc32.MakeTable(crc32.Castagnoli)
	got := crc32.Update(0, t, h[:44])
	want := binary.LittleEndian.Uint32(h[44:])
	// From here on h is not looked at: the next read moves the bytes under it.
	if _, err := r.r.Discard(HeaderSize); err != nil {
		return err
	}
	if n > 0 {
		b := r.pool.get(n)
		m.Body, m.buf = b.mem[:n], b
		if _, err := io.ReadFull(r.r, m.Body); err != nil {
			m.Release()
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		got = crc32.Update(got, t, m.Body)
	}
	if got != want {
		err := fmt.Errorf("%w: %v", ErrSum, m)
		m.Release()
		return err
	}
	return nil
}

// header decodes and checks the HeaderSize bytes of h and returns the length
// of the body. Nothing is believed before its checksum holds, and the checksum
// is not looked at before the magic: "not ours" is the more useful message.
func (r *Reader) header(m *Msg, h []byte) (n int, err error) {
	if g := binary.LittleEndian.Uint32(h[0:]); g != magic {
		return 0, fmt.Errorf("%w: starts with %#08x", ErrMagic, g)
	}
	sum := crc32.Update(0, crc32.MakeTable(crc32.Castagnoli), h[:40])
	if sum != binary.LittleEndian.Uint32(h[40:]) {
		return 0, ErrHeaderSum
	}
	if h[4] != version {
		return 0, fmt.Errorf("%w %d", ErrVersion, h[4])
	}
	if h[7] != 0 {
		return 0, ErrReserved
	}
	*m = Msg{
		Type:  Type(h[5]),
		Flags: h[6],
		Epoch: binary.LittleEndian.Uint64(h[8:]),
		Tag:   binary.LittleEndian.Uint64(h[16:]),
		Off:   binary.LittleEndian.Uint64(h[24:]),
		Len:   binary.LittleEndian.Uint32(h[32:]),
	}
	size := binary.LittleEndian.Uint32(h[36:])
	if err := check(r.channel, m, uint64(size)); err != nil {
		return 0, err
	}
	return int(size), nil
}

// Buffered returns the length of the next frame if all of it is in memory
// already, so that Next will not wait for the network; 0 otherwise. Half a
// frame does not count: a receiver that puts off its answers "because more is
// coming" would wait for a peer that waits for the answers. The frame may
// still turn out to be one that Next refuses.
func (r *Reader) Buffered() int {
	have := r.r.Buffered()
	if have < HeaderSize || r.err != nil {
		return 0
	}
	h, err := r.r.Peek(HeaderSize) // no read: the bytes are there
	if err != nil {
		return 0
	}
	if n := HeaderSize + int64(binary.LittleEndian.Uint32(h[36:])); n <= int64(have) {
		return int(n)
	}
	return 0
}
