package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"tandem/blockrepl/meta"
)

// Init writes fresh metadata for a volume that no agent has open. It makes the
// backing file and the metadata file, sparse, if they are missing. s is a
// template: Init fills in VolumeSize, the geometry, Identity and Seq. The data
// are not touched.
//
// Without force it refuses what cannot be undone, and touches nothing then:
// ErrHasMetadata where there is Tandem metadata, sound or not; ErrHasData
// where internal metadata would go onto a device or file that carries a known
// signature, or a metadata file has something else in it. With a metadata file
// the volume's own data is kept, so it is no reason to refuse.
func Init(o Options, force bool, s *meta.Super) (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				os.Remove(path) // empty, made a moment ago
			}
		}
	}()
	for _, path := range []string{o.Path, o.Metadata} {
		if path == "" {
			continue
		}
		if path == o.Path && o.Size <= 0 || inDev(path) {
			// Without a size there is no file to make, and a device that has
			// not appeared yet must not become a file in /dev.
			if _, err := os.Stat(path); err != nil {
				return err
			}
			continue
		}
		ok, err := create(path)
		if err != nil {
			return err
		}
		if ok {
			made = append(made, path)
		}
	}
	d, err := openParts(o, os.O_RDWR, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if !force {
		if err := d.refuse(o); err != nil {
			return err
		}
	}
	if err := d.layOut(o, s); err != nil {
		return err
	}
	s.Identity = d.identity
	if err := s.Validate(); err != nil {
		return err
	}
	if err := d.grow(); err != nil {
		return err
	}
	if err := d.wipeOld(); err != nil {
		return err
	}
	if err := meta.Format(region{d}, s); err != nil {
		return err
	}
	// The trailer last: it says that there is something to find.
	if err := d.md.flush(); err != nil {
		return err
	}
	if d.md == d.data {
		if err := d.writeTrailer(s); err != nil {
			return err
		}
	}
	if err := errors.Join(d.md.flush(), d.data.flush()); err != nil {
		return err
	}
	for _, path := range made {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return err
		}
	}
	return nil
}

// create makes an empty file if there is nothing.
func create(path string) (made bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

// refuse says why metadata must not be written without force.
func (d *Disk) refuse(o Options) error {
	// Internal metadata is looked for also when the new one goes to a file: the
	// volume would then have the old one in its data.
	inside := *d
	inside.md = inside.data
	err := inside.findRegion(Options{Path: o.Path})
	if !errors.Is(err, meta.ErrNoMetadata) {
		return d.hasMetadata(d.data, err)
	}
	if d.md != d.data {
		d.mdSize = d.md.size
		_, _, err := meta.LoadSuper(region{d})
		if !errors.Is(err, meta.ErrNoMetadata) {
			return d.hasMetadata(d.md, err)
		}
		if empty, err := d.md.empty(); err != nil {
			return err
		} else if !empty {
			return fmt.Errorf("%w: %s is not empty and not Tandem metadata; --force overwrites it", ErrHasData, d.md.path)
		}
		return nil
	}
	what, err := findSignature(whole{d.data}, d.data.size)
	if err != nil {
		return err
	}
	if what != "" {
		return fmt.Errorf("%w: %s has %s on it, and internal metadata would overwrite its end; keep the data with volume.metadata: FILE, or give it up with --force", ErrHasData, d.data.path, what)
	}
	return nil
}

// hasMetadata tells the disk's own error, and one about size or form, from
// "there it is".
func (d *Disk) hasMetadata(b *backing, err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%w on %s; --force overwrites it", ErrHasMetadata, b.path)
	case errors.Is(err, ErrSize), errors.Is(err, meta.ErrNewer), errors.Is(err, meta.ErrTorn), errors.Is(err, meta.ErrInvalid):
		return fmt.Errorf("%w on %s, though not in order (%w); --force overwrites it", ErrHasMetadata, b.path, err)
	}
	return err
}

// whole is a backing as an io.ReaderAt.
type whole struct{ b *backing }

func (w whole) ReadAt(p []byte, off int64) (int, error) {
	if err := w.b.read(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// empty says whether the first MiB is zeroes. For a file that was meant to be
// metadata that is enough to notice that it is something else.
func (b *backing) empty() (bool, error) {
	p := make([]byte, min(1<<20, b.size))
	if err := b.read(p, 0); err != nil {
		return false, err
	}
	for _, c := range p {
		if c != 0 {
			return false, nil
		}
	}
	return true, nil
}

// layOut decides on the volume's size and the places, and writes nothing.
func (d *Disk) layOut(o Options, s *meta.Super) error {
	size := o.Size
	if size == 0 {
		switch {
		case !d.data.block:
			return fmt.Errorf("%w: %s is a file: volume.size must be set", ErrSize, o.Path)
		case d.md != d.data:
			size = min(d.data.size&^(meta.SizeAlign-1), meta.MaxVolumeSize)
		default:
			var err error
			if size, err = largestVolume(d.data.size); err != nil {
				return fmt.Errorf("%s: %w", o.Path, err)
			}
		}
	}
	var err error
	s.VolumeSize = size
	if s.BlockShift, s.ExtentShift, s.ALSlots, s.ALRing, err = meta.Geometry(size); err != nil {
		return err
	}
	d.size, d.mdSize = size, s.RegionSize()
	// What there is must hold it; a file is made as long as it takes, and never
	// cut.
	need := size
	if d.md == d.data {
		need = regionAlign + size + d.mdSize + trailerSize
		if !d.data.block {
			if need, err = fileSize(size); err != nil {
				return err
			}
		} else if regionStart(d.data.size, d.mdSize) >= size {
			need = d.data.size
		}
	} else if !d.md.block {
		d.md.size = d.mdSize
	}
	switch {
	case d.data.block && need > d.data.size:
		return fmt.Errorf("%w: %s has %d bytes, a volume of %d takes up to %d", ErrSize, o.Path, d.data.size, size, need)
	case !d.data.block && need < d.data.size:
		return fmt.Errorf("%w: %s has %d bytes, more than the %d that a volume of %d takes: set volume.size, or cut the file off yourself", ErrSize, o.Path, d.data.size, need, size)
	case d.md.block && d.md != d.data && d.md.size < d.mdSize:
		return fmt.Errorf("%w: %s has %d bytes, the metadata takes %d", ErrSize, o.Metadata, d.md.size, d.mdSize)
	}
	if !d.data.block {
		d.data.size = need
	}
	if d.md == d.data {
		d.mdStart = regionStart(d.data.size, d.mdSize)
	}
	return nil
}

// grow gives files the length that layOut decided on.
func (d *Disk) grow() error {
	for _, b := range []*backing{d.data, d.md} {
		if b.block {
			continue
		}
		st, err := b.f.Stat()
		if err != nil {
			return err
		}
		if st.Size() < b.size {
			if err := b.f.Truncate(b.size); err != nil {
				return fmt.Errorf("make %s %d bytes long: %w", b.path, b.size, err)
			}
		}
	}
	return nil
}

// wipeOld takes away the superblocks of a former life that had its region
// somewhere else (another size), so that no later search finds them.
func (d *Disk) wipeOld() error {
	if d.md != d.data {
		return nil
	}
	t, err := d.readTrailer()
	if err == nil && t.regionStart != d.mdStart {
		return d.data.write(make([]byte, 2*meta.BlockSize), t.regionStart, false)
	}
	return nil // nothing of ours, or Format overwrites it
}

func (d *Disk) writeTrailer(s *meta.Super) error {
	b := make([]byte, trailerSize)
	trailer{
		diskID:      s.DiskID,
		regionStart: d.mdStart, regionSize: d.mdSize, volumeSize: d.size, devSize: d.data.size,
	}.encode(b)
	return d.data.write(b, trailerOffset(d.data.size), false)
}

// syncDir makes a new file's name durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// inDev: a file made there by mistake (a device that is not attached yet, a
// slip in its name) would live in memory and be gone with the next boot.
// /dev/shm is memory by intent.
func inDev(path string) bool {
	p := filepath.Clean(path)
	return strings.HasPrefix(p, "/dev/") && !strings.HasPrefix(p, "/dev/shm/")
}
