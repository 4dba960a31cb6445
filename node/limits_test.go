package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// limitsFor gives the limits of a node that has one namespace, 7, with settings.
func limitsFor(s wire.NamespaceSettings) *limits {
	l := newLimits()
	l.refresh([]namespace{{ID: 1, Name: "default"}, {ID: 7, Name: "app", Settings: s}})
	return l
}

func TestLimits_Watches_AreRefusedBeyondTheirNumber(t *testing.T) {
	l := limitsFor(wire.NamespaceSettings{WatchesMax: 2})
	var release []func()
	for range 2 {
		r, refusal := l.openWatch(7)
		if refusal != nil {
			t.Fatal(refusal)
		}
		release = append(release, r)
	}
	if _, refusal := l.openWatch(7); refusal == nil || refusal.Status != wire.StatusTooMany || refusal.Limit != 2 || !strings.Contains(refusal.Text, `"app"`) {
		t.Errorf("the third: %v", refusal)
	}
	if r, refusal := l.openWatch(1); refusal != nil {
		t.Errorf("in a namespace without a limit: %v", refusal)
	} else {
		r()
	}
	release[0]()
	if _, refusal := l.openWatch(7); refusal != nil {
		t.Errorf("after one has ended: %v", refusal)
	}
	release[1]()
	if l.watches[7] != 1 || l.counts[7].watches.Load() != 1 {
		t.Errorf("%d watches, %d refused", l.watches[7], l.counts[7].watches.Load())
	}
}

// Settings that change keep what was spent; a namespace that goes leaves nothing behind.
func TestLimits_SettingsChange_KeepWhatWasSpent(t *testing.T) {
	l := limitsFor(wire.NamespaceSettings{OpsPerSecond: 10})
	if wait := l.of(7).rate.Take(10, 0); wait != 0 {
		t.Fatal("the first second's worth is refused")
	}
	before := l.of(7)
	l.refresh([]namespace{{ID: 7, Name: "app", Settings: wire.NamespaceSettings{OpsPerSecond: 10}}})
	if l.of(7) != before {
		t.Error("the same settings began anew")
	}
	l.refresh([]namespace{{ID: 7, Name: "app", Settings: wire.NamespaceSettings{OpsPerSecond: 20}}})
	if wait := l.of(7).rate.Take(1, 0); wait != int64(time.Second)/20 {
		t.Errorf("with a second spent, one more has to wait for %d ns", wait)
	}
	l.refresh([]namespace{{ID: 7, Name: "app", Dropping: true, Settings: wire.NamespaceSettings{OpsPerSecond: 20}}})
	if l.of(7) != nil || l.limited.Load() != nil {
		t.Error("a dropped namespace has a limit")
	}
	l.refresh(nil)
	if len(l.counts) != 0 {
		t.Errorf("%d namespaces are still counted", len(l.counts))
	}
}

// The doors refuse what exceeds the rate that was set through the log, name the limit and the pause, and allow it
// again when the limit is gone. Items of a batch count each.
func TestRateLimit_SetAndTakenBack_RefusesBetween(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	set := func(rate int) {
		t.Helper()
		mustAdminister[namespacesDocument](t, n, fmt.Sprintf(`{"action":"namespace_set","namespace":"app","settings":{"ops_per_second":%d}}`, rate))
		id, _ := n.shard.namespace([]byte("app"))
		until(t, "the doors know the limit", func() bool {
			lim := n.shard.limits.of(id)
			return lim == nil && rate == 0 || lim != nil && lim.settings.OpsPerSecond == uint64(rate)
		})
	}
	write := func(key string) wire.Response { return do(t, n, wire.OpPut, in("app"), key, nil) }
	set(1)
	var limited wire.Response
	until(t, "the rate is exceeded", func() bool { limited = write("k"); return limited.Status != wire.StatusOK })
	if limited.Status != wire.StatusLimited || !strings.Contains(string(limited.Payload), `namespace "app" may have 1 operations a second`) {
		t.Errorf("%s %s", limited.Status, limited.Payload)
	}
	pause := false
	for ext := limited.Ext; len(ext) > 0; {
		e, _, rest, err := wire.NextExt(ext)
		if err != nil {
			t.Fatal(err)
		}
		ext, pause = rest, pause || e == wire.ExtRetryAfter
	}
	if !pause {
		t.Error("the refusal names no pause")
	}
	if r := do(t, n, wire.OpGet, in("app"), "k", nil); r.Status != wire.StatusLimited {
		t.Errorf("a read while the rate is spent: %s", r.Status)
	}
	if r := put(t, n, "k", ""); r.Status != wire.StatusOK {
		t.Errorf("another namespace: %s", r.Status)
	}
	set(0)
	for range 20 {
		if r := write("k"); r.Status != wire.StatusOK {
			t.Fatalf("without a limit: %s", r.Status)
		}
	}
	set(50)
	batch := wire.AppendGroupHeader(nil, 0, 500)
	for i := range 500 {
		batch = wire.AppendItem(batch, &wire.Item{Op: wire.OpPut, Key: fmt.Append(nil, i)})
	}
	if r := do(t, n, wire.OpBatch, in("app"), "", batch); r.Status != wire.StatusOK {
		t.Errorf("a batch of ten seconds' worth when nothing is spent: %s %s", r.Status, r.Payload)
	}
	if r := write("k"); r.Status != wire.StatusLimited {
		t.Errorf("right behind it: %s", r.Status)
	}
	var b strings.Builder
	if err := n.shard.writeNamespaceMetrics(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), `kvstore_namespace_limited_total{namespace="app"} `) || strings.Contains(b.String(), `kvstore_namespace_limited_total{namespace="app"} 0`) {
		t.Errorf("the scrape:\n%s", b.String())
	}
}

// A namespace that fills the queue of reads leaves room for others.
func TestReadShares_Flood_LeavesRoomForOthers(t *testing.T) {
	p := &readPool{bytesMax: 1 << 20}
	p.free.New = func() any { return new(readJob) }
	to := newInOrder(1 << 30)
	job := func(ns uint32, reads int) *readJob {
		var j *readJob
		for range reads {
			r := request(t, wire.OpGet, nil, "a key of some length", nil)
			j = p.add(j, to, ns, r, 0, 0)
		}
		return j
	}
	var held []*readJob
	hog := 0
	for {
		j := job(7, 1+hog%5)
		if !p.reserve(j) {
			break
		}
		held = append(held, j)
		hog++
	}
	if used := p.bytes.Load(); used < 1<<20*7/9 || used > 1<<20*8/9+1024 {
		t.Errorf("alone, a namespace has %d bytes of %d", used, 1<<20)
	}
	for ns := range uint32(50) {
		j := job(100+ns, 2)
		if !p.reserve(j) {
			t.Fatalf("namespace %d has nothing queued and is refused", 100+ns)
		}
		held = append(held, j)
	}
	for i, j := range held {
		if i%3 == 0 { // some reads are refused while they wait for the leader's word
			j.items = j.items[:len(j.items)-1]
		}
		p.release(j)
	}
	for i := range p.shares.bytes {
		if n := p.shares.bytes[i].Load(); n != 0 || p.bytes.Load() != 0 {
			t.Fatalf("%d bytes are still counted, %d of slot %d", p.bytes.Load(), n, i)
		}
	}
}
