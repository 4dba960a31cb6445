package gateway

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"kvstore/wire"
)

// Service executes requests. It is what all doors share; node implements it.
type Service interface {
	// Do executes r, here or on the node that can, and waits for its answer. The answer's slices belong to
	// the caller. When ctx ends first it answers StatusTooLate for a read and StatusTimeout, whose outcome is
	// unknown, for a write and for OpAdmin.
	Do(ctx context.Context, principal any, r *wire.Request) wire.Response
	// Stream executes r, a watch: it calls each with one frame after the other, whose slices are views that live
	// until each returns, and waits for it before it goes on. It ends with the watch, with ctx, or with an error of
	// each, and returns the final answer.
	Stream(ctx context.Context, principal any, r *wire.Request, each func(*wire.Response) error) wire.Response
}

// Options configures the REST server. Zero values mean the defaults.
type Options struct {
	// Service executes the requests. Required.
	Service Service
	// Backups makes and takes in copies. Default: the routes for them are refused with 503.
	Backups Backups
	// Principal speaks for every caller.
	Principal any
	// Metrics writes all metrics of the node as Prometheus text. Default: there is no such route.
	Metrics func(w io.Writer) error
	// Logger gets the server's own complaints. Default slog.Default().
	Logger *slog.Logger
	// BodyBytesMax bounds the bytes of bodies held at once, over all requests. Default 256 MiB: sixteen
	// largest values. Beyond it writes are refused with 503.
	BodyBytesMax int64
	// BodyTimeout bounds how long a body may take to arrive. Default 60 s: 16 MiB at 280 KB/s.
	BodyTimeout time.Duration
	// AnswerBytesMax bounds the values that wait for slow readers, over all requests. Default 256 MiB;
	// beyond it reads are refused with 503.
	AnswerBytesMax int64
	// AnswerTimeout bounds how long a client may take to accept an answer. Default 60 s.
	AnswerTimeout time.Duration
	// RequestTimeout is the deadline of a request. Default wire.TimeoutDefault.
	RequestTimeout time.Duration
	// StreamsMax bounds the event streams at once; beyond it they are refused with 503. Each holds a connection, a
	// goroutine and about 64 KiB. Default 1024: a quarter of the connections that a node takes.
	StreamsMax int
	// StallTimeout bounds how long the reader of an event stream may take for 32 KiB of it before it is cut off; what
	// waits for it is counted against AnswerBytesMax. Default 30 s.
	StallTimeout time.Duration

	// RequestsPerSecond bounds the requests of all clients together, and ClientRequestsPerSecond those of each one,
	// over all doors of this package. A client is an IPv4 address or a /64 of IPv6. A second's worth may come at once;
	// beyond it requests are refused with LIMITED. Default 0: no bound. A stream is one request.
	RequestsPerSecond, ClientRequestsPerSecond uint64

	// RequestLog says which requests are logged, each as a line of JSON: one of the modes below. Default RequestLogOff.
	RequestLog string
	// RequestLogFile is the file that they are appended to. It may be moved away at any time: a new one is begun then.
	// Default, and "-": standard error.
	RequestLogFile string
	// RequestLogSample is of how many requests that did not fail one is logged by RequestLogSampled. Default 1000.
	RequestLogSample int
	// RequestLogRate bounds the lines a second, those of failures and the others each. What is dropped is counted, and
	// told in the next line. Default 100.
	RequestLogRate int

	// Set by tests: how many clients have a rate of their own, and the clock of rates.
	clientsMax int
	now        func() int64
}

const (
	bodyBytesMaxDefault   = 256 << 20
	bodyTimeoutDefault    = 60 * time.Second
	answerBytesMaxDefault = 256 << 20
	answerTimeoutDefault  = 60 * time.Second
	headerBytesMax        = 64 << 10
	streamsMaxDefault     = 1024
	stallTimeoutDefault   = 30 * time.Second
)

// Server is the REST door.
type Server struct {
	*Door
	// Immutable after New.
	origin *http.CrossOriginProtection

	stats requestStats
}

// New builds a REST door with a Door of its own; it is an http.Handler.
func New(o Options) *Server { return NewREST(NewDoor(o)) }

// NewREST builds a REST door that shares d with other doors; it is an http.Handler.
func NewREST(d *Door) *Server {
	return &Server{Door: d, origin: http.NewCrossOriginProtection()}
}

// HTTPServer wraps the door in an http.Server with the deadlines of this package. Its Shutdown ends the event streams.
func (s *Server) HTTPServer() *http.Server {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    headerBytesMax,
		ErrorLog:          slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelWarn),
	}
	h.RegisterOnShutdown(s.streams.end)
	return h
}
