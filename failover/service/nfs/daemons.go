package nfs

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"tandem/failover/service"
)

const (
	recorder = "nfsdcld"    // writes down the clients
	gate     = "rpc.mountd" // tells the kernel who may mount what, for all versions
)

// ErrRecorder means that the clients would be written down on this machine alone.
var ErrRecorder = errors.New("nfsdcld runs already, for another folder: clients could not reclaim their locks from another node")

// process is a running program.
type process struct {
	pid  int
	argv []string
}

// daemons starts what the server needs and is not there. They put themselves into the background.
func (s *Server) daemons(ctx context.Context, state string) error {
	all, err := s.host.processes(recorder)
	if err != nil {
		return err
	}
	if at := slices.IndexFunc(all, func(p process) bool { return !slices.Contains(p.argv, state) }); at >= 0 {
		return fmt.Errorf("%w: %w: systemctl disable --now nfs-server; systemctl mask --now nfsdcld (process %d: %s)",
			service.ErrHopeless, ErrRecorder, all[at].pid, strings.Join(all[at].argv, " "))
	}
	if len(all) == 0 {
		pipes, err := s.pipes()
		if err != nil {
			return err
		}
		if err := s.host.run(ctx, recorder, "-p", pipes, "-s", state); err != nil {
			return fmt.Errorf("start what writes down the clients: %w", err)
		}
	}
	if err := s.watch(ctx, strings.TrimSuffix(state, "/"+stateFolder)); err != nil {
		return err
	}
	if all, err = s.host.processes(gate); err != nil {
		return err
	}
	argv := s.gateArgs()
	if s.v3() {
		// One that serves version 4 alone, or at another port, is of no use. It holds nothing.
		other := slices.DeleteFunc(all, func(p process) bool {
			return slices.Contains(p.argv, argv[len(argv)-1]) && !slices.Contains(p.argv, "--no-nfs-version")
		})
		if len(other) > 0 {
			if err := s.end(ctx, gate, func(p process) bool { return p.pid == other[0].pid }); err != nil {
				return err
			}
			all = nil
		}
	}
	if len(all) > 0 {
		return nil
	}
	if err := s.host.run(ctx, argv...); err != nil {
		return fmt.Errorf("start what answers for exports: %w", err)
	}
	return nil
}

// endRecorder ends our nfsdcld, which has its database on the volume open, and what version 3
// has there. The mount may be gone, and the folder with it, so they are known by the note;
// without one, by their names.
func (s *Server) endRecorder(ctx context.Context, note string, ours bool) error {
	_, state, _ := strings.Cut(strings.TrimSpace(note), " state=")
	root := strings.TrimSuffix(state, "/"+stateFolder)
	isIts := func(p process) bool {
		return slices.ContainsFunc(p.argv, func(a string) bool {
			if ours {
				return a == state || a == path.Join(root, statdFolder)
			}
			return s.mayHold(a)
		})
	}
	for _, name := range []string{recorder, watcher} {
		if err := s.end(ctx, name, isIts); err != nil {
			return err
		}
	}
	return nil
}

// end ends the processes of this name that are its.
func (s *Server) end(ctx context.Context, name string, isIts func(process) bool) error {
	for told := false; ; told = true {
		all, err := s.host.processes(name)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(p process) bool { return !isIts(p) })
		if len(all) == 0 {
			return nil
		}
		for _, p := range all {
			if told {
				break
			}
			if err := s.host.terminate(p); err != nil {
				return fmt.Errorf("end process %d (%s): %w", p.pid, name, err)
			}
		}
		if !pause(ctx, again) {
			return fmt.Errorf("process %d (%s) does not end: %w", all[0].pid, name, context.Cause(ctx))
		}
	}
}

// mayHold says whether a folder is one that state could have returned for this path.
func (s *Server) mayHold(folder string) bool {
	for _, known := range []string{stateFolder, statdFolder} {
		root, ok := strings.CutSuffix(folder, "/"+known)
		if ok && (s.cfg.Path == root || strings.HasPrefix(s.cfg.Path, strings.TrimSuffix(root, "/")+"/")) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
