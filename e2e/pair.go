package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/e2e/records"
	"tandem/e2e/vm"
)

// pair is two servers with the whole service of a user's configuration, etcd, and an NFS
// client with the export mounted. It outlives a scenario that has gone well: the next one
// that wants the same begins with what is there, in whatever order the nodes are by then.
type pair struct {
	*Run
	pairOptions
	a, b   *node
	client *vm.Machine // nil if there is none

	primary, standby *node // as of the last look

	cloud *cloud // nil without pairOptions.aws

	booted time.Time
	volume int64 // bytes of data on each disk
	key    string
}

// pairOptions are what makes two pairs different.
type pairOptions struct {
	fs        string // ext4 or xfs
	version   string // of the client's NFS mount
	alone     bool   // without a client, and what is for clients
	memoryMiB int    // of a server; 0: 512
	failover  string // more keys of failover, "freeze: 8s, self_fence: reboot"
	canary    bool   // a small disk beside the volume
	cpus      int    // of a server; 0: as many as suit the lab
	mixed     bool   // b has a newer kernel
	tail      int64  // bytes at the volume's end that the filesystem leaves alone
	patience  string // timeout of the steps nbd and mount; "": patienceOf
	aws       string // the step of AWS's that is in place of vip: eip or overlay-route

	// nfsLease is nfsd's, and so its grace. A client of version 4 gives a connection up after about
	// twice that without an answer. 0: the constants.
	nfsLease time.Duration
}

const (
	serviceAddress = "10.77.0.100"
	clientMount    = "/n"

	// The kernel takes no shorter ones.
	nfsLease = 10 * time.Second
	nfsGrace = 10 * time.Second
)

func (o pairOptions) filesystem() filesystem {
	all := filesystems()
	return all[slices.IndexFunc(all, func(f filesystem) bool { return f.name == o.fs })]
}

// configuration of n with its whole service.
func (p *pair) configuration(n, peer *node, etcd string) string {
	more := ""
	if p.failover != "" {
		more = ", " + p.failover
	}
	return strings.NewReplacer(
		"auto: false", "auto: true",
		"lease: "+lease.String(), "lease: "+lease.String()+more,
		`"file:/e2e/witness/record?shared=yes"`, "etcd://"+etcd+"/"+p.key,
	).Replace(configuration(n, peer)) + p.cloud.configuration(n, serviceSteps(n, p.pairOptions))
}

// address is the one that the client mounts from.
func (p *pair) address() string {
	if p.cloud != nil {
		return p.cloud.address
	}
	return serviceAddress
}

// serviceSteps is the part of a node's configuration that this is about. What is for clients is
// left out where there is none.
func serviceSteps(n *node, o pairOptions) string {
	all := strings.NewReplacer("DEVICE", device, "CONNECTIONS", fmt.Sprint(connections), "MOUNT", mountPoint, "TYPE", o.fs, "ADDRESS", serviceAddress,
		"VERSION", o.version, "LEASE", cmp.Or(o.nfsLease, nfsLease).String(), "GRACE", cmp.Or(o.nfsLease, nfsGrace).String(), "CLUSTER", cluster, "PATIENCE", cmp.Or(o.patience, patienceOf(o.fs))).Replace(`service:
- nbd: {device: DEVICE, connections: CONNECTIONS}
  timeout: PATIENCE
- mount: {device: DEVICE, path: MOUNT, type: TYPE}
  timeout: PATIENCE
- nfs: {path: MOUNT, clients: 10.77.0.0/24, options: "rw,sync,no_subtree_check,no_root_squash", fsid: 1, versions: [VERSION], lease: LEASE, grace: GRACE, scope: CLUSTER}
  timeout: 30s
- vip: {address: ADDRESS/24, interface: eth0}
  timeout: 10s
`)
	if o.alone {
		all, _, _ = strings.Cut(all, "- nfs:")
	}
	return all
}

// pairScenario is one whose first step makes or takes over a pair.
func pairScenario(id, name string, limit time.Duration, o pairOptions, steps func(*pair) []step) Scenario {
	return Scenario{ID: id, Name: name, Limit: limit, pair: &o, begin: func(r *Run) []step {
		p := r.left
		if p == nil {
			p = &pair{pairOptions: o}
		}
		p.Run, r.pair = r, p
		return append([]step{{"two servers in sync, the service up", p.ready}}, steps(p)...)
	}}
}

// patienceOf a mount: some mounts of XFS by kernel 6.1 write 2 MiB in pieces of 1 KiB, one after the
// other, and in emulation each takes up to 10 ms when it is mirrored.
func patienceOf(fs string) string {
	if fs == "xfs" {
		return "60s"
	}
	return "20s"
}

// quietly says that a scenario's times are short ones, or its load as much as it bears.
func quietly(s Scenario) Scenario {
	s.quiet = true
	return s
}

// nodes are both, in the order of their names.
func (p *pair) nodes() []*node { return []*node{p.a, p.b} }

// machines are all.
func (p *pair) machines() []*vm.Machine {
	all := []*vm.Machine{p.a.Machine, p.b.Machine}
	if p.client != nil {
		all = append(all, p.client)
	}
	return all
}

// ready brings the pair up, or whatever of it is down.
func (p *pair) ready(ctx context.Context) error {
	if p.a == nil {
		if err := p.boot(ctx); err != nil {
			return err
		}
		return p.bringUp(ctx)
	}
	p.Logf("  the pair of the scenario before")
	for _, n := range p.nodes() {
		if _, err := n.status(ctx); err != nil {
			if err := p.revive(ctx, n); err != nil {
				return err
			}
		}
	}
	return p.whole(ctx)
}

func (p *pair) boot(ctx context.Context) error {
	etcd, err := p.Lab.Etcd(ctx)
	if err != nil {
		return err
	}
	p.booted = time.Now()
	p.key = fmt.Sprintf("tandem/%s-%d", cluster, p.booted.UnixNano())
	memory := p.memoryMiB
	if memory == 0 {
		memory = 512
	}
	for _, n := range []**node{&p.a, &p.b} {
		m, err := p.Lab.Add(vm.Spec{MemoryMiB: memory, Disks: canaryDisks(p.pairOptions), CPUs: p.cpus, Newer: p.mixed && n == &p.b})
		if err != nil {
			return err
		}
		*n = &node{Machine: m}
	}
	if !p.alone {
		if p.client, err = p.Lab.Add(vm.Spec{MemoryMiB: 384}); err != nil {
			return err
		}
	}
	if p.aws != "" {
		if err := p.rent(ctx); err != nil {
			return err
		}
	}
	for _, of := range [][2]*node{{p.a, p.b}, {p.b, p.a}} {
		dir := of[0].dir(p.Lab)
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "tandem.yaml"), []byte(p.configuration(of[0], of[1], etcd)), 0o644)); err != nil {
			return err
		}
	}
	if err := p.certificates(ctx); err != nil {
		return err
	}
	if err := errors.Join(atOnce(func(m *vm.Machine) error { return m.PowerOn(ctx) }, p.machines()...)...); err != nil {
		return err
	}
	if p.cloud != nil {
		p.Lab.AtClear(p.cloud.route(p.client))
	}
	return nil
}

// bringUp is a user's first start, as README has it: a fresh volume, and the whole service in
// the config.
func (p *pair) bringUp(ctx context.Context) error {
	if err := errors.Join(atOnce(func(n *node) error { _, err := n.ctl(ctx, "init"); return err }, p.a, p.b)...); err != nil {
		return err
	}
	if err := p.a.startAgent(ctx); err != nil {
		return err
	}
	if _, err := p.a.ctl(ctx, "promote"); err != nil {
		return err
	}
	st, err := p.a.until(ctx, time.Minute, "at a mount that fails", func(st control.Status) bool {
		return len(st.Service) > 1 && st.Service[0].State == "running" && st.Service[1].Error != ""
	})
	if err != nil {
		return err
	}
	if want := "type mkfs." + p.fs + " " + device; !strings.Contains(st.Service[1].Error, want) {
		return fmt.Errorf("the step mount does not say %q: %s", want, st.Service[1].Error)
	}
	p.volume = st.Volume.SizeBytes
	if p.volume < diskSize*3/4 || p.volume > diskSize {
		return fmt.Errorf("a volume of %d bytes on a disk of %d", p.volume, diskSize)
	}
	if _, err := p.a.Shell(ctx, p.filesystem().mkfsOf(device, p.filesystemSize())+" >&2"); err != nil {
		return err
	}
	if _, err := p.a.until(ctx, time.Minute, "a primary with every step up", up); err != nil {
		return err
	}
	if err := p.b.startAgent(ctx); err != nil {
		return err
	}
	if err := p.whole(ctx); err != nil {
		return err
	}
	if p.alone {
		return nil
	}
	if p.cloud != nil {
		if _, err := p.cloud.led(ctx, p.primary); err != nil {
			return err
		}
	}
	_, err = p.client.Shell(ctx, p.mountCommand())
	return err
}

// filesystemSize leaves the tail alone, and begins that at a whole MiB.
func (p *pair) filesystemSize() int64 {
	if p.tail == 0 {
		return p.volume
	}
	return (p.volume - p.tail) &^ (1<<20 - 1)
}

func (p *pair) mountCommand() string {
	if p.version == "3" {
		return fmt.Sprintf("modprobe nfsv3 && rpcbind && rpc.statd --no-notify && mkdir -p %s && mount -t nfs -o vers=3,hard,proto=tcp %s:%s %[1]s", clientMount, p.address(), mountPoint)
	}
	return fmt.Sprintf("modprobe nfsv4 && mkdir -p %s && mount -t nfs4 -o vers=%s,hard %s:%s %[1]s", clientMount, p.version, p.address(), mountPoint)
}

// whole waits until one is Primary with every step up and the other in sync, and notes which.
func (p *pair) whole(ctx context.Context) error {
	began := time.Now()
	for said := began; ; {
		for _, n := range p.nodes() {
			st, err := n.status(ctx)
			if err == nil && up(st) && inSync(st) == "a,b" && peer(st).OutOfSyncBytes == 0 && peer(st).Link == "Connected" {
				p.primary, p.standby = n, p.other(n)
				return nil
			}
			if time.Since(said) > 10*time.Second {
				said = time.Now()
				p.Logf("  %s: %s, %s, in sync %q, %d bytes behind, link %s, %v", n.Name, st.Role, stepStates(st), inSync(st), peer(st).OutOfSyncBytes, peer(st).Link, err)
			}
		}
		if err := ctx.Err(); err != nil || time.Since(began) > 2*time.Minute {
			return errors.Join(errors.New("the pair did not become whole within two minutes"), err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func stepStates(st control.Status) string {
	var all []string
	for _, s := range st.Service {
		all = append(all, s.Step+" "+s.State)
	}
	return strings.Join(all, ", ")
}

func (p *pair) other(n *node) *node {
	if n == p.a {
		return p.b
	}
	return p.a
}

// cutPower of a node, and what it had in memory is gone.
func (p *pair) cutPower(n *node) time.Time {
	at := time.Now()
	n.PowerCut()
	n.pid = 0
	return at
}

// revive switches a node on if it is off, and starts its agent.
func (p *pair) revive(ctx context.Context, n *node) error {
	if _, err := n.Shell(ctx, "true"); errors.Is(err, vm.ErrOff) {
		if err := n.PowerOn(ctx); err != nil {
			return err
		}
	}
	return n.startAgent(ctx)
}

// steady fails if the machines' clocks run at another rate than ours, because then no time
// that is taken here means anything. Of a machine that has just booted it is not known well.
func (p *pair) steady(ctx context.Context) error {
	const patience = 15 * time.Second
	for _, m := range p.machines() {
		for began := time.Now(); ; time.Sleep(time.Second) {
			rate, err := m.ClockRate(ctx)
			if err != nil {
				return err
			}
			if rate > 0.95 && rate < 1.05 {
				break
			}
			if time.Since(began) > patience {
				return fmt.Errorf("%s: %.3f seconds pass in a second", m.Name, rate)
			}
		}
	}
	return nil
}

// up says that this is a primary and every step of its service runs.
func up(st control.Status) bool {
	if st.Role != "Primary" || len(st.Service) == 0 {
		return false
	}
	for _, step := range st.Service {
		if step.State != "running" {
			return false
		}
	}
	return true
}

// tookOver waits until n is primary with every step up, prints how its time was spent, and
// exchanges primary and standby if that is news.
func (p *pair) tookOver(ctx context.Context, n *node, after uint64) (control.Status, error) {
	st, err := n.until(ctx, 90*time.Second, "primary with every step up", func(st control.Status) bool { return up(st) && st.Epoch > after })
	if err != nil {
		return st, err
	}
	p.primary, p.standby = n, p.other(n)
	history, err := n.ctl(ctx, "history")
	if err != nil {
		return st, err
	}
	lines := strings.Split(strings.TrimSpace(history), "\n")
	for _, line := range lines[max(0, len(lines)-14):] {
		p.Logf("  %s: %s", n.Name, line)
	}
	return st, nil
}

// load is writers on a machine: each record is durable before it is acknowledged.
type load struct {
	on     *vm.Machine
	dir    string
	seed   int
	ledger records.Ledger
	pauses pauses
	ended  <-chan error
}

// write starts writers in a folder of their own, and waits for the first n records of each.
func (p *pair) write(ctx context.Context, on *vm.Machine, dir string, seed, n int) (*load, error) {
	if _, err := on.Shell(ctx, "rm -rf "+dir+" && mkdir "+dir); err != nil {
		return nil, err
	}
	w := &load{on: on, dir: dir, seed: seed}
	w.ended = p.writeRecords(ctx, on, dir, seed, io.MultiWriter(&w.ledger, &w.pauses))
	return w, p.acknowledged(ctx, &w.ledger, n, w.ended)
}

// writeOnClient is write over NFS.
func (p *pair) writeOnClient(ctx context.Context, n int) (*load, error) {
	return p.write(ctx, p.client, clientMount+"/"+p.id, seedBefore, n)
}

// more waits until each writer has n more records than now.
func (p *pair) more(ctx context.Context, w *load, n int) error {
	most := 0
	if a := w.ledger.Acked(); len(a) > 0 {
		most = slices.Max(a)
	}
	return p.acknowledged(ctx, &w.ledger, most+n, w.ended)
}

// next waits for the first acknowledgement after this call and returns how long after then
// it came, and how many there were before.
func (p *pair) next(ctx context.Context, w *load, then time.Time) (took time.Duration, before int, err error) {
	time.Sleep(500*time.Millisecond - time.Since(then)) // what was on its way here
	before = w.ledger.Total()
	p.Logf("  %d acknowledged fsyncs so far", before)
	for w.ledger.Total() == before {
		select {
		case err := <-w.ended:
			return 0, before, fmt.Errorf("the writers ended: %w", err)
		case <-ctx.Done():
			return 0, before, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return time.Since(then), before, nil
}

// stop has the writers end, which must have had no error. They finish what they are at, and
// all that they have said has arrived.
func (p *pair) stop(ctx context.Context, w *load) error {
	if _, err := w.on.Shell(ctx, "pkill -TERM -f 'e2e-guest [w]rite "+w.dir+" '"); err != nil {
		return err
	}
	select {
	case err := <-w.ended:
		if err != nil {
			return fmt.Errorf("the writers ended by themselves, after %v: %w", w.ledger.Acked(), err)
		}
		return nil
	case <-time.After(time.Minute):
		return errors.New("the writers do not end")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// verify stops the writers of an NFS client and finds everything that they were told of: on
// the client, whose pages are dropped first, and in the primary's filesystem.
func (p *pair) verify(ctx context.Context, w *load) error {
	if err := p.stop(ctx, w); err != nil {
		return err
	}
	out, err := p.client.Shell(ctx, "grep ' "+clientMount+" ' /proc/mounts; dmesg | grep -ci 'stale\\|reclaim.*fail\\|fail.*reclaim\\|lost .*lock\\|i/o error' || true")
	if err != nil {
		return err
	}
	if err := p.Assert(strings.Contains(out, "vers="+p.version) && strings.HasSuffix(out, "\n0"), "the mount is the one of before, and the client's kernel has complained of nothing"); err != nil {
		return err
	}
	if _, err := p.client.Shell(ctx, "echo 3 >/proc/sys/vm/drop_caches"); err != nil {
		return err
	}
	for _, at := range []struct {
		m   *vm.Machine
		dir string
	}{{p.client, w.dir}, {p.primary.Machine, strings.Replace(w.dir, clientMount, mountPoint, 1)}} {
		if err := p.check(ctx, at.m, at.dir, w); err != nil {
			return err
		}
	}
	return nil
}

// check finds what a load's writers were told of in a folder as a machine sees it.
func (p *pair) check(ctx context.Context, on *vm.Machine, dir string, w *load) error {
	r, err := checkRecords(ctx, on, dir, w.seed, &w.ledger)
	if err != nil {
		return err
	}
	return p.Assert(r.Acknowledged > 0, "all %d fsyncs that the writers were told of are seen on %s: %d records intact, %d overwritten by later ones",
		r.Acknowledged, on.Name, r.Intact, r.Overwritten)
}

// finish is how most scenarios end: the pair is whole, every fsync that a client was told of
// is there, both disks are alike, and the files make room for the next scenario's.
func (p *pair) finish(ctx context.Context, w *load) error {
	if err := p.whole(ctx); err != nil {
		return err
	}
	if err := p.verify(ctx, w); err != nil {
		return err
	}
	if err := p.drop(ctx, w); err != nil {
		return err
	}
	return p.audit(ctx)
}

// drop removes a load's files.
func (p *pair) drop(ctx context.Context, w *load) error {
	_, err := w.on.Shell(ctx, "rm -rf "+w.dir)
	return err
}

// resynced reads from the primary's log what came of the peer's return.
var resynced = regexp.MustCompile(`resync to \S+ ends: (\d+) bytes compared, (\d+) differed`)

// bounded asserts that what the primary has resynced since mark is what was marked out of sync
// and what was hot, and never the whole device. behind is what it said before the return.
func (p *pair) bounded(mark, behind int64) error {
	log, err := p.primary.logSince(p.Lab, mark)
	if err != nil {
		return err
	}
	if strings.Contains(log, " in full ") {
		return fmt.Errorf("%s compared the whole device: %s", p.primary.Name, log)
	}
	all := resynced.FindAllStringSubmatch(log, -1)
	if len(all) == 0 {
		// Nothing to compare is said by the verdict.
		return p.Assert(strings.Contains(log, ", 0 blocks dirty"), "there was nothing to resync")
	}
	var compared, differed int64
	for _, m := range all {
		c, err1 := strconv.ParseInt(m[1], 10, 64)
		d, err2 := strconv.ParseInt(m[2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		compared, differed = compared+c, differed+d
	}
	// The extents that were hot where the power went are bits, too.
	limit := behind + p.volume/2
	return p.Assert(compared < limit && compared < p.volume*3/4 && differed <= compared,
		"the resync compared %.1f MiB and sent %.1f MiB of a volume of %d MiB; %.1f MiB were marked before the return", mib(compared), mib(differed), p.volume>>20, mib(behind))
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// heldBack asserts that a node that is alone does not serve for longer than any promise lasts,
// although it can read the record, and that it leaves the record alone.
func (p *pair) heldBack(ctx context.Context, n *node, disk string) error {
	const long = lease + lease/10 + 3*time.Second
	// Without the record it would not serve either, and nothing would be shown.
	first, err := n.until(ctx, 20*time.Second, "a reader of the record", func(st control.Status) bool { return st.Witness.OK && st.Record != nil })
	if err != nil {
		return err
	}
	for end := time.Now().Add(long); ; time.Sleep(500 * time.Millisecond) {
		st, err := n.status(ctx)
		if err != nil {
			return err
		}
		if st.Role != "Secondary" || !st.Witness.OK || st.Record == nil || st.Record.Serial != first.Record.Serial {
			return fmt.Errorf("%s alone is %s in epoch %d, the witness %+v, the record %+v after %+v", n.Name, st.Role, st.Epoch, st.Witness, st.Record, first.Record)
		}
		if time.Now().After(end) {
			return p.Assert(st.Disk == disk, "%s, back alone, serves nothing for %v and reads record %d, which stays: Secondary, %s", n.Name, long, st.Record.Serial, st.Disk)
		}
	}
}

// audit looks at both disks from outside while the filesystem is frozen, and all of it flushed.
// Whoever writes waits that long. A frozen ext4 is as an unmount would leave it; XFS leaves its
// log to be replayed, so it is stopped to be checked.
func (p *pair) audit(ctx context.Context) error {
	if err := p.whole(ctx); err != nil {
		return err
	}
	if err := p.frozen(ctx, func() error {
		const least = 256
		filled, err := p.identical()
		if err != nil {
			return err
		}
		if err := p.Assert(filled > least, "the data areas on both disks, %d bytes each, are identical; %d blocks of 4 KiB are in use", p.volume, filled); err != nil || p.fs == "xfs" {
			return err
		}
		return p.fsck(ctx, p.a, p.b)
	}); err != nil || p.fs != "xfs" {
		return err
	}
	n := p.primary
	if err := p.standby.stopAgent(ctx); err != nil { // or it would take over
		return err
	}
	if _, err := n.until(ctx, time.Minute, "alone", func(st control.Status) bool { return inSync(st) == n.Name }); err != nil {
		return err
	}
	if _, err := n.ctl(ctx, "demote"); err != nil {
		return err
	}
	if err := p.fsck(ctx, n); err != nil {
		return err
	}
	if _, err := n.ctl(ctx, "promote"); err != nil {
		return err
	}
	if err := p.standby.startAgent(ctx); err != nil {
		return err
	}
	return p.whole(ctx)
}

// frozen does something while the primary's filesystem is frozen. What it has written last, XFS
// its superblock, is not flushed by that.
func (p *pair) frozen(ctx context.Context, do func() error) error {
	if _, err := p.primary.Shell(ctx, "fsfreeze -f "+mountPoint+" && dd if=/dev/null of="+device+" conv=notrunc,fsync status=none"); err != nil {
		return err
	}
	err := do()
	_, thaw := p.primary.Shell(ctx, "fsfreeze -u "+mountPoint)
	return errors.Join(err, thaw)
}

// bare asserts leftNothing.
func (p *pair) bare(ctx context.Context, n *node) error {
	if err := p.leftNothing(ctx, n); err != nil {
		return err
	}
	return p.Assert(true, "%s has stopped: no thread, mount, recorder, device, address or export is left", n.Name)
}

// leftNothing waits until nothing of the service is left on a node, in its kernel too.
func (p *pair) leftNothing(ctx context.Context, n *node) error {
	if _, err := n.until(ctx, time.Minute, "without a service", func(st control.Status) bool {
		for _, step := range st.Service {
			if step.State != "stopped" {
				return false
			}
		}
		return st.Role == "Secondary"
	}); err != nil {
		return err
	}
	out, err := n.Shell(ctx, `cat /proc/fs/nfsd/threads; grep -c nbd /proc/mounts; pgrep -x "nfsdcld|rpc.statd|sm-notify"; test -e /sys/fs/`+p.fs+`/nbd0 && echo alive; test -e /sys/block/nbd0/pid && echo attached
		test -e /run/tandem-nfsd && echo noted; ip -o addr show | grep -c `+p.address()+`; grep . /var/lib/nfs/etab; true`)
	if err != nil {
		return err
	}
	if out != "0\n0\n0" {
		return fmt.Errorf("%s has stopped, and threads, mounts, addresses, recorder, device or exports are left: %s", n.Name, strings.ReplaceAll(out, "\n", ", "))
	}
	return nil
}

// identical compares the disks while nobody writes: what was flushed is in the images. It
// returns how many blocks of 4 KiB are in use.
func (p *pair) identical() (filled int, err error) {
	if filled, err = compareImages(p.a.Disks[0].Image, p.b.Disks[0].Image, p.volume); err != nil {
		return filled, fmt.Errorf("the data areas of a and b: %w", err)
	}
	return filled, nil
}

// fsck checks images of filesystems that are not mounted, or frozen.
func (p *pair) fsck(ctx context.Context, nodes ...*node) error {
	for _, n := range nodes {
		argv := append(strings.Fields(p.filesystem().fsck), n.Disks[0].Image)
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %s: %w\n%s", n.Name, p.filesystem().fsck, err, out)
		}
	}
	return p.Assert(true, "%s: clean", p.filesystem().fsck)
}
