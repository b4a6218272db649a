package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves h until the test ends, and fails the test if Serve does.
func start(t *testing.T, s *server) (socket string, stop func()) {
	t.Helper()
	if s.requestTimeout == 0 {
		s.requestTimeout = requestTimeout
	}
	if s.sendTimeout == 0 {
		s.sendTimeout = sendTimeout
	}
	socket = filepath.Join(t.TempDir(), "s")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, ln) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return socket, stop
}

// echo is a handler with one verb for each way of answering.
func echo(ctx context.Context, req Request, send func(Message) error) error {
	switch req.Verb {
	case "promote":
		for i := range 3 {
			m, err := NewMessage(KindProgress, fmt.Sprint("step ", i), Progress{DoneBytes: int64(i), TotalBytes: 3})
			if err != nil {
				return err
			}
			if err := send(m); err != nil {
				return err
			}
		}
		m, err := NewMessage(KindResult, "done", req.Args)
		if err != nil {
			return err
		}
		return send(m)
	case "demote":
		return nil
	case "refuse":
		return fmt.Errorf("promote: %w", &Refused{Text: "b has newer data: resync first", Data: json.RawMessage(`{"x":1}`)})
	case "fail":
		return errors.New("the disk is gone")
	case "confirm":
		return &Confirm{Text: "4 KiB will be lost", Node: "a"}
	case "large":
		return send(Message{Kind: KindResult, Text: strings.Repeat("x", MaxLine)})
	case "large-refusal":
		return &Refused{Text: "no", Data: json.RawMessage(`"` + strings.Repeat("x", MaxLine) + `"`)}
	case "twice":
		if err := send(Message{Kind: KindResult}); err != nil {
			return err
		}
		return send(Message{Kind: KindResult})
	case "wait":
		_ = send(Message{Kind: KindProgress, Text: "waiting"})
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return &Refused{Text: "unknown verb " + req.Verb}
}

func TestCall(t *testing.T) {
	socket, _ := start(t, &server{handler: echo})
	ctx := context.Background()
	var seen []string
	data, err := Call(ctx, socket, Request{Verb: "promote", Args: map[string]string{"force": "true"}},
		func(m Message) { seen = append(seen, m.Kind+" "+m.Text+" "+string(m.Data)) })
	if err != nil || string(data) != `{"force":"true"}` {
		t.Fatalf("%s %v", data, err)
	}
	want := `progress step 0 {"done_bytes":0,"total_bytes":3,"rate_bytes_per_second":0,"eta_seconds":0}
progress step 1 {"done_bytes":1,"total_bytes":3,"rate_bytes_per_second":0,"eta_seconds":0}
progress step 2 {"done_bytes":2,"total_bytes":3,"rate_bytes_per_second":0,"eta_seconds":0}
result done {"force":"true"}`
	if got := strings.Join(seen, "\n"); got != want {
		t.Fatalf("got\n%s", got)
	}
	if data, err := Call(ctx, socket, Request{Verb: "demote"}, nil); data != nil || err != nil {
		t.Fatalf("an empty result: %s %v", data, err)
	}
	_, err = Call(ctx, socket, Request{Verb: "refuse"}, nil)
	if r, ok := errors.AsType[*Refused](err); !ok || r.Text != "promote: b has newer data: resync first" || string(r.Data) != `{"x":1}` {
		t.Fatalf("%#v", err)
	}
	_, err = Call(ctx, socket, Request{Verb: "fail"}, nil)
	if r, ok := errors.AsType[*Refused](err); !ok || r.Error() != "the disk is gone" {
		t.Fatalf("%#v", err)
	}
	_, err = Call(ctx, socket, Request{Verb: "confirm"}, nil)
	if c, ok := errors.AsType[*Confirm](err); !ok || c.Node != "a" || c.Error() != "4 KiB will be lost" {
		t.Fatalf("%#v", err)
	}
	_, err = Call(ctx, socket, Request{Verb: "large"}, nil)
	if err == nil || !strings.Contains(err.Error(), "at most 1048575 are possible") {
		t.Fatalf("%v", err)
	}
	_, err = Call(ctx, socket, Request{Verb: "large-refusal"}, nil)
	if err == nil || err.Error() != "no" {
		t.Fatalf("%v", err)
	}
	if _, err = Call(ctx, socket, Request{Verb: "twice"}, nil); err != nil {
		t.Fatalf("what follows the last message must not arrive: %v", err)
	}
	_, err = Call(ctx, socket, Request{Verb: strings.Repeat("x", MaxLine)}, nil)
	if err == nil {
		t.Fatal("a request that is too large was sent")
	}
}

type badRequest struct{ in, want string }

// badRequests are lines that no replctl sends.
func badRequests() []badRequest {
	return []badRequest{
		{"hello\n", "not the control protocol: invalid character 'h' looking for beginning of value"},
		{"{}\n", "not the control protocol: a verb of 0 bytes"},
		{`{"verb":"a b"}` + "\n", `not the control protocol: verb "a b"`},
		{`{"verb":"a"} {}` + "\n", "not the control protocol: text after the request"},
		{`{"verb":"a","force":true}` + "\n", `not the control protocol: json: unknown field "force"`},
		{`{"verb":"` + strings.Repeat("a", maxVerb+1) + `"}` + "\n", "not the control protocol: a verb of 65 bytes"},
		{strings.Repeat(" ", MaxLine+4096), "not the control protocol: a line of more than 1048576 bytes"},
	}
}

func TestBadRequests(t *testing.T) {
	socket, _ := start(t, &server{handler: func(context.Context, Request, func(Message) error) error {
		t.Error("the handler ran")
		return nil
	}})
	for _, tc := range badRequests() {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, tc.in); err != nil {
			t.Fatal(err)
		}
		line, err := readLine(bufio.NewReader(conn))
		if err != nil {
			t.Fatal(err)
		}
		var m Message
		if err := json.Unmarshal(line, &m); err != nil || m.Kind != KindError || m.Text != tc.want {
			t.Errorf("got %s, %v", line, err)
		}
		conn.Close()
	}
	// Half a request, then the end: no answer, no handler.
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, `{"verb":"promote"}`); err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestHalfARequestTimesOut(t *testing.T) {
	socket, _ := start(t, &server{handler: echo, requestTimeout: 20 * time.Millisecond})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"verb":`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("got %v", err)
	}
}

func TestClientGoesAway(t *testing.T) {
	cause := make(chan error, 1)
	socket, _ := start(t, &server{handler: func(ctx context.Context, req Request, send func(Message) error) error {
		err := echo(ctx, req, send)
		cause <- context.Cause(ctx)
		return err
	}})
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Call(ctx, socket, Request{Verb: "wait"}, func(Message) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := <-cause; !errors.Is(err, ErrClientGone) {
		t.Fatalf("got %v", err)
	}
}

// A pager on the other end must not hold up the agent.
func TestClientThatDoesNotRead(t *testing.T) {
	ended := make(chan error, 1)
	socket, _ := start(t, &server{sendTimeout: 20 * time.Millisecond,
		handler: func(_ context.Context, _ Request, send func(Message) error) error {
			for {
				if err := send(Message{Kind: KindEvent, Text: strings.Repeat("x", 1<<16)}); err != nil {
					ended <- errors.Join(err, send(Message{Kind: KindEvent}))
					return err
				}
			}
		}})
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "{\"verb\":\"events\"}\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

func TestServerStops(t *testing.T) {
	socket, stop := start(t, &server{handler: echo})
	// A connection that has not sent its request must not delay the stop.
	idle, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	waiting := make(chan struct{})
	var once sync.Once
	result := make(chan error, 1)
	go func() {
		_, err := Call(context.Background(), socket, Request{Verb: "wait"}, func(Message) { once.Do(func() { close(waiting) }) })
		result <- err
	}()
	<-waiting
	stop()
	if err := <-result; err == nil || err.Error() != errStopping.Error() {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the socket is still there: %v", err)
	}
	if _, err := Call(context.Background(), socket, Request{Verb: "status"}, nil); !errors.Is(err, ErrNoAgent) ||
		err.Error() != "no agent answers at "+socket {
		t.Fatalf("got %v", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	socket, _ := start(t, &server{handler: echo})
	ctx, cancel := context.WithCancel(context.Background())
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	ready := make(chan struct{}, maxConnections)
	for range maxConnections {
		calls.Go(func() {
			_, _ = Call(ctx, socket, Request{Verb: "wait"}, func(Message) { ready <- struct{}{} })
		})
	}
	for range maxConnections {
		<-ready
	}
	_, err := Call(ctx, socket, Request{Verb: "demote"}, nil)
	if err == nil || err.Error() != "the agent already has 64 control connections: try again later" {
		t.Fatalf("got %v", err)
	}
}

// What an agent that dies in mid-answer looks like.
func TestBrokenAnswers(t *testing.T) {
	for _, tc := range []struct {
		answer string
		is     error
	}{
		{"", ErrClosed},
		{`{"kind":"progress"}` + "\n", ErrClosed},
		{`{"kind":"result"}`, ErrClosed},
		{"hello\n", ErrProtocol},
		{`{"kind":"confirm","data":3}` + "\n", ErrProtocol},
		{strings.Repeat("x", MaxLine+1), ErrProtocol},
	} {
		socket := filepath.Join(t.TempDir(), "s")
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		var agent sync.WaitGroup
		agent.Go(func() {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = readLine(bufio.NewReader(conn))
			_, _ = io.WriteString(conn, tc.answer)
		})
		_, err = Call(context.Background(), socket, Request{Verb: "status"}, nil)
		if !errors.Is(err, tc.is) {
			t.Errorf("%.20q: got %v", tc.answer, err)
		}
		ln.Close()
		agent.Wait()
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Fatalf("a living agent's socket: %v", err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}

	// kill -9 leaves the file, and the kernel drops the lock.
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	if _, err := Call(context.Background(), path, Request{Verb: "status"}, nil); !errors.Is(err, ErrNoAgent) {
		t.Fatalf("got %v", err)
	}
	if ln, err = Listen(path); err != nil {
		t.Fatalf("a dead agent's socket: %v", err)
	}
	ln.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, filepath.Join(dir, "none", "s"), filepath.Join(dir, strings.Repeat("s", 120))} {
		if _, err := Listen(path); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Fatalf("%q %v", b, err)
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	ln, err := Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := Serve(context.Background(), ln, echo); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestAcceptIsTriedAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ln := &failing{errs: 2, cancel: cancel}
	if err := Serve(ctx, ln, echo); err != nil {
		t.Fatal(err)
	}
}

// failing is out of descriptors a few times, then cancels.
type failing struct {
	net.Listener
	errs   int
	cancel func()
}

func (f *failing) Accept() (net.Conn, error) {
	if f.errs--; f.errs == 0 {
		f.cancel()
	}
	return nil, errors.New("too many open files")
}

func (f *failing) Close() error { return nil }

func TestStatusJSON(t *testing.T) {
	b, err := json.Marshal(Status{Cluster: "nfs1", Node: "a", Peers: []PeerStatus{{Node: "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	op := `{"count":0,"errors":0,"bytes":0,"p50_us":0,"p99_us":0,"max_us":0}`
	want := `{"time":"0001-01-01T00:00:00Z","cluster":"nfs1","node":"a","role":"","state_detail":"","primary":"","epoch":0,"generation":"","disk":"",` +
		`"in_sync":[],"last_in_sync":null,"record":null,"auto":false,"paused":null,"marked":false,"deposed":null,` +
		`"witness":{"ok":false,"error":""},"volume":{"size_bytes":0},` +
		`"at_risk_bytes":0,"lease_remaining_ms":0,"lease_ms":0,"frozen_seconds":0,"freeze_seconds":0,` +
		`"peers":[{"node":"b","link":"","link_since":"0001-01-01T00:00:00Z","link_error":"","split_brain":false,"replication":"","disk":"","out_of_sync_bytes":0,"resync":null,"sent_bytes":0,"wire_bytes":0}],` +
		`"io":{"read":` + op + `,"write":` + op + `,"flush":` + op + `,"trim":` + op + `,"write_zeroes":` + op + `},"service":[],"takeover":null}`
	if string(b) != want {
		t.Fatalf("got\n%s\nwant\n%s", b, want)
	}
	if b, err = json.Marshal(&Status{}); err != nil || !bytes.Contains(b, []byte(`"peers":[],`)) {
		t.Fatalf("%s %v", b, err)
	}
}

func TestNewMessageRefusesWhatIsNoJSON(t *testing.T) {
	if _, err := NewMessage(KindEvent, "x", func() {}); err == nil {
		t.Fatal("no error")
	}
	if m, err := NewMessage(KindEvent, "x", nil); err != nil || m.Data != nil {
		t.Fatalf("%+v %v", m, err)
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"verb":"status"}`))
	f.Add([]byte(`{"verb":"promote","args":{"force":"true","yes":"true"}}`))
	f.Add([]byte(`{"verb":"wait-sync","args":{"timeout":"30s"}} `))
	f.Add([]byte(`{"verb":"a","args":null}{`))
	f.Add([]byte(`{"verb":"demote","node":"b","origin":"node a, uid 0/root"}`))
	f.Add([]byte(`{"verb":"status","node":"` + strings.Repeat("b", maxNode+1) + `"}`))
	f.Add([]byte(`{"verb":"status","origin":"` + strings.Repeat("r", maxOrigin+1) + `"}`))
	f.Add([]byte(`{"verb":"status","origin":"\u001b[2J"}`))
	f.Add([]byte(`[]`))
	for _, tc := range badRequests() {
		f.Add([]byte(tc.in))
	}
	f.Add([]byte(`{"verb":"` + strings.Repeat("a", 65) + `"}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, stream []byte) {
		// As it arrives: line by line, of which the reader's buffer holds a part.
		end := bytes.IndexByte(stream, '\n')
		line, err := readLine(bufio.NewReaderSize(bytes.NewReader(stream), 64))
		switch {
		case len(stream) == 0 && err == io.EOF, end < 0 && errors.Is(err, io.ErrUnexpectedEOF), len(stream) > MaxLine && errors.Is(err, ErrProtocol):
			line = stream // the same without the line's end
		case err != nil || len(line) != end:
			t.Fatalf("%d bytes of %q, %v", len(line), stream, err)
		}
		r, err := parseRequest(line)
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("%v", err)
			}
			return
		}
		again, err := encodeLine(r)
		if err != nil {
			return // escaping can make it longer than a line
		}
		r2, err := parseRequest(bytes.TrimSuffix(again, []byte("\n")))
		if err != nil || r2.Node != r.Node || r2.Origin != r.Origin || r2.Verb != r.Verb || len(r2.Args) != len(r.Args) {
			t.Fatalf("%s became %s: %v", line, again, err)
		}
		m, err := NewMessage(KindResult, r.Verb, r.Args)
		if err != nil {
			t.Fatal(err)
		}
		if again, err = encodeLine(m); err == nil && bytes.Count(again, []byte("\n")) != 1 {
			t.Fatalf("a message of several lines: %q", again)
		}
	})
}
