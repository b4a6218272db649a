package sim

import (
	"fmt"
	"io"
)

// Hit is something that has to happen in enough lives: a simulation that never
// reaches a corner proves nothing about it.
type Hit uint8

const (
	HitPlannedMove Hit = iota
	HitTakeover
	HitResume
	HitShrink
	HitGrow
	HitResync
	HitResyncInterrupted
	HitFullResync
	HitCrashInAL
	HitCrashInRecord
	HitTornSuper
	HitTornData
	HitUnknown
	HitZombie
	HitConflict
	HitFlushAtCrash
	HitOneWayCut
	HitCut
	HitReset
	HitPutBack
	HitHostOne
	HitHostBoth
	HitAgentCrash
	HitAgentBoth
	HitPauseLong
	HitFreeze
	HitDeposed
	HitPromoteUp
	HitReplay
	HitRetire
	HitFUA
	HitZero
	HitLongZero
	HitOverlap
	HitReadOver
	HitMarked
	HitRollback
	HitWitnessOut
	HitDiskStall
	HitAtEffect
	HitDemote
	HitBothMarked
	HitIsolated
	HitItself
	HitSuspend
	HitGoodbye
	HitDiskError
	// Only with three nodes and more.
	HitSurvivorLacks
	HitAbsentDiffers
	HitTwoResyncs
	HitGrowOneAway
	HitShrinkTwice
	HitHeard
	HitResyncSourceGone
	HitBereaved
	HitOutlasted
	Hits
)

var hitNames = [Hits]string{
	HitPlannedMove: "planned move", HitTakeover: "takeover", HitResume: "primary came back by itself",
	HitShrink: "shrink", HitGrow: "grow", HitResync: "resync that moved data", HitResyncInterrupted: "resync interrupted",
	HitFullResync: "full resync", HitCrashInAL: "crash inside an AL transaction",
	HitCrashInRecord: "crash between CAS and local record", HitTornSuper: "torn superblock", HitTornData: "torn data write",
	HitUnknown: "CAS with unknown outcome", HitZombie: "zombie CAS landed", HitConflict: "CAS conflict",
	HitFlushAtCrash: "FLUSH in flight at a crash", HitOneWayCut: "one-way cut", HitCut: "cut both ways", HitReset: "link reset",
	HitPutBack: "put-back disk", HitHostOne: "host crash, one", HitHostBoth: "host crash, both", HitAgentCrash: "agent crash",
	HitAgentBoth: "agent crash, both", HitPauseLong: "pause beyond the lease", HitFreeze: "freeze", HitDeposed: "primary deposed",
	HitPromoteUp: "promote with the link up", HitReplay: "request replayed", HitRetire: "AL retirement", HitFUA: "FUA write",
	HitZero: "zero", HitLongZero: "zero over more than the log holds", HitOverlap: "overlapping writes", HitReadOver: "read over a write in flight",
	HitMarked: "start with a host-restart mark", HitRollback: "unflushed writes rolled back", HitWitnessOut: "witness out",
	HitDiskStall: "disk stall", HitAtEffect: "crash at a chosen effect", HitDemote: "demote", HitBothMarked: "both nodes marked",
	HitIsolated: "node cut from everybody", HitItself: "takeover by itself", HitSuspend: "host suspended beyond the lease",
	HitGoodbye: "agent restart with a goodbye", HitDiskError: "local disk error",
	HitSurvivorLacks: "3: survivors of a primary differ", HitAbsentDiffers: "3: who promotes has what an absent node lacks",
	HitTwoResyncs: "3: two peers resync at once", HitGrowOneAway: "3: grow while another is away",
	HitShrinkTwice: "3: shrink while another is away", HitHeard: "3: generation heard, not yet adopted, at an end",
	HitResyncSourceGone: "3: takeover in the middle of a resync",
	HitBereaved:         "3: primary dies cut from one of two", HitOutlasted: "3: primary dies while one is away",
}

// third tells whether h needs more than two nodes.
func (h Hit) third() bool { return h >= HitSurvivorLacks }

func (h Hit) String() string { return hitNames[h] }

// Stats is the sum over lives.
type Stats struct {
	Lives  int
	Idle   int64     // ns: the longest from the last fault until somebody served
	Thirds int       // lives of more than two nodes
	In     [Hits]int // lives in which it happened
	Ops    int
	Events int
}

// Add counts one life.
func (s *Stats) Add(r *Result) {
	s.Lives++
	if r.Nodes > 2 {
		s.Thirds++
	}
	s.Ops += r.Ops
	s.Idle = max(s.Idle, r.Idle)
	s.Events += r.Events
	for h, n := range r.Hits {
		if n > 0 {
			s.In[h]++
		}
	}
}

// Rare returns what happened in fewer than one life in a hundred.
func (s *Stats) Rare() (rare []Hit) {
	for h := range Hits {
		if s.In[h]*100 < s.of(h) {
			rare = append(rare, h)
		}
	}
	return rare
}

// of is in how many lives h could have happened.
func (s *Stats) of(h Hit) int {
	if h.third() {
		return s.Thirds
	}
	return s.Lives
}

// Print writes the table.
func (s *Stats) Print(w io.Writer) {
	for h := range Hits {
		if s.of(h) == 0 {
			continue
		}
		mark := ""
		if s.In[h]*100 < s.of(h) {
			mark = "  <- under 1 %"
		}
		fmt.Fprintf(w, "%-48s %7d  %5.1f %%%s\n", hitNames[h], s.In[h], 100*float64(s.In[h])/float64(max(1, s.of(h))), mark)
	}
}
