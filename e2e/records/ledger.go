package records

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
)

// Ledger is the host's list of what was acknowledged: the io.Writer that a
// writer's output goes to. What is in it was durable when its line was sent, so
// it is safe to cut the power at any time.
type Ledger struct {
	mu    sync.Mutex
	part  []byte // of a line that has not ended
	next  []int  // per writer, the number that its next line must have
	wrong error
}

// maxWriters bounds what a garbled line can make the ledger allocate.
const maxWriters = 64

// Write takes a piece of output, which need not end at a line's end.
func (l *Ledger) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = append(l.part, p...)
	for l.wrong == nil {
		i := bytes.IndexByte(l.part, '\n')
		if i < 0 {
			break
		}
		l.wrong = l.line(string(l.part[:i]))
		l.part = l.part[i+1:]
	}
	return len(p), l.wrong
}

func (l *Ledger) line(s string) error {
	var w, n int
	if k, err := fmt.Sscanf(s, "ack %d %d", &w, &n); k != 2 || err != nil || w < 0 || w >= maxWriters {
		return fmt.Errorf("ledger: %q is no acknowledgement", s)
	}
	for len(l.next) <= w {
		l.next = append(l.next, 0)
	}
	if n != l.next[w] {
		return fmt.Errorf("ledger: writer %d acknowledged %d, expected %d", w, n, l.next[w])
	}
	l.next[w]++
	return nil
}

// Acked is how many records of each writer were acknowledged.
func (l *Ledger) Acked() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.next)
}

// Total is how many records were acknowledged.
func (l *Ledger) Total() int {
	sum := 0
	for _, n := range l.Acked() {
		sum += n
	}
	return sum
}
