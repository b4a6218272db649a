package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tandem/agent/control"
	"tandem/e2e/vm"
)

const (
	cluster = "nfs1"
	device  = "/dev/nbd0"

	// Assertions go by these. They are longer than the defaults, because an
	// emulated machine on a busy host stands still for seconds at times, and a
	// standby that leaves the set for that makes the scenario pointless.
	lease       = 5 * time.Second
	heartbeat   = 500 * time.Millisecond
	peerTimeout = 10 * time.Second
)

// node is one agent on its machine. Its configuration and log are in the shared
// folder: the log outlasts the power.
type node struct {
	*vm.Machine
	pid int // of the agent, 0 if it does not run
}

// dir is the node's folder in the shared one, config its file as the guest sees
// it.
func (n *node) dir(lab *vm.Lab) string { return filepath.Join(lab.Share, n.Name) }
func (n *node) config() string         { return "/e2e/" + n.Name + "/tandem.yaml" }
func (n *node) socket() string         { return "/run/tandem/" + n.Name + ".nbd" }

// configuration of n in a pair with peer. Promotion is by hand.
func configuration(n, peer *node) string {
	return strings.NewReplacer(
		"CLUSTER", cluster, "NODE", n.Name, "ADDRESS", n.DataAddress(), "SOCKET", n.socket(),
		"PEERNODE", peer.Name, "PEERADDRESS", peer.DataAddress(),
		"HEARTBEAT", heartbeat.String(), "LEASE", lease.String(), "TIMEOUT", peerTimeout.String(),
	).Replace(`cluster: CLUSTER
node: NODE
listen: ADDRESS:7788
peers: [{node: PEERNODE, address: "PEERADDRESS:7788"}]
volume: {device: /dev/vda}
nbd: {socket: SOCKET}
control: /run/tandem/NODE.sock
tls: {ca: ../pki/ca.pem, cert: ../pki/NODE.pem, key: ../pki/NODE.key}
witness: "file:/e2e/witness/record?shared=yes"
link: {peer_timeout: TIMEOUT}
failover: {auto: false, heartbeat: HEARTBEAT, lease: LEASE}
`)
}

func (n *node) writeConfig(lab *vm.Lab, peer *node) error {
	if err := os.MkdirAll(n.dir(lab), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.dir(lab), "tandem.yaml"), []byte(configuration(n, peer)), 0o644)
}

// ctl runs replctl on the node.
func (n *node) ctl(ctx context.Context, args string) (string, error) {
	return n.Shell(ctx, "replctl --config "+n.config()+" "+args)
}

func (n *node) status(ctx context.Context) (control.Status, error) {
	var s control.Status
	out, err := n.ctl(ctx, "status --json")
	if err != nil {
		return s, err
	}
	err = json.Unmarshal([]byte(out), &s)
	return s, err
}

// peer is the node's view of its only peer.
func peer(s control.Status) control.PeerStatus {
	if len(s.Peers) != 1 {
		return control.PeerStatus{}
	}
	return s.Peers[0]
}

// startAgent returns when the agent answers.
func (n *node) startAgent(ctx context.Context) (err error) {
	n.pid, err = n.Start(ctx, fmt.Sprintf("mkdir -p /run/tandem; modprobe nbd nbds_max=2; echo -1000 >/proc/self/oom_score_adj; exec replagent --config %s >>/e2e/%s/agent.log 2>&1", n.config(), n.Name))
	if err != nil {
		return err
	}
	for range 100 {
		if _, err = n.status(ctx); err == nil {
			return nil
		}
		if _, gone := n.Shell(ctx, fmt.Sprintf("kill -0 %d", n.pid)); gone != nil {
			return fmt.Errorf("the agent of %s has ended: %w", n.Name, gone)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("the agent of %s does not answer: %w", n.Name, err)
}

// stopAgent sends SIGTERM and waits for the end of the process.
func (n *node) stopAgent(ctx context.Context) error {
	_, err := n.Shell(ctx, fmt.Sprintf("kill %d; for i in {1..200}; do kill -0 %[1]d 2>/dev/null || exit 0; sleep 0.1; done; exit 1", n.pid))
	n.pid = 0
	return err
}

// attach makes the node's volume the kernel's /dev/nbd0. A request may take as
// long as the agent may be frozen, so the timeout is above that.
func (n *node) attach(ctx context.Context, connections int) error {
	_, err := n.Shell(ctx, fmt.Sprintf("modprobe nbd nbds_max=2 && nbd-client -unix %s %s -N %s -C %d -t 60 >&2", n.socket(), device, cluster, connections))
	return err
}

func (n *node) detach(ctx context.Context) error {
	_, err := n.Shell(ctx, "sync "+device+" && nbd-client -d "+device+" >&2")
	return err
}

// until asks for the status until it satisfies ok.
func (n *node) until(ctx context.Context, limit time.Duration, what string, ok func(control.Status) bool) (control.Status, error) {
	end := time.Now().Add(limit)
	for {
		s, err := n.status(ctx)
		if err == nil && ok(s) {
			return s, nil
		}
		if ctx.Err() != nil || time.Now().After(end) {
			b, _ := json.Marshal(s)
			return s, fmt.Errorf("%s: not %s within %v: %s, %v", n.Name, what, limit, b, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// inSync is the record's set as text, in order.
func inSync(s control.Status) string { return strings.Join(s.InSync, ",") }

// logMark is where the agent's log ends now, for logSince.
func (n *node) logMark(lab *vm.Lab) int64 {
	st, err := os.Stat(filepath.Join(n.dir(lab), "agent.log"))
	if err != nil {
		return 0
	}
	return st.Size()
}

// logSince is what the agent has logged since a mark.
func (n *node) logSince(lab *vm.Lab, mark int64) (string, error) {
	b, err := os.ReadFile(filepath.Join(n.dir(lab), "agent.log"))
	if err != nil {
		return "", err
	}
	return string(b[min(mark, int64(len(b))):]), nil
}

// ahead is by how much a machine's clock, the one in its logs, is ahead of ours, and how
// uncertain that is.
func ahead(ctx context.Context, m *vm.Machine) (by, give time.Duration, err error) {
	give = time.Hour
	for range 5 { // the quickest answer says most
		sent := time.Now()
		out, err := m.Shell(ctx, "echo $EPOCHREALTIME")
		took := time.Since(sent)
		if err != nil {
			return 0, 0, err
		}
		sec, err := strconv.ParseFloat(out, 64)
		if err != nil {
			return 0, 0, err
		}
		if took/2 < give {
			by, give = time.UnixMicro(int64(sec*1e6)).Sub(sent.Add(took/2)), took/2
		}
	}
	return by, give, nil
}

// A cut is made where it is looked at, in the guests' kernels: frames are dropped as they come
// from the wire or go to it, ARP included, and the carrier stays.

const cutTable = "netdev e2e"

// deaf drops what arrives on the data network from a hardware address, and silence what
// goes there.
func (n *node) deaf(ctx context.Context, mac string) error {
	return n.filter(ctx, "add rule "+cutTable+" in ether saddr "+mac+" drop")
}

func (n *node) silence(ctx context.Context, mac string) error {
	return n.filter(ctx, "add rule "+cutTable+" out ether daddr "+mac+" drop")
}

// deafOnly is deaf, and ends every other cut of this node in the same moment.
func (n *node) deafOnly(ctx context.Context, mac string) error {
	_, err := n.Shell(ctx, "nft -f - <<'NFT'\nflush table "+cutTable+"\nadd rule "+cutTable+" in ether saddr "+mac+" drop\nNFT")
	return err
}

func (n *node) filter(ctx context.Context, rule string) error {
	_, err := n.Shell(ctx, "nft -f - <<'NFT'\nadd table "+cutTable+"\n"+
		"add chain "+cutTable+" in { type filter hook ingress device eth0 priority -500; }\n"+
		"add chain "+cutTable+" out { type filter hook egress device eth0 priority -500; }\n"+rule+"\nNFT")
	return err
}

// heal ends what deaf and silence began.
func (n *node) heal(ctx context.Context) error {
	_, err := n.Shell(ctx, "! nft list table "+cutTable+" >/dev/null 2>&1 || nft delete table "+cutTable)
	return err
}
