package peer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// snapshotBytes are a stream that delimits itself: its length, then that many bytes.
func snapshotBytes(n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(n))
	return append(b, bytes.Repeat([]byte("x"), n)...)
}

// receiver is an Options.Receive for such streams.
type receiver struct {
	started   chan struct{} // one token per call, if not nil
	received  atomic.Int64  // snapshots read to their end
	discarded atomic.Int64
	before    func() // called when the stream has been read
}

func (r *receiver) receive(ctx context.Context, req *raft.InstallSnapshotRequest, s io.Reader) (Prepared, error) {
	if r.started != nil {
		r.started <- struct{}{}
	}
	var size [8]byte
	if _, err := io.ReadFull(s, size[:]); err != nil {
		return Prepared{}, err
	}
	if _, err := io.CopyN(io.Discard, s, int64(binary.LittleEndian.Uint64(size[:]))); err != nil {
		return Prepared{}, err
	}
	r.received.Add(1)
	if r.before != nil {
		r.before()
	}
	return Prepared{Descriptor: []byte("descriptor"), Discard: func() { r.discarded.Add(1) }}, nil
}

func install(a, b *Transport, term uint64, data io.Reader) (raft.InstallSnapshotResponse, error) {
	var resp raft.InstallSnapshotResponse
	err := a.InstallSnapshot("node-2", b.LocalAddr(), &raft.InstallSnapshotRequest{
		RPCHeader: a.header(), SnapshotVersion: 1, Term: term, Leader: []byte(a.LocalAddr()), LastLogIndex: 100, LastLogTerm: 3,
		Configuration: []byte("configuration"), ConfigurationIndex: 50, Size: 1 << 40,
	}, &resp, data)
	return resp, err
}

// installFromPipe begins to send what is written to the pipe. Writes fail once the call has ended.
func installFromPipe(a, b *Transport, term uint64) (*io.PipeWriter, <-chan error) {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() { // owned by the test; ends with the pipe or the call
		resp, err := install(a, b, term, pr)
		if err == nil && !resp.Success {
			err = fmt.Errorf("no success: %+v", resp)
		}
		done <- err
		pr.Close() //nolint:errcheck // never fails
	}()
	return pw, done
}

func TestInstall_WholeSnapshot_RaftGetsTheDescriptor(t *testing.T) {
	r := &receiver{}
	got := make(chan *raft.InstallSnapshotRequest, 1)
	body := make(chan string, 1)
	a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, func(rpc raft.RPC) {
		if req, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
			got <- req
			all, err := io.ReadAll(rpc.Reader)
			if err != nil {
				t.Error(err)
			}
			body <- string(all)
		}
		agree(rpc)
	})
	b.Bind(newFakeNode(5))
	resp, err := install(a, b, 6, bytes.NewReader(snapshotBytes(3<<20)))
	if err != nil || !resp.Success || resp.Term != 6 {
		t.Fatalf("%+v, %v", resp, err)
	}
	req := <-got
	if req.Size != int64(len("descriptor")) || <-body != "descriptor" || req.Term != 6 || req.LastLogIndex != 100 || req.LastLogTerm != 3 ||
		string(req.Configuration) != "configuration" || req.ConfigurationIndex != 50 || string(req.ID) != "node-1" || string(req.Addr) != string(a.LocalAddr()) || req.SnapshotVersion != 1 {
		t.Errorf("request = %+v", req)
	}
	if r.discarded.Load() != 0 {
		t.Error("an installed snapshot was discarded")
	}
	// The ordinary connections are untouched.
	if err := beat(a, b, 6); err != nil {
		t.Fatal(err)
	}
}

func TestInstall_RaftRefuses_IsDiscardedAndTold(t *testing.T) {
	for name, c := range map[string]struct {
		answer raft.RPCResponse
		check  func(raft.InstallSnapshotResponse, error) bool
	}{
		"newer term": {raft.RPCResponse{Response: &raft.InstallSnapshotResponse{Term: 9}}, func(r raft.InstallSnapshotResponse, err error) bool {
			return err == nil && !r.Success && r.Term == 9
		}},
		"error": {raft.RPCResponse{Response: &raft.InstallSnapshotResponse{Term: 6}, Error: errors.New("no room")}, func(r raft.InstallSnapshotResponse, err error) bool {
			return err != nil && strings.Contains(err.Error(), "no room") && !r.Success
		}},
	} {
		r := &receiver{}
		a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, func(rpc raft.RPC) {
			if _, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
				rpc.RespChan <- c.answer
				return
			}
			agree(rpc)
		})
		b.Bind(newFakeNode(5))
		if resp, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10))); !c.check(resp, err) {
			t.Errorf("%s: %+v, %v", name, resp, err)
		}
		if r.discarded.Load() != 1 {
			t.Errorf("%s: discarded %d times", name, r.discarded.Load())
		}
	}
}

// Goal: a snapshot that this node has no need of never reaches raft, whose installation would wipe the
// log behind it. Either it is known when the first byte comes, or it turns out after raft has done what
// it was given before.
func TestInstall_NotNeeded_IsAnsweredWithoutRaft(t *testing.T) {
	for name, make := range map[string]func(*fakeNode){
		"applied":   func(n *fakeNode) { n.applied.Store(100) },
		"in log":    func(n *fakeNode) { n.put(100, 3) },
		"past term": func(n *fakeNode) { n.term.Store(8) },
	} {
		for _, late := range []bool{false, true} {
			r := &receiver{}
			n := newFakeNode(5)
			var probes atomic.Int64
			a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, func(rpc raft.RPC) {
				switch req := rpc.Command.(type) {
				case *raft.InstallSnapshotRequest:
					t.Errorf("%s, late %v: raft got the snapshot", name, late)
				case *raft.AppendEntriesRequest:
					if req.Term != 0 {
						t.Errorf("%s: unexpected %+v", name, req)
					}
					probes.Add(1)
					make(n) // what raft had in hand when the snapshot was complete
				}
				agree(rpc)
			})
			if !late {
				make(n)
			}
			b.Bind(n)
			resp, err := install(a, b, 6, bytes.NewReader(snapshotBytes(1<<20)))
			if err != nil || resp.Success != (name != "past term") || resp.Term != n.CurrentTerm() {
				t.Errorf("%s, late %v: %+v, %v", name, late, resp, err)
			}
			if got := r.discarded.Load(); late != (got == 1) {
				t.Errorf("%s, late %v: discarded %d times", name, late, got)
			}
			if got := probes.Load(); late != (got == 1) {
				t.Errorf("%s, late %v: raft was asked %d times", name, late, got)
			}
		}
	}
	// Another entry at the index is no reason.
	r := &receiver{}
	a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, agree)
	n := newFakeNode(5)
	n.put(100, 2)
	n.applied.Store(99)
	b.Bind(n)
	if resp, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10))); err != nil || !resp.Success || r.received.Load() != 1 {
		t.Errorf("%+v, %v; received %d", resp, err, r.received.Load())
	}
}

// Goal: while a snapshot comes in, raft gets heartbeats; while raft installs it, nothing else.
func TestInstall_InProgress_RaftHearsHeartbeatsButNothingDuringTheInstallation(t *testing.T) {
	r := &receiver{}
	installing, release := make(chan struct{}), make(chan struct{})
	var inside atomic.Bool
	a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, func(rpc raft.RPC) {
		if inside.Load() {
			t.Errorf("raft got %T during an installation", rpc.Command)
		}
		if _, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
			inside.Store(true)
			go func() { // owned by the test; ends with release
				close(installing)
				<-release
				inside.Store(false)
				agree(rpc)
			}()
			return
		}
		agree(rpc)
	})
	b.Bind(newFakeNode(6))
	pw, done := installFromPipe(a, b, 6)
	stream := snapshotBytes(1 << 20)
	if _, err := pw.Write(stream[:1000]); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := beat(a, b, 6); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pw.Write(stream[1000:]); err != nil {
		t.Fatal(err)
	}
	pw.Close() //nolint:errcheck // never fails
	<-installing
	beats := make(chan error, 1)
	go func() { beats <- beat(a, b, 6) }() // owned by the test; ends after release
	select {
	case err := <-beats:
		t.Errorf("answered during an installation: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := errors.Join(<-done, <-beats); err != nil {
		t.Fatal(err)
	}
}

func TestInstall_TwoAtOnce_TheSecondIsTurnedAway(t *testing.T) {
	r := &receiver{started: make(chan struct{}, 2)}
	a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, agree)
	b.Bind(newFakeNode(6))
	c := open(t, testOptions(t, 3))
	pw, done := installFromPipe(a, b, 6)
	<-r.started
	if _, err := install(c, b, 6, bytes.NewReader(snapshotBytes(8<<20))); err == nil || !strings.Contains(err.Error(), "another snapshot is on its way already") {
		t.Errorf("second: %v", err)
	}
	if _, err := pw.Write(snapshotBytes(10)); err != nil {
		t.Fatal(err)
	}
	pw.Close() //nolint:errcheck // never fails
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := install(c, b, 6, bytes.NewReader(snapshotBytes(10))); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestInstall_StalledStream_EndsAndFreesTheWay(t *testing.T) {
	r := &receiver{}
	a, b := pair(t, func(_, b *Options) { b.Receive, b.StallTimeout = r.receive, 100*time.Millisecond }, agree)
	b.Bind(newFakeNode(6))
	pw, done := installFromPipe(a, b, 6)
	if _, err := pw.Write(snapshotBytes(1 << 20)[:1000]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next one is taken", func() bool { _, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10))); return err == nil })
	pw.Write([]byte("late")) //nolint:errcheck // wakes the sender, if it has not seen the answer yet
	if err := <-done; err == nil || !strings.Contains(err.Error(), "stalled") {
		t.Errorf("error = %v", err)
	}
}

func TestInstall_SenderGoesAway_NothingIsLeft(t *testing.T) {
	r := &receiver{started: make(chan struct{}, 2)}
	a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, agree)
	b.Bind(newFakeNode(6))
	pw, done := installFromPipe(a, b, 6)
	<-r.started
	pw.CloseWithError(errors.New("disk is gone")) //nolint:errcheck // never fails
	if err := <-done; err == nil || !strings.Contains(err.Error(), "disk is gone") {
		t.Errorf("error = %v", err)
	}
	eventually(t, "the receiver gives up", func() bool { return !b.installing.Load() })
	if r.received.Load() != 0 {
		t.Error("received")
	}
}

// endless is a snapshot that never ends.
type endless struct{ started bool }

func (e *endless) Read(b []byte) (int, error) {
	if !e.started {
		e.started = true
		return copy(b, binary.LittleEndian.AppendUint64(nil, 1<<62)), nil
	}
	return min(len(b), 1000), nil
}

func TestInstall_NewerTermWhileReceiving_GivesWay(t *testing.T) {
	r := &receiver{started: make(chan struct{}, 2)}
	a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, agree)
	n := newFakeNode(6)
	b.Bind(n)
	go func() { // owned by the test; ends when the snapshot has begun
		<-r.started
		n.term.Store(7)
	}()
	if resp, err := install(a, b, 6, &endless{}); err != nil || resp.Success || resp.Term != 7 {
		t.Errorf("%+v, %v", resp, err)
	}
}

func TestInstall_MoreBytesThanTheStreamSays_IsRefused(t *testing.T) {
	r := &receiver{}
	a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, func(rpc raft.RPC) { t.Errorf("raft got %T", rpc.Command) })
	b.Bind(newFakeNode(6))
	if _, err := install(a, b, 6, bytes.NewReader(append(snapshotBytes(10), 0, 1, 2))); err == nil || !strings.Contains(err.Error(), "longer than it says") {
		t.Errorf("error = %v", err)
	}
	if r.discarded.Load() != 1 {
		t.Errorf("discarded %d times", r.discarded.Load())
	}
}

func TestInstall_Closed_EndsAtEachStage(t *testing.T) {
	t.Run("receiving", func(t *testing.T) {
		r := &receiver{started: make(chan struct{}, 1)}
		a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, agree)
		b.Bind(newFakeNode(6))
		pw, done := installFromPipe(a, b, 6)
		defer pw.Close() //nolint:errcheck // never fails
		<-r.started
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		pw.Close() //nolint:errcheck // never fails
		if err := <-done; err == nil {
			t.Error("success from a closed node")
		}
	})
	t.Run("waiting for raft", func(t *testing.T) {
		r := &receiver{}
		received := make(chan struct{})
		r.before = func() { close(received) }
		oa, ob := testOptions(t, 1), testOptions(t, 2)
		ob.Receive = r.receive
		a, b := open(t, oa), open(t, ob) // nobody consumes
		b.Bind(newFakeNode(6))
		done := make(chan error, 1)
		go func() { _, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10))); done <- err }() // owned by the test; ends when b is closed
		<-received
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("success from a closed node")
		}
		if r.discarded.Load() != 1 {
			t.Errorf("discarded %d times", r.discarded.Load())
		}
	})
	t.Run("raft has it", func(t *testing.T) {
		r := &receiver{}
		taken := make(chan struct{})
		a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, func(rpc raft.RPC) {
			if _, ok := rpc.Command.(*raft.InstallSnapshotRequest); ok {
				close(taken)
				return // no answer: raft is shutting down
			}
			agree(rpc)
		})
		b.Bind(newFakeNode(6))
		done := make(chan error, 1)
		go func() { _, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10))); done <- err }() // owned by the test; ends when b is closed
		<-taken
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("success from a closed node")
		}
		if r.discarded.Load() != 0 {
			t.Error("discarded under raft's hands")
		}
	})
	t.Run("sender", func(t *testing.T) {
		r := &receiver{started: make(chan struct{}, 1)}
		a, b := pair(t, func(_, b *Options) { b.Receive = r.receive }, agree)
		b.Bind(newFakeNode(6))
		done := make(chan error, 1)
		go func() { // owned by the test; ends when a is closed
			_, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10)[:9]))
			done <- err
		}()
		<-r.started
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err == nil {
			t.Error("success")
		}
	})
}

func TestInstall_NoReceiverOrNotBound_IsAnError(t *testing.T) {
	a, b := pair(t, nil, agree)
	if _, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10))); err == nil || !strings.Contains(err.Error(), errUnbound.Error()) {
		t.Errorf("not bound: %v", err)
	}
	b.Bind(newFakeNode(6))
	if _, err := install(a, b, 6, bytes.NewReader(snapshotBytes(10))); err == nil || !strings.Contains(err.Error(), "takes no snapshots") {
		t.Errorf("no receiver: %v", err)
	}
}
