// Package overlayroute is the service step that holds an overlay address: one outside of
// the VPC's own networks, to which a route leads in every route table of those who use it.
// It is the way to have one address in two zones.
//
// AWS replaces a route for the last who asks, so it decides nothing (see package claim).
//
// Stop deletes no route. A route to a node that is no longer primary leads to one that
// does not have the address, and the next primary replaces it, in the same request that it
// needs anyway; a deletion would be one more request that can come late, then to take the
// new primary's route away: it is named by its destination, not by its target.
package overlayroute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

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
	DescribeNetworkInterfaces(context.Context, *ec2.DescribeNetworkInterfacesInput, ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error)
	DescribeRouteTables(context.Context, *ec2.DescribeRouteTablesInput, ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error)
	ReplaceRoute(context.Context, *ec2.ReplaceRouteInput, ...func(*ec2.Options)) (*ec2.ReplaceRouteOutput, error)
	CreateRoute(context.Context, *ec2.CreateRouteInput, ...func(*ec2.Options)) (*ec2.CreateRouteOutput, error)
}

// Config is what New needs.
type Config struct {
	CIDR   netip.Prefix // IPv4, of length 32: the address itself
	Tables []string     // rtb-…, all that lead clients or the nodes themselves
	Loader *awsclient.Loader
	API    API // nil: EC2, by the Loader
	Log    *slog.Logger

	// Interface of the host that gets the address; empty: lo, so that the host answers
	// for it whatever way it comes.
	Interface string
}

// Route is a service.Step. The Runner calls one method at a time, so it has no lock.
type Route struct {
	cfg   Config
	ec2   *instance.EC2
	self  *instance.Metadata
	host  *vip.VIP
	watch claim.Watch
}

// ErrSourceCheck means that EC2 drops what is sent to the address.
var ErrSourceCheck = errors.New("the source/destination check is on, so EC2 drops what is not sent to the interface's own addresses")

// New returns the step. It asks nobody yet.
func New(cfg Config) *Route {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Interface == "" {
		cfg.Interface = "lo"
	}
	return &Route{
		cfg: cfg, ec2: instance.NewEC2(cfg.Loader), self: instance.New(cfg.Loader),
		host: vip.New(cfg.CIDR, cfg.Interface, cfg.Log),
	}
}

// target is where a table's route leads.
type target struct {
	exists bool
	nic    string // empty: to something else than a network interface
}

// Start adds the address to the host and leads the routes of all tables here.
func (r *Route) Start(ctx context.Context, term service.Term) error {
	api, nic, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	if err := r.checkSource(ctx, api, nic); err != nil {
		return err
	}
	if err := r.host.Start(ctx, term); err != nil {
		return err
	}
	if err := r.lead(ctx, api, nic); err != nil {
		return err
	}
	r.watch.Held(term.Epoch)
	return nil
}

// checkSource demands that EC2 lets through what is sent to an address that is not the
// interface's. It is asked for in each start: a replaced instance comes with it on.
func (r *Route) checkSource(ctx context.Context, api API, nic instance.Interface) error {
	out, err := api.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{nic.ID}})
	if err != nil {
		err = claim.Told("DescribeNetworkInterfaces", "look whether the source/destination check of "+nic.ID+" is off", err)
		if claim.Final(err) || ctx.Err() != nil {
			return err
		}
		r.cfg.Log.Warn("the routes are led here all the same", "err", err)
		return nil
	}
	for _, n := range out.NetworkInterfaces {
		if aws.ToString(n.NetworkInterfaceId) == nic.ID && aws.ToBool(n.SourceDestCheck) {
			return fmt.Errorf("%w: %s: %w: aws ec2 modify-network-interface-attribute --network-interface-id %s --no-source-dest-check",
				service.ErrHopeless, nic.ID, ErrSourceCheck, nic.ID)
		}
	}
	return nil
}

// lead has the routes of all tables lead to nic, each by one request that AWS has said yes
// to, and reads them back. A table that refuses does not keep the others from it.
func (r *Route) lead(ctx context.Context, api API, nic instance.Interface) error {
	open := slices.Clone(r.cfg.Tables) // without a yes
	var pauses claim.Pauses
	for {
		at, unknown := r.find(ctx, api)
		if claim.Final(unknown) {
			return claim.Told("DescribeRouteTables", "look for the routes to "+r.cfg.CIDR.String(), unknown)
		}
		var left []string
		var failed, final error
		for _, table := range open {
			if at[table].nic == nic.ID {
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			// What is not known is replaced: after the first term that is right.
			err := r.set(ctx, api, table, nic, unknown != nil || at[table].exists)
			switch {
			case err == nil:
			case claim.Final(err):
				final = errors.Join(final, err)
			default:
				failed = errors.Join(failed, err)
				left = append(left, table)
			}
		}
		if final != nil {
			return final
		}
		if open = left; len(open) == 0 {
			break
		}
		if !pauses.Wait(ctx) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), failed)
		}
	}
	lost, unanswered := claim.Confirm(ctx, func(ctx context.Context) (lost, err error) { return r.look(ctx, api, nic) })
	if lost != nil {
		return fmt.Errorf("lead %s to %s: AWS has said that it is done, but: %w", r.cfg.CIDR, nic.ID, lost)
	}
	if unanswered != nil {
		r.cfg.Log.Warn("the routes are set, and cannot be read back", "cidr", r.cfg.CIDR, "err", unanswered)
	}
	return nil
}

// set replaces a route or creates it; if it is not, or is, there after all, the other.
func (r *Route) set(ctx context.Context, api API, table string, nic instance.Interface, exists bool) error {
	cidr := aws.String(r.cfg.CIDR.String())
	doing := "lead " + *cidr + " to " + nic.ID + " in " + table
	replace := func() error {
		_, err := api.ReplaceRoute(ctx, &ec2.ReplaceRouteInput{RouteTableId: &table, DestinationCidrBlock: cidr, NetworkInterfaceId: &nic.ID})
		return err
	}
	create := func() error {
		_, err := api.CreateRoute(ctx, &ec2.CreateRouteInput{RouteTableId: &table, DestinationCidrBlock: cidr, NetworkInterfaceId: &nic.ID})
		return err
	}
	if !exists {
		err := create()
		if awsclient.Code(err) != "RouteAlreadyExists" {
			return told("CreateRoute", doing, err)
		}
		return told("ReplaceRoute", doing, replace())
	}
	err := replace()
	switch awsclient.Code(err) {
	// The latter is documented; the former, with "Use CreateRoute instead", is what comes.
	case "InvalidParameterValue", "InvalidRoute.NotFound":
		return told("CreateRoute", doing, create())
	}
	return told("ReplaceRoute", doing, err)
}

func told(action, doing string, err error) error {
	if err == nil {
		return nil
	}
	return claim.Told(action, doing, err)
}

// Stop takes the address from the host. The routes stay, see above.
func (r *Route) Stop(ctx context.Context, term service.Term) error {
	r.watch.Reset()
	return r.host.Stop(ctx, term)
}

// Check looks at the host each time, and at the routes now and then.
func (r *Route) Check(ctx context.Context, term service.Term) error {
	if err := r.host.Check(ctx, term); err != nil {
		return err
	}
	return r.watch.Check(ctx, term.Epoch, func(ctx context.Context) (lost, err error) {
		api, nic, err := r.prepare(ctx)
		if err != nil {
			return nil, err
		}
		return r.look(ctx, api, nic)
	})
}

// look says whether all routes lead to nic.
func (r *Route) look(ctx context.Context, api API, nic instance.Interface) (lost, err error) {
	at, err := r.find(ctx, api)
	if err != nil {
		return nil, claim.Told("DescribeRouteTables", "look for the routes to "+r.cfg.CIDR.String(), err)
	}
	var wrong []string
	for _, table := range r.cfg.Tables {
		switch t := at[table]; {
		case t.nic == nic.ID:
		case !t.exists:
			wrong = append(wrong, table+" has no route")
		case t.nic == "":
			wrong = append(wrong, table+" leads to no network interface")
		default:
			wrong = append(wrong, table+" leads to "+t.nic)
		}
	}
	if wrong != nil {
		return fmt.Errorf("%w: %s: %s", claim.ErrLost, r.cfg.CIDR, strings.Join(wrong, ", ")), nil
	}
	return nil, nil
}

// find returns where the route of each table leads.
func (r *Route) find(ctx context.Context, api API) (map[string]target, error) {
	out, err := api.DescribeRouteTables(ctx, &ec2.DescribeRouteTablesInput{RouteTableIds: r.cfg.Tables})
	if err != nil {
		return nil, err
	}
	at := make(map[string]target)
	for _, table := range out.RouteTables {
		for _, route := range table.Routes {
			if aws.ToString(route.DestinationCidrBlock) == r.cfg.CIDR.String() {
				at[aws.ToString(table.RouteTableId)] = target{exists: true, nic: aws.ToString(route.NetworkInterfaceId)}
			}
		}
	}
	return at, nil
}

func (r *Route) prepare(ctx context.Context) (API, instance.Interface, error) {
	nic, err := r.self.Primary(ctx)
	if err != nil {
		return nil, nic, err
	}
	if r.cfg.API != nil {
		return r.cfg.API, nic, nil
	}
	api, err := r.ec2.Client(ctx)
	return api, nic, err
}
