package awstest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy is between a client and an emulator, and spoils what passes as its fault says.
// It keeps the Host header, which is signed. Safe for concurrent use.
type Proxy struct {
	URL string

	target *url.URL
	client *http.Client
	stop   chan struct{} // closed with the test: lets go of those who hang

	mu    sync.Mutex
	fault Fault
	seen  []string // the actions that came, in their order
}

// Fault decides what becomes of one request; nil lets everything through. It is called
// for many requests at once.
type Fault func(x *Exchange)

// Exchange is one request on its way. A Fault calls at most one of Answer, Lose and Hang;
// if it calls none, the request is forwarded and its answer returned.
type Exchange struct {
	// Action is EC2's Action, DynamoDB's operation, or S3's HTTP method.
	Action  string
	Request *http.Request
	Body    []byte

	p     *Proxy
	reply *reply // decided
	lost  bool   // the connection is closed without an answer
	hang  bool   // nobody answers
}

// reply is an HTTP answer.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// NewProxy is in front of target until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: u, stop: make(chan struct{}), client: &http.Client{
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	s := httptest.NewServer(p)
	p.URL = s.URL
	t.Cleanup(func() {
		close(p.stop)
		s.Close()
		p.client.CloseIdleConnections()
	})
	return p
}

// Set changes the fault, for requests that come from now on.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// Actions returns what has come so far.
func (p *Proxy) Actions() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.seen...)
}

// Count is how often an action has come so far.
func (p *Proxy) Count(action string) (n int) {
	for _, a := range p.Actions() {
		if a == action {
			n++
		}
	}
	return n
}

// maxBody bounds a request; the largest is a record.
const maxBody = 4 << 20

// ServeHTTP passes one request on, or does not.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	x := &Exchange{Action: actionOf(r, body), Request: r, Body: body, p: p}
	p.mu.Lock()
	fault := p.fault
	p.seen = append(p.seen, x.Action)
	p.mu.Unlock()
	if fault != nil {
		fault(x)
	}
	switch {
	case x.hang:
		select {
		case <-r.Context().Done():
		case <-p.stop:
		}
		panic(http.ErrAbortHandler)
	case x.lost:
		panic(http.ErrAbortHandler)
	}
	if x.reply == nil {
		if x.reply, err = x.forward(); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	maps.Copy(w.Header(), x.reply.header)
	w.WriteHeader(x.reply.status)
	_, _ = w.Write(x.reply.body)
}

// actionOf names what a request asks for.
func actionOf(r *http.Request, body []byte) string {
	if _, op, ok := strings.Cut(r.Header.Get("X-Amz-Target"), "."); ok {
		return op
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		if values, err := url.ParseQuery(string(body)); err == nil && values.Get("Action") != "" {
			return values.Get("Action")
		}
	}
	return r.Method
}

// Form is a value of an EC2 request, "" if it is not there.
func (x *Exchange) Form(name string) string {
	values, err := url.ParseQuery(string(x.Body))
	if err != nil {
		return ""
	}
	return values.Get(name)
}

// Untouched says whether no fault has decided what becomes of the request.
func (x *Exchange) Untouched() bool { return x.reply == nil && !x.lost && !x.hang }

// Answer answers without asking the emulator.
func (x *Exchange) Answer(status int, contentType, body string) {
	x.reply = &reply{status: status, header: http.Header{"Content-Type": {contentType}}, body: []byte(body)}
}

// Lose has the emulator do what it is asked, and the client never hear of it.
func (x *Exchange) Lose() {
	_, _ = x.forward()
	x.lost = true
}

// Hang never answers, as an endpoint behind a hole in the network.
func (x *Exchange) Hang() { x.hang = true }

// Forward asks the emulator now and returns its answer's body, to look at or to change.
func (x *Exchange) Forward() ([]byte, error) {
	r, err := x.forward()
	if err != nil {
		return nil, err
	}
	x.reply = r
	return r.body, nil
}

// Replace changes the body of the answer that Forward got.
func (x *Exchange) Replace(body []byte) {
	x.reply.header.Del("Content-Length")
	x.reply.body = body
}

func (x *Exchange) forward() (*reply, error) {
	u := *x.Request.URL
	u.Scheme, u.Host = x.p.target.Scheme, x.p.target.Host
	// Not with the client's context: what has been asked is done, also if the client has gone.
	req, err := http.NewRequest(x.Request.Method, u.String(), bytes.NewReader(x.Body))
	if err != nil {
		return nil, err
	}
	req.Header = x.Request.Header.Clone()
	req.Host = x.Request.Host
	r, err := x.p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	h := r.Header.Clone()
	h.Del("Transfer-Encoding")
	return &reply{status: r.StatusCode, header: h, body: b}, nil
}

// Only applies a fault to some actions, and lets the others through.
func Only(f Fault, actions ...string) Fault {
	return func(x *Exchange) {
		for _, a := range actions {
			if a == x.Action {
				f(x)
				return
			}
		}
	}
}

// Times applies a fault to the first n requests that it is asked for.
func Times(n int, f Fault) Fault {
	var mu sync.Mutex
	return func(x *Exchange) {
		mu.Lock()
		some := n > 0
		n--
		mu.Unlock()
		if some {
			f(x)
		}
	}
}

// For applies a fault for d, from the first request on.
func For(d time.Duration, f Fault) Fault {
	var mu sync.Mutex
	var until time.Time
	return func(x *Exchange) {
		mu.Lock()
		if until.IsZero() {
			until = time.Now().Add(d)
		}
		some := time.Now().Before(until)
		mu.Unlock()
		if some {
			f(x)
		}
	}
}

// Delay answers late.
func Delay(d time.Duration) Fault {
	return func(x *Exchange) {
		select {
		case <-time.After(d):
		case <-x.p.stop:
		}
	}
}

// LoseReply has everything done and nothing answered.
func LoseReply(x *Exchange) { x.Lose() }

// BlackHole swallows everything: nothing is done and nothing is answered.
func BlackHole(x *Exchange) { x.Hang() }

// Throttle refuses with the code that the service asked uses when there are too many requests.
func Throttle(x *Exchange) {
	switch {
	case x.Request.Header.Get("X-Amz-Target") != "":
		x.Answer(http.StatusBadRequest, "application/x-amz-json-1.0",
			`{"__type":"com.amazonaws.dynamodb.v20120810#ThrottlingException","message":"Rate of requests exceeds the allowed throughput."}`)
	case x.Action == x.Request.Method:
		x.Answer(http.StatusServiceUnavailable, "application/xml", s3Error("SlowDown", "Please reduce your request rate."))
	default:
		x.Answer(http.StatusServiceUnavailable, "text/xml", EC2Error("RequestLimitExceeded", "Request limit exceeded."))
	}
}

// Conflict409 is S3's answer when another conditional write was under way: nothing of this one has landed.
func Conflict409(x *Exchange) {
	x.Answer(http.StatusConflict, "application/xml",
		s3Error("ConditionalRequestConflict", "The conditional request cannot succeed due to a conflicting operation against this resource."))
}

// Stale answers each describe with what it would have been answered before the first
// change, for d after that change, as far as the same was asked before.
func Stale(d time.Duration) Fault {
	var mu sync.Mutex
	before := make(map[string][]byte)
	var until time.Time
	return func(x *Exchange) {
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasPrefix(x.Action, "Describe") {
			if until.IsZero() {
				until = time.Now().Add(d)
			}
			return
		}
		body, err := x.Forward()
		if err != nil {
			return
		}
		old, known := before[string(x.Body)]
		if !until.IsZero() && time.Now().Before(until) && known {
			x.Replace(old)
			return
		}
		if until.IsZero() {
			before[string(x.Body)] = body
		}
	}
}

// Stopping has instances that have stopped look as if they still did, for d after the first StopInstances.
func Stopping(d time.Duration) Fault {
	var mu sync.Mutex
	var until time.Time
	return func(x *Exchange) {
		mu.Lock()
		defer mu.Unlock()
		switch x.Action {
		case "StopInstances":
			if until.IsZero() {
				until = time.Now().Add(d)
			}
		case "DescribeInstances":
			body, err := x.Forward()
			if err != nil || time.Now().After(until) {
				return
			}
			text := strings.ReplaceAll(string(body), "<name>stopped</name>", "<name>stopping</name>")
			x.Replace([]byte(strings.ReplaceAll(text, "<code>80</code>", "<code>64</code>")))
		}
	}
}

// EC2Error is the body of an error of EC2's.
func EC2Error(code, message string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors><RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>`, code, message)
}

func s3Error(code, message string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message><RequestId>0000000000000000</RequestId></Error>`, code, message)
}
