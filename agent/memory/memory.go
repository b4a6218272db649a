// Package memory keeps an agent that the kernel writes back to from waiting for itself.
//
// The volume is the kernel's block device, with a filesystem and its page cache on top. When memory runs short, whoever
// allocates may have to wait until pages are written, to this device too. If that is the agent, it waits for a write that
// it has to serve itself, for ever. Three things together prevent that:
//
//   - PR_SET_IO_FLUSHER (Linux 5.6): allocations of such a thread never wait for writeback, and it is not slowed down for
//     dirtying pages. The flag belongs to a thread, and a thread has it from the one that started it, and over execve. Go
//     starts threads whenever it likes and some before main, so one thread sets it and becomes a new process by exec.
//   - mlockall: what is in memory stays there. A page of the program that was dropped would have to be read again.
//   - bounds: the buffers for payloads are reserved at the start (packages nbd, blockrepl/wire), GOMEMLIMIT and
//     OOMScoreAdjust are the unit's (deploy/).
//
// What the agent starts (steps, on_change) inherits the flag, which does it no harm.
package memory

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// marker is in the environment of the process that exec made, so that a kernel that drops the flag is not asked for ever.
const marker = "TANDEM_IO_FLUSHER"

// oomSafe is the oom_score_adj up to which other processes are killed first.
const oomSafe = -900

// system is what is asked of the kernel, about the calling thread and the process.
type system struct {
	flusher    func() (bool, error)
	setFlusher func() error
	exec       func(env []string) error // returns only when it fails
	mayLock    func() (bool, error)
	lock       func() error
	oomScore   func() (int, error)
}

// Protect does all of that, and says in the log what it could not do: the agent runs all the same, since without pressure
// on memory nothing of this matters. It may replace the process by itself, so it comes before anything is opened.
func Protect(log *slog.Logger) { protect(thisProcess(), log) }

func protect(s system, log *slog.Logger) {
	// The flag must be on the thread that execs.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := becomeFlusher(s); err != nil {
		log.Warn("PR_SET_IO_FLUSHER is not set: under memory pressure this agent may wait for its own writeback, for ever; run it as root, on Linux 5.6 or later", "err", err)
	}
	if err := lockMemory(s); err != nil {
		log.Warn("memory is not locked: under memory pressure the agent may have to wait for its own program to be read; run it as root, or with LimitMEMLOCK=infinity", "err", err)
	}
	if n, err := s.oomScore(); err != nil || n > oomSafe {
		log.Warn("when memory runs out the kernel may end this agent: set OOMScoreAdjust=-1000 in its unit", "oom_score_adj", n, "err", err)
	}
}

func becomeFlusher(s system) error {
	again := os.Getenv(marker) != ""
	if err := os.Unsetenv(marker); err != nil {
		return err
	}
	set, err := s.flusher()
	switch {
	case err != nil:
		return fmt.Errorf("prctl: %w", err)
	case set:
		return nil // from exec, or from whoever started us
	case again:
		return errors.New("the kernel drops it at exec")
	}
	if err := s.setFlusher(); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return fmt.Errorf("exec: %w", s.exec(append(os.Environ(), marker+"=1")))
}

// lockMemory locks pages as they are touched, not at once: Go reserves far more than it uses. Where the amount is limited
// it locks nothing, because from then on the heap could grow up to the limit only.
func lockMemory(s system) error {
	may, err := s.mayLock()
	if err != nil {
		return err
	}
	if !may {
		return errors.New("the limit of locked memory is finite, and CAP_IPC_LOCK is missing")
	}
	if err := s.lock(); err != nil {
		return fmt.Errorf("mlockall: %w", err)
	}
	return nil
}

func thisProcess() system {
	return system{
		flusher: func() (bool, error) {
			n, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
			return n == 1, err
		},
		setFlusher: func() error { return unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) },
		exec: func(env []string) error {
			self, err := os.Executable() // not /proc/self/exe: the process would be called exe
			if err != nil {
				return err
			}
			return unix.Exec(self, os.Args, env)
		},
		mayLock: mayLock,
		lock:    func() error { return unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT) },
		oomScore: func() (int, error) {
			b, err := os.ReadFile("/proc/self/oom_score_adj")
			if err != nil {
				return 0, err
			}
			return strconv.Atoi(strings.TrimSpace(string(b)))
		},
	}
}

func mayLock() (bool, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return false, err
	}
	if limit.Cur == unix.RLIM_INFINITY {
		return true, nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // the lower and upper 32 capabilities
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return false, err
	}
	return sets[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0, nil
}
