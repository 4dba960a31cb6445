package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"kvstore/internal/record"
)

// stored writes b as the file name of a new directory, as a record if seal says so.
func stored(t *testing.T, name string, b []byte, seal bool) (dir string) {
	dir = t.TempDir()
	if seal {
		b = record.Append(nil, b)
	}
	if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Whatever the identity file holds, it is refused, or names this node and one data directory, and is written as it was
// read; and a count that can't be gone on with is refused.
func FuzzIdentity(f *testing.F) {
	id := identity{Format: identityFormat, NodeID: "n1", Incarnation: strings.Repeat("ab", 16), CreatedAt: time.Unix(1, 0).UTC(), Starts: 2,
		Nonces: "0000000000000001ffffffffffffffff", Served: true, ClusterID: strings.Repeat("cc", 16), HistoryID: strings.Repeat("dd", 16)}
	good, err := json.Marshal(id)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, true)
	f.Add(record.Append(nil, good), false)
	f.Add(bytes.Replace(good, []byte("ffff"), []byte("fff"), 1), true)
	f.Add(bytes.Replace(good, []byte(strings.Repeat("dd", 16)), []byte(strings.Repeat("00", 16)), 1), true)
	f.Add([]byte(`{"format":1,"node_id":"n1","incarnation":"00"}`), true)
	f.Add([]byte(`null`), true)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		dir := stored(t, identityFile, b, seal)
		id, fresh, err := loadIdentity(dir, "n1")
		if err != nil {
			return
		}
		bits, err := id.bits()
		if fresh || id.NodeID != "n1" || err != nil || bits == [16]byte{} {
			t.Fatalf("%+v, fresh %v, %v", id, fresh, err)
		}
		if cluster, history, err := id.claims(); err == nil && (cluster == [16]byte{}) != (history == [16]byte{}) {
			t.Fatalf("it claims cluster %x and history %x", cluster, history)
		}
		before := id
		if err := id.write(dir); err != nil {
			t.Fatal(err)
		}
		again, err := readIdentity(dir)
		if err != nil || !sameJSON(t, before, again) {
			t.Fatalf("%+v comes back as %+v, %v", before, again, err)
		}
		lineage, err := id.countStart(dir)
		if err != nil {
			if back, err := readIdentity(dir); err != nil || !sameJSON(t, before, back) {
				t.Fatalf("a start that was not counted changed %+v to %+v, %v", before, back, err)
			}
			return
		}
		if len(lineage) == 0 || len(lineage) > lineageMax || lineage[len(lineage)-1] == 0 {
			t.Fatalf("lineage %x", lineage)
		}
	})
}

// sameJSON compares what a and b are in a file: times lose what no file holds.
func sameJSON(t *testing.T, a, b any) bool {
	x, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

// Whatever the file QUARANTINE holds, it is refused, or kept as it is; never taken for "none".
func FuzzQuarantine(f *testing.F) {
	good, err := json.Marshal(quarantine{Format: quarantineFormat, Pending: true, Reach: 7, Reason: "why", At: []time.Time{time.Unix(1, 0).UTC()}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, true)
	f.Add(record.Append(nil, good), false)
	f.Add([]byte(`{"format":2}`), true)
	f.Add([]byte(`null`), true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		dir := stored(t, quarantineName, b, seal)
		q, err := readQuarantine(dir)
		if err != nil {
			if !strings.Contains(err.Error(), quarantineName) || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("the error does not name the file: %v", err)
			}
			return
		}
		if q.Format != quarantineFormat {
			t.Fatalf("%+v", q)
		}
		q.recent(time.Now())
		if err := q.write(dir); err != nil {
			t.Fatal(err)
		}
		if again, err := readQuarantine(dir); err != nil || !sameJSON(t, q, again) {
			t.Fatalf("%+v comes back as %+v, %v", q, again, err)
		}
	})
}

// Whatever the file of a recovery holds, it is refused by name, or is a recovery of one history that is written as it
// was read.
func FuzzRecovery(f *testing.F) {
	id := strings.Repeat("cd", 16)
	good, err := json.Marshal(RecoveryReport{Format: 1, Stage: recoveryDone, ClusterID: id, NewHistoryID: id, At: time.Unix(1, 0).UTC(), Lost: []RecoveryMember{{ID: "n2"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte(recoveryDone), []byte(recoveryBegun), 1))
	f.Add([]byte("null"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := stored(t, recoveryFile, b, false)
		r, err := openRecovery(dir)
		if err != nil {
			return
		}
		if r == nil || r.history == [16]byte{} || r.report.Stage != recoveryDone {
			t.Fatalf("%+v", r)
		}
		if err := r.report.write(dir); err != nil {
			t.Fatal(err)
		}
		if again, err := readRecovery(dir); err != nil || !sameJSON(t, r.report, again) {
			t.Fatalf("%+v comes back as %+v, %v", r.report, again, err)
		}
	})
}

// Whatever another node says of itself, what is kept of it is bounded, in order, and read back as it was.
func FuzzVitals(f *testing.F) {
	f.Add([]byte(`{"disk":"ok","free":7,"applied":9,"ready":true,"digests":[[1,"000102030405060708090a0b0c0d0e0f"],[7,"ff0102030405060708090a0b0c0d0e0f"]]}`), []byte(`[[9,"000102030405060708090a0b0c0d0e0f"]]`))
	f.Add([]byte(`{"digests":[[2,"000102030405060708090a0b0c0d0e0f"],[1,"000102030405060708090a0b0c0d0e0f"]]}`), []byte(`[]`))
	f.Add([]byte(`{"digests":[null,[1],[1,"00",2],{}]}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		h := &health{peers: map[string]*peerHealth{}, wake: make(chan struct{}, 1)}
		for i, b := range [][]byte{first, append(append([]byte(`{"digests":`), second...), '}'), first} {
			h.hear("n2", [16]byte{1}, int64(i), b)
			p := h.peers["n2"]
			if p == nil {
				continue
			}
			if len(p.digests) > digestsKeptMax {
				t.Fatalf("%d digests are kept", len(p.digests))
			}
			for i := range p.digests {
				if p.digests[i].index == 0 || i > 0 && p.digests[i].index < p.digests[i-1].index {
					t.Fatalf("kept out of order: %v", p.digests)
				}
			}
		}
		var p, again digestPoint
		if json.Unmarshal(second, &p) == nil {
			b, err := json.Marshal(p)
			if err != nil || json.Unmarshal(b, &again) != nil || again != p {
				t.Fatalf("%q: %+v comes back as %+v, %v", second, p, again, err)
			}
		}
	})
}

// A list of founders is read as it was written, and what passes for an address or an id can stand wherever one stands.
func FuzzParseInitialCluster(f *testing.F) {
	for _, s := range []string{"n1=a:1,n2=b:2", "n1=[2001:db8::1]:7000", "", ",", "n1=a:1,,", "n1", "n1=a=b:1", "n\x001=a:1", "n1=0.0.0.0:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		founders, err := ParseInitialCluster(s)
		if err != nil {
			return
		}
		var parts []string
		for _, n := range founders {
			parts = append(parts, n.ID+"="+n.Address)
			if checkNodeID(n.ID) == nil && checkAddress(n.Address) == nil {
				back, err := ParseInitialCluster(n.ID + "=" + n.Address)
				if err != nil || !reflect.DeepEqual(back, []Founder{n}) {
					t.Fatalf("%+v comes back as %+v, %v", n, back, err)
				}
			}
		}
		if strings.Join(parts, ",") != s {
			t.Fatalf("%q became %+v", s, founders)
		}
	})
}
