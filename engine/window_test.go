package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"

	"kvstore/wire"
)

// all lists what a window holds, and checks its invariants.
func (w *window) all() (map[uint64]keptResult, error) {
	if n := len(w.heads); n&(n-1) != 0 || n != cap(w.answers) || w.count > n || len(w.answers) > n {
		return nil, fmt.Errorf("%d chains, room for %d answers, %d were used, %d are", n, cap(w.answers), len(w.answers), w.count)
	}
	out := make(map[uint64]keptResult)
	met := make(map[uint32]bool)
	for i, at := range w.heads {
		for long := 1; at != 0; long++ {
			a := &w.answers[at-1]
			if _, twice := out[a.seq]; twice || met[at] || a.seq&uint64(len(w.heads)-1) != uint64(i) || long > 64 {
				return nil, fmt.Errorf("chain %d of %d holds %d, at %d, as number %d", i, len(w.heads), a.seq, at, long)
			}
			met[at], out[a.seq] = true, a.kept
			at = a.next
		}
	}
	for at := w.free; at != 0; {
		a := w.answers[at-1]
		if met[at] || !reflect.DeepEqual(a, windowAnswer{next: a.next}) {
			return nil, fmt.Errorf("%d is free and holds %+v, in use %v", at, a, met[at])
		}
		met[at] = true
		at = a.next
	}
	if len(out) != w.count || len(met) != len(w.answers) {
		return nil, fmt.Errorf("%d answers, %d were counted; %d of %d places are in a chain", len(out), w.count, len(met), len(w.answers))
	}
	return out, nil
}

func mustAll(t testing.TB, w *window) map[uint64]keptResult {
	t.Helper()
	all, err := w.all()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// windowChecker is a window beside a map.
type windowChecker struct {
	t     *testing.T
	w     window
	model map[uint64]keptResult
}

func newWindowChecker(t *testing.T) *windowChecker {
	return &windowChecker{t: t, model: make(map[uint64]keptResult)}
}

// put adds an answer that tells its number.
func (c *windowChecker) put(seq uint64) {
	k := keptResult{rev: seq, payload: fmt.Append(nil, seq), journal: &journalRecord{live: int(seq)}}
	c.w.put(seq, &k)
	c.model[seq] = k
}

func (c *windowChecker) remove(seq uint64) {
	c.t.Helper()
	want, there := c.model[seq]
	if got, ok := c.w.remove(seq); ok != there || !reflect.DeepEqual(got, want) {
		c.t.Fatalf("removed %d: %+v, %v; want %+v, %v", seq, got, ok, want, there)
	}
	delete(c.model, seq)
}

// look compares what is known of one number.
func (c *windowChecker) look(seq uint64) {
	c.t.Helper()
	want, there := c.model[seq]
	got := c.w.get(seq)
	if (got != nil) != there || got != nil && !reflect.DeepEqual(*got, want) {
		c.t.Fatalf("%d: %+v, want %+v, %v", seq, got, want, there)
	}
	if c.w.len() != len(c.model) {
		c.t.Fatalf("%d answers, want %d", c.w.len(), len(c.model))
	}
}

// compare compares all, and what room is taken for it.
func (c *windowChecker) compare() {
	c.t.Helper()
	if got := mustAll(c.t, &c.w); !reflect.DeepEqual(got, c.model) {
		c.t.Fatalf("%d answers, want %d: %v, %v", len(got), len(c.model), sortedKeys(got), sortedKeys(c.model))
	}
	for seq := range c.model {
		c.look(seq)
	}
	if size := len(c.w.heads); size > max(windowSizeKept, 8*len(c.model)) || size > wire.SessionWindow {
		c.t.Fatalf("room for %d, %d answers", size, len(c.model))
	}
}

// TestWindow_RandomUse_AgreesWithAMap plays clients of several kinds: which number comes next, and when the floor rises.
func TestWindow_RandomUse_AgreesWithAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 44))
	next := map[string]func(floor, last uint64) uint64{
		"in order":         func(_, last uint64) uint64 { return last + 1 },
		"with gaps":        func(_, last uint64) uint64 { return last + 1 + rng.Uint64N(20) },
		"anywhere":         func(floor, _ uint64) uint64 { return floor + 1 + rng.Uint64N(wire.SessionWindow) },
		"near":             func(floor, _ uint64) uint64 { return floor + 1 + rng.Uint64N(100) },
		"made to meet":     func(floor, _ uint64) uint64 { return (floor | 63) + 1 + 64*rng.Uint64N(wire.SessionWindow/64-1) },
		"near the far end": func(floor, _ uint64) uint64 { return floor + wire.SessionWindow - rng.Uint64N(300) },
	}
	for _, kind := range sortedKeys(next) {
		t.Run(kind, func(t *testing.T) {
			clients := 10
			if testing.Short() {
				clients = 3
			}
			for range clients {
				c := newWindowChecker(t)
				floor := rng.Uint64N(1 << 62)
				last := floor
				depth := 1 + rng.IntN(1<<rng.IntN(13)) // how many are kept, about
				for range 600 + 3*depth {
					seq := next[kind](floor, last)
					c.look(seq)
					if seq-floor <= wire.SessionWindow && c.w.get(seq) == nil {
						c.put(seq)
						last = max(last, seq)
					}
					c.look(seq)
					c.look(floor + rng.Uint64N(wire.SessionWindow+2))
					switch n := rng.IntN(4 * depth); {
					case n == 0: // a jump, of all it may be
						for to := floor + rng.Uint64N(wire.SessionWindow+1); floor < to; floor++ {
							c.remove(floor + 1)
						}
					case len(c.model) > depth || seq-floor > wire.SessionWindow:
						for range 1 + rng.IntN(20) {
							floor++
							c.remove(floor)
						}
					}
					last = max(last, floor)
					if rng.IntN(100) == 0 {
						c.compare()
					}
				}
				c.compare()
				for _, seq := range sortedKeys(c.model) {
					c.remove(seq)
				}
				c.compare()
			}
		})
	}
}

// TestWindow_Room_FollowsTheAnswers: a window is as large as what it holds, whatever the numbers are.
func TestWindow_Room_FollowsTheAnswers(t *testing.T) {
	if n := unsafe.Sizeof(windowAnswer{}); n != 64 {
		t.Errorf("an answer takes %d bytes", n)
	}
	room := func(c *windowChecker, want int) {
		t.Helper()
		c.compare()
		if n := len(c.w.heads); n != want {
			t.Fatalf("%d answers have room for %d, want %d", c.w.len(), n, want)
		}
	}
	c := newWindowChecker(t)
	c.remove(1)
	c.look(1)
	room(c, 0)
	for seq := uint64(1); seq <= wire.SessionWindow; seq += wire.SessionWindow / windowSizeMin { // all in one chain
		c.put(seq)
	}
	room(c, windowSizeMin)
	c.put(2)
	room(c, 2*windowSizeMin)

	c = newWindowChecker(t)
	for seq := uint64(1); seq <= wire.SessionWindow; seq++ {
		c.put(seq)
	}
	room(c, wire.SessionWindow)
	for _, x := range []struct{ kept, room int }{
		{1024, wire.SessionWindow}, {1023, 2048}, {256, 2048}, {255, 512}, {64, 512}, {63, 128}, {16, 128}, {15, 64}, {0, 64},
	} {
		for seq := uint64(1); c.w.len() > x.kept; seq++ {
			c.remove(seq)
		}
		room(c, x.room)
	}
	// The chains of free places serve again.
	for seq := uint64(1); seq <= 64; seq++ {
		c.put(1 << seq)
	}
	room(c, 64)
}

// TestSessions_SteadyWrites_AllocateNothing: in the long run a write takes no memory in the table, and neither does its J record.
func TestSessions_SteadyWrites_AllocateNothing(t *testing.T) {
	table := newSessions()
	table.open(1, 0)
	var mem arena
	var d digest
	seq, ts := uint64(0), uint64(0)
	entry := func() {
		ts++
		for range 20 {
			seq++
			s, _, answered := table.begin(1, seq, seq-min(seq, 100), 0)
			if answered {
				t.Fatal("answered")
			}
			table.keep(s, seq, ts, &wire.Result{Rev: seq})
		}
		table.flush(nowhere{}, &mem, &d)
		mem.reset()
	}
	for range 100 {
		entry()
	}
	if n := testing.AllocsPerRun(100, entry); n != 0 {
		t.Errorf("%v allocations per entry", n)
	}
}

// journalsOf lists the J records that a table knows, by what is kept in them, and checks what they say of that.
func journalsOf(t *sessions) (map[journalPlace]journalRecord, error) {
	known := make(map[journalPlace]*journalRecord)
	counted := make(map[*journalRecord]journalRecord)
	for _, id := range sortedKeys(t.byID) {
		all, err := t.byID[id].results.all()
		if err != nil {
			return nil, fmt.Errorf("window of session %d: %w", id, err)
		}
		for _, k := range all {
			j := k.journal
			if known[j.place] == nil {
				known[j.place] = j
			}
			if known[j.place] != j {
				return nil, fmt.Errorf("two journal records at %v: %+v, %+v", j.place, *known[j.place], *j)
			}
			n := counted[j]
			n.live, n.bytes = n.live+1, n.bytes+len(appendJournalResult(nil, id, 0, &k))
			counted[j] = n
		}
	}
	out := make(map[journalPlace]journalRecord)
	for place, j := range known {
		if n := counted[j]; j.live != n.live || j.bytes != n.bytes {
			return nil, fmt.Errorf("journal record %+v has %d answers of %d bytes", *j, n.live, n.bytes)
		}
		out[place] = *j
	}
	spare := make(map[*journalRecord]bool)
	for _, j := range t.spare {
		if counted[j].live > 0 || spare[j] || len(t.spare) > spareJournalsMax {
			return nil, fmt.Errorf("journal record %+v, of %d that are spare, has %d answers", *j, len(t.spare), counted[j].live)
		}
		spare[j] = true
	}
	return out, nil
}

func mustJournalsOf(t testing.TB, s *sessions) map[journalPlace]journalRecord {
	t.Helper()
	journals, err := journalsOf(s)
	if err != nil {
		t.Fatalf("journals differ: %v", err)
	}
	return journals
}

// equalKept compares two answers, and where they are stored.
func equalKept(a, b keptResult) bool {
	return a.journal.place == b.journal.place && a.rev == b.rev && a.status == b.status && a.truncated == b.truncated &&
		bytes.Equal(a.payload, b.payload)
}
