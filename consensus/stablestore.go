package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"kvstore/internal/failpoint"
	"kvstore/internal/record"
)

// The vote file: the one small file that must never go back in time. It is one record (internal/record)
// with this payload; integers are little endian:
//
//	0      version (1)
//	1      flags (bit 0: this node joined a running cluster), then two bytes 0
//	4..8   the seed of the log that lies beside it
//	8..16  current term
//	16..24 term of the last vote
//	24..   candidate of that vote (the address that raft votes by)
//
// The seed ties vote and log together: a log that was deleted or exchanged would else look like one
// that never had an entry.
const (
	voteFileName      = "vote"
	voteVersion       = 1
	voteHeaderBytes   = 24
	candidateBytesMax = 1024

	voteFlagJoined = 1 << 0
)

// Keys that hashicorp/raft v1.8.0 uses; it has no others.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
)

// vote is the content of the vote file.
type vote struct {
	logSeed     uint32
	joined      bool
	currentTerm uint64
	votedTerm   uint64
	candidate   []byte
}

func appendVote(dst []byte, v vote) []byte {
	flags := byte(0)
	if v.joined {
		flags |= voteFlagJoined
	}
	dst = append(dst, voteVersion, flags, 0, 0)
	dst = binary.LittleEndian.AppendUint32(dst, v.logSeed)
	dst = binary.LittleEndian.AppendUint64(dst, v.currentTerm)
	dst = binary.LittleEndian.AppendUint64(dst, v.votedTerm)
	return append(dst, v.candidate...)
}

func decodeVote(b []byte) (vote, error) {
	if len(b) < voteHeaderBytes || len(b) > voteHeaderBytes+candidateBytesMax {
		return vote{}, fmt.Errorf("%d bytes are no vote", len(b))
	}
	if b[0] != voteVersion || b[1]&^voteFlagJoined != 0 || b[2] != 0 || b[3] != 0 {
		return vote{}, fmt.Errorf("version %d, flags %#x: not written by this version of the program", b[0], b[1])
	}
	v := vote{
		joined:      b[1]&voteFlagJoined != 0,
		logSeed:     binary.LittleEndian.Uint32(b[4:]),
		currentTerm: binary.LittleEndian.Uint64(b[8:]),
		votedTerm:   binary.LittleEndian.Uint64(b[16:]),
	}
	if len(b) > voteHeaderBytes {
		v.candidate = bytes.Clone(b[voteHeaderBytes:])
	}
	return v, nil
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
	// logged waits until the log is on disk. Set before raft runs.
	logged func() error

	mu sync.Mutex
	// Guarded by mu.
	durable vote   // what the file holds
	exists  bool   // there is a file
	pending uint64 // term of a vote whose candidate has not come yet; 0 if none
}

// openStableStore reads the vote file in dir. Absence is no error: exists tells.
func openStableStore(dir string, stall time.Duration, fault *failStop) (*stableStore, error) {
	s := &stableStore{path: filepath.Join(dir, voteFileName), fault: fault, watch: newWatchdog(stall, "vote", fault), logged: func() error { return nil }}
	b, err := record.ReadFile(s.path, voteHeaderBytes+candidateBytesMax)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		s.durable, err = decodeVote(b)
	}
	if err != nil {
		return nil, fmt.Errorf("the vote file %q cannot be used (%w): without it this node could vote twice in one term. Restore the file. In a cluster: remove the member (kvctl member remove), then let it join again with an empty data directory", s.path, err)
	}
	s.exists = true
	return s, nil
}

// setLog names the log that the vote belongs to. It is written with the next write. REQUIRES: raft does
// not run.
func (s *stableStore) setLog(seed uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable.logSeed = seed
}

// join makes durable that this node joined a running cluster. REQUIRES: raft does not run.
func (s *stableStore) join() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exists && s.durable.joined {
		return nil
	}
	next := s.durable
	next.joined = true
	return s.writeLocked(next)
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
	return s.writeLocked(vote{logSeed: s.durable.logSeed})
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

// SetUint64 implements raft.StableStore. A new term begins only when the log is on disk: what a leader has not written
// yet when it is deposed is then nothing that the next leader's messages, or a vote, could take for stored.
func (s *stableStore) SetUint64(key []byte, value uint64) error {
	if string(key) == keyCurrentTerm {
		if err := s.logged(); err != nil {
			return s.fault.leave(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyLastVoteTerm:
		s.pending = value
		return s.fault.check()
	case keyCurrentTerm:
		if s.exists && s.durable.currentTerm == value {
			return s.fault.leave(s.fault.check())
		}
		next := s.durable
		next.currentTerm = value
		return s.fault.leave(s.writeLocked(next))
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
	err := failpoint.Err(failpoint.VoteBefore)
	if err == nil {
		err = record.WriteFileAtomic(s.path, appendVote(nil, v), 0o600)
	}
	if err == nil {
		err = failpoint.Err(failpoint.VoteAfter)
	}
	s.watch.stop()
	if err != nil {
		return s.fault.fail(fmt.Errorf("cannot write the vote file: %w", err))
	}
	s.durable, s.exists = v, true
	return s.fault.check()
}
