package meta

import (
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// Dump writes the state as text for `replctl dump-md`.
func Dump(w io.Writer, st *State) error {
	s := st.Super
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", key, fmt.Sprintf(format, args...))
	}
	line("cluster", "%s", s.Cluster)
	line("node", "%s", s.Node)
	line("disk", "%016x%s", s.DiskID, note(s.Replaces != 0, fmt.Sprintf("replaces %016x", s.Replaces)))
	line("identity", "%s", s.Identity)
	line("boot", "%s", s.BootID)
	line("volume", "%d bytes, %d blocks of %d, %d extents of %d", s.VolumeSize, s.Bits(), 1<<s.BlockShift, s.Extents(), 1<<s.ExtentShift)
	line("region", "%d bytes: superblock at 0, activity log at %d, bitmaps at %d, each %d pages", s.RegionSize(), s.ALOffset(0), s.BitmapOffset(0, 0), s.Pages())
	line("superblock", "seq %d%s", s.Seq, note(st.SuperLost, "the other copy is damaged and may have been newer"))
	line("flags", "%s", flags(s))
	line("generation", "current %016x proposed %016x mark %d", s.Current, s.Proposed, s.Mark)
	if s.Heard != 0 {
		line("", "heard %016x in epoch %d", s.Heard, s.HeardEpoch)
	}
	for i, g := range s.History {
		if g != 0 {
			line("", "history[%d] %016x", i, g)
		}
	}
	line("vote", "cluster %016x epoch %d served %d serial %d longest promise %v", s.Vote.ClusterID, s.Vote.Epoch, s.Vote.Served, s.Vote.Serial, time.Duration(s.Vote.LongestG))
	line("activity log", "seq %d, %d of %d slots hot: %s%s", st.ALSeq, len(st.Hot), s.ALSlots, ranges(st.Hot), note(st.ALLost, "the newest block is lost, everything counts as dirty"))
	for i, p := range s.Peers {
		if p.Name == "" {
			line(fmt.Sprintf("slot %d", i), "free")
			continue
		}
		line(fmt.Sprintf("slot %d", i), "peer %s disk %016x base %016x mark %d", p.Name, p.DiskID, p.Base, p.Mark)
		n := 0
		for _, word := range st.Bits[i] {
			n += bits.OnesCount64(word)
		}
		line("", "%d of %d blocks dirty, %d bytes", n, s.Bits(), dirtyBytes(s, st.Bits[i], n))
	}
	line("bad sectors", "%d%s", st.BadSectors, note(st.BadSectors > 0, "read as dirty"))
	_, err := io.WriteString(w, b.String())
	return err
}

func flags(s *Super) string {
	var on []string
	for _, f := range []struct {
		set  bool
		name string
	}{{s.Inconsistent, "inconsistent"}, {s.Outdated, "outdated"}, {s.Vote.Marked, "marked"}} {
		if f.set {
			on = append(on, f.name)
		}
	}
	if on == nil {
		return "none"
	}
	return strings.Join(on, " ")
}

func note(when bool, text string) string {
	if when {
		return " (" + text + ")"
	}
	return ""
}

// ranges is "3-5 9".
func ranges(extents []uint32) string {
	if len(extents) == 0 {
		return "none"
	}
	e := slices.Clone(extents)
	slices.Sort(e)
	e = slices.Compact(e)
	var out []string
	for i := 0; i < len(e); {
		j := i
		for j+1 < len(e) && e[j+1] == e[j]+1 {
			j++
		}
		if i == j {
			out = append(out, fmt.Sprint(e[i]))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", e[i], e[j]))
		}
		i = j + 1
	}
	return strings.Join(out, " ")
}

// dirtyBytes is n blocks, less what the last one lacks if it is among them.
func dirtyBytes(s *Super, words []uint64, n int) int64 {
	total := int64(n) << s.BlockShift
	if last := s.Bits() - 1; len(words) > 0 && words[last/64]>>(last%64)&1 != 0 {
		total -= int64(s.Bits())<<s.BlockShift - s.VolumeSize
	}
	return total
}
