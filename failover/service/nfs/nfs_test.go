package nfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"tandem/failover/internal/mountinfo"
	"tandem/failover/internal/sockdiag"
	"tandem/failover/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel is a model of a machine with the kernel's NFS server: what it refuses, and what it
// takes over when. Only in a virtual machine is there a real one (e2e, scenario 2-v42).
type kernel struct {
	t     *testing.T
	files map[string]string
	procs []process
	mem   mountinfo.Table
	pid   int

	did []string // commands that changed something
	say map[string]error

	// What the running server was started with.
	scope, versions, recordedBy string
	stuck                       bool // its threads do not end

	live    []sockdiag.Connection
	tickled []sockdiag.Connection
	deaf    netip.Addr // an address that is not here

	mu   sync.Mutex
	told []string
	away netip.Addr // a client that does not answer
}

func (k *kernel) sessions(_ context.Context, port uint16) ([]sockdiag.Connection, error) {
	if port != 2049 {
		k.t.Errorf("port %d", port)
	}
	return k.live, nil
}

func (k *kernel) tickle(c sockdiag.Connection) error {
	if c.Local.Addr() == k.deaf {
		return errors.New("cannot assign requested address")
	}
	k.tickled = append(k.tickled, c)
	return nil
}

func newKernel(t *testing.T) *kernel {
	return &kernel{t: t, files: map[string]string{}, pid: 100, say: map[string]error{}, mem: mountinfo.Table{
		{Path: "/", Dev: unix.Mkdev(254, 0), Type: "ext4", Source: "/dev/vda"},
		{Path: "/srv/nfs", Dev: unix.Mkdev(nbdMajor, 0), Type: "ext4", Source: "/dev/nbd0"},
	}}
}

func (k *kernel) read(_ context.Context, files ...string) (all string, err error) {
	for _, file := range files {
		text, ok := k.files[file]
		if !ok {
			return "", fmt.Errorf("open %s: %w", file, fs.ErrNotExist)
		}
		all += text
	}
	return all, nil
}

func (k *kernel) write(file, text string) error {
	k.files[file] = text
	return nil
}

func (k *kernel) remove(file string) error {
	delete(k.files, file)
	return nil
}

func (k *kernel) names(_ context.Context, folder string) (names []string, err error) {
	for file := range k.files {
		if dir, name := path.Split(file); dir == folder+"/" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (k *kernel) notify(_ context.Context, from, to netip.Addr, name string, state int32) error {
	if to == k.away {
		return errors.New("no answer")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = append(k.told, fmt.Sprintf("%s from %s, called %s, state %d", to, from, name, state))
	return nil
}

func (k *kernel) listens(port uint16) bool {
	return port == 111 && slices.ContainsFunc(k.procs, func(p process) bool { return p.argv[0] == "rpcbind" })
}

func (k *kernel) processes(name string) (all []process, err error) {
	for _, p := range k.procs {
		if p.argv[0] == name {
			all = append(all, p)
		}
	}
	return all, nil
}

func (k *kernel) terminate(p process) error {
	if k.threads() && p.argv[0] == recorder {
		k.t.Error("the recorder was ended under a running server")
	}
	k.did = append(k.did, "terminate "+p.argv[0])
	k.procs = slices.DeleteFunc(k.procs, func(q process) bool { return q.pid == p.pid })
	return nil
}

func (k *kernel) table() (mountinfo.Table, error) { return k.mem, nil }

func (k *kernel) threads() bool {
	n, ok := k.files[threadsFile]
	return ok && n != "0\n"
}

func (k *kernel) runAs(ctx context.Context, hostname string, argv ...string) error {
	if argv[0] == "rpc.nfsd" {
		k.scope = hostname
	}
	return k.run(ctx, argv...)
}

func (k *kernel) run(ctx context.Context, argv ...string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	line := strings.Join(argv, " ")
	if err := k.say[argv[0]]; err != nil {
		return err
	}
	k.did = append(k.did, line)
	value := func(flag string) string { return argv[slices.Index(argv, flag)+1] }
	switch argv[0] {
	case "install":
	case "modprobe":
	case "mount":
		m := mountinfo.Mount{Type: argv[2], Path: argv[4]}
		k.mem = append(k.mem, m)
		if m.Type == "nfsd" {
			k.files[threadsFile], k.files[portsFile], k.files[leaseFile], k.files[graceFile] = "0\n", "", "90\n", "90\n"
		}
	case "rm":
		for _, f := range argv[2:] {
			delete(k.files, f)
		}
	case "rpcbind", watcher:
		k.pid++
		k.procs = append(k.procs, process{k.pid, argv})
	case recorder, gate:
		if argv[0] == recorder && !slices.ContainsFunc(k.mem, func(m mountinfo.Mount) bool { return m.Path == value("-p") && m.Type == "rpc_pipefs" }) {
			return errors.New("no pipes")
		}
		k.pid++
		k.procs = append(k.procs, process{k.pid, argv})
	case "rpc.nfsd":
		if argv[len(argv)-1] == "0" {
			if k.stuck {
				return errors.New("SIGKILL did not end it")
			}
			k.files[threadsFile], k.files[portsFile] = "0\n", ""
			return nil
		}
		if k.threads() || k.files[portsFile] != "" {
			return errors.New("device or resource busy: the times cannot be changed")
		}
		k.files[threadsFile] = argv[len(argv)-1] + "\n"
		k.files[portsFile] = "tcp " + value("--port") + "\n"
		k.files[graceFile], k.files[leaseFile] = value("--grace-time")+"\n", value("--lease-time")+"\n"
		k.versions = strings.Join(argv[slices.Index(argv, "--no-nfs-version"):len(argv)-1], " ")
		k.recordedBy = ""
		if p, _ := k.processes(recorder); len(p) == 1 {
			k.recordedBy = strings.Join(p[0].argv, " ")
		}
	case "exportfs":
		client, at, _ := strings.Cut(argv[len(argv)-1], ":/")
		client = strings.NewReplacer("[", "", "]", "").Replace(client)
		entry := "/" + at + "\t" + client + "("
		var kept strings.Builder
		for l := range strings.Lines(k.files[exportsFile]) {
			if !strings.HasPrefix(l, entry) {
				kept.WriteString(l)
			}
		}
		if argv[1] == "-o" {
			kept.WriteString(entry + argv[2] + ")\n")
		} else if kept.Len() == len(k.files[exportsFile]) {
			return errors.New("could not find it to unexport")
		}
		k.files[exportsFile] = kept.String()
	case "sh":
		if argv[1] == "-ec" { // the lists of version 3
			statd, notify := argv[4]+"/sm/", argv[5]+"/"
			for file, text := range k.files {
				if name, ok := strings.CutPrefix(file, statd); ok {
					k.files[notify+name] = text
					if strings.HasPrefix(argv[2], "mkdir") {
						delete(k.files, file)
					}
				}
			}
			if strings.HasPrefix(argv[2], "mkdir") {
				n, _ := strconv.Atoi(k.files[argv[6]])
				k.files[argv[6]] = strconv.Itoa(n + 1)
			}
			return nil
		}
		if strings.HasSuffix(line, sessionsFile) {
			k.files[argv[5]] = argv[4]
			return nil
		}
		if argv[4] != "/srv/nfs/data" || argv[5] != unlockFile {
			k.t.Errorf("what is %q?", argv)
		}
		if slices.Contains(k.did, "rpc.nfsd 0") {
			k.t.Error("unlocked after the server's end")
		}
	default:
		k.t.Errorf("what is %q?", line)
	}
	return nil
}

// changes returns what was done since the last call.
func (k *kernel) changes() string {
	did := strings.Join(k.did, "\n")
	k.did = nil
	return did
}

func config() Config {
	return Config{Path: "/srv/nfs/data", Clients: []string{"10.0.0.0/8", "2001:db8::/32"}, Options: "rw,sync", FSID: 7, Versions: []string{"4.1", "4.2"},
		Lease: 15 * time.Second, Grace: 20 * time.Second, Scope: "nfs1", Port: 2049}
}

func newServer(k *kernel) *Server {
	s := New(config(), nil)
	s.host = k
	return s
}

var term = service.Term{Cluster: "nfs1", Node: "a", Step: "nfs"}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("%v is not %v", err, w)
		}
	}
}

const startCommands = `modprobe nfsd
mount -t nfsd nfsd /proc/fs/nfsd
install -d /run/rpc_pipefs
mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
install -d -m 0700 /srv/nfs/.tandem/nfsdcld
nfsdcld -p /run/rpc_pipefs -s /srv/nfs/.tandem/nfsdcld
rpc.mountd --no-nfs-version 3
rpc.nfsd --grace-time 20 --lease-time 15 --no-udp --tcp --port 2049 --no-nfs-version 3 --nfs-version 4 --no-nfs-version 4.0 --nfs-version 4.1 --nfs-version 4.2 32
exportfs -o rw,sync,fsid=7 10.0.0.0/8:/srv/nfs/data
exportfs -o rw,sync,fsid=7 [2001:db8::]/32:/srv/nfs/data`

const stopCommands = `exportfs -u 10.0.0.0/8:/srv/nfs/data
exportfs -u [2001:db8::]/32:/srv/nfs/data
sh -c printf '%s\n' "$1" >"$2" sh /srv/nfs/data /proc/fs/nfsd/unlock_filesystem
rpc.nfsd 0
terminate nfsdcld`

func TestLife(t *testing.T) {
	k := newKernel(t)
	s, ctx := newServer(k), t.Context()
	ok(t, s.Stop(ctx, term)) // before anything: nothing is loaded
	is(t, s.Check(ctx, term), ErrNotRunning)
	if did := k.changes(); did != "" {
		t.Errorf("done:\n%s", did)
	}
	ok(t, s.Start(ctx, term))
	if did := k.changes(); did != startCommands {
		t.Errorf("done:\n%s", did)
	}
	if k.scope != "nfs1" || !strings.Contains(k.recordedBy, "/srv/nfs/.tandem/nfsdcld") {
		t.Errorf("scope %q, clients recorded by %q when its threads started", k.scope, k.recordedBy)
	}
	ok(t, s.Check(ctx, term))
	ok(t, newServer(k).Check(ctx, term)) // another life of the agent
	if did := k.changes(); did != "" {
		t.Errorf("a check that holds has done:\n%s", did)
	}
	ok(t, s.Stop(ctx, term))
	if did := k.changes(); did != stopCommands {
		t.Errorf("done:\n%s", did)
	}
	if _, there := k.files[noteFile]; there || k.threads() || k.files[exportsFile] != "" {
		t.Error("something is left")
	}
	ok(t, s.Stop(ctx, term))
	if did := k.changes(); did != "" {
		t.Errorf("a second stop has done:\n%s", did)
	}
	ok(t, s.Start(ctx, term)) // what is loaded stays
	if did := k.changes(); strings.Contains(did, "modprobe") || strings.Contains(did, gate) || !strings.Contains(did, recorder) {
		t.Errorf("done:\n%s", did)
	}
}

// A start that died half-way, at any command, and what comes after it: the next start, or the
// stop of another life.
func TestHalfStarted(t *testing.T) {
	broken := errors.New("broken")
	for _, program := range []string{"modprobe", "mount", "install", recorder, gate, "rpc.nfsd", "exportfs"} {
		for _, stops := range []bool{false, true} {
			k := newKernel(t)
			s := newServer(k)
			k.say[program] = broken
			is(t, s.Start(t.Context(), term), broken)
			delete(k.say, program)
			if program == "rpc.nfsd" { // a socket without threads
				k.files[portsFile] = "tcp 2049\n"
			}
			if stops {
				ok(t, newServer(k).Stop(t.Context(), term))
				if p, _ := k.processes(recorder); k.threads() || len(p) > 0 || k.files[portsFile] != "" {
					t.Errorf("%s: not all is stopped", program)
				}
			}
			if err := newServer(k).Start(t.Context(), term); err != nil {
				t.Errorf("%s: %v", program, err)
			}
			ok(t, newServer(k).Check(t.Context(), term))
		}
	}
}

// What can be mended without a restart of the server is.
func TestCheckMends(t *testing.T) {
	k := newKernel(t)
	s, ctx := newServer(k), t.Context()
	ok(t, s.Start(ctx, term))
	k.changes()
	for what, harm := range map[string]func(){
		"exportfs -o rw,sync,fsid=7 10.0.0.0/8:/srv/nfs/data\nexportfs -o rw,sync,fsid=7 [2001:db8::]/32:/srv/nfs/data": func() { k.files[exportsFile] = "/home\t*(rw)\n" },
		"nfsdcld -p /run/rpc_pipefs -s /srv/nfs/.tandem/nfsdcld":                                                        func() { k.procs = slices.DeleteFunc(k.procs, func(p process) bool { return p.argv[0] == recorder }) },
		"rpc.mountd --no-nfs-version 3": func() { k.procs = slices.DeleteFunc(k.procs, func(p process) bool { return p.argv[0] == gate }) },
	} {
		harm()
		ok(t, s.Check(ctx, term))
		if did := k.changes(); did != what {
			t.Errorf("done:\n%s\nand not\n%s", did, what)
		}
	}
}

func TestCheckSees(t *testing.T) {
	for name, tc := range map[string]struct {
		harm func(*kernel, *Server)
		want error
	}{
		"no threads":      {func(k *kernel, _ *Server) { k.files[threadsFile], k.files[portsFile] = "0\n", "" }, ErrNotRunning},
		"another lease":   {func(k *kernel, _ *Server) { k.files[leaseFile] = "90\n" }, ErrSettings},
		"another grace":   {func(k *kernel, _ *Server) { k.files[graceFile] = "90\n" }, ErrSettings},
		"a new scope":     {func(_ *kernel, s *Server) { s.cfg.Scope = "nfs2" }, ErrSettings},
		"a new client":    {func(_ *kernel, s *Server) { s.cfg.Clients = []string{"*"} }, ErrSettings},
		"new versions":    {func(_ *kernel, s *Server) { s.cfg.Versions = []string{"4.2"} }, ErrSettings},
		"the mount went":  {func(k *kernel, _ *Server) { k.mem = k.mem[:1] }, ErrNotOnVolume},
		"another's":       {func(k *kernel, _ *Server) { k.files[noteFile] = "nfs1/b/nfs x\n" }, ErrForeign},
		"nobody's":        {func(k *kernel, _ *Server) { delete(k.files, noteFile) }, ErrForeign},
		"a name too long": {func(k *kernel, _ *Server) { k.files[noteFile] = "nfs1/a/nfs#2 x\n" }, ErrForeign},
	} {
		k := newKernel(t)
		s := newServer(k)
		ok(t, s.Start(t.Context(), term))
		tc.harm(k, s)
		if err := s.Check(t.Context(), term); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if tc.want == ErrSettings { // by a restart
			ok(t, s.Start(t.Context(), term))
			ok(t, s.Check(t.Context(), term))
		}
	}
}

// A server of the machine's own is neither used nor stopped.
func TestForeign(t *testing.T) {
	k := newKernel(t)
	s, ctx := newServer(k), t.Context()
	ok(t, k.run(ctx, "mount", "-t", "nfsd", "nfsd", nfsdFolder))
	ok(t, k.run(ctx, "rpc.nfsd", "--port", "2049", "--grace-time", "90", "--lease-time", "90", "--no-nfs-version", "3", "8"))
	k.files[exportsFile] = "/home\t*(rw)\n"
	k.procs = []process{{7, []string{recorder}}}
	k.changes()
	err := s.Start(ctx, term)
	is(t, err, ErrForeign, service.ErrHopeless)
	if !strings.Contains(err.Error(), "systemctl disable --now nfs-server") {
		t.Error(err)
	}
	ok(t, s.Stop(ctx, term))
	if !k.threads() || k.files[exportsFile] == "" || len(k.procs) != 1 || strings.Contains(k.changes(), "rpc.nfsd") {
		t.Error("it was touched")
	}
	// Its recorder alone would keep the clients on this machine.
	ok(t, k.run(ctx, "rpc.nfsd", "0"))
	err = s.Start(ctx, term)
	is(t, err, ErrRecorder, service.ErrHopeless)
	if k.threads() {
		t.Error("the server was started")
	}
	// One that is another agent's says so.
	k = newKernel(t)
	s = newServer(k)
	ok(t, s.Start(ctx, service.Term{Cluster: "other", Node: "a", Step: "nfs"}))
	err = newServer(k).Start(ctx, term)
	is(t, err, ErrForeign)
	if !strings.Contains(err.Error(), "other/a/nfs") {
		t.Error(err)
	}
}

func TestNotOnVolume(t *testing.T) {
	k := newKernel(t)
	k.mem = k.mem[:1]
	is(t, newServer(k).Start(t.Context(), term), ErrNotOnVolume)
	if did := k.changes(); did != "" {
		t.Errorf("done:\n%s", did)
	}
}

// A server that does not end keeps its recorder and its note, so that the next Stop goes on.
func TestStuck(t *testing.T) {
	k := newKernel(t)
	s, ctx := newServer(k), t.Context()
	ok(t, s.Start(ctx, term))
	k.stuck = true
	is(t, s.Stop(ctx, term), ErrStillRunning)
	k.changes()
	if p, _ := k.processes(recorder); len(p) != 1 || k.files[noteFile] == "" {
		t.Error("its recorder or its note is gone")
	}
	k.stuck = false
	k.mem = k.mem[:1] // the mount went by force
	ok(t, newServer(k).Stop(ctx, term))
	if p, _ := k.processes(recorder); len(p) != 0 || k.files[noteFile] != "" || k.threads() {
		t.Error("something is left")
	}
}

// Without a note, the recorder is known by its folder, also when the config has changed.
func TestMayHold(t *testing.T) {
	s := New(config(), nil)
	for folder, want := range map[string]bool{
		"/srv/nfs/.tandem/nfsdcld": true, "/srv/nfs/data/.tandem/nfsdcld": true, "/srv/.tandem/nfsdcld": true, "/.tandem/nfsdcld": true,
		"/srv/nf/.tandem/nfsdcld": false, "/srv/nfs/data/x/.tandem/nfsdcld": false, "/var/lib/nfs/nfsdcld": false, "-s": false,
	} {
		if got := s.mayHold(folder); got != want {
			t.Errorf("%s: %v", folder, got)
		}
	}
}
