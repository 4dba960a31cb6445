package netloop

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"kvstore/wire"
)

// Bounds that are not options, because nothing outside depends on them.
const (
	// BunchRequestsMax bounds the requests handed to one Serve. A read of 64 KiB can hold 1,500 small
	// GETs; between bunches the answers are written and the caps are looked at again. 128 requests share
	// what a handler pays once per bunch, such as a clock reading of 50 ns.
	BunchRequestsMax = 128

	// loopCodecBytesMax is the largest body that is packed or unpacked on an event loop: 64 KiB cost s2
	// 40 µs to unpack and 200 µs to pack. Larger ones go to a worker.
	loopCodecBytesMax = 64 << 10
	// unpackBlockBytes bounds what the compressed frames of one bunch unpack to; a fuller block ends the bunch.
	unpackBlockBytes = 256 << 10
	// flushSliceBytes is what one connection may write before the others of its loop have a turn.
	flushSliceBytes = 256 << 10
	// midFeedFlushBytes of pending answers are written between two bunches of one read.
	midFeedFlushBytes = 256 << 10
	// bigAnswerBytes: from here an answer gets a buffer of its own, filled without the connection's lock.
	bigAnswerBytes = 64 << 10
	// outKeepBytes is the largest out buffer that goes back to the pool.
	outKeepBytes = 1 << 20
	// partKeepBytes is the largest buffer for split frames that a connection keeps while it is empty.
	partKeepBytes = 2 << 10
	// bigFrameBytes: a buffered frame from this size on counts against Options.BigFrameBytes.
	bigFrameBytes = 64 << 10
	// skipBytesMax bounds the body of a refused frame that is read and thrown away; beyond it the
	// connection is closed.
	skipBytesMax = 64 << 20
	// outShareBytes of pending answers stay free to every connection when OutTotalBytes is used up.
	outShareBytes = 64 << 10
	// readBufferBytes is one read of either driver.
	readBufferBytes = 64 << 10
	// answerBytesMax is the largest frame that the server sends.
	answerBytesMax = wire.HeaderBytes + wire.FrameBodyBytesMax
	// clientFrameBytesMin is the smallest MaxFrame that a client may announce: smaller ones could not
	// take the answers to writes and errors.
	clientFrameBytesMin = 4 << 10
)

// Options configures a Server. Zero fields take the defaults.
type Options struct {
	// Listener accepts the connections; the server closes it. Either it or Addr is required.
	Listener net.Listener
	// Addr is the TCP address to listen on when Listener is nil, such as 127.0.0.1:7001.
	Addr string
	// Handler serves the requests. Required.
	Handler Handler
	// Logger gets lifecycle and fault messages. Default: slog.Default().
	Logger *slog.Logger

	// Loops is the number of event loops. Default GOMAXPROCS/2: fewer loops gather more answers per wake-up, and the store
	// behind needs the other cores. But two where there are two: a single loop was the limit of 16 connections with 128 gets in
	// flight each, 1.05 against 1.47 million a second; puts, mixed loads and lone requests were the same.
	Loops int
	// MaxConns bounds the open connections, those in the handshake included. Default: the limit on open
	// files less 512 for the store's own (less half of it when it is below 1024), at most 65,536.
	MaxConns int
	// Handshakes bounds the connections that are between accept and the end of HELLO. Default 1024.
	Handshakes int

	// HandshakeTimeout bounds preface and HELLO. Default 5 s.
	HandshakeTimeout time.Duration
	// PartialTimeout bounds how long a frame may be incomplete, extended by the time that the bytes
	// received of it take at PartialRateMin. Default 10 s.
	PartialTimeout time.Duration
	// PartialRateMin is the slowest a large frame may arrive, in bytes per second. Default 64 KiB.
	PartialRateMin int
	// IdleTimeout closes a connection that has sent nothing and has nothing under way. Default 5 min.
	IdleTimeout time.Duration
	// StallTimeout closes a connection that takes none of the answers that wait for it. Default 30 s.
	StallTimeout time.Duration
	// Linger is how long a connection that the server ends is still read (and ignored), so that what was
	// sent reaches the client before a reset could destroy it. Default 1 s.
	Linger time.Duration
	// DrainGrace is how long Drain lets clients hang up by themselves once all is answered. Default 250 ms.
	DrainGrace time.Duration

	// MaxFrame is the largest frame body accepted, in bytes. Default and maximum wire.FrameBodyBytesMax.
	MaxFrame int
	// Inflight is each connection's credit in unanswered requests. Default wire.ConnInflightMax.
	Inflight int
	// InflightBytes is its credit in bytes of their bodies, counted unpacked; it must hold one largest
	// frame. Default wire.ConnInflightBytesMax.
	InflightBytes int
	// OutSoftBytes: with more answers than this pending, a connection's requests get BUSY unexecuted.
	// Default 2 MiB.
	OutSoftBytes int
	// OutHardBytes: with more than this pending, finished reads get BUSY in place of their result. A
	// connection that would exceed OutHardBytes plus one largest answer (16 MiB and 128 KiB) is closed.
	// Default 8 MiB.
	OutHardBytes int
	// StreamBytes: with more than this pending, whatever it is, a connection takes no more frames of watches and
	// streamed listings until half of it is written. What streams have queued counts for none of the other caps: at
	// most this much, and one largest frame. Default 512 KiB.
	StreamBytes int
	// OutTotalBytes bounds the out buffers of all connections: beyond it whoever has more than 64 KiB
	// pending gets BUSY. Default 512 MiB.
	OutTotalBytes int
	// BigFrameBytes bounds the buffers of incomplete and unpacked frames above 64 KiB, of all connections
	// together; a frame that finds no room gets BUSY and is skipped. Default 256 MiB.
	BigFrameBytes int
	// RetryAfter is the pause that BUSY suggests. Default 20 ms.
	RetryAfter time.Duration

	// CodecWorkers is the number of goroutines that pack and unpack large frames. Default max(1, GOMAXPROCS/2).
	CodecWorkers int
	// CodecQueue bounds the frames that wait for them. When it is full, requests get BUSY and answers go
	// out unpacked. Default 64.
	CodecQueue int
	// NoCompression offers no codec to clients.
	NoCompression bool
}

// withDefaults fills zero fields.
func (o Options) withDefaults() Options {
	half := max(1, runtime.GOMAXPROCS(0)/2)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.MaxConns == 0 {
		o.MaxConns = defaultMaxConns()
	}
	setInt := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	setTime := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	setInt(&o.Loops, max(half, min(2, runtime.GOMAXPROCS(0))))
	setInt(&o.Handshakes, 1024)
	setTime(&o.HandshakeTimeout, 5*time.Second)
	setTime(&o.PartialTimeout, 10*time.Second)
	setInt(&o.PartialRateMin, 64<<10)
	setTime(&o.IdleTimeout, 5*time.Minute)
	setTime(&o.StallTimeout, 30*time.Second)
	setTime(&o.Linger, time.Second)
	setTime(&o.DrainGrace, 250*time.Millisecond)
	setInt(&o.MaxFrame, wire.FrameBodyBytesMax)
	setInt(&o.Inflight, wire.ConnInflightMax)
	setInt(&o.InflightBytes, wire.ConnInflightBytesMax)
	setInt(&o.OutSoftBytes, 2<<20)
	setInt(&o.OutHardBytes, 8<<20)
	setInt(&o.StreamBytes, 512<<10)
	setInt(&o.OutTotalBytes, 512<<20)
	setInt(&o.BigFrameBytes, 256<<20)
	setTime(&o.RetryAfter, 20*time.Millisecond)
	setInt(&o.CodecWorkers, half)
	setInt(&o.CodecQueue, 64)
	return o
}

// validate lists all faults at once. REQUIRES: defaults are filled in.
func (o *Options) validate() error {
	var faults []error
	fault := func(bad bool, format string, a ...any) {
		if bad {
			faults = append(faults, fmt.Errorf(format, a...))
		}
	}
	fault(o.Listener == nil && o.Addr == "", "neither Listener nor Addr is set")
	fault(o.Listener != nil && o.Addr != "", "both Listener and Addr %q are set", o.Addr)
	fault(o.Handler == nil, "Handler is not set")
	for _, f := range []struct {
		name  string
		value int
	}{
		{"Loops", o.Loops}, {"MaxConns", o.MaxConns}, {"Handshakes", o.Handshakes}, {"PartialRateMin", o.PartialRateMin},
		{"Inflight", o.Inflight}, {"OutSoftBytes", o.OutSoftBytes}, {"StreamBytes", o.StreamBytes}, {"CodecWorkers", o.CodecWorkers}, {"CodecQueue", o.CodecQueue},
	} {
		fault(f.value < 1, "%s is %d, at least 1", f.name, f.value)
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"HandshakeTimeout", o.HandshakeTimeout}, {"PartialTimeout", o.PartialTimeout}, {"IdleTimeout", o.IdleTimeout},
		{"StallTimeout", o.StallTimeout}, {"Linger", o.Linger}, {"DrainGrace", o.DrainGrace}, {"RetryAfter", o.RetryAfter},
	} {
		fault(f.value < time.Millisecond, "%s is %v, at least 1ms", f.name, f.value)
	}
	fault(o.MaxFrame < clientFrameBytesMin || o.MaxFrame > wire.FrameBodyBytesMax, "MaxFrame is %d, %d to %d", o.MaxFrame, clientFrameBytesMin, wire.FrameBodyBytesMax)
	fault(o.InflightBytes < o.MaxFrame, "InflightBytes is %d, below MaxFrame %d: a largest frame would never be served", o.InflightBytes, o.MaxFrame)
	fault(o.OutHardBytes < o.OutSoftBytes, "OutHardBytes is %d, below OutSoftBytes %d", o.OutHardBytes, o.OutSoftBytes)
	fault(o.OutTotalBytes < answerBytesMax, "OutTotalBytes is %d, below one largest answer %d", o.OutTotalBytes, answerBytesMax)
	fault(o.BigFrameBytes < 2*(o.MaxFrame+wire.HeaderBytes), "BigFrameBytes is %d, below one largest frame packed and unpacked %d", o.BigFrameBytes, 2*(o.MaxFrame+wire.HeaderBytes))
	if len(faults) > 0 {
		return fmt.Errorf("invalid netloop options: %w", errors.Join(faults...))
	}
	return nil
}

func defaultMaxConns() int {
	const most = 65536
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 512 // POSIX systems allow 1024 files by default; keep half for the store.
	}
	files := int(min(lim.Cur, 1<<30))
	return min(most, max(1, files-min(512, files/2)))
}
