package wire

// Revision is a write's place in the history of its group: (base + raft index) << PositionBits |
// position of the mutation within its entry. It is the version that users compare, the ETag, the resume
// point of a watch. Zero is "none".
type Revision = uint64

// MakeRevision builds a revision. It panics when a bound is broken: that is a defect of ours, never a
// matter of input.
func MakeRevision(ts uint64, position int) Revision {
	if ts >= 1<<(64-PositionBits) || position < 0 || position >= 1<<PositionBits {
		panic("BUG: revision out of bounds")
	}
	return ts<<PositionBits | uint64(position)
}

// RevisionTS gives the engine timestamp (base + raft index) of a revision.
func RevisionTS(r Revision) uint64 { return r >> PositionBits }
