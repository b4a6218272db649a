package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem/agent/config"
	"tandem/agent/node"
	"tandem/failover"
	"tandem/failover/permit"
	"tandem/failover/record"
	"tandem/failover/service"
)

// dog is a fence that says what is done with it.
type dog struct {
	mu    sync.Mutex
	armed bool
	fed   int
}

func (d *dog) Arm(context.Context) error { d.set(true); return nil }
func (d *dog) Disarm() error             { d.set(false); return nil }
func (d *dog) Fire(string) error         { return nil }

func (d *dog) Feed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fed++
	return nil
}

func (d *dog) set(armed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = armed
}

func (d *dog) state() (armed bool, fed int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.armed, d.fed
}

// slowStop is a step that stops when it is told.
type slowStop struct {
	stopping chan struct{} // has a token when it has begun
	stopped  chan struct{} // is to have one
}

func (s *slowStop) Start(context.Context, service.Term) error { return nil }
func (s *slowStop) Check(context.Context, service.Term) error { return nil }

func (s *slowStop) Stop(ctx context.Context, _ service.Term) error {
	s.stopping <- struct{}{}
	select {
	case <-s.stopped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newTestStand is a stand of one step on an agent whose node has the record of term 3,
// its own.
func newTestStand(t *testing.T) (*stand, *dog, *slowStop) {
	t.Helper()
	step := &slowStop{make(chan struct{}, 1), make(chan struct{}, 1)}
	d := &dog{}
	a := &Agent{log: slog.New(slog.DiscardHandler), cfg: &config.Config{Service: []config.Step{{Name: "step"}}}}
	a.node = &node.Node{Vote: failover.New(failover.Config{
		Self: "a", DiskID: 1, Heartbeat: 1e8, Lease: 1e9, Freeze: 1e9, Auto: true, Rand: func() uint64 { return 5 },
	}, failover.HardState{ClusterID: 1, Epoch: 3, Served: 3, Serial: 3})}
	runner, err := service.New(service.Config{Items: []service.Item{{Name: "step", Step: step}}})
	if err != nil {
		t.Fatal(err)
	}
	s := &stand{a: a, runner: runner, permit: permit.None{}, fence: d, orders: make(chan order, ordersQueued), lease: make(chan struct{}, 1), given: make(chan struct{}, 1)}
	a.stand = s
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { _ = s.runService(ctx) })
	all.Go(func() { _ = s.runPermit(ctx) })
	t.Cleanup(func() { cancel(); all.Wait() })
	return s, d, step
}

// claim makes a candidate of the node.
func (s *stand) claim(t *testing.T) {
	t.Helper()
	v := s.a.node.Vote
	v.Copy(1, true, 7, 0, false)
	v.Start(1, true, false)
	for _, e := range v.Effects() {
		if e.Kind == failover.Read {
			v.ReadDone(2, e.Tag, &failover.Record{Version: record.Version, ClusterID: 1, Serial: 3, Epoch: 3, Primary: "a", InSync: []string{"a"},
				Members: []record.Member{{Node: "a", DiskID: 1}}, Generation: 7, Nonce: 9}, "v3", nil)
		}
	}
	if r := v.Role(); r != failover.Candidate {
		t.Fatal("the node is", r)
	}
}

func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come to:", what)
		}
	}
}

// 1 The node froze, and its service takes long to stop. 2 The cause is gone, and it
// claims its next term; the watchdog is armed for it. 3 The stop ends. The watchdog
// that it disarms must not be the next term's.
func TestLateStopKeepsWatchdog(t *testing.T) {
	s, d, step := newTestStand(t)
	d.set(true)
	s.order(order{})
	<-step.stopping
	s.a.mu.Lock()
	s.claim(t)
	s.watchdog()
	s.a.mu.Unlock()
	step.stopped <- struct{}{}
	s.order(order{start: 4}) // taken when the stop is over
	soon(t, "the next term has begun", s.term.Load)
	if armed, _ := d.state(); !armed {
		t.Fatal("the end of the last term has disarmed the watchdog of the next")
	}
	s.a.mu.Lock()
	s.role = failover.Secondary
	s.a.mu.Unlock()
	step.stopped <- struct{}{}
	s.order(order{})
	soon(t, "the watchdog is disarmed", func() bool { armed, _ := d.state(); return !armed })
}

// 1 The node claims its term, the watchdog is armed. 2 The witness goes out before it
// answers. The candidate is well, however long that takes; while it is Secondary and a
// stop hangs it is not.
func TestUndecidedClaimFeedsWatchdog(t *testing.T) {
	s, d, _ := newTestStand(t)
	tick := func() {
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		s.tickAt = 0
		s.tick(now())
	}
	tick()
	time.Sleep(20 * time.Millisecond)
	if _, fed := d.state(); fed != 0 {
		t.Fatal("a Secondary has fed the watchdog")
	}
	s.a.mu.Lock()
	s.claim(t)
	s.a.mu.Unlock()
	tick()
	soon(t, "it is fed", func() bool { _, fed := d.state(); return fed == 1 })
	tick()
	soon(t, "it is fed again", func() bool { _, fed := d.state(); return fed == 2 })
}

// brokenPermit is the kernel's refusal, until it is mended.
type brokenPermit struct {
	permit.None
	mended atomic.Bool
}

func (p *brokenPermit) Renew(context.Context, int64, bool) error {
	if p.mended.Load() {
		return nil
	}
	return errors.New("no such table")
}

// A primary whose permission cannot be given answers nobody, and its steps all run: a
// peer is asked to do better, and asked again for as long as that is so.
func TestMutePrimaryGivesWay(t *testing.T) {
	s, _, _ := newTestStand(t)
	p := &brokenPermit{}
	asked := make(chan string, 100)
	s.permitMu.Lock()
	s.permit, s.giveWay = p, func(why string) bool { asked <- why; return false }
	s.permitMu.Unlock()
	s.a.cfg.Failover.Lease = 20 * time.Millisecond
	s.term.Store(true)
	renew := func() { s.serve(now() + int64(time.Minute)) }
	for n := 0; n < 2; {
		renew()
		select {
		case why := <-asked:
			if n++; !strings.Contains(why, "no such table") {
				t.Error(why)
			}
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("nobody is asked")
		}
	}
	if !s.mute.Load() {
		t.Error("it is not known to be mute")
	}
	p.mended.Store(true)
	soon(t, "it answers again", func() bool { renew(); return !s.mute.Load() })
	for len(asked) > 0 {
		<-asked
	}
	for range 20 {
		renew()
		time.Sleep(5 * time.Millisecond)
	}
	if len(asked) > 0 {
		t.Error("a peer is asked although clients are answered")
	}
}

// An order that finds the queue full is given again at the next look, a start above all.
func TestFullQueueLosesNoOrder(t *testing.T) {
	s := &stand{a: &Agent{log: slog.New(slog.DiscardHandler), cfg: &config.Config{Service: []config.Step{{Name: "step"}}}}, orders: make(chan order, 1)}
	if !s.order(order{start: 1}) || s.order(order{}) {
		t.Error("a full queue takes orders, or an empty one does not")
	}
	s.a.cfg.Service = nil
	if !s.order(order{}) {
		t.Error("without a service nothing is to be given again")
	}
}
