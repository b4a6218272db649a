package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// patience bounds every wait for something that takes a second when all is well.
const patience = 60 * time.Second

// server is one thing to measure: an NBD server on a unix socket, in a folder
// of its own on tmpfs. A mirrored one is two agents on loopback.
type server struct {
	name          string
	mirrored, tls bool
	failover      string // that block of the configs; "" is the default one

	dir    string
	bin    string
	socket string
	procs  []*proc // the one that clients talk to first

	generation string // of the pair once it was in sync
}

// proc is a process that the benchmark started; nothing else is ever signalled.
type proc struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended, err is set then
	err  error
}

func (s *server) start(ctx context.Context, o options, dir string) error {
	s.dir, s.bin = strings.ReplaceAll(dir, " ", "-"), o.bin
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	if s.mirrored {
		return s.startPair(ctx, o.size)
	}
	s.socket = filepath.Join(s.dir, "nbd")
	image := filepath.Join(s.dir, "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, o.size); err != nil {
		return err
	}
	if err := s.spawn("nbdkit", "nbdkit", "--foreground", "--exit-with-parent", "--unix", s.socket, "file", image); err != nil {
		return err
	}
	return s.until(ctx, "its socket", func() error { _, err := os.Stat(s.socket); return err })
}

// startPair starts two agents and makes node a Primary, with b in sync.
func (s *server) startPair(ctx context.Context, size int64) error {
	s.socket = filepath.Join(s.dir, "a.nbd")
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	nodes := []string{"a", "b"}
	if s.tls {
		if err := s.ctl(ctx, "certs", "--cluster", "bench", "--dir", s.dir, "a", "b"); err != nil {
			return err
		}
	}
	for i, node := range nodes {
		peer := nodes[1-i]
		tls := "{insecure: true}"
		if s.tls {
			tls = fmt.Sprintf("{ca: ca.pem, cert: %s.pem, key: %s.key}", node, node)
		}
		text := fmt.Sprintf(`cluster: bench
node: %[1]s
listen: 127.0.0.1:%[3]d
peers: [{node: %[2]s, address: 127.0.0.1:%[4]d}]
volume: {device: ./%[1]s.img, size: %[5]dMiB, metadata: ./%[1]s.md}
nbd: {socket: ./%[1]s.nbd}
control: ./%[1]s.sock
tls: %[6]s
witness: file:./witness
%[7]s`, node, peer, ports[i], ports[1-i], size>>20, tls, s.failover)
		config := s.config(node)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return err
		}
		if err := s.ctl(ctx, "--config", config, "init"); err != nil {
			return err
		}
		if err := s.spawnAgent(node); err != nil {
			return err
		}
	}
	for _, node := range nodes {
		if err := s.until(ctx, "node "+node, func() error { return s.ctl(ctx, "--config", s.config(node), "status") }); err != nil {
			return err
		}
	}
	if err := s.ctl(ctx, "--config", s.config("a"), "promote"); err != nil {
		return err
	}
	return s.ctl(ctx, "--config", s.config("a"), "wait-sync", "--timeout", patience.String())
}

func (s *server) spawnAgent(node string) error {
	return s.spawn(node, filepath.Join(s.bin, "replagent"), "--config", s.config(node))
}

func (s *server) config(node string) string { return filepath.Join(s.dir, node+".yaml") }

// ctl runs replctl to its end.
func (s *server) ctl(ctx context.Context, args ...string) error {
	_, err := s.ctlOutput(ctx, args...)
	return err
}

func (s *server) ctlOutput(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "replctl"), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("replctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// inSync says whether every write of the run just over went to both nodes: the
// set is whole, and the generation is that of the start. A Primary that had
// dropped its peer and taken it back in between has another one.
func (s *server) inSync(ctx context.Context) error {
	if !s.mirrored {
		return nil
	}
	out, err := s.ctlOutput(ctx, "--config", s.config("a"), "status", "--json")
	if err != nil {
		return err
	}
	var status struct {
		Role       string   `json:"role"`
		Generation string   `json:"generation"`
		InSync     []string `json:"in_sync"`
	}
	if err := json.Unmarshal(out, &status); err != nil {
		return fmt.Errorf("status --json: %w", err)
	}
	slices.Sort(status.InSync)
	if status.Role != "Primary" || !slices.Equal(status.InSync, []string{"a", "b"}) {
		return fmt.Errorf("the run counts for nothing: a is %s and in sync are %v\n%s", status.Role, status.InSync, s.procs[0].tail())
	}
	if s.generation == "" {
		s.generation = status.Generation
	}
	if status.Generation != s.generation {
		return fmt.Errorf("the run counts for nothing: the peer was dropped and came back\n%s", s.procs[0].tail())
	}
	return nil
}

// spawn starts a process that ends with this one.
func (s *server) spawn(name, path string, args ...string) error {
	p := &proc{name: name, log: filepath.Join(s.dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own: Ctrl-C ends the benchmark, which then stops the servers.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	s.procs = append(s.procs, p)
	return nil
}

// kill ends a process with SIGKILL and forgets it.
func (s *server) kill(name string) error {
	i := slices.IndexFunc(s.procs, func(p *proc) bool { return p.name == name })
	if i < 0 {
		return fmt.Errorf("%s does not run", name)
	}
	p := s.procs[i]
	s.procs = slices.Delete(s.procs, i, i+1)
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w\n%s", name, err, p.tail())
	}
	<-p.done
	return nil
}

// until polls, because none of the servers says when it is ready.
func (s *server) until(ctx context.Context, what string, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		for _, p := range s.procs {
			select {
			case <-p.done:
				return fmt.Errorf("%s ended: %w\n%s", filepath.Base(p.cmd.Path), p.err, p.tail())
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (%w)", what, err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// tail is the end of the process's log, for an error.
func (p *proc) tail() string {
	b, _ := os.ReadFile(p.log) // what cannot be read is not shown
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return string(b)
}

// stop ends the server's processes, the standby before the Primary: a standby
// that outlived its Primary would begin to take over. A second call does nothing.
func (s *server) stop() error {
	var errs []error
	for _, p := range slices.Backward(s.procs) {
		select {
		case <-p.done: // by itself: it was not told to
			errs = append(errs, fmt.Errorf("%s: %s ended by itself: %w\n%s", s.name, filepath.Base(p.cmd.Path), p.err, p.tail()))
			continue
		default:
		}
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it fails when the process has just ended
		select {
		case <-p.done:
		case <-time.After(20 * time.Second):
			_ = p.cmd.Process.Kill()
			<-p.done
			errs = append(errs, fmt.Errorf("%s: %s did not stop within 20 s and was killed", s.name, filepath.Base(p.cmd.Path)))
		}
	}
	s.procs = nil
	return errors.Join(errs...)
}

// compare reads both copies of a pair that has been stopped.
func (s *server) compare() error {
	if !s.mirrored {
		return nil
	}
	a, err := os.Open(filepath.Join(s.dir, "a.img"))
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(filepath.Join(s.dir, "b.img"))
	if err != nil {
		return err
	}
	defer b.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(x)) {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return fmt.Errorf("%s: the copies differ in the MiB at %d", s.name, off)
		}
		switch {
		case errA == nil && errB == nil:
		case errors.Is(errA, io.EOF), errors.Is(errA, io.ErrUnexpectedEOF):
			return nil // b has ended too: n and m are equal
		default:
			return errors.Join(errA, errB)
		}
	}
}

// freePorts asks the kernel. Another process may take one before the agent
// does; the agent then says so and ends.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after the loop: none comes twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
