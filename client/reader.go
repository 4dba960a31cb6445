package client

import (
	"errors"
	"fmt"
	"io"

	"kvstore/wire"
)

// readBufferBytes is what one read may bring: the same as a server's.
const readBufferBytes = 64 << 10

// answer is one complete frame and the call that it belongs to. Slices are views over the read buffer.
type answer struct {
	h    wire.Header
	body []byte
	call *call
	// stream is set for a frame that others follow: the call is not claimed, and may be anybody's by now.
	stream *stream
	owned  bool // body may be kept
}

// reader is what the reader goroutine owns.
type reader struct {
	buf     []byte
	answers []answer
	big     []byte // body of a frame that does not fit buf
	raw     []byte // decompressed body
}

// read is the reader goroutine: owned by the connection; ends when the connection does, after every call
// has been completed.
func (c *conn) read() {
	err := c.readFrames()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	c.kill(err)
	c.drain()
	c.link.lost(c)
}

func (c *conn) readFrames() error {
	c.in.buf = make([]byte, readBufferBytes)
	buf, n := c.in.buf, 0
	for {
		m, err := c.nc.Read(buf[n:])
		if m > 0 {
			c.reads.Add(1)
			n += m
			used, err := c.bunch(buf[:n])
			if err != nil {
				return err
			}
			n = copy(buf, buf[used:n])
			if n >= wire.HeaderBytes {
				var h wire.Header
				if err := wire.DecodeHeader(buf[:n], &h); err != nil {
					return err
				}
				if wire.HeaderBytes+int(h.BodyLen) > len(buf) {
					if err := c.readLarge(&h, buf[:n]); err != nil {
						return err
					}
					n = 0
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// bunch serves every complete frame in b and returns how many bytes they are. Calls are found under one
// lock for all of them.
func (c *conn) bunch(b []byte) (used int, err error) {
	as := c.in.answers[:0]
	for {
		var a answer
		if wire.DecodeHeader(b[used:], &a.h) != nil {
			break
		}
		if a.h.BodyLen > wire.FrameBodyBytesMax {
			err = fmt.Errorf("%w: %d bytes", wire.ErrFrameTooLarge, a.h.BodyLen)
			break
		}
		n := wire.HeaderBytes + int(a.h.BodyLen)
		if len(b)-used < n {
			break
		}
		frame := b[used : used+n]
		if err = wire.VerifyFrame(frame); err != nil {
			break
		}
		a.body = frame[wire.HeaderBytes:]
		as = append(as, a)
		used += n
	}
	// What came before a broken frame still counts.
	if e := c.serve(as); e != nil {
		err = e
	}
	c.in.answers = as
	return used, err
}

// readLarge reads the rest of a frame that does not fit the read buffer; b holds its beginning.
func (c *conn) readLarge(h *wire.Header, b []byte) error {
	size := int(h.BodyLen)
	a := answer{h: *h, owned: size > keepBytesMax}
	if a.owned {
		a.body = make([]byte, size)
	} else {
		if cap(c.in.big) < size {
			c.in.big = make([]byte, size, min(keepBytesMax, 2*size))
		}
		a.body = c.in.big[:size]
	}
	for n := copy(a.body, b[wire.HeaderBytes:]); n < size; {
		m, err := c.nc.Read(a.body[n:])
		c.reads.Add(1)
		n += m
		if err != nil && n < size {
			return err
		}
	}
	if err := wire.VerifyParts(b[:wire.HeaderBytes], a.body); err != nil {
		return err
	}
	c.in.answers = append(c.in.answers[:0], a)
	return c.serve(c.in.answers)
}

// serve claims the calls of a bunch, frees their slots, and completes them.
func (c *conn) serve(as []answer) error {
	if len(as) == 0 {
		return nil
	}
	var bad error
	finished, draining := false, false
	c.mu.Lock()
	for i := range as {
		a := &as[i]
		a.call, a.stream = nil, nil
		if bad != nil {
			continue
		}
		if a.h.Flags&(wire.FlagMustUnderstand1|wire.FlagMustUnderstand2) != 0 {
			bad = fmt.Errorf("%w: flags %#x are not known to this version", ErrProtocol, a.h.Flags)
			continue
		}
		if a.h.Flags&wire.FlagResponse == 0 && a.h.Op != wire.OpGoAway {
			bad = fmt.Errorf("%w: %s from the server is no answer", ErrProtocol, a.h.Op)
			continue
		}
		if a.h.ID == 0 {
			if a.h.Op == wire.OpGoAway {
				if s := a.h.Status(); s != wire.StatusOK && s != wire.StatusDraining {
					// The server closes at once; it says why.
					bad = fmt.Errorf("%w: %s: %s", errGoAway, s, a.body)
					continue
				}
				finished, draining = c.goAway() || finished, true
			}
			continue
		}
		k := a.h.ID & (slotsMax - 1)
		if int(k) >= len(c.slots) {
			continue
		}
		s := &c.slots[k]
		if !s.live || !s.enqueued || s.gen != a.h.ID>>slotBits {
			// A repeated answer: its request was completed before.
			continue
		}
		more := a.h.Flags&wire.FlagMore != 0
		if s.op == a.h.Op && more && s.stream != nil && a.h.Status() == wire.StatusOK {
			a.stream = s.stream
			continue
		}
		if s.op != a.h.Op || more {
			bad = fmt.Errorf("%w: %s with flags %#x answers a %s", ErrProtocol, a.h.Op, a.h.Flags, s.op)
			continue
		}
		a.call = s.call
		finished = c.freeSlot(k) || finished
	}
	c.admitWaiters()
	c.mu.Unlock()
	if draining {
		// It will not lead for long, and new connections to it are in vain.
		c.client.route.shun(c.link.node)
	}

	var ended opList // those of one pipeline
	for i := range as {
		a := &as[i]
		if a.stream != nil {
			if err := c.deliverMore(a); err != nil {
				bad = err // the calls behind it are claimed, and must be completed
			}
			a.stream, a.body = nil, nil
			continue
		}
		cl := a.call
		if cl == nil {
			continue
		}
		if err := c.deliver(cl, a); err != nil {
			// The server did execute something, but what it says of it can't be read.
			cl.res = result{err: err, sent: true}
			bad = err
		}
		a.call, a.body = nil, nil
		o := cl.pipelined
		if o == nil || cl.onDone == nil {
			cl.complete()
			continue
		}
		// As complete does, but Ops of one pipeline that end with the same read are given back together.
		cl.onDone = nil
		if !c.client.settled(cl) {
			continue
		}
		o.err = c.client.end(cl)
		if ended.head != nil && ended.head.p != o.p {
			ended.head.p.push(ended)
			ended = opList{}
		}
		ended.add(o)
	}
	if ended.head != nil {
		ended.head.p.push(ended)
	}
	if bad == nil && finished {
		return errGoAway
	}
	return bad
}

// deliver puts an answer into its call.
func (c *conn) deliver(cl *call, a *answer) error {
	ext, payload, owned, err := c.unpack(a)
	if err != nil {
		return err
	}
	return cl.receive(&a.h, ext, payload, owned)
}

// deliverMore puts a frame that others follow into its stream.
func (c *conn) deliverMore(a *answer) error {
	ext, payload, owned, err := c.unpack(a)
	if err != nil {
		return err
	}
	return a.stream.push(ext, payload, owned)
}

// unpack gives the parts of an answer. Unless they are owned they are views over what the next one overwrites.
func (c *conn) unpack(a *answer) (ext, payload []byte, owned bool, err error) {
	body, owned := a.body, a.owned
	if a.h.Flags&wire.FlagCompressed != 0 {
		n, err := wire.RawLen(body, wire.FrameBodyBytesMax)
		if err != nil {
			return nil, nil, false, err
		}
		// What the caller will own is never unpacked into the buffer, which may have grown beyond keepBytesMax.
		raw := c.in.raw[:0]
		if owned = n > keepBytesMax; owned {
			raw = nil
		}
		if raw, err = wire.Decompress(raw, c.ack.Codec, body, wire.FrameBodyBytesMax); err != nil {
			return nil, nil, false, err
		}
		body = raw
		if !owned {
			c.in.raw = raw
		}
	}
	ext, _, payload, err = wire.SplitBody(&a.h, body)
	return ext, payload, owned, err
}

// goAway stops new requests on this connection; it reports whether nothing is left to wait for.
// REQUIRES: mu held.
func (c *conn) goAway() (finished bool) {
	if c.goingAway {
		return false
	}
	c.goingAway = true
	c.gone.Store(true)
	c.failWaiters(errGoAway)
	return c.inflight == 0
}
