package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvstore/client"
	"kvstore/internal/testcluster"
	"kvstore/wire"
)

func TestMain(m *testing.M) { os.Exit(testcluster.Main(m)) }

// seedEnv repeats the choices of a random test.
const seedEnv = "KVSTORE_TEST_SEED"

// seed gives the seed of a random test and prints it.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv(seedEnv); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
		s = n
	}
	t.Logf("seed: %s=%d", seedEnv, s)
	return s
}

// random gives one of many independent sources of a seed.
func random(seed uint64, stream int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(stream)))
}

// count reads a number from the environment.
func count(t *testing.T, env string, def, short int) int {
	t.Helper()
	if v := os.Getenv(env); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q is not a number above 0", env, v)
		}
		return n
	}
	if testing.Short() {
		return short
	}
	return def
}

// patience bounds waits that end by an event; it is no measure of anything.
const patience = 2 * time.Minute

// open connects a client to the node; it is closed with the test.
func open(t *testing.T, n *testcluster.Node, o ...client.Option) *client.Client {
	t.Helper()
	return openAt(t, []string{n.Addr()}, o...)
}

// openAt connects a client to the first of the addresses that answers; it is closed with the test.
func openAt(t *testing.T, addrs []string, o ...client.Option) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Open(ctx, addrs, o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeClient(t, c) })
	return c
}

func closeClient(t *testing.T, c *client.Client) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("cannot close the client: %v", err)
	}
}

// eventually asks until ok, or ends the test after patience.
func eventually(t *testing.T, what string, ok func() (bool, error)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		done, err := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s (%v)", patience, what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// waitCompacted waits until the node's log no longer reaches back to its first entry. It is cut behind the
// writes that made it long.
func waitCompacted(t *testing.T, n *testcluster.Node) {
	t.Helper()
	eventually(t, "the head of the log is compacted", func() (bool, error) { return n.MustStatus().FirstIndex > 1, nil })
}

// bystander is a well-behaved client that works while others misbehave. It must notice nothing: every
// operation succeeds at its first attempt, on one connection, and reads what it wrote.
type bystander struct {
	t      *testing.T
	c      *client.Client
	cancel context.CancelFunc
	done   sync.WaitGroup
	ops    atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	noticed []string
}

// stand starts a bystander; it is checked at the end of the test.
func stand(t *testing.T, n *testcluster.Node) *bystander {
	t.Helper()
	b := &bystander{t: t}
	b.c = open(t, n, client.WithName("bystander"), client.WithHooks(client.Hooks{
		OnRetry: func(op wire.Opcode, attempt int, _ time.Duration, st wire.Status, err error) {
			b.notice("attempt %d of %s failed: %s, %v", attempt, op, st, err)
		},
		// The one at the end of the test comes after check.
		OnDisconnect: func(_ string, err error) { b.notice("the connection ended: %v", err) },
	}))
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	t.Cleanup(b.check)
	b.done.Go(func() { b.work(ctx) }) // ends when check cancels ctx
	return b
}

func (b *bystander) work(ctx context.Context) {
	value := make([]byte, 256)
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("bystander/%03d", i%100)
		value[0] = byte(i)
		// Not with ctx: an operation that has begun is finished.
		v, err := b.c.Put(context.Background(), key, value)
		if err != nil {
			b.notice("put: %v", err)
			return
		}
		got, err := b.c.Get(context.Background(), key)
		if err != nil {
			b.notice("get: %v", err)
			return
		}
		if got.Version != v || len(got.Data) != len(value) || got.Data[0] != byte(i) {
			b.notice("put version %d of %s, read version %d", v, key, got.Version)
			return
		}
		b.ops.Add(2)
	}
}

func (b *bystander) notice(format string, a ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noticed = append(b.noticed, fmt.Sprintf(format, a...))
}

// progress waits until the bystander has done n more operations: it lives.
func (b *bystander) progress(n int64) {
	b.t.Helper()
	want := b.ops.Load() + n
	eventually(b.t, "a well-behaved client makes progress", func() (bool, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.noticed) > 0 {
			b.t.Fatalf("a well-behaved client noticed: %v", b.noticed)
		}
		return b.ops.Load() >= want, nil
	})
}

func (b *bystander) check() {
	b.cancel()
	b.done.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.noticed) > 0 {
		b.t.Errorf("a well-behaved client noticed: %v", b.noticed)
	}
	b.t.Logf("bystander: %d operations, each at its first attempt", b.ops.Load())
}
