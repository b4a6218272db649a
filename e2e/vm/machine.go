package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tandem/e2e/remote"
)

var (
	// ErrOff is the cause of a command's end when the power goes.
	ErrOff = errors.New("the machine is off")
	// ErrFailed is a command with an exit code other than 0.
	ErrFailed = errors.New("the command failed")
)

// bootTime bounds a boot. It takes 6 s in emulation on an idle host.
const bootTime = 90 * time.Second

// Spec of a machine.
type Spec struct {
	MemoryMiB int
	Disks     []int64 // sizes in bytes; /dev/vda, /dev/vdb, ...
	CPUs      int     // 0: as the lab's machines have
	Newer     bool    // the lab's newer kernel
}

// Machine is a virtual machine. Its methods are for one goroutine at a time, but
// for Shell and Stream.
type Machine struct {
	Name  string
	Disks []*Disk

	lab    *Lab
	number int
	spec   Spec
	dir    string

	qemu, share *process
	// life ends with cause ErrOff when the power goes.
	life context.Context
	off  context.CancelCauseFunc
	// What the two clocks said after the boot.
	hostThen  time.Time
	guestThen time.Duration
}

func (m *Machine) kernel() *bootable {
	if m.spec.Newer {
		return m.lab.newer
	}
	return m.lab.kernel
}

// KernelRelease is what uname -r says in it.
func (m *Machine) KernelRelease() string { return m.kernel().Release }

// Console is the file with all that the guest's kernel has said, over all boots.
func (m *Machine) Console() string { return filepath.Join(m.dir, "console") }

// PowerOn boots the machine and returns when it takes commands.
func (m *Machine) PowerOn(ctx context.Context) (err error) {
	if m.qemu != nil {
		return fmt.Errorf("machine %s is on", m.Name)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("power on %s: %w; console: %s", m.Name, err, tail(m.Console(), 5))
			m.PowerCut()
		}
	}()
	m.life, m.off = context.WithCancelCause(context.Background())
	for _, d := range m.Disks {
		if err := d.powerOn(ctx); err != nil {
			return err
		}
	}
	if err := m.startShare(ctx); err != nil {
		return err
	}
	if m.qemu, err = startProcess(filepath.Join(m.dir, "qemu.log"), m.qemuArgs()...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	for {
		before := time.Now()
		up, err := m.uptime(ctx)
		if err == nil {
			m.hostThen, m.guestThen = before.Add(time.Since(before)/2), up
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-m.qemu.done:
			return m.qemu.lastWords()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// PowerCut ends the machine between two instructions, together with what was in
// its disks' caches. Without power it does nothing.
func (m *Machine) PowerCut() {
	if m.qemu != nil {
		m.qemu.signal(syscall.SIGSTOP) // it must not see its disks fail
	}
	for _, d := range m.Disks {
		d.powerCut()
	}
	if m.qemu != nil {
		m.qemu.kill()
		m.qemu = nil
	}
	if m.share != nil {
		m.share.kill() // releases its locks
		m.share = nil
	}
	if m.off != nil {
		m.off(ErrOff)
	}
}

// WentOff waits until the machine has gone off by itself, as it does when it reboots.
func (m *Machine) WentOff(ctx context.Context, limit time.Duration) error {
	if m.qemu == nil {
		return fmt.Errorf("%s: %w", m.Name, ErrOff)
	}
	select {
	case <-m.qemu.done:
		m.PowerCut()
		return nil
	case <-time.After(limit):
		return fmt.Errorf("%s is on after %v", m.Name, limit)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Stream runs a script in the guest and gives its output to stdout as it comes.
// The error wraps ErrFailed, with what it said on stderr, if its exit code is
// not 0, and ErrOff if the power went.
func (m *Machine) Stream(ctx context.Context, script string, stdout io.Writer) error {
	return m.run(ctx, remote.Command{Script: script, Stdout: stdout})
}

// Shell runs a script in the guest and returns what it said on stdout.
func (m *Machine) Shell(ctx context.Context, script string) (string, error) {
	var out bytes.Buffer
	err := m.Stream(ctx, script, &out)
	return strings.TrimSpace(out.String()), err
}

// Start runs a script in the guest that goes on by itself, and returns its pid
// there, which is also its process group.
func (m *Machine) Start(ctx context.Context, script string) (pid int, err error) {
	var out bytes.Buffer
	if err := m.run(ctx, remote.Command{Script: script, Stdout: &out, Detach: true}); err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out.String()))
}

func (m *Machine) run(ctx context.Context, c remote.Command) error {
	if m.life == nil || m.life.Err() != nil {
		return fmt.Errorf("%s: %w", m.Name, ErrOff)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(m.life, func() { cancel(ErrOff) })
	defer stop()
	var complaint bytes.Buffer
	c.Stderr = &complaint
	code, err := remote.Run(ctx, m.shellAddress(), c)
	switch {
	case err != nil && m.life.Err() != nil:
		return fmt.Errorf("%s: %w", m.Name, ErrOff)
	case err != nil:
		return fmt.Errorf("%s: %s: %w", m.Name, short(c.Script), err)
	case code != 0:
		return fmt.Errorf("%s: %s: %w with %d: %s", m.Name, short(c.Script), ErrFailed, code, strings.TrimSpace(complaint.String()))
	}
	return nil
}

// short is a script's first line, for a message.
func short(script string) string {
	line, _, more := strings.Cut(strings.TrimSpace(script), "\n")
	if more {
		line += " …"
	}
	return line
}

func (m *Machine) uptime(ctx context.Context) (time.Duration, error) {
	out, err := m.Shell(ctx, "cat /proc/uptime")
	if err != nil {
		return 0, err
	}
	return parseUptime(out)
}

// parseUptime reads the first number of /proc/uptime, which is CLOCK_BOOTTIME.
func parseUptime(s string) (time.Duration, error) {
	first, _, _ := strings.Cut(s, " ")
	return time.ParseDuration(first + "s")
}

// ClockRate is how many seconds pass in the guest during one of the host, since
// the boot. Anything but 1 makes every timeout of the scenario meaningless. It
// is precise to some per cent when 10 s have passed.
func (m *Machine) ClockRate(ctx context.Context) (float64, error) {
	before := time.Now()
	up, err := m.uptime(ctx)
	if err != nil {
		return 0, err
	}
	host := before.Add(time.Since(before) / 2).Sub(m.hostThen)
	return (up - m.guestThen).Seconds() / host.Seconds(), nil
}

// qemuArgs is QEMU's whole command line.
func (m *Machine) qemuArgs() []string {
	l, k := m.lab, m.kernel()
	cpus := l.cpus
	if m.spec.CPUs != 0 {
		cpus = m.spec.CPUs
	}
	cpu := "max"
	accel := "tcg,thread=multi"
	if l.Accel == KVM {
		cpu, accel = "host", "kvm"
	}
	memory := fmt.Sprintf("%dM", m.spec.MemoryMiB)
	argv := []string{
		"qemu-system-x86_64", "-name", "tandem-e2e-" + m.Name,
		// virtiofsd works in the guest's memory, so that has to be shared.
		"-object", "memory-backend-memfd,id=ram,share=on,size=" + memory,
		"-M", "q35,hpet=off,usb=off,memory-backend=ram", "-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(cpus), "-m", memory,
		"-no-reboot", "-nodefaults", "-display", "none", // a kernel that panics ends QEMU, and is noticed
		"-chardev", "file,id=console,append=on,path=" + m.Console(), "-serial", "chardev:console",
		"-kernel", k.Image, "-initrd", k.initrd,
		"-append", strings.Join([]string{
			"console=ttyS0 quiet oops=panic panic=-1 mitigations=off nowatchdog audit=0 apparmor=0 random.trust_cpu=on net.ifnames=0",
			l.Accel.clockArguments(l.cpuinfo), fmt.Sprintf("e2e.name=%s e2e.n=%d", m.Name, m.number),
		}, " "),
		"-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap", "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
		"-fsdev", "local,id=modules,security_model=none,readonly=on,path=" + k.Modules, "-device", "virtio-9p-pci,fsdev=modules,mount_tag=modules",
		"-chardev", "socket,id=share,path=" + filepath.Join(m.dir, "share.sock"), "-device", "vhost-user-fs-pci,chardev=share,tag=share",
		"-netdev", "tap,id=data,script=no,downscript=no,ifname=" + m.dataTap(), "-device", "virtio-net-pci,netdev=data,mac=" + m.DataMAC(),
		"-netdev", "tap,id=mgmt,script=no,downscript=no,ifname=" + m.mgmtTap(), "-device", fmt.Sprintf("virtio-net-pci,netdev=mgmt,mac=52:54:00:78:00:%02x", m.number),
		"-device", "virtio-rng-pci",
	}
	for i, d := range m.Disks {
		argv = append(argv,
			"-object", fmt.Sprintf("iothread,id=io%d", i),
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=raw,cache=none,file=nbd+unix:///?socket=%s", i, d.socket),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%s,iothread=io%d", i, d.serial, i))
	}
	return argv
}

// Logs are the files that tell a machine's story, for whoever wants to keep
// them.
func (m *Machine) Logs() []string {
	logs, err := filepath.Glob(filepath.Join(m.dir, "*.log"))
	if err != nil {
		panic(err) // the pattern is ours
	}
	if _, err := os.Stat(m.Console()); err == nil {
		logs = append(logs, m.Console())
	}
	return logs
}
