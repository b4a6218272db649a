package config

import (
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

const (
	maxClients = 64

	// maxOptions is that of a mount's or an export's options, in bytes; the kernel has a page.
	maxOptions = 1024

	// The kernel takes nothing outside of these (fs/nfsd/nfsctl.c).
	minNFSTime = 10 * time.Second
	maxNFSTime = time.Hour

	// Short, because they are a part of every takeover: a client that does not come back is
	// waited for as long as grace. Grace is longer, so that a client that renews once a lease
	// has time to come.
	defaultNFSLease = 15 * time.Second
	defaultNFSGrace = 20 * time.Second

	nfsPort = 2049

	// MountdPort, LockdPort and StatdPort are where the services of version 3 listen: the
	// same on all nodes, because clients ask for them once.
	MountdPort = 20048
	LockdPort  = 32803
	StatdPort  = 32765

	// maxHostName is __NEW_UTS_LEN of linux/utsname.h.
	maxHostName = 64
)

// Mount is a step that mounts the volume's filesystem.
type Mount struct {
	Device  string // /dev/nbdX
	Path    string
	Type    string // ext4 or xfs
	Options string // may be empty
}

// NFS is a step that exports a folder of the filesystem.
type NFS struct {
	Path     string
	Clients  []string
	Options  string // without fsid
	FSID     uint32
	Versions []string // "3", "4.0", "4.1", "4.2"
	Lease    time.Duration
	Grace    time.Duration
	Scope    string
	Port     uint16
}

// V3 says whether version 3 is served, which takes more ports than one.
func (n *NFS) V3() bool { return slices.Contains(n.Versions, "3") }

func (d *decoder) mount(m fields, c *Config) *Mount {
	v := &Mount{Type: "ext4", Options: "noatime"}
	f := m.required("device")
	if text, ok := f.text(); ok {
		number, isNBD := strings.CutPrefix(text, "/dev/nbd")
		switch _, err := strconv.ParseUint(number, 10, 16); {
		case !isNBD || err != nil:
			f.fail("%q is not a device /dev/nbdX: the disk below the volume has the same bytes, but what is written there is not mirrored", text)
		case slices.ContainsFunc(c.Service, func(s Step) bool { return s.Mount != nil && s.Mount.Device == text }):
			f.fail("%s is mounted by another step", text)
		}
		v.Device = text
	}
	f = m.required("path")
	if f.absolute(&v.Path) {
		switch {
		case v.Path == "/":
			f.fail("/ is the node's own")
		case slices.ContainsFunc(c.Service, func(s Step) bool { return s.Mount != nil && s.Mount.Path == v.Path }):
			f.fail("%s is the place of another step", v.Path)
		}
	}
	if f := m.optional("type"); f.present() {
		f.choice(&v.Type, []string{"ext4", "xfs"}, nil)
	}
	f = m.optional("options")
	for _, o := range f.options(&v.Options) {
		switch o {
		case "nobarrier", "barrier=0":
			f.fail("%s lets fsync return before the data is on any disk: leave it out", o)
		}
	}
	return v
}

func (d *decoder) nfs(m fields, c *Config) *NFS {
	v := &NFS{
		Options: "rw,sync,no_subtree_check", FSID: 1, Versions: []string{"4.1", "4.2"},
		Lease: defaultNFSLease, Grace: defaultNFSGrace, Scope: c.Cluster, Port: nfsPort,
	}
	f := m.required("path")
	if f.absolute(&v.Path) {
		mounted := func(s Step) bool { return s.Mount != nil && within(v.Path, s.Mount.Path) }
		switch {
		case strings.ContainsAny(v.Path, " \t\n\"#\\"):
			f.fail("%q has a character that exports(5) does not take as it is", v.Path)
		case !slices.ContainsFunc(c.Service, mounted):
			f.fail("%s is not in the path of a step mount before this one: it would be on this node's own disk", v.Path)
		case slices.ContainsFunc(c.Service, func(s Step) bool { return s.NFS != nil }):
			f.fail("is a second export: a machine has one NFS server, and this version has one export of it")
		}
	}
	m.required("clients").clients(&v.Clients)
	f = m.optional("options")
	options := f.options(&v.Options)
	for _, o := range options {
		switch name, _, _ := strings.Cut(o, "="); name {
		case "async":
			f.fail("async acknowledges what is in memory only, and a takeover loses it: write sync")
		case "fsid":
			f.fail("fsid has a key of its own, nfs.fsid")
		}
	}
	f = m.optional("fsid")
	if text, ok := f.optionalText(); ok {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil || n > math.MaxInt32 {
			f.fail("%q is not a number from 0 to %d", text, math.MaxInt32)
		}
		v.FSID = uint32(n)
	}
	f = m.optional("versions")
	f.versions(&v.Versions)
	if v.V3() {
		var theirs []uint16
		field{d: d, key: f.key, line: f.line, node: portList(MountdPort, LockdPort, StatdPort)}.ports(&theirs, c)
	}
	m.optional("lease").nfsTime(&v.Lease)
	f = m.optional("grace")
	if f.nfsTime(&v.Grace) && v.Grace < v.Lease {
		f.fail("%s is less than lease, %s: a client that renews once a lease would come too late for its locks", formatDuration(v.Grace), formatDuration(v.Lease))
	}
	// Without an own one it follows a longer lease.
	if !f.present() {
		v.Grace = max(v.Grace, v.Lease)
	}
	f = m.optional("scope")
	if text, ok := f.optionalText(); ok {
		if text == "" || len(text) > maxHostName || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			f.fail("%q is not a name of 1 to %d letters: it is the same on all nodes, such as the cluster's", text, maxHostName)
		}
		v.Scope = text
	}
	ports := []uint16{v.Port}
	f = m.optional("ports")
	if !f.present() {
		f = field{d: d, key: f.key, line: f.line, node: portList(nfsPort)}
	}
	f.ports(&ports, c)
	switch {
	case len(ports) == 1:
		v.Port = ports[0]
	case f.node.Kind == yaml.SequenceNode && len(f.node.Content) != 1:
		f.fail("%d ports: the server has one; those that version 3 takes beside it are given", len(f.node.Content))
	}
	return v
}

// portList is as if it stood in the file, so that it is checked like what does.
func portList(ports ...int) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	for _, p := range ports {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(p)})
	}
	return list
}

func within(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// optionalText is text that says nothing about an absent key.
func (f field) optionalText() (string, bool) {
	if !f.present() {
		return "", false
	}
	return f.text()
}

// absolute reads a path of the machine, which is not relative to the config file: all nodes
// have the same.
func (f field) absolute(to *string) bool {
	text, ok := f.text()
	switch {
	case !ok:
		return false
	case !filepath.IsAbs(text):
		f.fail("%q does not begin with /: clients and both nodes know it by one path", text)
		return false
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		f.fail("%q has a control character", text)
		return false
	}
	return set(to, filepath.Clean(text), true)
}

// options reads a list with commas and returns its words.
func (f field) options(to *string) []string {
	text, ok := f.optionalText()
	if !ok {
		return nil
	}
	words := strings.Split(text, ",")
	switch {
	case text == "":
		words = nil
	case len(text) > maxOptions:
		f.fail("has %d bytes: at most %d are possible", len(text), maxOptions)
		return nil
	case slices.Contains(words, ""), strings.HasPrefix(text, "-"),
		strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()"#\`, r) }):
		f.fail("%q is not a list of options with commas and without blanks", text)
		return nil
	}
	*to = text
	return words
}

// clients reads one client or a list of them.
func (f field) clients(to *[]string) {
	if !f.present() {
		return
	}
	items := []field{f}
	if f.node.Kind == yaml.SequenceNode {
		var ok bool
		if items, ok = f.items(); !ok {
			return
		}
	}
	if len(items) == 0 || len(items) > maxClients {
		f.fail("%d clients: 1 to %d are possible", len(items), maxClients)
		return
	}
	var all []string
	for _, item := range items {
		text, ok := item.text()
		switch {
		case !ok:
			return
		case text == "", len(text) > 255, strings.HasPrefix(text, "-"),
			strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`(),"#\[]`, r) }):
			item.fail("%q is not a client of exports(5), such as 10.0.0.0/8, host.example.org or *", text)
			return
		case slices.Contains(all, text):
			item.fail("%s is named twice", text)
			return
		}
		all = append(all, text)
	}
	*to = all
}

func (f field) versions(to *[]string) {
	if !f.present() {
		return
	}
	items, ok := f.items()
	if !ok {
		return
	}
	var all []string
	for _, item := range items {
		text, ok := item.text()
		switch {
		case !ok:
			return
		case !slices.Contains([]string{"3", "4.0", "4.1", "4.2"}, text):
			item.fail("%q is not one of 3, 4.0, 4.1, 4.2", text)
			return
		case slices.Contains(all, text):
			item.fail("%s is named twice", text)
			return
		}
		all = append(all, text)
	}
	if len(all) == 0 {
		f.fail("is empty: leave it out for 4.1 and 4.2")
		return
	}
	slices.Sort(all)
	*to = all
}

// nfsTime reads what the kernel takes in whole seconds.
func (f field) nfsTime(to *time.Duration) bool {
	if !f.present() || !f.duration(to, minNFSTime) {
		return false
	}
	switch {
	case *to > maxNFSTime:
		f.fail("%s is more than the kernel takes, %s", formatDuration(*to), formatDuration(maxNFSTime))
	case *to%time.Second != 0:
		f.fail("%s is not in whole seconds", formatDuration(*to))
	default:
		return true
	}
	return false
}
