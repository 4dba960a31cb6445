package client

import (
	"errors"
	"net"
	"os"
	"runtime"
	"time"
)

// flush writes what has gathered in the buffer, on behalf of all. REQUIRES: the caller holds the right to
// write (flushing). It never blocks: what the socket does not take, and large payloads, go on to the
// writer goroutine together with that right.
//
// When others wait for answers, more requests are about to come: one yield lets them append first. At 64
// callers that is the difference between 1.8 and 24 requests per write.
func (c *conn) flush(gather bool) {
	if gather {
		runtime.Gosched()
	}
	c.mu.Lock()
	for round := 0; ; round++ {
		if c.err != nil || len(c.buf) == 0 {
			c.flushing = false
			c.settled.Broadcast()
			c.mu.Unlock()
			return
		}
		if c.raw == nil || len(c.refs) > 0 || round == flushRoundsMax {
			c.mu.Unlock()
			c.wake <- struct{}{}
			return
		}
		b := c.buf
		c.buf, c.spare = c.spare[:0], nil
		c.mu.Unlock()

		n, err := c.tryWrite(b)
		c.writes.Add(1)

		c.mu.Lock()
		c.sentBytes += uint64(n)
		c.queued -= n
		if err != nil {
			c.flushing = false
			c.settled.Broadcast()
			c.mu.Unlock()
			c.kill(err)
			return
		}
		if n < len(b) {
			c.rest, c.restBuf = b[n:], b
			c.mu.Unlock()
			c.wake <- struct{}{}
			return
		}
		c.keepSpare(b)
		c.admitWaiters()
	}
}

// keepSpare keeps a written buffer for the next swap. REQUIRES: mu held.
func (c *conn) keepSpare(b []byte) {
	if cap(b) <= keepBytesMax {
		c.spare = b
	}
}

// tryWrite hands the kernel what it takes of b without waiting.
func (c *conn) tryWrite(b []byte) (int, error) {
	c.wb = b
	err := c.raw.Write(c.writeFn)
	c.wb = nil
	if err == nil {
		err = c.werr
	} else {
		c.wn = 0
	}
	return c.wn, err
}

// write is the writer goroutine: owned by the connection, ends when the reader closes wake. It sleeps
// unless the right to write is handed to it.
func (c *conn) write() {
	for range c.wake {
		runtime.Gosched() // for the same reason as in flush
		c.writeQueue()
	}
}

// writeQueue writes all there is, waiting for the socket. REQUIRES: the right to write; it is given up.
func (c *conn) writeQueue() {
	var err error
	c.mu.Lock()
	for c.err == nil && err == nil {
		var b, whole []byte
		var refs []placedRef
		switch {
		case c.rest != nil:
			b, whole = c.rest, c.restBuf
			c.rest, c.restBuf = nil, nil
		case len(c.buf) > 0:
			b, whole, refs = c.buf, c.buf, c.refs
			c.buf, c.spare = c.spare[:0], nil
			c.refs, c.spareRefs = c.spareRefs[:0], nil
		}
		if len(b) == 0 {
			break
		}
		c.mu.Unlock()
		err = c.writeAll(b, refs)
		c.mu.Lock()
		c.keepSpare(whole)
		if refs != nil {
			clear(refs)
			c.spareRefs = refs[:0]
		}
		c.admitWaiters()
	}
	c.flushing = false
	c.settled.Broadcast()
	c.mu.Unlock()
	if err != nil {
		c.kill(err)
	}
}

// writeAll writes b with the payloads of refs at their places.
func (c *conn) writeAll(b []byte, refs []placedRef) error {
	at := 0
	for _, r := range refs {
		if err := c.writeRef(b[at:r.at], r.ref); err != nil {
			return err
		}
		at = r.at
	}
	if at == len(b) {
		return nil
	}
	n, err := c.nc.Write(b[at:])
	c.writes.Add(1)
	c.mu.Lock()
	c.sentBytes += uint64(n)
	c.queued -= n
	c.mu.Unlock()
	return err
}

// writeRef writes piece, then the payload, a chunk at a time: before each chunk it looks where the bytes
// are now, because the caller may have given up (see conn.letGo).
func (c *conn) writeRef(piece []byte, r *ref) error {
	for {
		c.mu.Lock()
		chunk := r.data[r.off:min(len(r.data), r.off+writeChunkBytes)]
		c.writing = r
		c.mu.Unlock()

		c.iov = append(c.iov[:0], piece, chunk)
		iov := c.iov
		n64, err := c.iov.WriteTo(c.nc)
		clear(iov)
		c.iov = iov
		n := int(n64)
		c.writes.Add(1)

		c.mu.Lock()
		c.writing = nil
		head := min(n, len(piece))
		piece = piece[head:]
		r.off += n - head
		c.sentBytes += uint64(n)
		c.queued -= head
		if c.poked {
			c.poked = false
			// An interrupted write is no failure: it goes on from the copy.
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
			if e := c.nc.SetWriteDeadline(time.Time{}); e != nil && err == nil {
				err = e
			}
		}
		if r.off == len(r.data) {
			r.done, r.data = true, nil
		}
		done := r.done
		c.settled.Broadcast()
		c.mu.Unlock()
		if err != nil || done {
			return err
		}
	}
}

// rawWriter is the part of syscall.RawConn that flush uses.
type rawWriter interface {
	Write(f func(fd uintptr) (done bool)) error
}

// rawConn gives the handle for writes that do not wait, or nil where there is none.
func rawConn(nc net.Conn) rawWriter {
	if !canTryWrite {
		return nil
	}
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
