package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/wire"
)

// holdOptions let the fence follow each checkpoint and small memtables turn over fast.
func holdOptions(t testing.TB) Options {
	o := engineOptions(t, t.TempDir())
	o.MemtableBytes = 1 << 20
	o.HistoryWindow = -1
	o.ChunkThresholdBytes, o.ChunkBytes = 16<<10, 8<<10
	return o
}

// TestOpenSnapshot_EverythingIsRewrittenWhileItIsRead_ShowsItsState reads a snapshot slowly while each key is
// overwritten or deleted many times over, the fence would move, and Badger compacts.
func TestOpenSnapshot_EverythingIsRewrittenWhileItIsRead_ShowsItsState(t *testing.T) {
	o := holdOptions(t)
	o.PinAgeMax, o.PinBytesMax = time.Nanosecond, 1 // a snapshot's hold has no such bounds
	d := newDriver(t, o)
	want := mustOpen(t, engineOptions(t, t.TempDir()))
	apply := func(ops ...testOp) {
		d.apply(ops...)
		if want.Applied().Index == d.index-1 {
			want.Apply(d.index, 1, sealEntry(d.now, ops...))
		}
	}
	want.Apply(1, 1, sealEntry(d.now, initOp()))
	const keys = 300
	value := func(i, round int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%d/%d ", i, round), 3000) }
	for i := range keys {
		apply(putOp(fmt.Sprint("k", i), value(i, 0), nil))
	}
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	snapshot, err := d.e.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	meta := snapshot.Meta()
	var stream []byte
	frame := make([]byte, 100<<10)
	n, err := snapshot.Read(frame) // its header
	if err != nil {
		t.Fatal(err)
	}
	stream = append(stream, frame[:n]...)
	for round := 1; err == nil; round++ {
		for i := range keys {
			if (i+round)%3 == 0 {
				d.apply(deleteOp(fmt.Sprint("k", i), nil))
			} else {
				d.apply(putOp(fmt.Sprint("k", i), value(i, round), nil))
			}
		}
		if err := d.e.CheckpointNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		if round == 4 {
			// All that may be dropped now goes.
			if err := d.e.live.Load().store.db.Flatten(2); err != nil {
				t.Fatal(err)
			}
		}
		for range 5 {
			if n, err = snapshot.Read(frame); err != nil {
				break
			}
			stream = append(stream, frame[:n]...)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if fence := d.e.live.Load().store.fence.Load(); fence > meta.Index {
		t.Fatalf("the fence is at %d, the snapshot at %d", fence, meta.Index)
	}
	to := mustOpen(t, engineOptions(t, t.TempDir()))
	if err := receive(t, to, meta, stream).Install(); err != nil {
		t.Fatal(err)
	}
	wantEqualEngines(t, want, to)
	for i := range keys {
		rec, _, st, err := to.Get(ReadOptions{Namespace: 1}, fmt.Appendf(nil, "k%d", i), nil)
		if err != nil || st != wire.StatusOK || !bytes.Equal(rec.Value, value(i, 0)) {
			t.Fatalf("key %d: %v, %v", i, st, err)
		}
	}
	st, err := to.Stats()
	if err != nil || st.Store.ValueLogs.DiskBytes > 64<<10 {
		t.Fatalf("value logs of %d bytes, %v", st.Store.ValueLogs.DiskBytes, err)
	}
	if err := snapshot.Close(); err != nil {
		t.Fatal(err)
	}
	d.put("k", "v")
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFence(t, d.e.live.Load().store)
}

func TestOpenSnapshot_TooManyIdleOrClosed_LoseOrGiveBackTheirHold(t *testing.T) {
	var now atomic.Int64
	o := holdOptions(t)
	o.hooks.now = func() time.Time { return time.Unix(1000, now.Load()) }
	d := newDriver(t, o)
	d.put("k", "v")
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	var open []*Snapshot
	for range snapshotsMax {
		s, err := d.e.OpenSnapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	if _, err := d.e.OpenSnapshot(t.Context()); !errors.Is(err, ErrPinsExhausted) {
		t.Fatalf("one too many: %v", err)
	}
	if st, err := d.e.Stats(); err != nil || st.Transfer.Open != snapshotsMax || st.Transfer.Opened != snapshotsMax {
		t.Fatalf("%+v, %v", st.Transfer, err)
	}
	if err := errors.Join(open[0].Close(), open[0].Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := open[0].Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
		t.Fatalf("a closed one: %v", err)
	}
	fourth, err := d.e.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Half a minute twice: the one that is read in between keeps its hold, the others lose it.
	now.Add(int64(31 * time.Second))
	b := make([]byte, 10)
	if _, err := fourth.Read(b); err != nil {
		t.Fatal(err)
	}
	now.Add(int64(31 * time.Second))
	d.put("k", "w")
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := d.e.live.Load().store.snapshotsOpen(); n != 1 {
		t.Fatalf("%d have a hold, want the one that was read", n)
	}
	if err := fourth.Close(); err != nil {
		t.Fatal(err)
	}
	d.put("k", "x")
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFence(t, d.e.live.Load().store)
	if _, err := io.ReadAll(open[1]); !errors.Is(err, ErrCompacted) {
		t.Fatalf("one that lost its hold: %v", err)
	}
	// Room again, without a Close of those.
	s, err := d.e.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.e.Close(); err != nil { // it doesn't wait for the snapshot
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close of the engine: %v", err)
	}
	if _, err := d.e.OpenSnapshot(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("opened after Close: %v", err)
	}
}

func TestOpenSnapshot_NothingIsDurable_WaitsForTheFirstCheckpoint(t *testing.T) {
	e := mustOpen(t, engineOptions(t, t.TempDir()))
	opened := make(chan error, 1)
	go func() { // ends with the first entry
		s, err := e.OpenSnapshot(t.Context())
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("opened a snapshot of nothing: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	e.Apply(1, 1, sealEntry(testEpoch, initOp()))
	// Its wait asked for a checkpoint before the entry came; the next one finds it.
	if err := e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
}

func TestOpenSnapshot_StateIsReplaced_ReadFails(t *testing.T) {
	ahead, e := pair(t)
	e.Apply(1, 1, sealEntry(testEpoch, initOp()))
	s, err := e.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ahead.put("k", "v")
	if err := ahead.send(e).Install(); err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, e, 2) // an open snapshot doesn't keep the old one
	if _, err := io.ReadAll(s); !errors.Is(err, ErrClosed) {
		t.Fatalf("read: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The one of the new state can be sent on.
	meta, stream := snapshotOf(t, e)
	third := mustOpen(t, engineOptions(t, t.TempDir()))
	if err := receive(t, third, meta, stream).Install(); err != nil {
		t.Fatal(err)
	}
	wantEqualEngines(t, ahead.e, third)
}

// TestReceiveSnapshot_ManyLargeValues_MemoryIsBounded sends more than either side may hold.
func TestReceiveSnapshot_ManyLargeValues_MemoryIsBounded(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("writes 288 MiB, three times")
	}
	o := engineOptions(t, t.TempDir())
	o.MemtableBytes = 16 << 20
	o.CheckpointBytes = 32 << 20
	d := newDriver(t, o)
	value := make([]byte, 4<<20)
	const values = 72
	x := uint64(88172645463325252)
	for i := range values {
		for j := 0; j < len(value); j += 8 { // nothing that can be compressed
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			for k := range 8 {
				value[j+k] = byte(x >> (8 * k))
			}
		}
		d.put(fmt.Sprintf("k%03d", i), string(value))
	}
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	index, digest := d.e.Digest()
	s, err := d.e.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it is read only
	if _, err := io.Copy(f, s); err != nil {
		t.Fatal(err)
	}
	// The sender holds one frame, as it is and compressed.
	if n := cap(s.frame) + cap(s.scratch); n != 0 {
		t.Fatalf("%d bytes are held after the end", n)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	// The sender's memtables and compactions would count.
	if err := errors.Join(s.Close(), d.e.Close()); err != nil {
		t.Fatal(err)
	}
	to := mustOpen(t, engineOptions(t, t.TempDir()))
	// What the last collection found alive, so that garbage doesn't count.
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	sample := func() uint64 {
		metrics.Read(live)
		return live[0].Value.Uint64()
	}
	runtime.GC()
	base, peak := sample(), uint64(0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
				peak = max(peak, sample())
			}
		}
	}()
	received, err := to.ReceiveSnapshot(t.Context(), s.Meta(), f)
	if err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-done
	if err := received.Install(); err != nil {
		t.Fatal(err)
	}
	if i, got := to.Digest(); i != index || got != digest {
		t.Fatalf("digest %x at %d, want %x at %d", got, i, digest, index)
	}
	grown := int64(peak) - int64(base)
	t.Logf("%d MiB of values; the live heap grew from %d MiB by %d MiB", values*len(value)>>20, base>>20, grown>>20)
	// Six tables of 32 MiB, frames, batches and a memtable. With one stream of Badger's default tables it was
	// 390 MiB, and grew with the data up to 2 GiB.
	if grown > 250<<20 {
		t.Fatalf("the live heap grew by %d MiB", grown>>20)
	}
}
