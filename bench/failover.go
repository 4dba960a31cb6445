package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"
)

// FailoverOptions describes a measurement of fail-overs. The zero value of each field but the functions
// means its default.
type FailoverOptions struct {
	// Kills is how many leaders are killed, one after the other. Default 10.
	Kills int
	// Interval between two writes. A write falls due whatever became of the ones before. Default 5ms.
	Interval time.Duration
	// ValueBytes is the length of each value. Default 128.
	ValueBytes int
	// Settle is how long the cluster must be whole before the next kill. Default 1s.
	Settle time.Duration
	// Patience is the longest wait for a whole cluster, and for a write after a kill. Default 1m.
	Patience time.Duration
	// KeyPrefix keeps the keys apart from others'; each write has a key of its own, named by the time of the
	// run. Default "kvbench/".
	KeyPrefix string
	// Leader tells who leads a whole cluster; an error says what is missing. Required.
	Leader func(context.Context) (Leader, error)
	// Kill ends the leader's process at once and returns when the process is gone. Required.
	Kill func(context.Context, Leader) error
	// Progress, when set, hears of each kill.
	Progress func(n int, k KillReport)
}

// Leader is who leads a whole cluster.
type Leader struct {
	ID    string
	PID   int
	Term  uint64
	Nodes int
}

// Bounds of FailoverOptions.
const (
	killsMax = 1000
	// failoverInFlightMax bounds the writes that wait for a leader: twenty seconds' worth at 5 ms.
	failoverInFlightMax = 4096
	healthPause         = 100 * time.Millisecond
	readBackBatch       = 200
)

// Validate returns all faults of o at once, or nil.
func (o FailoverOptions) Validate() error {
	_, err := o.withDefaults()
	return err
}

func (o FailoverOptions) withDefaults() (FailoverOptions, error) {
	setDefault(&o.Kills, 10)
	setDefault(&o.Interval, 5*time.Millisecond)
	setDefault(&o.ValueBytes, 128)
	setDefault(&o.Settle, time.Second)
	setDefault(&o.Patience, time.Minute)
	setDefault(&o.KeyPrefix, "kvbench/")
	var faults []error
	if o.Kills < 1 || o.Kills > killsMax {
		faults = append(faults, fmt.Errorf("%d kills; 1 to %d", o.Kills, killsMax))
	}
	if o.Interval < time.Millisecond || o.Interval > time.Minute {
		faults = append(faults, fmt.Errorf("an interval of %v; 1ms to 1m", o.Interval))
	}
	if o.ValueBytes < 1 || o.ValueBytes > valueBytesMax {
		faults = append(faults, fmt.Errorf("values of %d bytes; 1 to %d", o.ValueBytes, valueBytesMax))
	}
	if o.Settle < 0 || o.Patience <= o.Settle {
		faults = append(faults, fmt.Errorf("%v to settle within a patience of %v", o.Settle, o.Patience))
	}
	if o.Leader == nil || o.Kill == nil {
		faults = append(faults, errors.New("nobody to ask for the leader, or no way to kill it"))
	}
	return o, errors.Join(faults...)
}

// Failover writes at a steady pace, kills the leader again and again as soon as the cluster is whole, and
// reports how long writes stood still. At the end it reads all acknowledged writes back. It fails when a
// cluster does not become whole, no write is acknowledged any more, or the term does not rise after a kill.
func Failover(ctx context.Context, t Target, o FailoverOptions) (*FailoverReport, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("cannot measure fail-over: %w", err)
	}
	w := &paced{
		target: t, opts: o, epoch: time.Now(), fill: newFiller(uint64(time.Now().UnixNano()), o.ValueBytes),
		prefix: o.KeyPrefix + "failover/" + strconv.FormatInt(time.Now().UnixNano(), 36) + "/",
		slots:  make(chan struct{}, failoverInFlightMax),
	}
	w.tally.kinds, w.tally.samples = map[string]uint64{}, map[string]string{}
	wctx, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	// The paced writer: owned by Failover; ends with wctx, after its writes.
	wg.Go(func() { w.run(wctx) })
	rep, err := w.kill(ctx)
	stop()
	wg.Wait()
	if err != nil {
		return nil, err
	}
	return rep, w.finish(ctx, rep)
}

// paced is the writer and what it has learned.
type paced struct {
	// Immutable.
	target Target
	opts   FailoverOptions
	epoch  time.Time
	fill   *filler
	prefix string

	// slots holds a token for each write under way.
	slots chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	tally tally
	watch *watch
}

type tally struct {
	// acked takes 24 bytes of each write; kills, patience and interval bound them.
	acked   []ack
	errors  uint64
	unknown uint64
	notSent uint64
	kinds   map[string]uint64
	samples map[string]string
}

// ack is an acknowledged write; times are offsets from the epoch.
type ack struct {
	number     uint64
	begun, end time.Duration
}

// watch waits for the first answer to a write that began after some instant.
type watch struct {
	after time.Duration
	first chan time.Duration
}

func (w *paced) now() time.Duration { return time.Since(w.epoch) }

func (w *paced) key(number uint64) string { return w.prefix + strconv.FormatUint(number, 10) }

// run starts a write every Interval, each in a goroutine of its own, and returns when all have ended.
func (w *paced) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(w.opts.Interval)
	defer tick.Stop()
	for number := uint64(0); ; number++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		select {
		case w.slots <- struct{}{}:
		default:
			w.mu.Lock()
			w.tally.notSent++
			w.mu.Unlock()
			continue
		}
		// One write: owned by run; ends with its answer. It is not cut off by ctx: its outcome is wanted.
		wg.Go(func() {
			w.write(context.WithoutCancel(ctx), number)
			<-w.slots
		})
	}
}

func (w *paced) write(ctx context.Context, number uint64) {
	off := int(number % valueSpread)
	begun := w.now()
	err := w.target.Put(ctx, w.key(number), w.fill.bytes[off:off+w.fill.size])
	a := ack{number, begun, w.now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &w.tally
	if err != nil {
		kind := w.target.Kind(err)
		t.errors++
		if kind == KindUnknown {
			t.unknown++
		}
		if t.kinds[kind.String()]++; t.kinds[kind.String()] == 1 {
			t.samples[kind.String()] = err.Error()
		}
		return
	}
	t.acked = append(t.acked, a)
	if w.watch != nil && begun >= w.watch.after {
		w.watch.first <- a.end
		w.watch = nil
	}
}

// await gives the end of the first acknowledged write that began after the call.
func (w *paced) await(ctx context.Context, what string) (time.Duration, error) {
	watch := &watch{w.now(), make(chan time.Duration, 1)}
	w.mu.Lock()
	w.watch = watch
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, w.opts.Patience)
	defer cancel()
	select {
	case end := <-watch.first:
		return end, nil
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		sample := ""
		for kind, text := range w.tally.samples {
			sample = fmt.Sprintf("; %d writes failed as %s, such as: %s", w.tally.kinds[kind], kind, text)
			break
		}
		return 0, fmt.Errorf("no write was acknowledged %s: %w%s", what, ctx.Err(), sample)
	}
}

// window is the time in which a fail-over held writes up.
type window struct{ from, until time.Duration }

// kill does the rounds.
func (w *paced) kill(ctx context.Context) (*FailoverReport, error) {
	o := &w.opts
	rep := &FailoverReport{Machine: ReadMachine(""), Interval: micros(o.Interval), Kills: []KillReport{}}
	windows := make([]window, 0, o.Kills)
	leader, err := w.whole(ctx, 0)
	if err != nil {
		return nil, err
	}
	rep.Nodes = leader.Nodes
	for n := range o.Kills {
		from := w.now()
		if err := o.Kill(ctx, leader); err != nil {
			return nil, fmt.Errorf("cannot kill leader %s: %w", leader.ID, err)
		}
		end, err := w.await(ctx, "after leader "+leader.ID+" was killed")
		if err != nil {
			return nil, err
		}
		k := KillReport{Leader: leader.ID, Term: leader.Term, Gap: micros(end - from)}
		if o.Progress != nil {
			o.Progress(n+1, k)
		}
		rep.Kills, windows = append(rep.Kills, k), append(windows, window{from, end})
		if leader, err = w.whole(ctx, leader.Term+1); err != nil {
			return nil, err
		}
	}
	w.longest(rep, windows)
	return rep, nil
}

// whole waits until the cluster is whole, in a term of at least termMin, and stays so for Settle while
// writes are acknowledged.
func (w *paced) whole(ctx context.Context, termMin uint64) (Leader, error) {
	ctx, cancel := context.WithTimeout(ctx, w.opts.Patience)
	defer cancel()
	var (
		last  Leader
		since time.Duration
	)
	for {
		l, err := w.opts.Leader(ctx)
		switch {
		case err != nil:
			last = Leader{}
		case l.Term < termMin:
			err = fmt.Errorf("%s leads in term %d, as before the kill: it was not killed, or the cluster went back", l.ID, l.Term)
			last = Leader{}
		case l != last:
			last, since = l, w.now()
		}
		if err == nil && w.now()-since >= w.opts.Settle {
			_, err := w.await(ctx, "by a whole cluster")
			return l, err
		}
		select {
		case <-ctx.Done():
			return Leader{}, fmt.Errorf("the cluster did not become whole within %v: %w", w.opts.Patience, cmp.Or(err, ctx.Err()))
		case <-time.After(healthPause):
		}
	}
}

// longest finds the longest write that overlaps each window.
func (w *paced) longest(rep *FailoverReport, windows []window) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, win := range windows {
		longest := time.Duration(0)
		for _, a := range w.tally.acked {
			if a.begun <= win.until && a.end >= win.from {
				longest = max(longest, a.end-a.begun)
			}
		}
		rep.Kills[i].LongestWrite = micros(longest)
	}
}

// finish sums up and reads back. REQUIRES: run has ended.
func (w *paced) finish(ctx context.Context, rep *FailoverReport) error {
	t := &w.tally
	rep.Writes = uint64(len(t.acked))
	rep.Errors, rep.Unknown, rep.NotSent = t.errors, t.unknown, t.notSent
	if t.errors > 0 {
		rep.ErrorsByKind, rep.ErrorSamples = t.kinds, t.samples
	}
	gaps, writes := make([]float64, 0, len(rep.Kills)), make([]float64, 0, len(rep.Kills))
	for _, k := range rep.Kills {
		gaps, writes = append(gaps, k.Gap), append(writes, k.LongestWrite)
	}
	slices.Sort(gaps)
	slices.Sort(writes)
	rank := func(sorted []float64, q float64) float64 { return sorted[int(math.Ceil(q*float64(len(sorted))))-1] }
	rep.P50, rep.P99, rep.Max = rank(gaps, 0.50), rank(gaps, 0.99), gaps[len(gaps)-1]
	rep.WriteP50, rep.WriteP99 = rank(writes, 0.50), rank(writes, 0.99)
	return w.readBack(ctx, rep)
}

// readBack counts the acknowledged writes that are gone.
func (w *paced) readBack(ctx context.Context, rep *FailoverReport) error {
	for batch := range slices.Chunk(w.tally.acked, readBackBatch) {
		keys := make([]string, len(batch))
		for i, a := range batch {
			keys[i] = w.key(a.number)
		}
		var found int
		err := insist(ctx, w.target, func() (err error) {
			found, err = w.target.GetMany(ctx, keys)
			return err
		})
		if err != nil {
			return fmt.Errorf("cannot read the acknowledged writes back: %w", err)
		}
		if found == len(keys) {
			continue
		}
		rep.Lost += uint64(len(keys) - found)
		for _, key := range keys {
			_, ok, err := w.target.Get(ctx, key, nil)
			if err == nil && !ok && rep.LostKey == "" {
				rep.LostKey = key
			}
		}
	}
	return nil
}
