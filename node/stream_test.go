package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"kvstore/wire"
)

// Goal: a streamed listing shows one revision while its keys are rewritten, in pages under credit, and its last frame
// is its last page.
func TestListing_StreamedWhileRewritten_OneRevision(t *testing.T) {
	n := openNode(t, t.TempDir(), nil)
	defer closeNode(t, n)
	const keys = 600
	for i := range keys {
		put(t, n, fmt.Sprintf("k/%04d", i), "first")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // ends when stop is closed
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				do(t, n, wire.OpPut, nil, fmt.Sprintf("k/%04d", i%keys), []byte("second"))
			}
		}
	})
	defer wg.Wait()
	defer close(stop)
	p := dialStreams(t, n, 0)
	for round := range 5 {
		id := uint32(round + 1)
		p.send(wire.OpScan, id, nil, "", wire.AppendScanRequest(nil, &wire.ScanRequest{Flags: wire.ScanStream, Prefix: []byte("k/"), Limit: 50}))
		var revision wire.Revision
		seen, frames := 0, 0
		for more := true; more; {
			f := p.read()
			if more = f.more(); f.ID != id || f.Status() != wire.StatusOK {
				t.Fatalf("%s %s", f.Status(), f.payload)
			}
			var page wire.ScanPage
			if err := wire.DecodeScanPage(f.payload, &page); err != nil {
				t.Fatal(err)
			}
			if revision == 0 {
				revision = page.Revision
			}
			if page.Revision != revision || (len(page.Cursor) == 0) == more {
				t.Fatalf("page of revision %d in a listing of %d, cursor of %d bytes, more %v", page.Revision, revision, len(page.Cursor), more)
			}
			b := page.Items
			for range page.Count {
				var it wire.Item
				var err error
				if b, err = wire.NextItem(b, &it); err != nil {
					t.Fatal(err)
				}
				if want := fmt.Sprintf("k/%04d", seen); string(it.Key) != want {
					t.Fatalf("%s in place of %s", it.Key, want)
				}
				seen++
			}
			frames++
			p.credit(id, uint32(len(f.payload)))
		}
		if seen != keys || frames < keys/50 {
			t.Errorf("%d keys of %d in %d frames", seen, keys, frames)
		}
	}
	// Without credit it stops, and CANCEL ends it.
	for i := range 20 {
		do(t, n, wire.OpPut, nil, fmt.Sprintf("big/%d", i), make([]byte, 200<<10))
	}
	p.send(wire.OpScan, 99, nil, "", wire.AppendScanRequest(nil, &wire.ScanRequest{Flags: wire.ScanStream, Prefix: []byte("big/"), Limit: 1}))
	bytes := 0
	for bytes < wire.StreamCreditDefault {
		bytes += len(p.read().payload)
	}
	st := n.service.streams.find(onlyConn(n), 99)
	until(t, "the listing rests", func() bool { return st.state.Load() == streamResting })
	p.cancel(99)
	if f := p.read(); f.more() || f.Status() != wire.StatusCancelled {
		t.Errorf("behind %d bytes came %s, more %v", bytes, f.Status(), f.more())
	}
	_ = p.c.Close()
	quietStreams(t, n)
}

// onlyConn gives the only connection that has streams.
func onlyConn(n *Node) wire.Completer {
	s := n.service.streams
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		return c
	}
	return nil
}

// flaky is a Pusher that finds no room at random, and tells of room from another goroutine.
type flaky struct {
	t *testing.T
	s *Service

	mu     sync.Mutex
	rng    *rand.Rand
	full   bool
	gone   bool
	finals map[uint32]int
	open   map[uint32]bool
	wg     sync.WaitGroup // calls of Writable
}

func (c *flaky) Push(t wire.Token, r *wire.Response) wire.PushResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open[t.ID] {
		c.t.Errorf("a frame for request %d, which is not open", t.ID)
	}
	if c.gone {
		return wire.PushGone
	}
	if c.full || c.rng.IntN(4) == 0 {
		if !c.full {
			c.full = true
			c.wg.Go(func() { // ends at once
				c.mu.Lock()
				c.full = false
				c.mu.Unlock()
				c.s.Writable(c)
			})
		}
		return wire.PushFull
	}
	return wire.PushOK
}

func (c *flaky) Complete(t wire.Token, _ *wire.Response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finals[t.ID]++
	if c.finals[t.ID] > 1 {
		c.t.Errorf("request %d has %d final answers", t.ID, c.finals[t.ID])
	}
	c.open[t.ID] = false
}

// FuzzStreams: whatever order WATCH, SCAN, CREDIT, CANCEL, changes and the end of the connection come in, each request
// has exactly one final answer, no frame comes behind it, and nothing is left when the connection is gone.
func FuzzStreams(f *testing.F) {
	var n *Node // outlives the run that opens it
	var once sync.Once
	dir := f.TempDir()
	f.Add([]byte{0, 1, 2, 0, 5, 3, 1, 9, 4, 0, 0, 0, 3, 2, 0, 1, 5, 5, 2, 1})
	f.Add([]byte{1, 1, 1, 2, 1, 3, 3, 1, 3, 2, 2, 3, 4, 4, 4})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 5, 1, 5, 2, 5, 3, 2, 0, 2, 1})
	f.Cleanup(func() {
		if n != nil {
			if err := n.Close(context.Background()); err != nil {
				f.Error(err)
			}
		}
	})
	f.Fuzz(func(t *testing.T, script []byte) {
		once.Do(func() { n = openNode(t, dir, func(o *Options) { o.Logger = slog.New(slog.DiscardHandler) }) })
		c := &flaky{t: t, s: n.service, rng: rand.New(rand.NewPCG(uint64(len(script)), 7)), finals: map[uint32]int{}, open: map[uint32]bool{}}
		id := uint32(0)
		begin := func(op wire.Opcode, payload []byte) {
			id++
			r := *request(t, op, nil, "", payload)
			r.ID = id
			c.mu.Lock()
			c.open[id] = true
			c.mu.Unlock()
			n.service.Serve(c, anonymous, []wire.Request{r})
		}
		for len(script) >= 2 && id < 40 {
			x, y := script[0], uint32(script[1])
			script = script[2:]
			switch x % 6 {
			case 0:
				begin(wire.OpWatch, wire.AppendWatchRequest(nil, &wire.WatchRequest{Flags: uint8(y&1) * wire.WatchFromNow, Credit: 1 + y*16, Prefix: []byte("f")}))
			case 1:
				begin(wire.OpScan, wire.AppendScanRequest(nil, &wire.ScanRequest{Flags: wire.ScanStream, Limit: 1 + y}))
			case 2:
				n.service.Cancel(c, 1+y%(id+1))
			case 3:
				n.service.Credit(c, 1+y%(id+1), y*100)
			default:
				if a := do(t, n, wire.OpPut, nil, fmt.Sprintf("f%d", y%8), make([]byte, y)); a.Status != wire.StatusOK {
					t.Fatalf("put: %s", a.Status)
				}
			}
		}
		c.mu.Lock()
		c.gone = true
		c.mu.Unlock()
		n.service.Gone(c)
		until(t, "each request has its final answer", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.finals) == int(id)
		})
		c.wg.Wait()
		quietStreams(t, n)
	})
}
