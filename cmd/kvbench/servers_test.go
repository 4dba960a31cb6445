package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/bench"
	"kvstore/client"
)

// statusTarget answers with one status.
type statusTarget struct {
	target
	text string
	err  error
}

func (s statusTarget) Status(context.Context) ([]byte, error) { return []byte(s.text), s.err }
func (s statusTarget) Close() error                           { return nil }

// namedKvstore runs a process that calls itself kvstore, as the check of a pid wants it.
func namedKvstore(t *testing.T) int {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "kvstore")
	if err := os.Symlink(sleep, name); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), name, "600")
	cmd.Args[0] = "sleep" // for those builds of sleep that look at their name
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: an error by design
	})
	return cmd.Process.Pid
}

// clusterApp is an app whose endpoints answer with the given statuses; an empty one refuses connections.
func clusterApp(statuses map[string]string) *app {
	a := &app{open: func(_ context.Context, o bench.ClientOptions) (target, error) {
		if s := statuses[o.Endpoints[0]]; s != "" {
			return statusTarget{text: s}, nil
		}
		return nil, client.ErrUnavailable
	}}
	for e := range statuses {
		a.endpoints = append(a.endpoints, e)
	}
	slices.Sort(a.endpoints)
	return a
}

// A pid that a server tells counts only when it is a kvstore of this machine.
func TestFindServers_ForeignPID_NotMeasured(t *testing.T) {
	a := clusterApp(nil)
	s, err := a.findServers(t.Context(), statusTarget{text: `{"pid":1,"data_dir":"/x"}`})
	if err != nil || len(s.pids) > 0 || s.dataDir != "" || s.nodes != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	a.serverPIDs = []int{os.Getpid(), 1}
	if s, err = a.findServers(t.Context(), statusTarget{text: `[]`}); err != nil || !slices.Equal(s.pids, a.serverPIDs) || s.nodes != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	a.serverPIDs = []int{os.Getpid(), 1 << 27}
	if _, err = a.findServers(t.Context(), statusTarget{text: `{}`}); !errors.As(err, &usageError{}) {
		t.Errorf("a pid that nobody has: %v", err)
	}
	if _, err = a.findServers(t.Context(), statusTarget{err: client.ErrUnavailable}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// The CPU time of a cluster is that of all nodes, or it is not measured at all.
func TestFindServers_Cluster_AllProcessesOrNone(t *testing.T) {
	pids := []int{namedKvstore(t), namedKvstore(t), namedKvstore(t)}
	status := func(third string) string {
		return fmt.Sprintf(`{"pid":%d,"data_dir":"/d","nodes":[{"id":"a","pid":%d},{"id":"b","pid":%d},{"id":"c"%s}]}`, pids[1], pids[0], pids[1], third)
	}
	a := clusterApp(nil)
	s, err := a.findServers(t.Context(), statusTarget{text: status(`,"pid":` + strconv.Itoa(pids[2]))})
	if err != nil || s.nodes != 3 || !slices.Equal(s.pids, pids) || s.dataDir != "/d" || s.remark != "" {
		t.Errorf("%+v, %v; want %v", s, err, pids)
	}
	for name, third := range map[string]string{"one tells none": "", "one is elsewhere": `,"pid":1`} {
		s, err := a.findServers(t.Context(), statusTarget{text: status(third)})
		if err != nil || s.nodes != 3 || len(s.pids) > 0 || s.dataDir != "/d" || !strings.Contains(s.remark, "--server-pid") {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}

// A leader counts when every endpoint answers, all are ready, and it sees all nodes well and near.
func TestFindLeader_OnlyOfAWholeCluster(t *testing.T) {
	leader := `{"node_id":"n1","pid":11,"ready":true,"is_leader":true,"term":7,"nodes":[{"id":"n1","state":"ok"},{"id":"n2","state":"ok","lag":9},{"id":"n3","state":"ok"}]}`
	follower := func(id string) string { return `{"node_id":"` + id + `","pid":12,"ready":true,"term":7,"nodes":[]}` }
	good := map[string]string{"a:1": follower("n3"), "b:1": leader, "c:1": follower("n2")}
	a := clusterApp(good)
	l, err := a.findLeader(t.Context())
	if err != nil || l != (bench.Leader{ID: "n1", PID: 11, Term: 7, Nodes: 3}) {
		t.Errorf("%+v, %v", l, err)
	}
	for want, change := range map[string]map[string]string{
		"c:1 does not answer":            {"c:1": ""},
		"n2 (c:1) is not ready":          {"c:1": strings.Replace(follower("n2"), "true", "false", 1)},
		"none of 3 endpoints leads":      {"b:1": follower("n1")},
		`sees n3 as "unreachable"`:       {"b:1": strings.Replace(leader, `"n3","state":"ok"`, `"n3","state":"unreachable"`, 1)},
		"5000 entries behind":            {"b:1": strings.Replace(leader, `"lag":9`, `"lag":5000`, 1)},
		"a status that names no process": {"a:1": `"?"`},
	} {
		statuses := map[string]string{"a:1": good["a:1"], "b:1": good["b:1"], "c:1": good["c:1"]}
		for e, s := range change {
			statuses[e] = s
		}
		a := clusterApp(statuses)
		if l, err := a.findLeader(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v; want %q", l, err, want)
		}
	}
	// A leader that was deposed and does not know it yet says a lower term.
	a = clusterApp(map[string]string{"a:1": leader, "b:1": strings.NewReplacer("n1", "n2", `"term":7`, `"term":8`, "11", "22").Replace(leader)})
	if l, err := a.findLeader(t.Context()); err != nil || l.PID != 22 || l.Term != 8 {
		t.Errorf("%+v, %v", l, err)
	}
}

// killable is a cluster of one endpoint: a file stands for the leader's process.
type killable struct {
	target
	alive string

	mu   *sync.Mutex
	data map[string]bool
	term *int
}

func (k killable) Status(context.Context) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return json.Marshal(map[string]any{"node_id": "n" + strconv.Itoa(*k.term), "pid": 4242, "ready": true, "is_leader": true, "term": *k.term, "nodes": []any{map[string]any{"id": "n", "state": "ok"}}})
}

// Put stands still while the file is gone; the first that finds it so restarts the node.
func (k killable) Put(_ context.Context, key string, _ []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, err := os.Stat(k.alive); err != nil {
		time.Sleep(20 * time.Millisecond)
		*k.term++
		if err := os.WriteFile(k.alive, nil, 0o644); err != nil {
			return err
		}
	}
	k.data[key] = true
	return nil
}

func (k killable) GetMany(_ context.Context, keys []string) (found int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range keys {
		if k.data[key] {
			found++
		}
	}
	return found, nil
}

func (k killable) Kind(error) bench.Kind { return bench.KindOther }
func (k killable) Close() error          { return nil }

// The command line of a fail-over: the kill command gets the leader's name and process, and the report says
// how long writes stood still.
func TestFailover_KillCommand_RunsForEachLeader(t *testing.T) {
	dir := t.TempDir()
	k := killable{alive: filepath.Join(dir, "alive"), mu: new(sync.Mutex), data: map[string]bool{}, term: new(int)}
	*k.term = 3
	if err := os.WriteFile(k.alive, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(kill string) (int, string, string) {
		var out, errs bytes.Buffer
		a := newApp()
		a.out, a.err, a.getenv = &out, &errs, func(string) string { return "" }
		a.open = func(context.Context, bench.ClientOptions) (target, error) { return k, nil }
		code := a.run(t.Context(), []string{"failover", "--endpoints", "x:1", "--kills", "2", "--settle", "20ms", "-o", "json", "--kill", kill})
		return code, out.String(), errs.String()
	}
	code, out, errs := run("rm " + k.alive + "; echo $KVBENCH_LEADER_ID $KVBENCH_LEADER_PID >>" + dir + "/killed")
	var rep bench.FailoverReport
	if err := json.Unmarshal([]byte(out), &rep); err != nil || code != 0 {
		t.Fatalf("exit %d, %v, %q, %s", code, err, out, errs)
	}
	if len(rep.Kills) != 2 || rep.Kills[0].Gap < 20_000 || rep.P50 <= 0 || rep.Target != "x:1" || rep.Nodes != 1 || rep.Writes == 0 || rep.Lost > 0 {
		t.Errorf("%+v", rep)
	}
	if killed, err := os.ReadFile(dir + "/killed"); err != nil || string(killed) != "n3 4242\nn4 4242\n" {
		t.Errorf("%q, %v", killed, err)
	}
	if !strings.Contains(errs, "kill 2: n4") {
		t.Errorf("no progress: %q", errs)
	}
	if code, _, errs = run("echo that is none of ours; exit 7"); code != exitFailed || !strings.Contains(errs, "none of ours") || !strings.Contains(errs, "exit status 7") {
		t.Errorf("exit %d, %q", code, errs)
	}
}
