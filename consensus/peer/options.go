package peer

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/clock"
)

// Ack tells that a follower answered an AppendEntries, heartbeat or not, with success in the term of the
// request. Only then did the follower restart the timer within which it refuses to vote.
type Ack struct {
	// Peer is the follower.
	Peer raft.ServerID
	// Term is the term of the request and of the answer.
	Term uint64
	// SentAt is the boot time (clock.Clock.Boot, nanoseconds) taken before the request was sent. What is
	// concluded from the answer holds from then, not from its arrival.
	SentAt int64
	// Match is the last index up to which the follower's log surely equals the leader's; 0 for heartbeats.
	Match uint64
}

// Node is what the transport needs to know of this node's raft. Its methods are called on the goroutine
// that feeds raft and must neither block nor wait for raft.
type Node interface {
	// CurrentTerm returns raft's current term.
	CurrentTerm() uint64
	// Follows tells whether raft is in the state of a follower.
	Follows() bool
	// Applied returns the index of the last entry that the state machine has applied (not: queued).
	Applied() uint64
	// CommitIndex returns raft's commit index: entries up to it are committed, and stored here.
	CommitIndex() uint64
	// EntryTerm returns the term of the entry at index in this node's log; false if it is not there.
	EntryTerm(index uint64) (term uint64, ok bool)
}

// Prepared is a received snapshot that waits beside the live state.
type Prepared struct {
	// Descriptor is what raft hands to its snapshot store in place of the snapshot's contents. 1 byte to
	// 1 MiB.
	Descriptor []byte
	// Discard removes what was received. It is called when raft did not install it, at most once, and
	// not any more once the transport is closed while raft holds the request.
	Discard func()
}

// Founder is one member of the configuration that a cluster begins with.
type Founder struct {
	// ID is the node id.
	ID string
	// Address is the advertised address of its raft port (host:port).
	Address string
}

// Bound is a node together with the data directory that it is known by.
type Bound struct {
	// ID is the node id.
	ID string
	// Address is the advertised address of its raft port (host:port).
	Address string
	// Incarnation names its data directory.
	Incarnation [16]byte
}

// Status is what this node knows about one other.
type Status struct {
	// ID is the other node.
	ID string
	// Address is where it was last reached, or should be; empty if it has only ever called here.
	Address string
	// Incarnation is the data directory that its id is bound to; zero if none is yet.
	Incarnation [16]byte
	// Connected tells whether a connection that passed the handshake is open, in either direction.
	Connected bool
	// Refused is the text with which that node last refused this one for good, until it accepts it.
	Refused string
	// RefusedAt is when that was; zero if Refused is empty.
	RefusedAt time.Time
	// Copied tells that Refused is of this process, because others ran or run with copies of its data directory:
	// it also holds for a process that was accepted before.
	Copied bool
	// GivenUp tells that Refused is because that node goes on in another history, for which this one was given up.
	GivenUp bool
	// Rejected is the reason for which this node last refused that one (its call, or what answers at its
	// address), until it is accepted.
	Rejected string
	// RejectedAt is when that was; zero if Rejected is empty.
	RejectedAt time.Time
	// Stranger tells that Rejected is because that node belongs to another cluster than this one.
	Stranger bool
}

var (
	// ErrRefused is what a definite refusal between two nodes matches, whichever of them refused: trying
	// again can't help before somebody changed something. The text says what.
	ErrRefused = errors.New("refused")
	// ErrClosed is what calls on a closed transport end with.
	ErrClosed = errors.New("the transport is closed")
)

// Options configures a Transport. New copies the struct. Callbacks may be called from several
// goroutines at once and must not call the transport.
type Options struct {
	// Listener is the raft port. The transport owns it from New on, even if New fails. Required.
	Listener net.Listener
	// Address is this node's advertised address (host:port): what others dial and what raft calls it.
	// Required, at most 256 bytes.
	Address raft.ServerAddress
	// NodeID is this node's name. Required, at most 64 bytes.
	NodeID string
	// Incarnation names this node's data directory. Required (not zero).
	Incarnation [16]byte
	// Starts counts the starts that this data directory has seen, this one included. It must be durable before
	// New is called. By it the others know this process from one with a copy of the directory. 0: nobody
	// counts, and there is no such protection.
	Starts uint64
	// Nonce names this process; 0: one is drawn.
	Nonce uint64
	// Lineage are the nonces of the last starts of this data directory, oldest first, the last of them Nonce; at most
	// LineageMax and Starts. They are durable before New is called. By them the others know an older copy of the
	// directory that has been started more often since. Empty: not told, and there is no such protection.
	Lineage []uint64
	// LogEnd returns index and term of the last entry that this node holds durably, in its log or below a
	// checkpoint; false if it can't tell. It is called for every handshake. Optional; where it does not tell, a
	// node that lost entries is let in.
	LogEnd func() (index, term uint64, ok bool)
	// Group is the raft group that this transport serves; peers of another are refused.
	Group uint32
	// Dir holds the file "peers". It must exist. Required.
	Dir string
	// Logger receives log lines. Default slog.Default().
	Logger *slog.Logger
	// Clock stamps acks. Default clock.System.
	Clock clock.Clock
	// Dial connects to another node's Address; what it returns is closed by the transport, and its deadlines
	// must work. Default: TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// HeartbeatTimeout is raft's. Default 600 ms. The kernel gives a connection up when sent bytes are
	// not acknowledged for three times this, but at least 2 and at most 10 s.
	HeartbeatTimeout time.Duration
	// Timeout bounds a connection attempt with its handshake, each step of a call, and the wait for an
	// answer (longer by a second per 8 MiB sent). Default 3 s, at least 10 ms.
	Timeout time.Duration
	// PulseInterval is the time between two pulses to each other node. Default half of HeartbeatTimeout, but
	// at least 100 ms and at most 1 s: two rates of a clock are not told apart any better by more of them. A
	// process that was silent for three of them, or three times HeartbeatTimeout, is taken for gone.
	PulseInterval time.Duration
	// StallTimeout is how long a snapshot's stream may go without a byte, in either direction. Default
	// 10 s.
	StallTimeout time.Duration
	// InstallTimeout is how long the sender of a snapshot waits for the other node to install what it
	// has received. Default 10 min.
	InstallTimeout time.Duration
	// SnapshotRateBytes bounds what all snapshots that are sent, and what all that are received, take of the
	// network, in bytes a second. Default 64 MiB; at least 64 KiB; negative: no bound.
	SnapshotRateBytes int64
	// HoldBytes is how many bytes of committed entries may wait to be applied here before answers to
	// appends are held back, for at most half of Timeout each. Default 64 MiB.
	HoldBytes int64
	// AppendBytes is the size at which one call of AppendEntries is sent in several pieces; a piece holds
	// at least one entry. Default 16 MiB: it bounds what the follower decodes, and what one deadline is
	// set for.
	AppendBytes int64

	// Cluster returns the cluster's and its history's id once this node knows them. Optional.
	Cluster func() (cluster, history [16]byte, ok bool)
	// Record returns what the replicated member record says about a node. Optional.
	Record func(id string) (incarnation [16]byte, removed, ok bool)
	// Level is the highest behaviour level that this program knows.
	Level uint16
	// StateLevel returns the behaviour level that this node's state needs. Default: 0.
	StateLevel func() uint16
	// Card is told to the other side of each handshake, uninterpreted. At most 4 KiB.
	Card []byte
	// OnCard receives the card of a peer after each handshake that both sides could accept. Optional.
	OnCard func(id string, incarnation [16]byte, card []byte)

	// Vitals returns what the answer to a pulse tells about this node, uninterpreted, at most 4 KiB (more is
	// not sent). Optional.
	Vitals func() []byte
	// OnPulse receives the answers of the others, each node's on a goroutine of its own; it must not block.
	// Optional.
	OnPulse func(Pulse)
	// Storing keeps commands of another node, size > 0 bytes, from being stored here by returning an error.
	// Heartbeats and raft's own small entries pass. It is asked for each message with commands, and once
	// more beforehand if it refused the last. Optional.
	Storing func(size int64) error

	// OnAck receives acks, on raft's replication goroutines; it must not block. Optional.
	OnAck func(Ack)
	// OnTimeoutNow is called before a TimeoutNow is sent: it revokes the read lease of the current term,
	// for good, because the receiver's election ignores it. Optional.
	OnTimeoutNow func()
	// MayCampaign keeps this node from standing for election while it returns an error: it asks for no
	// votes and obeys no TimeoutNow. Optional.
	MayCampaign func() error
	// Covers tells whether index and term are those of the last entry that this node's snapshot covers, while its
	// log is empty: what follows that entry then needs no other comparison. raft's own goes by what it remembers
	// of the log before the snapshot (hashicorp/raft #697). Optional.
	Covers func(index, term uint64) bool
	// HoldVotes is how long (pre-)votes are refused after New. A node that has just restarted does not
	// remember which leader it had promised to wait for. 0 only for a group founded just now.
	HoldVotes time.Duration
	// Receive reads exactly one snapshot from stream into a place beside the live state and verifies it.
	// It may take long; it runs beside everything else, one at a time. It must end soon after ctx does
	// (the stream then fails as well). Absent: snapshots are refused.
	Receive func(ctx context.Context, req *raft.InstallSnapshotRequest, stream io.Reader) (Prepared, error)
	// Offer opens this node's newest durable state for a node that has lost its own (Fetch); one at a time. The
	// stream delimits itself. Absent: nothing is offered.
	Offer func(ctx context.Context, w Want) (Offer, io.ReadCloser, error)
}

// withDefaults returns o with every unset field at its default.
func (o Options) withDefaults() Options {
	setDefault(&o.HeartbeatTimeout, 600*time.Millisecond)
	setDefault(&o.Timeout, 3*time.Second)
	setDefault(&o.PulseInterval, min(max(o.HeartbeatTimeout/2, 100*time.Millisecond), time.Second))
	setDefault(&o.StallTimeout, 10*time.Second)
	setDefault(&o.InstallTimeout, 10*time.Minute)
	setDefault(&o.SnapshotRateBytes, 64<<20)
	setDefault(&o.HoldBytes, 64<<20)
	setDefault(&o.AppendBytes, 16<<20)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Logger = o.Logger.With("package", "peer", "group", o.Group)
	if o.Clock == nil {
		o.Clock = clock.System{}
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	if o.Cluster == nil {
		o.Cluster = func() (cluster, history [16]byte, ok bool) { return }
	}
	if o.Record == nil {
		o.Record = func(string) (incarnation [16]byte, removed, ok bool) { return }
	}
	if o.StateLevel == nil {
		o.StateLevel = func() uint16 { return 0 }
	}
	if o.OnCard == nil {
		o.OnCard = func(string, [16]byte, []byte) {}
	}
	for o.Nonce == 0 {
		var b [8]byte
		rand.Read(b[:]) // never fails: it ends the process if the system has no randomness
		o.Nonce = binary.LittleEndian.Uint64(b[:])
	}
	if o.Vitals == nil {
		o.Vitals = func() []byte { return nil }
	}
	if o.OnPulse == nil {
		o.OnPulse = func(Pulse) {}
	}
	if o.Storing == nil {
		o.Storing = func(int64) error { return nil }
	}
	if o.OnAck == nil {
		o.OnAck = func(Ack) {}
	}
	if o.OnTimeoutNow == nil {
		o.OnTimeoutNow = func() {}
	}
	if o.MayCampaign == nil {
		o.MayCampaign = func() error { return nil }
	}
	if o.Covers == nil {
		o.Covers = func(uint64, uint64) bool { return false }
	}
	if o.Receive == nil {
		o.Receive = func(context.Context, *raft.InstallSnapshotRequest, io.Reader) (Prepared, error) {
			return Prepared{}, errors.New("this node takes no snapshots")
		}
	}
	if o.Offer == nil {
		o.Offer = func(context.Context, Want) (Offer, io.ReadCloser, error) {
			return Offer{}, nil, errors.New("this node offers no snapshots")
		}
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate lists all faults at once. REQUIRES: defaults are filled in.
func (o Options) validate() error {
	var errs []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	fault(o.Listener == nil, "Listener is missing")
	fault(!validID(o.NodeID), "NodeID %q is empty or longer than %d bytes", o.NodeID, idBytesMax)
	fault(!validAddress(string(o.Address)), "Address %q is empty, longer than %d bytes, or holds a %q", o.Address, addressBytesMax, stampSeparator)
	fault(o.Incarnation == [16]byte{}, "Incarnation is zero")
	fault(o.Dir == "", "Dir is empty")
	if err := checkLineage(o.Lineage, o.Starts, o.Nonce); err != nil {
		errs = append(errs, err)
	}
	fault(len(o.Card) > cardBytesMax, "Card of %d bytes is larger than %d", len(o.Card), cardBytesMax)
	fault(o.HeartbeatTimeout < 10*time.Millisecond, "HeartbeatTimeout %v is below 10ms", o.HeartbeatTimeout)
	fault(o.Timeout < 10*time.Millisecond, "Timeout %v is below 10ms", o.Timeout)
	fault(o.PulseInterval < 10*time.Millisecond || o.PulseInterval > 10*time.Second, "PulseInterval %v is outside 10ms to 10s", o.PulseInterval)
	fault(o.StallTimeout < 10*time.Millisecond, "StallTimeout %v is below 10ms", o.StallTimeout)
	fault(o.InstallTimeout < 10*time.Millisecond, "InstallTimeout %v is below 10ms", o.InstallTimeout)
	fault(o.SnapshotRateBytes >= 0 && o.SnapshotRateBytes < 64<<10, "SnapshotRateBytes %d is below 64 KiB", o.SnapshotRateBytes)
	fault(o.HoldVotes < 0, "HoldVotes %v is negative", o.HoldVotes)
	fault(o.HoldBytes < 0, "HoldBytes %d is negative", o.HoldBytes)
	fault(o.AppendBytes < 0, "AppendBytes %d is negative", o.AppendBytes)
	if len(errs) > 0 {
		return fmt.Errorf("invalid transport options: %w", errors.Join(errs...))
	}
	return nil
}
