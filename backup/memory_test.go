package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"kvstore/wire"
)

// memory is a store in memory with one state: a Source and a Target whose calls can be made to fail.
type memory struct {
	spaces   map[string]*space
	nextID   uint32
	revision wire.Revision
	now      time.Time

	// before, when set, is called before each call and may end it with an error.
	before func(call, namespace string) error
	// lose, when set, decides of a batch whether it is applied and its answer lost all the same.
	lose  func() bool
	puts  int // batches that were applied
	lists int
}

type space struct {
	id       uint32
	settings wire.NamespaceSettings
	created  int64
	data     map[string]Record
}

func newMemory() *memory {
	m := &memory{spaces: map[string]*space{}, revision: 1 << 20, now: time.UnixMicro(1_700_000_000_000_000)}
	m.create("default", wire.NamespaceSettings{})
	return m
}

func (m *memory) create(name string, s wire.NamespaceSettings) *space {
	m.nextID++
	sp := &space{id: m.nextID, settings: s, created: m.now.UnixMicro(), data: map[string]Record{}}
	m.spaces[name] = sp
	return sp
}

// put writes a record as a store would; ttl 0: it never expires.
func (s *space) put(m *memory, key string, value []byte, ext []byte, ttl time.Duration) {
	m.revision++
	r := Record{Key: []byte(key), Value: bytes.Clone(value), Ext: bytes.Clone(ext)}
	r.Meta = wire.Meta{Version: m.revision, CreatedAt: m.now.UnixMicro(), UpdatedAt: m.now.UnixMicro(), Checksum: wire.Checksum(value)}
	if ttl != 0 {
		r.Meta.ExpiresAt = m.now.Add(ttl).UnixMicro()
	}
	s.data[key] = r
}

func (m *memory) step(call, namespace string) error {
	if m.before != nil {
		return m.before(call, namespace)
	}
	return nil
}

func (m *memory) Status(context.Context) ([]byte, error) {
	return []byte(`{"cluster_id":"000102030405060708090a0b0c0d0e0f"}`), m.step("status", "")
}

func (m *memory) Revision(context.Context) (wire.Revision, error) {
	return m.revision, m.step("revision", "")
}

func (m *memory) Admin(_ context.Context, request []byte) ([]byte, error) {
	var q struct {
		Action, Namespace string
		Settings          *namespaceSettings
	}
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, err
	}
	if err := m.step(q.Action, q.Namespace); err != nil {
		return nil, err
	}
	if q.Action == "namespace_create" {
		if m.spaces[q.Namespace] != nil {
			return nil, &StatusError{Status: wire.StatusNamespaceExists}
		}
		c, _ := codecOf(q.Settings.Compress)
		m.create(q.Namespace, wire.NamespaceSettings{BytesMax: q.Settings.BytesMax, KeysMax: q.Settings.KeysMax, OpsPerSecond: q.Settings.OpsPerSecond, WatchesMax: q.Settings.WatchesMax, Compress: c})
		return []byte(`{}`), nil
	}
	m.lists++
	var d struct {
		Namespaces []adminDocument `json:"namespaces"`
	}
	d.Namespaces = append(d.Namespaces, adminDocument{Name: "gone", ID: 1 << 30, State: "dropping"})
	for name, s := range m.spaces {
		d.Namespaces = append(d.Namespaces, adminDocument{
			Name: name, ID: s.id, State: "active", CreatedAt: time.UnixMicro(s.created), Keys: uint64(len(s.data)),
			Settings: &namespaceSettings{s.settings.BytesMax, s.settings.KeysMax, s.settings.OpsPerSecond, s.settings.WatchesMax, s.settings.Compress.String()},
		})
	}
	return json.Marshal(&d)
}

func (m *memory) Scan(_ context.Context, namespace string, at wire.Revision, from []byte, each func(*Record) error) error {
	if err := m.step("scan", namespace); err != nil {
		return err
	}
	s := m.spaces[namespace]
	if s == nil {
		return &StatusError{Status: wire.StatusNoNamespace}
	}
	for _, key := range slices.Sorted(maps.Keys(s.data)) {
		r := s.data[key]
		if r.Meta.Version > at || key < string(from) {
			continue
		}
		if err := m.step("record", key); err != nil {
			return err
		}
		if err := each(&r); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Put(_ context.Context, namespace string, batch []Put) error {
	if err := m.step("put", namespace); err != nil {
		return err
	}
	s := m.spaces[namespace]
	if s == nil {
		return &StatusError{Status: wire.StatusNoNamespace}
	}
	for i := range batch {
		p := &batch[i]
		s.put(m, string(p.Key), p.Value, p.Ext, p.TTL(m.now))
	}
	m.puts++
	if m.lose != nil && m.lose() {
		return &StatusError{Status: wire.StatusTimeout}
	}
	return nil
}

// content is what a restore must give back, as text: all but versions and times of writing.
func (m *memory) content() map[string]string {
	out := map[string]string{}
	for name, s := range m.spaces {
		out[name] = fmt.Sprintf("%+v", s.settings)
		for key, r := range s.data {
			out[name+"/"+key] = fmt.Sprintf("%x %x %d", wire.Checksum(r.Value), r.Ext, r.Meta.ExpiresAt)
		}
	}
	return out
}

// fill puts records with all that can be kept with them into three namespaces.
func (m *memory) fill(rnd *rand.Rand, n int) {
	app := m.create("app", wire.NamespaceSettings{BytesMax: 1 << 40, KeysMax: 1 << 20, OpsPerSecond: 1e6, WatchesMax: 9, Compress: wire.CodecZstd})
	m.create("empty/one", wire.NamespaceSettings{})
	for i := range n {
		ext := wire.AppendExtTag(nil, "a", fmt.Sprint(i))
		ext = wire.AppendExtTag(ext, "b", "ü")
		ext = wire.AppendExtString(ext, wire.ExtContentType, "text/plain")
		ext = wire.AppendExtString(ext, wire.ExtEncoding, "gzip")
		value := make([]byte, rnd.IntN(200))
		for j := range value {
			value[j] = byte(rnd.Uint32())
		}
		m.spaces["default"].put(m, fmt.Sprintf("key/%06d", i), value, nil, 0)
		app.put(m, fmt.Sprintf("key/%06d", rnd.IntN(1e6)), bytes.Repeat([]byte("pack me "), i), ext, time.Duration(i%3)*time.Hour)
	}
}

// taken makes a backup in memory.
func taken(t *testing.T, m *memory, o TakeOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	sum, err := Take(t.Context(), m, &b, o)
	if err != nil {
		t.Fatal(err)
	}
	if sum.StreamBytes != uint64(b.Len()) {
		t.Fatalf("it says that it wrote %d bytes, it wrote %d", sum.StreamBytes, b.Len())
	}
	return b.Bytes()
}
