package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/agent/config"
	"tandem/e2e/vm"
)

func TestSelect(t *testing.T) {
	all := []Scenario{{ID: "smoke-ext4"}, {ID: "smoke-xfs"}, {ID: "2-locks-v3"}, {ID: "2-v3"}}
	for words, want := range map[string]string{
		"":                     "smoke-ext4 smoke-xfs 2-locks-v3 2-v3",
		"smoke":                "smoke-ext4 smoke-xfs",
		"2 smoke-xfs":          "smoke-xfs 2-locks-v3 2-v3",
		"2-locks":              "2-locks-v3",
		"smoke-ext4 smoke":     "smoke-ext4 smoke-xfs",
		"smoke-ext":            "",
		"smoke-xfs smoke-zfs":  "",
		"smoke-xfs smoke-xfs-": "",
	} {
		got, err := Select(all, strings.Fields(words))
		var ids []string
		for _, s := range got {
			ids = append(ids, s.ID)
		}
		if strings.Join(ids, " ") != want || (want == "") != errors.Is(err, ErrNoScenario) {
			t.Errorf("%q: %v %v", words, ids, err)
		}
	}
}

func TestScenariosHaveTheirIDs(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range Scenarios() {
		if s.ID == "" || s.Name == "" || s.Limit <= 0 || seen[s.ID] {
			t.Errorf("%+v", s)
		}
		seen[s.ID] = true
	}
	for _, id := range strings.Fields("smoke-ext4 smoke-xfs 1-ext4 1-xfs 2-v42 2-v3 2-locks-v42 2-locks-v3 2-tickle aws-eip aws-overlay 3-move 4-standby 4-resync 4-both 4-degraded 4-rejoined " +
		"5-cut 5-witness 5-oneway 5-slow 5-stopped 6-volatile-one 6-volatile-both 7-kill 7-restart 8-memory 9-random") {
		if !seen[id] {
			t.Errorf("%s is not there", id)
		}
	}
}

// Scenarios of one pair stay together in their order, and nobody has much more to do than others.
func TestDivide(t *testing.T) {
	p, q := &pairOptions{fs: "ext4"}, &pairOptions{fs: "xfs"}
	all := []Scenario{{ID: "a"}, {ID: "p1", pair: p}, {ID: "q1", pair: q}, {ID: "p2", pair: p}, {ID: "b"}, {ID: "q2", pair: q}}
	seconds := map[string]float64{"a": 10, "p1": 100, "p2": 20, "q1": 30, "q2": 35}
	for jobs, want := range map[int]string{
		1: "p1 p2 q1 q2 b a",
		2: "p1 p2 a | q1 q2 b",
		9: "p1 p2 | q1 q2 | b | a", // b has not been seen: 60 s
	} {
		var got []string
		for _, list := range Divide(all, jobs, seconds) {
			var ids []string
			for _, s := range list {
				ids = append(ids, s.ID)
			}
			got = append(got, strings.Join(ids, " "))
		}
		if text := strings.Join(got, " | "); text != want {
			t.Errorf("%d jobs: %s, and not %s", jobs, text, want)
		}
	}
	if Divide(nil, 2, nil) != nil {
		t.Error("nothing divided is something")
	}
}

func TestQuiet(t *testing.T) {
	quiet, others := Quiet(Scenarios())
	if len(quiet) < 2 || len(others) < len(quiet) || len(quiet)+len(others) != len(Scenarios()) {
		t.Errorf("%d and %d of %d", len(quiet), len(others), len(Scenarios()))
	}
	for _, s := range others {
		if s.quiet {
			t.Error(s.ID)
		}
	}
}

func TestInOrder(t *testing.T) {
	all := InOrder([]Scenario{{ID: "a"}, {ID: "b", Name: "bee"}}, []Result{{ID: "c", OK: true}, {ID: "a", OK: true}}, "abc")
	if len(all) != 2 || all[0].ID != "a" || !all[0].OK || all[1].OK || all[1].Name != "bee" || all[1].Commit != "abc" || all[1].Error == "" {
		t.Errorf("%+v", all)
	}
}

func TestPlayStopsAtTheFirstFailure(t *testing.T) {
	var done []string
	var log bytes.Buffer
	r := &Run{log: &log, began: time.Now()}
	err := r.play(context.Background(), []step{
		{"one", func(context.Context) error { done = append(done, "one"); return r.Assert(true, "%d records", 7) }},
		{"two", func(context.Context) error { return r.Assert(false, "nothing lost") }},
		{"three", func(context.Context) error { done = append(done, "three"); return nil }},
	})
	if err == nil || err.Error() != "two: not so: nothing lost" || len(done) != 1 || len(r.asserted) != 1 || r.asserted[0] != "7 records" {
		t.Fatal(err, done, r.asserted)
	}
	err = r.play(context.Background(), []step{{"slip", func(context.Context) error { panic("nil map") }}})
	if err == nil || !strings.Contains(err.Error(), "slip: panic: nil map") {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("it took longer"))
	err = r.play(ctx, []step{{"late", func(ctx context.Context) error { return ctx.Err() }}})
	if err == nil || !strings.Contains(err.Error(), "it took longer") {
		t.Fatal(err)
	}
}

func TestResults(t *testing.T) {
	results := []Result{
		{ID: "smoke-ext4", Name: "ext4", OK: true, Seconds: 61.25, Commit: "abc", Kernel: "6.1 (tcg)", Asserted: []string{"all there"}},
		{ID: "smoke-xfs", Name: "xfs", Error: "mount: no\nmedium"},
	}
	path := filepath.Join(t.TempDir(), "deep", "results.json")
	if err := WriteResults(path, results); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var back []map[string]any
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"id", "name", "ok", "seconds", "commit", "kernel", "asserted"} {
		if _, ok := back[1][key]; !ok || back[1][key] == nil {
			t.Errorf("%s is missing in %v", key, back[1])
		}
	}
	if _, ok := back[0]["error"]; ok {
		t.Error("an error without a failure")
	}
	var table bytes.Buffer
	if err := PrintTable(&table, results); err != nil {
		t.Fatal(err)
	}
	want := `ID          RESULT  SECONDS  ASSERTED  KERNEL     NAME
smoke-ext4  ok      61.2     1         6.1 (tcg)  ext4
smoke-xfs   FAILED  0.0      0                    xfs
smoke-xfs: mount: no
  medium
`
	if table.String() != want {
		t.Errorf("%s", table.String())
	}
	if AllOK(results) || AllOK(nil) || !AllOK(results[:1]) {
		t.Error("AllOK")
	}
}

// The agent's own parser must take what the harness writes.
func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tandem.yaml")
	a, b := &node{Machine: &vm.Machine{Name: "a"}}, &node{Machine: &vm.Machine{Name: "b"}}
	// Neither has a number outside of a lab; the parser wants two addresses.
	text := strings.Replace(configuration(b, a), `"10.77.0.0:7788"`, `"10.77.0.1:7788"`, 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "b" || c.Cluster != cluster || len(c.Peers) != 1 || c.Peers[0].Node != "a" || c.Failover.Lease != lease ||
		c.Failover.Heartbeat != heartbeat || c.Failover.Auto || c.NBD.Socket != b.socket() || c.Link.PeerTimeout != peerTimeout {
		t.Fatalf("%+v", c)
	}
	if err := os.WriteFile(path, []byte(text+serviceSteps(b, pairOptions{fs: "ext4", version: "4.2"})), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err = config.Load(path); err != nil {
		t.Fatal(err)
	}
	if len(c.Service) != 4 || c.Service[1].Mount.Path != mountPoint || c.Service[2].NFS.Grace != nfsGrace || c.Service[2].NFS.Scope != cluster {
		t.Fatalf("%+v", c.Service)
	}
	if err := os.WriteFile(path, []byte(text+serviceSteps(b, pairOptions{fs: "xfs", alone: true})), 0o644); err != nil {
		t.Fatal(err)
	}
	if c, err = config.Load(path); err != nil || len(c.Service) != 2 || c.Service[1].Mount.Type != "xfs" {
		t.Fatalf("%+v %v", c.Service, err)
	}
}

func TestConfigurationWithAWS(t *testing.T) {
	a, b := &node{Machine: &vm.Machine{Name: "a"}}, &node{Machine: &vm.Machine{Name: "b"}}
	text := strings.Replace(configuration(b, a), `"10.77.0.0:7788"`, `"10.77.0.1:7788"`, 1)
	for _, step := range []string{eipStep, overlayStep} {
		cl := &cloud{
			kind: step, url: "http://10.77.0.254:5000", allocation: "eipalloc-0123456789abcdef0", table: "rtb-0123456789abcdef0",
			of: map[*node]*rented{b: {metadata: "http://10.77.0.254:5001"}},
		}
		path := filepath.Join(t.TempDir(), "tandem.yaml")
		if err := os.WriteFile(path, []byte(text+cl.configuration(b, serviceSteps(b, pairOptions{fs: "ext4", version: "4.2", aws: step}))), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		last := c.Service[len(c.Service)-1]
		if len(c.Service) != 4 || (last.EIP != nil) != (step == eipStep) || (last.OverlayRoute != nil) != (step == overlayStep) ||
			last.Timeout != 10*time.Second || c.AWS.Endpoint != cl.url || c.AWS.Metadata != cl.of[b].metadata {
			t.Errorf("%s: %+v %+v", step, last, c.AWS)
		}
	}
}

func TestFioOutcome(t *testing.T) {
	const report = `fio: a message before it
{"fio version": "fio-3.33", "jobs": [{"jobname": "x", "error": 0, "read": {"io_bytes": 5}, "write": {"io_bytes": 7}}]}`
	if r, w, err := fioOutcome(report); r != 5 || w != 7 || err != nil {
		t.Fatal(r, w, err)
	}
	for _, bad := range []string{"", "verify: bad magic header", `{"jobs": []}`, `{"jobs": [{"error": 84}]}`, `{"jobs": [`} {
		if _, _, err := fioOutcome(bad); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}

func TestReplies(t *testing.T) {
	const trace = `# tracer: nop
#
# entries-in-buffer/entries-written: 5/5   #P:2
    kworker/u5:0-65      [001] .....   341.941331: nbd_header_received: nbd transport event: request 000000002f6f3e71, handle 0x0000000200000029
    kworker/u5:1-247     [000] .....   341.956169: nbd_header_received: nbd transport event: request 00000000b6f6a69d, handle 0x0000000900010033
 kworker/u5:1-nbd0-recv-247     [000] .N...   341.956169: nbd_header_received: nbd transport event: request 00000000b6f6a69d, handle 0x00000009000100ff
    kworker/u5:0-65      [001] .....   341.941331: nbd_header_sent: nbd transport event: request 000000002f6f3e71, handle 0x0000000200000029
`
	got, err := repliesOf(trace)
	if err != nil || len(got) != 2 || got[0] != 1 || got[1] != 2 {
		t.Fatal(got, err)
	}
	// A socket of two queues, or a queue of two sockets: whatever it is, it is not understood.
	for _, line := range []string{
		"    kworker/u5:0-65      [001] .....   341.941331: nbd_header_received: nbd transport event: request 000000002f6f3e71, handle 0x0000000200010029\n",
		"    kworker/u5:0-66      [001] .....   341.941331: nbd_header_received: nbd transport event: request 000000002f6f3e71, handle 0x0000000200010029\n",
	} {
		if got, err := repliesOf(trace + line); err == nil {
			t.Error(got)
		}
	}
	if got, err := repliesOf(""); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

func TestZeroed(t *testing.T) {
	const trace = `          <idle>-0       [000] d.h2.   309.339515: block_rq_complete: 254,0 NS () 15972 + 414 [0]
          <idle>-0       [000] d.h2.   309.573191: block_rq_complete: 254,0 FF () 18446744073709551615 + 0 [0]
    kworker/1:1H-53      [001] d.h1.   309.561986: block_rq_complete: 254,0 WS () 524088 + 8 [0]
       replagent-328     [001] d.h1.   313.170223: block_rq_complete: 254,0 NS () 425986 + 16384 be,0,4 [0]
`
	if n := zeroedOf(trace); n != (414+16384)*512 {
		t.Error(n)
	}
}

func TestCompareImages(t *testing.T) {
	dir := t.TempDir()
	image := func(name string, size int, at map[int]byte) string {
		b := make([]byte, size)
		for i, c := range at {
			b[i] = c
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const n = 3<<20 + 8192
	a := image("a", n+4096, map[int]byte{0: 1, n - 1: 2, n: 3})
	for _, c := range []struct {
		name   string
		size   int
		at     map[int]byte
		filled int
		says   string
	}{
		{"equal but for what is behind", n + 4096, map[int]byte{0: 1, n - 1: 2, n: 9}, 2, ""},
		{"last byte", n + 4096, map[int]byte{0: 1, n - 1: 9}, 2, "1 blocks of 4 KiB differ, the first at byte 3149824"},
		{"two blocks", n, map[int]byte{4096: 1, n - 1: 2}, 2, "2 blocks of 4 KiB differ, the first at byte 0"},
		{"too short", n - 1, map[int]byte{0: 1}, 0, "too short"},
	} {
		filled, err := compareImages(a, image("b", c.size, c.at), n)
		switch {
		case c.says == "" && (err != nil || filled != c.filled):
			t.Errorf("%s: %d %v", c.name, filled, err)
		case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
