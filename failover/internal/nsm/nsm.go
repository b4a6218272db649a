// Package nsm tells an NFS version 3 client that its server has restarted, so that it reclaims its
// locks: SM_NOTIFY of the Network Status Monitor (X/Open XNFS, chapter 11), over UDP.
//
// nfs-utils' sm-notify does the same, and asks the resolver for the name of the address that it
// is to speak for: where DNS is out of reach at that moment, it tells nobody.
package nsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rpcbindPort = 111

	// Programs, versions and procedures: RFC 1833 (rpcbind) and XNFS.
	rpcbindProgram, rpcbindVersion, getaddr = 100000, 4, 3
	statProgram, statVersion, smNotify      = 100024, 1, 6

	// try is how long an answer may take before the call is sent again.
	try   = 700 * time.Millisecond
	tries = 3

	maxReply = 512
)

var (
	// ErrNoAnswer means that nothing came back.
	ErrNoAnswer = errors.New("no answer")

	// ErrNoStatd means that the client has nobody to be told.
	ErrNoStatd = errors.New("no rpc.statd")

	// ErrReply is an answer that is none to the call, or a refusal.
	ErrReply = errors.New("a bad reply")
)

// Notify tells the client at to that the server known to it as name, from which this comes,
// has restarted. state is odd, another one for each restart; the same one again is ignored by
// a client that had it. It takes some seconds at most.
func Notify(ctx context.Context, from, to netip.Addr, name string, state int32) error {
	return notify(ctx, from, netip.AddrPortFrom(to, rpcbindPort), name, state)
}

func notify(ctx context.Context, from netip.Addr, rpcbind netip.AddrPort, name string, state int32) error {
	conn, err := dial(from, rpcbind)
	if err != nil {
		return err
	}
	netid := "udp"
	if rpcbind.Addr().Is6() {
		netid = "udp6"
	}
	args := appendString(appendString(appendString(appendUint(appendUint(nil, statProgram), statVersion), netid), ""), "")
	b, err := call(ctx, conn, rpcbindProgram, rpcbindVersion, getaddr, args)
	_ = conn.Close()
	if err != nil {
		return fmt.Errorf("ask %s for rpc.statd: %w", rpcbind, err)
	}
	uaddr, err := readString(b)
	if err != nil {
		return err
	}
	port, err := portOf(uaddr)
	if err != nil {
		return fmt.Errorf("%s: %w", rpcbind.Addr(), err)
	}
	at := netip.AddrPortFrom(rpcbind.Addr(), port)
	if conn, err = dial(from, at); err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := call(ctx, conn, statProgram, statVersion, smNotify, appendUint(appendString(nil, name), uint32(state))); err != nil {
		return fmt.Errorf("SM_NOTIFY to %s: %w", at, err)
	}
	return nil
}

// dial binds to a port that root alone can have, where it can: a client may look at that.
func dial(from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	const lowest, ports, attempts = 600, 424, 20
	var last error
	for range attempts {
		local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, uint16(lowest+rand.IntN(ports))))
		conn, err := net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to))
		if err == nil {
			return conn, nil
		}
		if last = err; errors.Is(err, unix.EACCES) {
			local.Port = 0
			return net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to))
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, last
}

// call is one of ONC RPC (RFC 5531) without credentials. It returns the results.
func call(ctx context.Context, conn net.Conn, program, version, procedure uint32, args []byte) ([]byte, error) {
	const ask, rpcVersion, noAuth = 0, 2, 0
	xid := rand.Uint32()
	var b []byte
	for _, v := range []uint32{xid, ask, rpcVersion, program, version, procedure, noAuth, 0, noAuth, 0} {
		b = appendUint(b, v)
	}
	b = append(b, args...)
	buf := make([]byte, maxReply)
	var last error
	for range tries {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if _, err := conn.Write(b); err != nil {
			last = err // a port that nobody listens at says so at the next call
			continue
		}
		if err := conn.SetReadDeadline(time.Now().Add(try)); err != nil {
			return nil, err
		}
		n, err := conn.Read(buf)
		if err != nil {
			last = err
			continue
		}
		return result(buf[:n], xid)
	}
	return nil, fmt.Errorf("%w: %w", ErrNoAnswer, last)
}

// result takes the results out of a reply that was accepted and executed.
func result(b []byte, xid uint32) ([]byte, error) {
	const reply, accepted, success = 1, 0, 0
	const head = 6 * 4
	if len(b) < head || binary.BigEndian.Uint32(b) != xid || binary.BigEndian.Uint32(b[4:]) != reply {
		return nil, fmt.Errorf("%w of %d bytes", ErrReply, len(b))
	}
	if s := binary.BigEndian.Uint32(b[8:]); s != accepted {
		return nil, fmt.Errorf("%w: denied (%d)", ErrReply, s)
	}
	skip := binary.BigEndian.Uint32(b[16:]) // of the verifier
	if skip > 400 || skip%4 != 0 || int(skip)+head > len(b) {
		return nil, fmt.Errorf("%w: a verifier of %d bytes", ErrReply, skip)
	}
	b = b[20+skip:]
	if s := binary.BigEndian.Uint32(b); s != success {
		return nil, fmt.Errorf("%w: not executed (%d)", ErrReply, s)
	}
	return b[4:], nil
}

// portOf an address such as 10.0.0.7.127.253, or ::1.127.253: the last two numbers.
func portOf(uaddr string) (uint16, error) {
	f := strings.Split(uaddr, ".")
	if uaddr == "" {
		return 0, ErrNoStatd
	}
	if len(f) < 3 {
		return 0, fmt.Errorf("%w: the address %q", ErrReply, uaddr)
	}
	hi, err1 := strconv.ParseUint(f[len(f)-2], 10, 8)
	lo, err2 := strconv.ParseUint(f[len(f)-1], 10, 8)
	port := uint16(hi<<8 | lo)
	if err := errors.Join(err1, err2); err != nil || port == 0 {
		return 0, fmt.Errorf("%w: the address %q", ErrReply, uaddr)
	}
	return port, nil
}

func appendUint(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }

// appendString is XDR's (RFC 4506): the length, and bytes up to a multiple of four.
func appendString(b []byte, s string) []byte {
	b = append(appendUint(b, uint32(len(s))), s...)
	return append(b, bytes.Repeat([]byte{0}, -len(s)&3)...)
}

func readString(b []byte) (string, error) {
	if len(b) < 4 {
		return "", fmt.Errorf("%w: no string", ErrReply)
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return "", fmt.Errorf("%w: a string of %d bytes", ErrReply, n)
	}
	return string(b[:n]), nil
}
