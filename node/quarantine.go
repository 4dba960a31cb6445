package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"kvstore/internal/record"
)

// ErrRestart marks a failure that the next start of the node heals, and that only a start can heal: its state
// is to be built anew from the other nodes, or its log has something in memory that is not on its disk. Who
// gets it, by Options.Fatal or from Open, closes the node and opens it again, best in a new process.
var ErrRestart = errors.New("the node must be started again")

const (
	quarantineName   = "QUARANTINE"
	quarantineFormat = 1
	// quarantineReasonMax bounds the reason that is kept, quarantineBytesMax the whole file.
	quarantineReasonMax = 2 << 10
	quarantineBytesMax  = 16 << 10

	// A node whose state is found damaged again and again has a disk, a memory or a program that can't be
	// trusted: after rebuildsMax rebuilds within rebuildsWindow it stops.
	rebuildsMax    = 3
	rebuildsWindow = time.Hour
)

// quarantine is the file QUARANTINE of the data directory: whether the state is to be built anew, and when it
// was before.
type quarantine struct {
	Format int `json:"format"`
	// Pending: the state found here may not be served; the next start builds it anew.
	Pending bool `json:"pending"`
	// Moved: what was found was set aside already; what is there now is what a start began to build.
	Moved bool `json:"moved"`
	// Stopped: that has happened too often; the node does not start before somebody has looked after it.
	Stopped bool `json:"stopped"`
	// Reach is the entry that the new state must cover at least, as the old one's checkpoint told where the log does
	// not reach as far. 0: the log tells enough, or the checkpoint could not be read.
	Reach uint64 `json:"reach,omitempty"`
	// Reason is why, or why it was the last time.
	Reason string `json:"reason"`
	// At are the times at which the state was set aside, oldest first, at most rebuildsMax.
	At []time.Time `json:"at"`
}

// readQuarantine reads the file; without one there never was a quarantine.
func readQuarantine(dir string) (q quarantine, err error) {
	path := filepath.Join(dir, quarantineName)
	b, err := record.ReadFile(path, quarantineBytesMax)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return quarantine{Format: quarantineFormat}, nil
	case err == nil:
		err = json.Unmarshal(b, &q)
	}
	if err == nil && q.Format != quarantineFormat {
		err = fmt.Errorf("it has format %d; this build reads format %d", q.Format, quarantineFormat)
	}
	if err != nil {
		// Whether the state may be served can't be told: it may not.
		return q, fmt.Errorf("cannot read %s, which tells whether the state of this node is to be built anew from the other nodes: %w. Remove the file to have the node start from the state that is there", path, err)
	}
	return q, nil
}

// write makes q durable.
func (q *quarantine) write(dir string) error {
	b, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("cannot encode the quarantine: %w", err)
	}
	if err := record.WriteFileAtomic(filepath.Join(dir, quarantineName), b, 0o600); err != nil {
		return fmt.Errorf("cannot note the quarantine: %w", err)
	}
	return nil
}

// recent counts the rebuilds in the window before now.
func (q *quarantine) recent(now time.Time) (n int) {
	for _, at := range q.At {
		if age := now.Sub(at); age >= 0 && age < rebuildsWindow {
			n++
		}
	}
	return n
}

// hold is the quarantine of a data directory in use.
type hold struct {
	// Immutable after openHold.
	dir string

	mu sync.Mutex
	// Guarded by mu.
	now quarantine // what the file says
}

// openHold reads the file.
func openHold(dir string) (*hold, error) {
	q, err := readQuarantine(dir)
	if err != nil {
		return nil, err
	}
	return &hold{dir: dir, now: q}, nil
}

// state gives what the file says.
func (h *hold) state() quarantine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

// change replaces what the file says, unless f returns false.
func (h *hold) change(f func(q *quarantine) bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.now
	next.At = slices.Clone(next.At)
	if !f(&next) {
		return nil
	}
	if err := next.write(h.dir); err != nil {
		return err
	}
	h.now = next
	return nil
}

// begin notes that the state may not be served any more. When that has happened too often of late it notes that the
// node is to stop, and returns the error of stopped.
func (h *hold) begin(now time.Time, cause error) error {
	reason := cause.Error()
	reason = reason[:min(len(reason), quarantineReasonMax)]
	err := h.change(func(q *quarantine) bool {
		stop := q.recent(now) >= rebuildsMax
		*q = quarantine{Format: quarantineFormat, Pending: true, Stopped: stop, Reason: reason, At: q.At}
		if !stop {
			at := append(q.At, now.UTC().Truncate(time.Second))
			q.At = at[max(0, len(at)-rebuildsMax):]
		}
		return true
	})
	return errors.Join(err, h.stopped())
}

// stopped returns an error when the node must not start.
func (h *hold) stopped() error {
	q := h.state()
	if !q.Stopped {
		return nil
	}
	return fmt.Errorf("the state of this node was made anew %d times within %s and may not be served again (%s): its disk, its memory or its program can't be trusted. Have them checked; then remove the file %s and start the node again, or replace the node",
		len(q.At), rebuildsWindow, q.Reason, filepath.Join(h.dir, quarantineName))
}

// reach notes how far the state reaches that is about to be set aside, see quarantine.Reach. read tells whether its
// checkpoint could be read. If it could not, what was noted before holds only where a crash came while that very state
// was set aside: what was built since may have reached further.
func (h *hold) reach(index uint64, read bool) error {
	return h.change(func(q *quarantine) bool {
		if !read && !q.Moved {
			return false
		}
		changed := q.Reach != index
		q.Reach = index
		return changed
	})
}

// moved notes that the state was set aside.
func (h *hold) moved() error {
	return h.change(func(q *quarantine) bool { q.Moved = true; return true })
}

// end notes that the state was made anew, unless that one has come into quarantine since; done tells.
func (h *hold) end() (done bool, err error) {
	err = h.change(func(q *quarantine) bool {
		if done = q.Pending && q.Moved; done {
			q.Pending, q.Moved, q.Reach = false, false, 0
		}
		return done
	})
	return done && err == nil, err
}

// giveUp takes begin back: this node can't make its state anew. The next start looks at what is there again.
func (h *hold) giveUp() error {
	return h.change(func(q *quarantine) bool {
		if !q.Pending {
			return false
		}
		q.Pending, q.Moved, q.Reach, q.At = false, false, 0, q.At[:max(0, len(q.At)-1)]
		return true
	})
}
