package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"tandem/agent"
)

// The programs are built from the module's sources. Naming agent.Run here makes
// the go command run the tests again, and not show a cached result, when the
// agent has changed.
var _ = agent.Run

// programs are the paths of the executables under test.
var programs struct{ dir, agent, ctl string }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tandem-proctest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs.dir = dir
	programs.agent, programs.ctl = filepath.Join(dir, "replagent"), filepath.Join(dir, "replctl")
	if err := build("", dir+"/", "tandem/cmd/replagent", "tandem/cmd/replctl"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go runSpawn()
	return m.Run()
}

func build(tags, to string, packages ...string) error {
	args := append([]string{"build", "-tags", tags, "-o", to}, packages...)
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("go %v: %w\n%s", args, err, out)
	}
	return nil
}

// faultAgent and mutantAgent are replagent with the tags of those names, built when
// the first test wants one.
var (
	faultAgent  = sync.OnceValues(func() (string, error) { return taggedAgent("faults") })
	mutantAgent = sync.OnceValues(func() (string, error) { return taggedAgent("mutant") })
)

func taggedAgent(tag string) (string, error) {
	path := filepath.Join(programs.dir, "replagent-"+tag)
	return path, build(tag, path, "tandem/cmd/replagent")
}

// spawn hands a process to the one thread that starts them all.
var spawn = make(chan func())

// runSpawn lives as long as the test binary: the kernel sends a parent-death
// signal when the *thread* ends that forked, not the process.
func runSpawn() {
	runtime.LockOSThread()
	for start := range spawn {
		start()
	}
}
