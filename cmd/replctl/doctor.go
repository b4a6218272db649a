package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"tandem/agent"
	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/agent/doctor"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "look for what would spoil a failover",
		UsageText: "replctl --config FILE doctor [--json]\n   replctl doctor --defaults",
		Description: "Checks this machine, the configuration, the witness, AWS where a step needs it, and what has to be the\n" +
			"same on all nodes. It works whether the agent runs or not, and changes nothing. Run it on each node, as the\n" +
			"agent's user. The exit status is 1 if a check has failed; warnings do not count, a check that is skipped\n" +
			"says why. With --json it is [{id, status, text, fix}].\n\n" +
			"Example:\n" +
			"   replctl --config /etc/tandem/nfs1.yaml doctor",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print the findings as JSON", DisableDefaultText: true},
			&cli.BoolFlag{Name: "defaults", Usage: "print every key that a config may leave out, with its value", DisableDefaultText: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			if c.Bool("defaults") {
				if c.Bool("json") {
					return &usageError{"doctor: --defaults is YAML: leave out --json"}
				}
				_, err := io.WriteString(c.App.Writer, config.Defaults())
				return err
			}
			cfg, err := loadConfig(c)
			if err != nil {
				return err
			}
			origin := control.UserName(uint32(os.Getuid()))
			found := doctor.Examine(c.Context, cfg, doctor.ThisMachine(cfg, func(ctx context.Context, node string) (doctor.Facts, error) {
				return agent.AskFacts(ctx, cfg, node, origin)
			}))
			if c.Context.Err() != nil {
				return interrupted(c, c.Context.Err())
			}
			if c.Bool("json") {
				err = printFindingsJSON(c.App.Writer, found)
			} else {
				err = printFindings(c.App.Writer, found)
			}
			if err != nil {
				return err
			}
			return failedChecks(found)
		},
	}
}

func printFindingsJSON(w io.Writer, found []doctor.Finding) error {
	b, err := json.MarshalIndent(found, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// printFindings has a line for each check, and one below it where there is something to do.
func printFindings(w io.Writer, found []doctor.Finding) error {
	var out strings.Builder
	count := make(map[doctor.Status]int)
	width := 0
	for _, f := range found {
		width = max(width, len(f.ID))
	}
	for _, f := range found {
		count[f.Status]++
		fmt.Fprintf(&out, "%-7s  %-*s  %s\n", f.Status, width, f.ID, f.Text)
		if f.Fix != "" {
			fmt.Fprintf(&out, "%-7s  %-*s  -> %s\n", "", width, "", f.Fix)
		}
	}
	fmt.Fprintf(&out, "%d ok, %d warning, %d failed, %d skipped\n",
		count[doctor.OK], count[doctor.Warning], count[doctor.Failed], count[doctor.Skipped])
	_, err := io.WriteString(w, out.String())
	return err
}

func failedChecks(found []doctor.Finding) error {
	var ids []string
	for _, f := range found {
		if f.Status == doctor.Failed {
			ids = append(ids, f.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return fmt.Errorf("doctor: failed: %s", strings.Join(ids, ", "))
}
