package record

import "errors"

var (
	// ErrNewer means that a later release wrote the record. This one must not
	// guess at fields it does not know, so it behaves as in a witness outage.
	ErrNewer = errors.New("the cluster record was written by a newer version")

	// ErrTooLarge means more than MaxBytes; nothing was parsed.
	ErrTooLarge = errors.New("the cluster record is too large")

	// ErrNotCanonical means bytes that no Encode has written: doubled, reordered
	// or differently spelled keys, upper-case hex, a time with another offset.
	// White space does not count.
	ErrNotCanonical = errors.New("the cluster record is not in its canonical form")

	// ErrInvalid means well-formed JSON whose fields contradict each other.
	ErrInvalid = errors.New("the cluster record is invalid")
)
