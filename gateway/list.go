package gateway

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"time"

	"kvstore/wire"
)

const listPath = "/api/v1/keys"

// listing is what a request for a page of a listing asks.
type listing struct {
	scan wire.ScanRequest
	ext  []byte
}

// parseListing reads the query of a listing.
func parseListing(r *http.Request) (l *listing, ref *wire.Refusal) {
	q, ref := parseQuery(r)
	if ref != nil {
		return nil, ref
	}
	l = &listing{}
	for _, name := range sortedNames(q) {
		v := q.Get(name)
		switch name {
		case "prefix":
			l.scan.Prefix = []byte(v)
		case "start":
			l.scan.Start = []byte(v)
		case "end":
			l.scan.End = []byte(v)
		case "delimiter":
			if len(v) == 0 || len(v) > wire.ScanDelimiterBytesMax {
				return nil, badRequest("delimiter of %d bytes; 1 to %d", len(v), wire.ScanDelimiterBytesMax)
			}
			l.scan.Delimiter = []byte(v)
		case "limit":
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil || n == 0 {
				return nil, badRequest("limit=%.100q is not a whole number from 1 on; a page holds at most %d", v, wire.ScanLimitMax)
			}
			l.scan.Limit = uint32(n)
		case "cursor":
			if l.scan.Cursor, ref = parseCursor(v); ref != nil {
				return nil, ref
			}
		case "keys_only", "reverse", "count":
			on, ref := flag(name, v)
			if ref != nil {
				return nil, ref
			}
			if on {
				l.scan.Flags |= map[string]uint8{"keys_only": wire.ScanKeysOnly, "reverse": wire.ScanReverse, "count": wire.ScanCount}[name]
			}
		default:
			var known bool
			if l.ext, known, ref = steer(l.ext, wire.OpScan, name, q); ref == nil && !known {
				ref = unknownParameter(name)
			}
			if ref != nil {
				return nil, ref
			}
		}
	}
	for _, b := range [...][]byte{l.scan.Prefix, l.scan.Start, l.scan.End} {
		if len(b) > wire.KeyBytesMax {
			return nil, badRequest("prefix, start and end have at most %d bytes", wire.KeyBytesMax)
		}
	}
	return l, nil
}

// parseCursor reads what cursorText wrote.
func parseCursor(v string) ([]byte, *wire.Refusal) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(v)
	if err != nil || len(b) == 0 || len(b) > wire.CursorBytesMax || cursorText(b) != v {
		return nil, badRequest("cursor=%.40q is no next_cursor of a listing: leave it out to begin a listing", v)
	}
	return b, nil
}

// cursorText writes a cursor so that it may stand in a URL as it is.
func cursorText(cursor []byte) string { return base64.RawURLEncoding.EncodeToString(cursor) }

// request gives the listing as a request.
func (l *listing) request(req *wire.Request) *wire.Refusal {
	body := wire.AppendScanRequest(append([]byte{}, l.ext...), &l.scan)
	h := wire.Header{Op: wire.OpScan, ID: 1, ExtLen: uint16(len(l.ext))}
	return wire.ParseRequest(&h, body, req)
}

// list serves one page of a listing, or counts.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	l, ref := parseListing(r)
	var req wire.Request
	if ref == nil {
		ref = l.request(&req)
	}
	if ref != nil {
		refuse(w, false, ref.Status, ref.Text)
		return
	}
	if l.scan.Flags&wire.ScanCount != 0 {
		s.count(w, r, l, &req)
		return
	}
	resp := s.do(r.Context(), &req)
	tellAge(w, resp.Ext)
	if resp.Status != wire.StatusOK {
		fail(w, false, &resp)
		return
	}
	var page wire.ScanPage
	if !s.validPage(resp.Payload, &page) {
		failUnreadable(w)
		return
	}
	sawRevision(w, page.Revision)
	s.streamJSON(w, len(resp.Payload), false, func(j *jsonWriter) {
		values := l.scan.Flags&wire.ScanKeysOnly == 0
		j.open('{')
		j.field("items")
		j.open('[')
		eachItem(&page, func(it *wire.Item) {
			if it.Op == wire.OpScan {
				return
			}
			j.next()
			j.open('{')
			j.field("key")
			j.text(string(it.Key))
			j.record(it.Ext, it.Value, values)
			j.close('}')
		})
		j.close(']')
		if len(l.scan.Delimiter) != 0 {
			j.field("common_prefixes")
			j.open('[')
			eachItem(&page, func(it *wire.Item) {
				if it.Op == wire.OpScan {
					j.next()
					j.text(string(it.Key))
				}
			})
			j.close(']')
		}
		j.field("next_cursor")
		j.text(cursorText(page.Cursor))
		j.field("revision")
		j.number(page.Revision)
		j.close('}')
	})
}

// validPage reads a page and reports whether all its items can be read.
func (d *Door) validPage(payload []byte, page *wire.ScanPage) bool {
	err := wire.DecodeScanPage(payload, page)
	var it wire.Item
	items := page.Items
	for range page.Count {
		if err == nil {
			items, err = wire.NextItem(items, &it)
		}
	}
	if err != nil || len(items) != 0 {
		d.o.Logger.Error("a listing was answered with what is no page", "bytes", len(payload))
		return false
	}
	return true
}

// eachItem walks a page. REQUIRES: validPage.
func eachItem(page *wire.ScanPage, do func(it *wire.Item)) {
	items := page.Items
	var it wire.Item
	for range page.Count {
		var err error
		if items, err = wire.NextItem(items, &it); err != nil {
			panic("BUG: a page is read before it was checked: " + err.Error())
		}
		do(&it)
	}
}

// failUnreadable answers a read whose answer makes no sense. Nothing was to be changed.
func failUnreadable(w http.ResponseWriter) {
	refuse(w, false, wire.StatusInternal, "the answer can't be read: see the server's log")
}

// count adds up the pages of a count for half of a request's time. Where there are more keys than that, the answer has
// a cursor, and whoever asks on with it adds up the counts.
func (s *Server) count(w http.ResponseWriter, r *http.Request, l *listing, req *wire.Request) {
	total, end := uint64(0), time.Now().Add(s.o.RequestTimeout/2)
	var page wire.ScanPage
	for {
		resp := s.do(r.Context(), req)
		if resp.Status != wire.StatusOK {
			tellAge(w, resp.Ext)
			fail(w, false, &resp)
			return
		}
		if !s.validPage(resp.Payload, &page) {
			failUnreadable(w)
			return
		}
		total += uint64(page.Counted)
		if len(page.Cursor) == 0 || time.Now().After(end) {
			tellAge(w, resp.Ext)
			break
		}
		l.scan.Cursor = page.Cursor
		if ref := l.request(req); ref != nil {
			refuse(w, false, ref.Status, ref.Text)
			return
		}
	}
	sawRevision(w, page.Revision)
	s.streamJSON(w, 0, false, func(j *jsonWriter) {
		j.open('{')
		j.field("count")
		j.raw(strconv.FormatUint(total, 10))
		j.field("next_cursor")
		j.text(cursorText(page.Cursor))
		j.field("revision")
		j.number(page.Revision)
		j.close('}')
	})
}
