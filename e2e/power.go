package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"tandem/agent/control"
)

// Power cuts while an NFS client writes. The disks of all machines forget what was not
// flushed; 6-volatile shows that they do.
func powerScenarios() []Scenario {
	const limit = 8 * time.Minute
	usual := pairOptions{fs: "ext4", version: "4.2"}
	canary := usual
	canary.canary = true
	one := func(id, name string, o pairOptions, steps func(*power) []step) Scenario {
		return pairScenario(id, name, limit, o, func(p *pair) []step { return steps(&power{pair: p}) })
	}
	return []Scenario{
		one("4-standby", "power cut of the standby under load: the client notices a short pause", usual, (*power).standbySteps),
		one("4-resync", "power cut of the standby in the middle of its resync", usual, (*power).resyncSteps),
		one("4-both", "power cut of both: none serves alone, together they go on", usual, (*power).bothSteps),
		one("4-degraded", "power cut of the primary while the standby is away: the standby, behind, does not serve", usual, (*power).degradedSteps),
		one("4-rejoined", "power cut of the old primary, and then of the new one, just after the old one rejoined", usual, (*power).rejoinedSteps),
		one("6-volatile-one", "disks that forget what was not flushed: power cut of one node", canary, (*power).volatileOneSteps),
		one("6-volatile-both", "disks that forget what was not flushed: power cut of both", canary, (*power).volatileBothSteps),
	}
}

type power struct {
	*pair
	load *load
}

func (s *power) begin(ctx context.Context) (err error) {
	if s.load, err = s.writeOnClient(ctx, 30); err != nil {
		return err
	}
	return s.steady(ctx)
}

func (s *power) end(ctx context.Context) error { return s.finish(ctx, s.load) }

// comeBack revives the standby and checks what its resync took.
func (s *power) comeBack(ctx context.Context) error {
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	was := s.primary
	mark := was.logMark(s.Lab)
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if s.primary != was { // the mark is of another log
		return fmt.Errorf("%s is primary now, not %s", s.primary.Name, was.Name)
	}
	return s.bounded(mark, peer(st).OutOfSyncBytes)
}

// goesOn asserts that the client's writes go on.
func (s *power) goesOn(ctx context.Context, at time.Time, limit time.Duration, what string) error {
	took, _, err := s.next(ctx, s.load, at)
	if err != nil {
		return err
	}
	return s.Assert(took < limit, "%s: the client's next fsync took %.1f s, less than %v", what, took.Seconds(), limit)
}

func (s *power) standbySteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"power cut of the standby", s.cutStandby},
		{"it is back", s.comeBack},
		{"all is there, and alike", s.end},
	}
}

func (s *power) cutStandby(ctx context.Context) error {
	before, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	s.load.pauses.begin()
	s.cutPower(s.standby)
	// What was on its way is no proof: the set shrinks first.
	st, err := s.primary.until(ctx, 20*time.Second, "Primary alone", func(st control.Status) bool { return inSync(st) == s.primary.Name })
	if err != nil {
		return err
	}
	if err := s.more(ctx, s.load, 20); err != nil {
		return err
	}
	pause := s.load.pauses.end()
	const limit = 20 * time.Second
	return s.Assert(st.Epoch == before.Epoch && pause < limit, "%s goes on alone in epoch %d; the client's longest pause was %.1f s, less than %v", s.primary.Name, st.Epoch, pause.Seconds(), limit)
}

func (s *power) resyncSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"power cut of the standby, and much is written", s.fallBehind},
		{"power cut of the standby in the middle of its resync", s.cutInResync},
		{"it is back", s.comeBack},
		{"all is there, and alike", s.end},
	}
}

const behindMiB = 32

func (s *power) fallBehind(ctx context.Context) error {
	if err := s.cutStandby(ctx); err != nil {
		return err
	}
	// Random, or the comparison finds zeroes that need not travel.
	_, err := s.primary.Shell(ctx, fmt.Sprintf("dd if=/dev/urandom of=%s/behind bs=1M count=%d conv=fsync status=none", mountPoint, behindMiB))
	return err
}

func (s *power) cutInResync(ctx context.Context) error {
	if _, err := s.primary.Shell(ctx, "tc qdisc add dev eth0 root tbf rate 40mbit burst 64kb latency 400ms"); err != nil {
		return err
	}
	mark := s.primary.logMark(s.Lab)
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	var done, total int64
	if _, err := s.primary.until(ctx, time.Minute, "in the middle of a resync", func(st control.Status) bool {
		r := peer(st).Resync
		if r == nil || peer(st).Replication != "SyncSource" || r.DoneBytes < 4<<20 {
			return false
		}
		done, total = r.DoneBytes, r.TotalBytes
		return true
	}); err != nil {
		return err
	}
	s.cutPower(s.standby)
	// The status was of a moment before.
	log, err := s.primary.logSince(s.Lab, mark)
	if err != nil {
		return err
	}
	if err := s.Assert(done > 0 && done < total && !resynced.MatchString(log), "cut when %.1f of %.1f MiB were compared: the resync has not ended", mib(done), mib(total)); err != nil {
		return err
	}
	if _, err := s.primary.Shell(ctx, "tc qdisc del dev eth0 root; rm "+mountPoint+"/behind"); err != nil {
		return err
	}
	return s.more(ctx, s.load, 20)
}

func (s *power) bothSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"power cut of both at once", s.cutBoth},
		{"one is back, and does not serve", s.oneIsBack},
		{"the other, too: they go on", s.bothAreBack},
		{"all is there, and alike", s.end},
	}
}

func (s *power) cutBoth(context.Context) error {
	s.cutPower(s.primary)
	s.cutPower(s.standby)
	return nil
}

func (s *power) oneIsBack(ctx context.Context) error {
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	return s.heldBack(ctx, s.standby, "Consistent")
}

func (s *power) bothAreBack(ctx context.Context) error {
	was := s.primary
	mark := was.logMark(s.Lab)
	if err := s.revive(ctx, was); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if err := s.Assert(s.primary == was, "%s, which the record names, is the primary again", was.Name); err != nil {
		return err
	}
	if err := s.bounded(mark, 0); err != nil {
		return err
	}
	return s.more(ctx, s.load, 20)
}

func (s *power) degradedSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"power cut of the standby, and the client goes on", s.cutStandby},
		{"power cut of the primary, the standby is back, and does not serve", s.cutDegraded},
		{"the primary is back and serves", s.degradedIsBack},
		{"all is there, and alike", s.end},
	}
}

func (s *power) cutDegraded(ctx context.Context) error {
	s.cutPower(s.primary)
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	return s.heldBack(ctx, s.standby, "Outdated")
}

func (s *power) degradedIsBack(ctx context.Context) error {
	was := s.primary
	mark := was.logMark(s.Lab)
	if err := s.revive(ctx, was); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if err := s.Assert(s.primary == was, "%s, alone in the record, is the primary again", was.Name); err != nil {
		return err
	}
	if err := s.bounded(mark, someMiB); err != nil {
		return err
	}
	return s.more(ctx, s.load, 20)
}

// someMiB is what a scenario's records may have made dirty.
const someMiB = 4 << 20

func (s *power) rejoinedSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"power cut of the primary, the standby takes over", s.lose},
		{"it rejoins, and its power is cut again", s.loseAgain},
		{"it rejoins, and the power of the new primary is cut", s.loseOther},
		{"the other one is back", s.comeBack},
		{"all is there, and alike", s.end},
	}
}

func (s *power) lose(ctx context.Context) error {
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	heir := s.standby
	at := s.cutPower(s.primary)
	if err := s.goesOn(ctx, at, 25*time.Second, "taken over"); err != nil {
		return err
	}
	_, err = s.tookOver(ctx, heir, st.Epoch)
	return err
}

func (s *power) loseAgain(ctx context.Context) error {
	if err := s.comeBack(ctx); err != nil {
		return err
	}
	return s.cutStandby(ctx)
}

func (s *power) loseOther(ctx context.Context) error {
	if err := s.comeBack(ctx); err != nil {
		return err
	}
	return s.lose(ctx)
}

func (s *power) volatileOneSteps() []step {
	return []step{
		{"the client writes, and the primary without a flush", s.beginVolatile},
		{"power cut of the primary, the standby takes over", s.lose},
		{"the dead one's disk has forgotten", s.forgot},
		{"it is back", s.comeBack},
		{"all is there, and alike", s.end},
	}
}

func (s *power) volatileBothSteps() []step {
	return []step{
		{"the client writes, and the primary without a flush", s.beginVolatile},
		{"power cut of both at once", s.cutBoth},
		{"both disks have forgotten", s.forgot},
		{"the recorded primary is back, and does not serve", s.recordedIsBack},
		{"the other, too: they go on", s.bothReturn},
		{"all is there, and alike", s.end},
	}
}

// beginVolatile leaves in the disks' caches what nobody has flushed: O_DIRECT writes to a file of
// the volume, and a canary on a disk beside it, half of it flushed.
func (s *power) beginVolatile(ctx context.Context) error {
	for _, n := range s.nodes() {
		if _, err := n.Shell(ctx, `set -e
			dd if=/dev/zero of=/dev/vdb bs=1M count=2 oflag=direct conv=fsync status=none
			yes flushed | dd of=/dev/vdb bs=1M count=1 iflag=fullblock oflag=direct conv=fsync status=none
			yes forgotten | dd of=/dev/vdb bs=1M count=1 seek=1 iflag=fullblock oflag=direct conv=notrunc status=none`); err != nil {
			return err
		}
	}
	if _, err := s.primary.Start(ctx, "fio --name=noise --directory="+mountPoint+" --size=8M --rw=randwrite --bs=4k --ioengine=psync --direct=1 --overwrite=1 --time_based --runtime=300 --rate_iops=100 >/dev/null 2>&1"); err != nil {
		return err
	}
	return s.begin(ctx)
}

// forgot looks at the disks of those that are off.
func (s *power) forgot(context.Context) error {
	for _, n := range s.nodes() {
		if n.pid != 0 {
			continue
		}
		b, err := os.ReadFile(n.Disks[1].Image)
		if err != nil {
			return err
		}
		kept := strings.HasPrefix(string(b), "flushed\nflushed\n")
		forgotten := !slices.ContainsFunc(b[1<<20:2<<20], func(c byte) bool { return c != 0 })
		if err := s.Assert(kept && forgotten, "%s's disk has lost what was only acknowledged, and kept what was flushed", n.Name); err != nil {
			return err
		}
	}
	return nil
}

// recordedIsBack is the other half of 4-both's oneIsBack: not even the primary that the record
// names begins alone.
func (s *power) recordedIsBack(ctx context.Context) error {
	if err := s.revive(ctx, s.primary); err != nil {
		return err
	}
	return s.heldBack(ctx, s.primary, "Consistent")
}

func (s *power) bothReturn(ctx context.Context) error {
	was := s.primary
	mark := was.logMark(s.Lab)
	if err := s.revive(ctx, s.standby); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if err := s.Assert(s.primary == was, "%s, which the record names, is the primary again", was.Name); err != nil {
		return err
	}
	if err := s.bounded(mark, 0); err != nil {
		return err
	}
	return s.more(ctx, s.load, 20)
}

// canaryDisks are the sizes of a node's disks: the volume's, and a canary's beside it.
func canaryDisks(o pairOptions) []int64 {
	if o.canary {
		return []int64{diskSize, canarySize}
	}
	return []int64{diskSize}
}
