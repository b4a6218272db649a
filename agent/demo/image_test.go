package demo

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCompareImages(t *testing.T) {
	const size = 8 << 20
	type at map[int64]byte
	for _, tc := range []struct {
		name string
		a, b at
		want int64
	}{
		{"two holes", nil, nil, -1},
		{"equal data", at{0: 1, 3<<20 + 5: 2, size - 1: 3}, at{0: 1, 3<<20 + 5: 2, size - 1: 3}, -1},
		{"written zeroes and a hole", at{4096: 0}, nil, -1},
		{"the first byte", at{0: 1}, nil, 0},
		{"the last byte", nil, at{size - 1: 1}, size - 1},
		{"in the middle of data", at{5<<20 + 1: 1, 5<<20 + 9: 1}, at{5<<20 + 1: 1, 5<<20 + 9: 2}, 5<<20 + 9},
		{"the first of two", at{1 << 20: 1, 6 << 20: 1}, at{2 << 20: 1}, 1 << 20},
		{"behind the volume", at{size + 5: 1}, nil, -1},
	} {
		var paths []string
		for i, image := range []at{tc.a, tc.b} {
			path := filepath.Join(t.TempDir(), string(rune('a'+i)))
			f, err := os.Create(path)
			if err == nil {
				err = f.Truncate(size)
			}
			for off, b := range image {
				if err == nil {
					_, err = f.WriteAt([]byte{b}, off)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			paths = append(paths, path)
		}
		if got, err := compareImages(paths[0], paths[1], size); err != nil || got != tc.want {
			t.Errorf("%s: %d, %v; want %d", tc.name, got, err, tc.want)
		}
		if got, err := compareImages(paths[1], paths[0], size); err != nil || got != tc.want {
			t.Errorf("%s, the other way round: %d, %v; want %d", tc.name, got, err, tc.want)
		}
		if _, err := compareImages(paths[0], paths[1], 2*size); err == nil {
			t.Errorf("%s: the images are too short, and that is no error", tc.name)
		}
	}
	if _, err := compareImages("/nothing", "/nothing", size); err == nil {
		t.Error("no images, and that is no error")
	}
}
