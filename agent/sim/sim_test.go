package sim

import (
	"crypto/sha256"
	"runtime"
	"sync"
	"testing"
)

// TestLives runs the seeds that every change is tried on; `make sim` runs more.
func TestLives(t *testing.T) {
	n := uint64(60)
	if testing.Short() {
		n = 10
	}
	lives(t, 1, n, 2)
}

// TestThreeNodes is the same with three.
func TestThreeNodes(t *testing.T) {
	n := uint64(60)
	if testing.Short() {
		n = 10
	}
	lives(t, 1, n, 3)
}

// lives runs seeds, as many at a time as there are cores.
func lives(t *testing.T, from, n uint64, nodes int) *Stats {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		stats Stats
	)
	for k := range uint64(runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for seed := from + k; seed < from+n; seed += uint64(runtime.GOMAXPROCS(0)) {
				r := Run(seed, Options{Nodes: nodes})
				mu.Lock()
				stats.Add(r)
				if r.Failed != "" {
					t.Errorf("seed %d: %s\nreplay: go run ./cmd/simulate --nodes %d --seed %d --trace", seed, r.Failed, nodes, seed)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return &stats
}

// TestSameSeedSameTrace: nothing but the seed decides, not even the order of a
// map. Two lives of one seed leave the same bytes.
func TestSameSeedSameTrace(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		var sum [2][32]byte
		for i := range sum {
			r := Run(seed, Options{Nodes: 2 + int(seed%2), Trace: true, Ops: 600})
			sum[i] = sha256.Sum256(r.Trace)
		}
		if sum[0] != sum[1] {
			t.Errorf("seed %d: two lives, two traces", seed)
		}
	}
}

// TestTracingChangesNothing: what is looked at goes as it goes unseen.
func TestTracingChangesNothing(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := Run(seed, Options{Ops: 600}), Run(seed, Options{Ops: 600, Trace: true})
		if a.Events != b.Events || a.Now != b.Now || a.Ops != b.Ops {
			t.Errorf("seed %d: %d events untraced, %d traced", seed, a.Events, b.Events)
		}
	}
}

func BenchmarkLife(b *testing.B) {
	for i := range b.N {
		Run(uint64(i+1), Options{})
	}
}
