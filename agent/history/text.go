package history

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Text is an entry as a line for a person, without its newline.
func (e Entry) Text(loc *time.Location) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s  ", e.Time.In(loc).Format("2006-01-02 15:04:05.000"), e.Node)
	switch e.Kind {
	case KindRole:
		fmt.Fprintf(&b, "%s -> %s", e.From, e.To)
		if e.Epoch > 0 {
			fmt.Fprintf(&b, ", epoch %d", e.Epoch)
		}
	case KindRecord:
		fmt.Fprintf(&b, "record: epoch %d, primary %s, in sync %s", e.Epoch, e.To, strings.Join(e.InSync, ","))
	case KindPhase:
		fmt.Fprintf(&b, "%s took %s", e.Phase, FormatSeconds(e.Seconds))
	case KindRequest:
		b.WriteString("request: ")
	}
	if e.Why != "" {
		if e.Kind == KindRole || e.Kind == KindRecord || e.Kind == KindPhase {
			b.WriteString(": ")
		}
		b.WriteString(strings.ReplaceAll(e.Why, "\n", "; "))
	}
	if e.Kind != KindPhase && e.Seconds > 0 {
		fmt.Fprintf(&b, " (after %s)", FormatSeconds(e.Seconds))
	}
	if e.By != "" {
		fmt.Fprintf(&b, " [%s]", e.By)
	}
	return b.String()
}

// FormatSeconds keeps what tells one failover from another: milliseconds below a
// second, two digits above.
func FormatSeconds(s float64) string {
	switch {
	case s < 1:
		return fmt.Sprintf("%.0f ms", s*1000)
	case s < 100:
		return fmt.Sprintf("%.2f s", s)
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}

// Merge joins the histories of several nodes by time. Entries of one node stay in
// their order, also where its clock was set back.
func Merge(all ...[]Entry) []Entry {
	type at struct {
		e   Entry
		key time.Time
	}
	var in []at
	for _, entries := range all {
		latest := time.Time{}
		for _, e := range entries {
			if e.Time.After(latest) {
				latest = e.Time
			}
			in = append(in, at{e, latest})
		}
	}
	slices.SortStableFunc(in, func(a, b at) int { return a.key.Compare(b.key) })
	out := make([]Entry, len(in))
	for i := range in {
		out[i] = in[i].e
	}
	return out
}
