// Package demo runs a pair on this machine, kills its primary in the middle of
// writes, and says what was lost.
//
//	demo ─┬─ agent a ── TLS, loopback ── agent b      replctl agent, 1 GiB each
//	      └─ checker ──▶ NBD socket of the primary    replctl demo-checker
//	           └──▶ ledger: what was acknowledged
//
// Nothing is taken from the demo's own memory for the verdict: the ledger says
// what was acknowledged, the new primary's NBD socket what is there, the two
// images whether the copies are one.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tandem/agent/control"
	"tandem/agent/faultproxy"
)

// Options of Run.
type Options struct {
	JSON bool
	Keep string // folder that is kept, absent or empty before; "": a temporary one
	Exe  string // this program, whose hidden verbs agent and demo-checker are used
	Out  io.Writer
	Err  io.Writer // with JSON, the steps go here

	// Progress shows the agents' progress messages; nil: nobody wants them.
	Progress func(control.Message)

	// CutLink, for tests, is how long before the primary its link dies. What it
	// acknowledges then, nobody else has. (On loopback a write is with the peer
	// before its acknowledgement is with the client, whatever the agent does:
	// a bug there would show itself in one demo of many.)
	CutLink time.Duration
}

// Result is the object of --json.
type Result struct {
	Acknowledged    int   `json:"acknowledged"` // writes
	ReadBack        int   `json:"read_back"`    // of them
	Lost            int   `json:"lost"`         // of them
	WritableAfterMS int64 `json:"writable_after_ms"`
	ResyncedBytes   int64 `json:"resynced_bytes"` // that differed and travelled
	VolumeBytes     int64 `json:"volume_bytes"`
	Identical       bool  `json:"identical"`
}

// The times of the play. The user waits for all of them.
const (
	writeBefore = 2500 * time.Millisecond // both in sync, before the kill
	writeAlone  = 1500 * time.Millisecond // on the survivor, before the other comes back
	writeAfter  = 500 * time.Millisecond  // both in sync again

	// gentle is how many writes are in flight during the resync: it yields to
	// applications, and with maxInFlight they would rewrite most of what there
	// is to resync.
	gentle = 4

	// minWrites is what must be acknowledged before the kill, and alone, however slow the machine.
	minWrites = 200
	// limit is for a machine so slow, or an agent so stuck, that it is a failure.
	limit = 2 * time.Minute
	// stopLimit is for a process that was told to end.
	stopLimit = 20 * time.Second
)

// Run runs the demo. The error says which of its claims is untrue.
func Run(ctx context.Context, opts Options) error {
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &show{opts: opts, began: time.Now(), w: opts.Out}
	if opts.JSON {
		s.w = opts.Err
	}
	timer := time.AfterFunc(limit, func() { cancel(fmt.Errorf("not done after %v", limit)) })
	defer timer.Stop()

	err := s.run(ctx, cancel)
	switch {
	case outer.Err() != nil:
		err = errors.New("interrupted")
	case ctx.Err() != nil:
		err = context.Cause(ctx) // whatever failed, failed because of it
	}
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	return nil
}

// show is one performance.
type show struct {
	opts  Options
	began time.Time
	w     io.Writer // steps
	*pair
	family *family
	ledger string
	result Result
}

// step prints a line with the time since the start.
func (s *show) step(format string, args ...any) {
	fmt.Fprintf(s.w, "%5.1f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// progress shows what an agent says while it works.
func (s *show) progress(m control.Message) {
	switch {
	case len(m.Data) == 0 && m.Text != "":
		s.step("%s", m.Text)
	case s.opts.Progress != nil:
		s.opts.Progress(m)
	}
}

func (s *show) run(ctx context.Context, cancel context.CancelCauseFunc) (err error) {
	if s.pair, err = newPair(ctx, s.opts.Keep, s.opts.CutLink > 0); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.pair.end()) }()
	s.ledger = filepath.Join(s.dir, "ledger")
	if err := createLedger(s.ledger, rand.Uint64()); err != nil {
		return err
	}
	s.family = newFamily(s.opts.Exe, cancel)
	defer s.family.end()

	s.result.VolumeBytes = volumeSize
	if err := s.play(ctx); err != nil {
		return err
	}
	return s.verdict()
}

// play is the story; its errors are of what could not go on.
func (s *show) play(ctx context.Context) error {
	for _, act := range []func(context.Context) error{s.begin, s.killPrimary, s.comeBack, s.compare} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

// begin ends with a primary and a standby that is in sync.
func (s *show) begin(ctx context.Context) error {
	a, b := s.nodes[0], s.nodes[1]
	s.step("two nodes in %s: a volume of %s each, mutual TLS, a witness file, lease %.0f s",
		s.dir, formatBytes(volumeSize), a.cfg.Failover.Lease.Seconds())
	for _, n := range s.nodes {
		if err := s.startAgent(ctx, s.family, n); err != nil {
			return err
		}
	}
	text, err := a.call(ctx, "promote", nil, s.progress)
	if err != nil {
		return err
	}
	s.step("agents a and b run (pids %d, %d); %s", a.cmd.Process.Pid, b.cmd.Process.Pid, text)
	if text, err = s.waitSync(ctx, a); err != nil {
		return err
	}
	s.step("%s", text)
	return nil
}

// killPrimary ends with the standby as primary, and with everything read from it
// before anything else is written: later writes would hide what is lost.
func (s *show) killPrimary(ctx context.Context) error {
	a, b := s.nodes[0], s.nodes[1]
	writer, _, err := s.startWriter(maxInFlight, "--one-outage")
	if err != nil {
		return err
	}
	s.step("a checker writes through a, %d writes in flight, and enters each acknowledgement in a ledger", maxInFlight)
	h, err := s.written(ctx, writeBefore, minWrites)
	if err != nil {
		return err
	}
	if s.proxy != nil {
		s.proxy.Cut(faultproxy.Both)
		time.Sleep(s.opts.CutLink)
	}
	writer.mayEnd()
	killed, killedAt := monotonic(), time.Now()
	s.family.kill(a.child)
	if s.proxy != nil {
		s.proxy.Heal() // for a's return
	}
	s.step("SIGKILL to a after %s acknowledged writes", thousands(h.acknowledged()))
	if err := s.promoted(ctx, b); err != nil {
		return err
	}
	if err := s.family.ended(ctx, writer, stopLimit); err != nil {
		return err
	}
	if err := s.tellTakeover(ctx, b, killedAt); err != nil {
		return err
	}
	if h, err = readLedger(s.ledger); err != nil {
		return err
	}
	first, ok := h.firstAck(b.name)
	if !ok || h.retries == 0 {
		return errors.New("the kill hit no write in flight, so it proved nothing: run it again")
	}
	s.result.WritableAfterMS = (first - killed) / int64(time.Millisecond)
	s.step("b is writable %.1f s after the kill; the %d writes that were in flight went there", float64(s.result.WritableAfterMS)/1e3, h.retries)
	return s.readBack(ctx)
}

// promoted waits until n has made itself primary. Nobody tells it to.
func (s *show) promoted(ctx context.Context, n *node) error {
	lease := n.cfg.Failover.Lease
	for waited := false; ; waited = true {
		st, err := n.status(ctx)
		if err != nil {
			return err
		}
		if st.Role == "Primary" {
			return nil
		}
		if !waited {
			s.step("nobody is told: %s waits for the lease of %.0f s that it granted to run out, and some more", n.name, lease.Seconds())
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tellTakeover says where the time went between the kill and the first write.
func (s *show) tellTakeover(ctx context.Context, n *node, killed time.Time) error {
	st, err := n.status(ctx)
	if err != nil {
		return err
	}
	t := st.Takeover
	if t == nil || t.FirstWrite.IsZero() {
		return fmt.Errorf("%s does not say how it took over", n.name)
	}
	after := func(at time.Time) string { return fmt.Sprintf("%+.3f s", at.Sub(killed).Seconds()) }
	s.step("after the kill: last grant %s, lease run out and record read %s, record won %s, promoted %s, first write %s",
		after(t.LastGrant), after(t.Claimed), after(t.RecordWon), after(t.Promoted), after(t.FirstWrite))
	return nil
}

// comeBack has the survivor go on alone and the dead one come back under writes.
func (s *show) comeBack(ctx context.Context) error {
	a, b := s.nodes[0], s.nodes[1]
	writer, stop, err := s.startWriter(maxInFlight)
	if err != nil {
		return err
	}
	if _, err := s.written(ctx, writeAlone, minWrites); err != nil {
		return err
	}
	if err := s.stopWriter(ctx, writer, stop); err != nil {
		return err
	}
	if writer, stop, err = s.startWriter(gentle); err != nil {
		return err
	}
	if err := s.startAgent(ctx, s.family, a); err != nil {
		return err
	}
	s.step("a is started again (pid %d) while the checker writes through b", a.cmd.Process.Pid)
	text, err := s.waitSync(ctx, b)
	if err != nil {
		return err
	}
	if s.result.ResyncedBytes, err = b.metric(ctx, "tandem_resync_bytes_total"); err != nil {
		return err
	}
	s.step("%s; %s of %s were different", text, formatBytes(s.result.ResyncedBytes), formatBytes(volumeSize))
	if _, err := s.written(ctx, writeAfter, 1); err != nil {
		return err
	}
	if err := s.stopWriter(ctx, writer, stop); err != nil {
		return err
	}
	return s.readBack(ctx)
}

// compare stops both agents, as an administrator does, and compares what they leave.
func (s *show) compare(ctx context.Context) error {
	a, b := s.nodes[0], s.nodes[1]
	for _, n := range s.nodes {
		n.mayEnd()
		if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop agent %s: %w", n.name, err)
		}
	}
	for _, n := range s.nodes {
		if err := s.family.ended(ctx, n.child, stopLimit); err != nil {
			return err
		}
	}
	differ, err := compareImages(a.cfg.Volume.Device, b.cfg.Volume.Device, volumeSize)
	if err != nil {
		return fmt.Errorf("compare the images: %w", err)
	}
	s.result.Identical = differ < 0
	if differ >= 0 {
		s.step("both agents are stopped; their images differ at byte %d", differ)
	} else {
		s.step("both agents are stopped, their images compared")
	}
	return nil
}

// waitSync shows a resync and returns when all nodes are in sync.
func (s *show) waitSync(ctx context.Context, n *node) (string, error) {
	return n.call(ctx, "wait-sync", map[string]string{"timeout": "1m"}, s.progress)
}

// checker starts the checker.
func (s *show) checker(setup func(*exec.Cmd) error, args ...string) (*child, error) {
	args = append([]string{"demo-checker", "--ledger", s.ledger, "--export", cluster}, args...)
	for _, n := range s.nodes {
		args = append(args, n.name+"="+n.cfg.NBD.Socket)
	}
	return s.family.run("checker", filepath.Join(s.dir, "checker.log"), setup, args...)
}

// startWriter returns the checker that writes and what tells it to stop.
func (s *show) startWriter(depth int, args ...string) (c *child, stop io.Closer, err error) {
	c, err = s.checker(func(cmd *exec.Cmd) (err error) {
		stop, err = cmd.StdinPipe()
		return err
	}, append([]string{"--depth", strconv.Itoa(depth)}, args...)...)
	if err == nil {
		s.family.mustLive(c)
	}
	return c, stop, err
}

func (s *show) stopWriter(ctx context.Context, c *child, stop io.Closer) error {
	c.mayEnd()
	_ = stop.Close() // it fails only if the checker is gone, which ended says better
	return s.family.ended(ctx, c, drainTimeout+stopLimit)
}

// written returns when so much time has passed and so many more writes were
// acknowledged.
func (s *show) written(ctx context.Context, wait time.Duration, writes int) (*history, error) {
	before, err := readLedger(s.ledger)
	if err != nil {
		return nil, err
	}
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
		h, err := readLedger(s.ledger)
		if err != nil || h.acknowledged() >= before.acknowledged()+writes {
			return h, err
		}
		wait = 100 * time.Millisecond
	}
}

// readBack has the checker read everything and counts.
func (s *show) readBack(ctx context.Context) error {
	began := time.Now()
	c, err := s.checker(nil, "--read")
	if err != nil {
		return err
	}
	if err := s.family.ended(ctx, c, limit); err != nil {
		return err
	}
	h, err := readLedger(s.ledger)
	if err != nil {
		return err
	}
	if h.checked == 0 || h.checked != len(h.blocks) {
		return fmt.Errorf("the checker read %d of %d blocks", h.checked, len(h.blocks))
	}
	r := &s.result
	r.Acknowledged, r.Lost = h.acknowledged(), len(h.lost())
	r.ReadBack = r.Acknowledged - r.Lost
	s.step("read back in %.1f s: %s of %s acknowledged writes", time.Since(began).Seconds(), thousands(r.ReadBack), thousands(r.Acknowledged))
	return ctx.Err()
}

// verdict prints the last line and returns what of it is bad.
func (s *show) verdict() error {
	r := s.result
	copies := "identical"
	if !r.Identical {
		copies = "DIFFERENT"
	}
	if s.opts.JSON {
		if err := json.NewEncoder(s.opts.Out).Encode(r); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(s.w, "acknowledged %s · read back %s · lost %s · writable again after %.1f s (lease %.0f s) · resynced %s of %s · copies %s\n",
			thousands(r.Acknowledged), thousands(r.ReadBack), thousands(r.Lost), float64(r.WritableAfterMS)/1e3,
			s.nodes[0].cfg.Failover.Lease.Seconds(), formatBytes(r.ResyncedBytes), formatBytes(r.VolumeBytes), copies)
	}
	h, err := readLedger(s.ledger)
	if err != nil {
		return err
	}
	var wrong []string
	switch {
	case r.Lost > 0:
		wrong = append(wrong, fmt.Sprintf("%d acknowledged writes were lost, the first is write %d", r.Lost, h.lost()[0]))
	case len(h.bad) > 0:
		wrong = append(wrong, fmt.Sprintf("block %d holds what was never written there", h.bad[0].block))
	}
	if !r.Identical {
		wrong = append(wrong, "the two copies differ")
	}
	if bound := int64(2 * maxInFlight * pieces * pieceSize); r.ResyncedBytes <= 0 || r.ResyncedBytes > bound {
		wrong = append(wrong, fmt.Sprintf("%d bytes were resynced, which is not between 1 and %d", r.ResyncedBytes, bound))
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, ", and "))
	}
	return nil
}

// thousands writes 41212 as 41,212.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// formatBytes writes whole MiB, or GiB where they are whole.
func formatBytes(n int64) string {
	switch {
	case n >= 1<<30 && n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", (n+1<<19)>>20)
	}
	return fmt.Sprintf("%d KiB", (n+1<<9)>>10)
}
