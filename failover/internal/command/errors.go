package command

import (
	"errors"
	"io/fs"
	"os/exec"
	"strings"
	"syscall"
)

var (
	// ErrTimeout means that the command's time was over. Its whole group was ended.
	ErrTimeout = errors.New("did not end in its time")

	// ErrStuck means that a process is still there after SIGKILL: it waits inside
	// the kernel for a device. Only a reboot ends it.
	ErrStuck = errors.New("SIGKILL did not end it")

	// ErrLeftover means that the command ended and left a process behind that
	// holds its output. The group was ended.
	ErrLeftover = errors.New("left a process behind that still writes to its output: start that with >/dev/null 2>&1 or as a systemd unit")
)

// Error is a command that failed, with the end of what it printed.
type Error struct {
	Argv   []string
	Output string // the last lines, joined by " | "; may be empty
	cause  error
}

func (c Command) failed(cause error, output string) *Error {
	return &Error{Argv: c.Argv, Output: output, cause: cause}
}

func (e *Error) Error() string {
	text := strings.Join(e.Argv, " ") + ": " + e.cause.Error()
	if e.Output != "" {
		text += "; it said: " + e.Output
	}
	return text
}

func (e *Error) Unwrap() error { return e.cause }

// Hopeless says whether the command will fail again until somebody changes the
// node: it is not there, or not a program.
func Hopeless(err error) bool {
	return errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, syscall.ENOEXEC)
}
