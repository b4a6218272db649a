package main

import "github.com/urfave/cli/v2"

func pauseCommand() *cli.Command {
	return &cli.Command{
		Name:      "pause",
		Usage:     "have no node take over by itself",
		UsageText: "replctl --config FILE pause",
		Description: "Writes into the cluster record that nobody promotes by itself. Replication goes on, and so does\n" +
			"the service. status and explain say since when. `resume` ends it, and so does a `promote`.\n\n" +
			"Example, before work on the network:\n" +
			"   replctl --config a.yaml pause",
		Before: noArguments,
		Action: func(c *cli.Context) error {
			_, err := call(c, nil, nil)
			return err
		},
	}
}

func resumeCommand() *cli.Command {
	return &cli.Command{
		Name:      "resume",
		Usage:     "let nodes take over by themselves again",
		UsageText: "replctl --config FILE resume",
		Description: "Ends what pause, or a demote without a node to hand over to, began.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml resume",
		Before: noArguments,
		Action: func(c *cli.Context) error {
			_, err := call(c, nil, nil)
			return err
		},
	}
}
