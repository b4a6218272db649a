package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/goleak"

	"tandem/agent/faultproxy"
	"tandem/failover/witness/etcd/etcdtest"
	"tandem/failover/witness/internal/register"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is what a request has at `lease: 1s`.
const deadline = 500 * time.Millisecond

func open(t *testing.T, hosts ...string) *Store {
	t.Helper()
	s, err := New(Config{Hosts: hosts, Key: "tandem/test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// short is a request's context, whose cancel comes with the test's end.
func short(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func mustCAS(t *testing.T, s *Store, expect, data string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	version, err := s.CAS(ctx, expect, []byte(data))
	if err != nil || version == "" {
		t.Fatalf("CAS %q: %q, %v", data, version, err)
	}
	return version
}

func mustRead(t *testing.T, s *Store) (data, version string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b, version, err := s.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), version
}

// undecided fails the test if err says what became of a CAS.
func undecided(t *testing.T, err error) {
	t.Helper()
	if err == nil || errors.Is(err, register.ErrConflict) {
		t.Fatalf("the outcome should be unknown, and is: %v", err)
	}
}

// However the answer to a transaction is lost, etcd sees it once, and the caller
// is told that its outcome is unknown.
func TestOneAttempt(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	member := c.Members[0]
	proxy, err := faultproxy.New(member.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	s := open(t, proxy.Addr())
	version := mustCAS(t, s, "", "0")
	for i, tc := range []struct {
		name   string
		lose   func()               // before the transaction is sent
		during func(arrived func()) // while it is under way
		lands  bool
	}{
		{"the answer is swallowed", func() { proxy.Cut(faultproxy.From) }, nil, true},
		{"the connection is reset before the answer", func() { proxy.Hold(faultproxy.From) }, func(arrived func()) { arrived(); proxy.Reset() }, true},
		{"the question is swallowed", func() { proxy.Cut(faultproxy.To) }, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := member.Handled(t, "Txn")
			arrived := func() {
				for end := time.Now().Add(10 * time.Second); member.Handled(t, "Txn") == before; {
					if time.Now().After(end) {
						t.Error("the transaction has not arrived")
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
			sent := make(chan struct{})
			s.beforeTxn = func() { tc.lose(); close(sent) }
			limit := deadline
			if tc.during != nil {
				limit = 20 * time.Second // the fault ends it, not the clock
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			done := make(chan error, 1)
			content := fmt.Sprintf("%d", i+1)
			go func() {
				_, err := s.CAS(ctx, version, []byte(content))
				done <- err
			}()
			<-sent
			if tc.during != nil {
				tc.during(arrived)
			}
			undecided(t, <-done)
			s.beforeTxn = nil
			proxy.Heal()
			time.Sleep(300 * time.Millisecond) // in which a second one would come
			want := before
			if tc.lands {
				want++
			}
			if got := member.Handled(t, "Txn"); got != want {
				t.Errorf("etcd has seen %d transactions, %d are right", got-before, want-before)
			}
			data, now := mustRead(t, s)
			if landed := data == content; landed != tc.lands {
				t.Fatalf("landed: %v, the register holds %q", landed, data)
			}
			// The same CAS again, as the caller does it.
			again, err := s.CAS(short(t), version, []byte(content))
			if tc.lands {
				if !errors.Is(err, register.ErrConflict) {
					t.Fatalf("repeated after it had landed: %v", err)
				}
				version = now
			} else {
				if err != nil {
					t.Fatal(err)
				}
				version = again
			}
		})
	}
}

// A member that is gone or silent costs the requests after it next to nothing.
func TestMemberLost(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	for _, tc := range []struct {
		name   string
		leader bool
		lose   func(*etcdtest.Member)
		back   func(*etcdtest.Member)
		limit  time.Duration // between two changes that were done
	}{
		{"a follower is killed", false, func(m *etcdtest.Member) { m.Kill() }, func(m *etcdtest.Member) { m.Restart(t) }, 2 * deadline},
		{"a follower is stopped", false, func(m *etcdtest.Member) { m.Pause(t) }, func(m *etcdtest.Member) { m.Resume(t) }, 3 * deadline},
		// Nothing can be changed until another member leads: etcd takes one to two
		// seconds for that, and longer when the votes are split.
		{"the leader is killed", true, func(m *etcdtest.Member) { m.Kill() }, func(m *etcdtest.Member) { m.Restart(t) }, 8 * time.Second},
		{"the leader is stopped", true, func(m *etcdtest.Member) { m.Pause(t) }, func(m *etcdtest.Member) { m.Resume(t) }, 8 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// The one that is lost is the one that is asked first.
			victim := c.Leader(t)
			if !tc.leader {
				victim = (victim + 1) % 3
			}
			s := open(t, c.Hosts()...)
			s.first.Store(int32(victim))
			data, version := mustRead(t, s)
			if s.first.Load() != int32(victim) {
				t.Fatal("another member has answered, so this test proves nothing")
			}
			n := len(data)
			change := func() (bool, time.Duration) {
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				got, v, err := s.Read(ctx)
				if err == nil {
					version, n = v, len(got)
					ctx, cancel := context.WithTimeout(t.Context(), deadline)
					defer cancel()
					if v, err = s.CAS(ctx, version, []byte(strings.Repeat("x", n+1))); err == nil {
						version, n = v, n+1
					}
				}
				return err == nil, time.Since(began)
			}
			if ok, _ := change(); !ok {
				t.Fatal("nothing can be changed before the loss")
			}
			tc.lose(c.Members[victim])
			lost, last := time.Now(), time.Now()
			var gap, slowest time.Duration
			done, failures := 0, 0
			for done < 30 || time.Since(lost) < 2*time.Second {
				ok, d := change()
				if ok {
					done++
					gap, last = max(gap, time.Since(last)), time.Now()
					slowest = max(slowest, d)
				} else {
					failures++
					time.Sleep(50 * time.Millisecond) // the core waits longer
				}
				if time.Since(last) > 20*time.Second {
					t.Fatal("nothing can be changed any more")
				}
			}
			t.Logf("%d changes and %d failures; the longest pause %v, the slowest read and change %v",
				done, failures, gap.Round(time.Millisecond), slowest.Round(time.Millisecond))
			if gap > tc.limit {
				t.Errorf("nothing was changed for %v", gap)
			}
			tc.back(c.Members[victim])
			if ok, _ := change(); !ok {
				t.Error("nothing can be changed now that the member is back")
			}
		})
	}
}

// An agent that starts while the first member is silent: its kernel accepts the
// connection, nobody greets.
func TestSilentAtTheStart(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	victim := (c.Leader(t) + 1) % 3
	c.Members[victim].Pause(t)
	defer c.Members[victim].Resume(t)
	s := open(t, c.Members[victim].Addr, c.Members[(victim+1)%3].Addr, c.Members[(victim+2)%3].Addr)
	began := time.Now()
	mustCAS(t, s, "", "x")
	d := time.Since(began)
	t.Logf("the first request took %v", d.Round(time.Millisecond))
	if d < nextAfter {
		t.Error("the silent member was not waited for, so this test proves nothing")
	}
	if d > dialLimit {
		t.Error("it was waited for until the dial was given up")
	}
	if s.first.Load() == 0 {
		t.Error("the silent member is asked first again")
	}
}

// Without a majority every request ends, at the latest with its deadline, and
// decides nothing.
func TestNoMajority(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	s := open(t, c.Hosts()...)
	version := mustCAS(t, s, "", "x")
	leader := c.Leader(t)
	c.Members[leader].Kill()
	c.Members[(leader+1)%3].Kill()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		began := time.Now()
		_, err := s.CAS(short(t), version, []byte("y"))
		undecided(t, err)
		if d := time.Since(began); d > 4*deadline {
			t.Fatalf("a request took %v", d)
		}
		if _, _, err := s.Read(short(t)); err == nil {
			t.Fatal("a read was answered by a minority")
		}
	}
	c.Members[leader].Restart(t)
	if data, v := mustRead(t, s); data == "x" && v != version {
		t.Fatalf("the same content has version %s and %s", version, v)
	}
}

// A member that was away for a while is used again soon after it is back, although
// nobody else is there.
func TestMemberReturns(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	s := open(t, c.Hosts()...)
	version := mustCAS(t, s, "", "x")
	c.Members[0].Kill()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, _, err := s.Read(short(t)); err == nil {
			t.Fatal("a read was answered by nobody")
		}
	}
	if _, _, err := s.Read(short(t)); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Fatalf("got %v", err)
	}
	c.Members[0].Restart(t)
	began := time.Now()
	for {
		data, v, err := s.Read(short(t))
		if err == nil {
			if string(data) != "x" || v != version {
				t.Fatalf("%q %s", data, v)
			}
			break
		}
		if time.Since(began) > 5*lastRedial {
			t.Fatalf("%v after its return: %v", time.Since(began), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A restored etcd gives out its revisions a second time. What was read from the
// old one is no ground to replace what the new one holds.
func TestSameRevisionOtherContent(t *testing.T) {
	before := open(t, etcdtest.Start(t, etcdtest.Options{}).Hosts()...)
	after := open(t, etcdtest.Start(t, etcdtest.Options{}).Hosts()...)
	old, fresh := mustCAS(t, before, "", "old"), mustCAS(t, after, "", "new")
	if strings.Split(old, "-")[0] != strings.Split(fresh, "-")[0] {
		t.Fatalf("versions %s and %s have different revisions, so this test proves nothing", old, fresh)
	}
	if _, err := after.CAS(short(t), old, []byte("x")); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	// The compare of revisions alone would have let it through: that of contents,
	// which is in every transaction, is what holds if etcd is restored in between.
	kv := &mvccpb.KeyValue{ModRevision: revisionOf(t, old), Value: []byte("old")}
	conditions, ok := after.conditions(old, kv)
	if !ok {
		t.Fatal("the content of that very version was refused")
	}
	answer, err := after.members[0].kv.Txn(t.Context(), &pb.TxnRequest{Compare: conditions})
	if err != nil || answer.Succeeded {
		t.Fatalf("the conditions hold for another content: %v", err)
	}
	if answer, err = after.members[0].kv.Txn(t.Context(), &pb.TxnRequest{Compare: conditions[:1]}); err != nil || !answer.Succeeded {
		t.Fatalf("the first condition fails already: %v", err)
	}
}

func revisionOf(t *testing.T, version string) int64 {
	t.Helper()
	digits, _, _ := strings.Cut(version, "-")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Somebody else's content is neither loaded without bound nor taken for a record.
func TestTooLarge(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	s := open(t, c.Hosts()...)
	for _, n := range []int{maxBytes + 1, maxAnswer + 1} {
		put := &pb.PutRequest{Key: s.key, Value: make([]byte, n)}
		if _, err := s.members[0].kv.Put(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Read(short(t)); err == nil || !strings.Contains(err.Error(), "larger than") {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	largest := strings.Repeat("x", maxBytes)
	if _, err := s.members[0].kv.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: s.key}); err != nil {
		t.Fatal(err)
	}
	version := mustCAS(t, s, "", largest)
	mustCAS(t, s, version, largest[1:]+"y") // the old and the new one fit into a request
}

func TestCloseDuringARequest(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	s, err := New(Config{Hosts: c.Hosts(), Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, s)
	c.Members[0].Pause(t)
	defer c.Members[0].Resume(t)
	done := make(chan error, 1)
	go func() {
		_, _, err := s.Read(t.Context()) // without a deadline
		done <- err
	}()
	time.Sleep(50 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Fatal("a read was answered by a stopped server")
	}
}

func TestScratchGoesByItself(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	s := open(t, c.Hosts()...)
	r, remove, err := s.Scratch(t.Context(), "probe-X")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.CAS(t.Context(), "", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if data, _ := mustRead(t, s); data != "" {
		t.Fatalf("the register itself holds %q", data)
	}
	keys := func() int {
		t.Helper()
		a, err := s.members[0].kv.Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range a.Kvs {
			if kv.Lease == 0 {
				t.Errorf("%s would stay for ever", kv.Key)
			}
		}
		return len(a.Kvs)
	}
	if keys() != 1 {
		t.Fatal("the scratch register is not there")
	}
	if err := remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys() != 0 {
		t.Fatal("the scratch register is still there")
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ours, other := newAuthority(t, dir, "ours"), newAuthority(t, dir, "other")
	server := ours.issue(t, "server")
	c := etcdtest.Start(t, etcdtest.Options{CA: ours.file, Cert: server + ".pem", Key: server + ".key"})
	load := func(name string) []tls.Certificate {
		pair, err := tls.LoadX509KeyPair(name+".pem", name+".key")
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{pair}
	}
	client, stranger := load(ours.issue(t, "client")), load(other.issue(t, "stranger"))
	for _, tc := range []struct {
		name string
		cfg  *tls.Config
		err  string
	}{
		{"both ways", &tls.Config{RootCAs: ours.pool, Certificates: client}, ""},
		{"a server of another authority", &tls.Config{RootCAs: other.pool, Certificates: client}, "certificate signed by unknown authority"},
		{"no certificate", &tls.Config{RootCAs: ours.pool}, ""},
		{"a certificate of another authority", &tls.Config{RootCAs: ours.pool, Certificates: stranger}, ""},
		{"in the clear", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := New(Config{Hosts: c.Hosts(), Key: "k", TLS: tc.cfg})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			// With TLS 1.3 the server judges the client's certificate when the
			// client is done already: how that shows is a matter of chance.
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			_, _, err = s.Read(ctx)
			if tc.name == "both ways" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("got %v, want %q", err, tc.err)
			}
			t.Log(err)
		})
	}
}

// authority signs certificates for the test.
type authority struct {
	dir, file string
	pool      *x509.CertPool
	cert      *x509.Certificate
	key       *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{dir: dir, file: filepath.Join(dir, name+"-ca.pem"), pool: x509.NewCertPool()}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

// issue writes NAME.pem and NAME.key and returns their common part.
func (a *authority) issue(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(a.dir, name)
	writePEM(t, base+".pem", "CERTIFICATE", der)
	writePEM(t, base+".key", "EC PRIVATE KEY", private)
	return base
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
