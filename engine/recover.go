package engine

import (
	"encoding/binary"
	"fmt"
	"slices"

	"kvstore/wire"
)

// systemRecovery begins the keys of the reports of recoveries in the system keyspace: "recovery/" and the
// recovery's number from 1, in four digits so that the order of keys is theirs. The value is what
// wire.AppendRecover wrote.
const systemRecovery = "recovery/"

const (
	// recoveriesMax bounds the recoveries of a cluster: their reports are kept for ever, in memory too, at
	// 4 KiB each. It belongs to the behaviour level.
	recoveriesMax = 256

	// tsBits is the width of a ts: the rest of a revision is its position.
	tsBits = 64 - wire.PositionBits
	// recoverTSMax is how far recoveries may raise: half of all timestamps remain for entries, which at a
	// million a second last for three months, and 2,047 recoveries of wire.RecoverBaseRaise fit below.
	// It belongs to the behaviour level.
	recoverTSMax = 1 << (tsBits - 1)
)

// As many recoveries as are kept fit: a negative difference does not compile.
const _ = uint(recoverTSMax/wire.RecoverBaseRaise - recoveriesMax)

// Recovery is the report of one recovery: when a survivor was made the cluster without the majority that
// would have proved that nothing is missing.
type Recovery struct {
	wire.Recover
	// Number counts the cluster's recoveries, from 1.
	Number int
	// Revision is that of the report's record. Revisions from its entry on belong to the new history, and lie
	// above every revision that the old one can have given out.
	Revision wire.Revision
	// Applied is the log time of that entry, Unix µs.
	Applied int64
}

// recover executes OpRecover: history begins anew. The base rises for the entry itself already, so that what
// it writes can't have the revision of a lost entry either; so the operation must be the first of its entry,
// before anything got a revision. In another place it is surely not applied.
func (a *applier) recover(op *wire.Op) wire.Result {
	var in wire.Recover
	if err := wire.DecodeRecover(op.Payload, &in); err != nil {
		return wire.Result{Status: wire.StatusBadRequest}
	}
	id := a.identity
	if n := len(id.recoveries); n > 0 && id.recoveries[n-1].HistoryID == in.HistoryID {
		// Proposed again by one who didn't learn the answer.
		return wire.Result{Status: wire.StatusOK, Replayed: true, Rev: id.recoveries[n-1].Revision}
	}
	switch {
	case a.operation != 0:
		return wire.Result{Status: wire.StatusRetryLater}
	case len(id.recoveries) >= recoveriesMax:
		return wire.Result{Status: wire.StatusTooLarge}
	case id.historyKnown(in.HistoryID), in.BaseRaise > recoverTSMax, id.base+in.BaseRaise+a.index > recoverTSMax:
		return wire.Result{Status: wire.StatusBadRequest}
	}
	id.historyID = in.HistoryID
	id.base += in.BaseRaise
	a.ts = id.base + a.index
	number := len(id.recoveries) + 1
	rev := a.putSystem(recoveryKey(number), op.Payload)
	a.putSystem(systemHistoryID, in.HistoryID[:])
	a.putSystem(systemBase, binary.LittleEndian.AppendUint64(nil, id.base))
	id.recoveries = append(slices.Clip(id.recoveries), Recovery{Recover: in, Number: number, Revision: rev, Applied: a.now})
	a.identity = id
	a.in.setIdentity(id)
	return wire.Result{Status: wire.StatusOK, Rev: rev}
}

// historyKnown reports whether a history of this id begins or has begun here.
func (id *identity) historyKnown(history [16]byte) bool {
	return history == id.historyID || slices.ContainsFunc(id.recoveries, func(r Recovery) bool { return r.HistoryID == history })
}

// forgotten reports whether rev lies where a recovery raised the base: whoever has got it, got it in a history
// that was given up, and no state here will ever reflect it.
func (id *identity) forgotten(rev wire.Revision) bool {
	ts := wire.RevisionTS(rev)
	for i := range id.recoveries {
		if above := wire.RevisionTS(id.recoveries[i].Revision); ts < above && ts >= above-id.recoveries[i].BaseRaise {
			return true
		}
	}
	return false
}

func recoveryKey(number int) string { return fmt.Sprintf("%s%04d", systemRecovery, number) }

// loadRecoveries reads the reports, in their order: that of their keys.
func loadRecoveries(r *reader) (recoveries []Recovery, err error) {
	err = eachSystemRecord(r, systemRecovery, func(rec *storedRecord) error {
		x := Recovery{Number: len(recoveries) + 1, Revision: rec.Meta.Version, Applied: rec.Meta.UpdatedAt}
		if err := wire.DecodeRecover(rec.Value, &x.Recover); err != nil {
			return fmt.Errorf("%w: %w", ErrRecordDamaged, err)
		}
		recoveries = append(recoveries, x)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot load the reports of recoveries: %w", err)
	}
	return recoveries, nil
}

// Recoveries gives the reports of the cluster's recoveries, the oldest first; none for nearly every cluster. The
// slice is immutable: don't change it.
func (e *Engine) Recoveries() []Recovery { return e.live.Load().identity.Load().recoveries }
