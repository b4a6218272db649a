package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tandem/e2e/records"
	"tandem/e2e/vm"
)

// writeRecords runs writers in the guest and reports their end on the channel.
func (r *Run) writeRecords(ctx context.Context, m *vm.Machine, dir string, seed int, to io.Writer) <-chan error {
	ended := make(chan error, 1)
	go func() {
		ended <- m.Stream(ctx, fmt.Sprintf("exec e2e-guest write %s %d %d %d %v", dir, seed, writers, recordsAtMost, cmp.Or(r.pace, 10*time.Millisecond)), to)
	}()
	return ended
}

// acknowledged waits until each writer has n records in the ledger.
func (r *Run) acknowledged(ctx context.Context, l *records.Ledger, n int, ended <-chan error) error {
	said := time.Now()
	for {
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			r.Logf("  acknowledged so far: %v", l.Acked())
		}
		if a := l.Acked(); len(a) == writers && slices.Min(a) >= n {
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the writers ended after %v: %w", l.Acked(), err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// checkRecords reads back what a ledger has.
func checkRecords(ctx context.Context, m *vm.Machine, dir string, seed int, l *records.Ledger) (records.Report, error) {
	acked := strings.Trim(strings.ReplaceAll(fmt.Sprint(l.Acked()), " ", ","), "[]")
	var r records.Report
	out, err := m.Shell(ctx, fmt.Sprintf("e2e-guest check %s %d %s", dir, seed, acked))
	if out != "" {
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			return r, err
		}
	}
	if err == nil && (!r.Whole() || r.Acknowledged != l.Total() || r.Intact == 0) {
		err = errors.New("the report does not add up")
	}
	if err != nil {
		return r, fmt.Errorf("%w; %+v", err, r)
	}
	return r, nil
}
