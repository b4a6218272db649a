// Package nfs is the service step that has the kernel's NFS server export the volume.
//
// To a client both nodes have to be one server that restarts:
//
//   - file handles carry the export's fsid, which is given, and is not that of a device;
//   - the NFSv4 server scope and owner are the cluster's. The kernel takes them from the host
//     name of whoever starts its threads, so rpc.nfsd runs with the scope as its host name,
//     in a UTS namespace of its own: Debian's has no option for it;
//   - what the server knows of its clients, so that they may reclaim their locks, is on the
//     volume. Of the kernel's three ways to keep it (nfsdcld, the nfsdcltrack upcall, and
//     the old folder v4recovery) it takes the first that is there, in this order, when
//     its threads start; so nfsdcld has to run before them, and serve this folder;
//   - lease and grace are short and set before the threads start: the kernel refuses later.
//
// There is one such server on a machine (in a network namespace), with one scope and one
// lease, so the step wants it for itself: it does not touch one that others have started.
//
// Replies are not let out before the list of steps is up (package permit). So it is no harm
// that the server runs a moment before the export is there.
package nfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"tandem/failover/service"
)

const (
	// threads are how many requests are worked on at once. An idle one costs a stack;
	// the kernel's own default of 8 is one client's 8 fsyncs.
	threads = 32

	// stateFolder is at the root of the volume's filesystem, with what must move with it.
	stateFolder = ".tandem/nfsdcld"

	nbdMajor = 43 // NBD_MAJOR of linux/major.h

	// again is the pause between two looks at something that is about to be.
	again = 50 * time.Millisecond
)

// The files of the server.
const (
	nfsdFolder  = "/proc/fs/nfsd"
	threadsFile = nfsdFolder + "/threads"
	leaseFile   = nfsdFolder + "/nfsv4leasetime"
	graceFile   = nfsdFolder + "/nfsv4gracetime"
	portsFile   = nfsdFolder + "/portlist"
	unlockFile  = nfsdFolder + "/unlock_filesystem"
	exportsFile = "/var/lib/nfs/etab"

	// noteFile says whose the running server is, and with which settings it was started. It
	// goes with a reboot, as the server does.
	noteFile = "/run/tandem-nfsd"
)

var (
	// ErrForeign means that the machine's NFS server was started by somebody else.
	ErrForeign = errors.New("the kernel's NFS server runs already, and was not started by this step")

	// ErrNotOnVolume means that the path is not on the replicated filesystem.
	ErrNotOnVolume = errors.New("not on the replicated device")

	// ErrNotRunning means that the server is not there.
	ErrNotRunning = errors.New("the kernel's NFS server does not run")

	// ErrStillRunning means that the server could not be stopped.
	ErrStillRunning = errors.New("the kernel's NFS server still runs")

	// ErrSettings means that it runs with other settings than these.
	ErrSettings = errors.New("the kernel's NFS server runs with other settings")
)

// Config is what to export, and how.
type Config struct {
	Path     string        // absolute and clean, on the volume's filesystem, without blanks
	Clients  []string      // as exports(5) names them: addresses, networks, names
	Options  string        // of exports(5), without fsid
	FSID     uint32        // the same on all nodes; 0 makes the path the root of NFSv4
	Versions []string      // "3", "4.0", "4.1", "4.2"
	Lease    time.Duration // whole seconds, from 10 s to an hour
	Grace    time.Duration // at least Lease
	Scope    string        // a host name, the same on all nodes
	Port     uint16        // TCP
	V3       V3            // looked at with version "3"
}

// Server is a service.Step. The Runner calls one method at a time, so it has no lock.
type Server struct {
	cfg  Config
	log  *slog.Logger
	host host

	// opened: clients are answered, and sessionsFile is of no more use to this node. Before
	// that it is the server's before, and is not written.
	opened     bool
	remembered string // what was written into it, last

	waiting   []waiting // clients of version 3 that are to be told to reclaim their locks
	tellUntil time.Time
	restart   int32 // what they are told: the "state" of SM_NOTIFY
}

// New returns the step. log may be nil.
func New(cfg Config, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: log, host: machine{}}
}

// settings is what the server was started with; it is started again when that changes. The
// first word says whose it is.
func (s *Server) settings(term service.Term, state string) string {
	more := ""
	if s.v3() {
		more = fmt.Sprintf(" v3=%d,%d,%d", s.cfg.V3.MountdPort, s.cfg.V3.LockdPort, s.cfg.V3.StatdPort)
	}
	return fmt.Sprintf("%s versions=%s lease=%d grace=%d scope=%s port=%d%s clients=%s options=%s fsid=%d state=%s\n", owner(term),
		strings.Join(s.cfg.Versions, ","), seconds(s.cfg.Lease), seconds(s.cfg.Grace), s.cfg.Scope, s.cfg.Port, more,
		strings.Join(s.cfg.Clients, ","), s.cfg.Options, s.cfg.FSID, state)
}

func owner(term service.Term) string { return term.Cluster + "/" + term.Node + "/" + term.Step }

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

// Start starts the server and exports the path. A server that an earlier attempt, or an
// earlier life with another config, has left is stopped first.
func (s *Server) Start(ctx context.Context, term service.Term) error {
	state, err := s.state()
	if err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return fmt.Errorf("prepare the kernel's NFS server: %w", err)
	}
	running, err := s.running(ctx)
	if err != nil {
		return err
	}
	if running {
		if note, err := s.note(); err != nil {
			return err
		} else if !isOurs(note, term) {
			return foreign(note)
		}
		if err := s.Stop(ctx, term); err != nil {
			return fmt.Errorf("stop the server of before: %w", err)
		}
	}
	if err := s.host.run(ctx, "install", "-d", "-m", "0700", state); err != nil {
		return fmt.Errorf("the folder for what the server knows of its clients: %w", err)
	}
	if err := s.prepareV3(ctx, strings.TrimSuffix(state, "/"+stateFolder)); err != nil {
		return err
	}
	if err := s.daemons(ctx, state); err != nil {
		return err
	}
	// Before the server: one without a note is nobody's.
	if err := s.host.write(noteFile, s.settings(term, state)); err != nil {
		return fmt.Errorf("note whose the server is: %w", err)
	}
	if err := s.host.runAs(ctx, s.cfg.Scope, s.rpcNFSD()...); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	if err := s.export(ctx); err != nil {
		return err
	}
	return s.Check(ctx, term)
}

// rpcNFSD names every version and both times, because the machine's nfs.conf may have others.
func (s *Server) rpcNFSD() []string {
	argv := []string{"rpc.nfsd", "--grace-time", strconv.FormatInt(seconds(s.cfg.Grace), 10), "--lease-time", strconv.FormatInt(seconds(s.cfg.Lease), 10),
		"--no-udp", "--tcp", "--port", strconv.Itoa(int(s.cfg.Port))}
	for _, v := range []string{"3", "4", "4.0", "4.1", "4.2"} {
		flag := "--no-nfs-version"
		if slices.Contains(s.cfg.Versions, v) || v == "4" && s.v4() {
			flag = "--nfs-version"
		}
		if strings.HasPrefix(v, "4.") && !s.v4() {
			break // none of them without 4
		}
		argv = append(argv, flag, v)
	}
	return append(argv, strconv.Itoa(threads))
}

// state returns the folder for what the server knows of its clients.
func (s *Server) state() (string, error) {
	root, err := s.volume()
	return path.Join(root, stateFolder), err
}

// volume returns the root of the volume's filesystem.
func (s *Server) volume() (string, error) {
	t, err := s.host.table()
	if err != nil {
		return "", err
	}
	m, ok := t.Holding(s.cfg.Path)
	if !ok || major(m.Dev) != nbdMajor {
		return "", fmt.Errorf("%s: %w, but on %s: the step mount has to come first in service", s.cfg.Path, ErrNotOnVolume, m.Source)
	}
	return m.Path, nil
}

// prepare loads the server and mounts its two filesystems, unless the machine's own units have.
func (s *Server) prepare(ctx context.Context) error {
	if _, err := s.host.read(ctx, threadsFile); err != nil {
		if err := s.host.run(ctx, "modprobe", "nfsd"); err != nil {
			return err
		}
		// The module's loading may have had somebody mount it.
		if _, err := s.host.read(ctx, threadsFile); err != nil {
			if err := s.host.run(ctx, "mount", "-t", "nfsd", "nfsd", nfsdFolder); err != nil {
				return err
			}
		}
	}
	if _, err := s.pipes(); err == nil {
		return nil
	}
	const at = "/run/rpc_pipefs"
	if err := s.host.run(ctx, "install", "-d", at); err != nil {
		return err
	}
	return s.host.run(ctx, "mount", "-t", "rpc_pipefs", "rpc_pipefs", at)
}

// pipes is where the kernel's pipes to its daemons are.
func (s *Server) pipes() (string, error) {
	t, err := s.host.table()
	if err != nil {
		return "", err
	}
	for _, m := range t {
		if m.Type == "rpc_pipefs" {
			return m.Path, nil
		}
	}
	return "", errors.New("rpc_pipefs is not mounted")
}

// running says whether the server has threads, or sockets without them, which it has after a
// start that failed half-way.
func (s *Server) running(ctx context.Context) (bool, error) {
	for _, file := range []string{threadsFile, portsFile} {
		text, err := s.host.read(ctx, file)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // not loaded
		}
		if err != nil {
			return false, fmt.Errorf("ask the kernel's NFS server: %w", err)
		}
		if text = strings.TrimSpace(text); text != "" && text != "0" {
			return true, nil
		}
	}
	return false, nil
}

// note returns what stands in the note, or "".
func (s *Server) note() (string, error) {
	note, err := s.host.read(context.Background(), noteFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("whose the server is: %w", err)
	}
	return note, nil
}

func isOurs(note string, term service.Term) bool { return strings.HasPrefix(note, owner(term)+" ") }

func foreign(note string) error {
	if whose, _, ok := strings.Cut(note, " "); ok {
		return fmt.Errorf("%w: %w, but by %s: a machine has one", service.ErrHopeless, ErrForeign, whose)
	}
	return fmt.Errorf("%w: %w: systemctl disable --now nfs-server", service.ErrHopeless, ErrForeign)
}

// address is a client as exportfs reads it before a colon.
func (s *Server) address(client string) string {
	if host, length, ok := strings.Cut(client, "/"); strings.Contains(client, ":") {
		client = "[" + host + "]"
		if ok {
			client += "/" + length
		}
	}
	return client + ":" + s.cfg.Path
}

func (s *Server) export(ctx context.Context) error {
	for _, c := range s.cfg.Clients {
		options := fmt.Sprintf("fsid=%d", s.cfg.FSID)
		if s.cfg.Options != "" {
			options = s.cfg.Options + "," + options
		}
		if err := s.host.run(ctx, "exportfs", "-o", options, s.address(c)); err != nil {
			return fmt.Errorf("export %s to %s: %w", s.cfg.Path, c, err)
		}
	}
	return nil
}

// exported says which of the clients the machine's table of exports has.
func (s *Server) exported(ctx context.Context) (clients []string, err error) {
	text, err := s.host.read(ctx, exportsFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the machine's exports: %w", err)
	}
	for line := range strings.Lines(text) {
		at, to, _ := strings.Cut(line, "\t")
		client, _, _ := strings.Cut(to, "(")
		if at == s.cfg.Path {
			clients = append(clients, client)
		}
	}
	return clients, nil
}

// Stop takes the export away, and with the server's end every open file and lock of its
// clients; they reclaim them from the next server. All that is tried, whatever fails first;
// the server is gone if there is no error. The daemon that answers for exports (rpc.mountd)
// stays, because it is the machine's and holds nothing of the volume.
func (s *Server) Stop(ctx context.Context, term service.Term) error {
	s.opened, s.remembered, s.waiting = false, "", nil
	note, err := s.note()
	if err != nil {
		return err
	}
	ours := isOurs(note, term)
	var errs []error
	clients, err := s.exported(ctx)
	errs = append(errs, err)
	for _, c := range clients {
		errs = append(errs, wrap("withdraw the export", s.host.run(ctx, "exportfs", "-u", s.address(c))))
	}
	if ours {
		s.keepList(ctx, note) // a client without locks may be struck off at any time
		// For what holds the filesystem beside open files, such as lockd's locks. It is
		// refused where the path is not mounted any more.
		if err := s.host.run(ctx, "sh", "-c", `printf '%s\n' "$1" >"$2"`, "sh", s.cfg.Path, unlockFile); err != nil {
			s.log.Debug("unlock the exported filesystem", "err", err)
		}
		errs = append(errs, wrap("stop the server", s.host.run(ctx, "rpc.nfsd", "0")))
		running, err := s.running(ctx)
		if running {
			err = ErrStillRunning
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err // its daemon has to outlive it, and the note says that it is ours
	}
	if err := s.endRecorder(ctx, note, ours); err != nil {
		return err
	}
	if ours {
		return wrap("forget whose the server is", s.host.remove(noteFile))
	}
	return nil
}

// Check says whether the server runs as it was started. What it can bring back without its
// clients noticing, the daemons and the export, it does: a restart of the server is a grace
// period for all.
func (s *Server) Check(ctx context.Context, term service.Term) error {
	text, err := s.host.read(ctx, threadsFile, leaseFile, graceFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotRunning // not loaded
	}
	if err != nil {
		return fmt.Errorf("ask the kernel's NFS server: %w", err)
	}
	now := strings.Fields(text)
	if len(now) != 3 || now[0] == "0" {
		return ErrNotRunning
	}
	note, err := s.note()
	if err != nil {
		return err
	}
	if !isOurs(note, term) {
		return foreign(note)
	}
	state, err := s.state()
	if err != nil {
		return err
	}
	if want := s.settings(term, state); note != want {
		return fmt.Errorf("%w: %q is %q", ErrSettings, strings.TrimSpace(note), strings.TrimSpace(want))
	}
	if lease, grace := strconv.FormatInt(seconds(s.cfg.Lease), 10), strconv.FormatInt(seconds(s.cfg.Grace), 10); now[1] != lease || now[2] != grace {
		return fmt.Errorf("%w: lease and grace are %s and %s seconds, and not %s and %s", ErrSettings, now[1], now[2], lease, grace)
	}
	if err := s.daemons(ctx, state); err != nil {
		return err
	}
	clients, err := s.exported(ctx)
	if err != nil {
		return err
	}
	if len(clients) < len(s.cfg.Clients) {
		s.log.Warn("somebody has withdrawn the export (exportfs -r?): it is exported again", "path", s.cfg.Path)
		if err := s.export(ctx); err != nil {
			return err
		}
	}
	// A client without it waits a little longer after a takeover: no reason to restart.
	if !s.opened {
		return nil
	}
	s.tell(ctx)
	if err := s.remember(ctx, strings.TrimSuffix(state, "/"+stateFolder)); err != nil {
		s.log.Warn("nfs", "err", err)
	}
	return nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
