package engine

import (
	"fmt"

	"kvstore/wire"
)

// MultiGet appends the answer to a MULTIGET to dst: one item per key, in order, all of one revision. items
// and count are those of wire.DecodeGroup. An item that doesn't fit into the answer has StatusReplyFull: ask
// for it again. st and err are as for Get; payload is dst when st isn't StatusOK.
//
// REQUIRES: the request passed wire.ParseRequest.
func (e *Engine) MultiGet(o ReadOptions, items []byte, count int, dst []byte) (payload []byte, st wire.Status, err error) {
	for {
		in := e.live.Load()
		if payload, st, err = in.multiGet(&o, items, count, dst); st != wire.StatusDraining || !e.replaced(in) {
			return payload, st, err
		}
	}
}

// multiGet is MultiGet on one instance.
func (in *instance) multiGet(o *ReadOptions, items []byte, count int, dst []byte) (payload []byte, st wire.Status, err error) {
	at, st := in.place(o)
	if st != wire.StatusOK {
		return dst, st, nil
	}
	m := multiGet{in: in, o: o, items: items, count: count, dst: dst, start: len(dst), cached: at == 0 && in.cache != nil}
	if err := in.store.read(at, m.read); err != nil {
		st, err := in.refused(err)
		return dst, st, err
	}
	if m.inexact {
		return dst, wire.StatusCompacted, nil
	}
	m.fillCache()
	return m.dst, wire.StatusOK, nil
}

// multiGet is one answer in the making.
type multiGet struct {
	in     *instance
	o      *ReadOptions
	items  []byte
	count  int
	cached bool // the cache may answer

	// The answer. read starts it afresh each time it runs.
	dst     []byte
	start   int // of the answer in dst
	p       point
	left    int // items still to come
	inexact bool

	// What the store answered, for the cache. Only what read has returned can be believed; see store.read.
	fills     []cacheFill
	fillBytes []byte // keys and stored records, one after the other

	key    []byte
	rec    storedRecord
	r      *reader
	packed []byte // a compressed value out of the cache, which is unpacked when that is unlocked again
}

// cacheFill is one record, or an absence, in multiGet.fillBytes.
type cacheFill struct {
	hash        uint64
	key, stored int // lengths
	absent      bool
}

// multiGetFillBytesMax bounds what one MultiGet brings into the cache: beyond it, the copies would cost more
// than they are likely to spare.
const multiGetFillBytesMax = 256 << 10

// read answers all keys. It may run more than once.
func (m *multiGet) read(r *reader) error {
	m.r, m.p, m.left = r, r.point(), m.count
	m.inexact = !exactAt(m.o.AtRevision, m.p, false, 0)
	rev := m.p.revision
	if m.o.AtRevision != 0 {
		rev = m.o.AtRevision
	}
	m.dst = wire.AppendResultHeader(m.dst[:m.start], rev, m.count)
	m.fills, m.fillBytes = m.fills[:0], m.fillBytes[:0]
	items := m.items
	var it wire.Item
	for range m.count {
		var err error
		if items, err = wire.NextItem(items, &it); err != nil {
			return fmt.Errorf("items of a multiget: %w", err)
		}
		m.left--
		if err := m.one(it.Key); err != nil {
			return err
		}
	}
	return nil
}

// one answers one key.
func (m *multiGet) one(key []byte) error {
	m.key = appendRecordKey(m.key[:0], m.o.Namespace, key)
	hash := hashKey(m.key)
	if m.cached {
		m.rec = storedRecord{}
		switch m.in.hot(hash, m.key, &m.p, m.cachedRecord) {
		case cacheHit:
			return m.unpack()
		case cacheAbsent:
			m.status(wire.StatusNotFound)
			return nil
		}
	}
	chunked := false
	found, err := m.r.get(m.key, func(stored []byte) error {
		if err := decodeRecord(m.key, stored, &m.rec); err != nil {
			return err
		}
		if chunked = m.rec.chunks > 0; !chunked {
			m.keep(hash, stored)
			return m.value(&m.rec, nil)
		}
		m.rec.Ext = append([]byte(nil), m.rec.Ext...) // it outlives the view
		return nil
	})
	switch {
	case err != nil:
		return err
	case !found:
		m.status(wire.StatusNotFound)
		m.keep(hash, nil)
	case chunked:
		return m.value(&m.rec, m.r)
	}
	return nil
}

// value appends a record as an item.
func (m *multiGet) value(r *storedRecord, g getter) (err error) {
	if m.begin(r) {
		m.dst, err = appendValue(m.dst, g, m.key, r)
	}
	return err
}

// cachedRecord takes a record out of the hands of the cache: as an item, up to a value that is compressed.
func (m *multiGet) cachedRecord(r *storedRecord) {
	switch {
	case !m.begin(r):
	case r.inline():
		m.dst = append(m.dst, r.Value...)
	default:
		m.packed = append(m.packed[:0], r.packed...)
		m.rec = storedRecord{valueLen: r.valueLen, codec: r.codec, packedLen: r.packedLen, packed: m.packed}
	}
}

// unpack appends what cachedRecord has left.
func (m *multiGet) unpack() (err error) {
	if m.rec.codec != wire.CodecNone {
		m.dst, err = appendValue(m.dst, nil, m.key, &m.rec) // it stands in one piece
	}
	return err
}

// begin appends an item up to its value, or the whole item when there is no value to come (false).
func (m *multiGet) begin(r *storedRecord) bool {
	if r.expired(m.p.time) {
		m.status(wire.StatusNotFound)
		return false
	}
	replyMax := m.o.ReplyBytesMax
	if replyMax == 0 {
		replyMax = wire.FrameBodyBytesMax
	}
	ext := itemExtBytes(r)
	// Each item behind this one needs its header.
	if len(m.dst)-m.start+wire.ItemHeaderBytes+ext+int(r.valueLen)+m.left*wire.ItemHeaderBytes > replyMax {
		m.status(wire.StatusReplyFull)
		return false
	}
	m.dst = wire.AppendItemHeader(m.dst, wire.OpGet, wire.StatusOK, ext, 0, int(r.valueLen))
	m.dst = appendItemExt(m.dst, r)
	return true
}

func (m *multiGet) status(st wire.Status) {
	m.dst = wire.AppendItemHeader(m.dst, wire.OpGet, st, 0, 0, 0)
}

// keep notes what the store answered for m.key.
func (m *multiGet) keep(hash uint64, stored []byte) {
	if !m.cached || len(stored) > cachedBytesMax || len(m.fillBytes)+len(m.key)+len(stored) > multiGetFillBytesMax {
		return
	}
	m.fills = append(m.fills, cacheFill{hash, len(m.key), len(stored), stored == nil})
	m.fillBytes = append(append(m.fillBytes, m.key...), stored...)
}

// fillCache shows the cache what was read.
func (m *multiGet) fillCache() {
	rest := m.fillBytes
	for _, f := range m.fills {
		key, stored := rest[:f.key], rest[f.key:f.key+f.stored]
		if f.absent {
			stored = nil
		}
		m.in.cache.fill(f.hash, key, m.p.ts, stored)
		rest = rest[f.key+f.stored:]
	}
}
