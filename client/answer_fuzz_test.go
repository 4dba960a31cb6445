package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"kvstore/wire"
)

// The client trusts no server: whatever bytes come, each call ends once, with a result that depends on the stream
// alone, not on how it arrives, and with no more memory than the stream gives a reason for.

// script is a connection whose other side has said all that it will say. Each read takes at most step bytes.
type script struct {
	net.Conn
	in   []byte
	step int
}

func (s *script) Read(b []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), s.step)], s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(b []byte) (int, error)      { return len(b), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// asked are the requests that wait for an answer in slots 1, 2, …: one of each kind of result.
var asked = []struct {
	op   wire.Opcode
	want want
}{
	{wire.OpPut, wantVersion}, {wire.OpGet, wantValue}, {wire.OpGet, wantAppend}, {wire.OpExists, wantMeta},
	{wire.OpScan, wantPayload}, {wire.OpBatch, wantPayload}, {wire.OpAdmin, wantRaw}, {wire.OpPing, wantNothing},
}

// slotID is the id under which the request in slot i (from 0) is known to the server.
func slotID(i int) uint32 { return uint32(1<<slotBits | i) }

// hear runs a reader over in and tells what became of each call, and why the reader ended.
func hear(t *testing.T, c *Client, in []byte, step int, codec wire.Codec) (results []string, end error) {
	l := &link{client: c, node: &node{addr: "hostile"}}
	ack := wire.HelloAck{Features: wire.FeatureCRC, Codec: codec, MaxFrame: wire.FrameBodyBytesMax}
	cn := newConn(c, l, &script{in: bytes.Clone(in), step: step}, &ack)
	made := make([]*call, len(asked))
	ended := make([]int, len(asked))
	for i, a := range asked {
		cl := &call{op: a.op, want: a.want, dst: []byte("dst"), onDone: func(*call) { ended[i]++ }}
		made[i] = cl
		cn.slots = append(cn.slots, slot{call: cl, gen: 1, op: a.op, live: true, enqueued: true})
		cn.inflight++
	}
	err := cn.readFrames()
	if err == nil {
		t.Fatal("the reader ended without a reason")
	}
	cn.kill(err)
	cn.drain()
	for i, cl := range made {
		if ended[i] != 1 {
			t.Fatalf("the call of %s ended %d times", cl.op, ended[i])
		}
		r := &cl.res
		if r.answered == (r.err != nil) && !(r.answered && r.sent) {
			t.Fatalf("%s: answered %v beside %v", cl.op, r.answered, r.err)
		}
		answer := ""
		if r.answered && r.err == nil {
			answer = fmt.Sprintf("%v %v %v %v %+v %v %x %x", r.status, r.flags, r.fail, r.failed, r.meta, r.rev, r.data, r.ext)
			use(cl)
		}
		results = append(results, answer)
	}
	if cn.inflight < 0 || cn.inflight > len(asked) {
		t.Fatalf("%d requests in flight", cn.inflight)
	}
	return results, err
}

// use reads an answer further, as the operations do.
func use(cl *call) {
	r := &cl.res
	cl.stale = true
	cl.age()
	if r.status != wire.StatusOK {
		return
	}
	switch cl.op {
	case wire.OpGet:
		v := valueOf(&r.meta, r.ext, r.data)
		v.Tags()
	case wire.OpScan:
		p, err := decodePage(r.data, false)
		if err == nil {
			for i := range p.Entries {
				p.Entries[i].Tags()
			}
		}
	case wire.OpBatch:
		ops := []wire.Opcode{wire.OpPut, wire.OpGet, wire.OpDelete}
		for _, replayed := range []wire.Flags{0, wire.FlagReplayed} {
			r.flags = replayed
			b := batch{op: wire.OpBatch, ops: ops, guarded: make([]bool, len(ops))}
			if out, err := b.decode(cl, 0, len(ops)); err == nil && len(out.Items) != len(ops) {
				panic(fmt.Sprintf("BUG: %d results for %d operations", len(out.Items), len(ops)))
			}
		}
	}
}

// answers is a stream of right answers to all that was asked.
func answers(codec wire.Codec) (b []byte) {
	meta := wire.AppendExtMeta(nil, &wire.Meta{Version: 7, CreatedAt: 1, UpdatedAt: 2, Checksum: 3})
	page := make([]byte, wire.ScanPageHeaderBytes)
	wire.PutScanPageHeader(page, 9, 1, 3)
	page = wire.AppendItem(page, &wire.Item{Op: wire.OpGet, Ext: meta, Key: []byte("k"), Value: []byte("v")})
	page = append(page, "cur"...)
	result := wire.AppendResultHeader(nil, 9, 3)
	result = wire.AppendItem(result, &wire.Item{Op: wire.OpPut, Value: make([]byte, 8)})
	result = wire.AppendItem(result, &wire.Item{Op: wire.OpGet, Ext: meta, Value: []byte("v")})
	result = wire.AppendItem(result, &wire.Item{Op: wire.OpDelete, Value: make([]byte, 8)})
	for i, a := range asked {
		h := wire.Header{Op: a.op, ID: slotID(i), Flags: wire.FlagResponse | wire.FlagCRC}
		ext, payload := []byte(nil), []byte(nil)
		switch a.want {
		case wantVersion:
			payload = make([]byte, wire.VersionBytes)
		case wantValue, wantAppend, wantMeta:
			ext, payload = meta, bytes.Repeat([]byte("value"), 5)
		case wantPayload:
			if payload = page; a.op == wire.OpBatch {
				payload = result
			}
		}
		if codec != wire.CodecNone && a.want == wantValue {
			h.ExtLen = uint16(len(ext))
			f, off := wire.BeginFrame(nil)
			f, ok := wire.AppendCompressed(f, codec, append(bytes.Clone(ext), bytes.Repeat([]byte("value"), 300)...))
			if !ok {
				panic("BUG: it does not compress")
			}
			h.Flags |= wire.FlagCompressed
			b = append(b, wire.FinishFrame(f, off, h)...)
			continue
		}
		b = wire.AppendFrame(b, h, ext, nil, payload)
	}
	return b
}

// mended gives every whole frame in b the checksum that it would have, so that the fuzzer gets behind it.
func mended(b []byte) []byte {
	b = bytes.Clone(b)
	for at := 0; len(b)-at >= wire.HeaderBytes; {
		var h wire.Header
		if wire.DecodeHeader(b[at:], &h) != nil || int64(h.BodyLen) > int64(len(b)-at-wire.HeaderBytes) {
			break
		}
		end := at + wire.HeaderBytes + int(h.BodyLen)
		h.Flags |= wire.FlagCRC
		f := append(make([]byte, wire.HeaderBytes), b[at+wire.HeaderBytes:end]...)
		copy(b[at:], wire.FinishFrame(f, 0, h))
		at = end
	}
	return b
}

func FuzzAnswers(f *testing.F) {
	_, c := fake(f, withLimits(func(o *options) { o.noRawWrite = true }))
	f.Add(answers(wire.CodecNone), uint8(wire.CodecNone), uint16(1), true)
	f.Add(answers(wire.CodecS2), uint8(wire.CodecS2), uint16(100), false)
	f.Add(answers(wire.CodecZstd), uint8(wire.CodecZstd), uint16(9), true)
	f.Add(wire.AppendFrame(nil, wire.Header{Op: wire.OpGoAway, Flags: wire.FlagResponse}, nil, nil, []byte("why")), uint8(0), uint16(3), true)
	f.Add(wire.AppendFrame(nil, wire.Header{Op: wire.OpPut, ID: slotID(0), Flags: wire.FlagResponse, StatusOrGroup: uint16(wire.StatusConditionFailed)},
		nil, nil, wire.AppendFailed(nil, []wire.FailedCondition{{Operation: 1, Condition: 2}})), uint8(0), uint16(1), true)
	f.Add(wire.AppendFrame(nil, wire.Header{Op: wire.OpGet, ID: slotID(1), Flags: wire.FlagResponse, StatusOrGroup: uint16(wire.StatusNotLeader)},
		wire.AppendExtString(nil, wire.ExtLeader, "a:1"), nil, []byte("no")), uint8(0), uint16(1), true)
	f.Fuzz(func(t *testing.T, b []byte, codec uint8, step uint16, mend bool) {
		if mend {
			b = mended(b)
		}
		// An answer that can't be read ends the connection, behind the others that the same read brought: so one read
		// may bring more than many do, never less and never something else.
		whole, end := hear(t, c, b, len(b)+1, wire.Codec(codec%3))
		pieces, _ := hear(t, c, b, int(step)+1, wire.Codec(codec%3))
		for i := range pieces {
			if (pieces[i] != "" || errors.Is(end, io.EOF)) && pieces[i] != whole[i] {
				t.Fatalf("%s: in pieces of %d bytes\n%q\nwhole\n%q", asked[i].op, int(step)+1, pieces[i], whole[i])
			}
		}
	})
}

// What is said to HELLO becomes an error or an acknowledgement, without reading beyond the frame.
func FuzzHelloAnswer(f *testing.F) {
	_, c := fake(f)
	good := wire.AppendHelloAck(wire.AppendPreface(nil, wire.Version, 0), &wire.HelloAck{
		Features: wire.FeatureCRC, MaxFrame: wire.MaxFrameMin, NodeID: "n", Version: "v", Members: []wire.MemberInfo{{ID: "n", Address: "a:1"}},
	})
	f.Add(good)
	f.Add(append(wire.AppendPreface(nil, wire.Version, 0), wire.AppendFrame(nil, wire.Header{Op: wire.OpGoAway, StatusOrGroup: uint16(wire.StatusDraining)}, nil, nil, []byte("text"))...))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append(b[:min(len(b), wire.PrefaceBytes):min(len(b), wire.PrefaceBytes)], mended(b[min(len(b), wire.PrefaceBytes):])...)
		s := &script{in: append(bytes.Clone(b), "more"...), step: len(b) + 8}
		ack, err := c.hello(s)
		if (ack == nil) == (err == nil) {
			t.Fatalf("%+v beside %v", ack, err)
		}
		var e *Error
		if errors.As(err, &e) && (e.Op != "hello" || len(e.Message) > wire.MessageBytesMax) {
			t.Fatalf("refused with %+v", e)
		}
		if err == nil && len(s.in) < 4 {
			t.Fatal("read beyond the frame")
		}
	})
}
