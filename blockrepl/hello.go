package blockrepl

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// HelloVersion is the version of the handshake document. A peer of version
// N−1 or N+1 is spoken to; unknown fields are ignored, features are asked for
// by name.
const HelloVersion = 1

// featureOthers: speaks of other nodes than the two of the session (others.go).
// Between two nodes nobody needs it.
const featureOthers = "others"

// hello is what each side says of itself when a link is up. It is JSON: said
// once a link, read by people in traces, and extended without a new format.
type hello struct {
	Version     int      `json:"version"`
	Features    []string `json:"features,omitempty"`
	ClusterID   uint64   `json:"cluster_id"` // 0: has never seen a record
	DiskID      uint64   `json:"disk_id"`
	Replaces    uint64   `json:"replaces,omitempty"` // the disk whose place this one was given; 0: none
	VolumeSize  int64    `json:"volume_size"`
	BlockShift  uint8    `json:"block_shift"`
	ExtentShift uint8    `json:"extent_shift"`
	ALSlots     uint16   `json:"al_slots"`

	Epoch   uint64 `json:"epoch"`   // highest seen; if Serving, the one we serve in
	Serving bool   `json:"serving"` // this node is Primary

	Current      uint64   `json:"current"`
	Base         uint64   `json:"base"` // for the node this is said to
	History      []uint64 `json:"history,omitempty"`
	Inconsistent bool     `json:"inconsistent,omitempty"`
	Outdated     bool     `json:"outdated,omitempty"`
	Marked       bool     `json:"marked,omitempty"`
	Failed       bool     `json:"failed,omitempty"`
	Mark         uint64   `json:"mark"`            // our durable mark
	YourMark     uint64   `json:"your_mark"`       // the highest we remember of yours
	Heard        uint64   `json:"heard,omitempty"` // a generation that our last primary meant to name
}

func (h *hello) usable() bool {
	return h.Current != 0 && !h.Inconsistent && !h.Outdated && !h.Failed
}

func (c *Core) ourHello(p *peer) []byte {
	vote := &c.job.durVote
	h := hello{
		Version: HelloVersion, ClusterID: vote.ClusterID, DiskID: c.sb.DiskID, Replaces: c.sb.Replaces,
		VolumeSize: c.sb.VolumeSize, BlockShift: c.sb.BlockShift, ExtentShift: c.sb.ExtentShift, ALSlots: c.sb.ALSlots,
		Epoch: vote.Epoch, Serving: c.serving,
		Current: c.sb.Current, Base: c.sb.Peers[p.slot].Base,
		Inconsistent: c.sb.Inconsistent, Outdated: c.sb.Outdated, Marked: vote.Marked, Failed: c.failed,
		Mark: c.job.durMark, YourMark: c.sb.Peers[p.slot].Mark, Heard: c.sb.Heard, Features: []string{featureOthers},
	}
	for _, g := range c.sb.History {
		if g != 0 {
			h.History = append(h.History, g)
		}
	}
	return h.encode()
}

func (h *hello) encode() []byte {
	b, err := json.Marshal(h)
	if err != nil {
		panic("blockrepl: a hello is always JSON: " + err.Error())
	}
	return b
}

func decodeHello(b []byte) (*hello, error) {
	var h hello
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, fmt.Errorf("not a hello: %w", err)
	}
	if h.Version < 1 {
		return nil, errors.New("a hello without a version")
	}
	if len(h.History) > 64 {
		return nil, errors.New("a history longer than any")
	}
	return &h, nil
}

// acceptable: the peer speaks of the same volume, in a way we understand.
func (c *Core) acceptable(p *peer, h *hello) error {
	switch {
	case h.Version > HelloVersion+1 || h.Version < HelloVersion-1:
		return fmt.Errorf("peer %s speaks version %d of the handshake, this agent %d: bring both to versions at most one apart", p.name, h.Version, HelloVersion)
	case h.ClusterID != 0 && c.sb.Vote.ClusterID != 0 && h.ClusterID != c.sb.Vote.ClusterID:
		return fmt.Errorf("peer %s belongs to another cluster (id %016x, ours %016x)", p.name, h.ClusterID, c.sb.Vote.ClusterID)
	case h.VolumeSize != c.sb.VolumeSize:
		return fmt.Errorf("peer %s has a volume of %d bytes, ours has %d", p.name, h.VolumeSize, c.sb.VolumeSize)
	case h.BlockShift != c.sb.BlockShift || h.ExtentShift != c.sb.ExtentShift || h.ALSlots != c.sb.ALSlots:
		return fmt.Errorf("peer %s was initialised with another geometry; init both with the same version", p.name)
	case !c.pair() && !slices.Contains(h.Features, featureOthers):
		return fmt.Errorf("peer %s knows clusters of two nodes only: bring its agent to this one's version", p.name)
	case h.DiskID == c.sb.DiskID:
		return fmt.Errorf("peer %s has our own disk id: its metadata is a copy of ours; init it anew", p.name)
	}
	return nil
}
