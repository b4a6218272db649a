package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/agent/config"
)

// ebsConfig is a config whose EBS volume's link would be in a folder of its own.
func ebsConfig(t *testing.T) *config.Config {
	t.Helper()
	dir := t.TempDir()
	text := `cluster: nfs1
node: a
listen: 127.0.0.1:%d
peers: []
volume: {device: ebs:vol-0123456789abcdef0, size: 8MiB}
nbd: {socket: nbd}
control: control
tls: {insecure: true}
witness: file:witness
`
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cfg, err := config.Parse("a.yaml", fmt.Appendf(nil, text, port), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "by-id"), 0o700); err != nil {
		t.Fatal(err)
	}
	cfg.Volume.Device = filepath.Join(dir, "by-id", filepath.Base(cfg.Volume.Device))
	return cfg
}

// attach makes the link, to a file.
func attach(t *testing.T, cfg *config.Config) {
	t.Helper()
	file := filepath.Join(cfg.Dir, "nvme1n1")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, cfg.Volume.Device); err != nil {
		t.Fatal(err)
	}
}

// The verbs that open the volume say at once that it is not attached, and make no file
// in its place.
func TestNotAttached(t *testing.T) {
	cfg := ebsConfig(t)
	var out bytes.Buffer
	for verb, f := range map[string]func() error{
		"init":           func() error { return Init(t.Context(), cfg, InitOptions{}, &out) },
		"init --witness": func() error { return InitWitness(t.Context(), cfg, func(string) error { return nil }, &out) },
		"dump-md":        func() error { return DumpMetadata(t.Context(), cfg, &out) },
		"agent":          func() error { return attached(t.Context(), cfg, 10*time.Millisecond, slog.New(slog.DiscardHandler)) },
	} {
		err := f()
		if err == nil || !strings.Contains(err.Error(), "the EBS volume vol-0123456789abcdef0 is not attached to this instance, "+cfg.Volume.Device+" is not there") {
			t.Errorf("%s: %v", verb, err)
		}
		if _, err := os.Lstat(cfg.Volume.Device); !os.IsNotExist(err) {
			t.Errorf("%s: %v", verb, err)
		}
	}
	attach(t, cfg)
	if err := Init(t.Context(), cfg, InitOptions{}, &out); err != nil {
		t.Fatal(err)
	}
	if err := DumpMetadata(t.Context(), cfg, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), fmt.Sprintf("%s: metadata of node a written", cfg.Volume.Device)) {
		t.Error(out.String())
	}
}

// An agent that is earlier than its volume waits for it, and runs.
func TestAttachedLater(t *testing.T) {
	cfg := ebsConfig(t)
	attach(t, cfg)
	if err := Init(t.Context(), cfg, InitOptions{}, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	away := cfg.Volume.Device + ".away"
	if err := os.Rename(cfg.Volume.Device, away); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	time.Sleep(2 * attachPoll)
	if _, err := os.Stat(cfg.Control); err == nil {
		t.Error("it runs without its volume")
	}
	if err := os.Rename(away, cfg.Volume.Device); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(cfg.Control); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it does not start")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Whoever ends it meanwhile does not wait.
func TestEndedBeforeAttached(t *testing.T) {
	cfg := ebsConfig(t)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	began := time.Now()
	if err := Run(ctx, cfg, slog.New(slog.DiscardHandler)); err != nil || time.Since(began) > attachPatience/2 {
		t.Fatal(err, time.Since(began))
	}
}
