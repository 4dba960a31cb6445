package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Verbs for a cluster: members, leadership, status.

const sampleMembers = `{"cluster_id":"8f3a","history_id":"01","leader_id":"n2","term":7,"members":[` +
	`{"id":"n1","role":"voter","leader":false,"raft_address":"10.0.1.10:7000","address":"10.0.1.10:7001","http_address":"10.0.1.10:7003","grpc_address":"10.0.1.10:7002","incarnation":"0a","version":"v1.0.0","match_index":9120331,"lag":0,"last_contact_ms":12,"state":"ok"},` +
	`{"id":"n2","role":"voter","leader":true,"raft_address":"10.0.1.11:7000","address":"10.0.1.11:7001","http_address":"10.0.1.11:7003","grpc_address":"","incarnation":"0b","version":"v1.0.0","match_index":9120331,"lag":0,"last_contact_ms":0,"state":"ok"},` +
	`{"id":"n3","role":"learner","leader":false,"raft_address":"10.0.1.12:7000","address":"10.0.1.12:7001","http_address":"","grpc_address":"","incarnation":"0c","version":"","match_index":9000000,"lag":120331,"last_contact_ms":-1,"state":"refused: its data directory is another one"}],"pending":null}`

func healthy() string {
	return strings.Replace(sampleStatus, `"state":"unreachable"`, `"state":"ok"`, 1)
}

func TestCluster_OutputsAndExitCodes_Golden(t *testing.T) {
	var b strings.Builder
	for _, c := range []struct{ args, status, members string }{
		{args: "member list"}, {args: "member list -o json"}, {args: "member list -o jsonl"},
		{args: "member list", members: `{"leader_id":"n1","term":1,"members":[{"id":"n1","role":"voter","leader":true,"state":"ok"}],"pending":[{"id":"n1"}],"more":1}`},
		{args: "member list", members: "{\"members\":[{\"id\":\"\\u001b[2J\",\"role\":\"voter\",\"state\":\"a\\tb\"}]}"},
		{args: "member remove n1"}, {args: "member rm n3 -o raw"},
		{args: "member remove n1", members: `{"leader_id":"n2","members":[{"id":"n2","role":"voter"}]}`},
		{args: "member add n3 --raft-address 10.0.1.12:7000 --address 10.0.1.12:7001 --incarnation 000102030405060708090a0b0c0d0e0f"},
		{args: "member demote n1"}, {args: "member replace n1"}, {args: "member replace n3 --with n1"}, {args: "member priority n1 50"}, {args: "member priority n1 0 -o json"},
		{args: "member list", members: `{"leader_id":"n2","term":7,"members":[{"id":"n1","role":"learner","state":"ok","kept_learner":true},{"id":"n2","role":"voter","leader":true,"state":"ok","priority":50},` +
			`{"id":"n3","role":"voter","state":"unreachable"},{"id":"n4","role":"voter","state":"ok","priority":0}],"current":[{"node_id":"n1","role":"voter"},{"node_id":"n2","role":"voter"},{"node_id":"n3","role":"voter"}],` +
			`"pending":[{"node_id":"n1","role":"learner"},{"node_id":"n2","role":"voter"},{"node_id":"n4","role":"voter"}],` +
			`"autopilot":{"healthy":false,"failure_tolerance":0,"servers":[{"id":"n2","healthy":true},{"id":"n3","healthy":false}]}}`},
		{args: "member promote n1"}, {args: "move-leader"}, {args: "move-leader n2"}, {args: "transfer-leader n2 -o json"},
		{args: "member"}, {args: "member fly"},
		{args: "status", status: healthy()},
		{args: "status", status: strings.Replace(healthy(), `"pending_config":null`, `"pending_config":{"members":[]}`, 1)},
		{args: "status", status: strings.Replace(sampleStatus, `"leader_id":"n2"`, `"leader_id":""`, 1)},
		{args: "status", status: strings.Replace(sampleStatus, `"id":"n3","role":"voter"`, `"id":"n3","role":"learner"`, 1)},
		{args: "status", status: strings.Replace(sampleStatus, `"applied_index":9120000,"lag":331`, `"applied_index":0,"lag":0`, 1)},
		{args: "status -o jsonl", status: healthy()},
		{args: "status", status: `{}`},
	} {
		s := newFakeStore()
		s.members, s.status = sampleMembers, c.status
		if c.members != "" {
			s.members = c.members
		}
		code, out, errs := cli(t, s, "", strings.Fields(c.args)...)
		fmt.Fprintf(&b, "$ kvctl %s\n%s", c.args, out)
		for line := range strings.Lines(errs) {
			b.WriteString("stderr: " + line)
		}
		for _, q := range s.asked {
			question, err := json.Marshal(q)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "asked: %s\n", question)
		}
		fmt.Fprintf(&b, "exit %d\n\n", code)
	}
	golden(t, "cluster.txt", b.String())
}

// A change has three outcomes, and each says what to do.
func TestMember_Failures_ExitCodesAndMessages(t *testing.T) {
	for _, c := range []struct {
		kind errKind
		code int
		want string
	}{
		{kindUnknown, 1, "may or may not have been made"},
		{kindFailed, 1, "went wrong"},
		{kindNotFound, 4, `no member "n3"`},
		{kindCondition, 4, "went wrong"},
		{kindDenied, 5, "refused: went wrong"},
		{kindTimeout, 6, "nothing was changed"},
		{kindUnhealthy, 7, "nothing was changed"},
		{kindConnect, 3, "went wrong"},
	} {
		for _, args := range []string{"member remove n3", "member promote n3", "member demote n3", "member replace n3", "member replace n3 --with n4", "member priority n3 7", "member add n3 --raft-address h:1 --address h:2 --incarnation " + strings.Repeat("0", 32), "move-leader n3"} {
			s := newFakeStore()
			s.fail = func(string, string) error { return &storeError{kind: c.kind, err: errors.New("went wrong")} }
			code, out, errs := cli(t, s, "", strings.Fields(args)...)
			if code != c.code || !strings.Contains(errs, c.want) || out != "" || strings.Contains(errs, "(nil)") || strings.Contains(errs, "read the key") {
				t.Errorf("%s, kind %d: exit %d, stdout %q, stderr %q; want exit %d and %q", args, c.kind, code, out, errs, c.code, c.want)
			}
		}
	}
	s := newFakeStore()
	s.fail = func(string, string) error { return &storeError{kind: kindUnknown, err: errors.New("TIMEOUT")} }
	if code, _, errs := cli(t, s, "", "member", "list"); code != exitTimeout || strings.Contains(errs, "may or may not") {
		t.Errorf("list: exit %d, %q", code, errs)
	}
	s = newFakeStore()
	s.members = "<html>"
	for _, form := range []string{"table", "raw"} {
		if code, out, _ := cli(t, s, "", "member", "list", "-o", form); code != exitFailed || out != "" {
			t.Errorf("garbage as %s: exit %d, %q", form, code, out)
		}
	}
}

func TestMember_WrongCommandLines_ExitTwoAndAskNobody(t *testing.T) {
	for _, args := range []string{
		"member list x", "member remove", "member remove a b", "member promote", "member demote", "member demote a b", "member replace", "member replace a b", "member replace a --with " + strings.Repeat("n", 65), "member priority", "member priority n1", "member priority n1 high", "member priority n1 101", "member priority n1 0.5",
		"member add", "member add n4", "member add n4 --raft-address h",
		"member add n4 --raft-address h:", "member add n4 --raft-address h:1 --address h", "member add n4 --raft-address h:1 --address h:2 --incarnation 12", "member add n4 --raft-address h:1 --address h:2",
		"member add n4 --raft-address h:1 --incarnation " + strings.Repeat("0", 32),
		"member add n4 --raft-address h:1 --address h:2 --incarnation " + strings.Repeat("g", 32), "member remove " + strings.Repeat("n", 65), "member remove n\xff", "move-leader a b", "move-leader " + strings.Repeat("n", 65),
		"export --patience -1s", "import - --patience -1s",
	} {
		s := newFakeStore()
		code, _, errs := cli(t, s, "", strings.Fields(args)...)
		if code != exitUsage || s.calls != 0 || !strings.Contains(errs, "kvctl: ") {
			t.Errorf("%q: exit %d, %d calls, %q", args, code, s.calls, errs)
		}
	}
	for _, args := range [][]string{{"member", "remove", ""}, {"move-leader", ""}, {"member", "replace", "n1", "--with", ""}, {"member", "priority", "n1", ""}, {"member", "priority", "n1", "--", "-1"}} {
		s := newFakeStore()
		if code, _, errs := cli(t, s, "", args...); code != exitUsage || s.calls != 0 {
			t.Errorf("%q: exit %d, %d calls, %q", args, code, s.calls, errs)
		}
	}
}

// endpoint is one node of a cluster that only answers STATUS.
type endpoint struct {
	status string
	err    error // of opening
	hang   bool  // opening ends with its context
}

// statusOver asks several endpoints; they are called a:1, b:1 and so on.
func statusOver(t *testing.T, headStart time.Duration, timeout string, endpoints ...endpoint) (code int, stdout, stderr string) {
	t.Helper()
	var names []string
	byName := map[string]endpoint{}
	for i, e := range endpoints {
		names = append(names, string(rune('a'+i))+":1")
		byName[names[i]] = e
	}
	change := func(a *app) {
		a.headStart = headStart
		a.open = func(ctx context.Context, o openOptions) (store, error) {
			if len(o.Endpoints) != 1 {
				t.Errorf("opened for %v", o.Endpoints)
			}
			e := byName[o.Endpoints[0]]
			if e.hang {
				<-ctx.Done()
				return nil, &storeError{kind: kindConnect, err: ctx.Err()}
			}
			if e.err != nil {
				return nil, e.err
			}
			s := newFakeStore()
			s.status = e.status
			return s, nil
		}
	}
	code, stdout, stderr, _ = cliApp(t, nil, "", change, "status", "--timeout", timeout, "-o", "raw", "--endpoints", strings.Join(names, ","))
	return code, stdout, stderr
}

func TestStatus_SeveralEndpoints_FirstThatKnowsALeaderAnswers(t *testing.T) {
	const long = "1h" // a test that waits for it fails by its own time
	down := endpoint{err: &storeError{kind: kindConnect, err: errors.New("refused"), why: "connection refused"}}
	hangs := endpoint{hang: true}
	cut := endpoint{status: strings.Replace(sampleStatus, `"leader_id":"n2"`, `"leader_id":""`, 1)}
	well := endpoint{status: healthy()}
	denies := endpoint{err: &storeError{kind: kindDenied, err: errors.New("who are you")}}
	for name, c := range map[string]struct {
		timeout   string
		endpoints []endpoint
		code      int
		out, errs string
	}{
		"the first":             {long, []endpoint{well, cut}, 0, `"leader_id":"n2"`, ""},
		"the second":            {long, []endpoint{down, well}, 0, `"leader_id":"n2"`, ""},
		"the last":              {long, []endpoint{down, denies, down, well}, 0, `"leader_id":"n2"`, ""},
		"one hangs":             {long, []endpoint{hangs, well}, 0, `"leader_id":"n2"`, ""},
		"one is cut off":        {long, []endpoint{cut, well}, 0, `"leader_id":"n2"`, ""},
		"all are cut off":       {long, []endpoint{cut, down, cut}, 7, `"leader_id":""`, "no leader"},
		"all others hang":       {"60ms", []endpoint{cut, hangs}, 7, `"leader_id":""`, "no leader"},
		"all are down":          {long, []endpoint{down, down}, 3, "", "nothing answers on a:1 (connection refused), b:1 (connection refused): is a node running?"},
		"down, and one refuses": {long, []endpoint{down, denies}, 5, "", "who are you"},
		"all hang":              {"60ms", []endpoint{hangs, hangs}, 3, "", "nothing answers on a:1 ("},
	} {
		headStart := time.Hour // an endpoint that has failed is not waited for
		for _, e := range c.endpoints {
			if e.hang {
				headStart = 10 * time.Millisecond
			}
		}
		code, out, errs := statusOver(t, headStart, c.timeout, c.endpoints...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.errs) || (c.out == "") != (out == "") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q; want exit %d, %q, %q", name, code, out, errs, c.code, c.out, c.errs)
		}
	}
}

// Beyond a voter that is not ok, an unhealthy cluster is one without a leader or without a majority.
func TestStatus_Health(t *testing.T) {
	node := func(id, role, state string) nodeStatus {
		return nodeStatus{ID: jsonText(id), Role: jsonText(role), State: jsonText(state)}
	}
	for _, c := range []struct {
		leader string
		nodes  []nodeStatus
		want   string
	}{
		{"a", []nodeStatus{node("a", "leader", "ok"), node("b", "follower", "ok"), node("c", "voter", "ok")}, ""},
		{"a", []nodeStatus{node("a", "leader", "ok"), node("b", "learner", "unreachable")}, ""},
		{"a", []nodeStatus{node("a", "leader", "ok"), node("b", "voter", "catching up"), node("c", "voter", "ok")}, "voter b is catching up"},
		{"a", []nodeStatus{node("a", "leader", "ok"), node("b", "voter", "refused: wiped"), node("c", "voter", "ok")}, "voter b is refused: wiped"},
		{"a", []nodeStatus{node("a", "leader", "ok"), node("b", "voter", "refused: wiped"), node("c", "voter", "unknown")}, "1 of 3 voters are up, a majority is needed; voter b is refused: wiped; voter c is unknown"},
		{"", []nodeStatus{node("a", "voter", "ok")}, "it has no leader"},
		{"a", []nodeStatus{node("a", "leader", "")}, "0 of 1 voters are up, a majority is needed; voter a is in no known state"},
	} {
		st := clusterStatus{LeaderID: jsonText(c.leader), Nodes: c.nodes}
		if got := st.unhealthy(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.nodes, got, c.want)
		}
	}
}

// While the cluster elects a leader the import waits, says so once in a while, and loses nothing.
func TestImport_LeaderChanges_WaitsAndGoesOn(t *testing.T) {
	for _, kind := range []errKind{kindUnhealthy, kindTimeout, kindConnect, kindUnknown} {
		s := newFakeStore()
		s.fail = func(string, string) error {
			if s.calls > 20 && s.calls < 45 {
				return &storeError{kind: kind, err: errors.New("no leader"), passing: true}
			}
			return nil
		}
		var in strings.Builder
		for i := range 200 {
			fmt.Fprintf(&in, "{\"key\":\"k%d\",\"text\":\"x\"}\n", i)
		}
		code, _, errs := cli(t, s, in.String(), "import", "-", "--concurrency", "16")
		if code != 0 || len(s.data) != 200 || strings.Count(errs, "waiting up to 1m0s for the cluster: no leader") != 1 {
			t.Errorf("kind %d: exit %d, %d keys, %q", kind, code, len(s.data), errs)
		}
	}
	s := newFakeStore()
	s.fail = func(string, string) error {
		return &storeError{kind: kindUnhealthy, err: errors.New("no leader"), passing: true}
	}
	if code, _, errs := cli(t, s, `{"key":"k","text":"x"}`, "import", "-", "--patience", "0"); code != exitUnhealthy || s.calls != 1 || !strings.Contains(errs, "import stopped: 0 keys") {
		t.Errorf("without patience: exit %d, %d calls, %q", code, s.calls, errs)
	}
}

// Moments are never mixed: when the new leader does not keep the export's, an export to a file begins anew,
// one to stdout fails.
func TestExport_MomentIsGone_FileBeginsAnewStdoutFails(t *testing.T) {
	gone := func(s *fakeStore, times int) {
		s.fail = func(_, key string) error {
			if key != "z" || times == 0 {
				return nil
			}
			times--
			// At the next moment there is less than what was written already.
			for k := range s.data {
				if k != "z" {
					delete(s.data, k)
				}
			}
			return &storeError{kind: kindCompacted, err: errors.New("KV-3006 COMPACTED")}
		}
	}
	file := t.TempDir() + "/out.jsonl"
	for _, c := range []struct{ times, want int }{{exportAttempts - 1, 0}, {exportAttempts, exitFailed}} {
		times, want := c.times, c.want
		s := sampleStore()
		gone(s, times)
		code, out, errs := cli(t, s, "", "export", "--file", file)
		if code != want || out != "" || strings.Count(errs, "beginning anew") != exportAttempts-1 {
			t.Errorf("%d times: exit %d, %q, %q", times, code, out, errs)
		}
		if want != 0 {
			continue
		}
		s.fail = nil
		_, all, _ := cli(t, s, "", "export")
		if got := readAll(t, file); got != all || strings.Count(got, "\n") != 1 {
			t.Errorf("%d times: the file holds\n%swant\n%s", times, got, all)
		}
	}
	s := sampleStore()
	gone(s, 1)
	code, out, errs := cli(t, s, "", "export")
	if code != exitFailed || strings.Count(out, "\n") != 5 || !strings.Contains(errs, "not complete, 5 keys") || !strings.Contains(errs, "start it anew") {
		t.Errorf("stdout: exit %d, %q, %q", code, out, errs)
	}
}

func TestHelp_ClusterVerbs_HaveExamplesAndSayWhatHappens(t *testing.T) {
	for args, wants := range map[string][]string{
		"member":          {"kvctl member remove node-3", "--join", "list", "promote"},
		"member list":     {"kvctl member list -o json"},
		"member add":      {"--raft-address", "by itself"},
		"member remove":   {"empty data directory", "--join"},
		"member promote":  {"caught up"},
		"member demote":   {"stays one until it is promoted", "no majority"},
		"member replace":  {"--with node-4", "empty", "--join"},
		"member priority": {"--leader-priority", "a minute"},
		"move-leader":     {"kvctl move-leader node-2", "most advanced"},
		"status":          {"7 when it has no leader", "--endpoints 10.0.1.10:7001"},
		"export":          {"--patience", "are never mixed", "pipefail"},
		"import":          {"--patience", "session"},
		"":                {"move-leader", "member", "Cluster:"},
	} {
		code, out, _ := cli(t, newFakeStore(), "", append(strings.Fields(args), "--help")...)
		for _, want := range wants {
			if code != 0 || !strings.Contains(out, want) {
				t.Errorf("kvctl %s --help: exit %d, lacks %q:\n%s", args, code, want, out)
			}
		}
		for line := range strings.Lines(out) {
			if n := len([]rune(line)); n > 125 && !strings.Contains(line, "  --") {
				t.Errorf("kvctl %s --help: a line of %d characters: %s", args, n, line)
			}
		}
	}
}

func readAll(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
