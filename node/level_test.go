package node

import (
	"bytes"
	"strings"
	"testing"

	"kvstore/wire"
)

// A cluster of an earlier build stays at its behaviour level, and refuses what is new, until the last node is upgraded;
// then it rises by itself and serves.
func TestLevel_LastNodeUpgraded_RisesAndServes(t *testing.T) {
	slow(t)
	c := newCluster(t, 3, func(o *Options) { o.level = 1 })
	c.start(c.ids...)
	leader, others := c.leader()
	if l := leader.shard.engine.Level(); l != 1 {
		t.Fatalf("founded at level %d", l)
	}
	if r := put(t, leader, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	recorded(t, leader)
	c.change = nil
	upgrade := func(n *Node) {
		id := n.info.NodeID
		c.stop(id)
		c.start(id)
	}
	upgrade(others[0])
	upgrade(others[1])
	// One that knows the next level leads: nothing but what it knows of the others keeps it from raising it.
	leader, _ = c.leader()
	if leader.shard.level == 1 {
		administer[clusterDocument](t, leader, asJSON(t, adminRequest{Action: "transfer", ID: others[0].info.NodeID}))
		until(t, "an upgraded node leads", func() bool { leader, _ = c.leader(); return leader.shard.level == behaviourLevel })
	}
	until(t, "the records say who was upgraded", func() bool {
		known := 0
		for _, id := range c.ids {
			if m, ok := leader.shard.engine.Member(id); ok && m.Level == behaviourLevel {
				known++
			}
		}
		return known == 2
	})

	// Several looks of the keeper later the level is what it was.
	for range 3 {
		leader.shard.roster.news <- struct{}{}
	}
	tagged := wire.AppendExtCondition(nil, wire.ConditionTagAbsent, []byte("t"))
	key := wire.AppendExtIdempotency(nil, wire.Idempotency{Key: wire.IdempotencyKey("key")})
	batch := wire.AppendItem(wire.AppendGroupHeader(nil, 0, 1), &wire.Item{Op: wire.OpTouch, Key: []byte("k")})
	for _, r := range []*wire.Request{
		request(t, wire.OpIncrement, nil, "n", wire.AppendIncrement(nil, 1)), request(t, wire.OpTouch, nil, "k", nil),
		request(t, wire.OpPut, wire.AppendExtU8(nil, wire.ExtCompress, uint8(wire.CodecS2)), "k", []byte("v")),
		request(t, wire.OpPut, tagged, "k", []byte("v")), request(t, wire.OpBatch, nil, "", batch),
		request(t, wire.OpPut, key, "k", []byte("v")), request(t, wire.OpBatch, key, "", group(wire.OpBatch, 0, wire.Item{Op: wire.OpPut, Key: []byte("k")})),
		request(t, wire.OpAdmin, nil, "", []byte(`{"action":"namespace_create","namespace":"app"}`)),
	} {
		if a := once(t, leader, r); a.Status != wire.StatusUnsupported || !strings.Contains(string(a.Payload), "upgraded") {
			t.Errorf("%s at level 1: %s %s", r.Op, a.Status, a.Payload)
		}
	}
	if a := once(t, leader, request(t, wire.OpPut, in("app"), "k", nil)); a.Status != wire.StatusNoNamespace || !strings.Contains(string(a.Payload), "upgraded") {
		t.Errorf("another namespace at level 1: %s %s", a.Status, a.Payload)
	}
	if r := put(t, leader, "k", "v2"); r.Status != wire.StatusOK {
		t.Errorf("an ordinary write at level 1: %s", r.Status)
	}
	if l := leader.shard.engine.Level(); l != 1 {
		t.Fatalf("level %d while one node knows only level 1", l)
	}

	for _, id := range c.ids {
		if c.node(id).shard.level == 1 {
			upgrade(c.node(id))
		}
	}
	leader, _ = c.leader()
	for _, id := range c.ids {
		until(t, id+" is at the newest level", func() bool { return c.node(id).shard.engine.Level() == behaviourLevel })
	}
	mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_create","namespace":"app"}`)
	if r := do(t, leader, wire.OpIncrement, in("app"), "n", wire.AppendIncrement(nil, 5)); r.Status != wire.StatusOK {
		t.Errorf("%s %s", r.Status, r.Payload)
	}
	for range 2 {
		if r := do(t, leader, wire.OpIncrement, append(bytes.Clone(key), in("app")...), "n", wire.AppendIncrement(nil, 5)); r.Status != wire.StatusOK || !bytes.Equal(r.Payload[wire.VersionBytes:], wire.AppendIncrement(nil, 10)) {
			t.Errorf("with an idempotency key: %s %x", r.Status, r.Payload)
		}
	}
	d := mustAdminister[namespacesDocument](t, leader, `{"action":"namespace_describe","namespace":"default"}`)
	if d.Namespaces[0].Keys != 1 {
		t.Errorf("the default namespace counts %d keys, and holds one", d.Namespaces[0].Keys)
	}
	c.same()
}

// A lone node of an earlier build rises at its first start with this one.
func TestLevel_LoneNode_RisesAtOnce(t *testing.T) {
	dir := t.TempDir()
	n := openNode(t, dir, func(o *Options) { o.level = 1 })
	if r := put(t, n, "k", "v"); r.Status != wire.StatusOK {
		t.Fatal(r.Status)
	}
	closeNode(t, n)
	n = openNode(t, dir, nil)
	defer closeNode(t, n)
	until(t, "the state is at the newest level", func() bool { return n.shard.engine.Level() == behaviourLevel })
	if r := do(t, n, wire.OpTouch, nil, "k", nil); r.Status != wire.StatusOK {
		t.Errorf("%s %s", r.Status, r.Payload)
	}
	if err := n.shard.engine.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}
