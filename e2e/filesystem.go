package e2e

import "fmt"

// filesystem is what is on the replicated device.
type filesystem struct {
	name string
	mkfs string // the device follows
	// fsck changes nothing and exits 0 only if there is nothing to change. The
	// log must have been replayed by a mount.
	fsck string
}

func filesystems() []filesystem {
	return []filesystem{
		{"ext4", "mkfs.ext4 -q -F", "e2fsck -fn"},
		// xfsprogs wants 300 MB for anything that is not a test.
		{"xfs", "mkfs.xfs -q -f --unsupported", "xfs_repair -n"},
	}
}

// mkfsOf makes one of so many bytes.
func (f filesystem) mkfsOf(device string, size int64) string {
	if f.name == "xfs" {
		return fmt.Sprintf("%s -d size=%d %s", f.mkfs, size, device)
	}
	return fmt.Sprintf("%s %s %dk", f.mkfs, device, size>>10)
}

// mountPoint of the replicated device in a guest.
const mountPoint = "/srv/volume"

func (f filesystem) mount(device string) string {
	return fmt.Sprintf("mkdir -p %s && mount -t %s %s %[1]s", mountPoint, f.name, device)
}
