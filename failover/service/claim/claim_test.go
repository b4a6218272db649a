package claim

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/smithy-go"

	"tandem/failover/service"
)

func code(c string) error { return &smithy.GenericAPIError{Code: c, Message: "AWS says " + c} }

func TestWatch(t *testing.T) {
	now := time.Unix(1e9, 0)
	w := Watch{Now: func() time.Time { return now }}
	looks := 0
	var answer, unknown error
	check := func(epoch uint64) error {
		return w.Check(t.Context(), epoch, func(ctx context.Context) (error, error) {
			looks++
			if end, ok := ctx.Deadline(); !ok || time.Until(end) > lookLimit {
				t.Error("a look has no limit")
			}
			return answer, unknown
		})
	}
	for _, s := range []struct {
		do      string
		after   time.Duration
		epoch   uint64
		answer  error
		unknown error
		looks   int // so far
		want    error
	}{
		{"nothing is known, and AWS does not say", 0, 1, nil, code("Unavailable"), 1, service.ErrCannotTell},
		{"so it is asked again at once", 0, 1, ErrLost, nil, 2, ErrLost},
		{"it holds", 0, 1, nil, nil, 3, nil},
		{"so it is believed for a while", lookEvery - 1, 1, ErrLost, nil, 3, nil},
		{"one answer is not believed", 1, 1, ErrLost, nil, 4, nil},
		{"and asked for again, not at once", doubtFor - 1, 1, ErrLost, nil, 4, nil},
		{"it was stale", 1, 1, nil, nil, 5, nil},
		{"no answer says nothing", lookEvery, 1, nil, code("Unavailable"), 6, service.ErrCannotTell},
		{"nor is it asked again soon", time.Second, 1, nil, code("Unavailable"), 6, nil},
		{"doubt", lookEvery, 1, ErrLost, nil, 7, nil},
		{"no answer in doubt", doubtFor, 1, nil, code("Unavailable"), 8, service.ErrCannotTell},
		{"lost", doubtFor, 1, ErrLost, nil, 9, ErrLost},
		{"lost at once, when nothing is known", 0, 1, ErrLost, nil, 10, ErrLost},
		{"it holds again", 0, 1, nil, nil, 11, nil},
		{"another term: what held does not count", 0, 2, ErrLost, nil, 12, ErrLost},
	} {
		now = now.Add(s.after)
		answer, unknown = s.answer, s.unknown
		if err := check(s.epoch); !errors.Is(err, s.want) || err != nil && s.want == nil || looks != s.looks {
			t.Fatalf("%s: %v after %d looks", s.do, err, looks)
		}
	}
	w.Held(2)
	if err := check(2); err != nil || looks != 12 {
		t.Errorf("after a start: %v after %d looks", err, looks)
	}
	w.Reset()
	if err := check(2); !errors.Is(err, ErrLost) {
		t.Errorf("after a stop: %v", err)
	}
}

func TestConfirm(t *testing.T) {
	silent := code("Unavailable")
	for _, tc := range []struct {
		name             string
		lost, unknown    []error // answers in order, the last again and again
		limit            time.Duration
		want, unanswered error
	}{
		{"at once", []error{nil}, []error{nil}, 10 * time.Second, nil, nil},
		{"stale", []error{ErrLost, ErrLost, nil}, []error{nil}, 10 * time.Second, nil, nil},
		{"stale, and errors", []error{ErrLost, nil, nil}, []error{nil, silent, nil}, 10 * time.Second, nil, nil},
		{"another's", []error{ErrLost}, []error{nil}, 10 * time.Second, ErrLost, nil},
		{"another's, and then errors", []error{ErrLost, nil}, []error{nil, silent}, 10 * time.Second, ErrLost, nil},
		{"no answer", []error{nil}, []error{silent}, 10 * time.Second, nil, silent},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), tc.limit)
			defer cancel()
			i := 0
			at := func(all []error) error { return all[min(i, len(all)-1)] }
			lost, unanswered := Confirm(ctx, func(context.Context) (error, error) {
				defer func() { i++ }()
				return at(tc.lost), at(tc.unknown)
			})
			if !errors.Is(lost, tc.want) || !errors.Is(unanswered, tc.unanswered) || ctx.Err() != nil {
				t.Errorf("%s: %v, %v, %v", tc.name, lost, unanswered, ctx.Err())
			}
		})
	}
	// The end of the term is the answer.
	synctest.Test(t, func(t *testing.T) {
		over := errors.New("the term is over")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(over) })
		for _, answer := range []error{ErrLost, nil} {
			lost, unanswered := Confirm(ctx, func(context.Context) (error, error) {
				if answer == nil {
					return nil, silent
				}
				return answer, nil
			})
			if !errors.Is(lost, over) || unanswered != nil {
				t.Errorf("%v, %v", lost, unanswered)
			}
		}
	})
}

func TestPausesGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pauses
		began := time.Now()
		last := time.Duration(0)
		for range 12 {
			at := time.Now()
			if !p.Wait(t.Context()) {
				t.Fatal("it ended")
			}
			took := time.Since(at)
			if took < last || took < firstPause || took > maxPause {
				t.Errorf("%v after %v", took, last)
			}
			last = took
		}
		if last != maxPause || time.Since(began) > 12*maxPause {
			t.Errorf("%v in the end", last)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if p.Wait(ctx) {
			t.Error("it goes on after the end")
		}
	})
}

func TestTold(t *testing.T) {
	for _, tc := range []struct {
		code     string
		hopeless bool
		final    bool
		want     string
	}{
		{"UnauthorizedOperation", true, true, "allow ec2:StopInstances in the role of this instance"},
		{"AuthFailure", true, true, "see to it that the instance has a role"},
		{"OptInRequired", true, true, "ask AWS's support"},
		{"OperationNotPermitted", true, true, "take its protection away"},
		{"InvalidAllocationID.NotFound", true, true, "correct what the config names, and aws.region"},
		{"RequestExpired", false, true, "this machine's clock is wrong"},
		{"RequestLimitExceeded", false, false, "do it: "},
		{"InternalError", false, false, "do it: "},
	} {
		err := Told("StopInstances", "do it", code(tc.code))
		if errors.Is(err, service.ErrHopeless) != tc.hopeless || Final(err) != tc.final || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.code) {
			t.Errorf("%v", err)
		}
	}
}
