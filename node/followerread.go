package node

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvstore/internal/clock"
	"kvstore/wire"
)

const (
	// followerReadTimeoutDefault is ServiceOptions.FollowerReadTimeout's.
	followerReadTimeoutDefault = 2 * time.Second
	// followerReadsMax bounds the reads that wait here; readQueueBytesDefault bounds their bytes.
	followerReadsMax = 16384
	// followerTick is how often deadlines are looked at while something waits.
	followerTick = 50 * time.Millisecond
	// staleKeep is for how long after a stale read the leader is asked without need, so that the next one has
	// a small age; stalePeriod is how often.
	staleKeep   = 10 * time.Second
	stalePeriod = 100 * time.Millisecond
)

// followerReads is where reads wait on a node that may not answer them from what it has applied: linearizable ones
// for the leader's word on how far it has applied (READ_INDEX), and then until this node has, too; those with a minimum
// revision for that revision. One question is under way at a time and serves all that had come when it was sent.
// The linearizable ones are answered from the very state that the leader named, not from a newer one: this node may
// have applied what the leader has not yet, and so can't show. DESIGN.md says why that is linearizable.
//
// It also knows how old the applied state may be: everything acknowledged before a question was sent is in
// the state that its answer names.
type followerReads struct {
	// Immutable after newFollowerReads.
	s       *Service
	clock   clock.Clock
	timeout time.Duration
	ctx     context.Context // ends when close begins
	cancel  context.CancelFunc
	wake    chan struct{} // a token: something has come
	answers chan leaderWord

	// reflected is the newest boot time before which everything acknowledged is applied here; 0: none is known.
	reflected atomic.Int64
	// staleAt is about when the last stale read came, boot time.
	staleAt atomic.Int64

	// For the metrics.
	served, refused, questions, unanswered atomic.Uint64

	mu sync.Mutex
	// Guarded by mu.
	arrived []*readJob // since the last question was sent
	asked   *round     // those for which the question under way was sent; nil: there is none
	rounds  map[*round]struct{}
	items   int // reads of all of these
	closed  bool

	// askedAt is when the last question was sent, boot time. Owned by run.
	askedAt int64

	running sync.WaitGroup // run, and the question under way
}

// round is reads that wait for one entry to be applied.
type round struct {
	// Guarded by followerReads.mu.
	jobs []*readJob
	// sentAt is when the question was sent, boot time; 0: nobody was asked.
	sentAt int64
	// revision is that of the state which the leader named.
	revision wire.Revision
	// until is when they are given up, on Shard.now.
	until int64
	// cancel takes the wait back; nil until it has begun.
	cancel func()
}

// leaderWord is what came of a question: a point, or a refusal.
type leaderWord struct {
	point   wire.ReadPoint
	refusal *wire.Refusal
}

// The refusals of reads that have waited in vain. A client asks the leader then.
var (
	leaderSilent  = &wire.Refusal{Status: wire.StatusRetryLater, RetryAfterMs: leaderRetryMs, Text: "the leader did not confirm in time how far this node must have applied: try again, or ask the leader"}
	leaderUnknown = &wire.Refusal{Status: wire.StatusNoLeader, RetryAfterMs: leaderRetryMs}
	lagging       = &wire.Refusal{Status: wire.StatusRetryLater, RetryAfterMs: leaderRetryMs, Text: "this node has not, or no longer, the state that must answer: try again, or ask the leader"}
)

func newFollowerReads(s *Service, timeout time.Duration) *followerReads {
	if timeout <= 0 {
		timeout = followerReadTimeoutDefault
	}
	f := &followerReads{
		s: s, clock: clock.System{}, timeout: timeout, rounds: make(map[*round]struct{}),
		wake: make(chan struct{}, 1), answers: make(chan leaderWord, 1),
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.running.Go(f.run) // owned by f, whose close ends it
	return f
}

// now is the boot time in nanoseconds, on which ages are measured.
func (f *followerReads) now() int64 { return int64(f.clock.Boot()) }

// reflects notes that everything acknowledged before the boot time at is applied here.
func (f *followerReads) reflects(at int64) {
	for {
		old := f.reflected.Load()
		if old >= at || f.reflected.CompareAndSwap(old, at) {
			return
		}
	}
}

// age gives the microseconds before this call within which something may have been acknowledged that the applied
// state lacks; wire.AgeUnknown: any. It is called for stale reads alone, after they arrived and before they are
// served. way is Shard.howToRead's word, after they arrived too.
func (f *followerReads) age(way readWay) uint64 {
	if way == readNow {
		return 0
	}
	now := f.now()
	if now-f.staleAt.Load() > int64(time.Second) {
		f.staleAt.Store(now)
		f.signal()
	}
	at := f.reflected.Load()
	if at == 0 {
		return wire.AgeUnknown
	}
	return uint64(max(now-at, 0)+999) / 1000
}

// young reports whether an age is known and at most so many milliseconds.
func young(age, maxMs uint64) bool {
	return age != wire.AgeUnknown && (age+999)/1000 <= maxMs
}

// signal wakes run. It never blocks.
func (f *followerReads) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// wait lets a job wait for a question that is sent after this call. It never blocks.
func (f *followerReads) wait(job *readJob) {
	if !f.s.reads.reserve(job) {
		return
	}
	if refusal := f.enter(job, nil); refusal != nil {
		f.s.reads.refuse(job, refusal)
	}
}

// await lets a read wait, up to its deadline, until the revision is applied that it must reflect. false: it won't
// be, or not by waiting. It is called by read workers and never blocks.
func (f *followerReads) await(to wire.Completer, it *readItem) bool {
	if f.s.shard.leading() {
		return false // a leader has applied whatever was acknowledged
	}
	job := f.s.reads.single(to, it)
	job.items[0].waited = true
	if !f.s.reads.reserve(job) {
		return true
	}
	r := &round{jobs: []*readJob{job}, until: math.MaxInt64}
	if refusal := f.enter(job, r); refusal != nil {
		f.s.reads.refuse(job, refusal)
		return true
	}
	f.start(r, f.s.shard.indexOf(it.minRevision))
	return true
}

// indexOf gives the index of the entry with a revision that is not applied yet. Revisions count entries from a base that
// a recovery raises; the index is exact unless one comes in between.
func (s *Shard) indexOf(rev wire.Revision) uint64 {
	at := s.engine.Applied()
	base := wire.RevisionTS(at.Revision) - min(wire.RevisionTS(at.Revision), at.Index)
	ts := wire.RevisionTS(rev)
	return ts - min(ts, base)
}

// enter counts a job in, as the only one of r or, without that, as one that has arrived; or it gives the refusal.
func (f *followerReads) enter(job *readJob, r *round) *wire.Refusal {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return &wire.Refusal{Status: wire.StatusDraining}
	case f.items+len(job.items) > followerReadsMax:
		return busy
	}
	f.items += len(job.items)
	if r != nil {
		f.rounds[r] = struct{}{}
	} else if f.arrived = append(f.arrived, job); f.asked != nil {
		return nil // run comes back to it with the answer to the question under way
	}
	f.signal()
	return nil
}

// start begins r's wait for an entry. REQUIRES: r is one of rounds, or was and has been given up.
func (f *followerReads) start(r *round, index uint64) {
	cancel, ok := f.s.shard.engine.WaitApplied(index, func() { f.applied(r) })
	if !ok {
		jobs, _ := f.leave(r)
		f.giveUp(jobs, busy)
		return
	}
	f.mu.Lock()
	_, waits := f.rounds[r]
	r.cancel = cancel
	f.mu.Unlock()
	if !waits {
		cancel()
	}
}

// leave takes r out of rounds and gives its jobs; ok is false when it was not there any more.
func (f *followerReads) leave(r *round) (jobs []*readJob, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leaveLocked(r)
}

// leaveLocked is leave. REQUIRES: mu held.
func (f *followerReads) leaveLocked(r *round) (jobs []*readJob, ok bool) {
	if _, ok = f.rounds[r]; !ok {
		return nil, false
	}
	delete(f.rounds, r)
	for _, job := range r.jobs {
		f.items -= len(job.items)
	}
	return r.jobs, true
}

// applied hands a round's reads to the workers. It runs on the applier's goroutine and never blocks.
func (f *followerReads) applied(r *round) {
	jobs, ok := f.leave(r)
	if !ok {
		return
	}
	if r.sentAt != 0 {
		f.reflects(r.sentAt)
		for _, job := range jobs {
			f.served.Add(uint64(len(job.items)))
			for i := range job.items {
				if it := &job.items[i]; !it.stale {
					it.pin = r.revision
				}
			}
		}
	}
	f.s.reads.enqueueAll(jobs)
}

// giveUp refuses jobs that have left.
func (f *followerReads) giveUp(jobs []*readJob, refusal *wire.Refusal) {
	for _, job := range jobs {
		f.refused.Add(uint64(len(job.items)))
		f.s.reads.refuse(job, refusal)
	}
}

// run asks the leader whenever reads wait for its word, and gives up what waits for too long. It ends when close
// begins.
func (f *followerReads) run() {
	ticker := time.NewTicker(followerTick)
	defer ticker.Stop()
	for busy := false; ; {
		tick := ticker.C
		if !busy {
			tick = nil
		}
		select {
		case <-f.wake:
		case <-tick:
			f.lapse()
		case w := <-f.answers:
			f.answered(w)
		case <-f.ctx.Done():
			f.end()
			return
		}
		busy = f.step()
	}
}

// step sends the next question where one is due. It reports whether there is more to do without a signal.
func (f *followerReads) step() (busy bool) {
	boot := f.now()
	stale := boot-f.staleAt.Load() < int64(staleKeep) && f.s.shard.howToRead() != readNow
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked == nil && (len(f.arrived) > 0 || stale && boot-f.askedAt >= int64(stalePeriod)) {
		// Everything that has arrived has arrived before now, and the question is sent after.
		f.asked = &round{jobs: f.arrived, sentAt: boot}
		f.arrived, f.askedAt = nil, boot
		f.questions.Add(1)
		f.running.Go(func() { f.answers <- f.ask() }) // owned by f; ends after timeout at the latest, or with ctx
	}
	return stale || f.asked != nil || len(f.rounds) > 0
}

// ask asks the leader, which may be this node by now, how far one must have applied.
func (f *followerReads) ask() leaderWord {
	sh := f.s.shard
	ctx, cancel := context.WithTimeout(f.ctx, f.timeout)
	defer cancel()
	if sh.howToRead() != readElsewhere {
		if sh.confirm(ctx) != nil {
			return leaderWord{refusal: leaderSilent}
		}
		return leaderWord{point: sh.readPoint()}
	}
	address, _, known := sh.leaderElsewhere()
	if !known {
		return leaderWord{refusal: leaderUnknown}
	}
	a, _ := sh.peers.do(ctx, address, &wire.Request{Op: wire.OpReadIndex, Group: uint16(sh.id), TimeoutMs: uint32(max(f.timeout.Milliseconds(), 1))})
	if a.Status == wire.StatusOK {
		if point, ok := wire.DecodeReadPoint(a.Payload); ok {
			return leaderWord{point: point}
		}
	}
	return leaderWord{refusal: leaderSilent}
}

// answered takes what came of the question under way.
func (f *followerReads) answered(w leaderWord) {
	f.mu.Lock()
	r := f.asked
	f.asked = nil
	r.until, r.revision = f.s.shard.now()+int64(f.timeout), w.point.Revision
	f.rounds[r] = struct{}{}
	f.mu.Unlock()
	if w.refusal == nil {
		f.start(r, w.point.Index)
		return
	}
	f.unanswered.Add(1)
	jobs, _ := f.leave(r)
	f.giveUp(jobs, w.refusal)
}

// lapse gives up the reads whose deadline has passed, and the rounds that have waited for too long.
func (f *followerReads) lapse() {
	now := f.s.shard.now()
	type lateRead struct {
		to    wire.Completer
		token wire.Token
	}
	var late []lateRead
	var tooLong []*readJob
	var cancels []func()
	past := func(jobs []*readJob) []*readJob {
		return slices.DeleteFunc(jobs, func(job *readJob) bool {
			job.items = slices.DeleteFunc(job.items, func(it readItem) bool {
				if it.deadline >= now {
					return false
				}
				late = append(late, lateRead{job.to, it.token})
				return true
			})
			if len(job.items) == 0 {
				f.s.reads.release(job)
				return true
			}
			return false
		})
	}
	f.mu.Lock()
	f.arrived = past(f.arrived)
	if f.asked != nil {
		f.asked.jobs = past(f.asked.jobs)
	}
	for r := range f.rounds {
		r.jobs = past(r.jobs)
		if r.until < now || len(r.jobs) == 0 && r.sentAt == 0 {
			jobs, _ := f.leaveLocked(r)
			tooLong = append(tooLong, jobs...)
			if r.cancel != nil {
				cancels = append(cancels, r.cancel)
			}
		}
	}
	f.items -= len(late)
	f.mu.Unlock()
	for _, cancel := range cancels {
		cancel()
	}
	for _, l := range late {
		f.refused.Add(1)
		refuse(l.to, l.token, &wire.Refusal{Status: wire.StatusTooLate})
	}
	f.giveUp(tooLong, lagging)
}

// end refuses all that waits.
func (f *followerReads) end() {
	f.mu.Lock()
	jobs := f.arrived
	f.arrived = nil
	if f.asked != nil {
		jobs = append(jobs, f.asked.jobs...)
		f.asked.jobs = nil
	}
	var cancels []func()
	for r := range f.rounds {
		more, _ := f.leaveLocked(r)
		jobs = append(jobs, more...)
		if r.cancel != nil {
			cancels = append(cancels, r.cancel)
		}
	}
	f.items = 0
	f.mu.Unlock()
	for _, cancel := range cancels {
		cancel()
	}
	f.giveUp(jobs, &wire.Refusal{Status: wire.StatusDraining})
}

// close refuses what waits, and what comes later.
func (f *followerReads) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.running.Wait()
}

// samples gives what f counts.
func (f *followerReads) samples() []sample {
	f.mu.Lock()
	waiting := f.items
	f.mu.Unlock()
	return []sample{
		{"kvstore_follower_reads_total", "counter", "Linearizable reads that this node answered, or began to, without leading.", float64(f.served.Load())},
		{"kvstore_follower_reads_refused_total", "counter", "Reads that waited in vain for the leader's word, an entry or a revision.", float64(f.refused.Load())},
		{"kvstore_follower_read_questions_total", "counter", "Questions to the leader; each serves all reads that waited when it was sent.", float64(f.questions.Load())},
		{"kvstore_follower_read_questions_failed_total", "counter", "Questions without an answer in time.", float64(f.unanswered.Load())},
		{"kvstore_follower_reads_waiting", "gauge", "Reads that wait for the leader's word, an entry or a revision.", float64(waiting)},
	}
}

// readPoint describes the applied state. REQUIRES: the node was confirmed as leader.
func (s *Shard) readPoint() wire.ReadPoint {
	at := s.engine.Applied()
	return wire.ReadPoint{Index: at.Index, Term: at.Term, Revision: at.Revision}
}

// readIndex answers a READ_INDEX. way was decided after it arrived.
func (s *Service) readIndex(c wire.Completer, r *wire.Request, way readWay) {
	t := r.Token()
	answer := func() {
		var room [wire.ReadPointBytes]byte
		c.Complete(t, &wire.Response{Payload: wire.AppendReadPoint(room[:0], s.shard.readPoint())})
	}
	switch way {
	case readNow:
		answer()
	case readConfirmed:
		s.shard.group.ReadIndex(func(err error) {
			if err != nil {
				refuse(c, t, s.shard.unconfirmed(err))
				return
			}
			answer()
		})
	default:
		refuse(c, t, s.shard.notLeading())
	}
}

// via tells what reads wait for that may not be older than their arrival.
func (w readWay) via() readVia {
	switch w {
	case readNow:
		return viaNothing
	case readConfirmed:
		return viaMajority
	}
	return viaLeader
}
