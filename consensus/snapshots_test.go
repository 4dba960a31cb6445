package consensus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testSnapshots returns a store over a machine at entry 10, and what another node would send: entry 20.
func testSnapshots(t *testing.T) (*snapshotStore, *fsm, *raft.InstallSnapshotRequest, []byte) {
	t.Helper()
	configuration := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}}})
	at := func(index uint64) *testMachine {
		m := openMachine(t, t.TempDir())
		m.ApplyConfiguration(1, 1, configuration)
		m.Apply(index, 2, []byte("x"))
		if err := m.checkpoint(); err != nil {
			t.Fatal(err)
		}
		return m
	}
	theirs := at(20)
	d, stream, err := theirs.OpenSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	contents, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	logs := mustOpenLog(t, t.TempDir())
	t.Cleanup(func() { logs.mustClose(t) })
	appendEntries(t, logs, 10, 10)
	mine := at(10)
	s := newSnapshotStore(t.Context(), mine, logs, &Metrics{}, func(string) {})
	f := &fsm{sm: mine, logs: logs, snapshots: s, metrics: &Metrics{}, fault: newFailStop(func(error) {}), ctx: t.Context(),
		snapshotTimeout: testWait, configured: func(uint64, []byte) {}, last: 10, lastTerm: 2}
	return s, f, &raft.InstallSnapshotRequest{LastLogIndex: d.Index, LastLogTerm: d.Term, Configuration: d.Configuration, ConfigurationIndex: d.ConfigurationIndex}, contents
}

// take does what raft does to take a snapshot, up to sink.Close.
func take(t *testing.T, s *snapshotStore, snapshot raft.FSMSnapshot) error {
	t.Helper()
	sink, err := s.Create(raft.SnapshotVersionMax, 10, 2, raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a:1"}}}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := snapshot.Persist(sink); err != nil {
		return err
	}
	return sink.Close()
}

// install does what raft does with a received snapshot.
func install(t *testing.T, s *snapshotStore, f *fsm, descriptor []byte) error {
	t.Helper()
	sink, err := s.Create(raft.SnapshotVersionMax, 20, 2, raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a:1"}}}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write(descriptor); err != nil {
		return err
	}
	if err := sink.Close(); err != nil {
		return err
	}
	m, r, err := s.Open(sink.ID())
	if err != nil || m.Index != 20 || m.Size != int64(len(descriptor)) {
		t.Fatalf("opened %+v, %v", m, err)
	}
	return f.Restore(r)
}

func TestSnapshotStore_InstallationBetweenStartAndEnd_OwnSnapshotIsGivenUp(t *testing.T) {
	// Completed, it would set raft's newest snapshot from 20 back to 10.
	s, f, req, contents := testSnapshots(t)
	begun, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	descriptor, discard, err := s.receive(t.Context(), req, bytes.NewReader(contents))
	if err != nil {
		t.Fatal(err)
	}
	if err := take(t, s, begun); !errors.Is(err, errOvertaken) {
		t.Errorf("with a received one waiting: %v", err)
	}
	if err := install(t, s, f, descriptor); err != nil {
		t.Fatal(err)
	}
	if err := take(t, s, begun); !errors.Is(err, errOvertaken) {
		t.Errorf("after the installation: %v", err)
	}
	if f.sm.Applied() != 20 || f.last != 20 || s.last.Load() != 20 {
		t.Errorf("applied %d, last %d, newest snapshot %d", f.sm.Applied(), f.last, s.last.Load())
	}
	fresh, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := take(t, s, fresh); err != nil {
		t.Errorf("one that was begun later: %v", err)
	}
	s.completed()
	discard() // too late, and harmless
	if w := f.sm.(*testMachine).waiting; w != 0 {
		t.Errorf("%d received states are left", w)
	}
	if err := install(t, s, f, descriptor); err == nil {
		t.Error("a snapshot was installed twice")
	}
}

func TestSnapshotStore_OwnSnapshotPastItsLastCheck_ReceivedOneWaits(t *testing.T) {
	s, f, req, contents := testSnapshots(t)
	begun, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := take(t, s, begun); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	received := make(chan struct{})
	wg.Go(func() {
		_, discard, err := s.receive(t.Context(), req, bytes.NewReader(contents))
		if err != nil {
			t.Error(err)
			return
		}
		close(received)
		discard()
	})
	select {
	case <-received:
		t.Error("raft could be given the received one while it completes its own")
	case <-time.After(20 * time.Millisecond):
	}
	s.completed()
	wg.Wait()
	if w := f.sm.(*testMachine).waiting; w != 0 {
		t.Errorf("%d received states are left", w)
	}
}

func TestSnapshotStore_ReceivedButOvertakenByTheLog_Discarded(t *testing.T) {
	s, f, req, contents := testSnapshots(t)
	descriptor, _, err := s.receive(t.Context(), req, bytes.NewReader(contents))
	if err != nil {
		t.Fatal(err)
	}
	m := f.sm.(*testMachine)
	m.Apply(21, 2, []byte("y"))
	if err := install(t, s, f, descriptor); err == nil || m.Applied() != 21 || m.waiting != 0 {
		t.Errorf("%v, applied %d, %d waiting: the state went back", err, m.Applied(), m.waiting)
	}
	if _, _, err := s.receive(context.Background(), &raft.InstallSnapshotRequest{LastLogIndex: 30, LastLogTerm: 2, Configuration: []byte("?")}, bytes.NewReader(contents)); err == nil {
		t.Error("a snapshot without a configuration was received")
	}
	descriptor, _, err = s.receive(t.Context(), req, bytes.NewReader(contents))
	if err != nil || len(descriptor) == 0 {
		t.Fatal(err)
	}
	if s.close(); m.waiting != 0 {
		t.Errorf("%d received states are left at the end", m.waiting)
	}
}
