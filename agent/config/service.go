package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxSteps = 64
	maxWords = 256  // of a command
	maxWord  = 8192 // bytes of one of them
	maxPorts = 64   // of one step; each is two rules in the kernel

	// maxInterface is IFNAMSIZ of linux/if.h less its final zero.
	maxInterface = 15

	// defaultStepTimeout is section 8's.
	defaultStepTimeout = 10 * time.Second

	// awsStepTimeout is longer: AWS moves an address in seconds, and its describes, by which
	// that is read back, are seconds behind.
	awsStepTimeout = 30 * time.Second

	// Queues of a device that is attached, each with its connection. More than there are processors are of no use, and
	// each may hold 128 requests.
	defaultConnections = 4
	maxConnections     = 16

	// Below this not even a shell has started on a busy host.
	minStepTimeout = 100 * time.Millisecond
)

// Step is one item of service. Exactly one of the pointers is set.
type Step struct {
	// Name is the kind, and #2, #3, … for those of the same kind after the first.
	Name    string
	Timeout time.Duration // for each start, stop and check

	Exec         *Exec
	NBD          *KernelNBD
	Mount        *Mount
	NFS          *NFS
	VIP          *VIP
	EIP          *EIP
	PrivateIP    *PrivateIP
	OverlayRoute *OverlayRoute
}

// Exec is a step of three commands.
type Exec struct {
	Start, Stop, Check []string // program and arguments; Stop and Check may be empty

	// Ports are what clients reach the service at, TCP and UDP. Their replies are
	// dropped, on this machine too, while the node may not answer and until the last
	// step is up: Start must not wait for an answer from its own port.
	Ports []uint16
}

// KernelNBD is a step that makes the volume the kernel's block device.
type KernelNBD struct {
	Device      string // /dev/nbdX
	Connections int
}

// VIP is a step that holds an address.
type VIP struct {
	Address   netip.Prefix // with the length of its network
	Interface string
}

// EIP is a step that holds an Elastic IP of AWS's.
type EIP struct {
	Allocation string // eipalloc-…
}

// PrivateIP is a step that holds a secondary private address of AWS's.
type PrivateIP struct {
	Address   netip.Prefix // IPv4; of length 32 unless the config has another
	Interface string
}

// OverlayRoute is a step that holds an address that routes of AWS's lead to.
type OverlayRoute struct {
	CIDR   netip.Prefix // IPv4, of length 32
	Tables []string     // rtb-…
}

// ServicePorts returns the ports of all steps that clients are answered from, sorted, each once.
func (c *Config) ServicePorts() []uint16 {
	var all []uint16
	for _, s := range c.Service {
		if s.Exec != nil {
			all = append(all, s.Exec.Ports...)
		}
		if s.NFS != nil {
			all = append(all, s.NFS.Port)
			if s.NFS.V3() {
				all = append(all, MountdPort, LockdPort) // lockd itself asks at StatdPort, also while the service stops
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// AttachesNBD says whether a step attaches the volume to the kernel, which then writes its page cache back to the agent.
func (c *Config) AttachesNBD() bool {
	return slices.ContainsFunc(c.Service, func(s Step) bool { return s.NBD != nil })
}

// UsesAWS says whether a step, the fence, or whoever looks for a peer has to ask AWS.
func (c *Config) UsesAWS() bool {
	tag, _ := c.PeersByTag()
	return tag != "" || c.Fence.EC2 != nil || slices.ContainsFunc(c.Service, func(s Step) bool { return s.EIP != nil || s.PrivateIP != nil || s.OverlayRoute != nil })
}

// ServiceAddresses returns the addresses of all steps that the host itself has, in their
// order. An Elastic IP is none: EC2 translates it.
func (c *Config) ServiceAddresses() []netip.Addr {
	var all []netip.Addr
	for _, s := range c.Service {
		switch {
		case s.VIP != nil:
			all = append(all, s.VIP.Address.Addr())
		case s.PrivateIP != nil:
			all = append(all, s.PrivateIP.Address.Addr())
		case s.OverlayRoute != nil:
			all = append(all, s.OverlayRoute.CIDR.Addr())
		}
	}
	return all
}

// steps are the kinds of service step and their keys (section 8; ports of an exec
// step came later).
func steps() map[string][]string {
	return map[string][]string{
		"exec":          {"start", "stop", "check", "ports"},
		"nbd":           {"device", "connections"},
		"mount":         {"device", "path", "type", "options"},
		"nfs":           {"path", "clients", "options", "fsid", "versions", "lease", "grace", "scope", "ports"},
		"vip":           {"address", "interface"},
		"eip":           {"allocation"},
		"private-ip":    {"address", "interface"},
		"overlay-route": {"cidr", "tables"},
	}
}

// service reads the list of steps.
func (d *decoder) service(f field, c *Config) {
	if !f.present() {
		return
	}
	items, ok := f.items()
	if !ok {
		return
	}
	if len(items) > maxSteps {
		f.fail("%d steps: at most %d are possible", len(items), maxSteps)
		return
	}
	known := steps()
	kinds := slices.Sorted(maps.Keys(known))
	count := make(map[string]int)
	for _, item := range items {
		m, ok := item.fields(append([]string{"timeout"}, kinds...)...)
		if !ok {
			continue
		}
		kind := ""
		for _, k := range kinds {
			step := m.optional(k)
			if !step.present() {
				continue
			}
			if kind != "" {
				step.fail("is a second step beside %s: each step is an item of its own", kind)
			}
			kind = k
		}
		if kind == "" {
			item.fail("names no step: known are exec, nbd, mount, nfs, vip, eip, private-ip, overlay-route")
			continue
		}
		s := Step{Name: kind, Timeout: defaultStepTimeout}
		if kind == "eip" || kind == "private-ip" || kind == "overlay-route" {
			s.Timeout = awsStepTimeout
		}
		if count[kind]++; count[kind] > 1 {
			s.Name = fmt.Sprintf("%s#%d", kind, count[kind])
		}
		m.optional("timeout").duration(&s.Timeout, minStepTimeout)
		values, ok := m.optional(kind).fields(known[kind]...)
		switch {
		case kind == "exec" && ok:
			s.Exec = d.exec(values, c)
		case kind == "nbd" && ok:
			if c.AttachesNBD() {
				m.optional(kind).fail("is a second device: the volume is one")
			}
			s.NBD = d.kernelNBD(values)
		case kind == "mount" && ok:
			s.Mount = d.mount(values, c)
		case kind == "nfs" && ok:
			s.NFS = d.nfs(values, c)
		case kind == "vip" && ok:
			s.VIP = d.vip(values, c)
		case kind == "eip" && ok:
			s.EIP = d.eip(values, c)
		case kind == "private-ip" && ok:
			s.PrivateIP = d.privateIP(values, c)
		case kind == "overlay-route" && ok:
			s.OverlayRoute = d.overlayRoute(values, c)
		}
		c.Service = append(c.Service, s)
	}
	v3 := func(s Step) bool { return s.NFS != nil && s.NFS.V3() }
	if slices.ContainsFunc(c.Service, v3) && len(c.ServiceAddresses()) == 0 {
		f.fail("version 3 of nfs needs a step vip, private-ip or overlay-route: its clients are told by that address to reclaim their locks")
	}
}

func (d *decoder) exec(m fields, c *Config) *Exec {
	e := new(Exec)
	m.required("start").command(&e.Start)
	m.optional("stop").commandOrEmpty(&e.Stop)
	m.optional("check").commandOrEmpty(&e.Check)
	m.optional("ports").ports(&e.Ports, c)
	return e
}

// ports reads what clients reach a step at.
func (f field) ports(to *[]uint16, c *Config) {
	if !f.present() {
		return
	}
	items, ok := f.items()
	if !ok {
		return
	}
	if len(items) > maxPorts {
		f.fail("%d ports: at most %d are possible", len(items), maxPorts)
		return
	}
	var all []uint16
	for _, item := range items {
		text, ok := item.text()
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 16)
		port := uint16(n)
		switch {
		case err != nil || n == 0:
			item.fail("%q is not a port from 1 to 65535", text)
		case slices.Contains(all, port):
			item.fail("%d is named twice", port)
		// Without a lease the link would be blocked by which the next lease comes.
		case portOf(c.Listen) == port:
			item.fail("%d is where this node listens for its peers: it must answer them at any time", port)
		case portOf(c.HTTP) == port:
			item.fail("%d is the port of http, where a node without permission still has to say so", port)
		default:
			all = append(all, port)
		}
	}
	*to = all
}

func (d *decoder) kernelNBD(m fields) *KernelNBD {
	n := &KernelNBD{Connections: defaultConnections}
	f := m.required("device")
	if text, ok := f.text(); ok {
		digits, found := strings.CutPrefix(text, "/dev/nbd")
		x, err := strconv.ParseUint(digits, 10, 16)
		// One device has one name: 00 is not 0.
		if !found || err != nil || strconv.FormatUint(x, 10) != digits {
			f.fail("%q is not a device of the kernel's NBD client, such as /dev/nbd0", text)
		}
		n.Device = text
	}
	f = m.optional("connections")
	if text, ok := f.text(); f.present() && ok {
		x, err := strconv.Atoi(text)
		if err != nil || x < 1 || x > maxConnections {
			f.fail("%q is not a number from 1 to %d", text, maxConnections)
		}
		n.Connections = x
	}
	return n
}

func (d *decoder) vip(m fields, c *Config) *VIP {
	v := new(VIP)
	f := m.required("address")
	if text, ok := f.text(); ok {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil && netipParses(text):
			f.fail("%s has no length of its network: write %s/24, or whatever the interface's own address has", text, text)
		case err != nil:
			f.fail("%q is not an address with the length of its network, such as 10.0.0.9/24", text)
		case f.movable(p, c):
			v.Address = p
		}
	}
	m.required("interface").iface(&v.Interface)
	return v
}

// movable says whether an address can be one of the service's, or reports why not.
func (f field) movable(p netip.Prefix, c *Config) bool {
	a := p.Addr()
	switch {
	case a.Is4In6(), a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast() && a.Is6():
		f.fail("%s is not an address that clients could use", a)
	case a == p.Masked().Addr() && p.Bits() < a.BitLen()-1:
		f.fail("%s is the network itself, not an address in it", p)
	case slices.Contains(c.ServiceAddresses(), a):
		f.fail("%s is named twice", a)
	case a == hostOf(c.Listen):
		f.fail("%s is where this node listens for its peers: the service's address moves, that one must not", a)
	case slices.ContainsFunc(c.Peers, func(p Peer) bool { return a == hostOf(p.Address) }):
		f.fail("%s is the address of a peer: the service's address moves, that one must not", a)
	default:
		return true
	}
	return false
}

func (f field) iface(to *string) bool {
	text, ok := f.text()
	if ok && (text == "" || len(text) > maxInterface || text == "." || text == ".." ||
		strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '/' || r == ':' })) {
		f.fail("%q is not the name of an interface, such as eth0", text)
		return false
	}
	return set(to, text, ok)
}

func netipParses(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

// hostOf returns the host of HOST:PORT if that is an address, and portOf the port.
func hostOf(address string) netip.Addr {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

func portOf(address string) uint16 {
	n, err := strconv.ParseUint(address[strings.LastIndexByte(address, ':')+1:], 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// command reads a program and its arguments. A program with a slash in it is a path,
// relative to the config file like any other; one without is looked for in PATH.
func (f field) command(to *[]string) bool {
	if !f.commandOrEmpty(to) {
		return false
	}
	if len(*to) == 0 {
		f.fail("is empty: write the program and its arguments, such as [/usr/bin/systemctl, start, app]")
		return false
	}
	return true
}

func (f field) commandOrEmpty(to *[]string) bool {
	if !f.present() {
		return false
	}
	items, ok := f.items()
	if !ok {
		return false
	}
	if len(items) > maxWords {
		f.fail("%d words: at most %d are possible", len(items), maxWords)
		return false
	}
	var words []string
	for i, item := range items {
		text, ok := item.text()
		switch {
		case !ok:
			return false
		case strings.ContainsRune(text, 0):
			item.fail("has a zero byte")
			return false
		case len(text) > maxWord:
			item.fail("has %d bytes: at most %d are possible", len(text), maxWord)
			return false
		case i == 0 && text == "":
			item.fail("is empty: the first word is the program")
			return false
		case i == 0 && strings.ContainsRune(text, '/') && !item.path(&text):
			return false
		}
		words = append(words, text)
	}
	return set(to, words, true)
}

// onChange reads the command that is told of changes.
func (d *decoder) onChange(f field, c *Config) {
	f.commandOrEmpty(&c.OnChange)
}
