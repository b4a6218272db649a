package history

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// open opens the history at path and runs it; stop ends it and waits.
func open(t *testing.T, path string, log *bytes.Buffer) (l *Log, stop func()) {
	t.Helper()
	l, err := Open(path, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { l.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return l, stop
}

func whys(t *testing.T, l *Log) string {
	t.Helper()
	entries, err := l.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range entries {
		s = append(s, e.Why)
	}
	return strings.Join(s, ",")
}

func add(l *Log, why string) { l.Add(Entry{Time: noon, Node: "a", Kind: KindEvent, Why: why}) }

func TestSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.history")
	var log bytes.Buffer
	l, stop := open(t, path, &log)
	if got := whys(t, l); got != "" {
		t.Errorf("a new history has %q", got)
	}
	add(l, "one")
	add(l, "two")
	if got := whys(t, l); got != "one,two" {
		t.Errorf("before it is written: %q", got)
	}
	stop()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v %v", st, err)
	}
	l, stop = open(t, path, &log)
	add(l, "three")
	if got := whys(t, l); got != "one,two,three" {
		t.Errorf("after a restart: %q", got)
	}
	stop()
	if entries, err := Read(path); err != nil || len(entries) != 3 || !entries[0].Time.Equal(noon) || entries[0].Node != "a" {
		t.Errorf("read past the agent: %+v, %v", entries, err)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", &log)
	}
}

// A crash in the middle of a line costs that line and no other.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.history")
	var log bytes.Buffer
	l, stop := open(t, path, &log)
	add(l, "one")
	add(l, "two")
	stop()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(b) - 1; cut > len(b)/2+1; cut -= 7 {
		if err := os.WriteFile(path, b[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l, stop = open(t, path, &log)
		add(l, "three")
		want := "one,three"
		if cut == len(b)-1 {
			want = "one,two,three" // only the newline was missing
		}
		if got := whys(t, l); got != want {
			t.Errorf("cut at %d: %q, want %q", cut, got, want)
		}
		stop()
		if entries, err := Read(path); err != nil || len(entries) != strings.Count(want, ",")+1 {
			t.Errorf("cut at %d: %+v, %v", cut, entries, err)
		}
	}
	// Rubbish in the middle is stepped over, too.
	if err := os.WriteFile(path, []byte(string(b)+"\x00\x00\n{}\n[1]\n"+string(b)), 0o600); err != nil {
		t.Fatal(err)
	}
	if entries, err := Read(path); err != nil || len(entries) != 4 {
		t.Errorf("%+v, %v", entries, err)
	}
}

func TestCap(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.history")
	var log bytes.Buffer
	l, stop := open(t, path, &log)
	long := strings.Repeat("x", 2*maxText)
	n := 3 * maxFile / maxText
	for i := range n {
		add(l, fmt.Sprintf("%06d %s", i, long))
		if i%100 == 0 {
			l.write()
		}
	}
	stop()
	var total int64
	for _, p := range []string{path, path + ".1"} {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > 2*maxFile {
		t.Errorf("%d bytes are kept, want at most %d", total, 2*maxFile)
	}
	entries, err := Read(path)
	if err != nil || len(entries) < maxFile/(maxText+200) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for i, e := range entries {
		if want := fmt.Sprintf("%06d ", n-len(entries)+i); !strings.HasPrefix(e.Why, want) || len(e.Why) > maxText {
			t.Fatalf("entry %d is %q, want %q…", i, e.Why[:10], want)
		}
	}
}

// A disk that takes nothing costs bounded memory and one line in the log, and what
// is still in memory is written when it is mended.
func TestUnwritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(dir, "a.history")
	var log bytes.Buffer
	l, stop := open(t, path, &log) // the folder is missing
	for i := range maxPending + 10 {
		add(l, fmt.Sprint(i))
		if i%200 == 0 {
			l.write()
		}
	}
	if entries, err := l.Entries(); err != nil || len(entries) != maxPending || entries[0].Why != "10" {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stop()
	entries, err := Read(path)
	if err != nil || len(entries) != maxPending || entries[maxPending-1].Why != fmt.Sprint(maxPending+9) {
		t.Errorf("%d entries are written in the end, %v", len(entries), err)
	}
	if n := strings.Count(log.String(), "cannot be written"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
	if !strings.Contains(log.String(), "history lost entries") {
		t.Errorf("the loss is not logged:\n%s", &log)
	}
}

func TestInMemory(t *testing.T) {
	var log bytes.Buffer
	l, stop := open(t, "", &log)
	add(l, "one")
	l.write()
	stop()
	if got := whys(t, l); got != "one" || log.Len() > 0 {
		t.Errorf("%q, logged %q", got, &log)
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	if _, err := Open(t.TempDir(), slog.Default()); err == nil {
		t.Error("a folder was taken for a history")
	}
}

func TestText(t *testing.T) {
	at := func(e Entry) string {
		e.Time, e.Node = noon.Add(1234567*time.Microsecond), "b"
		return e.Text(time.FixedZone("x", 3600))
	}
	for _, tc := range []struct {
		e    Entry
		want string
	}{
		{Entry{Kind: KindRole, From: "Secondary", To: "Primary", Epoch: 4, Why: "b took over from a"}, "Secondary -> Primary, epoch 4: b took over from a"},
		{Entry{Kind: KindRecord, To: "b", Epoch: 4, InSync: []string{"a", "b"}, Why: "a has caught up", By: "node b"}, "record: epoch 4, primary b, in sync a,b: a has caught up [node b]"},
		{Entry{Kind: KindRequest, Why: "promote --force", By: "local, uid 0/root"}, "request: promote --force [local, uid 0/root]"},
		{Entry{Kind: KindRequest, Why: "promote is done: b is primary of epoch 4", Seconds: 3.4567, By: "node a"}, "request: promote is done: b is primary of epoch 4 (after 3.46 s) [node a]"},
		{Entry{Kind: KindPhase, Phase: "claim", Seconds: 0.0312}, "claim took 31 ms"},
		{Entry{Kind: KindPhase, Phase: "frozen", Seconds: 125, Why: "the peer\nis back"}, "frozen took 2m5s: the peer; is back"},
		{Entry{Kind: KindEvent, Why: "b joined"}, "b joined"},
	} {
		if got, want := at(tc.e), "2026-11-22 13:00:01.234  b  "+tc.want; got != want {
			t.Errorf("%q\nwant\n%q", got, want)
		}
	}
}

func TestMerge(t *testing.T) {
	e := func(s int, why string) Entry {
		return Entry{Time: noon.Add(time.Duration(s) * time.Second), Kind: KindEvent, Why: why}
	}
	var got []string
	// a's clock is set back after a2.
	for _, e := range Merge([]Entry{e(1, "a1"), e(5, "a2"), e(2, "a3"), e(9, "a4")}, []Entry{e(0, "b1"), e(3, "b2"), e(6, "b3")}, nil) {
		got = append(got, e.Why)
	}
	if want := "b1,a1,b2,a2,a3,b3,a4"; strings.Join(got, ",") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
