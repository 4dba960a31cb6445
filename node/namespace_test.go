package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

// in gives the extension that names a namespace.
func in(ns string) []byte { return wire.AppendExtString(nil, wire.ExtNamespace, ns) }

// inAny is in for a linearizable read that any node may answer.
func inAny(ns string) []byte {
	return wire.AppendExtU8(in(ns), wire.ExtConsistency, wire.ConsistencyAnyNode)
}

func TestNamespaceAdmin_EachAction_AnswersOrRefusesWithItsReason(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	for _, step := range []struct {
		name, document string
		status         wire.Status
		want           string // in the payload
	}{
		{"the default one is there", `{"action":"namespace_list"}`, wire.StatusOK, `"name":"default","id":1,"state":"active"`},
		{"describe an unknown one", `{"action":"namespace_describe","namespace":"app"}`, wire.StatusNoNamespace, `"app" does not exist; nothing was changed: create it first`},
		{"set an unknown one", `{"action":"namespace_set","namespace":"app","settings":{}}`, wire.StatusNoNamespace, `"app"`},
		{"drop an unknown one", `{"action":"namespace_drop","namespace":"app"}`, wire.StatusNoNamespace, `"app"`},
		{"create", `{"action":"namespace_create","namespace":"app","settings":{"bytes_max":1000,"keys_max":5,"ops_per_second":7,"watches_max":9,"compress":"zstd"}}`, wire.StatusOK, `"settings":{"bytes_max":1000,"keys_max":5,"ops_per_second":7,"watches_max":9,"compress":"zstd"}`},
		{"create again", `{"action":"namespace_create","namespace":"app"}`, wire.StatusNamespaceExists, `"app" already`},
		{"create without settings", `{"action":"namespace_create","namespace":"a/b:c.d-e_f"}`, wire.StatusOK, `"keys_max":0`},
		{"set", `{"action":"namespace_set","namespace":"app","settings":{"keys_max":6}}`, wire.StatusOK, `"settings":{"bytes_max":0,"keys_max":6,"ops_per_second":0,"watches_max":0,"compress":"none"}`},
		{"describe", `{"action":"namespace_describe","namespace":"app"}`, wire.StatusOK, `"id":2`},
		{"set the default one", `{"action":"namespace_set","namespace":"default","settings":{"compress":"lz4"}}`, wire.StatusOK, `"compress":"lz4"`},
		{"drop the default one", `{"action":"namespace_drop","namespace":"default"}`, wire.StatusBadRequest, `stays`},
		{"set without settings", `{"action":"namespace_set","namespace":"app"}`, wire.StatusBadRequest, "takes settings"},
		{"drop with settings", `{"action":"namespace_drop","namespace":"app","settings":{}}`, wire.StatusBadRequest, "takes no settings"},
		{"list with a name", `{"action":"namespace_list","namespace":"app"}`, wire.StatusBadRequest, "no name"},
		{"a name that none may have", `{"action":"namespace_create","namespace":"/app"}`, wire.StatusBadRequest, "begins with a letter"},
		{"no name", `{"action":"namespace_create"}`, wire.StatusBadRequest, "begins with a letter"},
		{"a name that is too long", `{"action":"namespace_create","namespace":"` + strings.Repeat("a", 129) + `"}`, wire.StatusBadRequest, "128"},
		{"an unknown codec", `{"action":"namespace_create","namespace":"b","settings":{"compress":"gzip"}}`, wire.StatusBadRequest, `"gzip"`},
		{"a negative limit", `{"action":"namespace_create","namespace":"b","settings":{"keys_max":-1}}`, wire.StatusBadRequest, "keys_max"},
		{"an unknown field", `{"action":"namespace_create","namespace":"b","quota":1}`, wire.StatusBadRequest, "quota"},
		{"something behind the document", `{"action":"namespace_list"} {}`, wire.StatusBadRequest, "admin request"},
		{"an unknown action", `{"action":"namespace_rename","namespace":"app"}`, wire.StatusBadRequest, "namespace_describe"},
		{"drop", `{"action":"namespace_drop","namespace":"app"}`, wire.StatusOK, `"namespaces":[]`},
		{"describe the dropped one", `{"action":"namespace_describe","namespace":"app"}`, wire.StatusNoNamespace, `"app"`},
		{"create the name anew", `{"action":"namespace_create","namespace":"app"}`, wire.StatusOK, `"id":4`},
	} {
		t.Run(step.name, func(t *testing.T) {
			_, r := administer[namespacesDocument](t, n, step.document)
			if r.Status != step.status || !strings.Contains(string(r.Payload), step.want) {
				t.Errorf("%s %s, want %s with %s", r.Status, r.Payload, step.status, step.want)
			}
		})
	}
	d := mustAdminister[namespacesDocument](t, n, `{"action":"namespace_describe","namespace":"app"}`)
	if at := d.Namespaces[0].CreatedAt; time.Since(at).Abs() > time.Hour {
		t.Errorf("created at %s", at)
	}
}

// Every operation with a name that stands for nothing is refused; a name of its own keeps keys apart.
func TestNamespace_UnknownAndKnown_KeepKeysApart(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	scan := wire.AppendScanRequest(nil, &wire.ScanRequest{})
	for _, r := range []*wire.Request{
		request(t, wire.OpPut, in("app"), "k", []byte("v")), request(t, wire.OpDelete, in("app"), "k", nil),
		request(t, wire.OpGet, in("app"), "k", nil), request(t, wire.OpExists, in("app"), "k", nil), request(t, wire.OpScan, in("app"), "", scan),
		request(t, wire.OpGet, wire.AppendExtU8(in("app"), wire.ExtConsistency, wire.ConsistencyStale), "k", nil),
		request(t, wire.OpPut, in("no name can be like this"), "k", nil),
	} {
		if a := once(t, n, r); a.Status != wire.StatusNoNamespace || !strings.Contains(string(a.Payload), string(r.Namespace)) {
			t.Errorf("%s in an unknown namespace: %s %s", r.Op, a.Status, a.Payload)
		}
	}
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	put(t, n, "k", "ours")
	if a := do(t, n, wire.OpGet, in("app"), "k", nil); a.Status != wire.StatusNotFound {
		t.Errorf("a key of the default namespace: %s", a.Status)
	}
	if a := do(t, n, wire.OpPut, in("app"), "k", []byte("theirs")); a.Status != wire.StatusOK {
		t.Fatalf("%s %s", a.Status, a.Payload)
	}
	for range 3 { // from the tables, from the cache
		for ns, want := range map[string]string{"app": "theirs", "default": "ours"} {
			if a := do(t, n, wire.OpGet, in(ns), "k", nil); a.Status != wire.StatusOK || string(a.Payload) != want {
				t.Errorf("%s: %s %q, want %q", ns, a.Status, a.Payload, want)
			}
		}
	}
}

// A write of a session that was done before its namespace was dropped is told so when it is sent again.
func TestNamespace_RetryAfterTheDrop_IsToldItsResult(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	grant, ok := wire.DecodeSessionGrant(do(t, n, wire.OpSessionOpen, nil, "", nil).Payload)
	if !ok {
		t.Fatal("no session")
	}
	ext := wire.AppendExtSession(in("app"), grant.Session, 1, 0)
	first := do(t, n, wire.OpPut, ext, "k", []byte("v"))
	if first.Status != wire.StatusOK {
		t.Fatalf("%s %s", first.Status, first.Payload)
	}
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_drop","namespace":"app"}`)
	if again := do(t, n, wire.OpPut, ext, "k", []byte("v")); again.Status != wire.StatusOK || !again.Replayed || string(again.Payload) != string(first.Payload) {
		t.Errorf("the retry: %s %s, replayed %v", again.Status, again.Payload, again.Replayed)
	}
	ext = wire.AppendExtSession(in("app"), grant.Session, 2, 0)
	if next := do(t, n, wire.OpPut, ext, "k", []byte("v")); next.Status != wire.StatusNoNamespace {
		t.Errorf("the next write: %s %s", next.Status, next.Payload)
	}
}

// inOrder takes answers in the order in which they come.
type inOrder struct {
	mu       sync.Mutex
	statuses map[wire.Status]int
	versions map[uint32]uint64
	left     atomic.Int64
	done     chan struct{}
}

func newInOrder(n int) *inOrder {
	c := &inOrder{statuses: map[wire.Status]int{}, versions: map[uint32]uint64{}, done: make(chan struct{})}
	c.left.Store(int64(n))
	return c
}

func (c *inOrder) Complete(t wire.Token, r *wire.Response) {
	c.mu.Lock()
	c.statuses[r.Status]++
	if v, ok := wire.DecodeVersion(r.Payload); ok && r.Status == wire.StatusOK {
		c.versions[t.ID] = v
	}
	c.mu.Unlock()
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
}

func (c *inOrder) wait(t *testing.T) {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(waitMax):
		t.Fatalf("%d answers are missing", c.left.Load())
	}
}

// Many connections write into namespaces that don't exist: each is created once, every write is done, and those of one
// connection in one namespace keep their order, also across the moment at which it came to be.
func TestAutoCreate_ManyWritesAtOnce_CreateEachOnceAndKeepOrder(t *testing.T) {
	n := openNode(t, t.TempDir(), func(o *Options) { o.Service.AutoCreateNamespaces = true })
	defer closeNode(t, n)
	if r := do(t, n, wire.OpGet, in("ns-0"), "k", nil); r.Status != wire.StatusNotFound {
		t.Errorf("a read in a namespace that nobody has written to: %s %s", r.Status, r.Payload)
	}
	if r := do(t, n, wire.OpScan, in("ns-0"), "", wire.AppendScanRequest(nil, &wire.ScanRequest{})); r.Status != wire.StatusOK {
		t.Errorf("a listing there: %s %s", r.Status, r.Payload)
	}
	if r := do(t, n, wire.OpPut, in("-"), "k", nil); r.Status != wire.StatusNoNamespace {
		t.Errorf("a write with a name that none may have: %s", r.Status)
	}
	const conns, each, names = 6, 200, 3
	var wg sync.WaitGroup
	for c := range conns {
		to := newInOrder(each)
		wg.Go(func() {
			for i := range each {
				r := request(t, wire.OpPut, in(fmt.Sprintf("ns-%d", c%names)), fmt.Sprintf("key-%d", c), fmt.Append(nil, i))
				r.ID = uint32(i + 1)
				n.service.Serve(to, anonymous, []wire.Request{*r})
				if i%20 == 0 {
					time.Sleep(time.Millisecond) // so that some come while the namespace is made, and some after
				}
			}
			to.wait(t)
			if to.statuses[wire.StatusOK] != each {
				t.Errorf("answers %v", to.statuses)
			}
			for i := uint32(2); i <= each; i++ {
				if to.versions[i] <= to.versions[i-1] {
					t.Errorf("write %d of connection %d was done before the one in front of it", i, c)
				}
			}
		})
	}
	wg.Wait()
	if d := mustAdminister[namespacesDocument](t, n, `{"action":"namespace_list"}`); len(d.Namespaces) != 1+names {
		t.Errorf("%d namespaces", len(d.Namespaces))
	}
	for c := range conns {
		if r := do(t, n, wire.OpGet, in(fmt.Sprintf("ns-%d", c%names)), fmt.Sprintf("key-%d", c), nil); string(r.Payload) != fmt.Sprint(each-1) {
			t.Errorf("connection %d: %s %q", c, r.Status, r.Payload)
		}
	}
	nc := n.service.newcomers
	if nc.creating.Load() != 0 || nc.writes != 0 || nc.bytes != 0 || len(nc.names) != 0 {
		t.Errorf("still counted as waiting: %d namespaces, %d writes, %d bytes", len(nc.names), nc.writes, nc.bytes)
	}
}

// More namespaces at a time than may be created, more writes than may wait, and writes whose deadline passes meanwhile.
func TestAutoCreate_BeyondItsBounds_IsBusyOrTooLate(t *testing.T) {
	n := openNode(t, t.TempDir(), func(o *Options) { o.Service.AutoCreateNamespaces = true })
	defer closeNode(t, n)
	// As if their creation were under way and did not end.
	nc := n.service.newcomers
	nc.mu.Lock()
	for i := range newcomersMax {
		nc.names[fmt.Sprintf("stuck-%d", i)] = &newcomer{name: fmt.Appendf(nil, "stuck-%d", i)}
	}
	nc.creating.Add(newcomersMax)
	nc.mu.Unlock()
	if r := once(t, n, request(t, wire.OpPut, in("one-more"), "k", nil)); r.Status != wire.StatusBusy {
		t.Errorf("one namespace more: %s", r.Status)
	}
	if r := put(t, n, "k", "v"); r.Status != wire.StatusOK {
		t.Errorf("a write elsewhere: %s", r.Status)
	}
	to := newInOrder(heldWritesMax + 1)
	r := request(t, wire.OpPut, in("stuck-0"), "k", []byte("v"))
	for range heldWritesMax + 1 {
		n.service.Serve(to, anonymous, []wire.Request{*r})
	}
	to.mu.Lock()
	if to.statuses[wire.StatusBusy] != 1 || len(to.statuses) != 1 {
		t.Errorf("answers to one write too many: %v", to.statuses)
	}
	to.mu.Unlock()
	nc.mu.Lock()
	for i := range nc.names["stuck-0"].writes {
		nc.names["stuck-0"].writes[i].deadline = n.shard.now() - 1
	}
	stuck := nc.names["stuck-0"]
	nc.mu.Unlock()
	nc.lapse(stuck)
	to.wait(t)
	if to.statuses[wire.StatusTooLate] != heldWritesMax {
		t.Errorf("answers %v", to.statuses)
	}
	if nc.writes != 0 || nc.bytes != 0 {
		t.Errorf("%d writes of %d bytes still wait", nc.writes, nc.bytes)
	}
}

// The leader goes while namespaces are made for writes: each write is done, surely not done, or unknown, and it is what
// its answer says.
func TestAutoCreate_LeaderGoes_EveryAnswerIsTrue(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, func(o *Options) { o.Service.AutoCreateNamespaces = true })
	c.start(c.ids...)
	leader, _ := c.leader()
	const writes = 300
	statuses := make([]wire.Status, writes)
	var wg sync.WaitGroup
	var begun sync.WaitGroup
	begun.Add(writes / 10)
	for w := range writes {
		wg.Go(func() {
			if w < writes/10 {
				defer begun.Done()
			}
			time.Sleep(time.Duration(w) * time.Millisecond / 4)
			r := request(t, wire.OpPut, in(fmt.Sprintf("ns-%d", w/30)), fmt.Sprintf("key-%d", w), []byte("v"))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			statuses[w] = leader.service.attempt(ctx, leader.service.Anonymous(), r).Status
		})
	}
	begun.Wait()
	c.stop(leader.info.NodeID)
	wg.Wait()
	next, _ := c.leader()
	count := map[wire.Status]int{}
	for w, st := range statuses {
		count[st]++
		r := do(t, next, wire.OpGet, in(fmt.Sprintf("ns-%d", w/30)), fmt.Sprintf("key-%d", w), nil)
		there := r.Status == wire.StatusOK
		switch {
		case !there && r.Status != wire.StatusNotFound:
			t.Errorf("write %d can't be looked up: %s %s", w, r.Status, r.Payload)
		case st == wire.StatusOK && !there:
			t.Errorf("write %d was acknowledged and is not there", w)
		case (st.Class() == wire.ClassRetry || st.Class() == wire.ClassRefused) && there:
			t.Errorf("write %d was refused with %s and is there", w, st)
		case st == wire.StatusNoNamespace:
			t.Errorf("write %d was refused for the namespace that it was to make", w)
		}
	}
	t.Logf("answers %v", count)
	if count[wire.StatusOK] == 0 || count[wire.StatusOK] == writes {
		t.Errorf("the leader went too early or too late to show anything: %v", count)
	}
	c.same()
}

// What was created is found, and what was dropped is not, by the next linearizable read at a follower; nor does a
// namespace that was made anew show what the old one held.
func TestFollowerRead_NamespaceCreatedAndDropped_IsWhatItIs(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, others := c.leader()
	get := func(i int, want wire.Status) {
		t.Helper()
		n := others[i%2]
		// A node that can't tell says RETRY_LATER; it must be able to tell soon.
		for {
			r := once(t, n, request(t, wire.OpGet, inAny("app"), "k", nil))
			if r.Status == wire.StatusRetryLater {
				continue
			}
			if r.Status != want {
				t.Fatalf("round %d: %s %s, want %s", i, r.Status, r.Payload, want)
			}
			return
		}
	}
	for i := range 25 {
		get(i, wire.StatusNoNamespace)
		mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_create","namespace":"app"}`)
		get(i, wire.StatusNotFound)
		if r := do(t, leader, wire.OpPut, in("app"), "k", []byte("v")); r.Status != wire.StatusOK {
			t.Fatal(r.Status)
		}
		get(i, wire.StatusOK)
		mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_drop","namespace":"app"}`)
		if i%2 == 0 {
			get(i, wire.StatusNoNamespace)
		}
		mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_create","namespace":"app"}`)
		get(i, wire.StatusNotFound)
		mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_drop","namespace":"app"}`)
	}
	served := uint64(0)
	for _, n := range others {
		served += n.service.follower.served.Load()
	}
	if served == 0 {
		t.Error("no read was answered by a follower")
	}
}

// A quota of keys is refused beyond its edge, and its room is there again behind it; the scrape counts it.
func TestQuota_OverTheEdgeAndBack_IsRefusedAndCounted(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app","settings":{"keys_max":3}}`)
	putIn := func(key string) wire.Response { return do(t, n, wire.OpPut, in("app"), key, []byte("v")) }
	for _, key := range []string{"a", "b", "c", "c"} {
		if r := putIn(key); r.Status != wire.StatusOK {
			t.Fatalf("%s: %s %s", key, r.Status, r.Payload)
		}
	}
	if r := putIn("d"); r.Status != wire.StatusQuota || !strings.Contains(string(r.Payload), "keys") {
		t.Errorf("the fourth key: %s %s", r.Status, r.Payload)
	}
	if r := put(t, n, "d", "v"); r.Status != wire.StatusOK {
		t.Errorf("a key of another namespace: %s", r.Status)
	}
	if r := do(t, n, wire.OpDelete, in("app"), "a", nil); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	if r := putIn("d"); r.Status != wire.StatusOK {
		t.Errorf("behind a delete: %s %s", r.Status, r.Payload)
	}
	var b strings.Builder
	if err := n.shard.writeNamespaceMetrics(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`kvstore_namespace_quota_refused_total{namespace="app"} 1`, `kvstore_namespace_keys{namespace="app"} 3`, `kvstore_namespace_keys{namespace=""} 0`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the scrape lacks %s:\n%s", want, b.String())
		}
	}
}

// A write that comes when the namespace is there already, while earlier ones of its connection still wait for it, waits
// behind them.
func TestAutoCreate_WriteBehindWaitingOnes_WaitsToo(t *testing.T) {
	n := openNode(t, t.TempDir(), func(o *Options) { o.Service.AutoCreateNamespaces = true })
	defer closeNode(t, n)
	nc := n.service.newcomers
	c := &newcomer{name: []byte("app")}
	nc.mu.Lock()
	nc.names["app"] = c // as if its creation were under way
	nc.mu.Unlock()
	nc.creating.Add(1)
	to := newInOrder(2)
	serve := func(id uint32) {
		r := request(t, wire.OpPut, in("app"), "k", fmt.Append(nil, id))
		r.ID = id
		n.service.Serve(to, anonymous, []wire.Request{*r})
	}
	serve(1)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	serve(2)
	put(t, n, "k", "v") // whatever was submitted before is done now
	if left := to.left.Load(); left != 2 {
		t.Fatalf("%d of 2 writes still wait", left)
	}
	nc.bring(c)
	to.wait(t)
	if to.versions[1] == 0 || to.versions[2] <= to.versions[1] {
		t.Errorf("versions %v", to.versions)
	}
}
