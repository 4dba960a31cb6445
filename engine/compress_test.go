package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"kvstore/wire"
)

var allCodecs = []wire.Codec{wire.CodecS2, wire.CodecZstd, wire.CodecLZ4}

func withCompress(ext []byte, c wire.Codec) []byte {
	return wire.AppendExtU8(ext, wire.ExtCompress, uint8(c))
}

// wordy makes a value of n bytes of which each codec saves about half.
func wordy(rng *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+16)
	for len(b) < n {
		if rng.IntN(2) == 0 {
			b = append(b, "the same again, "...)
		} else {
			b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
		}
	}
	return b[:n]
}

func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b[:n]
}

// storedOf reads what the store holds under a user's key.
func storedOf(t testing.TB, e *Engine, key string) (stored []byte, rec storedRecord) {
	t.Helper()
	recordKey := appendRecordKey(nil, 1, []byte(key))
	err := e.live.Load().store.read(0, func(r *reader) error {
		found, err := r.get(recordKey, func(b []byte) error {
			stored = bytes.Clone(b)
			return nil
		})
		if err == nil && !found {
			err = errors.New("it isn't there")
		}
		return err
	})
	if err == nil {
		err = decodeRecord(recordKey, stored, &rec)
	}
	if err != nil {
		t.Fatalf("record %q: %v", key, err)
	}
	return stored, rec
}

// wantEverywhere reads one record in every way that there is.
func wantEverywhere(t testing.TB, d *driver, key string, want []byte) {
	t.Helper()
	for _, round := range []string{"from the store", "perhaps from the cache"} {
		rec, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte(key), nil)
		if err != nil || st != wire.StatusOK || !bytes.Equal(rec.Value, want) || rec.Meta.Checksum != wire.Checksum(want) {
			t.Fatalf("get %q %s: %v, %v, %d bytes; want %d", key, round, st, err, len(rec.Value), len(want))
		}
	}
	if meta, st, err := d.e.Exists(ReadOptions{Namespace: 1}, []byte(key)); err != nil || st != wire.StatusOK || meta.Checksum != wire.Checksum(want) {
		t.Fatalf("exists %q: %v, %v", key, st, err)
	}
	for range 2 {
		items := wire.AppendItem(nil, &wire.Item{Op: wire.OpGet, Key: []byte(key)})
		payload, st, err := d.e.MultiGet(ReadOptions{Namespace: 1}, items, 1, nil)
		if err != nil || st != wire.StatusOK {
			t.Fatalf("multiget %q: %v, %v", key, st, err)
		}
		_, _, rest, err := wire.DecodeResult(payload)
		var it wire.Item
		if err == nil {
			_, err = wire.NextItem(rest, &it)
		}
		if err != nil || it.Status != wire.StatusOK || !bytes.Equal(it.Value, want) {
			t.Fatalf("multiget %q: %v, %v, %d bytes; want %d", key, it.Status, err, len(it.Value), len(want))
		}
	}
	items, _, _ := page(t, d.e, &wire.ScanRequest{Limit: 1, BytesMax: 1 << 20, Start: []byte(key)})
	if len(items) != 1 || items[0].key != key || items[0].value != string(want) {
		t.Fatalf("scan finds %q: %d items", key, len(items))
	}
	res := d.one(groupOp(wire.OpTxn, 0, wire.Item{Op: wire.OpGet, Key: []byte(key)}))
	var it wire.Item
	_, _, rest, err := wire.DecodeResult(res.Payload)
	if err == nil {
		_, err = wire.NextItem(rest, &it)
	}
	if err != nil || it.Status != wire.StatusOK || !bytes.Equal(it.Value, want) {
		t.Fatalf("get in a transaction %q: %v, %v, %d bytes; want %d", key, it.Status, err, len(it.Value), len(want))
	}
	if len(want) <= wire.ConditionValueBytesMax {
		check := func(operand []byte) wire.Status {
			ext := wire.AppendExtCondition(nil, wire.ConditionValue, operand)
			return d.one(groupOp(wire.OpTxn, 0, wire.Item{Op: wire.OpCheck, Key: []byte(key), Ext: ext})).Status
		}
		if st := check(want); st != wire.StatusOK {
			t.Fatalf("condition on the value of %q: %v", key, st)
		}
		wrong := append(bytes.Clone(want), 1)[1:]
		if len(want) > 0 && !bytes.Equal(wrong, want) {
			if st := check(wrong); st != wire.StatusConditionFailed {
				t.Fatalf("condition on another value of %q: %v", key, st)
			}
		}
	}
}

func TestCompress_EachCodecAndSize_ValuesComeBackAsTheyCame(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 21))
	const threshold = 1 << 10
	o := engineOptions(t, t.TempDir())
	o.MemtableBytes = 16 << 20 // pieces of the default size
	d := newDriver(t, o)
	values := make(map[string][]byte)
	for _, c := range allCodecs {
		for _, n := range []int{0, 1, threshold - 1, threshold, 20 << 10, 512 << 10, 700 << 10, 16 << 20} {
			key := fmt.Sprintf("%s/%08d", c, n)
			values[key] = wordy(rng, n)
			if res := d.one(putOp(key, values[key], withCompress(nil, c))); res.Status != wire.StatusOK {
				t.Fatalf("put %q: %v", key, res.Status)
			}
			stored, rec := storedOf(t, d.e, key)
			packed := n >= threshold
			if (rec.codec == c) != packed || (stored[0] == packedFormat) != packed || int(rec.valueLen) != n {
				t.Fatalf("%q is stored in format %d with codec %s", key, stored[0], rec.codec)
			}
			if packed && rec.packedLen > rec.valueLen*3/4 {
				t.Fatalf("%q: %d bytes of %d", key, rec.packedLen, rec.valueLen)
			}
			// What is cut is what is still too large when it is compressed.
			if (rec.chunks > 0) != (int(rec.bodyLen()) > d.e.live.Load().store.o.ChunkThresholdBytes) {
				t.Fatalf("%q: %d bytes in %d pieces", key, rec.bodyLen(), rec.chunks)
			}
		}
	}
	check := func(d *driver) {
		t.Helper()
		for key, want := range values {
			wantEverywhere(t, d, key, want)
		}
		if err := d.e.VerifyDigest(t.Context()); err != nil {
			t.Fatal(err)
		}
		report, err := d.e.Scrub(t.Context(), ScrubOptions{RateBytes: -1})
		if err != nil || !report.Sound() {
			t.Fatalf("%+v, %v", report, err)
		}
	}
	check(d)
	stats, err := d.e.Stats()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stats.Store.Compressed {
		if s.Values != 5 || s.RawBytes < 16<<20 || s.StoredBytes > s.RawBytes*3/4 || s.StoredBytes == 0 {
			t.Errorf("%+v", s)
		}
	}
	if s := stats.Store; len(s.Compressed) != len(allCodecs) || s.CompressPlain != 0 {
		t.Errorf("%+v, %d plain", s.Compressed, s.CompressPlain)
	}

	// A snapshot carries the stored bytes.
	meta, stream := snapshotOf(t, d.e)
	o.Dir, o.CompressThresholdBytes = t.TempDir(), -1
	e := mustOpen(t, o)
	received, err := e.ReceiveSnapshot(t.Context(), meta, bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	if err := received.Install(); err != nil {
		t.Fatal(err)
	}
	for key := range values {
		want, _ := storedOf(t, d.e, key)
		if got, _ := storedOf(t, e, key); !bytes.Equal(got, want) {
			t.Fatalf("%q is stored in other bytes after a snapshot", key)
		}
	}
	check(&driver{t: t, e: e, index: e.Applied().Index, now: d.now})

	// Written over, shorter, longer and without: no piece stays behind.
	for key := range values {
		values[key] = wordy(rng, 100+rng.IntN(900<<10))
		var ext []byte
		if rng.IntN(2) == 0 {
			ext = withCompress(nil, allCodecs[rng.IntN(len(allCodecs))])
		}
		if res := d.one(putOp(key, values[key], ext)); res.Status != wire.StatusOK {
			t.Fatal(res.Status)
		}
	}
	check(d)
}

func TestCompress_WhatDoesNotPay_StaysPlain(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 22))
	d := newDriver(t, engineOptions(t, t.TempDir()))
	for _, c := range allCodecs {
		for _, n := range []int{1 << 10, 5000, 600 << 10} {
			key, value := fmt.Sprintf("%s/%d", c, n), noise(rng, n)
			d.one(putOp(key, value, withCompress(nil, c)))
			if stored, rec := storedOf(t, d.e, key); stored[0] != recordFormat || rec.codec != wire.CodecNone || rec.packedLen != 0 {
				t.Fatalf("%q is stored in format %d", key, stored[0])
			}
			wantEverywhere(t, d, key, value)
		}
	}
	// One who says never gets it, and so does one who says nothing in a namespace without a codec.
	for key, ext := range map[string][]byte{"never": withCompress(nil, wire.CodecNone), "nothing said": nil} {
		d.one(putOp(key, bytes.Repeat([]byte("x"), 5000), ext))
		if stored, _ := storedOf(t, d.e, key); stored[0] != recordFormat {
			t.Fatalf("%s: format %d", key, stored[0])
		}
	}
	stats, err := d.e.Stats()
	if err != nil || stats.Store.CompressPlain != uint64(3*len(allCodecs)) {
		t.Errorf("%d values didn't pay, %v", stats.Store.CompressPlain, err)
	}
}

// Compression is layout: replicas that differ in it have the same state, and can go on with each other's files.
func TestCompress_OtherOptions_SameDigestAndAnswers(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 23))
	plain, tight := engineOptions(t, t.TempDir()), engineOptions(t, t.TempDir())
	plain.CompressThresholdBytes = -1
	tight.CompressThresholdBytes, tight.CompressLevel = 1, 4
	a, b := newDriver(t, plain), newDriver(t, tight)
	values := make(map[string][]byte)
	write := func() {
		t.Helper()
		for range 60 {
			key, value := fmt.Sprintf("k%02d", rng.IntN(20)), wordy(rng, rng.IntN(6000))
			ext := withCompress(nil, wire.Codec(rng.IntN(int(codecs))))
			ra, rb := a.one(putOp(key, value, ext)), b.one(putOp(key, value, ext))
			if ra.Status != wire.StatusOK || ra.Rev != rb.Rev || ra.Status != rb.Status {
				t.Fatalf("%+v and %+v", ra, rb)
			}
			values[key] = value
		}
		_, da := a.e.Digest()
		if _, db := b.e.Digest(); da != db {
			t.Fatalf("digests %x and %x", da, db)
		}
		for key, value := range values {
			a.wantValue(key, string(value))
			b.wantValue(key, string(value))
		}
	}
	write()
	// Each goes on where the other one stopped: the one that never compressed has format 1 alone.
	for _, d := range []*driver{a, b} {
		if err := d.e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	plain.Dir, tight.Dir = tight.Dir, plain.Dir
	a.e, b.e = mustOpen(t, plain), mustOpen(t, tight)
	write()
	for _, d := range []*driver{a, b} {
		if err := d.e.VerifyDigest(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestCompress_NamespaceWithACodec_DecidesForPutsThatDoNotSay(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	value := bytes.Repeat([]byte("all the same "), 200)
	setting := func(codec wire.Codec) {
		t.Helper()
		res := d.one(namespaceOp(wire.NamespaceChange{Action: wire.NamespaceSet, Name: wire.NamespaceDefaultName, Settings: wire.NamespaceSettings{Compress: codec}}))
		if res.Status != wire.StatusOK {
			t.Fatal(res.Status)
		}
	}
	want := func(key string, codec wire.Codec) {
		t.Helper()
		if _, rec := storedOf(t, d.e, key); rec.codec != codec {
			t.Errorf("%q is stored with %s, want %s", key, rec.codec, codec)
		}
		wantEverywhere(t, d, key, value)
	}
	setting(wire.CodecZstd)
	d.one(putOp("by namespace", value, nil))
	d.one(putOp("by itself", value, withCompress(nil, wire.CodecS2)))
	d.one(putOp("never", value, withCompress(nil, wire.CodecNone)))
	if res := d.one(groupOp(wire.OpBatch, 0, wire.Item{Op: wire.OpPut, Key: []byte("in a batch"), Value: value})); res.Status != wire.StatusOK {
		t.Fatal(res.Status)
	}
	check := func() {
		t.Helper()
		want("by namespace", wire.CodecZstd)
		want("by itself", wire.CodecS2)
		want("never", wire.CodecNone)
		want("in a batch", wire.CodecZstd)
	}
	check()
	// A record that is written anew by a touch keeps what it has, whatever the namespace says by now.
	setting(wire.CodecLZ4)
	for _, key := range []string{"by namespace", "by itself", "never", "in a batch"} {
		if res := d.one(touchOp(key, withTTL(nil, time.Hour))); res.Status != wire.StatusOK {
			t.Fatal(res.Status)
		}
	}
	check()
	d.one(putOp("by namespace", value, nil))
	want("by namespace", wire.CodecLZ4)
	// Without pieces left behind, of what was cut and compressed, and is touched.
	large := wordy(rand.New(rand.NewPCG(testSeed(t), 25)), 3<<20)
	d.one(putOp("large", large, nil))
	if _, rec := storedOf(t, d.e, "large"); rec.chunks == 0 || rec.codec != wire.CodecLZ4 {
		t.Fatalf("%+v", rec)
	}
	d.one(touchOp("large", withTTL(nil, time.Hour)))
	wantEverywhere(t, d, "large", large)
	if err := d.e.VerifyDigest(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestGetCached_CompressedRecord_IsLeftToTheReaders(t *testing.T) {
	d := newDriver(t, engineOptions(t, t.TempDir()))
	value := strings.Repeat("all the same ", 200)
	d.one(putOp("k", []byte(value), withCompress(nil, wire.CodecS2)))
	if st, hit := getCached(d.e, []byte("k"), func(*wire.Record, Point) { t.Error("it was shown") }); hit {
		t.Errorf("a hit with %v", st)
	}
	before, err := d.e.Stats()
	if err != nil {
		t.Fatal(err)
	}
	d.wantValue("k", value)
	after, err := d.e.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if after.CacheHits != before.CacheHits+1 {
		t.Errorf("%d hits, then %d: the reader didn't find the stored bytes in the cache", before.CacheHits, after.CacheHits)
	}
	// Its end is known on the event loop.
	d.one(deleteOp("k", nil))
	if st, hit := getCached(d.e, []byte("k"), nil); !hit || st != wire.StatusNotFound {
		t.Errorf("%v, %v", st, hit)
	}
}

func TestGet_CompressedRecord_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the pool drops objects at random")
	}
	for _, c := range allCodecs {
		for _, cacheBytes := range []int64{-1, 1 << 20} {
			o := engineOptions(t, t.TempDir())
			o.CacheBytes = cacheBytes
			d := newDriver(t, o)
			d.put("plain", "v")
			d.one(putOp("k", bytes.Repeat([]byte("all the same "), 200), withCompress(nil, c)))
			buf := make([]byte, 0, 64<<10)
			count := func(key string) float64 {
				return testing.AllocsPerRun(200, func() {
					if _, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte(key), buf); st != wire.StatusOK || err != nil {
						t.Fatal(st, err)
					}
				})
			}
			if plain, packed := count("plain"), count("k"); packed > plain {
				t.Errorf("%s, cache of %d bytes: %v allocations, %v of a plain record", c, cacheBytes, packed, plain)
			}
		}
	}
}

// A record can be sound by its checksum and hold what doesn't unpack: then it is damage, wherever it is met.
func TestCompress_ValueThatDoesNotUnpack_IsDamage(t *testing.T) {
	value := bytes.Repeat([]byte("all the same "), 200)
	for _, c := range allCodecs {
		o := engineOptions(t, t.TempDir())
		o.CacheBytes = -1
		d := newDriver(t, o)
		d.one(putOp("k", value, withCompress(nil, c)))
		_, rec := storedOf(t, d.e, "k")
		// The same bytes claim to be a value that is one byte longer.
		rec.valueLen++
		recordKey := appendRecordKey(nil, 1, []byte("k"))
		in := d.e.live.Load()
		m := in.applier.last
		m.index, m.ts = m.index+1, m.ts+1
		marker := appendMarker(nil, &m)
		w := in.store.begin(m.ts)
		w.set(recordKey, appendRecord(nil, recordKey, &rec))
		if err := w.commit(marker); err != nil {
			t.Fatal(err)
		}
		in.store.publish(m.point(), marker)

		if _, _, st, err := d.e.Get(ReadOptions{Namespace: 1}, []byte("k"), nil); st != wire.StatusDamaged || !errors.Is(err, ErrRecordDamaged) {
			t.Errorf("%s: get: %v, %v", c, st, err)
		}
		items := wire.AppendItem(nil, &wire.Item{Op: wire.OpGet, Key: []byte("k")})
		if _, st, err := d.e.MultiGet(ReadOptions{Namespace: 1}, items, 1, nil); st != wire.StatusDamaged || !errors.Is(err, ErrRecordDamaged) {
			t.Errorf("%s: multiget: %v, %v", c, st, err)
		}
		if _, st, err := d.e.Scan(ReadOptions{Namespace: 1}, &wire.ScanRequest{Limit: 5, BytesMax: 1 << 20}, nil); st != wire.StatusDamaged || !errors.Is(err, ErrRecordDamaged) {
			t.Errorf("%s: scan: %v, %v", c, st, err)
		}
		if err := d.e.VerifyDigest(context.Background()); !errors.Is(err, ErrRecordDamaged) {
			t.Errorf("%s: verify: %v", c, err)
		}
	}
}

func TestDecodeRecord_CompressedHeaderThatContradictsItself_IsDamage(t *testing.T) {
	key := appendRecordKey(nil, 1, []byte("k"))
	sound := storedRecord{valueLen: 100, codec: wire.CodecS2, packedLen: 6, packed: []byte("packed")}
	for name, c := range map[string]struct {
		change func(r *storedRecord)
		ok     bool
	}{
		"nothing wrong":                   {func(*storedRecord) {}, true},
		"a codec that nobody knows":       {func(r *storedRecord) { r.codec = codecs }, false},
		"nothing compressed":              {func(r *storedRecord) { r.packedLen, r.packed = 0, nil }, false},
		"not smaller":                     {func(r *storedRecord) { r.valueLen = 6 }, false},
		"less than it says":               {func(r *storedRecord) { r.packedLen = 7 }, false},
		"more pieces than bytes":          {func(r *storedRecord) { r.packed, r.chunks = nil, 7 }, false},
		"pieces, and bytes beside":        {func(r *storedRecord) { r.chunks = 2 }, false},
		"as many pieces as bytes":         {func(r *storedRecord) { r.packed, r.chunks = nil, 6 }, true},
		"a value above the largest":       {func(r *storedRecord) { r.valueLen = wire.ValueBytesMax + 1 }, false},
		"the largest value in six bytes ": {func(r *storedRecord) { r.valueLen = wire.ValueBytesMax }, true},
	} {
		r, got := sound, storedRecord{}
		c.change(&r)
		err := decodeRecord(key, appendRecord(nil, key, &r), &got)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRecordDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Codec and format must agree.
	for _, format := range []byte{recordFormat, packedFormat} {
		b := appendRecord(nil, key, &sound)
		b[0] = format
		if format == packedFormat {
			b[1] = byte(wire.CodecNone)
		}
		if err := decodeRecord(key, resealed(key, b), new(storedRecord)); !errors.Is(err, ErrRecordDamaged) {
			t.Errorf("format %d with codec %d: %v", format, b[1], err)
		}
	}
}

// bombs are compressed data that hold, or pretend to hold, much more than they should.
func bombs(t testing.TB) map[wire.Codec][][]byte {
	const size = 64 << 20
	large := make([]byte, size)
	p := packer{level: 1}
	all := make(map[wire.Codec][][]byte)
	for _, c := range allCodecs {
		packed, ok := p.pack(c, large)
		if !ok {
			t.Fatalf("%s: %d zeros don't get smaller", c, size)
		}
		all[c] = append(all[c], bytes.Clone(packed))
	}
	// A length that says 4 GiB, and nothing behind it.
	all[wire.CodecS2] = append(all[wire.CodecS2], binary.AppendUvarint(nil, 1<<32-1))
	// A frame without its size, and many frames, one behind the other.
	var stream bytes.Buffer
	enc, err := zstd.NewWriter(&stream)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enc.Write(large); err != nil {
		t.Fatal(err)
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	small, _ := p.pack(wire.CodecZstd, make([]byte, 1<<10))
	all[wire.CodecZstd] = append(all[wire.CodecZstd], stream.Bytes(), bytes.Repeat(small, 1000))
	// A window of 2 GiB.
	all[wire.CodecZstd] = append(all[wire.CodecZstd], []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 1, 0, 0})
	return all
}

func TestUnpack_Bombs_TakeNoMoreThanTheValue(t *testing.T) {
	const claimed = 1 << 16
	for c, all := range bombs(t) {
		for i, packed := range all {
			for range 2 { // the decoder's own tables come with the first
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, err := unpack(nil, c, packed, claimed)
				runtime.ReadMemStats(&after)
				if !errors.Is(err, ErrRecordDamaged) {
					t.Errorf("%s, bomb %d: %v", c, i, err)
				}
				if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
					t.Errorf("%s, bomb %d: %d bytes were allocated for a value of %d", c, i, took, claimed)
				}
			}
		}
	}
}

func TestUnpack_OtherLengths_AreDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 24))
	p := packer{level: 1}
	for _, c := range allCodecs {
		for _, n := range []int{64, 1000, 70_000} {
			value := append(wordy(rng, n), make([]byte, 64)...)
			packed, ok := p.pack(c, value)
			if !ok {
				t.Fatalf("%s: %d bytes don't get smaller", c, len(value))
			}
			for _, claim := range []int{0, 1, len(value) - 1, len(value) + 1, 2 * len(value)} {
				if out, err := unpack([]byte("before"), c, packed, claim); !errors.Is(err, ErrRecordDamaged) || string(out) != "before" {
					t.Errorf("%s: %d bytes unpack to %d: %v, %q", c, len(value), claim, err, short(string(out)))
				}
			}
			// Behind what it is read from, in the same memory.
			buf := append(make([]byte, 0, len(packed)+len(value)), packed...)
			out, err := unpack(buf, c, buf, len(value))
			if err != nil || !bytes.Equal(out[:len(packed)], packed) || !bytes.Equal(out[len(packed):], value) {
				t.Errorf("%s: %v", c, err)
			}
		}
	}
}

// FuzzUnpack: whatever bytes a record holds, unpacking them gives as many as it claims, or damage.
func FuzzUnpack(f *testing.F) {
	p := packer{level: 1}
	value := []byte(strings.Repeat("all the same ", 100))
	for _, c := range allCodecs {
		packed, _ := p.pack(c, value)
		f.Add(uint8(c), bytes.Clone(packed), uint32(len(value)))
		f.Add(uint8(c), bytes.Clone(packed[:len(packed)/2]), uint32(len(value)))
	}
	f.Add(uint8(wire.CodecS2), s2.EncodeBetter(nil, value), uint32(len(value)))
	for c, all := range bombs(f) {
		for _, b := range all {
			if len(b) < 16<<10 {
				f.Add(uint8(c), b, uint32(100))
			}
		}
	}
	f.Fuzz(func(t *testing.T, codec uint8, packed []byte, n uint32) {
		n %= 1 << 20
		out, err := unpack([]byte("before"), wire.Codec(codec), packed, int(n))
		if err != nil && !errors.Is(err, ErrRecordDamaged) {
			t.Fatal(err)
		}
		if err == nil && len(out) != len("before")+int(n) || !bytes.HasPrefix(out, []byte("before")) {
			t.Fatalf("%d bytes of %d", len(out), n)
		}
		if again, err2 := unpack(nil, wire.Codec(codec), packed, int(n)); (err2 == nil) != (err == nil) || err == nil && !bytes.Equal(again, out[len("before"):]) {
			t.Fatalf("the second time: %v, then %v", err, err2)
		}
	})
}

// FuzzPack: every value that is packed comes back.
func FuzzPack(f *testing.F) {
	f.Add([]byte("all the same all the same all the same"), uint16(1))
	f.Add([]byte{}, uint16(3))
	f.Fuzz(func(t *testing.T, value []byte, times uint16) {
		value = bytes.Repeat(value, int(times%64))
		p := packer{level: 1}
		for _, c := range allCodecs {
			packed, ok := p.pack(c, value)
			if !ok {
				continue
			}
			if out, err := unpack(nil, c, packed, len(value)); err != nil || !bytes.Equal(out, value) {
				t.Fatalf("%s: %d bytes come back as %d: %v", c, len(value), len(out), err)
			}
		}
	})
}
