package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

func helpCommand() *cli.Command {
	return &cli.Command{
		Name:      "help",
		Usage:     "show the help of replctl or of a verb",
		UsageText: "replctl help [VERB]",
		Action: func(c *cli.Context) error {
			switch {
			case c.NArg() == 0:
				return cli.ShowAppHelp(c)
			case c.NArg() > 1:
				return &usageError{"help takes one verb"}
			case c.App.Command(c.Args().First()) == nil:
				return &usageError{fmt.Sprintf("unknown verb %q: `replctl --help` lists them", c.Args().First())}
			}
			return cli.ShowCommandHelp(c, c.Args().First())
		},
	}
}
