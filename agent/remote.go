package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"tandem/agent/certs"
	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/agent/doctor"
	"tandem/blockrepl/link"
	"tandem/failover/awsclient"
	"tandem/failover/awsclient/nodeaddr"
)

// peerLimit is how long a peer may take to say how it is. Whoever asks wants a
// table now; a node that needs longer is not well.
const peerLimit = time.Second

// DialPeer opens a control connection to a peer, with the certificate of the
// node that cfg is of. It needs no agent on this machine.
func DialPeer(ctx context.Context, cfg *config.Config, node string) (net.Conn, error) {
	where, done := finder(cfg)
	defer done()
	address, err := peerAddress(ctx, cfg, where, node)
	if err != nil {
		return nil, err
	}
	return dialPeer(ctx, cfg, where, node, address)
}

func dialPeer(ctx context.Context, cfg *config.Config, where *nodeaddr.Finder, node, address string) (net.Conn, error) {
	d := link.ControlDial{Self: cfg.Node, Cluster: cfg.Cluster, Node: node, Address: address}
	if !cfg.TLS.Insecure {
		// Read anew each time: a certificate that was renewed counts at once.
		tc, err := certs.ClientConfig(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key, cfg.Cluster, cfg.Node, node)
		if err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		d.TLS = tc
		d.PeerNode = certs.NodeOf(cfg.Cluster)
	}
	c, err := link.DialControl(ctx, d)
	if err != nil {
		if where != nil {
			where.Failed(node, address)
		}
		return nil, fmt.Errorf("node %s cannot be asked: %w", node, err)
	}
	return c, nil
}

// newFinder returns who finds the peers of cfg that are named by tag, or nil.
func newFinder(cfg *config.Config, aws *awsclient.Loader, log *slog.Logger) *nodeaddr.Finder {
	tag, port := cfg.PeersByTag()
	if tag == "" {
		return nil
	}
	return nodeaddr.New(nodeaddr.Config{Cluster: cfg.Cluster, Tag: tag, Port: port, Loader: aws, Log: log})
}

// finder is newFinder for one question, without an agent.
func finder(cfg *config.Config) (where *nodeaddr.Finder, done func()) {
	aws := newLoader(cfg)
	where = newFinder(cfg, aws, nil)
	return where, func() {
		if where != nil {
			where.Close()
			aws.Close()
		}
	}
}

func newLoader(cfg *config.Config) *awsclient.Loader {
	return awsclient.New(awsclient.Options{Region: cfg.AWS.Region, Endpoint: cfg.AWS.Endpoint, Metadata: cfg.AWS.Metadata})
}

// peerAddress is where a peer listens.
func peerAddress(ctx context.Context, cfg *config.Config, where *nodeaddr.Finder, node string) (string, error) {
	p, ok := cfg.Peer(node)
	switch {
	case !ok:
		return "", fmt.Errorf("%s knows no node %s", cfg.File, node)
	case where == nil:
		return p.Address, nil
	}
	address, err := where.Address(ctx, node)
	if err != nil {
		return "", fmt.Errorf("node %s cannot be asked: %w", node, err)
	}
	return address, nil
}

// AskPeers asks every peer of cfg's node how it is, all at once, each for at most
// a second. The order is that of the config.
func AskPeers(ctx context.Context, cfg *config.Config, origin string) []control.NodeStatus {
	where, done := finder(cfg)
	defer done()
	return askPeers(ctx, cfg, where, origin)
}

func askPeers(ctx context.Context, cfg *config.Config, where *nodeaddr.Finder, origin string) []control.NodeStatus {
	out := make([]control.NodeStatus, len(cfg.Peers))
	var asked sync.WaitGroup
	for i, p := range cfg.Peers {
		asked.Go(func() { out[i] = askPeer(ctx, cfg, where, p.Node, origin) })
	}
	asked.Wait()
	return out
}

func askPeer(ctx context.Context, cfg *config.Config, where *nodeaddr.Finder, node, origin string) control.NodeStatus {
	n := control.NodeStatus{Node: node}
	// Where it is, AWS has to be asked, which has limits of its own.
	address, err := peerAddress(ctx, cfg, where, node)
	if err != nil {
		n.Error = err.Error()
		return n
	}
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	c, err := dialPeer(ctx, cfg, where, node, address)
	if err == nil {
		var data json.RawMessage
		if data, err = control.CallConn(ctx, c, control.Request{Verb: "status", Origin: origin}, nil); err == nil {
			s := &control.Status{}
			if err = json.Unmarshal(data, s); err == nil {
				n.Status = s
				return n
			}
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", peerLimit)
	}
	// Nobody listens, but somebody says so: the host is up and its agent is not.
	n.NoAgent = errors.Is(err, syscall.ECONNREFUSED)
	n.Error = err.Error()
	return n
}

// AskFacts asks a peer what its doctor's counterpart here has to know of it.
func AskFacts(ctx context.Context, cfg *config.Config, node, origin string) (f doctor.Facts, err error) {
	where, done := finder(cfg)
	defer done()
	address, err := peerAddress(ctx, cfg, where, node)
	if err != nil {
		return f, err
	}
	dial, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	c, err := dialPeer(dial, cfg, where, node, address)
	if err != nil {
		return f, err
	}
	data, err := control.CallConn(ctx, c, control.Request{Verb: "facts", Origin: origin}, nil)
	if err != nil {
		return f, fmt.Errorf("node %s cannot be asked: %w", node, err)
	}
	if err := json.Unmarshal(data, &f); err != nil || f.Node != node {
		return f, fmt.Errorf("the answer of node %s is of another version: %w", node, errors.Join(err, control.ErrProtocol))
	}
	return f, nil
}

// facts is what a peer's doctor asks for. It may take seconds, where AWS is asked.
func (a *Agent) facts(ctx context.Context) doctor.Facts {
	sys := doctor.ThisMachine(a.cfg, nil) // no peer is asked for the facts of this node
	return doctor.FactsOf(ctx, a.cfg, a.disk.Size(), sys)
}

// cluster is the status of all nodes, ours first.
func (a *Agent) cluster(ctx context.Context, by control.Caller) control.ClusterStatus {
	peers := askPeers(ctx, a.cfg, a.where, by.User)
	for i := range peers {
		a.keepWord(&peers[i])
	}
	s := a.status()
	return control.ClusterStatus{Nodes: append([]control.NodeStatus{{Node: a.cfg.Node, Status: &s}}, peers...)}
}

// word is what a peer said last of what we lack.
type word struct {
	at    time.Time
	lacks int64
	said  bool // that peer served, so it knew
}

// keepWord remembers a peer's status for the day on which it cannot be asked.
func (a *Agent) keepWord(n *control.NodeStatus) {
	if n.Status == nil {
		return
	}
	for _, p := range n.Status.Peers {
		if p.Node == a.cfg.Node {
			a.mu.Lock()
			if a.words == nil {
				a.words = make(map[string]word)
			}
			a.words[n.Node] = word{at: time.Now(), lacks: p.OutOfSyncBytes, said: n.Status.Role == "Primary"}
			a.mu.Unlock()
		}
	}
}

// wordEvery is how often a peer that we are not in sync with is asked how much
// we lack: should it die, an operator who thinks of --force wants to know.
const wordEvery = 10 * time.Second

func (a *Agent) runWords(ctx context.Context) {
	t := time.NewTicker(wordEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for i, name := range a.peers {
			a.mu.Lock()
			apart := a.node.Vol.Peer(i).Replication != "Established" && !a.node.Vol.Serving()
			a.mu.Unlock()
			if apart {
				n := askPeer(ctx, a.cfg, a.where, name, "")
				a.keepWord(&n)
			}
		}
	}
}

// relay has a peer do what an operator of this node wants of it. What the peer
// says comes back as it is, a refusal too.
func (a *Agent) relay(ctx context.Context, req control.Request, send func(control.Message) error) error {
	if !req.By.Local() {
		// One hop: whoever has a certificate can ask that node itself.
		return &control.Refused{Text: fmt.Sprintf("node %s passes on requests of its own operators only: ask node %s itself", a.cfg.Node, req.Node)}
	}
	address, err := peerAddress(ctx, a.cfg, a.where, req.Node)
	if err != nil {
		return &control.Refused{Text: err.Error()}
	}
	c, err := dialPeer(ctx, a.cfg, a.where, req.Node, address)
	if err != nil {
		return &control.Refused{Text: err.Error()}
	}
	_, err = control.CallConn(ctx, c, control.Request{Verb: req.Verb, Args: req.Args, Origin: req.By.User}, func(m control.Message) {
		if e := send(m); e != nil {
			c.Close() // our client has gone: so does the peer's
		}
	})
	return err
}
