package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestOpen_VirginDirectory_LeadsAndAppliesAtOnce(t *testing.T) {
	dir := t.TempDir()
	m := openMachine(t, dir)
	o := testOptions(dir)
	o.HeartbeatTimeout = time.Hour // an election by timeout could not happen within this test
	o.SegmentBytes = 0             // the default
	start := time.Now()
	g := openGroup(t, o, m)
	mustPropose(t, g, "first")
	t.Logf("from Open to the first applied write: %v", time.Since(start))
	defer closeGroup(t, g)

	term, ok := g.LeaderTerm()
	s := g.Status()
	if !ok || term != s.Term || s.Role != RoleLeader || s.LeaderID != "node-1" || s.LeaderAddress != o.Address {
		t.Errorf("LeaderTerm = %d, %v; status = %+v", term, ok, s)
	}
	if s.Voters != 1 || len(s.Configuration) != 1 || s.Configuration[0] != (Member{"node-1", o.Address, true}) {
		t.Errorf("configuration = %+v", s.Configuration)
	}
	if s.FirstIndex != 1 || s.AppliedIndex != s.LastIndex || s.CommitIndex != s.LastIndex {
		t.Errorf("indices = %+v", s)
	}
	if got := g.Metrics().Elections.Load(); got != 1 {
		t.Errorf("elections = %d", got)
	}
}

func TestPropose_ManyInFlight_AnsweredOnceInOrderWithApplyResults(t *testing.T) {
	dir := t.TempDir()
	m := openMachine(t, dir)
	g := openGroup(t, testOptions(dir), m)
	defer closeGroup(t, g)
	const n = 500
	var mu sync.Mutex
	var got []int
	done := make(chan struct{}, n)
	for i := range n {
		data := fmt.Appendf(nil, "cmd-%d", i)
		for {
			err := g.Propose(data, func(r any, err error) {
				if err != nil || !strings.HasSuffix(r.(string), ":"+string(data)) {
					t.Errorf("command %d: %v, %v", i, r, err)
				}
				mu.Lock()
				got = append(got, i)
				mu.Unlock()
				done <- struct{}{}
			})
			if err == nil {
				break
			}
			if !errors.Is(err, ErrBusy) || !errors.Is(err, ErrNotProposed) {
				t.Fatal(err)
			}
			<-done // one answer makes room
			done <- struct{}{}
			time.Sleep(50 * time.Microsecond)
		}
	}
	if err := g.Barrier(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for range n {
		<-done
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got) != n || !slices.IsSorted(got) {
		t.Errorf("%d answers, sorted: %v", len(got), slices.IsSorted(got))
	}
	if c := m.commands(); len(c) != n || c[0] != "cmd-0" || c[n-1] != "cmd-499" {
		t.Errorf("applied %d commands", len(c))
	}
}

func TestPropose_OutOfBounds_RefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.EntryBytesMax = 100
	g := openGroup(t, o, openMachine(t, dir))
	defer closeGroup(t, g)
	never := func(any, error) { t.Error("done was called for a refused proposal") }
	for _, data := range [][]byte{nil, {}, make([]byte, 101)} {
		if err := g.Propose(data, never); !errors.Is(err, ErrEntrySize) || !errors.Is(err, ErrNotProposed) || errors.Is(err, ErrUnknown) {
			t.Errorf("%d bytes: %v", len(data), err)
		}
	}
	mustPropose(t, g, strings.Repeat("x", 100))
}

func TestPropose_LargestEntry_SurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	g := openGroup(t, o, openMachine(t, dir))
	big := bytes.Repeat([]byte("0123456789abcdef"), 17<<20/16)
	if a := propose(t, g, big); a.err != nil {
		t.Fatal(a.err)
	}
	mustPropose(t, g, "after")
	closeGroup(t, g)
	m := openMachine(t, dir)
	g = openGroup(t, o, m)
	defer closeGroup(t, g)
	if c := m.commands(); len(c) != 2 || c[0] != string(big) || c[1] != "after" {
		t.Errorf("replayed %d commands", len(c))
	}
}

func TestPropose_ApplyHangs_UnknownAtDeadlineAndBusyMeanwhile(t *testing.T) {
	dir := t.TempDir()
	m := openMachine(t, dir)
	o := testOptions(dir)
	o.ProposalTimeout = 50 * time.Millisecond
	o.ProposalsMax = 2
	g := openGroup(t, o, m)
	gate := make(chan struct{})
	m.mu.Lock()
	m.gate = gate
	m.mu.Unlock()
	answers := make(chan error, 2)
	for range 2 {
		if err := g.Propose([]byte("x"), func(_ any, err error) { answers <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := <-answers; !errors.Is(err, ErrUnknown) || errors.Is(err, ErrNotProposed) {
			t.Errorf("answer = %v", err)
		}
	}
	if err := g.Propose([]byte("y"), func(any, error) {}); !errors.Is(err, ErrBusy) {
		t.Errorf("with two unresolved proposals: %v", err)
	}
	close(gate)
	closeGroup(t, g)
	if len(answers) != 0 {
		t.Error("a proposal was answered twice")
	}
	if c := m.commands(); len(c) != 2 {
		t.Errorf("applied %d commands: unknown proposals may well be applied", len(c))
	}
}

func TestClose_ProposalsInFlight_EachAnsweredExactlyOnce(t *testing.T) {
	for _, hang := range []bool{false, true} {
		t.Run(fmt.Sprintf("apply hangs=%v", hang), func(t *testing.T) {
			dir := t.TempDir()
			m := openMachine(t, dir)
			g := openGroup(t, testOptions(dir), m)
			gate := make(chan struct{})
			if hang {
				m.mu.Lock()
				m.gate = gate
				m.mu.Unlock()
			}
			var mu sync.Mutex
			outcomes := map[int][]error{}
			accepted := 0
			var wg sync.WaitGroup
			started := make(chan struct{}, 64)
			for w := range 4 {
				wg.Add(1)
				go func() { // owned by the test; ends when Close has begun
					defer wg.Done()
					for i := 0; ; i++ {
						id := w*1_000_000 + i
						err := g.Propose([]byte("cmd"), func(_ any, err error) {
							mu.Lock()
							outcomes[id] = append(outcomes[id], err)
							mu.Unlock()
						})
						switch {
						case err == nil:
							mu.Lock()
							accepted++
							mu.Unlock()
							select {
							case started <- struct{}{}:
							default:
							}
						case errors.Is(err, ErrBusy):
							time.Sleep(100 * time.Microsecond)
						case errors.Is(err, ErrNotProposed):
							return
						default:
							t.Errorf("Propose: %v", err)
							return
						}
					}
				}()
			}
			for range 20 {
				<-started
			}
			ctx := testContext(t)
			if hang {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
				defer cancel()
			}
			err := g.Close(ctx)
			if hang != (err != nil) {
				t.Errorf("Close = %v", err)
			}
			wg.Wait()
			mu.Lock()
			for id, errs := range outcomes {
				if len(errs) != 1 {
					t.Errorf("proposal %d was answered %d times", id, len(errs))
				}
				if err := errs[0]; err != nil && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNotProposed) {
					t.Errorf("proposal %d: %v", id, err)
				}
			}
			if len(outcomes) != accepted {
				t.Errorf("%d proposals accepted, %d answered", accepted, len(outcomes))
			}
			mu.Unlock()
			close(gate)
			if again := g.Close(context.Background()); !errors.Is(again, err) && again != err {
				t.Errorf("second Close = %v, first %v", again, err)
			}
			if err := g.Propose([]byte("late"), func(any, error) { t.Error("answered") }); !errors.Is(err, ErrNotProposed) {
				t.Errorf("Propose after Close = %v", err)
			}
			if _, ok := g.LeaderTerm(); ok {
				t.Error("a closed group leads")
			}
		})
	}
}

func TestRestart_ReplaysExactlyWhatIsAboveTheCheckpoint(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	var want []string
	add := func(n int) {
		for range n {
			c := fmt.Sprintf("cmd-%d", len(want))
			mustPropose(t, g, c)
			want = append(want, c)
		}
	}
	add(10)
	if err := m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	at, _ := m.Durable()
	add(7)
	closeGroup(t, g)

	m = openMachine(t, dir)
	var replayed []uint64
	m.onApply = func(i uint64) { replayed = append(replayed, i) }
	g = openGroup(t, o, m)
	if got := m.commands(); !slices.Equal(got, want) {
		t.Errorf("after restart: %q", got)
	}
	m.mu.Lock()
	if len(replayed) != 7 || replayed[0] != at.Index+1 {
		t.Errorf("replayed %v above checkpoint %d", replayed, at.Index)
	}
	m.onApply = nil
	m.mu.Unlock()
	add(3)
	closeGroup(t, g)

	// And without any checkpoint, from the first entry.
	m = openMachine(t, t.TempDir())
	g = openGroup(t, o, m)
	if got := m.commands(); !slices.Equal(got, want) {
		t.Errorf("replay from the beginning: %q", got)
	}
	closeGroup(t, g)
}

func TestSnapshot_LogIsTruncatedBehindCheckpointAndRestartWorks(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.SegmentBytes = 64 << 10
	o.TrailingLogs = 5
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	value := strings.Repeat("v", 4<<10)
	for i := range 100 {
		mustPropose(t, g, fmt.Sprintf("%d-%s", i, value))
	}
	if err := g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	s := g.Status()
	d, _ := m.Durable()
	if s.FirstIndex != s.LastIndex-5+1 || s.FirstIndex > d.Index+1 {
		t.Errorf("log is %d to %d with 5 trailing entries and checkpoint %d", s.FirstIndex, s.LastIndex, d.Index)
	}
	segments, err := filepath.Glob(filepath.Join(o.Dir, "*.wal"))
	if err != nil || len(segments) > 2 {
		t.Errorf("%d segment files are left (%v)", len(segments), err)
	}
	if len(m.witness) != 1 || m.witness[0].Index != d.Index || m.witness[0].Term != d.Term || len(m.witness[0].Configuration) == 0 || m.witness[0].ConfigurationIndex != 1 {
		t.Errorf("witnessed %+v, durable %d", m.witness, d.Index)
	}
	mustPropose(t, g, "last")
	want := m.commands()
	closeGroup(t, g)
	m = openMachine(t, dir)
	g = openGroup(t, o, m)
	defer closeGroup(t, g)
	if got := m.commands(); !slices.Equal(got, want) {
		t.Errorf("after restart %d commands, want %d", len(got), len(want))
	}
	if s := g.Status(); s.Voters != 1 || s.Configuration[0].ID != "node-1" {
		t.Errorf("configuration after the entry that held it was deleted: %+v", s.Configuration)
	}
}

func TestSnapshot_ManyCycles_LogStaysBounded(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.SegmentBytes = 64 << 10
	o.TrailingLogs = 1
	o.LogBytesMax = 256 << 10 // bytes, not SnapshotThreshold, must trigger
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	defer closeGroup(t, g)
	value := strings.Repeat("v", 8<<10)
	for range 200 {
		mustPropose(t, g, value)
	}
	deadline := time.Now().Add(testWait)
	for g.Metrics().Snapshots.Load() == 0 || g.Status().FirstIndex == 1 {
		if time.Now().After(deadline) {
			t.Fatalf("no compaction: %+v", g.Status())
		}
		time.Sleep(time.Millisecond)
	}
}

func TestSnapshot_CheckpointNeverDurable_LogIsKept(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.TrailingLogs = 1
	o.SnapshotTimeout = 20 * time.Millisecond
	m := openMachine(t, dir)
	m.auto = false
	g := openGroup(t, o, m)
	for i := range 20 {
		mustPropose(t, g, fmt.Sprint(i))
	}
	if err := g.Snapshot(testContext(t)); err == nil {
		t.Error("a snapshot succeeded without a durable checkpoint")
	}
	if s := g.Status(); s.FirstIndex != 1 {
		t.Errorf("the log begins at %d", s.FirstIndex)
	}
	closeGroup(t, g)
}

// lyingMachine claims durability that it does not have: the log must not believe it.
type lyingMachine struct{ *testMachine }

func (lyingMachine) WaitDurable(context.Context, uint64) error { return nil }

func (lyingMachine) Witness(context.Context, Durable) error { return nil }

func TestCompaction_BeyondDurableCheckpoint_IsCutBack(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	o.TrailingLogs = 1
	m := openMachine(t, dir)
	g := openGroup(t, o, lyingMachine{m})
	for i := range 10 {
		mustPropose(t, g, fmt.Sprint(i))
	}
	if err := m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	d, _ := m.Durable()
	for i := range 10 {
		mustPropose(t, g, fmt.Sprint(i))
	}
	if err := g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if s := g.Status(); s.FirstIndex != d.Index { // whose own entry stays
		t.Errorf("the log begins at %d, the checkpoint ends at %d", s.FirstIndex, d.Index)
	}
	closeGroup(t, g)
}

func TestBarrier_IndexAboveApplied_SnapshotAndRestartWork(t *testing.T) {
	// Barriers and no-ops have indices that the state machine never sees.
	dir := t.TempDir()
	o := testOptions(dir)
	o.TrailingLogs = 1
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	mustPropose(t, g, "a")
	for range 5 {
		if err := g.Barrier(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	d, _ := m.Durable()
	if w := m.witness[0]; w.Index != d.Index || w.Term != d.Term || g.Status().LastIndex < d.Index+5 {
		t.Errorf("witnessed %+v, checkpoint %+v, log to %d", w, d, g.Status().LastIndex)
	}
	closeGroup(t, g)

	// After a start that has nothing to replay but barriers, too.
	if err := m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	m = openMachine(t, dir)
	g = openGroup(t, o, m)
	if err := g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if len(m.witness) != 1 || m.witness[0].Index != d.Index || m.witness[0].Term != d.Term {
		t.Errorf("witnessed %+v, checkpoint %+v", m.witness, d)
	}
	closeGroup(t, g)
	m = openMachine(t, dir)
	g = openGroup(t, o, m)
	mustPropose(t, g, "b")
	if c := m.commands(); !slices.Equal(c, []string{"a", "b"}) {
		t.Errorf("commands %q", c)
	}
	closeGroup(t, g)
}

func TestOpen_DirectoryInUse_RefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	g := openGroup(t, testOptions(dir), openMachine(t, dir))
	defer closeGroup(t, g)
	if _, err := Open(context.Background(), testOptions(dir), openMachine(t, dir)); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("second Open: %v", err)
	}
}

func TestOpen_OtherNodeID_Refused(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	closeGroup(t, openGroup(t, o, openMachine(t, dir)))
	o.NodeID = "node-2"
	_, err := Open(context.Background(), o, openMachine(t, dir))
	if !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "node-1") || !strings.Contains(err.Error(), "node-2") {
		t.Errorf("Open as another node: %v", err)
	}
	o.NodeID = "node-1"
	closeGroup(t, openGroup(t, o, openMachine(t, dir))) // and nothing was spoilt
}

func TestOpen_OtherAddress_Recorded(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	closeGroup(t, openGroup(t, o, openMachine(t, dir)))
	o.Address = "127.0.0.1:7999"
	for range 2 { // recorded in the first start, and kept
		m := openMachine(t, dir)
		g := openGroup(t, o, m)
		deadline := time.Now().Add(testWait)
		for g.Status().Configuration[0].Address != o.Address {
			if time.Now().After(deadline) {
				t.Fatalf("configuration = %+v", g.Status().Configuration)
			}
			time.Sleep(time.Millisecond)
		}
		if err := g.Barrier(testContext(t)); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		at := m.state.At
		m.mu.Unlock()
		if c, err := decodeConfiguration(at.Configuration); err != nil || string(c.Servers[0].Address) != o.Address {
			t.Errorf("the state machine was told %+v (%v)", c, err)
		}
		if err := g.Snapshot(testContext(t)); err != nil {
			t.Fatal(err)
		}
		closeGroup(t, g)
	}
}

func TestClose_AllGoroutinesEnd(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	dir := t.TempDir()
	o := testOptions(dir)
	g := openGroup(t, o, openMachine(t, dir))
	mustPropose(t, g, "a")
	if err := g.Barrier(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	closeGroup(t, g)
	goleak.VerifyNone(t, ignore)
}

func TestStatus_WhileClosing_DoesNotPanic(t *testing.T) {
	dir := t.TempDir()
	g := openGroup(t, testOptions(dir), openMachine(t, dir))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { // owned by the test; ends with stop
			for {
				select {
				case <-stop:
					return
				default:
					g.Status()
					g.LeaderTerm()
				}
			}
		})
	}
	closeGroup(t, g)
	close(stop)
	wg.Wait()
	if s := g.Status(); s.Role != RoleStopped {
		t.Errorf("role %v", s.Role)
	}
}

func TestOptions_Invalid_AllFaultsNamedAtOnce(t *testing.T) {
	_, err := Open(context.Background(), Options{SegmentBytes: 1, ProposalsMax: 1000, HeartbeatTimeout: 1}, nil)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{"Dir", "NodeID", "Address", "SegmentBytes", "ProposalsMax", "HeartbeatTimeout"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%q does not name %s", err, field)
		}
	}
}

func TestSoloTransport_IsSeenToSupportPreVote(t *testing.T) {
	var tr raft.Transport = newSoloTransport("a", "b")
	if _, ok := tr.(raft.WithPreVote); !ok {
		t.Error("raft would go without pre-vote")
	}
	if err := tr.RequestVote("x", "y", nil, nil); !errors.Is(err, errNoPeers) {
		t.Error(err)
	}
}
