package vm

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"
)

const (
	etcdPort     = 2379
	etcdPeerPort = 2380 // nobody uses it: there is one member
)

// Etcd is the address of an etcd server of one member, on the host and on the data network,
// so that a machine can be cut off from it. It runs from the first call on, and ends with
// the lab's process. Whoever wants a fresh register takes another key.
func (l *Lab) Etcd(ctx context.Context) (address string, err error) {
	address = fmt.Sprintf("%s:%d", HostDataAddress(), etcdPort)
	if l.etcd != nil {
		return address, nil
	}
	peer := fmt.Sprintf("http://127.0.0.1:%d", etcdPeerPort)
	p, err := startProcess(filepath.Join(l.dir, "etcd.log"), "etcd", "--name=witness", "--data-dir="+filepath.Join(l.dir, "etcd"), "--log-level=warn",
		"--listen-client-urls=http://"+address, "--advertise-client-urls=http://"+address,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=witness="+peer)
	if err != nil {
		return "", err
	}
	for range 200 {
		if healthy(ctx, "http://"+address+"/health") {
			l.etcd = p
			return address, nil
		}
		select {
		case <-ctx.Done():
			p.kill()
			return "", context.Cause(ctx)
		case <-p.done:
			return "", p.lastWords()
		case <-time.After(100 * time.Millisecond):
		}
	}
	p.kill()
	return "", fmt.Errorf("etcd is not healthy after 20 s: %s", tail(p.log, 5))
}

func healthy(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
