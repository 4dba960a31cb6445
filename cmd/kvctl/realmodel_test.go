package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// The verbs of the data model, from the command line to the disk of a node and back.
func TestReal_DataModelVerbs_AgainstANode(t *testing.T) {
	n, endpoint := openNode(t)
	defer func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		args, stdin string
		code        int
		out, errs   string // parts
	}{
		{"put doc/a/1 one --tag team=red", "", 0, "OK (version ", ""},
		{"put doc/a/2 two --compress none", "", 0, "OK (version ", ""},
		{"put doc/b -", strings.Repeat("the same again ", 400), 0, "OK (version ", ""},
		{"put doc/c - --compress zstd", strings.Repeat("the same again ", 400), 0, "OK (version ", ""},
		{"get doc/c", "", 0, strings.Repeat("the same again ", 400), ""},
		{"put doc/c x --compress gzip", "", 2, "", "gzip"},
		{"put doc/a/1 uno --if-tag team=blue", "", 4, "", "nothing was changed"},
		{"put doc/a/1 uno --if-no-tag team", "", 4, "", "nothing was changed"},
		{"touch doc/a/1 --ttl 1h --if-tag team=red", "", 0, "OK (version ", ""},
		{"get doc/a/1 -o json", "", 0, `"expires_at"`, ""},
		{"get doc/a/1 -o json", "", 0, `"tags":{"team":"red"}`, ""},
		{"touch doc/none", "", 4, "", "(nil)"},
		{"incr visits", "", 0, "1\n", ""},
		{"incr visits 41", "", 0, "42\n", ""},
		{"-o json incr visits -- -2", "", 0, `"counter":40`, ""},
		{"incr doc/a/1", "", 1, "", "nothing was changed"},
		{"incr visits 9223372036854775807", "", 1, "", "nothing was changed"},
		{"get visits", "", 0, "40", ""},
		{"txn", "put doc/a/3 three\nincr visits 2\ntouch doc/a/1 1m\ncheck doc/a/1\nif tag:team=red\nif tag:team\nif no-tag:other\n", 0, "42", ""},
		{"txn", "put doc/a/4 four\nif absent\ncheck doc/a/1\nif no-tag:team\n", 4, "", "operation 1 (CHECK doc/a/1): condition 0"},
		{"txn -o json", `{"operations":[{"type":"INCREMENT","key":"visits","delta":-2},{"type":"CHECK","key":"doc/a/1","conditions":[{"if_tag_match":{"name":"team","value":"red"}}]}]}`, 0, `"counter":40`, ""},
		{"list doc/ --delimiter / -o raw", "", 0, "doc/a/\n", ""},
		{"list doc/ --delimiter / --keys-only", "", 0, "doc/a/", ""},
		{"list doc/ --count", "", 0, "5\n", ""},
		{"list doc/ --count --limit 2 -o json", "", 2, "", "--limit"},
		{"namespace create app --keys 1 --bytes 1MiB", "", 0, "OK (app is created", ""},
		{"namespace create app", "", 4, "", "NAMESPACE_EXISTS"},
		{"put k 1 --namespace app", "", 0, "OK (version ", ""},
		{"put l 1 --namespace app", "", 1, "", "quota"},
		{"put k 2 --namespace app", "", 0, "OK (version ", ""},
		{"get k", "", 4, "", "(nil)"},
		{"namespace set app --keys 2 --compress s2", "", 0, "OK (app is changed", ""},
		{"put l 1 --namespace app", "", 0, "OK (version ", ""},
		{"namespace describe app", "", 0, "app   active  2     2", ""},
		{"namespace list -o json", "", 0, `"name":"default"`, ""},
		{"namespace drop app", "", 2, "", "--yes"},
		{"namespace drop app --yes", "", 0, "OK (app is dropped", ""},
		{"get k --namespace app", "", 4, "", "namespace"},
	} {
		code, out, errs := real(t, endpoint, c.stdin, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(strings.ToLower(errs), strings.ToLower(c.errs)) {
			t.Errorf("kvctl %s: exit %d, stdout %q, stderr %q; want exit %d, %q, %q", c.args, code, out, errs, c.code, c.out, c.errs)
		}
	}
}

// A listing of the past stays what it was.
func TestReal_ListRevision_ShowsThePast(t *testing.T) {
	n, endpoint := openNode(t)
	defer func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	_, out, _ := real(t, endpoint, "", "put", "k", "old")
	var version uint64
	if _, err := fmt.Sscanf(out, "OK (version %d", &version); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if code, _, errs := real(t, endpoint, "", "put", "k", "new"); code != 0 {
		t.Fatal(errs)
	}
	if code, out, errs := real(t, endpoint, "", "list", "-o", "raw", "--revision", fmt.Sprint(version)); code != 0 || out != "k\told\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

// An interrupted watch ends with 130, and every change that came before is on stdout, each once and in order.
func TestReal_WatchInterrupted_ExitsOneThirtyAndLosesNothing(t *testing.T) {
	n, endpoint := openNode(t)
	defer func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	_, out, _ := real(t, endpoint, "", "put", "w/0", "before")
	var version uint64
	if _, err := fmt.Sscanf(out, "OK (version %d", &version); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	r, w := io.Pipe()
	var errs bytes.Buffer
	code := make(chan int, 1)
	go func() { // ends with ctx, at the latest with the test
		a := &app{in: strings.NewReader(""), out: w, err: &errs, getenv: func(string) string { return "" }, now: time.Now, open: openClient}
		code <- a.run(ctx, []string{"watch", "w/", "-o", "raw", "--after", fmt.Sprint(version), "--endpoints", endpoint})
		_ = w.Close() // never fails
	}()
	const changes = 50
	want := ""
	for i := range changes {
		k := fmt.Sprintf("w/%d", i)
		want += k + "\t" + fmt.Sprint(i) + "\n"
		if code, _, errs := real(t, endpoint, "", "put", k, fmt.Sprint(i)); code != 0 {
			t.Fatal(errs)
		}
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("%v: %q", err, got)
	}
	interrupt()
	rest, err := io.ReadAll(r)
	if c := <-code; c != exitInterrupted || err != nil || len(rest) != 0 || errs.Len() != 0 {
		t.Errorf("exit %d, %v, more: %q, stderr %q", c, err, rest, errs.String())
	}
}
