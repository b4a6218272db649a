package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// device is what the volume is on.
type device struct {
	name string // the kernel's, nvme1n1p1; empty: a regular file
	disk string // of a partition: the disk's, nvme1n1; else name
	err  error  // it cannot be looked at
}

func (x *examination) look() device {
	name, err := x.sys.Block(x.cfg.Volume.Device)
	if err != nil {
		return device{err: err}
	}
	d := device{name: name, disk: name}
	if name == "" || !x.sys.exists("sys/class/block", name, "partition") {
		return d
	}
	// /sys/class/block/X is a link into the folder of its disk.
	real, err := filepath.EvalSymlinks(x.sys.path("sys/class/block", name))
	if err != nil {
		return device{err: err}
	}
	d.disk = filepath.Base(filepath.Dir(real))
	return d
}

// block is why a check of block devices is not made.
func (x *examination) block() (verdict, bool) {
	switch d := x.device; {
	case d.err != nil:
		return skip("the device cannot be looked at: %v", d.err), false
	case d.name == "":
		return skip("%s is a regular file", x.cfg.Volume.Device), false
	}
	return verdict{}, true
}

// maxSector is the largest logical block that package disk takes.
const maxSector = 4096

func (x *examination) checkSectors(context.Context) verdict {
	if v, is := x.block(); !is {
		return v
	}
	text, err := x.sys.text("sys/class/block", x.device.disk, "queue/logical_block_size")
	if err != nil {
		return skip("%v", err)
	}
	switch n, err := strconv.Atoi(text); {
	case err != nil:
		return skip("the logical block size of %s is %q", x.device.disk, text)
	case n == 512:
		return ok("logical blocks of 512 bytes")
	case n > maxSector:
		return fail("use a device with blocks of 512 bytes", "logical blocks of %d bytes: at most %d can be used", n, maxSector)
	default:
		return warn("use a device with blocks of 512 bytes, on both nodes", "logical blocks of %d bytes: every smaller write reads the block before", n)
	}
}

func (x *examination) checkWriteCache(context.Context) verdict {
	const means = "a node whose machine has restarted waits until it is resynced, and does not take over by itself"
	d := x.device
	switch {
	case d.err != nil:
		return skip("the device cannot be looked at: %v", d.err)
	case d.name == "":
		return ok("a file is in the host's cache until it is flushed, which every FLUSH does; %s", means)
	}
	switch text, err := x.sys.text("sys/class/block", d.disk, "queue/write_cache"); {
	case err != nil:
		return ok("%s does not say whether it has a volatile cache, and is taken to have one; %s", d.disk, means)
	case text == "write through":
		return ok("write through: what was written survives a power cut")
	default:
		return ok("%s: what was not flushed may be lost by a power cut, and FLUSH goes to the disks of all nodes; %s", text, means)
	}
}

// checkClaimed looks whose the device is beside the agent's.
func (x *examination) checkClaimed(context.Context) verdict {
	d, path := x.device, x.cfg.Volume.Device
	if d.err != nil {
		return fail("create it, or look at volume.device in the config; replctl init makes a file", "the device cannot be looked at: %v", d.err)
	}
	if d.name != "" {
		if who := x.holders(d); who != "" {
			return fail("stop that first: what is written beside the agent is not mirrored, and spoils both copies", "%s is claimed: %s", path, who)
		}
	}
	if x.running {
		return ok("the agent has it, and nobody else")
	}
	switch err := x.sys.Claim(path, d.name != ""); {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EWOULDBLOCK):
		return fail("find who has it: lsblk, swapon --show, dmsetup ls, fuser -v "+path, "%s is in use, and not by this node's agent", path)
	case errors.Is(err, os.ErrPermission):
		return skip("%s belongs to another user: run this as the agent's user", path)
	case err != nil:
		return fail("look at volume.device in the config", "%v", err)
	}
	return ok("nobody has it")
}

// holders says who has the device or a part of it: a mount, swap, or a device above it. A
// claim of the whole disk does not see all of that: a mounted partition of it does claim the
// disk, one that is only mapped need not.
func (x *examination) holders(d device) string {
	names := []string{d.name}
	entries, _ := os.ReadDir(x.sys.path("sys/class/block", d.name))
	for _, e := range entries {
		if x.sys.exists("sys/class/block", d.name, e.Name(), "partition") {
			names = append(names, e.Name())
		}
	}
	mounts, _ := x.sys.text("proc/self/mountinfo")
	swaps, _ := x.sys.text("proc/swaps")
	for i, name := range names {
		dir := []string{"sys/class/block", d.name}
		if i > 0 {
			dir = append(dir, name)
		}
		dev, _ := x.sys.text(append(dir, "dev")...)
		for m := range strings.Lines(mounts) {
			// ID PARENT MAJOR:MINOR ROOT PATH ..., proc(5)
			if f := strings.Fields(m); dev != "" && len(f) > 4 && f[2] == dev {
				return fmt.Sprintf("%s is mounted at %s", name, f[4])
			}
		}
		for s := range strings.Lines(swaps) {
			if f := strings.Fields(s); len(f) > 0 && f[0] == "/dev/"+name {
				return name + " is swap"
			}
		}
		above, _ := os.ReadDir(x.sys.path(append(dir, "holders")...))
		if len(above) > 0 {
			who := above[0].Name()
			if dm, err := x.sys.text("sys/class/block", who, "dm/name"); err == nil {
				who += " (" + dm + ")"
			}
			return fmt.Sprintf("%s is below %s: LVM, device mapper or md", name, who)
		}
	}
	return ""
}
