package client

import (
	"context"
	"fmt"
	"iter"
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

	node *node // that gave it
}

// ListPage gives one page: the first with an empty cursor, else the one after the page that the cursor came
// with. The options must be the same for all pages of a listing; Limit is not counted over pages here, it
// bounds this one. When the listing's revision is no longer kept, ErrCompacted: begin anew. A stale page of a node that has
// not reached it yet, such as one that was just started again, ErrFutureRevision: ask again shortly.
func (c *Client) ListPage(ctx context.Context, o ListOptions, cursor []byte) (Page, error) {
	return c.listPage(ctx, o, cursor, nil)
}

// listPage is ListPage; a page after the first is asked of at first, if that is not nil.
func (c *Client) listPage(ctx context.Context, o ListOptions, cursor []byte, at *node) (Page, error) {
	for _, s := range [...]string{o.Prefix, o.Start, o.End} {
		if len(s) > wire.KeyBytesMax {
			return Page{}, local(wire.OpScan, "", ErrTooLarge, wire.KeyBytesMax, "bound of a listing of %d bytes; at most %d", len(s), wire.KeyBytesMax)
		}
	}
	if len(cursor) > wire.CursorBytesMax {
		return Page{}, local(wire.OpScan, "", ErrBadRequest, wire.CursorBytesMax, "cursor of %d bytes; at most %d", len(cursor), wire.CursorBytesMax)
	}
	if o.Limit < 0 || o.PageSize < 0 {
		return Page{}, local(wire.OpScan, "", ErrBadRequest, 0, "limit %d, page size %d; at least 0", o.Limit, o.PageSize)
	}
	size := min(o.PageSize, wire.ScanLimitMax)
	if o.Limit > 0 {
		if size == 0 {
			size = wire.ScanLimitDefault
		}
		size = min(size, o.Limit)
	}
	req := wire.ScanRequest{Limit: uint32(size), Prefix: []byte(o.Prefix), Start: []byte(o.Start), End: []byte(o.End), Cursor: cursor}
	if o.Reverse {
		req.Flags |= wire.ScanReverse
	}
	if o.KeysOnly {
		req.Flags |= wire.ScanKeysOnly
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
	p, err := decodePage(cl.res.data)
	if err != nil {
		return Page{}, &Error{Op: wire.OpScan.String(), Message: err.Error(), Attempts: cl.attempts, kind: ErrProtocol}
	}
	p.node, p.Age = cl.cn.link.node, cl.age()
	for i := range p.Entries {
		p.Entries[i].age = p.Age
	}
	return p, nil
}

func decodePage(b []byte) (Page, error) {
	var sp wire.ScanPage
	if err := wire.DecodeScanPage(b, &sp); err != nil {
		return Page{}, err
	}
	p := Page{Entries: make([]Entry, 0, sp.Count), Cursor: sp.Cursor, Revision: Version(sp.Revision)}
	var it wire.Item
	for items := sp.Items; len(p.Entries) < sp.Count; {
		var err error
		if items, err = wire.NextItem(items, &it); err != nil {
			return Page{}, err
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

// List goes through a listing page by page. An error is the last thing that it yields.
func (c *Client) List(ctx context.Context, o ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var cursor []byte
		var at *node
		for left := o.Limit; ; {
			o.Limit = left
			p, err := c.listPage(ctx, o, cursor, at)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for i := range p.Entries {
				if !yield(p.Entries[i], nil) {
					return
				}
			}
			if left > 0 {
				if left -= len(p.Entries); left <= 0 {
					return
				}
			}
			if len(p.Cursor) == 0 {
				return
			}
			cursor, at = p.Cursor, p.node
		}
	}
}
