// Package mount is the service step that mounts the volume's filesystem on the primary.
//
// It mounts /dev/nbdX and nothing else. The disk under the volume has the same bytes,
// and mounting that would work, too, and write past the mirror. It never makes a filesystem:
// a device that has none is either new, which a person knows, or damaged, which mkfs would
// make worse.
package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tandem/failover/internal/command"
	"tandem/failover/internal/mountinfo"
	"tandem/failover/service"
)

// nbdMajor is NBD_MAJOR of the kernel's include/uapi/linux/major.h.
const nbdMajor = 43

// again is the pause before a busy filesystem is tried once more: what the kernel's NFS
// server held is let go of in the background, after it has answered.
const again = 100 * time.Millisecond

var (
	// ErrUnformatted means that there is no filesystem on the device.
	ErrUnformatted = errors.New("there is no filesystem")

	// ErrOtherType means that there is one of another type.
	ErrOtherType = errors.New("another filesystem than the one asked for")

	// ErrNotNBD means that the device is not one of the kernel's NBD.
	ErrNotNBD = errors.New("not an NBD device: its writes would not be mirrored")

	// ErrDetached means that the device is not connected to the agent.
	ErrDetached = errors.New("nothing is attached to the device")

	// ErrElsewhere means that the path, or the device, is taken.
	ErrElsewhere = errors.New("mounted already, and not by this step")

	// ErrNotMounted means that the mount is gone.
	ErrNotMounted = errors.New("not mounted")

	// ErrReadOnly means that the kernel has stopped writing, after an error.
	ErrReadOnly = errors.New("read-only")

	// ErrHeld means that the filesystem is still in use, so this node has not let go.
	ErrHeld = errors.New("still in use")
)

// Config is what to mount.
type Config struct {
	Device  string // /dev/nbdX
	Path    string // absolute and clean; made if it is missing
	Type    string // ext4 or xfs
	Options string // as mount -o takes them; may be empty
}

// Mount is a service.Step. The Runner calls one method at a time, so it has no lock.
type Mount struct {
	cfg   Config
	log   *slog.Logger
	major uint32 // that the device must have; a test has loop's

	// begun: a mount was not over in its time. The kernel goes on with it, whatever becomes of mount(8).
	begun bool
}

// New returns the step. log may be nil.
func New(cfg Config, log *slog.Logger) *Mount {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Mount{cfg: cfg, log: log, major: nbdMajor}
}

// Start mounts the filesystem, after what fsck does by itself. The journal is replayed by
// the one or the other.
func (m *Mount) Start(ctx context.Context, _ service.Term) error {
	dev, held, err := m.look()
	if err != nil || held {
		return err
	}
	if err := m.attached(dev); err != nil {
		return err
	}
	if m.begun {
		if held, err := m.finish(ctx); err != nil || held {
			return err
		}
	}
	if err := m.identify(ctx); err != nil {
		return err
	}
	if err := m.fsck(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(m.cfg.Path, 0o755); err != nil {
		return fmt.Errorf("the place to mount %s at: %w", m.cfg.Device, err)
	}
	argv := []string{"mount", "-t", m.cfg.Type}
	if m.cfg.Options != "" {
		argv = append(argv, "-o", m.cfg.Options)
	}
	if err := run(ctx, append(argv, m.cfg.Device, m.cfg.Path)...); err != nil {
		m.begun = errors.Is(err, service.ErrTimeout)
		return fmt.Errorf("mount: %w", err)
	}
	return m.Check(ctx, service.Term{})
}

// finish waits for a mount that an earlier Start has begun and had no time for, as the replay of
// a long journal needs: a second one beside it could only fail, and be taken for a node on which
// the filesystem cannot be mounted. False: that one has failed, and nothing of it is left.
func (m *Mount) finish(ctx context.Context) (held bool, err error) {
	for {
		if _, held, err = m.look(); err != nil || held {
			m.begun = false
			return held, err
		}
		// Who mounts has the device to himself.
		fd, err := unix.Open(m.cfg.Device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			m.begun = false
			return false, unix.Close(fd)
		case !errors.Is(err, unix.EBUSY):
			return false, fmt.Errorf("%s: %w", m.cfg.Device, err)
		}
		if !pause(ctx, again) {
			return false, fmt.Errorf("mount %s, which was begun before, still runs: %w", m.cfg.Device, context.Cause(ctx))
		}
	}
}

// Stop unmounts. It waits for what the filesystem has to write, and as long as somebody
// uses it, but never longer than ctx; then the error says who.
//
// It never detaches lazily (umount -l). That hides the mount and says nothing of its end: the
// filesystem lives, dirty pages included, until its last user goes, while this node tells
// everybody that it has let go. A device with a mount that nobody can see is what a
// self-fence has to be for.
func (m *Mount) Stop(ctx context.Context, _ service.Term) error {
	dev, held, err := m.look()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrNotNBD):
		return nil // nothing of ours can be mounted from it
	case err != nil && !errors.Is(err, ErrElsewhere):
		return err
	}
	var why error
	for held {
		err := run(ctx, "umount", m.cfg.Path)
		// The last attempt is cut off, and knows less than the one before.
		if why == nil || err != nil && !errors.Is(err, service.ErrTimeout) {
			why = err
		}
		if err != nil && !pause(ctx, again) {
			return fmt.Errorf("%w: %w; %s", ErrHeld, why, m.holders(dev))
		}
		// Whether it went is seen here; it may also be mounted twice.
		if _, held, err = m.look(); err != nil && !errors.Is(err, ErrElsewhere) {
			return err
		}
	}
	return m.gone(ctx, dev)
}

// Check says whether the filesystem is there and takes writes.
func (m *Mount) Check(_ context.Context, _ service.Term) error {
	_, held, err := m.look()
	if err != nil {
		return err
	}
	if !held {
		return fmt.Errorf("%s: %w", m.cfg.Path, ErrNotMounted)
	}
	t, err := mountinfo.Read("self")
	if err != nil {
		return err
	}
	if at, ok := t.At(m.cfg.Path); ok && at.ReadOnly() && !slices.Contains(strings.Split(m.cfg.Options, ","), "ro") {
		return fmt.Errorf("%s on %s: %w: the kernel has met an error, see dmesg", m.cfg.Device, m.cfg.Path, ErrReadOnly)
	}
	return nil
}

// look returns the device's number, and whether it is mounted at the path.
func (m *Mount) look() (dev uint64, held bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(m.cfg.Device, &st); err != nil {
		return 0, false, fmt.Errorf("%s: %w: the step nbd makes it, and has to come first in service", m.cfg.Device, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || unix.Major(st.Rdev) != m.major {
		return 0, false, fmt.Errorf("%w: %s: %w", service.ErrHopeless, m.cfg.Device, ErrNotNBD)
	}
	t, err := mountinfo.Read("self")
	if err != nil {
		return 0, false, err
	}
	at, ok := t.At(m.cfg.Path)
	switch {
	case ok && at.Dev == st.Rdev && at.Root == "/":
		held = true
	case ok:
		return st.Rdev, false, fmt.Errorf("%w: %w: %s is at %s: umount %[4]s", service.ErrHopeless, ErrElsewhere, at.Source, at.Path)
	}
	// Beside ours there may be others, such as a bind mount for a chroot.
	if others := t.Of(st.Rdev); !held && len(others) > 0 {
		return st.Rdev, false, fmt.Errorf("%w: %w: %s is at %s: umount %[4]s", service.ErrHopeless, ErrElsewhere, m.cfg.Device, strings.Join(others, " "))
	}
	return st.Rdev, held, nil
}

// attached asks for the size in the kernel's list: opening the device would ask the device.
func (m *Mount) attached(dev uint64) error {
	size, err := os.ReadFile(filepath.Join(m.sys(dev), "size"))
	if err != nil {
		return fmt.Errorf("%s: %w", m.cfg.Device, err)
	}
	if strings.TrimSpace(string(size)) == "0" {
		return fmt.Errorf("%s: %w: the step nbd has to come before mount in service", m.cfg.Device, ErrDetached)
	}
	return nil
}

func (m *Mount) sys(dev uint64) string {
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))
}

// notFound is blkid's exit code for a device on which it knows nothing.
const notFound = 2

// identify reads the device for the filesystem that is expected. By a command, as all that
// waits for the device: a read of a frozen one cannot be given up, a process can be left.
func (m *Mount) identify(ctx context.Context) error {
	found, err := output(ctx, "blkid", "-p", "-s", "TYPE", "-o", "value", m.cfg.Device)
	found = strings.TrimSpace(found)
	switch {
	case exitCode(err) == notFound:
		return fmt.Errorf("%w: %w on %s: if it is new, type mkfs.%s %[3]s on the primary; it is never done by itself",
			service.ErrHopeless, ErrUnformatted, m.cfg.Device, m.cfg.Type)
	case err != nil:
		return wrap("look for a filesystem", err)
	case found == m.cfg.Type:
		return nil
	case found == "":
		found = "something else" // such as a partition table
	}
	return fmt.Errorf("%w: %w: %s is on %s, and not %s: type blkid -p %[4]s to see more, and set type accordingly",
		service.ErrHopeless, ErrOtherType, found, m.cfg.Device, m.cfg.Type)
}

// The bits of e2fsck's exit code that are bad news (e2fsck(8)).
const uncorrected = 4

// fsck runs what e2fsck does without asking (-p): it looks at the superblock, and at the
// rest only if that has an error noted or a mount would not replay the journal. It goes
// before the mount, because the errors of a mounted filesystem cannot be mended. XFS has
// nothing like it: its mount replays the log or refuses.
func (m *Mount) fsck(ctx context.Context) error {
	if m.cfg.Type != "ext4" {
		return nil
	}
	err := run(ctx, "e2fsck", "-p", m.cfg.Device)
	switch code := exitCode(err); {
	case err == nil:
		return nil
	case code > 0 && code < uncorrected:
		m.log.Warn("the filesystem had errors that were corrected", "device", m.cfg.Device, "err", err)
		return nil
	case code > 0 && code&uncorrected != 0:
		return fmt.Errorf("%w: the filesystem has errors that need a person: type e2fsck -f %s on the primary: %w", service.ErrHopeless, m.cfg.Device, err)
	}
	return wrap("check the filesystem", err)
}

// gone returns nil when the kernel has no filesystem on the device any more. One that is
// mounted in another mount namespace outlives the umount in ours; both types have a
// folder in sysfs for as long as they live.
func (m *Mount) gone(ctx context.Context, dev uint64) error {
	disk, err := os.Readlink(m.sys(dev))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", m.cfg.Device, err)
	}
	life := "/sys/fs/" + m.cfg.Type + "/" + filepath.Base(disk)
	for {
		if _, err := os.Stat(life); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !pause(ctx, again) {
			return fmt.Errorf("%s: %w after its umount; %s", m.cfg.Device, ErrHeld, m.holders(dev))
		}
	}
}

func run(ctx context.Context, argv ...string) error {
	_, err := output(ctx, argv...)
	return err
}

func output(ctx context.Context, argv ...string) (string, error) {
	out, err := command.Command{Argv: argv, Env: []string{"LC_ALL=C"}}.Output(ctx)
	switch {
	case err == nil:
		return out, nil
	case command.Hopeless(err):
		return "", fmt.Errorf("%w: %w", service.ErrHopeless, err)
	case errors.Is(err, command.ErrTimeout):
		return "", fmt.Errorf("%w: %w", service.ErrTimeout, err)
	}
	return "", err
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// exitCode is 0 for a command that ended well or not by itself.
func exitCode(err error) int {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(e.ExitCode(), 0)
	}
	return 0
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
