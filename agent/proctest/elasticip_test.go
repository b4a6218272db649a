package proctest

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance/instancetest"
)

// TestElasticIP: an Elastic IP follows the primary, by a move, by a takeover on a day on
// which AWS is slow and loses replies, and from a node that AWS is out for; and a node that
// comes back does not take it.
func TestElasticIP(t *testing.T) {
	cloud := instancetest.Start(t, clusterName, "a", "b")
	out, err := cloud.EC2.AllocateAddress(t.Context(), &ec2.AllocateAddressInput{Domain: types.DomainTypeVpc})
	if err != nil {
		t.Fatal(err)
	}
	instances := map[string]*instancetest.Node{"a": cloud.Nodes[0], "b": cloud.Nodes[1]}
	c := newCluster(t, options{auto: true, extra: func(n *node) string {
		o := instances[n.name].Loader.Options()
		return fmt.Sprintf("aws: {region: %s, endpoint: %q, metadata: %q}\nservice:\n- {eip: {allocation: %s}}\n", o.Region, o.Endpoint, o.Metadata, *out.AllocationId)
	}})
	with := func(n *node) func() bool {
		return func() bool {
			got, err := cloud.EC2.DescribeAddresses(t.Context(), &ec2.DescribeAddressesInput{AllocationIds: []string{*out.AllocationId}})
			if err != nil {
				t.Fatal(err)
			}
			s, err := n.tryStatus()
			return err == nil && s.Role == "Primary" && len(s.Service) == 1 && s.Service[0].State == "running" &&
				aws.ToString(got.Addresses[0].NetworkInterfaceId) == instances[n.name].ENI
		}
	}
	c.a.start()
	c.b.start()
	c.a.promote()
	c.until("the address is with a", with(c.a))
	c.settled(c.a)

	c.b.promote()
	c.until("the address is with b", with(c.b))
	c.settled(c.b)

	throttle := awstest.Times(2, awstest.Throttle)
	lose := awstest.Times(1, awstest.Only(awstest.LoseReply, "AssociateAddress"))
	instances["a"].Proxy.Set(func(x *awstest.Exchange) {
		if x.Action == "DescribeAddresses" {
			throttle(x)
			return
		}
		lose(x)
	})
	c.b.kill()
	c.until("the address is with a again", with(c.a))
	instances["a"].Proxy.Set(nil)
	c.b.start()
	c.settled(c.a)
	if !with(c.a)() {
		t.Error("b, which was killed with the address, has taken it away")
	}

	instances["a"].Proxy.Set(awstest.BlackHole)
	began := time.Now()
	c.b.promote()
	c.until("the address is with b, and a could not give it back", with(c.b))
	t.Logf("a move from a node without AWS took %v", time.Since(began))
	c.settled(c.b)
	c.a.logged("the Elastic IP stays with this node until the next primary takes it")
}
