package vm

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// process is a child in the foreground. It is signalled only before it has been
// waited for, so its pid cannot be somebody else's.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended and been waited for
}

// startProcess starts argv with its output appended to a log.
func startProcess(log string, argv ...string) (*process, error) {
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	// A terminal's Ctrl-C is for the harness, which then stops what it started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd, log, make(chan struct{})}
	go func() { // runReap
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// signal is refused by the os package once the process has been waited for.
func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// kill returns when it is dead.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// lastWords explains an end that nobody asked for.
func (p *process) lastWords() error {
	return fmt.Errorf("%s: %v; %s", p.cmd.Path, p.cmd.ProcessState, tail(p.log, 5))
}

// tail is the last lines of a log, joined.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], " | ")
}
