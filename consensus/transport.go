package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"kvstore/consensus/peer"
)

// errNoPeers is what every message of a lone voter ends with.
var errNoPeers = errors.New("this node has no peers: it is the only member of its group")

// transport is what a group needs of its transport. Pre-vote must be visible on the value that raft
// gets: raft tests for it with a type assertion and goes without it silently.
type transport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose

	// campaign makes this node stand for election at once.
	campaign() error
	// start lets messages through to raft, which runs from now on.
	start(n node)
	// found waits until all founders of a new group know each other, or one refuses.
	found(ctx context.Context, founders []Member) error
	// met tells whether this node was ever told of others, or met them.
	met() bool
	// join notes what the cluster told about its members.
	join(j *Joined) error
	// connections returns what is known of the other nodes, by id.
	connections() map[string]connection
	// others returns the other nodes that have an address.
	others() []Peer
	// fetch has take read the state of another node.
	fetch(ctx context.Context, other Peer, w peer.Want, take func(context.Context, peer.Offer, io.Reader) error) error
}

// connection is what a transport knows of one other node.
type connection struct {
	connected bool
	refused   string // why one of the two refuses the other for good
	refusesUs string // why the other one refuses this node for good
	copied    bool   // refusesUs is because of other processes with copies of this data directory
	givenUp   bool   // refusesUs is because the other one goes on in another history, for which this node was given up
	stranger  string // why this node refuses the other one, if that is of another cluster
}

// soloTransport has nobody at its other end. The only message it ever delivers is the one by which this
// node tells itself to stand for election.
type soloTransport struct {
	id       raft.ServerID
	addr     raft.ServerAddress
	consumer chan raft.RPC
}

func newSoloTransport(id raft.ServerID, addr raft.ServerAddress) *soloTransport {
	return &soloTransport{id: id, addr: addr, consumer: make(chan raft.RPC, 1)}
}

// campaign feeds raft a TimeoutNow. Without it a lone voter would wait one to two heartbeat timeouts
// for a leader that cannot exist, at each start.
func (t *soloTransport) campaign() error {
	rpc := raft.RPC{
		Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax,
			ID:              []byte(t.id),
			Addr:            []byte(t.addr),
		}},
		RespChan: make(chan raft.RPCResponse, 1), // nobody reads the answer; raft must not block on it
	}
	select {
	case t.consumer <- rpc:
		return nil
	default:
		return fmt.Errorf("cannot campaign: a message to this node waits already")
	}
}

// start implements transport.
func (t *soloTransport) start(node) {}

// found implements transport.
func (t *soloTransport) found(context.Context, []Member) error { return errNoPeers }

// met implements transport.
func (t *soloTransport) met() bool { return false }

// join implements transport.
func (t *soloTransport) join(*Joined) error { return errNoPeers }

// connections implements transport.
func (t *soloTransport) connections() map[string]connection { return nil }

// Consumer implements raft.Transport.
func (t *soloTransport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr implements raft.Transport.
func (t *soloTransport) LocalAddr() raft.ServerAddress { return t.addr }

// EncodePeer implements raft.Transport.
func (t *soloTransport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte {
	return []byte(addr)
}

// DecodePeer implements raft.Transport.
func (t *soloTransport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport and does nothing: the handler would run beside raft's
// main loop and can make a deposed leader append entries in a term that it does not lead
// (hashicorp/raft #695). Heartbeats go through Consumer like everything else.
func (t *soloTransport) SetHeartbeatHandler(func(raft.RPC)) {}

// AppendEntriesPipeline implements raft.Transport.
func (t *soloTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport.
func (t *soloTransport) AppendEntries(raft.ServerID, raft.ServerAddress, *raft.AppendEntriesRequest, *raft.AppendEntriesResponse) error {
	return errNoPeers
}

// RequestVote implements raft.Transport.
func (t *soloTransport) RequestVote(raft.ServerID, raft.ServerAddress, *raft.RequestVoteRequest, *raft.RequestVoteResponse) error {
	return errNoPeers
}

// RequestPreVote implements raft.WithPreVote.
func (t *soloTransport) RequestPreVote(raft.ServerID, raft.ServerAddress, *raft.RequestPreVoteRequest, *raft.RequestPreVoteResponse) error {
	return errNoPeers
}

// InstallSnapshot implements raft.Transport.
func (t *soloTransport) InstallSnapshot(raft.ServerID, raft.ServerAddress, *raft.InstallSnapshotRequest, *raft.InstallSnapshotResponse, io.Reader) error {
	return errNoPeers
}

// TimeoutNow implements raft.Transport.
func (t *soloTransport) TimeoutNow(raft.ServerID, raft.ServerAddress, *raft.TimeoutNowRequest, *raft.TimeoutNowResponse) error {
	return errNoPeers
}

// Close implements raft.WithClose.
func (t *soloTransport) Close() error { return nil }
