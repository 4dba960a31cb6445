package node

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// namespaceSeriesMax bounds the namespaces with series of their own in a scrape: those that hold most bytes. The others
// are told together, as namespace "".
const namespaceSeriesMax = 64

// namespaceSeries is what a scrape tells of one namespace, or of the rest.
type namespaceSeries struct {
	name                                  string
	keys, bytes, limited, watches, quotas uint64
	openWatches                           uint64
}

// namespaceSeries gives the namespaces that get series of their own, in order of id, and the rest as one without a name.
func (s *Shard) namespaceSeries() []namespaceSeries {
	all := s.namespaces()
	slices.SortStableFunc(all, func(a, b namespace) int { return cmp.Compare(b.Bytes, a.Bytes) })
	own := all[:min(len(all), namespaceSeriesMax)]
	slices.SortFunc(own, func(a, b namespace) int { return cmp.Compare(a.ID, b.ID) })
	var out []namespaceSeries
	var rest namespaceSeries
	l := s.limits
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range all {
		n := &all[i]
		to := &rest
		// A dropped one may share its name with another, and a series stands once in a scrape.
		if i < len(own) && !n.Dropping {
			out = append(out, namespaceSeries{name: n.Name})
			to = &out[len(out)-1]
		}
		to.keys += n.Records
		to.bytes += n.Bytes
		to.openWatches += l.watches[n.ID]
		if c := l.counts[n.ID]; c != nil {
			to.limited += c.limited.Load()
			to.watches += c.watches.Load()
			to.quotas += c.quota.Load()
		}
	}
	return append(out, rest)
}

// writeNamespaceMetrics writes what is counted of each namespace.
func (s *Shard) writeNamespaceMetrics(w io.Writer) error {
	all := s.namespaceSeries()
	for _, f := range []struct {
		name, kind, help string
		value            func(n *namespaceSeries) uint64
	}{
		{"kvstore_namespace_keys", "gauge", "Keys of a namespace.", func(n *namespaceSeries) uint64 { return n.keys }},
		{"kvstore_namespace_bytes", "gauge", "Bytes of a namespace's keys, kept elements and values as they were sent.", func(n *namespaceSeries) uint64 { return n.bytes }},
		{"kvstore_namespace_watches", "gauge", "Watches of a namespace at this node.", func(n *namespaceSeries) uint64 { return n.openWatches }},
		{"kvstore_namespace_quota_refused_total", "counter", "Writes refused because a namespace holds as much as it may.", func(n *namespaceSeries) uint64 { return n.quotas }},
		{"kvstore_namespace_limited_total", "counter", "Requests refused by a namespace's rate limit.", func(n *namespaceSeries) uint64 { return n.limited }},
		{"kvstore_namespace_watches_refused_total", "counter", "Watches refused because a namespace has as many as it may.", func(n *namespaceSeries) uint64 { return n.watches }},
	} {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind); err != nil {
			return err
		}
		for i := range all {
			if _, err := fmt.Fprintf(w, "%s{namespace=%q} %d\n", f.name, all[i].name, f.value(&all[i])); err != nil {
				return err
			}
		}
	}
	return nil
}
