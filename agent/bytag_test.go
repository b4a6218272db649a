package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"tandem/agent/certs"
	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance/instancetest"
)

// tagged is a cluster whose nodes know each other by the tags of instances in a network of
// EC2's that is on this machine.
type tagged struct {
	t      *testing.T
	dir    string
	ec2    *instancetest.Cluster
	subnet string
	port   int
}

func newTagged(t *testing.T) *tagged {
	t.Helper()
	c := &tagged{t: t, dir: t.TempDir(), ec2: instancetest.Start(t, "other")}
	vpc, err := c.ec2.EC2.CreateVpc(t.Context(), &ec2.CreateVpcInput{CidrBlock: aws.String("127.0.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	subnet, err := c.ec2.EC2.CreateSubnet(t.Context(), &ec2.CreateSubnetInput{VpcId: vpc.Vpc.VpcId, CidrBlock: aws.String("127.0.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	c.subnet = *subnet.Subnet.SubnetId
	if _, err := certs.Create(c.dir, "nfs1", []string{"a", "b"}, certs.Options{}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	c.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	return c
}

// instance runs one with the tags of a node at an address.
func (c *tagged) instance(node, address string) (id string) {
	c.t.Helper()
	out, err := c.ec2.EC2.RunInstances(c.t.Context(), &ec2.RunInstancesInput{
		ImageId: aws.String("ami-12c6146b"), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Micro,
		SubnetId: &c.subnet, PrivateIpAddress: &address,
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeInstance, Tags: []types.Tag{
			{Key: aws.String("tandem:cluster"), Value: aws.String("nfs1")}, {Key: aws.String("tandem:node"), Value: &node},
		}}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if got := aws.ToString(out.Instances[0].PrivateIpAddress); got != address {
		c.t.Fatalf("EC2 has given %s the address %s, not %s", node, got, address)
	}
	return *out.Instances[0].InstanceId
}

// node starts the agent of a node on an instance at an address.
func (c *tagged) node(node, peer, address string) (cfg *config.Config, stop func()) {
	c.t.Helper()
	text := fmt.Sprintf(`cluster: nfs1
node: %[1]s
listen: %[3]s:%[4]d
peers: {tag: "tandem:node", nodes: [%[2]s], port: %[4]d}
volume: {device: %[1]s.img, size: 8MiB}
nbd: {socket: %[1]s.nbd}
control: %[1]s.sock
tls: {ca: ca.pem, cert: %[1]s.pem, key: %[1]s.key}
witness: file:witness?shared=yes
aws: {region: %[5]s, endpoint: %[6]q}
`, node, peer, address, c.port, awstest.Region, c.ec2.Moto.URL)
	cfg, err := config.Parse(node+".yaml", []byte(text), c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := os.Stat(cfg.Volume.Device); err != nil {
		if err := Init(c.t.Context(), cfg, InitOptions{}, new(bytes.Buffer)); err != nil {
			c.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("node", node)) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("agent of %s: %v", node, err)
		}
	}
	return cfg, stop
}

// linked waits until a node has a link to its peer.
func (c *tagged) linked(cfg *config.Config) {
	c.t.Helper()
	var s control.Status
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		data, err := control.Call(c.t.Context(), cfg.Control, control.Request{Verb: "status"}, nil)
		if err != nil {
			continue
		}
		if err := json.Unmarshal(data, &s); err != nil {
			c.t.Fatal(err)
		}
		if len(s.Peers) == 1 && s.Peers[0].Link == "Connected" {
			return
		}
	}
	c.t.Fatalf("no link: %+v", s.Peers)
}

// An instance that replaces another one is found at its address by the agent and by
// replctl, and nobody restarts anything.
func TestPeerIsReplaced(t *testing.T) {
	c := newTagged(t)
	c.instance("a", "127.0.0.11")
	old := c.instance("b", "127.0.0.12")
	a, stopA := c.node("a", "b", "127.0.0.11")
	defer stopA()
	b, stopB := c.node("b", "a", "127.0.0.12")
	c.linked(a)
	if n := AskPeers(t.Context(), b, "x"); len(n) != 1 || n[0].Status == nil || n[0].Status.Node != "a" {
		t.Errorf("%+v", n)
	}

	// Its volume moves on to another instance.
	stopB()
	if _, err := c.ec2.EC2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{old}}); err != nil {
		t.Fatal(err)
	}
	if n := AskPeers(t.Context(), a, "x"); len(n) != 1 || n[0].Status != nil || !strings.Contains(n[0].Error, "no running instance has these tags") {
		t.Errorf("%+v", n)
	}
	c.instance("b", "127.0.0.13")
	b, stopB = c.node("b", "a", "127.0.0.13")
	defer stopB()
	c.linked(a)
	for _, cfg := range []*config.Config{a, b} {
		if n := AskPeers(t.Context(), cfg, "x"); len(n) != 1 || n[0].Status == nil {
			t.Errorf("%s: %+v", filepath.Base(cfg.File), n)
		}
	}
	data, err := control.Call(t.Context(), a.Control, control.Request{Verb: "status", Node: "b"}, nil)
	if err != nil || !bytes.Contains(data, []byte(`"node":"b"`)) {
		t.Errorf("%v %s", err, data)
	}
}

// That EC2 needs longer for its answer than a peer may is no reason not to ask the peer.
func TestPeerFoundSlowly(t *testing.T) {
	c := newTagged(t)
	c.instance("a", "127.0.0.11")
	c.instance("b", "127.0.0.12")
	a, stopA := c.node("a", "b", "127.0.0.11")
	defer stopA()
	_, stopB := c.node("b", "a", "127.0.0.12")
	defer stopB()
	c.linked(a)
	slow := awstest.NewProxy(t, c.ec2.Moto.URL)
	slow.Set(awstest.Delay(peerLimit + 200*time.Millisecond))
	cfg := *a
	cfg.AWS.Endpoint = slow.URL
	if n := AskPeers(t.Context(), &cfg, "x"); n[0].Status == nil {
		t.Errorf("%+v", n)
	}
	if f, err := AskFacts(t.Context(), &cfg, "b", "x"); err != nil || f.Node != "b" {
		t.Errorf("%+v, %v", f, err)
	}
	if slow.Count("DescribeInstances") < 2 {
		t.Error("EC2 has not been asked")
	}
}
