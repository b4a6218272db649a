package instance

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// Client is those operations of *ec2.Client that somebody here asks for.
//
// It has them as functions, and not the client itself: of a type that reaches an interface
// the linker keeps every method, and here that would be all of EC2, 40 MB in each program.
type Client struct {
	assignPrivateIPAddresses   operation[ec2.AssignPrivateIpAddressesInput, ec2.AssignPrivateIpAddressesOutput]
	associateAddress           operation[ec2.AssociateAddressInput, ec2.AssociateAddressOutput]
	createRoute                operation[ec2.CreateRouteInput, ec2.CreateRouteOutput]
	describeAddresses          operation[ec2.DescribeAddressesInput, ec2.DescribeAddressesOutput]
	describeInstanceTypes      operation[ec2.DescribeInstanceTypesInput, ec2.DescribeInstanceTypesOutput]
	describeInstances          operation[ec2.DescribeInstancesInput, ec2.DescribeInstancesOutput]
	describeNetworkInterfaces  operation[ec2.DescribeNetworkInterfacesInput, ec2.DescribeNetworkInterfacesOutput]
	describeRouteTables        operation[ec2.DescribeRouteTablesInput, ec2.DescribeRouteTablesOutput]
	describeVolumes            operation[ec2.DescribeVolumesInput, ec2.DescribeVolumesOutput]
	detachVolume               operation[ec2.DetachVolumeInput, ec2.DetachVolumeOutput]
	disassociateAddress        operation[ec2.DisassociateAddressInput, ec2.DisassociateAddressOutput]
	replaceRoute               operation[ec2.ReplaceRouteInput, ec2.ReplaceRouteOutput]
	stopInstances              operation[ec2.StopInstancesInput, ec2.StopInstancesOutput]
	unassignPrivateIPAddresses operation[ec2.UnassignPrivateIpAddressesInput, ec2.UnassignPrivateIpAddressesOutput]
}

type operation[I, O any] func(context.Context, *I, ...func(*ec2.Options)) (*O, error)

func newClient(c *ec2.Client) *Client {
	return &Client{
		assignPrivateIPAddresses:   c.AssignPrivateIpAddresses,
		associateAddress:           c.AssociateAddress,
		createRoute:                c.CreateRoute,
		describeAddresses:          c.DescribeAddresses,
		describeInstanceTypes:      c.DescribeInstanceTypes,
		describeInstances:          c.DescribeInstances,
		describeNetworkInterfaces:  c.DescribeNetworkInterfaces,
		describeRouteTables:        c.DescribeRouteTables,
		describeVolumes:            c.DescribeVolumes,
		detachVolume:               c.DetachVolume,
		disassociateAddress:        c.DisassociateAddress,
		replaceRoute:               c.ReplaceRoute,
		stopInstances:              c.StopInstances,
		unassignPrivateIPAddresses: c.UnassignPrivateIpAddresses,
	}
}

// AssignPrivateIpAddresses is *ec2.Client's.
//
//nolint:revive,staticcheck // the SDK's name
func (c *Client) AssignPrivateIpAddresses(ctx context.Context, in *ec2.AssignPrivateIpAddressesInput, o ...func(*ec2.Options)) (*ec2.AssignPrivateIpAddressesOutput, error) {
	return c.assignPrivateIPAddresses(ctx, in, o...)
}

// AssociateAddress is *ec2.Client's.
func (c *Client) AssociateAddress(ctx context.Context, in *ec2.AssociateAddressInput, o ...func(*ec2.Options)) (*ec2.AssociateAddressOutput, error) {
	return c.associateAddress(ctx, in, o...)
}

// CreateRoute is *ec2.Client's.
func (c *Client) CreateRoute(ctx context.Context, in *ec2.CreateRouteInput, o ...func(*ec2.Options)) (*ec2.CreateRouteOutput, error) {
	return c.createRoute(ctx, in, o...)
}

// DescribeAddresses is *ec2.Client's.
func (c *Client) DescribeAddresses(ctx context.Context, in *ec2.DescribeAddressesInput, o ...func(*ec2.Options)) (*ec2.DescribeAddressesOutput, error) {
	return c.describeAddresses(ctx, in, o...)
}

// DescribeInstanceTypes is *ec2.Client's.
func (c *Client) DescribeInstanceTypes(ctx context.Context, in *ec2.DescribeInstanceTypesInput, o ...func(*ec2.Options)) (*ec2.DescribeInstanceTypesOutput, error) {
	return c.describeInstanceTypes(ctx, in, o...)
}

// DescribeInstances is *ec2.Client's.
func (c *Client) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, o ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	return c.describeInstances(ctx, in, o...)
}

// DescribeNetworkInterfaces is *ec2.Client's.
func (c *Client) DescribeNetworkInterfaces(ctx context.Context, in *ec2.DescribeNetworkInterfacesInput, o ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	return c.describeNetworkInterfaces(ctx, in, o...)
}

// DescribeRouteTables is *ec2.Client's.
func (c *Client) DescribeRouteTables(ctx context.Context, in *ec2.DescribeRouteTablesInput, o ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error) {
	return c.describeRouteTables(ctx, in, o...)
}

// DescribeVolumes is *ec2.Client's.
func (c *Client) DescribeVolumes(ctx context.Context, in *ec2.DescribeVolumesInput, o ...func(*ec2.Options)) (*ec2.DescribeVolumesOutput, error) {
	return c.describeVolumes(ctx, in, o...)
}

// DetachVolume is *ec2.Client's.
func (c *Client) DetachVolume(ctx context.Context, in *ec2.DetachVolumeInput, o ...func(*ec2.Options)) (*ec2.DetachVolumeOutput, error) {
	return c.detachVolume(ctx, in, o...)
}

// DisassociateAddress is *ec2.Client's.
func (c *Client) DisassociateAddress(ctx context.Context, in *ec2.DisassociateAddressInput, o ...func(*ec2.Options)) (*ec2.DisassociateAddressOutput, error) {
	return c.disassociateAddress(ctx, in, o...)
}

// ReplaceRoute is *ec2.Client's.
func (c *Client) ReplaceRoute(ctx context.Context, in *ec2.ReplaceRouteInput, o ...func(*ec2.Options)) (*ec2.ReplaceRouteOutput, error) {
	return c.replaceRoute(ctx, in, o...)
}

// StopInstances is *ec2.Client's.
func (c *Client) StopInstances(ctx context.Context, in *ec2.StopInstancesInput, o ...func(*ec2.Options)) (*ec2.StopInstancesOutput, error) {
	return c.stopInstances(ctx, in, o...)
}

// UnassignPrivateIpAddresses is *ec2.Client's.
//
//nolint:revive,staticcheck // the SDK's name
func (c *Client) UnassignPrivateIpAddresses(ctx context.Context, in *ec2.UnassignPrivateIpAddressesInput, o ...func(*ec2.Options)) (*ec2.UnassignPrivateIpAddressesOutput, error) {
	return c.unassignPrivateIPAddresses(ctx, in, o...)
}
