package main

import "github.com/urfave/cli/v2"

func waitSyncCommand() *cli.Command {
	return &cli.Command{
		Name:      "wait-sync",
		Usage:     "wait until every peer is in sync",
		UsageText: "replctl --config FILE wait-sync [--timeout DURATION]",
		Description: "Exits 0 when every peer is in sync, 1 when the time is over.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml wait-sync --timeout 10m && echo safe",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "timeout", Usage: "give up after `DURATION`, such as 30s (default: never)"},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			args := map[string]string{}
			if c.IsSet("timeout") {
				if c.Duration("timeout") <= 0 {
					return &usageError{"wait-sync: --timeout must be more than 0"}
				}
				args["timeout"] = c.Duration("timeout").String()
			}
			_, err := call(c, args, nil)
			return err
		},
	}
}
