// Package permit is the permission to answer clients, kept by the kernel's clock
// (design.md, rule 5.6).
//
// A primary that has lost its lease must fall silent, and cannot be trusted to see to
// that itself: it may have been killed, stopped, or be stuck. nfsd goes on all the
// same, and answers reads out of the page cache without asking anybody. So the kernel
// drops every reply from the service's ports unless an element of an nftables set
// says otherwise, and that element has a timeout, the rest of the lease.
//
//	table inet tandem/CLUSTER/NODE {
//	    set ports { type inet_service; flags timeout }     2049 timeout 2s900ms
//	    set held6 { type ipv6_addr; flags timeout }        2001:db8::9 timeout …
//	    chain output { type filter hook output priority filter
//	        tcp sport 2049 tcp sport != @ports counter drop
//	        udp sport 2049 udp sport != @ports counter drop
//	        icmpv6 type nd-neighbor-advert target 2001:db8::9 != @held6 counter drop
//	        ip saddr 10.0.0.9 ip saddr != @from4 counter drop         with Sources
//	    }
//	    chain input { type filter hook input priority filter      while a planned stop begins
//	        tcp dport 2049 counter drop
//	        udp dport 2049 counter drop
//	    }
//	}
//	table arp tandem/CLUSTER/NODE {
//	    set held4 { type ipv4_addr; flags timeout }        10.0.0.9 timeout …
//	    chain output { type filter hook output priority filter
//	        arp saddr ip 10.0.0.9 != @held4 counter drop
//	    }
//	}
//
// Output is where a reply leaves, whatever interface it leaves by, loopback included:
// a client on this machine (a proxy, an ssh tunnel, an own mount of the export) passes on
// what it reads, and a stale answer is not less stale for having come through lo. Local
// clients of the primary wait with all the others.
//
// The address of the service is silenced by the same clock: a node whose agent is
// stopped still has it, and its kernel would go on to answer "who has 10.0.0.9" beside
// the new primary. That also lets the new primary's duplicate check trust what it hears.
//
// What this does not see: replies of a process in another network namespace (a
// container), and a suspend, during which timeouts stand still and leases do not; after
// a resume the rest of the timeout runs until the agent's first look at its lease.
package permit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Permit is the permission. Its methods may be called in any order and state, by one
// goroutine at a time. None but Install waits longer than two seconds. After an error of Renew or
// Block the permission that was there before still runs out by itself, at its time.
type Permit interface {
	// Install puts the rules in place, without permission. What an earlier life
	// has left is replaced in the same transaction, so that no reply slips through.
	Install(ctx context.Context) error

	// Renew permits until the given time of CLOCK_BOOTTIME, in place of what was
	// permitted before: that the addresses are spoken for, and, with answer, replies
	// from the ports too. The step that takes an address has to announce it, so that
	// comes before the steps; a client that was answered before the last of them is
	// up would be told that its files do not exist. If the time has come before
	// Renew is done (the agent was stopped in between), it blocks and returns ErrLate.
	Renew(ctx context.Context, until int64, answer bool) error

	// Block withdraws the permission: no reply leaves after it has returned.
	Block(ctx context.Context) error

	// Drain keeps requests from coming in at the ports, while replies still leave, until Admit. A
	// planned stop gives the service time for what it has begun: a rename whose reply is lost
	// is asked for again, of the next primary, which finds nothing to rename.
	Drain(ctx context.Context) error

	// Admit ends Drain.
	Admit(ctx context.Context) error

	// Cut destroys the TCP connections of the ports. A reply that was dropped is
	// kept by TCP to be sent again, for a quarter of an hour, also when its
	// process is gone; a node that is primary again by then would send an answer
	// from its earlier term. So Cut comes after the service was stopped, and before
	// the first Renew of a term unless the node itself had the one before.
	Cut(ctx context.Context) error

	// Remove takes the rules away, for good: nothing is blocked any more.
	Remove(ctx context.Context) error
}

var (
	// ErrLate means that the permission's time was over before it could be given.
	ErrLate = errors.New("the permission came too late")

	// ErrUnsupported means that the kernel has no nftables.
	ErrUnsupported = errors.New("this kernel has no nf_tables: load the module nf_tables, or leave ports and vip out of service")
)

// Config says what is guarded.
type Config struct {
	Cluster, Node string       // the table's name; valid names of the config
	Ports         []uint16     // source ports of the service, TCP and UDP
	Addresses     []netip.Addr // of the service, silent without permission

	// Sources has nothing at all leave from the Addresses without permission: a service may
	// not only answer, but speak to clients from ports that nobody knows, as lockd does when
	// it has a lock for one who waited for it.
	Sources bool

	Boottime func() int64 // CLOCK_BOOTTIME, ns
	Log      *slog.Logger
}

// New returns the Permit for cfg, None if there is nothing to guard. It asks the
// kernel nothing.
func New(cfg Config) (Permit, error) {
	if len(cfg.Ports) == 0 && len(cfg.Addresses) == 0 {
		return None{}, nil
	}
	if cfg.Cluster == "" || cfg.Node == "" || cfg.Boottime == nil {
		return nil, errors.New("permit: cluster, node and clock are required")
	}
	for _, p := range cfg.Ports {
		if p == 0 {
			return nil, errors.New("permit: port 0 is none")
		}
	}
	for _, a := range cfg.Addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return nil, fmt.Errorf("permit: %v is not a plain address", a)
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return newTable(cfg), nil
}

// None is the Permit of a service without ports and addresses: what there is to stop,
// the list of steps stops.
type None struct{}

// Install does nothing.
func (None) Install(context.Context) error { return nil }

// Renew does nothing.
func (None) Renew(context.Context, int64, bool) error { return nil }

// Block does nothing.
func (None) Block(context.Context) error { return nil }

// Drain does nothing.
func (None) Drain(context.Context) error { return nil }

// Admit does nothing.
func (None) Admit(context.Context) error { return nil }

// Cut does nothing.
func (None) Cut(context.Context) error { return nil }

// Remove does nothing.
func (None) Remove(context.Context) error { return nil }

// callTime bounds one exchange with the kernel. It takes well under a millisecond,
// unless somebody loads a ruleset of many thousand rules at the same moment.
const callTime = 2 * time.Second

// installTime bounds the first one of a life, for which the kernel may have to load half
// a dozen modules (a machine that is busy booting took more than two seconds).
const installTime = 20 * time.Second

// lateTicks is by how much the kernel's end comes before the lease's, at most: timeouts
// are counted in ticks of 4 or 10 ms, and a tick of a busy virtual machine may be late
// by a few (16 ms were seen, on Linux 6.1 under emulation with its host overloaded).
const lateTicks = 20 * time.Millisecond
