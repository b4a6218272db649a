package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"tandem/agent/control"
	"tandem/nbd"
)

const (
	// moveLimit is for how long a planned move may keep clients waiting.
	moveLimit = time.Second

	takeoverSize = 64 << 20
	writeSize    = 4096
	clients      = 4
	// retryAfter is how soon a client dials again when nobody serves.
	retryAfter = 20 * time.Millisecond
	// breath is how long clients write before the next kill or move.
	breath = 500 * time.Millisecond
)

// takeoverOptions is the command line of `bench takeover`.
type takeoverOptions struct {
	bin, dir string
	rounds   int
	moves    int
	lease    time.Duration
	limit    time.Duration // from a kill to the first write
}

// parseTakeover returns the options, or the status to exit with.
func parseTakeover(args []string, stderr io.Writer) (takeoverOptions, int) {
	var o takeoverOptions
	f := flag.NewFlagSet("bench takeover", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.IntVar(&o.rounds, "rounds", 20, "how often the primary is killed")
	f.IntVar(&o.moves, "moves", 10, "how often the service is moved by promote")
	f.DurationVar(&o.lease, "lease", 3*time.Second, "failover.lease; 3s is the default failover block as it is")
	f.DurationVar(&o.limit, "limit", 0, "how long the worst takeover may take: 0 is 6s with a lease of 3s, 3s with one of 1s, and as much in proportion")
	f.StringVar(&o.bin, "bin", "bin", "the folder of replagent and replctl")
	f.StringVar(&o.dir, "dir", "/dev/shm", "a folder on tmpfs, to work in")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return o, 0
	} else if err != nil {
		return o, 2
	}
	if o.limit == 0 {
		o.limit = (3*o.lease + 3*time.Second) / 2
	}
	switch {
	case f.NArg() > 0:
		fmt.Fprintf(stderr, "bench takeover: there are no arguments, and %q is one\n", f.Arg(0))
	case o.rounds < 0, o.moves < 0, o.rounds+o.moves == 0, o.lease < 100*time.Millisecond, o.limit < o.lease:
		fmt.Fprintln(stderr, "bench takeover: a kill or a move, a lease of 100ms or more and a limit above it are needed")
	default:
		return o, -1
	}
	return o, 2
}

// timings is what takeover has measured.
type timings struct {
	kills []kill
	moves []time.Duration // the pause of each
}

// kill is one round.
type kill struct {
	node, heir string
	phases     control.Takeover
	at         time.Time     // of the SIGKILL
	writable   time.Duration // from there to the first write that a client completed
}

// takeover kills the primary and moves the service, in rounds, under clients
// that do nothing but try again. It is an error if one of the times is above its
// limit, or if the copies differ at the end.
func takeover(ctx context.Context, o takeoverOptions, stdout io.Writer) (t timings, err error) {
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return t, err
	}
	dir, err := os.MkdirTemp(o.dir, "tandem-takeover-")
	if err != nil {
		return t, err
	}
	defer os.RemoveAll(dir)
	s := &server{name: "tandem", mirrored: true, tls: true}
	block := "the default failover block"
	if o.lease != 3*time.Second {
		s.failover = fmt.Sprintf("failover: {lease: %v}\n", o.lease)
		block = fmt.Sprintf("failover: {lease: %v}", o.lease)
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx, options{bin: o.bin, size: takeoverSize}, filepath.Join(dir, "pair")); err != nil {
		return t, err
	}
	fmt.Fprintf(stdout, "%s, %d clients that write and try again after %v, %d cores, load average %s\n\n", block, clients, retryAfter, runtime.NumCPU(), loadAverage())

	w := startWriters(ctx, s.dir)
	err = t.measure(ctx, s, w, o)
	err = errors.Join(err, w.stop())
	if err != nil {
		return t, err
	}
	t.print(stdout, o)
	if err := s.stop(); err != nil {
		return t, err
	}
	if err := s.compare(); err != nil {
		return t, err
	}
	fmt.Fprintf(stdout, "copies identical · load average %s\n", loadAverage())
	err = t.tooLong(o)
	return t, err
}

func (t *timings) measure(ctx context.Context, s *server, w *writers, o takeoverOptions) error {
	primary, heir := "a", "b"
	for range o.moves {
		if err := pause(ctx, breath); err != nil {
			return err
		}
		w.expect(heir)
		if err := s.ctl(ctx, "--config", s.config(heir), "promote"); err != nil {
			return err
		}
		last, first, err := w.wait(ctx)
		if err != nil {
			return err
		}
		t.moves = append(t.moves, first.Sub(last))
		if err := s.whole(ctx, heir); err != nil {
			return err
		}
		primary, heir = heir, primary
	}
	for range o.rounds {
		if err := pause(ctx, breath); err != nil {
			return err
		}
		w.expect(heir)
		k := kill{node: primary, heir: heir, at: time.Now()}
		if err := s.kill(primary); err != nil {
			return err
		}
		_, first, err := w.wait(ctx)
		if err != nil {
			return err
		}
		k.writable = first.Sub(k.at)
		status, err := s.status(ctx, heir)
		if err != nil {
			return err
		}
		if status.Takeover == nil || status.Takeover.FirstWrite.IsZero() {
			return fmt.Errorf("%s serves and does not say how it took over", heir)
		}
		k.phases = *status.Takeover
		t.kills = append(t.kills, k)
		if err := s.spawnAgent(primary); err != nil {
			return err
		}
		if err := s.whole(ctx, heir); err != nil {
			return err
		}
		primary, heir = heir, primary
	}
	return nil
}

// whole waits until the primary has its peer in the set.
func (s *server) whole(ctx context.Context, primary string) error {
	return s.ctl(ctx, "--config", s.config(primary), "wait-sync", "--timeout", patience.String())
}

func (s *server) status(ctx context.Context, node string) (st control.Status, err error) {
	out, err := s.ctlOutput(ctx, "--config", s.config(node), "status", "--json")
	if err != nil {
		return st, err
	}
	err = json.Unmarshal(out, &st)
	return st, err
}

func (t *timings) print(out io.Writer, o takeoverOptions) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(t.kills) > 0 {
		fmt.Fprintln(w, "kill\tof\their\tlast grant\tclaimed\trecord won\tpromoted\tfirst write\tclient's write")
		for i, k := range t.kills {
			after := func(at time.Time) string { return fmt.Sprintf("%+.3f s", at.Sub(k.at).Seconds()) }
			p := k.phases
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%+.3f s\n", i+1, k.node, k.heir,
				after(p.LastGrant), after(p.Claimed), after(p.RecordWon), after(p.Promoted), after(p.FirstWrite), k.writable.Seconds())
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	if len(t.moves) > 0 {
		var pauses []string
		for _, d := range t.moves {
			pauses = append(pauses, fmt.Sprintf("%.3f", d.Seconds()))
		}
		fmt.Fprintf(out, "moves paused writes for (s): %s\n\n", strings.Join(pauses, " "))
	}
	if len(t.kills) > 0 {
		s := spreadOf(t.writable())
		fmt.Fprintf(out, "%d kills: writable again after %.2f s (median), %.2f s at worst; allowed are %.1f s\n", len(t.kills), s.Median, s.Max, o.limit.Seconds())
	}
	if len(t.moves) > 0 {
		s := spreadOf(seconds(t.moves))
		fmt.Fprintf(out, "%d moves: a pause of %.3f s (median), %.3f s at worst; allowed are %.1f s\n", len(t.moves), s.Median, s.Max, moveLimit.Seconds())
	}
}

func (t *timings) writable() (v []float64) {
	for _, k := range t.kills {
		v = append(v, k.writable.Seconds())
	}
	return v
}

// tooLong is the error of the times that are above their limits.
func (t *timings) tooLong(o takeoverOptions) error {
	var errs []error
	for i, k := range t.kills {
		if k.writable >= o.limit {
			errs = append(errs, fmt.Errorf("kill %d: writable again only after %v, allowed are %v", i+1, k.writable.Round(time.Millisecond), o.limit))
		}
	}
	for i, d := range t.moves {
		if d >= moveLimit {
			errs = append(errs, fmt.Errorf("move %d: writes paused for %v, allowed are %v", i+1, d.Round(time.Millisecond), moveLimit))
		}
	}
	return errors.Join(errs...)
}

func seconds(d []time.Duration) (v []float64) {
	for _, d := range d {
		v = append(v, d.Seconds())
	}
	return v
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) > 0 {
		return f[0]
	}
	return "unknown"
}

// writers are the clients. Each writes one block after the other to whichever
// node takes it, and knows nothing of takeovers.
type writers struct {
	dir    string
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	err   error                // the first answer that is no outage
	heir  string               // whose first write is waited for
	last  map[string]time.Time // a node's last completed write; not the heir's
	first time.Time            // the heir's first
	news  chan struct{}        // closed when there is that, or an error
}

func startWriters(ctx context.Context, dir string) *writers {
	ctx, cancel := context.WithCancel(ctx)
	w := &writers{dir: dir, cancel: cancel, last: make(map[string]time.Time), news: make(chan struct{})}
	for i := range clients {
		w.wg.Go(func() { w.runWriter(ctx, int64(i)) })
	}
	return w
}

// stop ends the clients and returns what they met.
func (w *writers) stop() error {
	w.cancel()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// expect says whose write the next wait is for.
func (w *writers) expect(heir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heir, w.first = heir, time.Time{}
	w.news = make(chan struct{})
}

// wait returns when the last write before the heir's first one was completed,
// and when that was.
func (w *writers) wait(ctx context.Context) (last, first time.Time, err error) {
	w.mu.Lock()
	news := w.news
	w.mu.Unlock()
	select {
	case <-ctx.Done():
		return last, first, ctx.Err()
	case <-time.After(patience):
		return last, first, fmt.Errorf("no write was completed on the heir within %v", patience)
	case <-news:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for node, at := range w.last {
		if node != w.heir && at.After(last) {
			last = at
		}
	}
	return last, w.first, w.err
}

func (w *writers) completed(node string, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting := w.heir != "" && w.first.IsZero()
	switch {
	case waiting && node == w.heir:
		w.first = at
		w.tell()
	case at.After(w.last[node]):
		w.last[node] = at
	}
}

// tell closes news. The mutex is held.
func (w *writers) tell() {
	select {
	case <-w.news:
	default:
		close(w.news)
	}
}

func (w *writers) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.tell()
}

// runWriter is one client, with every clients-th block of the volume for itself.
func (w *writers) runWriter(ctx context.Context, number int64) {
	block := make([]byte, writeSize)
	for n := int64(0); ctx.Err() == nil; {
		client, node, err := w.dial(ctx)
		if err != nil {
			return // only the end of ctx ends a dial
		}
		for err == nil {
			n++
			for i := range block {
				block[i] = byte(n + number)
			}
			off := (n*clients + number) * writeSize % takeoverSize
			if err = client.WriteAt(ctx, block, off, false); err == nil {
				w.completed(node, time.Now())
			}
		}
		client.Close()
		if ctx.Err() == nil && !errors.Is(err, nbd.ErrClosed) && !errors.Is(err, nbd.ESHUTDOWN) {
			w.fail(fmt.Errorf("write on %s: %w", node, err))
			return
		}
	}
}

func (w *writers) dial(ctx context.Context) (*nbd.Client, string, error) {
	for {
		for _, node := range []string{"a", "b"} {
			client, err := nbd.Dial(ctx, "unix", filepath.Join(w.dir, node+".nbd"), "bench", nbd.ClientOptions{})
			if err == nil {
				return client, node, nil
			}
		}
		if err := pause(ctx, retryAfter); err != nil {
			return nil, "", err
		}
	}
}
