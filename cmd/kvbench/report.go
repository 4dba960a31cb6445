package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"kvstore/bench"
)

// reportLineMax bounds one line of a file of reports.
const reportLineMax = 16 << 20

func (a *app) reportCmd() *cobra.Command {
	return &cobra.Command{
		Use: "report FILE…", Short: "Show reports of -o json as tables", Args: cobra.MinimumNArgs(1),
		Long:    "Show the lines that `kvbench run -o json` and `kvbench floor -o json` wrote: the floor first, then all runs in one table.",
		Example: `  kvbench report perf/out/*.jsonl`,
		RunE: func(_ *cobra.Command, args []string) error {
			if a.output != "table" {
				return usageError{errors.New("report only writes tables: its input is the JSON")}
			}
			var floors []*bench.FloorReport
			var runs []*bench.Report
			for _, name := range args {
				f, err := os.Open(name)
				if err != nil {
					return fmt.Errorf("cannot read reports: %w", err)
				}
				err = readReports(f, &floors, &runs)
				if err = errors.Join(err, f.Close()); err != nil {
					return fmt.Errorf("cannot read reports of %s: %w", name, err)
				}
			}
			for _, f := range floors {
				if err := f.WriteTable(a.out); err != nil {
					return err
				}
				if _, err := fmt.Fprintln(a.out); err != nil {
					return fmt.Errorf("cannot write report: %w", err)
				}
			}
			return bench.WriteSummary(a.out, runs)
		},
	}
}

// readReports sorts lines by what they are: a floor has tests, a run has operations.
func readReports(r io.Reader, floors *[]*bench.FloorReport, runs *[]*bench.Report) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, reportLineMax)
	for n := 1; sc.Scan(); n++ {
		var kind struct {
			Tests      json.RawMessage `json:"tests"`
			Operations json.RawMessage `json:"operations"`
		}
		err := json.Unmarshal(sc.Bytes(), &kind)
		switch {
		case err != nil:
		case kind.Tests != nil:
			f := new(bench.FloorReport)
			err = json.Unmarshal(sc.Bytes(), f)
			*floors = append(*floors, f)
		case kind.Operations != nil:
			rep := new(bench.Report)
			err = json.Unmarshal(sc.Bytes(), rep)
			*runs = append(*runs, rep)
		default:
			err = errors.New("neither a run nor a floor")
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return sc.Err()
}
