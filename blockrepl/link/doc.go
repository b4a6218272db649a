// Package link carries the frames of package wire between two agents.
//
// Each pair of nodes has one link, dialled by the node whose name sorts first.
// A link is two TCP connections, both TLS 1.3 with certificates on either
// side, and a yamux session on each:
//
//	              ┌─ main ─ TCP ─ TLS ─ yamux ─┬─ stream 1 ─ Ctl
//	Manager ─ Conn┤                            └─ stream 3 ─ Data
//	              └─ bulk ─ TCP ─ TLS ─ yamux ─── stream 1 ─ Bulk
//
// Two connections, because what one TCP connection has accepted it delivers in
// order, and a resync that fills its buffers would delay the heartbeats behind
// it. Ctl and Data share one, with a window each: a peer whose disk hangs stops
// reading Data and still answers on Ctl.
//
// The listener also takes connections that are no link: an operator's request
// from another node (control.go).
//
// # What a link promises
//
//  1. Frames of one channel arrive in the order of the calls of Queue, each
//     once, whole and unchanged, or the link goes down. There is no order
//     between channels.
//  2. Nothing of a link arrives after its LinkDown, and the next link to that
//     peer begins only then: a frame belongs to one session.
//  3. After LinkDown no body is referenced. Before it, any body may be.
//  4. Queue never waits for the network; neither does Kick without inline.
//  5. A link being up says nothing about the peer's health. A peer that reads
//     nothing is noticed by the kernel after Config.UserTimeout, one that reads
//     and does not answer by the leases of the layer above.
//  6. Whoever connects and is not a peer costs a bounded number of sockets for
//     a bounded time, and gets no further than the preface (preface.go).
//
// # Who runs
//
// Run starts runAccept (one), runInbound (one for each connection that has not
// introduced itself yet) and runPeer (one a peer), which makes the peer's links
// one after the other. A link has runReader and runWriter for each channel and
// yamux's two goroutines for each connection. A frame that finds its channel
// idle is written by the caller (queue.go), so that of these only yamux's own
// are in its way.
package link
