package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// The constants of the protocol document (NetworkBlockDevice/nbd, doc/proto.md) that go-nbd's protocol package lacks,
// under the document's own section names. The names are the document's without the NBD_ prefix, which the package
// supplies: NBD_OPT_STARTTLS is nbd.OPT_STARTTLS. The errors among the option replies lose REP_ too, as in nbd.ERR_POLICY.
//
// The numbers of LIST_META_CONTEXT and SET_META_CONTEXT were 10 and 11 in drafts up to 2019; 9 and 10 are what the
// document says now and what qemu, libnbd and nbdkit send.

// Values / Handshake phase / Handshake flags
const (
	FLAG_FIXED_NEWSTYLE = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	FLAG_NO_ZEROES      = uint16(1 << 1)
)

// Values / Handshake phase / Client flags
const (
	FLAG_C_FIXED_NEWSTYLE = uint32(1 << 0)
	FLAG_C_NO_ZEROES      = uint32(1 << 1)
)

// Values / Handshake phase / Transmission flags
const (
	FLAG_HAS_FLAGS         = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	FLAG_READ_ONLY         = uint16(1 << 1)
	FLAG_SEND_FLUSH        = uint16(1 << 2)
	FLAG_SEND_FUA          = uint16(1 << 3)
	FLAG_ROTATIONAL        = uint16(1 << 4)
	FLAG_SEND_TRIM         = uint16(1 << 5)
	FLAG_SEND_WRITE_ZEROES = uint16(1 << 6)
	FLAG_SEND_DF           = uint16(1 << 7)
	FLAG_CAN_MULTI_CONN    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	FLAG_SEND_RESIZE       = uint16(1 << 9)
	FLAG_SEND_CACHE        = uint16(1 << 10)
	FLAG_SEND_FAST_ZERO    = uint16(1 << 11)
)

// Values / Handshake phase / Option types
const (
	OPT_EXPORT_NAME       = uint32(1)
	OPT_ABORT             = protocol.NEGOTIATION_ID_OPTION_ABORT
	OPT_LIST              = protocol.NEGOTIATION_ID_OPTION_LIST
	OPT_PEEK_EXPORT       = uint32(4)
	OPT_STARTTLS          = uint32(5)
	OPT_INFO              = protocol.NEGOTIATION_ID_OPTION_INFO
	OPT_GO                = protocol.NEGOTIATION_ID_OPTION_GO
	OPT_STRUCTURED_REPLY  = uint32(8)
	OPT_LIST_META_CONTEXT = uint32(9)
	OPT_SET_META_CONTEXT  = uint32(10)
	OPT_EXTENDED_HEADERS  = uint32(11)
)

// Values / Handshake phase / Option reply types
const (
	REP_ACK          = protocol.NEGOTIATION_TYPE_REPLY_ACK
	REP_SERVER       = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	REP_INFO         = protocol.NEGOTIATION_TYPE_REPLY_INFO
	REP_META_CONTEXT = uint32(4)

	repFlagError = uint32(1 << 31)

	ERR_UNSUP           = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	ERR_POLICY          = repFlagError | 2
	ERR_INVALID         = repFlagError | 3
	ERR_PLATFORM        = repFlagError | 4
	ERR_TLS_REQD        = repFlagError | 5
	ERR_UNKNOWN         = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	ERR_SHUTDOWN        = repFlagError | 7
	ERR_BLOCK_SIZE_REQD = repFlagError | 8
	ERR_TOO_BIG         = repFlagError | 9
	ERR_EXT_HEADER_REQD = repFlagError | 10
)

// Values / Handshake phase / Metadata contexts
const (
	metaContextBaseAllocation = "base:allocation"
	// metaContextID is the id under which block status replies name base:allocation, the only context there is.
	metaContextID = uint32(1)

	STATE_HOLE = uint32(1 << 0)
	STATE_ZERO = uint32(1 << 1)
)

// Values / Transmission phase / Command flags
const (
	CMD_FLAG_FUA         = uint16(1 << 0)
	CMD_FLAG_NO_HOLE     = uint16(1 << 1)
	CMD_FLAG_DF          = uint16(1 << 2)
	CMD_FLAG_REQ_ONE     = uint16(1 << 3)
	CMD_FLAG_FAST_ZERO   = uint16(1 << 4)
	CMD_FLAG_PAYLOAD_LEN = uint16(1 << 5)
)

// Values / Transmission phase / Structured reply flags and types
const (
	structuredReplyMagic = uint32(0x668e33ef)

	REPLY_FLAG_DONE = uint16(1 << 0)

	REPLY_TYPE_NONE         = uint16(0)
	REPLY_TYPE_OFFSET_DATA  = uint16(1)
	REPLY_TYPE_OFFSET_HOLE  = uint16(2)
	REPLY_TYPE_BLOCK_STATUS = uint16(5)
	replyTypeErrorBit       = uint16(1 << 15)
	REPLY_TYPE_ERROR        = replyTypeErrorBit | 1
	REPLY_TYPE_ERROR_OFFSET = replyTypeErrorBit | 2
)

// Values / Transmission phase / Request types
const (
	CMD_READ         = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CMD_WRITE        = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CMD_DISC         = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CMD_FLUSH        = uint16(3)
	CMD_TRIM         = uint16(4)
	CMD_CACHE        = uint16(5)
	CMD_WRITE_ZEROES = uint16(6)
	CMD_BLOCK_STATUS = uint16(7)
)

// The block sizes told in NBD_INFO_BLOCK_SIZE. They are part of Tandem's contract with its users.
const (
	MinimumBlock   = 512
	PreferredBlock = 4096
	MaximumBlock   = 32 << 20
)

// maxString is the document's bound on names and messages ("MUST be no longer than 4096 bytes").
const maxString = 4096

// requestHeader is the request message. The client writes it; only the magic guards it.
//
//	 0        4       6      8        16       24       28
//	+--------+-------+------+--------+--------+--------+--------------------+
//	| magic  | flags | type | handle | offset | length | data (WRITE only)  |
//	+--------+-------+------+--------+--------+--------+--------------------+
//
// magic defends against a stream that has lost its step: nothing after a wrong one can be believed. offset and length
// are the client's and unchecked here.
type requestHeader = protocol.TransmissionRequestHeader

const requestHeaderLen = 28

// decodeRequest takes the header apart. The caller has looked at the length of b; encoding/binary's reflection is too
// slow for the one decoder that runs per request.
func decodeRequest(b []byte) requestHeader {
	_ = b[requestHeaderLen-1]
	return requestHeader{
		RequestMagic: binary.BigEndian.Uint32(b[0:]),
		CommandFlags: binary.BigEndian.Uint16(b[4:]),
		Type:         binary.BigEndian.Uint16(b[6:]),
		Handle:       binary.BigEndian.Uint64(b[8:]),
		Offset:       binary.BigEndian.Uint64(b[16:]),
		Length:       binary.BigEndian.Uint32(b[24:]),
	}
}

func appendRequest(b []byte, h requestHeader) []byte {
	b = binary.BigEndian.AppendUint32(b, h.RequestMagic)
	b = binary.BigEndian.AppendUint16(b, h.CommandFlags)
	b = binary.BigEndian.AppendUint16(b, h.Type)
	b = binary.BigEndian.AppendUint64(b, h.Handle)
	b = binary.BigEndian.AppendUint64(b, h.Offset)
	return binary.BigEndian.AppendUint32(b, h.Length)
}

// appendSimpleReply writes the simple reply message.
//
//	 0        4       8        16
//	+--------+-------+--------+----------------------------+
//	| magic  | error | handle | data (successful READ only) |
//	+--------+-------+--------+----------------------------+
func appendSimpleReply(b []byte, code Error, handle uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, protocol.TRANSMISSION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return binary.BigEndian.AppendUint64(b, handle)
}

// appendChunk writes the header of a structured reply chunk. Every reply of ours is one chunk, so DONE is always set.
//
//	 0        4       6      8        16       20
//	+--------+-------+------+--------+--------+---------+
//	| magic  | flags | type | handle | length | payload |
//	+--------+-------+------+--------+--------+---------+
func appendChunk(b []byte, typ uint16, handle uint64, length uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, structuredReplyMagic)
	b = binary.BigEndian.AppendUint16(b, REPLY_FLAG_DONE)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, handle)
	return binary.BigEndian.AppendUint32(b, length)
}

// appendOption writes the header of an option and its data.
func appendOption(b []byte, option uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_OPTION)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendOptionReply writes one reply to an option.
func appendOptionReply(b []byte, option, typ uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, protocol.NEGOTIATION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendString writes a string behind its 32-bit length, as GO, INFO and the metadata options do.
func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
