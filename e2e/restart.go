package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem/agent/control"
	"tandem/e2e/records"
	"tandem/e2e/vm"
)

// Restarts of the agent under a mounted filesystem: a pause, and never an I/O error.
func restarts() []Scenario {
	return []Scenario{{
		ID:    "7-device",
		Name:  "agent killed and restarted under a local ext4 and fio verify: a pause, no error",
		Limit: 10 * time.Minute,
		quiet: true,
		begin: func(r *Run) []step { return (&restart{Run: r, fs: filesystems()[0]}).steps() },
	}}
}

const (
	rounds = 3

	// The longest pauses (issue 4): after a kill the kernel's request timer may have to run out, after a SIGTERM nothing
	// has been left without a reply.
	killPause = 15 * time.Second
	termPause = 2 * time.Second

	seedRestart = 3
)

type restart struct {
	*Run
	fs filesystem
	n  *node

	ledger  records.Ledger
	pauses  pauses
	ended   <-chan error // of the writers
	stop    context.CancelFunc
	fioDone chan error
	fioOut  strings.Builder
}

func (s *restart) steps() []step {
	return []step{
		{"boot a machine", s.boot},
		{"init, agent, promote: the step nbd attaches the device", s.bringUp},
		{"mkfs, mount, writers, fio", s.load},
		{"kill -9 and restart", s.kills},
		{"SIGTERM and restart", s.terms},
		{"stop the load, check what it wrote", s.check},
		{"demote: the device goes when nothing has it open", s.demote},
		{"the host goes down: the device goes with it", s.shutdown},
	}
}

func (s *restart) boot(ctx context.Context) error {
	m, err := s.Lab.Add(vm.Spec{MemoryMiB: 768, Disks: []int64{diskSize}})
	if err != nil {
		return err
	}
	s.n = &node{Machine: m}
	dir := s.n.dir(s.Lab)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "tandem.yaml"), []byte(aloneConfiguration(s.n)), 0o644)); err != nil {
		return err
	}
	return m.PowerOn(ctx)
}

// aloneConfiguration is that of a node without peers, whose only step is the device.
func aloneConfiguration(n *node) string {
	return strings.NewReplacer("CLUSTER", cluster, "NODE", n.Name, "SOCKET", n.socket(), "DEVICE", device, "CONNECTIONS", fmt.Sprint(connections)).Replace(`cluster: CLUSTER
node: NODE
listen: 127.0.0.1:7788
peers: []
volume: {device: /dev/vda}
nbd: {socket: SOCKET}
control: /run/tandem/NODE.sock
tls: {insecure: true}
witness: "file:/run/tandem/witness"
service:
  - {nbd: {device: DEVICE, connections: CONNECTIONS}}
`)
}

// attached waits until the step holds, as status shows it.
func (s *restart) attached(ctx context.Context) error {
	_, err := s.n.until(ctx, 30*time.Second, "Primary with its device attached", func(st control.Status) bool {
		return st.Role == "Primary" && len(st.Service) == 1 && st.Service[0].State == "running"
	})
	return err
}

func (s *restart) bringUp(ctx context.Context) error {
	if _, err := s.n.Shell(ctx, "mkdir -p /run/tandem && modprobe nbd nbds_max=2"); err != nil {
		return err
	}
	if _, err := s.n.ctl(ctx, "init"); err != nil {
		return err
	}
	if err := s.n.startAgent(ctx); err != nil {
		return err
	}
	if _, err := s.n.ctl(ctx, "promote"); err != nil {
		return err
	}
	if err := s.attached(ctx); err != nil {
		return err
	}
	out, err := s.n.Shell(ctx, "cd /sys/block/nbd0; cat backend queue/write_cache queue/fua queue/logical_block_size; ls mq | wc -l; ss -xH state connected src "+s.n.socket()+" | wc -l; blockdev --getsize64 "+device)
	if err != nil {
		return err
	}
	st, err := s.n.status(ctx)
	if err != nil {
		return err
	}
	queues := min(connections, s.Lab.CPUs())
	want := fmt.Sprintf("tandem/%s/%s\nwrite back\n1\n512\n%d\n%d\n%d", cluster, s.n.Name, queues, connections, st.Volume.SizeBytes)
	if err := s.Assert(out == want, "the kernel's device is known as ours, has the volume's size, a write cache, FUA, %d queues and %d connections: %s",
		queues, connections, strings.ReplaceAll(out, "\n", ", ")); err != nil {
		return err
	}
	return s.protected(ctx, s.n)
}

// protected asserts that the agent cannot wait for its own writeback: every thread has the flag, memory is locked.
func (r *Run) protected(ctx context.Context, n *node) error {
	// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE of linux/sched.h, in field 9 of stat. The name in field 2 has no blank.
	out, err := n.Shell(ctx, fmt.Sprintf(`cd /proc/%d
		n=0; for t in task/*/stat; do read -r -a f <$t; (( (f[8] & 0x80000) != 0 && (f[8] & 0x100000) != 0 )) || { echo "$t has flags ${f[8]}" >&2; exit 1; }; n=$((n+1)); done
		grep -q '^VmLck:.* [1-9][0-9]* kB' status || { grep VmLck status >&2; exit 1; }
		echo $n`, n.pid))
	if err != nil {
		return err
	}
	return r.Assert(out != "0", "IO_FLUSHER on all %s threads of the agent, its memory is locked", out)
}

func (s *restart) load(ctx context.Context) error {
	if _, err := s.n.Shell(ctx, s.fs.mkfs+" "+device+" >&2 && "+s.fs.mount(device)+" && mkdir "+mountPoint+"/fio "+mountPoint+"/records"); err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	s.stop = stop
	ended := make(chan error, 1)
	go func() {
		ended <- s.n.Stream(writing, fmt.Sprintf("exec e2e-guest write %s/records %d 1 100000 20ms", mountPoint, seedRestart), io.MultiWriter(&s.ledger, &s.pauses))
	}()
	s.ended = ended
	s.fioDone = make(chan error, 1)
	go func() {
		// Each round writes all and reads all back, past the page cache.
		s.fioDone <- s.n.Stream(ctx, "while [ ! -e /run/enough ]; do "+fioJob+"--rate_iops=100 >/run/fio.out || { cat /run/fio.out >&2; exit 1; }; echo round; done", &s.fioOut)
	}()
	return s.progress(ctx, 20)
}

// progress waits for n more acknowledged records.
func (s *restart) progress(ctx context.Context, n int) error {
	from := s.ledger.Total()
	for end := time.Now().Add(time.Minute); s.ledger.Total() < from+n; {
		select {
		case err := <-s.ended:
			return fmt.Errorf("the writer ended at %d acknowledged records: %w", s.ledger.Total(), err)
		case err := <-s.fioDone:
			return fmt.Errorf("fio ended: %w", err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("no %d more acknowledged records within a minute", n)
		}
	}
	return nil
}

// again ends the agent and starts another as soon as it is gone, all in the guest. It returns the longest time that the
// writer waited, and the part of it that the new program took to begin: nothing on a machine, and seconds in an emulated
// one on a busy host.
func (s *restart) again(ctx context.Context, signal string) (pause, begun time.Duration, err error) {
	s.pauses.begin()
	s.n.pid, err = s.n.Start(ctx, fmt.Sprintf("kill -%s %d; while kill -0 %[2]d 2>/dev/null; do sleep 0.02; done; echo $EPOCHREALTIME >/e2e/%[3]s/down; exec replagent --config %[4]s >>/e2e/%[3]s/agent.log 2>&1",
		signal, s.n.pid, s.n.Name, s.n.config()))
	if err != nil {
		return 0, 0, err
	}
	if err := s.attached(ctx); err != nil {
		return 0, 0, err
	}
	if err := s.progress(ctx, 10); err != nil {
		return 0, 0, err
	}
	down, err := os.ReadFile(filepath.Join(s.n.dir(s.Lab), "down"))
	if err != nil {
		return 0, 0, err
	}
	log, err := os.ReadFile(filepath.Join(s.n.dir(s.Lab), "agent.log"))
	if err != nil {
		return 0, 0, err
	}
	begun, err = beginning(string(down), string(log))
	return s.pauses.end(), begun, err
}

// beginning is the time from down, as bash's EPOCHREALTIME, to the last "agent started" of a log.
func beginning(down, log string) (time.Duration, error) {
	sec, usec, ok := strings.Cut(strings.TrimSpace(down), ".")
	s, err1 := strconv.ParseInt(sec, 10, 64)
	us, err2 := strconv.ParseInt(usec, 10, 64)
	if err := errors.Join(err1, err2); err != nil || !ok {
		return 0, fmt.Errorf("%q is no time: %w", down, err)
	}
	t, err := logTime(log, ` msg="agent started"`)
	if err != nil {
		return 0, err
	}
	return t.Sub(time.Unix(s, us*1000)), nil
}

// logTime is when the last line of an agent's log that has mark was written, by the clock of its
// machine.
func logTime(log, mark string) (time.Time, error) {
	i := strings.LastIndex(log, mark)
	if i < 0 {
		return time.Time{}, fmt.Errorf("the log has no %q", mark)
	}
	line := log[strings.LastIndex(log[:i], "\n")+1:]
	text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
	return time.Parse(time.RFC3339Nano, text)
}

func (s *restart) repeat(ctx context.Context, signal string, limit time.Duration) error {
	var waited, begun []string
	for range rounds {
		pause, began, err := s.again(ctx, signal)
		if err != nil {
			return err
		}
		if pause-began >= limit {
			return s.Assert(false, "SIG%s and restart: a pause of %.1f s, of which the program took %.1f s to begin: less than %v", signal, pause.Seconds(), began.Seconds(), limit)
		}
		waited, begun = append(waited, fmt.Sprintf("%.1f", pause.Seconds())), append(begun, fmt.Sprintf("%.1f", began.Seconds()))
		if err := s.quiet(ctx); err != nil {
			return err
		}
	}
	return s.Assert(true, "SIG%s and restart, %d times: no I/O error, pauses of %s s, of which the program took %s s to begin; less than %v without that",
		signal, rounds, strings.Join(waited, ", "), strings.Join(begun, ", "), limit)
}

func (s *restart) kills(ctx context.Context) error { return s.repeat(ctx, "KILL", killPause) }
func (s *restart) terms(ctx context.Context) error { return s.repeat(ctx, "TERM", termPause) }

// quiet asserts that the kernel has seen no error, and that the device is served by as many connections as before.
func (s *restart) quiet(ctx context.Context) error {
	out, err := s.n.Shell(ctx, "dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|aborted journal|lost .*write' | head -5; ss -xH state connected src "+s.n.socket()+" | wc -l")
	if err != nil {
		return err
	}
	if out != fmt.Sprint(connections) {
		return fmt.Errorf("errors of the kernel and connections of the device: %s", out)
	}
	return nil
}

func (s *restart) check(ctx context.Context) error {
	if err := s.protected(ctx, s.n); err != nil { // the last of seven lives
		return err
	}
	if _, err := s.n.Shell(ctx, "touch /run/enough"); err != nil {
		return err
	}
	select {
	case err := <-s.fioDone:
		if err != nil {
			return fmt.Errorf("fio: %w", err)
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.stop()
	if err := <-s.ended; !errors.Is(err, context.Canceled) {
		return fmt.Errorf("the writer ended by itself: %v", err)
	}
	if err := s.quiet(ctx); err != nil {
		return err
	}
	n := strings.Count(s.fioOut.String(), "round")
	if err := s.Assert(n > 0, "%d rounds of fio, each verified, without an error", n); err != nil {
		return err
	}
	// What is in the page cache proves nothing.
	if _, err := s.n.Shell(ctx, "umount "+mountPoint+" && "+s.fs.fsck+" "+device+" >&2 && "+s.fs.mount(device)); err != nil {
		return err
	}
	out, err := s.n.Shell(ctx, fmt.Sprintf("e2e-guest check %s/records %d %d", mountPoint, seedRestart, s.ledger.Total()))
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return s.Assert(true, "all %d fsyncs acknowledged over %d lives of the agent are there; %s is clean", s.ledger.Total(), 1+2*rounds, s.fs.fsck)
}

func (s *restart) demote(ctx context.Context) error {
	// Something that was mounted by hand keeps the device, and the node says so and goes on.
	_, err := s.n.ctl(ctx, "demote")
	held := errors.Is(err, vm.ErrFailed) && strings.Contains(err.Error(), "the device is still in use")
	_, e := s.n.Shell(ctx, "test -e /sys/block/nbd0/pid && echo still >"+mountPoint+"/still && sync -f "+mountPoint+" && umount "+mountPoint)
	if err := s.Assert(held && e == nil, "while something has it mounted, demote says so and fails, and what is mounted goes on"); err != nil {
		return errors.Join(err, e)
	}
	if err := s.attached(ctx); err != nil { // it is still the primary
		return err
	}
	if _, err := s.n.ctl(ctx, "demote"); err != nil {
		return err
	}
	_, err = s.n.Shell(ctx, "test ! -e /sys/block/nbd0/pid && test ! -e /sys/block/nbd0/backend")
	return s.Assert(err == nil, "unmounted, demote detaches it")
}

// shutdown ends the agent as on a host that goes down, as systemd would say if it were here.
func (s *restart) shutdown(ctx context.Context) error {
	if _, err := s.n.ctl(ctx, "promote"); err != nil {
		return err
	}
	if err := s.attached(ctx); err != nil {
		return err
	}
	if _, err := s.n.Shell(ctx, `mkdir -p /run/systemd/system && printf '#!/bin/sh\necho stopping\n' >/run/e2e/systemctl && chmod +x /run/e2e/systemctl`); err != nil {
		return err
	}
	if err := s.n.stopAgent(ctx); err != nil {
		return err
	}
	_, err := s.n.Shell(ctx, "test ! -e /sys/block/nbd0/pid")
	return s.Assert(err == nil, "SIGTERM while the host goes down detaches the device, which a restart left attached")
}

// pauses is the longest time without an acknowledgement, of what is written to it.
type pauses struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
}

func (p *pauses) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.last.IsZero() {
		p.longest = max(p.longest, now.Sub(p.last))
	}
	p.last = now
	return len(b), nil
}

func (p *pauses) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.longest = 0
}

// end includes a pause that has not ended.
func (p *pauses) end() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.longest, time.Since(p.last))
}
