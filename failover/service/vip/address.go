package vip

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// changeTime bounds one exchange with the kernel, which takes microseconds.
const changeTime = 2 * time.Second

// addAddress adds the address. That it is there already is no error. The kernel's own
// duplicate detection for IPv6 is off: it would take another one to two seconds, in
// which the address cannot be used, to find out what probe did.
func addAddress(link int, address netip.Prefix) error {
	err := changeAddress(unix.RTM_NEWADDR, netlink.Create|netlink.Excl, link, address)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// removeAddress removes it. That it is not there is no error.
func removeAddress(link int, address netip.Prefix) error {
	err := changeAddress(unix.RTM_DELADDR, 0, link, address)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// changeAddress sends a struct ifaddrmsg of linux/if_addr.h with its attributes:
//
//	 0        1        2        3        4              8
//	┌────────┬────────┬────────┬────────┬──────────────┬────────────────────────────────
//	│ family │ prefix │ flags  │ scope  │ interface    │ IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST
//	│        │ length │        │ 0      │ (u32, ours)  │
//	└────────┴────────┴────────┴────────┴──────────────┴────────────────────────────────
func changeAddress(kind netlink.HeaderType, flags netlink.HeaderFlags, link int, address netip.Prefix) error {
	addr := address.Addr()
	attributes := netlink.NewAttributeEncoder()
	attributes.Bytes(unix.IFA_LOCAL, addr.AsSlice())
	attributes.Bytes(unix.IFA_ADDRESS, addr.AsSlice())
	msg := make([]byte, unix.SizeofIfAddrmsg)
	msg[1] = byte(address.Bits())
	binary.NativeEndian.PutUint32(msg[4:], uint32(link))
	if addr.Is4() {
		msg[0] = unix.AF_INET
		// As ip(8) does with "brd +": RFC 3021 leaves a /31 without.
		if address.Bits() < 31 {
			attributes.Bytes(unix.IFA_BROADCAST, lastOf(address))
		}
	} else {
		msg[0] = unix.AF_INET6
		msg[2] = unix.IFA_F_NODAD
	}
	encoded, err := attributes.Encode()
	if err != nil {
		return err
	}
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(changeTime)); err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   slices.Concat(msg, encoded),
	})
	return err
}

// lastOf is the last address of an IPv4 network.
func lastOf(p netip.Prefix) []byte {
	a := p.Addr().As4()
	host := ^uint32(0) >> p.Bits()
	return binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a[:])|host)
}
