package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"kvstore/wire"
)

// digest is the state's fingerprint: the sum of one fingerprint for each live record of every namespace,
// each session, each journal record, and each answer kept for an idempotency key. Two independent lanes of 64 bits, each summed modulo 2^64, so
// that order doesn't matter and one member can be taken out again.
//
// It finds divergence and damage, which are accidents. It is no proof against someone who builds
// collisions on purpose: xxhash is not a cryptographic hash, and neither is a sum.
//
// A record counts with its key, its Meta (which holds the checksum of the value), the length of the value
// and its kept elements. Chunk split, cache, expiry index and marker don't count: they are layout, or
// follow from the rest.
type digest [2]uint64

// The seeds make the lanes independent. Any two different numbers would do; these never change, or all
// digests do.
const (
	digestSeed0 = 0x6b76_7374_6f72_6530
	digestSeed1 = 0x9e37_79b9_7f4a_7c15
)

func (d *digest) add(o digest) { d[0] += o[0]; d[1] += o[1] }
func (d *digest) sub(o digest) { d[0] -= o[0]; d[1] -= o[1] }

// bytes gives the digest as it is shown: lane 0, then lane 1, little endian.
func (d digest) bytes() (b [16]byte) {
	binary.LittleEndian.PutUint64(b[:], d[0])
	binary.LittleEndian.PutUint64(b[8:], d[1])
	return b
}

// recordDigest is the fingerprint of one record.
func recordDigest(recordKey []byte, r *storedRecord) digest {
	var b [8 + wire.MetaBytes]byte
	binary.LittleEndian.PutUint32(b[:], uint32(len(recordKey)))
	binary.LittleEndian.PutUint32(b[4:], r.valueLen)
	head := wire.AppendMeta(b[:8], &r.Meta)
	return digest{
		hash3(digestSeed0, recordKey, head, r.Ext),
		hash3(digestSeed1, recordKey, head, r.Ext),
	}
}

// sealedDigest is the fingerprint of a session, a journal record, or an answer kept for an idempotency key: of its bytes as they are stored.
func sealedDigest(key, stored []byte) digest {
	return digest{hash3(digestSeed0, key, stored, nil), hash3(digestSeed1, key, stored, nil)}
}

func hash3(seed uint64, a, b, c []byte) uint64 {
	var h xxhash.Digest
	h.ResetWithSeed(seed)
	// Write of a hash never fails; see hash.Hash.
	_, _ = h.Write(a)
	_, _ = h.Write(b)
	if len(c) > 0 {
		_, _ = h.Write(c)
	}
	return h.Sum64()
}

// VerifyDigest reads the whole state at one revision, checks every byte of it, and compares its digest
// with the one that Apply has carried along. It also checks that the expiry index and the usage of each namespace match
// the records. It takes as long as reading all data takes; writes go on beside it. Errors: ErrRecordDamaged for bytes that
// fail their check, ErrDigestMismatch when all bytes are sound and the sum is not, ErrCompacted when the
// scan took longer than a revision can be held (Options.PinAgeMax), and ctx's error.
func (e *Engine) VerifyDigest(ctx context.Context) error {
	for {
		in := e.live.Load()
		if err := in.verify(ctx); !errors.Is(err, ErrClosed) || !e.replaced(in) {
			return err
		}
	}
}

// verify is VerifyDigest for one instance. One that is replaced meanwhile is verified to its end.
func (in *instance) verify(ctx context.Context) error {
	ts := in.store.current().ts
	if ts == 0 {
		return nil
	}
	release, err := in.store.pin(ts)
	if err != nil {
		return fmt.Errorf("cannot hold revision %d for the digest's check: %w", ts, err)
	}
	defer release()
	err = in.store.read(ts, func(r *reader) error {
		v := verifier{ctx: ctx, r: r, used: make(map[uint32]usage)}
		return v.run()
	})
	if err != nil {
		return fmt.Errorf("cannot verify the state at ts %d: %w", ts, err)
	}
	return nil
}

// verifier recomputes the digest of one revision.
type verifier struct {
	ctx context.Context
	r   *reader

	sum     digest
	records uint64
	bytes   uint64

	// due is the sum over (deadline, record) as the records tell it, minus the same as the index tells it.
	due digest

	// used is what the namespaces hold: as the records tell it, less what is stored of it. Nil: not asked for.
	used   map[uint32]usage
	usages int // how many are stored
	level  uint16

	rec   storedRecord
	value []byte
	key   []byte
}

func (v *verifier) run() error {
	var want marker
	if err := readMarker(v.r, &want); err != nil {
		return err
	}
	for _, f := range []struct {
		family byte
		visit  func(key, stored []byte) error
	}{
		{familyRecord, v.record},
		{familyExpiry, v.expiry},
		{familySession, v.sealed},
		{familyJournal, v.sealed},
		{familyOnce, v.sealed},
		{familyUsage, v.usageOf},
	} {
		lower, upper := familyRange(f.family)
		err := v.r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
			if err := v.ctx.Err(); err != nil {
				return false, err
			}
			// A pin that has lost its hold ends the scan at once: what it finds can't be believed any more, and
			// its iterator keeps flushed memtable logs on disk, which a crash would replay below tombstones that
			// compactions may drop from now on.
			if v.r.s.fence.Load() > v.r.at.ts {
				return false, ErrCompacted
			}
			stored, err := value()
			if err != nil {
				return false, err
			}
			return true, f.visit(key, stored)
		})
		if err != nil {
			return err
		}
	}
	switch {
	case v.sum != want.digest:
		return fmt.Errorf("%w: %x carried along, %x computed over %d records", ErrDigestMismatch, want.digest.bytes(), v.sum.bytes(), v.records)
	case v.records != want.records || v.bytes != want.bytes:
		return fmt.Errorf("%w: %d records of %d bytes carried along, %d of %d counted", ErrDigestMismatch, want.records, want.bytes, v.records, v.bytes)
	case v.due != digest{}:
		return fmt.Errorf("%w: the expiry index doesn't match the records", ErrDigestMismatch)
	}
	if v.level < levelNamespaces {
		if v.usages > 0 {
			return fmt.Errorf("%w: usage is carried along for %d namespaces at behaviour level %d", ErrDigestMismatch, v.usages, v.level)
		}
		return nil
	}
	for ns, u := range v.used {
		if u != (usage{}) {
			return fmt.Errorf("%w: namespace %d holds %d records of %d bytes more than are carried along for it", ErrDigestMismatch, ns, int64(u.records), int64(u.bytes))
		}
	}
	return nil
}

func (v *verifier) record(key, stored []byte) error {
	if err := decodeRecord(key, stored, &v.rec); err != nil {
		return err
	}
	v.sum.add(recordDigest(key, &v.rec))
	v.records++
	v.bytes += liveBytes(key, &v.rec)
	if v.used != nil {
		u := v.used[namespaceOf(key)]
		u.add(key, &v.rec)
		v.used[namespaceOf(key)] = u
	}
	if v.rec.Meta.ExpiresAt != 0 {
		v.key = appendExpiryKey(v.key[:0], v.rec.Meta.ExpiresAt, key)
		v.due.add(sealedDigest(v.key, nil))
	}
	value := v.rec.Value
	if !v.rec.inline() {
		var err error
		if v.value, err = appendValue(v.value[:0], v.r, key, &v.rec); err != nil {
			return err
		}
		value = v.value
	}
	if wire.Checksum(value) != v.rec.Meta.Checksum {
		return fmt.Errorf("%w: value of key %q doesn't match its checksum", ErrRecordDamaged, userKey(key))
	}
	if string(key) == string(levelKey) && len(value) == 2 {
		v.level = binary.LittleEndian.Uint16(value)
	}
	return nil
}

// levelKey is the record key of the behaviour level.
var levelKey = appendRecordKey(nil, wire.NamespaceSystem, []byte(systemLevel))

func (v *verifier) expiry(key, _ []byte) error {
	if _, _, ok := splitExpiryKey(key); !ok {
		return fmt.Errorf("%w: key %x in the expiry index", ErrRecordDamaged, key)
	}
	v.due.sub(sealedDigest(key, nil))
	return nil
}

func (v *verifier) usageOf(key, stored []byte) error {
	ns, carried, err := decodeUsage(key, stored)
	if err != nil {
		return err
	}
	u := v.used[ns]
	u.records -= carried.records
	u.bytes -= carried.bytes
	v.used[ns] = u
	v.usages++
	return nil
}

func (v *verifier) sealed(key, stored []byte) error {
	if _, err := openSealed(key, stored); err != nil {
		return err
	}
	v.sum.add(sealedDigest(key, stored))
	return nil
}
