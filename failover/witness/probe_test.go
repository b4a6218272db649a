package witness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tandem/failover/witness/etcd/etcdtest"
)

// broken is a good store spoiled in one way. The probe has to notice on the
// register that it is given for that.
type broken struct {
	Store
	cas  func(r Register, ctx context.Context, expect string, data []byte) (string, error)
	read func(r Register, ctx context.Context) ([]byte, string, error)
}

type brokenRegister struct {
	Register
	b *broken
}

func (b *broken) Scratch(ctx context.Context, name string) (Register, func(context.Context) error, error) {
	r, remove, err := b.Store.Scratch(ctx, name)
	return &brokenRegister{r, b}, remove, err
}

func (r *brokenRegister) CAS(ctx context.Context, expect string, data []byte) (string, error) {
	if r.b.cas == nil {
		return r.Register.CAS(ctx, expect, data)
	}
	return r.b.cas(r.Register, ctx, expect, data)
}

func (r *brokenRegister) Read(ctx context.Context) ([]byte, string, error) {
	if r.b.read == nil {
		return r.Register.Read(ctx)
	}
	return r.b.read(r.Register, ctx)
}

// anyway writes whatever the version is.
func anyway(ctx context.Context, r Register, data []byte) (string, error) {
	_, v, err := r.Read(ctx)
	if err != nil {
		return "", err
	}
	return r.CAS(ctx, v, data)
}

var errTest = errors.New("the test says so")

func TestProbe(t *testing.T) {
	for _, tc := range []struct {
		name  string
		b     broken
		unfit bool
		err   string // a part of it; "": none
	}{
		{"a good one", broken{}, false, ""},
		{"it creates twice", broken{cas: func(r Register, ctx context.Context, expect string, data []byte) (string, error) {
			if expect == "" {
				return anyway(ctx, r, data)
			}
			return r.CAS(ctx, expect, data)
		}}, true, "a second create was accepted"},
		{"it takes any version", broken{cas: func(r Register, ctx context.Context, expect string, data []byte) (string, error) {
			if expect != "" {
				return anyway(ctx, r, data)
			}
			return r.CAS(ctx, expect, data)
		}}, true, "a change of an old version was accepted"},
		{"it says no and writes", broken{cas: func(r Register, ctx context.Context, expect string, data []byte) (string, error) {
			v, err := r.CAS(ctx, expect, data)
			if errors.Is(err, ErrConflict) {
				if _, err := anyway(ctx, r, data); err != nil {
					return "", err
				}
			}
			return v, err
		}}, true, "a second create was refused and done all the same"},
		{"it always says no", broken{cas: func(Register, context.Context, string, []byte) (string, error) {
			return "", ErrConflict
		}}, false, ErrConflict.Error()},
		{"it shows nothing yet", broken{read: func(Register, context.Context) ([]byte, string, error) {
			return nil, "", nil
		}}, false, "what was written a moment ago is not what is read"},
		{"it is out", broken{cas: func(Register, context.Context, string, []byte) (string, error) {
			return "", errTest
		}}, false, errTest.Error()},
		{"it cannot be read", broken{read: func(Register, context.Context) ([]byte, string, error) {
			return nil, "", errTest
		}}, false, errTest.Error()},
		{"it goes out when the second create is refused", broken{cas: func(r Register, ctx context.Context, expect string, data []byte) (string, error) {
			v, err := r.CAS(ctx, expect, data)
			if errors.Is(err, ErrConflict) {
				return "", errTest
			}
			return v, err
		}}, false, errTest.Error()},
		{"it hangs", broken{cas: func(_ Register, ctx context.Context, _ string, _ []byte) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}}, false, context.DeadlineExceeded.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			var err error
			if tc.b.Store, err = Open("file:w", dir); err != nil {
				t.Fatal(err)
			}
			err = Probe(t.Context(), &tc.b, 200*time.Millisecond)
			if (err == nil) != (tc.err == "") || !strings.Contains(errText(err), tc.err) || errors.Is(err, ErrIgnoresConditions) != tc.unfit {
				t.Fatalf("got %v", err)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
		})
	}
}

// A server that speaks etcd and ignores conditions is told from an etcd over the
// wire, by transactions and not by what our own side notices.
func TestProbeOverTheWire(t *testing.T) {
	for _, tc := range []struct {
		lies bool
		err  string
	}{
		{false, "a second create was accepted"},
		{true, "a second create was refused and done all the same"},
	} {
		c := etcdtest.StartCareless(t)
		c.Lies = tc.lies
		s, err := Open("etcd://"+c.Addr+"/record", ".")
		if err != nil {
			t.Fatal(err)
		}
		err = Probe(t.Context(), s, 10*time.Second)
		if !errors.Is(err, ErrIgnoresConditions) || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("got %v", err)
		}
		if n := c.Keys(); n != 0 {
			t.Errorf("%d keys are left behind", n)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// An outage is no verdict.
func TestProbeOfNothing(t *testing.T) {
	for _, url := range []string{"file:missing/w", "etcd://127.0.0.1:1,127.0.0.1:2/w"} {
		s, err := Open(url, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := Probe(t.Context(), s, time.Second); err == nil || errors.Is(err, ErrIgnoresConditions) {
			t.Errorf("%s: %v", url, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What a killed agent left is removed by a later one, and nothing else is.
func TestScratchFilesOfTheDead(t *testing.T) {
	dir := t.TempDir()
	const dead, fresh = "w[1].probe-ABCDEFGHIJKLMNOPQRSTUVWXYZ", "w[1].probe-ZYXWVUTSRQPONMLKJIHGFEDCBA"
	keep := []string{"w[1]", "w[1].lock", "w1.probe-ABCDEFGHIJKLMNOPQRSTUVWXYZ", "w[1].probe-of-somebody-else", fresh}
	for _, name := range append([]string{dead, dead + ".lock"}, keep...) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if name != fresh {
			if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s, err := Open("file:w[1]", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := Probe(t.Context(), s, time.Second); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != len(keep) {
		t.Fatalf("%v %v", left, err)
	}
	for _, name := range keep {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}
