// Package etcdtest runs etcd servers for tests: real ones, as processes on
// loopback with ports and folders of their own, and one that is broken on purpose.
package etcdtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience is for what takes a second on a quiet machine.
	patience = 60 * time.Second

	// startTries is how often a start is tried when others take its ports.
	startTries = 5
)

// Options of a cluster; the zero value is one member in the clear.
type Options struct {
	Members int // 1

	// CA, Cert and Key have the members speak TLS with their clients, and ask
	// them for a certificate of the same CA.
	CA, Cert, Key string
}

// Cluster is some etcd members that belong together.
type Cluster struct {
	Members []*Member
	options Options
}

// Member is one etcd process. Its methods are not for concurrent use.
type Member struct {
	Addr string // HOST:PORT for clients; stays over a restart

	name, peer string // peer is HOST:PORT for the other members
	dir        string
	log        string
	metrics    string // HOST:PORT, never TLS
	args       []string
	cmd        *exec.Cmd
	ended      chan struct{} // closed when the process has ended
	paused     bool
}

// Start starts a cluster and waits until it answers. It ends with the test. Where
// etcd is not installed the test is skipped, or fails if TANDEM_REQUIRE_TOOLS is 1.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		const what = "etcd is not installed: apt-get install etcd-server"
		if os.Getenv("TANDEM_REQUIRE_TOOLS") == "1" {
			t.Fatal(what)
		}
		t.Skip(what)
	}
	if o.Members == 0 {
		o.Members = 1
	}
	for try := 1; ; try++ {
		c, err := start(t, o)
		if err == nil {
			return c
		}
		if try == startTries || !errors.Is(err, errPortTaken) {
			t.Fatal(err)
		}
	}
}

var errPortTaken = errors.New("somebody else has the port")

func start(t testing.TB, o Options) (*Cluster, error) {
	dir, err := makeDir()
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(3 * o.Members)
	if err != nil {
		return nil, err
	}
	c := &Cluster{options: o}
	var all []string
	for i := range o.Members {
		m := &Member{name: "m" + strconv.Itoa(i), Addr: ports[3*i], peer: ports[3*i+1], metrics: ports[3*i+2]}
		m.dir, m.log = filepath.Join(dir, m.name), filepath.Join(dir, m.name+".log")
		all = append(all, m.name+"=http://"+m.peer)
		c.Members = append(c.Members, m)
	}
	scheme := "http://"
	var security []string
	if o.CA != "" {
		scheme = "https://"
		security = []string{"--trusted-ca-file=" + o.CA, "--cert-file=" + o.Cert, "--key-file=" + o.Key, "--client-cert-auth"}
	}
	for _, m := range c.Members {
		m.args = append([]string{
			"--name=" + m.name, "--data-dir=" + m.dir, "--logger=zap", "--log-outputs=stderr", "--log-level=warn",
			"--listen-client-urls=" + scheme + m.Addr, "--advertise-client-urls=" + scheme + m.Addr,
			"--listen-peer-urls=http://" + m.peer, "--initial-advertise-peer-urls=http://" + m.peer,
			"--listen-metrics-urls=http://" + m.metrics,
			"--initial-cluster=" + strings.Join(all, ","), "--initial-cluster-token=" + filepath.Base(dir),
		}, security...)
	}
	t.Cleanup(func() {
		for _, m := range c.Members {
			m.Kill()
		}
		if t.Failed() {
			for _, m := range c.Members {
				t.Logf("the end of the log of etcd member %s:\n%s", m.Addr, m.tail())
			}
		}
		os.RemoveAll(dir)
	})
	for _, m := range c.Members {
		if err := m.launch(); err != nil {
			return nil, err
		}
	}
	for _, m := range c.Members {
		if err := m.ready(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// URL is the witness URL of a key in the cluster, without parameters.
func (c *Cluster) URL(key string) string {
	return "etcd://" + strings.Join(c.Hosts(), ",") + "/" + key
}

// Hosts are the members' addresses.
func (c *Cluster) Hosts() []string {
	var hosts []string
	for _, m := range c.Members {
		hosts = append(hosts, m.Addr)
	}
	return hosts
}

// Leader is the index of the member that leads. The cluster must not use TLS.
func (c *Cluster) Leader(t testing.TB) int {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		i := slices.IndexFunc(c.Members, func(m *Member) bool {
			return m.running() && !m.paused && m.leads()
		})
		if i >= 0 {
			return i
		}
	}
	t.Fatalf("no etcd member leads after %v", patience)
	return -1
}

func (m *Member) leads() bool {
	b, err := post("http://"+m.Addr+"/v3/maintenance/status", "{}")
	if err != nil {
		return false
	}
	var s struct {
		Header struct {
			MemberID string `json:"member_id"`
		} `json:"header"`
		Leader string `json:"leader"`
	}
	return json.Unmarshal(b, &s) == nil && s.Leader != "" && s.Leader == s.Header.MemberID
}

// Kill ends the member with SIGKILL and waits for it. Its data stays.
func (m *Member) Kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill() // it may have ended
	<-m.ended
	m.paused = false
}

// Restart starts a killed member again and waits until it answers.
func (m *Member) Restart(t testing.TB) {
	t.Helper()
	err := m.launch()
	if err == nil {
		err = m.ready()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Pause stops the member with SIGSTOP and returns when it has stopped: the kernel
// still takes what is sent to it, and nothing comes back.
func (m *Member) Pause(t testing.TB) {
	t.Helper()
	m.signal(t, syscall.SIGSTOP)
	m.paused = true
	// The signal is sent when Signal returns, and answers may follow it: the
	// kernel tells the parent of the stop when the last thread stands still.
	if err := unix.Waitid(unix.P_PID, m.cmd.Process.Pid, nil, unix.WSTOPPED, nil); err != nil {
		t.Fatalf("wait until etcd member %s has stopped: %v", m.Addr, err)
	}
}

// Resume continues it.
func (m *Member) Resume(t testing.TB) { m.signal(t, syscall.SIGCONT); m.paused = false }

func (m *Member) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("%v to etcd member %s: %v", sig, m.Addr, err)
	}
}

// Handled is how many requests of a gRPC method, say Txn, the member has received
// since its start and answered, with whatever answer.
func (m *Member) Handled(t testing.TB, method string) int {
	t.Helper()
	b, err := get("http://" + m.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "grpc_server_handled_total{") || !strings.Contains(line, `grpc_method="`+method+`"`) {
			continue
		}
		_, value, _ := strings.Cut(line, "} ")
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			t.Fatalf("etcd's metrics: %q: %v", line, err)
		}
		n += int(v)
	}
	return n
}

// launch starts the process. A thread of its own starts and awaits it: the kernel
// sends the parent-death signal when the *thread* ends that forked.
func (m *Member) launch() error {
	out, err := os.OpenFile(m.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd, ended := exec.Command("etcd", m.args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	m.cmd, m.ended = cmd, ended
	return nil
}

func (m *Member) running() bool {
	select {
	case <-m.ended:
		return false
	default:
		return m.cmd != nil
	}
}

// ready waits until the member says that it is healthy, which it does when it has
// a leader and can read.
func (m *Member) ready() error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if b, err := get("http://" + m.metrics + "/health"); err == nil && bytes.Contains(b, []byte(`"true"`)) {
			return nil
		}
		if !m.running() {
			text := m.tail()
			if strings.Contains(text, "address already in use") {
				return errPortTaken
			}
			return fmt.Errorf("etcd member %s ended at its start:\n%s", m.Addr, text)
		}
	}
	return fmt.Errorf("etcd member %s is not healthy after %v:\n%s", m.Addr, patience, m.tail())
}

func (m *Member) tail() string {
	b, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// client keeps no connection: a test that looks for leaked goroutines shall not
// find any of ours.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
}

func get(url string) ([]byte, error) {
	r, err := client().Get(url)
	return body(r, err)
}

func post(url, text string) ([]byte, error) {
	r, err := client().Post(url, "application/json", strings.NewReader(text))
	return body(r, err)
}

func body(r *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	return io.ReadAll(r.Body)
}

// makeDir makes the members' folder in memory where there is some: what is tested
// is not this machine's disk.
func makeDir() (string, error) {
	parent := "/dev/shm"
	if fi, err := os.Stat(parent); err != nil || !fi.IsDir() {
		parent = ""
	}
	return os.MkdirTemp(parent, "tandem-etcd-")
}

// freePorts are taken again by the members. They lie below the kernel's range of
// ports for outgoing connections, or some client would sooner or later have one.
func freePorts(n int) ([]string, error) {
	var ports []string
	for tries := 0; len(ports) < n; tries++ {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000)))
		if err != nil {
			if tries > 1000 {
				return nil, err
			}
			continue
		}
		defer l.Close()
		ports = append(ports, l.Addr().String())
	}
	return ports, nil
}
