package engine

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// layerModel is what a layer should hold: for each key its versions, oldest first.
type layerModel map[string][]modelVersion

type modelVersion struct {
	ts    uint64
	value []byte // nil: deleted
}

// at gives the version of key to be seen at ts.
func (m layerModel) at(key string, ts uint64) (v modelVersion, ok bool) {
	for _, v := range slices.Backward(m[key]) {
		if v.ts <= ts {
			return v, true
		}
	}
	return v, false
}

// keysAt gives the keys that have a version at ts, in order.
func (m layerModel) keysAt(ts uint64) (keys []string) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if _, ok := m.at(key, ts); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

// fill adds entries from ts first to last to layer and model.
func (m layerModel) fill(t *testing.T, rng *rand.Rand, l *layer, first, last uint64) {
	t.Helper()
	for ts := first; ts <= last; ts++ {
		used := map[string]bool{}
		var all []stored
		for range 1 + rng.IntN(8) {
			key := fmt.Sprintf("D%0*d", 1+rng.IntN(4), rng.IntN(300))
			if used[key] {
				continue
			}
			used[key] = true
			var value []byte
			if n := rng.IntN(20); n > 3 {
				value = bytes.Repeat([]byte{byte(ts)}, n)
			} else if n == 3 {
				value = bytes.Repeat([]byte{byte(ts)}, 1+rng.IntN(layerBlockBytes))
			}
			all = append(all, stored{hashKey([]byte(key)), []byte(key), value})
			m[key] = append(m[key], modelVersion{ts, value})
		}
		if _, ok := l.add(ts, all); !ok {
			t.Fatal("it is sealed")
		}
		for _, s := range all { // it kept copies
			clear(s.key)
			clear(s.value)
		}
	}
	// The model's values were cleared with them: make them anew.
	for _, versions := range m {
		for i, v := range versions {
			for n := range v.value {
				versions[i].value[n] = byte(v.ts)
			}
		}
	}
}

// check compares look-ups and walks at ts.
func (m layerModel) check(t *testing.T, rng *rand.Rand, l *layer, ts uint64) {
	t.Helper()
	for key := range m {
		want, ok := m.at(key, ts)
		got, known := l.get(hashKey([]byte(key)), []byte(key), ts)
		if known != ok || !bytes.Equal(got, want.value) || (got == nil) != (want.value == nil) {
			t.Fatalf("get %q at %d: %d bytes, %v; want %d of ts %d, %v", key, ts, len(got), known, len(want.value), want.ts, ok)
		}
	}
	if _, known := l.get(hashKey([]byte("D")), []byte("D"), ts); known {
		t.Fatal("a key that was never stored is known")
	}
	keys := m.keysAt(ts)
	for _, reverse := range []bool{false, true} {
		bound := ""
		if rng.IntN(4) > 0 {
			bound = fmt.Sprintf("D%0*d", 1+rng.IntN(4), rng.IntN(300))
		}
		want := slices.DeleteFunc(slices.Clone(keys), func(k string) bool {
			return bound != "" && (k < bound) != reverse
		})
		if reverse {
			slices.Reverse(want)
		}
		c := l.cursor(ts, reverse)
		c.seek([]byte(bound))
		for _, key := range want {
			v, _ := m.at(key, ts)
			if string(c.key) != key || !bytes.Equal(c.value, v.value) || (c.value == nil) != (v.value == nil) {
				t.Fatalf("at ts %d, reverse %v, from %q: %q with %d bytes, want %q with %d", ts, reverse, bound, c.key, len(c.value), key, len(v.value))
			}
			c.advance()
		}
		if c.key != nil {
			t.Fatalf("at ts %d, reverse %v, from %q: %q behind the end", ts, reverse, bound, c.key)
		}
	}
}

func TestLayer_RandomEntries_LookUpsAndWalksAgreeWithTheModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		l, m := newLayer(), layerModel{}
		ts := uint64(rng.IntN(1000))
		first := ts + 1
		for range 8 {
			next := ts + 1 + uint64(rng.IntN(60))
			m.fill(t, rng, l, ts+1, next)
			ts = next
			m.check(t, rng, l, ts)
			m.check(t, rng, l, first+uint64(rng.Int64N(int64(ts-first+1))))
		}
		if n := len(l.runs); n > 10 {
			t.Errorf("%d runs of %d keys", n, l.keys.n.Load())
		}
	}
}

// All keys of a layer have one hash: they are told apart all the same.
func TestLayer_KeysOfOneHash_AreToldApart(t *testing.T) {
	l := newLayer()
	for i := range uint64(500) {
		if _, ok := l.add(1+i, []stored{{7, fmt.Append(nil, i), fmt.Append(nil, "value", i)}}); !ok {
			t.Fatal("it is sealed")
		}
	}
	for i := range uint64(500) {
		if v, known := l.get(7, fmt.Append(nil, i), 1000); !known || string(v) != fmt.Sprint("value", i) {
			t.Fatalf("%d: %q, %v", i, v, known)
		}
	}
	if l.newest(7, []byte("x")) != 0 {
		t.Error("a key was taken for another")
	}
}

// Walks and look-ups at what was published go on unharmed while the applier adds to the layer.
func TestLayer_ReadersBesideTheApplier_SeeWhatWasThere(t *testing.T) {
	const keys, entries, readers = 200, 2000, 4
	l := newLayer()
	key := func(i int) []byte { return fmt.Appendf(nil, "D%05d", i) }
	at := func(key, value []byte) stored { return stored{hashKey(key), key, value} }
	var all []stored
	for i := range keys {
		all = append(all, at(key(2*i), []byte{1}))
	}
	l.add(1, all)
	var wg, reading sync.WaitGroup
	reading.Add(readers)
	stop := make(chan struct{})
	for r := range readers {
		wg.Go(func() {
			var once sync.Once
			defer once.Do(reading.Done)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if n == 1 {
					once.Do(reading.Done)
				}
				c := l.cursor(1, r%2 == 1)
				c.seek(nil)
				seen := 0
				for ; c.key != nil; c.advance() {
					if string(c.value) != "\x01" {
						t.Errorf("%q has %v", c.key, c.value)
						return
					}
					seen++
				}
				if v, known := l.get(hashKey(key(2*(n%keys))), key(2*(n%keys)), 1); seen != keys || !known || string(v) != "\x01" {
					t.Errorf("%d keys, %v %v", seen, v, known)
					return
				}
			}
		})
	}
	reading.Wait()
	for ts := uint64(2); ts < entries; ts++ {
		l.add(ts, []stored{at(key(int(ts)), []byte{2}), at(key(2*int(ts%keys)), nil)}[:1+ts%2])
	}
	close(stop)
	wg.Wait()
}

// A version goes to Badger only if a read at or above the fence can see it; those that do are found by every such read, and
// what is pinned is not left out.
func TestDrain_KeyWrittenManyTimes_OnlyWhatCanBeReadGoesToBadger(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name    string
		history int64 // of what was stored; -1: none
		pin     uint64
		oldest  uint64 // that can still be read
		drained uint64 // of 200 versions
	}{
		{"no history", -1, 0, 100, 2},
		{"all history", 1 << 30, 0, 1, 200},
		{"a part of the history", 1000, 0, 73, 2 * 28}, // an entry has 35 or 36 bytes
		{"a pin", -1, 60, 60, 2 * 41},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := storeOptions(t, t.TempDir())
			if o.HistoryBytes = c.history; c.history < 0 {
				o.HistoryWindow = -1
			}
			s := mustOpenStore(t, o)
			value := func(i uint64) []byte { return fmt.Appendf(nil, "v%d", i) }
			for i := uint64(1); i <= 100; i++ {
				if err := applyEntry(s, i, []mutation{{[]byte("Dk"), value(i)}}); err != nil {
					t.Fatal(err)
				}
				if i == c.pin {
					release, err := s.pin(testPoint(i).ts)
					if err != nil {
						t.Fatal(err)
					}
					defer release()
				}
			}
			check := func() {
				t.Helper()
				for i := c.oldest; i <= 100; i++ {
					err := s.read(testPoint(i).ts, func(r *reader) error {
						found, err := r.get([]byte("Dk"), func(b []byte) error {
							if string(b) != string(value(i)) {
								return fmt.Errorf("%s", b)
							}
							return nil
						})
						return cmp.Or(err, map[bool]error{false: fmt.Errorf("not found")}[found])
					})
					if err != nil {
						t.Fatalf("at %d: %v", i, err)
					}
				}
			}
			check()
			if err := s.checkpointNow(ctx); err != nil {
				t.Fatal(err)
			}
			check()
			if n := s.metrics.drained.Load(); n != c.drained || n+s.metrics.collapsed.Load() != 200 {
				t.Errorf("%d versions went to Badger, want %d; %d did not", n, c.drained, s.metrics.collapsed.Load())
			}
			if c.oldest > 1 {
				if err := s.read(testPoint(c.oldest-1).ts, func(*reader) error { return nil }); err == nil {
					t.Error("a state was read that is not complete any more")
				}
			}
		})
	}
}

// Keys of every length, with long equal parts and zeros at their ends, come in the order that bytes.Compare gives.
func TestSortKeys_RandomKeys_AreInOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		l := newLayer()
		common := bytes.Repeat([]byte{'c'}, rng.IntN(20))
		letters := 1 + rng.IntN(3)
		want := map[string]bool{}
		for range rng.IntN(400) {
			key := append([]byte{'D'}, common[:rng.IntN(2)*len(common)]...)
			for range rng.IntN(24) {
				key = append(key, byte(rng.IntN(letters)))
			}
			want[string(key)] = true
		}
		ts := uint64(0)
		for key := range want {
			for range 1 + rng.IntN(2) {
				ts++
				l.add(ts, []stored{{hashKey([]byte(key)), []byte(key), fmt.Append(nil, ts)}})
			}
		}
		var got []string
		for _, k := range l.ordered() {
			v := l.at(k.place)
			if newest, _ := l.get(v.hash, v.key, ts); string(newest) != string(v.value) {
				t.Fatalf("%q: version %s, the newest is %s", v.key, v.value, newest)
			}
			got = append(got, string(v.key))
		}
		if !slices.Equal(got, slices.Sorted(maps.Keys(want))) {
			t.Fatalf("%d keys are out of order", len(got))
		}
	}
}

func BenchmarkLayer_Ordered(b *testing.B) {
	l := newLayer()
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range uint64(260_000) {
		key := fmt.Appendf(nil, "D\x00\x00\x00\x01user%010d", rng.IntN(100_000))
		l.add(1+i, []stored{{hashKey(key), key, make([]byte, 148)}})
	}
	for b.Loop() {
		l.ordered()
	}
}
