package netloop

import (
	"net"

	"kvstore/wire"
)

// Handler is what stands behind the door. Its methods are called concurrently.
type Handler interface {
	// Hello decides on a new connection, off the event loops: either a refusal, or the answer to send and
	// an opaque principal that is kept with the connection and handed to Serve. The door itself fills
	// Codec, MaxFrame, Inflight and InflightBytes of the answer, and of Features the bits FeatureCRC and
	// FeatureCompression; every other bit is the handler's and must be one the client offered.
	Hello(remote net.Addr, h *wire.Hello) (ack wire.HelloAck, principal any, refusal *wire.Refusal)

	// Serve starts the requests of one bunch: what one read brought, at most BunchRequestsMax of them, all
	// validated by wire.ParseRequest. It must not block: it is called on the connection's event loop (or,
	// for one large compressed frame, on a worker). reqs and every slice in them die when it returns.
	// Each request must be answered exactly once through c, within Serve or later, from any goroutine.
	// PING, CANCEL and CREDIT never get here. c is a wire.Pusher: an answer may have frames before its last one.
	Serve(c wire.Completer, principal any, reqs []wire.Request)

	// Cancel asks, at best effort, to stop the request with this id that came through c. A cancel has no
	// answer of its own; the request still gets its answer. An id that is unknown or already answered is
	// no error. It must not block.
	Cancel(c wire.Completer, id uint32)

	// Credit gives the stream that answers the request with this id that many bytes more to send. An id that is
	// unknown or already answered is no error. It must not block.
	Credit(c wire.Completer, id, bytes uint32)

	// Writable tells that c has room again. It is called once after one or more PushFull of c's Push, on the
	// connection's flusher, and must not block. It may come before the Push that it belongs to has returned.
	Writable(c wire.Completer)

	// Gone tells, exactly once for each connection that was served, that its client takes no more streams: it has gone
	// or is being sent off. Push answers PushGone from then on, and whatever is unanswered still wants its Complete. It
	// must not block.
	Gone(c wire.Completer)
}

// Action is what a driver does after Feed.
type Action uint8

// The actions.
const (
	// ActionNone: nothing to do; read on.
	ActionNone Action = iota
	// ActionFlush: answers wait to be written.
	ActionFlush
	// ActionClose: close the connection now; nothing more is worth sending.
	ActionClose
)

// driver is a connection as its Session sees it.
type driver interface {
	// wake makes the flusher run soon. Any goroutine; never blocks.
	wake()
	// flushNow writes what it can if this goroutine is the flusher, else it is wake. Called by Feed alone.
	flushNow()
	// kill closes the connection soon, without sending what is pending. Any goroutine; never blocks.
	kill()
}
