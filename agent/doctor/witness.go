package doctor

import (
	"context"
	"errors"
	"time"

	"tandem/failover/record"
	"tandem/failover/witness"
)

// errUnasked is why the second check of the witness is not made.
var errUnasked = errors.New("the witness does not answer")

// checkWitness reads the record as the agent does, in half a lease.
func (x *examination) checkWitness(ctx context.Context) verdict {
	x.witness = errUnasked
	limit := x.cfg.Failover.Lease / 2
	fix := "look at `witness` in the config, and at the way from this machine to it"
	store, err := x.sys.Witness(x.cfg.Witness, x.cfg.Dir)
	if err != nil {
		return fail(fix, "the witness cannot be opened: %v", err)
	}
	defer func() { _ = store.Close() }()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	b, _, err := store.Read(ctx)
	took := time.Since(began).Round(time.Millisecond)
	if err != nil {
		return fail(fix, "the record cannot be read, for which an agent has half a lease, %v: %v", limit, err)
	}
	x.witness = nil
	if len(b) == 0 {
		return ok("it answers in %v and has no record yet: the first promote makes one", took)
	}
	r, err := record.Decode(b)
	switch {
	case err != nil:
		return fail("let `witness` name a key that nothing else uses", "what the witness has is no cluster record: %v", err)
	case r.Cluster != x.cfg.Cluster:
		return fail(fix, "the witness has the record of the cluster %s, and this is %s", r.Cluster, x.cfg.Cluster)
	}
	return ok("it answers in %v: epoch %d, primary %s, in sync %s", took, r.Epoch, r.Primary, list(r.InSync))
}

// checkHonest is the probe that an agent makes at its start.
func (x *examination) checkHonest(ctx context.Context) verdict {
	if x.witness != nil {
		return skip("%v", x.witness)
	}
	store, err := x.sys.Witness(x.cfg.Witness, x.cfg.Dir)
	if err != nil {
		return skip("%v", err)
	}
	defer func() { _ = store.Close() }()
	switch err := witness.Probe(ctx, store, x.cfg.Failover.Lease/2); {
	case errors.Is(err, witness.ErrIgnoresConditions):
		return fail("use another witness: the agent ends itself on this one", "%v", err)
	case err != nil:
		return fail("let this node write the keys beside the record's too: an agent changes no record before it has probed the store", "it cannot be probed: %v", err)
	}
	return ok("it refuses a second create and a change of an old version")
}
