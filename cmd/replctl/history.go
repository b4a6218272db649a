package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"tandem/agent/control"
	"tandem/agent/history"
)

func historyCommand() *cli.Command {
	return &cli.Command{
		Name:      "history",
		Usage:     "show what has happened on this node, also before its last restart",
		UsageText: "replctl --config FILE history [--json] [--all]",
		Description: "Changes of role and of the cluster record, what operators asked for and who they were, and how\n" +
			"long the phases of each change took, the newest last. The file is bounded: it goes back some\n" +
			"five thousand lines. `events` shows only what came since the agent's start, and can follow.\n\n" +
			"Example, both nodes side by side after a failover:\n" +
			"   replctl --config a.yaml history --all",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line", DisableDefaultText: true},
			&cli.BoolFlag{Name: "all", Usage: "of all nodes that answer, by time", DisableDefaultText: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			t, err := findTarget(c)
			if err != nil {
				return err
			}
			var all [][]history.Entry
			if !c.Bool("all") {
				entries, err := readHistory(c, t)
				if err != nil {
					return err
				}
				all = append(all, entries)
			} else if all, err = readHistories(c, t); err != nil {
				return err
			}
			for _, e := range history.Merge(all...) {
				if !c.Bool("json") {
					fmt.Fprintln(c.App.Writer, e.Text(time.Local))
					continue
				}
				b, err := json.Marshal(e)
				if err != nil { // it was JSON a moment ago
					panic(err)
				}
				fmt.Fprintf(c.App.Writer, "%s\n", b)
			}
			return nil
		},
	}
}

func readHistory(c *cli.Context, t target) ([]history.Entry, error) {
	var entries []history.Entry
	_, err := t.ask(c.Context, "history", nil, func(m control.Message) {
		var e history.Entry
		if m.Kind == control.KindEvent && json.Unmarshal(m.Data, &e) == nil {
			entries = append(entries, e)
		}
	})
	return entries, interrupted(c, err)
}

// readHistories is that of every node that answers; the others are named on
// stderr, because half a history that looks whole misleads.
func readHistories(c *cli.Context, t target) (all [][]history.Entry, err error) {
	s, err := askCluster(c)
	if len(s.Nodes) == 0 {
		return nil, err
	}
	for _, n := range s.Nodes {
		err := errors.New(n.Error)
		if n.Status != nil {
			of := t
			of.node = n.Node
			var entries []history.Entry
			if entries, err = readHistory(c, of); err == nil {
				all = append(all, entries)
				continue
			}
		}
		fmt.Fprintf(c.App.ErrWriter, "without node %s: %v\n", n.Node, err)
	}
	if len(all) == 0 {
		return nil, errors.New("no node answers")
	}
	return all, nil
}
