package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"tandem/agent"
	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/failover/record"
)

// target is the agent that the command line names.
type target struct {
	socket string
	start  string         // how to start it, for an error
	cfg    *config.Config // nil with --control
	node   string         // --node: who is to do it, "" for the agent itself
}

func findTarget(c *cli.Context) (target, error) {
	file, socket, node := c.String("config"), c.String("control"), c.String("node")
	switch {
	case c.IsSet("node") && !record.ValidName(node):
		return target{}, &usageError{fmt.Sprintf("--node: %q is not a node name", node)}
	case c.IsSet("config") && c.IsSet("control"):
		return target{}, &usageError{"give --config or --control, not both"}
	case socket != "":
		return target{socket: socket, start: "start it with replagent --config FILE", node: node}, nil
	case file == "":
		return target{}, &usageError{fmt.Sprintf("which node? write replctl --config FILE %s, or --control SOCKET", c.Command.Name)}
	}
	cfg, err := config.Load(file)
	if err != nil {
		return target{}, err
	}
	if _, peer := cfg.Peer(node); node != "" && node != cfg.Node && !peer {
		return target{}, fmt.Errorf("%s knows no node %s", file, node)
	}
	return target{socket: cfg.Control, start: "start it with replagent --config " + file, cfg: cfg, node: node}, nil
}

// ask sends a request to the agent, or, if there is none and it is meant for a
// peer, to that peer. An agent that is down is when one wants to ask the other.
func (t target) ask(ctx context.Context, verb string, args map[string]string, onMessage func(control.Message)) (json.RawMessage, error) {
	data, err := control.Call(ctx, t.socket, control.Request{Verb: verb, Args: args, Node: t.node}, onMessage)
	if !errors.Is(err, control.ErrNoAgent) {
		return data, err
	}
	if t.node == "" || t.cfg == nil || t.node == t.cfg.Node {
		return nil, fmt.Errorf("%w: %s", err, t.start)
	}
	conn, err := agent.DialPeer(ctx, t.cfg, t.node)
	if err != nil {
		return nil, err
	}
	return control.CallConn(ctx, conn, control.Request{Verb: verb, Args: args, Origin: control.UserName(uint32(os.Getuid()))}, onMessage)
}

// call sends the verb to the agent. The text of the result goes to stdout and
// progress to stderr; a verb that wants more sees the messages in onMessage.
func call(c *cli.Context, args map[string]string, onMessage func(control.Message)) (json.RawMessage, error) {
	t, err := findTarget(c)
	if err != nil {
		return nil, err
	}
	bar := &progress{w: c.App.ErrWriter, terminal: isTerminal(os.Stderr)}
	defer bar.end()
	data, err := t.ask(c.Context, c.Command.Name, args, func(m control.Message) {
		switch {
		case m.Kind == control.KindProgress:
			bar.show(m)
		case onMessage != nil:
			onMessage(m)
		case m.Kind == control.KindResult && m.Text != "":
			bar.end()
			fmt.Fprintln(c.App.Writer, m.Text)
		}
	})
	return data, interrupted(c, err)
}

// interrupted makes a sentence of Ctrl-C.
func interrupted(c *cli.Context, err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s was interrupted: `replctl status` shows what was done", c.Command.Name)
	}
	return err
}

// askCluster asks all nodes how they are. If the agent here is down and the
// configuration says where the peers are, they are asked all the same, and err says
// what is wrong here.
func askCluster(c *cli.Context) (control.ClusterStatus, error) {
	var s control.ClusterStatus
	t, err := findTarget(c)
	if err != nil {
		return s, err
	}
	raw, err := t.ask(c.Context, "cluster", nil, nil)
	switch {
	case errors.Is(err, control.ErrNoAgent) && t.cfg != nil:
		self := control.NodeStatus{Node: t.cfg.Node, Error: err.Error(), NoAgent: true}
		s.Nodes = append([]control.NodeStatus{self}, agent.AskPeers(c.Context, t.cfg, control.UserName(uint32(os.Getuid())))...)
		return s, interrupted(c, err)
	case err != nil:
		return s, interrupted(c, err)
	}
	if err := json.Unmarshal(raw, &s); err != nil || len(s.Nodes) == 0 || s.Nodes[0].Status == nil {
		return s, fmt.Errorf("the agent's status is of another version: %w", errors.Join(err, control.ErrProtocol))
	}
	return s, nil
}

// switches returns the arguments of the request for the boolean options given.
func switches(c *cli.Context, names ...string) map[string]string {
	args := make(map[string]string)
	for _, name := range names {
		if c.Bool(name) {
			args[name] = "true"
		}
	}
	return args
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
