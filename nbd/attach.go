package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Attachment is a connection that has been negotiated for somebody else, who speaks the transmission phase: the kernel.
type Attachment struct {
	Conn  net.Conn // in the transmission phase; nothing has been read of it
	Size  int64    // of the export, bytes
	Flags uint16   // transmission flags
}

// Attach connects to an export and negotiates what the kernel's client understands: GO and simple replies. A server's
// refusal is a *Refusal in the error's chain.
func Attach(ctx context.Context, network, addr, export string) (*Attachment, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd: dial: %w", err)
	}
	// The negotiation is a Client's, whose runReplies is never started.
	c := &Client{net: conn}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	g := &negotiation{conn: conn, in: bufio.NewReaderSize(conn, inputSize)}
	err = g.greet()
	if err == nil {
		err = c.negotiate(g, export, ClientOptions{SimpleReplies: true})
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	// What was read ahead would be lost to the kernel, which begins where we end. A server has nothing to say before
	// it is asked.
	if err == nil && g.in.Buffered() > 0 {
		err = fmt.Errorf("%w: %d bytes behind the negotiation", ErrProtocol, g.in.Buffered())
	}
	if err != nil {
		err = errors.Join(err, conn.Close())
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("nbd: negotiate: %w", err)
	}
	return &Attachment{Conn: conn, Size: c.size, Flags: c.flags}, nil
}
