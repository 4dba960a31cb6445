package peer

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"kvstore/internal/record"
)

const (
	bookFileName = "peers"
	bookFormat   = 1
	// bookBytesMax holds peersMax peers with their longest names and pasts, and the founders.
	bookBytesMax = 1 << 20
)

// entry is what the book holds about one other node.
type entry struct {
	address     string
	incarnation [16]byte   // zero: none is bound
	past        [][16]byte // replaced or removed, oldest first; at most pastMax
	// starts is the highest count of starts that a process of this incarnation was let in with, mark the nonce of
	// that process; 0: not known. nonce names the process that was let in last: another one than mark only if that
	// does not count.
	starts, mark, nonce uint64
}

// process is the one that was let in last.
func (e *entry) process() process { return process{e.incarnation, e.starts, e.nonce} }

// page is the book's content. Values are replaced, never changed in place.
type page struct {
	founders         []Founder
	hash             [32]byte // of founders, or as members of the joined cluster told it
	founded          bool
	cluster, history [16]byte // of the cluster that this node joined, or in which it has met another node since
	entries          map[string]entry
}

func (p page) clone() page {
	p.entries = maps.Clone(p.entries)
	return p
}

// book is the file "peers": what this node must remember about others across restarts. A change is
// durable before anybody acts on it.
type book struct {
	// Immutable after openBook.
	path        string
	nodeID      string
	incarnation [16]byte
	group       uint32
	write       func(path string, payload []byte) error // tests put a failing one here

	mu sync.Mutex
	// Guarded by mu.
	now page
}

type bookJSON struct {
	Format      int           `json:"format"`
	NodeID      string        `json:"node_id"`
	Incarnation hexBytes      `json:"incarnation"`
	Group       uint32        `json:"group"`
	Founders    []founderJSON `json:"founders,omitempty"`
	Hash        hexBytes      `json:"founders_hash,omitempty"`
	Founded     bool          `json:"founded,omitempty"`
	Cluster     hexBytes      `json:"cluster,omitempty"`
	History     hexBytes      `json:"history,omitempty"`
	Peers       []entryJSON   `json:"peers,omitempty"`
}

type founderJSON struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

type entryJSON struct {
	ID          string     `json:"id"`
	Address     string     `json:"address,omitempty"`
	Incarnation hexBytes   `json:"incarnation,omitempty"`
	Starts      uint64     `json:"starts,omitempty"`
	Nonce       uint64     `json:"nonce,omitempty"`
	Past        []hexBytes `json:"past,omitempty"`
}

// openBook reads the book in dir; absence is an empty book.
func openBook(dir, nodeID string, incarnation [16]byte, group uint32) (*book, error) {
	b := &book{
		path: filepath.Join(dir, bookFileName), nodeID: nodeID, incarnation: incarnation, group: group,
		write: func(path string, payload []byte) error { return record.WriteFileAtomic(path, payload, 0o600) },
		now:   page{entries: map[string]entry{}},
	}
	payload, err := record.ReadFile(b.path, bookBytesMax)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return b, nil
	case err != nil:
		return nil, fmt.Errorf("the file that tells which other nodes to trust is damaged (%w): restore it, or remove this node from the cluster and let it join with an empty data directory", err)
	}
	if b.now, err = b.decode(payload); err != nil {
		return nil, fmt.Errorf("cannot use %q: %w", b.path, err)
	}
	return b, nil
}

func (b *book) decode(payload []byte) (page, error) {
	var j bookJSON
	if err := json.Unmarshal(payload, &j); err != nil {
		return page{}, err
	}
	var own [16]byte
	p := page{founded: j.Founded, entries: make(map[string]entry, len(j.Peers))}
	err := errors.Join(j.Incarnation.into(own[:]), j.Hash.into(p.hash[:]), j.Cluster.into(p.cluster[:]), j.History.into(p.history[:]))
	switch {
	case err != nil:
		return page{}, err
	case j.Format != bookFormat:
		return page{}, fmt.Errorf("it has format %d; this build reads format %d", j.Format, bookFormat)
	case j.NodeID != b.nodeID || own != b.incarnation || j.Group != b.group:
		return page{}, fmt.Errorf("it belongs to group %d of node %q with incarnation %s, not to group %d of %q with %s: it was copied from another data directory", j.Group, j.NodeID, short(own), b.group, b.nodeID, short(b.incarnation))
	case len(j.Peers) > peersMax || len(j.Founders) > foundersMax:
		return page{}, fmt.Errorf("it lists %d peers and %d founders", len(j.Peers), len(j.Founders))
	}
	for _, f := range j.Founders {
		p.founders = append(p.founders, Founder(f))
	}
	for _, e := range j.Peers {
		n := entry{address: e.Address, starts: e.Starts, mark: e.Nonce, nonce: e.Nonce, past: make([][16]byte, len(e.Past))}
		if err := e.Incarnation.into(n.incarnation[:]); err != nil {
			return page{}, err
		}
		for i, past := range e.Past {
			if err := past.into(n.past[i][:]); err != nil {
				return page{}, err
			}
		}
		if _, twice := p.entries[e.ID]; twice || !validID(e.ID) || len(e.Past) > pastMax {
			return page{}, fmt.Errorf("its entry for %.80q is malformed", e.ID)
		}
		p.entries[e.ID] = n
	}
	return p, nil
}

func (b *book) encode(p *page) ([]byte, error) {
	j := bookJSON{
		Format: bookFormat, NodeID: b.nodeID, Incarnation: b.incarnation[:], Group: b.group,
		Hash: p.hash[:], Founded: p.founded, Cluster: p.cluster[:], History: p.history[:],
	}
	for _, f := range p.founders {
		j.Founders = append(j.Founders, founderJSON(f))
	}
	for _, id := range slices.Sorted(maps.Keys(p.entries)) {
		e := p.entries[id]
		out := entryJSON{ID: id, Address: e.address, Incarnation: e.incarnation[:], Starts: e.starts, Nonce: e.mark}
		for i := range e.past {
			out.Past = append(out.Past, e.past[i][:])
		}
		j.Peers = append(j.Peers, out)
	}
	return json.Marshal(j)
}

// read returns the content.
func (b *book) read() page {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

// change replaces the content by what edit makes of a copy, durably, unless edit returns false.
func (b *book) change(edit func(*page) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.now.clone()
	if !edit(&next) {
		return nil
	}
	return b.writeLocked(next)
}

// writeLocked makes next durable. After an error the file may hold either content: nothing was promised
// to anybody on the strength of the new one. REQUIRES: mu held.
func (b *book) writeLocked(next page) error {
	payload, err := b.encode(&next)
	if err == nil {
		err = b.write(b.path, payload)
	}
	if err != nil {
		return fmt.Errorf("cannot write down which nodes to trust: %w", err)
	}
	b.now = next
	return nil
}

// replace returns e with its incarnation moved to the past and the new one in its place.
func (e entry) replace(incarnation [16]byte) entry {
	if e.incarnation != incarnation && e.incarnation != [16]byte{} && !slices.Contains(e.past, e.incarnation) {
		past := append(slices.Clone(e.past), e.incarnation)
		e.past = past[max(0, len(past)-pastMax):]
	}
	if e.incarnation != incarnation {
		e.starts, e.mark, e.nonce = 0, 0, 0
	}
	e.incarnation = incarnation
	return e
}

// certainHash is the hash of the list of founders, unless that is left over from an attempt to found a cluster that
// came to nothing: the list of this start (named) may be a corrected one, and nobody is to be judged by the old.
func (p *page) certainHash(named bool) [32]byte {
	if named || p.founded || p.cluster != [16]byte{} {
		return p.hash
	}
	return [32]byte{}
}

// admit judges h and, if it passes, writes down what has to be remembered before anybody is told. look
// returns what is known from elsewhere. The refusal codeBusy stands for "cannot remember it".
func (b *book) admit(h *Hello, t trust) (*refusal, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.now.entries[h.Source]
	t.founders, t.founded = b.now.certainHash(t.named), b.now.founded
	if t.cluster == ([16]byte{}) {
		t.cluster, t.history = b.now.cluster, b.now.history
	}
	t.bound, t.mark, t.past = old.process(), old.mark, old.past
	if r := t.judge(h); r != nil {
		return r, nil
	}
	if h.Purpose == PurposeFetch {
		// A process that lacks what it had acknowledged is let in for this alone. It is judged anew when it has it.
		return nil, nil
	}
	e := old.replace(h.Incarnation)
	e.address, e.nonce = h.Address, h.Nonce
	if h.Starts != 0 { // judged: not fewer than before
		e.starts, e.mark = h.Starts, h.Nonce
	}
	// The state names the cluster, and may get lost. Then this page alone tells whose state is to be fetched, whatever
	// the page was before: of a node that founded alone, or whose page was lost.
	same := t.cluster != [16]byte{} && t.cluster == h.Cluster // and so is the history: it was judged
	learnHash := same && b.now.hash == [32]byte{} && h.Founders != [32]byte{}
	learn := learnHash || same && (b.now.cluster != t.cluster || b.now.history != t.history)
	durable := learn || e.incarnation != old.incarnation || e.address != old.address || e.starts != old.starts || e.mark != old.mark
	if !durable && e.nonce == old.nonce {
		return nil, nil
	}
	next := b.now.clone()
	if _, there := next.entries[h.Source]; !there && len(next.entries) >= peersMax {
		return refuse(codeBusy, "node %q remembers %d other nodes already and can take no more", t.id, peersMax), nil
	}
	next.entries[h.Source] = e
	if learn {
		next.cluster, next.history = t.cluster, t.history
	}
	if learnHash {
		// A node that joined later knows only the cluster id, a founder that was down since the first
		// minute knows only the founders. With both this node can talk to either.
		next.hash = h.Founders
	}
	if !durable {
		b.now = next
		return nil, nil
	}
	if err := b.writeLocked(next); err != nil {
		return refuse(codeBusy, "node %q cannot write down whom it talks to: %v", t.id, err), err
	}
	return nil, nil
}
