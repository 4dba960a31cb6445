package engine

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"

	"kvstore/wire"
)

// levelOneLog makes a log of behaviour level 1 that no later change of the other tests changes. Numbers stand in it for
// what level 1 doesn't know: builds that knew no other level have run the same lines.
func levelOneLog() (entries [][]byte) {
	rng := rand.New(rand.NewPCG(6, 1))
	in := wire.Init{ClusterID: [16]byte{1}, HistoryID: [16]byte{2}, Level: 1}
	now, seq := testEpoch, uint64(0)
	entry := func(ops ...testOp) {
		now += int64(rng.IntN(2e6))
		entries = append(entries, sealEntry(now, ops...))
	}
	entry(testOp{wire.Op{Op: wire.OpInit, Payload: wire.AppendInit(nil, &in)}})
	entry(sessionOpenOp())
	session := wire.MakeRevision(2, 0)

	key := func() string { return fmt.Sprint("k", rng.IntN(12)) }
	ext := func(put bool) (b []byte) {
		for range rng.IntN(4) {
			switch n := rng.IntN(16); {
			case n == 0:
				b = wire.AppendExt(b, 25, []byte{1}) // compress, from level 2 on
			case n == 1:
				b = wire.AppendExt(b, 29, make([]byte, 16)) // history
			case n <= 3:
				b = wire.AppendExt(b, wire.ExtCondition, append([]byte{byte(5 + rng.IntN(3)), 1}, "tx"...)) // on tags
			case n <= 5:
				b = wire.AppendExtCondition(b, wire.ConditionExists, nil)
			case n == 6:
				b = wire.AppendExtCondition(b, wire.ConditionValue, []byte("7"))
			case n == 7:
				b = wire.AppendExt(b, wire.ExtCondition, []byte{9}) // malformed
			case n == 8:
				b = append(b, 40, 9) // an element that ends early
			case put && n <= 11:
				b = wire.AppendExtU64(b, wire.ExtTTL, uint64(rng.IntN(9000))) // 0 is refused, so is a second one
			case put && n <= 13:
				b = wire.AppendExtTag(b, fmt.Sprint("t", rng.IntN(3)), "x")
			}
		}
		return b
	}
	value := func() []byte { return fmt.Append(nil, rng.IntN(10)) }
	item := func(txn bool) wire.Item {
		it := wire.Item{Op: wire.OpPut, Key: []byte(key()), Value: value()}
		switch n := rng.IntN(14); {
		case n == 0:
			it.Op, it.Value = 0x24, nil // touch
		case n == 1:
			it.Op, it.Value = 0x25, make([]byte, 8) // increment
		case n == 2:
			it.Key = nil // refused
		case n == 3 && txn:
			it.Op, it.Ext, it.Value = wire.OpCheck, wire.AppendExtCondition(nil, wire.ConditionExists, nil), nil
		case n <= 5 && txn:
			it.Op, it.Ext, it.Value = wire.OpGet, nil, nil
		case n <= 7:
			it.Op, it.Ext, it.Value = wire.OpDelete, ext(false), nil
		case n <= 9:
			it.Ext = ext(true)
		}
		return it
	}
	op := func() testOp {
		switch n := rng.IntN(24); {
		case n == 0:
			return testOp{wire.Op{Op: 0x24, Namespace: 1, Key: []byte(key())}}
		case n == 1:
			return testOp{wire.Op{Op: 0x25, Namespace: 1, Key: []byte(key()), Payload: make([]byte, 8)}}
		case n == 2:
			return testOp{wire.Op{Op: 0x55, Payload: append([]byte{1, 1, 0, 1}, append(make([]byte, 44), 'a')...)}} // creates "a"
		case n == 3:
			o := putOp(key(), value(), nil)
			o.Namespace = uint32(rng.IntN(3))
			return o
		case n == 4:
			return expireOp(uint32(rng.IntN(4)))
		case n <= 9:
			return deleteOp(key(), ext(false))
		case n <= 15:
			code, flags, items := wire.OpBatch, uint8(rng.IntN(2)), []wire.Item(nil)
			if rng.IntN(2) == 0 {
				code, flags = wire.OpTxn, 0
			}
			for range 1 + rng.IntN(4) {
				items = append(items, item(code == wire.OpTxn))
			}
			return groupOp(code, flags, items...)
		}
		return putOp(key(), value(), ext(true))
	}
	for range 600 {
		var ops []testOp
		for range 1 + rng.IntN(6) {
			o := op()
			if rng.IntN(2) == 0 {
				seq++
				o = o.session(session, seq, seq/2)
			}
			ops = append(ops, o)
		}
		entry(ops...)
	}
	return entries
}

// levelTwoLog makes a log that begins at behaviour level 1 and goes on at level 2, as levelOneLog does for the level
// before: numbers stand for what came later.
func levelTwoLog() (entries [][]byte) {
	rng := rand.New(rand.NewPCG(7, 2))
	in := wire.Init{ClusterID: [16]byte{1}, HistoryID: [16]byte{2}, Level: 1}
	now, seq := testEpoch, uint64(0)
	entry := func(ops ...testOp) {
		now += int64(rng.IntN(2e6))
		entries = append(entries, sealEntry(now, ops...))
	}
	entry(testOp{wire.Op{Op: wire.OpInit, Payload: wire.AppendInit(nil, &in)}})
	entry(sessionOpenOp())
	session := wire.MakeRevision(2, 0)

	key := func() string { return fmt.Sprint("k", rng.IntN(12)) }
	ext := func(put bool) (b []byte) {
		for range rng.IntN(4) {
			switch n := rng.IntN(18); {
			case n <= 1:
				b = wire.AppendExt(b, 33, []byte("a key of sixteen, a hash")) // from level 3 on
			case n == 2:
				b = wire.AppendExt(b, 33, nil)
			case n == 3:
				b = wire.AppendExt(b, 25, []byte{byte(rng.IntN(5))})
			case n == 4:
				b = wire.AppendExt(b, wire.ExtCondition, append([]byte{byte(5 + rng.IntN(3)), 1}, "tx"...)) // on tags
			case n <= 6:
				b = wire.AppendExtCondition(b, wire.ConditionExists, nil)
			case n == 7:
				b = wire.AppendExt(b, wire.ExtNamespace, []byte("default"))
			case n == 8:
				b = append(b, 40, 9) // an element that ends early
			case put && n <= 11:
				b = wire.AppendExtU64(b, wire.ExtTTL, uint64(rng.IntN(9000)))
			case put && n <= 13:
				b = wire.AppendExtTag(b, fmt.Sprint("t", rng.IntN(3)), "x")
			}
		}
		return b
	}
	value := func() []byte { return fmt.Append(nil, rng.IntN(10)) }
	item := func(txn bool) wire.Item {
		it := wire.Item{Op: wire.OpPut, Key: []byte(key()), Value: value()}
		switch n := rng.IntN(12); {
		case n == 0:
			it.Op, it.Value, it.Ext = wire.OpTouch, nil, ext(false)
		case n <= 2:
			it.Op, it.Value = wire.OpIncrement, wire.AppendIncrement(nil, 3)
		case n == 3 && txn:
			it.Op, it.Ext, it.Value = wire.OpCheck, wire.AppendExtCondition(nil, wire.ConditionExists, nil), nil
		case n <= 5 && txn:
			it.Op, it.Ext, it.Value = wire.OpGet, nil, nil
		case n == 6:
			it.Op, it.Ext, it.Value = wire.OpDelete, ext(false), nil
		case n == 7:
			it.Ext = ext(true)
		}
		return it
	}
	op := func() testOp {
		switch n := rng.IntN(26); {
		case n == 0:
			return createOp(fmt.Sprint("n", rng.IntN(3)), wire.NamespaceSettings{KeysMax: uint64(rng.IntN(6))})
		case n == 1:
			return dropOp(fmt.Sprint("n", rng.IntN(3)))
		case n == 2:
			return purgeOp(uint32(2+rng.IntN(4)), 3)
		case n == 3:
			return expireOp(uint32(rng.IntN(4)))
		case n <= 5:
			return touchOp(key(), ext(false))
		case n <= 8:
			return incrementOp(key(), 2, ext(false))
		case n <= 11:
			return deleteOp(key(), ext(false))
		case n <= 17:
			code, flags, items := wire.OpBatch, uint8(rng.IntN(2)), []wire.Item(nil)
			if rng.IntN(2) == 0 {
				code, flags = wire.OpTxn, 0
			}
			for range 1 + rng.IntN(4) {
				items = append(items, item(code == wire.OpTxn))
			}
			o := groupOp(code, flags, items...)
			o.Ext = ext(false)
			return o
		}
		return putOp(key(), value(), ext(true))
	}
	for i := range 600 {
		if i == 40 {
			entry(levelOp(2))
		}
		var ops []testOp
		for range 1 + rng.IntN(6) {
			o := op()
			if o.Op.Op.IsMutation() || o.Op.Op == wire.OpBatch || o.Op.Op == wire.OpTxn {
				o.Namespace = uint32(1 + rng.IntN(5)/3*rng.IntN(4))
			}
			if rng.IntN(2) == 0 {
				seq++
				o = o.session(session, seq, seq/2)
			}
			ops = append(ops, o)
		}
		entry(ops...)
	}
	return entries
}

// TestApply_LogsOfOldLevels_GiveWhatTheBuildsOfThatTimeGave pins what builds that knew no later level have made of a log: the
// last of them has computed both sums.
func TestApply_LogsOfOldLevels_GiveWhatTheBuildsOfThatTimeGave(t *testing.T) {
	for _, x := range []struct {
		level   int
		log     [][]byte
		digest  string
		answers uint64
	}{
		{1, levelOneLog(), "fc243b35808840d98d8ad5b787f8d3a7", 0x6d97242663526756},
		{2, levelTwoLog(), "8b1ae70e103fc2235fa7035018f6e9a0", 0xb95067451e1d8958},
	} {
		t.Run(fmt.Sprint("level ", x.level), func(t *testing.T) {
			e := mustOpen(t, engineOptions(t, t.TempDir()))
			answers := xxhash.New()
			byStatus := make(map[wire.Status]int)
			for i, entry := range x.log {
				for _, res := range e.Apply(uint64(i+1), 1, entry) {
					_, _ = fmt.Fprintf(answers, "%d %v %d %x\n", res.Status, res.Replayed, res.Rev, res.Payload) // a hash takes everything
					byStatus[res.Status]++
				}
			}
			_, digest := e.Digest()
			if got := hex.EncodeToString(digest[:]); got != x.digest || answers.Sum64() != x.answers {
				t.Errorf("digest %s, answers %#x; want %s, %#x\n%v", got, answers.Sum64(), x.digest, x.answers, byStatus)
			}
			if len(byStatus) < 8 || byStatus[wire.StatusOK] < 300 {
				t.Errorf("the log shows little: %v", byStatus)
			}
			if err := e.VerifyDigest(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}
