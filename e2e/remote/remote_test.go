package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func serve(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestRun(t *testing.T) {
	addr := serve(t)
	for _, c := range []struct {
		script, stdout, stderr string
		code                   int
	}{
		{"echo out; echo err >&2; exit 7", "out\n", "err\n", 7},
		{"true", "", "", 0},
		{"kill -TERM $$", "", "", 143},
		{"head -c 200000 /dev/zero | tr '\\0' x", strings.Repeat("x", 200000), "", 0},
		{"sleep 60 & echo left", "left\n", "", 0}, // holds the pipe
	} {
		var stdout, stderr bytes.Buffer
		code, err := Run(context.Background(), addr, Command{Script: c.script, Stdout: &stdout, Stderr: &stderr})
		if err != nil || code != c.code || stdout.String() != c.stdout || stderr.String() != c.stderr {
			t.Errorf("%s: %d %v %.40q %.40q", c.script, code, err, stdout.String(), stderr.String())
		}
	}
}

func TestDetachedCommandOutlivesItsClient(t *testing.T) {
	addr := serve(t)
	mark := t.TempDir() + "/mark"
	var pid bytes.Buffer
	code, err := Run(context.Background(), addr, Command{Script: "sleep 0.3; echo > " + mark, Stdout: &pid, Detach: true})
	if err != nil || code != 0 || pid.Len() == 0 {
		t.Fatal(code, err, pid.String())
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(mark); err == nil {
			return
		}
	}
	t.Fatal("it was ended with its client")
}

func TestHangingUpEndsTheCommand(t *testing.T) {
	addr := serve(t)
	mark := t.TempDir() + "/mark"
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := Run(ctx, addr, Command{Script: "sleep 2; echo > " + mark}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond)
	if _, err := os.Stat(mark); err == nil {
		t.Fatal("it went on")
	}
}

// What a guest sent before it died is delivered.
func TestGoneAfterOutput(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = (&frameWriter{w: c}).send(kindStdout, []byte("last words"))
		_ = c.(*net.TCPConn).CloseWrite()
		time.Sleep(100 * time.Millisecond)
		_ = c.Close()
	}()
	var out bytes.Buffer
	_, err = Run(context.Background(), l.Addr().String(), Command{Script: "x", Stdout: &out})
	if !errors.Is(err, ErrGone) || out.String() != "last words" {
		t.Fatal(err, out.String())
	}
	l.Close()
	if _, err := Run(context.Background(), l.Addr().String(), Command{}); !errors.Is(err, ErrGone) {
		t.Fatal(err)
	}
}

func TestFramesAreBounded(t *testing.T) {
	var b bytes.Buffer
	if err := (&frameWriter{w: &b}).send(kindStdout, bytes.Repeat([]byte("x"), maxPayload+1)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{maxPayload, 1} {
		if kind, p, err := readFrame(&b); kind != kindStdout || len(p) != want || err != nil {
			t.Fatal(kind, len(p), err)
		}
	}
	long := binary.BigEndian.AppendUint32([]byte{kindStdout}, maxPayload+1)
	if _, _, err := readFrame(bytes.NewReader(long)); !errors.Is(err, errFrame) {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), serve(t), Command{Script: strings.Repeat("x", maxRequest)}); err == nil {
		t.Fatal("a script without bounds")
	}
}

func TestNotARequest(t *testing.T) {
	c, err := net.Dial("tcp", serve(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, "GET / HTTP/1.0")
	if kind, _, err := readFrame(c); kind != kindStderr || err != nil {
		t.Fatal(kind, err)
	}
	if kind, p, err := readFrame(c); kind != kindExit || string(p) != "127" || err != nil {
		t.Fatal(kind, p, err)
	}
}
