package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

const (
	// defaultTimeout is the contract's, design.md section 8.
	defaultTimeout = 10 * time.Second

	// defaultCheckEvery finds a dead service soon enough to matter to a client
	// that waits, and costs one run of each check.
	defaultCheckEvery = 3 * time.Second

	// A step that fails is tried again after firstPause, then twice as long, up to
	// maxPause: long enough not to be a load, short enough that the service is back
	// soon after the cause is gone.
	firstPause = time.Second
	maxPause   = 30 * time.Second

	// servingPoll is how soon a start goes on when the node may serve again.
	servingPoll = 50 * time.Millisecond

	// stableAfter is how long a step must run for its failures to be forgotten.
	stableAfter = time.Minute
)

// Item is a step with its place in the list.
type Item struct {
	Name    string // unique, for status, history and messages
	Step    Step
	Timeout time.Duration // for each Start, Stop and Check; 0: 10 s
}

// Config is what a Runner needs. The callbacks are called one at a time, by the
// Runner's own goroutines and never under a lock; they must return soon, and must
// not call Start, Stop or Leave.
type Config struct {
	Cluster string
	Node    string
	Items   []Item // in start order; may be empty

	// CheckEvery is the time between two rounds of checks; 0: 3 s.
	CheckEvery time.Duration

	// Serving says whether the node may serve at this moment. While it says no
	// (the node is frozen, and another may be primary already) nothing is
	// started, checked or announced. nil: always.
	Serving func() bool

	// Open is called when all steps have started, and lets clients be answered. It
	// returns when they are, or when ctx is over.
	Open func(ctx context.Context)

	// Decide is asked after each failed start, and after each failed check.
	// nil: Retry.
	Decide func(Failure) Decision

	// Progress is told every change of state.
	Progress func(Status)

	// Done is told every start and stop that has ended, for the history.
	Done func(Action)

	Log *slog.Logger
}

// Status is one step, as `status --json` shows it.
type Status struct {
	Step     string    `json:"step"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	Error    string    `json:"error,omitempty"`    // why it failed, last; empty once it runs again
	Failures int       `json:"failures,omitempty"` // in a row
}

// Action is one start or stop of a step.
type Action struct {
	Step  string
	Verb  string // "start" or "stop"
	Took  time.Duration
	Held  bool  // it held already: nothing was done
	Err   error // nil: it went well
	Epoch uint64
}

// Failure is a step that did not start, or that no longer holds.
type Failure struct {
	Step     string
	Started  bool  // it ran and no longer holds; false: it did not start
	Failures int   // in a row, this one included
	Err      error // wraps ErrHopeless if trying again is of no use
}

// Hopeless says that the same failure will come again until somebody changes the node.
func (f Failure) Hopeless() bool { return errors.Is(f.Err, ErrHopeless) }

// Decision is what the owner wants done about a Failure.
type Decision uint8

// Retry tries again after a pause. GiveUp ends Start with ErrGaveUp, or the checks;
// the owner then has to call Stop: it said so because another node could do better.
const (
	Retry Decision = iota
	GiveUp
)

// Runner runs the list. New makes one; its zero value is of no use.
type Runner struct {
	cfg Config

	// stopping is full for the whole of a Stop, so that a second one waits for the
	// first and finds everything stopped.
	stopping chan struct{}

	mu    sync.Mutex // guards what follows
	steps []stepState
	run   *run // nil: neither Start nor the checks run
	stops int  // calls of Stop under way: no Start may get in between
	epoch uint64
}

type stepState struct {
	Status

	// perhaps: the step was started or might have been, in this life or, as far as a
	// new Runner can know, in an earlier one. Only a Stop that went well clears it.
	perhaps bool

	nextTry time.Time // of a failed step, while the checks run
}

// run is one Start and the checks that follow it.
type run struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when its last goroutine has ended
	term   Term
	active int // the step that is being started or stopped; -1: none
}

// New checks the list. It starts nothing.
func New(cfg Config) (*Runner, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CheckEvery == 0 {
		cfg.CheckEvery = defaultCheckEvery
	}
	if cfg.Decide == nil {
		cfg.Decide = func(Failure) Decision { return Retry }
	}
	r := &Runner{cfg: cfg, stopping: make(chan struct{}, 1), steps: make([]stepState, len(cfg.Items))}
	r.cfg.Items = slices.Clone(cfg.Items)
	now := time.Now()
	for i := range r.cfg.Items {
		item := &r.cfg.Items[i]
		if item.Step == nil || item.Name == "" {
			return nil, fmt.Errorf("service step %d has no name or nothing to do", i)
		}
		if slices.ContainsFunc(cfg.Items[:i], func(o Item) bool { return o.Name == item.Name }) {
			return nil, fmt.Errorf("two service steps are called %s", item.Name)
		}
		if item.Timeout <= 0 {
			item.Timeout = defaultTimeout
		}
		r.steps[i] = stepState{Status: Status{Step: item.Name, State: Stopped, Since: now}, perhaps: true}
	}
	return r, nil
}

// Status returns every step in start order.
func (r *Runner) Status() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Status, len(r.steps))
	for i := range r.steps {
		all[i] = r.steps[i].Status
	}
	return all
}

// Up says whether every step runs.
func (r *Runner) Up() bool {
	return !slices.ContainsFunc(r.Status(), func(s Status) bool { return s.State != Running })
}

// StopTime is the longest that Stop takes, for the owner's plan of when to fence.
// What ends a stuck command comes on top, about a second.
func (r *Runner) StopTime() time.Duration {
	var sum time.Duration
	for i := range r.cfg.Items {
		sum += r.cfg.Items[i].Timeout
	}
	return sum
}

// Start starts the steps in order, each as often as Decide says, and returns when
// all run; the checks then go on until Stop, Leave, or the end of ctx. So ctx is
// the node's term as primary, and its end ends everything here at once, but stops
// no step: that is Stop's.
//
// Errors: ErrBusy, ErrGaveUp (with the step's own), the cause of ctx's end,
// ErrStopped. After an error some steps may run: call Stop.
func (r *Runner) Start(ctx context.Context, epoch uint64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	r.mu.Lock()
	if r.run != nil || r.stops > 0 {
		r.mu.Unlock()
		cancel(nil)
		return ErrBusy
	}
	t := &run{cancel: cancel, done: make(chan struct{}), term: r.term(epoch, Primary), active: -1}
	r.run, r.epoch = t, epoch
	for i := range r.steps {
		r.steps[i].Failures = 0 // those of another term
	}
	r.mu.Unlock()

	for i := range r.cfg.Items {
		if err := r.bring(ctx, t, i); err != nil {
			r.finish(t)
			return err
		}
	}
	r.open(ctx, t)
	// The end may have come just after the last step, with nobody to notice.
	if ctx.Err() != nil {
		defer r.finish(t)
		return context.Cause(ctx)
	}
	go r.runChecks(ctx, t)
	return nil
}

// open lets clients in, and tells the steps that want to know.
func (r *Runner) open(ctx context.Context, t *run) {
	if r.cfg.Open != nil {
		r.cfg.Open(ctx)
	}
	for i := range r.cfg.Items {
		r.opened(ctx, t, i)
	}
}

// opened tells one step, if it wants to know.
func (r *Runner) opened(ctx context.Context, t *run, i int) {
	item, term := &r.cfg.Items[i], t.term
	term.Step = item.Name
	o, ok := item.Step.(Opener)
	if !ok || ctx.Err() != nil {
		return
	}
	defer r.busyWith(t, i)()
	if err := within(ctx, item.Timeout, func(ctx context.Context) error { return o.Opened(ctx, term) }); err != nil && ctx.Err() == nil {
		r.cfg.Log.Warn("service step, when clients are answered", "step", item.Name, "err", err)
	}
}

func (r *Runner) term(epoch uint64, role Role) Term {
	return Term{Cluster: r.cfg.Cluster, Node: r.cfg.Node, Epoch: epoch, Role: role}
}

func (r *Runner) finish(t *run) {
	t.cancel(nil)
	r.mu.Lock()
	r.run = nil
	r.mu.Unlock()
	close(t.done)
}

// bring starts one step, however many attempts that takes.
func (r *Runner) bring(ctx context.Context, t *run, i int) error {
	for {
		for r.cfg.Serving != nil && !r.cfg.Serving() {
			if !sleep(ctx, servingPoll) {
				return context.Cause(ctx)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := r.start(ctx, t, i)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		failures := r.steps[i].Failures // only this goroutine writes it
		if r.decide(i, false, failures, err) == GiveUp {
			return fmt.Errorf("service step %s: %w: %w", r.cfg.Items[i].Name, ErrGaveUp, err)
		}
		if !sleep(ctx, pause(failures)) {
			return context.Cause(ctx)
		}
	}
}

func (r *Runner) decide(i int, started bool, failures int, err error) Decision {
	d := r.cfg.Decide(Failure{Step: r.cfg.Items[i].Name, Started: started, Failures: failures, Err: err})
	r.cfg.Log.Warn("service step failed", "step", r.cfg.Items[i].Name, "started", started, "failures", failures,
		"give_up", d == GiveUp, "err", err)
	return d
}

// busyWith notes the step that is being worked on until the returned function is called.
func (r *Runner) busyWith(t *run, i int) (done func()) {
	note := func(i int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		t.active = i
	}
	note(i)
	return func() { note(-1) }
}

// start makes one attempt.
func (r *Runner) start(ctx context.Context, t *run, i int) error {
	item, term := &r.cfg.Items[i], t.term
	term.Step = item.Name
	defer r.busyWith(t, i)()
	r.mu.Lock()
	r.steps[i].perhaps = true
	r.mu.Unlock()
	began := time.Now()
	r.set(i, Starting, nil)
	held := within(ctx, item.Timeout, func(ctx context.Context) error { return item.Step.Check(ctx, term) }) == nil
	var err error
	if !held && ctx.Err() == nil {
		err = within(ctx, item.Timeout, func(ctx context.Context) error { return item.Step.Start(ctx, term) })
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	r.done(Action{Step: item.Name, Verb: "start", Took: time.Since(began), Held: held && err == nil, Err: err, Epoch: term.Epoch})
	if err != nil {
		r.set(i, Failed, err)
		return err
	}
	r.set(i, Running, nil)
	return nil
}

// runChecks is the Runner's goroutine while the service is up. A failed step does
// not keep the others from being checked: it is tried again when its pause is over.
func (r *Runner) runChecks(ctx context.Context, t *run) {
	defer r.finish(t)
	for sleep(ctx, r.cfg.CheckEvery) {
		for i := range r.cfg.Items {
			if ctx.Err() != nil || r.cfg.Serving != nil && !r.cfg.Serving() {
				break
			}
			if !r.tend(ctx, t, i) {
				return
			}
		}
	}
}

// tend checks one step, and starts it again if it needs that. It returns false
// when the owner gave up.
func (r *Runner) tend(ctx context.Context, t *run, i int) bool {
	r.mu.Lock()
	st := r.steps[i]
	r.mu.Unlock()
	if st.State == Running {
		done := r.busyWith(t, i)
		item, term := &r.cfg.Items[i], t.term
		term.Step = item.Name
		err := within(ctx, item.Timeout, func(ctx context.Context) error { return item.Step.Check(ctx, term) })
		done()
		switch {
		case ctx.Err() != nil:
			return true // the check was cut off: it says nothing
		case err == nil || errors.Is(err, ErrCannotTell):
			if st.Failures > 0 && time.Since(st.Since) >= stableAfter {
				r.mu.Lock()
				r.steps[i].Failures = 0
				r.mu.Unlock()
			}
			return true
		}
		r.set(i, Failed, err)
		if r.decide(i, true, st.Failures+1, err) == GiveUp {
			return false
		}
		// The first time there is nothing to wait for.
		wait := time.Duration(0)
		if st.Failures > 0 {
			wait = pause(st.Failures)
		}
		r.retryAt(i, wait)
	}
	r.mu.Lock()
	next := r.steps[i].nextTry
	r.mu.Unlock()
	if time.Now().Before(next) {
		return true
	}
	// What is left of it would be in the way of a start; that it cannot be stopped
	// is no reason not to try.
	_ = r.stop(ctx, t, i, r.cfg.Items[i].Timeout, Primary)
	if ctx.Err() != nil {
		return true
	}
	if err := r.start(ctx, t, i); err != nil && ctx.Err() == nil {
		failures := r.steps[i].Failures
		if r.decide(i, false, failures, err) == GiveUp {
			return false
		}
		r.retryAt(i, pause(failures))
		return true
	}
	r.opened(ctx, t, i)
	return true
}

func (r *Runner) retryAt(i int, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps[i].nextTry = time.Now().Add(wait)
}

// Stop ends a Start or the checks, then stops in reverse order every step that was
// or might have been started: in an earlier life too, as far as a new Runner knows.
// It goes on after a step that cannot be stopped and returns all their errors;
// after one the service may still be there, and the owner has to fence the node.
// The end of ctx cuts it short. After Stop the Runner can be started again.
func (r *Runner) Stop(ctx context.Context) error {
	r.mu.Lock()
	r.stops++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.stops--
	}()
	select {
	case r.stopping <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-r.stopping }()
	began := time.Now()
	interrupted := r.interrupt()
	r.mu.Lock()
	t := &run{term: r.term(r.epoch, Secondary), active: -1}
	r.mu.Unlock()

	var errs []error
	for i := len(r.cfg.Items) - 1; i >= 0; i-- {
		r.mu.Lock()
		perhaps := r.steps[i].perhaps
		r.mu.Unlock()
		if !perhaps {
			continue
		}
		limit := r.cfg.Items[i].Timeout
		if i == interrupted {
			// Ending its start was part of stopping it, at most a quarter of the time
			// or so; a Step that took longer is stopped all the same.
			limit = max(limit-time.Since(began), limit/2)
		}
		if err := r.stop(ctx, t, i, limit, Secondary); err != nil {
			errs = append(errs, fmt.Errorf("service step %s: %w", r.cfg.Items[i].Name, err))
		}
	}
	return errors.Join(errs...)
}

// Abandon ends a Start or the checks, and tells the steps that are Abandoners that their node serves no more. It is for
// the time just before a Stop that nobody planned; before one that was, what the steps still have to write must go through.
// It returns their errors, which are no reason not to go on.
func (r *Runner) Abandon(ctx context.Context) error {
	r.interrupt()
	r.mu.Lock()
	term := r.term(r.epoch, Secondary)
	r.mu.Unlock()
	var errs []error
	for i := range r.cfg.Items {
		item := &r.cfg.Items[i]
		a, ok := item.Step.(Abandoner)
		if !ok {
			continue
		}
		term.Step = item.Name
		if err := within(ctx, item.Timeout, func(ctx context.Context) error { return a.Abandon(ctx, term) }); err != nil {
			errs = append(errs, fmt.Errorf("service step %s: %w", item.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Leave ends a Start or the checks and leaves every step as it is: the agent
// restarts, and the service is to wait for it.
func (r *Runner) Leave() { r.interrupt() }

// interrupt returns the step that was being started or stopped, or -1.
func (r *Runner) interrupt() int {
	r.mu.Lock()
	t := r.run
	active := -1
	if t != nil {
		active = t.active
	}
	r.mu.Unlock()
	if t == nil {
		return -1
	}
	t.cancel(ErrStopped)
	<-t.done // soon: a Step returns when its context is over
	return active
}

// stop stops one step, whatever its state.
func (r *Runner) stop(ctx context.Context, t *run, i int, limit time.Duration, role Role) error {
	item, term := &r.cfg.Items[i], t.term
	term.Step, term.Role = item.Name, role
	defer r.busyWith(t, i)()
	began := time.Now()
	r.set(i, Stopping, nil)
	err := within(ctx, limit, func(ctx context.Context) error { return item.Step.Stop(ctx, term) })
	r.done(Action{Step: item.Name, Verb: "stop", Took: time.Since(began), Err: err, Epoch: term.Epoch})
	if err != nil {
		r.cfg.Log.Warn("service step did not stop", "step", item.Name, "err", err)
		r.set(i, Failed, err)
		return err
	}
	r.mu.Lock()
	r.steps[i].perhaps = false
	if role == Secondary {
		r.steps[i].Error, r.steps[i].Failures = "", 0
	}
	r.mu.Unlock()
	r.set(i, Stopped, nil)
	return nil
}

// set changes a step's state and tells it.
func (r *Runner) set(i int, state State, why error) {
	r.mu.Lock()
	s := &r.steps[i].Status
	was := s.State
	s.State, s.Since = state, time.Now()
	switch {
	case why != nil:
		s.Error = why.Error()
		if was != Stopping {
			s.Failures++
		}
	case state == Running:
		s.Error = ""
	}
	told := *s
	r.mu.Unlock()
	if r.cfg.Progress != nil {
		r.cfg.Progress(told)
	}
}

func (r *Runner) done(a Action) {
	if r.cfg.Done != nil {
		r.cfg.Done(a)
	}
}

// within calls f with a limit, and says ErrTimeout when it was the limit that ended it.
func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	limited, cancel := context.WithTimeoutCause(ctx, limit, ErrTimeout)
	defer cancel()
	err := f(limited)
	switch {
	case err == nil, errors.Is(err, ErrTimeout):
	case ctx.Err() == nil && limited.Err() != nil:
		err = fmt.Errorf("%w (%v): %w", ErrTimeout, limit.Round(time.Millisecond), err)
	}
	return err
}

// pause is how long to wait after the given number of failures in a row.
func pause(failures int) time.Duration {
	p := firstPause
	for i := 1; i < failures && p < maxPause; i++ {
		p *= 2
	}
	return min(p, maxPause)
}

// sleep returns false if ctx was over first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
