package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Accel is how QEMU runs a guest.
type Accel string

// The accelerators; Auto is resolved by NewLab.
const (
	Auto Accel = ""
	KVM  Accel = "kvm"
	TCG  Accel = "tcg" // emulation: anywhere, 5 to 100 times slower
)

// probeTime is what a guest gets to show that it lives. With KVM it takes one
// second; a nested KVM that does not really work hangs for ever.
const probeTime = 12 * time.Second

// findAccel boots the kernel with KVM to see whether that works: a /dev/kvm that
// can be opened may still hang a stock kernel. The verdict is kept in cache,
// because a hang takes all of probeTime.
func (l *Lab) findAccel(ctx context.Context, cache string) (Accel, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	_ = f.Close()
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	verdict := filepath.Join(cache, "accel-"+l.kernel.Release+"-on-"+strings.TrimSpace(string(host)))
	if b, err := os.ReadFile(verdict); err == nil {
		if a := Accel(b); a == KVM || a == TCG {
			return a, nil
		}
	}
	console := filepath.Join(l.dir, "probe.console")
	p, err := startProcess(filepath.Join(l.dir, "probe.log"), "qemu-system-x86_64", "-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "file:"+console,
		"-kernel", l.kernel.Image, "-initrd", l.kernel.initrd, "-append", "console=ttyS0 quiet panic=-1 e2e.probe")
	if err != nil {
		return "", err
	}
	select {
	case <-p.done:
	case <-time.After(probeTime):
	case <-ctx.Done():
	}
	p.kill()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	a := TCG
	if b, err := os.ReadFile(console); err == nil && strings.Contains(string(b), "e2e: alive") {
		a = KVM
	}
	return a, os.WriteFile(verdict, []byte(a), 0o644)
}

// tscKHz is the host's clock rate, which an emulated guest's time stamp counter
// has too; 0 if the processors do not agree on one. A guest that has to measure
// it while the host is busy can end up with a clock that runs nine times too
// fast.
func tscKHz(cpuinfo string) int {
	khz := 0
	for line := range strings.Lines(cpuinfo) {
		key, value, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(key) != "cpu MHz" {
			continue
		}
		mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		k := int(mhz * 1000)
		if err != nil || k <= 0 || khz != 0 && k != khz {
			return 0
		}
		khz = k
	}
	return khz
}

// suitableCPUs is one in emulation: on a host with two cores two machines of two
// processors each take 1.6 times as long for everything, because a processor
// that spins for a lock keeps the one that has it from running.
func (a Accel) suitableCPUs() int {
	if a == KVM {
		return 2
	}
	return 1
}

// clockArguments of the kernel's command line. Where the rate is not known the
// guest uses the power-management timer, which QEMU derives from the host's
// clock: slow to read, and right.
func (a Accel) clockArguments(cpuinfo string) string {
	if a == KVM {
		return "" // kvm-clock
	}
	// At boot the kernel gives ten ticks of the timer a fixed time to come, and
	// panics; on a busy host they are late.
	const patient = "no_timer_check "
	if khz := tscKHz(cpuinfo); khz != 0 {
		return patient + fmt.Sprintf("tsc=reliable tsc_early_khz=%d", khz)
	}
	return patient + "clocksource=acpi_pm"
}
