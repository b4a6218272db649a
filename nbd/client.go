package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// ClientOptions is what Dial negotiates. The zero value is GO, structured replies and base:allocation.
type ClientOptions struct {
	SimpleReplies bool // no structured replies, hence no BlockStatus
	ExportName    bool // EXPORT_NAME instead of GO: a refusal is then a bare close
}

// Client is a userspace NBD client for tests, checkers and benchmarks. Its methods may be called by many goroutines;
// each has one request in flight. Server errors are an Error; a failed connection is ErrClosed, for every call, for ever.
//
// A context that ends abandons the wait, not the request: the server may still carry it out.
type Client struct {
	net        net.Conn
	size       int64
	flags      uint16
	structured bool
	context    bool

	sending chan struct{} // a lock, of capacity 1, that a context can give up on
	out     []byte        // guarded by sending
	vectors [2][]byte     // guarded by sending

	mu      sync.Mutex
	next    uint64
	pending map[uint64]*call
	err     error // the connection has failed

	done chan struct{} // runReplies has returned
}

// call is one request in flight.
type call struct {
	op      uint16
	off     int64
	p       []byte // READ: where the data goes
	got     int
	extents []Extent
	err     error
	// busy, guarded by Client.mu: runReplies is writing into p, whose owner must wait.
	busy bool
	done chan struct{}
}

// maxClientText bounds what a server's names and messages may take.
const maxClientText = 64 << 10

// Dial connects to an export; "" is the default one. A server's refusal is a *Refusal in the error's chain.
func Dial(ctx context.Context, network, addr, export string, options ClientOptions) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd: dial: %w", err)
	}
	c, err := NewClient(ctx, conn, export, options)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// NewClient negotiates on a connection, which is the client's from then on, also when it fails.
func NewClient(ctx context.Context, conn net.Conn, export string, options ClientOptions) (*Client, error) {
	c := &Client{
		net:     conn,
		sending: make(chan struct{}, 1),
		pending: make(map[uint64]*call),
		done:    make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	g := &negotiation{conn: conn, in: bufio.NewReaderSize(conn, inputSize)}
	err := g.greet()
	if err == nil {
		err = c.negotiate(g, export, options)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("nbd: negotiate: %w", err)
	}
	go c.runReplies(g.in)
	return c, nil
}

// List returns the names of a server's exports.
func List(ctx context.Context, network, addr string) ([]string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd: dial: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	g := &negotiation{conn: conn, in: bufio.NewReader(conn)}
	var names []string
	err = g.greet()
	if err == nil {
		err = g.ask(OPT_LIST, nil, func(typ uint32, data []byte) error {
			name, _, ok := cutString(data)
			if typ != REP_SERVER || !ok {
				return ErrProtocol
			}
			names = append(names, string(name))
			return nil
		})
	}
	if err == nil {
		err = g.ask(OPT_ABORT, nil, nil)
		if errors.Is(err, io.EOF) { // allowed instead of an answer
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: list: %w", err)
	}
	return names, nil
}

// negotiation is the client's side of the handshake.
type negotiation struct {
	conn net.Conn
	in   *bufio.Reader
}

func (g *negotiation) greet() error {
	var hello protocol.NegotiationNewstyleHeader
	if err := binary.Read(g.in, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE || hello.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION ||
		hello.HandshakeFlags&FLAG_FIXED_NEWSTYLE == 0 {
		return fmt.Errorf("%w: not a fixed newstyle server", ErrProtocol)
	}
	flags := FLAG_C_FIXED_NEWSTYLE
	if hello.HandshakeFlags&FLAG_NO_ZEROES != 0 {
		flags |= FLAG_C_NO_ZEROES
	}
	_, err := g.conn.Write(binary.BigEndian.AppendUint32(nil, flags))
	return err
}

// ask sends an option and feeds its replies to each, up to the ACK or the refusal.
func (g *negotiation) ask(option uint32, data []byte, each func(typ uint32, data []byte) error) error {
	if _, err := g.conn.Write(appendOption(nil, option, data)); err != nil {
		return err
	}
	for {
		var h protocol.NegotiationReplyHeader
		if err := binary.Read(g.in, binary.BigEndian, &h); err != nil {
			return err
		}
		if h.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY || h.ID != option || h.Length > maxClientText {
			return ErrProtocol
		}
		data := make([]byte, h.Length)
		if _, err := io.ReadFull(g.in, data); err != nil {
			return err
		}
		switch {
		case h.Type&repFlagError != 0:
			return &Refusal{Code: h.Type, Text: string(data)}
		case h.Type == REP_ACK:
			return nil
		case each == nil:
			return ErrProtocol
		}
		if err := each(h.Type, data); err != nil {
			return err
		}
	}
}

func (c *Client) negotiate(g *negotiation, export string, options ClientOptions) error {
	if !options.SimpleReplies {
		err := g.ask(OPT_STRUCTURED_REPLY, nil, nil)
		var refusal *Refusal
		if err != nil && !errors.As(err, &refusal) {
			return err
		}
		c.structured = err == nil
	}
	if options.ExportName {
		return c.exportName(g, export)
	}
	if c.structured {
		query := appendString(nil, export)
		query = binary.BigEndian.AppendUint32(query, 1)
		err := g.ask(OPT_SET_META_CONTEXT, appendString(query, metaContextBaseAllocation), func(uint32, []byte) error {
			c.context = true
			return nil
		})
		var refusal *Refusal
		if err != nil && !errors.As(err, &refusal) {
			return err
		}
	}
	told := false
	err := g.ask(OPT_GO, append(appendString(nil, export), 0, 0), func(typ uint32, data []byte) error {
		if typ != REP_INFO || len(data) < 2 {
			return ErrProtocol
		}
		if binary.BigEndian.Uint16(data) == protocol.NEGOTIATION_TYPE_INFO_EXPORT {
			if len(data) != 12 {
				return ErrProtocol
			}
			c.size, c.flags, told = int64(binary.BigEndian.Uint64(data[2:])), binary.BigEndian.Uint16(data[10:]), true
		}
		return nil
	})
	if err == nil && (!told || c.size < 0) {
		err = fmt.Errorf("%w: no size", ErrProtocol)
	}
	return err
}

func (c *Client) exportName(g *negotiation, export string) error {
	if _, err := g.conn.Write(appendOption(nil, OPT_EXPORT_NAME, []byte(export))); err != nil {
		return err
	}
	var b [10]byte
	if _, err := io.ReadFull(g.in, b[:]); err != nil {
		return err
	}
	c.size, c.flags = int64(binary.BigEndian.Uint64(b[:])), binary.BigEndian.Uint16(b[8:])
	return nil
}

// Size is the export's length in bytes.
func (c *Client) Size() int64 { return c.size }

// Flags is the export's transmission flags.
func (c *Client) Flags() uint16 { return c.flags }

// Structured is whether structured replies were agreed on.
func (c *Client) Structured() bool { return c.structured }

// ReadAt reads len(p) bytes at off.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	_, err := c.do(ctx, CMD_READ, 0, off, int64(len(p)), p)
	return err
}

// WriteAt writes p at off; with fua it returns when p is durable.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	_, err := c.do(ctx, CMD_WRITE, fuaFlag(fua), off, int64(len(p)), p)
	return err
}

// Flush returns when every write that was acknowledged before it is durable.
func (c *Client) Flush(ctx context.Context) error {
	_, err := c.do(ctx, CMD_FLUSH, 0, 0, 0, nil)
	return err
}

// Trim tells that n bytes at off are no longer needed.
func (c *Client) Trim(ctx context.Context, off, n int64, fua bool) error {
	_, err := c.do(ctx, CMD_TRIM, fuaFlag(fua), off, n, nil)
	return err
}

// WriteZeroes zeroes n bytes at off. flags are CMD_FLAG_FUA, CMD_FLAG_NO_HOLE and CMD_FLAG_FAST_ZERO.
func (c *Client) WriteZeroes(ctx context.Context, off, n int64, flags uint16) error {
	_, err := c.do(ctx, CMD_WRITE_ZEROES, flags, off, n, nil)
	return err
}

// Cache asks the server to read n bytes at off ahead.
func (c *Client) Cache(ctx context.Context, off, n int64) error {
	_, err := c.do(ctx, CMD_CACHE, 0, off, n, nil)
	return err
}

// BlockStatus returns the allocation of at most n bytes from off: consecutive extents, perhaps fewer than cover n.
func (c *Client) BlockStatus(ctx context.Context, off, n int64, one bool) ([]Extent, error) {
	flags := uint16(0)
	if one {
		flags = CMD_FLAG_REQ_ONE
	}
	if !c.context {
		return nil, fmt.Errorf("nbd: block status: no metadata context: %w", ENOTSUP)
	}
	return c.do(ctx, CMD_BLOCK_STATUS, flags, off, n, nil)
}

func fuaFlag(fua bool) uint16 {
	if fua {
		return CMD_FLAG_FUA
	}
	return 0
}

// Close disconnects and waits for the client's goroutine. Calls in flight fail with ErrClosed.
func (c *Client) Close() error {
	select {
	case c.sending <- struct{}{}:
		c.net.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = c.net.Write(appendRequest(nil, requestHeader{RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, Type: CMD_DISC}))
		<-c.sending
	default: // somebody is in the middle of a request: a hard disconnect it is
	}
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// fail ends the connection and every call, once.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	if !errors.Is(err, ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.err = err
	c.net.Close()
	for handle, call := range c.pending {
		if !call.busy { // otherwise runReplies is about to notice
			call.err = err
			close(call.done)
			delete(c.pending, handle)
		}
	}
}

// do sends one request and waits for its reply. p is the payload of WRITE and the destination of READ.
func (c *Client) do(ctx context.Context, op, flags uint16, off, n int64, p []byte) ([]Extent, error) {
	if n < 0 || n > 1<<32-1 {
		return nil, fmt.Errorf("nbd: length %d: %w", n, EINVAL)
	}
	k := &call{op: op, off: off, done: make(chan struct{})}
	if op == CMD_READ {
		k.p = p
	}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	handle := c.next
	c.next++
	c.pending[handle] = k
	c.mu.Unlock()

	header := requestHeader{
		RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST,
		CommandFlags: flags,
		Type:         op,
		Handle:       handle,
		Offset:       uint64(off),
		Length:       uint32(n),
	}
	if op != CMD_WRITE {
		p = nil
	}
	if err := c.send(ctx, header, p); err != nil {
		c.mu.Lock()
		delete(c.pending, handle) // not sent, or sent in part on a connection that has failed
		c.mu.Unlock()
		return nil, err
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		if c.abandon(handle, k) {
			return nil, ctx.Err()
		}
	}
	return k.extents, k.err
}

// send writes one request. If ctx ends when a part of it is out, the stream is lost and the connection with it.
func (c *Client) send(ctx context.Context, h requestHeader, payload []byte) error {
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	}
	defer func() { <-c.sending }()
	if err := ctx.Err(); err != nil {
		return err
	}
	if ctx.Done() != nil {
		set := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			c.net.SetWriteDeadline(time.Unix(1, 0))
			close(set)
		})
		defer func() {
			if !stop() { // too late to matter for this request; the next one must not find the deadline
				<-set
				c.net.SetWriteDeadline(time.Time{})
			}
		}()
	}
	c.out = appendRequest(c.out[:0], h)
	var sent int64
	var err error
	if len(payload) <= 16<<10 { // one copy is cheaper than two vectors, and joins them on a net.Conn without writev
		c.out = append(c.out, payload...)
		var n int
		n, err = c.net.Write(c.out)
		sent = int64(n)
	} else {
		c.vectors = [2][]byte{c.out, payload}
		buffers := net.Buffers(c.vectors[:])
		sent, err = buffers.WriteTo(c.net)
	}
	if err == nil {
		return nil
	}
	if sent == 0 && ctx.Err() != nil { // the stream is as it was
		return ctx.Err()
	}
	c.fail(err)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// abandon takes a call out of the reader's hands, so that its buffer is the caller's again; its reply will be read over.
// It returns false when the reply came first.
func (c *Client) abandon(handle uint64, k *call) bool {
	c.mu.Lock()
	if c.pending[handle] == k && !k.busy {
		// The handle stays known, with a buffer of nobody's: the reply to it is no protocol violation.
		c.pending[handle] = &call{op: k.op, off: k.off, p: make([]byte, len(k.p)), got: k.got, done: make(chan struct{})}
		c.mu.Unlock()
		return true
	}
	c.mu.Unlock()
	<-k.done
	return false
}

// runReplies reads replies until the connection ends.
func (c *Client) runReplies(in *bufio.Reader) {
	defer close(c.done)
	for {
		if err := c.readReply(in); err != nil {
			c.fail(err)
			return
		}
	}
}

// claim finds the call of a handle and keeps its buffer from going back to the caller.
func (c *Client) claim(handle uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.pending[handle]
	if k == nil {
		return nil, fmt.Errorf("%w: reply to nothing", ErrProtocol)
	}
	k.busy = true
	return k, nil
}

// settle ends the claim; last ends the call. An err means that the stream is lost.
func (c *Client) settle(handle uint64, k *call, last bool, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.busy = false
	if err != nil {
		k.err = fmt.Errorf("%w: %w", ErrClosed, err)
	} else if last && k.err == nil && k.op == CMD_READ && k.got != len(k.p) {
		k.err = fmt.Errorf("%w: incomplete read", ErrProtocol)
	}
	if last || err != nil || c.err != nil {
		if !last && k.err == nil {
			k.err = c.err
		}
		delete(c.pending, handle)
		close(k.done)
	}
	return err
}

func (c *Client) readReply(in *bufio.Reader) error {
	b, err := in.Peek(16)
	if err != nil {
		return err
	}
	switch binary.BigEndian.Uint32(b) {
	case protocol.TRANSMISSION_MAGIC_REPLY:
		code, handle := Error(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint64(b[8:])
		_, _ = in.Discard(16) // peeked, so they are there
		k, err := c.claim(handle)
		if err != nil {
			return err
		}
		switch {
		case code != 0:
			k.err = code
		case k.op == CMD_READ && c.structured:
			err = fmt.Errorf("%w: simple reply to a read", ErrProtocol)
		case k.op == CMD_READ:
			k.got, err = io.ReadFull(in, k.p)
		}
		return c.settle(handle, k, true, err)
	case structuredReplyMagic:
		if !c.structured {
			break
		}
		if b, err = in.Peek(20); err != nil {
			return err
		}
		flags, typ := binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
		handle, length := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])
		_, _ = in.Discard(20)
		k, err := c.claim(handle)
		if err != nil {
			return err
		}
		return c.settle(handle, k, flags&REPLY_FLAG_DONE != 0, c.readChunk(in, k, typ, length))
	}
	return fmt.Errorf("%w: wrong magic", ErrProtocol)
}

// readChunk takes the payload of one chunk. An error means that the stream is lost.
func (c *Client) readChunk(in *bufio.Reader, k *call, typ uint16, length uint32) error {
	switch {
	case typ == REPLY_TYPE_NONE && length == 0:
		return nil
	case typ == REPLY_TYPE_OFFSET_DATA && length > 8 && k.op == CMD_READ:
		var b [8]byte
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return err
		}
		p, err := k.part(binary.BigEndian.Uint64(b[:]), length-8)
		if err == nil {
			_, err = io.ReadFull(in, p)
		}
		return err
	case typ == REPLY_TYPE_OFFSET_HOLE && length == 12 && k.op == CMD_READ:
		var b [12]byte
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return err
		}
		p, err := k.part(binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint32(b[8:]))
		clear(p)
		return err
	case typ == REPLY_TYPE_BLOCK_STATUS && length >= 12 && length%8 == 4 && length <= 16<<20 && k.op == CMD_BLOCK_STATUS:
		b := make([]byte, length)
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		for b = b[4:]; len(b) > 0; b = b[8:] {
			k.extents = append(k.extents, Extent{Len: binary.BigEndian.Uint32(b), Flags: binary.BigEndian.Uint32(b[4:])})
		}
		return nil
	case typ&replyTypeErrorBit != 0 && length >= 6 && length <= maxClientText:
		b := make([]byte, length)
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		text := int(binary.BigEndian.Uint16(b[4:]))
		if text > len(b)-6 {
			return fmt.Errorf("%w: error text longer than its chunk", ErrProtocol)
		}
		k.err = Error(binary.BigEndian.Uint32(b))
		if text > 0 {
			k.err = fmt.Errorf("%s: %w", b[6:6+text], k.err)
		}
		return nil
	}
	return fmt.Errorf("%w: chunk of type %d and length %d", ErrProtocol, typ, length)
}

// part is where n bytes at off go.
func (k *call) part(off uint64, n uint32) ([]byte, error) {
	start := off - uint64(k.off)
	if off < uint64(k.off) || start > uint64(len(k.p)) || uint64(n) > uint64(len(k.p))-start {
		return nil, fmt.Errorf("%w: data outside the request", ErrProtocol)
	}
	k.got += int(n)
	return k.p[start : start+uint64(n)], nil
}
