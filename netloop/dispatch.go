package netloop

import (
	"errors"

	"kvstore/wire"
)

// checkLength compares a body's length to the limit before any of it is buffered. False: the frame is
// refused and its body will be skipped, or the session is given up.
func (s *Session) checkLength(h *wire.Header) bool {
	limit := s.core.o.MaxFrame
	if int64(h.BodyLen) <= int64(limit) {
		return true
	}
	if h.BodyLen > skipBytesMax {
		s.fail(wire.StatusTooLarge, closedTooLarge, "a frame is too large even to be skipped")
		return false
	}
	s.skip = int(h.BodyLen)
	s.partSince.Store(s.fedAt)
	s.partBytes.Store(0)
	s.shard.requests.Add(1)
	s.refuse(h, &wire.Refusal{Status: wire.StatusTooLarge, Text: "the frame is larger than the server accepts", Limit: uint64(limit)})
	return false
}

// frame takes one whole frame; body is as sent, sound says that the checksum holds. Views of body live
// until the bunch is served.
func (s *Session) frame(h *wire.Header, body []byte, sound bool) {
	if h.Op != wire.OpCredit {
		s.shard.requests.Add(1)
	}
	// Nothing runs, and nothing but the length was believed, before the checksum holds.
	if s.crc && h.Flags&wire.FlagCRC == 0 {
		s.fail(wire.StatusBadRequest, closedCorrupt, "a frame lacks the agreed checksum")
		return
	}
	if !sound {
		s.fail(wire.StatusBadRequest, closedCorrupt, "a frame fails its checksum")
		return
	}
	if h.ID == 0 && h.Op != wire.OpPing && h.Op != wire.OpCancel && h.Op != wire.OpCredit {
		s.refuse(h, &wire.Refusal{Status: wire.StatusBadRequest, Text: "request id 0 belongs to the connection itself"})
		return
	}
	if h.Flags&wire.FlagCompressed != 0 {
		var ok bool
		if body, ok = s.unpack(h, body); !ok {
			return
		}
	} else if !s.admit(h, len(body)) {
		return
	}
	sc := s.scratch
	r := &sc.reqs[sc.n]
	if ref := wire.ParseRequest(h, body, r); ref != nil {
		*r = wire.Request{} // keeps no large body alive
		s.refuse(h, ref)
		return
	}
	r.Cost, r.Start = uint32(len(body)), s.fedAt
	switch r.Op {
	case wire.OpPing:
		s.answer(r.Token(), &wire.Response{Status: wire.StatusOK, Payload: r.Payload}, false)
	case wire.OpCancel:
		// What it cancels may be in this very bunch.
		id := cancelID(r)
		s.serve()
		s.core.handler.Cancel(s, id)
	case wire.OpCredit:
		// Likewise.
		id, bytes := creditOf(r)
		s.serve()
		s.core.handler.Credit(s, id, bytes)
	default:
		sc.n++
		sc.cost += int64(len(body))
		if sc.n == BunchRequestsMax {
			s.serve()
		}
	}
}

// cancelID reads which request a CANCEL names. REQUIRES: r passed wire.ParseRequest.
func cancelID(r *wire.Request) uint32 {
	p := r.Payload
	return uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24
}

// creditOf reads what a CREDIT gives to which request. REQUIRES: r passed wire.ParseRequest.
func creditOf(r *wire.Request) (id, bytes uint32) {
	id, bytes, ok := wire.DecodeCredit(r.Payload)
	if !ok {
		panic("BUG: a credit that was checked does not decode")
	}
	return id, bytes
}

// admit applies credits and caps to a request of cost bytes; false: it was answered and not executed.
func (s *Session) admit(h *wire.Header, cost int) bool {
	if h.Op == wire.OpPing || h.Op == wire.OpCancel || h.Op == wire.OpCredit {
		return true
	}
	o, sc := &s.core.o, s.scratch
	pending := s.ordinary()
	switch {
	case s.view.draining:
		s.refuse(h, &wire.Refusal{Status: wire.StatusDraining, Text: wire.StatusDraining.Info().Message})
	case s.view.inflight+sc.n >= o.Inflight, s.view.bytes+sc.cost+int64(cost) > int64(o.InflightBytes):
		s.busy(h, busyCredit)
	case pending > int64(o.OutSoftBytes):
		s.busy(h, busyOutSoft)
	case pending > outShareBytes && s.core.out.used.Load() > s.core.out.limit:
		s.busy(h, busyOutTotal)
	default:
		return true
	}
	return false
}

// serve hands the bunch to the handler.
func (s *Session) serve() {
	sc := s.scratch
	if n := sc.n; n > 0 {
		s.mu.Lock()
		s.inflight += n
		s.inflightBytes += sc.cost
		s.mu.Unlock()
		s.shard.bunches.Add(1)
		s.shard.bunchSizes.Observe(n)
		s.core.handler.Serve(s, s.principal, sc.reqs[:n])
		clear(sc.reqs[:n]) // keeps no large body alive
		sc.n, sc.cost = 0, 0
		if s.pending.Load() >= midFeedFlushBytes {
			s.drv.flushNow()
		}
		s.mu.Lock()
		s.look()
		s.stop = s.stop || s.state != stateOpen
		s.mu.Unlock()
	}
	sc.unpacked = sc.unpacked[:0]
	if s.partServed {
		s.releasePart()
	}
}

// unpack gives the body of a compressed frame, or false when it was refused or went to a worker.
func (s *Session) unpack(h *wire.Header, body []byte) ([]byte, bool) {
	if s.codec == wire.CodecNone {
		s.fail(wire.StatusBadRequest, closedCorrupt, "a compressed frame without an agreed codec")
		return nil, false
	}
	raw, err := wire.RawLen(body, s.core.o.MaxFrame)
	if errors.Is(err, wire.ErrFrameTooLarge) {
		s.refuse(h, &wire.Refusal{Status: wire.StatusTooLarge, Text: "the frame unpacks to more than the server accepts", Limit: uint64(s.core.o.MaxFrame)})
		return nil, false
	}
	if err != nil {
		s.fail(wire.StatusBadRequest, closedCorrupt, "a compressed frame is malformed")
		return nil, false
	}
	if !s.admit(h, raw) {
		return nil, false
	}
	if len(body) > loopCodecBytesMax || raw > loopCodecBytesMax {
		s.offload(*h, body, raw)
		return nil, false
	}
	sc := s.scratch
	if cap(sc.unpacked) == 0 {
		sc.unpacked = make([]byte, 0, unpackBlockBytes)
	}
	if cap(sc.unpacked)-len(sc.unpacked) < raw {
		// Serving the bunch frees the block, and part with it.
		if s.inPart {
			body = append([]byte(nil), body...)
		}
		s.serve()
		if s.stop {
			return nil, false
		}
	}
	at := len(sc.unpacked)
	out, err := wire.Decompress(sc.unpacked, s.codec, body, s.core.o.MaxFrame)
	if err != nil {
		s.fail(wire.StatusBadRequest, closedCorrupt, "a compressed frame does not unpack")
		return nil, false
	}
	sc.unpacked = out
	return out[at:len(out):len(out)], true
}

// offload sends a large compressed frame to a worker, which unpacks and serves it. REQUIRES: admitted.
func (s *Session) offload(h wire.Header, body []byte, raw int) {
	c := s.core
	if !c.big.take(raw) {
		s.busy(&h, busyBigFrames)
		return
	}
	charge := raw
	if s.inPart {
		// The worker takes over the buffer with its charge.
		charge += s.partCharge
		s.part, s.partCharge, s.partServed = nil, 0, false
	} else {
		if !c.big.take(len(body)) {
			c.big.give(raw)
			s.busy(&h, busyBigFrames)
			return
		}
		charge += len(body)
		body = append([]byte(nil), body...)
	}
	s.mu.Lock()
	s.inflight++
	s.inflightBytes += int64(raw)
	s.look()
	s.mu.Unlock()
	t := wire.Token{ID: h.ID, Op: h.Op, Flags: h.Flags, Cost: uint32(raw), Start: s.fedAt}
	if !c.codecs.submit(func() { s.serveUnpacked(t, h, body, charge) }) {
		c.big.give(charge)
		c.counters.busy[busyCodec].Add(1)
		s.answer(t, &wire.Response{Status: wire.StatusBusy, Ext: c.busyExt}, true)
		s.mu.Lock()
		s.look()
		s.mu.Unlock()
	}
}

// serveUnpacked runs on a worker: a bunch of one request.
func (s *Session) serveUnpacked(t wire.Token, h wire.Header, packed []byte, charge int) {
	defer s.core.big.give(charge)
	defer s.core.survive("serve", func() { s.abort(closedPanic) })
	body, err := wire.Decompress(nil, s.codec, packed, s.core.o.MaxFrame)
	if err != nil {
		s.mu.Lock()
		s.release(t)
		s.unlockAndWake()
		s.goAway(wire.StatusBadRequest, closedCorrupt, "a compressed frame does not unpack")
		return
	}
	reqs := make([]wire.Request, 1)
	r := &reqs[0]
	ref := wire.ParseRequest(&h, body, r)
	if ref != nil {
		resp := wire.ErrorResponse(ref, nil)
		s.answer(t, &resp, true)
		return
	}
	r.Cost, r.Start = t.Cost, t.Start
	switch r.Op {
	case wire.OpPing:
		s.answer(t, &wire.Response{Status: wire.StatusOK, Payload: r.Payload}, true)
	case wire.OpCancel, wire.OpCredit:
		s.mu.Lock()
		s.release(t)
		s.unlockAndWake()
		if r.Op == wire.OpCancel {
			s.core.handler.Cancel(s, cancelID(r))
			return
		}
		id, bytes := creditOf(r)
		s.core.handler.Credit(s, id, bytes)
	default:
		s.shard.bunches.Add(1)
		s.shard.bunchSizes.Observe(1)
		s.core.handler.Serve(s, s.principal, reqs)
	}
}

// refuse answers a frame that was not executed.
func (s *Session) refuse(h *wire.Header, ref *wire.Refusal) {
	var ext [16]byte
	r := wire.ErrorResponse(ref, ext[:0])
	s.answer(wire.Token{ID: h.ID, Op: h.Op, Start: s.fedAt}, &r, false)
}

// busy answers a frame that was not executed for lack of room.
func (s *Session) busy(h *wire.Header, why busyReason) {
	s.core.counters.busy[why].Add(1)
	s.answer(wire.Token{ID: h.ID, Op: h.Op, Start: s.fedAt}, &wire.Response{Status: wire.StatusBusy, Ext: s.core.busyExt}, false)
}

// fail gives the stream up from within Feed. What came whole and sound before the fault is still served,
// so that the outcome does not depend on how the network cut the stream.
func (s *Session) fail(st wire.Status, reason closeReason, text string) {
	s.serve()
	s.stop = true
	s.goAway(st, reason, text)
}
