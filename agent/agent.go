// Package agent is the only place where nbd, blockrepl and failover meet: the
// shell that carries out, on real disks, links and a real witness, what the
// pure cores of package node decide.
//
// One mutex guards the cores. Every event (a request, an answer of the disk, a
// frame, a tick) takes it, gives the cores their input, collects the effects
// into a batch, and lets it go; the batch is carried out without it. Frames
// are queued under the mutex, so that their order is the order of decisions,
// and written after it.
package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tandem/agent/certs"
	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/agent/history"
	"tandem/agent/node"
	"tandem/blockrepl"
	"tandem/blockrepl/disk"
	"tandem/blockrepl/link"
	"tandem/blockrepl/meta"
	"tandem/failover"
	"tandem/failover/awsclient/nodeaddr"
	"tandem/failover/witness"
	"tandem/nbd"
)

// Agent is one running node.
type Agent struct {
	cfg   *config.Config
	log   *slog.Logger
	disk  *disk.Disk
	store witness.Store
	probe probe
	links *link.Manager
	where *nodeaddr.Finder // of the peers that are named by tag; nil: by address

	mu        sync.Mutex
	node      *node.Node
	slots     []payload // by the low half of a tag: what the operation carries
	conns     []*link.Conn
	comparing [blockrepl.MaxPeers]int // resync chunks under way on our disk; guarded by mu
	closed    bool                    // the disk is being closed: nothing more is begun
	spare     []*batch

	jobs    chan job
	meta    []metaJob // guarded by mu
	metaNow chan struct{}
	witq    chan failover.Effect
	tickNow chan struct{}

	export    *exportState
	stand     *stand
	others    others
	ops       operations
	asks      asks // guarded by mu
	hang      hangWatch
	events    eventLog
	chronicle chronicle       // but for its log guarded by mu
	words     map[string]word // by peer; guarded by mu
	linkSince []time.Time     // by peer; guarded by mu
	geometry  geometry
	metrics   metrics
	started   time.Time
	peers     []string
}

// geometry is what of the metadata the shell has to know.
type geometry struct{ BlockShift uint8 }

// Run serves until ctx ends. It returns when everything it started has ended.
func Run(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	if err := attached(ctx, cfg, attachPatience, log); err != nil {
		if errors.Is(err, context.Canceled) {
			err = nil // it was ended before it had begun
		}
		return err
	}
	a, err := open(cfg, log)
	if err != nil {
		return err
	}
	return a.run(ctx)
}

// open takes the disk, the control socket and the listening address, so that
// a second agent is refused before anything is touched.
func open(cfg *config.Config, log *slog.Logger) (*Agent, error) {
	a := &Agent{cfg: cfg, log: log, started: time.Now(),
		jobs: make(chan job, jobQueue), metaNow: make(chan struct{}, 1), witq: make(chan failover.Effect, 64), tickNow: make(chan struct{}, 1)}
	for _, p := range cfg.Peers {
		a.peers = append(a.peers, p.Node)
	}
	slices.Sort(a.peers)
	a.conns = make([]*link.Conn, len(a.peers))
	a.linkSince = slices.Repeat([]time.Time{a.started}, len(a.peers))
	a.ops.init()
	a.events.init()

	o := diskOptions(cfg)
	d, err := disk.Open(o)
	// An agent that was killed a moment ago keeps its lock until the kernel
	// has torn it down, which takes as long as its last disk request.
	for until := time.Now().Add(lockPatience); errors.Is(err, disk.ErrInUse) && time.Now().Before(until); d, err = disk.Open(o) {
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume %s: %w", cfg.Volume.Device, err)
	}
	a.disk = d
	ok := false
	defer func() {
		if !ok {
			_ = d.Close()
		}
	}()
	st, err := d.LoadMeta()
	if err != nil {
		return nil, fmt.Errorf("read the metadata of %s: %w", cfg.Volume.Device, err)
	}
	if st.Super.Cluster != cfg.Cluster || st.Super.Node != cfg.Node {
		return nil, fmt.Errorf("%s was initialised for node %s of cluster %s, not for node %s of cluster %s: look at volume.device, or run replctl init --force to give up its metadata",
			cfg.Volume.Device, st.Super.Node, st.Super.Cluster, cfg.Node, cfg.Cluster)
	}
	free := 0
	for _, p := range st.Super.Peers {
		if p.Name == "" {
			free++
		}
	}
	for _, name := range a.peers {
		if !slices.ContainsFunc(st.Super.Peers[:], func(p meta.Peer) bool { return p.Name == name }) {
			free--
		}
	}
	if free < 0 {
		return nil, fmt.Errorf("the metadata of %s has no room for another peer", cfg.Volume.Device)
	}
	if a.store, err = openWitness(cfg); err != nil {
		return nil, err
	}
	defer func() {
		if !ok {
			_ = a.store.Close()
		}
	}()
	a.probe.init()
	a.geometry = geometry{st.Super.BlockShift}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	f := cfg.Failover
	a.node = node.New(node.Config{
		Vol: blockrepl.Config{
			Peers: a.peers, Rand: random, PeerTimeout: int64(cfg.Link.PeerTimeout), MarkEvery: int64(time.Second), ResyncRate: cfg.Resync.MaxRate, Volatile: d.Volatile(), Bug: testBug(),
		},
		Vote: failover.Config{
			Self: cfg.Node, Cluster: cfg.Cluster, DiskID: st.Super.DiskID, Peers: a.peers,
			Heartbeat: int64(f.Heartbeat), Lease: int64(f.Lease), Freeze: int64(f.Freeze), Restart: int64(f.Restart), Auto: f.Auto, Prefer: f.Prefer, Rand: random,
		},
		TickEvery: int64(tickEvery), Service: len(cfg.Service) > 0,
	}, st, node.Boot{ID: boot, Identity: d.Identity(), Volatile: d.Volatile()})
	a.openHistory()

	if a.stand, err = newStand(a); err != nil {
		return nil, err
	}
	a.initOthers()
	lc := link.Config{Self: cfg.Node, Cluster: cfg.Cluster, Listen: cfg.Listen, Handler: (*linkHandler)(a), Log: log, UserTimeout: cfg.Link.PeerTimeout}
	if a.where = newFinder(cfg, a.stand.aws, log); a.where != nil {
		lc.Finder = a.where
	}
	for _, p := range cfg.Peers {
		lc.Peers = append(lc.Peers, link.Peer{Node: p.Node, Address: p.Address})
	}
	if !cfg.TLS.Insecure {
		if lc.ServerTLS, err = certs.ServerConfig(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key, cfg.Cluster, cfg.Node, a.peers...); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		clients := make(map[string]*tls.Config)
		for _, p := range a.peers {
			if clients[p], err = certs.ClientConfig(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key, cfg.Cluster, cfg.Node, p); err != nil {
				return nil, fmt.Errorf("tls: %w", err)
			}
		}
		lc.ClientTLS = func(node string) *tls.Config { return clients[node] }
		lc.PeerNode = certs.NodeOf(cfg.Cluster)
	}
	if a.links, err = link.New(lc); err != nil {
		return nil, err
	}
	ok = true
	return a, nil
}

func (a *Agent) run(ctx context.Context) (err error) {
	// The listeners come first: an address in use is an error before the
	// first effect, not after it.
	ctl, err := control.Listen(a.cfg.Control)
	if err != nil {
		_ = errors.Join(a.disk.Close(), a.store.Close())
		return fmt.Errorf("control socket %s: %w", a.cfg.Control, err)
	}
	begun := false
	defer func() {
		if a.where != nil {
			a.where.Close()
		}
		if !begun { // nothing runs yet: leave nothing behind
			_ = errors.Join(ctl.Close(), a.disk.Close(), a.store.Close())
		}
	}()
	a.export = newExportState(a)
	server, err := nbd.NewServer(nbd.Config{Backend: a.export, Log: a.log})
	if err != nil {
		return err
	}
	nl, err := listenUnix(a.cfg.NBD.Socket)
	if err != nil {
		return err
	}
	var nt net.Listener
	if a.cfg.NBD.TCP != "" {
		if nt, err = net.Listen("tcp", a.cfg.NBD.TCP); err != nil {
			nl.Close()
			return fmt.Errorf("nbd.tcp: %w", err)
		}
	}

	begun = true
	// Two lives: outer ends with ctx; inner, which carries disk, links and
	// cores, ends only when the outer services have drained.
	inner, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	back, innerCtx := errgroup.WithContext(inner)
	for range diskWorkers {
		back.Go(func() error { a.runDisk(innerCtx); return nil })
	}
	back.Go(func() error { a.runMeta(innerCtx); return nil })
	back.Go(func() error { a.runWitness(innerCtx); return nil })
	back.Go(func() error { a.runTimer(innerCtx); return nil })
	back.Go(func() error { a.chronicle.log.Run(innerCtx); return nil })
	a.note(history.Entry{Kind: history.KindAgent, Why: fmt.Sprintf("agent started, pid %d", os.Getpid())})

	a.input(func(now int64) { a.node.Start(now) })

	linksCtx, stopLinks := context.WithCancel(inner)
	defer stopLinks()
	linksDone := make(chan error, 1)
	go func() { linksDone <- a.links.Run(linksCtx) }()

	outer, stopOuter := context.WithCancel(inner)
	defer stopOuter()
	stopping := make(chan struct{})
	away := int64(0) // an agent that ends by an error is not known to come back
	go func() {
		defer close(stopping)
		select {
		case <-outer.Done():
			return
		case <-ctx.Done():
		}
		// A restart of the agent is a pause; a host that goes down is not.
		if hostStopping(outer) {
			a.handOver(outer)
			a.stand.stopWithHost(outer)
		} else {
			away = int64(a.cfg.Failover.Restart)
		}
		stopOuter()
	}()
	front, frontCtx := errgroup.WithContext(outer)
	front.Go(func() error { return server.Serve(frontCtx, nl) })
	if nt != nil {
		front.Go(func() error { return server.Serve(frontCtx, nt) })
	}
	front.Go(func() error { return control.Serve(frontCtx, ctl, a.handle) })
	front.Go(func() error { return a.stand.runPermit(frontCtx) })
	front.Go(func() error { return a.stand.runService(frontCtx) })
	front.Go(func() error { return a.stand.runAWS(frontCtx) })
	front.Go(func() error { a.runOthers(frontCtx); return nil })
	front.Go(func() error { a.runKeeper(frontCtx); return nil })
	front.Go(func() error { return a.stand.hook.Run(frontCtx) })
	front.Go(func() error { return a.runProbe(frontCtx) })
	// The peers have connections of their own: theirs cannot use up the operator's.
	front.Go(func() error { return control.Serve(frontCtx, a.links.Control(), a.handle) })
	front.Go(func() error { a.runWords(frontCtx); return nil })
	if a.cfg.HTTP != "" {
		front.Go(func() error { return a.runHTTP(frontCtx) })
	}
	a.log.Info("agent started", "cluster", a.cfg.Cluster, "node", a.cfg.Node, "volume", a.cfg.Volume.Device, "pid", os.Getpid())
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
	go func() {
		<-frontCtx.Done()
		_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	}()

	// SIGTERM: the listeners close and requests drain; then the peers are told
	// that we mean to be back.
	err = front.Wait()
	stopOuter()
	<-stopping
	a.log.Info("stopping: requests are drained")
	a.input(func(now int64) { a.node.Vote.Shutdown(now, away); a.node.Pump(now) })
	stopLinks()
	err = errors.Join(err, <-linksDone)
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.note(history.Entry{Kind: history.KindAgent, Why: "agent stopped"})
	stop(nil)
	_ = back.Wait()           // none of them returns an error
	a.stand.disarm()          // the cores may have gone on to a claim while clients were drained
	runtime.KeepAlive(server) // its memory held what the peers were still being sent
	if e := a.disk.Flush(); e != nil && !errors.Is(e, disk.ErrFailed) {
		err = errors.Join(err, e)
	}
	err = errors.Join(err, a.disk.Close(), a.store.Close())
	os.Remove(a.cfg.NBD.Socket)
	a.log.Info("agent stopped")
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	return err
}

// now is CLOCK_BOOTTIME, ns: Go's monotonic clock stops while the machine is
// suspended, and a lease must not.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("agent: no CLOCK_BOOTTIME: " + err.Error())
	}
	return t.Nano()
}

func random() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func bootID() (string, error) {
	if id := testBootID(); id != "" {
		return id, nil
	}
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id of this host: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// lockPatience is how long a volume in use is waited for.
const lockPatience = time.Second

// tickEvery is the longest time between two looks at the clock.
const tickEvery = 50 * time.Millisecond

func (a *Agent) runTimer(ctx context.Context) {
	t := time.NewTimer(tickEvery)
	defer t.Stop()
	watchdog := time.Duration(0)
	if d, err := daemon.SdWatchdogEnabled(false); err == nil {
		watchdog = d / 3
	}
	last := time.Now()
	limit := int64(a.cfg.Volume.DiskTimeout)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-a.tickNow:
		}
		wait := tickEvery
		a.input(func(now int64) {
			if d := a.hang.longest(time.Since(a.started)); limit > 0 && d > limit {
				a.node.Vol.DiskFailed(now, fmt.Sprintf("a request has not returned for %v (volume.disk_timeout)", time.Duration(d).Round(time.Millisecond)))
			}
			a.node.Tick(now)
			a.stand.tick(now)
			if d := a.node.Deadline() - now; d > 0 && d < int64(wait) {
				wait = time.Duration(d)
			}
		})
		if watchdog > 0 && time.Since(last) >= watchdog {
			last = time.Now()
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
		t.Reset(wait)
	}
}

func listenUnix(path string) (net.Listener, error) {
	// A socket that a dead agent left is in the way. A living one cannot be
	// ours: the volume is locked, and we hold it.
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("nbd.socket %s: there is a file of that name that is no socket", path)
		}
		os.Remove(path)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("nbd.socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("nbd.socket: %w", err)
	}
	return l, nil
}
