package bench

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// FloorOptions describes a measurement of the machine itself.
type FloorOptions struct {
	// Dir is where the disk is measured: the file system that will hold the data. Default ".".
	Dir string
	// Duration of each test. Default 1s.
	Duration time.Duration
	// Follower is the command of a process that calls FloorFollower. Default none: then the tests that need
	// three processes are left out.
	Follower []string
	// Tests names those to run, as FloorTest.Name has them. Default all.
	Tests []string
}

// FloorReport says what the machine can do at all: no server on it will be faster.
type FloorReport struct {
	Machine Machine     `json:"machine"`
	Dir     string      `json:"dir"`
	Tests   []FloorTest `json:"tests"`
}

// Test gives a test by its name, nil when it was not measured.
func (r *FloorReport) Test(name string) *FloorTest {
	i := slices.IndexFunc(r.Tests, func(t FloorTest) bool { return t.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Tests[i]
}

// FloorTest is one measurement; latencies are microseconds.
type FloorTest struct {
	Name         string  `json:"name"`
	Ops          uint64  `json:"ops"`
	Seconds      float64 `json:"seconds"`
	OpsPerSecond float64 `json:"ops_per_second"`
	P50          float64 `json:"p50"`
	P99          float64 `json:"p99"`
	Max          float64 `json:"max"`
	// BytesPerSecond is there where bytes are the point.
	BytesPerSecond float64 `json:"bytes_per_second,omitempty"`
}

// floorTest is one test by name.
type floorTest struct {
	name string
	f    func(context.Context, FloorOptions) (FloorTest, error)
}

var floorTests = []floorTest{
	{FloorFdatasync, floorOverwrite},
	{"fdatasync of 4 KiB, appended", floorAppend},
	{FloorFsync, floorFsync},
	{FloorLoopback, floorPingPong},
	{"loopback round trip of 64 B, 256 pipelined", floorPipelined},
	{"memory copy of 1 MiB", floorCopy},
}

// floorReplicatedTests need FloorOptions.Follower.
var floorReplicatedTests = []floorTest{
	{FloorReplicatedSequential, floorReplicated(false)},
	{FloorReplicatedOverlapped, floorReplicated(true)},
}

// Names of the tests that ratios are formed with.
const (
	FloorFdatasync = "fdatasync of 4 KiB, preallocated file overwritten"
	FloorFsync     = "fsync of 4 KiB, appended"
	FloorLoopback  = "loopback round trip of 64 B, 1 caller"
)

// FloorTests is how many tests a floor has, those with three processes included.
func FloorTests() int { return len(floorTests) + len(floorReplicatedTests) }

// Floor measures disk flushes, loopback round trips, memory copies and, with o.Follower, the smallest
// replicated write, one after the other.
func Floor(ctx context.Context, o FloorOptions) (*FloorReport, error) {
	setDefault(&o.Dir, ".")
	setDefault(&o.Duration, time.Second)
	rep := &FloorReport{Machine: ReadMachine(o.Dir), Dir: o.Dir}
	tests := floorTests
	if len(o.Follower) > 0 {
		tests = slices.Concat(floorTests, floorReplicatedTests)
	}
	for _, name := range o.Tests {
		if !slices.ContainsFunc(tests, func(t floorTest) bool { return t.name == name }) {
			return nil, fmt.Errorf("there is no test %q of the floor, or its followers are not known", name)
		}
	}
	for _, t := range tests {
		if len(o.Tests) > 0 && !slices.Contains(o.Tests, t.name) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return rep, fmt.Errorf("floor ended early: %w", err)
		}
		r, err := t.f(ctx, o)
		if err != nil {
			return rep, fmt.Errorf("cannot measure %s: %w", t.name, err)
		}
		r.Name = t.name
		rep.Tests = append(rep.Tests, r)
	}
	return rep, nil
}

// floorResult sums up a histogram.
func floorResult(h *hdr.Histogram, elapsed time.Duration) FloorTest {
	n := uint64(h.TotalCount())
	return FloorTest{
		Ops: n, Seconds: elapsed.Seconds(), OpsPerSecond: math.Round(float64(n)/elapsed.Seconds()*10) / 10,
		P50: quantile(h, 50), P99: quantile(h, 99), Max: micros(time.Duration(h.Max())),
	}
}

// repeat times f until the duration is over or ctx ends.
func repeat(ctx context.Context, d time.Duration, f func(i int) error) (FloorTest, error) {
	h := newHistogram()
	start := time.Now()
	for i := 0; ; i++ {
		t := time.Now()
		if i > 0 && (t.Sub(start) >= d || ctx.Err() != nil) {
			return floorResult(h, t.Sub(start)), nil
		}
		if err := f(i); err != nil {
			return FloorTest{}, err
		}
		record(h, time.Since(t))
	}
}

// floorCopy copies 1 MiB blocks between two areas larger than most caches.
func floorCopy(ctx context.Context, o FloorOptions) (FloorTest, error) {
	const block, area = 1 << 20, 64 << 20
	source, target := make([]byte, area), make([]byte, area)
	for i := range source {
		source[i], target[i] = byte(i), 1 // touches every page before the clock runs
	}
	r, err := repeat(ctx, o.Duration, func(i int) error {
		off := i % (area / block) * block
		copy(target[off:off+block], source[off:off+block])
		return nil
	})
	if err != nil {
		return r, err
	}
	r.BytesPerSecond = math.Round(float64(r.Ops) * block / r.Seconds)
	return r, nil
}

// WriteJSON writes the report as one line of JSON.
func (r *FloorReport) WriteJSON(w io.Writer) error {
	return writeJSON(w, r)
}

// WriteTable writes the report for people.
func (r *FloorReport) WriteTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nfloor of this machine, disk tests in %s\n", r.Machine, r.Dir)
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TEST\tOPS\tOPS/S\tP50\tP99\tMAX\tRATE")
	for _, t := range r.Tests {
		rate := "-"
		if t.BytesPerSecond > 0 {
			rate = bytesText(int64(t.BytesPerSecond)) + "/s"
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", t.Name, t.Ops, rateText(t.OpsPerSecond), latencyText(t.P50), latencyText(t.P99), latencyText(t.Max), rate)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("cannot write report: %w", err)
	}
	return nil
}
