package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"kvstore/client"
	"kvstore/wire"
)

// clientStore is a store through the Go client.
type clientStore struct {
	c         *client.Client
	endpoints []string
}

// openClient connects. A session makes retries exactly-once and costs two log entries of its own: a bulk
// load wants it, a single write says instead that its outcome is unknown.
func openClient(ctx context.Context, o openOptions) (store, error) {
	opts := []client.Option{client.WithTimeout(o.Timeout), client.WithName("kvctl"), client.WithNamespace(o.Namespace)}
	if !o.Session {
		opts = append(opts, client.WithoutSession())
	}
	c, err := client.Open(ctx, o.Endpoints, opts...)
	if err != nil {
		return nil, explainOpen(o.Endpoints, err)
	}
	return &clientStore{c: c, endpoints: o.Endpoints}, nil
}

// explainOpen says what did not answer, why, and what to do.
func explainOpen(endpoints []string, err error) error {
	var ce *client.Error
	answered := errors.As(err, &ce) && ce.Status != wire.StatusOK
	switch {
	case answered || !(errors.Is(err, client.ErrUnavailable) || errors.Is(err, client.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)):
		return sorted(endpoints, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		const why = "connection refused"
		return &storeError{kind: kindConnect, err: noAnswer(strings.Join(endpoints, ", ") + " (" + why + ")"), why: why}
	}
	err = fmt.Errorf("cannot reach %s (%w): is a node running there? start one with `make run`, or name another with --endpoints", strings.Join(endpoints, ", "), err)
	return &storeError{kind: kindConnect, err: err, why: "unreachable"}
}

// noAnswer says which endpoints do not answer, and what to do.
func noAnswer(endpoints string) error {
	return fmt.Errorf("nothing answers on %s: is a node running? start one with `make run`, or name another with --endpoints", endpoints)
}

// sorted wraps an error of the client as a storeError.
func sorted(endpoints []string, err error) error {
	if err == nil {
		return nil
	}
	kind := kindFailed
	var ce *client.Error
	is := func(s error) bool { return errors.Is(err, s) }
	switch {
	case is(client.ErrMaybeApplied): // first: an unknown outcome is nothing else
		kind = kindUnknown
	case is(client.ErrNotFound):
		kind = kindNotFound
	case is(client.ErrConditionFailed):
		kind = kindCondition
	case is(client.ErrDenied), is(client.ErrUnauthenticated):
		kind = kindDenied
	case is(client.ErrUnavailable) && !(errors.As(err, &ce) && ce.Status != wire.StatusOK):
		// No server gave a status: the connection is gone and does not come back.
		return &storeError{kind: kindConnect, passing: true, err: fmt.Errorf("lost the connection to %s, and no node answers: %w", strings.Join(endpoints, ", "), err)}
	case is(client.ErrUnavailable), is(client.ErrBusy), is(client.ErrDiskFull), is(client.ErrTooManySessions):
		kind = kindUnhealthy
	case is(client.ErrTimeout), is(context.DeadlineExceeded):
		kind = kindTimeout
	case is(client.ErrCompacted):
		kind = kindCompacted
	case is(client.ErrNoNamespace):
		kind = kindNoNamespace
	case is(client.ErrNamespaceExists):
		kind = kindExists
	case is(client.ErrQuota), is(client.ErrTooMany):
		kind = kindQuota
	}
	passing := kind == kindUnknown || kind == kindTimeout || is(client.ErrUnavailable) || is(client.ErrBusy) || is(client.ErrFutureRevision)
	return &storeError{kind: kind, err: err, passing: passing}
}

func (s *clientStore) sort(err error) error { return sorted(s.endpoints, err) }

func (s *clientStore) Close() error { return s.c.Close() }

func (s *clientStore) Status(ctx context.Context) ([]byte, error) {
	b, err := s.c.Status(ctx)
	return b, s.sort(err)
}

func (s *clientStore) Admin(ctx context.Context, q adminRequest) ([]byte, error) {
	request, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the request: %w", err)
	}
	b, err := s.c.Admin(ctx, request)
	return b, s.sort(err)
}

func (s *clientStore) Revision(ctx context.Context) (uint64, error) {
	p, err := s.c.ListPage(ctx, client.ListOptions{Limit: 1, KeysOnly: true}, nil)
	return uint64(p.Revision), s.sort(err)
}

func (s *clientStore) PutAll(ctx context.Context, items []putItem) error {
	kvs := make([]client.KV, len(items))
	for i := range items {
		kvs[i] = client.KV{Key: items[i].Key, Value: items[i].Value, Options: putOpts(&items[i].Options)}
	}
	_, err := s.c.BatchPut(ctx, kvs, true)
	return s.sort(err)
}

func (s *clientStore) Put(ctx context.Context, key string, value []byte, o putOptions) (uint64, error) {
	v, err := s.c.Put(ctx, key, value, putOpts(&o)...)
	return uint64(v), s.sort(err)
}

func (s *clientStore) Get(ctx context.Context, key string, o readOptions) (record, error) {
	v, err := s.c.Get(ctx, key, getOpts(&o)...)
	if err != nil {
		return record{}, s.sort(err)
	}
	return recordOf(key, &v), nil
}

func (s *clientStore) Touch(ctx context.Context, key string, ttl time.Duration, cs []condition) (uint64, error) {
	v, err := s.c.Touch(ctx, key, ttl, deleteOpts(cs)...)
	return uint64(v), s.sort(err)
}

func (s *clientStore) Increment(ctx context.Context, key string, delta int64, o putOptions) (int64, uint64, error) {
	n, v, err := s.c.Increment(ctx, key, delta, incrementOpts(&o)...)
	return n, uint64(v), s.sort(err)
}

func (s *clientStore) Count(ctx context.Context, o listOptions) (int64, uint64, error) {
	n, rev, err := s.c.Count(ctx, listOpts(&o))
	return n, uint64(rev), s.sort(err)
}

func (s *clientStore) Watch(ctx context.Context, o watchOptions) (watch, error) {
	w, err := s.c.Watch(ctx, client.WatchOptions{
		Key: o.Key, Prefix: o.Prefix, Start: o.Start, End: o.End, After: client.Version(o.After), FromStart: o.FromStart,
		KeysOnly: o.KeysOnly, Previous: o.Previous, NoPut: o.NoPut, NoDelete: o.NoDelete, NoExpire: o.NoExpire,
	})
	if err != nil {
		return nil, s.sort(err)
	}
	return &clientWatch{s: s, w: w}, nil
}

// clientWatch is a watch through the Go client.
type clientWatch struct {
	s *clientStore
	w *client.Watch
}

func (w *clientWatch) Next(ctx context.Context) (event, error) {
	e, err := w.w.Next(ctx)
	if err != nil {
		return event{}, w.s.sort(err)
	}
	out := event{Kind: e.Kind.String(), Revision: uint64(e.Revision), Last: e.Last, Record: recordOf(e.Key, &e.Value), PreviousLost: e.PreviousLost}
	if e.Previous != nil {
		r := recordOf(e.Key, e.Previous)
		out.Previous = &r
	}
	return out, nil
}

func (w *clientWatch) Revision() uint64 { return uint64(w.w.Revision()) }
func (w *clientWatch) Close()           { w.w.Close() }

func (s *clientStore) Delete(ctx context.Context, key string, cs []condition) (bool, uint64, error) {
	opts := deleteOpts(cs)
	deleted, v, err := s.c.Delete(ctx, key, opts...)
	return deleted, uint64(v), s.sort(err)
}

// pagePause is how long to wait before a page is asked for again.
const pagePause = 200 * time.Millisecond

func (s *clientStore) List(ctx context.Context, o listOptions) iter.Seq2[record, error] {
	return func(yield func(record, error) bool) {
		opts := listOpts(&o)
		var cursor []byte
		var revision client.Version
		for {
			p, err := s.page(ctx, opts, cursor, &o)
			if err == nil && revision != 0 && p.Revision != revision {
				// Every page was asked for at the first one's revision.
				err = fmt.Errorf("a page shows revision %d, the ones before show %d", p.Revision, revision)
			}
			if err != nil {
				yield(record{}, err)
				return
			}
			revision, cursor = p.Revision, p.Cursor
			for i := range p.Entries {
				r := recordOf(p.Entries[i].Key, &p.Entries[i].Value)
				if p.Entries[i].CommonPrefix {
					r = record{Key: r.Key, CommonPrefix: true}
				}
				if !yield(r, nil) {
					return
				}
			}
			if o.Limit > 0 {
				if opts.Limit -= len(p.Entries); opts.Limit <= 0 {
					return
				}
			}
			if len(cursor) == 0 {
				return
			}
		}
	}
}

// page gets one page. While the cluster cannot serve it asks again, until patience is over.
func (s *clientStore) page(ctx context.Context, opts client.ListOptions, cursor []byte, o *listOptions) (client.Page, error) {
	for start, told := time.Now(), false; ; {
		p, err := s.c.ListPage(ctx, opts, cursor)
		if err = s.sort(err); err == nil || !passes(err) || time.Since(start) >= o.Patience {
			return p, err
		}
		if !told && o.Waiting != nil {
			told = true
			o.Waiting(err)
		}
		select {
		case <-time.After(pagePause):
		case <-ctx.Done():
			return p, err
		}
	}
}

func (s *clientStore) Txn(ctx context.Context, ops []txnOp) (txnResult, error) {
	t := s.c.Txn()
	for i := range ops {
		op := &ops[i]
		conds := conditionsOf(op.Options.Conditions)
		switch op.Type {
		case txnPut:
			t.Put(op.Key, op.Value, putOpts(&op.Options)...)
		case txnDelete:
			t.Delete(op.Key, deleteOpts(op.Options.Conditions)...)
		case txnTouch:
			t.Touch(op.Key, op.Options.TTL, deleteOpts(op.Options.Conditions)...)
		case txnIncrement:
			t.Increment(op.Key, op.Delta, incrementOpts(&op.Options)...)
		case txnGet:
			t.Get(op.Key, conds...)
		case txnCheck:
			t.Check(op.Key, conds...)
		default:
			panic("BUG: transaction with operation " + op.Type)
		}
	}
	res, err := t.Commit(ctx)
	var ce *client.Error
	if errors.Is(err, client.ErrConditionFailed) && errors.As(err, &ce) {
		out := txnResult{}
		for _, f := range ce.Failed {
			out.Failed = append(out.Failed, failedCondition{int(f.Operation), int(f.Condition)})
		}
		return out, nil
	}
	if err != nil {
		return txnResult{}, s.sort(err)
	}
	out := txnResult{Committed: true, Version: uint64(res.Revision)}
	if res.Truncated {
		return out, nil // committed, and the results got lost on the way
	}
	for i := range res.Results {
		r := &res.Results[i]
		if r.Err != nil && !errors.Is(r.Err, client.ErrNotFound) {
			return out, fmt.Errorf("committed as version %d, but the result of operation %d is missing: %w", out.Version, i, r.Err)
		}
		o := txnOpResult{Found: r.Deleted || r.Value != nil || ops[i].Type == txnTouch && r.Err == nil, Counter: r.Counter}
		if r.Value != nil {
			o.Record = recordOf(ops[i].Key, r.Value)
		}
		out.Results = append(out.Results, o)
	}
	return out, nil
}

func recordOf(key string, v *client.Value) record {
	age := v.Age()
	if age == client.AgeUnknown {
		age = -1
	}
	return record{
		Key: key, Value: v.Data, Version: uint64(v.Version), CreatedAt: v.CreatedAt, UpdatedAt: v.UpdatedAt, ExpiresAt: v.ExpiresAt,
		ContentType: v.ContentType, Encoding: v.Encoding, Tags: v.Tags(), Checksum: v.Checksum, Age: age,
	}
}

func listOpts(o *listOptions) client.ListOptions {
	return client.ListOptions{
		Prefix: o.Prefix, Start: o.Start, End: o.End, Limit: o.Limit, KeysOnly: o.KeysOnly, Reverse: o.Reverse, Delimiter: o.Delimiter, Read: getOpts(&o.Read),
	}
}

func deleteOpts(cs []condition) (out []client.DeleteOption) {
	for _, c := range conditionsOf(cs) {
		out = append(out, c)
	}
	return out
}

func getOpts(o *readOptions) []client.GetOption {
	opts := consistencyOpts(o)
	if o.Revision != 0 {
		opts = append(opts, client.AtRevision(client.Version(o.Revision)))
	}
	return opts
}

func consistencyOpts(o *readOptions) []client.GetOption {
	switch {
	case o.MaxAge > 0:
		return []client.GetOption{client.MaxAge(o.MaxAge)}
	case o.Consistency == stale:
		return []client.GetOption{client.Stale()}
	case o.Consistency == anyNode:
		return []client.GetOption{client.AnyNode()}
	}
	return nil
}

func putOpts(o *putOptions) []client.PutOption {
	var out []client.PutOption
	if o.TTL > 0 {
		out = append(out, client.WithTTL(o.TTL))
	}
	if o.ContentType != "" {
		out = append(out, client.WithContentType(o.ContentType))
	}
	if o.Encoding != "" {
		out = append(out, client.WithEncoding(o.Encoding))
	}
	for _, name := range slices.Sorted(maps.Keys(o.Tags)) { // the protocol wants them in order
		out = append(out, client.WithTag(name, o.Tags[name]))
	}
	if o.Compress != "" {
		out = append(out, client.Compress(compressions[o.Compress]))
	}
	for _, c := range conditionsOf(o.Conditions) {
		out = append(out, c)
	}
	return out
}

// compressions are the names of --compress.
var compressions = map[string]client.Compression{
	"none": client.CompressNever, "s2": client.CompressS2, "zstd": client.CompressZstd, "lz4": client.CompressLZ4,
}

func conditionsOf(cs []condition) []client.Condition {
	var out []client.Condition
	for _, c := range cs {
		switch c.Kind {
		case ifVersion:
			out = append(out, client.IfVersion(client.Version(c.Version)))
		case ifExists:
			out = append(out, client.IfExists())
		case ifAbsent:
			out = append(out, client.IfAbsent())
		case ifValue:
			out = append(out, client.IfValue(c.Value))
		case ifTag:
			out = append(out, client.IfTag(c.Tag, string(c.Value)))
		case ifTagPresent:
			out = append(out, client.IfTagPresent(c.Tag))
		case ifTagAbsent:
			out = append(out, client.IfTagAbsent(c.Tag))
		default:
			panic(fmt.Sprintf("BUG: condition of kind %d", c.Kind))
		}
	}
	return out
}
