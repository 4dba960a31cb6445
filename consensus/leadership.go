package consensus

import (
	"time"

	"github.com/hashicorp/raft"
)

// Ready is closed once this node has led a term whose barrier was applied, for the first time. Whether
// it still leads, LeaderTerm tells.
func (g *Group) Ready() <-chan struct{} { return g.ready }

// Leadership receives a token whenever the leader, as known here, or the state of this node's own
// leadership may have changed. Tokens that nobody takes are merged into one; there is one reader.
func (g *Group) Leadership() <-chan struct{} { return g.changes }

// LeaderTerm returns the term that this node leads, and true if everything committed in earlier terms
// is applied here. It costs three atomic loads. It is this node's own belief: another node may already
// lead a later term. What may be read on the strength of it, Lease tells.
func (g *Group) LeaderTerm() (term uint64, ok bool) {
	term = g.leaderTerm.Load()
	if term == 0 || !g.leads(term) {
		return 0, false
	}
	return term, true
}

// Leader returns who leads as far as this node knows, with the address of its transport, and this
// node's current term. id is empty while no leader is known.
func (g *Group) Leader() (id, address string, term uint64) {
	term = g.raft.CurrentTerm()
	a, i := g.raft.LeaderWithID()
	return string(i), string(a), term
}

// watchLeadership follows raft's notifications.
func (g *Group) watchLeadership() {
	for {
		select {
		case leads := <-g.notify:
			g.leadershipMu.Lock()
			g.epoch++
			epoch := g.epoch
			g.leaderTerm.Store(0)
			g.lone.Store(false)
			g.leadershipMu.Unlock()
			g.reads.signal() // whoever waits for a confirmation of the old leadership waits in vain
			g.changed()
			if !leads {
				g.log.Info("lost leadership", "term", g.raft.CurrentTerm())
				continue
			}
			g.metrics.Elections.Add(1)
			// Not in routines: raft may never answer the barrier. Owned by Group; ends with the barrier.
			go g.establish(epoch, g.raft.CurrentTerm(), time.Now())
		case <-g.observed:
			if _, id := g.raft.LeaderWithID(); id != "" {
				g.sawLeader.Store(true)
			}
			g.changed()
		case <-g.stop:
			return
		}
	}
}

// changed leaves a token for Leadership.
func (g *Group) changed() {
	select {
	case g.changes <- struct{}{}:
	default:
	}
}

// establish waits for the barrier of term and then publishes it, unless leadership changed meanwhile.
// raft reports leadership before the term's first entry is committed; until the barrier is applied this
// node may not have applied what earlier leaders acknowledged.
func (g *Group) establish(epoch, term uint64, start time.Time) {
	if g.o.broken.barrier {
		g.publish(epoch, term)
	}
	if err := g.termBarrier(term); err != nil {
		g.log.Debug("the barrier of a new term failed", "term", term, "error", err)
		return
	}
	if g.publish(epoch, term) {
		g.log.Info("leads", "term", term, "barrier", time.Since(start), "last_index", g.raft.LastIndex())
		g.changed()
		g.correctAddress()
	}
}

// publish makes term visible in LeaderTerm if this node still leads it.
func (g *Group) publish(epoch, term uint64) bool {
	g.leadershipMu.Lock()
	defer g.leadershipMu.Unlock()
	if g.epoch != epoch || !g.leads(term) {
		return false
	}
	g.refreshLoneLocked()
	g.leaderTerm.Store(term)
	g.sawLeader.Store(true)
	if !g.readyOnce {
		g.readyOnce = true
		close(g.ready)
	}
	return true
}

// correctAddress records a changed Address. A lone voter may move as it likes; with more members the
// others must learn a new address from whoever moves the node.
func (g *Group) correctAddress() {
	members := g.members()
	if len(members) != 1 || members[0].ID != g.o.NodeID || members[0].Address == g.o.Address {
		return
	}
	g.log.Info("recording the changed address", "from", members[0].Address, "to", g.o.Address)
	// The answer is not awaited: should the change fail, the next term tries again.
	g.raft.AddVoter(raft.ServerID(g.o.NodeID), raft.ServerAddress(g.o.Address), 0, enqueueTimeout)
}
