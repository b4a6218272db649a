package nfs

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func v3Server(k *kernel) *Server {
	s := newServer(k)
	s.cfg.Versions = []string{"3", "4.2"}
	s.cfg.V3 = V3{MountdPort: 20048, LockdPort: 32803, StatdPort: 32765, Notify: []string{"10.0.0.9", "2001:db8::9"}}
	return s
}

// Ports and times are set, and the list is taken away, before the server starts.
func TestV3Life(t *testing.T) {
	k := newKernel(t)
	k.files["/srv/nfs/.tandem/statd/sm/10.0.0.7"] = "of the server before\n"
	s, ctx := v3Server(k), t.Context()
	ok(t, s.Start(ctx, term))
	want := []string{
		"modprobe lockd", "rpcbind", "sh -ec", "rpc.statd --no-notify --port 32765 --state-directory-path /srv/nfs/.tandem/statd", "rpc.mountd --port 20048",
		"rpc.nfsd --grace-time 20 --lease-time 15 --no-udp --tcp --port 2049 --nfs-version 3 --nfs-version 4 --no-nfs-version 4.0 --no-nfs-version 4.1 --nfs-version 4.2 32",
	}
	at := 0
	for _, did := range k.did {
		if at < len(want) && strings.HasPrefix(did, want[at]) {
			at++
		}
	}
	if at < len(want) {
		t.Errorf("no %q in this order in\n%s", want[at], k.changes())
	}
	for file, text := range map[string]string{"nlm_tcpport": "32803", "nlm_udpport": "32803", "nlm_grace_period": "20"} {
		if got := k.files["/proc/sys/fs/nfs/"+file]; got != text {
			t.Errorf("%s is %q", file, got)
		}
	}
	if len(k.told) > 0 {
		t.Errorf("told before anybody is answered: %v", k.told)
	}
	ok(t, s.Check(ctx, term))
	k.files["/srv/nfs/.tandem/statd/sm/10.0.0.8"] = "of this one\n"
	ok(t, s.Opened(ctx, term))
	if want := []string{"10.0.0.7 from 10.0.0.9, called 10.0.0.9, state 3"}; !slices.Equal(k.told, want) {
		t.Errorf("told %v", k.told)
	}
	ok(t, s.Check(ctx, term))
	ok(t, s.Opened(ctx, term)) // another life of the agent
	if len(k.told) != 1 {
		t.Errorf("told again: %v", k.told)
	}
	// A planned stop: lockd would strike its clients off the list.
	k.changes()
	ok(t, s.Stop(ctx, term))
	did := k.changes()
	if strings.Index(did, "sh -ec find") > strings.Index(did, "rpc.nfsd 0") || !strings.Contains(did, "terminate rpc.statd") {
		t.Errorf("done:\n%s", did)
	}
	if _, there := k.files["/srv/nfs/.tandem/statd-notify/10.0.0.8"]; !there {
		t.Error("the next server will not tell 10.0.0.8")
	}
	// It may be the same node's, in the same term: to a client it is another one all the same.
	ok(t, s.Start(ctx, term))
	ok(t, s.Opened(ctx, term))
	if want := "10.0.0.8 from 10.0.0.9, called 10.0.0.9, state 5"; len(k.told) != 2 || k.told[1] != want {
		t.Errorf("told %v", k.told)
	}
}

// TestTakeList is the script on real folders.
func TestTakeList(t *testing.T) {
	if _, err := os.Stat("/var/lib/nfs/sm"); err == nil && os.Getuid() != 0 {
		t.Skip("root gives statd's folder to its user")
	}
	root := t.TempDir()
	statd, notify, starts := filepath.Join(root, statdFolder), filepath.Join(root, notifyFolder), filepath.Join(root, startsFile)
	take := func() (n int) {
		t.Helper()
		ok(t, machine{}.run(t.Context(), "sh", "-ec", takeList, "sh", statd, notify, starts))
		text, err := machine{}.read(t.Context(), starts)
		ok(t, err)
		n, err = strconv.Atoi(strings.TrimSpace(text))
		ok(t, err)
		if n <= 0 || n >= 1<<30 {
			t.Errorf("%s says %d", startsFile, n)
		}
		return n
	}
	first := take() // on a new volume
	for file, text := range map[string]string{"sm/10.0.0.7": "x", "sm.bak/10.0.0.8": "y"} {
		ok(t, os.WriteFile(filepath.Join(statd, file), []byte(text), 0o600))
	}
	if n := take(); n != first+1 {
		t.Errorf("start %d after %d", n, first)
	}
	names, err := machine{}.names(t.Context(), notify)
	if left, _ := filepath.Glob(statd + "/*/*"); err != nil || !slices.Equal(names, []string{"10.0.0.7", "10.0.0.8"}) || len(left) > 0 {
		t.Errorf("to be told are %v, left are %v: %v", names, left, err)
	}
	for _, damaged := range []string{"", "x", "007", "-4", "99999999999999999999"} {
		ok(t, os.WriteFile(starts, []byte(damaged), 0o600))
		take()
	}
	ok(t, os.WriteFile(starts, []byte("999999999"), 0o600))
	take()
	take()
}

// Who does not answer is told at the next checks; who is known by a name cannot be.
func TestTellAgain(t *testing.T) {
	k := newKernel(t)
	for _, name := range []string{"10.0.0.7", "10.0.0.8", "2001:db8::7", "client.example.org"} {
		k.files["/srv/nfs/.tandem/statd/sm/"+name] = "x"
	}
	k.away = netip.MustParseAddr("10.0.0.8")
	s, ctx := v3Server(k), t.Context()
	ok(t, s.Start(ctx, term))
	ok(t, s.Opened(ctx, term))
	slices.Sort(k.told)
	if want := []string{"10.0.0.7 from 10.0.0.9, called 10.0.0.9, state 3", "2001:db8::7 from 2001:db8::9, called 2001:db8::9, state 3"}; !slices.Equal(k.told, want) {
		t.Errorf("told %v", k.told)
	}
	ok(t, s.Check(ctx, term))
	k.away = netip.Addr{}
	ok(t, s.Check(ctx, term))
	ok(t, s.Check(ctx, term))
	if len(k.told) != 3 || k.told[2] != "10.0.0.8 from 10.0.0.9, called 10.0.0.9, state 3" {
		t.Errorf("told %v", k.told)
	}
}

// A statd of the machine's own, and an rpc.mountd that serves version 4 alone.
func TestV3Daemons(t *testing.T) {
	k := newKernel(t)
	ctx := t.Context()
	k.procs = []process{{7, []string{watcher}}}
	if err := v3Server(k).Start(ctx, term); err == nil || !strings.Contains(err.Error(), "systemctl mask --now rpc-statd") {
		t.Error(err)
	}
	k = newKernel(t)
	k.procs = []process{{7, []string{gate, "--no-nfs-version", "3"}}}
	s := v3Server(k)
	ok(t, s.Start(ctx, term))
	ok(t, s.Check(ctx, term))
	if p, _ := k.processes(gate); len(p) != 1 || !slices.Equal(p[0].argv, []string{gate, "--port", "20048"}) {
		t.Errorf("%v", p)
	}
	// Version 3 alone.
	ok(t, s.Stop(ctx, term))
	s.cfg.Versions = []string{"3"}
	k.changes()
	ok(t, s.Start(ctx, term))
	if did := k.changes(); !strings.Contains(did, "--port 2049 --nfs-version 3 --no-nfs-version 4 32") {
		t.Errorf("done:\n%s", did)
	}
}
