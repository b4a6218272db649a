package fileops

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// system is what is checked. Names are relative to a folder. The tests put one with faults
// into its place.
type system interface {
	open(name string, create bool) (file, error)
	rename(from, to string) error
	remove(name string) error
	list() ([]string, error)
	refresh() error
}

type file interface {
	readAt(p []byte, off int64) (int, error)
	readDirect(p []byte, off int64) (int, error) // past the page cache; off and len(p) are multiples of block
	writeAt(p []byte, off int64) error
	readMapped(p []byte, off int64) error // the range is inside of the file
	writeMapped(p []byte, off int64, sync bool) error
	truncate(size int64) error
	punch(off, n int64) error
	sync(data bool) error
	forget() error // the pages that are clean
	size() (int64, error)
	close() error
}

const block = 4096

// folder is a real one.
type folder struct{ dir string }

// folders of the names, below the folder.
const folders = 2

func (f folder) open(name string, create bool) (file, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	o, err := os.OpenFile(filepath.Join(f.dir, name), flags, 0o644)
	if err != nil {
		return nil, err
	}
	return &osFile{o}, nil
}

func (f folder) rename(from, to string) error {
	return os.Rename(filepath.Join(f.dir, from), filepath.Join(f.dir, to))
}

func (f folder) remove(name string) error { return os.Remove(filepath.Join(f.dir, name)) }

func (f folder) list() (names []string, err error) {
	for d := range folders {
		entries, err := os.ReadDir(filepath.Join(f.dir, folderName(d)))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			names = append(names, filepath.Join(folderName(d), e.Name()))
		}
	}
	return names, nil
}

// refresh changes each folder. A client of NFS believes the names that it remembers for half a
// minute, unless a change tells it that there was one that it has not heard of.
func (f folder) refresh() error {
	for d := range folders {
		name := filepath.Join(f.dir, folderName(d), "refresh")
		if err := errors.Join(os.Mkdir(name, 0o755), os.Remove(name)); err != nil {
			return err
		}
	}
	return nil
}

func folderName(d int) string { return fmt.Sprintf("d%d", d) }

type osFile struct{ f *os.File }

func (o *osFile) readAt(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		k, err := unix.Pread(int(o.f.Fd()), p[n:], off+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || k == 0 {
			return n, err
		}
		n += k
	}
	return n, nil
}

// readDirect opens the file anew, which an NFS client takes as the moment to ask the server
// whether it has changed.
func (o *osFile) readDirect(p []byte, off int64) (int, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", o.f.Fd()), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("open", err)
	}
	defer func() { _ = unix.Close(fd) }()
	buf, err := unix.Mmap(-1, 0, len(p), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0, os.NewSyscallError("mmap", err)
	}
	defer func() { _ = unix.Munmap(buf) }()
	n, err := unix.Pread(fd, buf, off)
	if err != nil {
		return 0, os.NewSyscallError("pread", err)
	}
	return copy(p, buf[:n]), nil
}

func (o *osFile) writeAt(p []byte, off int64) error {
	_, err := o.f.WriteAt(p, off)
	return err
}

// mapped calls do with the bytes of the range, in shared memory.
func (o *osFile) mapped(off int64, n, prot int, sync bool, do func([]byte) error) error {
	from := off &^ (block - 1)
	skip := int(off - from)
	m, err := unix.Mmap(int(o.f.Fd()), from, skip+n, prot, unix.MAP_SHARED)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	err = do(m[skip:])
	if sync {
		err = errors.Join(err, os.NewSyscallError("msync", unix.Msync(m, unix.MS_SYNC)))
	}
	return errors.Join(err, os.NewSyscallError("munmap", unix.Munmap(m)))
}

func (o *osFile) readMapped(p []byte, off int64) error {
	return o.mapped(off, len(p), unix.PROT_READ, false, func(m []byte) error { copy(p, m); return nil })
}

func (o *osFile) writeMapped(p []byte, off int64, sync bool) error {
	return o.mapped(off, len(p), unix.PROT_READ|unix.PROT_WRITE, sync, func(m []byte) error { copy(m, p); return nil })
}

func (o *osFile) truncate(size int64) error { return o.f.Truncate(size) }

func (o *osFile) punch(off, n int64) error {
	return os.NewSyscallError("fallocate", unix.Fallocate(int(o.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n))
}

func (o *osFile) sync(data bool) error {
	if data {
		return os.NewSyscallError("fdatasync", unix.Fdatasync(int(o.f.Fd())))
	}
	return o.f.Sync()
}

func (o *osFile) forget() error {
	return os.NewSyscallError("fadvise", unix.Fadvise(int(o.f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

func (o *osFile) size() (int64, error) {
	st, err := o.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (o *osFile) close() error { return o.f.Close() }
