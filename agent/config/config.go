// Package config reads the agent's configuration file, the user's contract of
// design.md, section 8.
//
// It is strict, because every mistake here shows itself only at a failover: an
// unknown, doubled or missing key, a number without a unit and a key of a later
// version are errors that name file, line and key.
package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// maxFile bounds what is parsed. A config is under 2 KiB.
const maxFile = 256 << 10

// Config is a valid configuration. All paths are absolute; every default is
// filled in.
type Config struct {
	File string // as it was given to Load, for messages
	Dir  string // what relative paths were relative to

	Cluster string
	Node    string
	Listen  string // host:port
	Peers   []Peer
	Volume  Volume
	NBD     NBD
	Control string // path of the control socket
	HTTP    string // host:port, empty: off
	TLS     TLS

	// Witness is the URL as written; witness.Open resolves it against Dir.
	Witness string

	Link     Link
	Resync   Resync
	Failover Failover

	AWS      AWS
	Fence    Fence
	OnChange []string // command that is told of changes; empty: none
	Service  []Step   // in start order
}

// Peer is another node of the cluster.
type Peer struct {
	Node    string
	Address string // host:port; empty: it is found by Tag

	// Tag is the tag of EC2's that has Node as its value on the peer's instance, and Port
	// where the peer listens on that instance's private address. Empty: it has an Address.
	Tag  string
	Port uint16
}

// Volume is the local disk.
type Volume struct {
	Device      string        // path; of an EBS volume the link that udev makes when it is attached
	EBS         string        // id of an EBS volume, vol-…; empty: Device was named itself
	Size        int64         // bytes; 0: all of the block device
	Metadata    string        // path; empty: internal, at the end of the device
	Protocol    string        // "C"
	DiskTimeout time.Duration // a disk that hangs for longer has failed
}

// NBD is where clients attach.
type NBD struct {
	Socket string
	TCP    string // host:port, empty: off
}

// TLS has either all three files or Insecure.
type TLS struct {
	CA, Cert, Key string
	Insecure      bool // only with loopback addresses
}

// Link is the connection to each peer.
type Link struct {
	Compression string // "auto" or "none"
	Flows       int
	PeerTimeout time.Duration // without progress on a write a peer is dropped
}

// Resync is how a peer's copy is brought up to date.
type Resync struct {
	MaxRate int64 // bytes per second; 0: auto
}

// Failover is who becomes primary and when.
type Failover struct {
	Auto      bool
	Heartbeat time.Duration
	Lease     time.Duration // L of design.md, rule 5.5
	Freeze    time.Duration // how long I/O waits before it fails
	SelfFence string        // "stop" or "reboot"
	Prefer    string        // node that should be primary when it can; empty: none
	Restart   time.Duration // how long peers wait for an agent that said it comes back
	AllowLoss int64         // bytes that an automatic promotion may lose
}

// Peer returns the peer called node.
func (c *Config) Peer(node string) (Peer, bool) {
	for _, p := range c.Peers {
		if p.Node == node {
			return p, true
		}
	}
	return Peer{}, false
}

// PeersByTag returns the tag by which EC2 knows where the peers are, and their port. It is
// empty if they have addresses.
func (c *Config) PeersByTag() (tag string, port uint16) {
	if len(c.Peers) == 0 {
		return "", 0
	}
	return c.Peers[0].Tag, c.Peers[0].Port
}

// Load reads the file at path. Relative paths in it are relative to its folder.
func Load(path string) (*Config, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return Parse(path, data, dir)
}

// Parse reads the content of a config file; name stands in errors, dir is what
// relative paths are relative to. The first mistake in the file is returned as an
// *Error. The file system is asked one question, whether volume.device is a
// block device, and not even that of an EBS volume, which may not be attached yet.
func Parse(name string, data []byte, dir string) (*Config, error) {
	return parse(name, data, dir, isBlockDevice)
}

func isBlockDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

func parse(name string, data []byte, dir string, isBlock func(string) bool) (*Config, error) {
	d := &decoder{file: name, dir: dir}
	root := d.document(data)
	if root == nil {
		return nil, d.first()
	}
	c := defaults()
	c.File, c.Dir = name, dir
	d.config(root, &c, isBlock)
	if err := d.first(); err != nil {
		return nil, err
	}
	return &c, nil
}
