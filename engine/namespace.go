package engine

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"

	"kvstore/wire"
)

// A namespace is state: a record in the system keyspace under "namespace/" and its id in eight hex digits, which the
// applier also holds in memory, as readers do in a table that is replaced when it changes. Ids are given once: the record
// "namespace_next" holds the one to give next.
//
// To drop a namespace takes its name away at once. Its records go piece by piece, by entries that the leader proposes
// (NamespacePurge), and its id with the last; until then nobody can read or write in it.
const (
	systemNamespace     = "namespace/"
	systemNamespaceNext = "namespace_next" // u32, little endian
)

// Namespace describes a namespace at the newest entry applied.
type Namespace struct {
	ID   uint32
	Name string
	// Dropping: it has no name any more, whatever Name says, and its records are being removed.
	Dropping bool
	Settings wire.NamespaceSettings
	// CreatedAt is Unix µs of log time; 0 for the default namespace below behaviour level 2.
	CreatedAt int64
	// Records and Bytes count what it holds, what is due but not removed yet included: keys, kept elements and values as
	// their writers sent them. 0 below behaviour level 2.
	Records, Bytes uint64
}

// namespaceState is a namespace as the applier knows it. That of the system keyspace is one of them; it has no name.
type namespaceState struct {
	Namespace        // but for Records and Bytes, see used
	cursor    []byte // of a dropped one: its records with keys up to here are removed
	droppedAt uint64 // index of the entry that dropped it, if that is the one at hand

	used    usage
	stored  usage // what the store holds
	touched bool  // in namespaces.touched
	shown   *shownUsage
}

// limited reports whether a quota binds its writes.
func (n *namespaceState) limited() bool { return n.Settings.BytesMax|n.Settings.KeysMax != 0 }

// namespaces is what the applier knows of all. Owned by the applier.
type namespaces struct {
	byID   map[uint32]*namespaceState
	byName map[string]*namespaceState // those that are not dropped
	next   uint32                     // id

	// What the entry at hand has done.
	touched []*namespaceState
	changed bool // other than in use
}

// newNamespaces gives what there is without any record: the system keyspace and the default namespace.
func newNamespaces() *namespaces {
	t := &namespaces{byID: make(map[uint32]*namespaceState), byName: make(map[string]*namespaceState), next: wire.NamespaceDefault + 1}
	t.add(&namespaceState{})
	t.add(&namespaceState{Namespace: Namespace{ID: wire.NamespaceDefault, Name: wire.NamespaceDefaultName}})
	return t
}

// add takes in a namespace whose id is not there, or that of a record over what newNamespaces has made.
func (t *namespaces) add(n *namespaceState) {
	if n.shown == nil {
		n.shown = new(shownUsage)
	}
	t.byID[n.ID] = n
	if !n.Dropping && n.Name != "" {
		t.byName[n.Name] = n
	}
}

// writable gives the namespace for a client's writes; nil if there is none of that id.
func (t *namespaces) writable(id uint32) *namespaceState {
	if n := t.byID[id]; n != nil && !n.Dropping && id != wire.NamespaceSystem {
		return n
	}
	return nil
}

// count is how many there are, those that are being removed included.
func (t *namespaces) count() int { return len(t.byID) - 1 } // the system keyspace is none

// namespaceCodec gives how a namespace compresses values whose puts don't say.
func (a *applier) namespaceCodec(id uint32) wire.Codec {
	if n := a.space; n != nil && n.ID == id {
		return n.Settings.Compress
	}
	if n := a.namespaces.byID[id]; n != nil {
		return n.Settings.Compress
	}
	return wire.CodecNone
}

const (
	namespaceRecordFormat = 1
	namespaceRecordBytes  = 16 + 4*8

	namespaceActive   = 0
	namespaceDropping = 1
)

func namespaceKey(id uint32) string { return fmt.Sprintf("%s%08x", systemNamespace, id) }

// appendNamespace appends the value of a namespace's record; integers are little endian:
//
//	0 u8 format | 1 u8 state | 2 u8 compress | 3 u8 length of name | 4 u32 0 | 8 i64 created at
//	16 u64 bytes max | 24 u64 keys max | 32 u64 operations per second | 40 u64 watches max | 48 name | cursor
func appendNamespace(dst []byte, n *namespaceState) []byte {
	state := byte(namespaceActive)
	if n.Dropping {
		state = namespaceDropping
	}
	s := &n.Settings
	dst = append(dst, namespaceRecordFormat, state, byte(s.Compress), byte(len(n.Name)), 0, 0, 0, 0)
	for _, v := range [...]uint64{uint64(n.CreatedAt), s.BytesMax, s.KeysMax, s.OpsPerSecond, s.WatchesMax} {
		dst = binary.LittleEndian.AppendUint64(dst, v)
	}
	return append(append(dst, n.Name...), n.cursor...)
}

// decodeNamespace reads what appendNamespace wrote; the id stands in the key. It fails with ErrRecordDamaged only.
func decodeNamespace(b []byte, n *namespaceState) error {
	if len(b) < namespaceRecordBytes || b[0] != namespaceRecordFormat || binary.LittleEndian.Uint32(b[4:]) != 0 {
		return fmt.Errorf("%w: namespace of %d bytes; this build reads format %d", ErrRecordDamaged, len(b), namespaceRecordFormat)
	}
	rest := b[namespaceRecordBytes:]
	nameLen := int(b[3])
	if nameLen > len(rest) || !wire.ValidNamespaceName(string(rest[:nameLen])) || b[1] > namespaceDropping || wire.Codec(b[2]) > wire.CodecLZ4 {
		return fmt.Errorf("%w: namespace in state %d with a name of %d bytes in %d", ErrRecordDamaged, b[1], nameLen, len(rest))
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	n.Name, n.Dropping, n.CreatedAt = string(rest[:nameLen]), b[1] == namespaceDropping, int64(u64(8))
	n.Settings = wire.NamespaceSettings{BytesMax: u64(16), KeysMax: u64(24), OpsPerSecond: u64(32), WatchesMax: u64(40), Compress: wire.Codec(b[2])}
	n.cursor = slices.Clone(rest[nameLen:])
	if len(n.cursor) > wire.KeyBytesMax || len(n.cursor) > 0 && !n.Dropping {
		return fmt.Errorf("%w: namespace %q with a cursor of %d bytes", ErrRecordDamaged, n.Name, len(n.cursor))
	}
	return nil
}

// loadNamespaces reads the records and the usage of a state at level, whose newest entry has left m.
func loadNamespaces(r *reader, level uint16, m *marker) (*namespaces, error) {
	t := newNamespaces()
	if level < levelNamespaces {
		return t, nil
	}
	t.next = 0
	found := 0
	err := eachSystemRecord(r, systemNamespaceNext, func(rec *storedRecord) error {
		if len(rec.Value) != 4 {
			return fmt.Errorf("%w: system record %q of %d bytes", ErrRecordDamaged, systemNamespaceNext, len(rec.Value))
		}
		t.next = binary.LittleEndian.Uint32(rec.Value)
		return nil
	})
	if err == nil {
		err = eachSystemRecordKey(r, systemNamespace, func(key string, rec *storedRecord) error {
			n := new(namespaceState)
			if _, err := fmt.Sscanf(key, systemNamespace+"%08x", &n.ID); err != nil || key != namespaceKey(n.ID) || n.ID == wire.NamespaceSystem || n.ID >= t.next {
				return fmt.Errorf("%w: system record %q; the next namespace is %d", ErrRecordDamaged, key, t.next)
			}
			if err := decodeNamespace(rec.Value, n); err != nil {
				return err
			}
			if other := t.byName[n.Name]; other != nil && other.ID != n.ID && !n.Dropping {
				return fmt.Errorf("%w: namespaces %d and %d have the name %q", ErrRecordDamaged, other.ID, n.ID, n.Name)
			}
			found++
			t.add(n)
			return nil
		})
	}
	if err == nil {
		err = t.loadUsage(r, m)
	}
	if err == nil && found != t.count() {
		err = fmt.Errorf("%w: the default namespace has no record", ErrRecordDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot load the namespaces: %w", err)
	}
	return t, nil
}

// namespaceTable is what readers see of the namespaces; immutable but for the usage.
type namespaceTable struct {
	all     []*shownNamespace // sorted by id
	byName  map[string]*shownNamespace
	byID    map[uint32]*shownNamespace
	purging uint32 // the lowest id that is to be purged; wire.NamespaceNone: none

	index  uint64          // of the entry that made it; 0: the state was loaded with it
	before *namespaceTable // the one that counts until that entry is published; it has none before it itself
}

type shownNamespace struct {
	Namespace
	usage *shownUsage
}

// shownUsage is the usage that readers see: each number by itself that of an entry.
type shownUsage struct{ records, bytes atomic.Uint64 }

func (n *shownNamespace) now() Namespace {
	out := n.Namespace
	out.Records, out.Bytes = n.usage.records.Load(), n.usage.bytes.Load()
	return out
}

// showNamespaces publishes what the entry at index has changed, 0 for what was loaded. REQUIRES: caller is the applier,
// and the entry's point is not published yet: the table counts once it is.
func (in *instance) showNamespaces(index uint64, t *namespaces) {
	for _, n := range t.touched {
		n.shown.records.Store(n.used.records)
		n.shown.bytes.Store(n.used.bytes)
		n.touched = false
	}
	clear(t.touched)
	t.touched = t.touched[:0]
	if !t.changed && in.namespaces.Load() != nil {
		return
	}
	t.changed = false
	table := &namespaceTable{
		index:  index,
		byName: make(map[string]*shownNamespace, len(t.byName)), byID: make(map[uint32]*shownNamespace, len(t.byID)),
		purging: wire.NamespaceNone,
	}
	for id, n := range t.byID {
		if id == wire.NamespaceSystem {
			continue
		}
		s := &shownNamespace{n.Namespace, n.shown}
		table.all = append(table.all, s)
		table.byID[id] = s
		if n.Dropping {
			table.purging = min(table.purging, id)
		} else {
			table.byName[n.Name] = s
		}
	}
	slices.SortFunc(table.all, func(a, b *shownNamespace) int { return cmp.Compare(a.ID, b.ID) })
	if old := in.namespaces.Load(); old != nil {
		before := *old
		before.before = nil
		table.before = &before
	}
	in.namespaces.Store(table)
}

// Namespace gives the id of a namespace; an empty name means the default one. It takes no lock and doesn't allocate. The
// answer is that of the newest state published, as Applied tells it, or of a newer one that is published meanwhile.
func (e *Engine) Namespace(name []byte) (id uint32, ok bool) {
	if len(name) == 0 {
		return wire.NamespaceDefault, true
	}
	in := e.live.Load()
	table := in.namespaces.Load()
	if table.index > in.store.current().index {
		table = table.before
	}
	n := table.byName[string(name)]
	if n == nil {
		return wire.NamespaceNone, false
	}
	return n.ID, true
}

// NamespaceByID gives the namespace of an id, also one that is being removed.
func (e *Engine) NamespaceByID(id uint32) (Namespace, bool) {
	n := e.live.Load().namespaces.Load().byID[id]
	if n == nil {
		return Namespace{}, false
	}
	return n.now(), true
}

// Namespaces gives all namespaces, sorted by id, those that are being removed included.
func (e *Engine) Namespaces() []Namespace {
	table := e.live.Load().namespaces.Load()
	out := make([]Namespace, len(table.all))
	for i, n := range table.all {
		out[i] = n.now()
	}
	return out
}

// Purging gives the lowest id of a namespace that was dropped and still has records, or the id at least; ok is false when
// there is none. The leader proposes NamespacePurge for it until it is gone.
func (e *Engine) Purging() (id uint32, ok bool) {
	id = e.live.Load().namespaces.Load().purging
	return id, id != wire.NamespaceNone
}
