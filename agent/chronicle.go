package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tandem/agent/history"
	"tandem/failover"
)

// chronicle notices what belongs into the history. It looks at the cores after
// every input, by level: whatever made a change, its trace is the same.
type chronicle struct {
	log *history.Log

	seen   *failover.Record // last looked at
	serial uint64           // of the record last noted, perhaps in another life
	// left is when this node left the in-sync set, as far as it was told; zero while
	// it is in it.
	left time.Time
	// led is the last epoch in which this node was primary and that it did not
	// hand over: it is zero again once the node is a member under another.
	led    uint64
	frozen int64  // since when, as last seen
	why    string // what the last StepDown said
}

// historyPath is beside the config, or where systemd lets the unit write.
func (a *Agent) historyPath() string {
	dir := a.cfg.Dir
	if s, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":"); s != "" {
		dir = s
	}
	return filepath.Join(dir, a.cfg.Node+".history")
}

// openHistory takes up the history. A file that cannot be had is no reason not to
// serve.
func (a *Agent) openHistory() {
	c := &a.chronicle
	path := a.historyPath()
	log, err := history.Open(path, a.log)
	if err != nil {
		a.log.Warn("history is kept in memory only", "err", err)
		log, _ = history.Open("", a.log) // touches nothing
	}
	c.log = log
	c.led = a.node.Vote.Hard().Served
	entries, err := log.Entries()
	if err != nil {
		a.log.Warn("history", "err", err)
	}
	for _, e := range entries {
		switch e.Kind {
		case history.KindRole:
			if e.To == failover.Primary.String() {
				c.led = e.Epoch
			}
		case history.KindRecord:
			c.serial = e.Serial
			c.member(e.To, slices.Contains(e.InSync, a.cfg.Node), e.Changed, a.cfg.Node)
		}
	}
}

// member follows what the record says of this node.
func (c *chronicle) member(primary string, inSync bool, changed time.Time, self string) {
	switch {
	case inSync:
		c.left = time.Time{}
		if primary != self {
			c.led = 0
		}
	case c.left.IsZero():
		c.left = changed
	}
}

// note adds to the history. The mutex may be held: nothing here waits.
func (a *Agent) note(e history.Entry) {
	e.Time, e.Node = time.Now().UTC(), a.cfg.Node
	a.chronicle.log.Add(e)
}

// watch notes what the last input has changed. The mutex is held.
func (a *Agent) watch(t int64) {
	c := &a.chronicle
	if f := a.node.Vote.FrozenSince(); f != c.frozen {
		if f == 0 {
			a.note(history.Entry{Kind: history.KindPhase, Phase: "frozen", Seconds: float64(t-c.frozen) / 1e9})
		}
		c.frozen = f
	}
	rec, _ := a.node.Vote.Record()
	if rec == nil || rec == c.seen {
		return
	}
	c.seen = rec
	a.dropForgotten(t, rec)
	if rec.Serial == c.serial {
		return // a routine look, or the first after a restart
	}
	c.serial = rec.Serial
	c.member(rec.Primary, rec.Has(a.cfg.Node), rec.ChangedAt, a.cfg.Node)
	a.note(history.Entry{Kind: history.KindRecord, To: rec.Primary, Epoch: rec.Epoch, InSync: slices.Clone(rec.InSync),
		Why: rec.Reason, By: "node " + rec.ChangedBy, Serial: rec.Serial, Changed: rec.ChangedAt})
}

// dropForgotten lets go of what is kept of nodes that neither the config nor the
// record names: they were forgotten, here or elsewhere. The mutex is held.
func (a *Agent) dropForgotten(t int64, rec *failover.Record) {
	for _, name := range a.node.Vol.Kept() {
		if _, member := rec.Member(name); !member && a.node.Vol.Forget(t, name) {
			a.event("node " + name + " is in neither the config nor the cluster record: what is kept of its copy is dropped")
		}
	}
	a.node.Pump(t)
}

// roleChanged notes a role. The mutex is held.
func (a *Agent) roleChanged(from, to failover.Role, phase string, seconds float64) {
	c := &a.chronicle
	e := history.Entry{Kind: history.KindRole, From: from.String(), To: to.String(), Epoch: a.node.Vote.Epoch()}
	rec, _ := a.node.Vote.Record()
	switch {
	case to == failover.Primary && from == failover.Candidate:
		c.led = e.Epoch
		a.tookOver()
		if rec != nil {
			e.Why = rec.Reason
		}
	case to == failover.Secondary && from == failover.Candidate:
		e.Why = "its claim came to nothing"
	case to == failover.Secondary:
		e.Why = c.why
	}
	a.note(e)
	if phase != "" {
		a.note(history.Entry{Kind: history.KindPhase, Phase: phase, Seconds: seconds})
	}
}
