package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"tandem/agent/config"
	"tandem/e2e/vm"
)

// loadConfiguration has the agent's own parser take what is meant for a guest, whose disks are not here.
func loadConfiguration(t *testing.T, text string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "tandem.yaml")
	text = regexp.MustCompile(`device: /dev/(vd.)}`).ReplaceAllString(text, "device: "+dir+"/$1, size: 128MiB}")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAloneConfiguration(t *testing.T) {
	n := &node{Machine: &vm.Machine{Name: "a"}}
	c := loadConfiguration(t, aloneConfiguration(n))
	if c.Node != "a" || len(c.Peers) != 0 || c.NBD.Socket != n.socket() || !c.AttachesNBD() || len(c.Service) != 1 ||
		c.Service[0].NBD.Device != device || c.Service[0].NBD.Connections != connections {
		t.Fatalf("%+v", c)
	}
}

func TestDeposedConfiguration(t *testing.T) {
	devices := make(map[string]bool)
	for name, peer := range map[string]string{"a": "b", "b": "a"} {
		c := loadConfiguration(t, deposedConfiguration(name))
		if c.Node != name || len(c.Peers) != 1 || c.Peers[0].Node != peer || c.Failover.Auto || !c.AttachesNBD() {
			t.Errorf("%+v", c)
		}
		devices[c.Service[0].NBD.Device], devices[filepath.Base(c.Volume.Device)], devices[c.Listen] = true, true, true
	}
	if len(devices) != 6 {
		t.Errorf("the nodes share something: %v", devices)
	}
}

func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pauses
		write := func(after time.Duration) {
			time.Sleep(after)
			if n, err := p.Write([]byte("ack")); n != 3 || err != nil {
				t.Fatal(n, err)
			}
		}
		write(time.Minute) // nothing was awaited before the first
		write(2 * time.Second)
		write(time.Second)
		if d := p.end(); d != 2*time.Second {
			t.Errorf("%v", d)
		}
		p.begin()
		write(time.Second)
		if d := p.end(); d != time.Second {
			t.Errorf("after begin: %v", d)
		}
		time.Sleep(5 * time.Second)
		if d := p.end(); d != 5*time.Second {
			t.Errorf("a pause that goes on: %v", d)
		}
	})
}

func TestBeginning(t *testing.T) {
	const log = `time=2026-11-26T02:56:25.560Z level=INFO msg="agent started" cluster=nfs1 pid=352
time=2026-11-26T02:56:52.174Z level=INFO msg="agent stopped"
time=2026-11-26T02:56:56.720Z level=INFO msg="agent started" cluster=nfs1 pid=406
time=2026-11-26T02:56:56.844Z level=INFO msg=event text="primary"
`
	down := time.Date(2026, 11, 26, 2, 56, 52, 220_000_000, time.UTC)
	if d, err := beginning(strconv.FormatInt(down.Unix(), 10)+".220000\n", log); err != nil || d != 4500*time.Millisecond {
		t.Errorf("%v, %v", d, err)
	}
	for _, bad := range [][2]string{{"", log}, {"12", log}, {"1.x", log}, {"1.000000", ""}, {"1.000000", ` msg="agent started"`}} {
		if d, err := beginning(bad[0], bad[1]); err == nil {
			t.Errorf("%q: %v", bad, d)
		}
	}
}
