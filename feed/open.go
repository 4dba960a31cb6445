package feed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"kvstore/internal/record"
)

// Open opens the feed in o.Dir and cuts it back to the entry o.Index; what follows comes again from the log. If what is
// there is not complete up to that entry, or is of another state, the feed begins anew behind it: a watcher of what
// was before gets ErrCompacted.
func Open(o Options) (*Feed, error) {
	o = o.withDefaults()
	if err := o.Check(); err != nil {
		return nil, fmt.Errorf("cannot open the feed: %w", err)
	}
	f := &Feed{o: o, log: o.Logger, flushBytes: min(flushBytes, o.RingBytes/4), recordBytes: recordBytesTarget, scanBytes: scanMax, bulk: bulk{least: bulkBytes}}
	f.watchers.init()
	all, err := f.find()
	if err == nil {
		err = f.resume(all)
	}
	if err != nil {
		err = fmt.Errorf("cannot open the feed at %q: %w", o.Dir, err)
		for _, s := range all {
			if s.file != nil {
				err = errors.Join(err, s.file.Close())
			}
		}
		for _, s := range f.segments {
			if s.file != nil && !holds(all, s) {
				err = errors.Join(err, s.file.Close())
			}
		}
		return nil, err
	}
	return f, nil
}

func holds(all []found, s *segment) bool {
	for _, a := range all {
		if a.segment == s {
			return true
		}
	}
	return false
}

// find lists what is there; it makes the directory.
func (f *Feed) find() ([]found, error) {
	err := os.Mkdir(f.o.Dir, 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		return findSegments(f.o.Dir)
	case err != nil:
		return nil, err
	}
	return nil, record.SyncDir(filepath.Dir(f.o.Dir))
}

// resume takes over what is there, or begins anew.
func (f *Feed) resume(all []found) error {
	if len(all) == 0 {
		if f.o.Index > 0 {
			f.log.Info("the change feed begins here: watchers can't begin at earlier revisions on this node", "index", f.o.Index)
		}
		return f.anew(nil)
	}
	at := f.last(all)
	if at < 0 {
		f.log.Warn("the change feed doesn't reach to the checkpoint and begins anew: watchers can't begin at earlier revisions on this node", "index", f.o.Index)
		return f.anew(all)
	}
	s := all[at].segment
	r, err := s.scan(f.o.Index)
	if err != nil {
		return err
	}
	if !r.reached && r.err == nil && at+1 < len(all) {
		// There was nothing between its last record and the next segment.
		next := &all[at+1]
		r.reached = next.whole && next.start == s.end && r.cut == s.end && next.header.index >= f.o.Index
	}
	if reason := f.unfit(s, &r); reason != nil {
		f.log.Warn("the change feed doesn't reach to the checkpoint and begins anew: watchers can't begin at earlier revisions on this node", "index", f.o.Index, "reason", reason)
		return f.anew(all)
	}
	from := chain(all[:at+1])
	if from > 0 {
		f.log.Warn("the oldest part of the change feed doesn't fit to the rest and is removed", "segments", from)
	}
	return f.takeOver(all, from, at, &r)
}

// last gives the segment that holds the entry Index, or in which it would stand, or that begins right behind it; -1 if
// there is none.
func (f *Feed) last(all []found) int {
	at := -1
	for i := range all {
		if h := &all[i].header; all[i].whole && (h.index < f.o.Index || h.index == f.o.Index && at < 0) {
			at = i
		}
	}
	return at
}

// unfit says why what was found in s is not the feed of the state that is opened; nil: it is.
func (f *Feed) unfit(s *segment, r *scanned) error {
	o := &f.o
	switch {
	case !r.reached:
		return fmt.Errorf("it is complete up to entry %d: %w", r.at.index, errors.Join(errShort, r.err))
	case r.at.index == o.Index && (r.at.ts != o.TS || r.at.revision != o.Revision):
		return fmt.Errorf("%w: at entry %d it has ts %d and revision %d, the state has %d and %d", errOther, o.Index, r.at.ts, r.at.revision, o.TS, o.Revision)
	case r.at.revision > o.Revision, r.at.index != o.Index && s.header.follows != o.TS-o.Index:
		return fmt.Errorf("%w: it has ts %d and revision %d at entry %d, the state has %d and %d at %d", errOther, r.at.ts, r.at.revision, r.at.index, o.TS, o.Revision, o.Index)
	}
	return nil
}

var (
	errShort = errors.New("what follows is missing")
	errOther = errors.New("it belongs to another state")
)

// chain gives the first of the segments from which on they fit together up to the last.
func chain(all []found) (from int) {
	from = len(all) - 1
	for from > 0 {
		before, s := &all[from-1], &all[from]
		if !before.whole || before.end != s.start || before.header.index > s.header.index || before.header.revision > s.header.revision {
			break
		}
		from--
	}
	return from
}

// takeOver goes on with the segments from to at, cut as the scan says. Before it removes anything behind the cut, it
// makes durable that the feed is complete up to the checkpoint: the record that said so may be there.
func (f *Feed) takeOver(all []found, from, at int, r *scanned) error {
	s := all[at].segment
	if err := s.file.Truncate(r.cut - s.start); err != nil {
		return err
	}
	for _, a := range all[from : at+1] {
		f.segments = append(f.segments, a.segment)
	}
	s.end = r.cut
	f.at = state{f.o.Index, f.o.TS, r.at.time, f.o.Revision}
	f.base = s.header.follows
	f.recorded = r.at.index
	f.end, f.flushed = r.cut, r.cut
	f.ring = newRing(f.o.RingBytes)
	f.fresh, f.freshEnd = f.end, f.end
	f.first = mark{f.segments[0].header.revision, f.segments[0].start}
	s.dirty = true
	if err := f.sync(f.o.Index); err != nil {
		return err
	}
	f.shown, f.published = f.at, f.end
	f.fresh, f.freshEnd = f.end, f.end
	for i := len(all) - 1; i > at; i-- { // the newest first: what a crash leaves has no hole
		if err := removeFound(&all[i]); err != nil {
			return err
		}
	}
	for i := range from {
		if err := removeFound(&all[i]); err != nil {
			return err
		}
	}
	return record.SyncDir(f.o.Dir)
}

func removeFound(a *found) error {
	file := a.file
	a.file = nil
	return removeSegment(a.segment, file)
}

// anew removes what is there and begins behind the checkpoint.
func (f *Feed) anew(all []found) error {
	var offset int64
	var err error
	for i := range all {
		offset = max(offset, all[i].end)
		err = errors.Join(err, removeFound(&all[i]))
	}
	if err != nil {
		return err
	}
	f.begin(state{index: f.o.Index, ts: f.o.TS, revision: f.o.Revision}, offset)
	return f.sync(f.o.Index)
}
