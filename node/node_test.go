package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

// openNode starts a real node on free ports with small files.
func openNode(t *testing.T, dir string, change func(*Options)) *Node {
	t.Helper()
	o := Options{
		DataDir: dir, Listen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", RaftListen: "127.0.0.1:0",
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Fatal:  func(err error) { panic(err) },
	}
	o.Engine.MemtableBytes = 4 << 20
	o.Consensus.SegmentBytes = 4 << 20
	o.Disk.BallastBytes = -1
	o.Disk.FloorBytes = 1 << 20
	if change != nil {
		change(&o)
	}
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Ready():
	case <-time.After(time.Minute):
		t.Fatal("the node does not become ready")
	}
	return n
}

// fixedPorts reserves ports and gives options that listen there.
func fixedPorts(t *testing.T) func(*Options) {
	t.Helper()
	var addrs [3]string
	for i := range addrs {
		p, err := testcluster.ReservePort()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Release(); err != nil {
				t.Error(err)
			}
		})
		addrs[i] = p.Addr()
	}
	return func(o *Options) { o.Listen, o.HTTPListen, o.RaftListen = addrs[0], addrs[1], addrs[2] }
}

func closeNode(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// testWriter passes log lines to the test. Lines after its end are dropped: there is nobody to read them.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// request builds a validated request.
func request(t *testing.T, op wire.Opcode, ext []byte, key string, payload []byte) *wire.Request {
	t.Helper()
	body := append(append(bytes.Clone(ext), key...), payload...)
	h := wire.Header{Op: op, ID: 1, ExtLen: uint16(len(ext)), KeyLen: uint16(len(key))}
	var r wire.Request
	if ref := wire.ParseRequest(&h, body, &r); ref != nil {
		t.Fatalf("%s: %v", op, ref)
	}
	return &r
}

func do(t *testing.T, n *Node, op wire.Opcode, ext []byte, key string, payload []byte) wire.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return n.service.Do(ctx, n.service.Anonymous(), request(t, op, ext, key, payload))
}

func put(t *testing.T, n *Node, key, value string) wire.Response {
	t.Helper()
	return do(t, n, wire.OpPut, nil, key, []byte(value))
}

func group(op wire.Opcode, flags uint8, its ...wire.Item) []byte {
	b := wire.AppendGroupHeader(nil, flags, len(its))
	for i := range its {
		b = wire.AppendItem(b, &its[i])
	}
	return b
}

func scanPayload(prefix string) []byte {
	return wire.AppendScanRequest(nil, &wire.ScanRequest{Prefix: []byte(prefix)})
}

// denySecrets refuses everything under secret/ and listings that could show it, and counts questions.
type denySecrets struct{ asked atomic.Int64 }

func (d *denySecrets) Open() bool { return false }

func (d *denySecrets) Authorize(p *Principal, a *Access) bool {
	d.asked.Add(1)
	if p == nil {
		panic("no principal")
	}
	if a.Op == wire.OpScan {
		return a.Prefix && strings.HasPrefix(string(a.Key), "public/")
	}
	return !strings.HasPrefix(string(a.Key), "secret/")
}

type auditLog struct {
	mu     sync.Mutex
	events []string
}

func (l *auditLog) Wants(op wire.Opcode, allowed bool) bool { return op == wire.OpDelete || !allowed }

func (l *auditLog) Audit(e *AuditEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, fmt.Sprintf("%s %s %s %v", e.Principal.Name, e.Op, e.Key, e.Allowed))
}

func TestService_Authorizer_IsAskedForEveryOperationInside(t *testing.T) {
	authorizer, audit := &denySecrets{}, &auditLog{}
	n := openNode(t, t.TempDir(), func(o *Options) { o.Service.Authorizer, o.Service.Audit = authorizer, audit })
	defer closeNode(t, n)
	secret, public := []byte("secret/k"), []byte("public/k")
	value := []byte("v")
	for name, c := range map[string]struct {
		op      wire.Opcode
		key     string
		payload []byte
		want    wire.Status
		asks    int64
	}{
		"put":           {wire.OpPut, "secret/k", value, wire.StatusDenied, 1},
		"get":           {wire.OpGet, "secret/k", nil, wire.StatusDenied, 1},
		"exists":        {wire.OpExists, "secret/k", nil, wire.StatusDenied, 1},
		"delete":        {wire.OpDelete, "secret/k", nil, wire.StatusDenied, 1},
		"put public":    {wire.OpPut, "public/k", value, wire.StatusOK, 1},
		"batch":         {wire.OpBatch, "", group(wire.OpBatch, 0, wire.Item{Op: wire.OpPut, Key: public, Value: value}, wire.Item{Op: wire.OpPut, Key: secret, Value: value}), wire.StatusDenied, 2},
		"txn check":     {wire.OpTxn, "", group(wire.OpTxn, 0, wire.Item{Op: wire.OpPut, Key: public, Value: value}, wire.Item{Op: wire.OpCheck, Key: secret, Ext: wire.AppendExtCondition(nil, wire.ConditionExists, nil)}), wire.StatusDenied, 2},
		"txn get":       {wire.OpTxn, "", group(wire.OpTxn, 0, wire.Item{Op: wire.OpGet, Key: secret}), wire.StatusDenied, 1},
		"txn public":    {wire.OpTxn, "", group(wire.OpTxn, 0, wire.Item{Op: wire.OpGet, Key: public}), wire.StatusOK, 1},
		"multiget":      {wire.OpMultiGet, "", group(wire.OpMultiGet, 0, wire.Item{Op: wire.OpGet, Key: public}, wire.Item{Op: wire.OpGet, Key: secret}), wire.StatusDenied, 2},
		"put if":        {wire.OpPut, "public/k", nil, wire.StatusConditionFailed, 2},
		"scan all":      {wire.OpScan, "", scanPayload(""), wire.StatusDenied, 1},
		"scan a prefix": {wire.OpScan, "", scanPayload("public/"), wire.StatusOK, 1},
	} {
		before := authorizer.asked.Load()
		var ext []byte
		if name == "put if" {
			ext = wire.AppendExtVersions(nil, 1)
		}
		if got := do(t, n, c.op, ext, c.key, c.payload); got.Status != c.want {
			t.Errorf("%s: %s, want %s", name, got.Status, c.want)
		}
		if asked := authorizer.asked.Load() - before; asked != c.asks {
			t.Errorf("%s: %d questions, want %d", name, asked, c.asks)
		}
	}
	if got := do(t, n, wire.OpDelete, nil, "public/k", nil); got.Status != wire.StatusOK {
		t.Errorf("delete public: %s", got.Status)
	}
	audit.mu.Lock()
	defer audit.mu.Unlock()
	joined := strings.Join(audit.events, "\n")
	for _, want := range []string{"anonymous put secret/k false", "anonymous delete public/k true", "anonymous check secret/k false"} {
		if !strings.Contains(joined, want) {
			t.Errorf("audit lacks %q:\n%s", want, joined)
		}
	}
	if strings.Contains(joined, "put public/k true") {
		t.Error("the sink was told what it did not want")
	}
}

type limiter struct{}

func (limiter) Allow(_ *Principal, _ uint32, op wire.Opcode, bytes int) (bool, uint32) {
	return op != wire.OpPut || bytes < 100, 1234
}

func TestService_Limiter_RefusesWithItsPause(t *testing.T) {
	n := openNode(t, t.TempDir(), func(o *Options) { o.Service.Limiter = limiter{} })
	defer closeNode(t, n)
	if r := put(t, n, "k", "small"); r.Status != wire.StatusOK {
		t.Errorf("small: %s", r.Status)
	}
	r := put(t, n, "k", strings.Repeat("x", 100))
	if want := wire.AppendExtU32(nil, wire.ExtRetryAfter, 1234); r.Status != wire.StatusLimited || !bytes.Equal(r.Ext, want) {
		t.Errorf("large: %s % x", r.Status, r.Ext)
	}
}

func TestService_FullDisk_RefusesWhatStoresAndHeals(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 40)
	n := openNode(t, t.TempDir(), func(o *Options) {
		o.Disk.FloorBytes, o.Disk.CriticalBytes = 1000, 100
		o.Disk.Stat = func(string) (uint64, error) { return free.Load(), nil }
	})
	defer closeNode(t, n)
	set := func(bytes uint64) {
		t.Helper()
		free.Store(bytes)
		for range 2 { // deletes are refused one poll after the ballast went
			if err := n.guard.Check(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, k := range []string{"a", "b", "c", "d"} {
		if r := put(t, n, k, "v"); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
	}
	del := func(key string) []byte {
		return group(wire.OpBatch, wire.GroupAtomic, wire.Item{Op: wire.OpDelete, Key: []byte(key)})
	}
	set(500)
	for name, c := range map[string]struct {
		got  wire.Response
		want wire.Status
	}{
		"put":             {put(t, n, "k", "v"), wire.StatusDiskFull},
		"get":             {do(t, n, wire.OpGet, nil, "a", nil), wire.StatusOK},
		"delete":          {do(t, n, wire.OpDelete, nil, "a", nil), wire.StatusOK},
		"session open":    {do(t, n, wire.OpSessionOpen, nil, "", nil), wire.StatusOK},
		"batch of delete": {do(t, n, wire.OpBatch, nil, "", del("b")), wire.StatusOK},
		"batch with put":  {do(t, n, wire.OpBatch, nil, "", group(wire.OpBatch, 0, wire.Item{Op: wire.OpPut, Key: []byte("k")})), wire.StatusDiskFull},
	} {
		if c.got.Status != c.want {
			t.Errorf("low, %s: %s, want %s", name, c.got.Status, c.want)
		}
	}
	set(50)
	if r := do(t, n, wire.OpDelete, nil, "c", nil); r.Status != wire.StatusDiskFull {
		t.Errorf("critical, delete: %s", r.Status)
	}
	if r := do(t, n, wire.OpGet, nil, "c", nil); r.Status != wire.StatusOK {
		t.Errorf("critical, get: %s", r.Status)
	}
	set(1 << 40)
	if r := put(t, n, "k", "v"); r.Status != wire.StatusOK {
		t.Errorf("after space returned: %s", r.Status)
	}
}

func TestNode_RecordWithTTL_GoesWithoutAnotherWrite(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	if r := do(t, n, wire.OpPut, wire.AppendExtU64(nil, wire.ExtTTL, 150), "k", []byte("v")); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	if r := do(t, n, wire.OpGet, nil, "k", nil); r.Status != wire.StatusOK {
		t.Fatalf("before its deadline: %s", r.Status)
	}
	deadline := time.Now().Add(20 * time.Second)
	for do(t, n, wire.OpGet, nil, "k", nil).Status != wire.StatusNotFound {
		if time.Now().After(deadline) {
			t.Fatal("still there")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestNode_RestartKeepsDataIdentityAndDigest(t *testing.T) {
	dir := t.TempDir()
	// Always the same addresses: a changed one is recorded, which is a change of the state.
	fixed := fixedPorts(t)
	n := openNode(t, dir, fixed)
	for i := range 100 {
		if r := put(t, n, fmt.Sprintf("k%03d", i), strings.Repeat("v", i*50)); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
	}
	var before, after statusDocument
	read := func(n *Node, d *statusDocument) {
		t.Helper()
		if err := json.Unmarshal(do(t, n, wire.OpStatus, nil, "", nil).Payload, d); err != nil {
			t.Fatal(err)
		}
	}
	read(n, &before)
	closeNode(t, n)
	n = openNode(t, dir, fixed)
	defer closeNode(t, n)
	read(n, &after)
	if before.AppliedIndex == 0 || after.AppliedIndex != before.AppliedIndex || after.StateDigest != before.StateDigest {
		t.Errorf("digest %s at %d, was %s at %d", after.StateDigest, after.AppliedIndex, before.StateDigest, before.AppliedIndex)
	}
	if after.ClusterID != before.ClusterID || after.HistoryID != before.HistoryID || after.Incarnation != before.Incarnation {
		t.Error("the identity changed")
	}
	if err := n.shard.engine.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
	if !after.IsLeader || after.Durability != "fsync" || len(after.Nodes) != 1 || len(after.CurrentConfig) != 1 {
		t.Errorf("status %+v", after)
	}
}

func TestNode_BothDoors_ShowOneStore(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	c, err := client.Open(t.Context(), []string{n.Addresses().Native})
	if err != nil {
		t.Fatal(err)
	}
	v, err := c.Put(t.Context(), "k", []byte("by the binary protocol"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + n.Addresses().HTTP + "/api/v1/keys/k")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != "by the binary protocol" || resp.Header.Get("ETag") != fmt.Sprintf("%q", fmt.Sprint(uint64(v))) {
		t.Errorf("%q %v, ETag %s, version %d", body, err, resp.Header.Get("ETag"), v)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestNode_Metrics_AreWellFormedAndComplete(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	put(t, n, "k", "v")
	resp, err := http.Get("http://" + n.Addresses().Metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	families, current := map[string]bool{}, ""
	for line := range strings.Lines(string(body)) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, _, _ = strings.Cut(name, " ")
			if families[name] {
				t.Errorf("family %s has two headers", name)
			}
			families[name], current = true, name
			continue
		}
		if strings.HasPrefix(line, "kvstore_") && !strings.HasPrefix(line, current) {
			t.Errorf("sample outside its family %s: %s", current, line)
		}
	}
	for _, want := range []string{
		"kvstore_request_duration_seconds", "kvstore_leader_elections_total", "kvstore_batch_entry_operations", "kvstore_raft_append_seconds",
		"kvstore_apply_seconds", "kvstore_badger_level_tables", "kvstore_batch_queue_bytes", "kvstore_native_out_bytes", "kvstore_disk_free_bytes", "kvstore_checkpoint_seconds",
		"kvstore_raft_is_leader", "kvstore_raft_lease_held", "kvstore_raft_members", "kvstore_forwarded_requests_total", "kvstore_read_index_rounds_total",
	} {
		if !families[want] {
			t.Errorf("no family %s", want)
		}
	}
	if !strings.Contains(string(body), "go_goroutines") {
		t.Error("no metrics of the Go runtime")
	}
}

func TestNode_Close_AnswersWhatIsUnderWayAndRefusesTheRest(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	var wg sync.WaitGroup
	var done, refused atomic.Int64
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				switch r := n.service.Do(context.Background(), n.service.Anonymous(), request(t, wire.OpPut, nil, fmt.Sprintf("k%d-%d", w, i), []byte("v"))); {
				case r.Status == wire.StatusOK:
					done.Add(1)
				case r.Status.Class() == wire.ClassRetry:
					refused.Add(1)
					return
				default:
					t.Errorf("a clean stop gave %s", r.Status)
					return
				}
			}
		})
	}
	for done.Load() < 100 {
		time.Sleep(time.Millisecond)
	}
	closeNode(t, n)
	wg.Wait()
	if refused.Load() != 8 {
		t.Errorf("%d of 8 writers were refused", refused.Load())
	}
}

func TestOpen_PortInUseOrForeignDirectory_SaysWhatToDo(t *testing.T) {
	slow(t)
	dir := t.TempDir()
	n := openNode(t, dir, nil)
	defer closeNode(t, n)
	o := Options{DataDir: t.TempDir(), Listen: n.Addresses().Native, HTTPListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0", RaftListen: "127.0.0.1:0"}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("port in use: %v", err)
	}
	o.DataDir, o.Listen = dir, "127.0.0.1:0"
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("directory in use: %v", err)
	}
}

func TestService_OtherGroupOrNamespace_IsRefused(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	r := request(t, wire.OpPut, nil, "k", []byte("v"))
	r.Group = 2
	if got := n.service.Do(t.Context(), n.service.Anonymous(), r); got.Status != wire.StatusBadRequest {
		t.Errorf("group 2: %s", got.Status)
	}
	if got := do(t, n, wire.OpPut, wire.AppendExtString(nil, wire.ExtNamespace, "other"), "k", nil); got.Status != wire.StatusNoNamespace {
		t.Errorf("namespace other: %s", got.Status)
	}
	if got := do(t, n, wire.OpPut, wire.AppendExtString(nil, wire.ExtNamespace, "default"), "k", nil); got.Status != wire.StatusOK {
		t.Errorf("namespace default: %s", got.Status)
	}
}

func TestService_ReadAtRevisions_ReflectsThePastAndNeverTheFuture(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	var revs []wire.Revision
	for _, v := range []string{"one", "two"} {
		rev, ok := wire.DecodeVersion(put(t, n, "k", v).Payload)
		if !ok {
			t.Fatal("no version")
		}
		revs = append(revs, rev)
	}
	for at, want := range map[wire.Revision]string{revs[0]: "one", revs[1]: "two"} {
		if got := do(t, n, wire.OpGet, wire.AppendExtU64(nil, wire.ExtAtRevision, at), "k", nil); string(got.Payload) != want {
			t.Errorf("at %d: %s %q, want %q", at, got.Status, got.Payload, want)
		}
	}
	if got := do(t, n, wire.OpGet, wire.AppendExtU64(nil, wire.ExtAtRevision, revs[1]+1<<30), "k", nil); got.Status != wire.StatusFutureRevision {
		t.Errorf("the future: %s", got.Status)
	}
	if got := do(t, n, wire.OpGet, wire.AppendExtU64(nil, wire.ExtMinRevision, revs[1]), "k", nil); string(got.Payload) != "two" {
		t.Errorf("at least the newest: %s", got.Status)
	}
	if got := do(t, n, wire.OpGet, wire.AppendExtU64(nil, wire.ExtMinRevision, revs[1]+1<<30), "k", nil); got.Status != wire.StatusRetryLater {
		t.Errorf("at least the future: %s", got.Status)
	}
}

// A client that never finishes its request is no reason to stop in disorder.
func TestNode_Close_SlowUpload_ClosesTheStoreInOrder(t *testing.T) {
	slow(t)
	dir := t.TempDir()
	n := openNode(t, dir, nil)
	c, err := net.Dial("tcp", n.Addresses().HTTP)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "PUT /api/v1/keys/slow HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n")
	// The server asks for the body: the request is under way.
	if _, err := c.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Error("nothing of the time was left for the store")
	}
	closeNode(t, openNode(t, dir, nil))
}

func TestStatus_ReadMode_IsTheOneThatWasAskedFor(t *testing.T) {
	n := openNode(t, t.TempDir(), func(o *Options) { o.ReadMode = "readindex" })
	defer closeNode(t, n)
	var d statusDocument
	if err := json.Unmarshal(n.service.statusJSON(false), &d); err != nil {
		t.Fatal(err)
	}
	if d.ReadMode != "readindex" || d.Lease.Mode != "readindex" {
		t.Errorf("read mode %q, lease %+v", d.ReadMode, d.Lease)
	}
}
