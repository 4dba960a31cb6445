package peer

import (
	"strings"
	"testing"
	"time"
)

// Goal: each rule of trust, alone. The view is node-2's, the hello node-1's; a case changes either.
func TestJudge_EachRule_RefusesByItsCode(t *testing.T) {
	founders := hashFounders(0, []Founder{{"node-1", "a:1"}, {"node-2", "b:1"}})
	type c struct {
		name   string
		change func(*trust, *Hello)
		want   code // "" accepts
		text   string
	}
	cases := []c{
		{"members of one cluster", func(*trust, *Hello) {}, "", ""},
		{"unknown node with the cluster's id", func(v *trust, h *Hello) { v.bound = process{} }, "", ""},
		{"another target", func(v *trust, h *Hello) { h.Target = "node-3" }, codeWrongTarget, `this is node "node-2", not "node-3"`},
		{"another group", func(v *trust, h *Hello) { h.Group = 1 }, codeWrongGroup, "group"},
		{"itself", func(v *trust, h *Hello) { h.Source, h.Incarnation, h.Nonce = v.id, v.incarnation, v.nonce }, codeSameID, "reached itself"},
		{"namesake", func(v *trust, h *Hello) { h.Source = v.id }, codeSameID, "two nodes call themselves"},
		{"another cluster", func(v *trust, h *Hello) { h.Cluster = incarnation(9) }, codeOtherCluster, "belongs to cluster 0909"},
		{"another history", func(v *trust, h *Hello) { h.History = incarnation(9) }, codeOtherCluster, "restored from a backup, or the cluster was recovered without it (kvstore recover)"},
		{"wiped", func(v *trust, h *Hello) { h.Incarnation = incarnation(9) }, codeOtherData, `run "kvctl member remove node-1" and start node-1 with an empty data directory and --join`},
		{"higher level", func(v *trust, h *Hello) { h.StateLevel = 4 }, codeLevel, "upgrade"},
		{"shorter heartbeat", func(v *trust, h *Hello) { h.Heartbeat = time.Second / 10 }, codeHeartbeat, "one --heartbeat-timeout"},
		{"longer heartbeat", func(v *trust, h *Hello) { h.Heartbeat = time.Second }, codeHeartbeat, "one --heartbeat-timeout"},
		{"no heartbeat told", func(v *trust, h *Hello) { h.Heartbeat = 0 }, codeHeartbeat, "one --heartbeat-timeout"},
		{"level as known", func(v *trust, h *Hello) { h.StateLevel = 3 }, "", ""},

		{"founders alike", func(v *trust, h *Hello) { v.cluster, h.Cluster = [16]byte{}, [16]byte{} }, "", ""},
		{"founders differ", func(v *trust, h *Hello) { v.cluster, h.Cluster, h.Founders = [16]byte{}, [16]byte{}, [32]byte{1} }, codeOtherFounders, "same list"},
		{"founders differ from those of a cluster that was founded", func(v *trust, h *Hello) {
			v.cluster, h.Cluster, h.Founders, v.founded = [16]byte{}, [16]byte{}, [32]byte{1}, true
		}, codeOtherCluster, "--join"},
		{"founders differ, but one cluster", func(v *trust, h *Hello) { h.Founders = [32]byte{1} }, "", ""},
		{"here a cluster, there founders alike, bound", func(v *trust, h *Hello) { h.Cluster = [16]byte{} }, "", ""},
		{"here a cluster, there founders alike, not bound", func(v *trust, h *Hello) { h.Cluster, v.bound = [16]byte{}, process{} }, codeNotMember, "--join"},
		{"here founded, there founders alike, not bound", func(v *trust, h *Hello) {
			h.Cluster, v.cluster, v.bound, v.founded = [16]byte{}, [16]byte{}, process{}, true
		}, codeNotMember, "--join"},
		{"here founders alike, there a cluster, not bound", func(v *trust, h *Hello) { v.cluster, v.bound = [16]byte{}, process{} }, "", ""},
		{"nothing to compare there", func(v *trust, h *Hello) { h.Cluster, h.Founders = [16]byte{}, [32]byte{} }, codeStarting, "yet"},
		{"nothing to compare here", func(v *trust, h *Hello) { v.cluster, v.founders = [16]byte{}, [32]byte{} }, codeStarting, "yet"},
		{"only a cluster here, only founders there", func(v *trust, h *Hello) { v.founders, h.Cluster = [32]byte{}, [16]byte{} }, codeStarting, "yet"},
		{"wiped before the cluster ran", func(v *trust, h *Hello) {
			v.cluster, h.Cluster, h.Incarnation = [16]byte{}, [16]byte{}, incarnation(9)
		}, codeOtherData, "if the cluster never ran"},

		{"record alike", func(v *trust, h *Hello) { v.recordThere, v.record = true, h.Incarnation }, "", ""},
		{"record wins over the file: new one", func(v *trust, h *Hello) {
			v.recordThere, v.record, h.Incarnation = true, incarnation(9), incarnation(9)
		}, "", ""},
		{"record wins over the file: old one", func(v *trust, h *Hello) { v.recordThere, v.record = true, incarnation(9) }, codeOtherData, "kvctl"},
		{"record older than what the file knows: new one", func(v *trust, h *Hello) {
			v.recordThere, v.record, v.past = true, incarnation(9), [][16]byte{incarnation(9)}
		}, "", ""},
		{"record older than what the file knows: old one", func(v *trust, h *Hello) {
			v.recordThere, v.record, v.past, h.Incarnation = true, incarnation(9), [][16]byte{incarnation(9)}, incarnation(9)
		}, codeRemoved, "--join"},
		{"removed", func(v *trust, h *Hello) { v.recordThere, v.recordRemoved, v.record = true, true, h.Incarnation }, codeRemoved, "was removed from the cluster"},
		{"removed, comes anew", func(v *trust, h *Hello) {
			v.recordThere, v.recordRemoved, v.record, h.Incarnation = true, true, h.Incarnation, incarnation(9)
		}, "", ""},
		{"forgotten", func(v *trust, h *Hello) { v.bound, v.past = process{}, [][16]byte{h.Incarnation} }, codeRemoved, "--join"},
		{"forgotten, comes anew", func(v *trust, h *Hello) {
			v.bound, v.past, h.Incarnation = process{}, [][16]byte{h.Incarnation}, incarnation(9)
		}, "", ""},

		{"first time met", func(v *trust, h *Hello) { h.Starts, h.Nonce = 7, 70 }, "", ""},
		{"next start", func(v *trust, h *Hello) { v.bound.starts, v.bound.nonce, h.Starts, h.Nonce = 6, 60, 7, 70 }, "", ""},
		{"many starts later", func(v *trust, h *Hello) { v.bound.starts, v.bound.nonce, h.Starts, h.Nonce = 6, 60, 90, 70 }, "", ""},
		{"the same process", func(v *trust, h *Hello) {
			v.bound.starts, v.bound.nonce, h.Starts, h.Nonce = 7, 70, 7, 70
			v.alive, v.held, h.LogTold = func(process) bool { return true }, 9, true
		}, "", ""},
		{"the count as in the file, no process known", func(v *trust, h *Hello) { v.bound.starts, h.Starts, h.Nonce = 7, 7, 70 }, "", ""},
		{"nobody counts there", func(v *trust, h *Hello) { v.bound.starts, v.bound.nonce, h.Nonce = 7, 70, 71 }, "", ""},
		{"older copy", func(v *trust, h *Hello) { v.bound.starts, v.bound.nonce, h.Starts, h.Nonce = 7, 70, 6, 60 }, codeOlderCopy, `run "kvctl member remove node-1"`},
		{"older copy, no process known", func(v *trust, h *Hello) { v.bound.starts, h.Starts, h.Nonce = 7, 6, 60 }, codeOlderCopy, "--join"},
		{"older copy that was started more often", func(v *trust, h *Hello) {
			v.bound.starts, v.mark, h.Starts, h.Nonce, h.Lineage = 7, 70, 9, 92, []uint64{60, 71, 91, 92}
		}, codeOlderCopy, "start 9, but another process was start 7"},
		{"older copy that was started more often, while the other one runs", func(v *trust, h *Hello) {
			v.bound.starts, v.bound.nonce, v.mark, h.Starts, h.Nonce, h.Lineage = 8, 80, 80, 9, 92, []uint64{60, 71, 91, 92}
			v.alive = func(process) bool { return true }
		}, codeOlderCopy, "start 8"},
		{"the same directory, started more often", func(v *trust, h *Hello) {
			v.bound.starts, v.mark, h.Starts, h.Nonce, h.Lineage = 7, 70, 9, 92, []uint64{60, 70, 91, 92}
		}, "", ""},
		{"nonces that reach back to the known start and no further", func(v *trust, h *Hello) {
			v.bound.starts, v.mark, h.Starts, h.Nonce, h.Lineage = 7, 70, 9, 92, []uint64{71, 91, 92}
		}, codeOlderCopy, "start 7"},
		{"nonces that don't reach back to the known start", func(v *trust, h *Hello) {
			v.bound.starts, v.mark, h.Starts, h.Nonce, h.Lineage = 6, 60, 9, 92, []uint64{71, 91, 92}
		}, "", ""},
		{"no nonces told", func(v *trust, h *Hello) { v.bound.starts, v.mark, h.Starts, h.Nonce = 7, 70, 9, 92 }, "", ""},
		{"no nonce known", func(v *trust, h *Hello) {
			v.bound.starts, h.Starts, h.Nonce, h.Lineage = 7, 9, 92, []uint64{60, 71, 91, 92}
		}, "", ""},
		{"given up", func(v *trust, h *Hello) {
			v.recordThere, v.recordRemoved, v.record, h.History = true, true, h.Incarnation, incarnation(0xde)
		}, codeGivenUp, "if the recovery was a mistake, stop node \"node-2\""},
		{"of a history that has ended, and came anew since", func(v *trust, h *Hello) {
			v.recordThere, v.recordRemoved, v.record, h.History = true, true, incarnation(9), incarnation(0xde)
		}, codeOtherCluster, "different histories"},
		{"of another history, and a member", func(v *trust, h *Hello) {
			v.recordThere, v.record, h.History = true, h.Incarnation, incarnation(0xde)
		}, codeOtherCluster, "different histories"},
		{"of another cluster, and removed", func(v *trust, h *Hello) {
			v.recordThere, v.recordRemoved, v.record, h.Cluster, h.History = true, true, h.Incarnation, incarnation(0xcd), incarnation(0xde)
		}, codeOtherCluster, "another cluster"},
		{"older copy of a directory that was replaced", func(v *trust, h *Hello) {
			v.bound.starts, h.Starts, h.Incarnation, v.recordThere, v.record = 7, 1, incarnation(9), true, incarnation(9)
		}, "", ""},
		{"clone of the same count", func(v *trust, h *Hello) { v.bound.starts, v.bound.nonce, h.Starts, h.Nonce = 7, 70, 7, 71 }, codeCloned, "delete its copy"},
		{"clone with a count of its own, the other lives", func(v *trust, h *Hello) {
			v.bound.starts, v.bound.nonce, h.Starts, h.Nonce = 7, 70, 8, 80
			v.alive = func(p process) bool { return p == process{incarnation(1), 7, 70} }
		}, codeCloned, "stop one of them"},
		{"the other is silent", func(v *trust, h *Hello) {
			v.bound.starts, v.bound.nonce, h.Starts, h.Nonce = 7, 70, 8, 80
			v.alive = func(process) bool { return false }
		}, "", ""},
		{"clone of this node", func(v *trust, h *Hello) { h.Source, h.Incarnation, h.Nonce = v.id, v.incarnation, v.nonce+1 }, codeCloned, "two processes"},
		{"acknowledged entries are missing", func(v *trust, h *Hello) {
			v.bound.starts, h.Starts, v.held, v.heldTerm, h.LogTold, h.LastIndex, h.LastTerm = 7, 8, 100, 3, true, 99, 3
		}, codeForgotten, "up to 100 (term 3)"},
		{"as long a log, but of an older term", func(v *trust, h *Hello) {
			v.bound.starts, h.Starts, v.held, v.heldTerm, h.LogTold, h.LastIndex, h.LastTerm = 7, 8, 100, 3, true, 105, 2
		}, codeForgotten, "--join"},
		{"nothing is missing", func(v *trust, h *Hello) {
			v.bound.starts, h.Starts, v.held, v.heldTerm, h.LogTold, h.LastIndex, h.LastTerm = 7, 8, 100, 3, true, 100, 3
		}, "", ""},
		{"what the entry's term is, is not known", func(v *trust, h *Hello) {
			v.bound.starts, h.Starts, v.held, h.LogTold, h.LastIndex, h.LastTerm = 7, 8, 100, true, 100, 1
		}, "", ""},
		{"it does not tell its log", func(v *trust, h *Hello) { v.bound.starts, h.Starts, v.held = 7, 8, 100 }, "", ""},
	}
	for _, c := range cases {
		v := trust{
			id: "node-2", incarnation: incarnation(2), nonce: 22, level: 3, heartbeat: 600 * time.Millisecond,
			cluster: incarnation(0xcc), history: incarnation(0xdd), founders: founders, bound: process{incarnation: incarnation(1)},
		}
		h := Hello{
			Target: "node-2", Source: "node-1", Incarnation: incarnation(1), Address: "a:1",
			Cluster: incarnation(0xcc), History: incarnation(0xdd), Founders: founders, Level: 3, StateLevel: 2, Heartbeat: 600 * time.Millisecond,
		}
		c.change(&v, &h)
		r := v.judge(&h)
		switch {
		case r == nil && c.want != "":
			t.Errorf("%s: accepted, want %s", c.name, c.want)
		case r != nil && (r.code != c.want || !strings.Contains(r.text, c.text)):
			t.Errorf("%s: %s %q, want %q %q", c.name, r.code, r.text, c.want, c.text)
		case r != nil && r.final() == (c.want == codeStarting || strings.HasSuffix(c.name, "the other lives")):
			t.Errorf("%s: final = %v", c.name, r.final())
		}
	}
}

func TestHashFounders_OrderDoesNotMatter_EverythingElseDoes(t *testing.T) {
	a := []Founder{{"n1", "h:1"}, {"n2", "h:2"}}
	same := hashFounders(0, []Founder{a[1], a[0]})
	if hashFounders(0, a) != same {
		t.Error("the order matters")
	}
	for name, other := range map[string][32]byte{
		"group": hashFounders(1, a), "address": hashFounders(0, []Founder{a[0], {"n2", "h:3"}}),
		"id": hashFounders(0, []Founder{a[0], {"n3", "h:2"}}), "fewer": hashFounders(0, a[:1]),
		"shifted": hashFounders(0, []Founder{{"n1h", ":1"}, a[1]}),
	} {
		if other == same {
			t.Errorf("%s does not matter", name)
		}
	}
}

func TestCheckFounders_BadLists_AreRefusedWithAllFaults(t *testing.T) {
	err := checkFounders([]Founder{{"a", "h:1"}, {"a", "h:2"}, {"b", "h:1"}, {"", "h:4"}, {"c", ""}}, "z", "h:9")
	for _, want := range []string{`"a" is listed twice`, `"h:1" is listed twice`, `"" is no node id`, `"" is no address`, `"z", is not in it`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if err := checkFounders([]Founder{{"a", "h:1"}}, "a", "h:2"); err == nil || !strings.Contains(err.Error(), `advertises "h:2"`) {
		t.Errorf("own address: %v", err)
	}
	if err := checkFounders([]Founder{{"a", "h:1"}, {"b", "h:2"}}, "a", "h:1"); err != nil {
		t.Error(err)
	}
}
