package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/e2e/vm"
)

// What a filesystem and the kernel's block layer ask of the device, on the stock kernel and,
// after a move to the other node, on a newer one. There is no client: all is done on the server.
func filesystemScenarios() []Scenario {
	var all []Scenario
	for _, fs := range filesystems() {
		all = append(all, pairScenario("1-"+fs.name, fs.name+" on the device of the step nbd, with two processors: limits, sockets, fsync, fio, trim; and on a newer kernel", 10*time.Minute,
			pairOptions{fs: fs.name, alone: true, cpus: 2, mixed: true, tail: tailSize},
			func(p *pair) []step { return (&onKernel{pair: p}).steps() }))
	}
	return all
}

const tailSize = 16 << 20 // of the volume, behind the filesystem

type onKernel struct {
	*pair
	loads []*load // of each node that was primary, ended
}

func (s *onKernel) steps() []step {
	return []step{
		{"the device's limits", s.limits},
		{"fsyncs and fio, each processor with its socket", s.use},
		{"a hole in a file, and a trim", s.trim},
		{"moved to the other kernel", s.move},
		{"the device's limits there", s.limits},
		{"zeroes that do not travel", s.zeroes},
		{"fsyncs and fio there", s.use},
		{"a hole and a trim there", s.trim},
		{"all is there, and alike", s.end},
	}
}

func (s *onKernel) limits(ctx context.Context) error {
	out, err := s.primary.Shell(ctx, "uname -r; cd /sys/block/nbd0/queue; cat write_cache fua logical_block_size discard_max_bytes discard_granularity write_zeroes_max_bytes")
	if err != nil {
		return err
	}
	f := strings.Split(out, "\n")
	if len(f) != 7 {
		return fmt.Errorf("limits: %q", out)
	}
	positive := func(text string) bool { n, err := strconv.ParseInt(text, 10, 64); return err == nil && n > 0 }
	ok := f[0] == s.primary.KernelRelease() && f[1] == "write back" && f[2] == "1" && f[3] == "512" && positive(f[4]) && positive(f[5]) && positive(f[6]) == vm.SendsWriteZeroes(f[0])
	return s.Assert(ok, "kernel %s has a write cache, FUA, sectors of %s bytes, discards of up to %s bytes and at least %s, zeroes of up to %s bytes", f[0], f[3], f[4], f[5], f[6])
}

const fioMiB = 8

// fioOf is fioJob with a file for each node that was primary.
func (s *onKernel) fioOf(n *node) string {
	return strings.NewReplacer("--size=16M", fmt.Sprintf("--size=%dM", fioMiB), "/fio ", "/fio-"+n.Name+" ").Replace(fioJob)
}

// use has fio and writers of records at work at once, and sees that they are served by all sockets.
func (s *onKernel) use(ctx context.Context) error {
	n := s.primary
	if err := n.trace(ctx, "nbd/nbd_header_received", ""); err != nil {
		return err
	}
	w, err := s.write(ctx, n.Machine, fmt.Sprintf("%s/%s-%s", mountPoint, s.id, n.Name), seedBefore, 20)
	if err != nil {
		return err
	}
	// It writes from its own processor, and its processor's queue has a socket of its own.
	out, err := n.Shell(ctx, fmt.Sprintf("mkdir %s/fio-%s && taskset -c 1 %s", mountPoint, n.Name, s.fioOf(n)))
	if err != nil {
		return err
	}
	read, written, err := fioOutcome(out)
	if err != nil {
		return err
	}
	if err := s.more(ctx, w, 20); err != nil {
		return err
	}
	if err := s.stop(ctx, w); err != nil {
		return err
	}
	s.loads = append(s.loads, w)
	trace, err := n.traced(ctx, "nbd/nbd_header_received")
	if err != nil {
		return err
	}
	replies, err := repliesOf(trace)
	if err != nil {
		return err
	}
	const least = 40
	if err := s.Assert(len(replies) == connections && slices.Min(replies) >= least, "of %d replies of the agent to the kernel each of %d sockets carried its part: %v", sum(replies), len(replies), replies); err != nil {
		return err
	}
	if err := s.Assert(read == written && written >= fioMiB<<20, "fio --verify beside fsyncs: %d of %d bytes read back", read, written); err != nil {
		return err
	}
	return s.acknowledgedIsThere(ctx)
}

func sum(all []int) (n int) {
	for _, x := range all {
		n += x
	}
	return n
}

// acknowledgedIsThere finds what all loads were told of on the primary's disk, not in its memory.
func (s *onKernel) acknowledgedIsThere(ctx context.Context) error {
	if _, err := s.primary.Shell(ctx, "echo 3 >/proc/sys/vm/drop_caches"); err != nil {
		return err
	}
	for _, w := range s.loads {
		if err := s.check(ctx, s.primary.Machine, w.dir, w); err != nil {
			return err
		}
	}
	return nil
}

// trim punches a hole into a file, and trims, and sees that what was in the hole is gone from
// both disks, without a byte of zeroes having been written or sent.
func (s *onKernel) trim(ctx context.Context) error {
	const edge, some = 4 << 20, 1 << 20
	n := s.primary
	// XFS of the newer kernel walks its free space by size, and of two pieces of one size in one
	// group trims one: the second hole must not be as long as the first.
	hole := int64(16 << 20)
	if n == s.b {
		hole += 2 << 20
	}
	file := mountPoint + "/holey-" + n.Name
	// The first and the last are the checksums of what is not punched.
	edges := fmt.Sprintf("head -c %d %s | cksum; tail -c %[1]d %[2]s | cksum", edge, file)
	want, err := n.Shell(ctx, fmt.Sprintf("dd if=/dev/urandom of=%s bs=1M count=%d conv=fsync status=none; sync -f %[1]s; %[3]s", file, (hole+2*edge)>>20, edges))
	if err != nil {
		return err
	}
	full, err := s.inUse(ctx)
	if err != nil {
		return err
	}
	got, err := n.Shell(ctx, fmt.Sprintf("fallocate -p -o %d -l %d %s && sync -f %[3]s && echo 3 >/proc/sys/vm/drop_caches && cmp -n %[2]d -i %[1]d:0 %[3]s /dev/zero && %s", edge, hole, file, edges))
	if err != nil {
		return err
	}
	if err := s.Assert(got == want, "fallocate -p in a file of %s: %d MiB read as zeroes, and what is beside them is what it was", s.fs, hole>>20); err != nil {
		return err
	}
	var trimmed int64
	z, err := s.zeroing(ctx, func() error {
		before, err := n.status(ctx)
		if err != nil {
			return err
		}
		out, err := n.Shell(ctx, "fstrim -v "+mountPoint+" | grep -o '([0-9]* bytes)' | tr -dc 0-9")
		if err != nil {
			return err
		}
		if trimmed, err = strconv.ParseInt(out, 10, 64); err != nil {
			return fmt.Errorf("fstrim: %w", err)
		}
		// XFS of the newer kernel does not wait for the last of them, and counts more than it asks for.
		seen, since := int64(-1), time.Now()
		_, err = n.until(ctx, 30*time.Second, "at the last TRIM", func(st control.Status) bool {
			if now := int64(st.IO.Trim.Bytes - before.IO.Trim.Bytes); now != seen {
				seen, since = now, time.Now()
			}
			return seen >= hole && time.Since(since) > 2*time.Second
		})
		return err
	})
	if err != nil {
		return err
	}
	// ext4 may be filling its inode tables meanwhile.
	if err := s.Assert(trimmed >= hole && z.trims >= hole && z.disks[0] >= z.trims && z.disks[1] >= z.trims && z.written < hole && z.sent < z.written+some,
		"fstrim says %.1f MiB: TRIMs of %.1f MiB arrived, the disks had %.1f and %.1f MiB unmapped; %.2f MiB went over the link, of %.2f MiB that were written meanwhile",
		mib(trimmed), mib(z.trims), mib(z.disks[0]), mib(z.disks[1]), mib(z.sent), mib(z.written)); err != nil {
		return err
	}
	now, err := s.inUse(ctx)
	if err != nil {
		return err
	}
	freed := int64(full-now) * 4096
	return s.Assert(freed >= hole-some, "both disks are alike, and %.1f MiB that were in use on them are zero", mib(freed))
}

// inUse is how many blocks of both disks, which are alike, are not zero. The freeze flushes.
func (s *onKernel) inUse(ctx context.Context) (filled int, err error) {
	err = s.frozen(ctx, func() (err error) { filled, err = s.identical(); return err })
	return filled, err
}

// zeroed is what happened in bytes while something was done.
type zeroed struct {
	trims, zeroes int64 // that the primary's agent was asked for
	written       int64 // by clients of the agent
	sent          int64 // to the standby
	disks         [2]int64
}

// zeroing does something, and says what it had zeroed.
func (s *onKernel) zeroing(ctx context.Context, do func() error) (z zeroed, err error) {
	const event = "block/block_rq_complete"
	for _, n := range s.nodes() {
		// N is WRITE_ZEROES, with which the kernel unmaps where what is unmapped reads as zeroes.
		if err := n.trace(ctx, event, `rwbs ~ "N*" && dev == DEV`); err != nil {
			return z, err
		}
	}
	before, err := s.primary.status(ctx)
	if err != nil {
		return z, err
	}
	if err := do(); err != nil {
		return z, err
	}
	after, err := s.primary.status(ctx)
	if err != nil {
		return z, err
	}
	for i, n := range s.nodes() {
		trace, err := n.traced(ctx, event)
		if err != nil {
			return z, err
		}
		z.disks[i] = zeroedOf(trace)
	}
	since := func(of func(control.IOStatus) control.OpStatus) int64 {
		return int64(of(after.IO).Bytes - of(before.IO).Bytes)
	}
	z.trims = since(func(io control.IOStatus) control.OpStatus { return io.Trim })
	z.zeroes = since(func(io control.IOStatus) control.OpStatus { return io.WriteZeroes })
	z.written = since(func(io control.IOStatus) control.OpStatus { return io.Write })
	z.sent = peer(after).SentBytes - peer(before).SentBytes
	return z, nil
}

func (s *onKernel) move(ctx context.Context) error {
	st, err := s.primary.status(ctx)
	if err != nil {
		return err
	}
	was, heir := s.primary, s.standby
	if !vm.SendsWriteZeroes(was.KernelRelease()) {
		if err := s.Assert(st.IO.WriteZeroes.Count == 0 && st.IO.Trim.Count > 0, "kernel %s has sent %d TRIMs and no WRITE_ZEROES", was.KernelRelease(), st.IO.Trim.Count); err != nil {
			return err
		}
	}
	if _, err := heir.ctl(ctx, "promote"); err != nil {
		return err
	}
	if _, err := s.tookOver(ctx, heir, st.Epoch); err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	if err := s.Assert(vm.SendsWriteZeroes(heir.KernelRelease()), "%s serves, with kernel %s", heir.Name, heir.KernelRelease()); err != nil {
		return err
	}
	if err := s.acknowledgedIsThere(ctx); err != nil {
		return err
	}
	out, err := heir.Shell(ctx, s.fioOf(was)+"--verify_only")
	if err != nil {
		return err
	}
	read, _, err := fioOutcome(out)
	if err != nil {
		return err
	}
	return s.Assert(read >= fioMiB<<20, "fio --verify there of what was written before: %d bytes", read)
}

// zeroes are written to what is behind the filesystem, on the device itself: by BLKZEROOUT, and
// by a hole. The kernel does not send them but asks for them, and so does the agent.
func (s *onKernel) zeroes(ctx context.Context) error {
	from := s.filesystemSize()
	const half = tailSize / 2
	for _, how := range []string{
		fmt.Sprintf("blkdiscard -f -z -o %d -l %d %s", from, half, device),
		fmt.Sprintf("fallocate -p -o %d -l %d %s", from+half, half, device),
	} {
		if _, err := s.primary.Shell(ctx, fmt.Sprintf("dd if=/dev/urandom of=%s bs=1M count=%d seek=%d oflag=direct conv=notrunc,fsync status=none", device, tailSize>>20, from>>20)); err != nil {
			return err
		}
		full, err := s.tailFilled(from)
		if err != nil {
			return err
		}
		z, err := s.zeroing(ctx, func() error {
			_, err := s.primary.Shell(ctx, how+" && dd if=/dev/null of="+device+" conv=notrunc,fsync status=none")
			return err
		})
		if err != nil {
			return err
		}
		left, err := s.tailFilled(from)
		if err != nil {
			return err
		}
		const little = 1 << 20 // for what the filesystem may write meanwhile
		if err := s.Assert(full == tailSize/4096 && left == full/2, "%s: half of %d blocks are zero on both disks", strings.Fields(how)[0], full); err != nil {
			return err
		}
		if err := s.Assert(z.zeroes >= half && z.written < little && z.sent < little && z.disks[0] >= half && z.disks[1] >= half,
			"WRITE_ZEROES of %.1f MiB arrived, the disks zeroed %.1f and %.1f MiB themselves, and %.2f MiB went over the link", mib(z.zeroes), mib(z.disks[0]), mib(z.disks[1]), mib(z.sent)); err != nil {
			return err
		}
	}
	return nil
}

// tailFilled is how many blocks behind the filesystem are not zero, on either disk.
func (s *onKernel) tailFilled(from int64) (int, error) {
	var counts [2]int
	for i, n := range s.nodes() {
		f, err := os.Open(n.Disks[0].Image)
		if err != nil {
			return 0, err
		}
		b := make([]byte, tailSize)
		_, err = f.ReadAt(b, from)
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		for off := 0; off < len(b); off += 4096 {
			if strings.Trim(string(b[off:off+4096]), "\x00") != "" {
				counts[i]++
			}
		}
	}
	if counts[0] != counts[1] {
		return 0, fmt.Errorf("%d and %d blocks are filled", counts[0], counts[1])
	}
	return counts[0], nil
}

// end finds that no trim has taken more than it should.
func (s *onKernel) end(ctx context.Context) error {
	if err := s.acknowledgedIsThere(ctx); err != nil {
		return err
	}
	return s.audit(ctx)
}
