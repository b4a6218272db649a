package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args    string
		rounds  int
		runtime time.Duration
		size    int64
		code    int
	}{
		{"", 5, 10 * time.Second, 1 << 30, -1},
		{"-quick", 3, 3 * time.Second, 512 << 20, -1},
		{"-quick -runtime 1s -size 64", 3, time.Second, 64 << 20, -1},
		{"-rounds 0", 0, 0, 0, 2},
		{"-runtime 1500ms", 0, 0, 0, 2},
		{"stray", 0, 0, 0, 2},
		{"-unknown", 0, 0, 0, 2},
		{"-h", 0, 0, 0, 0},
	} {
		o, code := parse(strings.Fields(c.args), io.Discard)
		if code != c.code || code < 0 && (o.rounds != c.rounds || o.runtime != c.runtime || o.size != c.size) {
			t.Errorf("%q: %+v, %d", c.args, o, code)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want spread
	}{
		{[]float64{4}, spread{4, 4, 4}},
		{[]float64{3, 1}, spread{2, 1, 3}},
		{[]float64{9, 1, 5}, spread{5, 1, 9}},
		{[]float64{8, 2, 4, 6}, spread{5, 2, 8}},
	} {
		if got := spreadOf(c.v); got != c.want {
			t.Errorf("%v: %v", c.v, got)
		}
	}
}

// The ratio is the median of the rounds' ratios, not the ratio of the medians:
// here a round in which the machine was twice as slow for everybody.
func TestRatioIsByRound(t *testing.T) {
	servers := []*server{{name: "base"}, {name: "other"}}
	rep := newReport(host{}, options{}, servers, time.Now())
	for _, j := range jobs {
		for _, iops := range []float64{100, 50, 100} {
			rep.add("base", j.name, result{iops: iops})
			rep.add("other", j.name, result{iops: iops / 2, foreign: 0.5})
		}
	}
	rep.finish()
	for _, w := range rep.Rows {
		want := spread{1, 1, 1}
		if w.Server == "other" {
			want = spread{0.5, 0.5, 0.5}
		}
		if w.Ratio != want {
			t.Errorf("%s %s: %v", w.Job, w.Server, w.Ratio)
		}
	}
	var text bytes.Buffer
	rep.print(&text)
	if !strings.Contains(text.String(), "0.50 [0.50..0.50]") || !strings.Contains(text.String(), "other load on the machine during the runs: 0.25 [0.00..0.50]") {
		t.Error(text.String())
	}
}

func TestParseFio(t *testing.T) {
	out, err := parseFio([]byte(`note: both iodepth >= 1 and synchronous I/O engine are selected
{"jobs": [{"error": 0, "read": {"iops": 0, "clat_ns": {}}, "write": {"iops": 12.5, "clat_ns": {"percentile": {"50.000000": 1000, "99.000000": 2000}}}}]}`))
	if err != nil || out.Write.IOPS != 12.5 || out.Write.Latency.Percentile["99.000000"] != 2000 {
		t.Errorf("%+v %v", out, err)
	}
	for _, bad := range []string{"", "fio: no such engine", "{", `{"jobs": []}`, `{"jobs": [{"error": 5}]}`} {
		if _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestParseStat(t *testing.T) {
	if got, err := parseStat("42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20"); err != nil || got != 2*time.Second {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", "42 (x) S 1 2 3", "42 (x) S 1 2 3 4 5 6 7 8 9 10 a b"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if busy, err := machineTime(); err != nil || busy <= 0 {
		t.Errorf("%v %v", busy, err)
	}
}
