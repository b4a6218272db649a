package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tandem/agent/control"
)

// Planned moves, and agents that are killed and restarted, under an NFS client.
func moveScenarios() []Scenario {
	usual := pairOptions{fs: "ext4", version: "4.2"}
	one := func(id, name string, steps func(*mover) []step) Scenario {
		return pairScenario(id, name, 15*time.Minute, usual, func(p *pair) []step { return steps(&mover{pair: p}) })
	}
	return []Scenario{
		one("3-move", "planned moves to and fro under an NFS client: pauses, no error", (*mover).moveSteps),
		one("7-kill", "the primary's agent killed and restarted under an NFS client and fio verify: pauses, no error", (*mover).killSteps),
		quietly(one("7-restart", "the primary's agent restarted as by systemctl restart: pauses, no error", (*mover).restartSteps)),
	}
}

type mover struct {
	*pair
	load *load
	fio  chan error
	said strings.Builder // by fio
}

func (s *mover) begin(ctx context.Context) (err error) {
	if s.load, err = s.writeOnClient(ctx, 20); err != nil {
		return err
	}
	return s.steady(ctx)
}

func (s *mover) end(ctx context.Context) error { return s.finish(ctx, s.load) }

func (s *mover) moveSteps() []step {
	return []step{
		{"the client writes", s.begin},
		{"moves", s.moves},
		{"all is there, and alike", s.end},
	}
}

// movePause is the longest that a planned move may take, a client's own waits included.
const movePause = 20 * time.Second

func (s *mover) moves(ctx context.Context) error {
	var took []string
	for range 2 * s.rounds(3) { // there, and back
		old, heir := s.primary, s.standby
		st, err := old.status(ctx)
		if err != nil {
			return err
		}
		s.load.pauses.begin()
		if _, err := heir.ctl(ctx, "promote"); err != nil {
			return err
		}
		if err := s.leftNothing(ctx, old); err != nil {
			return err
		}
		if _, err := heir.until(ctx, time.Minute, "primary with every step up", func(now control.Status) bool { return up(now) && now.Epoch > st.Epoch }); err != nil {
			return err
		}
		if err := s.more(ctx, s.load, 5); err != nil {
			return err
		}
		pause := s.load.pauses.end()
		if pause >= movePause {
			return s.Assert(false, "a move was a pause of %.1f s, less than %v", pause.Seconds(), movePause)
		}
		took = append(took, fmt.Sprintf("%.1f", pause.Seconds()))
		if err := s.whole(ctx); err != nil {
			return err
		}
	}
	return s.Assert(true, "%d moves: nothing was left behind, pauses of %s s at the client, each less than %v", len(took), strings.Join(took, ", "), movePause)
}

func (s *mover) killSteps() []step {
	return []step{
		{"the client writes, and fio verifies", s.beginWithFio},
		{"kill -9 and restart", s.kills},
		{"fio has found no error", s.endFio},
		{"all is there, and alike", s.end},
	}
}

func (s *mover) restartSteps() []step {
	return []step{
		{"the client writes, and fio verifies", s.beginWithFio},
		{"SIGTERM and restart", s.terms},
		{"fio has found no error", s.endFio},
		{"all is there, and alike", s.end},
	}
}

func (s *mover) beginWithFio(ctx context.Context) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	dir := clientMount + "/fio-" + s.id
	if _, err := s.client.Shell(ctx, "rm -rf /run/enough "+dir+" && mkdir "+dir); err != nil {
		return err
	}
	s.fio = make(chan error, 1)
	go func() {
		// Each round writes all and reads all back, past the client's pages.
		s.fio <- s.client.Stream(ctx, "while [ ! -e /run/enough ]; do fio --name=verified --directory="+dir+" --size=4M --rw=randwrite --bsrange=4k-64k --ioengine=libaio --direct=1 --iodepth=4 "+
			"--verify=crc32c --verify_fatal=1 --verify_state_save=0 --end_fsync=1 --rate_iops=60 >/run/fio.out || { cat /run/fio.out >&2; exit 1; }; echo round; done; rm -r "+dir, &s.said)
	}()
	return nil
}

func (s *mover) endFio(ctx context.Context) error {
	if _, err := s.client.Shell(ctx, "touch /run/enough"); err != nil {
		return err
	}
	select {
	case err := <-s.fio:
		n := strings.Count(s.said.String(), "round")
		if err != nil || n == 0 {
			return fmt.Errorf("fio, after %d rounds: %w", n, err)
		}
		return s.Assert(true, "%d rounds of fio over NFS, each verified, without an error", n)
	case <-time.After(2 * time.Minute):
		return errors.New("fio does not end")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *mover) kills(ctx context.Context) error {
	return s.restarts(ctx, "KILL", s.rounds(3), killPause)
}
func (s *mover) terms(ctx context.Context) error { return s.restarts(ctx, "TERM", 10, termPause) }

// restarts ends the primary's agent and starts another as soon as it is gone. What the new
// program takes to begin is nothing on a machine and seconds in an emulated one.
func (s *mover) restarts(ctx context.Context, signal string, times int, limit time.Duration) error {
	var waited, begun []string
	n := s.primary
	before, err := n.status(ctx)
	if err != nil {
		return err
	}
	held, err := s.holds(ctx, n)
	if err != nil {
		return err
	}
	for i := range times {
		s.load.pauses.begin()
		if n.pid, err = n.Start(ctx, fmt.Sprintf("kill -%s %d; while kill -0 %[2]d 2>/dev/null; do sleep 0.02; done; echo $EPOCHREALTIME >/e2e/%[3]s/down; exec replagent --config %[4]s >>/e2e/%[3]s/agent.log 2>&1",
			signal, n.pid, n.Name, n.config())); err != nil {
			return err
		}
		if _, err := n.until(ctx, time.Minute, "primary again", func(st control.Status) bool { return up(st) && st.Epoch == before.Epoch+uint64(i)+1 }); err != nil {
			return err
		}
		if err := s.more(ctx, s.load, 5); err != nil {
			return err
		}
		pause := s.load.pauses.end()
		down, err := os.ReadFile(filepath.Join(n.dir(s.Lab), "down"))
		if err != nil {
			return err
		}
		log, err := n.logSince(s.Lab, 0)
		if err != nil {
			return err
		}
		began, err := beginning(string(down), log)
		if err != nil {
			return err
		}
		if pause-began >= limit {
			return s.Assert(false, "SIG%s and restart: a pause of %.1f s at the client, of which the program took %.1f s to begin: less than %v", signal, pause.Seconds(), began.Seconds(), limit)
		}
		waited, begun = append(waited, fmt.Sprintf("%.1f", pause.Seconds())), append(begun, fmt.Sprintf("%.1f", began.Seconds()))
		if err := s.calm(ctx, n); err != nil {
			return err
		}
		if now, err := s.holds(ctx, n); err != nil || now != held {
			return errors.Join(fmt.Errorf("after SIG%s and restart %s has %q, before it had %q", signal, n.Name, now, held), err)
		}
		if err := s.whole(ctx); err != nil {
			return err
		}
	}
	return s.Assert(s.primary == n, "SIG%s and restart, %d times: %s stayed primary, no I/O error, the device was taken back with its %d connections, mount, nfsd and the client's connection are those of before; "+
		"pauses of %s s at the client, of which the program took %s s to begin; less than %v without that",
		signal, times, n.Name, connections, strings.Join(waited, ", "), strings.Join(begun, ", "), limit)
}

// holds is what of the service outlives its agent: who attached the device, the mount's number, nfsd's threads, the
// client's connection. Each is another one after it has been made anew.
func (s *mover) holds(ctx context.Context, n *node) (string, error) {
	server, err := n.Shell(ctx, "cat /sys/block/nbd0/pid; awk '$5==\""+mountPoint+"\" {print $1}' /proc/self/mountinfo; pgrep -x nfsd | md5sum | head -c 8")
	if err != nil {
		return "", err
	}
	client, err := s.client.Shell(ctx, "ss -tnH state established dst "+serviceAddress+":2049 | awk '{print $3}'")
	if err != nil {
		return "", err
	}
	all := strings.Fields(server + " " + client)
	if len(all) != 4 {
		return "", fmt.Errorf("%s holds %q", n.Name, all)
	}
	return strings.Join(all, " "), nil
}

// calm asserts that the server's kernel has seen no error, and has all its connections.
func (s *mover) calm(ctx context.Context, n *node) error {
	out, err := n.Shell(ctx, "dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|aborted journal|lost .*write' | head -5; ss -xH state connected src "+n.socket()+" | wc -l")
	if err != nil {
		return err
	}
	if out != fmt.Sprint(connections) {
		return fmt.Errorf("%s: errors of the kernel and connections of the device: %s", n.Name, out)
	}
	return nil
}
