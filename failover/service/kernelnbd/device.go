// Package kernelnbd is the service step that makes the volume the kernel's block device /dev/nbdX.
//
// The device outlives the agent: a restart is to be a pause for what is mounted. So it is attached over netlink, not by
// a process that stays in an ioctl, and the order of a restart on the primary is
//
//	SIGTERM       the server answers what it has and refuses the rest, which the kernel puts back (package nbd, part.go);
//	              nothing is detached. After SIGKILL what was sent waits for its request timer, RequestTimeout at most.
//	no agent      requests wait, up to DeadTimeout, then fail
//	new agent     primary again, its export open: Start finds a device that is its own and gives it new connections
//	              (RECONFIGURE). The kernel sends again what had no reply.
//
// A request that is sent twice is harmless as long as nobody else was primary in between. If somebody was, the node comes
// back as Secondary: Abandon ends the device, and what waited fails.
//
// "Its own" is by the backend identifier, which the kernel keeps with the device (/sys/block/nbdX/backend) and compares
// at each RECONFIGURE. Without it a device of another program would be given our connections, and its filesystem our data.
package kernelnbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tandem/failover/internal/command"
	"tandem/failover/service"
)

const (
	// RequestTimeout is after how long without a reply the kernel gives a connection up and sends the request on another.
	// It is no error, so it need not be longer than the longest freeze; but it ends a connection that may only be slow.
	RequestTimeout = 10 * time.Second

	// DeadTimeout is for how long requests wait for an agent. Then they fail, and a filesystem with them.
	DeadTimeout = 120 * time.Second

	// blockSize is the device's logical block. What was on the volume's disk before it was replicated may be aligned to
	// no more than this.
	blockSize = 512

	// flagMultiConn of the protocol: more than one connection is safe.
	flagMultiConn = 1 << 8

	// settle is how long a device is given to notice that its connections are dead: the other end closed them before
	// this agent could start, so that only a kernel thread must have run. A device that takes none for so long has no more.
	settle = time.Second

	poll = 20 * time.Millisecond
)

var (
	// ErrForeign means that the device is attached, and not by this node's agent.
	ErrForeign = errors.New("the device is in use by something else")

	// ErrDetached means that the device is not attached.
	ErrDetached = errors.New("the device is not attached")

	// ErrHeld means that a device that was let go is still open.
	ErrHeld = errors.New("the device is still in use")

	// ErrConnections means that connections of the device have ended.
	ErrConnections = errors.New("connections of the device are dead")
)

// Config is what a Device needs.
type Config struct {
	Device      string // /dev/nbdX
	Connections int    // at least 1

	// Backend is the identifier by which the device is known as this node's, unique on the host.
	Backend string

	// Dial negotiates a connection with the export.
	Dial func(ctx context.Context) (Socket, error)

	Log *slog.Logger // nil is silence
}

// Device is a service.Step and a service.Abandoner. The Runner calls one method at a time, so it has no lock.
type Device struct {
	cfg   Config
	index uint32

	kernel   kernel
	sysfs    string
	modprobe func(ctx context.Context) error
	patience time.Duration // settle

	// sockets are those that the kernel got in this life; want is how many it takes, 0 before the first Start.
	sockets []Socket
	want    int

	abandoned bool // since the last Start: what is mounted on it has lost it already
}

// Index returns X of /dev/nbdX.
func Index(device string) (uint32, error) {
	digits, ok := strings.CutPrefix(device, "/dev/nbd")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
		return 0, fmt.Errorf("%q is not a device of the kernel's NBD client, such as /dev/nbd0", device)
	}
	return uint32(n), nil
}

// New returns the step. It touches nothing.
func New(cfg Config) (*Device, error) {
	index, err := Index(cfg.Device)
	if err != nil {
		return nil, err
	}
	if cfg.Connections < 1 || cfg.Backend == "" || cfg.Dial == nil {
		return nil, fmt.Errorf("%s: no connections, backend or export", cfg.Device)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Device{cfg: cfg, index: index, kernel: generic{}, sysfs: "/sys", modprobe: modprobe, patience: settle}, nil
}

func modprobe(ctx context.Context) error {
	return command.Command{Argv: []string{"modprobe", "nbd"}}.Run(ctx)
}

// state is what sysfs says of the device.
type state struct {
	there bool // the kernel has the device, attached or not
	// attached is also a device that was disconnected and that something has open. Its requests fail, and RECONFIGURE is
	// refused; nothing else tells it from one that waits for its agent.
	attached bool
	backend  string
}

// look reads the state. It must come before anything that touches the device. The file pid is there while the device is
// attached; what it says is which process did it, perhaps one that is long gone.
func (d *Device) look() (state, error) {
	dir := filepath.Join(d.sysfs, "block", filepath.Base(d.cfg.Device))
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	} else if err != nil {
		return state{}, fmt.Errorf("look at %s: %w", d.cfg.Device, err)
	}
	st := state{there: true}
	if _, err := os.Stat(filepath.Join(dir, "pid")); errors.Is(err, fs.ErrNotExist) {
		return st, nil
	} else if err != nil {
		return st, fmt.Errorf("look at %s: %w", d.cfg.Device, err)
	}
	st.attached = true
	b, err := os.ReadFile(filepath.Join(dir, "backend"))
	// A file that goes away between its open and its read says ENODEV.
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return st, fmt.Errorf("look at %s: %w", d.cfg.Device, err)
	}
	st.backend = strings.TrimSuffix(string(b), "\n")
	return st, nil
}

// foreign is the error for a device that is not ours.
func (d *Device) foreign(st state) error {
	whose := "its backend is " + st.backend
	if st.backend == "" {
		whose = "it names no backend, as one of nbd-client does"
	}
	return fmt.Errorf("%w: %w: %s (%s): name another device in service.nbd, or free this one with `nbd-client -d %s`",
		service.ErrHopeless, ErrForeign, d.cfg.Device, whose, d.cfg.Device)
}

// Start attaches the device, or takes back the one that an earlier agent attached.
func (d *Device) Start(ctx context.Context, _ service.Term) error {
	st, err := d.look()
	if err != nil {
		return err
	}
	if !st.there {
		// Should it fail, CONNECT says what is missing; a device beyond the module's nbds_max is made by CONNECT.
		if err := d.modprobe(ctx); err != nil {
			d.cfg.Log.Warn("modprobe nbd", "err", err)
		}
		if st, err = d.look(); err != nil {
			return err
		}
	}
	switch {
	case !st.attached:
		err = d.attach(ctx)
	case st.backend != d.cfg.Backend:
		return d.foreign(st)
	default:
		err = d.takeBack(ctx)
	}
	if err == nil {
		d.abandoned = false
	}
	return err
}

func (d *Device) attach(ctx context.Context) (err error) {
	d.forget()
	sockets, err := d.dial(ctx, d.cfg.Connections)
	if err != nil {
		return err
	}
	if err := d.kernel.connect(ctx, d.settings(sockets)); err != nil {
		closeAll(sockets)
		return fmt.Errorf("attach %s: %w", d.cfg.Device, explain(err))
	}
	d.sockets, d.want = sockets, len(sockets)
	st, err := d.look()
	if err == nil && st.attached && st.backend == d.cfg.Backend {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%w: %s: this kernel keeps no backend identifier (Linux 5.14 does), so the device would not be known again", service.ErrHopeless, d.cfg.Device)
	}
	d.forget()
	return errors.Join(err, d.kernel.disconnect(ctx, d.index)) // it is ours, as nobody will know later
}

// explain says what to do about a refusal of the kernel's.
func explain(err error) error {
	switch {
	case errors.Is(err, errNoFamily):
		return fmt.Errorf("%w: %w: install the kernel's module nbd and run `modprobe nbd`", service.ErrHopeless, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w: the agent needs CAP_SYS_ADMIN: run it as root", service.ErrHopeless, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrForeign, err)
	}
	return err
}

// takeBack replaces the connections that are dead, until all are alive. How many the device has was decided when it was
// attached, perhaps by a config that is no more; what it does not take it does not have.
func (d *Device) takeBack(ctx context.Context) error {
	d.prune()
	if d.want == 0 {
		d.want = d.cfg.Connections
	}
	progress := time.Now()
	for len(d.sockets) < d.want {
		fresh, err := d.dial(ctx, d.want-len(d.sockets))
		if err != nil {
			return err
		}
		if err := d.kernel.reconfigure(ctx, d.settings(fresh)); err != nil {
			closeAll(fresh)
			if errors.Is(err, unix.EINVAL) { // it is ours, so this is what is wrong with it
				return fmt.Errorf("%w: %s was disconnected, and something has had it open since before: unmount it (fuser -vm %s says who): %w", ErrHeld, d.cfg.Device, d.cfg.Device, err)
			}
			return fmt.Errorf("take %s back: %w", d.cfg.Device, explain(err))
		}
		for _, s := range fresh {
			if !s.adopted() {
				s.close()
				continue
			}
			d.sockets = append(d.sockets, s)
			progress = time.Now()
		}
		if len(d.sockets) == d.want {
			break
		}
		if time.Since(progress) > d.patience {
			if len(d.sockets) == 0 {
				return fmt.Errorf("take %s back: the device takes no connection: something else serves it", d.cfg.Device)
			}
			d.cfg.Log.Warn("the device has fewer connections than service.nbd says, since before: the number changes when it is attached the next time",
				"device", d.cfg.Device, "connections", len(d.sockets), "configured", d.cfg.Connections)
			d.want = len(d.sockets)
		}
		if !sleep(ctx, poll) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// dial negotiates n connections, or one if the export does not allow more.
func (d *Device) dial(ctx context.Context, n int) ([]Socket, error) {
	var all []Socket
	for range n {
		s, err := d.cfg.Dial(ctx)
		if err != nil {
			closeAll(all)
			return nil, fmt.Errorf("connect %s to the export: %w", d.cfg.Device, err)
		}
		if all = append(all, s); s.Flags&flagMultiConn == 0 {
			break
		}
	}
	return all, nil
}

func (d *Device) settings(sockets []Socket) settings {
	s := settings{
		index: d.index, size: sockets[0].Size, block: blockSize, flags: sockets[0].Flags,
		timeout: RequestTimeout, dead: DeadTimeout, backend: d.cfg.Backend,
	}
	for _, k := range sockets {
		s.sockets = append(s.sockets, k.FD)
	}
	return s
}

// prune lets go of the sockets of dead connections.
func (d *Device) prune() {
	var live []Socket
	for _, s := range d.sockets {
		if s.dead() {
			s.close()
			continue
		}
		live = append(live, s)
	}
	d.sockets = live
}

func (d *Device) forget() {
	closeAll(d.sockets)
	d.sockets, d.want = nil, 0
}

func closeAll(all []Socket) {
	for _, s := range all {
		s.close()
	}
}

// Stop detaches the device and returns when nothing has it any more. On a Primary, where the Runner stops a step only to
// start it again, it does nothing: connections are replaced under a mounted filesystem, the device is not.
func (d *Device) Stop(ctx context.Context, term service.Term) error {
	if term.Role == service.Primary {
		return nil
	}
	if err := d.unclaimed(ctx); err != nil {
		return err
	}
	if err := d.release(ctx); err != nil {
		return err
	}
	for {
		st, err := d.look()
		if err != nil {
			return err
		}
		if !st.attached || st.backend != d.cfg.Backend {
			return nil
		}
		if !sleep(ctx, poll) {
			return fmt.Errorf("%w: %s is disconnected, but open: unmount it (fuser -vm %s says who): %w", ErrHeld, d.cfg.Device, d.cfg.Device, context.Cause(ctx))
		}
	}
}

// Abandon makes every request of the device fail, those that wait for an agent as well, so that what stands on it can
// be stopped without them. Stop does the rest.
func (d *Device) Abandon(ctx context.Context, _ service.Term) error {
	d.abandoned = true
	return d.release(ctx)
}

// unclaimed waits until nothing is mounted on the device. A planned stop that cannot unmount comes to nothing, and the
// node goes on as primary: the filesystem must have its device then.
func (d *Device) unclaimed(ctx context.Context) error {
	for !d.abandoned {
		st, err := d.look()
		if err != nil || !st.attached || st.backend != d.cfg.Backend {
			return err
		}
		if busy, err := d.kernel.claimed(d.cfg.Device); err != nil || !busy {
			return err
		}
		if !sleep(ctx, poll) {
			return fmt.Errorf("%w: something is mounted on %s, which stays attached: unmount it (fuser -vm %s says who): %w", ErrHeld, d.cfg.Device, d.cfg.Device, context.Cause(ctx))
		}
	}
	return nil
}

// release disconnects a device that is ours.
func (d *Device) release(ctx context.Context) error {
	st, err := d.look()
	if err != nil {
		return err
	}
	if st.attached && st.backend == d.cfg.Backend {
		if err := d.kernel.disconnect(ctx, d.index); err != nil {
			return fmt.Errorf("detach %s: %w", d.cfg.Device, explain(err))
		}
	}
	d.forget()
	return nil
}

// Check says whether the device is attached and all its connections live. One that the kernel gave up, because a request
// had no reply for RequestTimeout, is replaced here: that the disks or the line are slow is no failure of this node, and
// another one would do no better.
func (d *Device) Check(ctx context.Context, _ service.Term) error {
	st, err := d.look()
	switch {
	case err != nil:
		return err
	case !st.attached:
		return fmt.Errorf("%w: %s", ErrDetached, d.cfg.Device)
	case st.backend != d.cfg.Backend:
		return d.foreign(st)
	}
	live := 0
	for i := range d.sockets {
		if !d.sockets[i].dead() {
			live++
		}
	}
	switch {
	case d.want == 0: // not of this life: it is for Start to take it back
		return fmt.Errorf("%w: %s has none of this agent's", ErrConnections, d.cfg.Device)
	case live == d.want:
		return nil
	}
	d.cfg.Log.Warn("the kernel has given up connections of the device, because requests had no reply in time: they are replaced",
		"device", d.cfg.Device, "dead", d.want-live, "of", d.want, "timeout", RequestTimeout)
	if err := d.takeBack(ctx); err != nil {
		return fmt.Errorf("%w: %s has %d of %d: %w", ErrConnections, d.cfg.Device, live, d.want, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
