package blockrepl

import "testing"

// ancestries is every combination of small generations that a copy can claim,
// sensible or not: metadata may be damaged, or copied by hand.
func ancestries() []Ancestry {
	var out []Ancestry
	hist := [][]uint64{nil, {1}, {2}, {3}, {1, 2}, {2, 1}, {3, 1}}
	for cur := uint64(0); cur <= 4; cur++ {
		for base := uint64(0); base <= 4; base++ {
			for _, h := range hist {
				out = append(out, Ancestry{cur, base, h, false}, Ancestry{cur, base, h, true})
			}
		}
	}
	return out
}

// TestVerdictsMirror walks every pair of copies: both sides come to the same
// conclusion, seen from their own side.
func TestVerdictsMirror(t *testing.T) {
	all := ancestries()
	seen := make(map[string]int)
	for i := range all {
		for k := range all {
			mine, name := Judge(&all[i], &all[k])
			yours, other := Judge(&all[k], &all[i])
			seen[name]++
			if yours != mine.Mirror() {
				t.Fatalf("%+v against %+v: %v (%s), the other side says %v (%s)", all[i], all[k], mine, name, yours, other)
			}
		}
	}
	for _, r := range rows {
		if seen[r.name] == 0 {
			t.Errorf("no pair of copies reaches row %s", r.name)
		}
	}
}

// TestVerdicts has one case a row, named after the fault that makes it.
func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name    string
		me, you Ancestry
		verdict Verdict
		row     string
	}{
		{"two disks fresh from init", Ancestry{}, Ancestry{}, NoData, "both-fresh"},
		{"a replaced disk meets data", Ancestry{}, Ancestry{Current: 7}, TargetFull, "self-fresh"},
		{"a link that blinked", Ancestry{Current: 7}, Ancestry{Current: 7}, Same, "equal"},
		{"a peer that missed writes", Ancestry{Current: 8, Base: 7, History: []uint64{7}}, Ancestry{Current: 7}, SourceBitmap, "peer-behind"},
		{"a first resync that was interrupted", Ancestry{Current: 8, Base: 99}, Ancestry{Current: 99}, SourceBitmap, "peer-behind"},
		{"a deposed primary comes back", Ancestry{Current: 7}, Ancestry{Current: 8, Base: 7, History: []uint64{7}}, TargetBitmap, "self-behind"},
		{"a peer that missed two terms", Ancestry{Current: 9, Base: 8, History: []uint64{8, 7}}, Ancestry{Current: 7}, SourceFull, "peer-in-history"},
		{"a first resync whose end we have not seen", Ancestry{Current: 9, Base: 99, History: []uint64{8}}, Ancestry{Current: 8}, SourceBitmap, "peer-filled"},
		{"a resync that was interrupted, from a generation between", Ancestry{Current: 9, Base: 7, History: []uint64{8, 7}}, Ancestry{Current: 8, Mixed: true, History: []uint64{7}}, SourceBitmap, "peer-between"},
		{"forced on both sides of a cut", Ancestry{Current: 8, Base: 7, History: []uint64{7}}, Ancestry{Current: 9, Base: 7, History: []uint64{7}}, SplitBrain, "both-moved"},
		{"put back from the middle of its first resync", Ancestry{Current: 8, History: []uint64{7}}, Ancestry{Current: 99, Mixed: true}, SourceFull, "peer-mixed"},
		{"another cluster's volume", Ancestry{Current: 8, History: []uint64{7}}, Ancestry{Current: 5, History: []uint64{4}}, Unrelated, "unrelated"},
		{"metadata copied by hand", Ancestry{Current: 8, Base: 9}, Ancestry{Current: 9, Base: 8}, SplitBrain, "crossed"},
	} {
		if v, row := Judge(&c.me, &c.you); v != c.verdict || row != c.row {
			t.Errorf("%s: %v (%s), want %v (%s)", c.name, v, row, c.verdict, c.row)
		}
	}
}
