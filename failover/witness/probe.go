package witness

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Probe finds out whether s really refuses a second create and a CAS whose version
// is an old one, on a register of its own, never on the record. Each request has
// limit to be answered.
//
// An error that wraps ErrIgnoresConditions is a verdict: s is no witness. After any
// other error nothing is known, most likely because s does not answer, and the
// probe is to be made again before anything is written.
func Probe(ctx context.Context, s Store, limit time.Duration) (err error) {
	// A name of its own each time: what an earlier, undecided probe wrote may
	// still land, and must not look like a broken promise of this one.
	name := "probe-" + rand.Text()
	p := prober{limit: limit}
	var remove func(context.Context) error
	err = p.within(ctx, func(ctx context.Context) (err error) {
		p.r, remove, err = s.Scratch(ctx, name)
		return err
	})
	if err != nil {
		return fmt.Errorf("probe the witness: %w", err)
	}
	defer func() {
		// Also when ctx has ended. It goes by itself if this fails.
		_ = p.within(context.WithoutCancel(ctx), remove)
	}()
	if err := p.run(ctx, name); err != nil {
		return fmt.Errorf("probe the witness: %w", err)
	}
	return nil
}

// prober is one Probe under way.
type prober struct {
	r     Register
	limit time.Duration
}

func (p *prober) run(ctx context.Context, name string) error {
	content := func(i int) []byte { return fmt.Appendf(nil, "%s %d", name, i) }
	first, err := p.cas(ctx, "", content(1))
	if err != nil {
		return err
	}
	if err := p.refuses(ctx, "a second create", "", content(2), content(1), first); err != nil {
		return err
	}
	second, err := p.cas(ctx, first, content(3))
	if err != nil {
		return err
	}
	return p.refuses(ctx, "a change of an old version", first, content(4), content(3), second)
}

// refuses sends a CAS that must not be done, and looks whether it was: a store may
// say no and write all the same.
func (p *prober) refuses(ctx context.Context, what, expect string, data, held []byte, version string) error {
	switch _, err := p.cas(ctx, expect, data); {
	case err == nil:
		return fmt.Errorf("%s was accepted: %w", what, ErrIgnoresConditions)
	case !errors.Is(err, ErrConflict):
		return err
	}
	return p.within(ctx, func(ctx context.Context) error {
		got, v, err := p.r.Read(ctx)
		switch {
		case err != nil:
			return err
		case bytes.Equal(got, data):
			return fmt.Errorf("%s was refused and done all the same: %w", what, ErrIgnoresConditions)
		case !bytes.Equal(got, held) || v != version:
			return fmt.Errorf("what was written a moment ago is not what is read: %q of version %s instead of %q of version %s", got, v, held, version)
		}
		return nil
	})
}

func (p *prober) cas(ctx context.Context, expect string, data []byte) (version string, err error) {
	err = p.within(ctx, func(ctx context.Context) (err error) {
		version, err = p.r.CAS(ctx, expect, data)
		return err
	})
	return version, err
}

func (p *prober) within(ctx context.Context, request func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	return request(ctx)
}
