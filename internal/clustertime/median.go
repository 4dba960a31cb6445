package clustertime

import (
	"math"
	"slices"
)

// Medians. Where the number of clocks is even the lower of the two in the middle is taken: of two of which one is wrong
// nobody can tell which, and what expires late does less harm than what expires early.

// wallOffsets lists by how much the voters' wall clocks are ahead of this node's boot time, in order. REQUIRES: mu held.
func (c *Clock) wallOffsets(b int64, r Reading) []int64 {
	all := make([]int64, 0, 8)
	for _, id := range c.voters {
		if id == c.self {
			all = append(all, r.Wall-r.Boot)
		} else if p := c.peers[id]; p != nil && p.wallAt != math.MinInt64 && b-p.wallAt <= wallFresh {
			all = append(all, p.wall)
		}
	}
	slices.Sort(all)
	return all
}

// walls returns the median of the voters' wall clocks, less this node's boot time, and of how many. sure: a majority is
// known, and it is not one of two that disagree. REQUIRES: mu held.
func (c *Clock) walls(b int64, r Reading) (offset int64, sure bool, n int) {
	all := c.wallOffsets(b, r)
	if n = len(all); n == 0 {
		return 0, false, 0
	}
	low, high := all[(n-1)/2], all[n/2]
	if high-low > OffMax {
		return low, false, n
	}
	return (low + high) / 2, n > len(c.voters)/2, n
}

// median returns bounds of the median of the voters' cluster clocks, this node's own included; ok: a majority is known.
// REQUIRES: mu held.
func (c *Clock) median(b int64) (low, high int64, ok bool) {
	low, high, n := c.between(b)
	return low, high, n > len(c.voters)/2
}

// between returns bounds of the median of what the voters have told of their cluster clocks lately, and this node's
// own if it has begun, and how many they are. What each shows now lies between two bounds, so the median lies between the medians
// of these. REQUIRES: mu held.
func (c *Clock) between(b int64) (low, high int64, n int) {
	lows, highs := make([]int64, 0, 8), make([]int64, 0, 8)
	for _, id := range c.voters {
		if id == c.self {
			if c.source != SourceNone {
				lows, highs = append(lows, c.now(b)), append(highs, c.now(b))
			}
		} else if p := c.peers[id]; p != nil && p.time != 0 && b-p.received <= toldFresh {
			lows, highs = append(lows, p.time+b-p.received), append(highs, p.time+b-p.sent)
		}
	}
	if n = len(lows); n == 0 {
		return 0, 0, 0
	}
	slices.Sort(lows)
	slices.Sort(highs)
	return lows[(n-1)/2], highs[(n-1)/2], n
}

// heard tells whether a majority of the voters, this node included, has lately said anything. REQUIRES: mu held.
func (c *Clock) heard(b int64) bool {
	n := 0
	for _, id := range c.voters {
		if p := c.peers[id]; id == c.self || p != nil && b-p.received <= toldFresh {
			n++
		}
	}
	return n > len(c.voters)/2
}

// ceiling returns what a stamp may not exceed; ok is false while fewer than a majority of the voters are known. It
// counts what has passed since they told, and of a boot clock that jumps no more than passMax. REQUIRES: mu held; the
// clock has begun.
func (c *Clock) ceiling(b int64) (most int64, ok bool) {
	all := make([]int64, 0, 8)
	for _, id := range c.voters {
		if id == c.self {
			all = append(all, c.now(b))
		} else if p := c.peers[id]; p != nil && p.time != 0 && c.passed-p.passed <= toldKept {
			// A trip that seems to have taken long may have seen the jump as well.
			all = append(all, p.time+min(p.received-p.sent, tripMax/2)+c.passed-p.passed)
		}
	}
	n := len(all)
	if n <= len(c.voters)/2 {
		return 0, false
	}
	slices.Sort(all)
	return all[(n-1)/2] + OffMax, true
}
