package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// Exit codes; the table of `kvctl help exit-codes`.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitConnect     = 3
	exitNotFound    = 4
	exitDenied      = 5
	exitTimeout     = 6
	exitUnhealthy   = 7
	exitInterrupted = 130
)

const exitCodesText = `Exit codes of kvctl:

  0    done
  1    failed; also when the outcome of a write is unknown: it may or may not be applied
  2    wrong usage: unknown verb or flag, bad argument
  3    cannot connect: no node answers on --endpoints
  4    the key or the namespace does not exist, or a condition does not hold; nothing was changed
  5    permission denied, or the cluster refuses a change of its members; nothing was changed
  6    no answer within --timeout (a write with an unknown outcome exits 1)
  7    the cluster answers but cannot serve: no leader, no quorum, overloaded; status: or a voter is not ok
  130  interrupted by SIGINT or SIGTERM
`

// errKind sorts the failures of a store by what the user can do about them.
type errKind int

const (
	kindFailed errKind = iota
	// kindUnknown: a write that may or may not be applied.
	kindUnknown
	kindConnect
	kindNotFound
	kindCondition
	kindDenied
	kindTimeout
	kindUnhealthy
	// kindCompacted: the moment that a listing shows is no longer kept, or not on the node that answers.
	kindCompacted
	// kindNoNamespace: the namespace does not exist; kindExists: one of that name does.
	kindNoNamespace
	kindExists
	// kindQuota: what would exceed a quota or a number of things; nothing was changed.
	kindQuota
)

// storeError is how a store reports a failure.
type storeError struct {
	kind errKind
	err  error
	// passing: the same may well succeed after a pause, as when another node becomes leader.
	passing bool
	// why is the reason in a few words, where err says more around it.
	why string
}

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// Passing tells package backup that the same may well succeed after a pause.
func (e *storeError) Passing() bool { return e.passing }

// NotApplied tells package backup that surely nothing was changed.
func (e *storeError) NotApplied() bool { return e.kind != kindUnknown && e.kind != kindFailed }

func isKind(err error, k errKind) bool {
	var se *storeError
	return errors.As(err, &se) && se.kind == k
}

// passes reports whether the same may well succeed after a pause.
func passes(err error) bool {
	var se *storeError
	return errors.As(err, &se) && se.passing
}

// quietError carries an exit code whose message is already printed.
type quietError struct{ code int }

func (e quietError) Error() string { return fmt.Sprintf("exit %d", e.code) }

// usageError marks a wrong command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

// explain turns an error into an exit code and a message of what, why and what to do.
func explain(err error) (code int, text string) {
	var (
		quiet quietError
		usage usageError
		se    *storeError
	)
	switch {
	case errors.As(err, &quiet):
		return quiet.code, ""
	case errors.As(err, &usage):
		return exitUsage, err.Error()
	case !errors.As(err, &se):
		return exitFailed, err.Error()
	}
	switch se.kind {
	case kindUnknown:
		return exitFailed, fmt.Sprintf("unknown: the write may or may not be applied (%v): read the key before you write it again", err)
	case kindConnect:
		return exitConnect, err.Error()
	case kindNotFound:
		return exitNotFound, "(nil)"
	case kindCondition:
		return exitNotFound, "a condition does not hold: nothing was changed; read the key again and decide anew"
	case kindDenied:
		return exitDenied, fmt.Sprintf("denied: %v", err)
	case kindTimeout:
		return exitTimeout, fmt.Sprintf("no answer in time: %v; nothing was changed: try again, or raise --timeout", err)
	case kindCompacted:
		return exitFailed, fmt.Sprintf("%v: the moment that it shows is no longer kept, or not on the node that leads now: start it anew", err)
	case kindNoNamespace:
		return exitNotFound, fmt.Sprintf("%v: `kvctl namespace list` shows those that there are", err)
	case kindExists:
		return exitNotFound, err.Error()
	case kindQuota:
		return exitFailed, err.Error()
	case kindUnhealthy:
		return exitUnhealthy, fmt.Sprintf("the cluster cannot serve this now: %v; nothing was changed: see `kvctl status`", err)
	}
	return exitFailed, err.Error()
}

// newExitCodesCmd is a help topic: cobra shows a command without Run under "Additional help topics".
func newExitCodesCmd() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What each exit code means", Long: exitCodesText}
}
