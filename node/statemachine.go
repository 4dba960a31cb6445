package node

import (
	"context"
	"io"

	"kvstore/consensus"
	"kvstore/engine"
)

// stateMachine lets the group drive the engine.
type stateMachine struct{ engine *engine.Engine }

// Apply implements consensus.StateMachine.
func (m stateMachine) Apply(index, term uint64, data []byte) any {
	return m.engine.Apply(index, term, data)
}

// ApplyConfiguration implements consensus.StateMachine.
func (m stateMachine) ApplyConfiguration(index, term uint64, configuration []byte) {
	m.engine.ApplyConfiguration(index, term, configuration)
}

// Applied implements consensus.StateMachine.
func (m stateMachine) Applied() uint64 { return m.engine.Applied().Index }

// Durable implements consensus.StateMachine.
func (m stateMachine) Durable() (consensus.Durable, bool) {
	c, ok := m.engine.Durable()
	return consensus.Durable{Index: c.Index, Term: c.Term, Configuration: c.Configuration, ConfigurationIndex: c.ConfigurationIndex, Installed: c.Installed}, ok
}

// WaitDurable implements consensus.StateMachine.
func (m stateMachine) WaitDurable(ctx context.Context, index uint64) error {
	return m.engine.WaitDurable(ctx, index)
}

// Witness implements consensus.StateMachine.
func (m stateMachine) Witness(ctx context.Context, d consensus.Durable) error {
	return m.engine.Witness(ctx, d.Index, d.Term, d.Configuration, d.ConfigurationIndex)
}

// OpenSnapshot implements consensus.StateMachine.
func (m stateMachine) OpenSnapshot(ctx context.Context) (consensus.Durable, io.ReadCloser, error) {
	s, err := m.engine.OpenSnapshot(ctx)
	if err != nil {
		return consensus.Durable{}, nil, err
	}
	meta := s.Meta()
	return consensus.Durable{Index: meta.Index, Term: meta.Term, Configuration: meta.Configuration, ConfigurationIndex: meta.ConfigurationIndex}, snapshotStream{s}, nil
}

// snapshotStream is a snapshot that is being sent, as a group sees it.
type snapshotStream struct{ *engine.Snapshot }

// Progress tells a group how far the snapshot has been read.
func (s snapshotStream) Progress() consensus.SnapshotProgress {
	return progressOf(s.Snapshot.Progress())
}

// Receiving tells a group how far the snapshot that is being received has come.
func (m stateMachine) Receiving() (consensus.SnapshotProgress, bool) {
	p, ok := m.engine.Receiving()
	return progressOf(p), ok
}

func progressOf(p engine.SnapshotProgress) consensus.SnapshotProgress {
	return consensus.SnapshotProgress{Records: p.RecordsDone, Bytes: p.Bytes, TotalRecords: p.Records, TotalBytes: p.RecordBytes}
}

// ReceiveSnapshot implements consensus.StateMachine.
func (m stateMachine) ReceiveSnapshot(ctx context.Context, d consensus.Durable, r io.Reader) (consensus.Received, error) {
	received, err := m.engine.ReceiveSnapshot(ctx, engine.SnapshotMeta{
		Index: d.Index, Term: d.Term, Configuration: d.Configuration, ConfigurationIndex: d.ConfigurationIndex,
	}, r)
	if err != nil {
		return nil, err // not a nil *engine.Received in an interface that is not nil
	}
	return received, nil
}
