package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"kvstore/internal/record"
)

// identity is who a data directory belongs to. The incarnation is drawn once, when the directory is
// first used: a node that lost its disk comes back with another one and can't be taken for its old self.
type identity struct {
	Format      int       `json:"format"`
	NodeID      string    `json:"node_id"`
	Incarnation string    `json:"incarnation"` // 128 random bits, hex
	CreatedAt   time.Time `json:"created_at"`
	// Served is set before the node first opens its doors: from then on there may be acknowledged writes,
	// and a directory without any state of its group has lost them.
	Served bool `json:"served"`
}

const (
	identityFormat   = 1
	identityBytesMax = 4 << 10
)

// lockDir takes the data directory for this process, creating it if need be. The lock is advisory and
// ends with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock of data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		closeErr := f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another process: stop that one, or choose another with --data-dir", dir)
		}
		return nil, errors.Join(fmt.Errorf("cannot lock data directory %s: %w", dir, err), closeErr)
	}
	return f, nil
}

// loadIdentity reads the directory's identity, or gives it one when it is new. It refuses a directory
// that belongs to another node, and one that holds data but no identity.
func loadIdentity(dir, nodeID string) (id identity, fresh bool, err error) {
	path := filepath.Join(dir, "identity")
	b, err := record.ReadFile(path, identityBytesMax)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &id); err != nil {
			return id, false, fmt.Errorf("cannot read identity of data directory %s: %w", dir, err)
		}
		if id.Format != identityFormat {
			return id, false, fmt.Errorf("data directory %s has format %d; this build reads format %d", dir, id.Format, identityFormat)
		}
		if id.NodeID != nodeID {
			return id, false, fmt.Errorf("data directory %s belongs to node %q, not to %q: start with --node-id %s, or choose another --data-dir", dir, id.NodeID, nodeID, id.NodeID)
		}
		return id, false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return id, false, fmt.Errorf("cannot read identity of data directory %s: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "groups")); !errors.Is(err, fs.ErrNotExist) {
		return id, false, fmt.Errorf("data directory %s holds data but no identity file: restore the file %s from a copy, or choose another --data-dir", dir, path)
	}
	var bits [16]byte
	rand.Read(bits[:]) // never fails: it ends the process if the system has no randomness
	id = identity{Format: identityFormat, NodeID: nodeID, Incarnation: hex.EncodeToString(bits[:]), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	return id, true, id.write(dir)
}

// write replaces the identity file of dir.
func (id *identity) write(dir string) error {
	b, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("cannot encode identity: %w", err)
	}
	if err := record.WriteFileAtomic(filepath.Join(dir, "identity"), b, 0o600); err != nil {
		return fmt.Errorf("cannot write identity of data directory %s: %w", dir, err)
	}
	return nil
}

// checkNotEmptied refuses a directory that served before and whose group has neither a checkpoint nor a
// vote now. Engine and log would each find themselves new, agree, and start an empty store. (Where only
// some of their files are missing, they find the contradiction themselves.)
func (id *identity) checkNotEmptied(dir string) error {
	if !id.Served {
		return nil
	}
	group := filepath.Join(dir, "groups", "1")
	for _, name := range []string{"CHECKPOINT", filepath.Join("log", "vote")} {
		if _, err := os.Stat(filepath.Join(group, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil // there, or an error that its owner will meet and name
		}
	}
	return fmt.Errorf("data directory %s served before, but the state in %s is gone: everything that was acknowledged would be missing. "+
		"Put the missing files back, or restore from a backup into a new data directory; if the data is not needed any more, choose another --data-dir", dir, group)
}
