package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// sampleStore holds one key of each sort.
func sampleStore() *fakeStore {
	s := newFakeStore()
	for _, r := range []struct {
		key, value string
		o          putOptions
	}{
		{"hello", "world", putOptions{}},
		{"user:1", `{"name":"Ada <ada@example.com>"}`, putOptions{ContentType: "application/json", Tags: map[string]string{"team": "a", "env": "test"}}},
		{"user:2", strings.Repeat("long ", 30), putOptions{TTL: 90 * time.Second}},
		{"user:3", "\x00\xff\xfe", putOptions{Encoding: "gzip"}},
		{"user:é\t", "tab and accent in the key", putOptions{}},
		{"z", "", putOptions{}},
	} {
		s.version += 1 << 20
		s.put(r.key, []byte(r.value), r.o)
	}
	s.version = 42 << 20
	return s
}

var sampleEvents = []event{
	{Kind: "put", Revision: 44040192, Last: true, Record: record{Key: "user:1", Value: []byte("Ada"), Version: 44040192, CreatedAt: testNow, UpdatedAt: testNow}},
	{Kind: "put", Revision: 44040193, Record: record{Key: "user:é\t", Value: []byte("after é"), Version: 44040193}, Previous: &record{Key: "user:é\t", Value: []byte("before"), Version: 7}},
	{Kind: "delete", Revision: 44040194, Last: true, Record: record{Key: "user:2"}, PreviousLost: true},
	{Kind: "expire", Revision: 45088768, Last: true, Record: record{Key: "user:3"}},
}

const sampleNamespaces = `{"namespaces":[{"name":"app","id":2,"state":"active","created_at":"2026-01-02T03:04:05Z","keys":12,"bytes":3456,"settings":{"bytes_max":1073741824,"keys_max":10,"ops_per_second":0,"watches_max":0,"compress":"none"}}]}`

const sampleStatus = `{"cluster_id":"8f3a","node_id":"n1","is_leader":false,"leader_id":"n2","term":7,"applied_index":9120331,"revision":"9563300000000","state_digest":"ab12","lease":{"held":false,"mode":"lease"},"nodes":[` +
	`{"id":"n1","role":"voter","state":"ok","raft_address":"10.0.1.10:7000","address":"10.0.1.10:7001","applied_index":9120331,"lag":0,"version":"v1.0.0"},` +
	`{"id":"n2","role":"voter","state":"ok","raft_address":"10.0.1.11:7000","address":"10.0.1.11:7001","applied_index":9120331,"lag":0,"version":"v1.0.0"},` +
	`{"id":"n3","role":"voter","state":"unreachable","raft_address":"10.0.1.12:7000","address":"10.0.1.12:7001","applied_index":9120000,"lag":331,"version":"v1.0.0"}],` +
	`"current_config":[],"pending_config":null,"durability":"fsync","read_mode":"lease","pid":4711}`

// Every verb in every form of output, with its exit code: one golden file shows them all.
func TestVerbs_OutputsAndExitCodes_Golden(t *testing.T) {
	var b strings.Builder
	for _, c := range []struct {
		args  string
		stdin string
	}{
		{args: "put hello moon"}, {args: "put hello moon -o json"}, {args: "put hello moon -o raw"}, {args: "put piped -", stdin: "from stdin\n"},
		{args: "put hello x --if-version 1"}, {args: "put hello x --if-version 1048576"}, {args: "put hello x --if-absent"}, {args: "put new x --if-absent"},
		{args: "get hello"}, {args: "get nope"}, {args: "get nope -o json"}, {args: "get user:1 -o json"}, {args: "get user:3 -o json"}, {args: "get user:1 --meta"}, {args: "get z"},
		{args: "delete hello"}, {args: "delete nope"}, {args: "delete nope -o json"}, {args: "delete hello -o json"}, {args: "delete hello --if-value moon"},
		{args: "list"}, {args: "list user: --limit 2"}, {args: "list user: --reverse --keys-only"}, {args: "list --start i --end user:2 -o raw"}, {args: "list -o jsonl"},
		{args: "list user: -o json"}, {args: "list none"}, {args: "list none -o json"}, {args: "list user: --keys-only -o raw"},
		{args: "txn", stdin: "put a 1\nget hello\ndelete z\ncheck user:1\nif exists\n"}, {args: "txn -o json", stdin: "get hello\nput b \"two words\"\ndelete nope\nget nope"},
		{args: "txn", stdin: `{"operations":[{"type":"PUT","key":"a","text":"1","conditions":[{"if_exists":true}]},{"type":"GET","key":"hello"}]}`},
		{args: "txn -o json", stdin: `{"operations":[{"type":"delete","key":"hello","conditions":[{"if_version_match":"9"}]}]}`},
		{args: "txn -o raw", stdin: "get hello\nput q 1"},
		{args: "put hello x --if-tag team=a"}, {args: "put user:1 x --if-tag team=a --if-no-tag other --compress zstd"},
		{args: "touch user:2"}, {args: "touch user:2 --ttl 1m -o json"}, {args: "touch nope"}, {args: "incr n"}, {args: "incr n 5 -o json"}, {args: "incr n -- -3"}, {args: "incr hello"},
		{args: "list user: --count"}, {args: "list --count -o json"},
		{args: "txn", stdin: "incr n 5\ntouch user:2 1m\ntouch nope\nif absent"}, {args: "txn", stdin: "incr n 5\ntouch user:2 1m\ntouch nope\nput user:1 x\nif tag:team=a\nif tag:env\nif no-tag:other"},
		{args: "txn -o json", stdin: `{"operations":[{"type":"INCREMENT","key":"n","delta":-2},{"type":"TOUCH","key":"user:2","ttl_seconds":60,"conditions":[{"if_exists":true}]},{"type":"CHECK","key":"user:1","conditions":[{"if_tag_match":{"name":"team","value":"a"}},{"if_tag_absent":"x"}]}]}`},
		{args: "watch user: -n 4"}, {args: "watch -n 4 -o jsonl --after 7"}, {args: "watch -n 4 -o raw"}, {args: "watch -n 9"},
		{args: "namespace list"}, {args: "namespace create app --keys 10 --bytes 1GiB"}, {args: "namespace set app --compress zstd"}, {args: "namespace drop app --yes"}, {args: "namespace describe app -o json"},
		{args: "status"}, {args: "status -o json"},
		{args: "export user:"}, {args: "export --meta --start z"},
		{args: "import -", stdin: `{"key":"i","text":"1"}` + "\n"}, {args: "import - -o json", stdin: `{"key":"i","text":"1"}`},
	} {
		s := sampleStore()
		s.status = sampleStatus
		s.events, s.watchEnd = sampleEvents, &storeError{kind: kindCompacted, err: errors.New("gone")}
		if strings.HasPrefix(c.args, "namespace") {
			s.members = sampleNamespaces
		}
		code, out, errs := cli(t, s, c.stdin, strings.Fields(c.args)...)
		fmt.Fprintf(&b, "$ kvctl %s\n%s", c.args, out)
		if out != "" && !strings.HasSuffix(out, "\n") {
			b.WriteString("⏎\n")
		}
		for line := range strings.Lines(errs) {
			b.WriteString("stderr: " + line)
		}
		fmt.Fprintf(&b, "exit %d\n\n", code)
		if s.closed != 1 {
			t.Errorf("%s: the store was closed %d times", c.args, s.closed)
		}
	}
	golden(t, "verbs.txt", b.String())
}

// Each kind of failure has its exit code and its words, for a write and for a read.
func TestFailures_ExitCodesAndMessages_Golden(t *testing.T) {
	var b strings.Builder
	for _, c := range []struct {
		kind errKind
		code int
		want string
	}{
		{kindFailed, 1, "went wrong"},
		{kindUnknown, 1, "unknown: the write may or may not be applied"},
		{kindConnect, 3, "went wrong"},
		{kindNotFound, 4, "(nil)"},
		{kindCondition, 4, "nothing was changed"},
		{kindDenied, 5, "denied"},
		{kindTimeout, 6, "--timeout"},
		{kindUnhealthy, 7, "kvctl status"},
		{kindNoNamespace, 4, "kvctl namespace list"},
		{kindExists, 4, "went wrong"},
		{kindQuota, 1, "went wrong"},
	} {
		s := sampleStore()
		s.fail = func(string, string) error { return &storeError{kind: c.kind, err: errors.New("went wrong")} }
		code, out, errs := cli(t, s, "", "put", "hello", "x")
		if code != c.code || !strings.Contains(errs, c.want) || out != "" {
			t.Errorf("kind %d: exit %d, stdout %q, stderr %q; want exit %d and %q", c.kind, code, out, errs, c.code, c.want)
		}
		fmt.Fprintf(&b, "%s", errs)
	}
	golden(t, "failures.txt", b.String())
}

func TestUsage_WrongCommandLines_ExitTwo(t *testing.T) {
	for _, args := range [][]string{
		{"fly"}, {"put"}, {"put", "a"}, {"put", "a", "b", "c"}, {"put", "a", "b", "--file", "x"}, {"put", "a", "b", "--nope"}, {"put", "", "b"}, {"put", "a\xff", "b"},
		{"put", strings.Repeat("k", 1025), "b"}, {"put", "a", "b", "--tag", "novalue"}, {"put", "a", "b", "--ttl", "0s"}, {"put", "a", "b", "--ttl", "soon"},
		{"put", "a", "b", "--if-absent", "--if-exists"}, {"get"}, {"get", "a", "b"}, {"get", "a", "-o", "yaml"}, {"get", "a", "--timeout", "-1s"},
		{"get", "a", "--endpoints", "nohost"}, {"list", "a", "b"}, {"list", "--limit", "-1"}, {"status", "x"}, {"import"}, {"import", "-", "--concurrency", "0"}, {"txn", "x"},
		{"touch"}, {"touch", "a", "b"}, {"touch", "a", "--ttl", "0s"}, {"incr"}, {"incr", "a", "one"}, {"incr", "a", "99999999999999999999"}, {"incr", "a", "--ttl", "1us"}, {"put", "a", "b", "--compress", "gzip"},
		{"list", "--count", "--limit", "1"}, {"list", "--count", "--delimiter", "/"}, {"watch", "a", "b"}, {"watch", "a", "--key", "b"}, {"watch", "--key", ""}, {"watch", "--only", "puts"}, {"watch", "-n", "-1"},
		{"watch", "--from-start", "--after", "5"}, {"namespace"}, {"namespace", "fly"}, {"namespace", "create"}, {"namespace", "create", "a b"}, {"namespace", "create", "a", "--bytes", "much"}, {"namespace", "create", "a", "--compress", "gzip"},
		{"namespace", "drop", "a"}, {"namespace", "set", "a"},
	} {
		s := newFakeStore()
		code, _, errs := cli(t, s, "", args...)
		if code != exitUsage || !strings.Contains(errs, "kvctl: ") || !strings.Contains(errs, "see `kvctl --help`") {
			t.Errorf("%q: exit %d, %q", args, code, errs)
		}
		if s.calls != 0 {
			t.Errorf("%q reached the store", args)
		}
	}
	for _, text := range []string{"", "put a", "fly a", "if exists", "put a 1\nif never", "get a\nif version=x", "check a", "incr a b", "incr", "touch a soon", "touch a 1m x", `{"operations":[{"type":"PUT","key":"a","text":"x","delta":1}]}`, `{"operations":[{"type":"TOUCH","key":"a","text":"x"}]}`, `{"operations":[{"type":"GET","key":"a","conditions":[{"if_tag_present":"t","if_exists":true}]}]}`, `put "a 1`, `{"operations":[]}`, `{"operations":[{"type":"FLY","key":"a"}]}`,
		`{"operations":[{"type":"PUT","key":"a"}]}`, `{"operations":[{"type":"PUT","key":"a","text":"x","value":"eA=="}]}`, `{"operations":[{"type":"GET","key":"a","text":"x"}]}`,
		`{"operations":[{"type":"GET","key":""}]}`, `{"operations":[{"type":"GET","key":"a","odd":1}]}`, `{"operations":[{"type":"GET","key":"a","conditions":[{}]}]}`,
		`{"operations":[{"type":"GET","key":"a","conditions":[{"if_exists":true,"if_not_exists":true}]}]}`, `{"operations":[{"type":"GET","key":"a"}]} {}`} {
		s := newFakeStore()
		if code, _, errs := cli(t, s, text, "txn"); code != exitUsage || s.calls != 0 {
			t.Errorf("transaction %q: exit %d, %d calls, %q", text, code, s.calls, errs)
		}
	}
}

func TestHelp_TopicsAndVersion(t *testing.T) {
	code, out, _ := cli(t, newFakeStore(), "", "help", "exit-codes")
	if code != 0 || strings.TrimSpace(out) != strings.TrimSpace(exitCodesText) {
		t.Errorf("exit %d, %q", code, out)
	}
	code, out, _ = cli(t, newFakeStore(), "", "--version")
	if code != 0 || !strings.HasPrefix(out, "kvctl dev (go") || strings.Count(out, "\n") != 1 {
		t.Errorf("exit %d, %q", code, out)
	}
	code, out, _ = cli(t, newFakeStore(), "", "version", "-o", "json")
	if code != 0 || !strings.Contains(out, `"protocol":1`) {
		t.Errorf("exit %d, %q", code, out)
	}
	if code, out, _ = cli(t, newFakeStore(), "", "completion", "bash"); code != 0 || !strings.Contains(out, "kvctl") {
		t.Errorf("completion: exit %d", code)
	}
	if _, out, _ = cli(t, newFakeStore(), ""); !strings.Contains(out, "kvctl put hello world") {
		t.Errorf("no example in the help: %q", out)
	}
}

func TestEndpoints_FlagThenEnvironmentThenDefault(t *testing.T) {
	env := func(a *app) {
		a.getenv = func(name string) string {
			if name == "KVCTL_ENDPOINTS" {
				return "a:1, b:2"
			}
			return ""
		}
	}
	for _, c := range []struct {
		change func(*app)
		args   []string
		want   string
	}{
		{nil, nil, "[127.0.0.1:7001]"},
		{env, nil, "[a:1 b:2]"},
		{env, []string{"--endpoints", "kv://c:3,d:4", "--namespace", "ns", "--timeout", "2s"}, "[c:3 d:4]"},
	} {
		_, _, _, o := cliApp(t, sampleStore(), "", c.change, append([]string{"get", "hello"}, c.args...)...)
		if got := fmt.Sprint(o.Endpoints); got != c.want {
			t.Errorf("endpoints %s, want %s", got, c.want)
		}
		if len(c.args) > 0 && (o.Namespace != "ns" || o.Timeout != 2*time.Second) {
			t.Errorf("opened with %+v", o)
		}
	}
}

// On a terminal a newline follows a value that has none; on a pipe the bytes are exact.
func TestGet_Terminal_NewlineAdded_PipeExact(t *testing.T) {
	s := sampleStore()
	tty := func(a *app) { a.outTTY = true }
	if _, out, _, _ := cliApp(t, s, "", tty, "get", "hello"); out != "world\n" {
		t.Errorf("terminal: %q", out)
	}
	if _, out, _, _ := cliApp(t, s, "", tty, "get", "hello", "-o", "raw"); out != "world" {
		t.Errorf("raw: %q", out)
	}
	if _, out, _ := cli(t, s, "", "get", "user:3"); out != "\x00\xff\xfe" {
		t.Errorf("pipe: %q", out)
	}
}

func TestStatus_NoQuorumOrNoLeader_ExitsSeven(t *testing.T) {
	s := newFakeStore()
	for _, c := range []struct{ text, want string }{
		{strings.Replace(sampleStatus, `"leader_id":"n2"`, `"leader_id":""`, 1), "no leader"},
		{strings.ReplaceAll(sampleStatus, `"state":"ok"`, `"state":"down"`), "0 of 3 voters"},
	} {
		s.status = c.text
		for _, form := range []string{"table", "json", "raw"} {
			code, out, errs := cli(t, s, "", "status", "-o", form)
			if code != exitUnhealthy || out == "" || !strings.Contains(errs, c.want) {
				t.Errorf("%s: exit %d, %q, want %d and %q", form, code, errs, exitUnhealthy, c.want)
			}
		}
	}
	s.status = "not JSON"
	if code, _, _ := cli(t, s, "", "status"); code != exitFailed {
		t.Errorf("garbage from the server: exit %d", code)
	}
}

func TestList_BreaksOff_ShowsWhatCameAndFails(t *testing.T) {
	s := sampleStore()
	s.fail = func(_, key string) error {
		if key == "user:2" {
			return &storeError{kind: kindUnhealthy, err: errors.New("no leader")}
		}
		return nil
	}
	code, out, errs := cli(t, s, "", "list", "-o", "raw")
	if code != exitUnhealthy || !strings.Contains(out, "hello\tworld\n") || !strings.Contains(errs, "not complete") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestInterrupt_ExitsOneThirty(t *testing.T) {
	s := sampleStore()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	s.fail = func(string, string) error { cancel(); return nil }
	a := &app{in: strings.NewReader(""), out: &out, err: &errs, getenv: func(string) string { return "" }, now: time.Now,
		open: func(context.Context, openOptions) (store, error) { return s, nil }}
	if code := a.run(ctx, []string{"put", "a", "b"}); code != exitInterrupted {
		t.Errorf("exit %d, %q", code, errs.String())
	}
}

// A node that takes no entries because its disk is full, and one that has met damage, answer as if all were well.
func TestUnhealthy_DiskOrDamage_IsNamed(t *testing.T) {
	for want, change := range map[string][2]string{
		"the disk of n1 is critical":  {`"applied_index":9120331,"lag":0,`, `"disk":{"state":"critical","free_bytes":1},"applied_index":9120331,"lag":0,`},
		"data of n1 is damaged: here": {`"durability":`, `"damage":"here","durability":`},
	} {
		s := sampleStore()
		s.status = strings.Replace(sampleStatus, change[0], change[1], 1)
		code, out, errs := cli(t, s, "", "status")
		if code != exitUnhealthy || out == "" || !strings.Contains(errs, want) {
			t.Errorf("%s: exit %d, %q", want, code, errs)
		}
	}
}
