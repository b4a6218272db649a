package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"tandem/failover/internal/mountinfo"
	"tandem/failover/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inside is set in the process of a test whose mount namespace is its own.
const inside = "TANDEM_TEST_MOUNTNS"

// loopMajor is LOOP_MAJOR of linux/major.h: a loop device stands for the NBD one.
const loopMajor = 7

// own returns true in a process with a mount namespace of its own. Anywhere else it runs
// the test in one.
func own(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	missing := ""
	if _, err := os.Stat("/dev/loop-control"); err != nil || os.Geteuid() != 0 {
		missing = "mounting needs root and loop devices"
	}
	for _, tool := range []string{"losetup:mount", "mkfs.ext4:e2fsprogs", "blkid:util-linux", "unshare:util-linux"} {
		program, pkg, _ := strings.Cut(tool, ":")
		if _, err := exec.LookPath(program); err != nil {
			missing = fmt.Sprintf("%s is not installed: apt-get install %s", program, pkg)
		}
	}
	if missing != "" && os.Getenv("TANDEM_REQUIRE_TOOLS") == "1" {
		t.Fatal(missing)
	} else if missing != "" {
		t.Skip(missing)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in its namespace: %v\n%s", err, out)
	}
	return false
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop attaches a new image of zeroes.
func loop(t *testing.T) (device string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	sh(t, "truncate -s 16M "+image)
	device = sh(t, "losetup -f --show "+image)
	t.Cleanup(func() { sh(t, "while umount "+device+" 2>/dev/null; do :; done; losetup -d "+device) })
	return device
}

func newMount(t *testing.T, device string) *Mount {
	m := New(Config{Device: device, Path: filepath.Join(t.TempDir(), "a b", "volume"), Type: "ext4", Options: "noatime"}, nil)
	m.major = loopMajor
	return m
}

func (m *Mount) mounted(t *testing.T) bool {
	t.Helper()
	table, err := mountinfo.Read("self")
	if err != nil {
		t.Fatal(err)
	}
	_, ok := table.At(m.cfg.Path)
	return ok
}

// soon bounds a Stop that is not expected to succeed.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func says(t *testing.T, err error, is []error, texts ...string) {
	t.Helper()
	for _, want := range is {
		if !errors.Is(err, want) {
			t.Errorf("%v is not %v", err, want)
		}
	}
	for _, want := range texts {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var term = service.Term{}

func TestLife(t *testing.T) {
	if !own(t) {
		return
	}
	ctx := t.Context()
	m := newMount(t, loop(t))
	ok(t, m.Stop(ctx, term)) // before anything
	says(t, m.Check(ctx, term), []error{ErrNotMounted}, m.cfg.Path)

	says(t, m.Start(ctx, term), []error{ErrUnformatted, service.ErrHopeless}, "type mkfs.ext4 "+m.cfg.Device)
	sh(t, "mkfs.ext4 -q "+m.cfg.Device)
	m.cfg.Type = "xfs"
	says(t, m.Start(ctx, term), []error{ErrOtherType, service.ErrHopeless}, "ext4 is on "+m.cfg.Device+", and not xfs")
	m.cfg.Type = "ext4"

	ok(t, m.Start(ctx, term))
	ok(t, m.Check(ctx, term))
	table, err := mountinfo.Read("self")
	ok(t, err)
	if at, there := table.At(m.cfg.Path); !there || at.Type != "ext4" || !slices.Contains(at.Options, "noatime") {
		t.Errorf("%+v", at)
	}
	ok(t, os.WriteFile(m.cfg.Path+"/f", []byte("kept"), 0o600))
	ok(t, m.Start(ctx, term)) // again, and in another life
	ok(t, (&Mount{cfg: m.cfg, log: m.log, major: m.major}).Start(ctx, term))

	sh(t, "mount -o remount,ro '"+m.cfg.Path+"'")
	says(t, m.Check(ctx, term), []error{ErrReadOnly}, "dmesg")
	m.cfg.Options = "noatime,ro"
	ok(t, m.Check(ctx, term)) // as asked for
	m.cfg.Options = "noatime"

	ok(t, m.Stop(ctx, term))
	ok(t, m.Stop(ctx, term))
	if m.mounted(t) {
		t.Error("still mounted")
	}
	if _, err := os.Stat(m.cfg.Path + "/f"); err == nil {
		t.Error("the file is on the disk below")
	}
	ok(t, m.Start(ctx, term))
	if b, err := os.ReadFile(m.cfg.Path + "/f"); err != nil || string(b) != "kept" {
		t.Errorf("%q %v", b, err)
	}
	sh(t, fmt.Sprintf("mount --bind '%s' '%[1]s'", m.cfg.Path)) // by hand, once more
	ok(t, m.Stop(ctx, term))
	if m.mounted(t) {
		t.Error("still mounted below")
	}
}

// A filesystem with a note of errors is checked; what a person has to decide is not mounted.
func TestFsck(t *testing.T) {
	if !own(t) {
		return
	}
	ctx := t.Context()
	m := newMount(t, loop(t))
	sh(t, "mkfs.ext4 -q "+m.cfg.Device+"; debugfs -w -R 'set_super_value state 2' "+m.cfg.Device+"; debugfs -w -R 'set_super_value free_blocks_count 1' "+m.cfg.Device)
	ok(t, m.Start(ctx, term))
	ok(t, m.Stop(ctx, term))
	if out := sh(t, "e2fsck -fn "+m.cfg.Device+" 2>&1"); strings.Contains(out, "WARNING") {
		t.Error(out)
	}

	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for code, hopeless := range map[int]bool{1: false, 2: false, 3: false, 4: true, 5: true, 12: true, 8: false, 32: false} {
		ok(t, os.WriteFile(filepath.Join(bin, "e2fsck"), fmt.Appendf(nil, "#!/bin/sh\necho UNEXPECTED INCONSISTENCY\nexit %d\n", code), 0o755))
		err := m.Start(ctx, term)
		if (err == nil) != (code < 4) || m.mounted(t) != (err == nil) {
			t.Errorf("exit code %d: %v, mounted %v", code, err, m.mounted(t))
		}
		if hopeless {
			says(t, err, []error{service.ErrHopeless}, "type e2fsck -f "+m.cfg.Device, "UNEXPECTED INCONSISTENCY")
		} else if errors.Is(err, service.ErrHopeless) {
			t.Errorf("exit code %d: %v", code, err)
		}
		ok(t, m.Stop(ctx, term))
	}
	// It is not run for XFS.
	m.cfg.Type = "xfs"
	ok(t, m.fsck(ctx))
}

// Whoever uses the filesystem is named, and it is never taken from under them.
func TestHeld(t *testing.T) {
	if !own(t) {
		return
	}
	ctx := t.Context()
	m := newMount(t, loop(t))
	sh(t, "mkfs.ext4 -q "+m.cfg.Device)
	ok(t, m.Start(ctx, term))
	ok(t, os.WriteFile(m.cfg.Path+"/f", nil, 0o600))
	ok(t, os.Mkdir(m.cfg.Path+"/sub", 0o700))
	sh(t, "cp $(which sleep) '"+m.cfg.Path+"/sleeper'")

	start := func(script string) *exec.Cmd {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = m.cfg.Path
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		ok(t, cmd.Start())
		time.Sleep(200 * time.Millisecond)
		return cmd
	}
	end := func(cmd *exec.Cmd) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for what, script := range map[string]string{
		"/sub":     "cd sub; exec sleep 60",
		"/f":       "exec 3<f; cd /; exec sleep 60",
		"/sleeper": "exec env -C / \"$PWD/sleeper\" 60",
	} {
		cmd := start(script)
		err := m.Stop(soon(t), term)
		says(t, err, []error{ErrHeld}, fmt.Sprintf("process %d (", cmd.Process.Pid), m.cfg.Path+what, "busy")
		if !m.mounted(t) {
			t.Errorf("%s: it was taken away", what)
		}
		end(cmd)
	}

	sh(t, "mount -t tmpfs none '"+m.cfg.Path+"/sub'")
	says(t, m.Stop(soon(t), term), []error{ErrHeld}, "a mount at "+m.cfg.Path+"/sub")
	sh(t, "umount '"+m.cfg.Path+"/sub'")

	// Another namespace keeps what is gone from ours.
	cmd := start("cd /; exec unshare -m --propagation private sleep 60")
	err := m.Stop(soon(t), term)
	says(t, err, []error{ErrHeld}, fmt.Sprintf("process %d (sleep): a mount at %s in its namespace", cmd.Process.Pid, m.cfg.Path))
	if m.mounted(t) {
		t.Error("it is still there")
	}
	says(t, m.Stop(soon(t), term), []error{ErrHeld}) // it is not forgotten
	end(cmd)
	ok(t, m.Stop(ctx, term))

	// Somebody who lets go in time is waited for.
	ok(t, m.Start(ctx, term))
	cmd = start("cd sub; exec sleep 1")
	ok(t, m.Stop(ctx, term))
	end(cmd)
}

func TestElsewhere(t *testing.T) {
	if !own(t) {
		return
	}
	ctx := t.Context()
	m, other := newMount(t, loop(t)), newMount(t, loop(t))
	sh(t, "mkfs.ext4 -q "+m.cfg.Device+"; mkfs.ext4 -q "+other.cfg.Device)
	ok(t, other.Start(ctx, term))

	path := m.cfg.Path
	m.cfg.Path = other.cfg.Path
	says(t, m.Start(ctx, term), []error{ErrElsewhere, service.ErrHopeless}, other.cfg.Device+" is at "+other.cfg.Path)
	ok(t, m.Stop(ctx, term))
	if !other.mounted(t) {
		t.Error("another's mount was taken away")
	}
	m.cfg.Path, m.cfg.Device = path, other.cfg.Device
	says(t, m.Start(ctx, term), []error{ErrElsewhere, service.ErrHopeless}, "umount "+other.cfg.Path)
	says(t, m.Stop(soon(t), term), []error{ErrHeld}, "a mount at "+other.cfg.Path)

	// A bind mount beside ours is no harm, until the end.
	bind := t.TempDir()
	sh(t, "mount --bind '"+other.cfg.Path+"' "+bind)
	ok(t, other.Check(ctx, term))
	ok(t, other.Start(ctx, term))
	says(t, other.Stop(soon(t), term), []error{ErrHeld}, "a mount at "+bind)
	sh(t, "umount "+bind)
	ok(t, other.Stop(ctx, term))
}

func TestNotOurDevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	ok(t, os.WriteFile(file, nil, 0o600))
	for _, device := range []string{file, "/dev/null"} {
		m := New(Config{Device: device, Path: t.TempDir(), Type: "ext4"}, nil)
		says(t, m.Start(t.Context(), term), []error{ErrNotNBD, service.ErrHopeless}, device)
		ok(t, m.Stop(t.Context(), term))
	}
	m := New(Config{Device: file + ".none", Path: t.TempDir(), Type: "ext4"}, nil)
	says(t, m.Start(t.Context(), term), []error{os.ErrNotExist}, "nbd")
	says(t, m.Check(t.Context(), term), []error{os.ErrNotExist})
	ok(t, m.Stop(t.Context(), term))
}

func TestDetached(t *testing.T) {
	if !own(t) {
		return
	}
	m := newMount(t, loop(t))
	sh(t, "truncate -s 0 $(losetup -nO BACK-FILE "+m.cfg.Device+"); losetup -c "+m.cfg.Device)
	says(t, m.Start(t.Context(), term), []error{ErrDetached}, "nbd")
	// The real one is refused where the stand-in is not.
	m.major = nbdMajor
	says(t, m.Start(t.Context(), term), []error{ErrNotNBD, service.ErrHopeless})
}

// A mount that had no time left is waited for, and not begun a second time beside itself; and one
// that came to nothing is made anew.
func TestBegunMount(t *testing.T) {
	if !own(t) {
		return
	}
	device := loop(t)
	sh(t, "mkfs.ext4 -q "+device)
	m := newMount(t, device)

	// Who has the device to himself stands for the kernel's mount.
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	ok(t, err)
	m.begun = true
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, service.ErrTimeout)
	defer cancel()
	says(t, m.Start(ctx, term), []error{service.ErrTimeout}, "which was begun before, still runs")
	time.AfterFunc(200*time.Millisecond, func() { unix.Close(fd) })
	ok(t, m.Start(t.Context(), term))
	if !m.mounted(t) || m.begun {
		t.Error("it is not mounted")
	}
	ok(t, m.Stop(t.Context(), term))

	// mount(8) is ended when its time is over, and the step remembers it.
	bin := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(bin, "mount"), []byte("#!/bin/sh\nexec sleep 60\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	ctx, cancel = context.WithTimeoutCause(t.Context(), 2*time.Second, service.ErrTimeout)
	defer cancel()
	says(t, m.Start(ctx, term), []error{service.ErrTimeout}, "mount: ")
	if !m.begun {
		t.Error("it is not known that a mount was begun")
	}
}
