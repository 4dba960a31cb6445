package peer

import "sync"

// holdings is what the other nodes surely hold: committed entries that they acknowledged or applied, which is
// durable there. A process that comes back with less has lost something that majorities were counted with.
// It is kept in memory, and told on with each pulse, so that all know what one leader was promised.
type holdings struct {
	mu sync.Mutex
	// Guarded by mu.
	of map[string]holding
}

// holding is what is known of one node's data directory.
type holding struct {
	incarnation [16]byte
	// starts is the latest start of it that anything is known of, and index how far that process surely held the
	// log. before is what earlier ones held: what a process has acknowledged since its own hello says nothing
	// against that hello.
	starts, index, before uint64
	// acked is what the process of ackedStarts acknowledged to this node as the leader of ackedTerm. Only the
	// committed part of it counts: an uncommitted one may be replaced by a later leader.
	acked, ackedTerm, ackedStarts uint64
}

// raise notes that process p held the log up to index.
func (h *holding) raise(p process, index uint64) {
	switch {
	case h.incarnation != p.incarnation:
		*h = holding{incarnation: p.incarnation, starts: p.starts, index: index}
	case p.starts > h.starts:
		h.before = max(h.before, h.index)
		h.starts, h.index = p.starts, index
	case p.starts == h.starts:
		h.index = max(h.index, index)
	default:
		h.before = max(h.before, index)
	}
}

// settle moves what is committed of the acknowledgements to what is surely held. n is this node's raft.
func (h *holding) settle(n Node) {
	if h.acked == 0 || n == nil {
		return
	}
	// In this order: a commit index that was read while the term had not changed was reached in that term or
	// before, when the acknowledged entries were those of its leader.
	commit := n.CommitIndex()
	if n.CurrentTerm() == h.ackedTerm {
		h.raise(process{incarnation: h.incarnation, starts: h.ackedStarts}, min(h.acked, commit))
	}
}

// update changes what is known of a node. Nodes beyond peersMax are not remembered.
func (s *holdings) update(id string, f func(*holding)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, there := s.of[id]
	if !there && len(s.of) >= peersMax {
		return
	}
	f(&h)
	s.of[id] = h
}

// forget drops what is known of a node.
func (s *holdings) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, id)
}

// noteAck notes what a follower acknowledged to this node as leader.
func (t *Transport) noteAck(a *Ack) {
	id := string(a.Peer)
	p, ok := t.counted(id)
	if !ok {
		return
	}
	n := t.bound()
	t.holdings.update(id, func(h *holding) {
		h.settle(n)
		switch {
		case h.incarnation != p.incarnation || h.ackedStarts != p.starts || h.ackedTerm < a.Term:
			h.raise(p, 0)
			h.acked, h.ackedTerm, h.ackedStarts = a.Match, a.Term, p.starts
		case h.ackedTerm == a.Term:
			h.acked = max(h.acked, a.Match)
		}
		h.settle(n)
	})
}

// noteHeld notes that a process of node id holds all that is committed up to index.
func (t *Transport) noteHeld(id string, p process, index uint64) {
	if index == 0 || p.starts == 0 || id == t.o.NodeID {
		return
	}
	if known, ok := t.counted(id); !ok || known.incarnation != p.incarnation {
		return
	}
	t.holdings.update(id, func(h *holding) { h.raise(p, index) })
}

// counted returns the process of a node that was let in last; false if its starts are not counted.
func (t *Transport) counted(id string) (process, bool) {
	e, ok := t.book.read().entries[id]
	return e.process(), ok && e.starts > 0 && e.incarnation != [16]byte{}
}

// mustHold returns up to where the sender of h must hold the log, and the term of that entry; zeros if nothing
// is known.
func (t *Transport) mustHold(h *Hello) (index, term uint64) {
	if h.Starts == 0 {
		return 0, 0
	}
	n := t.bound()
	t.holdings.mu.Lock()
	if k, ok := t.holdings.of[h.Source]; ok && k.incarnation == h.Incarnation {
		k.settle(n)
		t.holdings.of[h.Source] = k
		index = k.before
		if h.Starts > k.starts {
			index = max(index, k.index)
		}
	}
	t.holdings.mu.Unlock()
	if index > 0 && n != nil && index <= n.CommitIndex() {
		term, _ = n.EntryTerm(index) // compacted: the index must do
	}
	return index, term
}

// held is what the nodes tell each other of third ones.
type held struct {
	ID          string   `json:"id"`
	Incarnation hexBytes `json:"incarnation"`
	Starts      uint64   `json:"starts"`
	Index       uint64   `json:"index"`
}

// listHeld lists at most heldMax nodes' holdings.
func (t *Transport) listHeld() []held {
	n := t.bound()
	t.holdings.mu.Lock()
	defer t.holdings.mu.Unlock()
	out := make([]held, 0, min(len(t.holdings.of), heldMax))
	for id, h := range t.holdings.of {
		h.settle(n)
		t.holdings.of[id] = h
		if h.index > 0 && len(out) < heldMax {
			out = append(out, held{ID: id, Incarnation: h.incarnation[:], Starts: h.starts, Index: h.index})
		}
	}
	return out
}
