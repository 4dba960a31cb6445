package engine

import (
	"bytes"
	"fmt"

	"kvstore/wire"
)

// scanVisitsMax bounds the records that one page looks at: those that have expired and are not removed yet are passed
// over, a count lists none. scanReadBytesMax bounds what is stored of them, without pieces: Badger copies it even if only
// the key is asked for. A page that ends by either holds fewer items than asked for, perhaps none, and a cursor.
const (
	scanVisitsMax    = 100_000
	scanReadBytesMax = 32 << 20
)

// Scan appends one page of a listing to dst, as wire.ScanPage describes it. All pages of one listing show
// one revision: the first page's, held while pages are asked for and as long as the store keeps it. o's
// AtRevision and MinRevision count for the first page. st is StatusOK, StatusBadRequest (a cursor that is
// not of this listing), StatusCompacted (the revision is no longer kept, or its history is forgotten: start
// anew), StatusFutureRevision (not applied here yet), or as for Get. payload is dst when st isn't StatusOK.
//
// REQUIRES: req passed wire.DecodeScanRequest.
func (e *Engine) Scan(o ReadOptions, req *wire.ScanRequest, dst []byte) (payload []byte, st wire.Status, err error) {
	for {
		in := e.live.Load()
		if payload, st, err = in.scan(&o, req, dst); st != wire.StatusDraining || !e.replaced(in) {
			return payload, st, err
		}
	}
}

// scan is Scan on one instance.
func (in *instance) scan(o *ReadOptions, req *wire.ScanRequest, dst []byte) (payload []byte, st wire.Status, err error) {
	s := scan{in: in, req: req, dst: dst, start: len(dst), at: o.AtRevision, listing: listingHash(o.Namespace, req)}
	at, st := in.place(o)
	if st != wire.StatusOK {
		return dst, st, nil
	}
	s.bounds(o.Namespace)
	if len(req.Cursor) > 0 {
		if st := s.resume(); st != wire.StatusOK {
			return dst, st, nil
		}
		at = wire.RevisionTS(s.from.rev)
	}
	if err := in.store.read(at, s.read); err != nil {
		st, err := in.refused(err)
		return dst, st, err
	}
	if s.inexact {
		return dst, wire.StatusCompacted, nil
	}
	if s.more {
		in.pages.hold(wire.RevisionTS(s.p.revision))
	}
	return s.finish(), wire.StatusOK, nil
}

// scan is one page in the making.
type scan struct {
	in      *instance
	req     *wire.ScanRequest
	at      wire.Revision
	from    cursor // where the page before ended; zero for the first page
	listing uint64

	lower, upper []byte // record keys: [lower, upper)

	// The page. read starts it afresh each time it runs.
	dst       []byte
	start     int // of the page in dst
	p         point
	count     int // items, or keys that were counted
	visits    int
	readBytes int
	more      bool
	last      []byte // user key of the last record that was looked at, or the common prefix
	rolled    bool   // last is a common prefix, and listed: what follows begins behind all its keys
	inexact   bool   // what is read isn't surely what was asked for

	// The record at hand.
	key   []byte // record key
	rec   storedRecord
	r     *reader
	bound []byte // scratch: a record key
}

// bounds turns the request's prefix and range into record keys.
func (s *scan) bounds(ns uint32) {
	lower, end := s.req.Prefix, s.req.End
	if string(s.req.Start) > string(lower) {
		lower = s.req.Start
	}
	s.lower = appendRecordKey(nil, ns, lower)
	s.upper = successor(appendRecordKey(nil, ns, s.req.Prefix))
	if len(end) > 0 {
		s.upper = least(s.upper, appendRecordKey(nil, ns, end))
	}
}

func least(a, b []byte) []byte {
	if string(b) < string(a) {
		return b
	}
	return a
}

// successor gives the smallest key above all keys that begin with prefix. REQUIRES: not all bytes of prefix
// are 0xff; record keys begin with a letter.
func successor(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			prefix[i]++
			return prefix[:i+1]
		}
	}
	panic("BUG: no key lies above the prefix")
}

// resume takes the place and the revision from the request's cursor.
func (s *scan) resume() wire.Status {
	if err := decodeCursor(s.req.Cursor, &s.from); err != nil || s.from.listing != s.listing {
		return wire.StatusBadRequest
	}
	if s.from.history != s.in.identity.Load().historyID || wire.RevisionTS(s.from.rev) == 0 {
		return wire.StatusCompacted
	}
	// The bounds' own prefix: family and namespace.
	key := append(append([]byte(nil), s.lower[:recordKeyPrefixBytes]...), s.from.last...)
	// The range only ever shrinks, whatever the cursor says.
	switch {
	case s.reverse(): // also below all keys of a common prefix
		s.upper = least(s.upper, key)
	case s.from.rolled:
		s.lower = greatest(s.lower, successor(key))
	default:
		s.lower = greatest(s.lower, append(key, 0))
	}
	s.at = s.from.rev
	return wire.StatusOK
}

func greatest(a, b []byte) []byte {
	if string(b) > string(a) {
		return b
	}
	return a
}

func (s *scan) reverse() bool  { return s.req.Flags&wire.ScanReverse != 0 }
func (s *scan) keysOnly() bool { return s.req.Flags&wire.ScanKeysOnly != 0 }
func (s *scan) counting() bool { return s.req.Flags&wire.ScanCount != 0 }

// read fills the page. It may run more than once.
func (s *scan) read(r *reader) error {
	s.r, s.p = r, r.point()
	s.dst = append(s.dst[:s.start], make([]byte, wire.ScanPageHeaderBytes)...)
	s.count, s.visits, s.readBytes, s.more, s.last, s.rolled = 0, 0, 0, false, s.last[:0], false
	s.inexact = !exactAt(s.at, s.p, false, 0) ||
		// The state under a cursor's revision is the one that the page before saw, or history differs.
		s.from.rev != 0 && (s.from.rev != s.p.revision || s.from.time != s.p.time)
	if s.inexact || string(s.lower) >= string(s.upper) {
		return nil
	}
	w := r.walk(s.lower, s.upper, s.reverse())
	defer w.close()
	visit := s.visit // one closure per page
	for w.valid() {
		if s.visits == s.in.store.o.hooks.scanVisits || s.readBytes >= scanReadBytesMax {
			s.more = true
			return nil
		}
		s.visits++
		s.key = w.key()
		if err := w.value(visit); err != nil || s.more {
			return err
		}
		if !s.rolled {
			w.next()
			continue
		}
		s.bound = append(append(s.bound[:0], s.lower[:recordKeyPrefixBytes]...), s.last...)
		if !s.reverse() {
			s.bound = successor(s.bound)
		}
		w.skip(s.bound)
	}
	return nil
}

// visit looks at one record; more is set when it belongs to the next page.
func (s *scan) visit(stored []byte) error {
	s.readBytes += len(stored)
	if err := decodeRecord(s.key, stored, &s.rec); err != nil {
		return err
	}
	name, rolled := userKey(s.key), false
	switch {
	case s.rec.expired(s.p.time):
	case s.counting():
		s.count++
	default:
		if name, rolled = s.rollUp(name); s.full(name, rolled) {
			s.more = true
			return nil
		}
		if err := s.add(name, rolled); err != nil {
			return err
		}
	}
	s.last, s.rolled = append(s.last[:0], name...), rolled
	return nil
}

// rollUp gives the name under which a key is listed: itself, or its beginning up to the first delimiter behind the
// prefix.
func (s *scan) rollUp(key []byte) (name []byte, rolled bool) {
	if len(s.req.Delimiter) == 0 {
		return key, false
	}
	from := len(s.req.Prefix)
	i := bytes.Index(key[from:], s.req.Delimiter)
	if i < 0 {
		return key, false
	}
	return key[:from+i+len(s.req.Delimiter)], true
}

// full reports whether the page has no room for the record at hand; the first item always has.
func (s *scan) full(name []byte, rolled bool) bool {
	if s.count == 0 {
		return false
	}
	size := wire.ItemHeaderBytes + len(name)
	switch {
	case rolled:
	case s.keysOnly():
		size += 2 + wire.MetaBytes
	default:
		size += itemExtBytes(&s.rec) + int(s.rec.valueLen)
	}
	return s.count == int(s.req.Limit) || len(s.dst)-s.start-wire.ScanPageHeaderBytes+size > int(s.req.BytesMax)
}

// add appends the record at hand as an item.
func (s *scan) add(name []byte, rolled bool) (err error) {
	s.count++
	switch {
	case rolled:
		s.dst = wire.AppendItemHeader(s.dst, wire.OpScan, wire.StatusOK, 0, len(name), 0)
		s.dst = append(s.dst, name...)
	case s.keysOnly():
		s.dst = wire.AppendItemHeader(s.dst, wire.OpGet, wire.StatusOK, 2+wire.MetaBytes, len(name), 0)
		s.dst = wire.AppendExtMeta(s.dst, &s.rec.Meta)
		s.dst = append(s.dst, name...)
	default:
		s.dst = wire.AppendItemHeader(s.dst, wire.OpGet, wire.StatusOK, itemExtBytes(&s.rec), len(name), int(s.rec.valueLen))
		s.dst = appendItemExt(s.dst, &s.rec)
		s.dst = append(s.dst, name...)
		s.dst, err = appendValue(s.dst, s.r, s.key, &s.rec)
	}
	return err
}

// finish ends the page: cursor, then header.
func (s *scan) finish() []byte {
	items := len(s.dst)
	if s.more {
		c := cursor{history: s.in.identity.Load().historyID, rev: s.p.revision, time: s.p.time, listing: s.listing, rolled: s.rolled, last: s.last}
		s.dst = appendCursor(s.dst, &c)
	}
	if size := len(s.dst) - s.start; size > wire.FrameBodyBytesMax {
		panic(fmt.Sprintf("BUG: page of %d bytes", size))
	}
	header := wire.PutScanPageHeader
	if s.counting() {
		header = wire.PutScanCountHeader
	}
	header(s.dst[s.start:], s.p.revision, s.count, len(s.dst)-items)
	return s.dst
}
