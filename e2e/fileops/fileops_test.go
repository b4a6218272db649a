package fileops

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// A real filesystem is without a fault.
func TestRealFilesystem(t *testing.T) {
	for seed := range uint64(8) {
		dir := t.TempDir()
		punch, err := CanPunch(dir)
		if err != nil {
			t.Fatal(err)
		}
		var said bytes.Buffer
		if err := Run(t.Context(), Options{Dir: dir + "/x", Seed: seed, Count: 1500, Punch: punch}, &said); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(said.String(), "op 1450\nop 1500\n") {
			t.Errorf("%q", said.String())
		}
	}
}

// traced writes down what is done.
type traced struct {
	system
	did   *[]string
	kinds map[string]int
}

func (s traced) note(kind string, args ...any) {
	s.kinds[kind]++
	*s.did = append(*s.did, fmt.Sprint(kind, args))
}

func (s traced) open(name string, create bool) (file, error) {
	s.note(fmt.Sprint("open ", create), name)
	f, err := s.system.open(name, create)
	return tracedFile{f, s, name}, err
}

func (s traced) rename(from, to string) error {
	kind := "rename"
	if _, err := os.Stat(s.system.(folder).dir + "/" + to); err == nil {
		kind = "rename over"
	}
	if from[:2] != to[:2] {
		kind += " between folders"
	}
	s.note(kind, from, to)
	return s.system.rename(from, to)
}

func (s traced) remove(name string) error { s.note("remove", name); return s.system.remove(name) }
func (s traced) list() ([]string, error)  { s.note("list"); return s.system.list() }

type tracedFile struct {
	file
	s    traced
	name string
}

func (f tracedFile) readAt(p []byte, off int64) (int, error) {
	f.s.note("read", f.name, len(p), off)
	return f.file.readAt(p, off)
}

func (f tracedFile) readDirect(p []byte, off int64) (int, error) {
	f.s.note("direct read", f.name, len(p), off)
	return f.file.readDirect(p, off)
}

func (f tracedFile) writeAt(p []byte, off int64) error {
	f.s.note("write", f.name, p, off)
	return f.file.writeAt(p, off)
}

func (f tracedFile) readMapped(p []byte, off int64) error {
	f.s.note("mapped read", f.name, len(p), off)
	return f.file.readMapped(p, off)
}

func (f tracedFile) writeMapped(p []byte, off int64, sync bool) error {
	f.s.note(fmt.Sprint("mapped write ", sync), f.name, p, off)
	return f.file.writeMapped(p, off, sync)
}

func (f tracedFile) truncate(size int64) error {
	old, err := f.size()
	if err != nil {
		return err
	}
	f.s.note(fmt.Sprint("grow ", size > old), f.name, size)
	return f.file.truncate(size)
}

func (f tracedFile) punch(off, n int64) error {
	f.s.note("punch", f.name, off, n)
	return f.file.punch(off, n)
}

func (f tracedFile) sync(data bool) error {
	f.s.note(fmt.Sprint("sync ", data), f.name)
	return f.file.sync(data)
}

func (f tracedFile) forget() error { f.s.note("forget", f.name); return f.file.forget() }
func (f tracedFile) close() error  { f.s.note("close", f.name); return f.file.close() }

// The seed alone says what is done, and every kind of operation comes.
func TestSeed(t *testing.T) {
	trace := func(seed uint64) ([]string, map[string]int) {
		t.Helper()
		dir := t.TempDir()
		for d := range folders {
			if err := os.Mkdir(dir+"/"+folderName(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var did []string
		s := traced{folder{dir}, &did, make(map[string]int)}
		if err := run(t.Context(), s, Options{Seed: seed, Count: 1250, Punch: true}, io.Discard); err != nil {
			t.Fatal(err)
		}
		return did, s.kinds
	}
	one, kinds := trace(3)
	if again, _ := trace(3); !slices.Equal(one, again) {
		t.Error("the same seed did something else")
	}
	if other, _ := trace(4); slices.Equal(one, other) {
		t.Error("another seed did the same")
	}
	for _, kind := range []string{
		"open true", "open false", "rename", "rename between folders", "rename over", "rename over between folders", "remove", "list", "read", "direct read",
		"write", "mapped read", "mapped write true", "mapped write false", "grow true", "grow false", "punch", "sync true", "sync false", "forget", "close",
	} {
		if kinds[kind] == 0 {
			t.Errorf("no %s in %v", kind, kinds)
		}
	}
}

// It goes on until it has been enough, and says how far it came.
func TestEnough(t *testing.T) {
	var said bytes.Buffer
	asked := 0
	enough := func() bool { asked++; return asked == 3 }
	if err := Run(t.Context(), Options{Dir: t.TempDir() + "/x", Count: 100, Enough: enough}, &said); err != nil {
		t.Fatal(err)
	}
	if want := "op 50\nop 100\nop 150\nop 200\n"; said.String() != want {
		t.Errorf("%q, not %q", said.String(), want)
	}
}

// stale loses on its server what is written from some operation on. Who reads sees it all the
// same, as long as the pages are there: until they are written back and
// forgotten.
type stale struct {
	system
	writes int
}

type staleFile struct {
	file
	s     *stale
	lost  map[int64]byte // what the server has instead
	clean bool
}

func (s *stale) open(name string, create bool) (file, error) {
	f, err := s.system.open(name, create)
	return &staleFile{file: f, s: s, lost: make(map[int64]byte)}, err
}

func (f *staleFile) writeAt(p []byte, off int64) error {
	f.clean = false
	if f.s.writes++; f.s.writes > 20 {
		old := make([]byte, len(p))
		n, err := f.file.readAt(old, off)
		if err != nil {
			return err
		}
		for i, b := range old[:n] {
			if _, already := f.lost[off+int64(i)]; !already {
				f.lost[off+int64(i)] = b
			}
		}
	}
	return f.file.writeAt(p, off)
}

func (f *staleFile) sync(data bool) error { f.clean = true; return f.file.sync(data) }

func (f *staleFile) forget() error {
	if !f.clean {
		return nil
	}
	for off, b := range f.lost {
		if err := f.file.writeAt([]byte{b}, off); err != nil {
			return err
		}
	}
	clear(f.lost)
	return f.file.forget()
}

// What the cache hides is found when everything is read back, at the latest: the operations
// draw a sync and a forget as well.
func TestReadBack(t *testing.T) {
	whole := 0
	for seed := range uint64(6) {
		dir := t.TempDir()
		for d := range folders {
			if err := os.Mkdir(dir+"/"+folderName(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var n counted
		err := run(t.Context(), &stale{system: folder{dir}}, Options{Seed: seed, Count: 4 * readAll, Punch: true}, &n)
		if !errors.Is(err, ErrMismatch) || n > readAll {
			t.Errorf("after %d operations: %v", n, err)
		} else if strings.Contains(err.Error(), "read of the whole") {
			whole++
		}
	}
	if whole == 0 {
		t.Error("it was never left to the comparison of everything")
	}
}

type counted int

func (c *counted) Write(p []byte) (int, error) { *c += Every; return len(p), nil }

// forgetful is a server that has done a rename or a removal, but whose answer is lost, so that the
// next one is asked. If it is a liar, it has not done it.
type forgetful struct {
	system
	liar bool
	n    int
}

func (s *forgetful) did(err error) error {
	if s.n++; err == nil && s.n%20 == 0 {
		return os.ErrNotExist
	}
	return err
}

func (s *forgetful) rename(from, to string) error {
	if s.liar && s.n%20 == 19 {
		s.n++
		return os.ErrNotExist
	}
	return s.did(s.system.rename(from, to))
}

func (s *forgetful) remove(name string) error { return s.did(s.system.remove(name)) }

// An answer that is lost is no mismatch, as often as is allowed, if what was asked for is done.
func TestRepeats(t *testing.T) {
	for _, c := range []struct {
		repeats int
		liar    bool
		want    error
	}{{3, false, nil}, {0, false, os.ErrNotExist}, {2, false, os.ErrNotExist}, {3, true, ErrMismatch}} {
		dir := t.TempDir()
		for d := range folders {
			if err := os.Mkdir(dir+"/"+folderName(d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var said bytes.Buffer
		sys := &forgetful{system: folder{dir}, liar: c.liar}
		stop := func() bool { return sys.n >= 65 } // three times
		err := run(t.Context(), sys, Options{Seed: 2, Enough: stop, Repeats: c.repeats}, &said)
		if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
			t.Errorf("%+v: %v", c, err)
		}
		if n := strings.Count(said.String(), "repeated "); !c.liar && n != c.repeats {
			t.Errorf("%+v: %d repeated", c, n)
		}
	}
}

func TestNotEmpty(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/d1", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/d1/f0", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Options{Dir: dir, Count: 1}, io.Discard); err == nil {
		t.Error("it ran over files of somebody else")
	}
}

// faulty does one kind of thing wrong, now and then.
type faulty struct {
	system
	fault string
	n     int
}

// now is true for every eleventh chance.
func (f *faulty) now(fault string) bool {
	if f.fault != fault {
		return false
	}
	f.n++
	return f.n%11 == 0
}

func (f *faulty) open(name string, create bool) (file, error) {
	o, err := f.system.open(name, create)
	if err != nil {
		return nil, err
	}
	return &faultyFile{file: o, f: f}, nil
}

func (f *faulty) rename(from, to string) error {
	if f.now("lost rename") {
		return nil
	}
	return f.system.rename(from, to)
}

func (f *faulty) remove(name string) error {
	if f.now("lost removal") {
		return nil
	}
	return f.system.remove(name)
}

type faultyFile struct {
	file
	f *faulty
}

func (o *faultyFile) writeAt(p []byte, off int64) error {
	switch {
	case o.f.now("lost write"):
		size, err := o.size() // only the data: the length is right
		if end := off + int64(len(p)); err == nil && end > size {
			err = o.file.truncate(end)
		}
		return err
	case o.f.now("torn write"):
		if err := o.file.writeAt(p, off); err != nil || len(p) < 2 {
			return err
		}
		return o.file.writeAt(make([]byte, len(p)/2), off+int64(len(p)-len(p)/2))
	case o.f.now("write in the wrong place"):
		return o.file.writeAt(p, off+1)
	}
	return o.file.writeAt(p, off)
}

func (o *faultyFile) writeMapped(p []byte, off int64, sync bool) error {
	if o.f.now("lost mapped write") {
		return nil
	}
	return o.file.writeMapped(p, off, sync)
}

func (o *faultyFile) readAt(p []byte, off int64) (int, error) {
	n, err := o.file.readAt(p, off)
	if n > 0 && o.f.now("old block") {
		clear(p[:n])
	}
	return n, err
}

func (o *faultyFile) readDirect(p []byte, off int64) (int, error) {
	n, err := o.file.readDirect(p, off)
	if n > 0 && o.f.now("old block past the cache") {
		clear(p[:n])
	}
	return n, err
}

func (o *faultyFile) readMapped(p []byte, off int64) error {
	err := o.file.readMapped(p, off)
	if len(p) > 0 && o.f.now("old mapped block") {
		clear(p)
	}
	return err
}

func (o *faultyFile) punch(off, n int64) error {
	if n > 1 && o.f.now("bytes behind a punch") {
		n--
	}
	return o.file.punch(off, n)
}

func (o *faultyFile) truncate(size int64) error {
	if o.f.now("lost truncation") {
		return nil
	}
	old, err := o.size()
	if err != nil {
		return err
	}
	if err := o.file.truncate(size); err != nil {
		return err
	}
	if size > old && o.f.now("bytes behind the old end") {
		return o.file.writeAt([]byte{1}, old)
	}
	return nil
}

// TestTeeth: each fault is found.
func TestTeeth(t *testing.T) {
	for _, fault := range []string{
		"lost write", "torn write", "write in the wrong place", "lost mapped write", "old block", "old block past the cache", "old mapped block",
		"bytes behind a punch", "lost truncation", "bytes behind the old end", "lost rename", "lost removal",
	} {
		t.Run(fault, func(t *testing.T) {
			dir := t.TempDir()
			for d := range folders {
				if err := os.Mkdir(dir+"/"+folderName(d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			err := run(t.Context(), &faulty{system: folder{dir}, fault: fault}, Options{Seed: 1, Count: 20000, Punch: true}, io.Discard)
			// A name that is not where it should be is also found by whoever opens or removes it.
			if !errors.Is(err, ErrMismatch) && !(strings.Contains(fault, "rename") && errors.Is(err, os.ErrNotExist)) {
				t.Errorf("not found: %v", err)
			}
		})
	}
}
