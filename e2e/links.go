package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"tandem/agent/control"
	"tandem/e2e/vm"
)

// Links that are cut, one way or both, or slow, and an agent that is stopped. A reader on the
// client asks the old primary, and nobody else, for a page that the primary has in memory:
// what keeps it from answering is the permission's end, not its disk.
func linkScenarios() []Scenario {
	o := pairOptions{fs: "ext4", version: "4.2", failover: "freeze: " + shortFreeze.String()}
	one := func(id, name string, steps func(*links) []step) Scenario {
		return pairScenario(id, name, 8*time.Minute, o, func(p *pair) []step { return steps(&links{pair: p}) })
	}
	return []Scenario{
		one("5-cut", "nodes cut from each other; then the primary from the witness, too: it is silent before the other serves", (*links).cutSteps),
		one("5-witness", "nodes cut from the witness: nothing happens; then from each other, too: nobody serves", (*links).witnessSteps),
		one("5-oneway", "one direction between the nodes is lost, then the other", (*links).onewaySteps),
		one("5-slow", "2 ms and 1 % loss: nobody takes over; a power cut under it", (*links).slowSteps),
		one("5-stopped", "SIGSTOP of the primary's agent: the kernel's timer alone closes the port", (*links).stoppedSteps),
	}
}

const shortFreeze = 6 * time.Second

type links struct {
	*pair
	load *load

	lastRead  atomic.Int64 // Unix ns, by the client's clock
	reads     atomic.Int64
	readEnded chan error

	isolated int64 // where the isolated node's log was then
}

// begin starts the client's writers, none of which is in a hurry: what has to be resynced and read
// back is little, and the machines have time for what is measured.
func (s *links) begin(ctx context.Context) (err error) {
	s.pace = 50 * time.Millisecond
	if s.load, err = s.writeOnClient(ctx, 5); err != nil {
		return err
	}
	return s.steady(ctx)
}

func (s *links) end(ctx context.Context) error { return s.finish(ctx, s.load) }

// read starts the reader, of a file that the server has just written.
func (s *links) read(ctx context.Context) error {
	file := clientMount + "/page"
	if _, err := s.client.Shell(ctx, "dd if=/dev/urandom of="+file+" bs=4k count=1 conv=fsync status=none"); err != nil {
		return err
	}
	r, w := io.Pipe()
	s.readEnded = make(chan error, 1)
	go func() {
		err := s.client.Stream(ctx, "exec e2e-guest read "+file+" 20ms", w)
		_ = w.Close()
		s.readEnded <- err
	}()
	go func() { // runReads
		for lines := bufio.NewScanner(r); lines.Scan(); {
			var at int64
			if n, _ := fmt.Sscanf(lines.Text(), "read %d", &at); n == 1 {
				s.lastRead.Store(at)
				s.reads.Add(1)
			}
		}
	}()
	return s.moreReads(ctx, 20)
}

func (s *links) moreReads(ctx context.Context, n int64) error {
	for from := s.reads.Load(); s.reads.Load() < from+n; {
		select {
		case err := <-s.readEnded:
			return fmt.Errorf("the reader ended after %d reads: %w", s.reads.Load(), err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func (s *links) endReads(ctx context.Context) error {
	if _, err := s.client.Shell(ctx, "pkill -TERM -f 'e2e-guest [r]ead '; for i in {1..100}; do pgrep -f 'e2e-guest [r]ead ' >/dev/null || break; sleep 0.1; done; rm -f "+clientMount+"/page"); err != nil {
		return err
	}
	return <-s.readEnded
}

// pin has the client send whatever is for the service's address to one node, whoever says that
// the address is his. unpin ends that.
func (s *links) pin(ctx context.Context, n *node) error {
	_, err := s.client.Shell(ctx, "ip neigh replace "+serviceAddress+" lladdr "+n.DataMAC()+" nud permanent dev eth0")
	return err
}

func (s *links) unpin(ctx context.Context) error {
	_, err := s.client.Shell(ctx, "ip neigh del "+serviceAddress+" dev eth0")
	return err
}

// silentFirst waits until heir serves while the client is pinned to old, and compares when the
// client was last answered with when heir became primary.
func (s *links) silentFirst(ctx context.Context, old, heir *node, epoch uint64) error {
	mark := heir.logMark(s.Lab)
	before, err := dropped(ctx, old)
	if err != nil {
		return err
	}
	// Now, and not when the service is up: the old one may be off by then.
	if _, err := heir.until(ctx, time.Minute, "primary", func(st control.Status) bool { return st.Role == "Primary" && st.Epoch > epoch }); err != nil {
		return err
	}
	after := before
	for end := time.Now().Add(5 * time.Second); after == before && time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if after, err = dropped(ctx, old); err != nil {
			return err
		}
	}
	st, err := s.tookOver(ctx, heir, epoch)
	if err != nil {
		return err
	}
	log, err := heir.logSince(s.Lab, mark)
	if err != nil {
		return err
	}
	promoted, err := logTime(log, fmt.Sprintf("primary of epoch %d", st.Epoch))
	if err != nil {
		return err
	}
	ofHeir, give1, err := ahead(ctx, heir.Machine)
	if err != nil {
		return err
	}
	ofClient, give2, err := ahead(ctx, s.client)
	if err != nil {
		return err
	}
	give := give1 + give2
	gap := promoted.Add(-ofHeir).Sub(time.Unix(0, s.lastRead.Load()).Add(-ofClient))
	if give > 300*time.Millisecond {
		return fmt.Errorf("the clocks are known to %v only", give)
	}
	if err := s.Assert(gap > give, "%s answered the client's reads until %.2f s (± %.2f s) before %s became primary in epoch %d", old.Name, gap.Seconds(), give.Seconds(), heir.Name, st.Epoch); err != nil {
		return err
	}
	// And not again.
	reads, acks := s.reads.Load(), s.load.ledger.Total()
	time.Sleep(2 * time.Second)
	if err := s.Assert(s.reads.Load() == reads && s.load.ledger.Total() == acks, "%s, which the client still sends to, answers nothing after that", old.Name); err != nil {
		return err
	}
	return s.Assert(after > before, "it would have: its kernel has dropped %d segments from the service's port", after-before)
}

// dropped is how many segments from the NFS server's port a node's kernel has dropped for want of
// the permission.
func dropped(ctx context.Context, n *node) (int, error) {
	out, err := n.Shell(ctx, "nft list table inet tandem/"+cluster+"/"+n.Name+" | sed -n 's/.*tcp sport 2049 .*counter packets \\([0-9]*\\) .*/\\1/p'")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(out)
}

// apart drops everything between the nodes.
func (s *links) apart(ctx context.Context) error {
	return errors.Join(s.a.deaf(ctx, s.b.DataMAC()), s.b.deaf(ctx, s.a.DataMAC()))
}

func (s *links) healAll(ctx context.Context) error {
	return errors.Join(s.a.heal(ctx), s.b.heal(ctx))
}

// alone waits until n is primary alone, in the epoch that it had.
func (s *links) alone(ctx context.Context, n *node, epoch uint64) error {
	st, err := n.until(ctx, 30*time.Second, "primary alone", func(st control.Status) bool { return up(st) && inSync(st) == n.Name })
	if err != nil {
		return err
	}
	if st.Epoch != epoch {
		return fmt.Errorf("%s is primary in epoch %d, it was in %d", n.Name, st.Epoch, epoch)
	}
	return s.more(ctx, s.load, 10)
}

// keepsOff asserts that n has not become primary when what it had promised until a cut is over, with
// time to spare. set is what it has to have read in the record by then.
func (s *links) keepsOff(ctx context.Context, n *node, cut time.Time, set, why string) error {
	const long = lease + lease/10 + 2*time.Second
	for began := time.Now(); ; time.Sleep(300 * time.Millisecond) {
		st, err := n.status(ctx)
		since := time.Since(cut)
		switch {
		case err != nil:
			return err
		case st.Role != "Secondary" || st.StateDetail == "promoting":
			return fmt.Errorf("%s is %s in epoch %d, %s: %s", n.Name, st.Role, st.Epoch, st.StateDetail, why)
		case since > long && inSync(st) == set:
			return s.Assert(true, "%s does not become primary in %.1f s: %s", n.Name, since.Seconds(), why)
		case time.Since(began) > long+20*time.Second:
			return fmt.Errorf("%s takes the record's set for {%s}, it is {%s}", n.Name, inSync(st), set)
		}
	}
}

// epoch is the primary's, as it says.
func (s *links) epoch(ctx context.Context) (uint64, error) {
	st, err := s.primary.status(ctx)
	return st.Epoch, err
}

func (s *links) cutSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"the nodes are cut from each other", s.cutPeers},
		{"healed", s.healPeers},
		{"the primary is cut from the other and from the witness, not from the client", s.isolate},
		{"healed", s.healIsolated},
		{"all is there, and alike", s.end},
	}
}

func (s *links) cutPeers(ctx context.Context) error {
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	s.load.pauses.begin()
	cut := time.Now()
	if err := s.apart(ctx); err != nil {
		return err
	}
	if err := s.alone(ctx, s.primary, epoch); err != nil {
		return err
	}
	if err := s.Assert(true, "%s took %s out of the set and goes on in epoch %d; the client's longest pause was %.1f s", s.primary.Name, s.standby.Name, epoch, s.load.pauses.end().Seconds()); err != nil {
		return err
	}
	return s.keepsOff(ctx, s.standby, cut, s.primary.Name, "the record does not name it")
}

func (s *links) healPeers(ctx context.Context) error {
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	mark := s.primary.logMark(s.Lab)
	if err := s.healAll(ctx); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	return s.bounded(mark, peer(st).OutOfSyncBytes)
}

func (s *links) isolate(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	old, heir := s.primary, s.standby
	s.isolated = old.logMark(s.Lab)
	if err := s.pin(ctx, old); err != nil {
		return err
	}
	if err := errors.Join(s.apart(ctx), s.cutWitness(ctx, old)); err != nil {
		return err
	}
	return s.silentFirst(ctx, old, heir, epoch)
}

// cutWitness drops everything between a node and the witness.
func (s *links) cutWitness(ctx context.Context, n *node) error {
	return errors.Join(n.deaf(ctx, vm.HostDataMAC()), n.silence(ctx, vm.HostDataMAC()))
}

// steppedDown waits until a node that was primary has let go of everything.
func (s *links) steppedDown(ctx context.Context, n *node, limit time.Duration) error {
	if _, err := n.until(ctx, limit, "Secondary with nothing running", func(st control.Status) bool {
		for _, step := range st.Service {
			if step.State != "stopped" {
				return false
			}
		}
		return st.Role == "Secondary"
	}); err != nil {
		return err
	}
	return s.bare(ctx, n)
}

// frozen is what a primary says when it gives up.
var frozen = regexp.MustCompile(`no longer Primary: frozen for ([0-9.]+) s: neither the peer nor the witness answered`)

// froze asserts that a node, which has stepped down since mark, did so because its freeze has an
// end. It is late when the host is busy.
func (s *links) froze(n *node, mark int64) error {
	log, err := n.logSince(s.Lab, mark)
	if err != nil {
		return err
	}
	m := frozen.FindStringSubmatch(log)
	if m == nil {
		return fmt.Errorf("%s does not say that it was frozen: %s", n.Name, log)
	}
	took, err := time.ParseDuration(m[1] + "s")
	if err != nil {
		return err
	}
	const most = shortFreeze + 4*time.Second
	return s.Assert(took >= shortFreeze && took < most, "%s was frozen for %v, %v as its config has it and less than %v, and stepped down", n.Name, took, shortFreeze, most)
}

func (s *links) healIsolated(ctx context.Context) error {
	// By itself, cut off as it is.
	if err := s.steppedDown(ctx, s.standby, shortFreeze+60*time.Second); err != nil {
		return err
	}
	if err := s.froze(s.standby, s.isolated); err != nil {
		return err
	}
	if err := s.unpin(ctx); err != nil {
		return err
	}
	if err := s.moreReads(ctx, 5); err != nil {
		return err
	}
	if err := errors.Join(s.endReads(ctx), s.more(ctx, s.load, 10)); err != nil {
		return err
	}
	return s.healPeers(ctx)
}

func (s *links) witnessSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"both nodes are cut from the witness", s.withoutWitness},
		{"and from each other", s.nobody},
		{"the witness is back", s.witnessBack},
		{"healed", s.healPeers},
		{"all is there, and alike", s.end},
	}
}

func (s *links) withoutWitness(ctx context.Context) error {
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	s.load.pauses.begin()
	if err := errors.Join(s.cutWitness(ctx, s.a), s.cutWitness(ctx, s.b)); err != nil {
		return err
	}
	for end := time.Now().Add(2 * lease); time.Now().Before(end); time.Sleep(time.Second) {
		st, err := s.primary.status(ctx)
		if err != nil {
			return err
		}
		if !up(st) || st.Epoch != epoch || inSync(st) != "a,b" {
			return fmt.Errorf("%s is %s in epoch %d of {%s}: %s", s.primary.Name, st.Role, st.Epoch, inSync(st), stepStates(st))
		}
	}
	pause := s.load.pauses.end()
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	return s.Assert(pause < 2*time.Second && !st.Witness.OK, "for %v without a witness (%s) nothing happened: the same epoch and set, the client's longest pause was %.1f s", 2*lease, st.Witness.Error, pause.Seconds())
}

func (s *links) nobody(ctx context.Context) error {
	mark := s.primary.logMark(s.Lab)
	cut := time.Now()
	if err := s.apart(ctx); err != nil {
		return err
	}
	if err := s.steppedDown(ctx, s.primary, lease+shortFreeze+60*time.Second); err != nil {
		return err
	}
	if err := s.froze(s.primary, mark); err != nil {
		return err
	}
	if err := s.keepsOff(ctx, s.standby, cut, "a,b", "it cannot read the record"); err != nil {
		return err
	}
	acks := s.load.ledger.Total()
	time.Sleep(time.Second)
	return s.Assert(s.load.ledger.Total() == acks, "the client waits at %d acknowledged fsyncs", acks)
}

func (s *links) witnessBack(ctx context.Context) error {
	if err := errors.Join(s.a.deafOnly(ctx, s.b.DataMAC()), s.b.deafOnly(ctx, s.a.DataMAC())); err != nil {
		return err
	}
	healed := time.Now()
	for time.Since(healed) < time.Minute {
		for _, n := range s.nodes() {
			if st, err := n.status(ctx); err == nil && up(st) {
				s.primary, s.standby = n, s.other(n)
				if err := s.more(ctx, s.load, 10); err != nil {
					return err
				}
				if err := s.Assert(inSync(st) == n.Name, "%s serves in epoch %d, alone in the record, %.1f s after it can reach the witness", n.Name, st.Epoch, time.Since(healed).Seconds()); err != nil {
					return err
				}
				return s.keepsOff(ctx, s.standby, healed, n.Name, "the record does not name it")
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	return errors.New("nobody serves a minute after the witness is back")
}

func (s *links) onewaySteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"what the primary sends to the standby is lost", func(ctx context.Context) error { return s.oneway(ctx, s.primary, s.standby) }},
		{"healed", s.healPeers},
		{"what the standby sends to the primary is lost", func(ctx context.Context) error { return s.oneway(ctx, s.standby, s.primary) }},
		{"healed", s.healPeers},
		{"all is there, and alike", s.end},
	}
}

func (s *links) oneway(ctx context.Context, from, to *node) error {
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	s.load.pauses.begin()
	cut := time.Now()
	if err := to.deaf(ctx, from.DataMAC()); err != nil {
		return err
	}
	if err := s.alone(ctx, s.primary, epoch); err != nil {
		return err
	}
	if err := s.Assert(true, "%s goes on alone in epoch %d; the client's longest pause was %.1f s", s.primary.Name, epoch, s.load.pauses.end().Seconds()); err != nil {
		return err
	}
	return s.keepsOff(ctx, s.standby, cut, s.primary.Name, "the record does not name it")
}

func (s *links) slowSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"both nodes' lines delay by 2 ms and lose 1 %", s.slow},
		{"power cut of the primary", s.slowCut},
		{"it is back", s.slowBack},
		{"all is there, and alike", s.end},
	}
}

func (s *links) slow(ctx context.Context) error {
	for _, n := range s.nodes() {
		if _, err := n.Shell(ctx, "tc qdisc add dev eth0 root netem delay 2ms loss 1%"); err != nil {
			return err
		}
	}
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	s.load.pauses.begin()
	before := s.load.ledger.Total()
	const long = 2 * lease
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(time.Second) {
		st, err := s.primary.status(ctx)
		if err != nil {
			return err
		}
		if !up(st) || st.Epoch != epoch || inSync(st) != "a,b" {
			return fmt.Errorf("%s is %s in epoch %d of {%s}: %s", s.primary.Name, st.Role, st.Epoch, inSync(st), stepStates(st))
		}
	}
	out, err := s.standby.Shell(ctx, "tc -s qdisc show dev eth0 | grep -o 'dropped [0-9]*'")
	if err != nil {
		return err
	}
	if n := s.load.ledger.Total() - before; n < 20 {
		return fmt.Errorf("%d fsyncs in %v", n, long)
	}
	return s.Assert(out != "dropped 0", "for %v nobody is taken out and nobody takes over; %d fsyncs, the longest pause was %.1f s; %s's line has %s",
		long, s.load.ledger.Total()-before, s.load.pauses.end().Seconds(), s.standby.Name, out)
}

func (s *links) slowCut(ctx context.Context) error {
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	heir := s.standby
	at := s.cutPower(s.primary)
	took, _, err := s.next(ctx, s.load, at)
	if err != nil {
		return err
	}
	if _, err := s.tookOver(ctx, heir, epoch); err != nil {
		return err
	}
	return s.Assert(took < 25*time.Second, "the client's first fsync after the cut took %.1f s", took.Seconds())
}

func (s *links) slowBack(ctx context.Context) error {
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	mark := s.primary.logMark(s.Lab)
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if _, err := s.primary.Shell(ctx, "tc qdisc del dev eth0 root"); err != nil {
		return err
	}
	return s.bounded(mark, peer(st).OutOfSyncBytes)
}

func (s *links) stoppedSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"SIGSTOP of the primary's agent", s.stopped},
		{"SIGCONT", s.continued},
		{"all is there, and alike", s.end},
	}
}

func (s *links) stopped(ctx context.Context) error {
	if err := s.read(ctx); err != nil {
		return err
	}
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	old, heir := s.primary, s.standby
	if err := s.pin(ctx, old); err != nil {
		return err
	}
	if _, err := old.Shell(ctx, fmt.Sprintf("kill -STOP %d", old.pid)); err != nil {
		return err
	}
	if err := s.silentFirst(ctx, old, heir, epoch); err != nil {
		return err
	}
	// nfsd is there, the address too, and so is the page.
	out, err := old.Shell(ctx, "cat /proc/fs/nfsd/threads; ip -o addr show | grep -c "+serviceAddress+"; grep State /proc/"+fmt.Sprint(old.pid)+"/status")
	if err != nil {
		return err
	}
	return s.Assert(strings.HasPrefix(out, "32\n1\n") && strings.Contains(out, "(stopped)"), "all of it is still there on %s: threads, address, an agent that is stopped: %s", old.Name, strings.Join(strings.Fields(out), " "))
}

func (s *links) continued(ctx context.Context) error {
	old := s.standby
	mark := s.primary.logMark(s.Lab)
	reads, acks := s.reads.Load(), s.load.ledger.Total()
	if _, err := old.Shell(ctx, fmt.Sprintf("kill -CONT %d", old.pid)); err != nil {
		return err
	}
	if err := s.steppedDown(ctx, old, time.Minute); err != nil {
		return err
	}
	if err := s.Assert(s.reads.Load() == reads && s.load.ledger.Total() == acks, "continued, it has answered nothing"); err != nil {
		return err
	}
	if err := s.unpin(ctx); err != nil {
		return err
	}
	if err := s.moreReads(ctx, 5); err != nil {
		return err
	}
	if err := errors.Join(s.endReads(ctx), s.more(ctx, s.load, 10)); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	return s.bounded(mark, someMiB)
}
