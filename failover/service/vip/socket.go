package vip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// hearFor bounds one wait for a packet, so that the end of the context is noticed.
const hearFor = 10 * time.Millisecond

// socket sends and hears what neighbours say about addresses on one link. A packet
// socket, because the kernel's own ARP cannot speak for an address that it does not
// have yet; it begins behind the link header (SOCK_DGRAM).
type socket struct {
	fd      int
	link    *net.Interface
	address netip.Addr
}

func openSocket(link *net.Interface, address netip.Addr) (*socket, error) {
	s := &socket{fd: -1, link: link, address: address}
	// It hears nothing before it is bound, when the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s.fd = fd
	if err := s.prepare(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) prepare() error {
	wait := unix.NsecToTimeval(int64(hearFor))
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if s.address.Is6() {
		filter := neighboursOnly()
		err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		if err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(s.fd, s.to(nil)))
}

// neighboursOnly passes what ndClaims looks at: the service's other traffic would
// fill the queue.
func neighboursOnly() []unix.SockFilter {
	const accept, drop = 0xffff, 0
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 6}, // next header
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: icmp6, Jf: 4},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: ip6Len}, // type
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: ndAsk, Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: ndTell, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: accept},
		{Code: unix.BPF_RET | unix.BPF_K, K: drop},
	}
}

func (s *socket) close() { _ = unix.Close(s.fd) }

func (s *socket) to(mac net.HardwareAddr) *unix.SockaddrLinklayer {
	protocol := uint16(unix.ETH_P_ARP)
	if s.address.Is6() {
		protocol = unix.ETH_P_IPV6
	}
	to := &unix.SockaddrLinklayer{Ifindex: s.link.Index, Halen: uint8(len(mac))}
	// sll_protocol is in network order.
	to.Protocol = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
	copy(to.Addr[:], mac)
	return to
}

func (s *socket) send(packet []byte, mac ...byte) error {
	return os.NewSyscallError("sendto", unix.Sendto(s.fd, packet, 0, s.to(mac)))
}

// multicast is the MAC of an IPv6 group (RFC 2464, 7).
func multicast(group netip.Addr) []byte {
	g := group.As16()
	return append([]byte{0x33, 0x33}, g[12:]...)
}

// probe asks who has the address, without claiming it.
func (s *socket) probe() error {
	if s.address.Is6() {
		return s.send(solicitation(s.address), multicast(group(s.address))...)
	}
	return s.send(arp(arpAsk, s.link.HardwareAddr, netip.IPv4Unspecified(), s.address), broadcast()...)
}

// announce tells all neighbours that we have it.
func (s *socket) announce() error {
	mac := s.link.HardwareAddr
	if s.address.Is6() {
		return s.send(advertisement(mac, s.address), multicast(allNodes())...)
	}
	return errors.Join(
		s.send(arp(arpAsk, mac, s.address, s.address), broadcast()...),
		s.send(arp(arpReply, mac, s.address, s.address), broadcast()...))
}

func broadcast() []byte { return bytes.Repeat([]byte{0xff}, macLen) }

// hear waits for the next packet, and returns who claims the address by it, or nil.
func (s *socket) hear() (net.HardwareAddr, error) {
	var buf [2048]byte
	n, from, err := unix.Recvfrom(s.fd, buf[:], 0)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return nil, nil
	case err != nil:
		return nil, os.NewSyscallError("recvfrom", err)
	}
	sender, ok := from.(*unix.SockaddrLinklayer)
	if !ok || sender.Pkttype == unix.PACKET_OUTGOING || sender.Halen != macLen {
		return nil, nil
	}
	var who net.HardwareAddr
	if s.address.Is6() {
		who = ndClaims(buf[:n], sender.Addr[:macLen], s.address)
	} else {
		who = arpClaims(buf[:n], s.address)
	}
	if bytes.Equal(who, s.link.HardwareAddr) {
		return nil, nil // a switch that sends our own back to us
	}
	return who, nil
}
