package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4/fb"

	"kvstore/wire"
)

// TestScrub_BesideWrites_DigestMatches scrubs in tiny slices while a random log is applied: records below,
// in and above the slice that is being read change, come and go all the time.
func TestScrub_BesideWrites_DigestMatches(t *testing.T) {
	seed := testSeed(t)
	w := newWorkload(seed)
	w.bigValue = 3 << 10
	o := engineOptions(t, t.TempDir())
	o.ChunkThresholdBytes, o.ChunkBytes = 1<<10, 1<<10
	o.CheckpointInterval, o.HistoryWindow = 5*time.Millisecond, -1
	o.OnDamage = func(err error) { t.Errorf("damage: %v", err) }
	e := mustOpen(t, o)
	applied := make(chan struct{})
	stop := make(chan struct{})
	go func() { // the applier; ends when the scrubs are done
		defer close(applied)
		for {
			select {
			case <-stop:
				return
			default:
			}
			index, entry := w.next()
			w.learn(e.Apply(index, 1, entry))
		}
	}()
	rng := rand.New(rand.NewPCG(seed, 9))
	for e.Applied().Index < 300 {
		time.Sleep(time.Millisecond)
	}
	moved := uint64(0)
	for n := 0; n < 40 || moved < 500 && n < 4000; n++ {
		before := e.Applied().Index
		report, err := e.Scrub(t.Context(), ScrubOptions{RateBytes: -1, sliceBytes: 1 + rng.Int64N(3<<10)})
		if err != nil || !report.Sound() {
			t.Errorf("scrub %d: %+v, %v", n, report, err)
			break
		}
		if report.Index < before || report.Index > e.Applied().Index {
			t.Errorf("scrub %d: compared at %d, applied were %d before", n, report.Index, before)
		}
		moved += e.Applied().Index - before
	}
	close(stop)
	<-applied
	if moved < 500 && !t.Failed() {
		t.Errorf("%d entries beside the scrubs: the test shows little", moved)
	}
	if err := e.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// lose stores, or deletes when stored is nil, a key behind the state machine's back, as a compaction that
// loses it would.
func lose(t testing.TB, e *Engine, key, stored []byte) {
	t.Helper()
	s := e.live.Load().store
	if err := s.checkpointNow(t.Context()); err != nil { // so that Badger has what is to be lost
		t.Fatal(err)
	}
	txn := s.db.NewTransactionAt(s.current().ts, true)
	defer txn.Discard()
	var err error
	if stored == nil {
		err = txn.Delete(key)
	} else {
		err = txn.Set(key, stored)
	}
	if err == nil {
		err = txn.CommitAt(s.current().ts, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestScrub_LostOrForeignKeys_AreFound(t *testing.T) {
	record := appendRecordKey(nil, 1, []byte("k/3"))
	expiry := func(e *Engine) []byte {
		return appendExpiryKey(nil, testEpoch+10e6, appendRecordKey(nil, 1, []byte("due")))
	}
	for name, c := range map[string]struct {
		harm func(t *testing.T, e *Engine)
		key  string // of the damaged key, if one is named
	}{
		"a record":              {func(t *testing.T, e *Engine) { lose(t, e, record, nil) }, ""},
		"a session":             {func(t *testing.T, e *Engine) { lose(t, e, sessionKeyOf(e), nil) }, ""},
		"a place in the index":  {func(t *testing.T, e *Engine) { lose(t, e, expiry(e), nil) }, "due"},
		"the record of a place": {func(t *testing.T, e *Engine) { lose(t, e, appendRecordKey(nil, 1, []byte("due")), nil) }, string(expiry(nil))},
		"a piece": {func(t *testing.T, e *Engine) {
			lose(t, e, appendChunkKey(nil, appendRecordKey(nil, 1, []byte("big")), 2), nil)
		}, "big"},
		"a record that is foreign": {func(t *testing.T, e *Engine) { lose(t, e, record, []byte("what is this")) }, "k/3"},
		"the marker":               {func(t *testing.T, e *Engine) { lose(t, e, markerKey, nil) }, "M"},
	} {
		t.Run(name, func(t *testing.T) {
			var told []error
			o := engineOptions(t, t.TempDir())
			o.ChunkThresholdBytes, o.ChunkBytes = 4<<10, 4<<10
			o.OnDamage = func(err error) { told = append(told, err) }
			d := newDriver(t, o)
			for i := range 9 {
				d.put(fmt.Sprint("k/", i), "v")
			}
			d.put("big", strings.Repeat("b", 20<<10))
			d.one(putOp("due", []byte("v"), withTTL(nil, 10*time.Second)))
			d.one(sessionOpenOp())
			for i := range 2 { // the second one finds it as well, and OnDamage has been called a moment ago
				if i == 0 {
					if report, err := d.e.Scrub(t.Context(), ScrubOptions{}); err != nil || !report.Sound() || report.Records != initRecords+9+2 || report.Index != d.index {
						t.Fatalf("before: %+v, %v", report, err)
					}
					c.harm(t, d.e)
				}
				report, err := d.e.Scrub(t.Context(), ScrubOptions{RateBytes: -1, sliceBytes: 1})
				if err != nil || report.Sound() || report.DigestMatches {
					t.Fatalf("after: %+v, %v", report, err)
				}
				named := slices.ContainsFunc(report.Damaged, func(k DamagedKey) bool { return string(k.Key) == c.key })
				if named != (c.key != "") || c.key == "" && !strings.Contains(report.DigestCause, ErrDigestMismatch.Error()) {
					t.Fatalf("after: %v, digest %q", report.Damaged, report.DigestCause)
				}
			}
			if len(told) != 1 || !errors.Is(told[0], ErrRecordDamaged) && !errors.Is(told[0], ErrDigestMismatch) {
				t.Fatalf("told %v", told)
			}
		})
	}
}

func sessionKeyOf(e *Engine) []byte {
	for id := range e.live.Load().applier.sessions.byID {
		return appendSessionKey(nil, id)
	}
	return nil
}

// victim is a key with a value that is found in a file of a table.
const victim = "key/0500"

func victimValue(i int) string { return fmt.Sprintf("value %04d %s", i, strings.Repeat("x", 60)) }

// tabled makes an engine whose records stand in a table, which it names.
func tabled(t *testing.T, o Options) (d *driver, path string) {
	t.Helper()
	d = newDriver(t, o)
	for i := range 1000 {
		d.put(fmt.Sprintf("key/%04d", i), victimValue(i))
	}
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	d.e = mustOpen(t, o)
	paths, err := d.e.live.Load().store.tables()
	if err != nil || len(paths) != 1 {
		t.Fatalf("tables %v, %v", paths, err)
	}
	return d, paths[0]
}

// flip changes one byte of a file in place: a mapping of it shows the change.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x55
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// victimPlace finds the value of the victim, the block around it, and the index.
func victimPlace(t testing.TB, path string) (value, block, blockEnd, index int64) {
	t.Helper()
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	value = int64(bytes.Index(all, []byte(victimValue(500))))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	raw, err := readTableIndex(f)
	if err != nil || value < 0 {
		t.Fatalf("value at %d, %v", value, err)
	}
	table := fb.GetRootAsTableIndex(raw, 0)
	for i := range table.OffsetsLength() {
		var b fb.BlockOffset
		table.Offsets(&b, i)
		if at := int64(b.Offset()); at <= value && value < at+int64(b.Len()) {
			block, blockEnd = at, at+int64(b.Len())
		}
	}
	if blockEnd == 0 || table.OffsetsLength() < 5 {
		t.Fatalf("no block of %d holds the value", table.OffsetsLength())
	}
	return value, block, blockEnd, int64(bytes.LastIndex(all, raw))
}

// holds tells whether a key lies in a damaged range.
func holds(r *DamagedRange, recordKey []byte) bool {
	return r.Whole || bytes.Compare(r.from, recordKey) <= 0 && (r.to == nil || bytes.Compare(recordKey, r.to) < 0)
}

func TestScrub_FlippedBytesInATable_AreFoundAndNamed(t *testing.T) {
	for name, c := range map[string]struct {
		at    func(value, block, end, index int64) int64
		named bool // the key itself, by its record's checksum
		whole bool
	}{
		"in a value":                       {func(value, _, _, _ int64) int64 { return value + 20 }, true, false},
		"in a block's first key":           {func(_, block, _, _ int64) int64 { return block + 4 + 3 }, false, false},
		"in the count of a block's places": {func(_, _, end, _ int64) int64 { return end - 4 - blockSumBytes(t, end) - 4 }, false, false},
		"in the places of a block":         {func(_, _, end, _ int64) int64 { return end - 4 - blockSumBytes(t, end) - 4 - 8 }, false, false},
		"in the length of a block's sum":   {func(_, _, end, _ int64) int64 { return end - 3 }, false, false},
		"in a block's sum":                 {func(_, _, end, _ int64) int64 { return end - 5 }, false, false},
		"in the index":                     {func(_, _, _, index int64) int64 { return index + 40 }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			var told []error
			o := engineOptions(t, t.TempDir())
			o.CacheBytes = -1
			o.OnDamage = func(err error) { told = append(told, err) }
			d, path := tabled(t, o)
			value, block, end, index := victimPlace(t, path)
			blockEnd, blockFile = end, path
			at := c.at(value, block, end, index)
			t.Cleanup(func() { flip(t, path, at) }) // so that the engine closes
			flip(t, path, at)
			report, err := d.e.Scrub(t.Context(), ScrubOptions{RateBytes: -1})
			if err != nil || report.Sound() {
				t.Fatalf("%+v, %v", report, err)
			}
			if len(report.DamagedRanges) != 1 || !holds(&report.DamagedRanges[0], appendRecordKey(nil, 1, []byte(victim))) || report.DamagedRanges[0].Whole != c.whole {
				t.Fatalf("ranges %v", report.DamagedRanges)
			}
			if !c.whole && (holds(&report.DamagedRanges[0], appendRecordKey(nil, 1, []byte("key/0100"))) || holds(&report.DamagedRanges[0], appendRecordKey(nil, 1, []byte("key/0900")))) {
				t.Fatalf("the range is too wide: %v", report.DamagedRanges)
			}
			named := slices.ContainsFunc(report.Damaged, func(k DamagedKey) bool {
				return k.Kind == kindRecord && k.Namespace == 1 && string(k.Key) == victim
			})
			if c.named && !named {
				t.Fatalf("keys %v", report.Damaged)
			}
			if len(told) != 1 || !errors.Is(told[0], ErrRecordDamaged) {
				t.Fatalf("told %v", told)
			}
			if c.named {
				if _, st := getStatus(d.e, victim); st != wire.StatusDamaged {
					t.Fatalf("the key reads as %v", st)
				}
			}
			t.Log(report.DamagedRanges[0], report.Damaged, report.DigestCause)
		})
	}
}

// What blockSumBytes needs of the table at hand.
var (
	blockEnd  int64
	blockFile string
)

// blockSumBytes is the length of the checksum at the end of the block that ends at end.
func blockSumBytes(t *testing.T, end int64) int64 {
	t.Helper()
	b, err := os.ReadFile(blockFile)
	if err != nil {
		t.Fatal(err)
	}
	return int64(binary.BigEndian.Uint32(b[end-4:]))
}

func getStatus(e *Engine, key string) (string, wire.Status) {
	rec, _, st, _ := e.Get(ReadOptions{Namespace: 1}, []byte(key), nil)
	return string(rec.Value), st
}

// TestApply_DamagedState_StopsWithoutAnAnswer writes over a record whose stored bytes have changed.
func TestApply_DamagedState_StopsWithoutAnAnswer(t *testing.T) {
	var fatal, told []error
	o := engineOptions(t, t.TempDir())
	o.CacheBytes = -1
	o.Fatal = func(err error) { fatal = append(fatal, err) }
	o.OnDamage = func(err error) { told = append(told, err) }
	d, path := tabled(t, o)
	value, _, _, _ := victimPlace(t, path)
	flip(t, path, value)
	before := d.e.Applied()
	called := false
	if _, ok := d.e.WaitApplied(d.index+1, func() { called = true }); !ok {
		t.Fatal("no room to wait")
	}
	if results := d.apply(putOp("other", []byte("v"), nil), putOp(victim, []byte("new"), nil)); results != nil {
		t.Fatalf("it was answered: %+v", results)
	}
	if len(fatal) != 1 || !errors.Is(fatal[0], ErrDamaged) || !errors.Is(fatal[0], ErrRecordDamaged) || !strings.Contains(fatal[0].Error(), victim) {
		t.Fatalf("fatal %v", fatal)
	}
	if len(told) != 1 || called || d.e.Applied() != before {
		t.Fatalf("told %v, called %v, applied %+v", told, called, d.e.Applied())
	}
	if results := d.apply(putOp("other", []byte("v"), nil)); results != nil || d.e.Applied() != before {
		t.Fatal("it went on")
	}
	if _, st := getStatus(d.e, "other"); st != wire.StatusNotFound {
		t.Fatalf("a part of the entry is visible: %v", st)
	}
	if st, err := d.e.Stats(); err != nil || st.Store.Damages != 1 {
		t.Fatalf("%d damages, %v", st.Store.Damages, err)
	}
}

func TestScrub_TwoAtOnceCancelledOrClosed_EndsInOrder(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d, _ := tabled(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	inside := make(chan struct{})
	first := make(chan error, 1)
	go func() { // ends when ctx does
		once := false
		_, err := d.e.Scrub(ctx, ScrubOptions{sliceBytes: 1, OnProgress: func(p ScrubProgress) {
			if !once && p.TablesTotal == 1 {
				once = true
				close(inside)
				<-ctx.Done()
			}
		}})
		first <- err
	}()
	<-inside
	if _, err := d.e.Scrub(t.Context(), ScrubOptions{}); !errors.Is(err, ErrScrubbing) {
		t.Fatalf("a second scrub: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	if _, err := d.e.Scrub(t.Context(), ScrubOptions{RateBytes: 5}); err == nil {
		t.Fatal("a rate of five bytes was taken")
	}
	// Nobody waits for a scrub to close.
	slow := make(chan error, 1)
	started := make(chan struct{})
	go func() { // ends when the engine is closed
		once := false
		_, err := d.e.Scrub(t.Context(), ScrubOptions{sliceBytes: 1, OnProgress: func(ScrubProgress) {
			if !once {
				once = true
				close(started)
				<-d.e.live.Load().store.stop
			}
		}})
		slow <- err
	}()
	<-started
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-slow; !errors.Is(err, ErrClosed) {
		t.Fatalf("closed: %v", err)
	}
}

// TestScrub_RateBound_TakesAtLeastThatLong reads some megabytes at a megabyte a second.
func TestScrub_RateBound_TakesAtLeastThatLong(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for i := range 25 {
		d.put(fmt.Sprint("k/", i), strings.Repeat("v", 100<<10))
	}
	start := time.Now()
	report, err := d.e.Scrub(t.Context(), ScrubOptions{RateBytes: scrubRateMin})
	if err != nil || !report.Sound() {
		t.Fatalf("%+v, %v", report, err)
	}
	if took, least := time.Since(start), time.Duration(report.Bytes-scrubRateMin)*time.Second/scrubRateMin; report.Bytes < 2<<20 || took < least {
		t.Fatalf("%d bytes in %v, at least %v", report.Bytes, took, least)
	}
}

func TestMissing_DamagedStore_TellsWhatIsLost(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	d, path := tabled(t, o)
	if err := d.e.Close(); err != nil {
		t.Fatal(err)
	}
	missing := func() *Lost {
		t.Helper()
		l, err := Missing(o.Dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(l)
		return l
	}
	if l := missing(); len(l.Damaged) != 0 || l.Tables < 1 || l.Checkpoint == nil || l.Checkpoint.Index != d.index || !strings.Contains(l.String(), "can be read") {
		t.Fatalf("a sound store: %+v", l)
	}
	value, _, _, _ := victimPlace(t, path)
	flip(t, path, value)
	if l := missing(); len(l.Damaged) != 1 || !holds(&l.Damaged[0], appendRecordKey(nil, 1, []byte(victim))) || l.Damaged[0].Whole || !strings.Contains(l.String(), `record "key/0`) {
		t.Fatalf("a flipped byte: %+v", l)
	}
	checkpoint := filepath.Join(groupDir(o.Dir, 1), checkpointFile)
	flip(t, checkpoint, 30)
	if l := missing(); len(l.Damaged) != 1 || l.Checkpoint != nil || !strings.Contains(l.String(), checkpointFile) {
		t.Fatalf("and a checkpoint that can't be read: %+v", l)
	}
	manifest := filepath.Join(filepath.Dir(path), "MANIFEST")
	flip(t, manifest, 0)
	if l := missing(); len(l.Damaged) != 1 || l.ManifestCause == "" || l.Tables < 1 {
		t.Fatalf("and a manifest: %+v", l)
	}
	flip(t, manifest, 0)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if l := missing(); len(l.Damaged) != 1 || !l.Damaged[0].Whole {
		t.Fatalf("and no table: %+v", l)
	}
	if _, err := Missing(filepath.Join(o.Dir, "nowhere"), 1); err == nil {
		t.Fatal("a directory that isn't there")
	}
}
