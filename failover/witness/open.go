package witness

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"

	"tandem/failover/awsclient"
	"tandem/failover/witness/dynamodb"
	"tandem/failover/witness/etcd"
	"tandem/failover/witness/file"
	"tandem/failover/witness/location"
	"tandem/failover/witness/s3"
)

// Open returns the store that raw names. A relative path is relative to baseDir,
// the folder of the config file. The files of TLS are read; nothing is created
// and nobody is asked yet.
func Open(raw, baseDir string) (Store, error) { return OpenOn(raw, baseDir, awsclient.Options{}) }

// OpenOn is Open where the config says how AWS is reached. What the URL says itself counts
// first; an endpoint of on is another service's and does not count.
func OpenOn(raw, baseDir string, on awsclient.Options) (Store, error) {
	loc, err := location.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	var s Store
	switch loc.Scheme {
	case "file":
		s = file.New(within(baseDir, loc.Path))
	case "etcd":
		c := etcd.Config{Hosts: loc.Hosts, Key: loc.Path}
		if loc.TLS {
			if c.TLS, err = tlsConfig(&loc, baseDir); err != nil {
				return nil, fmt.Errorf("witness: %w", err)
			}
		}
		s, err = etcd.New(c)
	case "s3":
		s, err = s3.New(s3.Config{Bucket: loc.Name, Key: loc.Path, PathStyle: loc.PathStyle, AWS: loader(&loc, on)})
	case "dynamodb":
		s, err = dynamodb.New(dynamodb.Config{Table: loc.Name, Key: loc.Path, HashKey: loc.HashKey, AWS: loader(&loc, on)})
	}
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	return s, nil
}

func loader(l *location.Location, on awsclient.Options) *awsclient.Loader {
	return awsclient.New(awsclient.Options{Region: cmp.Or(l.Region, on.Region), Endpoint: l.Endpoint, Metadata: on.Metadata})
}

func tlsConfig(l *location.Location, baseDir string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12} // etcd's own oldest
	if l.CA != "" {
		path := within(baseDir, l.CA)
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("ca: %s has no certificate in PEM form", path)
		}
	}
	if l.Cert != "" {
		pair, err := tls.LoadX509KeyPair(within(baseDir, l.Cert), within(baseDir, l.Key))
		if err != nil {
			return nil, fmt.Errorf("cert, key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func within(baseDir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(baseDir, path)
}
