package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The document in the witness. Identifiers are sixteen lower-case hex digits,
// not numbers: jq and JavaScript would round them.
//
//	{
//	  "version": 1,                        layout; newer = ErrNewer
//	  "cluster": "nfs1",
//	  "cluster_id": "6b1f0c55a1d20e77",    another cluster on the same witness
//	  "serial": 12,                        a register that was put back
//	  "epoch": 3,                          a deposed primary
//	  "primary": "a",
//	  "in_sync": ["a","b"],                ascending
//	  "members": [{"node":"a","disk_id":"…"},{"node":"b","disk_id":"…"}],
//	  "generation": "9e03…",               a copy with another history
//	  "paused": {"since":"…","by":"a"},    left out when not paused
//	  "nonce": "51c0…",                    an unanswered CAS
//	  "changed_by": "a", "reason": "…", "changed_at": "2026-11-22T12:00:00Z"
//	}
type document struct {
	Version    int              `json:"version"`
	Cluster    string           `json:"cluster"`
	ClusterID  hex64            `json:"cluster_id"`
	Serial     uint64           `json:"serial"`
	Epoch      uint64           `json:"epoch"`
	Primary    string           `json:"primary"`
	InSync     []string         `json:"in_sync"`
	Members    []memberDocument `json:"members"`
	Generation hex64            `json:"generation"`
	Paused     *pausedDocument  `json:"paused,omitempty"`
	Nonce      hex64            `json:"nonce"`
	ChangedBy  string           `json:"changed_by"`
	Reason     string           `json:"reason"`
	ChangedAt  time.Time        `json:"changed_at"`
}

type memberDocument struct {
	Node   string `json:"node"`
	DiskID hex64  `json:"disk_id"`
}

type pausedDocument struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
}

// hex64 is a uint64 that travels as exactly sixteen lower-case hex digits.
type hex64 uint64

func (h hex64) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(h)), nil }

func (h *hex64) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil || len(b) != 16 || bytes.ContainsAny(b, "ABCDEF_+") {
		return fmt.Errorf("%q is not an identifier of 16 lower-case hex digits", b)
	}
	*h = hex64(v)
	return nil
}

// Encode validates r and returns its canonical bytes, one line-broken JSON
// document. The sets are sorted and the times put into UTC in the copy that is
// written; r itself is not changed.
func Encode(r Record) ([]byte, error) {
	r = r.Clone()
	slices.Sort(r.InSync)
	slices.SortFunc(r.Members, func(a, b Member) int { return strings.Compare(a.Node, b.Node) })
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	compact, err := marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, compact, "", "  "); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// Decode parses what Encode wrote. It is strict in one step instead of many:
// the parsed record is written again, and anything that does not come out as it
// went in (a doubled key, another case, an unsorted set) is refused. Only white
// space may differ, so that the file survives an editor or `jq .`.
func Decode(b []byte) (Record, error) {
	if len(b) > MaxBytes {
		return Record{}, fmt.Errorf("decode: %w: %d bytes", ErrTooLarge, len(b))
	}
	var head struct {
		Version int `json:"version"`
	}
	// The version alone first, without strictness: a newer layout may have
	// fields of any shape, and must be called newer, not broken. This call also
	// refuses text after the document, which the Decoder below would not see.
	if err := json.Unmarshal(b, &head); err != nil {
		return Record{}, fmt.Errorf("decode: %w", err)
	}
	if head.Version > Version {
		return Record{}, fmt.Errorf("decode: %w (%d, this is %d)", ErrNewer, head.Version, Version)
	}
	var d document
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return Record{}, fmt.Errorf("decode: %w", err)
	}
	r := d.record()
	if err := r.Validate(); err != nil {
		return Record{}, fmt.Errorf("decode: %w", err)
	}
	again, err := marshal(r)
	if err != nil {
		return Record{}, fmt.Errorf("decode: %w", err)
	}
	var given bytes.Buffer
	if err := json.Compact(&given, b); err != nil {
		return Record{}, fmt.Errorf("decode: %w", err)
	}
	if !bytes.Equal(given.Bytes(), again) {
		return Record{}, fmt.Errorf("decode: %w", ErrNotCanonical)
	}
	return r, nil
}

// marshal writes a valid record without white space. HTML escaping is off,
// because a reason such as "epoch 3 > 2" should be readable in the witness.
func marshal(r Record) ([]byte, error) {
	d := document{
		Version: r.Version, Cluster: r.Cluster, ClusterID: hex64(r.ClusterID),
		Serial: r.Serial, Epoch: r.Epoch, Primary: r.Primary, InSync: r.InSync,
		Generation: hex64(r.Generation), Nonce: hex64(r.Nonce),
		ChangedBy: r.ChangedBy, Reason: r.Reason, ChangedAt: r.ChangedAt.UTC(),
	}
	for _, m := range r.Members {
		d.Members = append(d.Members, memberDocument{m.Node, hex64(m.DiskID)})
	}
	if r.Paused != nil {
		d.Paused = &pausedDocument{r.Paused.Since.UTC(), r.Paused.By}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(d); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func (d document) record() Record {
	r := Record{
		Version: d.Version, Cluster: d.Cluster, ClusterID: uint64(d.ClusterID),
		Serial: d.Serial, Epoch: d.Epoch, Primary: d.Primary, InSync: d.InSync,
		Generation: uint64(d.Generation), Nonce: uint64(d.Nonce),
		ChangedBy: d.ChangedBy, Reason: d.Reason, ChangedAt: d.ChangedAt,
	}
	for _, m := range d.Members {
		r.Members = append(r.Members, Member{m.Node, uint64(m.DiskID)})
	}
	if d.Paused != nil {
		r.Paused = &Paused{d.Paused.Since, d.Paused.By}
	}
	return r
}
