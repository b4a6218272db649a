// Package e2e runs Tandem as its users do: in machines with a real kernel, with
// nbd-client, real filesystems, and a power switch.
//
//	go run ./e2e/cmd/e2e list
//	go run ./e2e/cmd/e2e run            all, two labs at a time where there is room (-jobs)
//	go run ./e2e/cmd/e2e run -full 3 7  moves and restarts, each ten times
//
// A scenario is a list of steps over machines of package vm. A step fails with
// an error, or notes with Run.Assert what it has found to be true; both end up
// in the table and in results.json. A scenario judges by data: what was
// acknowledged is there, filesystems are clean, copies are identical. That a
// program exited 0 is never enough.
//
// Most scenarios play on a pair: two servers with the whole service of a user's
// configuration, an NFS client, and etcd as witness, on a network whose links are
// cut. A pair that a scenario leaves in good order is the next one's.
//
// Where AWS moves the address, it is moto, an emulator of EC2, beside the witness: the agents
// ask it as they do EC2, and the harness leads the client's packets where it says (see aws.go).
// moto is no package of Debian's, so it is not installed: pip install 'moto[server]'.
//
// The smoke's witness is a file in the folder that the machines share. That folder's
// locks and renames are the host's (see vm/share.go), so it is one register, and the
// smoke checks this before it relies on it.
package e2e
