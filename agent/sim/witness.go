package sim

import (
	"errors"
	"fmt"

	"tandem/failover"
)

var errOut = errors.New("the witness does not answer")

// witness is one linearizable register with an opaque version. What a node asks
// of it may be answered late, not at all, or wrongly be believed lost: a CAS
// whose answer was an error may have landed, may never land, or may land at any
// later time at which its version still fits.
type witness struct {
	w       *World
	rec     *failover.Record
	version string
	writes  int
	out     int  // number of outages under way
	slow    bool // answers take long
	odd     bool // a part of the CASes have unknown outcomes
	// since is when the present record landed.
	since int64
}

func (wt *witness) land(from *machine, expect string, rec *failover.Record, how string) bool {
	w := wt.w
	if wt.version != expect {
		w.trace(from.id, "witness: CAS by %s (%s) refused: version is %q, it expects %q", from.name, recText(rec), wt.version, expect)
		return false
	}
	wt.writes++
	old := wt.rec
	r := rec.Clone()
	wt.rec, wt.version = &r, fmt.Sprintf("v%d", wt.writes)
	wt.since = w.now
	w.trace(from.id, "witness: CAS by %s landed%s: %s %s", from.name, how, wt.version, recText(rec))
	w.check.recordChanged(from, old, wt.rec)
	return true
}

func recText(r *failover.Record) string {
	if r == nil {
		return "none"
	}
	p := ""
	if r.Paused != nil {
		p = " paused"
	}
	return fmt.Sprintf("{e%d %s %v gen %04x serial %d%s}", r.Epoch, r.Primary, r.InSync, r.Generation&0xffff, r.Serial, p)
}

// limit is the shell's: half a lease, then the answer is "none".
func (wt *witness) limit() int64 { return wt.w.opt.lease / 2 }

func (wt *witness) read(m *machine, tag uint64) {
	w := wt.w
	there := w.delay(delayWitness)
	back := w.delay(delayWitness)
	if wt.slow {
		there += w.between(0, wt.limit())
	}
	inc := m.inc
	if hold := w.hook.witness; hold != nil {
		// A scripted test decides.
		if hold(m, nil) == witnessLost {
			w.at(w.now+wt.limit(), func() { m.answerRead(inc, tag, nil, "", errOut) })
			return
		}
	}
	if wt.out > 0 || m.witnessCut > 0 || there+back >= wt.limit() {
		w.at(w.now+wt.limit(), func() { m.answerRead(inc, tag, nil, "", errOut) })
		return
	}
	w.at(w.now+there, func() {
		var rec *failover.Record
		if wt.rec != nil {
			r := wt.rec.Clone()
			rec = &r
		}
		version := wt.version
		w.at(w.now+back, func() { m.answerRead(inc, tag, rec, version, nil) })
	})
}

// fate says what becomes of a CAS.
type fate uint8

const (
	witnessOK     fate = iota
	witnessLost        // never lands, no answer
	witnessMute        // lands, no answer
	witnessZombie      // no answer, lands some time later
)

func (wt *witness) cas(m *machine, tag uint64, expect string, rec *failover.Record) {
	w := wt.w
	there := w.delay(delayWitness)
	back := w.delay(delayWitness)
	if wt.slow {
		there += w.between(0, wt.limit())
	}
	inc := m.inc
	f := witnessOK
	var later int64
	switch {
	case w.hook.witness != nil:
		f = w.hook.witness(m, rec)
		later = w.hook.zombieAfter
	case m.casFate != witnessOK:
		f, m.casFate = m.casFate, witnessOK
	case wt.out > 0 || m.witnessCut > 0:
		f = witnessLost
		if w.chance(0.3) {
			f = witnessZombie
		}
	case there+back >= wt.limit():
		f = witnessMute
	case wt.odd || w.chance(w.opt.oddCAS):
		f = fate(1 + w.rng.Uint32()%3)
	}
	lands := rec.Clone()
	if f != witnessOK {
		w.hit(HitUnknown)
		w.at(w.now+wt.limit(), func() { m.answerCAS(inc, tag, failover.Unknown, "") })
	}
	switch f {
	case witnessOK:
		w.at(w.now+there, func() {
			m.casOnWay = true
			out, version := failover.Conflict, ""
			if wt.land(m, expect, &lands, "") {
				out, version = failover.Won, wt.version
			} else {
				w.hit(HitConflict)
			}
			w.at(w.now+back, func() { m.answerCAS(inc, tag, out, version) })
		})
	case witnessMute:
		w.at(w.now+there, func() { wt.land(m, expect, &lands, " (no answer)") })
	case witnessZombie:
		if later == 0 {
			later = w.between(wt.limit(), 4*w.opt.lease)
			if w.chance(0.2) {
				later = w.between(0, 20*w.opt.lease)
			}
		}
		w.at(w.now+later, func() {
			if wt.land(m, expect, &lands, " (zombie)") {
				w.hit(HitZombie)
			}
		})
	}
}
