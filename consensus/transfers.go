package consensus

import (
	"cmp"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Direction says which way a copy of the state goes.
type Direction string

// The directions.
const (
	// DirectionSend is to another node.
	DirectionSend Direction = "send"
	// DirectionReceive is from the leader, which found this node too far behind.
	DirectionReceive Direction = "receive"
	// DirectionFetch is from any node, because this one has lost its state. See Options.Rebuild.
	DirectionFetch Direction = "fetch"
)

// Transfer is a copy of the state that is under way between this node and another one.
type Transfer struct {
	// ID is the other node.
	ID string
	// Direction tells which way it goes, from this node's side.
	Direction Direction
	// Index is the last entry that the state covers.
	Index uint64
	// Bytes are those of the stream so far, compressed as it is.
	Bytes uint64
	// Records and RecordBytes are how much of the state the stream held so far, TotalRecords and TotalBytes
	// how much it holds in all, about; all 0 if the state machine doesn't tell.
	Records, RecordBytes     uint64
	TotalRecords, TotalBytes uint64
	// StartedAt is when it began.
	StartedAt time.Time
	// RateBytes is how many bytes a second it made since.
	RateBytes uint64
	// Streamed says that the stream has ended: what is left is to check and to install.
	Streamed bool
}

// SnapshotProgress tells how much of a state has gone through a stream, and how much there is in all, about.
type SnapshotProgress struct {
	// Records and Bytes have gone through.
	Records, Bytes uint64
	// TotalRecords and TotalBytes are all that the state holds.
	TotalRecords, TotalBytes uint64
}

// A state machine that counts shows it by these methods: the first on the stream that OpenSnapshot returns, the
// second on itself, about the snapshot that is being received, if there is one.
type (
	sendingProgress interface {
		Progress() SnapshotProgress
	}
	receivingProgress interface {
		Receiving() (SnapshotProgress, bool)
	}
)

const (
	// restoreMin is the least time that a follower is taken to need for a copy of the state.
	restoreMin = 10 * time.Second
	// restoreMemory is for how long the longest one counts.
	restoreMemory = time.Hour
	// restoresMax bounds how many are remembered.
	restoresMax = 64
)

// transfers are the copies of the state under way, and how long the last ones took.
type transfers struct {
	mu sync.Mutex
	// Guarded by mu.
	active   map[*transfer]struct{}
	restores []restore // newest last
}

// restore is a copy of the state that was made and installed.
type restore struct {
	ended time.Time
	took  time.Duration
}

// transfer is one copy under way.
type transfer struct {
	// Immutable.
	of        *transfers
	id        string
	direction Direction
	index     uint64
	started   time.Time
	progress  func() SnapshotProgress
	counted   *atomic.Uint64 // the metric

	bytes    atomic.Uint64
	streamed atomic.Bool
}

// begin notes a copy; end must follow.
func (t *transfers) begin(id string, d Direction, index uint64, counted *atomic.Uint64, progress func() SnapshotProgress) *transfer {
	x := &transfer{of: t, id: id, direction: d, index: index, started: time.Now(), progress: progress, counted: counted}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active == nil {
		t.active = make(map[*transfer]struct{})
	}
	t.active[x] = struct{}{}
	return x
}

// end notes the end of a copy. Only the first call counts. installed: it has become the receiver's state.
func (x *transfer) end(installed bool) {
	t := x.of
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, there := t.active[x]; !there {
		return
	}
	delete(t.active, x)
	if !installed {
		return
	}
	now := time.Now()
	t.restores = slices.DeleteFunc(t.restores, func(r restore) bool { return now.Sub(r.ended) > restoreMemory })
	if len(t.restores) == restoresMax {
		// The shortest goes: the longest is what counts.
		shortest := slices.MinFunc(t.restores, func(a, b restore) int { return cmp.Compare(a.took, b.took) })
		t.restores = slices.DeleteFunc(t.restores, func(r restore) bool { return r == shortest })
	}
	t.restores = append(t.restores, restore{now, now.Sub(x.started)})
}

// longest is how long it takes to send a copy of the state and to install it, by the longest of late, those
// under way included.
func (t *transfers) longest() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	took := restoreMin
	for _, r := range t.restores {
		if now.Sub(r.ended) <= restoreMemory {
			took = max(took, r.took)
		}
	}
	for x := range t.active {
		took = max(took, now.Sub(x.started))
	}
	return took
}

// list describes what is under way, oldest first.
func (t *transfers) list() []Transfer {
	t.mu.Lock()
	var all []*transfer
	for x := range t.active {
		all = append(all, x)
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b *transfer) int { return a.started.Compare(b.started) })
	var out []Transfer
	for _, x := range all {
		out = append(out, x.describe())
	}
	return out
}

func (x *transfer) describe() Transfer {
	p := x.progress()
	d := Transfer{
		ID: x.id, Direction: x.direction, Index: x.index, Bytes: x.bytes.Load(), Streamed: x.streamed.Load(),
		Records: p.Records, RecordBytes: p.Bytes, TotalRecords: p.TotalRecords, TotalBytes: p.TotalBytes, StartedAt: x.started,
	}
	if passed := time.Since(x.started).Seconds(); passed > 0 {
		d.RateBytes = uint64(float64(d.Bytes) / passed)
	}
	return d
}

// reader counts what is read from r.
func (x *transfer) reader(r io.Reader) io.Reader { return &countedReader{x, r} }

type countedReader struct {
	x *transfer
	r io.Reader
}

// Read implements io.Reader.
func (c *countedReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.x.bytes.Add(uint64(n))
	c.x.counted.Add(uint64(n))
	if err == io.EOF {
		c.x.streamed.Store(true)
	}
	return n, err
}

// Transfers lists the copies of the state that are under way between this node and others, oldest first.
func (g *Group) Transfers() []Transfer { return g.snapshots.transfers.list() }

// InstallSnapshot implements raft.Transport: it notes how long it takes, until the other node has installed it.
func (t networkTransport) InstallSnapshot(id raft.ServerID, address raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	s := t.g.snapshots
	x := s.transfers.begin(string(id), DirectionSend, args.LastLogIndex, &s.metrics.SnapshotBytesSent, sendingOf(data))
	t.g.log.Info("sending a copy of the state", "peer", id, "index", args.LastLogIndex, "bytes", args.Size)
	err := t.Transport.InstallSnapshot(id, address, args, resp, x.reader(data))
	x.end(err == nil && resp.Success)
	t.g.log.Info("sent a copy of the state", "peer", id, "index", args.LastLogIndex, "installed", err == nil && resp.Success,
		"stream_bytes", x.bytes.Load(), "duration", time.Since(x.started))
	return err
}

// sendingOf returns what tells how far a stream that is being sent has got.
func sendingOf(stream io.Reader) func() SnapshotProgress {
	if p, ok := stream.(sendingProgress); ok {
		return p.Progress
	}
	return func() SnapshotProgress { return SnapshotProgress{} }
}

// receiving tells how far the state machine has got with what it receives.
func (s *snapshotStore) receiving() SnapshotProgress {
	if m, ok := s.sm.(receivingProgress); ok {
		if p, ok := m.Receiving(); ok {
			return p
		}
	}
	return SnapshotProgress{}
}
