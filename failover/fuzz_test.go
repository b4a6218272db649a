package failover

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"tandem/failover/record"
)

func FuzzDecodeMsg(f *testing.F) {
	for _, m := range []Msg{
		{Kind: LeaseRequest, N: 7, Epoch: 3, L: 3 * second}, {Kind: LeaseGrant, N: 7, Epoch: 3, G: Promise(3 * second)},
		{Kind: MoveRequest, N: 1, Epoch: 3}, {Kind: MoveRefused, N: 1, Text: "b is not in the in-sync set yet"},
		{Kind: Go, N: 1, Epoch: 3}, {Kind: HandOver, N: 1, Epoch: 3}, {Kind: Goodbye, G: 10 * second}, {Kind: News, N: 9, Epoch: 3},
	} {
		f.Add(AppendMsg(nil, m))
	}
	for _, b := range badMsgs() {
		f.Add(b)
	}
	f.Add(AppendMsg(nil, Msg{Kind: MoveRefused, N: 1, Text: strings.Repeat("ä", 400)}))
	f.Add(AppendMsg(nil, Msg{Kind: MoveRefused, N: 1, Text: "\xff"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMsg(b)
		if err != nil {
			if !errors.Is(err, ErrMsg) {
				t.Fatal(err)
			}
			return
		}
		if got := AppendMsg(nil, m); !bytes.Equal(got, b) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", b, m, got)
		}
	})
}

// badMsgs are what no core writes.
func badMsgs() [][]byte {
	good := AppendMsg(nil, Msg{Kind: LeaseRequest, N: 7, Epoch: 3, L: second})
	return [][]byte{
		nil, good[:len(good)-1], append(bytes.Clone(good), 0), append([]byte{99}, good[1:]...), append([]byte{0}, good[1:]...),
		AppendMsg(nil, Msg{Kind: LeaseRequest, N: 7, L: maxSpan + 1}), AppendMsg(nil, Msg{Kind: LeaseRequest, N: 7, L: -1}),
		AppendMsg(nil, Msg{Kind: Go, Text: "x"}), AppendMsg(nil, Msg{Kind: LeaseGrant, N: 0, G: 1}),
		append(AppendMsg(nil, Msg{Kind: MoveRefused})[:33], 0, 1, 0xff),
	}
}

func TestMsgRoundTrip(t *testing.T) {
	long := bytes.Repeat([]byte("ä"), 400)
	b := AppendMsg([]byte{1}, Msg{Kind: MoveRefused, N: 5, Epoch: 9, Text: string(long)})
	m, err := DecodeMsg(b[1:])
	if err != nil || m.N != 5 || m.Epoch != 9 || len(m.Text) != maxMsgText {
		t.Fatalf("%+v, %v", m, err)
	}
	for i, bad := range badMsgs() {
		if m, err := DecodeMsg(bad); !errors.Is(err, ErrMsg) {
			t.Errorf("%d: %x was accepted as %+v", i, bad, m)
		}
	}
}

// monkey feeds a core whatever bytes say: peers and a witness that lie, a shell
// that answers in any order, or late, but never twice.
type monkey struct {
	t      *testing.T
	c      *Core
	now    int64
	in     []byte
	casTag uint64 // outstanding
	read   uint64
	persis uint64
	writes HardState
	prep   Change
	prepP  int
	ready  map[Change]bool
	apply  bool
	quiet  bool
	// shadow of the leases
	sent  map[[3]uint64]int64 // peer, session, n → when
	sess  [MaxPeers]uint64
	lease [MaxPeers]int64
	until int64
	hard  HardState
	last  Effect // the CAS outstanding
	reg   *Record
	ver   int
}

func (m *monkey) b() byte {
	if len(m.in) == 0 {
		return 0
	}
	b := m.in[0]
	m.in = m.in[1:]
	return b
}

func (m *monkey) fail(text string, e Effect) {
	m.t.Fatalf("%s: %s", text, formatEffect(m.c.cfg.Peers, e))
}

func (m *monkey) drain() {
	c := m.c
	for _, e := range c.Effects() {
		switch e.Kind {
		case Read:
			m.read = e.Tag
		case CAS:
			if m.casTag != 0 {
				m.fail("two CASes at once", e)
			}
			if e.Change <= Grow && !m.ready[e.Change] {
				m.fail("not prepared", e)
			}
			if e.Record.Serial == 0 || e.Record.Nonce == 0 || len(e.Record.InSync) == 0 {
				m.fail("a record that makes no sense", e)
			}
			m.casTag, m.last = e.Tag, e
		case Persist:
			if m.persis != 0 || m.apply {
				m.fail("two writes of the hard state at once", e)
			}
			m.persis, m.writes = e.Tag, e.Hard
		case Send:
			if e.Msg.Kind == LeaseGrant && (c.Role() != Secondary || m.hard.LongestG < e.Msg.G || m.hard.Epoch != e.Msg.Epoch) {
				m.fail("a grant that must not be", e)
			}
			if e.Msg.Kind == LeaseRequest {
				m.sent[[3]uint64{uint64(e.Peer), m.sess[e.Peer], e.Msg.N}] = m.now
			}
			if _, err := DecodeMsg(AppendMsg(nil, e.Msg)); err != nil {
				m.fail(err.Error(), e)
			}
		case Prepare:
			m.prep, m.prepP = e.Change, e.Peer
			m.ready = map[Change]bool{}
		case Apply:
			if e.Change == Promote || e.Change == Create {
				m.apply, m.writes = true, e.Hard
				if m.persis != 0 {
					m.fail("Apply with a Persist under way", e)
				}
				if e.Hard.Served != e.Epoch || e.Hard.Marked {
					m.fail("the note is wrong", e)
				}
			}
		case Abort:
			m.prep = NoChange
		case Serve:
			m.until = e.Until
		case Quiesce:
			m.quiet = true
		case StepDown:
			if m.until != 0 {
				m.fail("the gate is open", e)
			}
			m.quiet = false
			if m.prep == Shrink || m.prep == Grow {
				m.prep = NoChange
			}
			m.lease = [MaxPeers]int64{}
		case Follow:
			if m.hard.Epoch != e.Epoch {
				m.fail("an epoch that is not durable", e)
			}
		}
	}
	leading := c.Role() == Primary || c.Role() == Moving
	if !leading && m.until != 0 {
		m.t.Fatalf("%v serves", c.Role())
	}
	if leading {
		for p := range c.cfg.Peers {
			if c.Counted()&(1<<p) != 0 && m.until > m.lease[p] {
				m.t.Fatalf("serves until %d, peer %d allows %d", m.until, p, m.lease[p])
			}
		}
		for p, n := range c.cfg.Peers {
			if r, err := c.Record(); err == nil && r.Epoch == c.Epoch() && r.Has(n) && c.Counted()&(1<<p) == 0 {
				m.t.Fatalf("%s is in the record and not counted", n)
			}
		}
	}
	if h := c.hard; h.Epoch < m.hard.Epoch || h.Serial < m.hard.Serial || h.LongestG < m.hard.LongestG || h.Served > h.Epoch {
		m.t.Fatalf("hard state went back: %+v, durable %+v", h, m.hard)
	}
}

func (m *monkey) step() {
	c, x := m.c, m.b()
	p := int(m.b()) % len(c.cfg.Peers)
	y := m.b()
	switch x % 26 {
	case 0, 1, 2, 3:
		m.now += int64(y) * 4 * millisecond
		c.Tick(m.now, [MaxPeers]bool{y&1 != 0, y&2 != 0}, y&4 != 0)
		if c.Deadline() <= m.now {
			m.t.Fatalf("deadline %d at %d", c.Deadline(), m.now)
		}
	case 4:
		c.Hello(m.now, p, PeerInfo{Epoch: max(c.Epoch()+uint64(y>>6&y>>5&y>>4&1), 1) - uint64(y>>2&1), Serving: y&12 == 12, Marked: y&0x31 == 0x31, Usable: y&0x32 != 0x32, DiskID: 102})
	case 5:
		if c.peers[p].up && c.leading() {
			c.Established(m.now, p)
		}
	case 6:
		if y > 60 {
			return
		}
		m.sess[p]++
		c.LinkDown(m.now, p)
	case 7, 8:
		r := c.lastRequest(p)
		n := uint64(int64(r) - int64(y&3))
		if n == 0 {
			return
		}
		if at, ok := m.sent[[3]uint64{uint64(p), m.sess[p], n}]; ok && c.leading() && c.peers[p].established {
			m.lease[p] = max(m.lease[p], at+c.cfg.Lease)
		}
		c.Recv(m.now, p, Msg{Kind: LeaseGrant, N: n, Epoch: c.Epoch(), G: Promise(c.cfg.Lease)})
	case 9:
		c.Recv(m.now, p, Msg{Kind: LeaseRequest, N: uint64(y) + 1, Epoch: c.Epoch(), L: int64(y) * second / 8})
	case 10:
		k := MsgKind(3 + y%5)
		msg := Msg{Kind: k, N: uint64(y >> 4), Epoch: c.Epoch()}
		if k == Goodbye {
			msg.N, msg.G = 0, second
		}
		c.Recv(m.now, p, msg)
	case 11, 12, 13:
		tag := m.read
		if tag == 0 {
			return
		}
		m.read = 0
		switch {
		case y%16 == 0:
			c.ReadDone(m.now, tag, nil, "", errors.New("timeout"))
		case y == 1 || m.reg == nil:
			c.ReadDone(m.now, tag, nil, "", nil)
		default:
			r := m.reg.Clone()
			c.ReadDone(m.now, tag, &r, m.version(), nil)
		}
	case 14, 15:
		tag := m.casTag
		if tag == 0 {
			return
		}
		m.casTag = 0
		switch fits := m.last.Version == m.version(); {
		case fits && y&3 == 0: // it never got there
			c.CASDone(m.now, tag, Unknown, "")
		case fits:
			m.ver++
			m.reg = m.last.Record
			if y&3 == 1 {
				c.CASDone(m.now, tag, Unknown, "")
			} else {
				c.CASDone(m.now, tag, Won, m.version())
			}
		case y&3 == 0:
			c.CASDone(m.now, tag, Unknown, "")
		default:
			c.CASDone(m.now, tag, Conflict, "")
		}
	case 16:
		if m.persis != 0 {
			tag := m.persis
			m.persis, m.hard = 0, m.writes
			c.Persisted(m.now, tag)
		}
	case 17, 18:
		if m.prep != NoChange {
			ch := m.prep
			m.prep = NoChange
			m.ready[ch] = true
			var err error
			if y%8 == 0 {
				err = errors.New("EIO")
			}
			c.Prepared(m.now, ch, m.prepP, uint64(y%4), err)
		}
	case 19:
		if m.apply {
			m.apply, m.hard = false, m.writes
			c.Began(m.now)
		}
	case 20:
		c.CaughtUp(m.now, p)
	case 21:
		if m.quiet {
			m.quiet = false
			var err error
			if y&3 == 0 {
				err = errors.New("busy")
			}
			c.Quiesced(m.now, err)
		}
	case 22:
		gen := uint64(1)
		if m.reg != nil {
			gen = m.reg.Generation
		}
		c.Copy(m.now, y%8 != 0, gen, uint64(y>>3&3), y>>4 == 7)
	case 23:
		c.Promote(m.now, uint64(y)+1, y&1 != 0, y&2 != 0)
	case 24:
		switch y % 8 {
		case 0:
			c.Demote(m.now, 300)
		case 1:
			c.Pause(m.now, 301)
		case 2:
			if y&8 != 0 && c.valid(p) {
				c.Forget(m.now, 303, c.cfg.Peers[p])
			} else {
				c.Resume(m.now, 302)
			}
		case 3:
			c.Cancel(c.op.id)
		case 4:
			c.Shutdown(m.now, second)
		case 5:
			if m.b() < 16 {
				c.DiskFailed(m.now, "EIO")
			}
		case 7:
			m.meddle(m.b())
		case 6:
			c.Unmark(m.now)
		}
	case 25:
		if y < 20 {
			c.MustLeave(m.now, p, "")
		}
	}
	m.drain()
}

func (c *Core) lastRequest(p int) uint64 { return c.peers[p].lastN }

// meddle changes the register behind the core's back.
func (m *monkey) meddle(y byte) {
	if m.reg == nil {
		m.reg = &Record{Cluster: "m", ClusterID: 5, Serial: 1, Epoch: 1 + uint64(y&3), Primary: "a", InSync: []string{"a", "b"}, Generation: 1, Nonce: 3,
			Members: []record.Member{{Node: "a", DiskID: 101}, {Node: "b", DiskID: 102}}}
	} else {
		r := m.reg.Clone()
		r.Serial += uint64(y & 1)
		r.Nonce++
		switch y >> 1 & 15 {
		case 0:
			r.Epoch++
			r.Primary = "b"
		case 1:
			r.InSync = []string{"a", "b"}
		case 2:
			r.ClusterID++
		case 3:
			r.Primary = "b"
		case 4:
			r.Paused = &record.Paused{By: "b"}
		case 5:
			r.InSync = []string{"b"}
		default:
			return
		}
		m.reg = &r
	}
	m.ver++
}

func (m *monkey) version() string {
	if m.reg == nil {
		return ""
	}
	return strconv.Itoa(m.ver)
}

func newMonkey(t *testing.T, in []byte) *monkey {
	m := &monkey{t: t, in: in, now: 50 * second, ready: map[Change]bool{}, sent: map[[3]uint64]int64{}, ver: 1}
	if b := m.b(); b&1 != 0 {
		m.meddle(0)
		m.hard = HardState{ClusterID: 5, Epoch: 1, Served: uint64(b >> 1 & 1), LongestG: Promise(3 * second), Serial: 1, Marked: b>>4 == 3}
	}
	peers := []string{"b"}
	if m.b()&1 != 0 {
		peers = []string{"b", "c"}
	}
	n := uint64(100)
	m.c = New(Config{Self: "a", Cluster: "m", DiskID: 101, Peers: peers, Heartbeat: second / 2, Lease: 3 * second, Freeze: 9 * second, Auto: m.b()&1 != 0,
		Rand: func() uint64 { n++; return n }}, m.hard)
	m.c.Copy(m.now, true, 1, 2, false)
	b := m.b()
	m.c.Start(m.now, b&1 != 0, b&2 != 0)
	m.drain()
	return m
}

// FuzzCore: what comes first is the fuzzer's, what follows is drawn from seed. The
// fuzzer makes each input that shows something new as short as it can, and is
// not done with 600 bytes in a minute.
func FuzzCore(f *testing.F) {
	const head, tail = 64, 600
	draw := func(seed uint64, n int) []byte {
		rng := rand.New(rand.NewPCG(seed, 1))
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for i := range uint64(20) {
		f.Add(draw(i, head), i+100)
		f.Add(draw(i, 2), i+200) // the first bytes decide how the node starts
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		b = b[:min(len(b), 2*head)]
		m := newMonkey(t, append(bytes.Clone(b), draw(seed, tail-len(b))...))
		for len(m.in) > 0 {
			m.step()
		}
	})
}

func TestMonkey(t *testing.T) {
	roles := map[Role]int{}
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		b := make([]byte, 3000)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		m := newMonkey(t, b)
		for len(m.in) > 0 {
			m.step()
			roles[m.c.Role()]++
			if m.c.Counted() != 0 && m.until > m.now {
				roles[10]++
			}
		}
		if t.Failed() {
			t.Fatal("seed", seed)
		}
	}
	// The monkey must get everywhere, or it proves little.
	for _, r := range []Role{Secondary, Candidate, Primary, Moving, 10} {
		if roles[r] < 500 {
			t.Errorf("only %d steps as %v: %v", roles[r], r, roles)
		}
	}
}
