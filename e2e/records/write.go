package records

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a run of writers.
type Options struct {
	Dir     string // a folder per writer is made in it
	Seed    uint64
	Writers int
	Count   int           // records of each writer; they bound the space it takes
	Pace    time.Duration // pause after each record
}

// Write writes until every writer has done Count records, one has met an error, or ctx ends. It tells
// acks "ack WRITER NUMBER" for each record, after the call that made it durable
// has returned.
func Write(ctx context.Context, o Options, acks io.Writer) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs error
	)
	tell := func(writer, n int) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := fmt.Fprintf(acks, "ack %d %d\n", writer, n)
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for w := range o.Writers {
		wg.Go(func() {
			if err := writeSeries(ctx, o, w, tell); err != nil {
				mu.Lock()
				errs = errors.Join(errs, fmt.Errorf("writer %d: %w", w, err))
				mu.Unlock()
				cancel() // or nobody would hear of it before the others end
			}
		})
	}
	wg.Wait()
	return errs
}

func writeSeries(ctx context.Context, o Options, writer int, tell func(writer, n int) error) error {
	dir := filepath.Join(o.Dir, folderOf(writer))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// The folder's own name must be durable before anything in it is claimed.
	if err := syncPath(o.Dir); err != nil {
		return err
	}
	seed := seedOf(o.Seed, writer)
	for n := range o.Count {
		if ctx.Err() != nil {
			return nil
		}
		if err := writeRecord(dir, seed, uint64(n)); err != nil {
			return fmt.Errorf("record %d: %w", n, err)
		}
		if err := tell(writer, n); err != nil {
			return err
		}
		time.Sleep(o.Pace)
	}
	return nil
}

func writeRecord(dir string, seed, n uint64) error {
	p := placeOf(n)
	path := filepath.Join(dir, p.file)
	name := path
	if p.renamed {
		name += ".new"
	}
	_, err := os.Lstat(name)
	fresh := errors.Is(err, os.ErrNotExist)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content(seed, n, p.size), p.offset)
	if err == nil && p.data {
		err = unix.Fdatasync(int(f.Fd()))
	} else if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if p.renamed {
		if err := os.Rename(name, path); err != nil && !renamed(err, name, path, content(seed, n, p.size), p.offset) {
			return err
		}
	}
	if p.renamed || fresh {
		return syncPath(dir)
	}
	return nil
}

// renamed says whether a rename that found nothing to rename has been done. A client of NFS asks again
// whom it has had no answer from, and if the server has lost power after the rename, the next one does
// not know that it was asked before.
func renamed(err error, from, to string, want []byte, offset int64) bool {
	if !errors.Is(err, os.ErrNotExist) {
		return false
	}
	// A client of NFS trusts the names that it remembers until the folder has changed.
	if fresh, err := os.CreateTemp(filepath.Dir(to), "fresh"); err != nil || errors.Join(fresh.Close(), os.Remove(fresh.Name())) != nil {
		return false
	}
	if _, err := os.Lstat(from); !errors.Is(err, os.ErrNotExist) {
		return false
	}
	f, err := os.Open(to)
	if err != nil {
		return false
	}
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, offset)
	return errors.Join(err, f.Close()) == nil && bytes.Equal(got, want)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
