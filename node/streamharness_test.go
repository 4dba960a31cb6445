package node

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"kvstore/wire"
)

// streamPeer is a client of the binary protocol that knows the wire and nothing else.
type streamPeer struct {
	t *testing.T
	c net.Conn
}

// frame is one frame of an answer.
type frame struct {
	wire.Header
	ext, payload []byte
}

func (f *frame) more() bool { return f.Flags&wire.FlagMore != 0 }

// dialStreams connects to a node with streams agreed.
func dialStreams(t *testing.T, n *Node, maxFrame uint32) *streamPeer {
	t.Helper()
	c, err := net.Dial("tcp", n.Addresses().Native)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(2 * waitMax)); err != nil {
		t.Fatal(err)
	}
	p := &streamPeer{t: t, c: c}
	p.write(wire.AppendHello(wire.AppendPreface(nil, wire.Version, wire.Version), &wire.Hello{Features: wire.FeatureCRC | wire.FeatureWatch, MaxFrame: maxFrame}))
	if _, err := io.ReadFull(c, make([]byte, wire.PrefaceBytes)); err != nil {
		t.Fatal(err)
	}
	var ack wire.HelloAck
	if err := wire.DecodeHelloAck(p.read().ext, &ack); err != nil || ack.Features&wire.FeatureWatch == 0 {
		t.Fatalf("HELLO agreed on %x: %v", ack.Features, err)
	}
	return p
}

func (p *streamPeer) write(b []byte) {
	p.t.Helper()
	if _, err := p.c.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *streamPeer) send(op wire.Opcode, id uint32, ext []byte, key string, payload []byte) {
	p.t.Helper()
	p.write(wire.AppendFrame(nil, wire.Header{Op: op, ID: id, Flags: wire.FlagCRC}, ext, []byte(key), payload))
}

func (p *streamPeer) watch(id uint32, q *wire.WatchRequest) {
	p.t.Helper()
	p.send(wire.OpWatch, id, nil, "", wire.AppendWatchRequest(nil, q))
}

func (p *streamPeer) credit(id, n uint32) {
	p.t.Helper()
	p.send(wire.OpCredit, 0, nil, "", wire.AppendCredit(nil, id, n))
}

func (p *streamPeer) cancel(id uint32) {
	p.t.Helper()
	p.send(wire.OpCancel, 0, nil, "", []byte{byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
}

func (p *streamPeer) try() (*frame, error) {
	head := make([]byte, wire.HeaderBytes)
	if _, err := io.ReadFull(p.c, head); err != nil {
		return nil, err
	}
	f := new(frame)
	if err := wire.DecodeHeader(head, &f.Header); err != nil {
		return nil, err
	}
	body := make([]byte, f.BodyLen)
	if _, err := io.ReadFull(p.c, body); err != nil {
		return nil, err
	}
	if err := wire.VerifyParts(head, body); err != nil {
		return nil, err
	}
	var err error
	f.ext, _, f.payload, err = wire.SplitBody(&f.Header, body)
	return f, err
}

func (p *streamPeer) read() *frame {
	p.t.Helper()
	f, err := p.try()
	if err != nil {
		p.t.Fatalf("cannot read: %v", err)
	}
	return f
}

// batchOf decodes a frame of a watch.
func batchOf(t *testing.T, payload []byte) (wire.Revision, []wire.Event) {
	t.Helper()
	var eb wire.EventBatch
	if err := wire.DecodeEventBatch(payload, &eb); err != nil {
		t.Fatal(err)
	}
	var out []wire.Event
	b := eb.Events
	for range eb.Count {
		var e wire.Event
		var err error
		if b, err = wire.NextEvent(b, &e); err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	if len(b) != 0 {
		t.Fatalf("%d bytes behind the events", len(b))
	}
	return eb.Revision, out
}

// reader follows one watch: its events must come once, in order, none above the batch's revision and none at or below
// the batch's before.
type watchReader struct {
	t      *testing.T
	after  wire.Revision
	begun  bool
	events []string // "kind key=value@revision", and what was before
	sizes  int
}

func (x *watchReader) take(f *frame) {
	x.t.Helper()
	rev, events := batchOf(x.t, f.payload)
	if !x.begun {
		x.begun = true
		if t, v, _, err := wire.NextExt(f.ext); err != nil || t != wire.ExtHistory || len(v) != 16 {
			x.t.Fatalf("the first frame has no history: % x", f.ext)
		}
		x.after = rev
	}
	if rev < x.after {
		x.t.Fatalf("a batch of revision %d behind %d", rev, x.after)
	}
	for i := range events {
		e := &events[i]
		if e.Revision <= x.after || e.Revision > rev {
			x.t.Fatalf("an event of revision %d behind %d in a batch of %d", e.Revision, x.after, rev)
		}
		x.after = e.Revision
		x.events = append(x.events, eventText(e))
	}
	x.after = rev
	x.sizes += len(f.payload)
}

func eventText(e *wire.Event) string {
	s := fmt.Sprintf("%s %s=%s@%d", e.Kind, e.Key, e.Value, e.Revision)
	switch {
	case e.Flags&wire.EventPreviousLost != 0:
		s += " lost"
	case len(e.PreviousExt) != 0:
		s += fmt.Sprintf(" was %s", e.Previous)
	}
	return s
}

// quietStreams waits until a node holds nothing of any stream.
func quietStreams(t *testing.T, n *Node) {
	t.Helper()
	until(t, "no stream is left", func() bool {
		s := n.service.streams
		s.mu.Lock()
		defer s.mu.Unlock()
		s.timers.mu.Lock()
		defer s.timers.mu.Unlock()
		n.service.limits.mu.Lock()
		defer n.service.limits.mu.Unlock()
		return s.count == 0 && len(s.conns) == 0 && len(s.timers.heap) == 0 && s.counts.watches.Load() == 0 && s.counts.listings.Load() == 0 &&
			n.shard.feed.Stats().Watchers == 0 && len(n.service.limits.watches) == 0
	})
}

func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}
