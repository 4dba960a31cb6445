package node

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	"kvstore/engine"
	"kvstore/feed"
	"kvstore/wire"
)

// feedSink hands the engine's effects to the feed. It is made before the engine, and gets the feed before the log is
// opened: until then nothing is applied.
type feedSink struct {
	// Immutable once the log is open.
	feed   *feed.Feed
	engine *engine.Engine
	fatal  func(error)

	// Owned by the applier.
	events []feed.Event
	// namespaces are those whose records the newest entry has touched.
	namespaces []uint32
}

// An event's kind is the effect's.
const (
	_ = uint(engine.EffectPut) - uint(wire.EventPut)
	_ = uint(engine.EffectDelete) - uint(wire.EventDelete)
	_ = uint(engine.EffectExpire) - uint(wire.EventExpire)
	_ = uint(wire.EventPut) - uint(engine.EffectPut)
	_ = uint(wire.EventDelete) - uint(engine.EffectDelete)
	_ = uint(wire.EventExpire) - uint(engine.EffectExpire)
)

// feedEventsKept bounds the events whose memory is kept from entry to entry.
const feedEventsKept = 4096

// Effects implements engine.EffectSink.
func (k *feedSink) Effects(p engine.Point, effects []engine.Effect) {
	for i := range effects {
		x := &effects[i]
		k.events = append(k.events, feed.Event{
			Kind: wire.EventKind(x.Kind), Last: x.Last, HadPrevious: x.Previous,
			Namespace: x.Namespace, Revision: x.Rev, Key: x.Key, Record: x.Record,
		})
		if x.Namespace == wire.NamespaceSystem {
			if id, ok := engine.NamespaceOfRecord(x.Key); ok {
				k.namespaces = append(k.namespaces, id)
			}
		}
	}
	k.feed.Append(p.Index, wire.RevisionTS(p.Revision), p.Time, p.Revision, k.events)
	clear(k.events) // they point into the entry
	if k.events = k.events[:0]; cap(k.events) > feedEventsKept {
		k.events = nil
	}
}

// Published implements engine.EffectSink. The watches of a namespace that was dropped end behind the entry that did it.
func (k *feedSink) Published(p engine.Point) {
	k.feed.Publish(p.Index)
	for _, id := range k.namespaces {
		if n, ok := k.engine.NamespaceByID(id); !ok || n.Dropping {
			k.feed.EndNamespace(id)
		}
	}
	k.namespaces = k.namespaces[:0]
}

// Sync implements engine.EffectSink.
func (k *feedSink) Sync(p engine.Point) error { return k.feed.Sync(p.Index) }

// Installed implements engine.EffectSink.
func (k *feedSink) Installed(p engine.Point) {
	if err := k.feed.Reset(p.Index, wire.RevisionTS(p.Revision), p.Revision); err != nil {
		k.fatal(fmt.Errorf("cannot begin the change feed behind the snapshot of index %d: %w", p.Index, err))
	}
}

// openFeed opens the feed of the state that the engine has opened. REQUIRES: nothing was applied since.
func (s *Shard) openFeed(o *Options, dir string) (err error) {
	fo := o.Feed
	at := s.engine.Applied()
	fo.Dir, fo.Index, fo.TS, fo.Revision = filepath.Join(dir, "feed"), at.Index, wire.RevisionTS(at.Revision), at.Revision
	fo.Logger, fo.Fatal = s.log, s.failed
	if s.feed, err = feed.Open(fo); err != nil {
		return err
	}
	s.sink.feed, s.sink.engine = s.feed, s.engine
	return nil
}

// closeEngine closes the engine, whose last checkpoint still needs the feed, and then that.
func (s *Shard) closeEngine() error {
	err := s.engine.Close()
	if s.feed != nil {
		err = errors.Join(err, s.feed.Close())
	}
	return err
}

// feedStatus is the change feed of this node. Revisions are decimal strings, as everywhere in JSON.
type feedStatus struct {
	// FirstRevision is the one behind which a watch may begin here at the earliest.
	FirstRevision string `json:"first_revision"`
	LastRevision  string `json:"last_revision"`
	Bytes         int64  `json:"bytes"`
	Watchers      int    `json:"watchers"`
}

func (s *Shard) feedStatus() feedStatus {
	st := s.feed.Stats()
	return feedStatus{
		FirstRevision: strconv.FormatUint(st.First, 10), LastRevision: strconv.FormatUint(st.Last, 10),
		Bytes: st.Bytes, Watchers: st.Watchers,
	}
}

// writeFeedMetrics writes what the feed counts.
func (s *Shard) writeFeedMetrics(w io.Writer) error {
	st := s.feed.Stats()
	return writeSamples(w, []sample{
		{"kvstore_feed_first_revision", "gauge", "Revision behind which a watch may begin on this node at the earliest.", float64(st.First)},
		{"kvstore_feed_last_revision", "gauge", "Newest revision that watches may have seen.", float64(st.Last)},
		{"kvstore_feed_bytes", "gauge", "Bytes of the change feed's segments.", float64(st.Bytes)},
		{"kvstore_feed_segments", "gauge", "Segments of the change feed.", float64(st.Segments)},
		{"kvstore_feed_ring_bytes", "gauge", "Bytes of the newest part of the change feed that is kept in memory.", float64(st.RingBytes)},
		{"kvstore_feed_watchers", "gauge", "Watches on the change feed.", float64(st.Watchers)},
		{"kvstore_feed_watchers_behind", "gauge", "Those of them that read the past.", float64(st.Behind)},
		{"kvstore_feed_events_total", "counter", "Events appended to the change feed.", float64(st.Events)},
		{"kvstore_feed_appended_bytes_total", "counter", "Bytes appended to the change feed.", float64(st.BytesAppended)},
		{"kvstore_feed_overflows_total", "counter", "Times that a watch which kept up has fallen behind.", float64(st.Overflows)},
		{"kvstore_feed_compacted_total", "counter", "Watches that ended because what they had not read was removed.", float64(st.Compacted)},
		{"kvstore_feed_damaged_total", "counter", "Places of the change feed that could not be read; none is normal.", float64(st.Damaged)},
	})
}
