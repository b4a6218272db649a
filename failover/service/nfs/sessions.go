package nfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tandem/failover/internal/sockdiag"
	"tandem/failover/service"
)

// A client whose server has died sends again what was not answered, after pauses that
// double: ten seconds of silence cost up to ten more. The new server could end the old
// connection, but does not know it: it would answer its next segment with a reset. So the
// connections are written down on the volume, and the new server asks for that segment. It
// sends an acknowledgement of nothing in the old server's name; a client answers one that
// does not fit with what it has really received (RFC 9293, 3.10.7.4), to which the kernel here
// answers with the reset, and the client connects anew at once. (CTDB calls this a tickle.)

const (
	// sessionsFile is beside the recorder's folder, at the root of the filesystem.
	sessionsFile = ".tandem/nfs-sessions"

	// maxSessions bounds the file, and the argument that it is written by.
	maxSessions = 1000
)

// remember writes the clients' connections down, if they have changed. By a process, because
// a write may wait for the volume, and to the disk, because the other node reads it there.
func (s *Server) remember(ctx context.Context, folder string) error {
	now, err := s.host.sessions(ctx, s.cfg.Port)
	if err != nil {
		return fmt.Errorf("list the clients' connections: %w", err)
	}
	text := sessionsText(now)
	if text == s.remembered {
		return nil
	}
	file := path.Join(folder, sessionsFile)
	const script = `printf %s "$1" >"$2.new" && sync "$2.new" && mv "$2.new" "$2" && sync "$(dirname "$2")"`
	if err := s.host.run(ctx, "sh", "-c", script, "sh", text, file); err != nil {
		return fmt.Errorf("write the clients' connections down: %w", err)
	}
	s.remembered = text
	return nil
}

func sessionsText(all []sockdiag.Connection) string {
	var lines []string
	for _, c := range all {
		lines = append(lines, c.Local.String()+" "+c.Remote.String()+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines[:min(len(lines), maxSessions)], "")
}

// parseSessions leaves out what is no connection: the file is a help, and no more.
func parseSessions(text string) (all []sockdiag.Connection) {
	for line := range strings.Lines(text) {
		l, r, _ := strings.Cut(strings.TrimSpace(line), " ")
		local, err := netip.ParseAddrPort(l)
		remote, err2 := netip.ParseAddrPort(r)
		if err == nil && err2 == nil && local.Addr().Is4() == remote.Addr().Is4() && len(all) < maxSessions {
			all = append(all, sockdiag.Connection{Local: local, Remote: remote})
		}
	}
	return all
}

// Opened resets the connections of the server before this one: clients are answered from
// now on. Those that live are this server's, and the agent has only restarted.
func (s *Server) Opened(ctx context.Context, _ service.Term) error {
	s.opened = true
	folder, err := s.volume()
	if err != nil {
		return err
	}
	err = errors.Join(s.toTell(ctx, folder), s.reset(ctx, folder))
	s.tell(ctx)
	return err
}

func (s *Server) reset(ctx context.Context, folder string) error {
	text, err := s.host.read(ctx, path.Join(folder, sessionsFile))
	if err != nil { // on a new volume there are none
		s.log.Info("no clients of a server before are known", "err", err)
		return nil
	}
	live, err := s.host.sessions(ctx, s.cfg.Port)
	if err != nil {
		return fmt.Errorf("list the clients' connections: %w", err)
	}
	sent := 0
	for _, c := range parseSessions(text) {
		if c.Local.Port() != s.cfg.Port || slices.Contains(live, c) {
			continue
		}
		if err := s.host.tickle(c); err != nil {
			s.log.Debug("a client's old connection", "remote", c.Remote, "err", err)
			continue
		}
		sent++
	}
	s.log.Info("clients of the server before are told to connect anew", "connections", sent)
	return nil
}

// sessions is host's.
func (machine) sessions(ctx context.Context, port uint16) ([]sockdiag.Connection, error) {
	return sockdiag.Established(ctx, port)
}

// tickle is host's. An address that is not on this node was the other node's own. The client knows
// it by another, if an Elastic IP leads to whoever is primary: then the network puts that in the
// place of this node's own, too. If not, the client was not meant to use it, and takes no notice.
func (machine) tickle(c sockdiag.Connection) error {
	// The kernel puts the IP header before what is written to a raw socket.
	conn, err := net.DialIP("ip:tcp", ipAddr(c.Local), ipAddr(c.Remote))
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		if conn, err = net.DialIP("ip:tcp", nil, ipAddr(c.Remote)); err == nil {
			c.Local, err = ownAddress(conn, c.Local.Port())
		}
	}
	if err != nil {
		return err
	}
	_, err = conn.Write(bareACK(c))
	return errors.Join(err, conn.Close())
}

// ownAddress is what the kernel sends a connection's segments from.
func ownAddress(conn *net.IPConn, port uint16) (netip.AddrPort, error) {
	from, ok := conn.LocalAddr().(*net.IPAddr)
	if ok {
		if a, ok := netip.AddrFromSlice(from.IP); ok {
			return netip.AddrPortFrom(a.Unmap(), port), nil
		}
	}
	return netip.AddrPort{}, errors.Join(fmt.Errorf("%v is no address to send from", conn.LocalAddr()), conn.Close())
}

func ipAddr(a netip.AddrPort) *net.IPAddr {
	return &net.IPAddr{IP: a.Addr().AsSlice(), Zone: a.Addr().Zone()}
}

// bareACK is a TCP segment (RFC 9293, 3.1) whose numbers fit no connection but by a chance
// of one in some ten thousand, and one that fits does nothing.
//
//	0             2               4          8          12        13     14       16         18
//	┌─────────────┬───────────────┬──────────┬──────────┬─────────┬──────┬────────┬──────────┬────────┐
//	│ source port │ dest. port    │ sequence │ ack. no. │ 5 << 4  │ ACK  │ window │ checksum │ urgent │
//	└─────────────┴───────────────┴──────────┴──────────┴─────────┴──────┴────────┴──────────┴────────┘
func bareACK(c sockdiag.Connection) []byte {
	const length, dataOffset, ack = 20, 5 << 4, 1 << 4
	b := make([]byte, length)
	binary.BigEndian.PutUint16(b[0:], c.Local.Port())
	binary.BigEndian.PutUint16(b[2:], c.Remote.Port())
	b[12], b[13] = dataOffset, ack
	// The pseudo header: both addresses, the protocol, the length.
	pseudo := append(c.Local.Addr().AsSlice(), c.Remote.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, length)
	binary.BigEndian.PutUint16(b[16:], ^onesSum(append(pseudo, b...)))
	return b
}

// onesSum is the sum of RFC 1071, of an even number of bytes.
func onesSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
