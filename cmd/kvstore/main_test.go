package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kvstore/node"
)

func noEnv(string) (string, bool) { return "", false }

func TestRun_WithoutServing_ExitCodesAndWords(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kvstore.yaml")
	if err := os.WriteFile(file, []byte("data-dir: "+dir+"\nlisen: 127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	blocked := filepath.Join(dir, "a-file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		code int
		want string // in stdout or stderr
	}{
		"help":                   {[]string{"--help"}, nil, exitOK, "--data-dir"},
		"version":                {[]string{"--version"}, nil, exitOK, "kvstore dev"},
		"unknown flag":           {[]string{"--lisen", "x"}, nil, exitUsage, "did you mean listen?"},
		"command first":          {[]string{"server", "--lisen", "x"}, nil, exitUsage, "did you mean listen?"},
		"too few compactors":     {[]string{"--compactors", "2"}, nil, exitUsage, "below 3"},
		"advertise":              {[]string{"--advertise", "nowhere"}, nil, exitUsage, "not HOST:PORT"},
		"node id":                {[]string{"--node-id", "a=b"}, nil, exitUsage, "node-id"},
		"node id, not UTF-8":     {[]string{"--node-id", "a\xff"}, nil, exitUsage, "node-id"},
		"unknown command":        {[]string{"serve"}, nil, exitUsage, `unknown command "serve"`},
		"open listener":          {[]string{"--listen", "0.0.0.0:7001"}, nil, exitUsage, "--insecure"},
		"open listener by env":   {nil, map[string]string{"KVSTORE_HTTP_LISTEN": "10.0.0.1:80"}, exitUsage, "--insecure"},
		"out of bounds":          {[]string{"--batch-inflight", "0"}, nil, exitUsage, "outside 1 to 32"},
		"election too short":     {[]string{"--election-timeout", "100ms"}, nil, exitUsage, "below heartbeat-timeout"},
		"floor too low":          {[]string{"--disk-floor", "64MiB", "--memtable-size", "4MiB"}, nil, exitUsage, "below 192MiB"},
		"another cluster":        {[]string{"--initial-cluster", "a=b:1,c=d:2"}, nil, exitUsage, "clusters of one"},
		"join":                   {[]string{"--join", "127.0.0.1:7003"}, nil, exitUsage, "clusters of one"},
		"check, good":            {[]string{"--check-config", "--data-dir", dir}, nil, exitOK, "the configuration is good"},
		"check, own cluster":     {[]string{"--check-config", "--data-dir", dir, "--initial-cluster", "node-1=127.0.0.1:7000"}, nil, exitOK, "good"},
		"check, bad file":        {[]string{"--check-config", "--config", file}, nil, exitFailed, file + ":2: unknown key \"lisen\"; did you mean listen?"},
		"check, not a directory": {[]string{"--check-config", "--data-dir", filepath.Join(blocked, "x")}, nil, exitFailed, "data-dir"},
	} {
		var stdout, stderr bytes.Buffer
		env := func(k string) (string, bool) { v, ok := c.env[k]; return v, ok }
		if code := run(c.args, env, &stdout, &stderr); code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", name, code, c.code, stdout.String(), stderr.String())
		}
		if !strings.Contains(stdout.String()+stderr.String(), c.want) {
			t.Errorf("%s: no word of %q\n%s%s", name, c.want, stdout.String(), stderr.String())
		}
	}
}

// Every default passes through the parts' own validation; a default out of a part's bounds would only
// show when a node starts.
func TestSettings_Defaults_AreGoodAndComplete(t *testing.T) {
	var c settings
	if _, err := c.declare().Load(nil, noEnv, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	o := c.options()
	o.DataDir, o.Listen, o.HTTPListen, o.MetricsListen = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	o.Consensus.SegmentBytes, o.Disk.BallastBytes = 1<<20, -1
	n, err := node.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestBanner_NamesEveryAddressAndTheNextCommands(t *testing.T) {
	var c settings
	if _, err := c.declare().Load(nil, noEnv, nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	banner(&b, node.Addresses{Native: "127.0.0.1:9001", HTTP: "127.0.0.1:9003", Metrics: "127.0.0.1:9112", Fresh: true}, &c, 123*time.Millisecond)
	for _, want := range []string{
		"127.0.0.1:9001", "http://127.0.0.1:9003/api/v1/keys/", "http://127.0.0.1:9112/metrics", "(new)", "fsync per group commit",
		"kvctl --endpoints 127.0.0.1:9001 put hello world", "kvbench quick --endpoints 127.0.0.1:9001", "ready in 123ms", "loopback only",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the banner does not say %q:\n%s", want, b.String())
		}
	}
	c.insecure = true
	b.Reset()
	banner(&b, node.Addresses{Native: defaultListen}, &c, 0)
	if !strings.Contains(b.String(), "WARNING") || strings.Contains(b.String(), "--endpoints") {
		t.Errorf("insecure banner:\n%s", b.String())
	}
}
