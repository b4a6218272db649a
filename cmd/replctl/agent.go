package main

import (
	"log/slog"

	"github.com/urfave/cli/v2"

	"tandem/agent"
)

// agentCommand is replagent under another name, so that demo needs one program
// only. It is hidden: a service file should name replagent.
func agentCommand() *cli.Command {
	return &cli.Command{
		Name:        "agent",
		Hidden:      true,
		Usage:       "run the agent in the foreground, like replagent",
		UsageText:   "replctl --config FILE agent",
		Description: "Example:\n   replctl --config a.yaml agent",
		Before:      noArguments,
		Action: func(c *cli.Context) error {
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			return agent.Run(c.Context, cfg, slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)))
		},
	}
}
