package sockdiag

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/failover/internal/nstest"
)

// Only what is established at the port is listed, by the addresses of its ends; and only that
// is destroyed. (permit.TestCut has what a client sees of it.)
func TestEstablishedAndDestroy(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	ctx := t.Context()
	for _, address := range []string{"127.0.0.1:2049", "[::1]:2049", "127.0.0.1:2050"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if all, err := Established(ctx, 2049); err != nil || len(all) > 0 {
		t.Fatalf("%v %v", all, err)
	}
	var want []Connection
	for _, address := range []string{"127.0.0.1:2049", "[::1]:2049", "127.0.0.1:2050"} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if address != "127.0.0.1:2050" {
			want = append(want, Connection{netip.MustParseAddrPort(address), netip.MustParseAddrPort(c.LocalAddr().String())})
		}
	}
	all, err := Established(ctx, 2049)
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%v %v, and not %v", all, err, want)
	}
	if err := Destroy(ctx); err != nil {
		t.Error(err)
	}
	if err := Destroy(ctx, 2049, 1); err != nil {
		t.Fatal(err)
	}
	if all, err := Established(ctx, 2049); err != nil || len(all) > 0 {
		t.Errorf("%v %v", all, err)
	}
	if all, err := Established(ctx, 2050); err != nil || len(all) != 1 {
		t.Errorf("%v %v", all, err)
	}
	over, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	if _, err := Established(over, 2049); err == nil {
		t.Error("a deadline that is over")
	}
}

// The kernel gives ports and addresses in network order, IPv4 in the first four bytes.
func TestEnds(t *testing.T) {
	s := socket{family: unix.AF_INET}
	copy(s.id[:], []byte{8, 1, 3, 32, 10, 77, 0, 100})
	copy(s.id[20:], []byte{10, 77, 0, 3})
	if s.end(0) != netip.MustParseAddrPort("10.77.0.100:2049") || s.end(1) != netip.MustParseAddrPort("10.77.0.3:800") || s.port() != 2049 {
		t.Error(s.end(0), s.end(1))
	}
	// A socket for both families has IPv4 in a mapped address.
	mapped := netip.MustParseAddr("::ffff:10.77.0.3").As16()
	s.family = unix.AF_INET6
	copy(s.id[20:], mapped[:])
	if s.end(1) != netip.MustParseAddrPort("10.77.0.3:800") {
		t.Error(s.end(1))
	}
}
