// Command e2e-guest is the harness's half inside a virtual machine:
//
//	e2e-guest serve ADDRESS                                   run commands for the host
//	e2e-guest write DIR SEED WRITERS COUNT PACE               durable records, an "ack" line for each
//	e2e-guest check DIR SEED ACKED,ACKED,...                  what is left of them, as JSON; exit 1 if one is wrong
//	e2e-guest read FILE PACE                                  read a block past the page cache, again and again; a "read NANOSECONDS" line for each
//	e2e-guest fileops DIR SEED COUNT ENOUGH REPEATS           random operations on files against a model of them, so many and more until the file ENOUGH is there; "op NUMBER" lines
//	e2e-guest eat MIB                                         take all memory but so much, and use it
//	e2e-guest hold FILE COUNT                                 hold write locks on so many ranges; "held" when it has them
//	e2e-guest conflicts FILE COUNT                            on how many of these ranges somebody else has a lock
//	e2e-guest lock FILE DURATION                              hold a flock; exit 3 if it is held already
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tandem/e2e/fileops"
	"tandem/e2e/records"
	"tandem/e2e/remote"
)

var (
	errWrong  = errors.New("acknowledged records are missing or wrong")
	errLocked = errors.New("another process has the lock")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop() // not deferred: os.Exit would skip it
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "e2e-guest:", err)
	if errors.Is(err, errLocked) {
		os.Exit(3)
	}
	os.Exit(1)
}

func run(ctx context.Context, args []string) error {
	verb := strings.Join(args, " ")
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	switch {
	case verb == "serve" && len(args) == 1:
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		return remote.Serve(ctx, l)
	case verb == "write" && len(args) == 5:
		o := records.Options{Dir: args[0]}
		var e [4]error
		o.Seed, e[0] = strconv.ParseUint(args[1], 10, 64)
		o.Writers, e[1] = strconv.Atoi(args[2])
		o.Count, e[2] = strconv.Atoi(args[3])
		o.Pace, e[3] = time.ParseDuration(args[4])
		if err := errors.Join(e[:]...); err != nil {
			return err
		}
		return records.Write(ctx, o, os.Stdout)
	case verb == "check" && len(args) == 3:
		seed, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		var acked []int
		for s := range strings.SplitSeq(args[2], ",") {
			n, err := strconv.Atoi(s)
			if err != nil {
				return err
			}
			acked = append(acked, n)
		}
		r := records.Check(args[0], seed, acked)
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
		if !r.Whole() {
			return errWrong
		}
		return nil
	case verb == "read" && len(args) == 2:
		pace, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return read(ctx, args[0], pace)
	case verb == "fileops" && len(args) == 5:
		seed, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		repeats, err := strconv.Atoi(args[4])
		if err != nil {
			return err
		}
		return randomly(ctx, args[0], seed, count, args[3], repeats)
	case verb == "eat" && len(args) == 1:
		leave, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return err
		}
		return eat(ctx, leave<<20)
	case (verb == "hold" || verb == "conflicts") && len(args) == 2:
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		if verb == "hold" {
			return hold(ctx, args[0], n)
		}
		return conflicts(args[0], n)
	case verb == "lock" && len(args) == 2:
		d, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return lock(ctx, args[0], d)
	}
	return fmt.Errorf("what is %q?", verb)
}

// read reads the file's first block with O_DIRECT and says when, by the clock of this machine, each
// read had ended.
func read(ctx context.Context, path string, pace time.Duration) error {
	const block = 4096
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	buf, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	for ctx.Err() == nil {
		n, err := unix.Pread(fd, buf, 0)
		if err != nil || n != block {
			return fmt.Errorf("%d bytes read: %w", n, err)
		}
		fmt.Println("read", time.Now().UnixNano())
		time.Sleep(pace)
	}
	return nil
}

// randomly divides the operations among some who work at the same time, each in a folder and
// with a seed of its own: most of the time they wait for the server.
func randomly(ctx context.Context, dir string, seed uint64, count int, enough string, repeats int) error {
	const workers = 4
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	punch, err := fileops.CanPunch(dir)
	if err != nil {
		return err
	}
	fmt.Println("punch", punch)
	var (
		all  sync.WaitGroup
		errs [workers]error
		done progress
	)
	for i := range workers {
		all.Go(func() {
			errs[i] = fileops.Run(ctx, fileops.Options{Dir: fmt.Sprintf("%s/%d", dir, i), Seed: seed*workers + uint64(i), Count: count / workers, Punch: punch, Repeats: repeats, Enough: func() bool {
				_, err := os.Stat(enough)
				return err == nil
			}}, &done)
		})
	}
	all.Wait()
	return errors.Join(errs[:]...)
}

// progress says how many operations all have done, of what each says of its own.
type progress struct {
	mu sync.Mutex
	n  int
}

func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !strings.HasPrefix(string(b), "op ") {
		_, err := os.Stdout.Write(b)
		return len(b), err
	}
	p.n += fileops.Every
	_, err := fmt.Println("op", p.n)
	return len(b), err
}

// eat takes memory until only leave bytes are to be had, and more whenever there is more: pages
// that others have cached have to go. There is no swap, so what it has it keeps.
func eat(ctx context.Context, leave int64) error {
	const piece = 2 << 20
	var all [][]byte
	for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile("/proc/meminfo")
		if err != nil {
			return err
		}
		var free int64
		for line := range strings.Lines(string(b)) {
			if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &free); n == 1 {
				break
			}
		}
		if free<<10 > leave+piece {
			p := make([]byte, piece)
			for i := 0; i < len(p); i += 4096 {
				p[i] = 1
			}
			all = append(all, p)
		}
	}
	fmt.Println(len(all)*piece>>20, "MiB")
	return nil
}

// rangeOf is the i-th of the ranges: with gaps, so that they are not joined.
func rangeOf(i int, kind int16) *unix.Flock_t {
	return &unix.Flock_t{Type: kind, Whence: unix.SEEK_SET, Start: int64(i) * 100, Len: 50}
}

func hold(ctx context.Context, path string, n int) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range n {
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, rangeOf(i, unix.F_WRLCK)); err != nil {
			return fmt.Errorf("lock range %d: %w", i, err)
		}
	}
	fmt.Println("held")
	<-ctx.Done()
	return nil
}

func conflicts(path string, n int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	found := 0
	for i := range n {
		l := rangeOf(i, unix.F_WRLCK)
		if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, l); err != nil {
			return fmt.Errorf("ask for range %d: %w", i, err)
		}
		if l.Type == unix.F_WRLCK {
			found++
		}
	}
	fmt.Println(found)
	return nil
}

// lock takes the lock as the file witness does.
func lock(ctx context.Context, path string, d time.Duration) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errLocked
	case err != nil:
		return err
	}
	fmt.Println("locked")
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return nil
}
