package main

import (
	"bytes"
	"context"
	"io"
	"math"
	"strings"
	"testing"

	"tandem/agent/control"
)

func TestFormatBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 4096: "4.00 KiB", 10240: "10.0 KiB", 100 << 10: "100 KiB",
		1000 << 10: "0.98 MiB", 1 << 30: "1.00 GiB", 16 << 40: "16.0 TiB", math.MaxInt64: "8388608 TiB",
	} {
		if got := formatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
}

// The numbers come from the agent; none of them may print nonsense or panic.
func TestFormatProgress(t *testing.T) {
	for _, tc := range []struct {
		p    control.Progress
		want string
	}{
		{control.Progress{DoneBytes: 1, TotalBytes: 3}, "33 % of 3 B"},
		{control.Progress{DoneBytes: 999, TotalBytes: 1000}, "99 % of 1000 B"},
		{control.Progress{DoneBytes: 9, TotalBytes: 3}, "100 % of 3 B"},
		{control.Progress{DoneBytes: -9, TotalBytes: 3}, "0 % of 3 B"},
		{control.Progress{DoneBytes: 1, TotalBytes: 2, RateBytesPerSecond: 1024, ETASeconds: 61.2}, "50 % of 2 B, 1.00 KiB/s, 1m2s left"},
		{control.Progress{TotalBytes: 2, RateBytesPerSecond: 1, ETASeconds: math.NaN()}, "0 % of 2 B, 1 B/s, more than a week left"},
		{control.Progress{TotalBytes: 2, RateBytesPerSecond: 1, ETASeconds: 1e12}, "0 % of 2 B, 1 B/s, more than a week left"},
	} {
		if got := formatProgress(tc.p); got != tc.want {
			t.Errorf("%+v: %q, want %q", tc.p, got, tc.want)
		}
	}
	if got := fraction(control.Progress{}); got != 0 {
		t.Errorf("fraction of nothing: %v", got)
	}
}

func TestProgressOnATerminal(t *testing.T) {
	var out bytes.Buffer
	p := &progress{w: &out, terminal: true}
	half, err := control.NewMessage(control.KindProgress, "b", control.Progress{DoneBytes: 1, TotalBytes: 2})
	if err != nil {
		t.Fatal(err)
	}
	p.show(half)
	p.show(control.Message{Kind: control.KindProgress, Text: "now the bitmap", Data: []byte("[]")})
	p.show(control.Message{Kind: control.KindProgress})
	p.show(half)
	p.end()
	p.end()
	line := "\r\x1b[K[" + strings.Repeat("#", 15) + strings.Repeat(" ", 15) + "] b: 50 % of 2 B"
	if want := line + "\nnow the bitmap\n" + line + "\n"; out.String() != want {
		t.Fatalf("%q, want %q", out.String(), want)
	}
}

func TestReadLine(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	if got, err := readLine(ctx, strings.NewReader(" node-b \nmore")); got != "node-b" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if _, err := readLine(ctx, strings.NewReader("node-b")); err == nil {
		t.Error("half a line was taken for a name")
	}
	cancel()
	r, w := io.Pipe()
	defer w.Close()
	if _, err := readLine(ctx, r); err == nil || err.Error() != "interrupted" {
		t.Errorf("got %v", err)
	}
}

func TestFormatMicros(t *testing.T) {
	for us, want := range map[float64]string{0: "0 µs", 80.4: "80 µs", 1500: "1.5 ms", 2.5e6: "2.50 s"} {
		if got := formatMicros(us); got != want {
			t.Errorf("%v: %q, want %q", us, got, want)
		}
	}
}
