package link

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// defaultUserTimeout is the default of link.peer_timeout in the
	// configuration: a peer that acknowledges nothing for longer would be
	// dropped by the layer above anyway.
	defaultUserTimeout = 6 * time.Second

	// notSentLowat bounds what the kernel holds of unsent data on one
	// connection. Without it megabytes of writes queue in front of a lease
	// request inside the socket, where nothing can overtake them. It costs
	// nothing in throughput: data in flight does not count.
	notSentLowat = 256 << 10
)

// setOptions prepares the socket under nc. Anything that is not a TCP socket
// (a test's pipe) is left as it is.
func setOptions(nc net.Conn, userTimeout time.Duration) error {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	if _, ok := nc.LocalAddr().(*net.TCPAddr); !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return fmt.Errorf("socket options: %w", err)
	}
	if userTimeout == 0 {
		userTimeout = defaultUserTimeout
	}
	// Keepalive is the kernel's and not yamux's: it finds a dead connection
	// that nothing is sent on (bulk, when there is no resync) without waking
	// a goroutine. With TCP_USER_TIMEOUT set, that timeout also replaces the
	// probe count.
	options := []struct {
		level, name, value int
	}{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLowat},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(max(1, userTimeout.Milliseconds()))},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 5},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 2},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		for _, o := range options {
			if set = unix.SetsockoptInt(int(fd), o.level, o.name, o.value); set != nil {
				set = fmt.Errorf("socket option %d: %w", o.name, set)
				return
			}
		}
	})
	if err != nil {
		return fmt.Errorf("socket options: %w", err)
	}
	return set
}
