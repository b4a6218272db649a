package nfs

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem/failover/service"
)

// Version 3 keeps its locks in a service of its own, lockd in the kernel, which knows its
// clients for as long as it runs. What lets them reclaim their locks from the next server is
// rpc.statd's list of their addresses, and a word to each that the server has restarted. For
// two nodes to be one server:
//
//   - all ports are given: a client asks rpcbind once and keeps what it is told;
//   - statd's list is on the volume;
//   - a new server takes the list away before it answers anybody, and tells those on it when
//     it does, from the service's address: that is the name by which they know it. Whoever asks
//     for a lock after that is on the next list;
//   - lockd strikes its clients off the list when it is stopped in order, so a planned stop
//     copies the list before.
const (
	watcher = "rpc.statd" // writes down the clients that have locks

	statdFolder  = ".tandem/statd"
	notifyFolder = ".tandem/statd-notify" // of those who are to be told, a file each

	// startsFile has a number, another one for each start of a server. A client that is told the
	// same one again does nothing; and a server may start several times in an epoch.
	startsFile = ".tandem/statd-starts"

	rpcbindPort = 111

	lockdFolder = "/proc/sys/fs/nfs"

	// tellFor is how long somebody who does not answer is told again. The grace is over by
	// then, and his locks are lost; but he should know.
	tellFor = 5 * time.Minute
	// tellAtOnce bounds what one look does.
	tellAtOnce = 64
)

// V3 is what version 3 needs beside the port of all versions.
type V3 struct {
	MountdPort, LockdPort, StatdPort uint16

	// Notify are the addresses that clients know the server by.
	Notify []string
}

func (s *Server) v3() bool { return slices.Contains(s.cfg.Versions, "3") }

// v4 versions, without which the server is told that there is none.
func (s *Server) v4() bool {
	return slices.ContainsFunc(s.cfg.Versions, func(v string) bool { return strings.HasPrefix(v, "4.") })
}

// prepareV3 is before the daemons: where lockd listens and how long it lets clients reclaim, who
// maps programs to ports, and the lists.
func (s *Server) prepareV3(ctx context.Context, root string) error {
	if !s.v3() {
		return nil
	}
	if err := s.host.run(ctx, "modprobe", "lockd"); err != nil {
		return err
	}
	port := strconv.Itoa(int(s.cfg.V3.LockdPort))
	for _, setting := range [][2]string{{"nlm_tcpport", port}, {"nlm_udpport", port}, {"nlm_grace_period", strconv.FormatInt(seconds(s.cfg.Grace), 10)}} {
		if err := s.host.write(lockdFolder+"/"+setting[0], setting[1]); err != nil {
			return fmt.Errorf("set lockd's %s: %w", setting[0], err)
		}
	}
	if !s.host.listens(rpcbindPort) {
		if err := s.host.run(ctx, "rpcbind"); err != nil {
			return fmt.Errorf("start what maps programs to ports (apt-get install rpcbind): %w", err)
		}
	}
	if err := s.host.run(ctx, "sh", "-ec", takeList, "sh", path.Join(root, statdFolder), path.Join(root, notifyFolder), path.Join(root, startsFile)); err != nil {
		return fmt.Errorf("the list of the clients that have locks: %w", err)
	}
	return nil
}

// takeList takes the list in statd's folder $1 away into $2, of those who are to be told, and counts the
// start in the file $3. A volume that is new begins with the time, so that it does not say what the one
// before has said. The user that statd gives up root for need not have the same number on both nodes.
const takeList = `mkdir -p "$1/sm" "$1/sm.bak" "$2"
	find "$1/sm" "$1/sm.bak" -type f -exec mv -t "$2" {} +
	! test -d /var/lib/nfs/sm || chown -R --reference=/var/lib/nfs/sm "$1"
	chmod 0700 "$1" "$2"; sync "$1/sm" "$2"
	n=$(cat "$3" 2>/dev/null) || n=
	case $n in ''|0*|*[!0-9]*|??????????*) n=$(date +%s | tail -c 9 | sed 's/^0*//') ;; esac
	echo $((n + 1)) >"$3.new"; sync "$3.new"; mv "$3.new" "$3"; sync "$(dirname "$3")"`

// gateArgs are rpc.mountd's.
func (s *Server) gateArgs() []string {
	if !s.v3() {
		return []string{gate, "--no-nfs-version", "3"}
	}
	return []string{gate, "--port", strconv.Itoa(int(s.cfg.V3.MountdPort))}
}

// watch starts rpc.statd unless ours runs. It puts itself into the background.
func (s *Server) watch(ctx context.Context, root string) error {
	if !s.v3() {
		return nil
	}
	folder := path.Join(root, statdFolder)
	all, err := s.host.processes(watcher)
	if err != nil {
		return err
	}
	if at := slices.IndexFunc(all, func(p process) bool { return !slices.Contains(p.argv, folder) }); at >= 0 {
		return fmt.Errorf("%w: %s runs already, for another folder: clients could not reclaim their locks from another node: systemctl mask --now rpc-statd (process %d: %s)",
			service.ErrHopeless, watcher, all[at].pid, strings.Join(all[at].argv, " "))
	}
	if len(all) > 0 {
		return nil
	}
	if err := s.host.run(ctx, watcher, "--no-notify", "--port", strconv.Itoa(int(s.cfg.V3.StatdPort)), "--state-directory-path", folder); err != nil {
		return fmt.Errorf("start what writes down the clients that have locks: %w", err)
	}
	return nil
}

// keepList copies the list for the next server, before lockd strikes all off it.
func (s *Server) keepList(ctx context.Context, note string) {
	_, state, _ := strings.Cut(strings.TrimSpace(note), " state=")
	root, ok := strings.CutSuffix(state, "/"+stateFolder)
	if !ok || !strings.Contains(note, " versions=3") {
		return
	}
	const script = `find "$1/sm" -type f -exec cp -p -t "$2" {} + && sync "$2"`
	if err := s.host.run(ctx, "sh", "-ec", script, "sh", path.Join(root, statdFolder), path.Join(root, notifyFolder)); err != nil {
		s.log.Warn("clients of version 3 will not be told to reclaim their locks", "err", err)
	}
}

// waiting is a client that is to be told.
type waiting struct {
	file    string
	address netip.Addr
}

// toTell reads who is to be told, for tell.
func (s *Server) toTell(ctx context.Context, root string) error {
	if !s.v3() {
		return nil
	}
	text, err := s.host.read(ctx, path.Join(root, startsFile))
	if err != nil {
		return fmt.Errorf("which start of the server this is: %w", err)
	}
	starts, err := strconv.ParseUint(strings.TrimSpace(text), 10, 30) // with what is added below, an int32
	if err != nil {
		return fmt.Errorf("which start of the server this is: %s: %w", startsFile, err)
	}
	s.waiting, s.tellUntil, s.restart = nil, time.Now().Add(tellFor), int32(starts<<1|1) // odd: it is up
	names, err := s.host.names(ctx, path.Join(root, notifyFolder))
	if err != nil {
		return fmt.Errorf("the clients of version 3 that are to be told to reclaim their locks: %w", err)
	}
	for _, name := range names {
		a, err := netip.ParseAddr(name)
		if err != nil { // with fs.nfs.nsm_use_hostnames they are names
			s.log.Warn("a client of version 3 is known by no address, and is not told to reclaim its locks", "client", name)
			continue
		}
		s.waiting = append(s.waiting, waiting{path.Join(root, notifyFolder, name), a})
	}
	return nil
}

// tell tells all that wait, at once, and again at the next check those that did not answer. A
// client that is told twice of one start of the server reclaims once.
func (s *Server) tell(ctx context.Context) {
	if len(s.waiting) == 0 {
		return
	}
	now := s.waiting[:min(len(s.waiting), tellAtOnce)]
	told := make([]bool, len(now))
	var all sync.WaitGroup
	for i, w := range now {
		all.Go(func() {
			for _, name := range s.cfg.V3.Notify {
				from, err := netip.ParseAddr(name)
				if err != nil || from.Is4() != w.address.Is4() {
					continue
				}
				if err := s.host.notify(ctx, from, w.address, name, s.restart); err != nil {
					s.log.Debug("a client of version 3 is not told to reclaim its locks", "client", w.address, "err", err)
					continue
				}
				told[i] = true
			}
		})
	}
	all.Wait()
	var left []waiting
	files := []string{"rm", "-f"}
	for i, w := range now {
		if told[i] {
			files = append(files, w.file)
		} else {
			left = append(left, w)
		}
	}
	if n := len(files) - 2; n > 0 {
		s.log.Info("clients of version 3 are told to reclaim their locks", "clients", n)
		if err := s.host.run(ctx, files...); err != nil {
			s.log.Warn("clients that were told will be told again", "err", err)
		}
	}
	s.waiting = append(s.waiting[len(now):], left...)
	if len(s.waiting) > 0 && time.Now().After(s.tellUntil) {
		s.log.Warn("clients of version 3 cannot be told to reclaim their locks", "clients", len(s.waiting), "one", s.waiting[0].address)
		s.waiting = nil
	}
}
