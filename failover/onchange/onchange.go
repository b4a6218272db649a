// Package onchange runs the operator's on_change command: a mail, a chat message, a
// line in a ticket. It is told of changes and decides nothing, so it is never in the path
// of a failover: Tell only queues, and what the command does, or fails to do, is logged.
//
// The command gets the change as environment:
//
//	ROLE     Primary or Secondary, of this node from now on
//	EPOCH    the epoch of that
//	REASON   one sentence
//	PEER     the other node that the change is about, or empty
//
// and TANDEM_CLUSTER and TANDEM_NODE. It runs once per change, one at a time and in
// order; after its time is over it is ended with all that it started.
package onchange

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"tandem/failover/internal/command"
)

const (
	// maxQueued is how many changes wait for the command. A node that flaps once a
	// second must not pile up a night of mails; the newest say what matters.
	maxQueued = 16

	// defaultTimeout is for a command that has to reach a server.
	defaultTimeout = 30 * time.Second

	// drainTime is for what is queued when the agent ends: the last change is the
	// one that somebody wants to hear of. It is short of what systemd waits.
	drainTime = 5 * time.Second

	// maxReason bounds what goes into an environment variable.
	maxReason = 1 << 10
)

// Change is what the command is told.
type Change struct {
	Role   string
	Epoch  uint64
	Reason string
	Peer   string
}

// Config is what a Hook needs.
type Config struct {
	Cluster string
	Node    string
	Argv    []string // empty: nothing is run
	Dir     string   // working directory; empty: the agent's
	Timeout time.Duration
	Log     *slog.Logger
}

// Hook runs the command for each change.
type Hook struct {
	cfg Config

	mu     sync.Mutex // guards what follows
	queue  []Change   // at most maxQueued
	filled chan struct{}
}

// New returns the Hook; Run makes it work.
func New(cfg Config) *Hook {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	return &Hook{cfg: cfg, filled: make(chan struct{}, 1)}
}

// Tell queues a change and returns at once. If too many wait, the oldest is dropped.
func (h *Hook) Tell(c Change) {
	if len(h.cfg.Argv) == 0 {
		return
	}
	h.mu.Lock()
	h.queue = append(h.queue, c)
	var dropped Change
	full := len(h.queue) > maxQueued
	if full {
		dropped = h.queue[0]
		h.queue = append(h.queue[:0], h.queue[1:]...)
	}
	h.mu.Unlock()
	if full {
		h.cfg.Log.Warn("on_change is too slow: its oldest change was dropped", "role", dropped.Role, "epoch", dropped.Epoch, "reason", dropped.Reason)
	}
	select {
	case h.filled <- struct{}{}:
	default:
	}
}

// Run runs the command for what is queued until ctx ends, then for a few seconds
// more for what still is, and returns nil.
func (h *Hook) Run(ctx context.Context) error {
	// The command that runs at the end is one of those few seconds.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(drainTime, cancel) })
	defer stop()
	for {
		c, ok := h.next()
		switch {
		case ok && running.Err() == nil:
			h.run(running, c)
			continue
		case ok:
			h.cfg.Log.Warn("on_change was not told: the agent ends", "role", c.Role, "epoch", c.Epoch, "reason", c.Reason)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-h.filled:
		}
	}
}

func (h *Hook) next() (Change, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queue) == 0 {
		return Change{}, false
	}
	c := h.queue[0]
	h.queue = append(h.queue[:0], h.queue[1:]...)
	return c, true
}

func (h *Hook) run(ctx context.Context, c Change) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	cmd := command.Command{Argv: h.cfg.Argv, Dir: h.cfg.Dir, Env: []string{
		"TANDEM_CLUSTER=" + h.cfg.Cluster, "TANDEM_NODE=" + h.cfg.Node,
		"ROLE=" + c.Role, "EPOCH=" + strconv.FormatUint(c.Epoch, 10), "REASON=" + oneLine(c.Reason), "PEER=" + c.Peer,
	}}
	if err := cmd.Run(ctx); err != nil {
		if errors.Is(err, command.ErrLeftover) {
			err = errors.Join(err, errors.New("what it left behind was ended"))
		}
		h.cfg.Log.Warn("on_change failed", "role", c.Role, "epoch", c.Epoch, "err", err)
	}
}

// oneLine makes a text safe for an environment variable: a zero byte would make exec
// refuse all of it, and a line break surprises a shell script.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}
