package engine

import (
	"encoding/binary"
	"fmt"
	"slices"

	"kvstore/wire"
)

// The system keyspace is namespace 0: what describes the cluster itself, as records like all others, so that
// snapshots, digests and effects hold it without special cases.
const (
	systemClusterID = "cluster_id" // 16 bytes
	systemHistoryID = "history_id" // 16 bytes; a new one whenever history begins anew
	systemLevel     = "level"      // u16, little endian: the behaviour level
	systemBase      = "base"       // u64, little endian: ts = base + raft index

	// systemRecords bounds the positions that an operation takes if positionsOf says nothing else of it. OpInit, which may
	// take more, has an entry for itself: nothing before it takes any.
	systemRecords = 4
)

// identity is what the system records say, decoded.
type identity struct {
	clusterID [16]byte
	historyID [16]byte
	level     uint16
	base      uint64

	recoveries []Recovery // immutable: a change makes a new slice
}

// initialise executes OpInit in a state that has none yet.
func (a *applier) initialise(op *wire.Op) wire.Result {
	var in wire.Init
	if err := wire.DecodeInit(op.Payload, &in); err != nil || in.Level == levelNone {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	if in.Level > LevelNewest {
		a.failApply(fmt.Errorf("it begins at behaviour level %d, this build knows up to %d: use a newer build", in.Level, LevelNewest))
	}
	// The first entry's ts is made with the base that the state has, so OpInit can only confirm it.
	a.identity = identity{clusterID: in.ClusterID, historyID: in.HistoryID, level: in.Level, base: a.identity.base}
	rev := a.putSystem(systemClusterID, in.ClusterID[:])
	a.putSystem(systemHistoryID, in.HistoryID[:])
	a.putSystem(systemLevel, binary.LittleEndian.AppendUint16(nil, in.Level))
	a.putSystem(systemBase, binary.LittleEndian.AppendUint64(nil, a.identity.base))
	if in.Level >= levelNamespaces {
		a.beginNamespaces()
	}
	a.in.setIdentity(a.identity)
	return wire.Result{Status: wire.StatusOK, Rev: rev}
}

// putSystem writes one record of the system keyspace.
func (a *applier) putSystem(key string, value []byte) wire.Revision {
	ch := change{
		op:    wire.OpPut,
		key:   a.systemKey(key),
		value: value,
		m:     wire.Mutation{Checksum: wire.Checksum(value)},
	}
	var r storedRecord
	a.fill(&r, &ch)
	return a.write(a.stage(ch.key), &r)
}

// systemKey gives the record key of a system record, in the arena.
func (a *applier) systemKey(key string) []byte {
	return appendRecordKey(a.mem.alloc(recordKeyPrefixBytes+len(key)), wire.NamespaceSystem, []byte(key))
}

// loadIdentity reads the system records; all zero before OpInit.
func loadIdentity(r *reader) (id identity, err error) {
	var level, base []byte
	for _, f := range []struct {
		key  string
		size int
		take func(value []byte)
	}{
		{systemClusterID, 16, func(v []byte) { copy(id.clusterID[:], v) }},
		{systemHistoryID, 16, func(v []byte) { copy(id.historyID[:], v) }},
		{systemLevel, 2, func(v []byte) { level = append(level, v...) }},
		{systemBase, 8, func(v []byte) { base = append(base, v...) }},
	} {
		key := appendRecordKey(nil, wire.NamespaceSystem, []byte(f.key))
		found, err := r.get(key, func(stored []byte) error {
			var rec storedRecord
			if err := decodeWhole(r, key, stored, &rec); err != nil {
				return err
			}
			if len(rec.Value) != f.size {
				return fmt.Errorf("%w: system record %q of %d bytes, not %d", ErrRecordDamaged, f.key, len(rec.Value), f.size)
			}
			f.take(rec.Value)
			return nil
		})
		if err != nil {
			return identity{}, fmt.Errorf("cannot load system record %q: %w", f.key, err)
		}
		if !found {
			return identity{}, nil
		}
	}
	if id.recoveries, err = loadRecoveries(r); err != nil {
		return identity{}, err
	}
	id.level, id.base = binary.LittleEndian.Uint16(level), binary.LittleEndian.Uint64(base)
	if id.level > LevelNewest {
		return identity{}, fmt.Errorf("the state has behaviour level %d, this build knows up to %d: use a newer build", id.level, LevelNewest)
	}
	return id, nil
}

// decodeWhole is decodeRecord for a record whose value may stand in pieces, which it reads from r.
func decodeWhole(r *reader, key, stored []byte, rec *storedRecord) error {
	err := decodeRecord(key, stored, rec)
	if err == nil && !rec.inline() {
		rec.Value, err = appendValue(nil, r, key, rec)
	}
	return err
}

// eachSystemRecord calls fn for each system record whose key begins with prefix, in order of keys. rec is good
// until fn returns.
func eachSystemRecord(r *reader, prefix string, fn func(rec *storedRecord) error) error {
	return eachSystemRecordKey(r, prefix, func(_ string, rec *storedRecord) error { return fn(rec) })
}

// eachSystemRecordKey is eachSystemRecord with the key.
func eachSystemRecordKey(r *reader, prefix string, fn func(key string, rec *storedRecord) error) error {
	lower := appendRecordKey(nil, wire.NamespaceSystem, []byte(prefix))
	upper := successor(slices.Clone(lower))
	return r.iterate(lower, upper, false, false, func(key []byte, value func() ([]byte, error)) (bool, error) {
		stored, err := value()
		if err != nil {
			return false, err
		}
		var rec storedRecord
		if err := decodeWhole(r, key, stored, &rec); err != nil {
			return false, err
		}
		return true, fn(string(userKey(key)), &rec)
	})
}
