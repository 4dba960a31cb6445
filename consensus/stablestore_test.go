package consensus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvstore/internal/record"
)

func mustOpenStable(tb testing.TB, dir string) *stableStore {
	tb.Helper()
	s, err := openStableStore(dir, testWait, newFailStop(func(error) {}))
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func (s *stableStore) must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func TestStableStore_CrashBetweenTermAndCandidate_OldVoteStands(t *testing.T) {
	dir := t.TempDir()
	s := mustOpenStable(t, dir)
	s.must(t, s.SetUint64([]byte(keyCurrentTerm), 4))
	s.must(t, s.SetUint64([]byte(keyLastVoteTerm), 4))
	s.must(t, s.Set([]byte(keyLastVoteCand), []byte("a:1")))
	s.must(t, s.SetUint64([]byte(keyCurrentTerm), 5))
	s.must(t, s.SetUint64([]byte(keyLastVoteTerm), 5)) // the crash comes here

	for _, s := range []*stableStore{s, mustOpenStable(t, dir)} {
		term, err := s.GetUint64([]byte(keyLastVoteTerm))
		s.must(t, err)
		candidate, err := s.Get([]byte(keyLastVoteCand))
		s.must(t, err)
		current, err := s.GetUint64([]byte(keyCurrentTerm))
		s.must(t, err)
		// Term 5 beside a:1 would grant a:1 the vote of term 5 without looking at its log.
		if term != 4 || string(candidate) != "a:1" || current != 5 {
			t.Errorf("vote term %d, candidate %q, current term %d", term, candidate, current)
		}
	}
	s.must(t, s.Set([]byte(keyLastVoteCand), []byte("b:2")))
	v, _ := mustOpenStable(t, dir).state()
	if v.votedTerm != 5 || string(v.candidate) != "b:2" || v.currentTerm != 5 {
		t.Errorf("after the candidate: %+v", v)
	}
}

func TestStableStore_Empty_LooksLikeNoVote(t *testing.T) {
	s := mustOpenStable(t, t.TempDir())
	if c, err := s.Get([]byte(keyLastVoteCand)); c != nil || err != nil {
		t.Errorf("candidate %v, %v: raft takes a non-nil one for a vote", c, err)
	}
	if _, exists := s.state(); exists {
		t.Error("a file exists")
	}
	for _, err := range []error{
		s.Set([]byte("other"), nil), s.SetUint64([]byte("other"), 1), s.Set([]byte(keyLastVoteCand), []byte("x")),
	} {
		if err == nil || !strings.Contains(err.Error(), "BUG") {
			t.Errorf("misuse: %v", err)
		}
	}
}

func TestStableStore_CrashWhileReplacing_OldOrNewFile(t *testing.T) {
	dir := t.TempDir()
	s := mustOpenStable(t, dir)
	s.must(t, s.SetUint64([]byte(keyCurrentTerm), 1))
	// A crash leaves any prefix of the new file beside the old one.
	next := record.Append(nil, appendVote(nil, vote{currentTerm: 2, votedTerm: 2, candidate: []byte("a:1")}))
	for n := range next {
		if err := os.WriteFile(filepath.Join(dir, voteFileName+".tmp"), next[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if v, exists := mustOpenStable(t, dir).state(); !exists || v.currentTerm != 1 {
			t.Fatalf("after %d bytes: %+v", n, v)
		}
	}
	s = mustOpenStable(t, dir)
	s.must(t, s.SetUint64([]byte(keyCurrentTerm), 2))
	if v, _ := mustOpenStable(t, dir).state(); v.currentTerm != 2 {
		t.Errorf("a left-over temporary file stood in the way: %+v", v)
	}
}

func TestStableStore_Damaged_RefusedAndNamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, voteFileName)
	good := record.Append(nil, appendVote(nil, vote{currentTerm: 2, votedTerm: 2, candidate: []byte("a:1")}))
	for i := range good {
		for _, bad := range [][]byte{good[:i], append(append(bytes.Clone(good[:i]), good[i]^8), good[i+1:]...)} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := openStableStore(dir, testWait, newFailStop(func(error) {})); err == nil || !strings.Contains(err.Error(), path) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
}

func TestStableStore_WriteFails_PoisonedForGood(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := mustOpenStable(t, dir)
	s.must(t, s.SetUint64([]byte(keyCurrentTerm), 1))
	if err := os.Rename(dir, dir+"-away"); err != nil {
		t.Fatal(err)
	}
	first := s.SetUint64([]byte(keyCurrentTerm), 2)
	if first == nil {
		t.Fatal("a vote was written into a directory that is gone")
	}
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte(keyCurrentTerm), 3); !errors.Is(err, first) {
		t.Errorf("after the failure: %v", err)
	}
	if v, _ := s.state(); v.currentTerm != 1 {
		t.Errorf("state = %+v", v)
	}
}

func FuzzVote_Decode(f *testing.F) {
	f.Add(appendVote(nil, vote{currentTerm: 2, votedTerm: 1, candidate: []byte("a:1")}))
	f.Add(appendVote(nil, vote{logSeed: 7, joined: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeVote(b)
		if err == nil && !bytes.Equal(appendVote(nil, v), b) {
			t.Errorf("%x decodes but encodes otherwise", b)
		}
	})
}
