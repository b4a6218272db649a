package doctor

import (
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

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
