package witness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tandem/failover/awsclient/awstest"
)

// behind is a register of AWS's behind a proxy, and the same without it.
type behind struct {
	name   string
	write  string // the proxy's name of a write
	start  func(t *testing.T) (proxy *awstest.Proxy, url func(endpoint, key string) string, direct string)
	denied func(x *awstest.Exchange)
	spoil  awstest.Fault // has the store ignore conditions
}

func behinds() []behind {
	return []behind{
		{
			name: "s3", write: "PUT",
			start: func(t *testing.T) (*awstest.Proxy, func(string, string) string, string) {
				v := awstest.StartVersity(t)
				return awstest.NewProxy(t, v.URL), func(endpoint, key string) string { return s3URL(endpoint, v.Bucket)(key) }, v.URL
			},
			denied: func(x *awstest.Exchange) {
				x.Answer(403, "application/xml", `<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>`)
			},
			spoil: func(x *awstest.Exchange) {
				x.Request.Header.Del("If-None-Match")
				x.Request.Header.Del("If-Match")
			},
		},
		{
			name: "dynamodb", write: "PutItem",
			start: func(t *testing.T) (*awstest.Proxy, func(string, string) string, string) {
				m := awstest.StartMoto(t)
				m.CreateTable(t, "tandem", "id")
				return awstest.NewProxy(t, m.URL), func(endpoint, key string) string { return dynamoDBURL(endpoint, "tandem")(key) }, m.URL
			},
			denied: func(x *awstest.Exchange) {
				x.Answer(400, "application/x-amz-json-1.0", `{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"User is not authorized"}`)
			},
			spoil: func(x *awstest.Exchange) {
				var in map[string]any
				if x.Action != "PutItem" || json.Unmarshal(x.Body, &in) != nil {
					return
				}
				for _, k := range []string{"ConditionExpression", "ExpressionAttributeNames", "ExpressionAttributeValues"} {
					delete(in, k)
				}
				if b, err := json.Marshal(in); err == nil {
					x.Body = b
				}
			},
		},
	}
}

func open(t *testing.T, url string) Store {
	t.Helper()
	s, err := Open(url, ".")
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

// Whatever AWS and the line to it do, a write is sent once, and is called refused only if it was.
func TestAWSFaults(t *testing.T) {
	awstest.Environ(t)
	for _, b := range behinds() {
		t.Run(b.name, func(t *testing.T) {
			proxy, url, direct := b.start(t)
			keys := 0
			// fresh is a register that holds "one", seen through the proxy and past it.
			fresh := func(t *testing.T) (s, past Store, version string) {
				t.Helper()
				keys++
				key := fmt.Sprintf("k%d", keys)
				past = open(t, url(direct, key))
				version = cas(t, past, "", "one")
				t.Cleanup(func() { proxy.Set(nil) })
				return open(t, url(proxy.URL, key)), past, version
			}
			// within bounds what an agent would wait.
			within := func(t *testing.T, d time.Duration) context.Context {
				ctx, cancel := context.WithTimeout(t.Context(), d)
				t.Cleanup(cancel)
				return ctx
			}
			writes := func(f func()) int {
				before := proxy.Count(b.write)
				f()
				return proxy.Count(b.write) - before
			}

			t.Run("late", func(t *testing.T) {
				s, past, v := fresh(t)
				proxy.Set(awstest.Delay(300 * time.Millisecond))
				v2 := cas(t, s, v, "two")
				holds(t, s, "two", v2)
				holds(t, past, "two", v2)
			})
			t.Run("throttled", func(t *testing.T) {
				s, past, v := fresh(t)
				proxy.Set(awstest.Times(3, awstest.Throttle))
				holds(t, s, "one", v) // a read is repeated by itself
				proxy.Set(awstest.Only(awstest.Times(1, awstest.Throttle), b.write))
				n := writes(func() {
					if _, err := s.CAS(t.Context(), v, []byte("two")); err == nil || errors.Is(err, ErrConflict) {
						t.Errorf("got %v", err)
					}
				})
				if n != 1 {
					t.Errorf("the write was sent %d times", n)
				}
				holds(t, past, "one", v)
				cas(t, s, v, "two")
			})
			t.Run("done, and the answer lost", func(t *testing.T) {
				s, past, v := fresh(t)
				proxy.Set(awstest.Only(awstest.LoseReply, b.write))
				var v2 string
				n := writes(func() { v2 = cas(t, s, v, "two") }) // read back
				if n != 1 {
					t.Errorf("the write was sent %d times", n)
				}
				holds(t, past, "two", v2)
			})
			t.Run("done, and nothing is answered any more", func(t *testing.T) {
				s, past, v := fresh(t)
				proxy.Set(func(x *awstest.Exchange) {
					if x.Action == b.write {
						x.Lose()
						return
					}
					x.Hang()
				})
				if _, err := s.CAS(within(t, time.Second), v, []byte("two")); err == nil || errors.Is(err, ErrConflict) {
					t.Errorf("got %v", err)
				}
				proxy.Set(nil)
				holds(t, past, "two", "")
				// The agent sends it again, and finds by its nonce that it has won.
				refused(t, s, v, "two")
			})
			t.Run("a black hole", func(t *testing.T) {
				s, past, v := fresh(t)
				proxy.Set(awstest.BlackHole)
				began := time.Now()
				if _, err := s.CAS(within(t, 500*time.Millisecond), v, []byte("two")); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrConflict) {
					t.Errorf("got %v", err)
				}
				if _, _, err := s.Read(within(t, 500*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("a black hole took %v", took)
				}
				proxy.Set(nil)
				holds(t, past, "one", v)
				cas(t, s, v, "two")
			})
			t.Run("denied", func(t *testing.T) {
				s, past, v := fresh(t)
				proxy.Set(b.denied)
				if _, _, err := s.Read(t.Context()); !strings.Contains(errText(err), "is denied: the node needs") {
					t.Errorf("got %v", err)
				}
				if _, err := s.CAS(t.Context(), v, []byte("two")); !strings.Contains(errText(err), "is denied: the node needs") || errors.Is(err, ErrConflict) {
					t.Errorf("got %v", err)
				}
				holds(t, past, "one", v)
			})
			t.Run("the service fails", func(t *testing.T) {
				s, past, v := fresh(t)
				proxy.Set(awstest.Only(awstest.Times(1, func(x *awstest.Exchange) { x.Answer(500, "text/plain", "") }), b.write))
				if _, err := s.CAS(t.Context(), v, []byte("two")); err == nil || errors.Is(err, ErrConflict) {
					t.Errorf("got %v", err)
				}
				holds(t, past, "one", v)
			})
			t.Run("it keeps its conditions", func(t *testing.T) {
				s, _, v := fresh(t)
				if err := Probe(t.Context(), s, 10*time.Second); err != nil {
					t.Error(err)
				}
				holds(t, s, "one", v)
			})
		})
	}
}

// A store that ignores conditions is found out by what it does on the wire.
func TestAWSWithoutConditions(t *testing.T) {
	awstest.Environ(t)
	for _, b := range behinds() {
		t.Run(b.name, func(t *testing.T) {
			var s Store
			if b.name == "s3" {
				// One that does not look at signatures, which cover the conditions.
				p := awstest.NewProxy(t, awstest.StartFakeS3(t, "tandem"))
				p.Set(b.spoil)
				s = open(t, s3URL(p.URL, "tandem")("k"))
			} else {
				p, url, _ := b.start(t)
				p.Set(b.spoil)
				s = open(t, url(p.URL, "k"))
			}
			if err := Probe(t.Context(), s, 10*time.Second); !errors.Is(err, ErrIgnoresConditions) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// S3's 409: nothing of this write has landed, because another was under way. It is sent again
// if its condition still holds, and not if the other one has won.
func TestS3Conflict409(t *testing.T) {
	awstest.Environ(t)
	b := behinds()[0]
	proxy, url, direct := b.start(t)
	s, past := open(t, url(proxy.URL, "k")), open(t, url(direct, "k"))
	proxy.Set(awstest.Only(awstest.Times(2, awstest.Conflict409), "PUT"))
	v := cas(t, s, "", "one")
	if n := proxy.Count("PUT"); n != 3 {
		t.Errorf("%d writes, not 3", n)
	}
	holds(t, past, "one", v)

	proxy.Set(awstest.Only(awstest.Times(1, func(x *awstest.Exchange) {
		cas(t, past, v, "of another")
		awstest.Conflict409(x)
	}), "PUT"))
	refused(t, s, v, "two")
	holds(t, s, "of another", "")

	// And one that was carried out all the same is not called refused.
	_, v, err := past.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	proxy.Set(awstest.Only(awstest.Times(1, func(x *awstest.Exchange) {
		if _, err := x.Forward(); err != nil {
			t.Error(err)
		}
		awstest.Conflict409(x)
	}), "PUT"))
	v = cas(t, s, v, "two")
	holds(t, past, "two", v)

	// It ends with its deadline.
	proxy.Set(awstest.Only(awstest.Conflict409, "PUT"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.CAS(ctx, v, []byte("three")); err == nil || errors.Is(err, ErrConflict) {
		t.Errorf("got %v", err)
	}
}

// What is wrong with the set-up is said so that it can be mended, and is never "refused".
func TestAWSSetup(t *testing.T) {
	awstest.Environ(t)
	v, m := awstest.StartVersity(t), awstest.StartMoto(t)
	m.CreateTable(t, "tandem", "pk")
	for _, tc := range []struct{ url, err string }{
		{s3URL(v.URL, "nowhere")("k"), "there is no bucket nowhere: create it, or correct witness in the config"},
		{dynamoDBURL(m.URL, "nowhere")("k"), "there is no table nowhere in this region: create it, or correct witness in the config"},
		{dynamoDBURL(m.URL, "tandem")("k"), "its partition key must be id, a string (another name: hash-key=)"},
	} {
		s := open(t, tc.url)
		if _, _, err := s.Read(t.Context()); !strings.Contains(errText(err), tc.err) {
			t.Errorf("read %s: %v", tc.url, err)
		}
		if _, err := s.CAS(t.Context(), "", []byte("x")); !strings.Contains(errText(err), tc.err) || errors.Is(err, ErrConflict) {
			t.Errorf("CAS %s: %v", tc.url, err)
		}
		if err := Probe(t.Context(), s, 5*time.Second); err == nil || errors.Is(err, ErrIgnoresConditions) {
			t.Errorf("probe %s: %v", tc.url, err)
		}
	}
	s := open(t, dynamoDBURL(m.URL, "tandem")("k")+"&hash-key=pk")
	holds(t, s, "x", cas(t, s, "", "x"))
}

// Eight writers race, a hundred times: each time one has won. Every other round is a create.
func TestS3Races(t *testing.T) {
	awstest.Environ(t)
	v := awstest.StartVersity(t)
	const rivals, rounds = 8, 100
	for round := range rounds {
		key := fmt.Sprintf("round%d", round/2)
		expect := ""
		if round%2 == 1 {
			_, version, err := open(t, s3URL(v.URL, v.Bucket)(key)).Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			expect = version
		}
		var won, lost atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range rivals {
			s := open(t, s3URL(v.URL, v.Bucket)(key))
			wg.Go(func() {
				content := fmt.Sprintf("round %d by %d", round, i)
				switch _, err := s.CAS(t.Context(), expect, []byte(content)); {
				case err == nil:
					won.Add(1)
					winner.Store(content)
				case errors.Is(err, ErrConflict):
					lost.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 || lost.Load() != rivals-1 {
			t.Fatalf("round %d: %d have won, %d have lost", round, won.Load(), lost.Load())
		}
		holds(t, open(t, s3URL(v.URL, v.Bucket)(key)), winner.Load().(string), "")
	}
}
