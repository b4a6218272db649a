package proctest

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// recovery is for how long a fault kept writes waiting.
type recovery struct {
	round    int
	fault    string
	from, by string        // who served before, and whose write was answered first
	after    time.Duration // from the fault to that answer, of a write sent after the fault
}

// byFault groups the times, and sorts them.
func byFault(rows []recovery) (names []string, times map[string][]time.Duration) {
	times = make(map[string][]time.Duration)
	for _, r := range rows {
		if times[r.fault] == nil {
			names = append(names, r.fault)
		}
		times[r.fault] = append(times[r.fault], r.after)
	}
	slices.Sort(names)
	for _, t := range times {
		slices.Sort(t)
	}
	return names, times
}

// recoveryTable has one line for each kind of fault.
func recoveryTable(rows []recovery) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "fault\trounds\tleast\tmedian\tmost\n")
	names, times := byFault(rows)
	for _, name := range names {
		t := times[name]
		fmt.Fprintf(w, "%s\t%d\t%.3f s\t%.3f s\t%.3f s\n", name, len(t), t[0].Seconds(), medianTime(t).Seconds(), t[len(t)-1].Seconds())
	}
	w.Flush()
	return b.String()
}

// medianTime is of a sorted list.
func medianTime(t []time.Duration) time.Duration {
	return (t[(len(t)-1)/2] + t[len(t)/2]) / 2
}

// writeRecoveries writes recovery.txt, with the table and every round, and
// recovery.svg.
func writeRecoveries(dir string, rows []recovery) error {
	var b strings.Builder
	fmt.Fprintf(&b, "From a fault to the first answer to a write sent after it: %d rounds, lease %v, heartbeat %v, etcd of three members.\n\n", len(rows), lease, heartbeat)
	b.WriteString(recoveryTable(rows))
	b.WriteString("\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "round\tfault\tprimary\tanswer by\tafter")
	for _, r := range rows {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%.3f s\n", r.round, r.fault, r.from, r.by, r.after.Seconds())
	}
	w.Flush()
	if err := os.WriteFile(filepath.Join(dir, "recovery.txt"), []byte(b.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "recovery.svg"), []byte(plotRecoveries(rows)), 0o644)
}

// plotRecoveries draws one line of dots for each kind of fault, with a stroke at
// the median.
func plotRecoveries(rows []recovery) string {
	const left, right, top, line, width = 250, 30, 40, 32, 560
	names, times := byFault(rows)
	most := time.Second
	for _, r := range rows {
		most = max(most, r.after)
	}
	seconds := int((most + time.Second - 1) / time.Second)
	x := func(d time.Duration) float64 { return left + width*d.Seconds()/float64(seconds) }
	bottom := top + line*len(names)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", left+width+right, bottom+50)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="14">From a fault to the first write: %d rounds, lease %v</text>`+"\n", left, len(rows), lease)
	for s := range seconds + 1 {
		at := x(time.Duration(s) * time.Second)
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1[1]f" y="%[4]d" text-anchor="middle">%[5]d s</text>`+"\n", at, top, bottom, bottom+18, s)
	}
	for i, name := range names {
		y := top + line*i + line/2
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-12, y+4, name)
		for _, d := range times[name] {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="4" fill="#27c" fill-opacity="0.5"/>`+"\n", x(d), y)
		}
		fmt.Fprintf(&b, `<path d="M%.1f %dv16" stroke="#c22" stroke-width="2"/>`+"\n", x(medianTime(times[name])), y-8)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func wellFormed(text []byte) error {
	dec := xml.NewDecoder(strings.NewReader(string(text)))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func TestRecoveryReport(t *testing.T) {
	rows := []recovery{
		{1, "kill -9", "a", "b", 1300 * time.Millisecond},
		{2, "cut", "b", "b", 900 * time.Millisecond},
		{3, "kill -9", "b", "a", 1100 * time.Millisecond},
	}
	dir := t.TempDir()
	if err := writeRecoveries(dir, rows); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "recovery.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"3 rounds, lease 1s", "kill -9  2       1.100 s  1.200 s  1.300 s", "2      cut      b        b          0.900 s"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	plot, err := os.ReadFile(filepath.Join(dir, "recovery.svg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := wellFormed(plot); err != nil {
		t.Errorf("%v in\n%s", err, plot)
	}
	if n := strings.Count(string(plot), "<circle"); n != len(rows) {
		t.Errorf("%d dots", n)
	}
}
