package main

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
)

// A flood is answered, counted and bounded; how much is done of it is for a quiet machine to say.
func TestOverload_RealNode_CountsWhatBecomesOfAFlood(t *testing.T) {
	endpoint := openNode(t)
	for _, w := range []string{"put", "get"} {
		code, out, errs := cli(t, "overload", "--endpoints", endpoint, "--workload", w, "--keys", "500", "--concurrency", "8", "--duration", "300ms",
			"--flood-conns", "2", "--server-pid", strconv.Itoa(os.Getpid()), "-o", "json")
		var rep struct {
			Saturated struct{ Ops uint64 }
			Flooded   struct {
				Sent, Done, Refused uint64
				Other               map[string]uint64
			}
			Factor, Goodput float64
			ServeCPU        float64 `json:"serve_cpu_us"`
		}
		if err := json.Unmarshal([]byte(out), &rep); err != nil {
			t.Fatalf("%s: %v in %q (%s)", w, err, out, errs)
		}
		f := rep.Flooded
		if code != 0 || rep.Saturated.Ops == 0 || f.Done == 0 || f.Done+f.Refused > f.Sent || len(f.Other) != 0 || rep.Factor <= 0 || rep.Goodput <= 0 || rep.ServeCPU <= 0 {
			t.Errorf("%s: exit %d, %s\n%s", w, code, out, errs)
		}
	}
	if code, _, errs := cli(t, "overload", "--endpoints", endpoint, "--workload", "txn", "--pipeline", "1"); code == 0 || !strings.Contains(errs, "put or get") {
		t.Errorf("a workload that can't flood: exit %d, %s", code, errs)
	}
}
