package bench

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			t.Fatalf("%s differs from line %d on (-update writes it anew)\ngot:\n%s\nwant:\n%s", path, i+1, strings.Join(g[min(i, len(g)):min(i+5, len(g))], "\n"), strings.Join(w[min(i, len(w)):min(i+5, len(w))], "\n"))
		}
	}
}

var (
	errFakeUnknown = errors.New("fake: outcome unknown")
	errFakeBusy    = errors.New("fake: busy")
)

// fakeTarget is a map with delays and failures. serial makes it answer one operation at a time.
type fakeTarget struct {
	delay func(op int) time.Duration
	fail  func(op int) error

	mu   sync.Mutex
	data map[string]string
	ops  int
	puts int
	gets int
}

func newFakeTarget() *fakeTarget { return &fakeTarget{data: map[string]string{}} }

// step counts one operation, waits and fails as told.
func (f *fakeTarget) step() error {
	f.mu.Lock()
	n := f.ops
	f.ops++
	f.mu.Unlock()
	if f.delay != nil {
		time.Sleep(f.delay(n))
	}
	if f.fail != nil {
		return f.fail(n)
	}
	return nil
}

func (f *fakeTarget) Get(_ context.Context, key string, dst []byte) ([]byte, bool, error) {
	if err := f.step(); err != nil {
		return nil, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets++
	v, ok := f.data[key]
	return append(dst, v...), ok, nil
}

func (f *fakeTarget) Put(_ context.Context, key string, value []byte) error {
	if err := f.step(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts++
	f.data[key] = string(value)
	return nil
}

func (f *fakeTarget) Scan(_ context.Context, start string, limit int) (int, error) {
	if err := f.step(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []string
	for k := range f.data {
		if k >= start {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return min(len(keys), limit), nil
}

func (f *fakeTarget) GetMany(_ context.Context, keys []string) (int, error) {
	if err := f.step(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, k := range keys {
		if _, ok := f.data[k]; ok {
			n++
		}
	}
	return n, nil
}

func (f *fakeTarget) PutMany(_ context.Context, keys []string, values [][]byte) error {
	if err := f.step(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, k := range keys {
		f.data[k] = string(values[i])
	}
	return nil
}

func (f *fakeTarget) Transact(ctx context.Context, keys []string, values [][]byte) error {
	n := (len(keys) + 1) / 2
	return f.PutMany(ctx, keys[:n], values[:n])
}

func (f *fakeTarget) Pipeline(ctx context.Context, depth int) Pipeline { return Spawn(ctx, f, depth) }

func (f *fakeTarget) Kind(err error) Kind {
	switch {
	case errors.Is(err, errFakeUnknown):
		return KindUnknown
	case errors.Is(err, errFakeBusy):
		return KindBusy
	}
	return KindOther
}
