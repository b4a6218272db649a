package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"tandem/agent/config"
	"tandem/blockrepl/disk"
	"tandem/blockrepl/meta"
	"tandem/failover/record"
	"tandem/failover/witness"
)

// InitWitness is the operator's way out of rule 5.12: the record is missing, or
// older than what this node has seen, or of another life of the cluster. It writes
// the record anew, with this node alone in sync, from what its metadata say.
//
// The agent must not run: its disk is locked meanwhile. confirm is given what is
// about to happen and says whether to go on; it is not asked where nothing is wrong
// with the record, where a peer serves, or where one has seen more than this node.
func InitWitness(ctx context.Context, cfg *config.Config, confirm func(text string) error, out io.Writer) error {
	if err := attached(ctx, cfg, 0, nil); err != nil {
		return err
	}
	d, err := disk.Open(diskOptions(cfg))
	if errors.Is(err, disk.ErrInUse) {
		return fmt.Errorf("%s is in use: stop the agent of node %s first, it is to start with the new record", cfg.Volume.Device, cfg.Node)
	}
	if err != nil {
		return fmt.Errorf("open volume %s: %w", cfg.Volume.Device, err)
	}
	defer func() { _ = d.Close() }() // it was only read
	st, err := d.LoadMeta()
	if err != nil {
		return fmt.Errorf("read the metadata of %s: %w", cfg.Volume.Device, err)
	}
	s := st.Super
	switch {
	case s.Cluster != cfg.Cluster || s.Node != cfg.Node:
		return fmt.Errorf("%s was initialised for node %s of cluster %s, not for node %s of cluster %s", cfg.Volume.Device, s.Node, s.Cluster, cfg.Node, cfg.Cluster)
	case s.Vote.Epoch == 0:
		return fmt.Errorf("node %s has never seen a cluster record: the first `replctl promote` creates it", cfg.Node)
	case s.Inconsistent:
		return fmt.Errorf("the copy of node %s is Inconsistent: it is no state that the data ever had. Do this on the node that was primary", cfg.Node)
	}
	store, err := openWitness(cfg)
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	defer func() { _ = store.Close() }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := witness.Probe(ctx, store, replaceLimit); err != nil {
		return fmt.Errorf("witness %s: %w", cfg.Witness, err)
	}
	content, version, err := store.Read(ctx)
	if err != nil {
		return fmt.Errorf("the witness does not answer: %w", err)
	}
	old, what, err := wrongWith(content, s)
	if err != nil {
		return err
	}

	var b strings.Builder
	fmt.Fprintf(&b, "The witness %s %s.\nIt is written anew: node %s will be the only one in sync, and its data the truth.\n", cfg.Witness, what, cfg.Node)
	if s.Outdated || s.Vote.Marked {
		fmt.Fprintf(&b, "Acknowledged writes may be missing on it: its copy is outdated, or its host has restarted since.\n")
	}
	for _, p := range AskPeers(ctx, cfg, "init --witness on "+cfg.Node) {
		switch {
		case p.Status == nil:
			fmt.Fprintf(&b, "Node %s does not answer (%s): whether it serves, or has more than this node, is not known.\n", p.Node, p.Error)
		case p.Status.Role == "Primary":
			return fmt.Errorf("node %s is primary in epoch %d and answers: it has the truth. Stop its agent, and do this there", p.Node, p.Status.Epoch)
		case p.Status.Epoch > s.Vote.Epoch:
			return fmt.Errorf("node %s has seen epoch %d, this one only %d: do this there", p.Node, p.Status.Epoch, s.Vote.Epoch)
		default:
			fmt.Fprintf(&b, "Node %s answers as %s, its copy is %s: it is resynced from this one, or is shown as a split brain if it has what this one has not.\n", p.Node, p.Status.Role, p.Status.Disk)
		}
	}
	if err := confirm(b.String()); err != nil {
		return err
	}

	r := anew(cfg, s, old)
	data, err := record.Encode(r)
	if err != nil {
		return fmt.Errorf("the new record: %w", err)
	}
	if _, err := store.CAS(ctx, version, data); err != nil {
		return fmt.Errorf("the record could not be written, or somebody else has changed it; try again: %w", err)
	}
	fmt.Fprintf(out, "cluster record of epoch %d, serial %d written: node %s alone is in sync. Start its agent; it becomes primary by itself, or by `replctl promote`\n", r.Epoch, r.Serial, cfg.Node)
	return nil
}

// wrongWith says what is wrong with the witness's content, or returns an error
// where nothing is, or where it is somebody else's. old is the record there, if it
// is one of this cluster.
func wrongWith(content []byte, s *meta.Super) (old *record.Record, what string, err error) {
	if len(content) == 0 {
		return nil, "holds no cluster record", nil
	}
	r, err := record.Decode(content)
	switch {
	case err != nil:
		return nil, fmt.Sprintf("holds something that is no cluster record (%v)", err), nil
	case r.Cluster != s.Cluster:
		return nil, "", fmt.Errorf("the witness holds the record of the cluster %q, this node belongs to %q: look at `witness` in the config; nothing was written", r.Cluster, s.Cluster)
	case s.Vote.ClusterID != 0 && r.ClusterID != s.Vote.ClusterID:
		return &r, fmt.Sprintf("holds a record of cluster id %x, of which node %s is primary; this node's is %x", r.ClusterID, r.Primary, s.Vote.ClusterID), nil
	case r.Epoch < s.Vote.Epoch || r.Serial < s.Vote.Serial:
		return &r, fmt.Sprintf("was put back: its record is of epoch %d, serial %d; this node has seen %d and %d", r.Epoch, r.Serial, s.Vote.Epoch, s.Vote.Serial), nil
	}
	return nil, "", fmt.Errorf("the cluster record is good: epoch %d, serial %d, primary %s, in sync %s (%s). Nothing was written; to serve from a copy that is not in sync there is `replctl promote --force`",
		r.Epoch, r.Serial, r.Primary, strings.Join(r.InSync, ", "), r.Reason)
}

// anew is the record that follows whatever anybody may have seen of the old one
// and of what is there now.
func anew(cfg *config.Config, s *meta.Super, old *record.Record) record.Record {
	r := record.Record{
		Version: record.Version, Cluster: cfg.Cluster, ClusterID: s.Vote.ClusterID, Serial: s.Vote.Serial + 1, Epoch: s.Vote.Epoch + 1,
		Primary: cfg.Node, InSync: []string{cfg.Node}, Generation: s.Current, Nonce: random(),
		ChangedBy: cfg.Node, ChangedAt: time.Now().UTC().Truncate(time.Millisecond), Reason: "written anew on " + cfg.Node + " by `init --witness`",
	}
	if r.ClusterID == 0 {
		r.ClusterID = random()
	}
	if old != nil {
		r.Serial, r.Epoch = max(r.Serial, old.Serial+1), max(r.Epoch, old.Epoch+1)
		r.Members = slices.DeleteFunc(slices.Clone(old.Members), func(m record.Member) bool { return m.Node == cfg.Node })
	}
	r.Members = append(r.Members, record.Member{Node: cfg.Node, DiskID: s.DiskID})
	slices.SortFunc(r.Members, func(a, b record.Member) int { return strings.Compare(a.Node, b.Node) })
	return r
}
