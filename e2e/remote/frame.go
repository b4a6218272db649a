package remote

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

const (
	kindStdout byte = 'o'
	kindStderr byte = 'e'
	kindExit   byte = 'x'

	frameHeader = 5
	maxPayload  = 64 << 10
	maxRequest  = 1 << 20 // a script with a file in it
)

var errFrame = errors.New("remote: not a frame")

// request is the line that opens a connection.
type request struct {
	Script string // for bash -c
	Detach bool   // answer with the pid at once, and let it run
}

// frameWriter sends whole frames from several goroutines.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frameWriter) send(kind byte, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		n := min(len(p), maxPayload)
		b := make([]byte, frameHeader+n)
		b[0] = kind
		binary.BigEndian.PutUint32(b[1:], uint32(n))
		copy(b[frameHeader:], p)
		if _, err := f.w.Write(b); err != nil {
			return err
		}
		if p = p[n:]; len(p) == 0 {
			return nil
		}
	}
}

// stream is one of a command's outputs.
type stream struct {
	f    *frameWriter
	kind byte
}

func (s stream) Write(p []byte) (int, error) {
	if err := s.f.send(s.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func readFrame(r io.Reader) (kind byte, payload []byte, err error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > maxPayload {
		return 0, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	return h[0], payload, nil
}
