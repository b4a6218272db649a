// Package service runs what stands on top of the volume on the primary: the
// ordered list of steps of design.md, section 6.
//
// Its owner decides when there is a service; the Runner sees to it that
//
//  1. steps start in order, each only when the one before it runs, and stop in
//     reverse, and a step may always be stopped that might have been started;
//  2. Start and Stop are safe to repeat: a step that holds already is left alone;
//  3. every step has a time limit that nothing makes longer, so that Stop ends
//     when the sum of the limits is over, and the owner can fence the node then;
//  4. Stop, or the end of Start's context, ends a start at any moment;
//  5. a step that no longer holds is stopped and started again, with growing
//     pauses, for as long as the owner's Decide allows it.
//
// Nothing here knows who is primary: a Runner that is never stopped goes on.
package service

import (
	"context"
	"errors"
	"strconv"
)

// Step is one thing that runs on the primary: a command, an address, and later
// the kernel's NBD device, a mount, an export, an address of AWS.
//
// Each method returns soon after ctx is over (within a second or so), also when
// what it waits for never happens, and leaves nothing running behind then. All
// must be safe to repeat, in any state that an earlier call, also one of an agent
// that was killed in the middle, has left. The Runner never calls two at a time.
type Step interface {
	// Start brings the step about. An error that wraps ErrHopeless says that
	// trying again is of no use until somebody changes the node.
	Start(ctx context.Context, term Term) error

	// Stop takes it away. It succeeds when there is nothing to take away.
	Stop(ctx context.Context, term Term) error

	// Check returns nil if the step holds, ErrCannotTell if there is no way to
	// find out, and else why it does not.
	Check(ctx context.Context, term Term) error
}

// Abandoner is a Step that others of the list stand on, and that may keep them waiting once the node may no longer serve:
// a device whose requests are not answered any more holds up every unmount of what is on it.
type Abandoner interface {
	// Abandon makes what waits for the step fail now. Like Stop it may come in any state, is told Secondary, and
	// succeeds when there is nothing to do; Stop comes after it.
	Abandon(ctx context.Context, term Term) error
}

// Opener is a Step that has something to do when the whole list is up and clients are
// answered: in each Start of a Runner, also if the step held already, and when it was
// started again by itself after that. An error is logged.
type Opener interface {
	Opened(ctx context.Context, term Term) error
}

// Term is what a step may want to know about the node it runs on.
type Term struct {
	Cluster string
	Node    string
	Epoch   uint64
	Role    Role
	Step    string // the step's name in the status
}

// Role is the role that the node has while a step is called.
type Role string

// Start and Check run on a Primary. Stop is told Secondary, which is what the
// node is about to be, or is already.
const (
	Primary   Role = "Primary"
	Secondary Role = "Secondary"
)

// Environ is the term as a command's environment.
func (t Term) Environ() []string {
	return []string{
		"TANDEM_CLUSTER=" + t.Cluster,
		"TANDEM_NODE=" + t.Node,
		"TANDEM_EPOCH=" + strconv.FormatUint(t.Epoch, 10),
		"TANDEM_ROLE=" + string(t.Role),
		"TANDEM_STEP=" + t.Step,
	}
}

// State is what a step is doing.
type State string

// The states. A step that was stopped never ran, or was taken away.
//
//	stopped ──▶ starting ──▶ running ──▶ stopping ──▶ stopped
//	               │            │            │
//	               └──────▶  failed  ◀───────┘
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Stopping State = "stopping"
	Failed   State = "failed" // Status.Error says why; it is tried again unless the owner gave up
)

var (
	// ErrHopeless marks an error that the same call will give again until
	// somebody changes the node: a missing program, a missing interface.
	ErrHopeless = errors.New("trying again is of no use")

	// ErrCannotTell is the answer of a Check that has no way to find out. The
	// step counts as running, and is started again wherever that is asked for.
	ErrCannotTell = errors.New("there is no check")

	// ErrTimeout is the cause of a step's end that overran its limit.
	ErrTimeout = errors.New("did not end in its time")

	// ErrStopped is why a Start ended that a Stop or a Leave overtook.
	ErrStopped = errors.New("stopped before it was up")

	// ErrGaveUp is in Start's error when Decide said GiveUp.
	ErrGaveUp = errors.New("gave up")

	// ErrBusy means that the Runner runs already, or is being stopped.
	ErrBusy = errors.New("the service is running or being stopped already")
)
