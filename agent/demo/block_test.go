package demo

import (
	"bytes"
	"fmt"
	"testing"
)

func TestBlock(t *testing.T) {
	const run, number, seq = 7, 1 << 18, 41212
	good := make([]byte, blockSize)
	fillBlock(good, run, number, seq)
	if c := readBlock(bytes.Clone(good), run, number); c != (content{dataBlock, seq}) {
		t.Fatalf("read %+v", c)
	}
	again := bytes.Repeat([]byte{0xff}, blockSize)
	fillBlock(again, run, number, seq)
	if !bytes.Equal(good, again) {
		t.Fatal("a block depends on what its memory held")
	}
	if c := readBlock(make([]byte, blockSize), run, number); c.kind != zeroBlock {
		t.Fatalf("zeroes are %+v", c)
	}
	for name, change := range map[string]func([]byte) (uint64, int64){
		"of another run":   func([]byte) (uint64, int64) { return run + 1, number },
		"somewhere else":   func([]byte) (uint64, int64) { return run, number + 1 },
		"magic":            func(b []byte) (uint64, int64) { b[0] ^= 1; return run, number },
		"sequence":         func(b []byte) (uint64, int64) { b[seqAt] ^= 1; return run, number },
		"checksum":         func(b []byte) (uint64, int64) { b[crcAt] ^= 1; return run, number },
		"content":          func(b []byte) (uint64, int64) { b[blockSize-1] ^= 1; return run, number },
		"torn":             func(b []byte) (uint64, int64) { clear(b[512:]); return run, number },
		"zero but for one": func(b []byte) (uint64, int64) { clear(b); b[blockSize-1] = 1; return run, number },
	} {
		b := bytes.Clone(good)
		r, n := change(b)
		if c := readBlock(b, r, n); c.kind != foreignBlock {
			t.Errorf("%s: read %+v", name, c)
		}
	}
}

func TestBlocksShareNothing(t *testing.T) {
	seen := make(map[string]string)
	for _, k := range []struct {
		run    uint64
		number int64
		seq    uint64
	}{{1, 0, 1}, {1, 0, 2}, {1, 1, 1}, {2, 0, 1}} {
		b := make([]byte, blockSize)
		fillBlock(b, k.run, k.number, k.seq)
		for off := 512; off < blockSize; off += 512 {
			part := string(b[off : off+512])
			name := fmt.Sprintf("%+v at %d", k, off)
			if other, ok := seen[part]; ok {
				t.Fatalf("%s is %s", name, other)
			}
			seen[part] = name
		}
	}
}
