package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// signature is a magic of something that people would not like to lose. The
// offsets are those of util-linux's libblkid.
type signature struct {
	what   string
	off    int64 // from the start; negative: from the end, counted as base says
	magic  string
	base   int64 // for a negative off: the end is first rounded down to this
	repeat int64 // how many times, each step bytes further; 0 is once
	step   int64
}

// signatures is a function, not a variable: nothing can change it.
func signatures() []signature {
	return []signature{
		{what: "an ext2/3/4 filesystem", off: 0x438, magic: "\x53\xef"},
		{what: "an XFS filesystem", off: 0, magic: "XFSB"},
		{what: "a btrfs filesystem", off: 0x10040, magic: "_BHRfS_M"},
		{what: "a bcachefs filesystem or bcache", off: 0x1018, magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
		{what: "a bcachefs filesystem", off: 0x1018, magic: "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
		{what: "an F2FS filesystem", off: 0x400, magic: "\x10\x20\xf5\xf2"},
		{what: "a GFS2 filesystem", off: 0x10000, magic: "\x01\x16\x19\x70"},
		{what: "an OCFS2 filesystem", off: 0x2000, magic: "OCFSV2"},
		{what: "a ReiserFS filesystem", off: 0x10034, magic: "ReIsEr"},
		{what: "a JFS filesystem", off: 0x8000, magic: "JFS1"},
		{what: "a ZFS pool", off: 0x20000, magic: "\x0c\xb1\xba\x00\x00\x00\x00\x00", repeat: 128, step: 1024},
		{what: "a ZFS pool", off: 0x20000, magic: "\x00\x00\x00\x00\x00\xba\xb1\x0c", repeat: 128, step: 1024},
		{what: "an NTFS filesystem", off: 3, magic: "NTFS    "},
		{what: "an exFAT filesystem", off: 3, magic: "EXFAT   "},
		{what: "an ISO 9660 filesystem", off: 0x8001, magic: "CD001"},
		{what: "a squashfs filesystem", off: 0, magic: "hsqs"},
		{what: "an EROFS filesystem", off: 0x400, magic: "\xe2\xe1\xf5\xe0"},
		{what: "an LVM physical volume", off: 0, magic: "LABELONE", repeat: 4, step: 512},
		{what: "a LUKS volume", off: 0, magic: "LUKS\xba\xbe"},
		{what: "swap space", off: 0xff6, magic: "SWAPSPACE2"},
		{what: "swap space", off: 0xff6, magic: "SWAP-SPACE"},
		{what: "swap space", off: 0xfff6, magic: "SWAPSPACE2"},
		{what: "swap space (hibernation image)", off: 0xff6, magic: "S1SUSPEND"},
		{what: "an md array", off: 0x1000, magic: "\xfc\x4e\x2b\xa9"},
		{what: "an md array", off: 0, magic: "\xfc\x4e\x2b\xa9"},
		{what: "an md array", off: -0x2000, base: 0x1000, magic: "\xfc\x4e\x2b\xa9"},
		{what: "an md array", off: -0x10000, base: 0x10000, magic: "\xfc\x4e\x2b\xa9"},
		{what: "DRBD metadata", off: -0x1000 + 60, base: 0x1000, magic: "\x83\x74\x02\x6b"},
		{what: "DRBD metadata", off: -0x1000 + 60, base: 0x1000, magic: "\x83\x74\x02\x6c"},
		{what: "DRBD metadata", off: -0x1000 + 60, base: 0x1000, magic: "\x83\x74\x02\x6d"},
		{what: "a GPT partition table", off: 0x200, magic: "EFI PART"},
		{what: "a GPT partition table", off: 0x1000, magic: "EFI PART"},
		{what: "a GPT partition table", off: -0x200, base: 0x200, magic: "EFI PART"},
		{what: "a GPT partition table", off: -0x1000, base: 0x1000, magic: "EFI PART"},
		{what: "a qcow2 image", off: 0, magic: "QFI\xfb"},
		{what: "a Tandem volume's superblock", off: 0, magic: "TANDEMMD"},
		// Last: most of those above may have a boot sector too.
		{what: "an MBR partition table or a boot sector", off: 0x1fe, magic: "\x55\xaa"},
	}
}

// findSignature says what the first known signature stands for, or "".
func findSignature(r io.ReaderAt, size int64) (string, error) {
	const edge = 256 << 10
	head, tail := make([]byte, min(edge, size)), make([]byte, min(edge, size))
	for _, part := range []struct {
		b   []byte
		off int64
	}{{head, 0}, {tail, size - int64(len(tail))}} {
		if _, err := r.ReadAt(part.b, part.off); err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("look for existing data: %w", err)
		}
	}
	for _, s := range signatures() {
		for i := range max(s.repeat, 1) {
			b, off := head, s.off+i*s.step
			if s.off < 0 {
				// A short file's tail is all of it.
				b, off = tail, size&^(s.base-1)+s.off-(size-int64(len(tail)))
			}
			if off >= 0 && off < int64(len(b)) && bytes.HasPrefix(b[off:], []byte(s.magic)) {
				return s.what, nil
			}
		}
	}
	return "", nil
}
