package node

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// digestsToldMax is how many digests a node tells of itself; digestsKeptMax how many of each other node are
// remembered, so that a node that lags finds those that the others told when they were there.
const (
	digestsToldMax = 4
	digestsKeptMax = 64
)

// digestPoint is the digest of the state at an index. As JSON it is [index, "32 hex digits"].
type digestPoint struct {
	index  uint64
	digest [16]byte
}

// MarshalJSON implements json.Marshaler.
func (p digestPoint) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `[%d,"%x"]`, p.index, p.digest), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *digestPoint) UnmarshalJSON(b []byte) error {
	var text string
	if err := json.Unmarshal(b, &[]any{&p.index, &text}); err != nil {
		return fmt.Errorf("cannot read a digest: %w", err)
	}
	d, err := hex.DecodeString(text)
	if err != nil || len(d) != len(p.digest) {
		return fmt.Errorf("cannot read a digest: %.80q is not 32 hex digits", text)
	}
	p.digest = [16]byte(d)
	return nil
}

// mergeDigests adds what a node tells now to what it told before, both in the order of their indices. What it
// told is dropped where it takes it back: a process that began anew, with a state that may be another, tells
// less than the one before it.
func mergeDigests(before, told []digestPoint) []digestPoint {
	if len(told) == 0 {
		return nil
	}
	if len(before) > 0 && before[len(before)-1].index > told[len(told)-1].index {
		before = nil
	}
	i, _ := slices.BinarySearchFunc(before, told[0].index, func(p digestPoint, index uint64) int {
		return cmp.Compare(p.index, index)
	})
	all := append(slices.Clone(before[:i]), told...)
	return all[max(0, len(all)-digestsKeptMax):]
}

// at gives the digest at an index.
func digestAt(points []digestPoint, index uint64) (d [16]byte, ok bool) {
	i, ok := slices.BinarySearchFunc(points, index, func(p digestPoint, index uint64) int { return cmp.Compare(p.index, index) })
	if !ok {
		return d, false
	}
	return points[i].digest, true
}

// mismatch is what the comparison of this node's digests with the others' found.
type mismatch struct {
	// Index is the newest one at which a digest differs; 0: none does.
	Index uint64 `json:"index"`
	// With are the members whose newest comparable digest differs from this node's, by id.
	With []string `json:"with"`
	// Odd: a majority of the voters agrees on another digest than this node's.
	Odd bool `json:"odd"`
}

// compareDigests compares own digests with those of the other members, at the newest index that this node has in
// common with each. Both are in the order of their indices. self's own digest counts if it is a voter.
func compareDigests(self string, own []digestPoint, others map[string][]digestPoint, voters []string) (m mismatch) {
	var at []uint64
	for id, points := range others {
		for i := len(points) - 1; i >= 0; i-- {
			mine, ok := digestAt(own, points[i].index)
			if !ok {
				continue
			}
			if mine != points[i].digest {
				m.With = append(m.With, id)
				at = append(at, points[i].index)
			}
			break
		}
	}
	slices.Sort(m.With)
	for _, index := range at {
		m.Index = max(m.Index, index)
		votes := make(map[[16]byte]int)
		for _, id := range voters {
			points := others[id]
			if id == self {
				points = own
			}
			if d, ok := digestAt(points, index); ok {
				votes[d]++
			}
		}
		mine, _ := digestAt(own, index)
		for d, n := range votes {
			if d != mine && n > len(voters)/2 {
				m.Odd = true
			}
		}
	}
	return m
}

// oddOneOut reports whether a majority of n nodes agrees on another digest than id's, at the newest index of which id
// tells and a majority agrees.
func oddOneOut(id string, told map[string][]digestPoint, n int) bool {
	for _, p := range slices.Backward(told[id]) {
		votes := make(map[[16]byte]int)
		for _, points := range told {
			if d, ok := digestAt(points, p.index); ok {
				votes[d]++
			}
		}
		for d, agree := range votes {
			if agree > n/2 {
				return d != p.digest
			}
		}
	}
	return false
}
