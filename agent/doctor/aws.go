package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/agent/config"
	"tandem/failover/awsclient"
	"tandem/failover/awsclient/instance"
	"tandem/failover/fence/ec2"
)

// EC2 is what is asked of EC2. *instance.Client has it. Whatever changes something is asked for
// as a dry run.
type EC2 interface {
	AssociateAddress(context.Context, *ec2.AssociateAddressInput, ...func(*ec2.Options)) (*ec2.AssociateAddressOutput, error)
	DisassociateAddress(context.Context, *ec2.DisassociateAddressInput, ...func(*ec2.Options)) (*ec2.DisassociateAddressOutput, error)
	CreateRoute(context.Context, *ec2.CreateRouteInput, ...func(*ec2.Options)) (*ec2.CreateRouteOutput, error)
	ReplaceRoute(context.Context, *ec2.ReplaceRouteInput, ...func(*ec2.Options)) (*ec2.ReplaceRouteOutput, error)
	StopInstances(context.Context, *ec2.StopInstancesInput, ...func(*ec2.Options)) (*ec2.StopInstancesOutput, error)
	DetachVolume(context.Context, *ec2.DetachVolumeInput, ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error)
	DescribeAddresses(context.Context, *ec2.DescribeAddressesInput, ...func(*ec2.Options)) (*ec2.DescribeAddressesOutput, error)
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	DescribeInstanceTypes(context.Context, *ec2.DescribeInstanceTypesInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceTypesOutput, error)
	DescribeNetworkInterfaces(context.Context, *ec2.DescribeNetworkInterfacesInput, ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error)
	DescribeRouteTables(context.Context, *ec2.DescribeRouteTablesInput, ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error)
	DescribeVolumes(context.Context, *ec2.DescribeVolumesInput, ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error)
}

// Instance is this machine's instance metadata. *instance.Metadata has it.
type Instance interface {
	ID(context.Context) (string, error)
	Primary(context.Context) (instance.Interface, error)
}

// cloud is what the configuration wants of EC2.
type cloud struct {
	allocations []string // of Elastic IPs
	private     []string // private addresses
	routes      []overlay
	fenced      []string // the nodes whose machines this one may have to stop
	detach      bool     // and from which it may have to take the volumes
}

type overlay struct {
	cidr   string
	tables []string
}

func cloudOf(cfg *config.Config) (c cloud) {
	if e := cfg.Fence.EC2; e != nil {
		for _, p := range cfg.Peers {
			c.fenced = append(c.fenced, p.Node)
		}
		c.detach = e.DetachVolume
	}
	for _, s := range cfg.Service {
		switch {
		case s.EIP != nil:
			c.allocations = append(c.allocations, s.EIP.Allocation)
		case s.PrivateIP != nil:
			c.private = append(c.private, s.PrivateIP.Address.Addr().String())
		case s.OverlayRoute != nil:
			c.routes = append(c.routes, overlay{s.OverlayRoute.CIDR.String(), s.OverlayRoute.Tables})
		}
	}
	return c
}

func (c *cloud) empty() bool {
	return len(c.allocations)+len(c.private)+len(c.routes)+len(c.fenced) == 0
}

// errUnreachable means that nothing could be learned of AWS. The check iam says why.
var errUnreachable = errors.New("AWS cannot be asked")

// reach returns who is asked, and this instance's first network interface.
func (x *examination) reach(ctx context.Context) (EC2, instance.Interface, error) {
	if x.silent != nil {
		return nil, instance.Interface{}, x.silent
	}
	x.asked = true
	nic, err := x.sys.Instance.Primary(ctx)
	if err != nil {
		return nil, nic, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	api, err := x.sys.EC2(ctx)
	if err != nil {
		return nil, nic, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	return api, nic, nil
}

// checkIAM asks what this node may do, and what the peers say of themselves.
func (x *examination) checkIAM(ctx context.Context) verdict {
	v := x.ownIAM(ctx)
	if v.status == Skipped || v.status == Failed {
		return v
	}
	for _, p := range x.peers {
		switch {
		case p.err != nil:
			v.text += fmt.Sprintf("; node %s was not asked", p.node)
		case p.facts.IAM.Status == Failed:
			return fail(p.facts.IAM.Fix, "node %s: %s", p.node, p.facts.IAM.Text)
		case p.facts.IAM.Status == OK:
			v.text += fmt.Sprintf("; node %s may, too", p.node)
		default:
			v.text += fmt.Sprintf("; node %s says: %s", p.node, p.facts.IAM.Text)
		}
	}
	return v
}

const (
	policyFix = "give the role of the instance what deploy/iam-policy.json has, on all nodes"
	reachFix  = "let this machine reach the instance metadata (IMDSv2) and the EC2 endpoint of its region, and give it a role; see aws: in the config"
)

// ownIAM makes the dry runs.
func (x *examination) ownIAM(ctx context.Context) verdict {
	if x.aws.empty() {
		return skip("no step asks AWS, and no fence")
	}
	api, nic, err := x.reach(ctx)
	if err != nil {
		return fail(reachFix, "%v", err)
	}
	var allowed, refused, untried []string
	for _, r := range x.dryRuns(api, nic) {
		err := r.ask(ctx)
		if errors.Is(err, errUntried) {
			untried = append(untried, fmt.Sprintf("%s was %v", r.action, err))
			continue
		}
		looked := err == nil && strings.HasPrefix(r.action, "Describe") // instead of saying that it could: it may
		switch may, err := awsclient.Allowed(err); {
		case may, looked:
			if !slices.Contains(allowed, r.action) {
				allowed = append(allowed, r.action)
			}
		case err == nil:
			refused = append(refused, r.action+" ("+r.on+")")
		case afterAsking(r.action, awsclient.Code(err)):
			if !slices.Contains(allowed, r.action) {
				allowed = append(allowed, r.action)
			}
		case awsclient.Classify(err) == awsclient.Refused:
			return fail("look at the id in the config, and at the region", "%s is refused for %s: %v", r.action, r.on, err)
		default:
			return fail(reachFix, "%s could not be tried: %v", r.action, err)
		}
	}
	if len(refused) > 0 {
		return fail(policyFix, "this instance may not do: %s", list(refused))
	}
	stops, v := x.dryStops(ctx, api)
	if v != nil {
		return *v
	}
	allowed = append(allowed, stops...)
	if len(x.aws.private) > 0 {
		untried = append(untried, "AssignPrivateIpAddresses and UnassignPrivateIpAddresses have no dry run, so they were not tried")
	}
	if len(allowed) == 0 {
		return skip("%s", strings.Join(untried, "; "))
	}
	return ok("%s", strings.Join(append([]string{"allowed: " + list(allowed)}, untried...), "; "))
}

// errUntried means that there is nothing that could be asked about.
var errUntried = errors.New("not tried")

// afterAsking says whether a code is about the state of the route, or of the address: EC2 looks
// at that when it has found the request to be allowed. A route that is not there yet cannot be
// replaced, nor one that is be created.
func afterAsking(action, code string) bool {
	switch action {
	case "AssociateAddress":
		return code == "Resource.AlreadyAssociated"
	case "DisassociateAddress":
		return code == "InvalidAssociationID.NotFound"
	case "CreateRoute":
		return code == "RouteAlreadyExists"
	case "ReplaceRoute":
		return code == "InvalidRoute.NotFound" || code == "InvalidParameterValue"
	}
	return false
}

// dryRun is one request that is only asked about.
type dryRun struct {
	action, on string
	ask        func(context.Context) error
}

func (x *examination) dryRuns(api EC2, nic instance.Interface) (all []dryRun) {
	dry := aws.Bool(true)
	add := func(action, on string, ask func(context.Context) error) { all = append(all, dryRun{action, on, ask}) }
	for _, a := range x.aws.allocations {
		add("DescribeAddresses", a, func(ctx context.Context) error {
			_, err := api.DescribeAddresses(ctx, &ec2.DescribeAddressesInput{DryRun: dry, AllocationIds: []string{a}})
			return err
		})
		add("AssociateAddress", a, func(ctx context.Context) error {
			_, err := api.AssociateAddress(ctx, &ec2.AssociateAddressInput{
				DryRun: dry, AllocationId: &a, NetworkInterfaceId: &nic.ID, PrivateIpAddress: aws.String(nic.Address.String()), AllowReassociation: aws.Bool(true),
			})
			return err
		})
		add("DisassociateAddress", a, func(ctx context.Context) error {
			// Only about one that there is: that of the node which serves.
			at, err := api.DescribeAddresses(ctx, &ec2.DescribeAddressesInput{AllocationIds: []string{a}})
			switch {
			case awsclient.Classify(err) == awsclient.Refused:
				return fmt.Errorf("%w: %w", errUntried, err) // the dry run of looking has been refused, too
			case err != nil:
				return err
			case len(at.Addresses) != 1 || aws.ToString(at.Addresses[0].AssociationId) == "":
				return fmt.Errorf("%w: %s is with nobody now", errUntried, a)
			}
			_, err = api.DisassociateAddress(ctx, &ec2.DisassociateAddressInput{DryRun: dry, AssociationId: at.Addresses[0].AssociationId})
			return err
		})
	}
	for _, r := range x.aws.routes {
		add("DescribeNetworkInterfaces", nic.ID, func(ctx context.Context) error {
			_, err := api.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{DryRun: dry, NetworkInterfaceIds: []string{nic.ID}})
			return err
		})
		add("DescribeRouteTables", r.cidr, func(ctx context.Context) error {
			_, err := api.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{DryRun: dry})
			return err
		})
		for _, table := range r.tables {
			add("ReplaceRoute", table, func(ctx context.Context) error {
				_, err := api.ReplaceRoute(ctx, &ec2.ReplaceRouteInput{DryRun: dry, RouteTableId: &table, DestinationCidrBlock: &r.cidr, NetworkInterfaceId: &nic.ID})
				return err
			})
			add("CreateRoute", table, func(ctx context.Context) error {
				_, err := api.CreateRoute(ctx, &ec2.CreateRouteInput{DryRun: dry, RouteTableId: &table, DestinationCidrBlock: &r.cidr, NetworkInterfaceId: &nic.ID})
				return err
			})
		}
	}
	return all
}

// dryStops looks for the machines of the fenced nodes as the fence does, and asks whether
// they may be stopped, and their volumes other than the root device be taken.
func (x *examination) dryStops(ctx context.Context, api EC2) (allowed []string, v *verdict) {
	bad := func(fix, format string, args ...any) ([]string, *verdict) {
		v := fail(fix, format, args...)
		return nil, &v
	}
	for _, node := range x.aws.fenced {
		var filters []types.Filter
		for name, value := range ec2fence.DefaultTags() {
			value = strings.NewReplacer("{cluster}", x.cfg.Cluster, "{node}", node).Replace(value)
			filters = append(filters, types.Filter{Name: aws.String("tag:" + name), Values: []string{value}})
		}
		out, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{Filters: filters})
		if err != nil {
			return bad(policyFix, "look for the instance of node %s: %v", node, err)
		}
		ids := instances(out)
		if len(ids) == 0 {
			return bad("give it the tags tandem:cluster and tandem:node", "no instance has the tags of node %s: it cannot be fenced", node)
		}
		asked := []dryRun{{"StopInstances", list(ids), func(ctx context.Context) error {
			_, err := api.StopInstances(ctx, &ec2.StopInstancesInput{DryRun: aws.Bool(true), InstanceIds: ids, Force: aws.Bool(true), SkipOsShutdown: aws.Bool(true)})
			return err
		}}}
		for _, vol := range dataVolumes(out) {
			if x.aws.detach {
				asked = append(asked, dryRun{"DetachVolume", vol, func(ctx context.Context) error {
					_, err := api.DetachVolume(ctx, &ec2.DetachVolumeInput{DryRun: aws.Bool(true), VolumeId: &vol, Force: aws.Bool(true)})
					return err
				}})
			}
		}
		for _, r := range asked {
			err := r.ask(ctx)
			switch may, unknown := awsclient.Allowed(err); {
			case awsclient.Classify(err) == awsclient.State:
				// It is stopped, or about to be, which EC2 says to whoever may stop it.
			case unknown != nil:
				return bad(reachFix, "%s could not be tried: %v", r.action, unknown)
			case !may:
				return bad(policyFix, "this instance may not do: %s (%s of node %s)", r.action, r.on, node)
			}
			if !slices.Contains(allowed, r.action) {
				allowed = append(allowed, r.action)
			}
		}
	}
	return allowed, nil
}

// dataVolumes are those other than the root device, as the fence takes them.
func dataVolumes(out *ec2.DescribeInstancesOutput) (ids []string) {
	for _, r := range out.Reservations {
		for i := range r.Instances {
			in := &r.Instances[i]
			for _, b := range in.BlockDeviceMappings {
				if b.Ebs != nil && aws.ToString(b.DeviceName) != aws.ToString(in.RootDeviceName) {
					ids = append(ids, aws.ToString(b.Ebs.VolumeId))
				}
			}
		}
	}
	return ids
}

func instances(out *ec2.DescribeInstancesOutput) (ids []string) {
	for _, r := range out.Reservations {
		for i := range r.Instances {
			ids = append(ids, aws.ToString(r.Instances[i].InstanceId))
		}
	}
	return ids
}

func (x *examination) checkSourceDest(ctx context.Context) verdict {
	if len(x.aws.routes) == 0 {
		return skip("no step overlay-route")
	}
	api, nic, err := x.reach(ctx)
	if err != nil {
		return skip("%v", err)
	}
	out, err := api.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{nic.ID}})
	if err != nil {
		return skip("%s cannot be looked at: %v", nic.ID, err)
	}
	for i := range out.NetworkInterfaces {
		n := &out.NetworkInterfaces[i]
		if aws.ToString(n.NetworkInterfaceId) != nic.ID {
			continue
		}
		if aws.ToBool(n.SourceDestCheck) {
			return fail("aws ec2 modify-network-interface-attribute --network-interface-id "+nic.ID+" --no-source-dest-check",
				"the source/destination check of %s is on: EC2 drops what is sent to the overlay address", nic.ID)
		}
		return ok("off on %s", nic.ID)
	}
	return skip("EC2 does not know %s", nic.ID)
}

func (x *examination) checkRouteTables(ctx context.Context) verdict {
	if len(x.aws.routes) == 0 {
		return skip("no step overlay-route")
	}
	api, _, err := x.reach(ctx)
	if err != nil {
		return skip("%v", err)
	}
	var wanted, missing []string
	for _, r := range x.aws.routes {
		wanted = append(wanted, r.tables...)
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	// By a filter: asked for by its id, one that is missing hides the others.
	known := make(map[string]bool)
	in := &ec2.DescribeRouteTablesInput{Filters: []types.Filter{{Name: aws.String("route-table-id"), Values: wanted}}}
	for {
		out, err := api.DescribeRouteTables(ctx, in)
		if err != nil {
			return skip("the route tables cannot be looked at: %v", err)
		}
		for i := range out.RouteTables {
			known[aws.ToString(out.RouteTables[i].RouteTableId)] = true
		}
		if aws.ToString(out.NextToken) == "" {
			break
		}
		in.NextToken = out.NextToken
	}
	for _, t := range wanted {
		if !known[t] {
			missing = append(missing, t)
		}
	}
	if len(missing) > 0 {
		return fail("look at tables in the step overlay-route, and at the region", "not there: %s", list(missing))
	}
	return ok("all there: %s", list(wanted))
}

// volume is the EBS volume that the device is, by what its disk says of itself: NVMe disks of
// EBS have the volume's id, without its dash, as their serial number.
func (x *examination) volume() (id string, v verdict, is bool) {
	if v, is := x.block(); !is {
		return "", v, false
	}
	model, _ := x.sys.text("sys/class/block", x.device.disk, "device/model")
	serial, _ := x.sys.text("sys/class/block", x.device.disk, "device/serial")
	digits, found := strings.CutPrefix(serial, "vol")
	if model != "Amazon Elastic Block Store" || !found {
		return "", skip("%s does not say that it is a volume of EBS's", x.device.disk), false
	}
	return "vol-" + strings.TrimPrefix(digits, "-"), verdict{}, true
}

// checkEBSIdentity looks whether the config names the volume, and not what was dealt out to it.
func (x *examination) checkEBSIdentity(context.Context) verdict {
	id, v, is := x.volume()
	if !is {
		return v
	}
	serial := strings.Replace(id, "vol-", "vol", 1)
	if md, err := x.sys.Metadata(x.cfg); err == nil && strings.HasPrefix(md.Identity, "serial:vol") && !strings.Contains(md.Identity, serial) {
		return warn("attach the volume that the metadata is of, or let the agent compare this one in full",
			"the metadata was written on %s, and this is %s: a copy of it, or the wrong one", strings.TrimPrefix(md.Identity, "serial:"), id)
	}
	if name := x.cfg.Volume.Device; strings.HasPrefix(name, "/dev/nvme") || strings.HasPrefix(name, "/dev/xvd") || strings.HasPrefix(name, "/dev/sd") {
		return warn("write device: /dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_"+serial,
			"%s is %s now, and may be another volume after the next start: such names are dealt out anew", name, id)
	}
	return ok("%s", id)
}

// ebs describes the volume. What is wrong with the way to AWS is said by iam if a step needs
// it; a node that only has its disk there need not be able to ask.
func (x *examination) ebs(ctx context.Context) (api EC2, vol types.Volume, v verdict, is bool) {
	id, v, is := x.volume()
	if !is {
		return nil, vol, v, false
	}
	api, _, err := x.reach(ctx)
	if err != nil {
		return nil, vol, skip("%v", err), false
	}
	out, err := api.DescribeVolumes(ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{id}})
	if err != nil || len(out.Volumes) != 1 {
		return nil, vol, skip("%s cannot be looked at: %v", id, err), false
	}
	return api, out.Volumes[0], verdict{}, true
}

// mega is what a MiB is in MB: EBS counts a volume's throughput in the former, EC2 an
// instance's in the latter.
const mega = float64(1<<20) / 1e6

// checkEBSBaseline compares what the volume may do with what the instance may for long.
func (x *examination) checkEBSBaseline(ctx context.Context) verdict {
	api, vol, v, is := x.ebs(ctx)
	if !is {
		return v
	}
	id, err := x.sys.Instance.ID(ctx)
	if err != nil {
		return skip("%v", err)
	}
	found, err := api.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	if err != nil || len(instances(found)) != 1 {
		return skip("%s cannot be looked at: %v", id, err)
	}
	kind := found.Reservations[0].Instances[0].InstanceType
	out, err := api.DescribeInstanceTypes(ctx, &ec2.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{kind}})
	if err != nil || len(out.InstanceTypes) != 1 {
		return skip("the type %s cannot be looked at: %v", kind, err)
	}
	e := out.InstanceTypes[0].EbsInfo
	if e == nil || e.EbsOptimizedInfo == nil {
		return skip("EC2 has no limits of EBS for %s", kind)
	}
	base := e.EbsOptimizedInfo
	iops, throughput := aws.ToInt32(vol.Iops), float64(aws.ToInt32(vol.Throughput))*mega
	var more []string
	if limit := aws.ToInt32(base.BaselineIops); limit > 0 && iops > limit {
		more = append(more, fmt.Sprintf("%d IOPS of the volume, %d of the instance", iops, limit))
	}
	if limit := aws.ToFloat64(base.BaselineThroughputInMBps); limit > 0 && throughput > limit {
		more = append(more, fmt.Sprintf("%.0f MB/s of the volume, %.0f of the instance", throughput, limit))
	}
	if len(more) > 0 {
		return warn("take a larger type, or provision less: above its baseline an instance lives on credit, and the slower node is the speed of both",
			"%s keeps up less than %s may do: %s", kind, aws.ToString(vol.VolumeId), list(more))
	}
	return ok("%s keeps up what %s may do: %d IOPS, %.0f MB/s", kind, aws.ToString(vol.VolumeId), iops, throughput)
}

func (x *examination) checkSnapshot(ctx context.Context) verdict {
	_, vol, v, is := x.ebs(ctx)
	if !is {
		return v
	}
	id, from := aws.ToString(vol.VolumeId), aws.ToString(vol.SnapshotId)
	switch {
	case from == "":
		return ok("%s was made empty", id)
	case aws.ToBool(vol.FastRestored):
		return ok("%s was made of %s by fast snapshot restore", id, from)
	}
	return warn("read all of it once before it is needed (dd if="+x.cfg.Volume.Device+" of=/dev/null bs=1M), or make it with fast snapshot restore or a rate for its initialisation",
		"%s was made of %s: the first read of each block fetches it from S3, which is slow", id, from)
}
