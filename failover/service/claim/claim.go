// Package claim is what the steps have in common that hold an address by AWS's word.
//
// None of these addresses is a lock: the last who asks for one has it. The record decides
// who is primary, and the address follows; therefore
//
//  1. a request is not sent any more when the context has ended, whatever was found out before;
//  2. the answer to a request that changed something is the fact, and what is read
//     afterwards only a cross-check, which may be seconds behind;
//  3. while the node is primary the claim is looked at again every lookEvery, and an
//     answer that says it is lost is believed when a second one says the same;
//  4. what cannot be given back, since AWS does not answer, stays: the next primary takes it
//     all the same, and a node that has lost its network must not be fenced for that.
package claim

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tandem/failover/awsclient"
	"tandem/failover/service"
)

const (
	// lookEvery is the pause between two looks at a claim that holds. EC2's requests
	// are counted by account and region, and others use the same account.
	lookEvery = 10 * time.Second

	// doubtFor is the pause before an answer that says it is lost is asked for again. EC2's
	// describes are seconds behind at times, and the repair of what holds is an interruption.
	doubtFor = 2 * time.Second

	// lookLimit bounds a look, so that other steps' checks have their turn.
	lookLimit = 3 * time.Second

	// GiveBack bounds what a Stop asks of AWS: nothing of a failover waits for longer.
	GiveBack = 3 * time.Second

	// Pauses of Poll.
	firstPause = 200 * time.Millisecond
	maxPause   = 2 * time.Second

	// spare is left of a step's time for what comes after a confirmation that does not come.
	spare = 500 * time.Millisecond
)

// ErrLost means that somebody else has what this step is to hold, or nobody.
var ErrLost = errors.New("this node does not have it")

// Watch is the bounded rate at which a Check asks. The zero value has seen nothing. It has
// no lock: the Runner calls one method of a step at a time.
type Watch struct {
	Now func() time.Time // nil: time.Now

	epoch  uint64
	looked time.Time
	held   bool // an answer, or a Start, said so in this epoch
	doubt  bool // the last answer said otherwise
}

// Held notes that the claim holds in this epoch.
func (w *Watch) Held(epoch uint64) {
	*w = Watch{Now: w.Now, epoch: epoch, looked: w.now(), held: true}
}

// Reset forgets everything: what held in a term may be another's in the next.
func (w *Watch) Reset() { *w = Watch{Now: w.Now} }

// Check returns nil if the claim holds as far as is known, ErrCannotTell if nothing is
// known, and else why it is lost. look returns whether it is, or why that is not known.
func (w *Watch) Check(ctx context.Context, epoch uint64, look func(context.Context) (lost, err error)) error {
	if w.epoch != epoch {
		*w = Watch{Now: w.Now, epoch: epoch}
	}
	pause := lookEvery
	if w.doubt {
		pause = doubtFor
	}
	if w.held && w.now().Sub(w.looked) < pause {
		return nil
	}
	w.looked = w.now()
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	lost, err := look(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", service.ErrCannotTell, err)
	case lost == nil:
		w.held, w.doubt = true, false
		return nil
	case w.held && !w.doubt:
		w.doubt = true
		return nil
	}
	w.Reset()
	return lost
}

func (w *Watch) now() time.Time {
	if w.Now != nil {
		return w.Now()
	}
	return time.Now()
}

// Pauses grow from firstPause to maxPause. The zero value is ready.
type Pauses struct{ last time.Duration }

// Wait waits for the next pause and says whether ctx goes on.
func (p *Pauses) Wait(ctx context.Context) bool {
	p.last = min(max(firstPause, p.last*3/2), maxPause)
	timer := time.NewTimer(p.last)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// Confirm reads back what a request has changed, until look says that it holds or the
// step's time is nearly over. lost is what the last answer said; both are nil when it holds.
// If there was no answer at all, unanswered says why: the change itself is the fact then.
func Confirm(ctx context.Context, look func(context.Context) (lost, err error)) (lost, unanswered error) {
	outer := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(spare, time.Until(end)/4)))
		defer cancel()
	}
	var pauses Pauses
	for {
		l, err := look(ctx)
		switch {
		case err == nil && l == nil:
			return nil, nil
		case err == nil:
			lost = l
		case lost == nil:
			unanswered = err
		}
		if !pauses.Wait(ctx) {
			break
		}
	}
	switch cause := context.Cause(outer); {
	case cause != nil && lost != nil:
		return fmt.Errorf("%w: %w", cause, lost), nil
	case cause != nil:
		return cause, nil
	case lost != nil:
		return lost, nil
	}
	return nil, unanswered
}

// Told wraps an error of an action of EC2's by what was to be done with it. If AWS refuses
// it for good, the error wraps service.ErrHopeless and says what to do.
func Told(action, doing string, err error) error {
	switch awsclient.Classify(err) {
	case awsclient.Refused:
		return fmt.Errorf("%w: %s: %w: %s", service.ErrHopeless, doing, err, remedy(action, awsclient.Code(err)))
	case awsclient.Clock:
		return fmt.Errorf("%s: %w: this machine's clock is wrong: have chrony or systemd-timesyncd set it", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Final says whether a request that has failed this way is not to be repeated in this Start.
func Final(err error) bool {
	class := awsclient.Classify(err)
	return class == awsclient.Refused || class == awsclient.Clock
}

func remedy(action, code string) string {
	switch code {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException":
		return "allow ec2:" + action + " in the role of this instance"
	case "AuthFailure", "UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "ExpiredToken":
		return "see to it that the instance has a role, that its credentials are valid, and that what the config names is this account's"
	case "OptInRequired", "Blocked", "PendingVerification":
		return "the account may not use EC2: ask AWS's support"
	case "OperationNotPermitted":
		return "take its protection away, or the service that manages it"
	}
	return "correct what the config names, and aws.region"
}
