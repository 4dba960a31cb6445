package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"kvstore/internal/record"
)

// testMachine is a state machine that keeps the commands it applied, and a durable checkpoint of them
// in a file. After a restart it stands at its checkpoint, as the real one does.
type testMachine struct {
	path string
	// auto makes a checkpoint whenever WaitDurable needs one; without it WaitDurable waits for ctx.
	auto bool

	mu sync.Mutex
	// Guarded by mu.
	state   machineState
	durable Durable
	witness []Durable
	waiting int           // received states that are neither installed nor discarded
	applied chan struct{} // closed and replaced after each apply
	gate    chan struct{} // non-nil: Apply waits for it
	onApply func(index uint64)
}

type machineState struct {
	Entries []machineEntry
	At      Durable
}

type machineEntry struct {
	Index, Term uint64
	Data        []byte
}

type checkpointFile struct {
	State machineState
}

func openMachine(tb testing.TB, dir string) *testMachine {
	tb.Helper()
	m, err := loadMachine(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func loadMachine(dir string) (*testMachine, error) {
	m := &testMachine{path: filepath.Join(dir, "checkpoint"), auto: true, applied: make(chan struct{})}
	b, err := record.ReadFile(m.path, record.PayloadMax)
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	var f checkpointFile
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&f); err != nil {
		return nil, err
	}
	m.state, m.durable = f.State, f.State.At
	return m, nil
}

func (m *testMachine) Apply(index, term uint64, data []byte) any {
	m.mu.Lock()
	gate := m.gate
	m.mu.Unlock()
	if gate != nil {
		<-gate
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.state.At.Index {
		panic(fmt.Sprintf("entry %d applied after %d", index, m.state.At.Index))
	}
	m.state.At.Index, m.state.At.Term, m.state.At.Installed = index, term, false
	m.state.Entries = append(m.state.Entries, machineEntry{index, term, data})
	m.woke(index)
	return fmt.Sprintf("%d:%.20s", index, data)
}

func (m *testMachine) ApplyConfiguration(index, term uint64, configuration []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.At = Durable{Index: index, Term: term, Configuration: bytes.Clone(configuration), ConfigurationIndex: index}
	m.woke(index)
}

func (m *testMachine) woke(index uint64) {
	if m.onApply != nil {
		m.onApply(index)
	}
	close(m.applied)
	m.applied = make(chan struct{})
}

func (m *testMachine) Durable() (Durable, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.durable, m.durable.Index > 0
}

func (m *testMachine) WaitDurable(ctx context.Context, index uint64) error {
	if d, _ := m.Durable(); d.Index >= index {
		return nil
	}
	if !m.auto {
		<-ctx.Done()
		return ctx.Err()
	}
	return m.checkpoint()
}

func (m *testMachine) checkpoint() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(checkpointFile{m.state}); err != nil {
		return err
	}
	if err := record.WriteFileAtomic(m.path, b.Bytes(), 0o600); err != nil {
		return err
	}
	m.durable = m.state.At
	return nil
}

// OpenSnapshot streams the checkpoint file, behind its length.
func (m *testMachine) OpenSnapshot(context.Context) (Durable, io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := record.ReadFile(m.path, record.PayloadMax)
	if err != nil {
		return Durable{}, nil, err
	}
	return m.durable, io.NopCloser(bytes.NewReader(append(binary.LittleEndian.AppendUint64(nil, uint64(len(b))), b...))), nil
}

// ReceiveSnapshot reads a checkpoint file.
func (m *testMachine) ReceiveSnapshot(_ context.Context, d Durable, r io.Reader) (Received, error) {
	var n [8]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.LittleEndian.Uint64(n[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	var f checkpointFile
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&f); err != nil {
		return nil, err
	}
	if at := f.State.At; at.Index != d.Index || at.Term != d.Term || !bytes.Equal(at.Configuration, d.Configuration) || at.ConfigurationIndex != d.ConfigurationIndex {
		return nil, fmt.Errorf("the snapshot is of %+v, announced was %+v", at, d)
	}
	m.mu.Lock()
	m.waiting++
	m.mu.Unlock()
	return &testReceived{m: m, state: f.State}, nil
}

// testReceived is a state beside the live one.
type testReceived struct {
	m     *testMachine
	state machineState
}

func (r *testReceived) Install() error {
	r.m.mu.Lock()
	r.m.waiting--
	r.state.At.Installed = true
	r.m.state = r.state
	r.m.woke(r.state.At.Index)
	r.m.mu.Unlock()
	return r.m.checkpoint()
}

func (r *testReceived) Discard() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	r.m.waiting--
}

// Witness insists that what it is told is durable, with the right term.
func (m *testMachine) Witness(_ context.Context, d Durable) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.Index > m.durable.Index || d.Index == m.durable.Index && d.Term != m.durable.Term || d.ConfigurationIndex > d.Index {
		return fmt.Errorf("told of %+v with a checkpoint of %+v", d, m.durable)
	}
	m.witness = append(m.witness, d)
	return nil
}

func (m *testMachine) Applied() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state.At.Index
}

// commands returns what was applied, in order.
func (m *testMachine) commands() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, e := range m.state.Entries {
		out = append(out, string(e.Data))
	}
	return out
}

// testOptions are fast and small.
func testOptions(dir string) Options {
	return Options{
		Dir: filepath.Join(dir, "log"), NodeID: "node-1", Address: "127.0.0.1:7000",
		Logger:           slog.New(slog.NewTextHandler(io.Discard, nil)),
		HeartbeatTimeout: 100 * time.Millisecond,
		SegmentBytes:     1 << 20,
		SnapshotInterval: time.Hour,
		LogKeepBytes:     -1, // the tests count entries
		// A busy disk is no failure of what is tested.
		WriteStallTimeout: testWait,
		Fatal:             func(err error) { panic(fmt.Sprintf("unexpected fatal failure: %v", err)) },
	}
}

const testWait = 30 * time.Second

func testContext(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	tb.Cleanup(cancel)
	return ctx
}

// openGroup opens a group and waits until it leads.
func openGroup(tb testing.TB, o Options, m StateMachine) *Group {
	tb.Helper()
	g, err := Open(context.Background(), o, m)
	if err != nil {
		tb.Fatal(err)
	}
	waitReady(tb, g)
	return g
}

func waitReady(tb testing.TB, g *Group) {
	tb.Helper()
	select {
	case <-g.Ready():
	case <-time.After(testWait):
		tb.Fatalf("the group does not lead: %+v", g.Status())
	}
}

func closeGroup(tb testing.TB, g *Group) {
	tb.Helper()
	if err := g.Close(testContext(tb)); err != nil {
		tb.Fatal(err)
	}
}

type answer struct {
	result any
	err    error
}

// propose proposes and waits for the answer.
func propose(tb testing.TB, g *Group, data []byte) answer {
	tb.Helper()
	c := make(chan answer, 1)
	if err := g.Propose(data, func(r any, err error) { c <- answer{r, err} }); err != nil {
		return answer{nil, err}
	}
	select {
	case a := <-c:
		return a
	case <-time.After(testWait):
		tb.Fatal("a proposal was never answered")
		return answer{}
	}
}

func mustPropose(tb testing.TB, g *Group, data string) {
	tb.Helper()
	if a := propose(tb, g, []byte(data)); a.err != nil {
		tb.Fatalf("proposing %.40q: %v", data, a.err)
	}
}
