package instance_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/failover/awsclient/awstest"
	"tandem/failover/awsclient/instance"
	"tandem/failover/awsclient/instance/instancetest"
)

func TestMetadata(t *testing.T) {
	n := instancetest.Alone(t, awstest.Identity{InstanceID: "i-1", ENI: "eni-1", MAC: "02:00:00:00:00:0a", PrivateIPs: []string{"10.0.0.1", "10.0.0.9"}})
	m := instance.New(n.Loader)
	ctx := t.Context()
	id, err := m.ID(ctx)
	if err != nil || id != "i-1" {
		t.Errorf("%q, %v", id, err)
	}
	nic, err := m.Primary(ctx)
	if err != nil || nic != (instance.Interface{ID: "eni-1", MAC: "02:00:00:00:00:0a", Address: netip.MustParseAddr("10.0.0.1")}) {
		t.Errorf("%+v, %v", nic, err)
	}
	link := &net.Interface{HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 10}}
	if nic, err = m.ByMAC(ctx, instance.MAC(link)); err != nil || nic.ID != "eni-1" {
		t.Errorf("%+v, %v", nic, err)
	}
	if _, err := m.ByMAC(ctx, "02:00:00:00:00:0b"); !errors.Is(err, instance.ErrNoInterface) {
		t.Errorf("%v", err)
	}
	all, err := m.Addresses(ctx, nic.MAC)
	if want := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.9")}; err != nil || !slices.Equal(all, want) {
		t.Errorf("%v, %v", all, err)
	}

	// What never changes is not asked for again; what does, is.
	n.Metadata.Down(true)
	before := n.Metadata.Requests()
	if id, err := m.ID(ctx); err != nil || id != "i-1" {
		t.Errorf("%q, %v", id, err)
	}
	if nic, err := m.Primary(ctx); err != nil || nic.ID != "eni-1" {
		t.Errorf("%+v, %v", nic, err)
	}
	if n.Metadata.Requests() != before {
		t.Error("it was asked for again")
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := m.Addresses(short, nic.MAC); err == nil {
		t.Error("addresses from nowhere")
	}
	n.Metadata.Down(false)
	n.Metadata.SetPrivateIPs("10.0.0.1", "no address")
	if _, err := m.Addresses(ctx, nic.MAC); err == nil || !strings.Contains(err.Error(), "local-ipv4s") {
		t.Errorf("%v", err)
	}
	n.Metadata.SetPrivateIPs()
	if _, err := m.Addresses(ctx, nic.MAC); err == nil || !strings.Contains(err.Error(), "has nothing as network/interfaces/macs/") {
		t.Errorf("%v", err)
	}
}
