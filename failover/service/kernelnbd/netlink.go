package kernelnbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernel is what is asked of the kernel's NBD client (Linux drivers/block/nbd.c).
type kernel interface {
	connect(ctx context.Context, s settings) error
	// reconfigure replaces dead connections of an attached device, as many as it has of them and sockets there are.
	// It is refused (EINVAL) when the backend is not the one that the device was attached with.
	reconfigure(ctx context.Context, s settings) error
	disconnect(ctx context.Context, index uint32) error
	// claimed says whether a filesystem, or the like, has the device for itself.
	claimed(device string) (bool, error)
}

// settings are a device's.
type settings struct {
	index   uint32
	size    int64 // bytes
	block   int   // logical block size, bytes
	timeout time.Duration
	dead    time.Duration
	flags   uint16 // transmission flags of the export
	backend string
	sockets []int // descriptors, in the transmission phase; the kernel takes references of its own
}

// Commands and attributes of linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3

	attrIndex           = 1  // u32
	attrSizeBytes       = 2  // u64
	attrBlockSizeBytes  = 3  // u64
	attrTimeout         = 4  // u64, s
	attrServerFlags     = 5  // u64
	attrSockets         = 7  // nested: any number of sockItem
	attrDeadConnTimeout = 8  // u64, s
	attrBackend         = 10 // string; since Linux 5.14

	sockItem = 1 // nested: sockFD
	sockFD   = 1 // u32
)

// errNoFamily means that the kernel has no NBD client, or has not loaded it.
var errNoFamily = errors.New("this kernel has no NBD client loaded")

// callTime bounds one exchange with the kernel when the context does not. An attachment allocates queues, so it takes
// milliseconds.
const callTime = 5 * time.Second

// encode makes the body of a request to the family:
//
//	 0         1         2          4
//	┌─────────┬─────────┬──────────┬──────────────────────────────────────────────
//	│ command │ version │ reserved │ attributes: u16 length, u16 type, value, pad to 4
//	└─────────┴─────────┴──────────┴──────────────────────────────────────────────
func encode(command uint8, s settings) ([]byte, error) {
	a := netlink.NewAttributeEncoder()
	a.Uint32(attrIndex, s.index)
	if command != cmdDisconnect {
		a.Uint64(attrSizeBytes, uint64(s.size))
		a.Uint64(attrBlockSizeBytes, uint64(s.block))
		a.Uint64(attrTimeout, uint64(s.timeout/time.Second))
		a.Uint64(attrDeadConnTimeout, uint64(s.dead/time.Second))
		a.Uint64(attrServerFlags, uint64(s.flags))
		a.String(attrBackend, s.backend)
		a.Nested(attrSockets, func(all *netlink.AttributeEncoder) error {
			for _, fd := range s.sockets {
				all.Nested(sockItem, func(one *netlink.AttributeEncoder) error {
					one.Uint32(sockFD, uint32(fd))
					return nil
				})
			}
			return nil
		})
	}
	attributes, err := a.Encode()
	if err != nil {
		return nil, err
	}
	return append([]byte{command, familyVersion, 0, 0}, attributes...), nil
}

// generic is the kernel of this host.
type generic struct{}

func (generic) connect(ctx context.Context, s settings) error { return call(ctx, cmdConnect, s) }

func (generic) reconfigure(ctx context.Context, s settings) error {
	return call(ctx, cmdReconfigure, s)
}

func (generic) disconnect(ctx context.Context, index uint32) error {
	return call(ctx, cmdDisconnect, settings{index: index})
}

func (generic) claimed(device string) (bool, error) {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return true, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "open", Path: device, Err: err}
	}
	return false, unix.Close(fd)
}

func call(ctx context.Context, command uint8, s settings) error {
	body, err := encode(command, s)
	if err != nil {
		return err
	}
	c, err := netlink.Dial(unix.NETLINK_GENERIC, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	deadline := time.Now().Add(callTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	family, err := findFamily(c)
	if err != nil {
		return err
	}
	// CONNECT is answered by the index and then acknowledged, the others are acknowledged: the first message tells.
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(family), Flags: netlink.Request | netlink.Acknowledge},
		Data:   body,
	})
	return err
}

// findFamily asks for the number that the family got when it was registered.
func findFamily(c *netlink.Conn) (uint16, error) {
	a := netlink.NewAttributeEncoder()
	a.String(unix.CTRL_ATTR_FAMILY_NAME, familyName)
	name, err := a.Encode()
	if err != nil {
		return 0, err
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.GENL_ID_CTRL, Flags: netlink.Request},
		Data:   append([]byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}, name...),
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, errNoFamily
	}
	if err != nil {
		return 0, err
	}
	return familyOf(msgs)
}

func familyOf(msgs []netlink.Message) (uint16, error) {
	for _, m := range msgs {
		if len(m.Data) < 4 || m.Data[0] != unix.CTRL_CMD_NEWFAMILY {
			continue
		}
		a, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, err
		}
		for a.Next() {
			if b := a.Bytes(); a.Type() == unix.CTRL_ATTR_FAMILY_ID && len(b) == 2 {
				return binary.NativeEndian.Uint16(b), nil
			}
		}
		if err := a.Err(); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("the kernel's answer about the family %s has no number", familyName)
}
