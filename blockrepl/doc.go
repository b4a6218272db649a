// Package blockrepl decides for one replicated volume on one node: which
// write may start, when it is complete, what a peer lacks, and how it gets it.
// It knows nothing of NBD and not who should be primary.
//
// [Core] is a state machine without I/O, clock, goroutine, randomness or lock.
// An input is a method call; what is to be done comes out of [Core.Effects] and
// is answered by another input. The core moves tags, never payload bytes. The
// same code runs in the agent, on disks and links, and in the simulation, on
// models of them.
//
// Reading order: effect.go (the vocabulary), op.go (the life of a request),
// long.go (one that comes in parts), al.go (the activity log), peer.go (the session
// with a peer), verdict.go, resync.go, change.go (what the layer above asks for),
// others.go (more than two nodes), core.go (metadata jobs).
// Formats are in the sub-packages: meta on disk, wire on the link; disk and
// link carry them.
//
// # The shell's contract
//
//  1. Effects are taken after every input, and those of one kind and target are
//     begun in their order: frames to one peer and channel, metadata blocks,
//     local disk requests. Between kinds there is no order but what follows
//     from the answers.
//  2. A Meta effect is written after all before it; with Last it is flushed, and
//     MetaDone is called only when all blocks of its job are durable.
//  3. DiskDone is called when the disk has answered: a write is then on the disk
//     path (a cache included), with FUA it is durable; after a DiskFlush
//     everything answered before its effect was emitted is durable.
//  4. A frame handed to Recv arrived on the link whose LinkUp was the last one;
//     after LinkDown nothing of that link arrives, and no memory handed to it is
//     read any more.
//  5. The payload of an operation stays unchanged from its Submit to its Sent,
//     or to Released if Holds says so then; that of a frame from Recv to the
//     DiskDone of its operation.
//  6. Sent is called when a reply is in the client's socket, or can never be.
//  7. The clock handed in never goes backwards and counts suspended time.
//  8. A failed disk or metadata write is DiskFailed or an errno, never a retry.
//
// # What must be durable before what
//
//   - The activity-log block that names an extent, before the local write and
//     before the send of the first write into it ([Core.heat]). On a Secondary
//     the same, before its own write.
//   - An extent leaves the log when every mirrored copy has flushed what was in
//     it and the bits of every other peer are on disk ([Core.retire]).
//   - The bits that a session's verdict rests on, before SyncStart: the target
//     forgets its own when it has caught up with ours ([Core.begin]).
//   - "Inconsistent" on the target, before the first frame of a resync is
//     accepted; the source's generation there only after a flush that follows
//     the last block ([Core.takeGeneration]).
//   - A dirty bit goes when the target has flushed, in the session that wrote.
//   - On a Secondary, with more than two nodes: the primary's bits for the others,
//     before anything leaves its log ([Core.adopt], [Core.dropLater]); both, and
//     the primary's log as its own, before the first block of a resync
//     ([Core.keptBy]).
//   - A proposed generation, before the CAS that names it ([Core.propose]), and
//     on the members that stay, too ([Core.askOthers]); the adopted one, and the dirty ranges, before a held completion goes on
//     ([Core.Shrunk]) and before the first I/O of a term ([Core.BecomePrimary]).
//   - A durable mark here, before a peer is told to remember it.
//   - After a term that did not end in order: in-flight ranges and the log as
//     bits, before the next session ([Core.StepDown]).
package blockrepl
