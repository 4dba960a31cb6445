package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"kvstore/wire"
)

// Bounds of this package. Those that client and server share stand in wire/limits.go.
const (
	// bufferBytesMax bounds what is gathered for one write to a socket; beyond it callers wait. 256 KiB is
	// four socket reads of the server: more only adds delay.
	bufferBytesMax = 256 << 10
	// largeBytesMin is the payload size from which the bytes are written straight from the caller's slice.
	// Below it one copy (3 µs for 32 KiB) costs less than a hand-over to the writer goroutine.
	largeBytesMin = 32 << 10
	// writeChunkBytes is how much of a large payload one write hands to the kernel: the progress of a slow
	// peer shows at this grain.
	writeChunkBytes = 256 << 10
	// smallBytesMax bounds the body of a request that is encoded under the connection's lock: its checksum takes 60 ns. It is not to
	// be compressed.
	smallBytesMax = wire.CompressBytesMin - 1
	// readsMax bounds the reads of a pipeline that are encoded under one lock: some 10 µs.
	readsMax = 128
	// keepBytesMax bounds the buffers that are kept for re-use.
	keepBytesMax = 1 << 20
	// flushRoundsMax bounds how long a caller writes for others before the writer goroutine takes over.
	flushRoundsMax = 8
	// redirectsMax bounds the leader hints that one operation follows without a pause.
	redirectsMax = 5
	// nodesMax bounds the addresses that a client learns from servers.
	nodesMax = 64

	// backoffMin and backoffMax bound the exponential back-off; a pause is drawn evenly from zero to the
	// current bound (full jitter).
	backoffMin = 2 * time.Millisecond
	backoffMax = time.Second
	// huntMax bounds the pauses of the one call that looks for a leader. An election takes several hundred
	// milliseconds: asking every 50 on average finds its end soon, at 20 requests a second from each client.
	huntMax = 100 * time.Millisecond

	// silenceBytesPerSecond is what a slow line is granted when a peer's silence is judged: unanswered
	// requests of 1 MiB give it a quarter of a second more, since a PING waits behind them.
	silenceBytesPerSecond = 4 << 20
)

type options struct {
	timeout     time.Duration
	dialTimeout time.Duration
	conns       int
	session     bool
	namespace   string
	codec       wire.Codec
	name        string
	logger      *slog.Logger
	budget      int
	maxInflight int
	maxValue    int
	hooks       Hooks
	dial        func(ctx context.Context, network, addr string) (net.Conn, error)
	cluster     func() (id [16]byte, ok bool)

	// Changed by tests alone.
	sweepEvery   time.Duration
	pingAfter    time.Duration
	suspectAfter time.Duration
	deadAfter    time.Duration
	patience     time.Duration
	shunFor      time.Duration
	bufferBytes  int
	noRawWrite   bool
}

func defaultOptions() options {
	return options{
		timeout:     wire.TimeoutDefault,
		dialTimeout: 3 * time.Second,
		conns:       1,
		session:     true,
		logger:      slog.New(slog.DiscardHandler),
		budget:      1000,
		maxInflight: 4096,
		maxValue:    wire.ValueBytesMax,
		dial:        (&net.Dialer{}).DialContext,
		sweepEvery:  50 * time.Millisecond,
		// With requests unanswered, half a second of silence is a hundred times what is usual: it costs one
		// PING. As much again without an answer to that, and other nodes are asked. A cluster elects a leader
		// within about a second, so most often there is one by then.
		pingAfter:    500 * time.Millisecond,
		suspectAfter: time.Second,
		// Writes that can't be repeated wait longer: their answers may still come.
		deadAfter: 5 * time.Second,
		// Twice what connecting takes over a line with 250 ms from end to end and back.
		patience: 500 * time.Millisecond,
		// Followers take up to their election timeout, 600 ms and a little, to forget a dead leader.
		shunFor:     750 * time.Millisecond,
		bufferBytes: bufferBytesMax,
	}
}

func (o *options) validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if o.timeout < 0 || o.timeout > wire.TimeoutMax {
		bad("timeout %v; 0 to %v", o.timeout, wire.TimeoutMax)
	}
	if o.dialTimeout <= 0 {
		bad("dial timeout %v; more than 0", o.dialTimeout)
	}
	if o.conns < 1 || o.conns > 64 {
		bad("%d connections per node; 1 to 64", o.conns)
	}
	if len(o.namespace) > wire.NamespaceBytesMax {
		bad("namespace name of %d bytes; at most %d", len(o.namespace), wire.NamespaceBytesMax)
	}
	if o.codec > wire.CodecZstd {
		bad("unknown codec %d", o.codec)
	}
	if len(o.name) > wire.ClientNameBytesMax {
		bad("client name of %d bytes; at most %d", len(o.name), wire.ClientNameBytesMax)
	}
	if o.budget < 0 {
		bad("retry budget %d; at least 0", o.budget)
	}
	if o.maxInflight < 1 || o.maxInflight > slotsMax {
		bad("max inflight %d; 1 to %d", o.maxInflight, slotsMax)
	}
	if o.maxValue < 0 || o.maxValue > wire.ValueBytesMax {
		bad("max value size %d; 0 to %d", o.maxValue, wire.ValueBytesMax)
	}
	return errors.Join(errs...)
}

// Option changes how a client works; see the With functions.
type Option func(*options)

// WithTimeout bounds an operation whose context carries no deadline, over all its attempts. Default 10 s.
// 0: no bound but the context; the server then applies its own default to each attempt.
func WithTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithDialTimeout bounds one attempt to connect and to say HELLO. Default 3 s.
func WithDialTimeout(d time.Duration) Option { return func(o *options) { o.dialTimeout = d } }

// WithConns sets the connections per node, 1 to 64. Default 1: more connections make smaller batches, and
// pay off only where one reader goroutine is the bottleneck (8 cores and more).
func WithConns(n int) Option { return func(o *options) { o.conns = n } }

// WithoutSession sends writes without a session. A write whose outcome is unknown is then never sent
// again, and fails with ErrMaybeApplied at once.
func WithoutSession() Option { return func(o *options) { o.session = false } }

// WithNamespace names the namespace of every operation. Default: the server's "default".
func WithNamespace(name string) Option { return func(o *options) { o.namespace = name } }

// WithCompression offers a codec for request and answer bodies of 1 KiB and more. Default none.
func WithCompression(c wire.Codec) Option { return func(o *options) { o.codec = c } }

// WithName tells operators who this client is.
func WithName(name string) Option { return func(o *options) { o.name = name } }

// WithLogger takes connections' comings and goings; requests are never logged. Default: nothing is logged.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithRetryBudget sets how many retries may run ahead of successes: each retry takes one token of n, ten
// successes give one back. Once it is spent, a retry waits half a second to a second instead of the
// exponential back-off: a client then adds at most two requests a second per waiting caller to a server in
// trouble, and still outlives a change of leader. Looking for a leader costs no tokens: one operation asks the
// nodes for all. Default 1000; 0: each retry waits that long.
func WithRetryBudget(n int) Option { return func(o *options) { o.budget = n } }

// WithMaxInflight bounds the unanswered requests per connection, 1 to 16384; callers beyond wait. The
// server's own credit bounds it too. Default 4096.
func WithMaxInflight(n int) Option { return func(o *options) { o.maxInflight = n } }

// WithMaxValueSize refuses larger values with ErrTooLarge before they are sent. Default and most:
// wire.ValueBytesMax.
func WithMaxValueSize(n int) Option { return func(o *options) { o.maxValue = n } }

// WithHooks calls back on events. The functions must not block nor call the client.
func WithHooks(h Hooks) Option { return func(o *options) { o.hooks = h } }

// WithDialer replaces the way connections are made. The connection should let a write continue after its
// deadline passed, as TCP does; with one that doesn't, cancelling a large write costs the connection.
func WithDialer(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Option {
	return func(o *options) { o.dial = dial }
}

// Hooks are functions that a client calls; nil ones are skipped.
type Hooks struct {
	// OnConnect tells of each attempt to connect; err is nil for a success.
	OnConnect func(addr string, took time.Duration, err error)
	// OnDisconnect tells why a connection ended.
	OnDisconnect func(addr string, err error)
	// OnRetry tells of an attempt that failed and will be repeated after wait, or earlier when another
	// operation finds a leader. Status is wire.StatusOK when there was no answer; err is then the reason.
	OnRetry func(op wire.Opcode, attempt int, wait time.Duration, status wire.Status, err error)
	// OnOp tells of each operation that ended, with its time over all attempts.
	OnOp func(op wire.Opcode, took time.Duration, attempts int, err error)
}
