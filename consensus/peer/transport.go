package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Transport is raft's transport between the nodes of a cluster. All methods are safe for concurrent use.
type Transport struct {
	// Immutable after New.
	o          Options
	log        *slog.Logger
	book       *book
	holdUntil  time.Time       // (pre-)votes are refused until then
	ctx        context.Context // ends with Close
	cancel     context.CancelFunc
	out        chan raft.RPC // to raft; unbuffered, see settle
	self       chan raft.RPC // from Campaign
	installs   chan *installJob
	handshakes chan struct{} // one token per handshake under way
	met        chan struct{} // a token when pulse may find a node that it does not know

	// sending and receiving bound what snapshots take of the network and of this node's disk.
	sending, receiving rate

	conns    connections
	callers  callers
	holdings holdings
	wg       sync.WaitGroup // listen, welcome, feed, held answers, pulses

	node       atomic.Pointer[Node]
	led        atomic.Uint64 // the last term in which this node sent AppendEntries: one that it led
	ordered    atomic.Uint64 // the term of the last TimeoutNow that raft was given
	standing   atomic.Uint64 // the number of the last TimeoutNow after which raft was not yet seen as a follower; 0: none
	named      atomic.Bool   // SetFounders was called: the list of founders is that of this start
	installing atomic.Bool   // a snapshot is being received or installed
	serving    atomic.Bool   // a snapshot is being sent to a node that fetches it

	// gate has a token while something is given to raft: all of it passes in order. It is no mutex, because whoever
	// waits for raft waits for a disk, and Close must end that.
	gate chan struct{}
	// Guarded by gate.
	waiting backlog
	orders  uint64 // counts the TimeoutNow that raft was given

	mu sync.Mutex
	// Guarded by mu.
	contacts map[string]*contact
	pulsed   map[string]bool // nodes for which a goroutine sends pulses

	vitalsOnce sync.Once

	closeOnce sync.Once
	closeErr  error
}

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
)

// New starts to listen and to answer handshakes. Calls of other nodes wait until raft consumes them. It
// fails for invalid options, and if the file "peers" is damaged or another node's.
func New(o Options) (*Transport, error) {
	o = o.withDefaults()
	err := o.validate()
	var b *book
	if err == nil {
		b, err = openBook(o.Dir, o.NodeID, o.Incarnation, o.Group)
	}
	if err != nil {
		if o.Listener != nil {
			err = errors.Join(err, o.Listener.Close())
		}
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &Transport{
		o: o, log: o.Logger, book: b, ctx: ctx, cancel: cancel,
		holdUntil:  time.Now().Add(o.HoldVotes),
		out:        make(chan raft.RPC),
		self:       make(chan raft.RPC, 1),
		gate:       make(chan struct{}, 1),
		installs:   make(chan *installJob),
		handshakes: make(chan struct{}, handshakesMax),
		met:        make(chan struct{}, 1),
		conns:      connections{open: map[*conn]struct{}{}},
		callers:    callers{idle: map[callee][]*caller{}},
		holdings:   holdings{of: map[string]holding{}},
		contacts:   map[string]*contact{},
		pulsed:     map[string]bool{},
		sending:    newRate(o.SnapshotRateBytes),
		receiving:  newRate(o.SnapshotRateBytes),
	}
	t.wg.Add(3)
	go t.listen() // owned by Transport; ends with Close
	go t.feed()   // owned by Transport; ends with Close
	go t.pulse()  // owned by Transport; ends with Close
	return t, nil
}

// Bind gives the transport this node's raft. Until then votes, snapshots and TimeoutNow are refused.
func (t *Transport) Bind(n Node) {
	if n == nil {
		panic("BUG: a transport was bound to no node")
	}
	t.node.Store(&n)
}

// bound returns what Bind was given, or nil.
func (t *Transport) bound() Node {
	if p := t.node.Load(); p != nil {
		return *p
	}
	return nil
}

// SetFounders tells with whom this node is to found its cluster, itself included, and keeps the list in
// the file "peers". Nodes that don't know a cluster id yet recognise each other by it. After Founded the
// list is fixed, and another one is an error: the others may have founded the cluster from the first.
func (t *Transport) SetFounders(members []Founder) error {
	if err := checkFounders(members, t.o.NodeID, string(t.o.Address)); err != nil {
		return err
	}
	hash := hashFounders(t.o.Group, members)
	var fixed []Founder
	err := t.book.change(func(p *page) bool {
		if p.founded && p.hash != hash {
			fixed = p.founders
		}
		if p.founded || p.hash == hash {
			return false
		}
		p.founders, p.hash = slices.Clone(members), hash
		return true
	})
	if fixed != nil {
		return fmt.Errorf("cannot found a cluster from %v: all founders had met already, with the list %v: start with that one", members, fixed)
	}
	t.named.Store(err == nil)
	return err
}

// SetJoined writes down to which cluster this node was admitted, and who its members are. Their word
// counts more than what this node may have seen by itself.
func (t *Transport) SetJoined(cluster, history [16]byte, peers []Bound) error {
	if cluster == [16]byte{} {
		return errors.New("cannot join a cluster without an id")
	}
	for _, b := range peers {
		if !validID(b.ID) || !validAddress(b.Address) || b.Incarnation == [16]byte{} {
			return fmt.Errorf("cannot join the cluster: its member %.80q at %.300q is malformed", b.ID, b.Address)
		}
	}
	if len(peers) > peersMax {
		return fmt.Errorf("cannot join the cluster: %d members are more than %d", len(peers), peersMax)
	}
	defer t.lookAgain()
	return t.book.change(func(p *page) bool {
		p.cluster, p.history = cluster, history
		for _, b := range peers {
			if b.ID == t.o.NodeID {
				continue
			}
			e := p.entries[b.ID].replace(b.Incarnation)
			e.address = b.Address
			p.entries[b.ID] = e
		}
		return true
	})
}

// Founded tells whether all founders had been met once: only then may raft be bootstrapped with their
// list. It survives restarts.
func (t *Transport) Founded() bool { return t.book.read().founded }

// Met tells whether the file "peers" names founders or other nodes: this directory then was part of a
// cluster, or of the founding of one.
func (t *Transport) Met() bool {
	p := t.book.read()
	return p.founded || len(p.founders) > 0 || len(p.entries) > 0 || p.cluster != [16]byte{}
}

// Forget is for a node that was removed from the cluster: its data directory is refused from now on,
// another one of that name may come. Its connections are closed.
func (t *Transport) Forget(id string) error {
	err := t.book.change(func(p *page) bool {
		e, there := p.entries[id]
		if !there || e.incarnation == [16]byte{} {
			return false
		}
		p.entries[id] = e.replace([16]byte{})
		return true
	})
	t.mu.Lock()
	delete(t.contacts, id)
	t.mu.Unlock()
	t.holdings.forget(id)
	t.conns.close(func(c *conn) bool { return c.peer == id }, false)
	return err
}

// Campaign makes this node stand for election at once, past all filters: a lone voter need not wait for
// a leader that cannot exist. It fails if that was asked already and raft has not seen it yet.
func (t *Transport) Campaign() error {
	rpc := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: t.header()},
		RespChan: make(chan raft.RPCResponse, 1), // nobody reads the answer; raft must not block on it
	}
	select {
	case t.self <- rpc:
		return nil
	default:
		return errors.New("cannot campaign: a message to this node waits already")
	}
}

// header is that of messages which this node makes up itself.
func (t *Transport) header() raft.RPCHeader {
	return raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(t.o.NodeID),
		Addr:            []byte(t.o.Address),
	}
}

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.out }

// LocalAddr implements raft.Transport.
func (t *Transport) LocalAddr() raft.ServerAddress { return t.o.Address }

// EncodePeer implements raft.Transport.
func (t *Transport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer implements raft.Transport.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport and does nothing: the handler would run beside raft's
// main loop and can make a deposed leader append entries in a term that it does not lead
// (hashicorp/raft #695). Heartbeats go through Consumer like everything else.
func (t *Transport) SetHeartbeatHandler(func(raft.RPC)) {}

// Close implements raft.WithClose: no byte leaves or enters this node any more once it returns. A
// snapshot that is being received is given up; Close waits until Receive has returned.
func (t *Transport) Close() error {
	t.closeOnce.Do(func() {
		t.cancel()
		err := t.o.Listener.Close()
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		t.closeErr = err
		t.conns.close(func(*conn) bool { return true }, true)
		t.wg.Wait()
	})
	return t.closeErr
}
