package node

import (
	"slices"
	"sync"

	"kvstore/engine"
	"kvstore/wire"
)

// cardsMax bounds the cards kept: far more than a cluster has nodes, counting those that left it.
const cardsMax = 64

// roster tells who the other nodes are and where they are reached: by the replicated member records, and
// where there is none yet by the cards that nodes show when they connect.
type roster struct {
	// Immutable after openShard.
	self   wire.Member
	engine *engine.Engine // nil while it is opened

	mu sync.Mutex
	// Guarded by mu.
	cards map[string]heldCard // the newest card of each node

	// news holds at most one token: a card came that differs from the last one of its node.
	news chan struct{}
}

// heldCard is a card as it was shown, in which start of its node.
type heldCard struct {
	wire.Member
	starts uint64
}

func newRoster(self wire.Member) *roster {
	return &roster{self: self, cards: make(map[string]heldCard), news: make(chan struct{}, 1)}
}

// onCard keeps the card of a node that has connected. Called on goroutines of the transport. A connection of an
// earlier start may have been slow: of one data directory an older card never takes the place of a newer one.
func (r *roster) onCard(id string, incarnation [16]byte, b []byte) {
	m, starts, ok := decodeCard(id, incarnation, b)
	if !ok {
		return // of another build, or of nothing of ours: a member record is not made of it
	}
	r.mu.Lock()
	old, known := r.cards[id]
	changed := (!known || old.Member != m) && (known || len(r.cards) < cardsMax)
	if known && old.Incarnation == incarnation && starts < old.starts {
		changed = false
	} else if known || changed {
		r.cards[id] = heldCard{m, starts}
	}
	r.mu.Unlock()
	if changed {
		select {
		case r.news <- struct{}{}:
		default:
		}
	}
}

// card gives the newest card of a node.
func (r *roster) card(id string) (m wire.Member, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.cards[id]
	return c.Member, ok
}

// member gives what is known of a node: its record or, where there is none, its card.
func (r *roster) member(id string) (m wire.Member, ok bool) {
	if id == r.self.ID {
		return r.self, true
	}
	if m, ok = r.engine.Member(id); ok {
		return m, true
	}
	return r.card(id)
}

// missing lists the founders that have not connected yet.
func (r *roster) missing(founders []Founder) []string {
	var ids []string
	for _, f := range founders {
		if _, ok := r.card(f.ID); !ok && f.ID != r.self.ID {
			ids = append(ids, f.ID)
		}
	}
	slices.Sort(ids)
	return ids
}
