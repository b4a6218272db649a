package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// optionCase is one option, what comes before it, and the exact answer to it.
type optionCase struct {
	name   string
	setup  string
	option uint32
	data   []byte
	want   []byte
}

// optionSetups are the options that may come before, with their answers.
func optionSetups() map[string][2][]byte {
	return map[string][2][]byte{
		"": {},
		"structured": {
			appendOption(nil, OPT_STRUCTURED_REPLY, nil),
			appendOptionReply(nil, OPT_STRUCTURED_REPLY, REP_ACK, nil),
		},
	}
}

// optionCases is also where FuzzHandshake starts from.
func optionCases() []optionCase {
	long := strings.Repeat("x", 4097)
	const flags = 0xd6d
	return []optionCase{
		{"list", "", OPT_LIST, nil, optionReplies(OPT_LIST, REP_SERVER, "\x00\x00\x00\x03vol", REP_ACK, "")},
		{"list with data", "", OPT_LIST, []byte("x"), optionReplies(OPT_LIST, ERR_INVALID, "LIST takes no data")},
		{"info", "", OPT_INFO, infoQuery("vol"), goReplies(OPT_INFO, testSize, flags)},
		{"info, default export", "", OPT_INFO, infoQuery(""), goReplies(OPT_INFO, testSize, flags)},
		{"info, structured", "structured", OPT_INFO, infoQuery("vol"), goReplies(OPT_INFO, testSize, flags|FLAG_SEND_DF)},
		{"info, all", "", OPT_INFO, infoQuery("", 0, 1, 2, 3),
			goReplies(OPT_INFO, testSize, flags, REP_INFO, "\x00\x01vol", REP_INFO, "\x00\x02a test volume")},
		{"info, repeated and unknown", "", OPT_INFO, infoQuery("", 1, 77, 1, 0xffff, 1),
			goReplies(OPT_INFO, testSize, flags, REP_INFO, "\x00\x01vol")},
		{"info, unknown export", "", OPT_INFO, infoQuery("other"), optionReplies(OPT_INFO, ERR_UNKNOWN, "no such export")},
		{"go, unknown export", "", OPT_GO, infoQuery("other"), optionReplies(OPT_GO, ERR_UNKNOWN, "no such export")},
		{"go, empty", "", OPT_GO, nil, optionReplies(OPT_GO, ERR_INVALID, "malformed option")},
		{"go, name longer than the option", "", OPT_GO, []byte("\x00\x00\x00\x09vol\x00\x00"), optionReplies(OPT_GO, ERR_INVALID, "malformed option")},
		{"go, name of 4 GiB", "", OPT_GO, []byte("\xff\xff\xff\xffvol\x00\x00"), optionReplies(OPT_GO, ERR_INVALID, "malformed option")},
		{"go, no count", "", OPT_GO, appendString(nil, "vol"), optionReplies(OPT_GO, ERR_INVALID, "malformed option")},
		{"go, count too high", "", OPT_GO, append(infoQuery("vol"), 0)[:8], optionReplies(OPT_GO, ERR_INVALID, "malformed option")},
		{"go, trailing byte", "", OPT_GO, append(infoQuery("vol", 1), 0), optionReplies(OPT_GO, ERR_INVALID, "malformed option")},
		{"go, long name", "", OPT_GO, infoQuery(long), optionReplies(OPT_GO, ERR_TOO_BIG, "export name is longer than 4096 bytes")},
		{"go, NUL", "", OPT_GO, infoQuery("v\x00l"), optionReplies(OPT_GO, ERR_INVALID, "export name is not a string")},
		{"go, not UTF-8", "", OPT_GO, infoQuery("v\xff"), optionReplies(OPT_GO, ERR_INVALID, "export name is not a string")},
		{"starttls", "", OPT_STARTTLS, nil, optionReplies(OPT_STARTTLS, ERR_POLICY, "TLS is not configured on this server")},
		{"peek export", "", OPT_PEEK_EXPORT, nil, optionReplies(OPT_PEEK_EXPORT, ERR_UNSUP, "")},
		{"extended headers", "", OPT_EXTENDED_HEADERS, nil, optionReplies(OPT_EXTENDED_HEADERS, ERR_UNSUP, "")},
		{"unknown with data", "", 0xdeadbeef, make([]byte, maxOptionLength), optionReplies(0xdeadbeef, ERR_UNSUP, "")},
		{"structured with data", "", OPT_STRUCTURED_REPLY, []byte("x"), optionReplies(OPT_STRUCTURED_REPLY, ERR_INVALID, "STRUCTURED_REPLY takes no data")},
		{"structured twice", "structured", OPT_STRUCTURED_REPLY, nil, optionReplies(OPT_STRUCTURED_REPLY, REP_ACK, "")},
		{"contexts before structured", "", OPT_LIST_META_CONTEXT, metaQuery("vol"),
			optionReplies(OPT_LIST_META_CONTEXT, ERR_INVALID, "structured replies must be negotiated first")},
		{"list contexts", "structured", OPT_LIST_META_CONTEXT, metaQuery("vol"),
			optionReplies(OPT_LIST_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x00base:allocation", REP_ACK, "")},
		{"list contexts, base:", "structured", OPT_LIST_META_CONTEXT, metaQuery("vol", "base:", "base:allocation"),
			optionReplies(OPT_LIST_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x00base:allocation", REP_ACK, "")},
		{"list contexts, others", "structured", OPT_LIST_META_CONTEXT, metaQuery("vol", "qemu:", "x-y:z"), optionReplies(OPT_LIST_META_CONTEXT, REP_ACK, "")},
		{"set contexts, none", "structured", OPT_SET_META_CONTEXT, metaQuery("vol"), optionReplies(OPT_SET_META_CONTEXT, REP_ACK, "")},
		{"set contexts, base:", "structured", OPT_SET_META_CONTEXT, metaQuery("vol", "base:"), optionReplies(OPT_SET_META_CONTEXT, REP_ACK, "")},
		{"set contexts", "structured", OPT_SET_META_CONTEXT, metaQuery("vol", "qemu:x", "base:allocation"),
			optionReplies(OPT_SET_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x01base:allocation", REP_ACK, "")},
		{"contexts, unknown export", "structured", OPT_SET_META_CONTEXT, metaQuery("other", "base:allocation"),
			optionReplies(OPT_SET_META_CONTEXT, ERR_UNKNOWN, "no such export")},
		{"contexts, short", "structured", OPT_SET_META_CONTEXT, appendString(nil, "vol"), optionReplies(OPT_SET_META_CONTEXT, ERR_INVALID, "malformed option")},
		{"contexts, four billion queries", "structured", OPT_LIST_META_CONTEXT, append(appendString(nil, "vol"), 0xff, 0xff, 0xff, 0xff),
			optionReplies(OPT_LIST_META_CONTEXT, ERR_INVALID, "malformed query")},
		{"contexts, trailing", "structured", OPT_SET_META_CONTEXT, append(metaQuery("vol", "base:allocation"), 0), optionReplies(OPT_SET_META_CONTEXT, ERR_INVALID, "malformed option")},
		{"contexts, query not a string", "structured", OPT_SET_META_CONTEXT, metaQuery("vol", "\xff"), optionReplies(OPT_SET_META_CONTEXT, ERR_INVALID, "malformed query")},
	}
}

// TestOptions sends one option each; an ABORT behind it shows that the stream is in step.
func TestOptions(t *testing.T) {
	v, setup := serve(t, nil), optionSetups()
	for _, tt := range optionCases() {
		t.Run(tt.name, func(t *testing.T) {
			w := v.wire(t).greet()
			w.send(setup[tt.setup][0])
			w.want("setup", setup[tt.setup][1])
			w.send(appendOption(nil, tt.option, tt.data))
			w.want("answer", tt.want)
			w.send(appendOption(nil, OPT_ABORT, nil))
			w.want("abort", appendOptionReply(nil, OPT_ABORT, REP_ACK, nil))
			w.closed("after ABORT")
		})
	}
}

// TestHandshakeClosed has what the document, or our bounds, answer with a close.
func TestHandshakeClosed(t *testing.T) {
	v := serve(t, nil)
	for name, b := range closedHandshakes() {
		t.Run(name, func(t *testing.T) {
			w := v.wire(t)
			w.want("hello", hello)
			w.send(b)
			w.closed(name)
		})
	}
}

func closedHandshakes() map[string][]byte {
	flags := be32(FLAG_C_FIXED_NEWSTYLE)
	option := func(id, length uint32) []byte {
		return slices.Concat([]byte("IHAVEOPT"), be32(id), be32(length))
	}
	return map[string][]byte{
		"unknown client flag":          be32(1 << 2),
		"all client flags":             be32(0xffffffff),
		"wrong option magic":           append(slices.Clone(flags), "IHAVEOPS\x00\x00\x00\x03\x00\x00\x00\x00"...),
		"http":                         []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"option of 64 KiB and a byte":  append(slices.Clone(flags), option(77, maxOptionLength+1)...),
		"option of 4 GiB":              append(slices.Clone(flags), option(OPT_GO, 0xffffffff)...),
		"EXPORT_NAME of nothing there": append(slices.Clone(flags), appendOption(nil, OPT_EXPORT_NAME, []byte("other"))...),
	}
}

// TestHandshakeDeadline: half a handshake, of any length, is cut off.
func TestHandshakeDeadline(t *testing.T) {
	v := serve(t, func(c *Config, _ *Export) { c.HandshakeTimeout = 200 * time.Millisecond })
	full := slices.Concat(be32(3), appendOption(nil, OPT_GO, infoQuery("vol")))
	var wires []*wire
	for n := range len(full) {
		w := v.wire(t)
		w.want("hello", hello)
		w.send(full[:n])
		wires = append(wires, w)
	}
	for n, w := range wires {
		w.closed(fmt.Sprintf("%d bytes of a handshake", n))
	}
	// One that is through in time is not cut off later.
	c := v.dial(t, ClientOptions{})
	time.Sleep(300 * time.Millisecond)
	if err := c.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestExportName has both lengths of its answer.
func TestExportName(t *testing.T) {
	v := serve(t, func(_ *Config, e *Export) { e.ReadOnly, e.MultiConn, e.Size = true, false, testSize+511 })
	for _, zeroes := range []int{0, 124} {
		w := v.wire(t)
		w.want("hello", hello)
		flags := FLAG_C_FIXED_NEWSTYLE
		if zeroes == 0 {
			flags |= FLAG_C_NO_ZEROES
		}
		w.send(be32(flags), appendOption(nil, OPT_EXPORT_NAME, nil), request(0, CMD_FLUSH, 9, 0, 0))
		w.want("answer", slices.Concat(be64(testSize), be16(0xc6f), make([]byte, zeroes)))
		w.want("flush", simple(0, 9))
	}
}

// TestRefusals has what a backend may answer, right or wrong, and what the client makes of it.
func TestRefusals(t *testing.T) {
	tests := []struct {
		err  error
		code uint32
		text string
	}{
		{&Refusal{Code: ERR_POLICY, Text: "node b is Primary"}, ERR_POLICY, "node b is Primary"},
		{fmt.Errorf("open: %w", &Refusal{Code: ERR_SHUTDOWN}), ERR_SHUTDOWN, ""},
		{&Refusal{Code: REP_ACK, Text: "not a refusal"}, ERR_UNKNOWN, "not a refusal"},
		{&Refusal{Code: ERR_POLICY, Text: strings.Repeat("ä", 3000)}, ERR_POLICY, strings.Repeat("ä", 2048)},
		{errors.New("secret"), ERR_UNKNOWN, ""},
	}
	for _, tt := range tests {
		v := serve(t, func(c *Config, e *Export) { c.Backend = &memBackend{exports: []*Export{e}, refusal: tt.err} })
		_, err := Dial(context.Background(), "unix", v.socket, "vol", ClientOptions{})
		var r *Refusal
		if !errors.As(err, &r) || r.Code != tt.code || r.Text != tt.text {
			t.Errorf("%v: client got %v", tt.err, err)
		}
		if _, err := Dial(context.Background(), "unix", v.socket, "vol", ClientOptions{ExportName: true}); err == nil {
			t.Errorf("%v: EXPORT_NAME got through", tt.err)
		}
		if names, err := List(context.Background(), "unix", v.socket); err != nil || len(names) != 1 {
			t.Errorf("List is to answer all the same, got %v, %v", names, err)
		}
	}
	for name, change := range map[string]func(*Export){
		"no device": func(e *Export) { e.Device = nil },
		"no size":   func(e *Export) { e.Size = -1 },
	} {
		v := serve(t, func(_ *Config, e *Export) { change(e) })
		if _, err := Dial(context.Background(), "unix", v.socket, "vol", ClientOptions{}); err == nil {
			t.Errorf("export with %s was opened", name)
		}
	}
}

// TestList leaves out what is not a name.
func TestList(t *testing.T) {
	v := serve(t, func(c *Config, e *Export) {
		c.Backend = &memBackend{exports: []*Export{e, {Name: "bad\x00"}, {Name: strings.Repeat("n", 5000)}, {Name: "ü"}}}
	})
	names, err := List(context.Background(), "unix", v.socket)
	if err != nil || !slices.Equal(names, []string{"vol", "ü"}) {
		t.Fatalf("%q, %v", names, err)
	}
}

// TestContextIsBoundToExport: a context selected for one name is void for another.
func TestContextIsBoundToExport(t *testing.T) {
	v := serve(t, nil)
	for _, tt := range []struct {
		steps []byte
		reply []byte
		want  []byte
	}{
		{ // selected for "", opened as "vol"
			appendOption(nil, OPT_SET_META_CONTEXT, metaQuery("", "base:allocation")),
			optionReplies(OPT_SET_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x01base:allocation", REP_ACK, ""),
			errorChunk(EINVAL, 5, "no metadata context was negotiated"),
		},
		{ // selected, then replaced by nothing
			slices.Concat(appendOption(nil, OPT_SET_META_CONTEXT, metaQuery("vol", "base:allocation")), appendOption(nil, OPT_SET_META_CONTEXT, metaQuery("vol"))),
			optionReplies(OPT_SET_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x01base:allocation", REP_ACK, "", REP_ACK, ""),
			errorChunk(EINVAL, 5, "no metadata context was negotiated"),
		},
		{
			appendOption(nil, OPT_SET_META_CONTEXT, metaQuery("vol", "base:allocation")),
			optionReplies(OPT_SET_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x01base:allocation", REP_ACK, ""),
			slices.Concat(appendChunk(nil, REPLY_TYPE_BLOCK_STATUS, 5, 12), be32(1), be32(4096), be32(3)),
		},
	} {
		w := v.wire(t).greet()
		w.send(appendOption(nil, OPT_STRUCTURED_REPLY, nil))
		w.want("structured", appendOptionReply(nil, OPT_STRUCTURED_REPLY, REP_ACK, nil))
		w.send(tt.steps)
		w.want("contexts", tt.reply)
		w.send(appendOption(nil, OPT_GO, infoQuery("vol")))
		w.want("go", goReplies(OPT_GO, testSize, 0xd6d|FLAG_SEND_DF))
		w.send(request(0, CMD_BLOCK_STATUS, 5, 0, 4096))
		w.want("status", tt.want)
	}
}

// TestPlainConnection runs a whole life over net.Pipe, which has no descriptor.
func TestPlainConnection(t *testing.T) {
	v := serve(t, nil)
	client, server := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		newConn(v.server, server).run(ctx)
	}()
	c, err := NewClient(context.Background(), client, "", ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	testExchange(t, v, c, ClientOptions{})
	c.Close()
	<-done
	cancel()
}
