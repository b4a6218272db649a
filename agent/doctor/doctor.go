// Package doctor looks for what would spoil a failover before there is one: on this
// machine, in the configuration, in AWS, and in what differs between the nodes.
//
// It reads the configuration and asks the machine itself, so it works whether the agent
// runs or not, and before it has ever run. It changes nothing but the scratch register on
// which the witness is probed. What it learns of a machine comes through System, so that
// each check has a test in which it alone finds something.
package doctor

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"tandem/agent/config"
)

// Status is how a check ended.
type Status string

// The statuses. A warning is what works and will hurt; a check that is skipped says why.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "failed"
	Skipped Status = "skipped"
)

// Finding is what a check has found. The names are what programs read: fields are added,
// never renamed, and so are ids.
type Finding struct {
	ID     string `json:"id"`
	Status Status `json:"status"`
	Text   string `json:"text"` // one line
	Fix    string `json:"fix"`  // what to do next; empty where there is nothing to do
}

// verdict is a Finding without its id.
type verdict struct {
	status Status
	text   string
	fix    string
}

func ok(format string, args ...any) verdict { return verdict{OK, fmt.Sprintf(format, args...), ""} }
func skip(format string, args ...any) verdict {
	return verdict{Skipped, fmt.Sprintf(format, args...), ""}
}

func warn(fix, format string, args ...any) verdict {
	return verdict{Warning, fmt.Sprintf(format, args...), fix}
}

func fail(fix, format string, args ...any) verdict {
	return verdict{Failed, fmt.Sprintf(format, args...), fix}
}

// checkLimit is for one check: what answers later is of no use in a failover.
const checkLimit = 15 * time.Second

// silentAfter is how long a check may wait for AWS for nothing before no other one tries.
const silentAfter = checkLimit / 2

// examination is one run.
type examination struct {
	cfg *config.Config
	sys System

	running bool // an agent answers at the control socket
	pid     int  // its process; 0: not known
	device  device
	peers   []answer // in the config's order
	aws     cloud
	witness error // of the check witness: the next one needs its answer

	asked  bool  // the check that runs has asked AWS
	silent error // a check has waited for AWS in vain: the next ones do not
}

// answer is a peer's, or why there is none.
type answer struct {
	node  string
	facts Facts
	err   error
}

// check is one of the list. The order is that of the output.
type check struct {
	id  string
	run func(*examination, context.Context) verdict
}

func checks() []check {
	return []check{
		{"witness", (*examination).checkWitness},
		{"witness-honest", (*examination).checkHonest},
		{"certificates", (*examination).checkCertificates},
		{"clock-source", (*examination).checkClock},
		{"peer-equal", (*examination).checkPeerEqual},
		{"size-equal", (*examination).checkSizeEqual},
		{"sectors", (*examination).checkSectors},
		{"write-cache", (*examination).checkWriteCache},
		{"device-claimed", (*examination).checkClaimed},
		{"watchdog", (*examination).checkWatchdog},
		{"replicated-logs", (*examination).checkReplicatedLogs},
		{"tools", (*examination).checkTools},
		{"kernel-module", (*examination).checkModule},
		{"ports", (*examination).checkPorts},
		{"iam", (*examination).checkIAM},
		{"source-dest-check", (*examination).checkSourceDest},
		{"route-tables", (*examination).checkRouteTables},
		{"ebs-identity", (*examination).checkEBSIdentity},
		{"ebs-baseline", (*examination).checkEBSBaseline},
		{"snapshot-volume", (*examination).checkSnapshot},
	}
}

// Examine runs all checks, in a fixed order.
func Examine(ctx context.Context, cfg *config.Config, sys System) []Finding {
	x := newExamination(cfg, sys)
	x.pid, x.running = sys.Agent(cfg.Control)
	x.askPeers(ctx)
	var all []Finding
	for _, c := range checks() {
		limited, cancel := context.WithTimeout(ctx, checkLimit)
		x.asked = false
		began := time.Now()
		v := c.run(x, limited)
		if took := time.Since(began); x.asked && v.status != OK && took > silentAfter {
			x.silent = fmt.Errorf("%w: the check %s has waited %v for it", errUnreachable, c.id, took.Round(time.Second))
		}
		cancel()
		all = append(all, Finding{ID: c.id, Status: v.status, Text: line(v.text), Fix: line(v.fix)})
	}
	return all
}

func newExamination(cfg *config.Config, sys System) *examination {
	x := &examination{cfg: cfg, sys: sys, aws: cloudOf(cfg)}
	x.device = x.look()
	return x
}

func (x *examination) askPeers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	x.peers = make([]answer, len(x.cfg.Peers))
	var asked sync.WaitGroup
	for i, p := range x.cfg.Peers {
		asked.Go(func() {
			facts, err := x.sys.Peer(ctx, p.Node)
			x.peers[i] = answer{node: p.Node, facts: facts, err: err}
		})
	}
	asked.Wait()
}

// line makes one line of what was quoted on the way.
func line(s string) string { return strings.Join(strings.Fields(s), " ") }

// list joins what there is more than one of.
func list(all []string) string { return strings.Join(all, ", ") }
