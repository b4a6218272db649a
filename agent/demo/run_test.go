package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cutLink gives the mutant time to lose something.
const cutLink = "--cut-link=300ms"

// TestDemo plays the whole demo, with real processes and the real lease. The
// plays do not run side by side: a machine of two cores that plays two plays
// neither.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("a minute and a half")
	}
	dir := t.TempDir()
	for _, tags := range []string{"", "mutant"} {
		if out, err := exec.Command("go", "build", "-tags", tags, "-o", filepath.Join(dir, "replctl"+tags), "tandem/cmd/replctl").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	exe, mutant := filepath.Join(dir, "replctl"), filepath.Join(dir, "replctlmutant")
	t.Run("keep", func(t *testing.T) { testKeep(t, exe) })
	t.Run("json", func(t *testing.T) { testJSON(t, exe) })
	t.Run("ack-before-peer", func(t *testing.T) { testAckBeforePeer(t, mutant) })
	t.Run("agent-dies", func(t *testing.T) { testAgentDies(t, exe) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, exe) })
	t.Run("pipe-closed", func(t *testing.T) { testPipeClosed(t, exe) })
	t.Run("killed", func(t *testing.T) { testKilled(t, exe) })
}

// stage is one run of `replctl demo`.
type stage struct {
	t        *testing.T
	exe      string
	tmp      string // its TMPDIR
	cmd      *exec.Cmd
	out, err output
	began    time.Time
}

// output can be read while it grows.
type output struct {
	mu   sync.Mutex
	text []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// play starts `replctl demo args`.
func play(t *testing.T, exe string, args ...string) *stage {
	t.Helper()
	s := newStage(t, exe, args...)
	s.cmd.Stdout = &s.out
	s.start()
	return s
}

func newStage(t *testing.T, exe string, args ...string) *stage {
	s := &stage{t: t, exe: exe, tmp: t.TempDir(), cmd: exec.Command(exe, append([]string{"demo"}, args...)...)}
	s.cmd.Env = append(os.Environ(), "TMPDIR="+s.tmp, "TANDEM_BUG=ack-before-peer")
	s.cmd.Stderr = &s.err
	return s
}

func (s *stage) start() {
	s.t.Helper()
	s.began = time.Now()
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
	})
}

// until waits for a text on stdout.
func (s *stage) until(text string) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(s.out.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("no %q in\n%s\n%s", text, s.out.String(), s.err.String())
		}
	}
}

// end waits for the end, checks that nothing is left, and returns the exit code.
func (s *stage) end() int {
	s.t.Helper()
	_ = s.cmd.Wait() // its error is the exit code
	if took := time.Since(s.began); took > 30*time.Second {
		s.t.Errorf("it took %v", took)
	}
	if left := s.processes(); len(left) > 0 {
		s.t.Errorf("processes are left: %v", left)
	}
	if left, err := os.ReadDir(s.tmp); err != nil || len(left) > 0 {
		s.t.Errorf("files are left: %v %v", left, err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// processes are those of this stage's program, by what they do: "demo", "agent a" …
func (s *stage) processes() map[string]int {
	found := make(map[string]int)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe")); err != nil || exe != s.exe {
			continue // also those that have just ended
		}
		text, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
		name := args[1]
		if slices.Contains(args, "agent") {
			name = "agent " + strings.TrimSuffix(filepath.Base(args[2]), ".yaml")
		}
		found[name] = pid
	}
	return found
}

// failure is what stderr has to be: one line.
func (s *stage) failure(want string) {
	s.t.Helper()
	if got := s.err.String(); !regexp.MustCompile(`^replctl: demo: ` + want + `\n$`).MatchString(got) {
		s.t.Errorf("stderr is %q, which is not the line %q", got, want)
	}
}

func testKeep(t *testing.T, exe string) {
	dir := filepath.Join(t.TempDir(), "kept")
	s := play(t, exe, "--keep", dir)
	s.until("\n")
	first := time.Now()
	if code := s.end(); code != 0 || s.err.String() != "" {
		t.Fatalf("exit %d\n%s\n%s", code, s.out.String(), s.err.String())
	}
	t.Logf("%.1f s from the first line to the end\n%s", time.Since(first).Seconds(), s.out.String())

	lines := strings.Split(strings.TrimSpace(s.out.String()), "\n")
	last := regexp.MustCompile(`^acknowledged ([0-9,]+) · read back ([0-9,]+) · lost 0 · writable again after [3-9]\.\d s \(lease 3 s\) · resynced \d+ MiB of 1 GiB · copies identical$`)
	m := last.FindStringSubmatch(lines[len(lines)-1])
	if m == nil || m[1] != m[2] {
		t.Errorf("the last line is %q", lines[len(lines)-1])
	}
	h, err := readLedger(filepath.Join(dir, "ledger"))
	if err != nil || m != nil && thousands(h.acknowledged()) != m[1] {
		t.Errorf("the ledger has other numbers: %v", err)
	}
	for _, name := range []string{"a.img", "b.img", "a.yaml", "b.yaml", "a.log", "b.log", "witness", "ca.pem"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Size() == 0 {
			t.Errorf("%s was not kept: %v", name, err)
		}
	}

	// It is not played in a folder that has something in it.
	s = play(t, exe, "--keep", dir)
	if code := s.end(); code != 1 || s.out.String() != "" {
		t.Errorf("exit %d, %q", code, s.out.String())
	}
	s.failure(regexp.QuoteMeta(dir) + " is not empty: .*")
}

// result is the one JSON object on stdout.
func (s *stage) result() Result {
	s.t.Helper()
	dec := json.NewDecoder(strings.NewReader(s.out.String()))
	var fields map[string]any
	if err := dec.Decode(&fields); err != nil || dec.More() {
		s.t.Fatalf("stdout is not one object: %v\n%s\n%s", err, s.out.String(), s.err.String())
	}
	var r Result
	for _, name := range []string{"acknowledged", "read_back", "lost", "writable_after_ms", "resynced_bytes", "volume_bytes", "identical"} {
		if _, ok := fields[name]; !ok {
			s.t.Errorf("no %s in %s", name, s.out.String())
		}
		delete(fields, name)
	}
	if len(fields) > 0 {
		s.t.Errorf("unknown %v", fields)
	}
	if err := json.Unmarshal([]byte(s.out.String()), &r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

// The same conditions, with the bug and without it: it is the bug that the demo finds.
func testJSON(t *testing.T, exe string) {
	s := play(t, exe, "--json", cutLink)
	code := s.end()
	r := s.result()
	t.Logf("%+v\n%s", r, s.err.String())
	// The lease is counted from the last answer of the standby, which was before the cut.
	if code != 0 || r.Lost != 0 || r.Acknowledged < minWrites || r.ReadBack != r.Acknowledged || !r.Identical || r.VolumeBytes != 1<<30 ||
		r.ResyncedBytes <= 0 || r.ResyncedBytes > 100<<20 || r.WritableAfterMS < 2000 || r.WritableAfterMS > 15000 {
		t.Errorf("exit %d", code)
	}
	if !strings.Contains(s.err.String(), "SIGKILL to a") {
		t.Error("no steps on stderr")
	}
}

func testAckBeforePeer(t *testing.T, mutant string) {
	s := play(t, mutant, "--json", cutLink)
	code := s.end()
	r := s.result()
	t.Logf("%+v\n%s", r, s.err.String())
	if code != 1 || r.Lost == 0 || r.ReadBack+r.Lost != r.Acknowledged {
		t.Errorf("exit %d", code)
	}
	want := fmt.Sprintf("\nreplctl: demo: %d acknowledged writes were lost, ", r.Lost)
	if !strings.Contains(s.err.String(), want) {
		t.Errorf("no %q", want)
	}
}

func testAgentDies(t *testing.T, exe string) {
	s := play(t, exe)
	s.until("a checker writes")
	if err := syscall.Kill(s.processes()["agent b"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := s.end(); code != 1 {
		t.Errorf("exit %d", code)
	}
	s.failure(`agent b ended unexpectedly \(signal: killed: .*\)`)
}

func testInterrupted(t *testing.T, exe string) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP} {
		s := play(t, exe)
		s.until("a checker writes")
		if err := s.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if code := s.end(); code != 1 {
			t.Errorf("%v: exit %d", sig, code)
		}
		s.failure("interrupted")
	}
}

// `replctl demo | head -1` is not to leave anything either.
func testPipeClosed(t *testing.T, exe string) {
	s := newStage(t, exe)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.start()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	out.Close()
	if code := s.end(); code != 1 {
		t.Errorf("exit %d", code)
	}
	s.failure("interrupted")
}

// Whoever kills the demo itself gets rid of the agents too. Only the folder is left.
func testKilled(t *testing.T, exe string) {
	s := play(t, exe)
	s.until("a checker writes")
	if got := len(s.processes()); got != 4 {
		t.Fatalf("%d processes: %v", got, s.processes())
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
	for end := time.Now().Add(5 * time.Second); len(s.processes()) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("they live: %v", s.processes())
		}
	}
}

func TestFolders(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	p := &pair{}
	if err := p.makeFolders(deep); err != nil {
		t.Fatal(err)
	}
	socket := p.socket("a.sock")
	if p.dir != deep || len(socket) > maxSocket || !filepath.IsAbs(socket) {
		t.Errorf("the socket would be %s", socket)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(socket)); err == nil {
		t.Error("the folder of the sockets is left")
	}
	if _, err := os.Stat(deep); err != nil {
		t.Error(err)
	}
	if err := (&pair{}).makeFolders("/dev/null"); err == nil {
		t.Error("/dev/null is no folder")
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 41212: "41,212", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
	for n, want := range map[int64]string{0: "0 KiB", 4096: "4 KiB", 38<<20 + 4096: "38 MiB", 1 << 30: "1 GiB", 3 << 29: "1536 MiB"} {
		if got := formatBytes(n); got != want {
			t.Errorf("%d is %s", n, got)
		}
	}
}
