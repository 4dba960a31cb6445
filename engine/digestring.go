package engine

const (
	// digestEvery is the distance, in indices, of the states whose digests are kept: all nodes keep those of
	// the same indices, so that they can be compared.
	digestEvery = 1024
	// digestsKept is how many are kept: at 100,000 entries a second, more than half a second of them.
	digestsKept = 64
)

// DigestPoint is the digest of the state that the entry at Index made: the same on every node.
type DigestPoint struct {
	// Index is divisible by 1,024.
	Index uint64
	// Digest is as Engine.Digest gives it.
	Digest [16]byte
}

// digestRing keeps the newest digests at multiples of digestEvery. Indices that are no entries of ours (raft
// keeps some to itself) are missing on every node.
type digestRing struct {
	points [digestsKept]DigestPoint
	count  int // that were ever added
}

// add takes the digest of a state if it is one to keep. REQUIRES: m.index lies above those added before.
func (r *digestRing) add(m *marker) {
	if m.index == 0 || m.index%digestEvery != 0 {
		return
	}
	r.points[r.count%digestsKept] = DigestPoint{Index: m.index, Digest: m.digest.bytes()}
	r.count++
}

// DigestsAt gives the digests of the last 64 states applied since the start (or since the newest snapshot was
// installed) whose index is divisible by 1,024, the oldest first.
func (e *Engine) DigestsAt() []DigestPoint {
	in := e.live.Load()
	in.mu.Lock()
	defer in.mu.Unlock()
	r := &in.digests
	n := min(r.count, digestsKept)
	points := make([]DigestPoint, 0, n)
	for i := r.count - n; i < r.count; i++ {
		points = append(points, r.points[i%digestsKept])
	}
	return points
}

// DigestAt gives the digest of the state at index; ok is false when it isn't kept.
func (e *Engine) DigestAt(index uint64) (digest [16]byte, ok bool) {
	in := e.live.Load()
	in.mu.Lock()
	defer in.mu.Unlock()
	if index == 0 {
		return digest, false
	}
	for i := range in.digests.points {
		if p := &in.digests.points[i]; p.Index == index {
			return p.Digest, true
		}
	}
	return digest, false
}
