package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tandem/agent/config"
	"tandem/failover"
	"tandem/failover/awsclient"
	"tandem/failover/record"
	"tandem/failover/witness"
)

// openWitness opens the config's witness. Nobody is asked yet.
func openWitness(cfg *config.Config) (witness.Store, error) {
	return witness.OpenOn(cfg.Witness, cfg.Dir, awsclient.Options{Region: cfg.AWS.Region, Metadata: cfg.AWS.Metadata})
}

// runKeeper has what the witness needs at hand before it is asked: it is asked for changes
// only, and credentials may have ended since the last one.
func (a *Agent) runKeeper(ctx context.Context) {
	if k, ok := a.store.(witness.Keeper); ok {
		k.Keep(ctx, func(err error) { a.log.Warn("the witness may not be reached when it is needed", "err", err) })
	}
}

// probe is what is known of the store's conditions.
//
// Until it is known that they hold, the witness counts as out: no record is read
// through it, so none can be changed. That costs a start some milliseconds, and
// one without the witness nothing: there is no record then either.
type probe struct {
	passed chan struct{} // closed when they hold

	mu  sync.Mutex
	err error // the last attempt's; guarded by mu
}

func (p *probe) init() { p.passed = make(chan struct{}) }

func (p *probe) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// wait returns when the conditions are known to hold, or why they are not when
// ctx has ended.
func (p *probe) wait(ctx context.Context) error {
	select {
	case <-p.passed:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	return fmt.Errorf("probe the witness: %w", ctx.Err())
}

// The probe is repeated like a read of the record.
const (
	firstProbeRetry = 200 * time.Millisecond
	lastProbeRetry  = time.Second
)

// runProbe probes the store until that was possible. It returns an error only if
// the store is not fit to be a witness, which ends the agent: an operator has to
// look, and the other node goes on.
func (a *Agent) runProbe(ctx context.Context) error {
	for wait := firstProbeRetry; ; wait = min(2*wait, lastProbeRetry) {
		err := witness.Probe(ctx, a.store, a.cfg.Failover.Lease/2)
		switch {
		case err == nil:
			close(a.probe.passed)
			return nil
		case errors.Is(err, witness.ErrIgnoresConditions):
			return fmt.Errorf("witness %s: %w", a.cfg.Witness, err)
		}
		a.probe.failed(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// runWitness asks the witness. Each question has half a lease, from the moment
// the core asked: `promote --force` elsewhere waits for as long as our read may
// take. So a question does not wait for the answer of one that the core has
// given up; there are never more than a few.
func (a *Agent) runWitness(ctx context.Context) {
	var asked sync.WaitGroup
	defer asked.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-a.witq:
			asked.Go(func() { a.askWitness(ctx, &e) })
		}
	}
}

func (a *Agent) askWitness(ctx context.Context, e *failover.Effect) {
	c, cancel := context.WithTimeout(ctx, a.cfg.Failover.Lease/2)
	defer cancel()
	if e.Kind == failover.Read {
		rec, version, err := a.readRecord(c)
		if ctx.Err() == nil {
			a.input(func(now int64) { a.node.Vote.ReadDone(now, e.Tag, rec, version, err) })
		}
		return
	}
	out, version := a.casRecord(c, e)
	if ctx.Err() == nil {
		a.input(func(now int64) { a.node.Vote.CASDone(now, e.Tag, out, version) })
	}
}

func (a *Agent) readRecord(ctx context.Context) (*failover.Record, string, error) {
	if err := a.probe.wait(ctx); err != nil {
		return nil, "", err
	}
	b, version, err := a.store.Read(ctx)
	if err != nil || len(b) == 0 {
		return nil, version, err
	}
	r, err := record.Decode(b)
	if err != nil {
		return nil, "", err
	}
	return &r, version, nil
}

func (a *Agent) casRecord(ctx context.Context, e *failover.Effect) (failover.Outcome, string) {
	r := e.Record.Clone()
	// The core knows no wall clock. These are for people; nothing is decided
	// by them.
	r.ChangedAt = time.Now().UTC().Truncate(time.Millisecond)
	if e.Text != "" {
		r.Reason += " (" + e.Text + ")"
	}
	if r.Paused != nil && r.Paused.Since.IsZero() {
		r.Paused.Since = r.ChangedAt
	}
	b, err := record.Encode(r)
	if err != nil {
		a.log.Error("cluster record", "err", err)
		return failover.Unknown, ""
	}
	// The core changes only what it has read, so this does not wait in practice.
	if err := a.probe.wait(ctx); err != nil {
		return failover.Unknown, ""
	}
	faultPoint("cas")
	version, err := a.store.CAS(ctx, e.Version, b)
	faultPoint("cas-done")
	switch {
	case err == nil:
		return failover.Won, version
	case errors.Is(err, witness.ErrConflict):
		return failover.Conflict, ""
	}
	a.log.Warn("witness: the outcome of a change is unknown", "err", err)
	return failover.Unknown, ""
}

// voteEffect carries out what the cores ask of the witness and of operators.
// The mutex is held.
func (a *Agent) voteEffect(e *failover.Effect) {
	switch e.Kind {
	case failover.Read, failover.CAS:
		// At most one Read and one CAS are outstanding: there is always room.
		q := *e
		q.Text = a.asker(e.Change)
		a.witq <- q
	case failover.Reply:
		a.answer(e.Tag, answer{done: true, ok: e.OK, text: e.Text})
	case failover.Progress:
		a.answer(e.Tag, answer{text: e.Text})
	case failover.Serve:
		a.stand.serve(e.Until)
	case failover.Quiesce:
		a.stand.order(order{planned: e.Epoch})
	case failover.StepDown:
		a.stand.reason = e.Text
		a.stand.serve(0)
		a.chronicle.why = e.Text
		a.event("no longer Primary: " + e.Text)
	case failover.Event:
		a.event(e.Text)
	}
}
