package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// contract is the example of design.md, section 8, without what is refused for now.
const contract = `cluster: nfs1
node: a
listen: 127.0.0.1:7788
peers: [{node: b, address: 127.0.0.1:7789}]
volume: {device: ./a.img, size: 1GiB, metadata: ./a.md, protocol: C, disk_timeout: 30s}
nbd: {socket: ./a.nbd, tcp: ""}
control: ./a.sock
http: 127.0.0.1:9788                                # /metrics /primary /healthz
tls: {ca: ca.pem, cert: a.pem, key: a.key}
witness: file:./witness
link: {compression: auto, flows: 1, peer_timeout: 6s}
resync: {max_rate: auto}
failover: {auto: true, heartbeat: 500ms, lease: 3s, freeze: 30s, self_fence: stop, prefer: "", restart: 10s, allow_loss: 0}
on_change: []
service: []
`

// minimal has the required keys only, one a line, so that tests can replace one.
const minimal = `cluster: nfs1
node: a
listen: 127.0.0.1:7788
peers: []
volume:
  device: a.img
  size: 1GiB
nbd:
  socket: a.nbd
control: a.sock
tls:
  insecure: true
witness: file:w
`

func noBlock(string) bool { return false }

func TestContract(t *testing.T) {
	got, err := parse("a.yaml", []byte(contract), "/etc/tandem", noBlock)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		File: "a.yaml", Dir: "/etc/tandem", Cluster: "nfs1", Node: "a", Listen: "127.0.0.1:7788",
		Peers: []Peer{{Node: "b", Address: "127.0.0.1:7789"}},
		Volume: Volume{Device: "/etc/tandem/a.img", Size: 1 << 30, Metadata: "/etc/tandem/a.md", Protocol: "C",
			DiskTimeout: 30 * time.Second},
		NBD: NBD{Socket: "/etc/tandem/a.nbd"}, Control: "/etc/tandem/a.sock", HTTP: "127.0.0.1:9788",
		TLS:     TLS{CA: "/etc/tandem/ca.pem", Cert: "/etc/tandem/a.pem", Key: "/etc/tandem/a.key"},
		Witness: "file:./witness",
		Link:    Link{Compression: "auto", Flows: 1, PeerTimeout: 6 * time.Second},
		Failover: Failover{Auto: true, Heartbeat: 500 * time.Millisecond, Lease: 3 * time.Second,
			Freeze: 30 * time.Second, SelfFence: "stop", Restart: 10 * time.Second},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v\nwant %+v", got, want)
	}
	if p, ok := got.Peer("b"); !ok || p.Address != "127.0.0.1:7789" {
		t.Fatal("Peer")
	}
	if _, ok := got.Peer("a"); ok {
		t.Fatal("a node is not its own peer")
	}
}

// What `doctor --defaults` shows must be what is used.
func TestDefaultsAreTheDefaults(t *testing.T) {
	plain, err := parse("x", []byte(minimal), "/d", noBlock)
	if err != nil {
		t.Fatal(err)
	}
	spelled := strings.NewReplacer(
		"volume:\n", "volume:\n  device: a.img\n  size: 1GiB\n",
		"nbd:\n", "nbd:\n  socket: a.nbd\n").Replace(Defaults()) +
		"cluster: nfs1\nnode: a\nlisten: 127.0.0.1:7788\npeers: []\ncontrol: a.sock\ntls: {insecure: true}\nwitness: file:w\n"
	full, err := parse("x", []byte(spelled), "/d", noBlock)
	if err != nil {
		t.Fatalf("%v in\n%s", err, spelled)
	}
	if !reflect.DeepEqual(plain, full) {
		t.Fatalf("got %+v\nwant %+v", full, plain)
	}
}

// full is minimal with everything said that can be said.
var full = strings.NewReplacer(
	"node: a\n", "node: yes\n",
	"peers: []", "peers:\n- node: 1.10\n  address: '[::1]:7789'\n- {node: c, address: localhost:7790}",
	"a.img\n  size: 1GiB", "/dev/xvdf",
	"volume:\n", "volume:\n  metadata: internal\n  disk_timeout: 1m30s\n",
	"socket: a.nbd", "socket: /run/a.nbd\n  tcp: :10809",
).Replace(minimal) + `
resync: {max_rate: 100MiB/s}
link: {compression: none}
failover: {auto: false, heartbeat: 10ms, lease: 20ms, freeze: 100ms, prefer: c, restart: 0, allow_loss: 64kB}
`

func TestValues(t *testing.T) {
	c, err := parse("x", []byte(full), "/d", func(p string) bool { return p == "/dev/xvdf" })
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "yes" || c.Peers[0] != (Peer{Node: "1.10", Address: "[::1]:7789"}) || c.Peers[1].Node != "c" {
		t.Errorf("names as they are written: %q %+v", c.Node, c.Peers)
	}
	if c.Volume != (Volume{Device: "/dev/xvdf", Protocol: "C", DiskTimeout: 90 * time.Second}) {
		t.Errorf("%+v", c.Volume)
	}
	if c.NBD != (NBD{"/run/a.nbd", ":10809"}) || c.Resync.MaxRate != 100<<20 || c.Link.Compression != "none" {
		t.Errorf("%+v %+v %+v", c.NBD, c.Resync, c.Link)
	}
	if c.Failover != (Failover{Heartbeat: 10 * time.Millisecond, Lease: 20 * time.Millisecond,
		Freeze: 100 * time.Millisecond, SelfFence: "stop", Prefer: "c", AllowLoss: 64000}) {
		t.Errorf("%+v", c.Failover)
	}
}

type badConfig struct {
	old, new string // in minimal; old "" appends
	want     string // after "a.yaml:"
}

func (b badConfig) file() []byte {
	if b.old == "" {
		return []byte(minimal + b.new)
	}
	return []byte(strings.Replace(minimal, b.old, b.new, 1))
}

// badConfigs are slips, each in the minimal config, and what is said of them.
func badConfigs() []badConfig {
	const names = "1 to 63 letters, digits, dots, underscores and dashes, a letter or digit first"
	const tag = ": 1 to 128 letters, digits, blanks and + - = . _ : / @"
	const ebs = "write ebs:vol- and its 8 or 17 digits, 0 to 9 and a to f, such as ebs:vol-0123456789abcdef0"
	const two = "peers: [{node: b, address: 127.0.0.1:1}, "
	return []badConfig{
		// the YAML itself
		{minimal, "", " the file is empty: examples/a.yaml is a start"},
		{minimal, "# nothing\n", " the file is empty: examples/a.yaml is a start"},
		{minimal, "---\n", "2: the file is not a list of keys and values: examples/a.yaml is a start"},
		{minimal, "- a\n", "1: the file is not a list of keys and values: examples/a.yaml is a start"},
		{minimal, "hello", "1: the file is not a list of keys and values: examples/a.yaml is a start"},
		{"node: a", "\tnode: a", "2: not YAML: found a tab character that violates indentation"},
		{"node: a", "node: a: b", "2: not YAML: mapping values are not allowed in this context"},
		{"node: a", "node: *x", " not YAML: unknown anchor 'x' referenced"},
		{"", "---\ncluster: nfs2\n", "14: a second document starts here: one file is one node"},
		{minimal, strings.Repeat("#", maxFile+1), " larger than 262144 bytes: not a config file"},
		{"node: a", "node: &x a", "2: node: anchors and aliases are not supported: write the value out"},
		{"control: a.sock", "control: &y x\nhttp: *y", "10: control: anchors and aliases are not supported: write the value out"},
		{"node: a", "node: !!str a", "2: node: tags are not supported: leave out !!str"},
		{"peers: []", "peers: !x []", "4: peers: tags are not supported: leave out !x"},
		{"", "? [a]\n: b\n", "14: a key that is not a word"},

		// keys
		{"node: a", "nodes: a", `2: nodes: unknown key, did you mean "node"?`},
		{"  size: 1GiB", "  sise: 1GiB", `7: volume.sise: unknown key, did you mean "size"?`},
		{"", "verbose: true", "14: verbose: unknown key: known here are cluster, node, listen, peers, volume, nbd, control, http, tls, witness, link, resync, failover, aws, fence, on_change, service"},
		{"", "<<: {http: x}", "14: <<: unknown key: known here are cluster, node, listen, peers, volume, nbd, control, http, tls, witness, link, resync, failover, aws, fence, on_change, service"},
		{"", strings.Repeat("n", 100) + ": 1", "14: " + strings.Repeat("n", 100) + ": unknown key: known here are cluster, node, listen, peers, volume, nbd, control, http, tls, witness, link, resync, failover, aws, fence, on_change, service"},
		{"", "failover: {leese: 3s}", `14: failover.leese: unknown key, did you mean "lease"?`},
		{"", "node: b", "14: node: doubled: it is also on line 2"},
		{"  size: 1GiB", "  size: 1GiB\n  size: 2GiB", "8: volume.size: doubled: it is also on line 7"},
		{"node: a\n", "", "1: node: missing: this key is required"},
		{"witness: file:w\n", "", "1: witness: missing: this key is required"},
		{"peers: []\n", "", "1: peers: missing: this key is required"},
		{"  device: a.img\n", "", "5: volume.device: missing: this key is required"},
		{"  size: 1GiB\n", "", "5: volume.size: missing: this key is required, because /d/a.img is not a block device"},
		{"  socket: a.nbd", "  tcp: ''", "8: nbd.socket: missing: this key is required"},
		{"  insecure: true", "  ca: x", "11: tls.cert: missing: this key is required"},
		{"  insecure: true", "  insecure: false", "11: tls.ca: missing: this key is required"},
		{"peers: []", "peers:\n- node: b", "5: peers[0].address: missing: this key is required"},

		// shapes
		{"node: a", "node:", "2: node: has no value"},
		{"node: a", "node: [a]", "2: node: is a list, a single value is expected"},
		{"peers: []", "peers: b", "4: peers: is not a list: write [] for an empty one"},
		{"peers: []", "peers: [b]", "4: peers[0]: is not a list of keys and values: write {node: …}"},
		{"nbd:\n  socket: a.nbd", "nbd: a.nbd", "8: nbd: is not a list of keys and values: write {socket: …}"},
		{"", "link:", "14: link: is not a list of keys and values: write {compression: …}"},
		{"", "failover: 3", "14: failover: is not a list of keys and values: write {auto: …}"},

		// names and addresses
		{"cluster: nfs1", "cluster: nfs 1", `1: cluster: "nfs 1" is not a name: ` + names},
		{"node: a", "node: ''", `2: node: "" is not a name: ` + names},
		{"node: a", "node: " + strings.Repeat("a", 64), `2: node: "` + strings.Repeat("a", 64) + `" is not a name: ` + names},
		{"listen: 127.0.0.1:7788", "listen: 127.0.0.1", `3: listen: "127.0.0.1" is not HOST:PORT`},
		{"listen: 127.0.0.1:7788", "listen: 127.0.0.1:0", `3: listen: "0" is not a port from 1 to 65535`},
		{"listen: 127.0.0.1:7788", "listen: 127.0.0.1:nfs", `3: listen: "nfs" is not a port from 1 to 65535`},
		{"listen: 127.0.0.1:7788", "listen: ' a:1'", `3: listen: " a" is not a host`},
		{"listen: 127.0.0.1:7788", "listen: 10.0.0.1:7788", `12: tls.insecure: is accepted on loopback addresses only, and 10.0.0.1:7788 is none`},
		{"listen: 127.0.0.1:7788", "listen: :7788", `12: tls.insecure: is accepted on loopback addresses only, and :7788 is none`},
		{"peers: []", "peers: [{node: b, address: h2:7789}]", `12: tls.insecure: is accepted on loopback addresses only, and h2:7789 is none`},
		{"peers: []", "peers: [{node: a, address: 127.0.0.1:1}]", "4: peers[0].node: a is this node itself: peers are the others"},
		{"peers: []", two + "{node: b, address: 127.0.0.1:2}]", "4: peers[1].node: b is named twice"},
		{"peers: []", two + "{node: c, address: 127.0.0.1:1}]", "4: peers[1].address: is also the address of b"},
		{"peers: []", "peers: [{node: b, address: 127.0.0.1:7788}]", "4: peers[0].address: is where this node listens itself"},
		{"peers: []", two + "{node: c, address: '::1:2'}]", `4: peers[1].address: "::1:2" is not HOST:PORT`},
		{"peers: []", two + "{node: c, address: localhost:2}, {node: d, address: 127.0.0.1:3}, {node: e, address: 127.0.0.1:4}]", "4: peers: 4 peers: at most 3 are possible"},
		{"peers: []", "peers: {}", "4: peers.tag: missing: this key is required"},
		{"peers: []", "peers: {tag: t, port: 1}", "4: peers.nodes: missing: this key is required"},
		{"peers: []", "peers: {tag: t, nodes: [b]}", "4: peers.port: missing: this key is required"},
		{"peers: []", "peers: {tags: t, nodes: [b], port: 1}", `4: peers.tags: unknown key, did you mean "tag"?`},
		{"peers: []", "peers: {node: b, address: 127.0.0.1:1}", "4: peers.node: unknown key, did you mean \"nodes\"?"},
		{"peers: []", "peers: {tag: '', nodes: [b], port: 1}", `4: peers.tag: "" is not the key of a tag, such as tandem:node` + tag},
		{"peers: []", "peers: {tag: 'a*', nodes: [b], port: 1}", `4: peers.tag: "a*" is not the key of a tag, such as tandem:node` + tag},
		{"peers: []", "peers: {tag: ' a', nodes: [b], port: 1}", `4: peers.tag: " a" is not the key of a tag, such as tandem:node` + tag},
		{"peers: []", "peers: {tag: " + strings.Repeat("t", 129) + ", nodes: [b], port: 1}", `4: peers.tag: "` + strings.Repeat("t", 129) + `" is not the key of a tag, such as tandem:node` + tag},
		{"peers: []", "peers: {tag: [t], nodes: [b], port: 1}", "4: peers.tag: is a list, a single value is expected"},
		{"peers: []", "peers: {tag: tandem:cluster, nodes: [b], port: 1}", "4: peers.tag: tandem:cluster has the cluster's name, and is looked at anyway: name the tag that has the node's, such as tandem:node"},
		{"peers: []", "peers: {tag: t, nodes: b, port: 1}", "4: peers.nodes: is not a list: write [] for an empty one"},
		{"peers: []", "peers: {tag: t, nodes: [], port: 1}", "4: peers.nodes: is empty: write peers: [] for a node without peers"},
		{"peers: []", "peers: {tag: t, nodes: [b c], port: 1}", `4: peers.nodes[0]: "b c" is not a name: ` + names},
		{"peers: []", "peers: {tag: t, nodes: [b, {node: c}], port: 1}", "4: peers.nodes[1]: is a list, a single value is expected"},
		{"peers: []", "peers: {tag: t, nodes: [b, c, b], port: 1}", "4: peers.nodes[2]: b is named twice"},
		{"peers: []", "peers: {tag: t, nodes: [b, a], port: 1}", "4: peers.nodes[1]: a is this node itself: peers are the others"},
		{"peers: []", "peers: {tag: t, nodes: [b, c, d, e], port: 1}", "4: peers.nodes: 4 peers: at most 3 are possible"},
		{"peers: []", "peers: {tag: t, nodes: [b], port: 0}", `4: peers.port: "0" is not a port from 1 to 65535`},
		{"peers: []", "peers: {tag: t, nodes: [b], port: 65536}", `4: peers.port: "65536" is not a port from 1 to 65535`},
		{"peers: []", "peers: !x {tag: t, nodes: [b], port: 1}", "4: peers: tags are not supported: leave out !x"},
		{"peers: []", "peers: {tag: t, nodes: [b], port: 7789}", "12: tls.insecure: is accepted on loopback addresses only, and b is on an instance of EC2's"},
		{"", "http: 9788", `14: http: "9788" is not HOST:PORT`},
		{"", "http: [1]", "14: http: is a list, a single value is expected"},

		// paths
		{"a.img", "''", "6: volume.device: is empty"},
		{"a.img", `"a\0b"`, "6: volume.device: has a zero byte"},
		{"control: a.sock", "control: a.nbd", "10: control: is the same file as nbd.socket"},
		{"control: a.sock", "control: " + strings.Repeat("s", 105), "10: control: /d/" + strings.Repeat("s", 105) + " has 108 bytes: the path of a socket can have 107"},
		{"control: a.sock", "control: ''", "10: control: is empty"},
		{"volume:", "volume:\n  metadata: ./a.img", "6: volume.metadata: is the device itself: write internal to keep it at the device's end"},

		{"a.img", "'ebs:'", `6: volume.device: "ebs:" is not an EBS volume: ` + ebs},
		{"a.img", "ebs:vol0123456789abcdef0", `6: volume.device: "ebs:vol0123456789abcdef0" is not an EBS volume: ` + ebs},
		{"a.img", "ebs:vol-0123456789abcde", `6: volume.device: "ebs:vol-0123456789abcde" is not an EBS volume: ` + ebs},
		{"a.img", "ebs:vol-0123456789abcdef01", `6: volume.device: "ebs:vol-0123456789abcdef01" is not an EBS volume: ` + ebs},
		{"a.img", "ebs:vol-0123456789ABCDEF0", `6: volume.device: "ebs:vol-0123456789ABCDEF0" is not an EBS volume: ` + ebs},
		{"a.img", "ebs:snap-01234567", `6: volume.device: "ebs:snap-01234567" is not an EBS volume: ` + ebs},
		{"a.img", `"ebs:vol-../../.."`, `6: volume.device: "ebs:vol-../../.." is not an EBS volume: ` + ebs},
		{"a.img", "{ebs: vol-01234567}", "6: volume.device: is a list, a single value is expected"},
		{"volume:\n  device: a.img", "volume:\n  metadata: " + ebsLink + "vol01234567\n  device: ebs:vol-01234567", "6: volume.metadata: is the device itself: write internal to keep it at the device's end"},

		// sizes, durations, numbers
		{"1GiB", "1073741824", "7: volume.size: 1073741824 has no unit: write B, KiB, MiB, GiB or TiB (or kB, MB, GB, TB)"},
		{"1GiB", "1G", `7: volume.size: "1G" is not a size: the units are B, KiB, MiB, GiB and TiB (or kB, MB, GB, TB)`},
		{"1GiB", "1.5GiB", `7: volume.size: "1.5GiB" is not a size: the units are B, KiB, MiB, GiB and TiB (or kB, MB, GB, TB)`},
		{"1GiB", "-1GiB", `7: volume.size: "-1GiB" is not a size: write a whole number and a unit, such as 1GiB`},
		{"1GiB", "big", `7: volume.size: "big" is not a size: write a whole number and a unit, such as 1GiB`},
		{"1GiB", "99999999TiB", "7: volume.size: 99999999TiB is too large"},
		{"1GiB", "99999999999999999999B", "7: volume.size: 99999999999999999999B is too large"},
		{"1GiB", "1GB", "7: volume.size: 1000000000 bytes are not a multiple of 4096"},
		{"1GiB", "17TiB", "7: volume.size: is more than 16TiB"},
		{"1GiB", "0", "7: volume.size: must be more than 0"},
		{"volume:", "volume:\n  disk_timeout: 30", "6: volume.disk_timeout: 30 has no unit: write ms, s, m or h"},
		{"volume:", "volume:\n  disk_timeout: 30 sec", `6: volume.disk_timeout: "30 sec" is not a duration: write a number and ms, s, m or h, such as 3s`},
		{"volume:", "volume:\n  disk_timeout: -3s", "6: volume.disk_timeout: must not be negative"},
		{"volume:", "volume:\n  disk_timeout: 0", "6: volume.disk_timeout: 0 is less than 100ms"},
		{"volume:", "volume:\n  disk_timeout: 48h", "6: volume.disk_timeout: 48h is more than 24h"},
		{"", "failover: {heartbeat: 9ms}", "14: failover.heartbeat: 9ms is less than 10ms"},
		{"", "failover: {lease: 900ms}", "14: failover.lease: a lease of 900ms is less than two heartbeats of 500ms"},
		{"", "failover:\n  heartbeat: 2s", "15: failover.heartbeat: a lease of 3s is less than two heartbeats of 2s"},
		{"", "failover: {auto: on}", `14: failover.auto: "on" is neither true nor false`},
		{"", "failover: {prefer: z}", `14: failover.prefer: "z" is neither this node nor a peer`},
		{"", "failover: {allow_loss: 5}", "14: failover.allow_loss: 5 has no unit: write B, KiB, MiB, GiB or TiB (or kB, MB, GB, TB)"},
		{"", "failover: {allow_loss: }", "14: failover.allow_loss: has no value"},
		{"", "failover: {lease: }", "14: failover.lease: has no value"},
		{"", "resync: {max_rate: 100}", "14: resync.max_rate: 100 has no unit: write B, KiB, MiB, GiB or TiB (or kB, MB, GB, TB)"},
		{"", "resync: {max_rate: 0}", "14: resync.max_rate: 0 would never end: write auto for no limit"},
		{"", "link: {flows: many}", `14: link.flows: "many" is not a number from 1 to 16`},
		{"", "link: {flows: 0}", `14: link.flows: "0" is not a number from 1 to 16`},
		{"", "link: {compression: gzip}", `14: link.compression: "gzip" is not one of auto, none, s2, zstd`},
		{"", "link: {compression: [auto]}", `14: link.compression: is a list, a single value is expected`},
		{"insecure: true", "insecure: true\n  ca: ca.pem", "13: tls.ca: has no meaning beside insecure: true"},

		// the witness
		{"file:w", "w", `13: witness: "w" has no scheme: write file:PATH, etcd://HOST:PORT,HOST:PORT/KEY, s3://BUCKET/KEY or dynamodb://TABLE/KEY`},
		{"file:w", "{file: w}", `13: witness: is a list, a single value is expected`},
		{"file:w", "redis://h", `13: witness: unknown scheme "redis": write file:PATH, etcd://HOST:PORT,HOST:PORT/KEY, s3://BUCKET/KEY or dynamodb://TABLE/KEY`},
		{"file:w", "etcd://h/key", `13: witness: "etcd://h/key": "h" is not HOST:PORT`},
		{"file:w", "etcd://h:1/key?user=x", `13: witness: "etcd://h:1/key?user=x": unknown parameter "user": etcd has ca, cert, key and tls`},
		{"tls:\n  insecure: true", "tls: {ca: c, cert: c, key: k}\npeers: [{node: b, address: 10.0.0.2:1}]", "12: peers: doubled: it is also on line 4"},

		// later versions: the shape first, then a refusal
		{"file:w", "s3://bucket", `13: witness: "s3://bucket": write s3://BUCKET/KEY`},
		{"volume:", "volume:\n  protocol: A", "6: volume.protocol: A is not in this version: write C"},
		{"volume:", "volume:\n  protocol: c", `6: volume.protocol: "c" is not one of C, A, B`},
		{"", "link: {compression: zstd}", "14: link.compression: zstd is not in this version: write auto or none"},
		{"", "link: {flows: 4}", "14: link.flows: more than one flow is not in this version: write 1"},
		{"", "failover: {self_fence: halt}", `14: failover.self_fence: "halt" is not one of stop, reboot`},
		{"", "on_change: /bin/true", "14: on_change: is not a list: write [] for an empty one"},
		{"", "on_change: [{a: b}]", "14: on_change[0]: is a list, a single value is expected"},
		{"", "on_change: ['', x]", "14: on_change[0]: is empty: the first word is the program"},
		{"", "on_change: [\"a\\0\"]", "14: on_change[0]: has a zero byte"},
		{"", "on_change: [a" + strings.Repeat(", b", 256) + "]", "14: on_change: 257 words: at most 256 are possible"},
		{"", "on_change: [a, " + strings.Repeat("b", 8193) + "]", "14: on_change[1]: has 8193 bytes: at most 8192 are possible"},
		{"", "service: [{mont: {}}]", `14: service[0].mont: unknown key, did you mean "mount"?`},
		{"", "service: [{mount: {devise: x}}]", `14: service[0].mount.devise: unknown key, did you mean "device"?`},
		{"", "service: [{mount: {}, exec: {}}]", "14: service[0].mount: is a second step beside exec: each step is an item of its own"},
		{"", "service: [{timeout: 10s}]", "14: service[0]: names no step: known are exec, nbd, mount, nfs, vip, eip, private-ip, overlay-route"},
		{"", "service: [{timeout: 10, exec: {}}]", "14: service[0].timeout: 10 has no unit: write ms, s, m or h"},
		{"", "service: [{timeout: 0, exec: {start: [a]}}]", "14: service[0].timeout: 0 is less than 100ms"},
		{"", "service: [" + strings.Repeat("{exec: {start: [a]}},", 65) + "]", "14: service: 65 steps: at most 64 are possible"},

		// the steps
		{"", "service: [{exec: {stop: [a]}}]", "14: service[0].exec.start: missing: this key is required"},
		{"", "service: [{exec: {start: []}}]", "14: service[0].exec.start: is empty: write the program and its arguments, such as [/usr/bin/systemctl, start, app]"},
		{"", "service: [{exec: {start: /bin/true}}]", "14: service[0].exec.start: is not a list: write [] for an empty one"},
		{"", "service: [{exec: {start: [a, [b]]}}]", "14: service[0].exec.start[1]: is a list, a single value is expected"},
		{"", "service: [{exec: {start: [a], check: [~]}}]", "14: service[0].exec.check[0]: has no value"},
		{"", "service: [{exec: {start: [a], restart: [b]}}]", `14: service[0].exec.restart: unknown key, did you mean "start"?`},
		{"", "service: [{exec: }]", "14: service[0].exec: is not a list of keys and values: write {start: …}"},
		{"", "service: [{exec: {start: [a], ports: 2049}}]", "14: service[0].exec.ports: is not a list: write [] for an empty one"},
		{"", "service: [{exec: {start: [a], ports: [nfs]}}]", `14: service[0].exec.ports[0]: "nfs" is not a port from 1 to 65535`},
		{"", "service: [{exec: {start: [a], ports: [1, 0]}}]", `14: service[0].exec.ports[1]: "0" is not a port from 1 to 65535`},
		{"", "service: [{exec: {start: [a], ports: [65536]}}]", `14: service[0].exec.ports[0]: "65536" is not a port from 1 to 65535`},
		{"", "service: [{exec: {start: [a], ports: [80, 80]}}]", "14: service[0].exec.ports[1]: 80 is named twice"},
		{"", "service: [{exec: {start: [a], ports: [7788]}}]", "14: service[0].exec.ports[0]: 7788 is where this node listens for its peers: it must answer them at any time"},
		{"", "http: :9788\nservice: [{exec: {start: [a], ports: [9788]}}]", "15: service[0].exec.ports[0]: 9788 is the port of http, where a node without permission still has to say so"},
		{"", "service: [{exec: {start: [a], ports: [1" + strings.Repeat(", 1", 64) + "]}}]", "14: service[0].exec.ports: 65 ports: at most 64 are possible"},
		{"", "service: [{nbd: {connections: 2}}]", "14: service[0].nbd.device: missing: this key is required"},
		{"", "service: [{nbd: {device: nbd0}}]", `14: service[0].nbd.device: "nbd0" is not a device of the kernel's NBD client, such as /dev/nbd0`},
		{"", "service: [{nbd: {device: /dev/nbd00}}]", `14: service[0].nbd.device: "/dev/nbd00" is not a device of the kernel's NBD client, such as /dev/nbd0`},
		{"", "service: [{nbd: {device: /dev/nbd0p1}}]", `14: service[0].nbd.device: "/dev/nbd0p1" is not a device of the kernel's NBD client, such as /dev/nbd0`},
		{"", "service: [{nbd: {device: /dev/nbd65536}}]", `14: service[0].nbd.device: "/dev/nbd65536" is not a device of the kernel's NBD client, such as /dev/nbd0`},
		{"", "service: [{nbd: {device: /dev/nbd0, connections: 0}}]", `14: service[0].nbd.connections: "0" is not a number from 1 to 16`},
		{"", "service: [{nbd: {device: /dev/nbd0, connections: 17}}]", `14: service[0].nbd.connections: "17" is not a number from 1 to 16`},
		{"", "service: [{nbd: {device: /dev/nbd0, connections: }}]", "14: service[0].nbd.connections: has no value"},
		{"", "service: [{nbd: {device: /dev/nbd0}}, {nbd: {device: /dev/nbd1}}]", "14: service[1].nbd: is a second device: the volume is one"},
		{"", "service: [{vip: {interface: eth0}}]", "14: service[0].vip.address: missing: this key is required"},
		{"", "service: [{vip: {address: 10.0.0.9/24}}]", "14: service[0].vip.interface: missing: this key is required"},
		{"", "service: [{vip: {address: 10.0.0.9, interface: eth0}}]", "14: service[0].vip.address: 10.0.0.9 has no length of its network: write 10.0.0.9/24, or whatever the interface's own address has"},
		{"", "service: [{vip: {address: 10.0.0/24, interface: eth0}}]", `14: service[0].vip.address: "10.0.0/24" is not an address with the length of its network, such as 10.0.0.9/24`},
		{"", "service: [{vip: {address: 10.0.0.9/33, interface: eth0}}]", `14: service[0].vip.address: "10.0.0.9/33" is not an address with the length of its network, such as 10.0.0.9/24`},
		{"", "service: [{vip: {address: 10.0.0.0/24, interface: eth0}}]", "14: service[0].vip.address: 10.0.0.0/24 is the network itself, not an address in it"},
		{"", "service: [{vip: {address: 127.0.0.9/8, interface: lo}}]", "14: service[0].vip.address: 127.0.0.9 is not an address that clients could use"},
		{"", "service: [{vip: {address: 'ff02::1/64', interface: eth0}}]", "14: service[0].vip.address: ff02::1 is not an address that clients could use"},
		{"", "service: [{vip: {address: 'fe80::1/64', interface: eth0}}]", "14: service[0].vip.address: fe80::1 is not an address that clients could use"},
		{"", "service: [{vip: {address: '::ffff:10.0.0.9/120', interface: eth0}}]", "14: service[0].vip.address: ::ffff:10.0.0.9 is not an address that clients could use"},
		{"", "service: [{vip: {address: 10.0.0.9/24, interface: eth0}}, {vip: {address: 10.0.0.9/32, interface: eth1}}]", "14: service[1].vip.address: 10.0.0.9 is named twice"},
		{"", "service: [{vip: {address: 10.0.0.9/24, interface: an-interface-name}}]", `14: service[0].vip.interface: "an-interface-name" is not the name of an interface, such as eth0`},
		{"", "service: [{vip: {address: 10.0.0.9/24, interface: a/b}}]", `14: service[0].vip.interface: "a/b" is not the name of an interface, such as eth0`},
		{"", "service: [{eip: {}}]", "14: service[0].eip.allocation: missing: this key is required"},
		{"", "service: [{eip: {allocation: 203.0.113.7}}]", `14: service[0].eip.allocation: "203.0.113.7" is not the allocation of an Elastic IP, such as eipalloc-0123456789abcdef0`},
		{"", "service: [{eip: {allocation: eipalloc-}}]", `14: service[0].eip.allocation: "eipalloc-" is not the allocation of an Elastic IP, such as eipalloc-0123456789abcdef0`},
		{"", "service: [{eip: {allocation: eipalloc-A1}}]", `14: service[0].eip.allocation: "eipalloc-A1" is not the allocation of an Elastic IP, such as eipalloc-0123456789abcdef0`},
		{"", "service: [{eip: {allocation: eipassoc-01}}]", `14: service[0].eip.allocation: "eipassoc-01" is not the allocation of an Elastic IP, such as eipalloc-0123456789abcdef0`},
		{"", "service: [{eip: {alocation: eipalloc-01}}]", `14: service[0].eip.alocation: unknown key, did you mean "allocation"?`},
		{"", "service: [{eip: {allocation: [eipalloc-01]}}]", "14: service[0].eip.allocation: is a list, a single value is expected"},
		{"", "service: [{eip: {allocation: eipalloc-01}}, {eip: {allocation: eipalloc-01}}]", "14: service[1].eip.allocation: eipalloc-01 is named twice"},
		{"", "service: [{eip: {allocation: eipalloc-01}}, {eip: {allocation: eipalloc-02}}]", "14: service[1].eip.allocation: is a second Elastic IP: this node's address can have one"},
		{"", "service: [{private-ip: {interface: eth0}}]", "14: service[0].private-ip.address: missing: this key is required"},
		{"", "service: [{private-ip: {address: 10.0.0.9}}]", "14: service[0].private-ip.interface: missing: this key is required"},
		{"", "service: [{private-ip: {address: 10.0.0, interface: eth0}}]", `14: service[0].private-ip.address: "10.0.0" is not an IPv4 address of the subnet, such as 10.0.0.9`},
		{"", "service: [{private-ip: {address: 'fd00::9', interface: eth0}}]", `14: service[0].private-ip.address: "fd00::9" is not an IPv4 address of the subnet, such as 10.0.0.9`},
		{"", "service: [{private-ip: {address: 10.0.0.0/20, interface: eth0}}]", "14: service[0].private-ip.address: 10.0.0.0/20 is the network itself, not an address in it"},
		{"", "service: [{private-ip: {address: 0.0.0.0, interface: eth0}}]", "14: service[0].private-ip.address: 0.0.0.0 is not an address that clients could use"},
		{"", "service: [{private-ip: {address: 127.0.0.1, interface: eth0}}]", "14: service[0].private-ip.address: 127.0.0.1 is not an address that clients could use"},
		{"", "service: [{private-ip: {address: 10.0.0.9, interface: a/b}}]", `14: service[0].private-ip.interface: "a/b" is not the name of an interface, such as eth0`},
		{"", "service: [{vip: {address: 10.0.0.9/24, interface: eth0}}, {private-ip: {address: 10.0.0.9, interface: eth0}}]", "14: service[1].private-ip.address: 10.0.0.9 is named twice"},
		{"", "service: [{overlay-route: {tables: [rtb-01]}}]", "14: service[0].overlay-route.cidr: missing: this key is required"},
		{"", "service: [{overlay-route: {cidr: 10.99.0.1/32}}]", "14: service[0].overlay-route.tables: missing: this key is required"},
		{"", "service: [{overlay-route: {cidr: 10.99.0.0/24, tables: [rtb-01]}}]", "14: service[0].overlay-route.cidr: 10.99.0.0/24 is more than one address: the service has one, write 10.99.0.0/32"},
		{"", "service: [{overlay-route: {cidr: 10.99.0.1/33, tables: [rtb-01]}}]", `14: service[0].overlay-route.cidr: "10.99.0.1/33" is not an IPv4 address outside of the VPC, such as 10.99.0.1/32`},
		{"", "service: [{overlay-route: {cidr: 'fd00::1/128', tables: [rtb-01]}}]", `14: service[0].overlay-route.cidr: "fd00::1/128" is not an IPv4 address outside of the VPC, such as 10.99.0.1/32`},
		{"", "service: [{overlay-route: {cidr: 10.99.0.1/32, tables: []}}]", "14: service[0].overlay-route.tables: is empty: name every route table of those who use the address, such as [rtb-0123456789abcdef0]"},
		{"", "service: [{overlay-route: {cidr: 10.99.0.1/32, tables: rtb-01}}]", "14: service[0].overlay-route.tables: is not a list: write [] for an empty one"},
		{"", "service: [{overlay-route: {cidr: 10.99.0.1/32, tables: [rtb-01, main]}}]", `14: service[0].overlay-route.tables[1]: "main" is not a route table, such as rtb-0123456789abcdef0`},
		{"", "service: [{overlay-route: {cidr: 10.99.0.1/32, tables: [rtb-01, rtb-01]}}]", "14: service[0].overlay-route.tables[1]: rtb-01 is named twice"},
		{"", "service: [{overlay-route: {cidr: 10.99.0.1/32, tables: [rtb-01" + strings.Repeat(", rtb-01", 32) + "]}}]", "14: service[0].overlay-route.tables: 33 route tables: at most 32 are possible"},
		{"", "service: [{private-ip: {address: 10.0.0.9, interface: eth0}}, {overlay-route: {cidr: 10.0.0.9/32, tables: [rtb-01]}}]", "14: service[1].overlay-route.cidr: 10.0.0.9 is named twice"},

		// AWS
		{"", "fence: {}", "14: fence.ec2: missing: this key is required"},
		{"", "fence: {stonith: {}}", "14: fence.stonith: unknown key: known here are ec2"},
		{"", "fence: {ec2: yes}", "14: fence.ec2: is not a list of keys and values: write {detach_volume: …}"},
		{"", "fence: {ec2: {detach_volume: 1}}", `14: fence.ec2.detach_volume: "1" is neither true nor false`},
		{"", "aws: eu-central-1", "14: aws: is not a list of keys and values: write {region: …}"},
		{"", "aws: {zone: a}", "14: aws.zone: unknown key: known here are region, endpoint, metadata"},
		{"", "aws: {region: Frankfurt}", `14: aws.region: "Frankfurt" is not a region, such as eu-central-1`},
		{"", "aws: {region: }", "14: aws.region: has no value"},
		{"", "aws: {endpoint: ec2.eu-central-1.amazonaws.com}", `14: aws.endpoint: "ec2.eu-central-1.amazonaws.com" is not the URL of a service, such as https://ec2.eu-central-1.amazonaws.com`},
		{"", "aws: {endpoint: 'https://'}", `14: aws.endpoint: "https://" is not the URL of a service, such as https://ec2.eu-central-1.amazonaws.com`},
		{"", "aws: {endpoint: 'https://u:p@h'}", `14: aws.endpoint: "https://u:p@h" is not the URL of a service, such as https://ec2.eu-central-1.amazonaws.com`},
		{"", "aws: {metadata: 169.254.169.254}", `14: aws.metadata: "169.254.169.254" is not the URL of a service, such as http://[fd00:ec2::254]`},
		{"", "service: [{vip: {address: 10.0.0.9/24, interface: ''}}]", `14: service[0].vip.interface: "" is not the name of an interface, such as eth0`},
		{"", "service: [mount]", "14: service[0]: is not a list of keys and values: write {timeout: …}"},
		{"", "service: mount", "14: service: is not a list: write [] for an empty one"},
	}
}

func TestErrors(t *testing.T) {
	for _, tc := range badConfigs() {
		t.Run(tc.want, func(t *testing.T) {
			if !strings.Contains(minimal, tc.old) {
				t.Fatalf("%q is not in the minimal config", tc.old)
			}
			c, err := parse("a.yaml", tc.file(), "/d", noBlock)
			if err == nil {
				t.Fatalf("accepted: %+v", c)
			}
			if err.Error() != "a.yaml:"+tc.want {
				t.Fatalf("\n got %s\nwant a.yaml:%s", err, tc.want)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T", err)
			}
		})
	}
}

func TestFence(t *testing.T) {
	for text, want := range map[string]Fence{
		"":                                    {},
		"fence: {ec2: {}}":                    {EC2: &EC2Fence{}},
		"fence: {ec2: {detach_volume: true}}": {EC2: &EC2Fence{DetachVolume: true}},
	} {
		c, err := parse("x", []byte(minimal+text), "/", noBlock)
		if err != nil || !reflect.DeepEqual(c.Fence, want) || c.UsesAWS() != (want.EC2 != nil) {
			t.Errorf("%q: %+v, %v", text, c.Fence, err)
		}
	}
}

func TestLaterKeysAreKnownAsSuch(t *testing.T) {
	_, err := parse("x", []byte(minimal+"link: {flows: 4}"), "/", noBlock)
	if !errors.Is(err, ErrNotInVersion) {
		t.Fatalf("got %v", err)
	}
}

func TestService(t *testing.T) {
	c, err := parse("x", []byte(minimal+`
failover: {self_fence: reboot}
on_change: [./bin/mail, "", -v]
service:
- exec: {start: [systemctl, start, app], stop: [bin/stop], check: [/bin/pidof, app], ports: [8080, 53]}
  timeout: 1m
- vip: {address: 10.0.0.9/24, interface: eth0}
- exec: {start: ["true"], stop: [], ports: [53]}
- nbd: {device: /dev/nbd12}
- vip: {address: '2001:db8::9/64', interface: br-0.7}
`), "/d", noBlock)
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Name: "exec", Timeout: time.Minute, Exec: &Exec{Start: []string{"systemctl", "start", "app"}, Stop: []string{"/d/bin/stop"},
			Check: []string{"/bin/pidof", "app"}, Ports: []uint16{8080, 53}}},
		{Name: "vip", Timeout: 10 * time.Second, VIP: &VIP{netip.MustParsePrefix("10.0.0.9/24"), "eth0"}},
		{Name: "exec#2", Timeout: 10 * time.Second, Exec: &Exec{Start: []string{"true"}, Ports: []uint16{53}}},
		{Name: "nbd", Timeout: 10 * time.Second, NBD: &KernelNBD{"/dev/nbd12", 4}},
		{Name: "vip#2", Timeout: 10 * time.Second, VIP: &VIP{netip.MustParsePrefix("2001:db8::9/64"), "br-0.7"}},
	}
	if !reflect.DeepEqual(c.Service, want) {
		t.Errorf("%+v", c.Service)
	}
	if !c.AttachesNBD() {
		t.Error("no nbd step")
	}
	if got := c.ServicePorts(); !slices.Equal(got, []uint16{53, 8080}) {
		t.Errorf("ports %v", got)
	}
	if got := c.ServiceAddresses(); !slices.Equal(got, []netip.Addr{want[1].VIP.Address.Addr(), want[4].VIP.Address.Addr()}) {
		t.Errorf("addresses %v", got)
	}
	if !slices.Equal(c.OnChange, []string{"/d/bin/mail", "", "-v"}) || c.Failover.SelfFence != "reboot" {
		t.Errorf("%q %q", c.OnChange, c.Failover.SelfFence)
	}
}

func TestAWS(t *testing.T) {
	c, err := parse("x", []byte(minimal+`
aws: {region: eu-central-1, endpoint: 'http://127.0.0.1:5000', metadata: ''}
service:
- eip: {allocation: eipalloc-0123456789abcdef0}
- private-ip: {address: 10.0.0.9, interface: ens5}
- private-ip: {address: 10.0.0.10/20, interface: ens5}
  timeout: 20s
- overlay-route: {cidr: 10.99.0.1, tables: [rtb-0a, rtb-0b]}
`), "/d", noBlock)
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Name: "eip", Timeout: 30 * time.Second, EIP: &EIP{"eipalloc-0123456789abcdef0"}},
		{Name: "private-ip", Timeout: 30 * time.Second, PrivateIP: &PrivateIP{netip.MustParsePrefix("10.0.0.9/32"), "ens5"}},
		{Name: "private-ip#2", Timeout: 20 * time.Second, PrivateIP: &PrivateIP{netip.MustParsePrefix("10.0.0.10/20"), "ens5"}},
		{Name: "overlay-route", Timeout: 30 * time.Second, OverlayRoute: &OverlayRoute{netip.MustParsePrefix("10.99.0.1/32"), []string{"rtb-0a", "rtb-0b"}}},
	}
	if !reflect.DeepEqual(c.Service, want) {
		t.Errorf("%+v", c.Service)
	}
	if c.AWS != (AWS{Region: "eu-central-1", Endpoint: "http://127.0.0.1:5000"}) || !c.UsesAWS() {
		t.Errorf("%+v", c.AWS)
	}
	if got := texts(c.ServiceAddresses()); !slices.Equal(got, []string{"10.0.0.9", "10.0.0.10", "10.99.0.1"}) {
		t.Errorf("addresses %v", got)
	}
	// The clients of version 3 of NFS are told by any of these; an Elastic IP is not the host's.
	for step, hasAddress := range map[string]bool{
		"private-ip: {address: 10.0.0.9, interface: ens5}":      true,
		"overlay-route: {cidr: 10.99.0.1/32, tables: [rtb-0a]}": true,
		"eip: {allocation: eipalloc-0123456789abcdef0}":         false,
	} {
		_, err := parse("x", []byte(minimal+"service:\n- nbd: {device: /dev/nbd0}\n- mount: {device: /dev/nbd0, path: /srv/nfs}\n"+
			"- nfs: {path: /srv/nfs, clients: a, versions: [3, 4.2]}\n- "+step+"\n"), "/d", noBlock)
		if (err == nil) != hasAddress {
			t.Errorf("%s: %v", step, err)
		}
	}
}

func texts(all []netip.Addr) (texts []string) {
	for _, a := range all {
		texts = append(texts, a.String())
	}
	return texts
}

// An address that moves with the service cannot be where the nodes find each other.
func TestServiceAddressIsNoNodes(t *testing.T) {
	for _, tc := range []struct{ listen, peer, want string }{
		{"10.0.0.9:7788", "10.0.0.2:7788", "10.0.0.9 is where this node listens for its peers"},
		{"10.0.0.1:7788", "10.0.0.9:7788", "10.0.0.9 is the address of a peer"},
		{":7788", "host:7788", ""},
	} {
		in := strings.NewReplacer("127.0.0.1:7788", tc.listen, "peers: []", "peers: [{node: b, address: '"+tc.peer+"'}]",
			"insecure: true", "{ca: c, cert: c, key: k}", "file:w", "file:w?shared=yes").Replace(minimal)
		_, err := parse("x", []byte(in+"service: [{vip: {address: 10.0.0.9/24, interface: eth0}}]\n"), "/", noBlock)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
}

// The witness and insecure TLS both depend on where the peers are.
func TestOtherHosts(t *testing.T) {
	remote := strings.NewReplacer("127.0.0.1:7788", "10.0.0.1:7788", "peers: []", "peers: [{node: b, address: 10.0.0.2:7788}]",
		"insecure: true", "{ca: c, cert: c, key: k}").Replace(minimal)
	_, err := parse("x", []byte(remote), "/", noBlock)
	want := "x:13: witness: a file on two hosts would be two witnesses, and 10.0.0.2:7788 is another host: add ?shared=yes if it really is one file for all"
	if err == nil || err.Error() != want {
		t.Fatalf("got %v", err)
	}
	c, err := parse("x", []byte(strings.Replace(remote, "file:w", "file:w?shared=yes", 1)), "/", noBlock)
	if err != nil || c.Witness != "file:w?shared=yes" {
		t.Fatalf("%+v %v", c, err)
	}
	// etcd is on hosts of its own.
	const etcd = "etcd://h1:2379,h2:2379/tandem/nfs1?ca=ca.pem"
	c, err = parse("x", []byte(strings.Replace(remote, "file:w", etcd, 1)), "/", noBlock)
	if err != nil || c.Witness != etcd {
		t.Fatalf("%+v %v", c, err)
	}
}

func TestUnits(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1B": 1, "4KiB": 4096, "2 MiB": 2 << 20, "1TiB": 1 << 40, "1kB": 1000, "3MB": 3e6, "1GB": 1e9, "2TB": 2e12,
	} {
		if got, err := parseSize(s); got != want || err != nil {
			t.Errorf("parseSize(%q) = %d, %v", s, got, err)
		}
	}
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", time.Minute: "1m", 90 * time.Second: "1m30s", 10 * time.Second: "10s", 0: "0s", 24 * time.Hour: "24h",
		time.Hour + 30*time.Second: "1h0m30s", 10 * time.Minute: "10m",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("formatDuration(%v) = %s", d, got)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yaml")
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Dir != dir || c.File != path || c.Volume.Device != filepath.Join(dir, "a.img") {
		t.Fatalf("%+v", c)
	}
	for _, path := range []string{filepath.Join(dir, "none.yaml"), dir} {
		if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), "config: ") {
			t.Fatalf("got %v", err)
		}
	}
	t.Chdir(dir)
	if c, err = Load("a.yaml"); err != nil || c.Control != filepath.Join(dir, "a.sock") {
		t.Fatalf("%+v %v", c, err)
	}
}

// The examples are what a newcomer copies: they must load, and be one pair.
func TestExamples(t *testing.T) {
	load := func(name string) *Config {
		c, err := Load(filepath.Join("..", "..", "examples", name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := load("a.yaml"), load("b.yaml")
	if a.Cluster != b.Cluster || a.Witness != b.Witness || a.Dir != b.Dir || a.Volume.Size != b.Volume.Size {
		t.Error("they are not of one cluster")
	}
	if a.Peers[0] != (Peer{Node: b.Node, Address: b.Listen}) || b.Peers[0] != (Peer{Node: a.Node, Address: a.Listen}) {
		t.Error("they are not each other's peers")
	}
	seen := make(map[string]bool)
	for _, c := range []*Config{a, b} {
		for _, own := range []string{c.Node, c.Listen, c.HTTP, c.Control, c.NBD.Socket, c.Volume.Device, c.Volume.Metadata, c.TLS.Key} {
			if own == "" || seen[own] {
				t.Errorf("%s: %q is empty or also the other's", c.File, own)
			}
			seen[own] = true
		}
	}
}

// Peers that are named by their instances' tag have no address, and are on other hosts.
func TestPeersByTag(t *testing.T) {
	text := strings.NewReplacer("peers: []", "peers: {tag: 'tandem:node', nodes: [b, c], port: 7788}",
		"tls:\n  insecure: true", "tls: {ca: c, cert: c, key: k}", "127.0.0.1:7788", "0.0.0.0:7788").Replace(minimal)
	_, err := parse("x", []byte(text), "/d", noBlock)
	if want := "x:12: witness: a file on two hosts would be two witnesses, and b is another host: add ?shared=yes if it really is one file for all"; err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	for _, witness := range []string{"file:w?shared=yes", "s3://bucket/nfs1"} {
		c, err := parse("x", []byte(strings.Replace(text, "file:w", witness, 1)), "/d", noBlock)
		if err != nil {
			t.Fatal(err)
		}
		if want := []Peer{{Node: "b", Tag: "tandem:node", Port: 7788}, {Node: "c", Tag: "tandem:node", Port: 7788}}; !slices.Equal(c.Peers, want) {
			t.Errorf("%+v", c.Peers)
		}
		if tag, port := c.PeersByTag(); tag != "tandem:node" || port != 7788 || !c.UsesAWS() {
			t.Error(tag, port, c.UsesAWS())
		}
	}
	c, err := parse("x", []byte(full), "/d", func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if tag, port := c.PeersByTag(); tag != "" || port != 0 || c.UsesAWS() {
		t.Error(tag, port, c.UsesAWS())
	}
}

// An EBS volume is named by its id. The file system is not asked about it.
func TestEBS(t *testing.T) {
	for id, link := range map[string]string{
		"vol-0123456789abcdef0": "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0",
		"vol-01234567":          "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol01234567",
	} {
		for _, size := range []string{"", "\n  size: 1GiB"} {
			text := strings.Replace(minimal, "a.img\n  size: 1GiB", "ebs:"+id+size, 1)
			c, err := parse("x", []byte(text), "/d", func(path string) bool { t.Error("asked about", path); return false })
			if err != nil {
				t.Fatal(err)
			}
			if c.Volume.EBS != id || c.Volume.Device != link || (c.Volume.Size == 0) != (size == "") {
				t.Errorf("%+v", c.Volume)
			}
		}
	}
	// A file can be called so all the same.
	c, err := parse("x", []byte(strings.Replace(minimal, "a.img", "./ebs:vol-01234567", 1)), "/d", noBlock)
	if err != nil || c.Volume.EBS != "" || c.Volume.Device != "/d/ebs:vol-01234567" {
		t.Errorf("%+v %v", c, err)
	}
}

// /dev/null is a device, but no block device.
func TestIsBlockDevice(t *testing.T) {
	for _, path := range []string{"/dev/null", "/", "/does/not/exist"} {
		if isBlockDevice(path) {
			t.Error(path)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(contract))
	f.Add([]byte(minimal))
	f.Add([]byte(Defaults()))
	for _, tc := range badConfigs() {
		f.Add(tc.file())
	}
	f.Add([]byte(full))
	f.Add([]byte("a: &x [*x]\n"))
	f.Add([]byte("peers: [{node: b, address: '[::1]:1'}]\nwitness: file:w?shared=yes\n"))
	f.Add([]byte("service: [{exec: {start: [a]}, timeout: 1s}]\non_change: [x]\n"))
	f.Add([]byte(minimal + "service: [{exec: {start: [a, b], stop: [./c], check: [], ports: [80]}, timeout: 1s}, {vip: {address: 10.0.0.9/24, interface: eth0}}]\n"))
	f.Add([]byte(minimal + "on_change: [./mail, -v]\nfailover: {self_fence: reboot}\nservice: [{vip: {address: '2001:db8::9/64', interface: br0}}]\n"))
	f.Add([]byte(minimal + "service: [{nfs: {ports: [2049]}}, {mount: {}}]\n"))
	f.Add([]byte(minimal + "service: [{nbd: {device: /dev/nbd0, connections: 16}, timeout: 30s}]\n"))
	f.Add([]byte(minimal + stacked))
	f.Add([]byte(strings.NewReplacer("peers: []", "peers: {tag: 'tandem:node', nodes: [b, c], port: 7788}",
		"tls:\n  insecure: true", "tls: {ca: c, cert: c, key: k}", "file:w", "file:w?shared=yes").Replace(minimal)))
	f.Add([]byte(strings.Replace(minimal, "a.img\n  size: 1GiB", "ebs:vol-0123456789abcdef0", 1)))
	f.Add([]byte(minimal + "aws: {region: eu-central-1, endpoint: 'http://h:1', metadata: ''}\nfence: {ec2: {detach_volume: true}}\nservice:\n- {private-ip: {address: 10.0.0.9, interface: eth0}}\n" +
		"- {overlay-route: {cidr: 10.99.0.1/32, tables: [rtb-0123456789abcdef0]}}\n- {eip: {allocation: eipalloc-0123456789abcdef0}}\n"))
	for _, tc := range badSteps() {
		f.Add(tc.text())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("f", data, "/d", noBlock)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok || c != nil {
				t.Fatalf("%T %v", err, c)
			}
			return
		}
		// What is accepted keeps the promises that the agent builds on.
		if c.Cluster == "" || c.Node == "" || c.Listen == "" || c.Control == "" || c.NBD.Socket == "" || c.Witness == "" {
			t.Fatalf("a required key is empty: %+v", c)
		}
		if c.Volume.Size <= 0 && c.Volume.EBS == "" || c.Volume.Size%blockSize != 0 || len(c.Peers) > maxPeers || c.Link.Flows != 1 {
			t.Fatalf("%+v", c)
		}
		if c.Failover.Lease < 2*c.Failover.Heartbeat || c.Failover.Heartbeat < minHeartbeat {
			t.Fatalf("%+v", c.Failover)
		}
		for _, p := range c.Peers {
			if p.Node == "" || (p.Tag == "") == (p.Address == "") || (p.Tag == "") != (p.Port == 0) || p.Tag != c.Peers[0].Tag ||
				p.Tag != "" && (c.TLS.Insecure || strings.HasPrefix(c.Witness, "file:") && !strings.Contains(c.Witness, "shared=yes")) {
				t.Fatalf("%+v %+v %s", c.Peers, c.TLS, c.Witness)
			}
		}
		names := make(map[string]bool)
		for _, s := range c.Service {
			if names[s.Name] || s.Timeout < minStepTimeout || s.Timeout > maxDuration || kindsOf(s) != 1 {
				t.Fatalf("%+v", s)
			}
			if s.NBD != nil && (!strings.HasPrefix(s.NBD.Device, "/dev/nbd") || s.NBD.Connections < 1 || s.NBD.Connections > maxConnections) {
				t.Fatalf("%+v", s.NBD)
			}
			names[s.Name] = true
			if s.Exec != nil && (len(s.Exec.Start) == 0 || s.Exec.Start[0] == "" || slices.Contains(s.Exec.Ports, 0)) {
				t.Fatalf("%+v", s.Exec)
			}
			if s.Mount != nil && !s.Mount.sound() || s.NFS != nil && !s.NFS.sound() {
				t.Fatalf("%+v %+v", s.Mount, s.NFS)
			}
			if s.VIP != nil && (!s.VIP.Address.IsValid() || s.VIP.Address.Addr().Zone() != "" || s.VIP.Interface == "") {
				t.Fatalf("%+v", s.VIP)
			}
			if s.EIP != nil && (!strings.HasPrefix(s.EIP.Allocation, "eipalloc-") || !c.UsesAWS()) {
				t.Fatalf("%+v", s.EIP)
			}
			if s.PrivateIP != nil && (!s.PrivateIP.Address.Addr().Is4() || s.PrivateIP.Interface == "" || !c.UsesAWS()) {
				t.Fatalf("%+v", s.PrivateIP)
			}
			if s.OverlayRoute != nil && (s.OverlayRoute.CIDR.Bits() != 32 || len(s.OverlayRoute.Tables) == 0 || len(s.OverlayRoute.Tables) > maxTables || !c.UsesAWS()) {
				t.Fatalf("%+v", s.OverlayRoute)
			}
		}
		if len(c.OnChange) > 0 && c.OnChange[0] == "" || len(c.ServicePorts()) > maxSteps*maxPorts {
			t.Fatalf("%q", c.OnChange)
		}
		if !c.TLS.Insecure && (c.TLS.CA == "" || c.TLS.Cert == "" || c.TLS.Key == "") {
			t.Fatalf("%+v", c.TLS)
		}
	})
}
