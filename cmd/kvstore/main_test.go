package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
		"cluster of others":      {[]string{"--initial-cluster", "a=b:1,c=d:2"}, nil, exitUsage, "does not contain this node as node-1=127.0.0.1:7000"},
		"cluster, other port":    {[]string{"--initial-cluster", "node-1=127.0.0.1:7010,node-2=127.0.0.1:7000"}, nil, exitUsage, "does not contain this node"},
		"cluster, no address":    {[]string{"--initial-cluster", "node-1=127.0.0.1:7000,node-2"}, nil, exitUsage, `"node-2" is not NAME=HOST:PORT`},
		"cluster, empty part":    {[]string{"--initial-cluster", "node-1=127.0.0.1:7000,"}, nil, exitUsage, `"" is not NAME=HOST:PORT`},
		"cluster, no port":       {[]string{"--initial-cluster", "node-1=127.0.0.1:7000,node-2=127.0.0.1"}, nil, exitUsage, "not HOST:PORT"},
		"cluster, port 0":        {[]string{"--initial-cluster", "node-1=127.0.0.1:7000,node-2=127.0.0.1:0"}, nil, exitUsage, "no port from 1"},
		"cluster, name twice":    {[]string{"--initial-cluster", "node-1=127.0.0.1:7000,node-1=127.0.0.1:7010"}, nil, exitUsage, "node node-1 stands twice"},
		"cluster, address twice": {[]string{"--initial-cluster", "node-1=127.0.0.1:7000,node-2=127.0.0.1:7000"}, nil, exitUsage, "address 127.0.0.1:7000 stands twice"},
		"cluster of ten":         {[]string{"--initial-cluster", tenNodes()}, nil, exitUsage, "at most 9"},
		"cluster and join":       {[]string{"--initial-cluster", "node-1=127.0.0.1:7000", "--join", "127.0.0.1:7003"}, nil, exitUsage, "both given"},
		"join, no address":       {[]string{"--join", "127.0.0.1"}, nil, exitUsage, "join: \"127.0.0.1\" is not HOST:PORT"},
		"join from everywhere":   {[]string{"--join", "10.0.0.1:7003", "--insecure", "--listen", "0.0.0.0:7001"}, nil, exitUsage, "advertise is needed"},
		"lease too long":         {[]string{"--lease-duration", "599ms"}, nil, exitUsage, "nine tenths"},
		"request log, mode":      {[]string{"--request-log", "some"}, nil, exitUsage, "is not off or errors or sampled or all"},
		"request log, no place":  {[]string{"--request-log-file", filepath.Join(dir, "nowhere", "x")}, nil, exitUsage, "there is no directory"},
		"request log, no file":   {[]string{"--request-log-file", dir}, nil, exitUsage, "is a directory"},
		"request log, off":       {[]string{"--check-config", "--data-dir", dir, "--request-log", "off", "--request-log-file", dir}, nil, exitOK, "good"},
		"rate out of bounds":     {[]string{"--gateway-requests-per-second", "-1"}, nil, exitUsage, "outside 0 to 1000000000"},
		"check, good":            {[]string{"--check-config", "--data-dir", dir}, nil, exitOK, "the configuration is good"},
		"check, own cluster":     {[]string{"--check-config", "--data-dir", dir, "--initial-cluster", "node-1=127.0.0.1:7000"}, nil, exitOK, "good"},
		"check, three nodes":     {[]string{"--check-config", "--data-dir", dir, "--initial-cluster", "node-1=127.0.0.1:7000,node-2=127.0.0.1:7010,n.3=kv-3.example:7000"}, nil, exitOK, "good"},
		"check, join":            {[]string{"--check-config", "--data-dir", dir, "--join", "127.0.0.1:7003,kv-2.example:7003"}, nil, exitOK, "good"},
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
		if c.code != exitOK && strings.Count(stderr.String(), c.want) > 1 {
			t.Errorf("%s: a fault is told twice\n%s", name, stderr.String())
		}
	}
}

func tenNodes() string {
	var list []string
	for i := range 10 {
		list = append(list, fmt.Sprintf("node-%d=127.0.0.1:70%d0", i+1, i))
	}
	return strings.Join(list, ",")
}

// Every default passes through the parts' own validation; a default out of a part's bounds would only
// show when a node starts.
func TestSettings_Defaults_AreGoodAndComplete(t *testing.T) {
	var c settings
	if _, err := c.declare(head).Load(nil, noEnv, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	o := c.options()
	o.DataDir, o.Listen, o.HTTPListen, o.GRPCListen, o.MetricsListen, o.RaftListen = t.TempDir(), "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	o.Consensus.SegmentBytes, o.Disk.BallastBytes = 1<<20, -1
	n, err := node.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Once a directory has a cluster, the options by which it came to one mean nothing, however wrong; another
// node can't use it.
func TestRun_DirectoryWithACluster_IgnoresHowItWasFoundedAndRefusesOthers(t *testing.T) {
	dir := t.TempDir()
	small := []string{"--data-dir", dir, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--raft-listen", "127.0.0.1:0", "--log-segment-size", "1MiB", "--disk-ballast", "0"}
	var c settings
	if _, err := c.declare(head).Load(small, noEnv, nil); err != nil {
		t.Fatal(err)
	}
	n, err := node.Open(t.Context(), c.options())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"initial-cluster", "join"} {
		c = settings{}
		if _, err := c.declare(head).Load(append(small, "--"+option, "not=a=list"), noEnv, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.check(); err != nil || !slices.Equal(c.ignored, []string{option}) {
			t.Errorf("%s: %v, ignored %v", option, err, c.ignored)
		}
		if o := c.options(); len(o.InitialCluster)+len(o.Join) != 0 {
			t.Errorf("%s reached the node", option)
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run(append(small, "--node-id", "node-9"), noEnv, &stdout, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "--node-id node-1") {
		t.Errorf("as another node: exit %d: %s", code, stderr.String())
	}
}

func TestBanner_NamesEveryAddressAndTheNextCommands(t *testing.T) {
	var c settings
	if _, err := c.declare(head).Load(nil, noEnv, nil); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	banner(&b, node.Addresses{Native: "127.0.0.1:9001", HTTP: "127.0.0.1:9003", Metrics: "127.0.0.1:9112", Raft: "0.0.0.0:9000", RaftAdvertise: "127.0.0.1:9000", Fresh: true}, []string{"node-1", "node-2"}, "node-2", &c, 123*time.Millisecond)
	for _, want := range []string{
		"127.0.0.1:9001", "http://127.0.0.1:9003/api/v1/keys/", "http://127.0.0.1:9112/metrics", "(new)", "fsync per group commit",
		"kvctl --endpoints 127.0.0.1:9001 put hello world", "kvbench quick --endpoints 127.0.0.1:9001", "ready in 123ms", "loopback only",
		"node node-1, of node-1, node-2", "leader node-2", "127.0.0.1:9000", "linearizable, by lease",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the banner does not say %q:\n%s", want, b.String())
		}
	}
	c.insecure = true
	b.Reset()
	banner(&b, node.Addresses{Native: defaultListen}, []string{"node-1"}, "node-1", &c, 0)
	if !strings.Contains(b.String(), "WARNING") || !strings.Contains(b.String(), "a cluster of one") || strings.Contains(b.String(), "--endpoints") {
		t.Errorf("insecure banner:\n%s", b.String())
	}
}
