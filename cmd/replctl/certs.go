package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"tandem/agent/certs"
	"tandem/failover/record"
)

func certsCommand() *cli.Command {
	return &cli.Command{
		Name:      "certs",
		Usage:     "make the certificates of a cluster",
		UsageText: "replctl certs --cluster NAME [--dir DIR] [--force] NODE...",
		Description: "Writes NODE.pem and NODE.key for each node, valid for ten years, and ca.pem and ca.key if\n" +
			"there is no authority in the folder yet. Each node needs ca.pem and its own two files.\n" +
			"Keep ca.key: further nodes are signed with it. Whoever has it can join the cluster.\n\n" +
			"Example:\n" +
			"   replctl certs --cluster nfs1 --dir /etc/tandem a b",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "cluster", Usage: "the `NAME` in the configuration files"},
			&cli.StringFlag{Name: "dir", Usage: "the folder `DIR` to write to", Value: "."},
			&cli.BoolFlag{Name: "force", Usage: "replace the files of the nodes named, never those of the authority", DisableDefaultText: true},
		},
		Action: func(c *cli.Context) error {
			if err := thisNode(c); err != nil {
				return err
			}
			nodes := c.Args().Slice()
			if c.String("cluster") == "" {
				return &usageError{"certs: which cluster? write --cluster NAME"}
			}
			if len(nodes) == 0 {
				return &usageError{"certs: which nodes? write their names last"}
			}
			for _, node := range nodes {
				if strings.HasPrefix(node, "-") {
					return &usageError{fmt.Sprintf("certs: %s goes before the nodes", node)}
				}
				if !record.ValidName(node) {
					return &usageError{fmt.Sprintf("certs: %q is not a node name: letters, digits, dots, underscores and dashes", node)}
				}
			}
			written, err := certs.Create(c.String("dir"), c.String("cluster"), nodes, certs.Options{Force: c.Bool("force")})
			for _, path := range written {
				fmt.Fprintln(c.App.Writer, "wrote", path)
			}
			if err != nil {
				return fmt.Errorf("certs: %w", err)
			}
			return nil
		},
	}
}
