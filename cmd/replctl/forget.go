package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"tandem/failover/record"
)

func forgetCommand() *cli.Command {
	return &cli.Command{
		Name:      "forget",
		Usage:     "remove a node that is gone for good",
		UsageText: "replctl --config FILE forget [--yes] NODE",
		Description: "Takes NODE out of the in-sync set and the cluster record and drops what is kept of its copy.\n" +
			"Refused while it answers or is the primary. Goes on when you type its name, or with --yes.\n" +
			"If its machine comes back with a new disk, `init --replace` there is what you want instead.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml forget b",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "yes", Usage: "do not ask", DisableDefaultText: true},
		},
		Action: func(c *cli.Context) error {
			node := c.Args().First()
			switch {
			case c.NArg() == 0:
				return &usageError{"forget: which node? write its name last"}
			case strings.HasPrefix(node, "-") || c.NArg() > 1 && strings.HasPrefix(c.Args().Get(1), "-"):
				return &usageError{"forget: options go before the node's name"}
			case c.NArg() > 1:
				return &usageError{"forget takes one node"}
			case !record.ValidName(node):
				return &usageError{fmt.Sprintf("forget: %q is not a node name", node)}
			}
			args := switches(c, "yes")
			args["node"] = node
			return callConfirmed(c, args)
		},
	}
}
