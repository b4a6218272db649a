package nbd

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inputSize holds sixteen 4 KiB writes with their headers, or two thousand reads: a deep queue costs one system call.
const inputSize = 64 << 10

// errWouldBlock is a read or write that would have had to wait; it never leaves the package.
var errWouldBlock = errors.New("nbd: would block")

// input reads a connection ahead, in as few system calls as its bytes allow.
//
// The buffer is taken from the pool when bytes are there and goes back when all are used up, so that a thousand idle
// connections hold none. That needs the raw descriptor (wait until readable, then find memory); a net.Conn without one
// (net.Pipe, TLS) keeps its buffer.
type input struct {
	conn net.Conn
	raw  syscall.RawConn // nil: read through conn
	pool *sync.Pool      // of *[inputSize]byte
	buf  *[inputSize]byte
	r, w int // buf[r:w] is read ahead

	// idle: the reader waits for a request, and has served all that it has read. Whoever finds the socket empty, and then
	// this true, knows that no request was on its way when the socket was. Never true without raw.
	idle atomic.Bool

	// Arguments and results of ready, which is bound to ready once: a closure per read would be an allocation per read.
	readReady func(fd uintptr) bool
	dst       []byte // filled before buf
	wait      bool
	n         int
	err       error
	iov       [2]unix.Iovec
}

func newInput(conn net.Conn, pool *sync.Pool) *input {
	in := &input{conn: conn, raw: rawConn(conn), pool: pool}
	in.readReady = in.ready
	return in
}

// rawConn is conn's descriptor, or nil if it has none or something (TLS) lies between.
func rawConn(conn net.Conn) syscall.RawConn {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

func (in *input) buffered() int { return in.w - in.r }

// more reads at least one byte, into dst first and then ahead into the buffer. It returns how many went into dst.
// Without wait it returns errWouldBlock instead of waiting, where it can tell.
func (in *input) more(dst []byte, wait bool) (int, error) {
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.w == inputSize {
		in.w = copy(in.buf[:], in.buf[in.r:in.w])
		in.r = 0
	}
	if in.raw == nil {
		return in.morePlain(dst)
	}
	in.dst, in.wait, in.n, in.err = dst, wait, 0, nil
	err := in.raw.Read(in.readReady)
	in.dst = nil
	switch {
	case err != nil:
		return 0, err
	case in.err != nil:
		return 0, in.err
	case in.n == 0:
		return 0, io.EOF
	}
	n := min(in.n, len(dst))
	in.w += in.n - n
	return n, nil
}

// ready reads what is there; false makes the poller wait and call again.
func (in *input) ready(fd uintptr) bool {
	if in.idle.Load() {
		in.idle.Store(false)
	}
	if in.buf == nil {
		in.buf = in.pool.Get().(*[inputSize]byte)
	}
	iov := in.iov[:0]
	if len(in.dst) > 0 {
		iov = append(iov, unix.Iovec{Base: &in.dst[0], Len: uint64(len(in.dst))})
	}
	if in.w < inputSize {
		iov = append(iov, unix.Iovec{Base: &in.buf[in.w], Len: uint64(inputSize - in.w)})
	}
	for {
		n, _, errno := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
		switch errno {
		case 0:
			in.n = int(n)
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if in.wait {
				in.park()
				in.idle.Store(len(in.dst) == 0)
				return false
			}
			in.err = errWouldBlock
		default:
			in.err = errno
		}
		return true
	}
}

// park gives the buffer back while nothing is in it.
func (in *input) park() {
	if in.buf != nil && in.r == in.w {
		in.pool.Put(in.buf)
		in.buf = nil
	}
}

func (in *input) morePlain(dst []byte) (int, error) {
	if len(dst) > 0 {
		return in.conn.Read(dst)
	}
	if in.buf == nil {
		in.buf = in.pool.Get().(*[inputSize]byte)
	}
	n, err := in.conn.Read(in.buf[in.w:])
	in.w += n
	if n > 0 {
		return 0, nil
	}
	return 0, err
}

// peek returns the next n bytes without using them up, n at most inputSize. They are valid until the next call.
func (in *input) peek(n int) ([]byte, error) {
	for in.buffered() < n {
		if _, err := in.more(nil, true); err != nil {
			return nil, in.torn(err)
		}
	}
	return in.buf[in.r : in.r+n], nil
}

// torn tells an end between messages (io.EOF) from one inside.
func (in *input) torn(err error) error {
	if err == io.EOF && in.buffered() > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (in *input) skip(n int) { in.r += n }

// next is peek and skip.
func (in *input) next(n int) ([]byte, error) {
	b, err := in.peek(n)
	if err == nil {
		in.skip(n)
	}
	return b, err
}

// copyBuffered moves what is read ahead into dst and returns how much that was.
func (in *input) copyBuffered(dst []byte) int {
	if in.r == in.w {
		return 0
	}
	n := copy(dst, in.buf[in.r:in.w])
	in.r += n
	return n
}

// full fills dst, straight from the socket beyond what is read ahead. The client has limit for all of it once it keeps
// us waiting: half a payload holds memory that others wait for. onWait is called before the first wait.
func (in *input) full(dst []byte, limit time.Duration, onWait func()) error {
	n := in.copyBuffered(dst)
	timed := false
	for n < len(dst) {
		m, err := in.more(dst[n:], timed || in.raw == nil)
		n += m
		switch {
		case err == errWouldBlock:
			onWait()
			timed = true
			if err := in.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
				return err
			}
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	if timed {
		return in.conn.SetReadDeadline(time.Time{})
	}
	return nil
}

// discard throws n bytes away, within limit.
func (in *input) discard(n int64, limit time.Duration) error {
	if n <= int64(in.buffered()) {
		in.skip(int(n))
		return nil
	}
	if err := in.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	for n > int64(in.buffered()) {
		n -= int64(in.buffered())
		in.r, in.w = 0, 0
		if _, err := in.more(nil, true); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	in.skip(int(n))
	return in.conn.SetReadDeadline(time.Time{})
}

// close gives the buffer back; the connection is the caller's.
func (in *input) close() {
	if in.buf != nil {
		in.pool.Put(in.buf)
		in.buf = nil
	}
	in.r, in.w = 0, 0
}
