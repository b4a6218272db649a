package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestStaleRunsAreRemoved(t *testing.T) {
	base := t.TempDir()
	for _, name := range []string{"stale", "living", "young"} {
		if err := os.Mkdir(filepath.Join(base, runPrefix+name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	stale, err := lockRun(filepath.Join(base, runPrefix+"stale"))
	if err != nil {
		t.Fatal(err)
	}
	if err := stale.Close(); err != nil { // its process has died
		t.Fatal(err)
	}
	living, err := lockRun(filepath.Join(base, runPrefix+"living"))
	if err != nil {
		t.Fatal(err)
	}
	defer living.Close()
	if err := removeStale(base); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"stale": false, "living": true, "young": true} {
		if _, err := os.Stat(filepath.Join(base, runPrefix+name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Lines of two jobs are not mixed.
func TestPrefixed(t *testing.T) {
	var out bytes.Buffer
	var mu sync.Mutex
	a, b := &prefixed{to: &out, mu: &mu, prefix: "1 "}, &prefixed{to: &out, mu: &mu, prefix: "2 "}
	for _, w := range []struct {
		to   *prefixed
		text string
	}{{a, "half"}, {b, "one\ntwo\nthr"}, {a, " a line\n"}, {b, "ee\n"}} {
		if n, err := fmt.Fprint(w.to, w.text); n != len(w.text) || err != nil {
			t.Error(n, err)
		}
	}
	if want := "2 one\n2 two\n1 half a line\n2 three\n"; out.String() != want {
		t.Errorf("%q", out.String())
	}
}
