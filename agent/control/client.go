package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"syscall"
	"time"
)

// Call sends req to the agent at socket and returns the Data of the result.
// onMessage, which may be nil, sees every progress and event message and the
// result, in order. A refusal is a *Refused, a request for the operator's
// agreement a *Confirm; with any other error but ErrNoAgent the outcome is
// unknown.
func Call(ctx context.Context, socket string, req Request, onMessage func(Message)) (json.RawMessage, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, dialError(socket, err)
	}
	return CallConn(ctx, conn, req, onMessage)
}

// CallConn is Call over a connection that leads to an agent, of this node or of a
// peer. It closes conn.
func CallConn(ctx context.Context, conn net.Conn, req Request, onMessage func(Message)) (json.RawMessage, error) {
	defer conn.Close()
	line, err := encodeLine(req)
	if err != nil {
		return nil, err
	}
	// Hanging up is how a client gives up; the agent's handler ends by it.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	// A failed write is not the end: an agent that is busy answers without
	// having read the request.
	_, writeErr := conn.Write(line)
	in := bufio.NewReader(conn)
	for {
		line, err := readLine(in)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%s: %w", req.Verb, context.Cause(ctx))
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
			if writeErr != nil {
				return nil, fmt.Errorf("%s: %w (%w)", req.Verb, ErrClosed, writeErr)
			}
			return nil, fmt.Errorf("%s: %w", req.Verb, ErrClosed)
		default:
			return nil, fmt.Errorf("%s: %w", req.Verb, err)
		}
		var m Message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", req.Verb, ErrProtocol, err)
		}
		switch m.Kind {
		case KindError:
			return nil, &Refused{Text: m.Text, Data: m.Data}
		case KindConfirm:
			c := &Confirm{}
			if err := json.Unmarshal(m.Data, c); err != nil {
				return nil, fmt.Errorf("%s: %w: %w", req.Verb, ErrProtocol, err)
			}
			return nil, c
		}
		if onMessage != nil {
			onMessage(m)
		}
		if m.Kind == KindResult {
			return m.Data, nil
		}
	}
}

func dialError(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s", ErrNoAgent, socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s belongs to another user: run this as the agent's user (%w)", socket, err)
	}
	return fmt.Errorf("control: %w", err)
}
