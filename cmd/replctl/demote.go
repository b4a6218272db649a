package main

import "github.com/urfave/cli/v2"

func demoteCommand() *cli.Command {
	return &cli.Command{
		Name:      "demote",
		Usage:     "make this node a secondary",
		UsageText: "replctl --config FILE demote",
		Description: "Hands over to a peer that is in sync, if one is up and failover.auto is on. Otherwise the\n" +
			"service stops, and no node promotes by itself until somebody says promote.\n\n" +
			"Example, before maintenance:\n" +
			"   replctl --config a.yaml demote",
		Before: noArguments,
		Action: func(c *cli.Context) error {
			_, err := call(c, nil, nil)
			return err
		},
	}
}
