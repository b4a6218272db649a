package config

import (
	"bytes"
	"fmt"
	"time"
)

// defaults has a value for every key that may be left out.
func defaults() Config {
	return Config{
		Volume: Volume{Protocol: "C", DiskTimeout: 30 * time.Second},
		Link:   Link{Compression: "auto", Flows: 1, PeerTimeout: 6 * time.Second},
		Failover: Failover{
			Auto: true, Heartbeat: 500 * time.Millisecond, Lease: 3 * time.Second, Freeze: 30 * time.Second,
			SelfFence: "stop", Restart: 10 * time.Second,
		},
	}
}

// Defaults renders every key that may be left out, with its value, as YAML that
// could be pasted into a config file.
func Defaults() string {
	c := defaults()
	var b bytes.Buffer
	fmt.Fprintf(&b, "http: %q\n", c.HTTP)
	fmt.Fprintf(&b, "volume:\n")
	fmt.Fprintf(&b, "  metadata: internal\n")
	fmt.Fprintf(&b, "  protocol: %s\n", c.Volume.Protocol)
	fmt.Fprintf(&b, "  disk_timeout: %s\n", formatDuration(c.Volume.DiskTimeout))
	fmt.Fprintf(&b, "nbd:\n")
	fmt.Fprintf(&b, "  tcp: %q\n", c.NBD.TCP)
	fmt.Fprintf(&b, "link:\n")
	fmt.Fprintf(&b, "  compression: %s\n", c.Link.Compression)
	fmt.Fprintf(&b, "  flows: %d\n", c.Link.Flows)
	fmt.Fprintf(&b, "  peer_timeout: %s\n", formatDuration(c.Link.PeerTimeout))
	fmt.Fprintf(&b, "resync:\n")
	fmt.Fprintf(&b, "  max_rate: auto\n")
	fmt.Fprintf(&b, "failover:\n")
	fmt.Fprintf(&b, "  auto: %t\n", c.Failover.Auto)
	fmt.Fprintf(&b, "  heartbeat: %s\n", formatDuration(c.Failover.Heartbeat))
	fmt.Fprintf(&b, "  lease: %s\n", formatDuration(c.Failover.Lease))
	fmt.Fprintf(&b, "  freeze: %s\n", formatDuration(c.Failover.Freeze))
	fmt.Fprintf(&b, "  self_fence: %s\n", c.Failover.SelfFence)
	fmt.Fprintf(&b, "  prefer: %q\n", c.Failover.Prefer)
	fmt.Fprintf(&b, "  restart: %s\n", formatDuration(c.Failover.Restart))
	fmt.Fprintf(&b, "  allow_loss: %d\n", c.Failover.AllowLoss)
	fmt.Fprintf(&b, "aws:\n")
	fmt.Fprintf(&b, "  region: %q\n", c.AWS.Region)
	fmt.Fprintf(&b, "  endpoint: %q\n", c.AWS.Endpoint)
	fmt.Fprintf(&b, "  metadata: %q\n", c.AWS.Metadata)
	fmt.Fprintf(&b, "on_change: []\n")
	fmt.Fprintf(&b, "service: []\n")
	return b.String()
}
