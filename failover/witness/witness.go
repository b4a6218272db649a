// Package witness is the external register that holds the cluster record and
// offers compare-and-swap. It moves bytes; what they mean is the business of
// package record.
package witness

import (
	"context"
	"errors"

	"tandem/failover/witness/internal/register"
)

// Register is one register.
//
// A version is opaque: equal versions mean the same content, "" means absent.
type Register = register.Register

// Store is the register of a witness URL.
type Store interface {
	Register

	// Scratch returns another, absent register of the same service, next to this
	// one and named after it, and what removes it again. It is for Probe, so it
	// is written by the very requests that write the real one. One that was not
	// removed goes by itself some minutes later.
	Scratch(ctx context.Context, name string) (r Register, remove func(context.Context) error, err error)

	Close() error
}

// Keeper is a Store that needs something to be asked, credentials that end, and that has it
// at hand before a request needs it.
type Keeper interface {
	// Keep runs until ctx has ended, and tells failed what could not be had.
	Keep(ctx context.Context, failed func(error))
}

var (
	// ErrConflict means that the condition of a CAS failed: definitely not written.
	ErrConflict = register.ErrConflict

	// ErrIgnoresConditions means that a store did what it was told to do only
	// under a condition that does not hold. On it two nodes would be primary.
	ErrIgnoresConditions = errors.New("it ignores conditions, so two nodes could be primary on it: use another witness")
)
