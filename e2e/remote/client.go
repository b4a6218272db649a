package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// ErrGone is a guest that cannot be reached, or that went away under a command.
var ErrGone = errors.New("the guest is gone")

// afterCut is how long output that had already arrived is still read once the
// context has ended. A line that is in our socket was sent by a guest that was
// alive: a ledger of acknowledgements must have it.
const afterCut = 300 * time.Millisecond

// Command is what runs in the guest.
type Command struct {
	Script         string    // for bash -c
	Stdout, Stderr io.Writer // may be nil
	Detach         bool      // return at once with the pid on Stdout; the command outlives the client
}

// Run runs c at addr and returns its exit code. The error is nil whatever that
// code is; it wraps ErrGone or the context's.
func Run(ctx context.Context, addr string, c Command) (code int, err error) {
	d := net.Dialer{Timeout: 3 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrGone, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(afterCut)) })
	defer stop()
	q, err := json.Marshal(request{Script: c.Script, Detach: c.Detach})
	if err != nil {
		return 0, err
	}
	if len(q) >= maxRequest {
		return 0, fmt.Errorf("remote: a script of %d bytes, %d are possible", len(q), maxRequest)
	}
	if _, err := conn.Write(append(q, '\n')); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrGone, err)
	}
	in := bufio.NewReader(conn)
	for {
		kind, p, err := readFrame(in)
		switch {
		case errors.Is(err, errFrame):
			return 0, err
		case err != nil && ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case err != nil:
			return 0, fmt.Errorf("%w: %w", ErrGone, err)
		}
		var w io.Writer
		switch kind {
		case kindStdout:
			w = c.Stdout
		case kindStderr:
			w = c.Stderr
		case kindExit:
			return strconv.Atoi(string(p))
		default:
			return 0, fmt.Errorf("%w: kind %q", errFrame, kind)
		}
		if w != nil {
			if _, err := w.Write(p); err != nil {
				return 0, err
			}
		}
	}
}
