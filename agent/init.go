package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"tandem/agent/config"
	"tandem/blockrepl/disk"
	"tandem/blockrepl/meta"
	"tandem/failover/record"
)

// InitOptions of Init.
type InitOptions struct {
	Force   bool // overwrite metadata, or what looks like data
	Replace bool // the disk takes over the node's name from the one that the cluster record knows
}

// Init makes the backing file if it is missing and writes fresh metadata. The
// data is left as it is.
func Init(ctx context.Context, cfg *config.Config, opts InitOptions, out io.Writer) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	s := &meta.Super{Cluster: cfg.Cluster, Node: cfg.Node, DiskID: random(), BootID: boot}
	var names []string
	for _, p := range cfg.Peers {
		names = append(names, p.Node)
	}
	slices.Sort(names)
	for i, n := range names {
		s.Peers[i].Name = n
	}
	if opts.Replace {
		if s.Replaces, err = replaced(ctx, cfg); err != nil {
			return err
		}
		// The peers remember the old disk's durable mark and would take a lower one
		// for a disk that was put back. A mark advances at most once a second from
		// zero, so the time of day is above any that there was.
		s.Mark = uint64(time.Now().Unix())
	}
	if err := attached(ctx, cfg, 0, nil); err != nil {
		return err
	}
	if err := disk.Init(diskOptions(cfg), opts.Force, s); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: metadata of node %s written, volume of %d bytes, disk id %016x\n", cfg.Volume.Device, cfg.Node, s.VolumeSize, s.DiskID)
	if opts.Replace {
		fmt.Fprintf(out, "it replaces disk %016x, which is refused from the moment on when this one is in sync\n", s.Replaces)
	}
	return nil
}

// replaced is the disk that the cluster record knows under our name. The record
// is asked and not the operator: an id that is typed is an id that is mistyped,
// and the old disk may be gone with everything that was on it.
func replaced(ctx context.Context, cfg *config.Config) (uint64, error) {
	store, err := openWitness(cfg)
	if err != nil {
		return 0, fmt.Errorf("witness: %w", err)
	}
	defer func() { _ = store.Close() }() // it was only read
	ctx, cancel := context.WithTimeout(ctx, replaceLimit)
	defer cancel()
	b, _, err := store.Read(ctx)
	if err != nil {
		return 0, fmt.Errorf("which disk is replaced stands in the cluster record, and the witness does not answer: %w", err)
	}
	if len(b) == 0 {
		return 0, errors.New("there is no cluster record yet, so there is no disk to replace: a plain `replctl init` will do")
	}
	r, err := record.Decode(b)
	if err != nil {
		return 0, fmt.Errorf("cluster record: %w", err)
	}
	if r.Cluster != cfg.Cluster {
		return 0, fmt.Errorf("the witness holds the record of the cluster %q, this node belongs to %q: look at `witness` in the config", r.Cluster, cfg.Cluster)
	}
	m, ok := r.Member(cfg.Node)
	switch {
	case !ok:
		return 0, fmt.Errorf("the cluster record knows no disk of node %s: a plain `replctl init` will do", cfg.Node)
	case len(r.InSync) == 1 && r.InSync[0] == cfg.Node:
		return 0, fmt.Errorf("node %s is the only one in sync: its disk has what no other has. Bring it back, or give it up first with `replctl promote --force` on another node", cfg.Node)
	}
	return m.DiskID, nil
}

const replaceLimit = 10 * time.Second

// DumpMetadata prints the metadata of a copy; its agent may be running.
func DumpMetadata(ctx context.Context, cfg *config.Config, out io.Writer) error {
	if err := attached(ctx, cfg, 0, nil); err != nil {
		return err
	}
	st, err := disk.Inspect(diskOptions(cfg))
	if err != nil {
		return err
	}
	return meta.Dump(out, st)
}
