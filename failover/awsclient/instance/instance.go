// Package instance is the EC2 instance that this process runs on: what the instance
// metadata says of it, by IMDSv2 alone, and EC2 as it is reached from it.
package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"tandem/failover/awsclient"
)

// ErrNoInterface means that the instance has no network interface with that MAC.
var ErrNoInterface = errors.New("the instance metadata knows no network interface with this MAC")

// maxText bounds an answer of the metadata; the longest is a list of addresses.
const maxText = 64 << 10

// Interface is a network interface of EC2's, an ENI.
type Interface struct {
	ID      string // eni-…
	MAC     string
	Address netip.Addr // the primary private address; only of Primary's
}

// Metadata asks the instance metadata. It is safe for concurrent use.
type Metadata struct {
	client *imds.Client

	mu      sync.Mutex
	id      string     // "": not known yet; guarded by mu
	primary *Interface // nil: not known yet; guarded by mu
}

// New returns what asks at the loader's metadata URL.
func New(l *awsclient.Loader) *Metadata {
	return &Metadata{client: awsclient.Metadata(l.Options().Metadata)}
}

// ID returns the instance's id. It never changes, so it is asked for once.
func (m *Metadata) ID(ctx context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.id != "" {
		return m.id, nil
	}
	id, err := m.text(ctx, "instance-id")
	if err == nil {
		m.id = id
	}
	return id, err
}

// Primary returns the first network interface. An instance keeps it, and its primary
// address, for as long as it lives, so it is asked for once.
func (m *Metadata) Primary(ctx context.Context) (Interface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.primary != nil {
		return *m.primary, nil
	}
	mac, err := m.text(ctx, "mac")
	if err != nil {
		return Interface{}, err
	}
	nic, err := m.ByMAC(ctx, mac)
	if err != nil {
		return Interface{}, err
	}
	text, err := m.text(ctx, "local-ipv4")
	if err != nil {
		return Interface{}, err
	}
	if nic.Address, err = netip.ParseAddr(text); err != nil {
		return Interface{}, fmt.Errorf("the instance metadata's local-ipv4: %w", err)
	}
	m.primary = &nic
	return nic, nil
}

// ByMAC returns the network interface with a MAC, without its address.
func (m *Metadata) ByMAC(ctx context.Context, mac string) (Interface, error) {
	id, err := m.text(ctx, "network/interfaces/macs/"+mac+"/interface-id")
	var answer *smithyhttp.ResponseError
	if errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusNotFound {
		return Interface{}, fmt.Errorf("%w: %s", ErrNoInterface, mac)
	}
	return Interface{ID: id, MAC: mac}, err
}

// Addresses returns the IPv4 addresses that are assigned to the interface with a MAC, as
// EC2 has told the instance: when an address is moved, that is the confirmation.
func (m *Metadata) Addresses(ctx context.Context, mac string) ([]netip.Addr, error) {
	text, err := m.text(ctx, "network/interfaces/macs/"+mac+"/local-ipv4s")
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for line := range strings.Lines(text) {
		a, err := netip.ParseAddr(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("the instance metadata's local-ipv4s: %w", err)
		}
		all = append(all, a)
	}
	return all, nil
}

func (m *Metadata) text(ctx context.Context, path string) (string, error) {
	out, err := m.client.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
	if err != nil {
		return "", fmt.Errorf("ask the instance metadata for %s: %w", path, err)
	}
	defer out.Content.Close()
	b, err := io.ReadAll(io.LimitReader(out.Content, maxText))
	if err != nil {
		return "", fmt.Errorf("ask the instance metadata for %s: %w", path, err)
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", fmt.Errorf("the instance metadata has nothing as %s", path)
	}
	return text, nil
}

// MAC returns the MAC of an interface as the metadata's paths have it.
func MAC(link *net.Interface) string { return strings.ToLower(link.HardwareAddr.String()) }

// EC2 has a client of EC2, with connections of its own, which it makes when it is first
// asked for. It is safe for concurrent use.
type EC2 struct {
	loader *awsclient.Loader

	mu     sync.Mutex
	client *Client // nil: not made yet; guarded by mu
}

// NewEC2 returns it. It asks nobody yet.
func NewEC2(l *awsclient.Loader) *EC2 { return &EC2{loader: l} }

// Client returns the client.
func (e *EC2) Client(ctx context.Context) (*Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client == nil {
		cfg, err := e.loader.Config(ctx)
		if err != nil {
			return nil, err
		}
		e.client = newClient(ec2.NewFromConfig(cfg))
	}
	return e.client, nil
}
