package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kvstore/internal/pace"
)

// ErrScrubbing says that another scrub is under way: one at a time.
var ErrScrubbing = errors.New("another scrub is under way")

const (
	scrubRateDefault = 16 << 20
	scrubRateMin     = 1 << 20
	// scrubBurst is how much of what was not used is caught up on: no burst makes up for a longer pause.
	scrubBurst = time.Second

	// scrubSliceBytes is what is read at one revision before the next is taken: some milliseconds, so that
	// neither the pin nor the gate is held for long.
	scrubSliceBytes = 1 << 20
	// scrubPendingMax bounds the changes that are remembered while one slice is read; see partialSum.
	scrubPendingMax = 1 << 16
	// scrubAttemptsMax is how often a slice is begun anew because its revision or its room was lost.
	scrubAttemptsMax = 100
	// scrubProgressEvery is the shortest time between two calls of ScrubOptions.OnProgress.
	scrubProgressEvery = time.Second
)

// ScrubOptions configures a Scrub. The zero value of a field means its default.
type ScrubOptions struct {
	// RateBytes is how many bytes are read in a second. Default 16 MiB, at least 1 MiB; negative: no bound.
	// Higher: damage is found earlier, at the price of the disk's time.
	RateBytes int64
	// OnProgress is called at most once a second, by the goroutine of Scrub.
	OnProgress func(ScrubProgress)

	sliceBytes int64 // for tests: scrubSliceBytes
}

// ScrubProgress tells how far a scrub has come.
type ScrubProgress struct {
	// Tables of TablesTotal are checked, then Records of RecordsTotal, which is approximate.
	Tables, TablesTotal   int
	Records, RecordsTotal uint64
	// Bytes is what was read.
	Bytes int64
}

// ScrubReport is what a scrub has found.
type ScrubReport struct {
	// Index is the entry whose state the digest was compared at.
	Index uint64
	// Tables, Records and Bytes count what was read: tables of Badger, live records, and the bytes of both.
	Tables  int
	Records uint64
	Bytes   int64
	// Damaged names up to MissingMax keys whose value fails its checks, DamagedRanges up to MissingMax parts
	// of tables; More is how many of either there are beyond.
	Damaged       []DamagedKey
	DamagedRanges []DamagedRange
	More          int
	// DigestMatches: the state holds precisely what its log makes of it. False whenever there is damage.
	DigestMatches bool
	// DigestCause says why it doesn't, or why it could not be told.
	DigestCause string
	// Took is how long it took.
	Took time.Duration
}

// Sound reports whether nothing was found.
func (r *ScrubReport) Sound() bool {
	return r.DigestMatches && len(r.Damaged) == 0 && len(r.DamagedRanges) == 0
}

// Scrub reads everything that is stored, at a limited rate, beside reads and writes: the checksums of all tables,
// then every live record with its value, the expiry index, the sessions, and the state's digest. It changes
// nothing. A report with damage comes without an error, and Options.OnDamage is called. Errors: ErrScrubbing,
// ErrClosed, ctx's, ErrPinsExhausted, invalid options; the report then tells what was found until there.
//
// It sees what the kernel reads: a sector that has gone bad below a page that is cached is found later.
func (e *Engine) Scrub(ctx context.Context, o ScrubOptions) (ScrubReport, error) {
	if o.RateBytes == 0 {
		o.RateBytes = scrubRateDefault
	}
	if o.RateBytes > 0 && o.RateBytes < scrubRateMin {
		return ScrubReport{}, fmt.Errorf("cannot scrub at %d bytes a second: at least %d, or negative for no bound", o.RateBytes, int64(scrubRateMin))
	}
	if o.sliceBytes == 0 {
		o.sliceBytes = scrubSliceBytes
	}
	if !e.scrubbing.TryLock() {
		return ScrubReport{}, ErrScrubbing
	}
	defer e.scrubbing.Unlock()
	for {
		in := e.live.Load()
		s := scrubber{ctx: ctx, in: in, o: &o, start: time.Now(), pace: pace.New(o.RateBytes, scrubBurst)}
		err := s.run()
		if errors.Is(err, ErrClosed) && e.replaced(in) {
			continue // another state took its place, verified as a whole
		}
		s.report.Took = time.Since(s.start)
		if err != nil {
			return s.report, fmt.Errorf("cannot scrub: %w", err)
		}
		return s.report, nil
	}
}

// partialSum is the fingerprint of a part of a state that changes under the eyes of its reader: the sum over
// all records whose keys lie below cursor, at the newest published state.
//
// A scrub reads the records in slices, each at a revision of its own, since one revision held for hours would
// keep every version that is written over meanwhile. So that the slices add up to one state's digest, the
// applier tells each change of a record: one below the cursor changes the sum at once; one above it will be
// read, unless the slice that is being read, whose revision is older, ends above it: those are kept aside
// until it has ended. When the cursor has passed the last record, the sum is that of the newest state.
//
// Guarded by instance.mu.
type partialSum struct {
	cursor []byte
	recordSum

	reading  bool            // a slice; between two, what lies above the cursor need not be remembered
	pending  []pendingChange // while reading: changes at or above cursor
	overflow bool            // there were more than scrubPendingMax
}

// recordSum is what records add up to; differences wrap around.
type recordSum struct {
	digest         digest
	records, bytes uint64
}

type pendingChange struct {
	key []byte
	recordSum
}

func (s *recordSum) add(o *recordSum) {
	s.digest.add(o.digest)
	s.records += o.records
	s.bytes += o.bytes
}

// note takes the changes of one entry. REQUIRES: instance.mu held; the entry is about to be published.
func (s *partialSum) note(changed *overlay) {
	for i := range changed.all {
		st := &changed.all[i]
		if !st.dirty {
			continue
		}
		above := bytes.Compare(st.key, s.cursor) >= 0
		if above && (!s.reading || s.overflow) {
			continue
		}
		var d recordSum
		if st.oldExists {
			d.digest.sub(recordDigest(st.key, &st.old))
			d.records--
			d.bytes -= liveBytes(st.key, &st.old)
		}
		if st.exists {
			d.digest.add(recordDigest(st.key, &st.now))
			d.records++
			d.bytes += liveBytes(st.key, &st.now)
		}
		switch {
		case !above:
			s.add(&d)
		case len(s.pending) >= scrubPendingMax:
			s.overflow, s.pending = true, nil
		default:
			s.pending = append(s.pending, pendingChange{bytes.Clone(st.key), d})
		}
	}
}

// begin starts a slice at the newest point, which it returns.
func (s *partialSum) begin(in *instance) point {
	in.mu.Lock()
	defer in.mu.Unlock()
	s.reading, s.overflow, s.pending = true, false, s.pending[:0]
	return in.store.current()
}

// end ends the slice: it held part, and the next one begins at cursor. false: begin it anew.
func (s *partialSum) end(in *instance, cursor []byte, part *recordSum) (ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	s.reading = false
	if s.overflow {
		return false
	}
	s.cursor = append(s.cursor[:0], cursor...)
	s.add(part)
	for i := range s.pending {
		if p := &s.pending[i]; bytes.Compare(p.key, s.cursor) < 0 {
			s.add(&p.recordSum)
		}
	}
	clear(s.pending)
	return true
}

// scrubber is one scrub of one instance.
type scrubber struct {
	ctx    context.Context
	in     *instance
	o      *ScrubOptions
	start  time.Time
	report ScrubReport
	sum    partialSum

	pace       *pace.Pace
	progressed time.Time
	listed     int    // tables
	total      uint64 // records, when it began
	told       bool   // sawDamage was called

	// The slice at hand.
	slice struct {
		damaged []DamagedKey
		more    int
		last    []byte // the last key that was seen
	}
}

func (s *scrubber) run() error {
	whole, err := s.checkTables()
	if err != nil {
		return err
	}
	if whole {
		// Badger reads the index through its mapping and ends the process where that contradicts itself.
		s.report.DigestCause = "a table's index is damaged: the records were not read"
		return nil
	}
	s.in.mu.Lock()
	s.in.scrub, s.total = &s.sum, s.in.newest.records
	s.sum.cursor = []byte{familyRecord}
	s.in.mu.Unlock()
	defer func() {
		s.in.mu.Lock()
		s.in.scrub = nil
		s.in.mu.Unlock()
	}()
	if s.in.store.current().ts == 0 {
		s.report.DigestMatches = true // a virgin store
		return nil
	}
	if err := s.records(); err != nil {
		return err
	}
	if err := s.expiries(); err != nil {
		return err
	}
	return s.compare()
}

// checkTables checks the tables that there are now. whole: one can't be read at all.
func (s *scrubber) checkTables() (whole bool, err error) {
	paths, err := s.in.store.tables()
	if err != nil {
		return false, err
	}
	s.listed = len(paths)
	for _, path := range paths {
		var found []DamagedRange
		err := checkTable(path, func(n int) error { return s.spend(int64(n)) }, func(d DamagedRange) { found = append(found, d) })
		if err != nil {
			return whole, err
		}
		if len(found) > 0 {
			// A compaction truncates the tables that it has replaced, then removes them.
			now, err := s.in.store.tables()
			if err != nil {
				return whole, err
			}
			if !slices.Contains(now, path) {
				found = nil
			}
		}
		for _, d := range found {
			whole = whole || d.Whole
			s.sawDamage(errors.New(d.String()))
			if len(s.report.DamagedRanges) < MissingMax {
				s.report.DamagedRanges = append(s.report.DamagedRanges, d)
			} else {
				s.report.More++
			}
		}
		s.report.Tables++
		s.progress()
	}
	return whole, nil
}

// records reads every record, slice by slice, into the sum.
func (s *scrubber) records() error {
	lower, upper := familyRange(familyRecord)
	v := verifier{ctx: s.ctx}
	return s.slices(lower, upper, 0, func(r *reader) {
		v = verifier{ctx: s.ctx, r: r, rec: v.rec, value: v.value, key: v.key}
	}, func(key, stored []byte) (int, error) {
		if err := v.record(key, stored); err != nil {
			return len(stored), err
		}
		n := len(stored)
		if v.rec.chunks > 0 {
			n += int(v.rec.bodyLen())
		}
		if v.rec.Meta.ExpiresAt == 0 {
			return n, nil
		}
		found, err := v.r.get(v.key, func([]byte) error { return nil }) // v.record has made its index key
		if err == nil && !found {
			err = fmt.Errorf("%w: the record has a deadline and no place in the expiry index", ErrRecordDamaged)
		}
		return n, err
	}, func() recordSum { return recordSum{v.sum, v.records, v.bytes} })
}

// expiries reads the expiry index: each of its keys names a record with that deadline. records has shown the
// converse.
func (s *scrubber) expiries() error {
	lower, upper := familyRange(familyExpiry)
	var reading *reader
	var rec storedRecord
	var recordKey []byte
	return s.slices(lower, upper, 0, func(r *reader) { reading = r }, func(key, stored []byte) (int, error) {
		deadline, tail, ok := splitExpiryKey(key)
		if !ok {
			return 0, fmt.Errorf("%w: key %x in the expiry index", ErrRecordDamaged, key)
		}
		recordKey = append(append(recordKey[:0], familyRecord), tail...)
		found, err := reading.get(recordKey, func(stored []byte) error { return decodeRecord(recordKey, stored, &rec) })
		if err == nil && (!found || rec.Meta.ExpiresAt != deadline) {
			err = fmt.Errorf("%w: it names record %q with a deadline that it doesn't have", ErrRecordDamaged, keyForPeople(recordKey))
		}
		return len(stored), err
	}, nil)
}

// compare reads what is left, sessions, kept answers (of sessions and of idempotency keys) and the usage of namespaces, at one revision, and compares what it all adds up to
// with the digest that Apply has carried along. They are bounded: at the lowest rate it takes minutes, which a
// pin lasts.
func (s *scrubber) compare() error {
	var sum recordSum
	var want marker
	var release func()
	for attempt := 0; ; attempt++ {
		s.in.mu.Lock()
		sum, want = s.sum.recordSum, s.in.newest
		s.in.mu.Unlock()
		var err error
		if release, err = s.in.store.pin(want.ts); err == nil {
			break
		} else if !errors.Is(err, ErrCompacted) || attempt >= scrubAttemptsMax {
			return err
		}
	}
	defer release()
	for _, family := range [...]byte{familySession, familyJournal, familyOnce} {
		lower, upper := familyRange(family)
		v := verifier{ctx: s.ctx}
		var part digest
		err := s.slices(lower, upper, want.ts, func(r *reader) { v = verifier{ctx: s.ctx, r: r} }, func(key, stored []byte) (int, error) {
			return len(stored), v.sealed(key, stored)
		}, func() recordSum { part.add(v.sum); return recordSum{} })
		if err != nil {
			return err
		}
		sum.digest.add(part)
	}
	var held usage
	lower, upper := familyRange(familyUsage)
	err := s.slices(lower, upper, want.ts, func(*reader) {}, func(key, stored []byte) (int, error) {
		_, u, err := decodeUsage(key, stored)
		held.records += u.records
		held.bytes += u.bytes
		return len(stored), err
	}, nil)
	if err != nil {
		return err
	}
	var stored marker
	err = s.in.store.read(want.ts, func(r *reader) error { return readMarker(r, &stored) })
	if err != nil && !errors.Is(err, ErrRecordDamaged) {
		return err
	}
	s.report.Index = want.index
	switch {
	case err != nil:
		s.found(&DamagedKey{Kind: kindMarker, Key: markerKey, Cause: err.Error()})
		s.sawDamage(err)
		s.report.DigestCause = err.Error()
	case stored != want:
		s.mismatch("the marker is stored as %+v, and was %+v", stored, want)
	case sum.digest != want.digest:
		s.mismatch("%x carried along, %x computed over %d records", want.digest.bytes(), sum.digest.bytes(), sum.records)
	case sum.records != want.records || sum.bytes != want.bytes:
		s.mismatch("%d records of %d bytes carried along, %d of %d counted", want.records, want.bytes, sum.records, sum.bytes)
	case held != usage{} && held != usage{want.records, want.bytes}: // none is carried along below level 2
		s.mismatch("%d records of %d bytes carried along, %d of %d for all namespaces", want.records, want.bytes, held.records, held.bytes)
	case len(s.report.Damaged)+len(s.report.DamagedRanges) > 0:
		s.report.DigestCause = "it adds up, but there is damage"
	default:
		s.report.DigestMatches = true
	}
	return nil
}

func (s *scrubber) mismatch(format string, args ...any) {
	err := fmt.Errorf("%w: "+format, append([]any{ErrDigestMismatch}, args...)...)
	s.report.DigestCause = err.Error()
	s.sawDamage(err)
}

// slices reads [lower, upper) in slices, each at the newest point or all at ts, if that isn't 0. Before each
// slice it calls begin, for each key visit, which returns how much was read, and at the end of one that counts
// part, if there is one. Records are added to the sum.
func (s *scrubber) slices(lower, upper []byte, ts uint64, begin func(r *reader), visit func(key, stored []byte) (int, error), part func() recordSum) error {
	summed := lower[0] == familyRecord
	for attempt := 0; len(lower) > 0; {
		at := ts
		release := func() {}
		if at == 0 {
			p := s.sum.begin(s.in)
			var err error
			if release, err = s.in.store.pin(p.ts); errors.Is(err, ErrCompacted) && attempt < scrubAttemptsMax {
				attempt++
				continue
			} else if err != nil {
				return err
			}
			at = p.ts
		}
		next, n, err := s.readSlice(at, lower, upper, begin, visit)
		release()
		var sum recordSum
		if err == nil && part != nil {
			sum = part()
		}
		switch {
		case errors.Is(err, ErrCompacted) && ts == 0 && attempt < scrubAttemptsMax:
			attempt++
			continue
		case err != nil:
			return err
		case summed:
			cursor := next
			if len(next) == 0 {
				cursor = upper
			}
			if !s.sum.end(s.in, cursor, &sum) {
				if attempt++; attempt > scrubAttemptsMax {
					return fmt.Errorf("more than %d changes while %d bytes were read, %d times", scrubPendingMax, n, attempt)
				}
				continue
			}
			s.report.Records += sum.records
		}
		attempt = 0
		for i := range s.slice.damaged {
			s.found(&s.slice.damaged[i])
		}
		s.report.More += s.slice.more
		lower = append(lower[:0], next...)
		if err := s.spend(n); err != nil {
			return err
		}
		s.progress()
	}
	return nil
}

// readSlice reads from lower on at ts. next is where the next slice begins, empty when this was the last.
func (s *scrubber) readSlice(ts uint64, lower, upper []byte, begin func(r *reader), visit func(key, stored []byte) (int, error)) (next []byte, n int64, err error) {
	sl := &s.slice
	sl.damaged, sl.more, sl.last = sl.damaged[:0], 0, append(sl.last[:0], lower...)
	guarded := func(key, stored []byte) (n int, err error) {
		defer caught(&err) // what it reads besides may be damaged too
		return visit(key, stored)
	}
	err = s.in.store.read(ts, func(r *reader) error {
		begin(r)
		return r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
			if n >= s.o.sliceBytes {
				next = append(next, key...)
				return false, nil
			}
			sl.last = append(sl.last[:0], key...)
			stored, err := value()
			if err == nil {
				var read int
				read, err = guarded(key, stored)
				n += int64(read)
			}
			n += int64(len(key))
			if errors.Is(err, ErrRecordDamaged) {
				s.damagedKey(key, err)
				err = nil
			}
			return true, err
		})
	})
	if errors.Is(err, ErrRecordDamaged) {
		// It wasn't a key that failed, but the way from one to the next.
		s.damagedKey(sl.last, fmt.Errorf("behind it: %w", err))
		return s.beyondDamage(sl.last), n, nil
	}
	return next, n, err
}

// damagedKey notes a key in the slice at hand.
func (s *scrubber) damagedKey(key []byte, err error) {
	s.sawDamage(err)
	if len(s.slice.damaged) >= MissingMax {
		s.slice.more++
		return
	}
	k := describeKey(key)
	k.Cause = err.Error()
	s.slice.damaged = append(s.slice.damaged, k)
}

// found takes a damaged key into the report.
func (s *scrubber) found(k *DamagedKey) {
	if len(s.report.Damaged) >= MissingMax {
		s.report.More++
		return
	}
	s.report.Damaged = append(s.report.Damaged, *k)
}

// beyondDamage gives the end of the damaged part of a table that stands behind key; empty if none is known: then
// nothing beyond key is read.
func (s *scrubber) beyondDamage(key []byte) (next []byte) {
	for i := range s.report.DamagedRanges {
		to := s.report.DamagedRanges[i].to
		if bytes.Compare(to, key) > 0 && (len(next) == 0 || bytes.Compare(to, next) < 0) {
			next = bytes.Clone(to)
		}
	}
	return next
}

// sawDamage tells the first damage of the scrub.
func (s *scrubber) sawDamage(err error) {
	if s.told {
		return
	}
	s.told = true
	if !errors.Is(err, ErrRecordDamaged) && !errors.Is(err, ErrDigestMismatch) {
		err = fmt.Errorf("%w: %w", ErrRecordDamaged, err)
	}
	s.in.store.sawDamage(fmt.Errorf("a scrub found: %w", err))
}

// spend counts n bytes and waits until they were due. Errors: ctx's, ErrClosed.
func (s *scrubber) spend(n int64) error {
	s.report.Bytes += n
	if err := s.ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.in.store.stop:
		return ErrClosed
	default:
	}
	pause := s.pace.Due(n)
	if pause <= 0 {
		return nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-s.in.store.stop:
		return ErrClosed
	}
}

// progress tells how far it has come.
func (s *scrubber) progress() {
	now := time.Now()
	if s.o.OnProgress == nil || now.Sub(s.progressed) < scrubProgressEvery {
		return
	}
	s.progressed = now
	s.o.OnProgress(ScrubProgress{
		Tables: s.report.Tables, TablesTotal: s.listed,
		Records: s.report.Records, RecordsTotal: s.total,
		Bytes: s.report.Bytes,
	})
}
