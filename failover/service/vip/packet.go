package vip

import (
	"encoding/binary"
	"net"
	"net/netip"
)

const macLen = 6

// An ARP packet for IPv4 over Ethernet (RFC 826), as a probe and as an announcement
// (RFC 5227):
//
//	 0        2        4    5    6        8          14         18         24         28
//	┌────────┬────────┬────┬────┬────────┬──────────┬──────────┬──────────┬──────────┐
//	│ 1      │ 0x0800 │ 6  │ 4  │ op     │ sender   │ sender   │ target   │ target   │
//	│        │        │    │    │ 1 or 2 │ MAC      │ IP       │ MAC      │ IP       │
//	└────────┴────────┴────┴────┴────────┴──────────┴──────────┴──────────┴──────────┘
//	probe                         1        ours       0          0          address
//	announcement                  1, 2     ours       address    0          address
//
// The announcement goes out as a request and as an answer, since some hosts heed only
// the one and some only the other.
const (
	arpLen   = 28
	arpAsk   = 1
	arpReply = 2
)

func arp(op uint16, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	b := make([]byte, 0, arpLen)
	b = append(b, 0, 1, 0x08, 0, macLen, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, mac...)
	b = append(b, sender.AsSlice()...)
	b = append(b, make([]byte, macLen)...)
	return append(b, target.AsSlice()...)
}

// arpClaims returns the MAC of the host that, by this packet, has the address or is
// about to take it: it sends in its name, or probes for it. It is nil if the packet
// says nothing of the kind.
func arpClaims(b []byte, address netip.Addr) net.HardwareAddr {
	if len(b) < arpLen || b[0] != 0 || b[1] != 1 || b[2] != 0x08 || b[3] != 0 || b[4] != macLen || b[5] != 4 {
		return nil
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if sender == address || sender.IsUnspecified() && target == address {
		return net.HardwareAddr(append([]byte(nil), b[8:14]...))
	}
	return nil
}

// A neighbour solicitation and advertisement (RFC 4861, 4.3 and 4.4) with its IPv6
// header. A probe is sent from :: and to the group of those who might have the address
// (RFC 4862, 5.4); who has it answers to all nodes.
//
//	 0                 4         6      7       8            24           40
//	┌─────────────────┬─────────┬──────┬───────┬────────────┬────────────┐
//	│ 6, class, label │ length  │ 58   │ 255   │ source     │ destination│ IPv6
//	├──────┬──────┬───┴─────┬───┴──────┴───────┼────────────┼──────┬─────┴┬────────┐
//	│ 135  │ 0    │ checksum│ flags            │ target     │ 2    │ 1    │ MAC    │ ICMPv6, from 40 on
//	│ /136 │      │         │                  │            │ (136 only)           │
//	└──────┴──────┴─────────┴──────────────────┴────────────┴──────┴──────┴────────┘
//	40     41     42        44                 48           64     65     66       72
//
// The hop limit of 255 shows that it comes from this link. The checksum covers source,
// destination, length and protocol too (RFC 8200, 8.1).
const (
	ip6Len    = 40
	ndLen     = 24
	ndAsk     = 135
	ndTell    = 136
	icmp6     = 58
	override  = 0x20 // in the first byte of the flags: forget what you knew
	optionLen = 8
)

func allNodes() netip.Addr { return netip.MustParseAddr("ff02::1") }

// group is ff02::1:ff00:0/104 with the last three bytes of the address.
func group(address netip.Addr) netip.Addr {
	g := netip.MustParseAddr("ff02::1:ff00:0").As16()
	a := address.As16()
	copy(g[13:], a[13:])
	return netip.AddrFrom16(g)
}

func solicitation(address netip.Addr) []byte {
	return neighbour(ndAsk, 0, netip.IPv6Unspecified(), group(address), address, nil)
}

func advertisement(mac net.HardwareAddr, address netip.Addr) []byte {
	return neighbour(ndTell, override, address, allNodes(), address, mac)
}

func neighbour(kind, flags byte, source, destination, target netip.Addr, mac net.HardwareAddr) []byte {
	body := make([]byte, 0, ndLen+optionLen)
	body = append(body, kind, 0, 0, 0, flags, 0, 0, 0)
	body = append(body, target.AsSlice()...)
	if mac != nil {
		body = append(body, 2, 1)
		body = append(body, mac...)
	}
	b := make([]byte, 0, ip6Len+len(body))
	b = append(b, 6<<4, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, icmp6, 255)
	b = append(b, source.AsSlice()...)
	b = append(b, destination.AsSlice()...)
	b = append(b, body...)
	binary.BigEndian.PutUint16(b[ip6Len+2:], ^checksum(b))
	return b
}

// checksum is the ones' complement sum over an IPv6 packet's pseudo header and body;
// 0xffff if the checksum inside is right.
func checksum(b []byte) uint16 {
	sum := uint32(len(b)-ip6Len) + icmp6
	for i := 8; i < len(b); i += 2 { // source and destination, then the body
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// ndClaims is arpClaims for IPv6. A probe does not name a MAC, so the answer is the
// one that the packet came from.
func ndClaims(b []byte, mac net.HardwareAddr, address netip.Addr) net.HardwareAddr {
	if len(b) < ip6Len+ndLen || b[0]>>4 != 6 || b[6] != icmp6 || b[7] != 255 {
		return nil
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < ndLen || length%2 != 0 || ip6Len+length > len(b) {
		return nil
	}
	b = b[:ip6Len+length]
	source, target := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[48:64]))
	kind := b[ip6Len]
	claims := kind == ndTell || kind == ndAsk && source.IsUnspecified()
	if !claims || target != address || checksum(b) != 0xffff {
		return nil
	}
	return mac
}
