package remote

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// pipesAfterExit is how long the outputs of a command that has ended are still
// read: a daemon that it left may hold them open for ever.
const pipesAfterExit = 200 * time.Millisecond

// Serve runs commands for whoever connects, as this user, until ctx ends. There
// is no authentication: it listens on a network that only the harness can reach.
func Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("remote: accept: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			serveConn(c)
		})
	}
}

func serveConn(c net.Conn) {
	in := bufio.NewReader(io.LimitReader(c, maxRequest))
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	out := &frameWriter{w: c}
	var q request
	if err := json.Unmarshal(line, &q); err != nil {
		answer(out, 127, "remote: not a request: "+err.Error())
		return
	}
	cmd := exec.Command("/bin/bash", "-c", q.Script)
	cmd.Env = os.Environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if q.Detach {
		if err := cmd.Start(); err != nil {
			answer(out, 127, err.Error())
			return
		}
		_ = out.send(kindStdout, strconv.AppendInt(nil, int64(cmd.Process.Pid), 10))
		answer(out, 0, "")
		_ = cmd.Wait() // reaps it; how it ends is not ours to judge
		return
	}
	cmd.Stdout, cmd.Stderr = stream{out, kindStdout}, stream{out, kindStderr}
	cmd.WaitDelay = pipesAfterExit
	if err := cmd.Start(); err != nil {
		answer(out, 127, err.Error())
		return
	}
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() { // runHangup: the client sends nothing more, so a read ends when it has gone
		defer close(watched)
		_, _ = in.ReadByte()
		select {
		case <-ended:
		default:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}()
	err = cmd.Wait()
	close(ended)
	answer(out, exitCode(err), "")
	_ = c.Close()
	<-watched
}

func answer(out *frameWriter, code int, complaint string) {
	if complaint != "" {
		_ = out.send(kindStderr, []byte(complaint+"\n"))
	}
	_ = out.send(kindExit, strconv.AppendInt(nil, int64(code), 10))
}

// exitCode follows the shell: 128+n for signal n.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return 0
	case !errors.As(err, &exit):
		return 126
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}
