package client

import (
	"context"
	"errors"
	"iter"
	"time"

	"kvstore/wire"
)

// List goes through a listing in order, all of one revision. The server sends ahead of the caller, within a credit of
// about a mebibyte; where it can't, or the connection breaks, the listing goes on page by page. An error is the last thing that
// it yields; leaving the loop ends the listing.
func (c *Client) List(ctx context.Context, o ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		l := listing{c: c, o: o, left: o.Limit}
		defer l.feed.end()
		l.begin(ctx)
		for !l.done {
			p, err := l.next(ctx)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			for i := range p.Entries {
				if !yield(p.Entries[i], nil) {
					return
				}
			}
			l.cursor, l.at, l.rev = p.Cursor, p.node, p.Revision
			if o.Limit > 0 {
				l.left -= len(p.Entries)
			}
			l.done = len(p.Cursor) == 0 || o.Limit > 0 && l.left <= 0
		}
	}
}

// listing is a List under way.
type listing struct {
	c      *Client
	o      ListOptions
	left   int // entries that may still come, if Limit bounds them
	cursor []byte
	at     *node   // that gave the last page
	rev    Version // of the last page
	done   bool
	feed   feed // the stream; its call is nil where pages are asked for one by one
}

// begin asks for all pages in one answer, if the listing is not for a few entries, and the server can. A failure is
// nobody's: pages are asked for then.
func (l *listing) begin(ctx context.Context) {
	c := l.c
	if l.o.Limit > 0 && l.o.Limit <= wire.ScanLimitDefault {
		return // it fits a page
	}
	if ack := c.route.ack.Load(); ack == nil || ack.Features&wire.FeatureWatch == 0 {
		return
	}
	req, e := l.o.request(nil, wire.ScanStream)
	if e != nil {
		return
	}
	cl := newCall(wire.OpScan, "", wantPayload)
	c.steer(cl)
	if e := cl.reads(l.o.Read); e != nil {
		cl.release()
		return
	}
	if cl.stale || c.bound(ctx, cl) != nil {
		cl.release()
		return // each stale page tells an age of its own
	}
	cl.value, cl.owned = wire.AppendScanRequest(nil, &req), true
	cl.stream = newStream(wire.StreamCreditDefault)
	if !c.submit(ctx, cl) {
		cl.release()
		return
	}
	l.feed = feed{cl: cl, st: cl.stream}
	if cl.cn.ack.Features&wire.FeatureWatch == 0 {
		l.feed.end()
	}
}

// next gives the next page: of the stream, or asked for.
func (l *listing) next(ctx context.Context) (Page, error) {
	for l.feed.cl != nil {
		p, ok, err := l.take(ctx)
		if ok || err != nil {
			return p, err
		}
	}
	o := l.o
	o.Limit = l.left
	return l.c.listPage(ctx, o, l.cursor, l.at, 0)
}

// take gives the next page of the stream. ok is false when there is none: the stream has ended before the listing, and
// pages go on where it was.
func (l *listing) take(ctx context.Context) (p Page, ok bool, err error) {
	f := &l.feed
	var silence <-chan time.Time
	if d := l.c.o.timeout; d > 0 {
		t := time.NewTimer(d) // as for a page
		defer t.Stop()
		silence = t.C
	}
	for {
		fr, more := f.next()
		if more {
			p, err = l.page(fr.payload)
			return p, err == nil, err
		}
		if f.ended {
			break
		}
		select {
		case <-f.st.ready:
		case <-f.cl.ch:
			f.ended = true
		case <-silence:
			f.end()
			return p, false, nil
		case <-ctx.Done():
			e := &Error{Op: wire.OpScan.String(), Message: "the time was up while the listing was under way", Attempts: 1, cause: ctx.Err()}
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				e.kind = ErrTimeout
			}
			return p, false, e
		}
	}
	cl := f.cl
	if err := l.c.errorOf(cl); err != nil || !cl.res.answered {
		// What is only in the way, and what this node could not do, is tried again by the rules of pages: they go on with
		// the cursor of the last one. What the request itself is to blame for comes back from there.
		f.end()
		return p, false, nil
	}
	p, err = l.page(cl.res.data)
	f.end()
	return p, err == nil, err
}

// page reads a page of the stream.
func (l *listing) page(payload []byte) (Page, error) {
	cl := l.feed.cl
	p, err := decodePage(payload, false)
	if err == nil && l.rev != 0 && p.Revision != l.rev {
		err = errors.New("a page shows another revision than the one before")
	}
	if err != nil {
		cl.cn.kill(ErrProtocol)
		return Page{}, &Error{Op: wire.OpScan.String(), Message: err.Error(), Attempts: 1, kind: ErrProtocol}
	}
	p.node = cl.cn.link.node
	if n := l.left; l.o.Limit > 0 && len(p.Entries) > n {
		p.Entries = p.Entries[:n]
	}
	return p, nil
}
