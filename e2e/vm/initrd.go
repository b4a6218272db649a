package vm

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

var (
	//go:embed initrd.sh
	initrdScript []byte
	//go:embed guest.sh
	guestScript []byte
)

// rootModules are what the initramfs needs to mount the host's root. All others
// are loaded from there.
var rootModules = []string{"virtio_pci", "9pnet_virtio", "9p", "overlay"}

// buildInitrd writes the initramfs: busybox, the modules, the two scripts and
// the guest's server. It is not compressed, because the emulated guest would
// have to undo it.
func buildInitrd(ctx context.Context, k *Kernel, busybox, guest, to string) error {
	dir := filepath.Join(k.Modules, k.Release)
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return err
	}
	modules, err := insertionOrder(string(dep), string(builtin), rootModules)
	if err != nil {
		return err
	}
	var a archive
	for _, d := range []string{"bin", "mod", "proc", "sys", "dev", "ro", "rw", "new"} {
		a.add(d, modeDir|0o755, nil)
	}
	a.add("init", modeFile|0o755, initrdScript)
	a.add("guest.sh", modeFile|0o755, guestScript)
	for name, path := range map[string]string{"bin/busybox": busybox, "e2e-guest": guest} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		a.add(name, modeFile|0o755, b)
	}
	for i, m := range modules {
		b, err := readModule(ctx, filepath.Join(dir, m))
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("mod/%02d-%s.ko", i, moduleName(m)), modeFile|0o644, b)
	}
	return os.WriteFile(to, a.bytes(), 0o644)
}

func readModule(ctx context.Context, path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".xz":
		return exec.CommandContext(ctx, "xz", "-dc", path).Output()
	case ".zst":
		return exec.CommandContext(ctx, "zstd", "-dcq", path).Output()
	}
	return os.ReadFile(path)
}

// insertionOrder is the files, relative to modules.dep, that must be inserted for
// the modules named, each after those that it needs.
func insertionOrder(dep, builtin string, names []string) ([]string, error) {
	needs := make(map[string][]string) // by file
	file := make(map[string]string)    // by name
	for lines := bufio.NewScanner(strings.NewReader(dep)); lines.Scan(); {
		path, rest, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			continue
		}
		needs[path] = strings.Fields(rest)
		file[moduleName(path)] = path
	}
	var order []string
	var insert func(path string)
	insert = func(path string) { // modules.dep lists all of a module's needs, and has no cycles
		if slices.Contains(order, path) {
			return
		}
		for _, n := range slices.Backward(needs[path]) {
			if !slices.Contains(order, n) {
				insert(n)
			}
		}
		order = append(order, path)
	}
	for _, name := range names {
		if path, ok := file[name]; ok {
			insert(path)
			continue
		}
		isBuiltin := false
		for line := range strings.Lines(builtin) {
			isBuiltin = isBuiltin || moduleName(strings.TrimSpace(line)) == name
		}
		if !isBuiltin {
			return nil, fmt.Errorf("the kernel has no module %s", name)
		}
	}
	return order, nil
}

// moduleName of kernel/net/9p/9pnet_virtio.ko.xz is 9pnet_virtio.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

// archive is a cpio archive in the format that the kernel unpacks, "newc"
// (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	buf bytes.Buffer
	ino int
}

func (a *archive) add(name string, mode int, data []byte) {
	a.ino++
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
	// rdevmajor, rdevminor, namesize with its zero, check
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) bytes() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}
