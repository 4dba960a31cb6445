package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"kvstore/wire"
)

// Sentinels for errors.Is. A write that fails matches exactly one of ErrNotApplied and ErrMaybeApplied,
// whatever else it matches; an error that matches ErrMaybeApplied matches no other sentinel of this
// package, so that an unknown outcome is never mistaken for a certain one.
var (
	// ErrNotApplied: the write is surely not applied, now or later. The reason matches as well.
	ErrNotApplied = errors.New("client: not applied")
	// ErrMaybeApplied: the write may or may not be applied. Read the key again before deciding anew.
	// When a context's end is the reason, context.Canceled or context.DeadlineExceeded matches too.
	ErrMaybeApplied = errors.New("client: outcome unknown, may be applied")

	// ErrNotFound: the key does not exist.
	ErrNotFound = errors.New("client: not found")
	// ErrConditionFailed: a condition does not hold; Error.Failed says which. Nothing was changed.
	ErrConditionFailed = errors.New("client: condition failed")
	// ErrTooLarge: a value, a request or a list is beyond a limit, see Error.Limit.
	ErrTooLarge = errors.New("client: too large")
	// ErrBadKey: a key is valid UTF-8 of 1 to wire.KeyBytesMax bytes.
	ErrBadKey = errors.New("client: bad key")
	// ErrBadRequest: an option or the request as a whole is malformed.
	ErrBadRequest = errors.New("client: bad request")
	// ErrUnsupported: the server does not know the operation or an extension that it carries.
	ErrUnsupported = errors.New("client: unsupported by the server")
	// ErrCompacted: the revision is no longer kept; start the listing anew.
	ErrCompacted = errors.New("client: revision no longer kept")
	// ErrFutureRevision: the store has not reached that revision.
	ErrFutureRevision = errors.New("client: revision not reached yet")
	// ErrChecksum: the value does not match the checksum sent with it.
	ErrChecksum = errors.New("client: checksum mismatch")
	// ErrDamaged: the stored record fails its checksum on the server.
	ErrDamaged = errors.New("client: record is damaged")
	// ErrNoNamespace: the namespace does not exist.
	ErrNoNamespace = errors.New("client: no such namespace")
	// ErrNamespaceExists: a namespace of that name exists.
	ErrNamespaceExists = errors.New("client: namespace exists")
	// ErrQuota: the write would exceed the keys or the bytes that its namespace may hold.
	ErrQuota = errors.New("client: quota exceeded")
	// ErrTooMany: there are as many of these (watches, namespaces) as there may be.
	ErrTooMany = errors.New("client: too many")
	// ErrNotANumber: an increment meets a value, or makes a sum, that is no whole number of 64 bits.
	ErrNotANumber = errors.New("client: not a number")
	// ErrLimited: the namespace's operations per second are used up, see Error.RetryAfter. It is an ErrBusy.
	ErrLimited = fmt.Errorf("client: rate limited: %w", ErrBusy)
	// ErrDenied: this identity may not do that.
	ErrDenied = errors.New("client: denied")
	// ErrUnauthenticated: the server wants an identity.
	ErrUnauthenticated = errors.New("client: unauthenticated")
	// ErrUnavailable: no server could be reached, or none that leads.
	ErrUnavailable = errors.New("client: unavailable")
	// ErrBusy: the server sheds load, see Error.RetryAfter.
	ErrBusy = errors.New("client: server is busy")
	// ErrDiskFull: the server refuses writes for lack of disk space.
	ErrDiskFull = errors.New("client: server's disk is full")
	// ErrTooManySessions: the store holds as many sessions as it may.
	ErrTooManySessions = errors.New("client: too many sessions")
	// ErrTimeout: the time was up; for a write, before it was executed.
	ErrTimeout = errors.New("client: timeout")
	// ErrClosed: the client is closed.
	ErrClosed = errors.New("client: closed")
	// ErrProtocol: the server sent what it may not.
	ErrProtocol = errors.New("client: protocol violation")
	// ErrInternal: the server failed while it served a read.
	ErrInternal = errors.New("client: server failed")
)

// outcome says what a failed operation left behind.
type outcome uint8

const (
	outcomeNone  outcome = iota // not a write
	outcomeNot                  // surely not applied
	outcomeMaybe                // unknown
)

// Error is what every failed operation returns, for errors.As. GetAppend alone returns the bare
// ErrNotFound, so that a miss allocates nothing.
type Error struct {
	// Op is the operation, such as "put".
	Op string
	// Key is the operation's key; empty where it has none or many.
	Key string
	// Status is the server's last answer; wire.StatusOK when the server gave none.
	Status wire.Status
	// Message is the server's text, or what happened on the way.
	Message string
	// RetryAfter is the pause that the server asks for; 0: none.
	RetryAfter time.Duration
	// Leader is the address that the server named with StatusNotLeader.
	Leader string
	// Limit is the bound that was exceeded (ErrTooLarge), in the unit of what it bounds; 0: not told.
	Limit uint64
	// Attempts counts how often the request was sent or tried to be sent.
	Attempts int
	// Failed lists the conditions that do not hold (ErrConditionFailed).
	Failed []wire.FailedCondition

	kind    error
	outcome outcome
	cause   error
}

// Applied says what is known of a write's effect: "no" or "unknown"; empty for a read.
func (e *Error) Applied() string {
	switch e.outcome {
	case outcomeNot:
		return "no"
	case outcomeMaybe:
		return "unknown"
	}
	return ""
}

// Error gives operation, key, reason and, for a write, what became of it.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Key != "" {
		b.WriteByte(' ')
		b.WriteString(strconv.Quote(e.Key))
	}
	b.WriteString(": ")
	switch e.outcome {
	case outcomeMaybe:
		b.WriteString("outcome unknown, may be applied")
	case outcomeNot:
		b.WriteString("not applied")
	default:
		b.WriteString("failed")
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, " after %d attempts", e.Attempts)
	}
	if e.Status != wire.StatusOK {
		in := e.Status.Info()
		fmt.Fprintf(&b, ": %s %s", in.Code, in.Name)
	}
	if e.Message != "" {
		b.WriteString(": ")
		b.WriteString(e.Message)
	}
	if e.cause != nil && e.cause.Error() != e.Message {
		b.WriteString(": ")
		b.WriteString(e.cause.Error())
	}
	return b.String()
}

// Is matches the sentinels of this package.
func (e *Error) Is(target error) bool {
	if e.outcome == outcomeMaybe {
		return target == ErrMaybeApplied
	}
	if target == ErrNotApplied {
		return e.outcome == outcomeNot
	}
	return e.kind != nil && (target == e.kind || e.kind == ErrLimited && target == ErrBusy)
}

// Unwrap gives the cause: the context's end, a network error, or nil.
func (e *Error) Unwrap() error { return e.cause }

// kindOf gives the sentinel of a status.
func kindOf(s wire.Status) error {
	switch s {
	case wire.StatusNotFound:
		return ErrNotFound
	case wire.StatusConditionFailed:
		return ErrConditionFailed
	case wire.StatusBusy:
		return ErrBusy
	case wire.StatusLimited:
		return ErrLimited
	case wire.StatusTooLate, wire.StatusTimeout:
		return ErrTimeout
	case wire.StatusDiskFull:
		return ErrDiskFull
	case wire.StatusTooLarge:
		return ErrTooLarge
	case wire.StatusUnknownOp, wire.StatusUnsupported:
		return ErrUnsupported
	case wire.StatusUnauthenticated:
		return ErrUnauthenticated
	case wire.StatusDenied:
		return ErrDenied
	case wire.StatusCompacted:
		return ErrCompacted
	case wire.StatusBadKey:
		return ErrBadKey
	case wire.StatusChecksum:
		return ErrChecksum
	case wire.StatusNoNamespace:
		return ErrNoNamespace
	case wire.StatusFutureRevision:
		return ErrFutureRevision
	case wire.StatusDamaged:
		return ErrDamaged
	case wire.StatusSessionsTooMany:
		return ErrTooManySessions
	case wire.StatusQuota:
		return ErrQuota
	case wire.StatusNamespaceExists:
		return ErrNamespaceExists
	case wire.StatusTooMany:
		return ErrTooMany
	case wire.StatusNotANumber:
		return ErrNotANumber
	}
	switch s.Class() {
	case wire.ClassRetry:
		return ErrUnavailable
	case wire.ClassRefused:
		return ErrBadRequest
	case wire.ClassUnknown:
		return ErrInternal
	}
	return ErrProtocol
}

// contextCause passes on what a caller may match besides an unknown outcome: the end of the context and
// errors that are not sentinels of this package. Anything else could make the unknown look certain.
func contextCause(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	}
	return nil
}

// local builds the error of a request that was refused before it left the client.
func local(op wire.Opcode, key string, kind error, limit uint64, format string, a ...any) *Error {
	e := &Error{Op: op.String(), Key: key, Message: fmt.Sprintf(format, a...), Limit: limit, kind: kind}
	if op.IsWrite() {
		e.outcome = outcomeNot
	}
	return e
}
