package nfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tandem/failover/internal/command"
	"tandem/failover/internal/mountinfo"
	"tandem/failover/internal/nsm"
	"tandem/failover/internal/sockdiag"
	"tandem/failover/service"
)

// host is what the step asks of the machine it runs on.
type host interface {
	read(ctx context.Context, files ...string) (string, error) // one after the other
	write(file, text string) error
	remove(file string) error
	run(ctx context.Context, argv ...string) error
	runAs(ctx context.Context, hostname string, argv ...string) error // with that host name
	names(ctx context.Context, folder string) ([]string, error)
	notify(ctx context.Context, from, to netip.Addr, name string, state int32) error
	listens(port uint16) bool // somebody does, on this machine
	processes(name string) ([]process, error)
	terminate(p process) error
	sessions(ctx context.Context, port uint16) ([]sockdiag.Connection, error)
	tickle(c sockdiag.Connection) error
	table() (mountinfo.Table, error)
}

// machine is this one.
type machine struct{}

// read has another process read the server's files and the volume's: the kernel answers for
// the former under the lock that it holds while it waits for its threads to end, and those
// may wait for a device that is frozen, as a read of the latter does. A process can be left
// behind then, a goroutine of ours would be lost.
func (machine) read(ctx context.Context, files ...string) (string, error) {
	if strings.HasPrefix(files[0], nfsdFolder) {
		if _, err := os.Stat(files[0]); err != nil {
			return "", err
		}
	}
	if strings.HasPrefix(files[0], "/run/") || strings.HasPrefix(files[0], "/var/") {
		b, err := os.ReadFile(files[0])
		return string(b), err
	}
	return command.Command{Argv: append([]string{"cat"}, files...)}.Output(ctx)
}

func (machine) write(file, text string) error { return os.WriteFile(file, []byte(text), 0o600) }

func (machine) remove(file string) error { return os.Remove(file) }

func (machine) run(ctx context.Context, argv ...string) error {
	err := command.Command{Argv: argv, Env: []string{"LC_ALL=C"}}.Run(ctx)
	switch {
	case err == nil:
		return nil
	case command.Hopeless(err):
		return fmt.Errorf("%w: %w: apt-get install nfs-kernel-server has what NFS needs", service.ErrHopeless, err)
	case errors.Is(err, command.ErrTimeout):
		return fmt.Errorf("%w: %w", service.ErrTimeout, err)
	}
	return err
}

// runAs gives a thread of ours the host name, and the process inherits it. The thread ends
// with its goroutine, because it is never unlocked: the name is nobody else's.
func (m machine) runAs(ctx context.Context, hostname string, argv ...string) error {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			ended <- fmt.Errorf("a host name of its own for %s: %w", argv[0], os.NewSyscallError("unshare", err))
			return
		}
		if err := unix.Sethostname([]byte(hostname)); err != nil {
			ended <- os.NewSyscallError("sethostname", err)
			return
		}
		ended <- m.run(ctx, argv...)
	}()
	return <-ended
}

// names lists a folder of the volume, by a process for the reason that read has one.
func (machine) names(ctx context.Context, folder string) ([]string, error) {
	out, err := command.Command{Argv: []string{"ls", "-1", folder}}.Output(ctx)
	return strings.Fields(out), err
}

func (machine) notify(ctx context.Context, from, to netip.Addr, name string, state int32) error {
	return nsm.Notify(ctx, from, to, name, state)
}

// listens is host's. A socket of systemd's counts: what is behind it is started by the call.
func (machine) listens(port uint16) bool {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// processes lists those with this name. A kernel thread has no command line, and is none.
func (machine) processes(name string) ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, dir := range dirs {
		p, ok := look(dir)
		if ok && filepath.Base(p.argv[0]) == name {
			all = append(all, p)
		}
	}
	return all, nil
}

func look(dir string) (p process, ok bool) {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(line) == 0 {
		return p, false
	}
	p.pid, err = strconv.Atoi(filepath.Base(dir))
	for _, a := range bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0}) {
		p.argv = append(p.argv, string(a))
	}
	return p, err == nil && p.argv[0] != ""
}

// terminate ends that very process: the number may be somebody else's by now.
func (machine) terminate(p process) error {
	it, err := os.FindProcess(p.pid) // holds the process itself, not its number
	if err != nil {
		return err
	}
	defer func() { _ = it.Release() }()
	if now, ok := look("/proc/" + strconv.Itoa(p.pid)); !ok || strings.Join(now.argv, "\x00") != strings.Join(p.argv, "\x00") {
		return nil
	}
	if err := it.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (machine) table() (mountinfo.Table, error) { return mountinfo.Read("self") }

func major(dev uint64) uint32 { return unix.Major(dev) }
