package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"kvstore/wire"
)

// snapshotOf opens a snapshot and reads it whole.
func snapshotOf(t testing.TB, e *Engine) (SnapshotMeta, []byte) {
	t.Helper()
	s, err := e.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it never fails
	b, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Progress(); p.Sent != uint64(len(b)) || p.Items == 0 {
		t.Fatalf("progress %+v after %d bytes", p, len(b))
	}
	return s.Meta(), b
}

// receive hands b to e, with bytes behind it that must be left alone.
func receive(t testing.TB, e *Engine, want SnapshotMeta, b []byte) *Received {
	t.Helper()
	r := io.MultiReader(bytes.NewReader(b), strings.NewReader("what follows"))
	received, err := e.ReceiveSnapshot(t.Context(), want, r)
	if err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "what follows" {
		t.Fatalf("behind the stream stands %q, %v", rest, err)
	}
	return received
}

// wantGenerations waits until the directory holds these generations and no others: a replaced one is removed
// in the background.
func wantGenerations(t testing.TB, e *Engine, want ...uint64) {
	t.Helper()
	dir := e.live.Load().store.dir
	var got []uint64
	for range 500 {
		var err error
		if got, err = listGenerations(dir); err != nil {
			t.Fatal(err)
		}
		if reflect.DeepEqual(got, want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("generations %v, want %v", got, want)
}

func TestSnapshot_InstalledElsewhere_SameStateAndTheLogGoesOn(t *testing.T) {
	w := newWorkload(testSeed(t))
	from := mustOpen(t, engineOptions(t, t.TempDir()))
	var log [][]byte
	step := func(n int, engines ...*Engine) {
		for range n {
			index, entry := w.next()
			log = append(log, entry)
			var first []wire.Result
			for i, e := range engines {
				results := e.Apply(index, 1, entry)
				if i == 0 {
					first = results
					w.learn(results)
				} else {
					wantSameResults(t, "entry", results, first)
				}
			}
		}
	}
	step(200, from)
	if err := from.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	step(30, from) // behind the checkpoint
	meta, stream := snapshotOf(t, from)
	if meta.Index != 200 {
		t.Fatalf("the snapshot is of index %d, the checkpoint of 200", meta.Index)
	}

	o := engineOptions(t, t.TempDir())
	to := mustOpen(t, o)
	for i, entry := range log[:40] { // a follower that fell behind
		to.Apply(uint64(i+1), 1, entry)
	}
	received := receive(t, to, meta, stream)
	if to.Applied().Index != 40 {
		t.Fatal("the state changed before Install")
	}
	to.Apply(41, 1, log[40]) // it goes on meanwhile
	if err := received.Install(); err != nil {
		t.Fatal(err)
	}
	cp, ok := to.Durable()
	if !ok || !cp.Installed || cp.Index != 200 || cp.Term != 1 || cp.Generation != 2 || to.Applied().Index != 200 {
		t.Fatalf("durable %+v, %v; applied %+v", cp, ok, to.Applied())
	}
	wantGenerations(t, to, 2)
	for i, entry := range log[200:] {
		to.Apply(uint64(201+i), 1, entry)
	}
	wantEqualEngines(t, from, to)
	wantEqualTables(t, from, to)
	step(100, from, to)
	wantEqualEngines(t, from, to)
	wantEqualTables(t, from, to)
	if !reflect.DeepEqual(from.Members(), to.Members()) || len(to.Members()) == 0 {
		t.Fatalf("members %v, %v", from.Members(), to.Members())
	}
	if err := to.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a, b := dumpState(t, from), dumpState(t, to); !reflect.DeepEqual(a, b) {
		t.Fatalf("%d and %d keys, or they differ", len(a), len(b))
	}
	if err := to.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cp, _ := to.Durable(); cp.Installed || cp.Index != uint64(len(log)) {
		t.Fatalf("after the next checkpoint: %+v", cp)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, o)
	wantEqualEngines(t, from, again)
	if err := again.VerifyDigest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Goal: a snapshot replaces what was there. What the sender has deleted, and what it never had, is gone, with its
// index of deadlines and with the pieces of large values.
func TestInstall_KeysThatTheSenderDoesNotHave_AreGone(t *testing.T) {
	from, to := newDriver(t, engineOptions(t, t.TempDir())), newDriver(t, engineOptions(t, t.TempDir()))
	large := strings.Repeat("x", 3*valueThresholdMax)
	both := func(op testOp) {
		from.one(op)
		to.one(op)
	}
	both(putOp("kept", []byte("1"), nil))
	both(putOp("deleted", []byte("1"), nil))
	both(putOp("deleted, large", []byte(large), nil))
	both(putOp("deleted, with a deadline", []byte("1"), withTTL(nil, time.Hour)))
	to.one(putOp("mine", []byte("1"), nil)) // a tail of another history, that was never committed
	to.one(putOp("mine, large", []byte(large), nil))
	for _, key := range []string{"deleted", "deleted, large", "deleted, with a deadline"} {
		from.one(deleteOp(key, nil))
	}
	from.put("new", "1")
	if err := from.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, stream := snapshotOf(t, from.e)
	if err := receive(t, to.e, meta, stream).Install(); err != nil {
		t.Fatal(err)
	}
	to.wantValue("kept", "1")
	to.wantValue("new", "1")
	for _, key := range []string{"deleted", "deleted, large", "deleted, with a deadline", "mine", "mine, large"} {
		to.wantAbsent(key)
	}
	if a, b := dumpState(t, from.e), dumpState(t, to.e); !reflect.DeepEqual(a, b) {
		t.Errorf("%d and %d keys, or they differ", len(a), len(b))
	}
	if err := to.e.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}

// countHook calls do once, when at bytes were read.
type countHook struct {
	r  io.Reader
	at int
	do func()
}

func (h *countHook) Read(b []byte) (int, error) {
	n, err := h.r.Read(b)
	if before := h.at; before > 0 {
		if h.at -= n; h.at <= 0 {
			h.do()
		}
	}
	return n, err
}

func TestSnapshot_Progress_CountsRecordsOnBothSides(t *testing.T) {
	from, to := newDriver(t, engineOptions(t, t.TempDir())), newDriver(t, engineOptions(t, t.TempDir()))
	const n = 300
	value := make([]byte, 20<<10)
	random := rand.New(rand.NewPCG(testSeed(t), 0))
	for i := range n {
		for j := range value {
			value[j] = byte(random.Uint32()) // several frames, which can't be compressed
		}
		from.one(putOp(fmt.Sprintf("key %d", i), value, nil))
	}
	if err := from.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := from.e.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // it never fails
	if _, ok := to.e.Receiving(); ok {
		t.Error("receiving before anything came")
	}
	var sent, received SnapshotProgress
	half := &countHook{r: s, at: 2 << 20, do: func() {
		sent = s.Progress()
		received, _ = to.e.Receiving()
	}}
	r, err := to.e.ReceiveSnapshot(t.Context(), s.Meta(), half)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Discard()
	records := s.Progress().Records
	if records < n || sent.Records != records || received.Records != records || received.RecordBytes != sent.RecordBytes {
		t.Errorf("%d records; sent %+v, received %+v", records, sent, received)
	}
	if received.RecordsDone == 0 || received.RecordsDone > sent.RecordsDone || sent.RecordsDone >= records || received.Bytes == 0 || received.Sent == 0 {
		t.Errorf("midway: sent %+v, received %+v", sent, received)
	}
	if p := s.Progress(); p.RecordsDone != records {
		t.Errorf("at the end: %+v", p)
	}
	if _, ok := to.e.Receiving(); ok {
		t.Error("still receiving")
	}
}

func TestReceiveSnapshot_AnyDamage_NothingIsLeftAndTheStateGoesOn(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.put("a", strings.Repeat("compressible ", 1000))
	d.put("big", strings.Repeat("0123456789", 200_000))
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, stream := snapshotOf(t, d.e)
	to := newDriver(t, engineOptions(t, t.TempDir()))
	to.put("mine", "1")
	refuse := func(what string, want SnapshotMeta, b []byte) {
		t.Helper()
		_, err := to.e.ReceiveSnapshot(t.Context(), want, bytes.NewReader(b))
		if !errors.Is(err, ErrSnapshotDamaged) {
			t.Fatalf("%s: %v", what, err)
		}
		wantGenerations(t, to.e, 1)
		to.wantValue("mine", "1")
	}
	// Each frame: its header and payload changed, the stream cut in it and before it, the frame left out, doubled.
	for at := 0; at < len(stream); {
		end := at + frameHeaderBytes + int(uint32(stream[at+8])|uint32(stream[at+9])<<8|uint32(stream[at+10])<<16)
		for _, i := range []int{0, 1, 2, 3, 4, 7, 8, 11, 12, frameHeaderBytes, (end - at) / 2, end - at - 1} {
			b := bytes.Clone(stream)
			b[at+i] ^= 0x10
			refuse("a flipped bit", meta, b)
		}
		refuse("cut before a frame", meta, stream[:at])
		refuse("cut in a header", meta, stream[:at+5])
		refuse("cut in a payload", meta, stream[:end-1])
		refuse("without a frame", meta, append(bytes.Clone(stream[:at]), stream[end:]...))
		if end < len(stream) { // behind the end frame nothing is read
			refuse("a frame twice", meta, append(bytes.Clone(stream[:end]), stream[at:]...))
		}
		at = end
	}
	for _, change := range []func(m *SnapshotMeta){
		func(m *SnapshotMeta) { m.Index++ },
		func(m *SnapshotMeta) { m.Term++ },
		func(m *SnapshotMeta) { m.ConfigurationIndex++ },
		func(m *SnapshotMeta) { m.Configuration = []byte("other") },
	} {
		m := meta
		change(&m)
		refuse("another state than wanted", m, stream)
	}
	// Sound frames around damaged contents: a value that doesn't match its checksum, a record too few.
	for name, edit := range map[string]func(key, value []byte) (keep bool){
		"a changed record": func(key, value []byte) bool {
			if bytes.HasSuffix(key, []byte("a")) {
				value[len(value)-1] ^= 1
			}
			return true
		},
		"a missing record": func(key, _ []byte) bool { return key[0] != familyRecord || !bytes.HasSuffix(key, []byte("a")) },
		"a missing piece":  func(key, _ []byte) bool { return key[0] != familyChunk || key[len(key)-1] != 1 },
		"a missing marker": func(key, _ []byte) bool { return key[0] != familyMarker },
	} {
		refuse(name, meta, rewriteStream(t, stream, edit))
	}
	// And whole it goes in.
	receive(t, to.e, meta, stream).Discard()
	wantGenerations(t, to.e, 1)
}

// rewriteStream makes a sound stream with other items.
func rewriteStream(t testing.TB, stream []byte, edit func(key, value []byte) bool) (out []byte) {
	t.Helper()
	sr := &snapshotReader{r: bytes.NewReader(stream)}
	h, err := sr.start()
	if err != nil {
		t.Fatal(err)
	}
	frame, _ := sealFrame(frameStart, appendSnapshotHeader(beginFrame(nil), &h), nil)
	out = append(out, frame...)
	var end snapshotEnd
	for more := true; more; {
		more, err = sr.next(func(key, value []byte, version uint64) error {
			value = bytes.Clone(value)
			if edit(key, value) {
				end.items++
				end.bytes += uint64(len(key) + len(value))
				frame, _ := sealFrame(frameItems, appendItem(beginFrame(nil), key, value, h.ts-version), nil)
				out = append(out, frame...)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	frame, _ = sealFrame(frameEnd, appendSnapshotEnd(beginFrame(nil), end), nil)
	return append(out, frame...)
}

func TestInstall_NotAboveWhatIsApplied_IsRefusedAndChangesNothing(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	d.put("a", "1")
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, stream := snapshotOf(t, d.e)
	to := newDriver(t, engineOptions(t, t.TempDir()))
	received := receive(t, to.e, meta, stream)
	to.put("mine", "1") // index 2, the snapshot's
	before, err := os.ReadFile(filepath.Join(to.e.live.Load().store.dir, checkpointFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := received.Install(); err == nil {
		t.Fatal("installed over entry 2")
	}
	after, err := os.ReadFile(filepath.Join(to.e.live.Load().store.dir, checkpointFile))
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("CHECKPOINT has changed: %v", err)
	}
	to.wantValue("mine", "1")
	received.Discard()
	received.Discard()
	wantGenerations(t, to.e, 1)
	if err := received.Install(); err == nil {
		t.Fatal("installed what was discarded")
	}
	// It still checkpoints.
	to.put("mine", "2")
	if err := to.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
}
