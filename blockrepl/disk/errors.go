package disk

import "errors"

var (
	// ErrInUse means that somebody else has the device or file: another agent,
	// a mount, LVM, swap. Nothing was touched.
	ErrInUse = errors.New("in use")

	// ErrSize means a device or file that does not fit its metadata or the
	// configuration: shrunk, grown, or too small to begin with.
	ErrSize = errors.New("wrong size")

	// ErrOther means that the path leads to another device than the configuration names.
	ErrOther = errors.New("another device")

	// ErrHasMetadata means that Init would overwrite Tandem metadata.
	ErrHasMetadata = errors.New("there is Tandem metadata already")

	// ErrHasData means that Init would overwrite what looks like data.
	ErrHasData = errors.New("there is data already")

	// ErrBounds means a request that is not inside the volume, or not inside
	// the metadata region. It is a bug above; nothing was touched.
	ErrBounds = errors.New("outside the volume")

	// ErrFailed means that an earlier flush failed. What the kernel had cached
	// then is gone although a second flush would say otherwise, so nothing is
	// called durable any more until the disk is opened anew.
	ErrFailed = errors.New("an earlier flush failed")
)
