package engine

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"kvstore/wire"
)

// Records with a time to live carry their deadline in log time. Whoever reads at log time T counts a record
// with deadline ≤ T as absent, so expiry needs no clock here. What remains to be done is to remove such
// records: the expiry index X orders them by deadline, the leader watches the earliest one and proposes
// OpExpire, and Apply removes what is due.

// expireMax bounds the records that one OpExpire removes. It belongs to the behaviour level: Apply's result
// depends on it.
const expireMax = wire.BatchOpsMax

// deadlines knows the earliest deadline in the expiry index without reading it.
//
// Invariant, between entries: next is ≤ every deadline in X, and equal to the earliest one unless stale.
type deadlines struct {
	mu sync.Mutex

	// Guarded by mu.
	next    int64  // math.MaxInt64: there is none
	stale   bool   // a record whose deadline may have been next is gone
	changes uint64 // counts the entries that changed a deadline
}

// deadlineChanges gathers what one entry does to X. Owned by the applier.
type deadlineChanges struct {
	added      int64 // the earliest that was added
	removedMin int64 // the earliest and the latest that were removed
	removedMax int64
	known      bool  // OpExpire has read the index:
	earliest   int64 // what it left as the earliest
}

func (c *deadlineChanges) reset() {
	*c = deadlineChanges{added: math.MaxInt64, removedMin: math.MaxInt64, removedMax: math.MinInt64}
}

func (c *deadlineChanges) add(deadline int64) { c.added = min(c.added, deadline) }

func (c *deadlineChanges) remove(deadline int64) {
	c.removedMin = min(c.removedMin, deadline)
	c.removedMax = max(c.removedMax, deadline)
}

// publish takes over what an entry did. REQUIRES: the entry is published by the store.
func (d *deadlines) publish(c *deadlineChanges) {
	if !c.known && c.added == math.MaxInt64 && c.removedMin == math.MaxInt64 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes++
	if c.known {
		d.next, d.stale = c.earliest, false
	}
	if c.removedMin <= d.next && d.next <= c.removedMax {
		d.stale = true
	}
	if c.added <= d.next {
		d.next, d.stale = c.added, false
	}
}

// floor gives a bound below every deadline.
func (d *deadlines) floor() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.next
}

// earliest gives next, after a look into the index if next may be too early.
func (d *deadlines) earliest(s *store) int64 {
	d.mu.Lock()
	next, stale, changes := d.next, d.stale, d.changes
	d.mu.Unlock()
	if !stale {
		return next
	}
	found, err := earliestDeadline(s, next)
	if err != nil {
		s.sawDamage(err)
		return next // too early is harmless: OpExpire finds nothing due and tells the earliest
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changes == changes {
		d.next, d.stale = found, false
	}
	return d.next
}

// expiryRange gives the bounds of the part of the expiry index whose deadlines are at least from. To begin
// there spares the scan the tombstones of all that has expired before.
func expiryRange(from int64) (lower, upper []byte) {
	lower, upper = familyRange(familyExpiry)
	return binary.BigEndian.AppendUint64(lower, uint64(from)), upper
}

// earliestDeadline reads the first deadline from the expiry index, math.MaxInt64 if there is none.
// REQUIRES: 0 ≤ from ≤ every deadline.
func earliestDeadline(s *store, from int64) (earliest int64, err error) {
	lower, upper := expiryRange(from)
	err = s.read(0, func(r *reader) error {
		earliest = math.MaxInt64
		return r.iterate(lower, upper, false, true, func(key []byte, _ func() ([]byte, error)) (bool, error) {
			deadline, _, ok := splitExpiryKey(key)
			if !ok {
				return false, fmt.Errorf("%w: key %x in the expiry index", ErrRecordDamaged, key)
			}
			earliest = deadline
			return false, nil
		})
	})
	return earliest, err
}

// DueExpiry gives the earliest deadline of any record, in Unix µs of log time; ok is false when no record
// has one. It may be too early when records were written over, never too late. The leader compares it
// with its clock and proposes OpExpire.
func (e *Engine) DueExpiry() (deadline int64, ok bool) {
	in := e.live.Load()
	deadline = in.deadlines.earliest(in.store)
	return deadline, deadline != math.MaxInt64
}

// expire executes OpExpire: it removes up to n records whose deadline has passed, the earliest first.
func (a *applier) expire(n uint32) wire.Result {
	n = min(n, expireMax)
	due, earliest := a.dueRecords(int(n))
	res := wire.Result{Status: wire.StatusOK}
	for _, recordKey := range due {
		st := a.stage(recordKey)
		if !st.exists || !st.now.expired(a.now) {
			a.failApply(damaged(fmt.Sprintf("the expiry index names key %q, which has no such deadline", userKey(recordKey)), nil))
		}
		before := len(a.effects)
		rev := a.removeExpired(st)
		a.endTransaction(before) // each has ended for itself
		if res.Rev == 0 {
			res.Rev = rev
		}
	}
	a.deadlines.known, a.deadlines.earliest = true, earliest
	return res
}

// dueRecords reads the expiry index as this entry has left it so far: up to n record keys that are due, and
// the earliest deadline behind them.
func (a *applier) dueRecords(n int) (due [][]byte, earliest int64) {
	lower, upper := expiryRange(a.in.deadlines.floor())
	err := a.in.store.read(0, func(r *reader) error {
		due, earliest = due[:0], math.MaxInt64
		return r.iterate(lower, upper, false, true, func(key []byte, _ func() ([]byte, error)) (bool, error) {
			deadline, tail, ok := splitExpiryKey(key)
			if !ok {
				return false, fmt.Errorf("%w: key %x in the expiry index", ErrRecordDamaged, key)
			}
			recordKey := append(append(a.mem.alloc(1+len(tail)), familyRecord), tail...)
			if st := a.overlay.find(hashKey(recordKey), recordKey); st != nil && (!st.exists || st.now.Meta.ExpiresAt != deadline) {
				return true, nil // changed by this entry; a new deadline lies in the future
			}
			if deadline > a.now || len(due) == n {
				earliest = deadline
				return false, nil
			}
			due = append(due, recordKey)
			return true, nil
		})
	})
	if err != nil {
		a.failRead(fmt.Errorf("the expiry index: %w", err))
	}
	return due, earliest
}
