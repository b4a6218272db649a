package main

import "github.com/urfave/cli/v2"

func resyncCommand() *cli.Command {
	return &cli.Command{
		Name:      "resync",
		Usage:     "bring this node's copy up to date",
		UsageText: "replctl --config FILE resync [--discard-my-data]",
		Description: "A resync starts by itself when a peer connects; this asks for it now and shows how it goes.\n" +
			"After a split brain nothing is guessed: say on the node whose changes are to be given up that\n" +
			"they are.\n\n" +
			"Example, on the loser of a split brain:\n" +
			"   replctl --config b.yaml resync --discard-my-data",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "discard-my-data", Usage: "give up what was written here and nowhere else", DisableDefaultText: true},
		},
		Before: noArguments,
		Action: func(c *cli.Context) error {
			_, err := call(c, switches(c, "discard-my-data"), nil)
			return err
		},
	}
}
