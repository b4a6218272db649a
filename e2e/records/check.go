package records

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// Report is what is left of the records that were acknowledged.
type Report struct {
	Acknowledged int      `json:"acknowledged"`
	Intact       int      `json:"intact"`      // read back, every byte as it was written
	Overwritten  int      `json:"overwritten"` // a later record, which is intact or was in flight, has their place
	Wrong        []string `json:"wrong"`       // missing, torn, or of an older version: at most maxWrong
	WrongCount   int      `json:"wrong_count"`
}

// maxWrong bounds the report of a volume on which nothing is left.
const maxWrong = 20

// Whole says whether every acknowledged record is accounted for.
func (r Report) Whole() bool {
	return r.WrongCount == 0 && r.Intact+r.Overwritten == r.Acknowledged
}

// Check reads back the records of each writer: acked[w] is how many of writer
// w's were acknowledged, from number 0 on without a gap.
func Check(dir string, seed uint64, acked []int) Report {
	var r Report
	for w, n := range acked {
		r.Acknowledged += n
		for i := range uint64(n) {
			next, ok := overwrittenBy(i)
			// Record n may have been on its way when the power went: the slot that
			// it goes to may hold the old record, the new one, or some of both.
			if ok && next <= uint64(n) {
				r.Overwritten++
				continue
			}
			if err := checkRecord(filepath.Join(dir, folderOf(w)), seedOf(seed, w), i); err != nil {
				if r.WrongCount++; len(r.Wrong) < maxWrong {
					r.Wrong = append(r.Wrong, fmt.Sprintf("writer %d, record %d of %d acknowledged: %v", w, i, n, err))
				}
				continue
			}
			r.Intact++
		}
	}
	return r
}

func checkRecord(dir string, seed, n uint64) error {
	p := placeOf(n)
	f, err := os.Open(filepath.Join(dir, p.file))
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, p.size)
	if k, err := f.ReadAt(got, p.offset); k < p.size {
		return fmt.Errorf("%s at %d: %d of %d bytes: %w", p.file, p.offset, k, p.size, err)
	}
	want := content(seed, n, p.size)
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		return fmt.Errorf("%s at %d: other bytes from %d on, %.16x where %.16x was written", p.file, p.offset, i, got[i:], want[i:])
	}
	return nil
}
