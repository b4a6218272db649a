// Command replagent is the daemon of Tandem: it serves one volume in the
// foreground until SIGTERM or SIGINT.
//
// It exits 0 after it was told to stop, 1 when it failed, with one line on
// stderr after its log, and 2 when the command line makes no sense.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"tandem/agent"
	"tandem/agent/config"
	"tandem/agent/memory"
)

// errUsage is a command line that makes no sense. Nothing was started.
var errUsage = errors.New("see `replagent --help`")

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newApp().RunContext(ctx, os.Args)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "replagent: "+strings.ReplaceAll(err.Error(), "\n", "; "))
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

func newApp() *cli.App {
	return &cli.App{
		Name:      "replagent",
		Usage:     "serve one node's copy of a replicated volume",
		UsageText: "replagent --config FILE",
		Description: "Runs in the foreground until SIGTERM or SIGINT and logs to stderr; replctl controls it.\n\n" +
			"Example:\n" +
			"   replctl --config a.yaml init\n" +
			"   replagent --config a.yaml",
		Flags:           []cli.Flag{&cli.StringFlag{Name: "config", Usage: "the node's configuration `FILE`"}},
		HideHelpCommand: true,
		HideVersion:     true,
		OnUsageError:    func(_ *cli.Context, err error, _ bool) error { return fmt.Errorf("%w: %w", err, errUsage) },
		// Without this urfave ends the process by itself, with its own statuses.
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fmt.Errorf("there are no arguments, and %q is one: %w", c.Args().First(), errUsage)
			}
			if c.String("config") == "" {
				return fmt.Errorf("which node? write --config FILE: %w", errUsage)
			}
			cfg, err := config.Load(c.String("config"))
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(c.App.ErrWriter, nil))
			if cfg.AttachesNBD() {
				memory.Protect(log)
			}
			return agent.Run(c.Context, cfg, log)
		},
	}
}
