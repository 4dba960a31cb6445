package engine

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// getRecord reads a record of the default namespace.
func (d *driver) getRecord(key string) wire.Record {
	d.t.Helper()
	rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte(key), nil)
	if err != nil || st != wire.StatusOK {
		d.t.Fatalf("get %q: %v, %v", key, st, err)
	}
	return rec
}

func TestIncrement_EachValue_GivesTheSumOrNothing(t *testing.T) {
	for _, c := range []struct {
		old   string // "-": absent
		delta int64
		want  int64
		fails bool
	}{
		{"-absent", 5, 5, false},
		{"-absent", math.MinInt64, math.MinInt64, false},
		{"0", 0, 0, false},
		{"41", 1, 42, false},
		{"-1", 1, 0, false},
		{"-0", 0, 0, false},
		{"007", 1, 8, false},
		{"9223372036854775806", 1, math.MaxInt64, false},
		{"9223372036854775807", 1, 0, true},
		{"9223372036854775807", math.MinInt64, -1, false},
		{"-9223372036854775808", -1, 0, true},
		{"-9223372036854775808", math.MaxInt64, -1, false},
		{"9223372036854775808", -1, 0, true},
		{"00000000000000000001", 1, 2, false},
		{"000000000000000000001", 1, 0, true}, // longer than any number need be
		{"", 1, 0, true},
		{"-", 1, 0, true},
		{"--1", 1, 0, true},
		{"+1", 1, 0, true},
		{" 1", 1, 0, true},
		{"1\n", 1, 0, true},
		{"1.0", 1, 0, true},
		{"1e3", 1, 0, true},
		{"0x10", 1, 0, true},
		{"1_0", 1, 0, true},
		{"١", 1, 0, true},
		{"1\x00", 1, 0, true},
		{strings.Repeat("9", 1<<20), 1, 0, true},
	} {
		t.Run(short(c.old)+fmt.Sprintf(" and %d", c.delta), func(t *testing.T) {
			d := newDriver(t, engineOptions(t, t.TempDir()))
			if c.old != "-absent" {
				d.put("n", c.old)
			}
			before := d.e.live.Load().applier.last.digest
			res := d.one(incrementOp("n", c.delta, nil))
			if c.fails {
				if res.Status != wire.StatusNotANumber || res.Rev != 0 || d.e.live.Load().applier.last.digest != before {
					t.Fatalf("%+v", res)
				}
				return
			}
			rev, value, ok := wire.DecodeCounter(res.Payload)
			if res.Status != wire.StatusOK || !ok || rev != res.Rev || rev == 0 || value != c.want {
				t.Fatalf("%+v: %d, %v; want %d", res, value, ok, c.want)
			}
			d.wantValue("n", fmt.Sprint(c.want))
			if rec := d.getRecord("n"); rec.Meta.Version != rev || rec.Meta.Checksum != wire.Checksum(rec.Value) {
				t.Fatalf("%+v", rec.Meta)
			}
		})
	}
}

func TestTouchAndIncrement_WhatIsThere_KeepsAllButWhatTheyChange(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	kept := wire.AppendExtString(wire.AppendExtTag(nil, "colour", "red"), wire.ExtContentType, "text/plain")
	first := d.one(putOp("n", []byte("41"), withTTL(slices.Clone(kept), time.Hour))).Rev
	created := d.now
	d.now += 1e6
	for _, c := range []struct {
		what     string
		op       testOp
		want     string
		deadline int64
	}{
		{"an increment", incrementOp("n", 1, nil), "42", created + 3600e6},
		{"an increment with a time to live", incrementOp("n", 1, withTTL(nil, time.Minute)), "43", d.now + 60e6},
		{"a touch", touchOp("n", withTTL(nil, time.Second)), "43", d.now + 1e6},
		{"a touch without a time to live", touchOp("n", nil), "43", 0},
		{"an increment without a deadline", incrementOp("n", -3, nil), "40", 0},
	} {
		res := d.one(c.op)
		rec := d.getRecord("n")
		want := wire.Meta{Version: res.Rev, CreatedAt: created, UpdatedAt: d.now, ExpiresAt: c.deadline, Checksum: wire.Checksum([]byte(c.want))}
		if res.Status != wire.StatusOK || res.Rev <= first || rec.Meta != want || string(rec.Value) != c.want || !bytes.Equal(rec.Ext, kept) {
			t.Errorf("%s: %+v\n%+v %q %x\nwant %+v", c.what, res, rec.Meta, rec.Value, rec.Ext, want)
		}
		first = res.Rev
	}
	// What has expired is absent: a touch finds nothing, an increment begins anew.
	d.one(touchOp("n", withTTL(nil, time.Second)))
	d.now += 2e6
	wantStatuses(t, d.apply(touchOp("n", nil), incrementOp("n", 7, nil), touchOp("none", nil)), wire.StatusNotFound, wire.StatusOK, wire.StatusNotFound)
	if rec := d.getRecord("n"); string(rec.Value) != "7" || len(rec.Ext) != 0 || rec.Meta.CreatedAt != d.now || rec.Meta.ExpiresAt != 0 {
		t.Errorf("%+v %q", rec.Meta, rec.Value)
	}
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTouchAndIncrement_HostileBytes_AreRefused(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.put("n", "1")
	with := func(op testOp, change func(o *testOp)) testOp {
		change(&op)
		return op
	}
	for what, c := range map[string]struct {
		op   testOp
		want wire.Status
	}{
		"a touch with a value":          {with(touchOp("n", nil), func(o *testOp) { o.Payload = []byte("x") }), wire.StatusBadRequest},
		"a touch with a tag":            {touchOp("n", wire.AppendExtTag(nil, "t", "")), wire.StatusBadRequest},
		"a touch with a time of 0":      {touchOp("n", wire.AppendExtU64(nil, wire.ExtTTL, 0)), wire.StatusBadRequest},
		"a touch for ever and a day":    {touchOp("n", wire.AppendExtU64(nil, wire.ExtTTL, wire.TTLMsMax+1)), wire.StatusBadRequest},
		"a touch without a key":         {touchOp("", nil), wire.StatusBadKey},
		"a touch of no UTF-8":           {touchOp("\xff", nil), wire.StatusBadKey},
		"an increment without a delta":  {with(incrementOp("n", 1, nil), func(o *testOp) { o.Payload = nil }), wire.StatusBadRequest},
		"an increment of seven bytes":   {with(incrementOp("n", 1, nil), func(o *testOp) { o.Payload = make([]byte, 7) }), wire.StatusBadRequest},
		"an increment with compression": {incrementOp("n", 1, wire.AppendExtU8(nil, wire.ExtCompress, 1)), wire.StatusBadRequest},
		"an increment with half an ext": {incrementOp("n", 1, []byte{byte(wire.ExtTTL)}), wire.StatusBadRequest},
		"a condition on half a tag":     {touchOp("n", wire.AppendExtCondition(nil, wire.ConditionTag, []byte{9})), wire.StatusBadRequest},
		"a condition on a bad tag":      {touchOp("n", wire.AppendExtCondition(nil, wire.ConditionTagPresent, []byte("A"))), wire.StatusBadRequest},
		"in the system's keyspace":      {touchOp("level", nil).in(0), wire.StatusNoNamespace},
		"in no namespace":               {incrementOp("n", 1, nil).in(wire.NamespaceNone), wire.StatusNoNamespace},
		"in a transaction, with a value": {groupOp(wire.OpTxn, 0, wire.Item{Op: wire.OpTouch, Key: []byte("n"), Value: []byte("x")}),
			wire.StatusBadRequest},
	} {
		before := d.e.live.Load().applier.last.digest
		if res := d.one(c.op); res.Status != c.want || res.Rev != 0 || d.e.live.Load().applier.last.digest != before {
			t.Errorf("%s: %+v, want %v", what, res, c.want)
		}
	}
}

func TestConditions_OnTags_HoldAsTheyShould(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	ext := wire.AppendExtTag(wire.AppendExtTag(nil, "colour", "red"), "size", "")
	for _, c := range []struct {
		what      string
		condition []byte
		here      bool // with the tags
		bare      bool // without tags
	}{
		{"the tag", wire.AppendExtTagCondition(nil, "colour", "red"), true, false},
		{"another value", wire.AppendExtTagCondition(nil, "colour", "re"), false, false},
		{"an empty value", wire.AppendExtTagCondition(nil, "size", ""), true, false},
		{"another name", wire.AppendExtTagCondition(nil, "colou", "red"), false, false},
		{"present", wire.AppendExtCondition(nil, wire.ConditionTagPresent, []byte("size")), true, false},
		{"not present", wire.AppendExtCondition(nil, wire.ConditionTagPresent, []byte("red")), false, false},
		{"absent", wire.AppendExtCondition(nil, wire.ConditionTagAbsent, []byte("red")), true, true},
		{"not absent", wire.AppendExtCondition(nil, wire.ConditionTagAbsent, []byte("colour")), false, true},
	} {
		d.one(putOp("here", nil, ext))
		d.one(putOp("bare", nil, nil))
		d.one(putOp("over", nil, withTTL(slices.Clone(ext), time.Millisecond)))
		d.now += 1e6
		for key, holds := range map[string]bool{"here": c.here, "bare": c.bare, "over": false, "none": false} {
			want := wire.StatusConditionFailed
			if holds {
				want = wire.StatusOK
			}
			item := wire.Item{Op: wire.OpCheck, Key: []byte(key), Ext: c.condition}
			if res := d.one(groupOp(wire.OpTxn, 0, item)); res.Status != want {
				t.Errorf("%s, checked on %q: %+v, want %v", c.what, key, res, want)
			}
			if res := d.one(putOp(key, nil, c.condition)); res.Status != want {
				t.Errorf("%s, put of %q: %+v, want %v", c.what, key, res, want)
			}
		}
	}
}

func TestTxn_MemberThatIsNoNumber_UndoesAll(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	sink := &effectLog{}
	o.Sink = sink
	d := newDriver(t, o)
	d.put("a", "1")
	d.put("text", "no number")
	d.one(putOp("due", []byte("v"), withTTL(nil, time.Second)))
	d.now += 2e6
	before := d.e.live.Load().applier.last.digest
	sink.effects = nil
	increment := func(key string) wire.Item {
		return wire.Item{Op: wire.OpIncrement, Key: []byte(key), Value: wire.AppendIncrement(nil, 1)}
	}
	for _, op := range []testOp{
		groupOp(wire.OpTxn, 0, putItem("new", "v", nil), increment("a"), putItem("due", "w", nil), wire.Item{Op: wire.OpDelete, Key: []byte("a")}, increment("text")),
		groupOp(wire.OpBatch, wire.GroupAtomic, increment("a"), increment("a"), increment("text"), putItem("text", "0", nil)),
	} {
		res := d.apply(op, putOp("b", nil, nil))
		if res[0].Status != wire.StatusNotANumber || res[0].Rev != 0 || !strings.HasPrefix(string(res[0].Payload), "operation ") {
			t.Fatalf("%+v %q", res[0], res[0].Payload)
		}
		if res[1].Rev != wire.MakeRevision(d.index, 0) {
			t.Errorf("positions are lost: %d", res[1].Rev)
		}
		if len(sink.effects) != 1 || string(sink.effects[0].Key) != "b" {
			t.Errorf("effects %+v", sink.effects)
		}
		d.one(deleteOp("b", nil))
		sink.effects = nil
	}
	if d.e.live.Load().applier.last.digest != before {
		t.Error("the state has changed")
	}
	d.wantValue("a", "1")
	d.wantAbsent("new")
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTouch_MoreBytesThanAnEntryRewrites_AnotherEntryDoes(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	const fit = rewriteBytesMax / wire.ValueBytesMax
	d.put("big", strings.Repeat("b", wire.ValueBytesMax))
	touch := wire.Item{Op: wire.OpTouch, Key: []byte("big")}
	ops := slices.Repeat([]testOp{touchOp("big", withTTL(nil, time.Hour))}, fit+1)
	wantStatuses(t, d.apply(ops...), append(slices.Repeat([]wire.Status{wire.StatusOK}, fit), wire.StatusRetryLater)...)
	within, beyond := slices.Repeat([]wire.Item{touch}, fit), slices.Repeat([]wire.Item{touch}, fit+1)
	wantStatuses(t, d.apply(touchOp("big", nil), groupOp(wire.OpTxn, 0, within...), groupOp(wire.OpTxn, 0, beyond...)),
		wire.StatusOK, wire.StatusRetryLater, wire.StatusRetryLater) // nobody can tell yet that the last one is too large by itself
	wantStatuses(t, d.apply(groupOp(wire.OpTxn, 0, within...)), wire.StatusOK)
	wantStatuses(t, d.apply(groupOp(wire.OpTxn, 0, beyond...)), wire.StatusTooLarge)
	res := d.one(groupOp(wire.OpBatch, 0, beyond...))
	_, n, items, err := wire.DecodeResult(res.Payload)
	if err != nil || n != fit+1 || res.Status != wire.StatusOK {
		t.Fatalf("%+v, %v", res.Status, err)
	}
	for i := range n {
		var it wire.Item
		if items, err = wire.NextItem(items, &it); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]wire.Status{true: wire.StatusOK, false: wire.StatusRetryLater}[i < fit]; it.Status != want {
			t.Errorf("item %d: %v, want %v", i, it.Status, want)
		}
	}
	d.wantValue("big", strings.Repeat("b", wire.ValueBytesMax))
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}
