package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
)

// MissingMax bounds the parts that a Missing and a ScrubReport name.
const MissingMax = 100

// Lost tells what of a damaged store can't be read.
type Lost struct {
	// Dir is the group's directory.
	Dir string
	// Checkpoint is what was durable; nil when the file itself can't be read, for the reason in
	// CheckpointCause.
	Checkpoint      *Checkpoint
	CheckpointCause string
	// Generations are those that were looked at: the checkpoint's, or all when that isn't known.
	Generations []uint64
	// ManifestCause says why a list of tables can't be read; then all tables that are there were looked at,
	// also those that don't count any more.
	ManifestCause string
	// Tables is the number of tables that there should be, TableBytes the size of those that are there.
	Tables     int
	TableBytes int64
	// Damaged names up to MissingMax parts of tables that can't be read, or tables that are missing; More is
	// how many there are beyond.
	Damaged []DamagedRange
	More    int
	// Logs are memtable logs: what was written last. They are not looked into.
	Logs int
}

// Missing tells what of the stored state of a group can't be read: for a node that got ErrDamaged, has no
// other to fetch the state from, and must tell its operator what is at stake. It changes nothing and opens no
// database. It reads every table, so it takes as long as that. The store must not be open.
func Missing(dir string, group uint32) (*Lost, error) {
	if group == 0 {
		group = 1
	}
	l := &Lost{Dir: groupDir(dir, group)}
	cp, found, err := readCheckpoint(l.Dir)
	switch {
	case errors.Is(err, ErrDamaged):
		l.CheckpointCause = err.Error()
	case err != nil:
		return nil, fmt.Errorf("cannot tell what is missing in %q: %w", l.Dir, err)
	case !found:
		l.CheckpointCause = "there is none"
	default:
		l.Checkpoint, l.Generations = &cp, []uint64{cp.Generation}
	}
	if l.Checkpoint == nil {
		if l.Generations, err = listGenerations(l.Dir); err != nil {
			return nil, fmt.Errorf("cannot tell what is missing in %q: %w", l.Dir, err)
		}
	}
	for _, g := range l.Generations {
		if err := l.look(generationDir(l.Dir, g)); err != nil {
			return nil, fmt.Errorf("cannot tell what is missing in generation %d: %w", g, err)
		}
	}
	return l, nil
}

// look checks the tables of one generation.
func (l *Lost) look(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		l.add(DamagedRange{File: dir, Whole: true, Cause: "the directory is missing"})
		return nil
	}
	if err != nil {
		return err
	}
	tables, err := listedTables(dir)
	if err != nil {
		l.ManifestCause = err.Error()
	}
	for _, f := range files {
		switch filepath.Ext(f.Name()) {
		case memSuffix:
			l.Logs++
		case tableSuffix:
			if l.ManifestCause != "" {
				tables = append(tables, filepath.Join(dir, f.Name()))
			}
		}
	}
	l.Tables += len(tables)
	for _, path := range tables {
		if info, err := os.Stat(path); err == nil {
			l.TableBytes += info.Size()
		}
		if err := checkTable(path, func(int) error { return nil }, l.add); err != nil {
			return err
		}
	}
	return nil
}

// tableSuffix ends the names of tables.
const tableSuffix = ".sst"

// listedTables gives the paths of the tables that the manifest lists, in order.
func listedTables(dir string) (paths []string, err error) {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	m, _, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(dir))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", f.Name(), err)
	}
	for id := range m.Tables {
		paths = append(paths, table.NewFilename(id, dir))
	}
	slices.Sort(paths)
	return paths, nil
}

func (l *Lost) add(d DamagedRange) {
	if len(l.Damaged) >= MissingMax {
		l.More++
		return
	}
	l.Damaged = append(l.Damaged, d)
}

// String tells it to an operator, in some lines.
func (l *Lost) String() string {
	var b strings.Builder
	if l.Checkpoint != nil {
		fmt.Fprintf(&b, "the state in %s was durable up to entry %d of term %d.\n", l.Dir, l.Checkpoint.Index, l.Checkpoint.Term)
	} else {
		fmt.Fprintf(&b, "up to which entry the state in %s was durable can't be told: its %s can't be used (%s).\n", l.Dir, checkpointFile, l.CheckpointCause)
	}
	if l.ManifestCause != "" {
		fmt.Fprintf(&b, "the list of tables can't be read (%s); all %d that are there were checked.\n", l.ManifestCause, l.Tables)
	}
	if len(l.Damaged) == 0 {
		fmt.Fprintf(&b, "all %d tables (%d bytes) can be read; what is damaged stands elsewhere, perhaps in the %d memtable logs, which hold what was written last.\n", l.Tables, l.TableBytes, l.Logs)
		return b.String()
	}
	fmt.Fprintf(&b, "of %d tables (%d bytes) these parts can't be read:\n", l.Tables, l.TableBytes)
	for _, d := range l.Damaged {
		fmt.Fprintf(&b, "  %s\n", d)
	}
	if l.More > 0 {
		fmt.Fprintf(&b, "  and %d more\n", l.More)
	}
	return b.String()
}

// tables gives the paths of the tables that Badger has now. ErrClosed.
func (s *store) tables() (paths []string, err error) {
	if !s.gate.enter() {
		return nil, ErrClosed
	}
	defer s.gate.leave()
	defer caught(&err)
	for _, t := range s.db.Tables() {
		paths = append(paths, table.NewFilename(t.ID, s.genDir))
	}
	return paths, nil
}
