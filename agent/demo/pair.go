package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tandem/agent"
	"tandem/agent/certs"
	"tandem/agent/config"
	"tandem/agent/control"
	"tandem/agent/faultproxy"
)

const (
	cluster = "demo"
	// volumeSize is what a newcomer's disk always has room for, because the
	// images are sparse: the demo writes under a tenth of it.
	volumeSize = 1 << 30
	// maxSocket is how long the path of a unix socket may be (sun_path, with
	// its final zero byte).
	maxSocket = 107
)

// pair is the two nodes.
type pair struct {
	dir     string // images, configs and logs
	sockets string // where the sockets are: dir, if its name is short enough
	remove  []string
	nodes   [2]*node
	proxy   *faultproxy.Proxy // between the two, if the link is to be cut
}

// node is one of them.
type node struct {
	name string
	file string // its config
	cfg  *config.Config
	log  string
	*child
}

// newPair makes the folder and in it all that two agents need.
func newPair(ctx context.Context, keep string, proxied bool) (p *pair, err error) {
	p = &pair{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.end())
		}
	}()
	if err := p.makeFolders(keep); err != nil {
		return p, err
	}
	if _, err := certs.Create(p.dir, cluster, []string{"a", "b"}, certs.Options{}); err != nil {
		return p, fmt.Errorf("certificates: %w", err)
	}
	addrs, err := freeAddresses(3)
	if err != nil {
		return p, err
	}
	// The node whose name sorts first dials, so a's connections lead through
	// the proxy and b never uses an address of a.
	toB := addrs[1]
	if proxied {
		if p.proxy, err = faultproxy.New(addrs[1]); err != nil {
			return p, err
		}
		toB = p.proxy.Addr()
	}
	for i, n := range []struct{ name, listen, peer, peerAddr, http string }{
		{"a", addrs[0], "b", toB, ""},
		{"b", addrs[1], "a", addrs[0], addrs[2]},
	} {
		x := &node{name: n.name, file: filepath.Join(p.dir, n.name+".yaml"), log: filepath.Join(p.dir, n.name+".log")}
		p.nodes[i] = x
		text := fmt.Sprintf(`cluster: %s
node: %s
listen: %s
peers:
  - {node: %s, address: %s}
volume: {device: ./%[2]s.img, size: %[6]dB, metadata: ./%[2]s.md}
nbd: {socket: %[7]q}
control: %[8]q
http: %[9]q
tls: {ca: ca.pem, cert: %[2]s.pem, key: %[2]s.key}
witness: file:./witness
`, cluster, n.name, n.listen, n.peer, n.peerAddr, volumeSize, p.socket(n.name+".nbd"), p.socket(n.name+".sock"), n.http)
		if err := os.WriteFile(x.file, []byte(text), 0o600); err != nil {
			return p, err
		}
		if x.cfg, err = config.Load(x.file); err != nil {
			return p, err
		}
		if err := agent.Init(ctx, x.cfg, agent.InitOptions{}, io.Discard); err != nil {
			return p, fmt.Errorf("init %s: %w", n.name, err)
		}
	}
	return p, nil
}

func (p *pair) makeFolders(keep string) error {
	if keep == "" {
		dir, err := os.MkdirTemp("", "tandem-demo-")
		if err != nil {
			return err
		}
		p.dir = dir
		p.remove = append(p.remove, dir)
	} else {
		dir, err := filepath.Abs(keep)
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		case err != nil:
			return err
		case len(entries) > 0:
			return fmt.Errorf("%s is not empty: name a folder that is, or none", keep)
		}
		p.dir = dir
	}
	p.sockets = p.dir
	if len(filepath.Join(p.dir, "a.sock")) > maxSocket {
		dir, err := os.MkdirTemp("/tmp", "tandem-demo-")
		if err != nil {
			return err
		}
		p.sockets = dir
		p.remove = append(p.remove, dir)
	}
	return nil
}

func (p *pair) socket(name string) string {
	if p.sockets == p.dir {
		return "./" + name
	}
	return filepath.Join(p.sockets, name)
}

func (p *pair) end() error {
	var errs []error
	if p.proxy != nil {
		errs = append(errs, p.proxy.Close())
	}
	for _, dir := range p.remove {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// freeAddresses returns loopback addresses that nobody listens on. Somebody may
// come first; then an agent says so and the demo fails.
func freeAddresses(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after all: the same port is not given twice
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// startAgent starts n's agent and returns when it answers.
func (p *pair) startAgent(ctx context.Context, f *family, n *node) error {
	c, err := f.run("agent "+n.name, n.log, nil, "--config", n.file, "agent")
	if err != nil {
		return err
	}
	n.child = c
	f.mustLive(c)
	for {
		if _, err = n.status(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("agent %s does not answer: %w", n.name, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// call is replctl's way to the agent.
func (n *node) call(ctx context.Context, verb string, args map[string]string, onMessage func(control.Message)) (string, error) {
	text := ""
	_, err := control.Call(ctx, n.cfg.Control, control.Request{Verb: verb, Args: args}, func(m control.Message) {
		if m.Kind == control.KindResult {
			text = m.Text
		} else if onMessage != nil {
			onMessage(m)
		}
	})
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w", verb, n.name, err)
	}
	return text, nil
}

func (n *node) status(ctx context.Context) (control.Status, error) {
	var s control.Status
	data, err := control.Call(ctx, n.cfg.Control, control.Request{Verb: "status"}, nil)
	if err != nil {
		return s, err
	}
	err = json.Unmarshal(data, &s)
	return s, err
}

// metric returns a value of n's /metrics that has no labels.
func (n *node) metric(ctx context.Context, name string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.cfg.HTTP+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", n.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", n.name, err)
	}
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, fmt.Errorf("metrics of %s have no %s", n.name, name)
}
