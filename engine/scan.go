package engine

import (
	"fmt"

	"kvstore/wire"
)

// scanVisitsMax bounds the records that one page looks at: those that have expired and are not removed yet
// are passed over. A page that ends by it holds fewer items than asked for, perhaps none, and a cursor.
const scanVisitsMax = 100_000

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
	dst     []byte
	start   int // of the page in dst
	p       point
	count   int
	visits  int
	more    bool
	last    []byte // user key of the last record that was looked at
	inexact bool   // what is read isn't surely what was asked for
	rec     storedRecord
	r       *reader
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
		if bound := appendRecordKey(nil, ns, end); string(bound) < string(s.upper) {
			s.upper = bound
		}
	}
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
	if s.reverse() {
		s.upper = key
	} else {
		s.lower = append(key, 0)
	}
	s.at = s.from.rev
	return wire.StatusOK
}

func (s *scan) reverse() bool  { return s.req.Flags&wire.ScanReverse != 0 }
func (s *scan) keysOnly() bool { return s.req.Flags&wire.ScanKeysOnly != 0 }

// read fills the page. It may run more than once.
func (s *scan) read(r *reader) error {
	s.r, s.p = r, r.point()
	s.dst = append(s.dst[:s.start], make([]byte, wire.ScanPageHeaderBytes)...)
	s.count, s.visits, s.more, s.last = 0, 0, false, s.last[:0]
	s.inexact = !exactAt(s.at, s.p, false, 0) ||
		// The state under a cursor's revision is the one that the page before saw, or history differs.
		s.from.rev != 0 && (s.from.rev != s.p.revision || s.from.time != s.p.time)
	if s.inexact || string(s.lower) >= string(s.upper) {
		return nil
	}
	return r.iterate(s.lower, s.upper, s.reverse(), false, s.visit)
}

// visit looks at one record; more is false at the page's end.
func (s *scan) visit(key []byte, value func() ([]byte, error)) (more bool, err error) {
	if s.visits == scanVisitsMax {
		s.more = true
		return false, nil
	}
	s.visits++
	stored, err := value()
	if err != nil {
		return false, err
	}
	if err := decodeRecord(key, stored, &s.rec); err != nil {
		return false, err
	}
	if !s.rec.expired(s.p.time) {
		if s.count > 0 && (s.count == int(s.req.Limit) || s.bytes()+s.itemBytes(key) > int(s.req.BytesMax)) {
			s.more = true
			return false, nil
		}
		if err := s.add(key); err != nil {
			return false, err
		}
	}
	s.last = append(s.last[:0], userKey(key)...)
	return true, nil
}

// bytes is how many bytes of items the page holds.
func (s *scan) bytes() int { return len(s.dst) - s.start - wire.ScanPageHeaderBytes }

func (s *scan) itemBytes(key []byte) int {
	if s.keysOnly() {
		return wire.ItemHeaderBytes + 2 + wire.MetaBytes + len(userKey(key))
	}
	return wire.ItemHeaderBytes + itemExtBytes(&s.rec) + len(userKey(key)) + int(s.rec.valueLen)
}

// add appends the record at hand as an item.
func (s *scan) add(key []byte) (err error) {
	if s.keysOnly() {
		s.dst = wire.AppendItemHeader(s.dst, wire.OpGet, wire.StatusOK, 2+wire.MetaBytes, len(userKey(key)), 0)
		s.dst = wire.AppendExtMeta(s.dst, &s.rec.Meta)
		s.dst = append(s.dst, userKey(key)...)
	} else {
		s.dst = wire.AppendItemHeader(s.dst, wire.OpGet, wire.StatusOK, itemExtBytes(&s.rec), len(userKey(key)), int(s.rec.valueLen))
		s.dst = appendItemExt(s.dst, &s.rec)
		s.dst = append(s.dst, userKey(key)...)
		if s.dst, err = appendValue(s.dst, s.r, key, &s.rec); err != nil {
			return err
		}
	}
	s.count++
	return nil
}

// appendValue appends a record's value, wherever it stands.
func appendValue(dst []byte, g getter, recordKey []byte, r *storedRecord) ([]byte, error) {
	if r.chunks > 0 {
		return appendChunks(dst, g, recordKey, r)
	}
	return append(dst, r.Value...), nil
}

// finish ends the page: cursor, then header.
func (s *scan) finish() []byte {
	items := len(s.dst)
	if s.more {
		c := cursor{history: s.in.identity.Load().historyID, rev: s.p.revision, time: s.p.time, listing: s.listing, last: s.last}
		s.dst = appendCursor(s.dst, &c)
	}
	if size := len(s.dst) - s.start; size > wire.FrameBodyBytesMax {
		panic(fmt.Sprintf("BUG: page of %d bytes", size))
	}
	wire.PutScanPageHeader(s.dst[s.start:], s.p.revision, s.count, len(s.dst)-items)
	return s.dst
}
