package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// GrowthOptions describes a comparison of a store that holds many records with one that holds few.
type GrowthOptions struct {
	// Small and Large are the two stores. Nothing else lies in them, and nobody else uses them.
	Small, Large Target
	// SmallPIDs and LargePIDs are their processes on this machine. Required.
	SmallPIDs, LargePIDs []int
	// SmallKeys and Keys are how many records the two hold. Defaults 100,000 and 10,000,000.
	SmallKeys, Keys int
	// ValueBytes is the length of each value. Default 128.
	ValueBytes int
	// Callers of each run. Default 256.
	Callers int
	// Duration is the measured time of each part of a round. Default 2s.
	Duration time.Duration
	// Rounds is how often all parts are measured. Default 5.
	Rounds int
	// SettleTimeout bounds the wait for the work that loading leaves behind. Default 5m.
	SettleTimeout time.Duration
	// KeyPrefix keeps the keys apart from others'. Default "kvbench/".
	KeyPrefix string
	// SkipLoad trusts that an earlier call has loaded the same keys.
	SkipLoad bool
	// Progress, when set, hears what is about to be done; Loaded hears of the load phase as Options.Progress does.
	Progress func(text string)
	// Loaded hears how far the load phase is.
	Loaded func(done, total int)
}

// GrowthReport is the result of Growth.
type GrowthReport struct {
	Machine    Machine `json:"machine"`
	Nodes      int     `json:"nodes,omitempty"`
	SmallKeys  int     `json:"small_keys"`
	Keys       int     `json:"keys"`
	ValueBytes int     `json:"value_bytes"`
	Callers    int     `json:"callers"`
	Rounds     int     `json:"rounds"`
	Seconds    float64 `json:"seconds"`
	// RSSAnonBytes and SmallRSSAnonBytes are RssAnon of each process, once the load had settled and before anything was
	// measured.
	RSSAnonBytes      []int64 `json:"rss_anon_bytes"`
	SmallRSSAnonBytes []int64 `json:"small_rss_anon_bytes"`
	// LoadSeconds and SettleSeconds are what loading the many took, and until the servers were idle after it.
	LoadSeconds   float64 `json:"load_seconds"`
	SettleSeconds float64 `json:"settle_seconds"`
	Settled       bool    `json:"settled"`
	// Growth has one entry for hot gets and one for uniform puts.
	Growth []GrowthPart `json:"growth"`
}

// GrowthPart compares one workload: medians over the rounds.
type GrowthPart struct {
	Workload     string  `json:"workload"`
	Distribution string  `json:"distribution"`
	Rate         float64 `json:"ops_per_second"`
	SmallRate    float64 `json:"small_ops_per_second"`
	CPU          float64 `json:"server_cpu_us"`
	SmallCPU     float64 `json:"small_server_cpu_us"`
	// Ratio is the median of Rate over SmallRate of the same round, from RatioMin to RatioMax.
	Ratio        float64 `json:"ratio"`
	RatioMin     float64 `json:"ratio_min"`
	RatioMax     float64 `json:"ratio_max"`
	Failed       uint64  `json:"failed"`
	FailedSample string  `json:"failed_sample,omitempty"`
}

// growthParts are the workloads that growth is judged by. Gets come first: puts leave work behind.
var growthParts = []struct{ workload, distribution string }{{"get", "hot"}, {"put", "uniform"}}

// Growth loads both stores, waits until they are idle, reads their memory, and drives them in turn.
func Growth(ctx context.Context, o GrowthOptions) (*GrowthReport, error) {
	setDefault(&o.SmallKeys, 100_000)
	setDefault(&o.Keys, 10_000_000)
	setDefault(&o.ValueBytes, compareValueBytes)
	setDefault(&o.Callers, ClusterCallers)
	setDefault(&o.Duration, compareDuration)
	setDefault(&o.Rounds, compareRounds)
	setDefault(&o.SettleTimeout, 5*time.Minute)
	base := Options{ValueBytes: o.ValueBytes, Concurrency: o.Callers, Duration: o.Duration, Warmup: compareWarmup, KeyPrefix: o.KeyPrefix, Progress: o.Loaded}
	sides := [2]struct {
		contender
		keys int
	}{
		{contender{name: fmt.Sprintf("%d keys", o.SmallKeys), target: o.Small, pids: o.SmallPIDs}, o.SmallKeys},
		{contender{name: fmt.Sprintf("%d keys", o.Keys), target: o.Large, pids: o.LargePIDs}, o.Keys},
	}
	tell := func(text string) {
		if o.Progress != nil {
			o.Progress(text)
		}
	}
	for _, s := range sides {
		of := base
		of.Keys = s.keys
		if err := errors.Join(of.Validate(), checkCompare(o.Rounds, s.pids)); err != nil {
			return nil, fmt.Errorf("cannot compare growth: %w", err)
		}
	}
	rep := &GrowthReport{
		Machine: ReadMachine(""), SmallKeys: o.SmallKeys, Keys: o.Keys, ValueBytes: o.ValueBytes, Callers: o.Callers, Rounds: o.Rounds, Seconds: o.Duration.Seconds(),
	}
	for i, s := range sides {
		if o.SkipLoad {
			break
		}
		tell("loading " + s.name)
		start := time.Now()
		of := base
		of.Keys = s.keys
		if err := loadAll(ctx, s.target, of); err != nil {
			return nil, err
		}
		if i == 1 {
			rep.LoadSeconds = time.Since(start).Seconds()
		}
	}
	tell("waiting until the servers are idle")
	start := time.Now()
	var err error
	if rep.Settled, err = settle(ctx, slices.Concat(o.SmallPIDs, o.LargePIDs), o.SettleTimeout); err != nil {
		return nil, err
	}
	rep.SettleSeconds = time.Since(start).Seconds()
	rep.RSSAnonBytes, rep.SmallRSSAnonBytes = readRSSAnon(o.LargePIDs), readRSSAnon(o.SmallPIDs)
	for _, part := range growthParts {
		var samples [2][]sample
		for round := range o.Rounds {
			tell(fmt.Sprintf("%s %s, round %d of %d", part.distribution, part.workload, round+1, o.Rounds))
			for i, s := range sides {
				of := base
				of.Workload, of.Distribution, of.Keys, of.ServerPIDs, of.SkipLoad = part.workload, part.distribution, s.keys, s.pids, true
				run, err := Run(ctx, s.target, of)
				if err != nil {
					return nil, fmt.Errorf("cannot measure %s with %s: %w", part.workload, s.name, err)
				}
				samples[i] = append(samples[i], sampleOf(run))
			}
		}
		rep.Growth = append(rep.Growth, growthPart(part.workload, part.distribution, samples[0], samples[1]))
	}
	return rep, nil
}

// growthPart compares the rounds of the large store with those of the small one.
func growthPart(workload, distribution string, small, large []sample) GrowthPart {
	p := GrowthPart{
		Workload: workload, Distribution: distribution,
		Rate: medianOf(figures(large, rateOf)), SmallRate: medianOf(figures(small, rateOf)),
		CPU: medianOf(figures(large, cpuOf)), SmallCPU: medianOf(figures(small, cpuOf)),
	}
	var ratios []float64
	for i := range large {
		if small[i].rate > 0 {
			ratios = append(ratios, large[i].rate/small[i].rate)
		}
	}
	if len(ratios) > 0 {
		p.Ratio, p.RatioMin, p.RatioMax = medianOf(ratios), slices.Min(ratios), slices.Max(ratios)
	}
	p.Failed, p.FailedSample = failures(small, large)
	return p
}

// Servers count as idle once they have used less than settleShare of one core for settleQuiet.
const (
	settleQuiet = 3 * time.Second
	settleShare = 0.1
)

// settle waits until the processes together are idle; false when they were not in time.
func settle(ctx context.Context, pids []int, timeout time.Duration) (bool, error) {
	for start := time.Now(); time.Since(start) < timeout; {
		from, before := time.Now(), readCPU(pids)
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(min(settleQuiet, timeout)):
		}
		after := readCPU(pids)
		if !before.serverKnown || !after.serverKnown {
			return false, fmt.Errorf("cannot read the CPU time of processes %v: has one ended?", pids)
		}
		if float64(after.server-before.server) < settleShare*float64(time.Since(from)) {
			return true, nil
		}
	}
	return false, nil
}

// Failed counts the operations that failed, and the reads that found nothing.
func (rep *GrowthReport) Failed() (n uint64) {
	for _, p := range rep.Growth {
		n += p.Failed
	}
	return n
}

// WriteJSON writes the report as one line of JSON.
func (rep *GrowthReport) WriteJSON(w io.Writer) error { return writeJSON(w, rep) }

// WriteTable writes the report for people.
func (rep *GrowthReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%d keys beside %d, values of %d B, %d callers: medians of %d rounds of %gs each, in turn\n",
		rep.Machine, rep.Keys, rep.SmallKeys, rep.ValueBytes, rep.Callers, rep.Rounds, rep.Seconds)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORKLOAD\tFEW: OPS/S\tCPU/OP\tMANY: OPS/S\tCPU/OP\tMANY OVER FEW\tFROM\tTO\tFAILED")
	for _, p := range rep.Growth {
		fmt.Fprintf(tw, "%s %s\t%s\t%s\t%s\t%s\t%.2f ×\t%.2f\t%.2f\t%d\n", p.Distribution, p.Workload, rateText(p.SmallRate), latencyText(p.SmallCPU),
			rateText(p.Rate), latencyText(p.CPU), p.Ratio, p.RatioMin, p.RatioMax, p.Failed)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	memory := func(all []int64) string {
		texts := make([]string, len(all))
		for i, n := range all {
			texts[i] = bytesText(n)
		}
		return strings.Join(texts, ", ")
	}
	fmt.Fprintf(&b, "anonymous memory (RssAnon) of each node: %s with the many, %s with the few\n", memory(rep.RSSAnonBytes), memory(rep.SmallRSSAnonBytes))
	if rep.LoadSeconds > 0 {
		fmt.Fprintf(&b, "loaded in %.0fs; ", rep.LoadSeconds)
	}
	if rep.Settled {
		fmt.Fprintf(&b, "the servers were idle after %.0fs more\n", rep.SettleSeconds)
	} else {
		fmt.Fprintf(&b, "the servers were NOT idle after %.0fs more\n", rep.SettleSeconds)
	}
	for _, p := range rep.Growth {
		if p.Failed > 0 {
			fmt.Fprintf(&b, "%s: %d operations failed, such as: %s\n", p.Workload, p.Failed, p.FailedSample)
		}
	}
	return writeText(w, b.String())
}
