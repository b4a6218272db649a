package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken = errors.New("broken")

// trace is what happened, in order, with the virtual time since the start of the test.
type trace struct {
	mu    sync.Mutex
	began time.Time
	lines []string
}

func newTrace() *trace { return &trace{began: time.Now()} }

func (tr *trace) add(format string, args ...any) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.lines = append(tr.lines, fmt.Sprintf("%v ", time.Since(tr.began))+fmt.Sprintf(format, args...))
}

func (tr *trace) want(t *testing.T, want string) {
	t.Helper()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	got := strings.Join(tr.lines, "\n")
	if want = strings.ReplaceAll(strings.TrimSpace(want), "\t", ""); got != want {
		t.Errorf("got\n%s\n\nwant\n%s", got, want)
	}
	tr.lines = nil
}

// fake is a step that holds after a start, unless told otherwise.
type fake struct {
	name string
	tr   *trace

	mu       sync.Mutex
	holds    bool
	blind    bool          // has no check
	fails    int           // starts to fail; -1: all
	stopFail error         // of every stop
	takes    time.Duration // of a start
	stopTake time.Duration
	deaf     time.Duration // how long it goes on after the end of its context
	terms    []Term
}

func (f *fake) wait(ctx context.Context, d time.Duration) error {
	if !sleep(ctx, d) {
		time.Sleep(f.deaf)
		return context.Cause(ctx)
	}
	return nil
}

func (f *fake) Start(ctx context.Context, term Term) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.terms = append(f.terms, term)
	f.tr.add("start %s", f.name)
	if err := f.wait(ctx, f.takes); err != nil {
		f.tr.add("cut %s", f.name)
		return err
	}
	if f.fails != 0 {
		f.fails--
		return errBroken
	}
	f.holds = true
	return nil
}

func (f *fake) Stop(ctx context.Context, term Term) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.terms = append(f.terms, term)
	f.tr.add("stop %s", f.name)
	if err := f.wait(ctx, f.stopTake); err != nil {
		return err
	}
	if f.stopFail == nil {
		f.holds = false
	}
	return f.stopFail
}

func (f *fake) Check(context.Context, Term) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.blind:
		return ErrCannotTell
	case f.holds:
		return nil
	}
	return errors.New("gone")
}

func (f *fake) lose() { f.set(func(f *fake) { f.holds = false }) }

func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// fixture is a runner over fakes called a, b, …, with a limit of 10 s each.
type fixture struct {
	*Runner
	tr    *trace
	steps []*fake
	last  string // progress told last, so that nothing is told twice
}

func setup(t *testing.T, n int, change func(*Config)) *fixture {
	t.Helper()
	x := &fixture{tr: newTrace()}
	cfg := Config{Cluster: "c", Node: "n"}
	for i := range n {
		f := &fake{name: string(rune('a' + i)), tr: x.tr}
		x.steps = append(x.steps, f)
		cfg.Items = append(cfg.Items, Item{Name: f.name, Step: f})
	}
	cfg.Progress = func(s Status) {
		line := fmt.Sprintf("%s %s %s", s.Step, s.State, s.Error)
		if line == x.last {
			t.Errorf("told twice: %s", line)
		}
		x.last = line
	}
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	x.Runner = r
	t.Cleanup(r.Leave) // virtual time goes on for as long as somebody waits for it
	return x
}

// states is the status in one line.
func (x *fixture) states() string {
	var all []string
	for _, s := range x.Status() {
		all = append(all, fmt.Sprintf("%s:%s", s.Step, s.State))
	}
	return strings.Join(all, " ")
}

func (x *fixture) wantStates(t *testing.T, want string) {
	t.Helper()
	if got := x.states(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var actions []string
		x := setup(t, 3, func(c *Config) {
			c.Done = func(a Action) {
				actions = append(actions, fmt.Sprintf("%s %s %v %v e%d", a.Verb, a.Step, a.Took, a.Err, a.Epoch))
			}
		})
		x.steps[1].takes, x.steps[1].stopTake = 2*time.Second, time.Second
		x.wantStates(t, "a:stopped b:stopped c:stopped")
		if x.Up() {
			t.Error("up before the start")
		}
		if err := x.Start(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		x.wantStates(t, "a:running b:running c:running")
		if !x.Up() || x.Status()[2].Since.Sub(x.tr.began) != 2*time.Second {
			t.Errorf("%+v", x.Status())
		}
		if err := x.Start(t.Context(), 7); !errors.Is(err, ErrBusy) {
			t.Errorf("a second Start: %v", err)
		}
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.wantStates(t, "a:stopped b:stopped c:stopped")
		if err := x.Stop(t.Context()); err != nil { // nothing is left to stop
			t.Fatal(err)
		}
		x.tr.want(t, `
			0s start a
			0s start b
			2s start c
			2s stop c
			2s stop b
			3s stop a`)
		want := []string{"start a 0s <nil> e7", "start b 2s <nil> e7", "start c 0s <nil> e7",
			"stop c 0s <nil> e7", "stop b 1s <nil> e7", "stop a 0s <nil> e7"}
		if !slices.Equal(actions, want) {
			t.Errorf("%q", actions)
		}
		if want := []Term{{"c", "n", 7, Primary, "b"}, {"c", "n", 7, Secondary, "b"}}; !slices.Equal(x.steps[1].terms, want) {
			t.Errorf("%+v", x.steps[1].terms)
		}
		// Another term.
		if err := x.Start(t.Context(), 9); err != nil || x.steps[0].terms[2].Epoch != 9 {
			t.Errorf("%v %+v", err, x.steps[0].terms)
		}
		x.Leave()
	})
}

// greeter is a fake that wants to know when clients are answered.
type greeter struct {
	fake
	err error
}

func (g *greeter) Opened(ctx context.Context, term Term) error {
	g.tr.add("opened %s e%d %s", term.Step, term.Epoch, term.Role)
	if err := g.wait(ctx, g.takes); err != nil {
		g.tr.add("cut %s", g.name)
		return err
	}
	return g.err
}

// Clients are let in when the last step is up, and those steps that want to are told then.
func TestOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr *trace
		g := &greeter{err: errBroken}
		x := setup(t, 2, func(c *Config) {
			tr = c.Items[0].Step.(*fake).tr
			g.name, g.tr, g.holds = "g", tr, true
			c.Items = slices.Insert(c.Items, 1, Item{Name: "g", Step: g})
			c.Open = func(context.Context) { tr.add("open") }
		})
		x.steps[1].fails = 1
		if err := x.Start(t.Context(), 4); err != nil {
			t.Fatal(err)
		}
		tr.want(t, `
			0s start a
			0s start b
			1s start b
			1s open
			1s opened g e4 Primary`)
		// It is lost, and started again.
		g.lose()
		time.Sleep(defaultCheckEvery + time.Second)
		tr.want(t, `
			4s stop g
			4s start g
			4s opened g e4 Primary`)
		// Another is, which is none of its business.
		x.steps[0].lose()
		time.Sleep(defaultCheckEvery)
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		tr.want(t, `
			7s stop a
			7s start a
			8s stop b
			8s stop g
			8s stop a`)

		// A stop that comes while it is being told.
		g.set(func(g *fake) { g.holds, g.takes = true, time.Hour })
		ended := make(chan error, 1)
		go func() { ended <- x.Start(t.Context(), 5) }()
		time.Sleep(time.Second)
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, ErrStopped) {
			t.Errorf("%v", err)
		}
		tr.want(t, `
			8s start a
			8s start b
			8s open
			8s opened g e5 Primary
			9s cut g
			9s stop b
			9s stop g
			9s stop a`)
		// Its limit is the step's.
		g.set(func(g *fake) { g.holds = true })
		go func() { ended <- x.Start(t.Context(), 6) }()
		time.Sleep(defaultTimeout + 2*time.Second)
		if !x.Up() {
			t.Error(x.states())
		}
		tr.mu.Lock()
		if last := tr.lines[len(tr.lines)-1]; last != "19s cut g" {
			t.Error(tr.lines)
		}
		tr.mu.Unlock()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// After a restart of the agent the service is there already.
func TestWhatHoldsIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := 0
		x := setup(t, 3, func(c *Config) {
			c.Done = func(a Action) {
				if a.Held {
					held++
				}
			}
		})
		x.steps[0].holds = true
		x.steps[1].holds, x.steps[1].blind = true, true
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, "0s start b\n0s start c")
		if held != 1 {
			t.Errorf("%d held", held)
		}
		x.Leave()
		x.wantStates(t, "a:running b:running c:running")
		time.Sleep(time.Hour)
		x.tr.want(t, "") // nobody checks after Leave
	})
}

// A new Runner cannot know what an earlier life has left.
func TestStopOfANewRunnerStopsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 2, nil)
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, "0s stop b\n0s stop a")
	})
}

func TestRetryWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		x := setup(t, 2, func(c *Config) {
			c.Decide = func(f Failure) Decision {
				asked = append(asked, fmt.Sprintln(f.Step, f.Started, f.Failures, f.Hopeless(), f.Err))
				return Retry
			}
		})
		x.steps[0].fails = 7
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, `
			0s start a
			1s start a
			3s start a
			7s start a
			15s start a
			31s start a
			1m1s start a
			1m31s start a
			1m31s start b`)
		if len(asked) != 7 || asked[6] != "a false 7 false broken\n" {
			t.Errorf("%q", asked)
		}
		if s := x.Status()[0]; s.State != Running || s.Error != "" {
			t.Errorf("%+v", s)
		}
		x.Leave()
	})
}

func TestGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 3, func(c *Config) {
			c.Decide = func(f Failure) Decision {
				if f.Failures == 2 {
					return GiveUp
				}
				return Retry
			}
		})
		x.steps[1].fails = -1
		err := x.Start(t.Context(), 1)
		if !errors.Is(err, ErrGaveUp) || !errors.Is(err, errBroken) || err.Error() != "service step b: gave up: broken" {
			t.Fatalf("got %v", err)
		}
		x.wantStates(t, "a:running b:failed c:stopped")
		if s := x.Status()[1]; s.Error != "broken" || s.Failures != 2 {
			t.Errorf("%+v", s)
		}
		// c never began in this life, but may be there from an earlier one.
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, "0s start a\n0s start b\n1s start b\n1s stop c\n1s stop b\n1s stop a")
		if s := x.Status()[1]; s.State != Stopped || s.Error != "" || s.Failures != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestHopelessIsTold(t *testing.T) {
	for _, err := range []error{ErrHopeless, fmt.Errorf("exec: %w: no such file", ErrHopeless)} {
		if !(Failure{Err: err}).Hopeless() {
			t.Errorf("%v", err)
		}
	}
	if (Failure{Err: errBroken}).Hopeless() {
		t.Error("a plain error is hopeless")
	}
}

// Stop comes while a step starts, waits for its next try, or is checked.
func TestStopEndsAStartAtAnyMoment(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*fixture)
		after   time.Duration
		want    string
		ends    time.Duration
	}{
		{"mid-start", func(x *fixture) { x.steps[1].takes = 5 * time.Second }, 2 * time.Second,
			"0s start a\n0s start b\n2s cut b\n2s stop c\n2s stop b\n2s stop a", 2 * time.Second},
		{"mid-pause", func(x *fixture) { x.steps[1].fails = -1 }, 2 * time.Second,
			"0s start a\n0s start b\n1s start b\n2s stop c\n2s stop b\n2s stop a", 2 * time.Second},
		{"before the first", func(x *fixture) { x.steps[0].takes = time.Second }, 0,
			"0s start a\n0s cut a\n0s stop c\n0s stop b\n0s stop a", 0},
		{"a start that ends late", func(x *fixture) { x.steps[0].takes, x.steps[0].deaf = time.Hour, 2*time.Second }, time.Second,
			"0s start a\n3s cut a\n3s stop c\n3s stop b\n3s stop a", 3 * time.Second},
		// Its start and its stop together have the limit of one, 10 s.
		{"a stop that hangs after that", func(x *fixture) {
			x.steps[2].takes, x.steps[2].deaf, x.steps[2].stopTake = time.Hour, 2*time.Second, time.Hour
		}, time.Second, "0s start a\n0s start b\n0s start c\n3s cut c\n3s stop c\n13s stop b\n13s stop a", 13 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := setup(t, 3, nil)
				tc.prepare(x)
				started := make(chan error, 1)
				go func() { started <- x.Start(t.Context(), 1) }()
				synctest.Wait()
				time.Sleep(tc.after)
				err := x.Stop(t.Context())
				if hangs := x.steps[2].stopTake > 0; hangs != (err != nil) {
					t.Errorf("Stop: %v", err)
				} else if hangs && (!errors.Is(err, ErrTimeout) || !strings.HasPrefix(err.Error(), "service step c: did not end in its time")) {
					t.Errorf("Stop: %v", err)
				}
				if err := <-started; !errors.Is(err, ErrStopped) {
					t.Errorf("Start: %v", err)
				}
				if took := time.Since(x.tr.began); took != tc.ends {
					t.Errorf("ended after %v", took)
				}
				x.tr.want(t, tc.want)
				if took := x.StopTime(); took != 30*time.Second {
					t.Errorf("StopTime %v", took)
				}
			})
		})
	}
}

// The node's term ends: nothing more is started, and nothing stopped before Stop.
func TestContextEndsTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 2, nil)
		x.steps[1].takes = time.Minute
		lost := errors.New("lease lost")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(lost) })
		if err := x.Start(ctx, 1); !errors.Is(err, lost) {
			t.Fatalf("got %v", err)
		}
		x.tr.want(t, "0s start a\n0s start b\n1s cut b")
		x.wantStates(t, "a:running b:failed")
		if err := x.Start(ctx, 1); !errors.Is(err, lost) {
			t.Fatalf("got %v", err)
		}
		x.tr.want(t, "")
	})
}

// The last step has come up, and just then the node is no longer primary.
func TestContextEndsWithTheLastStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		x := setup(t, 1, func(c *Config) {
			c.Progress = func(s Status) {
				if s.State == Running {
					cancel()
				}
			}
		})
		if err := x.Start(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, "0s start a\n0s stop a")
	})
}

func TestAStepThatIsLostIsStartedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		x := setup(t, 3, func(c *Config) {
			c.Decide = func(f Failure) Decision {
				asked = append(asked, fmt.Sprintln(f.Step, f.Started, f.Failures))
				return Retry
			}
		})
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, "0s start a\n0s start b\n0s start c")
		x.steps[1].lose()
		time.Sleep(4 * time.Second)
		x.tr.want(t, "3s stop b\n3s start b")
		// Again, soon: it is not started every three seconds for ever.
		for range 40 {
			x.steps[1].lose()
			time.Sleep(time.Second)
		}
		x.tr.want(t, `
			9s stop b
			9s start b
			15s stop b
			15s start b
			24s stop b
			24s start b
			36s stop b
			36s start b`)
		// The others were looked after meanwhile.
		x.steps[2].lose()
		time.Sleep(4 * time.Second)
		x.tr.want(t, "45s stop c\n45s start c")
		// Long enough in peace, and it is as new.
		time.Sleep(3 * time.Minute)
		x.steps[1].lose()
		time.Sleep(4 * time.Second)
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if last := asked[len(asked)-1]; last != "b true 1\n" {
			t.Errorf("%q", asked)
		}
	})
}

func TestARestartThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 2, nil)
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.steps[0].lose()
		x.steps[0].set(func(f *fake) { f.fails, f.stopFail = 2, errBroken })
		time.Sleep(4 * time.Second)
		x.wantStates(t, "a:failed b:running")
		if x.Up() {
			t.Error("up")
		}
		// A stop that fails before a start is no reason not to start.
		time.Sleep(6 * time.Second)
		x.wantStates(t, "a:failed b:running")
		time.Sleep(6 * time.Second)
		x.wantStates(t, "a:running b:running")
		err := x.Stop(t.Context())
		if !errors.Is(err, errBroken) || err.Error() != "service step a: broken" {
			t.Errorf("got %v", err)
		}
		x.wantStates(t, "a:failed b:stopped")
	})
}

func TestGiveUpWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 2, func(c *Config) { c.Decide = func(f Failure) Decision { return GiveUp } })
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.steps[0].lose()
		time.Sleep(time.Minute)
		x.wantStates(t, "a:failed b:running")
		x.tr.want(t, "0s start a\n0s start b") // nothing more until the owner stops it
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, "1m0s stop b\n1m0s stop a")
	})
}

// A frozen node leaves its service alone: another may have it already.
func TestNothingHappensWhileTheNodeMayNotServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		serving := false
		set := func(on bool) { mu.Lock(); serving = on; mu.Unlock() }
		x := setup(t, 1, func(c *Config) {
			c.Serving = func() bool { mu.Lock(); defer mu.Unlock(); return serving }
		})
		time.AfterFunc(980*time.Millisecond, func() { set(true) })
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, "1s start a")
		set(false)
		x.steps[0].lose()
		time.Sleep(59 * time.Second)
		x.tr.want(t, "")
		set(true)
		time.Sleep(2 * time.Second)
		x.tr.want(t, "1m1s stop a\n1m1s start a")
		// And an end comes through while a start waits to be allowed.
		set(false)
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		started := make(chan error, 1)
		go func() { started <- x.Start(t.Context(), 2) }()
		synctest.Wait()
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-started; !errors.Is(err, ErrStopped) {
			t.Errorf("got %v", err)
		}
	})
}

// Every step may hang, and Stop ends when the limits are over.
func TestStopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 3, func(c *Config) { c.Items[1].Timeout = 3 * time.Second })
		for _, f := range x.steps {
			f.stopTake = time.Hour
		}
		err := x.Stop(t.Context())
		if took := time.Since(x.tr.began); took != 23*time.Second || x.StopTime() != took {
			t.Errorf("took %v, StopTime %v", took, x.StopTime())
		}
		for _, name := range []string{"a", "b", "c"} {
			if !strings.Contains(fmt.Sprint(err), "service step "+name+": ") {
				t.Errorf("got %v", err)
			}
		}
		x.wantStates(t, "a:failed b:failed c:failed")
		// The owner's own limit is shorter still.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := x.Stop(ctx); err == nil || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestTwoStopsAndAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 1, nil)
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.steps[0].set(func(f *fake) { f.stopTake = time.Second })
		done := make(chan error, 2)
		for range 2 {
			go func() { done <- x.Stop(t.Context()) }()
		}
		synctest.Wait()
		if err := x.Start(t.Context(), 2); !errors.Is(err, ErrBusy) {
			t.Errorf("a Start during Stop: %v", err)
		}
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		x.tr.want(t, "0s start a\n0s stop a")
		if err := x.Start(t.Context(), 2); err != nil {
			t.Error(err)
		}
		x.Leave()
	})
}

func TestAStartThatOverrunsItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 1, func(c *Config) { c.Decide = func(Failure) Decision { return GiveUp } })
		x.steps[0].takes = time.Minute
		err := x.Start(t.Context(), 1)
		if !errors.Is(err, ErrTimeout) || time.Since(x.tr.began) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(x.tr.began))
		}
	})
}

func TestNewRefuses(t *testing.T) {
	step := &Exec{StartArgv: []string{"true"}}
	for want, items := range map[string][]Item{
		"service step 0 has no name or nothing to do": {{Step: step}},
		"service step 1 has no name or nothing to do": {{Name: "a", Step: step}, {Name: "b"}},
		"two service steps are called a":              {{Name: "a", Step: step}, {Name: "a", Step: step}},
	} {
		if _, err := New(Config{Items: items}); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestAnEmptyListIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 0, nil)
		if err := x.Start(t.Context(), 1); err != nil || !x.Up() {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := x.Stop(t.Context()); err != nil || x.StopTime() != 0 {
			t.Fatal(err)
		}
	})
}

// quitter is an Abandoner.
type quitter struct {
	*fake
	err error
}

func (q quitter) Abandon(ctx context.Context, term Term) error {
	q.tr.add("abandon %s as %s", q.name, term.Role)
	if q.err == nil {
		return nil
	}
	<-ctx.Done()
	return errors.Join(q.err, context.Cause(ctx))
}

// TestAbandonComesBeforeEveryStop: what stands on a device must not wait for it when its node serves no more.
func TestAbandonComesBeforeEveryStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := setup(t, 3, func(c *Config) {
			c.Items[0].Step = quitter{c.Items[0].Step.(*fake), nil}
			c.Items[1].Step = quitter{c.Items[1].Step.(*fake), errBroken}
		})
		if err := x.Start(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		x.tr.lines = nil
		time.Sleep(500 * time.Millisecond)
		// The second hangs: it has its limit, and is no reason not to stop.
		if err := x.Abandon(t.Context()); !errors.Is(err, errBroken) || !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "step b") {
			t.Errorf("%v", err)
		}
		// The checks have ended: what was abandoned must not be started again.
		x.steps[2].lose()
		time.Sleep(time.Minute)
		if err := x.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.tr.want(t, `
			500ms abandon a as Secondary
			500ms abandon b as Secondary
			1m10.5s stop c
			1m10.5s stop b
			1m10.5s stop a`)
	})
}
