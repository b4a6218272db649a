package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/failover"
	"tandem/failover/awsclient"
	"tandem/failover/fence"
	"tandem/failover/onchange"
	"tandem/failover/permit"
	"tandem/failover/service"
	"tandem/failover/service/eip"
	"tandem/failover/service/kernelnbd"
	"tandem/failover/service/mount"
	"tandem/failover/service/nfs"
	"tandem/failover/service/overlayroute"
	"tandem/failover/service/privateip"
	"tandem/failover/service/vip"
	"tandem/nbd"
)

// stand is what stands on the volume: the service's steps, the permission to
// answer its clients, and the fence behind both. The cores decide, in voteEffect
// and follow, under the mutex; what takes time happens in two goroutines.
//
//	runService   starts and stops the steps, one order after another
//	runPermit    gives and withdraws the permission
//
// The order of a term (design.md, section 6): the permission is withdrawn (it has
// been since the term before) → watchdog → role Primary → connections of other
// terms cut → the permission to announce the service's addresses, renewed with each
// lease → steps, the address last → the permission to answer from its ports, too.
// Of its end: permission, steps in reverse, connections, and only then, if it was
// planned, the volume.
//
// The ports answer from the last step's start until the steps are stopped, and not
// only while all run: a step may look at its own port to see whether it runs, and would
// find it silent because of another step that is being repaired.
type stand struct {
	a      *Agent
	runner *service.Runner
	hook   *onchange.Hook
	aws    *awsclient.Loader // for the steps, if any asks AWS

	permitMu sync.Mutex
	permit   permit.Permit // guarded by permitMu

	fenceMu sync.Mutex
	fence   fence.Fence // guarded by fenceMu

	orders chan order
	lease  chan struct{} // until has changed
	until  atomic.Int64  // BOOTTIME ns: completions are let through until then
	term   atomic.Bool   // this is a term of ours, so its addresses may be announced
	up     atomic.Bool   // all steps have started in it, so clients may be answered
	given  chan struct{} // has a token when a permission was given
	gave   chan struct{} // has a token when the runner was told to give up
	well   atomic.Bool   // the cores came round in a role that the watchdog is armed for
	fired  atomic.Bool   // nothing disarms it any more
	mute   atomic.Bool   // the permission could not be given, last: nobody is answered

	// giveWay says that the service does not run here, and whether a peer is asked to
	// do better.
	giveWay func(why string) bool

	// Guarded by Agent.mu.
	epoch  uint64 // the term for which the steps were ordered to start; 0: none
	known  bool   // whether this node or another is primary has been seen in this life
	last   uint64 // the last term of ours, an earlier life's included
	role   failover.Role
	told   bool   // on_change knows that this node is Primary
	reason string // why the last term ended
	record *failover.Record
	tickAt int64 // when tick has something to do again
}

// tickEach is how often the watchdog is fed where it is not fed with a lease.
const tickEach = int64(time.Second)

// order is one thing for runService to do.
type order struct {
	start   uint64 // the epoch to start in; 0: stop
	planned uint64 // the volume waits for the stop, in this epoch; 0: it does not
	host    bool   // the host goes down: stop the steps, and nothing else changes
	done    func() // told when a stop has ended; nil: nobody waits
	cut     bool   // the clients' connections are from somebody else's term
}

const (
	// ordersQueued: a term's end and the next one's start may come while the steps
	// are being stopped; each start is followed by a stop.
	ordersQueued = 64
	// againAfter is for how long a peer may take to ask for the service that this
	// node cannot run.
	againAfter = 5 * time.Second
)

// errUnstopped ends an agent whose service could not be stopped where nothing
// harder is allowed (self_fence: stop).
var errUnstopped = errors.New("the service could not be stopped, and may still answer clients: its replies are blocked where it has ports; stop it by hand, or set failover.self_fence to reboot")

func newStand(a *Agent) (*stand, error) {
	s := &stand{a: a, orders: make(chan order, ordersQueued), lease: make(chan struct{}, 1), given: make(chan struct{}, 1), gave: make(chan struct{}, 1)}
	s.giveWay = func(why string) (asked bool) {
		a.input(func(now int64) { asked = a.node.Vote.GiveWay(now, why) })
		return asked
	}
	cfg := a.cfg
	s.aws = newLoader(cfg)
	// A term that follows it at once is nobody else's in between: its clients' connections are good.
	s.last = a.node.Vote.Hard().Served
	var items []service.Item
	for _, st := range cfg.Service {
		made, err := step(&st, cfg, a, s.aws)
		if err != nil {
			return nil, fmt.Errorf("service step %s: %w", st.Name, err)
		}
		items = append(items, service.Item{Name: st.Name, Step: made, Timeout: st.Timeout})
	}
	var err error
	if s.runner, err = service.New(service.Config{
		Cluster: cfg.Cluster, Node: cfg.Node, Items: items, Log: a.log,
		Serving: func() bool { return now() < s.until.Load() },
		Open:    s.open,
		Decide:  s.decide,
		Done:    s.done,
	}); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if s.permit, err = permit.New(permit.Config{
		Cluster: cfg.Cluster, Node: cfg.Node, Ports: cfg.ServicePorts(), Addresses: cfg.ServiceAddresses(), Boottime: now, Log: a.log,
		Sources: slices.ContainsFunc(cfg.Service, func(st config.Step) bool { return st.NFS != nil && st.NFS.V3() }),
	}); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	if s.fence, err = fence.New(fence.Config{
		Mode: fence.Mode(cfg.Failover.SelfFence), Machine: fence.ThisMachine(), Log: a.log,
		// It is fed with each lease. Without one the node freezes, then stops.
		Timeout: cfg.Failover.Lease + cfg.Failover.Freeze + s.runner.StopTime() + 10*time.Second,
	}); err != nil {
		return nil, fmt.Errorf("failover.self_fence: %w", err)
	}
	s.hook = onchange.New(onchange.Config{Cluster: cfg.Cluster, Node: cfg.Node, Argv: cfg.OnChange, Dir: cfg.Dir, Log: a.log})
	return s, nil
}

// step makes a step of its description in the config.
func step(st *config.Step, cfg *config.Config, a *Agent, aws *awsclient.Loader) (service.Step, error) {
	if v := st.VIP; v != nil {
		return vip.New(v.Address, v.Interface, a.log), nil
	}
	if e := st.EIP; e != nil {
		return eip.New(eip.Config{Allocation: e.Allocation, Loader: aws, Log: a.log}), nil
	}
	if p := st.PrivateIP; p != nil {
		return privateip.New(privateip.Config{Address: p.Address, Interface: p.Interface, Loader: aws, Log: a.log}), nil
	}
	if o := st.OverlayRoute; o != nil {
		return overlayroute.New(overlayroute.Config{CIDR: o.CIDR, Tables: o.Tables, Loader: aws, Log: a.log}), nil
	}
	if n := st.NBD; n != nil {
		return kernelnbd.New(kernelnbd.Config{
			Device: n.Device, Connections: n.Connections, Backend: "tandem/" + cfg.Cluster + "/" + cfg.Node, Log: a.log,
			Dial: func(ctx context.Context) (kernelnbd.Socket, error) { return attachment(ctx, cfg) },
		})
	}
	if m := st.Mount; m != nil {
		return mount.New(mount.Config{Device: m.Device, Path: m.Path, Type: m.Type, Options: m.Options}, a.log), nil
	}
	if n := st.NFS; n != nil {
		return nfs.New(nfs.Config{
			Path: n.Path, Clients: n.Clients, Options: n.Options, FSID: n.FSID, Versions: n.Versions,
			Lease: n.Lease, Grace: n.Grace, Scope: n.Scope, Port: n.Port,
			V3: nfs.V3{MountdPort: config.MountdPort, LockdPort: config.LockdPort, StatdPort: config.StatdPort, Notify: texts(cfg.ServiceAddresses())},
		}, a.log), nil
	}
	return &service.Exec{StartArgv: st.Exec.Start, StopArgv: st.Exec.Stop, CheckArgv: st.Exec.Check, Dir: cfg.Dir}, nil
}

func texts(addresses []netip.Addr) (all []string) {
	for _, a := range addresses {
		all = append(all, a.String())
	}
	return all
}

// attachment is a connection to our own export, as the kernel takes it.
func attachment(ctx context.Context, cfg *config.Config) (kernelnbd.Socket, error) {
	at, err := nbd.Attach(ctx, "unix", cfg.NBD.Socket, cfg.Cluster)
	if err != nil {
		return kernelnbd.Socket{}, err
	}
	defer at.Conn.Close()
	raw, err := at.Conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return kernelnbd.Socket{}, err
	}
	s := kernelnbd.Socket{Size: at.Size, Flags: at.Flags}
	var failed error
	if err := raw.Control(func(fd uintptr) { s.FD, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return kernelnbd.Socket{}, err
	}
	return s, failed
}

// any: there is something to start, or to keep from answering.
func (s *stand) any() bool { return len(s.a.cfg.Service) > 0 }

// follow orders what the cores' state asks for, by level. The mutex is held.
func (s *stand) follow() {
	s.tell()
	s.watchdog()
	n := s.a.node
	if n.Serving() {
		if e := n.Vote.Epoch(); s.epoch != e && s.order(order{start: e, cut: s.last == 0 || s.last != e-1}) {
			s.epoch, s.last, s.known = e, e, true
		}
		return
	}
	if s.epoch != 0 && n.Vote.Role() == failover.Secondary && s.order(order{}) {
		s.epoch = 0
	}
	// An agent that was killed as primary has left its service running. It takes it
	// up again if it is primary again; if somebody else is, it takes it away.
	// Without the record a later epoch than its last term's says the same.
	rec, _ := n.Vote.Record()
	h := n.Vote.Hard()
	if !s.known && (rec != nil && (rec.Primary != s.a.cfg.Node || rec.Paused != nil) || h.Served < h.Epoch && n.Vote.Role() == failover.Secondary) {
		s.known = s.order(order{})
	}
}

// tick is a round of the cores' clock. The watchdog is fed with each lease; but a
// candidate whose claim is undecided, and a primary that nobody asks for anything while
// it has no lease, may be in that state for as long as the witness is out, and are
// well. What is not, a stop that takes too long above all, is not fed here. The mutex
// is held.
func (s *stand) tick(now int64) {
	if !s.any() || now < s.tickAt || s.until.Load() > now {
		return
	}
	s.tickAt = now + tickEach
	if role := s.a.node.Vote.Role(); role != failover.Candidate && (role != failover.Primary || !s.term.Load()) {
		return
	}
	s.well.Store(true)
	s.look()
}

// watchdog arms it before a promotion: the CAS comes after this. The mutex is held.
func (s *stand) watchdog() {
	was, role := s.role, s.a.node.Vote.Role()
	s.role = role
	if !s.any() || role == was {
		return
	}
	switch {
	case role == failover.Candidate:
		s.fenceMu.Lock()
		defer s.fenceMu.Unlock()
		if err := s.fence.Arm(context.Background()); err != nil {
			s.a.log.Warn("watchdog: this node may become primary without it", "err", err)
		}
	case was == failover.Candidate && role == failover.Secondary:
		s.order(order{}) // it came to nothing: there is nothing to stop, but to disarm
	}
}

// tell tells on_change what has changed. The mutex is held.
func (s *stand) tell() {
	n := s.a.node
	c := onchange.Change{Role: "Secondary", Epoch: n.Vote.Epoch()}
	serving := n.Serving()
	if serving {
		c.Role = "Primary"
	}
	rec, _ := n.Vote.Record()
	before := s.record
	s.record = rec
	if serving != s.told {
		s.told = serving
		c.Reason = s.reason
		if serving {
			c.Reason = "promoted"
			if rec != nil && rec.Primary == s.a.cfg.Node {
				c.Reason = rec.Reason
			}
		}
		s.hook.Tell(c)
		return
	}
	if rec == nil || before == nil || rec == before || rec.Epoch != before.Epoch {
		return
	}
	c.Reason = rec.Reason
	for _, name := range s.a.peers {
		if rec.Has(name) != before.Has(name) {
			c.Peer = name
			s.hook.Tell(c)
		}
	}
}

// order gives runService something to do, and says whether it was taken: runService is
// as fast as the steps' limits allow, and a full queue means terms that change faster
// than that for minutes. What follow orders it orders again at the next look.
func (s *stand) order(o order) bool {
	if !s.any() {
		return true
	}
	select {
	case s.orders <- o:
		return true
	default:
		s.a.log.Error("service: too many changes of role are waiting")
		return false
	}
}

// serve takes the end of the time in which this node may answer. The mutex is held.
func (s *stand) serve(until int64) {
	s.until.Store(until)
	s.look()
}

// look has runPermit look again at what is permitted, and until when.
func (s *stand) look() {
	select {
	case s.lease <- struct{}{}:
	default:
	}
}

// decide is asked by the runner when a step has failed.
func (s *stand) decide(f service.Failure) service.Decision {
	s.a.eventf("service step %s does not run here (attempt %d): %v", f.Step, f.Failures, f.Err)
	// Once may be chance. What will fail again is not tried again.
	if f.Failures < 2 && !f.Hopeless() {
		return service.Retry
	}
	if !s.giveWay(f.Step + ": " + f.Err.Error()) {
		return service.Retry
	}
	select {
	case s.gave <- struct{}{}:
	default:
	}
	return service.GiveUp
}

func (s *stand) done(act service.Action) {
	if act.Held {
		return
	}
	text := fmt.Sprintf("service step %s: %s took %.3f s", act.Step, act.Verb, act.Took.Seconds())
	if act.Err != nil {
		text += ": " + act.Err.Error()
	}
	s.a.eventf("%s", text)
}

// runService carries out the orders. It returns an error when the service could
// not be stopped and the agent has to end.
func (s *stand) runService(ctx context.Context) error {
	if !s.any() {
		return nil
	}
	var term sync.WaitGroup
	defer term.Wait()
	// The agent restarts, and the service is to wait for it: its checks end, its
	// steps stay.
	// A watchdog cannot wait with it.
	defer func() {
		s.runner.Leave()
		if ctx.Err() != nil {
			s.disarm()
		}
	}()
	end := func() {}
	defer func() { end() }()
	for {
		var o order
		select {
		case <-ctx.Done():
			return nil
		case o = <-s.orders:
		}
		if o.start != 0 {
			end()
			c, cancel := context.WithCancel(ctx)
			end = cancel
			term.Go(func() { s.startTerm(c, o) })
			continue
		}
		end()
		if o.planned != 0 {
			s.drain(ctx)
		}
		s.term.Store(false)
		s.up.Store(false)
		s.serve(0) // runPermit blocks; what it does not get to, the kernel's timer does
		if o.planned == 0 && !o.host {
			s.abandon(ctx)
		}
		err := s.stop(ctx)
		if o.planned != 0 {
			s.admit(ctx)
		}
		if o.done != nil {
			o.done()
		}
		term.Wait()
		s.term.Store(false) // its last step may have been to set them
		s.up.Store(false)
		switch {
		case ctx.Err() != nil:
			return nil
		case o.planned != 0:
			s.a.input(func(now int64) { s.a.node.ServiceStopped(now, o.planned, err) })
			if err != nil {
				// The node goes on as primary, so the service does, too.
				s.a.mu.Lock()
				s.epoch = 0
				s.follow()
				s.a.mu.Unlock()
			}
		case err != nil && !o.host: // that host is about to let go of everything
			return s.fire(err)
		default:
			s.disarmIdle()
		}
	}
}

// disarmIdle disarms it when a stop has ended, unless the node is on its way to its
// next term by then, or in it: it was armed before that one's claim, and is only once.
func (s *stand) disarmIdle() {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.role == failover.Secondary {
		s.disarm()
	}
}

// stopWithHost stops the steps of a primary whose host goes down and which nobody has relieved: what is mounted must be
// written back and unmounted while there is still an agent to serve it.
func (s *stand) stopWithHost(ctx context.Context) {
	if !s.any() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.runner.StopTime()+5*time.Second)
	defer cancel()
	done := make(chan struct{})
	s.order(order{host: true, done: sync.OnceFunc(func() { close(done) })})
	select {
	case <-done:
	case <-ctx.Done():
		s.a.log.Warn("the steps have not stopped before the host goes down", "err", context.Cause(ctx))
	}
}

// disarm disarms it, for an agent that ends too.
func (s *stand) disarm() {
	if s.fired.Load() {
		return
	}
	s.fenceMu.Lock()
	defer s.fenceMu.Unlock()
	if err := s.fence.Disarm(); err != nil {
		s.a.log.Warn("watchdog", "err", err)
	}
}

// abandon makes what still waits for the volume fail: this node answers nothing any more, and a request that an earlier
// agent left waiting in the kernel may be older than what another primary has written since.
func (s *stand) abandon(ctx context.Context) {
	if err := s.runner.Abandon(ctx); err != nil && ctx.Err() == nil {
		s.a.log.Warn("service", "err", err)
	}
}

func (s *stand) stop(ctx context.Context) error {
	// Stop keeps to the steps' limits; this is for a step that does not.
	ctx, cancel := context.WithTimeout(ctx, s.runner.StopTime()+5*time.Second)
	defer cancel()
	err := s.runner.Stop(ctx)
	s.cut(ctx)
	return err
}

// drainTime is what a service has for the requests that it has begun when it is moved.
const drainTime = 250 * time.Millisecond

// drain lets the service answer what it has been asked, and nobody ask it any more: a request that
// was carried out and not answered would be asked of the next primary again. Any failure of it is
// no reason not to move.
func (s *stand) drain(ctx context.Context) {
	if !s.up.Load() || len(s.a.cfg.ServicePorts()) == 0 {
		return
	}
	s.permitMu.Lock()
	err := s.permit.Drain(ctx)
	s.permitMu.Unlock()
	if err != nil {
		s.a.log.Warn("requests of the service's clients come in until it stops", "err", err)
		return
	}
	select {
	case <-time.After(drainTime):
	case <-ctx.Done():
	}
}

// admit ends drain.
func (s *stand) admit(ctx context.Context) {
	s.permitMu.Lock()
	defer s.permitMu.Unlock()
	if err := s.permit.Admit(ctx); err != nil && ctx.Err() == nil {
		s.a.log.Warn("requests of the service's clients may not come in", "err", err)
	}
}

// cut ends the connections of the service's clients: TCP would send again, in a
// later term, what was blocked in this one.
func (s *stand) cut(ctx context.Context) {
	s.permitMu.Lock()
	defer s.permitMu.Unlock()
	if err := s.permit.Cut(ctx); err != nil && ctx.Err() == nil {
		s.a.log.Warn("connections of the service's clients", "err", err)
	}
}

// fire is the end of a node that cannot let go of its service.
func (s *stand) fire(err error) error {
	s.a.log.Error("the service could not be stopped", "err", err)
	s.fired.Store(true)
	s.fenceMu.Lock()
	defer s.fenceMu.Unlock()
	if e := s.fence.Fire(err.Error()); !errors.Is(e, fence.ErrStopOnly) {
		s.a.log.Error("self-fence", "err", e)
	}
	return fmt.Errorf("%w: %w", errUnstopped, err)
}

// startTerm starts the steps of one term; the runner watches them afterwards.
func (s *stand) startTerm(ctx context.Context, o order) {
	s.admit(ctx)
	if o.cut {
		s.cut(ctx)
	}
	if ctx.Err() != nil {
		return
	}
	s.term.Store(true)
	s.permitted(ctx) // what is announced before would be dropped; it is announced again
	for {
		select { // an earlier term's
		case <-s.gave:
		default:
		}
		err := s.runner.Start(ctx, o.start)
		switch {
		case err == nil:
			s.a.mu.Lock()
			s.a.node.Vote.Fit()
			s.a.mu.Unlock()
			s.a.eventf("the service is up")
			// Its checks may give up later, in the same way.
			select {
			case <-ctx.Done():
				return
			case <-s.gave:
			}
		case !errors.Is(err, service.ErrGaveUp):
			return // stopped, or the end of the term or of the agent
		}
		// A peer was asked to do better. If it does not, somebody has to go on.
		select {
		case <-ctx.Done():
			return
		case <-time.After(againAfter):
		}
		if err := s.runner.Stop(ctx); err != nil && ctx.Err() == nil {
			s.a.log.Warn("service", "err", err)
		}
	}
}

// runAWS has what the steps need to ask AWS at hand before they do.
func (s *stand) runAWS(ctx context.Context) error {
	if s.a.cfg.UsesAWS() {
		s.aws.Keep(ctx, func(err error) {
			s.a.log.Warn("AWS cannot be asked: the service's steps may not start here, and peers that are named by tag may not be found", "err", err)
		})
	}
	return nil
}

// open is the runner's word that all steps have started.
func (s *stand) open(ctx context.Context) {
	s.up.Store(true)
	s.permitted(ctx)
}

// permitted returns when the permission was given anew, or will not be soon.
func (s *stand) permitted(ctx context.Context) {
	select {
	case <-s.given: // an earlier one
	default:
	}
	s.look()
	select {
	case <-s.given:
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}

// runPermit renews the permission with each lease, and withdraws it.
func (s *stand) runPermit(ctx context.Context) error {
	if !s.any() {
		return nil
	}
	s.permitMu.Lock()
	err := s.permit.Install(ctx)
	s.permitMu.Unlock()
	if err != nil {
		return fmt.Errorf("service: block the replies of its ports: %w", err)
	}
	given := false
	var muteSince time.Time
	for {
		select {
		case <-ctx.Done():
			return nil // the kernel's timer runs on: a restart is a pause
		case <-s.lease:
		}
		s.permitMu.Lock()
		until := s.until.Load()
		err = nil
		well := s.well.Swap(false)
		switch {
		case s.term.Load() && until > now():
			err = s.permit.Renew(ctx, until, s.up.Load())
			s.mute.Store(err != nil)
			if err == nil {
				given, muteSince = true, time.Time{}
				select {
				case s.given <- struct{}{}:
				default:
				}
				s.fenceMu.Lock()
				err = s.fence.Feed()
				s.fenceMu.Unlock()
			}
		case given:
			given = false
			err = s.permit.Block(ctx)
		}
		if well && until <= now() {
			s.fenceMu.Lock()
			err = errors.Join(err, s.fence.Feed())
			s.fenceMu.Unlock()
		}
		s.permitMu.Unlock()
		if err == nil || ctx.Err() != nil {
			continue
		}
		s.a.log.Warn("permission to answer the service's clients", "err", err)
		switch {
		case !s.mute.Load():
		case muteSince.IsZero():
			muteSince = time.Now()
		case time.Since(muteSince) > 2*s.a.cfg.Failover.Lease:
			// A primary that cannot answer its clients is of no more use to them than one
			// whose service does not run.
			muteSince = time.Now()
			s.giveWay("the permission to answer clients cannot be given: " + err.Error())
		}
	}
}

// status is every step, for `status`.
func (s *stand) status() []control.StepStatus {
	var all []control.StepStatus
	for _, st := range s.runner.Status() {
		all = append(all, control.StepStatus{Step: st.Step, State: string(st.State), Since: st.Since, Error: st.Error})
	}
	return all
}
