// Package privateip is the service step that holds a secondary private address: one of
// the subnet that both nodes are in, at which clients in the VPC reach the primary. An
// Elastic IP that is associated with it moves along.
//
// AWS gives it to the last who asks, so it decides nothing (see package claim). The host
// has the address only while EC2 routes it to this instance: it is added to the interface
// when the instance metadata confirms that, and removed before it is given back.
package privateip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/instance"
	"tandem/failover/service"
	"tandem/failover/service/claim"
	"tandem/failover/service/vip"
)

// API is what is asked of EC2. *instance.Client has it.
type API interface {
	AssignPrivateIpAddresses(context.Context, *ec2.AssignPrivateIpAddressesInput, ...func(*ec2.Options)) (*ec2.AssignPrivateIpAddressesOutput, error)
	UnassignPrivateIpAddresses(context.Context, *ec2.UnassignPrivateIpAddressesInput, ...func(*ec2.Options)) (*ec2.UnassignPrivateIpAddressesOutput, error)
}

// Config is what New needs.
type Config struct {
	// Address is IPv4, with the length of the network that the interface is to have it
	// in. 32 is right wherever the node has an own address in the subnet, which it has.
	Address   netip.Prefix
	Interface string // whose MAC says which network interface of EC2's it is
	Loader    *awsclient.Loader
	API       API // nil: EC2, by the Loader
	Log       *slog.Logger
}

// PrivateIP is a service.Step. The Runner calls one method at a time, so it has no lock.
type PrivateIP struct {
	cfg   Config
	ec2   *instance.EC2
	self  *instance.Metadata
	host  *vip.VIP
	watch claim.Watch
}

// ErrPrimary means that the address is the instance's own, which cannot be moved.
var ErrPrimary = errors.New("it is the primary address of this instance, which cannot move: name another of the subnet")

// New returns the step. It asks nobody yet.
func New(cfg Config) *PrivateIP {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &PrivateIP{
		cfg: cfg, ec2: instance.NewEC2(cfg.Loader), self: instance.New(cfg.Loader),
		host: vip.NewAssigned(cfg.Address, cfg.Interface, cfg.Log),
	}
}

// Start has the address assigned to this instance's interface and adds it there.
func (p *PrivateIP) Start(ctx context.Context, term service.Term) error {
	api, err := p.client(ctx)
	if err != nil {
		return err
	}
	nic, err := p.nic(ctx)
	if err != nil {
		return err
	}
	own, err := p.self.Primary(ctx)
	if err != nil {
		return err
	}
	if own.Address == p.cfg.Address.Addr() {
		return fmt.Errorf("%w: %s: %w", service.ErrHopeless, p.cfg.Address.Addr(), ErrPrimary)
	}
	if err := p.assign(ctx, api, nic); err != nil {
		return err
	}
	if err := p.host.Start(ctx, term); err != nil {
		return err
	}
	p.watch.Held(term.Epoch)
	return nil
}

// assign has EC2 route the address here. It is asked for also if the metadata has it here:
// that may be what was before another node took it.
func (p *PrivateIP) assign(ctx context.Context, api API, nic instance.Interface) error {
	address := p.cfg.Address.Addr().String()
	var pauses claim.Pauses
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err := api.AssignPrivateIpAddresses(ctx, &ec2.AssignPrivateIpAddressesInput{
			NetworkInterfaceId: &nic.ID, PrivateIpAddresses: []string{address}, AllowReassignment: aws.Bool(true),
		})
		if err == nil {
			break
		}
		err = claim.Told("AssignPrivateIpAddresses", "assign "+address+" to "+nic.ID, err)
		switch {
		case awsclient.Code(err) == "PrivateIpAddressLimitExceeded":
			return fmt.Errorf("%w: %w: unassign one, or take a larger type of instance", service.ErrHopeless, err)
		case claim.Final(err):
			return err
		}
		// It may have been done, and only the answer be lost: then this repeats it.
		if !pauses.Wait(ctx) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
	lost, unanswered := claim.Confirm(ctx, func(ctx context.Context) (lost, err error) { return p.look(ctx, nic) })
	if lost != nil {
		return fmt.Errorf("assign %s to %s: AWS has said that it is done, but: %w", address, nic.ID, lost)
	}
	if unanswered != nil {
		p.cfg.Log.Warn("the private address is assigned, and the instance metadata does not confirm it", "address", address, "err", unanswered)
	}
	return nil
}

// look says whether the instance metadata has the address on the interface.
func (p *PrivateIP) look(ctx context.Context, nic instance.Interface) (lost, err error) {
	all, err := p.self.Addresses(ctx, nic.MAC)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(all, p.cfg.Address.Addr()) {
		return fmt.Errorf("%w: the instance metadata has not %s on %s, but %v", claim.ErrLost, p.cfg.Address.Addr(), nic.ID, all), nil
	}
	return nil, nil
}

// Stop removes the address from the interface and gives it back, if it is still this
// node's. If AWS cannot be reached for that, it stays assigned until the next primary
// takes it; the host does not have it.
func (p *PrivateIP) Stop(ctx context.Context, term service.Term) error {
	p.watch.Reset()
	limit, cancel := context.WithTimeout(ctx, claim.GiveBack)
	defer cancel()
	own, unknown := p.self.Primary(limit)
	if unknown == nil && own.Address == p.cfg.Address.Addr() {
		return nil // Start has refused it; without it the host has no network
	}
	if err := p.host.Stop(ctx, term); err != nil {
		return err
	}
	err := unknown
	if err == nil {
		err = p.unassign(limit)
	}
	if err != nil {
		p.cfg.Log.Warn("the private address stays assigned to this node until the next primary takes it", "address", p.cfg.Address.Addr(), "err", err)
	}
	return nil
}

func (p *PrivateIP) unassign(ctx context.Context) error {
	nic, err := p.nic(ctx)
	switch {
	case errors.Is(err, service.ErrHopeless):
		return nil // the interface is gone, and has taken it along
	case err != nil:
		return err
	}
	lost, err := p.look(ctx, nic)
	if err != nil || lost != nil {
		return err // another node has it: nil
	}
	api, err := p.client(ctx)
	if err != nil {
		return err
	}
	address := p.cfg.Address.Addr().String()
	// It names our interface: if another node has taken it since, AWS refuses.
	_, err = api.UnassignPrivateIpAddresses(ctx, &ec2.UnassignPrivateIpAddressesInput{
		NetworkInterfaceId: &nic.ID, PrivateIpAddresses: []string{address},
	})
	if err != nil {
		return claim.Told("UnassignPrivateIpAddresses", "unassign "+address+" from "+nic.ID, err)
	}
	return nil
}

// Check looks at the host each time, and at the instance metadata now and then.
func (p *PrivateIP) Check(ctx context.Context, term service.Term) error {
	if err := p.host.Check(ctx, term); err != nil {
		return err
	}
	return p.watch.Check(ctx, term.Epoch, func(ctx context.Context) (lost, err error) {
		nic, err := p.nic(ctx)
		if err != nil {
			return nil, err
		}
		return p.look(ctx, nic)
	})
}

// nic is EC2's side of the host's interface.
func (p *PrivateIP) nic(ctx context.Context) (instance.Interface, error) {
	link, err := net.InterfaceByName(p.cfg.Interface)
	if err != nil {
		return instance.Interface{}, fmt.Errorf("%w: find the interface %s: %w", service.ErrHopeless, p.cfg.Interface, err)
	}
	nic, err := p.self.ByMAC(ctx, instance.MAC(link))
	if errors.Is(err, instance.ErrNoInterface) {
		return nic, fmt.Errorf("%w: %s: %w: name the host's interface to the VPC", service.ErrHopeless, p.cfg.Interface, err)
	}
	return nic, err
}

func (p *PrivateIP) client(ctx context.Context) (API, error) {
	if p.cfg.API != nil {
		return p.cfg.API, nil
	}
	return p.ec2.Client(ctx)
}
