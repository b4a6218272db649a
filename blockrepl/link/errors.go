package link

import (
	"errors"
	"fmt"
	"net"
)

// Why a link is down; LinkDown gets one of these or an error that wraps what
// the socket, TLS, yamux or the frame reader said.
var (
	// ErrClosedByPeer means that the peer ended the link in order: it closed
	// every channel and everything that it had sent has been received.
	ErrClosedByPeer = errors.New("closed by the peer")
	// ErrReplaced means that the peer has dialled a new link, which it does
	// only when this one has ended at its side.
	ErrReplaced = errors.New("replaced by a new link of the peer")
	// ErrQueueFull means that a channel's queue reached its hard cap: the
	// callers' own bounds have failed, and growing on would take the machine.
	ErrQueueFull = errors.New("send queue is full")
	// errConnectionClosed is the end of a connection whose streams were not
	// ended first: the peer's process died, or cut the link for an error.
	errConnectionClosed = errors.New("connection closed by the peer")
	// ErrShutdown means that this agent is stopping.
	ErrShutdown = errors.New("shutting down")
)

// What makes one attempt to connect fail.
var (
	// ErrNotPreface means that what answered is not an agent of ours.
	ErrNotPreface = errors.New("not a tandem agent")
	// ErrPreface means a preface that contradicts itself or is damaged.
	ErrPreface = errors.New("damaged preface")
	// errStrangers is the end of the oldest of too many.
	errStrangers = errors.New("too many connections that have not introduced themselves")
)

// RefusedError says that one of the two agents does not want the other.
type RefusedError struct {
	Reason string
	ByPeer bool // the peer refused us
}

func (e *RefusedError) Error() string {
	if e.ByPeer {
		return "refused by the peer: " + e.Reason
	}
	return "refused: " + e.Reason
}

func refuse(format string, args ...any) error {
	return &RefusedError{Reason: fmt.Sprintf(format, args...)}
}

// plain drops the addresses that package net puts into its errors: the local
// port is a new one at every attempt, and the same cause would look like a new
// one to the log.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}
