package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	kernelPackage = "linux-image-"
	// newestKernel depends on the current kernel of the host's Debian suite.
	newestKernel = "linux-image-amd64"
)

// Kernel is a stock kernel, unpacked.
type Kernel struct {
	Release string // as uname -r says
	Image   string // what QEMU boots
	Modules string // lib/modules, with modules.dep
}

// PrepareKernel unpacks a kernel's package, by default the newest of the host's
// suite, into cache.
func PrepareKernel(ctx context.Context, cache, pkg string) (*Kernel, error) {
	if pkg == "" {
		var err error
		if pkg, err = currentKernel(ctx, apt{}); err != nil {
			return nil, err
		}
	}
	return prepare(ctx, apt{}, cache, pkg)
}

// newerSuite is Debian 13, whose kernel is 6.12.
const newerSuite = "trixie"

// SendsWriteZeroes says whether the NBD client of a kernel, by what uname -r says in it, has
// WRITE_ZEROES, which came with Linux 6.12.
func SendsWriteZeroes(release string) bool {
	var major, minor int
	n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return n == 2 && (major > 6 || major == 6 && minor >= 12)
}

// NewerKernel is one that sends WRITE_ZEROES over nbd: k, or that of newerSuite, unpacked. The
// guests' programs stay the host's; a kernel takes older ones.
func NewerKernel(ctx context.Context, cache string, k *Kernel) (*Kernel, error) {
	if SendsWriteZeroes(k.Release) {
		return k, nil
	}
	newer, err := kernelOf(ctx, cache, newerSuite)
	if err == nil && !SendsWriteZeroes(newer.Release) {
		err = fmt.Errorf("it has %s", newer.Release)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: a kernel of 6.12 or newer beside %s, from Debian's suite %s: %w", ErrNeeds, k.Release, newerSuite, err)
	}
	return newer, nil
}

// kernelOf is the current kernel of another suite.
func kernelOf(ctx context.Context, cache, suite string) (*Kernel, error) {
	a, unlock, err := otherSuite(ctx, cache, suite)
	if err != nil {
		return nil, err
	}
	defer unlock()
	pkg, err := currentKernel(ctx, a)
	if err != nil {
		return nil, err
	}
	return prepare(ctx, a, cache, pkg)
}

func prepare(ctx context.Context, a apt, cache, pkg string) (*Kernel, error) {
	release, ok := strings.CutPrefix(pkg, kernelPackage)
	if !ok {
		return nil, fmt.Errorf("%s is no kernel package: %sRELEASE", pkg, kernelPackage)
	}
	dir, err := unpack(ctx, a, cache, pkg)
	if err != nil {
		return nil, err
	}
	k := &Kernel{Release: release, Image: filepath.Join(dir, "vmlinux")}
	if k.Modules, err = modulesOf(dir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(k.Modules, release, "modules.dep")); err != nil {
		// depmod wants lib/, newer packages have usr/lib/.
		if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if b, err := exec.CommandContext(ctx, "depmod", "-b", dir, release).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("depmod: %w: %s", err, b)
		}
	}
	if _, err := os.Stat(k.Image); err != nil {
		if err := uncompress(ctx, filepath.Join(dir, "boot", "vmlinuz-"+release), k.Image); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// currentKernel asks which package the metapackage stands for.
func currentKernel(ctx context.Context, a apt) (string, error) {
	ask := func() (string, error) {
		out, err := exec.CommandContext(ctx, "apt-cache", append(slices.Clone(a.options), "depends", "--no-recommends", "--no-suggests", newestKernel)...).Output()
		if err != nil {
			return "", fmt.Errorf("apt-cache depends %s: %w", newestKernel, err)
		}
		return dependency(string(out))
	}
	if pkg, err := ask(); err == nil {
		return pkg, nil
	}
	if err := a.get(ctx, "", "update"); err != nil {
		return "", err
	}
	return ask()
}

// dependency reads apt-cache's "  Depends: linux-image-6.1.0-56-amd64".
func dependency(out string) (string, error) {
	for line := range strings.Lines(out) {
		if what, pkg, _ := strings.Cut(strings.TrimSpace(line), ": "); what == "Depends" && strings.HasPrefix(pkg, kernelPackage) {
			return pkg, nil
		}
	}
	return "", fmt.Errorf("apt-cache knows no kernel behind %s", newestKernel)
}

func modulesOf(dir string) (string, error) {
	for _, lib := range []string{"usr/lib/modules", "lib/modules"} {
		if path := filepath.Join(dir, lib); isDir(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("no modules in %s", dir)
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// uncompress writes the ELF kernel that is inside a bzImage. QEMU enters it
// directly, and an emulated guest is spared some seconds of decompression.
func uncompress(ctx context.Context, image, to string) error {
	b, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	p, err := payload(b)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	argv := []string{"xz", "-dc", "--single-stream"} // it ignores the size that follows the stream
	if bytes.HasPrefix(p, []byte("\x28\xb5\x2f\xfd")) {
		argv, p = []string{"zstd", "-dcq"}, p[:len(p)-4]
	}
	tmp := to + ".new"
	out, err := os.Create(tmp)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(p), out, &complaint
	if err := errors.Join(cmd.Run(), out.Close()); err != nil {
		return fmt.Errorf("%s %s: %w: %s", argv[0], image, err, &complaint)
	}
	return os.Rename(tmp, to)
}

var errNoKernel = errors.New("not a bzImage")

// payload is the compressed kernel in a bzImage, with the four bytes of its
// uncompressed size at the end (Linux Documentation/arch/x86/boot.rst:
// setup_sects at 0x1f1, payload_offset and payload_length at 0x248 and 0x24c).
func payload(b []byte) ([]byte, error) {
	if len(b) < 0x250 || string(b[0x202:0x206]) != "HdrS" {
		return nil, errNoKernel
	}
	from := (int64(b[0x1f1])+1)*512 + int64(binary.LittleEndian.Uint32(b[0x248:]))
	n := int64(binary.LittleEndian.Uint32(b[0x24c:]))
	if n < 8 || from+n > int64(len(b)) {
		return nil, fmt.Errorf("%w: a payload of %d bytes at %d, the file has %d", errNoKernel, n, from, len(b))
	}
	return b[from : from+n], nil
}
