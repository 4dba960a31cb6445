package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"iter"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write golden files anew")

// testNow is the time in every test: outputs are golden.
var testNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fakeStore is a store in memory, with versions as a server gives them.
type fakeStore struct {
	mu      sync.Mutex
	data    map[string]record
	version uint64
	// fail, when set, decides the outcome of each call before it does anything.
	fail   func(verb, key string) error
	status string
	// members is the answer to Admin; asked are its requests.
	members string
	asked   []adminRequest
	// events are what a watch is told, then watchEnd; nil: nothing more happens. watched are its options.
	events   []event
	watchEnd error
	watched  watchOptions
	// read are the options of the last Get or List.
	read   readOptions
	calls  int
	closed int
}

func newFakeStore() *fakeStore { return &fakeStore{data: map[string]record{}} }

func (f *fakeStore) step(ctx context.Context, verb, key string) error {
	f.calls++
	if f.fail != nil {
		if err := f.fail(verb, key); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (f *fakeStore) holds(key string, cs []condition) bool {
	r, ok := f.data[key]
	for _, c := range cs {
		switch c.Kind {
		case ifVersion:
			if !ok || r.Version != c.Version {
				return false
			}
		case ifExists:
			if !ok {
				return false
			}
		case ifAbsent:
			if ok {
				return false
			}
		case ifValue:
			if !ok || !bytes.Equal(r.Value, c.Value) {
				return false
			}
		case ifTag:
			if v, has := r.Tags[c.Tag]; !ok || !has || v != string(c.Value) {
				return false
			}
		case ifTagPresent, ifTagAbsent:
			if _, has := r.Tags[c.Tag]; !ok || has != (c.Kind == ifTagPresent) {
				return false
			}
		}
	}
	return true
}

func (f *fakeStore) put(key string, value []byte, o putOptions) {
	r := record{Key: key, Value: bytes.Clone(value), Version: f.version, CreatedAt: testNow, UpdatedAt: testNow, ContentType: o.ContentType, Encoding: o.Encoding, Tags: o.Tags}
	if o.TTL > 0 {
		r.ExpiresAt = testNow.Add(o.TTL)
	}
	if old, ok := f.data[key]; ok {
		r.CreatedAt = old.CreatedAt
	}
	f.data[key] = r
}

func (f *fakeStore) Put(ctx context.Context, key string, value []byte, o putOptions) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(ctx, "put", key); err != nil {
		return 0, err
	}
	if !f.holds(key, o.Conditions) {
		return 0, &storeError{kind: kindCondition, err: errors.New("condition failed")}
	}
	f.version += 1 << 20
	f.put(key, value, o)
	return f.version, nil
}

func (f *fakeStore) Get(ctx context.Context, key string, o readOptions) (record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read = o
	if err := f.step(ctx, "get", key); err != nil {
		return record{}, err
	}
	r, ok := f.data[key]
	if !ok {
		return record{}, &storeError{kind: kindNotFound, err: errors.New("not found")}
	}
	return r, nil
}

func (f *fakeStore) Delete(ctx context.Context, key string, cs []condition) (bool, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(ctx, "delete", key); err != nil {
		return false, 0, err
	}
	if !f.holds(key, cs) {
		return false, 0, &storeError{kind: kindCondition, err: errors.New("condition failed")}
	}
	f.version += 1 << 20
	_, ok := f.data[key]
	delete(f.data, key)
	return ok, f.version, nil
}

func (f *fakeStore) Touch(ctx context.Context, key string, ttl time.Duration, cs []condition) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(ctx, "touch", key); err != nil {
		return 0, err
	}
	r, ok := f.data[key]
	switch {
	case !f.holds(key, cs):
		return 0, &storeError{kind: kindCondition, err: errors.New("condition failed")}
	case !ok:
		return 0, &storeError{kind: kindNotFound, err: errors.New("not found")}
	}
	f.version += 1 << 20
	if r.Version, r.ExpiresAt = f.version, (time.Time{}); ttl > 0 {
		r.ExpiresAt = testNow.Add(ttl)
	}
	f.data[key] = r
	return f.version, nil
}

func (f *fakeStore) Increment(ctx context.Context, key string, delta int64, o putOptions) (int64, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(ctx, "increment", key); err != nil {
		return 0, 0, err
	}
	if !f.holds(key, o.Conditions) {
		return 0, 0, &storeError{kind: kindCondition, err: errors.New("condition failed")}
	}
	n, err := strconv.ParseInt("0"+string(f.data[key].Value), 10, 64)
	if err != nil {
		return 0, 0, &storeError{kind: kindFailed, err: errors.New("not a number")}
	}
	f.version += 1 << 20
	f.put(key, strconv.AppendInt(nil, n+delta, 10), o)
	return n + delta, f.version, nil
}

func (f *fakeStore) Count(ctx context.Context, o listOptions) (n int64, _ uint64, err error) {
	for _, err = range f.List(ctx, o) {
		if err != nil {
			return 0, 0, err
		}
		n++
	}
	return n, f.version, nil
}

// fakeWatch gives the events of a fakeStore, then what ends it.
type fakeWatch struct {
	events []event
	end    error
	at     uint64
}

func (f *fakeStore) Watch(ctx context.Context, o watchOptions) (watch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watched = o
	return &fakeWatch{events: f.events, end: f.watchEnd, at: o.After}, f.step(ctx, "watch", o.Prefix)
}

func (w *fakeWatch) Next(ctx context.Context) (event, error) {
	if len(w.events) == 0 {
		if w.end == nil {
			<-ctx.Done()
			return event{}, ctx.Err()
		}
		return event{}, w.end
	}
	e := w.events[0]
	w.events, w.at = w.events[1:], e.Revision
	return e, nil
}

func (w *fakeWatch) Revision() uint64 { return w.at }
func (w *fakeWatch) Close()           {}

func (f *fakeStore) List(ctx context.Context, o listOptions) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		f.mu.Lock()
		f.read = o.Read
		var keys []string
		for k := range f.data {
			if strings.HasPrefix(k, o.Prefix) && k >= o.Start && (o.End == "" || k < o.End) {
				keys = append(keys, k)
			}
		}
		f.mu.Unlock()
		sort.Strings(keys)
		if o.Reverse {
			sort.Sort(sort.Reverse(sort.StringSlice(keys)))
		}
		for i, k := range keys {
			if o.Limit > 0 && i == o.Limit {
				return
			}
			f.mu.Lock()
			r := f.data[k]
			err := f.step(ctx, "list", k)
			f.mu.Unlock()
			if o.KeysOnly {
				r.Value = nil
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func (f *fakeStore) Txn(ctx context.Context, ops []txnOp) (txnResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(ctx, "txn", ""); err != nil {
		return txnResult{}, err
	}
	var res txnResult
	for i, op := range ops {
		for j, c := range op.Options.Conditions {
			if !f.holds(op.Key, []condition{c}) {
				res.Failed = append(res.Failed, failedCondition{i, j})
			}
		}
	}
	if len(res.Failed) > 0 {
		return res, nil
	}
	f.version += 1 << 20
	res.Committed, res.Version = true, f.version
	for _, op := range ops {
		var r txnOpResult
		r.Record, r.Found = f.data[op.Key]
		switch op.Type {
		case txnIncrement:
			n, err := strconv.ParseInt("0"+string(f.data[op.Key].Value), 10, 64)
			if err != nil {
				return txnResult{}, &storeError{kind: kindFailed, err: errors.New("not a number")}
			}
			r.Counter = n + op.Delta
			f.put(op.Key, strconv.AppendInt(nil, r.Counter, 10), op.Options)
		case txnTouch:
			if rec := f.data[op.Key]; r.Found {
				if rec.ExpiresAt = (time.Time{}); op.Options.TTL > 0 {
					rec.ExpiresAt = testNow.Add(op.Options.TTL)
				}
				f.data[op.Key] = rec
			}
		case txnPut:
			f.put(op.Key, op.Value, op.Options)
		case txnDelete:
			delete(f.data, op.Key)
		}
		res.Results = append(res.Results, r)
	}
	return res, nil
}

func (f *fakeStore) Status(ctx context.Context) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []byte(f.status), f.step(ctx, "status", "")
}

func (f *fakeStore) Revision(ctx context.Context) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.version, f.step(ctx, "revision", "")
}

func (f *fakeStore) PutAll(ctx context.Context, items []putItem) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(ctx, "putall", ""); err != nil {
		return err
	}
	for _, it := range items {
		f.put(it.Key, it.Value, it.Options)
	}
	return nil
}

func (f *fakeStore) Admin(ctx context.Context, q adminRequest) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, q)
	return []byte(f.members), f.step(ctx, "admin", q.ID)
}

func (f *fakeStore) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

// cli runs one command line against s, on pipes.
func cli(t *testing.T, s *fakeStore, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	code, stdout, stderr, _ = cliApp(t, s, stdin, nil, args...)
	return code, stdout, stderr
}

// cliApp is cli that lets change prepare the app, and tells how it was opened.
func cliApp(t *testing.T, s *fakeStore, stdin string, change func(*app), args ...string) (code int, stdout, stderr string, opened openOptions) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{
		in: strings.NewReader(stdin), out: &out, err: &errs,
		getenv: func(string) string { return "" }, now: func() time.Time { return testNow },
		open: func(_ context.Context, o openOptions) (store, error) { opened = o; return s, nil },
	}
	if change != nil {
		change(a)
	}
	code = a.run(t.Context(), args)
	return code, out.String(), errs.String(), opened
}

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
