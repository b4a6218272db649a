// Package eip is the service step that holds an Elastic IP: an address that clients
// outside of the VPC reach the primary at.
//
// AWS moves it to the last who asks, so it decides nothing (see package claim). A request
// of an old primary that was on its way when its term ended may still arrive after the new
// one's; the new one's Check finds that and takes the address again.
package eip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"tandem/failover/awsclient"
	"tandem/failover/awsclient/instance"
	"tandem/failover/service"
	"tandem/failover/service/claim"
)

// API is what is asked of EC2. *instance.Client has it.
type API interface {
	DescribeAddresses(context.Context, *ec2.DescribeAddressesInput, ...func(*ec2.Options)) (*ec2.DescribeAddressesOutput, error)
	AssociateAddress(context.Context, *ec2.AssociateAddressInput, ...func(*ec2.Options)) (*ec2.AssociateAddressOutput, error)
	DisassociateAddress(context.Context, *ec2.DisassociateAddressInput, ...func(*ec2.Options)) (*ec2.DisassociateAddressOutput, error)
}

// Config is what New needs.
type Config struct {
	Allocation string // eipalloc-…
	Loader     *awsclient.Loader
	API        API // nil: EC2, by the Loader
	Log        *slog.Logger
}

// EIP is a service.Step. The Runner calls one method at a time, so it has no lock.
type EIP struct {
	cfg   Config
	ec2   *instance.EC2
	self  *instance.Metadata
	watch claim.Watch

	// own is the id of the association that this node has made or found to be its own,
	// until it was ended. Each association has an id of its own, also if it is the same
	// address and instance again: to end this one can end nobody else's.
	own string
}

// New returns the step. It asks nobody yet.
func New(cfg Config) *EIP {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &EIP{cfg: cfg, ec2: instance.NewEC2(cfg.Loader), self: instance.New(cfg.Loader)}
}

// association is where the address is; the zero value: nowhere.
type association struct {
	id, nic, address, instance string
}

// Start has the address associated with the primary private address of this instance.
func (e *EIP) Start(ctx context.Context, term service.Term) error {
	api, nic, err := e.prepare(ctx)
	if err != nil {
		return err
	}
	var pauses claim.Pauses
	for {
		// A repeat of what holds is a remap, which AWS may bill.
		at, err := e.find(ctx, api)
		if err == nil && at.of(nic) {
			e.own = at.id
			e.watch.Held(term.Epoch)
			return nil
		}
		if claim.Final(err) {
			return claim.Told("DescribeAddresses", "look for "+e.cfg.Allocation, err)
		}
		// Where it is otherwise, also if that is not known, does not matter: it is to be here.
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		e.own = "" // the association that there was ends with the new one
		out, err := api.AssociateAddress(ctx, &ec2.AssociateAddressInput{
			AllocationId: &e.cfg.Allocation, NetworkInterfaceId: &nic.ID, PrivateIpAddress: aws.String(nic.Address.String()),
			AllowReassociation: aws.Bool(true),
		})
		if err == nil {
			e.own = aws.ToString(out.AssociationId)
			return e.confirm(ctx, api, nic, term)
		}
		err = claim.Told("AssociateAddress", "associate "+e.cfg.Allocation+" with "+nic.ID, err)
		if claim.Final(err) {
			return err
		}
		// It may have been done, and only the answer be lost.
		if !pauses.Wait(ctx) {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// confirm reads back the association that was just made.
func (e *EIP) confirm(ctx context.Context, api API, nic instance.Interface, term service.Term) error {
	lost, unanswered := claim.Confirm(ctx, func(ctx context.Context) (lost, err error) { return e.look(ctx, api, nic) })
	if lost != nil {
		return fmt.Errorf("associate %s with %s: AWS has said that it is done, but: %w", e.cfg.Allocation, nic.ID, lost)
	}
	if unanswered != nil {
		e.cfg.Log.Warn("the Elastic IP is associated, and cannot be read back", "allocation", e.cfg.Allocation, "err", unanswered)
	}
	e.watch.Held(term.Epoch)
	return nil
}

// Stop ends this node's own association, and nobody else's. If AWS cannot be reached for
// that, it stays until the next primary takes the address.
func (e *EIP) Stop(ctx context.Context, _ service.Term) error {
	e.watch.Reset()
	ctx, cancel := context.WithTimeout(ctx, claim.GiveBack)
	defer cancel()
	if err := e.release(ctx); err != nil {
		e.cfg.Log.Warn("the Elastic IP stays with this node until the next primary takes it", "allocation", e.cfg.Allocation, "err", err)
	}
	return nil
}

func (e *EIP) release(ctx context.Context) error {
	api, err := e.client(ctx)
	if err != nil {
		return err
	}
	if e.own != "" {
		gone, err := e.end(ctx, api, e.own)
		if err != nil {
			return err
		}
		e.own = ""
		if !gone {
			return nil
		}
	}
	// After a start whose answer was lost, or that another life of this agent has made.
	nic, err := e.self.Primary(ctx)
	if err != nil {
		return err
	}
	at, err := e.find(ctx, api)
	if err != nil {
		return claim.Told("DescribeAddresses", "look for "+e.cfg.Allocation, err)
	}
	if !at.of(nic) {
		return nil
	}
	_, err = e.end(ctx, api, at.id)
	return err
}

// end ends an association, and says whether it was gone already.
func (e *EIP) end(ctx context.Context, api API, id string) (gone bool, err error) {
	_, err = api.DisassociateAddress(ctx, &ec2.DisassociateAddressInput{AssociationId: &id})
	if awsclient.Code(err) == "InvalidAssociationID.NotFound" {
		return true, nil
	}
	if err != nil {
		return false, claim.Told("DisassociateAddress", "end "+id, err)
	}
	return false, nil
}

// Check asks AWS now and then whether the address is still here.
func (e *EIP) Check(ctx context.Context, term service.Term) error {
	return e.watch.Check(ctx, term.Epoch, func(ctx context.Context) (lost, err error) {
		api, nic, err := e.prepare(ctx)
		if err != nil {
			return nil, err
		}
		return e.look(ctx, api, nic)
	})
}

// look says whether the address is this node's.
func (e *EIP) look(ctx context.Context, api API, nic instance.Interface) (lost, err error) {
	at, err := e.find(ctx, api)
	switch {
	case err != nil:
		return nil, claim.Told("DescribeAddresses", "look for "+e.cfg.Allocation, err)
	case at.of(nic):
		if e.own == "" {
			e.own = at.id
		}
		return nil, nil
	case at.id == "":
		return fmt.Errorf("%w: %s is associated with nothing", claim.ErrLost, e.cfg.Allocation), nil
	}
	return fmt.Errorf("%w: %s is with %s, %s, %s", claim.ErrLost, e.cfg.Allocation, at.instance, at.nic, at.address), nil
}

func (e *EIP) find(ctx context.Context, api API) (association, error) {
	out, err := api.DescribeAddresses(ctx, &ec2.DescribeAddressesInput{AllocationIds: []string{e.cfg.Allocation}})
	if err != nil {
		return association{}, err
	}
	for _, a := range out.Addresses {
		if aws.ToString(a.AllocationId) == e.cfg.Allocation {
			return association{
				id: aws.ToString(a.AssociationId), nic: aws.ToString(a.NetworkInterfaceId),
				address: aws.ToString(a.PrivateIpAddress), instance: aws.ToString(a.InstanceId),
			}, nil
		}
	}
	return association{}, errors.New("AWS's answer does not have the allocation that was asked for")
}

// of says whether it is an association with the interface's primary address.
func (a association) of(nic instance.Interface) bool {
	return a.id != "" && a.nic == nic.ID && a.address == nic.Address.String()
}

func (e *EIP) prepare(ctx context.Context) (API, instance.Interface, error) {
	nic, err := e.self.Primary(ctx)
	if err != nil {
		return nil, nic, err
	}
	api, err := e.client(ctx)
	return api, nic, err
}

func (e *EIP) client(ctx context.Context) (API, error) {
	if e.cfg.API != nil {
		return e.cfg.API, nil
	}
	return e.ec2.Client(ctx)
}
