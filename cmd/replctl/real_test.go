package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tandem/agent/faultproxy"
	"tandem/failover"
	"tandem/nbd"
)

// The scripts real_*.txtar play with two real agents on loopback. Their folder's
// path is short enough for a socket only if the socket is named relative to it, and
// so it is.

// world is what a script's commands share.
type world struct {
	proxy  *faultproxy.Proxy // nil unless the pair is proxied
	agents map[string]*exec.Cmd
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// makePair [tls] [proxied] [KEY=VALUE]... writes a.yaml and b.yaml and initialises both disks. The keys are those of failover and, with
// max_rate, of resync; size is the volume's. The agents are started by the script.
func makePair(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(".")
	failover, resync, size, tls, proxied := "heartbeat: 200ms, lease: 1s", "auto", "256MiB", false, false
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		switch {
		case a == "tls":
			tls = true
		case a == "proxied":
			proxied = true
		case !ok || neg:
			ts.Fatalf("usage: pair [tls] [proxied] [KEY=VALUE]...")
		case k == "max_rate":
			resync = v
		case k == "size":
			size = v
		default:
			failover += ", " + k + ": " + v
		}
	}
	address := freeAddresses(ts, 2)
	toB := address[1]
	if proxied {
		proxy, err := faultproxy.New(toB)
		ts.Check(err)
		ts.Defer(func() { proxy.Close() })
		worldOf(ts).proxy = proxy
		toB = proxy.Addr()
	}
	ts.Check(os.MkdirAll(filepath.Join(dir, "w"), 0o700))
	// A socket's path has at most 107 bytes, a script's folder may have more.
	short, err := os.MkdirTemp("", "replctl-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(short) })
	if tls {
		ts.Check(ts.Exec("replctl", "certs", "--cluster", "nfs1", "a", "b"))
	}
	for i, n := range []string{"a", "b"} {
		other, peer := "b", toB
		if n == "b" {
			other, peer = "a", address[0]
		}
		keys := "{insecure: true}"
		if tls {
			keys = fmt.Sprintf("{ca: ca.pem, cert: %s.pem, key: %[1]s.key}", n)
		}
		text := fmt.Sprintf(`cluster: nfs1
node: %s
listen: %s
peers: [{node: %s, address: %s}]
volume: {device: %[1]s.img, size: %[9]s, metadata: %[1]s.md}
nbd: {socket: %[5]s/%[1]s.nbd}
control: %[5]s/%[1]s.sock
tls: %[6]s
witness: file:w/witness
resync: {max_rate: %[7]s}
failover: {%[8]s}
`, n, address[i], other, peer, short, keys, resync, failover, size)
		ts.Check(os.WriteFile(filepath.Join(dir, n+".yaml"), []byte(text), 0o600))
		ts.Check(ts.Exec("replctl", "--config", n+".yaml", "init"))
	}
	ts.Setenv("SOCKETS", short)
}

// runAgent NODE starts an agent and waits until it answers. With -kill or -stop
// before the name it is ended, by SIGKILL or by SIGTERM.
func runAgent(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) == 0 || len(args) > 2 {
		ts.Fatalf("usage: agent [-kill | -stop] NODE")
	}
	name := args[len(args)-1]
	if len(args) == 2 {
		p := w.agents[name]
		sig := syscall.SIGTERM
		if args[0] == "-kill" {
			sig = syscall.SIGKILL
		}
		ts.Check(p.Process.Signal(sig))
		if err := p.Wait(); err != nil && sig == syscall.SIGTERM {
			ts.Fatalf("agent %s was told to stop and said %v", name, err)
		}
		delete(w.agents, name)
		return
	}
	exe, err := os.Executable()
	ts.Check(err)
	log, err := os.OpenFile(ts.MkAbs(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	// The test binary is replctl under that name.
	p := &exec.Cmd{Path: exe, Args: []string{"replctl", "--config", name + ".yaml", "agent"}, Dir: ts.MkAbs("."), Stderr: log,
		Env: append(os.Environ(), "TZ=UTC", "GORACE=atexit_sleep_ms=0")}
	ts.Check(p.Start())
	w.agents[name] = p
	ts.Defer(func() {
		if w.agents[name] == p {
			_ = p.Process.Kill()
			_ = p.Wait()
			delete(w.agents, name)
		}
	})
	// What it knows in its first moments is not what the scripts are about.
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ts.Exec("replctl", "--config", name+".yaml", "status", "--json")
		if err == nil && !strings.Contains(ts.ReadFile("stdout"), failover.ErrNotRead.Error()) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("agent %s does not answer, or has not asked the witness: %v", name, err)
		}
	}
}

// freeAddresses are below the kernel's range of ports for outgoing connections.
func freeAddresses(ts *testscript.TestScript, n int) (address []string) {
	for range 1000 {
		if len(address) == n {
			return address
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 12000+rand.IntN(20000)))
		if err == nil {
			defer l.Close()
			address = append(address, l.Addr().String())
		}
	}
	ts.Fatalf("no free ports")
	return nil
}

// waitFor REGEXP COMMAND... repeats a command until it exits 0 and its output
// matches.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: waitfor REGEXP COMMAND...")
	}
	re := regexp.MustCompile("(?m)" + args[0])
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%v never matched %q", args[1:], args[0])
		}
	}
}

// setLink cut|heal cuts a's connections to b, or lets them pass.
func setLink(ts *testscript.TestScript, neg bool, args []string) {
	p := worldOf(ts).proxy
	switch {
	case neg || len(args) != 1:
		ts.Fatalf("usage: link cut|heal")
	case args[0] == "cut":
		p.Cut(faultproxy.Both)
		p.Reset() // what is up; what comes is silent
	default:
		p.Heal()
	}
}

// write NODE OFFSET MIB writes that many MiB at an offset in MiB, or, with MIB 0,
// 4 KiB again and again in the background until the script ends.
func write(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: write NODE OFFSET MIB")
	}
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	n, err := strconv.ParseInt(args[2], 10, 64)
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	socket := filepath.Join(ts.Getenv("SOCKETS"), args[0]+".nbd")
	client, err := nbd.Dial(ctx, "unix", socket, "nfs1", nbd.ClientOptions{})
	ts.Check(err)
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = args[0][0] + byte(i>>12)
	}
	if n > 0 {
		defer cancel()
		defer client.Close()
		for i := range n {
			ts.Check(client.WriteAt(ctx, block, (off+i)<<20, true))
		}
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for client.WriteAt(ctx, block[:4096], off<<20, false) == nil {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	ts.Defer(func() {
		cancel()
		client.Close()
		<-done
	})
}

// What differs from run to run in a text of explain: times, spans, rates and ports.
var normalised = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`(gone for|frozen for|In) \d+ s`), "$1 N s"},
	{regexp.MustCompile(`/\S*/w/witness`), "/w/witness"},
	// Which of the two ends of a cut connection notices first, and how.
	{regexp.MustCompile(`(does not answer it|no link to it|cannot be asked): \S.*|(does not answer it|no link to it) \(.*\)`), "$1$2 (WHY)"},
}

// explainedAs is "explained FILE ARG...": it runs replctl ARG... explain, which must
// exit 0, until it says what FILE does; on a machine with much to do a node may not
// answer within a second. What was said last is in the file "said" then, without what
// differs from run to run, for a cmp that shows the difference.
func explainedAs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: explained FILE ARG...")
	}
	want := ts.ReadFile(args[0])
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		ts.Check(ts.Exec("replctl", append(args[1:], "explain")...))
		got := ts.ReadFile("stdout")
		for _, n := range normalised {
			got = n.re.ReplaceAllString(got, n.to)
		}
		if got == want || *update || time.Now().After(end) {
			ts.Check(os.WriteFile(ts.MkAbs("said"), []byte(got), 0o600))
			return
		}
	}
}

// next [FILE] types the command that an explain named, in FILE or just now, which
// must be done.
func next(ts *testscript.TestScript, neg bool, args []string) {
	for line := range strings.Lines(ts.ReadFile(append(args, "stdout")[0])) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			f := strings.Fields(command)
			ts.Logf("> %s", strings.Join(f, " "))
			ts.Check(ts.Exec(f[0], f[1:]...))
			return
		}
	}
	ts.Fatalf("the last output names no command")
}
