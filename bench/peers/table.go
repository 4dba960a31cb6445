package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"kvstore/bench"
)

// Lines between which tableCommand puts its tables into a page.
const (
	markerBegin = "<!-- made by make bench-peers: begin -->"
	markerEnd   = "<!-- made by make bench-peers: end -->"
)

// lineBytesMax bounds one line of a file of results.
const lineBytesMax = 16 << 20

func tableCommand(args []string) error {
	f := flag.NewFlagSet("peers table", flag.ContinueOnError)
	into := f.String("into", "", "a page whose part between the markers is replaced (default: the tables go to stdout)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() == 0 {
		return errors.New("table needs a FILE of results")
	}
	var all results
	for _, name := range f.Args() {
		if err := all.readFile(name); err != nil {
			return err
		}
	}
	if *into == "" {
		return all.write(os.Stdout)
	}
	return replace(*into, &all)
}

// results are the last of each kind in the files that were read.
type results struct {
	comparison *comparison
	growth     *bench.GrowthReport
}

func (r *results) readFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("cannot read results: %w", err)
	}
	err = r.read(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("cannot read results of %s: %w", name, err)
	}
	return nil
}

func (r *results) read(from io.Reader) error {
	sc := bufio.NewScanner(from)
	sc.Buffer(nil, lineBytesMax)
	for n := 1; sc.Scan(); n++ {
		var kind struct {
			Peers  json.RawMessage `json:"peers"`
			Growth json.RawMessage `json:"growth"`
		}
		err := json.Unmarshal(sc.Bytes(), &kind)
		switch {
		case err != nil:
		case kind.Peers != nil:
			r.comparison = new(comparison)
			err = json.Unmarshal(sc.Bytes(), r.comparison)
		case kind.Growth != nil:
			r.growth = new(bench.GrowthReport)
			err = json.Unmarshal(sc.Bytes(), r.growth)
		default:
			err = errors.New("neither a comparison nor growth")
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return sc.Err()
}

// replace puts the tables between the markers of a page.
func replace(page string, r *results) error {
	var b strings.Builder
	if err := r.write(&b); err != nil {
		return err
	}
	return bench.ReplaceInPage(page, markerBegin, markerEnd, b.String())
}

// Verdicts of the last column.
const (
	met         = "met"
	missed      = "**missed**"
	notMeasured = "not measured"
	noTarget    = ""
)

func verdict(ok bool) string {
	if ok {
		return met
	}
	return missed
}

func (r *results) write(w io.Writer) error {
	var b strings.Builder
	if c := r.comparison; c != nil {
		c.write(&b)
	}
	r.writeOwn(&b)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("cannot write the tables: %w", err)
	}
	return nil
}

// write makes the table of the peers.
func (c *comparison) write(b *strings.Builder) {
	fmt.Fprintf(b, "Commit %.10s, %s, %s. P50 of a lone fdatasync of 4 KiB: %s; of the floor of three processes: %s.\n",
		c.Commit, c.Date, c.Machine, micros(c.Fdatasync), micros(c.Replicated))
	pairs := 0
	for _, r := range c.Rows {
		pairs = max(pairs, len(r.Pairs))
	}
	fmt.Fprintf(b, "%d pairs of turns of %g s for each row; medians, and the range of the ratios of single pairs.\n\n", pairs, c.Seconds)
	fmt.Fprintln(b, "| what | beside | its figure | its server CPU/op | ours | our server CPU/op | ratio | CPU ratio | target | |")
	fmt.Fprintln(b, "|---|---|---|---|---|---|---|---|---|---|")
	for _, want := range rows {
		i := slices.IndexFunc(c.Rows, func(r result) bool {
			return r.Row == want.name && strings.HasPrefix(r.Peer, want.peerPrefix()) && r.ofBenchmark() == (want.peer == "redis-benchmark")
		})
		if i < 0 {
			fmt.Fprintf(b, "| %s | %s | | | | | | | %s | %s |\n", want.name, want.peer, want.target(), notMeasured)
			continue
		}
		r := &c.Rows[i]
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r.Row, r.Peer, figure(r.Unit, r.Other), micros(r.OtherCPU),
			figure(r.Unit, r.Own), micros(r.OwnCPU), r.Ratio, r.CPURatio, want.target(), want.judge(r))
	}
	fmt.Fprintln(b)
	for _, text := range c.Left {
		fmt.Fprintf(b, "Left out: %s.\n", text)
	}
	for _, r := range c.Rows {
		if r.Failed > 0 {
			fmt.Fprintf(b, "%s, beside %s: %d operations failed, such as: %s.\n", r.Row, r.Peer, r.Failed, r.Why)
		}
	}
	if len(c.Left) > 0 {
		fmt.Fprintln(b)
	}
}

// peerPrefix is how the peer's version begins.
func (r row) peerPrefix() string {
	if r.peer == "redis-benchmark" {
		return "redis"
	}
	return r.peer
}

// ofBenchmark: the peer was driven by redis-benchmark.
func (r *result) ofBenchmark() bool { return strings.Contains(r.Peer, "redis-benchmark") }

// target says what is asked for.
func (r row) target() string {
	var asked []string
	if r.ratio > 0 && r.unit == unitRate {
		asked = append(asked, fmt.Sprintf("≥ %g ×", r.ratio))
	}
	if r.ratio > 0 && r.unit == unitP50 {
		asked = append(asked, fmt.Sprintf("≤ %g ×", r.ratio))
	}
	if r.cpuMax > 0 {
		asked = append(asked, fmt.Sprintf("CPU ≤ %g ×", r.cpuMax))
	}
	return strings.Join(asked, ", ")
}

// judge compares medians with what is asked for. A row with failures meets nothing.
func (r row) judge(got *result) string {
	if r.ratio == 0 {
		return noTarget
	}
	ok := got.Ratio.Median >= r.ratio
	if r.unit == unitP50 {
		ok = got.Ratio.Median > 0 && got.Ratio.Median <= r.ratio
	}
	if r.cpuMax > 0 {
		ok = ok && got.CPURatio.Median > 0 && got.CPURatio.Median <= r.cpuMax
	}
	return verdict(ok && got.Failed == 0)
}

// writeOwn makes the table of what has no peer.
func (r *results) writeOwn(b *strings.Builder) {
	fmt.Fprintln(b, "| what, of ours alone | figure | target | |")
	fmt.Fprintln(b, "|---|---|---|---|")
	line := func(what, figure, target, verdict string) {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", what, figure, target, verdict)
	}
	for _, of := range []struct{ name, row, target string }{{"GET", rowGet, "0 on client and servers"}, {"PUT", rowPut, fmt.Sprintf("≤ %d beyond Badger's own", putAllocsMax)}} {
		client, server, idle := r.allocations(of.row)
		if client == nil || server == nil {
			line("allocations per "+of.name, "", of.target, notMeasured)
			continue
		}
		text := fmt.Sprintf("client %.3f, servers %.3f", *client, *server)
		if idle > 0 {
			text += fmt.Sprintf(", of which idle servers make %.3f", idle)
		}
		if of.row == rowGet {
			line("allocations per GET, 256 callers", text, of.target, verdict(*client <= getAllocsMax && *server-idle <= getAllocsMax))
			continue
		}
		more, judged := r.comparison.judgePutAllocs(*server, idle)
		line("allocations per PUT, 256 callers, three nodes, Badger's own included", text+more, of.target, judged)
	}
	g := r.growth
	for _, of := range []struct {
		workload string
		atLeast  float64
	}{{"get", growthGetMin}, {"put", growthPutMin}} {
		target := fmt.Sprintf("≥ %g ×", of.atLeast)
		if g == nil {
			line(fmt.Sprintf("growth, %s", strings.ToUpper(of.workload)), "", target, notMeasured)
			continue
		}
		for _, p := range g.Growth {
			if p.Workload == of.workload {
				line(fmt.Sprintf("%s %s, %d keys over %d", p.Distribution, strings.ToUpper(p.Workload), g.Keys, g.SmallKeys),
					fmt.Sprintf("%.2f × (%.2f to %.2f); %.0f/s, %s of CPU, beside %.0f/s, %s", p.Ratio, p.RatioMin, p.RatioMax, p.Rate, micros(p.CPU), p.SmallRate, micros(p.SmallCPU)),
					target, ofMany(g, p.Ratio >= of.atLeast && p.Failed == 0))
			}
		}
	}
	target := fmt.Sprintf("≤ %.0f MB", growthRSSMax/1e6)
	if g == nil || len(g.RSSAnonBytes) == 0 {
		line("anonymous memory (RssAnon)", "", target, notMeasured)
		return
	}
	most := slices.Max(g.RSSAnonBytes)
	line(fmt.Sprintf("anonymous memory (RssAnon) of a node with %d records of %d B", g.Keys, g.ValueBytes), fmt.Sprintf("%.0f MB", float64(most)/1e6), target, ofMany(g, most <= growthRSSMax && g.Settled))
}

// ofMany judges growth only where it was to the size that the targets speak of.
func ofMany(g *bench.GrowthReport, ok bool) string {
	if g.Keys < growthKeys {
		return fmt.Sprintf("of fewer than %d keys: no verdict", growthKeys)
	}
	return verdict(ok)
}

// allocations gives what our side allocated per operation in the first row of that name, and what idle servers would have
// in the same time.
func (r *results) allocations(name string) (client, server *float64, idle float64) {
	if r.comparison == nil {
		return nil, nil, 0
	}
	for _, x := range r.comparison.Rows {
		if x.Row == name {
			if x.Unit == unitRate && x.Own > 0 {
				idle = r.comparison.IdleAllocs / x.Own
			}
			return x.OwnClientAllocs, x.OwnServerAllocs, idle
		}
	}
	return nil, nil, 0
}

// judgePutAllocs says which part of what the servers allocate per put is Badger's and what is beyond it, and judges that.
func (c *comparison) judgePutAllocs(server, idle float64) (text, judged string) {
	beyond, samples := c.beyondBadger()
	if samples >= allocSamplesMin {
		// Medians of turns, of which each is another one's, need not add up; the rest is shown as Badger's.
		loaded := max(server-idle, 0)
		badger, percent := max(loaded-beyond.Median, 0), 0.0
		if loaded > 0 {
			percent = badger / loaded * 100
		}
		if idle > 0 {
			text = fmt.Sprintf(", Badger %.2f", badger)
		} else {
			text = fmt.Sprintf(", of which Badger %.2f", badger)
		}
		text += fmt.Sprintf(" (%.0f %% by %.0f samples), beyond it %.2f (%.2f to %.2f)", percent, samples, beyond.Median, beyond.Min, beyond.Max)
		return text, verdict(beyond.Median <= putAllocsMax)
	}
	switch {
	case server <= putAllocsMax: // even with Badger's
		return "", met
	case samples > 0:
		return "", fmt.Sprintf("%s: %.0f samples tell too little of Badger's share", notMeasured, samples)
	}
	return "", notMeasured + ": Badger's share is not known"
}

// beyondBadger is what the servers allocated per put in each of our turns, without what idle ones make and without Badger's
// share of that turn, and by how many samples the shares of all turns are known. The shares belong to their turns: a turn
// without a checkpoint has next to nothing of Badger, one with several up to thirty times as much of it as of all else, and one
// share of all turns would be taken from the wrong total. What idle servers make is in the samples as well and not Badger's, and
// Badger's tiny objects are sampled less than they are counted: the share is, if anything, a little too small.
func (c *comparison) beyondBadger() (beyond spread, samples float64) {
	var turns []float64
	for _, r := range c.Rows {
		if r.Row != rowPut || r.Unit != unitRate {
			continue
		}
		for _, p := range r.Pairs {
			own := p.Own
			if own.BadgerShare == nil || own.ServerAllocs == nil || own.Figure <= 0 {
				return spread{}, 0 // the others' median would be of other turns than the whole's
			}
			turns = append(turns, max(*own.ServerAllocs-c.IdleAllocs/own.Figure, 0)*(1-*own.BadgerShare))
			samples += own.AllocSamples
		}
		break // as allocations, which takes the first row of that name
	}
	return spreadOf(turns), samples
}

// String is a cell of a ratio.
func (s spread) String() string {
	if s.Median == 0 {
		return ""
	}
	return fmt.Sprintf("%.3g × (%.3g to %.3g)", s.Median, s.Min, s.Max)
}

func figure(unit string, v float64) string {
	if unit == unitP50 {
		return micros(v)
	}
	return fmt.Sprintf("%.0f/s", v)
}

// micros prints microseconds with three digits or so; nothing for 0.
func micros(us float64) string {
	switch {
	case us == 0:
		return ""
	case us < 10:
		return fmt.Sprintf("%.2f µs", us)
	case us < 1000:
		return fmt.Sprintf("%.0f µs", us)
	}
	return fmt.Sprintf("%.2f ms", us/1000)
}
