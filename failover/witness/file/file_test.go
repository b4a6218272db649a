package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"tandem/failover/witness/internal/register"
)

// The tests start this binary again as other processes, because flock between
// goroutines proves nothing about flock between agents.
func TestMain(m *testing.M) {
	switch os.Getenv("FILE_TEST_ROLE") {
	case "":
		goleak.VerifyTestMain(m)
	case "count":
		n, err := strconv.Atoi(os.Getenv("FILE_TEST_COUNT"))
		if err == nil {
			err = count(New(os.Getenv("FILE_TEST_PATH")), n)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "die":
		s := New(os.Getenv("FILE_TEST_PATH"))
		s.beforeRename = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }
		_, version, err := s.Read(context.Background())
		if err == nil {
			_, err = s.CAS(context.Background(), version, []byte("never"))
		}
		fmt.Fprintln(os.Stderr, "still alive:", err)
		os.Exit(1)
	}
}

func child(role, path string, n int) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FILE_TEST_ROLE="+role, "FILE_TEST_PATH="+path, "FILE_TEST_COUNT="+strconv.Itoa(n))
	return cmd
}

// count adds one to the number in the register n times.
func count(s *Store, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for done := 0; done < n; {
		data, version, err := s.Read(ctx)
		if err != nil {
			return err
		}
		v := 0
		if data != nil {
			if v, err = strconv.Atoi(string(data)); err != nil {
				return err
			}
		}
		switch _, err := s.CAS(ctx, version, strconv.AppendInt(nil, int64(v+1), 10)); {
		case err == nil:
			done++
		case !errors.Is(err, register.ErrConflict):
			return err
		}
	}
	return nil
}

func TestReadAndCAS(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "witness")
	s := New(path)
	data, v0, err := s.Read(ctx)
	if data != nil || v0 != "" || err != nil {
		t.Fatalf("absent: %q, %q, %v", data, v0, err)
	}
	if _, err := s.CAS(ctx, "something", []byte("x")); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("replacing what is absent: %v", err)
	}
	v1, err := s.CAS(ctx, "", []byte("one, which is not JSON"))
	if err != nil || v1 == "" {
		t.Fatal(err)
	}
	data, v, err := s.Read(ctx)
	if string(data) != "one, which is not JSON" || v != v1 || err != nil {
		t.Fatalf("%q, %q, %v", data, v, err)
	}
	if _, err := s.CAS(ctx, "", []byte("two")); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("creating what is there: %v", err)
	}
	v2, err := s.CAS(ctx, v1, []byte("two"))
	if err != nil || v2 == v1 {
		t.Fatal(v2, err)
	}
	if _, err := s.CAS(ctx, v1, []byte("three")); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("an old version: %v", err)
	}
	names, err := filepath.Glob(path + "*")
	if err != nil || len(names) != 2 {
		t.Fatalf("only the file and its lock should be there: %v %v", names, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Somebody's editor changes the file: a writer that read before must not win.
func TestEditByHandIsAChange(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "witness")
	s := New(path)
	v, err := s.CAS(ctx, "", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	data, empty, err := s.Read(ctx)
	if err != nil || len(data) != 0 || empty == "" {
		t.Fatalf("an empty file is not an absent one: %q %q %v", data, empty, err)
	}
	if _, err := s.CAS(ctx, v, []byte("two")); !errors.Is(err, register.ErrConflict) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.CAS(ctx, empty, []byte("two")); err != nil {
		t.Fatal(err)
	}
}

func TestSizes(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "witness")
	s := New(path)
	for _, data := range [][]byte{nil, {}, bytes.Repeat([]byte("x"), maxBytes+1)} {
		if _, err := s.CAS(ctx, "", data); err == nil || errors.Is(err, register.ErrConflict) {
			t.Fatalf("%d bytes: %v", len(data), err)
		}
	}
	if _, err := s.CAS(ctx, "", bytes.Repeat([]byte("x"), maxBytes)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), maxBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Read(ctx); err == nil || !strings.Contains(err.Error(), "not a cluster record") {
		t.Fatalf("got %v", err)
	}
	if _, err := s.CAS(ctx, "", []byte("x")); err == nil || errors.Is(err, register.ErrConflict) {
		t.Fatalf("got %v", err)
	}
}

func TestNoUpdateIsLost(t *testing.T) {
	const procs, routines, each = 4, 4, 10
	path := filepath.Join(t.TempDir(), "witness")
	var cmds []*exec.Cmd
	for range procs {
		cmd := child("count", path, each)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	s := New(path)
	var wg sync.WaitGroup
	for range routines {
		wg.Go(func() {
			if err := count(s, each); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	data, _, err := s.Read(context.Background())
	if want := strconv.Itoa((procs + routines) * each); string(data) != want || err != nil {
		t.Fatalf("got %s, %v, want %s", data, err, want)
	}
}

func TestKilledBetweenWriteAndRename(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "witness")
	s := New(path)
	v, err := s.CAS(ctx, "", []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := child("die", path, 0).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v %s", err, out)
	}
	if _, err := os.Stat(path + ".tmp"); err != nil {
		t.Fatal("the child left nothing behind, so this test proves nothing")
	}
	data, got, err := s.Read(ctx)
	if string(data) != "old" || got != v || err != nil {
		t.Fatalf("%q %q %v", data, got, err)
	}
	if _, err := s.CAS(ctx, v, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the left-over file is still there")
	}
}

func TestContextEndsTheWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "witness")
	s := New(path)
	f, err := os.Create(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, _, err := s.Read(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.CAS(ctx, "", []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("it took %v", d)
	}
}

// A CAS that is given up before its rename must not be found written later.
func TestCancelledBeforeRename(t *testing.T) {
	path := filepath.Join(t.TempDir(), "witness")
	ctx, cancel := context.WithCancel(context.Background())
	s := New(path)
	s.beforeRename = cancel
	if _, err := s.CAS(ctx, "", []byte("x")); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	data, _, err := s.Read(context.Background())
	if data != nil || err != nil {
		t.Fatalf("%q %v", data, err)
	}
	if _, err := os.Stat(path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the temporary file is still there")
	}
}

// Anything that is not a conflict is an outage, never a decision.
func TestBrokenFolders(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	notADir := filepath.Join(dir, "file")
	if err := os.WriteFile(notADir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	isDir := filepath.Join(dir, "dir")
	if err := os.Mkdir(isDir, 0o700); err != nil {
		t.Fatal(err)
	}
	tmpIsDir := filepath.Join(dir, "w")
	if err := os.MkdirAll(tmpIsDir+".tmp/full", 0o700); err != nil {
		t.Fatal(err)
	}
	unreadable := filepath.Join(dir, "unreadable")
	if err := os.Mkdir(unreadable, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(unreadable, 0); err != nil {
		t.Fatal(err)
	}
	paths := []string{filepath.Join(dir, "missing", "w"), filepath.Join(notADir, "w"), isDir, tmpIsDir}
	if os.Getuid() != 0 { // root reads everything
		paths = append(paths, filepath.Join(unreadable, "w"))
	}
	for _, path := range paths {
		s := New(path)
		if _, err := s.CAS(ctx, "", []byte("x")); err == nil || errors.Is(err, register.ErrConflict) {
			t.Errorf("%s: CAS: %v", path, err)
		}
		if path == tmpIsDir {
			continue // only the write is hindered
		}
		if _, _, err := s.Read(ctx); err == nil {
			t.Errorf("%s: Read succeeded", path)
		}
	}
	var done context.CancelFunc
	ctx, done = context.WithCancel(ctx)
	done()
	if _, _, err := New(filepath.Join(dir, "x")).Read(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}
