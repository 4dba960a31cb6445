package consensus

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestLogCache_RandomOperations_NeverAnswersWrongAndStaysBounded(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := logCache{bytesMax: 20_000}
	truth := map[uint64]*raft.Log{}
	var last uint64
	held := false
	for range 5000 {
		switch rnd.IntN(6) {
		default:
			var batch []*raft.Log
			for range 1 + rnd.IntN(5) {
				last++
				l := &raft.Log{Index: last, Term: rnd.Uint64(), Data: make([]byte, rnd.IntN(2000))}
				truth[last] = l
				batch = append(batch, l)
			}
			c.add(batch)
		case 4: // the tail
			low := last - min(last, uint64(rnd.IntN(10))) + 1
			c.drop(low, last)
			for i := low; i <= last; i++ {
				delete(truth, i)
			}
			last = low - 1
		case 5: // the head, or everything
			high := last - min(last, uint64(rnd.IntN(20)))
			c.drop(1, high)
			for i := range truth {
				if i <= high {
					delete(truth, i)
				}
			}
			if rnd.IntN(20) == 0 {
				last += 100 // a snapshot took the place of what is between
			}
		}
		held = held || c.count > 0
		var sum int64
		for i := c.first; i < c.first+c.count; i++ {
			sum += entryBytes(c.at(i))
		}
		if sum != c.bytes || c.bytes > c.bytesMax {
			t.Fatalf("it says %d bytes, holds %d, bound %d", c.bytes, sum, c.bytesMax)
		}
		for i := range c.ring { // nothing is kept alive beside
			if l := &c.ring[i]; l.Index != 0 && (l.Index < c.first || l.Index >= c.first+c.count) {
				t.Fatalf("entry %d is still there, cached are %d to %d", l.Index, c.first, c.first+c.count)
			}
		}
		for i := last - min(last, 40); i <= last+2; i++ {
			var l raft.Log
			if !c.get(i, &l) {
				continue
			}
			if want := truth[i]; want == nil || want.Index != l.Index || want.Term != l.Term || !bytes.Equal(want.Data, l.Data) {
				t.Fatalf("entry %d is %d of term %d, want %+v", i, l.Index, l.Term, want)
			}
		}
	}
	if !held {
		t.Error("it never holds anything")
	}
	big := logCache{bytesMax: 100}
	big.add([]*raft.Log{{Index: 1, Data: make([]byte, 1000)}})
	if big.count != 0 || big.bytes != 0 {
		t.Errorf("an entry above the bound is kept: %d entries, %d bytes", big.count, big.bytes)
	}
	c.add([]*raft.Log{{Index: last + 1}})
	c.enable(false)
	c.add([]*raft.Log{{Index: last + 2}})
	if c.get(last+1, &raft.Log{}) || c.get(last+2, &raft.Log{}) || c.bytes != 0 {
		t.Error("a cache that was turned off answers")
	}
	c.enable(true)
	c.add([]*raft.Log{{Index: last + 3}})
	if !c.get(last+3, &raft.Log{}) {
		t.Error("a cache that was turned on again does not answer")
	}
	off := logCache{bytesMax: -1}
	off.add([]*raft.Log{{Index: 1}})
	if off.get(1, &raft.Log{}) {
		t.Error("a cache that is off answers")
	}
}

func TestLogSizes_KeepsAboutAsMuchAsAskedAndNeverLess(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := logSizes{step: 1000}
	size := map[uint64]int64{}
	first, next := uint64(1), uint64(1)
	check := func() {
		t.Helper()
		for _, want := range []int64{0, 500, 5000, 50_000, 1 << 40} {
			from := s.newest(want)
			if from > next {
				t.Fatalf("newest(%d) = %d in a log of %d to %d", want, from, first, next-1)
			}
			var kept, all int64
			for i := first; i < next; i++ {
				all += size[i]
				if i >= from {
					kept += size[i]
				}
			}
			// Truncations leave an uncertainty of what lies between two samples.
			if slack := int64(20_000); want > 0 && kept < min(want, all)-slack || kept > want+slack && want < all {
				t.Fatalf("asked to keep %d of %d bytes: %d are left", want, all, kept)
			}
		}
	}
	for range 300 {
		for range rnd.IntN(30) {
			size[next] = int64(rnd.IntN(800) + 1)
			s.add(next, size[next])
			next++
		}
		switch rnd.IntN(10) {
		case 0: // the head
			first += uint64(rnd.IntN(int(next - first + 1)))
			s.cut(first, next)
		case 1: // the tail
			next -= min(next-first, uint64(rnd.IntN(5)))
			s.cut(first, next)
		}
		check()
	}
	if n := len(s.samples); n > 10_000 {
		t.Errorf("%d samples", n)
	}
	// After a restart sizes are estimated.
	s.estimate(first, next-1, func(i uint64, l *raft.Log) error {
		l.Data = make([]byte, max(size[i]-entryOverhead, 0))
		return nil
	})
	all := int64(0)
	for i := first; i < next; i++ {
		all += size[i]
	}
	if got := s.newest(all * 4); got != 0 {
		t.Errorf("four times as much as there is begins at %d", got)
	}
	s.cut(next, next)
	if len(s.samples) != 0 || s.newest(100) != 0 {
		t.Errorf("an empty log has %d samples, keep from %d", len(s.samples), s.newest(100))
	}
}

func TestLogPins_HoldUntilGraceIsOver(t *testing.T) {
	var p logPins
	if _, ok := p.lowest(); ok {
		t.Error("pinned before anybody did")
	}
	a, b := p.pin(10), p.pin(20)
	p.move(b, 5)
	if i, ok := p.lowest(); !ok || i != 5 {
		t.Errorf("lowest = %d, %v", i, ok)
	}
	p.release(b, time.Hour)
	p.release(b, 0) // only the first counts
	if i, _ := p.lowest(); i != 5 {
		t.Errorf("within its grace: %d", i)
	}
	p.release(a, 0)
	b.expires = time.Now().Add(-1)
	eventually(t, "all pins are gone", func() bool { _, ok := p.lowest(); return !ok })
}

func TestDeleteRange_SnapshotOnItsWay_LogBehindItStays(t *testing.T) {
	durable := Durable{Index: 80, Term: 3}
	s := mustOpenLog(t, t.TempDir(), func(o *logStoreOptions) { o.durable = func() (Durable, bool) { return durable, true } })
	defer s.mustClose(t)
	appendEntries(t, s, 100, 100)
	pin := s.pins.pin(40)
	if err := s.DeleteRange(1, 90); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, s, 40, 100, 100)
	s.pins.release(pin, 0)
	eventually(t, "the pin is gone", func() bool { _, ok := s.pins.lowest(); return !ok })
	if err := s.DeleteRange(40, 90); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, s, 80, 100, 100)
	s.compacting = func() bool { return true }
	if err := s.DeleteRange(1, 1<<40); err != nil { // whatever a compaction asks for, something stays
		t.Fatal(err)
	}
	checkEntries(t, s, 80, 100, 100)
}

func TestDeleteRange_BytesToKeep_AreKept(t *testing.T) {
	dir := t.TempDir()
	change := func(o *logStoreOptions) {
		o.keep = 100 << 10
		o.durable = func() (Durable, bool) { return Durable{Index: 1 << 40, Term: 3}, true }
	}
	s := mustOpenLog(t, dir, change)
	appendEntries(t, s, 1000, 1<<10)
	s.mustClose(t)
	s = mustOpenLog(t, dir, change)
	defer s.mustClose(t)
	if err := s.adopt(Durable{Index: 1000, Term: 3}, true); err != nil { // the sizes are estimated now
		t.Fatal(err)
	}
	if err := s.DeleteRange(1, 999); err != nil {
		t.Fatal(err)
	}
	first, last, err := s.bounds()
	if err != nil || last != 1000 {
		t.Fatalf("%d to %d, %v", first, last, err)
	}
	if kept := last - first + 1; kept < 96 || kept > 250 {
		t.Errorf("%d entries of 1 KiB were kept for 100 KiB", kept)
	}
}

func TestLogSizes_Since_KeepsWhatIsYoungAndLittleElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := logSizes{step: 1000}
		if got := s.since(time.Second); got != 0 {
			t.Errorf("of nothing: %d", got)
		}
		at := map[uint64]time.Time{}
		for i := uint64(1); i <= 1000; i++ {
			s.add(i, 100)
			at[i] = time.Now()
			time.Sleep(100 * time.Millisecond)
		}
		for _, d := range []time.Duration{0, time.Second, 20 * time.Second, 99 * time.Second} {
			from := s.since(d)
			if from > 1 && time.Since(at[from-1]) <= d {
				t.Errorf("entry %d is younger than %v and not kept: kept from %d", from-1, d, from)
			}
			if old := from + 10; old < 1000 && time.Since(at[old]) > d {
				t.Errorf("entry %d is older than %v and kept: kept from %d", old, d, from)
			}
		}
		if got := s.since(time.Hour); got != 0 {
			t.Errorf("all is younger than an hour, but kept from %d", got)
		}
		// After a start everything counts as new, and then ages.
		s.estimate(1, 1000, func(_ uint64, l *raft.Log) error { l.Data = make([]byte, 100); return nil })
		if got := s.since(time.Second); got != 0 {
			t.Errorf("after a start kept from %d", got)
		}
		time.Sleep(time.Minute)
		if got := s.since(time.Second); got < 900 {
			t.Errorf("a minute after a start kept from %d", got)
		}
	})
}

func TestCutBack_KeptByTime_BetweenTheTwoBoundsInBytes(t *testing.T) {
	const size = 1 << 10
	for name, c := range map[string]struct {
		keep, keepMax int64
		age           time.Duration // of the first 500 entries when the others are appended
		want          uint64        // what is kept, in entries, give or take a step
	}{
		"all is young, the upper bound":      {100 << 10, 700 << 10, time.Second, 700},
		"half is young":                      {100 << 10, 1 << 30, time.Minute, 500},
		"half is young, more to keep anyway": {600 << 10, 1 << 30, time.Minute, 600},
		"nothing but by time":                {-1, 1 << 30, time.Minute, 500},
		"nothing by time":                    {100 << 10, -1, time.Second, 100},
		"nothing at all":                     {-1, -1, time.Second, 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &logStore{keep: c.keep, keepMax: c.keepMax, sizes: logSizes{step: 64 << 10}, restoreTime: func() time.Duration { return restoreMin }}
			for i := uint64(1); i <= 1000; i++ {
				if i == 501 {
					time.Sleep(c.age)
				}
				s.sizes.add(i, size)
			}
			high := s.cutBack(999, Durable{Index: 1 << 40, Term: 1}, true)
			if kept := 1000 - high; kept < c.want || kept > c.want+65 {
				t.Errorf("%s: %d entries are kept, want about %d", name, kept, c.want)
			}
		})
	}
}

// Where little is kept behind the checkpoint, a tail that reaches into it may begin at the very first entry, as a
// compaction does.
func TestDeleteRange_TailInsideTheCheckpointFromTheFirstEntry_StopsTheNode(t *testing.T) {
	s := mustOpenLog(t, t.TempDir(), func(o *logStoreOptions) {
		o.keep, o.keepMax = -1, -1
		o.durable = func() (Durable, bool) { return Durable{Index: 8, Term: 3}, true }
	})
	defer s.mustClose(t)
	appendEntries(t, s, 10, 10)
	if err := s.DeleteRange(1, 6); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, s, 7, 10, 10)
	// While raft may be compacting, nobody knows which of the two it is: then only what the checkpoint covers goes.
	s.compacting = func() bool { return true }
	if err := s.DeleteRange(7, 10); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, s, 8, 10, 10) // the checkpoint's own entry stays
	appendEntries(t, s, 1, 10)
	s.durable = func() (Durable, bool) { return Durable{Index: 10, Term: 3}, true }
	s.compacting = func() bool { return false }
	if err := s.DeleteRange(8, 11); err == nil || s.fault.err() == nil {
		t.Errorf("committed entries were given up: %v", err)
	}
	checkBounds(t, s, 8, 11)
}

// checkBounds verifies where the log begins and ends, past its failure.
func checkBounds(t *testing.T, s *logStore, first, last uint64) {
	t.Helper()
	if f, l, err := s.bounds(); err != nil || f != first || l != last {
		t.Errorf("the log is %d to %d (%v), want %d to %d", f, l, err, first, last)
	}
}

func TestOptions_LogKeep_NegativeMeansNothingIsKept(t *testing.T) {
	for _, c := range []struct{ keep, keepMax, wantKeep, wantMax int64 }{
		{0, 0, 256 << 20, 1 << 30},
		{-1, 0, -1, -1},
		{-1, 5, -1, 5},
		{7, -1, 7, -1},
	} {
		o := Options{LogKeepBytes: c.keep, LogKeepBytesMax: c.keepMax}.withDefaults()
		if o.LogKeepBytes != c.wantKeep || o.LogKeepBytesMax != c.wantMax {
			t.Errorf("%+v: %d, %d", c, o.LogKeepBytes, o.LogKeepBytesMax)
		}
	}
}

func TestDeleteRange_TailInsideTheCheckpoint_StopsTheNode(t *testing.T) {
	s := mustOpenLog(t, t.TempDir(), func(o *logStoreOptions) {
		o.durable = func() (Durable, bool) { return Durable{Index: 5, Term: 3}, true }
	})
	defer s.mustClose(t)
	appendEntries(t, s, 10, 10)
	if err := s.DeleteRange(7, 10); err != nil {
		t.Fatal(err)
	}
	checkEntries(t, s, 1, 6, 10)
	if err := s.DeleteRange(5, 6); err == nil || s.fault.err() == nil {
		t.Errorf("committed entries were replaced: %v", err)
	}
}

func TestLogBase_EmptiedLog_TakesOnlyWhatFollowsTheSnapshot(t *testing.T) {
	durable := Durable{}
	s := mustOpenLog(t, t.TempDir(), func(o *logStoreOptions) {
		o.durable = func() (Durable, bool) { return durable, durable.Index > 0 }
	})
	defer s.mustClose(t)
	if err := s.adopt(durable, false); err != nil {
		t.Fatal(err)
	}
	appendEntries(t, s, 20, 10)
	durable = Durable{Index: 12, Term: 9}
	if err := s.installed(12, 9); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteRange(1, 20); err != nil {
		t.Fatal(err)
	}
	// raft still believes in 13 to 20: it must find the snapshot's entry and, beyond it, conflicts.
	if !s.overrated() {
		t.Error("not overrated")
	}
	var l raft.Log
	if err := s.GetLog(12, &l); err != nil || l.Term != 9 || l.Index != 12 {
		t.Errorf("entry 12: %+v, %v", l, err)
	}
	if err := s.GetLog(20, &l); err != nil || l.Term != 0 {
		t.Errorf("entry 20: %+v, %v", l, err)
	}
	if _, ok := s.termOf(20); ok {
		t.Error("an entry that is gone has a term")
	}
	for _, absent := range []uint64{0, 1, 11, 21} {
		if err := s.GetLog(absent, &l); err != raft.ErrLogNotFound { // raft compares by identity
			t.Errorf("entry %d: %v", absent, err)
		}
	}
	if err := s.DeleteRange(13, 20); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := s.StoreLog(testEntry(13+uint64(i), 10)); err != nil {
			t.Fatal(err)
		}
	}
	checkEntries(t, s, 13, 15, 10)
	if s.overrated() {
		t.Error("still overrated")
	}
	if term, ok := s.termOf(12); !ok || term != 9 {
		t.Errorf("the entry before the log: %d, %v", term, ok)
	}
	if err := s.GetLog(16, &l); err != raft.ErrLogNotFound {
		t.Errorf("entry 16: %v", err)
	}
	// A conflict at the very first entry: what comes next must take its place.
	if err := s.DeleteRange(13, 15); err != nil {
		t.Fatal(err)
	}
	if err := s.StoreLog(testEntry(14, 10)); err == nil || s.fault.err() == nil {
		t.Errorf("a gap was stored: %v", err)
	}
}
