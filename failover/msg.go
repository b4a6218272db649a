package failover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrMsg means a message that no core of this release has written.
var ErrMsg = errors.New("failover: malformed message")

const (
	msgHeader = 35
	// maxMsgText bounds what a peer can make us allocate and print.
	maxMsgText = 512
	// maxSpan bounds L and G. A peer that asks for a promise of a year would
	// keep us from ever taking over from it.
	maxSpan = int64(10 * 60 * 1e9)
)

// AppendMsg appends m as it travels. The frame around it carries the length
// and a CRC32C, so this has neither.
//
//	 0      1        9          17       25       33         35
//	┌──────┬────────┬──────────┬────────┬────────┬──────────┬────────────┐
//	│ kind │ N      │ Epoch    │ L (ns) │ G (ns) │ text len │ text       │   big endian
//	│ u8   │ u64    │ u64      │ u64    │ u64    │ u16      │ ≤512 UTF-8 │
//	└──────┴────────┴──────────┴────────┴────────┴──────────┴────────────┘
//
// The epoch stands here as well as in the frame: the frame's says in which
// session the message travelled, this one which term it is about. Fields that
// a kind does not use are zero. A longer Text is cut.
func AppendMsg(dst []byte, m Msg) []byte {
	text := clip(m.Text)
	dst = append(dst, byte(m.Kind))
	dst = binary.BigEndian.AppendUint64(dst, m.N)
	dst = binary.BigEndian.AppendUint64(dst, m.Epoch)
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.L))
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.G))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(text)))
	return append(dst, text...)
}

// DecodeMsg is the inverse of AppendMsg. It accepts nothing else: an exact
// length, a known kind, spans within bounds, no field that the kind has no use
// for. The error wraps ErrMsg.
func DecodeMsg(b []byte) (Msg, error) {
	if len(b) < msgHeader || len(b) > msgHeader+maxMsgText {
		return Msg{}, fmt.Errorf("%w: %d bytes", ErrMsg, len(b))
	}
	if n := int(binary.BigEndian.Uint16(b[33:])); n != len(b)-msgHeader {
		return Msg{}, fmt.Errorf("%w: %d bytes of text announced, %d there", ErrMsg, n, len(b)-msgHeader)
	}
	l, g := binary.BigEndian.Uint64(b[17:]), binary.BigEndian.Uint64(b[25:])
	if l > uint64(maxSpan) || g > uint64(maxSpan) {
		return Msg{}, fmt.Errorf("%w: a span out of bounds", ErrMsg)
	}
	if !utf8.Valid(b[msgHeader:]) {
		return Msg{}, fmt.Errorf("%w: text that is not UTF-8", ErrMsg)
	}
	m := Msg{
		Kind:  MsgKind(b[0]),
		N:     binary.BigEndian.Uint64(b[1:]),
		Epoch: binary.BigEndian.Uint64(b[9:]),
		L:     int64(l),
		G:     int64(g),
		Text:  string(b[msgHeader:]),
	}
	ok := false
	switch m.Kind {
	case LeaseRequest:
		ok = m.N > 0 && m.L > 0 && m.G == 0 && m.Text == ""
	case LeaseGrant:
		ok = m.N > 0 && m.L == 0 && m.G > 0 && m.Text == ""
	case MoveRequest, HandOver:
		ok = m.L == 0 && m.G == 0 && m.Text == ""
	case MoveRefused:
		ok = m.L == 0 && m.G == 0
	case Go:
		ok = m.L == 0 && m.G == 0 && m.Text == ""
	case News:
		ok = m.N > 0 && m.L == 0 && m.G == 0 && m.Text == ""
	case Goodbye:
		ok = m.N == 0 && m.L == 0 && m.Text == ""
	}
	if !ok {
		return Msg{}, fmt.Errorf("%w: %v with fields that do not belong to it", ErrMsg, m.Kind)
	}
	return m, nil
}

// clip cuts s to what a message carries, never inside a character.
func clip(s string) string {
	if !utf8.ValidString(s) {
		return "(a text that is not UTF-8)"
	}
	if len(s) <= maxMsgText {
		return s
	}
	n := maxMsgText
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
