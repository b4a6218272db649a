package permit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The offsets of what the rules look at.
const (
	arpSenderIP  = 14 // in an ARP packet for IPv4 over Ethernet, RFC 826
	ip4Source    = 12 // RFC 791
	ip6Source    = 8  // RFC 8200
	ndTarget     = 8  // in a neighbour advertisement, RFC 4861
	ndAdvertises = 136

	destinationPort = 2 // of TCP and of UDP
	reg             = 1 // the register that every expression uses
	arpHookOutput   = 1 // NF_ARP_OUT; the inet families count differently
)

// inputChain is there while requests are kept out.
const inputChain = "input"

// portSet is the name of the set that holds the ports; all others hold addresses.
const portSet = "ports"

// table is the Permit over nftables. Every transaction is made anew on a socket of
// its own: one that is kept would have to be brought back into step after each error.
type table struct {
	cfg  Config
	inet *nftables.Table
	arp  *nftables.Table // nil: no IPv4 address

	// sets with what belongs into each; those without keys are not made.
	sets []*set

	// options is where a test puts its own socket.
	options []nftables.ConnOption
}

type set struct {
	*nftables.Set
	keys [][]byte
}

func newTable(cfg Config) *table {
	name := "tandem/" + cfg.Cluster + "/" + cfg.Node
	t := &table{cfg: cfg, inet: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	var ports, held4, held6 [][]byte
	for _, p := range cfg.Ports {
		ports = append(ports, binaryutil.BigEndian.PutUint16(p))
	}
	for _, a := range cfg.Addresses {
		if a.Is4() {
			held4 = append(held4, a.AsSlice())
		} else {
			held6 = append(held6, a.AsSlice())
		}
	}
	t.addSet(t.inet, portSet, nftables.TypeInetService, ports)
	t.addSet(t.inet, "held6", nftables.TypeIP6Addr, held6)
	if cfg.Sources {
		t.addSet(t.inet, "from4", nftables.TypeIPAddr, held4)
		t.addSet(t.inet, "from6", nftables.TypeIP6Addr, held6)
	}
	if len(held4) > 0 {
		t.arp = &nftables.Table{Name: name, Family: nftables.TableFamilyARP}
		t.addSet(t.arp, "held4", nftables.TypeIPAddr, held4)
	}
	return t
}

func (t *table) addSet(in *nftables.Table, name string, key nftables.SetDatatype, keys [][]byte) {
	if len(keys) > 0 {
		// The number only has to be unique in a transaction. Left at 0, the library
		// would draw it from a counter that all its users share.
		s := &nftables.Set{Table: in, Name: name, ID: uint32(len(t.sets) + 1), KeyType: key, HasTimeout: true}
		t.sets = append(t.sets, &set{s, keys})
	}
}

func (t *table) tables() []*nftables.Table {
	if t.arp == nil {
		return []*nftables.Table{t.inet}
	}
	return []*nftables.Table{t.inet, t.arp}
}

// Install is Permit's.
func (t *table) Install(ctx context.Context) error {
	return t.transactWithin(ctx, installTime, "install the permission's rules", func(c *nftables.Conn) error { return t.install(c, grant{}) })
}

// Renew is Permit's.
func (t *table) Renew(ctx context.Context, until int64, answer bool) error {
	err := t.withdrawOrReplace(ctx, "renew the permission to answer", func() grant {
		rest := time.Duration(until - t.cfg.Boottime())
		return grant{rest - min(rest/10, lateTicks), answer}
	})
	if err != nil {
		return err
	}
	// Whoever stopped us between the look at the clock and the kernel's start of
	// the timeout has made it too long.
	if t.cfg.Boottime() >= until {
		return errors.Join(ErrLate, t.Block(ctx))
	}
	return nil
}

// Block is Permit's.
func (t *table) Block(ctx context.Context) error {
	return t.withdrawOrReplace(ctx, "withdraw the permission to answer", func() grant { return grant{} })
}

// withdrawOrReplace empties the sets, and fills them again for the rest if there is
// one, in one transaction. Emptying them does not mind an element that has expired
// meanwhile, where deleting it would fail.
func (t *table) withdrawOrReplace(ctx context.Context, what string, rest func() grant) error {
	err := t.transact(ctx, what, func(c *nftables.Conn) error {
		for _, s := range t.sets {
			c.FlushSet(s.Set)
		}
		return t.fill(c, rest())
	})
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// `nft flush ruleset`, or a reload of the host's firewall.
	t.cfg.Log.Warn("the permission's nftables table was removed by somebody: replies were not blocked meanwhile", "table", t.inet.Name)
	return t.transact(ctx, what, func(c *nftables.Conn) error { return t.install(c, rest()) })
}

// Drain is Permit's.
func (t *table) Drain(ctx context.Context) error {
	return t.transact(ctx, "keep requests from coming in", func(c *nftables.Conn) error {
		c.AddTable(t.inet)
		accept := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{
			Name: inputChain, Table: t.inet, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
			Priority: nftables.ChainPriorityFilter, Policy: &accept,
		})
		c.FlushChain(chain)
		for _, s := range t.sets {
			if s.Name != portSet {
				continue
			}
			for _, key := range s.keys {
				for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
					c.AddRule(&nftables.Rule{Table: t.inet, Chain: chain, Exprs: []expr.Any{
						&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{proto}},
						&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: destinationPort, Len: uint32(len(key))},
						&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: key}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop},
					}})
				}
			}
		}
		return nil
	})
}

// Admit is Permit's.
func (t *table) Admit(ctx context.Context) error {
	return t.transact(ctx, "let requests come in", func(c *nftables.Conn) error {
		c.AddTable(t.inet)
		chain := c.AddChain(&nftables.Chain{Name: inputChain, Table: t.inet}) // so that there is one
		c.FlushChain(chain)
		c.DelChain(chain)
		return nil
	})
}

// Remove is Permit's.
func (t *table) Remove(ctx context.Context) error {
	return t.transact(ctx, "remove the permission's rules", func(c *nftables.Conn) error {
		for _, in := range t.tables() {
			c.AddTable(in) // so that the next line finds one
			c.DelTable(in)
		}
		return nil
	})
}

// install makes everything anew: AddTable does nothing where there is a table, and
// DelTable takes an old one with all that is in it, other rules than ours included.
func (t *table) install(c *nftables.Conn, g grant) error {
	for _, in := range t.tables() {
		c.AddTable(in)
		c.DelTable(in)
		c.AddTable(in)
	}
	for _, s := range t.sets {
		if err := c.AddSet(s.Set, nil); err != nil {
			return err
		}
	}
	for _, s := range t.sets {
		chain := t.chain(c, s)
		for _, key := range s.keys {
			for _, rule := range rules(s, key) {
				c.AddRule(&nftables.Rule{Table: s.Table, Chain: chain, Exprs: rule})
			}
		}
	}
	return t.fill(c, g)
}

// chain is the output chain of the set's table. Adding it again does nothing.
func (t *table) chain(c *nftables.Conn, s *set) *nftables.Chain {
	hook := nftables.ChainHookOutput
	if s.Table == t.arp {
		hook = nftables.ChainHookRef(arpHookOutput)
	}
	accept := nftables.ChainPolicyAccept
	return c.AddChain(&nftables.Chain{
		Name: "output", Table: s.Table, Type: nftables.ChainTypeFilter, Hooknum: hook,
		Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
}

// grant is a permission: for how long, and whether it is for the ports as well.
type grant struct {
	rest   time.Duration
	answer bool
}

// fill permits for the rest. The kernel counts in milliseconds, and a timeout of
// none would last for ever.
func (t *table) fill(c *nftables.Conn, g grant) error {
	rest := g.rest.Truncate(time.Millisecond)
	if rest <= 0 {
		return nil
	}
	for _, s := range t.sets {
		if s.Name == portSet && !g.answer {
			continue
		}
		var elements []nftables.SetElement
		for _, key := range s.keys {
			elements = append(elements, nftables.SetElement{Key: key, Timeout: rest})
		}
		if err := c.SetAddElements(s.Set, elements); err != nil {
			return err
		}
	}
	return nil
}

// rules drop what carries key, unless the set has it.
func rules(s *set, key []byte) (all [][]expr.Any) {
	network := func(offset int) *expr.Payload {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(offset), Len: uint32(len(key))}
	}
	transport := func(offset, length int) *expr.Payload {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: uint32(offset), Len: uint32(length)}
	}
	is := func(data ...byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }
	protocol := &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}
	end := func(rule ...expr.Any) []expr.Any {
		return append(rule, is(key...), &expr.Lookup{SourceRegister: reg, SetName: s.Name, SetID: s.ID, Invert: true},
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
	}
	switch s.Name {
	case portSet:
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			all = append(all, end(protocol, is(proto), transport(0, len(key))))
		}
	case "held4":
		all = append(all, end(network(arpSenderIP)))
	case "from4", "from6":
		family, offset := byte(unix.NFPROTO_IPV4), ip4Source
		if s.Name == "from6" {
			family, offset = unix.NFPROTO_IPV6, ip6Source
		}
		all = append(all, end(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, is(family), network(offset)))
	case "held6":
		all = append(all, end(protocol, is(unix.IPPROTO_ICMPV6), transport(0, 1), is(ndAdvertises), transport(ndTarget, len(key))))
	}
	return all
}

// transact sends what build puts into the batch, all or nothing.
func (t *table) transact(ctx context.Context, what string, build func(*nftables.Conn) error) error {
	return t.transactWithin(ctx, callTime, what, build)
}

func (t *table) transactWithin(ctx context.Context, limit time.Duration, what string, build func(*nftables.Conn) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	deadline := time.Now().Add(limit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	bounded := nftables.WithSockOptions(func(c *netlink.Conn) error {
		// Some errors of a batch are answered once, not once a message, and the
		// library would wait for the others.
		return c.SetReadDeadline(deadline)
	})
	c, err := nftables.New(append([]nftables.ConnOption{bounded}, t.options...)...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := build(c); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	err = c.Flush()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%s: %w (%w)", what, ErrUnsupported, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: the agent needs CAP_NET_ADMIN", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
