//go:build failpoints

package consensus

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft-wal/fs"

	"kvstore/internal/failpoint"
)

// strike sets failpoints until the test ends.
func strike(t *testing.T, terms string) {
	t.Helper()
	if err := failpoint.Set(terms); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, name := range failpoint.Names() {
			if err := failpoint.Set(name + "=off"); err != nil {
				t.Error(err)
			}
		}
	})
}

// Each place of the log, struck once while one command is on its way: the group stops, the command is
// unknown, and what was acknowledged is there after the restart.
func TestFailpoint_Log_EndsEverythingAndNothingIsAcknowledged(t *testing.T) {
	for _, place := range []string{failpoint.LogAppendBefore, failpoint.LogAppendAfter, failpoint.LogFsyncBefore, failpoint.LogFsyncAfter} {
		t.Run(place, func(t *testing.T) {
			dir := t.TempDir()
			o := testOptions(dir)
			o.vfs = dataSyncFS{fs.New()}
			fatal := make(chan error, 10)
			o.Fatal = func(err error) { fatal <- err }
			m := openMachine(t, dir)
			g := openGroup(t, o, m)
			mustPropose(t, g, "good")
			strike(t, place+"=error(struck)@1")
			answers := submitRaw(g, "bad")
			select {
			case err := <-fatal:
				if !strings.Contains(err.Error(), "struck") {
					t.Errorf("Fatal got %v", err)
				}
			case <-time.After(testWait):
				t.Fatal("Fatal was not called")
			}
			if err := g.Propose([]byte("later"), func(any, error) {}); !errors.Is(err, ErrHalted) {
				t.Errorf("Propose on a halted group = %v", err)
			}
			closeGroup(t, g)
			if err := receive(t, "the command", answers); !errors.Is(err, ErrUnknown) {
				t.Errorf("it was answered with %v", err)
			}
			if got := m.commands(); !slices.Equal(got, []string{"good"}) {
				t.Errorf("applied %q", got)
			}
			o.Fatal = nil
			m = openMachine(t, dir)
			g = openGroup(t, o, m)
			mustPropose(t, g, "again")
			if got := m.commands(); got[0] != "good" || got[len(got)-1] != "again" {
				t.Errorf("after the restart: %q", got)
			}
			closeGroup(t, g)
		})
	}
}

func TestFailpoint_Truncate_EndsEverything(t *testing.T) {
	for _, place := range []string{failpoint.LogTruncateBefore, failpoint.LogTruncateAfter} {
		t.Run(place, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpenLog(t, dir)
			appendEntries(t, s, 10, 100)
			strike(t, place+"=error(struck)@1")
			if err := s.DeleteRange(8, 10); err == nil {
				t.Error("DeleteRange succeeded")
			}
			if err := s.StoreLog(testEntry(11, 100)); err == nil || !strings.Contains(err.Error(), "struck") {
				t.Errorf("StoreLog after the failure = %v", err)
			}
			s.mustClose(t)
			s = mustOpenLog(t, dir)
			defer s.mustClose(t)
			last := uint64(10)
			if place == failpoint.LogTruncateAfter {
				last = 7
			}
			checkEntries(t, s, 1, last, 100)
		})
	}
}

func TestFailpoint_Vote_OldOrNewVoteAndNoneAfterTheFailure(t *testing.T) {
	for _, place := range []string{failpoint.VoteBefore, failpoint.VoteAfter} {
		t.Run(place, func(t *testing.T) {
			dir := t.TempDir()
			s := mustOpenStable(t, dir)
			s.must(t, s.SetUint64([]byte(keyCurrentTerm), 3))
			strike(t, place+"=error(struck)@1")
			if err := s.SetUint64([]byte(keyCurrentTerm), 4); err == nil {
				t.Error("the write succeeded")
			}
			if err := s.SetUint64([]byte(keyCurrentTerm), 5); err == nil || !strings.Contains(err.Error(), "struck") {
				t.Errorf("the next write = %v", err)
			}
			want := uint64(3)
			if place == failpoint.VoteAfter {
				want = 4
			}
			if got, err := mustOpenStable(t, dir).GetUint64([]byte(keyCurrentTerm)); err != nil || got != want {
				t.Errorf("term %d after the restart, want %d (%v)", got, want, err)
			}
		})
	}
}

func TestFailpoint_MembershipBefore_SurelyNotProposed(t *testing.T) {
	dir := t.TempDir()
	g := openGroup(t, testOptions(dir), openMachine(t, dir))
	defer closeGroup(t, g)
	strike(t, failpoint.MembershipBefore+"=error(struck)@1")
	if err := g.AddLearner(testContext(t), "node-2", "127.0.0.1:2"); !errors.Is(err, ErrNotProposed) {
		t.Error(err)
	}
	if got := len(g.members()); got != 1 {
		t.Errorf("%d members", got)
	}
	if err := g.AddLearner(testContext(t), "node-2", "127.0.0.1:2"); err != nil {
		t.Errorf("the next change: %v", err)
	}
}

// The place behind a change lies before its answer: who strikes there has changed the configuration.
func TestFailpoint_MembershipAfter_ChangeIsCommittedAndUnanswered(t *testing.T) {
	dir := t.TempDir()
	g := openGroup(t, testOptions(dir), openMachine(t, dir))
	defer closeGroup(t, g)
	strike(t, failpoint.MembershipAfter+"=sleep(500ms)@1")
	answer := make(chan error, 1)
	go func() { answer <- g.AddLearner(testContext(t), "node-2", "127.0.0.1:2") }() // ends with the change
	eventually(t, "the change is committed", func() bool { c := g.committed.Load(); return len(c.members) == 2 })
	select {
	case err := <-answer:
		t.Errorf("answered with %v before the place was left", err)
	default:
	}
	if err := receive(t, "the change", answer); err != nil {
		t.Error(err)
	}
}
