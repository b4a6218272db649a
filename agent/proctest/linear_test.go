package proctest

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"tandem/agent/faultproxy"
	"tandem/failover/witness/etcd/etcdtest"
)

const (
	// linearOps are answered in every ten rounds, half of a round's before its
	// fault and half while it lasts.
	linearOps = 20_000
	// linearTakeovers is how often at least another node serves after a fault.
	linearTakeovers = 5

	oldAnswerLimit = 10 * time.Second
	linearFreeze   = 5 * time.Second

	// pinnedReads are sent with each write by those who stay with a stopped primary.
	pinnedReads = 8
)

// life is a pair with etcd as its witness, everything between them breakable.
//
//	a ──▶ 3 proxies ──▶ etcd m0 m1 m2 ◀── 3 proxies ◀── b
//	└──────────▶ cluster.proxy ──────────────────────▶ ┘
type life struct {
	*cluster
	t     *testing.T
	etcd  *etcdtest.Cluster
	lines map[string][]*faultproxy.Proxy // a node's to the members
	h     *history
	r     *registers

	primary *node // in sync with the other, when no fault is being played
}

// fault is something that happens to a pair. play returns what is to be done
// when the heir serves (or whoever serves, where that is not the heir's), which
// may be nil, and how the fault ends.
type fault struct {
	name  string
	takes bool // the standby must take over
	play  func(l *life, old, heir *node) (served, heal func())
}

// linearFaults are those of ten rounds. What cuts the primary off from the witness alone
// changes nothing, and cut off from the standby alone it takes that out of the
// set.
var linearFaults = []fault{
	{"kill -9", true, (*life).kill},
	{"SIGSTOP past the lease, SIGCONT", true, (*life).stopCont},
	{"cut between the nodes", false, func(l *life, _, _ *node) (func(), func()) {
		l.proxy.Cut(faultproxy.Both)
		return nil, l.proxy.Heal
	}},
	{"kill -9, and of etcd's leader", true, func(l *life, old, heir *node) (func(), func()) {
		member := l.etcd.Members[l.etcd.Leader(l.t)]
		member.Kill()
		served, heal := l.kill(old, heir)
		return served, func() { member.Restart(l.t); heal() }
	}},
	{"cut, primary to standby", false, func(l *life, old, _ *node) (func(), func()) {
		l.proxy.Cut(l.way(old))
		return nil, l.proxy.Heal
	}},
	{"cut, primary from the witness", false, func(l *life, old, _ *node) (func(), func()) {
		l.cutWitness(old, faultproxy.Both)
		return nil, l.healAll
	}},
	{"cut, primary from both", true, func(l *life, old, _ *node) (func(), func()) {
		l.proxy.Cut(faultproxy.Both)
		l.cutWitness(old, faultproxy.Both)
		return nil, l.healAll
	}},
	{"SIGSTOP past the lease, SIGCONT", true, (*life).stopCont},
	{"cut, standby to primary", false, func(l *life, _, heir *node) (func(), func()) {
		l.proxy.Cut(l.way(heir))
		return nil, l.proxy.Heal
	}},
	{"cut, primary to both", true, func(l *life, old, _ *node) (func(), func()) {
		l.proxy.Cut(l.way(old))
		l.cutWitness(old, faultproxy.To)
		return nil, l.healAll
	}},
}

// way is the direction of what n sends to its peer; a has dialled.
func (l *life) way(n *node) faultproxy.Direction {
	if n == l.a {
		return faultproxy.To
	}
	return faultproxy.From
}

func (l *life) cutWitness(n *node, d faultproxy.Direction) {
	for _, p := range l.lines[n.name] {
		p.Cut(d)
	}
}

func (l *life) healAll() {
	l.proxy.Heal()
	for _, lines := range l.lines {
		for _, p := range lines {
			p.Heal()
		}
	}
}

func (l *life) kill(old, _ *node) (served, heal func()) {
	old.process.kill()
	return nil, func() { old.start() }
}

// stopCont has clients that stay with the stopped primary. Whatever they ask can
// be answered only after it goes on, and then another node has served: they must
// get an error, for a read as for a write.
func (l *life) stopCont(old, _ *node) (served, heal func()) {
	var asked sync.WaitGroup
	ctx, cancel := context.WithCancel(l.t.Context())
	var ask []func(when string)
	for i := range maxPinned {
		client, err := dialNBD(ctx, old)
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { client.Close() })
		number, block := registerClients+i, rand.Int64N(registerBlocks)
		if err := l.h.do(ctx, client, old.name, number, block, true); err != nil {
			l.t.Fatalf("a client that stays with %s: %v", old.name, err)
		}
		ask = append(ask, func(when string) {
			for i := range pinnedReads + 1 {
				// A read of what is being written would only wait for that.
				at := block
				if i > 0 {
					at = (block + 1 + rand.Int64N(registerBlocks-1)) % registerBlocks
				}
				asked.Go(func() {
					if err := l.h.do(ctx, client, old.name, number, at, i == 0); err == nil {
						l.t.Errorf("%s was stopped, and answered a request (write %v) sent %s another node served", old.name, i == 0, when)
					}
				})
			}
		})
	}
	old.freeze()
	for _, f := range ask {
		f("before")
	}
	l.r.leave(old.name)
	served = func() {
		for _, f := range ask {
			f("after")
		}
	}
	heal = func() {
		old.thaw()
		timer := time.AfterFunc(oldAnswerLimit, cancel)
		asked.Wait()
		if !timer.Stop() {
			l.t.Errorf("clients of %s were neither answered nor disconnected for %v after it went on", old.name, oldAnswerLimit)
		}
		cancel()
		l.r.leave("")
	}
	return served, heal
}

// Reads and writes of a pair are those of registers, whatever happens to it:
// killed, stopped, cut off, its witness losing members. Ten rounds with ten faults
// by default; TANDEM_ROUNDS=50 plays five such lives, with the faults shuffled,
// and TANDEM_REPORT=FOLDER keeps the times.
func TestLinearizable(t *testing.T) {
	rounds := len(linearFaults)
	if s := os.Getenv("TANDEM_ROUNDS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil || rounds <= 0 || rounds%len(linearFaults) != 0 {
			t.Fatalf("TANDEM_ROUNDS=%s: a multiple of %d is needed", s, len(linearFaults))
		}
	}
	var all []recovery
	for first := 0; first < rounds; first += len(linearFaults) {
		order := make([]int, len(linearFaults))
		for i := range order {
			order[i] = i
		}
		if rounds > len(linearFaults) {
			order = rand.Perm(len(linearFaults))
		}
		t.Run("rounds from "+strconv.Itoa(first+1), func(t *testing.T) {
			all = append(all, linearLife(t, first, order)...)
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("\n%s", recoveryTable(all))
	if dir := os.Getenv("TANDEM_REPORT"); dir != "" && !t.Failed() {
		if err := writeRecoveries(dir, all); err != nil {
			t.Error(err)
		}
	}
}

// newLife starts a pair, its etcd and its clients; bug is a mistake of the agents'
// or "".
func newLife(t *testing.T, bug string) *life {
	l := &life{t: t, etcd: etcdtest.Start(t, etcdtest.Options{Members: 3}), lines: make(map[string][]*faultproxy.Proxy)}
	for _, name := range []string{"a", "b"} {
		for _, host := range l.etcd.Hosts() {
			p, err := faultproxy.New(host)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { p.Close() })
			l.lines[name] = append(l.lines[name], p)
		}
	}
	l.cluster = newCluster(t, options{auto: true, proxied: true, freeze: linearFreeze, peerTimeout: 3 * time.Second, bug: bug,
		witness: l.etcd.URL("tandem/proc"),
		witnessOf: func(node string) string {
			var addrs []string
			for _, p := range l.lines[node] {
				addrs = append(addrs, p.Addr())
			}
			return "etcd://" + strings.Join(addrs, ",") + "/tandem/proc"
		}})
	l.startPair()
	l.h = &history{run: l.ledger.run}
	l.r = l.startRegisters(l.h)
	l.primary = l.a
	return l
}

func linearLife(t *testing.T, first int, order []int) (rows []recovery) {
	l := newLife(t, "")
	takeovers := 0
	for i, k := range order {
		old := l.primary
		row := l.round(first+i+1, linearFaults[k])
		rows = append(rows, row)
		t.Logf("round %d: %s: %s to %s, writes again after %v", row.round, row.fault, row.from, row.by, row.after.Round(time.Millisecond))
		if l.primary != old {
			takeovers++
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	l.end()
	answered, open := l.h.count()
	t.Logf("%d requests answered by registers, %d writes open for ever, %d takeovers", answered, open, takeovers)
	if takeovers < linearTakeovers || answered < linearOps {
		t.Errorf("only %d takeovers and %d answers", takeovers, answered)
	}
	if open == 0 {
		t.Error("no fault has met a write in flight")
	}
	l.h.judge(t)
	l.finish(l.primary)
	return rows
}

// round plays one fault to its end, with requests before it and while it lasts.
func (l *life) round(number int, f fault) recovery {
	l.t.Helper()
	old, heir, from := l.primary, l.other(l.primary), ""
	if f.takes {
		from = heir.name
	}
	l.r.more(linearOps / len(linearFaults) / 2)
	began := monotonic()
	served, heal := f.play(l, old, heir)
	var at int64
	var by string
	l.until(f.name+": a write is answered again", func() (ok bool) {
		l.r.check()
		at, by, ok = l.h.firstWrite(from, began)
		return ok
	})
	if served != nil {
		served()
	}
	l.r.more(linearOps / len(linearFaults) / 2)
	heal()
	l.primary = l.settledAt(len(l.nodes), l.nodes...)
	if f.takes && l.primary != heir {
		l.t.Errorf("round %d: %s serves in the end, not %s", number, l.primary.name, heir.name)
	}
	if n := l.h.answeredAfter(old.name, at); f.takes && n > 0 {
		l.t.Errorf("round %d: %s answered %d writes that were sent after %s had served", number, old.name, n, heir.name)
	}
	return recovery{round: number, fault: f.name, from: old.name, by: by, after: time.Duration(at - began)}
}

// end ends the clients. What is there in the end is part of the history.
func (l *life) end() {
	l.t.Helper()
	l.r.more(100)
	l.r.stop()
	l.r.check()
	client, err := dialNBD(l.t.Context(), l.primary)
	if err != nil {
		l.t.Fatal(err)
	}
	defer client.Close()
	for block := range int64(registerBlocks) {
		if err := l.h.do(l.t.Context(), client, l.primary.name, registerClients+maxPinned, block, false); err != nil {
			l.t.Fatal(err)
		}
	}
}

// Agents that acknowledge before their peer has the write are found out by the
// same clients and the same judge: a primary that reaches nobody loses what it
// acknowledged until its lease ran out.
func TestLinearizableMutant(t *testing.T) {
	l := newLife(t, "ack-before-peer")
	for _, f := range linearFaults {
		if f.name == "cut, primary from both" {
			l.round(1, f)
		}
	}
	l.end()
	if result := porcupine.CheckOperationsTimeout(registerModel, l.h.ops, checkLimit); result != porcupine.Illegal {
		t.Errorf("the history is %s: this test, and TestLinearizable, has no teeth", result)
	}
}

// The primary alone reaches nobody, for longer than failover.freeze: the standby
// takes over long before that, the old clients get errors at its end, and the old
// primary, which has demoted itself, follows when the cut is over.
func TestFreezeWhileReplaced(t *testing.T) {
	l := newLife(t, "")
	l.r.more(300)
	client, err := dialNBD(t.Context(), l.a)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	l.proxy.Cut(faultproxy.Both)
	l.cutWitness(l.a, faultproxy.Both)
	cut := monotonic()
	err = l.h.do(t.Context(), client, "a", registerClients, 0, true)
	took := time.Duration(monotonic() - cut)
	if err == nil || !gone(err) {
		t.Errorf("a write on a primary that reaches nobody ended with %v", err)
	}
	if took < linearFreeze || took > linearFreeze+lease+3*time.Second {
		t.Errorf("it ended %v after the cut: failover.freeze is %v, the lease %v", took, linearFreeze, lease)
	}
	at, _, ok := l.h.firstWrite("b", cut)
	if !ok || time.Duration(at-cut) > linearFreeze {
		t.Fatalf("b answered its first write %v after the cut (%v)", time.Duration(at-cut), ok)
	}
	t.Logf("b answered %v after the cut, a's client got %v after %v", time.Duration(at-cut).Round(time.Millisecond), err, took.Round(time.Millisecond))
	l.until("a has demoted itself", func() bool { return l.a.status().Role == "Secondary" })
	l.a.logged("no longer Primary", "frozen")
	l.healAll()
	l.primary = l.settledAt(len(l.nodes), l.nodes...)
	if l.primary != l.b {
		t.Errorf("%s serves in the end", l.primary.name)
	}
	if n := l.h.answeredAfter("a", at); n > 0 {
		t.Errorf("a answered %d writes that were sent after b had served", n)
	}
	l.end()
	l.h.judge(t)
	l.finish(l.primary)
}
