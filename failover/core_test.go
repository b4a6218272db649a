package failover

import (
	"strings"
	"testing"
)

// leader is a primary with one counted peer, by the shortest way.
func leader(t testing.TB) (*Core, int64) {
	n := uint64(1000)
	c := New(Config{Self: "a", Cluster: "nfs1", DiskID: 101, Peers: []string{"b"}, Heartbeat: second / 2, Lease: 3 * second, Freeze: 30 * second,
		Rand: func() uint64 { n++; return n }}, HardState{})
	now := 100 * second
	last := func(k EffectKind) (tag uint64) {
		for _, e := range c.Effects() {
			if e.Kind == k {
				tag = e.Tag
			}
		}
		if tag == 0 {
			t.Fatalf("no %v", k)
		}
		return tag
	}
	c.Copy(now, true, 10, 0, false)
	c.Start(now, true, false)
	c.ReadDone(now, last(Read), nil, "", nil)
	c.Promote(now, 1, false, false)
	c.ReadDone(now, last(Read), nil, "", nil)
	c.Prepared(now, Create, -1, 10, nil)
	c.CASDone(now, last(CAS), Won, "v1")
	c.Began(now)
	c.ReadDone(now, last(Read), c.rec, "v1", nil)
	c.Hello(now, 0, PeerInfo{Usable: true, DiskID: 102})
	c.Established(now, 0)
	c.Recv(now, 0, Msg{Kind: LeaseGrant, N: 1, Epoch: 1, G: Promise(3 * second)})
	c.CaughtUp(now, 0)
	c.Prepared(now, Grow, 0, 10, nil)
	c.CASDone(now, last(CAS), Won, "v2")
	c.Persisted(now, last(Persist))
	if c.Role() != Primary || c.Counted() != 1 {
		t.Fatalf("%v, %b", c.Role(), c.Counted())
	}
	c.Effects()
	return c, now
}

// A heartbeat is on the way of every primary twice a second, and Tick may come
// with every request: neither may allocate.
func TestHeartbeatsDoNotAllocate(t *testing.T) {
	p, now := leader(t)
	s := New(Config{Self: "b", Peers: []string{"a"}, Heartbeat: second / 2, Lease: 3 * second, Freeze: 30 * second, Rand: func() uint64 { return 5 }},
		HardState{ClusterID: 1, Epoch: 1, LongestG: Promise(3 * second), Serial: 1})
	s.Start(now, true, false)
	s.Hello(now, 0, PeerInfo{Epoch: 1, Serving: true, Usable: true})
	s.Effects()
	beat := func() {
		now += second / 2
		p.Tick(now, [MaxPeers]bool{}, false)
		for _, e := range p.Effects() {
			switch e.Kind {
			case Send:
				s.Recv(now, 0, e.Msg)
			case Read:
				p.ReadDone(now, e.Tag, p.rec, p.version, nil)
			}
		}
		for _, e := range s.Effects() {
			if e.Kind == Send {
				p.Recv(now, 0, e.Msg)
			}
		}
		if p.LeaseUntil() != now+3*second {
			t.Fatal("no lease")
		}
		p.Effects()
	}
	beat()
	beat()
	if n := testing.AllocsPerRun(1000, beat); n != 0 {
		t.Errorf("%v allocations in a heartbeat", n)
	}
}

func BenchmarkTick(b *testing.B) {
	c, now := leader(b)
	b.ReportAllocs()
	for b.Loop() {
		now += 1000
		if now >= c.LeaseUntil() {
			c.peers[0].lease = now + second
		}
		c.Tick(now, [MaxPeers]bool{true}, true)
		c.Effects()
	}
}

// Every edge that is not in the diagrams of state.go panics.
func TestTransitions(t *testing.T) {
	allowed := func(f func()) (ok bool) {
		defer func() { ok = recover() == nil }()
		f()
		return
	}
	var roles, cases, stages []string
	for a := Secondary; a <= Moving; a++ {
		for b := Secondary; b <= Moving; b++ {
			if allowed(func() { a.to(b) }) {
				roles = append(roles, a.String()+">"+b.String())
			}
		}
	}
	for a := casIdle; a <= casResend; a++ {
		for b := casIdle; b <= casResend; b++ {
			if allowed(func() { a.to(b) }) {
				cases = append(cases, a.String()+">"+b.String())
			}
		}
	}
	for a := stageNone; a <= stageQuiesce; a++ {
		for b := stageNone + 1; b <= stageQuiesce; b++ {
			if allowed(func() { a.to(b) }) {
				stages = append(stages, a.String()+">"+b.String())
			}
		}
	}
	for _, x := range []struct {
		got  []string
		want string
	}{
		{roles, "Secondary>Candidate Candidate>Secondary Candidate>Primary Primary>Secondary Primary>Moving Moving>Secondary Moving>Primary"},
		{cases, "idle>preparing idle>sent preparing>idle preparing>sent sent>idle sent>unknown unknown>idle unknown>resend resend>idle resend>sent"},
		{stages, "none>read none>handOver read>wait read>move read>candidate read>record read>quiesce wait>read wait>move move>read candidate>read candidate>hold hold>begin record>read record>quiesce"},
	} {
		if got := strings.Join(x.got, " "); got != x.want {
			t.Errorf("got  %s\nwant %s", got, x.want)
		}
	}
}

// GrantWhileCandidate needs a session that outlives the preparation, which the
// simulation's volume never has: told by the script instead.
func TestGrantWhileCandidate(t *testing.T) {
	script := `> config self=b peers=a
> hard epoch=3 longest=3.4s serial=7
> copy gen=10
> start same
> promote 1
> read epoch=3 primary=a set=a,b gen=10 serial=7 nonce=9
> at 104
> read epoch=3 primary=a set=a,b gen=10 serial=7 nonce=9
> read epoch=3 primary=a set=a,b gen=10 serial=7 nonce=9
> recv a LeaseRequest N=1 epoch=3 L=3s
> state
`
	if got := play(t, script, NoBug); strings.Contains(got, "LeaseGrant N=1 epoch=3 G") || !strings.Contains(got, "Candidate") {
		t.Errorf("a candidate grants:\n%s", got)
	}
	if got := play(t, script, GrantWhileCandidate); !strings.Contains(got, "Send a LeaseGrant") {
		t.Errorf("the mistake is not told:\n%s", got)
	}
}
