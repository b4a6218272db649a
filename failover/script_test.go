package failover

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tandem/failover/record"
)

var update = flag.Bool("update", false, "write what the scripts print into testdata")

// TestScripts plays testdata/*.txt: a line that begins with ">" is an input, the
// indented lines after it are all the effects that it has. "> at 12.5" ticks at
// every deadline up to then. The files named trace… are the traces of
// ../shared/protocol-review.md by their numbers, those that concern this core.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b), NoBug)
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(b) {
				t.Errorf("the trace differs; got\n%s", diff(string(b), got))
			}
		})
	}
}

// diff shows the lines around the first difference.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	return fmt.Sprintf("line %d\nwant\n%s\ngot\n%s", i+1, strings.Join(w[max(0, i-3):min(len(w), i+4)], "\n"), strings.Join(g[max(0, i-3):min(len(g), i+6)], "\n"))
}

type player struct {
	t       *testing.T
	c       *Core
	cfg     Config
	hard    HardState
	now     int64
	waiting [MaxPeers]bool
	pending bool
	tags    map[EffectKind]uint64
	out     strings.Builder
}

// play runs a script and returns it with the effects that it really has.
func play(t *testing.T, script string, bug Bug) string {
	n := uint64(1000)
	p := &player{t: t, now: 100 * second, tags: map[EffectKind]uint64{}, cfg: Config{
		Self: "a", Cluster: "nfs1", DiskID: 101, Peers: []string{"b"}, Heartbeat: second / 2, Lease: 3 * second, Freeze: 30 * second,
		Rand: func() uint64 { n++; return n }, Bug: bug,
	}}
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue
		}
		fmt.Fprintln(&p.out, line)
		if in, ok := strings.CutPrefix(line, "> "); ok {
			p.input(strings.Fields(in))
		}
	}
	return p.out.String()
}

func (p *player) flush(at bool) {
	for _, e := range p.c.Effects() {
		if e.Tag != 0 {
			p.tags[e.Kind] = e.Tag
		}
		when := ""
		if at {
			when = fmt.Sprintf("%.1f: ", float64(p.now)/1e9)
		}
		fmt.Fprintf(&p.out, "  %s%s\n", when, formatEffect(p.cfg.Peers, e))
	}
}

func (p *player) input(f []string) {
	verb, args := f[0], f[1:]
	kv := map[string]string{}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		kv[k] = v
	}
	has := func(k string) bool { _, ok := kv[k]; return ok }
	u := func(k string) uint64 { v, _ := strconv.ParseUint(kv[k], 10, 64); return v }
	d := func(k string) int64 { v, _ := time.ParseDuration(kv[k]); return int64(v) }
	rest := func(i int) error {
		if len(args) > i && args[i] == "error" {
			return errors.New(strings.Join(args[i+1:], " "))
		}
		return nil
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	peer := func() int { return slices.Index(p.cfg.Peers, arg(0)) }
	num := func(i int) uint64 { v, _ := strconv.ParseUint(arg(i), 10, 64); return v }
	if p.c == nil && verb != "config" && verb != "hard" {
		p.c = New(p.cfg, p.hard)
	}
	c, now := p.c, p.now
	switch verb {
	case "config":
		p.cfg.Auto, p.cfg.Prefer, p.cfg.Restart = has("auto"), kv["prefer"], d("restart")
		if has("self") {
			p.cfg.Self = kv["self"]
			p.cfg.DiskID = 100 + uint64(p.cfg.Self[0]-'a') + 1
		}
		if has("peers") {
			p.cfg.Peers = strings.Split(kv["peers"], ",")
		}
		return
	case "hard":
		p.hard = HardState{ClusterID: 77, Epoch: u("epoch"), Served: u("served"), LongestG: d("longest"), Serial: u("serial"), Marked: has("marked")}
		return
	case "at":
		end, err := strconv.ParseFloat(arg(0), 64)
		if err != nil {
			p.t.Fatal(err)
		}
		target := int64(end*1000) * millisecond
		for c.Deadline() <= target {
			if c.Deadline() <= p.now {
				p.t.Fatalf("deadline %d at %d", c.Deadline(), p.now)
			}
			p.now = c.Deadline()
			c.Tick(p.now, p.waiting, p.pending)
			p.flush(true)
		}
		p.now = target
		c.Tick(p.now, p.waiting, p.pending)
		p.flush(true)
		return
	case "start":
		c.Start(now, has("same"), has("volatile"))
	case "copy":
		c.Copy(now, !has("inconsistent"), u("gen"), u("proposed"), has("stale"))
	case "tick":
		p.waiting, p.pending = [MaxPeers]bool{}, has("pending")
		for i, n := range p.cfg.Peers {
			p.waiting[i] = slices.Contains(strings.Split(kv["waiting"], ","), n)
		}
		c.Tick(now, p.waiting, p.pending)
	case "hello":
		c.Hello(now, peer(), PeerInfo{Epoch: u("epoch"), Serving: has("serving"), Marked: has("marked"), Usable: !has("unusable"),
			DiskID: 101 + uint64(arg(0)[0]-'a') + u("disk"), Replaces: u("replaces")})
	case "established":
		c.Established(now, peer())
	case "down":
		c.LinkDown(now, peer())
	case "caughtup":
		c.CaughtUp(now, peer())
	case "mustleave":
		c.MustLeave(now, peer(), strings.Join(args[1:], " "))
	case "recv":
		m := Msg{N: u("N"), Epoch: u("epoch"), L: d("L"), G: d("G"), Text: strings.ReplaceAll(kv["text"], "_", " ")}
		for k := LeaseRequest; k <= News; k++ {
			if k.String() == arg(1) {
				m.Kind = k
			}
		}
		if m, err := DecodeMsg(AppendMsg(nil, m)); err != nil {
			p.t.Fatal(m, err)
		}
		c.Recv(now, peer(), m)
	case "read":
		tag := p.tags[Read]
		if err := rest(0); err != nil {
			c.ReadDone(now, tag, nil, "", err)
		} else if has("absent") {
			c.ReadDone(now, tag, nil, "", nil)
		} else {
			r := &Record{Version: record.Version, Cluster: "nfs1", ClusterID: 77, Serial: u("serial"), Epoch: u("epoch"), Primary: kv["primary"],
				InSync: strings.Split(kv["set"], ","), Generation: u("gen"), Nonce: u("nonce"), ChangedBy: kv["primary"]}
			if has("id") {
				r.ClusterID = u("id")
			}
			if has("paused") {
				r.Paused = &record.Paused{By: "b"}
			}
			for _, n := range []string{"a", "b", "c"} {
				if n == p.cfg.Self || slices.Contains(p.cfg.Peers, n) {
					r.Members = append(r.Members, record.Member{Node: n, DiskID: 101 + uint64(n[0]-'a')})
				}
			}
			c.ReadDone(now, tag, r, "v"+kv["serial"], nil)
		}
	case "cas":
		o := map[string]Outcome{"won": Won, "conflict": Conflict, "unknown": Unknown}[arg(0)]
		c.CASDone(now, p.tags[CAS], o, arg(1))
	case "persisted":
		c.Persisted(now, p.tags[Persist])
	case "prepared":
		i := 1
		q := slices.Index(p.cfg.Peers, arg(1))
		if q >= 0 {
			i = 2
		}
		for ch := Create; ch <= Grow; ch++ {
			if ch.String() == arg(0) {
				c.Prepared(now, ch, q, num(i), rest(i))
			}
		}
	case "began":
		c.Began(now)
	case "quiesced":
		c.Quiesced(now, rest(0))
	case "diskfailed":
		c.DiskFailed(now, strings.Join(args, " "))
	case "unmark":
		c.Unmark(now)
	case "promote":
		c.Promote(now, num(0), has("force"), has("off"))
	case "demote":
		c.Demote(now, num(0))
	case "giveway":
		fmt.Fprintf(&p.out, "  = %v\n", c.GiveWay(now, strings.Join(args, " ")))
	case "fit":
		c.Fit()
	case "pause":
		c.Pause(now, num(0))
	case "resume":
		c.Resume(now, num(0))
	case "forget":
		c.Forget(now, num(0), arg(1))
	case "cancel":
		c.Cancel(num(0))
	case "shutdown":
		d, _ := time.ParseDuration(arg(0))
		c.Shutdown(now, int64(d))
	case "state":
		r, trouble := c.Record()
		set := "none"
		if r != nil {
			set = strings.Join(r.InSync, ",")
		}
		fmt.Fprintf(&p.out, "  = %v epoch %d counted %03b record %s trouble %v\n", c.Role(), c.Epoch(), c.Counted(), set, trouble)
	default:
		p.t.Fatalf("unknown input %q", verb)
	}
	p.flush(false)
}
