package engine

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"kvstore/wire"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// goldenForms are one of each stored form, with its key.
func goldenForms() []struct {
	name        string
	key, stored []byte
} {
	key := appendRecordKey(nil, 1, []byte("user:123"))
	r := storedRecord{valueLen: 5}
	r.Meta = wire.Meta{Version: 0x2a00001, CreatedAt: 1_700_000_000_000_000, UpdatedAt: 1_700_000_000_000_001, ExpiresAt: 1_800_000_000_000_000, Checksum: wire.Checksum([]byte("hello"))}
	r.Ext, r.Value = wire.AppendExtTag(nil, "colour", "red"), []byte("hello")
	manifest := r
	manifest.Value, manifest.valueLen, manifest.chunks = nil, 700_000, 3
	packed := r
	packed.valueLen, packed.codec, packed.packed, packed.packedLen, packed.Value = 5000, wire.CodecLZ4, []byte("packed"), 6, nil
	packedManifest := manifest
	packedManifest.codec, packedManifest.packedLen = wire.CodecZstd, 600_000
	chunkKey := appendChunkKey(nil, key, 2)
	sessionKey := appendSessionKey(nil, 0x500000)
	place := journalPlace{ts: 42, part: 1}
	journalKey := appendJournalKey(nil, place)
	journal := appendJournalHeader(nil, 2)
	journal = appendJournalResult(journal, 0x500000, 7, &keptResult{rev: 0x2a00001, status: wire.StatusOK})
	journal = appendJournalResult(journal, 0x500000, 8, &keptResult{status: wire.StatusConditionFailed, payload: []byte("why"), truncated: true})
	onceKey := appendOnceKey(nil, oncePlace{1042, 3})
	m := marker{index: 42, term: 3, ts: 1042, time: 1_700_000_000_000_000, positions: 2, digest: digest{1, 2}, records: 10, bytes: 1000}
	return []struct {
		name        string
		key, stored []byte
	}{
		{"record", key, appendRecord(nil, key, &r)},
		{"manifest of a chunked record", key, appendRecord(nil, key, &manifest)},
		{"chunk 2", chunkKey, appendChunk(nil, chunkKey, r.Meta.Version, []byte("data"))},
		{"expiry index", appendExpiryKey(nil, r.Meta.ExpiresAt, key), expiryValue},
		{"session", sessionKey, appendSession(nil, sessionKey, &session{opened: 1, last: 2, floor: 3})},
		{"journal", journalKey, appendSeal(journal, 0, journalKey)},
		{"marker", markerKey, appendMarker(nil, &m)},
		{"cursor (not stored)", nil, appendCursor(nil, &cursor{history: testInit.HistoryID, rev: 0x2a00001, time: 5, listing: 6, last: []byte("user:123")})},
		{"record, compressed", key, appendRecord(nil, key, &packed)},
		{"manifest of a chunked record, compressed", key, appendRecord(nil, key, &packedManifest)},
		{"answer kept for an idempotency key", onceKey, appendOnce(nil, onceKey, &onceDone{
			key: idempotencyKeyOf([]byte("app"), wire.IdempotencyKey("order-17")), fingerprint: 7, at: 1_700_000_000_000_000, place: oncePlace{1042, 3}, rev: 0x2a00001,
			payload: []byte("answer"), status: wire.StatusConditionFailed})},
		{"cursor behind a common prefix (not stored)", nil, appendCursor(nil, &cursor{history: testInit.HistoryID, rev: 0x2a00001, time: 5, listing: 6, rolled: true, last: []byte("user:")})},
	}
}

// If this test breaks, a stored format has changed: nodes can't read what they have, and digests differ
// between versions. Raise the format's number, keep reading the old one, and rewrite with -rewrite.
func TestStoredForms_Golden_BytesStay(t *testing.T) {
	var b strings.Builder
	for _, g := range goldenForms() {
		fmt.Fprintf(&b, "%s\nkey    %s\nstored %s\n\n", g.name, hex.EncodeToString(g.key), hex.EncodeToString(g.stored))
	}
	key := appendRecordKey(nil, 1, []byte("user:123"))
	var r storedRecord
	if err := decodeRecord(key, goldenForms()[0].stored, &r); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&b, "digests\nrecord  %x\nsession %x\n", recordDigest(key, &r).bytes(), sealedDigest(goldenForms()[4].key, goldenForms()[4].stored).bytes())
	const path = "testdata/stored.golden"
	if *rewrite {
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Fatalf("stored forms are\n%s, want\n%s", b.String(), want)
	}
}

// checkForm decodes a stored form by its family and encodes it again.
func checkForm(key, stored []byte) ([]byte, error) {
	if len(key) == 0 {
		var c cursor
		if err := decodeCursor(stored, &c); err != nil {
			return nil, err
		}
		return appendCursor(nil, &c), nil
	}
	switch key[0] {
	case familyRecord:
		var r storedRecord
		if err := decodeRecord(key, stored, &r); err != nil {
			return nil, err
		}
		return appendRecord(nil, key, &r), nil
	case familyChunk:
		data, err := decodeChunk(key, stored, 0x2a00001)
		if err != nil {
			return nil, err
		}
		return appendChunk(nil, key, 0x2a00001, data), nil
	case familySession:
		s, err := decodeSession(key, stored)
		if err != nil {
			return nil, err
		}
		return appendSession(nil, key, s), nil
	case familyJournal:
		var out []byte
		n := 0
		err := decodeJournal(key, stored, func(id, seq uint64, k *keptResult) {
			out = appendJournalResult(out, id, seq, k)
			n++
		})
		if err != nil {
			return nil, err
		}
		return appendSeal(append(appendJournalHeader(nil, n), out...), 0, key), nil
	case familyOnce:
		k, err := decodeOnce(key, stored)
		if err != nil {
			return nil, err
		}
		return appendOnce(nil, key, k), nil
	case familyMarker:
		m, err := decodeMarker(stored)
		if err != nil {
			return nil, err
		}
		if wire.RevisionTS(m.revision()) != m.ts {
			return nil, fmt.Errorf("revision %d of ts %d", m.revision(), m.ts)
		}
		return appendMarker(nil, &m), nil
	}
	return stored, nil
}

func TestStoredForms_AnyBitFlippedOrByteMissing_IsDamage(t *testing.T) {
	for _, g := range goldenForms() {
		if again, err := checkForm(g.key, g.stored); err != nil || !bytes.Equal(again, g.stored) {
			t.Errorf("%s: %v, %x", g.name, err, again)
		}
		if g.name == "expiry index" {
			continue // all of it is in the key
		}
		wrong := func(err error) bool {
			return !errors.Is(err, ErrRecordDamaged) && !errors.Is(err, errCursorMalformed)
		}
		for bit := range 8 * len(g.stored) {
			b := bytes.Clone(g.stored)
			b[bit/8] ^= 1 << (bit % 8)
			if _, err := checkForm(g.key, b); wrong(err) {
				t.Fatalf("%s: bit %d flipped: %v", g.name, bit, err)
			}
		}
		for n := range g.stored {
			if _, err := checkForm(g.key, g.stored[:n]); wrong(err) {
				t.Fatalf("%s: %d bytes of %d: %v", g.name, n, len(g.stored), err)
			}
		}
		// Under another key the same bytes are damage too.
		if len(g.key) > 1 {
			other := bytes.Clone(g.key)
			other[len(other)-1] ^= 1
			if _, err := checkForm(other, g.stored); wrong(err) {
				t.Fatalf("%s: under another key: %v", g.name, err)
			}
		}
	}
}

// FuzzStoredForms: no bytes make a decoder panic, and what it takes it gives back the same.
func FuzzStoredForms(f *testing.F) {
	for _, g := range goldenForms() {
		f.Add(g.key, g.stored, false)
		f.Add(g.key, g.stored, true)
	}
	f.Fuzz(func(t *testing.T, key, stored []byte, seal bool) {
		if seal { // so that the fuzzer gets past the checksums
			stored = resealed(key, stored)
		}
		again, err := checkForm(key, stored)
		if err == nil && !bytes.Equal(again, stored) {
			t.Fatalf("%x under %x comes back as %x", stored, key, again)
		}
	})
}

// resealed gives b the checksum that its form would have.
func resealed(key, b []byte) []byte {
	b = bytes.Clone(b)
	put := func(at int, sum uint32) {
		b[at], b[at+1], b[at+2], b[at+3] = byte(sum), byte(sum>>8), byte(sum>>16), byte(sum>>24)
	}
	switch {
	case len(key) == 0 && len(b) >= 8:
		sum := wire.Checksum(b[:len(b)-8])
		put(len(b)-8, uint32(sum))
		put(len(b)-4, uint32(sum>>32))
	case len(key) == 0:
	case key[0] == familyRecord && len(b) >= 16:
		put(12, checksumAround(key, b, 12))
	case key[0] == familyChunk && len(b) >= 8:
		put(4, checksumAround(key, b, 4))
	case len(b) >= 4:
		return appendSeal(b[:len(b)-4], 0, key)
	}
	return b
}

func TestKeys_EncodedOrder_IsTheOrderOfWhatTheyMean(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 5))
	type place struct {
		deadline int64
		ns       uint32
		key      string
	}
	var places []place
	for range 500 {
		k := make([]byte, 1+rng.IntN(6))
		for i := range k {
			k[i] = byte("a\x00\xffz"[rng.IntN(4)])
		}
		places = append(places, place{int64(rng.Uint64N(1 << rng.Uint64N(62))), rng.Uint32N(3) * 0x1010101, string(k)})
	}
	slices.SortFunc(places, func(a, b place) int {
		return bytes.Compare(
			appendExpiryKey(nil, a.deadline, appendRecordKey(nil, a.ns, []byte(a.key))),
			appendExpiryKey(nil, b.deadline, appendRecordKey(nil, b.ns, []byte(b.key))))
	})
	if !slices.IsSortedFunc(places, func(a, b place) int {
		switch {
		case a.deadline != b.deadline:
			return int(min(max(a.deadline-b.deadline, -1), 1))
		case a.ns != b.ns:
			return int(min(max(int64(a.ns)-int64(b.ns), -1), 1))
		}
		return strings.Compare(a.key, b.key)
	}) {
		t.Fatal("the expiry index is not in order of deadline, namespace, key")
	}
	for _, p := range places {
		recordKey := appendRecordKey(nil, p.ns, []byte(p.key))
		if namespaceOf(recordKey) != p.ns || string(userKey(recordKey)) != p.key {
			t.Fatalf("%+v", p)
		}
		deadline, tail, ok := splitExpiryKey(appendExpiryKey(nil, p.deadline, recordKey))
		if !ok || deadline != p.deadline || !bytes.Equal(tail, recordKey[1:]) {
			t.Fatalf("%+v: %d, %x, %v", p, deadline, tail, ok)
		}
	}
	// Pieces of a key never mix with those of a longer one.
	a := appendChunkKey(nil, appendRecordKey(nil, 1, []byte("a")), 0x61626364)
	b := appendChunkKey(nil, appendRecordKey(nil, 1, []byte("aabcd")), 0)
	if bytes.HasPrefix(b, a) || bytes.Equal(a, b) {
		t.Fatalf("%x, %x", a, b)
	}
}

func TestDigest_AddAndSub_AreInverse(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 6))
	var d digest
	var parts []digest
	for i := range 100 {
		p := sealedDigest(fmt.Appendf(nil, "key %d", i), fmt.Appendf(nil, "value %d", rng.Uint64()))
		if p[0] == p[1] || p == (digest{}) {
			t.Fatalf("lanes are not independent: %x", p)
		}
		parts = append(parts, p)
		d.add(p)
	}
	rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	for _, p := range parts {
		d.sub(p)
	}
	if d != (digest{}) {
		t.Fatalf("%x is left", d)
	}
}
