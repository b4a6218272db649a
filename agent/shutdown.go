package agent

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"tandem/agent/control"
)

// handOverLimit is how long a host that goes down is held up for a planned
// move. systemd gives a unit 90 s by default.
const handOverLimit = 10 * time.Second

// hostStopping asks systemd whether the whole host is going down.
func hostStopping(ctx context.Context) bool {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	// The exit status says only that it is not "running".
	out, _ := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	return strings.TrimSpace(string(out)) == "stopping"
}

// handOver moves the service to an in-sync peer, if there is one.
func (a *Agent) handOver(ctx context.Context) {
	s := a.status()
	heir := slices.ContainsFunc(s.Peers, func(p control.PeerStatus) bool {
		return p.Replication == "Established" && slices.Contains(s.InSync, p.Node)
	})
	if s.Role != "Primary" || !heir {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handOverLimit)
	defer cancel()
	a.log.Info("the host is going down: handing over")
	err := a.ask(ctx, "the host that goes down", func(m control.Message) error {
		a.log.Info("hand-over", "text", m.Text)
		return nil
	}, func(now int64, op uint64) { a.node.Vote.Demote(now, op) })
	if err != nil {
		a.log.Warn("hand-over", "err", err)
	}
}
