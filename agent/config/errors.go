package config

import (
	"errors"
	"fmt"
)

// ErrNotInVersion marks a key that the contract names and this release cannot
// honour. Such a key is refused instead of ignored: an operator who asks for an
// address that moves must not find out at a failover that it does not.
var ErrNotInVersion = errors.New("not in this version")

// Error is one thing that is wrong with a config file.
type Error struct {
	File string
	Line int    // 0 if the file has no such place
	Key  string // dotted, peers[1].address; empty for an error of the syntax
	Msg  string

	cause error
}

func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Key == "" {
		return where + ": " + e.Msg
	}
	return where + ": " + e.Key + ": " + e.Msg
}

func (e *Error) Unwrap() error { return e.cause }
