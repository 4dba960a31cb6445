package feed

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"kvstore/wire"
)

// What an entry of one small put costs the applier: alone, beside watchers that concern it, and beside many that don't.
// The watchers never read, but for those that keep up: they take what they are woken for.
func BenchmarkAppend(b *testing.B) {
	key := func(i int) string { return fmt.Sprintf("key/%05d", i%10_000) }
	for _, c := range []struct {
		name  string
		watch func(b *testing.B, f *Feed)
	}{
		{"watchers=0", func(*testing.B, *Feed) {}},
		{"watchers=1", func(b *testing.B, f *Feed) { watch(b, f, keyWatch(key(0), 0, 0), nil) }},
		{"watchers=50/overlapping", func(b *testing.B, f *Feed) {
			for i := range 50 { // each key concerns five
				watch(b, f, prefixWatch(key(i % 10 * 1000)[:len("key/0")], 0, 0), nil)
			}
		}},
		{"watchers=10000/distinct", func(b *testing.B, f *Feed) {
			for i := range 10_000 {
				watch(b, f, keyWatch(key(i), 0, 0), nil)
			}
		}},
		{"watchers=10000/distinct ranges", func(b *testing.B, f *Feed) {
			for i := range 10_000 {
				watch(b, f, prefixWatch(key(i), 0, 0), nil)
			}
		}},
		{"watchers=10000/distinct, keeping up", func(b *testing.B, f *Feed) {
			for i := range 10_000 {
				var w *Watcher
				w = watch(b, f, keyWatch(key(i), 0, 0), func() {
					for n := 1; n > 0; {
						n = 0
						if _, err := w.Next(func(*Event) bool { n++; return true }); err != nil && !errors.Is(err, ErrClosed) {
							b.Error(err)
						}
					}
				})
				drain(b, w)
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			f := openFeed(b, Options{Dir: filepath.Join(b.TempDir(), "f"), RetainBytes: 128 << 20})
			c.watch(b, f)
			keys := make([][]byte, 10_000)
			for i := range keys {
				keys[i] = []byte(key(i))
			}
			value := make([]byte, 100)
			events := make([]Event, 1)
			index := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				index++
				rev := wire.MakeRevision(index, 0)
				events[0] = Event{
					Kind: wire.EventPut, Last: true, Namespace: 1, Revision: rev, Key: keys[index%10_000],
					Record: wire.Record{Meta: wire.Meta{Version: rev}, Value: value},
				}
				f.Append(index, index, 0, rev, events)
				f.Publish(index)
				if index%200_000 == 0 { // so that old segments go
					if err := f.Sync(index); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// What a watcher reads in a second that begins in the past and wants one key of many, or all of them.
func BenchmarkNext_Past(b *testing.B) {
	f := openFeed(b, Options{Dir: filepath.Join(b.TempDir(), "f"), RingBytes: 1 << 20})
	wr := writer{f: f}
	value := string(make([]byte, 100))
	for i := range 100_000 {
		wr.put(value, fmt.Sprintf("key/%05d", i%10_000))
	}
	if err := f.Sync(wr.index); err != nil {
		b.Fatal(err)
	}
	for name, o := range map[string]WatchOptions{"one key": keyWatch("key/00001", 0, 0), "all": prefixWatch("", 0, 0)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(f.Stats().Bytes)
			b.ReportAllocs()
			for b.Loop() {
				w := watch(b, f, o, nil)
				n := 0
				for through := wire.Revision(0); through < f.shown.revision; {
					var err error
					if through, err = w.Next(func(*Event) bool { n++; return true }); err != nil {
						b.Fatal(err)
					}
				}
				if n != 100_000 && n != 10 {
					b.Fatal(n)
				}
				w.Close()
			}
		})
	}
}
