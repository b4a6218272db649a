package vm

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Enclose runs cmd in namespaces of its own for processes, network, mounts and
// IPC, and waits for it. cmd is process 1 in there: when it ends the kernel kills
// whatever it left, and takes bridges and taps away with the last of them. It is
// killed itself when we die, so not even SIGKILL leaves a machine behind.
func Enclose(cmd *exec.Cmd) error {
	// Pdeathsig goes by the thread that forked, not by the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// Enclosed is what the process that Enclose started calls first.
func Enclosed() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("vm: not process 1 of its namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("vm: make mounts private: %w", err)
	}
	// Without it /proc would show the host's processes, and ours by other numbers.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("vm: mount /proc: %w", err)
	}
	return nil
}
