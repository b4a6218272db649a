package service

import (
	"context"
	"errors"
	"fmt"

	"tandem/failover/internal/command"
)

// Exec is the step that is three commands. Each gets the term as environment
// (TANDEM_CLUSTER, TANDEM_NODE, TANDEM_EPOCH, TANDEM_ROLE, TANDEM_STEP) on top of
// the agent's own, no input, and must exit with 0; the last lines of what it
// prints are in the error if it does not. A command is one process group, and
// none of it is left when the step's time is over; a start command that leaves a
// daemon behind must give it an output of its own.
type Exec struct {
	// StartArgv brings the service up and then exits. It runs again when a check
	// fails, after a restart of the agent if there is no Check, and whenever an
	// earlier run has failed, so it must not mind that the service is there.
	StartArgv []string

	// StopArgv takes it away; it is told nothing about whether Start ran or
	// finished. Empty: there is nothing to take away.
	StopArgv []string

	// CheckArgv exits with 0 while the service is up. Empty: it counts as up
	// from the end of Start on.
	CheckArgv []string

	// Dir is the commands' working directory; empty: the agent's.
	Dir string
}

// Start is Step's.
func (e *Exec) Start(ctx context.Context, term Term) error { return e.run(ctx, e.StartArgv, term) }

// Stop is Step's.
func (e *Exec) Stop(ctx context.Context, term Term) error {
	if len(e.StopArgv) == 0 {
		return nil
	}
	return e.run(ctx, e.StopArgv, term)
}

// Check is Step's.
func (e *Exec) Check(ctx context.Context, term Term) error {
	if len(e.CheckArgv) == 0 {
		return ErrCannotTell
	}
	return e.run(ctx, e.CheckArgv, term)
}

func (e *Exec) run(ctx context.Context, argv []string, term Term) error {
	err := command.Command{Argv: argv, Dir: e.Dir, Env: term.Environ()}.Run(ctx)
	switch {
	case err == nil:
		return nil
	case command.Hopeless(err):
		return fmt.Errorf("%w: %w", ErrHopeless, err)
	case errors.Is(err, command.ErrTimeout):
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	return err
}
