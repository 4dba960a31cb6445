package consensus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestTransfers_Longest_IsThatOfLateOrUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts transfers
		var counted atomic.Uint64
		copyTook := func(d time.Duration, installed bool) {
			x := ts.begin("node-2", DirectionSend, 10, &counted, sendingOf(nil))
			time.Sleep(d)
			x.end(installed)
			x.end(true) // only the first counts
		}
		want := func(d time.Duration) {
			t.Helper()
			if got := ts.longest(); got != d {
				t.Errorf("longest = %v, want %v", got, d)
			}
		}
		want(restoreMin)
		copyTook(time.Second, true)
		want(restoreMin)
		copyTook(time.Minute, false) // it came to nothing
		want(restoreMin)
		copyTook(30*time.Second, true)
		copyTook(20*time.Second, true)
		want(30 * time.Second)
		x := ts.begin("node-2", DirectionReceive, 10, &counted, sendingOf(nil))
		time.Sleep(2 * time.Minute)
		want(2 * time.Minute)
		x.end(false)
		want(30 * time.Second)
		for range 2 * restoresMax {
			copyTook(11*time.Second, true)
		}
		want(30 * time.Second)
		if len(ts.restores) > restoresMax {
			t.Errorf("%d are remembered", len(ts.restores))
		}
		time.Sleep(restoreMemory)
		want(11 * time.Second)
		time.Sleep(restoreMemory)
		want(restoreMin)
	})
}

func TestTransfers_List_TellsHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts transfers
		var counted atomic.Uint64
		x := ts.begin("node-2", DirectionFetch, 10, &counted, func() SnapshotProgress {
			return SnapshotProgress{Records: 1, Bytes: 2, TotalRecords: 3, TotalBytes: 4}
		})
		r := x.reader(strings.NewReader(strings.Repeat("x", 1000)))
		time.Sleep(2 * time.Second)
		if _, err := io.ReadFull(r, make([]byte, 600)); err != nil {
			t.Fatal(err)
		}
		y := ts.begin("node-3", DirectionSend, 20, &counted, sendingOf(nil))
		all := ts.list()
		if len(all) != 2 || all[1].ID != "node-3" {
			t.Fatalf("%+v", all)
		}
		if got := all[0]; got.ID != "node-2" || got.Direction != DirectionFetch || got.Index != 10 || got.Bytes != 600 || got.RateBytes != 300 || got.Streamed ||
			got.Records != 1 || got.RecordBytes != 2 || got.TotalRecords != 3 || got.TotalBytes != 4 {
			t.Errorf("%+v", got)
		}
		if _, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if got := ts.list()[0]; !got.Streamed || got.Bytes != 1000 || counted.Load() != 1000 {
			t.Errorf("%+v, %d bytes counted", got, counted.Load())
		}
		x.end(true)
		y.end(false)
		if all := ts.list(); len(all) != 0 {
			t.Errorf("%+v", all)
		}
	})
}

func TestReceive_NoRoom_RefusedBeforeAByteOrMidway(t *testing.T) {
	s, f, req, contents := testSnapshots(t)
	var asked []int64
	space := int64(0)
	s.room = func(n int64) error {
		if asked = append(asked, n); n > space {
			return errors.New("the disk is full")
		}
		return nil
	}
	req.Size = 1 << 30
	_, _, err := s.receive(t.Context(), req, readerFunc(func([]byte) (int, error) {
		t.Error("something was read")
		return 0, io.EOF
	}))
	if !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), "the disk is full") || len(asked) != 1 || asked[0] != 2<<30 {
		t.Errorf("%v; asked for %v", err, asked)
	}
	// It fills up meanwhile.
	space, asked = 4<<30, nil
	zeros := readerFunc(func(b []byte) (int, error) { clear(b); return len(b), nil })
	r := &roomyReader{r: zeros, room: func(n int64) error {
		err := s.hasRoom(n)
		if len(asked) == 3 {
			space = 0
		}
		return err
	}}
	if n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, make([]byte, 1<<20)); !errors.Is(err, ErrNoRoom) || n != 3*roomStep {
		t.Errorf("%d bytes, then %v", n, err)
	}
	if got := s.metrics.SnapshotsRefused.Load(); got != 2 {
		t.Errorf("%d refused", got)
	}
	// And then there is room again.
	space = 4 << 30
	descriptor, _, err := s.receive(t.Context(), req, bytes.NewReader(contents))
	if err != nil {
		t.Fatal(err)
	}
	if all := s.transfers.list(); len(all) != 1 || !all[0].Streamed || all[0].Direction != DirectionReceive || all[0].Bytes != uint64(len(contents)) {
		t.Errorf("before it is installed: %+v", all)
	}
	if err := install(t, s, f, descriptor); err != nil {
		t.Fatal(err)
	}
	if all := s.transfers.list(); len(all) != 0 {
		t.Errorf("after it is installed: %+v", all)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// movingMachine changes when a snapshot of it is opened.
type movingMachine struct {
	*testMachine
	move func()
}

func (m movingMachine) OpenSnapshot(ctx context.Context) (Durable, io.ReadCloser, error) {
	m.move()
	return m.testMachine.OpenSnapshot(ctx)
}

// Goal: what a snapshot says of itself is what the state machine's own checkpoint says at the moment when it is
// opened, with its term and its configuration, not what raft had listed or believes.
func TestSnapshotStore_CheckpointMovesBetweenListAndOpen_MetadataAreThoseOfTheStream(t *testing.T) {
	s, f, _, _ := testSnapshots(t)
	listed, err := s.List()
	if err != nil || len(listed) != 1 || listed[0].Index != 10 {
		t.Fatalf("%+v, %v", listed, err)
	}
	m := f.sm.(*testMachine)
	three := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}, {ID: "c", Address: "c:1"}}}
	m.Apply(13, 2, []byte("y"))
	// And once more when the stream is asked for.
	s.sm = movingMachine{m, func() {
		m.ApplyConfiguration(14, 3, raft.EncodeConfiguration(three))
		m.Apply(15, 4, []byte("y"))
		if err := m.checkpoint(); err != nil {
			t.Fatal(err)
		}
		m.Apply(16, 5, []byte("not durable"))
	}}
	if err := m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	got, stream, err := s.Open(listed[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close() //nolint:errcheck // never fails
	if got.Index != 15 || got.Term != 4 || got.ConfigurationIndex != 14 || len(got.Configuration.Servers) != 3 {
		t.Errorf("metadata %+v", got)
	}
	// The stream is of that same checkpoint: another machine takes it only if it is.
	other := openMachine(t, t.TempDir())
	d := Durable{Index: got.Index, Term: got.Term, Configuration: raft.EncodeConfiguration(got.Configuration), ConfigurationIndex: got.ConfigurationIndex}
	received, err := other.ReceiveSnapshot(t.Context(), d, stream)
	if err != nil {
		t.Fatal(err)
	}
	received.Discard()
	if i, ok := s.logs.pins.lowest(); !ok || i != 15 {
		t.Errorf("the log is pinned at %d, %v", i, ok)
	}
}

// TestFollower_RestoredWhileTheLeaderChanges_NeedsNoSecondSnapshot has a follower take a snapshot while entries are
// written and compacted away, and then meet another leader than the one that sent it: that one has no pin.
func TestFollower_RestoredWhileTheLeaderChanges_NeedsNoSecondSnapshot(t *testing.T) {
	c := newTestCluster(t, 3, func(o *Options) { o.TrailingLogs = 1 })
	down := lagBySnapshot(t, c)
	// Only now anything is kept by time, or the follower would need no snapshot at all.
	for _, n := range c.others(nil) {
		n.kill()
		n.change = func(o *Options) { o.LogKeepBytesMax = 64 << 20 }
	}
	for _, n := range c.nodes {
		if n != down {
			n.start()
		}
	}
	c.writeMany("b2", 5)
	for _, n := range c.others(nil) { // the snapshot is to be one that all of them have the log of
		if err := n.g.Snapshot(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	installed, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	t.Cleanup(release) // or the node could not be closed
	var once sync.Once
	down.crash = func(step string) {
		if step == "emptied" {
			once.Do(func() { close(installed); <-released })
		}
	}
	down.start()
	select {
	case <-installed:
	case <-time.After(testWait):
		t.Fatal("no snapshot was installed")
	}
	c.writeMany("c", 10)
	for _, n := range c.others(down) {
		if err := n.g.Snapshot(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	sender := c.leader()
	for _, next := range c.others(sender) {
		if next == down {
			continue
		}
		if err := sender.g.Transfer(testContext(t), next.id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "another node leads", func() bool { return c.leader() != sender })
	release()
	c.converge("a-0", "b-19", "c-9")
	if got := down.g.Metrics().SnapshotsInstalled.Load(); got > 1 {
		t.Errorf("%d snapshots were installed", got)
	}
	if s := c.leader().g.Status(); s.FirstIndex == 1 {
		t.Error("nothing was compacted: this is not what the test is about")
	}
}
