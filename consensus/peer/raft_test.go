package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// listFSM keeps the commands that were applied. Its snapshot is a stream that delimits itself.
type listFSM struct {
	mu sync.Mutex
	// Guarded by mu.
	list     []string
	applied  uint64
	restored int
}

func (f *listFSM) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list, f.applied = append(f.list, string(l.Data)), l.Index
	return nil
}

func (f *listFSM) state() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list)
}

func (f *listFSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := binary.LittleEndian.AppendUint64(nil, f.applied)
	b = append(b, strings.Join(f.list, "\n")...)
	return listSnapshot(append(binary.LittleEndian.AppendUint64(nil, uint64(len(b))), b...)), nil
}

func (f *listFSM) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = binary.LittleEndian.Uint64(b[8:])
	f.list = strings.Split(string(b[16:]), "\n")
	f.restored++
	return nil
}

type listSnapshot []byte

func (s listSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}
func (listSnapshot) Release() {}

// flakyLog fails StoreLogs as often as it is told to.
type flakyLog struct {
	*raft.InmemStore
	fail atomic.Int64
}

func (l *flakyLog) StoreLogs(logs []*raft.Log) error {
	if l.fail.Add(-1) >= 0 {
		return errors.New("injected")
	}
	return l.InmemStore.StoreLogs(logs)
}

// member is one real node.
type member struct {
	t     *testing.T
	o     Options
	tr    *Transport
	raft  *raft.Raft
	fsm   *listFSM
	log   *flakyLog
	snaps *raft.InmemSnapshotStore
	down  bool
}

func (m *member) CurrentTerm() uint64 { return m.raft.CurrentTerm() }
func (m *member) Follows() bool       { return m.raft.State() == raft.Follower }
func (m *member) Applied() uint64 {
	m.fsm.mu.Lock()
	defer m.fsm.mu.Unlock()
	return m.fsm.applied
}
func (m *member) CommitIndex() uint64 { return m.raft.CommitIndex() }
func (m *member) EntryTerm(i uint64) (uint64, bool) {
	var l raft.Log
	err := m.log.GetLog(i, &l)
	return l.Term, err == nil
}

// receiveList hands the whole snapshot on as its own descriptor.
func receiveList(_ context.Context, _ *raft.InstallSnapshotRequest, s io.Reader) (Prepared, error) {
	var size [8]byte
	if _, err := io.ReadFull(s, size[:]); err != nil {
		return Prepared{}, err
	}
	var b bytes.Buffer
	b.Write(size[:])
	_, err := io.CopyN(&b, s, int64(binary.LittleEndian.Uint64(size[:])))
	return Prepared{Descriptor: b.Bytes()}, err
}

// start runs raft on an open transport.
func (m *member) start() {
	m.t.Helper()
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(m.o.NodeID)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	c.CommitTimeout = 5 * time.Millisecond
	c.TrailingLogs = 1
	c.SnapshotThreshold = 1 << 40
	c.Logger = hclog.New(&hclog.LoggerOptions{Output: io.Discard})
	var err error
	if m.raft, err = raft.NewRaft(c, m.fsm, m.log, m.log, m.snaps, m.tr); err != nil {
		m.t.Fatal(err)
	}
	m.tr.Bind(m)
	m.down = false
}

// stop closes the node as a killed process ends: first of all it is silent.
func (m *member) stop() {
	m.t.Helper()
	if m.down {
		return
	}
	m.down = true
	if err := m.tr.Close(); err != nil {
		m.t.Error(err)
	}
	if err := m.raft.Shutdown().Error(); err != nil {
		m.t.Error(err)
	}
}

// restart brings a stopped node back with its log.
func (m *member) restart() {
	m.t.Helper()
	m.o.Listener = relisten(m.t, m.o.Address)
	m.fsm = &listFSM{}
	m.tr = open(m.t, m.o)
	m.start()
}

// cluster founds n real nodes.
func cluster(t *testing.T, n int, change func(i int, o *Options)) []*member {
	t.Helper()
	all, list := foundersOptions(t, n)
	var members []*member
	var waits []<-chan error
	for i := range all {
		o := &all[i]
		o.HeartbeatTimeout = 200 * time.Millisecond
		o.Receive = receiveList
		if change != nil {
			change(i, o)
		}
		list[i].Address = string(o.Address)
	}
	for _, o := range all {
		tr, done := found(t, o, list)
		o.HoldVotes = 200 * time.Millisecond // from the first restart on
		members = append(members, &member{t: t, o: o, tr: tr, fsm: &listFSM{}, log: &flakyLog{InmemStore: raft.NewInmemStore()}, snaps: raft.NewInmemSnapshotStore()})
		waits = append(waits, done)
	}
	var c raft.Configuration
	for _, f := range list {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(f.ID), Address: raft.ServerAddress(f.Address)})
	}
	for i, m := range members {
		if err := <-waits[i]; err != nil {
			t.Fatal(err)
		}
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(m.o.NodeID)
		conf.Logger = hclog.NewNullLogger()
		if err := raft.BootstrapCluster(conf, m.log, m.log, m.snaps, m.tr, c); err != nil {
			t.Fatal(err)
		}
		m.start()
		t.Cleanup(m.stop)
	}
	return members
}

func leaderOf(t *testing.T, members []*member) *member {
	t.Helper()
	var leader *member
	eventually(t, "there is a leader", func() bool {
		leader = nil
		for _, m := range members {
			if !m.down && m.raft.State() == raft.Leader && m.raft.VerifyLeader().Error() == nil {
				leader = m
			}
		}
		return leader != nil
	})
	return leader
}

// write commits a command through whoever leads.
func write(t *testing.T, members []*member, data string) {
	t.Helper()
	eventually(t, "written: "+data, func() bool {
		return leaderOf(t, members).raft.Apply([]byte(data), time.Second).Error() == nil
	})
}

// agreeOn waits until all that run have the last command, and compares them.
func agreeOn(t *testing.T, members []*member, last string) {
	t.Helper()
	var want []string
	for _, m := range members {
		if m.down {
			continue
		}
		eventually(t, m.o.NodeID+" has "+last, func() bool {
			got := m.fsm.state()
			return len(got) > 0 && got[len(got)-1] == last
		})
		if got := m.fsm.state(); want == nil {
			want = got
		} else if !slices.Equal(got, want) {
			t.Fatalf("%s has %v, another one %v", m.o.NodeID, got, want)
		}
	}
}

func others(members []*member, m *member) []*member {
	var out []*member
	for _, o := range members {
		if o != m {
			out = append(out, o)
		}
	}
	return out
}

func TestRaft_ThreeNodes_ElectReplicateAndSurviveOneLess(t *testing.T) {
	var acks [3]atomic.Int64
	members := cluster(t, 3, func(i int, o *Options) { o.OnAck = func(Ack) { acks[i].Add(1) } })
	for i := range 20 {
		write(t, members, fmt.Sprint("a", i))
	}
	agreeOn(t, members, "a19")
	first := leaderOf(t, members)
	if acks[slices.Index(members, first)].Load() == 0 {
		t.Error("the leader got no acks")
	}
	first.stop()
	write(t, members, "b")
	agreeOn(t, members, "b")
	first.restart()
	write(t, members, "c")
	agreeOn(t, members, "c")
	// Every node once more, one after the other, the leader among them.
	for i, m := range members {
		m.stop()
		write(t, members, fmt.Sprint("d", i))
		m.restart()
		agreeOn(t, members, fmt.Sprint("d", i))
	}
}

func TestRaft_TransferOfLeadership_WorksThroughTheStamps(t *testing.T) {
	var revoked atomic.Int64
	members := cluster(t, 3, func(_ int, o *Options) { o.OnTimeoutNow = func() { revoked.Add(1) } })
	write(t, members, "a")
	for i := range 3 {
		old := leaderOf(t, members)
		to := others(members, old)[i%2]
		eventually(t, "transferred", func() bool {
			return old.raft.LeadershipTransferToServer(raft.ServerID(to.o.NodeID), to.o.Address).Error() == nil
		})
		eventually(t, "the other one leads", func() bool { return to.raft.State() == raft.Leader })
		write(t, members, fmt.Sprint("b", i))
		agreeOn(t, members, fmt.Sprint("b", i))
	}
	if revoked.Load() < 3 {
		t.Errorf("the lease was revoked %d times", revoked.Load())
	}
}

// Goal: answers without success never stop replication to a follower for good, as they do in the library's
// pipeline (hashicorp/raft #612).
func TestRaft_FollowerFailsToStore_ReplicationGoesOn(t *testing.T) {
	members := cluster(t, 3, nil)
	write(t, members, "first")
	for i := range 5 {
		follower := others(members, leaderOf(t, members))[i%2]
		follower.log.fail.Store(3)
		for k := range 10 {
			write(t, members, fmt.Sprintf("%d-%d", i, k))
		}
		agreeOn(t, members, fmt.Sprintf("%d-9", i))
	}
}

func TestRaft_FollowerBeyondTheLog_ComesBackBySnapshot(t *testing.T) {
	members := cluster(t, 3, nil)
	write(t, members, "first")
	agreeOn(t, members, "first")
	lost := others(members, leaderOf(t, members))[0]
	lost.stop()
	for i := range 50 {
		write(t, members, fmt.Sprint("while away ", i))
	}
	for _, m := range others(members, lost) {
		eventually(t, "applied", func() bool { s := m.fsm.state(); return s[len(s)-1] == "while away 49" })
		if err := m.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	lost.restart()
	write(t, members, "last")
	agreeOn(t, members, "last")
	lost.fsm.mu.Lock()
	defer lost.fsm.mu.Unlock()
	if lost.fsm.restored == 0 {
		t.Error("it came back without the snapshot")
	}
}

// Goal: a node that was taken out of the configuration, does not know it, and asks for votes for ever in ever
// higher terms, also as if a leader had ordered it to, neither unseats the leader nor moves its term; from the
// moment that it is forgotten as well, it does not get through at all.
func TestRaft_RemovedNodeCampaignsForEver_NobodyMoves(t *testing.T) {
	members := cluster(t, 3, nil)
	write(t, members, "a")
	agreeOn(t, members, "a")
	leader := leaderOf(t, members)
	stay := others(members, others(members, leader)[0])
	removed := others(members, leader)[0]
	if err := leader.raft.RemoveServer(raft.ServerID(removed.o.NodeID), 0, time.Second).Error(); err != nil {
		t.Fatal(err)
	}
	write(t, stay, "b") // both know the new configuration
	agreeOn(t, stay, "b")
	term := leader.raft.CurrentTerm()
	campaign := func(i int) (answered, refused int) {
		for _, m := range stay {
			pre := &raft.RequestPreVoteRequest{RPCHeader: removed.tr.header(), Term: term + uint64(i), LastLogIndex: 1 << 40, LastLogTerm: term + uint64(i)}
			var granted raft.RequestPreVoteResponse
			if err := removed.tr.RequestPreVote(raft.ServerID(m.o.NodeID), m.o.Address, pre, &granted); err == nil && granted.Granted {
				t.Errorf("%s grants a pre-vote", m.o.NodeID)
			}
			for _, ordered := range []bool{false, true} {
				req := &raft.RequestVoteRequest{RPCHeader: removed.tr.header(), Term: term + uint64(i), LastLogIndex: 1 << 40, LastLogTerm: term + uint64(i), LeadershipTransfer: ordered}
				removed.tr.ordered.Store(req.Term - 1) // so that its own side lets the claim through
				var resp raft.RequestVoteResponse
				err := removed.tr.RequestVote(raft.ServerID(m.o.NodeID), m.o.Address, req, &resp)
				switch {
				case errors.Is(err, ErrRefused):
					refused++
				case err == nil && resp.Granted:
					t.Errorf("%s grants a vote", m.o.NodeID)
				case err == nil:
					answered++
				}
			}
		}
		return answered, refused
	}
	for i := 1; i <= 100; i++ {
		if answered, _ := campaign(i); answered != 2*len(stay) {
			t.Fatalf("%d answers to %d requests", answered, 2*len(stay))
		}
		if i%20 == 0 {
			if err := leader.raft.Apply([]byte(fmt.Sprint("c", i)), time.Second).Error(); err != nil {
				t.Fatalf("after %d campaigns: %v", i, err)
			}
		}
	}
	for _, m := range stay {
		if got := m.raft.CurrentTerm(); got != term {
			t.Errorf("%s is in term %d, was in %d", m.o.NodeID, got, term)
		}
		if err := m.tr.Forget(removed.o.NodeID); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it is refused everywhere", func() bool {
		_, refused := campaign(200)
		return refused == 2*len(stay)
	})
	if err := leader.raft.Apply([]byte("d"), time.Second).Error(); err != nil || leader.raft.CurrentTerm() != term {
		t.Errorf("in the end: %v, term %d, was %d", err, leader.raft.CurrentTerm(), term)
	}
}

// Goal: a node that lost its disk, and whose name and address are the same, neither votes nor counts.
func TestRaft_WipedNode_NeitherVotesNorCounts(t *testing.T) {
	members := cluster(t, 3, nil)
	write(t, members, "a")
	agreeOn(t, members, "a")
	wiped := others(members, leaderOf(t, members))[0]
	wiped.stop()
	wiped.o.Dir, wiped.o.Incarnation = t.TempDir(), incarnation(0x99)
	wiped.log, wiped.snaps = &flakyLog{InmemStore: raft.NewInmemStore()}, raft.NewInmemSnapshotStore()
	wiped.restart()
	for _, m := range others(members, wiped) {
		// As one that was told the cluster's id would try: it is not known by this directory.
		if err := wiped.tr.SetFounders(m.tr.book.read().founders); err != nil {
			t.Fatal(err)
		}
		if err := beat(wiped.tr, m.tr, 1); !errors.Is(err, ErrRefused) {
			t.Errorf("%s took it for its old self: %v", m.o.NodeID, err)
		}
	}
	// With one of the two others gone there is no majority: the wiped one must not make one.
	leader := leaderOf(t, members)
	others(others(members, wiped), leader)[0].stop()
	eventually(t, "the last one steps down", func() bool { return leader.raft.State() != raft.Leader })
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if leader.raft.State() == raft.Leader {
			t.Fatal("a wiped node voted")
		}
	}
	if n := wiped.log; n != nil {
		if last, err := n.LastIndex(); err != nil || last != 0 {
			t.Errorf("the wiped node has entries up to %d, %v", last, err)
		}
	}
}
