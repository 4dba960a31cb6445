package node

import (
	"kvstore/consensus"
	"kvstore/internal/clock"
	"kvstore/internal/clustertime"
)

// The cluster's clock: internal/clustertime has the rules, this file feeds it with what this node's clocks show, with
// what other nodes tell with their pulses, and with who votes and leads. What others are told is in the vitals.

// readClocks reads this node's clocks.
func readClocks() clustertime.Reading { return clustertime.Read(clock.System{}) }

// onPulse takes what another node told of its clocks and of itself. Called on goroutines of the transport.
func (s *Shard) onPulse(p consensus.Pulse) {
	v := s.health.hear(p.Peer, p.Incarnation, p.ReceivedAt, p.Vitals)
	s.time.Hear(clustertime.Sample{
		Peer: p.Peer, Incarnation: p.Incarnation, Wall: p.Wall, Time: v.Time, Term: v.Term,
		Sent: p.SentAt / 1000, Received: p.ReceivedAt/1000 + 1, // what it showed lies between the two, rounded outwards
	})
}

// tickTime goes on with the cluster's clock. voters are those of the newest configuration.
func (s *Shard) tickTime(voters []string) {
	term, _ := s.group.LeaderTerm()
	s.time.Tick(readClocks(), voters, term, s.engine.Applied().Time)
}

// beginTime has a new leader begin with the cluster's clock if it has not, without waiting for the next tick. It reports
// whether it has begun.
func (s *Shard) beginTime() bool {
	if !s.time.Begun() {
		var voters []string
		for _, m := range s.group.Status().Configuration {
			if m.Voter {
				voters = append(voters, m.ID)
			}
		}
		s.tickTime(voters)
	}
	return s.time.Begun()
}

// logTime is the time up to which records have expired, or will have with the next entry, Unix µs.
func (s *Shard) logTime() int64 {
	return max(s.time.Stamp(readClocks()), s.engine.Applied().Time)
}

// wallSkew returns by how many milliseconds this node's wall clock is ahead of the median of the voters'; see
// clustertime.
func (s *Shard) wallSkew() (ms int64, ok bool) {
	us, ok := s.time.WallSkew(readClocks())
	return us / 1000, ok
}

// clockStatus is the cluster's clock as this node knows it.
type clockStatus struct {
	// OffsetMs is by how much the cluster's time is ahead of this node's time of day.
	OffsetMs int64 `json:"offset_ms"`
	// Source tells what it began with: learned, median or wall; empty: it has not begun.
	Source clustertime.Source `json:"source"`
	// SkewMs is by how much this node's view of it is ahead of the median of the voters'; null while that is not known.
	SkewMs *int64 `json:"skew_ms"`
}

func (s *Shard) clockStatus() clockStatus {
	st := s.time.Status(readClocks())
	out := clockStatus{OffsetMs: st.Offset / 1000, Source: st.Source}
	if st.SkewKnown {
		ms := st.Skew / 1000
		out.SkewMs = &ms
	}
	return out
}
