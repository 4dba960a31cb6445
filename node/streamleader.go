package node

import (
	"context"
	"time"

	"kvstore/wire"
)

const (
	// watchAloneDefault is for how long a node that knows no leader goes on with its watches. An election takes one to two
	// seconds; who is cut off for longer tells nothing new, and doesn't know it.
	watchAloneDefault = 4 * time.Second
	// watchAloneInterval is how often it looks.
	watchAloneInterval = 250 * time.Millisecond
)

// noLeader ends the watches of a node that has been without a leader for too long.
var noLeader = &wire.Refusal{Status: wire.StatusNoLeader, RetryAfterMs: leaderRetryMs, Text: "this node has known no leader for a while, and may be cut off from the others: watch at another one"}

// lookForLeader ends the watches once no leader has been known for longer than after, and lets none begin until one
// is: a node that is cut off goes on telling that nothing happens, and a watcher could not tell that from the truth.
func (t *streams) lookForLeader(ctx context.Context, after time.Duration) {
	tick := time.NewTicker(watchAloneInterval)
	defer tick.Stop()
	known := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if id, _, _ := t.s.shard.group.Leader(); id != "" {
			known = time.Now()
			t.alone.Store(false)
			continue
		}
		if time.Since(known) < after {
			continue
		}
		t.alone.Store(true)
		// At each look: one that was let in just before is ended with the next.
		for _, st := range t.all() {
			if st.token.Op == wire.OpWatch {
				st.endWith(noLeader)
			}
		}
	}
}

// all gives the streams that are open.
func (t *streams) all() (all []*stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		all = c.all(all)
	}
	return all
}
