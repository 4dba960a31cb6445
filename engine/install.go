package engine

import (
	"errors"
	"fmt"
	"os"

	"kvstore/internal/failpoint"
	"kvstore/internal/record"
)

// Steps of receiving and installing a snapshot at which tests interfere, in order.
const (
	stepCreated   = "created"   // the generation's directory is there
	stepWritten   = "written"   // everything is in it
	stepSynced    = "synced"    // and durable
	stepVerified  = "verified"  // it is open as a store, and checked
	stepInstall   = "install"   // Install was called; CHECKPOINT names the old generation
	stepSwitched  = "switched"  // CHECKPOINT names the new generation; readers see the old one
	stepInstalled = "installed" // readers see the new one
	stepRemoved   = "removed"   // the old one is gone
)

// step tells the tests that a step was reached.
func (h *hooks) step(name string) {
	if h.atStep != nil {
		h.atStep(name)
	}
}

// Install puts the snapshot in the place of the engine's state: what is applied here without being in the
// snapshot is given up. After nil, Applied is the snapshot's point, and Durable tells it with Installed
// set. Readers that began on the old state finish on it; listings that it served get StatusCompacted. The
// effects of the entries between are not delivered; the sink is told (EffectSink.Installed).
//
// It belongs to the applier, like Apply. Everything that can fail comes before the switch, which is the
// rename of CHECKPOINT: an error means that nothing has changed, and a crash leaves the one or the other. The
// one exception is an error of the switch itself that leaves its outcome unknown: Options.Fatal is called.
// It refuses a snapshot that doesn't lie above Applied, and one that was discarded.
func (r *Received) Install() error {
	e := r.engine
	e.mu.Lock()
	if r.state != receivedReady {
		e.mu.Unlock()
		return fmt.Errorf("cannot install the snapshot of index %d: it was installed or discarded before", r.cp.Index)
	}
	r.state = receivedInstalling
	e.mu.Unlock()

	old := e.live.Load()
	old.store.o.hooks.step(stepInstall)
	if err := r.switchOver(old); err != nil {
		e.mu.Lock()
		r.state = receivedReady
		if errors.Is(err, record.ErrUnsynced) {
			r.state, e.received = receivedInstalled, nil // its files may be the ones that CHECKPOINT names
		}
		e.mu.Unlock()
		err = fmt.Errorf("cannot install the snapshot of index %d: %w", r.cp.Index, err)
		if errors.Is(err, record.ErrUnsynced) {
			old.store.fail(err)
		}
		return err
	}
	old.store.o.hooks.step(stepSwitched)

	if sink := r.in.sink; sink != nil {
		sink.Installed(pointOf(r.in.store.current()))
	}
	r.in.store.start()
	e.mu.Lock()
	e.past.add(old)
	e.live.Store(r.in)
	r.state, e.received = receivedInstalled, nil
	e.tasks.Add(1)
	e.mu.Unlock()
	e.transferred.installed.Add(1)
	e.waiters.wake(r.cp.Index)
	old.store.o.hooks.step(stepInstalled)
	old.store.log.Info("a snapshot is installed", "index", r.cp.Index, "generation", r.cp.Generation, "replaced_index", old.store.current().index, "replaced_generation", old.store.generation)
	// Owned by the engine; it ends when the last reader of the old state has left. Close waits for it.
	go func() {
		defer e.tasks.Done()
		if err := old.discard(); err != nil {
			old.store.log.Error("cannot remove a generation that was replaced; the next start will", "error", err)
		}
		old.store.o.hooks.step(stepRemoved)
	}()
	return nil
}

// switchOver makes CHECKPOINT name the new generation, unless something speaks against it. From then on the
// old store writes no checkpoint. An error that is not record.ErrUnsynced has changed nothing.
func (r *Received) switchOver(old *instance) error {
	if applied := old.applier.last.index; r.cp.Index <= applied {
		return fmt.Errorf("index %d is applied here", applied)
	}
	if err := r.in.belongs(old); err != nil {
		return err
	}
	if err := old.store.failure(); err != nil {
		return err
	}
	s := old.store
	s.writing.Lock() // a checkpoint under way ends first
	defer s.writing.Unlock()
	if err := failpoint.Err(failpoint.GenerationSwapBefore); err != nil {
		return err
	}
	err := s.o.hooks.writeCheckpoint(s.dir, &r.cp)
	if err == nil {
		failpoint.Hit(failpoint.GenerationSwapAfter)
	}
	if err == nil || errors.Is(err, record.ErrUnsynced) {
		s.replaced = true
	}
	return err
}

// removeGeneration removes the directory of a store that is not open.
func removeGeneration(s *store) error { return os.RemoveAll(s.genDir) }
