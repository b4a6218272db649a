package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// Error is an error value of the protocol ("Error values" in the document). It is what crosses the wire: a device that
// completes a request with it has it sent as such, and a Client's errors carry it.
type Error uint32

const (
	EPERM     Error = 1
	EIO       Error = 5
	ENOMEM    Error = 12
	EINVAL    Error = 22
	ENOSPC    Error = 28
	EOVERFLOW Error = 75
	ENOTSUP   Error = 95
	ESHUTDOWN Error = 108
)

func (e Error) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "cannot allocate memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left on device"
	case EOVERFLOW:
		return "value too large"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is shutting down"
	}
	return fmt.Sprintf("nbd error %d", uint32(e))
}

// known is whether the document defines e. Other values never go on the wire: a client may take them for anything.
func (e Error) known() bool {
	switch e {
	case EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN:
		return true
	}
	return false
}

// errorCode is the value sent for what a device completed a request with. EDQUOT and EFBIG are ENOSPC by the document;
// whatever has no value of its own is EIO, because zero would acknowledge what did not happen.
func errorCode(err error) Error {
	if err == nil {
		return 0
	}
	var e Error
	if errors.As(err, &e) {
		if e.known() {
			return e
		}
		return EIO
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		switch errno {
		case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
			return ENOSPC
		}
	}
	return EIO
}

// Refusal is how a Backend says no to INFO, GO or EXPORT_NAME: Code is the option reply type (ERR_UNKNOWN, ERR_POLICY,
// ERR_SHUTDOWN), Text is shown to the client's user. A Client returns the same type. EXPORT_NAME has no way to carry
// either; that client sees a close.
type Refusal struct {
	Code uint32
	Text string
}

func (r *Refusal) Error() string {
	name := "refused"
	switch r.Code {
	case ERR_UNSUP:
		name = "unsupported option"
	case ERR_POLICY:
		name = "refused by policy"
	case ERR_INVALID:
		name = "invalid option"
	case ERR_PLATFORM:
		name = "unsupported on this platform"
	case ERR_TLS_REQD:
		name = "TLS required"
	case ERR_UNKNOWN:
		name = "unknown export"
	case ERR_SHUTDOWN:
		name = "server is shutting down"
	case ERR_BLOCK_SIZE_REQD:
		name = "block size required"
	case ERR_TOO_BIG:
		name = "option too big"
	}
	if r.Text == "" {
		return name
	}
	return name + ": " + r.Text
}

// Why the server drops a connection. They go to the log only: by then there is nothing left to say to the client.
var (
	errMagic        = errors.New("nbd: wrong magic")
	errClientFlags  = errors.New("nbd: unknown client flags")
	errOptionLength = errors.New("nbd: option data too long")
	errAbort        = errors.New("nbd: client aborted the negotiation")
	errRefused      = errors.New("nbd: export refused")
	errOversized    = errors.New("nbd: write far beyond the maximum length")
	errStalled      = errors.New("nbd: client made no progress")
	errDrained      = errors.New("nbd: export went away")
	errStopped      = errors.New("nbd: server stops")
	errDisconnect   = errors.New("nbd: client disconnected")
)

// ErrClosed is what a Client's calls return after Close, or once the connection has failed; the latter wraps the cause.
var ErrClosed = errors.New("nbd: connection closed")

// ErrProtocol is a server that broke the protocol, as seen by a Client.
var ErrProtocol = errors.New("nbd: protocol violation")
