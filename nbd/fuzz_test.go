package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"
)

// The seeds in testdata/fuzz are what nbdinfo, nbdcopy, nbdsh, qemu-img, qemu-io and fio sent to an export of fuzzSize,
// recorded between them and the server.
const fuzzSize = 1 << 20

// fuzzed is one server that all inputs of a fuzzing process go through, so that what one leaves behind shows.
type fuzzed struct {
	server *Server
	device *memDevice
	export *Export
}

// fuzzBackend answers some names with what a backend can answer otherwise.
type fuzzBackend struct{ *memBackend }

func (b fuzzBackend) Open(ctx context.Context, name string) (*Export, error) {
	switch name {
	case "policy":
		return nil, &Refusal{Code: ERR_POLICY, Text: strings.Repeat("no ", 2000)}
	case "ack":
		return nil, &Refusal{Code: REP_ACK}
	case "error":
		return nil, io.ErrNoProgress
	case "nothing":
		return &Export{}, nil
	}
	return b.memBackend.Open(ctx, name)
}

func newFuzzed(f *testing.F) *fuzzed {
	d := newMemDevice(fuzzSize)
	e := &Export{Name: "vol", Description: "fuzzed", Size: fuzzSize, Device: d}
	s, err := NewServer(Config{
		Backend: fuzzBackend{&memBackend{exports: []*Export{e}}}, MaxInFlight: 16, BufferBytes: minBufferBytes,
		HandshakeTimeout: 5 * time.Second, StallTimeout: 5 * time.Second,
	})
	if err != nil {
		f.Fatal(err)
	}
	return &fuzzed{s, d, e}
}

// pair is two connected sockets: unlike net.Pipe they take the server's direct reads and writes.
func pair(t testing.TB) (client, server net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socketpair")
		if conns[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	return conns[0], conns[1]
}

// exchange sends b, hangs up, and returns what the server answered. The server must be done with it, soon and wholly.
// The length of b chooses how: in one piece, in two with a pause between them, or over net.Pipe.
func (f *fuzzed) exchange(t *testing.T, b []byte) []byte {
	client, server := pair(t)
	if len(b)%8 == 1 {
		client.Close()
		server.Close()
		client, server = net.Pipe()
	}
	defer client.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		newConn(f.server, server).run(context.Background())
	}()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if len(b)%4 == 0 {
			client.Write(b[:len(b)/2])
			time.Sleep(200 * time.Microsecond)
			b = b[len(b)/2:]
		}
		client.Write(b)
		if u, ok := client.(*net.UnixConn); ok {
			u.CloseWrite()
		} else {
			time.Sleep(time.Millisecond) // net.Pipe has no half: what was not read by then is lost
			client.Close()
		}
	}()
	client.SetReadDeadline(time.Now().Add(10 * time.Second))
	// A refused connection may end in ECONNRESET, for the server did not read all of b.
	answer, _ := io.ReadAll(client)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not let go of the connection")
	}
	client.Close()
	<-sent
	if sub, sent := f.device.submitted.Load(), f.device.sent.Load(); sub != sent {
		t.Fatalf("%d submitted, %d Sent", sub, sent)
	}
	checkBuffers(t, f.server)
	return answer
}

// FuzzHandshake throws bytes at a new connection. What comes back must be well formed as far as the handshake goes.
func FuzzHandshake(f *testing.F) {
	s := newFuzzed(f)
	for _, c := range optionCases() {
		f.Add(slices.Concat(be32(3), optionSetups()[c.setup][0], appendOption(nil, c.option, c.data), appendOption(nil, OPT_ABORT, nil)))
	}
	for _, b := range closedHandshakes() {
		f.Add(b)
	}
	for _, name := range []string{"", "policy", "ack", "error", "nothing", "\xff"} {
		for zeroes := range uint32(2) {
			f.Add(slices.Concat(be32(1|zeroes<<1), appendOption(nil, OPT_GO, infoQuery(name, 1, 2, 1))))
			f.Add(slices.Concat(be32(1|zeroes<<1), appendOption(nil, OPT_EXPORT_NAME, []byte(name)), request(0, CMD_READ, 1, 0, 512)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		answer := s.exchange(t, b)
		if len(b)%8 == 1 {
			return // cut off somewhere
		}
		if !bytes.HasPrefix(answer, hello) {
			t.Fatalf("no hello: % x", answer)
		}
		for answer = answer[len(hello):]; len(answer) > 0; {
			if len(answer) < 20 || binary.BigEndian.Uint64(answer) != protocol.NEGOTIATION_MAGIC_REPLY {
				return // EXPORT_NAME's answer, or the transmission phase
			}
			option, typ := binary.BigEndian.Uint32(answer[8:]), binary.BigEndian.Uint32(answer[12:])
			n := 20 + int(binary.BigEndian.Uint32(answer[16:]))
			if n > len(answer) || n > 20+2*maxString {
				t.Fatalf("reply to option %d of %d bytes, %d there", option, n, len(answer))
			}
			if answer = answer[n:]; option == OPT_GO && typ == REP_ACK {
				return
			}
		}
	})
}

// FuzzRequests throws bytes at the transmission phase, and wants the answer to be well-formed replies to the end: as
// many as there were requests, if the client keeps to the protocol so far as to stay in step.
func FuzzRequests(f *testing.F) {
	s := newFuzzed(f)
	f.Add(true, false, slices.Concat(request(0, CMD_READ, 1, 0, 4096), request(0, CMD_BLOCK_STATUS, 2, 0, 4096), request(0, CMD_DISC, 3, 0, 0)))
	f.Add(false, true, slices.Concat(request(0, CMD_WRITE, 1, 0, 512), make([]byte, 512), request(0, CMD_FLUSH, 2, 0, 0)))
	for i, r := range refusedRequests() {
		b := slices.Concat(r.request, make([]byte, i%8), request(0, CMD_DISC, 3, 0, 0))
		f.Add(i%2 == 0, false, b[:min(len(b), 4096)])
	}
	f.Add(false, false, slices.Concat(request(0, CMD_WRITE, 1, 0, 4096), make([]byte, 4096), request(0, CMD_TRIM, 2, 0, 512)))
	f.Add(true, true, slices.Concat(request(0, CMD_WRITE, 1, 0, 4096), make([]byte, 4096), request(0, CMD_TRIM, 2, 0, 0)))
	f.Add(true, false, append(request(0, CMD_WRITE, 1, 0, 512<<10), make([]byte, 300<<10)...))
	f.Add(true, false, append(request(0, CMD_WRITE, 1, 0, 512<<10), make([]byte, 512<<10)...))
	f.Add(false, false, bytes.Repeat(request(0, CMD_READ, 1, 0, 256<<10), 40))
	f.Add(false, false, request(0, CMD_WRITE, 1, 1, 1<<32-1))
	f.Add(false, false, slices.Concat(request(0, CMD_READ, 1, 0, 512), request(0, CMD_READ, 1, 0, 0)))
	f.Add(false, false, slices.Concat(request(0, CMD_READ, 1, 0, 0), request(0, CMD_READ, 1, 0, 512)))
	f.Fuzz(func(t *testing.T, structured, readOnly bool, b []byte) {
		s.export.ReadOnly = readOnly
		start := be32(3)
		if structured {
			start = appendOption(start, OPT_STRUCTURED_REPLY, nil)
			start = appendOption(start, OPT_SET_META_CONTEXT, metaQuery("vol", "base:allocation"))
		}
		start = appendOption(start, OPT_GO, infoQuery("vol"))
		answer := s.exchange(t, append(start, b...))
		if (len(start)+len(b))%8 == 1 {
			return // cut off somewhere
		}
		ack := appendOptionReply(nil, OPT_GO, REP_ACK, nil)
		i := bytes.Index(answer, ack)
		if i < 0 {
			t.Fatal("the handshake failed")
		}
		answer = answer[i+len(ack):]

		// The model: what a server in step has to answer, in any order.
		want := map[uint64]int{} // replies per handle
		reads := map[uint64]int{}
		inStep := true
		for len(b) > 0 {
			if len(b) < requestHeaderLen {
				inStep = false
				break
			}
			h := decodeRequest(b)
			b = b[requestHeaderLen:]
			if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST {
				inStep = false
				break
			}
			if h.Type == CMD_DISC {
				break
			}
			if h.Type == CMD_WRITE {
				if uint64(h.Length) > uint64(len(b)) {
					inStep = false
					break
				}
				b = b[h.Length:]
			}
			_, read := reads[h.Handle]
			if !structured && want[h.Handle] > 0 && (read || h.Type == CMD_READ) {
				return // simple replies to a read and to another request with the same handle cannot be told apart
			}
			want[h.Handle]++
			if h.Type == CMD_READ {
				reads[h.Handle] = int(h.Length)
			}
		}
		for len(answer) > 0 {
			size, head := 16, answer
			if !inStep && len(answer) < 20 {
				return // cut off by the close
			}
			if structured {
				if len(head) < 20 || binary.BigEndian.Uint32(head) != structuredReplyMagic || head[5]&1 == 0 {
					t.Fatalf("not a final chunk: % x", head[:min(20, len(head))])
				}
				size = 20 + int(binary.BigEndian.Uint32(head[16:]))
			} else if len(head) < 16 || binary.BigEndian.Uint32(head) != protocol.TRANSMISSION_MAGIC_REPLY {
				t.Fatalf("not a simple reply: % x", head[:min(16, len(head))])
			}
			handle := binary.BigEndian.Uint64(head[8:])
			if !structured && binary.BigEndian.Uint32(head[4:]) == 0 {
				size += reads[handle]
			}
			if size > len(answer) {
				if inStep {
					t.Fatalf("reply of %d bytes, %d there", size, len(answer))
				}
				return
			}
			if want[handle]--; want[handle] < 0 {
				t.Fatalf("a reply too many to handle %d", handle)
			}
			answer = answer[size:]
		}
		for handle, n := range want {
			if inStep && n != 0 {
				t.Errorf("%d replies missing to handle %d", n, handle)
			}
		}
	})
}
