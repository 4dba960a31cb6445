package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"slices"
	"time"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"

	"kvstore/consensus/peer"
	"kvstore/internal/clock"
)

// maxAppendEntries is how many entries raft gathers into one write (and one fsync), and the depth of
// its proposal queue. 64 keeps one group write bounded while four proposals in flight never wait on it.
const maxAppendEntries = 64

// barriersMax bounds the barriers in flight. Together with ProposalsMax it stays below
// maxAppendEntries, so that a push into raft's queue never has to wait: proposalsCap + barriersMax
// + 1 (the barrier of a new term) < maxAppendEntries.
const (
	barriersMax  = 8
	proposalsCap = 48
)

// membersMax bounds the members of a group: each costs the leader a connection, and each answers to
// every entry.
const membersMax = 16

// LineageMax is how many nonces Options.Lineage may hold.
const LineageMax = peer.LineageMax

// Joined describes the running cluster that a node has been added to.
type Joined struct {
	// Cluster and History are the cluster's ids.
	Cluster, History [16]byte
	// Peers are its members, as it told them.
	Peers []Peer
}

// Peer is another node as a cluster knows it.
type Peer struct {
	// ID is its name, Address where its transport listens.
	ID, Address string
	// Incarnation is the number of the data directory that the id belongs to.
	Incarnation [16]byte
}

// Pulse is what another node tells about its clocks and its health; see Options.OnPulse.
type Pulse = peer.Pulse

// HeartbeatTimeoutDefault is the default of Options.HeartbeatTimeout.
const HeartbeatTimeoutDefault = 600 * time.Millisecond

// Options configures a group. The zero value of a field means its default; Dir, NodeID and Address have
// none. Open copies the struct.
type Options struct {
	// Dir is the directory of this group's log and vote. Created when absent. Never share it.
	Dir string
	// NodeID is this node's stable, unique name; raft votes and counts by it. Changing it on an
	// existing directory is refused.
	NodeID string
	// Address is where other nodes reach this group's transport (host:port).
	Address string
	// Listener is what other nodes connect to; the group owns it from Open on and closes it, also when
	// Open fails. nil: this node has no peers and can never get any (tests of one node).
	Listener net.Listener
	// Incarnation is the number that this data directory was given at its first start. Other nodes bind
	// NodeID to it and refuse the id with any other: a node that lost its disk can't pass for its old self.
	Incarnation [16]byte
	// Starts counts the starts of this data directory, this one included; it is durable before Open is called.
	// By it the other nodes know a copy of the directory from the directory itself. 0: nobody counts, and a
	// copy is not noticed.
	Starts uint64
	// Nonce names this process to the other nodes. 0: it is drawn.
	Nonce uint64
	// Lineage are the nonces of the last starts of this data directory, oldest first, the last of them Nonce, durable
	// before Open is called; at most LineageMax. By them the other nodes know an older copy of the directory
	// even if it was started more often since. Default: not told, and such a copy is not noticed.
	Lineage []uint64
	// Group is the id of the Raft group, used in logs only. Default 0.
	Group uint32
	// Logger receives this package's and raft's log lines. Default slog.Default().
	Logger *slog.Logger

	// Founders are the voters of a new group, this node among them; every founder must be given the same
	// list, in any order. They count only for a directory that holds no group. One or none: this node is
	// the only voter.
	Founders []Member
	// Joined says that this directory belongs to a running cluster, which knows this node already: it
	// never founds a group, whatever Founders says. It counts only until the log has an entry.
	Joined *Joined

	// Starting is called once, when the group is founded, joined or found and just before this node takes
	// part in it: from then on it may vote and acknowledge. An error ends Open. Default: nothing.
	Starting func() error

	// Cluster returns the ids of the cluster and of its history, once the state machine knows them. It
	// may be called from any goroutine, as may the functions below. Default: not known.
	Cluster func() (cluster, history [16]byte, ok bool)
	// Record returns the replicated member record of a node. Default: there is none.
	Record func(id string) (incarnation [16]byte, removed, ok bool)
	// Level is the newest behaviour of the state machine that this program knows. Default 0.
	Level uint16
	// StateLevel returns the behaviour level of the state. Nodes whose programs do not know it are refused.
	// Default 0.
	StateLevel func() uint16
	// Card is what other nodes are told about this one, opaque to this package, at most 4 KiB.
	Card []byte
	// OnCard gets another node's card with every new connection; it must not block. Default: ignored.
	OnCard func(id string, incarnation [16]byte, card []byte)

	// Vitals returns what the other nodes are told about this one's health, several times a second: opaque to
	// this package, at most 4 KiB. It must not block. Default: nothing.
	Vitals func() []byte
	// OnPulse gets what the other nodes tell, each on a goroutine of its own; it must not block. Default:
	// ignored.
	OnPulse func(Pulse)
	// Storing returns an error while this node has no room for a leader's next commands, size > 0 bytes: they
	// are refused, its heartbeats and raft's own small entries are not. The leader asks about ten times a
	// second whether there is room again. Default: there is room.
	Storing func(size int64) error

	// HeartbeatTimeout is how long a follower waits for its leader before it asks for votes, and how
	// long a leader goes without a majority before it steps down. Default 600 ms, at least 10 ms. Too
	// small: elections under load. All nodes must have the same: read leases count on it.
	HeartbeatTimeout time.Duration
	// LeaseDuration is how long after the send time of an acknowledged heartbeat a leader may serve reads
	// without asking. Default 5/6 of HeartbeatTimeout, at most 9/10 of it: what is between them must
	// cover the difference in rate of two nodes' clocks. A negative one forbids leases: each read is
	// confirmed by a majority.
	LeaseDuration time.Duration
	// ElectionTimeout is how long a candidate waits for votes. Default HeartbeatTimeout; not below it.
	ElectionTimeout time.Duration

	// SegmentBytes is the size at which a log file is closed and the next begun. Default 512 MiB: a
	// rotation costs a metadata commit and a file allocation, which shows as a latency spike. Files are
	// preallocated and the log is deleted by whole files. 64 KiB to 1 GiB.
	SegmentBytes int
	// EntryBytesMax is the largest command. Default 17 MiB: the largest value (16 MiB) with its key,
	// headers and extensions. 1 byte to 60 MiB: raft-wal writes but cannot read more than 64 MiB.
	EntryBytesMax int

	// SnapshotThreshold is how many entries gather before a checkpoint is asked for and the log behind it
	// deleted. Default 2048.
	SnapshotThreshold uint64
	// SnapshotInterval is how often that is looked at (each time between this and twice this). Default 15 s.
	SnapshotInterval time.Duration
	// SnapshotTimeout bounds the wait for one durable checkpoint; afterwards the snapshot is given up
	// and tried again. Default 1 min.
	SnapshotTimeout time.Duration
	// LogBytesMax is how many bytes may be appended before a compaction is asked for whatever
	// SnapshotThreshold says. Default 1 GiB.
	LogBytesMax int64
	// TrailingLogs is how many entries stay in the log behind a snapshot, for followers that are a
	// little behind. Default 128; at least 1, so that an empty log beside a checkpoint is always a sign
	// of loss.
	TrailingLogs uint64
	// LogKeepBytes is how much of the log is kept behind the checkpoint, besides TrailingLogs, so that a
	// follower that was away for a while is brought up by entries instead of a whole copy of the state.
	// Default 256 MiB; negative: none.
	LogKeepBytes int64
	// LogKeepBytesMax bounds what is kept behind the checkpoint, beyond LogKeepBytes, of what was appended within
	// twice the time that a copy of the state needs to be sent and installed (the longest of the last hour, at
	// least 10 s): a follower that has just been given one must find what follows it. Default 1 GiB, none if
	// LogKeepBytes is negative; negative: none.
	LogKeepBytesMax int64
	// SnapshotGrace is how long the log that continues a snapshot stays after the snapshot was sent: the follower
	// must install it before it asks for more. Default 1 min, at least 1 ms.
	SnapshotGrace time.Duration
	// SnapshotRateBytes bounds the copies of the state that this node sends, and those that it receives, in bytes
	// of their streams a second. Default 64 MiB; at least 64 KiB; negative: no bound.
	SnapshotRateBytes int64
	// Room returns an error unless so many bytes can be stored besides what must stay free. It is asked before a
	// copy of the state is received, for twice its size, and again each 64 MiB, from any goroutine. Default: there
	// is room.
	Room func(bytes int64) error
	// Rebuild says that the state machine was emptied on purpose, because its state was damaged, while log and
	// vote are good: Open then fetches the state from any other member, however long that takes (ctx bounds it),
	// unless the log reaches back to its first entry or the state machine has a checkpoint again. The caller must
	// say so at each start until one has succeeded.
	Rebuild bool
	// RebuildReach is the entry that a state which Rebuild fetches must cover at least: Inspection.Reach, as it was
	// before the state machine was emptied. 0: not known; with an empty log only a leader is believed then that a
	// majority confirms.
	RebuildReach uint64
	// Unfit tells whether a node's state differs from that of a majority, as far as is known by pulses: it is not
	// fetched. Called by Rebuild alone, which listens for a HeartbeatTimeout before. Optional.
	Unfit func(id string) bool
	// OnRebuild is told about the copy that Rebuild fetches, about once a second. Optional.
	OnRebuild func(Transfer)
	// LogCacheBytes bounds the newest entries that are kept in memory for the followers. Default 32 MiB;
	// negative: none.
	LogCacheBytes int64

	// WriteStallTimeout is how long one write to the log or the vote may take. Beyond it Fatal is
	// called: a leader whose disk hangs still sends heartbeats, and so would block the whole cluster
	// (hashicorp/raft #503). Default 5 s.
	WriteStallTimeout time.Duration
	// ProposalTimeout is when a proposal without an answer is reported as ErrUnknown, give or take a
	// tenth. Default 10 s.
	ProposalTimeout time.Duration
	// ProposalsMax is how many proposals may be unanswered at once; more get ErrBusy. Default 32, at
	// most 48: 2 to 4 are enough to keep the disk busy.
	ProposalsMax int
	// ProposalBytesMax bounds the bytes of unanswered proposals (one is always let in). Default 64 MiB:
	// raft writes all that wait as one batch, and raft-wal keeps a buffer of the largest batch.
	ProposalBytesMax int64

	// Fatal is called once, with the first failure that forbids going on: a failed or stalled write, a
	// damaged entry. No write that the failure touches is acknowledged afterwards. It may be called from
	// any goroutine. Default: log the error and exit with status 1. If it returns, the group stays
	// halted (proposals end as ErrUnknown) until Close.
	Fatal func(error)

	// clock measures leases. Tests put one of their own here.
	clock clock.Clock
	// dial connects to another node's transport; nil: TCP. Tests put a network in memory here.
	dial func(ctx context.Context, address string) (net.Conn, error)
	// timers turns the durations of raft's timers into those of this node, whose clock may run fast or slow.
	// Tests set it.
	timers func(time.Duration) time.Duration
	// broken names obligations of the lease that are not kept, to show that tests notice.
	broken obligations
	// rpcTimeout bounds one message between nodes; 0 is the transport's default.
	rpcTimeout time.Duration
	// crash is called at the named steps of an installation. Tests stop there.
	crash func(step string)
	// logQueueBytes is as the constant of that name.
	logQueueBytes int64

	// vfs is what the log writes through. Tests put a failing one here.
	vfs types.VFS
	// meta wraps the log's metadata store. Tests put a failing one here.
	meta func(types.MetaStore) types.MetaStore
}

// obligations of the lease, one field each. Set: it is not kept.
type obligations struct {
	sendTime   bool // the lease counts from the time before sending
	voteHold   bool // votes are held back after a start
	revocation bool // the lease is given up before leadership is handed over
	barrier    bool // a term's lease begins with its barrier
	bound      bool // the lease is shorter than the heartbeat timeout
	rates      bool // a follower whose clock runs fast does not count
	ownDisk    bool // a follower's acknowledgement counts when this node's own disk holds the entry
}

// withDefaults returns o with every unset field at its default.
func (o Options) withDefaults() Options {
	setDefault(&o.HeartbeatTimeout, HeartbeatTimeoutDefault)
	setDefault(&o.ElectionTimeout, o.HeartbeatTimeout)
	setDefault(&o.LeaseDuration, o.HeartbeatTimeout/6*5)
	setDefault(&o.SegmentBytes, 512<<20)
	setDefault(&o.EntryBytesMax, 17<<20)
	setDefault(&o.SnapshotThreshold, 2048)
	setDefault(&o.SnapshotInterval, 15*time.Second)
	setDefault(&o.SnapshotTimeout, time.Minute)
	setDefault(&o.SnapshotGrace, time.Minute)
	setDefault(&o.LogBytesMax, 1<<30)
	setDefault(&o.TrailingLogs, 128)
	setDefault(&o.LogKeepBytes, 256<<20)
	if o.LogKeepBytes < 0 {
		setDefault(&o.LogKeepBytesMax, -1)
	}
	setDefault(&o.LogKeepBytesMax, 1<<30)
	setDefault(&o.SnapshotRateBytes, 64<<20)
	setDefault(&o.LogCacheBytes, 32<<20)
	setDefault(&o.WriteStallTimeout, 5*time.Second)
	setDefault(&o.ProposalTimeout, 10*time.Second)
	setDefault(&o.ProposalsMax, 32)
	setDefault(&o.ProposalBytesMax, 64<<20)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Logger = o.Logger.With("package", "consensus", "group", o.Group)
	if o.Fatal == nil {
		log := o.Logger
		o.Fatal = func(err error) {
			log.Error("stopping: this failure forbids going on", "error", err)
			os.Exit(1)
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
	if o.Room == nil {
		o.Room = func(int64) error { return nil }
	}
	if o.OnRebuild == nil {
		o.OnRebuild = func(Transfer) {}
	}
	if o.OnCard == nil {
		o.OnCard = func(string, [16]byte, []byte) {}
	}
	if o.clock == nil {
		o.clock = clock.System{}
	}
	if o.timers == nil {
		o.timers = func(d time.Duration) time.Duration { return d }
	}
	if o.crash == nil {
		o.crash = func(string) {}
	}
	setDefault(&o.logQueueBytes, logQueueBytes)
	if o.vfs == nil {
		o.vfs = dataSyncFS{fs.New()}
	}
	if o.meta == nil {
		o.meta = func(m types.MetaStore) types.MetaStore { return m }
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
	fault(o.Dir == "", "Dir is empty")
	fault(o.NodeID == "", "NodeID is empty")
	fault(len(o.NodeID) > candidateBytesMax, "NodeID is longer than %d bytes", candidateBytesMax)
	fault(o.Address == "", "Address is empty")
	fault(len(o.Address) > candidateBytesMax, "Address is longer than %d bytes", candidateBytesMax)
	fault(o.HeartbeatTimeout < 10*time.Millisecond, "HeartbeatTimeout %v is below 10ms", o.HeartbeatTimeout)
	fault(o.ElectionTimeout < o.HeartbeatTimeout, "ElectionTimeout %v is below HeartbeatTimeout %v", o.ElectionTimeout, o.HeartbeatTimeout)
	fault(o.LeaseDuration > o.HeartbeatTimeout/10*9 && !o.broken.bound, "LeaseDuration %v is above nine tenths of HeartbeatTimeout %v", o.LeaseDuration, o.HeartbeatTimeout)
	fault(o.Listener == nil && (len(o.Founders) > 1 || o.Joined != nil), "a group of several nodes needs a Listener")
	fault(len(o.Founders) > membersMax, "%d Founders are more than %d", len(o.Founders), membersMax)
	for i, m := range o.Founders {
		fault(m.ID == "" || m.Address == "", "Founders name a node without id or address")
		fault(slices.ContainsFunc(o.Founders[:i], func(e Member) bool { return e.ID == m.ID || e.Address == m.Address }), "Founders name %s at %s twice", m.ID, m.Address)
	}
	fault(o.SegmentBytes < 64<<10 || o.SegmentBytes > 1<<30, "SegmentBytes %d is outside 64 KiB to 1 GiB", o.SegmentBytes)
	fault(o.EntryBytesMax < 1 || o.EntryBytesMax > 60<<20, "EntryBytesMax %d is outside 1 byte to 60 MiB", o.EntryBytesMax)
	fault(o.SnapshotInterval < 5*time.Millisecond, "SnapshotInterval %v is below 5ms", o.SnapshotInterval)
	fault(o.SnapshotGrace < time.Millisecond, "SnapshotGrace %v is below 1ms", o.SnapshotGrace)
	fault(o.SnapshotTimeout < 0, "SnapshotTimeout %v is negative", o.SnapshotTimeout)
	fault(o.SnapshotRateBytes >= 0 && o.SnapshotRateBytes < 64<<10, "SnapshotRateBytes %d is below 64 KiB", o.SnapshotRateBytes)
	fault(o.LogBytesMax < 0, "LogBytesMax %d is negative", o.LogBytesMax)
	fault(o.TrailingLogs > math.MaxInt64, "TrailingLogs %d is absurd", o.TrailingLogs)
	fault(o.WriteStallTimeout < 0, "WriteStallTimeout %v is negative", o.WriteStallTimeout)
	fault(o.ProposalTimeout < 10*time.Millisecond, "ProposalTimeout %v is below 10ms", o.ProposalTimeout)
	fault(o.ProposalsMax < 1 || o.ProposalsMax > proposalsCap, "ProposalsMax %d is outside 1 to %d", o.ProposalsMax, proposalsCap)
	fault(o.ProposalBytesMax < 1 || o.ProposalBytesMax > 1<<30, "ProposalBytesMax %d is outside 1 byte to 1 GiB", o.ProposalBytesMax)
	if len(errs) > 0 {
		return fmt.Errorf("invalid consensus options: %w", errors.Join(errs...))
	}
	return nil
}
