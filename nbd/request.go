package nbd

import "context"

// Op is what a request asks of the device.
type Op uint8

const (
	OpRead Op = iota
	OpWrite
	OpFlush
	OpTrim
	OpWriteZeroes
	OpCache
	OpBlockStatus
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpWriteZeroes:
		return "write-zeroes"
	case OpCache:
		return "cache"
	case OpBlockStatus:
		return "block-status"
	}
	return "unknown"
}

// Extent is a run of bytes of one allocation status: Len bytes, Flags of STATE_HOLE and STATE_ZERO.
type Extent struct {
	Len   uint32
	Flags uint32
}

// MaxExtents is how many extents one block status reply holds; a client asks again for the rest. 1024 of them fill
// 8 KiB, and cover 4 MiB of a volume where every second 4 KiB block is a hole.
const MaxExtents = 1024

// Request is one command of one client. The server has checked it: Off and Len lie inside the export and are multiples
// of 512, reads and writes are at most MaximumBlock long, a read-only export sees no writes. Len is more than zero
// except for OpFlush, and can be up to 4 GiB - 512 for OpTrim, OpWriteZeroes, OpCache and OpBlockStatus.
//
// The server pools requests: neither r nor r.Data may be touched after Device.Sent(r) has returned.
type Request struct {
	Op  Op
	Off int64 // bytes
	Len int64 // bytes; for OpWrite == len(Data)

	FUA      bool // durable before Complete
	NoHole   bool // OpWriteZeroes: do not punch a hole
	FastZero bool // OpWriteZeroes: ENOTSUP at once unless faster than writing
	ReqOne   bool // OpBlockStatus: one extent is enough

	// Data is the payload of OpWrite, or the Len bytes that the device fills for OpRead. It is aligned to 4096 bytes, for
	// O_DIRECT. The device may read it until Sent returns, and longer if it takes it with Detach.
	Data []byte
	// Extents is where the device appends the answer to OpBlockStatus, consecutive from Off. Its capacity is at least
	// MaxExtents; what goes beyond Len or MaxExtents is cut off. Nothing appended means "allocated, content unknown".
	Extents []Extent

	More bool   // more requests of this connection are already buffered: do not work inline
	Tag  uint64 // free for the device

	conn      *conn
	handle    uint64
	buf       buffer
	code      Error
	text      string // for the client's user, beside an error that the server itself found
	submitted bool   // the device has seen it, so that Sent is due
	replied   bool   // guarded by conn.mu
	end       int    // of its reply in the batch, in bytes; the writer's
}

// Complete queues the reply; nil is success. It is called exactly once, from any goroutine, and never waits for the
// client. An Error anywhere in err's chain is sent as such, any other error is EIO.
//
// Complete itself usually writes the reply, and then calls Device.Sent, for this request and for others of the same
// connection: the caller must hold no lock that Sent takes, and must not touch r afterwards.
func (r *Request) Complete(err error) {
	r.code = errorCode(err)
	r.conn.reply(r)
}

// Detach lets the device keep Data beyond Sent, for a payload that it has still to write or send somewhere although the
// client has its answer. It is called at most once, within Sent. The memory goes back when the device calls the function
// returned; until then it counts against BufferBytes, no longer against the connection's share.
func (r *Request) Detach() (free func()) {
	b := r.buf
	r.buf = buffer{}
	return b.free
}

// Device is what an open export serves. Its methods are called from many goroutines and must not block for long:
// Submit holds up the connection's reader, Sent holds up whoever writes.
type Device interface {
	// Submit takes the request; exactly one r.Complete follows, possibly before Submit returns.
	Submit(r *Request)
	// Sent is called exactly once per submitted request, after Complete: r's reply is wholly in the client's socket, or
	// can never be because the connection is gone. After it returns r belongs to the server again, and r.Data too unless
	// it was detached.
	Sent(r *Request)
}

// Export is what Backend.Open hands out to one connection.
type Export struct {
	Name        string // canonical name, told to clients that ask
	Description string
	Size        int64 // bytes; what exceeds a multiple of 512 is not served
	ReadOnly    bool
	// MultiConn promises that a flush on one connection covers the writes acknowledged on all of them.
	MultiConn bool
	Device    Device
	// Done is closed when the export goes away: new requests get ESHUTDOWN, those submitted are the device's to complete,
	// and the connection closes when their replies are out. nil is never.
	Done <-chan struct{}
}

// Backend is the server's user.
type Backend interface {
	// Exports answers LIST.
	Exports() []string
	// Open answers INFO, GO, EXPORT_NAME and the metadata options; "" is the default export. A *Refusal in the error's
	// chain is told to the client, any other error is ERR_UNKNOWN without a text. It is called more than once per
	// connection (INFO, then GO), and nothing tells when a connection ends: an Export holds nothing that must be freed.
	Open(ctx context.Context, name string) (*Export, error)
}
