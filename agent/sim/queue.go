package sim

// event is one thing that will happen. Two events of the same instant happen
// in the order in which they were scheduled: seq makes the order total, so a
// life is a function of its seed.
type event struct {
	at  int64
	seq uint64
	fn  func()
}

// queue is a binary heap of events. container/heap would box every event; this
// is the simulation's hottest path.
type queue struct {
	h   []event
	seq uint64
}

func (q *queue) push(at int64, fn func()) {
	q.seq++
	q.h = append(q.h, event{at, q.seq, fn})
	i := len(q.h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !q.h[i].before(&q.h[p]) {
			break
		}
		q.h[i], q.h[p] = q.h[p], q.h[i]
		i = p
	}
}

func (q *queue) pop() event {
	top := q.h[0]
	n := len(q.h) - 1
	q.h[0] = q.h[n]
	q.h[n] = event{}
	q.h = q.h[:n]
	i := 0
	for {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && q.h[c+1].before(&q.h[c]) {
			c++
		}
		if !q.h[c].before(&q.h[i]) {
			break
		}
		q.h[i], q.h[c] = q.h[c], q.h[i]
		i = c
	}
	return top
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}
