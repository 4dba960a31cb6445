package client

import (
	"context"
	"fmt"
	"time"

	"kvstore/wire"
)

// ListOptions choose what a listing holds: the keys with Prefix that are ≥ Start and < End, in byte order
// or in reverse. Empty texts do not bound.
type ListOptions struct {
	// Prefix bounds the keys to those that begin with it.
	Prefix string
	// Start is the first key that may be listed.
	Start string
	// End is the first key beyond the listing.
	End string
	// Limit bounds the entries of the whole listing; 0: all.
	Limit int
	// PageSize is the entries of one page, at most wire.ScanLimitMax; 0: the server's default. The server
	// also bounds a page's bytes.
	PageSize int
	// Delimiter lists one level of a hierarchy: of all keys that have it behind Prefix, the text up to and with its first
	// place there is listed once, as an Entry with CommonPrefix.
	Delimiter string
	// KeysOnly leaves the values out.
	KeysOnly bool
	// Reverse lists from the last key to the first.
	Reverse bool
	// Read are options of the reads: AtLeast, AnyNode, Stale, MaxAge. They count for the first page, whose revision
	// the others show. List asks one node for all pages; ListPage asks the leader for those after the first.
	Read []GetOption
}

// Entry is one record of a listing. Its slices are views over its page: keep a copy of what outlives it, or
// the whole page stays in memory.
type Entry struct {
	Key string
	// CommonPrefix: all keys that begin with Key stand behind this one entry; it has no value.
	CommonPrefix bool
	Value
}

// Page is one answer to a listing. All pages of a listing show the same revision.
type Page struct {
	Entries []Entry
	// Cursor continues the listing with ListPage; empty at its end.
	Cursor []byte
	// Revision is what the page shows.
	Revision Version
	// Age tells how old a stale page may be, as Value.Age does.
	Age time.Duration

	node    *node // that gave it
	counted int   // keys, of a page that counts
}

// ListPage gives one page: the first with an empty cursor, else the one after the page that the cursor came
// with. The options must be the same for all pages of a listing; Limit is not counted over pages here, it
// bounds this one. When the listing's revision is no longer kept, ErrCompacted: begin anew. A stale page of a node that has
// not reached it yet, such as one that was just started again, ErrFutureRevision: ask again shortly.
func (c *Client) ListPage(ctx context.Context, o ListOptions, cursor []byte) (Page, error) {
	return c.listPage(ctx, o, cursor, nil, 0)
}

// listPage is ListPage; a page after the first is asked of at first, if that is not nil. flags are those of
// wire.ScanRequest beside the options.
func (c *Client) listPage(ctx context.Context, o ListOptions, cursor []byte, at *node, flags uint8) (Page, error) {
	req, e := o.request(cursor, flags)
	if e != nil {
		return Page{}, e
	}
	cl := newCall(wire.OpScan, "", wantPayload)
	defer cl.release()
	c.steer(cl)
	if e := cl.reads(o.Read); e != nil {
		return Page{}, e
	}
	if len(cursor) > 0 {
		cl.spread, cl.at = false, at
	}
	cl.value, cl.owned = wire.AppendScanRequest(nil, &req), true
	if err := c.run(ctx, cl); err != nil {
		return Page{}, err
	}
	p, err := decodePage(cl.res.data, flags&wire.ScanCount != 0)
	if err != nil {
		return Page{}, &Error{Op: wire.OpScan.String(), Message: err.Error(), Attempts: cl.attempts, kind: ErrProtocol}
	}
	p.node, p.Age = cl.cn.link.node, cl.age()
	for i := range p.Entries {
		p.Entries[i].age = p.Age
	}
	return p, nil
}

// request turns the options into a request for a page.
func (o *ListOptions) request(cursor []byte, flags uint8) (wire.ScanRequest, *Error) {
	for _, s := range [...]string{o.Prefix, o.Start, o.End} {
		if len(s) > wire.KeyBytesMax {
			return wire.ScanRequest{}, local(wire.OpScan, "", ErrTooLarge, wire.KeyBytesMax, "bound of a listing of %d bytes; at most %d", len(s), wire.KeyBytesMax)
		}
	}
	if len(o.Delimiter) > wire.ScanDelimiterBytesMax {
		return wire.ScanRequest{}, local(wire.OpScan, "", ErrTooLarge, wire.ScanDelimiterBytesMax, "delimiter of %d bytes; at most %d", len(o.Delimiter), wire.ScanDelimiterBytesMax)
	}
	if len(cursor) > wire.CursorBytesMax {
		return wire.ScanRequest{}, local(wire.OpScan, "", ErrBadRequest, wire.CursorBytesMax, "cursor of %d bytes; at most %d", len(cursor), wire.CursorBytesMax)
	}
	if o.Limit < 0 || o.PageSize < 0 {
		return wire.ScanRequest{}, local(wire.OpScan, "", ErrBadRequest, 0, "limit %d, page size %d; at least 0", o.Limit, o.PageSize)
	}
	size := min(o.PageSize, wire.ScanLimitMax)
	if o.Limit > 0 {
		if size == 0 {
			size = wire.ScanLimitDefault
		}
		size = min(size, o.Limit)
	}
	req := wire.ScanRequest{Flags: flags, Limit: uint32(size), Prefix: []byte(o.Prefix), Start: []byte(o.Start), End: []byte(o.End), Cursor: cursor, Delimiter: []byte(o.Delimiter)}
	if o.Reverse {
		req.Flags |= wire.ScanReverse
	}
	if o.KeysOnly {
		req.Flags |= wire.ScanKeysOnly
	}
	return req, nil
}

// decodePage reads a page; one that counts holds no items.
func decodePage(b []byte, counts bool) (Page, error) {
	var sp wire.ScanPage
	if err := wire.DecodeScanPage(b, &sp); err != nil {
		return Page{}, err
	}
	p := Page{Cursor: sp.Cursor, Revision: Version(sp.Revision), counted: sp.Counted}
	if counts {
		return p, nil
	}
	p.Entries = make([]Entry, 0, sp.Count)
	var it wire.Item
	for items := sp.Items; len(p.Entries) < sp.Count; {
		var err error
		if items, err = wire.NextItem(items, &it); err != nil {
			return Page{}, err
		}
		if it.Op == wire.OpScan {
			p.Entries = append(p.Entries, Entry{Key: string(it.Key), CommonPrefix: true})
			continue
		}
		var m wire.Meta
		kept, err := splitMeta(it.Ext, &m)
		if err != nil {
			return Page{}, fmt.Errorf("entry %d: %w", len(p.Entries), err)
		}
		p.Entries = append(p.Entries, Entry{Key: string(it.Key), Value: valueOf(&m, kept, it.Value)})
	}
	return p, nil
}

// Count counts the keys of a listing, all at the one revision that it tells. Limit, PageSize and KeysOnly mean nothing.
func (c *Client) Count(ctx context.Context, o ListOptions) (n int64, rev Version, err error) {
	if o.Delimiter != "" {
		return 0, 0, local(wire.OpScan, "", ErrBadRequest, 0, "a count takes no delimiter")
	}
	o.Limit, o.PageSize, o.KeysOnly = 0, 0, true
	var cursor []byte
	var at *node
	for {
		p, err := c.listPage(ctx, o, cursor, at, wire.ScanCount)
		if err != nil {
			return 0, 0, err
		}
		n, rev, cursor, at = n+int64(p.counted), p.Revision, p.Cursor, p.node
		if len(cursor) == 0 {
			return n, rev, nil
		}
	}
}
