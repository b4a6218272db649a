package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener is the control socket and the lock that says that its owner lives.
type listener struct {
	*net.UnixListener
	lock *os.File
}

// Listen creates the socket at path with mode 0600 and returns its listener.
// What a dead agent left there is replaced; a living agent's socket gives
// ErrInUse, a file that is no socket is left alone.
//
// Whether the other lives is asked of a flock on PATH.lock, which the kernel
// drops with the process. Dialling the old socket would not do: an agent that is
// stopped, or whose backlog is full, does not answer and is not dead.
func Listen(path string) (net.Listener, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ln, err := bind(path, lock)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), lock.Close())
	}
	return &listener{ln, lock}, nil
}

func bind(path string, lock *os.File) (*net.UnixListener, error) {
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: it holds %s", ErrInUse, lock.Name())
		}
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("%s is not a socket: remove it, or choose another path", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	// Linux gives the file of a socket the mode of its descriptor. So it is 0600
	// from its first instant, and neither a chmod after bind (too late) nor umask
	// (which belongs to all threads) is needed.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		if err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	ln, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}

// Close removes the socket, then lets the next agent in.
func (l *listener) Close() error { return errors.Join(l.UnixListener.Close(), l.lock.Close()) }
