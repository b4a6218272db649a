package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"tandem/failover/record"
)

// ServerConfig is for the accepting end of a link. Peers must be nodes of cluster
// other than self, and among expectPeers if any are given.
//
// Our own certificate is checked here too, because an agent with an expired or
// swapped file should say so at its start and not in the peer's log.
func ServerConfig(caFile, certFile, keyFile, cluster, self string, expectPeers ...string) (*tls.Config, error) {
	c, err := newConfig(caFile, certFile, keyFile, cluster, self, expectPeers)
	if err != nil {
		return nil, err
	}
	// The chain is checked in VerifyConnection, the same way on both ends.
	c.ClientAuth = tls.RequireAnyClientCert
	return c, nil
}

// ClientConfig is for the dialling end, otherwise like ServerConfig.
func ClientConfig(caFile, certFile, keyFile, cluster, self string, expectPeers ...string) (*tls.Config, error) {
	c, err := newConfig(caFile, certFile, keyFile, cluster, self, expectPeers)
	if err != nil {
		return nil, err
	}
	// The standard check compares with the host dialled, and a peer is known by
	// its URI instead. VerifyConnection does all the rest of that check.
	c.InsecureSkipVerify = true
	return c, nil
}

// PeerNode returns the node that the other end's certificate names. The state
// must come from a connection with one of the configs above: nothing but the
// names is looked at here.
func PeerNode(state tls.ConnectionState, cluster string) (string, error) {
	if len(state.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w: the peer showed no certificate", ErrIdentity)
	}
	return nodeOf(state.PeerCertificates[0], cluster)
}

// NodeOf is PeerNode for one cluster.
func NodeOf(cluster string) func(tls.ConnectionState) (string, error) {
	return func(s tls.ConnectionState) (string, error) { return PeerNode(s, cluster) }
}

func nodeOf(cert *x509.Certificate, cluster string) (string, error) {
	// Exactly one: with two, two nodes could read the same certificate differently.
	if len(cert.URIs) != 1 {
		return "", fmt.Errorf("%w: the certificate of %q has %d URIs, tandem://CLUSTER/NODE is expected",
			ErrIdentity, cert.Subject.CommonName, len(cert.URIs))
	}
	uri := cert.URIs[0]
	node := strings.TrimPrefix(uri.Path, "/")
	if !record.ValidName(node) || uri.String() != identity(uri.Host, node).String() {
		return "", fmt.Errorf("%w: the certificate says %q, tandem://CLUSTER/NODE is expected", ErrIdentity, uri)
	}
	if uri.Host != cluster {
		return "", fmt.Errorf("%w: the certificate is of cluster %q, this is %q", ErrIdentity, uri.Host, cluster)
	}
	return node, nil
}

func newConfig(caFile, certFile, keyFile, cluster, self string, expectPeers []string) (*tls.Config, error) {
	caPEM, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("tls: ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("tls: ca: no certificate in %s", caFile)
	}
	own, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("tls: cert: %w", err)
	}
	if err := verifyChain([]*x509.Certificate{own.Leaf}, roots, time.Now()); err != nil {
		return nil, fmt.Errorf("tls: %s: %w", certFile, err)
	}
	node, err := nodeOf(own.Leaf, cluster)
	if err != nil {
		return nil, fmt.Errorf("tls: %s: %w", certFile, err)
	}
	if node != self {
		return nil, fmt.Errorf("tls: %s: %w: the certificate is of node %q, this is %q", certFile, ErrIdentity, node, self)
	}
	expect := slices.Clone(expectPeers)
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{own},
		// A resumed session would rest on a check made earlier, and links are
		// dialled too seldom for it to pay.
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return fmt.Errorf("%w: the peer showed no certificate", ErrIdentity)
			}
			if err := verifyChain(state.PeerCertificates, roots, time.Now()); err != nil {
				return err
			}
			node, err := nodeOf(state.PeerCertificates[0], cluster)
			switch {
			case err != nil:
				return err
			case node == self:
				return fmt.Errorf("%w: the peer shows this node's own certificate, %q", ErrIdentity, self)
			case len(expect) > 0 && !slices.Contains(expect, node):
				return fmt.Errorf("%w: the peer is node %q, expected is %s", ErrIdentity, node, strings.Join(expect, " or "))
			}
			return nil
		},
	}, nil
}

// verifyChain checks signature, time and usage, everything but the name.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	leaf := chain[0]
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	// The standard text says "expired or not yet valid" without the dates, which
	// are what an operator needs.
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Errorf("certificate of %q is valid from %s to %s, now it is %s: %w", leaf.Subject.CommonName,
			leaf.NotBefore.UTC().Format(time.DateTime), leaf.NotAfter.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime), err)
	}
	if err != nil {
		return fmt.Errorf("certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	return nil
}
