package control

import (
	"encoding/json"
	"time"
)

// Status is the document of `replctl status --json`. Its names are the user's
// contract (design.md, section 8): fields are added, never renamed.
type Status struct {
	Time        time.Time `json:"time"` // when it was so, by that node's clock
	Cluster     string    `json:"cluster"`
	Node        string    `json:"node"`
	Role        string    `json:"role"`         // Primary, Secondary
	StateDetail string    `json:"state_detail"` // one line on what the node does or waits for, may be empty
	Primary     string    `json:"primary"`      // as the record says, empty if unknown
	Epoch       uint64    `json:"epoch"`
	Generation  string    `json:"generation"` // 16 hex digits, empty before the first promote
	Disk        string    `json:"disk"`       // UpToDate, Outdated, Inconsistent, Consistent, Failed, Diskless

	InSync     []string       `json:"in_sync"`      // as the record says
	LastInSync *time.Time     `json:"last_in_sync"` // when this node left the set; null while it is in it, or if that is not known
	Record     *RecordStatus  `json:"record"`       // null before the first promote, or if it was never read
	Auto       bool           `json:"auto"`         // failover.auto
	Paused     *PausedStatus  `json:"paused"`       // null: automatic promotion is on, where auto is
	Marked     bool           `json:"marked"`       // this host restarted: unflushed writes may be missing here
	Deposed    *DeposedStatus `json:"deposed"`      // null unless this node was the last primary but one

	Witness WitnessStatus `json:"witness"`
	Volume  VolumeStatus  `json:"volume"`

	AtRiskBytes      int64   `json:"at_risk_bytes"`      // acknowledged, and lost if this node dies now
	LeaseRemainingMS int64   `json:"lease_remaining_ms"` // 0 on a Secondary and on a Primary that needs none
	LeaseMS          int64   `json:"lease_ms"`           // failover.lease
	FrozenSeconds    float64 `json:"frozen_seconds"`     // since I/O stopped, 0 while it flows
	FreezeSeconds    float64 `json:"freeze_seconds"`     // failover.freeze: after that long I/O fails

	Peers   []PeerStatus `json:"peers"`
	IO      IOStatus     `json:"io"`
	Service []StepStatus `json:"service"`

	Takeover *Takeover `json:"takeover"` // how this node last became primary in this life of its agent, else null
}

// Takeover tells how the time went from the old primary's last sign of life to the
// first write here. A time that has not come is zero.
type Takeover struct {
	Epoch      uint64    `json:"epoch"`
	LastGrant  time.Time `json:"last_grant"` // the last lease that this node granted
	Claimed    time.Time `json:"claimed"`    // the lease had run out, and the record allowed it
	RecordWon  time.Time `json:"record_won"`
	Promoted   time.Time `json:"promoted"`
	FirstWrite time.Time `json:"first_write"` // completed
}

// RecordStatus is the cluster record as last read.
type RecordStatus struct {
	Serial    uint64         `json:"serial"`
	Epoch     uint64         `json:"epoch"`
	Members   []MemberStatus `json:"members"`
	ChangedBy string         `json:"changed_by"`
	ChangedAt time.Time      `json:"changed_at"`
	Reason    string         `json:"reason"`
}

// MemberStatus is a node that the record knows.
type MemberStatus struct {
	Node   string `json:"node"`
	DiskID string `json:"disk_id"` // 16 hex digits
}

// PausedStatus says since when nobody promotes by itself, and on which node that
// was asked for.
type PausedStatus struct {
	Since time.Time `json:"since"`
	By    string    `json:"by"`
}

// DeposedStatus says that this node was primary, and that another took over
// before it could hand over.
type DeposedStatus struct {
	Epoch uint64    `json:"epoch"` // of its own term
	Since time.Time `json:"since"` // when the record last changed
}

// ClusterStatus is what a node knows of all nodes, itself first.
type ClusterStatus struct {
	Nodes []NodeStatus `json:"nodes"`
}

// NodeStatus is one node: its own status, or why there is none.
type NodeStatus struct {
	Node    string  `json:"node"`
	Status  *Status `json:"status"`
	Error   string  `json:"error"`
	NoAgent bool    `json:"no_agent"` // its host answers that no agent listens there
}

// WitnessStatus is the outcome of the last attempt to reach the witness.
type WitnessStatus struct {
	OK    bool   `json:"ok"`
	Error string `json:"error"`
}

// VolumeStatus is the replicated device.
type VolumeStatus struct {
	SizeBytes int64 `json:"size_bytes"`
}

// PeerStatus is another node as this one sees it.
type PeerStatus struct {
	Node           string    `json:"node"`
	Link           string    `json:"link"`        // StandAlone, Connecting, Connected
	LinkSince      time.Time `json:"link_since"`  // when the link came up or went down, at the earliest the agent's start
	LinkError      string    `json:"link_error"`  // why there is no link, or no session on it
	SplitBrain     bool      `json:"split_brain"` // both copies went on from a common state; out_of_sync_bytes is then what was written here alone
	Replication    string    `json:"replication"` // Established, SyncSource, SyncTarget, …; empty without a link
	Disk           string    `json:"disk"`        // empty if unknown
	OutOfSyncBytes int64     `json:"out_of_sync_bytes"`
	Resync         *Progress `json:"resync"`     // null when none runs
	SentBytes      int64     `json:"sent_bytes"` // before compression
	WireBytes      int64     `json:"wire_bytes"` // after it
}

// IOStatus is what clients did since the agent started.
type IOStatus struct {
	Read  OpStatus `json:"read"`
	Write OpStatus `json:"write"`
	Flush OpStatus `json:"flush"`
	// Both make a range read as zeroes; the bytes are its length, and none of them travelled.
	Trim        OpStatus `json:"trim"`
	WriteZeroes OpStatus `json:"write_zeroes"`
}

// OpStatus is one kind of request.
type OpStatus struct {
	Count  uint64  `json:"count"`
	Errors uint64  `json:"errors"`
	Bytes  uint64  `json:"bytes"`
	P50US  float64 `json:"p50_us"`
	P99US  float64 `json:"p99_us"`
	MaxUS  float64 `json:"max_us"`
}

// StepStatus is one step of the service list.
type StepStatus struct {
	Step  string    `json:"step"`
	State string    `json:"state"`
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"` // why it failed, last
}

// MarshalJSON writes [] where Go has nil, so that a script may iterate without
// asking first.
func (s Status) MarshalJSON() ([]byte, error) {
	type plain Status // without this method
	if s.InSync == nil {
		s.InSync = []string{}
	}
	if s.Peers == nil {
		s.Peers = []PeerStatus{}
	}
	if s.Service == nil {
		s.Service = []StepStatus{}
	}
	return json.Marshal(plain(s))
}
