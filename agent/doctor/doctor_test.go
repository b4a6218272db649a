package doctor

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"golang.org/x/sys/unix"

	"tandem/agent/certs"
	"tandem/agent/config"
	"tandem/blockrepl/disk"
	"tandem/blockrepl/meta"
	"tandem/failover/awsclient/instance"
	"tandem/failover/record"
	"tandem/failover/witness"
)

// fixture is a node on which every check finds that all is well: an EC2 instance with an EBS
// volume and every kind of step, whose agent does not run.
type fixture struct {
	t    *testing.T
	root string
	yaml string
	cfg  *config.Config // after load
	sys  System
	peer Facts
	ec2  *fakeEC2
	meta Metadata

	agent   int // its process; 0: it does not run
	absent  []string
	claimed error
	peerErr error
	metaErr error
	after   func() // breaks what is there once the config is read
}

const (
	volumeID = "vol-0123456789abcdef0"
	byID     = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"
)

const allSteps = `cluster: nfs1
node: a
listen: 127.0.0.1:7788
http: 127.0.0.1:7790
peers: [{node: b, address: 127.0.0.1:7789}]
volume: {device: ` + byID + `, size: 1GiB, metadata: a.md}
nbd: {socket: a.nbd, tcp: "127.0.0.1:10809"}
control: a.sock
tls: {ca: ca.pem, cert: a.pem, key: a.key}
witness: file:witness
failover: {self_fence: reboot}
fence: {ec2: {detach_volume: true}}
on_change: [tell-me]
service:
  - exec: {start: [start-app], stop: [stop-app], check: [check-app]}
  - nbd: {device: /dev/nbd0}
  - mount: {device: /dev/nbd0, path: /srv/nfs}
  - nfs: {path: /srv/nfs, clients: 10.0.0.0/8, versions: [3, 4.2]}
  - private-ip: {address: 10.0.0.9, interface: eth0}
  - eip: {allocation: eipalloc-0123456789abcdef0}
  - overlay-route: {cidr: 10.99.0.1/32, tables: [rtb-0123456789abcdef0, rtb-0123456789abcdef1]}
`

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, root: t.TempDir(), yaml: allSteps, ec2: newFakeEC2(), meta: Metadata{Size: 1 << 30, Identity: "serial:vol0123456789abcdef0"}}
	if _, err := certs.Create(f.root, "nfs1", []string{"a", "b"}, certs.Options{}); err != nil {
		t.Fatal(err)
	}
	f.file("sys/devices/system/clocksource/clocksource0/current_clocksource", "kvm-clock")
	f.file("sys/devices/nvme1n1/dev", "259:1")
	f.file("sys/devices/nvme1n1/queue/logical_block_size", "512")
	f.file("sys/devices/nvme1n1/queue/write_cache", "write through")
	f.file("sys/devices/nvme1n1/device/model", "Amazon Elastic Block Store              ")
	f.file("sys/devices/nvme1n1/device/serial", "vol0123456789abcdef0")
	f.file("sys/devices/nvme1n1/nvme1n1p1/dev", "259:2")
	f.file("sys/devices/nvme1n1/nvme1n1p1/partition", "1")
	f.folder("sys/devices/nvme1n1/holders")
	f.folder("sys/devices/nvme1n1/nvme1n1p1/holders")
	f.folder("sys/class/block")
	f.link("sys/class/block/nvme1n1", "../../devices/nvme1n1")
	f.link("sys/class/block/nvme1n1p1", "../../devices/nvme1n1/nvme1n1p1")
	f.file("sys/devices/dm-0/dm/name", "vg-data")
	f.link("sys/class/block/dm-0", "../../devices/dm-0")
	f.file("proc/self/mountinfo", "22 1 259:0 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw")
	f.file("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1000 0 -2")
	f.listens(22, "0.0.0.0")
	f.file("proc/net/tcp6", "  sl  local_address remote_address st")
	f.file("proc/sys/kernel/osrelease", "6.1.0-9-cloud-amd64")
	f.file("lib/modules/6.1.0-9-cloud-amd64/modules.dep", "kernel/drivers/block/loop.ko:\nkernel/drivers/block/nbd.ko.xz:\n")
	f.file("lib/modules/6.1.0-9-cloud-amd64/modules.builtin", "kernel/fs/ext4/ext4.ko\n")
	f.file("dev/watchdog", "")
	return f
}

func (f *fixture) path(name string) string { return filepath.Join(f.root, name) }

func (f *fixture) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) folder(name string) { f.ok(os.MkdirAll(f.path(name), 0o755)) }

func (f *fixture) file(name, text string) {
	f.folder(filepath.Dir(name))
	f.ok(os.WriteFile(f.path(name), []byte(text+"\n"), 0o600))
}

func (f *fixture) link(name, to string) { f.ok(os.Symlink(to, f.path(name))) }

func (f *fixture) remove(name string) { f.ok(os.RemoveAll(f.path(name))) }

// replace changes the config.
func (f *fixture) replace(old, to string) {
	if !strings.Contains(f.yaml, old) {
		f.t.Fatalf("the config has no %q", old)
	}
	f.yaml = strings.Replace(f.yaml, old, to, 1)
}

// listens writes the kernel's list as it is with one listener, and one connection.
func (f *fixture) listens(port uint16, host string) {
	a := netip.MustParseAddr(host)
	b := a.AsSlice()
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	table := "tcp"
	if a.Is6() {
		table = "tcp6"
	}
	at := strings.ToUpper(hex.EncodeToString(b))
	f.file("proc/net/"+table, fmt.Sprintf("  sl  local_address rem_address   st tx_queue\n   0: %s:%04X %s:0000 0A 00000000:00000000\n   1: 0100007F:1E6C 0100007F:C350 01 00000000:00000000", at, port, at))
}

func (f *fixture) examine() []Finding {
	f.t.Helper()
	// The configs' paths are in the fixture's folder.
	cfg, err := config.Parse(f.path("a.yaml"), []byte(f.yaml), f.root)
	f.ok(err)
	f.cfg = cfg
	f.sys = System{
		Root: f.root, Now: time.Now, Instance: f.ec2,
		LookPath: func(program string) (string, error) {
			if slices.Contains(f.absent, filepath.Base(program)) {
				return "", errors.New("not found")
			}
			return "/usr/bin/" + program, nil
		},
		Agent: func(string) (int, bool) { return f.agent, f.agent != 0 },
		Block: func(string) (string, error) { return "nvme1n1", nil },
		Claim: func(string, bool) error { return f.claimed },
		Metadata: func(*config.Config) (Metadata, error) {
			return f.meta, f.metaErr
		},
		Witness: func(url, dir string) (witness.Store, error) { return witness.Open(url, dir) },
		Peer: func(context.Context, string) (Facts, error) {
			return f.peer, f.peerErr
		},
		EC2: func(context.Context) (EC2, error) { return f.ec2, nil },
	}
	f.peer = FactsOf(f.t.Context(), cfg, 1<<30, f.sys)
	f.peer.Node = "b"
	if f.after != nil {
		f.after()
	}
	return Examine(f.t.Context(), f.cfg, f.sys)
}

func show(all []Finding) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%-8s %-18s %s [%s]\n", f.Status, f.ID, f.Text, f.Fix)
	}
	return b.String()
}

// Every check finds that all is well, and none has anything to do then.
func TestAllIsWell(t *testing.T) {
	for _, f := range newFixture(t).examine() {
		if f.Status != OK || f.Fix != "" || f.Text == "" {
			t.Errorf("%+v", f)
		}
	}
}

// One thing is broken, and exactly the check that is for it says so.
func TestEachAlone(t *testing.T) {
	denied := &smithy.GenericAPIError{Code: "UnauthorizedOperation", Message: "no"}
	for _, tc := range []struct {
		name, id string
		status   Status
		text     string
		fix      string
		spoil    func(*fixture)
		skipped  []string // the checks that need what is broken
	}{
		{"no folder for the witness", "witness", Failed, "no such file", "`witness`",
			func(f *fixture) { f.replace("file:witness", "file:no/witness") }, []string{"witness-honest"}},
		{"another cluster's record", "witness", Failed, "the record of the cluster nfs2, and this is nfs1", "`witness`", func(f *fixture) {
			b, err := record.Encode(record.Record{
				Version: 1, Cluster: "nfs2", ClusterID: 1, Serial: 1, Epoch: 1, Primary: "x", InSync: []string{"x"}, Members: []record.Member{{Node: "x", DiskID: 1}},
				Generation: 1, Nonce: 1, ChangedBy: "x", ChangedAt: time.Unix(0, 0).UTC(), Reason: "create",
			})
			f.ok(err)
			store, err := witness.Open("file:witness", f.root)
			f.ok(err)
			_, err = store.CAS(f.t.Context(), "", b)
			f.ok(errors.Join(err, store.Close()))
		}, nil},
		{"what is no record", "witness", Failed, "is no cluster record", "nothing else uses", func(f *fixture) {
			store, err := witness.Open("file:witness", f.root)
			f.ok(err)
			_, err = store.CAS(f.t.Context(), "", []byte("hello"))
			f.ok(errors.Join(err, store.Close()))
		}, nil},
		{"a store that ignores conditions", "witness-honest", Failed, "ignores conditions", "another witness", func(f *fixture) {
			f.after = func() { f.sys.Witness = func(string, string) (witness.Store, error) { return obliging{}, nil } }
		}, nil},
		{"a store without room for the probe", "witness-honest", Failed, "cannot be probed: ", "write the keys", func(f *fixture) {
			f.after = func() {
				f.sys.Witness = func(string, string) (witness.Store, error) {
					return obliging{scratch: errors.New("permission denied")}, nil
				}
			}
		}, nil},
		{"the certificate expires soon", "certificates", Warning, "expires in 20 days", "replctl certs --cluster nfs1 --force a",
			func(f *fixture) { f.after = f.clock(time.Now().AddDate(10, 0, -20).Add(-time.Hour)) }, nil},
		{"the certificate has expired", "certificates", Failed, "has expired", "--force a", func(f *fixture) { f.after = f.clock(time.Now().AddDate(11, 0, 0)) }, nil},
		{"the clock is behind", "certificates", Failed, "is not valid before", "clock", func(f *fixture) { f.after = f.clock(time.Now().AddDate(-1, 0, 0)) }, nil},
		{"the other node's certificate", "certificates", Failed, `of node "b", this is "a"`, "--force a", func(f *fixture) { f.replace("cert: a.pem, key: a.key", "cert: b.pem, key: b.key") }, nil},
		{"another key", "certificates", Failed, "private key does not match", "--force a", func(f *fixture) { f.replace("key: a.key", "key: b.key") }, nil},
		{"no CA", "certificates", Failed, "tls.ca", "copy ca.pem", func(f *fixture) { f.remove("ca.pem") }, nil},
		{"a key for all to read", "certificates", Warning, "can be read by others", "chmod 600", func(f *fixture) { f.ok(os.Chmod(f.path("a.key"), 0o644)) }, nil},
		{"an unstable TSC", "clock-source", Warning, "acpi_pm", "Nitro", func(f *fixture) {
			f.file("sys/devices/system/clocksource/clocksource0/current_clocksource", "acpi_pm")
		}, nil},
		{"another fsid", "peer-equal", Failed, `nfs.fsid is "1" here and "2" on node b`, "the same on all nodes", func(f *fixture) { f.after = func() { f.peer.Settings["nfs.fsid"] = "2" } }, nil},
		{"another lease", "peer-equal", Failed, `failover.lease is "3s" here and "9s" on node b`, "the same", func(f *fixture) { f.after = func() { f.peer.Settings["failover.lease"] = "9s" } }, nil},
		{"a step less", "peer-equal", Failed, `service is "exec,nbd,mount,nfs,private-ip,eip,overlay-route" here and "nbd" on node b`, "the same", func(f *fixture) {
			f.after = func() { f.peer.Settings = map[string]string{"service": "nbd", "of another version": "1"} }
		}, nil},
		{"another size", "size-equal", Failed, "1073741824 bytes here and 4096 on node b", "volume.size", func(f *fixture) { f.after = func() { f.peer.SizeBytes = 4096 } }, nil},
		{"the device has shrunk", "size-equal", Failed, "wrong size", "size back", func(f *fixture) { f.metaErr = disk.ErrSize }, nil},
		{"blocks of 4 KiB", "sectors", Warning, "4096", "512", func(f *fixture) { f.file("sys/class/block/nvme1n1/queue/logical_block_size", "4096") }, nil},
		{"blocks of 64 KiB", "sectors", Failed, "65536", "512", func(f *fixture) { f.file("sys/class/block/nvme1n1/queue/logical_block_size", "65536") }, nil},
		{"it is mounted", "device-claimed", Failed, "nvme1n1 is mounted at /mnt", "stop that", func(f *fixture) { f.file("proc/self/mountinfo", "40 22 259:1 / /mnt rw - ext4 /dev/nvme1n1 rw") }, nil},
		{"a partition is mounted", "device-claimed", Failed, "nvme1n1p1 is mounted at /mnt", "stop that", func(f *fixture) { f.file("proc/self/mountinfo", "40 22 259:2 / /mnt rw - ext4 /dev/nvme1n1p1 rw") }, nil},
		{"it is a physical volume of LVM", "device-claimed", Failed, "nvme1n1 is below dm-0 (vg-data)", "stop that", func(f *fixture) { f.file("sys/class/block/nvme1n1/holders/dm-0", "") }, nil},
		{"a partition is one", "device-claimed", Failed, "nvme1n1p1 is below dm-0", "stop that", func(f *fixture) { f.file("sys/class/block/nvme1n1p1/holders/dm-0", "") }, nil},
		{"it is swap", "device-claimed", Failed, "nvme1n1p1 is swap", "stop that", func(f *fixture) { f.file("proc/swaps", "Filename\n/dev/nvme1n1p1 partition") }, nil},
		{"somebody has it open", "device-claimed", Failed, "in use", "lsblk", func(f *fixture) { f.claimed = &os.PathError{Op: "open", Err: unix.EBUSY} }, nil},
		{"no watchdog", "watchdog", Warning, "no /dev/watchdog", "modprobe softdog", func(f *fixture) { f.remove("dev/watchdog") }, nil},
		{"the control socket on the volume", "replicated-logs", Failed, "control (/srv/nfs/a.sock)", "own disk", func(f *fixture) { f.replace("control: a.sock", "control: /srv/nfs/a.sock") }, nil},
		{"the metadata on the volume", "replicated-logs", Failed, "volume.metadata (/srv/nfs/x/a.md)", "own disk", func(f *fixture) { f.replace("metadata: a.md", "metadata: /srv/nfs/x/a.md") }, nil},
		{"the witness behind a link to the volume", "replicated-logs", Failed, "the witness", "own disk", func(f *fixture) {
			f.folder("vol")
			f.replace("path: /srv/nfs}", "path: "+f.path("vol")+"}")
			f.replace("{path: /srv/nfs,", "{path: "+f.path("vol")+",")
			f.link("w", "vol")
			f.replace("file:witness", "file:w/witness")
		}, nil},
		{"the history on the volume", "replicated-logs", Failed, "the history (/srv/nfs/lib/a.history)", "own disk", func(f *fixture) { f.after = func() { f.sys.StateDir = "/srv/nfs/lib" } }, nil},
		{"the agent's log on the volume", "replicated-logs", Failed, "the agent's log (/srv/nfs/agent.log)", "own disk", func(f *fixture) {
			f.agent = 4711
			f.folder("proc/4711/fd")
			f.link("proc/4711/fd/1", "pipe:[123]")
			f.link("proc/4711/fd/2", "/srv/nfs/agent.log")
		}, nil},
		{"a program is not installed", "tools", Failed, "not found: e2fsck (for mount)", "apt-get install e2fsprogs", func(f *fixture) { f.absent = []string{"e2fsck"} }, nil},
		{"a program of version 3", "tools", Failed, "rpc.statd (for nfs)", "nfs-common", func(f *fixture) { f.absent = []string{"rpc.statd"} }, nil},
		{"a command of the config", "tools", Failed, "check-app (for exec), tell-me (for on_change)", "install them", func(f *fixture) { f.absent = []string{"check-app", "tell-me"} }, nil},
		{"a kernel without nbd", "kernel-module", Failed, "6.1.0-9-cloud-amd64 has no module nbd", "linux-modules-extra", func(f *fixture) {
			f.file("lib/modules/6.1.0-9-cloud-amd64/modules.dep", "kernel/drivers/block/loop.ko:\n")
		}, nil},
		{"the link's port is taken", "ports", Failed, "listen: another program listens at port 7788", "sport = :7788", func(f *fixture) { f.listens(7788, "0.0.0.0") }, nil},
		{"by a listener of IPv6", "ports", Failed, "http: another program listens at port 7790", "sport = :7790", func(f *fixture) { f.listens(7790, "::") }, nil},
		{"NBD's port is taken", "ports", Failed, "nbd.tcp", "10809", func(f *fixture) { f.listens(10809, "127.0.0.1") }, nil},
		{"the machine's own NFS server runs", "ports", Warning, "port 2049", "nfs-server", func(f *fixture) { f.listens(2049, "0.0.0.0") }, nil},
		{"AssociateAddress is not allowed", "iam", Failed, "may not do: AssociateAddress (eipalloc-0123456789abcdef0)", "iam-policy.json", func(f *fixture) { f.after = f.deny("AssociateAddress", denied) }, nil},
		{"DisassociateAddress is not allowed", "iam", Failed, "may not do: DisassociateAddress (eipalloc-0123456789abcdef0)", "iam-policy.json", func(f *fixture) { f.after = f.deny("DisassociateAddress", denied) }, nil},
		{"ReplaceRoute is not allowed", "iam", Failed, "ReplaceRoute (rtb-0123456789abcdef0), ReplaceRoute (rtb-0123456789abcdef1)", "iam-policy.json", func(f *fixture) { f.after = f.deny("ReplaceRoute", denied) }, nil},
		{"StopInstances is not allowed", "iam", Failed, "StopInstances (i-b of node b)", "iam-policy.json", func(f *fixture) { f.after = f.deny("StopInstances", denied) }, nil},
		{"DetachVolume is not allowed", "iam", Failed, "DetachVolume (vol-data of node b)", "iam-policy.json", func(f *fixture) { f.after = f.deny("DetachVolume", denied) }, nil},
		{"a machine without tags", "iam", Failed, "no instance has the tags of node b", "tandem:node", func(f *fixture) { f.after = func() { f.ec2.tagged = "" } }, nil},
		{"CreateRoute is not allowed", "iam", Failed, "CreateRoute", "iam-policy.json", func(f *fixture) { f.after = f.deny("CreateRoute", denied) }, nil},
		{"an allocation that is not there", "iam", Failed, "InvalidAllocationID.NotFound", "id in the config", func(f *fixture) {
			f.after = f.deny("DescribeAddresses", &smithy.GenericAPIError{Code: "InvalidAllocationID.NotFound"})
		}, nil},
		{"AWS does not answer", "iam", Failed, "could not be tried", "IMDSv2", func(f *fixture) { f.after = f.deny("AssociateAddress", errors.New("i/o timeout")) }, nil},
		{"no instance metadata", "iam", Failed, "AWS cannot be asked: no route to host", "IMDSv2", func(f *fixture) {
			f.after = func() { f.ec2.noMetadata = errors.New("no route to host") }
		}, []string{"source-dest-check", "route-tables", "ebs-baseline", "snapshot-volume"}},
		{"the peer may not", "iam", Failed, "node b: this instance may not do: AssociateAddress", "iam-policy.json", func(f *fixture) {
			f.after = func() {
				f.peer.IAM = Finding{ID: "iam", Status: Failed, Text: "this instance may not do: AssociateAddress", Fix: policyFix}
			}
		}, nil},
		{"the source/destination check is on", "source-dest-check", Failed, "of eni-a is on", "--no-source-dest-check", func(f *fixture) { f.ec2.sourceDest = true }, nil},
		{"a route table that is not there", "route-tables", Failed, "not there: rtb-0123456789abcdef1", "tables", func(f *fixture) { f.ec2.tables = f.ec2.tables[:1] }, nil},
		{"the device by its number", "ebs-identity", Warning, "/dev/nvme1n1 is " + volumeID, "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0", func(f *fixture) { f.replace(byID, "/dev/nvme1n1") }, nil},
		{"another volume", "ebs-identity", Warning, "written on vol0999, and this is " + volumeID, "compare", func(f *fixture) { f.meta.Identity = "serial:vol0999" }, nil},
		{"more IOPS than the instance keeps up", "ebs-baseline", Warning, "16000 IOPS of the volume, 4000 of the instance", "larger type", func(f *fixture) { f.ec2.volume.Iops = aws.Int32(16000) }, nil},
		{"more throughput", "ebs-baseline", Warning, "1049 MB/s of the volume, 138 of the instance", "larger type", func(f *fixture) { f.ec2.volume.Throughput = aws.Int32(1000) }, nil},
		{"a volume of a snapshot", "snapshot-volume", Warning, "made of snap-1", "read all of it", func(f *fixture) { f.ec2.volume.SnapshotId = aws.String("snap-1") }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			tc.spoil(f)
			all := f.examine()
			for _, got := range all {
				switch {
				case got.ID == tc.id:
					if got.Status != tc.status || !strings.Contains(got.Text, tc.text) || !strings.Contains(got.Fix, tc.fix) || got.Fix == "" {
						t.Errorf("got %+v\nwant %s, %q, to do %q", got, tc.status, tc.text, tc.fix)
					}
				case slices.Contains(tc.skipped, got.ID):
					if got.Status != Skipped || got.Text == "" {
						t.Errorf("not skipped: %+v", got)
					}
				case got.Status != OK:
					t.Errorf("not alone: %+v", got)
				}
			}
			if t.Failed() {
				t.Log("\n" + show(all))
			}
		})
	}
}

func (f *fixture) clock(at time.Time) func() {
	return func() { f.sys.Now = func() time.Time { return at } }
}

func (f *fixture) deny(action string, err error) func() {
	return func() { f.ec2.answers[action] = err }
}

// What there is nothing to check of is skipped, and says why.
func TestNothingToCheck(t *testing.T) {
	f := newFixture(t)
	f.yaml = "cluster: nfs1\nnode: a\nlisten: 127.0.0.1:7788\npeers: []\nvolume: {device: a.img, size: 1GiB}\nnbd: {socket: a.nbd}\ncontrol: a.sock\ntls: {insecure: true}\nwitness: file:witness\n"
	f.after = func() {
		f.sys.Block = func(string) (string, error) { return "", nil }
		f.sys.EC2 = func(context.Context) (EC2, error) { t.Error("EC2 is asked"); return nil, errors.New("no") }
	}
	why := map[string]string{
		"certificates": "insecure", "peer-equal": "no peers", "size-equal": "no peers", "sectors": "regular file", "watchdog": "self_fence is stop",
		"replicated-logs": "no step mounts", "tools": "no step runs", "kernel-module": "no step nbd", "iam": "no step asks AWS", "source-dest-check": "no step overlay-route",
		"route-tables": "no step overlay-route", "ebs-identity": "regular file", "ebs-baseline": "regular file", "snapshot-volume": "regular file",
	}
	for _, got := range f.examine() {
		if text, skipped := why[got.ID]; skipped != (got.Status == Skipped) || !strings.Contains(got.Text, text) || !skipped && got.Status != OK {
			t.Errorf("%+v", got)
		}
	}
}

// A peer that cannot be asked is no mistake of this node.
func TestPeerIsAway(t *testing.T) {
	f := newFixture(t)
	f.after = func() { f.peerErr = errors.New("node b cannot be asked: connection refused") }
	for _, got := range f.examine() {
		switch got.ID {
		case "peer-equal", "size-equal":
			if got.Status != Skipped || got.Text != "node b cannot be asked: connection refused" {
				t.Errorf("%+v", got)
			}
		case "iam":
			if got.Status != OK || !strings.Contains(got.Text, "node b was not asked") {
				t.Errorf("%+v", got)
			}
		default:
			if got.Status != OK {
				t.Errorf("%+v", got)
			}
		}
	}
}

// Before init there is nothing to compare, and of metadata that cannot be read nothing is said.
func TestNoMetadata(t *testing.T) {
	for err, text := range map[error]string{meta.ErrNoMetadata: "replctl init writes it", os.ErrPermission: "permission denied"} {
		f := newFixture(t)
		f.metaErr = err
		for _, got := range f.examine() {
			if got.ID == "size-equal" && (got.Status != Skipped || !strings.Contains(got.Text, text)) {
				t.Errorf("%+v", got)
			}
		}
	}
}

// What is running has the ports and the device, and what can be said of its cache is said.
func TestRunning(t *testing.T) {
	f := newFixture(t)
	f.agent = 4711
	f.listens(7788, "127.0.0.1")
	f.claimed = unix.EBUSY
	f.file("sys/class/block/nvme1n1/queue/write_cache", "write back")
	for _, got := range f.examine() {
		if got.Status != OK || got.ID == "write-cache" && !strings.Contains(got.Text, "write back: what was not flushed may be lost") {
			t.Errorf("%+v", got)
		}
	}
}

// What EC2 says of a route's state it says to whoever may change it.
func TestRouteExists(t *testing.T) {
	f := newFixture(t)
	f.after = func() {
		f.deny("CreateRoute", &smithy.GenericAPIError{Code: "RouteAlreadyExists"})()
		f.deny("ReplaceRoute", &smithy.GenericAPIError{Code: "InvalidParameterValue", Message: "There is no route defined for '10.99.0.1/32' in the route table"})()
	}
	for _, got := range f.examine() {
		if got.Status != OK || got.ID == "iam" && !strings.Contains(got.Text, "ReplaceRoute, CreateRoute") {
			t.Errorf("%+v", got)
		}
	}
}

// A volume in a partition: the queue is the disk's.
func TestPartition(t *testing.T) {
	f := newFixture(t)
	f.after = func() { f.sys.Block = func(string) (string, error) { return "nvme1n1p1", nil } }
	for _, got := range f.examine() {
		if got.Status != OK {
			t.Errorf("%+v", got)
		}
	}
}

// The fence's permission is asked for the machine that has the node's tags.
func TestStopInstances(t *testing.T) {
	denied := &smithy.GenericAPIError{Code: "UnauthorizedOperation"}
	for _, tc := range []struct {
		name   string
		err    error
		found  string
		status Status
		text   string
	}{
		{"allowed", dryRunOK, "i-b", OK, "StopInstances, DetachVolume"},
		{"denied", denied, "i-b", Failed, "may not do: StopInstances (i-b of node b)"},
		{"untagged", dryRunOK, "", Failed, "no instance has the tags of node b"},
		{"may not take the volumes", dryRunOK, "i-b", Failed, "may not do: DetachVolume (vol-data of node b)"},
		{"stopped", &smithy.GenericAPIError{Code: "IncorrectInstanceState"}, "i-b", OK, "StopInstances"},
		{"silent", errors.New("timeout"), "i-b", Failed, "StopInstances could not be tried"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			f.examine()
			f.ec2.answers["StopInstances"], f.ec2.tagged = tc.err, tc.found
			x := newExamination(f.cfg, f.sys)
			x.aws = cloud{fenced: []string{"b"}, detach: true}
			if tc.status == Failed && strings.Contains(tc.text, "DetachVolume") {
				f.ec2.answers["DetachVolume"] = denied
			}
			v := x.ownIAM(t.Context())
			if v.status != tc.status || !strings.Contains(v.text, tc.text) {
				t.Errorf("%+v", v)
			}
			if want := "tag:tandem:cluster=nfs1 tag:tandem:node=b"; f.ec2.filters != want {
				t.Errorf("asked for %s, want %s", f.ec2.filters, want)
			}
		})
	}
}

// ThisMachine's own ways of looking, on a machine of which little is known.
func TestThisMachine(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "a.img")
	if err := os.WriteFile(image, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if name, err := blockName(image); name != "" || err != nil {
		t.Errorf("a file is %q, %v", name, err)
	}
	if _, err := blockName(filepath.Join(dir, "no")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := blockName("/dev/null"); err == nil {
		t.Error("a character device is a volume")
	}
	if err := claim(image, false); err != nil {
		t.Error(err)
	}
	other, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := claim(image, false); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a locked file: %v", err)
	}
	socket := filepath.Join(dir, "s")
	if _, running := agentAt(socket); running {
		t.Error("an agent without a socket")
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if pid, running := agentAt(socket); !running || pid != os.Getpid() {
		t.Errorf("got %d, %v", pid, running)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, running := agentAt(socket); running {
		t.Error("an agent that has died runs")
	}
	if _, err := lookPath("no-such-program"); err == nil {
		t.Error("found")
	}
}

// obliging does what it is told, whatever the condition.
type obliging struct{ scratch error }

func (obliging) Read(context.Context) ([]byte, string, error)        { return nil, "", nil }
func (obliging) CAS(context.Context, string, []byte) (string, error) { return "1", nil }
func (obliging) Close() error                                        { return nil }
func (o obliging) Scratch(context.Context, string) (witness.Register, func(context.Context) error, error) {
	return o, func(context.Context) error { return nil }, o.scratch
}

var dryRunOK error = &smithy.GenericAPIError{Code: "DryRunOperation", Message: "Request would have succeeded, but DryRun flag is set."}

// fakeEC2 knows one instance, and fails the test's eyes if something is really asked for: a
// request without DryRun that could change something panics.
type fakeEC2 struct {
	answers    map[string]error // to dry runs
	noMetadata error
	sourceDest bool
	tables     []string
	volume     types.Volume
	tagged     string // the instance that the tags find
	filters    string // of the last such request
}

func newFakeEC2() *fakeEC2 {
	return &fakeEC2{
		answers: make(map[string]error), tagged: "i-b",
		tables: []string{"rtb-0123456789abcdef0", "rtb-0123456789abcdef1"},
		volume: types.Volume{VolumeId: aws.String(volumeID), Iops: aws.Int32(3000), Throughput: aws.Int32(125)},
	}
}

func (f *fakeEC2) dry(action string, dry *bool) error {
	if !aws.ToBool(dry) {
		panic(action + " without DryRun")
	}
	if err := f.answers[action]; err != nil {
		return err
	}
	return dryRunOK
}

func (f *fakeEC2) ID(context.Context) (string, error) { return "i-a", f.noMetadata }

func (f *fakeEC2) Primary(context.Context) (instance.Interface, error) {
	return instance.Interface{ID: "eni-a", Address: netip.MustParseAddr("10.0.0.1")}, f.noMetadata
}

func (f *fakeEC2) AssociateAddress(_ context.Context, in *ec2.AssociateAddressInput, _ ...func(*ec2.Options)) (*ec2.AssociateAddressOutput, error) {
	return nil, f.dry("AssociateAddress", in.DryRun)
}

func (f *fakeEC2) DisassociateAddress(_ context.Context, in *ec2.DisassociateAddressInput, _ ...func(*ec2.Options)) (*ec2.DisassociateAddressOutput, error) {
	if aws.ToString(in.AssociationId) != "eipassoc-b" {
		panic("not the address's association")
	}
	return nil, f.dry("DisassociateAddress", in.DryRun)
}

func (f *fakeEC2) CreateRoute(_ context.Context, in *ec2.CreateRouteInput, _ ...func(*ec2.Options)) (*ec2.CreateRouteOutput, error) {
	return nil, f.dry("CreateRoute", in.DryRun)
}

func (f *fakeEC2) ReplaceRoute(_ context.Context, in *ec2.ReplaceRouteInput, _ ...func(*ec2.Options)) (*ec2.ReplaceRouteOutput, error) {
	return nil, f.dry("ReplaceRoute", in.DryRun)
}

func (f *fakeEC2) StopInstances(_ context.Context, in *ec2.StopInstancesInput, _ ...func(*ec2.Options)) (*ec2.StopInstancesOutput, error) {
	return nil, f.dry("StopInstances", in.DryRun)
}

func (f *fakeEC2) DetachVolume(_ context.Context, in *ec2.DetachVolumeInput, _ ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	if aws.ToString(in.VolumeId) != "vol-data" {
		panic("not a volume of the node's data")
	}
	return nil, f.dry("DetachVolume", in.DryRun)
}

func (f *fakeEC2) DescribeAddresses(_ context.Context, in *ec2.DescribeAddressesInput, _ ...func(*ec2.Options)) (*ec2.DescribeAddressesOutput, error) {
	if in.DryRun != nil {
		return nil, f.dry("DescribeAddresses", in.DryRun)
	}
	return &ec2.DescribeAddressesOutput{Addresses: []types.Address{{AssociationId: aws.String("eipassoc-b")}}}, nil
}

func (f *fakeEC2) DescribeInstances(_ context.Context, in *ec2.DescribeInstancesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	id := "i-a"
	if len(in.Filters) > 0 {
		var all []string
		for _, x := range in.Filters {
			all = append(all, aws.ToString(x.Name)+"="+strings.Join(x.Values, ","))
		}
		slices.Sort(all)
		f.filters = strings.Join(all, " ")
		if id = f.tagged; id == "" {
			return &ec2.DescribeInstancesOutput{}, nil
		}
	}
	return &ec2.DescribeInstancesOutput{Reservations: []types.Reservation{{Instances: []types.Instance{{
		InstanceId: &id, InstanceType: "m5.large", RootDeviceName: aws.String("/dev/xvda"),
		BlockDeviceMappings: []types.InstanceBlockDeviceMapping{
			{DeviceName: aws.String("/dev/xvda"), Ebs: &types.EbsInstanceBlockDevice{VolumeId: aws.String("vol-root")}},
			{DeviceName: aws.String("/dev/sdf"), Ebs: &types.EbsInstanceBlockDevice{VolumeId: aws.String("vol-data")}},
		},
	}}}}}, nil
}

func (f *fakeEC2) DescribeInstanceTypes(_ context.Context, in *ec2.DescribeInstanceTypesInput, _ ...func(*ec2.Options)) (*ec2.DescribeInstanceTypesOutput, error) {
	return &ec2.DescribeInstanceTypesOutput{InstanceTypes: []types.InstanceTypeInfo{{InstanceType: in.InstanceTypes[0], EbsInfo: &types.EbsInfo{
		EbsOptimizedInfo: &types.EbsOptimizedInfo{BaselineIops: aws.Int32(4000), BaselineThroughputInMBps: aws.Float64(137.5)},
	}}}}, nil
}

func (f *fakeEC2) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	if in.DryRun != nil {
		return nil, f.dry("DescribeNetworkInterfaces", in.DryRun)
	}
	return &ec2.DescribeNetworkInterfacesOutput{NetworkInterfaces: []types.NetworkInterface{{NetworkInterfaceId: aws.String("eni-a"), SourceDestCheck: &f.sourceDest}}}, nil
}

// DescribeRouteTables has a page for each table.
func (f *fakeEC2) DescribeRouteTables(_ context.Context, in *ec2.DescribeRouteTablesInput, _ ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error) {
	if in.DryRun != nil {
		return nil, f.dry("DescribeRouteTables", in.DryRun)
	}
	i := len(aws.ToString(in.NextToken))
	out := &ec2.DescribeRouteTablesOutput{RouteTables: []types.RouteTable{{RouteTableId: &f.tables[i]}}}
	if i+1 < len(f.tables) {
		out.NextToken = aws.String(strings.Repeat("n", i+1))
	}
	return out, nil
}

func (f *fakeEC2) DescribeVolumes(_ context.Context, in *ec2.DescribeVolumesInput, _ ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	if in.VolumeIds[0] != volumeID {
		return nil, &smithy.GenericAPIError{Code: "InvalidVolume.NotFound"}
	}
	return &ec2.DescribeVolumesOutput{Volumes: []types.Volume{f.volume}}, nil
}
