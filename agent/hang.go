package agent

import (
	"sync/atomic"
	"time"
)

// hangWatch knows for how long each disk request is under way. A disk that hangs
// answers nothing, so only the time tells. A failed disk stays failed until
// the agent is restarted, and a process with a request in the kernel does not
// end before the request has returned: the disk is never used again with an
// old request still on its way.
//
// The time is the agent's own: it goes on with each look, by lookMost at most.
// 1 A request is on its way to a disk that is well. 2 The agent is stopped for a
// minute (SIGSTOP, a swap storm, a host that does not run this machine). 3 It goes on, and
// looks before the goroutine whose request has long returned has said so. By any
// other clock that disk would have failed.
type hangWatch struct {
	last  time.Duration    // of the last look
	clock atomic.Int64     // ns; slots count by it
	slots [64]atomic.Int64 // 0 is free
}

// lookMost is many times tickEvery, and much shorter than a disk_timeout.
const lookMost = 500 * time.Millisecond

// begin returns the slot to end, or -1: with so many under way the others tell.
func (h *hangWatch) begin() int {
	t := h.clock.Load() + 1 // not 0
	for i := range h.slots {
		if h.slots[i].Load() == 0 && h.slots[i].CompareAndSwap(0, t) {
			return i
		}
	}
	return -1
}

func (h *hangWatch) end(i int) {
	if i >= 0 {
		h.slots[i].Store(0)
	}
}

// longest is how long the oldest request has been under way, ns. It is called by one
// goroutine, again and again; since is the time since the agent's start.
func (h *hangWatch) longest(since time.Duration) (d int64) {
	now := h.clock.Add(int64(min(since-h.last, lookMost)))
	h.last = since
	for i := range h.slots {
		if t := h.slots[i].Load(); t != 0 {
			d = max(d, now-t)
		}
	}
	return d
}
