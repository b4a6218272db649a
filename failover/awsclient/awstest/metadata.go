package awstest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Identity is what an instance is told of itself.
type Identity struct {
	InstanceID       string
	Region           string // us-east-1
	AvailabilityZone string // us-east-1a
	MAC              string // 02:00:00:00:00:01
	ENI              string
	PrivateIPs       []string // the first is the primary one
	Tags             map[string]string
	Role             string // tandem; its credentials are AccessKey and Secret
}

// Metadata is the instance metadata service of one node, version 2 only: a request
// without a token of its own is refused.
type Metadata struct {
	URL string

	mu       sync.Mutex
	identity Identity
	tokens   map[string]time.Time // until when
	down     bool
	requests int
}

// StartMetadata serves an identity until the test ends.
func StartMetadata(t testing.TB, id Identity) *Metadata {
	t.Helper()
	m, stop, err := RunMetadata("127.0.0.1", id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return m
}

// RunMetadata serves an identity on a port of an address of this machine until stop, for
// those who are no test.
func RunMetadata(address string, id Identity) (m *Metadata, stop func(), err error) {
	for _, d := range []struct {
		field *string
		value string
	}{{&id.Region, Region}, {&id.AvailabilityZone, Region + "a"}, {&id.MAC, "02:00:00:00:00:01"}, {&id.Role, "tandem"}} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	m = &Metadata{identity: id, tokens: make(map[string]time.Time)}
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return nil, nil, fmt.Errorf("instance metadata: %w", err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: m}}
	s.Start()
	m.URL = s.URL
	return m, s.Close, nil
}

// SetPrivateIPs changes what the instance is told of its addresses.
func (m *Metadata) SetPrivateIPs(all ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.identity.PrivateIPs = all
}

// Down has every request answered with 503, or no longer.
func (m *Metadata) Down(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

// Requests is how many there were so far.
func (m *Metadata) Requests() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.requests
}

// The service's own headers.
const (
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// ServeHTTP answers one request.
func (m *Metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests++
	if m.down {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if r.Method == http.MethodPut && r.URL.Path == "/latest/api/token" {
		seconds, err := strconv.Atoi(r.Header.Get(ttlHeader))
		if err != nil || seconds < 1 || seconds > 21600 || r.Header.Get("X-Forwarded-For") != "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		token := fmt.Sprintf("token-%s-%d", m.identity.InstanceID, len(m.tokens))
		m.tokens[token] = time.Now().Add(time.Duration(seconds) * time.Second)
		w.Header().Set(ttlHeader, strconv.Itoa(seconds))
		_, _ = fmt.Fprint(w, token)
		return
	}
	if until, ok := m.tokens[r.Header.Get(tokenHeader)]; !ok || time.Now().After(until) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	text, ok := m.answer(strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/latest/"), "/"))
	if !ok || r.Method != http.MethodGet {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = fmt.Fprint(w, text)
}

// answer has the paths of the service's documentation. The mutex is held.
func (m *Metadata) answer(path string) (string, bool) {
	id := m.identity
	primary := ""
	if len(id.PrivateIPs) > 0 {
		primary = id.PrivateIPs[0]
	}
	mac := "meta-data/network/interfaces/macs/" + id.MAC
	switch path {
	case "dynamic/instance-identity/document":
		b, err := json.Marshal(map[string]string{
			"instanceId": id.InstanceID, "region": id.Region, "availabilityZone": id.AvailabilityZone, "privateIp": primary, "accountId": "123456789012",
		})
		return string(b), err == nil
	case "meta-data/instance-id":
		return id.InstanceID, true
	case "meta-data/placement/region":
		return id.Region, true
	case "meta-data/placement/availability-zone":
		return id.AvailabilityZone, true
	case "meta-data/local-ipv4":
		return primary, true
	case "meta-data/mac":
		return id.MAC, true
	case "meta-data/network/interfaces/macs":
		return id.MAC + "/", true
	case mac + "/interface-id":
		return id.ENI, true
	case mac + "/local-ipv4s":
		return strings.Join(id.PrivateIPs, "\n"), true
	case mac + "/device-number":
		return "0", true
	case "meta-data/iam/security-credentials":
		return id.Role, true
	case "meta-data/iam/security-credentials/" + id.Role:
		b, err := json.Marshal(map[string]string{
			"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": AccessKey, "SecretAccessKey": Secret, "Token": "session",
			"LastUpdated": time.Now().UTC().Format(time.RFC3339), "Expiration": time.Now().Add(6 * time.Hour).UTC().Format(time.RFC3339),
		})
		return string(b), err == nil
	case "meta-data/tags/instance":
		var names []string
		for k := range id.Tags {
			names = append(names, k)
		}
		return strings.Join(names, "\n"), len(names) > 0
	}
	if name, ok := strings.CutPrefix(path, "meta-data/tags/instance/"); ok {
		v, ok := id.Tags[name]
		return v, ok
	}
	return "", false
}
