package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestReadCheckpoint_ClosedStore_IsWhatOpenWouldFind(t *testing.T) {
	dir := t.TempDir()
	if _, ok, err := ReadCheckpoint(dir, 0); ok || err != nil {
		t.Fatalf("an empty directory has a checkpoint: %v", err)
	}
	e, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	e.ApplyConfiguration(3, 2, []byte("configuration"))
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	cp, ok, err := ReadCheckpoint(dir, 0)
	if err != nil || !ok || cp.Index != 3 || cp.Term != 2 || string(cp.Configuration) != "configuration" || cp.ConfigurationIndex != 3 {
		t.Errorf("the checkpoint is %+v, %v, %v", cp, ok, err)
	}
	path := filepath.Join(dir, "groups/1", checkpointFile)
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := ReadCheckpoint(dir, 1); ok || !errors.Is(err, ErrDamaged) {
		t.Errorf("of a torn checkpoint: %v, %v", ok, err)
	}
}

func TestRemoveQuarantined_TakesWhatWasSetAsideAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		e, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Quarantine(dir, 1); err != nil {
			t.Fatal(err)
		}
	}
	e, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := RemoveQuarantined(dir, 0); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "groups/1", quarantinePrefix+"*")); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := ReadCheckpoint(dir, 1); err != nil || !ok {
		t.Errorf("the store beside it: %v, %v", ok, err)
	}
}

func TestForgetFailures_NextOpenTriesAgain(t *testing.T) {
	dir := t.TempDir()
	bad := errors.New("bad")
	o := Options{Dir: dir, hooks: hooks{openBadger: func(string) error { return bad }}}
	if _, err := Open(o); !errors.Is(err, ErrDamaged) {
		t.Fatalf("a store that never opens: %v", err)
	}
	o.hooks = hooks{}
	if _, err := Open(o); !errors.Is(err, ErrDamaged) {
		t.Fatalf("after so many failures it is tried again: %v", err)
	}
	if err := ForgetFailures(dir, 0); err != nil {
		t.Fatal(err)
	}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}
