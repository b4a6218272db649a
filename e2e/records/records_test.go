package records

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const testSeed = 7

func write(t *testing.T, count int) (dir string, acked []int) {
	t.Helper()
	dir = t.TempDir()
	var l Ledger
	if err := Write(context.Background(), Options{Dir: dir, Seed: testSeed, Writers: 2, Count: count}, &l); err != nil {
		t.Fatal(err)
	}
	acked = l.Acked()
	if len(acked) != 2 || acked[0] != count || acked[1] != count || l.Total() != 2*count {
		t.Fatalf("acknowledged %v", acked)
	}
	return dir, acked
}

func TestWhatWasWrittenIsThere(t *testing.T) {
	const count = 2*slots*perRound + 7
	dir, acked := write(t, count)
	r := Check(dir, testSeed, acked)
	if !r.Whole() || r.Acknowledged != 2*count || r.Overwritten == 0 || r.Intact == 0 {
		t.Fatalf("%+v", r)
	}
	// Fewer acknowledged than written: what came later is no loss.
	if r := Check(dir, testSeed, []int{count - 1, count / 2}); r.WrongCount > slots {
		t.Fatalf("%+v", r)
	}
}

// Each way of losing an acknowledged record is seen.
func TestLossIsSeen(t *testing.T) {
	const count = 2*slots*perRound + 7
	for _, c := range []struct {
		name string
		harm func(dir string) error
	}{
		{"a file is missing", func(dir string) error { return os.Remove(filepath.Join(dir, "file-000007")) }},
		{"a rename is missing", func(dir string) error {
			return os.Rename(filepath.Join(dir, "file-000007"), filepath.Join(dir, "file-000007.new"))
		}},
		{"the end of the log is missing", func(dir string) error {
			return os.Truncate(filepath.Join(dir, "log"), int64(count/perRound)*2*logSize-1)
		}},
		{"a block of zeroes", func(dir string) error { return harm(dir, "big", 8192, make([]byte, 4096)) }},
		{"one bit", func(dir string) error { return harm(dir, "log", 5555, []byte{0x5a}) }},
		{"an old version of a slot", func(dir string) error {
			p := placeOf(1)
			return harm(dir, p.file, p.offset, content(seedOf(testSeed, 1), 1, p.size))
		}},
		{"the other writer's record", func(dir string) error {
			p := placeOf(3)
			return harm(dir, p.file, p.offset, content(seedOf(testSeed, 0), 3, p.size))
		}},
		{"everything is missing", os.RemoveAll},
	} {
		dir, acked := write(t, count)
		if err := c.harm(filepath.Join(dir, folderOf(1))); err != nil {
			t.Fatal(err)
		}
		if r := Check(dir, testSeed, acked); r.Whole() || r.WrongCount == 0 || len(r.Wrong) == 0 || len(r.Wrong) > maxWrong {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

func harm(dir, file string, off int64, b []byte) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, off)
	return errors.Join(err, f.Close())
}

// The record in flight at the cut may have torn the one whose place it takes,
// and no other.
func TestRecordInFlight(t *testing.T) {
	const n = slots*perRound + 1 // overwrites record 1
	dir, _ := write(t, n)
	p := placeOf(n)
	if err := harm(filepath.Join(dir, folderOf(0)), p.file, p.offset, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if r := Check(dir, testSeed, []int{n, n}); !r.Whole() {
		t.Fatalf("%+v", r)
	}
	if r := Check(dir, testSeed, []int{n - 1, n}); r.Whole() {
		t.Fatal("record 1 was not being overwritten yet, and is torn")
	}
}

func TestPlacesDoNotOverlap(t *testing.T) {
	type span struct {
		from, to int64
		n        uint64
	}
	files := make(map[string][]span)
	for n := range uint64(600) {
		p := placeOf(n)
		if p.size < headerSize {
			t.Fatalf("record %d has %d bytes", n, p.size)
		}
		for _, s := range files[p.file] {
			if p.offset >= s.to || p.offset+int64(p.size) <= s.from {
				continue
			}
			before := n
			for before > s.n {
				before -= slots * perRound
			}
			if p.file != "slots" || before != s.n {
				t.Fatalf("records %d and %d share bytes of %s", s.n, n, p.file)
			}
		}
		files[p.file] = append(files[p.file], span{p.offset, p.offset + int64(p.size), n})
	}
}

func TestContentDiffers(t *testing.T) {
	a := content(1, 1, 4096)
	for _, b := range [][]byte{content(2, 1, 4096), content(1, 2, 4096), content(2, 0, 4096)} {
		if bytes.Equal(a[headerSize:], b[headerSize:]) {
			t.Fatal("two records have one payload")
		}
	}
	if !bytes.Equal(a, content(1, 1, 4096)) {
		t.Fatal("one record has two contents")
	}
}

func TestLedger(t *testing.T) {
	var l Ledger
	for _, piece := range []string{"ack 0 0\nac", "k 1 0\n", "ack 0 1\nack 0 2"} {
		if _, err := l.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if a := l.Acked(); len(a) != 2 || a[0] != 2 || a[1] != 1 || l.Total() != 3 {
		t.Fatalf("%v: the last line has not ended", a)
	}
	for _, bad := range []string{"ack 0 5\n", "ack 1 0 \n", "ack -1 0\n", "ack 64 0\n", "segmentation fault\n", "\n"} {
		l := Ledger{next: []int{1, 1}}
		if _, err := l.Write([]byte(bad)); err == nil || !strings.Contains(err.Error(), "ledger") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A rename that was done by somebody who could not say so is done.
func TestRenamed(t *testing.T) {
	dir := t.TempDir()
	from, to := dir+"/x.new", dir+"/x"
	want := []byte("content")
	err := os.Rename(from, to)
	if err := os.WriteFile(to, append([]byte("head"), want...), 0o600); err != nil {
		t.Fatal(err)
	}
	if !renamed(err, from, to, want, 4) {
		t.Error("it is done")
	}
	if renamed(err, from, to, []byte("another"), 4) || renamed(err, from, to+"y", want, 4) || renamed(os.ErrPermission, from, to, want, 4) {
		t.Error("it is not done")
	}
	if err := os.WriteFile(from, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if renamed(err, from, to, want, 4) {
		t.Error("what was to be renamed is there")
	}
}
