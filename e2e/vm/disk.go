package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// maxDisk bounds a disk: its content is read whole by scenarios, and CI has
// little space.
const maxDisk = 256 << 20

// Disk is a raw disk with a volatile write cache: what the guest has not
// flushed, or written with FUA, is gone after a power cut. nbdkit's cache filter
// is that cache; it is a process of its own, and dies with the machine.
//
// Killing QEMU alone proves nothing about flushes: what it has written to a file
// is in the host's page cache, which survives.
type Disk struct {
	// Image is the disk's file on the host. What is in it is what has been
	// flushed; it is looked at while the machine is off.
	Image string

	serial string
	socket string
	cache  *process // nil while the machine is off
}

func newDisk(dir, serial string, size int64) (*Disk, error) {
	if size > maxDisk {
		return nil, fmt.Errorf("a disk of %d bytes, %d are possible", size, maxDisk)
	}
	d := &Disk{Image: filepath.Join(dir, serial+".img"), serial: serial, socket: filepath.Join(dir, serial+".nbd")}
	f, err := os.OpenFile(d.Image, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return d, f.Truncate(size)
}

func (d *Disk) powerOn(ctx context.Context) error {
	_ = os.Remove(d.socket)
	p, err := startProcess(d.Image+".log", "nbdkit", "--foreground", "--unix", d.socket,
		"--filter=cache", "file", d.Image, "cache=writeback", "cache-min-block-size=4K")
	if err != nil {
		return err
	}
	d.cache = p
	return waitForSocket(ctx, p, d.socket)
}

func (d *Disk) powerCut() {
	if d.cache != nil {
		d.cache.kill()
		d.cache = nil
	}
}

// waitForSocket returns when a server that was just started has made its socket.
func waitForSocket(ctx context.Context, p *process, path string) error {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.done:
			return p.lastWords()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s: no socket after 10 s: %s", path, tail(p.log, 5))
}
