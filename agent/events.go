package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"tandem/agent/control"
	"tandem/agent/history"
)

// eventLog keeps the last events for `replctl events` and wakes those who
// follow.
type eventLog struct {
	mu    sync.Mutex
	first uint64 // number of lines[0]
	lines []control.Event
	more  chan struct{} // closed and replaced with each event
}

// maxEvents is how many events are kept: some days of a quiet cluster.
const maxEvents = 1000

func (l *eventLog) init() { l.more = make(chan struct{}) }

func (l *eventLog) add(e control.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, e)
	if n := len(l.lines) - maxEvents; n > 0 {
		l.lines = append(l.lines[:0], l.lines[n:]...)
		l.first += uint64(n)
	}
	close(l.more)
	l.more = make(chan struct{})
}

// since returns the events from number n on, the number after the last, and a
// channel that is closed when there are more.
func (l *eventLog) since(n uint64) ([]control.Event, uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := l.first + uint64(len(l.lines))
	if n >= end {
		return nil, end, l.more
	}
	n = max(n, l.first)
	return append([]control.Event(nil), l.lines[n-l.first:]...), end, l.more
}

// event is one line in the log and for those who follow.
func (a *Agent) event(text string) {
	a.log.Info("event", "text", text)
	a.note(history.Entry{Kind: history.KindEvent, Why: text})
	a.events.add(control.Event{Time: time.Now(), Name: "event", Why: text})
}

func (a *Agent) eventf(format string, args ...any) { a.event(fmt.Sprintf(format, args...)) }

func (a *Agent) handleEvents(ctx context.Context, follow bool, send func(control.Message) error) error {
	n := uint64(0)
	for {
		lines, next, more := a.events.since(n)
		n = next
		for _, e := range lines {
			m, err := control.NewMessage(control.KindEvent, e.Time.Format("2006-01-02T15:04:05.000Z07:00")+" "+e.Why, e)
			if err != nil {
				return err
			}
			if err := send(m); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-more:
		}
	}
}
