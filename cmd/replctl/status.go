package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"tandem/agent/control"
)

// watchEvery is how often --watch asks. It asks anew each time instead of keeping
// a stream, because an agent that restarts is what one watches.
const watchEvery = time.Second

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "show all nodes, and this one's peers and what is at risk",
		UsageText: "replctl --config FILE status [--json [--all]] [--watch]",
		Description: "One line for each node of the cluster, which are asked at once, each for at most a second; then\n" +
			"the peers, resync, I/O latency and service as this node sees them (with --node: as that one does).\n" +
			"AT RISK is what was acknowledged and would be lost if that node died now.\n" +
			"With --json it is this node's own status, with --all that of all nodes.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml status --watch",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print the whole status as JSON", DisableDefaultText: true},
			&cli.BoolFlag{Name: "all", Usage: "with --json: of all nodes", DisableDefaultText: true},
			&cli.BoolFlag{Name: "watch", Usage: "print it again every second, until interrupted", DisableDefaultText: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			if c.Bool("all") && !c.Bool("json") {
				return &usageError{"status: --all has no meaning without --json: the table has all nodes"}
			}
			if c.Bool("watch") {
				return watchStatus(c)
			}
			return showStatus(c, c.App.Writer, false)
		},
	}
}

// showStatus asks and prints. What could be learned is printed also when the agent
// here is down; the error then makes the exit status. oneLine is for a pipe.
func showStatus(c *cli.Context, w io.Writer, oneLine bool) error {
	if c.Bool("json") && !c.Bool("all") {
		raw, err := statusDocument(c)
		if err != nil {
			return err
		}
		return printJSON(w, raw, oneLine)
	}
	s, err := askCluster(c)
	if len(s.Nodes) == 0 || len(s.Nodes) == 1 && err != nil {
		return err // nothing was learned
	}
	if c.Bool("json") {
		raw, e := json.Marshal(s)
		if e != nil { // it was JSON a moment ago
			panic(e)
		}
		return errors.Join(err, printJSON(w, raw, oneLine))
	}
	return errors.Join(err, printStatus(w, s))
}

func statusDocument(c *cli.Context) (json.RawMessage, error) {
	t, err := findTarget(c)
	if err != nil {
		return nil, err
	}
	raw, err := t.ask(c.Context, "status", nil, nil)
	return raw, interrupted(c, err)
}

// watchStatus ends well when it is interrupted. An agent that does not answer is
// shown like any other state; only a wrong command line or configuration is not.
func watchStatus(c *cli.Context) error {
	if _, err := findTarget(c); err != nil {
		return err
	}
	terminal := isTerminal(os.Stdout)
	for {
		var out strings.Builder
		err := showStatus(c, &out, true)
		if c.Context.Err() != nil {
			return nil
		}
		switch {
		case errors.Is(err, control.ErrNoAgent), errors.Is(err, control.ErrClosed):
			if c.Bool("json") {
				fmt.Fprintln(c.App.ErrWriter, "replctl:", err)
			} else {
				fmt.Fprintln(&out, err)
			}
		case err != nil:
			return err
		case !c.Bool("json") && !terminal:
			fmt.Fprintln(&out)
		}
		text := out.String()
		if terminal && !c.Bool("json") {
			// Home, then clear to the end: a clear first would flicker.
			text = "\x1b[H" + strings.ReplaceAll(text, "\n", "\x1b[K\n") + "\x1b[J"
		}
		if _, err := io.WriteString(c.App.Writer, text); err != nil {
			return err
		}
		select {
		case <-c.Context.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}

func printJSON(w io.Writer, raw json.RawMessage, oneLine bool) error {
	if oneLine {
		_, err := fmt.Fprintf(w, "%s\n", raw)
		return err
	}
	b, err := json.MarshalIndent(raw, "", "  ")
	if err != nil {
		return fmt.Errorf("the agent's status is no JSON: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// printStatus writes the tables for a person. Programs use --json; this changes.
// The first node is the one that was asked, and has the rest to itself.
func printStatus(w io.Writer, all control.ClusterStatus) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }

	cluster := ""
	for _, n := range all.Nodes {
		if n.Status != nil {
			cluster = n.Status.Cluster
		}
	}
	row("CLUSTER", "NODE", "ROLE", "DISK", "EPOCH", "PRIMARY", "IN SYNC", "SIZE", "AT RISK")
	for _, n := range all.Nodes {
		s := n.Status
		if s == nil {
			row(orDash(cluster), n.Node, "unreachable", "-", "-", "-", "-", "-", "-")
			continue
		}
		row(s.Cluster, s.Node, s.Role, s.Disk, fmt.Sprint(s.Epoch), orDash(s.Primary), orDash(strings.Join(s.InSync, ",")),
			formatBytes(s.Volume.SizeBytes), formatBytes(s.AtRiskBytes))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range all.Nodes[1:] {
		if n.Status == nil {
			fmt.Fprintln(w, n.Error)
		} else if d := n.Status.StateDetail; d != "" {
			fmt.Fprintf(w, "node %s: %s\n", n.Node, d)
		}
	}
	if all.Nodes[0].Status == nil {
		return nil // the caller says why
	}
	s := *all.Nodes[0].Status
	if s.StateDetail != "" {
		fmt.Fprintln(w, s.StateDetail)
	}
	if s.Paused != nil {
		fmt.Fprintf(w, "automatic promotion is paused since %s, on node %s\n", s.Paused.Since.Local().Format(time.DateTime), s.Paused.By)
	}
	if s.FrozenSeconds > 0 {
		fmt.Fprintf(w, "I/O has been frozen for %.1f s, and fails after %.0f s\n", s.FrozenSeconds, s.FreezeSeconds)
	}
	if s.LeaseRemainingMS > 0 {
		fmt.Fprintf(w, "lease: %d ms left\n", s.LeaseRemainingMS)
	}
	if !s.Witness.OK {
		fmt.Fprintf(w, "the witness does not answer: %s\n", orDash(s.Witness.Error))
	}

	if len(s.Peers) > 0 {
		fmt.Fprintln(w)
		row("PEER", "LINK", "REPLICATION", "DISK", "OUT OF SYNC", "SENT", "ON WIRE", "RESYNC")
		for _, p := range s.Peers {
			resync := "-"
			if p.Resync != nil {
				resync = formatProgress(*p.Resync)
			}
			row(p.Node, orDash(p.Link), orDash(p.Replication), orDash(p.Disk), formatBytes(p.OutOfSyncBytes),
				formatBytes(p.SentBytes), formatBytes(p.WireBytes), resync)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}

	if s.IO.Read.Count+s.IO.Write.Count+s.IO.Flush.Count+s.IO.Trim.Count+s.IO.WriteZeroes.Count > 0 {
		fmt.Fprintln(w)
		row("IO", "COUNT", "ERRORS", "BYTES", "P50", "P99", "MAX")
		for _, op := range []struct {
			name string
			s    control.OpStatus
			rare bool // a line only where there was one
		}{{"read", s.IO.Read, false}, {"write", s.IO.Write, false}, {"flush", s.IO.Flush, false}, {"trim", s.IO.Trim, true}, {"write zeroes", s.IO.WriteZeroes, true}} {
			if op.rare && op.s.Count == 0 {
				continue
			}
			row(op.name, fmt.Sprint(op.s.Count), fmt.Sprint(op.s.Errors), formatBytes(int64(op.s.Bytes)),
				formatMicros(op.s.P50US), formatMicros(op.s.P99US), formatMicros(op.s.MaxUS))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}

	if len(s.Service) > 0 {
		fmt.Fprintln(w)
		row("STEP", "STATE", "SINCE")
		for _, step := range s.Service {
			row(step.Step, step.State, step.Since.Local().Format(time.DateTime))
		}
		return t.Flush()
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func formatMicros(us float64) string {
	switch {
	case us < 1e3:
		return fmt.Sprintf("%.0f µs", us)
	case us < 1e6:
		return fmt.Sprintf("%.1f ms", us/1e3)
	}
	return fmt.Sprintf("%.2f s", us/1e6)
}
