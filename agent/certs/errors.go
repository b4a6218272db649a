package certs

import "errors"

var (
	// ErrExists means that Create would replace a file and was not told to.
	ErrExists = errors.New("already there")

	// ErrIdentity means a certificate of the right authority for somebody else:
	// another cluster, another node, or this node itself.
	ErrIdentity = errors.New("wrong identity")
)
