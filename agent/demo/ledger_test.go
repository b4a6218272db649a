package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func ledgerOf(t *testing.T, text string) (*history, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return readLedger(path)
}

func TestLost(t *testing.T) {
	// Two writes over block 5, the second longer; a third that nobody
	// acknowledged; and one of zeroes elsewhere.
	const writes = "run 10\n" +
		"issue 1 5 1 write\nack 1 a 100\n" +
		"issue 2 4 2 fua\nack 2 a 200\n" +
		"issue 3 5 1 write\n" +
		"issue 4 9 1 zero\nack 4 b 300\n"
	for _, tc := range []struct {
		name, found string
		lost        []uint64
		bad         int
	}{
		{"nothing looked at", "", nil, 0},
		{"the last acknowledged", "found 5 data 2\nfound 4 data 2\n", nil, 0},
		{"the one in flight", "found 5 data 3\n", nil, 0},
		{"the one before", "found 5 data 1\n", []uint64{2}, 1},
		{"half of a write", "found 4 zero\nfound 5 data 2\n", []uint64{2}, 1},
		{"nothing at all", "found 5 zero\n", []uint64{1, 2}, 1},
		{"rubbish", "found 5 foreign\n", []uint64{1, 2}, 1},
		{"a write never issued", "found 5 data 7\n", nil, 1},
		{"a write of zeroes that should have data", "found 9 data 4\n", nil, 1},
		{"zeroes", "found 9 zero\n", nil, 0},
		{"no zeroes", "found 9 foreign\n", []uint64{4}, 1},
		{"lost, and hidden by a later write", "found 5 data 1\nretry 3 b\nack 3 b 400\nissue 5 5 1 write\nack 5 b 500\nfound 5 data 5\n", []uint64{2}, 1},
		{"zeroes, then data that is lost", "issue 5 9 1 write\nack 5 b 400\nfound 9 zero\n", []uint64{5}, 1},
	} {
		h, err := ledgerOf(t, writes+tc.found)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if lost := h.lost(); !slices.Equal(lost, tc.lost) || len(h.bad) != tc.bad {
			t.Errorf("%s: lost %v with %d bad blocks, want %v and %d", tc.name, lost, len(h.bad), tc.lost, tc.bad)
		}
	}
}

func TestLedgerWhileItGrows(t *testing.T) {
	h, err := ledgerOf(t, "run 10\nissue 2 0 1 write\nissue 1 1 1 write\nack 2 b 900\nack 1 b 800\nissue 3 2 1 wri")
	if err != nil {
		t.Fatal(err)
	}
	at, ok := h.firstAck("b")
	if h.run != 0x10 || h.acknowledged() != 2 || len(h.blocks) != 2 || !ok || at != 800 {
		t.Fatalf("%+v, first ack at %d", h, at)
	}
	if _, ok := h.firstAck("a"); ok {
		t.Fatal("a acknowledged nothing")
	}
}

func TestChecked(t *testing.T) {
	for text, want := range map[string]int{
		"checked b 1\n":                    1,
		"checked b 1\nissue 2 5 1 write\n": 0, // it says nothing of what came after
		"found 5 zero\nchecked b 1\n":      1,
	} {
		h, err := ledgerOf(t, "run 1\nissue 1 5 1 write\n"+text)
		if err != nil || h.checked != want {
			t.Errorf("%q: %d, %v", text, h.checked, err)
		}
	}
}

func TestLedgerRefuses(t *testing.T) {
	for _, line := range []string{
		"", "x", "run 11", "issue 1 0 1", "issue 0 0 1 write", "issue 1 -1 1 write", "issue 1 0 0 write", "issue 1 0 17 write",
		"issue 99 0 1 write", "issue x 0 1 write", "ack 1 a 5", "ack 0 a 5", "ack 1 a", "found 3 zero", "found 3", "found 3 data", "found 3 data x", "found 3 nothing",
	} {
		_, err := ledgerOf(t, "run 10\n"+line+"\n")
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("ledger:2: %q is no line of a ledger", line)) {
			t.Errorf("%q: %v", line, err)
		}
	}
	for _, text := range []string{"run x\n", "issue 1 0 1 write\n"} {
		if _, err := ledgerOf(t, text); err == nil {
			t.Errorf("%q is no start of a ledger", text)
		}
	}
}

// What the checker writes is what readLedger reads.
func TestLedgerRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	if err := createLedger(path, 0xfeed); err != nil {
		t.Fatal(err)
	}
	l, err := openLedger(path, 0xfeed)
	if err != nil {
		t.Fatal(err)
	}
	defer l.f.Close()
	for _, err := range []error{
		l.issue(1, 0, 16, fuaWrite), l.ack(1, "a", 5), l.issue(2, 0, 2, zeroWrite), l.retry(2, "b"),
		l.found(0, content{dataBlock, 1}), l.found(1, content{kind: zeroBlock}), l.found(2, content{kind: foreignBlock}), l.checked("b", 16),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := "run 000000000000feed\nissue 1 0 16 fua\nack 1 a 5\nissue 2 0 2 zero\nretry 2 b\n" +
		"found 0 data 1\nfound 1 zero\nfound 2 foreign\nchecked b 16\n"
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Fatalf("%v\n%s", err, got)
	}
	h, err := readLedger(path)
	if err != nil || h.run != 0xfeed || h.retries != 1 || h.checked != 16 || !slices.Equal(h.lost(), []uint64{1}) || len(h.bad) != 1 {
		t.Fatalf("%+v %v", h, err)
	}
}
