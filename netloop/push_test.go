package netloop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"kvstore/wire"
)

// streamer answers WATCH with a stream whose frames a goroutine of its own pushes: numbered, of sizes that the test
// chooses. What else comes goes to the store.
type streamer struct {
	*store
	frames int
	size   func(i int) int

	mu       sync.Mutex
	writable map[wire.Completer]chan struct{} // guarded by mu; closed and replaced by poke
	running  atomic.Int64                     // streams that have not ended

	credits, full, grants, gone atomic.Int64
	lastCredit                  atomic.Uint64
}

func newStreamer(frames int, size func(i int) int) *streamer {
	return &streamer{store: newStore(), frames: frames, size: size, writable: make(map[wire.Completer]chan struct{})}
}

func (st *streamer) Hello(a net.Addr, h *wire.Hello) (wire.HelloAck, any, *wire.Refusal) {
	ack, p, ref := st.store.Hello(a, h)
	ack.Features |= h.Features & wire.FeatureWatch
	return ack, p, ref
}

func (st *streamer) signal(c wire.Completer) chan struct{} {
	st.mu.Lock()
	defer st.mu.Unlock()
	ch := st.writable[c]
	if ch == nil {
		ch = make(chan struct{})
		st.writable[c] = ch
	}
	return ch
}

func (st *streamer) Serve(c wire.Completer, principal any, reqs []wire.Request) {
	for i := range reqs {
		if reqs[i].Op != wire.OpWatch {
			st.one(c, &reqs[i])
			continue
		}
		t := reqs[i].Token()
		st.running.Add(1)
		go st.stream(c.(wire.Pusher), t) // ends with the stream, which the test waits for
	}
}

// stream pushes all frames, waiting for room, and the final answer. Payloads begin with the number of the frame.
func (st *streamer) stream(c wire.Pusher, t wire.Token) {
	final := wire.Response{Status: wire.StatusCancelled}
	defer func() { c.Complete(t, &final); st.running.Add(-1) }()
	for i := range st.frames {
		payload := make([]byte, max(4, st.size(i)))
		binary.LittleEndian.PutUint32(payload, uint32(i))
	again:
		signal := st.signal(c)
		switch c.Push(t, &wire.Response{Payload: payload}) {
		case wire.PushFull:
			st.full.Add(1)
			<-signal
			goto again
		case wire.PushGone:
			return
		}
	}
}

func (st *streamer) poke(c wire.Completer) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if ch := st.writable[c]; ch != nil {
		close(ch)
		delete(st.writable, c)
	}
}

func (st *streamer) Writable(c wire.Completer) { st.grants.Add(1); st.poke(c) }
func (st *streamer) Gone(c wire.Completer)     { st.gone.Add(1); st.poke(c) }
func (st *streamer) Credit(_ wire.Completer, id, n uint32) {
	st.credits.Add(1)
	st.lastCredit.Store(uint64(id)<<32 | uint64(n))
}

func watchPayload() []byte {
	return wire.AppendWatchRequest(nil, &wire.WatchRequest{Flags: wire.WatchFromNow})
}

func sizes(seed uint64, most int) func(int) int {
	return func(i int) int {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		if r.IntN(8) == 0 {
			return r.IntN(most)
		}
		return r.IntN(300)
	}
}

// Goal: frames of one stream arrive whole, once and in order, and its last frame last, whatever their sizes, with and
// without compression, on both drivers, beside other streams and requests.
func TestPush_ManyStreamsBesideRequests_FramesInOrder(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecS2} {
		t.Run(fmt.Sprintf("codec=%d", codec), func(t *testing.T) {
			st := newStreamer(200, sizes(7, 200<<10))
			s := start(t, st, nil)
			hello := wire.Hello{Features: wire.FeatureCRC | wire.FeatureWatch}
			if codec != wire.CodecNone {
				hello.Features |= wire.FeatureCompression
				hello.Codecs = []wire.Codec{codec}
			}
			p := greet(t, dialRaw(t, s.Addr().String()), hello)
			st.put("k", []byte("v"))
			const streams = 5
			var out []byte
			for id := range uint32(streams) {
				out = append(out, p.frame(wire.OpWatch, id+1, "", watchPayload())...)
			}
			p.send(out)
			next := make([]int, streams)
			gets, ended := 0, 0
			for ended < streams {
				if gets < 500 {
					p.send(p.frame(wire.OpGet, uint32(1000+gets), "k", nil))
					gets++
				}
				r := p.recv()
				if r.h.Op == wire.OpGet {
					if r.h.Status() != wire.StatusOK {
						t.Fatalf("a request beside streams got %s", r)
					}
					continue
				}
				i := int(r.h.ID) - 1
				if r.h.Flags&wire.FlagMore == 0 {
					if next[i] != st.frames {
						t.Fatalf("stream %d ended after %d frames of %d", i, next[i], st.frames)
					}
					ended++
					continue
				}
				if got := int(binary.LittleEndian.Uint32(r.payload)); got != next[i] || len(r.payload) != max(4, st.size(got)) {
					t.Fatalf("stream %d: frame %d of %d bytes, expected number %d", i, got, len(r.payload), next[i])
				}
				next[i]++
			}
			eventually(t, "nothing of streams is pending", func() bool { return s.Stats().StreamBytes == 0 && st.running.Load() == 0 })
		})
	}
}

// Goal: a client that reads no streams makes none of its other requests BUSY, and costs at most StreamBytes and a
// frame; when it reads on, everything comes, and Writable was called no more often than Push found no room.
func TestPush_ClientThatReadsSlowly_BoundedAndHarmless(t *testing.T) {
	const frame = 64 << 10
	st := newStreamer(1000, func(int) int { return frame })
	st.put("k", []byte("v"))
	s := start(t, st, nil)
	p := greet(t, dialRaw(t, s.Addr().String()), wire.Hello{Features: wire.FeatureCRC | wire.FeatureWatch})
	p.send(p.frame(wire.OpWatch, 1, "", watchPayload()))
	eventually(t, "the stream is stopped", func() bool { return st.full.Load() > 0 })
	if got := s.Stats().StreamBytes; got > 512<<10+frame+wire.HeaderBytes {
		t.Errorf("%d bytes are pending", got)
	}
	const gets = 200
	for i := range uint32(gets) {
		p.send(p.frame(wire.OpGet, 10+i, "k", nil))
	}
	answered, frames := 0, 0
	for frames < st.frames || answered < gets {
		switch r := p.recv(); {
		case r.h.Op == wire.OpGet && r.h.Status() == wire.StatusOK:
			answered++
		case r.h.Op == wire.OpWatch && r.h.Flags&wire.FlagMore != 0:
			frames++
		case r.h.Op != wire.OpWatch:
			t.Fatalf("beside a stream: %s", r)
		}
	}
	if full, grants := st.full.Load(), st.grants.Load(); grants > full || grants == 0 {
		t.Errorf("Writable was called %d times for %d times without room", grants, full)
	}
	eventually(t, "the stream has ended", func() bool { return st.running.Load() == 0 })
}

// Goal: however a connection ends, Gone comes exactly once, Push answers PushGone from then on, and every stream ends.
func TestGone_HoweverTheConnectionEnds_Once(t *testing.T) {
	ends := map[string]func(t *testing.T, s *Server, p *peer){
		"the client hangs up": func(t *testing.T, _ *Server, p *peer) { _ = p.c.Close() },
		"a corrupt frame": func(t *testing.T, _ *Server, p *peer) {
			b := p.frame(wire.OpGet, 9, "k", nil)
			b[len(b)-1] ^= 1
			p.send(b)
			p.expectEnd()
		},
		"the server closes": func(t *testing.T, s *Server, _ *peer) {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			st := newStreamer(1<<30, func(int) int { return 100 })
			s := start(t, st, nil)
			p := greet(t, dialRaw(t, s.Addr().String()), wire.Hello{Features: wire.FeatureCRC | wire.FeatureWatch})
			p.send(append(p.frame(wire.OpWatch, 1, "", watchPayload()), p.frame(wire.OpWatch, 2, "", watchPayload())...))
			p.recv()
			end(t, s, p)
			eventually(t, "the connection is gone and its streams have ended", func() bool { return s.conns.Load() == 0 && st.running.Load() == 0 })
			if n := st.gone.Load(); n != 1 {
				t.Errorf("Gone was called %d times", n)
			}
		})
	}
}

// Goal: CREDIT goes to the handler, holds no credit of requests and has no answer; a malformed one is answered.
func TestFeed_Credit_GoesToTheHandlerUnanswered(t *testing.T) {
	st := newStreamer(0, nil)
	r := newRig(t, st, agreed{}, nil)
	r.feed(encode(false, 0, wire.OpCredit, 0, 0, "", wire.AppendCredit(nil, 7, 4096)))
	if st.lastCredit.Load() != 7<<32|4096 || st.credits.Load() != 1 {
		t.Errorf("credit %#x, %d times", st.lastCredit.Load(), st.credits.Load())
	}
	if all := r.replies(false, 0); len(all) != 0 || r.s.inflightNow() != 0 {
		t.Errorf("a credit was answered %v, or is under way", all)
	}
	r.feed(encode(false, 0, wire.OpCredit, 0, 0, "", []byte{1, 2, 3}))
	if all := r.replies(false, 0); len(all) != 1 || all[0].h.Status() != wire.StatusBadRequest || st.credits.Load() != 1 {
		t.Errorf("a malformed credit: %v", all)
	}
}

// Goal: bytes of streams that are pending count for no cap of requests, and a final answer stays behind its frames.
func TestPush_PendingFrames_CountForNoCap(t *testing.T) {
	st := newStreamer(0, nil)
	st.put("k", []byte("v"))
	r := newRig(t, st, agreed{}, func(o *Options) { o.OutSoftBytes, o.OutHardBytes, o.StreamBytes = 1000, 1000, 4000 })
	r.holdOutput = true
	r.feed(encode(false, 0, wire.OpWatch, 1, 0, "", watchPayload()))
	eventually(t, "the stream, which has no frames, has ended", func() bool { return st.running.Load() == 0 })
	r.holdOutput = false
	r.flush()
	r.replies(false, 0)

	r.s.inflight++ // as if a stream were open
	tok := wire.Token{ID: 1, Op: wire.OpWatch}
	n := 0
	for ; r.s.Push(tok, &wire.Response{Payload: bytes.Repeat([]byte{byte(n)}, 500)}) == wire.PushOK; n++ {
		if n > 100 {
			t.Fatal("never full")
		}
	}
	r.holdOutput = true
	r.feed(encode(false, 0, wire.OpGet, 2, 0, "k", nil))
	r.s.Complete(tok, &wire.Response{Status: wire.StatusCancelled})
	r.holdOutput = false
	r.flush()
	all := r.replies(false, 0)
	seen := 0
	for _, a := range all {
		switch {
		case a.h.Op == wire.OpGet:
			if a.h.Status() != wire.StatusOK {
				t.Errorf("a request beside pending frames got %s", a)
			}
		case a.h.Flags&wire.FlagMore != 0:
			if int(a.payload[0]) != seen {
				t.Errorf("frame %d in place of %d", a.payload[0], seen)
			}
			seen++
		case seen != n:
			t.Errorf("the final answer stands behind %d frames of %d", seen, n)
		}
	}
	if st.grants.Load() != 1 || r.s.streamed.Load() != 0 || r.s.pending.Load() != 0 {
		t.Errorf("%d grants; %d bytes of streams, %d pending", st.grants.Load(), r.s.streamed.Load(), r.s.pending.Load())
	}
}
