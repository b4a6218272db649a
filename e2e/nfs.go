package e2e

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tandem/e2e/vm"
)

// The scenarios of an NFS client whose server dies. The list of steps does everything; the
// client does nothing but wait.
func nfsScenarios() []Scenario {
	v42, v3 := pairOptions{fs: "ext4", version: "4.2"}, pairOptions{fs: "xfs", version: "3"}
	lasting := v42
	lasting.nfsLease = time.Minute
	one := func(id, name string, o pairOptions, steps func(*takeover) []step) Scenario {
		return pairScenario(id, name, 10*time.Minute, o, func(p *pair) []step { return steps(&takeover{pair: p}) })
	}
	return []Scenario{
		one("2-v3", "an NFS v3 client of XFS writes with fsync, power cut of its server: the same mount goes on", v3, (*takeover).steps),
		one("2-locks-v3", "locks that an NFS v3 client held before a power cut of its server are reclaimed", v3, (*takeover).lockSteps),
		one("2-v42", "an NFS v4.2 client writes with fsync, power cut of its server: the same mount goes on", v42, (*takeover).steps),
		one("2-locks-v42", "locks that an NFS v4.2 client held before a power cut of its server are reclaimed", v42, (*takeover).lockSteps),
		quietly(one("2-tickle", "the client sends again every 12 s only by the time that somebody takes over: it is told to connect anew", lasting, (*takeover).tickleSteps)),
	}
}

type takeover struct {
	*pair
	load  *load
	cut   time.Time     // of the primary's power
	first time.Duration // from then to the client's first fsync
}

func (s *takeover) steps() []step {
	return []step{
		{"the server is as its config has it", s.settings},
		{"the client writes", s.begin},
		{"power cut of the primary, the standby takes over, the client goes on", s.powerCut},
		{"every acknowledged record is there", s.check},
		{"the dead one is resynced, both are alike", s.end},
		{"moved to it, nothing is left behind", s.move},
	}
}

// settings asks the kernel, and rpcbind.
func (s *takeover) settings(ctx context.Context) error {
	const script = "cd /proc/fs/nfsd; cat nfsv4leasetime nfsv4gracetime threads; grep -o '[+-]3' versions; grep -o '[+-]4.2' versions; dmesg | grep -c 'NFSD: Using nfsdcld client tracking'; hostname"
	if s.version == "3" {
		out, err := s.primary.Shell(ctx, script+"; cat /proc/sys/fs/nfs/nlm_grace_period; rpcinfo -p 127.0.0.1 | awk '$3==\"tcp\" && $2>=3 || $1==100024 && $3==\"tcp\" {print $1\":\"$4}' | sort -u | grep -v 100227 | tr '\\n' ' '")
		if err != nil {
			return err
		}
		want := fmt.Sprintf("%d\n%d\n32\n+3\n-4.2\n%s\n%d\n100000:111 100003:2049 100005:20048 100021:32803 100024:32765", int(nfsLease.Seconds()), int(nfsGrace.Seconds()), s.primary.Name, int(nfsGrace.Seconds()))
		out = strings.Replace(strings.Replace(out, "\n0\n", "\n", 1), "\n1\n", "\n", 1) // nfsdcld is asked where version 4 is
		return s.Assert(out == want, "grace, threads and version are the config's, and so are the ports of NFS, mountd, lockd and statd: %s", strings.ReplaceAll(out, "\n", ", "))
	}
	out, err := s.primary.Shell(ctx, script)
	if err != nil {
		return err
	}
	want := fmt.Sprintf("%d\n%d\n32\n-3\n+4.2\n1\n%s", int(nfsLease.Seconds()), int(nfsGrace.Seconds()), s.primary.Name)
	return s.Assert(out == want, "lease, grace, threads and versions are the config's, clients are recorded by nfsdcld, the machine keeps its name: %s", strings.ReplaceAll(out, "\n", ", "))
}

func (s *takeover) begin(ctx context.Context) (err error) {
	s.load, err = s.writeOnClient(ctx, 40)
	return err
}

func (s *takeover) powerCut(ctx context.Context) error {
	if err := s.steady(ctx); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	old, heir := s.primary, s.standby
	before, err := old.status(ctx)
	if err != nil {
		return err
	}
	mark := heir.logMark(s.Lab)
	s.cut = s.cutPower(old)
	first, _, err := s.next(ctx, s.load, s.cut)
	if err != nil {
		return err
	}
	s.first = first
	st, err := s.tookOver(ctx, heir, before.Epoch)
	if err != nil {
		return err
	}
	limit := 20 * time.Second // issue 4
	if s.aws != "" {
		// What tells the client to connect anew may come before the network has followed EC2, and
		// is lost then: it connects anew when it sends again, after pauses that double.
		limit = 30 * time.Second
	}
	if err := s.Assert(inSync(st) == heir.Name && first < limit, "%s is primary in epoch %d after %d; the client's first fsync after the cut took %.1f s, less than %v",
		heir.Name, st.Epoch, before.Epoch, first.Seconds(), limit); err != nil {
		return err
	}
	log, err := heir.logSince(s.Lab, mark)
	if err != nil {
		return err
	}
	if err := s.Assert(strings.Contains(log, `told to connect anew" connections=1`), "%s knew from the volume of the client's connection, and told it to connect anew", heir.Name); err != nil {
		return err
	}
	return s.more(ctx, s.load, 40)
}

func (s *takeover) check(ctx context.Context) error { return s.verify(ctx, s.load) }

func (s *takeover) end(ctx context.Context) error {
	if err := s.drop(ctx, s.load); err != nil {
		return err
	}
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	return s.audit(ctx)
}

func (s *takeover) audited(ctx context.Context) error {
	if err := s.drop(ctx, s.load); err != nil {
		return err
	}
	return s.audit(ctx)
}

func (s *takeover) move(ctx context.Context) error {
	old := s.primary
	before, err := old.status(ctx)
	if err != nil {
		return err
	}
	if _, err := s.standby.ctl(ctx, "promote"); err != nil {
		return err
	}
	if err := s.bare(ctx, old); err != nil {
		return err
	}
	_, err = s.tookOver(ctx, s.standby, before.Epoch)
	return err
}

func (s *takeover) tickleSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"power cut of the primary; the standby cannot read the record", s.silence},
		{"it can, and takes over", s.tickle},
		{"every acknowledged record is there", s.check},
		{"the dead one is resynced, both are alike", s.end},
	}
}

const (
	backedOff = 10 * time.Second
	tickled   = 2 * time.Second // issue 4: from the address to the first write
)

// silence lasts until the client sends again after backedOff at the earliest.
func (s *takeover) silence(ctx context.Context) error {
	if err := errors.Join(s.standby.deaf(ctx, vm.HostDataMAC()), s.standby.silence(ctx, vm.HostDataMAC())); err != nil {
		return err
	}
	s.cutPower(s.primary)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		out, err := s.client.Shell(ctx, "ss -tinH dst "+serviceAddress+":2049 | grep -o 'rto:[0-9]*'")
		if err != nil {
			return err
		}
		ms, err := strconv.Atoi(strings.TrimPrefix(out, "rto:"))
		if err != nil {
			return fmt.Errorf("the client's connection: %q: %w", out, err)
		}
		if rto := time.Duration(ms) * time.Millisecond; rto >= backedOff {
			return s.Assert(true, "the client's next retransmission comes %v after its last", rto)
		}
	}
	return errors.New("the client's retransmissions do not back off")
}

func (s *takeover) tickle(ctx context.Context) error {
	heir := s.standby
	before, err := heir.status(ctx)
	if err != nil {
		return err
	}
	gaveUp, err := s.gaveUp(ctx)
	if err != nil {
		return err
	}
	mark := heir.logMark(s.Lab)
	if err := heir.heal(ctx); err != nil {
		return err
	}
	_, acks, err := s.next(ctx, s.load, time.Now())
	if err != nil {
		return err
	}
	first := time.Now()
	if _, err := s.tookOver(ctx, heir, before.Epoch); err != nil {
		return err
	}
	log, err := heir.logSince(s.Lab, mark)
	if err != nil {
		return err
	}
	at, err := logTime(log, "service step vip: start took")
	if err != nil {
		return err
	}
	by, give, err := ahead(ctx, heir.Machine)
	if err != nil {
		return err
	}
	took := first.Sub(at.Add(-by))
	if err := s.Assert(took+give < tickled && strings.Contains(log, `told to connect anew" connections=1`),
		"%d fsyncs, and the next one %.2f s (± %.2f s) after the address was up on %s, which told the client to connect anew: less than %v", acks, took.Seconds(), give.Seconds(), heir.Name, tickled); err != nil {
		return err
	}
	after, err := s.gaveUp(ctx)
	if err != nil {
		return err
	}
	return s.Assert(after == gaveUp, "until then the client kept its connection: it has not given it up by itself")
}

// gaveUp is how many connections the client has ended because nobody answered. One that connects
// anew by itself does that when its SYN is sent again, and nobody can hurry it.
func (s *takeover) gaveUp(ctx context.Context) (string, error) {
	return s.client.Shell(ctx, "nstat -asz TcpExtTCPAbortOnTimeout | awk '/Abort/ {print $2}' | grep .")
}

func (s *takeover) lockSteps() []step {
	return []step{
		{"the client writes, and holds locks", s.holdLocks},
		{"power cut of the primary, the standby takes over, the client goes on", s.powerCut},
		{"the locks are reclaimed", s.reclaimed},
		{"moved to the one that was dead, they are reclaimed again", s.moveLocks},
		{"let go, they are gone", s.letGo},
		{"every acknowledged record is there", s.check},
		{"both are alike", s.audited},
	}
}

const locks = 8

func (s *takeover) holdLocks(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	if _, err := s.client.Shell(ctx, "rm -f /run/held /run/another"); err != nil {
		return err
	}
	if _, err := s.client.Start(ctx, fmt.Sprintf("exec e2e-guest hold %s/locks %d >/run/held 2>&1", clientMount, locks)); err != nil {
		return err
	}
	if _, err := s.client.Shell(ctx, "for i in {1..300}; do grep -q held /run/held && exit 0; sleep 0.1; done; cat /run/held >&2; exit 1"); err != nil {
		return err
	}
	return s.conflicts(ctx, locks, "before the cut")
}

// conflicts asks the primary's own kernel, where a lock of an NFS client is in the way of a
// process of the server.
func (s *takeover) conflicts(ctx context.Context, want int, when string) error {
	for began := time.Now(); ; time.Sleep(300 * time.Millisecond) {
		out, err := s.primary.Shell(ctx, fmt.Sprintf("e2e-guest conflicts %s/locks %d", mountPoint, locks))
		if err != nil {
			return err
		}
		if out == strconv.Itoa(want) {
			return s.Assert(true, "%s, %d of the client's %d locks are held on %s (%.1f s)", when, want, locks, s.primary.Name, time.Since(began).Seconds())
		}
		if time.Since(began) > nfsGrace+20*time.Second {
			return fmt.Errorf("%s, %s of the client's locks are held on %s, not %d", when, out, s.primary.Name, want)
		}
	}
}

// reclaimed asks for another lock as well, at once: nobody gets one while others may reclaim.
func (s *takeover) reclaimed(ctx context.Context) error {
	if _, err := s.client.Start(ctx, fmt.Sprintf("e2e-guest hold %s/another-lock 1 | { read -r got && echo $got $EPOCHREALTIME >/run/another; cat; }", clientMount)); err != nil {
		return err
	}
	if err := s.conflicts(ctx, locks, "after the takeover"); err != nil {
		return err
	}
	out, err := s.client.Shell(ctx, "for i in {1..400}; do grep held /run/another && exit 0; sleep 0.1; done; exit 1")
	if err != nil {
		return fmt.Errorf("a new lock after the takeover: %w", err)
	}
	if s.version != "3" { // with the last client's reclaim version 4's is over
		return s.Assert(true, "a new lock is given after that")
	}
	_, stamp, _ := strings.Cut(out, " ")
	sec, err := strconv.ParseFloat(stamp, 64)
	if err != nil {
		return fmt.Errorf("the new lock's time: %w", err)
	}
	log, err := s.primary.logSince(s.Lab, 0)
	if err != nil {
		return err
	}
	began, err := logTime(log, "service step nfs: start took")
	if err != nil {
		return err
	}
	here, give1, err1 := ahead(ctx, s.primary.Machine)
	there, give2, err2 := ahead(ctx, s.client)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	after := time.UnixMicro(int64(sec * 1e6)).Add(-there).Sub(began.Add(-here))
	const slack = 3 * time.Second // from the server's start to the end of the step's
	return s.Assert(after+give1+give2 > nfsGrace-slack, "a new lock is given %.1f s after the server's start, when the grace of %v is over", after.Seconds(), nfsGrace)
}

// moveLocks is a planned stop of the server with the locks held.
func (s *takeover) moveLocks(ctx context.Context) error {
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if err := s.move(ctx); err != nil {
		return err
	}
	return s.conflicts(ctx, locks, "after the move")
}

func (s *takeover) letGo(ctx context.Context) error {
	if err := s.more(ctx, s.load, 5); err != nil {
		return err
	}
	if _, err := s.client.Shell(ctx, "pgrep -f 'e2e-guest [h]old' && pkill -TERM -f 'e2e-guest [h]old'"); err != nil {
		return err
	}
	return s.conflicts(ctx, 0, "when the holder has let go")
}
