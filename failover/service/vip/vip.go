// Package vip is the service step that holds an address: it is added to an interface
// on the primary and taken away elsewhere, and the network is told.
//
// The record decides who is primary, never the address: an address that both nodes
// have for a moment is a nuisance to clients, no danger to data. Still the step looks
// before it takes one. Somebody who answers for it is another host, misconfigured, or
// the old primary while it cleans up (its kernel keeps it silent otherwise, see package
// permit); taking the address as well would give clients to the one or the other by
// chance. So that is an error that is worth another try.
package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tandem/failover/service"
)

const (
	// probes are asked, probeEvery apart, and the last is waited for as long. RFC 5227
	// wants seconds; a neighbour that is there answers in well under a millisecond,
	// and each of these is a part of every failover.
	probes     = 3
	probeEvery = 100 * time.Millisecond

	// The network is told burst times at once, burstEvery apart, since a broadcast
	// may be lost; with each of the next early checks, for switches that were busy
	// relearning; and after that every announceEvery, for a neighbour that missed it all.
	burst         = 3
	burstEvery    = 20 * time.Millisecond
	early         = 5
	announceEvery = 30 * time.Second
)

var (
	// ErrDuplicate means that somebody else answers for the address.
	ErrDuplicate = errors.New("another host has the address")

	// ErrElsewhere means that this node has the address already, and not by this step.
	ErrElsewhere = errors.New("this node has the address already")

	// ErrLost means that the address or its interface is gone.
	ErrLost = errors.New("the address is gone")
)

// VIP is a service.Step. The Runner calls one method at a time, so it has no lock.
type VIP struct {
	address  netip.Prefix
	iface    string
	assigned bool // the network gives the address to one host at a time
	log      *slog.Logger

	told     int       // announcements by Check since the last Start
	lastTold time.Time // of any announcement
}

// New returns the step for an address with the length of its network, as in
// 10.0.0.9/24, on an interface. log may be nil.
//
// With the kernel's default promote_secondaries=0 the removal of an IPv4 address takes
// those of the same network with it that were added after it; so the node needs an own
// address in that network, or a /32 here.
func New(address netip.Prefix, iface string, log *slog.Logger) *VIP {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &VIP{address: address, iface: iface, log: log}
}

// NewAssigned is New for an address that the network itself gives to one host at a time,
// and has given to this one, as AWS does with an address in a VPC. Nobody is asked who
// has it: there the network answers for all hosts. What configures the host by the
// network's word may have added the address before, with a length of its own choice; then
// it is there, and Stop leaves it to whoever has added it.
func NewAssigned(address netip.Prefix, iface string, log *slog.Logger) *VIP {
	v := New(address, iface, log)
	v.assigned = true
	return v
}

// Start adds the address and tells the network.
func (v *VIP) Start(ctx context.Context, _ service.Term) error {
	link, found, err := v.look()
	if err != nil {
		return err
	}
	held := found.IsValid()
	if link.Flags&net.FlagUp == 0 {
		return fmt.Errorf("add %s: %s is down: ip link set %s up", v.address, v.iface, v.iface)
	}
	var s *socket
	if resolves(link) {
		if s, err = openSocket(link, v.address.Addr()); err != nil {
			return fmt.Errorf("add %s to %s: %w", v.address, v.iface, err)
		}
		defer s.close()
		// What is held already was probed when it was added.
		if !held && !v.assigned {
			if err := v.probe(ctx, s); err != nil {
				return err
			}
		}
	}
	if !held {
		if err := addAddress(link.Index, v.address); err != nil {
			return fmt.Errorf("add %s to %s: %w", v.address, v.iface, err)
		}
	}
	v.told, v.lastTold = 0, time.Now()
	if s == nil {
		return nil
	}
	for i := range burst {
		if i > 0 && !pause(ctx, burstEvery) {
			return context.Cause(ctx)
		}
		if err := s.announce(); err != nil {
			return fmt.Errorf("announce %s on %s: %w", v.address.Addr(), v.iface, err)
		}
	}
	return nil
}

// Stop removes the address. An interface that is gone has taken it along.
func (v *VIP) Stop(_ context.Context, _ service.Term) error {
	link, found, err := v.look()
	switch {
	case errors.Is(err, errNoInterface):
		return nil
	case errors.Is(err, ErrElsewhere):
		return nil // not ours to take away
	case err != nil:
		return err
	case found != v.address:
		return nil // it is not there, or another's
	}
	if err := removeAddress(link.Index, v.address); err != nil {
		return fmt.Errorf("remove %s from %s: %w", v.address, v.iface, err)
	}
	return nil
}

// Check says whether the address is there, and announces it from time to time.
func (v *VIP) Check(_ context.Context, _ service.Term) error {
	link, found, err := v.look()
	switch {
	case err != nil:
		return err
	case !found.IsValid():
		return fmt.Errorf("%w: %s is not on %s", ErrLost, v.address, v.iface)
	case link.Flags&net.FlagUp == 0:
		return fmt.Errorf("%w: %s is down", ErrLost, v.iface)
	}
	// An address that is held before the first Start in this life is announced by
	// that check, once, which does no harm.
	if !resolves(link) || v.told >= early && time.Since(v.lastTold) < announceEvery {
		return nil
	}
	v.told, v.lastTold = v.told+1, time.Now()
	s, err := openSocket(link, v.address.Addr())
	if err == nil {
		defer s.close()
		err = s.announce()
	}
	if err != nil {
		// The address is there, and that is the question.
		v.log.Warn("cannot announce the service's address", "address", v.address, "interface", v.iface, "err", err)
	}
	return nil
}

var errNoInterface = errors.New("there is no such interface")

// look finds the interface, and the address on it; found is not valid if it is not there.
func (v *VIP) look() (link *net.Interface, found netip.Prefix, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, found, fmt.Errorf("list interfaces: %w", err)
	}
	var names []string
	for i := range all {
		names = append(names, all[i].Name)
		if all[i].Name == v.iface {
			link = &all[i]
		}
	}
	if link == nil {
		return nil, found, fmt.Errorf("%w: %w: %s; there are %s", service.ErrHopeless, errNoInterface, v.iface, strings.Join(names, ", "))
	}
	for i := range all {
		addrs, err := all[i].Addrs()
		if err != nil {
			return nil, found, fmt.Errorf("list the addresses of %s: %w", all[i].Name, err)
		}
		at := slices.IndexFunc(addrs, func(a net.Addr) bool { return asPrefix(a).Addr() == v.address.Addr() })
		switch {
		case at < 0:
		case &all[i] == link && (v.assigned || asPrefix(addrs[at]) == v.address):
			found = asPrefix(addrs[at])
		default:
			return nil, found, fmt.Errorf("%w: %w: %s on %s: remove it there", service.ErrHopeless, ErrElsewhere, addrs[at], all[i].Name)
		}
	}
	return link, found, nil
}

func asPrefix(a net.Addr) netip.Prefix {
	n, ok := a.(*net.IPNet)
	if !ok {
		return netip.Prefix{}
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}

// resolves says whether neighbours on the link have to be asked and told. They do
// not on loopback and on tunnels.
func resolves(link *net.Interface) bool {
	return link.Flags&net.FlagLoopback == 0 && link.Flags&net.FlagPointToPoint == 0 && len(link.HardwareAddr) == macLen
}

// probe asks whether somebody has the address.
func (v *VIP) probe(ctx context.Context, s *socket) error {
	for range probes {
		if err := s.probe(); err != nil {
			return fmt.Errorf("look for another %s on %s: %w", v.address.Addr(), v.iface, err)
		}
		for end := time.Now().Add(probeEvery); time.Now().Before(end); {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			who, err := s.hear()
			if err != nil {
				return fmt.Errorf("look for another %s on %s: %w", v.address.Addr(), v.iface, err)
			}
			if who != nil {
				return fmt.Errorf("%w: %s on %s is at %s", ErrDuplicate, v.address.Addr(), v.iface, who)
			}
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
