package node

import (
	"time"

	"kvstore/consensus"
)

// startAutopilot has the leader give learners that keep up a vote, and take it from voters that are dead. It leaves
// alone whom an operator keeps a learner, whose removal is under way, and who has no space to store what it would
// vote for; and it waits while an administrator changes the membership.
func (s *Shard) startAutopilot(deadAfter time.Duration) error {
	return s.group.StartAutopilot(consensus.AutopilotOptions{
		LagMax: promoteLagMax, DeadAfter: deadAfter,
		Permit: func(id string) bool {
			record, _ := s.engine.Member(id)
			return !record.Removed && !record.NoPromote && s.diskOK(id) && s.recovery.over()
		},
		BeginChange: func() (end func(), ok bool) { return s.endChange, s.tryChange() },
	})
}

// autopilotStatus is how the leader judges the members.
type autopilotStatus struct {
	// Healthy: all members answer and keep up.
	Healthy bool `json:"healthy"`
	// FailureTolerance is how many voters may fail without the cluster standing still.
	FailureTolerance int               `json:"failure_tolerance"`
	Servers          []autopilotMember `json:"servers"`
}

// autopilotMember is how the leader judges one member, itself included.
type autopilotMember struct {
	ID      string `json:"id"`
	Voter   bool   `json:"voter"`
	Healthy bool   `json:"healthy"`
	// StableSince is when Healthy last changed, or this leader began to look.
	StableSince time.Time `json:"stable_since"`
	// LastContactMs is how long ago the member last answered; -1 where it has not in this term.
	LastContactMs int64  `json:"last_contact_ms"`
	Lag           uint64 `json:"lag"`
}

// autopilotStatus gives what this leader thinks of the members; nil when it does not lead, or has only just begun.
func (s *Shard) autopilotStatus() *autopilotStatus {
	state, ok := s.group.Autopilot()
	if !ok {
		return nil
	}
	out := &autopilotStatus{Healthy: state.Healthy, FailureTolerance: state.FailureTolerance, Servers: []autopilotMember{}}
	for _, m := range state.Servers {
		contact := int64(-1)
		if m.LastContact >= 0 {
			contact = m.LastContact.Milliseconds()
		}
		out.Servers = append(out.Servers, autopilotMember{m.ID, m.Voter, m.Healthy, m.StableSince.UTC(), contact, m.Lag})
	}
	return out
}
