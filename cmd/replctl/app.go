package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"tandem/agent/config"
)

func newApp() *cli.App {
	app := &cli.App{
		Name:      "replctl",
		Usage:     "control a Tandem node",
		UsageText: "replctl [--config FILE | --control SOCKET] [--node NODE] VERB [options]",
		Description: "Tandem keeps a block device identical on two machines and moves the service on it.\n" +
			"The options of replctl itself go before the verb. `replctl help VERB` shows a verb.\n" +
			"With --node the verb is done by another node of the cluster. The agent here asks it; if there is\n" +
			"none, replctl does, with the certificate that the configuration names.\n\n" +
			"Exit status: 0 done, 1 refused or failed, 2 wrong usage.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "the node's configuration `FILE`"},
			&cli.StringFlag{Name: "control", Usage: "the control `SOCKET` of a running agent"},
			&cli.StringFlag{Name: "node", Usage: "have the agent of `NODE` do it"},
			cli.HelpFlag, // urfave adds it to the verbs, but not beside a verb called help
		},
		Commands: []*cli.Command{
			initCommand(), certsCommand(), doctorCommand(), statusCommand(), explainCommand(), promoteCommand(), demoteCommand(), pauseCommand(), resumeCommand(),
			resyncCommand(), waitSyncCommand(), historyCommand(), eventsCommand(), forgetCommand(), dumpMDCommand(), demoCommand(),
			checkerCommand(), agentCommand(), helpCommand(),
		},
		Action: noVerb,
		// urfave's own help command would be a verb below every verb, so that
		// `certs h` would show help instead of naming a node h.
		HideHelpCommand: true,
		HideVersion:     true,
		OnUsageError:    onUsageError,
		// Without this urfave ends the process by itself, with its own statuses.
		ExitErrHandler: func(*cli.Context, error) {},
	}
	for _, cmd := range app.Commands {
		cmd.HideHelpCommand = true
		cmd.OnUsageError = onUsageError
	}
	return app
}

// noVerb runs when the first argument is no verb.
func noVerb(c *cli.Context) error {
	if c.NArg() == 0 {
		return &usageError{"no verb is given: `replctl --help` lists them"}
	}
	name := c.Args().First()
	if slices.Contains([]string{"verify", "resize"}, name) {
		return &usageError{fmt.Sprintf("the verb %s is not in this version: `replctl --help` lists those that are", name)}
	}
	return &usageError{fmt.Sprintf("unknown verb %q: `replctl --help` lists them", name)}
}

// usageError is a command line that makes no sense. Nothing was done.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func onUsageError(c *cli.Context, err error, isVerb bool) error {
	name, undefined := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !isVerb {
		if undefined {
			return &usageError{fmt.Sprintf("unknown option --%s: `replctl --help` lists the options that go before the verb", name)}
		}
		return &usageError{err.Error()}
	}
	verb := c.Command.Name
	switch {
	case undefined && (name == "config" || name == "control" || name == "node"):
		return &usageError{fmt.Sprintf("--%s goes before the verb: replctl --%s … %s", name, name, verb)}
	case undefined:
		return &usageError{fmt.Sprintf("%s has no option --%s: see `replctl help %s`", verb, name, verb)}
	}
	return &usageError{fmt.Sprintf("%s: %v", verb, err)}
}

// noArguments is the Before of every verb that takes none. Options stop at the
// first argument, so `promote x --force` arrives here with x and --force: it must
// neither run nor run without --force.
func noArguments(c *cli.Context) error {
	if c.NArg() == 0 {
		return nil
	}
	return &usageError{fmt.Sprintf("%s takes no arguments, and %q is one: see `replctl help %s`",
		c.Command.Name, c.Args().First(), c.Command.Name)}
}

// thisNode is for the verbs that are done here and nowhere else.
func thisNode(c *cli.Context) error {
	if c.IsSet("node") {
		return &usageError{fmt.Sprintf("%s works on this machine: leave out --node", c.Command.Name)}
	}
	return nil
}

// loadConfig is for the verbs that work on the node's files.
func loadConfig(c *cli.Context) (*config.Config, error) {
	if err := thisNode(c); err != nil {
		return nil, err
	}
	if c.IsSet("control") {
		return nil, &usageError{fmt.Sprintf("%s works on the node's files: give --config FILE instead of --control", c.Command.Name)}
	}
	if c.String("config") == "" {
		return nil, &usageError{fmt.Sprintf("which node? write replctl --config FILE %s", c.Command.Name)}
	}
	return config.Load(c.String("config"))
}
