// Package certs makes and checks the certificates of a cluster: one authority,
// one certificate per node, no revocation (a node is removed by replacing the
// authority). Only the standard library is used.
//
// Who a peer is stands in a URI, tandem://CLUSTER/NODE, and not in its address:
// addresses move, that is what this program is for.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"tandem/failover/record"
)

const (
	// years is long, because an expired certificate stops replication and there
	// is nobody to renew it.
	years = 10

	// backdate lets a node with a clock that is behind use a certificate at once.
	backdate = time.Hour

	caName = "ca"

	certBlock = "CERTIFICATE"
	keyBlock  = "EC PRIVATE KEY"
)

// Options of Create.
type Options struct {
	// Force replaces the files of the named nodes. The authority is never
	// replaced: every node would have to change at the same moment.
	Force bool
}

// Create writes NODE.pem and NODE.key for each node into dir, and ca.pem and
// ca.key if there is no authority yet; an authority that is there signs. It
// returns the files written. Nothing is written if any of them is in the way.
func Create(dir, cluster string, nodes []string, opts Options) ([]string, error) {
	if !record.ValidName(cluster) {
		return nil, fmt.Errorf("%q is not a cluster name: letters, digits, dots, underscores and dashes", cluster)
	}
	if len(nodes) == 0 {
		return nil, errors.New("no node is named")
	}
	for i, node := range nodes {
		switch {
		case !record.ValidName(node):
			return nil, fmt.Errorf("%q is not a node name: letters, digits, dots, underscores and dashes", node)
		case node == caName:
			return nil, fmt.Errorf("a node cannot be called %q: its files would be those of the authority", node)
		case slices.Contains(nodes[:i], node):
			return nil, fmt.Errorf("node %s is named twice", node)
		}
		if opts.Force {
			continue
		}
		for _, path := range []string{certPath(dir, node), keyPath(dir, node)} {
			if _, err := os.Lstat(path); err == nil {
				return nil, fmt.Errorf("%s is %w: --force replaces it", path, ErrExists)
			} else if !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	ca, written, err := loadOrCreateCA(dir, cluster)
	if err != nil {
		return written, err
	}
	for _, node := range nodes {
		now := time.Now()
		pair, err := ca.issue(cluster, node, now.Add(-backdate), now.AddDate(years, 0, 0))
		if err != nil {
			return written, fmt.Errorf("certificate of %s: %w", node, err)
		}
		files, err := pair.write(dir, node)
		written = append(written, files...)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

func certPath(dir, name string) string { return filepath.Join(dir, name+".pem") }
func keyPath(dir, name string) string  { return filepath.Join(dir, name+".key") }

// identity is the URI in a node's certificate.
func identity(cluster, node string) *url.URL {
	return &url.URL{Scheme: "tandem", Host: cluster, Path: "/" + node}
}

func authorityName(cluster string) string { return "tandem " + cluster + " CA" }

// pair is a certificate and its private key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func loadOrCreateCA(dir, cluster string) (pair, []string, error) {
	certPEM, certErr := os.ReadFile(certPath(dir, caName))
	keyPEM, keyErr := os.ReadFile(keyPath(dir, caName))
	if errors.Is(certErr, os.ErrNotExist) && errors.Is(keyErr, os.ErrNotExist) {
		now := time.Now()
		ca, err := newCA(cluster, now.Add(-backdate), now.AddDate(years, 0, 0))
		if err != nil {
			return pair{}, nil, fmt.Errorf("authority: %w", err)
		}
		files, err := ca.write(dir, caName)
		return ca, files, err
	}
	// Half an authority is not replaced: the other half is perhaps on the nodes.
	if certErr != nil {
		return pair{}, nil, fmt.Errorf("authority: %w", certErr)
	}
	if keyErr != nil {
		return pair{}, nil, fmt.Errorf("authority: %w (it is needed to sign; use the folder in which %s was made)",
			keyErr, certPath(dir, caName))
	}
	ca, err := parsePair(certPEM, keyPEM)
	if err != nil {
		return pair{}, nil, fmt.Errorf("authority in %s: %w", dir, err)
	}
	if ca.cert.Subject.CommonName != authorityName(cluster) {
		return pair{}, nil, fmt.Errorf("%s is %q, which is not the authority of cluster %s: use another folder",
			certPath(dir, caName), ca.cert.Subject.CommonName, cluster)
	}
	return ca, nil, nil
}

func parsePair(certPEM, keyPEM []byte) (pair, error) {
	certDER, _ := pem.Decode(certPEM)
	keyDER, _ := pem.Decode(keyPEM)
	if certDER == nil || certDER.Type != certBlock || keyDER == nil || keyDER.Type != keyBlock {
		return pair{}, errors.New("ca.pem or ca.key is not what this program writes")
	}
	cert, err := x509.ParseCertificate(certDER.Bytes)
	if err != nil {
		return pair{}, err
	}
	key, err := x509.ParseECPrivateKey(keyDER.Bytes)
	if err != nil {
		return pair{}, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return pair{}, errors.New("ca.key does not belong to ca.pem")
	}
	return pair{cert, key}, nil
}

func newCA(cluster string, notBefore, notAfter time.Time) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: authorityName(cluster)},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return sign(template, pair{template, key}, key)
}

// issue makes a node's certificate. It is a server's and a client's at once: who
// dials is decided by the names of the nodes.
func (p pair) issue(cluster, node string, notBefore, notAfter time.Time) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	return sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: node},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		DNSNames:              []string{node},
		URIs:                  []*url.URL{identity(cluster, node)},
	}, p, key)
}

func sign(template *x509.Certificate, parent pair, key *ecdsa.PrivateKey) (pair, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return pair{}, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		return pair{}, err
	}
	// Read back, because the parser is stricter than the writer: a cluster name
	// such as "a..b" is a name here and no host in a URI.
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return pair{}, fmt.Errorf("these names cannot stand in a certificate: %w", err)
	}
	return pair{cert, key}, nil
}

// write puts the key first: a certificate without its key would look complete.
func (p pair) write(dir, name string) ([]string, error) {
	keyDER, err := x509.MarshalECPrivateKey(p.key)
	if err != nil {
		return nil, err
	}
	var written []string
	for _, f := range []struct {
		path  string
		block *pem.Block
		mode  os.FileMode
	}{
		{keyPath(dir, name), &pem.Block{Type: keyBlock, Bytes: keyDER}, 0o600},
		{certPath(dir, name), &pem.Block{Type: certBlock, Bytes: p.cert.Raw}, 0o644},
	} {
		if err := replaceFile(f.path, pem.EncodeToMemory(f.block), f.mode); err != nil {
			return written, err
		}
		written = append(written, f.path)
	}
	return written, nil
}

// replaceFile never leaves half a file, and gives a key its mode before its
// content.
func replaceFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
