package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvstore/bench"
)

// Every operation of a real node, as JSON, between the markers of a page, and again as a table. Which targets it meets is for a
// quiet machine to say.
func TestLatency_RealNode_JSONPageAndTable(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte("before\n"+latencyBegin+"\nold\n"+latencyEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := cli(t, "latency", "--endpoints", openNode(t), "--keys", "500", "--workers", "64", "--closed", "100ms", "--duration", "200ms", "--warmup", "0s",
		"--commit", "0123456789abc", "--into", page, "-o", "json")
	var rep bench.LatencyReport
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 || strings.Count(out, "\n") != 1 {
		t.Fatalf("exit %d, %v in %q (%s)", code, err, out, errs)
	}
	if rep.Nodes != 1 || rep.Keys != 500 || rep.Date == "" || rep.Commit != "0123456789abc" || len(rep.Latencies) != 5 {
		t.Errorf("%s", out)
	}
	for _, l := range rep.Latencies {
		if l.Highest <= 0 || l.Rate != l.Highest/2 || l.Ops == 0 || l.Latency.P50 <= 0 || l.Latency.P999 < l.Latency.P50 || l.Failed+l.NotSent != 0 {
			t.Errorf("%+v", l)
		}
	}
	file := page + ".json"
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	code, table, errs := cli(t, "report", file)
	if code != 0 || !strings.Contains(table, "Commit 0123456789, "+rep.Date) || !strings.Contains(table, "| transaction of 5 | ") {
		t.Errorf("exit %d\n%s\n%s", code, table, errs)
	}
	got, err := os.ReadFile(page)
	if want := "before\n" + latencyBegin + "\n" + strings.TrimSuffix(table, "\n") + latencyEnd + "\nafter\n"; err != nil || string(got) != want {
		t.Errorf("%v, page is\n%s", err, got)
	}
	if code, _, errs := cli(t, "latency", "--endpoints", openNode(t), "--value-size", "-1"); code != exitFailed || !strings.Contains(errs, "value size") {
		t.Errorf("values of -1 byte: exit %d, %s", code, errs)
	}
}
