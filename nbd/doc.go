// Package nbd serves block devices over the NBD protocol, and has a small client for it. It knows nothing of
// replication: what is behind an export is a Device, which gets requests and completes them in any order.
//
//	socket ─▶ input ─▶ conn.requests ─▶ Device.Submit ┄┄▶ Request.Complete ─▶ conn.reply ─▶ socket ─▶ Device.Sent
//	          (readv)  (check, admit)                      (any goroutine)     (writev)
//
// Reading order: request.go (the contract with the device), conn.go (the reader), command.go (what it reads), reply.go (the combining writer),
// buffers.go (payload memory), input.go, handshake.go, proto.go, server.go; client.go stands alone.
//
// # What holds
//
//  1. Every submitted request is completed once by the device and has Sent called once, on every path: reply written,
//     client gone, server stopped.
//  2. Sent comes after the last byte of the reply is in the socket. A device that releases a range lock there knows that
//     a request which the client replays cannot overtake a later one.
//  3. Complete and Sent never wait for a client. Submit is called by the reader of one connection and may delay that one.
//  4. What a client sends takes bounded memory: MaxInFlight requests, an eighth of BufferBytes, one option of 64 KiB.
//     What it does not send, or does not read, costs its own connection: HandshakeTimeout and StallTimeout.
//  5. The stream stays in step through every refused request; where it cannot, the connection is closed.
//
// # The protocol document
//
// Against doc/proto.md of NetworkBlockDevice/nbd, section by section:
//
//	Handshake
//	  Oldstyle negotiation            no: the document itself calls it no longer developed
//	  Newstyle negotiation            EXPORT_NAME, with and without NO_ZEROES; unknown client flags close
//	  Fixed newstyle negotiation      yes
//	  Termination during haggling     ABORT is acknowledged; ERR_SHUTDOWN is the backend's to say (Refusal)
//	Transmission
//	  Ordering of messages and writes any order; FLUSH and FUA are the device's duty
//	  Request message                 compact only, no extended headers
//	  Simple reply message            when structured replies were not negotiated
//	  Structured reply chunk message  every reply, in one chunk, once negotiated; error chunks carry a text
//	  Extended reply chunk message    no: EXTENDED_HEADERS is ERR_UNSUP. No Debian client needs it, and no request of ours
//	                                  exceeds 32 bits
//	  Terminating the transmission    DISC waits for what is in flight; Done answers ESHUTDOWN, then closes; a server that
//	                                  stops answers what it has and closes (part.go)
//	TLS support
//	  NOTLS mode                      yes: STARTTLS is ERR_POLICY
//	  FORCEDTLS, SELECTIVETLS         not yet (later issue)
//	Block size constraints            512, 4096, 32 MiB; told to everyone who asks for anything, enforced with EINVAL
//	Metadata querying                 base:allocation; LIST_ and SET_META_CONTEXT, bound to the export's name
//	Values
//	  Handshake flags, client flags   FIXED_NEWSTYLE, NO_ZEROES
//	  Transmission flags              HAS_FLAGS READ_ONLY SEND_FLUSH SEND_FUA SEND_TRIM SEND_WRITE_ZEROES SEND_DF
//	                                  CAN_MULTI_CONN SEND_CACHE SEND_FAST_ZERO; not ROTATIONAL (unknown here), not
//	                                  SEND_RESIZE (an unfinished extension), not BLOCK_STAT_PAYLOAD (extended headers)
//	  Option types                    EXPORT_NAME ABORT LIST INFO GO STRUCTURED_REPLY LIST_META_CONTEXT SET_META_CONTEXT;
//	                                  STARTTLS is ERR_POLICY; PEEK_EXPORT (withdrawn) and all others are ERR_UNSUP
//	  Option reply types              ACK SERVER INFO META_CONTEXT; ERR_UNSUP ERR_POLICY ERR_INVALID ERR_UNKNOWN
//	                                  ERR_SHUTDOWN ERR_TOO_BIG; ERR_BLOCK_SIZE_REQD never: the kernel's client asks for
//	                                  no block sizes and keeps to them all the same
//	  Information types               EXPORT and BLOCK_SIZE always, NAME and DESCRIPTION when asked for
//	  Command flags                   FUA (on any command) NO_HOLE DF REQ_ONE FAST_ZERO; PAYLOAD_LEN is EINVAL
//	  Structured reply types          NONE OFFSET_DATA BLOCK_STATUS ERROR; OFFSET_HOLE and ERROR_OFFSET are only
//	                                  understood (client): a device answers a read as a whole
//	  Request types                   READ WRITE DISC FLUSH TRIM CACHE WRITE_ZEROES BLOCK_STATUS; RESIZE is EINVAL
//	  Error values                    all; ENOMEM only from a device
//
// Where the document leaves a choice: a READ, WRITE, TRIM, WRITE_ZEROES or CACHE of zero bytes succeeds without reaching
// the device; a write of more than 32 MiB is EINVAL and read over up to 128 MiB, then closes; WRITE and WRITE_ZEROES
// beyond the end are ENOSPC, anything else there is EINVAL; FLUSH with an offset or length is EINVAL.
package nbd
