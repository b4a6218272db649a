// Package deploy has the files that an operator installs; its tests read them.
package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"tandem/agent/config"
)

// unit reads the unit's keys and values. A key that comes again replaces the one before, as in none of ours.
func unit(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("replagent@.service")
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if _, doubled := keys[key]; doubled {
			t.Errorf("%s is there twice", key)
		}
		keys[key] = value
	}
	return keys
}

// TestUnitKeepsItsPromises: what the restart of an agent, and its memory, depend on.
func TestUnitKeepsItsPromises(t *testing.T) {
	keys := unit(t)
	for key, want := range map[string]string{
		"Type":                     "notify",
		"KillMode":                 "process", // a restart leaves what the steps started
		"Restart":                  "always",
		"OOMScoreAdjust":           "-1000",
		"LimitMEMLOCK":             "infinity",
		"RuntimeDirectoryPreserve": "yes",
		"Before":                   "remote-fs-pre.target",
	} {
		if keys[key] != want {
			t.Errorf("%s=%s, want %s", key, keys[key], want)
		}
	}
	for _, key := range []string{"WatchdogSec", "StateDirectory", "TimeoutStopSec", "LimitNOFILE", "Environment"} {
		if keys[key] == "" {
			t.Errorf("%s is missing", key)
		}
	}
}

// TestSystemdTakesTheUnit asks systemd itself, which knows misspelt keys and cycles.
func TestSystemdTakesTheUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not here")
	}
	b, err := os.ReadFile("replagent@.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program is not installed where the tests run.
	text := strings.Replace(string(b), "/usr/local/sbin/replagent", "/bin/true", 1)
	path := filepath.Join(t.TempDir(), "replagent@nfs1.service")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--recursive-errors=no", "--man=no", path).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestExampleIsAPair: the file and what the line in its head makes of it load, and are two nodes of one cluster.
func TestExampleIsAPair(t *testing.T) {
	text, err := os.ReadFile("nfs1.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, script, ok := strings.Cut(string(text), "#   sed '")
	script, _, end := strings.Cut(script, "' nfs1.yaml\n")
	if !ok || !end {
		t.Fatal("the head has no sed line")
	}
	other, err := exec.Command("sed", script, "nfs1.yaml").Output()
	if err != nil {
		t.Fatal(err)
	}
	load := func(name string, b []byte) *config.Config {
		path := filepath.Join(t.TempDir(), name)
		b = bytes.Replace(b, []byte("{device: /dev/vdb}"), []byte("{device: disk, size: 1GiB}"), 1) // there is no such disk here
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return c
	}
	a, b := load("a.yaml", text), load("b.yaml", other)
	for _, c := range [][2]*config.Config{{a, b}, {b, a}} {
		own, peer := c[0], c[1]
		if len(own.Peers) != 1 || own.Peers[0].Node != peer.Node || own.Peers[0].Address != peer.Listen || own.Node == peer.Node {
			t.Errorf("%s at %s has the peers %+v", own.Node, own.Listen, own.Peers)
		}
		if filepath.Base(own.TLS.Cert) != own.Node+".pem" || filepath.Base(own.TLS.Key) != own.Node+".key" || filepath.Base(own.TLS.CA) != "ca.pem" {
			t.Errorf("%s has %+v", own.Node, own.TLS)
		}
	}
	if !reflect.DeepEqual(a.Service, b.Service) || len(a.Service) != 4 {
		t.Error("the services differ")
	}
	if a.NBD.Socket != "/run/tandem/nfs1/nbd" { // the unit's RuntimeDirectory
		t.Error(a.NBD.Socket)
	}
}
