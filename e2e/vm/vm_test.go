package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMissingPackages(t *testing.T) {
	needs := []Need{{"qemu", "q"}, {"fio", "f"}, {"mkfs.xfs", "x"}, {"xfs_repair", "x"}}
	got := missingOf(needs, func(p string) bool { return p == "fio" })
	if !slices.Equal(got, []string{"q", "x"}) {
		t.Fatal(got)
	}
	if got := missingOf(needs, func(string) bool { return true }); len(got) != 0 {
		t.Fatal(got)
	}
}

func TestDependency(t *testing.T) {
	out := "linux-image-amd64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-amd64\n"
	if pkg, err := dependency(out); pkg != "linux-image-6.1.0-56-amd64" || err != nil {
		t.Fatal(pkg, err)
	}
	if _, err := dependency("linux-image-amd64\n"); err == nil {
		t.Fatal("no kernel, no error")
	}
}

func TestSendsWriteZeroes(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-56-amd64": false, "6.11.10-amd64": false, "5.19.0": false, "": false, "six": false, "6": false,
		"6.12.107+deb13-amd64": true, "6.12-rc1": true, "6.13.0": true, "7.0.1": true, "10.1": true,
	} {
		if SendsWriteZeroes(release) != want {
			t.Errorf("%q: %v", release, !want)
		}
	}
	// A kernel that does is enough, and no mirror is asked.
	usual := &Kernel{Release: "6.12.107+deb13-amd64"}
	if k, err := NewerKernel(context.Background(), t.TempDir(), usual); k != usual || err != nil {
		t.Error(k, err)
	}
}

func TestMirrorOf(t *testing.T) {
	const targets = `http://m/debian-security bookworm-security bookworm-security main
http://m/debian bookworm-updates bookworm-updates main
http://m/contrib bookworm bookworm contrib
http://m/archive/debian/20260101T000000Z stable bookworm main
http://other/debian bookworm bookworm main
`
	if m, err := mirrorOf("bookworm", targets); m != "http://m/archive/debian/20260101T000000Z" || err != nil {
		t.Error(m, err)
	}
	if m, err := mirrorOf("trixie", "http://m/debian trixie $(CODENAME) main\n"); m != "http://m/debian" || err != nil {
		t.Error(m, err) // its lists are not there yet
	}
	for _, name := range []string{"noble", ""} {
		if m, err := mirrorOf(name, targets); !errors.Is(err, ErrNeeds) {
			t.Errorf("%q: %s %v", name, m, err)
		}
	}
	for release, want := range map[string]string{"ID=debian\nVERSION_CODENAME=bookworm\n": "bookworm", "VERSION_CODENAME=\"noble\"\n": "noble", "ID=x\n": ""} {
		if got := codename(release); got != want {
			t.Errorf("%q: %q", release, got)
		}
	}
}

// A machine cannot have a kernel that the lab has not.
func TestNoNewerKernel(t *testing.T) {
	l := &Lab{dir: t.TempDir(), kernel: &bootable{Kernel: &Kernel{Release: "6.1"}}}
	if _, err := l.Add(Spec{Newer: true}); err == nil || len(l.machines) != 0 {
		t.Fatal("a machine with a kernel that is not there")
	}
}

func TestPayload(t *testing.T) {
	b := make([]byte, 8192)
	copy(b[0x202:], "HdrS")
	b[0x1f1] = 3 // 3 sectors and the boot sector
	binary.LittleEndian.PutUint32(b[0x248:], 100)
	binary.LittleEndian.PutUint32(b[0x24c:], 50)
	copy(b[4*512+100:], "compressed")
	p, err := payload(b)
	if err != nil || len(p) != 50 || !bytes.HasPrefix(p, []byte("compressed")) {
		t.Fatal(len(p), err)
	}
	for name, harm := range map[string]func(b []byte) []byte{
		"short":    func(b []byte) []byte { return b[:0x24f] },
		"no magic": func(b []byte) []byte { b[0x202] = 0; return b },
		"too long": func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x24c:], 1<<32-1); return b },
		"too far":  func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x248:], 1<<32-1); return b },
		"nothing":  func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x24c:], 0); return b },
	} {
		if _, err := payload(harm(bytes.Clone(b))); !errors.Is(err, errNoKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInsertionOrder(t *testing.T) {
	const dep = `kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz kernel/fs/fscache/fscache.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/fs/netfs/netfs.ko.xz:
kernel/fs/fscache/fscache.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz
kernel/fs/overlayfs/overlay.ko.xz:
kernel/drivers/some-thing.ko.xz:
`
	const builtin = "kernel/drivers/virtio/virtio_pci.ko\n"
	order, err := insertionOrder(dep, builtin, []string{"virtio_pci", "9pnet_virtio", "9p", "some_thing"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range order {
		names = append(names, moduleName(path))
	}
	want := "9pnet 9pnet_virtio netfs fscache 9p some_thing"
	if got := strings.Join(names, " "); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
	if _, err := insertionOrder(dep, builtin, []string{"nbd"}); err == nil || !strings.Contains(err.Error(), "nbd") {
		t.Fatal(err)
	}
}

// What the kernel will unpack, cpio must be able to list.
func TestArchive(t *testing.T) {
	var a archive
	a.add("bin", modeDir|0o755, nil)
	a.add("bin/one", modeFile|0o755, []byte("1"))
	a.add("four", modeFile|0o644, []byte("four"))
	b := a.bytes()
	if len(b)%4 != 0 || !bytes.HasPrefix(b, []byte("070701")) {
		t.Fatalf("%q", b)
	}
	bb, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox to read it")
	}
	dir := t.TempDir()
	cmd := exec.Command(bb, "cpio", "-idm")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"bin/one": "1", "four": "four"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want || err != nil {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "bin/one")); err != nil || st.Mode().Perm() != 0o755 {
		t.Error(st, err)
	}
}

func TestClockArguments(t *testing.T) {
	const steady = "processor : 0\ncpu MHz\t\t: 2596.142\n\nprocessor : 1\ncpu MHz\t\t: 2596.142\n"
	for _, c := range []struct {
		accel   Accel
		cpuinfo string
		want    string
	}{
		{TCG, steady, "no_timer_check tsc=reliable tsc_early_khz=2596142"},
		{TCG, steady + "cpu MHz : 800.000\n", "no_timer_check clocksource=acpi_pm"}, // it changes with the load
		{TCG, "cpu MHz : fast\n", "no_timer_check clocksource=acpi_pm"},
		{TCG, "", "no_timer_check clocksource=acpi_pm"},
		{KVM, steady, ""},
	} {
		if got := c.accel.clockArguments(c.cpuinfo); got != c.want {
			t.Errorf("%s %q: %s", c.accel, c.cpuinfo, got)
		}
	}
}

func TestParseUptime(t *testing.T) {
	if d, err := parseUptime("12.34 20.00"); d != 12340*time.Millisecond || err != nil {
		t.Fatal(d, err)
	}
	for _, bad := range []string{"", "x 1"} {
		if _, err := parseUptime(bad); err == nil {
			t.Errorf("%q is no uptime", bad)
		}
	}
}

func TestQEMUArguments(t *testing.T) {
	l := &Lab{Share: "/s", Accel: TCG, kernel: &bootable{&Kernel{"6.1", "/k/vmlinux", "/k/modules"}, "/i"}, cpus: 1}
	m := &Machine{Name: "b", lab: l, number: 2, dir: "/d", spec: Spec{MemoryMiB: 512},
		Disks: []*Disk{{serial: "b0", socket: "/d/b0.nbd"}, {serial: "b1", socket: "/d/b1.nbd"}}}
	args := strings.Join(m.qemuArgs(), " ")
	for _, want := range []string{
		"-accel tcg,thread=multi -cpu max -smp 1 -m 512M", "e2e.name=b e2e.n=2", "memory-backend=ram",
		"path=/,security_model=none,readonly=on", // never writable
		"ifname=d-b", "mac=52:54:00:77:00:02", "ifname=m-b", "mac=52:54:00:78:00:02",
		"file=nbd+unix:///?socket=/d/b1.nbd", "drive=disk1,serial=b1", "panic=-1", "-no-reboot",
	} {
		if !strings.Contains(args, want) {
			t.Errorf("%s is missing in %s", want, args)
		}
	}
	m.spec.CPUs, m.spec.Newer = 2, true
	l.newer = &bootable{&Kernel{"6.12", "/k12/vmlinux", "/k12/modules"}, "/i12"}
	other := strings.Join(m.qemuArgs(), " ")
	for _, want := range []string{"-smp 2 ", "-kernel /k12/vmlinux -initrd /i12 ", "path=/k12/modules"} {
		if !strings.Contains(other, want) || strings.Contains(args, want) {
			t.Errorf("%s is missing in %s, or is in %s", want, other, args)
		}
	}
	if m.KernelRelease() != "6.12" {
		t.Error(m.KernelRelease())
	}
	if strings.Index(args, "serial=b0") > strings.Index(args, "serial=b1") {
		t.Error("the first disk must be /dev/vda")
	}
	if m.DataAddress() != "10.77.0.2" || m.shellAddress() != "10.78.0.2:7" {
		t.Error(m.DataAddress(), m.shellAddress())
	}
}

func TestCommandsWithoutPower(t *testing.T) {
	m := &Machine{Name: "a"}
	if _, err := m.Shell(context.Background(), "true"); !errors.Is(err, ErrOff) {
		t.Fatal(err)
	}
	m.PowerCut() // does nothing
}

// The disk of package vm must forget, or no scenario proves anything about
// flushes: written and acknowledged, then flushed or not, then a power cut.
func TestDiskForgetsWhatIsNotFlushed(t *testing.T) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("nbdkit is missing")
	}
	ctx := context.Background()
	d, err := newDisk(t.TempDir(), "a0", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		fua, flush, kept bool
	}{
		{false, false, false},
		{false, true, true},
		{true, false, true},
	} {
		if err := d.powerOn(ctx); err != nil {
			t.Fatal(err)
		}
		client, err := nbd.Dial(ctx, "unix", d.socket, "", nbd.ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data := bytes.Repeat([]byte{byte(i + 1)}, 8192)
		if err := client.WriteAt(ctx, data, 4096, c.fua); err != nil {
			t.Fatal(err)
		}
		if c.flush {
			if err := client.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(data))
		if err := client.ReadAt(ctx, got, 4096); err != nil || !bytes.Equal(got, data) {
			t.Fatal("an acknowledged write is not even read back", err)
		}
		d.powerCut()
		_ = client.Close()
		b, err := os.ReadFile(d.Image)
		if err != nil {
			t.Fatal(err)
		}
		if kept := bytes.Equal(b[4096:4096+len(data)], data); kept != c.kept {
			t.Errorf("%+v: kept: %v", c, kept)
		}
	}
	if _, err := newDisk(t.TempDir(), "a0", maxDisk+1); err == nil {
		t.Error("a disk without bounds")
	}
}

func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := startProcess(log, "sh", "-c", "echo one; echo two; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	if !strings.Contains(p.lastWords().Error(), "exit status 3; one | two") {
		t.Fatal(p.lastWords())
	}
	p.kill() // of one that has ended: nothing
	if err := waitForSocket(context.Background(), p, "/nowhere"); err == nil {
		t.Fatal("it has no socket")
	}
	if p, err = startProcess(log, "sleep", "60"); err != nil {
		t.Fatal(err)
	}
	p.kill()
}
