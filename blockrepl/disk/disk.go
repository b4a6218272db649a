// Package disk is the local copy of the volume and its metadata region, on
// Linux, over a block device or a sparse file.
//
// It moves bytes and knows where they may go. What they mean is known to
// package meta (the region) and to the volume above; this package reads the
// superblock only to check sizes.
package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"tandem/blockrepl/meta"
)

// Options say where the volume and its metadata are.
type Options struct {
	// Path of the block device or file.
	Path string
	// Size of the volume in bytes, a multiple of 4096. Files need it at Init.
	// For a device, 0 is all of it; another value pins the volume to the size
	// of a smaller peer. At Open, a value other than that of Init is refused.
	Size int64
	// Metadata is "" for metadata at the end of Path (internal), or the file
	// (or device) that has it. The region then begins at its first byte.
	Metadata string
	// Serial is "", or the serial number of the device that is meant: Path may be a link,
	// and lead to another one. A file has none.
	Serial string
}

// Disk is an open volume. Its methods may be called concurrently. Order
// between overlapping requests is the caller's business, as for any disk.
// Every method does all of what it was asked or returns an error.
type Disk struct {
	data     *backing
	md       *backing // the same as data if internal
	size     int64    // of the volume
	mdStart  int64    // of the region, in md
	mdSize   int64
	identity string
	volatile bool
}

// Extent is a part of the volume.
type Extent struct {
	Off, Len int64
	Data     bool // false: a hole, reads as zeroes
}

// Open opens an initialised volume for this process alone. The error wraps
// ErrInUse, ErrSize, one of package meta's (no metadata, newer, torn, damaged,
// invalid), or the system's.
func Open(o Options) (*Disk, error) {
	d, err := openParts(o, os.O_RDWR, true)
	if err != nil {
		return nil, err
	}
	if err := d.findRegion(o); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// openParts opens the backing without looking at what is in it.
func openParts(o Options, mode int, exclusive bool) (*Disk, error) {
	data, err := openBacking(o.Path, mode, exclusive)
	if err != nil {
		return nil, err
	}
	d := &Disk{data: data, md: data}
	d.identity, d.volatile = identify(data)
	if o.Serial != "" && data.block {
		if d.identity, err = withSerial(d.identity, o); err != nil {
			_ = data.close()
			return nil, err
		}
	}
	if o.Metadata == "" {
		return d, nil
	}
	if same, err := data.isFile(o.Metadata); err != nil || same {
		_ = data.close()
		if err == nil {
			err = fmt.Errorf("volume.metadata is the volume itself (%s): leave it out for internal metadata", o.Path)
		}
		return nil, err
	}
	if d.md, err = openBacking(o.Metadata, mode, exclusive); err != nil {
		_ = data.close()
		return nil, err
	}
	return d, nil
}

// findRegion finds the metadata and holds what it says about sizes against
// what is there.
func (d *Disk) findRegion(o Options) error {
	if o.Metadata != "" {
		d.mdStart, d.mdSize = 0, d.md.size
	} else if err := d.locateInternal(o); err != nil {
		return err
	}
	s, _, err := meta.LoadSuper(region{d})
	if err != nil {
		return fmt.Errorf("%s: %w", d.md.path, err)
	}
	switch {
	case s.RegionSize() > d.mdSize:
		return fmt.Errorf("%w: %s has %d bytes for metadata that takes %d: it was cut off", ErrSize, d.md.path, d.mdSize, s.RegionSize())
	case s.VolumeSize > d.data.size:
		return fmt.Errorf("%w: %s has %d bytes now and the volume has %d: the device is smaller than it was at init", ErrSize, d.data.path, d.data.size, s.VolumeSize)
	case d.md == d.data && s.VolumeSize > d.mdStart:
		return fmt.Errorf("%w: %s: the superblock's volume of %d bytes reaches into the metadata at %d", ErrSize, d.data.path, s.VolumeSize, d.mdStart)
	case o.Size != 0 && o.Size != s.VolumeSize:
		return fmt.Errorf("%w: %s was initialised with %d bytes, the configuration says %d", ErrSize, d.data.path, s.VolumeSize, o.Size)
	}
	d.size, d.mdSize = s.VolumeSize, s.RegionSize()
	return nil
}

// Close gives the device back. I/O that still runs ends first, in the
// background; later calls fail with os.ErrClosed.
func (d *Disk) Close() error {
	err := d.data.close()
	if d.md != d.data {
		err = errors.Join(err, d.md.close())
	}
	return err
}

// Size is the volume's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// Identity names the device or file beyond its path, for Super.Identity: see
// identify.
func (d *Disk) Identity() string { return d.identity }

// Volatile says whether a restart of the host may lose what was written and
// not flushed.
func (d *Disk) Volatile() bool { return d.volatile }

// Align is what offset, length and address of a buffer should be multiples of;
// others are copied once more. See Buffer.
func (d *Disk) Align() int { return d.data.align }

// ReadAt fills p from the volume.
func (d *Disk) ReadAt(p []byte, off int64) error {
	if err := within(off, int64(len(p)), d.size); err != nil {
		return err
	}
	return d.data.read(p, off)
}

// WriteAt writes p to the volume. With fua it is durable when WriteAt returns.
func (d *Disk) WriteAt(p []byte, off int64, fua bool) error {
	if err := within(off, int64(len(p)), d.size); err != nil {
		return err
	}
	return d.data.write(p, off, fua)
}

// Zero makes a range of the volume read as zeroes. Its space is given back,
// or with noHole kept, where the backing can do that.
func (d *Disk) Zero(off, n int64, noHole bool) error {
	if err := within(off, n, d.size); err != nil {
		return err
	}
	return d.data.zero(off, n, noHole)
}

// Flush makes durable every write and zero that returned before it was called.
func (d *Disk) Flush() error { return d.data.flush() }

// Allocated says where in a range data may be; the extents are in order and
// without gaps. At most maxExtents are returned, so they may end before the
// range does. A device cannot tell, and is data throughout. A hole stays one
// only as long as nobody writes there: the caller holds the range.
func (d *Disk) Allocated(off, n int64) ([]Extent, error) {
	if err := within(off, n, d.size); err != nil {
		return nil, err
	}
	return d.data.allocated(off, n)
}

// MetaReadAt reads from the metadata region, off 0 being its first byte.
func (d *Disk) MetaReadAt(p []byte, off int64) error {
	if err := within(off, int64(len(p)), d.mdSize); err != nil {
		return err
	}
	return d.md.read(p, d.mdStart+off)
}

// MetaWriteAt writes whole blocks to the metadata region.
func (d *Disk) MetaWriteAt(p []byte, off int64) error {
	if err := within(off, int64(len(p)), d.mdSize); err != nil {
		return err
	}
	if off%meta.BlockSize != 0 || len(p)%meta.BlockSize != 0 {
		return fmt.Errorf("%w: metadata is written in blocks, not %d bytes at %d", ErrBounds, len(p), off)
	}
	return d.md.write(p, d.mdStart+off, false)
}

// MetaFlush is Flush for the region. With internal metadata they are one.
func (d *Disk) MetaFlush() error { return d.md.flush() }

// LoadMeta reads the whole metadata. The error is meta.Load's.
func (d *Disk) LoadMeta() (*meta.State, error) { return meta.Load(region{d}) }

// Inspect reads the metadata of a volume that an agent may have open. What it
// sees is then a moment's mixture, good for a look.
func Inspect(o Options) (*meta.State, error) {
	d, err := openParts(o, os.O_RDONLY, false)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	if err := d.findRegion(o); err != nil {
		return nil, err
	}
	return d.LoadMeta()
}

// region is the metadata region as package meta wants it.
type region struct{ d *Disk }

func (r region) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.d.mdSize {
		return 0, io.EOF
	}
	if err := r.d.MetaReadAt(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (r region) WriteAt(p []byte, off int64) (int, error) {
	if err := r.d.MetaWriteAt(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func within(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrBounds, n, off, size)
	}
	return nil
}
