package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// maxIdentity is what the superblock has room for.
const maxIdentity = 255

// identify names a backing beyond its path, and says whether it has a volatile
// cache.
//
// A file is its inode and birth time. Not its device number: those of NVMe
// disks are dealt out anew at each boot, and XFS derives its filesystem id from
// them too. An inode number that was used again has another birth time.
//
// A device is what it says of itself in sysfs: the uuid of a dm or md device,
// else the serial number (of an EBS volume: its id) or world-wide id of the
// disk with the partition's number. sysfs rather than the link in
// /dev/disk/by-id, because udev makes that some time after the device is there.
// The link is next, and the last resort is major:minor.
func identify(b *backing) (identity string, volatile bool) {
	var st unix.Stat_t
	if err := b.control(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return "unknown", true
	}
	if b.block {
		dev := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		return clean(identifyDevice("/sys/dev/block/"+dev, "/dev/disk/by-id", dev)), volatileDevice("/sys/dev/block/" + dev)
	}
	// A restart of the host loses the page cache.
	id := fmt.Sprintf("file:inode=%d", st.Ino)
	var x unix.Statx_t
	err := b.control(func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &x)
	})
	if err == nil && x.Mask&unix.STATX_BTIME != 0 {
		id += fmt.Sprintf(",born=%d.%09d", x.Btime.Sec, x.Btime.Nsec)
	}
	return id, true
}

func identifyDevice(sys, byID, dev string) string {
	part := ""
	if n := sysfs(sys, "partition"); n != "" {
		part = ",part=" + n
		sys = parent(sys)
	}
	for _, a := range []struct{ attribute, kind string }{
		{"dm/uuid", "dm"},
		{"md/uuid", "md"},
		{"device/serial", "serial"}, // nvme
		{"serial", "serial"},        // virtio
		{"wwid", "wwid"},            // nvme, scsi
		{"device/wwid", "wwid"},
	} {
		if v := sysfs(sys, a.attribute); v != "" {
			return a.kind + ":" + v + part
		}
	}
	if name := linkTo(byID, dev); name != "" {
		return "by-id:" + name
	}
	return "dev:" + dev
}

// withSerial holds a device against the serial number that it is to have, and names it by
// that where it shows nothing better.
func withSerial(identity string, o Options) (string, error) {
	kind, shown, _ := strings.Cut(identity, ":")
	switch {
	case kind == "by-id" || kind == "dev":
		return clean("serial:" + o.Serial), nil
	case kind == "serial" && shown != o.Serial:
		return "", fmt.Errorf("%s: %w: its serial number is %s, not %s", o.Path, ErrOther, shown, o.Serial)
	}
	return identity, nil
}

// linkTo is the first name, in a fixed order, of a device in /dev/disk/by-id.
func linkTo(dir, dev string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	var names []string
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, e.Name()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK &&
			fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)) == dev {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return ""
	}
	sort.Strings(names)
	return names[0]
}

// volatileDevice says whether a device has a write-back cache. One that does
// not tell is taken to have one.
func volatileDevice(sys string) bool {
	if sysfs(sys, "partition") != "" {
		sys = parent(sys)
	}
	return sysfs(sys, "queue/write_cache") != "write through"
}

// parent is the disk of a partition. The path in /sys/dev/block is a link, so
// ".." must be taken after it is resolved.
func parent(sys string) string {
	if real, err := filepath.EvalSymlinks(sys); err == nil {
		return filepath.Dir(real)
	}
	return sys
}

func sysfs(dir, attribute string) string {
	b, err := os.ReadFile(filepath.Join(dir, attribute))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// clean makes of it what a superblock takes: serial numbers have been seen
// with control characters and with blanks in the middle.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return s[:min(len(s), maxIdentity)]
}
