package test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// workloads and nemeses by name.
var (
	workloads = map[string]func() workload{}
	nemeses   = map[string]nemesis{}
)

// scenes are the kinds of runs. Each name is that of a test, TestFaults_<name>.
func scenes() []scene {
	return []scene{
		{
			name: "Processes", nodes: []int{3, 3, 5},
			main:   named("kill-leader", "kill-any", "kill-all", "kill-again", "stop-leader", "stop-any", "stop-all"),
			beside: named("transfer"),
		},
		{
			name: "Network", nodes: []int{3, 3, 5}, needs: needProxies,
			main: named("isolate-leader", "isolate-any", "one-way", "bridge", "split", "flapping", "delay", "loss", "transfer-deaf", "late-answers", "kill-leader", "stop-leader", "transfer"),
		},
		{
			name: "Namespaces", nodes: []int{3, 5}, namespaces: true,
			main: named("isolate-leader", "isolate-any", "one-way", "bridge", "split", "flapping", "loss", "transfer-deaf", "kill-any", "stop-leader", "transfer"),
		},
		{
			name: "Clocks", nodes: []int{3}, needs: needClocks | needProxies,
			main:   named("isolate-leader", "stop-leader", "kill-any", "transfer", "one-way"),
			beside: named("clock-rate", "clock-jump", "clock-wall"),
		},
		{
			name: "Members", nodes: []int{3}, needs: needProxies, settings: hastyLog(),
			main:   named("kill-leader", "stop-any", "isolate-leader", "lag", "transfer", "kill-all", "flapping"),
			beside: named("members"),
		},
		{
			name: "Disks", nodes: []int{3}, needs: needDisks | needProxies,
			main: named("power-all", "power-any", "power-all", "disk-full", "disk-hang", "kill-any", "isolate-leader"),
		},
		{
			name: "Crashes", nodes: []int{3}, needs: needFailpoints | needProxies, settings: hastyLog(),
			main: named("crash-install", "crash-truncate", "crash-checkpoint", "crash-anywhere", "fsync-error", "kill-all", "isolate-leader"),
		},
		{
			name: "Damage", nodes: []int{3}, needs: needProxies,
			main: named("flip-log", "flip-tables", "flip-small", "torn-log", "torn-tables", "wipe", "kill-any", "isolate-leader"),
		},
	}
}

// named gives the nemeses of these names.
func named(names ...string) []nemesis {
	var all []nemesis
	for _, name := range names {
		n, ok := nemeses[name]
		if !ok {
			panic("BUG: no nemesis " + name)
		}
		if !slices.ContainsFunc(all, func(o nemesis) bool { return o.name == name }) {
			all = append(all, n)
		}
	}
	return all
}

// drawSettings gives a configuration: whatever it is, the same promises hold.
func drawSettings(rng *rand.Rand) map[string]string {
	one := func(of ...string) string { return of[rng.IntN(len(of))] }
	heartbeat := one("300ms", "500ms", "600ms", "900ms")
	return map[string]string{
		"heartbeat-timeout":   heartbeat,
		"election-timeout":    heartbeat,
		"read-mode":           one("lease", "lease", "lease", "readindex"),
		"batch-operations":    one("1", "16", "4096"),
		"batch-inflight":      one("1", "4", "16"),
		"batch-size":          one("4KiB", "256KiB"),
		"cache-size":          one("0", "64KiB", "8MiB"),
		"memtable-size":       one("1MiB", "4MiB"),
		"checkpoint-interval": one("10ms", "50ms", "1s", "5s"),
		"checkpoint-size":     one("1MiB", "64MiB"),
		"snapshot-threshold":  one("16", "64", "1024"),
		"trailing-logs":       one("1", "16", "128"),
		"log-keep-size":       one("0", "256KiB", "4MiB"),
		"log-cache-size":      one("0", "1MiB", "32MiB"),
		"event-loops":         one("1", "2"),
		"read-workers":        one("1", "2", "4"),
	}
}

// newFaultRun starts the cluster of a run.
func newFaultRun(t *testing.T, s *scene) *faultRun {
	r := &faultRun{t: t, seed: seed(t), scene: s, length: faultTime(t), struck: make(map[string]int), missed: make(map[string]int), excused: make(map[int]bool), tally: make(map[string]int)}
	rng := r.stream("cluster")
	o := testcluster.ClusterOptions{Nodes: s.nodes[rng.IntN(len(s.nodes))], Settings: drawSettings(rng)}
	maps.Copy(o.Settings, s.settings)
	switch {
	case s.needs&needClocks != 0:
		o.Binary, o.Clocks = testcluster.ClockBinary(t), true
	case s.needs&needFailpoints != 0:
		o.Binary = failpoints(t)
	}
	if s.needs&needDisks != 0 {
		for range o.Nodes {
			r.disks = append(r.disks, testcluster.NewDisk(t, 4<<30))
		}
		o.DataDir = func(i int) string { return filepath.Join(r.disks[i].Dir(), "data") }
	}
	if path := os.Getenv(binaryEnv); path != "" {
		o.Binary, o.Quiet = path, true
	}
	o.Namespaces = s.namespaces
	// Once more below what the nodes wrote: of the output of a process with namespaces of its own the end alone is kept.
	t.Cleanup(func() {
		if r.said != "" {
			t.Log(r.said)
		}
	})
	r.c = testcluster.StartCluster(t, o)
	names := s.loads
	if names == nil {
		names = slices.Sorted(maps.Keys(workloads))
	}
	if only := os.Getenv(loadsEnv); only != "" {
		names = strings.Split(only, ",")
	}
	for _, name := range names {
		if workloads[name] == nil {
			t.Fatalf("%s: there is no workload %q", loadsEnv, name)
		}
		r.loads = append(r.loads, workloads[name]())
	}
	r.ctx, r.end = context.WithCancel(context.Background())
	t.Cleanup(func() {
		r.end()
		r.work.Wait()
	})
	r.began = time.Now()
	r.lastAck = r.began
	r.note("%s begins at %s: %d nodes, %s", s.name, r.began.Format("15:04:05.000"), o.Nodes, fmt.Sprint(o.Settings))
	return r
}

// faults is the run of one scene.
func faults(t *testing.T, name string) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	all := scenes()
	s := &all[slices.IndexFunc(all, func(s scene) bool { return s.name == name })]
	if s.namespaces && testcluster.IsolateNetwork(t) {
		return
	}
	if s.needs&needDisks != 0 && testcluster.Isolate(t) {
		return
	}
	if kinds := os.Getenv(kindsEnv); kinds != "" {
		only := func(all []nemesis) []nemesis {
			return slices.DeleteFunc(all, func(n nemesis) bool { return !slices.Contains(strings.Split(kinds, ","), n.name) })
		}
		if s.main, s.beside = only(s.main), only(s.beside); len(s.main) == 0 {
			t.Fatalf("%s=%s leaves no fault of %s", kindsEnv, kinds, name)
		}
	}
	newFaultRun(t, s).execute()
}

func TestFaults_Processes(t *testing.T)  { faults(t, "Processes") }
func TestFaults_Network(t *testing.T)    { faults(t, "Network") }
func TestFaults_Namespaces(t *testing.T) { faults(t, "Namespaces") }
func TestFaults_Clocks(t *testing.T)     { faults(t, "Clocks") }
func TestFaults_Members(t *testing.T)    { faults(t, "Members") }
func TestFaults_Disks(t *testing.T)      { faults(t, "Disks") }
func TestFaults_Crashes(t *testing.T)    { faults(t, "Crashes") }
func TestFaults_Damage(t *testing.T)     { faults(t, "Damage") }
