package sim

import (
	"tandem/blockrepl"
	"tandem/blockrepl/meta"
)

// covered looks at what is on the disks: wherever a member's copy differs from
// another node's, one of the two says so in its metadata, so that whoever
// promotes now would find out (promise 4, rule 10). The final comparison of the
// copies sees the same mistakes, but only those that no later write hides.
func (c *check) covered(when string) {
	w := c.w
	if w.done || w.witness.rec == nil {
		return
	}
	st := make([]*meta.State, len(w.m))
	for i, m := range w.m {
		var err error
		if st[i], err = meta.Load(m.meta); err != nil {
			w.fail("%s: the metadata of %s: %v", when, m.name, err)
			return
		}
	}
	for i, x := range w.m {
		if !w.witness.rec.Has(x.name) || x.foreign {
			continue
		}
		for k, y := range w.m {
			if k == i || y.foreign || inFull(st[i].Super, st[k].Super) {
				continue
			}
			says := append(speaks(st[i], y.name), speaks(st[k], x.name)...)
			for u := range x.data.units {
				if x.data.units[u].cur == y.data.units[u].cur {
					continue
				}
				told := false
				for _, f := range says {
					told = told || f(u)
				}
				if !told {
					w.fail("%s: unit %d is w%d on %s, which %s names, and w%d on %s, and neither knows", when, u,
						x.data.units[u].cur, x.name, recText(w.witness.rec), y.data.units[u].cur, y.name)
					return
				}
			}
		}
	}
}

// inFull: if x promoted, y would be compared in full.
func inFull(x, y *meta.Super) bool {
	base := uint64(0)
	for _, p := range x.Peers {
		if p.Name == y.Node {
			base = p.Base
		}
	}
	if base == 0 {
		base = x.Current
	}
	history := append([]uint64{x.Heard, x.Current}, x.History[:]...)
	v, _ := blockrepl.Judge(&blockrepl.Ancestry{Current: 1, Base: base, History: history},
		&blockrepl.Ancestry{Current: y.Current, History: y.History[:], Mixed: y.Inconsistent})
	return v != blockrepl.SourceBitmap || y.Outdated
}

// speaks is what the metadata of one node say of another: whether its copy of a
// unit may differ.
func speaks(st *meta.State, name string) []func(unit int) bool {
	s := st.Super
	hot := make(map[uint32]bool, len(st.Hot))
	for _, e := range st.Hot {
		hot[e] = true
	}
	says := []func(int) bool{func(u int) bool { return hot[uint32(u/unitsPerExtent)] }}
	for i, p := range s.Peers {
		if p.Name == name {
			bits := st.Bits[i]
			says = append(says, func(u int) bool { b := u / unitsPerBlock; return bits[b/64]&(1<<(b%64)) != 0 })
		}
	}
	return says
}
