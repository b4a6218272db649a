// Package remote runs commands in a virtual machine: a server in the guest, a
// client in the harness, over the management network.
//
// One connection is one command. The client sends the request as one line of
// JSON; then both send frames:
//
//	offset  width
//	0       1      kind: 'o' standard output, 'e' standard error, 'x' exit code in decimal
//	1       4      length of the payload, big endian, at most 64 KiB
//	5       n      payload
//
// The client sends none. That a connection ends before 'x' means that the guest
// is gone, and nothing else: the server sends 'x' for every command, also for
// one that could not be started. A client that hangs up ends its command, so
// that a scenario that is given up leaves nothing behind in a guest.
package remote
