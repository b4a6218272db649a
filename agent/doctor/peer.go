package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"tandem/agent/config"
	"tandem/blockrepl/disk"
	"tandem/blockrepl/meta"
)

// Facts is what a node says of itself to the doctor of another: what has to be the same on
// all, and what only it can find out.
type Facts struct {
	Node      string            `json:"node"`
	SizeBytes int64             `json:"size_bytes"`
	Settings  map[string]string `json:"settings"` // by the key of the config
	IAM       Finding           `json:"iam"`
}

// FactsOf is for the agent of a node whose volume has size bytes.
func FactsOf(ctx context.Context, cfg *config.Config, size int64, sys System) Facts {
	ctx, cancel := context.WithTimeout(ctx, checkLimit*2/3) // whoever asks has a limit, too
	defer cancel()
	x := &examination{cfg: cfg, sys: sys, aws: cloudOf(cfg)}
	v := x.ownIAM(ctx)
	return Facts{
		Node: cfg.Node, SizeBytes: size, Settings: settings(cfg),
		IAM: Finding{ID: "iam", Status: v.status, Text: line(v.text), Fix: line(v.fix)},
	}
}

// settings are those that a node must not have for itself. Which steps there are is one.
func settings(cfg *config.Config) map[string]string {
	all := map[string]string{
		"volume.protocol":    cfg.Volume.Protocol,
		"failover.heartbeat": cfg.Failover.Heartbeat.String(),
		"failover.lease":     cfg.Failover.Lease.String(),
	}
	all["fence.ec2"] = strconv.FormatBool(cfg.Fence.EC2 != nil)
	var steps []string
	for _, s := range cfg.Service {
		steps = append(steps, s.Name)
		switch {
		case s.Mount != nil:
			all[s.Name+".path"] = s.Mount.Path
			all[s.Name+".type"] = s.Mount.Type
		case s.NFS != nil:
			n := s.NFS
			all["nfs.path"] = n.Path
			all["nfs.fsid"] = strconv.FormatUint(uint64(n.FSID), 10)
			all["nfs.scope"] = n.Scope
			all["nfs.versions"] = strings.Join(n.Versions, ",")
			all["nfs.lease"] = n.Lease.String()
			all["nfs.grace"] = n.Grace.String()
			all["nfs.options"] = n.Options
			all["nfs.clients"] = strings.Join(n.Clients, ",")
			all["nfs.ports"] = strconv.Itoa(int(n.Port))
		case s.VIP != nil:
			all[s.Name+".address"] = s.VIP.Address.String()
		case s.EIP != nil:
			all[s.Name+".allocation"] = s.EIP.Allocation
		case s.PrivateIP != nil:
			all[s.Name+".address"] = s.PrivateIP.Address.String()
		case s.OverlayRoute != nil:
			all[s.Name+".cidr"] = s.OverlayRoute.CIDR.String()
			all[s.Name+".tables"] = strings.Join(slices.Sorted(slices.Values(s.OverlayRoute.Tables)), ",")
		}
	}
	all["service"] = strings.Join(steps, ",")
	return all
}

// unasked is why nothing can be said of the peers; ok is false if something can.
func (x *examination) unasked() (why string, none bool) {
	if len(x.peers) == 0 {
		return "this node has no peers", true
	}
	var all []string
	for _, p := range x.peers {
		if p.err == nil {
			return "", false
		}
		all = append(all, p.err.Error())
	}
	return strings.Join(all, "; "), true
}

// unheard names the peers that did not answer beside one that did.
func (x *examination) unheard() string {
	for _, p := range x.peers {
		if p.err != nil {
			return fmt.Sprintf("; not compared: %v", p.err)
		}
	}
	return ""
}

func (x *examination) checkPeerEqual(context.Context) verdict {
	if why, none := x.unasked(); none {
		return skip("%s", why)
	}
	own := settings(x.cfg)
	var different, same []string
	for _, p := range x.peers {
		if p.err != nil {
			continue
		}
		same = append(same, p.node)
		for _, k := range slices.Sorted(maps.Keys(own)) {
			here := own[k]
			// One that is not there is of another version, or of a step that is not there.
			if there, known := p.facts.Settings[k]; known && here != there {
				different = append(different, fmt.Sprintf("%s is %q here and %q on node %s", k, here, there, p.node))
			}
		}
	}
	if len(different) > 0 {
		return fail("write the same on all nodes, and restart the agent whose config has changed", "%s", list(different))
	}
	return ok("the settings that have to be the same are, on this node and on %s%s", list(same), x.unheard())
}

func (x *examination) checkSizeEqual(context.Context) verdict {
	own, err := x.sys.Metadata(x.cfg)
	switch {
	case errors.Is(err, disk.ErrSize):
		return fail("give the device the size back that it had, or start anew with replctl init --force", "%v", err)
	case errors.Is(err, meta.ErrNoMetadata):
		return skip("%s has no metadata yet: replctl init writes it", x.cfg.Volume.Device)
	case err != nil:
		return skip("the metadata of %s cannot be read: %v", x.cfg.Volume.Device, err)
	}
	if why, none := x.unasked(); none {
		return skip("%s", why)
	}
	var same []string
	for _, p := range x.peers {
		switch {
		case p.err != nil:
		case p.facts.SizeBytes != own.Size:
			return fail("initialise the larger one with volume.size of the smaller",
				"the volume has %d bytes here and %d on node %s", own.Size, p.facts.SizeBytes, p.node)
		default:
			same = append(same, p.node)
		}
	}
	return ok("%d bytes, as on %s%s", own.Size, list(same), x.unheard())
}
