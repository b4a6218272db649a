package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"tandem/e2e/vm"
)

// Scenario is one line of the table.
type Scenario struct {
	ID    string // fixed, because CI and documents name it
	Name  string
	Limit time.Duration // a scenario that takes longer has failed
	pair  *pairOptions  // of the pair that begin uses; nil: it uses none
	quiet bool          // another lab beside it would add to the times that it judges, or to a load that is all it bears
	begin func(*Run) []step
}

// step is what is printed, timed and named in an error.
type step struct {
	name string
	do   func(context.Context) error
}

// Scenarios are all there are, in the order of the table.
func Scenarios() []Scenario {
	return slices.Concat(smokes(), filesystemScenarios(), nfsScenarios(), awsScenarios(), moveScenarios(), powerScenarios(), linkScenarios(), fenceScenarios(), strainScenarios(), restarts(), deposeds())
}

// Quiet parts those that want no other lab beside them from the others.
func Quiet(all []Scenario) (quiet, others []Scenario) {
	for _, s := range all {
		if s.quiet {
			quiet = append(quiet, s)
		} else {
			others = append(others, s)
		}
	}
	return quiet, others
}

// Divide gives each of so many jobs its scenarios, so that they take about as long as each other.
// Those that can go on with one another's machines stay together, and in their order. seconds
// is how long each took last, by its id.
func Divide(all []Scenario, jobs int, seconds map[string]float64) [][]Scenario {
	const usual = 60 // of one that has not been seen
	type group struct {
		scenarios []Scenario
		cost      float64
	}
	var groups []*group
	of := make(map[pairOptions]*group)
	for _, s := range all {
		g := &group{}
		if s.pair != nil && of[*s.pair] != nil {
			g = of[*s.pair]
		} else {
			groups = append(groups, g)
			if s.pair != nil {
				of[*s.pair] = g
			}
		}
		g.scenarios = append(g.scenarios, s)
		if t, ok := seconds[s.ID]; ok {
			g.cost += t
		} else {
			g.cost += usual
		}
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return cmp.Compare(b.cost, a.cost) })
	divided := make([]group, min(jobs, len(groups)))
	for _, g := range groups { // the longest first, each to whom has least to do
		least := 0
		for i := range divided {
			if divided[i].cost < divided[least].cost {
				least = i
			}
		}
		divided[least].scenarios = append(divided[least].scenarios, g.scenarios...)
		divided[least].cost += g.cost
	}
	var lists [][]Scenario
	for _, d := range divided {
		lists = append(lists, d.scenarios)
	}
	return lists
}

// WantNewerKernel says whether one of them has machines with a newer kernel.
func WantNewerKernel(all []Scenario) bool {
	return slices.ContainsFunc(all, func(s Scenario) bool { return s.pair != nil && s.pair.mixed })
}

// ErrNoScenario is a word on the command line that selects nothing.
var ErrNoScenario = errors.New("no such scenario")

// Select returns the scenarios with one of these ids, or with an id that begins
// with one of these words and a dash. No words select all.
func Select(all []Scenario, words []string) ([]Scenario, error) {
	if len(words) == 0 {
		return all, nil
	}
	var chosen []Scenario
	used := make(map[string]bool)
	for _, s := range all {
		hit := false
		for _, w := range words {
			if s.ID == w || strings.HasPrefix(s.ID, w+"-") {
				hit, used[w] = true, true
			}
		}
		if hit {
			chosen = append(chosen, s)
		}
	}
	for _, w := range words {
		if !used[w] {
			return nil, fmt.Errorf("%w: %s", ErrNoScenario, w)
		}
	}
	return chosen, nil
}

// Run is a scenario under way.
type Run struct {
	Lab *vm.Lab

	id       string
	full     bool
	pace     time.Duration // after each record of writeRecords; 0: little
	left     *pair         // of the scenario before, nil if it is to make one
	pair     *pair         // that it leaves
	log      io.Writer
	began    time.Time
	asserted []string
}

// rounds is how often something is done that is to be done ten times: short is for CI.
func (r *Run) rounds(short int) int {
	if r.full {
		return 10
	}
	return short
}

// Assert notes what has been found to hold, or returns it as an error.
func (r *Run) Assert(holds bool, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if !holds {
		return fmt.Errorf("not so: %s", text)
	}
	r.asserted = append(r.asserted, text)
	r.Logf("  ✓ %s", text)
	return nil
}

// Logf prints a line with the time since the scenario began.
func (r *Run) Logf(format string, args ...any) {
	fmt.Fprintf(r.log, "%6.1fs "+format+"\n", append([]any{time.Since(r.began).Seconds()}, args...)...)
}

// Session plays scenarios one after the other in one lab.
type Session struct {
	Lab    *vm.Lab
	Commit string
	Full   bool // as often as issues say, not as CI has time for
	Log    io.Writer
	// Keep is called at a scenario's end, before the machines' files are gone.
	Keep func(id string)

	left *pair // running, of a scenario that has gone well
}

// Play runs one scenario. What it leaves running is the next one's, or is ended by Close.
func (s *Session) Play(ctx context.Context, sc Scenario) Result {
	r := &Run{Lab: s.Lab, id: sc.ID, full: s.Full, log: s.Log, began: time.Now()}
	fmt.Fprintf(s.Log, "\n%s: %s\n", sc.ID, sc.Name)
	ctx, cancel := context.WithTimeoutCause(ctx, sc.Limit, fmt.Errorf("it took longer than %v", sc.Limit))
	defer cancel()
	var err error
	if s.left != nil && sc.pair != nil && s.left.pairOptions == *sc.pair {
		r.left = s.left
	} else {
		err = s.Close()
	}
	s.left = nil
	if err == nil {
		err = r.play(ctx, sc.begin(r))
	}
	if err != nil {
		r.Logf("FAILED: %v", err)
		r.diagnose()
	}
	kernels := s.Lab.Kernels()
	s.Keep(sc.ID)
	if err == nil && r.pair != nil {
		s.left = r.pair
	} else {
		err = errors.Join(err, s.Close())
	}
	result := Result{
		ID: sc.ID, Name: sc.Name, OK: err == nil, Seconds: float64(time.Since(r.began).Milliseconds()) / 1000,
		Commit: s.Commit, Kernel: fmt.Sprintf("%s (%s)", kernels, s.Lab.Accel), Asserted: r.asserted,
	}
	if err != nil {
		result.Error = err.Error()
	}
	return result
}

// Close ends what the last scenario has left.
func (s *Session) Close() error {
	s.left = nil
	return s.Lab.Clear()
}

func (r *Run) play(ctx context.Context, steps []step) (err error) {
	name := ""
	// The other scenarios and the table must not go with a slip in one step.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v\n%s", name, p, debug.Stack())
		}
	}()
	for _, s := range steps {
		name = s.name
		r.Logf("%s", name)
		if err := s.do(ctx); err != nil {
			if ctx.Err() != nil {
				err = errors.Join(context.Cause(ctx), err)
			}
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// diagnose leaves what the living machines say of themselves in the shared
// folder, beside the agents' logs.
func (r *Run) diagnose() {
	const script = `exec >/e2e/$(cat /proc/sys/kernel/hostname)/last-state 2>&1
		timeout 10 replctl --config /e2e/$(cat /proc/sys/kernel/hostname)/tandem.yaml status
		ps axo pid,stat,wchan:24,args --sort pid | grep -v '\['
		dmesg | tail -60`
	// The scenario's own context may be what has ended.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, m := range r.Lab.Machines() {
		if _, err := m.Shell(ctx, script); err != nil && !errors.Is(err, vm.ErrOff) {
			r.Logf("no last state: %v", err)
		}
	}
}
