package control

import (
	"encoding/json"
	"errors"
)

var (
	// ErrNoAgent means that nobody answers at the socket: it is absent, or left
	// over from an agent that died.
	ErrNoAgent = errors.New("no agent answers")

	// ErrInUse means that a living agent owns the socket.
	ErrInUse = errors.New("another agent is running")

	// ErrClosed means that the agent hung up before it gave a result: it was
	// stopped or died, or we read too slowly. Whether it did what it was asked is
	// unknown.
	ErrClosed = errors.New("the agent closed the connection without an answer")

	// ErrClientGone is the cause of a Handler's cancelled context when the client
	// hung up.
	ErrClientGone = errors.New("the client has gone")

	// errStopping is what a client reads whose request was cut short by SIGTERM.
	errStopping = errors.New("the agent is stopping: the request was not finished")

	// ErrProtocol means bytes that are no message or no request.
	ErrProtocol = errors.New("not the control protocol")
)

// Refused is an answer: the agent is well and will not do it. Text is one line
// for the operator that says what is missing or what to do next.
type Refused struct {
	Text string
	Data json.RawMessage // optional, for a program
}

func (r *Refused) Error() string { return r.Text }

// Confirm is an answer too: the agent will do it, once the operator has read
// Text and agreed. The request is then sent again with the argument yes.
type Confirm struct {
	Text string `json:"text"` // what will be lost, possibly several lines
	Node string `json:"node"` // what the operator types to agree
}

func (c *Confirm) Error() string { return c.Text }
