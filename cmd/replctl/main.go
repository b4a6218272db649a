// Command replctl is the operator's end of Tandem: it prepares a node, asks a
// running agent about itself, and tells it what to do.
//
// It exits 0 when what was asked is done, 1 when it was refused or failed, with
// one line on stderr, and 2 when the command line makes no sense.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newApp().RunContext(ctx, os.Args)
	if err == nil {
		return 0
	}
	// One line, whatever was joined or quoted on the way up.
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	fmt.Fprintln(os.Stderr, "replctl: "+text)
	if _, usage := errors.AsType[*usageError](err); usage {
		return 2
	}
	return 1
}
