package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"kvstore/wire"
)

// all waits for all operations of p and calls f with each, which may start others.
func all(t testing.TB, p *Pipeline, f func(o *Op)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(bg, 30*time.Second)
	defer cancel()
	for p.Len() > 0 {
		done, err := p.Wait(ctx)
		if err != nil {
			t.Fatalf("%d operations never ended: %v", p.Len(), err)
		}
		for _, o := range done {
			f(o)
		}
	}
}

func TestPipeline_GetsAndPuts_AllAnswered(t *testing.T) {
	for name, opts := range map[string][]Option{
		"one connection":  nil,
		"few slots":       {WithMaxInflight(3)},
		"connections":     {WithConns(3)},
		"no session":      {WithoutSession()},
		"little buffer":   {withLimits(func(o *options) { o.bufferBytes = 300 })},
		"no write at all": {withLimits(func(o *options) { o.noRawWrite = true })},
		"compressed":      {WithCompression(wire.CodecS2)},
	} {
		t.Run(name, func(t *testing.T) {
			_, c := fake(t, opts...)
			const n = 1000
			p := c.NewPipeline()
			ops := make([]Op, 100)
			value := make([]byte, 0, 100_000)
			// Some are large, so that they are written from where they lie.
			of := func(i int) string { return strings.Repeat(fmt.Sprintf("%04d", i), 1+i%7*i*2%12_000) }
			put := func(o *Op, i int) {
				value = append(value[:0], of(i)...)
				p.Put(o, fmt.Sprint("k", i), value, WithTag("n", fmt.Sprint(i)))
				clear(value) // it was copied
			}
			next := 0
			for ; next < len(ops); next++ {
				put(&ops[next], next)
			}
			all(t, p, func(o *Op) {
				if o.Err() != nil || o.Version() == 0 || o.Data() != nil {
					t.Error(o.Version(), o.Data(), o.Err())
				}
				if next < n {
					put(o, next)
					next++
				}
			})
			get := func(o *Op, i int) {
				o.Tag = i
				p.Get(o, fmt.Sprint("k", i))
			}
			for next = 0; next < len(ops); next++ {
				get(&ops[next], next)
			}
			seen := 0
			all(t, p, func(o *Op) {
				i := o.Tag.(int)
				v := o.Value()
				if seen++; o.Err() != nil || string(o.Data()) != of(i) || string(v.Data) != of(i) || v.Tags()["n"] != fmt.Sprint(i) || o.Version() != v.Version || v.Age() != 0 {
					t.Errorf("%d: %.20q %.20q %v %v", i, o.Data(), v.Data, v.Tags(), o.Err())
				}
				if next < n {
					get(o, next)
					next++
				}
			})
			if seen != n {
				t.Errorf("%d answers", seen)
			}
		})
	}
}

// What a Get has read lies in the Op until that is started again; a Value stays.
func TestPipeline_Data_LivesUntilTheOpIsStartedAgain(t *testing.T) {
	_, c := fake(t)
	mustPut(t, c, "a", "first", WithTag("of", "a"))
	mustPut(t, c, "b", "other", WithTag("of", "b"))
	p := c.NewPipeline()
	var o Op
	if o.Err() != nil || o.Data() != nil || o.Version() != 0 || o.Value().Data != nil {
		t.Error("a new Op has a result")
	}
	p.Get(&o, "a")
	all(t, p, func(*Op) {})
	data, value := o.Data(), o.Value()
	tag := func(v Value) string { return v.Tags()["of"] }
	if grown := append(data, "!"...); string(grown) != "first!" || tag(o.Value()) != "a" {
		t.Error("appending to the data has changed what is kept with it")
	}
	for range 3 {
		p.Get(&o, "b")
		all(t, p, func(*Op) {})
		if string(o.Data()) != "other" || tag(o.Value()) != "b" {
			t.Errorf("%q", o.Data())
		}
	}
	if string(data) != "other" {
		t.Errorf("%q: the memory was not used again", data)
	}
	if string(value.Data) != "first" || tag(value) != "a" {
		t.Errorf("%q with %v: the value did not stay", value.Data, value.Tags())
	}
	// A large answer is not kept.
	mustPut(t, c, "large", strings.Repeat("l", keepBytesMax+1))
	p.Get(&o, "large")
	all(t, p, func(*Op) {})
	if len(o.Data()) != keepBytesMax+1 {
		t.Fatal(len(o.Data()))
	}
	p.Get(&o, "a")
	all(t, p, func(*Op) {})
	if string(o.Data()) != "first" || cap(o.buf) > keepBytesMax {
		t.Errorf("%q in %d bytes", o.Data(), cap(o.buf))
	}
}

func TestPipeline_OpUnderWay_CanNotBeTouched(t *testing.T) {
	s, c := fake(t)
	release := make(chan struct{})
	s.onOp(wire.OpGet, func(int, *wire.Request) fault { return fault{hold: release} })
	p := c.NewPipeline()
	var o Op
	p.Get(&o, "k")
	p.Flush()
	for name, f := range map[string]func(){
		"Get": func() { p.Get(&o, "k") }, "Put": func() { c.NewPipeline().Put(&o, "k", nil) }, "Err": func() { _ = o.Err() },
		"Data": func() { o.Data() }, "Version": func() { o.Version() }, "Value": func() { o.Value() },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s did not panic", name)
				}
			}()
			f()
		}()
	}
	close(release)
	all(t, p, func(o *Op) { matchesBare(t, o.Err(), ErrNotFound) })
}

func matchesBare(t *testing.T, err, want error) {
	t.Helper()
	if err != want {
		t.Errorf("%v instead of the bare %v", err, want)
	}
}

// The three outcomes of a write, and the failures of a read.
func TestPipeline_Outcomes_StayDistinct(t *testing.T) {
	s, c := fake(t, WithTimeout(100*time.Millisecond))
	mustPut(t, c, "there", "v")
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		switch string(r.Key) {
		case "silent":
			return fault{ignore: true}
		case "refused":
			return fault{status: wire.StatusDenied}
		}
		return fault{}
	})
	p := c.NewPipeline()
	want := map[string]func(o *Op){
		"put there":   func(o *Op) { matchesBare(t, o.Err(), nil) },
		"put silent":  func(o *Op) { matches(t, o.Err(), ErrMaybeApplied) },
		"put refused": func(o *Op) { matches(t, o.Err(), ErrDenied, ErrNotApplied) },
		"put ":        func(o *Op) { matches(t, o.Err(), ErrBadKey, ErrNotApplied) },
		"get there":   func(o *Op) { matchesBare(t, o.Err(), nil) },
		"get absent":  func(o *Op) { matchesBare(t, o.Err(), ErrNotFound) },
		"get silent":  func(o *Op) { matches(t, o.Err(), ErrTimeout) },
		"get refused": func(o *Op) { matches(t, o.Err(), ErrDenied) },
		"get ":        func(o *Op) { matches(t, o.Err(), ErrBadKey) },
	}
	for what := range want {
		o := &Op{Tag: what}
		verb, key, _ := strings.Cut(what, " ")
		if verb == "put" {
			p.Put(o, key, []byte("v"))
		} else {
			p.Get(o, key)
		}
	}
	o := &Op{Tag: "too large"}
	want["too large"] = func(o *Op) { matches(t, o.Err(), ErrTooLarge, ErrNotApplied) }
	p.Put(o, "k", make([]byte, wire.ValueBytesMax+1))
	if p.Len() != len(want) {
		t.Fatal(p.Len())
	}
	all(t, p, func(o *Op) {
		what := o.Tag.(string)
		want[what](o)
		delete(want, what)
		if o.Err() != nil && (o.Version() != 0 || o.Data() != nil || o.Value().Data != nil) {
			t.Errorf("%s: a failure has a result", what)
		}
	})
	if len(want) > 0 {
		t.Errorf("not ended: %v", want)
	}
}

// Connections that are cut, busy servers and answers that come twice: each operation ends once, a write is applied once.
func TestPipeline_Faults_AreRepairedAsForOtherCalls(t *testing.T) {
	s, c := fake(t, WithConns(2))
	s.store.applied = make(map[string]int)
	mustPut(t, c, "k", "v")
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(1, 2))
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		if r.Op != wire.OpGet && r.Op != wire.OpPut {
			return fault{}
		}
		mu.Lock()
		defer mu.Unlock()
		switch rng.IntN(60) {
		case 0:
			return fault{cutBefore: true}
		case 1:
			return fault{cutAfter: true}
		case 2:
			return fault{half: true}
		case 3, 4, 5:
			return fault{status: wire.StatusBusy, ext: wire.AppendExtU32(nil, wire.ExtRetryAfter, 1)}
		case 6:
			return fault{twice: true}
		}
		return fault{}
	})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			p := c.NewPipeline()
			ops := make([]Op, 30)
			started, ended := 0, 0
			start := func(o *Op) {
				if started++; started%2 == 0 {
					p.Get(o, "k")
					return
				}
				o.Tag = fmt.Sprint(g, "/", started)
				p.Put(o, o.Tag.(string), []byte("v"))
			}
			for i := range ops {
				start(&ops[i])
			}
			all(t, p, func(o *Op) {
				if ended++; o.Err() != nil {
					t.Error(o.Tag, o.Err())
				}
				if started < 600 {
					start(o)
				}
			})
			if ended != started {
				t.Errorf("%d of %d ended", ended, started)
			}
		})
	}
	wg.Wait()
	s.quiet()
	s.store.count(func(st *fakeStore) int {
		for key, n := range st.applied {
			if n != 1 {
				t.Errorf("%s was applied %d times", key, n)
			}
		}
		if len(st.applied) < 4*300 {
			t.Errorf("%d writes", len(st.applied))
		}
		return 0
	})
}

func TestPipeline_ClientCloses_EveryOperationEnds(t *testing.T) {
	s, c := fake(t)
	mustPut(t, c, "k", "v")
	s.on(func(_ *fakeConn, r *wire.Request) fault {
		return fault{ignore: r.Op == wire.OpGet || r.Op == wire.OpPut}
	})
	p := c.NewPipeline()
	ops := make([]Op, 20)
	for i := range ops {
		if i%2 == 0 {
			p.Get(&ops[i], "k")
		} else {
			p.Put(&ops[i], "k", nil)
		}
	}
	p.Flush()
	eventually(t, "the requests' arrival", func() bool { return s.reqs.Load() >= 20 })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	var late Op
	p.Get(&late, "k")
	all(t, p, func(o *Op) {
		if err := o.Err(); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrMaybeApplied) {
			t.Error(err)
		}
	})
	matches(t, late.Err(), ErrClosed)
	matches(t, ops[1].Err(), ErrMaybeApplied)
	matches(t, ops[0].Err(), ErrClosed)
}

func TestPipeline_Wait_EndsWithItsContextAlone(t *testing.T) {
	s, c := fake(t)
	release := make(chan struct{})
	s.onOp(wire.OpGet, func(int, *wire.Request) fault { return fault{hold: release} })
	p := c.NewPipeline()
	if done, err := p.Wait(bg); len(done) != 0 || err != nil {
		t.Error(done, err)
	}
	var o Op
	p.Get(&o, "k")
	ctx, cancel := context.WithTimeout(bg, 10*time.Millisecond)
	defer cancel()
	if _, err := p.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if len(p.Take()) != 0 || p.Len() != 1 {
		t.Error("it has ended")
	}
	close(release)
	<-p.Ready()
	if done := p.Take(); len(done) != 1 || done[0] != &o || p.Len() != 0 {
		t.Error(done)
	}
}

// Requests do not gather without bound when nobody flushes.
func TestPipeline_NotFlushed_IsSentByItselfInTime(t *testing.T) {
	s, c := fake(t)
	p := c.NewPipeline()
	key := strings.Repeat("k", wire.KeyBytesMax)
	ops := make([]Op, stagedBytesMax/len(key)+1)
	before := s.reqs.Load()
	for i := range ops {
		p.Get(&ops[i], key)
	}
	eventually(t, "the requests' arrival", func() bool { return s.reqs.Load() > before })
	if p.stagedBytes >= stagedBytesMax {
		t.Error(p.stagedBytes)
	}
	all(t, p, func(*Op) {})
}

func TestPipeline_Bursts_AllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	_, c := fake(t)
	value := bytes.Repeat([]byte("v"), 100)
	mustPut(t, c, "some/key", string(value), WithTag("a", "b"))
	p := c.NewPipeline()
	ops := make([]Op, 64)
	for name, start := range map[string]func(o *Op){
		"get":        func(o *Op) { p.Get(o, "some/key") },
		"get absent": func(o *Op) { p.Get(o, "absent") },
		"put":        func(o *Op) { p.Put(o, "some/key", value) },
	} {
		burst := func() {
			for i := range ops {
				start(&ops[i])
			}
			for p.Len() > 0 {
				done, err := p.Wait(bg)
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range done {
					if err := o.Err(); err != nil && err != ErrNotFound {
						t.Fatal(err)
					}
				}
			}
		}
		for range 20 {
			burst()
		}
		if n := testing.AllocsPerRun(200, burst); n != 0 {
			t.Errorf("%s: %v allocations for %d operations", name, n, len(ops))
		}
	}
}
