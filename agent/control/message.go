// Package control is how replctl talks to an agent, one request per connection:
// to the one on the same machine by a unix socket that only its owner may open,
// to a peer's by a connection that a certificate of the cluster opened.
//
//	client ──▶ {"verb":"promote","args":{"force":"true"}}\n
//	       ◀── {"kind":"progress","text":"waiting out the lease of b"}\n   any number
//	       ◀── {"kind":"result","text":"a is Primary"}\n                   exactly one, the last
//
// The last message is of kind result, error or confirm. A connection that ends
// without one has an unknown outcome. The client sends nothing after its
// request; when it hangs up, the handler's context ends.
package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

const (
	// MaxLine bounds a request and a message, with their newline. A status of
	// four nodes is about 4 KiB; a metadata dump goes another way.
	MaxLine = 1 << 20

	// maxArgs and maxVerb are far above what any verb has.
	maxArgs = 64
	maxVerb = 64
	// maxNode is a DNS label; maxOrigin holds a user's name with room to spare.
	maxNode   = 63
	maxOrigin = 128
)

// The kinds of message.
const (
	KindProgress = "progress" // Text for the operator, Data a Progress if there is something to count
	KindEvent    = "event"    // of the verb events
	KindResult   = "result"   // done
	KindError    = "error"    // refused or failed, see Refused
	KindConfirm  = "confirm"  // not done yet, see Confirm
)

// Request is what the client wants. Which arguments a verb has is decided by the
// agent; switches have the value "true".
type Request struct {
	Verb string            `json:"verb"`
	Args map[string]string `json:"args,omitempty"`
	// Node is whose agent is to do it, if not the one that is asked: that one
	// asks on, in its own name.
	Node string `json:"node,omitempty"`
	// Origin is what a node says of the operator for whom it asks another.
	Origin string `json:"origin,omitempty"`

	// By is who asks. It is not in the request: the connection says it.
	By Caller `json:"-"`
}

// Message is one line of the answer.
type Message struct {
	Kind string          `json:"kind"`
	Text string          `json:"text,omitempty"`
	Data json.RawMessage `json:"data,omitempty"`
}

// Progress is the Data of a progress message that counts bytes, and the state of
// a resync in Status.
type Progress struct {
	DoneBytes          int64   `json:"done_bytes"`
	TotalBytes         int64   `json:"total_bytes"`
	RateBytesPerSecond int64   `json:"rate_bytes_per_second"`
	ETASeconds         float64 `json:"eta_seconds"`
}

// Event is the Data of an event message, whose Text is the same for a person.
type Event struct {
	Time  time.Time         `json:"time"`
	Name  string            `json:"name"` // such as "role", "disk", "link"
	From  string            `json:"from,omitempty"`
	To    string            `json:"to,omitempty"`
	Why   string            `json:"why,omitempty"`
	Attrs map[string]string `json:"attrs,omitempty"` // peer, epoch, …
}

// NewMessage marshals data, which may be nil, into a message.
func NewMessage(kind, text string, data any) (Message, error) {
	m := Message{Kind: kind, Text: text}
	if data == nil {
		return m, nil
	}
	raw, err := json.Marshal(data)
	if err != nil {
		return Message{}, fmt.Errorf("control: message: %w", err)
	}
	m.Data = raw
	return m, nil
}

// parseRequest is strict: an argument that is silently ignored could be a
// --discard-my-data that was meant.
func parseRequest(line []byte) (Request, error) {
	var r Request
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Request{}, fmt.Errorf("%w: text after the request", ErrProtocol)
	}
	if len(r.Verb) == 0 || len(r.Verb) > maxVerb {
		return Request{}, fmt.Errorf("%w: a verb of %d bytes", ErrProtocol, len(r.Verb))
	}
	for i := range len(r.Verb) {
		if c := r.Verb[i]; (c < 'a' || c > 'z') && c != '-' {
			return Request{}, fmt.Errorf("%w: verb %q", ErrProtocol, r.Verb)
		}
	}
	if len(r.Node) > maxNode || len(r.Origin) > maxOrigin {
		return Request{}, fmt.Errorf("%w: a name of %d bytes", ErrProtocol, max(len(r.Node), len(r.Origin)))
	}
	for _, s := range []string{r.Node, r.Origin} {
		// Both end up in the log and on a terminal.
		if strings.ContainsFunc(s, func(c rune) bool { return c == unicode.ReplacementChar || !unicode.IsPrint(c) }) {
			return Request{}, fmt.Errorf("%w: name %q", ErrProtocol, s)
		}
	}
	if len(r.Args) > maxArgs {
		return Request{}, fmt.Errorf("%w: %d arguments", ErrProtocol, len(r.Args))
	}
	return r, nil
}

// encodeLine returns v as one line, newline included.
func encodeLine(v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	if len(line) >= MaxLine {
		return nil, fmt.Errorf("control: a message of %d bytes: at most %d are possible", len(line), MaxLine-1)
	}
	return append(line, '\n'), nil
}

// readLine returns the next line without its newline. io.EOF means that nothing
// came; half a line is io.ErrUnexpectedEOF. The buffer grows with the line, up to
// MaxLine: a bufio.Reader of that size would cost every idle connection of an
// agent with locked memory a megabyte.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return nil, fmt.Errorf("%w: a line of more than %d bytes", ErrProtocol, MaxLine)
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		default:
			return line[:len(line)-1], nil
		}
	}
}
