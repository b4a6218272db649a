package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestExchange runs every command through both reply styles, with the device completing inline and elsewhere.
func TestExchange(t *testing.T) {
	for _, async := range []bool{false, true} {
		for _, o := range []ClientOptions{{}, {SimpleReplies: true}, {ExportName: true}, {ExportName: true, SimpleReplies: true}} {
			t.Run(fmt.Sprintf("async=%v,%+v", async, o), func(t *testing.T) {
				v := serve(t, func(_ *Config, e *Export) { e.Device.(*memDevice).async = async })
				testExchange(t, v, v.dial(t, o), o)
			})
		}
	}
}

func testExchange(t *testing.T, v *served, c *Client, o ClientOptions) {
	ctx := context.Background()
	if c.Size() != testSize {
		t.Fatalf("size %d", c.Size())
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{512, 4096, 5 * 512, 64 << 10, 1 << 20, MaximumBlock} {
		p, q := make([]byte, n), make([]byte, n)
		for i := range p {
			p[i] = byte(i*7 + n)
		}
		must(c.WriteAt(ctx, p, 512, n%1024 == 0))
		must(c.ReadAt(ctx, q, 512))
		if !bytes.Equal(p, q) {
			t.Fatalf("%d bytes differ", n)
		}
	}
	must(c.Flush(ctx))
	must(c.Cache(ctx, 0, testSize))
	must(c.WriteZeroes(ctx, 4096, 4096, CMD_FLAG_NO_HOLE|CMD_FLAG_FUA))
	must(c.WriteZeroes(ctx, 8192, 4096, CMD_FLAG_FAST_ZERO))
	must(c.Trim(ctx, 0, testSize, true))
	q := make([]byte, 8192)
	must(c.ReadAt(ctx, q, 4096))
	if !bytes.Equal(q, make([]byte, 8192)) {
		t.Fatal("not zero")
	}
	if v.device.flushes.Load() != 1 || v.device.cached.Load() != testSize || v.device.noHole.Load() != 1 || v.device.fua.Load() == 0 {
		t.Fatal("flags did not reach the device")
	}
	if o.SimpleReplies || o.ExportName {
		return
	}
	must(c.WriteAt(ctx, q[:4096], 1<<20, false))
	got, err := c.BlockStatus(ctx, 0, 2<<20, false)
	must(err)
	want := []Extent{{1 << 20, 3}, {4096, 0}, {1<<20 - 4096, 3}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("extents %v, want %v", got, want)
	}
	got, err = c.BlockStatus(ctx, 0, testSize, true)
	must(err)
	if len(got) != 1 {
		t.Fatalf("extents %v, want one", got)
	}
}

// TestMany has many callers on several connections, each on its own part of the volume.
func TestMany(t *testing.T) {
	for _, async := range []bool{false, true} {
		t.Run(fmt.Sprintf("async=%v", async), func(t *testing.T) {
			v := serve(t, func(_ *Config, e *Export) { e.Device.(*memDevice).async = async })
			var wg sync.WaitGroup
			for conn := range 4 {
				c := v.dial(t, ClientOptions{SimpleReplies: conn%2 == 0})
				for worker := range 16 {
					base := int64(conn*16+worker) << 20
					wg.Go(func() {
						rng := rand.New(rand.NewPCG(uint64(base), 1))
						p, q := make([]byte, 512<<10), make([]byte, 512<<10)
						for range 12 {
							n := 512 * (1 + rng.IntN(1<<rng.IntN(11)))
							for i := range n {
								p[i] = byte(rng.Uint32())
							}
							off := base + int64(rng.IntN(1024))*512
							if err := c.WriteAt(context.Background(), p[:n], off, false); err != nil {
								t.Error(err)
								return
							}
							if err := c.ReadAt(context.Background(), q[:n], off); err != nil {
								t.Error(err)
								return
							}
							if !bytes.Equal(p[:n], q[:n]) {
								t.Errorf("off %d len %d differs", off, n)
								return
							}
						}
					})
				}
			}
			wg.Wait()
		})
	}
}

// against runs f on a client whose server is a script: it answers the k-th request with the bytes given, then hangs up.
func against(t *testing.T, o ClientOptions, answers [][]byte, f func(*Client)) {
	t.Helper()
	client, server := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		w := &wire{t, server}
		w.send(hello)
		w.want("flags", be32(3))
		if !o.SimpleReplies {
			w.want("structured", appendOption(nil, OPT_STRUCTURED_REPLY, nil))
			w.send(appendOptionReply(nil, OPT_STRUCTURED_REPLY, REP_ACK, nil))
			w.want("context", appendOption(nil, OPT_SET_META_CONTEXT, metaQuery("vol", "base:allocation")))
			w.send(optionReplies(OPT_SET_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x01base:allocation", REP_ACK, ""))
		}
		w.want("go", appendOption(nil, OPT_GO, infoQuery("vol")))
		w.send(goReplies(OPT_GO, testSize, 0xd6d))
		var b [requestHeaderLen]byte
		for _, answer := range answers {
			if _, err := io.ReadFull(server, b[:]); err != nil {
				return
			}
			server.Write(answer)
		}
	}()
	c, err := NewClient(context.Background(), client, "vol", o)
	if err != nil {
		t.Fatal(err)
	}
	f(c)
	c.Close()
	<-done
}

// TestClientProtocolErrors: a server that breaks the protocol fails the client for good, and does nothing worse.
func TestClientProtocolErrors(t *testing.T) {
	chunk := func(typ uint16, handle uint64, parts ...[]byte) []byte {
		p := slices.Concat(parts...)
		return append(appendChunk(nil, typ, handle, uint32(len(p))), p...)
	}
	tests := []struct {
		name   string
		simple bool
		answer []byte
	}{
		{"wrong magic", true, make([]byte, 64)},
		{"structured, not negotiated", true, chunk(REPLY_TYPE_NONE, 0)},
		{"reply to nothing", true, simple(0, 77)},
		{"half a reply", true, simple(0, 0)[:9]},
		{"half the data", true, append(simple(0, 0), make([]byte, 100)...)},
		{"simple reply to a read", false, simple(0, 0)},
		{"no data", false, chunk(REPLY_TYPE_NONE, 0)},
		{"data before the request", false, chunk(REPLY_TYPE_OFFSET_DATA, 0, be64(0), make([]byte, 512))},
		{"data behind the request", false, chunk(REPLY_TYPE_OFFSET_DATA, 0, be64(512+512), make([]byte, 512))},
		{"data far away", false, chunk(REPLY_TYPE_OFFSET_DATA, 0, be64(1<<64-512), make([]byte, 512))},
		{"hole of 4 GiB", false, chunk(REPLY_TYPE_OFFSET_HOLE, 0, be64(512), be32(1<<32-1))},
		{"chunk of 4 GiB", false, appendChunk(nil, REPLY_TYPE_ERROR, 0, 1<<32-1)},
		{"unknown chunk", false, chunk(99, 0, make([]byte, 10))},
		{"text longer than its chunk", false, chunk(REPLY_TYPE_ERROR, 0, be32(5), be16(9), []byte("short"))},
		{"extents to a read", false, chunk(REPLY_TYPE_BLOCK_STATUS, 0, be32(1), be32(512), be32(0))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			against(t, ClientOptions{SimpleReplies: tt.simple}, [][]byte{tt.answer}, func(c *Client) {
				err := c.ReadAt(context.Background(), make([]byte, 512), 512)
				if err == nil {
					t.Fatal("accepted")
				}
				var code Error
				if errors.As(err, &code) {
					t.Errorf("taken for the server's error: %v", err)
				}
				if tt.name == "no data" { // the stream is in step: only this call has failed
					return
				}
				if err := c.Flush(context.Background()); !errors.Is(err, ErrClosed) {
					t.Errorf("afterwards: %v", err)
				}
			})
		})
	}
}

// TestClientChunks: a read may come in pieces, holes among them, and an error with a text.
func TestClientChunks(t *testing.T) {
	const more = 5 // offset of the low byte of the flags
	piece := func(typ uint16, parts ...[]byte) []byte {
		p := slices.Concat(parts...)
		b := append(appendChunk(nil, typ, 0, uint32(len(p))), p...)
		b[more] = 0
		return b
	}
	answer := slices.Concat(
		piece(REPLY_TYPE_OFFSET_HOLE, be64(1024), be32(512)),
		piece(REPLY_TYPE_OFFSET_DATA, be64(512), bytes.Repeat([]byte{7}, 512)),
		appendChunk(nil, REPLY_TYPE_NONE, 0, 0))
	against(t, ClientOptions{}, [][]byte{answer, errorChunk(ENOSPC, 1, "disk is full")}, func(c *Client) {
		p := bytes.Repeat([]byte{9}, 1024)
		if err := c.ReadAt(context.Background(), p, 512); err != nil || !bytes.Equal(p, append(bytes.Repeat([]byte{7}, 512), make([]byte, 512)...)) {
			t.Errorf("%v, % x", err, p[:4])
		}
		err := c.Trim(context.Background(), 0, 512, false)
		if !errors.Is(err, ENOSPC) || err.Error() != "disk is full: no space left on device" {
			t.Errorf("%v", err)
		}
		if err := c.Trim(context.Background(), 0, 1<<32, false); !errors.Is(err, EINVAL) {
			t.Errorf("length beyond the protocol: %v", err)
		}
	})
}

// TestClientContext: a call whose context ends returns, its buffer is the caller's again, and the connection lives on.
func TestClientContext(t *testing.T) {
	held := make(chan *Request, 10)
	v := serve(t, func(_ *Config, e *Export) {
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	for _, o := range []ClientOptions{{}, {SimpleReplies: true}} {
		c := v.dial(t, o)
		ctx, cancel := context.WithCancel(context.Background())
		p := make([]byte, 4096)
		ended := make(chan error)
		go func() { ended <- c.ReadAt(ctx, p, 0) }()
		r := <-held
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if err := c.WriteAt(ctx, p, 0, false); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for i := range r.Data {
			r.Data[i] = 1
		}
		r.Complete(nil)
		go func() { ended <- c.Flush(context.Background()) }()
		for flushed := false; !flushed; {
			select {
			case r := <-held:
				r.Complete(nil)
			case err := <-ended:
				if err != nil {
					t.Fatal(err)
				}
				flushed = true
			}
		}
		if p[0] != 0 {
			t.Error("the reply was written into a buffer that had been given back")
		}
	}
}

// TestClientClose fails what is in flight; nothing after it gets through.
func TestClientClose(t *testing.T) {
	held := make(chan *Request, 1)
	v := serve(t, func(_ *Config, e *Export) {
		e.Device.(*memDevice).hold = func(r *Request) bool { held <- r; return true }
	})
	c := v.dial(t, ClientOptions{SimpleReplies: true})
	ended := make(chan error)
	go func() { ended <- c.Flush(context.Background()) }()
	r := <-held
	c.Close()
	c.Close()
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := c.Flush(context.Background()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := c.BlockStatus(context.Background(), 0, 512, false); !errors.Is(err, ENOTSUP) {
		t.Error(err)
	}
	r.Complete(nil)
}

// TestDialFails on what is not there, not NBD, silent, or not answering as it must.
func TestDialFails(t *testing.T) {
	ctx := context.Background()
	if _, err := Dial(ctx, "unix", t.TempDir()+"/none", "", ClientOptions{}); err == nil {
		t.Error("dialled nothing")
	}
	if _, err := List(ctx, "unix", t.TempDir()+"/none"); err == nil {
		t.Error("listed nothing")
	}
	for name, script := range map[string][]byte{
		"http":             []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"oldstyle":         append([]byte("NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"), make([]byte, 136)...),
		"close":            {},
		"no option reply":  append(slices.Clone(hello), make([]byte, 20)...),
		"huge reply":       append(slices.Clone(hello), appendOptionReply(nil, OPT_STRUCTURED_REPLY, REP_ACK, make([]byte, maxClientText+1))...),
		"odd answer":       append(slices.Clone(hello), appendOptionReply(nil, OPT_STRUCTURED_REPLY, REP_INFO, nil)...),
		"refused, no size": slices.Concat(hello, optionReplies(OPT_STRUCTURED_REPLY, ERR_UNSUP, ""), optionReplies(OPT_GO, REP_ACK, "")),
		"short info":       slices.Concat(hello, optionReplies(OPT_STRUCTURED_REPLY, ERR_UNSUP, ""), optionReplies(OPT_GO, REP_INFO, "\x00\x00")),
	} {
		client, server := pair(t)
		server.Write(script)
		server.(*net.UnixConn).CloseWrite()
		if _, err := NewClient(ctx, client, "", ClientOptions{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		server.Close()
	}
	client, server := pair(t)
	defer server.Close()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := NewClient(short, client, "", ClientOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent server: %v", err)
	}
}

// TestClientContextMany ends contexts at random moments of sending and waiting: small requests leave the connection whole.
func TestClientContextMany(t *testing.T) {
	v := serve(t, func(_ *Config, e *Export) { e.Device.(*memDevice).async = true })
	c := v.dial(t, ClientOptions{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			p := make([]byte, 512)
			for i := range 500 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i%100)*time.Microsecond)
				err := c.WriteAt(ctx, p, int64(w)*512, false)
				if err == nil {
					err = c.ReadAt(ctx, p, int64(w)*512)
				}
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if err := c.Flush(context.Background()); err != nil {
		t.Error(err)
	}
}
