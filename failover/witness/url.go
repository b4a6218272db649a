package witness

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"tandem/failover/witness/etcd"
	"tandem/failover/witness/file"
)

// Location is a parsed witness URL.
type Location struct {
	Scheme string // "file" or "etcd"
	Path   string // as written: the file's path, or etcd's key without the slash after the hosts

	// Shared is the operator's word that all nodes see the same file. Without it
	// a file on two hosts would be two registers, and both nodes could promote.
	Shared bool

	// Hosts are etcd's members, HOST:PORT each.
	Hosts []string
	// TLS is how they are spoken to: with the system's authorities if CA is empty,
	// without a certificate of our own if Cert and Key are. Paths as written.
	TLS           bool
	CA, Cert, Key string
}

// maxHosts bounds a list that is asked one after the other. An etcd cluster has
// 3 or 5 members, and is slow with more than 7.
const maxHosts = 9

// Parse reads a witness URL and opens nothing. A scheme of a later version gives
// an error that wraps ErrNotInVersion.
func Parse(raw string) (Location, error) {
	scheme, rest, ok := strings.Cut(raw, ":")
	if !ok {
		return Location{}, fmt.Errorf("%q has no scheme: %s", raw, forms)
	}
	switch scheme {
	case "file":
		return parseFile(raw, rest)
	case "etcd":
		return parseEtcd(raw, rest)
	case "s3", "dynamodb":
		return Location{}, fmt.Errorf("%s: witnesses are %w: %s", scheme, ErrNotInVersion, forms)
	}
	return Location{}, fmt.Errorf("unknown scheme %q: %s", scheme, forms)
}

const (
	forms    = "write file:PATH or " + etcdForm
	etcdForm = "etcd://HOST:PORT,HOST:PORT/KEY"
)

// Not url.Parse, neither for files nor for etcd: `file:./witness` is a relative
// path to the operator and an opaque URL to the standard, a list of hosts is
// nothing to the standard, and a % in a name is a %.

func parseFile(raw, rest string) (Location, error) {
	path, query, _ := strings.Cut(rest, "?")
	if path == "" || strings.HasSuffix(path, "/") {
		return Location{}, fmt.Errorf("%q names no file", raw)
	}
	if strings.HasPrefix(path, "//") {
		return Location{}, fmt.Errorf("%q names a host: write file:PATH, with at most one slash in front", raw)
	}
	if strings.ContainsRune(path, 0) {
		return Location{}, fmt.Errorf("%q has a zero byte in its path", raw)
	}
	params, err := parameters(raw, query, "a file has only shared=yes", "shared")
	if err != nil {
		return Location{}, err
	}
	shared, err := signed(raw, "shared", params)
	if err != nil {
		return Location{}, err
	}
	return Location{Scheme: "file", Path: path, Shared: shared}, nil
}

func parseEtcd(raw, rest string) (Location, error) {
	rest, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return Location{}, fmt.Errorf("%q names no host: write %s", raw, etcdForm)
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, key, _ := strings.Cut(rest, "/")
	if key == "" {
		return Location{}, fmt.Errorf("%q names no key: write %s", raw, etcdForm)
	}
	if !utf8.ValidString(key) || strings.ContainsFunc(key, unicode.IsControl) {
		return Location{}, fmt.Errorf("%q has a character in its key that cannot be typed", raw)
	}
	loc := Location{Scheme: "etcd", Path: key}
	for h := range strings.SplitSeq(hosts, ",") {
		if err := checkHost(h); err != nil {
			return Location{}, fmt.Errorf("%q: %w", raw, err)
		}
		if slices.Contains(loc.Hosts, h) {
			return Location{}, fmt.Errorf("%q: %s is there twice", raw, h)
		}
		loc.Hosts = append(loc.Hosts, h)
	}
	if len(loc.Hosts) > maxHosts {
		return Location{}, fmt.Errorf("%q has %d hosts, at most %d are possible", raw, len(loc.Hosts), maxHosts)
	}
	params, err := parameters(raw, query, "etcd has ca, cert, key and tls", "ca", "cert", "key", "tls")
	if err != nil {
		return Location{}, err
	}
	if loc.TLS, err = signed(raw, "tls", params); err != nil {
		return Location{}, err
	}
	loc.CA, loc.Cert, loc.Key = params["ca"], params["cert"], params["key"]
	for _, name := range []string{"ca", "cert", "key"} {
		v, ok := params[name]
		if ok && v == "" {
			return Location{}, fmt.Errorf("%q: %s names no file", raw, name)
		}
		loc.TLS = loc.TLS || ok
	}
	if (loc.Cert == "") != (loc.Key == "") {
		return Location{}, fmt.Errorf("%q: cert and key go together", raw)
	}
	return loc, nil
}

// checkHost is whether h is HOST:PORT.
func checkHost(h string) error {
	if strings.Contains(h, "@") {
		return fmt.Errorf("%q: a user and a password are not possible: give a certificate by cert and key", h)
	}
	host, port, err := net.SplitHostPort(h)
	if err != nil || host == "" || strings.ContainsFunc(host, unicode.IsSpace) {
		return fmt.Errorf("%q is not HOST:PORT", h)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not HOST:PORT: %q is no port number", h, port)
	}
	return nil
}

// parameters are those of query; each of known may be there once.
func parameters(raw, query, hint string, known ...string) (map[string]string, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", raw, err)
	}
	p := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(values)) {
		v := values[key]
		if !slices.Contains(known, key) {
			return nil, fmt.Errorf("%q: unknown parameter %q: %s", raw, key, hint)
		}
		if len(v) != 1 {
			return nil, fmt.Errorf("%q: %s is there twice", raw, key)
		}
		p[key] = v[0]
	}
	return p, nil
}

// signed is whether the parameter is there. "no" is not accepted: it is a
// signature, not a switch.
func signed(raw, key string, params map[string]string) (bool, error) {
	v, ok := params[key]
	if ok && v != "yes" {
		return false, fmt.Errorf("%q: %s can only be yes", raw, key)
	}
	return ok, nil
}

// Open returns the store that raw names. A relative path is relative to baseDir,
// the folder of the config file. The files of TLS are read; nothing is created
// and nobody is asked yet.
func Open(raw, baseDir string) (Store, error) {
	loc, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	if loc.Scheme == "file" {
		return file.New(within(baseDir, loc.Path)), nil
	}
	c := etcd.Config{Hosts: loc.Hosts, Key: loc.Path}
	if loc.TLS {
		if c.TLS, err = loc.tlsConfig(baseDir); err != nil {
			return nil, fmt.Errorf("witness: %w", err)
		}
	}
	s, err := etcd.New(c)
	if err != nil {
		return nil, fmt.Errorf("witness: %w", err)
	}
	return s, nil
}

func (l *Location) tlsConfig(baseDir string) (*tls.Config, error) {
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
