package engine

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// Some damage kills: a compaction of Badger's panics on a bad block in a goroutine of its own, and a page of a
// mapped table that the disk can't read is a fault. After a restart Badger begins the same compaction again, so
// the process would die for ever. Therefore the trace of such a death is kept, and the next opening reads all
// tables before it lets Badger go on.

// deathFile takes the trace of a process that dies by a panic or a fault while its store is open. A process that
// is killed, or ends in order, leaves it empty or removed.
const deathFile = "DEATH.trace"

// deathTraceBytesMax bounds what is read of a trace: the goroutine that died stands first.
const deathTraceBytesMax = 64 << 10

// checkAfterDeath checks the checksums of all tables if the last process died in Badger. ErrDamaged: they tell
// why; the trace stays, so that every start says so until the state is quarantined. checked: the tables were checked.
func (s *store) checkAfterDeath() (checked bool, err error) {
	path := filepath.Join(s.dir, deathFile)
	trace, err := readTrace(path)
	if err != nil {
		return false, fmt.Errorf("cannot read the trace of the last process: %w", err)
	}
	if trace != "" {
		first, _, _ := strings.Cut(trace, "\n")
		s.log.Error("the last process died while the store was open", "cause", first, "trace", trace)
		if strings.Contains(trace, "github.com/dgraph-io/badger/") {
			if err := s.checkTables("the last process died of it ("+first+")", math.MaxInt64); err != nil {
				return false, err
			}
			checked = true
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return checked, nil
}

// openCheckBytesMax bounds the tables that are checked at every opening: at about 1 GB/s that is a second. Badger does
// not look at a block's checksum when it reads, and a key whose head is damaged then reads as absent; of larger
// stores the scrub finds that.
const openCheckBytesMax = 1 << 30

// checkTables checks every table of the generation, which is not open, unless they are larger than most. why is what is said before
// the damage that is found.
func (s *store) checkTables(why string, most int64) error {
	paths, err := listedTables(s.genDir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			s.log.Warn("cannot list the tables to check them", "error", err)
		}
		return nil // the opening that follows will tell
	}
	size := int64(0)
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil // the opening tells whether it is missing, or only can't be opened now
		}
		info, err := f.Stat()
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		size += info.Size()
	}
	if size > most {
		return nil
	}
	var found []DamagedRange
	for _, path := range paths {
		if err := checkTable(path, func(int) error { return nil }, func(d DamagedRange) { found = append(found, d) }); err != nil {
			return err
		}
	}
	if len(found) > 0 {
		return damaged(fmt.Sprintf("%s: %d parts of %d tables can't be read, the first: %s", why, len(found), len(paths), found[0]), nil)
	}
	s.log.Debug("all tables were checked, and are sound", "tables", len(paths), "bytes", size)
	return nil
}

// readTrace reads the beginning of a trace, "" if there is none.
func readTrace(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, deathTraceBytesMax))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	return string(b), nil
}
