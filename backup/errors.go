package backup

import (
	"errors"
	"fmt"

	"kvstore/wire"
)

var (
	// ErrBroken says that a backup is not what was written: cut short, or changed. Nothing of it should be used.
	ErrBroken = errors.New("the backup is broken")
	// ErrNotBackup says that a stream is no backup at all.
	ErrNotBackup = errors.New("this is no backup")
	// ErrVersion says that a backup has a format, or is sealed with a key, that this version does not know.
	ErrVersion = errors.New("the backup is of a later version")
	// ErrNotEmpty says that a restore would meet records that are there, and was not told to go on.
	ErrNotEmpty = errors.New("there are records already")
	// ErrNamespace says that a namespace is asked for that isn't there.
	ErrNamespace = errors.New("no such namespace")
	// ErrChanged says that namespaces were made anew while a backup was under way, so that it might miss records.
	ErrChanged = errors.New("namespaces were changed while the backup was made")
)

func broken(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrBroken, fmt.Sprintf(format, a...))
}

// StatusError is an answer of a Service that was no success.
type StatusError struct {
	Status wire.Status
	// Text says more; empty: the status says all.
	Text string
	// RetryAfterMs is the pause that the answer suggests, 0 for none.
	RetryAfterMs uint32
}

// Error gives the text.
func (e *StatusError) Error() string {
	if e.Text != "" {
		return e.Text
	}
	return e.Status.Info().Message
}

// Passing reports whether the same may well succeed after a pause.
func (e *StatusError) Passing() bool {
	switch e.Status.Class() {
	case wire.ClassRetry:
		return e.Status != wire.StatusDraining
	case wire.ClassUnknown:
		return e.Status != wire.StatusShutdown
	}
	return e.Status == wire.StatusFutureRevision // this node has not come so far yet
}

// passes reports whether the same may well succeed after a pause: Sources and Targets say so of their errors by a method
// Passing.
func passes(err error) bool {
	var p interface{ Passing() bool }
	return errors.As(err, &p) && p.Passing()
}

// PartialError is what became of a restore that was not finished: Done was written, the rest was not; of one batch more, at
// most, nobody knows.
type PartialError struct {
	// Done counts what was surely written.
	Done Count
	// Unknown is how many records more may or may not be written.
	Unknown uint64
	// Created is how many namespaces were created.
	Created int
	cause   error
}

// Error says how much was written, and why no more.
func (e *PartialError) Error() string {
	more := ""
	if e.Unknown > 0 {
		more = fmt.Sprintf(", %d more may or may not be", e.Unknown)
	}
	return fmt.Sprintf("the restore is not complete: %d records (%d bytes) are written%s, the others are not: %v; to run it again in mode merge goes over all of them once more", e.Done.Records, e.Done.Bytes, more, e.cause)
}

// Unwrap gives the reason.
func (e *PartialError) Unwrap() error { return e.cause }
