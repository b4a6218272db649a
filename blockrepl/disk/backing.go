package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// bounceBuffers of bounceSize each carry what O_DIRECT cannot take as it
	// is. They exist from the start: the agent must not need memory while the
	// kernel waits for it to write back pages. A request waits for one.
	bounceBuffers = 8
	bounceSize    = 1 << 20
	// zeroSize is how much is zeroed by one write where fallocate cannot.
	zeroSize = 256 << 10
	// maxAlign is the largest logical block that the metadata's 4 KiB records
	// can be written to alone.
	maxAlign = 4096
)

// backing is a file or block device.
//
// A device is opened O_DIRECT: buffered writes would go to the page cache that
// the kernel is trying to empty through us, and O_DIRECT errors come back with
// the write that failed. Files are buffered: a sparse file allocates, and then
// waits for its filesystem in either mode, alignment rules differ from one
// filesystem to the next, and tmpfs refuses O_DIRECT.
type backing struct {
	path  string
	f     *os.File
	raw   rawConn
	block bool
	size  int64
	align int // power of two; 1 if buffered

	// Each is set when the kernel has said once that it cannot.
	noDsync, noPunch, noZeroRange atomic.Bool

	bounce chan []byte
	zeroes []byte
	// unaligned is held while a part of a logical block is written, which is a
	// read, a change and a write. Writes of whole blocks need not hold it:
	// they overlap the request itself, and those the caller keeps apart.
	unaligned sync.Mutex

	// durable serialises all that may report a failed writeback. The kernel
	// reports one once per open file, to whichever flush or synchronous write
	// asks first; another that runs beside it returns success for data that is
	// lost. So the answer is noted in failed before the next may ask.
	durable sync.Mutex
	failed  error  // guarded by durable
	flushed uint64 // guarded by durable: highest ticket that a flush covered
	ticket  atomic.Uint64

	datasync func(fd int) error // fdatasync; another in tests
}

// rawConn is the part of syscall.RawConn that keeps the descriptor from being
// closed, and its number reused, under a system call.
type rawConn interface {
	Control(f func(fd uintptr)) error
}

// openBacking opens a device or a regular file. Exclusive is against other
// agents, and for a device against every other holder in the kernel.
func openBacking(path string, mode int, exclusive bool) (*backing, error) {
	// Look before opening: a FIFO would block, a tape would rewind.
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	b := &backing{path: path, align: 1, datasync: unix.Fdatasync}
	switch b.block = isBlock(st.Mode()); {
	case b.block:
		mode |= unix.O_DIRECT
		if exclusive {
			mode |= unix.O_EXCL
		}
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is neither a block device nor a regular file", path)
	}
	b.f, err = os.OpenFile(path, mode, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s is %w: it is mounted, or LVM, swap, md or another agent has it; stop that first (lsblk %s shows who)", path, ErrInUse, path)
	}
	if err != nil {
		return nil, err
	}
	if err := b.prepare(exclusive); err != nil {
		b.f.Close()
		return nil, err
	}
	return b, nil
}

func isBlock(m fs.FileMode) bool { return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0 }

func (b *backing) prepare(exclusive bool) error {
	raw, err := b.f.SyscallConn()
	if err != nil {
		return err
	}
	b.raw = raw
	st, err := b.f.Stat()
	if err != nil {
		return err
	}
	if isBlock(st.Mode()) != b.block {
		return fmt.Errorf("%s was replaced while it was opened", b.path)
	}
	b.size = st.Size()
	if b.block {
		if err := b.geometry(); err != nil {
			return err
		}
	} else if exclusive {
		// The file itself is locked, not a file beside it: two paths to it, or
		// two configurations, are still one file. The lock goes with the
		// process, however it ends.
		err := b.control(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%s is %w: another agent has locked it; one agent is one volume, so stop the other (fuser %s shows it) or give this one its own file", b.path, ErrInUse, b.path)
		}
		if err != nil {
			return fmt.Errorf("lock %s: %w", b.path, err)
		}
	}
	b.setAlign(b.align)
	return nil
}

func (b *backing) geometry() error {
	var size, sector int
	if err := b.control(func(fd int) (err error) {
		if size, err = unix.IoctlGetInt(fd, unix.BLKGETSIZE64); err != nil {
			return err
		}
		sector, err = unix.IoctlGetInt(fd, unix.BLKSSZGET)
		return err
	}); err != nil {
		return fmt.Errorf("size of %s: %w", b.path, err)
	}
	if sector < 512 || sector > maxAlign || sector&(sector-1) != 0 {
		return fmt.Errorf("%s has logical blocks of %d bytes; at most %d can be used", b.path, sector, maxAlign)
	}
	b.size, b.align = int64(size), sector
	return nil
}

func (b *backing) setAlign(align int) {
	b.align = align
	b.zeroes = Buffer(zeroSize)
	if align == 1 {
		return
	}
	b.bounce = make(chan []byte, bounceBuffers)
	for range bounceBuffers {
		b.bounce <- Buffer(bounceSize)
	}
}

// Buffer makes n bytes that O_DIRECT takes as they are.
func Buffer(n int) []byte {
	b := make([]byte, n+maxAlign)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (maxAlign - 1)
	return b[skip : skip+n : skip+n]
}

func (b *backing) close() error { return b.f.Close() }

// isFile says whether path is this file.
func (b *backing) isFile(path string) (bool, error) {
	other, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	own, err := b.f.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(own, other), nil
}

// control runs a system call on the descriptor, again while it is interrupted.
func (b *backing) control(call func(fd int) error) error {
	var err error
	if cerr := b.raw.Control(func(fd uintptr) {
		for err = call(int(fd)); errors.Is(err, unix.EINTR); err = call(int(fd)) {
		}
	}); cerr != nil {
		return os.ErrClosed // the only reason, and internal/poll's own name for it
	}
	return err
}

func (b *backing) read(p []byte, off int64) error {
	if b.aligned(p, off) {
		return b.pread(p, off)
	}
	buf := <-b.bounce
	defer func() { b.bounce <- buf }()
	for len(p) > 0 {
		lo, hi, n := b.cover(len(p), off)
		if err := b.pread(buf[:hi-lo], lo); err != nil {
			return err
		}
		copy(p[:n], buf[off-lo:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (b *backing) write(p []byte, off int64, fua bool) error {
	if b.aligned(p, off) {
		return b.pwrite(p, off, fua)
	}
	buf := <-b.bounce
	defer func() { b.bounce <- buf }()
	if mask := int64(b.align - 1); off&mask != 0 || int64(len(p))&mask != 0 {
		b.unaligned.Lock()
		defer b.unaligned.Unlock()
	}
	for len(p) > 0 {
		lo, hi, n := b.cover(len(p), off)
		whole := buf[:hi-lo]
		if lo < off {
			if err := b.pread(whole[:b.align], lo); err != nil {
				return err
			}
		}
		if tail := len(whole) - b.align; off+int64(n) < hi && (tail > 0 || lo == off) {
			if err := b.pread(whole[tail:], lo+int64(tail)); err != nil {
				return err
			}
		}
		copy(whole[off-lo:], p[:n])
		if err := b.pwrite(whole, lo, fua); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (b *backing) aligned(p []byte, off int64) bool {
	return b.align == 1 || len(p) == 0 ||
		(uintptr(unsafe.Pointer(unsafe.SliceData(p)))|uintptr(off)|uintptr(len(p)))&uintptr(b.align-1) == 0
}

// cover is the range of whole logical blocks around the first n of want bytes
// at off, as much as a bounce buffer holds.
func (b *backing) cover(want int, off int64) (lo, hi int64, n int) {
	mask := int64(b.align - 1)
	lo = off &^ mask
	n = min(want, bounceSize-int(off-lo))
	return lo, (off + int64(n) + mask) &^ mask, n
}

func (b *backing) pread(p []byte, off int64) error {
	n, err := b.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		// Sizes were checked at open, so the file was cut off since.
		err = fmt.Errorf("read %s: %w", b.path, io.ErrUnexpectedEOF)
	}
	return err
}

func (b *backing) pwrite(p []byte, off int64, fua bool) error {
	if fua {
		return b.pwriteDurable(p, off)
	}
	n, err := b.f.WriteAt(p, off)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// pwriteDurable writes with RWF_DSYNC, which syncs only these bytes (a device:
// with FUA if it knows that). Of several at once on a file, which may not ask
// side by side (see durable), the first does that and the rest share a flush.
func (b *backing) pwriteDurable(p []byte, off int64) error {
	alone := b.block || b.durable.TryLock()
	if !alone || b.noDsync.Load() {
		if alone && !b.block {
			b.durable.Unlock()
		}
		return b.pwriteFlush(p, off)
	}
	if !b.block {
		defer b.durable.Unlock()
		if b.failed != nil {
			return b.failed
		}
	}
	for len(p) > 0 {
		var n int
		err := b.control(func(fd int) (err error) {
			n, err = unix.Pwritev2(fd, [][]byte{p}, off, unix.RWF_DSYNC)
			return err
		})
		switch {
		case err == nil && n > 0:
			p, off = p[n:], off+int64(n)
		case err == nil:
			return fmt.Errorf("write %s: %w", b.path, io.ErrShortWrite)
		case unsupported(err):
			b.noDsync.Store(true)
			if !b.block {
				// flush takes the lock itself.
				b.durable.Unlock()
				defer b.durable.Lock()
			}
			return b.pwriteFlush(p, off)
		default:
			err = fmt.Errorf("write %s: %w", b.path, err)
			if !b.block {
				b.fail(err)
			}
			return err
		}
	}
	return nil
}

func (b *backing) pwriteFlush(p []byte, off int64) error {
	if err := b.pwrite(p, off, false); err != nil {
		return err
	}
	return b.flush()
}

// flush is fdatasync. Callers that waited for one flush share the next.
func (b *backing) flush() error {
	t := b.ticket.Add(1)
	b.durable.Lock()
	defer b.durable.Unlock()
	if b.failed != nil {
		return b.failed
	}
	if b.flushed >= t {
		return nil // one that began after our ticket has ended
	}
	covers := b.ticket.Load()
	if err := b.control(b.datasync); err != nil {
		err = fmt.Errorf("flush %s: %w", b.path, err)
		b.fail(err)
		return err
	}
	b.flushed = covers
	return nil
}

// fail notes a failed writeback for ever; durable is held. (PostgreSQL's fsync
// trouble of 2018: the kernel marks the pages clean and forgets.)
func (b *backing) fail(err error) { b.failed = fmt.Errorf("%w: %w", ErrFailed, err) }

func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// zero makes a range read as zeroes.
func (b *backing) zero(off, n int64, noHole bool) error {
	if n == 0 {
		return nil
	}
	// A device zeroes whole logical blocks only.
	mask := int64(b.align - 1)
	lo, hi := (off+mask)&^mask, (off+n)&^mask
	if lo >= hi {
		return b.writeZeroes(off, n)
	}
	if err := b.writeZeroes(off, lo-off); err != nil {
		return err
	}
	if err := b.writeZeroes(hi, off+n-hi); err != nil {
		return err
	}
	// On a device PUNCH_HOLE unmaps where that reads as zeroes and refuses
	// elsewhere (blkdev_fallocate); plain discard would promise nothing.
	if !noHole {
		if done, err := b.fallocate(unix.FALLOC_FL_PUNCH_HOLE, lo, hi-lo, &b.noPunch); done {
			return err
		}
	}
	if done, err := b.fallocate(unix.FALLOC_FL_ZERO_RANGE, lo, hi-lo, &b.noZeroRange); done {
		return err
	}
	return b.writeZeroes(lo, hi-lo)
}

// fallocate says whether the kernel can do it at all, and how it went.
func (b *backing) fallocate(mode uint32, off, n int64, never *atomic.Bool) (done bool, err error) {
	if never.Load() {
		return false, nil
	}
	err = b.control(func(fd int) error { return unix.Fallocate(fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n) })
	if err != nil && unsupported(err) {
		never.Store(true)
		return false, nil
	}
	if err != nil {
		err = fmt.Errorf("zero %s: %w", b.path, err)
	}
	return true, err
}

func (b *backing) writeZeroes(off, n int64) error {
	for n > 0 {
		c := min(n, zeroSize)
		if err := b.write(b.zeroes[:c], off, false); err != nil {
			return err
		}
		off, n = off+c, n-c
	}
	return nil
}

// maxExtents bounds the answer of Allocated; a file can have a hole every 4 KiB.
const maxExtents = 4096

func (b *backing) allocated(off, n int64) ([]Extent, error) {
	end := off + n
	if n == 0 {
		return nil, nil
	}
	if b.block {
		return []Extent{{Off: off, Len: n, Data: true}}, nil
	}
	var out []Extent
	add := func(to int64, data bool) {
		if to = min(to, end); to > off {
			out = append(out, Extent{Off: off, Len: to - off, Data: data})
			off = to
		}
	}
	// lseek moves the file's offset, which nothing here uses.
	for off < end && len(out) < maxExtents {
		data, err := b.seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			add(end, false)
			break
		}
		if err != nil {
			return nil, err
		}
		add(data, false)
		if off >= end {
			break
		}
		hole, err := b.seek(off, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) || err == nil && hole <= off {
			hole = end // cut off or punched under us: claim nothing
		} else if err != nil {
			return nil, err
		}
		add(hole, true)
	}
	return out, nil
}

func (b *backing) seek(off int64, whence int) (pos int64, err error) {
	err = b.control(func(fd int) (err error) {
		pos, err = unix.Seek(fd, off, whence)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENXIO) {
		err = fmt.Errorf("holes of %s: %w", b.path, err)
	}
	return pos, err
}
