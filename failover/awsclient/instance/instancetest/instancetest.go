// Package instancetest makes a cluster's nodes as instances of an EC2 that is moto, each
// with an instance metadata service of its own. It is for tests only.
package instancetest

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/awstest"
)

// image is one that moto knows from the start.
const image = "ami-12c6146b"

// Node is one instance.
type Node struct {
	ID, ENI, MAC, Address string

	Metadata *awstest.Metadata
	Proxy    *awstest.Proxy    // between this node and EC2
	Loader   *awsclient.Loader // by the Proxy and the Metadata
}

// Cluster is an EC2 with nodes.
type Cluster struct {
	Moto  *awstest.Moto
	EC2   *ec2.Client // directly
	Nodes []*Node
}

// Environ is awstest's, for a test in which the instance metadata is asked.
func Environ(t testing.TB) {
	t.Helper()
	awstest.Environ(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
}

// Alone is a node without an EC2.
func Alone(t testing.TB, id awstest.Identity) *Node {
	t.Helper()
	Environ(t)
	n := &Node{ID: id.InstanceID, ENI: id.ENI, MAC: id.MAC, Address: id.PrivateIPs[0], Metadata: awstest.StartMetadata(t, id)}
	n.Loader = awsclient.New(awsclient.Options{Region: awstest.Region, Metadata: n.Metadata.URL})
	return n
}

// Start runs a moto with an instance for each name, which has the tags of a cluster's node.
func Start(t testing.TB, cluster string, names ...string) *Cluster {
	t.Helper()
	Environ(t)
	moto := awstest.StartMoto(t)
	cfg, err := awsclient.New(awsclient.Options{Region: awstest.Region, Endpoint: moto.URL}).Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Moto: moto, EC2: ec2.NewFromConfig(cfg)}
	for _, name := range names {
		in := c.Run(t, map[string]string{"tandem:cluster": cluster, "tandem:node": name})
		nic := in.NetworkInterfaces[0]
		n := &Node{ID: *in.InstanceId, ENI: *nic.NetworkInterfaceId, MAC: aws.ToString(nic.MacAddress), Address: *nic.PrivateIpAddress}
		n.Metadata = awstest.StartMetadata(t, awstest.Identity{InstanceID: n.ID, MAC: n.MAC, ENI: n.ENI, PrivateIPs: []string{n.Address}})
		n.Proxy = awstest.NewProxy(t, moto.URL)
		n.Loader = awsclient.New(awsclient.Options{Region: awstest.Region, Endpoint: n.Proxy.URL, Metadata: n.Metadata.URL})
		c.Nodes = append(c.Nodes, n)
	}
	return c
}

// Allocate makes an Elastic IP that belongs to nobody, and returns its allocation.
func (c *Cluster) Allocate(t testing.TB) string {
	t.Helper()
	out, err := c.EC2.AllocateAddress(t.Context(), &ec2.AllocateAddressInput{Domain: types.DomainTypeVpc})
	if err != nil {
		t.Fatal(err)
	}
	return *out.AllocationId
}

// Run makes one more instance.
func (c *Cluster) Run(t testing.TB, tags map[string]string) types.Instance {
	t.Helper()
	var all []types.Tag
	for k, v := range tags {
		all = append(all, types.Tag{Key: &k, Value: &v})
	}
	out, err := c.EC2.RunInstances(t.Context(), &ec2.RunInstancesInput{
		ImageId: aws.String(image), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Micro,
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeInstance, Tags: all}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Instances[0]
}
