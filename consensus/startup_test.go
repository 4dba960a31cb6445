package consensus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

func TestDecide_EveryKindOfState(t *testing.T) {
	voted := vote{currentTerm: 5, votedTerm: 5, candidate: []byte("a")}
	at := func(index, term uint64) Durable { return Durable{Index: index, Term: term} }
	installed := func(index, term uint64) Durable { return Durable{Index: index, Term: term, Installed: true} }
	for _, c := range []struct {
		name   string
		f      found
		action action
		refuse string // part of the message
	}{
		{"virgin", found{}, actionBootstrap, ""},
		{"bootstrap cut short", found{vote: vote{currentTerm: 1}, voteExists: true}, actionBootstrap, ""},
		{"log from the first entry", found{first: 1, last: 9, lastTerm: 5, vote: voted, voteExists: true}, actionContinue, ""},
		{"log and checkpoint", found{first: 4, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5), termAt: 5, lone: true}, actionContinue, ""},
		{"log begins right behind the checkpoint", found{first: 7, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5), lone: true}, actionContinue, ""},

		{"only a vote", found{vote: voted, voteExists: true}, 0, "both were deleted"},
		{"no vote", found{first: 1, last: 9, lastTerm: 5}, 0, "vote file \"vote\" is missing"},
		{"no vote beside a checkpoint", found{hasDurable: true, durable: at(6, 5), lone: true}, 0, "is missing"},
		{"old vote", found{first: 1, last: 9, lastTerm: 6, vote: voted, voteExists: true}, 0, "vote file is from an older copy"},
		{"checkpoint deleted", found{first: 4, last: 9, lastTerm: 5, vote: voted, voteExists: true}, 0, "checkpoint was deleted"},
		{"log deleted", found{vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5), lone: true}, 0, "log was deleted"},
		{"log behind", found{first: 1, last: 5, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5), lone: true}, 0, "log lost its end"},
		{"gap", found{first: 8, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5), lone: true}, 0, "entries 7 to 7 are missing"},
		{"other history", found{first: 4, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: at(6, 4), termAt: 5, lone: true}, 0, "different histories"},
		{"senseless checkpoint", found{first: 1, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, lone: true}, 0, "which no entry has"},

		// A snapshot from the leader may have overtaken the log.
		{"installed, log empty", found{vote: voted, voteExists: true, hasDurable: true, durable: installed(6, 5)}, actionContinue, ""},
		{"installed, log behind", found{first: 1, last: 5, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: installed(6, 5)}, actionEmptyLog, ""},
		{"installed, other history", found{first: 1, last: 9, lastTerm: 4, vote: voted, voteExists: true, hasDurable: true, durable: installed(6, 5), termAt: 4}, actionEmptyLog, ""},
		{"installed, entries behind it", found{first: 7, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: installed(6, 5)}, actionContinue, ""},
		{"installed, gap", found{first: 8, last: 9, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: installed(6, 5)}, 0, "are missing"},
		// Without that, a member of a cluster has lost its memory.
		{"member, log empty", found{vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5)}, 0, "kvctl member remove"},
		{"member, log behind", found{first: 1, last: 5, lastTerm: 5, vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5)}, 0, "kvctl member remove"},
		{"member, other history", found{first: 1, last: 9, lastTerm: 4, vote: voted, voteExists: true, hasDurable: true, durable: at(6, 5), termAt: 4}, 0, "different histories"},
		{"member, only a vote", found{vote: voted, voteExists: true}, 0, "kvctl member remove"},

		{"joining", found{joining: true}, actionJoin, ""},
		{"joining again", found{vote: vote{joined: true}, voteExists: true}, actionJoin, ""},
		{"joining, a term came before an entry", found{vote: vote{joined: true, currentTerm: 9}, voteExists: true}, actionJoin, ""},
		{"joined, log deleted and made anew", found{logSeed: 2, vote: vote{logSeed: 1, joined: true, currentTerm: 9}, voteExists: true}, 0, "belongs to another log"},
		{"installed, log deleted and made anew", found{logSeed: 2, vote: vote{logSeed: 1, currentTerm: 9}, voteExists: true, hasDurable: true, durable: installed(6, 5)}, 0, "belongs to another log"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.f.decide("/d")
			switch {
			case c.refuse == "" && (err != nil || got != c.action):
				t.Errorf("decide = %v, %v", got, err)
			case c.refuse != "" && (!errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), c.refuse) || !strings.Contains(err.Error(), "/d")):
				t.Errorf("decide = %v, %v; want %q", got, err, c.refuse)
			}
		})
	}
}

// usedGroup leaves a directory with a compacted log, a checkpoint and entries above it.
func usedGroup(t *testing.T) (dir string, o Options, want []string) {
	dir = t.TempDir()
	o = testOptions(dir)
	o.TrailingLogs = 3
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	for range 10 {
		mustPropose(t, g, "x")
	}
	if err := g.Snapshot(testContext(t)); err != nil {
		t.Fatal(err)
	}
	mustPropose(t, g, "y")
	closeGroup(t, g)
	return dir, o, m.commands()
}

func TestOpen_PartsDeletedFromOutside_RefusedAndUsableOncePutBack(t *testing.T) {
	for name, remove := range map[string][]string{
		"log":                {"log/*.wal", "log/wal-meta.db"},
		"log and vote":       {"log/*"},
		"vote":               {"log/vote"},
		"checkpoint":         {"checkpoint"},
		"log and checkpoint": {"log/*.wal", "log/wal-meta.db", "checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, o, want := usedGroup(t)
			backup := t.TempDir()
			if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			for _, pattern := range remove {
				files, err := filepath.Glob(filepath.Join(dir, pattern))
				if err != nil || len(files) == 0 {
					t.Fatalf("nothing matches %q (%v)", pattern, err)
				}
				for _, f := range files {
					if err := os.Remove(f); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, err := Open(context.Background(), o, openMachine(t, dir))
			if !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), o.Dir) {
				t.Fatalf("Open = %v", err)
			}
			t.Log(err)
			o = testOptions(backup)
			m := openMachine(t, backup)
			g := openGroup(t, o, m)
			if !slices.Equal(m.commands(), want) {
				t.Errorf("put back: %q", m.commands())
			}
			closeGroup(t, g)
		})
	}
}

func TestOpen_OlderCopyOfTheLog_Refused(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	mustPropose(t, g, "a")
	closeGroup(t, g)
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	m = openMachine(t, dir)
	g = openGroup(t, o, m)
	mustPropose(t, g, "b")
	if err := m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	closeGroup(t, g)
	b, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "checkpoint"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), testOptions(old), openMachine(t, old)); !errors.Is(err, ErrContradiction) {
		t.Errorf("Open = %v", err)
	}
}

func TestOpen_BootstrapCutShort_Completed(t *testing.T) {
	dir := t.TempDir()
	o := testOptions(dir)
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	log := mustOpenLog(t, o.Dir)
	s := mustOpenStable(t, o.Dir)
	s.setLog(log.seed)
	s.must(t, s.SetUint64([]byte(keyCurrentTerm), 1)) // what raft writes first
	log.mustClose(t)
	g := openGroup(t, o, openMachine(t, dir))
	mustPropose(t, g, "a")
	closeGroup(t, g)
}

func TestOpen_SnapshotOvertookLog_LogIsEmptied(t *testing.T) {
	// A follower crashed after a snapshot became its checkpoint and before raft emptied the log: without
	// repair raft-wal refuses every append as a gap.
	dir := t.TempDir()
	o := testOptions(dir)
	m := openMachine(t, dir)
	g := openGroup(t, o, m)
	for range 5 {
		mustPropose(t, g, "x")
	}
	term := g.Status().Term
	closeGroup(t, g)
	three := raft.Configuration{Servers: []raft.Server{
		{ID: "node-1", Address: "127.0.0.1:7000"}, {ID: "node-2", Address: "127.0.0.1:7010"}, {ID: "node-3", Address: "127.0.0.1:7020"},
	}}
	m = openMachine(t, dir)
	m.state.At = Durable{Index: 100, Term: term, Configuration: raft.EncodeConfiguration(three), ConfigurationIndex: 50, Installed: true}
	if err := m.checkpoint(); err != nil {
		t.Fatal(err)
	}
	g, err := Open(context.Background(), o, m)
	if err != nil {
		t.Fatal(err)
	}
	if s := g.Status(); s.FirstIndex != 0 || s.LastIndex != 100 || s.Voters != 3 || s.Role == RoleLeader {
		t.Errorf("status %+v", s)
	}
	if err := g.logs.StoreLog(&raft.Log{Index: 101, Term: term}); err != nil {
		t.Errorf("the next entry: %v", err)
	}
	if err := g.Propose([]byte("x"), func(any, error) {}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("Propose on a node without a majority: %v", err)
	}
	closeGroup(t, g)
}
