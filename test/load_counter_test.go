package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"kvstore/client"
)

// The counters: callers add one to counters, alone, in batches and in transactions, some with sessions, whose retries
// are blind, and some without. In the end each counter is at least what was acknowledged and at most that and what is
// unknown; no two callers were told the same value of a counter; and with a session nothing stays unknown twice: what
// a caller is told in order grows. Beside them namespaces with quotas are created, filled over the edge, and dropped.

func init() { workloads["counter"] = func() workload { return new(counterLoad) } }

const (
	counterKeys  = 6
	counterLeast = 100
)

// counterLoad is the workload.
type counterLoad struct {
	// Set by drive.
	r     *faultRun
	admin *client.Client

	done, open atomic.Int64
	acked      [counterKeys]atomic.Int64
	unknown    [counterKeys]atomic.Int64
	told       [counterKeys]atomic.Int64 // the highest value that anybody was told
	spaces     atomic.Int64
}

func (*counterLoad) name() string { return "counter" }

func counterKey(i int) string { return fmt.Sprintf("counter/%d", i) }

func (l *counterLoad) drive(r *faultRun) {
	l.r = r
	l.admin = openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout), client.WithName("counter admin"))
	sure := openAt(r.t, r.c.Addrs(), client.WithTimeout(loadTimeout), client.WithName("counter"))
	hasty := openAt(r.t, r.c.Addrs(), client.WithTimeout(hastyTimeout), client.WithoutSession(), client.WithName("counter hasty"))
	for i := range 6 {
		c := sure
		if i%3 == 2 {
			c = hasty
		}
		last := [counterKeys]int64{}
		r.callAs(fmt.Sprintf("counter caller %d", i), 5*time.Millisecond, 50*time.Millisecond, func(rng *rand.Rand) bool {
			return l.add(c, rng, &last)
		})
	}
	r.callAs("counter namespaces", 100*time.Millisecond, 500*time.Millisecond, func(rng *rand.Rand) bool { return l.space(rng) })
}

// add adds one to a counter, or to two of them together.
func (l *counterLoad) add(c *client.Client, rng *rand.Rand, last *[counterKeys]int64) bool {
	ctx := context.Background()
	keys := []int{rng.IntN(counterKeys)}
	values := []int64{0}
	var err error
	if rng.IntN(3) > 0 {
		values[0], _, err = c.Increment(ctx, counterKey(keys[0]), 1)
	} else {
		keys = append(keys, (keys[0]+1)%counterKeys)
		values = append(values, 0)
		var res client.TxnResult
		res, err = c.Txn().Increment(counterKey(keys[0]), 1).Increment(counterKey(keys[1]), 1).Commit(ctx)
		for i := range res.Results {
			values[i] = res.Results[i].Counter
		}
	}
	o, failed := l.r.wrote("counter", err)
	if failed {
		l.r.anomaly("an increment without conditions failed on one: %v", err)
	}
	for i, k := range keys {
		switch o {
		case acked:
			l.acked[k].Add(1)
			if values[i] == 0 {
				continue // the answer was lost, and the servers kept only that it was done
			}
			if values[i] <= last[k] {
				l.r.anomaly("a caller was told that %s is %d after it was told %d", counterKey(k), values[i], last[k])
			}
			last[k] = values[i]
			for {
				highest := l.told[k].Load()
				if values[i] <= highest || l.told[k].CompareAndSwap(highest, values[i]) {
					break
				}
			}
		case unknown:
			l.unknown[k].Add(1)
		}
	}
	if o == unknown {
		l.open.Add(1)
	} else {
		l.done.Add(1)
	}
	return o == acked
}

// space creates a namespace, fills it over its quota, and drops it. Whatever nodes do meanwhile, the quota is never
// exceeded and never refuses what fits.
func (l *counterLoad) space(rng *rand.Rand) bool {
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	name := fmt.Sprintf("run-%d", l.spaces.Add(1))
	admin := l.admin
	most := 3 + rng.IntN(5)
	if _, err := admin.CreateNamespace(ctx, name, client.NamespaceSettings{KeysMax: uint64(most)}); err != nil && !errors.Is(err, client.ErrNamespaceExists) {
		return false // whether it is there will be seen by its number being used no more
	}
	// Not openAt: nobody may be there to answer just now.
	c, err := client.Open(ctx, l.r.c.Addrs(), client.WithNamespace(name), client.WithTimeout(loadTimeout))
	if err != nil {
		return false
	}
	defer closeClient(l.r.t, c)
	for i := range most + 2 {
		_, err := c.Put(ctx, strconv.Itoa(i), []byte("v"))
		switch {
		case err == nil && i >= most:
			l.r.anomaly("namespace %s holds %d keys, its quota is %d", name, i+1, most)
		case errors.Is(err, client.ErrQuota) && i < most:
			l.r.anomaly("namespace %s refuses key %d, its quota is %d: %v", name, i+1, most, err)
		case err != nil && !errors.Is(err, client.ErrQuota):
			return false
		}
	}
	dropped := false
	for range 20 {
		if err := admin.DropNamespace(ctx, name); err == nil || errors.Is(err, client.ErrNoNamespace) {
			dropped = true
			break
		}
	}
	if _, err := c.Put(ctx, "k", nil); err == nil && dropped {
		l.r.anomaly("a write in the dropped namespace %s is acknowledged", name)
	}
	l.done.Add(1)
	return true
}

func (l *counterLoad) verify(r *faultRun) {
	c := openAt(r.t, r.c.Addrs(), client.WithTimeout(patience))
	for i := range counterKeys {
		v, err := c.Get(context.Background(), counterKey(i))
		if errors.Is(err, client.ErrNotFound) && l.acked[i].Load() == 0 {
			continue
		}
		if err != nil {
			r.anomaly("cannot read %s in the end: %v", counterKey(i), err)
			continue
		}
		n, err := strconv.ParseInt(string(v.Data), 10, 64)
		acked, unknown := l.acked[i].Load(), l.unknown[i].Load()
		if err != nil || n < acked || n > acked+unknown || n < l.told[i].Load() {
			r.anomaly("%s is %q; %d additions were acknowledged, %d are unknown, the highest value told is %d", counterKey(i), v.Data, acked, unknown, l.told[i].Load())
		}
	}
}

func (l *counterLoad) figures() figures {
	return figures{done: l.done.Load(), unknown: l.open.Load(), least: counterLeast}
}
