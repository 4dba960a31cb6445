package node

import (
	"encoding/json"
	"strings"
	"testing"

	"kvstore/wire"
)

func TestCheckAddress_OnlyWhatOthersCanReach(t *testing.T) {
	for addr, good := range map[string]bool{
		"127.0.0.1:7000": true, "kv-1.kv.default.svc:7000": true, "[2001:db8::1]:7000": true, "localhost:65535": true,
		"": false, "127.0.0.1": false, ":7000": false, "0.0.0.0:7000": false, "[::]:7000": false, "a:0": false, "a:65536": false,
		"a:http": false, "a b:1": false, "a=b:1": false, "a,b:1": false, "\u00e4:1": false, strings.Repeat("a", wire.AddressBytesMax) + ":1": false,
	} {
		if err := checkAddress(addr); (err == nil) != good {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestRoster_Cards_AreKeptAndBounded(t *testing.T) {
	self := wire.Member{ID: "node-1", RaftAddress: "a:1", Address: "a:2"}
	r := newRoster(self)
	founders := []Founder{{"node-3", "c:1"}, {"node-2", "b:1"}, {"node-1", "a:1"}}
	if got := strings.Join(r.missing(founders), " "); got != "node-2 node-3" {
		t.Errorf("missing %s", got)
	}
	other := wire.Member{ID: "node-2", Incarnation: [16]byte{1}, RaftAddress: "b:1", Address: "b:2", HTTPAddress: "b:3", Version: "v", Level: 7}
	r.onCard(other.ID, other.Incarnation, encodeCard(&other, 1))
	if got, ok := r.card("node-2"); !ok || got != other {
		t.Errorf("%+v, %v", got, ok)
	}
	select {
	case <-r.news:
	default:
		t.Error("nobody was told")
	}
	r.onCard(other.ID, other.Incarnation, encodeCard(&other, 1))
	select {
	case <-r.news:
		t.Error("the same card is no news")
	default:
	}
	r.onCard("node-3", [16]byte{2}, []byte("{"))
	if got := strings.Join(r.missing(founders), " "); got != "node-3" {
		t.Errorf("missing %s", got)
	}
	for i := range 3 * cardsMax {
		m := other
		m.ID = strings.Repeat("x", i%60+1) + string(rune('a'+i/60))
		r.onCard(m.ID, m.Incarnation, encodeCard(&m, 1))
	}
	if len(r.cards) > cardsMax {
		t.Errorf("%d cards are kept", len(r.cards))
	}
}

// Whatever a card holds, what is taken from it makes a member record.
func FuzzDecodeCard(f *testing.F) {
	f.Add("node-1", encodeCard(&wire.Member{RaftAddress: "a:1", Address: "a:2", Version: "v1"}, 7))
	f.Add("node-1", []byte(`{"raft_address":"a:1","address":"[::]:1"}`))
	f.Fuzz(func(t *testing.T, id string, b []byte) {
		m, _, ok := decodeCard(id, [16]byte{1}, b)
		if !ok {
			return
		}
		var again wire.Member
		if err := wire.DecodeMember(wire.AppendMember(nil, &m), &again); err != nil || again != m {
			t.Errorf("%+v: %v, %+v", m, err, again)
		}
	})
}

// Whatever a member answers, what is kept of it can be handed to the log.
func FuzzReadJoined(f *testing.F) {
	self := wire.Member{ID: "node-2", Incarnation: [16]byte{0xab}, RaftAddress: "b:1", Address: "b:2"}
	id := strings.Repeat("cd", 16)
	good, err := json.Marshal(clusterDocument{ClusterID: id, HistoryID: id, Members: []memberDocument{
		{ID: "node-1", RaftAddress: "a:1", Incarnation: id}, {ID: "node-2", RaftAddress: "b:1", Incarnation: "ab" + strings.Repeat("00", 15)},
	}})
	if err != nil {
		f.Fatal(err)
	}
	if facts, err := readJoined(good, &self); err != nil || len(facts.Members) != 1 {
		f.Fatalf("%+v, %v", facts, err)
	}
	f.Add(good)
	f.Add([]byte(`{"cluster_id":"","members":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		facts, err := readJoined(b, &self)
		if err != nil {
			return
		}
		if _, err := facts.forLog(); err != nil {
			t.Error(err)
		}
	})
}
