package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// maxOptionLength is how much data of one option is read, used or not. The longest legal one is a metadata query, an
// export name and a few strings of 4096 bytes; a client that announces more is not one.
const maxOptionLength = 64 << 10

// handshake is the haggling of one client. What was agreed is in the conn's fields afterwards.
type handshake struct {
	c        *conn
	noZeroes bool
	// contextFor is the export name that base:allocation was selected for. The selection is void for any other.
	contextFor string
	context    bool
	out        []byte
}

// handshake leads the client to the transmission phase, or returns why it did not get there. The connection's deadline
// bounds all of it.
func (c *conn) handshake(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.server.config.HandshakeTimeout)
	defer cancel()
	if err := c.net.SetDeadline(time.Now().Add(c.server.config.HandshakeTimeout)); err != nil {
		return err
	}
	h := &handshake{c: c}
	if err := h.greet(); err != nil {
		return err
	}
	for {
		done, err := h.option(ctx)
		if err != nil {
			return err
		}
		if done {
			return c.net.SetDeadline(time.Time{})
		}
	}
}

// greet exchanges the magics and flags.
func (h *handshake) greet() error {
	hello, err := binary.Append(nil, binary.BigEndian, protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  protocol.NEGOTIATION_MAGIC_OLDSTYLE,
		OptionMagic:    protocol.NEGOTIATION_MAGIC_OPTION,
		HandshakeFlags: FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES,
	})
	if err != nil {
		return err
	}
	if _, err := h.c.net.Write(hello); err != nil {
		return err
	}
	b, err := h.c.in.next(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b)
	if flags&^(FLAG_C_FIXED_NEWSTYLE|FLAG_C_NO_ZEROES) != 0 {
		return errClientFlags
	}
	h.noZeroes = flags&FLAG_C_NO_ZEROES != 0
	return nil
}

// option reads one option and answers it; done is the transmission phase.
func (h *handshake) option(ctx context.Context) (done bool, err error) {
	b, err := h.c.in.next(16)
	if err != nil {
		return false, err
	}
	head := protocol.NegotiationOptionHeader{
		OptionMagic: binary.BigEndian.Uint64(b),
		ID:          binary.BigEndian.Uint32(b[8:]),
		Length:      binary.BigEndian.Uint32(b[12:]),
	}
	if head.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return false, errMagic
	}
	if head.Length > maxOptionLength {
		return false, errOptionLength
	}
	// The bytes are only valid until the next read, so everything kept from them is copied into a string.
	data, err := h.c.in.next(int(head.Length))
	if err != nil {
		return false, err
	}
	h.out = h.out[:0]
	switch head.ID {
	case OPT_EXPORT_NAME:
		if err := h.exportName(ctx, data); err != nil {
			return false, err
		}
		done = true
	case OPT_ABORT:
		// The client may be gone without waiting for this answer, which is as good as reading it.
		h.reply(OPT_ABORT, REP_ACK, nil)
		_, _ = h.c.net.Write(h.out)
		return false, errAbort
	case OPT_LIST:
		h.list(data)
	case OPT_STARTTLS:
		h.refuse(OPT_STARTTLS, ERR_POLICY, "TLS is not configured on this server")
	case OPT_INFO, OPT_GO:
		done = h.info(ctx, head.ID, data) && head.ID == OPT_GO
	case OPT_STRUCTURED_REPLY:
		if len(data) != 0 {
			h.refuse(head.ID, ERR_INVALID, "STRUCTURED_REPLY takes no data")
			break
		}
		h.c.structured = true
		h.reply(head.ID, REP_ACK, nil)
	case OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT:
		h.metaContext(ctx, head.ID, data)
	default:
		h.refuse(head.ID, ERR_UNSUP, "")
	}
	_, err = h.c.net.Write(h.out)
	return done, err
}

func (h *handshake) reply(option, typ uint32, data []byte) {
	h.out = appendOptionReply(h.out, option, typ, data)
}

// refuse answers with an error and a text for the client's user.
func (h *handshake) refuse(option, typ uint32, text string) {
	if len(text) > maxString {
		text = strings.ToValidUTF8(text[:maxString], "")
	}
	h.reply(option, typ, []byte(text))
}

// validName is the document's rule for strings.
func validName(b []byte) bool {
	return len(b) <= maxString && utf8.Valid(b) && strings.IndexByte(string(b), 0) < 0
}

// open asks the backend and turns its refusal into an option reply.
func (h *handshake) open(ctx context.Context, name []byte) (*Export, *Refusal) {
	if len(name) > maxString {
		return nil, &Refusal{Code: ERR_TOO_BIG, Text: "export name is longer than 4096 bytes"}
	}
	if !validName(name) {
		return nil, &Refusal{Code: ERR_INVALID, Text: "export name is not a string"}
	}
	export, err := h.c.server.config.Backend.Open(ctx, string(name))
	if err != nil {
		var refusal *Refusal
		if !errors.As(err, &refusal) {
			h.c.log.Warn("nbd export failed to open", "export", string(name), "err", err)
			return nil, &Refusal{Code: ERR_UNKNOWN}
		}
		if refusal.Code&repFlagError == 0 { // an ACK would have the client believe that it is through
			return nil, &Refusal{Code: ERR_UNKNOWN, Text: refusal.Text}
		}
		return nil, refusal
	}
	if export.Size < 0 || export.Device == nil {
		h.c.log.Error("nbd backend opened an export without size or device", "export", string(name))
		return nil, &Refusal{Code: ERR_UNKNOWN}
	}
	return export, nil
}

// begin makes export the connection's.
func (h *handshake) begin(export *Export, name string) {
	h.c.export = export
	h.c.size = export.Size &^ (MinimumBlock - 1)
	h.c.context = h.context && h.contextFor == name
}

// exportName answers the one option that has no way to say no.
func (h *handshake) exportName(ctx context.Context, data []byte) error {
	export, refusal := h.open(ctx, data)
	if refusal != nil {
		return fmt.Errorf("%w: %w", errRefused, refusal)
	}
	h.begin(export, string(data))
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(h.c.size))
	h.out = binary.BigEndian.AppendUint16(h.out, h.transmissionFlags(export))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	return nil
}

func (h *handshake) transmissionFlags(export *Export) uint16 {
	flags := FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES |
		FLAG_SEND_CACHE | FLAG_SEND_FAST_ZERO
	if export.ReadOnly {
		flags |= FLAG_READ_ONLY
	}
	if export.MultiConn {
		flags |= FLAG_CAN_MULTI_CONN
	}
	if h.c.structured { // "MUST leave this flag clear if structured replies have not been negotiated"
		flags |= FLAG_SEND_DF
	}
	return flags
}

// list answers LIST. Names that the document does not allow are left out.
func (h *handshake) list(data []byte) {
	if len(data) != 0 {
		h.refuse(OPT_LIST, ERR_INVALID, "LIST takes no data")
		return
	}
	for _, name := range h.c.server.config.Backend.Exports() {
		if validName([]byte(name)) {
			h.reply(OPT_LIST, REP_SERVER, appendString(nil, name))
		}
	}
	h.reply(OPT_LIST, REP_ACK, nil)
}

// info answers INFO and GO, and returns whether with an ACK.
//
//	 0             4      4+n       6+n
//	+-------------+------+---------+----------------------+
//	| name length | name | n infos | 16 bits for each     |
//	+-------------+------+---------+----------------------+
func (h *handshake) info(ctx context.Context, option uint32, data []byte) bool {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		h.refuse(option, ERR_INVALID, "malformed option")
		return false
	}
	export, refusal := h.open(ctx, name)
	if refusal != nil {
		h.refuse(option, refusal.Code, refusal.Text)
		return false
	}
	if option == OPT_GO {
		h.begin(export, string(name))
	}
	var info []byte
	// EXPORT always; BLOCK_SIZE also unasked, because we insist on 512 and a client that does not know would get EINVAL.
	// An INFO answer is a list of these, each a struct of go-nbd in network order.
	for _, fixed := range []any{
		protocol.NegotiationReplyInfo{
			Type:              protocol.NEGOTIATION_TYPE_INFO_EXPORT,
			Size:              uint64(export.Size &^ (MinimumBlock - 1)),
			TransmissionFlags: h.transmissionFlags(export),
		},
		protocol.NegotiationReplyBlockSize{
			Type:               protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE,
			MinimumBlockSize:   MinimumBlock,
			PreferredBlockSize: PreferredBlock,
			MaximumBlockSize:   MaximumBlock,
		},
	} {
		var err error
		if info, err = binary.Append(info[:0], binary.BigEndian, fixed); err != nil {
			panic(err) // fixed-size structs of ours
		}
		h.reply(option, REP_INFO, info)
	}
	// One answer to each kind of question: the same one asked thirty thousand times would be a lot of text.
	answered := [4]bool{}
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		asked, text := binary.BigEndian.Uint16(rest), ""
		switch asked {
		case protocol.NEGOTIATION_TYPE_INFO_NAME:
			text = export.Name
		case protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION:
			text = export.Description
		}
		if text == "" || len(text) > maxString || answered[asked] {
			continue
		}
		answered[asked] = true
		info = append(binary.BigEndian.AppendUint16(info[:0], asked), text...)
		h.reply(option, REP_INFO, info)
	}
	h.reply(option, REP_ACK, nil)
	return true
}

// cutString takes a string behind a 32-bit length off b.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
//
//	+-------------+------+-----------+-----------------------------+
//	| name length | name | n queries | length and string for each  |
//	+-------------+------+-----------+-----------------------------+
func (h *handshake) metaContext(ctx context.Context, option uint32, data []byte) {
	if option == OPT_SET_META_CONTEXT {
		h.context = false // it replaces what was selected, also when it fails
	}
	if !h.c.structured {
		h.refuse(option, ERR_INVALID, "structured replies must be negotiated first")
		return
	}
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 {
		h.refuse(option, ERR_INVALID, "malformed option")
		return
	}
	queries := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	// LIST without a query asks for all there is; SET without one selects nothing.
	matched := queries == 0 && option == OPT_LIST_META_CONTEXT
	for ; queries > 0; queries-- {
		var query []byte
		if query, rest, ok = cutString(rest); !ok || !validName(query) {
			h.refuse(option, ERR_INVALID, "malformed query")
			return
		}
		switch string(query) {
		case metaContextBaseAllocation:
			matched = true
		case "base:":
			// "base:" lists the namespace, and selects nothing, for SET takes exact names.
			matched = matched || option == OPT_LIST_META_CONTEXT
		}
	}
	if len(rest) != 0 {
		h.refuse(option, ERR_INVALID, "malformed option")
		return
	}
	if _, refusal := h.open(ctx, name); refusal != nil {
		h.refuse(option, refusal.Code, refusal.Text)
		return
	}
	if matched {
		id := metaContextID
		if option == OPT_LIST_META_CONTEXT {
			id = 0 // "reserved and SHOULD be set to zero"
		} else {
			h.context, h.contextFor = true, string(name)
		}
		h.reply(option, REP_META_CONTEXT, append(binary.BigEndian.AppendUint32(nil, id), metaContextBaseAllocation...))
	}
	h.reply(option, REP_ACK, nil)
}
