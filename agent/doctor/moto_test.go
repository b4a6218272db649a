package doctor

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance"
	"tandem/failover/awsclient/instance/instancetest"
)

// The checks of AWS by the real client, against moto: the requests are such as a server of
// EC2's protocol takes, and not one of them changes anything.
func TestMoto(t *testing.T) {
	f := newFixture(t)
	f.examine()
	c := instancetest.Start(t, "nfs1", "a", "b")
	a := c.Nodes[0]
	ctx := t.Context()
	f.sys.Instance = instance.New(a.Loader)
	client := instance.NewEC2(a.Loader)
	f.sys.EC2 = func(ctx context.Context) (EC2, error) { return client.Client(ctx) }

	address, err := c.EC2.AllocateAddress(ctx, &ec2.AllocateAddressInput{Domain: types.DomainTypeVpc})
	f.ok(err)
	nics, err := c.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{a.ENI}})
	f.ok(err)
	table, err := c.EC2.CreateRouteTable(ctx, &ec2.CreateRouteTableInput{VpcId: nics.NetworkInterfaces[0].VpcId})
	f.ok(err)
	vol, err := c.EC2.CreateVolume(ctx, &ec2.CreateVolumeInput{
		AvailabilityZone: aws.String(awstest.Region + "a"), Size: aws.Int32(1), VolumeType: types.VolumeTypeGp3, Iops: aws.Int32(16000), Throughput: aws.Int32(125),
	})
	f.ok(err)
	f.file("sys/class/block/nvme1n1/device/serial", strings.Replace(*vol.VolumeId, "-", "", 1))

	x := newExamination(f.cfg, f.sys)
	x.aws = cloud{allocations: []string{*address.AllocationId}, fenced: []string{"b"}}
	if v := x.checkIAM(ctx); v.status != OK || !strings.Contains(v.text, "AssociateAddress, StopInstances") {
		t.Errorf("%+v", v)
	}
	x.aws = cloud{routes: []overlay{{"10.99.0.1/32", []string{*table.RouteTable.RouteTableId}}}}
	if v := x.checkSourceDest(ctx); v.status != Failed || !strings.Contains(v.text, a.ENI) {
		t.Errorf("%+v", v)
	}
	_, err = c.EC2.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: &a.ENI, SourceDestCheck: &types.AttributeBooleanValue{Value: aws.Bool(false)},
	})
	f.ok(err)
	if v := x.checkSourceDest(ctx); v.status != OK {
		t.Errorf("%+v", v)
	}
	if v := x.checkRouteTables(ctx); v.status != OK {
		t.Errorf("%+v", v)
	}
	x.aws.routes[0].tables = append(x.aws.routes[0].tables, "rtb-0123456789abcdef0")
	if v := x.checkRouteTables(ctx); v.status != Failed || v.text != "not there: rtb-0123456789abcdef0" {
		t.Errorf("%+v", v)
	}
	// A t3.micro keeps up 500 IOPS.
	if v := x.checkEBSBaseline(ctx); v.status != Warning || !strings.Contains(v.text, "16000 IOPS of the volume") {
		t.Errorf("%+v", v)
	}
	if v := x.checkSnapshot(ctx); v.status != OK {
		t.Errorf("%+v", v)
	}
	if v := x.checkEBSIdentity(ctx); v.status != Warning || !strings.Contains(v.text, *vol.VolumeId) { // not the fixture's
		t.Errorf("%+v", v)
	}

	at, err := c.EC2.DescribeAddresses(ctx, &ec2.DescribeAddressesInput{})
	f.ok(err)
	if at.Addresses[0].AssociationId != nil {
		t.Error("the Elastic IP was associated")
	}
	b, err := c.EC2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{c.Nodes[1].ID}})
	f.ok(err)
	if s := b.Reservations[0].Instances[0].State.Name; s != types.InstanceStateNameRunning {
		t.Errorf("node b is %s", s)
	}
}

// The dry runs by the rights of deploy/iam-policy.json, and by those without one action: what
// the policy has is enough for the whole set-up, and each action that is missing is named.
// moto judges by actions alone, so resources and conditions are left out of it here.
func TestIAMPolicy(t *testing.T) {
	f := newFixture(t)
	f.examine()
	c := instancetest.Start(t, "nfs1", "a", "b")
	a := c.Nodes[0]
	ctx := t.Context()
	allocation := c.Allocate(t)
	_, err := c.EC2.AssociateAddress(ctx, &ec2.AssociateAddressInput{AllocationId: &allocation, NetworkInterfaceId: &c.Nodes[1].ENI})
	f.ok(err)
	nics, err := c.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{a.ENI}})
	f.ok(err)
	table, err := c.EC2.CreateRouteTable(ctx, &ec2.CreateRouteTableInput{VpcId: nics.NetworkInterfaces[0].VpcId})
	f.ok(err)
	tables := []string{*table.RouteTable.RouteTableId}
	vol, err := c.EC2.CreateVolume(ctx, &ec2.CreateVolumeInput{AvailabilityZone: aws.String(awstest.Region + "a"), Size: aws.Int32(1), VolumeType: types.VolumeTypeGp3})
	f.ok(err)
	_, err = c.EC2.AttachVolume(ctx, &ec2.AttachVolumeInput{Device: aws.String("/dev/sdf"), InstanceId: &c.Nodes[1].ID, VolumeId: vol.VolumeId})
	f.ok(err)
	moto := c.Moto.Enforce(t, "node")
	proxy := dryRoutes(t, c.Moto.URL)

	b, err := os.ReadFile("../../deploy/iam-policy.json")
	f.ok(err)
	var policy struct {
		Statement []struct{ Action []string }
	}
	f.ok(json.Unmarshal(b, &policy))
	var actions []string
	for _, s := range policy.Statement {
		actions = append(actions, s.Action...)
	}
	for _, without := range []string{"", "ec2:AssociateAddress", "ec2:DisassociateAddress", "ec2:StopInstances", "ec2:ReplaceRoute", "ec2:CreateRoute", "ec2:DetachVolume"} {
		moto.Allow(t, slices.DeleteFunc(slices.Clone(actions), func(a string) bool { return a == without }))
		loader := awsclient.New(awsclient.Options{Region: awstest.Region, Endpoint: proxy.URL, Metadata: a.Metadata.URL})
		f.sys.Instance = instance.New(loader)
		client := instance.NewEC2(loader)
		f.sys.EC2 = func(ctx context.Context) (EC2, error) { return client.Client(ctx) }
		x := newExamination(f.cfg, f.sys)
		x.aws = cloud{allocations: []string{allocation}, routes: []overlay{{"10.99.0.1/32", tables}}, fenced: []string{"b"}, detach: true}
		v := x.ownIAM(ctx)
		action := strings.TrimPrefix(without, "ec2:")
		if without == "" && v.status != OK || without != "" && (v.status != Failed || !strings.Contains(v.text, "may not do: "+action+" (") || v.fix != policyFix) {
			t.Errorf("without %q: %+v", without, v)
		}
		api, err := f.sys.EC2(ctx)
		f.ok(err)
		at, err := api.DescribeAddresses(ctx, &ec2.DescribeAddressesInput{AllocationIds: []string{allocation}})
		f.ok(err)
		if got := aws.ToString(at.Addresses[0].NetworkInterfaceId); got != c.Nodes[1].ENI {
			t.Errorf("the Elastic IP is with %q, not with node b: something was more than asked about", got)
		}
		loader.Close()
	}
}

// dryRoutes is in front of a moto, which does what it should only try with routes: it says in
// moto's place what EC2 would.
func dryRoutes(t *testing.T, moto string) *awstest.Proxy {
	p := awstest.NewProxy(t, moto)
	p.Set(awstest.Only(func(x *awstest.Exchange) {
		body, err := x.Forward()
		if err == nil && x.Form("DryRun") == "true" && !strings.Contains(string(body), "<Error>") {
			x.Answer(http.StatusPreconditionFailed, "text/xml", awstest.EC2Error("DryRunOperation", "Request would have succeeded, but DryRun flag is set."))
		}
	}, "CreateRoute", "ReplaceRoute"))
	return p
}

// With each fault between this node and EC2 the findings are what they are without; and where
// nobody answers, all that asks EC2 says so together, after the time of one check.
func TestFaults(t *testing.T) {
	f := newFixture(t)
	c := instancetest.Start(t, "nfs1", "a", "b")
	a := c.Nodes[0]
	ctx := t.Context()
	nics, err := c.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{a.ENI}})
	f.ok(err)
	table, err := c.EC2.CreateRouteTable(ctx, &ec2.CreateRouteTableInput{VpcId: nics.NetworkInterfaces[0].VpcId})
	f.ok(err)
	_, err = c.EC2.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: &a.ENI, SourceDestCheck: &types.AttributeBooleanValue{Value: aws.Bool(false)},
	})
	f.ok(err)
	vol, err := c.EC2.CreateVolume(ctx, &ec2.CreateVolumeInput{
		AvailabilityZone: aws.String(awstest.Region + "a"), Size: aws.Int32(1), VolumeType: types.VolumeTypeGp3, Iops: aws.Int32(16000), Throughput: aws.Int32(125),
	})
	f.ok(err)
	f.file("sys/devices/nvme1n1/device/serial", strings.Replace(*vol.VolumeId, "-", "", 1))
	f.replace("eipalloc-0123456789abcdef0", c.Allocate(t))
	f.replace("[rtb-0123456789abcdef0, rtb-0123456789abcdef1]", "["+*table.RouteTable.RouteTableId+"]")

	proxy := awstest.NewProxy(t, dryRoutes(t, c.Moto.URL).URL)
	loader := awsclient.New(awsclient.Options{Region: awstest.Region, Endpoint: proxy.URL, Metadata: a.Metadata.URL})
	defer loader.Close()
	client := instance.NewEC2(loader)
	var fault awstest.Fault
	f.after = func() {
		f.sys.Instance = instance.New(loader)
		f.sys.EC2 = func(ctx context.Context) (EC2, error) { return client.Client(ctx) }
		proxy.Set(fault)
	}
	asking := []string{"iam", "source-dest-check", "route-tables", "ebs-baseline", "snapshot-volume"}
	statuses := func() (got []Status, text string) {
		all := f.examine()
		for _, id := range asking {
			i := slices.IndexFunc(all, func(f Finding) bool { return f.ID == id })
			got = append(got, all[i].Status)
		}
		return got, show(all)
	}
	for _, tc := range []struct {
		name  string
		fault awstest.Fault
	}{
		{"none", nil},
		{"late", awstest.Delay(200 * time.Millisecond)},
		{"throttled", awstest.Times(2, awstest.Throttle)},
		{"an answer lost", awstest.Times(1, awstest.LoseReply)},
		{"stale", awstest.Stale(time.Second)},
		{"a black hole for a while", awstest.For(time.Second, awstest.BlackHole)},
	} {
		fault = tc.fault
		if got, text := statuses(); !slices.Equal(got, []Status{OK, OK, OK, Warning, OK}) {
			t.Errorf("%s:\n%s", tc.name, text)
		}
	}
	fault = awstest.BlackHole
	began := time.Now()
	got, text := statuses()
	if !slices.Equal(got, []Status{Failed, Skipped, Skipped, Skipped, Skipped}) || strings.Count(text, "AWS cannot be asked: the check iam has waited") != 4 {
		t.Errorf("a black hole:\n%s", text)
	}
	if took := time.Since(began); took > checkLimit+5*time.Second {
		t.Errorf("it took %v", took)
	}
}
