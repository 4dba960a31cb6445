package bench

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func cpuSamples(cpu ...float64) []sample {
	s := make([]sample, len(cpu))
	for i, c := range cpu {
		s[i] = sample{cpu: c, rate: 1000 * c}
	}
	return s
}

// Ratios are those of a round: a machine that was twice as slow in one of them changes nothing.
func TestDoorCost_RatiosOfRounds_MedianAndVerdict(t *testing.T) {
	native, echo := cpuSamples(10, 20, 10), cpuSamples(20, 40, 20)
	for _, c := range []struct {
		op    string
		own   []sample
		ratio float64
		met   bool
	}{
		{"get", cpuSamples(30, 60, 30), 1.5, true}, {"get", cpuSamples(30, 62, 31), 1.55, false}, {"get", cpuSamples(29, 1000, 29), 1.45, true},
		{"put", cpuSamples(36, 72, 36), 1.2, true}, {"put", cpuSamples(37.5, 75, 37.5), 1.25, false},
	} {
		got := doorCost(ProtocolGRPC, c.op, native, echo, c.own)
		if got.Ratio != c.ratio || got.Met != c.met || got.Echo != 20 || got.Native != 10 || got.RatioMax < got.Ratio || got.RatioMin > got.Ratio {
			t.Errorf("%s of %v: %+v, want %v, %v", c.op, c.own, got, c.ratio, c.met)
		}
	}
	failed := cpuSamples(20, 40, 20)
	failed[1].failed, failed[1].why = 3, "lost"
	if got := doorCost(ProtocolREST, "get", native, failed, cpuSamples(20, 40, 20)); got.Met || got.Failed != 3 || got.FailedSample != "lost" {
		t.Errorf("with failures: %+v", got)
	}
}

// A comparison at the door's rate that did not keep up, or failed, gives no figure.
func TestAddPaced_FiguresOrNone(t *testing.T) {
	c := DoorCost{Echo: 20, Own: 60}
	failed := cpuSamples(30, 40, 50)
	failed[2].failed = 1
	if c.addPaced(failed); c.NativePaced != 0 || c.RatioPaced != 0 {
		t.Errorf("with a failure: %+v", c)
	}
	if c.addPaced(cpuSamples(30, 40, 50)); c.NativePaced != 40 || c.RatioPaced != 1 {
		t.Errorf("%+v", c)
	}
}

func TestReadCost_OverTheLoneNodeOfTheSameRound(t *testing.T) {
	got := readCost("x", 3, cpuSamples(1, 2, 1), cpuSamples(3, 6, 3))
	if got.Ratio != 3 || got.CPU != 3 || got.OpsPerSecond != 3000 || got.Nodes != 3 || got.Failed != 0 {
		t.Errorf("%+v", got)
	}
}

func TestMedianOf_OddEvenNone(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{4}, 4}, {[]float64{9, 1, 5}, 5}, {[]float64{8, 2, 4, 100}, 6}} {
		if got := medianOf(c.in); got != c.want {
			t.Errorf("%v: %v, want %v", c.in, got, c.want)
		}
	}
}

// costOptions measure fakes; the CPU time is this process's, which both servers are.
func costOptions(native, own, echo Target) CostOptions {
	return CostOptions{
		Native: native, ServerPIDs: []int{os.Getpid()}, Doors: []CostDoor{{ProtocolGRPC, own, echo, os.Getpid()}},
		Callers: 2, Keys: 50, ValueBytes: 8, Duration: 60 * time.Millisecond, Rounds: 2,
	}
}

// All gets come before all puts, each side has its turn in every round, and all sides read what was loaded.
func TestCost_Fakes_EachSideInTurn(t *testing.T) {
	defer shortWarmup()()
	store, echo := newFakeTarget(), newFakeTarget()
	var order []string
	native, own, empty := &turnTarget{store, "native", &order}, &turnTarget{store, "own", &order}, &turnTarget{echo, "echo", &order}
	echo.data = store.data
	slow := func(int) time.Duration { return 200 * time.Microsecond } // or no schedule could keep up
	store.delay, echo.delay = slow, slow
	o := costOptions(native, own, empty)
	o.Callers = 1 // or two callers append to order at once
	rep, err := Cost(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	// Puts of the binary door come twice: as fast as they can, and at the rate of the door before.
	want := "native get, echo get, own get, native get, echo get, own get, native put, echo put, own put, native put, echo put, own put, native put"
	if got := strings.Join(order, ", "); got != want {
		t.Errorf("order is %s, want %s", got, want)
	}
	if len(rep.Costs) != 2 || rep.Costs[0].Operation != "get" || rep.Costs[1].Operation != "put" || rep.Costs[0].Target != CostTargets.Get || rep.Costs[1].Target != CostTargets.Put {
		t.Fatalf("%+v", rep.Costs)
	}
	for _, c := range rep.Costs {
		if (c.NativePaced > 0) != (c.Operation == "put") || (c.RatioPaced > 0) != (c.Operation == "put") {
			t.Errorf("at the door's rate: %+v", c)
		}
		if c.Echo <= 0 || c.Native <= 0 || c.Own <= 0 || c.Ratio <= 0 || c.Failed != 0 || c.Protocol != ProtocolGRPC {
			t.Errorf("%+v", c)
		}
	}
}

// turnTarget notes who is driven, and with what, whenever that changes.
type turnTarget struct {
	*fakeTarget
	name  string
	order *[]string
}

func (t *turnTarget) note(op string) {
	if s := t.name + " " + op; len(*t.order) == 0 || (*t.order)[len(*t.order)-1] != s {
		*t.order = append(*t.order, s)
	}
}

func (t *turnTarget) Get(ctx context.Context, key string, dst []byte) ([]byte, bool, error) {
	t.note("get")
	return t.fakeTarget.Get(ctx, key, dst)
}

func (t *turnTarget) Put(ctx context.Context, key string, value []byte) error {
	t.note("put")
	return t.fakeTarget.Put(ctx, key, value)
}

func shortWarmup() (undo func()) {
	was := compareWarmup
	compareWarmup = 5 * time.Millisecond
	return func() { compareWarmup = was }
}

// A failed comparison, or a read that finds nothing, is never met; without CPU times there is nothing to compare.
func TestCost_FailuresMissesUnknownProcesses(t *testing.T) {
	defer shortWarmup()()
	store, deaf := newFakeTarget(), newFakeTarget()
	deaf.fail = func(int) error { return errFakeBusy }
	rep, err := Cost(t.Context(), costOptions(store, deaf, store))
	if err != nil || rep.Met() || rep.Costs[0].Failed == 0 || rep.Costs[0].FailedSample != errFakeBusy.Error() {
		t.Errorf("%+v, %v", rep, err)
	}
	rep, err = Cost(t.Context(), costOptions(store, newFakeTarget(), store))
	if err != nil || rep.Met() || rep.Costs[0].Failed == 0 || !strings.Contains(rep.Costs[0].FailedSample, "no record") {
		t.Errorf("an empty store: %+v, %v", rep, err)
	}
	o := costOptions(store, store, store)
	o.ServerPIDs = nil
	if _, err := Cost(t.Context(), o); err == nil || !strings.Contains(err.Error(), "processes are not known") {
		t.Error(err)
	}
	o = costOptions(store, store, store)
	o.Rounds, o.Callers = -1, -1
	if _, err := Cost(t.Context(), o); err == nil || !strings.Contains(err.Error(), "rounds") || !strings.Contains(err.Error(), "concurrency") {
		t.Error(err)
	}
	o = costOptions(store, store, store)
	o.Doors[0].EchoPID = 1 << 27
	if _, err := Cost(t.Context(), o); err == nil || !strings.Contains(err.Error(), "echo of grpc") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Cost(ctx, costOptions(store, store, store)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestReads_WrongOptions_Refused(t *testing.T) {
	for _, o := range []ReadsOptions{
		{Cluster: []string{"a:1"}, Lone: []string{"b:1"}, ClusterPIDs: []int{1}, LonePIDs: []int{1}},
		{Cluster: []string{"a:1", "a:2"}, ClusterPIDs: []int{1}, LonePIDs: []int{1}},
		{Cluster: []string{"a:1", "a:2"}, Lone: []string{"b:1"}, LonePIDs: []int{1}},
		{Cluster: []string{"a:1", "a:2"}, Lone: []string{"b:1"}, ClusterPIDs: []int{1}},
		{Cluster: []string{"a:1", "a:2"}, Lone: []string{"b:1"}, ClusterPIDs: []int{1}, LonePIDs: []int{1}, Rounds: compareRoundsMax + 1},
	} {
		if rep, err := Reads(t.Context(), o); err == nil {
			t.Errorf("%+v: %+v", o, rep)
		}
	}
}

func sampleCost() *CostReport {
	cost := func(protocol, op string, echo, native, own float64) DoorCost {
		return doorCost(protocol, op, cpuSamples(native, native, native), cpuSamples(echo, echo, echo), cpuSamples(own*0.9, own, own*1.1))
	}
	rep := &CostReport{Machine: sampleReport().Machine, Nodes: 1, Callers: 64, Connections: 1, Keys: 100_000, ValueBytes: 128, Rounds: 3, Seconds: 2, Costs: []DoorCost{
		cost(ProtocolGRPC, "get", 24, 2, 30), cost(ProtocolREST, "get", 20, 2, 31), cost(ProtocolGRPC, "put", 25, 15, 48), cost(ProtocolREST, "put", 28, 15, 43),
	}}
	rep.Costs[2].addPaced(cpuSamples(35, 36, 34))
	rep.Costs[3].Failed, rep.Costs[3].FailedSample, rep.Costs[3].Met = 2, "connection lost", false
	return rep
}

func sampleReads() *ReadsReport {
	lone := cpuSamples(1.2, 1.4, 1.3)
	return &ReadsReport{Machine: sampleReport().Machine, Clients: 3, Callers: 64, Keys: 100_000, ValueBytes: 128, Rounds: 3, Seconds: 2, Reads: []ReadCost{
		readCost("one node", 1, lone, lone), readCost("3 nodes, the leader answers all", 3, lone, cpuSamples(1.8, 2.1, 1.95)),
		readCost("3 nodes, each client asks its own", 3, lone, cpuSamples(3.6, 4.2, 3.9)),
	}}
}

// What was written as JSON comes back as the same tables.
func TestResults_CostsAndReads_Golden(t *testing.T) {
	var line strings.Builder
	if err := errors.Join(sampleCost().WriteJSON(&line), sampleReads().WriteJSON(&line)); err != nil {
		t.Fatal(err)
	}
	cost, reads := new(CostReport), new(ReadsReport)
	dec := json.NewDecoder(strings.NewReader(line.String()))
	if err := errors.Join(dec.Decode(cost), dec.Decode(reads)); err != nil {
		t.Fatal(err)
	}
	through := sampleRun("", 1, "get", 64, 30_000, 2000)
	through.Protocol = ProtocolGRPC
	var b strings.Builder
	if err := (&Results{Runs: []*Report{sampleRun("", 1, "get", 64, 400_000, 150), through}, Costs: []*CostReport{cost}, Reads: []*ReadsReport{reads}}).WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "doors.txt", b.String())
}

// Runs through another door are not those that the targets of the binary protocol speak of.
func TestJudge_RunsThroughOtherDoors_DoNotCount(t *testing.T) {
	r := sampleResults()
	for _, run := range r.Runs {
		run.Protocol = ProtocolREST
	}
	if j := r.Judge()[0]; j.Measured {
		t.Error(j)
	}
}
