package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"tandem/agent/control"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:      "events",
		Usage:     "show what has happened on this node",
		UsageText: "replctl --config FILE events [--json] [--follow]",
		Description: "One line for each change of role, disk, link or witness, the newest last.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml events --follow",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "one JSON object a line", DisableDefaultText: true},
			&cli.BoolFlag{Name: "follow", Usage: "wait for more, until interrupted", DisableDefaultText: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			_, err := call(c, switches(c, "follow"), func(m control.Message) {
				if m.Kind != control.KindEvent {
					return
				}
				line := m.Text
				if c.Bool("json") {
					line = eventJSON(m)
				}
				fmt.Fprintln(c.App.Writer, line)
			})
			if c.Bool("follow") && c.Context.Err() != nil {
				return nil // interrupted, as it is meant to be
			}
			return err
		},
	}
}

// eventJSON gives an event without data an object too, so that a script can parse
// every line.
func eventJSON(m control.Message) string {
	if len(m.Data) > 0 {
		return string(m.Data)
	}
	b, err := json.Marshal(map[string]string{"text": m.Text})
	if err != nil { // one string
		panic(err)
	}
	return string(b)
}
