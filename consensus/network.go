package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/consensus/peer"
)

// networkTransport is the transport between nodes, with what only a group needs. Embedding keeps
// RequestPreVote visible, for which raft looks.
type networkTransport struct {
	*peer.Transport
	g *Group
}

var _ transport = networkTransport{}

// openTransport starts the transport. fresh says that this node never took part in a group before.
func (g *Group) openTransport(fresh bool) (transport, error) {
	if g.o.Listener == nil {
		return newSoloTransport(raft.ServerID(g.o.NodeID), raft.ServerAddress(g.o.Address)), nil
	}
	o := peer.Options{
		Listener: g.o.Listener, Address: raft.ServerAddress(g.o.Address), NodeID: g.o.NodeID,
		Incarnation: g.o.Incarnation, Starts: g.o.Starts, Nonce: g.o.Nonce, Lineage: g.o.Lineage, LogEnd: g.logEnd, Group: g.o.Group, Dir: g.o.Dir, Logger: g.log, Clock: g.o.clock,
		HeartbeatTimeout: g.o.HeartbeatTimeout, Timeout: g.o.rpcTimeout, Dial: g.o.dial,
		SnapshotRateBytes: g.o.SnapshotRateBytes, Offer: g.offer,
		Cluster: g.o.Cluster, Record: g.o.Record, Level: g.o.Level, StateLevel: g.o.StateLevel,
		Card: g.o.Card, OnCard: g.o.OnCard, Vitals: g.o.Vitals, OnPulse: g.onPulse, Storing: g.o.Storing,
		OnAck: func(a peer.Ack) {
			at := a.SentAt
			if g.o.broken.sendTime {
				at = int64(g.o.clock.Boot())
			}
			g.onAck(ack{peer: a.Peer, term: a.Term, sentAt: at, match: a.Match})
		},
		OnTimeoutNow: g.revokeLease,
		MayCampaign:  g.mayCampaign,
		Covers:       g.logs.covers,
		HoldVotes:    g.o.timers(g.o.HeartbeatTimeout),
		Receive: func(ctx context.Context, req *raft.InstallSnapshotRequest, stream io.Reader) (peer.Prepared, error) {
			descriptor, discard, err := g.snapshots.receive(ctx, req, stream)
			return peer.Prepared{Descriptor: descriptor, Discard: discard}, err
		},
	}
	if fresh || g.o.broken.voteHold {
		o.HoldVotes = 0 // a node that never heard a leader has promised nothing
	}
	t, err := peer.New(o)
	if err != nil {
		return nil, fmt.Errorf("cannot open the transport: %w", err)
	}
	return networkTransport{t, g}, nil
}

// Pauses between attempts to reach a member.
const (
	retryPauseMin = 10 * time.Millisecond
	retryPauseMax = 100 * time.Millisecond
)

// errDeposed is why a request that raft put together as a leader is not sent.
var errDeposed = errors.New("this node does not lead the term of the request any more")

// leadsOnceStarted is leads for raft's own goroutines, which run before raft is known here.
func (g *Group) leadsOnceStarted(term uint64) bool {
	<-g.started
	return g.leads(term)
}

// AppendEntries implements raft.Transport.
//
// A request with entries goes out only if this node still leads its term when it has been put together:
// raft reads the entry before the first and then the others one by one, on a goroutine that a deposition
// does not stop. If the next leader's entries take the place of the tail in between, the request would
// carry them behind an entry of the old tail, and a follower that holds that one would take them: two logs
// would agree in an entry and differ before it. raft leaves the state of a leader before it touches the
// log, so that whoever leads afterwards has read one log.
//
// While the member cannot be reached, the call goes on trying
// instead of failing: raft waits twice as long after each failure, up to 10 seconds, whatever happens
// meanwhile, and would leave a node that has come back alone for as long. It fails as soon as raft would
// not want it any more. Heartbeats have a rhythm of their own.
//
// raft learns that a follower holds entries only when this node's own disk does: raft counts this node from the moment
// that it has handed the entries to the log (logQueue), and with it commits nothing that is not on this disk.
func (t networkTransport) AppendEntries(id raft.ServerID, address raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	n := len(args.Entries)
	if n > 0 && !t.g.leadsOnceStarted(args.Term) {
		return errDeposed
	}
	err := t.Transport.AppendEntries(id, address, args, resp)
	if n == 0 && args.PrevLogEntry == 0 {
		return err
	}
	for pause := retryPauseMin; err != nil && t.g.wants(id, address, args.Term); pause = min(2*pause, retryPauseMax) {
		select {
		case <-time.After(pause):
		case <-t.g.running.Done():
			return err
		}
		err = t.Transport.AppendEntries(id, address, args, resp)
	}
	if err == nil && n > 0 && !t.g.o.broken.ownDisk {
		err = t.g.logs.queue.await(args.Entries[n-1].Index)
	}
	return err
}

// wants tells whether this node leads term and has a member id at address.
func (g *Group) wants(id raft.ServerID, address raft.ServerAddress, term uint64) bool {
	return g.leadsOnceStarted(term) && slices.ContainsFunc(g.raft.GetConfiguration().Configuration().Servers, func(s raft.Server) bool {
		return s.ID == id && s.Address == address
	})
}

// campaign implements transport.
func (t networkTransport) campaign() error { return t.Campaign() }

// start implements transport.
func (t networkTransport) start(n node) { t.Bind(n) }

// join implements transport.
func (t networkTransport) join(j *Joined) error {
	bound := make([]peer.Bound, len(j.Peers))
	for i, p := range j.Peers {
		bound[i] = peer.Bound{ID: p.ID, Address: p.Address, Incarnation: p.Incarnation}
	}
	return t.SetJoined(j.Cluster, j.History, bound)
}

// met implements transport.
func (t networkTransport) met() bool { return t.Met() }

// found implements transport.
func (t networkTransport) found(ctx context.Context, founders []Member) error {
	list := make([]peer.Founder, len(founders))
	for i, m := range founders {
		list[i] = peer.Founder{ID: m.ID, Address: m.Address}
	}
	if err := t.SetFounders(list); err != nil {
		return err
	}
	err := t.Found(ctx)
	if errors.Is(err, peer.ErrRefused) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

// connections implements transport.
func (t networkTransport) connections() map[string]connection {
	out := make(map[string]connection)
	for _, s := range t.Peers() {
		c := connection{connected: s.Connected, refused: s.Refused}
		if c.refused == "" {
			c.refused = s.Rejected
		}
		c.refusesUs, c.copied, c.givenUp = s.Refused, s.Copied, s.GivenUp
		if s.Stranger {
			c.stranger = s.Rejected
		}
		out[s.ID] = c
	}
	return out
}

// node is what the transport asks of a running group.
type node struct{ g *Group }

// CurrentTerm implements peer.Node.
func (n node) CurrentTerm() uint64 { return n.g.raft.CurrentTerm() }

// Follows implements peer.Node.
func (n node) Follows() bool { return n.g.raft.State() == raft.Follower }

// Applied implements peer.Node.
func (n node) Applied() uint64 { return n.g.sm.Applied() }

// CommitIndex implements peer.Node.
func (n node) CommitIndex() uint64 { return n.g.raft.CommitIndex() }

// EntryTerm implements peer.Node.
func (n node) EntryTerm(index uint64) (uint64, bool) { return n.g.logs.termOf(index) }

// logEnd returns index and term of the last entry that this node holds durably; false if that can't be read, or
// is to be fetched only now: that will reach as far as anything that this node acknowledged.
func (g *Group) logEnd() (index, term uint64, ok bool) {
	for range 3 { // the end may be cut off between the two steps, by a leader whose next entries follow
		var err error
		if index, err = g.logs.LastIndex(); err != nil || index == 0 {
			ok = err == nil
			break
		}
		if term, ok = g.logs.termOf(index); ok {
			break
		}
	}
	// Read after the log: it is emptied for a checkpoint only when that is durable.
	if d, there := g.sm.Durable(); there && d.Index > index {
		return d.Index, d.Term, true
	}
	return index, term, ok && (index > 0 || !g.o.Rebuild)
}

// mayCampaign keeps this node from standing for election while raft overrates its log.
func (g *Group) mayCampaign() error {
	if g.logs.overrated() {
		return errors.New("the log was replaced by a snapshot and has no entry yet")
	}
	return nil
}

// ErrRefused marks the refusal of this node by the others of its group: going on as it is cannot help.
var ErrRefused = errors.New("this node is refused by the others")

// ErrCopied marks an ErrRefused that speaks of the data directory and holds for ever: it is a copy beside which another
// ran, an older one, or has lost what it had acknowledged.
var ErrCopied = errors.New("the data directory is a copy, or an older state")

// Refused returns an error that matches ErrRefused once a majority of the other voters has refused this
// node for good; its text says why and what to do. It is nil as long as there is hope. From the first leader on
// only refusals of this very process count, because of others with copies of its data directory: the rest is
// for the cluster to say, which may just be changing its members. Before the first leader a single voice is enough if it
// goes on in another history of the cluster for which this node was given up: whoever recovered from it declared the
// majority lost, and two nodes of that which come back must not go on with the history that has ended.
func (g *Group) Refused() error {
	sawLeader := g.sawLeader.Load()
	others, copied := 0, 0
	connections := g.transport.connections()
	var texts []string
	for _, id := range g.electors() {
		if id == g.o.NodeID {
			continue
		}
		others++
		if c := connections[id]; c.givenUp && !sawLeader {
			return fmt.Errorf("%w: %s: %s", ErrRefused, id, c.refusesUs)
		}
		if c := connections[id]; c.refusesUs != "" && (c.copied || !sawLeader) {
			if c.copied {
				copied++
			}
			texts = append(texts, id+": "+c.refusesUs)
		}
	}
	if others == 0 || len(texts) <= others/2 {
		return nil
	}
	slices.Sort(texts)
	if copied > others/2 {
		return &copiedError{fmt.Errorf("%w: %s", ErrRefused, strings.Join(texts, "; "))}
	}
	return fmt.Errorf("%w: %s", ErrRefused, strings.Join(texts, "; "))
}

// copiedError matches ErrCopied besides what it wraps, without saying it twice.
type copiedError struct{ error }

func (e *copiedError) Unwrap() error { return e.error }

func (e *copiedError) Is(target error) bool { return target == ErrCopied }

// Strangers returns, by id, the nodes that were last refused here because they belong to another cluster, with
// what they were told. One that was accepted since is not among them.
func (g *Group) Strangers() map[string]string {
	strangers := make(map[string]string)
	for id, c := range g.transport.connections() {
		if c.stranger != "" {
			strangers[id] = c.stranger
		}
	}
	return strangers
}

// electors returns the voters of the latest configuration or, where the log has none yet, the members
// that the cluster told this node.
func (g *Group) electors() []string {
	var ids []string
	for _, m := range g.members() {
		if m.Voter {
			ids = append(ids, m.ID)
		}
	}
	if len(ids) == 0 && g.o.Joined != nil {
		for _, p := range g.o.Joined.Peers {
			ids = append(ids, p.ID)
		}
	}
	return ids
}
