package failover

// Promise is G, how long a node that grants a lease of l stays away from
// promotion. The tenth is for clocks that run at different rates, the 100 ms
// for their resolution; nobody compares clocks between machines (rule 5.5).
func Promise(l int64) int64 { return l + l/10 + 100*millisecond }

// until is the end of the time in which we may serve: every counted peer has to
// allow it. 0 when not primary.
//
// With nobody counted there is no lease. But a lone primary is deposed by a
// forced claim that it finds in the record, and the claim waits only 2·L and a
// margin for that: an agent that was stopped for longer (SIGSTOP, a swap storm)
// must not serve what has queued up in its sockets before it has looked. So it
// serves until 2·L after the start of the last look that has ended; one that
// failed counts as well, because without a witness it goes on.
//
// With more than two nodes that holds for one that has leases, too. 1 A is primary
// with C; B is out of the set, and forced. 2 A stands still for longer than the
// claim waits. 3 It goes on; its lease request and its look leave together, and
// C, which has not heard of B, is quicker. Both would serve.
func (c *Core) until() int64 {
	if !c.leading() {
		return 0
	}
	u := NoLimit
	for p := range c.cfg.Peers {
		if c.peers[p].counted {
			u = min(u, c.peers[p].lease)
		}
	}
	look := c.looked + 2*c.cfg.Lease
	switch {
	case u == NoLimit:
		return look
	case c.cfg.Bug == OneGrantOfTwo:
		for p := range c.cfg.Peers {
			if c.peers[p].counted {
				u = max(u, c.peers[p].lease)
			}
		}
	case c.cfg.Bug == ServeAfterThaw:
		for p := range c.cfg.Peers {
			if c.peers[p].counted && !c.peers[p].established {
				return u
			}
		}
		return NoLimit
	case len(c.cfg.Peers) > 1 && c.cfg.Bug != LeaseIsLook:
		return min(u, look)
	}
	return u
}

// serve tells the volume when that end has moved.
func (c *Core) serve() {
	if u := c.until(); u != c.served {
		c.served = u
		c.emit(Effect{Kind: Serve, Peer: -1, Epoch: c.epoch, Until: u})
	}
}

// request asks every established peer for a lease, counted or not: a peer has
// granted before it becomes counted, or the gate would close for a round trip.
func (c *Core) request(now int64) {
	for p := range c.cfg.Peers {
		q := &c.peers[p]
		if !q.established || q.askAt > now {
			continue
		}
		q.askAt = now + c.cfg.Heartbeat
		q.lastN++
		// An older request in the slot is forgotten; its grant would be too late
		// to move the lease anyway.
		q.asked[q.lastN%uint64(len(q.asked))] = asked{q.lastN, now}
		c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: LeaseRequest, N: q.lastN, Epoch: c.epoch, L: c.cfg.Lease}})
	}
}

// granted counts a lease from the send of the very request it answers. Counted
// from the arrival, a grant that was long under way would reach beyond the
// promise behind it.
func (c *Core) granted(now int64, p int, m Msg) {
	q := &c.peers[p]
	if !c.leading() || !q.established || m.Epoch != c.epoch || m.N == 0 {
		return
	}
	a := q.asked[m.N%uint64(len(q.asked))]
	// A promise shorter than ours would be is from a peer with another formula:
	// it does not cover the lease that we would count.
	if a.n != m.N || m.G < Promise(c.cfg.Lease) {
		return
	}
	until := a.at + c.cfg.Lease
	if c.cfg.Bug == LeaseFromReceipt {
		until = now + c.cfg.Lease
	}
	q.lease = max(q.lease, until)
}

// grant promises a primary not to promote for G. Only in a session of the
// highest epoch seen, never as a candidate, and never for longer than what is
// durable: after a crash that is all we know of our promises.
func (c *Core) grant(now int64, p int, m Msg) {
	q := &c.peers[p]
	ok := c.role == Secondary && q.followed == c.hard.Epoch && m.Epoch == c.hard.Epoch
	switch c.cfg.Bug {
	case GrantWhileCandidate:
		ok = ok || c.role == Candidate
	case AcceptOldEpoch:
		ok = ok || c.role == Secondary && q.followed == m.Epoch
	}
	if !ok || m.Epoch == 0 || m.N == 0 || m.L <= 0 || m.L > maxLease {
		return
	}
	q.heard = now
	g := Promise(m.L)
	if c.durable.LongestG < g && c.cfg.Bug != PromiseNotDurable {
		// The next request, one heartbeat on, is granted.
		c.hard.LongestG = max(c.hard.LongestG, g)
		return
	}
	c.promise, c.promisedAt = max(c.promise, now+g), now
	c.emit(Effect{Kind: Send, Peer: p, Msg: Msg{Kind: LeaseGrant, N: m.N, Epoch: m.Epoch, G: g}})
}

// promiseEnd is when the last promise that may still bind us runs out.
func (c *Core) promiseEnd() int64 {
	// Whoever began to serve in the recorded epoch has promised nothing since:
	// it refused everything lower, and something higher would be in the record.
	// Only then is an agent restart shorter than a failover (rule 5.8). The note
	// is worth this because it is written after the CAS won, never before.
	if c.servedLast() {
		return c.promise
	}
	return max(c.promise, c.startWait)
}

// servedLast: the record's term is ours and we had begun it.
func (c *Core) servedLast() bool {
	return c.rec != nil && c.rec.Primary == c.cfg.Self && c.rec.Epoch == c.hard.Served && c.rec.Epoch == c.hard.Epoch
}
