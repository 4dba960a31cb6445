package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ReadCheckpoint reads the checkpoint of a group whose store is not open; ok is false when there is none. For who
// must decide what to do about a store that Open calls damaged. Errors: ErrDamaged, and those of the disk.
func ReadCheckpoint(dir string, group uint32) (cp Checkpoint, ok bool, err error) {
	if group == 0 {
		group = 1
	}
	return readCheckpoint(groupDir(dir, group))
}

// RemoveQuarantined removes what Quarantine has set aside of a group. The store may be open.
func RemoveQuarantined(dir string, group uint32) error {
	if group == 0 {
		group = 1
	}
	dir = groupDir(dir, group)
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot remove what was quarantined: %w", err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), quarantinePrefix) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
			return fmt.Errorf("cannot remove what was quarantined: %w", err)
		}
	}
	return nil
}

// ForgetFailures forgets how often the store of a group could not be opened, so that the next Open tries again: for a
// node that stops because of it anyway, and whose operator may mend what is damaged. The store must not be open.
func ForgetFailures(dir string, group uint32) error {
	if group == 0 {
		group = 1
	}
	return removeOpening(filepath.Join(groupDir(dir, group), openingFile))
}
