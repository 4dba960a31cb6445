package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

var bg = context.Background()

func TestPutGet_RoundTrip_KeepsEverything(t *testing.T) {
	for _, codec := range []wire.Codec{wire.CodecNone, wire.CodecS2, wire.CodecZstd} {
		t.Run(codec.String(), func(t *testing.T) {
			_, c := fake(t, WithCompression(codec))
			for _, n := range []int{0, 1, 100, 5000, largeBytesMin - 1, largeBytesMin, 200_000, keepBytesMax + 1, wire.ValueBytesMax} {
				value := bytes.Repeat([]byte("abcdefg"), n/7+1)[:n]
				key := fmt.Sprintf("key/%d", n)
				v, err := c.Put(bg, key, value, WithTTL(time.Hour), WithTag("a", "1"), WithTag("b", ""), WithContentType("text/plain"), WithEncoding("x"), WithChecksum())
				if err != nil {
					t.Fatal(n, err)
				}
				got, err := c.Get(bg, key)
				if err != nil {
					t.Fatal(n, err)
				}
				if !bytes.Equal(got.Data, value) || got.Version != v || got.ContentType != "text/plain" || got.Encoding != "x" || got.Checksum != wire.Checksum(value) {
					t.Fatalf("%d bytes: got %d, %+v", n, len(got.Data), got.Meta)
				}
				if tags := got.Tags(); len(tags) != 2 || tags["a"] != "1" {
					t.Fatalf("tags %v", tags)
				}
				if got.ExpiresAt.Sub(time.UnixMicro(0)) != time.Hour {
					t.Fatalf("expires %v", got.ExpiresAt)
				}
				dst, m, err := c.GetAppend(bg, []byte("head"), key)
				if err != nil || string(dst[:4]) != "head" || !bytes.Equal(dst[4:], value) || m.Version != v {
					t.Fatalf("GetAppend of %d: %d bytes, %v", n, len(dst), err)
				}
				if m, ok, err := c.Exists(bg, key); err != nil || !ok || m.Version != v {
					t.Fatal(m, ok, err)
				}
			}
		})
	}
}

func TestAbsentKey_EachOperation_SaysSo(t *testing.T) {
	_, c := fake(t)
	_, err := c.Get(bg, "no")
	matches(t, err, ErrNotFound)
	if _, _, err := c.GetAppend(bg, nil, "no"); err != ErrNotFound {
		t.Fatal(err)
	}
	if _, ok, err := c.Exists(bg, "no"); ok || err != nil {
		t.Fatal(ok, err)
	}
	if deleted, v, err := c.Delete(bg, "no"); deleted || v != 0 || err != nil {
		t.Fatal(deleted, v, err)
	}
	mustPut(t, c, "yes", "1")
	if deleted, v, err := c.Delete(bg, "yes"); !deleted || v == 0 || err != nil {
		t.Fatal(deleted, v, err)
	}
}

func TestConditions_NotHolding_TellWhich(t *testing.T) {
	_, c := fake(t)
	v := mustPut(t, c, "k", "1", IfAbsent())
	for name, opts := range map[string][]PutOption{
		"absent":  {IfExists(), IfAbsent()},
		"version": {IfExists(), IfVersion(v+1, v+2)},
		"value":   {IfVersion(v), IfValue([]byte("2"))},
	} {
		_, err := c.Put(bg, "k", []byte("x"), opts...)
		matches(t, err, ErrConditionFailed, ErrNotApplied)
		var e *Error
		if errors.As(err, &e); len(e.Failed) != 1 || e.Failed[0].Condition != 1 {
			t.Errorf("%s: failed %v", name, e.Failed)
		}
	}
	if _, _, err := c.Delete(bg, "k", IfVersion(v+1)); !errors.Is(err, ErrConditionFailed) {
		t.Fatal(err)
	}
	mustPut(t, c, "k", "2", IfVersion(7777, v), IfValue([]byte("1")))
}

func TestLocalRefusals_NothingIsSent(t *testing.T) {
	s, c := fake(t, WithMaxValueSize(10))
	before := s.reqs.Load()
	put := func(key string, n int, opts ...PutOption) error {
		_, err := c.Put(bg, key, make([]byte, n), opts...)
		return err
	}
	matches(t, put("", 1), ErrBadKey, ErrNotApplied)
	matches(t, put("\xff", 1), ErrBadKey, ErrNotApplied)
	matches(t, put(strings.Repeat("x", wire.KeyBytesMax+1), 1), ErrBadKey, ErrNotApplied)
	matches(t, put("k", 11), ErrTooLarge, ErrNotApplied)
	matches(t, put("k", 1, WithTTL(0)), ErrBadRequest, ErrNotApplied)
	matches(t, put("k", 1, WithTag("", "x")), ErrBadRequest, ErrNotApplied)
	matches(t, put("k", 1, WithTag("x", strings.Repeat("y", 513))), ErrTooLarge, ErrNotApplied)
	matches(t, put("k", 1, WithContentType(strings.Repeat("y", 300))), ErrTooLarge, ErrNotApplied)
	matches(t, put("k", 1, IfVersion()), ErrBadRequest, ErrNotApplied)
	matches(t, put("k", 1, Condition{}), ErrBadRequest, ErrNotApplied)
	matches(t, put("k", 1, IfValue(make([]byte, 40_000))), ErrTooLarge, ErrNotApplied)
	matches(t, put("k", 1, IfValue(make([]byte, 32_000)), IfValue(make([]byte, 32_768)), WithContentType(strings.Repeat("y", 256))), ErrTooLarge, ErrNotApplied)
	_, err := c.Get(bg, "")
	matches(t, err, ErrBadKey)
	_, err = c.BatchPut(bg, []KV{{Key: "a"}, {Key: ""}}, true)
	matches(t, err, ErrBadKey, ErrNotApplied)
	_, err = c.BatchGet(bg, []string{"a", ""})
	matches(t, err, ErrBadKey)
	_, err = c.Txn().Put("k", nil).Delete("").Commit(bg)
	matches(t, err, ErrBadKey, ErrNotApplied)
	_, err = c.Txn().Commit(bg)
	matches(t, err, ErrBadRequest, ErrNotApplied)
	_, err = c.ListPage(bg, ListOptions{Prefix: strings.Repeat("x", 1025)}, nil)
	matches(t, err, ErrTooLarge)
	_, err = c.ListPage(bg, ListOptions{Limit: -1}, nil)
	matches(t, err, ErrBadRequest)
	ctx, cancel := context.WithCancel(bg)
	cancel()
	_, err = c.Put(ctx, "k", nil)
	matches(t, err, ErrNotApplied)
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := s.reqs.Load(); n != before {
		t.Fatalf("%d requests were sent", n-before)
	}
}

func TestOpen_BadOptionsAndAddresses_AllFaultsAtOnce(t *testing.T) {
	_, err := Open(bg, []string{"x"}, WithConns(0), WithMaxInflight(0), WithTimeout(-1))
	if !errors.Is(err, ErrBadRequest) || strings.Count(err.Error(), "\n") < 2 {
		t.Fatal(err)
	}
	if _, err = Open(bg, nil); !errors.Is(err, ErrBadRequest) {
		t.Fatal(err)
	}
}

func TestOpen_NobodyListens_Unavailable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	_, err = Open(bg, []string{addr})
	matches(t, err, ErrUnavailable)
	if !strings.Contains(err.Error(), addr) {
		t.Error(err)
	}
}

func TestOpen_AnotherProtocolOrRefusal_IsTold(t *testing.T) {
	s := newFake(t, nil)
	s.hello = wire.StatusUnauthenticated
	_, err := Open(bg, []string{s.addr()})
	matches(t, err, ErrUnauthenticated)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := ln.Accept()
		if err == nil {
			_, _ = nc.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = nc.Close()
		}
	}()
	_, err = Open(bg, []string{ln.Addr().String()})
	matches(t, err, ErrUnavailable)
	<-done
	_ = ln.Close()

	// A silent peer: the context bounds Open.
	ln, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(bg, 30*time.Millisecond)
	defer cancel()
	_, err = Open(ctx, []string{ln.Addr().String()})
	matches(t, err, ErrUnavailable)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestClose_OperationsAfterwards_Closed(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := c.Get(bg, "k")
	matches(t, err, ErrClosed)
	_, err = c.Put(bg, "k", nil)
	matches(t, err, ErrClosed, ErrNotApplied)
	called := false
	c.PutAsync("k", nil, func(_ Version, err error) { called = true; matches(t, err, ErrClosed, ErrNotApplied) })
	if !called {
		t.Error("the callback was not called")
	}
	if n := s.store.count(func(st *fakeStore) int { return st.closed }); n != 1 {
		t.Errorf("session closed %d times", n)
	}
}

func TestClose_OperationsUnderWay_EndWithTheirOutcome(t *testing.T) {
	for _, session := range []bool{true, false} {
		t.Run(fmt.Sprint("session=", session), func(t *testing.T) {
			s := newFake(t, nil)
			var opts []Option
			if !session {
				opts = append(opts, WithoutSession())
			}
			c := open(t, []*fakeServer{s}, opts...)
			mustPut(t, c, "k", "v")
			started := make(chan struct{}, 2)
			s.on(func(_ *fakeConn, r *wire.Request) fault {
				if r.Op == wire.OpSessionClose {
					return fault{}
				}
				started <- struct{}{}
				return fault{ignore: true}
			})
			var put, get error
			var wg sync.WaitGroup
			wg.Go(func() { _, put = c.Put(bg, "k", []byte("w")) })
			wg.Go(func() { _, get = c.Get(bg, "k") })
			<-started
			<-started
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			matches(t, put, ErrMaybeApplied)
			matches(t, get, ErrClosed)
		})
	}
}

func TestStatusPingServerInfo_Answer(t *testing.T) {
	s, c := fake(t, WithNamespace("other"), WithName("tester"))
	if b, err := c.Status(bg); err != nil || string(b) != `{"node_id":"fake"}` {
		t.Fatal(string(b), err)
	}
	if d, err := c.Ping(bg); err != nil || d <= 0 {
		t.Fatal(d, err)
	}
	if a := c.ServerInfo(); a.NodeID != s.addr() || a.Version != "test" {
		t.Fatalf("%+v", a)
	}
}

func TestBatch_PutGetDelete_EachItemStandsAlone(t *testing.T) {
	_, c := fake(t)
	res, err := c.BatchPut(bg, []KV{
		{Key: "a", Value: []byte("1")},
		{Key: "b", Value: []byte("2"), Options: []PutOption{IfExists()}},
		{Key: "c", Value: []byte("3"), Options: []PutOption{WithTag("t", "x")}},
	}, false)
	if err != nil {
		t.Fatal(err)
	}
	if res.Items[0].Err != nil || res.Items[2].Err != nil || res.Items[2].Version == 0 {
		t.Fatalf("%+v", res)
	}
	matches(t, res.Items[1].Err, ErrConditionFailed, ErrNotApplied)

	_, err = c.BatchPut(bg, []KV{{Key: "a", Value: []byte("9")}, {Key: "b", Options: []PutOption{IfExists()}}}, true)
	matches(t, err, ErrConditionFailed, ErrNotApplied)
	var e *Error
	if errors.As(err, &e); len(e.Failed) != 1 || e.Failed[0].Operation != 1 {
		t.Fatalf("%+v", e)
	}

	res, err = c.BatchGet(bg, []string{"c", "nope", "a"})
	if err != nil {
		t.Fatal(err)
	}
	if v := res.Items[0].Value; v == nil || string(v.Data) != "3" || v.Tags()["t"] != "x" {
		t.Fatalf("%+v", res.Items[0])
	}
	matches(t, res.Items[1].Err, ErrNotFound)
	if string(res.Items[2].Value.Data) != "1" {
		t.Fatalf("%+v", res.Items[2].Value)
	}
	res, err = c.BatchDelete(bg, []string{"a", "nope"})
	if err != nil || !res.Items[0].Deleted || res.Items[1].Deleted || res.Items[1].Err != nil {
		t.Fatalf("%+v %v", res, err)
	}
	for _, f := range []func() (BatchResult, error){
		func() (BatchResult, error) { return c.BatchPut(bg, nil, true) },
		func() (BatchResult, error) { return c.BatchGet(bg, nil) },
		func() (BatchResult, error) { return c.BatchDelete(bg, nil) },
	} {
		if res, err := f(); err != nil || len(res.Items) != 0 {
			t.Fatal(res, err)
		}
	}
}

func TestBatchGet_AnswerFull_AsksForTheRest(t *testing.T) {
	s, c := fake(t)
	value := make([]byte, 6<<20)
	keys := []string{"a", "b", "c", "d", "none", "e"}
	for i, k := range keys {
		if k == "none" {
			continue
		}
		value[0] = byte(i)
		if _, err := c.Put(bg, k, value); err != nil {
			t.Fatal(err)
		}
	}
	before := s.reqs.Load()
	res, err := c.BatchGet(bg, keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		if k == "none" {
			matches(t, res.Items[i].Err, ErrNotFound)
		} else if v := res.Items[i].Value; v == nil || len(v.Data) != len(value) || v.Data[0] != byte(i) {
			t.Fatalf("%s: %+v", k, res.Items[i].Err)
		}
	}
	if n := s.reqs.Load() - before; n < 2 {
		t.Fatalf("%d requests", n)
	}
}

func TestBatchPut_LargerThanAFrame_SplitUnlessAtomic(t *testing.T) {
	s, c := fake(t)
	items := make([]KV, 9)
	for i := range items {
		items[i] = KV{Key: fmt.Sprint("k", i), Value: make([]byte, 3<<20)}
	}
	before := s.reqs.Load()
	res, err := c.BatchPut(bg, items, false)
	if err != nil || len(res.Items) != 9 {
		t.Fatal(err)
	}
	for i := range items {
		if v, ok := s.store.value(items[i].Key); !ok || len(v) != 3<<20 || res.Items[i].Version == 0 {
			t.Fatalf("item %d: %d bytes, %+v", i, len(v), res.Items[i])
		}
	}
	if n := s.reqs.Load() - before; n < 4 {
		t.Fatalf("%d requests", n)
	}
	_, err = c.BatchPut(bg, items, true)
	matches(t, err, ErrTooLarge, ErrNotApplied)

	// A part that fails: its items and those after it say so, those before it stand.
	s.onOp(wire.OpBatch, func(n int, r *wire.Request) fault {
		if n == 2 {
			return fault{status: wire.StatusDenied}
		}
		return fault{}
	})
	res, err = c.BatchPut(bg, items, false)
	matches(t, err, ErrDenied, ErrNotApplied)
	if res.Items[0].Err != nil || !errors.Is(res.Items[3].Err, ErrDenied) || !errors.Is(res.Items[8].Err, ErrNotApplied) || errors.Is(res.Items[8].Err, ErrDenied) {
		t.Fatalf("%+v", res.Items)
	}
}

func TestTxn_AllOrNothing(t *testing.T) {
	s, c := fake(t)
	v := mustPut(t, c, "a", "1")
	res, err := c.Txn().If("a", IfVersion(v)).Put("b", []byte("2"), WithTag("x", "y")).Get("b").Delete("a").Get("zz").Commit(bg)
	if err != nil || !res.Committed || len(res.Results) != 5 {
		t.Fatal(res, err)
	}
	if g := res.Results[2].Value; g == nil || string(g.Data) != "2" || g.Tags()["x"] != "y" {
		t.Fatalf("%+v", res.Results[2])
	}
	if !res.Results[3].Deleted || res.Results[1].Version == 0 {
		t.Fatalf("%+v", res.Results)
	}
	matches(t, res.Results[4].Err, ErrNotFound)

	txn := c.Txn().Put("c", nil).If("b", IfExists(), IfValue([]byte("3")))
	_, err = txn.Commit(bg)
	matches(t, err, ErrConditionFailed, ErrNotApplied)
	var e *Error
	if errors.As(err, &e); len(e.Failed) != 1 || e.Failed[0] != (wire.FailedCondition{Operation: 1, Condition: 1}) {
		t.Fatalf("%+v", e.Failed)
	}
	if _, ok := s.store.value("c"); ok {
		t.Fatal("a failed transaction wrote")
	}
	_, err = txn.Commit(bg)
	matches(t, err, ErrBadRequest, ErrNotApplied)
}

func TestList_ManyPages_EachEntryOnce(t *testing.T) {
	s, c := fake(t)
	var want []string
	for i := range 250 {
		k := fmt.Sprintf("p/%04d", i)
		want = append(want, k)
		mustPut(t, c, k, "v"+k)
	}
	mustPut(t, c, "q", "other")
	collect := func(o ListOptions) []string {
		t.Helper()
		var got []string
		for e, err := range c.List(bg, o) {
			if err != nil {
				t.Fatal(err)
			}
			if o.KeysOnly != (len(e.Data) == 0) || !o.KeysOnly && string(e.Data) != "v"+e.Key {
				t.Fatalf("%s = %q", e.Key, e.Data)
			}
			got = append(got, e.Key)
		}
		return got
	}
	same := func(got, want []string) {
		t.Helper()
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Fatalf("%d keys, want %d", len(got), len(want))
		}
	}
	same(collect(ListOptions{Prefix: "p/", PageSize: 60}), want)
	same(collect(ListOptions{Prefix: "p/", PageSize: 60, Limit: 130, KeysOnly: true}), want[:130])
	same(collect(ListOptions{Prefix: "p/", Limit: 7}), want[:7])
	same(collect(ListOptions{Start: "p/0010", End: "p/0020", PageSize: 3}), want[10:20])
	back := collect(ListOptions{Prefix: "p/", Reverse: true, PageSize: 100})
	if len(back) != 250 || back[0] != want[249] || back[249] != want[0] {
		t.Fatal(back[0], len(back))
	}
	// Leaving the loop early asks for nothing more.
	before := s.reqs.Load()
	for range c.List(bg, ListOptions{Prefix: "p/", PageSize: 10}) {
		break
	}
	if n := s.reqs.Load() - before; n != 1 {
		t.Fatalf("%d requests", n)
	}
	// A listing whose revision is gone says so, once, as the last thing.
	s.onOp(wire.OpScan, func(n int, r *wire.Request) fault {
		if n == 3 {
			return fault{status: wire.StatusCompacted}
		}
		return fault{}
	})
	n, last := 0, error(nil)
	for _, err := range c.List(bg, ListOptions{Prefix: "p/", PageSize: 10}) {
		if last != nil {
			t.Fatal("went on after an error")
		}
		if last = err; err == nil {
			n++
		}
	}
	if n != 20 {
		t.Fatalf("%d entries", n)
	}
	matches(t, last, ErrCompacted)
}

func TestAsync_ManyFromOneGoroutine_AllAnswered(t *testing.T) {
	_, c := fake(t, WithMaxInflight(64))
	const n = 5000
	var wg sync.WaitGroup
	wg.Add(n)
	value := []byte("value 0000")
	for i := range n {
		copy(value[6:], fmt.Sprintf("%04d", i)) // the value is copied: this is allowed
		c.PutAsync(fmt.Sprint("k", i), value, func(v Version, err error) {
			if err != nil || v == 0 {
				t.Error(v, err)
			}
			wg.Done()
		}, WithTag("n", "1"))
	}
	wg.Wait()
	wg.Add(n + 2)
	for i := range n {
		c.GetAsync(fmt.Sprint("k", i), func(v Value, err error) {
			if err != nil || string(v.Data) != fmt.Sprintf("value %04d", i) || v.Tags()["n"] != "1" {
				t.Errorf("%d: %q %v", i, v.Data, err)
			}
			wg.Done()
		})
	}
	c.GetAsync("nope", func(_ Value, err error) { matches(t, err, ErrNotFound); wg.Done() })
	c.PutAsync("", nil, func(_ Version, err error) { matches(t, err, ErrBadKey, ErrNotApplied); wg.Done() })
	wg.Wait()
}

func TestConns_Several_AllAreUsed(t *testing.T) {
	s, c := fake(t, WithConns(3))
	mustPut(t, c, "k", "v")
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			if _, err := c.Get(bg, "k"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.helloes.Load(); n != 3 {
		t.Fatalf("%d connections", n)
	}
}

func TestHooks_TellWhatHappens(t *testing.T) {
	var mu sync.Mutex
	var ops, connects []string
	s, c := fake(t, WithHooks(Hooks{
		OnConnect: func(addr string, took time.Duration, err error) {
			mu.Lock()
			defer mu.Unlock()
			connects = append(connects, fmt.Sprint(addr, " ", err))
		},
		OnOp: func(op wire.Opcode, took time.Duration, attempts int, err error) {
			mu.Lock()
			defer mu.Unlock()
			if took <= 0 {
				t.Error(took)
			}
			ops = append(ops, fmt.Sprint(op, " ", attempts, " ", err == nil))
		},
	}))
	s.onOp(wire.OpPut, func(n int, _ *wire.Request) fault {
		if n == 1 {
			return fault{status: wire.StatusBusy}
		}
		return fault{}
	})
	mustPut(t, c, "k", "v")
	if _, err := c.Get(bg, "no"); err == nil {
		t.Fatal("found")
	}
	mu.Lock()
	defer mu.Unlock()
	if got := fmt.Sprint(ops); got != "[put 2 true get 1 false]" {
		t.Fatal(got)
	}
	if got := fmt.Sprint(connects); got != "["+s.addr()+" <nil>]" {
		t.Fatal(got)
	}
}

func TestParseVersion_RoundTrip(t *testing.T) {
	for _, v := range []Version{0, 1, 1 << 63} {
		if got, err := ParseVersion(v.String()); err != nil || got != v {
			t.Fatal(got, err)
		}
	}
	if _, err := ParseVersion("-1"); err == nil {
		t.Fatal("parsed")
	}
}

func TestTags_AnyOrder_SentSorted_TwiceRefused(t *testing.T) {
	s, c := fake(t)
	s.onOp(wire.OpPut, func(_ int, r *wire.Request) fault {
		var names []string
		for ext := r.Ext; len(ext) > 0; {
			kind, v, rest, err := wire.NextExt(ext)
			if err != nil {
				t.Error(err)
				break
			}
			if ext = rest; kind == wire.ExtTag {
				name, _, _ := wire.SplitTag(v)
				names = append(names, string(name))
			}
		}
		if fmt.Sprint(names) != "[a b c]" {
			t.Error(names)
		}
		return fault{}
	})
	mustPut(t, c, "k", "v", WithTag("c", "3"), WithTag("a", "1"), IfAbsent(), WithTag("b", "2"))
	_, err := c.Put(bg, "k", nil, WithTag("a", "1"), WithTag("a", "2"))
	matches(t, err, ErrBadRequest, ErrNotApplied)
}
