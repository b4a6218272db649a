// Package record is the cluster record: the one small document that the witness
// holds and that decides who may be primary (design.md, section 5).
//
// The struct has plain fields, because the pure cores compare and copy it; the
// codec is strict, because a record half-understood is a split brain.
package record

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// Version is the layout that this release writes.
	Version = 1

	// MaxBytes bounds what Decode looks at. A full record of four members is
	// under 1 KiB; the rest is room for later versions.
	MaxBytes = 64 << 10

	// MaxMembers is a node and its three peers (section 8: at most 3 peers).
	MaxMembers = 4

	// maxReason keeps one verbose error from filling the register.
	maxReason = 1024

	// maxName is a DNS label, so that a name can stand in a certificate.
	maxName = 63
)

// Record is the cluster record.
type Record struct {
	Version int
	Cluster string // the operator's name for it

	// ClusterID is drawn by the node that creates the record. Two clusters that
	// share a name and, by mistake, a witness differ here.
	ClusterID uint64

	// Serial is one more at every change, whoever makes it. A node that has seen
	// a higher one is looking at a register that was put back (rule 12).
	Serial uint64

	// Epoch is the number of the primary's term: the fencing token.
	Epoch   uint64
	Primary string

	// InSync names, in ascending order, the nodes whose copy holds every
	// acknowledged write. It is never empty: that would say that nobody has the
	// data. The primary may be missing from it (its own disk failed, section 3).
	InSync []string

	// Members are all nodes the record knows, in ascending order of Node.
	Members []Member

	// Generation is the history that InSync stands for.
	Generation uint64

	// Paused, if not nil, stops every automatic promotion in the cluster.
	Paused *Paused

	// Nonce is fresh in every change, so that the writer of an unanswered CAS
	// can recognise its own record (rule 7).
	Nonce uint64

	ChangedBy string
	Reason    string
	ChangedAt time.Time
}

// Member is one node and the disk that belongs to it. Another disk under the
// same name is not a member (rule 12).
type Member struct {
	Node   string
	DiskID uint64
}

// Paused says since when and by whose demote nobody promotes by itself.
type Paused struct {
	Since time.Time
	By    string
}

// Has says whether node is in the in-sync set.
func (r Record) Has(node string) bool { return slices.Contains(r.InSync, node) }

// Member returns the member called node.
func (r Record) Member(node string) (Member, bool) {
	for _, m := range r.Members {
		if m.Node == node {
			return m, true
		}
	}
	return Member{}, false
}

// Clone returns a copy that shares nothing, for a caller that derives the next
// record from the last one.
func (r Record) Clone() Record {
	r.InSync = slices.Clone(r.InSync)
	r.Members = slices.Clone(r.Members)
	if r.Paused != nil {
		p := *r.Paused
		r.Paused = &p
	}
	return r
}

// Validate reports the first contradiction as an error that wraps ErrInvalid.
func (r Record) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Version != Version:
		return bad("version %d", r.Version)
	case !ValidName(r.Cluster):
		return bad("cluster name %q", r.Cluster)
	case r.ClusterID == 0:
		return bad("no cluster id")
	case r.Serial == 0:
		return bad("serial 0")
	case r.Epoch == 0:
		return bad("epoch 0")
	case r.Generation == 0:
		return bad("no generation")
	case len(r.Members) == 0 || len(r.Members) > MaxMembers:
		return bad("%d members, between 1 and %d are possible", len(r.Members), MaxMembers)
	case len(r.InSync) == 0:
		return bad("the in-sync set is empty")
	}
	for i, m := range r.Members {
		switch {
		case !ValidName(m.Node):
			return bad("member name %q", m.Node)
		case m.DiskID == 0:
			return bad("member %s has no disk id", m.Node)
		case i > 0 && strings.Compare(r.Members[i-1].Node, m.Node) >= 0:
			return bad("members are doubled or out of order at %s", m.Node)
		}
	}
	if _, ok := r.Member(r.Primary); !ok {
		return bad("primary %q is not a member", r.Primary)
	}
	for i, n := range r.InSync {
		if _, ok := r.Member(n); !ok {
			return bad("%q is in sync but not a member", n)
		}
		if i > 0 && strings.Compare(r.InSync[i-1], n) >= 0 {
			return bad("the in-sync set is doubled or out of order at %s", n)
		}
	}
	if r.Paused != nil {
		if !ValidName(r.Paused.By) {
			return bad("paused by %q", r.Paused.By)
		}
		if !validTime(r.Paused.Since) {
			return bad("paused since %v", r.Paused.Since)
		}
	}
	switch {
	case !ValidName(r.ChangedBy):
		return bad("changed by %q", r.ChangedBy)
	case len(r.Reason) > maxReason:
		return bad("a reason of %d bytes, at most %d are possible", len(r.Reason), maxReason)
	case !utf8.ValidString(r.Reason):
		return bad("a reason that is not UTF-8")
	case !validTime(r.ChangedAt):
		return bad("changed at %v", r.ChangedAt)
	}
	return nil
}

// validTime admits what RFC 3339 can carry. The zero time is refused: it means
// that a writer forgot the field.
func validTime(t time.Time) bool {
	y := t.UTC().Year()
	return !t.IsZero() && y >= 1 && y <= 9999
}

// ValidName is the rule for cluster and node names everywhere in the project:
// a letter or digit, then up to 62 letters, digits, dots, underscores, dashes.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return false
		}
	}
	return true
}
