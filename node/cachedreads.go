package node

import (
	"sync"

	"kvstore/engine"
	"kvstore/wire"
)

// cachedReads are the GETs and EXISTS of one bunch that may be answered at once from memory. They are looked up together: see
// engine.CachedGets. It is pooled with its callback, so that a hit allocates nothing.
type cachedReads struct {
	s       *Service
	to      wire.Completer
	reqs    []wire.Request
	waiting []cachedRead
	gets    engine.CachedGets
	resp    wire.Response
	ext     []byte
	fn      func(i int, rec *wire.Record, at engine.Point)
}

// cachedRead is one of them.
type cachedRead struct {
	req int // in reqs
	ns  uint32
	age uint64 // told with the answer to a stale read
}

var cachedReadsPool = sync.Pool{New: func() any {
	c := new(cachedReads)
	c.fn = c.found
	return c
}}

// cachedReadsOf gives an empty one for a bunch of s; release gives it back.
func cachedReadsOf(s *Service, to wire.Completer, reqs []wire.Request) *cachedReads {
	c := cachedReadsPool.Get().(*cachedReads)
	c.s, c.to, c.reqs = s, to, reqs
	return c
}

func (c *cachedReads) release() {
	c.s, c.to, c.reqs, c.resp = nil, nil, nil, wire.Response{}
	c.waiting = c.waiting[:0]
	c.gets.Reset()
	cachedReadsPool.Put(c)
}

// add takes request i of the bunch, of namespace ns, which the applied state may answer; false: it is none for the cache.
func (c *cachedReads) add(i int, ns uint32, age uint64) bool {
	r := &c.reqs[i]
	if r.AtRevision != 0 || r.MinRevision != 0 || !c.stands(r, ns) {
		return false
	}
	c.waiting = append(c.waiting, cachedRead{req: i, ns: ns, age: age})
	c.gets.Add(ns, r.Key)
	return true
}

// stands reports whether the name in r, if it has one, still stands for ns. It must have done so after it was decided that
// the applied state may be read.
func (c *cachedReads) stands(r *wire.Request, ns uint32) bool {
	if len(r.Namespace) == 0 {
		return true
	}
	now, ok := c.s.shard.namespace(r.Namespace)
	return ok && now == ns
}

// answer answers what is in memory, and calls missed for each of the others.
func (c *cachedReads) answer(missed func(i int, ns uint32, age uint64)) {
	if len(c.waiting) == 0 {
		return
	}
	c.s.shard.engine.GetCached(&c.gets, c.fn)
	for k := range c.waiting {
		it := &c.waiting[k]
		r := &c.reqs[it.req]
		st, hit := c.gets.Result(k)
		switch {
		case hit && st == wire.StatusOK: // found has answered it
		case !hit, !c.stands(r, it.ns):
			// Nothing is there: because the namespace has been dropped since, and purged?
			missed(it.req, it.ns, it.age)
		default:
			c.resp = wire.Response{Status: st}
			if r.Stale && st.Class() == wire.ClassResult {
				c.ext = wire.AppendExtU64(c.ext[:0], wire.ExtAge, it.age)
				c.resp.Ext = c.ext
			}
			c.to.Complete(r.Token(), &c.resp)
		}
	}
}

// found answers with a cached record, whose slices live only during the call.
func (c *cachedReads) found(k int, rec *wire.Record, _ engine.Point) {
	it := &c.waiting[k]
	r := &c.reqs[it.req]
	c.ext = wire.AppendExtMeta(c.ext[:0], &rec.Meta)
	c.resp = wire.Response{}
	if r.Op == wire.OpGet {
		c.ext = append(c.ext, rec.Ext...)
		c.resp.Payload = rec.Value
	}
	if r.Stale {
		c.ext = wire.AppendExtU64(c.ext, wire.ExtAge, it.age)
	}
	c.resp.Ext = c.ext
	c.to.Complete(r.Token(), &c.resp)
}
