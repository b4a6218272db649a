package kernelnbd

import (
	"golang.org/x/sys/unix"
)

// Socket is one negotiated connection to the export, in the transmission phase. Whoever gets it closes it.
type Socket struct {
	FD    int    // of a stream socket; blocking or not makes no difference to the kernel
	Size  int64  // of the export, bytes
	Flags uint16 // transmission flags
}

// We keep our descriptor of each socket that the kernel has, for the two things that it does not tell in any other way.

// adopted says whether the kernel took the socket. RECONFIGURE says "done" also when it had no dead connection to
// replace; but a socket that it takes gets the request timeout as its send timeout (nbd_reconnect_socket), which
// otherwise is nought.
func (s *Socket) adopted() bool {
	t, err := unix.GetsockoptTimeval(s.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	return err == nil && t.Nano() > 0
}

// dead says whether the connection is over: the kernel shuts a socket that it gives up (a request timed out, a
// disconnect), the agent closes its end when it ends.
func (s *Socket) dead() bool {
	fds := []unix.PollFd{{Fd: int32(s.FD), Events: unix.POLLRDHUP}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return err != nil || n > 0
	}
}

func (s *Socket) close() { _ = unix.Close(s.FD) }
