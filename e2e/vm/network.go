package vm

import (
	"fmt"
	"os/exec"
	"strings"
)

const (
	dataBridge = "br-data"
	mgmtBridge = "br-mgmt"

	dataNet = "10.77.0."
	mgmtNet = "10.78.0."
	// hostNumber is the host's last byte on both networks; what the host serves on the data
	// network can be cut off like a machine.
	hostNumber = 254
	// shellPort is where a guest's server listens, on the management network.
	shellPort = 7
)

// DataAddress is a machine's address on the network that may be cut.
func (m *Machine) DataAddress() string { return fmt.Sprintf("%s%d", dataNet, m.number) }

// DataMAC is the hardware address that goes with it.
func (m *Machine) DataMAC() string { return dataMAC(m.number) }

func dataMAC(number int) string { return fmt.Sprintf("52:54:00:77:00:%02x", number) }

// HostDataAddress and HostDataMAC are the host's on the network that may be cut.
func HostDataAddress() string { return fmt.Sprintf("%s%d", dataNet, hostNumber) }

// HostDataMAC goes with HostDataAddress.
func HostDataMAC() string { return dataMAC(hostNumber) }

func (m *Machine) shellAddress() string { return fmt.Sprintf("%s%d:%d", mgmtNet, m.number, shellPort) }

func (m *Machine) dataTap() string { return "d-" + m.Name }
func (m *Machine) mgmtTap() string { return "m-" + m.Name }

// setUpNetwork makes both bridges in this network namespace.
func setUpNetwork() error {
	script := "link set lo up\n"
	for _, b := range []string{dataBridge, mgmtBridge} {
		// Without the delay a new tap is deaf for its first 15 s.
		script += fmt.Sprintf("link add %s type bridge forward_delay 0 mcast_snooping 0\nlink set %s up\n", b, b)
	}
	script += fmt.Sprintf("link set %s address %s\naddr add %s/24 dev %[1]s\n", dataBridge, HostDataMAC(), HostDataAddress())
	script += fmt.Sprintf("addr add %s%d/24 dev %s\n", mgmtNet, hostNumber, mgmtBridge)
	return ip(script)
}

// plug makes the machine's two taps; they stay when its power is cut, like a
// cable.
func (m *Machine) plug() error {
	script := ""
	for tap, bridge := range map[string]string{m.dataTap(): dataBridge, m.mgmtTap(): mgmtBridge} {
		script += fmt.Sprintf("tuntap add %s mode tap vnet_hdr\nlink set %s master %s up\n", tap, tap, bridge)
	}
	return ip(script)
}

// ip runs a batch of iproute2's.
func ip(script string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s in %q", err, strings.TrimSpace(string(out)), script)
	}
	return nil
}
