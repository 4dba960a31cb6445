package bench

import (
	"errors"
	"io"
	"strings"
	"time"
)

// HistoryLine is one line of perf/history.ndjson: the figures of one commit on one machine. Fields are added, never
// changed. Latencies and CPU times are microseconds.
type HistoryLine struct {
	// Date is that of the report, YYYY-MM-DD; Commit is what was measured.
	Date   string `json:"date"`
	Commit string `json:"commit"`
	// Change says in a sentence what moved a figure, and which; empty for the report of a release.
	Change  string   `json:"change,omitempty"`
	Command string   `json:"command"`
	Machine *Machine `json:"machine,omitempty"`
	// Floor is by the tests' names.
	Floor     map[string]HistoryFloor `json:"floor,omitempty"`
	Runs      []HistoryRun            `json:"runs"`
	Failovers []int64                 `json:"failover_us,omitempty"`
}

// HistoryFloor is a test of the floor.
type HistoryFloor struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// HistoryRun is the part of a Report that is kept.
type HistoryRun struct {
	System       string                `json:"system,omitempty"`
	Protocol     string                `json:"protocol,omitempty"`
	Nodes        int                   `json:"nodes,omitempty"`
	Workload     string                `json:"workload"`
	Distribution string                `json:"distribution,omitempty"`
	Concurrency  int                   `json:"concurrency"`
	Pipeline     int                   `json:"pipeline,omitempty"`
	OpsPerSecond float64               `json:"ops_per_second"`
	ServerCPU    float64               `json:"server_cpu_us_per_op"`
	ClientCPU    float64               `json:"client_cpu_us_per_op"`
	ServerAllocs *float64              `json:"server_allocs_per_op,omitempty"`
	ClientAllocs *float64              `json:"client_allocs_per_op,omitempty"`
	Errors       uint64                `json:"errors"`
	Operations   map[string]HistoryOps `json:"operations"`
}

// HistoryOps are the latencies of one kind of operation.
type HistoryOps struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
}

// History sums up results of one session into a line. It fails where there is nothing to keep.
func (r *Results) History(date time.Time, commit, change, command string) (*HistoryLine, error) {
	if len(r.Runs) == 0 {
		return nil, errors.New("cannot make a line of history: the reports hold no run")
	}
	if strings.ContainsAny(change, "\r\n") {
		return nil, errors.New("cannot make a line of history: the change is to be said in one line")
	}
	h := &HistoryLine{Date: date.UTC().Format(time.DateOnly), Commit: commit, Change: change, Command: command, Machine: &r.Runs[0].Machine}
	for _, f := range r.Floors {
		for _, t := range f.Tests {
			if h.Floor == nil {
				h.Floor = map[string]HistoryFloor{}
			}
			h.Floor[t.Name] = HistoryFloor{t.P50, t.P99}
		}
	}
	for _, run := range r.Runs {
		k := HistoryRun{
			System: run.System, Protocol: run.Protocol, Nodes: run.Nodes, Workload: run.Workload, Distribution: run.Distribution, Concurrency: run.Concurrency,
			OpsPerSecond: run.OpsPerSecond, ServerCPU: run.ServerCPUMicrosPerOp, ClientCPU: run.ClientCPUMicrosPerOp,
			ServerAllocs: run.ServerAllocsPerOp, ClientAllocs: run.ClientAllocsPerOp, Errors: run.Errors, Operations: map[string]HistoryOps{},
		}
		if run.Pipeline > 1 {
			k.Pipeline = run.Pipeline
		}
		for name, op := range run.Operations {
			k.Operations[name] = HistoryOps{op.P50, op.P99, op.P999}
		}
		h.Runs = append(h.Runs, k)
	}
	for _, f := range r.Failovers {
		for _, kill := range f.Kills {
			h.Failovers = append(h.Failovers, int64(kill.Gap))
		}
	}
	return h, nil
}

// WriteJSON writes the line.
func (h *HistoryLine) WriteJSON(w io.Writer) error { return writeJSON(w, h) }
