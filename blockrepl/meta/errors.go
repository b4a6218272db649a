package meta

import (
	"errors"
	"fmt"
)

var (
	// ErrNoMetadata means that there is nothing of ours: zeroes, or bytes that
	// do not begin with our magic.
	ErrNoMetadata = errors.New("no Tandem metadata")

	// ErrNewer means that a later release wrote the metadata. Its checksum was
	// right, so this is no damage, and nothing here may be guessed or rewritten.
	ErrNewer = errors.New("the metadata was written by a newer version")

	// ErrTorn means a block of ours that no single Encode has written. When it
	// is not ErrDamaged too, every sector of it is sound and they belong to
	// different writes: power went during a write that nobody relied on yet.
	ErrTorn = errors.New("the metadata block is torn")

	// ErrDamaged is the worse kind of ErrTorn: a sector that no Encode wrote.
	// What the block said when it was last flushed is not known.
	ErrDamaged = fmt.Errorf("%w: a sector has a wrong checksum", ErrTorn)

	// ErrInvalid means a superblock whose fields contradict each other, or a
	// volume that the format cannot describe.
	ErrInvalid = errors.New("invalid metadata")
)
