package command

import (
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	// maxOutput is how much of a command's last output is kept: a command may
	// write for its whole time, and only the end says why it failed.
	maxOutput = 4 << 10

	// maxLines of it stand in an error.
	maxLines = 5
)

// output reads what a command writes to its standard output and error.
type output struct {
	read, write *os.File
	done        chan struct{} // closed by runRead

	mu   sync.Mutex
	last []byte // at most maxOutput
}

// capture connects the command to a pipe of ours. The command gets the file
// itself, not a copying goroutine of os/exec, whose Wait would not return before
// the last grandchild has closed it.
func capture(cmd *exec.Cmd) (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	return &output{read: r, write: w}, nil
}

// started is called when the command has its end of the pipe.
func (o *output) started() {
	o.write.Close()
	o.write = nil
	o.done = make(chan struct{})
	go o.runRead()
}

func (o *output) runRead() {
	defer close(o.done)
	buf := make([]byte, maxOutput)
	for {
		n, err := o.read.Read(buf)
		o.mu.Lock()
		o.last = append(o.last, buf[:n]...)
		if over := len(o.last) - maxOutput; over > 0 {
			o.last = append(o.last[:0], o.last[over:]...)
		}
		o.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// finished waits for the end of the output, and returns false if somebody keeps
// the pipe open.
func (o *output) finished() bool {
	timer := time.NewTimer(outputWait)
	defer timer.Stop()
	select {
	case <-o.done:
		return true
	case <-timer.C:
		return false
	}
}

// close ends runRead and waits for it.
func (o *output) close() {
	if o.write != nil {
		o.write.Close()
	}
	o.read.Close()
	if o.done != nil {
		<-o.done
	}
}

// text is all that was kept.
func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.last)
}

// tail is the last lines, as text for one line of a log.
func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var lines []string
	for line := range strings.Lines(string(o.last)) {
		if line = strings.TrimSpace(strings.ToValidUTF8(line, "?")); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-maxLines):], " | ")
}
