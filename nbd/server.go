package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Config is what a Server is made of. Zero limits are the defaults.
type Config struct {
	Backend Backend
	Log     *slog.Logger // nil is silence

	// MaxConnections is over all listeners; those beyond it are closed at once. Default 2048.
	MaxConnections int
	// MaxInFlight is per connection: at so many requests without a sent reply the server stops reading. Default 128, the
	// kernel client's queue depth.
	MaxInFlight int
	// BufferBytes bounds the payloads in flight of all connections together. Default 256 MiB, at least 64 MiB. One
	// connection may hold an eighth.
	BufferBytes int64

	// HandshakeTimeout is for everything before the transmission phase. Default 10 s.
	HandshakeTimeout time.Duration
	// StallTimeout is how long a client may go without taking a byte of its replies, and how long it may take over the
	// payload of one request. Default 30 s.
	StallTimeout time.Duration
	// DrainTimeout is how long a connection outlives its export's Done, or the context of Serve. Default 2 s.
	DrainTimeout time.Duration
}

// setDefaults fills in the limits that were not given.
func (c *Config) setDefaults() error {
	if c.Backend == nil {
		return errors.New("nbd: config: no backend")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = 2048
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = 128
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = 256 << 20
	}
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&c.HandshakeTimeout, 10 * time.Second},
		{&c.StallTimeout, 30 * time.Second},
		{&c.DrainTimeout, 2 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.standard
		}
		if *d.value < 0 {
			return errors.New("nbd: config: negative timeout")
		}
	}
	if c.MaxConnections < 0 || c.MaxInFlight < 0 || c.BufferBytes < 0 {
		return errors.New("nbd: config: negative limit")
	}
	return nil
}

// Server serves NBD to any number of clients on any number of listeners.
type Server struct {
	config   Config
	buffers  *buffers
	requests sync.Pool // of *Request
	inputs   sync.Pool // of *[inputSize]byte

	connections atomic.Int64
	turn        chan struct{} // the lock of the connection that parts with its client
}

// NewServer reserves the memory of all payloads at once. Its errors are a config that makes no sense, and the system's.
func NewServer(config Config) (*Server, error) {
	if err := config.setDefaults(); err != nil {
		return nil, err
	}
	buffers, err := newBuffers(config.BufferBytes)
	if err != nil {
		return nil, err
	}
	s := &Server{
		config:   config,
		buffers:  buffers,
		turn:     make(chan struct{}, 1),
		requests: sync.Pool{New: func() any { return new(Request) }},
		inputs:   sync.Pool{New: func() any { return new([inputSize]byte) }},
	}
	// A connection keeps its server reachable, so no payload can outlive the mapping.
	runtime.AddCleanup(s, func(mem []byte) { _ = unix.Munmap(mem) }, buffers.mem)
	return s, nil
}

// Connections is how many clients are connected, those still in the handshake included.
func (s *Server) Connections() int { return int(s.connections.Load()) }

// Serve accepts clients until ctx ends or l fails; it closes l. It returns when everything it started has ended, which
// includes the requests that devices have yet to complete. It may be called for several listeners at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		if stop() {
			l.Close()
		}
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !temporary(err) {
				return fmt.Errorf("nbd: accept: %w", err)
			}
			// Out of descriptors or memory: the clients there are may leave, so waiting helps and returning does not.
			s.config.Log.Warn("nbd accept failed", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		}
		if s.connections.Add(1) > int64(s.config.MaxConnections) {
			s.connections.Add(-1)
			s.config.Log.Debug("nbd client turned away", "peer", conn.RemoteAddr(), "connections", s.config.MaxConnections)
			conn.Close()
			continue
		}
		wg.Go(func() {
			defer s.connections.Add(-1)
			newConn(s, conn).run(ctx)
		})
	}
}

// acceptRetry paces accept while the process is out of descriptors.
const acceptRetry = 50 * time.Millisecond

// temporary is whether accept may succeed later on the same listener.
func temporary(err error) bool {
	for _, errno := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
