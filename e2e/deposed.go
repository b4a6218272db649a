package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/e2e/records"
	"tandem/e2e/vm"
)

// deposed: an agent is killed under a mounted filesystem, another node takes over, and what waits in the kernel for the
// dead one must fail when it is back, not be written over what the other has written since. Both nodes are in one
// machine, each with its disk and its device.
type deposed struct {
	*Run
	fs filesystem
	m  *vm.Machine

	ledger records.Ledger
	ended  chan error
	pid    int // of a's agent
}

func deposeds() []Scenario {
	return []Scenario{{
		ID:    "7-kill-deposed",
		Name:  "agent killed, another node takes over: what waited for the dead one fails",
		Limit: 6 * time.Minute,
		begin: func(r *Run) []step { return (&deposed{Run: r, fs: filesystems()[0]}).steps() },
	}}
}

func (s *deposed) steps() []step {
	return []step{
		{"boot a machine with two disks", s.boot},
		{"two nodes, first resync, a filesystem on a's device", s.bringUp},
		{"kill a's agent with an fsync in flight, promote b", s.depose},
		{"b has every acknowledged fsync, and writes", s.takeOver},
		{"a is back as Secondary", s.comeBack},
	}
}

const (
	smallDisk   = 128 << 20
	seedDeposed = 4
	markOfB     = "written by b alone"
)

func deposedConfiguration(name string) string {
	own, peer, port, peerPort, disk, dev := "a", "b", "7788", "7789", "vda", "nbd0"
	if name == "b" {
		own, peer, port, peerPort, disk, dev = "b", "a", "7789", "7788", "vdb", "nbd1"
	}
	// The step's time is what is left to unmount by hand.
	return strings.NewReplacer("CLUSTER", cluster, "OWN", own, "PEERNODE", peer, "PEERPORT", peerPort, "PORT", port, "DISK", disk, "DEVICE", dev, "LEASE", lease.String()).Replace(`cluster: CLUSTER
node: OWN
listen: 127.0.0.1:PORT
peers: [{node: PEERNODE, address: "127.0.0.1:PEERPORT"}]
volume: {device: /dev/DISK}
nbd: {socket: /run/tandem/OWN.nbd}
control: /run/tandem/OWN.sock
tls: {insecure: true}
witness: "file:/run/tandem/witness"
failover: {auto: false, lease: LEASE}
service:
  - {nbd: {device: /dev/DEVICE, connections: 2}, timeout: 60s}
`)
}

func (s *deposed) boot(ctx context.Context) (err error) {
	if s.m, err = s.Lab.Add(vm.Spec{MemoryMiB: 1024, Disks: []int64{smallDisk, smallDisk}}); err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		dir := filepath.Join(s.Lab.Share, name)
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "tandem.yaml"), []byte(deposedConfiguration(name)), 0o644)); err != nil {
			return err
		}
	}
	return s.m.PowerOn(ctx)
}

func (s *deposed) ctl(ctx context.Context, name, args string) (string, error) {
	return s.m.Shell(ctx, "replctl --config /e2e/"+name+"/tandem.yaml "+args)
}

func (s *deposed) start(ctx context.Context, name string) (int, error) {
	return s.m.Start(ctx, fmt.Sprintf("exec replagent --config /e2e/%s/tandem.yaml >>/e2e/%[1]s/agent.log 2>&1", name))
}

func (s *deposed) until(ctx context.Context, name string, limit time.Duration, what string, ok func(control.Status) bool) error {
	end := time.Now().Add(limit)
	for {
		var st control.Status
		out, err := s.ctl(ctx, name, "status --json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &st)
		}
		if err == nil && ok(st) {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return fmt.Errorf("%s: not %s within %v: %s, %v", name, what, limit, out, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func serving(st control.Status) bool {
	return st.Role == "Primary" && len(st.Service) == 1 && st.Service[0].State == "running"
}

func (s *deposed) bringUp(ctx context.Context) (err error) {
	if _, err := s.m.Shell(ctx, "mkdir -p /run/tandem && modprobe nbd nbds_max=2"); err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		if _, err := s.ctl(ctx, name, "init"); err != nil {
			return err
		}
		pid, err := s.start(ctx, name)
		if err != nil {
			return err
		}
		if name == "a" {
			s.pid = pid
		}
		if err := s.until(ctx, name, 20*time.Second, "there", func(control.Status) bool { return true }); err != nil {
			return err
		}
	}
	if _, err := s.ctl(ctx, "a", "promote"); err != nil {
		return err
	}
	if _, err := s.ctl(ctx, "a", "wait-sync --timeout 90s"); err != nil {
		return err
	}
	if err := s.until(ctx, "a", 20*time.Second, "Primary with its device", serving); err != nil {
		return err
	}
	_, err = s.m.Shell(ctx, s.fs.mkfs+" /dev/nbd0 >&2 && "+s.fs.mount("/dev/nbd0")+" && mkdir "+mountPoint+"/records")
	return err
}

func (s *deposed) depose(ctx context.Context) error {
	s.ended = make(chan error, 1)
	go func() {
		s.ended <- s.m.Stream(ctx, fmt.Sprintf("exec e2e-guest write %s/records %d 1 100000 1ms", mountPoint, seedDeposed), &s.ledger)
	}()
	for s.ledger.Total() < 30 {
		select {
		case err := <-s.ended:
			return fmt.Errorf("the writer ended: %w", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if _, err := s.m.Shell(ctx, fmt.Sprintf("kill -9 %d", s.pid)); err != nil {
		return err
	}
	if _, err := s.ctl(ctx, "b", "promote"); err != nil {
		return err
	}
	return s.until(ctx, "b", 20*time.Second, "Primary with its device", serving)
}

func (s *deposed) takeOver(ctx context.Context) error {
	out, err := s.m.Shell(ctx, fmt.Sprintf("mkdir -p /srv/b && mount -t %s /dev/nbd1 /srv/b && e2e-guest check /srv/b/records %d %d && echo '%s' >/srv/b/mark && sync -f /srv/b", s.fs.name, seedDeposed, s.ledger.Total(), markOfB))
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	select {
	case err := <-s.ended:
		return fmt.Errorf("the writer on a ended before a was back: %w", err)
	default:
	}
	return s.Assert(true, "b has all %d fsyncs that a acknowledged, while one more waits on a's device", s.ledger.Total())
}

func (s *deposed) comeBack(ctx context.Context) error {
	before := s.ledger.Total()
	if _, err := s.start(ctx, "a"); err != nil {
		return err
	}
	var ended error
	select {
	case ended = <-s.ended:
	case <-time.After(30 * time.Second):
		return errors.New("what waited for a waits on")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := s.Assert(errors.Is(ended, vm.ErrFailed) && s.ledger.Total() == before, "the fsync that waited got an error, none was acknowledged: %s", ended); err != nil {
		return err
	}
	if _, err := s.m.Shell(ctx, "for i in {1..50}; do umount "+mountPoint+" && exit 0; sleep 0.1; done; exit 1"); err != nil {
		return err
	}
	if err := s.until(ctx, "a", 60*time.Second, "an UpToDate Secondary whose step is stopped", func(st control.Status) bool {
		return st.Role == "Secondary" && st.Disk == "UpToDate" && len(st.Service) == 1 && st.Service[0].State == "stopped"
	}); err != nil {
		return err
	}
	if _, err := s.m.Shell(ctx, "test ! -e /sys/block/nbd0/pid"); err != nil {
		return err
	}
	out, err := s.m.Shell(ctx, fmt.Sprintf("umount /srv/b && %s /dev/nbd1 >&2 && mount -t %s /dev/nbd1 /srv/b && cat /srv/b/mark && e2e-guest check /srv/b/records %d %d >&2", s.fs.fsck, s.fs.name, seedDeposed, before))
	if err != nil {
		return err
	}
	return s.Assert(out == markOfB, "a follows b and its device is detached; b's filesystem is clean and has what both wrote")
}
