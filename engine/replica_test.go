package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"kvstore/wire"
)

// replica is an engine that follows a chronicle, in its own way: with options of its own, restarts, snapshots,
// readers. Whatever it does, it must make of each entry what the first engine made of it.
type replica struct {
	t   testing.TB
	c   *chronicle
	rng *rand.Rand
	o   Options
	e   *Engine
	// bubble: it runs in a synctest bubble, with a clock of its own.
	bubble bool

	sink   effectLog
	failed []error // what Options.Fatal was told
	kept   []keptAnswer
	trail  []string // what happened to it, for people

	stop    context.CancelFunc // ends readers
	readers sync.WaitGroup
}

// keptAnswer is an answer that the replica gave, and the sum of its bytes at that time.
type keptAnswer struct {
	index   uint64
	results []wire.Result
	sum     uint64
}

// anyOptions draws options: all that must not matter.
func anyOptions(t testing.TB, rng *rand.Rand, dir string) Options {
	pick := func(values ...int64) int64 { return values[rng.IntN(len(values))] }
	o := engineOptions(t, dir)
	o.MemtableBytes = pick(1<<20, 1<<20, 2<<20, 4<<20)
	o.NumMemtables = int(pick(1, 2, 3))
	o.NumCompactors = int(pick(3, 4))
	o.CheckpointInterval = time.Duration(pick(int64(time.Millisecond), int64(20*time.Millisecond), int64(time.Hour)))
	o.CheckpointBytes = pick(1, 64<<10, 1<<30)
	o.HistoryWindow = time.Duration(pick(-1, int64(time.Millisecond), int64(time.Minute)))
	o.HistoryBytes = pick(-1, 1, 64<<10, 1<<30)
	o.PinBytesMax = pick(1<<20, 8<<30)
	o.CacheBytes = pick(-1, stripeBytesMin, 1<<20, 16<<20)
	o.ChunkThresholdBytes = int(pick(0, 1, 100, 4<<10, 40<<10))
	o.CompressThresholdBytes = int(pick(-1, 0, 1, 100))
	o.ChunkBytes = int(pick(0, 1<<10, 5000, 40<<10))
	if rng.IntN(2) == 0 {
		o.hooks.duringRead = runtime.Gosched // so that entries are applied between what a reader reads and what it believes
	}
	return o
}

func optionsForPeople(o *Options) string {
	return fmt.Sprintf("memtables %d×%d, checkpoints %v %d, history %v %d, cache %d, pieces %d above %d",
		o.NumMemtables, o.MemtableBytes, o.CheckpointInterval, o.CheckpointBytes, o.HistoryWindow, o.HistoryBytes, o.CacheBytes, o.ChunkBytes, o.ChunkThresholdBytes)
}

func (r *replica) note(format string, args ...any) {
	r.trail = append(r.trail, fmt.Sprintf(format, args...))
}

// fatal ends the test with all that is needed to repeat it.
func (r *replica) fatal(format string, args ...any) {
	r.t.Helper()
	r.t.Fatalf("seed %d (replay with -seed=%d -chronicles=1): %s\nwhat happened to this replica:\n  %s", r.c.seed, r.c.seed, fmt.Sprintf(format, args...), strings.Join(r.trail, "\n  "))
}

func (r *replica) check(what string, err error) {
	r.t.Helper()
	if err != nil {
		r.fatal("%s: %v", what, err)
	}
}

// open opens r.o. The bound on kept answers is not stored: it belongs to the behaviour level.
func (r *replica) open() {
	r.t.Helper()
	r.o.Sink = &r.sink
	r.o.Fatal = func(err error) { r.failed = append(r.failed, err) }
	e, err := Open(r.o)
	r.check("open", err)
	r.e = e
	r.bound()
	r.note("open at %d: %s", r.applied(), optionsForPeople(&r.o))
}

func (r *replica) bound() {
	a := r.e.live.Load().applier
	a.sessions.bytesMax, a.once.bytesMax = r.c.bytesMax, r.c.onceBytesMax
}

func (r *replica) applied() uint64 { return r.e.Applied().Index }

// close ends readers and engine. A second call is harmless.
func (r *replica) close() {
	r.t.Helper()
	r.endReaders()
	r.check("close", r.e.Close())
}

// abandon ends what a failed test left open: nothing may go on in a bubble that ends, or in a directory that goes.
func (r *replica) abandon() {
	r.endReaders()
	if err := r.e.Close(); err != nil {
		r.t.Logf("close: %v", err)
	}
}

// crash ends the engine without a last checkpoint: what is above the newest one comes again.
func (r *replica) crash() {
	r.e.live.Load().pages.close()
	r.e.live.Load().store.failed.CompareAndSwap(nil, ptr(errors.New("crashed by the test")))
	r.close()
}

// apply gives one entry to the engine.
func (r *replica) apply(s *step) (out outcome) {
	r.sink.effects = r.sink.effects[:0]
	if s.configuration {
		r.e.ApplyConfiguration(s.index, s.term, bytes.Clone(s.body))
	} else {
		out.results = r.e.Apply(s.index, s.term, bytes.Clone(s.body))
		r.kept = append(r.kept, keptAnswer{s.index, out.results, sumResults(out.results)})
	}
	out.effects = sumEffects(r.sink.effects)
	out.point = r.e.Applied()
	_, out.digest = r.e.Digest()
	return out
}

func sumResults(results []wire.Result) uint64 {
	h := xxhash.New()
	for i := range results {
		_, _ = h.Write(results[i].Payload) // a hash takes everything
	}
	return h.Sum64()
}

// follow applies a step and compares everything.
func (r *replica) follow(s *step) {
	r.t.Helper()
	got := r.apply(s)
	fault := differentResults(got.results, s.done.results)
	switch {
	case len(r.failed) > 0:
		fault = fmt.Sprintf("engine failed: %v", r.failed[0])
	case fault != "":
	case got.effects != s.done.effects:
		fault = "other effects"
	case got.point != s.done.point:
		fault = fmt.Sprintf("point %+v, want %+v", got.point, s.done.point)
	case got.digest != s.done.digest:
		fault = fmt.Sprintf("digest %x, want %x", got.digest, s.done.digest)
	}
	if fault != "" {
		r.fatal("the first entry that differs: %s\n%s\n%s", fault, s, r.against(s.index))
	}
}

// against says how the replica's state differs from that of an engine of default options that has applied the log
// up to index and done nothing else.
func (r *replica) against(index uint64) string {
	plain := &replica{t: r.t, c: r.c, rng: r.rng, o: engineOptions(r.t, memoryDir(r.t))}
	plain.open()
	defer plain.close()
	for i := range r.c.steps {
		if s := &r.c.steps[i]; s.index <= index {
			plain.apply(s)
		}
	}
	return differentDumps(r.dump(), plain.dump())
}

// differentDumps lists the first lines that only one has; "" if they are equal.
func differentDumps(got, want []string) string {
	if slices.Equal(got, want) {
		return ""
	}
	var b strings.Builder
	only := func(what string, a, other []string) {
		n := 0
		for _, line := range a {
			if _, found := slices.BinarySearch(other, line); !found && n < 12 {
				fmt.Fprintf(&b, "  only in %s: %s\n", what, line)
				n++
			}
		}
	}
	only("this replica", got, want)
	only("the plain one", want, got)
	return b.String()
}

// dump lists the whole state as it is stored, in lines that are sorted: records with their values, however they
// are laid out, the expiry index, sessions and kept answers. Afterwards it lists what the engine holds in memory.
func (r *replica) dump() []string {
	r.t.Helper()
	in := r.e.live.Load()
	var lines []string
	err := in.store.read(0, func(rd *reader) error {
		lines = lines[:0]
		for _, family := range []byte{familyRecord, familyExpiry, familySession, familyJournal, familyOnce, familyMarker, familyUsage} {
			lower, upper := familyRange(family)
			err := rd.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
				stored, err := value()
				if err != nil {
					return false, err
				}
				if family != familyRecord {
					lines = append(lines, fmt.Sprintf("%x = %x", key, stored))
					return true, nil
				}
				var rec storedRecord
				if err := decodeRecord(key, stored, &rec); err != nil {
					return false, err
				}
				body, err := appendValue(nil, rd, key, &rec)
				if err != nil {
					return false, err
				}
				lines = append(lines, fmt.Sprintf("%q = %+v %x, %d bytes %x", key, rec.Meta, rec.Ext, len(body), xxhash.Sum64(body)))
				return true, nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	r.check("dump", err)
	t := in.applier.sessions
	for _, id := range sortedKeys(t.byID) {
		s := t.byID[id]
		lines = append(lines, fmt.Sprintf("session %d: opened %d, last %d, floor %d", id, s.opened, s.last, s.floor))
		all, err := s.results.all()
		r.check("look into a window", err)
		for _, seq := range sortedKeys(all) {
			k := all[seq]
			lines = append(lines, fmt.Sprintf("answer %d of session %d: %v rev %d at %v, %v %x", seq, id, k.status, k.rev, k.journal.place, k.truncated, k.payload))
		}
	}
	for i, line := range onceLines(in.applier.once) {
		lines = append(lines, fmt.Sprintf("once %04d: %s", i, line))
	}
	journals, err := journalsOf(t)
	r.check("list journal records", err)
	for place, j := range journals {
		lines = append(lines, fmt.Sprintf("journal %v: %d answers of %d bytes, digest %x", place, j.live, j.bytes, j.digest))
	}
	id := in.identity.Load()
	lines = append(lines, fmt.Sprintf("%d bytes of answers", t.bytes), fmt.Sprintf("identity %+v", *id), fmt.Sprintf("members %+v", r.e.Members()),
		fmt.Sprintf("namespaces %+v", r.e.Namespaces()))
	st, err := r.e.Stats()
	r.check("stats", err)
	due, ok := r.e.DueExpiry()
	lines = append(lines, fmt.Sprintf("%d records of %d bytes, %d sessions", st.Records, st.RecordBytes, st.Sessions), fmt.Sprintf("earliest deadline %d, %v", due, ok))
	slices.Sort(lines)
	return lines
}

// snapshot gives the engine's present state as a stream.
func (r *replica) snapshot() streamAt {
	r.t.Helper()
	r.check("checkpoint", r.e.CheckpointNow(context.Background()))
	s, err := r.e.OpenSnapshot(context.Background())
	r.check("open a snapshot", err)
	b, err := io.ReadAll(s)
	r.check("read a snapshot", errors.Join(err, s.Close()))
	return streamAt{s.Meta(), b}
}

// install replaces the state by a snapshot.
func (r *replica) install(s streamAt) {
	r.t.Helper()
	received, err := r.e.ReceiveSnapshot(context.Background(), s.meta, bytes.NewReader(s.stream))
	r.check("receive", err)
	r.check("install", received.Install())
	r.bound()
}

// restart opens the directory again, with other options, and repeats entries that are in it already: they must
// be known.
func (r *replica) restart() {
	r.t.Helper()
	r.o = anyOptions(r.t, r.rng, r.o.Dir)
	r.open()
	r.repeat()
	if r.rng.IntN(4) == 0 {
		r.read()
	}
}

// repeat applies entries that are applied already.
func (r *replica) repeat() {
	r.t.Helper()
	point := r.e.Applied()
	_, digest := r.e.Digest()
	for i := range r.c.steps {
		s := &r.c.steps[i]
		if s.index > point.Index {
			break
		}
		if s.index+20 < point.Index && r.rng.IntN(10) > 0 {
			continue
		}
		got := r.apply(s)
		if got.results != nil || got.point != point || got.digest != digest || len(r.sink.effects) > 0 {
			r.fatal("entry %d was applied a second time: %+v", s.index, got)
		}
	}
}

// disturb lets something happen that must not matter. next is the index of the entry that comes next.
func (r *replica) disturb(next uint64) {
	r.t.Helper()
	switch r.rng.IntN(12) {
	case 0:
		r.note("closed before %d", next)
		r.close()
		r.restart()
	case 1, 2:
		r.note("crashed before %d", next)
		r.crash()
		r.restart()
	case 3:
		r.note("checkpoint before %d", next)
		r.check("checkpoint", r.e.CheckpointNow(context.Background()))
	case 4:
		r.repeat()
	case 5:
		if i := slices.IndexFunc(r.c.snapshots, func(s streamAt) bool { return s.meta.Index >= next }); i >= 0 {
			s := r.c.snapshots[i]
			r.note("snapshot of %d installed before %d", s.meta.Index, next)
			r.install(s)
			r.sameAt(s.meta.Index)
		}
	case 6: // its state goes to another node, which goes on in its place
		if r.applied() == 0 {
			break
		}
		s := r.snapshot()
		r.note("moved to another directory by a snapshot of %d", s.meta.Index)
		r.close()
		r.o = anyOptions(r.t, r.rng, memoryDir(r.t))
		r.open()
		r.install(s)
		r.sameAt(s.meta.Index)
	case 7:
		r.note("verified before %d", next)
		r.check("verify the digest", r.e.VerifyDigest(context.Background()))
	case 8:
		r.note("scrubbed before %d", next)
		report, err := r.e.Scrub(context.Background(), ScrubOptions{RateBytes: -1})
		r.check("scrub", err)
		if !report.Sound() {
			r.fatal("scrub before %d: %+v", next, report)
		}
	case 9:
		r.note("compacted before %d", next)
		r.check("compact", r.e.live.Load().store.db.Flatten(2))
	case 10:
		n := 1 + r.rng.IntN(4)
		r.note("%d processors from %d on", n, next)
		runtime.GOMAXPROCS(n)
	case 11:
		pause := time.Duration(r.rng.IntN(3)) * time.Millisecond
		if r.bubble {
			pause = time.Duration(r.rng.IntN(20)) * time.Second // of its own clock: past deadlines, for nothing
		}
		r.note("%v of its clock pass before %d", pause, next)
		r.endReaders()
		time.Sleep(pause)
		r.read()
	}
}

// sameAt compares the digest with the one at an index of the chronicle.
func (r *replica) sameAt(index uint64) {
	r.t.Helper()
	for i := range r.c.steps {
		if s := &r.c.steps[i]; s.index == index {
			if got, digest := r.e.Digest(); got != index || digest != s.done.digest {
				r.fatal("index %d has digest %x, want %x at %d\n%s", got, digest, s.done.digest, index, r.against(index))
			}
		}
	}
}

// readsMax bounds what a reader reads: the clock of a bubble stands still while anyone is busy.
const readsMax = 300

// read starts readers that bring records into the cache and scan.
func (r *replica) read() {
	r.endReaders()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	e := r.e
	for i := range 2 {
		rng := rand.New(rand.NewPCG(r.c.seed, uint64(i)))
		// Ends with endReaders, or after readsMax reads.
		r.readers.Go(func() {
			var buf []byte
			for n := 0; n < readsMax && ctx.Err() == nil; n++ {
				var err error
				if rng.IntN(10) > 0 {
					_, buf, _, err = e.Get(ReadOptions{Namespace: 1}, fmt.Appendf(nil, "key/%03d", rng.IntN(60)), buf)
				} else {
					buf, _, err = e.Scan(ReadOptions{Namespace: 1}, &wire.ScanRequest{Limit: 20, BytesMax: 1 << 20}, buf[:0])
				}
				if err != nil {
					if !errors.Is(err, ErrClosed) {
						r.t.Errorf("seed %d: a reader: %v", r.c.seed, err)
					}
					return
				}
				runtime.Gosched()
			}
		})
	}
}

func (r *replica) endReaders() {
	if r.stop != nil {
		r.stop()
	}
	r.readers.Wait()
	r.stop = nil
}

// run follows the whole chronicle and ends the replica.
func (r *replica) run(eventful int) {
	r.t.Helper()
	r.open()
	defer r.abandon()
	for i := 0; i < len(r.c.steps); {
		s := &r.c.steps[i]
		if r.rng.IntN(eventful) == 0 {
			r.disturb(s.index)
			// It may stand elsewhere now.
			i, _ = slices.BinarySearchFunc(r.c.steps, r.applied()+1, func(s step, index uint64) int { return int(s.index) - int(index) })
			continue
		}
		r.follow(s)
		i++
	}
	r.check("verify the digest", r.e.VerifyDigest(context.Background()))
	wantModelState(r.t, r.e, r.c.model)
	if diff := differentDumps(r.dump(), r.c.dump); diff != "" {
		r.fatal("equal digests, other states:\n%s", diff)
	}
	if r.c.poison != nil {
		r.poison()
	}
	for _, k := range r.kept {
		if sumResults(k.results) != k.sum {
			r.fatal("the answers to entry %d have changed after they were given", k.index)
		}
	}
	if len(r.failed) > 0 {
		r.crash()
		return
	}
	r.close()
}

// poison applies the entry that can't be applied: the engine stops, changes nothing, and stops again after a restart.
func (r *replica) poison() {
	r.t.Helper()
	last := &r.c.steps[len(r.c.steps)-1]
	bad := step{index: last.index + 1, term: last.term, body: r.c.poison}
	good := step{index: last.index + 2, term: last.term, body: sealEntry(0, putOp("k", nil, nil))}
	for range 2 {
		for _, s := range []*step{&bad, &good} {
			if got := r.apply(s); got.results != nil || got.point != last.done.point || got.digest != last.done.digest || len(r.sink.effects) > 0 {
				r.fatal("the entry that can't be applied, or one behind it, was applied: %+v", got)
			}
		}
		if len(r.failed) != 1 {
			r.fatal("Options.Fatal was called %d times: %v", len(r.failed), r.failed)
		}
		r.crash()
		r.failed = nil
		r.o = anyOptions(r.t, r.rng, r.o.Dir)
		r.open()
		for i := range r.c.steps {
			if s := &r.c.steps[i]; s.index > r.applied() {
				r.follow(s)
			}
		}
	}
}
