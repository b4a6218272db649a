package proctest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"tandem/agent/control"
	"tandem/blockrepl/meta"
	"tandem/nbd"
)

// One request over the whole volume, as mkfs and fstrim send it: many more
// extents than the activity log has slots. It completes, reads as zeroes, and
// both copies hold zeroes. What was there before came in requests of the
// greatest length, which are long ones too.
func TestLongRequests(t *testing.T) {
	const size, longest = 96 << 20, 32 << 20
	_, shift, slots, _, err := meta.Geometry(size)
	if err != nil {
		t.Fatal(err)
	}
	if extents := size >> shift; extents < 2*int(slots) {
		t.Fatalf("%d extents are few for %d slots", extents, slots)
	}
	c := newCluster(t, options{size: size})
	c.startPair()
	client, err := dialNBD(t.Context(), c.a)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	old := make([]byte, longest)
	for i := range old {
		old[i] = byte(i>>12) | 1
	}
	for _, zero := range []struct {
		name string
		op   string
		send func(ctx context.Context) error
		of   func(control.IOStatus) control.OpStatus
	}{
		{"TRIM", "trim", func(ctx context.Context) error { return client.Trim(ctx, 0, size, false) },
			func(s control.IOStatus) control.OpStatus { return s.Trim }},
		{"WRITE_ZEROES", "write_zeroes", func(ctx context.Context) error {
			return client.WriteZeroes(ctx, 0, size, nbd.CMD_FLAG_NO_HOLE|nbd.CMD_FLAG_FUA)
		}, func(s control.IOStatus) control.OpStatus { return s.WriteZeroes }},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		for off := int64(0); off < size; off += longest {
			if err := client.WriteAt(ctx, old, off, false); err != nil {
				t.Fatalf("a write of %d bytes at %d: %v", longest, off, err)
			}
		}
		before := c.a.status().IO
		began := time.Now()
		if err := zero.send(ctx); err != nil {
			t.Fatalf("%s of the whole volume: %v after %v", zero.name, err, time.Since(began).Round(time.Millisecond))
		}
		t.Logf("%s of %d MiB took %v", zero.name, size>>20, time.Since(began).Round(time.Millisecond))
		// A status that counted it as a write would say that the volume was written through.
		after := c.a.status().IO
		if was, is := zero.of(before), zero.of(after); is.Count != was.Count+1 || is.Bytes != was.Bytes+size || after.Write.Count != before.Write.Count {
			t.Errorf("status after %s: %+v, before it %+v", zero.name, after, before)
		}
		if n := c.a.metric(fmt.Sprintf("tandem_io_seconds_count{op=%q}", zero.op)); n != 1 {
			t.Errorf("the metrics count %g of %s", n, zero.op)
		}
		got := make([]byte, longest)
		for off := int64(0); off < size; off += longest {
			if err := client.ReadAt(ctx, got, off); err != nil {
				t.Fatalf("the read at %d after %s: %v", off, zero.name, err)
			}
			if n := notZero(got); n >= 0 {
				t.Fatalf("byte %d is not zero after %s", off+int64(n), zero.name)
			}
		}
		cancel()
		for _, n := range c.nodes {
			image, err := os.ReadFile(n.image)
			if err != nil {
				t.Fatal(err)
			}
			if at := notZero(image[:size]); at >= 0 {
				t.Errorf("byte %d of %s is not zero after %s", at, n.image, zero.name)
			}
		}
	}
	client.Close()
	c.finish(c.a)
}

// notZero is the first byte that is not zero, or -1.
func notZero(b []byte) int {
	return bytes.IndexFunc(b, func(r rune) bool { return r != 0 })
}
