package nbd

import (
	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What a client sends in the transmission phase: commands are read, checked, and refused or handed to the device.

// maxCorked bounds how many requests' replies wait for the reader: beyond it, batching gains little and delays more.
const maxCorked = 32

// requests reads and submits requests until the client disconnects or something is wrong.
func (c *conn) requests() error {
	for {
		b, err := c.in.peek(requestHeaderLen)
		if err != nil {
			return err
		}
		h := decodeRequest(b)
		c.in.skip(requestHeaderLen)
		if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST {
			return errMagic
		}
		if h.Type == CMD_DISC {
			return errDisconnect
		}
		if err := c.request(h); err != nil {
			return err
		}
		// The reader may wait in peek next, and what is corked must not wait with it.
		if c.corking >= maxCorked || c.in.buffered() < requestHeaderLen {
			c.uncork()
		}
	}
}

// maxDiscard is how much payload of a refused write is read over. Announcing more than that is no client's honest
// mistake: closing is cheaper than reading it.
const maxDiscard = 4 * MaximumBlock

// request serves one request: refuses it, or hands it to the device.
func (c *conn) request(h requestHeader) error {
	code, text := c.check(h)
	if code == 0 && c.ending() {
		code = ESHUTDOWN
	}
	payload := int64(0)
	if h.Type == CMD_WRITE {
		payload = int64(h.Length)
	}
	empty := h.Length == 0 && h.Type != CMD_FLUSH
	if code != 0 || empty {
		if payload > maxDiscard {
			return errOversized
		}
		if payload > 0 {
			c.uncork()
			if err := c.in.discard(payload, c.server.config.StallTimeout); err != nil {
				return err
			}
		}
		r, err := c.admit(h, 0)
		if err != nil {
			return err
		}
		r.code, r.text = code, text
		c.reply(r)
		return nil
	}
	n := 0
	switch h.Type {
	case CMD_READ, CMD_WRITE:
		n = int(h.Length)
	case CMD_BLOCK_STATUS:
		n = MaxExtents * extentLen
	}
	r, err := c.admit(h, n)
	if err != nil {
		return err
	}
	switch h.Type {
	case CMD_READ:
		r.Data = r.buf.bytes(n)
	case CMD_WRITE:
		r.Data = r.buf.bytes(n)
		if err := c.in.full(r.Data, c.server.config.StallTimeout, c.uncork); err != nil {
			c.forget(r)
			return err
		}
	case CMD_BLOCK_STATUS:
		r.Extents = extentsOf(r.buf.bytes(n))
	}
	r.More = c.in.buffered() >= requestHeaderLen
	r.submitted = true
	c.export.Device.Submit(r)
	return nil
}

// commands says which Op a command is and which flags it takes. FUA goes with every command, by the document.
var commands = [...]struct {
	known bool
	op    Op
	flags uint16
}{
	CMD_READ:         {true, OpRead, CMD_FLAG_FUA | CMD_FLAG_DF},
	CMD_WRITE:        {true, OpWrite, CMD_FLAG_FUA},
	CMD_FLUSH:        {true, OpFlush, CMD_FLAG_FUA},
	CMD_TRIM:         {true, OpTrim, CMD_FLAG_FUA},
	CMD_CACHE:        {true, OpCache, CMD_FLAG_FUA},
	CMD_WRITE_ZEROES: {true, OpWriteZeroes, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO},
	CMD_BLOCK_STATUS: {true, OpBlockStatus, CMD_FLAG_FUA | CMD_FLAG_REQ_ONE},
}

// check is everything that can be wrong with a request by itself. The texts are at most maxErrorText long.
func (c *conn) check(h requestHeader) (Error, string) {
	if int(h.Type) >= len(commands) || !commands[h.Type].known {
		return EINVAL, "unknown command"
	}
	allowed := commands[h.Type].flags
	if !c.structured {
		allowed &^= CMD_FLAG_DF
	}
	if h.CommandFlags&^allowed != 0 {
		return EINVAL, "flag does not go with this command"
	}
	writes := false
	switch h.Type {
	case CMD_FLUSH:
		if h.Offset != 0 || h.Length != 0 {
			return EINVAL, "FLUSH takes no range"
		}
		return 0, ""
	case CMD_WRITE, CMD_WRITE_ZEROES:
		writes = true
	case CMD_BLOCK_STATUS:
		if !c.context {
			return EINVAL, "no metadata context was negotiated"
		}
		if h.Length == 0 { // "the server MUST return at least one status descriptor", of at least one byte
			return EINVAL, "empty range"
		}
	}
	if c.export.ReadOnly && (writes || h.Type == CMD_TRIM) {
		return EPERM, "export is read-only"
	}
	if (h.Offset|uint64(h.Length))&(MinimumBlock-1) != 0 {
		return EINVAL, "range is not a multiple of 512"
	}
	if h.Offset > uint64(c.size) || uint64(h.Length) > uint64(c.size)-h.Offset {
		if writes {
			return ENOSPC, "range is beyond the end"
		}
		return EINVAL, "range is beyond the end"
	}
	if h.Length > MaximumBlock && (h.Type == CMD_READ || h.Type == CMD_WRITE) {
		return EINVAL, "length is beyond 32 MiB"
	}
	return 0, ""
}
