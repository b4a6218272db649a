// Package sockdiag lists and destroys TCP sockets of this machine (sock_diag(7)).
package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// struct inet_diag_req_v2 and struct inet_diag_msg of linux/inet_diag.h. Both have
// the connection's identity at the same place, so that what the dump says of one is what
// destroys it.
//
//	 0        1        2        3        4                52
//	┌────────┬────────┬────────┬────────┬────────────────┬───
//	│ family │ proto  │  ext   │  pad   │ states (u32)   │ id (48)                       request, 56 bytes
//	├────────┼────────┼────────┼────────┼────────────────┴───
//	│ family │ state  │ timer  │retrans │ id (48)                                        answer, at least 52
//	└────────┴────────┴────────┴────────┴────────────────────
//	id: source port (be16), destination port (be16), source (16), destination (16), interface (u32), cookie (8)
const (
	diagIDLen      = 48
	diagRequestLen = 8 + diagIDLen
	diagIDAt       = 4 // in an answer

	sockDiagByFamily = 20
	sockDestroy      = 21

	tcpEstablished = 1
	tcpListen      = 10

	// callTime bounds one exchange with the kernel, which takes well under a millisecond.
	callTime = 2 * time.Second
)

// socket is one TCP socket of ours.
type socket struct {
	family, state byte
	id            [diagIDLen]byte
}

func (s *socket) port() uint16 { return binary.BigEndian.Uint16(s.id[:2]) }

// end is an end of the connection: 0 ours, 1 theirs.
func (s *socket) end(n int) netip.AddrPort {
	port := binary.BigEndian.Uint16(s.id[2*n:])
	raw := s.id[4+16*n : 20+16*n]
	if s.family == unix.AF_INET {
		raw = raw[:4]
	}
	address, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(address.Unmap(), port)
}

// Connection is one that is established.
type Connection struct{ Local, Remote netip.AddrPort }

// Established returns the connections whose local port is the one given.
func Established(ctx context.Context, port uint16) (all []Connection, err error) {
	err = each(ctx, []uint16{port}, func(_ *netlink.Conn, s *socket) error {
		if s.state == tcpEstablished {
			all = append(all, Connection{s.end(0), s.end(1)})
		}
		return nil
	})
	return all, err
}

// Destroy ends every connection whose local port is one of those given, with a reset to the
// other side. Listening sockets stay: they have nothing to send.
func Destroy(ctx context.Context, ports ...uint16) error {
	return each(ctx, ports, func(c *netlink.Conn, s *socket) error {
		if s.state == tcpListen {
			return nil
		}
		_, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge},
			Data:   request(s.family, 0, s.id[:]),
		})
		// It may have ended by itself since. TIME-WAIT (ENOENT on some kernels) has nothing to send.
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("this kernel cannot (CONFIG_INET_DIAG_DESTROY): %w", err)
		}
		return err
	})
}

// each calls do for every socket of these ports.
func each(ctx context.Context, ports []uint16, do func(*netlink.Conn, *socket) error) error {
	if len(ports) == 0 {
		return nil
	}
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	deadline := time.Now().Add(callTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		all, err := sockets(c, family)
		if err != nil {
			return err
		}
		for _, s := range all {
			if !slices.Contains(ports, s.port()) {
				continue
			}
			if err := do(c, &s); err != nil {
				return err
			}
		}
	}
	return nil
}

func sockets(c *netlink.Conn, family byte) ([]socket, error) {
	const allStates = ^uint32(0)
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   request(family, allStates, make([]byte, diagIDLen)),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // a kernel without this family
	}
	if err != nil {
		return nil, err
	}
	var all []socket
	for _, m := range msgs {
		if len(m.Data) < diagIDAt+diagIDLen {
			continue // not an answer that we know
		}
		s := socket{family: m.Data[0], state: m.Data[1]}
		copy(s.id[:], m.Data[diagIDAt:])
		all = append(all, s)
	}
	return all, nil
}

func request(family byte, states uint32, id []byte) []byte {
	b := make([]byte, 8, diagRequestLen)
	b[0], b[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], states)
	return append(b, id...)
}
