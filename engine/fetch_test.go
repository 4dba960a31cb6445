package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"kvstore/wire"
)

// Goal: an entry that replaces records that memory doesn't have finds them as they are, whether they were fetched by several
// goroutines or are read one by one: there or not, deleted, long, in pieces, twice in the entry, beside others in memory.
func TestFetch_RecordsThatMemoryDoesNotHave_AreWhatTheStateSays(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	rng := rand.New(rand.NewPCG(testSeed(t), 1))
	o := engineOptions(t, t.TempDir())
	o.CacheBytes = -1 // what has gone to Badger is read there
	o.ChunkThresholdBytes, o.ChunkBytes = 8<<10, 4<<10
	d := newDriver(t, o)
	const keys = 400
	versions := make(map[string]wire.Revision)
	values := make(map[string][]byte)
	fetched, beyond := 0, 0
	size := func() int {
		switch rng.IntN(20) {
		case 0:
			return 20 << 10 // in pieces
		case 1:
			return 6 << 10
		}
		return rng.IntN(200)
	}
	for round := range 30 {
		var ops []testOp
		var named []string
		changed := make(map[string]bool)
		for range 200 {
			k := fmt.Sprintf("key/%d", rng.IntN(keys))
			value := bytes.Repeat([]byte{byte(rng.IntN(256))}, size())
			// Each expects the record that it replaces as the entry before has left it, unless the entry itself has changed it.
			rev, there := versions[k]
			op := putOp(k, value, nil)
			switch {
			case changed[k]:
			case !there:
				op = putOp(k, value, wire.AppendExtCondition(nil, wire.ConditionAbsent, nil))
			case rng.IntN(4) == 0:
				op = deleteOp(k, wire.AppendExtCondition(nil, wire.ConditionVersion, wire.AppendVersion(nil, rev)))
			case len(values[k]) < 200 && rng.IntN(2) == 0:
				op = putOp(k, value, wire.AppendExtCondition(nil, wire.ConditionValue, values[k]))
			default:
				op = putOp(k, value, wire.AppendExtCondition(nil, wire.ConditionVersion, wire.AppendVersion(nil, rev)))
			}
			changed[k] = true
			ops, named = append(ops, op), append(named, k)
		}
		results := d.apply(ops...)
		f := &d.e.live.Load().applier.fetcher
		for i := range f.all {
			if f.all[i].known {
				fetched++
			} else {
				beyond++
			}
		}
		for i, r := range results {
			if r.Status != wire.StatusOK {
				t.Fatalf("round %d, operation %d on %s: %v", round, i, named[i], r.Status)
			}
			if ops[i].Op.Op == wire.OpDelete {
				delete(versions, named[i])
				delete(values, named[i])
			} else {
				versions[named[i]], values[named[i]] = r.Rev, ops[i].Payload
			}
		}
		if round%3 != 0 { // so that some of the next entry's records are in memory
			if err := d.e.CheckpointNow(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if fetched == 0 || beyond > 0 {
		t.Fatalf("%d records were fetched, %d were not", fetched, beyond)
	}
}

// Goal: what a worker keeps is bounded; what is beyond is read when it is wanted.
func TestFetch_MoreThanAWorkerKeeps_IsReadOneByOne(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	o := engineOptions(t, t.TempDir())
	o.CacheBytes, o.ChunkThresholdBytes = -1, 64<<10
	d := newDriver(t, o)
	value := bytes.Repeat([]byte("v"), 60<<10)
	for round := range 3 {
		var ops []testOp
		for i := range 100 {
			ops = append(ops, putOp(fmt.Sprint(i), value, nil))
		}
		d.apply(ops...)
		f := &d.e.live.Load().applier.fetcher
		known, bytes := 0, 0
		for i := range f.all {
			if f.all[i].known {
				known++
			}
			bytes += len(f.all[i].stored)
		}
		if most := 2 * (fetchBytesMax + fetchEach*(60<<10+recordHeaderBytes)); bytes > most {
			t.Errorf("round %d: %d bytes are kept, at most %d should be", round, bytes, most)
		}
		if round == 2 && (known == 0 || known == 100) {
			t.Errorf("%d of 100 records were fetched", known)
		}
		if err := d.e.CheckpointNow(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}
