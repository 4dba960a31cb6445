package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// listen takes connections until the listener is closed. Owned by Transport.
func (t *Transport) listen() {
	defer t.wg.Done()
	pause := acceptPauseMin
	for {
		raw, err := t.o.Listener.Accept()
		if err != nil {
			if t.ctx.Err() != nil {
				return
			}
			t.log.Error("cannot accept a connection", "error", err, "pause", pause)
			select {
			case <-t.ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, acceptPauseMax)
			continue
		}
		pause = acceptPauseMin
		c := &conn{Conn: raw, t: t, inbound: true}
		if !t.conns.add(c) {
			t.drop(raw, "too many connections are open")
			continue
		}
		select {
		case t.handshakes <- struct{}{}:
			t.wg.Add(1)
			go t.welcome(c) // owned by Transport; ends with the connection
		default:
			t.drop(c, "too many connections are in their handshake")
		}
	}
}

// drop closes a connection that there is no room for. The other side tries again by itself.
func (t *Transport) drop(c net.Conn, why string) {
	t.log.Debug("closing a new connection", "from", c.RemoteAddr(), "reason", why)
	closeQuietly(t, c)
}

func closeQuietly(t *Transport, c io.Closer) {
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.log.Debug("cannot close a connection", "error", err)
	}
}

// welcome is the accepting side of a connection, in its own goroutine: the handshake, and what comes behind it.
func (t *Transport) welcome(c *conn) {
	defer t.wg.Done()
	h, ok := t.meet(c)
	<-t.handshakes
	switch {
	case !ok:
		closeQuietly(t, c)
	case h.Purpose == PurposeRaft:
		t.serveCalls(c)
	case h.Purpose == PurposeInstall:
		t.serveInstall(c, h.Source)
	case h.Purpose == PurposePulse:
		t.answerPulses(c, h.Source)
	case h.Purpose == PurposeFetch:
		t.serveFetch(c, h.Source)
	default:
		closeQuietly(t, c)
	}
}

// meet reads the first frame and answers it; ok if the connection is to be used.
func (t *Transport) meet(c *conn) (h Hello, ok bool) {
	if err := errors.Join(tune(c.Conn, t.userTimeout()), c.SetDeadline(time.Now().Add(t.o.Timeout))); err != nil {
		t.log.Debug("cannot set up a connection", "from", c.RemoteAddr(), "error", err)
		return h, false
	}
	h, err := ReadHello(c)
	var refused *refusal
	switch {
	case errors.Is(err, errVersion):
		refused = refuse(codeMalformed, "node %q: %v: upgrade the older program", t.o.NodeID, err)
	case err != nil:
		t.log.Debug("not a connection of another node", "from", c.RemoteAddr(), "error", err)
		return h, false
	case !known(h.Purpose):
		refused = refuse(codeMalformed, "node %q knows no connection for %.40q: upgrade its program", t.o.NodeID, h.Purpose)
	default:
		refused = t.admit(&h)
	}
	if refused != nil && (refused.final() || refused.copied()) && h.Source != "" {
		t.noteRejected(h.Source, h.Address, refused, false)
	}
	frame, err := appendAnswer(nil, &answer{hello: t.hello(h.Purpose, h.Source), refusal: refused})
	if err == nil {
		_, err = c.Write(frame)
	}
	if refused != nil {
		return h, false
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		t.log.Debug("cannot answer a handshake", "from", c.RemoteAddr(), "error", err)
		return h, false
	}
	if !t.settleIn(c, &h, h.Purpose) {
		return h, false
	}
	t.noteAccepted(h.Source, h.Address, false)
	t.o.OnCard(h.Source, h.Incarnation, h.Card)
	return h, true
}

// known tells whether this program knows connections for p.
func known(p Purpose) bool {
	switch p {
	case PurposeRaft, PurposeInstall, PurposeFound, PurposePulse, PurposeFetch:
		return true
	}
	return false
}

// pause waits for d; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
