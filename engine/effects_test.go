package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
)

// callLog is a sink that notes in which order it is called, and what readers see meanwhile.
type callLog struct {
	effectLog
	e *Engine

	mu sync.Mutex
	// Guarded by mu: Sync comes from the checkpointer.
	calls   []string
	told    uint64 // index of the newest Effects
	syncErr error
}

func (l *callLog) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, fmt.Sprintf(format, args...))
}

func (l *callLog) Effects(p Point, effects []Effect) {
	l.effectLog.Effects(p, effects)
	l.mu.Lock()
	l.told = p.Index
	l.mu.Unlock()
	l.note("effects %d, readers at %d", p.Index, l.e.Applied().Index)
}

func (l *callLog) Published(p Point) {
	l.note("published %d, readers at %d", p.Index, l.e.Applied().Index)
}

func (l *callLog) Sync(p Point) error {
	durable, _ := l.e.Durable()
	l.mu.Lock()
	told := l.told
	l.mu.Unlock()
	l.note("sync %d, durable below: %v, told: %v", p.Index, durable.Index < p.Index, told >= p.Index)
	return l.syncErr
}

// A sink is told of every entry before its readers see it, also of one without effects and of a configuration, and has
// made it durable before the checkpoint is. After a crash it is told the same again.
func TestEffectSink_EachEntry_IsToldBeforeItIsSeenAndSyncedBeforeTheCheckpoint(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	o.CheckpointInterval = 1 << 40
	sink := &callLog{}
	o.Sink = sink
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	sink.e = e
	e.ApplyConfiguration(1, 1, []byte("c"))
	e.ApplyConfiguration(2, 1, []byte("d"))
	if err := e.CheckpointNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"effects 1, readers at 0", "published 1, readers at 1", "effects 2, readers at 1", "published 2, readers at 2",
		"sync 2, durable below: true, told: true",
	}
	if !slices.Equal(sink.calls, want) {
		t.Fatalf("calls %q, want %q", sink.calls, want)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// A sink that can't make its effects durable stops the engine, and the checkpoint stays.
func TestEffectSink_SyncFails_NoCheckpointIsMade(t *testing.T) {
	o := engineOptions(t, t.TempDir())
	sink := &callLog{syncErr: errors.New("the disk is gone")}
	var fatal []error
	o.Sink, o.Fatal, o.CheckpointInterval = sink, func(err error) { fatal = append(fatal, err) }, 1<<40
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	sink.e = e
	e.ApplyConfiguration(1, 1, []byte("c"))
	if err := e.CheckpointNow(context.Background()); !errors.Is(err, sink.syncErr) {
		t.Fatal(err)
	}
	if cp, ok := e.Durable(); ok {
		t.Fatalf("there is a checkpoint of %d", cp.Index)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if len(fatal) != 1 {
		t.Fatalf("%d failures told", len(fatal))
	}
}

func TestNamespaceOfRecord_Keys_AreToldApart(t *testing.T) {
	for key, want := range map[string]uint32{namespaceKey(1): 1, namespaceKey(0xabcdef01): 0xabcdef01, systemNamespaceNext: 0, "namespace/1": 0, "namespace/0000000G": 0, "member/a": 0} {
		if id, ok := NamespaceOfRecord([]byte(key)); ok != (want != 0) || ok && id != want {
			t.Errorf("%q: %d %v", key, id, ok)
		}
	}
}
