package vip

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
)

var (
	mac1 = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	mac2 = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	a4   = netip.MustParseAddr("10.0.0.9")
	b4   = netip.MustParseAddr("10.0.0.8")
	a6   = netip.MustParseAddr("2001:db8::12:3456")
	b6   = netip.MustParseAddr("2001:db8::12:3457")
)

func TestARPBytes(t *testing.T) {
	for _, tc := range []struct {
		name string
		got  []byte
		want string
	}{
		{"probe", arp(arpAsk, mac1, netip.IPv4Unspecified(), a4), "0001 0800 06 04 0001 020000000001 00000000 000000000000 0a000009"},
		{"announcement", arp(arpReply, mac1, a4, a4), "0001 0800 06 04 0002 020000000001 0a000009 000000000000 0a000009"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(tc.want, " ", ""))
		if err != nil || !bytes.Equal(tc.got, want) {
			t.Errorf("%s: %x, want %x", tc.name, tc.got, want)
		}
	}
}

func TestARPClaims(t *testing.T) {
	change := func(at int, to byte) []byte {
		b := arp(arpReply, mac2, a4, a4)
		b[at] = to
		return b
	}
	for _, tc := range []struct {
		name   string
		packet []byte
		claims bool
	}{
		{"an answer", arp(arpReply, mac2, a4, b4), true},
		{"an announcement", arp(arpAsk, mac2, a4, a4), true},
		{"its question for somebody else", arp(arpAsk, mac2, a4, b4), true},
		{"another's probe", arp(arpAsk, mac2, netip.IPv4Unspecified(), a4), true},
		{"a question for it", arp(arpAsk, mac2, b4, a4), false},
		{"another's answer", arp(arpReply, mac2, b4, a4), false},
		{"a probe for something else", arp(arpAsk, mac2, netip.IPv4Unspecified(), b4), false},
		{"padded", append(arp(arpReply, mac2, a4, b4), make([]byte, 18)...), true},
		{"short", arp(arpReply, mac2, a4, a4)[:arpLen-1], false},
		{"not Ethernet", change(1, 6), false},
		{"not IPv4", change(2, 0x86), false},
		{"long MAC", change(4, 8), false},
		{"long address", change(5, 16), false},
	} {
		got := arpClaims(tc.packet, a4)
		if (got != nil) != tc.claims || got != nil && !bytes.Equal(got, mac2) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

// SSSS is the checksum, which has a check of its own here, and in TestTheNeighbourLearns the kernel.
func TestNeighbourBytes(t *testing.T) {
	for _, tc := range []struct {
		name string
		got  []byte
		want string
	}{
		{"solicitation", solicitation(a6), "60000000 0018 3a ff" + strings.Repeat("00", 16) + "ff0200000000000000000001ff123456" +
			"87 00 SSSS 00000000 20010db8000000000000000000123456"},
		{"advertisement", advertisement(mac1, a6), "60000000 0020 3a ff 20010db8000000000000000000123456 ff020000000000000000000000000001" +
			"88 00 SSSS 20000000 20010db8000000000000000000123456 02 01 020000000001"},
	} {
		want := strings.ReplaceAll(tc.want, " ", "")
		sum := strings.Index(want, "SSSS")
		got := hex.EncodeToString(tc.got)
		if len(got) != len(want) || got[:sum] != want[:sum] || got[sum+4:] != want[sum+4:] {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, want)
		}
		if checksum(tc.got) != 0xffff {
			t.Errorf("%s: wrong checksum", tc.name)
		}
	}
}

func TestNeighbourClaims(t *testing.T) {
	change := func(at int, to byte) []byte {
		b := advertisement(mac2, a6)
		b[at] = to
		return b
	}
	asked := neighbour(ndAsk, 0, b6, group(a6), a6, mac2)
	for _, tc := range []struct {
		name   string
		packet []byte
		claims bool
	}{
		{"an advertisement", advertisement(mac2, a6), true},
		{"one without its MAC", neighbour(ndTell, 0, a6, allNodes(), a6, nil), true},
		{"another's probe", solicitation(a6), true},
		{"a question for it", asked, false},
		{"another's advertisement", advertisement(mac2, b6), false},
		{"a probe for something else", solicitation(b6), false},
		{"with a trailer", append(advertisement(mac2, a6), 0, 0), true},
		{"short", advertisement(mac2, a6)[:ip6Len+ndLen-1], false},
		{"cut", advertisement(mac2, a6)[:ip6Len+ndLen+1], false},
		{"IPv4", change(0, 0x45), false},
		{"not ICMPv6", change(6, 17), false},
		{"routed", change(7, 254), false},
		{"odd length", change(5, 31), false},
		{"wrong checksum", change(ip6Len+2, 0), false},
		{"another type", change(ip6Len, 128), false},
	} {
		got := ndClaims(tc.packet, mac2, a6)
		if (got != nil) != tc.claims || got != nil && !bytes.Equal(got, mac2) {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestGroups(t *testing.T) {
	if g := group(a6); g != netip.MustParseAddr("ff02::1:ff12:3456") {
		t.Error(g)
	}
	if m := net.HardwareAddr(multicast(group(a6))).String(); m != "33:33:ff:12:34:56" {
		t.Error(m)
	}
	for p, want := range map[string]string{"10.0.0.9/24": "10.0.0.255", "10.0.0.9/30": "10.0.0.11", "10.1.2.3/8": "10.255.255.255"} {
		if got := net.IP(lastOf(netip.MustParsePrefix(p))).String(); got != want {
			t.Errorf("%s: %s", p, got)
		}
	}
}

// Anybody on the link can send anything.
func FuzzClaims(f *testing.F) {
	f.Add(arp(arpReply, mac2, a4, b4))
	f.Add(arp(arpAsk, mac2, netip.IPv4Unspecified(), a4))
	f.Add(advertisement(mac2, a6))
	f.Add(solicitation(a6))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if who := arpClaims(b, a4); who != nil && len(who) != macLen {
			t.Error(who)
		}
		if who := ndClaims(b, mac2, a6); who != nil && !bytes.Contains(b, a6.AsSlice()) {
			t.Error(who)
		}
	})
}
