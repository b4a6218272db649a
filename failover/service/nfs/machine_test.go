package nfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tandem/failover/service"
)

// The name is the process's and not the machine's, also when many come and go.
func TestRunAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a UTS namespace needs root")
	}
	mine, err := os.Hostname()
	ok(t, err)
	dir := t.TempDir()
	for _, name := range []string{"nfs1", "a.b-c", strings.Repeat("x", 64)} {
		ok(t, machine{}.runAs(t.Context(), name, "sh", "-c", "uname -n >"+dir+"/name"))
		if b, err := os.ReadFile(dir + "/name"); err != nil || string(b) != name+"\n" {
			t.Errorf("%q %v", b, err)
		}
		if now, err := os.Hostname(); err != nil || now != mine {
			t.Fatalf("the machine is called %s now", now)
		}
	}
	ok(t, machine{}.run(t.Context(), "sh", "-c", "uname -n >"+dir+"/name"))
	if b, _ := os.ReadFile(dir + "/name"); string(b) != mine+"\n" {
		t.Errorf("a later command is on %q", b)
	}
	if err := (machine{}).runAs(t.Context(), strings.Repeat("x", 65), "true"); err == nil {
		t.Error("a name that the kernel refuses")
	}
	if err := (machine{}).runAs(t.Context(), "n", "false"); err == nil {
		t.Error("a command that fails")
	}
}

func TestProcesses(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	ok(t, err)
	b, err := os.ReadFile(sleep)
	ok(t, err)
	program := filepath.Join(t.TempDir(), "tandem-sleeper")
	ok(t, os.WriteFile(program, b, 0o700))
	cmd := exec.Command(program, "60.25")
	ok(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	m := machine{}
	var all []process
	for range 100 { // until it has called exec
		if all, err = m.processes("tandem-sleeper"); err != nil || len(all) == 1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || len(all) != 1 || all[0].pid != cmd.Process.Pid || !slices.Equal(all[0].argv, []string{program, "60.25"}) {
		t.Fatalf("%+v %v", all, err)
	}
	// Another program that has its number by now is left alone.
	ok(t, m.terminate(process{all[0].pid, []string{program, "61"}}))
	select {
	case <-ended:
		t.Fatal("it was ended under another's name")
	case <-time.After(100 * time.Millisecond):
	}
	ok(t, m.terminate(all[0]))
	if err := <-ended; err == nil {
		t.Error("it ended by itself")
	}
	ok(t, m.terminate(all[0])) // again
	if all, err := m.processes("tandem-sleeper"); err != nil || len(all) != 0 {
		t.Errorf("%+v %v", all, err)
	}
}

func TestMachine(t *testing.T) {
	m, ctx := machine{}, t.Context()
	file := filepath.Join(t.TempDir(), "note")
	if _, err := m.read(ctx, file); err == nil {
		t.Error("a file that is not there was read")
	}
	if _, err := m.read(ctx, "/run/tandem-no-such-note"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	ok(t, m.write(file, "a\n"))
	if text, err := m.read(ctx, file); err != nil || text != "a\n" {
		t.Errorf("%q %v", text, err)
	}
	ok(t, m.remove(file))
	if _, err := m.read(ctx, nfsdFolder+"/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	err := m.run(ctx, "no-such-program")
	if !errors.Is(err, service.ErrHopeless) || !strings.Contains(err.Error(), "apt-get install nfs-kernel-server") {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := m.run(short, "sleep", "60"); !errors.Is(err, service.ErrTimeout) {
		t.Error(err)
	}
	if table, err := m.table(); err != nil || len(table) == 0 {
		t.Error(table, err)
	}
}
