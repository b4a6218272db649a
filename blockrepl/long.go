package blockrepl

import "slices"

// Reserve begins a client's write that is longer than MaxOpLen, at its place
// among the other requests. Part carves operations from its front, as many at
// a time as the caller likes: they go into the activity log, and to the peers,
// like any others. off and n are checked against the volume by the caller.
//
// The reservation itself is never completed. It ends with its last part or with
// the term, and parts of one that has ended, or was refused, are refused.
//
// Without it the later parts would take their ranges only when the first are
// complete. 1. A trim is cut short by an agent restart; its last blocks are
// zeroed already. 2. The client replays it, from the start. 3. Its next request
// reads zeroes at the end, and another writes there and is answered. 4. The
// last part comes to its turn, and undoes an acknowledged write. And with no
// restart at all: 1. A write across the border of two parts waits for the
// first, whose range is locked until the reply. 2. The second part gets in line
// behind the write. 3. The reply waits for the second part.
//
// Parts that all stood in line from the start would do too; but a client may
// have a hundred requests of 4 GiB in flight, and every operation in line costs
// all others a look.
func (c *Core) Reserve(now int64, kind OpKind, off, n int64, flags uint8) Tag {
	c.now = now
	if !c.serving || c.quiescing || c.failed || off < 0 || n <= 0 || off > c.sb.VolumeSize-n {
		return 0
	}
	o := c.newOp(kind, client, off, n, flags)
	o.rest = true
	switch {
	case c.cfg.Bug == BugUnreserved:
		o.phase = cold // but it holds nothing
	case c.mustWait(o, len(c.queue)):
		c.queue = append(c.queue, o.slot)
	default:
		c.admit(o)
	}
	return o.tag()
}

// Part begins an operation on the first n bytes of what is left of a
// reservation, at most MaxOpLen. As after Submit, one Complete follows, and
// after it the caller reports Sent. A planned stop waits for the parts that
// are still to come.
func (c *Core) Part(now int64, rest Tag, n int64) Tag {
	c.now = now
	r := c.find(rest)
	if r == nil || !r.rest || !c.serving || c.failed || n <= 0 || n > min(r.len, MaxOpLen) {
		o := c.newOp(OpZero, client, 0, 0, 0)
		o.err = ESHUTDOWN
		c.refuse(o)
		return o.tag()
	}
	o := c.newOp(r.kind, client, r.off, n, r.flags)
	at := slices.Index(c.queue, r.slot)
	r.off += n
	r.len -= n
	if r.len == 0 {
		c.drop(r)
	}
	switch {
	case at >= 0:
		c.queue = slices.Insert(c.queue, at, o.slot) // where r waits, or has waited
	case c.cfg.Bug == BugUnreserved && c.mustWait(o, len(c.queue)):
		c.queue = append(c.queue, o.slot)
	default:
		c.admit(o)
	}
	return o.tag()
}

// drop ends a reservation. Who waits for its range is woken by the parts that
// have taken it over; or the term is over, and nobody waits.
func (c *Core) drop(r *op) {
	c.queue = removeSlot(c.queue, r.slot)
	c.active = removeSlot(c.active, r.slot)
	r.phase = free
	c.freeOps = append(c.freeOps, r.slot)
}
