package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"
)

// simEntry is one applied command.
type simEntry struct {
	index, term uint64
	data        string
}

// simState is the state of a simulated node: the commands in order. entries is only ever appended to, so a
// copy of the struct is a snapshot.
type simState struct {
	entries []simEntry
	at      Durable
}

// simMachine is the state machine of one life. What it applies is compared with what all others have.
type simMachine struct {
	// Immutable.
	disk  *simDisk
	check *simCheck
	who   string

	mu sync.Mutex
	// Guarded by mu.
	state simState
}

func newSimMachine(who string, disk *simDisk, check *simCheck) *simMachine {
	disk.mu.Lock()
	defer disk.mu.Unlock()
	s := disk.checkpoint
	s.entries = s.entries[:len(s.entries):len(s.entries)]
	return &simMachine{disk: disk, check: check, who: who, state: s}
}

func (m *simMachine) Apply(index, term uint64, data []byte) any {
	e := simEntry{index, term, string(data)}
	m.check.applied(m.who, e)
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.state.at.Index {
		m.check.fail("%s applied entry %d after %d", m.who, index, m.state.at.Index)
	}
	m.state.entries = append(m.state.entries, e)
	m.state.at.Index, m.state.at.Term, m.state.at.Installed = index, term, false
	return index
}

func (m *simMachine) ApplyConfiguration(index, term uint64, configuration []byte) {
	m.check.applied(m.who, simEntry{index, term, "configuration " + string(configuration)})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.at = Durable{Index: index, Term: term, Configuration: bytes.Clone(configuration), ConfigurationIndex: index}
}

func (m *simMachine) Applied() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.at.Index
}

func (m *simMachine) snapshot() simState {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.state
	s.entries = s.entries[:len(s.entries):len(s.entries)]
	return s
}

func (m *simMachine) Durable() (Durable, bool) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return m.disk.durable, m.disk.durable.Index > 0
}

func (m *simMachine) WaitDurable(ctx context.Context, index uint64) error {
	if d, _ := m.Durable(); d.Index >= index {
		return nil
	}
	m.disk.mu.Lock()
	took := 3*time.Millisecond + time.Duration(m.disk.rnd.Int64N(int64(3*time.Millisecond)))
	m.disk.mu.Unlock()
	if err := simWait(ctx, took); err != nil {
		return err
	}
	return m.keep(m.snapshot())
}

// keep makes a state durable.
func (m *simMachine) keep(s simState) error {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	if s.at.Index >= m.disk.durable.Index {
		m.disk.checkpoint, m.disk.durable = s, s.at
	}
	return nil
}

func (m *simMachine) Witness(_ context.Context, d Durable) error {
	if have, _ := m.Durable(); d.Index > have.Index {
		return fmt.Errorf("told of %d with a checkpoint of %d", d.Index, have.Index)
	}
	return nil
}

// The stream of a snapshot: the number of commands, then for each index, term, length and data.
func (m *simMachine) OpenSnapshot(context.Context) (Durable, io.ReadCloser, error) {
	m.disk.mu.Lock()
	s := m.disk.checkpoint
	d := m.disk.durable
	m.disk.mu.Unlock()
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(s.entries)))
	for _, e := range s.entries {
		b = binary.LittleEndian.AppendUint64(b, e.index)
		b = binary.LittleEndian.AppendUint64(b, e.term)
		b = binary.LittleEndian.AppendUint64(b, uint64(len(e.data)))
		b = append(b, e.data...)
	}
	return d, io.NopCloser(bytes.NewReader(b)), nil
}

func (m *simMachine) ReceiveSnapshot(_ context.Context, d Durable, r io.Reader) (Received, error) {
	s := simState{at: d}
	var head [24]byte
	if _, err := io.ReadFull(r, head[:8]); err != nil {
		return nil, err
	}
	for range binary.LittleEndian.Uint64(head[:8]) {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		e := simEntry{index: binary.LittleEndian.Uint64(head[:]), term: binary.LittleEndian.Uint64(head[8:])}
		data := make([]byte, binary.LittleEndian.Uint64(head[16:]))
		if _, err := io.ReadFull(r, data); err != nil {
			return nil, err
		}
		e.data = string(data)
		m.check.applied(m.who+" (by snapshot)", e)
		s.entries = append(s.entries, e)
	}
	return &simReceived{m, s}, nil
}

type simReceived struct {
	m *simMachine
	s simState
}

func (r *simReceived) Install() error {
	r.s.at.Installed = true
	if err := r.m.keep(r.s); err != nil {
		return err
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.m.state = r.s
	return nil
}

func (r *simReceived) Discard() {}

// simCheck knows what all nodes applied and what clients were told, and collects what is wrong.
type simCheck struct {
	// Immutable.
	began time.Time

	mu sync.Mutex
	// Guarded by mu.
	history    map[uint64]simEntry // by index: what was applied anywhere
	by         map[uint64]string   // and who was first
	where      map[string]uint64   // by command: where it was applied
	acked      map[uint64]string   // by index: what was acknowledged to a client
	newest     uint64              // the highest index acknowledged
	never      map[string]bool     // what was reported as surely not done
	violations []string
	events     []string
	stats      simStats
}

// simStats counts what happened in a simulation.
type simStats struct {
	writes, refused, unknown            int
	leaseReads, indexReads, indexFailed int
	holds                               int // instants at which some node held a lease
	faults, crashes, elections          int
	snapshots, installed                int
	revoked, distrusted                 int
	tails                               int // crashes of leaders whose followers may hold more than their disks
	healed                              time.Duration
}

func newSimCheck() *simCheck {
	return &simCheck{
		began: time.Now(), history: map[uint64]simEntry{}, by: map[uint64]string{}, where: map[string]uint64{},
		acked: map[uint64]string{}, never: map[string]bool{},
	}
}

func (c *simCheck) fail(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(format, args...)
}

func (c *simCheck) failLocked(format string, args ...any) {
	if len(c.violations) < 20 {
		c.violations = append(c.violations, fmt.Sprintf("%v: ", time.Since(c.began))+fmt.Sprintf(format, args...))
	}
	c.events = append(c.events, fmt.Sprintf("%v: WRONG: ", time.Since(c.began))+fmt.Sprintf(format, args...))
}

// event notes what was done to the cluster, for whoever reads a failure.
func (c *simCheck) event(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, fmt.Sprintf("%v: ", time.Since(c.began))+fmt.Sprintf(format, args...))
}

// applied checks that an entry is the same everywhere.
func (c *simCheck) applied(who string, e simEntry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, there := c.history[e.index]
	switch {
	case !there:
		c.history[e.index], c.by[e.index], c.where[e.data] = e, who, e.index
	case known != e:
		c.failLocked("%s applied %q of term %d at %d, %s %q of term %d", who, e.data, e.term, e.index, c.by[e.index], known.data, known.term)
	}
	if c.never[e.data] {
		c.failLocked("%s applied %q, which was reported as not proposed", who, e.data)
	}
}

// acknowledged notes that a client was told of a write.
func (c *simCheck) acknowledged(index uint64, data string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.history[index]; e.data != data {
		c.failLocked("%q was acknowledged at %d, where %q was applied", data, index, e.data)
	}
	c.acked[index] = data
	c.newest = max(c.newest, index)
	c.stats.writes++
}

// notDone notes that a client was told that a write was surely not done.
func (c *simCheck) notDone(data string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.never[data] = true
	c.stats.refused++
	if i, there := c.where[data]; there {
		c.failLocked("%q was reported as not proposed, and applied at %d", data, i)
	}
}

// newestAcked is the index that every read must have seen which begins now.
func (c *simCheck) newestAcked() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.newest
}

func (c *simCheck) count(f func(*simStats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.stats)
}

func (c *simCheck) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.violations) > 0
}
