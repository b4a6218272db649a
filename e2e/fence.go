package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/e2e/records"
	"tandem/e2e/vm"
)

// Machines that end themselves: a primary that is isolated and cannot let go of its service, and
// one whose agent is stuck for longer than the watchdog waits.
func fenceScenarios() []Scenario {
	o := pairOptions{
		fs: "ext4", version: "4.2", patience: fenceStop.String(),
		failover: fmt.Sprintf("freeze: %s, self_fence: reboot", fenceFreeze),
	}
	return []Scenario{
		pairScenario("5-fence", "an isolated primary that cannot unmount resets its machine", 8*time.Minute, o, func(p *pair) []step { return (&fenced{links{pair: p}}).steps() }),
		{
			ID: "5-watchdog", Name: "an agent that is stopped for longer than the watchdog waits is reset with its machine",
			Limit: 5 * time.Minute, begin: func(r *Run) []step { return (&watched{Run: r}).steps() },
		},
	}
}

const (
	fenceFreeze = 3 * time.Second
	fenceStop   = 5 * time.Second // of each of two steps
)

type fenced struct{ links }

func (s *fenced) steps() []step {
	return []step{
		{"the client writes", s.begin},
		{"the primary, whose filesystem somebody holds, is cut from the other and from the witness", s.hold},
		{"it is back", s.comeBack},
		{"all is there, and alike", s.end},
	}
}

func (s *fenced) hold(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	old, heir := s.primary, s.standby
	if _, err := old.Start(ctx, "cd "+mountPoint+" && exec sleep 1000"); err != nil {
		return err
	}
	mark := old.logMark(s.Lab)
	said, err := os.Stat(old.Console())
	if err != nil {
		return err
	}
	if err := s.pin(ctx, old); err != nil {
		return err
	}
	if err := errors.Join(s.apart(ctx), s.cutWitness(ctx, old)); err != nil {
		return err
	}
	cut := time.Now()
	if err := s.silentFirst(ctx, old, heir, epoch); err != nil {
		return err
	}
	reads, acks := s.reads.Load(), s.load.ledger.Total()
	if err := old.WentOff(ctx, time.Minute); err != nil {
		return err
	}
	old.pid = 0
	took := time.Since(cut)
	if err := s.fired(old, mark, said.Size()); err != nil {
		return err
	}
	// Its lease, its freeze, and the time of two steps: the device cannot be had either. What the NFS
	// server takes to stop is little.
	const least, most = fenceFreeze + 2*fenceStop, lease + fenceFreeze + 2*fenceStop + 15*time.Second
	if err := s.Assert(took > least && took < most && s.reads.Load() == reads && s.load.ledger.Total() == acks,
		"%s has answered nothing until it was off, %.1f s after it was cut off: more than %v, less than %v", old.Name, took.Seconds(), least, most); err != nil {
		return err
	}
	if err := s.unpin(ctx); err != nil {
		return err
	}
	if err := s.moreReads(ctx, 5); err != nil {
		return err
	}
	return errors.Join(s.endReads(ctx), s.more(ctx, s.load, 10))
}

// fired asserts that a node that has gone off did so by its own word, and why.
func (s *fenced) fired(n *node, mark, said int64) error {
	log, err := n.logSince(s.Lab, mark)
	if err != nil {
		return err
	}
	const words = `this node fences itself: it reboots now, without a sync" reason="`
	_, reason, found := strings.Cut(log, words)
	if !found {
		return fmt.Errorf("%s is off, and its agent does not say that it fences itself: %s", n.Name, log)
	}
	reason, _, _ = strings.Cut(reason, "\n")
	console, err := os.ReadFile(n.Console())
	if err != nil {
		return err
	}
	return s.Assert(strings.Contains(reason, "still in use") && strings.Contains(reason, "sleep") && strings.Contains(string(console[said:]), "sysrq: Resetting"),
		"%s has reset its machine by sysrq: %s", n.Name, reason)
}

func (s *fenced) comeBack(ctx context.Context) error {
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	mark := s.primary.logMark(s.Lab)
	if err := errors.Join(s.primary.heal(ctx), s.revive(ctx, s.standby)); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	return s.bounded(mark, peer(st).OutOfSyncBytes)
}

// watched is one node alone, with softdog.
type watched struct {
	*Run
	n       *node
	ledger  records.Ledger
	ended   <-chan error
	armed   time.Time
	timeout time.Duration // of the watchdog, as the kernel has it
}

func (s *watched) steps() []step {
	return []step{
		{"a machine with a watchdog, a node alone", s.boot},
		{"it is armed for a term, and for no longer", s.terms},
		{"the agent is killed and is back in time", s.kill},
		{"SIGSTOP of the agent", s.stopped},
		{"the machine is on again", s.back},
	}
}

const (
	watchedLease  = time.Second
	watchedFreeze = time.Second
	watchedStop   = 2 * time.Second // of each of the two steps
	seedWatched   = 5
)

func (s *watched) boot(ctx context.Context) error {
	m, err := s.Lab.Add(vm.Spec{MemoryMiB: 512, Disks: []int64{smallDisk}})
	if err != nil {
		return err
	}
	s.n = &node{Machine: m}
	dir := s.n.dir(s.Lab)
	config := strings.NewReplacer("CLUSTER", cluster, "SOCKET", s.n.socket(), "DEVICE", device, "MOUNT", mountPoint,
		"LEASE", watchedLease.String(), "FREEZE", watchedFreeze.String(), "TIME", watchedStop.String()).Replace(`cluster: CLUSTER
node: a
listen: 127.0.0.1:7788
peers: []
volume: {device: /dev/vda}
nbd: {socket: SOCKET}
control: /run/tandem/a.sock
tls: {insecure: true}
witness: "file:./witness"
failover: {lease: LEASE, freeze: FREEZE, self_fence: reboot}
service:
- nbd: {device: DEVICE, connections: 1}
  timeout: TIME
- mount: {device: DEVICE, path: MOUNT, type: ext4}
  timeout: TIME
`)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "tandem.yaml"), []byte(config), 0o644)); err != nil {
		return err
	}
	if err := m.PowerOn(ctx); err != nil {
		return err
	}
	if _, err := m.Shell(ctx, "modprobe softdog"); err != nil {
		return err
	}
	if _, err := s.n.ctl(ctx, "init"); err != nil {
		return err
	}
	if err := s.dog(ctx, "inactive", "nobody serves"); err != nil {
		return err
	}
	if err := s.n.startAgent(ctx); err != nil {
		return err
	}
	if _, err := s.n.ctl(ctx, "promote"); err != nil {
		return err
	}
	if _, err := s.n.until(ctx, time.Minute, "attached", func(st control.Status) bool { return len(st.Service) == 2 && st.Service[0].State == "running" }); err != nil {
		return err
	}
	if _, err := m.Shell(ctx, filesystems()[0].mkfs+" "+device+" >&2"); err != nil {
		return err
	}
	return s.up(ctx)
}

func (s *watched) up(ctx context.Context) error {
	_, err := s.n.until(ctx, time.Minute, "primary with every step up", up)
	return err
}

// dog asserts the kernel's word for the watchdog. It is disarmed a moment after the last step's end
// or the role's change is seen.
func (s *watched) dog(ctx context.Context, want, why string) error {
	out, err := s.n.Shell(ctx, "cd /sys/class/watchdog/watchdog0; for i in {1..50}; do grep -qx "+want+" state && break; sleep 0.1; done; cat identity state")
	if err != nil {
		return err
	}
	return s.Assert(out == "Software Watchdog\n"+want, "%s: the watchdog is %s", why, want)
}

func (s *watched) terms(ctx context.Context) error {
	if err := s.dog(ctx, "active", "primary"); err != nil {
		return err
	}
	if _, err := s.n.ctl(ctx, "demote"); err != nil {
		return err
	}
	if err := s.dog(ctx, "inactive", "demoted"); err != nil {
		return err
	}
	if _, err := s.n.ctl(ctx, "promote"); err != nil {
		return err
	}
	if err := s.up(ctx); err != nil {
		return err
	}
	if err := s.n.stopAgent(ctx); err != nil {
		return err
	}
	if err := s.dog(ctx, "inactive", "the agent ends for a restart"); err != nil {
		return err
	}
	if err := s.n.startAgent(ctx); err != nil {
		return err
	}
	if err := s.up(ctx); err != nil {
		return err
	}
	if err := s.notAgain(ctx); err != nil {
		return err
	}
	s.armed = time.Now()
	if err := s.dog(ctx, "active", "primary again"); err != nil {
		return err
	}
	out, err := s.n.Shell(ctx, "cat /sys/class/watchdog/watchdog0/timeout; mkdir "+mountPoint+"/records")
	if err != nil {
		return err
	}
	if s.timeout, err = time.ParseDuration(out + "s"); err != nil {
		return err
	}
	const want = watchedLease + watchedFreeze + 2*watchedStop + 10*time.Second
	if err := s.Assert(s.timeout == want, "it waits %v: a lease, a freeze, the steps' time and 10 s", s.timeout); err != nil {
		return err
	}
	s.ended = s.writeRecords(ctx, s.n.Machine, mountPoint+"/records", seedWatched, io.Writer(&s.ledger))
	return s.acknowledged(ctx, &s.ledger, 10, s.ended)
}

// notAgain has an agent killed that does not go on as primary when it is back: the record is paused.
func (s *watched) notAgain(ctx context.Context) error {
	if _, err := s.n.ctl(ctx, "pause"); err != nil {
		return err
	}
	if _, err := s.n.Shell(ctx, fmt.Sprintf("kill -9 %d", s.n.pid)); err != nil {
		return err
	}
	if err := s.dog(ctx, "active", "the agent is killed"); err != nil {
		return err
	}
	if err := s.n.startAgent(ctx); err != nil {
		return err
	}
	if _, err := s.n.until(ctx, time.Minute, "Secondary with nothing running", func(st control.Status) bool {
		return st.Role == "Secondary" && len(st.Service) == 2 && st.Service[0].State == "stopped" && st.Service[1].State == "stopped"
	}); err != nil {
		return err
	}
	if err := s.dog(ctx, "inactive", "the next one has stopped what it left"); err != nil {
		return err
	}
	if _, err := s.n.ctl(ctx, "resume"); err != nil {
		return err
	}
	return s.up(ctx)
}

func (s *watched) kill(ctx context.Context) error {
	if _, err := s.n.Shell(ctx, fmt.Sprintf("kill -9 %d", s.n.pid)); err != nil {
		return err
	}
	if err := s.dog(ctx, "active", "the agent is killed"); err != nil {
		return err
	}
	if err := s.n.startAgent(ctx); err != nil {
		return err
	}
	before := s.ledger.Total()
	if err := s.up(ctx); err != nil {
		return err
	}
	for s.ledger.Total() == before || time.Since(s.armed) < s.timeout+time.Second {
		select {
		case err := <-s.ended:
			return fmt.Errorf("the writers ended: %w", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return s.Assert(true, "it is fed: %.0f s after it was armed, and with a killed agent in between, the machine is on; %d acknowledged fsyncs", time.Since(s.armed).Seconds(), s.ledger.Total())
}

func (s *watched) stopped(ctx context.Context) error {
	if rate, err := s.n.ClockRate(ctx); err != nil || rate < 0.95 || rate > 1.05 {
		return fmt.Errorf("%.3f seconds pass in a second: %w", rate, err)
	}
	said, err := os.Stat(s.n.Console())
	if err != nil {
		return err
	}
	if _, err := s.n.Shell(ctx, fmt.Sprintf("kill -STOP %d", s.n.pid)); err != nil {
		return err
	}
	at := time.Now()
	if err := s.n.WentOff(ctx, s.timeout+time.Minute); err != nil {
		return err
	}
	took := time.Since(at)
	s.n.pid = 0
	if err := <-s.ended; !errors.Is(err, vm.ErrOff) {
		return fmt.Errorf("the writers ended by themselves: %v", err)
	}
	console, err := os.ReadFile(s.n.Console())
	if err != nil {
		return err
	}
	// It was fed last with the last look at the record, which is due once in a lease.
	least, most := s.timeout-2*watchedLease, s.timeout+10*time.Second
	return s.Assert(took > least && took < most && strings.Contains(string(console[said.Size():]), "softdog: Initiating system reboot"),
		"the kernel has reset the machine %.1f s after the agent was stopped: more than %v, less than %v", took.Seconds(), least, most)
}

func (s *watched) back(ctx context.Context) error {
	if err := s.n.PowerOn(ctx); err != nil {
		return err
	}
	if err := s.n.startAgent(ctx); err != nil {
		return err
	}
	if err := s.up(ctx); err != nil {
		return err
	}
	r, err := checkRecords(ctx, s.n.Machine, mountPoint+"/records", seedWatched, &s.ledger)
	if err != nil {
		return err
	}
	return s.Assert(r.Acknowledged > 0, "it serves by itself, and all %d fsyncs that the writers were told of are there", r.Acknowledged)
}
