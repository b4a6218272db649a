package config

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// stacked is the middle of section 8's example.
const stacked = `service:
- mount: {device: /dev/nbd0, path: /srv/nfs, type: ext4, options: noatime}
- nfs: {path: /srv/nfs, clients: 10.0.0.0/8, options: "rw,sync,no_subtree_check", fsid: 1, versions: [4.2], lease: 15s, grace: 20s, scope: nfs1, ports: [2049]}
`

// kindsOf counts what a step is.
func kindsOf(s Step) (n int) {
	for _, is := range []bool{s.Exec != nil, s.NBD != nil, s.Mount != nil, s.NFS != nil, s.VIP != nil, s.EIP != nil, s.PrivateIP != nil, s.OverlayRoute != nil} {
		if is {
			n++
		}
	}
	return n
}

// sound is what the steps build on.
func (m *Mount) sound() bool {
	return strings.HasPrefix(m.Device, "/dev/nbd") && strings.HasPrefix(m.Path, "/") && m.Path != "/" && (m.Type == "ext4" || m.Type == "xfs")
}

func (n *NFS) sound() bool {
	return strings.HasPrefix(n.Path, "/") && !strings.ContainsAny(n.Path, " \n") && len(n.Clients) > 0 && !slices.Contains(n.Clients, "") &&
		len(n.Versions) > 0 && n.Lease >= 10*time.Second && n.Lease%time.Second == 0 && n.Grace >= n.Lease && n.Grace%time.Second == 0 &&
		n.Scope != "" && n.Port != 0 && !strings.Contains(n.Options, "async") && !strings.Contains(n.Options, "fsid=")
}

func TestMountAndNFS(t *testing.T) {
	for text, want := range map[string][2]any{
		stacked: {
			Mount{"/dev/nbd0", "/srv/nfs", "ext4", "noatime"},
			NFS{"/srv/nfs", []string{"10.0.0.0/8"}, "rw,sync,no_subtree_check", 1, []string{"4.2"}, 15 * time.Second, 20 * time.Second, "nfs1", 2049},
		},
		"service: [{mount: {device: /dev/nbd12, path: /srv//nfs/}}, {nfs: {path: /srv/nfs/sub/, clients: ['*']}}]\n": {
			Mount{"/dev/nbd12", "/srv/nfs", "ext4", "noatime"},
			NFS{"/srv/nfs/sub", []string{"*"}, "rw,sync,no_subtree_check", 1, []string{"4.1", "4.2"}, 15 * time.Second, 20 * time.Second, "nfs1", 2049},
		},
		"service: [{mount: {device: /dev/nbd0, path: /a b, type: xfs, options: ''}}, {mount: {device: /dev/nbd1, path: /b}}, " +
			"{nfs: {path: /b, clients: ['2001:db8::/32', host.example.org], options: ro, fsid: 0, versions: [4.2, 4.0], lease: 1m, scope: other, ports: [20049]}}]\n": {
			Mount{"/dev/nbd0", "/a b", "xfs", ""},
			NFS{"/b", []string{"2001:db8::/32", "host.example.org"}, "ro", 0, []string{"4.0", "4.2"}, time.Minute, time.Minute, "other", 20049},
		},
		"service: [{vip: {address: 10.0.0.9/24, interface: eth0}}, {mount: {device: /dev/nbd0, path: /b}}, {nfs: {path: /b, clients: '*', versions: [4.2, 3]}}]\n": {
			Mount{"/dev/nbd0", "/b", "ext4", "noatime"},
			NFS{"/b", []string{"*"}, "rw,sync,no_subtree_check", 1, []string{"3", "4.2"}, 15 * time.Second, 20 * time.Second, "nfs1", 2049},
		},
	} {
		c, err := parse("x", []byte(minimal+text), "/d", noBlock)
		if err != nil {
			t.Errorf("%v\n%s", err, text)
			continue
		}
		at := slices.IndexFunc(c.Service, func(s Step) bool { return s.Mount != nil })
		first, last := c.Service[at], c.Service[len(c.Service)-1]
		if first.Name != "mount" || last.Name != "nfs" || !reflect.DeepEqual(*first.Mount, want[0]) || !reflect.DeepEqual(*last.NFS, want[1]) {
			t.Errorf("%+v %+v", first.Mount, last.NFS)
		}
		ports := []uint16{last.NFS.Port}
		if last.NFS.V3() {
			ports = append(ports, 20048, 32803)
		}
		if got := c.ServicePorts(); !slices.Equal(got, ports) {
			t.Errorf("ports %v", got)
		}
	}
}

// badSteps are refused; they are the fuzzer's seeds, too.
func badSteps() []badStep {
	const mount = "- mount: {device: /dev/nbd0, path: /srv/nfs"
	return []badStep{
		{"- mount: {path: /a}", "", "15: service[0].mount.device: missing: this key is required"},
		{"- mount: {device: /dev/nbd0}", "", "15: service[0].mount.path: missing: this key is required"},
		{"- mount: {device: /dev/sda1, path: /a}", "", `15: service[0].mount.device: "/dev/sda1" is not a device /dev/nbdX: the disk below the volume has the same bytes, but what is written there is not mirrored`},
		{"- mount: {device: /dev/nbd0p1, path: /a}", "", `15: service[0].mount.device: "/dev/nbd0p1" is not a device /dev/nbdX: the disk below the volume has the same bytes, but what is written there is not mirrored`},
		{"- mount: {device: /dev/nbd0, path: a}", "", `15: service[0].mount.path: "a" does not begin with /: clients and both nodes know it by one path`},
		{"- mount: {device: /dev/nbd0, path: /a/..}", "", "15: service[0].mount.path: / is the node's own"},
		{"- mount: {device: /dev/nbd0, path: \"/a\\nb\"}", "", `15: service[0].mount.path: "/a\nb" has a control character`},
		{mount + ", type: btrfs}", "", `15: service[0].mount.type: "btrfs" is not one of ext4, xfs`},
		{mount + ", options: 'noatime,nobarrier'}", "", "15: service[0].mount.options: nobarrier lets fsync return before the data is on any disk: leave it out"},
		{mount + ", options: 'noatime, ro'}", "", `15: service[0].mount.options: "noatime, ro" is not a list of options with commas and without blanks`},
		{mount + ", options: 'noatime,'}", "", `15: service[0].mount.options: "noatime," is not a list of options with commas and without blanks`},
		{mount + ", options: [noatime]}", "", "15: service[0].mount.options: is a list, a single value is expected"},
		{mount + ", options: " + strings.Repeat("a", 1025) + "}", "", "15: service[0].mount.options: has 1025 bytes: at most 1024 are possible"},
		{mount + "}", "- mount: {device: /dev/nbd0, path: /b}", "16: service[1].mount.device: /dev/nbd0 is mounted by another step"},
		{mount + "}", "- mount: {device: /dev/nbd1, path: /srv/nfs}", "16: service[1].mount.path: /srv/nfs is the place of another step"},

		{"- nfs: {path: /srv/nfs, clients: '*'}", mount + "}", "15: service[0].nfs.path: /srv/nfs is not in the path of a step mount before this one: it would be on this node's own disk"},
		{mount + "}", "- nfs: {path: /srv/nfs2, clients: '*'}", "16: service[1].nfs.path: /srv/nfs2 is not in the path of a step mount before this one: it would be on this node's own disk"},
		{mount + "}", "- nfs: {path: '/srv/nfs/a b', clients: '*'}", `16: service[1].nfs.path: "/srv/nfs/a b" has a character that exports(5) does not take as it is`},
		{mount + "}", "- nfs: {clients: '*'}", "16: service[1].nfs.path: missing: this key is required"},
		{mount + "}", "- nfs: {path: /srv/nfs}", "16: service[1].nfs.clients: missing: this key is required"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: []}", "16: service[1].nfs.clients: 0 clients: 1 to 64 are possible"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: '*(rw)'}", `16: service[1].nfs.clients: "*(rw)" is not a client of exports(5), such as 10.0.0.0/8, host.example.org or *`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: [a, -o]}", `16: service[1].nfs.clients[1]: "-o" is not a client of exports(5), such as 10.0.0.0/8, host.example.org or *`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: [a, a]}", "16: service[1].nfs.clients[1]: a is named twice"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, options: 'rw,async'}", "16: service[1].nfs.options: async acknowledges what is in memory only, and a takeover loses it: write sync"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, options: 'rw,fsid=3'}", "16: service[1].nfs.options: fsid has a key of its own, nfs.fsid"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, options: 'rw)'}", `16: service[1].nfs.options: "rw)" is not a list of options with commas and without blanks`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, fsid: root}", `16: service[1].nfs.fsid: "root" is not a number from 0 to 2147483647`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, fsid: -1}", `16: service[1].nfs.fsid: "-1" is not a number from 0 to 2147483647`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, versions: [3, 4.2]}", "14: service: version 3 of nfs needs a step vip, private-ip or overlay-route: its clients are told by that address to reclaim their locks"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, versions: [4]}", `16: service[1].nfs.versions[0]: "4" is not one of 3, 4.0, 4.1, 4.2`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, versions: [4.2, 4.2]}", "16: service[1].nfs.versions[1]: 4.2 is named twice"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, versions: []}", "16: service[1].nfs.versions: is empty: leave it out for 4.1 and 4.2"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, versions: 4.2}", "16: service[1].nfs.versions: is not a list: write [] for an empty one"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, lease: 9s}", "16: service[1].nfs.lease: 9s is less than 10s"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, lease: 61m}", "16: service[1].nfs.lease: 1h1m is more than the kernel takes, 1h"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, lease: 10.5s}", "16: service[1].nfs.lease: 10.5s is not in whole seconds"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, grace: 14s}", "16: service[1].nfs.grace: 14s is less than lease, 15s: a client that renews once a lease would come too late for its locks"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, scope: ''}", `16: service[1].nfs.scope: "" is not a name of 1 to 64 letters: it is the same on all nodes, such as the cluster's`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, scope: 'a b'}", `16: service[1].nfs.scope: "a b" is not a name of 1 to 64 letters: it is the same on all nodes, such as the cluster's`},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, ports: [2049, 111]}", "16: service[1].nfs.ports: 2 ports: the server has one; those that version 3 takes beside it are given"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, ports: []}", "16: service[1].nfs.ports: 0 ports: the server has one; those that version 3 takes beside it are given"},
		{mount + "}", "- nfs: {path: /srv/nfs, clients: a, ports: [7788]}", "16: service[1].nfs.ports[0]: 7788 is where this node listens for its peers: it must answer them at any time"},
		{mount + "}\n- nfs: {path: /srv/nfs, clients: a}", "- nfs: {path: /srv/nfs, clients: b}", "17: service[2].nfs.path: is a second export: a machine has one NFS server, and this version has one export of it"},
	}
}

type badStep struct{ step, more, want string }

func (b badStep) text() []byte { return []byte(minimal + "service:\n" + b.step + "\n" + b.more + "\n") }

func TestBadMountAndNFS(t *testing.T) {
	for _, tc := range badSteps() {
		c, err := parse("x", tc.text(), "/d", noBlock)
		if err == nil {
			t.Errorf("accepted, and should be %s: %+v", tc.want, c.Service)
			continue
		}
		if got := strings.TrimPrefix(err.Error(), "x:"); got != tc.want {
			t.Errorf("\n got %s\nwant %s", got, tc.want)
		}
		if strings.Contains(tc.want, "not in this version") != errors.Is(err, ErrNotInVersion) {
			t.Errorf("%v: as an error of a later version", err)
		}
	}
}

// The default port is checked like one that is written.
func TestNFSPortIsTheNodes(t *testing.T) {
	in := strings.Replace(minimal, "127.0.0.1:7788", "127.0.0.1:2049", 1) + "service:\n- mount: {device: /dev/nbd0, path: /a}\n- nfs: {path: /a, clients: b}\n"
	_, err := parse("x", []byte(in), "/d", noBlock)
	if err == nil || !strings.Contains(err.Error(), "2049 is where this node listens for its peers") {
		t.Fatal(err)
	}
}
