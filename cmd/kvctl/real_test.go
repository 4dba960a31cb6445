package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/node"
)

// openNode starts a real node on free loopback ports.
func openNode(t *testing.T) (n *node.Node, endpoint string) {
	t.Helper()
	o := node.Options{
		DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", RaftListen: "127.0.0.1:0",
		Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { panic(err) },
	}
	o.Engine.MemtableBytes = 4 << 20
	o.Consensus.SegmentBytes = 4 << 20
	o.Disk.BallastBytes = -1
	o.Disk.FloorBytes = 1 << 20
	n, err := node.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return n, n.Addresses().Native
}

// real runs one command line through the Go client.
func real(t *testing.T, endpoint, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{in: strings.NewReader(stdin), out: &out, err: &errs, getenv: func(string) string { return "" }, now: time.Now, open: openClient}
	code = a.run(t.Context(), append([]string{"--endpoints", endpoint}, args...)) // in front: behind -- it would be an argument
	return code, out.String(), errs.String()
}

// The whole way, from the command line over the Go client and a socket to the disk and back.
func TestReal_EveryVerb_AgainstANode(t *testing.T) {
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
		{"put hello world", "", 0, "OK (version ", ""},
		{"get hello", "", 0, "world", ""},
		{"get nope", "", 4, "", "(nil)"},
		{"put hello moon --if-absent", "", 4, "", "nothing was changed"},
		{"put hello moon --if-value world --tag b=2 --tag a=1 --content-type text/plain --ttl 1h", "", 0, "OK", ""},
		{"get hello --meta", "", 0, "moon", "a=1"},
		{"get hello -o json", "", 0, `"tags":{"a":"1","b":"2"}`, ""},
		{"get hello --consistency any", "", 0, "moon", ""},
		{"get hello --consistency stale --meta", "", 0, "moon", "age           0.0ms"},
		{"get hello --max-age 1ms -o json", "", 0, `"age_ms":0`, ""},
		{"list hello --consistency stale -o raw", "", 0, "hello\tmoon\n", ""},
		{"put hello x --if-version 1", "", 4, "", "nothing was changed"},
		{"txn", "put t/1 one\nput t/2 two\nget t/1\ncheck hello\nif exists\ndelete nope", 0, "GET t/1 → one", ""},
		{"txn", "put t/1 other\nif absent\nput t/3 three", 4, "", "operation 0 (PUT t/1): condition 0"},
		{"list t/", "", 0, "t/2", ""},
		{"list t/ --reverse --keys-only -o raw", "", 0, "t/2\nt/1\n", ""},
		{"list --start hello --end t/1 --keys-only -o raw", "", 0, "hello\n", ""},
		{"list t/ --limit 1 -o raw", "", 0, "t/1\tone\n", ""},
		{"delete t/1", "", 0, "OK", ""},
		{"delete t/1", "", 4, "", "(nil)"},
		{"status", "", 0, "quorum 1/1", ""},
		{"status -o json", "", 0, `"leader_id"`, ""},
		{"get hello --namespace nowhere", "", 4, "", "namespace"},
	} {
		code, out, errs := real(t, endpoint, c.stdin, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out, c.out) || !strings.Contains(errs, c.errs) {
			t.Errorf("kvctl %s: exit %d, stdout %q, stderr %q; want exit %d, %q, %q", c.args, code, out, errs, c.code, c.out, c.errs)
		}
	}
}

// Import, export, import into an empty node, export: the same bytes, whatever the values.
func TestReal_ImportExport_RoundTrip(t *testing.T) {
	s := newFakeStore()
	for i := range 3000 {
		v := strings.Repeat(string(rune('a'+i%26)), i%700)
		if i%5 == 0 {
			v += "\xff\x00"
		}
		o := putOptions{}
		if i%7 == 0 {
			o = putOptions{ContentType: "application/x-test", Encoding: "none", Tags: map[string]string{"z": "1", "a.b": "<ü>"}}
		}
		s.version++
		s.put(fmt.Sprintf("key/%d/%c", i*7919%3000, 'à'+i%20), []byte(v), o)
	}
	_, lines, _ := cli(t, s, "", "export")
	n, endpoint := openNode(t)
	defer func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	if code, _, errs := real(t, endpoint, lines, "import", "-"); code != 0 {
		t.Fatalf("import: exit %d, %s", code, errs)
	}
	if code, out, errs := real(t, endpoint, "", "export"); code != 0 || out != lines {
		t.Errorf("export: exit %d, %s, %d bytes of %d", code, errs, len(out), len(lines))
	}
}

// A node that is gone: what did not answer, why, and what to do; exit code 3.
func TestReal_NothingListens_ExitsThreeAndHelps(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"get", "a"}, {"put", "a", "b"}, {"list"}, {"status"}, {"export"}} {
		code, out, errs := real(t, addr, "", args...)
		want := "kvctl: nothing answers on " + addr + " (connection refused): is a node running? start one with `make run`, or name another with --endpoints\n"
		if code != exitConnect || out != "" || errs != want {
			t.Errorf("%q: exit %d, %q, %q", args, code, out, errs)
		}
	}
}

// Each sentinel of the client has its kind; an unknown outcome is never anything else.
func TestSorted_ClientSentinels(t *testing.T) {
	for err, want := range map[error]errKind{
		client.ErrMaybeApplied: kindUnknown,
		errors.Join(client.ErrMaybeApplied, context.DeadlineExceeded): kindUnknown,
		client.ErrNotFound:        kindNotFound,
		client.ErrConditionFailed: kindCondition,
		client.ErrDenied:          kindDenied,
		client.ErrUnauthenticated: kindDenied,
		client.ErrUnavailable:     kindConnect,
		client.ErrBusy:            kindUnhealthy,
		client.ErrDiskFull:        kindUnhealthy,
		client.ErrTimeout:         kindTimeout,
		context.DeadlineExceeded:  kindTimeout,
		client.ErrTooLarge:        kindFailed,
		fmt.Errorf("cannot do: %w", client.ErrNoNamespace):             kindNoNamespace,
		errors.Join(client.ErrMaybeApplied, client.ErrConditionFailed): kindUnknown,
	} {
		if got := sorted([]string{"x:1"}, err); !isKind(got, want) || !errors.Is(got, err) {
			t.Errorf("%v: %#v, want kind %d", err, got, want)
		}
	}
	if sorted(nil, nil) != nil {
		t.Error("no error became one")
	}
}
