package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// compareImages compares the first n bytes of two disks, and returns how many
// of their blocks of 4 KiB have something other than zeroes in them: two empty
// disks are equal too.
func compareImages(a, b string, n int64) (filled int, err error) {
	fa, err := os.Open(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	const block = 4096
	var (
		pa, pb = make([]byte, 1<<20), make([]byte, 1<<20)
		zero   = make([]byte, block)
		differ int
		first  int64 = -1
	)
	for off := int64(0); off < n; off += int64(len(pa)) {
		k := min(int64(len(pa)), n-off)
		_, ea := fa.ReadAt(pa[:k], off)
		_, eb := fb.ReadAt(pb[:k], off)
		if err := errors.Join(notEnd(ea), notEnd(eb)); err != nil {
			return 0, err
		}
		if int64(len(pa)) > k {
			clear(pa[k:])
			clear(pb[k:])
		}
		for i := int64(0); i < k; i += block {
			if !bytes.Equal(pa[i:i+block], zero) {
				filled++
			}
			if !bytes.Equal(pa[i:i+block], pb[i:i+block]) {
				if differ++; first < 0 {
					first = off + i
				}
			}
		}
	}
	if differ > 0 {
		return filled, fmt.Errorf("%d blocks of 4 KiB differ, the first at byte %d", differ, first)
	}
	return filled, nil
}

func notEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the image is too short: %w", io.ErrUnexpectedEOF)
	}
	return err
}
