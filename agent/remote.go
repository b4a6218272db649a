package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"tandem/agent/certs"
	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/agent/doctor"
	"tandem/blockrepl/link"
)

// peerLimit is how long a peer may take to say how it is. Whoever asks wants a
// table now; a node that needs longer is not well.
const peerLimit = time.Second

// DialPeer opens a control connection to a peer, with the certificate of the
// node that cfg is of. It needs no agent on this machine.
func DialPeer(ctx context.Context, cfg *config.Config, node string) (net.Conn, error) {
	p, ok := cfg.Peer(node)
	if !ok {
		return nil, fmt.Errorf("%s knows no node %s", cfg.File, node)
	}
	d := link.ControlDial{Self: cfg.Node, Cluster: cfg.Cluster, Node: node, Address: p.Address}
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
		return nil, fmt.Errorf("node %s cannot be asked: %w", node, err)
	}
	return c, nil
}

// AskPeers asks every peer of cfg's node how it is, all at once, each for at most
// a second. The order is that of the config.
func AskPeers(ctx context.Context, cfg *config.Config, origin string) []control.NodeStatus {
	out := make([]control.NodeStatus, len(cfg.Peers))
	var asked sync.WaitGroup
	for i, p := range cfg.Peers {
		asked.Go(func() { out[i] = askPeer(ctx, cfg, p.Node, origin) })
	}
	asked.Wait()
	return out
}

func askPeer(ctx context.Context, cfg *config.Config, node, origin string) control.NodeStatus {
	n := control.NodeStatus{Node: node}
	ctx, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	c, err := DialPeer(ctx, cfg, node)
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
	dial, cancel := context.WithTimeout(ctx, peerLimit)
	defer cancel()
	c, err := DialPeer(dial, cfg, node)
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
	peers := AskPeers(ctx, a.cfg, by.User)
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
				n := askPeer(ctx, a.cfg, name, "")
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
	c, err := DialPeer(ctx, a.cfg, req.Node)
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
