package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/e2e/vm"
	"tandem/failover/awsclient/awstest"
)

// The scenarios of a client that finds the primary by an address of AWS's. The agents ask an
// emulator, moto, which moves addresses and routes in its books alone. The harness does in the
// test network what EC2 does in its own: it reads the books, and leads the client's packets
// where they say. So no packet of the client goes to a node that EC2 does not name.
func awsScenarios() []Scenario {
	one := func(id, name, kind string) Scenario {
		return pairScenario(id, name, 5*time.Minute, pairOptions{fs: "ext4", version: "4.2", aws: kind}, func(p *pair) []step {
			s := &rentedTakeover{takeover{pair: p}}
			return s.steps()
		})
	}
	return []Scenario{
		one("aws-eip", "an Elastic IP: power cut of the server of an NFS v4.2 client, the same mount goes on", eipStep),
		one("aws-overlay", "an overlay address with routes of EC2's: power cut of the server of an NFS v4.2 client, the same mount goes on", overlayStep),
	}
}

const (
	eipStep     = "eip"
	overlayStep = "overlay-route"

	elasticAddress = "203.0.113.9" // RFC 5737
	overlayAddress = "10.99.0.1"

	// ec2Image is one that moto knows from the start.
	ec2Image = "ami-12c6146b"

	// lookEvery is how late the test network may be, beside what a command on the client takes.
	lookEvery = 100 * time.Millisecond
)

// cloud is an EC2 in which the pair's nodes are instances.
type cloud struct {
	kind    string // eipStep or overlayStep
	url     string
	address string // that the client mounts from
	api     *ec2.Client
	of      map[*node]*rented

	allocation, table string // the one of the kind

	mu    sync.Mutex
	moves []moved // guarded by mu
	err   error   // the last that kept route from its work, nil if there is none; guarded by mu
}

// rented is a node as EC2 sees it.
type rented struct {
	instance, eni, metadata string
	service                 *awstest.Metadata
}

// moved is a change of the holder.
type moved struct {
	seen, done time.Time // in EC2, and when the client's packets followed
	to         *node     // nil: nobody
}

// rent starts an EC2, with an instance for each node and what the step moves. It is where the
// witness is, so that the guests reach it as they do that; it ends with the machines.
func (p *pair) rent(ctx context.Context) error {
	moto, stop, err := awstest.RunMoto(vm.HostDataAddress())
	if err != nil {
		return err
	}
	p.Lab.AtClear(stop)
	c := &cloud{kind: p.aws, url: moto.URL, api: ec2.NewFromConfig(moto.SDK()), of: make(map[*node]*rented)}
	vpc, err := c.api.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: aws.String("10.77.0.0/16")})
	if err != nil {
		return err
	}
	subnet, err := c.api.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: vpc.Vpc.VpcId, CidrBlock: aws.String("10.77.0.0/24")})
	if err != nil {
		return err
	}
	for _, n := range p.nodes() {
		if err := p.rentNode(ctx, c, n, subnet.Subnet.SubnetId); err != nil {
			return fmt.Errorf("an instance for %s: %w", n.Name, err)
		}
	}
	switch c.kind {
	case eipStep:
		out, err := c.api.AllocateAddress(ctx, &ec2.AllocateAddressInput{Domain: types.DomainTypeVpc, Address: aws.String(elasticAddress)})
		if err != nil {
			return err
		}
		c.address, c.allocation = aws.ToString(out.PublicIp), aws.ToString(out.AllocationId)
	case overlayStep:
		out, err := c.api.CreateRouteTable(ctx, &ec2.CreateRouteTableInput{VpcId: vpc.Vpc.VpcId})
		if err != nil {
			return err
		}
		c.address, c.table = overlayAddress, aws.ToString(out.RouteTable.RouteTableId)
	default:
		return fmt.Errorf("no such step of AWS's: %s", c.kind)
	}
	p.cloud = c
	return nil
}

// rentNode makes a node's instance, with the address that the node has, and its metadata.
func (p *pair) rentNode(ctx context.Context, c *cloud, n *node, subnet *string) error {
	out, err := c.api.RunInstances(ctx, &ec2.RunInstancesInput{
		ImageId: aws.String(ec2Image), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Micro,
		SubnetId: subnet, PrivateIpAddress: aws.String(n.DataAddress()),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeInstance, Tags: []types.Tag{
			{Key: aws.String("tandem:cluster"), Value: aws.String(cluster)}, {Key: aws.String("tandem:node"), Value: aws.String(n.Name)},
		}}},
	})
	if err != nil {
		return err
	}
	if len(out.Instances) != 1 || len(out.Instances[0].NetworkInterfaces) != 1 {
		return errors.New("not one instance with one network interface")
	}
	nic := out.Instances[0].NetworkInterfaces[0]
	if got := aws.ToString(nic.PrivateIpAddress); got != n.DataAddress() {
		return fmt.Errorf("it has %s, not %s", got, n.DataAddress())
	}
	r := &rented{instance: aws.ToString(out.Instances[0].InstanceId), eni: aws.ToString(nic.NetworkInterfaceId)}
	if _, err := c.api.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: &r.eni, SourceDestCheck: &types.AttributeBooleanValue{Value: aws.Bool(false)},
	}); err != nil {
		return err
	}
	service, stop, err := awstest.RunMetadata(vm.HostDataAddress(), awstest.Identity{
		InstanceID: r.instance, MAC: n.DataMAC(), ENI: r.eni, PrivateIPs: []string{n.DataAddress()},
	})
	if err != nil {
		return err
	}
	p.Lab.AtClear(stop)
	r.service, r.metadata = service, service.URL
	c.of[n] = r
	return nil
}

// configuration is a node's service with the step of AWS's in place of vip, and how AWS is
// reached. Credentials are in neither: they are the role's, from the metadata.
func (c *cloud) configuration(n *node, service string) string {
	if c == nil {
		return service
	}
	lines := strings.SplitAfter(service, "\n")
	vip := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "- vip:") })
	lines[vip] = fmt.Sprintf("- eip: {allocation: %s}\n", c.allocation)
	if c.kind == overlayStep {
		lines[vip] = fmt.Sprintf("- overlay-route: {cidr: %s/32, tables: [%s]}\n", overlayAddress, c.table)
	}
	return fmt.Sprintf("aws: {region: %s, endpoint: %q, metadata: %q}\n", awstest.Region, c.url, c.of[n].metadata) + strings.Join(lines, "")
}

// holder asks EC2 which node it leads the address's packets to; nil: none.
func (c *cloud) holder(ctx context.Context) (*node, error) {
	eni := ""
	switch c.kind {
	case eipStep:
		out, err := c.api.DescribeAddresses(ctx, &ec2.DescribeAddressesInput{AllocationIds: []string{c.allocation}})
		if err != nil {
			return nil, err
		}
		if len(out.Addresses) != 1 {
			return nil, fmt.Errorf("EC2 has %d addresses %s", len(out.Addresses), c.allocation)
		}
		eni = aws.ToString(out.Addresses[0].NetworkInterfaceId)
	case overlayStep:
		out, err := c.api.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{RouteTableIds: []string{c.table}})
		if err != nil {
			return nil, err
		}
		if len(out.RouteTables) != 1 {
			return nil, fmt.Errorf("EC2 has %d route tables %s", len(out.RouteTables), c.table)
		}
		for _, r := range out.RouteTables[0].Routes {
			if aws.ToString(r.DestinationCidrBlock) == overlayAddress+"/32" {
				eni = aws.ToString(r.NetworkInterfaceId)
			}
		}
	}
	if eni == "" {
		return nil, nil
	}
	for n, r := range c.of {
		if r.eni == eni {
			return n, nil
		}
	}
	return nil, fmt.Errorf("EC2 leads %s to %s, which is no node's", c.address, eni)
}

// lead is what the client runs so that its packets to the address go to n, or nowhere.
//
// An Elastic IP is translated as an internet gateway does it, packet for packet and without a
// memory of connections: one that began with the old holder goes on to the new one.
func (c *cloud) lead(n *node) string {
	if c.kind == overlayStep {
		if n == nil {
			return "ip route replace unreachable " + overlayAddress + "/32"
		}
		return "ip route replace " + overlayAddress + "/32 via " + n.DataAddress() + " dev eth0"
	}
	rules := "add rule ip ec2 out ip daddr " + elasticAddress + " drop\n"
	if n != nil {
		rules = "add rule ip ec2 out ip daddr " + elasticAddress + " notrack ip daddr set " + n.DataAddress() + "\n" +
			"add rule ip ec2 in ip saddr " + n.DataAddress() + " notrack ip saddr set " + elasticAddress + "\n"
	}
	// Before the route is decided on the way in, and after that on the way out; the neighbour
	// that a packet goes to is then the one of its new address.
	return "ip route replace " + elasticAddress + "/32 dev eth0\nnft -f - <<'NFT'\nadd table ip ec2\n" +
		"add chain ip ec2 out { type filter hook output priority raw; }\n" +
		"add chain ip ec2 in { type filter hook prerouting priority raw; }\n" +
		"flush table ip ec2\n" + rules + "NFT"
}

// route has the client's packets follow EC2's books until stop.
func (c *cloud) route(client *vm.Machine) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var at *node
		known := false // the client's packets are led to at
		for ; ctx.Err() == nil; time.Sleep(lookEvery) {
			n, err := c.holder(ctx)
			m := moved{seen: time.Now(), to: n}
			if err == nil && (!known || n != at) {
				if _, err = client.Shell(ctx, c.lead(n)); err == nil {
					at, known = n, true
				}
			} else if err == nil {
				continue
			}
			m.done = time.Now()
			c.mu.Lock()
			if c.err = err; err == nil {
				c.moves = append(c.moves, m)
			}
			c.mu.Unlock()
		}
	}()
	return func() { cancel(); <-ended }
}

// since is what was moved after then, and what keeps the rest from it.
func (c *cloud) since(then time.Time) ([]moved, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []moved
	for _, m := range c.moves {
		if m.seen.After(then) {
			all = append(all, m)
		}
	}
	return all, c.err
}

// led waits until the client's packets go to n, and returns when they began to.
func (c *cloud) led(ctx context.Context, n *node) (moved, error) {
	const patience = 20 * time.Second
	for end := time.Now().Add(patience); ; time.Sleep(lookEvery) {
		all, err := c.since(time.Time{})
		if len(all) > 0 && all[len(all)-1].to == n {
			return all[len(all)-1], nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			return moved{}, errors.Join(fmt.Errorf("the packets to %s do not go to %s", c.address, n.Name), err)
		}
	}
}

// rentedTakeover is a takeover whose address is EC2's to move.
type rentedTakeover struct{ takeover }

func (s *rentedTakeover) steps() []step {
	return []step{
		{"EC2 leads to the primary, by the role's credentials", s.asked},
		{"the client writes", s.begin},
		{"power cut of the primary, the standby takes over, the client goes on", s.powerCut},
		{"EC2 and the network have followed", s.followed},
		{"every acknowledged record is there", s.check},
		{"the dead one is resynced, and does not take the address back", s.notTakenBack},
		{"moved to it, nothing is left behind", s.moveBack},
	}
}

// asked asserts that it was the agents who spoke to AWS, as ones on instances do.
func (s *rentedTakeover) asked(ctx context.Context) error {
	for _, n := range s.nodes() {
		out, err := n.Shell(ctx, fmt.Sprintf("tr '\\0' '\\n' </proc/%d/environ | grep -c ^AWS_; true", n.pid))
		if err != nil {
			return err
		}
		if out != "0" {
			return fmt.Errorf("the agent of %s has %s variables of AWS's", n.Name, out)
		}
		if s.cloud.of[n].service.Requests() == 0 {
			return fmt.Errorf("the agent of %s has asked no metadata", n.Name)
		}
	}
	return s.held(ctx, "at first")
}

// held asks EC2 anew, and does not rely on what the network was told.
func (s *rentedTakeover) held(ctx context.Context, when string) error {
	n, err := s.cloud.holder(ctx)
	if err != nil {
		return err
	}
	name := "nobody"
	if n != nil {
		name = n.Name + ", " + s.cloud.of[n].instance
	}
	return s.Assert(n == s.primary, "%s, EC2 says that %s is with the primary: %s", when, s.cloud.address, name)
}

func (s *rentedTakeover) followed(ctx context.Context) error {
	if err := s.held(ctx, "after the takeover"); err != nil {
		return err
	}
	m, err := s.cloud.led(ctx, s.primary)
	if err != nil {
		return err
	}
	after := func(t time.Time) float64 { return t.Sub(s.cut).Seconds() }
	s.Logf("  phases after the cut: EC2 names %s after %.1f s, the network follows after %.1f s, the client's first fsync comes after %.1f s",
		s.primary.Name, after(m.seen), after(m.done), s.first.Seconds())
	return s.movedOnce("from the cut to the takeover")
}

// movedOnce asserts that the address went to the new primary, and nowhere else.
func (s *rentedTakeover) movedOnce(when string) error {
	all, err := s.cloud.since(s.cut)
	if err != nil {
		return err
	}
	return s.Assert(len(all) == 1 && all[0].to == s.primary, "%s, the address was moved once, to %s", when, s.primary.Name)
}

func (s *rentedTakeover) notTakenBack(ctx context.Context) error {
	if err := s.end(ctx); err != nil {
		return err
	}
	if err := s.held(ctx, "with both there again"); err != nil {
		return err
	}
	return s.movedOnce("until both were alike")
}

func (s *rentedTakeover) moveBack(ctx context.Context) error {
	if err := s.move(ctx); err != nil {
		return err
	}
	if err := s.held(ctx, "after the move"); err != nil {
		return err
	}
	if _, err := s.cloud.led(ctx, s.primary); err != nil {
		return err
	}
	began := time.Now()
	if _, err := s.client.Shell(ctx, "echo moved >"+clientMount+"/moved && sync "+clientMount+"/moved && rm "+clientMount+"/moved"); err != nil {
		return err
	}
	return s.Assert(true, "the client writes to %s, %.1f s after it was moved there", s.primary.Name, time.Since(began).Seconds())
}
