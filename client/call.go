package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"kvstore/wire"
)

// want says what a call takes from an answer with StatusOK.
type want uint8

const (
	wantNothing want = iota
	wantVersion      // 8 bytes of revision
	wantCounter      // 8 bytes of revision, 8 of a number
	wantAppend       // value appended to dst, and metadata
	wantValue        // value in a slice of its own, metadata, kept elements
	wantInto         // the same in place of what dst holds
	wantMeta         // metadata
	wantPayload      // the whole payload in a slice of its own
	wantRaw          // elements and payload of any answer in slices of their own
)

// sessionExtBytes is the room that a write's extension block reserves at its start for ExtSession.
const sessionExtBytes = 26

// call is one operation from its encoding to its result, over all attempts. Calls are pooled: whoever
// made one releases it, and by then no connection refers to it (see conn.abandon and conn.deliver).
type call struct {
	// Set when the operation is encoded; the same for all attempts.
	op     wire.Opcode
	write  bool // has three outcomes
	once   bool // never retried
	single bool // a write outside of sessions: never sent again once it may have been executed
	// anyNode: not for the leader alone, so an answer says nothing of who leads.
	anyNode bool
	// spread: the nodes are asked in turn. leaderCan: the leader is asked what another node could not answer.
	spread    bool
	leaderCan bool
	stale     bool  // the answer tells an age
	at        *node // asked first, as long as it is connected; nil: none
	want      want
	owned     bool   // value belongs to the call, not to the caller
	key       string // for error texts
	head      []byte // room for ExtSession | other elements | key
	skip      int    // sessionExtBytes while no session element is used
	keyLen    int
	group     uint16 // 0: the server's default
	value     []byte // payload
	dst       []byte // wantAppend, wantInto
	// stream takes the frames before the last, of one attempt; nil: the answer has one frame.
	stream *stream

	// Times of Client.now. deadline is for all attempts.
	started  time.Duration
	deadline time.Duration
	waited   bool // started is no longer about now

	// The write's place in its session, nil without one. The same for all attempts, unless the session
	// turns out to be expired before the write was ever sent.
	sess *session
	seq  uint64

	// Of the goroutine that waits for the call; nil: nobody does, or for good.
	ctx  context.Context
	done <-chan struct{}

	// Over all attempts, for the rules of retry.go.
	attempts  int
	redirects int
	backoffs  int
	expired   int
	uncertain bool // an attempt may have been applied
	// said is the last answer of class retry: an error tells it when later attempts reached nobody.
	said  wire.Status
	last  bool // the deadline leaves room for no further attempt
	pilot bool // looks for the leader on behalf of others, see hunt.go

	// While the call waits for others to find a leader: closed when they have.
	found <-chan struct{}

	// Of one attempt, by the goroutine that makes it.
	packed      []byte // compressed body, empty: not compressed
	packedCodec wire.Codec
	packedTried bool
	hdr         [wire.HeaderBytes]byte
	inline      int // bytes for the shared buffer
	bodyBytes   int // of the frame, as sent
	credit      int // bytes counted against the server's credit: those of the body before compression
	cn          *conn
	ref         *ref
	watched     bool // the connection ends it when its context does; see shared
	slot        uint32
	id          uint32

	// Guarded by the mutex of the queue that the call waits in.
	next, prev *call
	waiting    bool
	admitted   bool

	// Given by the connection before ch is signalled.
	res result

	// Signals the end of a wait: admission, an answer, or a failure. Capacity 1; at most one signal is
	// ever under way.
	ch chan struct{}

	// onDone is set while an asynchronous call is with a connection: it is run instead of signalling ch.
	onDone func(*call)
	// onEnd gets the finished asynchronous call, unless pipelined is set.
	onEnd func(*call, error)
	// pipelined is the Op that holds the call, nil for none. Such a call is asynchronous and not pooled.
	pipelined *Op
}

// result is what became of one attempt.
type result struct {
	answered bool
	status   wire.Status
	flags    wire.Flags
	fail     *failure // details of an answer that is no result
	failed   []wire.FailedCondition

	rev     wire.Revision
	counter int64
	meta    wire.Meta
	data    []byte
	ext     []byte

	// Without an answer: err is why, sent whether bytes of the frame may have reached the socket.
	err  error
	sent bool
	// stop is set when nothing more may be tried: context, deadline, client closed, refused locally.
	stop error
}

// failure holds what an answer of another class than ClassResult says.
type failure struct {
	message    string
	retryAfter time.Duration
	leader     string
	term       uint64
	limit      uint64
}

var calls = sync.Pool{New: func() any { return &call{ch: make(chan struct{}, 1)} }}

func newCall(op wire.Opcode, key string, w want) *call {
	cl := calls.Get().(*call)
	cl.begin(op, key, w)
	return cl
}

// begin makes the call one of an operation. REQUIRES: it is new, or reset.
func (cl *call) begin(op wire.Opcode, key string, w want) {
	cl.op, cl.write, cl.want, cl.key = op, op.IsWrite(), w, key
	cl.skip = sessionExtBytes
	cl.head = append(cl.head[:0], zeroSession[:]...)
}

var zeroSession [sessionExtBytes]byte

// release gives the call back to the pool. REQUIRES: no connection and no queue refers to it.
func (cl *call) release() {
	cl.reset()
	calls.Put(cl)
}

// reset forgets the operation. REQUIRES: as release.
func (cl *call) reset() {
	head, ch := cl.head, cl.ch
	if cap(head) > 64<<10 {
		head = nil
	}
	*cl = call{head: head[:0], ch: ch}
}

// ext and body describe what is sent: the extension block begins at head[skip].
func (cl *call) extLen() int { return len(cl.head) - cl.skip - cl.keyLen }

// setKey appends the key: the last step of building head.
func (cl *call) setKey(key string) {
	cl.head = append(cl.head, key...)
	cl.keyLen = len(key)
}

// setSession writes the session element into the room kept for it.
func (cl *call) setSession(id, seq, floor uint64) {
	cl.skip = 0
	wire.AppendExtSession(cl.head[:0], id, seq, floor)
	cl.packed, cl.packedTried = nil, false
}

// clearSession removes the session element.
func (cl *call) clearSession() {
	cl.skip = sessionExtBytes
	cl.packed, cl.packedTried = nil, false
}

// time gives the present time: for a call that has not waited yet, that of its start, which saves a clock
// reading.
func (cl *call) time(c *Client) time.Duration {
	if cl.waited || cl.attempts > 0 {
		return c.now()
	}
	return cl.started
}

// signal ends the wait of the goroutine that makes the attempt.
func (cl *call) signal() {
	select {
	case cl.ch <- struct{}{}:
	default:
		panic("BUG: a call was signalled twice")
	}
}

// complete hands the call back after res is set; the completer must not touch it afterwards.
func (cl *call) complete() {
	if f := cl.onDone; f != nil {
		cl.onDone = nil
		f(cl)
		return
	}
	cl.signal()
}

// receive takes an answer. ext and payload are views unless owned says that they may be kept. An error
// means that the peer broke the protocol.
func (cl *call) receive(h *wire.Header, ext, payload []byte, owned bool) error {
	r := &cl.res
	r.answered, r.status, r.flags = true, h.Status(), h.Flags
	if cl.want == wantRaw {
		cl.keep(ext, payload, owned)
		return nil
	}
	if r.status.Class() != wire.ClassResult {
		r.fail = decodeFailure(ext, payload)
		return nil
	}
	switch r.status {
	case wire.StatusOK:
	case wire.StatusNotFound:
		return nil
	case wire.StatusConditionFailed:
		// A server whose answer has no room leaves the list out.
		if len(payload) == 0 {
			return nil
		}
		var err error
		r.failed, err = wire.DecodeFailed(payload)
		return err
	default:
		r.fail = decodeFailure(ext, payload)
		return nil
	}
	switch cl.want {
	case wantVersion:
		if len(payload) != wire.VersionBytes {
			return fmt.Errorf("%w: answer to %s of %d bytes", ErrProtocol, cl.op, len(payload))
		}
		r.rev = binary.LittleEndian.Uint64(payload)
	case wantCounter:
		var ok bool
		if r.rev, r.counter, ok = wire.DecodeCounter(payload); !ok {
			return fmt.Errorf("%w: answer to %s of %d bytes", ErrProtocol, cl.op, len(payload))
		}
	case wantMeta:
		_, err := splitMeta(ext, &r.meta)
		return err
	case wantAppend:
		if _, err := splitMeta(ext, &r.meta); err != nil {
			return err
		}
		r.data = append(cl.dst, payload...)
	case wantValue, wantInto:
		kept, err := splitMeta(ext, &r.meta)
		if err != nil {
			return err
		}
		if owned {
			r.data, r.ext = payload, kept
			return nil
		}
		b, n := cl.dst, len(payload)
		if cap(b) < n+len(kept) || cl.want == wantValue {
			b = make([]byte, 0, n+len(kept))
		}
		b = append(append(b[:0], payload...), kept...)
		r.data, r.ext = b[:n], b[n:]
	case wantPayload:
		cl.keep(ext, payload, owned)
	}
	return nil
}

// keep puts elements and payload into the result: copies unless owned.
func (cl *call) keep(ext, payload []byte, owned bool) {
	if !owned {
		ext, payload = append([]byte(nil), ext...), append([]byte(nil), payload...)
	}
	cl.res.ext, cl.res.data = ext, payload
}

func decodeFailure(ext, payload []byte) *failure {
	f := &failure{}
	if len(payload) > wire.MessageBytesMax {
		payload = payload[:wire.MessageBytesMax]
	}
	f.message = string(payload)
	for len(ext) > 0 {
		t, v, rest, err := wire.NextExt(ext)
		if err != nil {
			return f
		}
		ext = rest
		switch {
		case t == wire.ExtRetryAfter && len(v) == 4:
			f.retryAfter = time.Duration(binary.LittleEndian.Uint32(v)) * time.Millisecond
		case t == wire.ExtLeader:
			f.leader = string(v)
		case t == wire.ExtTerm && len(v) == 8:
			f.term = binary.LittleEndian.Uint64(v)
		case t == wire.ExtLimit && len(v) == 8:
			f.limit = binary.LittleEndian.Uint64(v)
		}
	}
	return f
}

// waitq is a queue of waiting calls, first in first out. Its owner's mutex guards it.
type waitq struct{ head, tail *call }

func (q *waitq) push(cl *call) {
	cl.waiting, cl.next, cl.prev = true, nil, q.tail
	if q.tail == nil {
		q.head = cl
	} else {
		q.tail.next = cl
	}
	q.tail = cl
}

func (q *waitq) remove(cl *call) {
	if cl.prev == nil {
		q.head = cl.next
	} else {
		cl.prev.next = cl.next
	}
	if cl.next == nil {
		q.tail = cl.prev
	} else {
		cl.next.prev = cl.prev
	}
	cl.waiting, cl.next, cl.prev = false, nil, nil
}

func (q *waitq) pop() *call {
	cl := q.head
	if cl != nil {
		q.remove(cl)
	}
	return cl
}
