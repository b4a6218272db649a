package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// wire is a client that says exactly what it is told to, right or wrong.
type wire struct {
	t testing.TB
	net.Conn
}

func (v *served) wire(t testing.TB) *wire {
	t.Helper()
	conn, err := net.Dial("unix", v.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &wire{t, conn}
}

func (w *wire) send(b ...[]byte) {
	w.t.Helper()
	if _, err := w.Write(bytes.Join(b, nil)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) want(what string, want []byte) {
	w.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(w, got); err != nil {
		w.t.Fatalf("%s: %v after % x", what, err, got[:n])
	}
	if !bytes.Equal(got, want) {
		w.t.Fatalf("%s:\n got % x\nwant % x", what, got, want)
	}
}

// closed wants the server to hang up without another byte.
func (w *wire) closed(what string) {
	w.t.Helper()
	b := make([]byte, 64)
	n, err := w.Read(b)
	var timeout net.Error
	if n != 0 || err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		w.t.Fatalf("%s: want a close, got %d bytes % x, err %v", what, n, b[:n], err)
	}
}

var hello = []byte("NBDMAGICIHAVEOPT\x00\x03")

// greet ends the fixed part of the handshake.
func (w *wire) greet() *wire {
	w.t.Helper()
	w.want("hello", hello)
	w.send(be32(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES))
	return w
}

// start goes to the transmission phase.
func (w *wire) start(structured bool) *wire {
	w.t.Helper()
	w.greet()
	if structured {
		w.send(appendOption(nil, OPT_STRUCTURED_REPLY, nil))
		w.want("structured", appendOptionReply(nil, OPT_STRUCTURED_REPLY, REP_ACK, nil))
		w.send(appendOption(nil, OPT_SET_META_CONTEXT, metaQuery("vol", "base:allocation")))
		w.want("context", optionReplies(OPT_SET_META_CONTEXT, REP_META_CONTEXT, "\x00\x00\x00\x01base:allocation", REP_ACK, ""))
	}
	w.send(appendOption(nil, OPT_GO, infoQuery("vol")))
	flags := uint16(0xd6d)
	if structured {
		flags |= FLAG_SEND_DF
	}
	w.want("go", goReplies(OPT_GO, testSize, flags))
	return w
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func metaQuery(export string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(appendString(nil, export), uint32(len(queries)))
	for _, q := range queries {
		b = appendString(b, q)
	}
	return b
}

func infoQuery(export string, infos ...uint16) []byte {
	b := binary.BigEndian.AppendUint16(appendString(nil, export), uint16(len(infos)))
	for _, i := range infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// optionReplies joins replies given as pairs of type and data.
func optionReplies(option uint32, pairs ...any) []byte {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		b = appendOptionReply(b, option, pairs[i].(uint32), []byte(pairs[i+1].(string)))
	}
	return b
}

func goReplies(option uint32, size uint64, flags uint16, more ...any) []byte {
	export := string(be16(0)) + string(be64(size)) + string(be16(flags))
	blocks := string(be16(3)) + string(be32(512)) + string(be32(4096)) + string(be32(32<<20))
	pairs := append([]any{REP_INFO, export, REP_INFO, blocks}, more...)
	return optionReplies(option, append(pairs, REP_ACK, "")...)
}

func request(flags, typ uint16, handle, off uint64, length uint32) []byte {
	return appendRequest(nil, requestHeader{
		RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST,
		CommandFlags: flags,
		Type:         typ,
		Handle:       handle,
		Offset:       off,
		Length:       length,
	})
}

func simple(code Error, handle uint64) []byte { return appendSimpleReply(nil, code, handle) }

func errorChunk(code Error, handle uint64, text string) []byte {
	b := appendChunk(nil, REPLY_TYPE_ERROR, handle, uint32(6+len(text)))
	b = binary.BigEndian.AppendUint16(append(b, be32(uint32(code))...), uint16(len(text)))
	return append(b, text...)
}
