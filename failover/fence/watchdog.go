package fence

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchdog is an armed /dev/watchdog (Documentation/watchdog/watchdog-api.rst of the
// kernel). Open arms it, every write feeds it, and a close disarms it only if a V was
// written just before: so that a killed agent's watchdog runs on.
type watchdog struct {
	f       *os.File
	timeout time.Duration // as the driver has it; 0: its own, unknown
	magic   bool          // it heeds the V
}

// control is ioctl(2) with an int that goes in and comes out, so that a test needs no
// watchdog.
type control func(fd uintptr, request uint, value int) (int, error)

func ioctl(fd uintptr, request uint, value int) (int, error) {
	switch request {
	case unix.WDIOC_GETSUPPORT:
		info, err := unix.IoctlGetWatchdogInfo(int(fd))
		if err != nil {
			return 0, err
		}
		return int(info.Options), nil
	default:
		err := unix.IoctlSetPointerInt(int(fd), request, value)
		if err != nil || request != unix.WDIOC_SETTIMEOUT {
			return value, err
		}
		// What it has become: the driver rounds, or has limits.
		return unix.IoctlGetInt(int(fd), unix.WDIOC_GETTIMEOUT)
	}
}

func openWatchdog(path string, timeout time.Duration, control control) (*watchdog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%w: another program has it (systemd, if RuntimeWatchdogSec= is set in system.conf; or watchdog(8))", err)
	}
	if err != nil {
		return nil, err
	}
	w := &watchdog{f: f, timeout: timeout}
	// From here on it runs, and an error must not leave it behind.
	options, err := control(f.Fd(), unix.WDIOC_GETSUPPORT, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s is no watchdog: %w", path, err), w.disarm())
	}
	w.magic = options&unix.WDIOF_MAGICCLOSE != 0
	seconds := int((timeout + time.Second - 1) / time.Second)
	got, err := control(f.Fd(), unix.WDIOC_SETTIMEOUT, seconds)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY):
		w.timeout = 0 // it has a fixed one
	case err != nil:
		return nil, errors.Join(fmt.Errorf("%s takes no timeout of %d s: %w", path, seconds, err), w.disarm())
	case got < seconds:
		return nil, errors.Join(fmt.Errorf("%s waits %d s at most, and the agent needs %d s", path, got, seconds), w.disarm())
	default:
		w.timeout = time.Duration(got) * time.Second
	}
	return w, nil
}

func (w *watchdog) feed() error {
	// Any byte but the V.
	_, err := w.f.Write([]byte{0})
	return err
}

// disarm ends it. A kernel with nowayout goes on all the same, without an error.
func (w *watchdog) disarm() error {
	_, err := w.f.Write([]byte{'V'})
	return errors.Join(err, w.f.Close())
}
