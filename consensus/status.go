package consensus

import (
	"fmt"
	"slices"

	"github.com/hashicorp/raft"
)

// Role is what a node is to its group at the moment.
type Role uint8

// The roles.
const (
	RoleFollower Role = iota
	RoleCandidate
	RoleLeader
	RoleStopped
)

// String returns the role in lower case.
func (r Role) String() string {
	switch r {
	case RoleCandidate:
		return "candidate"
	case RoleLeader:
		return "leader"
	case RoleStopped:
		return "stopped"
	default:
		return "follower"
	}
}

// Member is one node of the group's configuration.
type Member struct {
	// ID is the node's id and Address where its transport listens, as the configuration has them.
	ID, Address string
	// Voter tells a voter from a learner.
	Voter bool
}

// Status describes the group as this node sees it. Its fields are read one after the other: under load
// they need not fit together to the entry.
type Status struct {
	Role Role
	Term uint64
	// LeaderID and LeaderAddress are empty while no leader is known.
	LeaderID, LeaderAddress string
	// FirstIndex and LastIndex bound the log; FirstIndex is 0 when it is empty.
	FirstIndex, LastIndex uint64
	CommitIndex           uint64
	// AppliedIndex is the last command or configuration that the state machine applied. The commit index
	// may stay above it for good: raft has entries of its own that the state machine never sees.
	AppliedIndex uint64
	// Voters counts the voters of Configuration, the latest configuration, committed or not.
	Voters        int
	Configuration []Member
	// Committed is the newest configuration that is known here to be committed, as of what is applied; nil while
	// none is.
	Committed []Member
	// Pending is Configuration while that is not known to be committed, else nil.
	Pending []Member
	// Lease tells whether this node holds the read lease.
	Lease bool
}

// Status returns a snapshot of the group's state. It takes no lock that writing holds.
func (g *Group) Status() Status {
	s := Status{
		Term:          g.raft.CurrentTerm(),
		LastIndex:     g.raft.LastIndex(),
		CommitIndex:   g.raft.CommitIndex(),
		AppliedIndex:  g.sm.Applied(),
		Configuration: g.members(),
		Lease:         g.Lease(),
	}
	if c := g.committed.Load(); c != nil {
		if s.Committed = c.members; !slices.Equal(c.members, s.Configuration) {
			s.Pending = s.Configuration
		}
	}
	switch g.raft.State() {
	case raft.Leader:
		s.Role = RoleLeader
	case raft.Candidate:
		s.Role = RoleCandidate
	case raft.Shutdown:
		s.Role = RoleStopped
	}
	address, id := g.raft.LeaderWithID()
	s.LeaderID, s.LeaderAddress = string(id), string(address)
	if first, err := g.logs.FirstIndex(); err == nil { // the only error is: closed
		s.FirstIndex = first
	}
	for _, m := range s.Configuration {
		if m.Voter {
			s.Voters++
		}
	}
	return s
}

// committedConfiguration is a configuration as it was committed at index. Immutable.
type committedConfiguration struct {
	index   uint64
	members []Member
}

// voters counts those who vote.
func (c *committedConfiguration) voters() (n int) {
	for _, m := range c.members {
		if m.Voter {
			n++
		}
	}
	return n
}

// members returns the latest configuration.
func (g *Group) members() []Member {
	return membersOf(g.raft.GetConfiguration().Configuration()) // answers from a copy, never fails
}

func membersOf(c raft.Configuration) []Member {
	var out []Member
	for _, s := range c.Servers {
		out = append(out, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return out
}

// voters counts the voters and tells whether this node is a member at all.
func (g *Group) voters() (voters int, member bool) {
	for _, m := range g.members() {
		if m.Voter {
			voters++
		}
		member = member || m.ID == g.o.NodeID
	}
	return voters, member
}

// isVoter tells whether this node has a vote.
func (g *Group) isVoter() bool {
	return slices.ContainsFunc(g.members(), func(m Member) bool { return m.Voter && m.ID == g.o.NodeID })
}

// configured notes a configuration that was committed. (Which data directories of removed members are
// refused is for the replicated member records to say: entries are applied again after a restart, and an
// id may have come back since.)
func (g *Group) configured(index uint64, encoded []byte) {
	c, err := decodeConfiguration(encoded)
	if err != nil {
		panic(fmt.Sprintf("BUG: the configuration committed at %d: %v", index, err))
	}
	now := membersOf(c)
	g.logs.cache.enable(len(now) > 1)
	before := g.committed.Swap(&committedConfiguration{index, now})
	if before == nil {
		return
	}
	for _, m := range before.members {
		if !slices.ContainsFunc(now, func(n Member) bool { return n.ID == m.ID }) {
			g.book.forget(raft.ServerID(m.ID))
			g.clocks.forget(m.ID)
		}
	}
}
