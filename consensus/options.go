package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
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

// Options configures a group. The zero value of a field means its default; Dir, NodeID and Address have
// none. Open copies the struct.
type Options struct {
	// Dir is the directory of this group's log and vote. Created when absent. Never share it.
	Dir string
	// NodeID is this node's stable, unique name; raft votes and counts by it. Changing it on an
	// existing directory is refused.
	NodeID string
	// Address is where other nodes reach this group's transport (host:port). A lone voter only records it.
	Address string
	// Group is the id of the Raft group, used in logs only. Default 0.
	Group uint32
	// Logger receives this package's and raft's log lines. Default slog.Default().
	Logger *slog.Logger

	// HeartbeatTimeout is how long a follower waits for its leader before it asks for votes, and how
	// long a leader goes without a majority before it steps down. Default 600 ms, at least 10 ms. Too
	// small: elections under load.
	HeartbeatTimeout time.Duration
	// ElectionTimeout is how long a candidate waits for votes. Default HeartbeatTimeout; not below it.
	ElectionTimeout time.Duration

	// SegmentBytes is the size at which a log file is closed and the next begun. Default 512 MiB: a
	// rotation costs a metadata commit and a file allocation, which shows as a latency spike. Files are
	// preallocated and the log is deleted by whole files. 64 KiB to 1 GiB.
	SegmentBytes int
	// EntryBytesMax is the largest command. Default 17 MiB: the largest value (16 MiB) with its key,
	// headers and extensions. 1 byte to 60 MiB: raft-wal writes but cannot read more than 64 MiB.
	EntryBytesMax int

	// SnapshotThreshold is how many entries raft lets gather before it asks for a checkpoint and deletes
	// the log behind it. Default 2048.
	SnapshotThreshold uint64
	// SnapshotInterval is how often raft looks (each time between this and twice this). Default 15 s.
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

	// vfs is what the log writes through. Tests put a failing one here.
	vfs types.VFS
	// meta wraps the log's metadata store. Tests put a failing one here.
	meta func(types.MetaStore) types.MetaStore
}

// withDefaults returns o with every unset field at its default.
func (o Options) withDefaults() Options {
	setDefault(&o.HeartbeatTimeout, 600*time.Millisecond)
	setDefault(&o.ElectionTimeout, o.HeartbeatTimeout)
	setDefault(&o.SegmentBytes, 512<<20)
	setDefault(&o.EntryBytesMax, 17<<20)
	setDefault(&o.SnapshotThreshold, 2048)
	setDefault(&o.SnapshotInterval, 15*time.Second)
	setDefault(&o.SnapshotTimeout, time.Minute)
	setDefault(&o.LogBytesMax, 1<<30)
	setDefault(&o.TrailingLogs, 128)
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
	if o.vfs == nil {
		o.vfs = fs.New()
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
	fault(o.SegmentBytes < 64<<10 || o.SegmentBytes > 1<<30, "SegmentBytes %d is outside 64 KiB to 1 GiB", o.SegmentBytes)
	fault(o.EntryBytesMax < 1 || o.EntryBytesMax > 60<<20, "EntryBytesMax %d is outside 1 byte to 60 MiB", o.EntryBytesMax)
	fault(o.SnapshotInterval < 5*time.Millisecond, "SnapshotInterval %v is below 5ms", o.SnapshotInterval)
	fault(o.SnapshotTimeout < 0, "SnapshotTimeout %v is negative", o.SnapshotTimeout)
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
