package vm

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Need is a program that the harness or a guest runs, and the Debian package
// that has it.
type Need struct{ Program, Package string }

var ownNeeds = []Need{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"nbdkit", "nbdkit"},
	{"ip", "iproute2"},
	{"modprobe", "kmod"},
	{"xz", "xz-utils"},
	{"zstd", "zstd"},
	{virtiofsd, "qemu-system-common"},
	{"etcd", "etcd-server"},
}

// ErrNeeds names what is missing where it cannot be installed.
var ErrNeeds = errors.New("programs are missing")

// Provide installs the packages of what is missing, its own needs included.
func Provide(ctx context.Context, log io.Writer, needs ...Need) error {
	missing := missingOf(append(slices.Clone(ownNeeds), needs...), func(program string) bool {
		_, err := exec.LookPath(program)
		return err == nil
	})
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil || os.Getuid() != 0 {
		return fmt.Errorf("%w, and only root on Debian can install them from here: apt-get install %s", ErrNeeds, strings.Join(missing, " "))
	}
	fmt.Fprintln(log, "installing", strings.Join(missing, " "))
	return apt{}.get(ctx, "", append([]string{"install", "-y", "--no-install-recommends"}, missing...)...)
}

// missingOf is the sorted packages of the programs that are not there.
func missingOf(needs []Need, there func(program string) bool) []string {
	var missing []string
	for _, n := range needs {
		if !there(n.Program) {
			missing = append(missing, n.Package)
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// apt is apt-get with the host's own lists, or with options that have it use others.
type apt struct{ options []string }

// get tries once more after apt-get update: the lists of a fresh container are empty, and those
// of an old one name versions that are gone.
func (a apt) get(ctx context.Context, dir string, args ...string) error {
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", append(append([]string{"-qq", "-o", "DPkg::Lock::Timeout=120"}, a.options...), args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if run(args...) == nil {
		return nil
	}
	if err := run("update"); err != nil {
		return err
	}
	return run(args...)
}

// otherSuite is apt with lists of its own, of another suite of the mirror that the host gets its
// own suite from. Nothing of it is ever installed. Until unlock, no other harness uses it.
func otherSuite(ctx context.Context, cache, suite string) (a apt, unlock func(), err error) {
	mirror, err := hostMirror(ctx)
	if err != nil {
		return apt{}, nil, err
	}
	dir := filepath.Join(cache, "apt-"+suite)
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return apt{}, nil, err
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return apt{}, nil, err
	}
	list := filepath.Join(dir, "sources.list")
	if err := errors.Join(unix.Flock(int(lock.Fd()), unix.LOCK_EX), os.WriteFile(list, []byte("deb "+mirror+" "+suite+" main\n"), 0o644)); err != nil {
		return apt{}, nil, errors.Join(err, lock.Close())
	}
	for key, value := range map[string]string{
		"Dir::Etc::SourceList": list, "Dir::Etc::SourceParts": "/dev/null",
		"Dir::Etc::Preferences": "/dev/null", "Dir::Etc::PreferencesParts": "/dev/null", // of the host's suite
		"Dir::State::Lists": filepath.Join(dir, "lists"), "Dir::State::Status": "/dev/null", "Dir::Cache": filepath.Join(dir, "cache"),
		"Acquire::Languages": "none", "APT::Sandbox::User": "root", // apt's own user cannot reach root's cache
	} {
		a.options = append(a.options, "-o", key+"="+value)
	}
	return a, func() { _ = lock.Close() }, nil
}

// hostMirror is where the host's apt gets its own suite.
func hostMirror(ctx context.Context) (string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", fmt.Errorf("%w: packages come with apt-get from a mirror of Debian", ErrNeeds)
	}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(CODENAME) $(COMPONENT)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	return mirrorOf(codename(string(release)), string(out))
}

// codename is VERSION_CODENAME of os-release(5), empty if it has none.
func codename(release string) string {
	for line := range strings.Lines(release) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// mirrorOf finds the source of a suite among lines of "SITE RELEASE CODENAME COMPONENT". A source
// may name the suite as "stable"; its codename is known only when its lists are there.
func mirrorOf(codename, targets string) (string, error) {
	for line := range strings.Lines(targets) {
		f := strings.Fields(line)
		if len(f) == 4 && codename != "" && (f[1] == codename || f[2] == codename) && f[3] == "main" {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("%w: apt's sources name no mirror of the suite %q that this host is of", ErrNeeds, codename)
}

// unpack puts the content of a Debian package into cache/PACKAGE without
// installing it, unless it is there. The package need not suit the host.
func unpack(ctx context.Context, a apt, cache, pkg string) (dir string, err error) {
	dir = filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return "", fmt.Errorf("%w: %s comes with apt-get from a Debian mirror", ErrNeeds, pkg)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// Elsewhere first: a folder of that name is whole, also if we are killed now.
	tmp, err := os.MkdirTemp(cache, "unpack-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil { // apt's own user writes to it
		return "", err
	}
	if err := a.get(ctx, tmp, "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s: %d packages came, %v", pkg, len(debs), err)
	}
	out := filepath.Join(tmp, "content")
	if b, err := exec.CommandContext(ctx, "dpkg-deb", "-x", debs[0], out).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack %s: %w: %s", debs[0], err, b)
	}
	if err := os.Rename(out, dir); err != nil {
		// Another harness was faster.
		if _, serr := os.Stat(dir); serr != nil {
			return "", err
		}
	}
	return dir, nil
}

// busybox finds a static one: in the initramfs there are no libraries. It is
// unpacked rather than installed, because busybox-static would displace another
// busybox of the host.
func busybox(ctx context.Context, cache string) (string, error) {
	if host, err := exec.LookPath("busybox"); err == nil && isStatic(host) {
		return host, nil
	}
	dir, err := unpack(ctx, apt{}, cache, "busybox-static")
	if err != nil {
		return "", err
	}
	for _, path := range []string{"bin/busybox", "usr/bin/busybox"} {
		if path = filepath.Join(dir, path); isStatic(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: no static busybox in %s", ErrNeeds, dir)
}

func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}
