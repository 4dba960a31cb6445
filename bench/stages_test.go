package bench

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

// cpuProfile makes a profile of stacks, the leaf first, with their nanoseconds.
func cpuProfile(t *testing.T, stacks map[string]int64) []byte {
	t.Helper()
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}}}
	for stack, v := range stacks {
		s := &profile.Sample{Value: []int64{1, v}}
		for _, name := range strings.Split(stack, "<") {
			f := &profile.Function{ID: uint64(len(p.Function) + 1), Name: name}
			l := &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
			p.Function, p.Location = append(p.Function, f), append(p.Location, l)
			s.Location = append(s.Location, l)
		}
		p.Sample = append(p.Sample, s)
	}
	var b bytes.Buffer
	if err := p.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const onLoop = "<kvstore/netloop.(*Session).Feed<kvstore/netloop.(*events).OnTraffic<github.com/panjf2000/gnet/v2.(*eventloop).read<runtime.goexit"

func TestStageShares_StacksOfEveryStage_CountForTheirStageAndAddUp(t *testing.T) {
	stacks := map[string]int64{
		"syscall.Read<github.com/panjf2000/gnet/v2.(*eventloop).read<runtime.goexit": 1,
		"kvstore/wire.Parse" + onLoop: 2,
		"kvstore/engine.(*layer).slot<kvstore/engine.(*Engine).GetCached<kvstore/node.(*Service).Serve" + onLoop:    3,
		"runtime.memmove<kvstore/netloop.(*Session).Complete<kvstore/engine.(*Engine).GetCached" + onLoop:           4,
		"kvstore/batcher.(*Batcher).Submit" + onLoop:                                                                5,
		"fdatasync<kvstore/consensus.(*logStore).write<github.com/hashicorp/raft.(*Raft).run<runtime.goexit":        6,
		"write<kvstore/consensus/peer.(*conn).Write<github.com/hashicorp/raft.(*Raft).replicate<runtime.goexit":     7,
		"kvstore/engine.(*layer).slot<kvstore/consensus.(*fsm).ApplyBatch<github.com/hashicorp/raft.(*Raft).runFSM": 8,
		"pwrite<kvstore/feed.(*Feed).flush<kvstore/consensus.(*fsm).ApplyBatch":                                     9,
		"github.com/dgraph-io/badger/v4.(*DB).get<kvstore/consensus.(*fsm).ApplyBatch":                              10,
		"memmove<github.com/dgraph-io/badger/v4.(*DB).doWrites.func1<runtime.goexit":                                11,
		"send<kvstore/netloop.(*conn).flush<kvstore/batcher.(*Batcher).done<kvstore/consensus.(*proposals).deliver": 12,
		"runtime.scanobject<runtime.gcBgMarkWorker":                                                                 13,
		"runtime.futex<runtime.findRunnable<runtime.schedule<runtime.mcall":                                         14,
		"main.main": 15,
	}
	want := map[string]float64{
		"network": 1, "parse": 2, "look-up": 3, "reply": 4 + 12, "batch": 5, "log": 6, "replicate": 7, "apply": 8 + 10, "change feed": 9,
		"checkpoint": 11, "collecting garbage": 13, "scheduling": 14, stageOther: 15,
	}
	got, err := stageShares(cpuProfile(t, stacks))
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for stage, share := range got {
		sum += share
		if math.Abs(share*120-want[stage]) > 1e-9 {
			t.Errorf("%s has %v, want %v", stage, share*120, want[stage])
		}
		if delete(want, stage); !strings.Contains(strings.Join(stageOrder, "|"), stage) {
			t.Errorf("%s has no row", stage)
		}
	}
	if math.Abs(sum-1) > 1e-9 || len(want) > 0 {
		t.Errorf("the sum is %v, missing %v", sum, want)
	}
	if idle, err := stageShares(cpuProfile(t, nil)); err != nil || len(idle) != 1 || idle[stageOther] != 1 {
		t.Errorf("an empty profile: %v, %v", idle, err)
	}
	if _, err := stageShares([]byte("no profile")); err == nil {
		t.Error("what is no profile was split")
	}
}

// page is the metrics of a node after n puts and m gets.
func stagePage(n, m int) string {
	var b strings.Builder
	hist := func(name string, count int, us float64) {
		base, labels, _ := strings.Cut(name, "{")
		if labels != "" {
			labels = "{" + labels
		}
		b.WriteString(base + "_sum" + labels + " " + jsonNumber(us*float64(count)/1e6) + "\n" + base + "_count" + labels + " " + jsonNumber(float64(count)) + "\n")
	}
	if n > 0 && m >= 0 {
		hist(`kvstore_request_duration_seconds{operation="put",protocol="native",status="ok"}`, n, 500)
		hist("kvstore_batch_wait_seconds", n, 40)
		hist("kvstore_batch_commit_seconds", n, 450)
		hist("kvstore_raft_commit_seconds", n, 440)
	}
	if m > 0 {
		hist(`kvstore_request_duration_seconds{operation="get",protocol="native",status="ok"}`, m, 4)
	}
	hist("kvstore_apply_seconds", n, 20)
	hist("kvstore_raft_append_seconds", n, map[bool]float64{true: 200, false: 240}[m < 0])
	b.WriteString("# a remark\nprocess_cpu_seconds_total " + jsonNumber(float64(n)*30e-6) + "\nnonsense\n")
	return b.String()
}

func jsonNumber(f float64) string {
	b, _ := json.Marshal(f) // finite
	return string(b)
}

func TestStages_FromMetricsAndProfiles_PartsAddUpToTheWhole(t *testing.T) {
	// The leader is the second of three; the others answer nobody.
	before := []series{parseSeries(stagePage(10, -1)), parseSeries(stagePage(100, 50)), parseSeries(stagePage(10, -1))}
	after := []series{parseSeries(stagePage(1010, -1)), parseSeries(stagePage(1100, 950)), parseSeries(stagePage(1010, -1))}
	put := Stages{Workload: "put"}
	if err := put.splitLatency(600, before, after); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{"network, and the client": 100, "parse": 10, "batch": 40, "log: a follower's write": 200, "replicate: messages and hand-offs": 220, "apply": 20, "reply": 10}
	sum := 0.0
	for _, l := range put.Latency {
		if sum += l.Us; math.Abs(l.Us-want[l.Stage]) > 1e-6 {
			t.Errorf("%s takes %v, want %v", l.Stage, l.Us, want[l.Stage])
		}
	}
	if math.Abs(sum-600) > 1e-6 || len(put.Latency) != len(want) || len(put.Beside) != 1 || math.Abs(put.Beside[0].Us-240) > 1e-6 {
		t.Errorf("the sum is %v: %+v", sum, put)
	}
	lone := Stages{Workload: "put"}
	if err := lone.splitLatency(600, before[1:2], after[1:2]); err != nil || len(lone.Beside) != 0 || lone.Latency[2].Stage != "batch" || lone.Latency[3].Us < 239 {
		t.Errorf("one node: %+v, %v", lone, err)
	}
	get := Stages{Workload: "get"}
	quiet := []series{after[0], parseSeries(strings.ReplaceAll(stagePage(1100, 1950), "nothing", "")), after[2]}
	if err := get.splitLatency(60, after, quiet); err != nil || len(get.Latency) != 2 || math.Abs(get.Latency[0].Us-56) > 1e-6 {
		t.Errorf("a get: %+v, %v", get, err)
	}
	if err := get.splitLatency(60, after, after); err == nil {
		t.Error("a get that nobody answered was split")
	}
	shares := []map[string]float64{{"apply": 0.5, "log": 0.5}, {"parse": 0.25, "apply": 0.75}, {"apply": 1}}
	if err := put.splitCPU(before, after, shares); err != nil {
		t.Fatal(err)
	}
	var parts StageCPU
	for _, c := range put.CPU {
		parts.Leader, parts.Followers, parts.All = parts.Leader+c.Leader, parts.Followers+c.Followers, parts.All+c.All
	}
	if near := func(a, b float64) bool { return math.Abs(a-b) < 1e-6 }; !near(parts.All, 90) || !near(parts.Leader, 30) || !near(parts.Followers, 60) || parts != put.CPUWhole {
		t.Errorf("%+v beside %+v", parts, put.CPUWhole)
	}
	var b strings.Builder
	rep := &StagesReport{Nodes: 3, Callers: 256, Stages: []Stages{put}}
	if err := rep.WriteTable(&b); err != nil || !strings.Contains(b.String(), "| **whole** | **600µs** | 100 % |") || !strings.Contains(b.String(), "| **whole** | **30.00 µs** | **60.00 µs** | **90.00 µs** | 100 % |") {
		t.Errorf("%v\n%s", err, &b)
	}
}
