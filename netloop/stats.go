package netloop

import (
	"sync/atomic"
	"time"

	"kvstore/internal/hist"
	"kvstore/wire"
)

// Stats is a snapshot of a server's counters. Numbers that end in Total only grow.
type Stats struct {
	// ConnsOpen counts served connections, Handshakes those before the end of HELLO.
	ConnsOpen  int
	Handshakes int
	ConnsTotal uint64
	// Refused and Closed count connections by reason.
	Refused map[string]uint64
	Closed  map[string]uint64
	// Busy counts BUSY answers by reason.
	Busy map[string]uint64

	BytesInTotal  uint64
	BytesOutTotal uint64
	RequestsTotal uint64
	BunchesTotal  uint64
	// WakesTotal counts wake-ups of event loops by answers.
	WakesTotal uint64
	// AcceptErrorsTotal counts failed accepts, such as running out of files.
	AcceptErrorsTotal uint64
	PanicsTotal       uint64
	// StreamWaitsTotal counts frames of streams that found too much pending on their connection.
	StreamWaitsTotal uint64

	// Inflight is the number of unanswered requests, OutBytes the answers that wait to be written, StreamBytes
	// those of them that are frames of streams,
	// OutBufferBytes the memory they occupy, BigFrameBytes the memory of incomplete large frames.
	Inflight       int
	OutBytes       int64
	StreamBytes    int64
	OutBufferBytes int64
	BigFrameBytes  int64
}

// refuseReason says why a connection was not served.
type refuseReason uint8

const (
	refusedConns      refuseReason = iota // MaxConns reached
	refusedHandshakes                     // too many handshakes under way
	refusedTLS                            // a TLS client on a port without TLS
	refusedPreface                        // not our protocol
	refusedVersion                        // no common version
	refusedHello                          // malformed HELLO
	refusedHandler                        // the handler's decision
	refusedTimeout                        // HELLO did not arrive in time, or the peer went away
	refusedDraining
	refusedEnroll // could not be handed to an event loop
	refuseReasons
)

var refuseNames = [refuseReasons]string{"connections", "handshakes", "tls", "preface", "version", "hello", "handler", "timeout", "draining", "enroll"}

// closeReason says why a served connection ended.
type closeReason uint8

const (
	closedPeer     closeReason = iota // the client hung up, or the network did
	closedCorrupt                     // checksum, or bytes that no peer of this protocol sends
	closedTooLarge                    // a body beyond what is skipped
	closedPartial                     // a frame stayed incomplete
	closedIdle                        // nothing sent, nothing under way
	closedStalled                     // answers not taken
	closedHardCap                     // more answers pending than may be
	closedPanic                       // a bug of ours
	closedDrain                       // the server stops
	closeReasons
)

var closeNames = [closeReasons]string{"peer", "corrupt", "too_large", "partial_frame", "idle", "stalled", "out_hard_cap", "panic", "drain"}

// busyReason says why a request got BUSY.
type busyReason uint8

const (
	busyCredit    busyReason = iota // requests or bytes beyond the connection's credit
	busyOutSoft                     // answers pending beyond the soft cap: not executed
	busyOutHard                     // answers pending beyond the hard cap: a read's result dropped
	busyOutTotal                    // out buffers of all connections
	busyBigFrames                   // buffers of large frames of all connections
	busyCodec                       // too many large frames wait to be unpacked
	busyReasons
)

var busyNames = [busyReasons]string{"credit", "out_soft_cap", "out_hard_cap", "out_total", "big_frames", "codec_queue"}

// counters are those that nothing hot touches.
type counters struct {
	connsTotal   atomic.Uint64
	handshakes   atomic.Int64
	acceptErrors atomic.Uint64
	panics       atomic.Uint64
	refused      [refuseReasons]atomic.Uint64
	closed       [closeReasons]atomic.Uint64
	busy         [busyReasons]atomic.Uint64
	pushFull     atomic.Uint64
}

// Operations and classes of the duration histograms.
var opNames = [...]string{"other", "ping", "status", "get", "exists", "multiget", "scan", "put", "delete", "batch", "txn", "session_open", "session_close"}

// ops is the number of operations that have a histogram.
const ops = len(opNames)

// opIndex maps an opcode to its place in opNames.
var opIndex = func() (t [256]uint8) {
	for i, op := range [ops]wire.Opcode{0, wire.OpPing, wire.OpStatus, wire.OpGet, wire.OpExists, wire.OpMultiGet, wire.OpScan,
		wire.OpPut, wire.OpDelete, wire.OpBatch, wire.OpTxn, wire.OpSessionOpen, wire.OpSessionClose} {
		if i > 0 {
			t[op] = uint8(i)
		}
	}
	return t
}()

// classNames are the values of the status label, by wire.Class.
var classNames = [...]string{"ok", "retry", "refused", "unknown"}

const classes = len(classNames)

// shard is what one event loop counts. Only that loop's connections write to it.
type shard struct {
	bytesIn  atomic.Uint64
	bytesOut atomic.Uint64
	requests atomic.Uint64
	bunches  atomic.Uint64
	wakes    atomic.Uint64

	bunchSizes hist.Sizes
	durations  [ops][classes]hist.Histogram
}

func (sh *shard) observe(op wire.Opcode, st wire.Status, ns int64) {
	sh.durations[opIndex[op]][st.Class()].Observe(time.Duration(ns))
}

// tally counts the answers given within Feed, so that one clock reading at its end serves all of them.
// It belongs to the session that is being fed and is guarded by that session's mu.
type tally struct {
	n     int
	slots [8]tallySlot
}

type tallySlot struct {
	op    wire.Opcode
	class wire.Class
	count int
}

// add counts one answer, or reports false when the slots are used up.
func (t *tally) add(op wire.Opcode, class wire.Class) bool {
	for i := range t.slots[:t.n] {
		if s := &t.slots[i]; s.op == op && s.class == class {
			s.count++
			return true
		}
	}
	if t.n == len(t.slots) {
		return false
	}
	t.slots[t.n] = tallySlot{op, class, 1}
	t.n++
	return true
}

// observe moves the counts into the histograms.
func (t *tally) observe(sh *shard, ns int64) {
	for _, s := range t.slots[:t.n] {
		sh.durations[opIndex[s.op]][s.class].ObserveN(time.Duration(ns), uint64(s.count))
	}
	t.n = 0
}

// stats gathers everything but what only the Server knows.
func (c *core) stats() Stats {
	st := Stats{
		ConnsTotal:        c.counters.connsTotal.Load(),
		Handshakes:        int(c.counters.handshakes.Load()),
		AcceptErrorsTotal: c.counters.acceptErrors.Load(),
		PanicsTotal:       c.counters.panics.Load(),
		StreamWaitsTotal:  c.counters.pushFull.Load(),
		OutBufferBytes:    c.out.used.Load(),
		BigFrameBytes:     c.big.used.Load(),
		Refused:           make(map[string]uint64, refuseReasons),
		Closed:            make(map[string]uint64, closeReasons),
		Busy:              make(map[string]uint64, busyReasons),
	}
	for i, n := range refuseNames {
		st.Refused[n] = c.counters.refused[i].Load()
	}
	for i, n := range closeNames {
		st.Closed[n] = c.counters.closed[i].Load()
	}
	for i, n := range busyNames {
		st.Busy[n] = c.counters.busy[i].Load()
	}
	c.mu.Lock()
	shards := c.shards
	c.mu.Unlock()
	for _, sh := range shards {
		st.BytesInTotal += sh.bytesIn.Load()
		st.BytesOutTotal += sh.bytesOut.Load()
		st.RequestsTotal += sh.requests.Load()
		st.BunchesTotal += sh.bunches.Load()
		st.WakesTotal += sh.wakes.Load()
	}
	for _, s := range c.appendSessions(nil) {
		st.ConnsOpen++
		st.Inflight += s.inflightNow()
		st.OutBytes += s.pending.Load()
		st.StreamBytes += s.streamed.Load()
	}
	return st
}
