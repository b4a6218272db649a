package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tandem/blockrepl/meta"
)

const volume = 8<<20 + 4096

func template() *meta.Super {
	return &meta.Super{Cluster: "nfs1", Node: "a", DiskID: 77, Mark: 5}
}

// both runs a test with internal metadata and with a metadata file.
func both(t *testing.T, f func(t *testing.T, o Options)) {
	t.Run("internal", func(t *testing.T) {
		f(t, Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume})
	})
	t.Run("file", func(t *testing.T) {
		dir := t.TempDir()
		f(t, Options{Path: filepath.Join(dir, "a.img"), Size: volume, Metadata: filepath.Join(dir, "a.md")})
	})
}

func initialised(t testing.TB, o Options) *Disk {
	t.Helper()
	if err := Init(o, false, template()); err != nil {
		t.Fatal(err)
	}
	return open(t, o)
}

func open(t testing.TB, o Options) *Disk {
	t.Helper()
	d, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %v with %q", err, want, text)
	}
}

func TestInitOpen(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		s := template()
		must(t, Init(o, false, s))
		d := open(t, o)
		st, err := d.LoadMeta()
		must(t, err)
		if *st.Super != *s || s.VolumeSize != volume || s.Identity != d.Identity() || s.Seq != 2 || st.BadSectors != 0 || st.ALLost || st.SuperLost {
			t.Errorf("%+v", st.Super)
		}
		if d.Size() != volume || !d.Volatile() || d.Align() != 1 || !strings.HasPrefix(d.Identity(), "file:inode=") {
			t.Errorf("size %d, volatile %v, align %d, identity %q", d.Size(), d.Volatile(), d.Align(), d.Identity())
		}
		if d.mdStart%regionAlign != 0 || o.Metadata == "" && d.mdStart < volume {
			t.Errorf("region at %d", d.mdStart)
		}
		// Sparse: the data takes no space.
		if x, err := d.Allocated(0, d.Size()); err != nil || !slices.Equal(x, []Extent{{0, volume, false}}) {
			t.Errorf("allocated %v, %v", x, err)
		}
		if st, err := os.Stat(o.Path); err != nil || st.Mode().Perm() != 0o600 || st.Size()%4096 != 0 {
			t.Errorf("%v", err)
		}
		// The whole volume can be written without touching the metadata.
		p := bytes.Repeat([]byte{0xff}, volume)
		must(t, d.WriteAt(p, 0, false))
		must(t, d.Flush())
		if again, err := d.LoadMeta(); err != nil || *again.Super != *s {
			t.Errorf("after a full write: %v", err)
		}
		must(t, d.Zero(0, volume, false))
		if again, err := d.LoadMeta(); err != nil || *again.Super != *s || again.BadSectors != 0 {
			t.Errorf("after a full zero: %v", err)
		}
		// And the metadata without touching the volume.
		m := bytes.Repeat([]byte{1}, int(s.RegionSize()))
		must(t, d.MetaWriteAt(m, 0))
		must(t, d.MetaFlush())
		got := make([]byte, len(m))
		must(t, d.MetaReadAt(got, 0))
		p = p[:volume]
		must(t, d.ReadAt(p, 0))
		if !bytes.Equal(got, m) || !bytes.Equal(p, make([]byte, volume)) {
			t.Error("metadata write")
		}
		must(t, d.Close())
		wantErr(t, d.Flush(), os.ErrClosed, "")
		wantErr(t, d.ReadAt(p, 0), os.ErrClosed, "")
		wantErr(t, d.WriteAt(p, 0, true), os.ErrClosed, "")
	})
}

func TestBounds(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		d := initialised(t, o)
		p := make([]byte, 8192)
		before, err := os.ReadFile(o.Path)
		must(t, err)
		const huge = 1<<63 - 1
		for _, off := range []int64{-1, -4096, volume - 4096, volume, volume + 1, huge, huge - 4096, -huge - 1} {
			for what, err := range map[string]error{
				"read":       d.ReadAt(p, off),
				"write":      d.WriteAt(p, off, false),
				"fua":        d.WriteAt(p, off, true),
				"zero":       d.Zero(off, 8192, false),
				"long zero":  d.Zero(max(off, 1), huge, false),
				"minus":      d.Zero(0, -1, false),
				"allocated":  func() error { _, err := d.Allocated(off, 8192); return err }(),
				"meta":       d.MetaReadAt(p, off),
				"meta write": d.MetaWriteAt(p, off),
				"end":        d.MetaWriteAt(p, d.mdSize-4096),
				"part":       d.MetaWriteAt(p[:512], 0),
				"odd":        d.MetaWriteAt(p[:4096], 512),
			} {
				if !errors.Is(err, ErrBounds) {
					t.Errorf("%s at %d: %v", what, off, err)
				}
			}
		}
		must(t, d.ReadAt(nil, volume))
		must(t, d.WriteAt(nil, volume, true))
		must(t, d.Zero(volume, 0, false))
		if x, err := d.Allocated(volume, 0); err != nil || len(x) != 0 {
			t.Errorf("%v %v", x, err)
		}
		if after, err := os.ReadFile(o.Path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("the file has changed: %v", err)
		}
	})
}

// The disk against a byte slice, on every kind of backing.
func TestModel(t *testing.T) {
	type kind struct {
		name string
		open func(t *testing.T) *Disk
	}
	file := func(t *testing.T) *Disk {
		return initialised(t, Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume})
	}
	kinds := []kind{
		{"file", file},
		{"nothing supported", func(t *testing.T) *Disk {
			d := file(t)
			d.data.noDsync.Store(true)
			d.data.noPunch.Store(true)
			d.data.noZeroRange.Store(true)
			return d
		}},
		{"no punch", func(t *testing.T) *Disk {
			d := file(t)
			d.data.noPunch.Store(true)
			return d
		}},
		{"aligned 512", func(t *testing.T) *Disk {
			d := file(t)
			d.data.setAlign(512)
			return d
		}},
		{"aligned 4096", func(t *testing.T) *Disk {
			d := file(t)
			d.data.setAlign(4096)
			return d
		}},
		{"loop 512", func(t *testing.T) *Disk { return open(t, loopVolume(t, 512)) }},
		{"loop 4096", func(t *testing.T) *Disk { return open(t, loopVolume(t, 4096)) }},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			d := k.open(t)
			rnd := rand.New(rand.NewPCG(3, 4))
			model := make([]byte, d.Size())
			buf := Buffer(4 << 20)
			pick := func() (off, n int64) {
				n = rnd.Int64N(300 << 10)
				switch rnd.IntN(6) {
				case 0:
					n = rnd.Int64N(600)
				case 1:
					n = 1<<20 + rnd.Int64N(2<<20)
				}
				off = rnd.Int64N(d.Size() - n)
				if rnd.IntN(2) == 0 {
					off, n = off&^511, n&^511
				}
				return off, n
			}
			for i := range 400 {
				off, n := pick()
				p := buf[:n]
				if rnd.IntN(3) == 0 { // an address that O_DIRECT does not take
					p = buf[1 : 1+n]
				}
				switch op := rnd.IntN(5); op {
				case 0, 1:
					for j := range p {
						p[j] = byte(i + j*7)
					}
					must(t, d.WriteAt(p, off, op == 1))
					copy(model[off:], p)
				case 2:
					must(t, d.Zero(off, n, rnd.IntN(2) == 0))
					clear(model[off : off+n])
				case 3:
					clear(p)
					must(t, d.ReadAt(p, off))
					if !bytes.Equal(p, model[off:off+n]) {
						t.Fatalf("step %d: %d bytes at %d differ", i, n, off)
					}
				case 4:
					must(t, d.Flush())
					x, err := d.Allocated(off, n)
					must(t, err)
					at := off
					for _, e := range x {
						if e.Off != at || e.Len <= 0 {
							t.Fatalf("step %d: extents %v of %d at %d", i, x, n, off)
						}
						at += e.Len
						if !e.Data && !bytes.Equal(model[e.Off:at], make([]byte, e.Len)) {
							t.Fatalf("step %d: a hole %v with data", i, e)
						}
					}
					if at != off+n {
						t.Fatalf("step %d: extents %v of %d at %d", i, x, n, off)
					}
				}
			}
			all := make([]byte, d.Size())
			must(t, d.ReadAt(all, 0))
			if !bytes.Equal(all, model) {
				t.Error("the volume differs at the end")
			}
			if st, err := d.LoadMeta(); err != nil || st.BadSectors != 0 || st.SuperLost || st.ALLost {
				t.Errorf("metadata: %+v, %v", st, err)
			}
		})
	}
}

// Neighbours in one logical block do not undo each other.
func TestUnalignedNeighbours(t *testing.T) {
	d := initialised(t, Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume})
	d.data.setAlign(4096)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for round := range 200 {
				p := bytes.Repeat([]byte{byte(round)}, 512)
				if err := d.WriteAt(p, int64(i)*512, round%50 == 0); err != nil {
					t.Error(err)
				}
				if err := d.ReadAt(p, int64(i)*512); err != nil || p[0] != byte(round) || p[511] != byte(round) {
					t.Errorf("writer %d, round %d: %d %v", i, round, p[0], err)
				}
			}
		})
	}
	wg.Wait()
}

func TestZeroMakesHoles(t *testing.T) {
	d := initialised(t, Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume})
	must(t, d.WriteAt(bytes.Repeat([]byte{1}, 4<<20), 0, false))
	must(t, d.Flush())
	if d.data.noPunch.Load() {
		t.Skip("no holes on this filesystem")
	}
	used := blocks(t, d)
	must(t, d.Zero(1<<20, 1<<20, true))
	if n := blocks(t, d); n < used {
		t.Errorf("noHole: %d blocks of %d", n, used)
	}
	must(t, d.Zero(2<<20, 1<<20, false))
	must(t, d.Flush())
	if n := blocks(t, d); n > used-2000 {
		t.Errorf("hole: %d blocks of %d", n, used)
	}
	x, err := d.Allocated(2<<20-4096, 2<<20)
	if err != nil || !slices.Contains(x, Extent{2 << 20, 1 << 20, false}) && !slices.Contains(x, Extent{2<<20 - 4096, 1<<20 + 4096, false}) {
		t.Errorf("%v %v", x, err)
	}
}

func blocks(t *testing.T, d *Disk) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, d.data.control(func(fd int) error { return unix.Fstat(fd, &st) }))
	return st.Blocks
}

// The answer is bounded, however many holes there are.
func TestAllocatedBounded(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: 64 << 20}
	d := initialised(t, o)
	for off := int64(0); off < d.Size(); off += 8192 {
		must(t, d.WriteAt([]byte{1}, off, false))
	}
	x, err := d.Allocated(0, d.Size())
	if err != nil || len(x) == 0 || len(x) > maxExtents+1 {
		t.Fatalf("%d extents, %v", len(x), err)
	}
	for i, e := range x[1:] {
		if e.Off != x[i].Off+x[i].Len {
			t.Fatalf("a gap at %d", e.Off)
		}
	}
}

func TestSecondOpen(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		d := initialised(t, o)
		_, err := Open(o)
		wantErr(t, err, ErrInUse, "another agent")
		wantErr(t, Init(o, true, template()), ErrInUse, "another agent")
		// Through another name it is the same file.
		link := o
		link.Path = o.Path + ".link"
		must(t, os.Link(o.Path, link.Path))
		_, err = Open(link)
		wantErr(t, err, ErrInUse, link.Path)
		if o.Metadata != "" {
			other := Options{Path: filepath.Join(t.TempDir(), "b.img"), Size: volume, Metadata: o.Metadata}
			wantErr(t, Init(other, true, template()), ErrInUse, o.Metadata)
			if _, err := os.Stat(other.Path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a refused init left %s: %v", other.Path, err)
			}
		}
		if st, err := Inspect(o); err != nil || st.Super.DiskID != 77 {
			t.Errorf("inspect: %v", err)
		}
		must(t, d.Close())
		open(t, o)
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	_, err := Open(Options{Path: path})
	wantErr(t, err, os.ErrNotExist, path)
	_, err = Open(Options{Path: dir})
	if err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("a folder: %v", err)
	}
	must(t, unix.Mkfifo(path, 0o600))
	if _, err = Open(Options{Path: path}); err == nil {
		t.Error("a FIFO was opened")
	}
	_, err = Open(Options{Path: "/dev/null"})
	if err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("/dev/null: %v", err)
	}
	img := filepath.Join(dir, "img")
	must(t, os.WriteFile(img, nil, 0o600))
	for _, size := range []int64{0, 100, 4096, 1 << 20, 3 << 20} {
		must(t, os.Truncate(img, size))
		_, err = Open(Options{Path: img})
		wantErr(t, err, meta.ErrNoMetadata, "never initialised")
	}
	_, err = Open(Options{Path: img, Metadata: img})
	if err == nil || !strings.Contains(err.Error(), "volume itself") {
		t.Errorf("metadata on itself: %v", err)
	}
	_, err = Open(Options{Path: img, Metadata: img + ".md"})
	wantErr(t, err, os.ErrNotExist, ".md")
	for _, size := range []int64{0, 100, 8192, 1 << 20} {
		must(t, os.WriteFile(img+".md", make([]byte, size), 0o600))
		_, err = Open(Options{Path: img, Metadata: img + ".md"})
		wantErr(t, err, meta.ErrNoMetadata, ".md")
	}
}

// What a damaged metadata region says at open.
func TestBadMetadata(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		d := initialised(t, o)
		start, size, path := d.mdStart, d.mdSize, d.md.path
		must(t, d.Close())
		good, err := os.ReadFile(path)
		must(t, err)
		for _, c := range []struct {
			name  string
			spoil func(region []byte)
			want  error
		}{
			{"sound", func([]byte) {}, nil},
			{"one copy rotten", func(r []byte) { r[0] ^= 1 }, nil},
			{"both rotten", func(r []byte) { r[600] ^= 1; r[4096+600] ^= 1 }, meta.ErrDamaged},
			{"torn", func(r []byte) {
				s := template()
				s.Identity = "x"
				s.VolumeSize, s.BlockShift, s.ExtentShift, s.ALSlots, s.ALRing, s.Seq = volume, 12, 20, 48, 16, 3
				b := make([]byte, 4096)
				s.Encode(b)
				copy(r[512:4096], b[512:]) // seq 2 and 3
				copy(r[4096+512:8192], b[512:])
			}, meta.ErrTorn},
			{"zero", func(r []byte) { clear(r) }, meta.ErrNoMetadata},
			{"foreign", func(r []byte) { copy(r, bytes.Repeat([]byte("qwer"), 2048)) }, meta.ErrNoMetadata},
		} {
			b := bytes.Clone(good)
			c.spoil(b[start : start+size])
			must(t, os.WriteFile(path, b, 0o600))
			d, err := Open(o)
			if !errors.Is(err, c.want) {
				t.Errorf("%s: %v", c.name, err)
			}
			if err == nil {
				st, err := d.LoadMeta()
				if err != nil || st.SuperLost != (c.name != "sound") {
					t.Errorf("%s: %v", c.name, err)
				}
				d.Close()
			} else if !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v does not name %s", c.name, err, path)
			}
			// Init without force: never over something of ours.
			if err := Init(o, false, template()); errors.Is(c.want, meta.ErrNoMetadata) != (err == nil) && c.name != "foreign" {
				t.Errorf("%s: init: %v", c.name, err)
			}
		}
	})
}

func TestNewerMetadata(t *testing.T) {
	// A trailer of a later version; a later superblock is package meta's test.
	o := Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume}
	d := initialised(t, o)
	b := make([]byte, trailerSize)
	off := trailerOffset(d.data.size)
	must(t, d.data.read(b, off))
	b[8] = 2
	sum := trailerSum(b)
	b[4092], b[4093], b[4094], b[4095] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	must(t, d.data.write(b, off, false))
	must(t, d.Close())
	_, err := Open(o)
	wantErr(t, err, meta.ErrNewer, o.Path)
	wantErr(t, Init(o, false, template()), ErrHasMetadata, "newer")
	must(t, Init(o, true, template()))
	open(t, o)
}

func TestSizes(t *testing.T) {
	both(t, func(t *testing.T, o Options) {
		d := initialised(t, o)
		full, region := d.data.size, d.mdStart
		must(t, d.Close())
		other := o
		other.Size = volume + 4096
		_, err := Open(other)
		wantErr(t, err, ErrSize, "the configuration says")
		anySize := o
		anySize.Size = 0
		d = open(t, anySize)
		must(t, d.Close())
		if o.Metadata != "" {
			must(t, os.Truncate(o.Path, volume-4096))
			_, err = Open(o)
			wantErr(t, err, ErrSize, "smaller than it was at init")
			must(t, os.Truncate(o.Path, volume))
			st, err := os.Stat(o.Metadata)
			must(t, err)
			must(t, os.Truncate(o.Metadata, st.Size()-4096))
			_, err = Open(o)
			wantErr(t, err, ErrSize, "cut off")
			return
		}
		good, err := os.ReadFile(o.Path)
		must(t, err)
		for _, c := range []struct {
			size int64
			want error
			text string
		}{
			{full, nil, ""},
			{full - 16384, ErrSize, "smaller than it was at init"},
			{region + 8192, ErrSize, "smaller than it was at init"},
			// The superblock went too, but the configuration knows the size.
			{region, ErrSize, "cut off"},
			{volume / 2, ErrSize, "cut off"},
			{full + 16384, ErrSize, "has grown"},
			{full + 1<<20, ErrSize, "has grown"},
			// Only the trailer went, or is not at the end: nothing of value.
			{full - 4096, nil, ""},
			{full + 100, nil, ""},
			{full + 4096, nil, ""},
		} {
			must(t, os.WriteFile(o.Path, good, 0o600))
			must(t, os.Truncate(o.Path, c.size))
			d, err := Open(o)
			if c.want == nil {
				must(t, err)
				must(t, d.Close())
				continue
			}
			if err == nil {
				d.Close()
				t.Errorf("%d bytes of %d: opened", c.size, full)
			}
			wantErr(t, err, c.want, c.text)
			if c.text != "cut off" {
				wantErr(t, Init(o, false, template()), ErrHasMetadata, "")
			}
		}
		// A rotten or torn trailer alone costs nothing.
		for cut := 0; cut < trailerSize; cut += 512 {
			b := bytes.Clone(good)
			clear(b[len(b)-trailerSize+cut:])
			must(t, os.WriteFile(o.Path, b, 0o600))
			d, err := Open(o)
			if err != nil || d.mdStart != region || d.Size() != volume {
				t.Errorf("trailer cut at %d: %v", cut, err)
			}
			d.Close()
			wantErr(t, Init(o, false, template()), ErrHasMetadata, "--force")
		}
	})
}

func TestTrailer(t *testing.T) {
	sound := trailer{diskID: 1, regionStart: 1 << 20, regionSize: 86016, volumeSize: 1 << 20, devSize: 2 << 20}
	b := make([]byte, trailerSize)
	sound.encode(b)
	if got, err := decodeTrailer(b); err != nil || got != sound {
		t.Errorf("%+v %v", got, err)
	}
	for name, spoil := range map[string]func(*trailer){
		"start":       func(t *trailer) { t.regionStart = 4096 },
		"negative":    func(t *trailer) { t.regionStart = -regionAlign },
		"volume":      func(t *trailer) { t.volumeSize = t.regionStart + 1 },
		"no volume":   func(t *trailer) { t.volumeSize = 0 },
		"region":      func(t *trailer) { t.regionSize = 2 << 20 },
		"huge region": func(t *trailer) { t.regionSize = 1<<63 - 1 },
		"device":      func(t *trailer) { t.devSize = 0 },
		"huge device": func(t *trailer) { t.devSize = -1 << 63 },
	} {
		bad := sound
		spoil(&bad)
		bad.encode(b)
		if _, err := decodeTrailer(b); !errors.Is(err, meta.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	sound.encode(b)
	b[100] = 1
	if _, err := decodeTrailer(b); !errors.Is(err, meta.ErrDamaged) {
		t.Errorf("%v", err)
	}
}

func FuzzTrailer(f *testing.F) {
	b := make([]byte, trailerSize)
	trailer{diskID: 1, regionStart: 1 << 20, regionSize: 86016, volumeSize: 1 << 20, devSize: 2 << 20}.encode(b)
	f.Add(b[:64])
	f.Fuzz(func(t *testing.T, head []byte) {
		b := make([]byte, trailerSize)
		copy(b, trailerMagic)
		if len(head) > 8 {
			copy(b[8:], head[8:])
		}
		sum := trailerSum(b)
		b[4092], b[4093], b[4094], b[4095] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
		got, err := decodeTrailer(b)
		if err != nil {
			return
		}
		again := make([]byte, trailerSize)
		if got.encode(again); !bytes.Equal(again, b) {
			t.Fatalf("%+v", got)
		}
		if got.volumeSize > got.regionStart || got.regionStart+got.regionSize > trailerOffset(got.devSize) {
			t.Fatalf("%+v", got)
		}
	})
}

func TestLayout(t *testing.T) {
	for _, dev := range []int64{1 << 20, 1<<20 + 512, 10 << 20, 1 << 30, 1<<40 + 12345, 16<<40 + 1<<30, 1 << 50} {
		v, err := largestVolume(dev)
		if err != nil {
			t.Errorf("%d: %v", dev, err)
			continue
		}
		size, err := regionSize(v)
		start := regionStart(dev, size)
		if err != nil || v%meta.SizeAlign != 0 || start < v || start%regionAlign != 0 || start+size > trailerOffset(dev) {
			t.Errorf("%d: volume %d, region %d at %d, %v", dev, v, size, start, err)
		}
		if v < dev/2 && v < meta.MaxVolumeSize && dev > 1<<20 {
			t.Errorf("%d: only %d", dev, v)
		}
	}
	for _, dev := range []int64{0, 1, 4096, 90000} {
		if _, err := largestVolume(dev); !errors.Is(err, ErrSize) {
			t.Errorf("%d: %v", dev, err)
		}
	}
	for _, v := range []int64{4096, volume, 1 << 30, 1 << 40, 16 << 40} {
		d, err := fileSize(v)
		size, _ := regionSize(v)
		if err != nil || regionStart(d, size) < v || d > v+size+64<<10 {
			t.Errorf("%d: file of %d, %v", v, d, err)
		}
	}
}

func TestInitRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.img")
	o := Options{Path: path, Size: volume}
	ext := Options{Path: path, Size: volume, Metadata: filepath.Join(dir, "a.md")}
	if err := Init(Options{Path: path}, false, template()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no size: %v", err)
	}
	if err := Init(Options{Path: "/dev/tandem-is-not-there", Size: volume}, false, template()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in /dev: %v", err)
	}
	bad := template()
	bad.Node = ""
	wantErr(t, Init(o, false, bad), meta.ErrInvalid, "node")
	wantErr(t, Init(Options{Path: path, Size: 1000}, false, template()), meta.ErrInvalid, "4096")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("refused inits left %v %v", left, err)
	}

	// A filesystem stays, byte for byte, without force.
	img := make([]byte, volume)
	rnd := rand.New(rand.NewPCG(5, 6))
	for i := 0; i < len(img); i += 97 {
		img[i] = byte(rnd.Uint32())
	}
	copy(img[0x438:], "\x53\xef")
	must(t, os.WriteFile(path, img, 0o600))
	wantErr(t, Init(o, false, template()), ErrHasData, "ext2/3/4")
	if b, _ := os.ReadFile(path); !bytes.Equal(b, img) {
		t.Fatal("a refused init wrote")
	}
	// With a metadata file the data is kept, and no reason to refuse.
	must(t, Init(ext, false, template()))
	if b, _ := os.ReadFile(path); !bytes.Equal(b, img) {
		t.Fatal("init with a metadata file changed the data")
	}
	wantErr(t, Init(ext, false, template()), ErrHasMetadata, ext.Metadata)
	must(t, Init(ext, true, template()))
	// A metadata file that is something else.
	must(t, os.WriteFile(ext.Metadata, []byte("my thesis"), 0o600))
	wantErr(t, Init(ext, false, template()), ErrHasData, "not empty")
	// By force: the volume's part is kept all the same.
	must(t, Init(o, true, template()))
	d := open(t, o)
	got := make([]byte, volume)
	must(t, d.ReadAt(got, 0))
	if !bytes.Equal(got, img) {
		t.Error("the data changed")
	}
	must(t, d.Close())
	wantErr(t, Init(o, false, template()), ErrHasMetadata, path)
	os.Remove(ext.Metadata)
	wantErr(t, Init(ext, false, template()), ErrHasMetadata, path) // the old one is in the data
	// Never cut a file off.
	small := Options{Path: path, Size: 1 << 20}
	wantErr(t, Init(small, true, template()), ErrSize, "cut the file off yourself")
	wantErr(t, Init(Options{Path: path, Metadata: ext.Metadata}, true, template()), ErrSize, "volume.size")
}

func TestSignatures(t *testing.T) {
	const size = 4<<20 + 1536
	for _, s := range signatures() {
		for i := range max(s.repeat, 1) {
			img := make([]byte, size)
			at := s.off + i*s.step
			if s.off < 0 {
				at = size/s.base*s.base + s.off
			}
			copy(img[at:], s.magic)
			if what, err := findSignature(bytes.NewReader(img), size); err != nil || what != s.what {
				t.Errorf("%s at %d: %q %v", s.what, at, what, err)
			}
		}
	}
	for _, n := range []int64{0, 1, 511, 512, 4096, 70000} {
		if what, err := findSignature(bytes.NewReader(make([]byte, n)), n); err != nil || what != "" {
			t.Errorf("%d zeroes: %q %v", n, what, err)
		}
	}
	if _, err := findSignature(failing{}, 1<<20); !errors.Is(err, unix.EIO) {
		t.Errorf("%v", err)
	}
	// What the tools of this machine really write.
	for tool, args := range map[string][]string{"mkfs.ext4": {"-q", "-F"}, "mkswap": nil} {
		bin, err := exec.LookPath(tool)
		if err != nil {
			continue
		}
		path := filepath.Join(t.TempDir(), tool)
		must(t, os.WriteFile(path, make([]byte, volume), 0o600))
		if out, err := exec.Command(bin, append(args, path)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", tool, err, out)
		}
		wantErr(t, Init(Options{Path: path, Size: volume}, false, template()), ErrHasData, map[string]string{"mkfs.ext4": "ext2/3/4", "mkswap": "swap"}[tool])
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, unix.EIO }

// Another size by force: the region of the former life is not found again.
func TestInitForceOtherSize(t *testing.T) {
	o := loopDevice(t, 500<<20, 512)
	must(t, Init(Options{Path: o.Path, Size: 4 << 20}, false, template()))
	old := open(t, Options{Path: o.Path})
	oldStart := old.mdStart
	must(t, old.Close())
	s := template()
	s.DiskID = 99
	must(t, Init(o, true, s))
	d := open(t, o)
	if d.mdStart == oldStart {
		t.Fatal("the test needs another place")
	}
	must(t, d.data.write(make([]byte, trailerSize), trailerOffset(d.data.size), false))
	must(t, d.Close())
	d = open(t, o)
	if st, err := d.LoadMeta(); err != nil || st.Super.DiskID != 99 {
		t.Errorf("%v", err)
	}
}

func TestFlushFailureSticks(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume}
	d := initialised(t, o)
	fail := true
	d.data.datasync = func(fd int) error {
		if fail {
			return unix.EIO
		}
		return unix.Fdatasync(fd)
	}
	wantErr(t, d.Flush(), unix.EIO, o.Path)
	fail = false
	wantErr(t, d.Flush(), unix.EIO, "earlier flush")
	wantErr(t, d.MetaFlush(), ErrFailed, "")
	wantErr(t, d.WriteAt(make([]byte, 512), 0, true), ErrFailed, "")
	must(t, d.ReadAt(make([]byte, 512), 0))
	must(t, d.Close())
	d = open(t, o)
	must(t, d.Flush())
}

// A flush covers what was written before it was called, not before it ran:
// one call of fdatasync may serve many, but only if it began late enough.
func TestFlushShared(t *testing.T) {
	d := initialised(t, Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume})
	var syncs int
	begun, goOn := make(chan struct{}), make(chan struct{})
	d.data.datasync = func(int) error {
		syncs++
		if syncs == 1 {
			close(begun)
			<-goOn
		}
		return nil
	}
	var wg sync.WaitGroup
	wg.Go(func() { must(t, d.Flush()) })
	<-begun
	const waiters = 10
	for range waiters {
		wg.Go(func() { must(t, d.Flush()) })
	}
	for d.data.ticket.Load() < waiters+1 {
		runtime.Gosched()
	}
	close(goOn)
	wg.Wait()
	if syncs != 2 {
		t.Errorf("%d calls of fdatasync for 11 flushes", syncs)
	}
}

// Without RWF_DSYNC, a FUA write is a write and a flush, whose error counts.
func TestFUAFallback(t *testing.T) {
	d := initialised(t, Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume})
	d.data.noDsync.Store(true)
	var syncs int
	d.data.datasync = func(int) error { syncs++; return nil }
	must(t, d.WriteAt([]byte("x"), 5, true))
	if syncs != 1 {
		t.Errorf("%d flushes", syncs)
	}
	d.data.datasync = func(int) error { return unix.EIO }
	wantErr(t, d.WriteAt([]byte("x"), 5, true), unix.EIO, "")
}

func TestParallelFUA(t *testing.T) {
	d := initialised(t, Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 8 {
				if err := d.WriteAt(bytes.Repeat([]byte{byte(i)}, 4096), int64(i*8+j)*4096, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	p := make([]byte, 16*8*4096)
	must(t, d.ReadAt(p, 0))
	for i := range 16 * 8 {
		if p[i*4096] != byte(i/8) {
			t.Fatalf("block %d", i)
		}
	}
}

// A backing file that is cut off under us is an error, not zeroes.
func TestCutOffUnderUs(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume}
	d := initialised(t, o)
	must(t, os.Truncate(o.Path, 4096))
	wantErr(t, d.ReadAt(make([]byte, 8192), 0), io.ErrUnexpectedEOF, o.Path)
	if x, err := d.Allocated(0, d.Size()); err != nil || len(x) == 0 {
		t.Errorf("%v %v", x, err)
	}
}

// A full filesystem is an error of the write, whatever kind.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	d := initialised(t, Options{Path: filepath.Join(dir, "a.img"), Size: volume})
	t.Cleanup(func() { d.Close() })
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = 1
	}
	var err error
	for off := int64(0); off+1<<20 <= volume && err == nil; off += 1 << 20 {
		err = d.WriteAt(p, off, off&(1<<20) != 0)
	}
	wantErr(t, err, unix.ENOSPC, "")
	// tmpfs has no ZERO_RANGE: zeroes are written, and there is no room.
	wantErr(t, d.Zero(4<<20, 3<<20, true), unix.ENOSPC, "")
	// Giving space back works.
	must(t, d.Zero(0, volume, false))
	must(t, d.WriteAt(p, 0, false))
}

// loopDevice is a loop device over a sparse file; the test is skipped where
// there is none.
func loopDevice(t testing.TB, size int64, sector int) Options {
	t.Helper()
	losetup, err := exec.LookPath("losetup")
	if err != nil || os.Getuid() != 0 {
		t.Skip("no losetup, or not root")
	}
	backing := filepath.Join(t.TempDir(), "loop.img")
	must(t, os.WriteFile(backing, nil, 0o600))
	must(t, os.Truncate(backing, size))
	out, err := exec.Command(losetup, "--find", "--show", "--sector-size", fmt.Sprint(sector), backing).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v %s", err, out)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command(losetup, "-d", path).Run() })
	return Options{Path: path}
}

func loopVolume(t testing.TB, sector int) Options {
	t.Helper()
	o := loopDevice(t, 16<<20, sector)
	must(t, Init(o, false, template()))
	return o
}

func TestBlockDevice(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			o := loopVolume(t, sector)
			d := open(t, o)
			if d.Align() != sector || d.Size()%meta.SizeAlign != 0 || d.Size() < 15<<20 || !d.data.block {
				t.Errorf("align %d, size %d", d.Align(), d.Size())
			}
			if d.Identity() == "" || strings.HasPrefix(d.Identity(), "file:") {
				t.Errorf("identity %q", d.Identity())
			}
			_, err := Open(o)
			wantErr(t, err, ErrInUse, "mounted")
			if st, err := Inspect(o); err != nil || st.Super.Identity != d.Identity() {
				t.Errorf("inspect: %v", err)
			}
			if x, err := d.Allocated(4096, 8192); err != nil || !slices.Equal(x, []Extent{{4096, 8192, true}}) {
				t.Errorf("%v %v", x, err)
			}
			must(t, d.Close())
			wantErr(t, Init(o, false, template()), ErrHasMetadata, o.Path)
			wantErr(t, Init(Options{Path: o.Path, Size: 64 << 20}, true, template()), ErrSize, o.Path)
			must(t, Init(Options{Path: o.Path, Size: 4 << 20}, true, template()))
			if d := open(t, Options{Path: o.Path}); d.Size() != 4<<20 {
				t.Errorf("pinned to %d", d.Size())
			}
		})
	}
}

func TestMountedDevice(t *testing.T) {
	o := loopDevice(t, 32<<20, 512)
	if out, err := exec.Command("mkfs.ext4", "-q", o.Path).CombinedOutput(); err != nil {
		t.Skipf("mkfs: %v %s", err, out)
	}
	wantErr(t, Init(o, false, template()), ErrHasData, "ext2/3/4")
	dir := t.TempDir()
	if err := unix.Mount(o.Path, dir, "ext4", 0, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, 0)
	wantErr(t, Init(o, true, template()), ErrInUse, "mounted")
	_, err := Open(o)
	wantErr(t, err, ErrInUse, o.Path)
}

// A device as its own metadata's file, and one with data kept.
func TestDeviceWithMetadataFile(t *testing.T) {
	o := loopDevice(t, 16<<20, 512)
	if out, err := exec.Command("mkfs.ext4", "-q", o.Path).CombinedOutput(); err != nil {
		t.Skipf("mkfs: %v %s", err, out)
	}
	o.Metadata = filepath.Join(t.TempDir(), "md")
	must(t, Init(o, false, template()))
	if d := open(t, o); d.Size() != 16<<20 {
		t.Errorf("size %d", d.Size())
	}
	md := loopDevice(t, 1<<20, 4096)
	p := Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume, Metadata: md.Path}
	d := initialised(t, p)
	if st, err := d.LoadMeta(); err != nil || st.Super.VolumeSize != volume {
		t.Errorf("%v", err)
	}
}

func TestIdentifyDevice(t *testing.T) {
	root := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, path), []byte(text+"\n"), 0o644))
	}
	put("nvme1n1/device/serial", "vol0123456789abcdef0  ")
	put("nvme1n1/wwid", "nvme.1d0f-766f6c")
	put("nvme1n1/queue/write_cache", "write through")
	put("nvme1n1/nvme1n1p2/partition", "2")
	put("vda/serial", "data-a")
	put("vda/queue/write_cache", "write back")
	put("sda/device/wwid", "t10.ATA  A  B")
	put("dm-0/dm/uuid", "LVM-abc")
	put("loop0/size", "1")
	must(t, os.Symlink(filepath.Join(root, "nvme1n1/nvme1n1p2"), filepath.Join(root, "259:3")))
	for sys, want := range map[string]string{
		"nvme1n1": "serial:vol0123456789abcdef0",
		"259:3":   "serial:vol0123456789abcdef0,part=2",
		"vda":     "serial:data-a",
		"sda":     "wwid:t10.ATA__A__B",
		"dm-0":    "dm:LVM-abc",
		"loop0":   "dev:7:0",
	} {
		if got := clean(identifyDevice(filepath.Join(root, sys), filepath.Join(root, "no-by-id"), "7:0")); got != want {
			t.Errorf("%s: %q, want %q", sys, got, want)
		}
	}
	for sys, want := range map[string]bool{"nvme1n1": false, "259:3": false, "vda": true, "loop0": true} {
		if got := volatileDevice(filepath.Join(root, sys)); got != want {
			t.Errorf("%s: volatile %v", sys, got)
		}
	}
	if got := clean(strings.Repeat("é\x00", 300)); len(got) != maxIdentity {
		t.Errorf("%d bytes", len(got))
	}
	// The by-id link, on a real device.
	o := loopDevice(t, 1<<20, 512)
	var st unix.Stat_t
	must(t, unix.Stat(o.Path, &st))
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	byID := t.TempDir()
	for _, name := range []string{"z", "loop-x", "m"} {
		must(t, os.Symlink(o.Path, filepath.Join(byID, name)))
	}
	must(t, os.Symlink("/dev/null", filepath.Join(byID, "a")))
	if got := identifyDevice(filepath.Join(root, "loop0"), byID, dev); got != "by-id:loop-x" {
		t.Errorf("%q", got)
	}
}

// The identity of a file changes when it is another file under its name.
func TestFileIdentity(t *testing.T) {
	dir := t.TempDir()
	o := Options{Path: filepath.Join(dir, "a.img"), Size: volume, Metadata: filepath.Join(dir, "a.md")}
	d := initialised(t, o)
	id := d.Identity()
	must(t, d.Close())
	if d = open(t, o); d.Identity() != id {
		t.Errorf("%q, then %q", id, d.Identity())
	}
	must(t, d.Close())
	b, err := os.ReadFile(o.Path)
	must(t, err)
	must(t, os.WriteFile(o.Path, b, 0o600))
	if d = open(t, o); d.Identity() != id {
		t.Errorf("rewritten: %q, then %q", id, d.Identity())
	}
	must(t, d.Close())
	must(t, os.Remove(o.Path))
	must(t, os.WriteFile(o.Path, b, 0o600))
	if d = open(t, o); d.Identity() == id {
		t.Error("another file has the same identity")
	}
}

// A link that leads to another volume is noticed.
func TestSerial(t *testing.T) {
	o := Options{Path: "/dev/x", Serial: "vol0123456789abcdef0"}
	for identity, want := range map[string]string{
		"serial:vol0123456789abcdef0": "serial:vol0123456789abcdef0",
		"dev:7:0":                     "serial:vol0123456789abcdef0",
		"by-id:nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0": "serial:vol0123456789abcdef0",
		"wwid:nvme.1d0f-1":                   "wwid:nvme.1d0f-1",
		"serial:vol0123456789abcdef1":        "",
		"serial:vol0123456789abcdef0,part=1": "",
	} {
		got, err := withSerial(identity, o)
		if got != want || (want == "") != errors.Is(err, ErrOther) {
			t.Errorf("%s: %q %v", identity, got, err)
		}
	}
}

// A device is named by the serial number that it is to have, a file by itself.
func TestSerialInMetadata(t *testing.T) {
	o := Options{Path: filepath.Join(t.TempDir(), "a.img"), Size: volume, Serial: "vol01234567"}
	d := initialised(t, o)
	if !strings.HasPrefix(d.Identity(), "file:") {
		t.Error(d.Identity())
	}
	must(t, d.Close())

	o = loopDevice(t, 16<<20, 512)
	link := filepath.Join(t.TempDir(), "nvme-Amazon_Elastic_Block_Store_vol01234567")
	must(t, os.Symlink(o.Path, link))
	o.Path, o.Serial = link, "vol01234567"
	d = initialised(t, o)
	st, err := d.LoadMeta()
	must(t, err)
	if st.Super.Identity != "serial:vol01234567" {
		t.Error(st.Super.Identity)
	}
	must(t, d.Close())
}
