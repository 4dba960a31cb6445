package engine

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"kvstore/wire"
)

// damageToldEvery is the shortest time between two calls of Options.OnDamage.
const damageToldEvery = time.Minute

// applyFailure is what the applier panics with, to leave the evaluation of an entry from wherever it stands:
// the entry can't be applied on this node. Engine.Apply turns it into Options.Fatal.
type applyFailure struct{ err error }

// failApply ends the evaluation of the entry at hand.
func (a *applier) failApply(err error) {
	panic(applyFailure{fmt.Errorf("cannot apply entry %d of term %d: %w", a.index, a.term, err)})
}

// failRead is failApply for a read of the state before the entry. What isn't the store's own refusal is damage.
func (a *applier) failRead(err error) {
	err = fmt.Errorf("cannot read the state at ts %d: %w", a.last.ts, err)
	for _, refusal := range [...]error{ErrClosed, ErrCompacted, ErrFuture, ErrPinsExhausted} {
		if errors.Is(err, refusal) {
			a.failApply(err)
		}
	}
	a.failApply(damaged("an entry needs what can't be read", err))
}

// stopped takes a failure out of a panic, has the store fail with it, and reports whether there was one. Others
// go on: they are broken promises of our own.
func (a *applier) stopped(panicked any) bool {
	f, ok := panicked.(applyFailure)
	if !ok {
		return false
	}
	a.in.store.sawDamage(f.err)
	a.in.store.fail(f.err)
	return true
}

// sawDamage counts err if it speaks of damage and tells Options.OnDamage, at most once in damageToldEvery.
func (s *store) sawDamage(err error) {
	if !errors.Is(err, ErrRecordDamaged) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrDigestMismatch) {
		return
	}
	s.metrics.damages.Add(1)
	if s.o.OnDamage == nil {
		return
	}
	now := s.o.hooks.now()
	told := s.metrics.damageTold.Load()
	if told != nil && now.Sub(*told) < damageToldEvery || !s.metrics.damageTold.CompareAndSwap(told, &now) {
		return
	}
	s.o.OnDamage(err)
}

// refused gives the status for a read of in that failed; see statusOf. It tells of damage.
func (in *instance) refused(err error) (wire.Status, error) {
	in.store.sawDamage(err)
	return statusOf(err)
}

// caught turns a panic of Badger's into an error in *err: bytes of a table that are not what Badger wrote make
// it read beyond the ends of its slices. To be deferred around calls that read tables. Panics that don't
// begin in Badger's code go on.
func caught(err *error) {
	v := recover()
	if v == nil {
		return
	}
	if !inBadger() {
		panic(v)
	}
	cause, ok := v.(runtime.Error)
	if !ok {
		// Badger has caught it before and put a page of text around it.
		*err = fmt.Errorf("%w: Badger can't read a table", ErrRecordDamaged)
		return
	}
	*err = fmt.Errorf("%w: Badger can't read a table: %w", ErrRecordDamaged, cause)
}

// inBadger reports whether the panic that its caller's caller handles began in Badger, or in what Badger reads its
// tables with.
func inBadger() bool {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		// Between the deferred call and the place stand frames of the runtime, and of the standard library that
		// the place called: their paths begin without a domain.
		if domain, _, deep := strings.Cut(f.Function, "/"); deep && (strings.Contains(domain, ".") || domain == "kvstore") {
			return strings.HasPrefix(f.Function, "github.com/dgraph-io/") || strings.HasPrefix(f.Function, "github.com/google/flatbuffers/")
		}
		if !more {
			return false
		}
	}
}
