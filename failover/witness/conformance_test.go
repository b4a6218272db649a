package witness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tandem/failover/awsclient/awstest"
	"tandem/failover/witness/etcd/etcdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// services are the stores of this version. Each has a URL for every key: an empty
// register.
var services = []struct {
	name  string
	start func(t *testing.T) (url func(key string) string)

	// careless: its own conditions do not hold when requests race, so it is not asked.
	careless bool
}{
	{name: "file", start: func(t *testing.T) func(string) string {
		dir := t.TempDir()
		return func(key string) string { return "file:" + filepath.Join(dir, key) }
	}},
	{name: "etcd of one member", start: func(t *testing.T) func(string) string {
		return etcdtest.Start(t, etcdtest.Options{}).URL
	}},
	{name: "etcd of three members", start: func(t *testing.T) func(string) string {
		return etcdtest.Start(t, etcdtest.Options{Members: 3}).URL
	}},
	{name: "s3, versitygw", start: func(t *testing.T) func(string) string {
		awstest.Environ(t)
		v := awstest.StartVersity(t)
		return s3URL(v.URL, v.Bucket)
	}},
	{name: "s3, gofakes3", start: func(t *testing.T) func(string) string {
		awstest.Environ(t)
		return s3URL(awstest.StartFakeS3(t, "tandem"), "tandem")
	}},
	{name: "s3, moto", careless: true, start: func(t *testing.T) func(string) string {
		awstest.Environ(t)
		m := awstest.StartMoto(t)
		m.CreateBucket(t, "tandem")
		return s3URL(m.URL, "tandem")
	}},
	{name: "dynamodb, moto", start: func(t *testing.T) func(string) string {
		awstest.Environ(t)
		m := awstest.StartMoto(t)
		m.CreateTable(t, "tandem", "id")
		return dynamoDBURL(m.URL, "tandem")
	}},
}

func s3URL(endpoint, bucket string) func(key string) string {
	return func(key string) string {
		return "s3://" + bucket + "/" + key + "?path-style=yes&endpoint=" + url.QueryEscape(endpoint)
	}
}

func dynamoDBURL(endpoint, table string) func(key string) string {
	return func(key string) string {
		return "dynamodb://" + table + "/" + key + "?endpoint=" + url.QueryEscape(endpoint)
	}
}

// laws are what Register promises. open opens the register once more, as another
// node would.
var laws = []struct {
	name string
	hold func(t *testing.T, open func() Store)
}{
	{"create twice", func(t *testing.T, open func() Store) {
		a, b := open(), open()
		data, v, err := a.Read(t.Context())
		if data != nil || v != "" || err != nil {
			t.Fatalf("absent: %q, %q, %v", data, v, err)
		}
		first := cas(t, a, "", "first")
		for _, s := range []Store{a, b} {
			refused(t, s, "", "second")
			holds(t, s, "first", first)
		}
	}},
	{"replace what is absent", func(t *testing.T, open func() Store) {
		s := open()
		for _, v := range []string{"something", "1", "1-", "-1-00", "7-00", cas(t, open(), "", "x") + "0"} {
			refused(t, s, v, "y")
		}
		holds(t, s, "x", "")
	}},
	{"a stale CAS", func(t *testing.T, open func() Store) {
		a, b := open(), open()
		v1 := cas(t, a, "", "one")
		v2 := cas(t, b, v1, "two")
		refused(t, a, v1, "three")
		refused(t, b, v1, "three")
		refused(t, a, "", "three")
		holds(t, a, "two", v2)
	}},
	{"the same content twice", func(t *testing.T, open func() Store) {
		a, b := open(), open()
		v1 := cas(t, a, "", "A")
		v2 := cas(t, a, v1, "B")
		v3 := cas(t, b, v2, "A")
		refused(t, a, v2, "C")
		holds(t, a, "A", v3)
		// A version may come again with its content, and with nothing else.
		if _, err := a.CAS(t.Context(), v1, []byte("C")); v1 == v3 && err != nil || v1 != v3 && !errors.Is(err, ErrConflict) {
			t.Fatalf("versions %s, %s: %v", v1, v3, err)
		}
	}},
	{"the same CAS twice", func(t *testing.T, open func() Store) {
		s := open()
		v1 := cas(t, s, "", "one")
		v2 := cas(t, s, v1, "two")
		refused(t, s, v1, "two")
		holds(t, s, "two", v2)
	}},
	{"one winner", func(t *testing.T, open func() Store) {
		const rounds, rivals = 10, 8
		stores := [rivals]Store{}
		for i := range stores {
			stores[i] = open()
		}
		version := ""
		for round := range rounds {
			var wins, conflicts atomic.Int32
			var next atomic.Value
			var wg sync.WaitGroup
			for i, s := range stores {
				wg.Go(func() {
					content := fmt.Sprintf("round %d by %d", round, i)
					switch v, err := s.CAS(t.Context(), version, []byte(content)); {
					case err == nil:
						wins.Add(1)
						next.Store([2]string{content, v})
					case errors.Is(err, ErrConflict):
						conflicts.Add(1)
					default:
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if wins.Load() != 1 || conflicts.Load() != rivals-1 {
				t.Fatalf("round %d: %d have won, %d have lost", round, wins.Load(), conflicts.Load())
			}
			won := next.Load().([2]string)
			version = won[1]
			holds(t, stores[round%rivals], won[0], version)
		}
	}},
	{"no update is lost", func(t *testing.T, open func() Store) {
		const rivals, each = 4, 8
		cas(t, open(), "", "0")
		var wg sync.WaitGroup
		for range rivals {
			s := open()
			wg.Go(func() {
				for done := 0; done < each; {
					data, v, err := s.Read(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					n, err := strconv.Atoi(string(data))
					if err != nil {
						t.Error(err)
						return
					}
					switch _, err := s.CAS(t.Context(), v, strconv.AppendInt(nil, int64(n+1), 10)); {
					case err == nil:
						done++
					case !errors.Is(err, ErrConflict):
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		holds(t, open(), strconv.Itoa(rivals*each), "")
	}},
	{"the deadline", func(t *testing.T, open func() Store) {
		s := open()
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		if _, _, err := s.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		if _, err := s.CAS(ctx, "", []byte("x")); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrConflict) {
			t.Errorf("CAS: %v", err)
		}
		if data, _, err := s.Read(t.Context()); data != nil || err != nil {
			t.Errorf("a CAS after its deadline has written: %q %v", data, err)
		}
	}},
	{"sizes", func(t *testing.T, open func() Store) {
		s := open()
		for _, data := range [][]byte{nil, {}, bytes.Repeat([]byte("x"), 1<<20+1)} {
			if _, err := s.CAS(t.Context(), "", data); err == nil || errors.Is(err, ErrConflict) {
				t.Fatalf("%d bytes: %v", len(data), err)
			}
		}
		// As long as a record may be, and not text.
		data := bytes.Repeat([]byte{0, 0xff, '\n'}, 64<<10/3)
		v := cas(t, s, "", string(data))
		holds(t, s, string(data), v)
	}},
	{"it is fit", func(t *testing.T, open func() Store) {
		s := open()
		v := cas(t, s, "", "the record")
		var wg sync.WaitGroup
		for range 3 { // two nodes may start at once
			wg.Go(func() {
				if err := Probe(t.Context(), s, 10*time.Second); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		began := time.Now()
		if err := Probe(t.Context(), s, 10*time.Second); err != nil {
			t.Error(err)
		}
		t.Logf("a probe takes %v", time.Since(began).Round(time.Millisecond))
		holds(t, s, "the record", v)
	}},
}

func TestConformance(t *testing.T) {
	for _, service := range services {
		t.Run(service.name, func(t *testing.T) {
			url := service.start(t)
			for i, law := range laws {
				if service.careless && (law.name == "one winner" || law.name == "no update is lost") {
					continue
				}
				t.Run(law.name, func(t *testing.T) {
					law.hold(t, func() Store {
						s, err := Open(url("k"+strconv.Itoa(i)), ".")
						if err != nil {
							t.Fatal(err)
						}
						t.Cleanup(func() {
							if err := s.Close(); err != nil {
								t.Error(err)
							}
						})
						return s
					})
				})
			}
		})
	}
}

func cas(t *testing.T, s Register, expect, data string) string {
	t.Helper()
	v, err := s.CAS(t.Context(), expect, []byte(data))
	if err != nil || v == "" {
		t.Fatalf("CAS from %q: %q, %v", expect, v, err)
	}
	return v
}

func refused(t *testing.T, s Register, expect, data string) {
	t.Helper()
	if v, err := s.CAS(t.Context(), expect, []byte(data)); !errors.Is(err, ErrConflict) {
		t.Fatalf("CAS from %q: %q, %v", expect, v, err)
	}
}

// holds checks the content, and the version if it is known.
func holds(t *testing.T, s Register, data, version string) {
	t.Helper()
	got, v, err := s.Read(t.Context())
	if err != nil || string(got) != data || v == "" || version != "" && v != version {
		t.Fatalf("the register holds %.80q of version %q (%v), not %.80q of %q", got, v, err, data, version)
	}
}
