package kernelnbd

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/cpu"
)

// unhex reads the bytes of a message, written as the kernel's header has them; what follows # is a comment.
func unhex(t *testing.T, text string) []byte {
	t.Helper()
	var digits strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		digits.WriteString(strings.Join(strings.Fields(line), ""))
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEncode holds the messages against linux/nbd-netlink.h, attribute by attribute.
func TestEncode(t *testing.T) {
	if cpu.IsBigEndian {
		t.Skip("the expected bytes are those of a little-endian host")
	}
	s := settings{
		index: 3, size: 1 << 30, block: 512, timeout: 10 * time.Second, dead: 120 * time.Second,
		flags: 0x16d, backend: "tandem/c/a", sockets: []int{7, 260},
	}
	const attributes = `
		0800 0100 03000000                      # NBD_ATTR_INDEX
		0c00 0200 0000004000000000              # NBD_ATTR_SIZE_BYTES
		0c00 0300 0002000000000000              # NBD_ATTR_BLOCK_SIZE_BYTES
		0c00 0400 0a00000000000000              # NBD_ATTR_TIMEOUT
		0c00 0800 7800000000000000              # NBD_ATTR_DEAD_CONN_TIMEOUT
		0c00 0500 6d01000000000000              # NBD_ATTR_SERVER_FLAGS
		0f00 0a00 74616e64656d2f632f6100 00     # NBD_ATTR_BACKEND_IDENTIFIER, zero-terminated, padded
		1c00 0780                               # NBD_ATTR_SOCKETS, nested
		  0c00 0180 0800 0100 07000000          #   NBD_SOCK_ITEM: NBD_SOCK_FD
		  0c00 0180 0800 0100 04010000`
	for _, tt := range []struct {
		name    string
		command uint8
		want    string
	}{
		{"connect", cmdConnect, "01 01 0000" + attributes},
		{"reconfigure", cmdReconfigure, "03 01 0000" + attributes},
		{"disconnect", cmdDisconnect, "02 01 0000 0800 0100 03000000"},
	} {
		got, err := encode(tt.command, s)
		if want := unhex(t, tt.want); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v\n%s\n%s", tt.name, err, hex.Dump(got), hex.Dump(want))
		}
	}
}

func TestFamilyOf(t *testing.T) {
	if cpu.IsBigEndian {
		t.Skip("the bytes are those of a little-endian host")
	}
	// What a kernel 6.1 answered, up to its lists of operations and groups.
	const recorded = `01 02 0000
		0800 0200 6e626400      # CTRL_ATTR_FAMILY_NAME
		0600 0100 1c00 0000     # CTRL_ATTR_FAMILY_ID
		0800 0300 01000000      # CTRL_ATTR_VERSION
		0800 0400 00000000      # CTRL_ATTR_HDRSIZE
		0800 0500 0a000000      # CTRL_ATTR_MAXATTR`
	if n, err := familyOf([]netlink.Message{{Data: unhex(t, recorded)}}); err != nil || n != 0x1c {
		t.Errorf("%#x, %v", n, err)
	}
	for name, text := range map[string]string{
		"nothing":           "",
		"too short":         "01 02",
		"another command":   "02 02 0000 0600 0100 1c00 0000",
		"no number":         "01 02 0000 0800 0300 01000000",
		"a number too long": "01 02 0000 0800 0100 1c000000",
		"cut off":           "01 02 0000 0600 0300 1c00 0000 ff00 0100",
	} {
		if n, err := familyOf([]netlink.Message{{Data: unhex(t, text)}}); err == nil {
			t.Errorf("%s: %d", name, n)
		}
	}
	if _, err := familyOf(nil); err == nil {
		t.Error("no answer is an answer")
	}
}
