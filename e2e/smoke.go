package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"tandem/agent/control"
	"tandem/e2e/records"
	"tandem/e2e/vm"
)

// The smoke: a filesystem on /dev/nbd0 of a mirrored pair, a power cut of the
// primary in the middle of fsyncs, promotion of the standby by hand, and the
// return of the dead.
func smokes() []Scenario {
	var all []Scenario
	for _, fs := range filesystems() {
		all = append(all, Scenario{
			ID:    "smoke-" + fs.name,
			Name:  fs.name + " on a mirrored /dev/nbd0: power cut of the primary, promotion, return",
			Limit: 10 * time.Minute,
			begin: func(r *Run) []step { return (&smoke{Run: r, fs: fs}).steps() },
		})
	}
	return all
}

const (
	diskSize   = 256 << 20
	canarySize = 4 << 20

	connections = 2 // of nbd-client; a guest with one processor uses one of them
	writers     = 2

	// What a writer acknowledges before the cut, and how many it may write at
	// all, which bounds the space they take: 8 MiB for each thousand of both.
	ackedBeforeCut = 80
	recordsAtMost  = 8000

	seedBefore = 1 // of the records that a acknowledged
	seedAfter  = 2 // of those that b acknowledged alone, and while a came back
)

type smoke struct {
	*Run
	fs   filesystem
	a, b *node

	epoch    uint64 // before the cut
	volume   int64  // bytes of data on each disk
	fioBytes int64
	before   records.Ledger
	after    records.Ledger
	cut      time.Time
}

func (s *smoke) steps() []step {
	return []step{
		{"boot two machines", s.boot},
		{"check the ground: write cache, shared locks", s.checkGround},
		{"init, agents, promote a, first resync", s.bringUp},
		{"attach on a, mkfs, mount", s.mkfs},
		{"fio writes and verifies on a", s.fio},
		{"fsyncs on a, power cut in the middle", s.powerCut},
		{"promote b", s.promote},
		{"attach on b, replay, check", s.recover},
		{"b goes on alone, a returns and is resynced", s.rejoin},
		{"stop, cut the power of both, compare", s.compare},
	}
}

func (s *smoke) boot(ctx context.Context) error {
	if err := errors.Join(os.RemoveAll(filepath.Join(s.Lab.Share, "witness")), os.MkdirAll(filepath.Join(s.Lab.Share, "witness"), 0o755)); err != nil {
		return err
	}
	for _, n := range []**node{&s.a, &s.b} {
		m, err := s.Lab.Add(vm.Spec{MemoryMiB: 512, Disks: []int64{diskSize, canarySize}})
		if err != nil {
			return err
		}
		*n = &node{Machine: m}
		if err := os.RemoveAll((*n).dir(s.Lab)); err != nil {
			return err
		}
	}
	if err := errors.Join(s.a.writeConfig(s.Lab, s.b), s.b.writeConfig(s.Lab, s.a)); err != nil {
		return err
	}
	if err := s.certificates(ctx); err != nil {
		return err
	}
	return s.both(func(n *node) error { return n.PowerOn(ctx) })
}

// certificates of a and b are made once, for all scenarios.
func (r *Run) certificates(ctx context.Context) error {
	pki := filepath.Join(r.Lab.Share, "pki")
	if _, err := os.Stat(pki); err == nil {
		return nil
	}
	if err := os.Mkdir(pki, 0o755); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(r.Lab.Share, "bin", "replctl"), "certs", "--cluster", cluster, "--dir", pki, "a", "b").CombinedOutput()
	if err != nil {
		return fmt.Errorf("replctl certs: %w: %s", err, out)
	}
	return nil
}

// both does something on both nodes at once.
func (s *smoke) both(do func(*node) error) error {
	return errors.Join(atOnce(do, s.a, s.b)...)
}

// atOnce does something with several at the same time.
func atOnce[T any](do func(T) error, all ...T) []error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, x := range all {
		wg.Go(func() { errs[i] = do(x) })
	}
	wg.Wait()
	return errs
}

// checkGround makes sure that the test could fail: that the disks do forget is
// seen at the cut, by what is written to the canary here.
func (s *smoke) checkGround(ctx context.Context) error {
	for _, n := range []*node{s.a, s.b} {
		out, err := n.Shell(ctx, "uname -r; cat /sys/block/vda/queue/write_cache")
		if err != nil {
			return err
		}
		if want := s.Lab.KernelRelease() + "\nwrite back"; out != want {
			return fmt.Errorf("%s: kernel and cache are %q, not %q", n.Name, out, want)
		}
	}
	// a holds a lock: b must not get it. a's power goes later; here the holder is
	// killed, and then b must get it.
	const lock = "e2e-guest lock /e2e/witness/lock.test "
	pid, err := s.a.Start(ctx, "exec "+lock+"60s >/e2e/a/locked")
	if err != nil {
		return err
	}
	if _, err := s.a.Shell(ctx, "for i in {1..100}; do grep -q locked /e2e/a/locked && exit 0; sleep 0.05; done; exit 1"); err != nil {
		return err
	}
	_, err = s.b.Shell(ctx, lock+"0s")
	excluded := err != nil && strings.Contains(err.Error(), "another process has the lock")
	if _, err := s.a.Shell(ctx, fmt.Sprintf("kill -9 %d", pid)); err != nil {
		return err
	}
	_, err = s.b.Shell(ctx, "for i in {1..100}; do "+lock+"0s && exit 0; sleep 0.05; done; exit 1")
	if err := s.Assert(excluded && err == nil, "flock in the shared folder excludes across machines, and goes with its holder: the file witness is one register"); err != nil {
		return err
	}
	// 1 MiB that is flushed, 1 MiB that is only acknowledged.
	_, err = s.a.Shell(ctx, `set -e
		yes flushed | dd of=/dev/vdb bs=1M count=1 iflag=fullblock oflag=direct conv=fsync status=none
		yes forgotten | dd of=/dev/vdb bs=1M count=1 seek=1 iflag=fullblock oflag=direct conv=notrunc status=none`)
	return err
}

func (s *smoke) bringUp(ctx context.Context) error {
	if err := s.both(func(n *node) error {
		if _, err := n.ctl(ctx, "init"); err != nil {
			return err
		}
		return n.startAgent(ctx)
	}); err != nil {
		return err
	}
	if _, err := s.a.ctl(ctx, "promote"); err != nil {
		return err
	}
	began := time.Now()
	if _, err := s.a.ctl(ctx, "wait-sync --timeout 90s"); err != nil {
		return err
	}
	took := time.Since(began)
	st, err := s.a.until(ctx, 10*time.Second, "Primary of {a,b}", func(st control.Status) bool {
		return st.Role == "Primary" && inSync(st) == "a,b" && peer(st).Link == "Connected" && peer(st).OutOfSyncBytes == 0
	})
	if err != nil {
		return err
	}
	s.epoch, s.volume = st.Epoch, st.Volume.SizeBytes
	if s.volume < diskSize*3/4 || s.volume > diskSize {
		return fmt.Errorf("a volume of %d bytes on a disk of %d", s.volume, diskSize)
	}
	s.Logf("  first resync of %d MiB took %.1f s", s.volume>>20, took.Seconds())
	return nil
}

func (s *smoke) mkfs(ctx context.Context) error {
	err := s.b.attach(ctx, 1)
	if err := s.Assert(errors.Is(err, vm.ErrFailed), "b, Secondary, refuses its export"); err != nil {
		return err
	}
	if err := s.a.attach(ctx, connections); err != nil {
		return err
	}
	out, err := s.a.Shell(ctx, "blockdev --getsize64 "+device+"; cd /sys/block/nbd0/queue; cat write_cache fua; ss -xH state connected src "+s.a.socket()+" | wc -l")
	if err != nil {
		return err
	}
	want := fmt.Sprintf("%d\nwrite back\n1\n%d", s.volume, connections)
	if err := s.Assert(out == want, "the kernel's device has the volume's size, a write cache, FUA and %d connections: %s", connections, strings.ReplaceAll(out, "\n", ", ")); err != nil {
		return err
	}
	_, err = s.a.Shell(ctx, s.fs.mkfs+" "+device+" >&2 && "+s.fs.mount(device)+" && mkdir "+mountPoint+"/fio "+mountPoint+"/noise "+mountPoint+"/before")
	return err
}

// fioJob is written once and verified as often as one likes: the same seeds give
// the same offsets and sizes.
const fioJob = `fio --name=verified --directory=` + mountPoint + `/fio --size=16M --rw=randwrite --bsrange=4k-64k --ioengine=libaio --direct=1 --iodepth=8 ` +
	`--verify=crc32c --verify_fatal=1 --verify_state_save=0 --end_fsync=1 --output-format=json `

type fioReport struct {
	Jobs []struct {
		Error int   `json:"error"`
		Read  fioIO `json:"read"`
		Write fioIO `json:"write"`
	} `json:"jobs"`
}

type fioIO struct {
	Bytes int64 `json:"io_bytes"`
}

// fioOutcome is the bytes read and written by a job without errors. fio puts
// messages before its JSON.
func fioOutcome(out string) (read, written int64, err error) {
	var r fioReport
	if i := strings.Index(out, "{"); i >= 0 {
		err = json.Unmarshal([]byte(out[i:]), &r)
	}
	if err != nil || len(r.Jobs) != 1 {
		return 0, 0, fmt.Errorf("this is no report of a fio job: %w: %.200s", err, out)
	}
	if j := r.Jobs[0]; j.Error != 0 {
		return 0, 0, fmt.Errorf("fio: error %d", j.Error)
	}
	return r.Jobs[0].Read.Bytes, r.Jobs[0].Write.Bytes, nil
}

func (s *smoke) fio(ctx context.Context) error {
	out, err := s.a.Shell(ctx, fioJob+"--do_verify=0")
	if err != nil {
		return err
	}
	if _, s.fioBytes, err = fioOutcome(out); err != nil {
		return err
	}
	// The folder entry is the filesystem's, and is what the cut could take.
	if _, err := s.a.Shell(ctx, "sync -f "+mountPoint); err != nil {
		return err
	}
	if err := s.fioVerify(ctx, s.a); err != nil {
		return err
	}
	st, err := s.a.status(ctx)
	if err != nil {
		return err
	}
	return s.Assert(st.IO.Flush.Count > 0 && st.IO.Write.Errors+st.IO.Flush.Errors+st.IO.Read.Errors == 0,
		"the filesystem's barriers reach the agent (%d flushes beside %d writes), without an error", st.IO.Flush.Count, st.IO.Write.Count)
}

// fioVerify reads the device, not the page cache: the job is O_DIRECT.
func (s *smoke) fioVerify(ctx context.Context, n *node) error {
	out, err := n.Shell(ctx, fioJob+"--verify_only")
	if err != nil {
		return err
	}
	read, _, err := fioOutcome(out)
	if err != nil {
		return err
	}
	return s.Assert(s.fioBytes >= 16<<20 && read == s.fioBytes, "fio --verify on %s: %d of %d bytes read back", n.Name, read, s.fioBytes)
}

func (s *smoke) powerCut(ctx context.Context) error {
	// Beside the writers, pages that nobody has fsynced: they make the journal's
	// commits large, and there is always something in flight.
	if _, err := s.a.Start(ctx, "fio --name=noise --directory="+mountPoint+"/noise --size=16M --rw=randwrite --bs=4k --ioengine=psync --time_based --runtime=300 --rate_iops=20 >/dev/null 2>&1"); err != nil {
		return err
	}
	ended := s.writeRecords(ctx, s.a.Machine, mountPoint+"/before", seedBefore, &s.before)
	if err := s.acknowledged(ctx, &s.before, ackedBeforeCut, ended); err != nil {
		return err
	}
	for _, n := range []*node{s.a, s.b} {
		if rate, err := n.ClockRate(ctx); err != nil || rate < 0.95 || rate > 1.05 {
			return fmt.Errorf("%s: %.3f seconds pass in a second, so no lease means anything: %w", n.Name, rate, err)
		}
	}
	if _, err := s.a.until(ctx, time.Minute, "Primary of {a,b}", func(st control.Status) bool {
		return st.Epoch == s.epoch && inSync(st) == "a,b"
	}); err != nil {
		return err
	}
	s.cut = time.Now()
	s.a.PowerCut()
	s.a.pid = 0
	if err := <-ended; !errors.Is(err, vm.ErrOff) {
		return fmt.Errorf("the writers ended by themselves: %v", err)
	}
	s.Logf("  cut at %d acknowledged fsyncs", s.before.Total())
	return s.checkCanary()
}

func (s *smoke) checkCanary() error {
	b, err := os.ReadFile(s.a.Disks[1].Image)
	if err != nil {
		return err
	}
	kept := strings.HasPrefix(string(b), "flushed\nflushed\n")
	forgotten := !slices.ContainsFunc(b[1<<20:2<<20], func(c byte) bool { return c != 0 })
	return s.Assert(kept && forgotten, "the power cut took what was only acknowledged on a disk of its own, and left what was flushed")
}

func (s *smoke) promote(ctx context.Context) error {
	began := time.Now()
	if _, err := s.b.ctl(ctx, "promote"); err != nil {
		return err
	}
	took := time.Since(s.cut)
	s.Logf("  replctl promote took %.1f s", time.Since(began).Seconds())
	st, err := s.b.status(ctx)
	if err != nil {
		return err
	}
	// The last grant may be a heartbeat older than the cut, or a little more.
	return s.Assert(took > lease-2*heartbeat && st.Role == "Primary" && st.Epoch > s.epoch && inSync(st) == "b",
		"b is Primary %.1f s after the cut (lease %v), epoch %d after %d, in-sync set {%s}", took.Seconds(), lease, st.Epoch, s.epoch, inSync(st))
}

func (s *smoke) recover(ctx context.Context) error {
	if err := s.b.attach(ctx, connections); err != nil {
		return err
	}
	s.Logf("  attached %.1f s after the cut", time.Since(s.cut).Seconds())
	if _, err := s.b.Shell(ctx, s.fs.mount(device)); err != nil {
		return err
	}
	s.Logf("  mounted %.1f s after the cut", time.Since(s.cut).Seconds())
	r, err := checkRecords(ctx, s.b.Machine, mountPoint+"/before", seedBefore, &s.before)
	if err != nil {
		return err
	}
	if err := s.Assert(true, "all %d fsyncs that a acknowledged are on b: %d records intact, %d overwritten by later ones", r.Acknowledged, r.Intact, r.Overwritten); err != nil {
		return err
	}
	if err := s.fsck(ctx, s.b, "after the journal's replay"); err != nil {
		return err
	}
	return s.fioVerify(ctx, s.b)
}

// fsck of a filesystem that is mounted before and after.
func (s *smoke) fsck(ctx context.Context, n *node, when string) error {
	out, err := n.Shell(ctx, "umount "+mountPoint+" && "+s.fs.fsck+" "+device+" 2>&1")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	if _, err := n.Shell(ctx, s.fs.mount(device)); err != nil {
		return err
	}
	return s.Assert(true, "%s on %s, %s: clean", s.fs.fsck, n.Name, when)
}

func (s *smoke) rejoin(ctx context.Context) error {
	if _, err := s.b.Shell(ctx, "mkdir "+mountPoint+"/after"); err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	ended := s.writeRecords(writing, s.b.Machine, mountPoint+"/after", seedAfter, &s.after)
	if err := s.acknowledged(ctx, &s.after, 20, ended); err != nil {
		return err
	}
	st, err := s.b.status(ctx)
	if err != nil {
		return err
	}
	if err := s.Assert(peer(st).OutOfSyncBytes > 0 && peer(st).OutOfSyncBytes < s.volume,
		"b writes alone: %.1f of %d MiB are marked out of sync for a", float64(peer(st).OutOfSyncBytes)/(1<<20), s.volume>>20); err != nil {
		return err
	}
	sent := peer(st).SentBytes
	if err := s.a.PowerOn(ctx); err != nil {
		return err
	}
	if err := s.a.startAgent(ctx); err != nil {
		return err
	}
	began := time.Now()
	if _, err := s.b.ctl(ctx, "wait-sync --timeout 120s"); err != nil {
		return err
	}
	took := time.Since(began)
	alone := s.after.Total()
	// Some more that both must have at once.
	if err := s.acknowledged(ctx, &s.after, slices.Max(s.after.Acked())+5, ended); err != nil {
		return err
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		return fmt.Errorf("the writers ended by themselves: %v", err)
	}
	st, err = s.b.until(ctx, 10*time.Second, "Primary of {a,b}", func(st control.Status) bool {
		return st.Role == "Primary" && inSync(st) == "a,b" && peer(st).OutOfSyncBytes == 0
	})
	if err != nil {
		return err
	}
	// b counts a first and tells it then: the news may be a moment on its way.
	sa, err := s.a.until(ctx, 10*time.Second, "UpToDate Secondary", func(sa control.Status) bool {
		return sa.Role == "Secondary" && sa.Disk == "UpToDate"
	})
	if err != nil {
		return err
	}
	sent = peer(st).SentBytes - sent
	if err := s.Assert(sa.Role == "Secondary" && sa.Disk == "UpToDate" && sa.Epoch == st.Epoch,
		"a, whose host had restarted, is back in the set as Secondary, UpToDate, %.1f s after its agent started, under %d fsyncs", took.Seconds(), alone); err != nil {
		return err
	}
	if err := s.Assert(sent > 0 && sent < s.volume/2, "b sent %.1f MiB for that, new writes included, of a volume of %d MiB", float64(sent)/(1<<20), s.volume>>20); err != nil {
		return err
	}
	if r, err := checkRecords(ctx, s.b.Machine, mountPoint+"/after", seedAfter, &s.after); err != nil {
		return err
	} else if err := s.Assert(true, "all %d fsyncs that b acknowledged are there", r.Acknowledged); err != nil {
		return err
	}
	return s.fsck(ctx, s.b, "after all of it")
}

func (s *smoke) compare(ctx context.Context) error {
	if _, err := s.b.Shell(ctx, "umount "+mountPoint); err != nil {
		return err
	}
	if err := s.b.detach(ctx); err != nil {
		return err
	}
	for _, n := range []*node{s.a, s.b} {
		if err := n.stopAgent(ctx); err != nil {
			return fmt.Errorf("stop the agent of %s: %w", n.Name, err)
		}
	}
	// Not shut down: what is in the caches only is not on the disks.
	s.a.PowerCut()
	s.b.PowerCut()
	filled, err := compareImages(s.a.Disks[0].Image, s.b.Disks[0].Image, s.volume)
	if err != nil {
		return fmt.Errorf("the data areas of a and b: %w", err)
	}
	const least = 16 << 20 / 4096
	return s.Assert(filled > least, "the data areas on both disks, %d bytes each, are identical; %d blocks of 4 KiB are in use", s.volume, filled)
}
