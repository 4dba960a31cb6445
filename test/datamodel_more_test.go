package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"kvstore/client"
	"kvstore/wire"
)

var compressCases = []dataCase{
	{"compress", "by each codec, given back as it came", func(d *dataRun, key string) error {
		values := map[string][]byte{
			"empty": nil, "short": []byte("short"), "text": bytes.Repeat([]byte("all work and no play "), 1000),
			"large": bytes.Repeat([]byte("0123456789"), 1<<19), "noise": randomBytes(random(7, 1), 100_000),
		}
		for _, codec := range []client.Compression{client.CompressNever, client.CompressS2, client.CompressZstd, client.CompressLZ4} {
			for name, value := range values {
				k := fmt.Sprintf("%s%d/%s", key, codec, name)
				if _, err := d.c.Put(d.ctx, k, value, client.Compress(codec), client.WithContentType("text/plain"), client.WithChecksum()); err != nil {
					return fmt.Errorf("%s: %w", k, err)
				}
				got := d.get(k)
				same(d, k, bytes.Equal(got.Data, value), true)
				same(d, "checksum", got.Checksum, wire.Checksum(value))
				same(d, "content type", got.ContentType, "text/plain")
				same(d, "encoding", got.Encoding, "")
			}
		}
		text := fmt.Sprintf("%s%d/text", key, client.CompressZstd)
		if _, err := d.c.Put(d.ctx, key, nil, client.IfAbsent()); err != nil {
			return err
		}
		if _, err := d.c.Put(d.ctx, text, []byte("other"), client.IfValue(values["text"])); err != nil {
			return fmt.Errorf("condition on a compressed value: %w", err)
		}
		return nil
	}, nil},
	{"compress", "a large value in a listing, a batch and a transaction", func(d *dataRun, key string) error {
		value := bytes.Repeat([]byte("0123456789"), 100_000)
		if _, err := d.c.Put(d.ctx, key, value, client.Compress(client.CompressLZ4)); err != nil {
			return err
		}
		for e, err := range d.c.List(d.ctx, client.ListOptions{Prefix: key, Read: d.read}) {
			if err != nil {
				return err
			}
			same(d, "listed", bytes.Equal(e.Data, value), true)
		}
		b, err := d.c.BatchGet(d.ctx, []string{key}, d.read...)
		if err != nil {
			return err
		}
		same(d, "batch", bytes.Equal(b.Items[0].Value.Data, value), true)
		r, err := d.c.Txn().Get(key).Commit(d.ctx)
		if err != nil {
			return err
		}
		same(d, "transaction", bytes.Equal(r.Results[0].Value.Data, value), true)
		_, err = d.c.Touch(d.ctx, key, time.Hour)
		same(d, "touched", bytes.Equal(d.get(key).Data, value), true)
		return err
	}, nil},
	{"compress", "by a codec that there is not", func(d *dataRun, key string) error {
		_, err := d.c.Put(d.ctx, key, nil, client.Compress(99))
		return err
	}, client.ErrBadRequest},
}

// next takes an event, which must come.
func (d *dataRun) next(w *client.Watch) client.Event {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	e, err := w.Next(ctx)
	if err != nil {
		d.t.Fatalf("next event: %v", err)
	}
	return e
}

// told checks that the next events are those, as "kind key=value".
func (d *dataRun) told(w *client.Watch, key string, want ...string) {
	d.t.Helper()
	before := w.Revision()
	for _, s := range want {
		e := d.next(w)
		got := fmt.Sprintf("%s %s", e.Kind, strings.TrimPrefix(e.Key, key))
		if e.Kind == client.EventPut {
			got += "=" + string(e.Value.Data)
		}
		same(d, "event", got, s)
		same(d, "revision grows", e.Revision > before, true)
		before = e.Revision
	}
}

// watch begins a watch at the node of the run.
func (d *dataRun) watch(o client.WatchOptions) *client.Watch {
	d.t.Helper()
	w, err := d.c.Watch(d.ctx, o)
	if err != nil {
		d.t.Fatalf("watch: %v", err)
	}
	d.t.Cleanup(func() { w.Close() })
	return w
}

var watchCases = []dataCase{
	{"watch", "put, delete and expiry of a prefix, from now", func(d *dataRun, key string) error {
		d.put(key+"before", "x")
		w := d.watch(client.WatchOptions{Prefix: key})
		d.put(key+"a", "1", client.WithTag("t", "v"))
		d.put("elsewhere/"+key, "x")
		d.put(key+"b", "2", client.WithTTL(50*time.Millisecond))
		if _, _, err := d.c.Delete(d.ctx, key+"a"); err != nil {
			return err
		}
		first := d.next(w)
		same(d, "first", string(first.Value.Data), "1")
		same(d, "tags", fmt.Sprint(first.Value.Tags()), "map[t:v]")
		same(d, "version", first.Value.Version, first.Revision)
		d.told(w, key, "put b=2")
		// The deletion and the expiry come in the order in which they were applied.
		got := []string{fmt.Sprint(d.next(w).Kind), fmt.Sprint(d.next(w).Kind)}
		slices.Sort(got)
		same(d, "ends", fmt.Sprint(got), "[delete expire]")
		return nil
	}, nil},
	{"watch", "one key, a range, from a revision, with what was before", func(d *dataRun, key string) error {
		start := d.put(key+"a", "1")
		d.put(key+"b", "1")
		d.put(key+"a", "2")
		d.put(key+"c", "1")
		d.put(key+"a/x", "1")
		if _, _, err := d.c.Delete(d.ctx, key+"a"); err != nil {
			return err
		}
		d.told(d.watch(client.WatchOptions{Key: key + "a", After: start}), key, "put a=2", "delete a")
		d.told(d.watch(client.WatchOptions{Start: key + "b", End: key + "d", After: start}), key, "put b=1", "put c=1")
		w := d.watch(client.WatchOptions{Prefix: key, After: start, Previous: true})
		same(d, "b before", d.next(w).Previous == nil, true)
		e := d.next(w)
		same(d, "a before", e.Previous != nil && string(e.Previous.Data) == "1" && e.Previous.Version == start, true)
		return nil
	}, nil},
	{"watch", "keys only, and only deletions", func(d *dataRun, key string) error {
		w := d.watch(client.WatchOptions{Prefix: key, KeysOnly: true})
		gone := d.watch(client.WatchOptions{Prefix: key, NoPut: true, NoExpire: true})
		d.put(key+"a", "value")
		if _, _, err := d.c.Delete(d.ctx, key+"a"); err != nil {
			return err
		}
		e := d.next(w)
		same(d, "value left out", len(e.Value.Data), 0)
		same(d, "version", e.Value.Version, e.Revision)
		d.told(gone, key, "delete a")
		return nil
	}, nil},
	{"watch", "a transaction's events come together and in order", func(d *dataRun, key string) error {
		d.put(key+"gone", "x")
		w := d.watch(client.WatchOptions{Prefix: key})
		r, err := d.c.Txn().Put(key+"b", []byte("1")).Put(key+"a", []byte("2")).Delete(key+"gone").Put(key+"b", []byte("3")).Commit(d.ctx)
		if err != nil {
			return err
		}
		for i, want := range []string{"b", "a", "gone", "b"} {
			e := d.next(w)
			same(d, "key", e.Key, key+want)
			same(d, "last", e.Last, i == 3)
			same(d, "revision", e.Revision, r.Results[i].Version)
		}
		return nil
	}, nil},
	{"watch", "tells how far it has come when nothing happens", func(d *dataRun, key string) error {
		w := d.watch(client.WatchOptions{Prefix: key, Progress: 100 * time.Millisecond})
		rev := d.put("elsewhere/"+key, "x")
		ctx, cancel := context.WithCancel(d.ctx)
		defer cancel()
		go func() { _, _ = w.Next(ctx) }() // owned by the case; ends with ctx
		eventually(d.t, "the watch has come to the write", func() (bool, error) { return w.Revision() >= rev, nil })
		return nil
	}, nil},
	{"watch", "resumed behind each event misses and repeats nothing", func(d *dataRun, key string) error {
		start := d.put(key, "0")
		for i := range 5 {
			d.put(fmt.Sprintf("%s%d", key, i), "v")
		}
		after := start
		for i := range 5 {
			w := d.watch(client.WatchOptions{Prefix: key, After: after})
			e := d.next(w)
			same(d, "key", e.Key, fmt.Sprintf("%s%d", key, i))
			after = e.Revision
			w.Close()
		}
		return nil
	}, nil},
	{"watch", "with one byte of credit, a large value", func(d *dataRun, key string) error {
		w := d.watch(client.WatchOptions{Prefix: key, Credit: 1})
		value := bytes.Repeat([]byte("v"), 4<<20)
		for i := range 3 {
			if _, err := d.c.Put(d.ctx, fmt.Sprint(key, i), value); err != nil {
				return err
			}
		}
		for range 3 {
			same(d, "equal", bytes.Equal(d.next(w).Value.Data, value), true)
		}
		return nil
	}, nil},
	{"watch", "ends with its context, and can be closed twice", func(d *dataRun, key string) error {
		w := d.watch(client.WatchOptions{Prefix: key})
		ctx, cancel := context.WithCancel(d.ctx)
		cancel()
		_, err := w.Next(ctx)
		w.Close()
		w.Close()
		return err
	}, context.Canceled},
	{"watch", "closed", func(d *dataRun, key string) error {
		w := d.watch(client.WatchOptions{Prefix: key})
		w.Close()
		_, err := w.Next(d.ctx)
		return err
	}, client.ErrClosed},
	{"watch", "a key and a prefix at once", func(d *dataRun, key string) error {
		_, err := d.c.Watch(d.ctx, client.WatchOptions{Key: key, Prefix: key})
		return err
	}, client.ErrBadRequest},
	{"watch", "nothing at all", func(d *dataRun, key string) error {
		_, err := d.c.Watch(d.ctx, client.WatchOptions{Prefix: key, NoPut: true, NoDelete: true, NoExpire: true})
		return err
	}, client.ErrBadRequest},
	{"watch", "a bad key", func(d *dataRun, key string) error {
		_, err := d.c.Watch(d.ctx, client.WatchOptions{Key: key + "\xff"})
		return err
	}, client.ErrBadKey},
}

// space names a namespace of a case.
func (d *dataRun) space(key string) string {
	return strings.TrimSuffix(strings.ReplaceAll(key, "/", "-"), "-")
}

// in opens a client of a namespace at the run's node and door.
func (d *dataRun) in(name string) *dataRun {
	other := *d
	other.c = openAt(d.t, []string{d.addr}, client.WithNamespace(name), client.WithTimeout(patience))
	return &other
}

var namespaceCases = []dataCase{
	{"namespace", "created, described, listed, changed, dropped, created anew", func(d *dataRun, key string) error {
		name := d.space(key)
		made, err := d.c.CreateNamespace(d.ctx, name, client.NamespaceSettings{KeysMax: 10})
		if err != nil {
			return err
		}
		same(d, "name", made.Name, name)
		same(d, "limit", made.Settings.KeysMax, 10)
		n := d.in(name)
		n.putAll(key, "a", "b")
		d.absent(key + "a")
		same(d, "value", string(n.get(key+"a").Data), "value of a")
		told, err := d.c.DescribeNamespace(d.ctx, name)
		if err != nil {
			return err
		}
		same(d, "keys", told.Keys, 2)
		same(d, "bytes", told.Bytes, uint64(2*(len(key)+1+len("value of a"))))
		all, err := d.c.Namespaces(d.ctx)
		if err != nil {
			return err
		}
		same(d, "listed", slices.ContainsFunc(all, func(x client.Namespace) bool { return x.Name == name }), true)
		same(d, "default is listed", slices.ContainsFunc(all, func(x client.Namespace) bool { return x.Name == "default" }), true)
		if _, err := d.c.SetNamespace(d.ctx, name, client.NamespaceSettings{KeysMax: 20}); err != nil {
			return err
		}
		if err := d.c.DropNamespace(d.ctx, name); err != nil {
			return err
		}
		if _, err := n.c.Get(d.ctx, key+"a", n.read...); !errors.Is(err, client.ErrNoNamespace) {
			d.t.Errorf("get in a dropped namespace: %v", err)
		}
		if _, err := n.c.Put(d.ctx, key+"a", nil); !errors.Is(err, client.ErrNoNamespace) || !errors.Is(err, client.ErrNotApplied) {
			d.t.Errorf("put in a dropped namespace: %v", err)
		}
		if _, err := d.c.CreateNamespace(d.ctx, name, client.NamespaceSettings{}); err != nil {
			return err
		}
		n.absent(key + "a")
		n.put(key+"a", "anew")
		same(d, "value", string(n.get(key+"a").Data), "anew")
		return nil
	}, nil},
	{"namespace", "quotas of keys and of bytes, over the edge and back", func(d *dataRun, key string) error {
		name := d.space(key)
		if _, err := d.c.CreateNamespace(d.ctx, name, client.NamespaceSettings{KeysMax: 3, BytesMax: 1000}); err != nil {
			return err
		}
		n := d.in(name)
		for _, k := range []string{"a", "b", "c"} {
			n.put(k, "v")
		}
		refused := func(what, text string, err error) {
			d.t.Helper()
			if !errors.Is(err, client.ErrQuota) || !errors.Is(err, client.ErrNotApplied) || !strings.Contains(err.Error(), text) {
				d.t.Errorf("%s: %v; want the quota of %s", what, err, text)
			}
		}
		_, err := n.c.Put(d.ctx, "d", []byte("v"))
		refused("fourth key", "keys", err)
		_, err = n.c.Txn().Delete("a").Put("d", nil).Put("e", nil).Commit(d.ctx)
		refused("transaction", "keys", err)
		n.get("a")
		if _, err := n.c.Txn().Delete("a").Put("d", nil).Commit(d.ctx); err != nil {
			return fmt.Errorf("a transaction that leaves three keys: %w", err)
		}
		n.put("b", "other") // no new key
		_, err = n.c.Put(d.ctx, "b", make([]byte, 1000))
		refused("bytes", "bytes", err)
		same(d, "value", string(n.get("b").Data), "other")
		if _, _, err := n.c.Delete(d.ctx, "c"); err != nil {
			return err
		}
		n.put("e", "v")
		_, err = n.c.Put(d.ctx, "f", []byte("v"))
		return err
	}, client.ErrQuota},
	{"namespace", "a limit of watches", func(d *dataRun, key string) error {
		name := d.space(key)
		if _, err := d.c.CreateNamespace(d.ctx, name, client.NamespaceSettings{WatchesMax: 1}); err != nil {
			return err
		}
		// Each node counts its own, and has heard of the limit within a moment.
		n := d.in(name)
		var err error
		for began := time.Now(); time.Since(began) < patience && err == nil; time.Sleep(10 * time.Millisecond) {
			var w *client.Watch
			if w, err = n.c.Watch(d.ctx, client.WatchOptions{}); err == nil {
				d.t.Cleanup(w.Close)
			}
		}
		return err
	}, client.ErrTooMany},
	{"namespace", "compresses what is put there", func(d *dataRun, key string) error {
		name := d.space(key)
		if _, err := d.c.CreateNamespace(d.ctx, name, client.NamespaceSettings{Compress: client.CompressZstd}); err != nil {
			return err
		}
		value := bytes.Repeat([]byte("text "), 10_000)
		n := d.in(name)
		if _, err := n.c.Put(d.ctx, "k", value); err != nil {
			return err
		}
		same(d, "equal", bytes.Equal(n.get("k").Data, value), true)
		return nil
	}, nil},
	{"namespace", "the watch of one that is dropped ends", func(d *dataRun, key string) error {
		name := d.space(key)
		if _, err := d.c.CreateNamespace(d.ctx, name, client.NamespaceSettings{}); err != nil {
			return err
		}
		n := d.in(name)
		w := n.watch(client.WatchOptions{})
		n.put("k", "v")
		n.told(w, "", "put k=v")
		if err := d.c.DropNamespace(d.ctx, name); err != nil {
			return err
		}
		for {
			ctx, cancel := context.WithTimeout(d.ctx, patience)
			_, err := w.Next(ctx)
			cancel()
			if err != nil {
				return err
			}
		}
	}, client.ErrNoNamespace},
	{"namespace", "that there is not", func(d *dataRun, key string) error {
		n := d.in(d.space(key))
		for what, do := range map[string]func() error{
			"put":   func() error { _, err := n.c.Put(d.ctx, "k", nil); return err },
			"get":   func() error { _, err := n.c.Get(d.ctx, "k", d.read...); return err },
			"list":  func() error { _, err := n.list(client.ListOptions{}); return err },
			"txn":   func() error { _, err := n.c.Txn().Put("k", nil).Commit(d.ctx); return err },
			"batch": func() error { _, err := n.c.BatchPut(d.ctx, []client.KV{{Key: "k"}}, true); return err },
			"watch": func() error { _, err := n.c.Watch(d.ctx, client.WatchOptions{}); return err },
		} {
			if err := do(); !errors.Is(err, client.ErrNoNamespace) {
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		_, err := d.c.DescribeNamespace(d.ctx, d.space(key))
		return err
	}, client.ErrNoNamespace},
	{"namespace", "that there is already", func(d *dataRun, key string) error {
		if _, err := d.c.CreateNamespace(d.ctx, d.space(key), client.NamespaceSettings{}); err != nil {
			return err
		}
		_, err := d.c.CreateNamespace(d.ctx, d.space(key), client.NamespaceSettings{})
		return err
	}, client.ErrNamespaceExists},
	{"namespace", "default can't be dropped", func(d *dataRun, _ string) error {
		return d.c.DropNamespace(d.ctx, "default")
	}, client.ErrBadRequest},
	{"namespace", "a name that may not be", func(d *dataRun, _ string) error {
		_, err := d.c.CreateNamespace(d.ctx, "no spaces", client.NamespaceSettings{})
		return err
	}, client.ErrBadRequest},
}
