package sim

import (
	"flag"
	"fmt"
	"testing"

	"tandem/blockrepl"
	"tandem/failover"
)

var long = flag.Bool("long", false, "TestTeethSearch: look for a failing seed for every mistake")

// scenarios are the scripts that a mistake is tried on before any seed.
var scenarios = []struct {
	name string
	play func(*script)
}{
	{"01", powerLossOfPrimary}, {"02a", undecidedGrow}, {"02b", undecidedPromote}, {"02c", undecidedShrink},
	{"03", resyncRace}, {"04", aloneAsLastRead}, {"05", namedByRecord}, {"06", powerLossOfSecondary},
	{"07a", flushAndGrow}, {"07b", resyncUnflushed}, {"08", retiredUnflushed}, {"08b", promoteThenPowerLoss},
	{"10", notDrained}, {"11", force}, {"11b", forceThenRestart}, {"11c", forceWhileAsleep}, {"13", missingRecord}, {"15", restartIsAPause},
	{"16", freezeThenShrink}, {"17", moveLost},
	{"blipThenRetire", blipThenRetire}, {"oldPrimaryReturns", oldPrimaryReturns}, {"lateGrant", lateGrant}, {"promiseForgotten", promiseForgotten},
	{"putBack", putBack}, {"readInFlight", readInFlight}, {"overlappingWrites", overlappingWrites}, {"flushOnPeer", flushOnPeer},
	{"primaryDies", primaryDies}, {"leaseRunsOut", leaseRunsOut}, {"outOfTheSet", outOfTheSet}, {"paused", pausedMeansPaused}, {"goBeforeStop", goBeforeStop},
	{"suspended", suspended}, {"threeGrants", oneGrantOfTwo}, {"diskFails", diskFails}, {"goodbye", goodbye}, {"idleAndCut", idleAndCut}, {"blackout", blackout},
	{"newSessionTooEarly", newSessionTooEarly}, {"countedTooEarly", countedTooEarly},
	{"longZero", longZero}, {"replayedLongZero", replayedLongZero},
	{"backBeforeTheLease", backBeforeTheLease},
	{"14a", survivorsDiffer}, {"14a2", survivorHasMore}, {"14b", memoryOnly}, {"14c", bitsOfTheDead}, {"14d", bitsNotTakenOver},
	{"threeDrain", threeDrain}, {"threeHeard", threeHeard}, {"threeLeave", threeLeave}, {"threePutBack", threePutBack},
	{"threeForced", forcedWhileAsleep}, {"threeGrow", threeGrow}, {"threeReturn", threeReturn},
}

type mutant struct {
	clock bool // Options.Monotonic
	vol   blockrepl.Bug
	vote  failover.Bug
}

func (m mutant) String() string {
	if m.vol != blockrepl.NoBug {
		return "blockrepl/" + m.vol.String()
	}
	if m.clock {
		return "agent/clock stops in suspend"
	}
	return "failover/" + m.vote.String()
}

// options: a mistake that two nodes cannot show is tried on three.
func (m mutant) options() Options {
	o := Options{VolBug: m.vol, VoteBug: m.vote, Monotonic: m.clock}
	if m.vol >= blockrepl.BugNoBitsOnPromotion || m.vote == failover.OneGrantOfTwo {
		o.Nodes = 3
	}
	return o
}

func mutants() (all []mutant) {
	for b := blockrepl.NoBug + 1; b < blockrepl.Bugs; b++ {
		all = append(all, mutant{vol: b})
	}
	for b := failover.NoBug + 1; b < failover.Bugs; b++ {
		all = append(all, mutant{vote: b})
	}
	return append(all, mutant{clock: true})
}

// lastSeed is how far a mistake is looked for among the lives.
const lastSeed = 500

// teeth says for every mistake where it shows: in a scenario, or in the life of
// a seed. The mistakes without either are covered by a second line of defence
// in the cores, so that no history shows them; the reason stands beside them.
var teeth = []struct {
	mutant
	scenario string
	seed     uint64
	masked   string
}{
	{mutant{vol: blockrepl.BugSkipAL}, "08", 5, ""},
	{mutant{vol: blockrepl.BugAckBeforePeer}, "02a", 1, ""},
	{mutant{vol: blockrepl.BugForgetUnflushed}, "blipThenRetire", 0, ""},
	{mutant{vol: blockrepl.BugEvictUnflushed}, "08", 37, ""},
	{mutant{vol: blockrepl.BugDropBitsOnSame}, "backBeforeTheLease", 73, ""},
	{mutant{vol: blockrepl.BugAcceptOldEpoch}, "", 0, "frames never cross from one link into the next, and every change of epoch takes the links down"},
	{mutant{vol: blockrepl.BugResyncUnlocked}, "03", 1, ""},
	{mutant{vol: blockrepl.BugClearUnflushed}, "07b", 48, ""},
	{mutant{vol: blockrepl.BugTrustPutBack}, "putBack", 0, ""},
	{mutant{vol: blockrepl.BugNoOverlapLock}, "overlappingWrites", 1, ""},
	{mutant{vol: blockrepl.BugReadInFlight}, "readInFlight", 2, ""},
	{mutant{vol: blockrepl.BugNoBitsOnStepDown}, "", 0, "a lost link has already marked what is not acknowledged or not flushed"},
	{mutant{vol: blockrepl.BugCountUnacked}, "countedTooEarly", 6, ""},
	{mutant{vol: blockrepl.BugReleaseEarly}, "", 0, "the activity log on disk still names the extents, and the proposed generation is the record's"},
	{mutant{vol: blockrepl.BugFlushLocalOnly}, "flushOnPeer", 5, ""},
	{mutant{vol: blockrepl.BugHelloUndrained}, "newSessionTooEarly", 0, ""},
	{mutant{vol: blockrepl.BugHeatUntilSent}, "longZero", 4, ""},
	{mutant{vol: blockrepl.BugUnreserved}, "replayedLongZero", 11, ""},
	{mutant{vol: blockrepl.BugNoBitsOnPromotion}, "14a", 2, ""},
	{mutant{vol: blockrepl.BugLogNotTold}, "14a2", 13, ""},
	{mutant{vol: blockrepl.BugBitsOnPrimaryOnly}, "14c", 2, ""},
	{mutant{vol: blockrepl.BugBitsNotTakenOver}, "14d", 4, ""},
	{mutant{vol: blockrepl.BugHoldOneFlag}, "", 0, "what completes too early was flushed here before the CAS, unless it was sent after that; blockrepl's TestHoldsOfTwoShrinks"},
	{mutant{vol: blockrepl.BugFollowUndrained}, "threeDrain", 0, ""},
	{mutant{vol: blockrepl.BugNotHeard}, "threeHeard", 0, ""},

	{mutant{vote: failover.LeaseFromReceipt}, "lateGrant", 47, ""},
	{mutant{vote: failover.GrowEarly}, "04", 0, ""},
	{mutant{vote: failover.ShrinkAfterAck}, "02c", 1, ""},
	{mutant{vote: failover.OldRecordProvesFailure}, "02c", 0, ""},
	{mutant{vote: failover.NamedIsEnough}, "05", 1, ""},
	{mutant{vote: failover.NoWaitAfterRestart}, "promiseForgotten", 95, ""},
	{mutant{vote: failover.GrantWhileCandidate}, "", 0, "the volume takes the links down before the CAS, so no request arrives"},
	{mutant{vote: failover.AcceptOldEpoch}, "", 0, "the old primary learns the epoch from the hello of whoever would follow it"},
	{mutant{vote: failover.NoHostMark}, "06", 5, ""},
	{mutant{vote: failover.RetryForgetsNonce}, "", 0, "the expected version is the same, so only one of the two can land"},
	{mutant{vote: failover.PromoteWithoutSet}, "06", 1, ""},
	{mutant{vote: failover.NoClaimHold}, "", 0, "needs a --force and a slow witness; a restarted node waits out its longest promise anyway"},
	{mutant{vote: failover.PromoteOnOldRecord}, "outOfTheSet", 7, ""},
	{mutant{vote: failover.TakeOverEarly}, "leaseRunsOut", 32, ""},
	{mutant{vote: failover.TakeOverPaused}, "paused", 5, ""},
	{mutant{vote: failover.OneGrantOfTwo}, "threeGrants", 0, ""},
	{mutant{vote: failover.LeaseIsLook}, "threeForced", 0, ""},
	{mutant{vote: failover.ServeAfterThaw}, "04", 88, ""},
	{mutant{vote: failover.UnknownIsLost}, "02c", 0, ""},
	{mutant{vote: failover.GoBeforeStop}, "goBeforeStop", 0, ""},
	{mutant{vote: failover.PromiseNotDurable}, "promiseForgotten", 28, ""},
	{mutant{vote: failover.NeverTakeOver}, "primaryDies", 1, ""},
	{mutant{clock: true}, "suspended", 32, ""},
}

// TestTeeth: a test that cannot fail proves nothing. Every mistake that can be
// built into the cores breaks a promise somewhere.
func TestTeeth(t *testing.T) {
	if len(teeth) != len(mutants()) {
		t.Errorf("%d mistakes, %d of them in the table", len(mutants()), len(teeth))
	}
	for _, m := range teeth {
		for _, s := range scenarios {
			if s.name != m.scenario {
				continue
			}
			opt := m.options()
			opt.Nodes = nodesOf(s.name)
			r := play(s.play, opt)
			t.Logf("%-34v scenario %-16s %.120s", m.mutant, s.name, r.Failed)
			if r.Failed == "" {
				t.Errorf("%v does not show in scenario %s any more", m.mutant, s.name)
			}
		}
		switch {
		case m.masked != "":
			t.Logf("%-34v masked: %s", m.mutant, m.masked)
		case m.seed != 0 && (m.scenario == "" || *long):
			// A seed's life changes with every change of the cores; if this one
			// shows nothing any more another will.
			r := Run(m.seed, m.options())
			for seed := uint64(1); r.Failed == "" && seed <= lastSeed; seed++ {
				r = Run(seed, m.options())
			}
			t.Logf("%-34v seed %-20d %.120s", m.mutant, r.Seed, r.Failed)
			if r.Failed == "" {
				t.Errorf("%v does not show in any life up to seed %d", m.mutant, lastSeed)
			}
		}
	}
}

// TestTeethSearch prints, for every mistake, the scenarios and the first seed
// that show it.
func TestTeethSearch(t *testing.T) {
	if !*long {
		t.Skip("-long")
	}
	for _, m := range mutants() {
		for _, s := range scenarios {
			opt := m.options()
			opt.Nodes = nodesOf(s.name)
			if r := play(s.play, opt); r.Failed != "" {
				fmt.Printf("%-36v scenario %s: %.150s\n", m, s.name, r.Failed)
			}
		}
	}
	for _, m := range mutants() {
		seed := uint64(1)
		for ; seed <= lastSeed; seed++ {
			if r := Run(seed, m.options()); r.Failed != "" {
				fmt.Printf("%-36v seed %d: %.150s\n", m, seed, r.Failed)
				break
			}
		}
		if seed > lastSeed {
			fmt.Printf("%-36v no seed up to %d\n", m, lastSeed)
		}
	}
}
