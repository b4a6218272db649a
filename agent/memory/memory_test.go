package memory

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var errExeced = errors.New("exec returned")

// fake is a kernel that notes what it was asked for.
type fake struct {
	flag    bool
	refuses error // of the flag
	limited bool
	locks   error
	oom     int
	did     []string
	env     []string
}

func (f *fake) system() system {
	return system{
		flusher:    func() (bool, error) { return f.flag, f.refuses },
		setFlusher: func() error { f.did = append(f.did, "set"); return nil },
		exec: func(env []string) error {
			f.did, f.env = append(f.did, "exec"), env
			return errExeced
		},
		mayLock:  func() (bool, error) { return !f.limited, nil },
		lock:     func() error { f.did = append(f.did, "lock"); return f.locks },
		oomScore: func() (int, error) { return f.oom, nil },
	}
}

func TestProtect(t *testing.T) {
	const (
		flusher = "PR_SET_IO_FLUSHER is not set"
		locked  = "memory is not locked"
		oom     = "OOMScoreAdjust=-1000"
	)
	for _, tt := range []struct {
		name   string
		kernel fake
		again  bool // it is the process that exec made
		did    string
		warns  []string
	}{
		{"the first process execs itself", fake{oom: -1000}, false, "set exec lock", []string{flusher}}, // our exec returns
		{"the second has the flag", fake{flag: true, oom: -1000}, true, "lock", nil},
		{"it was started with the flag", fake{flag: true, oom: -1000}, false, "lock", nil},
		{"a kernel that drops it is not asked again", fake{oom: -1000}, true, "lock", []string{flusher}},
		{"without the right", fake{refuses: unix.EPERM, oom: -1000}, false, "lock", []string{flusher}},
		{"a kernel that does not know it", fake{refuses: unix.EINVAL, oom: -1000}, false, "lock", []string{flusher}},
		{"a limit would end the heap's growth", fake{flag: true, limited: true, oom: -1000}, false, "", []string{locked}},
		{"locking fails", fake{flag: true, locks: unix.ENOMEM, oom: -1000}, false, "lock", []string{locked}},
		{"no unit", fake{refuses: unix.EPERM, limited: true}, false, "", []string{flusher, locked, oom}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(marker, "") // restored afterwards
			if tt.again {
				t.Setenv(marker, "1")
			}
			var log bytes.Buffer
			protect(tt.kernel.system(), slog.New(slog.NewTextHandler(&log, nil)))
			if got := strings.Join(tt.kernel.did, " "); got != tt.did {
				t.Errorf("it did %q, want %q", got, tt.did)
			}
			if slices.Contains(tt.kernel.did, "exec") != slices.Contains(tt.kernel.env, marker+"=1") {
				t.Errorf("the environment of exec: %q", tt.kernel.env)
			}
			for _, w := range []string{flusher, locked, oom} {
				if strings.Contains(log.String(), w) != slices.Contains(tt.warns, w) {
					t.Errorf("the log: %s", &log)
				}
			}
			if _, left := os.LookupEnv(marker); left {
				t.Error("the marker is left for what the agent starts")
			}
		})
	}
}

// TestThisProcess asks the real kernel what may be asked without changing anything: a test must not exec itself.
func TestThisProcess(t *testing.T) {
	s := thisProcess()
	if _, err := s.mayLock(); err != nil {
		t.Errorf("may it lock memory: %v", err)
	}
	if n, err := s.oomScore(); err != nil || n < -1000 || n > 1000 {
		t.Errorf("oom_score_adj %d, %v", n, err)
	}
	if set, err := s.flusher(); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) || set {
		t.Errorf("flusher %v, %v", set, err)
	}
}
