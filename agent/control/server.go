package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// maxConnections is far above what operators and monitors need, and keeps a
	// script in a loop from using up the agent's descriptors.
	maxConnections = 64

	// A client writes its request at once. One that does not would hold a
	// connection for ever.
	requestTimeout = 5 * time.Second

	// A client that does not read (a pager on `events --follow`) is dropped, so
	// that no handler waits for it.
	sendTimeout = 10 * time.Second

	// Accept fails for a while when the process is out of descriptors.
	acceptPause = 50 * time.Millisecond
)

// Handler answers one request. It may send any number of progress and event
// messages, and a result; if it returns nil without having sent a result, an
// empty one is sent. An error is sent as the last message: *Refused and *Confirm
// as they are, any other as its text. ctx ends with ErrClientGone when the
// client hangs up, and with the server's own; the handler must then return.
type Handler func(ctx context.Context, req Request, send func(Message) error) error

// Serve answers on ln until ctx ends, then closes ln and returns nil when every
// handler has returned. An error means that ln broke; ln is closed then too.
func Serve(ctx context.Context, ln net.Listener, h Handler) error {
	s := &server{handler: h, requestTimeout: requestTimeout, sendTimeout: sendTimeout}
	return s.serve(ctx, ln)
}

// server is one call of Serve. The timeouts are fields for the tests.
type server struct {
	handler        Handler
	requestTimeout time.Duration
	sendTimeout    time.Duration
	conns          sync.WaitGroup
}

func (s *server) serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var closer sync.WaitGroup
	closer.Go(func() {
		<-ctx.Done()
		_ = ln.Close()
	})
	slots := make(chan struct{}, maxConnections)
	var failed error
	for ctx.Err() == nil {
		conn, err := ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				if ctx.Err() == nil {
					failed = fmt.Errorf("control: %w", err)
				}
				break
			}
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case slots <- struct{}{}:
			s.conns.Go(func() {
				defer func() { <-slots }()
				s.runConn(ctx, conn)
			})
		default:
			s.busy(conn)
		}
	}
	cancel(failed)
	closer.Wait()
	s.conns.Wait()
	return failed
}

// busy answers in the accept loop. It cannot block: the line fits into the empty
// buffer of a new socket.
func (s *server) busy(conn net.Conn) {
	defer conn.Close()
	text := fmt.Sprintf("the agent already has %d control connections: try again later", maxConnections)
	if line, err := encodeLine(Message{Kind: KindError, Text: text}); err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(s.requestTimeout))
		_, _ = conn.Write(line)
	}
}

// runConn owns conn: it reads the request, runs the handler, and watches for the
// client's hanging up meanwhile.
func (s *server) runConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	out := &sender{conn: conn, timeout: s.sendTimeout}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// The deadline also ends the read when the server stops before a request.
	_ = conn.SetReadDeadline(time.Now().Add(s.requestTimeout))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	in := bufio.NewReader(conn)
	line, err := readLine(in)
	if err != nil {
		if errors.Is(err, ErrProtocol) {
			out.finish(err)
		}
		return // it said nothing that could be answered
	}
	req, err := parseRequest(line)
	if err != nil {
		out.finish(err)
		return
	}

	req.By = callerOf(conn, req.Origin)
	if !stop() { // the server has stopped, the deadline must stay
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	var watch sync.WaitGroup
	watch.Go(func() {
		// Nothing may follow the request, so any end of this read is the client's
		// end, or ours below.
		_, _ = in.ReadByte()
		cancel(ErrClientGone)
	})
	err = s.handler(ctx, req, out.send)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = errStopping // or the client has gone and will not read it
	}
	out.finish(err)
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	watch.Wait()
}

// sender writes messages. A handler may send from several goroutines.
type sender struct {
	timeout time.Duration

	mu     sync.Mutex
	conn   net.Conn
	broken error // the first failure of conn, or that the last message was sent
}

func (o *sender) send(m Message) error {
	line, err := encodeLine(m)
	if err != nil {
		return err // the message is at fault, the connection is not
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken != nil {
		return o.broken
	}
	if err := o.conn.SetWriteDeadline(time.Now().Add(o.timeout)); err != nil {
		o.broken = fmt.Errorf("control: send: %w", err)
		return o.broken
	}
	// One Write, so that a message is never mixed with another.
	if _, err := o.conn.Write(line); err != nil {
		o.broken = fmt.Errorf("control: send: %w", err)
		return o.broken
	}
	if m.Kind == KindResult || m.Kind == KindError || m.Kind == KindConfirm {
		o.broken = errors.New("control: send: a message after the last one")
	}
	return nil
}

// finish sends the last message, unless the handler has sent it itself.
func (o *sender) finish(err error) {
	m := Message{Kind: KindResult}
	if refused, ok := errors.AsType[*Refused](err); ok {
		// The text of err and not of refused: a wrapper may have added something.
		m = Message{Kind: KindError, Text: err.Error(), Data: refused.Data}
	} else if confirm, ok := errors.AsType[*Confirm](err); ok {
		data, err := json.Marshal(confirm)
		if err != nil { // two strings
			panic(err)
		}
		m = Message{Kind: KindConfirm, Text: confirm.Text, Data: data}
	} else if err != nil {
		m = Message{Kind: KindError, Text: err.Error()}
	}
	if err := o.send(m); err != nil && m.Data != nil {
		// Too large: the text alone says more than an ending without an answer.
		m.Data = nil
		_ = o.send(m)
	}
}
