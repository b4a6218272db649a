// Package history keeps what has happened to a node in a file that survives
// restarts: changes of role and of the cluster record, what operators asked for
// and who they were, the phases of a failover with their times.
//
// A line is one JSON object. Lines are only appended, so that a crash costs at most
// the last one, which Read then leaves out. When the file has reached half of its
// cap it becomes PATH.1, and the one before that goes: the size is bounded, and
// what is kept is the newest.
//
//	Add ──▶ pending (memory, bounded) ──▶ Run: append, fdatasync
//
// Nothing waits for the file. A failover that had to, on a full or hanging root
// disk, would wait for a log.
package history

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFile is when the file becomes PATH.1: both together are about 1 MiB,
	// some five thousand lines.
	maxFile = 512 << 10
	// maxPending bounds what a disk that does not take lines costs in memory.
	maxPending = 1024
	// maxText keeps one verbose error from filling the file.
	maxText = 1024
	// retryAfter is when lines that could not be written are tried again.
	retryAfter = 5 * time.Second
)

// The kinds of entry.
const (
	KindAgent   = "agent"   // started, stopped
	KindRole    = "role"    // From, To, Epoch, Why
	KindRecord  = "record"  // To, Epoch, Why, By: the cluster record changed
	KindRequest = "request" // an operator's, By: Why is the verb, or how it ended
	KindPhase   = "phase"   // Phase took Seconds
	KindEvent   = "event"   // Why is one line of the event log
)

// Entry is one line.
type Entry struct {
	Time    time.Time `json:"time"`
	Node    string    `json:"node"`
	Kind    string    `json:"kind"`
	From    string    `json:"from,omitempty"`
	To      string    `json:"to,omitempty"`
	Epoch   uint64    `json:"epoch,omitempty"`
	Why     string    `json:"why,omitempty"`
	By      string    `json:"by,omitempty"`
	Phase   string    `json:"phase,omitempty"`
	Seconds float64   `json:"seconds,omitempty"`
	// After a change of the record: the set, which change it was, and when it was
	// made, which may be long before this node learned of it.
	InSync  []string  `json:"in_sync,omitempty"`
	Serial  uint64    `json:"serial,omitempty"`
	Changed time.Time `json:"changed,omitzero"`
}

// Log is the history of one node.
type Log struct {
	path string
	log  *slog.Logger
	wake chan struct{}

	mu      sync.Mutex
	pending []Entry
	dropped int

	file   sync.Mutex // held around everything that is done with the files
	failed bool       // the last write failed, and that was logged
}

// Open takes the history at path; "" keeps it in memory only. The file is made
// with the first entry. A line that a crash left torn is ended, so that the next
// one begins on its own.
func Open(path string, log *slog.Logger) (*Log, error) {
	l := &Log{path: path, log: log, wake: make(chan struct{}, 1)}
	if path == "" {
		return l, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("history: %w", err)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("history: %s is no regular file", path)
	case st.Size() == 0:
		return l, nil
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, st.Size()-1); err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	if last[0] != '\n' {
		if _, err := f.Write([]byte("\n")); err != nil {
			return nil, fmt.Errorf("history: %w", err)
		}
	}
	return l, nil
}

// Add appends an entry. It never waits for the disk.
func (l *Log) Add(e Entry) {
	e.Why, e.From, e.To, e.By = clip(e.Why), clip(e.From), clip(e.To), clip(e.By)
	l.mu.Lock()
	if len(l.pending) >= maxPending {
		l.pending = append(l.pending[:0], l.pending[1:]...)
		l.dropped++
	}
	l.pending = append(l.pending, e)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Run writes entries until ctx ends, and what is left then.
func (l *Log) Run(ctx context.Context) {
	retry := time.NewTicker(retryAfter)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			l.write()
			return
		case <-l.wake:
		case <-retry.C:
		}
		l.write()
	}
}

// write moves what is pending to the file.
func (l *Log) write() {
	if l.path == "" {
		return
	}
	l.file.Lock()
	defer l.file.Unlock()
	l.mu.Lock()
	n, dropped := len(l.pending), l.dropped
	lines := encode(l.pending)
	l.mu.Unlock()
	if n == 0 {
		return
	}
	err := l.append(lines)
	if err != nil {
		if !l.failed {
			l.log.Warn("history cannot be written; it is kept in memory for now", "err", err)
		}
		l.failed = true
		return
	}
	l.failed = false
	l.mu.Lock()
	defer l.mu.Unlock()
	// What was dropped meanwhile came from the front, which is on disk now.
	n -= l.dropped - dropped
	l.pending = append(l.pending[:0], l.pending[max(n, 0):]...)
	if dropped > 0 {
		l.log.Warn("history lost entries", "count", dropped)
		l.dropped -= dropped
	}
}

func (l *Log) append(lines []byte) error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	size := st.Size()
	if size > 0 && size+int64(len(lines)) > maxFile {
		if err := errors.Join(f.Close(), os.Rename(l.path, l.path+".1")); err != nil {
			return err
		}
		if f, err = os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600); err != nil {
			return err
		}
		size = 0
	}
	if _, err = f.Write(lines); err == nil {
		err = unix.Fdatasync(int(f.Fd()))
	}
	if err != nil {
		// Half a line, perhaps: it is tried again as a whole.
		_ = f.Truncate(size)
	}
	return errors.Join(err, f.Close())
}

// Entries returns what there is, oldest first, also what is not written yet.
func (l *Log) Entries() ([]Entry, error) {
	l.file.Lock()
	defer l.file.Unlock()
	var out []Entry
	var failed error
	if l.path != "" {
		out, failed = Read(l.path)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(out, l.pending...), failed
}

// Read returns the entries of the files at path and PATH.1, oldest first; none if
// there are no files. Lines that are none, torn ones first of all, are left out.
func Read(path string) ([]Entry, error) {
	var out []Entry
	for _, p := range []string{path + ".1", path} {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("history: %w", err)
		}
		// Somebody else's file of that name is not read into memory whole.
		b, err := io.ReadAll(io.LimitReader(f, 4*maxFile))
		f.Close()
		if err != nil {
			return out, fmt.Errorf("history: %w", err)
		}
		for line := range bytes.Lines(b) {
			var e Entry
			if json.Unmarshal(line, &e) == nil && e.Kind != "" {
				out = append(out, e)
			}
		}
	}
	return out, nil
}

func encode(entries []Entry) []byte {
	var b []byte
	for i := range entries {
		line, err := json.Marshal(&entries[i])
		if err != nil { // strings, numbers, a time
			panic("history: " + err.Error())
		}
		b = append(append(b, line...), '\n')
	}
	return b
}

// clip cuts at a rune.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
