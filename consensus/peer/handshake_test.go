package peer

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"kvstore/internal/record"
)

func TestHandshake_TwoMembers_TalkAndExchangeCards(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	type card struct {
		id   string
		inc  [16]byte
		text string
	}
	atA, atB := make(chan card, 100), make(chan card, 100) // each connection brings one
	oa.Card, ob.Card = []byte("card of a"), []byte("card of b")
	oa.OnCard = func(id string, inc [16]byte, c []byte) { atA <- card{id, inc, string(c)} }
	ob.OnCard = func(id string, inc [16]byte, c []byte) { atB <- card{id, inc, string(c)} }
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	if got, want := <-atA, (card{"node-2", incarnation(2), "card of b"}); got != want {
		t.Errorf("a got %+v", got)
	}
	if got, want := <-atB, (card{"node-1", incarnation(1), "card of a"}); got != want {
		t.Errorf("b got %+v", got)
	}
	for _, s := range []Status{statusOf(t, a, "node-2"), statusOf(t, b, "node-1")} {
		if !s.Connected || s.Refused != "" || s.Rejected != "" || s.Incarnation == [16]byte{} || s.Address == "" {
			t.Errorf("status = %+v", s)
		}
	}
}

// Goal: who refuses whom, and who says so. A change makes one of two members unfit.
func TestHandshake_EachRefusal_IsToldOnTheRightSide(t *testing.T) {
	other := func() (cluster, history [16]byte, ok bool) { return incarnation(0xce), incarnation(0xdd), true }
	for name, c := range map[string]struct {
		change   func(a, b *Options)
		want     string
		bRefuses bool // the dialled side refuses; else the dialling one rejects what answers
		dial     string
	}{
		"other cluster":             {change: func(a, b *Options) { a.Cluster = other }, want: "belongs to cluster", bRefuses: true},
		"wrong target":              {change: func(a, b *Options) {}, dial: "node-3", want: `this is node "node-2", not "node-3"`, bRefuses: true},
		"caller's level too high":   {change: func(a, b *Options) { a.StateLevel = func() uint16 { return 9 } }, want: "upgrade", bRefuses: true},
		"heartbeat timeouts differ": {change: func(a, b *Options) { a.HeartbeatTimeout = 2 * time.Second }, want: "one --heartbeat-timeout", bRefuses: true},
		"answerer's level too high": {change: func(a, b *Options) { b.StateLevel = func() uint16 { return 9 } }, want: "upgrade"},
		"caller wiped": {change: func(a, b *Options) {
			b.Record = func(id string) ([16]byte, bool, bool) { return incarnation(7), false, id == "node-1" }
		}, want: `with another data directory (incarnation 07070707…, not 01010101…)`, bRefuses: true},
		"answerer wiped": {change: func(a, b *Options) {
			a.Record = func(id string) ([16]byte, bool, bool) { return incarnation(7), false, id == "node-2" }
		}, want: `with another data directory (incarnation 07070707…, not 02020202…)`},
		"caller removed": {change: func(a, b *Options) {
			b.Record = func(id string) ([16]byte, bool, bool) { return incarnation(1), true, id == "node-1" }
		}, want: "was removed from the cluster", bRefuses: true},
		"answerer removed": {change: func(a, b *Options) {
			a.Record = func(id string) ([16]byte, bool, bool) { return incarnation(2), true, id == "node-2" }
		}, want: "was removed from the cluster"},
		"namesake": {change: func(a, b *Options) { b.NodeID = "node-1" }, dial: "node-1", want: "two nodes call themselves", bRefuses: true},
	} {
		t.Run(name, func(t *testing.T) {
			oa, ob := testOptions(t, 1), testOptions(t, 2)
			c.change(&oa, &ob)
			a, b := open(t, oa), open(t, ob)
			serve(t, b, func(raft.RPC) { t.Error("a message came through") })
			to := ob.NodeID
			if c.dial != "" {
				to = c.dial
			}
			var resp raft.AppendEntriesResponse
			err := a.AppendEntries(raft.ServerID(to), b.LocalAddr(), heartbeat(a, 1), &resp)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error = %v, want %q", err, c.want)
			}
			if to == oa.NodeID {
				return // a node has no status of itself
			}
			s := statusOfOrZero(a, to)
			if c.bRefuses != strings.Contains(s.Refused, c.want) || c.bRefuses == strings.Contains(s.Rejected, c.want) {
				t.Errorf("at a: refused %q, rejected %q", s.Refused, s.Rejected)
			}
			if c.bRefuses == s.RefusedAt.IsZero() || c.bRefuses != s.RejectedAt.IsZero() {
				t.Errorf("at a: refused at %v, rejected at %v", s.RefusedAt, s.RejectedAt)
			}
			if back := statusOfOrZero(b, "node-1"); ob.NodeID != "node-1" && c.bRefuses != strings.Contains(back.Rejected, c.want) {
				t.Errorf("at b: rejected %q", back.Rejected)
			}
			if s.Connected {
				t.Error("a connection is open")
			}
		})
	}
}

func statusOfOrZero(tr *Transport, id string) Status {
	for _, s := range tr.Peers() {
		if s.ID == id {
			return s
		}
	}
	return Status{}
}

// Goal: a name stays bound to its data directory across restarts of the one that remembers, in both
// directions, and is free again when the node was removed.
func TestBinding_WipedPeer_IsRefusedAlsoAfterARestart(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	ob.Listener = relisten(t, ob.Address)
	b = open(t, ob)
	serve(t, b, agree)
	wiped := testOptions(t, 1)
	wiped.Incarnation = incarnation(0x11)
	w := open(t, wiped)
	serve(t, w, agree)
	if err := beat(w, b, 1); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "kvctl member remove node-1") {
		t.Fatalf("the wiped node was let in: %v", err)
	}
	if err := beat(b, w, 1); !errors.Is(err, ErrRefused) || statusOf(t, b, "node-1").Rejected == "" {
		t.Fatalf("the wiped node was called: %v", err)
	}
	if got := statusOf(t, b, "node-1").Incarnation; got != incarnation(1) {
		t.Errorf("bound to %x", got)
	}

	if err := b.Forget("node-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new one is let in", func() bool { return beat(w, b, 1) == nil })

	// The old one never comes back, not even after another restart.
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	ob.Listener = relisten(t, ob.Address)
	b = open(t, ob)
	oa.Listener = relisten(t, oa.Address)
	a = open(t, oa)
	if err := beat(a, b, 1); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "was removed") {
		t.Fatalf("the removed node was let in: %v", err)
	}
}

func TestBinding_RecordNewerThanTheFile_OutlastsAnOlderRecord(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	var record atomic.Uint32
	record.Store(1)
	ob.Record = func(string) ([16]byte, bool, bool) { return incarnation(byte(record.Load())), false, true }
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
	record.Store(0x11) // replaced
	anew := testOptions(t, 1)
	anew.Incarnation = incarnation(0x11)
	n := open(t, anew)
	if err := beat(n, b, 1); err != nil {
		t.Fatal(err)
	}
	b.conns.mu.Lock()
	for c := range b.conns.open {
		if c.peer != "" && c.process.incarnation != incarnation(0x11) {
			t.Errorf("a connection with the replaced node is open: %x", c.process.incarnation)
		}
	}
	b.conns.mu.Unlock()
	record.Store(1) // b restarted from an older checkpoint
	b.conns.close(func(*conn) bool { return true }, false)
	if err := beat(n, b, 1); err != nil {
		t.Errorf("the node of today is refused: %v", err)
	}
	oa2 := oa
	oa2.Listener, oa2.Dir = newListener(t), t.TempDir()
	if err := beat(open(t, oa2), b, 1); !errors.Is(err, ErrRefused) {
		t.Errorf("the node of yesterday is let in: %v", err)
	}
}

func TestBinding_CannotBeWritten_NobodyIsAcceptedAndNothingIsBound(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	write := b.book.write
	b.book.mu.Lock()
	b.book.write = func(string, []byte) error { return record.ErrUnsynced }
	b.book.mu.Unlock()
	if err := beat(a, b, 1); err == nil || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "cannot write down") {
		t.Fatalf("error = %v, want one that is not final", err)
	}
	if s := statusOfOrZero(b, "node-1"); s.Incarnation != [16]byte{} || s.Connected {
		t.Errorf("status = %+v", s)
	}
	b.book.mu.Lock()
	b.book.write = write
	b.book.mu.Unlock()
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
}

// Goal: the binding is on disk before the answer is on the wire.
func TestBinding_WrittenBeforeTheAnswer(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	a, b := open(t, oa), open(t, ob)
	hold := make(chan struct{})
	b.book.mu.Lock()
	write := b.book.write
	b.book.write = func(p string, c []byte) error { <-hold; return write(p, c) }
	b.book.mu.Unlock()
	met := make(chan error, 1)
	go func() { // owned by the test; ends when hold is closed
		c, err := a.dial(shortContext(t), "node-2", string(b.LocalAddr()), PurposeFound, false)
		met <- errors.Join(err, func() error {
			if c == nil {
				return nil
			}
			return c.Close()
		}())
	}()
	select {
	case err := <-met:
		t.Fatalf("answered before the binding was written: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(hold)
	if err := <-met; err != nil {
		t.Fatal(err)
	}
	if payload, err := record.ReadFile(filepath.Join(ob.Dir, bookFileName), bookBytesMax); err != nil || !bytes.Contains(payload, []byte(`"id":"node-1"`)) {
		t.Fatalf("%s, %v", payload, err)
	}
}

func TestOpen_ForeignOrDamagedFile_IsRefused(t *testing.T) {
	o := testOptions(t, 1)
	if err := open(t, o).SetJoined(incarnation(1), incarnation(2), []Bound{{"node-2", "h:1", incarnation(2)}}); err != nil {
		t.Fatal(err)
	}
	copied := testOptions(t, 3)
	copied.Dir = o.Dir
	if _, err := New(copied); err == nil || !strings.Contains(err.Error(), "copied from another data directory") {
		t.Errorf("copied: %v", err)
	}
	if _, err := net.Dial("tcp", string(copied.Address)); err == nil {
		t.Error("the listener is still open after New failed")
	}
	path := filepath.Join(o.Dir, bookFileName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-3] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := testOptions(t, 1)
	damaged.Dir = o.Dir
	if _, err := New(damaged); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("damaged: %v", err)
	}
}

func TestNew_BadOptions_ListsAllFaults(t *testing.T) {
	_, err := New(Options{NodeID: strings.Repeat("x", 65), Address: "a|b", Card: make([]byte, cardBytesMax+1), HoldVotes: -1, Timeout: 1, HeartbeatTimeout: 1})
	for _, want := range []string{"Listener", "NodeID", "Address", "Incarnation", "Dir", "Card", "HoldVotes", "Timeout", "HeartbeatTimeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is missing in: %v", want, err)
		}
	}
}

// Goal: an answer counts for the node that was meant, whoever says "welcome".
func TestDial_AnswerOfAnotherNode_IsRejected(t *testing.T) {
	a := open(t, testOptions(t, 1))
	l := newListener(t)
	served := make(chan error, 1)
	go func() { // owned by the test; ends with one connection
		served <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			h, err := ReadHello(c)
			if err != nil {
				return err
			}
			h.Source, h.Target, h.Incarnation = "node-9", h.Source, incarnation(9)
			frame, err := appendAnswer(nil, &answer{hello: h})
			if err == nil {
				_, err = c.Write(frame)
			}
			return errors.Join(err, c.Close(), l.Close())
		}()
	}()
	var resp raft.AppendEntriesResponse
	err := a.AppendEntries("node-2", raft.ServerAddress(l.Addr().String()), heartbeat(a, 1), &resp)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), `it is node "node-9"`) {
		t.Errorf("error = %v", err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if s := statusOf(t, a, "node-2"); s.Refused != "" || s.Rejected == "" || s.Incarnation != [16]byte{} {
		t.Errorf("status = %+v", s)
	}
}

// countingListener counts connections.
type countingListener struct {
	net.Listener
	n atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

func TestDial_RefusedForGood_DoesNotSpinAndTriesAgainLater(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	var removed atomic.Bool
	removed.Store(true)
	ob.Record = func(string) ([16]byte, bool, bool) { return incarnation(1), removed.Load(), true }
	counting := &countingListener{Listener: ob.Listener}
	ob.Listener = counting
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	for range 200 {
		if err := beat(a, b, 1); !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
	}
	// One connection per refusedPause: 200 calls take milliseconds, on a bad day seconds.
	if n := counting.n.Load(); n > 20 {
		t.Errorf("%d connections for 200 calls", n)
	}
	removed.Store(false)
	eventually(t, "accepted after all", func() bool { return beat(a, b, 1) == nil })
	if s := statusOf(t, a, "node-2"); s.Refused != "" || !s.RefusedAt.IsZero() {
		t.Errorf("status = %+v", s)
	}
}

func TestListen_ForeignAndSilentConnections_HoldNobodyUp(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	ob.Timeout = 200 * time.Millisecond
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	var silent []net.Conn
	for range handshakesMax {
		c, err := net.Dial("tcp", string(b.LocalAddr()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // a test's socket
		silent = append(silent, c)
	}
	eventually(t, "a peer gets in past silent ones", func() bool { return beat(a, b, 1) == nil })
	for _, c := range silent { // all are closed by b
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a silent connection stays: %d, %v", n, err)
		}
	}
	c, err := net.Dial("tcp", string(b.LocalAddr()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // a test's socket
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(c); len(got) != 0 { // a reset is as good as an end
		t.Errorf("a foreign connection was answered with %q", got)
	}
}

func TestListen_MoreConnectionsThanAllowed_AreClosed(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	a, b := open(t, oa), open(t, ob)
	serve(t, b, agree)
	b.conns.mu.Lock()
	b.conns.inbound = inboundMax
	b.conns.mu.Unlock()
	if err := beat(a, b, 1); err == nil || errors.Is(err, ErrRefused) {
		t.Fatalf("error = %v", err)
	}
	b.conns.mu.Lock()
	b.conns.inbound = 0
	b.conns.mu.Unlock()
	if err := beat(a, b, 1); err != nil {
		t.Fatal(err)
	}
}

func TestClose_OpenConnections_EndAtOnceOnBothSides(t *testing.T) {
	oa, ob := testOptions(t, 1), testOptions(t, 2)
	a, b := open(t, oa), open(t, ob)
	stuck := make(chan struct{})
	serve(t, b, func(rpc raft.RPC) { close(stuck) }) // never answers
	got := make(chan error, 1)
	go func() { got <- beat(a, b, 1) }() // owned by the test; ends when b is closed
	<-stuck
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err == nil {
		t.Fatal("a call to a closed node succeeded")
	}
	if err := b.Close(); err != nil {
		t.Errorf("twice: %v", err)
	}
	if err := beat(b, a, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("call from a closed node: %v", err)
	}
	b.conns.mu.Lock()
	defer b.conns.mu.Unlock()
	if len(b.conns.open) != 0 || b.conns.inbound != 0 {
		t.Errorf("%d connections, %d inbound are left", len(b.conns.open), b.conns.inbound)
	}
}

func TestBook_FullOfPeers_FitsItsFileAndTakesNoMore(t *testing.T) {
	o := testOptions(t, 1)
	tr := open(t, o)
	long := strings.Repeat("<", addressBytesMax)
	if err := tr.book.change(func(p *page) bool {
		for i := range peersMax {
			e := entry{address: long, incarnation: incarnation(1)}
			for k := range pastMax + 3 {
				e = e.replace(incarnation(byte(k + 2)))
			}
			p.entries[strings.Repeat("<", idBytesMax-3)+string(rune('Ā'+i))] = e
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	again, err := openBook(o.Dir, o.NodeID, o.Incarnation, o.Group)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(again.now.entries); n != peersMax {
		t.Errorf("%d entries read back", n)
	}
	for id, e := range again.now.entries {
		if len(e.past) != pastMax || e.past[pastMax-1] != incarnation(pastMax+3) {
			t.Fatalf("%q: past = %x", id, e.past)
		}
	}
	ob := testOptions(t, 2)
	if err := beat(open(t, ob), tr, 1); err == nil || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "can take no more") {
		t.Errorf("one more: %v", err)
	}
}
