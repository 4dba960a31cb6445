package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"kvstore/internal/record"
	"kvstore/wire"
)

// pair is a driver that is ahead and an engine that takes its snapshots.
func pair(t testing.TB) (ahead *driver, behind *Engine) {
	t.Helper()
	ahead = newDriver(t, engineOptions(t, t.TempDir()))
	return ahead, mustOpen(t, engineOptions(t, t.TempDir()))
}

// send brings the newest state of d into e.
func (d *driver) send(e *Engine) *Received {
	d.t.Helper()
	if err := d.e.CheckpointNow(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
	meta, stream := snapshotOf(d.t, d.e)
	return receive(d.t, e, meta, stream)
}

// TestInstall_BesideReadersAndWaiters_NobodySeesAnOlderStateOrHangs installs several snapshots while others
// read in every way and wait for what only a snapshot brings.
func TestInstall_BesideReadersAndWaiters_NobodySeesAnOlderStateOrHangs(t *testing.T) {
	ahead, e := pair(t)
	e.Apply(1, 1, sealEntry(testEpoch, initOp()))
	ahead.put("n", "1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var readers, waiters sync.WaitGroup
	var published atomic.Uint64 // what was installed before a read began must be seen
	reader := func(read func() (value string, found bool, err error)) {
		readers.Go(func() {
			for ctx.Err() == nil {
				least := published.Load()
				value, found, err := read()
				if err != nil {
					t.Errorf("read: %v", err)
					return
				}
				if !found && least == 0 {
					continue
				}
				if n, err := strconv.ParseUint(value, 10, 64); err != nil || n < least {
					t.Errorf("read %q after %d was installed", value, least)
					return
				}
			}
		})
	}
	reader(func() (string, bool, error) {
		rec, _, st, err := e.Get(ReadOptions{Namespace: 1}, []byte("n"), nil)
		return string(rec.Value), st == wire.StatusOK, err
	})
	reader(func() (string, bool, error) {
		items := wire.AppendItem(nil, &wire.Item{Op: wire.OpGet, Key: []byte("n")})
		payload, _, err := e.MultiGet(ReadOptions{Namespace: 1}, items, 1, nil)
		if err != nil {
			return "", false, err
		}
		_, n, rest, err := wire.DecodeResult(payload)
		if err != nil || n != 1 {
			return "", false, fmt.Errorf("%d items, %w", n, err)
		}
		var it wire.Item
		if _, err := wire.NextItem(rest, &it); err != nil {
			return "", false, err
		}
		return string(it.Value), it.Status == wire.StatusOK, nil
	})
	reader(func() (string, bool, error) {
		payload, _, err := e.Scan(ReadOptions{Namespace: 1}, &wire.ScanRequest{Limit: 10, BytesMax: 1 << 20}, nil)
		if err != nil {
			return "", false, err
		}
		var p wire.ScanPage
		if err := wire.DecodeScanPage(payload, &p); err != nil || p.Count == 0 {
			return "", false, err
		}
		var it wire.Item
		_, err = wire.NextItem(p.Items, &it)
		return string(it.Value), true, err
	})
	readers.Go(func() {
		for ctx.Err() == nil {
			_, _ = e.DueExpiry()
			_, _ = e.Digest()
			if _, err := e.Stats(); err != nil {
				t.Errorf("stats: %v", err)
			}
			if err := e.VerifyDigest(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("verify: %v", err)
			}
		}
	})
	waiters.Go(func() {
		if err := e.WaitDurable(t.Context(), 30); err != nil {
			t.Errorf("wait for index 30: %v", err)
		}
	})
	waiters.Go(func() {
		if err := e.Witness(t.Context(), 25, 1, []byte("c"), 1); err != nil {
			t.Errorf("witness of index 25: %v", err)
		}
	})
	for i := range uint64(6) {
		for range 8 {
			ahead.put("n", strconv.FormatUint(ahead.index, 10))
		}
		if err := ahead.send(e).Install(); err != nil {
			t.Fatal(err)
		}
		if got := e.Applied(); got != ahead.e.Applied() {
			t.Fatalf("applied %+v, want %+v", got, ahead.e.Applied())
		}
		published.Store(ahead.index - 1)
		if err := e.CheckpointNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		if st, err := e.Stats(); err != nil || st.Transfer.Installed != i+1 || st.Transfer.Received != i+1 || st.Transfer.BytesReceived == 0 {
			t.Fatalf("stats %+v, %v", st.Transfer, err)
		}
	}
	waiters.Wait()
	cancel()
	readers.Wait()
	wantGenerations(t, e, 7)
	wantEqualEngines(t, ahead.e, e)
}

func TestInstall_ReaderOnTheOldState_FinishesOnItAndKeepsItsFiles(t *testing.T) {
	ahead, e := pair(t)
	e.Apply(1, 1, sealEntry(testEpoch, initOp()))
	e.Apply(2, 1, sealEntry(testEpoch, putOp("k", []byte("old"), nil)))
	ahead.put("k", "old")
	ahead.put("k", "new")
	old := e.live.Load()
	inside, leave := make(chan struct{}), make(chan struct{})
	read := make(chan string, 1)
	go func() { // ends with leave
		var value string
		err := old.store.read(0, func(r *reader) error {
			close(inside)
			<-leave
			key := appendRecordKey(nil, 1, []byte("k"))
			_, err := r.get(key, func(stored []byte) error {
				var rec storedRecord
				err := decodeRecord(key, stored, &rec)
				value = string(rec.Value)
				return err
			})
			return err
		})
		if err != nil {
			value = err.Error()
		}
		read <- value
	}()
	<-inside
	if err := ahead.send(e).Install(); err != nil {
		t.Fatal(err)
	}
	if rec, _, st, err := e.Get(ReadOptions{Namespace: 1}, []byte("k"), nil); err != nil || st != wire.StatusOK || string(rec.Value) != "new" {
		t.Fatalf("a new read: %q, %v, %v", rec.Value, st, err)
	}
	wantGenerations(t, e, 1, 2)
	close(leave)
	if value := <-read; value != "old" {
		t.Fatalf("the old read: %q", value)
	}
	wantGenerations(t, e, 2)
}

func TestInstall_ListingOfTheOldState_IsCompacted(t *testing.T) {
	ahead, e := pair(t)
	e.Apply(1, 1, sealEntry(testEpoch, initOp()))
	for i := range 4 {
		ahead.put(fmt.Sprint("k", i), "v")
		e.Apply(uint64(2+i), 1, sealEntry(testEpoch, putOp(fmt.Sprint("k", i), []byte("v"), nil)))
	}
	req := wire.ScanRequest{Limit: 2, BytesMax: 1 << 20}
	_, cursor, _ := page(t, e, &req)
	ahead.put("k9", "v")
	if err := ahead.send(e).Install(); err != nil {
		t.Fatal(err)
	}
	req.Cursor = cursor
	if _, st, err := e.Scan(ReadOptions{Namespace: 1}, &req, nil); st != wire.StatusCompacted || err != nil {
		t.Fatalf("the next page: %v, %v", st, err)
	}
	req.Cursor = nil
	if all := listAll(t, e, &req); len(all) != 5 {
		t.Fatalf("%d keys, want 5", len(all))
	}
}

func TestInstall_CheckpointCannotBeReplaced_NothingHasChanged(t *testing.T) {
	ahead, e := pair(t)
	e.Apply(1, 1, sealEntry(testEpoch, initOp()))
	ahead.put("k", "v")
	received := ahead.send(e)
	// The replacement is written to this name first.
	obstacle := filepath.Join(e.live.Load().store.dir, checkpointFile+".tmp")
	if err := os.Mkdir(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := received.Install(); err == nil {
		t.Fatal("installed")
	}
	if e.Applied().Index != 1 {
		t.Fatalf("applied %+v", e.Applied())
	}
	if err := os.Remove(obstacle); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	// The old state goes on in full, checkpoints included, and the snapshot may be tried again.
	if err := e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := received.Install(); err != nil {
		t.Fatal(err)
	}
	wantEqualEngines(t, ahead.e, e)
}

func TestInstall_SwitchOfUnknownOutcome_IsFatalAndKeepsBothGenerations(t *testing.T) {
	ahead := newDriver(t, engineOptions(t, t.TempDir()))
	ahead.put("k", "v")
	o := engineOptions(t, t.TempDir())
	failed := make(chan error, 1)
	o.Fatal = func(err error) { failed <- err }
	o.hooks.writeCheckpoint = func(dir string, cp *Checkpoint) error {
		if err := writeCheckpoint(dir, cp); err != nil {
			return err
		}
		return fmt.Errorf("a directory that can't be synced: %w", record.ErrUnsynced)
	}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	received := ahead.send(e)
	if err := received.Install(); !errors.Is(err, record.ErrUnsynced) {
		t.Fatalf("install: %v", err)
	}
	if err := <-failed; !errors.Is(err, record.ErrUnsynced) {
		t.Fatalf("fatal: %v", err)
	}
	received.Discard() // must not remove what CHECKPOINT may name
	wantGenerations(t, e, 1, 2)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := received.in.close(); err != nil { // the process would have ended
		t.Fatal(err)
	}
	o = engineOptions(t, o.Dir)
	again := mustOpen(t, o)
	wantEqualEngines(t, ahead.e, again)
	wantGenerations(t, again, 2)
}

func TestReceiveSnapshot_TwoAtOnce_SecondIsRefusedAndAWaitingOneMakesRoom(t *testing.T) {
	ahead, e := pair(t)
	ahead.put("k", "v")
	if err := ahead.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, stream := snapshotOf(t, ahead.e)
	r, w := io.Pipe()
	type outcome struct {
		received *Received
		err      error
	}
	first := make(chan outcome, 1)
	go func() { // ends with the stream
		received, err := e.ReceiveSnapshot(t.Context(), meta, r)
		first <- outcome{received, err}
	}()
	if _, err := w.Write(stream[:10]); err != nil {
		t.Fatal(err)
	}
	if _, err := e.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(stream)); !errors.Is(err, ErrReceiving) {
		t.Fatalf("the second: %v", err)
	}
	if st, err := e.Stats(); err != nil || st.Transfer.Receiving != 1 {
		t.Fatalf("stats %+v, %v", st.Transfer, err)
	}
	if _, err := w.Write(stream[10:]); err != nil {
		t.Fatal(err)
	}
	got := <-first
	if got.err != nil {
		t.Fatal(got.err)
	}
	third := receive(t, e, meta, stream)
	if err := got.received.Install(); err == nil {
		t.Fatal("the first was installed although a later one took its place")
	}
	got.received.Discard()
	if err := third.Install(); err != nil {
		t.Fatal(err)
	}
	wantEqualEngines(t, ahead.e, e)
}

func TestReceiveSnapshot_CancelledOrClosedOrReaderFails_NothingIsLeft(t *testing.T) {
	ahead, e := pair(t)
	for i := range 20 { // several frames
		ahead.put(fmt.Sprint("k", i), string(bytes.Repeat([]byte{byte(i)}, 200_000)))
	}
	if err := ahead.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, stream := snapshotOf(t, ahead.e)
	broken := errors.New("the network broke")
	r := io.MultiReader(bytes.NewReader(stream[:len(stream)/2]), iotest.ErrReader(broken))
	if _, err := e.ReceiveSnapshot(t.Context(), meta, r); !errors.Is(err, broken) {
		t.Fatalf("a reader that fails: %v", err)
	}
	wantGenerations(t, e, 1)

	ctx, cancel := context.WithCancel(t.Context())
	if _, err := e.ReceiveSnapshot(ctx, meta, readHook{bytes.NewReader(stream), len(stream) / 2, cancel}); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	wantGenerations(t, e, 1)

	closed := make(chan error, 1)
	start := func() {
		go func() { closed <- e.Close() }() // ends with the reception
		for !e.closed() {
			time.Sleep(time.Millisecond)
		}
	}
	if _, err := e.ReceiveSnapshot(t.Context(), meta, readHook{bytes.NewReader(stream), len(stream) / 2, start}); !errors.Is(err, ErrClosed) {
		t.Fatalf("closed: %v", err)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, e, 1)
	if _, err := e.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(stream)); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

// readHook calls do once when at bytes are left.
type readHook struct {
	r  *bytes.Reader
	at int
	do func()
}

func (h readHook) Read(b []byte) (int, error) {
	if n := h.r.Len(); n > h.at && len(b) > n-h.at {
		b = b[:n-h.at]
	} else if n == h.at {
		h.do()
	}
	return h.r.Read(b)
}

func TestClose_SnapshotWaitsForItsInstallation_IsRemoved(t *testing.T) {
	ahead, e := pair(t)
	ahead.put("k", "v")
	received := ahead.send(e)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, e, 1)
	received.Discard()
}

func TestReceiveSnapshot_OfAnotherClusterGroupOrLevel_IsRefused(t *testing.T) {
	ahead, e := pair(t)
	ahead.put("k", "v")
	if err := ahead.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, stream := snapshotOf(t, ahead.e)
	other := testInit
	other.ClusterID[0]++
	e.Apply(1, 1, sealEntry(testEpoch, testOp{wire.Op{Op: wire.OpInit, Payload: wire.AppendInit(nil, &other)}}))
	if _, err := e.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(stream)); err == nil || errors.Is(err, ErrSnapshotDamaged) {
		t.Fatalf("another cluster: %v", err)
	}
	sr := &snapshotReader{r: bytes.NewReader(stream)}
	h, err := sr.start()
	if err != nil {
		t.Fatal(err)
	}
	// A header that lies: what is in the state counts.
	h.clusterID = other.ClusterID
	if _, err := e.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(withHeader(&h, stream[sr.at:]))); err == nil {
		t.Fatal("another cluster behind a header of ours was received")
	}
	h.clusterID, h.group = testInit.ClusterID, 2
	fresh := mustOpen(t, engineOptions(t, t.TempDir()))
	if _, err := fresh.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(withHeader(&h, stream[sr.at:]))); err == nil {
		t.Fatal("another group")
	}
	h.group, h.level = 1, LevelNewest+1
	if _, err := fresh.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(withHeader(&h, stream[sr.at:]))); err == nil || errors.Is(err, ErrSnapshotDamaged) {
		t.Fatalf("a level of the future: %v", err)
	}
	wantGenerations(t, e, 1)
	wantGenerations(t, fresh, 1)
}

func withHeader(h *snapshotHeader, rest []byte) []byte {
	frame, _ := sealFrame(frameStart, appendSnapshotHeader(beginFrame(nil), h), nil)
	return append(frame, rest...)
}

// TestInstall_PowerCutAfterTheSwitch_WhatWasSyncedIsEnough keeps of the new generation only what it held when
// it was synced.
func TestInstall_PowerCutAfterTheSwitch_WhatWasSyncedIsEnough(t *testing.T) {
	ahead := newDriver(t, engineOptions(t, t.TempDir()))
	for i := range 50 {
		ahead.put(fmt.Sprint("k", i), string(bytes.Repeat([]byte{'v'}, i*1000)))
	}
	o := engineOptions(t, t.TempDir())
	after := t.TempDir() // the disk after the cut
	var dir string
	o.hooks.atStep = func(step string) {
		if step == stepSynced {
			copyTree(t, dir, groupDir(after, 1))
		}
	}
	e := mustOpen(t, o)
	dir = e.live.Load().store.dir
	if err := ahead.send(e).Install(); err != nil {
		t.Fatal(err)
	}
	index, digest := e.Digest()
	for i := uint64(1); i <= 20; i++ {
		e.Apply(index+i, 1, sealEntry(testEpoch, putOp("later", []byte("lost"), nil)))
	}
	checkpoint, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(groupDir(after, 1), checkpointFile), checkpoint, 0o600); err != nil {
		t.Fatal(err)
	}
	o = engineOptions(t, after)
	again := mustOpen(t, o)
	if i, got := again.Digest(); i != index || got != digest {
		t.Fatalf("digest %x at %d, want %x at %d", got, i, digest, index)
	}
	if err := again.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantGenerations(t, again, 2)
}
