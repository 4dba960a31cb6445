package node

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"kvstore/wire"
)

// streamStart is where a stream begins, or the answer that ends it before it has.
type streamStart struct {
	revision wire.Revision
	ns       uint32
	ext      []byte // for the first frame
	final    *wire.Response
}

// starter takes what came of the read that asked where to begin.
type starter struct {
	st *stream
	// unsure, if set, asks somebody who knows, when the namespace is not known here.
	unsure func()
}

// Complete implements wire.Completer.
func (a *starter) Complete(_ wire.Token, r *wire.Response) {
	if r.Status == wire.StatusNoNamespace && a.unsure != nil {
		a.unsure()
		return
	}
	start := &streamStart{ext: bytes.Clone(r.Ext)}
	if r.Status == wire.StatusOK {
		start.revision, start.ns = binary.LittleEndian.Uint64(r.Payload), binary.LittleEndian.Uint32(r.Payload[8:])
	} else {
		start.final = &wire.Response{Status: r.Status, Ext: start.ext, Payload: bytes.Clone(r.Payload)}
	}
	a.st.begin(start)
}

// appendStart appends what starter reads.
func appendStart(dst []byte, rev wire.Revision, ns uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(dst, rev), ns)
}

// begin gives the stream its first turn. It is called once.
func (st *stream) begin(start *streamStart) {
	st.start.Store(start)
	st.schedule()
}

// ask finds out which state a read would show that came as r did, by the way that such a read goes, and what the name of
// its namespace stands for there, and begins the stream with that. ns is what the name stood for at the door. It never
// blocks.
func (st *stream) ask(via readVia, ns uint32, r *wire.Request, deadline int64, age uint64) {
	s := st.all.s
	// What a name stood for at the door may be another namespace by the time that this node was found to lead: only the
	// default one is always the same.
	if via == viaNothing && len(r.Namespace) == 0 && r.MinRevision|r.AtRevision == 0 && !r.Stale {
		st.begin(&streamStart{revision: s.shard.engine.Applied().Revision, ns: ns})
		return
	}
	s.reads.hand(via, s.reads.single(&starter{st: st}, st.where(ns, r, deadline, age)))
}

// where is the read that asks where to begin. It has views of r.
func (st *stream) where(ns uint32, r *wire.Request, deadline int64, age uint64) *readItem {
	return &readItem{
		token: st.token, ns: ns, name: r.Namespace, minRevision: r.MinRevision, atRevision: r.AtRevision,
		deadline: deadline, age: age, stale: r.Stale, begins: true,
	}
}

// startWatch opens a watch. way was decided after it arrived. It never blocks.
func (s *Service) startWatch(c wire.Completer, ns uint32, r *wire.Request, way readWay, deadline int64) {
	t := s.streams
	if !s.shard.serves() {
		refuse(c, r.Token(), s.shard.notServing())
		return
	}
	if t.alone.Load() {
		refuse(c, r.Token(), noLeader)
		return
	}
	var q wire.WatchRequest
	if ref := wire.DecodeWatchRequest(r.Payload, &q); ref != nil {
		refuse(c, r.Token(), ref)
		return
	}
	q.Prefix, q.Start, q.End = bytes.Clone(q.Prefix), bytes.Clone(q.Start), bytes.Clone(q.End)
	x := &watch{q: q, history: bytes.Clone(r.History), was: r.NamespaceID}
	st := &stream{source: x, interval: int64(q.ProgressMs) * int64(time.Millisecond)}
	x.st = st
	st.credit.Store(int64(q.Credit))
	if ref := t.open(st, c, r); ref != nil {
		refuse(c, r.Token(), ref)
		return
	}
	fromNow := q.Flags&wire.WatchFromNow != 0
	if !fromNow && len(r.Namespace) == 0 {
		st.begin(&streamStart{ns: ns})
		return
	}
	via := way.via()
	switch {
	case r.Stale:
		st.ask(viaNothing, ns, r, deadline, 0)
	case fromNow || via == viaNothing:
		st.ask(via, ns, r, deadline, 0)
	default:
		// It asks nobody, so that it can go on while there is no leader. But a node that may lack what was acknowledged
		// can't say that a name stands for nothing.
		it := st.where(ns, r, deadline, 0)
		it.name = bytes.Clone(it.name)
		unsure := func() { s.reads.hand(via, s.reads.single(&starter{st: st}, it)) }
		s.reads.hand(viaNothing, s.reads.single(&starter{st: st, unsure: unsure}, it))
	}
}

// streamed reports whether r is a listing in one answer of many frames.
func streamed(r *wire.Request) bool {
	return r.Op == wire.OpScan && len(r.Payload) > 0 && r.Payload[0]&wire.ScanStream != 0
}

// startListing opens a streamed listing, whose first page has to wait for via. It never blocks.
func (s *Service) startListing(c wire.Completer, ns uint32, r *wire.Request, via readVia, deadline int64, age uint64) {
	payload := bytes.Clone(r.Payload)
	x := &listing{at: r.AtRevision}
	if ref := wire.DecodeScanRequest(payload, &x.q); ref != nil {
		refuse(c, r.Token(), ref)
		return
	}
	st := &stream{source: x}
	x.st = st
	st.credit.Store(wire.StreamCreditDefault)
	if ref := s.streams.open(st, c, r); ref != nil {
		refuse(c, r.Token(), ref)
		return
	}
	st.ask(via, ns, r, deadline, age)
}

// notServing is the refusal for what any node may do that serves: this one does not, or not any more.
func (s *Shard) notServing() *wire.Refusal {
	return &wire.Refusal{Status: wire.StatusNotReady, RetryAfterMs: leaderRetryMs}
}

// tooLong is the refusal of a frame that the client does not take.
func tooLong(what string, frameMax int) *wire.Refusal {
	return &wire.Refusal{Status: wire.StatusTooLarge, Limit: uint64(frameMax), Text: fmt.Sprintf("%s is larger than the client accepts", what)}
}
