package agent

import (
	"testing"
	"time"
)

func TestHangWatch(t *testing.T) {
	var h hangWatch
	since := time.Duration(0)
	look := func(step time.Duration) time.Duration {
		since += step
		return time.Duration(h.longest(since)).Round(time.Millisecond)
	}
	if d := look(time.Minute); d != 0 {
		t.Errorf("nothing is under way, and that for %v", d)
	}
	slow, quick := h.begin(), h.begin()
	for range 40 {
		look(tickEvery)
	}
	h.end(quick)
	if d := look(tickEvery); d != 41*tickEvery {
		t.Errorf("a request of 41 ticks is %v old", d)
	}
	// The agent is stopped for a minute, with the request under way.
	if d := look(time.Minute); d != 41*tickEvery+lookMost {
		t.Errorf("a minute in which the agent was stopped makes the request %v old", d)
	}
	// The disk really hangs.
	for range 20 * 60 {
		look(tickEvery)
	}
	if d := look(tickEvery); d < time.Minute {
		t.Errorf("after a minute with the agent at work the request is %v old", d)
	}
	h.end(slow)
	if d := look(tickEvery); d != 0 {
		t.Errorf("nothing is under way, and that for %v", d)
	}
	for range len(h.slots) {
		if i := h.begin(); i < 0 {
			t.Fatal("a slot is missing")
		}
	}
	if i := h.begin(); i != -1 {
		t.Errorf("slot %d is given twice", i)
	}
}
