package wire

import "errors"

// What a Reader reports about a frame that it refuses. Each one ends the
// stream: after a refused frame nobody knows where the next one starts, so a
// Reader returns the same error for ever and its link goes down.
var (
	// ErrMagic means that the stream is not at the start of a frame: the other
	// end speaks something else, or one of us lost count.
	ErrMagic = errors.New("wire: not a frame")
	// ErrVersion means a frame layout that this build does not know. The link's
	// preface agrees on a version, so it is a fault and no old peer.
	ErrVersion = errors.New("wire: unknown frame version")
	// ErrHeaderSum means that the header was damaged on its way; nothing in it,
	// the body's length least of all, has been believed.
	ErrHeaderSum = errors.New("wire: header checksum does not match")
	// ErrSum means that header and body do not belong together: the body was
	// damaged, or overwritten by its sender between Queue and the socket.
	ErrSum = errors.New("wire: body checksum does not match")
	// ErrReserved means that a field that must be zero is not.
	ErrReserved = errors.New("wire: reserved field is set")
	// ErrType means a frame type that this build does not know.
	ErrType = errors.New("wire: unknown frame type")
	// ErrChannel means a known type on a channel where it has no order.
	ErrChannel = errors.New("wire: frame type on the wrong channel")
	// ErrFlags means a flag that the type does not have. Ignoring one would
	// turn an unknown "make it durable" into an early acknowledgement.
	ErrFlags = errors.New("wire: unknown flag")
	// ErrLength means a body that is too long, too short, of a length that its
	// type cannot have, or that is not the Len bytes it claims to be.
	ErrLength = errors.New("wire: impossible body length")
	// ErrRange means that Off+Len lies beyond what a file offset can say.
	ErrRange = errors.New("wire: range overflows")
)
