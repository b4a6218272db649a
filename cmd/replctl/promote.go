package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"tandem/agent/control"
)

func promoteCommand() *cli.Command {
	return &cli.Command{
		Name:      "promote",
		Usage:     "make this node the primary",
		UsageText: "replctl --config FILE promote [--force [--yes] [--peer-is-off]]",
		Description: "If the primary is up, it hands over and nothing is lost. If it is gone, its lease is waited\n" +
			"out first. In a cluster without a record this node's data becomes the truth.\n" +
			"Refused if this node's copy is not in sync: --force first says what would be lost, and goes on\n" +
			"when you type the node's name, or with --yes. An Inconsistent copy is never promoted, and nothing\n" +
			"is while the recorded primary answers or the witness does not. Say --peer-is-off if you know that\n" +
			"the old primary's machine has no power: then it is not given the time to notice.\n\n" +
			"Example:\n" +
			"   replctl --config b.yaml promote",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "promote a copy that is not in sync; what it lacks is lost", DisableDefaultText: true},
			&cli.BoolFlag{Name: "yes", Usage: "with --force: do not ask", DisableDefaultText: true},
			&cli.BoolFlag{Name: "peer-is-off", Usage: "with --force: the old primary's machine is off, and you know it", DisableDefaultText: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			for _, name := range []string{"yes", "peer-is-off"} {
				if c.Bool(name) && !c.Bool("force") {
					return &usageError{"promote: --" + name + " has no meaning without --force"}
				}
			}
			return callConfirmed(c, switches(c, "force", "yes", "peer-is-off"))
		},
	}
}

// callConfirmed is call for a verb that may want the operator's agreement first.
func callConfirmed(c *cli.Context, args map[string]string) error {
	_, err := call(c, args, nil)
	confirm, ok := errors.AsType[*control.Confirm](err)
	if !ok {
		return err
	}
	if err := askOperator(c, confirm); err != nil {
		return err
	}
	args["yes"] = "true"
	_, err = call(c, args, nil)
	return err
}

// askOperator shows what will be lost and returns nil if the node's name is
// typed. A name and not a y, because it is the wrong node that is promoted at
// three in the morning.
func askOperator(c *cli.Context, confirm *control.Confirm) error {
	fmt.Fprintln(c.App.ErrWriter, strings.TrimSpace(confirm.Text))
	if !isTerminal(os.Stdin) {
		return errors.New("nothing was done: add --yes to go on")
	}
	fmt.Fprintf(c.App.ErrWriter, "type the node's name, %s, to go on: ", confirm.Node)
	typed, err := readLine(c.Context, c.App.Reader)
	if err != nil {
		fmt.Fprintln(c.App.ErrWriter)
		return fmt.Errorf("nothing was done: %w", err)
	}
	if typed != confirm.Node {
		return fmt.Errorf("nothing was done: %q is not %s", typed, confirm.Node)
	}
	return nil
}

// readLine reads in a goroutine of its own, because a read of a terminal does not
// end with a context. If ctx ends first the goroutine is left to the end of the
// process, which is next.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	type answer struct {
		line string
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(r, 4096)).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = errors.New("no name was typed")
		}
		read <- answer{strings.TrimSpace(line), err}
	}()
	select {
	case <-ctx.Done():
		return "", errors.New("interrupted")
	case a := <-read:
		return a.line, a.err
	}
}
