package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"kvstore/internal/record"
	"kvstore/wire"
)

// streamOf is a sound stream of the items, one frame each.
func streamOf(h *snapshotHeader, items ...[2]string) []byte {
	stream := withHeader(h, nil)
	var end snapshotEnd
	for _, it := range items {
		frame, _ := sealFrame(frameItems, appendItem(beginFrame(nil), []byte(it[0]), []byte(it[1]), 1), nil)
		stream = append(stream, frame...)
		end.items++
		end.bytes += uint64(len(it[0]) + len(it[1]))
	}
	frame, _ := sealFrame(frameEnd, appendSnapshotEnd(beginFrame(nil), end), nil)
	return append(stream, frame...)
}

var testSnapshotHeader = snapshotHeader{
	group: 1, level: 1, index: 7, term: 2, ts: 1007, time: -5, configurationIndex: 3,
	clusterID: [16]byte{1}, historyID: [16]byte{15: 2}, configuration: []byte("cfg"), marker: []byte("marker"),
}

// readStream reads a stream to its end.
func readStream(r io.Reader) (sr *snapshotReader, items [][2]string, err error) {
	sr = &snapshotReader{r: r}
	if _, err := sr.start(); err != nil {
		return sr, nil, err
	}
	for more := true; more; {
		more, err = sr.next(func(key, value []byte, version uint64) error {
			if version == 0 || version > sr.ts {
				return fmt.Errorf("version %d of a snapshot at ts %d", version, sr.ts)
			}
			items = append(items, [2]string{string(key), string(value)})
			return nil
		})
		if err != nil {
			return sr, nil, err
		}
	}
	return sr, items, nil
}

func TestSnapshotStream_WrittenAndRead_IsTheSameAndEndsWhereItEnds(t *testing.T) {
	sr := &snapshotReader{r: bytes.NewReader(withHeader(&testSnapshotHeader, nil))}
	h, err := sr.start()
	if err != nil || fmt.Sprintf("%+v", h) != fmt.Sprintf("%+v", testSnapshotHeader) {
		t.Fatalf("%+v, %v", h, err)
	}
	want := [][2]string{{"Da", strings.Repeat("v", 5000)}, {"Db", "1"}, {"M", "m"}}
	stream := streamOf(&testSnapshotHeader, want...)
	if len(stream) > 1000 {
		t.Fatalf("a stream of %d bytes: nothing was compressed", len(stream))
	}
	r := bytes.NewReader(append(stream, "behind it"...))
	_, items, err := readStream(r)
	if err != nil || fmt.Sprint(items) != fmt.Sprint(want) {
		t.Fatalf("%q, %v", items, err)
	}
	if r.Len() != len("behind it") {
		t.Fatalf("%d bytes behind the stream are left", r.Len())
	}
}

// TestSnapshotStream_Golden_BytesStay keeps the format: nodes of different builds send it to each other.
func TestSnapshotStream_Golden_BytesStay(t *testing.T) {
	const golden = "0101000069000000" + "69000000" + "00000000" +
		"01000000" + "01000000" + "0700000000000000" + "0200000000000000" + "ef03000000000000" + "fbffffffffffffff" +
		"e803000000000000" + "0300000000000000" + "01000000000000000000000000000000" + "00000000000000000000000000000002" +
		"03000000636667" + "060000006d61726b6572" +
		"0102000008000000" + "08000000" + "00000000" + "02" + "03" + "01" + "4461" + "766f6c" +
		"0103000010000000" + "10000000" + "00000000" + "0100000000000000" + "0500000000000000"
	stream := streamOf(&testSnapshotHeader, [2]string{"Da", "vol"})
	for at := 0; at < len(stream); { // checksums aside
		length := binary.LittleEndian.Uint32(stream[at+8:])
		clear(stream[at+12 : at+16])
		at += frameHeaderBytes + int(length)
	}
	if got := fmt.Sprintf("%x", stream); got != golden {
		t.Fatalf("encoded\n%s, want\n%s", got, golden)
	}
}

func TestSnapshotStream_WrongItems_AreDamage(t *testing.T) {
	long := strings.Repeat("k", keyOverheadBytesMax)
	for name, items := range map[string][][2]string{
		"order":          {{"Db", "1"}, {"Da", "1"}},
		"twice":          {{"Da", "1"}, {"Da", "1"}},
		"unknown family": {{"Za", "1"}},
		"no key":         {{"", "1"}},
		"no value":       {{"Da", ""}},
		"key too long":   {{"D" + long, "1"}},
		"value too long": {{"Da", strings.Repeat("v", valueThresholdMax)}},
	} {
		if _, _, err := readStream(bytes.NewReader(streamOf(&testSnapshotHeader, items...))); !errors.Is(err, ErrSnapshotDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is in bounds is not.
	if _, _, err := readStream(bytes.NewReader(streamOf(&testSnapshotHeader, [2]string{long[:1023] + "D", "1"}, [2]string{"D", "1"}))); !errors.Is(err, ErrSnapshotDamaged) {
		t.Errorf("a key of no family: %v", err)
	}
	if _, _, err := readStream(bytes.NewReader(streamOf(&testSnapshotHeader, [2]string{"D" + long[1:], strings.Repeat("v", valueThresholdMax-1)}))); err != nil {
		t.Errorf("the longest item: %v", err)
	}
}

func TestSnapshot_Frames_StayWithinTheirBound(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.MemtableBytes = 16 << 20
	d := newDriver(t, o)
	for i := range 40 {
		d.put(fmt.Sprintf("k%02d", i), strings.Repeat(string(rune('a'+i%26)), i*20_000))
	}
	if err := d.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, stream := snapshotOf(t, d.e)
	frames := 0
	for at := 0; at < len(stream); frames++ {
		raw, length := binary.LittleEndian.Uint32(stream[at+4:]), binary.LittleEndian.Uint32(stream[at+8:])
		if raw > frameItemsBytesMax {
			t.Fatalf("a frame of %d bytes", raw)
		}
		at += frameHeaderBytes + int(length)
	}
	if frames < 10 {
		t.Fatalf("%d frames for 15 MiB", frames)
	}
}

// FuzzSnapshotStream reads anything as a stream: it must say damage or read a stream, within bounds.
func FuzzSnapshotStream(f *testing.F) {
	f.Add(streamOf(&testSnapshotHeader, [2]string{"Da", strings.Repeat("v", 100)}, [2]string{"M", "m"}), false)
	f.Add(streamOf(&testSnapshotHeader), false)
	f.Add(withHeader(&testSnapshotHeader, []byte{frameFormat, frameItems, codecS2, 0, 255, 255, 15, 0, 3, 0, 0, 0}), true)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend { // get past the checksums
			b = bytes.Clone(b)
			for at := 0; at+frameHeaderBytes <= len(b); {
				length := int(binary.LittleEndian.Uint32(b[at+8:]))
				if length > len(b)-at-frameHeaderBytes {
					break
				}
				end := at + frameHeaderBytes + length
				binary.LittleEndian.PutUint32(b[at+12:], frameChecksum(b[at:at+12], b[at+frameHeaderBytes:end]))
				at = end
			}
		}
		sr, items, err := readStream(bytes.NewReader(b))
		if len(sr.packed) > framePayloadBytesMax || len(sr.raw) > framePayloadBytesMax {
			t.Fatalf("%d and %d bytes in memory", len(sr.packed), len(sr.raw))
		}
		if err != nil {
			if !errors.Is(err, ErrSnapshotDamaged) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if sr.count.items != uint64(len(items)) || sr.at > uint64(len(b)) {
			t.Fatalf("%+v for %d items, %d of %d bytes", sr.count, len(items), sr.at, len(b))
		}
	})
}

func TestGenerationWriter_ManySmallAndLargeItems_TablesEndByOurCountAlone(t *testing.T) {
	o := engineOptions(t, t.TempDir()).withDefaults()
	s := newStore(o, new(storeMetrics))
	if err := makeDirs(s.dir); err != nil {
		t.Fatal(err)
	}
	s.setGeneration(1)
	w, err := newGenerationWriter(s)
	if err != nil {
		t.Fatal(err)
	}
	const small, large = 500_000, 100
	key := func(i int) []byte { return appendExpiryKey(nil, int64(i+1), []byte("D\x00\x00\x00\x01k")) }
	value := bytes.Repeat([]byte("v"), valueThresholdMax-1)
	for i := range large {
		if err := w.set(appendChunkKey(nil, []byte("D\x00\x00\x00\x01k"), uint32(i)), value, 5); err != nil {
			t.Fatal(err)
		}
	}
	for i := range small {
		if err := w.set(key(i), expiryValue, 7); err != nil {
			t.Fatal(err)
		}
	}
	if w.ended < 12 {
		t.Fatalf("%d tables", w.ended)
	}
	ended := w.ended
	if err := w.finish(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(s.genDir)
	if err != nil {
		t.Fatal(err)
	}
	tables := 0
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".sst") {
			tables++
		}
	}
	if tables != ended+1 {
		t.Fatalf("%d tables where %d were ended: Badger has ended some by itself", tables, ended+1)
	}
	if err := s.openReceived(Checkpoint{Generation: 1}); err != nil {
		t.Fatal(err)
	}
	s.newest.Store(&published{point: point{index: 9, ts: 9}})
	s.tail.Store(&tail{active: newLayer(), flushed: 9})
	n := 0
	if err := s.read(0, func(r *reader) error {
		n = 0
		return r.iterate(nil, nil, false, true, func(k []byte, _ func() ([]byte, error)) (bool, error) {
			if n >= large && !bytes.Equal(k, key(n-large)) {
				return false, fmt.Errorf("key %x at %d", k, n)
			}
			n++
			return true, nil
		})
	}); err != nil || n != small+large {
		t.Fatalf("%d keys, %v", n, err)
	}
	if err := s.discard(); err != nil {
		t.Fatal(err)
	}
}

// TestReceiveSnapshot_TablesCannotBeCreated_IsAnError: Badger's stream writer would end the process if it
// were let.
func TestReceiveSnapshot_TablesCannotBeCreated_IsAnError(t *testing.T) {
	ahead := newDriver(t, engineOptions(t, t.TempDir()))
	for i := range 30 {
		ahead.put(fmt.Sprint("k", i), strings.Repeat("v", 1<<20))
	}
	if err := ahead.e.CheckpointNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, stream := snapshotOf(t, ahead.e)
	o := engineOptions(t, t.TempDir())
	var dir string
	o.hooks.atStep = func(step string) {
		if step == stepCreated {
			if err := errors.Join(os.RemoveAll(generationDir(dir, 2)), record.SyncDir(dir)); err != nil {
				t.Error(err)
			}
		}
	}
	e := mustOpen(t, o)
	dir = e.live.Load().store.dir
	e.Apply(1, 1, sealEntry(testEpoch, initOp(), putOp("mine", []byte("1"), nil)))
	if _, err := e.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(stream)); err == nil {
		t.Fatal("received into a directory that is gone")
	}
	wantGenerations(t, e, 1)
	if _, _, st, err := e.Get(ReadOptions{Namespace: 1}, []byte("mine"), nil); st != wire.StatusOK || err != nil {
		t.Fatalf("%v, %v", st, err)
	}
}
