package feed

import (
	"slices"
	"strings"
)

// watchers finds those that an event concerns, so that an event costs what its own watchers cost and no more. Guarded by
// Feed.mu.
type watchers struct {
	spaces map[uint32]*space
	count  int
	behind int // of them, those that are not synced
}

// space are the watchers of one namespace.
type space struct {
	all    map[*Watcher]struct{}
	exact  map[string][]*Watcher // by the one key that they watch
	ranges ranges
}

func (ws *watchers) init() { ws.spaces = make(map[uint32]*space) }

func (ws *watchers) add(w *Watcher) {
	s := ws.spaces[w.namespace]
	if s == nil {
		s = &space{all: make(map[*Watcher]struct{}), exact: make(map[string][]*Watcher)}
		ws.spaces[w.namespace] = s
	}
	ws.count++
	s.all[w] = struct{}{}
	if w.single {
		s.exact[w.low] = append(s.exact[w.low], w)
		return
	}
	s.ranges.add(w)
}

func (ws *watchers) remove(w *Watcher) {
	s := ws.spaces[w.namespace]
	ws.count--
	if !w.synced {
		ws.behind--
	}
	delete(s.all, w)
	if len(s.all) == 0 {
		delete(ws.spaces, w.namespace)
		return
	}
	if !w.single {
		s.ranges.remove(w)
		return
	}
	list := s.exact[w.low]
	if len(list) == 1 {
		delete(s.exact, w.low)
		return
	}
	i := slices.Index(list, w)
	s.exact[w.low] = slices.Delete(list, i, i+1)
}

// find appends the watchers of key.
func (s *space) find(found []*Watcher, key []byte) []*Watcher {
	found = append(found, s.exact[string(key)]...)
	return s.ranges.find(found, key)
}

// ranges are watchers of ranges of keys: most of them sorted by where they begin, with the highest end of each part, as
// a binary tree without pointers; those that came last stand in a list, so that the tree is not built anew for each.
type ranges struct {
	sorted []*Watcher
	// tops[i] is the highest end in the part whose middle is i; see find.
	tops   []top
	gone   int // of sorted, that were removed
	recent []*Watcher
}

// recentMax bounds the list that each event is compared with.
const recentMax = 32

type top struct {
	high    string
	endless bool
}

func (r *ranges) add(w *Watcher) {
	r.recent = append(r.recent, w)
	if len(r.recent) > recentMax {
		r.build()
	}
}

func (r *ranges) remove(w *Watcher) {
	if i := slices.Index(r.recent, w); i >= 0 {
		r.recent = slices.Delete(r.recent, i, i+1)
		return
	}
	w.unlisted = true
	if r.gone++; r.gone > len(r.sorted)/2 {
		r.build()
	}
}

func (r *ranges) build() {
	kept := r.sorted[:0]
	for _, w := range r.sorted {
		if !w.unlisted {
			kept = append(kept, w)
		}
	}
	kept = append(kept, r.recent...)
	clear(r.sorted[min(len(kept), len(r.sorted)):])
	clear(r.recent)
	r.recent, r.gone = r.recent[:0], 0
	slices.SortFunc(kept, func(a, b *Watcher) int { return strings.Compare(a.low, b.low) })
	r.sorted = kept
	r.tops = slices.Grow(r.tops[:0], len(kept))[:len(kept)]
	r.buildPart(0, len(kept))
}

// buildPart sets tops of [from, to) and gives its own.
func (r *ranges) buildPart(from, to int) (t top) {
	if from == to {
		return top{}
	}
	middle := (from + to) / 2
	t = top{r.sorted[middle].high, r.sorted[middle].endless}
	for _, part := range [...]top{r.buildPart(from, middle), r.buildPart(middle+1, to)} {
		t.high, t.endless = max(t.high, part.high), t.endless || part.endless
	}
	r.tops[middle] = t
	return t
}

func (r *ranges) find(found []*Watcher, key []byte) []*Watcher {
	for _, w := range r.recent {
		if w.covers(key) {
			found = append(found, w)
		}
	}
	return r.findPart(found, key, 0, len(r.sorted))
}

func (r *ranges) findPart(found []*Watcher, key []byte, from, to int) []*Watcher {
	for from < to {
		middle := (from + to) / 2
		if t := &r.tops[middle]; !t.endless && t.high <= string(key) {
			break // all of this part end before key
		}
		found = r.findPart(found, key, from, middle)
		w := r.sorted[middle]
		if w.low > string(key) {
			break // so do all that follow begin behind it
		}
		if !w.unlisted && (w.endless || w.high > string(key)) {
			found = append(found, w)
		}
		from = middle + 1
	}
	return found
}
