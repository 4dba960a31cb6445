package node

import (
	"fmt"
	"sync/atomic"
	"testing"

	"kvstore/wire"
)

// fill writes records into a namespace, a thousand at a time.
func fill(t *testing.T, n *Node, ns string, records int) {
	t.Helper()
	for at := 0; at < records; at += 1000 {
		batch := wire.AppendGroupHeader(nil, 0, 1000)
		for i := range 1000 {
			batch = wire.AppendItem(batch, &wire.Item{Op: wire.OpPut, Key: fmt.Appendf(nil, "key-%06d", at+i), Value: []byte("value")})
		}
		if r := do(t, n, wire.OpBatch, in(ns), "", batch); r.Status != wire.StatusOK {
			t.Fatalf("%s %s", r.Status, r.Payload)
		}
	}
}

// purged waits until a node knows of no namespace that is being removed.
func purged(t *testing.T, n *Node) {
	t.Helper()
	until(t, n.info.NodeID+" has purged what was dropped", func() bool {
		_, ok := n.shard.engine.Purging()
		return !ok
	})
}

// Twenty thousand records go piece by piece while others write; the name can be used again at once, and is empty.
func TestPurge_ManyRecords_GoWhileOthersWrite(t *testing.T) {
	slow(t)
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	const records = 20000
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	fill(t, n, "app", records)
	if d := mustAdminister[namespacesDocument](t, n, `{"action":"namespace_describe","namespace":"app"}`); d.Namespaces[0].Keys != records {
		t.Fatalf("%d keys", d.Namespaces[0].Keys)
	}
	before := n.shard.engine.Applied().Index
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_drop","namespace":"app"}`)
	mustAdminister[namespacesDocument](t, n, `{"action":"namespace_create","namespace":"app"}`)
	if r := do(t, n, wire.OpGet, in("app"), "key-000000", nil); r.Status != wire.StatusNotFound {
		t.Errorf("a key of the old namespace in the new one: %s", r.Status)
	}
	writes, during := 0, 0
	for purging := true; purging; writes++ {
		_, purging = n.shard.engine.Purging()
		if r := put(t, n, "other", fmt.Sprint(writes)); r.Status != wire.StatusOK {
			t.Fatalf("a write elsewhere: %s", r.Status)
		}
		if purging {
			during++
		}
	}
	if during < records/purgeRecordsMax {
		t.Errorf("%d writes were done while %d pieces were purged", during, records/purgeRecordsMax)
	}
	t.Logf("%d writes in %d entries while %d records went", during, n.shard.engine.Applied().Index-before, records)
	d := mustAdminister[namespacesDocument](t, n, `{"action":"namespace_list"}`)
	if len(d.Namespaces) != 2 || d.Namespaces[1].Keys != 0 || d.Namespaces[1].State != "active" {
		t.Errorf("%+v", d)
	}
	if err := n.shard.engine.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}

// The leadership moves while a namespace is purged: the next leader goes on, and all nodes end with the same state.
func TestPurge_LeaderChanges_GoesOn(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	leader, _ := c.leader()
	mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_create","namespace":"app"}`)
	fill(t, leader, "app", 8000)
	id, _ := leader.shard.namespace([]byte("app"))
	mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_drop","namespace":"app"}`)
	var left atomic.Uint64
	until(t, "the purge has begun", func() bool {
		d, ok := leader.shard.engine.NamespaceByID(id)
		left.Store(d.Records)
		return !ok || d.Records < 8000
	})
	c.stop(leader.info.NodeID)
	next, others := c.leader()
	for _, n := range append(others, next) {
		purged(t, n)
	}
	t.Logf("%d of 8000 records were left when the leader went", left.Load())
	c.same()
}
