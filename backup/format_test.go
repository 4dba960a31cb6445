package backup

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kvstore/internal/record"
	"kvstore/wire"
)

// seedEnv repeats the choices of a random test.
const seedEnv = "KVSTORE_TEST_SEED"

func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv(seedEnv); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed: %s=%d", seedEnv, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestTakeRestore_AllThatIsKept_ComesBack(t *testing.T) {
	m := newMemory()
	m.fill(random(t), 300)
	big := bytes.Repeat([]byte{0, 1, 2, 3}, wire.ValueBytesMax/4)
	m.spaces["app"].put(m, "z/"+strings.Repeat("k", wire.KeyBytesMax-2), big, nil, 0)
	m.spaces["app"].put(m, "empty", nil, nil, 0)
	stream := taken(t, m, TakeOptions{})

	h, sum, err := Verify(bytes.NewReader(stream))
	if err != nil || sum.Revision != m.revision || h.ClusterID[15] != 15 || len(h.Namespaces) != 3 || sum.StreamBytes != uint64(len(stream)) {
		t.Fatalf("%+v %+v, %v", h, sum, err)
	}
	if n := len(m.spaces["app"].data); sum.Each[0].Records != uint64(n) || sum.Each[1].Records != 300 || sum.Each[2].Records != 0 || sum.Records != uint64(n+300) {
		t.Errorf("counts %+v of %d and 300 records", sum, n)
	}
	if len(stream) > 1<<20 {
		t.Errorf("16 MiB of four bytes take %d bytes: they are not packed", len(stream))
	}
	to := newMemory()
	done, err := Restore(t.Context(), to, bytes.NewReader(stream), RestoreOptions{Now: func() time.Time { return m.now }})
	if err != nil {
		t.Fatal(err)
	}
	if want, got := m.content(), to.content(); !maps.Equal(want, got) {
		t.Errorf("%d of %d lines are another", len(got), len(want))
	}
	if done.Count != sum.Count || done.Created != 2 || done.Namespaces != 3 || done.Expired != 0 || done.Revision != m.revision {
		t.Errorf("it says %+v", done)
	}
}

func TestTakeRestore_OneNamespace_LeavesTheOthersAlone(t *testing.T) {
	m := newMemory()
	m.fill(random(t), 20)
	one := taken(t, m, TakeOptions{Namespace: "app"})
	if h, _, err := Verify(bytes.NewReader(one)); err != nil || len(h.Namespaces) != 1 || h.Namespaces[0].Name != "app" {
		t.Fatalf("%+v, %v", h, err)
	}
	if _, err := Take(t.Context(), m, &bytes.Buffer{}, TakeOptions{Namespace: "nope"}); !errors.Is(err, ErrNamespace) {
		t.Errorf("a namespace that isn't there: %v", err)
	}
	to := newMemory()
	to.spaces["default"].put(to, "mine", []byte("1"), nil, 0)
	now := func() time.Time { return m.now }
	if _, err := Restore(t.Context(), to, bytes.NewReader(taken(t, m, TakeOptions{})), RestoreOptions{Namespace: "app", Now: now}); err != nil {
		t.Fatal(err)
	}
	if len(to.spaces) != 2 || len(to.spaces["default"].data) != 1 || len(to.spaces["app"].data) != len(m.spaces["app"].data) {
		t.Errorf("the store holds %v", to.content())
	}
	if _, err := Restore(t.Context(), to, bytes.NewReader(one), RestoreOptions{Namespace: "default"}); !errors.Is(err, ErrNamespace) {
		t.Errorf("a namespace that the backup lacks: %v", err)
	}
}

func TestTake_EmptyStore_IsABackup(t *testing.T) {
	stream := taken(t, newMemory(), TakeOptions{})
	h, sum, err := Verify(bytes.NewReader(stream))
	if err != nil || sum.Records != 0 || len(h.Namespaces) != 1 {
		t.Fatalf("%+v %+v, %v", h, sum, err)
	}
	if _, err := Restore(t.Context(), newMemory(), bytes.NewReader(stream), RestoreOptions{}); err != nil {
		t.Error(err)
	}
}

// Every byte counts: whichever is changed, and wherever the stream ends, a reader sees it.
func TestVerify_EachFlipAndEachTruncation_IsFound(t *testing.T) {
	rnd := random(t)
	m := newMemory()
	m.fill(rnd, 12)
	stream := taken(t, m, TakeOptions{})
	known := func(err error) bool {
		return errors.Is(err, ErrBroken) || errors.Is(err, ErrNotBackup) || errors.Is(err, ErrVersion)
	}
	for i := range stream {
		b := bytes.Clone(stream)
		b[i] ^= byte(1 << rnd.IntN(8))
		if _, _, err := Verify(bytes.NewReader(b)); !known(err) {
			t.Fatalf("byte %d of %d was changed from %02x to %02x: %v", i, len(stream), stream[i], b[i], err)
		}
		if _, _, err := Verify(bytes.NewReader(stream[:i])); !known(err) {
			t.Fatalf("cut to %d of %d bytes: %v", i, len(stream), err)
		}
	}
	if _, _, err := Verify(bytes.NewReader(append(bytes.Clone(stream), 0))); !errors.Is(err, ErrBroken) {
		t.Errorf("with a byte more: %v", err)
	}
	if _, _, err := Verify(bytes.NewReader(append(bytes.Clone(stream), stream...))); !errors.Is(err, ErrBroken) {
		t.Errorf("twice: %v", err)
	}
}

// frames cuts a backup into its head and its records.
func frames(t *testing.T, stream []byte) (parts [][]byte) {
	t.Helper()
	parts = append(parts, stream[:headBytes])
	for rest := stream[headBytes:]; len(rest) > 0; {
		_, after, err := record.Decode(rest)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, rest[:len(rest)-len(after)])
		rest = after
	}
	return parts
}

// Whole records that are intact, each by itself, are no backup in another order or number, or with another's.
func TestVerify_IntactFramesInAnotherOrder_AreFound(t *testing.T) {
	rnd := random(t)
	m := newMemory()
	for i := range 40 { // several blocks
		value := make([]byte, 100<<10)
		for j := range value {
			value[j] = byte(rnd.Uint32())
		}
		m.spaces["default"].put(m, strconv.Itoa(i), value, nil, 0)
	}
	one := frames(t, taken(t, m, TakeOptions{}))
	m.spaces["default"].put(m, "0", []byte("other"), nil, 0)
	other := frames(t, taken(t, m, TakeOptions{}))
	if len(one) < 6 || len(other) != len(one) {
		t.Fatalf("%d and %d frames", len(one), len(other))
	}
	last := len(one) - 1
	swapped := slices.Clone(one)
	swapped[2], swapped[3] = swapped[3], swapped[2]
	mixed := slices.Clone(one)
	mixed[2] = other[2]
	for name, parts := range map[string][][]byte{
		"swapped":             swapped,
		"one left out":        slices.Delete(slices.Clone(one), 3, 4),
		"one twice":           slices.Insert(slices.Clone(one), 3, one[3]),
		"one of another":      mixed,
		"another's header":    append([][]byte{one[0], other[1]}, one[2:]...),
		"another's trailer":   append(slices.Clone(one[:last]), other[last]),
		"trailer alone":       {one[0], one[1], one[last]},
		"no header":           append([][]byte{one[0]}, one[2:]...),
		"header in the midst": slices.Insert(slices.Clone(one), 3, one[1]),
	} {
		if _, _, err := Verify(bytes.NewReader(bytes.Join(parts, nil))); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := Verify(bytes.NewReader(bytes.Join(one, nil))); err != nil {
		t.Error(err)
	}
}

// forge makes a backup of frames that say what they like, each with a checksum that is right.
func forge(frames ...[]byte) []byte {
	out := appendHead(nil)
	for i, f := range frames {
		binary.LittleEndian.PutUint32(f[4:], uint32(i))
		out = record.Append(out, f)
	}
	return out
}

func frameOf(kind, codec byte, length int, body []byte) []byte {
	f := []byte{kind, codec, 0, 0, 0, 0, 0, 0}
	return append(binary.LittleEndian.AppendUint32(f, uint32(length)), body...)
}

func plain(kind byte, body []byte) []byte { return frameOf(kind, codecNone, len(body), body) }

func TestVerify_ForgedFrames_AreRefusedAndCostLittle(t *testing.T) {
	header := func(change func(*Header)) []byte {
		h := &Header{Revision: 1, Namespaces: []Namespace{{Name: "a", ID: 1}, {Name: "b", ID: 2}}}
		if change != nil {
			change(h)
		}
		return plain(frameHeader, appendHeader(nil, h))
	}
	block := func(namespace, count uint32, records ...Record) []byte {
		b := binary.LittleEndian.AppendUint32(nil, namespace)
		b = binary.LittleEndian.AppendUint32(b, count)
		for i := range records {
			b = appendRecord(b, &records[i])
		}
		return plain(frameBlock, b)
	}
	rec := func(key string, change func(*Record)) Record {
		r := Record{Key: []byte(key), Value: []byte("v"), Meta: wire.Meta{Checksum: wire.Checksum([]byte("v"))}}
		if change != nil {
			change(&r)
		}
		return r
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, stream := range map[string][]byte{
		"names out of order":       forge(header(func(h *Header) { slices.Reverse(h.Namespaces) })),
		"a name twice":             forge(header(func(h *Header) { h.Namespaces[1].Name = "a" })),
		"a name that is none":      forge(header(func(h *Header) { h.Namespaces[0].Name = "-" })),
		"unknown codec of values":  forge(header(func(h *Header) { h.Namespaces[0].Settings.Compress = 9 })),
		"too many namespaces":      forge(plain(frameHeader, append(make([]byte, 32), 255, 255, 255, 255))),
		"cut header":               forge(plain(frameHeader, make([]byte, 20))),
		"namespace beyond":         forge(header(nil), block(2, 1, rec("a", nil))),
		"namespaces go back":       forge(header(nil), block(1, 1, rec("a", nil)), block(0, 1, rec("a", nil))),
		"no records":               forge(header(nil), block(0, 0)),
		"fewer records":            forge(header(nil), block(0, 2, rec("a", nil))),
		"more records":             forge(header(nil), block(0, 1, rec("a", nil), rec("b", nil)), block(0, 1, rec("c", nil))),
		"keys go back":             forge(header(nil), block(0, 2, rec("b", nil), rec("a", nil))),
		"keys go back over blocks": forge(header(nil), block(0, 1, rec("b", nil)), block(0, 1, rec("b", nil))),
		"no key":                   forge(header(nil), block(0, 1, rec("", nil))),
		"no UTF-8":                 forge(header(nil), block(0, 1, rec("\xff", nil))),
		"another value":            forge(header(nil), block(0, 1, rec("a", func(r *Record) { r.Value = []byte("w") }))),
		"not an element":           forge(header(nil), block(0, 1, rec("a", func(r *Record) { r.Ext = []byte{11} }))),
		"an element too much":      forge(header(nil), block(0, 1, rec("a", func(r *Record) { r.Ext = wire.AppendExtU64(nil, wire.ExtTTL, 5) }))),
		"a condition":              forge(header(nil), block(0, 1, rec("a", func(r *Record) { r.Ext = wire.AppendExtCondition(nil, wire.ConditionAbsent, nil) }))),
		"expires before 1970":      forge(header(nil), block(0, 1, rec("a", func(r *Record) { r.Meta.ExpiresAt = -1 }))),
		"length too long":          forge(header(nil), frameOf(frameBlock, codecZstd, 1<<31, nil)),
		"length of no frame":       forge(header(nil), frameOf(frameBlock, codecZstd, 1<<20, []byte("no zstd"))),
		"plain of other length":    forge(header(nil), frameOf(frameBlock, codecNone, 5, []byte("no"))),
		"unknown kind":             forge(header(nil), plain(9, nil)),
		"lying trailer":            forge(header(nil), plain(frameTrailer, appendTrailer(nil, Count{}, make([]Count, 2), 1))),
	} {
		if _, _, err := Verify(bytes.NewReader(stream)); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	runtime.ReadMemStats(&after)
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 512 {
		t.Errorf("that took %d MiB", took)
	}
	for name, stream := range map[string][]byte{
		"unknown codec":  forge(header(nil), frameOf(frameBlock, 7, 1, []byte("x"))),
		"unknown format": append([]byte(magic), 2, 0, 0, 0, 0, 0, 0, 0),
	} {
		if _, _, err := Verify(bytes.NewReader(stream)); !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "KV", "PK\x03\x04 this is something else"} {
		if _, _, err := Verify(strings.NewReader(text)); !errors.Is(err, ErrNotBackup) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The format is fixed: this is the example of docs/backup.md.
func TestWriter_Golden(t *testing.T) {
	var b bytes.Buffer
	h := &Header{Revision: 0x100002, CreatedAt: time.UnixMicro(1_700_000_000_000_000), Namespaces: []Namespace{{Name: "default", ID: 1}}}
	copy(h.ClusterID[:], "0123456789abcdef")
	w, err := NewWriter(&b, h)
	if err != nil {
		t.Fatal(err)
	}
	r := Record{Key: []byte("k"), Value: []byte("hello"), Ext: wire.AppendExtTag(nil, "t", "v"), Meta: wire.Meta{Version: 0x100001, CreatedAt: 1, UpdatedAt: 2, ExpiresAt: 3, Checksum: wire.Checksum([]byte("hello"))}}
	if err := errors.Join(w.Add(0, &r), w.Close()); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/backup.md")
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, line := range regexp.MustCompile(`(?m)^[0-9a-f]{4}  ([0-9a-f ]+)$`).FindAllSubmatch(page, -1) {
		want += strings.ReplaceAll(string(line[1]), " ", "")
	}
	if got := hex.EncodeToString(b.Bytes()); got != want {
		t.Errorf("the format has changed; now it is\n%s", hex.Dump(b.Bytes()))
	}
}

func TestWriter_Misuse_IsRefused(t *testing.T) {
	good := func(key string) *Record {
		return &Record{Key: []byte(key), Meta: wire.Meta{Checksum: wire.Checksum(nil)}}
	}
	for name, use := range map[string]func(w *Writer) error{
		"namespace back":   func(w *Writer) error { return errors.Join(w.Add(1, good("a")), w.Add(0, good("a"))) },
		"namespace beyond": func(w *Writer) error { return w.Add(2, good("a")) },
		"key twice":        func(w *Writer) error { return errors.Join(w.Add(0, good("a")), w.Add(0, good("a"))) },
		"damaged value":    func(w *Writer) error { return w.Add(0, &Record{Key: []byte("a"), Value: []byte("x")}) },
	} {
		w, err := NewWriter(&bytes.Buffer{}, &Header{Namespaces: []Namespace{{Name: "a"}, {Name: "b"}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := use(w); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := NewWriter(&bytes.Buffer{}, &Header{Namespaces: []Namespace{{Name: "b"}, {Name: "a"}}}); err == nil {
		t.Error("namespaces out of order: no error")
	}
}

// FuzzVerify: whatever the bytes, a reader ends, and what it takes for a backup can be written again.
func FuzzVerify(f *testing.F) {
	m := newMemory()
	m.fill(rand.New(rand.NewPCG(1, 2)), 3)
	var b bytes.Buffer
	if _, err := Take(context.Background(), m, &b, TakeOptions{}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()-1])
	f.Add(appendHead(nil))
	// Behind the checksums, so that the fuzzer gets there: the frames' bodies alone.
	f.Add(append([]byte{0}, appendHeader(nil, &Header{Namespaces: []Namespace{{Name: "a"}}})...))
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, _, err := Verify(bytes.NewReader(in)); err == nil {
			to := newMemory()
			if _, err := Restore(t.Context(), to, bytes.NewReader(in), RestoreOptions{Now: func() time.Time { return time.UnixMicro(0) }}); err != nil {
				t.Fatalf("it is verified, and can't be restored: %v", err)
			}
		}
		// The same bytes as what stands behind right checksums: a header, and a block behind a good header.
		good := plain(frameHeader, appendHeader(nil, &Header{Namespaces: []Namespace{{Name: "a"}}}))
		for _, stream := range [][]byte{
			forge(plain(frameHeader, in)),
			forge(good, plain(frameBlock, in)),
			forge(bytes.Clone(good), frameOf(frameBlock, codecZstd, 4*len(in), in)),
			forge(bytes.Clone(good), plain(frameTrailer, in)),
		} {
			if _, _, err := Verify(bytes.NewReader(stream)); err == nil {
				t.Fatalf("without a right trailer it is a backup: %x", stream)
			}
		}
	})
}
