// Package location reads the URL of a witness. It is apart from package witness so that
// whoever only reads a config file carries none of the stores.
package location

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Location is a parsed witness URL.
type Location struct {
	Scheme string // "file", "etcd", "s3" or "dynamodb"
	Path   string // as written: the file's path, or the key without the slash before it

	// Shared is the operator's word that all nodes see the same file. Without it
	// a file on two hosts would be two registers, and both nodes could promote.
	Shared bool

	// Hosts are etcd's members, HOST:PORT each.
	Hosts []string
	// TLS is how they are spoken to: with the system's authorities if CA is empty,
	// without a certificate of our own if Cert and Key are. Paths as written.
	TLS           bool
	CA, Cert, Key string

	// Name is S3's bucket or DynamoDB's table.
	Name string
	// Region and Endpoint, a URL, are AWS's if they are empty: the instance's own region.
	Region, Endpoint string
	// PathStyle has the bucket in the path and not in the host name: servers other than Amazon's.
	PathStyle bool
	// HashKey is the name of the table's partition key; empty: the default.
	HashKey string
}

// maxHosts bounds a list that is asked one after the other. An etcd cluster has
// 3 or 5 members, and is slow with more than 7.
const maxHosts = 9

// Parse reads a witness URL and opens nothing.
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
	case "s3":
		return parseS3(raw, rest)
	case "dynamodb":
		return parseDynamoDB(raw, rest)
	}
	return Location{}, fmt.Errorf("unknown scheme %q: %s", scheme, forms)
}

const (
	forms        = "write file:PATH, " + etcdForm + ", " + s3Form + " or " + dynamoDBForm
	etcdForm     = "etcd://HOST:PORT,HOST:PORT/KEY"
	s3Form       = "s3://BUCKET/KEY"
	dynamoDBForm = "dynamodb://TABLE/KEY"
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

// Not by regular expressions: those are compiled at each start of the agent, which clients wait for.

// isBucket: 3 to 63 small letters, digits, dots and hyphens, a letter or digit at both ends.
func isBucket(s string) bool {
	return len(s) >= 3 && len(s) <= 63 && only(s, small+digits+".-") && only(s[:1]+s[len(s)-1:], small+digits)
}

// isTable: 3 to 255 letters, digits, underscores, dots and hyphens.
func isTable(s string) bool { return len(s) >= 3 && isAttribute(s) }

func isAttribute(s string) bool {
	return len(s) >= 1 && len(s) <= 255 && only(s, small+capital+digits+"_.-")
}

func isRegion(s string) bool {
	area, rest, ok := strings.Cut(s, "-")
	return ok && len(area) >= 2 && len(s) <= 63 && only(area, small) && only(rest, small+digits+"-") && !strings.HasSuffix(s, "-")
}

const (
	small   = "abcdefghijklmnopqrstuvwxyz"
	capital = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)

func only(s, chars string) bool { return strings.Trim(s, chars) == "" }

const (
	// An object's key has at most 1024 bytes, and a scratch register is named after it.
	maxObjectKey = 900
	maxItemKey   = 1900 // of 2048
)

func parseS3(raw, rest string) (Location, error) {
	loc, params, err := parseAWS(raw, rest, "s3", s3Form, "s3 has region, endpoint and path-style", "region", "endpoint", "path-style")
	if err != nil {
		return Location{}, err
	}
	if !isBucket(loc.Name) {
		return Location{}, fmt.Errorf("%q: %q is not the name of a bucket", raw, loc.Name)
	}
	if len(loc.Path) > maxObjectKey {
		return Location{}, fmt.Errorf("%q: a key of %d bytes is too long: at most %d are possible", raw, len(loc.Path), maxObjectKey)
	}
	if loc.PathStyle, err = signed(raw, "path-style", params); err != nil {
		return Location{}, err
	}
	return loc, nil
}

func parseDynamoDB(raw, rest string) (Location, error) {
	loc, params, err := parseAWS(raw, rest, "dynamodb", dynamoDBForm, "dynamodb has region, endpoint and hash-key", "region", "endpoint", "hash-key")
	if err != nil {
		return Location{}, err
	}
	if !isTable(loc.Name) {
		return Location{}, fmt.Errorf("%q: %q is not the name of a table", raw, loc.Name)
	}
	if len(loc.Path) > maxItemKey {
		return Location{}, fmt.Errorf("%q: a key of %d bytes is too long: at most %d are possible", raw, len(loc.Path), maxItemKey)
	}
	if name, ok := params["hash-key"]; ok {
		if !isAttribute(name) {
			return Location{}, fmt.Errorf("%q: hash-key: %q is not the name of an attribute", raw, name)
		}
		switch name {
		case "record", "version", "expires":
			return Location{}, fmt.Errorf("%q: hash-key: %s is what the record itself is kept in", raw, name)
		}
		loc.HashKey = name
	}
	return loc, nil
}

// parseAWS reads what the URLs of both have in common, //NAME/KEY?PARAMETERS.
func parseAWS(raw, rest, scheme, form, hint string, known ...string) (Location, map[string]string, error) {
	rest, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return Location{}, nil, fmt.Errorf("%q: write %s", raw, form)
	}
	rest, query, _ := strings.Cut(rest, "?")
	name, key, _ := strings.Cut(rest, "/")
	if name == "" || key == "" {
		return Location{}, nil, fmt.Errorf("%q: write %s", raw, form)
	}
	if !utf8.ValidString(key) || strings.ContainsFunc(key, unicode.IsControl) {
		return Location{}, nil, fmt.Errorf("%q has a character in its key that cannot be typed", raw)
	}
	params, err := parameters(raw, query, hint, known...)
	if err != nil {
		return Location{}, nil, err
	}
	loc := Location{Scheme: scheme, Name: name, Path: key, Region: params["region"], Endpoint: params["endpoint"]}
	if r, ok := params["region"]; ok && !isRegion(r) {
		return Location{}, nil, fmt.Errorf("%q: region: %q is not the name of a region, such as eu-central-1", raw, r)
	}
	if e, ok := params["endpoint"]; ok {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return Location{}, nil, fmt.Errorf("%q: endpoint: %q is not the URL of a server, such as https://10.0.0.5:9000", raw, e)
		}
	}
	return loc, params, nil
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
