package node

import (
	"kvstore/engine"
	"kvstore/wire"
)

// listing is a streamed SCAN. What is below q is owned by its turns.
type listing struct {
	st *stream
	at wire.Revision // the revision that the client asked for; 0: none

	q     wire.ScanRequest // with the cursor of the next page
	begun bool             // a page was sent
}

// turn implements streamSource: it reads a page and sends it. A page that finds no room is read again.
func (x *listing) turn(w *sender) (verdict, *wire.Response) {
	st := x.st
	start := st.start.Load()
	switch {
	case start == nil:
		return turnRest, nil
	case start.final != nil:
		return turnRest, start.final
	}
	grants, ok := st.room()
	if !ok || st.credit.Load() <= 0 {
		return turnRest, nil
	}
	var ext []byte
	if !x.begun {
		ext = start.ext
	}
	// So much fits every frame; the page's first item may still be larger.
	q := x.q
	q.BytesMax = uint32(max(1, min(int(q.BytesMax), st.frameMax-len(ext)-wire.ScanPageHeaderBytes-wire.CursorBytesMax)))
	var page wire.ScanPage
	status := wire.StatusOK
	var err error
	w.frame, status, err = w.s.shard.engine.Scan(engine.ReadOptions{Namespace: start.ns, AtRevision: start.revision}, &q, w.frame[:0])
	if err != nil {
		w.s.shard.readFailed(wire.OpScan, status, err)
	}
	if status != wire.StatusOK {
		if x.at == 0 && len(q.Cursor) == 0 && (status == wire.StatusCompacted || status == wire.StatusFutureRevision) {
			return turnRest, refusal(lagging) // the client named no revision and must hear of none
		}
		return turnRest, &wire.Response{Status: status}
	}
	if len(ext)+len(w.frame) > st.frameMax {
		return turnRest, refusal(tooLong("a page of the listing", st.frameMax))
	}
	if err := wire.DecodeScanPage(w.frame, &page); err != nil {
		panic("BUG: a page that was just made does not decode: " + err.Error())
	}
	st.all.counts.pages.Add(1)
	if len(page.Cursor) == 0 {
		return turnRest, &wire.Response{Ext: ext, Payload: w.frame}
	}
	if ok, final := st.push(&wire.Response{Ext: ext, Payload: w.frame}, grants); !ok {
		return turnRest, final
	}
	x.begun = true
	x.q.Cursor = append([]byte(nil), page.Cursor...)
	return turnAgain, nil
}

// close implements streamSource.
func (x *listing) close() {}
