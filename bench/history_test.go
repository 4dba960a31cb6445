package bench

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// parseHistory takes known fields alone: a misspelt one would vanish from every comparison.
func parseHistory(t *testing.T, text string) *HistoryLine {
	t.Helper()
	h := new(HistoryLine)
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(h); err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
	if _, err := time.Parse(time.DateOnly, h.Date); err != nil || h.Commit == "" || h.Command == "" || len(h.Runs) == 0 {
		t.Fatalf("%v, or commit, command or runs are missing in %.200s", err, text)
	}
	return h
}

// The lines that there are have the form that the tool makes.
func TestHistory_LinesOfTheRepository_HaveTheForm(t *testing.T) {
	f, err := os.Open("../perf/history.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	n := 0
	for ; sc.Scan(); n++ {
		for _, run := range parseHistory(t, sc.Text()).Runs {
			if run.Workload == "" || run.OpsPerSecond <= 0 || len(run.Operations) == 0 {
				t.Errorf("line %d: %+v", n+1, run)
			}
		}
	}
	if sc.Err() != nil || n < 2 {
		t.Errorf("%d lines, %v", n, sc.Err())
	}
}

func TestHistory_Results_OneLine(t *testing.T) {
	r := sampleResults()
	line, err := r.History(time.Date(2026, 1, 2, 23, 0, 0, 0, time.UTC), "abc", "engine: x", "make bench")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := line.WriteJSON(&b); err != nil || strings.Count(b.String(), "\n") != 1 {
		t.Fatalf("%v in %q", err, b.String())
	}
	h := parseHistory(t, b.String())
	if h.Date != "2026-01-02" || h.Change != "engine: x" || len(h.Runs) != len(r.Runs) || h.Floor[FloorFsync].P50 != 250 || len(h.Failovers) != 2 || h.Failovers[1] != 2_900_000 {
		t.Errorf("%+v", h)
	}
	if run := h.Runs[3]; run.Nodes != 3 || run.OpsPerSecond != 33_000 || run.Operations["put"].P999 != 28_000 || run.ClientCPU != 2 {
		t.Errorf("%+v", run)
	}
	if _, err := r.History(time.Now(), "abc", "two\nlines", "make bench"); err == nil {
		t.Error("a change of two lines, and no error")
	}
	if _, err := new(Results).History(time.Now(), "abc", "", "make bench"); err == nil {
		t.Error("no runs, and no error")
	}
}
