package blockrepl

import "slices"

// Verdict says which way data must flow between two copies, judged by their
// generations alone. Who serves is another question: the serving node is the
// source, and a verdict that says otherwise is a split brain.
type Verdict uint8

// The verdicts.
const (
	NoData       Verdict = iota // neither copy has ever held data
	Same                        // same generation: what the dirty bits say, no less
	SourceBitmap                // we are ahead, and our bits tell by how much
	TargetBitmap                // the peer is
	SourceFull                  // we are ahead, nobody knows by how much
	TargetFull                  // the peer is
	SplitBrain                  // both went on from a common state
	Unrelated                   // never had anything in common
)

func (v Verdict) String() string {
	return [...]string{"no data", "same", "source by bitmap", "target by bitmap", "source in full",
		"target in full", "split brain", "unrelated"}[v]
}

// Mirror is the verdict that the other side must come to.
func (v Verdict) Mirror() Verdict {
	return [...]Verdict{NoData, Same, TargetBitmap, SourceBitmap, TargetFull, SourceFull, SplitBrain, Unrelated}[v]
}

// Ancestry is a copy's generations as the other side of a handshake sees them.
type Ancestry struct {
	Current uint64   // 0: a fresh disk
	Base    uint64   // what the other's copy plus our bits amounts to; 0: it carries Current
	History []uint64 // former generations, zeroes ignored
	Mixed   bool     // Inconsistent: a resync was interrupted
}

// between: g is a former generation of a, younger than the base that a's bits
// count from.
func (a *Ancestry) between(g uint64) bool {
	if g == 0 || a.Base == 0 {
		return false
	}
	i, j := slices.Index(a.History, g), slices.Index(a.History, a.Base)
	return i >= 0 && j > i
}

// after: g is a former generation of a, and the base that a's bits count from is
// older than all that a remembers, or was made for a resync in full.
func (a *Ancestry) after(g uint64) bool { return a.Base != 0 && !a.had(a.Base) && a.had(g) }

func (a *Ancestry) had(g uint64) bool { return g != 0 && slices.Contains(a.History, g) }

// row is one line of the table: the first whose test holds decides.
type row struct {
	name    string
	test    func(me, you *Ancestry) bool
	verdict Verdict
}

// rows is the handshake's table. A test walks all small combinations and
// demands that the two sides' answers mirror each other.
var rows = [...]row{
	// Two volumes fresh from init meet: the first promote makes the truth.
	{"both-fresh", func(me, you *Ancestry) bool { return me.Current == 0 && you.Current == 0 }, NoData},
	// A new or replaced disk, or one whose data was discarded. It never wins.
	{"self-fresh", func(me, you *Ancestry) bool { return me.Current == 0 }, TargetFull},
	{"peer-fresh", func(me, you *Ancestry) bool { return you.Current == 0 }, SourceFull},
	// A link that broke, or an agent that restarted, with nothing bumped since.
	// Equal generations are a claim: bits on either side still count.
	{"equal", func(me, you *Ancestry) bool { return me.Current == you.Current }, Same},
	// Each names the other as its base: damaged metadata, nobody may win.
	{"crossed", func(me, you *Ancestry) bool {
		return me.Base != 0 && you.Base != 0 && you.Current == me.Base && me.Current == you.Base
	}, SplitBrain},
	// The peer was away while we went on (it crashed, was cut off, was deposed),
	// or its first resync, under a generation of its own, was interrupted.
	{"peer-behind", func(me, you *Ancestry) bool { return me.Base != 0 && you.Current == me.Base }, SourceBitmap},
	{"self-behind", func(me, you *Ancestry) bool { return you.Base != 0 && me.Current == you.Base }, TargetBitmap},
	// The link broke inside a grow, after the peer had taken our generation and
	// before we knew, or with three nodes somebody else grew it: our bitmap still
	// counts from an older base, so it says all that the peer lacks, and some that
	// it has. A resync from there that was interrupted changes nothing.
	{"peer-between", func(me, you *Ancestry) bool { return me.between(you.Current) && !you.had(me.Current) }, SourceBitmap},
	{"self-between", func(me, you *Ancestry) bool { return you.between(me.Current) && !me.had(you.Current) }, TargetBitmap},
	// An old disk put back that was in the middle of its first resync: its
	// generation was made for that resync and is in nobody's history. A mixture
	// of two states has nothing to lose, whatever it descends from.
	{"self-mixed", func(me, you *Ancestry) bool { return me.Mixed && !you.Mixed }, TargetFull},
	{"peer-mixed", func(me, you *Ancestry) bool { return you.Mixed && !me.Mixed }, SourceFull},
	// Each holds the other as old: damaged or hand-copied metadata.
	{"mutual-history", func(me, you *Ancestry) bool { return me.had(you.Current) && you.had(me.Current) }, SplitBrain},
	// The peer's state is older than the base that our bits count from.
	// The first resync of the peer had just ended when the link broke, or a third
	// node's turn came. All bits were set when it began.
	{"peer-filled", func(me, you *Ancestry) bool { return me.after(you.Current) }, SourceBitmap},
	{"self-filled", func(me, you *Ancestry) bool { return you.after(me.Current) }, TargetBitmap},
	{"peer-in-history", func(me, you *Ancestry) bool { return me.had(you.Current) }, SourceFull},
	{"self-in-history", func(me, you *Ancestry) bool { return you.had(me.Current) }, TargetFull},
	// Both went on from one state: a promote --force on the wrong side of a cut.
	{"both-moved", func(me, you *Ancestry) bool {
		if me.Base != 0 && me.Base == you.Base {
			return true
		}
		for _, g := range me.History {
			if you.had(g) {
				return true
			}
		}
		return me.had(you.Base) || you.had(me.Base)
	}, SplitBrain},
	// Volumes of two clusters, or histories longer than what is kept.
	{"unrelated", func(me, you *Ancestry) bool { return true }, Unrelated},
}

// Judge compares two copies. The name is that of the table's row.
func Judge(me, you *Ancestry) (Verdict, string) {
	for i := range rows {
		if rows[i].test(me, you) {
			return rows[i].verdict, rows[i].name
		}
	}
	panic("blockrepl: the last row matches everything")
}
