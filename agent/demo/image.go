package demo

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// compareImages returns the offset of the first byte in which the first size
// bytes of two files differ, or -1. What is a hole in both is not read.
func compareImages(pathA, pathB string, size int64) (int64, error) {
	var files [2]*os.File
	for i, path := range []string{pathA, pathB} {
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if fi, err := f.Stat(); err != nil {
			return 0, err
		} else if fi.Size() < size {
			return 0, fmt.Errorf("%s has only %d bytes of %d", path, fi.Size(), size)
		}
		files[i] = f
	}
	const chunk = 1 << 20
	var bufs [2][chunk]byte
	for off := int64(0); off < size; {
		next := size
		for _, f := range files {
			data, err := nextData(f, off, size)
			if err != nil {
				return 0, err
			}
			next = min(next, data)
		}
		off = next / chunk * chunk
		n := min(chunk, size-off)
		if n <= 0 {
			break
		}
		for i, f := range files {
			if _, err := f.ReadAt(bufs[i][:n], off); err != nil {
				return 0, err
			}
		}
		if a, b := bufs[0][:n], bufs[1][:n]; !bytes.Equal(a, b) {
			for i := range a {
				if a[i] != b[i] {
					return off + int64(i), nil
				}
			}
		}
		off += n
	}
	return -1, nil
}

// nextData is where the next byte is that may be other than zero, at off or
// behind it; size if there is none.
func nextData(f *os.File, off, size int64) (int64, error) {
	at, err := f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, nil // a filesystem that knows no holes
	case err != nil:
		return 0, err
	}
	return min(at, size), nil
}
