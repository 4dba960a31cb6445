package peer

import (
	"context"
	"errors"
	"time"

	"kvstore/internal/clock"
)

// Pulses: each node asks each other one, every PulseInterval on a connection of its own, what its clocks show
// and how it is. Both sides always wait for the next byte, so that the end of a process is seen at once: who
// is heard by pulses is alive.

// Pulse is the answer of another node, with the times of this one around it.
type Pulse struct {
	// Peer is the other node, Incarnation its data directory.
	Peer        string
	Incarnation [16]byte
	// SentAt and ReceivedAt are this node's boot times (clock.Clock.Boot, nanoseconds) before the question was
	// sent and after the answer was received. What the answer tells was so somewhen between them.
	SentAt, ReceivedAt int64
	// Boot and Raw are the other node's boot time and CLOCK_MONOTONIC_RAW, in nanoseconds: the first is slewed
	// by its time daemon, the second is not.
	Boot, Raw int64
	// Wall is the other node's wall clock, in microseconds since 1970.
	Wall int64
	// Vitals is what the other node's Options.Vitals returned. The receiver owns it.
	Vitals []byte
}

// pulseQuestion is a frame's payload.
type pulseQuestion struct {
	Seq uint64 `json:"seq"`
	// Applied is how far the asking node has applied the log: it holds that much durably.
	Applied uint64 `json:"applied,omitempty"`
	// Held is what the asking node knows of others.
	Held []held `json:"held,omitempty"`
}

// pulseAnswer is a frame's payload.
type pulseAnswer struct {
	Seq    uint64 `json:"seq"`
	Boot   int64  `json:"boot"`
	Raw    int64  `json:"raw"`
	Wall   int64  `json:"wall"`
	Vitals []byte `json:"vitals,omitempty"`
}

// silence is for how long a living process may say nothing.
func (t *Transport) silence() time.Duration {
	return 3 * max(t.o.HeartbeatTimeout, t.o.PulseInterval)
}

// lookAgain makes pulse look for nodes that have come to be known.
func (t *Transport) lookAgain() {
	select {
	case t.met <- struct{}{}:
	default:
	}
}

// pulse keeps one goroutine going for each node whose data directory is known.
func (t *Transport) pulse() {
	defer t.wg.Done()
	for t.ctx.Err() == nil {
		for id, e := range t.book.read().entries {
			if e.incarnation == [16]byte{} || e.address == "" || id == t.o.NodeID {
				continue
			}
			t.mu.Lock()
			running := t.pulsed[id]
			t.pulsed[id] = true
			t.mu.Unlock()
			if !running {
				t.wg.Add(1)
				go t.pulseTo(id) // owned by Transport; ends when the node is forgotten, or with Close
			}
		}
		select {
		case <-t.met:
		case <-t.ctx.Done():
		}
	}
}

// pulseTo asks one node, again and again, as long as it is known.
func (t *Transport) pulseTo(id string) {
	defer t.wg.Done()
	defer func() {
		t.mu.Lock()
		delete(t.pulsed, id)
		t.mu.Unlock()
		t.lookAgain() // it may have come anew since
	}()
	wait := t.o.PulseInterval
	for {
		e := t.book.read().entries[id]
		if e.incarnation == [16]byte{} {
			return
		}
		c, err := t.dial(t.ctx, id, e.address, PurposePulse, true)
		if err == nil {
			wait = t.o.PulseInterval
			err = t.pulseOn(c)
		}
		t.log.Debug("no pulse", "peer", id, "error", err)
		if !pause(t.ctx, wait) {
			return
		}
		wait = min(2*wait, max(pulsePauseMax, t.o.PulseInterval))
	}
}

// pulseOn asks on one connection until it fails, and closes it.
func (t *Transport) pulseOn(c *conn) error {
	answers := make(chan pulseAnswer)
	ctx, cancel := context.WithCancelCause(t.ctx)
	ended := make(chan struct{})
	go func() { // owned by this call, which waits for it; ends when c is closed
		defer close(ended)
		for {
			var a pulseAnswer
			if err := readFrame(c, kindPulsed, helloBytesMax, &a); err != nil {
				cancel(err)
				return
			}
			c.heard.Store(int64(t.o.Clock.Boot()))
			select {
			case answers <- a:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		closeQuietly(t, c)
		cancel(nil)
		<-ended
	}()
	ticker := time.NewTicker(t.o.PulseInterval)
	defer ticker.Stop()
	for seq := uint64(1); ; seq++ {
		sentAt := int64(t.o.Clock.Boot())
		q := pulseQuestion{Seq: seq, Held: t.listHeld()}
		if n := t.bound(); n != nil {
			q.Applied = n.Applied()
		}
		if err := t.sendPulse(c, kindPulse, &q); err != nil {
			return err
		}
		timeout := time.NewTimer(t.o.Timeout)
		var a pulseAnswer
		select {
		case a = <-answers:
		case <-timeout.C:
			return errors.New("no answer came in time")
		case <-ctx.Done():
			timeout.Stop()
			return context.Cause(ctx)
		}
		timeout.Stop()
		receivedAt := int64(t.o.Clock.Boot())
		if a.Seq != seq || len(a.Vitals) > vitalsBytesMax {
			return errors.New("the answer is to another question, or too large")
		}
		t.o.OnPulse(Pulse{
			Peer: c.peer, Incarnation: c.process.incarnation, SentAt: sentAt, ReceivedAt: receivedAt,
			Boot: a.Boot, Raw: a.Raw, Wall: a.Wall, Vitals: a.Vitals,
		})
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// answerPulses answers what comes on c until it ends.
func (t *Transport) answerPulses(c *conn, from string) {
	defer closeQuietly(t, c)
	for {
		var q pulseQuestion
		// A connection whose other end is silent for this long is of no use: it will ask on another one.
		err := c.SetReadDeadline(time.Now().Add(t.silence() + t.o.Timeout + pulsePauseMax))
		if err == nil {
			err = readFrame(c, kindPulse, pulseBytesMax, &q)
		}
		if err != nil {
			t.log.Debug("no more pulses", "from", from, "error", err)
			return
		}
		c.heard.Store(int64(t.o.Clock.Boot()))
		t.noteHeld(from, c.process, q.Applied)
		for _, h := range q.Held[:min(len(q.Held), heldMax)] {
			p := process{starts: h.Starts}
			if h.Incarnation.into(p.incarnation[:]) == nil {
				t.noteHeld(h.ID, p, h.Index)
			}
		}
		a := pulseAnswer{Seq: q.Seq, Vitals: t.vitals()}
		a.Wall = t.o.Clock.Now().UnixMicro()
		a.Raw = int64(clock.Raw(t.o.Clock))
		a.Boot = int64(t.o.Clock.Boot())
		if err := t.sendPulse(c, kindPulsed, &a); err != nil {
			t.log.Debug("cannot answer a pulse", "from", from, "error", err)
			return
		}
	}
}

// vitals returns what this node tells about itself; nothing if that is too much.
func (t *Transport) vitals() []byte {
	v := t.o.Vitals()
	if len(v) > vitalsBytesMax {
		t.vitalsOnce.Do(func() {
			t.log.Error("what this node tells about itself is too large to be sent", "bytes", len(v), "bytes_max", vitalsBytesMax)
		})
		return nil
	}
	return v
}

func (t *Transport) sendPulse(c *conn, kind frameKind, v any) error {
	frame, err := appendFrame(nil, kind, v)
	if err == nil {
		err = c.SetWriteDeadline(time.Now().Add(t.o.Timeout))
	}
	if err == nil {
		_, err = c.Write(frame)
	}
	return err
}
