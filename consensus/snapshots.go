package consensus

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// snapshotStore is raft's SnapshotStore, without a file of its own: the only snapshot there is, is the
// durable checkpoint of the state machine. What raft believes about its snapshot and what the state
// machine has on disk can therefore never differ.
type snapshotStore struct{ sm StateMachine }

var _ raft.SnapshotStore = (*snapshotStore)(nil)

// List implements raft.SnapshotStore: the durable checkpoint, or nothing.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	d, ok := s.sm.Durable()
	if !ok {
		return nil, nil
	}
	configuration, err := decodeConfiguration(d.Configuration)
	if err != nil {
		return nil, fmt.Errorf("cannot use the checkpoint at index %d: %w", d.Index, err)
	}
	return []*raft.SnapshotMeta{{
		Version:            raft.SnapshotVersionMax,
		ID:                 snapshotID(d.Term, d.Index),
		Index:              d.Index,
		Term:               d.Term,
		Configuration:      configuration,
		ConfigurationIndex: d.ConfigurationIndex,
	}}, nil
}

// Create implements raft.SnapshotStore.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != raft.SnapshotVersionMax {
		return nil, fmt.Errorf("cannot create a snapshot of version %d", version)
	}
	return &snapshotSink{durable: Durable{
		Index: index, Term: term,
		Configuration:      raft.EncodeConfiguration(configuration),
		ConfigurationIndex: configurationIndex,
	}}, nil
}

// Open implements raft.SnapshotStore. It serves followers, of which there are none.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	return nil, nil, fmt.Errorf("cannot open snapshot %s for streaming: %w", id, errNoPeers)
}

// snapshotSink carries what raft calls a snapshot to Persist. It takes no data.
type snapshotSink struct{ durable Durable }

// ID implements raft.SnapshotSink.
func (s *snapshotSink) ID() string { return snapshotID(s.durable.Term, s.durable.Index) }

// Write implements raft.SnapshotSink.
func (s *snapshotSink) Write([]byte) (int, error) {
	return 0, errors.New("BUG: the state is durable in the state machine, a snapshot holds no data")
}

// Close implements raft.SnapshotSink.
func (s *snapshotSink) Close() error { return nil }

// Cancel implements raft.SnapshotSink.
func (s *snapshotSink) Cancel() error { return nil }

func snapshotID(term, index uint64) string { return fmt.Sprintf("%d-%d", term, index) }

// decodeConfiguration decodes what raft.EncodeConfiguration wrote; raft's own decoder panics.
func decodeConfiguration(b []byte) (c raft.Configuration, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("its raft configuration cannot be decoded: %v", r)
		}
	}()
	if c = raft.DecodeConfiguration(b); len(c.Servers) == 0 {
		return c, errors.New("its raft configuration has no members")
	}
	return c, nil
}
