// Package failover decides who may be primary: the rules of design.md section 5
// but the tenth, which is the volume's, as one pure state machine for each node.
//
// [Core] does no I/O and has no clock, goroutine, lock or log. An input goes in
// (a message, an answer of the witness, a tick), effects come out of
// [Core.Effects]. The shell carries them out and feeds back what happened; it
// never completes, retries or changes a role on its own.
//
// # The shell's contract
//
//  1. Effects are taken after every input and begun in their order. Serve,
//     StepDown, Abort and Drop have taken effect when the next one begins.
//  2. Persist is durable, on a disk without a volatile cache or flushed, before
//     Persisted is called. At most one is outstanding, so a later state can
//     never be overwritten by an earlier one.
//  3. Read and CAS are answered exactly once each, within Config.Lease/2: a
//     read without an answer ends in an error, a CAS in Unknown. Reads are
//     linearizable. Conflict means that this send did not and will not land.
//     The time limits are safety, not taste: `promote --force` elsewhere waits
//     2·Lease and a margin for this node's read of the record to come back.
//  4. The CAS writes Effect.Record as it is. Only ChangedAt, and Paused.Since
//     when it is zero, are filled in by the shell, which has a wall clock, and
//     Reason gets who asked for the change behind it.
//  5. Prepare is answered by Prepared once what effect.go lists is true. The
//     generation that Prepared names is durable as proposed *before* the call,
//     because the CAS that names it is sent at once. An Abort or StepDown ends
//     the preparation: no Prepared comes for it afterwards.
//  6. After Prepare(Promote) or Prepare(Create) no frame of any session is
//     accepted, and no session begins, until Abort, or until Began was called
//     and sessions of the new epoch begin.
//  7. A peer counts in the volume from Prepare(Grow) until Apply(Shrink), also
//     over Abort(Grow), Abort(Shrink) and the end of its session. A Grow that
//     came to nothing may be prepared again for a peer that counts already.
//     CaughtUp is only a hint: between it and Prepare(Grow) writes went on and
//     were completed without the peer. So Prepared(Grow) comes when nothing that
//     was sent before the counting is unacknowledged, no bit is left, and both
//     have flushed after that; if a bit has come up since, it carries an error.
//  8. Apply(Promote|Create) makes Effect.Hard and the adopted generation durable
//     in one write, turns the activity log into bits, and only then calls Began.
//     Role Primary, the first I/O and the operator's Reply come after Began.
//  9. Completions and reads are let through only before Serve's Until, on
//     CLOCK_BOOTTIME, checked after the data was read.
//  10. Send goes out in the session that stands, and Recv is only called for
//     frames of the session that stands. LinkDown is called before the Hello of
//     a link that replaces another. What the core has not been told by Hello is
//     not so: the link between two secondaries is up, too.
//  11. Follow names an epoch that is durable. The volume takes a session as
//     Secondary only then, and only in that epoch; a session of a lower one ends.
//  12. Quiesced is the answer to Quiesce, with an error if the volume serves on.
//     A StepDown ends a Quiesce: no answer comes for it afterwards. What stands on
//     the volume stops first. A Go that nobody asked for (N is 0) is kept back
//     where something may answer out of a cache until the lease has run out.
//  13. Tick is called at Deadline or earlier, and at once when a request starts
//     to wait.
//  14. Start says sameBoot=false and volatile=true after any restart that may
//     have lost acknowledged writes; under protocol B that is every restart of
//     the agent.
//  15. Whenever Hard's Epoch or Marked, or Role, has changed, every standing link
//     gets a Hello with the news. A handshake never says what is not durable. It
//     is how an overruled primary learns of its successor while the witness is
//     away, and how two nodes that both lost power learn that of each other.
package failover
