package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Config of a Lab.
type Config struct {
	Dir    string // of this run; the caller makes and removes it
	Cache  string // verdicts that outlast a run
	Share  string // the folder /e2e of the guests; what is in its bin/ at their boot is in their PATH
	Kernel *Kernel
	Newer  *Kernel // for machines that ask for it; may be nil
	Guest  string  // the e2e-guest binary, static
	// Busybox is a static one, see Busybox.
	Busybox string
	Accel   Accel
	CPUs    int // of each machine; 0 is what suits the accelerator
}

// Lab is where machines are. There is one in a network namespace.
type Lab struct {
	Share string
	Accel Accel

	dir      string
	kernel   *bootable
	newer    *bootable // nil if there is none
	cpuinfo  string
	cpus     int
	machines []*Machine
	etcd     *process // nil until somebody asks for it
	atClear  []func()
}

// bootable is a kernel with its initramfs.
type bootable struct {
	*Kernel
	initrd string
}

// Busybox finds a static busybox, or unpacks one into cache.
func Busybox(ctx context.Context, cache string) (string, error) { return busybox(ctx, cache) }

// NewLab sets up the networks and the initramfs. It must run in the namespaces
// of Enclose.
func NewLab(ctx context.Context, c Config) (*Lab, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	l := &Lab{Share: c.Share, Accel: c.Accel, dir: c.Dir, cpuinfo: string(cpuinfo), cpus: c.CPUs}
	for _, k := range []struct {
		kernel *Kernel
		to     **bootable
	}{{c.Kernel, &l.kernel}, {c.Newer, &l.newer}} {
		if k.kernel == nil {
			continue
		}
		b := &bootable{k.kernel, filepath.Join(c.Dir, "initrd-"+k.kernel.Release)}
		if err := buildInitrd(ctx, k.kernel, c.Busybox, c.Guest, b.initrd); err != nil {
			return nil, fmt.Errorf("initramfs for %s: %w", k.kernel.Release, err)
		}
		*k.to = b
	}
	if l.Accel == Auto {
		if l.Accel, err = l.findAccel(ctx, c.Cache); err != nil {
			return nil, fmt.Errorf("probe KVM: %w", err)
		}
	}
	if l.cpus == 0 {
		l.cpus = l.Accel.suitableCPUs()
	}
	if err := setUpNetwork(); err != nil {
		return nil, err
	}
	return l, nil
}

// CPUs is how many processors each machine has.
func (l *Lab) CPUs() int { return l.cpus }

// KernelRelease is what uname -r says in the guests that do not ask for a newer one.
func (l *Lab) KernelRelease() string { return l.kernel.Release }

// Kernels are those of the machines that there are.
func (l *Lab) Kernels() string {
	var all []string
	for _, m := range l.machines {
		if r := m.KernelRelease(); !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return strings.Join(all, " and ")
}

// maxMachines is bounded by their names, a letter each.
const maxMachines = 8

// Add makes a machine with fresh disks of the sizes given. It is off. The first
// is called a, its disks a0, a1, ... (their serial numbers too).
func (l *Lab) Add(spec Spec) (*Machine, error) {
	if len(l.machines) == maxMachines {
		return nil, errors.New("vm: too many machines")
	}
	n := len(l.machines) + 1
	if spec.Newer && l.newer == nil {
		return nil, errors.New("vm: there is no newer kernel")
	}
	m := &Machine{Name: string(rune('a' + n - 1)), lab: l, number: n, spec: spec}
	m.dir = filepath.Join(l.dir, m.Name)
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		return nil, err
	}
	for i, size := range spec.Disks {
		d, err := newDisk(m.dir, fmt.Sprintf("%s%d", m.Name, i), size)
		if err != nil {
			return nil, err
		}
		m.Disks = append(m.Disks, d)
	}
	if err := m.plug(); err != nil {
		return nil, err
	}
	l.machines = append(l.machines, m)
	return m, nil
}

// Machines are those that were added, on or off.
func (l *Lab) Machines() []*Machine { return slices.Clone(l.machines) }

// AtClear has something that belongs to the machines that there are end with them, the last first.
func (l *Lab) AtClear(end func()) { l.atClear = append(l.atClear, end) }

// Clear cuts the power of all machines and takes them and their disks away.
func (l *Lab) Clear() error {
	for _, end := range slices.Backward(l.atClear) {
		end()
	}
	l.atClear = nil
	var errs error
	for _, m := range l.machines {
		m.PowerCut()
		errs = errors.Join(errs, ip("link del "+m.dataTap()+"\nlink del "+m.mgmtTap()+"\n"), os.RemoveAll(m.dir))
	}
	l.machines = nil
	return errs
}
