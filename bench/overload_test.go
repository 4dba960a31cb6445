package bench

import (
	"bytes"
	"os"
	"testing"
)

func TestOverloadReport_Judge_RefusalCostsWhatSuccessesDoNotExplain(t *testing.T) {
	rep := &OverloadReport{
		Saturated: &Report{Workload: "put", OpsPerSecond: 1000, ServerCPUMicrosPerOp: 40},
		Flooded:   &FloodReport{Seconds: 10, Sent: 30000, Done: 9000, Refused: 20000, ServerCPU: 40*9000 + 5*20000, Other: map[string]uint64{"TIMEOUT": 1}, RefusedBy: map[string]uint64{"BUSY": 20000}},
	}
	rep.judge()
	if rep.Factor != 3 || rep.Goodput != 0.9 || rep.ServeCPU != 40 || rep.RefuseCPU != 5 || !rep.Met() {
		t.Errorf("%+v", rep)
	}
	var out bytes.Buffer
	if err := rep.WriteTable(&out); err != nil || !bytes.Contains(out.Bytes(), []byte("5.0 µs for one that is refused: 0.12 of it")) || !bytes.Contains(out.Bytes(), []byte("failed: 1 TIMEOUT")) {
		t.Errorf("%v\n%s", err, &out)
	}
	rep.Flooded.Done = 7000
	if rep.judge(); rep.Met() {
		t.Error("70 % of the maximum met a target of 80 %")
	}
	rep.Flooded.Done, rep.Flooded.ServerCPU = 9000, 0
	rep.ServeCPU = 0
	if rep.judge(); rep.Met() {
		t.Error("a cost that was not measured met its target")
	}
}

func TestConfineCPU_Root_MovesThisProcessInAndOut(t *testing.T) {
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skip("no control groups here")
	}
	undo, err := ConfineCPU(0.9)
	if err != nil {
		t.Skipf("this machine lets nobody confine a process: %v", err)
	}
	within, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || bytes.Equal(before, within) {
		t.Errorf("%v: still in %s", err, within)
	}
	if err := undo(); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || bytes.Contains(after, []byte("kvbench-")) {
		t.Errorf("%v: still in %s", err, after)
	}
}
