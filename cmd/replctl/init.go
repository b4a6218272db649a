package main

import (
	"github.com/urfave/cli/v2"

	"tandem/agent"
	"tandem/agent/control"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "prepare this node's disk",
		UsageText: "replctl --config FILE init [--force] [--replace] | init --witness [--yes]",
		Description: "Makes the backing file if it is missing and writes the metadata. The data is left as it is.\n" +
			"Refused where metadata, or with internal metadata a filesystem, would be overwritten.\n" +
			"With --replace the disk takes the place of the one that the cluster record knows for this node:\n" +
			"it is filled by a resync, and from then on the old disk is refused.\n" +
			"With --witness the disk is left alone and the cluster record written anew, where it was deleted or put\n" +
			"back from a backup: this node alone is in sync then. Its agent must be stopped.\n\n" +
			"Example, on both nodes, then on the one whose data counts:\n" +
			"   replctl --config a.yaml init\n" +
			"   replagent --config a.yaml &\n" +
			"   replctl --config a.yaml promote",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "overwrite what is there", DisableDefaultText: true},
			&cli.BoolFlag{Name: "replace", Usage: "take the place of this node's old disk, which is gone", DisableDefaultText: true},
			&cli.BoolFlag{Name: "witness", Usage: "write the cluster record anew from what this node has seen", DisableDefaultText: true},
			&cli.BoolFlag{Name: "yes", Usage: "with --witness: do not ask", DisableDefaultText: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			switch {
			case c.Bool("witness") && (c.Bool("force") || c.Bool("replace")):
				return &usageError{"init: --witness goes with neither --force nor --replace: it leaves the disk alone"}
			case c.Bool("yes") && !c.Bool("witness"):
				return &usageError{"init: --yes goes with --witness"}
			case c.Bool("witness"):
				return agent.InitWitness(c.Context, cfg, func(text string) error {
					if c.Bool("yes") {
						return nil
					}
					return askOperator(c, &control.Confirm{Text: text, Node: cfg.Node})
				}, c.App.Writer)
			}
			return agent.Init(c.Context, cfg, agent.InitOptions{Force: c.Bool("force"), Replace: c.Bool("replace")}, c.App.Writer)
		},
	}
}
