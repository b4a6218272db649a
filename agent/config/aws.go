package config

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// maxTables is how many route tables of a step are possible. AWS's default quota is 200
// in a VPC; each is a request in every failover.
const maxTables = 32

const (
	// ebsPrefix comes before the id of an EBS volume where a path could be.
	ebsPrefix = "ebs:"

	// ebsLink and the id without its dash are the name that udev gives an EBS volume on
	// an instance with NVMe.
	ebsLink = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_"
)

// maxTag is how long AWS lets the key of a tag be.
const maxTag = 128

// AWS is how AWS is reached; every value may be empty.
type AWS struct {
	Region   string // empty: AWS_REGION, the shared config, or the instance's own
	Endpoint string // URL of the service; empty: AWS's own for the region
	Metadata string // URL of the instance metadata; empty: 169.254.169.254
}

// Fence is how the machine of a lost primary is stopped. It is a helper, which nothing waits for.
type Fence struct {
	EC2 *EC2Fence // nil: it is not
}

// EC2Fence stops the instance with the tags tandem:cluster and tandem:node.
type EC2Fence struct {
	// DetachVolume also takes the data volumes, by force, from an instance that does not stop.
	DetachVolume bool
}

func (d *decoder) fence(f field, c *Config) {
	if !f.present() {
		return
	}
	m, ok := f.fields("ec2")
	if !ok {
		return
	}
	e, ok := m.required("ec2").fields("detach_volume")
	if !ok {
		return
	}
	c.Fence.EC2 = new(EC2Fence)
	e.optional("detach_volume").boolean(&c.Fence.EC2.DetachVolume)
}

func (d *decoder) aws(f field, c *Config) {
	if !f.present() {
		return
	}
	m, ok := f.fields("region", "endpoint", "metadata")
	if !ok {
		return
	}
	if f := m.optional("region"); f.present() {
		if text, ok := f.text(); ok {
			if strings.ContainsFunc(text, func(r rune) bool { return !lowerOrDigit(r) && r != '-' }) {
				f.fail("%q is not a region, such as eu-central-1", text)
			}
			c.AWS.Region = text
		}
	}
	m.optional("endpoint").serviceURL(&c.AWS.Endpoint, "https://ec2.eu-central-1.amazonaws.com")
	m.optional("metadata").serviceURL(&c.AWS.Metadata, "http://[fd00:ec2::254]")
}

// serviceURL reads a URL of a host, or nothing.
func (f field) serviceURL(to *string, example string) bool {
	if !f.present() {
		return false
	}
	text, ok := f.text()
	if !ok || text == "" {
		return set(to, "", ok)
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		f.fail("%q is not the URL of a service, such as %s", text, example)
		return false
	}
	return set(to, text, true)
}

// taggedPeers reads peers that are found by a tag of their instances.
func (d *decoder) taggedPeers(f field, c *Config) {
	m, ok := f.fields("tag", "nodes", "port")
	if !ok {
		return
	}
	var tag string
	if f := m.required("tag"); f.tag(&tag) && tag == "tandem:cluster" {
		f.fail("tandem:cluster has the cluster's name, and is looked at anyway: name the tag that has the node's, such as tandem:node")
	}
	var port uint16
	m.required("port").port(&port)
	nodes := m.required("nodes")
	items, ok := nodes.items()
	switch {
	case !ok:
		return
	case len(items) == 0:
		nodes.fail("is empty: write peers: [] for a node without peers")
	case len(items) > maxPeers:
		nodes.fail("%d peers: at most %d are possible", len(items), maxPeers)
	}
	for _, item := range items {
		p := Peer{Tag: tag, Port: port}
		if !item.name(&p.Node) {
			continue
		}
		if _, twice := c.Peer(p.Node); twice {
			item.fail("%s is named twice", p.Node)
		}
		c.Peers = append(c.Peers, p)
	}
}

// byTag says that the peer is on an instance of EC2's, which no loopback address is. It is
// false while one of its keys is missing: that is what is reported.
func (p Peer) byTag() bool { return p.Tag != "" && p.Port != 0 }

// tag reads the key of a tag: what AWS allows everywhere. Its * and ? would be patterns.
func (f field) tag(to *string) bool {
	text, ok := f.text()
	if !ok {
		return false
	}
	if text == "" || len(text) > maxTag || strings.TrimSpace(text) != text ||
		strings.ContainsFunc(text, func(r rune) bool {
			return !lowerOrDigit(r) && (r < 'A' || r > 'Z') && !strings.ContainsRune(" +-=._:/@", r)
		}) {
		f.fail("%q is not the key of a tag, such as tandem:node: 1 to %d letters, digits, blanks and + - = . _ : / @", text, maxTag)
		return false
	}
	return set(to, text, true)
}

func (d *decoder) eip(m fields, c *Config) *EIP {
	e := new(EIP)
	if f := m.required("allocation"); f.awsID(&e.Allocation, "eipalloc-", "the allocation of an Elastic IP") &&
		slices.ContainsFunc(c.Service, func(s Step) bool { return s.EIP != nil && s.EIP.Allocation == e.Allocation }) {
		f.fail("%s is named twice", e.Allocation)
	} else if slices.ContainsFunc(c.Service, func(s Step) bool { return s.EIP != nil }) {
		// The primary address, which it is associated with, has one at most.
		f.fail("is a second Elastic IP: this node's address can have one")
	}
	return e
}

func (d *decoder) privateIP(m fields, c *Config) *PrivateIP {
	p := new(PrivateIP)
	f := m.required("address")
	if text, ok := f.text(); ok {
		address, err := hostPrefix(text)
		switch {
		case err != nil || !address.Addr().Is4():
			f.fail("%q is not an IPv4 address of the subnet, such as 10.0.0.9", text)
		case f.movable(address, c):
			p.Address = address
		}
	}
	m.required("interface").iface(&p.Interface)
	return p
}

func (d *decoder) overlayRoute(m fields, c *Config) *OverlayRoute {
	o := new(OverlayRoute)
	f := m.required("cidr")
	if text, ok := f.text(); ok {
		address, err := hostPrefix(text)
		switch {
		case err != nil || !address.Addr().Is4():
			f.fail("%q is not an IPv4 address outside of the VPC, such as 10.99.0.1/32", text)
		case address.Bits() != 32:
			f.fail("%s is more than one address: the service has one, write %s/32", text, address.Addr())
		case f.movable(address, c):
			o.CIDR = address
		}
	}
	f = m.required("tables")
	items, ok := f.items()
	switch {
	case !ok:
		return o
	case len(items) == 0:
		f.fail("is empty: name every route table of those who use the address, such as [rtb-0123456789abcdef0]")
	case len(items) > maxTables:
		f.fail("%d route tables: at most %d are possible", len(items), maxTables)
	}
	for _, item := range items {
		var id string
		if !item.awsID(&id, "rtb-", "a route table") {
			continue
		}
		if slices.Contains(o.Tables, id) {
			item.fail("%s is named twice", id)
		}
		o.Tables = append(o.Tables, id)
	}
	return o
}

// hostPrefix is an address with or without a length; without it is 32.
func hostPrefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// device reads volume.device: a path, or an EBS volume by its id.
func (f field) device(v *Volume) bool {
	text, ok := f.text()
	if !ok || !strings.HasPrefix(text, ebsPrefix) {
		return f.path(&v.Device)
	}
	id := strings.TrimPrefix(text, ebsPrefix)
	digits, found := strings.CutPrefix(id, "vol-")
	if !found || len(digits) != 8 && len(digits) != 17 || strings.ContainsFunc(digits, func(r rune) bool { return !hexDigit(r) }) {
		f.fail("%q is not an EBS volume: write ebs:vol- and its 8 or 17 digits, 0 to 9 and a to f, such as ebs:vol-0123456789abcdef0", text)
		return false
	}
	v.EBS, v.Device = id, ebsLink+"vol"+digits
	return true
}

func hexDigit(r rune) bool { return r >= '0' && r <= '9' || r >= 'a' && r <= 'f' }

// awsID reads an id of AWS's: a kind and 8 or 17 digits, as AWS has given them out; their
// number is not checked, since nothing promises it.
func (f field) awsID(to *string, prefix, what string) bool {
	text, ok := f.text()
	if !ok {
		return false
	}
	digits, found := strings.CutPrefix(text, prefix)
	if !found || digits == "" || len(digits) > 64 || strings.ContainsFunc(digits, func(r rune) bool { return !lowerOrDigit(r) }) {
		f.fail("%q is not %s, such as %s0123456789abcdef0", text, what, prefix)
		return false
	}
	return set(to, text, true)
}

func lowerOrDigit(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }
