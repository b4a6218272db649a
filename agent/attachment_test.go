package agent

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tandem/agent/config"
	"tandem/nbd"
)

// oneExport is a backend with an export that nothing is read from.
type oneExport struct{ refuse error }

func (o oneExport) Exports() []string { return []string{"c1"} }

func (o oneExport) Open(_ context.Context, name string) (*nbd.Export, error) {
	if o.refuse != nil || name != "c1" {
		return nil, o.refuse
	}
	return &nbd.Export{Name: "c1", Size: 1 << 20, MultiConn: true, Device: idle{}}, nil
}

type idle struct{}

func (idle) Submit(r *nbd.Request) { r.Complete(nil) }
func (idle) Sent(*nbd.Request)     {}

func serveExport(t *testing.T, o oneExport) *config.Config {
	t.Helper()
	cfg := &config.Config{Cluster: "c1"}
	cfg.NBD.Socket = filepath.Join(t.TempDir(), "nbd")
	server, err := nbd.NewServer(nbd.Config{Backend: o})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", cfg.NBD.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return cfg
}

// TestAttachment: the kernel gets a descriptor of its own, at the beginning of the transmission phase.
func TestAttachment(t *testing.T) {
	s, err := attachment(t.Context(), serveExport(t, oneExport{}))
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(s.FD), "attachment")
	defer f.Close()
	const multiConn = 1 << 8
	if s.Size != 1<<20 || s.Flags&multiConn == 0 {
		t.Errorf("%+v", s)
	}
	if flags, err := unix.FcntlInt(uintptr(s.FD), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("what the agent starts inherits it: flags %#x, %v", flags, err)
	}
	if err := f.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// A FLUSH and its simple reply.
	request := append([]byte{0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8}, make([]byte, 12)...)
	if _, err := f.Write(request); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 17)
	n, err := f.Read(reply)
	if want := "\x67\x44\x66\x98\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08"; err != nil || string(reply[:n]) != want {
		t.Errorf("% x, %v", reply[:n], err)
	}
}

func TestAttachmentOfASecondary(t *testing.T) {
	_, err := attachment(t.Context(), serveExport(t, oneExport{&nbd.Refusal{Code: nbd.ERR_POLICY, Text: "the primary is node b"}}))
	if r, ok := errors.AsType[*nbd.Refusal](err); !ok || r.Text != "the primary is node b" {
		t.Errorf("%v", err)
	}
}
