package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"tandem/agent/demo"
)

func demoCommand() *cli.Command {
	return &cli.Command{
		Name:      "demo",
		Usage:     "run a pair on this machine and kill its primary",
		UsageText: "replctl demo [--json] [--keep DIR]",
		Description: "Starts two agents in a temporary folder, writes through one, kills it, reads everything back\n" +
			"from the other, brings the dead one back and compares the copies. Says what was lost and how long\n" +
			"it took, and exits 1 if anything was. Needs no root, no configuration and about 200 MB of disk.\n\n" +
			"Example:\n" +
			"   replctl demo --keep /tmp/pair",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print the outcome as JSON, and the steps on stderr", DisableDefaultText: true},
			&cli.StringFlag{Name: "keep", Usage: "work in `DIR`, absent or empty, and leave images, configurations and logs there"},
			&cli.DurationFlag{Name: "cut-link", Usage: "cut the link between the agents `DURATION` before the kill", Hidden: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			if err := thisNode(c); err != nil {
				return err
			}
			if c.IsSet("config") || c.IsSet("control") {
				return &usageError{"demo brings its own configuration: leave out --config and --control"}
			}
			if c.IsSet("keep") && c.String("keep") == "" {
				return &usageError{"demo: --keep needs a folder"}
			}
			if c.Duration("cut-link") < 0 {
				return &usageError{"demo: --cut-link must not be negative"}
			}
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("demo: %w", err)
			}
			opts := demo.Options{JSON: c.Bool("json"), Keep: c.String("keep"), Exe: exe, CutLink: c.Duration("cut-link")}
			w, f := c.App.Writer, os.Stdout
			if opts.JSON {
				w, f = c.App.ErrWriter, os.Stderr
			}
			bar := &progress{w: w, terminal: isTerminal(f)}
			defer bar.end()
			opts.Out, opts.Err = c.App.Writer, c.App.ErrWriter
			if opts.JSON {
				opts.Err = belowBar{bar}
			} else {
				opts.Out = belowBar{bar}
			}
			opts.Progress = bar.show
			// A closed terminal, or a pipe into a pager that was left, must not end
			// the process before it has tidied up.
			ctx, stop := signal.NotifyContext(c.Context, syscall.SIGHUP, syscall.SIGPIPE)
			defer stop()
			return demo.Run(ctx, opts)
		},
	}
}

// belowBar writes lines that do not run into a bar.
type belowBar struct{ bar *progress }

func (b belowBar) Write(p []byte) (int, error) {
	b.bar.end()
	return b.bar.w.Write(p)
}

// checkerCommand is the demo's checker, which is a process of its own because
// an application is. It is hidden: the ledger is made by the demo.
func checkerCommand() *cli.Command {
	return &cli.Command{
		Name:      "demo-checker",
		Hidden:    true,
		Usage:     "write through a pair's NBD sockets until stdin ends, or read everything back",
		UsageText: "replctl demo-checker --ledger FILE --export NAME [--read | --depth N] NODE=SOCKET...",
		Description: "Example:\n" +
			"   replctl demo-checker --ledger ledger --export demo --read a=a.nbd b=b.nbd",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "ledger", Usage: "what was acknowledged is appended to `FILE`"},
			&cli.StringFlag{Name: "export", Usage: "the `NAME` of the cluster"},
			&cli.BoolFlag{Name: "read", Usage: "read what the ledger knows and compare", DisableDefaultText: true},
			&cli.IntFlag{Name: "depth", Usage: "have `N` writes in flight", Value: 1},
			&cli.BoolFlag{Name: "one-outage", Usage: "end after the first outage", DisableDefaultText: true},
		},
		Action: func(c *cli.Context) error {
			config := demo.CheckerConfig{Ledger: c.String("ledger"), Export: c.String("export"), Depth: c.Int("depth"), OneOutage: c.Bool("one-outage")}
			for _, arg := range c.Args().Slice() {
				name, socket, ok := strings.Cut(arg, "=")
				if !ok || name == "" || socket == "" {
					return &usageError{fmt.Sprintf("demo-checker: %q is not NODE=SOCKET", arg)}
				}
				config.Nodes = append(config.Nodes, demo.Node{Name: name, Socket: socket})
			}
			if config.Ledger == "" || len(config.Nodes) == 0 {
				return &usageError{"demo-checker: --ledger and a node are needed"}
			}
			if c.Bool("read") {
				return demo.Read(c.Context, config)
			}
			return demo.Write(c.Context, config, os.Stdin)
		},
	}
}
