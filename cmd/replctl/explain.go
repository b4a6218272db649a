package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"tandem/agent/control"
	"tandem/agent/explain"
)

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		Usage:     "say how the cluster is, what a loss would cost, and what to type next",
		UsageText: "replctl --config FILE explain",
		Description: "Asks all nodes, each for at most a second, and says in sentences what their state is, what would\n" +
			"be lost if one of them died now, and the next command. It changes nothing.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml explain",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "status", Usage: "explain the output of `status --json --all` in `FILE`", Hidden: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			s, home, err := explained(c)
			if len(s.Nodes) == 0 {
				return err
			}
			cmd := explain.Command{Base: "replctl", Home: home}
			for _, name := range []string{"config", "control"} {
				if v := c.String(name); v != "" {
					cmd.Base += " --" + name + " " + quote(v)
				}
			}
			fmt.Fprint(c.App.Writer, explain.Text(s, cmd, time.Local))
			// That the agent here is down is part of the answer.
			if errors.Is(err, control.ErrNoAgent) {
				return nil
			}
			return err
		},
	}
}

// explained is what there is to explain, and the node that the command line reaches
// without --node.
func explained(c *cli.Context) (s control.ClusterStatus, home string, err error) {
	if file := c.String("status"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return s, "", fmt.Errorf("explain: %w", err)
		}
		if err := json.Unmarshal(b, &s); err != nil || len(s.Nodes) == 0 {
			return s, "", fmt.Errorf("explain: %s is no output of `status --json --all`: %w", file, errors.Join(err, control.ErrProtocol))
		}
		return s, s.Nodes[0].Node, nil
	}
	t, err := findTarget(c)
	if err != nil {
		return s, "", err
	}
	s, err = askCluster(c)
	switch {
	case t.cfg != nil:
		home = t.cfg.Node
	case t.node == "" && len(s.Nodes) > 0:
		home = s.Nodes[0].Node
	}
	return s, home, err
}

// quote is for a shell, where it has to be.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%=,", r)
	}
	if strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
