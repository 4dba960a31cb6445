package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

// reportLineMax bounds one line of a file of reports.
const reportLineMax = 16 << 20

func (a *app) reportCmd() *cobra.Command {
	return &cobra.Command{
		Use: "report FILE…", Short: "Show reports of -o json as tables", Args: cobra.MinimumNArgs(1),
		Long: `Show the lines that run, floor, failover, cost, reads, growth, stages and latency wrote with -o json: the floor, the runs of each system, door and size
in a table of their own, fail-overs, ratios between them, what the doors, shared reads and many records cost, and where three nodes
were measured, which targets they met.`,
		Example: `  kvbench report perf/out/*.jsonl`,
		RunE: func(_ *cobra.Command, args []string) error {
			if a.output != "table" {
				return usageError{errors.New("report only writes tables: its input is the JSON")}
			}
			all, err := readReportFiles(args)
			if err != nil {
				return err
			}
			return all.WriteTable(a.out)
		},
	}
}

func (a *app) historyCmd() *cobra.Command {
	var of, change, command string
	c := &cobra.Command{
		Use: "history FILE…", Short: "Make a line of perf/history.ndjson of reports", Args: cobra.MinimumNArgs(1),
		Long: `Sum up the reports of one session on one machine, as run, floor and failover wrote them with -o json, in one line for
perf/history.ndjson. A change that moves a figure adds a line with --change, made on the machine of the line before.`,
		Example: `  kvbench history --change 'batcher: larger entries; PUT at 256 callers 1.3 x' perf/out/bench-*.jsonl >>perf/history.ndjson`,
		RunE: func(_ *cobra.Command, args []string) error {
			all, err := readReportFiles(args)
			if err != nil {
				return err
			}
			line, err := all.History(time.Now(), of, change, command)
			if err != nil {
				return err
			}
			return line.WriteJSON(a.out)
		},
	}
	c.Flags().StringVar(&of, "commit", commit, "what was measured")
	c.Flags().StringVar(&change, "change", "", "what moved a figure, in a sentence")
	c.Flags().StringVar(&command, "command", "make bench", "what measured it")
	return c
}

func readReportFiles(names []string) (*bench.Results, error) {
	all := new(bench.Results)
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("cannot read reports: %w", err)
		}
		err = readReports(f, all)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("cannot read reports of %s: %w", name, err)
		}
	}
	return all, nil
}

// readReports sorts lines by what they are: a floor has tests, a run has operations, a fail-over has kills.
// Costs, reads, growth, stages and latencies have what they are called.
func readReports(r io.Reader, all *bench.Results) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, reportLineMax)
	for n := 1; sc.Scan(); n++ {
		var kind struct {
			Tests      json.RawMessage `json:"tests"`
			Operations json.RawMessage `json:"operations"`
			Kills      json.RawMessage `json:"kills"`
			Costs      json.RawMessage `json:"costs"`
			Reads      json.RawMessage `json:"reads"`
			Growth     json.RawMessage `json:"growth"`
			Stages     json.RawMessage `json:"stages"`
			Latencies  json.RawMessage `json:"latencies"`
		}
		err := json.Unmarshal(sc.Bytes(), &kind)
		switch {
		case err != nil:
		case kind.Tests != nil:
			f := new(bench.FloorReport)
			err = json.Unmarshal(sc.Bytes(), f)
			all.Floors = append(all.Floors, f)
		case kind.Operations != nil:
			rep := new(bench.Report)
			err = json.Unmarshal(sc.Bytes(), rep)
			all.Runs = append(all.Runs, rep)
		case kind.Kills != nil:
			rep := new(bench.FailoverReport)
			err = json.Unmarshal(sc.Bytes(), rep)
			all.Failovers = append(all.Failovers, rep)
		case kind.Costs != nil:
			rep := new(bench.CostReport)
			err = json.Unmarshal(sc.Bytes(), rep)
			all.Costs = append(all.Costs, rep)
		case kind.Reads != nil:
			rep := new(bench.ReadsReport)
			err = json.Unmarshal(sc.Bytes(), rep)
			all.Reads = append(all.Reads, rep)
		case kind.Growth != nil:
			rep := new(bench.GrowthReport)
			err = json.Unmarshal(sc.Bytes(), rep)
			all.Growths = append(all.Growths, rep)
		case kind.Stages != nil:
			rep := new(bench.StagesReport)
			err = json.Unmarshal(sc.Bytes(), rep)
			all.Stages = append(all.Stages, rep)
		case kind.Latencies != nil:
			rep := new(bench.LatencyReport)
			err = json.Unmarshal(sc.Bytes(), rep)
			all.Latencies = append(all.Latencies, rep)
		default:
			err = errors.New("none of run, floor, fail-over, costs, reads, growth, stages and latencies")
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return sc.Err()
}
