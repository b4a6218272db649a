package main

import (
	"github.com/urfave/cli/v2"

	"tandem/agent"
)

func dumpMDCommand() *cli.Command {
	return &cli.Command{
		Name:      "dump-md",
		Usage:     "print the metadata on this node's disk",
		UsageText: "replctl --config FILE dump-md",
		Description: "Reads the disk and not the agent, which may be down: generations, epoch, flags, and how much\n" +
			"is dirty for each peer. Nothing is written.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml dump-md",
		Before: noArguments,
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return agent.DumpMetadata(c.Context, cfg, c.App.Writer)
		},
	}
}
