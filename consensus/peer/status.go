package peer

import (
	"maps"
	"slices"
	"time"
)

// contact is what happened last between this node and another. Guarded by Transport.mu.
type contact struct {
	address    string
	refused    string
	refusedAt  time.Time
	givenUp    bool // the refusal is of a node that was given up for the other's history
	copied     bool // the refusal is of this process, because of others with copies of its data directory
	rejected   string
	rejectedAt time.Time
	stranger   bool // it was refused because it is of another cluster
	// pause: until then a call fails with the kept refusal, without dialling.
	pause time.Time
	// full: the node has refused entries because it has no room for them; see AppendEntries.
	full bool
	// logged is when a refusal in either direction was last logged, and loggedText which.
	logged     time.Time
	loggedText string
}

// contactLocked returns the contact of id; nil if there are too many to remember another. REQUIRES: mu held.
func (t *Transport) contactLocked(id string) *contact {
	c := t.contacts[id]
	if c == nil && len(t.contacts) < peersMax {
		c = &contact{}
		t.contacts[id] = c
	}
	return c
}

// noteAccepted forgets refusals between this node and id. A dial tells that id accepts this node, and
// either direction that this node accepts id.
func (t *Transport) noteAccepted(id, address string, dialled bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.contactLocked(id)
	if c == nil {
		return
	}
	c.address = address
	c.rejected, c.rejectedAt, c.stranger = "", time.Time{}, false
	if c.refused == "" {
		c.pause = time.Time{}
	}
	if dialled {
		c.refused, c.refusedAt, c.copied, c.givenUp, c.pause = "", time.Time{}, false, false, time.Time{}
	}
}

// noteRefused keeps a definite refusal of this node by id.
func (t *Transport) noteRefused(id, address string, r *refusal) {
	text := r.text
	now := time.Now()
	t.mu.Lock()
	log := false
	if c := t.contactLocked(id); c != nil {
		c.address, c.refused, c.refusedAt, c.pause = address, text, now, now.Add(refusedPause)
		c.copied, c.givenUp = r.copied(), r.code == codeGivenUp
		log = c.shouldLog(text, now)
	}
	t.mu.Unlock()
	if log {
		t.log.Error("another node refuses this one", "peer", id, "address", address, "reason", text)
	}
}

// notePassing logs a refusal of this node by id that may be over soon, if somebody ought to know of it.
func (t *Transport) notePassing(id, address string, r *refusal) {
	if !r.copied() {
		return
	}
	t.mu.Lock()
	c := t.contactLocked(id)
	log := c != nil && c.shouldLog(r.text, time.Now())
	t.mu.Unlock()
	if log {
		t.log.Warn("another node refuses this one for now", "peer", id, "address", address, "reason", r.text)
	}
}

// noteRejected keeps that this node refused id for good. pause tells that this node had dialled it.
func (t *Transport) noteRejected(id, address string, r *refusal, pause bool) {
	text := r.text
	now := time.Now()
	t.mu.Lock()
	log := false
	if c := t.contactLocked(id); c != nil {
		c.rejected, c.rejectedAt, c.stranger = text, now, r.code == codeOtherCluster || r.code == codeGivenUp
		if pause {
			c.address, c.pause = address, now.Add(refusedPause)
		}
		log = c.shouldLog(text, now)
	}
	t.mu.Unlock()
	if log {
		t.log.Warn("this node refuses another one", "peer", id, "address", address, "reason", text)
	}
}

func (c *contact) shouldLog(text string, now time.Time) bool {
	if c.loggedText == text && now.Sub(c.logged) < refusalLogEvery {
		return false
	}
	c.logged, c.loggedText = now, text
	return true
}

// paused returns the refusal because of which id is not dialled just now; nil if it may be.
func (t *Transport) paused(id, address string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.contacts[id]
	if c == nil || c.address != address || !time.Now().Before(c.pause) {
		return nil
	}
	if c.refused != "" {
		return refusedBy(id, address, c.refused)
	}
	return rejectedAt(id, address, c.rejected)
}

// Peers tells about all other nodes that this one has met or was told of, sorted by id.
func (t *Transport) Peers() []Status {
	known := t.book.read()
	connected := t.conns.connected()
	now := time.Now()
	all := map[string]Status{}
	for _, f := range known.founders {
		all[f.ID] = Status{Address: f.Address}
	}
	for id, e := range known.entries {
		all[id] = Status{Address: e.address, Incarnation: e.incarnation}
	}
	t.mu.Lock()
	for id, c := range t.contacts {
		s := all[id]
		if c.address != "" {
			s.Address = c.address
		}
		s.Refused, s.RefusedAt, s.Copied, s.GivenUp = c.refused, c.refusedAt, c.copied, c.givenUp
		if !connected[id] || now.Sub(c.rejectedAt) < rejectedShown {
			s.Rejected, s.RejectedAt, s.Stranger = c.rejected, c.rejectedAt, c.stranger
		}
		all[id] = s
	}
	t.mu.Unlock()
	delete(all, t.o.NodeID)
	out := make([]Status, 0, len(all))
	for _, id := range slices.Sorted(maps.Keys(all)) {
		s := all[id]
		s.ID, s.Connected = id, connected[id]
		out = append(out, s)
	}
	return out
}
