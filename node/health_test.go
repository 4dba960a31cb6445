package node

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"kvstore/internal/clock"
	"kvstore/internal/diskguard"
	"kvstore/wire"
)

func TestMayRepair_SeveralDamaged_OneAtATimeAndNeverTheLast(t *testing.T) {
	voters := []string{"node-1", "node-2", "node-3"}
	for _, c := range []struct {
		self string
		say  map[string]string // r ready, d damaged, rd both, empty: silent
		want bool
	}{
		{"node-2", map[string]string{"node-1": "r", "node-3": "r"}, true},
		{"node-2", map[string]string{"node-1": "rd", "node-3": "r"}, false}, // it is node-1's turn
		{"node-1", map[string]string{"node-2": "rd", "node-3": "rd"}, true}, // whose turn it is now
		{"node-2", map[string]string{"node-1": "", "node-3": "rd"}, false},  // node-1 is at it, and node-3 alone no majority
		{"node-3", map[string]string{"node-1": "", "node-2": ""}, false},    // it is the last
		{"node-3", map[string]string{"node-1": "d", "node-2": ""}, false},
		{"node-3", map[string]string{"node-1": "", "node-2": "x"}, false}, // node-2 is back and has not caught up
		{"node-3", map[string]string{"node-1": "r", "node-2": ""}, false},
		{"node-1", nil, false},
	} {
		got := mayRepair(c.self, voters, func(id string) (vitals, bool) {
			s := c.say[id]
			return vitals{Ready: strings.Contains(s, "r"), Damaged: strings.Contains(s, "d")}, s != ""
		})
		if got != c.want {
			t.Errorf("%s with %v: %v", c.self, c.say, got)
		}
	}
	if !mayRepair("node-1", voters[:2], func(string) (vitals, bool) { return vitals{Ready: true}, true }) {
		t.Error("of two voters none ever repairs itself")
	}
	if mayRepair("node-1", voters[:1], func(string) (vitals, bool) { return vitals{Ready: true}, true }) {
		t.Error("a node that is the only voter sets its own state aside")
	}
}

// testHealth is a health that only listens.
func testHealth(now *clock.Manual) *health {
	return &health{
		s: &Shard{roster: newRoster(wire.Member{ID: "node-1"})}, clock: now, kept: time.Second,
		wake: make(chan struct{}, 1), peers: make(map[string]*peerHealth),
	}
}

func TestVitals_OldOnes_DoNotCount(t *testing.T) {
	now := clock.NewManual(time.Unix(0, 0))
	h := testHealth(now)
	told, err := json.Marshal(vitals{Disk: "low", Free: 5, Ready: true, Digests: []digestPoint{point(1024, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	h.hear("node-2", [16]byte{2}, int64(now.Boot()), told)
	if st, ok := h.disk("node-2"); !ok || st != diskguard.Low {
		t.Fatalf("the disk of node-2 is %s, %v", st, ok)
	}
	now.Advance(time.Second)
	if _, ok := h.of("node-2"); !ok {
		t.Error("what was told a second ago does not count")
	}
	now.Advance(time.Nanosecond)
	if _, ok := h.disk("node-2"); ok {
		t.Error("what was told more than a second ago counts")
	}
	if _, ok := h.disk("node-3"); ok {
		t.Error("something is known of a node that never said anything")
	}
	h.hear("node-2", [16]byte{2}, int64(now.Boot()), []byte(`{"disk":"melting"}`))
	if st, ok := h.disk("node-2"); !ok || st != diskguard.Critical {
		t.Errorf("a state that this build does not know is taken for %s", st)
	}
}

func TestVitals_WhatOthersSend_IsBoundedAndNeverBelieved(t *testing.T) {
	now := clock.NewManual(time.Unix(0, 0))
	h := testHealth(now)
	for _, bad := range []string{"", "{", `{"digests":[[2048,"00000000000000000000000000000000"],[1024,"00000000000000000000000000000000"]]}`, `{"digests":[[1,"x"]]}`, `[]`} {
		h.hear("node-2", [16]byte{2}, 1, []byte(bad))
	}
	if len(h.peers) != 0 {
		t.Errorf("nonsense was kept: %+v", h.peers["node-2"])
	}
	for i := range 3 * vitalsPeersMax {
		h.hear(strings.Repeat("n", i+1), [16]byte{1}, 1, []byte("{}"))
	}
	if len(h.peers) != vitalsPeersMax {
		t.Errorf("%d nodes are remembered", len(h.peers))
	}
	// Another data directory under the same id has no past.
	one, err := json.Marshal(vitals{Digests: []digestPoint{point(1024, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	two, err := json.Marshal(vitals{Digests: []digestPoint{point(2048, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	h.hear("n", [16]byte{1}, 2, one)
	h.hear("n", [16]byte{1}, 3, two)
	if n := len(h.peers["n"].digests); n != 2 {
		t.Errorf("%d digests of one data directory", n)
	}
	h.hear("n", [16]byte{2}, 4, two)
	if n := len(h.peers["n"].digests); n != 1 {
		t.Errorf("%d digests of a new data directory", n)
	}
}

// TestVitals_ThreeNodes_EachKnowsTheOthers has real nodes tell each other.
func TestVitals_ThreeNodes_EachKnowsTheOthers(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.start(c.ids...)
	for _, id := range c.ids {
		h := c.node(id).shard.health
		for _, other := range c.ids {
			until(t, id+" knows the disk of "+other, func() bool {
				st, ok := h.disk(other)
				return ok && st == diskguard.OK
			})
			if other == id {
				continue
			}
			until(t, id+" knows that "+other+" is ready", func() bool {
				v, ok := h.of(other)
				return ok && v.Ready && v.Applied > 0 && !v.Stalled && !v.Damaged
			})
		}
		if st := h.disks.writable(); st != diskguard.OK {
			t.Errorf("%s takes what is %s", id, st)
		}
	}
}

// TestScrub_AskedOfAnyNode_RunsThere asks one node for a scrub of another.
func TestScrub_AskedOfAnyNode_RunsThere(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.ScrubInterval = -1 })
	c.start(c.ids...)
	ask := func(id, payload string) wire.Response {
		b := []byte(payload)
		return c.node(id).service.Do(t.Context(), anonymous, &wire.Request{Op: wire.OpAdmin, Group: wire.GroupDefault, ID: 1, Body: b, Payload: b})
	}
	for _, q := range []struct{ at, payload, runs string }{
		{"node-1", `{"action":"scrub"}`, "node-1"},
		{"node-1", `{"action":"scrub","id":"node-2"}`, "node-2"},
		{"node-2", `{"action":"scrub","id":"node-3"}`, "node-3"},
	} {
		r := ask(q.at, q.payload)
		var s scrubStatus
		if err := json.Unmarshal(r.Payload, &s); r.Status != wire.StatusOK || err != nil {
			t.Fatalf("%s at %s: %s %s (%v)", q.payload, q.at, r.Status, r.Payload, err)
		}
		until(t, q.runs+" has scrubbed", func() bool {
			s := c.node(q.runs).shard.scrub.status()
			return s.FinishedAt != nil && s.DigestMatches != nil && *s.DigestMatches && s.Error == ""
		})
	}
	for payload, want := range map[string]wire.Status{
		`{"action":"scrub","id":"nobody"}`: wire.StatusNotFound, `{"action":"scrub","with":"x"}`: wire.StatusBadRequest,
	} {
		if r := ask("node-1", payload); r.Status != want {
			t.Errorf("%s: %s %s", payload, r.Status, r.Payload)
		}
	}
}

// A node that is about to copy a state has none of its own to compare with: the others' have to do.
func TestUnfit_OthersToldTheirDigests_TheOddOneIsNotCopied(t *testing.T) {
	h := testHealth(clock.NewManual(time.Unix(0, 0)))
	for id, digest := range map[string]byte{"node-2": 1, "node-3": 2, "node-4": 1, "node-5": 1} {
		if h.unfit("node-3") {
			t.Errorf("judged before a majority was heard: %d nodes", len(h.peers))
		}
		told, err := json.Marshal(vitals{Digests: []digestPoint{point(1024, digest)}})
		if err != nil {
			t.Fatal(err)
		}
		h.hear(id, [16]byte{1}, 0, told)
	}
	for _, id := range []string{"node-2", "node-3", "node-4", "node-5", "node-6"} {
		if got := h.unfit(id); got != (id == "node-3") {
			t.Errorf("%s: %v", id, got)
		}
	}
}

func TestStatusDocument_State_SaysWhyANodeIsNotReady(t *testing.T) {
	for _, c := range []struct {
		d    statusDocument
		want string
	}{
		{statusDocument{Ready: true, LeaderID: "n"}, stateOK},
		{statusDocument{Stopping: true, Ready: true}, stateStopping},
		{statusDocument{UptimeSeconds: 1}, stateStarting},
		{statusDocument{UptimeSeconds: 60}, stateLeaderless},
		{statusDocument{UptimeSeconds: 60, LeaderID: "n"}, stateStarting}, // it knows one, and has not caught up
	} {
		if got := c.d.state(); got != c.want {
			t.Errorf("%+v is %s, want %s", c.d, got, c.want)
		}
	}
}
