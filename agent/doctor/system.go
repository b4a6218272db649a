package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tandem/agent/config"
	"tandem/blockrepl/disk"
	"tandem/failover/awsclient"
	"tandem/failover/awsclient/instance"
	"tandem/failover/witness"
)

// System is the machine and what is reached from it.
type System struct {
	// Root is the folder that /sys, /proc, /dev/watchdog and /lib/modules are in.
	Root string

	Now      func() time.Time
	LookPath func(program string) (string, error)

	// Agent says whether an agent answers at a control socket, and which process it is,
	// 0 if that is not known.
	Agent func(socket string) (pid int, running bool)

	// Block returns the kernel's name of a block device, such as nvme1n1, and "" for a
	// regular file.
	Block func(path string) (string, error)

	// Claim takes a device or file for a moment, as an agent would, and lets it go.
	Claim func(path string, block bool) error

	// Metadata is what the volume's metadata says; its error wraps what package disk's
	// Inspect says.
	Metadata func(*config.Config) (Metadata, error)

	Witness func(url, dir string) (witness.Store, error)

	// Peer asks a peer's agent. It may be called concurrently.
	Peer func(ctx context.Context, node string) (Facts, error)

	// StateDir is where the agent writes its history, "" for beside the config.
	StateDir string

	Instance Instance
	EC2      func(context.Context) (EC2, error)
}

// Metadata is what of a volume's metadata is looked at.
type Metadata struct {
	Size     int64
	Identity string // of the device that it was written for
}

// ThisMachine is the one that this process runs on. peer asks a node of the cluster.
func ThisMachine(cfg *config.Config, peer func(context.Context, string) (Facts, error)) System {
	loader := awsclient.New(awsclient.Options{Region: cfg.AWS.Region, Endpoint: cfg.AWS.Endpoint, Metadata: cfg.AWS.Metadata})
	client := instance.NewEC2(loader)
	state, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	return System{
		Root: "/", Now: time.Now, LookPath: lookPath, Agent: agentAt, Block: blockName, Claim: claim, Metadata: metadata,
		Witness: func(raw, baseDir string) (witness.Store, error) {
			return witness.OpenOn(raw, baseDir, awsclient.Options{Region: cfg.AWS.Region, Metadata: cfg.AWS.Metadata})
		},
		Peer:     peer,
		StateDir: state,
		Instance: instance.New(loader),
		EC2:      func(ctx context.Context) (EC2, error) { return client.Client(ctx) },
	}
}

func (s *System) path(path ...string) string { return filepath.Join(s.Root, filepath.Join(path...)) }

// text is a file of /sys or /proc, without the end of its line.
func (s *System) text(path ...string) (string, error) {
	b, err := os.ReadFile(s.path(path...))
	return strings.TrimSpace(string(b)), err
}

func (s *System) exists(path ...string) bool {
	_, err := os.Stat(s.path(path...))
	return err == nil
}

// lookPath also looks where only root's PATH leads: the agent has that of its unit.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil || strings.ContainsRune(program, '/') {
		return path, err
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, e := exec.LookPath(filepath.Join(dir, program)); e == nil {
			return path, nil
		}
	}
	return "", err
}

// agentAt asks the kernel who listens. A socket that may not be connected to is taken to
// have an agent: nobody can look whose it is.
func agentAt(socket string) (pid int, running bool) {
	c, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return 0, !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED)
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, true
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid, true
}

func blockName(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "", nil
	case unix.S_IFBLK:
		link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
		return filepath.Base(link), err
	}
	return "", fmt.Errorf("%s is neither a block device nor a regular file", path)
}

// claim opens a device for itself alone, or locks a file; either fails where somebody has it.
func claim(path string, block bool) error {
	flags := os.O_RDONLY
	if block {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil || block {
		if err == nil {
			f.Close()
		}
		return err
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

func metadata(cfg *config.Config) (Metadata, error) {
	st, err := disk.Inspect(disk.Options{Path: cfg.Volume.Device, Size: cfg.Volume.Size, Metadata: cfg.Volume.Metadata})
	if err != nil {
		return Metadata{}, err
	}
	return Metadata{Size: st.Super.VolumeSize, Identity: st.Super.Identity}, nil
}
