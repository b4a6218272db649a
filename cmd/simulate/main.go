// Command simulate runs lives of a model cluster (package sim) and prints what
// happened in them. It fails if a life breaks a promise, or if something that
// has to be tested happened in fewer than one life in a hundred.
package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"tandem/agent/sim"
	"tandem/blockrepl"
	"tandem/failover"
)

func main() {
	app := &cli.App{
		Name:  "simulate",
		Usage: "run simulated lives of a cluster",
		Flags: []cli.Flag{
			&cli.Uint64Flag{Name: "seeds", Value: 500, Usage: "how many lives"},
			&cli.Uint64Flag{Name: "from", Value: 1, Usage: "the first seed"},
			&cli.IntFlag{Name: "workers", Value: 2, Usage: "lives at a time"},
			&cli.IntFlag{Name: "ops", Usage: "client operations a life"},
			&cli.IntFlag{Name: "nodes", Usage: "2, 3 or 4 nodes; 0: two and three in turns"},
			&cli.Uint64Flag{Name: "seed", Usage: "run this one life"},
			&cli.BoolFlag{Name: "trace", Usage: "with --seed: print the whole life"},
			&cli.UintFlag{Name: "vol-bug", Usage: "the number of a deliberate mistake in blockrepl"},
			&cli.UintFlag{Name: "vote-bug", Usage: "the number of one in failover"},
			&cli.IntFlag{Name: "stop", Value: 20, Usage: "give up after so many failed lives"},
		},
		Action: run,
	}
	if err := app.Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

func run(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	if n := c.Int("nodes"); n != 0 && (n < 2 || n > 4) {
		return fmt.Errorf("--nodes %d: a cluster has 2 to 4 nodes", n)
	}
	opt := sim.Options{Nodes: c.Int("nodes"), Ops: c.Int("ops"), VolBug: blockrepl.Bug(c.Uint("vol-bug")), VoteBug: failover.Bug(c.Uint("vote-bug"))}
	if c.IsSet("seed") {
		opt.Trace = c.Bool("trace")
		opt.Nodes = nodes(c.Uint64("seed"), opt.Nodes)
		r := sim.Run(c.Uint64("seed"), opt)
		if _, err := os.Stdout.Write(r.Trace); err != nil {
			return err
		}
		if r.Failed != "" {
			return fmt.Errorf("seed %d: %s", r.Seed, r.Failed)
		}
		fmt.Printf("seed %d: %d operations, %d events, %.1f s of virtual time\n", r.Seed, r.Ops, r.Events, float64(r.Now)/1e9)
		return nil
	}
	return many(opt, c.Uint64("from"), c.Uint64("seeds"), c.Int("workers"), c.Int("stop"))
}

// nodes is how many a life has: what was asked for, or as its seed says.
func nodes(seed uint64, asked int) int {
	if asked != 0 {
		return asked
	}
	return 2 + int(seed%2)
}

func many(opt sim.Options, from, n uint64, workers, stop int) error {
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		stats  sim.Stats
		failed int
		next   = from
	)
	began := time.Now()
	for range max(1, workers) {
		wg.Go(func() {
			for {
				mu.Lock()
				seed := next
				next++
				enough := seed >= from+n || failed >= stop
				mu.Unlock()
				if enough {
					return
				}
				opt := opt
				opt.Nodes = nodes(seed, opt.Nodes)
				r := sim.Run(seed, opt)
				mu.Lock()
				stats.Add(r)
				if r.Failed != "" {
					failed++
					fmt.Printf("seed %d: %s\n  replay: go run ./cmd/simulate --nodes %d --seed %d --trace\n", seed, r.Failed, opt.Nodes, seed)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	stats.Print(os.Stdout)
	lives := max(1, stats.Lives)
	fmt.Printf("%d lives, %d operations, %d events; %.1f ms a life on each of %d workers\n",
		stats.Lives, stats.Ops, stats.Events, took.Seconds()*1e3*float64(workers)/float64(lives), workers)
	fmt.Printf("after the last fault somebody served within %.1f s\n", float64(stats.Idle)/1e9)
	if failed > 0 {
		return fmt.Errorf("%d of %d lives failed", failed, stats.Lives)
	}
	if rare := stats.Rare(); len(rare) > 0 {
		return errors.New("too rare to have been tested: " + fmt.Sprint(rare))
	}
	return nil
}
