package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"tandem/agent/control"
	"tandem/agent/history"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"replctl": main})
}

var update = flag.Bool("update", false, "write what cmp finds instead into the scripts")

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		UpdateScripts:       *update,
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// The race detector sleeps for a second at the end of every process, and
			// the scripts start about a hundred.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Setenv("TZ", "UTC") // local times are part of the output
			env.Values[worldKey{}] = &world{agents: make(map[string]*exec.Cmd)}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "fakeagent": fakeAgent,
			"pair": makePair, "agent": runAgent, "waitfor": waitFor, "link": setLink, "write": write, "explained": explainedAs, "next": next,
		},
	})
}

// exits CODE COMMAND... runs a command whose exit status is part of the contract;
// the `! exec` of testscript takes any.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("%v", err)
	}
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s exited %d, want %d", strings.Join(args[1:], " "), got, want)
	}
	// One clear line, section 8.
	if stderr := ts.ReadFile("stderr"); want == 2 && strings.Count(stderr, "\n") != 1 {
		ts.Fatalf("stderr is not one line: %q", stderr)
	}
}

// fakeagent SOCKET answers as an agent would, until the script ends.
func fakeAgent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fakeagent SOCKET")
	}
	ln, err := control.Listen(ts.MkAbs(args[0]))
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.Serve(ctx, ln, answer) }()
	ts.Defer(func() {
		cancel()
		ts.Check(<-done)
	})
}

// answer has one reply for each verb. A request that the real agent would not
// understand is refused, so that the scripts show what replctl sends.
func answer(ctx context.Context, req control.Request, send func(control.Message) error) error {
	say := func(kind, text string, data any) {
		m, err := control.NewMessage(kind, text, data)
		if err == nil {
			err = send(m)
		}
		if err != nil {
			panic(err)
		}
	}
	switch fmt.Sprint(req.Verb, " ", req.Args) {
	case "status map[]":
		say(control.KindResult, "", sampleStatus())
		return nil
	case "cluster map[]":
		s := sampleStatus()
		b := control.Status{Cluster: "nfs1", Node: "b", Role: "Secondary", Primary: "a", Epoch: 3, Disk: "Inconsistent", InSync: []string{"a", "c"},
			StateDetail: "waits for the end of the resync", Volume: control.VolumeStatus{SizeBytes: 1 << 30}}
		say(control.KindResult, "", control.ClusterStatus{Nodes: []control.NodeStatus{
			{Node: "a", Status: &s}, {Node: "b", Status: &b}, {Node: "c", Error: "node c cannot be asked: no answer within 1s"},
		}})
		return nil
	case "pause map[]":
		say(control.KindResult, "paused for "+req.Node, nil)
		return nil
	case "resume map[]":
		return &control.Refused{Text: "the cluster record cannot be read"}
	case "forget map[node:c]":
		return &control.Confirm{Text: "Node c leaves.", Node: "c"}
	case "forget map[node:c yes:true]":
		say(control.KindResult, "c has left the cluster record", nil)
		return nil
	case "history map[]":
		node := req.Node
		if node == "" {
			node = "a"
		}
		for i, why := range []string{"one", "two"} {
			e := history.Entry{Time: time.Date(2026, 11, 22, 12, i, len(node+req.Node), 0, time.UTC), Node: node, Kind: history.KindRequest, Why: why, By: "local, uid 0/root", Seconds: 1.5}
			say(control.KindEvent, e.Text(time.UTC), e)
		}
		return nil
	case "promote map[]":
		return &control.Refused{Text: "this copy is Outdated: promote --force says what it lacks"}
	case "promote map[force:true]":
		return &control.Confirm{Text: "b was last in sync at 12:00.\n4 KiB that a has will be lost.", Node: "b"}
	case "promote map[force:true peer-is-off:true yes:true]":
		say(control.KindResult, "b is Primary in epoch 4, nothing was waited for", nil)
		return nil
	case "promote map[force:true yes:true]":
		say(control.KindProgress, "waiting out the lease of a", nil)
		say(control.KindResult, "b is Primary in epoch 4", nil)
		return nil
	case "demote map[]":
		return errors.New("two\nlines")
	case "resync map[]", "resync map[discard-my-data:true]":
		for done := int64(0); done <= 100; done += 5 {
			say(control.KindProgress, "", control.Progress{DoneBytes: done << 20, TotalBytes: 100 << 20, RateBytesPerSecond: 5 << 20, ETASeconds: float64(100-done) / 5})
		}
		say(control.KindResult, "in sync "+req.Args["discard-my-data"], nil)
		return nil
	case "wait-sync map[timeout:1m30s]":
		return &control.Refused{Text: "b is not in sync after 1m30s"}
	case "wait-sync map[]":
		return nil
	case "events map[]", "events map[follow:true]":
		say(control.KindEvent, "12:00:00 role Secondary -> Primary: promote", control.Event{
			Time: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Name: "role", From: "Secondary", To: "Primary", Why: "promote"})
		say(control.KindEvent, "12:00:01 plain", nil)
		if req.Args["follow"] != "" {
			<-ctx.Done()
		}
		return nil
	}
	return &control.Refused{Text: fmt.Sprintf("unexpected request %v", req)}
}

func sampleStatus() control.Status {
	return control.Status{
		Cluster: "nfs1", Node: "a", Role: "Primary", Primary: "a", Epoch: 3, Disk: "UpToDate", InSync: []string{"a", "c"},
		StateDetail: "b is resynced", Volume: control.VolumeStatus{SizeBytes: 1 << 30}, AtRiskBytes: 4096,
		LeaseRemainingMS: 2600, FrozenSeconds: 1.25, FreezeSeconds: 30,
		Paused: &control.PausedStatus{Since: time.Date(2026, 11, 22, 11, 0, 0, 0, time.UTC), By: "b"}, Witness: control.WitnessStatus{Error: "no such file"},
		Peers: []control.PeerStatus{
			{Node: "b", Link: "Connected", Replication: "SyncSource", Disk: "Inconsistent", OutOfSyncBytes: 600 << 20,
				SentBytes: 5 << 30, WireBytes: 120 << 20,
				Resync: &control.Progress{DoneBytes: 400 << 20, TotalBytes: 1000 << 20, RateBytesPerSecond: 100 << 20, ETASeconds: 6}},
			{Node: "c", Link: "Connecting"},
		},
		IO: control.IOStatus{
			Read:  control.OpStatus{Count: 10, Bytes: 40960, P50US: 80, P99US: 1500, MaxUS: 2500000},
			Write: control.OpStatus{Count: 3, Errors: 1},
			Trim:  control.OpStatus{Count: 2, Bytes: 1 << 30}, // and not one WRITE_ZEROES
		},
		Service: []control.StepStatus{{Step: "mount", State: "up", Since: time.Date(2026, 11, 22, 12, 0, 0, 0, time.Local)}},
	}
}
