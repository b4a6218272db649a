package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"tandem/failover/record"
	"tandem/failover/witness/location"
)

const (
	blockSize = 4096
	maxSize   = 16 << 40 // the metadata's limit, design.md section 4
	maxPeers  = 3

	// maxSocketPath is sun_path of unix(7) less its final zero.
	maxSocketPath = 107

	// Below this a heartbeat is lost in the scheduler of a busy host.
	minHeartbeat = 10 * time.Millisecond

	// Longer than any sensible value and short enough that sums do not overflow.
	maxDuration = 24 * time.Hour
)

// config reads the whole file. The order is the order of section 8.
func (d *decoder) config(root *yaml.Node, c *Config, isBlock func(string) bool) {
	m, ok := field{d: d, line: root.Line, node: root}.fields("cluster", "node", "listen", "peers", "volume", "nbd",
		"control", "http", "tls", "witness", "link", "resync", "failover", "aws", "fence", "on_change", "service")
	if !ok {
		return
	}
	m.required("cluster").name(&c.Cluster)
	m.required("node").name(&c.Node)
	m.required("listen").address(&c.Listen)
	d.peers(m.required("peers"), c)
	d.volume(m.required("volume"), c, isBlock)
	d.nbd(m.required("nbd"), c)
	m.required("control").socket(&c.Control)
	m.optional("http").addressOrEmpty(&c.HTTP)
	d.tls(m.required("tls"), c)
	d.witness(m.required("witness"), c)
	d.link(m.optional("link"), c)
	if f := m.optional("resync"); f.present() {
		if r, ok := f.fields("max_rate"); ok {
			r.optional("max_rate").rate(&c.Resync.MaxRate)
		}
	}
	d.failover(m.optional("failover"), c)
	d.aws(m.optional("aws"), c)
	d.fence(m.optional("fence"), c)
	d.onChange(m.optional("on_change"), c)
	d.service(m.optional("service"), c)

	if f := m.optional("node"); f.present() && c.Node != "" {
		if i := slices.IndexFunc(c.Peers, func(p Peer) bool { return p.Node == c.Node }); i >= 0 {
			key := fmt.Sprintf("peers[%d].node", i)
			if c.Peers[i].Tag != "" {
				key = fmt.Sprintf("peers.nodes[%d]", i)
			}
			d.fail(m.values["peers"].line, key, "%s is this node itself: peers are the others", c.Node)
		}
	}
	if c.NBD.Socket != "" && c.NBD.Socket == c.Control {
		m.optional("control").fail("is the same file as nbd.socket")
	}
}

func (d *decoder) peers(f field, c *Config) {
	if f.present() && f.node.Kind == yaml.MappingNode {
		d.taggedPeers(f, c)
		return
	}
	items, ok := f.items()
	if !ok {
		return
	}
	if len(items) > maxPeers {
		f.fail("%d peers: at most %d are possible", len(items), maxPeers)
	}
	for _, item := range items {
		var p Peer
		m, ok := item.fields("node", "address")
		if !ok {
			continue
		}
		m.required("node").name(&p.Node)
		m.required("address").address(&p.Address)
		for _, other := range c.Peers {
			if p.Node != "" && p.Node == other.Node {
				m.optional("node").fail("%s is named twice", p.Node)
			}
			if p.Address != "" && p.Address == other.Address {
				m.optional("address").fail("is also the address of %s", other.Node)
			}
		}
		if p.Address != "" && p.Address == c.Listen {
			m.optional("address").fail("is where this node listens itself")
		}
		c.Peers = append(c.Peers, p)
	}
}

func (d *decoder) volume(f field, c *Config, isBlock func(string) bool) {
	m, ok := f.fields("device", "size", "metadata", "protocol", "disk_timeout")
	if !ok {
		return
	}
	m.required("device").device(&c.Volume)
	if size := m.optional("size"); size.present() {
		if size.size(&c.Volume.Size) {
			switch {
			case c.Volume.Size == 0:
				size.fail("must be more than 0")
			case c.Volume.Size%blockSize != 0:
				size.fail("%d bytes are not a multiple of %d", c.Volume.Size, blockSize)
			case c.Volume.Size > maxSize:
				size.fail("is more than 16TiB")
			}
		}
	} else if c.Volume.Device != "" && c.Volume.EBS == "" && !isBlock(c.Volume.Device) {
		size.fail(missingMsg+", because %s is not a block device", c.Volume.Device)
	}
	if md := m.optional("metadata"); md.present() {
		if text, ok := md.text(); ok && text != "" && text != "internal" && md.path(&c.Volume.Metadata) &&
			c.Volume.Metadata == c.Volume.Device {
			md.fail("is the device itself: write internal to keep it at the device's end")
		}
	}
	m.optional("protocol").choice(&c.Volume.Protocol, []string{"C"}, []string{"A", "B"})
	m.optional("disk_timeout").duration(&c.Volume.DiskTimeout, 100*time.Millisecond)
}

func (d *decoder) nbd(f field, c *Config) {
	if m, ok := f.fields("socket", "tcp"); ok {
		m.required("socket").socket(&c.NBD.Socket)
		m.optional("tcp").addressOrEmpty(&c.NBD.TCP)
	}
}

func (d *decoder) tls(f field, c *Config) {
	m, ok := f.fields("ca", "cert", "key", "insecure")
	if !ok {
		return
	}
	insecure := m.optional("insecure")
	insecure.boolean(&c.TLS.Insecure)
	if !c.TLS.Insecure {
		m.required("ca").path(&c.TLS.CA)
		m.required("cert").path(&c.TLS.Cert)
		m.required("key").path(&c.TLS.Key)
		return
	}
	for _, name := range []string{"ca", "cert", "key"} {
		if f := m.optional(name); f.present() {
			f.fail("has no meaning beside insecure: true")
		}
	}
	addresses := []string{c.Listen}
	for _, p := range c.Peers {
		if p.byTag() {
			insecure.fail("is accepted on loopback addresses only, and %s is on an instance of EC2's", p.Node)
			return
		}
		addresses = append(addresses, p.Address)
	}
	for _, a := range addresses {
		if a != "" && !isLoopback(a) {
			insecure.fail("is accepted on loopback addresses only, and %s is none", a)
			return
		}
	}
}

func (d *decoder) witness(f field, c *Config) {
	text, ok := f.text()
	if !ok {
		return
	}
	loc, err := location.Parse(text)
	if err != nil {
		f.fail("%w", err)
		return
	}
	for _, p := range c.Peers {
		where := p.Address
		if p.byTag() {
			where = p.Node
		}
		if loc.Scheme == "file" && where != "" && !loc.Shared && (p.byTag() || !isLoopback(p.Address)) {
			f.fail("a file on two hosts would be two witnesses, and %s is another host: "+
				"add ?shared=yes if it really is one file for all", where)
			return
		}
	}
	c.Witness = text
}

func (d *decoder) link(f field, c *Config) {
	if !f.present() {
		return
	}
	m, ok := f.fields("compression", "flows", "peer_timeout")
	if !ok {
		return
	}
	m.optional("compression").choice(&c.Link.Compression, []string{"auto", "none"}, []string{"s2", "zstd"})
	if f := m.optional("flows"); f.present() {
		if text, ok := f.text(); ok {
			n, err := strconv.Atoi(text)
			switch {
			case err != nil || n < 1 || n > 16:
				f.fail("%q is not a number from 1 to 16", text)
			case n > 1:
				f.fail("more than one flow is %w: write 1", ErrNotInVersion)
			default:
				c.Link.Flows = n
			}
		}
	}
	m.optional("peer_timeout").duration(&c.Link.PeerTimeout, 2*minHeartbeat)
}

func (d *decoder) failover(f field, c *Config) {
	if !f.present() {
		return
	}
	m, ok := f.fields("auto", "heartbeat", "lease", "freeze", "self_fence", "prefer", "restart", "allow_loss")
	if !ok {
		return
	}
	v := &c.Failover
	m.optional("auto").boolean(&v.Auto)
	m.optional("heartbeat").duration(&v.Heartbeat, minHeartbeat)
	m.optional("lease").duration(&v.Lease, 2*minHeartbeat)
	// One lost heartbeat must not cost the lease.
	if v.Lease < 2*v.Heartbeat {
		at := m.optional("lease")
		if !at.present() {
			at = m.optional("heartbeat")
		}
		at.fail("a lease of %s is less than two heartbeats of %s", formatDuration(v.Lease), formatDuration(v.Heartbeat))
	}
	m.optional("freeze").duration(&v.Freeze, 100*time.Millisecond)
	m.optional("self_fence").choice(&v.SelfFence, []string{"stop", "reboot"}, nil)
	if f := m.optional("prefer"); f.present() {
		if text, ok := f.text(); ok && text != "" {
			if _, isPeer := c.Peer(text); !isPeer && text != c.Node {
				f.fail("%q is neither this node nor a peer", text)
			}
			v.Prefer = text
		}
	}
	m.optional("restart").duration(&v.Restart, 0)
	m.optional("allow_loss").size(&v.AllowLoss)
}

// The readers of one value. Each leaves its target alone if the key is absent or
// wrong, and returns whether it was set.

func (f field) name(to *string) bool {
	text, ok := f.text()
	if ok && !record.ValidName(text) {
		f.fail("%q is not a name: 1 to 63 letters, digits, dots, underscores and dashes, a letter or digit first", text)
		return false
	}
	return set(to, text, ok)
}

func (f field) boolean(to *bool) bool {
	text, ok := f.text()
	if ok && text != "true" && text != "false" {
		f.fail("%q is neither true nor false", text)
		return false
	}
	return set(to, text == "true", ok)
}

func (f field) duration(to *time.Duration, least time.Duration) bool {
	text, ok := f.text()
	if !ok {
		return false
	}
	v, err := parseDuration(text)
	switch {
	case err != nil:
		f.fail("%w", err)
	case v < least:
		f.fail("%s is less than %s", text, formatDuration(least))
	case v > maxDuration:
		f.fail("%s is more than %s", text, formatDuration(maxDuration))
	default:
		return set(to, v, true)
	}
	return false
}

func (f field) size(to *int64) bool {
	text, ok := f.text()
	if !ok {
		return false
	}
	v, err := parseSize(text)
	if err != nil {
		f.fail("%w", err)
		return false
	}
	return set(to, v, true)
}

// rate is a size per second, with or without "/s", or auto.
func (f field) rate(to *int64) bool {
	text, ok := f.text()
	if !ok || text == "auto" {
		return set(to, 0, ok)
	}
	v, err := parseSize(strings.TrimSuffix(text, "/s"))
	if err == nil && v == 0 {
		err = fmt.Errorf("%s would never end: write auto for no limit", text)
	}
	if err != nil {
		f.fail("%w", err)
		return false
	}
	return set(to, v, true)
}

// choice is one of the words that work, or one of those that will.
func (f field) choice(to *string, now, later []string) bool {
	text, ok := f.text()
	switch {
	case !ok:
		return false
	case slices.Contains(later, text):
		f.fail("%s is %w: write %s", text, ErrNotInVersion, strings.Join(now, " or "))
		return false
	case !slices.Contains(now, text):
		f.fail("%q is not one of %s", text, strings.Join(slices.Concat(now, later), ", "))
		return false
	}
	return set(to, text, true)
}

func (f field) path(to *string) bool {
	text, ok := f.text()
	switch {
	case !ok:
		return false
	case text == "":
		f.fail("is empty")
		return false
	case strings.ContainsRune(text, 0):
		f.fail("has a zero byte")
		return false
	case !filepath.IsAbs(text):
		text = filepath.Join(f.d.dir, text)
	}
	return set(to, filepath.Clean(text), true)
}

func (f field) socket(to *string) bool {
	var path string
	if !f.path(&path) {
		return false
	}
	if len(path) > maxSocketPath {
		f.fail("%s has %d bytes: the path of a socket can have %d", path, len(path), maxSocketPath)
		return false
	}
	return set(to, path, true)
}

func (f field) address(to *string) bool {
	text, ok := f.text()
	if !ok {
		return false
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		f.fail("%q is not HOST:PORT", text)
		return false
	}
	// Not 0: a peer or a monitor has to know it.
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		f.fail("%q is not a port from 1 to 65535", port)
		return false
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' }) {
		f.fail("%q is not a host", host)
		return false
	}
	return set(to, text, true)
}

func (f field) port(to *uint16) bool {
	text, ok := f.text()
	if !ok {
		return false
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		f.fail("%q is not a port from 1 to 65535", text)
		return false
	}
	return set(to, uint16(n), true)
}

func (f field) addressOrEmpty(to *string) bool {
	if !f.present() {
		return false
	}
	if text, ok := f.text(); !ok || text == "" {
		return set(to, "", ok)
	}
	return f.address(to)
}

func set[T any](to *T, v T, ok bool) bool {
	if ok {
		*to = v
	}
	return ok
}

// isLoopback asks no resolver: a name other than localhost is somewhere else.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
