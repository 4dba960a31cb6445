package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// closedStore makes a store with entries 1..last, checkpointed, and closes it.
func closedStore(t *testing.T, dir string, last uint64) (s *store) {
	t.Helper()
	s = mustOpenStore(t, storeOptions(t, dir))
	mustApply(t, s, 1, 1, last)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	return s
}

func mustHold(t *testing.T, s *store, last uint64) {
	t.Helper()
	got, p, err := contents(s, 0)
	if err != nil || p.index != last {
		t.Fatalf("at %d, %v; want %d", p.index, err, last)
	}
	if d := difference(got, modelAt(1, last)); d != "" {
		t.Fatal(d)
	}
}

func TestOpen_EmptyLogsLeftByACrash_AreRemoved(t *testing.T) {
	dir := t.TempDir()
	s := closedStore(t, dir, 50)
	for _, name := range []string{"00090.mem", "000090.vlog"} {
		if err := os.WriteFile(filepath.Join(s.genDir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opens := 0
	o := storeOptions(t, dir)
	o.hooks.openBadger = func(string) error { opens++; return nil }
	mustHold(t, mustOpenStore(t, o), 50)
	if opens != 1 {
		t.Fatalf("%d openings, want one", opens)
	}
}

func TestOpen_FailsOnceOrTwice_IsTriedAgainAndTheCountStartsOver(t *testing.T) {
	dir := t.TempDir()
	s := closedStore(t, dir, 50)
	for failures := range openFailuresMax {
		left := failures
		o := storeOptions(t, dir)
		o.hooks.openBadger = func(string) error {
			if left > 0 {
				left--
				return errors.New("injected")
			}
			return nil
		}
		s, err := openStore(o)
		if err != nil {
			t.Fatalf("after %d failures: %v", failures, err)
		}
		mustHold(t, s, 50)
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, openingFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the count is still there: %v", err)
	}
}

func TestOpen_FailsThreeTimes_IsDamageAndNothingIsTouched(t *testing.T) {
	dir := t.TempDir()
	s := closedStore(t, dir, 50)
	opens := 0
	o := storeOptions(t, dir)
	o.hooks.openBadger = func(string) error { opens++; return errors.New("injected") }
	for range 2 {
		if _, err := openStore(o); !errors.Is(err, ErrDamaged) {
			t.Fatalf("error %v, want ErrDamaged", err)
		}
	}
	if opens != openFailuresMax {
		t.Fatalf("%d openings, want %d: one that has failed so often may kill the process", opens, openFailuresMax)
	}
	// What the message advises.
	if err := os.Remove(filepath.Join(s.dir, openingFile)); err != nil {
		t.Fatal(err)
	}
	mustHold(t, mustOpenStore(t, storeOptions(t, dir)), 50)
}

func TestOpen_MachineIsShortOfSomething_IsNoDamage(t *testing.T) {
	dir := t.TempDir()
	closedStore(t, dir, 50)
	o := storeOptions(t, dir)
	o.hooks.openBadger = func(string) error { return errors.New("while mmapping x: too many open files") }
	for range openFailuresMax + 1 {
		if _, err := openStore(o); err == nil || errors.Is(err, ErrDamaged) {
			t.Fatalf("error %v, want one that is not ErrDamaged", err)
		}
	}
	mustHold(t, mustOpenStore(t, storeOptions(t, dir)), 50)
}

func TestOpen_CheckpointAndStoreDisagree_IsDamage(t *testing.T) {
	rewrite := func(change func(cp *Checkpoint)) func(t *testing.T, s *store) {
		return func(t *testing.T, s *store) {
			cp, _, err := readCheckpoint(s.dir)
			if err != nil {
				t.Fatal(err)
			}
			change(&cp)
			if err := writeCheckpoint(s.dir, &cp); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, damage := range map[string]func(t *testing.T, s *store){
		"checkpoint ahead of the store": rewrite(func(cp *Checkpoint) {
			p := testPoint(cp.Index + 1)
			cp.Index, cp.TS, cp.Marker = p.index, p.ts, storeTestMarker(p)
		}),
		"another marker":        rewrite(func(cp *Checkpoint) { cp.Marker[8]++ }),
		"another generation":    rewrite(func(cp *Checkpoint) { cp.Generation = 7 }),
		"checkpoint below data": rewrite(func(cp *Checkpoint) { cp.Index, cp.TS, cp.Fence = 1, 2, 0 }),
		"checkpoint is gone": func(t *testing.T, s *store) {
			if err := os.Remove(filepath.Join(s.dir, checkpointFile)); err != nil {
				t.Fatal(err)
			}
		},
		"generation is gone": func(t *testing.T, s *store) {
			if err := os.RemoveAll(s.genDir); err != nil {
				t.Fatal(err)
			}
		},
		"generation is another store's": func(t *testing.T, s *store) {
			other := closedStore(t, t.TempDir(), 20)
			if err := os.RemoveAll(s.genDir); err != nil {
				t.Fatal(err)
			}
			copyTree(t, other.genDir, s.genDir)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := closedStore(t, dir, 50)
			damage(t, s)
			for range 2 {
				if opened, err := openStore(storeOptions(t, dir)); !errors.Is(err, ErrDamaged) {
					if err == nil {
						err = opened.close()
					}
					t.Fatalf("error %v, want ErrDamaged", err)
				}
			}
			// What a node does whose log reaches back to its first entry.
			moved, err := Quarantine(dir, 0)
			if err != nil {
				t.Fatal(err)
			}
			if files, err := os.ReadDir(moved); err != nil || len(files) == 0 {
				t.Fatalf("quarantine holds %v, %v", files, err)
			}
			s = mustOpenStore(t, storeOptions(t, dir))
			if _, ok := s.recovered(); ok {
				t.Fatal("a quarantined store is not virgin")
			}
			mustApply(t, s, 1, 1, 60)
			if err := s.checkpointNow(context.Background()); err != nil {
				t.Fatal(err)
			}
			mustHold(t, s, 60)
		})
	}
}

func TestOpen_ProcessDiedWhileCreating_StartsVirgin(t *testing.T) {
	dir := t.TempDir()
	// Dead between Badger's creation and the first checkpoint.
	s := mustOpenStore(t, storeOptions(t, dir))
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(s.dir, checkpointFile)); err != nil {
		t.Fatal(err)
	}
	s = mustOpenStore(t, storeOptions(t, dir))
	mustApply(t, s, 1, 1, 5)
	mustHold(t, s, 5)
}

func TestOpen_OtherGenerations_AreRemovedAndStrangersRefused(t *testing.T) {
	dir := t.TempDir()
	s := closedStore(t, dir, 50)
	stale := generationDir(s.dir, 2)
	copyTree(t, s.genDir, stale)
	reopened := mustOpenStore(t, storeOptions(t, dir))
	mustHold(t, reopened, 50)
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the stale generation is still there: %v", err)
	}
	if err := reopened.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "gen-01"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(storeOptions(t, dir)); err == nil || !strings.Contains(err.Error(), "gen-01") {
		t.Fatalf("error %v, want one about gen-01", err)
	}
}

func TestOpen_KilledWhileOpening_NeverCounts(t *testing.T) {
	dir := t.TempDir()
	s := closedStore(t, dir, 50)
	for range 2 * openFailuresMax {
		// What a kill leaves: the trace file, armed and empty.
		disarm, err := armTrace(filepath.Join(s.dir, traceFile))
		if err != nil {
			t.Fatal(err)
		}
		defer disarm() //nolint:errcheck // the file is gone: the store removed it
		s := mustOpenStore(t, storeOptions(t, dir))
		mustHold(t, s, 50)
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, openingFile)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("something was counted: %v", err)
	}
}
