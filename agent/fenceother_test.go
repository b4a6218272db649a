package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// A node that comes back while EC2 cannot be asked is not stopped any more.
func TestWhileLost(t *testing.T) {
	var back atomic.Bool
	ctx, done := whileLost(t.Context(), time.Millisecond, func() string {
		if back.Load() {
			return "it is back"
		}
		return ""
	})
	time.Sleep(20 * time.Millisecond)
	if ctx.Err() != nil {
		t.Fatal("ended while it was lost")
	}
	back.Store(true)
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on after the node has come back")
	}
	if err := context.Cause(ctx); err == nil || err.Error() != "it is back" {
		t.Errorf("%v", err)
	}
	done()
}
