package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"tandem/blockrepl/meta"
)

// Internal metadata, from the end of a device or file of D bytes:
//
//	0          V                S                     T          D
//	| volume   | (free) | region, see meta | (free) | trailer |(<4 KiB)|
//
//	T  last whole 4 KiB block
//	S  highest multiple of 16 KiB with room for the region before T
//	V  the volume's size, at most S
//
// The trailer, one block, written by Init alone, after the region is durable:
//
//	offset  width
//	0        8      magic "TANDEMTR"
//	8        4      version, 1
//	12       4      zero
//	16       8      disk id: that of the superblock
//	24       8      S
//	32       8      size of the region
//	40       8      V
//	48       8      D at init
//	56    4036      zero
//	4092     4      CRC32C of 0..4091
//
// It exists because where the region starts depends on the volume's size, and
// that is in the region. The layout is a function of D and V all the same, so
// a rotten trailer can be done without.
const (
	trailerMagic   = "TANDEMTR"
	trailerVersion = 1
	trailerSize    = meta.BlockSize
	// regionAlign keeps the region off the pages of what is before it.
	regionAlign = 16 << 10
	// maxSearch is how far from the end a region may begin: it is at most about
	// 100 MiB.
	maxSearch = 128 << 20
)

type trailer struct {
	diskID                                       uint64
	regionStart, regionSize, volumeSize, devSize int64
}

func (t trailer) encode(dst []byte) {
	clear(dst[:trailerSize])
	copy(dst, trailerMagic)
	binary.LittleEndian.PutUint32(dst[8:], trailerVersion)
	binary.LittleEndian.PutUint64(dst[16:], t.diskID)
	for i, v := range []int64{t.regionStart, t.regionSize, t.volumeSize, t.devSize} {
		binary.LittleEndian.PutUint64(dst[24+8*i:], uint64(v))
	}
	binary.LittleEndian.PutUint32(dst[trailerSize-4:], trailerSum(dst))
}

func trailerSum(b []byte) uint32 {
	return crc32.Checksum(b[:trailerSize-4], crc32.MakeTable(crc32.Castagnoli))
}

// decodeTrailer's error wraps one of package meta's.
func decodeTrailer(b []byte) (t trailer, err error) {
	switch {
	case len(b) != trailerSize || string(b[:8]) != trailerMagic:
		return t, meta.ErrNoMetadata
	case binary.LittleEndian.Uint32(b[trailerSize-4:]) != trailerSum(b):
		return t, meta.ErrDamaged
	case binary.LittleEndian.Uint32(b[8:]) > trailerVersion:
		return t, meta.ErrNewer
	}
	t.diskID = binary.LittleEndian.Uint64(b[16:])
	for i, p := range []*int64{&t.regionStart, &t.regionSize, &t.volumeSize, &t.devSize} {
		*p = int64(binary.LittleEndian.Uint64(b[24+8*i:]))
	}
	again := make([]byte, trailerSize)
	t.encode(again)
	if string(again) != string(b) || t.devSize < 0 || t.regionStart < 0 || t.regionStart%regionAlign != 0 ||
		t.regionSize < 0 || t.volumeSize <= 0 || t.volumeSize > t.regionStart ||
		t.regionSize > trailerOffset(t.devSize)-t.regionStart {
		return t, fmt.Errorf("%w: trailer", meta.ErrInvalid)
	}
	return t, nil
}

func trailerOffset(devSize int64) int64 { return devSize&^(trailerSize-1) - trailerSize }

// regionStart is S for a device and a region of these sizes; negative if the
// device is too small.
func regionStart(devSize, regionSize int64) int64 {
	return (trailerOffset(devSize) - regionSize) &^ (regionAlign - 1)
}

// regionSize is that of a fresh region for a volume.
func regionSize(volumeSize int64) (int64, error) {
	s := meta.Super{VolumeSize: volumeSize}
	var err error
	if s.BlockShift, s.ExtentShift, s.ALSlots, s.ALRing, err = meta.Geometry(volumeSize); err != nil {
		return 0, err
	}
	return s.RegionSize(), nil
}

// largestVolume is the largest V that a device has room for beside its
// metadata.
func largestVolume(devSize int64) (int64, error) {
	// Down to a fixed point. One step is not enough where the granularity
	// changes: just above 1 TiB the bitmaps take half of what they take below.
	for v := min(trailerOffset(devSize), meta.MaxVolumeSize); v > 0; {
		size, err := regionSize(v)
		if err != nil {
			return 0, err
		}
		start := regionStart(devSize, size)
		if start >= v {
			return v, nil
		}
		v = start
	}
	return 0, fmt.Errorf("%w: %d bytes have no room for a volume and its metadata", ErrSize, devSize)
}

// fileSize is D for a file that begins with a volume of this size.
func fileSize(volumeSize int64) (int64, error) {
	size, err := regionSize(volumeSize)
	if err != nil {
		return 0, err
	}
	start := (volumeSize + regionAlign - 1) &^ (regionAlign - 1)
	return (start + size + trailerSize + regionAlign - 1) &^ (regionAlign - 1), nil
}

// locateInternal finds the region at the end of the data. Without a sound
// trailer it looks for a superblock, to be able to say what happened.
func (d *Disk) locateInternal(o Options) error {
	t, err := d.readTrailer()
	if err == nil && trailerOffset(t.devSize) == trailerOffset(d.data.size) {
		d.mdStart, d.mdSize = t.regionStart, t.regionSize
		return nil
	}
	if err != nil && errors.Is(err, meta.ErrNewer) {
		return fmt.Errorf("%s: %w", d.data.path, err)
	}
	start, s, serr := d.searchRegion()
	switch {
	case serr != nil:
		return fmt.Errorf("search %s for metadata: %w", d.data.path, serr)
	case s != nil && start == regionStart(d.data.size, s.RegionSize()):
		d.mdStart, d.mdSize = start, s.RegionSize()
		return nil // the trailer has rotted, everything is where it was
	case s != nil && start+s.RegionSize()+trailerSize > d.data.size:
		return fmt.Errorf("%w: %s has %d bytes, at least %d are missing at its end: the device is smaller than it was at init", ErrSize, d.data.path, d.data.size, start+s.RegionSize()+trailerSize-d.data.size)
	case s != nil:
		return fmt.Errorf("%w: %s has %d bytes, its metadata was written for fewer: the device has grown since init", ErrSize, d.data.path, d.data.size)
	}
	if want, err := fileSize(o.Size); err == nil && !d.data.block && d.data.size > 0 && d.data.size < want {
		return fmt.Errorf("%w: %s has %d bytes, a volume of %d with its metadata takes %d: the file was cut off, or never initialised", ErrSize, d.data.path, d.data.size, o.Size, want)
	}
	if err != nil && !errors.Is(err, meta.ErrNoMetadata) {
		return fmt.Errorf("%s: %w", d.data.path, err)
	}
	return fmt.Errorf("%s: %w at its end: it was never initialised (replctl init), or the device has another size than at init", d.data.path, meta.ErrNoMetadata)
}

func (d *Disk) readTrailer() (trailer, error) {
	off := trailerOffset(d.data.size)
	if off < 0 {
		return trailer{}, meta.ErrNoMetadata
	}
	b := make([]byte, trailerSize)
	if err := d.data.read(b, off); err != nil {
		return trailer{}, err
	}
	return decodeTrailer(b)
}

// searchRegion looks for the last superblock near the end of the data, where a
// region could begin.
func (d *Disk) searchRegion() (int64, *meta.Super, error) {
	const chunk = 1 << 20
	buf := Buffer(chunk)
	last := d.data.size &^ (regionAlign - 1)
	for from := last &^ (chunk - 1); from >= 0 && from > last-maxSearch; from -= chunk {
		n := min(chunk, int(d.data.size-from)) &^ (meta.BlockSize - 1)
		if err := d.data.read(buf[:n], from); err != nil {
			return 0, nil, err
		}
		for i := (n - 1) &^ (regionAlign - 1); i >= 0 && n > 0; i -= regionAlign {
			// Either copy will do. What it says about its own place is not
			// known, but a volume that would reach into the region is not ours.
			for _, at := range []int{i, i + meta.BlockSize} {
				if at+meta.BlockSize > n {
					continue
				}
				if s, err := meta.DecodeSuper(buf[at : at+meta.BlockSize]); err == nil && s.VolumeSize <= from+int64(i) {
					return from + int64(i), s, nil
				}
			}
		}
	}
	return 0, nil, nil
}
