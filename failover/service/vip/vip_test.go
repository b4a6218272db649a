package vip

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/failover/internal/nstest"
	"tandem/failover/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var prefixes = []netip.Prefix{netip.MustParsePrefix("10.9.0.9/24"), netip.MustParsePrefix("2001:db8::9/64")}

// network is this namespace and a peer, with an own address each in both families.
func network(t *testing.T) *nstest.Peer {
	t.Helper()
	peer := nstest.NewPeer(t)
	nstest.IP(t, "addr add 10.9.0.1/24 dev eth0")
	nstest.IP(t, "addr add 2001:db8::1/64 dev eth0 nodad")
	peer.Run("ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")
	peer.Run("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
	return peer
}

func has(t *testing.T, p netip.Prefix) bool {
	t.Helper()
	return strings.Contains(nstest.IP(t, "addr show dev eth0"), " "+p.String()+" ")
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listener hears on the peer who claims address, in the background.
func listen(t *testing.T, peer *nstest.Peer, address netip.Addr) (claims func() []net.HardwareAddr) {
	t.Helper()
	var s *socket
	peer.Do(func() {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			s, err = openSocket(link, address)
		}
		if err != nil {
			t.Error(err)
		}
	})
	if s == nil {
		t.FailNow()
	}
	t.Cleanup(s.close)
	return func() (all []net.HardwareAddr) {
		for quiet := 0; quiet < 5; {
			who, err := s.hear()
			ok(t, err)
			if who == nil {
				quiet++
				continue
			}
			all = append(all, who)
		}
		return all
	}
}

func TestAddressComesAndGoes(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	peer := network(t)
	us, err := net.InterfaceByName("eth0")
	ok(t, err)
	for _, p := range prefixes {
		v := New(p, "eth0", nil)
		ctx, term := t.Context(), service.Term{}
		if err := v.Check(ctx, term); !errors.Is(err, ErrLost) {
			t.Errorf("%v: Check before Start: %v", p, err)
		}
		ok(t, v.Stop(ctx, term)) // nothing to take away
		claims := listen(t, peer, p.Addr())
		began := time.Now()
		ok(t, v.Start(ctx, term))
		t.Logf("%v: started in %v", p, time.Since(began))
		if !has(t, p) {
			t.Fatalf("%v: not there\n%s", p, nstest.IP(t, "addr"))
		}
		// It works at once, and from afar.
		peer.Run("ip", "neigh", "flush", "dev", "eth0")
		l, err := net.Listen("tcp", netip.AddrPortFrom(p.Addr(), 80).String())
		ok(t, err)
		peer.Do(func() {
			c, err := net.DialTimeout("tcp", l.Addr().String(), time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		})
		l.Close()
		// The peer heard probes (each claims), the burst, and nothing else.
		told := claims()
		per := map[bool]int{true: 2, false: 1}[p.Addr().Is4()] // an announcement is two ARP packets
		if len(told) < probes+burst*per {
			t.Errorf("%v: heard %d packets", p, len(told))
		}
		for _, who := range told {
			if !bytes.Equal(who, us.HardwareAddr) {
				t.Errorf("%v: heard %v", p, who)
			}
		}
		ok(t, v.Check(ctx, term))
		// Again: it is left alone, announced, and not looked for.
		claims()
		ok(t, v.Start(ctx, term))
		if n := len(claims()); n != burst*per {
			t.Errorf("%v: heard %d packets of a second Start", p, n)
		}
		for range 2 {
			ok(t, v.Stop(ctx, term))
			if has(t, p) {
				t.Errorf("%v: still there", p)
			}
		}
		if err := v.Check(ctx, term); !errors.Is(err, ErrLost) {
			t.Errorf("%v: Check after Stop: %v", p, err)
		}
	}
	if got := nstest.IP(t, "addr show dev eth0"); !strings.Contains(got, "10.9.0.1/24") || !strings.Contains(got, "2001:db8::1/64") {
		t.Errorf("the node's own addresses are gone:\n%s", got)
	}
}

// The neighbour's cache still has the old primary; the announcement corrects it.
func TestTheNeighbourLearns(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	peer := network(t)
	us, err := net.InterfaceByName("eth0")
	ok(t, err)
	for _, p := range prefixes {
		peer.Run("ip", "neigh", "replace", p.Addr().String(), "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", "eth0")
		ok(t, New(p, "eth0", nil).Start(t.Context(), service.Term{}))
		learned := false
		for range 100 {
			if learned = strings.Contains(peer.Run("ip", "neigh", "show", p.Addr().String()), us.HardwareAddr.String()); learned {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !learned {
			t.Errorf("%v: %s", p, peer.Run("ip", "neigh"))
		}
	}
}

// The announcements go on: soon with each check, later only now and then.
func TestAnnouncementsGoOn(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	peer := network(t)
	for _, p := range prefixes {
		v := New(p, "eth0", nil)
		ok(t, v.Start(t.Context(), service.Term{}))
		claims := listen(t, peer, p.Addr())
		per := map[bool]int{true: 2, false: 1}[p.Addr().Is4()]
		for i := range early + 3 {
			ok(t, v.Check(t.Context(), service.Term{}))
			want := per
			if i >= early {
				want = 0
			}
			if n := len(claims()); n != want {
				t.Errorf("%v: heard %d after check %d, want %d", p, n, i, want)
			}
		}
		v.lastTold = time.Now().Add(-announceEvery)
		ok(t, v.Check(t.Context(), service.Term{}))
		if n := len(claims()); n != per {
			t.Errorf("%v: heard %d when it was due again", p, n)
		}
	}
}

func TestDuplicate(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	peer := network(t)
	theirs := ""
	peer.Do(func() {
		if link, err := net.InterfaceByName("eth0"); err == nil {
			theirs = link.HardwareAddr.String()
		}
	})
	for _, p := range prefixes {
		v := New(p, "eth0", nil)
		peer.Run("ip", "addr", "add", p.String(), "dev", "eth0", "nodad")
		err := v.Start(t.Context(), service.Term{})
		if !errors.Is(err, ErrDuplicate) || errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), " is at "+theirs) {
			t.Fatalf("%v: %v", p, err)
		}
		if has(t, p) {
			t.Errorf("%v was added", p)
		}
		// The other one lets go.
		peer.Run("ip", "addr", "del", p.String(), "dev", "eth0")
		ok(t, v.Start(t.Context(), service.Term{}))
	}
}

// Where the network gives the address to this host nobody is asked, whoever answers for it;
// and what somebody else has added here is there, and stays.
func TestAssigned(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	peer := network(t)
	ctx, term := t.Context(), service.Term{}
	for _, p := range prefixes {
		v := NewAssigned(p, "eth0", nil)
		peer.Run("ip", "addr", "add", p.String(), "dev", "eth0", "nodad")
		ok(t, v.Start(ctx, term))
		ok(t, v.Check(ctx, term))
		ok(t, v.Stop(ctx, term))
		if has(t, p) {
			t.Errorf("%v: still there", p)
		}
		other := netip.PrefixFrom(p.Addr(), p.Bits()-4)
		nstest.IP(t, "addr add "+other.String()+" dev eth0 nodad")
		ok(t, v.Start(ctx, term))
		ok(t, v.Check(ctx, term))
		ok(t, v.Stop(ctx, term))
		if !has(t, other) || has(t, p) {
			t.Errorf("%v: %s", other, nstest.IP(t, "addr show dev eth0"))
		}
		// On another interface it is in the way.
		nstest.IP(t, "addr del "+other.String()+" dev eth0")
		nstest.IP(t, "addr add "+other.String()+" dev lo nodad")
		if err := v.Start(ctx, term); !errors.Is(err, ErrElsewhere) {
			t.Errorf("%v", err)
		}
	}
}

// Two nodes that look at the same moment must not both find nobody.
func TestTwoProbeAtOnce(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	peer := network(t)
	for _, p := range prefixes {
		done := make(chan struct{})
		go func() {
			defer close(done)
			peer.Do(func() {
				link, err := net.InterfaceByName("eth0")
				if err != nil {
					t.Error(err)
					return
				}
				s, err := openSocket(link, p.Addr())
				if err != nil {
					t.Error(err)
					return
				}
				defer s.close()
				for range 10 {
					if err := s.probe(); err != nil {
						t.Error(err)
					}
					time.Sleep(20 * time.Millisecond)
				}
			})
		}()
		if err := New(p, "eth0", nil).Start(t.Context(), service.Term{}); !errors.Is(err, ErrDuplicate) {
			t.Errorf("%v: %v", p, err)
		}
		<-done
	}
}

func TestTroubleWithTheInterface(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	network(t)
	ctx, term := t.Context(), service.Term{}
	p := prefixes[0]
	for _, tc := range []struct {
		prepare  string
		iface    string
		want     string
		hopeless bool
	}{
		{"link set eth0 up", "eth1", "there is no such interface: eth1; there are lo, eth0", true},
		{"link set eth0 down", "eth0", "add 10.9.0.9/24: eth0 is down: ip link set eth0 up", false},
		{"addr add 10.9.0.9/32 dev lo", "eth0", "this node has the address already: 10.9.0.9/32 on lo: remove it there", true},
		{"addr add 10.9.0.9/24 dev lo", "eth0", "this node has the address already: ", true},
	} {
		nstest.IP(t, tc.prepare)
		v := New(p, tc.iface, nil)
		err := v.Start(ctx, term)
		if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, service.ErrHopeless) != tc.hopeless {
			t.Errorf("%s: %v", tc.prepare, err)
		}
		if err := v.Check(ctx, term); err == nil {
			t.Errorf("%s: Check finds it", tc.prepare)
		}
		// What cannot be there is stopped, and what is another's stays.
		ok(t, v.Stop(ctx, term))
		if strings.HasPrefix(tc.prepare, "addr") {
			if !strings.Contains(nstest.IP(t, "addr show dev lo"), "10.9.0.9/") {
				t.Errorf("%s: Stop took it", tc.prepare)
			}
			nstest.IP(t, strings.Replace(tc.prepare, "add ", "del ", 1))
		}
		nstest.IP(t, "link set eth0 up")
	}
	// It goes down under a held address.
	v := New(p, "eth0", nil)
	ok(t, v.Start(ctx, term))
	nstest.IP(t, "link set eth0 down")
	if err := v.Check(ctx, term); !errors.Is(err, ErrLost) {
		t.Errorf("got %v", err)
	}
	ok(t, v.Stop(ctx, term))
}

// There is nobody to ask on loopback.
func TestLoopback(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	ctx, term := t.Context(), service.Term{}
	link, err := net.InterfaceByName("lo")
	ok(t, err)
	if resolves(link) {
		t.Error("lo would be asked")
	}
	for _, p := range []string{"10.1.0.9/32", "10.1.0.10/31", "2001:db8::9/128"} {
		v := New(netip.MustParsePrefix(p), "lo", nil)
		ok(t, v.Start(ctx, term))
		ok(t, v.Check(ctx, term))
		ok(t, v.Stop(ctx, term))
	}
}

func TestCancelledWhileItLooks(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	network(t)
	cause := errors.New("stepped down")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(probeEvery/2, func() { cancel(cause) })
	if err := New(prefixes[0], "eth0", nil).Start(ctx, service.Term{}); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	if has(t, prefixes[0]) {
		t.Error("it was added")
	}
}

// The whole of it: a Runner notices that somebody took the address away.
func TestRunnerBringsItBack(t *testing.T) {
	if !nstest.Inside(t) {
		return
	}
	network(t)
	r, err := service.New(service.Config{CheckEvery: 50 * time.Millisecond,
		Items: []service.Item{{Name: "vip", Step: New(prefixes[0], "eth0", nil)}}})
	ok(t, err)
	ok(t, r.Start(t.Context(), 1))
	t.Cleanup(r.Leave)
	nstest.IP(t, "addr del "+prefixes[0].String()+" dev eth0")
	for deadline := time.Now().Add(5 * time.Second); !has(t, prefixes[0]); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come back")
		}
	}
	ok(t, r.Stop(t.Context()))
	if has(t, prefixes[0]) {
		t.Error("still there")
	}
}
