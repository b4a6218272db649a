package agent

import (
	"sync"
	"time"

	"tandem/agent/control"
	"tandem/blockrepl"
	"tandem/nbd"
)

// operations keeps the requests in flight, and what `status` says of the past
// ones.
type operations struct {
	mu    sync.Mutex
	table []*request // nbd.Request.Tag−1 is an index; nil is free
	free  []uint64
	pool  []*request
	stats [statKinds]histogram
}

// statKind is what requests are counted as. A trim has no payload, and is as long as it likes:
// counted as a write it would say of bytes and times what no write had.
type statKind int

const (
	statRead statKind = iota // block status too
	statWrite
	statFlush
	statTrim
	statWriteZeroes
	statKinds
)

// String is the label of the metrics.
func (k statKind) String() string {
	return [...]string{"read", "write", "flush", "trim", "write_zeroes"}[k]
}

func kindOf(q *request) statKind {
	switch q.kind {
	case blockrepl.OpRead:
		return statRead
	case blockrepl.OpFlush:
		return statFlush
	case blockrepl.OpZero:
		if q.r.Op == nbd.OpTrim {
			return statTrim
		}
		return statWriteZeroes
	}
	return statWrite
}

func (o *operations) init() {}

// get makes a request that is not yet in the table.
func (o *operations) get(r *nbd.Request) *request {
	o.mu.Lock()
	var q *request
	if k := len(o.pool); k > 0 {
		q, o.pool = o.pool[k-1], o.pool[:k-1]
	}
	o.mu.Unlock()
	if q == nil {
		q = &request{}
		q.tags = q.one[:0]
	}
	q.r, q.flags, q.next, q.tags = r, 0, 0, q.tags[:0]
	q.len, q.status = r.Len, false
	q.failed.Store(0)
	q.began = time.Now()
	return q
}

// keep enters q, so that Sent finds it.
func (o *operations) keep(q *request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if k := len(o.free); k > 0 {
		i := o.free[k-1]
		o.free = o.free[:k-1]
		o.table[i] = q
		q.r.Tag = i + 1
		return
	}
	o.table = append(o.table, q)
	q.r.Tag = uint64(len(o.table))
}

// take removes the request of r, nil if it never was one.
func (o *operations) take(r *nbd.Request) *request {
	if r.Tag == 0 {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	i := r.Tag - 1
	q := o.table[i]
	o.table[i] = nil
	o.free = append(o.free, i)
	return q
}

// put gives q back.
func (o *operations) put(q *request) {
	q.r = nil
	o.mu.Lock()
	o.pool = append(o.pool, q)
	o.mu.Unlock()
}

func (o *operations) record(q *request, err error) {
	d := time.Since(q.began)
	o.mu.Lock()
	o.stats[kindOf(q)].add(d, q.r.Len, err != nil)
	o.mu.Unlock()
}

func (o *operations) status() control.IOStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	return control.IOStatus{
		Read: o.stats[statRead].status(), Write: o.stats[statWrite].status(), Flush: o.stats[statFlush].status(),
		Trim: o.stats[statTrim].status(), WriteZeroes: o.stats[statWriteZeroes].status(),
	}
}

// histogram counts durations in buckets of a quarter of a power of two from
// 1 µs to about 70 minutes: a percentile is right to 19 %.
type histogram struct {
	count, errors, bytes uint64
	sum, max             time.Duration
	buckets              [128]uint64
}

func bucketOf(d time.Duration) int {
	us := uint64(max(d/time.Microsecond, 1))
	e := 63
	for us>>e == 0 {
		e--
	}
	frac := 0
	if e >= 2 {
		frac = int(us>>(e-2)) & 3
	}
	return min(e*4+frac, len(histogram{}.buckets)-1)
}

func bucketTop(i int) time.Duration {
	e, frac := i/4, i%4
	return time.Duration(float64(uint64(1)<<e)*(1+float64(frac+1)/4)) * time.Microsecond
}

func (h *histogram) add(d time.Duration, n int64, failed bool) {
	h.count++
	h.bytes += uint64(n)
	h.sum += d
	h.max = max(h.max, d)
	if failed {
		h.errors++
	}
	h.buckets[bucketOf(d)]++
}

func (h *histogram) quantile(q float64) time.Duration {
	want := uint64(q * float64(h.count))
	var seen uint64
	for i, n := range h.buckets {
		seen += n
		if n > 0 && seen > want {
			return min(bucketTop(i), h.max)
		}
	}
	return h.max
}

func (h *histogram) status() control.OpStatus {
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	return control.OpStatus{Count: h.count, Errors: h.errors, Bytes: h.bytes, P50US: us(h.quantile(0.5)), P99US: us(h.quantile(0.99)), MaxUS: us(h.max)}
}
