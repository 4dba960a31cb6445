package test

import (
	"testing"
	"time"

	"kvstore/internal/testcluster"
)

// TestCrash_KilledAtRandomInstants_EveryAcknowledgedWriteIsThereOnce kills the node by SIGKILL again and
// again, under load and while it starts, while the same clients go on over all restarts. SIGKILL proves
// the order of log, state and answers, and exactly-once retries; it proves nothing of fsync, since the
// kernel keeps what was written: see powercut_test.go.
func TestCrash_KilledAtRandomInstants_EveryAcknowledgedWriteIsThereOnce(t *testing.T) {
	kills := count(t, "KILLS", 50, 8)
	s := seed(t)
	rng := random(s, 0)
	n := testcluster.Start(t, testcluster.Options{})
	l := startLoad(t, n, s)

	var underLoad, whileStarting int
	var slowest time.Duration
	for range kills {
		if rng.IntN(5) == 0 {
			// While it opens its files, replays, or begins to serve.
			time.Sleep(time.Duration(rng.IntN(60_000)) * time.Microsecond)
			whileStarting++
		} else {
			// Enough traffic first, or the kill would hit nothing; then at a random instant.
			if !l.waitAcked(t, 1+int64(rng.IntN(400)), n.Exited()) {
				t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
			}
			time.Sleep(time.Duration(rng.IntN(20_000)) * time.Microsecond)
			underLoad++
		}
		if !n.Running() {
			t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
		}
		n.Kill()
		began := time.Now()
		n.Launch()
		if rng.IntN(5) != 0 {
			if err := n.WaitReady(); err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(began))
		}
	}
	if err := n.WaitReady(); err != nil {
		t.Fatal(err)
	}
	// The last kill must be survived by the clients too.
	if !l.waitAcked(t, 200, n.Exited()) {
		t.Fatalf("the node ended by itself:\n%s", n.LastOutput())
	}
	l.end()
	t.Logf("%d kills under load, %d while starting; slowest start to ready %v", underLoad, whileStarting, slowest.Round(time.Millisecond))
	if acked := l.ledger.acked.Load(); acked < int64(20*kills) {
		t.Errorf("only %d writes were acknowledged around %d kills: the test hit nothing", acked, kills)
	}
	c := open(t, n)
	l.ledger.verify(c)
	l.ledger.report()
	closeClient(t, c)
	checkDigest(t, n)
	if t.Failed() {
		t.Logf("KILLS=%d %s=%d go test ./test -run TestCrash_Killed -count=1", kills, seedEnv, s)
	}
}
