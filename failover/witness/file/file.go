// Package file is the witness of one machine: a file that is replaced under a
// lock. It needs no server, and is right only where every node sees the same
// file (the caller checks that, see location.Location.Shared).
package file

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tandem/failover/witness/internal/register"
)

const (
	// maxBytes bounds what is read from a file that anybody may have put there.
	// The record itself is at most 64 KiB.
	maxBytes = 1 << 20

	// The lock is polled, because a blocking flock cannot be given up when the
	// context ends. It is held for two fsyncs, so the first wait is about one of
	// them, and the last keeps a queue of waiters from being noticed.
	firstWait = time.Millisecond
	lastWait  = 16 * time.Millisecond

	// scratchLife is after how long a scratch register belongs to nobody any
	// more. A probe takes milliseconds, and at most some deadlines.
	scratchLife = 5 * time.Minute
)

// Store is a witness.Store over one file.
//
//	PATH       the content; replaced by rename, so it is always old or new
//	PATH.lock  empty; flock'ed shared by Read and exclusively by CAS
//	PATH.tmp   the content that is about to be; only while CAS holds the lock
//
// The lock is a file of its own, because rename puts another inode under PATH:
// a process that waits for a lock on the old inode would get it and then work on
// a file that is no longer there. PATH.lock is never removed, for the same
// reason.
type Store struct {
	path string

	// beforeRename is where a test kills the process.
	beforeRename func()
}

// New returns the store at path. Nothing is opened before the first call.
func New(path string) *Store { return &Store{path: path} }

// Close releases nothing: every call opens and closes its own files.
func (s *Store) Close() error { return nil }

// Read returns the content and its version, or nil, "", nil when there is no
// file. The context ends the wait for the lock, not a disk that hangs.
func (s *Store) Read(ctx context.Context) ([]byte, string, error) {
	unlock, err := s.lock(ctx, unix.LOCK_SH)
	if err != nil {
		return nil, "", fmt.Errorf("read witness: %w", err)
	}
	defer unlock()
	data, version, err := s.load()
	if err != nil {
		return nil, "", fmt.Errorf("read witness: %w", err)
	}
	// A writer that died between rename and the fsync of the folder left a
	// content that a power loss would take back. Whoever shows it first must
	// make it stay: a node persists the epoch that it reads here.
	if err := s.syncFolder(); err != nil {
		return nil, "", fmt.Errorf("read witness: %w", err)
	}
	return data, version, nil
}

// CAS replaces the content if its version is still expect. See witness.Store for
// what its errors mean.
func (s *Store) CAS(ctx context.Context, expect string, data []byte) (string, error) {
	// An empty file would be told apart from no file by its version only; no
	// caller needs it, and "absent" should look like nothing else.
	if len(data) == 0 || len(data) > maxBytes {
		return "", fmt.Errorf("write witness: %d bytes, between 1 and %d are possible", len(data), maxBytes)
	}
	unlock, err := s.lock(ctx, unix.LOCK_EX)
	if err != nil {
		return "", fmt.Errorf("write witness: %w", err)
	}
	defer unlock()
	_, version, err := s.load()
	if err != nil {
		return "", fmt.Errorf("write witness: %w", err)
	}
	if version != expect {
		return "", fmt.Errorf("write witness: %w", register.ErrConflict)
	}
	if err := s.replace(ctx, data); err != nil {
		return "", fmt.Errorf("write witness: %w", err)
	}
	return versionOf(data), nil
}

// Scratch returns a register of its own for witness.Probe, in files beside this
// one's. What a killed agent left of its own is removed on the way.
func (s *Store) Scratch(_ context.Context, name string) (register.Register, func(context.Context) error, error) {
	// The whole of a name that the probe draws: never a file of somebody else's.
	old, err := filepath.Glob(escape(s.path) + ".probe-" + strings.Repeat("[A-Z2-7]", 26) + "*")
	if err != nil {
		return nil, nil, fmt.Errorf("scratch register beside the witness: %w", err)
	}
	for _, path := range old {
		if fi, err := os.Lstat(path); err == nil && time.Since(fi.ModTime()) > scratchLife {
			_ = os.Remove(path) // the next one tries again
		}
	}
	r := New(s.path + "." + name)
	return r, r.remove, nil
}

// escape has Glob take a path as it is.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// remove takes a scratch register away. Nobody else uses it, so its lock may go.
func (s *Store) remove(context.Context) error {
	var errs []error
	for _, path := range []string{s.path, s.path + ".lock", s.path + ".tmp"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// replace runs under the exclusive lock.
func (s *Store) replace(ctx context.Context, data []byte) error {
	tmp := s.path + ".tmp"
	// One fixed name is enough under the lock, and it means that what a killed
	// writer left behind is found and removed by the next one.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := writeSynced(tmp, data); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if s.beforeRename != nil {
		s.beforeRename()
	}
	// The last moment at which the caller's change of mind costs nothing.
	if err := ctx.Err(); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, s.path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return s.syncFolder()
}

// writeSynced makes data durable under a new name: after a power loss the rename
// must not point to an empty inode.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// load reads the file under either lock.
func (s *Store) load() ([]byte, string, error) {
	f, err := os.Open(s.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, "", err
	}
	if len(data) > maxBytes {
		return nil, "", fmt.Errorf("%s is larger than %d bytes: not a cluster record", s.path, maxBytes)
	}
	return data, versionOf(data), nil
}

// versionOf is a hash and not a counter, so that the version also changes when
// somebody edits the file by hand. The same content twice is the same version;
// records never repeat, because each has a fresh nonce.
func versionOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

func (s *Store) syncFolder() error {
	d, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock waits for PATH.lock until ctx ends. Every call opens the file anew: flock
// belongs to the open file, so two goroutines of one process exclude each other
// just as two processes do, and a killed process lets go.
func (s *Store) lock(ctx context.Context, how int) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			_ = f.Close()
			return nil, fmt.Errorf("wait for %s: %w", f.Name(), ctx.Err())
		case <-timer.C:
		}
	}
}
