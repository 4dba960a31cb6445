package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// loadWorkers batches in flight keep a group commit busy without flooding a small server.
	loadWorkers = 8
	// loadBatchBytes and loadBatchItems bound one batch of the load phase.
	loadBatchBytes = 256 << 10
	loadBatchItems = 100
	// loadPatience is how long one batch is tried again: longer than a fail-over with an election that splits.
	// A put of the same keys is harmless to repeat, whatever became of the first.
	loadPatience = 15 * time.Second
	loadPauseMin = 20 * time.Millisecond
	loadPauseMax = 500 * time.Millisecond
)

// loadKeys writes every key of the plan once.
func loadKeys(ctx context.Context, t Target, p *plan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	total := p.opts.Keys
	step := min(max(loadBatchBytes/(p.opts.ValueBytes+64), 1), loadBatchItems)
	starts := make(chan int)
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		done     int
		firstErr error
	)
	for i := range loadWorkers {
		// Loaders: owned by loadKeys; each ends when starts is closed.
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(p.opts.Seed, uint64(i)<<32))
			for start := range starts {
				n := min(step, total-start)
				err := loadBatch(ctx, t, p, rng, start, n)
				mu.Lock()
				if err != nil && firstErr == nil {
					firstErr = err
					cancel()
				}
				done += n
				if p.opts.Progress != nil && err == nil {
					p.opts.Progress(done, total)
				}
				mu.Unlock()
			}
		})
	}
	for start := 0; start < total && ctx.Err() == nil; start += step {
		select {
		case starts <- start:
		case <-ctx.Done():
		}
	}
	close(starts)
	wg.Wait()
	if firstErr != nil {
		return firstErr
	}
	return ctx.Err()
}

func loadBatch(ctx context.Context, t Target, p *plan, rng *rand.Rand, start, n int) error {
	keys, values := make([]string, n), make([][]byte, n)
	for i := range keys {
		keys[i], values[i] = p.keys.name(int64(start+i)), p.fill.value(rng)
	}
	err := insist(ctx, t, func() error { return t.PutMany(ctx, keys, values) })
	if err != nil {
		return fmt.Errorf("cannot put keys %d to %d: %w", start, start+n-1, err)
	}
	return nil
}

// insist repeats f, which must be harmless to repeat, for loadPatience unless its error cannot pass.
func insist(ctx context.Context, t Target, f func() error) error {
	start, pause := time.Now(), loadPauseMin
	for {
		err := f()
		if err == nil {
			return nil
		}
		if k := t.Kind(err); time.Since(start) > loadPatience || ctx.Err() != nil || k == KindDenied || k == KindRefused {
			return err
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, loadPauseMax)
		case <-ctx.Done():
		}
	}
}
