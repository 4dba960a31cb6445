package node

import (
	"kvstore/engine"
	"kvstore/feed"
	"kvstore/wire"
)

// earlierBytesMax bounds what is kept of the events that an entry holds before the place where a turn begins.
const earlierBytesMax = 32 << 20

// pastEvents finds for the events of one turn what was there before. The store keeps the state before and after each
// entry, so that is one of two: the event of the same key earlier in the same entry, or the record before the entry.
type pastEvents struct {
	x    *watch
	w    *sender
	from wire.Revision // the turn's events are above it

	ts       uint64 // the entry that w.seen is of
	recalled bool   // w.earlier is filled
	lost     bool   // it could not be
	// last is what the event at hand itself replaced in w.seen; lastOK: there was one.
	last   int
	lastOK bool
}

// note takes an event that stands in w.raw at. fill is for the event noted last.
func (p *pastEvents) note(e *wire.Event, at int) {
	if ts := wire.RevisionTS(e.Revision); ts != p.ts {
		p.ts = ts
		clear(p.w.seen)
	}
	p.last, p.lastOK = p.w.seen[string(e.Key)]
	p.w.seen[string(e.Key)] = at
}

// fill adds to e what was there before it, if that is kept and e has at most so many bytes then. What it adds are views
// that live until the next fill.
func (p *pastEvents) fill(e *wire.Event, most int) {
	ext, value, ok := p.find(e)
	if ok {
		e.PreviousExt, e.Previous = ext, value
		if e.Bytes() <= most {
			return
		}
		e.PreviousExt, e.Previous = nil, nil
	}
	e.Flags |= wire.EventPreviousLost
	p.x.st.all.counts.previousLost.Add(1)
}

// find looks for what was there before e.
func (p *pastEvents) find(e *wire.Event) (ext, value []byte, ok bool) {
	if p.lastOK {
		return putOf(p.w.raw[p.last:])
	}
	if p.ts == wire.RevisionTS(p.from) {
		// The turn begins within the entry.
		if !p.recalled {
			p.recalled, p.lost = true, !p.recall()
		}
		if p.lost {
			return nil, nil, false
		}
		if b, ok := p.w.earlier[string(e.Key)]; ok {
			return putOf(b)
		}
	}
	sh := p.w.s.shard
	// What expires in this entry may have been due before it.
	o := engine.ReadOptions{Namespace: p.x.ns, AtRevision: wire.MakeRevision(p.ts, 0) - 1, Due: true}
	rec, buf, st, err := sh.engine.Get(o, e.Key, p.w.past[:0])
	p.w.past = buf
	if err != nil {
		sh.readFailed(wire.OpGet, st, err)
	}
	if st != wire.StatusOK {
		return nil, nil, false
	}
	p.w.ext = wire.AppendExtMeta(p.w.ext[:0], &rec.Meta)
	if !p.x.keysOnly() {
		p.w.ext = append(p.w.ext, rec.Ext...)
		value = rec.Value
	}
	return p.w.ext, value, true
}

// putOf gives the record of the put that b begins with; ok is false when it is none, or b is empty.
func putOf(b []byte) (ext, value []byte, ok bool) {
	var e wire.Event
	if _, err := wire.NextEvent(b, &e); err != nil || e.Kind != wire.EventPut {
		return nil, nil, false
	}
	return e.Ext, e.Value, true
}

// recall reads the entry that the turn begins in from its first event up to there, and keeps in w.earlier the newest
// event of each key that the turn has of it.
func (p *pastEvents) recall() (ok bool) {
	x, w := p.x, p.w
	clear(w.earlier)
	for b := w.raw; len(b) > 0; {
		var e wire.Event
		var err error
		if b, err = wire.NextEvent(b, &e); err != nil {
			panic("BUG: an event that was just encoded does not decode: " + err.Error())
		}
		if wire.RevisionTS(e.Revision) == p.ts {
			w.earlier[string(e.Key)] = nil
		}
	}
	o := feed.WatchOptions{Namespace: x.ns, Request: x.q}
	o.Request.Flags &^= wire.WatchFromNow | wire.WatchNoPut | wire.WatchNoDelete | wire.WatchNoExpire
	o.Request.After = wire.MakeRevision(p.ts, 0) - 1
	watcher, err := x.st.all.feed.Watch(o, func() {})
	if err != nil {
		return false
	}
	defer watcher.Close()
	size := 0
	var ext []byte
	through := wire.Revision(0)
	take := func(e *feed.Event) bool {
		if e.Revision > p.from {
			return false
		}
		if old, wanted := w.earlier[string(e.Key)]; wanted {
			var now []byte
			now, ext = x.appendEvent(nil, ext, e)
			size += len(now) - len(old)
			w.earlier[string(e.Key)] = now
		}
		return size <= earlierBytesMax
	}
	// A Next may return before it has come so far.
	for err == nil && through < p.from && size <= earlierBytesMax {
		through, err = watcher.Next(take)
	}
	for key, b := range w.earlier {
		if b == nil {
			delete(w.earlier, key) // the entry has none before
		}
	}
	return err == nil && size <= earlierBytesMax
}
