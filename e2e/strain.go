package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Short of memory, and random operations across takeovers.
func strainScenarios() []Scenario {
	return []Scenario{
		quietly(pairScenario("8-memory", "a primary of 512 MiB whose pages get dirty faster than its line carries them: no deadlock", 12*time.Minute,
			pairOptions{fs: "ext4", version: "4.2", alone: true, memoryMiB: 512}, func(p *pair) []step { return (&strain{pair: p}).memorySteps() })),
		pairScenario("9-random", "random operations on files over NFS, against a model of them, across takeovers and a move", 15*time.Minute,
			pairOptions{fs: "ext4", version: "4.2"}, func(p *pair) []step { return (&strain{pair: p}).randomSteps() }),
	}
}

type strain struct {
	*pair
	done  atomic.Int64 // operations
	again atomic.Int64 // of them, answered by a server that did not know that they were done
	ended chan error
	punch atomic.Bool
}

func (s *strain) memorySteps() []step {
	return []step{
		{"the agent is prepared for it", func(ctx context.Context) error { return s.protected(ctx, s.primary) }},
		{"a flood of dirty pages, and no memory", s.flood},
		{"the agent's threads, after it", func(ctx context.Context) error { return s.protected(ctx, s.primary) }},
		{"the copies are alike", s.audit},
	}
}

const (
	floodRate = "80mbit"
	leaveMiB  = 64               // of memory, by the eater
	slowest   = 45 * time.Second // without headway of the agent's
	answering = 10 * time.Second // of status, whatever the disk waits for

	// Less than this is what the probes write, not the flood.
	headway = 1 << 20
	// Dirty bytes at once: most of a second of the line.
	manyLeft = 8 << 20
)

// flood is judged by what goes on all the time: the agent writes, an fsync ends, status answers;
// and by what shows that there was need: pages were reclaimed, also by those who asked for memory.
func (s *strain) flood(ctx context.Context) error {
	long := 2 * time.Minute
	if s.full {
		long = 5 * time.Minute
	}
	n := s.primary
	if _, err := n.Shell(ctx, "tc qdisc add dev eth0 root tbf rate "+floodRate+" burst 64kb latency 400ms"); err != nil {
		return err
	}
	before, err := vmstat(ctx, n)
	if err != nil {
		return err
	}
	first, err := n.status(ctx)
	if err != nil {
		return err
	}
	eater, err := n.Start(ctx, fmt.Sprintf("exec e2e-guest eat %d >/e2e/%s/eat.log 2>&1", leaveMiB, n.Name))
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		ended <- n.Stream(ctx, fmt.Sprintf("exec fio --name=flood --directory=%s --size=128M --numjobs=1 --rw=randwrite --bs=64k --ioengine=psync --fallocate=none --time_based --runtime=%d >/e2e/%s/flood.log 2>&1",
			mountPoint, int(long.Seconds()), n.Name), io.Discard)
	}()
	end := time.Now().Add(long)
	probed := make(chan probes, 1)
	go func() { probed <- s.probe(ctx, n, end) }()
	var answer time.Duration
	var dirty int64
	written, at := first.IO.Write.Bytes, time.Now()
	for time.Now().Before(end) {
		out, err := n.Shell(ctx, "grep -E '^(Dirty|Writeback):' /proc/meminfo")
		if err != nil {
			return err
		}
		var kib int64
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			k, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return err
			}
			kib += k
		}
		dirty = max(dirty, kib<<10)
		began := time.Now()
		st, err := n.status(ctx)
		if err != nil {
			return err
		}
		answer = max(answer, time.Since(began))
		if st.Role != "Primary" || st.Epoch != first.Epoch || inSync(st) != "a,b" {
			return fmt.Errorf("%s is %s in epoch %d of {%s}", n.Name, st.Role, st.Epoch, inSync(st))
		}
		if st.IO.Write.Bytes >= written+headway {
			written, at = st.IO.Write.Bytes, time.Now()
		}
		if stood := time.Since(at); stood > slowest {
			return fmt.Errorf("the agent has written less than a MiB for %v", stood)
		}
		time.Sleep(time.Second)
	}
	after, err := vmstat(ctx, n)
	if err != nil {
		return err
	}
	last, err := n.status(ctx)
	if err != nil {
		return err
	}
	if _, err := n.Shell(ctx, fmt.Sprintf("kill %d", eater)); err != nil {
		s.Logf("  the eater was gone: %v", err) // killed for want of memory; what was reclaimed tells of it below
	}
	if _, err := n.Shell(ctx, "tc qdisc del dev eth0 root"); err != nil {
		return err
	}
	select {
	case err := <-ended:
		if err != nil {
			return fmt.Errorf("the flood met an error: %w", err)
		}
	case <-time.After(time.Minute):
		return errors.New("the flood does not end")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	probes := <-probed
	if probes.err != nil {
		return fmt.Errorf("fsync %d: %w", probes.count, probes.err)
	}
	if _, err := n.Shell(ctx, "rm -f "+mountPoint+"/probe "+mountPoint+"/flood*; sync -f "+mountPoint); err != nil {
		return err
	}
	out, err := n.Shell(ctx, "dmesg | grep -ciE 'i/o error|blocked for more than|killed process [0-9]+ .replagent' || true")
	if err != nil {
		return err
	}
	wrote := int64(last.IO.Write.Bytes - first.IO.Write.Bytes)
	// How long an fsync takes beside a flood is the filesystem's; that it ends is ours.
	if err := s.Assert(out == "0" && probes.count > 1 && answer < answering && wrote > 128<<20 && dirty > manyLeft,
		"in %v %.0f MiB went over a line of %s, at most %.0f MiB were dirty; %d fsyncs ended, the slowest after %.1f s, the slowest status took %.1f s; no error, no task that hung", long, mib(wrote), floodRate, mib(dirty), probes.count, probes.slowest.Seconds(), answer.Seconds()); err != nil {
		return err
	}
	stolen, direct := after["pgsteal_kswapd"]+after["pgsteal_direct"]-before["pgsteal_kswapd"]-before["pgsteal_direct"], after["pgscan_direct"]-before["pgscan_direct"]
	return s.Assert(stolen > 0 && direct > 0, "memory was short: %d pages were reclaimed, and %d looked at by those who asked for memory themselves", stolen, direct)
}

// probes are fsyncs beside the flood.
type probes struct {
	count   int
	slowest time.Duration
	err     error
}

// probe does them one after the other. Whoever asks for status does not wait for them.
func (s *strain) probe(ctx context.Context, n *node, end time.Time) (p probes) {
	for time.Now().Before(end) {
		began := time.Now()
		if _, p.err = n.Shell(ctx, "dd if=/dev/zero of="+mountPoint+"/probe bs=4k count=1 conv=fsync status=none"); p.err != nil {
			return p
		}
		p.count++
		p.slowest = max(p.slowest, time.Since(began))
		time.Sleep(time.Second)
	}
	return p
}

func vmstat(ctx context.Context, n *node) (map[string]int64, error) {
	out, err := n.Shell(ctx, "cat /proc/vmstat")
	if err != nil {
		return nil, err
	}
	all := make(map[string]int64)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 2 {
			if all[f[0]], err = strconv.ParseInt(f[1], 10, 64); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func (s *strain) randomSteps() []step {
	return []step{
		{"random operations on the client", s.operate},
		{"power cut of the primary", s.takeover},
		{"a planned move", s.move},
		{"power cut of the primary", s.takeover},
		{"the rest of the operations, and everything is read back", s.endRandom},
	}
}

const (
	randomSeed       = 20
	randomOperations = 20000 // at least

	// A server that takes over does not know what the other one did and could not say: a rename or
	// a removal under way is told that there is no such name. Each worker has one under way.
	handovers = 3

	enough = "/run/fileops-enough" // on the client, when there has been every takeover
)

func (s *strain) operate(ctx context.Context) error {
	if _, err := s.client.Shell(ctx, "rm -f "+enough); err != nil {
		return err
	}
	r, w := io.Pipe()
	s.ended = make(chan error, 1)
	told := make(chan struct{}) // the last line is counted
	go func() {
		err := s.client.Stream(ctx, fmt.Sprintf("exec e2e-guest fileops %s/random %d %d %s %d", clientMount, randomSeed, randomOperations, enough, handovers), w)
		_ = w.Close()
		<-told
		s.ended <- err
	}()
	go func() {
		defer close(told)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var n int64
			if k, _ := fmt.Sscanf(lines.Text(), "op %d", &n); k == 1 {
				s.done.Store(n)
			}
			if strings.HasPrefix(lines.Text(), "repeated ") {
				s.Logf("  %s, at operation %d", lines.Text(), s.done.Load())
				s.again.Add(1)
			}
			if lines.Text() == "punch true" {
				s.punch.Store(true)
			}
		}
	}()
	return s.reach(ctx, randomOperations/5)
}

func (s *strain) reach(ctx context.Context, n int64) error {
	for said := time.Now(); s.done.Load() < n; {
		if time.Since(said) > 15*time.Second {
			said = time.Now()
			s.Logf("  %d operations so far", s.done.Load())
		}
		select {
		case err := <-s.ended:
			return fmt.Errorf("the operations ended after %d: %w", s.done.Load(), err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// takeover by a power cut, and the dead one is back when it is needed again.
func (s *strain) takeover(ctx context.Context) error {
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	at, old, heir := s.done.Load(), s.primary, s.standby
	s.cutPower(old)
	now, err := heir.until(ctx, time.Minute, "primary", up)
	if err != nil {
		return err
	}
	if err := s.revive(ctx, old); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if err := s.Assert(s.primary == heir && now.Epoch == st.Epoch+1, "%s took over from %s at operation %d, in epoch %d after %d", heir.Name, old.Name, at, now.Epoch, st.Epoch); err != nil {
		return err
	}
	return s.reach(ctx, at+randomOperations/5)
}

func (s *strain) move(ctx context.Context) error {
	at, heir := s.done.Load(), s.standby
	if _, err := heir.ctl(ctx, "promote"); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if err := s.Assert(s.primary == heir, "moved to %s at operation %d", heir.Name, at); err != nil {
		return err
	}
	return s.reach(ctx, at+randomOperations/5)
}

func (s *strain) endRandom(ctx context.Context) error {
	if _, err := s.client.Shell(ctx, "touch "+enough); err != nil {
		return err
	}
	select {
	case err := <-s.ended:
		if err != nil {
			return fmt.Errorf("after %d operations: %w", s.done.Load(), err)
		}
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%d operations so far", s.done.Load()), context.Cause(ctx))
	}
	if err := s.Assert(s.done.Load() >= randomOperations && s.punch.Load(), "%d operations of seed %d, holes among them: every read was what the model has, and so was everything each time that it was read back, and at the end; %d renames and removals were done, but answered by the next server", s.done.Load(), randomSeed, s.again.Load()); err != nil {
		return err
	}
	if _, err := s.client.Shell(ctx, "rm -r "+clientMount+"/random"); err != nil {
		return err
	}
	return s.audit(ctx)
}
