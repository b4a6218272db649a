// Package register holds what package witness and the stores below it share. It
// exists because witness.Open imports the stores, so that the stores cannot
// import package witness.
package register

import (
	"context"
	"errors"
)

// ErrConflict is exported to callers as witness.ErrConflict.
var ErrConflict = errors.New("the witness has changed since it was read")

// Register is exported to callers as witness.Register.
type Register interface {
	// Read returns the content and its version, or nil, "", nil when there is
	// none. It is linearizable: it never shows a state older than one that any
	// earlier Read showed or any earlier CAS reported as written.
	Read(ctx context.Context) (data []byte, version string, err error)

	// CAS replaces the content if its version is still expect; "" means create
	// if absent. data must not be empty.
	//
	// ErrConflict is the only error that decides anything: this call has not
	// written and never will. After any other error the write may have happened
	// or may still happen (design.md, rule 5.7); the caller repeats the same CAS.
	// A repeated CAS whose first attempt did land gets ErrConflict too: the
	// caller tells the two apart by the nonce in the record.
	CAS(ctx context.Context, expect string, data []byte) (version string, err error)
}
