package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// Bounds and defaults of measurements that alternate between several servers.
const (
	compareCallers    = 64
	compareKeys       = 100_000
	compareValueBytes = 128
	compareRounds     = 5
	compareDuration   = 2 * time.Second
	compareRoundsMax  = 1000
)

// compareWarmup is what each part runs before it counts: connections and buffers are then as they stay. Changed by tests
// alone.
var compareWarmup = 500 * time.Millisecond

// contender is one of several servers that are driven in turn with the same load.
type contender struct {
	name   string
	target Target
	pids   []int
	// paced, when not 0, is how many places before this one the contender stands whose rate of the same round this one is
	// driven at, instead of as fast as it can.
	paced int
}

// sample is what one part measured.
type sample struct {
	cpu, rate float64 // µs of the servers' CPU for one operation; operations per second
	failed    uint64  // errors, and reads that found nothing
	why       string  // one of them
}

// interleave drives all contenders one after the other, rounds times, so that a machine whose speed changes changes it
// for all of them. It gives the samples by contender and round.
func interleave(ctx context.Context, o Options, rounds int, all []contender, tell func(string)) ([][]sample, error) {
	samples := make([][]sample, len(all))
	for round := range rounds {
		if tell != nil {
			tell(fmt.Sprintf("%s, round %d of %d", o.Workload, round+1, rounds))
		}
		for i, c := range all {
			o := o
			o.ServerPIDs, o.SkipLoad = c.pids, true
			if c.paced != 0 {
				// Something was done, or its CPU time per operation would be unknown.
				o.Rate = samples[i-c.paced][round].rate
			}
			rep, err := Run(ctx, c.target, o)
			if err != nil {
				return nil, fmt.Errorf("cannot measure %s: %w", c.name, err)
			}
			if rep.ServerCPUMicrosPerOp <= 0 {
				return nil, fmt.Errorf("cannot measure the CPU time of %s: its processes %v cannot be read, or nothing was done", c.name, c.pids)
			}
			samples[i] = append(samples[i], sampleOf(rep))
		}
	}
	return samples, nil
}

func sampleOf(rep *Report) sample {
	s := sample{cpu: rep.ServerCPUMicrosPerOp, rate: rep.OpsPerSecond, failed: rep.Errors}
	for _, text := range rep.ErrorSamples {
		s.why = text
	}
	for _, op := range rep.Operations {
		if op.Misses > 0 {
			s.failed += op.Misses
			s.why = "a read found no record"
		}
	}
	return s
}

// loadAll writes the keys that reads will find.
func loadAll(ctx context.Context, t Target, o Options) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	if err := loadKeys(ctx, t, newPlan(o)); err != nil {
		return fmt.Errorf("cannot load %d keys: %w", o.Keys, err)
	}
	return nil
}

// checkCompare checks what measurements that alternate have in common.
func checkCompare(rounds int, pids []int) error {
	var errs []error
	if rounds < 1 || rounds > compareRoundsMax {
		errs = append(errs, fmt.Errorf("%d rounds: 1 to %d", rounds, compareRoundsMax))
	}
	if len(pids) == 0 {
		errs = append(errs, errors.New("the servers' processes are not known: their CPU time is what is compared"))
	}
	return errors.Join(errs...)
}

// figures gives f of each sample.
func figures(samples []sample, f func(sample) float64) []float64 {
	v := make([]float64, len(samples))
	for i, s := range samples {
		v[i] = f(s)
	}
	return v
}

func cpuOf(s sample) float64  { return s.cpu }
func rateOf(s sample) float64 { return s.rate }

// failures adds up what failed, with the text of one.
func failures(groups ...[]sample) (n uint64, why string) {
	for _, samples := range groups {
		for _, s := range samples {
			if n += s.failed; s.failed > 0 {
				why = s.why
			}
		}
	}
	return n, why
}

// medianOf gives the middle of values, the mean of the two middle ones of an even number; 0 of none.
func medianOf(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// turns hands out places in a circle.
type turns struct{ n atomic.Uint32 }

func (t *turns) next(of int) int {
	if of == 1 {
		return 0
	}
	return int((t.n.Add(1) - 1) % uint32(of))
}
