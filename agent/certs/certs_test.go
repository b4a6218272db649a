package certs

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func create(t *testing.T, dir, cluster string, nodes ...string) {
	t.Helper()
	if _, err := Create(dir, cluster, nodes, Options{}); err != nil {
		t.Fatal(err)
	}
}

func files(dir, node string) (ca, cert, key string) {
	return certPath(dir, caName), certPath(dir, node), keyPath(dir, node)
}

func server(t *testing.T, dir, cluster, node string, expect ...string) *tls.Config {
	t.Helper()
	ca, cert, key := files(dir, node)
	c, err := ServerConfig(ca, cert, key, cluster, node, expect...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func client(t *testing.T, dir, cluster, node string, expect ...string) *tls.Config {
	t.Helper()
	ca, cert, key := files(dir, node)
	c, err := ClientConfig(ca, cert, key, cluster, node, expect...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake runs one handshake and returns what either end thinks of it. Each end
// hangs up when it refuses, so that the other is not left waiting.
func shake(t *testing.T, sc, cc *tls.Config) (s, c tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan error, 1)
	go func() {
		raw, err := ln.Accept()
		if err != nil {
			accepted <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, sc)
		err = conn.Handshake()
		if err == nil {
			s = conn.ConnectionState()
			_, err = conn.Write([]byte("x"))
		}
		accepted <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn := tls.Client(raw, cc)
	// In TLS 1.3 the client is done before the server has judged it: only a read
	// tells.
	clientErr = conn.Handshake()
	if clientErr == nil {
		c = conn.ConnectionState()
		_, clientErr = conn.Read(make([]byte, 1))
	} else {
		raw.Close()
	}
	serverErr = <-accepted
	return s, c, serverErr, clientErr
}

func TestMutual(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "nfs1", "a", "b")
	s, c, serverErr, clientErr := shake(t, server(t, dir, "nfs1", "a", "b", "c"), client(t, dir, "nfs1", "b", "a"))
	if serverErr != nil || clientErr != nil {
		t.Fatal(serverErr, clientErr)
	}
	if s.Version != tls.VersionTLS13 || c.Version != tls.VersionTLS13 {
		t.Fatalf("versions %x %x", s.Version, c.Version)
	}
	if node, err := PeerNode(s, "nfs1"); node != "b" || err != nil {
		t.Fatalf("%q %v", node, err)
	}
	if node, err := PeerNode(c, "nfs1"); node != "a" || err != nil {
		t.Fatalf("%q %v", node, err)
	}
	if _, err := PeerNode(c, "nfs2"); !errors.Is(err, ErrIdentity) {
		t.Fatalf("got %v", err)
	}
	if _, err := PeerNode(tls.ConnectionState{}, "nfs1"); !errors.Is(err, ErrIdentity) {
		t.Fatalf("got %v", err)
	}
}

// hostile is a config that checks nothing and shows whatever it is given.
func hostile(p *pair) *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert}
	if p != nil {
		c.Certificates = []tls.Certificate{{Certificate: [][]byte{p.cert.Raw}, PrivateKey: p.key}}
	}
	return c
}

func TestRefusedPeers(t *testing.T) {
	dir, otherDir := t.TempDir(), t.TempDir()
	create(t, dir, "nfs1", "a", "b")
	create(t, otherDir, "nfs1", "a", "b")
	ca, _, err := loadOrCreateCA(dir, "nfs1")
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := loadOrCreateCA(otherDir, "nfs1")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	issue := func(by pair, cluster, node string, from, to time.Duration) *pair {
		p, err := by.issue(cluster, node, now.Add(from), now.Add(to))
		if err != nil {
			t.Fatal(err)
		}
		return &p
	}
	template := func(edit func(*x509.Certificate)) *pair {
		p, err := newCA("x", now, now) // only for its key
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			Subject: pkix.Name{CommonName: "b"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs:        []*url.URL{identity("nfs1", "b")},
		}
		edit(c)
		p, err = sign(c, ca, p.key)
		if err != nil {
			t.Fatal(err)
		}
		return &p
	}
	hour := time.Hour
	for _, tc := range []struct {
		name string
		peer *pair
		want string // empty: only that it is refused
	}{
		{"wrong CA", issue(other, "nfs1", "b", -hour, hour), `certificate of "b": x509: certificate signed by unknown authority`},
		{"wrong cluster", issue(ca, "nfs2", "b", -hour, hour), `wrong identity: the certificate is of cluster "nfs2", this is "nfs1"`},
		{"wrong node", issue(ca, "nfs1", "c", -hour, hour), `wrong identity: the peer is node "c", expected is b`},
		{"own certificate", issue(ca, "nfs1", "a", -hour, hour), `wrong identity: the peer shows this node's own certificate, "a"`},
		{"expired", issue(ca, "nfs1", "b", -2*hour, -hour), `certificate of "b" is valid from `},
		{"not yet valid", issue(ca, "nfs1", "b", hour, 2*hour), `certificate of "b" is valid from `},
		{"the CA itself", &ca, ``},
		{"no URI", template(func(c *x509.Certificate) { c.URIs = nil }), `wrong identity: the certificate of "b" has 0 URIs, tandem://CLUSTER/NODE is expected`},
		{"two URIs", template(func(c *x509.Certificate) { c.URIs = append(c.URIs, identity("nfs1", "c")) }), `wrong identity: the certificate of "b" has 2 URIs, tandem://CLUSTER/NODE is expected`},
		{"a web address", template(func(c *x509.Certificate) { c.URIs[0] = &url.URL{Scheme: "https", Host: "nfs1", Path: "/b"} }), `wrong identity: the certificate says "https://nfs1/b", tandem://CLUSTER/NODE is expected`},
		{"a longer path", template(func(c *x509.Certificate) { c.URIs[0] = identity("nfs1", "b/c") }), `wrong identity: the certificate says "tandem://nfs1/b/c", tandem://CLUSTER/NODE is expected`},
		{"for signing code", template(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }), `certificate of "b": x509: certificate specifies an incompatible key usage`},
		{"no certificate", nil, ``},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, serverErr, clientErr := shake(t, server(t, dir, "nfs1", "a", "b"), hostile(tc.peer))
			if serverErr == nil || clientErr == nil || !strings.HasPrefix(serverErr.Error(), tc.want) {
				t.Errorf("as a client: %v (it saw %v)", serverErr, clientErr)
			}
			if tc.peer == nil {
				return // a server without a certificate cannot even start a handshake
			}
			_, _, _, clientErr = shake(t, hostile(tc.peer), client(t, dir, "nfs1", "a", "b"))
			if clientErr == nil || !strings.HasPrefix(clientErr.Error(), tc.want) {
				t.Errorf("as a server: %v", clientErr)
			}
		})
	}
	t.Run("TLS 1.2", func(t *testing.T) {
		old := hostile(issue(ca, "nfs1", "b", -hour, hour))
		old.MaxVersion = tls.VersionTLS12
		if _, _, serverErr, _ := shake(t, server(t, dir, "nfs1", "a"), old); serverErr == nil {
			t.Error("accepted as a client")
		}
		if _, _, _, clientErr := shake(t, old, client(t, dir, "nfs1", "a")); clientErr == nil {
			t.Error("accepted as a server")
		}
	})
}

func TestOwnFiles(t *testing.T) {
	dir, otherDir := t.TempDir(), t.TempDir()
	create(t, dir, "nfs1", "a", "b")
	create(t, otherDir, "nfs1", "a")
	ca, cert, key := files(dir, "a")
	otherCA, _, otherKey := files(otherDir, "a")
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	authority, _, err := loadOrCreateCA(dir, "nfs1")
	if err != nil {
		t.Fatal(err)
	}
	expired, err := authority.issue("nfs1", "old", time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := expired.write(dir, "old"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, ca, cert, key, cluster, self, want string
	}{
		{"no CA file", dir + "/no", cert, key, "nfs1", "a", "tls: ca: open "},
		{"no certificate in the CA file", garbage, cert, key, "nfs1", "a", "tls: ca: no certificate in " + garbage},
		{"no certificate", ca, garbage, key, "nfs1", "a", "tls: cert: tls: failed to find any PEM data"},
		{"another key", ca, cert, otherKey, "nfs1", "a", "tls: cert: tls: private key does not match public key"},
		{"another CA", otherCA, cert, key, "nfs1", "a", "tls: " + cert + `: certificate of "a": x509: certificate signed by unknown authority`},
		{"another cluster", ca, cert, key, "nfs2", "a", "tls: " + cert + `: wrong identity: the certificate is of cluster "nfs1", this is "nfs2"`},
		{"another node", ca, cert, key, "nfs1", "b", "tls: " + cert + `: wrong identity: the certificate is of node "a", this is "b"`},
		{"expired", ca, dir + "/old.pem", dir + "/old.key", "nfs1", "old", "tls: " + dir + `/old.pem: certificate of "old" is valid from `},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := ServerConfig(tc.ca, tc.cert, tc.key, tc.cluster, tc.self)
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("server: %v", err)
			}
			_, err = ClientConfig(tc.ca, tc.cert, tc.key, tc.cluster, tc.self)
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("client: %v", err)
			}
		})
	}
}

func TestCreateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	written, err := Create(dir, "nfs1", []string{"a", "node_2.x"}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"ca.key", "ca.pem", "a.key", "a.pem", "node_2.x.key", "node_2.x.pem"}
	if len(written) != len(want) {
		t.Fatalf("wrote %v", written)
	}
	for i, name := range want {
		if written[i] != filepath.Join(dir, name) {
			t.Errorf("file %d is %s", i, written[i])
		}
		info, err := os.Stat(written[i])
		if err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".key") {
			mode = 0o600
		}
		if info.Mode() != mode {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != len(want) {
		t.Errorf("temporary files are left: %v %v", all, err)
	}
	pair, err := tls.LoadX509KeyPair(written[3], written[2])
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	if leaf.Subject.CommonName != "a" || leaf.DNSNames[0] != "a" || leaf.URIs[0].String() != "tandem://nfs1/a" ||
		leaf.Issuer.CommonName != "tandem nfs1 CA" || leaf.IsCA {
		t.Errorf("certificate %+v", leaf.Subject)
	}
	if left := time.Until(leaf.NotAfter); left < 3649*24*time.Hour || time.Since(leaf.NotBefore) < 0 {
		t.Errorf("valid for %v", left)
	}
}

func TestCreateAgain(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "nfs1", "a")
	before, err := os.ReadFile(certPath(dir, caName))
	if err != nil {
		t.Fatal(err)
	}
	if written, err := Create(dir, "nfs1", []string{"b", "a"}, Options{}); !errors.Is(err, ErrExists) || len(written) != 0 {
		t.Fatalf("wrote %v, %v", written, err)
	}
	if written, err := Create(dir, "nfs1", []string{"b", "a"}, Options{Force: true}); err != nil || len(written) != 4 {
		t.Fatalf("wrote %v, %v", written, err)
	}
	after, err := os.ReadFile(certPath(dir, caName))
	if err != nil || string(before) != string(after) {
		t.Fatalf("the authority was replaced: %v", err)
	}
	server(t, dir, "nfs1", "a")
	server(t, dir, "nfs1", "b")
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "nfs1", "a")
	half, torn, swapped := t.TempDir(), t.TempDir(), t.TempDir()
	create(t, half, "nfs1", "a")
	create(t, torn, "nfs1", "a")
	create(t, swapped, "nfs1", "a")
	for _, err := range []error{
		os.Remove(keyPath(half, caName)),
		os.WriteFile(keyPath(torn, caName), []byte("-----BEGIN"), 0o600),
		os.Rename(keyPath(swapped, "a"), keyPath(swapped, caName)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		dir, cluster string
		nodes        []string
		want         string
	}{
		{dir, "n/1", []string{"b"}, `"n/1" is not a cluster name`},
		{dir, "nfs1", nil, "no node is named"},
		{dir, "nfs1", []string{"--dir"}, `"--dir" is not a node name`},
		{dir, "nfs1", []string{"ca"}, `a node cannot be called "ca"`},
		{dir, "nfs1", []string{"b", "b"}, "node b is named twice"},
		{dir, "nfs2", []string{"b"}, `ca.pem is "tandem nfs1 CA", which is not the authority of cluster nfs2`},
		{half, "nfs1", []string{"b"}, "it is needed to sign"},
		{torn, "nfs1", []string{"b"}, "ca.pem or ca.key is not what this program writes"},
		{swapped, "nfs1", []string{"b"}, "ca.key does not belong to ca.pem"},
		{t.TempDir(), "a..b", []string{"b"}, "these names cannot stand in a certificate"},
		{certPath(dir, caName), "nfs1", []string{"b"}, "not a directory"},
	} {
		t.Run(tc.want, func(t *testing.T) {
			_, err := Create(tc.dir, tc.cluster, tc.nodes, Options{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
}
