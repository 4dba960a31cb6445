package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"kvstore/wire"
)

var errPassing = &StatusError{Status: wire.StatusNoLeader}

func TestRestore_NotEmpty_IsRefusedUnlessMerged(t *testing.T) {
	m := newMemory()
	m.fill(random(t), 30)
	stream := taken(t, m, TakeOptions{})
	to := newMemory()
	to.spaces["default"].put(to, "key/000001", []byte("old"), nil, time.Hour)
	to.spaces["default"].put(to, "mine", []byte("mine"), nil, 0)
	before := to.content()
	o := RestoreOptions{Now: func() time.Time { return m.now }}
	_, err := Restore(t.Context(), to, bytes.NewReader(stream), o)
	var partial *PartialError
	if !errors.Is(err, ErrNotEmpty) || errors.As(err, &partial) || !maps.Equal(before, to.content()) {
		t.Fatalf("%v; the store holds %v", err, to.content())
	}
	o.Merge = true
	done, err := Restore(t.Context(), to, bytes.NewReader(stream), o)
	if err != nil || done.Created != 2 {
		t.Fatalf("%+v, %v", done, err)
	}
	want := m.content()
	want["default/mine"] = before["default/mine"]
	if got := to.content(); !maps.Equal(want, got) {
		t.Errorf("got %v, want %v", got, want)
	}
	// Again: the same.
	if _, err := Restore(t.Context(), to, bytes.NewReader(stream), o); err != nil || !maps.Equal(want, to.content()) {
		t.Errorf("again: %v", err)
	}
}

// A stream that is broken anywhere changes nothing at all, however many good blocks stand before the fault.
func TestRestore_BrokenBackup_ChangesNothing(t *testing.T) {
	rnd := random(t)
	m := newMemory()
	m.fill(rnd, 50)
	stream := taken(t, m, TakeOptions{})
	flipped := bytes.Clone(stream)
	flipped[len(flipped)-1] ^= 1
	for name, b := range map[string][]byte{"cut": stream[:len(stream)-1], "flipped": flipped, "empty": nil, "something else": []byte("something else, long enough")} {
		to := newMemory()
		before := to.content()
		if _, err := Restore(t.Context(), to, bytes.NewReader(b), RestoreOptions{}); !errors.Is(err, ErrBroken) && !errors.Is(err, ErrNotBackup) {
			t.Errorf("%s: %v", name, err)
		}
		if !maps.Equal(before, to.content()) || to.puts+to.lists != 0 {
			t.Errorf("%s: the store was asked or changed: %v", name, to.content())
		}
	}
}

func TestRestore_Expiry_IsKeptAndExpiredLeftOut(t *testing.T) {
	m := newMemory()
	def := m.spaces["default"]
	def.put(m, "never", nil, nil, 0)
	def.put(m, "soon", nil, nil, time.Minute)
	def.put(m, "later", nil, nil, time.Hour)
	def.put(m, "much later", nil, nil, 99*366*24*time.Hour)
	stream := taken(t, m, TakeOptions{})
	to := newMemory()
	to.now = m.now.Add(10 * time.Minute)
	done, err := Restore(t.Context(), to, bytes.NewReader(stream), RestoreOptions{Now: func() time.Time { return to.now }})
	if err != nil || done.Expired != 1 || done.Records != 3 {
		t.Fatalf("%+v, %v", done, err)
	}
	delete(def.data, "soon")
	if want, got := m.content(), to.content(); !maps.Equal(want, got) {
		t.Errorf("got %v, want %v", got, want)
	}
	// At the very moment there is no time left.
	p := Put{ExpiresAt: to.now.UnixMicro()}
	if got := p.TTL(to.now); got != time.Millisecond {
		t.Errorf("with no time left it lives %v", got)
	}
}

// Answers that are lost, and nodes that can't serve for a while, cost repetitions and nothing else.
func TestRestore_LostAnswersAndElections_WritesAll(t *testing.T) {
	rnd := random(t)
	m := newMemory()
	m.fill(rnd, 2000)
	stream := taken(t, m, TakeOptions{})
	to := newMemory()
	to.before = func(string, string) error {
		if rnd.IntN(4) == 0 {
			return errPassing
		}
		return nil
	}
	to.lose = func() bool { return rnd.IntN(4) == 0 }
	told := 0
	done, err := Restore(t.Context(), to, bytes.NewReader(stream), RestoreOptions{Now: func() time.Time { return m.now }, Waiting: func(error) { told++ }})
	if err != nil || told == 0 {
		t.Fatalf("%+v, told %d times: %v", done, told, err)
	}
	to.before = nil
	if want, got := m.content(), to.content(); !maps.Equal(want, got) {
		t.Errorf("%d lines, want %d", len(got), len(want))
	}
}

// What a restore says that it has written is written, and what it does not speak of is not.
func TestRestore_Fails_TellsHowMuchIsWritten(t *testing.T) {
	m := newMemory()
	m.fill(rand.New(rand.NewPCG(1, 1)), 3000)
	stream := taken(t, m, TakeOptions{})
	for name, c := range map[string]struct {
		err     error
		lose    bool
		unknown bool
	}{
		"refused":              {err: &StatusError{Status: wire.StatusQuota, Text: "full"}},
		"unknown and silent":   {err: &StatusError{Status: wire.StatusTimeout}, unknown: true},
		"applied, answer lost": {lose: true, unknown: true},
	} {
		to := newMemory()
		to.before = func(call, _ string) error {
			if call == "put" && to.puts == 2 && !c.lose {
				return c.err
			}
			return nil
		}
		to.lose = func() bool { return c.lose && to.puts >= 3 }
		done, err := Restore(t.Context(), to, bytes.NewReader(stream), RestoreOptions{Patience: -1, Now: func() time.Time { return m.now }})
		var partial *PartialError
		if !errors.As(err, &partial) || partial.Done != done.Count || partial.Created != 2 || (partial.Unknown > 0) != c.unknown {
			t.Errorf("%s: %+v, %v", name, done, err)
			continue
		}
		var written uint64
		for _, s := range to.spaces {
			written += uint64(len(s.data))
		}
		if written < done.Records || written > done.Records+partial.Unknown || c.lose != (written > done.Records) {
			t.Errorf("%s: %d records are written; it says %d and perhaps %d more", name, written, done.Records, partial.Unknown)
		}
	}
}

func TestRestore_Interrupted_EndsSoonAndSaysSo(t *testing.T) {
	m := newMemory()
	m.fill(rand.New(rand.NewPCG(1, 1)), 3000)
	stream := taken(t, m, TakeOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	to := newMemory()
	to.before = func(call, _ string) error {
		if call == "put" && to.puts == 1 {
			cancel()
			return errPassing
		}
		return nil
	}
	done, err := Restore(ctx, to, bytes.NewReader(stream), RestoreOptions{Now: func() time.Time { return m.now }})
	var partial *PartialError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &partial) || done.Records == 0 || to.puts != 1 {
		t.Errorf("%+v, %v", done, err)
	}
}

// Two namespaces with one name, one after the other, are not one: a copy that might hold neither's records is none.
func TestTake_NamespacesComeAndGo_IsOneMomentOrNone(t *testing.T) {
	fresh := func() *memory {
		m := newMemory()
		m.fill(rand.New(rand.NewPCG(1, 1)), 5)
		return m
	}
	m := fresh()
	m.before = func(call, ns string) error {
		if call == "scan" && ns == "default" {
			delete(m.spaces, "app")
			m.create("app", wire.NamespaceSettings{})
		}
		return nil
	}
	if _, err := Take(t.Context(), m, io.Discard, TakeOptions{}); !errors.Is(err, ErrChanged) {
		t.Errorf("one was made anew: %v", err)
	}
	// Before the revision is known they may come and go.
	m = fresh()
	n := 0
	m.before = func(call, _ string) error {
		if call == "revision" && n < 3 {
			n++
			m.create(fmt.Sprintf("new/%d", n), wire.NamespaceSettings{})
		}
		return nil
	}
	var b bytes.Buffer
	if _, err := Take(t.Context(), m, &b, TakeOptions{}); err != nil {
		t.Fatal(err)
	}
	if h, _, err := Verify(&b); err != nil || len(h.Namespaces) != 6 {
		t.Errorf("%+v, %v", h, err)
	}
	m = fresh()
	m.before = func(call, _ string) error {
		if call == "revision" {
			n++
			m.create(fmt.Sprintf("new/%d", n), wire.NamespaceSettings{})
		}
		return nil
	}
	if _, err := Take(t.Context(), m, io.Discard, TakeOptions{}); !errors.Is(err, ErrChanged) {
		t.Errorf("they come all the time: %v", err)
	}
}

// An interruption in the midst of a namespace leaves neither a gap nor a repetition; one that lasts ends the backup.
func TestTake_Interrupted_GoesOnBehindTheLastKey(t *testing.T) {
	rnd := random(t)
	m := newMemory()
	m.fill(rnd, 500)
	m.spaces["app"].put(m, string(bytes.Repeat([]byte("k"), wire.KeyBytesMax)), nil, nil, 0)
	m.spaces["app"].put(m, "z", nil, nil, 0)
	want := taken(t, m, TakeOptions{})
	m.before = func(string, string) error {
		if rnd.IntN(60) == 0 {
			return errPassing
		}
		return nil
	}
	got := taken(t, m, TakeOptions{})
	// All but the moment at which it was made, in the header, and what depends on it.
	if a, b := frames(t, want), frames(t, got); !slices.EqualFunc(a[2:len(a)-1], b[2:len(b)-1], bytes.Equal) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	for name, c := range map[string]struct {
		err error
		is  func(error) bool
	}{
		"lasting": {errPassing, func(err error) bool { return errors.Is(err, errPassing) }},
		"compacted": {&StatusError{Status: wire.StatusCompacted}, func(err error) bool {
			var s *StatusError
			return errors.As(err, &s) && s.Status == wire.StatusCompacted
		}},
	} {
		n := 0
		m.before = func(call, _ string) error {
			if n++; call == "record" && n > 100 {
				return c.err
			}
			return nil
		}
		var b bytes.Buffer
		if _, err := Take(t.Context(), m, &b, TakeOptions{Patience: 50 * time.Millisecond}); !c.is(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := Verify(&b); err == nil {
			t.Errorf("%s: what it left behind looks whole", name)
		}
	}
}

type failingWriter struct{ left int }

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

func TestTake_WriterFails_SaysSo(t *testing.T) {
	m := newMemory()
	m.fill(rand.New(rand.NewPCG(1, 1)), 5)
	n := len(taken(t, m, TakeOptions{}))
	for at := range n {
		if _, err := Take(t.Context(), m, &failingWriter{left: at}, TakeOptions{}); !errors.Is(err, io.ErrShortWrite) {
			t.Fatalf("after %d bytes: %v", at, err)
		}
	}
}
