// Package fileops does random operations on files and knows what must come of them.
//
// A seed draws all operations: reads, writes, appends, truncations, writes and reads through
// shared memory, punched holes, renames within and between folders and over other files,
// creations, removals, fsync, fdatasync, and the forgetting of pages. A model in memory has the
// names and every byte. Each read is compared with it, and at the end everything is.
//
// It is for filesystems that must not notice what happens below them: a run over NFS goes on
// while its server is replaced by another.
package fileops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxFiles  = 12
	maxSize   = 512 << 10 // bytes of a file
	maxLength = 48 << 10
	story     = 12 // operations that a mismatch tells of its file
)

// Options of a run.
type Options struct {
	Dir   string // is made, and must not be there
	Seed  uint64
	Count int  // operations, the comparisons of everything not counted
	Punch bool // the filesystem can punch holes; NFS can from version 4.2 on

	// Repeats is how many renames and removals may be told that the name is not there although they
	// have been done: a client of NFS asks again whom it has had no answer from, and the server may
	// be another by then. What they did is looked at.
	Repeats int

	// Enough is asked after Count operations, and then now and again: the seed's operations go on
	// until it says so. Nil says so at once.
	Enough func() bool
}

// ErrMismatch means that something else was there than was written.
var ErrMismatch = errors.New("mismatch")

// Every so many operations progress says so.
const Every = 50

// readAll is how many operations there are between two comparisons of everything. What is read
// otherwise is mostly in the page cache, and what is overwritten or removed before the end would
// never be seen as the server has it.
const readAll = 500

// Run does the operations. It tells progress "op NUMBER" every 50, after they have been done,
// and "repeated OPERATION" for one of Options.Repeats; a line with each call.
func Run(ctx context.Context, o Options, progress io.Writer) error {
	for d := range folders {
		if err := os.MkdirAll(filepath.Join(o.Dir, folderName(d)), 0o755); err != nil {
			return err
		}
	}
	names, err := (folder{o.Dir}).list()
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return fmt.Errorf("%s is not empty: %v", o.Dir, names)
	}
	return run(ctx, folder{o.Dir}, o, progress)
}

func run(ctx context.Context, sys system, o Options, progress io.Writer) error {
	c := &checker{sys: sys, r: rand.New(rand.NewPCG(o.Seed, 0)), punch: o.Punch, repeats: o.Repeats, progress: progress, files: make(map[string]*model)}
	defer c.closeAll()
	for c.n = 0; c.n < o.Count || o.Enough != nil && (c.n%Every != 0 || !o.Enough()); c.n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := c.step(); err != nil {
			return fmt.Errorf("seed %d, operation %d: %w", o.Seed, c.n, err)
		}
		if (c.n+1)%Every == 0 {
			if _, err := fmt.Fprintf(progress, "op %d\n", c.n+1); err != nil {
				return err
			}
		}
		if (c.n+1)%readAll == 0 {
			if err := c.all(); err != nil {
				return fmt.Errorf("seed %d, all after operation %d: %w", o.Seed, c.n, err)
			}
		}
	}
	if err := c.all(); err != nil {
		return fmt.Errorf("seed %d, after %d operations: %w", o.Seed, c.n, err)
	}
	return nil
}

// model is one file as it must be.
type model struct {
	name string
	data []byte
	open file // nil if it is not
	told []string
}

func (m *model) note(n int, format string, args ...any) {
	m.told = append(m.told, fmt.Sprintf("%d: ", n)+fmt.Sprintf(format, args...))
	m.told = m.told[max(0, len(m.told)-story):]
}

type checker struct {
	sys   system
	r     *rand.Rand
	punch bool
	n     int
	files map[string]*model
	next  int // number of the next name

	repeats  int // that may still be
	progress io.Writer
}

// any draws one of the files. A map's own order would not be the seed's.
func (c *checker) any() *model {
	names := slices.Sorted(maps.Keys(c.files))
	return c.files[names[c.r.IntN(len(names))]]
}

// handle opens the file if it is not open.
func (c *checker) handle(m *model) (file, error) {
	if m.open == nil {
		f, err := c.sys.open(m.name, false)
		if err != nil {
			return nil, err
		}
		m.open = f
	}
	return m.open, nil
}

func (c *checker) shut(m *model) error {
	if m.open == nil {
		return nil
	}
	f := m.open
	m.open = nil
	return f.close()
}

func (c *checker) closeAll() {
	for _, m := range c.files {
		_ = c.shut(m)
	}
}

// span draws a range that begins inside of limit, of a few bytes or of many.
func (c *checker) span(limit int) (off, n int) {
	if limit == 0 {
		return 0, 0
	}
	off = c.r.IntN(limit)
	n = 1 + c.r.IntN(maxLength)
	switch c.r.IntN(4) {
	case 0:
		n = 1 + c.r.IntN(64)
	case 1: // whole blocks
		off, n = off&^(block-1), (n+block-1)&^(block-1)
	}
	return off, min(n, limit-off)
}

func (c *checker) bytes(n int) []byte {
	b := make([]byte, n)
	// Blocks that say who wrote them are read more easily than noise.
	x := uint64(c.n)<<20 | c.r.Uint64()&0xfffff
	for i := range b {
		b[i] = byte(x >> (8 * (i % 8)))
	}
	return b
}

func (c *checker) step() error {
	if len(c.files) == 0 {
		return c.create()
	}
	m := c.any()
	// Of a hundred operations some fifteen go to the server at once, over NFS, and take as
	// long as its disks.
	switch k := c.r.IntN(100); {
	case k < 33:
		return c.read(m)
	case k < 35:
		return c.direct(m)
	case k < 68:
		return c.write(m)
	case k < 72:
		return c.append(m)
	case k < 74:
		return c.truncate(m)
	case k < 77:
		return c.writeMapped(m)
	case k < 85:
		return c.readMapped(m)
	case k < 87:
		return c.hole(m)
	case k < 89:
		return c.rename(m)
	case k < 91:
		return c.sync(m)
	case k < 93:
		return c.forget(m)
	case k < 95:
		return c.shut(m)
	case k < 96 && len(c.files) < maxFiles:
		return c.create()
	case k < 97 && c.r.IntN(2) == 0:
		return c.remove(m)
	case k < 98:
		return c.names()
	}
	return c.length(m)
}

func (c *checker) create() error {
	m := &model{name: filepath.Join(folderName(c.r.IntN(folders)), fmt.Sprintf("f%d", c.next))}
	c.next++
	f, err := c.sys.open(m.name, true)
	if err != nil {
		return err
	}
	m.open, c.files[m.name] = f, m
	m.note(c.n, "create %s", m.name)
	return nil
}

func (c *checker) remove(m *model) error {
	if err := c.shut(m); err != nil {
		return err
	}
	delete(c.files, m.name)
	return c.repeated(c.sys.remove(m.name), "remove "+m.name)
}

// repeated makes no error of a name that is not there, if that may be because the operation has
// been done: the names must be those after it.
func (c *checker) repeated(err error, what string) error {
	if !errors.Is(err, os.ErrNotExist) || c.repeats == 0 {
		return err
	}
	c.repeats--
	if _, err := fmt.Fprintf(c.progress, "repeated %s\n", what); err != nil {
		return err
	}
	if err := c.sys.refresh(); err != nil {
		return err
	}
	if wrong := c.names(); wrong != nil {
		return fmt.Errorf("%w, after %w", wrong, err)
	}
	return nil
}

func (c *checker) rename(m *model) error {
	to := filepath.Join(folderName(c.r.IntN(folders)), fmt.Sprintf("f%d", c.next))
	c.next++
	if over := c.any(); over != m && c.r.IntN(2) == 0 {
		to = over.name
		if err := c.shut(over); err != nil {
			return err
		}
	}
	from := m.name
	err := c.sys.rename(from, to)
	m.note(c.n, "rename %s to %s", from, to)
	delete(c.files, from)
	m.name = to
	c.files[to] = m
	if err == nil {
		return nil
	}
	if err := c.repeated(err, "rename "+from+" to "+to); err != nil {
		return err
	}
	return c.whole(m) // and not what was there before
}

func (c *checker) write(m *model) error {
	off, n := c.span(min(maxSize, len(m.data)+maxLength))
	return c.writeTo(m, off, n)
}

func (c *checker) append(m *model) error {
	n := min(1+c.r.IntN(8<<10), maxSize-len(m.data))
	return c.writeTo(m, len(m.data), n)
}

func (c *checker) writeTo(m *model, off, n int) error {
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	b := c.bytes(n)
	if err := f.writeAt(b, int64(off)); err != nil {
		return err
	}
	m.note(c.n, "write %d at %d", n, off)
	if grown := off + n; grown > len(m.data) {
		m.data = append(m.data, make([]byte, grown-len(m.data))...)
	}
	copy(m.data[off:], b)
	return nil
}

func (c *checker) truncate(m *model) error {
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	size := c.r.IntN(maxSize + 1)
	if len(m.data) > 0 && c.r.IntN(3) > 0 {
		size = c.r.IntN(len(m.data) + 1)
	}
	if err := f.truncate(int64(size)); err != nil {
		return err
	}
	m.note(c.n, "truncate from %d to %d", len(m.data), size)
	if size <= len(m.data) {
		m.data = m.data[:size:size] // what is behind is zero when it grows again
	} else {
		m.data = append(m.data, make([]byte, size-len(m.data))...)
	}
	return nil
}

func (c *checker) writeMapped(m *model) error {
	off, n := c.span(len(m.data))
	if n == 0 {
		return nil
	}
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	b := c.bytes(n)
	if err := f.writeMapped(b, int64(off), c.r.IntN(3) == 0); err != nil {
		return err
	}
	m.note(c.n, "write %d at %d through memory", n, off)
	copy(m.data[off:], b)
	return nil
}

func (c *checker) hole(m *model) error {
	off, n := c.span(len(m.data))
	if n == 0 || !c.punch {
		return nil
	}
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	if err := f.punch(int64(off), int64(n)); err != nil {
		return err
	}
	m.note(c.n, "punch %d at %d", n, off)
	clear(m.data[off : off+n])
	return nil
}

func (c *checker) sync(m *model) error {
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	return f.sync(c.r.IntN(2) == 0)
}

func (c *checker) forget(m *model) error {
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	return f.forget()
}

func (c *checker) read(m *model) error {
	off, n := c.span(len(m.data))
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	p := make([]byte, n+16) // and what is behind, if that is the end
	k, err := f.readAt(p, int64(off))
	if err != nil {
		return err
	}
	return c.compare(m, "read", off, p[:k], min(len(p), len(m.data)-off))
}

func (c *checker) direct(m *model) error {
	off, n := c.span(len(m.data))
	off, n = off&^(block-1), (n+block-1)&^(block-1)
	if n == 0 {
		return nil
	}
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	p := make([]byte, n)
	k, err := f.readDirect(p, int64(off))
	if err != nil {
		return err
	}
	return c.compare(m, "direct read", off, p[:k], min(n, len(m.data)-off))
}

func (c *checker) readMapped(m *model) error {
	off, n := c.span(len(m.data))
	if n == 0 {
		return nil
	}
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	p := make([]byte, n)
	if err := f.readMapped(p, int64(off)); err != nil {
		return err
	}
	return c.compare(m, "read through memory", off, p, n)
}

// compare has got, read at off, be the want bytes that the model has there.
func (c *checker) compare(m *model, how string, off int, got []byte, want int) error {
	if len(got) != want {
		return c.mismatch(m, "%s at %d returned %d bytes, not %d", how, off, len(got), want)
	}
	expect := m.data[off : off+want]
	if bytes.Equal(got, expect) {
		return nil
	}
	i := 0
	for got[i] == expect[i] {
		i++
	}
	bad := 0
	for k := range got {
		if got[k] != expect[k] {
			bad++
		}
	}
	end := min(i+16, want)
	return c.mismatch(m, "%s at %d: %d of %d bytes differ, the first at %d: % x where % x was written", how, off, bad, want, off+i, got[i:end], expect[i:end])
}

func (c *checker) mismatch(m *model, format string, args ...any) error {
	return fmt.Errorf("%w: %s (%d bytes): %s; last on it: %s", ErrMismatch, m.name, len(m.data), fmt.Sprintf(format, args...), strings.Join(m.told, "; "))
}

func (c *checker) length(m *model) error {
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	size, err := f.size()
	if err != nil {
		return err
	}
	if size != int64(len(m.data)) {
		return c.mismatch(m, "its size is %d", size)
	}
	return nil
}

func (c *checker) names() error {
	got, err := c.sys.list()
	if err != nil {
		return err
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(c.files)); !slices.Equal(got, want) {
		return fmt.Errorf("%w: the names are %v, not %v", ErrMismatch, got, want)
	}
	return nil
}

// all closes every file, has its pages forgotten, and reads it whole.
func (c *checker) all() error {
	if err := c.names(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(c.files)) {
		if err := c.whole(c.files[name]); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) whole(m *model) error {
	f, err := c.handle(m)
	if err != nil {
		return err
	}
	if err := errors.Join(f.sync(false), f.forget(), c.shut(m)); err != nil {
		return err
	}
	if f, err = c.handle(m); err != nil {
		return err
	}
	p := make([]byte, len(m.data)+16)
	n, err := f.readAt(p, 0)
	if err != nil {
		return err
	}
	if err := c.compare(m, "read of the whole", 0, p[:n], len(m.data)); err != nil {
		return err
	}
	return errors.Join(c.length(m), c.shut(m))
}

// CanPunch asks the filesystem of dir.
func CanPunch(dir string) (bool, error) {
	f, err := os.CreateTemp(dir, "punch")
	if err != nil {
		return false, err
	}
	defer func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }()
	if err := f.Truncate(2 * block); err != nil {
		return false, err
	}
	switch err := (&osFile{f}).punch(0, block); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	default:
		return false, err
	}
}
