package test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
)

// load is a set of writers that runs until stopped.
type load struct {
	ledger *ledger
	done   sync.WaitGroup
	stop   chan struct{}
}

// startLoad lets writers work on the node, over three clients: one as users have it, one that gives up so
// soon that outcomes stay unknown, and one without sessions, whose lost answers stay unknown too.
func startLoad(t *testing.T, n *testcluster.Node, seed uint64) *load {
	t.Helper()
	return startLoadAt(t, []string{n.Addr()}, seed)
}

// startLoadAt is startLoad on all the nodes of a cluster.
func startLoadAt(t *testing.T, addrs []string, seed uint64) *load {
	t.Helper()
	l := &load{ledger: newLedger(t, seed), stop: make(chan struct{})}
	stream := 0
	for _, k := range []struct {
		name    string
		writers int
		opts    []client.Option
	}{
		// Half a minute: longer than any restart, so that each operation ends by its true outcome.
		{"patient", 8, []client.Option{client.WithTimeout(30 * time.Second)}},
		{"hasty", 2, []client.Option{client.WithTimeout(30 * time.Millisecond)}},
		{"sessionless", 2, []client.Option{client.WithTimeout(30 * time.Second), client.WithoutSession()}},
	} {
		c := openAt(t, addrs, append(k.opts, client.WithName(k.name))...)
		var writers sync.WaitGroup
		for i := range k.writers {
			stream++
			w := &writer{l: l.ledger, name: fmt.Sprintf("%s-%d", k.name, i), c: c, rng: random(seed, stream), patient: k.name == "patient"}
			writers.Go(func() { w.write(l.stopped) }) // ends when stop is closed
		}
		l.done.Go(func() { // ends after the writers
			writers.Wait()
			// Its session ends with it, so that the state is at rest when all are closed.
			if err := c.Close(); err != nil {
				t.Errorf("cannot close the client: %v", err)
			}
		})
	}
	t.Cleanup(l.end)
	return l
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// end stops the writers and waits for them. Calling it again does nothing.
func (l *load) end() {
	if !l.stopped() {
		close(l.stop)
	}
	l.done.Wait()
}

// waitAcked waits until n more writes are acknowledged. False: the node ended before.
func (l *load) waitAcked(t *testing.T, n int64, exited <-chan struct{}) bool {
	t.Helper()
	want := l.ledger.acked.Load() + n
	deadline := time.Now().Add(patience)
	for l.ledger.acked.Load() < want {
		select {
		case <-exited:
			return false
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %d writes are acknowledged within %v", n, patience)
		}
	}
	return true
}

// verify compares the whole store with the ledger and notes what differs. REQUIRES: the writers have ended; the node serves.
func (l *ledger) verify(c *client.Client) {
	t := l.t
	t.Helper()
	ctx := context.Background()

	// Records with a short time to live go by themselves.
	for key := range l.expiring {
		eventually(t, key+" expires", func() (bool, error) {
			_, err := c.Get(ctx, key)
			return errors.Is(err, client.ErrNotFound), err
		})
	}

	const readers = 16
	claims := make(chan *claim)
	var work sync.WaitGroup
	var mu sync.Mutex
	present := make(map[string]bool, len(l.claims))
	for range readers {
		work.Go(func() { // ends when claims is closed
			for cl := range claims {
				v, err := c.Get(ctx, cl.key)
				found := &v
				if errors.Is(err, client.ErrNotFound) {
					found, err = nil, nil
				}
				if err != nil {
					l.anomaly("cannot read %s: %v", cl.key, err)
					continue
				}
				if err := cl.check(found); err != nil {
					l.anomaly("%v", err)
				}
				mu.Lock()
				present[cl.key] = found != nil
				mu.Unlock()
			}
		})
	}
	for _, cl := range l.claims {
		claims <- cl
	}
	close(claims)
	work.Wait()

	// Atomic batches: none is torn.
	for _, keys := range l.groups {
		n := 0
		for _, k := range keys {
			// Keys that were deleted or overwritten later say nothing of the batch.
			if len(l.claims[k].states) == 2 && l.claims[k].states[0].absent && present[k] {
				n++
			} else if len(l.claims[k].states) == 1 {
				n = -1
				break
			}
		}
		if n > 0 && n < len(keys) {
			l.anomaly("an atomic batch of unknown outcome is torn: %d of the %d keys from %s on are there", n, len(keys), keys[0])
		}
	}

	// Counters: as many increments as markers, each acknowledged one once.
	markers := make(map[string]int)
	for key := range present {
		for i := range counterCount {
			if name := fmt.Sprintf("counter/%d", i); present[key] && len(key) > len(name) && key[len(key)-len(name):] == name {
				markers[name]++
			}
		}
	}
	for name, cc := range l.counters {
		var got int
		v, err := c.Get(ctx, name)
		switch {
		case err == nil && len(v.Data) == 8:
			got = int(binary.LittleEndian.Uint64(v.Data))
		case errors.Is(err, client.ErrNotFound):
		default:
			l.anomaly("cannot read %s: %d bytes, %v", name, len(v.Data), err)
			continue
		}
		if got != markers[name] || got < cc.acked || got > cc.acked+cc.unknown {
			l.anomaly("%s is %d after %d acknowledged and %d unknown increments that left %d markers", name, got, cc.acked, cc.unknown, markers[name])
		}
	}

	// Nothing is there that nobody wrote, and the listing shows what single reads show.
	listed := 0
	for e, err := range c.List(ctx, client.ListOptions{KeysOnly: true}) {
		if err != nil {
			l.anomaly("cannot list: %v", err)
			break
		}
		if _, ok := l.claims[e.Key]; ok {
			listed++
			if !present[e.Key] {
				l.anomaly("%s is listed, but a read does not find it", e.Key)
			}
		} else if l.counters[e.Key] == nil {
			l.anomaly("%s is there although nobody wrote it", e.Key)
		}
	}
	found := 0
	for _, p := range present {
		if p {
			found++
		}
	}
	if listed != found {
		l.anomaly("%d of the keys written are listed, %d are read", listed, found)
	}
	l.present = found
}

// report prints the figures and fails the test for anomalies.
func (l *ledger) report() {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Logf("%d writes acknowledged (%d MB), %d surely not applied, %d unknown; %d reads; %d keys written, %d present; %d anomalies",
		l.acked.Load(), l.ackedBytes.Load()>>20, l.refused.Load(), l.unknown.Load(), l.reads.Load(), len(l.claims), l.present, len(l.anomalies))
	for _, a := range l.anomalies {
		l.t.Error(a)
	}
	if len(l.anomalies) > 0 {
		l.t.Errorf("repeat the choices with %s=%d", seedEnv, l.seed)
	}
}

// restState returns the node's status once nothing is under way any more: neither writes nor the removal
// of expired records.
func restState(t *testing.T, n *testcluster.Node) testcluster.Status {
	t.Helper()
	var s testcluster.Status
	eventually(t, "the state is at rest", func() (bool, error) {
		before := s
		var err error
		if s, err = n.Status(); err != nil {
			return false, err
		}
		// Expired records are looked for every 100 ms.
		time.Sleep(300 * time.Millisecond)
		return before.AppliedIndex == s.AppliedIndex && before.StateDigest == s.StateDigest && s.AppliedIndex > 0, nil
	})
	return s
}

// checkDigest restarts the node, once in order and once by SIGKILL, and compares the digests: what the log
// replays is what was applied.
func checkDigest(t *testing.T, n *testcluster.Node) {
	t.Helper()
	before := restState(t, n)
	if code := n.Terminate(); code != 0 {
		t.Fatalf("after SIGTERM the node exits %d:\n%s", code, n.LastOutput())
	}
	for _, how := range []string{"SIGTERM", "SIGKILL"} {
		n.Start()
		after := restState(t, n)
		if after.StateDigest != before.StateDigest || after.Records != before.Records || after.Revision != before.Revision {
			t.Errorf("after %s the state differs: digest %s of %d records at revision %s (index %d) became %s of %d at %s (index %d)", how,
				before.StateDigest, before.Records, before.Revision, before.AppliedIndex, after.StateDigest, after.Records, after.Revision, after.AppliedIndex)
		}
		if after.AppliedIndex < before.AppliedIndex {
			t.Errorf("after %s the applied index went back from %d to %d", how, before.AppliedIndex, after.AppliedIndex)
		}
		n.Kill()
	}
	t.Logf("digest %s of %d records at index %d survives a clean stop and a kill", before.StateDigest, before.Records, before.AppliedIndex)
}
