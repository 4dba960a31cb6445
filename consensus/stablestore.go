package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"kvstore/internal/record"
)

// The vote file: the one small file that must never go back in time. Integers are little endian.
//
//	0      magic "KVSVOTE" and version 1
//	8..16  current term
//	16..24 term of the last vote
//	24..28 length of the candidate
//	28..   candidate (the address that raft votes by)
//	last 4 CRC-32C over all before
//
// It is replaced as a whole: written beside, fsynced, renamed over, directory fsynced.
const (
	voteFileName      = "vote"
	voteMagic         = "KVSVOTE\x01"
	voteHeaderBytes   = 28
	candidateBytesMax = 1024
)

// Keys that hashicorp/raft v1.8.0 uses; it has no others.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
)

// vote is the content of the vote file.
type vote struct {
	currentTerm uint64
	votedTerm   uint64
	candidate   []byte
}

func appendVote(dst []byte, v vote) []byte {
	start := len(dst)
	dst = append(dst, voteMagic...)
	dst = binary.LittleEndian.AppendUint64(dst, v.currentTerm)
	dst = binary.LittleEndian.AppendUint64(dst, v.votedTerm)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(v.candidate)))
	dst = append(dst, v.candidate...)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func decodeVote(b []byte) (vote, error) {
	if len(b) < voteHeaderBytes+4 || string(b[:8]) != voteMagic {
		return vote{}, fmt.Errorf("%d bytes that do not begin as a vote file of this version", len(b))
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return vote{}, fmt.Errorf("checksum is %08x, its bytes give %08x", sum, got)
	}
	n := binary.LittleEndian.Uint32(b[24:])
	if n > candidateBytesMax || int(n) != len(body)-voteHeaderBytes {
		return vote{}, fmt.Errorf("candidate of %d bytes in %d", n, len(b))
	}
	return vote{
		currentTerm: binary.LittleEndian.Uint64(b[8:]),
		votedTerm:   binary.LittleEndian.Uint64(b[16:]),
		candidate:   bytes.Clone(body[voteHeaderBytes:]),
	}, nil
}

// stableStore is raft's StableStore. raft writes a vote as two values, the term and then the candidate;
// after a crash between them a node would hold the new term beside the old candidate, grant that
// candidate a vote that it never checked, and perhaps vote twice (hashicorp/raft #661). Here the term
// is held back until the candidate arrives and both are written at once.
type stableStore struct {
	// Immutable after openStableStore.
	path  string
	fault *failStop
	watch *watchdog

	mu sync.Mutex
	// Guarded by mu.
	durable vote   // what the file holds
	exists  bool   // there is a file
	pending uint64 // term of a vote whose candidate has not come yet; 0 if none
}

// openStableStore reads the vote file in dir. Absence is no error: exists tells.
func openStableStore(dir string, stall time.Duration, fault *failStop) (*stableStore, error) {
	s := &stableStore{path: filepath.Join(dir, voteFileName), fault: fault, watch: newWatchdog(stall, "vote", fault)}
	b, err := os.ReadFile(s.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("cannot read the vote file: %w", err)
	}
	if s.durable, err = decodeVote(b); err != nil {
		return nil, fmt.Errorf("the vote file %q is damaged (%w): without it this node could vote twice in one term; restore the file, or remove this node's data and let it join as a new node", s.path, err)
	}
	s.exists = true
	return s, nil
}

// state returns what is on disk.
func (s *stableStore) state() (v vote, exists bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable, s.exists
}

// reset takes the file back to a node that never ran. REQUIRES: raft does not run; the log is empty.
func (s *stableStore) reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writeLocked(vote{})
}

// Set implements raft.StableStore.
func (s *stableStore) Set(key, value []byte) error {
	if string(key) != keyLastVoteCand || len(value) > candidateBytesMax {
		return fmt.Errorf("BUG: vote store cannot hold %q with %d bytes", key, len(value))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == 0 {
		return fmt.Errorf("BUG: a candidate was set before the term of its vote")
	}
	next := s.durable
	next.votedTerm, next.candidate = s.pending, bytes.Clone(value)
	s.pending = 0
	return s.writeLocked(next)
}

// Get implements raft.StableStore. It returns nil, which raft tells from an empty value, for no vote.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	if string(key) != keyLastVoteCand {
		return nil, fmt.Errorf("BUG: vote store does not know %q", key)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.durable.candidate) == 0 {
		return nil, nil
	}
	return bytes.Clone(s.durable.candidate), nil
}

// SetUint64 implements raft.StableStore.
func (s *stableStore) SetUint64(key []byte, value uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyLastVoteTerm:
		s.pending = value
		return s.fault.check()
	case keyCurrentTerm:
		if s.exists && s.durable.currentTerm == value {
			return s.fault.check()
		}
		next := s.durable
		next.currentTerm = value
		return s.writeLocked(next)
	default:
		return fmt.Errorf("BUG: vote store does not know %q", key)
	}
}

// GetUint64 implements raft.StableStore.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyLastVoteTerm:
		return s.durable.votedTerm, nil
	case keyCurrentTerm:
		return s.durable.currentTerm, nil
	default:
		return 0, fmt.Errorf("BUG: vote store does not know %q", key)
	}
}

// writeLocked makes v durable. REQUIRES: mu held.
func (s *stableStore) writeLocked(v vote) error {
	if err := s.fault.check(); err != nil {
		return err
	}
	s.watch.start()
	err := replaceFile(s.path, appendVote(nil, v))
	s.watch.stop()
	if err != nil {
		return s.fault.fail(fmt.Errorf("cannot write the vote file: %w", err))
	}
	s.durable, s.exists = v, true
	return s.fault.check()
}

// replaceFile replaces path with content such that a crash leaves the old or the new file.
func replaceFile(path string, content []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return record.SyncDir(filepath.Dir(path))
}
