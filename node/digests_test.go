package node

import (
	"encoding/json"
	"slices"
	"testing"
)

// point makes a digest that differs by value.
func point(index uint64, value byte) digestPoint {
	return digestPoint{index, [16]byte{value, 15: 0xee}}
}

func TestDigestPoint_AsJSON_ComesBack(t *testing.T) {
	for _, p := range []digestPoint{point(1024, 7), {}, {1<<64 - 1, [16]byte{0: 0xff}}} {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var got digestPoint
		if err := json.Unmarshal(b, &got); err != nil || got != p {
			t.Errorf("%s came back as %v: %v", b, got, err)
		}
	}
	for _, bad := range []string{`[1,"xx"]`, `[1,""]`, `["a","00"]`, `[-1,"00112233445566778899aabbccddeeff"]`, `{}`, `[1]`} {
		if err := json.Unmarshal([]byte(bad), new(digestPoint)); err == nil {
			t.Errorf("%s is taken for a digest", bad)
		}
	}
}

func TestMergeDigests_NewProcess_ForgetsWhatTheOldOneTold(t *testing.T) {
	a, b, c, d := point(1024, 1), point(2048, 2), point(3072, 3), point(4096, 4)
	for _, k := range []struct {
		before, told, want []digestPoint
		why                string
	}{
		{nil, []digestPoint{a, b}, []digestPoint{a, b}, "first"},
		{[]digestPoint{a, b}, []digestPoint{b, c}, []digestPoint{a, b, c}, "overlap"},
		{[]digestPoint{a}, []digestPoint{c, d}, []digestPoint{a, c, d}, "gap"},
		{[]digestPoint{a, b, c}, nil, nil, "a process that has none yet"},
		{[]digestPoint{a, b, c}, []digestPoint{b}, []digestPoint{b}, "a process that is further back"},
		{[]digestPoint{a, point(2048, 9)}, []digestPoint{b, c}, []digestPoint{a, b, c}, "told anew"},
	} {
		if got := mergeDigests(k.before, k.told); !slices.Equal(got, k.want) {
			t.Errorf("%s: %v, want %v", k.why, got, k.want)
		}
	}
	var all []digestPoint
	for i := range uint64(3 * digestsKeptMax) {
		all = mergeDigests(all, []digestPoint{point(1024*(i+1), 1)})
	}
	if len(all) != digestsKeptMax || all[len(all)-1].index != 1024*3*digestsKeptMax {
		t.Errorf("%d digests are kept up to %d", len(all), all[len(all)-1].index)
	}
}

func TestCompareDigests_OddOne_IsFoundByAMajorityOnly(t *testing.T) {
	const x, y, z = 1, 2, 3
	voters := []string{"node-1", "node-2", "node-3"}
	for _, c := range []struct {
		name   string
		own    []digestPoint
		others map[string][]digestPoint
		voters []string
		with   []string
		odd    bool
	}{
		{"all equal", []digestPoint{point(1024, x)}, map[string][]digestPoint{"node-2": {point(1024, x)}, "node-3": {point(1024, x)}}, voters, nil, false},
		{"self differs from both", []digestPoint{point(1024, y)}, map[string][]digestPoint{"node-2": {point(1024, x)}, "node-3": {point(1024, x)}}, voters, []string{"node-2", "node-3"}, true},
		{"another differs", []digestPoint{point(1024, x)}, map[string][]digestPoint{"node-2": {point(1024, y)}, "node-3": {point(1024, x)}}, voters, []string{"node-2"}, false},
		{"one differs, the third is silent", []digestPoint{point(1024, y)}, map[string][]digestPoint{"node-2": {point(1024, x)}}, voters, []string{"node-2"}, false},
		{"all three differ", []digestPoint{point(1024, x)}, map[string][]digestPoint{"node-2": {point(1024, y)}, "node-3": {point(1024, z)}}, voters, []string{"node-2", "node-3"}, false},
		{"two voters", []digestPoint{point(1024, x)}, map[string][]digestPoint{"node-2": {point(1024, y)}}, voters[:2], []string{"node-2"}, false},
		{"self is a learner", []digestPoint{point(1024, y)}, map[string][]digestPoint{"node-2": {point(1024, x)}, "node-3": {point(1024, x)}}, voters[1:], []string{"node-2", "node-3"}, true},
		{"the two that differ are learners", []digestPoint{point(1024, y)}, map[string][]digestPoint{"node-2": {point(1024, x)}, "node-3": {point(1024, x)}}, voters[:1], []string{"node-2", "node-3"}, false},
		{"no index in common", []digestPoint{point(1024, x)}, map[string][]digestPoint{"node-2": {point(2048, y)}, "node-3": {point(2048, y)}}, voters, nil, false},
		{"an old difference that is mended", []digestPoint{point(1024, x), point(2048, x)}, map[string][]digestPoint{"node-2": {point(1024, y), point(2048, x)}, "node-3": {point(1024, x)}}, voters, nil, false},
		{"the newest in common are at different indices", []digestPoint{point(1024, y), point(2048, y)}, map[string][]digestPoint{"node-2": {point(1024, x)}, "node-3": {point(1024, x), point(2048, x)}}, voters, []string{"node-2", "node-3"}, true},
		{"no digests of its own", nil, map[string][]digestPoint{"node-2": {point(1024, x)}, "node-3": {point(1024, x)}}, voters, nil, false},
	} {
		m := compareDigests("node-1", c.own, c.others, c.voters)
		if !slices.Equal(m.With, c.with) || m.Odd != c.odd || (m.Index != 0) != (len(c.with) != 0) {
			t.Errorf("%s: %+v, want %v, odd %v", c.name, m, c.with, c.odd)
		}
	}
}

func TestOddOneOut_MajorityAgreesOnAnotherDigest_AtTheNewestIndex(t *testing.T) {
	const x, y = 1, 2
	for _, c := range []struct {
		name string
		told map[string][]digestPoint
		odd  bool
	}{
		{"all equal", map[string][]digestPoint{"a": {point(1024, x)}, "b": {point(1024, x)}, "c": {point(1024, x)}, "d": {point(1024, x)}}, false},
		{"it differs from three of five", map[string][]digestPoint{"a": {point(1024, y)}, "b": {point(1024, x)}, "c": {point(1024, x)}, "d": {point(1024, x)}}, true},
		{"another differs", map[string][]digestPoint{"a": {point(1024, x)}, "b": {point(1024, y)}, "c": {point(1024, x)}, "d": {point(1024, x)}}, false},
		{"two against two", map[string][]digestPoint{"a": {point(1024, y)}, "b": {point(1024, x)}, "c": {point(1024, x)}, "d": {point(1024, y)}}, false},
		{"the others are further", map[string][]digestPoint{"a": {point(1024, y)}, "b": {point(2048, x)}, "c": {point(2048, x)}, "d": {point(2048, x)}}, false},
		{"an old difference that is mended", map[string][]digestPoint{"a": {point(1024, y), point(2048, x)}, "b": {point(1024, x), point(2048, x)}, "c": {point(1024, x), point(2048, x)}, "d": {point(1024, x), point(2048, x)}}, false},
		{"nobody agrees on the newest", map[string][]digestPoint{"a": {point(1024, y), point(2048, x)}, "b": {point(1024, x)}, "c": {point(1024, x)}, "d": {point(1024, x)}}, true},
		{"it is silent", map[string][]digestPoint{"b": {point(1024, x)}, "c": {point(1024, x)}, "d": {point(1024, x)}}, false},
	} {
		if got := oddOneOut("a", c.told, 5); got != c.odd {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
