package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"tandem/blockrepl/wire"
)

// Handler is told what happens on the links. All calls about one Conn come in
// this order: LinkUp, any number of Recv, LinkDown.
type Handler interface {
	// LinkUp says that all channels of c are up, at the peer too. No Recv runs
	// before it returns.
	LinkUp(c *Conn)
	// LinkDown says that c is gone and why. It is called exactly once after
	// LinkUp. No Recv of c is running or will run, and no body handed to
	// Queue or Send is referenced any more; the next link to the same peer is
	// not begun before it returns.
	LinkDown(c *Conn, err error)
	// Recv hands over one frame. Each channel has one goroutine that calls it,
	// in the order of the wire. The handler owns m.Body until m.Release, which
	// may come later and from anywhere; m itself is valid only during the call
	// (copy it). With more, the next frame of this channel is in memory
	// already and Recv is about to be called again, unless that frame turns
	// out to be damaged; then LinkDown follows.
	//
	// A Recv that does not return stops its channel (and, a window later, the
	// peer's sender) and delays LinkDown.
	Recv(c *Conn, ch wire.Channel, m *wire.Msg, more bool)
}

// Peer is another agent of the cluster.
type Peer struct {
	Node    string
	Address string // host:port; empty: Config.Finder has it
}

// Finder knows the addresses of peers that may get another one while this node runs. It is
// asked before each dial.
type Finder interface {
	Address(ctx context.Context, node string) (string, error)
	// Failed says that no connection could be made by an address.
	Failed(node, address string)
}

// Config is what a Manager depends on.
type Config struct {
	Self    string // this node's name
	Cluster string
	// Listen is the host:port to listen on, unless there is a Listener.
	Listen   string
	Listener net.Listener
	Peers    []Peer
	Finder   Finder // nil: every peer has an address

	// ServerTLS and ClientTLS make the links TLS 1.3; nil, both of them, is
	// plain TCP without any authentication. ServerTLS must ask for client
	// certificates and verify them, ClientTLS returns the configuration for
	// dialling a node.
	ServerTLS *tls.Config
	ClientTLS func(node string) *tls.Config
	// PeerNode tells whose certificate it is. Required with TLS.
	PeerNode func(tls.ConnectionState) (string, error)

	Handler Handler
	Log     *slog.Logger

	// UserTimeout is how long sent data may stay unacknowledged by the peer's
	// kernel before the link is given up (TCP_USER_TIMEOUT); 0 is 6 s. A peer
	// that reads nothing at all, stopped or frozen, meets it as well.
	UserTimeout time.Duration
	// Features are the optional abilities of this build; Conn.Features says
	// which ones both ends have.
	Features uint64

	// Dial replaces net.Dialer.DialContext; for tests.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// maxName bounds cluster and node names, whose length is one byte on the wire.
const maxName = 255

func (cfg *Config) validate() error {
	switch {
	case cfg.Self == "" || len(cfg.Self) > maxName:
		return fmt.Errorf("link: node name %q: must have 1 to %d bytes", cfg.Self, maxName)
	case cfg.Cluster == "" || len(cfg.Cluster) > maxName:
		return fmt.Errorf("link: cluster name %q: must have 1 to %d bytes", cfg.Cluster, maxName)
	case cfg.Handler == nil:
		return errors.New("link: no handler")
	case cfg.Log == nil:
		return errors.New("link: no logger")
	case cfg.Listen == "" && cfg.Listener == nil:
		return errors.New("link: nothing to listen on")
	case (cfg.ServerTLS == nil) != (cfg.ClientTLS == nil):
		return errors.New("link: TLS for one direction only")
	case cfg.ServerTLS != nil && cfg.PeerNode == nil:
		return errors.New("link: TLS without PeerNode: any certificate would do for any node")
	case cfg.ServerTLS != nil && cfg.ServerTLS.GetConfigForClient == nil && cfg.ServerTLS.ClientAuth != tls.RequireAndVerifyClientCert &&
		(cfg.ServerTLS.ClientAuth != tls.RequireAnyClientCert || cfg.ServerTLS.VerifyConnection == nil):
		return errors.New("link: TLS without verified client certificates")
	case cfg.UserTimeout < 0:
		return errors.New("link: negative timeout")
	}
	seen := map[string]bool{cfg.Self: true}
	for _, p := range cfg.Peers {
		switch {
		case p.Node == "" || len(p.Node) > maxName:
			return fmt.Errorf("link: peer name %q: must have 1 to %d bytes", p.Node, maxName)
		case seen[p.Node]:
			return fmt.Errorf("link: node %q twice", p.Node)
		case p.Address == "" && cfg.Finder == nil && cfg.Self < p.Node:
			return fmt.Errorf("link: no address to dial node %q", p.Node)
		}
		seen[p.Node] = true
	}
	return nil
}
